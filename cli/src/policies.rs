//! Network policies as `get` and `describe` show them. What they mean is `schemas`' and the planner's to say.

use schemas::container::Protocol;
use schemas::keys::ResourceKey;
use schemas::kinds::Document;
use schemas::names::Namespace;
use schemas::network_policy::{NetworkPeer, NetworkPolicySpec, NetworkPort, PolicyType};
use serde_json::json;

use crate::describe;
use crate::get;
use crate::output::{self, Cell, Format, Tone};
use crate::rows::{self, State};
use crate::view::{Declared, View};

pub const HEAD: &[&str] = &["NAME", "SERVICES", "RESTRICTS", "STATUS"];

fn spec_of(declared: &Declared) -> Option<&NetworkPolicySpec> {
    match &declared.admitted.as_ref().ok()?.document {
        Document::NetworkPolicy(policy) => Some(&policy.spec),
        Document::Service(_)
        | Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Registry(_)
        | Document::Secret(_)
        | Document::Command(_)
        | Document::VirtualIP(_) => None,
    }
}

fn state(view: &View, key: &ResourceKey) -> State {
    let in_force = key
        .namespace
        .as_ref()
        .and_then(|namespace| view.policies.get(namespace));
    let in_force = in_force.and_then(|record| record.as_ref().ok());
    let in_force = in_force.and_then(|record| record.policies.iter().find(|one| one.name == key.name));
    let Some(declared) = view.declared.get(key) else {
        return rows::invalid(None, 0);
    };
    match (&declared.admitted, spec_of(declared)) {
        (Ok(_), Some(_)) if !view.network => {
            let why = "the cluster has no network of its own, so nothing is refused";
            State::new("NoNetwork", Tone::Plain, why)
        }
        (Ok(_), Some(spec)) if in_force.is_some_and(|one| one.spec == *spec) => State::new("InForce", Tone::Good, ""),
        (Ok(_), _) => {
            let why = "the controller has not put it in force; one that the others of its namespace leave no room for waits too";
            State::new("Waiting", Tone::Plain, why)
        }
        (Err(problems), _) => {
            let mut state = rows::invalid(problems.problems.first(), problems.count() - 1);
            if in_force.is_some() {
                state.message.push_str("; what it last said stays in force");
            }
            state
        }
    }
}

fn services(spec: &NetworkPolicySpec) -> String {
    if spec.services.is_empty() {
        return "all".to_owned();
    }
    let names: Vec<&str> = spec.services.iter().map(|name| name.as_str()).collect();
    names.join(",")
}

/// What it restricts, with the number of rules that allow something.
fn restricts(spec: &NetworkPolicySpec) -> String {
    let directions = [
        ("ingress", PolicyType::Ingress, spec.ingress.len()),
        ("egress", PolicyType::Egress, spec.egress.len()),
    ];
    let told = directions
        .into_iter()
        .filter(|(_, direction, _)| spec.restricts(*direction));
    let told: Vec<String> = told
        .map(|(word, _, rules)| format!("{word}: {}", output::count(rules, "rule")))
        .collect();
    told.join(", ")
}

/// A policy's line.
pub fn row(view: &View, key: &ResourceKey) -> Vec<Cell> {
    let declared = view.declared.get(key).map(AsRef::as_ref);
    let spec = declared.and_then(spec_of);
    vec![
        key.name.as_str().into(),
        spec.map_or_else(String::new, |spec| output::cut(&services(spec), 24))
            .into(),
        spec.map_or_else(String::new, restricts).into(),
        state(view, key).cell(),
    ]
}

fn peer(peer: &NetworkPeer, own: &Namespace) -> String {
    let NetworkPeer {
        namespace,
        service,
        ip_block,
    } = peer;
    if let Some(block) = ip_block {
        let except = if block.except.is_empty() {
            String::new()
        } else {
            format!(" except {}", block.except.join(", "))
        };
        return format!("{}{except}", block.cidr);
    }
    let namespace = namespace.as_ref().unwrap_or(own);
    match service {
        Some(service) => format!("{service} of namespace {namespace}"),
        None => format!("all of namespace {namespace}"),
    }
}

fn port(port: &NetworkPort) -> String {
    let word = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    match (port.port, port.end_port) {
        (Some(first), Some(last)) => format!("{first}-{last}/{word}"),
        (Some(one), None) => format!("{one}/{word}"),
        (None, _) => format!("all {word}"),
    }
}

/// A rule in words: `web of namespace shop, on 5432/TCP`.
fn rule(peers: &[NetworkPeer], ports: &[NetworkPort], own: &Namespace) -> String {
    let who = if peers.is_empty() {
        "everybody".to_owned()
    } else {
        let peers: Vec<String> = peers.iter().map(|one| peer(one, own)).collect();
        peers.join(" or ")
    };
    if ports.is_empty() {
        return who;
    }
    let ports: Vec<String> = ports.iter().map(port).collect();
    format!("{who}, on {}", ports.join(", "))
}

/// `reeve describe networkpolicy`.
pub fn describe(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key)?;
    if format.is_for_machines() {
        let value = json!({ "resource": get::document(view, key, declared) });
        return Some(match format {
            Format::Yaml => output::yaml(&value),
            Format::Name => format!("networkpolicy/{}\n", key.name),
            Format::Json | Format::Table | Format::Wide => output::json(&value),
        });
    }
    let mut text = describe::head(key, &state(view, key), None);
    let Some(spec) = spec_of(declared) else {
        if let Err(problems) = &declared.admitted {
            text.push('\n');
            text.push_str(&problems.render(output::look()));
        }
        return Some(text);
    };
    let own = key.namespace.clone().unwrap_or_default();
    describe::sentence_of(&mut text, "For", spec.description.as_deref().unwrap_or_default());
    describe::sentence_of(&mut text, "Services", &services(spec).replace(',', ", "));
    let none = |text: &mut String, word| describe::line(text, word, "nobody");
    if spec.restricts(PolicyType::Ingress) {
        for one in &spec.ingress {
            describe::sentence_of(&mut text, "From", &rule(&one.from, &one.ports, &own));
        }
        if spec.ingress.is_empty() {
            none(&mut text, "From");
        }
    }
    if spec.restricts(PolicyType::Egress) {
        for one in &spec.egress {
            describe::sentence_of(&mut text, "To", &rule(&one.to, &one.ports, &own));
        }
        if spec.egress.is_empty() {
            none(&mut text, "To");
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_told_in_words() {
        let own = "shop".parse().expect("a namespace");
        let of = |json: serde_json::Value| serde_json::from_value::<NetworkPolicySpec>(json).expect("a spec");
        let spec = of(json!({ "ingress": [
            { "from": [{ "service": "web" }, { "namespace": "backup" }], "ports": [{ "port": 5432 }, { "port": 80, "endPort": 89, "protocol": "UDP" }] },
            { "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }] },
            {}
        ] }));
        let told: Vec<String> = spec
            .ingress
            .iter()
            .map(|one| rule(&one.from, &one.ports, &own))
            .collect();
        assert_eq!(
            told,
            [
                "web of namespace shop or all of namespace backup, on 5432/TCP, 80-89/UDP",
                "10.0.0.0/8 except 10.1.0.0/16",
                "everybody"
            ]
        );
        assert_eq!(restricts(&spec), "ingress: 3 rules");
        assert_eq!(restricts(&of(json!({ "policyTypes": ["Egress"] }))), "egress: 0 rules");
    }
}
