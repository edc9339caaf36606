//! Lists what a pass has decided as changes, for people. Called by `output.rs`, and only when somebody will read them.

use std::collections::{BTreeMap, BTreeSet};

use schemas::names::NodeName;
use schemas::records::{AssignedState, Verdict};

use super::memory::{To, Wanted};
use super::pass::{Pass, Story};
use super::place::New;
use super::types::{Action, Change, Reason};
use super::world::NONE;

impl Pass<'_> {
    pub(super) fn changes(&self) -> Vec<Change> {
        let mut placed: BTreeMap<(u32, u64), &New> = BTreeMap::new();
        for (new, _) in &self.news {
            placed.insert((new.want.svc, new.want.slot), new);
        }
        let mut unplaced: BTreeSet<(u32, u64)> = BTreeSet::new();
        for (svc, slots) in &self.unplaced {
            unplaced.extend(slots.iter().map(|slot| (*svc, *slot)));
        }
        let name = |node: u32| self.nodes.list[node as usize].name.clone();
        let address = |svc: u32, slot: u64, node: Option<&NodeName>| {
            let at = self.nodes.find(node?)?;
            self.address_in(svc, slot, at)
        };
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
                        address: address(svc, slot, node.as_ref()),
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
                    let content = [crate::change::FILE_CONTENT, crate::change::SECRET_CONTENT];
                    let by_content = fields.iter().all(|field| content.contains(&field.as_str()));
                    let reason = by_content.then(|| self.content_changed(svc, *from)).flatten();
                    tell(
                        svc,
                        slot,
                        here.map(name),
                        action,
                        reason.unwrap_or(Reason::SpecChanged { from: *from, to }),
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
}
