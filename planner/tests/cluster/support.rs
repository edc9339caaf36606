//! A store in memory and a fleet of model agents: what executes a plan in tests. An agent does what its assignment says,
//! in steps that the test controls, keeps what it was not told to remove, and reports what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use planner::cluster::{
    Absences, AcceptedEntry, Change, DesiredBody, DesiredEntry, Moment, NodeEntry, Plan, PlanOptions, Snapshot, Status,
    Stored, plan_with, verdicts,
};
use schemas::config_file::ConfigFileSpec;
use schemas::image::{ImageDigest, ImagePin};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, Slot};
use schemas::node::NodeSpec;
use schemas::problem::Problem;
use schemas::records::{
    Accepted, Ack, Addresses, Assigned, AssignedImage, AssignedState, Assignment, Breaker, Capacity, ClusterId,
    ClusterMarker, Condition, ConditionType, Cordon, CordonMode, Digest, Engine, Failing, FailingReason, Lingering,
    Next, NodeFacts, Order, Phase, Record, Report, ReportedInstance, ReportedNetwork, ReportedVirtualIps,
    SchemaVersion, ServiceStatus, SessionRecord, Uid, Verdict, VerdictRecord,
};
use schemas::service::ServiceSpec;
use schemas::units::{ByteSize, Cpu};
use serde_json::{Value, json};

/// One container of a model agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub entry: Assigned,
    pub ready: bool,
    /// How far: 0 seen, 1 image there, 2 running, 3 ready.
    pub steps: u8,
    /// The number that is to replace it, whose image is not there yet or never comes.
    pub next: Option<Assigned>,
}

/// One node's own truth.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    pub applied: Order,
    pub held: BTreeMap<(Uid, Slot), Container>,
    /// Its subnet of the cluster's network, as it was last assigned, and addresses of those that are gone.
    pub subnet: Option<ipnet::Ipv4Net>,
    pub lingering: BTreeMap<(Uid, Slot), Ipv4Addr>,
    /// What it holds of virtual addresses, where it has any.
    pub virtual_ips: Option<ReportedVirtualIps>,
}

#[derive(Clone, Debug)]
pub struct Cluster {
    pub snapshot: Snapshot,
    pub agents: BTreeMap<NodeName, Agent>,
    /// Images that do not exist, that crash, that never get ready.
    pub missing: BTreeSet<String>,
    pub crashing: BTreeSet<String>,
    /// Instances that are not ready though they run, for reasons of their own: by resource and slot.
    pub sick: BTreeSet<String>,
    /// What images with tags are for these nodes. Others have them from no registry.
    pub tells: BTreeMap<NodeName, ImagePin>,
    /// Nodes that do not reach the registry: they get no image that is settled unless they are told who has it.
    pub away: BTreeSet<NodeName>,
    pub absences: Absences,
    pub moment: Moment,
    pub exhaustive: bool,
}

/// One image of many.
pub fn pin(byte: u8) -> ImagePin {
    ImagePin {
        digest: ImageDigest::from([byte; 32]),
        id: ImageDigest::from([byte ^ 0xff; 32]),
    }
}
pub fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}
pub fn key(text: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: text.parse().expect("a name"),
    }
}
pub fn node_key(text: &str) -> ResourceKey {
    ResourceKey {
        namespace: None,
        kind: Kind::Node,
        name: text.parse().expect("a name"),
    }
}
pub fn file_key(text: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::ConfigFile,
        name: text.parse().expect("a name"),
    }
}
pub fn service(value: Value) -> ServiceSpec {
    let mut value = value;
    let container = value
        .as_object_mut()
        .expect("a map")
        .entry("container")
        .or_insert_with(|| json!({}));
    container
        .as_object_mut()
        .expect("a map")
        .entry("image")
        .or_insert_with(|| json!("app:1"));
    serde_json::from_value(value).expect("a service")
}
fn stored<T>(revision: i64, value: T) -> Stored<T> {
    Stored {
        create_revision: revision,
        mod_revision: revision,
        value: Ok(value),
    }
}

impl Cluster {
    pub fn new() -> Self {
        let cluster = ClusterMarker {
            network: Default::default(),
            schema_version: SchemaVersion::default(),
            id: ClusterId::from_random([7; 16]),
            restore_epoch: 0,
            moved: None,
            accepted_revision: None,
        };
        Self {
            snapshot: Snapshot {
                endpoints: BTreeMap::new(),
                policies: BTreeMap::new(),
                network_policies: BTreeMap::new(),
                virtual_ips: BTreeMap::new(),
                virtual_ip_statuses: BTreeMap::new(),
                peers: BTreeMap::new(),
                revision: 100,
                cluster,
                epoch: 10,
                complete: true,
                desired: BTreeMap::new(),
                accepted: BTreeMap::new(),
                nodes: BTreeMap::new(),
                service_statuses: BTreeMap::new(),
                node_statuses: BTreeMap::new(),
                file_statuses: BTreeMap::new(),
                secrets: BTreeMap::new(),
                acks: BTreeMap::new(),
                breaker: Breaker::default(),
            },
            agents: BTreeMap::new(),
            missing: BTreeSet::new(),
            crashing: BTreeSet::new(),
            sick: BTreeSet::new(),
            tells: BTreeMap::new(),
            away: BTreeSet::new(),
            absences: Absences::default(),
            moment: Moment::default(),
            exhaustive: false,
        }
    }

    /// A cluster of nodes n1 to n9 or so, with 4 cores and 8 GiB each.
    pub fn of(count: usize) -> Self {
        let mut cluster = Self::new();
        for at in 1..=count {
            cluster.node(&format!("n{at}"), &[]);
        }
        cluster
    }

    pub fn revision(&mut self) -> i64 {
        self.snapshot.revision += 1;
        self.snapshot.revision
    }

    pub fn node(&mut self, text: &str, labels: &[(&str, &str)]) {
        let node = name(text);
        self.facts(text, 4_000, 8 << 30, labels);
        self.agents.insert(node, Agent::default());
        self.session(text, true);
        self.report(text);
    }

    pub fn facts(&mut self, text: &str, millis: u32, bytes: u64, labels: &[(&str, &str)]) {
        let revision = self.revision();
        let facts = NodeFacts {
            link: None,
            schema_version: SchemaVersion::default(),
            cluster: self.snapshot.cluster.id.clone(),
            node: name(text),
            capacity: Capacity {
                cpu: Cpu { millis },
                memory: ByteSize(bytes),
            },
            addresses: Addresses::default(),
            engine: Engine::default(),
            agent_version: "0.1.0".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        self.entry(text).facts = Some(stored(revision, facts));
    }

    pub fn entry(&mut self, text: &str) -> &mut NodeEntry {
        self.snapshot.nodes.entry(name(text)).or_default()
    }

    /// Gives or takes a node's session.
    pub fn session(&mut self, text: &str, there: bool) {
        let revision = self.revision();
        let record = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: self.snapshot.cluster.id.clone(),
            node: name(text),
            machine_id: text.to_owned(),
            boot_id: "1".to_owned(),
            watermark: self
                .agents
                .get(&name(text))
                .map(|agent| agent.applied)
                .unwrap_or_default(),
        };
        self.entry(text).session = there.then(|| stored(revision, record));
    }

    pub fn cordon(&mut self, text: &str, mode: Option<CordonMode>) {
        let revision = self.revision();
        let record = mode.map(|mode| Cordon {
            schema_version: SchemaVersion::default(),
            lost: false,
            mode,
            by: "me@here".to_owned(),
            note: None,
        });
        self.entry(text).cordon = record.map(|record| stored(revision, record));
    }

    /// A person says that the host is off.
    pub fn confirm_lost(&mut self, text: &str) {
        let revision = self.revision();
        let record = Cordon {
            schema_version: SchemaVersion::default(),
            mode: CordonMode::Cordon,
            lost: true,
            by: "me@here".to_owned(),
            note: None,
        };
        self.entry(text).cordon = Some(stored(revision, record));
    }

    pub fn lose(&mut self, text: &str) {
        self.session(text, false);
        let revision = self.revision();
        let record = VerdictRecord {
            schema_version: SchemaVersion::default(),
            away: None,
            unsteady: false,
            off: true,
            silent: None,
            verdict: Verdict::Lost,
            reason: "test".to_owned(),
        };
        self.entry(text).verdict = Some(stored(revision, record));
    }

    fn put(&mut self, key: ResourceKey, body: DesiredBody) {
        let revision = self.revision();
        let created = self
            .snapshot
            .desired
            .get(&key)
            .map_or(revision, |entry| entry.create_revision);
        let entry = DesiredEntry {
            create_revision: created,
            mod_revision: revision,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body,
        };
        self.snapshot.desired.insert(key, entry);
    }
    pub fn apply(&mut self, text: &str, value: Value) {
        self.put(key(text), DesiredBody::Service(Arc::new(service(value))));
    }
    pub fn apply_node(&mut self, text: &str, value: Value) {
        let spec: NodeSpec = serde_json::from_value(value).expect("a node");
        self.put(node_key(text), DesiredBody::Node(Arc::new(spec)));
    }
    pub fn apply_file(&mut self, text: &str, value: Value) {
        let spec: ConfigFileSpec = serde_json::from_value(value).expect("a file");
        self.put(file_key(text), DesiredBody::ConfigFile(Arc::new(spec)));
    }
    pub fn delete_file(&mut self, text: &str) {
        self.snapshot.desired.remove(&file_key(text));
    }
    pub fn apply_invalid(&mut self, text: &str) {
        let problem: Problem = serde_json::from_value(json!({
            "line": 4, "column": 3, "endLine": 4, "endColumn": 9, "path": "spec.replica", "code": "UnknownKey",
            "message": "unknown key `replica`", "remedy": "did you mean `replicas`?",
        }))
        .expect("a problem");
        self.put(key(text), DesiredBody::Invalid(vec![problem]));
    }
    pub fn delete(&mut self, text: &str) {
        self.snapshot.desired.remove(&key(text));
    }
    pub fn ack(&mut self, digest: Digest) {
        let ack = Ack {
            schema_version: SchemaVersion::default(),
            digest: digest.clone(),
            count: 1,
            by: "me@here".to_owned(),
        };
        self.snapshot.acks.insert(digest, ack);
    }

    // ---- the controller -------------------------------------------------------------------------------------------

    pub fn judge(&mut self) {
        let out = verdicts(&self.snapshot, &mut self.absences, self.moment);
        for (node, record) in out.writes {
            let revision = self.revision();
            self.snapshot.nodes.entry(node).or_default().verdict = Some(stored(revision, record));
        }
        for node in out.forget {
            self.snapshot.nodes.remove(&node);
        }
    }

    pub fn plan(&mut self) -> Plan {
        self.judge();
        plan_with(
            &self.snapshot,
            PlanOptions {
                list_changes: true,
                exhaustive: self.exhaustive,
            },
        )
    }

    pub fn execute(&mut self, plan: &Plan) {
        for write in &plan.accepted {
            let history = self.snapshot.accepted.entry(write.key.clone()).or_default();
            let digest = Digest::of(&write.record.encode());
            let old = history.records.insert(
                write.record.n,
                AcceptedEntry {
                    digest,
                    value: Ok(Arc::new(write.record.clone())),
                },
            );
            assert!(old.is_none(), "{} {} is accepted twice", write.key, write.record.n);
        }
        for (key, n) in &plan.forgotten {
            if let Some(history) = self.snapshot.accepted.get_mut(key) {
                history.records.remove(n);
            }
        }
        for write in &plan.assignments {
            let revision = self.revision();
            let entry = self.snapshot.nodes.entry(write.assignment.node.clone()).or_default();
            assert_eq!(
                entry.assignment.as_ref().map_or(0, |stored| stored.mod_revision),
                write.stored_mod_revision
            );
            assert!(write.assignment.order > entry.highest_order(), "order only rises");
            let created = entry
                .assignment
                .as_ref()
                .map_or(revision, |stored| stored.create_revision);
            entry.assignment = Some(Stored {
                create_revision: created,
                ..stored(revision, Arc::new(write.assignment.clone()))
            });
        }
        for (key, status) in &plan.statuses {
            let revision = self.snapshot.revision;
            match status {
                Status::Service(status) => {
                    self.snapshot
                        .service_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
                Status::Node(status) => {
                    self.snapshot
                        .node_statuses
                        .insert(name(key.name.as_str()), stored(revision, status.clone()));
                }
                Status::ConfigFile(status) => {
                    self.snapshot
                        .file_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
                Status::VirtualIp(status) => {
                    self.snapshot
                        .virtual_ip_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
            }
        }
        for key in &plan.ended {
            self.snapshot.virtual_ip_statuses.remove(key);
            self.snapshot.service_statuses.remove(key);
            self.snapshot.file_statuses.remove(key);
            if let Ok(node) = key.name.as_str().parse()
                && key.kind == Kind::Node
            {
                self.snapshot.node_statuses.remove(&node);
            }
        }
        for digest in &plan.spent_acks {
            self.snapshot.acks.remove(digest);
        }
        self.snapshot.breaker = plan.breaker.clone();
        let revision = self.snapshot.revision;
        for (node, peer) in &plan.network.peers {
            match peer {
                Some(peer) => self
                    .snapshot
                    .peers
                    .insert(node.clone(), stored(revision, Arc::new(peer.clone()))),
                None => self.snapshot.peers.remove(node),
            };
        }
        for (key, endpoints) in &plan.network.endpoints {
            match endpoints {
                Some(endpoints) => self
                    .snapshot
                    .endpoints
                    .insert(key.clone(), stored(revision, Arc::new(endpoints.clone()))),
                None => self.snapshot.endpoints.remove(key),
            };
        }
        for (namespace, policies) in &plan.network.policies {
            match policies {
                Some(policies) => self
                    .snapshot
                    .policies
                    .insert(namespace.clone(), stored(revision, Arc::new(policies.clone()))),
                None => self.snapshot.policies.remove(namespace),
            };
        }
    }

    /// One pass of the controller.
    pub fn pass(&mut self) {
        let plan = self.plan();
        self.execute(&plan);
    }
    /// One pass, and what it was.
    pub fn passed(&mut self) -> Plan {
        let plan = self.plan();
        self.execute(&plan);
        plan
    }

    /// Passes and obedient agents until nothing changes; the number of rounds.
    pub fn settle(&mut self) -> usize {
        for round in 0..2_000 {
            let rests = {
                let plan = self.plan();
                let rests = plan.rests(&self.snapshot);
                self.execute(&plan);
                rests
            };
            let before: Vec<_> = self
                .snapshot
                .nodes
                .values()
                .map(|entry| entry.report.as_ref().map(|r| r.value.clone()))
                .collect();
            for node in self.agents.keys().cloned().collect::<Vec<_>>() {
                self.step(node.as_str());
            }
            let after: Vec<_> = self
                .snapshot
                .nodes
                .values()
                .map(|entry| entry.report.as_ref().map(|r| r.value.clone()))
                .collect();
            if rests && before == after {
                return round;
            }
        }
        panic!("does not settle");
    }

    // ---- the agents -----------------------------------------------------------------------------------------------

    fn image(&self, entry: &Assigned) -> String {
        let key = ResourceKey {
            namespace: Some(entry.namespace.clone()),
            kind: entry.kind,
            name: entry.workload.clone(),
        };
        let record = self
            .snapshot
            .accepted
            .get(&key)
            .and_then(|history| history.records.get(&entry.n));
        let record: Option<&Accepted> = record
            .and_then(|entry| entry.value.as_ref().ok())
            .map(|record| &**record);
        match record.map(|record| &record.body) {
            Some(schemas::records::AcceptedBody::Service(spec)) => spec.container.image.as_str().to_owned(),
            _ => String::new(),
        }
    }

    fn spec(&self, entry: &Assigned) -> Option<ServiceSpec> {
        let key = ResourceKey {
            namespace: Some(entry.namespace.clone()),
            kind: entry.kind,
            name: entry.workload.clone(),
        };
        match &self
            .snapshot
            .accepted
            .get(&key)?
            .records
            .get(&entry.n)?
            .value
            .as_ref()
            .ok()?
            .body
        {
            schemas::records::AcceptedBody::Service(spec) => Some((**spec).clone()),
            _ => None,
        }
    }

    /// One agent acts on its assignment, one step for each instance, and reports; if it has a session.
    pub fn step(&mut self, text: &str) {
        let node = name(text);
        let Some(entry) = self.snapshot.nodes.get(&node) else {
            return;
        };
        if entry.session.is_none() {
            return;
        }
        let assignment: Option<Assignment> = entry
            .assignment
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .map(|assignment| (**assignment).clone());
        self.act(&node, assignment);
        self.report(text);
    }

    /// What an agent does without anybody's help: its last assignment is on its disk.
    fn act(&mut self, node: &NodeName, assignment: Option<Assignment>) {
        let Some(mut agent) = self.agents.remove(node) else {
            return;
        };
        if let Some(assignment) = assignment.filter(|assignment| assignment.order >= agent.applied) {
            agent.applied = assignment.order;
            agent.subnet = assignment.network.map(|network| network.subnet).or(agent.subnet);
            for entry in assignment.instances {
                let id = (entry.uid.clone(), entry.slot.clone());
                match (entry.state, agent.held.get_mut(&id)) {
                    (AssignedState::Absent, _) => {
                        let gone = agent.held.remove(&id);
                        let address = gone.and_then(|container| container.entry.address);
                        agent.lingering.extend(address.map(|address| (id, address)));
                    }
                    (_, None) => {
                        agent.lingering.remove(&id);
                        agent.held.insert(
                            id,
                            Container {
                                entry,
                                ready: false,
                                steps: 0,
                                next: None,
                            },
                        );
                    }
                    (_, Some(container)) if container.entry.n == entry.n => {
                        container.entry = entry;
                        container.next = None;
                    }
                    (_, Some(container)) => container.next = Some(entry),
                }
            }
        }
        let mut held = std::mem::take(&mut agent.held);
        for container in held.values_mut() {
            if let Some(next) = container.next.clone() {
                let replaces = match (self.spec(&container.entry), self.spec(&next)) {
                    (Some(old), Some(new)) => {
                        matches!(planner::change::cost(&old, &new), planner::change::Cost::Replace { .. })
                    }
                    _ => true,
                };
                if !replaces {
                    container.entry = next;
                    container.next = None;
                } else if !self.missing.contains(&self.image(&next)) && !self.settles(node, &next) {
                    *container = Container {
                        entry: next,
                        ready: false,
                        steps: 1,
                        next: None,
                    };
                    continue;
                }
            }
            let image = self.image(&container.entry);
            let limit = match container.entry.state {
                _ if self.missing.contains(&image) && container.steps < 1 => 0,
                AssignedState::Prepared => 1.max(container.steps),
                _ if self.settles(node, &container.entry) => 1.max(container.steps),
                _ if self.away.contains(node) && !self.gives(&container.entry) => container.steps,
                _ if self.crashing.contains(&image) => 2,
                _ => 3,
            };
            container.steps = (container.steps + 1).min(limit);
            let sick = self
                .sick
                .contains(&format!("{}.{}", container.entry.workload, container.entry.slot));
            container.ready = container.steps == 3 && !sick;
        }
        agent.held = held;
        self.agents.insert(node.clone(), agent);
    }

    /// An agent that reports these as running, whatever it was given.
    pub fn claim(&mut self, text: &str, entries: &[Assigned]) {
        let agent = self.agents.entry(name(text)).or_default();
        agent.held.extend(entries.iter().map(|entry| {
            let container = Container {
                entry: entry.clone(),
                ready: true,
                steps: 3,
                next: None,
            };
            ((entry.uid.clone(), entry.slot.clone()), container)
        }));
        self.report(text);
    }

    /// Writes an agent's report as it is now.
    pub fn report(&mut self, text: &str) {
        let node = name(text);
        let Some(agent) = self.agents.get(&node) else { return };
        let mut instances: Vec<ReportedInstance> = agent
            .held
            .values()
            .map(|container| self.reported(&node, container))
            .collect();
        instances.sort_by(|a, b| {
            (&a.namespace, &a.workload, &a.slot, &a.uid).cmp(&(&b.namespace, &b.workload, &b.slot, &b.uid))
        });
        let report = Report {
            network: agent.subnet.map(|subnet| ReportedNetwork {
                subnet,
                lingering: agent
                    .lingering
                    .iter()
                    .map(|((uid, slot), address)| Lingering {
                        address: *address,
                        uid: uid.clone(),
                        slot: slot.clone(),
                    })
                    .collect(),
            }),
            schema_version: SchemaVersion::default(),
            cluster: self.snapshot.cluster.id.clone(),
            node: node.clone(),
            applied: agent.applied,
            instances,
            conditions: Vec::new(),
            virtual_ips: agent.virtual_ips.clone(),
        };
        let same = self
            .snapshot
            .nodes
            .get(&node)
            .and_then(|entry| entry.report.as_ref())
            .is_some_and(|old| old.value.as_ref().is_ok_and(|old| **old == report));
        if !same {
            let revision = self.revision();
            self.entry(text).report = Some(stored(revision, Arc::new(report)));
        }
    }

    /// Whether a node that the assignment names is there to give the image.
    fn gives(&self, entry: &Assigned) -> bool {
        let there = |node| {
            self.snapshot
                .nodes
                .get(node)
                .is_some_and(|entry| entry.session.is_some())
        };
        entry.from.iter().any(|source| there(&source.node))
    }

    /// Whether an agent waits to be told what an image is that it could fetch.
    fn settles(&self, node: &NodeName, entry: &Assigned) -> bool {
        entry.image == Some(AssignedImage::Settling) && self.tells.contains_key(node)
    }

    /// What an agent says of an image that its assignment does not say.
    fn told(&self, node: &NodeName, entry: &Assigned) -> Option<ImagePin> {
        let unknown = !matches!(entry.image, Some(AssignedImage::Settled(_)));
        self.tells.get(node).copied().filter(|_| unknown)
    }

    fn reported(&self, node: &NodeName, container: &Container) -> ReportedInstance {
        let entry = &container.entry;
        let image = self.image(entry);
        let phase = match container.steps {
            0 => Phase::Pulling { percent: 0 },
            1 if entry.state == AssignedState::Prepared => Phase::Prepared,
            1 => Phase::Pending,
            _ => Phase::Running,
        };
        let fail = |n: u64, reason: FailingReason| {
            Some(Failing {
                n,
                reason,
                message: format!("{reason:?}"),
                logs: Vec::new(),
            })
        };
        let missing_next = container
            .next
            .as_ref()
            .filter(|next| self.missing.contains(&self.image(next)));
        let failing = if self.away.contains(node) && container.steps == 0 {
            fail(entry.n, FailingReason::ImagePullFailed)
        } else if self.missing.contains(&image) && container.steps == 0 {
            fail(entry.n, FailingReason::ImageNotFound)
        } else if let Some(next) = missing_next {
            fail(next.n, FailingReason::ImageNotFound)
        } else if self.crashing.contains(&image) && container.steps == 2 {
            fail(entry.n, FailingReason::CrashLoop)
        } else {
            None
        };
        ReportedInstance {
            namespace: entry.namespace.clone(),
            kind: entry.kind,
            workload: entry.workload.clone(),
            uid: entry.uid.clone(),
            slot: entry.slot.clone(),
            n: entry.n,
            digest: entry.digest.clone(),
            phase,
            ready: container.ready,
            container: (container.steps >= 2).then(|| "0123456789ab".to_owned()),
            restarts: 0,
            ports: entry.ports.clone(),
            addresses: entry.address.map(IpAddr::V4).into_iter().collect(),
            exit_code: None,
            next: container.next.as_ref().map(|next| Next {
                n: next.n,
                phase: Phase::Pulling { percent: 0 },
                image: self.told(node, next),
            }),
            failing,
            conditions: Vec::new(),
            image: self.told(node, entry).filter(|_| container.steps > 0),
            token: entry.token,
        }
    }

    // ---- what tests ask -------------------------------------------------------------------------------------------

    /// All entries of all stored assignments.
    pub fn assigned(&self) -> Vec<(NodeName, Assigned)> {
        let assignment = |entry: &NodeEntry| {
            entry
                .assignment
                .as_ref()
                .and_then(|stored| stored.value.as_ref().ok())
                .map(Arc::clone)
        };
        self.snapshot
            .nodes
            .iter()
            .filter_map(|(node, entry)| Some((node.clone(), assignment(entry)?)))
            .flat_map(|(node, assignment)| {
                assignment
                    .instances
                    .clone()
                    .into_iter()
                    .map(move |one| (node.clone(), one))
            })
            .collect()
    }

    /// `web.1 on n2, web.2 on n1`: what is assigned as present, with other states named.
    pub fn picture(&self) -> String {
        let mut lines: Vec<String> = self
            .assigned()
            .into_iter()
            .map(|(node, one)| match one.state {
                AssignedState::Present => format!("{} on {node}", one.name()),
                AssignedState::Prepared => format!("{} prepared on {node}", one.name()),
                AssignedState::Absent => format!("{} absent on {node}", one.name()),
            })
            .collect();
        lines.sort();
        lines.join(", ")
    }

    pub fn status(&self, text: &str) -> ServiceStatus {
        self.snapshot.service_statuses[&key(text)]
            .value
            .as_ref()
            .map(|status| ServiceStatus::clone(status))
            .expect("readable")
    }
    pub fn condition(&self, text: &str, kind: ConditionType) -> Condition {
        let found = self
            .status(text)
            .conditions
            .into_iter()
            .find(|condition| condition.kind == kind);
        found.unwrap_or_else(|| panic!("{text} has no {kind:?}"))
    }
    /// How many of a service's instances really serve, on any node.
    pub fn serving(&self, text: &str) -> usize {
        let held = self.agents.values().flat_map(|agent| agent.held.values());
        held.filter(|container| container.ready && container.entry.workload.as_str() == text)
            .count()
    }
}

/// One change as a line.
pub fn line(change: &Change) -> String {
    let node = change.node.as_ref().map_or("-".to_owned(), ToString::to_string);
    let waits = change
        .waits
        .as_ref()
        .map_or(String::new(), |waits| format!(" waits {waits:?}"));
    format!(
        "{} {} {:?} {:?}{waits}",
        change.instance, node, change.action, change.reason
    )
}
