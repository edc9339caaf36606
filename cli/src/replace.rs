//! `reeve node replace`: a host that is gone for good leaves its name, its labels and roles and what is assigned to it to another.
//! The old one is shut out, and a token of that name alone is printed, with which the new one joins.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use membership::keep::Keep;
use membership::revoke::Revoker;
use membership::seed::{KNOWN, Known};
use membership::seeds::Host;
use membership::tokens::{self, Wanted};
use schemas::names::NodeName;
use schemas::records::{CordonMode, NodeFacts, Verdict as NodeVerdict};
use serde_json::json;
use trust::identity::{Name, Subject};
use trust::token::Admits;

use crate::Verdict;
use crate::args::Common;
use crate::args::authority::ReplaceArgs;
use crate::failure::{Exit, Failure};
use crate::nodes::known;
use crate::output::{self, Format, complain, print};
use crate::seats::{of_tokens, server_dir};
use crate::view::View;

/// Labels that an agent gives itself begin with it.
const OWN_LABELS: &str = "reeve.";
/// How long the seeds may take to cut connections.
const CUT: Duration = Duration::from_secs(30);
const MOST_TTL: Duration = Duration::from_secs(30 * 86_400);

pub async fn replace(common: &Common, args: &ReplaceArgs) -> Verdict {
    let node = &args.node;
    if args.ttl > MOST_TTL || args.ttl < Duration::from_secs(1) {
        return Err(Failure::usage("--ttl is from 1s to 30d"));
    }
    let dir = server_dir(common);
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, format!("cannot replace node/{node}")).because(error)
    };
    let revoker = Revoker::here(&dir).map_err(|error| cannot(&error))?;
    let seed = Keep::beside(&dir).read_json::<Known>(KNOWN);
    let (Some(revoker), Some(seed)) = (revoker, seed.map_err(|error| cannot(&error))?) else {
        return Err(Failure::new(
            Exit::Failed,
            "this host is no seed, and only a seed's authority shuts a host out and lets another in",
        )
        .help("run it on a seed, as root; on a store of your own, start an agent on the new host with --node and that name"));
    };
    let (connection, _, view) = known(common, std::slice::from_ref(node)).await?;
    let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
    fits(node, args, &view, facts, &seed)?;
    if !args.yes {
        let question = format!(
            "Shut the host of node/{node} out, and give its name to another, with {}?",
            output::count(on(&view, node), "instance")
        );
        if !output::can_ask() {
            return Err(Failure::usage(format!(
                "this would shut node/{node} out, and there is no terminal to ask on"
            ))
            .help("add --yes if that is meant"));
        }
        if !output::ask(&question) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    let (name, subject) = (node.as_str().parse::<Name>(), format!("node/{node}").parse::<Subject>());
    let (name, subject) = (
        name.map_err(|error| cannot(&error))?,
        subject.map_err(|error| cannot(&error))?,
    );
    let why = args
        .note
        .as_deref()
        .unwrap_or("another host took its name (`reeve node replace`)");
    let revoked = revoker
        .revoke(&connection.store, &connection.root, &subject, why)
        .await
        .map_err(|error| cannot(&error))?;
    let wanted = Wanted {
        admits: Admits::Node,
        names: BTreeSet::from([name]),
        uses: 1,
        seconds: args.ttl.as_secs(),
    };
    let made = tokens::create(&dir, &connection.store, &connection.root, wanted).await;
    let (token, record) = made.map_err(|error| of_tokens(&error))?;
    let left = revoker.until_cut(revoked, CUT).await.map_err(|error| cannot(&error))?;
    for host in &left {
        complain(&format!(
            "the seed {host} has not said that it cut the old host's connections; it does when it is back\n"
        ));
    }
    let text = token.to_text();
    let install = install(node, &seed, facts);
    match common.output {
        Format::Json | Format::Yaml => {
            let value = json!({
                "node": node, "token": text.as_str(), "id": record.id, "expires": record.expires.to_string(), "install": install,
            });
            print(&match common.output {
                Format::Yaml => output::yaml(&value),
                Format::Json | Format::Table | Format::Wide | Format::Name => output::json(&value),
            });
        }
        Format::Table | Format::Wide | Format::Name => {
            complain(&format!(
                "node/{node} is shut out; its name, and what is assigned to it, wait for another host.\n\
                 There, with this token in the file `token` (until {}):\n  {install}\n\
                 What still runs on the old host is for you to stop there, with\n\
                 `reeve uninstall --force`. Data in volumes is not brought along.\n",
                record.expires
            ));
            print(&format!("{}\n", text.as_str()));
        }
    }
    Ok(Exit::Done)
}

fn on(view: &View, node: &NodeName) -> usize {
    let instances = view.instances();
    instances
        .iter()
        .filter(|found| found.node == node && !found.is_absent())
        .count()
}

/// Whether the node may be replaced now.
fn fits(
    node: &NodeName,
    args: &ReplaceArgs,
    view: &View,
    facts: Option<&NodeFacts>,
    seed: &Known,
) -> Result<(), Failure> {
    if view.cordon(node) == Some(CordonMode::Retire) {
        return Err(Failure::new(
            Exit::Failed,
            format!("node/{node} was taken out of the cluster, and what it ran is elsewhere"),
        )
        .help(format!(
            "a host joins under its name with `reeve token create --node {node}`, then `reeve uncordon {node}`"
        )));
    }
    if let Some(host) = facts.and_then(|facts| seat(facts, seed)) {
        return Err(Failure::new(
            Exit::Failed,
            format!("the host of node/{node} is the seed {host}, and a seed's place goes by its address"),
        )
        .help(format!(
            "give the new host the address {host} and start `reeve server` there with the install token: it takes the seed's\nplace. Then, for its containers: `reeve node rm {node} --now`, `reeve token create --node {node}`, `reeve uncordon {node}`"
        )));
    }
    let lives = view.sessions.contains_key(node) || view.verdict(node) == NodeVerdict::Ready;
    if lives && !args.although_it_answers {
        return Err(Failure::new(
            Exit::Conflict,
            format!("node/{node} answers: what it runs would run twice"),
        )
        .help(
            "stop the old host first; or, when it is in wrong hands, add --although-it-answers: it is shut out, and what it runs goes on there",
        ));
    }
    Ok(())
}

/// Which seed the node's host is, by its addresses.
fn seat<'a>(facts: &NodeFacts, seed: &'a Known) -> Option<&'a Host> {
    let mut seeds = seed.seeds.iter();
    let here = |address: IpAddr| facts.addresses.host.contains(&address);
    seeds.find(|host| host.address().is_some_and(here))
}

/// What a person runs on the new host, so that it is to placement what the old one was.
fn install(node: &NodeName, seed: &Known, facts: Option<&NodeFacts>) -> String {
    let mut line = format!("reeve install --seeds {} --token-file token --node {node}", seed.seeds);
    let Some(facts) = facts else { return line };
    for role in &facts.roles {
        line.push_str(&format!(" --role {role}"));
    }
    for (key, value) in facts.labels.iter().filter(|(key, _)| !key.starts_with(OWN_LABELS)) {
        line.push_str(&format!(" --label {}", quoted(&format!("{key}={value}"))));
    }
    line
}

/// As a shell reads it back: what a node wrote is not to be believed.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_wrote_is_quoted_for_the_shell() {
        assert_eq!(quoted("zone=a-1.b/c"), "zone=a-1.b/c");
        assert_eq!(quoted("x; rm -rf /"), "'x; rm -rf /'");
        assert_eq!(quoted("it's\n$(x)"), "'it'\\''s$(x)'");
        assert_eq!(quoted(""), "''");
    }
}
