//! The store as one machine reaches it: over a line that delays, loses requests or answers, falls silent or is cut, and that a
//! process may die on, before or after a write. Every write that came into force is noted with who made it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::{StreamExt as _, stream};
use runtime::store::{LeaseLife, Listing, StoreStatus};
use runtime::{
    Health, KeyValue, Lease, MemoryStore, Outcome, Prefix, Read, Store, StoreError, StoreErrorKind, Txn, WatchInput,
    store::WatchStream,
};
use tokio::sync::watch;

use crate::dice::Dice;

/// How long a call waits for its answer; as [`runtime::EtcdOptions`] has it.
const DEADLINE: Duration = Duration::from_secs(5);
/// After so long without a sign the connection of a watch counts as broken.
const SILENCE: Duration = Duration::from_secs(10);

/// How a line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Everything comes through.
    #[default]
    Open,
    /// Nothing does, and nobody says so.
    Silent,
    /// Requests arrive, answers do not.
    Deaf,
    /// Every call is refused at once; watches end.
    Refused,
}

/// Where a process dies on its line, or an answer is lost, counted in writes from when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Dies before the write.
    Before(u64),
    /// The write is in force, and the process dies.
    After(u64),
    /// The write is in force, and its answer is lost.
    Unanswered(u64),
}

/// A write that came into force.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The machine that made it.
    pub by: String,
    /// The keys it wrote, each with its value where it was not a deletion.
    pub keys: Vec<(String, Option<Bytes>)>,
    /// The key it was fenced with.
    pub fence: Option<String>,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// The longest delay of a way, in milliseconds.
    slow_ms: u64,
    dice: Dice,
    at: Option<At>,
    /// Transactions asked for.
    writes: u64,
    dead: bool,
}

/// One machine's line to the store. Clones are the same line.
#[derive(Clone, Debug)]
pub struct Line {
    store: MemoryStore,
    health: Health,
    by: String,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<()>>,
    journal: Arc<Mutex<Vec<Commit>>>,
}

impl Line {
    /// An open one.
    #[must_use]
    pub fn new(store: &MemoryStore, by: &str, seed: u64, journal: &Arc<Mutex<Vec<Commit>>>) -> Self {
        let state = State {
            way: Way::Open,
            slow_ms: 3,
            dice: Dice::new(seed),
            at: None,
            writes: 0,
            dead: false,
        };
        Self {
            store: store.clone(),
            health: Health::default(),
            by: by.to_owned(),
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(watch::Sender::new(())),
            journal: Arc::clone(journal),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is so from now on.
    pub fn set(&self, way: Way) {
        self.state().way = way;
        self.changed.send_replace(());
    }

    /// The longest delay of one way from now on.
    pub fn slow(&self, longest: Duration) {
        self.state().slow_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    }

    /// What happens to a later write.
    pub fn plan(&self, at: Option<At>) {
        let mut state = self.state();
        (state.at, state.writes) = (at, 0);
    }

    /// How many transactions were asked for since [`Line::plan`].
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Whether its process has died on it.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Another process is behind it, whose client knows nothing of the store yet.
    pub fn revive(&mut self) {
        self.state().dead = false;
        self.health = Health::default();
    }

    fn way(&self) -> Way {
        self.state().way
    }

    async fn delay(&self) {
        let time = {
            let mut state = self.state();
            let longest = state.slow_ms;
            Duration::from_millis(state.dice.below(longest + 1))
        };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    /// Until the line is as asked, or the deadline is over.
    async fn comes(&self, good: impl Fn(Way) -> bool, patience: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let waits = async {
            while !good(self.way()) {
                // The sender lives as long as the line.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(patience, waits).await.is_ok()
    }

    async fn call<T>(
        &self,
        act: &'static str,
        object: &str,
        lost: StoreErrorKind,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let fail = |kind| {
            self.health.failed();
            Err(StoreError::new(act, object, kind))
        };
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        self.delay().await;
        match self.way() {
            Way::Refused => return fail(StoreErrorKind::Unreachable),
            Way::Silent => {
                tokio::time::sleep(DEADLINE).await;
                return fail(lost);
            }
            Way::Open | Way::Deaf => {}
        }
        let answer = call.await;
        self.delay().await;
        if !self.comes(|way| way == Way::Open, DEADLINE).await {
            return fail(lost);
        }
        // The other end answers that it cannot be reached when all of it is down.
        if answer
            .as_ref()
            .is_err_and(|error| error.kind == StoreErrorKind::Unreachable)
        {
            self.health.failed();
        } else {
            self.health.answered();
        }
        answer
    }

    async fn read<T: Send>(
        &self,
        act: &'static str,
        object: &[u8],
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let object = String::from_utf8_lossy(object).into_owned();
        self.call(act, &object, StoreErrorKind::DeadlineExceeded, call).await
    }

    async fn write(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let now = {
            let mut state = self.state();
            state.writes += 1;
            state.writes
        };
        let at = self.state().at;
        let dies = |line: &Self| -> BoxFuture<'static, ()> {
            line.state().dead = true;
            std::future::pending().boxed()
        };
        if at == Some(At::Before(now)) {
            dies(self).await;
        }
        let outcome = self.store.submit(txn).await;
        if let Ok(Outcome::Committed { revision: _ }) = &outcome {
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            let keys = txn
                .written()
                .into_iter()
                .map(|(key, value)| (text(key), value.cloned()));
            let commit = Commit {
                by: self.by.clone(),
                keys: keys.collect(),
                fence: txn.fenced_with().map(text),
            };
            self.journal.lock().unwrap_or_else(PoisonError::into_inner).push(commit);
        }
        if at == Some(At::After(now)) {
            dies(self).await;
        }
        if at == Some(At::Unanswered(now)) {
            return Err(StoreError::new(
                "write",
                "the answer was lost",
                StoreErrorKind::Ambiguous,
            ));
        }
        outcome
    }

    /// The next input of a watch, when the line lets it through.
    async fn hear(self, mut inner: WatchStream) -> Option<(WatchInput, Option<(Self, WatchStream)>)> {
        let mut changed = self.changed.subscribe();
        loop {
            match self.way() {
                Way::Open => {}
                Way::Refused => return Some((self.broken(), None)),
                Way::Silent | Way::Deaf => {
                    if !self.comes(|way| matches!(way, Way::Open | Way::Refused), SILENCE).await {
                        return Some((self.broken(), None));
                    }
                    continue;
                }
            }
            let input = tokio::select! {
                biased;
                _ = changed.changed() => continue,
                input = inner.next() => input?,
            };
            self.delay().await;
            if self.way() != Way::Open {
                // Sent, and lost with the connection.
                let _over = self.comes(|way| way == Way::Refused, SILENCE).await;
                return Some((self.broken(), None));
            }
            return Some((input, Some((self, inner))));
        }
    }

    fn broken(&self) -> WatchInput {
        WatchInput::Disconnected(StoreError::new("watch", "the line", StoreErrorKind::Unreachable))
    }
}

impl Store for Line {
    async fn get(&self, key: &[u8]) -> Result<Read<Option<KeyValue>>, StoreError> {
        self.read("read", key, self.store.get(key)).await
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Read<Vec<Option<KeyValue>>>, StoreError> {
        let first = keys.first().map_or(b"".as_slice(), |key| key);
        self.read("read", first, self.store.get_many(keys)).await
    }

    async fn list(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        self.read("list", prefix.as_str().as_bytes(), self.store.list(prefix))
            .await
    }

    fn watch(&self, prefix: &Prefix, from_revision: i64) -> WatchStream {
        let inner = self.store.watch(prefix, from_revision);
        stream::unfold(Some((self.clone(), inner)), |on| async move {
            let (line, inner) = on?;
            line.hear(inner).await
        })
        .boxed()
    }

    async fn submit(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let object = txn
            .written()
            .first()
            .map_or_else(String::new, |(key, _)| String::from_utf8_lossy(key).into_owned());
        self.call("write", &object, StoreErrorKind::Ambiguous, self.write(txn))
            .await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.read("grant a lease", b"", self.store.lease_grant(ttl)).await
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), StoreError> {
        self.read("renew the lease", b"", self.store.lease_keep_alive(lease))
            .await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), StoreError> {
        self.read("revoke the lease", b"", self.store.lease_revoke(lease)).await
    }

    async fn lease_time_to_live(&self, lease: i64) -> Result<LeaseLife, StoreError> {
        self.read("read the lease", b"", self.store.lease_time_to_live(lease))
            .await
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        self.read("read the status of", b"the store", self.store.status()).await
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.read("compact", b"the store", self.store.compact(revision)).await
    }

    fn health(&self) -> &Health {
        &self.health
    }
}
