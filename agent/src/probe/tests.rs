//! Tests of the checks: what counts, and what hostile servers do.

use super::*;
use crate::engine::fake::FakeEngine;
use crate::engine::{CLUSTER_LABEL, CreateRequest};
use planner::node::InstanceKey;
use schemas::names::InstanceName;
use serde_json::{Value, json};
use tokio::net::TcpListener;

fn target(check: Value, network: NetworkMode) -> ProbeTarget {
    ProbeTarget {
        instance: InstanceKey {
            namespace: "default".parse().expect("a namespace"),
            workload: "web".parse().expect("a name"),
            slot: "1".parse().expect("a slot"),
            uid: serde_json::from_value(json!("0123456789abcdef0123456789abcdef")).expect("a uid"),
            kind: schemas::kinds::Kind::Service,
        },
        check: serde_json::from_value(check).expect("a check"),
        network,
        addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        up_since_ms: 0,
    }
}

/// A server that says `answer` to whoever asks, and its port.
async fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 2_048];
                let _size = stream.read(&mut request).await;
                let _sent = stream.write_all(answer).await;
            });
        }
    });
    port
}

async fn check(answer: &'static [u8], more: Value) -> Result<(), String> {
    let mut http = json!({ "port": server(answer).await });
    for (key, value) in more.as_object().into_iter().flatten() {
        http[key] = value.clone();
    }
    let target = target(json!({ "http": http, "timeout": "500ms" }), NetworkMode::Bridge);
    once("id", &target, &FakeEngine::new()).await
}

#[tokio::test]
async fn a_status_from_200_to_399_is_a_success_unless_one_is_named() {
    assert_eq!(check(b"HTTP/1.1 200 OK\r\n\r\n", json!({})).await, Ok(()));
    assert_eq!(check(b"HTTP/1.0 302 Found\r\n\r\n", json!({})).await, Ok(()));
    assert_eq!(
        check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", json!({})).await,
        Ok(())
    );
    assert_eq!(
        check(b"HTTP/1.1 404 Not Found\r\n\r\n", json!({ "path": "/x" })).await,
        Err("GET /x answered 404".into())
    );
    assert_eq!(
        check(b"HTTP/1.1 404 Not Found\r\n\r\n", json!({ "status": 404 })).await,
        Ok(())
    );
    assert!(
        check(b"HTTP/1.1 200 OK\r\n\r\n", json!({ "status": 204 }))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_answer_that_is_no_http_or_never_ends_is_a_failure_in_time() {
    assert!(
        check(b"SSH-2.0-OpenSSH_9\r\n", json!({}))
            .await
            .expect_err("no HTTP")
            .contains("not HTTP")
    );
    assert!(
        check(b"", json!({}))
            .await
            .expect_err("nothing")
            .contains("without an answer")
    );
    assert!(check(b"HTTP/1.1 2x0 OK\r\n\r\n", json!({})).await.is_err());
    static LONG: [u8; 100_000] = [b'H'; 100_000];
    assert!(check(&LONG, json!({})).await.is_err());
    // A listener that accepts and is silent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let silent = target(
        json!({ "http": { "port": port }, "timeout": "200ms" }),
        NetworkMode::Host,
    );
    assert!(
        once("id", &silent, &FakeEngine::new())
            .await
            .expect_err("silence")
            .contains("no answer within 0.2 s")
    );
    let open = target(json!({ "tcp": { "port": port } }), NetworkMode::Host);
    assert_eq!(once("id", &open, &FakeEngine::new()).await, Ok(()));
    drop(listener);
    assert!(
        once("id", &open, &FakeEngine::new())
            .await
            .expect_err("closed")
            .contains("connect to 127.0.0.1")
    );
}

#[tokio::test]
async fn without_a_network_only_a_command_can_check() {
    let tcp = target(json!({ "tcp": { "port": 80 } }), NetworkMode::None);
    assert!(
        once("id", &tcp, &FakeEngine::new())
            .await
            .expect_err("no way")
            .contains("exec")
    );
    let mut gone = target(json!({ "tcp": { "port": 80 } }), NetworkMode::Bridge);
    gone.addresses.clear();
    assert!(
        once("id", &gone, &FakeEngine::new())
            .await
            .expect_err("no address")
            .contains("no address")
    );
}

#[test]
fn failures_count_in_a_row_and_not_before_the_start_period_ends() {
    let check: HealthCheck = serde_json::from_value(json!({ "tcp": { "port": 1 }, "retries": 2 })).expect("a check");
    let bad = || Err("x".to_owned());
    let unhealthy = Probe::Unhealthy {
        message: "x".to_owned(),
    };
    let mut judge = Judge::new(&check);
    assert_eq!(judge.after(bad(), true), Probe::Unknown);
    assert_eq!(judge.after(bad(), true), Probe::Unknown);
    assert_eq!(judge.after(bad(), false), Probe::Unknown);
    assert_eq!(judge.after(bad(), false), unhealthy);
    assert_eq!(judge.after(Ok(()), false), Probe::Healthy);
    assert_eq!(judge.after(bad(), false), Probe::Healthy);
    assert_eq!(judge.after(Ok(()), false), Probe::Healthy);
    assert_eq!(judge.after(bad(), true), Probe::Healthy);
    assert_eq!(
        judge.after(bad(), true),
        unhealthy,
        "once healthy, the start period is over"
    );
}

async fn running(engine: &FakeEngine) -> String {
    let instance = InstanceName {
        namespace: "default".parse().expect("a namespace"),
        workload: "web".parse().expect("a name"),
        slot: "1".parse().expect("a slot"),
    };
    let spec = serde_json::from_value(json!({ "image": "a:1" })).expect("a spec");
    let labels = BTreeMap::from([(CLUSTER_LABEL.to_owned(), "c".to_owned())]);
    engine
        .ensure_network("c", &instance.namespace)
        .await
        .expect("a network");
    let request = CreateRequest {
        seat: None,
        name: "default.web.1.1",
        instance: &instance,
        spec: &spec,
        labels: &labels,
        ports: &[],
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &crate::policy::Gate::open(),
    };
    let id = engine.create(request).await.expect("a container").id;
    engine.start(&id).await.expect("a start");
    id
}

#[tokio::test]
async fn the_loop_is_woken_by_changes_only_and_a_dropped_target_has_no_result() {
    let engine = FakeEngine::with_images(&["a:1"]);
    let id = running(&engine).await;
    let changed = Arc::new(Notify::new());
    let prober = Prober::new(Arc::new(engine.clone()), Arc::clone(&changed));
    let wanted = target(
        json!({ "exec": { "command": ["/check"] }, "interval": "100ms", "retries": 1 }),
        NetworkMode::None,
    );
    let targets = BTreeMap::from([(id.clone(), wanted)]);
    prober.keep(&targets);
    changed.notified().await;
    let said = |probe: Probe| {
        let target = targets[&id].clone();
        BTreeMap::from([(id.clone(), Probed { target, probe })])
    };
    assert_eq!(prober.results(), said(Probe::Healthy));
    engine.exec_ends("/check", 3);
    changed.notified().await;
    let message = "the command ended with code 3".to_owned();
    assert_eq!(prober.results(), said(Probe::Unhealthy { message }));
    // The same again is no change: nothing wakes during several intervals.
    let quiet = tokio::time::timeout(Duration::from_millis(350), changed.notified()).await;
    assert!(quiet.is_err(), "an unchanged result woke the loop");
    prober.keep(&targets);
    assert_eq!(prober.results().len(), 1, "the same target goes on");
    let mut restarted = targets.clone();
    for target in restarted.values_mut() {
        target.up_since_ms = 5;
    }
    engine.hang("exec");
    prober.keep(&restarted);
    assert_eq!(prober.results(), BTreeMap::new(), "a new start begins anew");
    prober.keep(&BTreeMap::new());
    engine.release("exec");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(prober.results(), BTreeMap::new());
}

/// A TLS server with a certificate that nobody vouches for; ends with the test.
struct TlsServer(std::process::Child);

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[tokio::test]
async fn https_is_checked_without_looking_at_the_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let openssl = |arguments: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    let made = openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=nobody",
        "-keyout",
        &at("key"),
        "-out",
        &at("cert"),
    ])
    .status();
    assert!(made.expect("openssl is installed").success());
    let server = openssl(&[
        "s_server",
        "-www",
        "-accept",
        &format!("127.0.0.1:{port}"),
        "-key",
        &at("key"),
        "-cert",
        &at("cert"),
    ])
    .spawn();
    let _server = TlsServer(server.expect("a server"));
    let wanted = target(
        json!({ "http": { "port": port, "scheme": "HTTPS" } }),
        NetworkMode::Host,
    );
    let mut last = Err(String::new());
    for _ in 0..200 {
        last = once("id", &wanted, &FakeEngine::new()).await;
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(last, Ok(()));
    let plain = target(json!({ "http": { "port": port } }), NetworkMode::Host);
    assert!(once("id", &plain, &FakeEngine::new()).await.is_err());
}

#[test]
fn a_run_that_was_ended_cannot_bring_its_result_back() {
    let board = Board {
        results: Mutex::default(),
        changed: Arc::new(Notify::new()),
    };
    lock(&board.results).insert("id".to_owned(), (2, None));
    board.put("id", 1, Probe::Healthy);
    board.put("gone", 1, Probe::Healthy);
    assert_eq!(*lock(&board.results), BTreeMap::from([("id".to_owned(), (2, None))]));
    board.put("id", 2, Probe::Healthy);
    assert_eq!(
        *lock(&board.results),
        BTreeMap::from([("id".to_owned(), (2, Some(Probe::Healthy)))])
    );
}
