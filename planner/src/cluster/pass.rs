//! One pass of the cluster planner, step by step: what is in force, what runs where, what goes, what the breaker holds,
//! what moves and what is placed, whose turn it is to change. Each step reads what the ones before it decided. What this
//! file decides is laid out as a [`super::Plan`] by `output.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use schemas::records::{
    AcceptedBody, AssignedPort, AssignedState, Breaker, Digest, FailingReason, ImageSource, RefusalRule,
    ReportedInstance, Uid, Verdict,
};
use schemas::units::Span;

use super::accept::{Accepting, Life, Standing, accept, record};
use super::addresses::{Given, Net};
use super::files::Room;
use super::memo::Memo;
use super::memory::{Inst, Memory, To, Wanted, service_of};
use super::place::{New, Placer, Want};
use super::ports::Everywhere;
use super::snapshot::Snapshot;
use super::types::{AcceptedWrite, Guard, Reason};
use super::world::{NONE, Nodes, nodes};
use crate::change::{Cost, cost};

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
    /// The first slot that another node may still hold, which node that is, and for how long it must have been away.
    pub held_by: Option<(u64, u32, Option<Span>)>,
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
            held_by,
        } = self;
        [assigned, running, ready, updated]
            .iter()
            .all(|count| *count == desired)
            && [unplaced, waiting, pending, pending_away, unsettled, away, moving]
                .iter()
                .all(|count| **count == 0)
            && failing.is_none()
            && port_taken.is_none()
            && held_by.is_none()
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
    /// The lives of services that mount files.
    pub mounting: Vec<usize>,
    /// The lives of files.
    pub files: Vec<usize>,
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
    /// Services with slots that no node fits, in order.
    pub unplaced: BTreeMap<u32, Vec<u64>>,
    /// Instances that are to ask other nodes for their image, and have not answered for that yet: the nodes they are told
    /// of in this pass; none where they were told before.
    pub asks: BTreeMap<u32, Vec<ImageSource>>,
    /// The cluster's network, and which addresses of it are given in this pass.
    pub net: Option<Net<'a>>,
    pub given: Given,
    /// Of each service with seeds: the addresses of its first slots, and whether those are all.
    pub seeds: BTreeMap<u32, (Vec<Ipv4Addr>, bool)>,
    /// What it costs to go from a number to the one in force, by service.
    costs: BTreeMap<(u32, u64), Cost>,
    /// Instances of no service that is known, where one is exclusive: by its name they may be its.
    pub strangers: Vec<u32>,
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
    pub(super) fn run(snapshot: &'a Snapshot, room: &'a Room, exhaustive: bool, memo: &mut Memo) -> Self {
        let mut nodes = nodes(snapshot);
        let Accepting {
            mut lives,
            writes: accepted,
            mounting,
            files,
        } = accept(snapshot, room, nodes.hold_all.is_some(), memo);
        nodes.describe(&lives);
        let mut memory = Memory::new(snapshot, &lives, &nodes, memo);
        // Only a store that a person took as it is can be behind its nodes; any other is held as a whole.
        if snapshot.cluster.accepted_revision.is_some() && !memory.regressed.is_empty() {
            for (svc, n) in std::mem::take(&mut memory.regressed) {
                let life = &mut lives[memory.svcs[svc as usize].life];
                let why = format!(
                    "nodes run spec {n} of it, which this store does not hold: it is from before. They keep what they run;                      `reeve apply` what should run, the same as is declared or another"
                );
                life.standing = Standing::Held { why, regressed: true };
            }
            memory = Memory::new(snapshot, &lives, &nodes, memo);
        }
        let mut placer = Placer::new(&nodes, &mut memory, &lives, memo);
        placer.exhaustive = exhaustive;
        let tallies = vec![Tally::default(); memory.svcs.len()];
        let mut pass = Self {
            snapshot,
            lives,
            accepted,
            mounting,
            files,
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
            asks: BTreeMap::new(),
            net: Net::new(snapshot, &nodes),
            nodes,
            given: Given::default(),
            seeds: BTreeMap::new(),
            costs: BTreeMap::new(),
            strangers: Vec::new(),
        };
        if pass.memory.svcs.iter().any(|svc| svc.exclusive) {
            let strange = |(at, inst): (u32, &Inst)| (inst.svc == NONE).then_some(at);
            pass.strangers = (0..).zip(&pass.memory.insts).filter_map(strange).collect();
        }
        for svc in 0..pass.memory.svcs.len() {
            pass.judge(svc);
        }
        pass.judge_breaker();
        if pass.net.is_some() {
            pass.placer.everywhere = Everywhere::new(pass.snapshot, &pass.nodes, &pass.memory);
        }
        if pass.memory.svcs.iter().any(|svc| svc.seeds > 0) {
            // Who waits for them is known before anything is placed.
            pass.give_addresses();
            pass.find_seeds();
        }
        let wants = pass.resolve();
        pass.place(wants);
        pass.give_addresses();
        pass.find_seeds();
        pass.hold_for_seeds();
        pass.name_sources();
        pass.take_turns();
        pass
    }

    pub(super) fn svc_index(svc: usize) -> u32 {
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
    pub(super) fn make_absent(&mut self, inst: u32, guard: Option<Guard>) {
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

    /// Whether nothing of a service is waited for on a node any more: it is retired, or has been away for too long.
    pub(super) fn given_up(&self, svc: u32, node: u32) -> bool {
        let node = &self.nodes.list[node as usize];
        node.retired() || node.lost_for(self.memory.svcs[svc as usize].wait)
    }

    /// Whether what is ordered to go from there is not waited for.
    pub(super) fn is_given_up(&self, svc: u32, inst: u32) -> bool {
        if self.is_exclusive(svc) {
            return self.let_go_of(inst);
        }
        self.given_up(svc, self.memory.insts[inst as usize].node)
    }

    /// Whether an instance is to be replaced elsewhere because its node is lost. What runs on every node waits for its own.
    pub(super) fn is_lost(&self, svc: u32, inst: u32) -> bool {
        let node = &self.nodes.list[self.memory.insts[inst as usize].node as usize];
        let one = &self.memory.svcs[svc as usize];
        if one.exclusive {
            return node.held.is_none() && self.let_go_of(inst);
        }
        one.wanted != Wanted::PerNode && node.held.is_none() && node.lost_for(one.wait)
    }

    /// Takes what has been replaced off its lost node. No breaker is asked: losses are bounded where they are declared.
    pub(super) fn give_up(&mut self, inst: u32) {
        let one = &mut self.memory.insts[inst as usize];
        one.to = To::Be(AssignedState::Absent);
        let guard = Guard::SessionAbsent(self.nodes.list[one.node as usize].name.clone());
        self.guards.entry(one.node).or_default().insert(guard.clone());
        self.removals.push(Judged {
            inst,
            reason: Reason::NodeLost,
            own: false,
            acknowledged: true,
            held: false,
            guards: vec![guard],
        });
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
            if matches!(self.lives[life].standing, Standing::Held { regressed: true, .. }) {
                self.tallies[at] = self.count(beyond);
            }
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
            } else if self.given_up(Self::svc_index(at), self.memory.insts[inst as usize].node) {
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
            let node = self.memory.plain[first + offset as usize].node;
            if node != NONE && !(bound && self.placer.broken(&self.nodes, set, node).is_some()) {
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

    /// What a service runs that is left as it is.
    fn count(&self, chain: u32) -> Tally {
        let mut tally = Tally::default();
        for (_, one) in self.memory.chain(chain).filter(|(_, one)| one.stays()) {
            tally.desired += 1;
            tally.assigned += 1;
            tally.running += u32::from(one.seen.running);
            tally.ready += u32::from(one.seen.ready);
            tally.updated += u32::from(one.seen.in_force);
        }
        tally
    }

    /// Whether a global service wants an instance on a node that has none.
    pub(super) fn eligible(&mut self, set: u32, node: u32) -> bool {
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
            if node.retired() {
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
                    std::cmp::Reverse(self.rank(*inst)),
                    one.assigned == NONE,
                    one.seen.orphaned,
                    node.held.is_some(),
                    !node.reachable(),
                    !one.seen.ready,
                    one.node,
                )
            };
            holders.sort_by_key(rank);
            let kept = &self.memory.insts[holders[0] as usize];
            let kept_on = self.nodes.list[kept.node as usize].name.clone();
            // Of a node that is held nobody knows whether it is there.
            let kept_known = kept.assigned != NONE && self.nodes.list[kept.node as usize].held.is_none();
            let kept_ready = kept.seen.ready;
            for inst in holders.split_off(1) {
                let one = &self.memory.insts[inst as usize];
                let node = &self.nodes.list[one.node as usize];
                if self.memory.svcs[at].exclusive && (node.held.is_none() || node.rewrite) {
                    // The slot is another's: no breaker keeps a second one, and no orphan either.
                    self.make_absent(inst, None);
                    continue;
                }
                if one.assigned == NONE && !one.seen.live && self.nodes.list[one.node as usize].held.is_none() {
                    // Nothing of it runs, and no record wants it: to let it start while the breaker thinks is no kindness.
                    self.make_absent(inst, None);
                    continue;
                }
                let reason = Reason::Duplicate {
                    kept_on: kept_on.clone(),
                };
                // A node that lost its assignment, and only says that it has what another one was given: where that one serves, or
                // this one does not.
                let replaced = kept_known && (kept_ready || !one.seen.ready);
                if one.assigned == NONE && self.nodes.list[one.node as usize].rewrite && replaced {
                    self.removals.push(Judged {
                        inst,
                        reason,
                        own: false,
                        acknowledged: false,
                        held: false,
                        guards: Vec::new(),
                    });
                    continue;
                }
                self.remove(inst, reason, false, Vec::new());
            }
        }
    }

    /// What binds always and is broken here; None where labels are not known, for absence is never an order.
    pub(super) fn binding_broken(&mut self, set: u32, node: u32) -> Option<RefusalRule> {
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

    // ---- placing --------------------------------------------------------------------------------------------------

    fn account(&mut self) {
        if let Some(net) = &self.net {
            for (at, node) in self.nodes.list.iter().enumerate() {
                let id = u32::try_from(at).unwrap_or(NONE);
                let (from, to) = (self.memory.starts[at], self.memory.starts[at + 1]);
                let insts = &self.memory.insts[from as usize..to as usize];
                // Who leaves holds its address until it has left; of a deleted service it may have none.
                let holds = |inst: &&Inst| {
                    let svc = self.memory.svcs.get(inst.svc as usize);
                    inst.state().is_some() && (inst.address.is_some() || svc.is_some_and(|svc| svc.bridged))
                };
                let held = u32::try_from(insts.iter().filter(holds).count()).unwrap_or(NONE);
                self.placer.room[at] = net.room(id, node).saturating_sub(held);
            }
        }
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
                AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => None,
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
            // One moves at a time. Where no node fits it, none fits the others: they ask for the same.
            let mut asked: Vec<Want> = Vec::with_capacity(some.len());
            for want in some.iter().filter(|want| want.from == NONE) {
                let but = [want.instead, NONE];
                let rival = self
                    .is_exclusive(svc)
                    .then(|| self.rival(svc, want.slot, but))
                    .flatten();
                match rival {
                    None => asked.push(*want),
                    Some(rival) => {
                        let waits = Some(self.waits_for_holder(svc, want.slot, &rival));
                        self.tallies[svc as usize].waiting += 1;
                        self.stories.insert((svc, want.slot), Story::Create { waits });
                    }
                }
            }
            let movers = || some.iter().filter(|want| want.from != NONE);
            asked.extend(movers().next());
            let found = self.placer.place(&self.nodes, &self.memory, &asked);
            for (want, found) in asked.iter().zip(found) {
                match found {
                    Some(_) if want.instead != NONE && self.is_exclusive(svc) => {
                        // It is taken off its node first: when that is in the store, whatever the node does when it is back, it
                        // does not start it.
                        self.give_up(want.instead);
                        self.tallies[svc as usize].waiting += 1;
                    }
                    Some(new) => {
                        if want.instead != NONE {
                            self.give_up(want.instead);
                        }
                        if self.is_exclusive(svc) && want.from == NONE {
                            let absences = self.absences(svc, want.slot);
                            self.guards.entry(new.node).or_default().extend(absences);
                        }
                        let state = if want.from == NONE {
                            AssignedState::Present
                        } else {
                            AssignedState::Prepared
                        };
                        self.news.push((new, state));
                    }
                    None if want.from == NONE => self.unplaced.entry(svc).or_default().push(want.slot),
                    None => {
                        let slots = self.unplaced.entry(svc).or_default();
                        slots.extend(movers().map(|want| want.slot));
                        slots.sort_unstable();
                    }
                }
            }
        }
    }

    /// Those that are told addresses which nobody has yet are fetched, and not started.
    fn hold_for_seeds(&mut self) {
        if self.seeds.values().all(|(_, all)| *all) {
            return;
        }
        for at in 0..self.news.len() {
            let (new, state) = &self.news[at];
            let (svc, slot) = (new.want.svc, new.want.slot);
            if *state == AssignedState::Present
                && let Some(service) = self.waits_for_seeds(svc)
            {
                let waits = Some(Reason::WaitsForSeeds { service });
                self.news[at].1 = AssignedState::Prepared;
                self.tallies[svc as usize].waiting += 1;
                self.stories.entry((svc, slot)).or_insert(Story::Create { waits });
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
