//! The store behind one trait: what controllers, agents and the CLI may do with etcd, the embedded store, or the
//! in-memory one of the tests. Every call has a deadline; reads are linearizable; a write is a fenced [`Txn`], and its
//! ambiguous ends are resolved here by reading back.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::{StoreError, StoreErrorKind};
use crate::health::Health;
use crate::txn::{self, Outcome, Txn};

/// The largest value that may be written, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The longest key that may be written, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// One key with its value and revisions. Keys are bytes: foreign ones need not be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key.
    pub key: Vec<u8>,
    /// The value, shared and not copied by `clone`.
    pub value: Bytes,
    /// The revision that created this life of the key.
    pub create_revision: i64,
    /// The revision that last wrote it.
    pub mod_revision: i64,
    /// How often it was written since its creation; 1 for the first time.
    pub version: i64,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

impl KeyValue {
    /// The key as text, if it is text.
    pub fn key_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.key).ok()
    }
}

/// A key prefix that ends in `/`, so that `nodes/a` never covers `nodes/ab`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Prefix {
    /// Checks that the text is not empty and ends in `/`.
    pub fn new(text: impl Into<String>) -> Result<Self, StoreError> {
        let text = text.into();
        if text.ends_with('/') && text.len() <= MAX_KEY_BYTES {
            Ok(Self(text))
        } else {
            let why = StoreErrorKind::Invalid("a prefix ends in `/`".to_owned());
            Err(StoreError::new("use the prefix", text, why))
        }
    }

    /// One key alone, which does not end in `/`: covers nothing else.
    pub fn exact(key: impl Into<String>) -> Result<Self, StoreError> {
        let key = key.into();
        if !key.is_empty() && !key.ends_with('/') && key.len() <= MAX_KEY_BYTES {
            Ok(Self(key))
        } else {
            let why = StoreErrorKind::Invalid("a key does not end in `/`".to_owned());
            Err(StoreError::new("use the key", key, why))
        }
    }

    /// The prefix `self` + `segment` + `/`.
    pub fn child(&self, segment: &str) -> Self {
        Self(format!("{}{}/", self.0, segment.trim_matches('/')))
    }

    /// A full key under this prefix.
    pub fn key(&self, rest: &str) -> Vec<u8> {
        [self.0.as_bytes(), rest.as_bytes()].concat()
    }

    /// Whether a key lies under it.
    pub fn covers(&self, key: &[u8]) -> bool {
        if self.0.ends_with('/') {
            key.starts_with(self.0.as_bytes())
        } else {
            key == self.0.as_bytes()
        }
    }

    /// The text, `/` at its end included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first key after all keys of the prefix.
    pub fn range_end(&self) -> Vec<u8> {
        let mut end = self.0.clone().into_bytes();
        match end.last_mut() {
            Some(last) if *last == b'/' => *last += 1, // `/` + 1 is `0`: no carry can happen
            Some(_) | None => end.push(0),
        }
        end
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was read, and the store's position when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<T> {
    /// The store's revision.
    pub revision: i64,
    /// Which store answered; it never changes in one store's life.
    pub cluster_id: u64,
    /// What was asked for.
    pub value: T,
}

/// All keys of a prefix at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The revision at which all keys were read.
    pub revision: i64,
    /// Which store answered.
    pub cluster_id: u64,
    /// The keys in order.
    pub kvs: Vec<KeyValue>,
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted, or its lease ended.
    Delete {
        /// The full key.
        key: Vec<u8>,
        /// The revision that deleted it.
        revision: i64,
    },
}

impl WatchEvent {
    /// The revision of the change.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { key: _, revision } => *revision,
        }
    }
}

/// What a watch stream yields. After `Canceled` or `Disconnected` it ends.
#[derive(Debug)]
pub enum WatchInput {
    /// The store accepted the watch.
    Opened {
        /// Which store answered.
        cluster_id: u64,
        /// The store's revision then.
        revision: i64,
    },
    /// Changes, in order of revision; none at all is a progress report.
    Response {
        /// Which store answered.
        cluster_id: u64,
        /// The header's revision; with events it may be ahead of them.
        revision: i64,
        /// The changes.
        events: Vec<WatchEvent>,
        /// More changes of the last revision follow in the next response.
        fragment: bool,
    },
    /// The store ended the watch.
    Canceled {
        /// Not 0: history before this revision is gone.
        compact_revision: i64,
        /// The store's words; often empty.
        reason: String,
    },
    /// The connection ended.
    Disconnected(StoreError),
}

/// A stream of [`WatchInput`]; dropping it cancels the watch.
pub type WatchStream = BoxStream<'static, WatchInput>;

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// How long it lives without renewal; the store may have raised what was asked for.
    pub ttl: Duration,
}

/// What the store knows of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseLife {
    /// How long it lives without renewal.
    pub granted: Duration,
    /// What is left.
    pub remaining: Duration,
}

/// The store's own words about itself, for `status` and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// The endpoint that answered, or `memory`, `embedded`.
    pub endpoint: String,
    /// The version of the store's software.
    pub version: String,
    /// The size of its database in bytes.
    pub db_size_bytes: i64,
    /// The store's revision.
    pub revision: i64,
    /// Which store answered.
    pub cluster_id: u64,
    /// The id of its leading member; 0 for none.
    pub leader: u64,
    /// Alarms and errors it reports, such as `NOSPACE`.
    pub errors: Vec<String>,
}

/// The store. Cheap to clone; every call ends within the request deadline (5 s by default).
pub trait Store: Clone + Send + Sync + 'static {
    /// Reads one key, linearizable.
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Read<Option<KeyValue>>, StoreError>> + Send;

    /// Reads up to 128 keys at one revision, linearizable; the answers stand in the order of the keys.
    fn get_many(
        &self,
        keys: &[Vec<u8>],
    ) -> impl Future<Output = Result<Read<Vec<Option<KeyValue>>>, StoreError>> + Send;

    /// Reads a prefix, page by page at one revision, the first page linearizable. Each page has its own deadline.
    fn list(&self, prefix: &Prefix) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Watches a prefix from a revision on, that one included. Never fails at once: the stream says what happened.
    fn watch(&self, prefix: &Prefix, from_revision: i64) -> WatchStream;

    /// Sends a transaction once. For [`Store::commit`] alone, which resolves what this leaves open.
    #[doc(hidden)]
    fn submit(&self, txn: &Txn) -> impl Future<Output = Result<Outcome, StoreError>> + Send;

    /// Grants a lease; the store chooses the id.
    fn lease_grant(&self, ttl: Duration) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Renews a lease once. [`StoreErrorKind::LeaseNotFound`] is the store's word that
    /// it is over; any other error says nothing about it.
    fn lease_keep_alive(&self, lease: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends a lease; its keys are deleted.
    fn lease_revoke(&self, lease: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What is left of a lease.
    fn lease_time_to_live(&self, lease: i64) -> impl Future<Output = Result<LeaseLife, StoreError>> + Send;

    /// The store about itself.
    fn status(&self) -> impl Future<Output = Result<StoreStatus, StoreError>> + Send;

    /// Forgets history before a revision (an admin act).
    fn compact(&self, revision: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// When the store last answered any of this process's calls, and since when without a gap.
    fn health(&self) -> &Health;

    /// Commits a transaction. When the answer is lost, reads back to learn whether it is in force, and never sends
    /// it twice. An error other than [`StoreErrorKind::Ambiguous`] means that nothing was written.
    fn commit(&self, txn: Txn) -> impl Future<Output = Result<Outcome, StoreError>> + Send {
        async move { txn::commit(self, txn).await }
    }

    /// Commits many transactions, as few requests as the store's limits allow. Each keeps its own fate, in the order
    /// given: one in conflict does not hold the others. In which order they come into force is not promised.
    fn batch(&self, txns: Vec<Txn>) -> impl Future<Output = Vec<Result<Outcome, StoreError>>> + Send {
        async move { txn::batch(self, txns).await }
    }
}
