//! How soon one node acts, on a real etcd and a real engine: from a manifest's put to the first create call that reaches
//! the engine, and from a container's death to the start call that brings it back. Then how many calls a container costs,
//! and what a hundred of them cost at rest: calls, writes to the store, memory. Calls are seen where they pass a relay in
//! front of the engine's socket. Run by `make bench` with `ROUNDS` (7, times ten services); prints and judges nothing.

use std::io::{Read, Write};
use std::net::Shutdown as Half;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use e2e::{Lab, eventually, succeed};
use runtime::{EtcdOptions, EtcdStore, Guard, Store, person};

const REST: Duration = Duration::from_secs(30);

/// A call that passed the relay.
struct Call {
    at: Instant,
    /// The same moment as the engine's clock has it, since 1970.
    wall: Duration,
    line: String,
}

const METHODS: [&[u8]; 4] = [b"POST ", b"GET ", b"DELETE ", b"HEAD "];

fn wall() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Passes every connection on to the engine, and tells of each request that passes.
fn relay(listener: UnixListener, engine: String, calls: Sender<Call>) {
    for client in listener.incoming().map_while(Result::ok) {
        let (engine, calls) = (engine.clone(), calls.clone());
        std::thread::spawn(move || {
            let Ok(server) = UnixStream::connect(engine) else {
                return;
            };
            let (mut back_from, mut back_to) = (
                server.try_clone().expect("a socket's copy"),
                client.try_clone().expect("a socket's copy"),
            );
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Half::Write);
            });
            pass(client, server, &calls);
        });
    }
}

fn pass(mut client: UnixStream, mut server: UnixStream, calls: &Sender<Call>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = client.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let (at, wall) = (Instant::now(), wall());
        if METHODS.iter().any(|method| buffer[..count].starts_with(method)) {
            let line = buffer[..count].split(|byte| *byte == b'\r').next().unwrap_or(b"");
            let line = String::from_utf8_lossy(line).into_owned();
            let _ = calls.send(Call { at, wall, line });
        }
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Half::Write);
}

/// The next call of what changes the engine whose request line holds this.
fn call(calls: &Receiver<Call>, part: &str) -> Call {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let call = calls
            .recv_timeout(left)
            .unwrap_or_else(|_| panic!("no `{part}` reached the engine within 30 s"));
        if call.line.starts_with("POST ") && call.line.contains(part) {
            return call;
        }
    }
}

/// The calls that passed since the last look, by what they ask for.
fn passed(calls: &Receiver<Call>) -> String {
    let mut kinds = std::collections::BTreeMap::<&str, usize>::new();
    while let Ok(call) = calls.try_recv() {
        let kind = match call.line.as_str() {
            line if line.contains("/containers/create") => "create",
            line if line.contains("/start") => "start",
            line if line.contains("/containers/json") => "list",
            line if line.contains("/containers/") && line.starts_with("GET ") => "inspect",
            line if line.contains("/images/") => "image",
            _ => "other",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let each: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if each.is_empty() {
        "none".into()
    } else {
        each.join(", ")
    }
}

fn show(what: &str, times: &mut [Duration], goal: &str) {
    times.sort();
    println!(
        "{what}: median {:.1} ms, p99 {:.1} ms of {} ({goal})",
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() * 99 / 100].as_secs_f64() * 1e3,
        times.len()
    );
}

fn manifest(name: &str, replicas: usize) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  container: {{image: 'reeve/hello:1', command: [sleep, '3600'], stopGracePeriod: 0s}}\n"
    )
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("");
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0.0);
    kib / 1024.0
}

fn main() {
    let rounds: usize = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(7);
    let count = rounds * 10;
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.reeve_exits(&endpoints, 0, &["init"]);
    let listen = format!("{}:9464", lab.address(254));
    let controller = lab.start(
        "controller",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    let socket = lab.dir().join("relay.sock");
    let (tell, calls) = channel();
    let engine = lab.hosts[0].docker_host.clone();
    let real = engine.trim_start_matches("unix://").to_owned();
    let listener = UnixListener::bind(&socket).expect("a socket in the lab's directory");
    std::thread::spawn(move || relay(listener, real, tell));
    lab.hosts[0].docker_host = format!("unix://{}", socket.display());
    lab.hosts[0].start_agent(&endpoints, &[]);
    lab.hosts[0].docker_host = engine;
    eventually("the node is ready", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes"]).stdout).into_owned();
        if text.contains("Ready") { Ok(()) } else { Err(text) }
    });
    let host = &lab.hosts[0];
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let store = tokio
        .block_on(EtcdStore::connect(EtcdOptions::new(&endpoints)))
        .expect("etcd answers");

    let mut times = Vec::new();
    for index in 0..count {
        let name = format!("one{index}");
        let txn = person::txn().put(
            format!("/reeve/desired/default/service/{name}"),
            manifest(&name, 1),
            Guard::Any,
        );
        let begun = Instant::now();
        let _ = tokio.block_on(store.commit(txn)).expect("etcd answers");
        times.push(call(&calls, &format!("{name}.1")).at - begun);
        call(&calls, "/start");
        eventually("it runs", 30, || {
            if host.running().len() == index + 1 {
                Ok(())
            } else {
                Err("not yet".into())
            }
        });
    }
    show(
        "a manifest's put to the create that reaches the engine",
        &mut times,
        "goal 10 ms",
    );

    let (mut times, mut told) = (Vec::new(), Vec::new());
    for name in host.running() {
        while calls.try_recv().is_ok() {}
        let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", &name]);
        let begun = Instant::now();
        succeed(std::process::Command::new("kill").args(["-9", &pid]));
        let start = call(&calls, "/start");
        times.push(start.at - begun);
        let (since, until) = (start.wall.saturating_sub(start.at - begun), start.wall);
        let seconds = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
        let (since, until) = (seconds(since), seconds(until));
        let died = ["--filter", "event=die", "--format", "{{.TimeNano}}"];
        let died = host.docker(&[&["events", "--since", &since, "--until", &until], &died[..]].concat());
        if let Some(died) = died.lines().last().and_then(|text| text.trim().parse().ok()) {
            told.push(start.wall.saturating_sub(Duration::from_nanos(died)));
        }
    }
    show(
        "a container's main process killed, to the start that reaches the engine",
        &mut times,
        "the engine's own part included",
    );
    show(
        "the engine's word of a death, to the start that reaches it",
        &mut told,
        "goal p99 10 ms",
    );

    passed(&calls);
    let name = "fill";
    let txn = person::txn().put(
        format!("/reeve/desired/default/service/{name}"),
        manifest(name, 100usize.saturating_sub(count)),
        Guard::Any,
    );
    let _ = tokio.block_on(store.commit(txn)).expect("etcd answers");
    eventually("a hundred run", 120, || {
        let running = host.running().len();
        if running >= 100 {
            Ok(())
        } else {
            Err(format!("{running}"))
        }
    });
    let revision = || {
        let read = tokio.block_on(store.get("/reeve/cluster".as_bytes()));
        read.expect("etcd answers").revision
    };
    // At rest: what restarted has run long enough to be forgotten as a failure, and all is reported.
    let (mut before, mut since) = (revision(), Instant::now());
    eventually("nothing is written any more", 180, || {
        let now = revision();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        if since.elapsed() >= REST {
            Ok(())
        } else {
            Err(format!("revision {now}"))
        }
    });
    println!(
        "calls for {} more containers, until all rests: {}",
        100usize.saturating_sub(count),
        passed(&calls)
    );
    std::thread::sleep(REST);
    println!(
        "{} s of rest with {} containers: {} writes to the store (goal 0), calls to the engine: {}",
        REST.as_secs(),
        host.running().len(),
        revision() - before,
        passed(&calls)
    );
    println!(
        "resident memory at rest: agent {:.1} MB (goal 10), controller {:.1} MB (goal 15)",
        resident_mb(lab.hosts[0].agent().pid()),
        resident_mb(lab.process(controller).pid())
    );
}
