//! The embedded store as its clients see it, in process: KV, watches, leases, restarts, bad input.

#![allow(clippy::wildcard_enum_match_arm)] // What a test does not name is not what it looks for.
#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp, WatchFilterType,
    WatchOptions, WatchResponse, WatchStream,
};
use runtime::embedded::{Embedded, OpenError, OpenOptions, Retention, ServeError};
use tempfile::TempDir;

struct Fixture {
    store: Embedded,
    client: Client,
    dir: TempDir,
}

fn options(dir: &TempDir) -> OpenOptions {
    OpenOptions::new(dir.path().join("store"))
}

fn start() -> Fixture {
    start_with(|_| {})
}

fn start_with(change: impl FnOnce(&mut OpenOptions)) -> Fixture {
    let dir = TempDir::new().unwrap();
    let mut options = options(&dir);
    change(&mut options);
    let store = Embedded::open(options).unwrap();
    let client = store.client();
    Fixture { store, client, dir }
}

/// Fails the test instead of hanging it.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited 20 s for {what}"),
    }
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    let message = soon("a watch response", stream.message()).await;
    message.unwrap().expect("the stream goes on")
}

async fn next_where(stream: &mut WatchStream, wanted: impl Fn(&WatchResponse) -> bool) -> WatchResponse {
    loop {
        let response = next(stream).await;
        if wanted(&response) {
            return response;
        }
    }
}

fn has_events(response: &WatchResponse) -> bool {
    !response.events().is_empty()
}

fn status(error: etcd_client::Error) -> (tonic::Code, String) {
    match error {
        etcd_client::Error::GRpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn a_put_is_read_back_and_survives_reopening() {
    let mut f = start();
    let put = f.client.put("a", "1", None).await.unwrap();
    assert_eq!(put.header().unwrap().revision(), 2);
    let ids = |h: &etcd_client::ResponseHeader| (h.cluster_id(), h.member_id());
    let before = ids(put.header().unwrap());
    f.store.close().await;

    let store = Embedded::open(options(&f.dir)).unwrap();
    let got = store.client().get("a", None).await.unwrap();
    assert_eq!(got.kvs()[0].value(), b"1");
    assert_eq!(got.kvs()[0].mod_revision(), 2);
    assert_eq!(got.header().unwrap().revision(), 2);
    assert_eq!(ids(got.header().unwrap()), before, "the ids stay");
}

#[tokio::test]
async fn a_closed_store_says_that_it_stopped() {
    let mut f = start();
    f.store.close().await;
    let (code, text) = status(f.client.put("a", "1", None).await.unwrap_err());
    assert_eq!(code, tonic::Code::Unavailable);
    assert_eq!(text, "etcdserver: server stopped");
    f.client.get("a", None).await.unwrap_err();
}

#[tokio::test]
async fn a_txn_takes_the_branch_its_compares_choose() {
    let mut f = start();
    let create = Txn::new()
        .when([Compare::create_revision("k", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("k", "mine", None)])
        .or_else([TxnOp::get("k", None)]);
    assert!(f.client.txn(create.clone()).await.unwrap().succeeded());
    let second = f.client.txn(create).await.unwrap();
    assert!(!second.succeeded());
    assert_eq!(second.op_responses().len(), 1);
    assert_eq!(second.header().unwrap().revision(), 2);
}

#[tokio::test]
async fn a_watch_replays_the_past_and_follows_the_present() {
    let mut f = start();
    f.client.put("w/1", "a", None).await.unwrap();
    f.client.put("w/1", "b", None).await.unwrap();
    f.client.put("other", "x", None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_start_revision(2).with_prev_key();
    let mut watch = f.client.watch("w/", Some(options)).await.unwrap();
    let past = next_where(&mut watch, has_events).await;
    assert_eq!(past.events().len(), 2);
    assert_eq!(past.events()[1].prev_kv().unwrap().value(), b"a");
    f.client.delete("w/1", None).await.unwrap();
    let present = next(&mut watch).await;
    assert_eq!(present.events()[0].event_type(), EventType::Delete);
    assert_eq!(present.events()[0].kv().unwrap().mod_revision(), 5);
    assert_eq!(present.events()[0].prev_kv().unwrap().value(), b"b");
}

#[tokio::test]
async fn history_after_a_compaction_is_replayed_after_reopening_too() {
    let mut f = start();
    for i in 0..6 {
        f.client.put("k", i.to_string(), None).await.unwrap(); // revisions 2 to 7
    }
    f.client.delete("k", None).await.unwrap(); // 8
    f.client.put("k", "again", None).await.unwrap(); // 9
    f.client.compact(5, None).await.unwrap();
    f.store.close().await;
    let store = Embedded::open(options(&f.dir)).unwrap();
    let from = WatchOptions::new().with_start_revision(5).with_prev_key();
    let mut watch = store.client().watch("k", Some(from)).await.unwrap();
    let past = next_where(&mut watch, has_events).await;
    let seen: Vec<_> = past
        .events()
        .iter()
        .map(|e| (e.kv().unwrap().mod_revision(), e.event_type()))
        .collect();
    use EventType::{Delete, Put};
    assert_eq!(seen, [(5, Put), (6, Put), (7, Put), (8, Delete), (9, Put)]);
    assert_eq!(past.events()[1].prev_kv().unwrap().value(), b"3");
}

#[tokio::test]
async fn a_watch_of_compacted_history_is_cancelled_with_the_compact_revision() {
    let mut f = start();
    for i in 0..5 {
        f.client.put("k", i.to_string(), None).await.unwrap();
    }
    f.client.compact(4, None).await.unwrap();
    let options = WatchOptions::new().with_start_revision(2);
    let mut watch = f.client.watch("k", Some(options)).await.unwrap();
    let response = next_where(&mut watch, |r| !r.created()).await;
    assert!(response.canceled());
    assert_eq!(response.compact_revision(), 4);
    let old = GetOptions::new().with_revision(3);
    let (code, text) = status(f.client.get("k", Some(old)).await.unwrap_err());
    assert_eq!(code, tonic::Code::OutOfRange);
    assert_eq!(text, "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test]
async fn watches_on_one_stream_have_ids_filters_and_ends_of_their_own() {
    let mut f = start();
    let options = WatchOptions::new()
        .with_watch_id(7)
        .with_filters([WatchFilterType::NoPut]);
    let mut watch = f.client.watch("k", Some(options)).await.unwrap();
    // The same id again is refused, the stream goes on.
    let again = WatchOptions::new().with_watch_id(7);
    watch.watch("k", Some(again)).await.unwrap();
    let refused = next_where(&mut watch, |r| r.canceled()).await;
    assert_eq!(
        refused.cancel_reason(),
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    // An empty range too.
    let backwards = WatchOptions::new().with_range("a");
    watch.watch("b", Some(backwards)).await.unwrap();
    let refused = next_where(&mut watch, |r| r.canceled()).await;
    assert_eq!(refused.cancel_reason(), "mvcc: watcher range is empty");
    // One chosen by the server.
    watch.watch("k", None).await.unwrap();
    let created = next_where(&mut watch, |r| r.created()).await;
    assert_eq!(created.watch_id(), 0);

    f.client.put("k", "v", None).await.unwrap();
    let put = next_where(&mut watch, has_events).await;
    assert_eq!(put.watch_id(), 0, "7 wants no puts");
    watch.cancel(0).await.unwrap();
    let ended = next(&mut watch).await;
    assert!(ended.canceled() && ended.watch_id() == 0);
    f.client.delete("k", None).await.unwrap();
    let deleted = next_where(&mut watch, has_events).await;
    assert_eq!(deleted.watch_id(), 7);
    watch.request_progress().await.unwrap();
    let progress = next(&mut watch).await;
    assert_eq!(progress.watch_id(), -1);
    assert_eq!(progress.header().unwrap().revision(), 3);
}

#[tokio::test]
async fn a_quiet_watch_that_asked_for_progress_is_told() {
    let mut f = start_with(|o| o.progress_interval = Duration::from_millis(50));
    let options = WatchOptions::new().with_progress_notify();
    let mut watch = f.client.watch("quiet", Some(options)).await.unwrap();
    f.client.put("other", "x", None).await.unwrap();
    let told = |r: &WatchResponse| !r.created() && r.events().is_empty() && r.header().unwrap().revision() == 2;
    next_where(&mut watch, told).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_watch_stops_nobody_and_catches_up() {
    const N: usize = 3000;
    let mut f = start();
    let mut watch = f.client.watch("k", None).await.unwrap();
    let mut other = f.client.watch("k", None).await.unwrap();
    for stream in [&mut other, &mut watch] {
        assert!(next(stream).await.created());
    }
    let value = vec![7; 4096];
    let puts = (0..N).map(|_| {
        let mut client = f.client.clone();
        let value = value.clone();
        async move { client.put("k", value, None).await.unwrap() }
    });
    soon("the puts", futures::future::join_all(puts)).await;
    for stream in [&mut other, &mut watch] {
        let mut due = 2;
        while due < N as i64 + 2 {
            for event in next(stream).await.events() {
                assert_eq!(event.kv().unwrap().mod_revision(), due, "none is left out");
                due += 1;
            }
        }
    }
}

#[tokio::test]
async fn an_expired_lease_takes_its_keys_along_and_a_kept_one_does_not() {
    let mut f = start();
    let dying = f.client.lease_grant(1, None).await.unwrap();
    assert_eq!(dying.ttl(), 2, "etcd's shortest");
    let options = LeaseGrantOptions::new().with_id(77);
    f.client.lease_grant(2, Some(options)).await.unwrap();
    let leased = |id| Some(PutOptions::new().with_lease(id));
    f.client.put("d", "", leased(dying.id())).await.unwrap();
    f.client.put("k", "", leased(77)).await.unwrap();
    let (mut keeper, mut answers) = f.client.lease_keep_alive(77).await.unwrap();
    let mut watch = f.client.watch("d", None).await.unwrap();
    let keep = async {
        loop {
            keeper.keep_alive().await.unwrap();
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!(answer.ttl(), 2);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        gone = next_where(&mut watch, has_events) => {
            assert_eq!(gone.events()[0].event_type(), EventType::Delete);
        }
        () = keep => {}
    }
    assert_eq!(f.client.get("k", None).await.unwrap().count(), 1);
    assert_eq!(f.client.leases().await.unwrap().leases().len(), 1);
    f.client.lease_revoke(77).await.unwrap();
    assert_eq!(f.client.get("k", None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn leases_and_their_keys_survive_reopening_and_have_their_full_ttl_again() {
    let mut f = start();
    let options_77 = LeaseGrantOptions::new().with_id(77);
    f.client.lease_grant(100, Some(options_77)).await.unwrap();
    let leased = PutOptions::new().with_lease(77);
    f.client.put("k", "", Some(leased)).await.unwrap();
    f.store.close().await;
    let store = Embedded::open(options(&f.dir)).unwrap();
    let asked = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let mut client = store.client();
    let life = client.lease_time_to_live(77, Some(asked)).await.unwrap();
    assert!(life.ttl() >= 98, "{}", life.ttl());
    assert_eq!(life.granted_ttl(), 100);
    assert_eq!(life.keys(), [b"k"]);
    client.lease_revoke(77).await.unwrap();
    assert_eq!(client.get("k", None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn old_history_is_dropped_and_live_values_stay() {
    let mut f = start_with(|o| {
        o.retention = Retention {
            age: Duration::from_secs(600),
            revisions: 50,
        };
    });
    f.client.put("steady", "1", None).await.unwrap();
    for i in 0..200 {
        f.client.put("k", i.to_string(), None).await.unwrap();
    }
    let old = GetOptions::new().with_revision(10);
    let (_, text) = status(f.client.get("k", Some(old)).await.unwrap_err());
    assert!(text.contains("compacted"), "{text}");
    let recent = GetOptions::new().with_revision(160);
    f.client.get("k", Some(recent)).await.unwrap();
    f.store.close().await;
    let store = Embedded::open(options(&f.dir)).unwrap();
    let got = store.client().get("steady", None).await.unwrap();
    assert_eq!(got.kvs()[0].mod_revision(), 2);
}

#[tokio::test]
async fn history_is_dropped_by_age_too() {
    let mut f = start_with(|o| {
        o.retention = Retention {
            age: Duration::from_millis(200),
            revisions: 10_000,
        };
    });
    for i in 0..5 {
        f.client.put("k", i.to_string(), None).await.unwrap();
    }
    let dropped = async {
        loop {
            let old = GetOptions::new().with_revision(3);
            if f.client.get("k", Some(old)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the compaction", dropped).await;
    assert_eq!(f.client.get("k", None).await.unwrap().kvs()[0].value(), b"4");
}

#[tokio::test]
async fn a_write_that_is_too_large_gets_etcds_answer() {
    let mut f = start();
    for size in [(3 << 19) + 1, 2 << 20, 5 << 20] {
        let error = f.client.put("k", vec![0; size], None).await.unwrap_err();
        let (code, text) = status(error);
        assert_eq!(code, tonic::Code::InvalidArgument);
        assert_eq!(text, "etcdserver: request is too large");
    }
    let most = vec![0; (3 << 19) - 100];
    f.client.put("k", most, None).await.unwrap();
}

#[tokio::test]
async fn a_second_opener_is_told_that_the_directory_is_in_use() {
    let f = start();
    let error = Embedded::open(options(&f.dir)).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    drop(f.store);
    Embedded::open(options(&f.dir)).unwrap();
}

#[tokio::test]
async fn an_address_beyond_loopback_is_refused_without_mutual_tls() {
    let f = start();
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let error = f.store.serve(listener, async {}).await.unwrap_err();
    assert!(matches!(error, ServeError::NotLoopback { .. }), "{error}");
}

#[tokio::test]
async fn closing_ends_open_streams_and_servers() {
    let mut f = start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let store = std::sync::Arc::new(f.store);
    let serving = std::sync::Arc::clone(&store);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let until = async {
            let _ = stopped.await;
        };
        serving.serve(listener, until).await
    });
    let mut remote = Client::connect([url], None).await.unwrap();
    let mut far = remote.watch("k", None).await.unwrap();
    let mut near = f.client.watch("k", None).await.unwrap();
    f.client.put("k", "v", None).await.unwrap();
    next_where(&mut far, has_events).await;
    next_where(&mut near, has_events).await;
    stop.send(()).unwrap();
    soon("the server's end", server).await.unwrap().unwrap();
    let ended = soon("the far stream's end", far.message()).await;
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    f.client.put("k", "w", None).await.unwrap();
    next_where(&mut near, has_events).await;
    std::sync::Arc::into_inner(store).unwrap().close().await;
    let ended = soon("the near stream's end", near.message()).await;
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
}
