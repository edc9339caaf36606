//! What the leader tells people: the status of each resource, and events. Derived; nothing decides from them, but for one
//! thing that a service's status remembers: which images its tags stood for.

use serde::{Deserialize, Serialize};

use super::{SchemaVersion, Uid, Verdict};
use crate::config_file::FileEdition;
use crate::image::{ImagePin, ImageRef};
use crate::names::{NodeName, ResourceName};
use crate::problem::Problem;
use crate::units::{ByteSize, Cpu};

/// `status/<namespace>/service/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    pub schema_version: SchemaVersion,
    /// The modification revision of the desired value this status speaks of; 0 when it is deleted and not gone yet.
    pub observed_revision: i64,
    /// The number of the accepted spec in force, and its life; None before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    pub counts: Counts,
    /// Sorted by type, each type once.
    pub conditions: Vec<Condition>,
    /// What is wrong with the desired value, while it is not accepted. At most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Why instances have no node: what refused them. At most 20 kinds of refusal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// What the image of each number stands for, where it names a tag. In order of numbers, the last 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<SettledImage>,
}

/// What the image of an accepted spec stands for: settled once, by the first node that had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettledImage {
    /// The number of the accepted spec.
    pub n: u64,
    /// The reference in it.
    pub image: ImageRef,
    #[serde(flatten)]
    pub pin: ImagePin,
}

/// How many instances are how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Asked for by the accepted spec.
    pub desired: u32,
    /// On a node.
    pub assigned: u32,
    /// Reported as running.
    pub running: u32,
    /// Reported as ready, on a node that is ready.
    pub ready: u32,
    /// Run the newest accepted spec, as far as it matters to their containers.
    pub updated: u32,
}

/// One aspect of a resource's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionType,
    pub status: ConditionStatus,
    /// A stable CamelCase word.
    pub reason: String,
    /// For people, with the place and the remedy where there are.
    pub message: String,
    /// When this status and reason began, on the leader's clock; for people. Kept by the writer, never compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// The desired value is valid and in force.
    Accepted,
    /// Every instance has a node.
    Scheduled,
    /// Every instance is ready.
    Ready,
    /// A change is going through (True), is done (False, `Complete`), or has stopped (False, with the reason).
    Progressing,
    /// Of nodes: nothing new is placed there.
    Cordoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// Why instances have no node: one rule, and how many nodes it refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub rule: RefusalRule,
    /// How many nodes.
    pub nodes: u32,
    /// By how much, or which: `needs 2 CPUs, 500m free at most`.
    pub detail: String,
    /// The first 10 of them by name.
    pub sample: Vec<NodeName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefusalRule {
    NodeNotReady,
    NodeCordoned,
    NodeName,
    Role,
    RequiredExpression,
    Taint,
    Cpu,
    Memory,
    /// Its subnet of the cluster's network is full, or it has none, or no link to the others.
    Address,
    HostPort,
    MaxPerNode,
    Spread,
    Affinity,
    AntiAffinity,
}

/// `status/_/node/<name>`: of every node that has an agent, a Node resource, or an assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub schema_version: SchemaVersion,
    /// The modification revision of the Node resource this status speaks of; 0 without one.
    pub observed_revision: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub verdict: Verdict,
    pub instances: u32,
    pub ready: u32,
    /// Capacity less what is reserved for the host.
    pub allocatable_cpu: Cpu,
    pub allocatable_memory: ByteSize,
    /// Reserved by instances.
    pub reserved_cpu: Cpu,
    pub reserved_memory: ByteSize,
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// `status/<namespace>/configfile/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigFileStatus {
    pub schema_version: SchemaVersion,
    /// The modification revision of the desired value this status speaks of; 0 when it is deleted and still used.
    pub observed_revision: i64,
    /// The edition in force; None before the first, and when it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edition: Option<FileEdition>,
    /// How many services mount it, as they are accepted or desired.
    pub users: u32,
    /// The first 20 of them by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<ResourceName>,
    /// Sorted by type, each type once.
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// `events/<namespace>/<id>`: something that happened, for people; under a lease of one hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub schema_version: SchemaVersion,
    /// When, on the writer's clock: RFC 3339, in UTC.
    pub time: String,
    #[serde(rename = "type")]
    pub kind: EventType,
    /// A stable CamelCase word.
    pub reason: String,
    pub message: String,
    /// What it is about: `default/service/web`, or `default/web.2`, or `_/node/n1`.
    pub about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Who saw it: `controller`, or `agent/n1`.
    pub by: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventType {
    Normal,
    Warning,
}
