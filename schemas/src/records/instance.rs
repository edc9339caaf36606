//! The two documents that controller and agent exchange about one node: its assignment and its report.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::network::{AssignedNetwork, ReportedNetwork};
use super::node::NodeCondition;
use super::virtual_ip::{AssignedVirtualIp, ReportedVirtualIps};
use super::{ClusterId, Digest, SchemaVersion, Uid, kind_segment};
use crate::container::Protocol;
use crate::image::ImagePin;
use crate::kinds::Kind;
use crate::names::{InstanceName, Namespace, NodeName, ResourceName, Slot};

/// The order of assignments of one node. Only ever rises; compared field by field from the top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The cluster's restore epoch.
    pub restore_epoch: u64,
    /// The create revision of the leader's key.
    pub epoch: i64,
    /// Rises by one with every assignment of this node; max(stored, reported) + 1.
    pub generation: u64,
}

/// `assignments/<node>`: everything one node must run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    pub node: NodeName,
    pub order: Order,
    /// What it has of the cluster's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<AssignedNetwork>,
    /// Virtual addresses it holds, or lets go. Sorted by (namespace, name, address), each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<AssignedVirtualIp>,
    /// Sorted by (namespace, workload, slot, uid), each (uid, slot) once.
    pub instances: Vec<Assigned>,
}

/// One instance in an assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assigned {
    pub namespace: Namespace,
    #[serde(with = "kind_segment")]
    pub kind: Kind,
    pub workload: ResourceName,
    pub uid: Uid,
    pub slot: Slot,
    pub state: AssignedState,
    /// The number of the accepted spec it runs: with kind, namespace and workload, its key.
    pub n: u64,
    /// The digest of that accepted record's bytes.
    pub digest: Digest,
    /// The node's ports it holds, one for each published port of the spec, in the spec's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<AssignedPort>,
    /// What the tag in its spec stands for. None where the spec names a digest, or what is on the node is meant
    /// (`pullPolicy: Never`); and in assignments of releases that did not settle tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<AssignedImage>,
    /// Nodes that have that image, for when its registry is away: at most 3 of those that had it when this was assigned,
    /// or when a report said that nobody gives it. None where it is on the node already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ImageSource>,
    /// Its own in the cluster's network, on this node for as long as the slot is there. The IPv6 one has the same place in
    /// the node's subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The addresses of the first instances of its service, and of those it depends on, as it learns them when it is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<Seeds>,
    /// Of an exclusive service: its holder's number, higher than that of every holder before. What it is made of knows it as
    /// `REEVE_FENCING_TOKEN`. None of one that ran when its service became exclusive, until it is made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
}

/// The addresses of a service's first instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seeds {
    pub service: ResourceName,
    /// In order of slots.
    pub addresses: Vec<Ipv4Addr>,
}

/// A node that has an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    pub node: NodeName,
    /// `host:port` of its agent's API.
    pub api: String,
}

/// What a tag stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AssignedImage {
    /// Nobody knows yet. A node that has the image reports what it is, and makes no container of it before that is
    /// settled; an image that no registry knows is taken as it is on the node.
    Settling,
    /// This, for all instances of the accepted spec.
    Settled(ImagePin),
}

/// What an agent must make of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AssignedState {
    /// Fetch the image, start nothing: how a move pulls first.
    Prepared,
    /// Run it.
    Present,
    /// Stop and remove it; kept in the assignment until a report of this generation or later says it is gone.
    Absent,
}

/// A port of the node that an instance holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedPort {
    pub container_port: u16,
    pub protocol: Protocol,
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
}

impl Assigned {
    #[must_use]
    pub fn name(&self) -> InstanceName {
        InstanceName {
            namespace: self.namespace.clone(),
            workload: self.workload.clone(),
            slot: self.slot.clone(),
        }
    }
}

/// `reports/<node>`: what the node's agent sees. Untrusted, like all that nodes write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    pub node: NodeName,
    /// The order of the assignment in force; all zero before the first.
    pub applied: Order,
    /// Sorted like an assignment's. An instance that is gone is not listed.
    pub instances: Vec<ReportedInstance>,
    /// What is wrong with the node as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<NodeCondition>,
    /// What it has of the cluster's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<ReportedNetwork>,
    /// The virtual addresses it holds; None of one that was never granted any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_ips: Option<ReportedVirtualIps>,
}

/// One instance in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedInstance {
    pub namespace: Namespace,
    #[serde(with = "kind_segment")]
    pub kind: Kind,
    pub workload: ResourceName,
    pub uid: Uid,
    pub slot: Slot,
    /// The number of the accepted spec in force here (whose probes and policies count); that of the assignment, unless `next` says otherwise.
    pub n: u64,
    pub digest: Digest,
    pub phase: Phase,
    /// Whether it serves: running, and its probe succeeds or it has been up for `minReady`.
    pub ready: bool,
    /// The container's id, 12 digits; None when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Restarts since the container was created.
    #[serde(default)]
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<AssignedPort>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The code with which it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// The assigned number that is not in force yet, and how far it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// Why it does not become, or stay, ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
    /// Options this engine or kernel did not take, and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<InstanceCondition>,
    /// What its image is here, while its assignment does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImagePin>,
    /// The token it was assigned, or that its container was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
}

impl ReportedInstance {
    #[must_use]
    pub fn name(&self) -> InstanceName {
        InstanceName {
            namespace: self.namespace.clone(),
            workload: self.workload.clone(),
            slot: self.slot.clone(),
        }
    }
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Seen, nothing done yet.
    Pending,
    /// The image is on its way; percent done, 0 when unknown.
    Pulling { percent: u8 },
    /// The image is here, nothing is started, as assigned.
    Prepared,
    /// The container runs; `ready` tells whether it serves.
    Running,
    /// It ended and will be started again after a delay.
    BackOff,
    /// It was asked to stop and has not ended yet.
    Stopping,
    /// It ended and stays so, by its restart policy.
    Stopped,
    /// It could not be created or started; tried again with back-off. `failing` says why.
    Failed,
    /// Its spec is missing or damaged here, or order went back: what runs is left alone.
    Held,
    /// A container of ours that no record knows: kept, removed by a verb only.
    Orphaned,
}

/// An assigned number that is not in force yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub n: u64,
    pub phase: Phase,
    /// What its image is here, while its assignment does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImagePin>,
}

/// Why an instance does not become, or stay, ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failing {
    /// The number of the accepted spec that fails.
    pub n: u64,
    pub reason: FailingReason,
    /// One sentence for people, at most 1,024 characters.
    pub message: String,
    /// The last lines it logged: at most 10, of at most 256 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<String>,
}

/// The typed reason of a failure. Whichever it is, a change that meets it stops there until the reason is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailingReason {
    /// The registry does not have the image, or refuses it to us.
    ImageNotFound,
    ImageDenied,
    /// The pull failed for a passing reason, and is tried again.
    ImagePullFailed,
    /// The engine refused to create or start the container.
    CreateFailed,
    StartFailed,
    /// A container that is not ours has the name.
    NameTaken,
    /// Something else on the host has the port.
    PortTaken,
    /// It ends again and again.
    CrashLoop,
    /// Its health check fails.
    Unhealthy,
    /// It did not become ready within `progressDeadline`.
    ProgressDeadlineExceeded,
    /// The spec is missing or damaged on the node.
    SpecUnreadable,
    /// The disk is full: nothing new is started.
    DiskFull,
    /// It does not end, also not by SIGKILL.
    StopFailed,
    /// A file it mounts is not in the store, or is not what was accepted.
    FileUnavailable,
    /// A secret it gets was not handed to the node, or cannot be opened or kept in memory there.
    SecretUnavailable,
    /// The engine does not answer.
    EngineUnavailable,
    /// The node's policy forbids what the spec asks for: no container is made of it.
    PolicyDenied,
    /// Its node has no word of the store, and its service says that it does not run then (`onDisconnect.stopAfter`).
    Isolated,
}

/// Something a person should know about a running instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceCondition {
    /// `OptionDiscarded`, `OptionUnsupported`, `PolicyDenied`.
    pub reason: String,
    pub message: String,
}
