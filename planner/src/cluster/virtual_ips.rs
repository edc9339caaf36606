//! Who holds each virtual address. `output.rs` asks [`Pass::virtual_ips`] for what every node's assignment is to list, and
//! [`Floating::tell`] for what people are told. It stays where it may be. It changes hands in two steps: its holder is told to
//! let go, and only when that node's report of such an assignment no longer lists it, or the session of its grant is gone from
//! the store (by which its kernel has dropped it), is it granted to another. All of that is read from assignments, reports and
//! sessions: there is nothing to remember. What a grant rests on is compared in its transaction, and each is written together
//! with the status of its address, so that of two grants only one comes into force, whoever wrote them, and however late.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, ResourceName};
use schemas::problem::Problem;
use schemas::records::{
    AssignedState, AssignedVirtualIp, AssignedVirtualIpState, Condition, ConditionStatus, ConditionType, CordonMode,
    Order, SchemaVersion, Verdict, VirtualIpStatus,
};
use schemas::virtual_ip::{VirtualIpPlacement, VirtualIpSpec};

use super::pass::Pass;
use super::snapshot::{DeclaredVirtualIp, Snapshot};
use super::status::{clip, notice};
use super::types::{Guard, Holder, Notice, Status};
use super::world::{NONE, Node, holds};

/// Grants of one node in one pass: all that they rest on fits in its transaction. More wait for the next pass.
const MOST_GRANTS: usize = 8;
/// Facts that the grants of one node in one pass may rest on.
const MOST_FACTS: usize = 24;
/// What a report may say that a node holds, and how many problems a status lists.
const MOST_REPORTED: usize = 1_024;
const LISTED: usize = 20;

/// What a pass makes of all virtual addresses.
#[derive(Default)]
pub(super) struct Floating {
    lists: BTreeMap<u32, Vec<AssignedVirtualIp>>,
    withdrawals: BTreeMap<u32, Vec<Guard>>,
    grants: BTreeMap<u32, BTreeSet<Guard>>,
    granted: BTreeMap<u32, Vec<ResourceKey>>,
    told: Vec<(ResourceKey, VirtualIpStatus)>,
    ended: Vec<ResourceKey>,
    holders: Vec<Holder>,
    /// There are virtual addresses.
    any: bool,
}

/// That a node holds an address, or may.
struct Claim {
    node: u32,
    key: ResourceKey,
    entry: AssignedVirtualIp,
    /// Its assignment lists it; otherwise only its report does.
    listed: bool,
    /// The session of its grant lives.
    alive: bool,
    /// It was told to let go, and said that it has.
    released: bool,
}

/// One that is declared, with what it asks for where that can be read.
type Specified<'a> = (&'a ResourceKey, &'a DeclaredVirtualIp, Option<(VirtualIpSpec, IpNet)>);

impl Claim {
    /// Whether its node may answer for the address.
    fn binds(&self) -> bool {
        self.alive && !self.released
    }
    fn held(&self) -> bool {
        self.listed && self.alive && self.entry.state == AssignedVirtualIpState::Held
    }
}

/// Where an address is to be.
enum Aim {
    On(u32),
    Nobody { reason: &'static str, message: String },
}

impl Floating {
    pub(super) fn list(&self, node: u32) -> &[AssignedVirtualIp] {
        self.lists.get(&node).map_or(&[], Vec::as_slice)
    }
    /// Whether a node gets an assignment though there is nothing in it: who has applied none is granted nothing, for a first
    /// one that is lost before its agent says that it has it would be known to nobody.
    pub(super) fn enrols(&self, node: &Node<'_>) -> bool {
        self.any && node.entry.assignment.is_none() && session(node).is_some() && node.known
    }
    pub(super) fn withdrawals(&self, node: u32) -> impl Iterator<Item = &Guard> {
        self.withdrawals.get(&node).into_iter().flatten()
    }
    pub(super) fn grants(&self, node: u32) -> Vec<Guard> {
        self.grants.get(&node).into_iter().flatten().cloned().collect()
    }
    pub(super) fn granted(&self, node: u32) -> Vec<ResourceKey> {
        self.granted.get(&node).cloned().unwrap_or_default()
    }

    /// Adds what people are told to the rest of a plan.
    pub(super) fn tell(
        self,
        snapshot: &Snapshot,
        statuses: &mut Vec<(ResourceKey, Status)>,
        ended: &mut Vec<ResourceKey>,
        notices: &mut Vec<Notice>,
    ) -> Vec<Holder> {
        for (key, status) in self.told {
            let stored = snapshot.virtual_ip_statuses.get(&key);
            let stored = stored.and_then(|stored| stored.value.as_ref().ok());
            let new = Status::VirtualIp(Arc::new(status));
            if new.is_stored(&key, snapshot) {
                statuses.extend(stored.map(|stored| (key, Status::VirtualIp(stored.clone()))));
                continue;
            }
            if let Status::VirtualIp(status) = &new {
                let before = stored.map(|stored| &stored.conditions[..]);
                notice(notices, &status.conditions, before, &key, status.node.clone());
            }
            statuses.push((key, new));
        }
        ended.extend(self.ended);
        self.holders
    }
}

/// Whether what is in force at a node may be more than its records say: its assignment was lost, or its agent has not come
/// to what was written instead. Nothing is granted before that is known.
fn may_hold_more(node: &Node<'_>) -> bool {
    let Some(session) = session(node) else { return false };
    if node.rewrite || node.forgotten {
        return true;
    }
    match (&node.entry.assignment, node.assignment) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(stored), Some(assignment)) => {
            stored.create_revision > session && assignment.order.generation > 1 && applied(node) < assignment.order
        }
    }
}

fn session(node: &Node<'_>) -> Option<i64> {
    node.entry.session.as_ref().map(|stored| stored.create_revision)
}

/// The order that a node's virtual addresses are as.
fn applied(node: &Node<'_>) -> Order {
    node.report.map_or_else(Order::default, |report| {
        let virtual_ips = report.virtual_ips.as_ref();
        virtual_ips.map_or(report.applied, |told| told.applied.min(report.applied))
    })
}

fn key_of(namespace: &schemas::names::Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::VirtualIP,
        name: name.clone(),
    }
}

fn condition(kind: ConditionType, fine: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        kind,
        status: if fine {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        },
        reason: reason.to_owned(),
        message: message.into(),
        since: None,
    }
}

impl Pass<'_> {
    pub(super) fn virtual_ips(&self) -> Floating {
        let mut floating = Floating::default();
        let claims = self.claims();
        let snapshot = self.snapshot;
        if claims.is_empty() && snapshot.virtual_ips.is_empty() && snapshot.virtual_ip_statuses.is_empty() {
            return floating;
        }
        floating.any = !snapshot.virtual_ips.is_empty();
        if !snapshot.complete || self.nodes.hold_all.is_some() {
            // Who holds what may not be all known: nothing changes hands, and nothing is said.
            for claim in claims.into_iter().filter(|claim| claim.listed) {
                floating.lists.entry(claim.node).or_default().push(claim.entry);
            }
            return floating;
        }
        let mut deciding = Deciding {
            pass: self,
            unknown: self
                .nodes
                .list
                .iter()
                .find(|node| may_hold_more(node))
                .map(|node| node.name),
            load: BTreeMap::new(),
            owners: BTreeMap::new(),
            claims,
        };
        for claim in deciding.claims.iter().filter(|claim| claim.held()) {
            *deciding.load.entry(claim.node).or_default() += 1;
        }
        // Of two that want one address it is the older one's.
        let mut declared: Vec<(&ResourceKey, &DeclaredVirtualIp)> = snapshot.virtual_ips.iter().collect();
        declared.sort_by_key(|(key, declared)| (declared.create_revision, *key));
        let specs: Vec<Specified<'_>> = declared
            .into_iter()
            .map(|(key, declared)| (key, declared, deciding.spec(key, declared)))
            .collect();
        for (key, _, spec) in &specs {
            if let Some((_, address)) = spec {
                deciding.owners.entry(address.addr()).or_insert_with(|| (*key).clone());
            }
        }
        for (key, declared, spec) in &specs {
            deciding.settle(&mut floating, key, Some(declared), spec.as_ref());
        }
        let gone: BTreeSet<ResourceKey> = deciding
            .claims
            .iter()
            .map(|claim| &claim.key)
            .chain(snapshot.virtual_ip_statuses.keys())
            .filter(|key| !snapshot.virtual_ips.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            deciding.settle(&mut floating, &key, None, None);
        }
        for list in floating.lists.values_mut() {
            list.sort();
        }
        floating.told.sort_by(|a, b| a.0.cmp(&b.0));
        floating.holders.sort_by(|a, b| a.resource.cmp(&b.resource));
        floating
    }

    /// Who holds what, or may, as assignments and reports have it.
    fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (at, node) in self.nodes.list.iter().enumerate() {
            let id = u32::try_from(at).unwrap_or(NONE);
            let now = session(node);
            let told = node.report.and_then(|report| report.virtual_ips.as_ref());
            let reported = told.map_or(&[][..], |told| &told.held);
            let reported = &reported[..reported.len().min(MOST_REPORTED)];
            let listed = node.assignment.map_or(&[][..], |assignment| &assignment.virtual_ips);
            let settled = node
                .assignment
                .is_some_and(|assignment| applied(node) >= assignment.order);
            for entry in listed {
                let held = reported.iter().any(|one| one.address.addr() == entry.ip());
                let withdrawn = entry.state == AssignedVirtualIpState::Withdrawn;
                claims.push(Claim {
                    node: id,
                    key: key_of(&entry.namespace, &entry.name),
                    entry: entry.clone(),
                    listed: true,
                    alive: now == Some(entry.session),
                    released: withdrawn && settled && told.is_some() && !held,
                });
            }
            for one in reported {
                let key = key_of(&one.namespace, &one.name);
                let known = |entry: &AssignedVirtualIp| {
                    (&entry.namespace, &entry.name, entry.ip()) == (&one.namespace, &one.name, one.address.addr())
                };
                // Of a session that has ended a report says nothing any more.
                if now != Some(one.session) || listed.iter().any(known) {
                    continue;
                }
                claims.push(Claim {
                    node: id,
                    key,
                    entry: AssignedVirtualIp {
                        namespace: one.namespace.clone(),
                        name: one.name.clone(),
                        address: one.address,
                        interface: None,
                        session: one.session,
                        state: AssignedVirtualIpState::Held,
                    },
                    // Its assignment is written anew from what it says.
                    listed: node.rewrite,
                    alive: true,
                    released: false,
                });
            }
        }
        claims
    }
}

struct Deciding<'p, 'a> {
    pass: &'p Pass<'a>,
    claims: Vec<Claim>,
    /// A node that may hold more than is known.
    unknown: Option<&'p NodeName>,
    /// How many addresses each node holds, as far as it is decided.
    load: BTreeMap<u32, usize>,
    owners: BTreeMap<IpAddr, ResourceKey>,
}

impl Deciding<'_, '_> {
    fn node(&self, at: u32) -> &Node<'_> {
        &self.pass.nodes.list[at as usize]
    }

    /// What is in force of a virtual address: what it says; where that is not valid, that it stays where it is.
    fn spec(&self, key: &ResourceKey, declared: &DeclaredVirtualIp) -> Option<(VirtualIpSpec, IpNet)> {
        if let Ok(spec) = &declared.spec {
            return spec.address().map(|address| (VirtualIpSpec::clone(spec), address));
        }
        let known = self.claims.iter().find(|claim| claim.key == *key && claim.listed)?;
        let placement = VirtualIpPlacement {
            node_names: vec![self.node(known.node).name.clone()],
            ..VirtualIpPlacement::default()
        };
        let spec = VirtualIpSpec {
            description: None,
            address: known.entry.address.to_string(),
            interface: known.entry.interface.clone(),
            placement,
            service: None,
            prefer: Vec::new(),
        };
        Some((spec, known.entry.address))
    }

    /// Whether a node may hold it: how much it is liked, or what is against it.
    fn fits(&self, key: &ResourceKey, spec: &VirtualIpSpec, at: u32, holder: bool) -> Result<i64, &'static str> {
        let node = self.node(at);
        let VirtualIpPlacement {
            node_names,
            roles,
            required,
            preferred,
        } = &spec.placement;
        let there = session(node).is_some() && node.known;
        if !there || (!holder && (!node.reachable() || node.rewrite)) {
            return Err("not ready");
        }
        match node.cordon {
            Some((CordonMode::Drain | CordonMode::Retire, _)) => return Err("drained or retired"),
            Some((CordonMode::Cordon, _)) if !holder => return Err("cordoned"),
            Some((CordonMode::Cordon, _)) | None => {}
        }
        if node.verdict == Verdict::Retired {
            return Err("drained or retired");
        }
        if !holder && node.spec.is_some_and(|spec| spec.unschedulable) {
            return Err("cordoned");
        }
        if !node_names.is_empty() && !node_names.contains(node.name) {
            return Err("not named by `placement.nodeNames`");
        }
        let class = &self.pass.nodes.classes[node.class as usize];
        if !roles.is_empty() && !roles.iter().any(|role| class.roles.contains(role)) {
            return Err("without a role of `placement.roles`");
        }
        let label = |key: &str| self.pass.nodes.label(at, key);
        if !required.iter().all(|one| holds(one, label(&one.key))) {
            return Err("refused by `placement.required`");
        }
        if let Some(service) = &spec.service
            && !serves(node, key, service)
        {
            return Err("without a ready instance of its service");
        }
        let liked = preferred
            .iter()
            .filter(|one| holds(&one.expression, label(&one.expression.key)));
        Ok(liked.map(|one| i64::from(one.weight)).sum())
    }

    /// Where it is to be.
    fn aim(&self, key: &ResourceKey, spec: &VirtualIpSpec, address: IpNet) -> Aim {
        let mine = || {
            self.claims
                .iter()
                .filter(|claim| claim.key == *key && claim.listed && claim.entry.ip() == address.addr())
        };
        let holder = mine().find(|claim| claim.held()).map(|claim| claim.node);
        // What cannot be told to let go stays as it is.
        if let Some(holder) = holder.filter(|at| self.node(*at).held.is_some()) {
            return Aim::On(holder);
        }
        let may = |at: u32| self.fits(key, spec, at, holder == Some(at));
        let preferred = spec.prefer.iter().filter_map(|name| self.pass.nodes.find(name));
        if let Some(first) = preferred.chain(holder).find(|at| may(*at).is_ok()) {
            return Aim::On(first);
        }
        let mut best: Option<(i64, bool, usize, u32)> = None;
        let mut refused: BTreeMap<&'static str, usize> = BTreeMap::new();
        for at in 0..u32::try_from(self.pass.nodes.list.len()).unwrap_or(NONE) {
            match may(at) {
                Ok(score) => {
                    let had = mine().any(|claim| claim.node == at);
                    let load = self.load.get(&at).copied().unwrap_or(0);
                    // Nodes are in order of their names: the first of equals is taken.
                    let next = (-score, !had, load, at);
                    best = Some(best.map_or(next, |best| best.min(next)));
                }
                Err(why) => *refused.entry(why).or_default() += 1,
            }
        }
        if let Some((_, _, _, at)) = best {
            return Aim::On(at);
        }
        let counts: Vec<String> = refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
        let message = if counts.is_empty() {
            "there is no node".to_owned()
        } else {
            format!("no node may hold it: {}", counts.join(", "))
        };
        Aim::Nobody {
            reason: "NoNodeFits",
            message,
        }
    }

    /// Decides of one address: what its claims become, whether it is granted, and what is said of it.
    fn settle(
        &mut self,
        floating: &mut Floating,
        key: &ResourceKey,
        declared: Option<&DeclaredVirtualIp>,
        spec: Option<&(VirtualIpSpec, IpNet)>,
    ) {
        let problems: &[Problem] = declared
            .and_then(|one| one.spec.as_ref().err())
            .map_or(&[], Vec::as_slice);
        let owned = spec.filter(|(_, address)| self.owners.get(&address.addr()) == Some(key));
        let aim = match (declared, spec, owned) {
            (None, ..) => Aim::Nobody {
                reason: "Deleting",
                message: "it is deleted".to_owned(),
            },
            (Some(_), None, _) => Aim::Nobody {
                reason: "Invalid",
                message: "what is declared is not valid, and nobody has held it before".to_owned(),
            },
            (Some(_), Some((_, address)), None) => Aim::Nobody {
                reason: "AddressTaken",
                message: self.taken(address.addr()),
            },
            (Some(_), Some((spec, address)), Some(_)) => self.aim(key, spec, *address),
        };
        let target = match &aim {
            Aim::On(at) => Some(*at),
            Aim::Nobody { .. } => None,
        };
        let before = self
            .claims
            .iter()
            .find(|claim| claim.key == *key && claim.held())
            .map(|claim| claim.node);
        // What becomes of each claim.
        let mut on_target = false;
        let mut waits: Option<u32> = None;
        for claim in self.claims.iter().filter(|claim| claim.key == *key && claim.listed) {
            let node = self.node(claim.node);
            let mut entry = claim.entry.clone();
            let writable = node.held.is_none() || node.rewrite;
            let place = spec.filter(|(_, address)| target == Some(claim.node) && address.addr() == entry.ip());
            match (writable, claim.held(), place) {
                (false, true, Some(_)) => on_target = true,
                (false, ..) => waits = waits.or(Some(claim.node).filter(|_| claim.binds())),
                (true, _, _) if !claim.binds() => continue,
                (true, true, Some((spec, address))) => {
                    on_target = true;
                    entry.address = *address;
                    entry.interface.clone_from(&spec.interface);
                }
                (true, true, None) => {
                    entry.state = AssignedVirtualIpState::Withdrawn;
                    if declared.is_none() {
                        let guard = Guard::DesiredAbsent(key.clone());
                        floating.withdrawals.entry(claim.node).or_default().push(guard);
                    }
                    waits = waits.or(Some(claim.node));
                }
                (true, false, _) => waits = waits.or(Some(claim.node)),
            }
            floating.lists.entry(claim.node).or_default().push(entry);
        }
        let mut hindrance = None;
        if let (Some(at), Some((spec, address)), Some(declared), false) = (target, spec, declared, on_target) {
            match self.grant(floating, key, spec, *address, declared, at) {
                Ok(()) => on_target = true,
                Err(why) => hindrance = Some(why),
            }
        }
        if let Some(before) = before.filter(|before| Some(*before) != target) {
            let load = self.load.entry(before).or_default();
            *load = load.saturating_sub(1);
        }
        if let Some(at) = target.filter(|at| before != Some(*at)) {
            *self.load.entry(at).or_default() += 1;
        }
        // What is said of it.
        let name = |at: u32| self.node(at).name.clone();
        let status = self.status(key, declared, problems, &aim, on_target, hindrance, waits, floating);
        match (declared, status) {
            (Some(_), Some(status)) => {
                let why = match &aim {
                    Aim::On(at) if before == Some(*at) => "it stays".to_owned(),
                    Aim::On(_) if before.is_some() => "it moves when its holder has let go".to_owned(),
                    Aim::On(_) => "nobody holds it yet".to_owned(),
                    Aim::Nobody { reason: _, message } => message.clone(),
                };
                floating.holders.push(Holder {
                    resource: key.clone(),
                    address: spec.map_or_else(String::new, |(_, address)| address.to_string()),
                    from: before.map(name),
                    to: target.map(name),
                    why,
                });
                floating.told.push((key.clone(), status));
            }
            (None, Some(status)) => {
                floating.holders.push(Holder {
                    resource: key.clone(),
                    address: String::new(),
                    from: before.map(name),
                    to: None,
                    why: "it is deleted".to_owned(),
                });
                floating.told.push((key.clone(), status));
            }
            (_, None) if self.pass.snapshot.virtual_ip_statuses.contains_key(key) => floating.ended.push(key.clone()),
            (_, None) => {}
        }
    }

    fn taken(&self, address: IpAddr) -> String {
        let by = self.owners.get(&address).map(|key| {
            let namespace = key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
            format!("{} of namespace {namespace}", key.name)
        });
        format!(
            "the address is that of {}, which was there before; choose another, or delete one of them",
            by.unwrap_or_else(|| "another".to_owned())
        )
    }

    /// Grants it to a node, if nobody else may hold it. The node it waits for otherwise; None: for the next pass.
    fn grant(
        &self,
        floating: &mut Floating,
        key: &ResourceKey,
        spec: &VirtualIpSpec,
        address: IpNet,
        declared: &DeclaredVirtualIp,
        at: u32,
    ) -> Result<(), Option<NodeName>> {
        let (Some(namespace), Some(now)) = (key.namespace.clone(), session(self.node(at))) else {
            return Err(None);
        };
        let about = || self.claims.iter().filter(|claim| claim.entry.ip() == address.addr());
        // Who was told to let go and did not yet may as well keep it.
        let own = |claim: &Claim| claim.node == at && claim.key == *key;
        if let Some(other) = about().find(|claim| claim.binds() && !own(claim)) {
            return Err(Some(self.node(other.node).name.clone()));
        }
        if let Some(unknown) = self.unknown {
            return Err(Some(unknown.clone()));
        }
        let to = self.node(at);
        if to.assignment.is_none() || applied(to) == Order::default() {
            return Err(None);
        }
        let mut facts: BTreeSet<Guard> = about()
            .filter(|claim| !claim.alive)
            .map(|claim| {
                let node = self.node(claim.node);
                let name = node.name.clone();
                session(node).map_or(Guard::SessionAbsent(name.clone()), |create_revision| Guard::SessionAt {
                    node: name,
                    create_revision,
                })
            })
            .collect();
        facts.insert(Guard::DesiredAt {
            key: key.clone(),
            mod_revision: declared.mod_revision,
        });
        facts.insert(Guard::SessionAt {
            node: self.node(at).name.clone(),
            create_revision: now,
        });
        let granted = floating.granted.entry(at).or_default();
        let known = floating.grants.entry(at).or_default();
        if granted.len() >= MOST_GRANTS || known.union(&facts).count() > MOST_FACTS {
            return Err(None);
        }
        granted.push(key.clone());
        known.extend(facts);
        let list = floating.lists.entry(at).or_default();
        list.retain(|one| (&one.namespace, &one.name, one.ip()) != (&namespace, &key.name, address.addr()));
        list.push(AssignedVirtualIp {
            namespace,
            name: key.name.clone(),
            address,
            interface: spec.interface.clone(),
            session: now,
            state: AssignedVirtualIpState::Held,
        });
        Ok(())
    }

    /// What is said of it; None when there is nothing of it any more.
    #[expect(clippy::too_many_arguments, reason = "called once, with what `settle` has found out")]
    fn status(
        &self,
        key: &ResourceKey,
        declared: Option<&DeclaredVirtualIp>,
        problems: &[Problem],
        aim: &Aim,
        on_target: bool,
        hindrance: Option<Option<NodeName>>,
        waits: Option<u32>,
        floating: &Floating,
    ) -> Option<VirtualIpStatus> {
        let of = |node: u32| {
            let mine =
                |one: &&AssignedVirtualIp| Some(&one.namespace) == key.namespace.as_ref() && one.name == key.name;
            let list = floating.list(node).iter();
            list.filter(mine).find(|one| one.state == AssignedVirtualIpState::Held)
        };
        let mut granted = None;
        let ready = match aim {
            Aim::On(at) if on_target => {
                let node = self.node(*at);
                granted = of(*at).map(|one| (node.name.clone(), one.session));
                self.ready(key, node, granted.as_ref().map(|(_, session)| *session))
            }
            Aim::On(at) => {
                let to = self.node(*at).name;
                let message = match (hindrance.flatten(), self.unknown) {
                    (Some(other), Some(unknown)) if other == *unknown => {
                        format!("it goes to {to} when {other} has said what it holds, or its session has ended")
                    }
                    (Some(other), _) => format!("it goes to {to} when {other} has let go, or its session has ended"),
                    (None, _) => format!("it goes to {to} in the next pass"),
                };
                (false, "Moving", message)
            }
            Aim::Nobody { reason, message } => {
                let still = waits.map(|at| self.node(at).name);
                let message = still.map_or(message.clone(), |node| format!("{message}; {node} is letting go of it"));
                (false, *reason, message)
            }
        };
        if declared.is_none() && waits.is_none() {
            return None;
        }
        let accepted = match (problems.first(), aim) {
            (Some(problem), _) => (false, "Invalid", problem.message.clone()),
            (None, Aim::Nobody { reason, message }) if *reason == "AddressTaken" => {
                (false, "AddressTaken", message.clone())
            }
            (None, _) => (true, "Valid", "it is in force".to_owned()),
        };
        let say = |kind, (fine, reason, message): (bool, &str, String)| condition(kind, fine, reason, message);
        Some(VirtualIpStatus {
            schema_version: SchemaVersion::default(),
            observed_revision: declared.map_or(0, |one| one.mod_revision),
            session: granted.as_ref().map(|(_, session)| *session),
            node: granted.map(|(node, _)| node),
            conditions: vec![say(ConditionType::Accepted, accepted), say(ConditionType::Ready, ready)],
            problems: problems.iter().take(LISTED).cloned().collect(),
        })
    }

    /// Whether the node to which it is granted says that it holds it.
    fn ready(&self, key: &ResourceKey, node: &Node<'_>, session: Option<i64>) -> (bool, &'static str, String) {
        let name = node.name;
        let told = node.report.and_then(|report| report.virtual_ips.as_ref());
        let held = told.into_iter().flat_map(|told| told.held.iter().take(MOST_REPORTED));
        let mut mine = held.filter(|one| Some(&one.namespace) == key.namespace.as_ref() && one.name == key.name);
        let refused = told
            .into_iter()
            .flat_map(|told| told.refused.iter().take(MOST_REPORTED));
        let mut refused = refused.filter(|one| Some(&one.namespace) == key.namespace.as_ref() && one.name == key.name);
        if mine.any(|one| Some(one.session) == session) {
            return (true, "Held", format!("{name} holds it"));
        }
        match refused.next() {
            Some(one) => (
                false,
                "Refused",
                format!("{name} cannot hold it: {}", clip(&one.message)),
            ),
            None => (
                false,
                "Taking",
                format!("{name} is to hold it, and has not said yet that it does"),
            ),
        }
    }
}

/// Whether an instance of a service is ready on a node.
fn serves(node: &Node<'_>, key: &ResourceKey, service: &ResourceName) -> bool {
    let of = |namespace, workload, kind| {
        Some(namespace) == key.namespace.as_ref() && workload == service && kind == Kind::Service
    };
    let assigned = node.assignment.into_iter().flat_map(|assignment| &assignment.instances);
    let mut assigned = assigned
        .filter(|one| one.state == AssignedState::Present && of(&one.namespace, &one.workload, one.kind))
        .peekable();
    if assigned.peek().is_none() {
        return false;
    }
    let ready: BTreeSet<_> = node
        .report
        .into_iter()
        .flat_map(|report| &report.instances)
        .filter(|one| one.ready && of(&one.namespace, &one.workload, one.kind))
        .map(|one| (&one.uid, &one.slot))
        .collect();
    assigned.any(|one| ready.contains(&(&one.uid, &one.slot)))
}
