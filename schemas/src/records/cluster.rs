//! Records of the cluster as a whole: its marker, the accepted specs, acknowledgements and the removal budget.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ClusterId, Digest, NetworkSettings, SchemaVersion, Uid};
use crate::config_file::{ConfigFileSpec, FileDigest};
use crate::node::NodeSpec;
use crate::service::ServiceSpec;

/// `cluster`: what makes a store a cluster of ours. Written by `init`, a first `up`, and administrators' verbs only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMarker {
    pub schema_version: SchemaVersion,
    pub id: ClusterId,
    /// Raised by every restore and migration; orders assignments across them.
    pub restore_epoch: u64,
    /// Set when the cluster has gone to another store: this one must no longer be acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// The store's revision when a person last took it as it is: by a restore, a rebuild or `accept-store`. What people wrote
    /// later is their word since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_revision: Option<i64>,
    /// The network of its containers; none where every namespace has its own on every node, and nothing between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSettings>,
}

impl ClusterMarker {
    /// Of a cluster that begins.
    #[must_use]
    pub fn first(id: ClusterId) -> Self {
        Self {
            schema_version: SchemaVersion::default(),
            id,
            restore_epoch: 1,
            moved: None,
            accepted_revision: None,
            network: None,
        }
    }
}

/// Where a cluster has gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// The endpoints of the store it is in now.
    pub to: Vec<String>,
}

/// `accepted/<namespace>/<kind>/<name>/<n>`: a spec, or a deletion, that the leader took as valid. Immutable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    pub schema_version: SchemaVersion,
    pub n: u64,
    pub uid: Uid,
    /// The modification revision of the desired value it was read from; for a deletion, of the last one.
    pub desired_revision: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub body: AcceptedBody,
}

/// What was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AcceptedBody {
    Service(Box<ServiceSpec>),
    Node(NodeSpec),
    /// An edition of a file: its number is the record's.
    ConfigFile(Box<AcceptedFile>),
    Deleted,
}

/// A file's content as it was accepted, or where it is; and what whoever reads it must find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedFile {
    /// Of the content.
    pub digest: FileDigest,
    /// Bytes.
    pub size: u64,
    pub content: ConfigFileSpec,
}

/// `acks/<digest>`: a person's yes to one exact set of removals, or to the removal of one orphan of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    pub schema_version: SchemaVersion,
    pub digest: Digest,
    /// How many instances it is about.
    pub count: u32,
    /// Who said yes: `user@host`.
    pub by: String,
}

/// `breaker`: what is left of the budget for removals nobody acknowledged, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Breaker {
    pub schema_version: SchemaVersion,
    /// Removals of the last ten minutes, on the leader's clock.
    pub spent: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// Removals that wait for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// What an acknowledgement must name.
    pub digest: Digest,
    pub count: u32,
    /// The most that may go unacknowledged.
    pub budget: u32,
    /// The first 20 instances, as `namespace/web.2`, for people.
    pub sample: Vec<String>,
}
