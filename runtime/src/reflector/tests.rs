//! The reflector over the in-memory store, under faults.

use super::*;
use crate::error::StoreErrorKind;
use crate::memory::MemoryStore;

fn root() -> Prefix {
    Prefix::new("/reeve/").expect("ends in a slash")
}

fn start(store: &MemoryStore) -> (Reader, Shutdown) {
    let shutdown = Shutdown::new();
    let options = ReflectOptions {
        skip: vec![root().child("events")],
        ..ReflectOptions::default()
    };
    (reflect(store.clone(), root(), options, &shutdown), shutdown)
}

fn is_true_to(cache: &Cache, store: &MemoryStore) -> bool {
    let skipped = root().child("events");
    let stored = store
        .dump()
        .into_iter()
        .filter(|kv| root().covers(&kv.key) && !skipped.covers(&kv.key));
    cache.keys.iter().map(|kv| (**kv).clone()).eq(stored)
}

#[tokio::test(start_paused = true)]
async fn no_reader_sees_anything_before_the_first_list() {
    let store = MemoryStore::new();
    store.put("/reeve/a", "1");
    store.fail_next_read(StoreErrorKind::Unreachable);
    let (reader, _shutdown) = start(&store);
    assert_eq!(reader.snapshot(), None);
    let cache = reader.ready().await.expect("it lists");
    assert!(is_true_to(&cache, &store));
    assert_eq!((cache.revision, cache.lists), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_our_own_write() {
    let store = MemoryStore::new();
    let (reader, _shutdown) = start(&store);
    reader.ready().await.expect("it lists");
    store.hold_watches(true);
    let revision = store.put("/reeve/a", "1");
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.synced_to(revision).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!waiting.is_finished() && !reader.is_at_least(revision));
    store.hold_watches(false);
    let cache = waiting.await.expect("no panic").expect("it follows");
    assert!(cache.keys.get(b"/reeve/a").is_some());
}

#[tokio::test(start_paused = true)]
async fn changed_tells_of_keys_and_not_of_mere_revisions() {
    let store = MemoryStore::new();
    let (mut reader, _shutdown) = start(&store);
    reader.changed().await.expect("the first list");
    let revision = store.put("/reeve/events/x", "skipped");
    reader.synced_to(revision).await.expect("it follows");
    let told = tokio::time::timeout(Duration::from_secs(60), reader.changed()).await;
    assert!(told.is_err(), "an event is no change");
    store.put("/reeve/a", "1");
    reader.changed().await.expect("it follows");
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_key_keeps_its_arc_through_a_new_list() {
    let store = MemoryStore::new();
    store.put("/reeve/a", "1");
    store.put("/reeve/b", "1");
    let (mut reader, _shutdown) = start(&store);
    let before = reader.ready().await.expect("it lists");
    reader.changed().await.expect("the first list");
    store.hold_watches(true);
    store.put("/reeve/b", "2");
    store.put("/reeve/b", "3");
    store.compact(store.revision()).await.expect("compacts");
    store.break_watches();
    store.hold_watches(false);
    reader.changed().await.expect("it follows");
    let after = reader.snapshot().expect("a cache");
    assert_eq!(after.lists, 2);
    let (a, b) = (b"/reeve/a".as_slice(), b"/reeve/b".as_slice());
    assert!(Arc::ptr_eq(
        before.keys.get(a).expect("a"),
        after.keys.get(a).expect("a")
    ));
    assert!(!Arc::ptr_eq(
        before.keys.get(b).expect("b"),
        after.keys.get(b).expect("b")
    ));
    assert!(is_true_to(&after, &store));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_back_is_followed_and_marked() {
    let store = MemoryStore::new();
    store.put("/reeve/a", "1");
    let old = store.checkpoint();
    let latest = store.put("/reeve/b", "1");
    let (mut reader, _shutdown) = start(&store);
    let cache = reader.ready().await.expect("it lists");
    assert_eq!(cache.went_back, None);
    reader.changed().await.expect("the first list");
    store.restore(&old);
    reader.changed().await.expect("it follows");
    let cache = reader.snapshot().expect("a cache");
    let position = Position {
        cluster_id: 1,
        revision: latest,
    };
    assert_eq!(cache.went_back, Some(position));
    assert!(is_true_to(&cache, &store));
    store.wipe();
    reader.changed().await.expect("it follows");
    assert!(
        reader
            .snapshot()
            .is_some_and(|c| c.keys.is_empty() && c.went_back.is_some_and(|p| p.cluster_id == 1))
    );
}

#[tokio::test(start_paused = true)]
async fn the_cache_stays_while_the_store_is_away() {
    let store = MemoryStore::new();
    store.put("/reeve/a", "1");
    let (reader, shutdown) = start(&store);
    let before = reader.ready().await.expect("it lists");
    store.set_down(true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(reader.snapshot(), Some(before));
    store.set_down(false);
    let revision = store.put("/reeve/b", "1");
    let cache = reader.synced_to(revision).await.expect("it follows");
    assert!(is_true_to(&cache, &store));
    shutdown.drain();
    assert_eq!(reader.synced_to(revision + 1).await, Err(Ended));
}

#[test]
fn an_event_that_does_not_continue_the_cache_is_a_gap() {
    let kv = |create_revision, mod_revision, version| KeyValue {
        key: b"/reeve/a".to_vec(),
        value: bytes::Bytes::new(),
        create_revision,
        mod_revision,
        version,
        lease: 0,
    };
    let position = Position {
        cluster_id: 1,
        revision: 10,
    };
    let done = || Event::InitDone {
        position,
        went_back: None,
    };
    let deleted = |key: &str| Event::Delete {
        key: key.as_bytes().to_vec(),
        revision: 12,
    };
    let cases = [
        ("the next version", Event::Apply(kv(5, 12, 4)), true),
        ("the same again", Event::Apply(kv(5, 9, 3)), true),
        ("a version was missed", Event::Apply(kv(5, 12, 5)), false),
        ("a deletion was missed", Event::Apply(kv(12, 12, 1)), false),
        ("a deletion", deleted("/reeve/a"), true),
        ("a deletion of what was never seen", deleted("/reeve/b"), false),
    ];
    for (name, event, continues) in cases {
        let mut writer = Writer::new(Vec::new());
        for event in [Event::Init, Event::InitApply(kv(5, 9, 3)), done()] {
            writer.apply(event).expect("a list has no gap");
        }
        assert_eq!(writer.apply(event).is_ok(), continues, "{name}");
    }
    let mut empty = Writer::new(Vec::new());
    empty
        .apply(Event::Init)
        .and_then(|_| empty.apply(done()))
        .expect("a list has no gap");
    assert!(
        empty.apply(Event::Apply(kv(5, 12, 2))).is_err(),
        "a creation was missed"
    );
}
