//! What a restore writes: a pure function of the file and of what the store holds. Nothing here orders an instance to stop:
//! what nodes say of themselves is left to them, and what a person once said of removals does not count again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use runtime::{Guard, KeyValue, Txn, person, store::MAX_VALUE_BYTES};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::{
    AssignedState, Assignment, ClusterId, ClusterMarker, Cordon, CordonMode, NodeFacts, Record as _, Report, Sealed,
    SessionRecord,
};

use crate::backup::file::{Backup, Entry};

/// A restore epoch further ahead than this is not believed of a record: it must not use up the numbers.
pub const BELIEVED: u64 = 1 << 32;

/// What becomes of a class of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// As the file has it: what the store has beside it is removed.
    AsTheFile,
    /// As the file has it, where the store has nothing, or nothing that can be read.
    WhereMissing,
    /// Never written here: who owns it writes it anew.
    Left,
}

fn fate(key: Option<&Key>) -> Fate {
    match key {
        Some(Key::Desired(_) | Key::Accepted(..) | Key::Status(_) | Key::Assignment(_)) => Fate::AsTheFile,
        Some(
            Key::Cordon(_)
            | Key::Node(_)
            | Key::Blob(..)
            | Key::Sealed(_)
            | Key::Handed(_)
            | Key::Peer(_)
            | Key::Endpoints(_)
            | Key::Policies(_)
            | Key::Join(_)
            | Key::Trust(_)
            | Key::Issued(..)
            | Key::Audit(..)
            | Key::Own(..),
        )
        | None => Fate::WhereMissing,
        Some(
            Key::Cluster
            | Key::Report(_)
            | Key::Verdict(_)
            | Key::Breaker
            | Key::Ack(_)
            | Key::Session(_)
            | Key::Election
            | Key::Controller(_)
            | Key::Event(_),
        ) => Fate::Left,
    }
}

/// What is to be done with a store.
#[derive(Debug, Default)]
pub struct Steps {
    pub txns: Vec<Txn>,
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
    /// Keys whose value is over what a store takes.
    pub too_large: Vec<String>,
    /// Resources that the file declares and the store does not, the other way round, and those that differ.
    pub back: Vec<String>,
    pub gone: Vec<String>,
    pub differ: Vec<String>,
    /// Cordons that are no longer drains.
    pub softened: Vec<NodeName>,
}

/// What is to be written so that the store holds what the file does.
pub fn steps(root: &Root, backup: &Backup, present: &BTreeMap<Vec<u8>, KeyValue>) -> Steps {
    let mut steps = Steps::default();
    let mut told: BTreeSet<Vec<u8>> = BTreeSet::new();
    let running = running(root, backup);
    for Entry { key: rest, value } in &backup.entries {
        let key = [root.as_str().as_bytes(), rest].concat();
        let parsed = root.parse(&key);
        let fate = fate(parsed.as_ref());
        if fate == Fate::Left {
            continue;
        }
        told.insert(key.clone());
        let (value, softened) = match &parsed {
            Some(Key::Cordon(node)) => soften(node, value, &running),
            Some(_) | None => (value.clone(), None),
        };
        if value.len() > MAX_VALUE_BYTES {
            steps.too_large.push(String::from_utf8_lossy(&key).into_owned());
            continue;
        }
        let found = present.get(&key);
        let guard = match found {
            None => Guard::Absent,
            Some(kv) if kv.value == value => continue,
            Some(kv) if fate == Fate::AsTheFile || replaced(parsed.as_ref(), kv, &value) => {
                Guard::Unchanged(kv.mod_revision)
            }
            Some(_) => continue,
        };
        if let Some(Key::Desired(resource)) = &parsed {
            let list = if found.is_some() {
                &mut steps.differ
            } else {
                &mut steps.back
            };
            list.push(resource.to_string());
        }
        steps.softened.extend(softened);
        *(if found.is_some() {
            &mut steps.changed
        } else {
            &mut steps.added
        }) += 1;
        steps.txns.push(person::txn().put(key, Bytes::from(value), guard));
    }
    // What the file has that is left to others is theirs here, too.
    for kv in present.values().filter(|kv| kv.lease == 0 && !told.contains(&kv.key)) {
        let parsed = root.parse(&kv.key);
        // A yes of another day is not one to what is there now.
        let goes = fate(parsed.as_ref()) == Fate::AsTheFile || matches!(parsed, Some(Key::Ack(_)));
        if !goes {
            continue;
        }
        if let Some(Key::Desired(resource)) = &parsed {
            steps.gone.push(resource.to_string());
        }
        steps.removed += 1;
        steps
            .txns
            .push(person::txn().delete(kv.key.clone(), Guard::Unchanged(kv.mod_revision)));
    }
    steps
}

/// Whether a key that both have is better as the file has it, though it is the store's otherwise.
fn replaced(key: Option<&Key>, found: &KeyValue, value: &[u8]) -> bool {
    match key {
        Some(Key::Sealed(_)) => Sealed::decode(&found.value).is_err() && Sealed::decode(value).is_ok(),
        Some(_) | None => false,
    }
}

/// Nodes that something is assigned to.
fn running(root: &Root, backup: &Backup) -> BTreeSet<NodeName> {
    let mut nodes = BTreeSet::new();
    for (node, assignment) in assignments(root, backup) {
        if assignment
            .instances
            .iter()
            .any(|one| one.state != AssignedState::Absent)
        {
            nodes.insert(node);
        }
    }
    nodes
}

fn assignments(root: &Root, backup: &Backup) -> Vec<(NodeName, Assignment)> {
    let decode = |entry: &Entry| match root.parse(&[root.as_str().as_bytes(), &entry.key].concat()) {
        Some(Key::Assignment(node)) => Some((node, Assignment::decode(&entry.value).ok()?)),
        Some(_) | None => None,
    };
    backup.entries.iter().filter_map(decode).collect()
}

/// A drain of another day moves nothing away now, and a node that was about to leave is asked again: both stay cordoned.
fn soften(node: &NodeName, value: &[u8], running: &BTreeSet<NodeName>) -> (Vec<u8>, Option<NodeName>) {
    let Ok(cordon) = Cordon::decode(value) else {
        return (value.to_vec(), None);
    };
    let mode = match cordon.mode {
        CordonMode::Drain => CordonMode::Cordon,
        CordonMode::Retire if running.contains(node) => CordonMode::Cordon,
        kept @ (CordonMode::Cordon | CordonMode::Retire) => kept,
    };
    if mode == cordon.mode && !cordon.lost {
        return (value.to_vec(), None);
    }
    let softer = Cordon {
        mode,
        lost: false,
        ..cordon
    };
    (softer.encode(), Some(node.clone()))
}

/// What a record says of itself: whose cluster's it is, and the restore epochs it has seen.
fn of_record(key: &Key, value: &[u8]) -> Option<(ClusterId, u64)> {
    if let Key::Assignment(_) = key {
        let record = Assignment::decode(value).ok()?;
        Some((record.cluster, record.order.restore_epoch))
    } else if let Key::Report(_) = key {
        let record = Report::decode(value).ok()?;
        Some((record.cluster, record.applied.restore_epoch))
    } else if let Key::Session(_) = key {
        let record = SessionRecord::decode(value).ok()?;
        Some((record.cluster, record.watermark.restore_epoch))
    } else if let Key::Node(_) = key {
        Some((NodeFacts::decode(value).ok()?.cluster, 0))
    } else {
        None
    }
}

/// The first key that is of another cluster than this one, and which.
pub fn stranger<'a>(
    root: &Root,
    cluster: &ClusterId,
    kvs: impl Iterator<Item = &'a KeyValue>,
) -> Option<(String, ClusterId)> {
    kvs.filter_map(|kv| {
        let (of, _) = of_record(&root.parse(&kv.key)?, &kv.value)?;
        (of != *cluster).then(|| (String::from_utf8_lossy(&kv.key).into_owned(), of))
    })
    .next()
}

/// A restore epoch above all that the file, the store and its nodes have seen.
pub fn epoch_above<'a>(
    root: &Root,
    backup: &Backup,
    marker: Option<&ClusterMarker>,
    kvs: impl Iterator<Item = &'a KeyValue>,
) -> u64 {
    let floor = marker
        .map_or(0, |marker| marker.restore_epoch)
        .max(backup.header.restore_epoch);
    let ours = |(of, epoch): (ClusterId, u64)| {
        (of == backup.header.cluster && epoch <= floor.saturating_add(BELIEVED)).then_some(epoch)
    };
    let stored = kvs.filter_map(|kv| of_record(&root.parse(&kv.key)?, &kv.value));
    let filed = backup.entries.iter().filter_map(|entry| {
        let key = root.parse(&[root.as_str().as_bytes(), &entry.key].concat())?;
        of_record(&key, &entry.value)
    });
    let highest = stored.chain(filed).filter_map(ours).max().unwrap_or(0).max(floor);
    highest.saturating_add(1)
}
