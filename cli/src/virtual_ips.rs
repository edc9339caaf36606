//! Virtual addresses as `get` and `describe` show them, and `reeve virtualip move`. Who holds one is the leader's to say.

use schemas::admit::admit_stored;
use schemas::keys::ResourceKey;
use schemas::kinds::{Document, Kind};
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Condition, ConditionStatus, ConditionType, VirtualIpStatus};
use schemas::virtual_ip::VirtualIpSpec;
use serde_json::{Value, json};

use crate::Verdict;
use crate::apply::bring_in;
use crate::args::Common;
use crate::args::virtual_ip::{VirtualIpMoveArgs, VirtualIpVerb};
use crate::connect::connect;
use crate::describe;
use crate::edit;
use crate::failure::{Exit, Failure};
use crate::get;
use crate::output::{self, Cell, Format, Tone};
use crate::rows::{self, State};
use crate::view::{Declared, View, title};

pub const HEAD: &[&str] = &["NAME", "ADDRESS", "NODE", "SINCE", "STATUS"];

/// The key of a VirtualIP.
pub fn key(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::VirtualIP,
        name: name.clone(),
    }
}

fn spec_of(declared: &Declared) -> Option<&VirtualIpSpec> {
    match &declared.admitted.as_ref().ok()?.document {
        Document::VirtualIP(one) => Some(&one.spec),
        Document::Service(_)
        | Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Registry(_)
        | Document::Secret(_)
        | Document::Command(_)
        | Document::NetworkPolicy(_) => None,
    }
}

fn status_of<'a>(view: &'a View, key: &ResourceKey) -> Option<&'a VirtualIpStatus> {
    view.virtual_ips.get(key)?.as_ref().ok()
}

fn ready(status: &VirtualIpStatus) -> Option<&Condition> {
    status.conditions.iter().find(|one| one.kind == ConditionType::Ready)
}

fn state(view: &View, key: &ResourceKey) -> State {
    let problems = view
        .declared
        .get(key)
        .and_then(|declared| declared.admitted.as_ref().err());
    let status = status_of(view, key);
    if let Some(problems) = problems {
        let mut state = rows::invalid(problems.problems.first(), problems.count() - 1);
        if let Some(node) = status.and_then(|status| status.node.as_ref()) {
            state.message.push_str(&format!("; it stays on {node}"));
        }
        return state;
    }
    let Some(told) = status.and_then(ready) else {
        return State::new("Waiting", Tone::Plain, "the controller has not said who is to hold it");
    };
    let tone = match (told.status, told.reason.as_str()) {
        (ConditionStatus::True, _) => Tone::Good,
        (_, "Moving" | "Taking" | "Deleting") => Tone::Busy,
        (ConditionStatus::False | ConditionStatus::Unknown, _) => Tone::Bad,
    };
    let message = if told.status == ConditionStatus::True {
        ""
    } else {
        told.message.as_str()
    };
    State::new(&told.reason, tone, message)
}

/// A virtual address's line.
pub fn row(view: &View, key: &ResourceKey) -> Vec<Cell> {
    let declared = view.declared.get(key).map(AsRef::as_ref);
    let spec = declared.and_then(spec_of);
    let status = status_of(view, key);
    let since = status.and_then(ready).and_then(|told| told.since.clone());
    let node = status.and_then(|status| status.node.as_ref());
    vec![
        key.name.as_str().into(),
        spec.map_or_else(String::new, |spec| spec.address.clone()).into(),
        node.map_or_else(|| "-".to_owned(), ToString::to_string).into(),
        since.unwrap_or_default().into(),
        state(view, key).cell(),
    ]
}

/// `reeve describe virtualip`.
pub fn describe(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key)?;
    let status = status_of(view, key);
    if format.is_for_machines() {
        let value = json!({ "resource": get::document(view, key, declared), "status": status });
        return Some(match format {
            Format::Yaml => output::yaml(&value),
            Format::Name => format!("virtualip/{}\n", key.name),
            Format::Json | Format::Table | Format::Wide => output::json(&value),
        });
    }
    let mut text = describe::head(key, &state(view, key), None);
    if let Some(status) = status {
        let node = status.node.as_ref();
        describe::line(
            &mut text,
            "Node",
            &node.map_or_else(|| "none".to_owned(), ToString::to_string),
        );
        if let Some(told) = ready(status) {
            describe::line(&mut text, "Since", told.since.as_deref().unwrap_or("unknown"));
            describe::sentence_of(&mut text, "Said", &told.message);
        }
    }
    let Some(spec) = spec_of(declared) else {
        if let Err(problems) = &declared.admitted {
            text.push('\n');
            text.push_str(&problems.render(output::look()));
        }
        return Some(text);
    };
    describe::sentence_of(&mut text, "For", spec.description.as_deref().unwrap_or_default());
    describe::line(&mut text, "Address", &spec.address);
    if let Some(interface) = &spec.interface {
        describe::line(&mut text, "Interface", interface);
    }
    if let Some(service) = &spec.service {
        describe::line(&mut text, "Service", service.as_str());
    }
    let prefer: Vec<&str> = spec.prefer.iter().map(|node| node.as_str()).collect();
    if !prefer.is_empty() {
        describe::sentence_of(&mut text, "Prefer", &prefer.join(", "));
    }
    Some(text)
}

/// `reeve virtualip`.
pub async fn virtual_ip(common: &Common, verb: &VirtualIpVerb) -> Verdict {
    match verb {
        VirtualIpVerb::Move(args) => to(common, args).await,
    }
}

async fn to(common: &Common, args: &VirtualIpMoveArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let key = key(&common.namespace.clone().unwrap_or_default(), &args.name);
    let mut found = edit::stored(&connection, std::slice::from_ref(&key)).await?;
    let found = found.pop().flatten().ok_or_else(|| {
        Failure::new(Exit::Failed, format!("there is no {}", title(&key)))
            .help("list them with `reeve get virtualips -A`")
    })?;
    let known = View::read(&connection, &["nodes"]).await?;
    if !known.facts.contains_key(&args.to) {
        return Err(Failure::new(
            Exit::Failed,
            format!("there is no node `{}`; nothing was written", args.to),
        )
        .help("list nodes with `reeve get nodes`"));
    }
    let admitted = admit_stored(&key, &found.value).map_err(Failure::invalid)?;
    let mut value = admitted.value;
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        let others = spec
            .get("prefer")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let first = json!(args.to);
        let prefer: Vec<Value> = std::iter::once(first.clone())
            .chain(others.into_iter().filter(|other| *other != first))
            .collect();
        spec.insert("prefer".to_owned(), Value::Array(prefer));
    }
    let admitted = admit_stored(&key, value.to_string().as_bytes()).map_err(Failure::invalid)?;
    let revision = Some(found.mod_revision);
    bring_in(
        common,
        &connection,
        &marker,
        vec![admitted],
        revision,
        true,
        &args.waiting,
    )
    .await
}

/// Whether it is held, as far as that is to be waited for: what it waits for otherwise.
pub fn held(view: &View, key: &ResourceKey, revision: i64) -> Result<String, String> {
    let waits = || format!("{}: waits for the controller", title(key));
    let status = status_of(view, key).filter(|status| status.observed_revision >= revision);
    let told = status.and_then(ready).ok_or_else(waits)?;
    match told.reason.as_str() {
        "Moving" | "Taking" | "Refused" => Err(format!("{}: {}", title(key), told.message)),
        _ => Ok(format!("{}: {}", title(key), told.message)),
    }
}
