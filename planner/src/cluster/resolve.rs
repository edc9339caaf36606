//! What moves and what is new: sorts out every slot that is not simply filled, one by one, and answers what must be placed.
//! Called by `pass.rs` once it is known what goes.

use schemas::records::{AssignedState, Verdict};

use super::exclusive::Rival;
use super::memory::{Memory, To, Wanted};
use super::pass::{Pass, SlotView, Story};
use super::place::Want;
use super::types::Reason;
use super::world::NONE;

impl Pass<'_> {
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
                    matches!(node.verdict, Verdict::Lost | Verdict::Retired),
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
                Some(AssignedState::Absent) if !self.is_given_up(Self::svc_index(svc), inst) => {
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
    pub(super) fn resolve(&mut self) -> Vec<Want> {
        let mut wants = Vec::with_capacity(self.busy.len());
        let busy = std::mem::take(&mut self.busy);
        for &(svc, offset) in &busy {
            let code = Memory::code_at(&self.memory.svcs[svc as usize], offset);
            let one = &self.memory.svcs[svc as usize];
            if self.memory.heads[one.first + offset as usize] == NONE && one.wanted != Wanted::PerNode {
                wants.push(Want {
                    svc,
                    slot: code,
                    from: NONE,
                    instead: NONE,
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
                (Some(present), prepared, _) if self.is_lost(svc, present) => match (prepared, usable) {
                    (_, Some(_)) if self.is_exclusive(svc) => {
                        // The one that is prepared starts when this is in the store.
                        self.give_up(present);
                        self.tallies[svc as usize].waiting += 1;
                    }
                    (_, Some(usable)) => {
                        self.give_up(present);
                        self.memory.insts[usable as usize].to = To::Be(AssignedState::Present);
                        self.stories.insert((svc, code), Story::Create { waits: None });
                    }
                    // It never was to start: where it may have, the next pass knows.
                    (Some(prepared), None) => self.make_absent(prepared, None),
                    (None, None) => wants.push(Want {
                        svc,
                        slot: code,
                        from: NONE,
                        instead: present,
                    }),
                },
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
                            && !self.is_preparing(&busy, svc)
                        {
                            wants.push(Want {
                                svc,
                                slot: code,
                                from: present,
                                instead: NONE,
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
                    } else if self.is_exclusive(svc) {
                        self.waits_for_holder(svc, code, &Rival::Holds(leaving))
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
                (None, Some(_), None) if usable.is_some() && self.waits_for_seeds(svc).is_some() => {
                    let waits = self
                        .waits_for_seeds(svc)
                        .map(|service| Reason::WaitsForSeeds { service });
                    self.tallies[svc as usize].waiting += 1;
                    self.stories.insert((svc, code), Story::Create { waits });
                }
                (None, Some(prepared), None) if usable.is_some() && self.is_exclusive(svc) => {
                    let rival = self.rival(svc, code, [prepared, NONE]);
                    let waits = rival.map(|rival| self.waits_for_holder(svc, code, &rival));
                    if waits.is_some() {
                        self.tallies[svc as usize].waiting += 1;
                    } else {
                        let absences = self.absences(svc, code);
                        let one = &mut self.memory.insts[prepared as usize];
                        one.to = To::Be(AssignedState::Present);
                        one.mint = true;
                        self.guards.entry(one.node).or_default().extend(absences);
                    }
                    self.stories.insert((svc, code), Story::Create { waits });
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
                            instead: NONE,
                        });
                    }
                }
                (None, None, None) => wants.push(Want {
                    svc,
                    slot: code,
                    from: NONE,
                    instead: NONE,
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
}
