//! Everything the cluster planner may know: values of the store, decoded. `controller::observe` builds it from one
//! consistent cache (one revision); tests build it by hand. It holds no time: what depends on time is in `verdicts/`
//! and `breaker`, which [`super::verdicts`] computes and the leader stores.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::config_file::ConfigFileSpec;
use schemas::keys::ResourceKey;
use schemas::names::{Namespace, NodeName};
use schemas::network_policy::NetworkPolicySpec;
use schemas::node::NodeSpec;
use schemas::problem::Problem;
use schemas::records::{
    Accepted, Ack, Assignment, Breaker, ClusterMarker, ConfigFileStatus, Cordon, Digest, Endpoints, NodeFacts,
    NodeStatus, Order, Peer, Policies, Report, ServiceStatus, SessionRecord, VerdictRecord, VirtualIpStatus,
};
use schemas::secret::SecretEdition;
use schemas::service::ServiceSpec;
use schemas::virtual_ip::VirtualIpSpec;

/// A decoded value with the store's word on when it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    pub create_revision: i64,
    pub mod_revision: i64,
    /// The value; or why it cannot be read, in one sentence with the remedy.
    pub value: Result<T, String>,
}

/// The store at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's revision this is a picture of.
    pub revision: i64,
    pub cluster: ClusterMarker,
    /// The create revision of the leader's key: the epoch of what this pass writes. `reeve plan` takes the stored one.
    pub epoch: i64,
    /// Whether this is the complete, verified list (marker seen, cluster id right, revision not lower than any seen
    /// before). Without it nothing is taken as deleted.
    pub complete: bool,
    pub desired: BTreeMap<ResourceKey, DesiredEntry>,
    pub accepted: BTreeMap<ResourceKey, AcceptedHistory>,
    pub nodes: BTreeMap<NodeName, NodeEntry>,
    pub service_statuses: BTreeMap<ResourceKey, Stored<Arc<ServiceStatus>>>,
    pub node_statuses: BTreeMap<NodeName, Stored<Arc<NodeStatus>>>,
    pub file_statuses: BTreeMap<ResourceKey, Stored<Arc<ConfigFileStatus>>>,
    /// The editions of secrets that are in force. Their values are sealed, and no concern of any plan.
    pub secrets: BTreeMap<ResourceKey, SecretEdition>,
    /// What is published of the network: what other nodes know of a node, and who answers to a service's name.
    pub peers: BTreeMap<NodeName, Stored<Arc<Peer>>>,
    pub endpoints: BTreeMap<ResourceKey, Stored<Arc<Endpoints>>>,
    pub policies: BTreeMap<Namespace, Stored<Arc<Policies>>>,
    /// The network policies that are declared; None where the document is not valid.
    pub network_policies: BTreeMap<ResourceKey, Option<Arc<NetworkPolicySpec>>>,
    /// The virtual addresses that are declared, and what was last said of each.
    pub virtual_ips: BTreeMap<ResourceKey, DeclaredVirtualIp>,
    pub virtual_ip_statuses: BTreeMap<ResourceKey, Stored<Arc<VirtualIpStatus>>>,
    pub acks: BTreeMap<Digest, Ack>,
    pub breaker: Breaker,
}

/// A virtual address as people want it.
#[derive(Clone, Debug)]
pub struct DeclaredVirtualIp {
    pub create_revision: i64,
    pub mod_revision: i64,
    /// What it says; or why it says nothing.
    pub spec: Result<Arc<VirtualIpSpec>, Vec<Problem>>,
}

/// A value under `desired/`.
#[derive(Clone, Debug)]
pub struct DesiredEntry {
    pub create_revision: i64,
    pub mod_revision: i64,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub body: DesiredBody,
}

/// What a desired value says, or why it says nothing.
#[derive(Clone, Debug)]
pub enum DesiredBody {
    Service(Arc<ServiceSpec>),
    Node(Arc<NodeSpec>),
    ConfigFile(Arc<ConfigFileSpec>),
    /// Unreadable, invalid, leased, oversized, or about something else than its key: at least one problem.
    Invalid(Vec<Problem>),
}

/// The accepted records of one resource, by number.
#[derive(Clone, Debug, Default)]
pub struct AcceptedHistory {
    pub records: BTreeMap<u64, AcceptedEntry>,
}

/// One accepted record.
#[derive(Clone, Debug)]
pub struct AcceptedEntry {
    /// The digest of the stored bytes.
    pub digest: Digest,
    /// The record; or why it cannot be read.
    pub value: Result<Arc<Accepted>, String>,
}

/// Everything the store holds about one node, under all its keys.
#[derive(Clone, Debug, Default)]
pub struct NodeEntry {
    pub facts: Option<Stored<NodeFacts>>,
    pub session: Option<Stored<SessionRecord>>,
    pub verdict: Option<Stored<VerdictRecord>>,
    pub cordon: Option<Stored<Cordon>>,
    pub assignment: Option<Stored<Arc<Assignment>>>,
    pub report: Option<Stored<Arc<Report>>>,
    /// The order of the last assignment that this leader wrote for it, as it remembers: one that was deleted before its agent
    /// said that it has it must not be followed by another of the same order.
    pub written: Order,
}

impl NodeEntry {
    /// The highest order this node is known to have been given or to have applied.
    #[must_use]
    pub fn highest_order(&self) -> Order {
        let assigned = self
            .assignment
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .map(|a| a.order);
        let applied = self
            .report
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .map(|r| r.applied);
        assigned.max(applied).unwrap_or_default().max(self.written)
    }
}
