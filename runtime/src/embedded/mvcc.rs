//! The keys of the embedded store and their history, in memory: etcd's multi-version model.
//!
//! Every committed txn that changes something has one main revision; its changes are numbered
//! within it. The writer applies a batch beyond `committed`, where no reader looks; `publish`
//! makes it visible after the disk has it, `roll_back` takes it away when the disk refuses.
//! Pure: no IO, no clock. Readers never touch the disk, because all that may be read is here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use etcd_client::proto::{PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbPutRequest};
use etcd_client::proto::{PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader};

use super::lease::Leases;
use super::refusal::Refusal;

/// One version of one key, or the mark of its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub key: Bytes,
    pub value: Bytes,
    /// True for the mark of a deletion; then `value`, `create`, `version`, `lease` are empty.
    pub deleted: bool,
    pub create: i64,
    /// The main revision: which txn.
    pub main: i64,
    /// The place within the txn, from 0.
    pub sub: u32,
    pub version: i64,
    pub lease: i64,
}

impl Item {
    pub fn to_pb(&self) -> PbKeyValue {
        PbKeyValue {
            key: self.key.to_vec(),
            create_revision: self.create,
            mod_revision: self.main,
            version: self.version,
            value: self.value.to_vec(),
            lease: self.lease,
        }
    }
}

/// One change as watchers see it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub item: Arc<Item>,
    /// The key's value before the whole txn; none if there was none, or it was compacted.
    pub prev: Option<Arc<Item>>,
}

/// All changes of one main revision.
#[derive(Debug)]
pub(crate) struct Commit {
    pub revision: i64,
    pub changes: Vec<Change>,
}

#[derive(Debug)]
pub(crate) struct Store {
    /// Per key its versions, oldest first.
    keys: BTreeMap<Bytes, Vec<Arc<Item>>>,
    /// Commits from `compacted` (where there is one) to `committed`, one per revision.
    log: VecDeque<Arc<Commit>>,
    /// Commits beyond `committed`.
    pending: Vec<Arc<Commit>>,
    committed: i64,
    compacted: i64,
}

impl Store {
    /// An empty store: revision 1, as in etcd.
    #[cfg(test)]
    pub fn new() -> Self {
        Self::at(1, -1)
    }

    fn at(committed: i64, compacted: i64) -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            pending: Vec::new(),
            committed,
            compacted,
        }
    }

    /// Rebuilds a store from all its items in the order of (main, sub).
    /// The error says what is missing or out of order.
    pub fn load(items: Vec<Item>, committed: i64, compacted: i64) -> Result<Self, String> {
        let mut store = Self::at(committed, compacted);
        let mut last = (0, 0);
        let mut open: Option<Commit> = None;
        for item in items {
            let place = (item.main, item.sub);
            if place <= last && last != (0, 0) {
                return Err(format!("revision {place:?} follows {last:?}"));
            }
            if item.main < 2 || item.main > committed {
                return Err(format!("revision {} outside 2..={committed}", item.main));
            }
            last = place;
            let item = Arc::new(item);
            if item.main >= compacted {
                if open.as_ref().is_some_and(|c| c.revision != item.main)
                    && let Some(done) = open.take()
                {
                    store.log.push_back(Arc::new(done));
                }
                let change = Change {
                    prev: store.before(&item),
                    item: Arc::clone(&item),
                };
                open.get_or_insert_with(|| Commit {
                    revision: item.main,
                    changes: Vec::new(),
                })
                .changes
                .push(change);
            }
            store.keys.entry(item.key.clone()).or_default().push(item);
        }
        store.log.extend(open.map(Arc::new));
        // Beyond the compaction every revision must be there.
        let first = compacted.max(1) + 1;
        let mut due = first;
        for commit in store.log.iter().filter(|c| c.revision >= first) {
            if commit.revision != due {
                return Err(format!("revision {due} is missing"));
            }
            due += 1;
        }
        if due != committed + 1 {
            return Err(format!("revisions {due} to {committed} are missing"));
        }
        Ok(store)
    }

    /// The newest revision that readers may see.
    pub fn committed(&self) -> i64 {
        self.committed
    }

    /// The newest revision, of the uncommitted batch too.
    pub fn head(&self) -> i64 {
        self.pending.last().map_or(self.committed, |c| c.revision)
    }

    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    pub fn pending(&self) -> &[Arc<Commit>] {
        &self.pending
    }

    /// Makes the pending commits visible.
    pub fn publish(&mut self) {
        self.committed = self.head();
        self.log.extend(self.pending.drain(..));
    }

    /// Takes away the pending commits.
    pub fn roll_back(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for commit in &pending {
            for change in &commit.changes {
                self.cut(&change.item.key, self.committed);
            }
        }
    }

    /// Drops the versions of `key` that are newer than `revision`.
    fn cut(&mut self, key: &Bytes, revision: i64) {
        if let Some(versions) = self.keys.get_mut(key) {
            versions.truncate(versions.partition_point(|v| v.main <= revision));
            if versions.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    /// The live version of `key` at `revision`.
    pub fn latest(&self, key: &[u8], revision: i64) -> Option<&Arc<Item>> {
        live_at(self.keys.get(key)?, revision)
    }

    /// What a watcher is told was there before `item`: what was in force before its txn, or nothing
    /// when it creates the key.
    fn before(&self, item: &Item) -> Option<Arc<Item>> {
        match !item.deleted && item.create == item.main {
            true => None,
            false => self.latest(&item.key, item.main - 1).cloned(),
        }
    }

    /// The live versions at `revision` of one key (`end` empty), of `key` and all after it
    /// (`end` a zero byte), or of the keys from `key` up to `end`.
    pub fn select<'a>(&'a self, key: &'a [u8], end: &'a [u8], revision: i64) -> impl Iterator<Item = &'a Arc<Item>> {
        let bounds = match end {
            [] => Some((Bound::Included(key), Bound::Included(key))),
            [0] => Some((Bound::Included(key), Bound::Unbounded)),
            end if key < end => Some((Bound::Included(key), Bound::Excluded(end))),
            _ => None,
        };
        bounds
            .map(|bounds| self.keys.range::<[u8], _>(bounds))
            .into_iter()
            .flatten()
            .filter_map(move |(_, versions)| live_at(versions, revision))
    }

    /// The newest live version of every key.
    pub fn live(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.keys.values().filter_map(|versions| live_at(versions, i64::MAX))
    }

    /// Every version kept up to the committed revision, in no particular order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Item>> {
        self.keys.values().flatten().filter(|item| item.main <= self.committed)
    }

    /// Commits from `from` on, at most `limit` of them, committed ones only.
    pub fn commits(&self, from: i64, limit: usize) -> Vec<Arc<Commit>> {
        let start = self.log.partition_point(|c| c.revision < from);
        self.log.range(start..).take(limit).cloned().collect()
    }

    /// `Range`, where `current` is the newest revision that the asker may see.
    pub fn range(&self, req: &PbRangeRequest, current: i64) -> Result<PbRangeResponse, Refusal> {
        let revision = match req.revision {
            r if r > current => return Err(Refusal::FutureRevision),
            r if r <= 0 => current,
            r => r,
        };
        if revision < self.compacted {
            return Err(Refusal::Compacted);
        }
        let bounded = req.min_mod_revision != 0
            || req.max_mod_revision != 0
            || req.min_create_revision != 0
            || req.max_create_revision != 0;
        let limit = usize::try_from(req.limit).unwrap_or(0);
        let fetch = match limit {
            0 => usize::MAX,
            _ if bounded || req.sort_order != 0 => usize::MAX,
            n => n.saturating_add(1), // one more, for `more`
        };
        let mut count = 0_i64;
        let mut items = Vec::new();
        for item in self.select(&req.key, &req.range_end, revision) {
            count += 1;
            if !req.count_only && items.len() < fetch {
                items.push(item);
            }
        }
        if bounded {
            items.retain(|i| {
                (req.max_mod_revision == 0 || i.main <= req.max_mod_revision)
                    && (req.min_mod_revision == 0 || i.main >= req.min_mod_revision)
                    && (req.max_create_revision == 0 || i.create <= req.max_create_revision)
                    && (req.min_create_revision == 0 || i.create >= req.min_create_revision)
            });
        }
        sort(&mut items, req.sort_target, req.sort_order);
        let more = limit > 0 && items.len() > limit;
        if more {
            items.truncate(limit);
        }
        let kvs = items
            .into_iter()
            .map(|item| {
                if req.keys_only {
                    let bare = Item {
                        value: Bytes::new(),
                        ..Item::clone(item)
                    };
                    bare.to_pb()
                } else {
                    item.to_pb()
                }
            })
            .collect();
        Ok(PbRangeResponse {
            header: header(current),
            kvs,
            more,
            count,
        })
    }

    /// Refuses a compaction that etcd would refuse.
    pub fn check_compact(&self, revision: i64) -> Result<(), Refusal> {
        match revision {
            r if r <= self.compacted => Err(Refusal::Compacted),
            r if r > self.committed => Err(Refusal::FutureRevision),
            _ => Ok(()),
        }
    }

    /// What compacting at `revision` would drop, as (key, how many of its oldest versions). Kept
    /// are all versions of that revision and later, and of each key the one in force there.
    pub fn compaction(&self, revision: i64) -> Vec<(Bytes, usize)> {
        let mut touched: Vec<&Bytes> = self
            .log
            .iter()
            .take_while(|c| c.revision <= revision)
            .flat_map(|c| c.changes.iter().map(|change| &change.item.key))
            .collect();
        touched.sort_unstable();
        touched.dedup();
        let mut dropped = Vec::new();
        for key in touched {
            let Some(versions) = self.keys.get(key) else {
                continue;
            };
            let below = versions.partition_point(|v| v.main < revision);
            let superseded = versions.get(below).is_some_and(|v| v.main == revision);
            let drop = match below {
                0 => 0,
                n if superseded || versions[n - 1].deleted => n,
                n => n - 1,
            };
            if drop > 0 {
                dropped.push((key.clone(), drop));
            }
        }
        dropped
    }

    /// The versions that a result of `compaction` names.
    pub fn doomed<'a>(&'a self, dropped: &'a [(Bytes, usize)]) -> impl Iterator<Item = &'a Arc<Item>> {
        dropped
            .iter()
            .filter_map(|(key, n)| Some(self.keys.get(key)?.iter().take(*n)))
            .flatten()
    }

    /// Compacts in memory, with the result of `compaction` for the same revision.
    pub fn compact(&mut self, revision: i64, dropped: &[(Bytes, usize)]) {
        for (key, n) in dropped {
            if let Some(versions) = self.keys.get_mut(key) {
                versions.drain(..(*n).min(versions.len()));
                if versions.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
        self.compacted = revision;
        while self.log.front().is_some_and(|c| c.revision < revision) {
            self.log.pop_front();
        }
    }
}

fn live_at(versions: &[Arc<Item>], revision: i64) -> Option<&Arc<Item>> {
    let newest = match versions.last() {
        Some(last) if last.main <= revision => last,
        _ => versions[..versions.partition_point(|v| v.main <= revision)].last()?,
    };
    (!newest.deleted).then_some(newest)
}

/// A header with the revision only; the API fills in the rest.
pub(crate) fn header(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader {
        revision,
        ..Default::default()
    })
}

/// etcd's sorting. Items come in by key; any target other than the key sorts even without an order.
fn sort(items: &mut [&Arc<Item>], target: i32, order: i32) {
    const DESCEND: i32 = 2;
    let descend = order == DESCEND;
    match target {
        0 if descend => items.reverse(),
        1 => by(items, descend, |i| i.version),
        2 => by(items, descend, |i| i.create),
        3 => by(items, descend, |i| i.main),
        4 => by(items, descend, |i| i.value.clone()),
        _ => {}
    }
}

fn by<K: Ord>(items: &mut [&Arc<Item>], descend: bool, key: impl Fn(&Item) -> K) {
    if descend {
        items.sort_by_key(|i| Reverse(key(i)));
    } else {
        items.sort_by_key(|i| key(i));
    }
}

/// One txn being applied on top of the head. It ends with `finish`, or with `revert` when it was
/// refused.
#[must_use]
pub(crate) struct Write<'a> {
    store: &'a mut Store,
    leases: &'a mut Leases,
    begin: i64,
    items: Vec<Arc<Item>>,
}

impl<'a> Write<'a> {
    pub fn begin(store: &'a mut Store, leases: &'a mut Leases) -> Self {
        Self {
            begin: store.head(),
            store,
            leases,
            items: Vec::new(),
        }
    }

    pub fn store(&self) -> &Store {
        self.store
    }

    pub fn leases(&self) -> &Leases {
        self.leases
    }

    /// The newest revision as this txn sees it.
    pub fn revision(&self) -> i64 {
        self.begin + i64::from(!self.items.is_empty())
    }

    pub fn put(&mut self, req: PbPutRequest) -> Result<PbPutResponse, Refusal> {
        let main = self.begin + 1;
        let old = self.store.latest(&req.key, main).cloned();
        if (req.ignore_value || req.ignore_lease) && old.is_none() {
            return Err(Refusal::KeyNotFound);
        }
        let key = Bytes::from(req.key);
        let (value, lease) = match &old {
            Some(old) => (
                match req.ignore_value {
                    true => old.value.clone(),
                    false => Bytes::from(req.value),
                },
                match req.ignore_lease {
                    true => old.lease,
                    false => req.lease,
                },
            ),
            None => (Bytes::from(req.value), req.lease),
        };
        if let Some(old) = &old {
            self.leases.detach(old.lease, &key);
        }
        self.leases.attach(lease, &key);
        self.push(Item {
            key,
            value,
            deleted: false,
            create: old.as_ref().map_or(main, |o| o.create),
            main,
            sub: self.sub(),
            version: old.as_ref().map_or(1, |o| o.version.saturating_add(1)),
            lease,
        });
        Ok(PbPutResponse {
            header: header(main),
            prev_kv: match req.prev_kv {
                true => old.map(|o| o.to_pb()),
                false => None,
            },
        })
    }

    pub fn delete(&mut self, req: &PbDeleteRequest) -> PbDeleteResponse {
        let victims: Vec<Arc<Item>> = self
            .store
            .select(&req.key, &req.range_end, self.begin + 1)
            .cloned()
            .collect();
        for victim in &victims {
            self.leases.detach(victim.lease, &victim.key);
            self.push(Item {
                key: victim.key.clone(),
                value: Bytes::new(),
                deleted: true,
                create: 0,
                main: self.begin + 1,
                sub: self.sub(),
                version: 0,
                lease: 0,
            });
        }
        PbDeleteResponse {
            header: header(self.revision()),
            deleted: i64::try_from(victims.len()).unwrap_or(i64::MAX),
            prev_kvs: match req.prev_kv {
                true => victims.iter().map(|v| v.to_pb()).collect(),
                false => Vec::new(),
            },
        }
    }

    fn sub(&self) -> u32 {
        u32::try_from(self.items.len()).unwrap_or(u32::MAX)
    }

    fn push(&mut self, item: Item) {
        let item = Arc::new(item);
        self.store
            .keys
            .entry(item.key.clone())
            .or_default()
            .push(Arc::clone(&item));
        self.items.push(item);
    }

    /// Takes back the changes to the keys. True when there were any: then the leases may be
    /// attached to wrong keys, and the caller must roll them back too.
    pub fn revert(mut self) -> bool {
        let items = std::mem::take(&mut self.items);
        for item in &items {
            self.store.cut(&item.key, self.begin);
        }
        !items.is_empty()
    }

    /// Ends the txn: its changes become one pending commit. Returns the revision after it.
    pub fn finish(mut self) -> i64 {
        let revision = self.revision();
        let items = std::mem::take(&mut self.items);
        if !items.is_empty() {
            let changes = items
                .into_iter()
                .map(|item| Change {
                    prev: self.store.before(&item),
                    item,
                })
                .collect();
            self.store.pending.push(Arc::new(Commit { revision, changes }));
        }
        revision
    }
}

#[cfg(test)]
mod tests;
