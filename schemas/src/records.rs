//! The documents that Reeve itself writes into the store: JSON, camelCase, each with the schema version that may read
//! it. People read them (`etcdctl get`), no one but their one writer writes them, and every reader decodes them here,
//! defensively: sized, checked, never a panic. Nothing in a compared record is a time.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

mod cluster;
mod done;
mod instance;
pub mod network;
mod node;
mod sealed;
mod status;
mod virtual_ip;

pub use cluster::{Accepted, AcceptedBody, AcceptedFile, Ack, Breaker, ClusterMarker, Held, Moved};
pub use done::{Done, Ended, MAX_DONE_OBJECTS};
pub use instance::{
    Assigned, AssignedImage, AssignedPort, AssignedState, Assignment, Failing, FailingReason, ImageSource,
    InstanceCondition, Next, Order, Phase, Report, ReportedInstance, Seeds,
};
pub use network::{
    AssignedNetwork, Backend, Endpoint, EndpointPort, Endpoints, Everywhere, InForcePolicy, Lingering, LinkKind,
    LinkProof, NetworkSettings, NodeLink, Peer, Policies, ReportedNetwork,
};
pub use node::{
    Addresses, Capacity, Cordon, CordonMode, Engine, NodeCondition, NodeFacts, SessionRecord, Verdict, VerdictRecord,
};
pub use sealed::{Handed, HandedLogin, HandedSecret, Sealed, SealedValue};
pub use status::{
    Condition, ConditionStatus, ConditionType, ConfigFileStatus, Counts, Event, EventType, NodeStatus, Refusal,
    RefusalRule, ServiceStatus, SettledImage,
};
pub use virtual_ip::{
    AssignedVirtualIp, AssignedVirtualIpState, HeldVirtualIp, RefusedVirtualIp, ReportedVirtualIps, VirtualIpStatus,
};

/// The version of these documents that this build writes, and the newest it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// A document's schema version. Reading one newer than [`SCHEMA_VERSION`] fails: this build may not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SchemaVersion(u32);

impl Default for SchemaVersion {
    fn default() -> Self {
        Self(SCHEMA_VERSION)
    }
}
impl TryFrom<u32> for SchemaVersion {
    type Error = String;
    fn try_from(version: u32) -> Result<Self, String> {
        if (1..=SCHEMA_VERSION).contains(&version) {
            Ok(Self(version))
        } else {
            Err(format!(
                "schema version {version} was written by another release; this one reads 1 to {SCHEMA_VERSION}: upgrade reeve"
            ))
        }
    }
}
impl From<SchemaVersion> for u32 {
    fn from(version: SchemaVersion) -> Self {
        version.0
    }
}

/// Why a stored document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("read {what}: {size} bytes, over the limit of {limit}")]
    TooLarge {
        what: &'static str,
        size: usize,
        limit: usize,
    },
    #[error("read {what}")]
    Json {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("read {what}: it is about `{found}`, its key about `{expected}`")]
    Disagrees {
        what: &'static str,
        found: String,
        expected: String,
    },
}

/// A document of the store.
pub trait Record: Serialize + DeserializeOwned {
    /// As messages call it: `the assignment`.
    const WHAT: &'static str;
    /// The largest value that is read at all, in bytes.
    const MAX_BYTES: usize;

    /// Reads a stored value; refuses what is too large, not JSON, of a newer schema version, or out of shape.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(RecordError::TooLarge {
                what: Self::WHAT,
                size: bytes.len(),
                limit: Self::MAX_BYTES,
            });
        }
        serde_json::from_slice(bytes).map_err(|source| RecordError::Json {
            what: Self::WHAT,
            source,
        })
    }

    /// The bytes to store. Records hold only strings, numbers, lists and maps with string keys, so this cannot fail.
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records hold only what JSON can say")
    }
}

macro_rules! records {
    ($($type:ty, $what:literal, $max:expr;)*) => {
        $(impl Record for $type {
            const WHAT: &'static str = $what;
            const MAX_BYTES: usize = $max;
        })*
    };
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
records! {
    ClusterMarker, "the cluster marker", 16 * KIB;
    Accepted, "the accepted spec", MIB + 64 * KIB;
    Ack, "the acknowledgement", 16 * KIB;
    Breaker, "the breaker", MIB;
    Assignment, "the assignment", MIB;
    Report, "the report", MIB;
    NodeFacts, "the node's facts", 64 * KIB;
    SessionRecord, "the session", 16 * KIB;
    VerdictRecord, "the verdict", 16 * KIB;
    Cordon, "the cordon", 16 * KIB;
    ServiceStatus, "the service's status", MIB;
    NodeStatus, "the node's status", 64 * KIB;
    ConfigFileStatus, "the file's status", 64 * KIB;
    VirtualIpStatus, "the virtual address's status", 64 * KIB;
    Event, "the event", 16 * KIB;
    Sealed, "the sealed values", MIB;
    Handed, "what was handed out", MIB;
    Done, "the audit record", 16 * KIB;
    Peer, "the peer", 64 * KIB;
    Endpoints, "the endpoints", MIB;
    Policies, "the network policies", MIB;
}

/// A cluster's identity: 32 hexadecimal digits, drawn once by `reeve init` or a first `reeve up`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// One life of a resource's name: 32 hexadecimal digits, derived from cluster id, key and the first number after a deletion.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

/// The SHA-256 of a document's bytes as stored: 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// The hexadecimal digits of an identity, on the stack: reads as a `str`.
#[derive(Clone, Copy)]
pub struct HexText<const DIGITS: usize>([u8; DIGITS]);

impl<const DIGITS: usize> HexText<DIGITS> {
    fn of(bytes: &[u8]) -> Self {
        let mut text = [b'0'; DIGITS];
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Self(text)
    }
}
impl<const DIGITS: usize> std::ops::Deref for HexText<DIGITS> {
    type Target = str;
    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The bytes that so many lower case hexadecimal digits stand for.
fn bytes_of_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; BYTES];
    if text.len() != BYTES * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Why a text is not an identity of so many hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {digits} hexadecimal digits")]
pub struct HexError {
    found: String,
    digits: usize,
}

impl HexError {
    fn new(text: &str, digits: usize) -> Self {
        Self {
            found: text.chars().take(80).collect(),
            digits,
        }
    }
}

impl ClusterId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for ClusterId {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        match bytes_of_hex::<16>(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(HexError::new(text, 32)),
        }
    }
}
impl TryFrom<String> for ClusterId {
    type Error = HexError;
    fn try_from(text: String) -> Result<Self, HexError> {
        text.parse()
    }
}
impl From<ClusterId> for String {
    fn from(value: ClusterId) -> Self {
        value.0
    }
}
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Identities that every instance bears: bytes in memory, hexadecimal digits everywhere else.
macro_rules! hex {
    ($type:ident, $bytes:literal, $digits:literal) => {
        impl $type {
            /// Its hexadecimal digits.
            #[must_use]
            pub fn as_str(&self) -> HexText<$digits> {
                HexText::of(&self.0)
            }
            /// Its bytes.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = HexError;
            fn from_str(text: &str) -> Result<Self, HexError> {
                bytes_of_hex(text)
                    .map(Self)
                    .ok_or_else(|| HexError::new(text, $digits))
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.as_str())
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($type)).field(&&*self.as_str()).finish()
            }
        }
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!(stringify!($digits), " hexadecimal digits"))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
hex!(Uid, 16, 32);
hex!(Digest, 32, 64);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of one exact set of removals: its instances' uids and slots, sorted. What an acknowledgement names.
    pub fn of_removals<'a>(instances: impl IntoIterator<Item = (&'a Uid, &'a crate::names::Slot)>) -> Self {
        let mut lines: Vec<String> = instances
            .into_iter()
            .map(|(uid, slot)| format!("{uid} {slot}\n"))
            .collect();
        lines.sort();
        lines.dedup();
        Self::of(lines.concat().as_bytes())
    }

    /// The digest of the removal of one instance that no record knows, from one node: what `admin remove-orphan`
    /// acknowledges. It names the node, for the same uid and slot may run elsewhere by right.
    #[must_use]
    pub fn of_orphan(node: &crate::names::NodeName, uid: &Uid, slot: &crate::names::Slot) -> Self {
        Self::of(format!("orphan {node} {uid} {slot}\n").as_bytes())
    }
}

impl Uid {
    /// The uid of the life of `key` that begins with accepted number `first` in that cluster.
    #[must_use]
    pub fn derive(cluster: &ClusterId, key: &crate::keys::ResourceKey, first: u64) -> Self {
        let digest: [u8; 32] = Sha256::digest(format!("reeve uid\n{cluster}\n{key}\n{first}\n")).into();
        let mut uid = [0; 16];
        uid.copy_from_slice(&digest[..16]);
        Self(uid)
    }
}

impl ClusterId {
    /// An identity from 16 random bytes, drawn by the caller.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self((*HexText::<32>::of(&bytes)).to_owned())
    }
}

/// Kinds in records are written as keys spell them: `service`.
mod kind_segment {
    use crate::kinds::Kind;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.segment())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(deserializer)?;
        Kind::from_segment(&text).ok_or_else(|| D::Error::custom("an unknown kind"))
    }
}

#[cfg(test)]
mod tests;
