//! The breaker of a pass: which removals a person has acknowledged, which are within the budget, which wait. Called by
//! `pass.rs` once all removals are known.

use std::collections::{BTreeMap, BTreeSet};

use schemas::records::{AssignedState, Digest, Held};

use super::memory::To;
use super::pass::Pass;
use super::world::NONE;

/// The removals that always may go unacknowledged in ten minutes.
const LEAST_BUDGET: u32 = 20;

impl Pass<'_> {
    /// Whether taking this instance away stops something, as far as anybody knows.
    fn stops_something(&self, inst: u32) -> bool {
        let one = &self.memory.insts[inst as usize];
        if one.reported != NONE {
            return one.seen.live;
        }
        let node = &self.nodes.list[one.node as usize];
        // Not in a report: it has not started, unless the report itself is missing or older.
        let newest = node
            .report
            .zip(node.assignment)
            .is_some_and(|(report, assignment)| report.applied >= assignment.order);
        !newest && one.was == AssignedState::Present
    }

    fn digest_of(&self, insts: impl Iterator<Item = u32>) -> Digest {
        let named: Vec<_> = insts
            .filter_map(|inst| {
                let one = &self.memory.insts[inst as usize];
                Some((self.uid(one)?, self.memory.slot(one.slot, &self.nodes)))
            })
            .collect();
        Digest::of_removals(named.iter().map(|(uid, slot)| (*uid, slot)))
    }

    /// Takes away orphans whose removal a person acknowledged, one by one; answers the acknowledgements it found. One on
    /// a node that is held waits.
    fn judge_orphans(&mut self) -> BTreeSet<Digest> {
        let mut used = BTreeSet::new();
        if self.snapshot.acks.is_empty() || !self.snapshot.complete {
            return used;
        }
        for at in 0..self.memory.insts.len() {
            let one = &self.memory.insts[at];
            if !one.is_orphan() {
                continue;
            }
            let node = &self.nodes.list[one.node as usize];
            let Some(reported) = self.reported(one) else { continue };
            let digest = Digest::of_orphan(node.name, &reported.uid, &reported.slot);
            if self.snapshot.acks.contains_key(&digest) {
                used.insert(digest);
                if node.held.is_none() {
                    self.memory.insts[at].to = To::Be(AssignedState::Absent);
                }
            }
        }
        used
    }

    pub(super) fn judge_breaker(&mut self) {
        let running = self.memory.insts.iter().filter(|one| one.seen.running).count();
        let budget = LEAST_BUDGET.max(u32::try_from(running.div_ceil(5)).unwrap_or(u32::MAX));
        let acks = &self.snapshot.acks;
        let mut used = self.judge_orphans();
        if !acks.is_empty() {
            // What a person named by resource: exactly its removals of this pass; or these and those still under way.
            let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for removal in self.removals.iter().filter(|removal| removal.own) {
                groups
                    .entry(self.memory.insts[removal.inst as usize].svc)
                    .or_default()
                    .push(removal.inst);
            }
            let mut going: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            for (at, one) in self.memory.insts.iter().enumerate() {
                if one.svc != NONE && one.was == AssignedState::Absent && one.to == To::Stay {
                    going.entry(one.svc).or_default().push(Self::svc_index(at));
                }
            }
            let svcs: BTreeSet<u32> = groups.keys().chain(going.keys()).copied().collect();
            for svc in svcs {
                let new = groups.get(&svc).cloned().unwrap_or_default();
                let old = going.get(&svc).cloned().unwrap_or_default();
                for digest in [
                    self.digest_of(new.iter().copied()),
                    self.digest_of(new.iter().chain(&old).copied()),
                ] {
                    if acks.contains_key(&digest) {
                        used.insert(digest);
                        for removal in self.removals.iter_mut().filter(|removal| removal.own) {
                            removal.acknowledged |= self.memory.insts[removal.inst as usize].svc == svc;
                        }
                    }
                }
            }
        }
        let open: Vec<u32> = self
            .removals
            .iter()
            .filter(|removal| !removal.acknowledged)
            .map(|removal| removal.inst)
            .collect();
        let count = u32::try_from(open.iter().filter(|inst| self.stops_something(**inst)).count()).unwrap_or(u32::MAX);
        self.breaker.held = None;
        if count > 0 && count.saturating_add(self.snapshot.breaker.spent) > budget {
            let digest = self.digest_of(open.iter().copied());
            if acks.contains_key(&digest) {
                used.insert(digest);
            } else {
                let mut sample: Vec<String> = open.iter().map(|inst| self.instance_name(*inst)).collect();
                sample.sort();
                sample.truncate(20);
                let count = u32::try_from(open.len()).unwrap_or(u32::MAX);
                self.breaker.held = Some(Held {
                    digest,
                    count,
                    budget,
                    sample,
                });
                for removal in self.removals.iter_mut().filter(|removal| !removal.acknowledged) {
                    removal.held = true;
                }
            }
        } else {
            self.breaker.spent = self.snapshot.breaker.spent.saturating_add(count);
        }
        if self.snapshot.complete && self.nodes.hold_all.is_none() {
            self.spent_acks = acks.keys().filter(|digest| !used.contains(digest)).cloned().collect();
        }
        let removals = std::mem::take(&mut self.removals);
        for removal in &removals {
            let one = &mut self.memory.insts[removal.inst as usize];
            if removal.held {
                // An instance that only a report knows is written down, so that it is known until a person decides.
                if one.assigned == NONE {
                    one.to = To::Be(one.was);
                }
            } else {
                one.to = To::Be(AssignedState::Absent);
                self.guards
                    .entry(one.node)
                    .or_default()
                    .extend(removal.guards.iter().cloned());
            }
        }
        self.removals = removals;
    }

    /// `namespace/web.2`.
    pub(super) fn instance_name(&self, inst: u32) -> String {
        let one = &self.memory.insts[inst as usize];
        let svc = &self.memory.svcs[one.svc as usize];
        format!(
            "{}/{}.{}",
            svc.namespace,
            svc.key.name,
            self.memory.slot(one.slot, &self.nodes)
        )
    }
}
