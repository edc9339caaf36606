//! A small store in memory for tests of what stands above the store: history, leases that end by hand, and faults on
//! demand. It sits the same contract suite as etcd; it is compiled for tests only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use crate::error::{StoreError, StoreErrorKind};
use crate::health::Health;
use crate::store::{
    KeyValue, Lease, LeaseLife, Listing, Prefix, Read, Store, StoreStatus, WatchEvent, WatchInput, WatchStream,
};
use crate::txn::{Guard, Op, Outcome, Txn};

/// What shall happen to the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// It is refused as by a store that cannot be reached; nothing is written.
    Refused,
    /// It is in force, but the answer is lost.
    AnswerLost,
    /// It is not in force, and the answer is lost.
    RequestLost,
    /// It is in force and answered, but from it on watches say nothing, as after [`MemoryStore::hold_watches`].
    Unwatched,
    /// The answer is lost; it comes into force (if its guards hold then) at [`MemoryStore::deliver_late_writes`].
    Late,
}

/// The store in memory; all clones are one.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    bell: Arc<watch::Sender<u64>>,
    health: Health,
}

/// A state to go back to.
#[derive(Clone, Debug)]
pub struct Checkpoint(State);

#[derive(Clone, Debug)]
struct State {
    cluster_id: u64,
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    log: Vec<WatchEvent>,
    leases: BTreeMap<i64, LeaseLife>,
    last_lease: i64,
    commits: u64,
    /// Raised to end all watches.
    watches: u64,
    down: bool,
    held: bool,
    read_faults: VecDeque<StoreErrorKind>,
    lease_faults: VecDeque<StoreErrorKind>,
    write_faults: VecDeque<WriteFault>,
    late: Vec<Txn>,
    largest: usize,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store at revision 1.
    pub fn new() -> Self {
        let state = State {
            cluster_id: 1,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: Vec::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            commits: 0,
            watches: 0,
            down: false,
            held: false,
            read_faults: VecDeque::new(),
            lease_faults: VecDeque::new(),
            write_faults: VecDeque::new(),
            late: Vec::new(),
            largest: usize::MAX,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            bell: Arc::new(watch::Sender::new(0)),
            health: Health::default(),
        }
    }

    /// Writes as `etcdctl put` does, past all faults; returns the revision.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> i64 {
        self.change(|s| {
            s.revision += 1;
            s.put(key.as_ref(), value.into(), 0);
            s.revision
        })
    }

    /// Deletes as `etcdctl del` does, past all faults; whether the key was there.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> bool {
        self.delete_where(|k| k == key.as_ref()) == 1
    }

    /// Deletes a whole prefix at one revision; returns how many keys.
    pub fn delete_prefix(&self, prefix: &str) -> usize {
        self.delete_where(|k| k.starts_with(prefix.as_bytes()))
    }

    fn delete_where(&self, which: impl Fn(&[u8]) -> bool) -> usize {
        self.change(|s| s.delete_all(which))
    }

    /// Reads past all faults.
    pub fn peek(&self, key: impl AsRef<[u8]>) -> Option<KeyValue> {
        self.lock().keys.get(key.as_ref()).cloned()
    }

    /// All keys, past all faults.
    pub fn dump(&self) -> Vec<KeyValue> {
        self.lock().keys.values().cloned().collect()
    }

    /// The revision now.
    pub fn revision(&self) -> i64 {
        self.lock().revision
    }

    /// How many transactions were committed through the [`Store`] interface: a steady state adds none.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Ends a lease, as if it had run out.
    pub fn expire_lease(&self, lease: i64) {
        self.change(|s| s.end_lease(lease));
    }

    /// So much time passes for the store: leases that nobody renewed for so long end.
    pub fn pass(&self, time: Duration) {
        let over: Vec<i64> = {
            let mut state = self.lock();
            for life in state.leases.values_mut() {
                life.remaining = life.remaining.saturating_sub(time);
            }
            let over = state.leases.iter().filter(|(_, life)| life.remaining.is_zero());
            over.map(|(lease, _)| *lease).collect()
        };
        for lease in over {
            self.expire_lease(lease);
        }
    }

    /// All leases begin anew, as when another member becomes the store's leader.
    pub fn renew_leases(&self) {
        for life in self.lock().leases.values_mut() {
            life.remaining = life.granted;
        }
    }

    /// Down: every call fails as unreachable, and all watches end.
    pub fn set_down(&self, down: bool) {
        self.change(|s| {
            s.down = down;
            s.watches += 1;
        });
    }

    /// Ends all watches as by broken connections.
    pub fn break_watches(&self) {
        self.change(|s| s.watches += 1);
    }

    /// While held, watches say nothing new.
    pub fn hold_watches(&self, held: bool) {
        self.change(|s| s.held = held);
    }

    /// The next read fails so. Several add up.
    pub fn fail_next_read(&self, kind: StoreErrorKind) {
        self.lock().read_faults.push_back(kind);
    }

    /// The next lease call fails so. Several add up.
    pub fn fail_next_lease_call(&self, kind: StoreErrorKind) {
        self.lock().lease_faults.push_back(kind);
    }

    /// The next write ends so. Several add up.
    pub fn fail_next_write(&self, fault: WriteFault) {
        self.lock().write_faults.push_back(fault);
    }

    /// Requests over so many bytes are refused from now on, as by a store with smaller limits than etcd's default.
    pub fn limit_requests(&self, bytes: usize) {
        self.lock().largest = bytes;
    }

    /// Lets the writes that were [`WriteFault::Late`] arrive now; each is judged as any other.
    pub fn deliver_late_writes(&self) -> Vec<Outcome> {
        self.change(|s| {
            let late = std::mem::take(&mut s.late);
            late.iter().map(|txn| s.apply(txn)).collect()
        })
    }

    /// A state to [`MemoryStore::restore`] later.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.lock().clone())
    }

    /// Goes back to an earlier state, as a store restored from a backup does: same cluster id, lower revision.
    pub fn restore(&self, checkpoint: &Checkpoint) {
        self.change(|s| {
            let watches = s.watches + 1;
            *s = checkpoint.0.clone();
            s.watches = watches;
        });
    }

    /// Becomes another, empty store at the same address.
    pub fn wipe(&self) {
        self.change(|s| {
            let fresh = Self::new();
            let (watches, cluster_id) = (s.watches + 1, s.cluster_id + 1);
            *s = fresh.lock().clone();
            (s.watches, s.cluster_id) = (watches, cluster_id);
        });
    }

    fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.lock());
        self.bell.send_modify(|n| *n += 1);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(
        &self,
        act: &'static str,
        object: &str,
        faults: fn(&mut State) -> &mut VecDeque<StoreErrorKind>,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        let fault = if state.down {
            Some(StoreErrorKind::Unreachable)
        } else {
            faults(&mut state).pop_front()
        };
        drop(state);
        let Some(kind) = fault else {
            self.health.answered();
            return Ok(());
        };
        self.health.failed();
        Err(StoreError::new(act, object, kind))
    }

    fn reach_read(&self, act: &'static str, object: &[u8]) -> Result<(), StoreError> {
        self.reach(act, &String::from_utf8_lossy(object), |s| &mut s.read_faults)
    }

    fn reach_lease(&self, act: &'static str, lease: i64) -> Result<(), StoreError> {
        self.reach(act, &format!("{lease:x}"), |s| &mut s.lease_faults)
    }
}

impl State {
    fn put(&mut self, key: &[u8], value: Bytes, lease: i64) {
        let old = self.keys.get(key);
        let kv = KeyValue {
            key: key.to_vec(),
            value,
            create_revision: old.map_or(self.revision, |o| o.create_revision),
            mod_revision: self.revision,
            version: old.map_or(1, |o| o.version + 1),
            lease,
        };
        self.log.push(WatchEvent::Put(kv.clone()));
        self.keys.insert(key.to_vec(), kv);
    }

    fn delete(&mut self, key: &[u8]) {
        if self.keys.remove(key).is_some() {
            self.log.push(WatchEvent::Delete {
                key: key.to_vec(),
                revision: self.revision,
            });
        }
    }

    fn delete_all(&mut self, which: impl Fn(&[u8]) -> bool) -> usize {
        let keys: Vec<Vec<u8>> = self.keys.keys().filter(|k| which(k)).cloned().collect();
        if !keys.is_empty() {
            self.revision += 1;
        }
        for key in &keys {
            self.delete(key);
        }
        keys.len()
    }

    fn end_lease(&mut self, lease: i64) {
        self.leases.remove(&lease);
        let on_it: Vec<Vec<u8>> = self
            .keys
            .values()
            .filter(|kv| kv.lease == lease)
            .map(|kv| kv.key.clone())
            .collect();
        self.delete_all(|k| on_it.iter().any(|key| key == k));
    }

    fn found(&self, key: &[u8]) -> Option<(i64, i64)> {
        self.keys.get(key).map(|kv| (kv.create_revision, kv.mod_revision))
    }

    fn apply(&mut self, txn: &Txn) -> Outcome {
        if let Some((key, created)) = &txn.fence.held
            && !Guard::CreatedAt(*created).holds(self.found(key))
        {
            return Outcome::FenceLost;
        }
        let keys = txn.conflicts(|key| self.found(key));
        if !keys.is_empty() {
            return Outcome::Conflict { keys };
        }
        let changes = |s: &Self| {
            txn.writes
                .iter()
                .any(|w| matches!(w.op, Op::Put { .. }) || s.keys.contains_key(&w.key))
        };
        if changes(self) {
            self.revision += 1;
        }
        for write in &txn.writes {
            match &write.op {
                Op::Put { value, lease } => self.put(&write.key, value.clone(), *lease),
                Op::Delete => self.delete(&write.key),
            }
        }
        self.commits += 1;
        Outcome::Committed {
            revision: self.revision,
        }
    }

    fn read<T>(&self, value: T) -> Read<T> {
        Read {
            revision: self.revision,
            cluster_id: self.cluster_id,
            value,
        }
    }
}

impl Store for MemoryStore {
    async fn get(&self, key: &[u8]) -> Result<Read<Option<KeyValue>>, StoreError> {
        self.reach_read("read", key)?;
        let state = self.lock();
        Ok(state.read(state.keys.get(key).cloned()))
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Read<Vec<Option<KeyValue>>>, StoreError> {
        self.reach_read("read", keys.first().map_or(b"", |k| k))?;
        let state = self.lock();
        Ok(state.read(keys.iter().map(|k| state.keys.get(k).cloned()).collect()))
    }

    async fn list(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        self.reach_read("list", prefix.as_str().as_bytes())?;
        let state = self.lock();
        Ok(Listing {
            revision: state.revision,
            cluster_id: state.cluster_id,
            kvs: state
                .keys
                .values()
                .filter(|kv| prefix.covers(&kv.key))
                .cloned()
                .collect(),
        })
    }

    fn watch(&self, prefix: &Prefix, from_revision: i64) -> WatchStream {
        let watcher = Watcher {
            store: self.clone(),
            prefix: prefix.clone(),
            next: from_revision,
            bell: self.bell.subscribe(),
            life: None,
        };
        stream::unfold(Some(watcher), |watcher| async move { watcher?.next().await }).boxed()
    }

    async fn submit(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let object = txn
            .writes
            .first()
            .map(|w| String::from_utf8_lossy(&w.key).into_owned())
            .unwrap_or_default();
        let fail = |kind| {
            self.health.failed();
            Err(StoreError::new("write", object.clone(), kind))
        };
        if self.lock().down {
            return fail(StoreErrorKind::Unreachable);
        }
        let unleased = |s: &State| {
            txn.writes.iter().any(|w| match w.op {
                Op::Put { value: _, lease } => lease != 0 && !s.leases.contains_key(&lease),
                Op::Delete => false,
            })
        };
        if unleased(&self.lock()) {
            return Err(StoreError::new("write", object, StoreErrorKind::LeaseNotFound));
        }
        let (bytes, limit) = (txn.bytes(), self.lock().largest);
        if bytes > limit {
            return Err(StoreError::new(
                "write",
                object,
                StoreErrorKind::TooLarge { bytes, limit },
            ));
        }
        let fault = self.lock().write_faults.pop_front();
        match fault {
            None => {
                self.health.answered();
                Ok(self.change(|s| s.apply(txn)))
            }
            Some(WriteFault::Refused) => fail(StoreErrorKind::Unreachable),
            Some(WriteFault::RequestLost) => fail(StoreErrorKind::Ambiguous),
            Some(WriteFault::AnswerLost) => {
                let _ = self.change(|s| s.apply(txn));
                fail(StoreErrorKind::Ambiguous)
            }
            Some(WriteFault::Unwatched) => {
                self.health.answered();
                Ok(self.change(|s| {
                    s.held = true;
                    s.apply(txn)
                }))
            }
            Some(WriteFault::Late) => {
                self.lock().late.push(txn.clone());
                fail(StoreErrorKind::Ambiguous)
            }
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.reach_lease("grant a lease", 0)?;
        let mut state = self.lock();
        state.last_lease += 1;
        let id = state.last_lease;
        let life = LeaseLife {
            granted: ttl,
            remaining: ttl,
        };
        state.leases.insert(id, life);
        Ok(Lease { id, ttl })
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), StoreError> {
        self.lease_time_to_live(lease).await?;
        if let Some(life) = self.lock().leases.get_mut(&lease) {
            life.remaining = life.granted;
        }
        Ok(())
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), StoreError> {
        self.reach_lease("revoke the lease", lease)?;
        self.expire_lease(lease);
        Ok(())
    }

    async fn lease_time_to_live(&self, lease: i64) -> Result<LeaseLife, StoreError> {
        self.reach_lease("read the lease", lease)?;
        let gone = || StoreError::new("read the lease", format!("{lease:x}"), StoreErrorKind::LeaseNotFound);
        self.lock().leases.get(&lease).cloned().ok_or_else(gone)
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        self.reach_read("read the status of", b"memory")?;
        let state = self.lock();
        Ok(StoreStatus {
            endpoint: "memory".to_owned(),
            version: "memory".to_owned(),
            db_size_bytes: 0,
            revision: state.revision,
            cluster_id: state.cluster_id,
            leader: 1,
            errors: Vec::new(),
        })
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.reach_read("compact", b"memory")?;
        let refused = |kind| Err(StoreError::new("compact", revision.to_string(), kind));
        let now = self.lock().revision;
        let compacted = self.lock().compacted;
        if revision > now {
            return refused(StoreErrorKind::FutureRevision);
        }
        if revision <= compacted {
            return refused(StoreErrorKind::Compacted { at: compacted });
        }
        self.change(|s| {
            s.compacted = revision;
            s.log.retain(|e| e.revision() >= revision);
        });
        Ok(())
    }

    fn health(&self) -> &Health {
        &self.health
    }
}

struct Watcher {
    store: MemoryStore,
    prefix: Prefix,
    next: i64,
    bell: watch::Receiver<u64>,
    /// The count of broken watches when this one opened.
    life: Option<u64>,
}

impl Watcher {
    async fn next(mut self) -> Option<(WatchInput, Option<Self>)> {
        loop {
            self.bell.borrow_and_update();
            if let Some((input, goes_on)) = self.look() {
                return Some((input, goes_on.then_some(self)));
            }
            self.bell.changed().await.ok()?;
        }
    }

    /// What there is to say now, and whether the watch goes on.
    fn look(&mut self) -> Option<(WatchInput, bool)> {
        let state = self.store.lock();
        let life = self.life.unwrap_or(state.watches);
        if state.down || life != state.watches {
            let lost = StoreError::new("watch", self.prefix.as_str(), StoreErrorKind::Unreachable);
            return Some((WatchInput::Disconnected(lost), false));
        }
        let (cluster_id, revision) = (state.cluster_id, state.revision);
        if self.life.is_none() {
            self.life = Some(life);
            return Some((WatchInput::Opened { cluster_id, revision }, true));
        }
        if self.next < state.compacted {
            let canceled = WatchInput::Canceled {
                compact_revision: state.compacted,
                reason: String::new(),
            };
            return Some((canceled, false));
        }
        if state.held || self.next > revision {
            return None;
        }
        let start = state.log.partition_point(|e| e.revision() < self.next);
        let covered = |e: &&WatchEvent| match e {
            WatchEvent::Put(kv) => self.prefix.covers(&kv.key),
            WatchEvent::Delete { key, revision: _ } => self.prefix.covers(key),
        };
        let events: Vec<WatchEvent> = state.log[start..].iter().filter(covered).cloned().collect();
        drop(state);
        self.next = revision + 1;
        let response = WatchInput::Response {
            cluster_id,
            revision,
            events,
            fragment: false,
        };
        // An empty response would be a progress report, which etcd sends too; tests of quiet watches are the better
        // for not having one at every foreign write.
        let WatchInput::Response { events, .. } = &response else {
            return None;
        };
        (!events.is_empty()).then_some((response, true))
    }
}
