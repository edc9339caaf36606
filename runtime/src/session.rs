//! A node's session: the leased key that says which agent speaks for the node. The agent opens it, keeps its record on
//! disk to resume it after a restart, and fences all its writes with it: a clone or a paused twin cannot write.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::boottime::{self, Instant};
use crate::error::{StoreError, StoreErrorKind};
use crate::leader::{Lost, is_asked, remove_stray, renew};
use crate::shutdown::Shutdown;
use crate::store::{KeyValue, Store};
use crate::txn::{Fence, Guard, Outcome, Txn};

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
                "stop the other agent of this node; if this machine is a clone, give it its own /etc/machine-id"
                    .to_owned(),
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
    good_until: watch::Receiver<Instant>,
    lives: Duration,
    keeper: JoinHandle<()>,
    close: watch::Sender<bool>,
}

/// The longest time between two renewals: what stops when the store is not heard of goes by them, and that may be 10 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How much longer than its lease an earlier session of this machine is waited for.
const SLACK: Duration = Duration::from_secs(2);

/// Opens the session, or resumes the one on record. When this machine's earlier session (with its record lost) is still
/// leased, waits for its end, at most its time to live; an outage of the store is returned, for the caller to retry.
pub async fn open<S: Store>(
    store: &S,
    options: &SessionOptions,
    record: Option<SessionRecord>,
    shutdown: &Shutdown,
) -> Result<Session, SessionError> {
    let key = || String::from_utf8_lossy(&options.key).into_owned();
    let mut give_up: Option<Instant> = None;
    loop {
        let held = match try_open(store, options, record).await {
            Ok(Tried::Open(session)) => return Ok(session),
            Ok(Tried::Stray) => continue,
            Ok(Tried::HeldBy(held)) => held,
            Err(source) => return Err(SessionError::Store { key: key(), source }),
        };
        let by = machine_of(&held.value);
        let same_machine = by.as_deref() == Some(options.machine_id.as_str());
        // Only our own earlier session is waited for: of another machine nobody knows that it will not come back.
        let left = match store.lease_time_to_live(held.lease).await {
            Ok(life) => life.remaining,
            Err(error) if error.kind == StoreErrorKind::LeaseNotFound => Duration::ZERO,
            Err(source) => return Err(SessionError::Store { key: key(), source }),
        };
        let end = *give_up.get_or_insert_with(|| Instant::now() + left.min(options.ttl * 2) + SLACK);
        if !same_machine || Instant::now() >= end {
            return Err(SessionError::NodeTaken {
                key: key(),
                by: by.unwrap_or_else(|| "unknown".to_owned()),
                same_machine,
            });
        }
        tokio::select! {
            () = shutdown.draining() => return Err(SessionError::ShuttingDown { key: key() }),
            () = boottime::sleep(Duration::from_millis(500)) => {}
        }
    }
}

enum Tried {
    Open(Session),
    HeldBy(KeyValue),
    /// What stood there was nobody's, and is removed.
    Stray,
}

async fn try_open<S: Store>(
    store: &S,
    options: &SessionOptions,
    record: Option<SessionRecord>,
) -> Result<Tried, StoreError> {
    if let Some(held) = store.get(&options.key).await?.value {
        let ours =
            record.filter(|r| r.create_revision == held.create_revision && r.lease == held.lease && r.lease != 0);
        let Some(record) = ours else {
            if held.lease == 0 {
                remove_stray(store, &held).await?;
                return Ok(Tried::Stray);
            }
            return Ok(Tried::HeldBy(held));
        };
        let asked = Instant::now();
        if renew(store, &options.key, record.lease, record.create_revision).await? {
            // It may have been opened for another time.
            let lives = store.lease_time_to_live(record.lease).await?.granted.min(options.ttl);
            return Ok(Tried::Open(Session::keep(store, options, record, asked, lives)));
        }
        // It ended just now; the next look finds the key gone.
        return Ok(Tried::HeldBy(held));
    }
    let asked = Instant::now();
    let lease = store.lease_grant(options.ttl).await?;
    // Founding the fence itself: the one write of an agent that nothing can fence but the key's absence.
    let txn =
        Txn::new(&Fence::nobody()).put_leased(options.key.clone(), options.value.clone(), Guard::Absent, lease.id);
    let answer = store.commit(txn).await;
    if let Ok(Outcome::Committed { revision }) = answer {
        let record = SessionRecord {
            lease: lease.id,
            create_revision: revision,
        };
        let lives = lease.ttl.min(options.ttl);
        return Ok(Tried::Open(Session::keep(store, options, record, asked, lives)));
    }
    // Should the write have been, or still be, taken up: without its lease it is nothing.
    let _ = store.lease_revoke(lease.id).await;
    match answer {
        Err(error) => Err(error),
        Ok(_) => match store.get(&options.key).await?.value {
            Some(held) => Ok(Tried::HeldBy(held)),
            None => Err(StoreError::new(
                "create",
                String::from_utf8_lossy(&options.key),
                StoreErrorKind::DeadlineExceeded,
            )),
        },
    }
}

/// The machine id in a session's document; nothing else of it is looked at.
fn machine_of(value: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        machine_id: String,
    }
    let document: Document = serde_json::from_slice(value).ok()?;
    Some(document.machine_id.chars().take(64).collect())
}

/// Renews a session until the store says that it is over.
async fn keep_alive<S: Store>(
    store: S,
    key: Vec<u8>,
    record: SessionRecord,
    ttl: Duration,
    told: watch::Sender<bool>,
    good: watch::Sender<Instant>,
    mut closing: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), ttl / 6);
    let usual = (ttl / 3).min(LONGEST_PAUSE);
    let mut pause = usual;
    loop {
        let renewal = async {
            boottime::sleep(pause).await;
            let asked = Instant::now();
            (asked, renew(&store, &key, record.lease, record.create_revision).await)
        };
        tokio::select! {
            biased;
            asked = is_asked(&mut closing) => {
                if asked {
                    told.send_replace(true);
                    let _ = store.lease_revoke(record.lease).await;
                }
                return;
            }
            (asked, renewed) = renewal => match renewed {
                Ok(true) => {
                    good.send_replace(asked + ttl);
                    backoff.reset();
                    pause = usual;
                }
                Ok(false) => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), "the session is lost: its lease or its key is gone");
                    told.send_replace(true);
                    return;
                }
                Err(error) => {
                    // An outage says nothing of the lease: etcd extends all leases when it comes back.
                    tracing::debug!(%error, "a renewal failed");
                    pause = backoff.delay();
                }
            }
        }
    }
}

impl Session {
    fn keep<S: Store>(
        store: &S,
        options: &SessionOptions,
        record: SessionRecord,
        asked: Instant,
        lives: Duration,
    ) -> Self {
        let (told, state) = watch::channel(false);
        let (good, good_until) = watch::channel(asked + lives);
        let (close, closing) = watch::channel(false);
        let keeper = keep_alive(store.clone(), options.key.clone(), record, lives, told, good, closing);
        Self {
            key: options.key.clone(),
            record,
            lost: Lost { state },
            good_until,
            lives,
            keeper: tokio::spawn(keeper),
            close,
        }
    }

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

    /// Until when it lives at least, whatever happens: when the last renewal that succeeded was asked for, and its time to live
    /// after that. What must have ended before the session does goes by this.
    pub fn good_until(&self) -> watch::Receiver<Instant> {
        self.good_until.clone()
    }

    /// For how long it lives after a renewal: so much before [`Session::good_until`] the last one was asked for.
    pub const fn lives(&self) -> Duration {
        self.lives
    }

    /// Ends the session at once: the node is seen to have gone on purpose.
    pub async fn close(mut self) {
        self.close.send_replace(true);
        let _ = (&mut self.keeper).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[cfg(test)]
mod tests;
