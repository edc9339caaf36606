//! A copy of a prefix that follows the store: one writer (a task that cannot be cloned), many cheap readers. A re-list
//! is swapped in whole, so no reader ever sees half a list. Controllers reflect the whole root; agents their own keys.

use std::sync::Arc;
use std::time::Duration;

use crate::map::KeyMap;
use crate::shutdown::Shutdown;
use crate::store::{Prefix, Store};

/// The store as it was at one revision. Cloning is free.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// All changes up to this revision are in, and none after it.
    pub revision: i64,
    /// Which store it is a copy of.
    pub cluster_id: u64,
    /// How often the whole prefix was listed in this process; 1 at first.
    pub lists: u64,
    /// Set for good once the store answered with an older revision than before, or turned out to be another store:
    /// the latest position seen before that. The cache shows the store as it is now all the same; who removes
    /// anything must look at this first.
    pub went_back: Option<Position>,
    /// The keys.
    pub keys: KeyMap,
}

/// A place in the history of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which store.
    pub cluster_id: u64,
    /// The revision.
    pub revision: i64,
}

/// How to reflect.
#[derive(Clone, Debug)]
pub struct ReflectOptions {
    /// Keys under these prefixes are left out of the cache (`/reeve/events/`).
    pub skip: Vec<Prefix>,
    /// A watch that says nothing for this long is opened anew; 11 minutes, as etcd reports progress every ten.
    pub silence: Duration,
    /// The delays between failures; 100 ms to 10 s by default.
    pub backoff: crate::backoff::Backoff,
}

impl Default for ReflectOptions {
    fn default() -> Self {
        Self {
            skip: Vec::new(),
            silence: Duration::from_secs(660),
            backoff: crate::backoff::Backoff::default(),
        }
    }
}

/// Starts to reflect a prefix until the shutdown drains or the last reader is gone. Returns at once; wait for
/// [`Reader::ready`]. Needs a tokio runtime.
pub fn reflect<S: Store>(
    _store: S,
    _prefix: Prefix,
    _options: ReflectOptions,
    _shutdown: &Shutdown,
) -> Reader {
    todo!()
}

/// Reads one reflected prefix.
#[derive(Clone, Debug)]
pub struct Reader {
    cache: tokio::sync::watch::Receiver<Option<Cache>>,
}

/// The reflector has ended (at shutdown): nothing changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("follow the store: the reflector has ended")]
pub struct Ended;

impl Reader {
    /// The cache now; `None` before the first complete list.
    pub fn snapshot(&self) -> Option<Cache> {
        self.cache.borrow().clone()
    }

    /// Waits for the first complete list.
    pub async fn ready(&self) -> Result<Cache, Ended> {
        self.synced_to(0).await
    }

    /// Waits until every change up to a revision is in. Only the revision of a write under this prefix is certain to be
    /// reached without further writes.
    pub async fn synced_to(&self, revision: i64) -> Result<Cache, Ended> {
        let mut cache = self.cache.clone();
        let found = cache
            .wait_for(|c| c.as_ref().is_some_and(|c| c.revision >= revision))
            .await;
        found.ok().and_then(|c| c.clone()).ok_or(Ended)
    }

    /// Whether every change up to a revision is in.
    pub fn is_at_least(&self, revision: i64) -> bool {
        self.cache
            .borrow()
            .as_ref()
            .is_some_and(|c| c.revision >= revision)
    }

    /// Waits for a change of any key (or of the store itself) since this reader last called `changed`. Says nothing
    /// about what changed: take a snapshot.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.cache.changed().await.map_err(|_| Ended)
    }
}

/// An `Arc` is a key's identity in a cache: the same one as long as the key is unchanged.
pub fn is_same(a: &Arc<crate::store::KeyValue>, b: &Arc<crate::store::KeyValue>) -> bool {
    Arc::ptr_eq(a, b)
}
