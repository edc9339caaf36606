//! What only a real etcd can show: dead, paused and wrong endpoints, answers lost on the way, members that come and go.

use std::time::{Duration, Instant};

use futures::StreamExt;
use runtime::testing::Etcd;
use runtime::{
    EtcdOptions, EtcdStore, Guard, LeaderOptions, Outcome, Prefix, ReflectOptions, Shutdown, Store, StoreErrorKind,
    TlsFiles, WatchInput, campaign, person, reflect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

async fn put(store: &EtcdStore, key: &str, value: &str) -> Result<Outcome, runtime::StoreError> {
    store
        .commit(person::txn().put(key, value.to_owned(), Guard::Absent))
        .await
}

/// Writes until it is done: after an answer like "not in force", trying again is the caller's right.
async fn put_surely(store: &EtcdStore, key: &str) -> u32 {
    for tries in 1..20 {
        match put(store, key, "1").await {
            Ok(Outcome::Committed { .. }) => return tries,
            // An earlier try of ours arrived late.
            Ok(Outcome::Conflict { .. }) if tries > 1 => return tries,
            Ok(other) => panic!("{key}: {other:?}"),
            Err(error) => assert!(error.is_outage(), "{key}: {error:?}"),
        }
    }
    panic!("{key}: never written");
}

/// Reads until it is answered: an election may outlast one deadline where the machine is busy, and then says so.
async fn get_surely(store: &EtcdStore, key: &str) {
    for _ in 0..5 {
        match store.get(key.as_bytes()).await {
            Ok(read) => return assert!(read.value.is_some(), "{key} is there"),
            Err(error) => assert!(error.is_outage(), "{key}: {error:?}"),
        }
    }
    panic!("{key}: never read");
}

fn root() -> Prefix {
    Prefix::new("/reeve/").expect("ends in a slash")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_of_three_costs_elections_and_nothing_more() {
    let mut etcd = Etcd::start(3).await;
    for dead in 0..3 {
        let store = etcd.store().await;
        put_surely(&store, &format!("/reeve/before/{dead}")).await;
        etcd.kill(dead);
        let begun = Instant::now();
        for n in 0..30 {
            get_surely(&store, "/reeve/before/0").await;
            put_surely(&store, &format!("/reeve/{dead}/{n}")).await;
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(120), "60 calls took {took:?}");
        let fresh = etcd.store().await;
        assert_eq!(fresh.list(&root()).await.expect("lists").kvs.len(), (dead + 1) * 31);
        etcd.restart(dead).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_member_delays_few_reads() {
    let mut etcd = Etcd::start(3).await;
    let store = EtcdStore::connect(EtcdOptions::new(etcd.url(0)))
        .await
        .expect("connects");
    put_surely(&store, "/reeve/a").await;
    // Prefer the member that will hang: it is the only one that answers at first.
    let list = format!("{},{},{}", etcd.url(0), etcd.url(1), etcd.url(2));
    let store = EtcdStore::connect(EtcdOptions::new(&list)).await.expect("connects");
    for member in 0..3 {
        etcd.pause(member);
        let mut waited = 0;
        for n in 0..10 {
            // The paused one may be the leader: the others elect one first, which takes as long as the machine is busy.
            let begun = Instant::now();
            get_surely(&store, "/reeve/a").await;
            // No try at the others lasts this long, but one at the paused member does.
            waited += usize::from(begun.elapsed() >= Duration::from_secs(1));
            put_surely(&store, &format!("/reeve/{member}/{n}")).await;
        }
        assert!(waited <= 5, "{waited} of 10 reads waited for member {member}");
        etcd.resume(member);
    }
    assert_eq!(store.list(&root()).await.expect("lists").kvs.len(), 31);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflection_and_a_leadership_outlive_each_member() {
    let mut etcd = Etcd::start(3).await;
    let store = etcd.store().await;
    let shutdown = Shutdown::new();
    let mut options = LeaderOptions::new(root().child("election"), "a");
    options.ttl = Duration::from_secs(20);
    let leadership = campaign(&store, &options, &shutdown)
        .await
        .expect("campaigns")
        .expect("wins");
    let reader = reflect(store.clone(), root(), ReflectOptions::default(), &shutdown);
    for member in 0..3 {
        etcd.kill(member);
        put_surely(&store, &format!("/reeve/k/{member}")).await;
        let revision = store.get(b"/reeve/k/0").await.expect("reads").revision;
        let last = store.get(format!("/reeve/k/{member}").as_bytes()).await.expect("reads");
        let written = last.value.expect("is there").mod_revision;
        assert!(written <= revision);
        let cache = tokio::time::timeout(Duration::from_secs(30), reader.synced_to(written)).await;
        let cache = cache.expect("it follows").expect("it lives");
        assert_eq!(cache.keys.under(&root().child("k")).count(), member + 1);
        assert_eq!(cache.went_back, None);
        etcd.restart(member).await;
    }
    assert!(!leadership.is_lost());
    leadership.resign().await;
    shutdown.drain();
}

/// Passes bytes on to etcd; while `deaf`, the answers are thrown away and the connections cut.
async fn proxy(to: String, deaf: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let to = to.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server, mut deaf) = (TcpStream::connect(&to).await.expect("etcd listens"), deaf.clone());
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                });
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                    if *deaf.borrow_and_update() || to_client.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
                up.abort();
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_on_the_way_is_resolved_by_reading_back() {
    let etcd = Etcd::start(1).await;
    let (deafen, deaf) = watch::channel(false);
    let url = proxy(etcd.url(0).to_owned(), deaf).await;
    // The write goes through the proxy, which is preferred; reading back finds the way around it.
    let store = EtcdStore::connect(EtcdOptions::new(&url)).await.expect("connects");
    put_surely(&store, "/reeve/warm").await;
    for n in 0..20 {
        let key = format!("/reeve/{n}");
        deafen.send_replace(true);
        let hearing = tokio::spawn({
            let deafen = deafen.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(150)).await;
                deafen.send_replace(false);
            }
        });
        let end = put(&store, &key, "1").await;
        hearing.await.expect("it ends");
        let direct = etcd.store().await;
        let there = direct.get(key.as_bytes()).await.expect("reads").value;
        match end {
            Ok(Outcome::Committed { revision }) => {
                assert_eq!(there.expect("committed is there").mod_revision, revision);
            }
            // The one honest alternative: known not to be in force.
            Err(error) => {
                assert_ne!(error.kind, StoreErrorKind::Ambiguous, "{error:?}");
                assert!(there.is_none(), "{n}: said not to be in force, and is: {error:?}");
            }
            Ok(other) => panic!("{n}: sent twice? {other:?}"),
        }
        assert!(there_once(&direct, &key).await);
    }
}

async fn there_once(store: &EtcdStore, key: &str) -> bool {
    let found = store.get(key.as_bytes()).await.expect("reads").value;
    found.is_none_or(|kv| kv.version == 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_endpoint_is_told_apart_with_a_remedy() {
    // Nothing listens.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds")
        .local_addr()
        .expect("an address");
    let two = format!("http://{closed},http://localhost:{}", closed.port());
    let begun = Instant::now();
    let error = EtcdStore::connect(EtcdOptions::new(&two))
        .await
        .expect_err("nobody is there");
    assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error:?}");
    assert!(
        error.to_string().contains(&closed.to_string()) && error.to_string().contains("localhost"),
        "{error}"
    );
    assert!(error.remedy().is_some_and(|r| r.contains("--etcd")));
    assert!(begun.elapsed() < Duration::from_secs(30));

    // A web server.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let web = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                .await;
            // As web servers do, linger: a reset could overtake the answer.
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
        }
    });
    let error = EtcdStore::connect(EtcdOptions::new(&web))
        .await
        .expect_err("it is no etcd");
    assert_eq!(error.kind, StoreErrorKind::NotEtcd, "{error:?}");

    // TLS towards a plain etcd, with a CA that signed nothing.
    let etcd = Etcd::start(1).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, key.cert.pem()).expect("writes");
    let mut options = EtcdOptions::new(&etcd.url(0).replace("http://", "https://"));
    let error = EtcdStore::connect(options.clone()).await.expect_err("no CA");
    assert!(matches!(error.kind, StoreErrorKind::Invalid(_)), "{error:?}");
    options.tls = Some(TlsFiles { ca, identity: None });
    let error = EtcdStore::connect(options.clone()).await.expect_err("no TLS there");
    assert_eq!(error.kind, StoreErrorKind::Tls, "{error:?}");
    options.tls = Some(TlsFiles {
        ca: dir.path().join("none.pem"),
        identity: None,
    });
    let error = EtcdStore::connect(options).await.expect_err("no file");
    assert!(error.to_string().contains("none.pem"), "{error}");

    for (endpoints, part) in [("", "no endpoint"), ("ftp://x", "http://"), ("http://[::", "")] {
        let error = EtcdStore::connect(EtcdOptions::new(endpoints))
            .await
            .expect_err("not a URL");
        assert!(error.to_string().contains(part), "{endpoints}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_says_so_and_serves_reads() {
    let etcd = Etcd::start_with(1, &["--quota-backend-bytes", "4194304"]).await;
    let store = etcd.store().await;
    let mut refused = None;
    for n in 0..64 {
        let txn = person::txn().put(format!("/reeve/{n}"), vec![7_u8; 512 << 10], Guard::Absent);
        match store.commit(txn).await {
            Ok(Outcome::Committed { .. }) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("64 times 512 KiB are over 4 MiB");
    assert_eq!(refused.kind, StoreErrorKind::NoSpace, "{refused:?}");
    assert!(refused.remedy().is_some_and(|r| r.contains("defrag")));
    assert!(store.get(b"/reeve/0").await.expect("reads").value.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_majority_gone_every_call_ends_by_its_deadline() {
    let mut etcd = Etcd::start(3).await;
    let store = etcd.store().await;
    put_surely(&store, "/reeve/a").await;
    etcd.pause(0);
    etcd.pause(1);
    let begun = Instant::now();
    let read = store.get(b"/reeve/a").await.expect_err("no majority");
    assert!(
        read.is_outage() && begun.elapsed() < Duration::from_secs(30),
        "{read:?} {:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    let write = put(&store, "/reeve/b", "1").await.expect_err("no majority");
    assert!(
        write.is_outage() && begun.elapsed() < Duration::from_secs(60),
        "{write:?} {:?}",
        begun.elapsed()
    );
    assert_eq!(store.health().healthy_for(), None);
    etcd.resume(0);
    etcd.resume(1);
    // Late or not: in force at most once.
    put_surely(&store, "/reeve/c").await;
    assert!(there_once(&store, "/reeve/b").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_are_dropped_leave_the_connection_in_order() {
    let etcd = Etcd::start(1).await;
    let store = etcd.store().await;
    // More than the windows of a stream and of the connection: what nobody reads must not be kept.
    for n in 0..8 {
        let txn = person::txn().put(format!("/reeve/{n}"), vec![b'x'; 512 << 10], Guard::Absent);
        let written = store.commit(txn).await;
        assert!(matches!(written, Ok(Outcome::Committed { .. })), "{written:?}");
    }
    put_surely(&store, "/reeve/a").await;
    for n in 0..90 {
        let mut watch = store.watch(&root(), 1);
        // Some before they are open, some with events that nobody reads.
        for heard in 0..n % 3 {
            let said = watch.next().await;
            assert!(
                matches!(said, Some(WatchInput::Opened { .. } | WatchInput::Response { .. })),
                "{n}/{heard}: {said:?}"
            );
        }
        drop(watch);
        if n % 10 == 0 {
            store.get(b"/reeve/a").await.unwrap_or_else(|e| panic!("{n}: {e:?}"));
        }
    }
    let mut held = Vec::new();
    // Unread ones share the connection's window: about 17 of these would fill it.
    for n in 0..10 {
        let mut watch = store.watch(&root(), 1);
        let said = watch.next().await;
        assert!(matches!(said, Some(WatchInput::Opened { .. })), "{n}: {said:?}");
        held.push(watch);
    }
    drop(held);
    store.get(b"/reeve/a").await.expect("reads");
    let deadline = Instant::now() + Duration::from_secs(20);
    while etcd.metric("etcd_debugging_mvcc_watcher_total").await != Some(0.0) {
        assert!(Instant::now() < deadline, "etcd still serves watches that were dropped");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_call_is_tried_until_its_deadline() {
    let mut etcd = Etcd::start(3).await;
    let store = etcd.store().await;
    put_surely(&store, "/reeve/a").await;
    // One closed port beside one that answers at once that it has no leader.
    etcd.kill(0);
    etcd.pause(1);
    let patient = Instant::now() + Duration::from_secs(30);
    let only = EtcdStore::prepare(EtcdOptions::new(&format!("{},{}", etcd.url(0), etcd.url(2))))
        .await
        .expect("prepares");
    while etcd.metric_of(2, "etcd_server_has_leader").await != Some(0.0) {
        assert!(
            Instant::now() < patient,
            "the last member never notices that it has no leader"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let begun = Instant::now();
    let error = only.get(b"/reeve/a").await.expect_err("no majority");
    let took = begun.elapsed();
    assert!(
        error.is_outage() && took > Duration::from_secs(4),
        "{took:?}: {error:?}"
    );
    let begun = Instant::now();
    let error = put(&only, "/reeve/b", "1").await.expect_err("no majority");
    let took = begun.elapsed();
    assert!(
        error.is_outage() && took > Duration::from_secs(4),
        "{took:?}: {error:?}"
    );
    etcd.resume(1);
}
