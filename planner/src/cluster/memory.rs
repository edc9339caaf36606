//! What runs where, as far as anybody knows: the instances of all nodes, from assignments and reports both, as one dense
//! array, chained by the slot they fill. Built once per pass; nothing is allocated per instance.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, NodeName, Slot};
use schemas::records::{AcceptedBody, AssignedState, ServiceStatus, Uid};
use schemas::service::{Mode, REPLACE_AFTER, ServiceSpec};
use schemas::units::Span;

use super::accept::{Body, InForce, Life, MAX_REPORTED, Standing};
use super::images::{self, ImageOf, Settled};
use super::memo::{Brief, Memo, Row, Seen, halves};
use super::snapshot::Snapshot;
use super::types::Guard;
use super::world::{NONE, Node, Nodes};

/// The most slots one service can have; the schema admits no more.
const MAX_REPLICAS: u32 = 100_000;
/// Slot numbers above this are nodes: `NODE_SLOT + index`.
const NODE_SLOT: u64 = 1 << 32;

/// One instance that a node's assignment or report knows.
#[derive(Clone, Debug)]
pub(super) struct Inst {
    pub node: u32,
    /// [`NONE`] when no accepted record knows its uid.
    pub svc: u32,
    /// See [`SlotTable`].
    pub slot: u64,
    /// Where in the node's assignment; [`NONE`] when it is only reported.
    pub assigned: u32,
    /// Where in the node's report; [`NONE`] when it is only assigned.
    pub reported: u32,
    /// The number it is assigned; the reported one when it is only reported.
    pub n: u64,
    /// Its assigned state; what the report amounts to when it is only reported.
    pub was: AssignedState,
    pub to: To,
    pub to_n: u64,
    /// The next instance in the same chain.
    pub next: u32,
    pub seen: Seen,
    /// Its address in the cluster's network, as assigned; the reported one when it is only reported.
    pub address: Option<Ipv4Addr>,
    /// Its token, as assigned; the reported one when it is only reported.
    pub token: Option<u64>,
    /// It becomes its slot's holder in this pass, or is made anew without ever having had one: it gets a new token.
    pub mint: bool,
    /// Its assignment does not say yet what its image was settled to be.
    pub repin: bool,
}

/// What becomes of an instance in its node's assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// As it is.
    Stay,
    Be(AssignedState),
    /// Not listed any more.
    Out,
}

impl Inst {
    /// The state it will be assigned; None when it will not be listed.
    pub(super) fn state(&self) -> Option<AssignedState> {
        match self.to {
            To::Stay => Some(self.was),
            To::Be(state) => Some(state),
            To::Out => None,
        }
    }
    /// Whether its node keeps it though nothing assigns it, and nothing will.
    pub(super) fn is_orphan(&self) -> bool {
        self.seen.orphaned && self.assigned == NONE && self.to == To::Out
    }
    /// Whether it will hold its place on its node.
    pub(super) fn stays(&self) -> bool {
        matches!(self.state(), Some(AssignedState::Present | AssignedState::Prepared))
    }
}

/// How many instances a service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Slots 1 to this.
    Count(u32),
    /// One on every node that fits.
    PerNode,
}

/// A service with an accepted spec in force, or with a deletion.
pub(super) struct Svc<'a> {
    pub key: &'a ResourceKey,
    pub namespace: &'a Namespace,
    pub life: usize,
    /// What is in force; None when deleted, held, or never accepted.
    pub spec: Option<&'a ServiceSpec>,
    pub deleted: bool,
    pub n: u64,
    /// The revision of the desired value, on which scaling down and changes of placement rest; None when it is not there,
    /// and so nothing is taken.
    pub desired_at: Option<i64>,
    pub wanted: Wanted,
    /// The first of its slots in [`Memory::heads`], and how many there are.
    pub first: usize,
    pub slots: u32,
    /// Chains of instances in slots beyond, and of earlier lives.
    pub beyond: u32,
    pub ended: u32,
    /// Its constraint set.
    pub set: u32,
    /// CPU and memory one instance reserves.
    pub need: (i64, i64),
    /// Whether it must not be near some other service.
    pub avoids: bool,
    /// What its image is.
    pub image: ImageOf,
    /// Whether its containers have their end in a network of Reeve's; of a deleted service that is not known.
    pub bridged: bool,
    /// How many of its first addresses its instances are told.
    pub seeds: u32,
    /// How long it waits for a node that is away; None for as long as it takes.
    pub wait: Option<Span>,
    /// Whether each of its slots may have one holder only.
    pub exclusive: bool,
}

impl Svc<'_> {
    /// What scaling down and changes of placement rest on.
    pub(super) fn guard(&self) -> Option<Guard> {
        self.desired_at.map(|mod_revision| Guard::DesiredAt {
            key: self.key.clone(),
            mod_revision,
        })
    }
}

/// Where a slot is filled just as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    /// [`NONE`] where it is not.
    pub node: u32,
    pub address: Option<Ipv4Addr>,
}

impl Plain {
    const NOT: Self = Self {
        node: NONE,
        address: None,
    };
}

/// Instances and services.
pub(super) struct Memory<'a> {
    pub insts: Vec<Inst>,
    /// For each node, where its instances begin in `insts`; one more at the end.
    pub starts: Vec<u32>,
    pub svcs: Vec<Svc<'a>>,
    /// For every slot of every service, its first instance.
    pub heads: Vec<u32>,
    /// For every slot of every service that one instance fills just as its service wants it (of the number in force,
    /// settled, on a node that is there and is not drained) where that is.
    pub plain: Vec<Plain>,
    /// Nodes that slots are named after and that are no nodes now.
    odd: Vec<NodeName>,
    uids: Uids,
    /// What this pass has found out about images.
    pub settled: Settled,
    /// Instances that say that nobody gives them their image.
    pub starved: Vec<u32>,
    /// Services of which nodes run a newer spec than any record: by the newest.
    pub regressed: BTreeMap<u32, u64>,
}

/// From a uid to its service: sorted by the uid's first 16 digits, with an index over the first bits.
struct Uids {
    sorted: Vec<Home>,
    index: Vec<u32>,
    shift: u32,
}

/// Where instances of a uid belong: what nearly every instance needs of its service, in one place.
#[derive(Clone, Copy)]
struct Home {
    uid: (u64, u64),
    svc: u32,
    /// Whether the uid is the service's current life.
    current: bool,
    /// Of a current life with numbered slots: the number in force, where its slots begin, and how many it wants.
    n: u64,
    first: usize,
    count: u32,
    /// Of a current life: what its image is.
    image: Settling,
}

/// [`ImageOf`], without what it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settling {
    Named,
    Open,
    Settled,
}

impl Home {
    fn new(uid: &Uid, at: usize, svc: &Svc<'_>, current: bool) -> Self {
        let numbered = current && svc.wanted != Wanted::PerNode;
        Self {
            uid: halves(uid),
            svc: index(at),
            current,
            n: svc.n,
            first: svc.first,
            count: if numbered { svc.slots } else { 0 },
            image: match svc.image {
                ImageOf::Open if current => Settling::Open,
                ImageOf::Settled(_) if current => Settling::Settled,
                ImageOf::Named | ImageOf::Open | ImageOf::Settled(_) => Settling::Named,
            },
        }
    }
    /// The place of a numbered slot that the service wants.
    fn place(&self, slot: u64) -> Option<usize> {
        let offset = (1..=u64::from(self.count)).contains(&slot).then_some(slot)? - 1;
        usize::try_from(offset).ok().map(|offset| self.first + offset)
    }
}

impl Uids {
    fn new(mut sorted: Vec<Home>) -> Self {
        // A uid that two names claim is the first one's.
        sorted.sort_unstable_by_key(|home| (home.uid, !home.current, home.svc));
        sorted.dedup_by_key(|home| home.uid);
        let bits = (usize::BITS - sorted.len().leading_zeros()).clamp(1, 20);
        let shift = 64 - bits;
        let mut index = vec![0_u32; (1 << bits) + 1];
        for home in &sorted {
            index[usize::try_from(home.uid.0 >> shift).unwrap_or(0) + 1] += 1;
        }
        for at in 1..index.len() {
            index[at] += index[at - 1];
        }
        Self { sorted, index, shift }
    }
    fn find(&self, uid: (u64, u64)) -> Option<Home> {
        let bucket = usize::try_from(uid.0 >> self.shift).ok()?;
        let range = self
            .sorted
            .get(self.index[bucket] as usize..self.index[bucket + 1] as usize)?;
        let at = range.binary_search_by_key(&uid, |home| home.uid).ok()?;
        Some(range[at])
    }
}

fn svc<'a>(
    life: &Life<'a>,
    index: usize,
    nodes: u32,
    first: usize,
    status: Option<&Arc<ServiceStatus>>,
    memo: &mut Memo,
) -> Option<Svc<'a>> {
    let key = life.key;
    let namespace = key.namespace.as_ref().filter(|_| key.kind == Kind::Service)?;
    let (spec, n) = match &life.standing {
        Standing::Live(InForce {
            n,
            body: Body::Service(spec),
            ..
        }) => (Some(*spec), *n),
        Standing::Live(InForce {
            body: Body::Node(_), ..
        })
        | Standing::Live(InForce {
            body: Body::ConfigFile(_),
            ..
        })
        | Standing::Never
        | Standing::Deleted
        | Standing::Held { .. } => (None, 0),
    };
    // The memo's entry is about the record, which a change of labels alone leaves in force under a new number.
    let brief = spec.map(|spec| match memo.entry(life.memo) {
        Some(entry) => *entry.brief.get_or_insert_with(|| Brief::of(spec)),
        None => Brief::of(spec),
    });
    let image = match (&life.standing, spec) {
        (Standing::Live(live), Some(spec)) if brief.is_some_and(|brief| brief.tagged) => {
            let known = memo.entry(life.memo).and_then(|entry| entry.image(live.n, status));
            known.unwrap_or_else(|| {
                let image = images::remembered(life, live.n, spec, status);
                if let Some(entry) = memo.entry(life.memo) {
                    entry.learn_image(live.n, status, image);
                }
                image
            })
        }
        (Standing::Live(_) | Standing::Never | Standing::Deleted | Standing::Held { .. }, _) => ImageOf::Named,
    };
    let (wanted, slots) = match brief.map(|brief| (brief.mode, brief.replicas.min(MAX_REPLICAS))) {
        Some((Mode::Replicated, count)) => (Wanted::Count(count), count),
        Some((Mode::Global, _)) => (Wanted::PerNode, nodes),
        None => (Wanted::Count(0), 0),
    };
    Some(Svc {
        key,
        namespace,
        life: index,
        spec,
        deleted: matches!(life.standing, Standing::Deleted),
        n,
        desired_at: life.desired.map(|entry| entry.mod_revision),
        wanted,
        first,
        slots,
        beyond: NONE,
        ended: NONE,
        set: NONE,
        avoids: brief.is_some_and(|brief| brief.avoids),
        image,
        bridged: brief.is_none_or(|brief| brief.bridged),
        seeds: brief.map_or(0, |brief| brief.seeds),
        wait: brief.map_or(Some(REPLACE_AFTER), |brief| brief.wait),
        exclusive: brief.is_some_and(|brief| brief.exclusive),
        need: brief.map(|brief| brief.need).unwrap_or_default(),
    })
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(NONE)
}

impl<'a> Memory<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, lives: &[Life<'a>], nodes: &Nodes<'a>, memo: &mut Memo) -> Self {
        let mut svcs = Vec::with_capacity(lives.len());
        let mut first = 0;
        let mut uids = Vec::with_capacity(lives.len());
        // Both are in order of keys.
        let mut statuses = snapshot.service_statuses.iter().peekable();
        for (at, life) in lives.iter().enumerate() {
            while statuses.next_if(|(key, _)| *key < life.key).is_some() {}
            let status = statuses.next_if(|(key, _)| *key == life.key);
            let status = status.and_then(|(_, stored)| stored.value.as_ref().ok());
            let Some(svc) = svc(life, at, index(nodes.list.len()), first, status, memo) else {
                continue;
            };
            first += svc.slots as usize;
            let current = match &life.standing {
                Standing::Live(live) => Some(&*live.uid),
                // What the last readable record says is the life that is held.
                Standing::Held { .. } => life.history.and_then(|history| {
                    history
                        .records
                        .values()
                        .rev()
                        .find_map(|entry| entry.value.as_ref().ok())
                        .map(|record| &record.uid)
                }),
                Standing::Never | Standing::Deleted => None,
            };
            let mut last: Option<&Uid> = None;
            for record in life
                .history
                .into_iter()
                .flat_map(|history| history.records.values())
                .filter_map(|entry| entry.value.as_ref().ok())
            {
                if last != Some(&record.uid) && current != Some(&record.uid) {
                    uids.push(Home::new(&record.uid, svcs.len(), &svc, false));
                }
                last = Some(&record.uid);
            }
            if let Some(uid) = current {
                uids.push(Home::new(uid, svcs.len(), &svc, true));
            }
            svcs.push(svc);
        }
        let mut memory = Self {
            insts: Vec::new(),
            starts: Vec::new(),
            svcs,
            heads: vec![NONE; first],
            plain: vec![Plain::NOT; first],
            odd: Vec::new(),
            uids: Uids::new(uids),
            settled: Settled::default(),
            starved: Vec::new(),
            regressed: BTreeMap::new(),
        };
        let count = nodes
            .list
            .iter()
            .map(|node| node.assignment.map_or(0, |a| a.instances.len()))
            .sum();
        memory.insts.reserve(count);
        memory.starts.reserve(nodes.list.len() + 1);
        let mut known = memo.nodes();
        let mut waiting = Vec::new();
        for (at, node) in nodes.list.iter().enumerate() {
            memory.starts.push(index(memory.insts.len()));
            for row in known.rows(node.name, node.assignment, node.report) {
                memory.add(index(at), node, nodes, row, &mut waiting);
            }
        }
        memory.starts.push(index(memory.insts.len()));
        memory.settled = images::settle(snapshot, lives, nodes, &mut memory.svcs, &mut memory.insts, &waiting);
        memory
    }

    fn add(&mut self, at: u32, node: &Node<'a>, nodes: &Nodes<'a>, row: &Row, waiting: &mut Vec<u32>) {
        let Row {
            uid,
            slot,
            assigned,
            reported,
            n,
            was,
            address,
            token,
            mut seen,
        } = *row;
        let listed = node
            .assignment
            .and_then(|assignment| assignment.instances.get(assigned as usize));
        let told = |reported: u32| node.report.and_then(|report| report.instances.get(reported as usize));
        seen.ready &= node.reachable();
        let home = self.uids.find(uid);
        let svc = home.map_or(NONE, |home| home.svc);
        let slot = match slot {
            Some(number) => u64::from(number),
            None if svc == NONE => 0,
            None => match listed.map(|one| &one.slot).or(told(reported).map(|one| &one.slot)) {
                Some(slot) => self.code(slot, nodes),
                None => 0,
            },
        };
        let mut inst = Inst {
            node: at,
            svc,
            slot: if svc == NONE { 0 } else { slot },
            assigned,
            reported,
            n,
            was,
            to: To::Stay,
            to_n: n,
            next: NONE,
            seen,
            address,
            token,
            mint: false,
            repin: false,
        };
        if assigned != NONE {
            if was == AssignedState::Absent && seen.confirmed_gone && node.held.is_none() {
                inst.to = To::Out;
            }
        } else if svc == NONE || (node.rewrite && seen.orphaned) {
            inst.to = To::Out;
        }
        let here = index(self.insts.len());
        if let Some(home) = home {
            let numbered = home.place(slot);
            let place = match numbered {
                Some(place) => Some(place),
                None if home.current => Self::place_of_node(&self.svcs[home.svc as usize], slot),
                None => None,
            };
            let head = match place {
                Some(place) => &mut self.heads[place],
                None if home.current => &mut self.svcs[home.svc as usize].beyond,
                None => &mut self.svcs[home.svc as usize].ended,
            };
            let alone = *head == NONE;
            // A second entry of the same instance on the same node is the first one's shadow.
            let uid_of = |one: &Inst| {
                let listed = node
                    .assignment
                    .and_then(|assignment| assignment.instances.get(one.assigned as usize));
                let uid = listed.map(|one| &one.uid).or(told(one.reported).map(|one| &one.uid));
                uid.map(halves)
            };
            let here_too = Chain {
                insts: &self.insts,
                next: *head,
            }
            .take_while(|(_, one)| one.node == at)
            .any(|(_, one)| one.slot == slot && uid_of(one) == Some(uid));
            if here_too {
                inst.to = To::Out;
                inst.svc = NONE;
            } else {
                inst.next = *head;
                *head = here;
                if seen.starved {
                    self.starved.push(here);
                }
                let runs = was != AssignedState::Absent && !seen.orphaned;
                let newest = self.svcs[home.svc as usize].n;
                if home.current && runs && n > newest && newest > 0 && n <= MAX_REPORTED {
                    let known = self.regressed.entry(home.svc).or_default();
                    *known = n.max(*known);
                }
                let unpinned = assigned != NONE && was != AssignedState::Absent && !seen.pinned;
                match home.image {
                    Settling::Settled if unpinned && n == home.n => inst.repin = true,
                    Settling::Settled if unpinned => waiting.push(here),
                    // What an assignment says of an open service, its status has lost.
                    Settling::Open if seen.imaged && assigned != NONE => waiting.push(here),
                    Settling::Named | Settling::Open if unpinned && seen.settling && n != home.n => waiting.push(here),
                    Settling::Named | Settling::Open | Settling::Settled => {}
                }
                if let Some(place) = numbered {
                    let plain = alone
                        && inst.to == To::Stay
                        && was == AssignedState::Present
                        && assigned != NONE
                        && n == home.n
                        && seen.settled
                        && node.reachable()
                        && !node.drained();
                    self.plain[place] = if plain { Plain { node: at, address } } else { Plain::NOT };
                }
            }
        }
        self.insts.push(inst);
    }

    /// Where the chain of a slot that is named after a node begins, when the service wants that slot.
    fn place_of_node(svc: &Svc<'_>, slot: u64) -> Option<usize> {
        let wants = svc.wanted == Wanted::PerNode && slot < NODE_SLOT + u64::from(svc.slots);
        let offset = slot.checked_sub(NODE_SLOT).filter(|_| wants)?;
        usize::try_from(offset).ok().map(|offset| svc.first + offset)
    }

    /// The code of the slot at this place of a service.
    pub(super) fn code_at(svc: &Svc<'_>, offset: u32) -> u64 {
        match svc.wanted {
            Wanted::Count(_) => u64::from(offset) + 1,
            Wanted::PerNode => NODE_SLOT + u64::from(offset),
        }
    }

    /// The place of a slot that its service wants, in [`Memory::heads`].
    pub(super) fn place(&self, svc: usize, slot: u64) -> Option<usize> {
        let svc = self.svcs.get(svc)?;
        let offset = slot.checked_sub(Self::code_at(svc, 0))?;
        let offset = Some(offset).filter(|offset| *offset < u64::from(svc.slots))?;
        usize::try_from(offset).ok().map(|offset| svc.first + offset)
    }

    fn code(&mut self, slot: &Slot, nodes: &Nodes<'_>) -> u64 {
        match slot {
            Slot::Index(number) => u64::from(*number),
            Slot::Node(name) => {
                let at = nodes.find(name).map_or_else(
                    || {
                        let known = self.odd.iter().position(|odd| odd == name).unwrap_or_else(|| {
                            self.odd.push(name.clone());
                            self.odd.len() - 1
                        });
                        nodes.list.len() + known
                    },
                    |found| found as usize,
                );
                NODE_SLOT + at as u64
            }
        }
    }

    /// Whether the code is that of a slot named after what is no node: such codes stand in no order.
    pub(super) fn is_odd(&self, code: u64, nodes: &Nodes<'_>) -> bool {
        code >= NODE_SLOT + nodes.list.len() as u64
    }

    /// The slot of a code.
    pub(super) fn slot(&self, code: u64, nodes: &Nodes<'_>) -> Slot {
        match code.checked_sub(NODE_SLOT).and_then(|at| usize::try_from(at).ok()) {
            None => Slot::Index(u32::try_from(code).unwrap_or(NONE)),
            Some(at) => match nodes.list.get(at) {
                Some(node) => Slot::Node(node.name.clone()),
                None => Slot::Node(self.odd[at - nodes.list.len()].clone()),
            },
        }
    }

    /// The instances of a chain.
    pub(super) fn chain(&self, head: u32) -> Chain<'_> {
        Chain {
            insts: &self.insts,
            next: head,
        }
    }
    /// The instances in the slot at this place of a service.
    pub(super) fn in_slot(&self, svc: usize, offset: u32) -> Chain<'_> {
        self.chain(self.heads[self.svcs[svc].first + offset as usize])
    }
}

/// See [`Memory::chain`].
pub(super) struct Chain<'m> {
    insts: &'m [Inst],
    next: u32,
}
impl<'m> Iterator for Chain<'m> {
    type Item = (u32, &'m Inst);
    fn next(&mut self) -> Option<Self::Item> {
        let here = self.next;
        let inst = self.insts.get(here as usize)?;
        self.next = inst.next;
        Some((here, inst))
    }
}

/// The service spec of an accepted record, when that is one.
pub(super) fn service_of(body: &AcceptedBody) -> Option<&ServiceSpec> {
    match body {
        AcceptedBody::Service(spec) => Some(spec),
        AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => None,
    }
}
