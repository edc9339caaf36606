//! Fenced transactions. A [`Txn`] begins with a [`Fence`], so that a controller that no longer leads, or an agent whose
//! session is gone, cannot write. Built by controllers and agents, sent by [`Store::commit`](crate::Store::commit).

use std::collections::HashSet;

use bytes::Bytes;
use futures::{StreamExt, stream};

use crate::error::{StoreError, StoreErrorKind};
use crate::leader::Leadership;
use crate::session::Session;
use crate::store::{KeyValue, MAX_KEY_BYTES, MAX_VALUE_BYTES, Store};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    /// The keys it writes, each with its value where it is not a deletion.
    #[cfg(feature = "testing")]
    pub fn written(&self) -> Vec<(&[u8], Option<&Bytes>)> {
        let told = self.writes.iter().map(|write| match &write.op {
            Op::Put { value, .. } => (write.key.as_slice(), Some(value)),
            Op::Delete => (write.key.as_slice(), None),
        });
        told.collect()
    }

    /// The key that it is fenced with.
    #[cfg(feature = "testing")]
    pub fn fenced_with(&self) -> Option<&[u8]> {
        self.fence.held.as_ref().map(|(key, _)| key.as_slice())
    }

    /// Writes a key.
    pub fn put(self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>, guard: Guard) -> Self {
        self.put_leased(key, value, guard, 0)
    }

    /// Writes a key that is deleted when the lease ends.
    pub fn put_leased(mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>, guard: Guard, lease: i64) -> Self {
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

impl Guard {
    /// Whether it holds for a key found with these (create revision, mod revision).
    pub fn holds(self, found: Option<(i64, i64)>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Exists => found.is_some(),
            Self::Unchanged(revision) => found.is_some_and(|(_, modified)| modified == revision),
            Self::CreatedAt(revision) => found.is_some_and(|(created, _)| created == revision),
            Self::Any => true,
        }
    }
}

impl Txn {
    /// Every compare but the fence's, each once.
    pub(crate) fn compares(&self) -> Vec<(&[u8], Guard)> {
        let requires = self.requires.iter().map(|(key, guard)| (key.as_slice(), *guard));
        let guards = self.writes.iter().map(|w| (w.key.as_slice(), w.guard));
        let mut compares: Vec<_> = requires
            .chain(guards)
            .filter(|(_, guard)| *guard != Guard::Any)
            .collect();
        let mut seen = HashSet::new();
        compares.retain(|(key, guard)| seen.insert((*key, *guard)));
        compares
    }

    /// Those of its keys that are not as demanded, of what was found.
    pub(crate) fn conflicts(&self, found: impl Fn(&[u8]) -> Option<(i64, i64)>) -> Vec<Conflict> {
        let failed = self
            .compares()
            .into_iter()
            .filter(|(key, guard)| !guard.holds(found(key)));
        let mut keys: Vec<_> = failed.map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        let conflict = |key: &[u8]| Conflict {
            key: key.to_vec(),
            found: found(key),
        };
        keys.into_iter().map(conflict).collect()
    }

    fn fails_on(&self, conflict: &Conflict) -> bool {
        let fails = |(key, guard): &(&[u8], Guard)| *key == conflict.key && !guard.holds(conflict.found);
        self.compares().iter().any(fails)
    }

    /// The size of the request, generously.
    pub(crate) fn bytes(&self) -> usize {
        let compares = self
            .requires
            .iter()
            .map(|(key, _)| key.len())
            .chain(self.writes.iter().map(|w| w.key.len()));
        // A compare, and the read that names it when it fails.
        let compares: usize = compares.map(|key| 2 * (key + 32)).sum();
        let writes: usize = self.writes.iter().map(|w| w.key.len() + 64 + w.op.bytes()).sum();
        compares + writes
    }

    fn object(&self) -> String {
        let first = self
            .writes
            .first()
            .map(|w| &w.key)
            .or(self.requires.first().map(|r| &r.0));
        let mut text = first.map_or_else(String::new, |key| String::from_utf8_lossy(key).into_owned());
        if self.writes.len() > 1 {
            text.push_str(&format!(" and {} more", self.writes.len() - 1));
        }
        text
    }

    /// Refuses what no store would take, before it is sent.
    fn check(&self) -> Result<(), StoreError> {
        let fail = |key: &[u8], kind| Err(StoreError::new("write", String::from_utf8_lossy(key), kind));
        let invalid = |key: &[u8], why: &str| fail(key, StoreErrorKind::Invalid(why.to_owned()));
        let mut written = HashSet::new();
        for write in &self.writes {
            if write.op.bytes() > MAX_VALUE_BYTES {
                let kind = StoreErrorKind::TooLarge {
                    bytes: write.op.bytes(),
                    limit: MAX_VALUE_BYTES,
                };
                return fail(&write.key, kind);
            }
            if !written.insert(write.key.as_slice()) {
                return invalid(&write.key, "the key is written twice in one transaction");
            }
        }
        let keys = self
            .requires
            .iter()
            .map(|r| &r.0)
            .chain(self.writes.iter().map(|w| &w.key));
        for key in keys {
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return invalid(key, "a key has 1 to 4,096 bytes");
            }
        }
        if self.compares().len() >= MAX_TXN_OPS || self.writes.len() >= MAX_TXN_OPS {
            return invalid(
                self.object().as_bytes(),
                "a transaction has at most 127 writes and 127 compares",
            );
        }
        if self.bytes() > MAX_TXN_BYTES {
            let kind = StoreErrorKind::TooLarge {
                bytes: self.bytes(),
                limit: MAX_TXN_BYTES,
            };
            return fail(self.object().as_bytes(), kind);
        }
        Ok(())
    }
}

impl Op {
    const fn bytes(&self) -> usize {
        match self {
            Self::Put { value, lease: _ } => value.len(),
            Self::Delete => 0,
        }
    }
}

pub(crate) async fn commit<S: Store>(store: &S, txn: Txn) -> Result<Outcome, StoreError> {
    txn.check()?;
    match store.submit(&txn).await {
        Err(error) if error.kind == StoreErrorKind::Ambiguous => resolve(store, &txn, error).await,
        answered => answered,
    }
}

/// What the read afterwards says of one write.
enum Trace {
    /// What it wrote is there, since this revision; `None` for a key that is gone as asked.
    Left(Option<i64>),
    /// Its guard holds still: it is not in force.
    None,
    /// Neither: someone wrote since, or it cannot be told.
    Covered,
}

/// Learns by reading whether a transaction whose answer was lost is in force.
async fn resolve<S: Store>(store: &S, txn: &Txn, lost: StoreError) -> Result<Outcome, StoreError> {
    let mut keys: Vec<Vec<u8>> = txn.writes.iter().map(|w| w.key.clone()).collect();
    keys.extend(txn.fence.held.iter().map(|(key, _)| key.clone()));
    let Ok(read) = store.get_many(&keys).await else {
        return Err(lost);
    };
    let traces: Vec<Trace> = txn
        .writes
        .iter()
        .zip(&read.value)
        .map(|(write, found)| trace(write, found.as_ref()))
        .collect();
    if traces.iter().any(|t| matches!(t, Trace::None)) || traces.is_empty() {
        let fence_lost = txn.fence.held.as_ref().is_some_and(|(_, created)| {
            let found = read.value.last().and_then(Option::as_ref);
            found.is_none_or(|kv| kv.create_revision != *created)
        });
        if fence_lost {
            return Ok(Outcome::FenceLost);
        }
        return Err(StoreError {
            kind: StoreErrorKind::DeadlineExceeded,
            ..lost
        });
    }
    if traces.iter().any(|t| matches!(t, Trace::Covered)) {
        return Err(lost);
    }
    let mut puts = traces.iter().filter_map(|t| match t {
        Trace::Left(revision) => *revision,
        Trace::None | Trace::Covered => None,
    });
    let revision = puts.next().unwrap_or(read.revision);
    if puts.all(|r| r == revision) {
        tracing::debug!(object = %lost.object, revision, "a write whose answer was lost is in force");
        Ok(Outcome::Committed { revision })
    } else {
        Err(lost)
    }
}

fn trace(write: &Write, found: Option<&KeyValue>) -> Trace {
    let position = found.map(|kv| (kv.create_revision, kv.mod_revision));
    let untouched = match write.guard {
        Guard::Absent | Guard::Unchanged(_) => write.guard.holds(position),
        Guard::Exists | Guard::CreatedAt(_) | Guard::Any => false,
    };
    if untouched {
        return Trace::None;
    }
    match (&write.op, found) {
        (Op::Delete, None) => Trace::Left(None),
        (Op::Put { value, lease }, Some(kv)) if kv.value == *value && kv.lease == *lease => {
            // Behind a guard the key was written since; of the same bytes and lease, by its one writer: by us.
            Trace::Left(Some(kv.mod_revision))
        }
        (Op::Delete, Some(_)) | (Op::Put { .. }, _) => Trace::Covered,
    }
}

/// How many requests of one batch are under way at once.
const BATCH_REQUESTS: usize = 4;

pub(crate) async fn batch<S: Store>(store: &S, txns: Vec<Txn>) -> Vec<Result<Outcome, StoreError>> {
    let mut results: Vec<Option<Result<Outcome, StoreError>>> = vec![None; txns.len()];
    let mut groups: Vec<Group> = Vec::new();
    for (index, txn) in txns.into_iter().enumerate() {
        if let Err(refused) = txn.check() {
            results[index] = Some(Err(refused));
            continue;
        }
        // Only the last group is tried: packing better would cost more than it saves.
        match groups.last_mut() {
            Some(group) if group.takes(&txn) => group.add(index, txn),
            Some(_) | None => {
                let mut group = Group::default();
                group.add(index, txn);
                groups.push(group);
            }
        }
    }
    let ended = stream::iter(groups.into_iter().map(|group| group.commit(store)));
    let mut ended = ended.buffer_unordered(BATCH_REQUESTS);
    while let Some(group) = ended.next().await {
        for (index, result) in group {
            results[index] = Some(result);
        }
    }
    let missing = || Err(StoreError::new("write", "a batch", StoreErrorKind::Ambiguous));
    results.into_iter().map(|r| r.unwrap_or_else(missing)).collect()
}

/// Transactions that go in one request.
#[derive(Default)]
struct Group {
    txns: Vec<(usize, Txn)>,
    written: HashSet<Vec<u8>>,
    compared: HashSet<Vec<u8>>,
    compares: usize,
    bytes: usize,
}

impl Group {
    fn takes(&self, txn: &Txn) -> bool {
        let fence = self.txns.first().is_none_or(|(_, first)| first.fence == txn.fence);
        let apart = txn
            .writes
            .iter()
            .all(|w| !self.written.contains(&w.key) && !self.compared.contains(&w.key))
            && txn.requires.iter().all(|(key, _)| !self.written.contains(key));
        // A transaction that writes nothing only asks: its answer is for itself.
        fence
            && apart
            && !txn.is_empty()
            && self.compares + txn.compares().len() < MAX_TXN_OPS
            && self.written.len() + txn.writes.len() < MAX_TXN_OPS
            && self.bytes + txn.bytes() <= MAX_TXN_BYTES
    }

    fn add(&mut self, index: usize, txn: Txn) {
        self.written.extend(txn.writes.iter().map(|w| w.key.clone()));
        self.compared.extend(txn.requires.iter().map(|(key, _)| key.clone()));
        self.compares += txn.compares().len();
        self.bytes += txn.bytes();
        self.txns.push((index, txn));
    }

    async fn commit<S: Store>(self, store: &S) -> Vec<(usize, Result<Outcome, StoreError>)> {
        let mut ended = Vec::with_capacity(self.txns.len());
        let mut parts = vec![self.txns];
        while let Some(mut txns) = parts.pop() {
            let Some((_, first)) = txns.first() else { continue };
            let mut whole = Txn::new(&first.fence);
            for (_, txn) in &txns {
                whole.requires.extend(txn.requires.iter().cloned());
                whole.writes.extend(txn.writes.iter().cloned());
            }
            let answer = store.commit(whole).await;
            let (out, rest) = match &answer {
                Ok(Outcome::Conflict { keys }) => txns
                    .into_iter()
                    .partition(|(_, txn)| keys.iter().any(|conflict| txn.fails_on(conflict))),
                // A store with limits of its own, or one bad write: halves find out, and nothing was written.
                Err(error) if txns.len() > 1 && error.is_about_the_request() => {
                    let second = txns.split_off(txns.len() / 2);
                    parts.extend([second, txns]);
                    continue;
                }
                Ok(Outcome::Committed { .. } | Outcome::FenceLost) | Err(_) => (txns, Vec::new()),
            };
            // A store that names no key of ours must not make this turn for ever.
            let (out, rest) = if out.is_empty() {
                (rest, Vec::new())
            } else {
                (out, rest)
            };
            for (index, txn) in out {
                ended.push((index, share(&answer, &txn)));
            }
            parts.push(rest);
        }
        ended
    }
}

/// One transaction's part of its group's answer.
fn share(answer: &Result<Outcome, StoreError>, txn: &Txn) -> Result<Outcome, StoreError> {
    let Ok(Outcome::Conflict { keys }) = answer else {
        return answer.clone();
    };
    let ours = |c: &&Conflict| txn.fails_on(c);
    Ok(Outcome::Conflict {
        keys: keys.iter().filter(ours).cloned().collect(),
    })
}

#[cfg(test)]
mod tests;
