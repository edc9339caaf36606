//! The cluster's network: which subnet each node has, which address each instance, and what is published of both. `pass.rs`
//! asks when it is known what runs where, `output.rs` and `assign.rs` lay it out. What is given stays: a node keeps its
//! subnet while any record of it is there, a slot its address while it is on its node. What is new gets the lowest that is
//! free, in order of names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use schemas::container::PortSpec;
use schemas::names::{Label, ResourceName};
use schemas::records::network::{address6, usable};
use schemas::records::{
    AssignedNetwork, AssignedState, Endpoint, EndpointPort, Endpoints, Everywhere, NetworkSettings, Peer,
    SchemaVersion, Seeds, Uid, Verdict,
};

use super::memo::{Memo, Published};
use super::memory::{Inst, Memory, Wanted};
use super::pass::Pass;
use super::snapshot::Snapshot;
use super::types::NetworkWrites;
use super::world::{NONE, Node, Nodes};

/// Addresses that a node may keep back, as its report says; more are not read.
const MAX_LINGERING: usize = 4_096;
/// Instances that one record of endpoints has, at most: with that many it stays under the limit of a stored value.
const MAX_ENDPOINTS: usize = 8_000;

/// Who has which subnet.
pub(super) struct Net<'a> {
    pub settings: &'a NetworkSettings,
    /// By node.
    pub subnets: Vec<Option<Ipv4Net>>,
    /// By node, where there is IPv6.
    subnets6: Vec<Option<Ipv6Net>>,
    /// By node, whether its host takes part.
    exposed: Vec<bool>,
}

/// Which addresses this pass gives.
#[derive(Default)]
pub(super) struct Given {
    /// By instance: where it has none yet, not one of its node's, or another's. None where there is none left.
    pub known: BTreeMap<u32, Option<Ipv4Addr>>,
    /// By place among the new.
    new: Vec<Option<Ipv4Addr>>,
    /// For every slot of every service, who is new in it; [`NONE`] where nobody is, and empty where nobody is anywhere.
    places: Vec<u32>,
}

impl Given {
    /// The address of one that is new.
    pub(super) fn to_new(&self, at: u32) -> Option<Ipv4Addr> {
        self.new.get(at as usize).copied().flatten()
    }
    /// Who is new in a slot.
    fn new_at(&self, place: usize) -> Option<u32> {
        self.places.get(place).copied().filter(|at| *at != NONE)
    }
}

/// The addresses of a subnet that somebody has.
struct Used {
    first: u32,
    bits: Vec<u64>,
}

impl Used {
    fn none_of(subnet: &Ipv4Net) -> Self {
        let all = usable(subnet);
        let count = (all.end() + 1).saturating_sub(*all.start());
        Self {
            first: *all.start(),
            bits: vec![0; (count as usize).div_ceil(64)],
        }
    }
    fn place(&self, number: u32) -> (usize, u64) {
        let offset = number.saturating_sub(self.first) as usize;
        (offset / 64, 1 << (offset % 64))
    }
    /// Whether nobody had it until now. The number is one of the usable.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = self.place(number);
        let free = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        free
    }
    fn contains(&self, number: u32) -> bool {
        let (word, bit) = self.place(number);
        self.bits[word] & bit != 0
    }
}

/// Which subnet a record says is a node's.
type Claim<'c> = dyn Fn(&Node<'_>) -> Option<Ipv4Net> + 'c;

/// A subnet that a record says is this node's.
fn claimed<'s>(net: &NetworkSettings, subnet: Option<&'s Ipv4Net>) -> Option<(u32, &'s Ipv4Net)> {
    let subnet = subnet?;
    net.number(subnet).map(|number| (number, subnet))
}

impl<'a> Net<'a> {
    /// None where the cluster has no network of its own.
    pub(super) fn new(snapshot: &'a Snapshot, nodes: &Nodes<'_>) -> Option<Self> {
        let settings = snapshot.cluster.network.as_ref()?;
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        let mut subnets: Vec<Option<Ipv4Net>> = vec![None; nodes.list.len()];
        // What a leader wrote goes before what a node says.
        let assigned = |node: &Node<'_>| node.assignment.and_then(|one| Some(one.network.as_ref()?.subnet));
        let published = |node: &Node<'_>| {
            let stored = snapshot.peers.get(node.name)?;
            stored.value.as_ref().ok().map(|peer| peer.subnet)
        };
        let reported = |node: &Node<'_>| node.report.and_then(|one| Some(one.network.as_ref()?.subnet));
        let claims: [&Claim<'_>; 3] = [&assigned, &published, &reported];
        for claim in claims {
            for (node, subnet) in nodes.list.iter().zip(&mut subnets) {
                if subnet.is_none()
                    && let Some((number, own)) = claimed(settings, claim(node).as_ref())
                    && taken.insert(number)
                {
                    *subnet = Some(*own);
                }
            }
        }
        let mut next = 0;
        for (node, subnet) in nodes.list.iter().zip(&mut subnets) {
            let may = node.facts.is_some() && node.verdict != Verdict::Retired && node.held.is_none();
            if subnet.is_some() || !may {
                continue;
            }
            while taken.contains(&next) {
                next += 1;
            }
            *subnet = settings.subnet(next);
            next += u32::from(subnet.is_some());
        }
        let sixth = |subnet: &Option<Ipv4Net>| settings.subnet6(settings.number(subnet.as_ref()?)?);
        let subnets6 = subnets.iter().map(sixth).collect();
        let exposed = nodes.list.iter().map(|node| node.spec.is_some_and(|spec| spec.exposed));
        let exposed = exposed.collect();
        Some(Self {
            settings,
            subnets,
            subnets6,
            exposed,
        })
    }

    /// What a node's assignment says of the network.
    pub(super) fn assigned(&self, node: u32) -> Option<AssignedNetwork> {
        let subnet = self.subnets.get(node as usize).copied().flatten()?;
        Some(AssignedNetwork {
            settings: self.settings.clone(),
            subnet,
            subnet6: self.subnets6[node as usize],
            exposed: self.exposed[node as usize],
        })
    }

    /// How many more instances than none a node has addresses for.
    pub(super) fn room(&self, node: u32, is: &Node<'_>) -> u32 {
        let linkless = is.facts.and_then(|facts| facts.link.as_ref());
        if linkless.is_some_and(|link| link.kind.is_none()) {
            return 0;
        }
        let Some(subnet) = self.subnets.get(node as usize).copied().flatten() else {
            return 0;
        };
        let all = usable(&subnet);
        let lingering = is.report.and_then(|report| report.network.as_ref());
        let lingering = lingering.map_or(0, |network| network.lingering.len().min(MAX_LINGERING));
        let count = (all.end() + 1).saturating_sub(*all.start());
        count.saturating_sub(u32::try_from(lingering).unwrap_or(NONE))
    }
}

fn within(subnet: &Ipv4Net, address: Option<Ipv4Addr>) -> Option<u32> {
    let number = u32::from(address?);
    usable(subnet).contains(&number).then_some(number)
}

impl Pass<'_> {
    /// Gives every instance that is to have an address one that nobody has.
    pub(super) fn give_addresses(&mut self) {
        let Some(net) = &self.net else { return };
        let mut given = Given::default();
        if !self.news.is_empty() {
            given.new = vec![None; self.news.len()];
            given.places = vec![NONE; self.memory.heads.len()];
        }
        for (at, (new, _)) in self.news.iter().enumerate() {
            let place = self.memory.place(new.want.svc as usize, new.want.slot);
            if let Some(place) = place.and_then(|place| given.places.get_mut(place)) {
                *place = u32::try_from(at).unwrap_or(NONE);
            }
        }
        let (order, begins) = self.news_by_node();
        for (at, subnet) in net.subnets.iter().enumerate() {
            let Some(subnet) = subnet else { continue };
            let id = u32::try_from(at).unwrap_or(NONE);
            let (from, to) = (self.memory.starts[at], self.memory.starts[at + 1]);
            let insts = &self.memory.insts[from as usize..to as usize];
            let news = &order[begins[at]..begins[at + 1]];
            let lacks = |inst: &Inst| within(subnet, inst.address).is_none() && self.is_bridged(inst);
            if news.is_empty() && !insts.iter().any(lacks) {
                continue;
            }
            self.give_on(id, subnet, news, &mut given);
        }
        self.given = given;
    }

    /// Whether an instance stays, and has its end in a network of Reeve's.
    pub(super) fn is_bridged(&self, inst: &Inst) -> bool {
        inst.stays() && self.memory.svcs.get(inst.svc as usize).is_some_and(|svc| svc.bridged)
    }

    fn give_on(&self, at: u32, subnet: &Ipv4Net, news: &[u32], given: &mut Given) {
        let node = &self.nodes.list[at as usize];
        let (from, to) = (self.memory.starts[at as usize], self.memory.starts[at as usize + 1]);
        let mut used = Used::none_of(subnet);
        // Service, slot, whether it is new, and its place among the known or the new.
        let mut wants: Vec<(u32, u64, bool, u32)> = Vec::new();
        // Those that leave, by service and slot.
        let mut leaving: Vec<(u32, u64, u32)> = Vec::new();
        // Those that are assigned go before those that are only reported, which anybody may say.
        for assigned in [true, false] {
            for id in from..to {
                let inst = &self.memory.insts[id as usize];
                if assigned && inst.state() == Some(AssignedState::Absent) && within(subnet, inst.address).is_some() {
                    leaving.push((inst.svc, inst.slot, id));
                }
                if (inst.assigned != NONE) != assigned || inst.state().is_none() {
                    continue;
                }
                let own = within(subnet, inst.address).is_some_and(|number| used.insert(number));
                if !own && self.is_bridged(inst) {
                    wants.push((inst.svc, inst.slot, false, id));
                }
            }
        }
        for id in news {
            let want = &self.news[*id as usize].0.want;
            if self.memory.svcs[want.svc as usize].bridged {
                wants.push((want.svc, want.slot, true, *id));
            }
        }
        wants.sort_unstable();
        leaving.sort_unstable();
        let lingering = node.report.and_then(|report| report.network.as_ref());
        let lingering = lingering.map_or(&[][..], |network| {
            &network.lingering[..network.lingering.len().min(MAX_LINGERING)]
        });
        let mut back: BTreeMap<(&Uid, schemas::names::Slot), u32> = BTreeMap::new();
        for one in lingering {
            if let Some(number) = within(subnet, Some(one.address))
                && used.insert(number)
            {
                back.insert((&one.uid, one.slot.clone()), number);
            }
        }
        let mut next = usable(subnet);
        for (svc, slot, new, id) in wants {
            let uid = if new {
                self.in_force(svc as usize).map(|live| &*live.uid)
            } else {
                self.uid(&self.memory.insts[id as usize])
            };
            let before = uid.and_then(|uid| {
                // The slot that leaves here, and comes back before it has gone.
                let first = leaving.partition_point(|other| (other.0, other.1) < (svc, slot));
                let same = leaving[first..]
                    .iter()
                    .take_while(|other| new && (other.0, other.1) == (svc, slot));
                let number = |other: &(u32, u64, u32)| {
                    let inst = &self.memory.insts[other.2 as usize];
                    within(subnet, inst.address).filter(|_| self.uid(inst) == Some(uid))
                };
                let leaving = same.filter_map(number).next();
                leaving.or_else(|| {
                    if back.is_empty() {
                        return None;
                    }
                    back.remove(&(uid, self.memory.slot(slot, &self.nodes)))
                })
            });
            let number = before.or_else(|| next.by_ref().find(|number| !used.contains(*number)));
            if let Some(number) = number {
                used.insert(number);
            }
            let address = number.map(Ipv4Addr::from);
            if new {
                given.new[id as usize] = address;
            } else {
                given.known.insert(id, address);
            }
        }
    }

    /// The address an instance will be assigned; None of those that have none.
    pub(super) fn address_of(&self, id: u32) -> Option<Ipv4Addr> {
        let inst = &self.memory.insts[id as usize];
        let subnet = self.net.as_ref()?.subnets[inst.node as usize].as_ref()?;
        let own = || inst.address.filter(|address| within(subnet, Some(*address)).is_some());
        self.given.known.get(&id).copied().unwrap_or_else(own)
    }

    /// The address of a slot on a node, there or on its way.
    pub(super) fn address_in(&self, svc: u32, slot: u64, node: u32) -> Option<Ipv4Addr> {
        let new = self
            .memory
            .place(svc as usize, slot)
            .and_then(|place| self.given.new_at(place));
        let new = new.filter(|at| self.news.get(*at as usize).is_some_and(|(new, _)| new.node == node));
        let placed = new.and_then(|at| self.given.to_new(at));
        let known = || {
            let (from, to) = (self.memory.starts[node as usize], self.memory.starts[node as usize + 1]);
            (from..to).find(|id| {
                let inst = &self.memory.insts[*id as usize];
                (inst.svc, inst.slot) == (svc, slot) && inst.state().is_some()
            })
        };
        placed.or_else(|| self.address_of(known()?))
    }

    // ---- seeds ------------------------------------------------------------------------------------------------------

    /// Of each service with seeds, what addresses its first slots have; and whether those are all.
    pub(super) fn find_seeds(&mut self) {
        self.seeds.clear();
        if self.net.is_none() {
            return;
        }
        let mut seeds = BTreeMap::new();
        for (at, svc) in self.memory.svcs.iter().enumerate() {
            let Wanted::Count(count) = svc.wanted else { continue };
            let count = svc.seeds.min(count);
            if count == 0 {
                continue;
            }
            let id = Self::svc_index(at);
            let addresses: Vec<Ipv4Addr> = (0..count).filter_map(|offset| self.seat(id, offset)).collect();
            let all = addresses.len() == count as usize;
            seeds.insert(id, (addresses, all));
        }
        self.seeds = seeds;
    }

    /// The address of a slot: of who fills it, or will.
    fn seat(&self, svc: u32, offset: u32) -> Option<Ipv4Addr> {
        let view = self.view(svc as usize, offset);
        let known = [view.present, view.prepared].into_iter().flatten();
        let place = self.memory.svcs[svc as usize].first + offset as usize;
        let placed = || self.given.to_new(self.given.new_at(place)?);
        known.filter_map(|id| self.address_of(id)).next().or_else(placed)
    }

    /// The services whose seeds a service's instances are told: its own, and those of what it depends on.
    fn told(&self, svc: u32) -> impl Iterator<Item = (&ResourceName, &(Vec<Ipv4Addr>, bool))> {
        let one = &self.memory.svcs[svc as usize];
        let depends = one.spec.filter(|_| !self.seeds.is_empty());
        let depends = depends.map_or(&[][..], |spec| &spec.depends_on);
        let others = depends.iter().filter_map(move |name| {
            let svcs = &self.memory.svcs;
            let at = svcs.binary_search_by(|other| (other.namespace, &other.key.name).cmp(&(one.namespace, name)));
            at.ok().map(Self::svc_index).filter(|other| *other != svc)
        });
        std::iter::once(svc)
            .chain(others)
            .filter_map(|at| Some((&self.memory.svcs[at as usize].key.name, self.seeds.get(&at)?)))
    }

    /// The service for whose first addresses the instances of this one wait before they are started.
    pub(super) fn waits_for_seeds(&self, svc: u32) -> Option<ResourceName> {
        self.told(svc).find(|(_, (_, all))| !all).map(|(name, _)| name.clone())
    }

    /// What an instance's assignment says of seeds; while not all are known, what it said before.
    pub(super) fn seeds_for(&self, svc: u32, before: &[Seeds]) -> Vec<Seeds> {
        if self.seeds.is_empty() || svc == NONE {
            return Vec::new();
        }
        let told = self.told(svc).filter_map(|(service, (addresses, all))| {
            let now = || Seeds {
                service: service.clone(),
                addresses: addresses.clone(),
            };
            if *all {
                return Some(now());
            }
            before.iter().find(|seeds| seeds.service == *service).cloned()
        });
        told.collect()
    }

    // ---- what is published ------------------------------------------------------------------------------------------

    pub(super) fn network_writes(&self, memo: &mut Memo) -> NetworkWrites {
        let mut writes = NetworkWrites::default();
        if self.nodes.hold_all.is_some() || !self.snapshot.complete {
            return writes;
        }
        self.peers(&mut writes);
        self.endpoints(&mut writes, memo);
        super::policies::policies(self.snapshot, &mut writes);
        writes
    }

    fn peers(&self, writes: &mut NetworkWrites) {
        let mut wanted: BTreeSet<&schemas::names::NodeName> = BTreeSet::new();
        for (at, node) in self.nodes.list.iter().enumerate() {
            let net = self.net.as_ref().filter(|_| node.verdict != Verdict::Retired);
            let own = net.and_then(|net| Some((net.subnets[at]?, net.subnets6[at])));
            let Some((subnet, subnet6)) = own else { continue };
            let stored = self.snapshot.peers.get(node.name);
            let stored = stored.and_then(|stored| stored.value.as_ref().ok());
            let Some(link) = node.facts.and_then(|facts| facts.link.as_ref()) else {
                // Its facts are gone for now: what is known of it stays.
                if stored.is_some_and(|peer| peer.subnet == subnet) {
                    wanted.insert(node.name);
                }
                continue;
            };
            wanted.insert(node.name);
            // What is read is about this node and cluster, or it is none.
            if stored.is_some_and(|one| (one.subnet, one.subnet6, &one.link) == (subnet, subnet6, link)) {
                continue;
            }
            let peer = Peer {
                schema_version: SchemaVersion::default(),
                cluster: self.snapshot.cluster.id.clone(),
                node: node.name.clone(),
                subnet,
                subnet6,
                link: link.clone(),
            };
            writes.peers.push((node.name.clone(), Some(peer)));
        }
        for node in self.snapshot.peers.keys().filter(|node| !wanted.contains(node)) {
            writes.peers.push((node.clone(), None));
        }
    }

    fn endpoints(&self, writes: &mut NetworkWrites, memo: &mut Memo) {
        // Both are in order of keys.
        let mut published = self.snapshot.endpoints.iter().peekable();
        let layout = self.net.as_ref().map(|net| {
            let names = self.nodes.list.iter().map(|node| node.name);
            memo.layout(names, &net.subnets, &net.subnets6)
        });
        for (at, svc) in self.memory.svcs.iter().enumerate() {
            while let Some((key, _)) = published.next_if(|(key, _)| *key < svc.key) {
                writes.endpoints.push((key.clone(), None));
            }
            let there = published.next_if(|(key, _)| *key == svc.key).map(|(_, stored)| stored);
            let layout = layout.filter(|_| svc.bridged && !svc.deleted);
            let Some(layout) = layout else {
                writes.endpoints.extend(there.map(|_| (svc.key.clone(), None)));
                continue;
            };
            if svc.spec.is_none() {
                // What was published of a service that is held stays.
                continue;
            }
            let stored = there.and_then(|stored| stored.value.as_ref().ok());
            if !stored.is_some_and(|stored| self.are_known_endpoints(at, stored, layout, memo)) {
                writes.endpoints.push((svc.key.clone(), Some(self.endpoints_of(at))));
            }
        }
        for (key, _) in published {
            writes.endpoints.push((key.clone(), None));
        }
    }

    /// Whether a record says just what is so; where every slot is just as desired, from what the memo knows of it.
    fn are_known_endpoints(&self, at: usize, stored: &Arc<Endpoints>, layout: u64, memo: &mut Memo) -> bool {
        let svc = &self.memory.svcs[at];
        let slots = svc.first..svc.first + svc.slots as usize;
        let plain = self.given.known.is_empty() && self.tallies[at].is_plain() && self.tallies[at].desired == svc.slots;
        let Some(entry) = memo.entry(self.lives[svc.life].memo).filter(|_| plain) else {
            return self.are_endpoints(at, stored);
        };
        let barred = self.placer.everywhere.barred(Self::svc_index(at));
        let ends = &self.memory.plain[slots];
        let known = entry.published.as_ref().is_some_and(|(record, known)| {
            Arc::ptr_eq(record, stored) && (known.layout, known.barred, &known.ends[..]) == (layout, barred, ends)
        });
        if known {
            return true;
        }
        let so = self.are_endpoints(at, stored);
        entry.published = so.then(|| {
            let ends = ends.to_vec();
            let known = Published { layout, barred, ends };
            (Arc::clone(stored), known)
        });
        so
    }

    /// Where a service's instances are: the slot's code, the node, the address, and whether it serves.
    fn ends(&self, at: usize) -> impl Iterator<Item = (u64, u32, Ipv4Addr, bool)> {
        let svc = &self.memory.svcs[at];
        let end = move |offset: u32| {
            let slot = Memory::code_at(svc, offset);
            // Of several that are there, who fills the slot: what was assigned goes before what a node only says it runs.
            let present = self.view(at, offset).present;
            let known = present.and_then(|id| {
                let one = &self.memory.insts[id as usize];
                Some((slot, one.node, self.address_of(id)?, one.seen.ready))
            });
            known.or_else(|| {
                let (new, node) = self.new_in(svc.first + offset as usize)?;
                Some((slot, node, self.given.to_new(new)?, false))
            })
        };
        (0..svc.slots).filter_map(end).take(MAX_ENDPOINTS)
    }

    fn sixth(&self, node: u32, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let (net, at) = (self.net.as_ref()?, node as usize);
        Some(address6(address, net.subnets[at].as_ref()?, net.subnets6[at].as_ref()?))
    }

    /// Where every node is to have a port of a service open.
    fn everywhere(&self, at: usize, port: &PortSpec) -> Option<Everywhere> {
        let host_port = port.everywhere()?;
        let barred = self.placer.everywhere.barred(Self::svc_index(at)).is_some();
        (!barred).then_some(Everywhere {
            host_port,
            host_ip: port.host_ip,
            proxy_protocol: port.proxy_protocol,
        })
    }

    fn ports_of(&self, at: usize) -> &[PortSpec] {
        let spec = self.memory.svcs[at].spec;
        spec.map_or(&[][..], |spec| &spec.container.ports)
    }

    /// Whether a record says just what is so. Nothing is made for that: nearly all do.
    fn are_endpoints(&self, at: usize, stored: &Endpoints) -> bool {
        let ports = self.ports_of(at);
        let same_port = |(one, port): (&EndpointPort, &PortSpec)| {
            let name = port.name.as_ref().map(Label::as_str);
            (one.name.as_deref(), one.port, one.protocol) == (name, port.container_port, port.protocol)
                && one.everywhere == self.everywhere(at, port)
        };
        let mut known = stored.instances.iter();
        let same_end = |(slot, node, address, ready)| {
            known.next().is_some_and(|one| {
                (one.address, one.ready) == (address, ready)
                    && one.node == *self.nodes.list[node as usize].name
                    && one.address6 == self.sixth(node, address)
                    && one.slot == self.memory.slot(slot, &self.nodes)
            })
        };
        stored.ports.len() == ports.len()
            && stored.ports.iter().zip(ports).all(same_port)
            && self.ends(at).all(same_end)
            && known.next().is_none()
    }

    fn endpoints_of(&self, at: usize) -> Endpoints {
        let end = |(slot, node, address, ready)| Endpoint {
            slot: self.memory.slot(slot, &self.nodes),
            node: self.nodes.list[node as usize].name.clone(),
            address,
            address6: self.sixth(node, address),
            ready,
        };
        let port = |port: &PortSpec| EndpointPort {
            name: port.name.as_ref().map(ToString::to_string),
            port: port.container_port,
            protocol: port.protocol,
            everywhere: self.everywhere(at, port),
        };
        Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: self.snapshot.cluster.id.clone(),
            ports: self.ports_of(at).iter().map(port).collect(),
            instances: self.ends(at).map(end).collect(),
        }
    }

    /// What is new in a slot and will run at once: its place among the new, and its node.
    fn new_in(&self, place: usize) -> Option<(u32, u32)> {
        let at = self.given.new_at(place)?;
        let (new, state) = self.news.get(at as usize)?;
        (*state == AssignedState::Present).then_some((at, new.node))
    }
}

/// Why a node has no addresses to give.
pub(super) fn why_no_room(net: &Net<'_>, at: u32, node: &Node<'_>) -> &'static str {
    let link = node.facts.and_then(|facts| facts.link.as_ref());
    if link.is_some_and(|link| link.kind.is_none()) {
        "it has no link to the other nodes"
    } else if net.subnets.get(at as usize).copied().flatten().is_none() {
        "the cluster's network has no subnet left for it"
    } else {
        "its subnet has no address left"
    }
}
