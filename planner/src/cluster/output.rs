//! Lays out what a pass has decided as a [`Plan`]: assignments that differ from the stored ones, changes for people,
//! statuses with their conditions and refusals, and what may be forgotten.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, ResourceName};
use schemas::problem::Problem;
use schemas::records::{
    Accepted, AcceptedBody, Assigned, AssignedState, Assignment, Condition, ConditionStatus, ConditionType, CordonMode,
    Counts, Digest, EventType, NodeStatus, Order, SchemaVersion, ServiceStatus, Verdict,
};
use schemas::units::{ByteSize, Cpu};

use super::accept::{MAX_REPORTED, Standing, record};
use super::draft::{Draft, Words, condition};
use super::memo::{Memo, Settled};
use super::memory::{Inst, To, Wanted};
use super::pass::{Pass, Story, Tally};
use super::place::New;
use super::snapshot::{DesiredBody, DesiredEntry, Stored};
use super::types::{Action, AssignmentWrite, Change, Notice, Plan, Reason, Removal, Status};
use super::world::NONE;
use super::{PlanOptions, draft, explain};

/// How many accepted records of a resource are kept for people to go back to.
const KEPT_RECORDS: usize = 20;
/// How many problems a status lists.
const LISTED: usize = 20;

impl<'a> Pass<'a> {
    pub(super) fn into_plan(mut self, options: PlanOptions, memo: &mut Memo) -> Plan {
        let assignments = self.assignments();
        let removals = self.removal_list();
        // Nodes have no namespace, and so come first.
        let mut statuses = Vec::with_capacity(self.memory.svcs.len() + self.nodes.list.len());
        let mut of_services = Vec::with_capacity(self.memory.svcs.len());
        let mut stored_services = self.snapshot.service_statuses.iter().peekable();
        let mut notices = Vec::new();
        let refusals = explain::refusals(&mut self);
        let mut remaining = vec![0_u32; self.memory.svcs.len()];
        let mut node_counts = vec![(0_u32, 0_u32); self.nodes.list.len()];
        let mut room = vec![(0_i64, 0_i64); self.nodes.list.len()];
        for inst in &self.memory.insts {
            if inst.state().is_some()
                && let Some(count) = remaining.get_mut(inst.svc as usize)
            {
                *count += 1;
            }
            if inst.stays() {
                let counts = &mut node_counts[inst.node as usize];
                counts.0 += 1;
                counts.1 += u32::from(inst.seen.ready);
            }
        }
        let mut created = vec![0_u32; self.memory.svcs.len()];
        for (new, state) in &self.news {
            node_counts[new.node as usize].0 += 1;
            created[new.want.svc as usize] += u32::from(*state == AssignedState::Present);
        }
        for (at, node) in self.nodes.list.iter().enumerate() {
            let (cpu, memory) = node.allocatable();
            room[at] = (
                cpu - self.placer.free[at].0,
                memory.saturating_sub(self.placer.free[at].1),
            );
        }
        let mut ended = Vec::new();
        for at in 0..self.memory.svcs.len() {
            let svc = &self.memory.svcs[at];
            let key = svc.key.clone();
            let nothing_left = remaining[at] == 0 && self.lives[svc.life].desired.is_none();
            match &self.lives[svc.life].standing {
                Standing::Deleted | Standing::Never if nothing_left => {
                    if self.snapshot.service_statuses.contains_key(&key) && self.snapshot.complete {
                        ended.push(key);
                    }
                }
                Standing::Deleted | Standing::Never | Standing::Live(_) | Standing::Held { .. } => {
                    while stored_services.next_if(|(other, _)| *other < &key).is_some() {}
                    let stored = stored_services.next_if(|(other, _)| *other == &key);
                    let stored = stored.and_then(|(_, stored)| stored.value.as_ref().ok());
                    let id = u32::try_from(at).unwrap_or(NONE);
                    let refused = refusals.get(&id).cloned().unwrap_or_default();
                    let status = self.service_status(at, remaining[at], created[at], refused, stored, memo);
                    if stored.is_none_or(|stored| !Arc::ptr_eq(stored, &status)) {
                        let before = stored.map(|stored| &stored.conditions[..]);
                        notice(&mut notices, &status.conditions, before, &key, None);
                    }
                    of_services.push((key, Status::Service(status)));
                }
            }
        }
        self.node_statuses(&mut statuses, &mut ended, &mut notices, &node_counts, &room);
        statuses.append(&mut of_services);
        if self.snapshot.complete {
            // Both are in order of keys.
            let mut svcs = self.memory.svcs.iter().peekable();
            for key in self.snapshot.service_statuses.keys() {
                while svcs.next_if(|svc| svc.key < key).is_some() {}
                if svcs.peek().is_none_or(|svc| svc.key != key) {
                    ended.push(key.clone());
                }
            }
        }
        let changes = if options.list_changes {
            self.changes()
        } else {
            Vec::new()
        };
        let forgotten = self.forgotten();
        Plan {
            changes,
            accepted: self.accepted,
            forgotten,
            assignments,
            statuses: statuses.into_iter().collect(),
            ended,
            breaker: self.breaker,
            spent_acks: self.spent_acks,
            removals,
            notices,
        }
    }

    // ---- assignments ----------------------------------------------------------------------------------------------

    fn assignments(&self) -> Vec<AssignmentWrite> {
        let news = self.news_by_node();
        let mut writes = Vec::new();
        // Service, slot, place among the known or the new, and whether it is new.
        let mut lines: Vec<(u32, u64, u32, bool)> = Vec::new();
        for (at, node) in self.nodes.list.iter().enumerate() {
            if node.held.is_some() && !node.rewrite {
                continue;
            }
            let id = u32::try_from(at).unwrap_or(NONE);
            let from = self.memory.starts[at] as usize;
            let insts = &self.memory.insts[from..self.memory.starts[at + 1] as usize];
            let here = &news.0[news.1[at]..news.1[at + 1]];
            let changed = |inst: &Inst| {
                inst.to != To::Stay && (inst.assigned != NONE || inst.to != To::Out)
                    || inst.assigned == NONE && inst.state().is_some()
            };
            if here.is_empty() && !node.rewrite && !insts.iter().any(changed) {
                continue;
            }
            lines.clear();
            lines.extend(insts.iter().enumerate().map(|(offset, inst)| {
                let at = u32::try_from(from + offset).unwrap_or(NONE);
                (inst.svc, inst.slot, at, false)
            }));
            lines.extend(here.iter().map(|at| {
                let want = &self.news[*at as usize].0.want;
                (want.svc, want.slot, *at, true)
            }));
            // Services stand in order of namespaces and names, and slots' codes in order of slots: where each slot occurs
            // once, numbers are all that need sorting.
            lines.sort_by_key(|(svc, slot, ..)| (*svc, *slot));
            let slots = lines.windows(2).all(|two| (two[0].0, two[0].1) < (two[1].0, two[1].1));
            let known =
                |(svc, slot, ..): &(u32, u64, u32, bool)| *svc != NONE && !self.memory.is_odd(*slot, &self.nodes);
            let sorted = slots && lines.iter().all(known);
            let mut instances: Vec<Assigned> = Vec::with_capacity(lines.len());
            instances.extend(lines.iter().filter_map(|(_, _, at, new)| {
                if *new {
                    let (new, state) = &self.news[*at as usize];
                    self.assigned_new(new, *state)
                } else {
                    self.assigned(*at, &self.memory.insts[*at as usize])
                }
            }));
            if !sorted {
                sort_and_merge(&mut instances);
            }
            if node.assignment.is_some_and(|stored| stored.instances == instances) {
                continue;
            }
            let watermark = node
                .entry
                .session
                .as_ref()
                .and_then(|stored| stored.value.as_ref().ok())
                .map(|session| session.watermark.generation);
            let generation = node
                .entry
                .highest_order()
                .generation
                .max(watermark.filter(|mark| *mark <= MAX_REPORTED).unwrap_or(0));
            let order = Order {
                restore_epoch: self.snapshot.cluster.restore_epoch,
                epoch: self.snapshot.epoch,
                generation: generation.saturating_add(1),
            };
            writes.push(AssignmentWrite {
                assignment: Assignment {
                    schema_version: SchemaVersion::default(),
                    cluster: self.snapshot.cluster.id.clone(),
                    node: node.name.clone(),
                    order,
                    instances,
                },
                stored_mod_revision: node.entry.assignment.as_ref().map_or(0, |stored| stored.mod_revision),
                guards: self.guards.get(&id).into_iter().flatten().cloned().collect(),
            });
        }
        writes
    }

    /// What is new, as places in [`Pass::news`], node after node; and where each node's begin.
    fn news_by_node(&self) -> (Vec<u32>, Vec<usize>) {
        let mut starts = vec![0_usize; self.nodes.list.len() + 1];
        for (new, _) in &self.news {
            starts[new.node as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0_u32; self.news.len()];
        for (at, (new, _)) in self.news.iter().enumerate() {
            let place = &mut next[new.node as usize];
            order[*place] = u32::try_from(at).unwrap_or(NONE);
            *place += 1;
        }
        (order, starts)
    }

    /// The entry of an instance that was known before.
    fn assigned(&self, at: u32, inst: &Inst) -> Option<Assigned> {
        let state = inst.state()?;
        let node = &self.nodes.list[inst.node as usize];
        let mut entry = if let Some(stored) = node
            .assignment
            .and_then(|assignment| assignment.instances.get(inst.assigned as usize))
        {
            stored.clone()
        } else {
            // An orphan that goes may be of a service that no record knows: it goes by what its node calls it.
            let reported = self.reported(inst)?;
            let svc = self.memory.svcs.get(inst.svc as usize);
            let known = svc.and_then(|svc| {
                let life = &self.lives[svc.life];
                let (_, digest) = record(life.history?, life.key, reported.n)?;
                Some(digest.clone())
            });
            Assigned {
                namespace: svc.map_or(&reported.namespace, |svc| svc.namespace).clone(),
                kind: svc.map_or(reported.kind, |svc| svc.key.kind),
                workload: svc.map_or(&reported.workload, |svc| &svc.key.name).clone(),
                uid: reported.uid.clone(),
                slot: reported.slot.clone(),
                state,
                n: reported.n,
                digest: known.unwrap_or_else(|| reported.digest.clone()),
                ports: reported.ports.clone(),
            }
        };
        entry.state = state;
        if state != AssignedState::Absent && inst.to_n != inst.n {
            let live = self.in_force(inst.svc as usize)?;
            entry.n = live.n;
            entry.digest = live.digest.clone().into_owned();
        }
        if let Some(ports) = self.ports.get(&at) {
            entry.ports.clone_from(ports);
        }
        Some(entry)
    }

    fn assigned_new(&self, new: &New, state: AssignedState) -> Option<Assigned> {
        let svc = &self.memory.svcs[new.want.svc as usize];
        let live = self.in_force(new.want.svc as usize)?;
        Some(Assigned {
            namespace: svc.namespace.clone(),
            kind: svc.key.kind,
            workload: svc.key.name.clone(),
            uid: live.uid.clone().into_owned(),
            slot: self.memory.slot(new.want.slot, &self.nodes),
            state,
            n: live.n,
            digest: live.digest.clone().into_owned(),
            ports: new.ports.clone(),
        })
    }

    fn removal_list(&self) -> Vec<Removal> {
        let mut list: Vec<Removal> = self
            .removals
            .iter()
            .filter_map(|judged| {
                let inst = &self.memory.insts[judged.inst as usize];
                Some(Removal {
                    key: self.memory.svcs.get(inst.svc as usize)?.key.clone(),
                    uid: self.uid(inst)?.clone(),
                    slot: self.memory.slot(inst.slot, &self.nodes),
                    node: self.nodes.list[inst.node as usize].name.clone(),
                    reason: judged.reason.clone(),
                    own: judged.own,
                    held: judged.held,
                })
            })
            .collect();
        list.sort_by(|a, b| (&a.key, &a.slot, &a.node).cmp(&(&b.key, &b.slot, &b.node)));
        list
    }

    // ---- changes for people ---------------------------------------------------------------------------------------

    fn changes(&self) -> Vec<Change> {
        let mut placed: BTreeMap<(u32, u64), &New> = BTreeMap::new();
        for (new, _) in &self.news {
            placed.insert((new.want.svc, new.want.slot), new);
        }
        let mut unplaced: BTreeSet<(u32, u64)> = BTreeSet::new();
        for (svc, slots) in &self.unplaced {
            unplaced.extend(slots.iter().map(|slot| (*svc, *slot)));
        }
        let name = |node: u32| self.nodes.list[node as usize].name.clone();
        let mut changes: Vec<(u32, u64, Change)> = Vec::new();
        let mut tell =
            |svc: u32, slot: u64, node: Option<NodeName>, action: Action, reason: Reason, waits: Option<Reason>| {
                let resource = self.memory.svcs[svc as usize].key.clone();
                changes.push((
                    svc,
                    slot,
                    Change {
                        resource,
                        instance: self.name(svc, slot),
                        node,
                        action,
                        reason,
                        waits,
                    },
                ));
            };
        for (&(svc, slot), story) in &self.stories {
            let new = placed.get(&(svc, slot)).map(|new| name(new.node));
            let fails = unplaced.contains(&(svc, slot));
            let here = self.holder(svc, slot);
            let to = self.memory.svcs[svc as usize].n;
            match story {
                Story::Create { waits } => {
                    let node = new.or(here.map(name));
                    tell(svc, slot, node, Action::Create, Reason::NotAssigned, waits.clone());
                }
                Story::Move { from, reason, waits } => {
                    let inst = &self.memory.insts[*from as usize];
                    let waits = if fails { Some(Reason::NoNodeFits) } else { waits.clone() };
                    let node = new.or_else(|| self.prepared(svc, slot).map(name));
                    tell(
                        svc,
                        slot,
                        node,
                        Action::Move { from: name(inst.node) },
                        reason.clone(),
                        waits,
                    );
                }
                Story::Replace { from, fields, waits } => {
                    let action = Action::Replace { fields: fields.clone() };
                    tell(
                        svc,
                        slot,
                        here.map(name),
                        action,
                        Reason::SpecChanged { from: *from, to },
                        waits.clone(),
                    );
                }
                Story::Update { from, fields } => {
                    let action = Action::Update { fields: fields.clone() };
                    tell(
                        svc,
                        slot,
                        here.map(name),
                        action,
                        Reason::SpecChanged { from: *from, to },
                        None,
                    );
                }
            }
        }
        for (&(svc, slot), new) in placed
            .iter()
            .filter(|(at, new)| new.want.from == NONE && !self.stories.contains_key(*at))
        {
            tell(
                svc,
                slot,
                Some(name(new.node)),
                Action::Create,
                Reason::NotAssigned,
                None,
            );
        }
        for &(svc, slot) in unplaced.iter().filter(|at| !self.stories.contains_key(at)) {
            tell(svc, slot, None, Action::Unschedulable, Reason::NoNodeFits, None);
        }
        for judged in &self.removals {
            let inst = &self.memory.insts[judged.inst as usize];
            let held = self.breaker.held.as_ref().filter(|_| judged.held);
            let waits = held.map(|held| Reason::HeldByBreaker {
                digest: held.digest.clone(),
            });
            tell(
                inst.svc,
                inst.slot,
                Some(name(inst.node)),
                Action::Remove,
                judged.reason.clone(),
                waits,
            );
        }
        let judged: BTreeSet<u32> = self.removals.iter().map(|judged| judged.inst).collect();
        for (at, inst) in self.memory.insts.iter().enumerate() {
            let at = u32::try_from(at).unwrap_or(NONE);
            if inst.svc == NONE || inst.to == To::Out || judged.contains(&at) {
                continue;
            }
            if inst.state() == Some(AssignedState::Absent) {
                let moved = matches!(self.stories.get(&(inst.svc, inst.slot)), Some(Story::Move { .. }));
                if inst.was != AssignedState::Absent && !moved {
                    let node = &self.nodes.list[inst.node as usize];
                    let reason = if node.verdict == Verdict::Retired {
                        Reason::NodeRetired
                    } else if node.drained() {
                        Reason::NodeDrained
                    } else {
                        Reason::NodeNoLongerFits {
                            rule: "NotNeeded".to_owned(),
                        }
                    };
                    tell(inst.svc, inst.slot, Some(name(inst.node)), Action::Remove, reason, None);
                }
            } else if inst.state() == Some(AssignedState::Present) && !self.stories.contains_key(&(inst.svc, inst.slot))
            {
                tell(
                    inst.svc,
                    inst.slot,
                    Some(name(inst.node)),
                    Action::Keep,
                    Reason::UpToDate,
                    None,
                );
            }
        }
        changes.sort_by(|a, b| (a.0, a.1, &a.2.node).cmp(&(b.0, b.1, &b.2.node)));
        changes.into_iter().map(|(_, _, change)| change).collect()
    }

    fn in_slot_with(&self, svc: u32, slot: u64, state: AssignedState) -> Option<u32> {
        let one = &self.memory.svcs[svc as usize];
        let offset = match one.wanted {
            Wanted::Count(_) => u32::try_from(slot).ok()?.checked_sub(1)?,
            Wanted::PerNode => u32::try_from(slot & u64::from(u32::MAX)).ok()?,
        };
        if offset >= one.slots {
            return None;
        }
        self.memory
            .in_slot(svc as usize, offset)
            .find(|(_, inst)| inst.state() == Some(state))
            .map(|(_, inst)| inst.node)
    }
    fn holder(&self, svc: u32, slot: u64) -> Option<u32> {
        self.in_slot_with(svc, slot, AssignedState::Present)
    }
    fn prepared(&self, svc: u32, slot: u64) -> Option<u32> {
        self.in_slot_with(svc, slot, AssignedState::Prepared)
    }

    // ---- statuses -------------------------------------------------------------------------------------------------

    fn service_status(
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
        let plain = tally.is_plain()
            && created == 0
            && refusals.is_empty()
            && self.breaker.held.is_none()
            && self.nodes.hold_all.is_none();
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
        conditions.push(self.accepted_condition(life.desired, &life.standing));
        if live.is_some() {
            conditions.push(scheduled(&tally));
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

    fn accepted_condition(&self, desired: Option<&DesiredEntry>, standing: &Standing<'_>) -> Draft<'_> {
        let kind = ConditionType::Accepted;
        if let Standing::Held { why } = standing {
            return condition(
                kind,
                ConditionStatus::False,
                "Unreadable",
                format!("{why}; until then nothing of it changes"),
            );
        }
        if let Some(why) = &self.nodes.hold_all {
            return condition(kind, ConditionStatus::Unknown, "StoreHeld", why.as_str());
        }
        let in_force = matches!(standing, Standing::Live(_));
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

    fn node_statuses(
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
        for (at, node) in self.nodes.list.iter().enumerate() {
            // Both are in order of names.
            while known.next_if(|(name, _)| *name < node.name).is_some() {}
            let stored = known.next_if(|(name, _)| *name == node.name).map(|(_, stored)| stored);
            let life = node.life.map(|life| &self.lives[life]);
            let mut conditions: Vec<Draft<'_>> = Vec::with_capacity(3);
            conditions.extend(life.map(|life| self.accepted_condition(life.desired, &life.standing)));
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
            let conditions = vec![self.accepted_condition(life.desired, &life.standing), ready];
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
            for node in self.snapshot.node_statuses.keys() {
                let key = ResourceKey {
                    namespace: None,
                    kind: Kind::Node,
                    name: node.into(),
                };
                if self.nodes.find(node).is_none() && !others.contains(&key.name) {
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
        let (reason, message) = match node.verdict {
            Verdict::Unreachable => (
                "Unreachable",
                "its agent has no session: it has stopped, or cannot reach the store",
            ),
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
                return condition(kind, ConditionStatus::True, "Ready", "its agent is there");
            }
        };
        condition(kind, ConditionStatus::False, reason, message)
    }

    // ---- what may be forgotten ------------------------------------------------------------------------------------

    fn forgotten(&self) -> Vec<(ResourceKey, u64)> {
        if !self.snapshot.complete || self.nodes.hold_all.is_some() {
            return Vec::new();
        }
        let mut forgotten = Vec::new();
        let many =
            |life: &super::accept::Life<'_>| life.history.is_some_and(|history| history.records.len() > KEPT_RECORDS);
        if !self.lives.iter().any(many) {
            return forgotten;
        }
        let mut referred: BTreeSet<(&str, &str, u64)> = BTreeSet::new();
        let crowded: BTreeSet<(&str, &str)> = self
            .lives
            .iter()
            .filter(|life| many(life))
            .map(|life| {
                (
                    life.key.namespace.as_ref().map_or("_", |namespace| namespace.as_str()),
                    life.key.name.as_str(),
                )
            })
            .collect();
        for node in &self.nodes.list {
            for one in node.assignment.into_iter().flat_map(|assignment| &assignment.instances) {
                if crowded.contains(&(one.namespace.as_str(), one.workload.as_str())) {
                    referred.insert((one.namespace.as_str(), one.workload.as_str(), one.n));
                }
            }
            for one in node.report.into_iter().flat_map(|report| &report.instances) {
                if crowded.contains(&(one.namespace.as_str(), one.workload.as_str())) {
                    let next = one.next.as_ref().map_or(one.n, |next| next.n);
                    for n in [one.n, next] {
                        referred.insert((one.namespace.as_str(), one.workload.as_str(), n));
                    }
                }
            }
        }
        let readable = self.nodes.list.iter().all(|node| {
            node.entry.assignment.as_ref().is_none_or(|stored| stored.value.is_ok())
                && node.entry.report.as_ref().is_none_or(|stored| stored.value.is_ok())
        });
        if !readable {
            // What cannot be read may refer to anything.
            return forgotten;
        }
        for life in self.lives.iter().filter(|life| many(life)) {
            let Some(history) = life.history else { continue };
            let namespace = life.key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
            let deletion = |entry: &super::snapshot::AcceptedEntry| {
                entry
                    .value
                    .as_ref()
                    .is_ok_and(|record: &std::sync::Arc<Accepted>| record.body == AcceptedBody::Deleted)
            };
            let last_deletion = history
                .records
                .iter()
                .rev()
                .find(|(_, entry)| deletion(entry))
                .map(|(n, _)| *n);
            for (n, entry) in history.records.iter().rev().skip(KEPT_RECORDS) {
                let kept = Some(*n) == last_deletion
                    || entry.value.is_err()
                    || referred.contains(&(namespace, life.key.name.as_str(), *n));
                if !kept {
                    forgotten.push((life.key.clone(), *n));
                }
            }
        }
        forgotten
    }
}

/// By namespace, workload and slot; a new instance in a slot whose old entry on this very node is still listed takes its
/// place.
fn sort_and_merge(instances: &mut Vec<Assigned>) {
    instances.sort_by(|a, b| {
        (&a.namespace, &a.workload, &a.slot, &a.uid, a.state).cmp(&(
            &b.namespace,
            &b.workload,
            &b.slot,
            &b.uid,
            b.state,
        ))
    });
    instances.dedup_by(|next, kept| {
        let same = (&next.uid, &next.slot) == (&kept.uid, &kept.slot)
            && (&next.namespace, &next.workload) == (&kept.namespace, &kept.workload);
        if same && kept.state == AssignedState::Absent {
            std::mem::swap(next, kept);
        }
        same
    });
}

fn live_n(standing: &Standing<'_>) -> Option<u64> {
    match standing {
        Standing::Live(live) => Some(live.n),
        Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
    }
}

fn scheduled(tally: &Tally) -> Draft<'static> {
    let kind = ConditionType::Scheduled;
    if tally.unplaced > 0 {
        let text = format!(
            "no node fits {} of {} instances; the refusals say why",
            tally.unplaced, tally.desired
        );
        return condition(kind, ConditionStatus::False, "NoNodeFits", text);
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
fn clip(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

fn problems(desired: Option<&DesiredEntry>) -> Vec<Problem> {
    match desired.map(|entry| &entry.body) {
        Some(DesiredBody::Invalid(problems)) => problems.iter().take(LISTED).cloned().collect(),
        Some(DesiredBody::Service(_) | DesiredBody::Node(_)) | None => Vec::new(),
    }
}

/// Tells of conditions whose status or reason is another than the stored one.
fn notice(
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

/// The digest a person's yes to all removals of one resource names: those of its own documents, as this plan has them.
/// None when the plan removes nothing of it. Write the acknowledgement in one txn with the change itself.
#[must_use]
pub fn removal_digest(plan: &Plan, key: &ResourceKey) -> Option<Digest> {
    let mine: Vec<&Removal> = plan
        .removals
        .iter()
        .filter(|removal| removal.own && removal.key == *key)
        .collect();
    (!mine.is_empty()).then(|| Digest::of_removals(mine.iter().map(|removal| (&removal.uid, &removal.slot))))
}
