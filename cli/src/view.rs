//! The cluster as the store has it, decoded for people: what `get`, `describe`, `status`, `apply` and `delete` look at. A
//! value that cannot be read is a sentence in its place and disturbs nothing else. Following a cluster builds a new
//! view from each state of the cache; documents that did not change are not admitted again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use runtime::KeyValue;
use schemas::admit::{Admitted, admit_stored, leased};
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::{InstanceName, Namespace, NodeName, ResourceName};
use schemas::problem::Problems;
use schemas::records::{
    Assigned, AssignedState, Assignment, Breaker, ClusterMarker, Condition, ConditionStatus, ConditionType,
    ConfigFileStatus, Cordon, CordonMode, Event, NodeFacts, NodeStatus, Phase, Policies, Record, Report,
    ReportedInstance, Sealed, ServiceStatus, Uid, Verdict, VerdictRecord, VirtualIpStatus,
};

use crate::connect::Connection;
use crate::failure::{Exit, Failure};

/// A document under `desired/`.
#[derive(Debug)]
pub struct Declared {
    pub mod_revision: i64,
    /// As it is stored.
    pub text: Vec<u8>,
    pub admitted: Result<Admitted, Problems>,
}

/// A record that was read, or why it cannot be.
pub type Recorded<T> = Result<T, String>;

/// The cluster, as far as it was read.
#[derive(Debug, Default)]
pub struct View {
    pub declared: BTreeMap<ResourceKey, Arc<Declared>>,
    pub services: BTreeMap<ResourceKey, Recorded<ServiceStatus>>,
    pub node_statuses: BTreeMap<NodeName, Recorded<NodeStatus>>,
    pub files: BTreeMap<ResourceKey, Recorded<ConfigFileStatus>>,
    pub virtual_ips: BTreeMap<ResourceKey, Recorded<VirtualIpStatus>>,
    /// Of secrets: ciphertext.
    pub sealed: BTreeMap<ResourceKey, Recorded<Sealed>>,
    /// Sealed values may not be read by whoever asks.
    pub sealed_hidden: bool,
    /// Whether the cluster has a network of its own.
    pub network: bool,
    /// Network policies as they are in force.
    pub policies: BTreeMap<Namespace, Recorded<Policies>>,
    pub facts: BTreeMap<NodeName, Recorded<NodeFacts>>,
    pub sessions: BTreeMap<NodeName, ()>,
    pub verdicts: BTreeMap<NodeName, VerdictRecord>,
    pub cordons: BTreeMap<NodeName, Cordon>,
    pub assignments: BTreeMap<NodeName, Recorded<Assignment>>,
    pub reports: BTreeMap<NodeName, Recorded<Report>>,
    pub breaker: Breaker,
    /// Who leads, in the leader's own words.
    pub leader: Option<String>,
    /// Keys under the prefix that are nothing of ours; at most 100.
    pub foreign: Vec<String>,
    /// Keys of ours that cannot be read, and why.
    pub unreadable: Vec<String>,
    /// What is wrong with the store as a whole, in its own words and ours.
    pub store: Vec<String>,
    /// By key: `<namespace>/<id>`.
    pub events: BTreeMap<String, Happened>,
}

/// An event, and when the store took it: the only order that holds across machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    pub revision: i64,
    pub event: Event,
}

/// An instance, from what is assigned and what is reported.
#[derive(Clone, Debug)]
pub struct Instance<'a> {
    pub name: InstanceName,
    pub node: &'a NodeName,
    pub uid: &'a Uid,
    pub assigned: Option<&'a Assigned>,
    pub reported: Option<&'a ReportedInstance>,
    /// Whether its node's agent can be heard.
    pub heard: bool,
}

impl View {
    /// Reads whole classes of keys, such as `desired` and `status`.
    pub async fn read(connection: &Connection, classes: &[&str]) -> Result<Self, Failure> {
        let mut view = Self::default();
        for class in classes {
            let listing = match connection.class(class).await {
                // Who only looks may read nothing sealed, and hears of the rest all the same.
                Err(failure) if *class == "sealed" && failure.exit != Exit::Unreachable => {
                    view.sealed_hidden = true;
                    continue;
                }
                read => read?,
            };
            for kv in &listing.kvs {
                view.take(&connection.root, kv, None);
            }
        }
        for key in [Key::Cluster, Key::Breaker, Key::Election] {
            if let Some(kv) = connection.get(&key).await? {
                view.take(&connection.root, &kv, None);
            }
        }
        Ok(view)
    }

    /// A view of these keys; what did not change is taken from the one before.
    pub fn of<'a>(root: &Root, kvs: impl Iterator<Item = &'a KeyValue>, before: Option<&Self>) -> Self {
        let mut view = Self::default();
        for kv in kvs {
            view.take(root, kv, before);
        }
        view
    }

    fn take(&mut self, root: &Root, kv: &KeyValue, before: Option<&Self>) {
        let Some(key) = root.parse(&kv.key) else {
            if self.foreign.len() < 100 {
                self.foreign.push(String::from_utf8_lossy(&kv.key).into_owned());
            }
            return;
        };
        match key {
            Key::Desired(resource) => {
                let same = before.and_then(|view| view.declared.get(&resource));
                let same = same
                    .filter(|declared| declared.mod_revision == kv.mod_revision)
                    .cloned();
                let declared = same.unwrap_or_else(|| Arc::new(Declared::new(&resource, kv)));
                self.declared.insert(resource, declared);
            }
            Key::Status(resource) => match resource.kind {
                Kind::Service => {
                    self.services.insert(resource, decode(kv));
                }
                Kind::Node => {
                    if let Ok(node) = resource.name.as_str().parse() {
                        self.node_statuses.insert(node, decode(kv));
                    }
                }
                Kind::ConfigFile => {
                    self.files.insert(resource, decode(kv));
                }
                Kind::VirtualIP => {
                    self.virtual_ips.insert(resource, decode(kv));
                }
                Kind::Registry | Kind::Secret | Kind::Command | Kind::NetworkPolicy => {}
            },
            Key::Assignment(node) => {
                self.assignments.insert(node, decode(kv));
            }
            Key::Report(node) => {
                self.reports.insert(node, decode(kv));
            }
            Key::Node(node) => {
                self.facts.insert(node, decode(kv));
            }
            Key::Session(node) => {
                self.sessions.insert(node, ());
            }
            Key::Verdict(node) => {
                if let Some(verdict) = self.readable(kv) {
                    self.verdicts.insert(node, verdict);
                }
            }
            Key::Cordon(node) => {
                if let Some(cordon) = self.readable(kv) {
                    self.cordons.insert(node, cordon);
                }
            }
            Key::Breaker => self.breaker = self.readable(kv).unwrap_or_default(),
            Key::Election => self.leader = Some(leader(&kv.value)),
            Key::Event(rest) => {
                if let Ok(event) = Event::decode(&kv.value) {
                    let revision = kv.mod_revision;
                    self.events.insert(rest, Happened { revision, event });
                }
            }
            Key::Sealed(resource) => {
                if resource.kind == Kind::Secret {
                    self.sealed.insert(resource, decode(kv));
                }
            }
            Key::Policies(namespace) => {
                self.policies.insert(namespace, decode(kv));
            }
            Key::Cluster => {
                let marker = self.readable::<ClusterMarker>(kv);
                self.network = marker.is_some_and(|marker| marker.network.is_some());
            }
            Key::Accepted(..)
            | Key::Ack(_)
            | Key::Controller(_)
            | Key::Blob(..)
            | Key::Handed(_)
            | Key::Audit(..)
            | Key::Own(..)
            | Key::Peer(_)
            | Key::Endpoints(_)
            | Key::Join(_)
            | Key::Trust(_)
            | Key::Issued(..) => {}
        }
    }

    fn readable<T: Record>(&mut self, kv: &KeyValue) -> Option<T> {
        match decode(kv) {
            Ok(record) => Some(record),
            Err(why) => {
                self.unreadable
                    .push(format!("{}: {why}", String::from_utf8_lossy(&kv.key)));
                None
            }
        }
    }

    /// The services that are declared, or still have instances.
    pub fn service_keys(&self) -> impl Iterator<Item = &ResourceKey> {
        let declared = self.declared.keys().filter(|key| key.kind == Kind::Service);
        let mut keys: Vec<_> = declared.chain(self.services.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
    }

    /// The files that are declared, or deleted and still used.
    pub fn file_keys(&self) -> impl Iterator<Item = &ResourceKey> {
        let declared = self.declared.keys().filter(|key| key.kind == Kind::ConfigFile);
        let keys: BTreeSet<_> = declared.chain(self.files.keys()).collect();
        keys.into_iter()
    }

    /// The secrets that are declared, or have a value.
    pub fn secret_keys(&self) -> impl Iterator<Item = &ResourceKey> {
        let declared = self.declared.keys().filter(|key| key.kind == Kind::Secret);
        let keys: BTreeSet<_> = declared.chain(self.sealed.keys()).collect();
        keys.into_iter()
    }

    /// All nodes anything is known of.
    pub fn node_names(&self) -> Vec<NodeName> {
        let declared = self.declared.keys().filter(|key| key.kind == Kind::Node);
        let declared = declared.filter_map(|key| key.name.as_str().parse().ok());
        let mut names: Vec<NodeName> = declared
            .chain(self.node_statuses.keys().cloned())
            .chain(self.facts.keys().cloned())
            .chain(self.sessions.keys().cloned())
            .chain(self.assignments.keys().cloned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// What a node is held to be.
    pub fn verdict(&self, node: &NodeName) -> Verdict {
        let told = self.verdicts.get(node).map(|record| record.verdict);
        let told = told.or_else(|| self.node_statuses.get(node)?.as_ref().ok().map(|status| status.verdict));
        match told {
            Some(told) => told,
            None if self.sessions.contains_key(node) => Verdict::Ready,
            None => Verdict::Unreachable,
        }
    }

    /// Whether and how a node is cordoned.
    pub fn cordon(&self, node: &NodeName) -> Option<CordonMode> {
        self.cordons.get(node).map(|cordon| cordon.mode)
    }

    /// Every instance, by name, then node.
    pub fn instances(&self) -> Vec<Instance<'_>> {
        let mut found: BTreeMap<(InstanceName, &Uid, &NodeName), Instance<'_>> = BTreeMap::new();
        let assignments = self
            .assignments
            .iter()
            .filter_map(|(node, record)| Some((node, record.as_ref().ok()?)));
        for (node, assignment) in assignments {
            for assigned in &assignment.instances {
                let instance = Instance {
                    name: assigned.name(),
                    node,
                    uid: &assigned.uid,
                    assigned: Some(assigned),
                    reported: None,
                    heard: self.verdict(node) == Verdict::Ready,
                };
                found.insert((assigned.name(), &assigned.uid, node), instance);
            }
        }
        let reports = self
            .reports
            .iter()
            .filter_map(|(node, record)| Some((node, record.as_ref().ok()?)));
        for (node, report) in reports {
            for reported in &report.instances {
                let instance = Instance {
                    name: reported.name(),
                    node,
                    uid: &reported.uid,
                    assigned: None,
                    reported: None,
                    heard: self.verdict(node) == Verdict::Ready,
                };
                found
                    .entry((reported.name(), &reported.uid, node))
                    .or_insert(instance)
                    .reported = Some(reported);
            }
        }
        // Absent and no longer reported: gone.
        found
            .into_values()
            .filter(|instance| !(instance.is_absent() && instance.reported.is_none()))
            .collect()
    }

    /// The instances of one workload.
    pub fn instances_of(&self, key: &ResourceKey) -> Vec<Instance<'_>> {
        let mut all = self.instances();
        all.retain(|instance| instance.is_of(key));
        all
    }

    /// The labels a service's instances and a service itself are selected by.
    pub fn labels(&self, key: &ResourceKey) -> BTreeMap<String, String> {
        let admitted = self
            .declared
            .get(key)
            .and_then(|declared| declared.admitted.as_ref().ok());
        admitted
            .map(|admitted| admitted.document.metadata().labels.clone())
            .unwrap_or_default()
    }

    /// A node's labels as placement sees them: the agent's, and over them those of the Node resource.
    pub fn node_labels(&self, node: &NodeName) -> BTreeMap<String, String> {
        let facts = self.facts.get(node).and_then(|facts| facts.as_ref().ok());
        let mut labels = facts.map(|facts| facts.labels.clone()).unwrap_or_default();
        let declared = self
            .declared
            .get(&node_key(node))
            .and_then(|declared| declared.admitted.as_ref().ok());
        if let Some(Document::Node(resource)) = declared.map(|admitted| &admitted.document) {
            labels.extend(resource.spec.labels.clone());
            labels.extend(resource.metadata.labels.clone());
        }
        labels
    }
}

impl Declared {
    pub fn new(key: &ResourceKey, kv: &KeyValue) -> Self {
        let admitted = if kv.lease == 0 {
            admit_stored(key, &kv.value)
        } else {
            Err(leased(key))
        };
        Self {
            mod_revision: kv.mod_revision,
            text: kv.value.to_vec(),
            admitted,
        }
    }
}

impl Instance<'_> {
    pub fn is_of(&self, key: &ResourceKey) -> bool {
        key.kind == Kind::Service
            && Some(&self.name.namespace) == key.namespace.as_ref()
            && self.name.workload == key.name
    }

    /// Whether it is ordered to go.
    pub fn is_absent(&self) -> bool {
        self.assigned
            .is_some_and(|assigned| assigned.state == AssignedState::Absent)
    }

    pub fn is_ready(&self) -> bool {
        self.heard && self.reported.is_some_and(|reported| reported.ready)
    }

    /// How far it is, in a word or two.
    pub fn phase(&self) -> String {
        if !self.heard {
            return "Unknown".to_owned();
        }
        let Some(reported) = self.reported else {
            return "Assigned".to_owned();
        };
        if self.is_absent() {
            return "Removing".to_owned();
        }
        if let Some(failing) = &reported.failing {
            return format!("{:?}", failing.reason);
        }
        if reported.phase == Phase::Running && !reported.ready {
            return "Starting".to_owned();
        }
        phase_text(reported.phase)
    }
}

/// A phase in a word or two.
pub fn phase_text(phase: Phase) -> String {
    match phase {
        Phase::Pulling { percent: 0 } => "Pulling".to_owned(),
        Phase::Pulling { percent } => format!("Pulling {percent}%"),
        Phase::Pending
        | Phase::Prepared
        | Phase::Running
        | Phase::BackOff
        | Phase::Stopping
        | Phase::Stopped
        | Phase::Failed
        | Phase::Held
        | Phase::Orphaned => format!("{phase:?}"),
    }
}

/// The key of a Registry.
pub fn registry_key(name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: None,
        kind: Kind::Registry,
        name: name.clone(),
    }
}

/// The key of a ConfigFile.
pub fn file_key(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::ConfigFile,
        name: name.clone(),
    }
}

/// The key of a Secret.
pub fn secret_key(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::Secret,
        name: name.clone(),
    }
}

/// The key of a Command.
pub fn command_key(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::Command,
        name: name.clone(),
    }
}

/// The key of a NetworkPolicy.
pub fn network_policy_key(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::NetworkPolicy,
        name: name.clone(),
    }
}

/// The key of a Node resource. Every node's name is a resource's name.
pub fn node_key(node: &NodeName) -> ResourceKey {
    let name = node.as_str().parse().expect("a node's name is a DNS label");
    ResourceKey {
        namespace: None,
        kind: Kind::Node,
        name,
    }
}

pub fn service_key(namespace: &Namespace, name: &schemas::names::ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::Service,
        name: name.clone(),
    }
}

/// `service/web`, or `service/web in namespace prod`.
pub fn title(key: &ResourceKey) -> String {
    match &key.namespace {
        Some(namespace) if *namespace != Namespace::default() => {
            format!("{}/{} in namespace {namespace}", key.kind.segment(), key.name)
        }
        _ => format!("{}/{}", key.kind.segment(), key.name),
    }
}

/// A condition of one type.
pub fn condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// Whether a change has stopped: with its reason.
pub fn stopped(status: &ServiceStatus) -> Option<&Condition> {
    let progressing = condition(&status.conditions, ConditionType::Progressing)?;
    (progressing.status == ConditionStatus::False && progressing.reason != "Complete").then_some(progressing)
}

fn decode<T: Record>(kv: &KeyValue) -> Recorded<T> {
    T::decode(&kv.value).map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        format!("cannot {error}{cause}")
    })
}

/// The leader's name out of the election's value, which is its own JSON or text.
fn leader(value: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(value).ok();
    let name = json.as_ref().and_then(|value| {
        ["id", "name", "holder", "identity"]
            .iter()
            .find_map(|key| value.get(key)?.as_str())
    });
    let text = name.map_or_else(|| String::from_utf8_lossy(value).into_owned(), str::to_owned);
    crate::output::cut(&crate::failure::printable(&text), 80)
}
