//! Leader election on one key. Controllers [`campaign`]; the winner's [`Leadership`] is the fence of all its writes. It
//! steps down by its own clock (suspended time counted) before its lease can have ended; the fence is what makes a late
//! write harmless, not the clock.

use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backoff::{Backoff, jitter};
use crate::boottime::{self, Instant};
use crate::error::{StoreError, StoreErrorKind};
use crate::shutdown::Shutdown;
use crate::store::{KeyValue, Prefix, Store, WatchEvent, WatchInput};
use crate::txn::{Fence, Guard, Outcome, Txn};

/// The shortest and the longest time to live: shorter ones end in every pause of the store, longer ones leave a cluster
/// without a leader for too long.
const TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// A waiter looks at the key this often even when its watch says nothing.
const SAFETY_POLL: Duration = Duration::from_secs(30);

/// How to campaign.
#[derive(Clone, Debug)]
pub struct LeaderOptions {
    /// The prefix of the election; the key is `<prefix>controller`.
    pub election: Prefix,
    /// Who campaigns, for people: `host:pid`, an address, ...
    pub holder: String,
    /// How long a leader that says nothing stays leader; 5 to 60 s, 10 s by default.
    pub ttl: Duration,
}

impl LeaderOptions {
    /// With a time to live of 10 s.
    pub fn new(election: Prefix, holder: impl Into<String>) -> Self {
        Self {
            election,
            holder: holder.into(),
            ttl: Duration::from_secs(10),
        }
    }

    /// The key campaigned for.
    pub fn key(&self) -> Vec<u8> {
        self.election.key("controller")
    }
}

/// The document of the election key; for people, and to know one's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Who leads.
    pub holder: String,
    /// The lease, in hexadecimal as etcdctl shows it.
    pub lease: String,
}

/// The leadership that was won; lost when the lease ends or the key is gone. Dropping it stops the renewals.
#[derive(Debug)]
pub struct Leadership {
    key: Vec<u8>,
    epoch: i64,
    lost: Lost,
    keeper: JoinHandle<()>,
    resign: watch::Sender<bool>,
}

/// Tells that a leadership or a session is lost; it is never found again.
#[derive(Clone, Debug)]
pub struct Lost {
    pub(crate) state: watch::Receiver<bool>,
}

impl Lost {
    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        *self.state.borrow() || self.state.has_changed().is_err()
    }

    /// Ends when it is lost.
    pub async fn lost(&self) {
        // An error means that the keeper is gone, and the renewals with it.
        let _ = self.state.clone().wait_for(|lost| *lost).await;
    }
}

/// Waits until this process leads; `None` when the shutdown drains first. Outages are waited out; an error is what no
/// waiting mends (access denied, not etcd).
pub async fn campaign<S: Store>(
    store: &S,
    options: &LeaderOptions,
    shutdown: &Shutdown,
) -> Result<Option<Leadership>, StoreError> {
    let mut backoff = Backoff::default();
    loop {
        let attempt = async {
            match take(store, options).await {
                Ok(Taken::Won(leadership)) => Ok(Some(leadership)),
                Ok(Taken::HeldSince(revision)) => {
                    backoff.reset();
                    until_free(store, options, revision).await;
                    Ok(None)
                }
                Err(error) if is_for_good(&error.kind) => Err(error),
                Err(error) => {
                    tracing::debug!(%error, "an attempt to lead failed");
                    boottime::sleep(backoff.delay()).await;
                    Ok(None)
                }
            }
        };
        tokio::select! {
            biased;
            () = shutdown.draining() => return Ok(None),
            ended = attempt => {
                if let Some(leadership) = ended? {
                    return Ok(Some(leadership));
                }
            }
        }
    }
}

pub(crate) const fn is_for_good(kind: &StoreErrorKind) -> bool {
    matches!(
        kind,
        StoreErrorKind::Denied | StoreErrorKind::NotEtcd | StoreErrorKind::Tls | StoreErrorKind::Invalid(_)
    )
}

enum Taken {
    Won(Leadership),
    HeldSince(i64),
}

/// One attempt to create the key.
async fn take<S: Store>(store: &S, options: &LeaderOptions) -> Result<Taken, StoreError> {
    let key = options.key();
    let held = store.get(&key).await?;
    match &held.value {
        Some(stray) if stray.lease == 0 => remove_stray(store, stray).await?,
        Some(_) => return Ok(Taken::HeldSince(held.revision)),
        None => {}
    }
    let asked = options.ttl.clamp(TTL.0, TTL.1);
    let before = Instant::now();
    let lease = store.lease_grant(asked).await?;
    let holder = Holder {
        holder: options.holder.clone(),
        lease: format!("{:x}", lease.id),
    };
    let value = serde_json::to_vec(&holder).unwrap_or_default();
    // Founding the fence itself: the one write of a controller that nothing can fence but the key's absence.
    let txn = Txn::new(&Fence::nobody()).put_leased(key.clone(), value, Guard::Absent, lease.id);
    match store.commit(txn).await {
        Ok(Outcome::Committed { revision }) => {
            let (told, state) = watch::channel(false);
            let (resign, resigning) = watch::channel(false);
            let keeper = Keeper {
                store: store.clone(),
                key: key.clone(),
                epoch: revision,
                lease: lease.id,
                ttl: lease.ttl.min(asked),
                renewed: before,
            };
            Ok(Taken::Won(Leadership {
                key,
                epoch: revision,
                lost: Lost { state },
                keeper: tokio::spawn(keeper.keep(told, resigning)),
                resign,
            }))
        }
        Ok(Outcome::Conflict { .. } | Outcome::FenceLost) => {
            let _ = store.lease_revoke(lease.id).await;
            Ok(Taken::HeldSince(held.revision))
        }
        Err(error) => {
            // Should the write have been, or still be, taken up: without its lease it is nothing.
            let _ = store.lease_revoke(lease.id).await;
            Err(error)
        }
    }
}

/// Removes what stands at a key that only a leased value may hold. It has no lease: somebody put it there by hand, it would
/// never end, and nobody could take the key again.
pub(crate) async fn remove_stray<S: Store>(store: &S, stray: &KeyValue) -> Result<(), StoreError> {
    let key = stray.key_str().unwrap_or_default();
    tracing::warn!(
        key,
        "a value without a lease, which no agent and no controller wrote, is removed"
    );
    let txn = Txn::new(&Fence::nobody()).delete(stray.key.clone(), Guard::Unchanged(stray.mod_revision));
    store.commit(txn).await.map(|_| ())
}

/// Waits until the key is deleted, or until it is worth another look.
async fn until_free<S: Store>(store: &S, options: &LeaderOptions, revision: i64) {
    let key = options.key();
    let mut stream = store.watch(&options.election, revision + 1);
    let deleted = async {
        while let Some(said) = stream.next().await {
            match said {
                WatchInput::Opened { .. } => {}
                WatchInput::Response { events, .. } => {
                    let free = |e: &WatchEvent| matches!(e, WatchEvent::Delete { key: k, revision: _ } if *k == key);
                    if events.iter().any(free) {
                        return;
                    }
                }
                WatchInput::Canceled { .. } | WatchInput::Disconnected(_) => break,
            }
        }
        // The watch broke: look again soon, but not all waiters at once.
        boottime::sleep(jitter(Duration::from_millis(100), Duration::from_secs(1))).await;
    };
    tokio::select! {
        () = deleted => {}
        () = boottime::sleep(jitter(SAFETY_POLL / 2, SAFETY_POLL)) => {}
    }
}

/// Renews a leadership until it is lost or given up.
struct Keeper<S> {
    store: S,
    key: Vec<u8>,
    epoch: i64,
    lease: i64,
    ttl: Duration,
    /// When the last renewal that succeeded was sent: the lease ends no earlier than one time to live after it.
    renewed: Instant,
}

impl<S: Store> Keeper<S> {
    async fn keep(mut self, told: watch::Sender<bool>, mut resigning: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), self.ttl / 6);
        let mut pause = self.ttl / 3;
        loop {
            // A tenth of the time to live is kept for what is under way when the leadership ends.
            let end = self.renewed + self.ttl * 9 / 10;
            let (store, key, lease, epoch) = (&self.store, &self.key, self.lease, self.epoch);
            let renewal = async {
                boottime::sleep(pause).await;
                let sent = Instant::now();
                (sent, renew(store, key, lease, epoch).await)
            };
            tokio::select! {
                biased;
                asked = is_asked(&mut resigning) => {
                    if asked {
                        told.send_replace(true);
                        let _ = self.store.lease_revoke(self.lease).await;
                    }
                    return;
                }
                () = boottime::sleep_until(end) => {
                    tracing::warn!(epoch, "the leadership could not be renewed in time: stepping down");
                    break;
                }
                (sent, renewed) = renewal => match renewed {
                    Ok(true) => {
                        self.renewed = sent;
                        backoff.reset();
                        pause = self.ttl / 3;
                    }
                    Ok(false) => {
                        tracing::warn!(epoch, "the leadership is lost: its lease or its key is gone");
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, epoch, "a renewal failed");
                        pause = backoff.delay();
                    }
                }
            }
        }
        told.send_replace(true);
        let _ = self.store.lease_revoke(self.lease).await;
    }
}

/// Waits until the owner asks for the end; `false` when the owner is gone without asking.
pub(crate) async fn is_asked(asked: &mut watch::Receiver<bool>) -> bool {
    asked.wait_for(|asked| *asked).await.is_ok()
}

/// Renews a lease and looks whether its key still is in the life it had. `false`: it is over.
pub(crate) async fn renew<S: Store>(store: &S, key: &[u8], lease: i64, created: i64) -> Result<bool, StoreError> {
    match store.lease_keep_alive(lease).await {
        Ok(()) => {}
        Err(error) if error.kind == StoreErrorKind::LeaseNotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let found = store.get(key).await?.value;
    Ok(found.is_some_and(|kv| kv.create_revision == created && kv.lease == lease))
}

impl Leadership {
    /// The election key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The epoch: the create revision of the election key. Every later leader has a greater one.
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Tells when it is lost.
    pub fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Whether it is lost; a fenced write finds out for sure.
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost()
    }

    /// Gives the leadership up, so that another can lead at once. Finish or drop all writes first.
    pub async fn resign(mut self) {
        self.resign.send_replace(true);
        let _ = (&mut self.keeper).await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[cfg(test)]
mod tests;
