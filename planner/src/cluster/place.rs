//! Choosing nodes. Services with equal constraints share one [`Set`], whose fitting nodes lie in queues, one for each
//! combination of spread domains; a service is placed by one session over its set, so that an instance costs a few steps
//! and not a look at every node. Filters: resources, host ports, constraints, taints, spread, affinities. Scores:
//! preferences, then fewest instances of the service, then fewest instances, then name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use schemas::container::PortSpec;
use schemas::names::{Namespace, ResourceName};
use schemas::placement::{Affinity, Expression, Toleration, WhenUnsatisfiable};
use schemas::records::{AssignedPort, RefusalRule};

use super::accept::Life;
use super::memo::Memo;
use super::memory::{Memory, Wanted};
use super::ports::{Everywhere, Ports, coming_ports, held_ports};
use super::queue::Queue;
use super::sets::{Group, Set};
use super::world::{NODE_LABEL, NONE, Nodes};

/// Of a node that has instances of the service in session. Lower is better: less score, fewer of its instances, fewer
/// instances, name.
type Rank = (i64, u32, u32, u32);

/// Something to place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub svc: u32,
    pub slot: u64,
    /// The instance that moves; [`NONE`] for one that runs nowhere.
    pub from: u32,
    /// The instance on a lost node whose place it takes; [`NONE`] where there is none.
    pub instead: u32,
}

/// A place that was found.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub want: Want,
    pub node: u32,
    pub ports: Vec<AssignedPort>,
}

/// A required nearness or distance, as sets of domains.
struct Term {
    domains: Option<Vec<u32>>,
    present: BTreeSet<u32>,
    /// Whether a node must be in `present`, else it must not.
    near: bool,
    /// Whether placing this very service adds to `present`.
    own: bool,
    /// The other service.
    name: String,
}

impl Term {
    fn domain(&self, node: u32) -> u32 {
        self.domains.as_ref().map_or(node, |domains| domains[node as usize])
    }
    fn admits(&self, node: u32) -> bool {
        let domain = self.domain(node);
        if self.near {
            // The first of a service that wants to be near itself may be anywhere.
            (self.own && self.present.is_empty()) || (domain != NONE && self.present.contains(&domain))
        } else {
            domain == NONE || !self.present.contains(&domain)
        }
    }
}

/// What one service needs while it is placed.
pub(super) struct Session<'a> {
    set: usize,
    need: (i64, i64),
    /// Whether each takes an address of the cluster's network.
    bridged: bool,
    ports: &'a [PortSpec],
    /// Whether it asks for a port that another service has on every node.
    barred: bool,
    most: u32,
    terms: Vec<Term>,
    /// Weighted terms: their nearness is liked (positive) or disliked.
    liked: Vec<(i64, Term)>,
    /// Instances of the service by domain, for each spread; and whether a domain counts for the minimum.
    spread: Vec<Vec<u32>>,
    counted: Vec<Vec<bool>>,
    /// For each spread: the fewest instances in a domain that counts.
    least: Vec<u32>,
    /// The nodes that have an instance of the service, once for each.
    mine: Vec<u32>,
}

fn least(counts: &[u32], counted: &[bool]) -> u32 {
    let all = counts.iter().zip(counted).filter(|(_, counted)| **counted);
    all.map(|(count, _)| *count).min().unwrap_or(0)
}

/// The free room of all nodes, and the constraint sets.
pub(super) struct Placer<'a> {
    pub sets: Vec<Set<'a>>,
    pub free: Vec<(i64, i64)>,
    pub total: Vec<u32>,
    /// How many more addresses of the cluster's network each node has; where there is no such network, as many as you like.
    pub room: Vec<u32>,
    /// Instances of the service in session by node.
    own: Vec<u32>,
    ports: Vec<Option<Ports>>,
    /// The ports that are open on every node.
    pub everywhere: Everywhere,
    /// Services that must not be near others, by whom they avoid.
    avoided: BTreeMap<(&'a Namespace, &'a ResourceName), Vec<(u32, &'a Affinity)>>,
    /// Nodes of what this pass has placed, service after service, and where those of each lie.
    placed: Vec<u32>,
    placed_of: Vec<std::ops::Range<usize>>,
    /// Whether every choice looks at every node: slow, and plainly right. Tests compare the two.
    pub exhaustive: bool,
}

impl<'a> Placer<'a> {
    pub(super) fn new(nodes: &Nodes<'a>, memory: &mut Memory<'a>, lives: &[Life<'a>], memo: &mut Memo) -> Self {
        type Key<'a> = (
            (&'a [schemas::names::NodeName], &'a [ResourceName], &'a [Expression]),
            (
                &'a [schemas::placement::Preference],
                &'a [schemas::placement::Spread],
                &'a [Toleration],
            ),
        );
        let mut known: BTreeMap<Key<'a>, u32> = BTreeMap::new();
        let mut sets: Vec<Set<'a>> = Vec::new();
        let mut avoided: BTreeMap<(&'a Namespace, &'a ResourceName), Vec<(u32, &'a Affinity)>> = BTreeMap::new();
        // The set of each number of the memo, and the number of each set.
        let mut numbered: Vec<u32> = vec![NONE; memo.sets() as usize];
        let mut numbers: Vec<Option<u32>> = Vec::new();
        for svc in &mut memory.svcs {
            let Some(spec) = svc.spec else { continue };
            let number = memo.entry(lives[svc.life].memo).and_then(|entry| entry.set);
            if let Some(set) = number
                .and_then(|number| numbered.get(number as usize))
                .filter(|set| **set != NONE)
            {
                svc.set = *set;
                continue;
            }
            let placement = &spec.placement;
            let key: Key<'a> = (
                (&placement.node_names, &placement.roles, &placement.required),
                (&placement.preferred, &placement.spread, &spec.tolerations),
            );
            let next = u32::try_from(sets.len()).unwrap_or(NONE);
            svc.set = *known.entry(key).or_insert_with(|| {
                sets.push(Set::new(spec, nodes));
                numbers.push(None);
                next
            });
            // Services with this number need not be compared any more, in this pass and the next.
            let number = number.unwrap_or_else(|| *numbers[svc.set as usize].get_or_insert_with(|| memo.new_set()));
            numbers[svc.set as usize] = Some(number);
            if numbered.len() <= number as usize {
                numbered.resize(number as usize + 1, NONE);
            }
            numbered[number as usize] = svc.set;
            if let Some(entry) = memo.entry(lives[svc.life].memo) {
                entry.set = Some(number);
            }
        }
        let avoiding = memory.svcs.iter().enumerate().filter(|(_, svc)| svc.avoids);
        for (at, svc) in avoiding {
            let terms = svc.spec.map_or(&[][..], |spec| &spec.placement.anti_affinity);
            for term in terms.iter().filter(|term| term.weight.is_none()) {
                avoided
                    .entry((svc.namespace, &term.service))
                    .or_default()
                    .push((u32::try_from(at).unwrap_or(NONE), term));
            }
        }
        let count = nodes.list.len();
        Self {
            sets,
            free: nodes.list.iter().map(super::world::Node::allocatable).collect(),
            total: vec![0; count],
            room: vec![u32::MAX; count],
            own: vec![0; count],
            ports: vec![None; count],
            everywhere: Everywhere::default(),
            avoided,
            placed: Vec::new(),
            placed_of: vec![0..0; memory.svcs.len()],
            exhaustive: false,
        }
    }

    /// What of node names, roles and required expressions this node breaks: they bind always.
    pub(super) fn broken(&mut self, nodes: &Nodes<'a>, set: u32, node: u32) -> Option<RefusalRule> {
        let set = self.sets.get_mut(set as usize)?;
        if !set.binds {
            return None;
        }
        if !set.names.is_empty() && !set.names.contains(nodes.list[node as usize].name.as_str()) {
            return Some(RefusalRule::NodeName);
        }
        set.of_class(nodes, node).0
    }

    /// Whether this node may be chosen at all, and its score, lower being better; room and other instances left aside.
    pub(super) fn fits(&mut self, nodes: &Nodes<'a>, set: u32, node: u32) -> Option<i64> {
        if !nodes.list[node as usize].schedulable() || self.broken(nodes, set, node).is_some() {
            return None;
        }
        let (_, tolerated, score) = self.sets[set as usize].of_class(nodes, node);
        tolerated.then_some(score)
    }

    fn ports(&mut self, nodes: &Nodes<'a>, memory: &Memory<'a>, node: u32) -> &mut Ports {
        let at = node as usize;
        self.ports[at].get_or_insert_with(|| {
            let mut ports = self.everywhere.ports();
            for inst in &memory.insts[memory.starts[at] as usize..memory.starts[at + 1] as usize] {
                if inst.stays() {
                    ports.take(held_ports(nodes, inst));
                    ports.take(&coming_ports(nodes, memory, inst));
                }
            }
            ports
        })
    }

    /// Chooses ports for an instance that stays on its node under a new spec, and takes them.
    pub(super) fn exchange_ports(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        inst: u32,
        wanted: &[PortSpec],
    ) -> Result<Vec<AssignedPort>, u16> {
        let inst = &memory.insts[inst as usize];
        if let Some(port) = self.everywhere.barred(inst.svc) {
            return Err(port);
        }
        let held = held_ports(nodes, inst);
        let ports = self.ports(nodes, memory, inst.node);
        let coming = coming_ports(nodes, memory, inst);
        ports.give_back(held);
        ports.give_back(&coming);
        let chosen = ports.choose(wanted, held);
        match &chosen {
            Ok(chosen) => ports.take(chosen),
            Err(_) => {
                ports.take(held);
                ports.take(&coming);
            }
        }
        chosen
    }

    /// The nodes on which a service has, or gets, an instance.
    fn nodes_of(&self, memory: &Memory<'a>, svc: u32) -> Vec<u32> {
        let one = &memory.svcs[svc as usize];
        let heads = memory.heads[one.first..one.first + one.slots as usize]
            .iter()
            .copied()
            .chain([one.beyond]);
        let mut found: Vec<u32> = heads
            .flat_map(|head| memory.chain(head))
            .filter(|(_, inst)| inst.stays())
            .map(|(_, inst)| inst.node)
            .collect();
        found.extend(&self.placed[self.placed_of[svc as usize].clone()]);
        found
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one term of one affinity, with the state it is judged in"
    )]
    fn term(
        &self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        target: Option<u32>,
        affinity: &Affinity,
        name: &ResourceName,
        near: bool,
        own: bool,
    ) -> Term {
        let topology = affinity.topology_key.as_deref();
        let domains = topology
            .filter(|key| *key != NODE_LABEL)
            .map(|key| nodes.domains(key).0);
        let mut term = Term {
            domains,
            present: BTreeSet::new(),
            near,
            own,
            name: name.to_string(),
        };
        for node in target.map(|target| self.nodes_of(memory, target)).into_iter().flatten() {
            let domain = term.domain(node);
            if domain != NONE {
                term.present.insert(domain);
            }
        }
        term
    }

    /// Begins placing a service. Ended by [`Placer::end`].
    pub(super) fn begin(&mut self, nodes: &Nodes<'a>, memory: &Memory<'a>, svc: u32) -> Option<Session<'a>> {
        let one = &memory.svcs[svc as usize];
        let spec = one.spec?;
        let set = one.set as usize;
        if self.sets[set].domains.len() < spec.placement.spread.len() {
            self.sets[set].domains = spec
                .placement
                .spread
                .iter()
                .map(|spread| nodes.domains(&spread.topology_key))
                .collect();
        }
        let find = |name: &ResourceName| {
            let at = memory
                .svcs
                .binary_search_by(|other| (other.namespace, &other.key.name).cmp(&(one.namespace, name)));
            at.ok().and_then(|at| u32::try_from(at).ok())
        };
        let (mut terms, mut liked) = (Vec::new(), Vec::new());
        for (near, list) in [(true, &spec.placement.affinity), (false, &spec.placement.anti_affinity)] {
            for affinity in list {
                let target = find(&affinity.service);
                let term = self.term(
                    nodes,
                    memory,
                    target,
                    affinity,
                    &affinity.service,
                    near,
                    target == Some(svc),
                );
                match affinity.weight {
                    None => terms.push(term),
                    Some(weight) => liked.push((if near { -i64::from(weight) } else { i64::from(weight) }, term)),
                }
            }
        }
        for (other, affinity) in self
            .avoided
            .get(&(one.namespace, &one.key.name))
            .cloned()
            .unwrap_or_default()
        {
            if other != svc {
                let name = &memory.svcs[other as usize].key.name;
                terms.push(self.term(nodes, memory, Some(other), affinity, name, false, false));
            }
        }
        let mine = self.nodes_of(memory, svc);
        for node in &mine {
            self.own[*node as usize] += 1;
        }
        let mut spread = Vec::new();
        let mut counted = Vec::new();
        for (domains, count) in &self.sets[set].domains {
            let mut counts = vec![0_u32; *count as usize];
            for node in &mine {
                let domain = domains[*node as usize];
                if domain != NONE {
                    counts[domain as usize] += 1;
                }
            }
            spread.push(counts);
            counted.push(vec![false; *count as usize]);
        }
        if self.sets[set].groups.is_none() {
            self.group(nodes, one.set);
        }
        for group in self.sets[set].groups.iter().flatten() {
            for (counted, domain) in counted.iter_mut().zip(&group.domains) {
                if *domain != NONE {
                    counted[*domain as usize] = true;
                }
            }
        }
        let least = spread
            .iter()
            .zip(&counted)
            .map(|(counts, counted)| least(counts, counted))
            .collect();
        Some(Session {
            set,
            need: one.need,
            bridged: one.bridged,
            ports: &spec.container.ports,
            barred: self.everywhere.barred(svc).is_some(),
            most: spec.placement.max_per_node.unwrap_or(u32::MAX),
            terms,
            liked,
            spread,
            counted,
            least,
            mine,
        })
    }

    /// Sorts the set's fitting nodes into queues.
    fn group(&mut self, nodes: &Nodes<'a>, set: u32) {
        let mut groups: BTreeMap<Vec<u32>, Queue> = BTreeMap::new();
        let mut domains: Vec<u32> = Vec::new();
        for node in 0..u32::try_from(nodes.list.len()).unwrap_or(NONE) {
            let Some(score) = self.fits(nodes, set, node) else {
                continue;
            };
            domains.clear();
            domains.extend(self.sets[set as usize].domains.iter().map(|(of, _)| of[node as usize]));
            if !groups.contains_key(&domains) {
                groups.insert(domains.clone(), Queue::default());
            }
            if let Some(queue) = groups.get_mut(&domains) {
                queue.put(score, self.total[node as usize], node);
            }
        }
        let groups = groups
            .into_iter()
            .map(|(domains, queue)| Group { domains, queue })
            .collect();
        self.sets[set as usize].groups = Some(groups);
    }

    /// What refuses this node for one more instance, room, ports, counts and affinities considered; None when nothing does.
    pub(super) fn refused(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &Session<'a>,
        node: u32,
    ) -> Option<RefusalRule> {
        let (cpu, bytes) = self.free[node as usize];
        if cpu < session.need.0 && session.need.0 > 0 {
            return Some(RefusalRule::Cpu);
        }
        if bytes < session.need.1 && session.need.1 > 0 {
            return Some(RefusalRule::Memory);
        }
        if session.bridged && self.room[node as usize] == 0 {
            return Some(RefusalRule::Address);
        }
        if self.own[node as usize] >= session.most {
            return Some(RefusalRule::MaxPerNode);
        }
        for term in &session.terms {
            if !term.admits(node) {
                return Some(if term.near {
                    RefusalRule::Affinity
                } else {
                    RefusalRule::AntiAffinity
                });
            }
        }
        let published = session.ports.iter().any(|port| port.host_port.is_some());
        let free = |ports: &Ports| ports.choose(session.ports, &[]).is_ok();
        if published && (session.barred || !free(self.ports(nodes, memory, node))) {
            return Some(RefusalRule::HostPort);
        }
        None
    }

    /// Whether the spreads admit one more in these domains; and by how much it worsens those that only wish.
    pub(super) fn skew(&self, session: &Session<'a>, domains: impl Fn(usize) -> u32) -> Option<i64> {
        let mut worse = 0;
        for (at, spread) in self.sets[session.set].placement.spread.iter().enumerate() {
            let domain = domains(at);
            let must = spread.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule;
            if domain == NONE {
                if must {
                    return None;
                }
                worse += i64::from(u32::MAX);
                continue;
            }
            let (count, least) = (session.spread[at][domain as usize], session.least[at]);
            if must && u64::from(count) + 1 > u64::from(least) + u64::from(spread.max_skew.unwrap_or(1)) {
                return None;
            }
            if !must {
                worse += i64::from(count.saturating_sub(least));
            }
        }
        Some(worse)
    }

    /// The domain of a node for one of the set's spreads.
    pub(super) fn spread_domain(&self, session: &Session<'a>, at: usize, node: u32) -> u32 {
        self.sets[session.set].domains[at].0[node as usize]
    }

    fn take(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &mut Session<'a>,
        want: Want,
        node: u32,
    ) -> New {
        let at = node as usize;
        self.free[at].0 -= session.need.0;
        self.free[at].1 = self.free[at].1.saturating_sub(session.need.1);
        self.total[at] += 1;
        if session.bridged && self.room[at] != u32::MAX {
            self.room[at] = self.room[at].saturating_sub(1);
        }
        self.own[at] += 1;
        self.placed.push(node);
        session.mine.push(node);
        for (spread, (domains, _)) in self.sets[session.set].domains.iter().enumerate() {
            let (counts, domain) = (&mut session.spread[spread], domains[at] as usize);
            if domains[at] != NONE {
                counts[domain] += 1;
                if counts[domain] == session.least[spread] + 1 {
                    session.least[spread] = least(counts, &session.counted[spread]);
                }
            }
        }
        for term in session
            .terms
            .iter_mut()
            .chain(session.liked.iter_mut().map(|(_, term)| term))
            .filter(|term| term.own)
        {
            let domain = term.domain(node);
            if domain != NONE {
                term.present.insert(domain);
            }
        }
        let ports = if session.ports.is_empty() {
            Vec::new()
        } else {
            let held = self.ports(nodes, memory, node);
            let chosen = held.choose(session.ports, &[]).unwrap_or_default();
            held.take(&chosen);
            chosen
        };
        New { want, node, ports }
    }

    /// Places all wants of one service; those for which no node fits stay None.
    pub(super) fn place(&mut self, nodes: &Nodes<'a>, memory: &Memory<'a>, wants: &[Want]) -> Vec<Option<New>> {
        let Some(svc) = wants.first().map(|want| want.svc) else {
            return Vec::new();
        };
        let Some(mut session) = self.begin(nodes, memory, svc) else {
            return vec![None; wants.len()];
        };
        let first = self.placed.len();
        let found = if memory.svcs[svc as usize].wanted == Wanted::PerNode {
            wants
                .iter()
                .map(|want| self.place_on_own_node(nodes, memory, &mut session, *want))
                .collect()
        } else if self.exhaustive || !session.liked.is_empty() {
            wants
                .iter()
                .map(|want| self.place_by_scan(nodes, memory, &mut session, *want))
                .collect()
        } else {
            self.place_by_queue(nodes, memory, &mut session, wants)
        };
        self.placed_of[svc as usize] = first..self.placed.len();
        self.end(session);
        found
    }

    /// Every rule but those of the node alone and of its room that refuses this node, and which service is why.
    pub(super) fn refusals_by_others(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &Session<'a>,
        node: u32,
    ) -> Vec<(RefusalRule, Option<String>)> {
        let mut found = Vec::new();
        if session.bridged && self.room[node as usize] == 0 {
            found.push((RefusalRule::Address, None));
        }
        if self.own[node as usize] >= session.most {
            found.push((RefusalRule::MaxPerNode, None));
        }
        if self.skew(session, |at| self.spread_domain(session, at, node)).is_none() {
            found.push((RefusalRule::Spread, None));
        }
        for term in session.terms.iter().filter(|term| !term.admits(node)) {
            let rule = if term.near {
                RefusalRule::Affinity
            } else {
                RefusalRule::AntiAffinity
            };
            found.push((rule, Some(term.name.clone())));
        }
        found.dedup_by_key(|(rule, _)| *rule);
        let published = session.ports.iter().any(|port| port.host_port.is_some());
        let free = |ports: &Ports| ports.choose(session.ports, &[]).is_ok();
        if published && (session.barred || !free(self.ports(nodes, memory, node))) {
            found.push((RefusalRule::HostPort, None));
        }
        found
    }

    /// Ends a session.
    pub(super) fn end(&mut self, session: Session<'a>) {
        for node in session.mine {
            self.own[node as usize] = 0;
        }
    }

    fn place_on_own_node(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &mut Session<'a>,
        want: Want,
    ) -> Option<New> {
        let node = u32::try_from(want.slot & u64::from(u32::MAX)).ok()?;
        if self.refused(nodes, memory, session, node).is_some() {
            return None;
        }
        Some(self.take(nodes, memory, session, want, node))
    }

    fn place_by_scan(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &mut Session<'a>,
        want: Want,
    ) -> Option<New> {
        let set = u32::try_from(session.set).unwrap_or(NONE);
        let mut best: Option<(i64, i64, u32, u32, u32)> = None;
        for node in 0..u32::try_from(nodes.list.len()).unwrap_or(NONE) {
            let Some(score) = self.fits(nodes, set, node) else {
                continue;
            };
            let Some(worse) = self.skew(session, |at| self.spread_domain(session, at, node)) else {
                continue;
            };
            let near = |(weight, term): &(i64, Term)| {
                let domain = term.domain(node);
                if domain != NONE && term.present.contains(&domain) {
                    *weight
                } else {
                    0
                }
            };
            let score = score + session.liked.iter().map(near).sum::<i64>();
            let rank = (score, worse, self.own[node as usize], self.total[node as usize], node);
            if best.is_none_or(|best| rank < best) && self.refused(nodes, memory, session, node).is_none() {
                best = Some(rank);
            }
        }
        best.map(|(.., node)| self.take(nodes, memory, session, want, node))
    }

    fn place_by_queue(
        &mut self,
        nodes: &Nodes<'a>,
        memory: &Memory<'a>,
        session: &mut Session<'a>,
        wants: &[Want],
    ) -> Vec<Option<New>> {
        let Some(mut groups) = self.sets[session.set].groups.take() else {
            return vec![None; wants.len()];
        };
        // Nodes that hold an instance of this service, by group; and those taken out of the queues, to be put back.
        let mut touched: Vec<BinaryHeap<Reverse<Rank>>> = groups.iter().map(|_| BinaryHeap::new()).collect();
        let mut aside: Vec<(usize, i64, u32)> = Vec::new();
        let mut found = Vec::with_capacity(wants.len());
        // The best untouched node of each group, as long as nothing can have changed it.
        let mut tops: Vec<Option<Option<Rank>>> = vec![None; groups.len()];
        for want in wants {
            let mut best: Option<(i64, i64, u32, u32, u32, usize, bool)> = None;
            for (at, group) in groups.iter_mut().enumerate() {
                let Some(worse) = self.skew(session, |spread| group.domains[spread]) else {
                    continue;
                };
                // The best of those without an instance of this service.
                let known = tops[at];
                let mut top = known.flatten();
                while let (None, Some((score, total, node))) = (known, group.queue.first()) {
                    let (own, now) = (self.own[node as usize], self.total[node as usize]);
                    if total != now && own == 0 {
                        // Others have been placed there since.
                        group.queue.drop_first();
                        group.queue.put(score, now, node);
                        continue;
                    }
                    if own == 0 && self.refused(nodes, memory, session, node).is_none() {
                        top = Some((score, own, now, node));
                        break;
                    }
                    group.queue.drop_first();
                    aside.push((at, score, node));
                    if own > 0 {
                        touched[at].push(Reverse((score, own, now, node)));
                    }
                }
                while let (None, Some(Reverse((.., node)))) = (known, touched[at].peek().copied()) {
                    if self.refused(nodes, memory, session, node).is_none() {
                        break;
                    }
                    touched[at].pop();
                }
                tops[at] = Some(top);
                let both = [(top, false), (touched[at].peek().map(|Reverse(rank)| *rank), true)];
                for (top, old) in both {
                    let Some((score, own, total, node)) = top else {
                        continue;
                    };
                    let rank = (score, worse, own, total, node, at, old);
                    if best.is_none_or(|best| rank < best) {
                        best = Some(rank);
                    }
                }
            }
            let Some((score, _, _, _, node, at, old)) = best else {
                found.resize(wants.len(), None);
                break;
            };
            if old {
                touched[at].pop();
            } else {
                groups[at].queue.drop_first();
                aside.push((at, score, node));
            }
            found.push(Some(self.take(nodes, memory, session, *want, node)));
            if session.terms.is_empty() {
                tops[at] = None;
            } else {
                // It may be near, or too near, to any.
                tops.fill(None);
            }
            touched[at].push(Reverse((
                score,
                self.own[node as usize],
                self.total[node as usize],
                node,
            )));
        }
        for (at, score, node) in aside {
            groups[at].queue.put(score, self.total[node as usize], node);
        }
        self.sets[session.set].groups = Some(groups);
        found
    }
}
