//! Who holds a virtual address: what a node's assignment grants it, what its report says that it holds, and what people are
//! told. A grant is for one life of the node's session: with that it ends.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Condition, Order, SchemaVersion};
use crate::names::{Namespace, NodeName, ResourceName};
use crate::problem::Problem;

/// One address in a node's assignment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedVirtualIp {
    pub namespace: Namespace,
    pub name: ResourceName,
    /// With its network's prefix.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The create revision of the session key of the node for which it was granted.
    pub session: i64,
    pub state: AssignedVirtualIpState,
}

/// What a node is to do with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AssignedVirtualIpState {
    /// Hold it while that session lives.
    Held,
    /// Let go of it; kept until a report of this order or later says that it is gone, or that session is.
    Withdrawn,
}

/// What a node's agent says of virtual addresses: it has looked at the kernel before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedVirtualIps {
    /// The order of the assignment that they are as: nothing is taken any more by an older one.
    pub applied: Order,
    /// Sorted, each address once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldVirtualIp>,
    /// What it cannot hold, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedVirtualIp>,
}

/// An address that a node holds, or may hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldVirtualIp {
    pub namespace: Namespace,
    pub name: ResourceName,
    pub address: IpNet,
    /// The session of the grant.
    pub session: i64,
}

/// An address that a node is to hold and cannot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedVirtualIp {
    pub namespace: Namespace,
    pub name: ResourceName,
    /// One sentence, with the remedy; at most 300 characters.
    pub message: String,
}

/// `status/<namespace>/virtualip/<name>`. Each grant is written together with it, so that of two only one comes into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIpStatus {
    pub schema_version: SchemaVersion,
    /// The modification revision of the desired value this status speaks of; 0 when it is deleted and not gone yet.
    pub observed_revision: i64,
    /// Who is to hold it, by its assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// The session of that grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<i64>,
    /// Sorted by type, each type once.
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl AssignedVirtualIp {
    /// The address itself.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.addr()
    }
}
