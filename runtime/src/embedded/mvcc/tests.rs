//! The multi-version model against a plain one: what is visible when, what a roll-back and a
//! compaction leave, and that a store rebuilt from its items is the same store.

use proptest::prelude::*;

use super::*;

fn put(store: &mut Store, key: &str, value: &str) -> i64 {
    let mut leases = Leases::default();
    let mut write = Write::begin(store, &mut leases);
    let request = PbPutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    write.put(request).unwrap();
    write.finish()
}

fn delete(store: &mut Store, key: &str, end: &str) -> i64 {
    let mut leases = Leases::default();
    let mut write = Write::begin(store, &mut leases);
    write.delete(&PbDeleteRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    });
    write.finish()
}

fn at(store: &Store, key: &str, revision: i64) -> Option<(Vec<u8>, i64, i64)> {
    let item = store.latest(key.as_bytes(), revision)?;
    Some((item.value.to_vec(), item.create, item.version))
}

fn items(store: &Store) -> Vec<Item> {
    let mut items: Vec<Item> = store.all().map(|i| Item::clone(i)).collect();
    items.sort_by_key(|i| (i.main, i.sub));
    items
}

/// Everything that can be asked of a store.
fn picture(store: &Store) -> String {
    let commits = store.commits(store.compacted() + 1, usize::MAX);
    format!("{:?} {:?}", items(store), commits)
}

#[test]
fn a_txn_has_one_revision_and_a_deletion_of_nothing_none() {
    let mut store = Store::new();
    assert_eq!(put(&mut store, "a", "1"), 2);
    assert_eq!(delete(&mut store, "x", ""), 2);
    assert_eq!(put(&mut store, "a", "2"), 3);
    assert_eq!(delete(&mut store, "a", "\0"), 4);
    assert_eq!(put(&mut store, "a", "3"), 5);
    assert_eq!(at(&store, "a", 2), Some((b"1".to_vec(), 2, 1)));
    assert_eq!(at(&store, "a", 3), Some((b"2".to_vec(), 2, 2)));
    assert_eq!(at(&store, "a", 4), None);
    assert_eq!(at(&store, "a", 5), Some((b"3".to_vec(), 5, 1)));
}

#[test]
fn what_is_pending_is_invisible_until_it_is_published() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    assert_eq!((store.committed(), store.head()), (1, 2));
    assert!(store.commits(0, 9).is_empty());
    assert_eq!(at(&store, "a", store.committed()), None);
    store.publish();
    assert_eq!((store.committed(), store.head()), (2, 2));
    assert_eq!(store.commits(0, 9).len(), 1);
}

#[test]
fn a_roll_back_leaves_no_trace() {
    let mut store = Store::new();
    put(&mut store, "a", "1");
    put(&mut store, "b", "1");
    store.publish();
    let before = picture(&store);
    put(&mut store, "a", "2");
    delete(&mut store, "a", "\0");
    put(&mut store, "c", "1");
    store.roll_back();
    assert_eq!(picture(&store), before);
    assert_eq!(at(&store, "c", i64::MAX), None);
    assert_eq!(put(&mut store, "c", "1"), 4);
}

#[test]
fn a_missing_revision_is_noticed_when_the_store_is_rebuilt() {
    let mut store = Store::new();
    for i in 0..5 {
        put(&mut store, "k", &i.to_string());
    }
    store.publish();
    let mut items = items(&store);
    Store::load(items.clone(), 6, -1).unwrap();
    items.remove(2);
    Store::load(items.clone(), 6, -1).unwrap_err();
    items.pop();
    Store::load(items, 6, -1).unwrap_err();
    Store::load(Vec::new(), 6, -1).unwrap_err();
    Store::load(Vec::new(), 6, 6).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    Compact(u8),
    Fail,
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..4_u8).prop_map(|(k, v)| Step::Put(k, v)),
        3 => (0..6_u8, 0..8_u8).prop_map(|(from, to)| Step::Delete(from, to)),
        1 => (0..20_u8).prop_map(Step::Compact),
        1 => Just(Step::Fail),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn every_kept_revision_reads_as_it_was_written(steps in prop::collection::vec(step(), 1..120)) {
        let mut store = Store::new();
        // The plain model: the whole map at every revision.
        let mut model: Vec<BTreeMap<String, String>> = vec![BTreeMap::new(), BTreeMap::new()];
        for step in steps {
            let mut next = model.last().cloned().unwrap_or_default();
            match step {
                Step::Put(k, v) => {
                    next.insert(k.to_string(), v.to_string());
                    put(&mut store, &k.to_string(), &v.to_string());
                    model.push(next);
                    store.publish();
                }
                Step::Delete(from, to) => {
                    let (from, to) = (from.to_string(), to.to_string());
                    let count = next.len();
                    next.retain(|k, _| *k < from || *k >= to);
                    if next.len() != count {
                        model.push(next);
                    }
                    delete(&mut store, &from, &to);
                    store.publish();
                }
                Step::Compact(back) => {
                    let revision = store.committed() - i64::from(back);
                    if store.check_compact(revision).is_ok() && revision > 0 {
                        let dropped = store.compaction(revision);
                        store.compact(revision, &dropped);
                    }
                }
                Step::Fail => {
                    put(&mut store, "0", "lost");
                    delete(&mut store, "0", "\0");
                    store.roll_back();
                }
                Step::Reload => {
                    let again = Store::load(items(&store), store.committed(), store.compacted());
                    let again = again.map_err(TestCaseError::fail)?;
                    prop_assert_eq!(picture(&again), picture(&store));
                    store = again;
                }
            }
            prop_assert_eq!(store.committed(), model.len() as i64 - 1);
            for revision in store.compacted().max(1)..=store.committed() {
                let read: BTreeMap<String, String> = store
                    .select(&[0], &[0], revision)
                    .map(|i| (text(&i.key), text(&i.value)))
                    .collect();
                prop_assert_eq!(&read, &model[revision as usize], "at revision {}", revision);
            }
            // Nothing that nobody can ask for is kept: per key one version before the compaction.
            for versions in store.keys.values() {
                let old = versions.iter().filter(|v| v.main < store.compacted()).count();
                prop_assert!(old <= 1);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
