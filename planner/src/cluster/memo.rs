//! What a pass finds out about values that the next pass will most likely find unchanged: a node's assignment and report
//! laid side by side, which desired specs equal their accepted records, and what of a spec every pass needs. An entry
//! counts only while the snapshot holds the very same values (the same `Arc`s, which the memo keeps alive), and says
//! nothing that they do not: a plan with a memo is the plan without one, only sooner. The leader keeps one from pass to pass.

use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::vec::IntoIter;

use ipnet::{Ipv4Net, Ipv6Net};
use schemas::container::NetworkMode;
use schemas::keys::ResourceKey;
use schemas::names::{NodeName, Slot};
use schemas::records::{
    Accepted, Assigned, AssignedImage, AssignedState, Assignment, Endpoints, FailingReason, Phase, Report,
    ReportedInstance, ServiceStatus, Uid,
};
use schemas::service::{Mode, ServiceSpec};
use schemas::units::Span;

use super::images::ImageOf;
use super::memory::Plain;
use super::world::NONE;
use crate::change::is_tagged;

/// What is known from the pass before. A new one knows nothing.
#[derive(Debug, Default)]
pub struct Memo {
    /// In order of names.
    nodes: Vec<NodeRows>,
    /// In order of keys.
    equal: Vec<Equal>,
    /// How many numbers of constraint sets are in use; see [`Equal::set`].
    sets: u32,
    /// Which nodes there are with which subnets, in the cluster's network, and which number that is.
    layout: Layout,
}

#[derive(Debug, Default)]
struct Layout {
    number: u64,
    names: Vec<NodeName>,
    subnets: Vec<Option<Ipv4Net>>,
    subnets6: Vec<Option<Ipv6Net>>,
}

/// That a record of endpoints says what is so: for a spec, what follows from these.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Published {
    pub layout: u64,
    /// The port for whose sake none of it is open everywhere.
    pub barred: Option<u16>,
    pub ends: Vec<Plain>,
}

/// One node's assignment and report, laid side by side.
#[derive(Debug)]
struct NodeRows {
    name: NodeName,
    assignment: Option<Arc<Assignment>>,
    report: Option<Arc<Report>>,
    rows: Vec<Row>,
}

/// A desired spec that equals the accepted one.
#[derive(Debug)]
pub(super) struct Equal {
    key: ResourceKey,
    desired: Arc<ServiceSpec>,
    record: Arc<Accepted>,
    pub brief: Option<Brief>,
    /// Two services with the same number have equal constraints.
    pub set: Option<u32>,
    /// The stored status, and that it says what is so when every slot is just as desired.
    pub settled: Option<Settled>,
    /// The stored record of its endpoints, which says what is so where every slot is just as desired.
    pub published: Option<(Arc<Endpoints>, Published)>,
    /// What its image is by the stored status, for this number.
    image: Option<(u64, Option<Arc<ServiceStatus>>, ImageOf)>,
}

impl Equal {
    /// What its image is, where it was found out from this very status.
    pub(super) fn image(&self, n: u64, status: Option<&Arc<ServiceStatus>>) -> Option<ImageOf> {
        let (of, from, image) = self.image.as_ref()?;
        (*of == n && same(from.as_ref(), status)).then_some(*image)
    }
    pub(super) fn learn_image(&mut self, n: u64, status: Option<&Arc<ServiceStatus>>, image: ImageOf) {
        self.image = Some((n, status.cloned(), image));
    }
}

/// What every pass needs of a spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brief {
    pub mode: Mode,
    pub replicas: u32,
    /// CPU and memory one instance reserves.
    pub need: (i64, i64),
    /// Whether it must not be near some other service.
    pub avoids: bool,
    /// Whether what its image stands for has to be settled.
    pub tagged: bool,
    /// Whether its containers have their end in a network of Reeve's.
    pub bridged: bool,
    /// How many of its first addresses its instances are told.
    pub seeds: u32,
    /// How long it waits for a node that is away; None for as long as it takes.
    pub wait: Option<Span>,
    /// Whether each slot may have one holder only.
    pub exclusive: bool,
}

impl Brief {
    pub(super) fn of(spec: &ServiceSpec) -> Self {
        let (cpu, memory) = spec.container.resources.reserved();
        Self {
            mode: spec.mode,
            replicas: spec.replicas.unwrap_or(1),
            need: (i64::from(cpu.millis), i64::try_from(memory.0).unwrap_or(i64::MAX)),
            avoids: spec.placement.anti_affinity.iter().any(|term| term.weight.is_none()),
            tagged: is_tagged(spec),
            bridged: spec.container.network_mode == NetworkMode::Bridge,
            seeds: spec.seeds.unwrap_or(0),
            wait: spec.replace_after(),
            exclusive: spec.exclusive && spec.mode == Mode::Replicated,
        }
    }
}

/// See [`Equal::settled`].
#[derive(Debug)]
pub(super) struct Settled {
    pub stored: Arc<ServiceStatus>,
    pub revision: i64,
    pub n: u64,
    pub count: u32,
}

/// One instance that a node's assignment or report knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub uid: (u64, u64),
    /// Its number; None when it is named after a node.
    pub slot: Option<u32>,
    /// Where in the assignment; [`NONE`] when it is only reported.
    pub assigned: u32,
    /// Where in the report; [`NONE`] when it is only assigned.
    pub reported: u32,
    /// The number it is assigned; the reported one when it is only reported.
    pub n: u64,
    /// Its assigned state; what the report amounts to when it is only reported.
    pub was: AssignedState,
    /// Its address in the cluster's network, as assigned; the reported one when it is only reported.
    pub address: Option<Ipv4Addr>,
    /// Its token, as assigned; the reported one when it is only reported.
    pub token: Option<u64>,
    pub seen: Seen,
}

/// What the report says, as far as decisions need it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// A container may be there: not only on its way.
    pub live: bool,
    pub running: bool,
    pub ready: bool,
    /// The assigned number is in force, ready, and nothing fails.
    pub settled: bool,
    pub in_force: bool,
    pub prepared: bool,
    /// It is on its way by an older assignment than the stored one: whatever that one says, it may start any moment.
    pub may_start: bool,
    pub orphaned: bool,
    /// The report is about this assignment or a newer one, and does not list it.
    pub confirmed_gone: bool,
    /// The assignment or the report says what its image is; the assignment does; it says that this is to be settled.
    pub imaged: bool,
    pub pinned: bool,
    pub settling: bool,
    /// Its image is settled, and neither its registry nor a node that it was told of gives it.
    pub starved: bool,
    /// The report is about an older assignment than the stored one.
    pub stale: bool,
}

pub(super) fn halves(uid: &Uid) -> (u64, u64) {
    let whole = u128::from_be_bytes(*uid.bytes());
    let half = |part: u128| u64::try_from(part & u128::from(u64::MAX)).unwrap_or(0);
    (half(whole >> 64), half(whole))
}

fn same<T>(old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Goes through the nodes of a memo in order of names, and writes the next memo.
pub(super) struct NodesMemo<'m> {
    old: Peekable<IntoIter<NodeRows>>,
    new: &'m mut Vec<NodeRows>,
}

impl NodesMemo<'_> {
    /// A node's rows. Nodes are asked for in order of names, each once.
    pub(super) fn rows(
        &mut self,
        name: &NodeName,
        assignment: Option<&Arc<Assignment>>,
        report: Option<&Arc<Report>>,
    ) -> &[Row] {
        while self.old.next_if(|old| old.name < *name).is_some() {}
        let known = self.old.next_if(|old| {
            old.name == *name && same(old.assignment.as_ref(), assignment) && same(old.report.as_ref(), report)
        });
        self.new.push(known.unwrap_or_else(|| NodeRows {
            name: name.clone(),
            assignment: assignment.cloned(),
            report: report.cloned(),
            rows: rows(assignment.map(|a| &**a), report.map(|r| &**r)),
        }));
        self.new.last().map_or(&[], |node| &node.rows)
    }
}

/// Goes through the equal specs of a memo in order of keys, and writes the next memo.
pub(super) struct EqualMemo<'m> {
    old: Peekable<IntoIter<Equal>>,
    new: &'m mut Vec<Equal>,
}

impl EqualMemo<'_> {
    /// Where the memo has it that these are equal, if it does. Asked in order of keys, at most once for each.
    pub(super) fn knows(
        &mut self,
        key: &ResourceKey,
        desired: &Arc<ServiceSpec>,
        record: &Arc<Accepted>,
    ) -> Option<u32> {
        let these = |old: &Equal| Arc::ptr_eq(&old.desired, desired) && Arc::ptr_eq(&old.record, record);
        let mut known = self.old.next_if(these);
        if known.is_none() {
            while self.old.next_if(|old| old.key < *key).is_some() {}
            known = self.old.next_if(these);
        }
        self.new.push(known?);
        Some(index(self.new.len() - 1))
    }

    /// These were compared, and are equal; answers where the memo has it.
    pub(super) fn learn(&mut self, key: &ResourceKey, desired: &Arc<ServiceSpec>, record: &Arc<Accepted>) -> u32 {
        self.new.push(Equal {
            key: key.clone(),
            desired: Arc::clone(desired),
            record: Arc::clone(record),
            brief: None,
            set: None,
            settled: None,
            published: None,
            image: None,
        });
        index(self.new.len() - 1)
    }
}

impl Memo {
    /// An entry that [`EqualMemo`] answered in this pass.
    pub(super) fn entry(&mut self, at: u32) -> Option<&mut Equal> {
        self.equal.get_mut(at as usize)
    }
    /// A new number for a constraint set.
    pub(super) fn new_set(&mut self) -> u32 {
        self.sets += 1;
        self.sets - 1
    }
    /// How many numbers of sets are in use. When most are of services that are gone, they are given anew.
    pub(super) fn sets(&mut self) -> u32 {
        if self.sets as usize > 1_000 + 2 * self.equal.len() {
            self.sets = 0;
            self.equal.iter_mut().for_each(|entry| entry.set = None);
        }
        self.sets
    }
    /// The number of a layout of the cluster's network: another one where anything of it differs.
    pub(super) fn layout<'n>(
        &mut self,
        names: impl Iterator<Item = &'n NodeName>,
        subnets: &[Option<Ipv4Net>],
        subnets6: &[Option<Ipv6Net>],
    ) -> u64 {
        let known = &mut self.layout;
        let names: Vec<&NodeName> = names.collect();
        let same =
            known.names.iter().eq(names.iter().copied()) && known.subnets == subnets && known.subnets6 == subnets6;
        if !same {
            known.number += 1;
            known.names = names.into_iter().cloned().collect();
            known.subnets = subnets.to_vec();
            known.subnets6 = subnets6.to_vec();
        }
        known.number
    }
    pub(super) fn nodes(&mut self) -> NodesMemo<'_> {
        let old = std::mem::take(&mut self.nodes);
        self.nodes.reserve(old.len());
        NodesMemo {
            old: old.into_iter().peekable(),
            new: &mut self.nodes,
        }
    }
    pub(super) fn equal(&mut self) -> EqualMemo<'_> {
        let old = std::mem::take(&mut self.equal);
        self.equal.reserve(old.len());
        EqualMemo {
            old: old.into_iter().peekable(),
            new: &mut self.equal,
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

/// Lays an assignment and a report side by side.
fn rows(assignment: Option<&Assignment>, report: Option<&Report>) -> Vec<Row> {
    let assigned: &[Assigned] = assignment.map_or(&[], |assignment| &assignment.instances);
    let reported: &[ReportedInstance] = report.map_or(&[], |report| &report.instances);
    let newest = report
        .zip(assignment)
        .is_some_and(|(report, assignment)| report.applied >= assignment.order);
    let mut rows = Vec::with_capacity(assigned.len().max(reported.len()));
    // Both are sorted alike, so that the same place usually holds the same instance; else the report is sorted here.
    let mut sorted: Option<Vec<u32>> = None;
    let mut taken = 0_usize;
    let mut matched: Vec<bool> = Vec::new();
    let name = |at: u32| {
        let one = &reported[at as usize];
        (&one.uid, &one.slot)
    };
    for (place, entry) in assigned.iter().enumerate() {
        let same = |one: &&ReportedInstance| one.uid == entry.uid && one.slot == entry.slot;
        let found = if sorted.is_none() && reported.get(taken).as_ref().is_some_and(same) {
            taken += 1;
            Some(taken - 1)
        } else {
            let order = sorted.get_or_insert_with(|| {
                let mut order: Vec<u32> = (0..index(reported.len())).collect();
                order.sort_by(|a, b| name(*a).cmp(&name(*b)));
                matched = vec![false; reported.len()];
                matched[..taken].fill(true);
                order
            });
            let found = order.binary_search_by(|one| name(*one).cmp(&(&entry.uid, &entry.slot)));
            found.ok().map(|found| order[found] as usize)
        };
        if let (Some(found), true) = (found, sorted.is_some()) {
            matched[found] = true;
        }
        let found = found.map(|found| (found, &reported[found]));
        rows.extend(row(Some((place, entry)), found, newest));
    }
    for (place, entry) in reported.iter().enumerate() {
        let known = if sorted.is_some() {
            matched[place]
        } else {
            place < taken
        };
        if !known {
            rows.extend(row(None, Some((place, entry)), newest));
        }
    }
    rows
}

fn row(
    assigned: Option<(usize, &Assigned)>,
    reported: Option<(usize, &ReportedInstance)>,
    newest: bool,
) -> Option<Row> {
    let said = reported.map(|(_, one)| one);
    let (uid, slot) = match (assigned, said) {
        (Some((_, one)), _) => (&one.uid, &one.slot),
        (None, Some(one)) => (&one.uid, &one.slot),
        (None, None) => return None,
    };
    let n = assigned.map(|(_, one)| one.n).or(said.map(|one| one.n)).unwrap_or(0);
    let was = match (assigned, said) {
        (Some((_, one)), _) => one.state,
        // What is on its way may be so by an order to run: it starts any moment.
        (None, Some(one)) if one.container.is_none() && one.phase == Phase::Prepared => AssignedState::Prepared,
        (None, _) => AssignedState::Present,
    };
    let mut seen = said.map_or(Seen::default(), |one| {
        let in_force = one.n == n && one.next.is_none();
        Seen {
            live: !matches!(one.phase, Phase::Pending | Phase::Pulling { .. } | Phase::Prepared),
            running: one.phase == Phase::Running,
            ready: one.ready,
            settled: one.ready && in_force && one.failing.is_none() && one.phase == Phase::Running,
            in_force,
            prepared: one.phase == Phase::Prepared && one.n == n && one.failing.is_none(),
            may_start: !newest && one.phase != Phase::Prepared,
            orphaned: one.phase == Phase::Orphaned,
            confirmed_gone: false,
            imaged: one.image.is_some() || one.next.as_ref().is_some_and(|next| next.image.is_some()),
            pinned: false,
            settling: false,
            starved: one
                .failing
                .as_ref()
                .is_some_and(|failing| failing.reason == FailingReason::ImagePullFailed && failing.n == n),
            stale: !newest,
        }
    });
    seen.confirmed_gone = newest && said.is_none();
    seen.pinned = assigned.is_some_and(|(_, one)| matches!(one.image, Some(AssignedImage::Settled(_))));
    seen.settling = assigned.is_some_and(|(_, one)| one.image == Some(AssignedImage::Settling));
    seen.imaged |= seen.pinned;
    seen.starved &= seen.pinned;
    let place = |place: Option<usize>| place.map_or(NONE, index);
    Some(Row {
        uid: halves(uid),
        slot: match slot {
            Slot::Index(number) => Some(*number),
            Slot::Node(_) => None,
        },
        assigned: place(assigned.map(|(place, _)| place)),
        reported: place(reported.map(|(place, _)| place)),
        n,
        was,
        address: match (assigned, said) {
            (Some((_, one)), _) => one.address,
            (None, said) => said.and_then(|one| one.addresses.iter().find_map(v4)),
        },
        token: match (assigned, said) {
            (Some((_, one)), _) => one.token,
            (None, said) => said.and_then(|one| one.token),
        },
        seen,
    })
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}
