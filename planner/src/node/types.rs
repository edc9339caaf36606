//! What the node planner may know, and what it answers. The agent's observe step fills a [`NodeInput`]; a [`Step`] is so
//! specific that the agent's execute step has nothing left to choose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use schemas::config_file::{FileDigest, FileEdition};
use schemas::container::{FileMount, HealthCheck, NetworkMode};
use schemas::image::{ImageDigest, ImagePin, ImageRef};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{InstanceName, Namespace, NodeName, ResourceName, Slot};
use schemas::records::{
    Assigned, AssignedPort, Assignment, ClusterId, Digest, FailingReason, ImageSource, InstanceCondition, Lingering,
    NodeCondition, Report, ReportedInstance, Seeds, Uid,
};
use schemas::service::ServiceSpec;
use schemas::units::Span;
use serde::{Deserialize, Serialize};

use super::contact::Contact;
use super::labels::OwnLabels;
use super::ledger::{Ledger, LedgerEntry};

/// One instance of one life of a workload. Orders as assignments and reports do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceKey {
    pub namespace: Namespace,
    pub workload: ResourceName,
    pub slot: Slot,
    pub uid: Uid,
    #[serde(with = "kind")]
    pub kind: Kind,
}

impl InstanceKey {
    /// As people name it.
    #[must_use]
    pub fn name(&self) -> InstanceName {
        InstanceName {
            namespace: self.namespace.clone(),
            workload: self.workload.clone(),
            slot: self.slot.clone(),
        }
    }
    /// The resource it is an instance of.
    #[must_use]
    pub fn resource(&self) -> ResourceKey {
        ResourceKey {
            namespace: Some(self.namespace.clone()),
            kind: self.kind,
            name: self.workload.clone(),
        }
    }
    /// One of its accepted specs.
    #[must_use]
    pub fn spec(&self, n: u64, digest: &Digest) -> SpecId {
        SpecId {
            resource: self.resource(),
            n,
            digest: digest.clone(),
        }
    }
    /// The one a report speaks of.
    #[must_use]
    pub fn reported(instance: &ReportedInstance) -> Self {
        Self {
            namespace: instance.namespace.clone(),
            workload: instance.workload.clone(),
            slot: instance.slot.clone(),
            uid: instance.uid.clone(),
            kind: instance.kind,
        }
    }
}
impl From<&Assigned> for InstanceKey {
    fn from(assigned: &Assigned) -> Self {
        Self {
            namespace: assigned.namespace.clone(),
            workload: assigned.workload.clone(),
            slot: assigned.slot.clone(),
            uid: assigned.uid.clone(),
            kind: assigned.kind,
        }
    }
}
impl fmt::Display for InstanceKey {
    /// `default/web.2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.namespace, self.workload, self.slot)
    }
}

/// Kinds are written as keys spell them.
mod kind {
    use schemas::kinds::Kind;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.segment())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(deserializer)?;
        Kind::from_segment(&text).ok_or_else(|| D::Error::custom("an unknown kind"))
    }
}

/// One accepted spec, by its key and the digest of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecId {
    pub resource: ResourceKey,
    pub n: u64,
    pub digest: Digest,
}

/// What the agent has of an accepted spec. One that is not in the map at all is not fetched yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecState {
    /// On disk, and its digest is right.
    Here(Arc<ServiceSpec>),
    /// The store has no such record, or its bytes have another digest, or they cannot be read: in one sentence.
    Damaged(String),
}

/// One edition of a file that a container mounts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    pub resource: ResourceKey,
    pub edition: FileEdition,
}

impl FileId {
    /// What an instance mounts; None where its spec does not say which edition that is.
    #[must_use]
    pub fn of(namespace: &Namespace, mount: &FileMount) -> Option<Self> {
        Some(Self {
            resource: ResourceKey {
                namespace: Some(namespace.clone()),
                kind: Kind::ConfigFile,
                name: mount.file.clone(),
            },
            edition: mount.edition?,
        })
    }
}

/// What an edition of a secret is that was handed to this node, and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// Good for a file and for a variable.
    Text,
    /// Good for a file only.
    Bytes,
}

/// A container that may be made: what the node's policy is asked about. Which slot it is plays no part in that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Making {
    pub spec: SpecId,
    pub ports: Vec<AssignedPort>,
    /// What its tag was settled to be.
    pub image: Option<ImageDigest>,
}

/// What the node's policy says of a container that may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    Granted,
    /// With every reason, for people.
    Denied(String),
    /// The policy cannot be read, for this reason: nothing new is made, and nothing is said of what runs.
    Withheld(String),
}

/// A container as the engine lists it: of any state, ours or merely labelled like ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The full id.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub state: ContainerState,
    /// The image as it was given at create. A list may show an id instead; an inspection never does.
    pub image: String,
    /// The id of the image it was made of, where the engine tells one.
    pub image_id: Option<ImageDigest>,
    /// The networks it is connected to.
    pub networks: BTreeMap<String, NetworkEnd>,
    /// What only an inspection tells; the last one, or None before the first.
    pub details: Option<Details>,
}

impl Observed {
    /// Its labels, if they are all there and well formed.
    #[must_use]
    pub fn own(&self) -> Option<OwnLabels> {
        OwnLabels::parse(&self.labels)
    }
}

/// A container's end of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkEnd {
    /// Empty while it does not run.
    pub addresses: Vec<IpAddr>,
}

/// The engine's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Created and never started.
    Created,
    Running,
    Paused,
    /// The engine itself restarts it: its restart policy was changed by hand.
    Restarting,
    /// It ended; the code, when the list tells.
    Exited {
        code: Option<i64>,
    },
    /// The engine failed to remove it.
    Dead,
    Removing,
}

/// What only an inspection tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// When it was last started, in the engine's own words: only ever compared for being the same.
    pub started_at: Option<String>,
    pub exit_code: Option<i64>,
    pub oom_killed: bool,
    /// `no` unless someone changed it.
    pub restart_policy: String,
    pub limits: Limits,
}

/// Limits that the engine can change on a running container, and so can anyone by hand. 0 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    pub nano_cpus: i64,
    pub cpu_shares: i64,
    pub cpu_quota: i64,
    pub cpu_period: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub memory: i64,
    pub memory_swap: i64,
    pub memory_reservation: i64,
    pub blkio_weight: i64,
    pub pids_limit: i64,
}

/// What is known of an image reference on this node. One that is not in the map was not looked up yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub present: bool,
    /// What the registry in the reference knows it by. None of what is not here, and of what came from nowhere else.
    pub pin: Option<ImagePin>,
    /// It came from another node, and has the name for that.
    pub loaded: bool,
    /// When the last successful pull by this process began, in ms of BOOTTIME.
    pub pulled_ms: Option<u64>,
    /// A pull is under way; percent, 0 while unknown.
    pub pulling: Option<u8>,
    /// How the last pull failed, if it did.
    pub failed: Option<PullFailure>,
}

/// A pull that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullFailure {
    pub reason: FailingReason,
    pub message: String,
    /// Not tried again before, in ms of BOOTTIME.
    pub retry_ms: u64,
    /// Other nodes were asked too.
    pub others_asked: bool,
}

/// What the probe of a container last said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Nothing yet since its start.
    #[default]
    Unknown,
    Healthy,
    /// It failed `retries` times in a row after its start period.
    Unhealthy {
        message: String,
    },
}

/// What a check says, and what was checked: the answer to another question than today's counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    pub target: ProbeTarget,
    pub probe: Probe,
}

/// Everything the node planner may know.
#[derive(Clone, Debug)]
pub struct NodeInput {
    /// CLOCK_BOOTTIME in milliseconds: of this machine, compared with itself only.
    pub now_ms: u64,
    pub node: NodeName,
    pub cluster: ClusterId,
    /// The assignment in force: the newest that was accepted, from disk. None before the first.
    pub assignment: Option<Arc<Assignment>>,
    pub specs: BTreeMap<SpecId, SpecState>,
    /// Content of files, by its digest: on disk; or why it cannot be had, in one sentence. What is not in the map is not
    /// fetched yet.
    pub files: BTreeMap<FileDigest, Result<(), String>>,
    /// Editions of secrets, by the digest that accepted specs name: handed to this node, and opening; or why not, in one
    /// sentence. What is not in the map was not handed to it.
    pub secrets: BTreeMap<Digest, Result<SecretState, String>>,
    pub ledger: Ledger,
    /// Every container with our cluster's label; or why the engine did not say, in one sentence.
    pub observed: Result<Vec<Observed>, String>,
    /// By reference text.
    pub images: BTreeMap<String, Image>,
    /// By container id.
    pub probes: BTreeMap<String, Probed>,
    /// Ids of containers whose last end a person asked for (the engine said so, and it was not us).
    pub stopped_by_person: BTreeSet<String>,
    /// Instances with a step under way, or whose step ended after `observed` was begun: left alone in this pass.
    pub busy: BTreeSet<InstanceKey>,
    /// The last lines logged by failing instances.
    pub logs: BTreeMap<InstanceKey, Vec<String>>,
    /// The ledger could not be written, or the disk is full: nothing new is begun.
    pub disk_full: bool,
    /// What the node's policy says; one that is not in the map was not asked yet. None: nothing limits this node.
    pub permits: Option<BTreeMap<Making, Permit>>,
    /// What else is wrong with the node: a held assignment, a damaged file.
    pub conditions: Vec<NodeCondition>,
    /// Addresses of instances that are gone, and until when nobody else gets them.
    pub lingering: Vec<(Lingering, u64)>,
    /// The largest packet in the cluster's network, in bytes; None while this node's end of it is not ready, and then nothing
    /// is made on it.
    pub mtu: Option<u16>,
    /// What was heard of the store.
    pub contact: Contact,
}

impl NodeInput {
    /// A node of which nothing is known yet: no assignment, and an engine without containers.
    pub fn new(now_ms: u64, node: NodeName, cluster: ClusterId) -> Self {
        Self {
            now_ms,
            node,
            cluster,
            assignment: None,
            specs: BTreeMap::new(),
            files: BTreeMap::new(),
            secrets: BTreeMap::new(),
            ledger: Ledger::default(),
            observed: Ok(Vec::new()),
            images: BTreeMap::new(),
            probes: BTreeMap::new(),
            stopped_by_person: BTreeSet::new(),
            busy: BTreeSet::new(),
            logs: BTreeMap::new(),
            disk_full: false,
            permits: None,
            conditions: Vec::new(),
            lingering: Vec::new(),
            mtu: None,
            contact: Contact::default(),
        }
    }
}

/// What to do on this node now.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a plan does nothing until it is executed"]
pub struct NodePlan {
    /// Ledger entries that differ; None is one to forget. On disk before any step runs.
    pub ledger: BTreeMap<InstanceKey, Option<LedgerEntry>>,
    /// At most one for each instance; those that end containers come first.
    pub steps: Vec<Step>,
    /// Images to fetch, each once, with the instance that asks first, and why.
    pub pulls: BTreeMap<String, Pull>,
    /// Containers to inspect before more can be decided.
    pub inspect: BTreeSet<String>,
    /// Ids of containers that bear our labels and are not ours: left alone.
    pub look_alikes: Vec<String>,
    /// Images whose presence must be looked up before more can be decided.
    pub look_up: BTreeSet<String>,
    /// What the node's policy must be asked before more can be decided.
    pub wanted_permits: BTreeSet<Making>,
    /// Accepted specs that are not here.
    pub wanted_specs: BTreeSet<SpecId>,
    /// Files that are not here.
    pub wanted_files: BTreeSet<FileId>,
    /// Accepted specs that are in use; any other copy on disk may go.
    pub used_specs: BTreeSet<SpecId>,
    /// Containers to probe, by id; any other probe ends.
    pub probes: BTreeMap<String, ProbeTarget>,
    /// When to plan again though nothing happens, in ms of BOOTTIME.
    pub look_again_ms: Option<u64>,
    /// What [`NodeInput::lingering`] is from now on.
    pub lingering: Vec<(Lingering, u64)>,
    pub report: Report,
}

/// A container that is probed. A target that differs in `up_since_ms` is a new start: its probe begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTarget {
    pub instance: InstanceKey,
    pub check: HealthCheck,
    pub network: NetworkMode,
    pub addresses: Vec<IpAddr>,
    pub up_since_ms: u64,
}

/// An image to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    pub image: ImageRef,
    /// The nodes to be asked where its registry fails, and what it is to be.
    pub others: Option<(ImagePin, Vec<ImageSource>)>,
    pub instance: InstanceKey,
    pub reason: Reason,
}

/// One operation on one instance, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub instance: InstanceKey,
    pub op: Op,
    pub reason: Reason,
    /// Of what makes a container run that may not without the store: not begun from this moment on, in ms of BOOTTIME.
    pub until_ms: Option<u64>,
}

/// A node's end of the cluster's network: a bridge that all its containers are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    pub cluster: ClusterId,
    pub node: NodeName,
    pub subnet: Ipv4Net,
    pub subnet6: Option<Ipv6Net>,
    /// The largest packet, in bytes.
    pub mtu: u16,
}

impl Ground {
    /// As the engine calls it: `reeve-<first 8 digits of the cluster's id>.<node>`. No namespace has a dot, and several nodes
    /// may share an engine.
    #[must_use]
    pub fn name(&self) -> String {
        let cluster = self.cluster.as_str();
        format!("reeve-{}.{}", cluster.get(..8).unwrap_or(cluster), self.node)
    }
    /// As the kernel calls its bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        bridge(&self.cluster, &self.node)
    }
}

/// What the kernel calls the bridge of a node's containers in the cluster's network.
#[must_use]
pub fn bridge(cluster: &ClusterId, node: &NodeName) -> String {
    let text = format!("reeve bridge\n{cluster}\n{node}\n");
    let digest = Digest::of(text.as_bytes()).to_string();
    format!("{}{}", crate::walls::BRIDGES, digest.get(..10).unwrap_or_default())
}

/// A container's place in the cluster's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    pub ground: Ground,
    pub address: Ipv4Addr,
    pub address6: Option<Ipv6Addr>,
    /// The domain of names.
    pub domain: String,
    /// The first addresses of its service, and of those it depends on, of which its variables tell.
    pub seeds: Vec<Seeds>,
}

/// What the agent tells the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the network of its namespace if need be, create the container under this name and labels, and start it.
    Create {
        name: String,
        labels: OwnLabels,
        spec: Arc<ServiceSpec>,
        /// The spec's image, by the digest that its tag was settled to be.
        image: Box<ImageRef>,
        ports: Vec<AssignedPort>,
        /// None where it stands in the network of its namespace.
        seat: Option<Box<Seat>>,
    },
    Start {
        id: String,
    },
    /// Ask it to end; SIGKILL after the grace period.
    Stop {
        id: String,
        grace: Span,
    },
    Kill {
        id: String,
    },
    /// The container, never a volume.
    Remove {
        id: String,
    },
    Unpause {
        id: String,
    },
    Rename {
        id: String,
        to: String,
    },
    /// Limits as the spec says, and the restart policy `no`.
    UpdateLimits {
        id: String,
        spec: Arc<ServiceSpec>,
    },
    /// Back into its network, at its address.
    Connect {
        id: String,
        seat: Option<Box<Seat>>,
    },
}

impl Op {
    /// One word, for logs and metrics.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Kill { .. } => "kill",
            Self::Remove { .. } => "remove",
            Self::Unpause { .. } => "unpause",
            Self::Rename { .. } => "rename",
            Self::UpdateLimits { .. } => "update",
            Self::Connect { .. } => "connect",
        }
    }
}

/// Why a step is taken. Logs and events print it; the variant's name is the stable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Assigned, and there is no container.
    Assigned,
    /// Assigned for later: only the image is fetched.
    Prepared,
    /// The assignment says it must go.
    Absent,
    /// The assignment gives it another spec; the fields that force a new container.
    SpecChanged {
        from: u64,
        to: u64,
        fields: Vec<&'static str>,
    },
    /// It has no container any more, though nobody here removed it.
    Gone,
    /// It ended.
    Ended {
        code: Option<i64>,
    },
    /// A person stopped it; what is assigned runs.
    StoppedByHand,
    Unhealthy {
        message: String,
    },
    NeverStarted,
    Paused,
    Renamed {
        found: String,
    },
    LimitsChanged,
    RestartPolicyChanged {
        found: String,
    },
    Disconnected,
    /// Its node has had no word of the store for so long as its service says, or longer.
    Isolated {
        after: Span,
    },
    /// The engine left it dead.
    Dead,
    /// It did not end by being asked.
    StopFailed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assigned => f.write_str("it is assigned"),
            Self::Prepared => f.write_str("it is to be prepared"),
            Self::Absent => f.write_str("it is assigned to be absent"),
            Self::SpecChanged { from, to, fields } => write!(f, "generation {from} became {to}: {}", fields.join(", ")),
            Self::Gone => f.write_str("its container is gone"),
            Self::Ended { code: Some(code) } => write!(f, "it ended with code {code}"),
            Self::Ended { code: None } => f.write_str("it ended"),
            Self::StoppedByHand => f.write_str("it was stopped by hand"),
            Self::Unhealthy { message } => write!(f, "it is unhealthy: {message}"),
            Self::NeverStarted => f.write_str("it was created and not started"),
            Self::Paused => f.write_str("it was paused by hand"),
            Self::Renamed { found } => write!(f, "it was renamed to `{found}` by hand"),
            Self::LimitsChanged => f.write_str("its limits were changed by hand"),
            Self::RestartPolicyChanged { found } => write!(f, "its restart policy was changed to `{found}` by hand"),
            Self::Disconnected => f.write_str("it was disconnected from its network by hand"),
            Self::Isolated { after } => write!(f, "its node had no word of the store for {after}"),
            Self::Dead => f.write_str("the engine left it dead"),
            Self::StopFailed => f.write_str("it did not end when asked"),
        }
    }
}

/// How a step ended, as far as the ledger cares. Pulls are kept in [`NodeInput::images`] instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpOutcome {
    /// A container was created; said before it is started.
    Created {
        id: String,
        conditions: Vec<InstanceCondition>,
    },
    /// The step is done.
    Done,
    Failed(Failure),
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailingReason,
    /// One sentence for people, with the remedy.
    pub message: String,
}
