//! A node's session: the leased key that says which agent speaks for the node. The agent opens it, keeps its record on
//! disk to resume it after a restart, and fences all its writes with it: a clone or a paused twin cannot write.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::leader::Lost;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// What the caller keeps on disk to resume a session after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionRecord {
    /// The lease id.
    pub lease: i64,
    /// The create revision of the session's key.
    pub create_revision: i64,
}

/// How to open a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The full key, `/reeve/sessions/<node>`.
    pub key: Vec<u8>,
    /// This machine's id.
    pub machine_id: String,
    /// The document, a JSON object with at least `"machineId"`, the same one as above.
    pub value: Bytes,
    /// How long a silent agent keeps its session; 15 s by default.
    pub ttl: Duration,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Another agent holds the session and keeps it alive.
    #[error("open the session `{key}`: it is held by machine `{by}`")]
    NodeTaken {
        /// The key.
        key: String,
        /// The holder's machine id; `unknown` when its document cannot be read.
        by: String,
        /// Whether it is this machine's id: a second agent here, or a clone of this machine.
        same_machine: bool,
    },
    /// The shutdown drained while waiting for an earlier session of this machine to end.
    #[error("open the session `{key}`: shutting down")]
    ShuttingDown {
        /// The key.
        key: String,
    },
    /// The store failed.
    #[error("open the session `{key}`")]
    Store {
        /// The key.
        key: String,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl SessionError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NodeTaken { same_machine: true, .. } => Some(
                "stop the other agent of this node; if this machine is a clone, give it its own /etc/machine-id".to_owned(),
            ),
            Self::NodeTaken { .. } => Some("choose another --node name, or stop the agent that uses it".to_owned()),
            Self::ShuttingDown { key: _ } => None,
            Self::Store { key: _, source } => source.remedy(),
        }
    }
}

/// An open session, kept alive until it is closed or dropped. Dropping leaves the lease to run out, so that a restarted
/// agent can resume it.
#[derive(Debug)]
pub struct Session {
    key: Vec<u8>,
    record: SessionRecord,
    lost: Lost,
}

/// Opens the session, or resumes the one on record. When this machine's earlier session (with its record lost) is still
/// leased, waits for its end, at most its time to live; an outage of the store is returned, for the caller to retry.
pub async fn open<S: Store>(
    _store: &S,
    _options: &SessionOptions,
    _record: Option<SessionRecord>,
    _shutdown: &Shutdown,
) -> Result<Session, SessionError> {
    todo!()
}

impl Session {
    /// The full key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The create revision of the key: the fence.
    pub const fn create_revision(&self) -> i64 {
        self.record.create_revision
    }

    /// What to keep on disk.
    pub const fn record(&self) -> SessionRecord {
        self.record
    }

    /// The lease, for [`Txn::put_leased`](crate::Txn::put_leased) of the session's own key.
    pub const fn lease(&self) -> i64 {
        self.record.lease
    }

    /// Tells when it is lost.
    pub fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Whether it is lost; a fenced write finds out for sure.
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost()
    }

    /// Ends the session at once: the node is seen to have gone on purpose.
    pub async fn close(self) {
        todo!()
    }
}
