//! What can be asked of an agent, and what it answers: the JSON of a conversation's first frames and of its last. Shared by
//! the API and its client. What comes in is decoded strictly and is bounded by the frame it came in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use network::names::Counts;
use planner::network::lookup::Wanted;
use schemas::container::Protocol;
use schemas::names::{InstanceName, Namespace, NodeName, ResourceName, Slot};
use schemas::records::LinkKind;
use serde::{Deserialize, Serialize};

use crate::policy::NodeCommand;

/// One question, and who says to ask it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// `user@host`, in the asker's own words: recorded beside what the connection proves.
    pub by: String,
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "act",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Ask {
    /// An instance's log, as lines.
    Logs {
        instance: Named,
        /// Go on with what is written from now on, also by its next containers.
        follow: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
        /// Only so many of the last lines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tail: Option<u32>,
        /// What was printed already, by an earlier conversation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Read>,
    },
    /// Runs a command in an instance's container.
    Exec {
        instance: Named,
        command: Vec<String>,
        /// Data frames are its standard input; it has none otherwise.
        input: bool,
        /// It gets a terminal of this size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terminal: Option<Size>,
    },
    /// Runs a command of the store, by its name, in an instance's container. The agent reads it there itself, and makes its words.
    Run {
        command: ResourceName,
        /// The store's revision of the document that the caller saw: another one is not run.
        revision: i64,
        /// Of the command's namespace and service.
        instance: Named,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        parameters: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        arguments: Vec<String>,
        input: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terminal: Option<Size>,
    },
    /// Joins the standard streams of an instance's own process.
    Attach {
        instance: Named,
        input: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terminal: Option<Size>,
    },
    /// What this node and its instances use: one Data frame, a `Usage` as JSON.
    Top {},
    /// The images of this node's engine: Data frames, a list of `ImageHere` as JSON.
    Images {},
    /// An image that a service on this node was settled to be (`name@sha256:...`), with this id: its archive in Data frames. For
    /// other nodes.
    Image { image: String, id: String },
    /// Removes images that nobody uses, each by its id or a name: one Data frame, a list of `ImageGone` as JSON.
    RemoveImages { images: Vec<String> },
    /// Runs a command on the node itself, for so many seconds at most.
    Host {
        kind: NodeCommand,
        command: Vec<String>,
        seconds: u32,
        /// The named command that the caller takes it from, for the record: `default/tidy`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        named: Option<String>,
    },
    /// A connection to a port of an instance's container.
    Forward { instance: Named, port: u16 },
    /// What is at a path of an instance's container: one Data frame, a `Place` as JSON.
    Place { instance: Named, path: String },
    /// A file or directory of an instance's container, as an archive in Data frames.
    CopyOut { instance: Named, path: String },
    /// An archive in Data frames, to be unpacked in this directory of an instance's container.
    CopyIn { instance: Named, path: String },
    /// How this node's end of the cluster's network stands: a `NetworkHere` as JSON.
    Network {},
    /// Another key for this node's links: a `KeyNext` as JSON, once it is on disk.
    RotateKey {},
    /// What this node's names' server answers: a `planner::network::lookup::Found` as JSON.
    Lookup { wanted: Wanted },
    /// Whether something listens at a port of an instance of this node: a `Knocked` as JSON.
    Knock {
        namespace: Namespace,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    },
}

/// A node's end of the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkHere {
    /// None where it has no part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<LinkKind>,
    /// Whether the host's own processes may reach and resolve it.
    pub exposed: bool,
    pub addresses_used: u32,
    pub addresses_left: u32,
    /// In order of nodes.
    pub links: Vec<LinkHere>,
    /// Packets that were refused since the filter was put in place, by its chain: `in.<namespace>.<service>` and others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
    /// The key of its links; None where they have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_key: Option<KeyHere>,
    /// None while its server does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<NamesHere>,
    /// Devices, peers, routes and neighbours that were made or put right since the agent's start.
    pub repairs: u64,
    /// What could not be found out, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

/// The key of a node's links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyHere {
    /// The public one, in base64.
    pub key: String,
    pub age_seconds: u64,
    /// The one that counts once the other nodes are told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Until the node replaces it by itself; None: only a person does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_in_seconds: Option<u64>,
}

/// A rotation that has begun, by the public keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyNext {
    pub key: String,
    pub next: String,
}

/// A node's link to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkHere {
    pub node: NodeName,
    /// Where the other end was last heard from, or is said to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Since the last one; None where there was none, or there are none on such links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_seconds: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// The other node's part of the network.
    pub route: IpNet,
    /// Whether the kernel has the way there as it should be.
    pub routed: bool,
    /// Why there is no link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Of the last pings, at most ten.
    pub asked: u8,
    pub lost: u8,
    /// The median of those that were answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_micros: Option<u32>,
}

/// A node's names' server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamesHere {
    pub answering: bool,
    pub services: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
    pub counts: Counts,
}

/// What came of knocking at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Knocked {
    Open,
    Closed,
    Silent,
    /// UDP tells nothing.
    Unseen,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    Nothing,
    File,
    Directory,
}

/// An image of a node's engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageHere {
    /// `sha256:...`
    pub id: String,
    /// Its names with tags; none of an image that lost them to a newer one.
    pub references: Vec<String>,
    /// Its names with the digests that registries know it by.
    pub digests: Vec<String>,
    pub size_bytes: u64,
    /// Containers made of it, running or not, ours or not; at most 20.
    pub used_by: Vec<String>,
    /// Whether a spec that this node holds names it.
    pub wanted: bool,
}

impl ImageHere {
    /// Who keeps it from being removed, in a sentence.
    #[must_use]
    pub fn in_use(&self) -> Option<String> {
        match (self.used_by.first(), self.wanted) {
            (Some(first), _) if self.used_by.len() > 1 => {
                Some(format!("{first} and {} more containers use it", self.used_by.len() - 1))
            }
            (Some(first), _) => Some(format!("container {first} uses it")),
            (None, true) => Some("a service that is assigned to this node uses it".to_owned()),
            (None, false) => None,
        }
    }
}

/// What became of an image that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageGone {
    /// As it was asked for.
    pub image: String,
    /// None of them when the image stays under another name.
    pub freed_bytes: u64,
    /// Why it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// What a node and its instances use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Thousandths of a core that the whole host uses; None where that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    pub instances: Vec<InstanceUsage>,
}

/// What a running instance uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceUsage {
    pub instance: Named,
    /// Thousandths of a core, over about a second.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// The container's limit; what the host has where there is none.
    pub memory_limit_bytes: u64,
    pub processes: u64,
}

/// An instance, as its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Named {
    pub namespace: Namespace,
    pub workload: ResourceName,
    pub slot: Slot,
}

impl From<&InstanceName> for Named {
    fn from(name: &InstanceName) -> Self {
        let InstanceName {
            namespace,
            workload,
            slot,
        } = name.clone();
        Self {
            namespace,
            workload,
            slot,
        }
    }
}

impl Named {
    #[must_use]
    pub fn name(&self) -> InstanceName {
        let Self {
            namespace,
            workload,
            slot,
        } = self.clone();
        InstanceName {
            namespace,
            workload,
            slot,
        }
    }
}

/// From when on. Ages are of the node's own clock, which stamped the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Since {
    Ago { millis: u64 },
    At(Stamp),
}

/// A moment of an engine's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stamp {
    /// Since 1970.
    pub seconds: i64,
    pub nanos: u32,
}

impl Stamp {
    /// As an engine takes it: `1136073600.000000013`.
    #[must_use]
    pub fn query(&self) -> String {
        format!("{}.{:09}", self.seconds, self.nanos)
    }
}

/// How far a container's log was read: what is stamped earlier, and so many entries of this very stamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cursor {
    pub stamp: Stamp,
    pub count: u32,
}

/// How far an instance's log was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Read {
    /// The full id of the container.
    pub container: String,
    pub cursor: Cursor,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// It is done; frames follow.
    Begun,
    Refused(Refusal),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Ended {
    /// All was said.
    Done,
    /// The command, or the container, ended with this code.
    Exited { code: i64 },
    /// The instance is no longer of this node.
    Gone,
    /// It broke off.
    Failed(Refusal),
}

/// Why something is not done, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub why: Why,
    /// One sentence.
    pub message: String,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The question is not understood.
    NotUnderstood,
    /// Not on this node, or it has no container.
    NotHere,
    /// It does not run.
    NotRunning,
    /// This caller may not, or nobody may on this node.
    Denied,
    /// The log cannot be read back.
    Unreadable,
    /// The engine refused or did not answer.
    Engine,
    /// Passing: try again.
    Busy,
    /// What must be recorded first cannot be.
    Unrecorded,
}

impl Refusal {
    #[must_use]
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self {
            why,
            message: message.into(),
            remedy: None,
        }
    }

    #[must_use]
    pub fn help(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<crate::engine::EngineError> for Refusal {
    fn from(error: crate::engine::EngineError) -> Self {
        Self::new(Why::Engine, error.to_string()).help(error.remedy())
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())
    }
}
