//! Changes go through a service one slot at a time: this file says whose turn it is. What costs no container comes into
//! force at once; a slot is taken down only when nobody else of its service is down or may be going down, broken slots
//! first, for they serve nobody.

use schemas::records::{AssignedState, CordonMode, Failing, FailingReason};
use schemas::service::ServiceSpec;

use super::memory::{Memory, To};
use super::pass::{Pass, Story};
use super::ports::held_ports;
use super::types::{Guard, Reason};
use super::world::NONE;
use crate::change::Cost;

impl<'a> Pass<'a> {
    pub(super) fn take_turns(&mut self) {
        let busy = std::mem::take(&mut self.busy);
        // The first new slot of each service.
        let mut created: Vec<Option<u64>> = vec![None; self.memory.svcs.len()];
        for (new, state) in &self.news {
            if *state == AssignedState::Present {
                created[new.want.svc as usize].get_or_insert(new.want.slot);
            }
        }
        let mut from = 0;
        while from < busy.len() {
            let svc = busy[from].0;
            let to = from + busy[from..].iter().take_while(|(other, _)| *other == svc).count();
            // Where nothing is or was, nothing has a turn.
            let slots = &busy[from..to];
            let first = self.memory.svcs[svc as usize].first;
            if slots
                .iter()
                .any(|(_, offset)| self.memory.heads[first + *offset as usize] != NONE)
            {
                self.take_turn(svc, slots, created[svc as usize]);
            }
            from = to;
        }
        self.busy = busy;
    }

    /// One service: brings what costs nothing into force, and lets at most one slot be taken down.
    fn take_turn(&mut self, svc: u32, slots: &[(u32, u32)], created: Option<u64>) {
        let n = self.memory.svcs[svc as usize].n;
        let spec = self.memory.svcs[svc as usize].spec;
        // The first slot that keeps others from their turn, and the slots that wait for one: broken ones first.
        let mut blocker: Option<(u64, Option<FailingReason>)> = created.map(|slot| (slot, None));
        // An unsure one is ready by its report, which is older than what it was assigned: it may go down any moment.
        let mut unsure: Vec<(u32, u64)> = Vec::new();
        let mut broken: Vec<(u32, u64)> = Vec::new();
        let mut healthy: Vec<(u32, u64)> = Vec::new();
        let mut stuck: Option<u64> = None;
        let mut tally = std::mem::take(&mut self.tallies[svc as usize]);
        for &(_, offset) in slots {
            let code = Memory::code_at(&self.memory.svcs[svc as usize], offset);
            let view = self.view(svc as usize, offset);
            let Some(at) = view.present else {
                let blocked = view
                    .leaving
                    .is_some_and(|inst| self.nodes.list[self.memory.insts[inst as usize].node as usize].reachable());
                if blocked && blocker.is_none() {
                    blocker = Some((code, None));
                }
                continue;
            };
            let one = self.memory.insts[at as usize].clone();
            let reachable = self.nodes.list[one.node as usize].reachable();
            let frozen = self.nodes.list[one.node as usize].held.is_some();
            let starting = one.was != AssignedState::Present;
            tally.assigned += 1;
            tally.running += u32::from(one.seen.running);
            tally.ready += u32::from(one.seen.ready && !starting);
            tally.away += u32::from(!reachable);
            let in_force = self.reported(&one).map(|reported| reported.n);
            tally.updated +=
                u32::from(in_force.is_some_and(|in_force| one.seen.in_force && !self.replaces(svc, in_force)));
            let failing = self.reported(&one).and_then(|reported| reported.failing.as_ref());
            if let (
                Some(Failing {
                    n: failed,
                    reason,
                    message,
                    logs: _,
                }),
                true,
            ) = (failing, reachable)
                && tally.failing.is_none()
            {
                tally.failing = Some((
                    code,
                    *reason,
                    message.clone(),
                    // What fails must be the newest spec, probes and policies included: a failure of the one before it
                    // says nothing about this one. Nor has failed what other nodes are still to be asked for.
                    *failed == one.n && !self.asks.contains_key(&at) && matches!(self.cost(svc, one.n), Cost::Nothing),
                ));
            }
            tally.unsettled += u32::from(reachable && !one.seen.in_force);
            let nowhere = self
                .unplaced
                .get(&svc)
                .is_some_and(|slots| slots.binary_search(&code).is_ok());
            // What must move and cannot is changed where it is.
            let moves = matches!(self.stories.get(&(svc, code)), Some(Story::Move { .. })) && !nowhere;
            let replace = self.replaces(svc, one.n);
            if !replace && one.n != n && !frozen {
                let fields = match self.cost(svc, one.n) {
                    Cost::AgentOnly { fields } => {
                        Some(fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>())
                    }
                    Cost::Nothing | Cost::Replace { .. } => None,
                };
                if let Some(fields) = fields {
                    let inst = &mut self.memory.insts[at as usize];
                    inst.to_n = n;
                    inst.to = To::Be(AssignedState::Present);
                    tally.unsettled += u32::from(reachable && one.seen.in_force);
                    self.stories
                        .entry((svc, code))
                        .or_insert(Story::Update { from: one.n, fields });
                }
            }
            if starting {
                // A move that has just let go of the old one: it begins on the newest spec.
                self.memory.insts[at as usize].to_n = n;
                blocker.get_or_insert((code, None));
                continue;
            }
            if replace && !moves {
                tally.pending += 1;
                tally.pending_away += u32::from(!reachable);
            }
            tally.moving += u32::from(moves);
            if !reachable {
                if replace && !moves {
                    let waits = Some(self.away(at));
                    self.tell_replace(svc, code, one.n, waits);
                }
                continue;
            }
            // What would wait for somebody else then is not let go.
            let but = [at, view.prepared.unwrap_or(NONE)];
            let ready_to_move = moves
                && !(self.is_exclusive(svc) && self.rival(svc, code, but).is_some())
                && view.prepared.is_some_and(|inst| {
                    let prepared = &self.memory.insts[inst as usize];
                    prepared.seen.prepared && prepared.to == To::Stay && prepared.n == n
                });
            match (one.seen.settled, replace && !moves || ready_to_move) {
                (true, true) => healthy.push((at, code)),
                (true, false) => {}
                (false, true) if !one.seen.ready => broken.push((at, code)),
                (false, true) if one.seen.in_force => healthy.insert(0, (at, code)),
                (false, true) => unsure.push((at, code)),
                (false, false) => {
                    let cause = failing.map(|failing| failing.reason);
                    if replace || moves {
                        stuck.get_or_insert(code);
                    } else if blocker.is_none() || matches!(blocker, Some((_, None))) && cause.is_some() {
                        blocker = Some((code, cause));
                    }
                }
            }
            if replace && !moves {
                self.tell_replace(svc, code, one.n, None);
            }
        }
        // Prepared instances follow the newest spec at once: nothing of them runs.
        for &(_, offset) in slots {
            if let Some(inst) = self.view(svc as usize, offset).prepared {
                let one = &mut self.memory.insts[inst as usize];
                if one.n != n && self.nodes.list[one.node as usize].held.is_none() {
                    one.to_n = n;
                    one.to = To::Be(AssignedState::Prepared);
                }
            }
        }
        // One without a running container first: the others may have become ready since their reports.
        broken.sort_by_key(|(at, _)| self.memory.insts[*at as usize].seen.running);
        let able: &[(u32, u64)] = match (&blocker, &unsure[..]) {
            (Some(_), _) => &[],
            // They serve nobody: nothing is lost by changing one.
            (None, _) if !broken.is_empty() => &broken,
            // It is its turn already, and the newest spec is what it should turn to.
            (None, [_]) if stuck.is_none() => &unsure,
            (None, []) if stuck.is_none() => &healthy,
            // Two that may go down: until their reports say which, none.
            (None, [first, _, ..]) => {
                blocker = Some((first.1, None));
                &[]
            }
            (None, _) => &[],
        };
        let mut turn = None;
        for &(at, code) in able {
            let moved = match self.stories.get(&(svc, code)) {
                Some(Story::Move { from, .. }) => Some(*from),
                Some(Story::Create { .. } | Story::Replace { .. } | Story::Update { .. }) | None => None,
            };
            let done = match moved {
                Some(from) => self.let_go(svc, from),
                None => self.replace(at, spec, n),
            };
            match done {
                Ok(()) => {
                    turn = Some((at, code));
                    break;
                }
                Err(port) => {
                    tally.port_taken.get_or_insert((code, port));
                }
            }
        }
        let waits_for = turn
            .map(|(_, code)| (code, None))
            .or(blocker)
            .or(stuck.map(|code| (code, None)))
            .or(tally.port_taken.map(|(code, _)| (code, None)));
        if let Some((first, cause)) = waits_for {
            let instance = self.name(svc, first);
            for &(_, code) in unsure.iter().chain(&broken).chain(&healthy) {
                if code == first && turn.is_some() {
                    continue;
                }
                let reason = match cause {
                    Some(cause) => Reason::ChangeFailed {
                        instance: instance.clone(),
                        cause,
                    },
                    None if tally.port_taken.is_some_and(|(slot, _)| slot == code) => Reason::NoNodeFits,
                    None => Reason::WaitsFor {
                        instance: instance.clone(),
                    },
                };
                match self.stories.get_mut(&(svc, code)) {
                    Some(Story::Replace { waits, .. } | Story::Move { waits, .. }) => *waits = Some(reason),
                    Some(Story::Create { .. } | Story::Update { .. }) | None => {}
                }
            }
        }
        self.tallies[svc as usize] = tally;
    }

    /// Gives an instance the newest number, where it is; Err with a port that its node has not free.
    fn replace(&mut self, at: u32, spec: Option<&'a ServiceSpec>, n: u64) -> Result<(), u16> {
        let wanted = spec.map_or(&[][..], |spec| &spec.container.ports);
        let held = held_ports(&self.nodes, &self.memory.insts[at as usize]);
        if !(wanted.is_empty() && held.is_empty()) {
            let ports = self.placer.exchange_ports(&self.nodes, &self.memory, at, wanted)?;
            self.ports.insert(at, ports);
        }
        let one = &mut self.memory.insts[at as usize];
        one.to = To::Be(AssignedState::Present);
        one.to_n = n;
        one.mint = one.token.is_none();
        Ok(())
    }

    /// Lets the old instance of a move go: its successor is prepared.
    fn let_go(&mut self, svc: u32, from: u32) -> Result<(), u16> {
        let guards = self.move_guards(svc, from);
        let one = &mut self.memory.insts[from as usize];
        one.to = To::Be(AssignedState::Absent);
        self.guards.entry(one.node).or_default().extend(guards);
        Ok(())
    }

    fn tell_replace(&mut self, svc: u32, code: u64, from: u64, waits: Option<Reason>) {
        let fields = match self.cost(svc, from) {
            Cost::Replace { fields } | Cost::AgentOnly { fields } => {
                fields.iter().map(|field| (*field).to_owned()).collect()
            }
            Cost::Nothing => Vec::new(),
        };
        self.stories.insert((svc, code), Story::Replace { from, fields, waits });
    }

    /// What taking down the old instance of a move rests on.
    fn move_guards(&self, svc: u32, inst: u32) -> Vec<Guard> {
        let at = self.memory.insts[inst as usize].node;
        let node = &self.nodes.list[at as usize];
        match node.cordon {
            Some((CordonMode::Drain | CordonMode::Retire, _)) => self.cordon_guard(at).into_iter().collect(),
            Some((CordonMode::Cordon, _)) | None => self.memory.svcs[svc as usize]
                .guard()
                .map(|guard| self.placement_guards(at, &guard))
                .unwrap_or_default(),
        }
    }
}
