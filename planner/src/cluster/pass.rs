//! One pass of the cluster planner, step by step: what is in force, what runs where, what goes, what the breaker holds,
//! what moves and what is placed, whose turn it is to change. Each step reads what the ones before it decided. What this
//! file decides is laid out as a [`super::Plan`] by `output.rs`.

use std::collections::{BTreeMap, BTreeSet};

use schemas::records::{
    AcceptedBody, AssignedPort, AssignedState, Breaker, Digest, FailingReason, Held, RefusalRule, ReportedInstance,
    Uid, Verdict,
};

use super::accept::{Life, Standing, accept, record};
use super::memo::Memo;
use super::memory::{Inst, Memory, To, Wanted, service_of};
use super::place::{New, Placer, Want};
use super::snapshot::Snapshot;
use super::types::{AcceptedWrite, Guard, Reason};
use super::world::{NONE, Nodes, nodes};
use crate::change::{Cost, cost};

/// The removals that always may go unacknowledged in ten minutes.
const LEAST_BUDGET: u32 = 20;

/// A removal before the breaker has looked at it.
pub(super) struct Judged {
    pub inst: u32,
    pub reason: Reason,
    /// Whether the resource's own documents ask for it.
    pub own: bool,
    pub acknowledged: bool,
    pub held: bool,
    pub guards: Vec<Guard>,
}

/// What one service comes to in this pass, for its status.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub desired: u32,
    pub assigned: u32,
    pub running: u32,
    pub ready: u32,
    pub updated: u32,
    /// Slots for which no node fits.
    pub unplaced: u32,
    /// Slots that wait for something else than a node.
    pub waiting: u32,
    /// Slots that are to change and have not had their turn; and those of them on nodes that are away.
    pub pending: u32,
    pub pending_away: u32,
    /// Slots whose assigned number is not in force yet.
    pub unsettled: u32,
    /// Slots on nodes that are not ready.
    pub away: u32,
    pub moving: u32,
    /// The first slot that fails, and why.
    pub failing: Option<(u64, FailingReason, String, bool)>,
    /// A port that the new spec asks for and the slot's node has not free.
    pub port_taken: Option<(u64, u16)>,
}

impl Tally {
    /// Whether every slot is just as desired.
    pub(super) fn is_plain(&self) -> bool {
        let Self {
            desired,
            assigned,
            running,
            ready,
            updated,
            unplaced,
            waiting,
            pending,
            pending_away,
            unsettled,
            away,
            moving,
            failing,
            port_taken,
        } = self;
        [assigned, running, ready, updated]
            .iter()
            .all(|count| *count == desired)
            && [unplaced, waiting, pending, pending_away, unsettled, away, moving]
                .iter()
                .all(|count| **count == 0)
            && failing.is_none()
            && port_taken.is_none()
    }
}

/// What is particular to a slot in this pass: kept for those slots only that do not simply stay.
#[derive(Clone, Debug)]
pub(super) enum Story {
    Create {
        waits: Option<Reason>,
    },
    Move {
        from: u32,
        reason: Reason,
        waits: Option<Reason>,
    },
    Replace {
        from: u64,
        fields: Vec<String>,
        waits: Option<Reason>,
    },
    Update {
        from: u64,
        fields: Vec<String>,
    },
}

pub(super) struct Pass<'a> {
    pub snapshot: &'a Snapshot,
    pub nodes: Nodes<'a>,
    pub lives: Vec<Life<'a>>,
    pub accepted: Vec<AcceptedWrite>,
    pub memory: Memory<'a>,
    pub placer: Placer<'a>,
    pub removals: Vec<Judged>,
    pub breaker: Breaker,
    pub spent_acks: Vec<Digest>,
    /// New guards by node.
    pub guards: BTreeMap<u32, BTreeSet<Guard>>,
    /// Ports that differ from those held, by instance.
    pub ports: BTreeMap<u32, Vec<AssignedPort>>,
    pub news: Vec<(New, AssignedState)>,
    /// By service and slot.
    pub stories: BTreeMap<(u32, u64), Story>,
    pub tallies: Vec<Tally>,
    /// Slots that need a second look, by service.
    pub busy: Vec<(u32, u32)>,
    /// Services with slots that no node fits, for the explanation.
    pub unplaced: BTreeMap<u32, Vec<u64>>,
    /// What it costs to go from a number to the one in force, by service.
    costs: BTreeMap<(u32, u64), Cost>,
}

/// One slot of a service, sorted out.
pub(super) struct SlotView {
    /// The instance that fills it.
    pub present: Option<u32>,
    pub prepared: Option<u32>,
    /// An instance that is not confirmed to be gone, on a node that may come back.
    pub leaving: Option<u32>,
}

impl<'a> Pass<'a> {
    pub(super) fn run(snapshot: &'a Snapshot, exhaustive: bool, memo: &mut Memo) -> Self {
        let mut nodes = nodes(snapshot);
        let (lives, accepted) = accept(snapshot, nodes.hold_all.is_some(), memo);
        nodes.describe(&lives);
        let mut memory = Memory::new(&lives, &nodes, memo);
        let mut placer = Placer::new(&nodes, &mut memory, &lives, memo);
        placer.exhaustive = exhaustive;
        let tallies = vec![Tally::default(); memory.svcs.len()];
        let mut pass = Self {
            snapshot,
            nodes,
            lives,
            accepted,
            memory,
            placer,
            removals: Vec::new(),
            breaker: snapshot.breaker.clone(),
            spent_acks: Vec::new(),
            guards: BTreeMap::new(),
            ports: BTreeMap::new(),
            news: Vec::new(),
            stories: BTreeMap::new(),
            tallies,
            busy: Vec::new(),
            unplaced: BTreeMap::new(),
            costs: BTreeMap::new(),
        };
        for svc in 0..pass.memory.svcs.len() {
            pass.judge(svc);
        }
        pass.judge_breaker();
        let wants = pass.resolve();
        pass.place(wants);
        pass.take_turns();
        pass
    }

    fn svc_index(svc: usize) -> u32 {
        u32::try_from(svc).unwrap_or(NONE)
    }

    /// The report's entry of an instance.
    pub(super) fn reported(&self, inst: &Inst) -> Option<&'a ReportedInstance> {
        self.nodes.list[inst.node as usize]
            .report
            .and_then(|report| report.instances.get(inst.reported as usize))
    }

    /// The uid of an instance of ours.
    pub(super) fn uid(&self, inst: &Inst) -> Option<&'a Uid> {
        let node = &self.nodes.list[inst.node as usize];
        let assigned = node
            .assignment
            .and_then(|assignment| assignment.instances.get(inst.assigned as usize))
            .map(|one| &one.uid);
        assigned.or(self.reported(inst).map(|one| &one.uid))
    }

    /// What it costs to bring an instance of number `n` to the spec in force.
    pub(super) fn cost(&mut self, svc: u32, n: u64) -> &Cost {
        let one = &self.memory.svcs[svc as usize];
        let life = &self.lives[one.life];
        self.costs.entry((svc, n)).or_insert_with(|| {
            if n == one.n {
                return Cost::Nothing;
            }
            let old = life
                .history
                .and_then(|history| record(history, life.key, n))
                .and_then(|(record, _)| service_of(&record.body));
            match (old, one.spec) {
                (Some(old), Some(new)) => cost(old, new),
                // The record is gone: what runs may be anything. The agent, which has the spec, replaces only what differs.
                (None, _) | (_, None) => Cost::Replace { fields: vec!["spec"] },
            }
        })
    }

    pub(super) fn replaces(&mut self, svc: u32, n: u64) -> bool {
        n != self.memory.svcs[svc as usize].n && matches!(self.cost(svc, n), Cost::Replace { .. })
    }

    // ---- what goes ----------------------------------------------------------------------------------------------

    fn remove(&mut self, inst: u32, reason: Reason, own: bool, guards: Vec<Guard>) {
        let one = &self.memory.insts[inst as usize];
        if one.to == To::Out || one.was == AssignedState::Absent || self.nodes.list[one.node as usize].held.is_some() {
            return;
        }
        if one.seen.orphaned && one.assigned == NONE {
            // Kept, shown, and removed by a verb only.
            self.memory.insts[inst as usize].to = To::Out;
            return;
        }
        self.removals.push(Judged {
            inst,
            reason,
            own,
            acknowledged: false,
            held: false,
            guards,
        });
    }

    /// Takes an instance away without asking the breaker: a person asked for it, or another one serves already.
    fn make_absent(&mut self, inst: u32, guard: Option<Guard>) {
        let one = &mut self.memory.insts[inst as usize];
        if one.was != AssignedState::Absent {
            one.to = To::Be(AssignedState::Absent);
            self.guards.entry(one.node).or_default().extend(guard);
        }
    }

    fn chain(&self, head: u32) -> Vec<u32> {
        self.memory.chain(head).map(|(at, _)| at).collect()
    }

    pub(super) fn cordon_guard(&self, node: u32) -> Option<Guard> {
        let node = &self.nodes.list[node as usize];
        node.cordon.map(|(_, mod_revision)| Guard::CordonAt {
            node: node.name.clone(),
            mod_revision,
        })
    }

    /// Takes an instance off a node that is lost or retired, or from which a person drains what cannot move.
    fn leave(&mut self, inst: u32) {
        let one = &self.memory.insts[inst as usize];
        let at = one.node;
        let node = &self.nodes.list[at as usize];
        if node.held.is_some() || one.to == To::Out {
            return;
        }
        if node.verdict == Verdict::Lost {
            let guard = Guard::SessionAbsent(node.name.clone());
            self.remove(inst, Reason::NodeLost, false, vec![guard]);
        } else {
            let guard = self.cordon_guard(at);
            self.make_absent(inst, guard);
        }
    }

    /// Finds all that is to go of one service, and the slots that need a second look.
    fn judge(&mut self, at: usize) {
        let svc = &self.memory.svcs[at];
        let (life, wanted, first, slots) = (svc.life, svc.wanted, svc.first, svc.slots);
        let (beyond, ended, deleted) = (svc.beyond, svc.ended, svc.deleted);
        let global = wanted == Wanted::PerNode;
        if svc.spec.is_none() && !deleted {
            return;
        }
        let gone: Vec<Guard> = if self.lives[life].desired.is_none() {
            vec![Guard::DesiredAbsent(self.memory.svcs[at].key.clone())]
        } else {
            Vec::new()
        };
        for inst in self.chain(ended) {
            self.remove(inst, Reason::ResourceDeleted, true, gone.clone());
        }
        for inst in self.chain(beyond) {
            if deleted {
                self.remove(inst, Reason::ResourceDeleted, true, gone.clone());
            } else if self.nodes.list[self.memory.insts[inst as usize].node as usize].gone() {
                self.leave(inst);
            } else if let Some(guard) = self.memory.svcs[at].guard() {
                let to = if global { 0 } else { slots };
                self.remove(inst, Reason::ScaledDown { to }, true, vec![guard]);
            }
        }
        let svc_id = Self::svc_index(at);
        let set = self.memory.svcs[at].set;
        let bound = self.placer.sets.get(set as usize).is_some_and(|set| set.binds);
        let mut tally = Tally::default();
        for offset in 0..slots {
            let head = self.memory.heads[first + offset as usize];
            if head == NONE {
                if global && !self.eligible(set, offset) {
                    continue;
                }
                tally.desired += 1;
                self.busy.push((svc_id, offset));
                continue;
            }
            tally.desired += 1;
            let node = |pass: &Self| pass.memory.insts[head as usize].node;
            if self.memory.plain[first + offset as usize]
                && !(bound && self.placer.broken(&self.nodes, set, node(self)).is_some())
            {
                tally.assigned += 1;
                tally.running += 1;
                tally.ready += 1;
                tally.updated += 1;
                continue;
            }
            self.busy.push((svc_id, offset));
            self.judge_slot(at, offset, global);
        }
        self.tallies[at] = tally;
    }

    /// Whether a global service wants an instance on a node that has none.
    fn eligible(&mut self, set: u32, node: u32) -> bool {
        self.placer.fits(&self.nodes, set, node).is_some()
    }

    fn judge_slot(&mut self, at: usize, offset: u32, global: bool) {
        let guard = self.memory.svcs[at].guard().filter(|_| global);
        let guard = guard.as_ref();
        let set = self.memory.svcs[at].set;
        let chain: Vec<u32> = self.memory.in_slot(at, offset).map(|(inst, _)| inst).collect();
        let mut holders: Vec<u32> = Vec::new();
        for inst in chain {
            let one = &self.memory.insts[inst as usize];
            if one.was == AssignedState::Absent || one.to == To::Out {
                continue;
            }
            let node_at = one.node;
            let node = &self.nodes.list[node_at as usize];
            if node.gone() {
                self.leave(inst);
                continue;
            }
            if global {
                if node_at != offset {
                    if let Some(guard) = guard {
                        self.remove(
                            inst,
                            Reason::NodeNoLongerFits {
                                rule: "NodeName".to_owned(),
                            },
                            true,
                            vec![guard.clone()],
                        );
                    }
                    continue;
                }
                if node.drained() && node.held.is_none() {
                    let guard = self.cordon_guard(node_at);
                    self.make_absent(inst, guard);
                    continue;
                }
                if let (Some(rule), Some(guard)) = (self.binding_broken(set, node_at), guard) {
                    let guards = self.placement_guards(node_at, guard);
                    self.remove(
                        inst,
                        Reason::NodeNoLongerFits {
                            rule: format!("{rule:?}"),
                        },
                        true,
                        guards,
                    );
                    continue;
                }
            }
            let one = &self.memory.insts[inst as usize];
            if one.was == AssignedState::Present {
                holders.push(inst);
            }
        }
        if holders.len() > 1 {
            let rank = |inst: &u32| {
                let one = &self.memory.insts[*inst as usize];
                let node = &self.nodes.list[one.node as usize];
                (
                    one.assigned == NONE,
                    one.seen.orphaned,
                    node.held.is_some(),
                    !node.reachable(),
                    !one.seen.ready,
                    one.node,
                )
            };
            holders.sort_by_key(rank);
            let kept_on = self.nodes.list[self.memory.insts[holders[0] as usize].node as usize]
                .name
                .clone();
            for inst in holders.split_off(1) {
                self.remove(
                    inst,
                    Reason::Duplicate {
                        kept_on: kept_on.clone(),
                    },
                    false,
                    Vec::new(),
                );
            }
        }
    }

    /// What binds always and is broken here; None where labels are not known, for absence is never an order.
    fn binding_broken(&mut self, set: u32, node: u32) -> Option<RefusalRule> {
        let rule = self.placer.broken(&self.nodes, set, node)?;
        (rule == RefusalRule::NodeName || self.nodes.list[node as usize].known).then_some(rule)
    }

    /// What a removal rests on that placement asks for: the service, and the Node resource.
    pub(super) fn placement_guards(&self, node: u32, service: &Guard) -> Vec<Guard> {
        let life = self.nodes.list[node as usize].life.map(|life| &self.lives[life]);
        let said = life.map(|life| match life.desired {
            Some(entry) => Guard::DesiredAt {
                key: life.key.clone(),
                mod_revision: entry.mod_revision,
            },
            None => Guard::DesiredAbsent(life.key.clone()),
        });
        std::iter::once(service.clone()).chain(said).collect()
    }

    // ---- the breaker ----------------------------------------------------------------------------------------------

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

    fn judge_breaker(&mut self) {
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

    // ---- what moves and what is new -------------------------------------------------------------------------------

    pub(super) fn view(&self, svc: usize, offset: u32) -> SlotView {
        let mut view = SlotView {
            present: None,
            prepared: None,
            leaving: None,
        };
        // Of several present ones the first by name is the winner's stand-in; the breaker holds the others.
        let better = |old: Option<u32>, new: u32| {
            let key = |inst: u32| {
                let one = &self.memory.insts[inst as usize];
                let node = &self.nodes.list[one.node as usize];
                (
                    node.gone(),
                    one.assigned == NONE,
                    one.seen.orphaned,
                    node.held.is_some(),
                    !node.reachable(),
                    !one.seen.ready,
                    one.node,
                )
            };
            Some(old.filter(|old| key(*old) < key(new)).unwrap_or(new))
        };
        for (inst, one) in self.memory.in_slot(svc, offset) {
            match one.state() {
                Some(AssignedState::Present) => view.present = better(view.present, inst),
                Some(AssignedState::Prepared) => view.prepared = better(view.prepared, inst),
                Some(AssignedState::Absent) if !self.nodes.list[one.node as usize].gone() => {
                    view.leaving = better(view.leaving, inst)
                }
                Some(AssignedState::Absent) | None => {}
            }
        }
        view
    }

    /// Why an instance must leave its node though it runs well.
    fn must_leave(&mut self, svc: u32, inst: u32) -> Option<Reason> {
        let at = self.memory.insts[inst as usize].node;
        let one = &self.memory.svcs[svc as usize];
        if one.wanted == Wanted::PerNode {
            return None;
        }
        if self.nodes.list[at as usize].drained() {
            return Some(Reason::NodeDrained);
        }
        let set = one.set;
        one.desired_at?;
        self.binding_broken(set, at).map(|rule| Reason::NodeNoLongerFits {
            rule: format!("{rule:?}"),
        })
    }

    /// Sorts out every slot that needs it; answers what must be placed.
    fn resolve(&mut self) -> Vec<Want> {
        let mut wants = Vec::with_capacity(self.busy.len());
        let busy = std::mem::take(&mut self.busy);
        let mut preparing = NONE;
        for &(svc, offset) in &busy {
            let code = Memory::code_at(&self.memory.svcs[svc as usize], offset);
            let one = &self.memory.svcs[svc as usize];
            if self.memory.heads[one.first + offset as usize] == NONE && one.wanted != Wanted::PerNode {
                wants.push(Want {
                    svc,
                    slot: code,
                    from: NONE,
                });
                continue;
            }
            let view = self.view(svc as usize, offset);
            // Only one instance of each is kept; a second prepared one is dropped.
            let prepared: Vec<u32> = self
                .memory
                .in_slot(svc as usize, offset)
                .filter(|(inst, one)| one.state() == Some(AssignedState::Prepared) && Some(*inst) != view.prepared)
                .map(|(inst, _)| inst)
                .collect();
            for inst in prepared {
                if self.nodes.list[self.memory.insts[inst as usize].node as usize]
                    .held
                    .is_none()
                {
                    self.make_absent(inst, None);
                }
            }
            let one = &self.memory.svcs[svc as usize];
            let (set, global) = (one.set, one.wanted == Wanted::PerNode);
            if global && view.present.is_none() && !self.eligible(set, offset) {
                // It had an instance, and wants none any more.
                self.tallies[svc as usize].desired -= 1;
                continue;
            }
            let usable = view.prepared.filter(|inst| self.still_good(svc, *inst));
            match (view.present, view.prepared, view.leaving) {
                (Some(present), prepared, _) => {
                    let reason = self.must_leave(svc, present);
                    let reachable = self.nodes.list[self.memory.insts[present as usize].node as usize].reachable();
                    if let (Some(old), true) = (prepared, reason.is_none() || usable.is_none())
                        && self.nodes.list[self.memory.insts[old as usize].node as usize]
                            .held
                            .is_none()
                    {
                        self.make_absent(old, None);
                    }
                    if let Some(reason) = reason {
                        let waits = (!reachable).then(|| self.away(present));
                        if let (None, None) = (prepared, &waits)
                            && preparing != svc
                            && !self.is_preparing(&busy, svc)
                        {
                            preparing = svc;
                            wants.push(Want {
                                svc,
                                slot: code,
                                from: present,
                            });
                        }
                        self.stories.insert(
                            (svc, code),
                            Story::Move {
                                from: present,
                                reason,
                                waits,
                            },
                        );
                    }
                }
                (None, _, Some(leaving)) => {
                    // Stop first: nothing starts before the old one is known to be gone.
                    let reachable = self.nodes.list[self.memory.insts[leaving as usize].node as usize].reachable();
                    let waits = if reachable {
                        Reason::WaitsFor {
                            instance: self.name(svc, code),
                        }
                    } else {
                        self.away(leaving)
                    };
                    if let (Some(old), None) = (view.prepared, usable)
                        && self.nodes.list[self.memory.insts[old as usize].node as usize]
                            .held
                            .is_none()
                    {
                        self.make_absent(old, None);
                    }
                    self.tallies[svc as usize].waiting += 1;
                    let story = match usable {
                        Some(_) => Story::Move {
                            from: leaving,
                            reason: Reason::NodeDrained,
                            waits: Some(waits),
                        },
                        None => Story::Create { waits: Some(waits) },
                    };
                    self.stories.insert((svc, code), story);
                }
                (None, Some(prepared), None) if usable.is_some() => {
                    self.memory.insts[prepared as usize].to = To::Be(AssignedState::Present);
                    self.stories.insert((svc, code), Story::Create { waits: None });
                }
                (None, Some(prepared), None) => {
                    let at = &self.memory.insts[prepared as usize];
                    let (node, may_start) = (&self.nodes.list[at.node as usize], at.seen.may_start);
                    let (held, reachable) = (node.held.is_some(), node.reachable());
                    if !held {
                        self.make_absent(prepared, None);
                    }
                    if held || may_start {
                        let waits = if reachable {
                            Reason::WaitsFor {
                                instance: self.name(svc, code),
                            }
                        } else {
                            self.away(prepared)
                        };
                        self.tallies[svc as usize].waiting += 1;
                        self.stories.insert((svc, code), Story::Create { waits: Some(waits) });
                    } else {
                        // It never started, so another may.
                        wants.push(Want {
                            svc,
                            slot: code,
                            from: NONE,
                        });
                    }
                }
                (None, None, None) => wants.push(Want {
                    svc,
                    slot: code,
                    from: NONE,
                }),
            }
        }
        self.busy = busy;
        wants
    }

    /// Whether any slot of the service has an instance prepared for a move.
    fn is_preparing(&self, busy: &[(u32, u32)], svc: u32) -> bool {
        let from = busy.partition_point(|(other, _)| *other < svc);
        busy[from..]
            .iter()
            .take_while(|(other, _)| *other == svc)
            .flat_map(|(_, offset)| self.memory.in_slot(svc as usize, *offset))
            .any(|(_, one)| one.state() == Some(AssignedState::Prepared))
    }

    /// Whether a prepared instance may still be started where it is.
    fn still_good(&mut self, svc: u32, inst: u32) -> bool {
        let at = self.memory.insts[inst as usize].node;
        let node = &self.nodes.list[at as usize];
        let fine = node.reachable() && !node.drained();
        let set = self.memory.svcs[svc as usize].set;
        fine && self.binding_broken(set, at).is_none()
    }

    pub(super) fn away(&self, inst: u32) -> Reason {
        let node = &self.nodes.list[self.memory.insts[inst as usize].node as usize];
        match &node.held {
            Some(why) => Reason::NodeHeld { why: why.clone() },
            None => Reason::NodeUnreachable {
                node: node.name.clone(),
            },
        }
    }

    pub(super) fn name(&self, svc: u32, slot: u64) -> schemas::names::InstanceName {
        let one = &self.memory.svcs[svc as usize];
        schemas::names::InstanceName {
            namespace: one.namespace.clone(),
            workload: one.key.name.clone(),
            slot: self.memory.slot(slot, &self.nodes),
        }
    }

    // ---- placing --------------------------------------------------------------------------------------------------

    fn account(&mut self) {
        let needs: Vec<Option<(i64, i64)>> = self.memory.svcs.iter().map(|svc| svc.spec.map(|_| svc.need)).collect();
        for at in 0..self.memory.insts.len() {
            let one = &self.memory.insts[at];
            if !one.stays() {
                continue;
            }
            let node = one.node as usize;
            let need = match needs.get(one.svc as usize) {
                Some(Some(need)) => *need,
                Some(None) => self.old_need(self.memory.svcs[one.svc as usize].life, one.n),
                None => (0, 0),
            };
            self.placer.total[node] += 1;
            self.placer.free[node].0 = self.placer.free[node].0.saturating_sub(need.0);
            self.placer.free[node].1 = self.placer.free[node].1.saturating_sub(need.1);
        }
    }

    /// What an instance of a service that is not in force any more reserves.
    fn old_need(&self, life: usize, n: u64) -> (i64, i64) {
        let life = &self.lives[life];
        let spec = life
            .history
            .and_then(|history| record(history, life.key, n))
            .and_then(|(record, _)| match &record.body {
                AcceptedBody::Service(spec) => Some(spec),
                AcceptedBody::Node(_) | AcceptedBody::Deleted => None,
            });
        let (cpu, memory) = spec.map(|spec| spec.container.resources.reserved()).unwrap_or_default();
        (i64::from(cpu.millis), i64::try_from(memory.0).unwrap_or(i64::MAX))
    }

    fn place(&mut self, wants: Vec<Want>) {
        self.account();
        if wants.is_empty() {
            return;
        }
        let priority = |svc: u32| {
            self.memory.svcs[svc as usize]
                .spec
                .map_or(0, |spec| spec.placement.priority)
        };
        // Services stand in order of keys, and slots in order of numbers, already.
        let mut turns: Vec<&[Want]> = wants.chunk_by(|a, b| a.svc == b.svc).collect();
        turns.sort_by_key(|some| std::cmp::Reverse(some.first().map(|want| priority(want.svc))));
        for some in turns {
            let Some(svc) = some.first().map(|want| want.svc) else {
                continue;
            };
            if let Some(why) = self.creation_waits() {
                for want in some {
                    self.tallies[svc as usize].waiting += 1;
                    let waits = Some(why.clone());
                    self.stories.entry((svc, want.slot)).or_insert(Story::Create { waits });
                }
                continue;
            }
            let found = self.placer.place(&self.nodes, &self.memory, some);
            for (want, found) in some.iter().zip(found) {
                match found {
                    Some(new) => {
                        let state = if want.from == NONE {
                            AssignedState::Present
                        } else {
                            AssignedState::Prepared
                        };
                        self.news.push((new, state));
                    }
                    None => self.unplaced.entry(svc).or_default().push(want.slot),
                }
            }
        }
    }

    fn creation_waits(&self) -> Option<Reason> {
        if let Some(why) = &self.nodes.hold_all {
            return Some(Reason::NodeHeld { why: why.clone() });
        }
        let gap = &self.nodes.list[self.nodes.gap? as usize];
        Some(Reason::NodeHeld {
            why: format!(
                "nobody knows what node {} runs: {}",
                gap.name,
                gap.held.as_deref().unwrap_or_default()
            ),
        })
    }

    /// Whether the uid of this service's life is in force.
    pub(super) fn in_force(&self, svc: usize) -> Option<&super::accept::InForce<'a>> {
        match &self.lives[self.memory.svcs[svc].life].standing {
            Standing::Live(live) => Some(live),
            Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
        }
    }
}
