//! `reeve describe`: everything about one resource, with why and since when.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use schemas::container::PullPolicy;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::records::{AssignedImage, Condition, ConditionStatus, NodeCondition, ServiceStatus};
use schemas::service::{Mode, ServiceSpec};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Common, DescribeArgs};
use crate::connect::connect;
use crate::failure::{Exit, Failure};
use crate::get::document;
use crate::output::{self, Format, Table, Tone, ago, look, print};
use crate::rows;
use crate::select::{What, what};
use crate::status::{about, few};
use crate::view::{Instance, View, file_key, node_key, service_key};
use crate::wait::refusal_line;

pub async fn describe(common: &Common, args: &DescribeArgs) -> Verdict {
    let names: Vec<String> = args.name.iter().cloned().collect();
    let (what, names) = what(&args.kind, &names)?;
    let [name] = names.as_slice() else {
        return Err(Failure::usage("describe takes one name").help("for example `reeve describe service web`"));
    };
    let namespace = common.namespace.clone().unwrap_or_default();
    let bad_name = |error: schemas::names::NameError| Failure::usage(error.to_string());
    let connection = connect(common).await?;
    connection.marker().await?;
    let classes = [
        "desired",
        "status",
        "nodes",
        "sessions",
        "verdicts",
        "cordons",
        "assignments",
        "reports",
        "events",
    ];
    // Who only looks may not read what is sealed: it is asked for where it is needed.
    let sealed = matches!(what, What::Resource(Kind::Secret)).then_some("sealed");
    let policies = matches!(what, What::Resource(Kind::NetworkPolicy)).then_some("policies");
    let classes: Vec<&str> = classes.into_iter().chain(sealed).chain(policies).collect();
    let view = View::read(&connection, &classes).await?;
    let told = match what {
        What::Resource(Kind::Service) => service(
            &view,
            &service_key(&namespace, &name.parse().map_err(bad_name)?),
            common.output,
        ),
        What::Resource(Kind::Node) => node(&view, &name.parse().map_err(bad_name)?, common.output),
        What::Resource(Kind::ConfigFile) => file(
            &view,
            &file_key(&namespace, &name.parse().map_err(bad_name)?),
            common.output,
        ),
        What::Resource(Kind::Registry) => {
            let name = name.parse().map_err(bad_name)?;
            crate::registry::describe(&view, &crate::view::registry_key(&name), common.output)
        }
        What::Resource(Kind::Secret) => {
            let name = name.parse().map_err(bad_name)?;
            crate::secrets::describe(&view, &crate::view::secret_key(&namespace, &name), common.output)
        }
        What::Resource(Kind::Command) => {
            let name = name.parse().map_err(bad_name)?;
            crate::commands::describe(&view, &crate::view::command_key(&namespace, &name), common.output)
        }
        What::Resource(Kind::VirtualIP) => {
            let name = name.parse().map_err(bad_name)?;
            crate::virtual_ips::describe(&view, &crate::virtual_ips::key(&namespace, &name), common.output)
        }
        What::Resource(Kind::NetworkPolicy) => {
            let name = name.parse().map_err(bad_name)?;
            crate::policies::describe(
                &view,
                &crate::view::network_policy_key(&namespace, &name),
                common.output,
            )
        }
        What::Instances => instance(&view, &namespace, name, common.output),
        What::Events | What::All => {
            return Err(Failure::usage(
                "describe a service, a node, a file, a secret, a command, a network policy, a virtual address, a registry or an instance",
            ));
        }
    };
    let text = told.ok_or_else(|| {
        let word = match what {
            What::Resource(kind) => kind.segment(),
            What::Instances | What::Events | What::All => "instance",
        };
        let place = if matches!(what, What::Resource(Kind::Node | Kind::Registry)) {
            String::new()
        } else {
            format!(" in namespace `{namespace}`")
        };
        Failure::new(Exit::Failed, format!("there is no {word} `{name}`{place}"))
            .help("list what there is with `reeve get all -A`")
    })?;
    print(&text);
    Ok(Exit::Done)
}

fn machine(value: &Value, format: Format) -> String {
    if format == Format::Yaml {
        output::yaml(value)
    } else {
        output::json(value)
    }
}

pub fn line(text: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        let _ = writeln!(text, "{:<12} {}", format!("{name}:"), crate::failure::printable(value));
    }
}

/// A line whose text goes on under itself.
fn sentence(text: &mut String, name: &str, value: &str) {
    let value = crate::failure::printable(value);
    let room = output::limit().map_or(usize::MAX, |width| width.saturating_sub(13).max(24));
    let lines = output::wrap(&value, room);
    let _ = writeln!(
        text,
        "{:<12} {}",
        format!("{name}:"),
        lines.join(&format!("\n{:13}", ""))
    );
}

/// The same, where there is something to say.
pub fn sentence_of(text: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        sentence(text, name, value);
    }
}

/// How every page about a resource of a namespace begins.
pub fn head(key: &ResourceKey, state: &rows::State, conditions: Option<&[Condition]>) -> String {
    let mut text = String::new();
    line(&mut text, "Name", key.name.as_str());
    line(
        &mut text,
        "Namespace",
        key.namespace.as_ref().map_or("", Namespace::as_str),
    );
    headline(
        &mut text,
        state,
        conditions.and_then(|conditions| since(state, conditions)),
    );
    text
}

/// What it is up to, why, and for how long: what one looks for first.
fn headline(text: &mut String, state: &rows::State, since: Option<String>) {
    let style = state.tone.style();
    let since = since.map(|since| format!(" for {since}")).unwrap_or_default();
    let _ = writeln!(text, "{:<12} {style}{}{style:#}{since}", "Status:", state.word);
    if state.tone != Tone::Good && !state.message.is_empty() {
        sentence(text, "Why", &state.message);
    }
}

/// What nodes say of themselves (a full disk, an engine that is away) on which an instance does not get on: at most five.
fn held_by<'a>(view: &'a View, instances: &[Instance<'a>]) -> Vec<(&'a NodeName, &'a NodeCondition)> {
    let waits = |found: &&Instance<'a>| !found.is_ready() || found.reported.is_some_and(|it| it.next.is_some());
    let nodes: BTreeSet<&NodeName> = instances.iter().filter(waits).map(|found| found.node).collect();
    let of = |node: &'a NodeName| {
        let report = view.reports.get(node).and_then(|report| report.as_ref().ok());
        report
            .into_iter()
            .flat_map(move |report| report.conditions.iter().map(move |one| (node, one)))
    };
    nodes.into_iter().flat_map(of).take(5).collect()
}

/// Since when the condition is as it is that gives a state its word.
fn since(state: &rows::State, conditions: &[Condition]) -> Option<String> {
    let word = if state.word == "Ready" { "AllReady" } else { &state.word };
    let found = conditions.iter().find(|condition| condition.reason == word)?;
    ago(found.since.as_deref()?)
}

/// What becomes of an instance whose node is away.
fn loss_line(spec: &ServiceSpec) -> String {
    let stops = spec.stop_after();
    let begins = stops.map_or(String::new(), |after| {
        format!("stopped by its node when that had no word of the store for {after}; ")
    });
    format!("{begins}{}", elsewhere(spec))
}

fn elsewhere(spec: &ServiceSpec) -> String {
    let data = if spec.container.keeps_data() {
        ", without the data that it keeps"
    } else {
        ""
    };
    match (spec.mode, spec.replace_after()) {
        (Mode::Replicated, _) if spec.exclusive => {
            let when = spec
                .stopped_after()
                .map_or(String::new(), |after| format!(", and it has been away for {after}"));
            format!(
                "replaced on another node{data} when its own says that it is gone, or you that the host is off with `reeve node confirm-lost`{when}; \
                 never by time alone"
            )
        }
        (Mode::Global, _) => "each instance waits for its own node".to_owned(),
        (Mode::Replicated, None) => "waits for its node, where it keeps data".to_owned(),
        (Mode::Replicated, Some(after)) => format!("replaced on another node after {after}{data}"),
    }
}

fn service(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key);
    let recorded = view.services.get(key);
    if declared.is_none() && recorded.is_none() {
        return None;
    }
    let status = recorded.and_then(|status| status.as_ref().ok());
    let instances = view.instances_of(key);
    let events = about(view, &key.to_string(), Some(&key.name));
    if format.is_for_machines() {
        let problems = declared
            .and_then(|declared| declared.admitted.as_ref().err())
            .map(|problems| &problems.problems);
        let value = json!({
            "resource": declared.map(|declared| document(view, key, declared)),
            "status": status,
            "problems": problems.or(status.map(|status| &status.problems)),
            "instances": instances.iter().map(|found| json!({
                "name": found.name.to_string(), "node": found.node, "phase": found.phase(), "ready": found.is_ready(),
                "assigned": found.assigned, "reported": found.reported,
            })).collect::<Vec<_>>(),
            "events": events,
        });
        return Some(machine(&value, format));
    }
    let state = rows::service_state(view, key);
    let mut text = head(key, &state, status.map(|status| status.conditions.as_slice()));
    if let Some(status) = status {
        for refusal in &status.refusals {
            sentence(&mut text, "Refused by", &refusal_line(refusal));
        }
    }
    for (node, held) in held_by(view, &instances) {
        sentence(
            &mut text,
            "Held by",
            &format!("node {node}: {}: {}", held.reason, held.message),
        );
    }
    line(
        &mut text,
        "Labels",
        &view
            .labels(key)
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    if let Some(declared) = declared {
        let generation = status
            .and_then(|status| status.generation)
            .map(|n| format!(", generation {n} in force"))
            .unwrap_or_default();
        line(&mut text, "Revision", &format!("{}{generation}", declared.mod_revision));
    }
    if let Some(spec) = rows::spec_of(declared.map(AsRef::as_ref)) {
        sentence_of(&mut text, "Image", &image_line(spec, status));
        sentence_of(&mut text, "If lost", &loss_line(spec));
    }
    let tokens = instances.iter().filter(|found| !found.is_absent()).filter_map(|found| {
        let token = found.assigned?.token?;
        Some(format!("{} of {} on {}", token, found.name, found.node))
    });
    sentence_of(&mut text, "Tokens", &tokens.collect::<Vec<_>>().join(", "));
    let mounts = rows::spec_of(declared.map(AsRef::as_ref)).map_or(&[][..], |spec| &spec.container.files);
    let files = mounts.iter().map(|mount| {
        let place = ResourceKey {
            kind: Kind::ConfigFile,
            name: mount.file.clone(),
            ..key.clone()
        };
        let file = view.files.get(&place).and_then(|file| file.as_ref().ok());
        let edition = file.and_then(|file| file.edition);
        let edition = edition.map_or_else(String::new, |edition| format!(" (edition {})", edition.n));
        format!("{}{edition} at {}", mount.file, mount.path)
    });
    sentence_of(&mut text, "Files", &files.collect::<Vec<_>>().join(", "));
    let secrets = rows::spec_of(declared.map(AsRef::as_ref)).map_or(&[][..], |spec| &spec.container.secrets);
    let secrets = secrets.iter().map(|one| match (&one.env, one.path()) {
        (Some(variable), _) => format!("{} as the variable {variable}", one.secret),
        (None, path) => format!("{} at {}", one.secret, path.unwrap_or_default()),
    });
    sentence_of(&mut text, "Secrets", &secrets.collect::<Vec<_>>().join(", "));
    if let Some(status) = status {
        let counts = status.counts;
        let counts = format!(
            "{} desired, {} assigned, {} running, {} ready, {} updated",
            counts.desired, counts.assigned, counts.running, counts.ready, counts.updated
        );
        line(&mut text, "Instances", &counts);
        conditions(&mut text, &status.conditions);
    } else if let Some(Err(why)) = recorded {
        line(&mut text, "Trouble", why);
    }
    match declared.map(|declared| &declared.admitted) {
        Some(Err(problems)) => {
            let _ = write!(
                text,
                "\nProblems (the last good spec stays in force):\n{}",
                problems.render(look())
            );
        }
        Some(Ok(admitted)) => {
            if let Some(status) = status.filter(|status| !status.problems.is_empty()) {
                text.push_str("\nProblems (the last good spec stays in force):\n");
                status
                    .problems
                    .iter()
                    .for_each(|problem| text.push_str(&format!("  {}\n", problem.line())));
            }
            if let Some(spec) = admitted.value.get("spec") {
                text.push_str("\nSpec:\n");
                output::yaml(spec)
                    .lines()
                    .for_each(|line| text.push_str(&format!("  {line}\n")));
            }
        }
        None => {}
    }
    instance_table(&mut text, &instances);
    event_table(&mut text, &events);
    Some(text)
}

/// What the image of a service is; nothing where its spec says a digest.
fn image_line(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> String {
    let image = &spec.container.image;
    let known = status.and_then(|status| status.images.last());
    match known.filter(|known| known.image == *image) {
        _ if image.digest().is_some() => String::new(),
        Some(known) => format!(
            "{image} is settled as sha256:{} on every node",
            known.pin.digest.short()
        ),
        None if spec.container.pull_policy == PullPolicy::Never => {
            format!("{image} as it is on each node: pullPolicy is Never")
        }
        None if status.is_some_and(|status| status.counts.running > 0) => {
            format!("{image} as it is on each node: no digest of it is known")
        }
        None => format!("{image}, not settled yet: the first node that has it tells its digest"),
    }
}

fn conditions(text: &mut String, conditions: &[Condition]) {
    let mut table = Table::of_sentences(&["CONDITION", "STATUS", "REASON", "FOR", "MESSAGE"]);
    for condition in conditions {
        let Condition {
            kind,
            status,
            reason,
            message,
            since,
        } = condition;
        let tone = if *status == ConditionStatus::Unknown {
            Tone::Busy
        } else {
            Tone::Plain
        };
        table.row(vec![
            format!("{kind:?}").into(),
            output::Cell::new(format!("{status:?}"), tone),
            reason.into(),
            since.as_deref().and_then(ago).unwrap_or_default().into(),
            message.into(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(output::limit()));
}

fn instance_table(text: &mut String, instances: &[Instance<'_>]) {
    if instances.is_empty() {
        return;
    }
    let mut table = Table::new(rows::INSTANCE_HEAD);
    instances
        .iter()
        .for_each(|found| table.row(rows::instance_row(found, false)));
    text.push('\n');
    text.push_str(&table.render(output::limit()));
    for found in instances {
        let Some(reported) = found.reported else { continue };
        if let Some(failing) = &reported.failing {
            text.push('\n');
            sentence(
                text,
                found.name.to_string().as_str(),
                &format!("{:?}: {}", failing.reason, failing.message),
            );
            failing
                .logs
                .iter()
                .for_each(|line| text.push_str(&format!("  | {}\n", crate::failure::printable(line))));
        }
        if let Some(coming) = rows::coming(found) {
            let _ = writeln!(text, "{}: {coming}", found.name);
        }
        for condition in &reported.conditions {
            let _ = writeln!(
                text,
                "{}: {}: {}",
                found.name,
                condition.reason,
                crate::failure::printable(&condition.message)
            );
        }
    }
}

fn event_table(text: &mut String, events: &[&schemas::records::Event]) {
    let events = few(events);
    let skip = events.len().saturating_sub(10);
    if events.is_empty() {
        return;
    }
    let mut table = Table::of_sentences(rows::EVENT_HEAD);
    events
        .iter()
        .skip(skip)
        .for_each(|event| table.row(rows::event_row(event, false)));
    text.push('\n');
    text.push_str(&table.render(output::limit()));
}

fn file(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key);
    let status = view.files.get(key).and_then(|status| status.as_ref().ok());
    if declared.is_none() && status.is_none() {
        return None;
    }
    let events = about(view, &key.to_string(), None);
    if format.is_for_machines() {
        let value = json!({
            "resource": declared.map(|declared| document(view, key, declared)), "status": status, "events": events,
        });
        return Some(machine(&value, format));
    }
    let state = rows::file_state(view, key);
    let mut text = head(key, &state, status.map(|status| status.conditions.as_slice()));
    if let Some(edition) = status.and_then(|status| status.edition) {
        line(&mut text, "Edition", &edition.n.to_string());
        line(
            &mut text,
            "Size",
            &output::count(usize::try_from(edition.size).unwrap_or(usize::MAX), "byte"),
        );
        line(&mut text, "Digest", &edition.digest.to_string());
    }
    if let Some(status) = status {
        let mut names: Vec<String> = status.used_by.iter().map(|name| format!("service/{name}")).collect();
        let more = (status.users as usize).saturating_sub(names.len());
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        sentence(
            &mut text,
            "Used by",
            &if names.is_empty() {
                "nobody".to_owned()
            } else {
                names.join(", ")
            },
        );
    }
    event_table(&mut text, &events);
    Some(text)
}

fn node(view: &View, name: &NodeName, format: Format) -> Option<String> {
    if !view.node_names().contains(name) && view.cordon(name).is_none() {
        return None;
    }
    let status = view.node_statuses.get(name).and_then(|status| status.as_ref().ok());
    let facts = view.facts.get(name).and_then(|facts| facts.as_ref().ok());
    let report = view.reports.get(name).and_then(|report| report.as_ref().ok());
    let cordon = view.cordons.get(name);
    let declared = view.declared.get(&node_key(name));
    let mut instances = view.instances();
    instances.retain(|found| found.node == name);
    let events = about(view, &format!("_/node/{name}"), None);
    if format.is_for_machines() {
        let value = json!({
            "resource": declared.map(|declared| document(view, &node_key(name), declared)),
            "name": name, "verdict": view.verdict(name), "status": status, "facts": facts, "cordon": cordon,
            "conditions": report.map(|report| &report.conditions), "events": events,
        });
        return Some(machine(&value, format));
    }
    let state = rows::node_state(view, name);
    let mut text = String::new();
    line(&mut text, "Name", name.as_str());
    headline(
        &mut text,
        &state,
        status.and_then(|status| since(&state, &status.conditions)),
    );
    if let Some(cordon) = cordon {
        let note = cordon
            .note
            .as_deref()
            .map(|note| format!(": {note}"))
            .unwrap_or_default();
        line(
            &mut text,
            "Cordon",
            &format!("{:?} by {}{note}", cordon.mode, cordon.by),
        );
    }
    line(
        &mut text,
        "Labels",
        &view
            .node_labels(name)
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    if let Some(facts) = facts {
        let engine = &facts.engine;
        line(
            &mut text,
            "Engine",
            &format!(
                "{} (API {}), {}/{}",
                engine.version, engine.api_version, engine.os, engine.arch
            ),
        );
        line(&mut text, "Kernel", &engine.kernel);
        let addresses: Vec<String> = facts.addresses.host.iter().map(ToString::to_string).collect();
        line(&mut text, "Addresses", &addresses.join(", "));
        line(&mut text, "Public", facts.addresses.public.as_deref().unwrap_or(""));
        let roles: Vec<&str> = facts.roles.iter().map(ResourceName::as_str).collect();
        line(&mut text, "Given roles", &roles.join(", "));
        line(
            &mut text,
            "Agent",
            &format!(
                "{} {}",
                facts.agent_version,
                facts.addresses.agent.as_deref().unwrap_or("")
            ),
        );
        line(
            &mut text,
            "Capacity",
            &format!(
                "{} CPU, {} memory",
                facts.capacity.cpu,
                rows::size(facts.capacity.memory.0)
            ),
        );
    }
    if let Some(status) = status {
        let reserved = format!("{} of {} CPU", status.reserved_cpu, status.allocatable_cpu);
        let memory = format!(
            "{} of {} memory",
            rows::size(status.reserved_memory.0),
            rows::size(status.allocatable_memory.0)
        );
        line(&mut text, "Reserved", &format!("{reserved}, {memory}"));
        conditions(&mut text, &status.conditions);
    }
    if let Some(Err(problems)) = declared.map(|declared| &declared.admitted) {
        let _ = write!(text, "\nProblems of its resource:\n{}", problems.render(look()));
    }
    for (what, record) in [
        (
            "assignment",
            view.assignments.get(name).and_then(|record| record.as_ref().err()),
        ),
        (
            "report",
            view.reports.get(name).and_then(|record| record.as_ref().err()),
        ),
        ("facts", view.facts.get(name).and_then(|record| record.as_ref().err())),
    ] {
        if let Some(why) = record {
            line(&mut text, "Trouble", &format!("its {what}: {why}"));
        }
    }
    instance_table(&mut text, &instances);
    event_table(&mut text, &events);
    Some(text)
}

fn instance(view: &View, namespace: &Namespace, name: &str, format: Format) -> Option<String> {
    let mut found = view.instances();
    found.retain(|found| found.name.namespace == *namespace && found.name.to_string() == name);
    if found.is_empty() {
        return None;
    }
    let events = about(view, &format!("{namespace}/{name}"), None);
    if format.is_for_machines() {
        let values: Vec<Value> = found
            .iter()
            .map(|found| {
                json!({ "name": name, "node": found.node, "phase": found.phase(), "ready": found.is_ready(),
                "assigned": found.assigned, "reported": found.reported, "events": events })
            })
            .collect();
        return Some(machine(
            &if values.len() == 1 {
                values[0].clone()
            } else {
                Value::Array(values)
            },
            format,
        ));
    }
    let mut text = String::new();
    for instance in &found {
        line(&mut text, "Name", name);
        line(&mut text, "Namespace", namespace.as_str());
        line(&mut text, "Node", instance.node.as_str());
        line(&mut text, "Status", &instance.phase());
        if let Some(failing) = instance.reported.and_then(|reported| reported.failing.as_ref()) {
            sentence(&mut text, "Why", &failing.message);
            failing
                .logs
                .iter()
                .for_each(|line| text.push_str(&format!("  | {}\n", crate::failure::printable(line))));
        }
        line(&mut text, "Ready", if instance.is_ready() { "yes" } else { "no" });
        if let Some(assigned) = instance.assigned {
            line(
                &mut text,
                "Assigned",
                &format!("{:?}, generation {}", assigned.state, assigned.n),
            );
            if let Some(AssignedImage::Settled(pin)) = assigned.image {
                line(&mut text, "Digest", &pin.digest.to_string());
            }
            line(
                &mut text,
                "Container",
                &format!("{} on the engine", instance.name.container(assigned.n)),
            );
        }
        if let Some(reported) = instance.reported {
            line(&mut text, "Id", reported.container.as_deref().unwrap_or(""));
            line(&mut text, "Restarts", &reported.restarts.to_string());
            let addresses: Vec<String> = reported.addresses.iter().map(ToString::to_string).collect();
            line(&mut text, "Addresses", &addresses.join(", "));
            line(&mut text, "Ports", &rows::ports(instance));
            line(
                &mut text,
                "Ended with",
                &reported.exit_code.map(|code| code.to_string()).unwrap_or_default(),
            );
        }
    }
    for instance in &found {
        if let Some(coming) = rows::coming(instance) {
            sentence(&mut text, "Coming", &coming);
        }
        let conditions = instance
            .reported
            .map(|reported| reported.conditions.as_slice())
            .unwrap_or_default();
        for condition in conditions {
            sentence(
                &mut text,
                "Note",
                &format!("{}: {}", condition.reason, condition.message),
            );
        }
    }
    event_table(&mut text, &events);
    Some(text)
}
