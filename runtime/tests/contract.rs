//! The contract of the store: one suite, sat by every implementation. What stands above the store may rely on what is
//! tested here, and on nothing else.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use runtime::embedded::{Embedded, OpenOptions};
use runtime::testing::Etcd;
use runtime::{
    EtcdOptions, EtcdStore, Fence, Guard, LeaderOptions, MemoryStore, Outcome, Prefix, ReflectOptions, SessionError,
    SessionOptions, Shutdown, Store, StoreErrorKind, Txn, WatchEvent, WatchInput, campaign, person, reflect, session,
};

/// A store under test.
trait Backend: Sized {
    type Store: Store;
    fn start() -> impl Future<Output = Self>;
    fn store(&self) -> impl Future<Output = Self::Store>;
    /// Ends a lease as time would; returns when it has ended.
    fn end_lease(&self, lease: i64) -> impl Future<Output = ()>;
}

/// Waits out a lease by looking at it.
async fn wait_out(store: &impl Store, lease: i64) {
    until("the lease ends", async || {
        let life = store.lease_time_to_live(lease).await;
        matches!(life, Err(e) if e.kind == StoreErrorKind::LeaseNotFound)
    })
    .await;
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(40), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited 40 s in vain: {what}");
}

struct Memory(MemoryStore);

impl Backend for Memory {
    type Store = MemoryStore;

    async fn start() -> Self {
        Self(MemoryStore::new())
    }

    async fn store(&self) -> MemoryStore {
        self.0.clone()
    }

    async fn end_lease(&self, lease: i64) {
        self.0.expire_lease(lease);
    }
}

struct Real<const MEMBERS: usize>(Etcd);

impl<const MEMBERS: usize> Backend for Real<MEMBERS> {
    type Store = EtcdStore;

    async fn start() -> Self {
        Self(Etcd::start(MEMBERS).await)
    }

    async fn store(&self) -> EtcdStore {
        self.0.store().await
    }

    async fn end_lease(&self, lease: i64) {
        wait_out(&self.0.store().await, lease).await;
    }
}

/// The embedded store through its in-process client.
struct InProcess {
    embedded: Embedded,
    _dir: tempfile::TempDir,
}

impl Backend for InProcess {
    type Store = EtcdStore;

    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let embedded = Embedded::open(OpenOptions::new(dir.path())).expect("opens");
        Self { embedded, _dir: dir }
    }

    async fn store(&self) -> EtcdStore {
        EtcdStore::from_client(self.embedded.client())
    }

    async fn end_lease(&self, lease: i64) {
        wait_out(&self.store().await, lease).await;
    }
}

/// The embedded store over TCP, as `etcdctl` and a second process see it.
struct OverTcp {
    embedded: Arc<Embedded>,
    url: String,
    _dir: tempfile::TempDir,
}

impl Backend for OverTcp {
    type Store = EtcdStore;

    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let embedded = Arc::new(Embedded::open(OpenOptions::new(dir.path())).expect("opens"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let serving = Arc::clone(&embedded);
        tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        Self {
            embedded,
            url,
            _dir: dir,
        }
    }

    async fn store(&self) -> EtcdStore {
        EtcdStore::connect(EtcdOptions::new(&self.url)).await.expect("connects")
    }

    async fn end_lease(&self, lease: i64) {
        let direct = EtcdStore::from_client(self.embedded.client());
        wait_out(&direct, lease).await;
    }
}

fn root() -> Prefix {
    Prefix::new("/reeve/").expect("ends in a slash")
}

async fn commit(store: &impl Store, txn: Txn) -> i64 {
    match store.commit(txn).await {
        Ok(Outcome::Committed { revision }) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

async fn put(store: &impl Store, key: &str, value: &str) -> i64 {
    commit(store, person::txn().put(key, value.to_owned(), Guard::Any)).await
}

async fn value(store: &impl Store, key: &str) -> Option<Bytes> {
    store.get(key.as_bytes()).await.expect("reads").value.map(|kv| kv.value)
}

/// Reads a watch until `count` events have come.
async fn events(stream: &mut runtime::WatchStream, count: usize) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        let said = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        match said.expect("a watch speaks within 20 s") {
            Some(WatchInput::Response { events: more, .. }) => events.extend(more),
            Some(WatchInput::Opened { .. }) => {}
            other => panic!("the watch ended: {other:?}"),
        }
    }
    events
}

mod suite {
    use super::*;

    pub async fn guards_hold_or_name_the_key<B: Backend>(backend: B) {
        let store = backend.store().await;
        let absent = || person::txn().put("/reeve/a", "1", Guard::Absent);
        let first = commit(&store, absent()).await;
        let Ok(Outcome::Conflict { keys }) = store.commit(absent()).await else {
            panic!("created twice");
        };
        assert_eq!(
            (keys[0].key.as_slice(), keys[0].found),
            (b"/reeve/a".as_slice(), Some((first, first)))
        );
        let second = commit(&store, person::txn().put("/reeve/a", "2", Guard::Unchanged(first))).await;
        let stale = store
            .commit(person::txn().put("/reeve/a", "3", Guard::Unchanged(first)))
            .await;
        let Ok(Outcome::Conflict { keys }) = stale else {
            panic!("a stale write went through");
        };
        assert_eq!(keys[0].found, Some((first, second)));
        let kv = store.get(b"/reeve/a").await.expect("reads").value.expect("is there");
        assert_eq!(
            (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
            (first, second, 2, 0)
        );
        assert_eq!(kv.value, "2");
        let third = commit(&store, person::txn().put("/reeve/a", "3", Guard::CreatedAt(first))).await;
        assert_eq!(
            commit(&store, person::txn().put("/reeve/a", "4", Guard::Exists)).await,
            third + 1
        );
        let missing = store
            .commit(person::txn().delete("/reeve/none", Guard::Exists))
            .await
            .expect("answers");
        assert!(matches!(missing, Outcome::Conflict { keys } if keys[0].found.is_none()));
        let demand = |guard| {
            person::txn()
                .put("/reeve/b", "1", Guard::Absent)
                .require("/reeve/a", guard)
        };
        let refused = store.commit(demand(Guard::Absent)).await.expect("answers");
        assert!(matches!(refused, Outcome::Conflict { keys } if keys.len() == 1 && keys[0].key == b"/reeve/a"));
        assert_eq!(value(&store, "/reeve/b").await, None);
        commit(&store, demand(Guard::Unchanged(third + 1))).await;
        commit(&store, person::txn().delete("/reeve/a", Guard::Unchanged(third + 1))).await;
        let again = commit(&store, absent()).await;
        let kv = store.get(b"/reeve/a").await.expect("reads").value.expect("is there");
        assert_eq!((kv.create_revision, kv.version), (again, 1));
        // Deleting nothing is no change.
        assert_eq!(
            commit(&store, person::txn().delete("/reeve/none", Guard::Any)).await,
            again
        );
    }

    pub async fn a_transaction_is_whole<B: Backend>(backend: B) {
        let store = backend.store().await;
        put(&store, "/reeve/old", "1").await;
        let txn = person::txn()
            .put("/reeve/a", "1", Guard::Absent)
            .put("/reeve/b", "1", Guard::Absent)
            .delete("/reeve/old", Guard::Exists);
        let revision = commit(&store, txn.clone()).await;
        let keys = ["/reeve/a", "/reeve/old", "/reeve/b"].map(|k| k.as_bytes().to_vec());
        let read = store.get_many(&keys).await.expect("reads");
        let revisions: Vec<_> = read
            .value
            .iter()
            .map(|kv| kv.as_ref().map(|kv| kv.mod_revision))
            .collect();
        assert_eq!(revisions, [Some(revision), None, Some(revision)]);
        assert_eq!(read.revision, revision);
        let Ok(Outcome::Conflict { keys }) = store.commit(txn).await else {
            panic!("done twice");
        };
        assert_eq!(keys.len(), 3, "each key that failed is named");
    }

    pub async fn what_no_store_takes_is_refused_before_it_is_sent<B: Backend>(backend: B) {
        let store = backend.store().await;
        let before = store.get(b"/reeve/x").await.expect("reads").revision;
        let large = store
            .commit(person::txn().put("/reeve/x", vec![0; (1 << 20) + 1], Guard::Any))
            .await;
        assert!(matches!(large, Err(e) if matches!(e.kind, StoreErrorKind::TooLarge { bytes: 1_048_577, .. })));
        let twice = person::txn()
            .put("/reeve/x", "1", Guard::Any)
            .delete("/reeve/x", Guard::Any);
        assert!(matches!(store.commit(twice).await, Err(e) if matches!(e.kind, StoreErrorKind::Invalid(_))));
        let nameless = person::txn().put("", "1", Guard::Any);
        assert!(matches!(store.commit(nameless).await, Err(e) if matches!(e.kind, StoreErrorKind::Invalid(_))));
        let many = (0..200).fold(person::txn(), |txn, n| txn.put(format!("/reeve/{n}"), "1", Guard::Any));
        assert!(matches!(store.commit(many).await, Err(e) if matches!(e.kind, StoreErrorKind::Invalid(_))));
        assert_eq!(store.get(b"/reeve/x").await.expect("reads").revision, before);
        // The largest that is taken is taken.
        commit(&store, person::txn().put("/reeve/x", vec![0; 1 << 20], Guard::Absent)).await;
        let full = (0..127).fold(person::txn(), |txn, n| {
            txn.put(format!("/reeve/{n}"), "1", Guard::Absent)
        });
        commit(&store, full).await;
    }

    pub async fn a_list_is_whole_ordered_and_of_one_revision<B: Backend>(backend: B) {
        let store = backend.store().await;
        let empty = store.list(&root()).await.expect("lists");
        assert_eq!(empty.kvs, []);
        put(&store, "/reeve", "not under it").await;
        put(&store, "/reevf/", "nor this").await;
        let txns = (0..1201).map(|n| person::txn().put(format!("/reeve/k/{n:04}"), "1", Guard::Absent));
        for done in store.batch(txns.collect()).await {
            assert!(matches!(done, Ok(Outcome::Committed { .. })), "{done:?}");
        }
        commit(
            &store,
            person::txn().put(b"/reeve/\xff\xfe".to_vec(), "1", Guard::Absent),
        )
        .await;
        let writer = tokio::spawn({
            let store = store.clone();
            async move {
                for n in 0..50 {
                    put(&store, &format!("/reeve/k/{:04}", n * 20), "2").await;
                }
            }
        });
        for _ in 0..5 {
            let listing = store.list(&root()).await.expect("lists");
            assert_eq!(listing.kvs.len(), 1202);
            assert!(listing.kvs.is_sorted_by(|a, b| a.key < b.key));
            assert!(listing.kvs.iter().all(|kv| kv.mod_revision <= listing.revision));
            assert_ne!(listing.cluster_id, 0);
            // At one revision: the writer goes through the keys in order, so what it has written is a beginning.
            let written: Vec<bool> = listing
                .kvs
                .iter()
                .filter(|kv| kv.key.starts_with(b"/reeve/k/"))
                .step_by(20)
                .map(|kv| kv.value == "2")
                .collect();
            assert!(written.is_sorted_by(|a, b| a >= b), "{written:?}");
        }
        writer.await.expect("the writer ends");
        let foreign = store.list(&root()).await.expect("lists").kvs.pop().expect("the last");
        assert_eq!(
            (foreign.key.as_slice(), foreign.key_str()),
            (b"/reeve/\xff\xfe".as_slice(), None)
        );
    }

    pub async fn a_large_list_comes_in_smaller_pages<B: Backend>(backend: B) {
        let store = backend.store().await;
        let value = Bytes::from(vec![7_u8; 1 << 20]);
        for n in 0..80 {
            commit(
                &store,
                person::txn().put(format!("/reeve/{n:03}"), value.clone(), Guard::Absent),
            )
            .await;
        }
        let listing = store.list(&root()).await.expect("lists");
        assert_eq!(listing.kvs.iter().filter(|kv| kv.value == value).count(), 80);
    }

    pub async fn a_watch_tells_everything_in_order<B: Backend>(backend: B) {
        let store = backend.store().await;
        let first = put(&store, "/reeve/a", "1").await;
        let mut stream = store.watch(&root(), first);
        put(&store, "/other/a", "1").await;
        let both = person::txn()
            .put("/reeve/b", "1", Guard::Absent)
            .delete("/reeve/a", Guard::Exists);
        let second = commit(&store, both).await;
        let last = put(&store, "/reeve/b", "2").await;
        let told = events(&mut stream, 4).await;
        let revisions: Vec<i64> = told.iter().map(WatchEvent::revision).collect();
        assert_eq!(revisions, [first, second, second, last]);
        assert!(matches!(&told[0], WatchEvent::Put(kv) if kv.value == "1" && kv.version == 1));
        let deleted = WatchEvent::Delete {
            key: b"/reeve/a".to_vec(),
            revision: second,
        };
        assert!(told[1..3].contains(&deleted));
        assert!(matches!(&told[3], WatchEvent::Put(kv) if kv.version == 2 && kv.create_revision == second));
        // From the past, once more.
        let mut again = store.watch(&root(), second);
        assert_eq!(events(&mut again, 3).await, told[1..]);
    }

    pub async fn a_watch_from_before_the_compaction_is_cancelled<B: Backend>(backend: B) {
        let store = backend.store().await;
        let first = put(&store, "/reeve/a", "1").await;
        put(&store, "/reeve/a", "2").await;
        let last = put(&store, "/reeve/a", "3").await;
        store.compact(last).await.expect("compacts");
        let mut stream = store.watch(&root(), first);
        loop {
            match tokio::time::timeout(Duration::from_secs(20), stream.next())
                .await
                .expect("it speaks")
            {
                Some(WatchInput::Opened { .. }) => {}
                Some(WatchInput::Canceled { compact_revision, .. }) => {
                    assert_eq!(compact_revision, last);
                    break;
                }
                other => panic!("not cancelled: {other:?}"),
            }
        }
        assert!(stream.next().await.is_none());
        let refused = store.compact(last).await.expect_err("compacted already");
        assert!(matches!(refused.kind, StoreErrorKind::Compacted { .. }), "{refused}");
        let refused = store.compact(last + 1000).await.expect_err("in the future");
        assert_eq!(refused.kind, StoreErrorKind::FutureRevision, "{refused}");
        assert_eq!(store.list(&root()).await.expect("lists").kvs.len(), 1);
    }

    pub async fn a_lease_takes_its_keys_with_it<B: Backend>(backend: B) {
        let store = backend.store().await;
        let lease = store.lease_grant(Duration::from_secs(2)).await.expect("grants");
        assert!(lease.ttl >= Duration::from_secs(2));
        let leased = |key: &str| person::txn().put_leased(key, "1", Guard::Absent, lease.id);
        let revision = commit(&store, leased("/reeve/a")).await;
        commit(&store, leased("/reeve/b")).await;
        commit(&store, person::txn().put("/reeve/b", "kept", Guard::Any)).await;
        store.lease_keep_alive(lease.id).await.expect("renews");
        let life = store.lease_time_to_live(lease.id).await.expect("reads");
        assert!(life.granted == lease.ttl && life.remaining <= life.granted);
        assert_eq!(
            store
                .get(b"/reeve/a")
                .await
                .expect("reads")
                .value
                .expect("is there")
                .lease,
            lease.id
        );
        let mut stream = store.watch(&root(), revision + 1);
        backend.end_lease(lease.id).await;
        let told = events(&mut stream, 3).await;
        assert!(
            matches!(&told[2], WatchEvent::Delete { key, revision: _ } if key == b"/reeve/a"),
            "{told:?}"
        );
        assert_eq!(value(&store, "/reeve/b").await.expect("is there"), "kept");
        let gone = |r: Result<(), runtime::StoreError>| r.is_err_and(|e| e.kind == StoreErrorKind::LeaseNotFound);
        assert!(gone(store.lease_keep_alive(lease.id).await));
        assert!(gone(store.lease_time_to_live(lease.id).await.map(|_| ())));
        assert!(gone(store.commit(leased("/reeve/c")).await.map(|_| ())));
        store
            .lease_revoke(lease.id)
            .await
            .expect("ending what has ended is no error");
    }

    pub async fn a_revoked_lease_deletes_at_once<B: Backend>(backend: B) {
        let store = backend.store().await;
        let lease = store.lease_grant(Duration::from_secs(60)).await.expect("grants");
        commit(
            &store,
            person::txn().put_leased("/reeve/a", "1", Guard::Absent, lease.id),
        )
        .await;
        store.lease_revoke(lease.id).await.expect("revokes");
        assert_eq!(value(&store, "/reeve/a").await, None);
    }

    pub async fn a_batch_gives_each_transaction_its_own_fate<B: Backend>(backend: B) {
        let store = backend.store().await;
        let marker = put(&store, "/reeve/cluster", "1").await;
        put(&store, "/reeve/k/0100", "taken").await;
        put(&store, "/reeve/k/0600", "taken").await;
        let one = |n: usize| {
            let txn = person::txn().require("/reeve/cluster", Guard::Unchanged(marker));
            txn.put(format!("/reeve/k/{n:04}"), vec![b'x'; 3000], Guard::Absent)
                .put(format!("/reeve/l/{n:04}"), "1", Guard::Absent)
        };
        let mut txns: Vec<Txn> = (0..1000).map(one).collect();
        txns[7] = person::txn().put("/reeve/k/0007", vec![0; 2 << 20], Guard::Absent);
        let ended = store.batch(txns).await;
        for (n, end) in ended.iter().enumerate() {
            match n {
                100 | 600 => assert!(
                    matches!(end, Ok(Outcome::Conflict { keys }) if keys.len() == 1 && keys[0].key == format!("/reeve/k/{n:04}").as_bytes()),
                    "{n}: {end:?}"
                ),
                7 => assert!(end.is_err(), "{n}: {end:?}"),
                _ => assert!(matches!(end, Ok(Outcome::Committed { .. })), "{n}: {end:?}"),
            }
        }
        assert_eq!(
            value(&store, "/reeve/l/0100").await,
            None,
            "all of a transaction, or none"
        );
        assert_eq!(value(&store, "/reeve/l/0999").await.expect("is there"), "1");
        assert_eq!(store.list(&root()).await.expect("lists").kvs.len(), 1 + 2 + 997 * 2);
        let stale = (0..300).map(|n| {
            let txn = person::txn().require("/reeve/cluster", Guard::Absent);
            txn.put(format!("/reeve/m/{n}"), "1", Guard::Absent)
        });
        let ended = store.batch(stale.collect()).await;
        assert!(
            ended
                .iter()
                .all(|e| matches!(e, Ok(Outcome::Conflict { keys }) if keys[0].key == b"/reeve/cluster"))
        );
    }

    pub async fn many_writers_of_one_key_lose_no_update<B: Backend>(backend: B) {
        let store = backend.store().await;
        put(&store, "/reeve/n", "0").await;
        let add = |store: B::Store| async move {
            for _ in 0..10 {
                loop {
                    let kv = store.get(b"/reeve/n").await.expect("reads").value.expect("is there");
                    let n: u32 = std::str::from_utf8(&kv.value).expect("text").parse().expect("a number");
                    let txn = person::txn().put("/reeve/n", (n + 1).to_string(), Guard::Unchanged(kv.mod_revision));
                    if let Outcome::Committed { .. } = store.commit(txn).await.expect("answers") {
                        break;
                    }
                }
            }
        };
        let adders: Vec<_> = (0..8).map(|_| tokio::spawn(add(store.clone()))).collect();
        for adder in adders {
            adder.await.expect("the adder ends");
        }
        assert_eq!(value(&store, "/reeve/n").await.expect("is there"), "80");
    }

    pub async fn one_leads_and_the_next_follows_at_once<B: Backend>(backend: B) {
        let store = backend.store().await;
        let shutdown = Shutdown::new();
        let options = |who: &str| LeaderOptions::new(root().child("election"), who);
        let first = campaign(&store, &options("a"), &shutdown)
            .await
            .expect("campaigns")
            .expect("wins");
        let waiting = tokio::spawn({
            let (store, shutdown, options) = (backend.store().await, shutdown.clone(), options("b"));
            async move { campaign(&store, &options, &shutdown).await }
        });
        let write = |fence: &Fence, key: &str| Txn::new(fence).put(key, "1", Guard::Absent);
        let old = Fence::leader(&first);
        commit(&store, write(&old, "/reeve/one")).await;
        assert!(!waiting.is_finished() && !first.is_lost());
        let (epoch, lost) = (first.epoch(), first.lost());
        first.resign().await;
        assert!(lost.is_lost());
        let second = tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .expect("takes over at once");
        let second = second.expect("no panic").expect("campaigns").expect("wins");
        assert!(second.epoch() > epoch);
        let late = store.commit(write(&old, "/reeve/two")).await.expect("answers");
        assert_eq!(late, Outcome::FenceLost);
        let late = store.commit(write(&old, "/reeve/one")).await.expect("answers");
        assert_eq!(late, Outcome::FenceLost, "the fence before any conflict");
        commit(&store, write(&Fence::leader(&second), "/reeve/two")).await;
        let batch = store
            .batch(vec![
                write(&old, "/reeve/3"),
                write(&Fence::leader(&second), "/reeve/4"),
            ])
            .await;
        assert!(matches!(batch[0], Ok(Outcome::FenceLost)) && matches!(batch[1], Ok(Outcome::Committed { .. })));
        // A person deletes the key: it is noticed, and no one else's leadership is touched.
        commit(&store, person::txn().delete(second.key().to_vec(), Guard::Exists)).await;
        tokio::time::timeout(Duration::from_secs(20), second.lost().lost())
            .await
            .expect("it notices");
        shutdown.drain();
        let nobody = campaign(&store, &options("c"), &shutdown).await.expect("no error");
        assert!(nobody.is_none(), "who drains does not campaign");
    }

    pub async fn a_session_is_resumed_by_its_own_agent_only<B: Backend>(backend: B) {
        let store = backend.store().await;
        let shutdown = Shutdown::new();
        let options = |machine: &str| SessionOptions {
            key: b"/reeve/sessions/n1".to_vec(),
            machine_id: machine.to_owned(),
            value: Bytes::from(format!(r#"{{"machineId":"{machine}","bootId":"b"}}"#)),
            ttl: Duration::from_secs(5),
        };
        let first = session::open(&store, &options("m1"), None, &shutdown)
            .await
            .expect("opens");
        let record = first.record();
        let old = Fence::session(&first);
        let taken = session::open(&store, &options("m2"), None, &shutdown)
            .await
            .expect_err("it is taken");
        assert!(
            matches!(&taken, SessionError::NodeTaken { by, same_machine: false, .. } if by == "m1"),
            "{taken}"
        );
        drop(first);
        let second = session::open(&store, &options("m1"), Some(record), &shutdown)
            .await
            .expect("resumes");
        assert_eq!(second.record(), record);
        commit(&store, Txn::new(&old).put("/reeve/reports/n1", "1", Guard::Absent)).await;
        assert!(!second.is_lost());
        backend_end(&backend, second, &store).await;
        let third = session::open(&store, &options("m1"), Some(record), &shutdown)
            .await
            .expect("opens anew");
        assert!(third.create_revision() > record.create_revision);
        let late = store
            .commit(Txn::new(&old).put("/reeve/reports/n1", "2", Guard::Any))
            .await
            .expect("answers");
        assert_eq!(late, Outcome::FenceLost);
        let lost = third.lost();
        third.close().await;
        assert!(lost.is_lost());
        assert_eq!(value(&store, "/reeve/sessions/n1").await, None);
    }

    /// The agent dies; its lease ends, and its key a moment later.
    async fn backend_end<B: Backend>(backend: &B, session: session::Session, store: &B::Store) {
        let lease = session.lease();
        drop(session);
        backend.end_lease(lease).await;
        until("the session's key goes with its lease", async || {
            value(store, "/reeve/sessions/n1").await.is_none()
        })
        .await;
    }

    pub async fn a_reflection_equals_the_store_through_compactions<B: Backend>(backend: B) {
        let store = backend.store().await;
        let shutdown = Shutdown::new();
        let options = ReflectOptions {
            skip: vec![root().child("events")],
            ..ReflectOptions::default()
        };
        put(&store, "/reeve/start", "1").await;
        let reader = reflect(backend.store().await, root(), options, &shutdown);
        let mut model: BTreeMap<Vec<u8>, String> = BTreeMap::from([(b"/reeve/start".to_vec(), "1".to_owned())]);
        let mut last = 0;
        for n in 0..300_u32 {
            let key = format!("/reeve/k/{}", n * 7 % 40);
            if n % 5 == 4 {
                last = commit(&store, person::txn().delete(key.clone(), Guard::Any)).await;
                model.remove(key.as_bytes());
            } else {
                last = put(&store, &key, &n.to_string()).await;
                model.insert(key.into_bytes(), n.to_string());
            }
            put(&store, "/reeve/events/e", "noise").await;
            if n % 100 == 50 {
                store.compact(last).await.expect("compacts");
            }
        }
        let last = last.max(put(&store, "/reeve/end", "1").await);
        model.insert(b"/reeve/end".to_vec(), "1".to_owned());
        let cache = tokio::time::timeout(Duration::from_secs(30), reader.synced_to(last)).await;
        let cache = cache.expect("it follows").expect("it lives");
        let seen: BTreeMap<Vec<u8>, String> = cache
            .keys
            .iter()
            .map(|kv| (kv.key.clone(), String::from_utf8_lossy(&kv.value).into_owned()))
            .collect();
        assert_eq!(seen, model);
        assert_eq!(cache.went_back, None);
        shutdown.drain();
    }

    pub async fn the_store_tells_about_itself<B: Backend>(backend: B) {
        let store = backend.store().await;
        let revision = put(&store, "/reeve/a", "1").await;
        let status = store.status().await.expect("answers");
        assert!(!status.version.is_empty() && !status.endpoint.is_empty() && status.leader != 0);
        let read = store.get(b"/reeve/a").await.expect("reads");
        assert_eq!((read.revision, read.cluster_id), (revision, status.cluster_id));
        assert!(store.health().healthy_for().is_some());
    }
}

macro_rules! contract {
    ($($name:ident: $backend:ty;)*) => { $(mod $name {
        use super::*;
        contract!(@tests $backend:
            guards_hold_or_name_the_key
            a_transaction_is_whole
            what_no_store_takes_is_refused_before_it_is_sent
            a_list_is_whole_ordered_and_of_one_revision
            a_large_list_comes_in_smaller_pages
            a_watch_tells_everything_in_order
            a_watch_from_before_the_compaction_is_cancelled
            a_lease_takes_its_keys_with_it
            a_revoked_lease_deletes_at_once
            a_batch_gives_each_transaction_its_own_fate
            many_writers_of_one_key_lose_no_update
            one_leads_and_the_next_follows_at_once
            a_session_is_resumed_by_its_own_agent_only
            a_reflection_equals_the_store_through_compactions
            the_store_tells_about_itself
        );
    })* };
    (@tests $backend:ty: $($test:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            suite::$test(<$backend as Backend>::start().await).await;
        }
    )* };
}

contract! {
    memory: Memory;
    embedded_in_process: InProcess;
    embedded_over_tcp: OverTcp;
    etcd_of_one: Real<1>;
    etcd_of_three: Real<3>;
}
