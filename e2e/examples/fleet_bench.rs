//! A whole fleet on one machine: a real etcd, a real `reeve controller`, and as many agents as asked for, each with its own
//! connection, session, watch and report, that say of every instance at once that it runs. What an engine takes is not in
//! these figures. Run by `make bench` with `AGENTS` (5,000) and `ROUNDS` (7), and with `SERVICES` (none): then the cluster has a network
//! and so many services of one instance, and it is measured how long after a node has come all others know its link. Prints
//! and judges nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use e2e::{Process, reeve, run};
use runtime::testing::Etcd;
use runtime::{
    EtcdOptions, EtcdStore, Fence, Guard, Outcome, Prefix, ReflectOptions, SessionOptions, Shutdown, Store, Txn,
    person, reflect, session,
};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::{
    Addresses, Assigned, AssignedState, Assignment, Capacity, ClusterId, ClusterMarker, Engine, NodeFacts, NodeLink,
    Phase, Record, Report, ReportedInstance, SchemaVersion, SessionRecord,
};
use schemas::units::{ByteSize, Cpu};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, Semaphore};

/// Instances on every node before the measured change comes.
const BASE: usize = 29;

/// What all agents share.
struct Fleet {
    url: String,
    root: Root,
    cluster: ClusterId,
    shutdown: Shutdown,
    /// Agents whose session is open and whose facts are written.
    joined: AtomicUsize,
    /// How many instances each agent's last acknowledged report holds, all agents together.
    running: AtomicUsize,
    /// Reports that had to be written again.
    again: AtomicUsize,
    moved: Notify,
    /// Agents that open a connection at the same moment.
    joining: Semaphore,
    /// Where the cluster has a network: told when an agent knows of a node's link.
    linked: Option<UnboundedSender<(NodeName, Instant)>>,
}

impl Fleet {
    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(600);
        while !reached(self) {
            assert!(
                Instant::now() < end,
                "{what}: {} joined, {} instances reported after 600 s",
                self.joined.load(Ordering::Relaxed),
                self.running.load(Ordering::Relaxed)
            );
            let _ = tokio::time::timeout(Duration::from_millis(20), self.moved.notified()).await;
        }
    }
}

fn reported(one: &Assigned) -> ReportedInstance {
    ReportedInstance {
        namespace: one.namespace.clone(),
        kind: one.kind,
        workload: one.workload.clone(),
        uid: one.uid.clone(),
        slot: one.slot.clone(),
        n: one.n,
        digest: one.digest.clone(),
        phase: Phase::Running,
        ready: true,
        container: Some("0123456789ab".to_owned()),
        restarts: 0,
        ports: one.ports.clone(),
        addresses: one.address.map(Into::into).into_iter().collect(),
        exit_code: None,
        next: None,
        failing: None,
        conditions: Vec::new(),
        image: None,
        token: None,
    }
}

/// A link of WireGuard, as a node says it.
fn link(number: usize) -> NodeLink {
    let [.., third, fourth] = number.to_be_bytes();
    let said = serde_json::json!({
        "kind": "wireguard",
        "key": format!("{number:0>42}A="),
        "endpoints": [format!("192.168.{third}.{fourth}:51820")],
    });
    serde_json::from_value(said).expect("a link")
}

/// Follows the other nodes' links, as every agent does.
async fn peers(store: EtcdStore, fleet: Arc<Fleet>, linked: UnboundedSender<(NodeName, Instant)>) {
    let prefix = Prefix::new(fleet.root.prefix("peers")).expect("a prefix");
    let mut reader = reflect(store, prefix, ReflectOptions::default(), &fleet.shutdown);
    let mut known = BTreeSet::new();
    while reader.changed().await.is_ok() {
        let Some(cache) = reader.snapshot() else { continue };
        for kv in cache.keys.iter() {
            if let Some(Key::Peer(node)) = fleet.root.parse(&kv.key)
                && known.insert(node.clone())
            {
                let _ = linked.send((node, Instant::now()));
            }
        }
    }
}

/// One agent: as the real one's end of the store, without an engine behind it.
async fn agent(fleet: Arc<Fleet>, number: usize) {
    let node: NodeName = format!("n{number:04}").parse().expect("a node's name");
    let (store, held) = {
        let _turn = fleet.joining.acquire().await;
        let store = EtcdStore::connect(EtcdOptions::new(&fleet.url))
            .await
            .expect("etcd answers");
        let value = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: fleet.cluster.clone(),
            node: node.clone(),
            machine_id: format!("m{number}"),
            boot_id: "b".to_owned(),
            watermark: Default::default(),
        };
        let options = SessionOptions {
            key: fleet.root.key(&Key::Session(node.clone())).into_bytes(),
            machine_id: format!("m{number}"),
            value: value.encode().into(),
            ttl: Duration::from_secs(15),
        };
        let held = session::open(&store, &options, None, &fleet.shutdown)
            .await
            .expect("a session");
        let facts = NodeFacts {
            link: fleet.linked.as_ref().map(|_| link(number)),
            schema_version: SchemaVersion::default(),
            cluster: fleet.cluster.clone(),
            node: node.clone(),
            capacity: Capacity {
                cpu: Cpu { millis: 8_000 },
                memory: ByteSize(32 << 30),
            },
            addresses: Addresses::default(),
            engine: Engine::default(),
            agent_version: "0.1.0".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: [("zone".to_owned(), format!("z{}", number % 3))].into(),
        };
        let key = fleet.root.key(&Key::Node(node.clone())).into_bytes();
        let txn = Txn::new(&Fence::session(&held)).put(key, facts.encode(), Guard::Absent);
        assert!(matches!(store.commit(txn).await, Ok(Outcome::Committed { .. })));
        (store, held)
    };
    if let Some(linked) = fleet.linked.clone() {
        tokio::spawn(peers(store.clone(), fleet.clone(), linked));
    }
    let fence = Fence::session(&held);
    let key = fleet.root.key(&Key::Assignment(node.clone()));
    let prefix = Prefix::exact(key.clone()).expect("a key without a slash at its end");
    let mut reader = reflect(store.clone(), prefix, ReflectOptions::default(), &fleet.shutdown);
    let report_key = fleet.root.key(&Key::Report(node.clone())).into_bytes();
    let mut guard = Guard::Absent;
    let mut said = 0;
    fleet.joined.fetch_add(1, Ordering::Relaxed);
    fleet.moved.notify_one();
    while reader.changed().await.is_ok() {
        let Some(kv) = reader
            .snapshot()
            .and_then(|cache| cache.keys.get(key.as_bytes()).cloned())
        else {
            continue;
        };
        let assignment = Assignment::decode(&kv.value).expect("an assignment");
        let present = assignment
            .instances
            .iter()
            .filter(|one| one.state == AssignedState::Present);
        let report = Report {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: fleet.cluster.clone(),
            node: node.clone(),
            applied: assignment.order,
            instances: present.map(reported).collect(),
            conditions: Vec::new(),
        };
        // Where no answer came in time it is read back, as the real agent does.
        loop {
            let txn = Txn::new(&fence).put(report_key.clone(), report.encode(), guard);
            match store.commit(txn).await {
                Ok(Outcome::Committed { revision }) => {
                    guard = Guard::Unchanged(revision);
                    break;
                }
                Ok(Outcome::FenceLost) => panic!("{node}: the session was lost"),
                Ok(Outcome::Conflict { .. }) | Err(_) => {}
            }
            fleet.again.fetch_add(1, Ordering::Relaxed);
            if let Ok(found) = store.get(&report_key).await {
                guard = found
                    .value
                    .map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision));
            }
        }
        let now = report.instances.len();
        fleet.running.fetch_add(now.wrapping_sub(said), Ordering::Relaxed);
        said = now;
        fleet.moved.notify_one();
    }
}

fn service(name: &str, many: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  {many}\n  container:\n    image: reeve/hello:1\n    resources: {{requests: {{cpu: 10m, memory: 16Mi}}}}\n"
    )
}

async fn put(store: &EtcdStore, root: &Root, name: &str, many: &str) {
    let key = format!("{root}desired/default/service/{name}");
    let txn = person::txn().put(key, service(name, many), Guard::Any);
    assert!(matches!(store.commit(txn).await, Ok(Outcome::Committed { .. })));
}

fn resident_mb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// How long after its put began a value reaches the one watcher it is for, while all others watch too.
async fn wake_ups(store: &EtcdStore, fleet: &Arc<Fleet>, watchers: usize, puts: usize) -> Vec<Duration> {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let ready = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..watchers {
        let (fleet, tell, ready) = (fleet.clone(), tell.clone(), ready.clone());
        tasks.spawn(async move {
            let turn = fleet.joining.acquire().await;
            let store = EtcdStore::connect(EtcdOptions::new(&fleet.url))
                .await
                .expect("etcd answers");
            drop(turn);
            let prefix = Prefix::exact(format!("/bench/{index}")).expect("a key");
            let mut reader = reflect(store, prefix, ReflectOptions::default(), &fleet.shutdown);
            let _ = reader.ready().await;
            let _ = reader.changed().await;
            ready.fetch_add(1, Ordering::Relaxed);
            while reader.changed().await.is_ok() {
                let _ = tell.send((index, Instant::now()));
            }
        });
    }
    while ready.load(Ordering::Relaxed) < watchers {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut times = Vec::new();
    for turn in 0..puts {
        let index = turn * 7 % watchers;
        let txn = person::txn().put(format!("/bench/{index}"), vec![b'x'; 6_000], Guard::Any);
        let begun = Instant::now();
        let _ = store.commit(txn).await;
        let committed = begun.elapsed();
        let (who, at) = told.recv().await.expect("a watcher tells");
        assert_eq!(who, index);
        times.push((at - begun).saturating_sub(committed));
    }
    times.sort();
    times
}

fn controller(etcd: &Etcd, dir: &std::path::Path) -> Process {
    let args = ["controller", "--etcd", &etcd.endpoints()];
    Process::start("controller", None, &reeve(), &args, &[], dir.join("controller.log"))
}

/// How long after a node has written what it has all others know its link, while the store holds so many services with addresses.
async fn joins(
    store: &EtcdStore,
    fleet: &Arc<Fleet>,
    agents: usize,
    services: usize,
    rounds: usize,
    linked: &mut UnboundedReceiver<(NodeName, Instant)>,
) {
    for index in 0..agents {
        tokio::spawn(agent(fleet.clone(), index));
    }
    let mut known = 0;
    while known < agents * agents {
        linked.recv().await.expect("agents go on");
        known += 1;
    }
    println!("{agents} nodes know each other's links");
    let begun = Instant::now();
    for index in 0..services {
        put(store, &fleet.root, &format!("one{index}"), "replicas: 1").await;
    }
    fleet
        .until("all services run", |fleet| {
            fleet.running.load(Ordering::Relaxed) == services
        })
        .await;
    println!(
        "{services} services of one instance with an address: written to all acknowledged in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let mut times = Vec::new();
    for round in 0..rounds {
        let begun = Instant::now();
        tokio::spawn(agent(fleet.clone(), agents + round));
        let name: NodeName = format!("n{:04}", agents + round).parse().expect("a node's name");
        let (mut others, mut last) = (0, begun);
        // Its own agent hears of it too.
        while others < agents + round + 1 {
            let (node, at) = linked.recv().await.expect("agents go on");
            if node == name {
                (others, last) = (others + 1, last.max(at));
            }
        }
        times.push(last - begun);
    }
    times.sort();
    println!(
        "from the start of a node's agent until all of {agents} nodes know its link: median {:.0} ms, most {:.0} ms of {rounds} (goal 2 s)",
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (agents, rounds) = (number("AGENTS", 5_000), number("ROUNDS", 7));
    let services = number("SERVICES", 0);
    let dir = tempfile::tempdir().expect("a directory");
    let etcd = Etcd::start_with(1, &["--quota-backend-bytes=8589934592"]).await;
    let store = etcd.store().await;
    let ran = run(std::process::Command::new(reeve()).args(["init", "--etcd", &etcd.endpoints()]));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    if services > 0 {
        let etcd = etcd.endpoints();
        let create = ["network", "create", "--cidr", "10.128.0.0/9", "--etcd", &etcd];
        let ran = run(std::process::Command::new(reeve()).args(create));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    let (tell, mut linked) = tokio::sync::mpsc::unbounded_channel();
    let root = Root::default();
    let marker = store
        .get(root.key(&Key::Cluster).as_bytes())
        .await
        .expect("etcd answers");
    let marker = ClusterMarker::decode(&marker.value.expect("init wrote it").value).expect("a marker");
    let fleet = Arc::new(Fleet {
        url: etcd.endpoints(),
        root: root.clone(),
        cluster: marker.id,
        shutdown: Shutdown::new(),
        joined: AtomicUsize::new(0),
        running: AtomicUsize::new(0),
        again: AtomicUsize::new(0),
        moved: Notify::new(),
        joining: Semaphore::new(64),
        linked: (services > 0).then_some(tell),
    });

    if services > 0 {
        let controller = controller(&etcd, dir.path());
        joins(&store, &fleet, agents, services, rounds, &mut linked).await;
        println!(
            "resident memory of the controller: {} MB",
            resident_mb(controller.pid())
        );
        return;
    }
    let times = wake_ups(&store, &fleet, agents.min(1_000), 500).await;
    println!(
        "from an answered write of 6 kB to the one of {} watchers it is for: median {:.1} ms, p99 {:.1} ms (goal 3 ms)",
        agents.min(1_000),
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() * 99 / 100].as_secs_f64() * 1e3
    );

    let controller = controller(&etcd, dir.path());
    let begun = Instant::now();
    for index in 0..agents {
        tokio::spawn(agent(fleet.clone(), index));
    }
    fleet
        .until("agents join", |fleet| fleet.joined.load(Ordering::Relaxed) == agents)
        .await;
    println!("{agents} agents joined in {:.1} s", begun.elapsed().as_secs_f64());
    // Leaders take a node as ready when they have seen it; the first service shows when all are.
    let begun = Instant::now();
    for index in 0..BASE {
        put(&store, &root, &format!("base{index}"), "mode: global").await;
    }
    fleet
        .until("the base runs", |fleet| {
            fleet.running.load(Ordering::Relaxed) == agents * BASE
        })
        .await;
    println!(
        "{} services, {} instances on {agents} nodes, all new: written to all acknowledged in {:.1} s",
        BASE,
        agents * BASE,
        begun.elapsed().as_secs_f64()
    );
    let mut times = Vec::new();
    let mut names = BTreeSet::new();
    for round in 0..rounds {
        let name = format!("more{round}");
        let begun = Instant::now();
        put(&store, &root, &name, "mode: global").await;
        names.insert(name);
        let wanted = agents * (BASE + names.len());
        fleet
            .until("one more runs", |fleet| fleet.running.load(Ordering::Relaxed) == wanted)
            .await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "one more service on each of them: written to all acknowledged in {:.2} s, median of {rounds} (goal 2 s, with {} instances)",
        times[times.len() / 2].as_secs_f64(),
        agents * (BASE + rounds)
    );
    println!(
        "reports that had no answer in time and were read back: {}",
        fleet.again.load(Ordering::Relaxed)
    );
    println!(
        "resident memory of the controller: {} MB (goal 120 MB)",
        resident_mb(controller.pid())
    );
}
