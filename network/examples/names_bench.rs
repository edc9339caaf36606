//! How fast a node's names' server answers, with 5,000 services of 30 instances and records that change all the while: over
//! real sockets, from a process of its own. For people: nothing passes or fails. `scripts/bench.sh names` runs it.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use network::detached::{self, Program};
use network::names::{Copy, Options, Part, Server, Settings, health, serve, tell};
use schemas::container::Protocol;
use schemas::names::{Namespace, ResourceName, Slot};
use schemas::records::{Endpoint, EndpointPort, Endpoints, SchemaVersion};

const SERVICES: u32 = 5_000;
const INSTANCES: u32 = 30;
const SPACES: u32 = 50;
const LISTEN: &str = "127.0.0.77:5377";

fn namespace(number: u32) -> Namespace {
    format!("space{}", number % SPACES).parse().unwrap()
}

fn name(number: u32) -> ResourceName {
    format!("service{number}").parse().unwrap()
}

fn address(service: u32, instance: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f10_0000 + service * INSTANCES + instance)
}

fn record(service: u32, turn: u32) -> Endpoints {
    Endpoints {
        schema_version: SchemaVersion::default(),
        cluster: "c0ffee00c0ffee00c0ffee00c0ffee00".parse().unwrap(),
        ports: vec![EndpointPort {
            name: Some("http".to_owned()),
            port: 80,
            protocol: Protocol::Tcp,
            everywhere: None,
        }],
        instances: (0..INSTANCES)
            .map(|at| Endpoint {
                slot: Slot::Index(at + 1),
                node: format!("node{}", (service + at) % 5_000).parse().unwrap(),
                address: address(service, at),
                address6: None,
                ready: at != turn % INSTANCES,
            })
            .collect(),
    }
}

fn question(drawn: u32, space: u32) -> Vec<u8> {
    // Services of one namespace: every SPACES-th.
    let service = drawn / 8 % (SERVICES / SPACES) * SPACES + space;
    let plain = format!("service{service}.space{space}.reeve.internal.");
    let (name, kind) = match drawn % 8 {
        0..=3 => (plain, RecordType::A),
        4 | 5 => (plain, RecordType::AAAA),
        6 => (format!("_http._tcp.{plain}"), RecordType::SRV),
        _ => (format!("none.{plain}"), RecordType::A),
    };
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks one question after the other for some seconds, from several askers of one namespace; how long each took.
fn ask(seed: u32, pause: Duration, until: &AtomicBool) -> Vec<Duration> {
    let space = seed % SPACES;
    let sockets: Vec<UdpSocket> = (0..16)
        .map(|at| {
            let socket = UdpSocket::bind((address(space, at), 0)).unwrap();
            socket.connect(LISTEN).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        })
        .collect();
    let questions: Vec<Vec<u8>> = (0..1_000).map(|at| question(at * 7 + seed, space)).collect();
    let mut took = Vec::new();
    let mut buffer = [0; 4096];
    let mut at = 0;
    while !until.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let socket = &sockets[at % sockets.len()];
        socket.send(&questions[at % questions.len()]).unwrap();
        socket.recv(&mut buffer).expect("an answer within 5 s");
        took.push(begun.elapsed());
        at += 1;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    took
}

fn say(what: &str, mut took: Vec<Duration>, seconds: f64) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() * part / 1000).min(took.len() - 1)];
    println!(
        "{what}: {:.0} answers a second; p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        took.len() as f64 / seconds,
        at(500),
        at(990),
        at(999),
        took[took.len() - 1]
    );
}

fn memory(server: &Server) -> u64 {
    let running = detached::look(&server.place()).unwrap().unwrap();
    let path = format!("/proc/{}/status", running.pid.unwrap().as_raw_nonzero());
    let text = std::fs::read_to_string(Path::new(&path)).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn main() {
    if let Some(dir) = std::env::args_os().nth(1) {
        let options = Options {
            dir: dir.into(),
            listen: vec![LISTEN.parse().unwrap()],
            resolv_conf: "/dev/null".into(),
        };
        panic!("{:?}", serve(options));
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server {
        dir: dir.path().join("names"),
        listen: vec![LISTEN.parse::<SocketAddr>().unwrap()],
    };
    let program = Program {
        place: server.place(),
        path: detached::own_program(),
        args: vec![server.dir.clone().into()],
        env: Vec::new(),
    };
    let mut copy = Copy::open(&server.dir).unwrap();
    copy.settings(&Settings {
        domain: "reeve.internal".to_owned(),
        cidr: "127.0.0.0/8".parse().unwrap(),
        cidr6: None,
        servers: vec!["127.0.0.77".parse().unwrap()],
        hosts: Default::default(),
    })
    .unwrap();
    let begun = Instant::now();
    for service in 0..SERVICES {
        copy.put(&namespace(service), &name(service), &record(service, 0))
            .unwrap();
    }
    println!("{SERVICES} services of {INSTANCES}: written in {:?}", begun.elapsed());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let never = AtomicBool::new(false);
    let first = |text: &str| {
        let begun = Instant::now();
        runtime.block_on(server.ensure_program(program.clone())).unwrap();
        let stop = &never;
        let socket = UdpSocket::bind((address(0, 0), 0)).unwrap();
        socket.connect(LISTEN).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let question = question(0, 0);
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let _ = socket.send(&question);
            if socket.recv(&mut buffer).is_ok() {
                break;
            }
        }
        println!("{text}: {:?} until the first answer", begun.elapsed());
    };
    first("started");
    runtime.block_on(server.stop()).unwrap();
    first("started again");
    let told = runtime.block_on(health(&server.dir)).unwrap();
    println!(
        "it knows {} services, {} instances: {} MB resident",
        told.services,
        told.instances,
        memory(&server)
    );
    for (what, threads, pause, changes) in [
        ("at rest, 1 asker, 1,000 a second", 1, Duration::from_millis(1), false),
        (
            "100 records a second change, 4 askers, 4,000 a second",
            4,
            Duration::from_millis(1),
            true,
        ),
        (
            "100 records a second change, 2 askers, as fast as they can",
            2,
            Duration::ZERO,
            true,
        ),
    ] {
        let until = AtomicBool::new(false);
        let begun = Instant::now();
        let took: Vec<Duration> = std::thread::scope(|scope| {
            let until = &until;
            let askers: Vec<_> = (0..threads)
                .map(|seed| scope.spawn(move || ask(seed, pause, until)))
                .collect();
            let mut slowest = Duration::ZERO;
            for turn in 0..500_u32 {
                if changes {
                    let service = turn * 37 % SERVICES;
                    let changed = Instant::now();
                    copy.put(&namespace(service), &name(service), &record(service, turn + 1))
                        .unwrap();
                    runtime
                        .block_on(tell(&server.dir, [Part::Service(namespace(service), name(service))]))
                        .unwrap();
                    slowest = slowest.max(changed.elapsed());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            until.store(true, Ordering::Relaxed);
            if changes {
                println!("  a change was in force after {slowest:?} at most");
            }
            askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect()
        });
        say(what, took, begun.elapsed().as_secs_f64());
    }
    println!("{} MB resident at the end", memory(&server));
    runtime.block_on(server.stop()).unwrap();
}
