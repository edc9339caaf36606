//! The pass over the whole node: who is assigned what, which container is whose, and one walk for each instance.

use std::collections::{BTreeMap, BTreeSet};

use schemas::names::{Namespace, Slot};
use schemas::records::{
    AssignedPort, AssignedState, Lingering, NodeCondition, Report, ReportedInstance, ReportedNetwork, SchemaVersion,
    Uid,
};

use super::instance::{Goal, Said, Walk};
use super::ledger::{InForce, LedgerEntry};
use super::types::{ContainerState, InstanceKey, NodeInput, NodePlan, Observed, Op, Step};

/// The network of a cluster's namespace on its node: `reeve-<first 8 digits of the cluster's id>-<namespace>`, so that
/// two clusters may share an engine.
#[must_use]
pub fn network_name(cluster: &str, namespace: &Namespace) -> String {
    format!("reeve-{}-{namespace}", cluster.get(..8).unwrap_or(cluster))
}

/// How long the address of an instance that is gone is nobody's: connections to it end, and nobody remembers it, before
/// another one answers there.
const LINGER_MS: u64 = 60_000;
/// The most addresses that linger; the oldest go first.
const MAX_LINGERING: usize = 4_096;

/// Decides the next step of every instance, what the ledger must say first, and what to report.
pub fn plan(input: &NodeInput) -> NodePlan {
    let applied = input
        .assignment
        .as_ref()
        .map(|assignment| assignment.order)
        .unwrap_or_default();
    let mut out = NodePlan {
        ledger: BTreeMap::new(),
        steps: Vec::new(),
        pulls: BTreeMap::new(),
        inspect: BTreeSet::new(),
        look_alikes: Vec::new(),
        look_up: BTreeSet::new(),
        wanted_permits: BTreeSet::new(),
        wanted_specs: BTreeSet::new(),
        wanted_files: BTreeSet::new(),
        used_specs: BTreeSet::new(),
        probes: BTreeMap::new(),
        look_again_ms: None,
        lingering: Vec::new(),
        report: Report {
            network: None,
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: input.cluster.clone(),
            node: input.node.clone(),
            applied,
            instances: Vec::new(),
            conditions: conditions(input),
        },
    };
    let goals = goals(input);
    let world = World::new(input, &goals);
    for (key, (goal, image)) in &goals {
        let known = input.ledger.entries.get(key);
        let entry = known.cloned().unwrap_or_default();
        let walk = Walk::new(input, &world, key, goal, *image, entry, &mut out);
        let (mut reported, kept, step) = walk.run();
        // What is being stopped may still serve, and pass a check that is new: nothing becomes ready before its step ends.
        let was_ready = known.is_some_and(|entry| entry.up.as_ref().is_some_and(|up| up.ready_ms.is_some()));
        if input.busy.contains(key)
            && let Some(line) = reported.as_mut()
        {
            line.ready &= was_ready;
        }
        out.report.instances.extend(reported);
        let kept = if input.busy.contains(key) { known.cloned() } else { kept };
        for spec in kept.iter().flat_map(|entry| specs_of(key, entry)) {
            out.used_specs.insert(spec);
        }
        if input.busy.contains(key) {
            continue;
        }
        if kept.as_ref() != known {
            out.ledger.insert(key.clone(), kept);
        }
        out.steps.extend(step);
    }
    if let Some(assignment) = &input.assignment {
        out.used_specs.extend(
            assignment
                .instances
                .iter()
                .map(|i| InstanceKey::from(i).spec(i.n, &i.digest)),
        );
    }
    linger(input, &mut out);
    out.look_alikes = world.look_alikes(input, &out);
    out.report.instances.sort_by_cached_key(InstanceKey::reported);
    // What ends containers goes first: it frees names, ports and memory.
    out.steps
        .sort_by_key(|step: &Step| !matches!(step.op, Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. }));
    out
}

/// Keeps back the addresses of those that are gone, and says which.
fn linger(input: &NodeInput, out: &mut NodePlan) {
    let Some(network) = input.assignment.as_ref().and_then(|one| one.network.as_ref()) else {
        return;
    };
    let assigned = input.assignment.iter().flat_map(|one| &one.instances);
    let mut stays: BTreeSet<(&Uid, &Slot)> = BTreeSet::new();
    let reported: BTreeSet<InstanceKey> = out.report.instances.iter().map(InstanceKey::reported).collect();
    let mut gone: Vec<Lingering> = Vec::new();
    for one in assigned {
        if one.state != AssignedState::Absent || reported.contains(&InstanceKey::from(one)) {
            stays.insert((&one.uid, &one.slot));
        } else if let Some(address) = one.address {
            gone.push(Lingering {
                address,
                uid: one.uid.clone(),
                slot: one.slot.clone(),
            });
        }
    }
    let still = |(one, until): &&(Lingering, u64)| *until > input.now_ms && !stays.contains(&(&one.uid, &one.slot));
    out.lingering = input.lingering.iter().filter(still).cloned().collect();
    for one in gone {
        if !out.lingering.iter().any(|(known, _)| *known == one) {
            out.lingering.push((one, input.now_ms.saturating_add(LINGER_MS)));
        }
    }
    let more = out.lingering.len().saturating_sub(MAX_LINGERING);
    out.lingering.drain(..more);
    for (_, until) in &out.lingering {
        earlier(&mut out.look_again_ms, *until);
    }
    let mut lingering: Vec<Lingering> = out.lingering.iter().map(|(one, _)| one.clone()).collect();
    lingering.sort();
    out.report.network = Some(ReportedNetwork {
        subnet: network.subnet,
        lingering,
    });
}

fn specs_of(key: &InstanceKey, entry: &LedgerEntry) -> Vec<super::types::SpecId> {
    let owned = entry.container.as_ref().map(|owned| &owned.spec);
    entry
        .in_force
        .iter()
        .chain(owned)
        .map(|spec| key.spec(spec.n, &spec.digest))
        .collect()
}

/// What every instance is to become, and what the assignment says of its image.
type Goals<'a> = BTreeMap<InstanceKey, (Goal, Said<'a>)>;

/// By the assignment in force; and for what only the ledger knows, to stay as it is.
fn goals(input: &NodeInput) -> Goals<'_> {
    let mut goals = BTreeMap::new();
    for assigned in input.assignment.iter().flat_map(|assignment| &assignment.instances) {
        let spec = InForce {
            n: assigned.n,
            digest: assigned.digest.clone(),
            ports: assigned.ports.clone(),
        };
        let goal = match assigned.state {
            AssignedState::Prepared => Goal::Prepared(spec),
            AssignedState::Present => Goal::Present(spec),
            AssignedState::Absent => Goal::Absent(spec),
        };
        goals
            .entry(InstanceKey::from(assigned))
            .or_insert((goal, Said::of(assigned)));
    }
    for (key, entry) in &input.ledger.entries {
        let alone = match (&input.assignment, &entry.in_force) {
            // No assignment at all: what was in force stays so.
            (None, Some(spec)) => Goal::Present(spec.clone()),
            (None, None) | (Some(_), _) => Goal::Orphaned,
        };
        goals.entry(key.clone()).or_insert((alone, Said::default()));
    }
    goals
}

fn conditions(input: &NodeInput) -> Vec<NodeCondition> {
    let mut conditions = input.conditions.clone();
    if let Err(why) = &input.observed {
        conditions.push(NodeCondition {
            reason: "EngineUnavailable".to_owned(),
            message: why.clone(),
        });
    }
    if input.disk_full {
        conditions.push(NodeCondition {
            reason: "DiskFull".to_owned(),
            message:
                "the disk is full: what runs is kept and restarted, nothing new is started; free space on this node"
                    .to_owned(),
        });
    }
    conditions.sort();
    conditions.dedup();
    conditions
}

/// What walks share: containers by id, candidates for adoption, and who holds which port.
pub(super) struct World<'a> {
    by_id: BTreeMap<&'a str, &'a Observed>,
    candidates: BTreeMap<InstanceKey, Vec<&'a Observed>>,
    holders: Vec<Holder<'a>>,
}

/// An instance whose container may hold ports, or the place of another life of the same slot.
struct Holder<'a> {
    key: &'a InstanceKey,
    ports: &'a [AssignedPort],
    /// Whether its container holds its ports at this moment.
    up: bool,
    goes: bool,
}

/// What an instance must wait for before it is created.
pub(super) enum InTheWay<'a> {
    /// Another life of its slot still has a container.
    Predecessor,
    /// An instance that goes holds a port of its.
    PortGoes,
    /// This one holds a port of its, and stays.
    PortStays(&'a InstanceKey, u16),
}

impl<'a> World<'a> {
    fn new(input: &'a NodeInput, goals: &Goals<'_>) -> Self {
        let owned: BTreeSet<&str> = input
            .ledger
            .entries
            .values()
            .filter_map(LedgerEntry::container_id)
            .collect();
        let observed: &[Observed] = input.observed.as_deref().unwrap_or_default();
        let mut candidates: BTreeMap<InstanceKey, Vec<&Observed>> = BTreeMap::new();
        for container in observed
            .iter()
            .filter(|container| !owned.contains(container.id.as_str()))
        {
            let Some(labels) = container.own() else { continue };
            let ours = labels.cluster == input.cluster && labels.node == input.node && labels.name() == container.name;
            if ours && goals.contains_key(&labels.instance) {
                candidates.entry(labels.instance).or_default().push(container);
            }
        }
        let by_id: BTreeMap<&str, &Observed> = observed
            .iter()
            .map(|container| (container.id.as_str(), container))
            .collect();
        let holder = |(key, entry): (&'a InstanceKey, &'a LedgerEntry)| {
            let owned = entry.container.as_ref()?;
            let seen = owned.id.as_deref().and_then(|id| by_id.get(id));
            let ended = seen.is_none_or(|seen| match seen.state {
                ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Dead => true,
                ContainerState::Running
                | ContainerState::Paused
                | ContainerState::Restarting
                | ContainerState::Removing => false,
            });
            let goes = match goals.get(key).map(|(goal, _)| goal) {
                Some(Goal::Absent(_)) => true,
                Some(Goal::Present(spec)) => *spec != owned.spec,
                Some(Goal::Prepared(_) | Goal::Orphaned) | None => false,
            };
            Some(Holder {
                key,
                ports: &owned.spec.ports,
                up: !ended,
                goes,
            })
        };
        let holders = input.ledger.entries.iter().filter_map(holder).collect();
        Self {
            by_id,
            candidates,
            holders,
        }
    }

    pub(super) fn container(&self, id: &str) -> Option<&'a Observed> {
        self.by_id.get(id).copied()
    }

    pub(super) fn candidates(&self, key: &InstanceKey) -> &[&'a Observed] {
        self.candidates.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn in_the_way(&self, key: &InstanceKey, ports: &[AssignedPort]) -> Option<InTheWay<'a>> {
        let others = || self.holders.iter().filter(|holder| holder.key != key);
        let same_slot = |holder: &&Holder<'_>| {
            let other = holder.key;
            other.namespace == key.namespace && other.workload == key.workload && other.slot == key.slot
        };
        if others().any(|holder| same_slot(&holder) && holder.goes) {
            return Some(InTheWay::Predecessor);
        }
        others().filter(|holder| holder.up).find_map(|holder| {
            let port = ports
                .iter()
                .find(|port| holder.ports.iter().any(|held| overlap(port, held)))?;
            Some(if holder.goes {
                InTheWay::PortGoes
            } else {
                InTheWay::PortStays(holder.key, port.host_port)
            })
        })
    }

    /// Containers with our cluster's label that no entry owns, once this plan's ledger holds.
    fn look_alikes(&self, input: &NodeInput, out: &NodePlan) -> Vec<String> {
        let entries = input.ledger.entries.iter().map(|(key, entry)| (key, Some(entry)));
        let mut after: BTreeMap<&InstanceKey, Option<&LedgerEntry>> = entries.collect();
        after.extend(out.ledger.iter().map(|(key, entry)| (key, entry.as_ref())));
        let owned: BTreeSet<&str> = after
            .values()
            .flatten()
            .filter_map(|entry| entry.container_id())
            .collect();
        let alike = |id: &str| {
            let ours_soon = self
                .candidates
                .iter()
                .any(|(key, list)| input.busy.contains(key) && list.iter().any(|c| c.id == id));
            !owned.contains(id) && !out.inspect.contains(id) && !ours_soon
        };
        self.by_id
            .keys()
            .copied()
            .filter(|id| alike(id))
            .map(str::to_owned)
            .collect()
    }
}

fn overlap(a: &AssignedPort, b: &AssignedPort) -> bool {
    let wild = |ip: &Option<std::net::IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
    a.host_port == b.host_port
        && a.protocol == b.protocol
        && (wild(&a.host_ip) || wild(&b.host_ip) || a.host_ip == b.host_ip)
}

/// Earlier of two moments.
pub(super) fn earlier(moment: &mut Option<u64>, other: u64) {
    *moment = Some(moment.map_or(other, |known| known.min(other)));
}

/// What a walk hands back: its line in the report, its entry (None: forget it), its step.
pub(super) type Walked = (Option<ReportedInstance>, Option<LedgerEntry>, Option<Step>);
