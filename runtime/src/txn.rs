//! Fenced transactions. A [`Txn`] begins with a [`Fence`], so that a controller that no longer leads, or an agent whose
//! session is gone, cannot write. Built by controllers and agents, sent by [`Store::commit`](crate::Store::commit).

use bytes::Bytes;

use crate::error::{StoreError, StoreErrorKind};
use crate::leader::Leadership;
use crate::session::Session;
use crate::store::{KeyValue, Store};

/// The most operations, and the most compares, of one transaction: etcd's default.
pub const MAX_TXN_OPS: usize = 128;
/// The largest request in bytes: etcd's default of 1.5 MiB, less 64 KiB for what surrounds keys and values.
pub const MAX_TXN_BYTES: usize = (1536 - 64) << 10;

/// The right to write: a key that must still be in the life it had when the right was won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub(crate) held: Option<(Vec<u8>, i64)>,
}

impl Fence {
    /// As the leading controller.
    pub fn leader(leadership: &Leadership) -> Self {
        Self::key(leadership.key().to_vec(), leadership.epoch())
    }

    /// As the agent that holds its node's session.
    pub fn session(session: &Session) -> Self {
        Self::key(session.key().to_vec(), session.create_revision())
    }

    pub(crate) fn key(key: Vec<u8>, create_revision: i64) -> Self {
        Self {
            held: Some((key, create_revision)),
        }
    }

    /// For people, and for founding the fences themselves.
    pub(crate) fn nobody() -> Self {
        Self { held: None }
    }
}

/// What must hold for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// It does not exist.
    Absent,
    /// It exists, in whatever version.
    Exists,
    /// It was last written at this revision.
    Unchanged(i64),
    /// It is in the life that began at this revision.
    CreatedAt(i64),
    /// Nothing: for values that only their one writer changes. A lost answer to such a write can stay ambiguous.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put { value: Bytes, lease: i64 },
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    pub(crate) op: Op,
    pub(crate) guard: Guard,
}

/// A transaction: all of its writes, or none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    pub(crate) fence: Fence,
    pub(crate) requires: Vec<(Vec<u8>, Guard)>,
    pub(crate) writes: Vec<Write>,
}

impl Txn {
    /// An empty transaction behind a fence.
    pub fn new(fence: &Fence) -> Self {
        Self {
            fence: fence.clone(),
            requires: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Writes a key.
    pub fn put(self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>, guard: Guard) -> Self {
        self.put_leased(key, value, guard, 0)
    }

    /// Writes a key that is deleted when the lease ends.
    pub fn put_leased(
        mut self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Bytes>,
        guard: Guard,
        lease: i64,
    ) -> Self {
        let op = Op::Put {
            value: value.into(),
            lease,
        };
        self.writes.push(Write {
            key: key.into(),
            op,
            guard,
        });
        self
    }

    /// Deletes a key.
    pub fn delete(mut self, key: impl Into<Vec<u8>>, guard: Guard) -> Self {
        self.writes.push(Write {
            key: key.into(),
            op: Op::Delete,
            guard,
        });
        self
    }

    /// Demands something of a key that is not written.
    pub fn require(mut self, key: impl Into<Vec<u8>>, guard: Guard) -> Self {
        self.requires.push((key.into(), guard));
        self
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a transaction that was not committed changed nothing"]
pub enum Outcome {
    /// In force since this revision.
    Committed {
        /// The revision of its writes.
        revision: i64,
    },
    /// Nothing was written: the right to write is lost.
    FenceLost,
    /// Nothing was written: these keys are not as demanded.
    Conflict {
        /// Each key whose guard failed.
        keys: Vec<Conflict>,
    },
}

/// A key whose guard failed. The value is not read: observe again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The full key.
    pub key: Vec<u8>,
    /// What it was found to be: (create revision, mod revision); `None` when absent.
    pub found: Option<(i64, i64)>,
}

pub(crate) async fn commit<S: Store>(_store: &S, _txn: Txn) -> Result<Outcome, StoreError> {
    todo!()
}

pub(crate) async fn batch<S: Store>(
    _store: &S,
    _txns: Vec<Txn>,
) -> Vec<Result<Outcome, StoreError>> {
    todo!()
}
