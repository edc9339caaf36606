//! What a pass says of each service and each node: counts, conditions, refusals; and what of it is news. Called by
//! `output.rs`; `draft.rs` compares it with what is stored.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, ResourceName};
use schemas::problem::Problem;
use schemas::records::{
    Condition, ConditionStatus, ConditionType, CordonMode, Counts, EventType, NodeStatus, SchemaVersion, ServiceStatus,
    Verdict,
};
use schemas::units::{ByteSize, Cpu};

use super::accept::{Body, Life, Standing};
use super::draft;
use super::draft::{Draft, Words, condition};
use super::files;
use super::images;
use super::memo::{Memo, Settled};
use super::memory::To;
use super::pass::{Pass, Tally};
use super::snapshot::{DesiredBody, DesiredEntry, Stored};
use super::types::{Notice, Status};
use super::verdicts::{MASS, UNSTEADY};
use super::world::NONE;

/// How many problems a status lists.
const LISTED: usize = 20;

impl Pass<'_> {
    pub(super) fn service_status(
        &self,
        at: usize,
        remaining: u32,
        created: u32,
        refusals: Vec<schemas::records::Refusal>,
        stored: Option<&Arc<ServiceStatus>>,
        memo: &mut Memo,
    ) -> Arc<ServiceStatus> {
        let svc = &self.memory.svcs[at];
        let life = &self.lives[svc.life];
        let mut tally = self.tallies[at].clone();
        let id = u32::try_from(at).unwrap_or(NONE);
        tally.unplaced = self
            .unplaced
            .get(&id)
            .map_or(0, |slots| u32::try_from(slots.len()).unwrap_or(u32::MAX));
        tally.assigned += created;
        let live = self.in_force(at);
        let revision = life.desired.map_or(0, |entry| entry.mod_revision);
        // When all is just as desired, the status follows from the spec, its number and revision, and the count.
        let missing = self.missing(life);
        let plain = tally.is_plain()
            && missing.is_none()
            && created == 0
            && refusals.is_empty()
            && self.breaker.held.is_none()
            && self.nodes.hold_all.is_none()
            && !self.memory.settled.now.contains_key(&id);
        let mut entry = memo.entry(life.memo).filter(|_| plain);
        let n = live.map_or(0, |live| live.n);
        if let (
            Some(stored),
            Some(Settled {
                stored: same,
                revision: at,
                n: of,
                count,
            }),
        ) = (stored, entry.as_ref().and_then(|entry| entry.settled.as_ref()))
            && Arc::ptr_eq(stored, same)
            && (*at, *of, *count) == (revision, n, tally.desired)
        {
            return Arc::clone(stored);
        }
        let counts = Counts {
            desired: tally.desired,
            assigned: tally.assigned,
            running: tally.running,
            ready: tally.ready,
            updated: tally.updated,
        };
        let mut conditions = Vec::with_capacity(4);
        let accepted = self.accepted_condition(life);
        conditions.push(match missing {
            Some(name) if accepted.reason == "Valid" => condition(
                ConditionType::Accepted,
                ConditionStatus::True,
                "DependencyMissing",
                format!("the spec is valid and in force; it depends on service `{name}`, which is not there"),
            ),
            Some(_) | None => accepted,
        });
        if live.is_some() {
            conditions.push(scheduled(&tally, self.waits_for_seeds(id)));
            conditions.push(self.ready_condition(id, &tally));
        }
        if live.is_some() || remaining > 0 {
            conditions.push(self.progressing(id, &tally, created, remaining));
        }
        conditions.sort_by_key(|condition| condition.kind);
        let status = ServiceStatus {
            schema_version: SchemaVersion::default(),
            observed_revision: revision,
            generation: live.map(|live| live.n),
            uid: live.map(|live| live.uid.clone().into_owned()),
            counts,
            conditions: Vec::new(),
            problems: problems(life.desired),
            refusals,
            images: images::to_remember(svc, life, stored, self.memory.settled.now.get(&id)),
        };
        let status = draft::service(status, conditions, stored);
        if let (Some(entry), Some(stored), Some(live)) = (&mut entry, stored, live)
            && Arc::ptr_eq(stored, &status)
        {
            entry.settled = Some(Settled {
                stored: Arc::clone(stored),
                revision,
                n: live.n,
                count: tally.desired,
            });
        }
        status
    }

    /// The first service that one depends on and that is not in force. Nothing is looked up where nothing is depended on.
    fn missing<'l>(&self, life: &Life<'l>) -> Option<&'l ResourceName> {
        let Standing::Live(live) = &life.standing else {
            return None;
        };
        let Body::Service(spec) = live.body else { return None };
        let there = |name: &ResourceName| {
            let key = ResourceKey {
                namespace: life.key.namespace.clone(),
                kind: Kind::Service,
                name: name.clone(),
            };
            let found = self.lives.binary_search_by(|life| life.key.cmp(&key));
            found.is_ok_and(|at| matches!(self.lives[at].standing, Standing::Live(_)))
        };
        spec.depends_on.iter().find(|name| !there(name))
    }

    pub(super) fn accepted_condition(&self, life: &Life<'_>) -> Draft<'_> {
        let (desired, standing) = (life.desired, &life.standing);
        let kind = ConditionType::Accepted;
        if let Standing::Held { why, regressed } = standing {
            let reason = if *regressed { "StoreRegressed" } else { "Unreadable" };
            return condition(
                kind,
                ConditionStatus::False,
                reason,
                format!("{why}; until then nothing of it changes"),
            );
        }
        if let Some(why) = &self.nodes.hold_all {
            return condition(kind, ConditionStatus::Unknown, "StoreRegressed", why.as_str());
        }
        let in_force = matches!(standing, Standing::Live(_));
        if let Some(told) = files::condition_of(life.told.as_deref(), in_force) {
            return told;
        }
        match desired.map(|entry| &entry.body) {
            Some(DesiredBody::Invalid(problems)) => {
                let first = problems
                    .first()
                    .map_or_else(|| "it cannot be read".to_owned(), Problem::line);
                let last = if in_force {
                    "; the last good spec stays in force"
                } else {
                    "; nothing runs until it is put right"
                };
                condition(kind, ConditionStatus::False, "Invalid", format!("{first}{last}"))
            }
            Some(_) if in_force => condition(kind, ConditionStatus::True, "Valid", "the spec is valid and in force"),
            Some(_) => condition(
                kind,
                ConditionStatus::False,
                "Invalid",
                "the document is not about its key's kind; put it under the right key",
            ),
            None if in_force => condition(
                kind,
                ConditionStatus::Unknown,
                "ListIncomplete",
                "the desired value is missing, and the list is not known to be complete: the last spec stays in force",
            ),
            None => condition(kind, ConditionStatus::False, "Deleted", "the resource is deleted"),
        }
    }

    fn ready_condition(&self, svc: u32, tally: &Tally) -> Draft<'static> {
        let kind = ConditionType::Ready;
        if tally.ready >= tally.desired {
            return condition(
                kind,
                ConditionStatus::True,
                "AllReady",
                Words::Ready(tally.ready, tally.desired),
            );
        }
        let count = format!("{} of {} instances are ready", tally.ready, tally.desired);
        if let Some((slot, reason, message, _)) = &tally.failing {
            let text = format!("{count}; {}: {message}", self.name(svc, *slot));
            return condition(kind, ConditionStatus::False, format!("{reason:?}"), text);
        }
        let (reason, more) = if tally.away > 0 {
            (
                "NodeUnreachable",
                format!("; {} on nodes that are not there", tally.away),
            )
        } else if tally.unplaced > 0 {
            ("NoNodeFits", format!("; no node fits {}", tally.unplaced))
        } else {
            ("NotReady", String::new())
        };
        condition(kind, ConditionStatus::False, reason, format!("{count}{more}"))
    }

    fn progressing(&self, svc: u32, tally: &Tally, created: u32, remaining: u32) -> Draft<'static> {
        let kind = ConditionType::Progressing;
        let stopped = |reason: Cow<'static, str>, message: Words<'static>| {
            condition(kind, ConditionStatus::False, reason, message)
        };
        let held = self
            .removals
            .iter()
            .filter(|judged| judged.held && self.memory.insts[judged.inst as usize].svc == svc)
            .count();
        if let (Some(breaker), true) = (&self.breaker.held, held > 0) {
            let text = format!(
                "{held} removals wait for a person: more than {} in ten minutes; run `reeve admin ack {}`",
                breaker.budget, breaker.digest
            );
            return stopped("HeldByBreaker".into(), text.into());
        }
        if self.in_force(svc as usize).is_none() {
            return condition(
                kind,
                ConditionStatus::True,
                "Deleting",
                format!("{remaining} instances are not gone yet"),
            );
        }
        if let Some((slot, reason, message, true)) = &tally.failing {
            let rest = if tally.pending > 0 {
                format!("; {} more keep their spec", tally.pending)
            } else {
                String::new()
            };
            return stopped(
                format!("{reason:?}").into(),
                format!("{}: {message}{rest}", self.name(svc, *slot)).into(),
            );
        }
        if let Some((slot, port)) = tally.port_taken {
            return stopped(
                "HostPort".into(),
                format!(
                    "{}: port {port} of its node is taken; choose another, or `auto`",
                    self.name(svc, slot)
                )
                .into(),
            );
        }
        if let Some((slot, node, until)) = tally.held_by {
            let name = &self.nodes.list[node as usize].name;
            let instance = self.name(svc, slot);
            let text = match until {
                Some(until) => format!(
                    "{instance} may still run on node {name}: it starts elsewhere when that node has been away for {until}, and so it \
                     has stopped by itself"
                ),
                None => format!(
                    "{instance} may still run on node {name}: it starts elsewhere when that node says that it is gone, or a person \
                     that its host is off with `reeve node confirm-lost {name}`"
                ),
            };
            return stopped("MayRunElsewhere".into(), text.into());
        }
        let all = tally.pending + tally.unsettled + tally.moving + tally.waiting + created;
        if all > tally.pending_away {
            return condition(
                kind,
                ConditionStatus::True,
                "Updating",
                format!("{} of {} instances are up to date", tally.updated, tally.desired),
            );
        }
        if tally.pending_away > 0 {
            let text = format!("{} instances change when their nodes are back", tally.pending_away);
            return condition(kind, ConditionStatus::True, "NodeUnreachable", text);
        }
        if tally.unplaced > 0 {
            return stopped(
                "NoNodeFits".into(),
                format!("no node fits {} of {} instances", tally.unplaced, tally.desired).into(),
            );
        }
        stopped("Complete".into(), "all instances are as desired".into())
    }

    pub(super) fn node_statuses(
        &self,
        statuses: &mut Vec<(ResourceKey, Status)>,
        ended: &mut Vec<ResourceKey>,
        notices: &mut Vec<Notice>,
        counts: &[(u32, u32)],
        room: &[(i64, i64)],
    ) {
        type Known<'a> = Option<&'a Stored<Arc<NodeStatus>>>;
        let mut put = |name: ResourceName,
                       node: Option<NodeName>,
                       status: NodeStatus,
                       drafts: Vec<Draft<'_>>,
                       stored: Known<'_>| {
            let key = ResourceKey {
                namespace: None,
                kind: Kind::Node,
                name,
            };
            let stored = stored.and_then(|stored| stored.value.as_ref().ok());
            let status = draft::node(status, drafts, stored);
            if stored.is_none_or(|stored| !Arc::ptr_eq(stored, &status)) {
                let before = stored.map(|stored| &stored.conditions[..]);
                notice(notices, &status.conditions, before, &key, node);
            }
            statuses.push((key, Status::Node(status)));
        };
        let mut known = self.snapshot.node_statuses.iter().peekable();
        // Nodes that have a status and no other record.
        let mut strangers: Vec<&NodeName> = Vec::new();
        for (at, node) in self.nodes.list.iter().enumerate() {
            // Both are in order of names.
            while let Some((name, _)) = known.next_if(|(name, _)| *name < node.name) {
                strangers.push(name);
            }
            let stored = known.next_if(|(name, _)| *name == node.name).map(|(_, stored)| stored);
            let life = node.life.map(|life| &self.lives[life]);
            let mut conditions: Vec<Draft<'_>> = Vec::with_capacity(3);
            conditions.extend(life.map(|life| self.accepted_condition(life)));
            conditions.push(self.node_ready(at));
            let nothing_new = node.cordon.is_some() || node.spec.is_some_and(|spec| spec.unschedulable);
            let (status, reason, message) = match node.cordon {
                Some((CordonMode::Cordon, _)) => (
                    ConditionStatus::True,
                    "Cordoned",
                    "a person cordoned it; `reeve uncordon` undoes that",
                ),
                Some((CordonMode::Drain, _)) => (
                    ConditionStatus::True,
                    "Draining",
                    "a person drains it; `reeve uncordon` undoes that",
                ),
                Some((CordonMode::Retire, _)) => (ConditionStatus::True, "Retired", "a person retired it"),
                None if nothing_new => (
                    ConditionStatus::True,
                    "Unschedulable",
                    "its Node resource says unschedulable",
                ),
                None => (ConditionStatus::False, "Open", "instances may be placed here"),
            };
            conditions.push(condition(ConditionType::Cordoned, status, reason, message));
            conditions.sort_by_key(|condition| condition.kind);
            let (cpu, memory) = node.allocatable();
            let cpu_of = |value: i64| Cpu {
                millis: u32::try_from(value.max(0)).unwrap_or(u32::MAX),
            };
            let bytes_of = |value: i64| ByteSize(u64::try_from(value.max(0)).unwrap_or(0));
            let status = NodeStatus {
                schema_version: SchemaVersion::default(),
                observed_revision: life.and_then(|life| life.desired).map_or(0, |entry| entry.mod_revision),
                generation: life.and_then(|life| live_n(&life.standing)),
                verdict: node.verdict,
                instances: counts[at].0,
                ready: counts[at].1,
                allocatable_cpu: cpu_of(cpu),
                allocatable_memory: bytes_of(memory),
                reserved_cpu: cpu_of(room[at].0),
                reserved_memory: bytes_of(room[at].1),
                conditions: Vec::new(),
                problems: problems(life.and_then(|life| life.desired)),
            };
            put(node.name.into(), Some(node.name.clone()), status, conditions, stored);
        }
        let mut others: BTreeSet<ResourceName> = BTreeSet::new();
        for life in self
            .lives
            .iter()
            .filter(|life| life.key.kind == Kind::Node && !self.knows(life.key.name.as_str()))
        {
            if life.desired.is_none() && !matches!(life.standing, Standing::Held { .. } | Standing::Live(_)) {
                continue;
            }
            let ready = condition(
                ConditionType::Ready,
                ConditionStatus::False,
                "NoAgent",
                "no agent has registered under this name; start one with `reeve agent`",
            );
            let conditions = vec![self.accepted_condition(life), ready];
            let status = NodeStatus {
                schema_version: SchemaVersion::default(),
                observed_revision: life.desired.map_or(0, |entry| entry.mod_revision),
                generation: live_n(&life.standing),
                verdict: Verdict::Unreachable,
                instances: 0,
                ready: 0,
                allocatable_cpu: Cpu::default(),
                allocatable_memory: ByteSize::default(),
                reserved_cpu: Cpu::default(),
                reserved_memory: ByteSize::default(),
                conditions: Vec::new(),
                problems: problems(life.desired),
            };
            let node: Option<NodeName> = life.key.name.as_str().parse().ok();
            let stored = node.as_ref().and_then(|node| self.snapshot.node_statuses.get(node));
            others.insert(life.key.name.clone());
            put(life.key.name.clone(), node, status, conditions, stored);
        }
        if self.snapshot.complete {
            for node in strangers.into_iter().chain(known.map(|(name, _)| name)) {
                let key = ResourceKey {
                    namespace: None,
                    kind: Kind::Node,
                    name: node.into(),
                };
                if !others.contains(&key.name) {
                    ended.push(key);
                }
            }
        }
    }

    fn knows(&self, node: &str) -> bool {
        let list = &self.nodes.list;
        list.binary_search_by(|known| known.name.as_str().cmp(node)).is_ok()
    }

    fn node_ready(&self, at: usize) -> Draft<'_> {
        let node = &self.nodes.list[at];
        let kind = ConditionType::Ready;
        if let Some(why) = &node.held {
            return condition(
                kind,
                ConditionStatus::False,
                "Held",
                format!("nothing of it changes: {why}"),
            );
        }
        let said = node
            .entry
            .verdict
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok());
        let (reason, message) = match node.verdict {
            Verdict::Unreachable if said.is_some_and(|record| record.reason == MASS) => ("TooManyAway", MASS),
            Verdict::Unreachable => (
                "Unreachable",
                "its agent has no session: it has stopped, or cannot reach the store",
            ),
            Verdict::Lost if node.away.is_none() => {
                ("Lost", "a person says that its host is off: its instances go elsewhere")
            }
            Verdict::Lost => ("Lost", "it has been away for too long: its instances go elsewhere"),
            Verdict::Retired => ("Retired", "a person retired it: its instances go elsewhere"),
            Verdict::Ready if node.facts.is_none() => {
                return condition(
                    kind,
                    ConditionStatus::False,
                    "NoFacts",
                    "its agent has not said what the host has; nothing is placed here",
                );
            }
            Verdict::Ready => {
                let said = node.report.map_or(&[][..], |report| &report.conditions);
                if let Some(first) = said.first() {
                    let reason = if first.reason.is_empty() || !first.reason.bytes().all(|b| b.is_ascii_alphanumeric())
                    {
                        "AgentCondition"
                    } else {
                        first.reason.as_str()
                    };
                    return condition(kind, ConditionStatus::False, reason, clip(&first.message));
                }
                let from = self.memory.starts[at] as usize;
                let orphans: Vec<String> = self.memory.insts[from..self.memory.starts[at + 1] as usize]
                    .iter()
                    .filter(|inst| inst.assigned == NONE && inst.to == To::Out)
                    .filter_map(|inst| self.reported(inst))
                    .map(|reported| format!("{}/{}", reported.namespace, reported.name()))
                    .collect();
                if !orphans.is_empty() {
                    let listed = orphans.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                    let message = format!(
                        "its agent is there; it runs {} that no record knows ({listed}): they are kept until `reeve admin remove-orphan {} INSTANCE`",
                        orphans.len(),
                        node.name
                    );
                    return condition(kind, ConditionStatus::True, "ReadyWithOrphans", message);
                }
                if node.unsteady {
                    return condition(kind, ConditionStatus::True, "Unsteady", UNSTEADY);
                }
                return condition(kind, ConditionStatus::True, "Ready", "its agent is there");
            }
        };
        condition(kind, ConditionStatus::False, reason, message)
    }
}

fn live_n(standing: &Standing<'_>) -> Option<u64> {
    match standing {
        Standing::Live(live) => Some(live.n),
        Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
    }
}

fn scheduled(tally: &Tally, waits_for: Option<ResourceName>) -> Draft<'static> {
    let kind = ConditionType::Scheduled;
    if tally.unplaced > 0 {
        let text = format!(
            "no node fits {} of {} instances; the refusals say why",
            tally.unplaced, tally.desired
        );
        return condition(kind, ConditionStatus::False, "NoNodeFits", text);
    }
    if tally.assigned < tally.desired
        && let Some(service) = waits_for
    {
        let text = format!("waits until the first addresses of {service}, which it is told, are all known");
        return condition(kind, ConditionStatus::False, "WaitsForSeeds", text);
    }
    if tally.assigned < tally.desired {
        return condition(
            kind,
            ConditionStatus::False,
            "Waiting",
            format!("{} of {} instances have a node", tally.assigned, tally.desired),
        );
    }
    condition(kind, ConditionStatus::True, "AllPlaced", "every instance has a node")
}

/// The first 300 characters, without control characters: what nodes write is not trusted.
pub(super) fn clip(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

pub(super) fn problems(desired: Option<&DesiredEntry>) -> Vec<Problem> {
    match desired.map(|entry| &entry.body) {
        Some(DesiredBody::Invalid(problems)) => problems.iter().take(LISTED).cloned().collect(),
        Some(DesiredBody::Service(_) | DesiredBody::Node(_) | DesiredBody::ConfigFile(_)) | None => Vec::new(),
    }
}

/// Tells of conditions whose status or reason is another than the stored one.
pub(super) fn notice(
    notices: &mut Vec<Notice>,
    new: &[Condition],
    stored: Option<&[Condition]>,
    about: &ResourceKey,
    node: Option<NodeName>,
) {
    let mut written: Option<String> = None;
    for one in new {
        let before = stored.and_then(|stored| stored.iter().find(|other| other.kind == one.kind));
        if before.is_some_and(|before| (before.status, &before.reason) == (one.status, &one.reason)) {
            continue;
        }
        let reason = match one.kind {
            ConditionType::Accepted => "AcceptedChanged",
            ConditionType::Scheduled => "ScheduledChanged",
            ConditionType::Ready => "ReadyChanged",
            ConditionType::Progressing => "ProgressingChanged",
            ConditionType::Cordoned => "CordonedChanged",
        };
        let fine = match one.kind {
            ConditionType::Accepted | ConditionType::Scheduled | ConditionType::Ready => {
                one.status == ConditionStatus::True
            }
            ConditionType::Progressing => one.status == ConditionStatus::True || one.reason == "Complete",
            ConditionType::Cordoned => true,
        };
        // What has only just begun is not ready yet, which is no news.
        if stored.is_none()
            && (one.kind == ConditionType::Cordoned || one.kind == ConditionType::Ready && one.reason == "NotReady")
        {
            continue;
        }
        notices.push(Notice {
            kind: if fine { EventType::Normal } else { EventType::Warning },
            reason,
            message: [&one.reason, ": ", &one.message].concat(),
            about: written.get_or_insert_with(|| about.to_string()).clone(),
            node: node.clone(),
        });
    }
}
