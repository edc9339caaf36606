//! How services, nodes, instances and events are told in one line each. `get`, `describe` and `status` print these rows;
//! what a state is called is decided here and nowhere else.

use schemas::container::HostPort;
use schemas::keys::ResourceKey;
use schemas::kinds::Document;
use schemas::names::NodeName;
use schemas::problem::Problem;
use schemas::records::{
    AssignedPort, ConditionStatus, ConditionType, CordonMode, Counts, Event, EventType, NodeStatus, ServiceStatus,
    Verdict,
};
use schemas::service::ServiceSpec;

use crate::output::{Cell, Tone, ago};
use crate::view::{Declared, Instance, View, condition, node_key, stopped};

/// What a resource is up to, in a word, and why in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub word: String,
    pub tone: Tone,
    pub message: String,
}

impl State {
    pub fn new(word: impl Into<String>, tone: Tone, message: impl Into<String>) -> Self {
        Self {
            word: word.into(),
            tone,
            message: message.into(),
        }
    }

    /// The word, and where an invalid document is wrong.
    pub fn cell(&self) -> Cell {
        Cell::new(&self.word, self.tone)
    }
}

pub fn invalid(problem: Option<&Problem>, more: usize) -> State {
    let Some(problem) = problem else {
        return State::new("Invalid", Tone::Bad, "");
    };
    let more = if more > 0 {
        format!(" (and {more} more)")
    } else {
        String::new()
    };
    let word = format!("Invalid {}:{}", problem.line, problem.column);
    State::new(word, Tone::Bad, format!("{}{more}", problem.line()))
}

/// What a service is up to.
pub fn service_state(view: &View, key: &ResourceKey) -> State {
    let declared = view.declared.get(key);
    if let Some(Err(problems)) = declared.map(|declared| &declared.admitted) {
        return invalid(problems.problems.first(), problems.count() - 1);
    }
    let status = match view.services.get(key) {
        None if view.leader.is_none() => return State::new("Waiting", Tone::Busy, "no controller leads"),
        None => return State::new("Waiting", Tone::Busy, "the controller has not seen it yet"),
        Some(Err(why)) => return State::new("Unknown", Tone::Bad, why),
        Some(Ok(status)) => status,
    };
    let Some(declared) = declared else {
        return State::new("Deleting", Tone::Busy, "deleted; its instances stop");
    };
    of_status(status, declared)
}

fn of_status(status: &ServiceStatus, declared: &Declared) -> State {
    let is = |kind, what| condition(&status.conditions, kind).filter(|found| found.status == what);
    if let Some(refused) = is(ConditionType::Accepted, ConditionStatus::False) {
        return match status.problems.first() {
            Some(_) => invalid(status.problems.first(), status.problems.len() - 1),
            None if refused.reason == "StoreRegressed" => State::new("StoreRegressed", Tone::Bad, &refused.message),
            None => State::new(format!("Invalid ({})", refused.reason), Tone::Bad, &refused.message),
        };
    }
    if status.observed_revision < declared.mod_revision {
        return State::new("Waiting", Tone::Busy, "the controller has not seen the last write yet");
    }
    if let Some(unscheduled) = is(ConditionType::Scheduled, ConditionStatus::False) {
        return State::new(&unscheduled.reason, Tone::Bad, &unscheduled.message);
    }
    if let Some(stopped) = stopped(status) {
        return State::new(&stopped.reason, Tone::Bad, &stopped.message);
    }
    if let Some(progressing) = is(ConditionType::Progressing, ConditionStatus::True) {
        return State::new(&progressing.reason, Tone::Busy, &progressing.message);
    }
    match condition(&status.conditions, ConditionType::Ready) {
        Some(ready) if ready.status == ConditionStatus::True => State::new("Ready", Tone::Good, &ready.message),
        Some(ready) => State::new(&ready.reason, Tone::Bad, &ready.message),
        None => State::new("Unknown", Tone::Busy, ""),
    }
}

/// What a node is up to.
pub fn node_state(view: &View, node: &NodeName) -> State {
    let declared = view.declared.get(&node_key(node));
    if let Some(Err(problems)) = declared.map(|declared| &declared.admitted) {
        return invalid(problems.problems.first(), problems.count() - 1);
    }
    let (mut word, mut tone) = match view.verdict(node) {
        Verdict::Ready if view.verdicts.get(node).is_some_and(|record| record.unsteady) => {
            ("Ready,Unsteady".to_owned(), Tone::Busy)
        }
        Verdict::Ready => ("Ready".to_owned(), Tone::Good),
        Verdict::Unreachable if !view.facts.contains_key(node) => ("NoAgent".to_owned(), Tone::Busy),
        Verdict::Unreachable => ("Unreachable".to_owned(), Tone::Bad),
        Verdict::Lost => ("Lost".to_owned(), Tone::Bad),
        Verdict::Retired => ("Retired".to_owned(), Tone::Plain),
    };
    match view.cordon(node) {
        None | Some(CordonMode::Retire) => {}
        Some(CordonMode::Cordon) => word.push_str(",Cordoned"),
        Some(CordonMode::Drain) => word.push_str(",Draining"),
    }
    let conditions = view
        .reports
        .get(node)
        .and_then(|report| report.as_ref().ok())
        .map(|report| report.conditions.as_slice());
    let mut messages: Vec<String> = Vec::new();
    for found in conditions.unwrap_or_default() {
        word.push(',');
        word.push_str(&found.reason);
        tone = Tone::Bad;
        messages.push(found.message.clone());
    }
    if let Some(verdict) = view
        .verdicts
        .get(node)
        .filter(|record| record.verdict != Verdict::Ready)
    {
        messages.push(verdict.reason.clone());
    }
    State::new(word, tone, messages.join("; "))
}

pub fn spec_of(declared: Option<&Declared>) -> Option<&ServiceSpec> {
    match &declared?.admitted.as_ref().ok()?.document {
        Document::Service(service) => Some(&service.spec),
        Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Registry(_)
        | Document::Secret(_)
        | Document::Command(_)
        | Document::NetworkPolicy(_)
        | Document::VirtualIP(_) => None,
    }
}

/// The counts of a service: none known while there is no status.
pub fn counts(view: &View, key: &ResourceKey) -> Option<Counts> {
    view.services
        .get(key)
        .and_then(|status| status.as_ref().ok())
        .map(|status| status.counts)
}

pub const REGISTRY_HEAD: &[&str] = &["NAME", "REGISTRY", "ACCOUNTS", "STATUS"];

/// A registry's line.
pub fn registry_row(view: &View, key: &ResourceKey) -> Vec<Cell> {
    let admitted = view.declared.get(key).map(|declared| &declared.admitted);
    let spec = match admitted.map(|admitted| admitted.as_ref().map(|admitted| &admitted.document)) {
        Some(Ok(Document::Registry(registry))) => Ok(&registry.spec),
        Some(Err(problems)) => Err(invalid(problems.problems.first(), problems.count() - 1)),
        Some(Ok(
            Document::Service(_)
            | Document::Node(_)
            | Document::ConfigFile(_)
            | Document::Secret(_)
            | Document::Command(_)
            | Document::NetworkPolicy(_)
            | Document::VirtualIP(_),
        ))
        | None => Err(invalid(None, 0)),
    };
    match spec {
        Ok(spec) => {
            let users: Vec<&str> = spec.accounts.iter().map(|account| account.user.as_str()).collect();
            vec![
                key.name.as_str().into(),
                spec.registry.as_str().into(),
                users.join(", ").into(),
                State::new("Declared", Tone::Good, "").cell(),
            ]
        }
        Err(state) => vec![key.name.as_str().into(), "-".into(), "-".into(), state.cell()],
    }
}

pub const FILE_HEAD: &[&str] = &["NAME", "EDITION", "SIZE", "USED BY", "STATUS"];

/// What a file is up to: its edition is in force, or why not.
pub fn file_state(view: &View, key: &ResourceKey) -> State {
    if let Some(Err(problems)) = view.declared.get(key).map(|declared| &declared.admitted) {
        return invalid(problems.problems.first(), problems.count() - 1);
    }
    let status = view.files.get(key).and_then(|status| status.as_ref().ok());
    let Some(status) = status else {
        return State::new("Waiting", Tone::Busy, "waits for the controller");
    };
    match condition(&status.conditions, ConditionType::Accepted) {
        Some(found) if found.status != ConditionStatus::True => {
            State::new(found.reason.clone(), Tone::Bad, found.message.clone())
        }
        Some(_) | None => State::new("InForce", Tone::Good, ""),
    }
}

/// A file's line; its users by name, all of them when `wide`.
pub fn file_row(view: &View, key: &ResourceKey, wide: bool) -> Vec<Cell> {
    let status = view.files.get(key).and_then(|status| status.as_ref().ok());
    let edition = status.and_then(|status| status.edition);
    let users = status.map_or_else(String::new, |status| {
        let shown = if wide { status.used_by.len() } else { 3 };
        let mut names: Vec<String> = status.used_by.iter().take(shown).map(ToString::to_string).collect();
        let more = (status.users as usize).saturating_sub(names.len());
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names.join(", ")
    });
    let state = file_state(view, key);
    vec![
        key.name.as_str().into(),
        edition
            .map_or_else(|| "-".to_owned(), |edition| edition.n.to_string())
            .into(),
        edition
            .map_or_else(|| "-".to_owned(), |edition| bytes(edition.size))
            .into(),
        users.into(),
        state.cell(),
    ]
}

/// A number of bytes for people: `412`, `3.2Ki`, `4.0Mi`.
pub fn bytes(count: u64) -> String {
    let tenths = |unit: u64| count.saturating_mul(10) / unit;
    let shown = |tenths: u64, unit: &str| format!("{}.{}{unit}", tenths / 10, tenths % 10);
    match count {
        0..1_024 => count.to_string(),
        1_024..1_048_576 => shown(tenths(1 << 10), "Ki"),
        1_048_576.. => shown(tenths(1 << 20), "Mi"),
    }
}

pub const SERVICE_HEAD: &[&str] = &["NAME", "READY", "UPDATED", "STATUS", "IMAGE"];
pub const SERVICE_WIDE: &[&str] = &[
    "NAME",
    "READY",
    "UPDATED",
    "STATUS",
    "IMAGE",
    "DIGEST",
    "PORTS",
    "GENERATION",
    "REVISION",
    "MESSAGE",
];

pub fn service_row(view: &View, key: &ResourceKey, wide: bool) -> Vec<Cell> {
    let declared = view.declared.get(key).map(AsRef::as_ref);
    let state = service_state(view, key);
    let spec = spec_of(declared);
    let counts = counts(view, key);
    let ready = counts.map_or("-".to_owned(), |counts| format!("{}/{}", counts.ready, counts.desired));
    let updated = counts.map_or("-".to_owned(), |counts| counts.updated.to_string());
    let image = spec.map(|spec| spec.container.image.to_string()).unwrap_or_default();
    let mut row = vec![
        (&key.name).into(),
        ready.into(),
        updated.into(),
        state.cell(),
        image.into(),
    ];
    if wide {
        let status = view.services.get(key).and_then(|status| status.as_ref().ok());
        let generation = status
            .and_then(|status| status.generation)
            .map(|n| n.to_string())
            .unwrap_or_default();
        let revision = declared
            .map(|declared| declared.mod_revision.to_string())
            .unwrap_or_default();
        let ports = spec.map(ports_of).unwrap_or_default();
        let settled = status.and_then(|status| status.images.last());
        let settled = settled.filter(|settled| spec.is_some_and(|spec| spec.container.image == settled.image));
        let digest = settled.map(|settled| settled.pin.digest.short()).unwrap_or_default();
        row.extend([
            digest.into(),
            ports.into(),
            generation.into(),
            revision.into(),
            state.message.into(),
        ]);
    }
    row
}

fn ports_of(spec: &ServiceSpec) -> String {
    let ports = spec.container.ports.iter().map(|port| {
        let host = match port.host_port {
            None => String::new(),
            Some(HostPort::Fixed(number)) if port.everywhere().is_some() => format!("*:{number}->"),
            Some(HostPort::Fixed(port)) => format!("{port}->"),
            Some(HostPort::Auto) => "auto->".to_owned(),
        };
        format!(
            "{host}{}/{}",
            port.container_port,
            format!("{:?}", port.protocol).to_lowercase()
        )
    });
    ports.collect::<Vec<_>>().join(",")
}

pub const NODE_HEAD: &[&str] = &["NAME", "STATUS", "READY", "CPU", "MEMORY", "ENGINE"];
pub const NODE_WIDE: &[&str] = &[
    "NAME", "STATUS", "READY", "CPU", "MEMORY", "ENGINE", "ADDRESS", "OS", "AGENT", "LABELS", "MESSAGE",
];

pub fn node_row(view: &View, node: &NodeName, wide: bool) -> Vec<Cell> {
    let state = node_state(view, node);
    let status: Option<&NodeStatus> = view.node_statuses.get(node).and_then(|status| status.as_ref().ok());
    let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
    let ready = status
        .map(|status| format!("{}/{}", status.ready, status.instances))
        .unwrap_or_default();
    let cpu = status
        .map(|status| format!("{}/{}", status.reserved_cpu, status.allocatable_cpu))
        .unwrap_or_default();
    let memory = status.map(|status| {
        format!(
            "{}/{}",
            size(status.reserved_memory.0),
            size(status.allocatable_memory.0)
        )
    });
    let engine = facts.map(|facts| facts.engine.version.clone()).unwrap_or_default();
    let mut row = vec![
        node.into(),
        state.cell(),
        ready.into(),
        cpu.into(),
        memory.unwrap_or_default().into(),
        engine.into(),
    ];
    if wide {
        let address = facts
            .and_then(|facts| facts.addresses.host.first())
            .map(ToString::to_string)
            .unwrap_or_default();
        let os = facts
            .map(|facts| format!("{}/{}", facts.engine.os, facts.engine.arch))
            .unwrap_or_default();
        let agent = facts.map(|facts| facts.agent_version.clone()).unwrap_or_default();
        let labels = view
            .node_labels(node)
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(",");
        row.extend([
            address.into(),
            os.into(),
            agent.into(),
            labels.into(),
            state.message.into(),
        ]);
    }
    row
}

/// Bytes for people, three digits: `1.5Gi`.
pub fn size(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    for unit in ["", "Ki", "Mi", "Gi", "Ti"] {
        if scaled < 1000.0 || unit == "Ti" {
            return if unit.is_empty() || scaled >= 10.0 || scaled.fract() < 0.05 {
                format!("{scaled:.0}{unit}")
            } else {
                format!("{scaled:.1}{unit}")
            };
        }
        scaled /= 1024.0;
    }
    bytes.to_string()
}

pub const INSTANCE_HEAD: &[&str] = &["NAME", "NODE", "STATUS", "READY", "RESTARTS", "PORTS"];
pub const INSTANCE_WIDE: &[&str] = &[
    "NAME",
    "NODE",
    "STATUS",
    "READY",
    "RESTARTS",
    "PORTS",
    "CONTAINER",
    "ADDRESS",
    "GENERATION",
    "MESSAGE",
];

pub fn instance_row(instance: &Instance<'_>, wide: bool) -> Vec<Cell> {
    let reported = instance.reported;
    let ready = instance.is_ready();
    let failing = reported.and_then(|reported| reported.failing.as_ref());
    let tone = match (ready, failing.is_some() || !instance.heard) {
        (_, true) => Tone::Bad,
        (true, false) => Tone::Good,
        (false, false) => Tone::Busy,
    };
    let ports = ports(instance);
    let restarts = reported
        .map(|reported| reported.restarts.to_string())
        .unwrap_or_default();
    let mut row = vec![
        Cell::from(&instance.name),
        instance.node.into(),
        Cell::new(instance.phase(), tone),
        if ready { "yes" } else { "no" }.into(),
        restarts.into(),
        ports.into(),
    ];
    if wide {
        let container = reported
            .and_then(|reported| reported.container.clone())
            .unwrap_or_default();
        let address = reported
            .and_then(|reported| reported.addresses.first())
            .map(ToString::to_string)
            .unwrap_or_default();
        let n = reported
            .map(|reported| reported.n)
            .or(instance.assigned.map(|assigned| assigned.n));
        let conditions = reported
            .map(|reported| reported.conditions.as_slice())
            .unwrap_or_default();
        let mut messages: Vec<&str> = failing.iter().map(|failing| failing.message.as_str()).collect();
        let next = coming(instance);
        messages.extend(next.as_deref());
        messages.extend(conditions.iter().map(|found| found.message.as_str()));
        row.extend([
            container.into(),
            address.into(),
            n.map(|n| n.to_string()).unwrap_or_default().into(),
            messages.join("; ").into(),
        ]);
    }
    row
}

/// The host's ports it is reached at: `8080->80`.
pub fn ports(instance: &Instance<'_>) -> String {
    let ports = instance
        .assigned
        .map(|assigned| &assigned.ports)
        .or(instance.reported.map(|reported| &reported.ports));
    ports
        .map(|ports| ports.iter().map(port).collect::<Vec<_>>().join(","))
        .unwrap_or_default()
}

/// The spec that is assigned and not in force yet, and how far it has come.
pub fn coming(instance: &Instance<'_>) -> Option<String> {
    let next = instance.reported?.next.as_ref()?;
    Some(format!(
        "generation {} is not in force yet: {}",
        next.n,
        crate::view::phase_text(next.phase)
    ))
}

fn port(port: &AssignedPort) -> String {
    let ip = port.host_ip.map(|ip| format!("{ip}:")).unwrap_or_default();
    format!("{ip}{}->{}", port.host_port, port.container_port)
}

pub const EVENT_HEAD: &[&str] = &["AGO", "REASON", "ABOUT", "MESSAGE"];

/// An event; a warning's reason begins with `!`. `whole` names the namespace too.
pub fn event_row(event: &Event, whole: bool) -> Vec<Cell> {
    let reason = match event.kind {
        EventType::Normal => Cell::new(&event.reason, Tone::Plain),
        EventType::Warning => Cell::new(format!("!{}", event.reason), Tone::Busy),
    };
    let short = event
        .about
        .split_once('/')
        .map_or(event.about.as_str(), |(_, rest)| rest);
    let about = if whole && !event.about.starts_with("_/") {
        &event.about
    } else {
        short
    };
    vec![
        ago(&event.time).unwrap_or_default().into(),
        reason,
        about.into(),
        (&event.message).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0");
        assert_eq!(size(512 << 20), "512Mi");
        assert_eq!(size(3 << 29), "1.5Gi");
        assert_eq!(size(25_769_803_776), "24Gi");
    }
}
