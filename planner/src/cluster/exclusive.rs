//! Exclusive services: each slot has one holder at most, whatever is lost, and each holder a number above all before it.
//! `pass.rs`, `resolve.rs` and `turns.rs` ask here before a slot is given to anybody. Time alone gives nothing away: a
//! holder is waited for until its node's report says that it is gone, or a person that its host is off; and where it stops
//! by itself without the store, also he counts only when it must have stopped. Why so: decision 0034.

use schemas::names::NodeName;
use schemas::records::AssignedState;
use schemas::units::Span;

use super::memory::{Inst, To, service_of};
use super::pass::Pass;
use super::snapshot::{AcceptedHistory, Snapshot};
use super::types::{Guard, Reason};
use super::world::{NONE, Node};

/// A token is the restore epoch, and below it the store's revision of when it was given, in so many bits: both only rise. It
/// stays below 2^53, so that whoever reads JSON as floating point reads it right.
const REVISION_BITS: u32 = 40;

/// What no token that was ever given is above.
fn newest(snapshot: &Snapshot) -> u64 {
    let epoch = snapshot.cluster.restore_epoch.min(u64::from(u32::MAX) >> 9);
    (epoch << REVISION_BITS).saturating_add(u64::try_from(snapshot.revision).unwrap_or(0))
}

/// How long the instances of a life's numbers `from` to `to` take to stop by themselves on a node without the store, at most; None
/// where none does.
pub(super) fn stopped_after(history: Option<&AcceptedHistory>, from: u64, to: u64) -> Option<Span> {
    let records = history?.records.range(from.min(to)..=to);
    let specs = records
        .filter_map(|(_, entry)| entry.value.as_ref().ok())
        .filter_map(|record| service_of(&record.body));
    specs.filter_map(|spec| spec.stopped_after()).max()
}

/// Whoever may still hold a slot.
pub(super) enum Rival {
    /// An instance: known to run, or not known to be gone.
    Holds(u32),
    /// What this node runs is written down nowhere.
    Unknown(u32),
}

impl<'a> Pass<'a> {
    pub(super) fn is_exclusive(&self, svc: u32) -> bool {
        self.memory.svcs.get(svc as usize).is_some_and(|svc| svc.exclusive)
    }

    /// The numbers that an instance's node may have in force: from the one that it told last to the one that it was assigned.
    fn numbers(&self, one: &Inst) -> (u64, u64) {
        match self.reported(one) {
            Some(said) => {
                let next = said.next.as_ref().map_or(said.n, |next| next.n);
                (said.n.min(one.n), one.n.max(said.n).max(next))
            }
            None => (0, one.n),
        }
    }

    /// Whether nobody waits any more for what an exclusive instance's node says: a person has said that the host is off, and it
    /// has been away for long enough that it must have stopped, where it does that.
    pub(super) fn let_go_of(&self, inst: u32) -> bool {
        let one = &self.memory.insts[inst as usize];
        let node = &self.nodes.list[one.node as usize];
        if !node.off {
            return false;
        }
        let svc = self.memory.svcs.get(one.svc as usize);
        let history = svc.and_then(|svc| self.lives[svc.life].history);
        let (from, to) = self.numbers(one);
        passed(node, stopped_after(history, from, to))
    }

    /// Whether an instance may run, or may begin to by what its node has read already.
    fn may_run(&self, inst: u32) -> bool {
        let one = &self.memory.insts[inst as usize];
        let gone = one.assigned != NONE && one.was == AssignedState::Absent && one.to == To::Out;
        let never = one.was == AssignedState::Prepared && !one.seen.may_start && !one.seen.live;
        !gone && !never && !self.let_go_of(inst)
    }

    /// All that is known of a slot, of whatever life, and under names that no record knows.
    fn of_slot(&self, svc: u32, slot: u64) -> Vec<u32> {
        let one = &self.memory.svcs[svc as usize];
        let place = self.memory.place(svc as usize, slot);
        let heads = place.map(|place| self.memory.heads[place]);
        let heads = heads.into_iter().chain([one.beyond, one.ended]);
        let known = heads.flat_map(|head| self.memory.chain(head));
        let known = known.filter(|(_, inst)| inst.slot == slot).map(|(at, _)| at);
        let name = self.memory.slot(slot, &self.nodes);
        let strangers = self.strangers.iter().copied().filter(|at| {
            let inst = &self.memory.insts[*at as usize];
            let node = &self.nodes.list[inst.node as usize];
            let listed = node
                .assignment
                .and_then(|assignment| assignment.instances.get(inst.assigned as usize));
            let listed = listed.map(|one| (&one.namespace, &one.workload, &one.slot));
            let said = self
                .reported(inst)
                .map(|said| (&said.namespace, &said.workload, &said.slot));
            listed.or(said) == Some((one.namespace, &one.key.name, &name))
        });
        known.chain(strangers).collect()
    }

    /// Who keeps a slot from being given away, apart from these two instances.
    pub(super) fn rival(&self, svc: u32, slot: u64, but: [u32; 2]) -> Option<Rival> {
        let found = self.of_slot(svc, slot);
        let holds = found.iter().copied().find(|at| !but.contains(at) && self.may_run(*at));
        let unknown = || {
            let spec = self.memory.svcs[svc as usize].spec;
            let wait = spec.and_then(|spec| spec.stopped_after());
            let at = self
                .nodes
                .list
                .iter()
                .position(|node| is_blank(node) && !(node.off && passed(node, wait)));
            at.and_then(|at| u32::try_from(at).ok()).map(Rival::Unknown)
        };
        holds.map(Rival::Holds).or_else(unknown)
    }

    /// What giving a slot away rests on: that the nodes whose word is not waited for are still away.
    pub(super) fn absences(&self, svc: u32, slot: u64) -> Vec<Guard> {
        let found = self.of_slot(svc, slot).into_iter().filter(|at| self.let_go_of(*at));
        let held = found.map(|at| self.memory.insts[at as usize].node);
        let blank = { self.nodes.list.iter().zip(0..) }
            .filter(|(node, _)| is_blank(node))
            .map(|(_, at)| at);
        held.chain(blank)
            .map(|at| Guard::SessionAbsent(self.nodes.list[at as usize].name.clone()))
            .collect()
    }

    /// Why a slot is given to nobody yet, and who it is told of.
    pub(super) fn waits_for_holder(&mut self, svc: u32, slot: u64, rival: &Rival) -> Reason {
        let at = match rival {
            Rival::Holds(inst) => self.memory.insts[*inst as usize].node,
            Rival::Unknown(node) => *node,
        };
        let node: NodeName = self.nodes.list[at as usize].name.clone();
        let stops = match rival {
            Rival::Holds(inst) => {
                let one = &self.memory.insts[*inst as usize];
                let life = self.memory.svcs.get(one.svc as usize).map(|svc| svc.life);
                let (from, to) = self.numbers(one);
                stopped_after(life.and_then(|life| self.lives[life].history), from, to)
            }
            Rival::Unknown(_) => None,
        };
        let off = self.nodes.list[at as usize].off;
        let tally = &mut self.tallies[svc as usize];
        tally.held_by.get_or_insert((slot, at, stops.filter(|_| off)));
        Reason::MayRunOn {
            node,
            until: stops.filter(|_| off),
        }
    }

    /// The number of who becomes a slot's holder in this pass: above those of all before. What a node tells beyond what was ever
    /// given does not count.
    pub(super) fn new_token(&self, svc: u32, slot: u64) -> u64 {
        let newest = newest(self.snapshot);
        let found = self.of_slot(svc, slot).into_iter();
        let tokens = found.filter_map(|at| {
            let one = &self.memory.insts[at as usize];
            one.token.filter(|token| one.assigned != NONE || *token <= newest)
        });
        let above = tokens.max().map_or(0, |highest| highest.saturating_add(1));
        newest.max(above)
    }

    /// By what one of several holders is the rightful one: the last that was given the slot.
    pub(super) fn rank(&self, inst: u32) -> Option<u64> {
        let one = &self.memory.insts[inst as usize];
        let newest = newest(self.snapshot);
        let token = one.token.filter(|token| one.assigned != NONE || *token <= newest);
        token.filter(|_| self.is_exclusive(one.svc))
    }
}

/// Whether a node that is off has been away for as long as that.
fn passed(node: &Node<'_>, wait: Option<Span>) -> bool {
    wait.is_none_or(|wait| node.silent.is_some_and(|silent| silent >= wait))
}

/// Whether nobody can know what a node runs: neither its assignment nor its report is there, and it may have had both.
fn is_blank(node: &Node<'_>) -> bool {
    let unheard = node.entry.session.as_ref().is_none_or(|stored| stored.value.is_err());
    node.assignment.is_none() && node.report.is_none() && (node.forgotten || node.facts.is_some() && unheard)
}
