//! Records about nodes: what their agents say of them, what a person asks for them, what the leader holds them to be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ClusterId, NodeLink, Order, SchemaVersion};
use crate::meta::is_default;
use crate::names::{NodeName, ResourceName};
use crate::units::{ByteSize, Cpu, Span};

/// `nodes/<node>`: facts an agent registers. Untrusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    pub node: NodeName,
    pub capacity: Capacity,
    pub addresses: Addresses,
    pub engine: Engine,
    /// The agent's own version.
    pub agent_version: String,
    /// Labels given to the agent, with `reeve.os` and `reeve.arch`; a Node resource's go over them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Roles given to the agent; a Node resource's, where it names any, stand instead. At most 64 count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<ResourceName>,
    /// The agent's sealing key as it is published; None of agents that cannot open what is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
    /// How other nodes reach its containers; None where the cluster has no network, or the agent knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<NodeLink>,
}

/// What a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    pub cpu: Cpu,
    pub memory: ByteSize,
}

/// Where a node and its agent are found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// The host's addresses, loopback left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<IpAddr>,
    /// `host:port` of the agent's HTTP server, for metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// `host:port` of the agent's API, behind mutual TLS; None where only its own host reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The address or name under which the outside reaches the node, as its agent was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
}

/// The container engine of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    pub version: String,
    pub api_version: String,
    pub os: String,
    pub arch: String,
    pub kernel: String,
    #[serde(default)]
    pub storage_driver: String,
    #[serde(default)]
    pub cgroup_version: String,
}

/// Something wrong with a node as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCondition {
    /// `EngineUnavailable`, `DiskFull`, `StoreRegressed`, `WrongCluster`, `AssignmentUnreadable`, `AssignmentDoubted`, `SpecUnreadable`.
    pub reason: String,
    pub message: String,
}

/// `sessions/<node>`: liveness, under a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    pub node: NodeName,
    /// The host's machine id: another host of the same name is refused.
    pub machine_id: String,
    pub boot_id: String,
    /// The newest assignment the agent had applied when the session began.
    pub watermark: Order,
}

/// `verdicts/<node>`: what the leader holds a node to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictRecord {
    pub schema_version: SchemaVersion,
    pub verdict: Verdict,
    /// Of a lost node: for how long it has been away at least. Services that wait for longer are not replaced yet; where it
    /// is not said, none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<Span>,
    /// Of a ready node: it comes and goes, and gets nothing new for now.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unsteady: bool,
    /// Of a lost or retired node: a person says that its host is off.
    #[serde(default, skip_serializing_if = "is_default")]
    pub off: bool,
    /// Of one that a person says is off: for how long it has been away at least. Exclusive instances that stop by themselves
    /// without the store are replaced when they must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<Span>,
    /// One sentence for people.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Its session lives.
    Ready,
    /// Its session is gone. Its instances stay its own and count as not ready; new ones avoid it.
    Unreachable,
    /// Held to be gone: its instances go elsewhere.
    Lost,
    /// Taken out by a person: its instances go elsewhere, and it runs nothing.
    Retired,
}

/// `cordons/<node>`: what a person asks of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cordon {
    pub schema_version: SchemaVersion,
    pub mode: CordonMode,
    /// A person knows that its host is off: what it ran goes elsewhere at once. It counts while the node is away.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lost: bool,
    /// Who asked: `user@host`.
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CordonMode {
    /// Nothing new is placed here.
    Cordon,
    /// As `cordon`, and what runs here moves away, one instance of a workload at a time.
    Drain,
    /// The node is out: what it ran goes elsewhere at once, and all it is assigned is absent.
    Retire,
}
