//! A real controller, in a process of its own, over a real etcd with the records of a large cluster: the time of its first
//! pass, of a quiet one and of one after a change, its memory, and what a scrape costs. The agents are played: each writes
//! facts, a session and a report of what it is assigned.
//! `cargo run --release -p controller --example scale_bench [nodes] [services] [replicas]`; 5,000, 150 and 1,000 by
//! default. Needs `etcd` in the path.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runtime::testing::Etcd;
use runtime::{EtcdOptions, EtcdStore, Guard, Outcome, Prefix, Shutdown, Store, Txn, person};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::{
    Addresses, AssignedState, Assignment, Capacity, ClusterId, ClusterMarker, Engine, NodeFacts, Order, Phase, Record,
    Report, ReportedInstance, SchemaVersion, SessionRecord,
};
use schemas::units::{ByteSize, Cpu};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Failure = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, url, port] = arguments.as_slice()
        && word == "controller"
    {
        return control(url, port.parse()?).await;
    }
    let number = |at: usize, default: u32| -> Result<u32, Failure> {
        Ok(arguments
            .get(at)
            .map(|text| text.parse())
            .transpose()?
            .unwrap_or(default))
    };
    bench(number(0, 5_000)?, number(1, 150)?, number(2, 1_000)?).await
}

/// The child: nothing but a controller.
async fn control(url: &str, port: u16) -> Result<(), Failure> {
    let store = EtcdStore::connect(EtcdOptions::new(url)).await?;
    let mut options = controller::ControllerOptions::new(store, Root::default(), "bench");
    options.http_addr = Some(([127, 0, 0, 1], port).into());
    controller::run(options, Shutdown::new()).await?;
    Ok(())
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

async fn write(store: &EtcdStore, txns: Vec<Txn>) -> Result<(), Failure> {
    for outcome in store.batch(txns).await {
        if !matches!(outcome?, Outcome::Committed { .. }) {
            return Err("the store has something else".into());
        }
    }
    Ok(())
}

async fn bench(nodes: u32, services: u32, replicas: u32) -> Result<(), Failure> {
    let etcd = Etcd::start_with(1, &["--unsafe-no-fsync", "--snapshot-count", "5000"]).await;
    let store = etcd.store().await;
    let root = Root::default();
    let marker = ClusterMarker {
        network: Default::default(),
        schema_version: SchemaVersion::default(),
        id: cluster(),
        restore_epoch: 0,
        moved: None,
        accepted_revision: None,
    };
    let put = |key: &Key, value: Vec<u8>| person::txn().put(root.key(key), value, Guard::Any);
    write(&store, vec![put(&Key::Cluster, marker.encode())]).await?;
    let lease = store.lease_grant(Duration::from_secs(86_400)).await?;
    let mut txns = Vec::new();
    for n in 0..nodes {
        let node: NodeName = format!("node-{n:04}").parse()?;
        txns.push(put(&Key::Node(node.clone()), facts(&node, n).encode()));
        let session = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: cluster(),
            node: node.clone(),
            machine_id: format!("{n:032x}"),
            boot_id: format!("{n:036x}"),
            watermark: Order::default(),
        };
        let key = root.key(&Key::Session(node));
        txns.push(person::txn().put_leased(key, session.encode(), Guard::Absent, lease.id));
    }
    for n in 0..services {
        let text = format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: service-{n:04}\nspec:\n  replicas: {replicas}\n  \
             container:\n    image: registry.example/team/service:1.{n}\n    env: {{A: one, B: two}}\n",
        );
        let key = format!("{root}desired/default/service/service-{n:04}");
        txns.push(person::txn().put(key, text, Guard::Absent));
    }
    write(&store, txns).await?;

    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let begun = Instant::now();
    let child = Command::new(std::env::current_exe()?)
        .args(["controller", etcd.url(0), &port.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    let child = Killed(child);
    let mut first = true;
    let mut settled = 0.0;
    let mut reported: BTreeMap<NodeName, Order> = BTreeMap::new();
    // Until nothing changes any more: each report lets the controller go on.
    loop {
        let listing = store.list(&Prefix::new(root.prefix("assignments"))?).await?;
        let mut reports = Vec::new();
        for kv in &listing.kvs {
            let assignment = Assignment::decode(&kv.value)?;
            if reported.get(&assignment.node) != Some(&assignment.order) {
                reported.insert(assignment.node.clone(), assignment.order);
                reports.push(put(&Key::Report(assignment.node.clone()), report(&assignment).encode()));
            }
        }
        if first && !reports.is_empty() {
            first = false;
            println!("first assignments after      {:>9.2?}", begun.elapsed());
        }
        let quiet = reports.is_empty();
        write(&store, reports).await?;
        let now = metric(port, "reeve_controller_settled_revision").await.unwrap_or(0.0);
        if quiet && now > 0.0 && now >= listing.revision as f64 && (now - settled).abs() < 0.5 {
            break;
        }
        settled = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if begun.elapsed() > Duration::from_secs(300) {
            println!("no rest: settled at {settled}, the store is at {}", listing.revision);
            break;
        }
    }
    println!("all ready and at rest after  {:>9.2?}", begun.elapsed());
    println!("resident, at rest            {:>9} kB", resident(&child)?);
    told(port).await?;

    // A quiet pass: something changes that asks for nothing.
    let (before, cpu) = (passes(port).await, seconds(&child)?);
    for n in 0..50 {
        let node: NodeName = format!("node-{n:04}").parse()?;
        let mut facts = facts(&node, n);
        facts.agent_version = "later".to_owned();
        write(&store, vec![put(&Key::Node(node), facts.encode())]).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let after = passes(port).await;
    let count = after.0 - before.0;
    let each = |sum: f64| 1000.0 * sum / count;
    println!(
        "{count} passes over one change each: observe {:.1} ms, plan {:.1} ms, whole {:.1} ms; {:.0} ms of CPU each",
        each(after.1 - before.1),
        each(after.2 - before.2),
        each(after.3 - before.3),
        each(seconds(&child)? - cpu),
    );
    let cpu = seconds(&child)?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("idle for 5 s                 {:>9.3} s of CPU", seconds(&child)? - cpu);
    println!("resident, after that         {:>9} kB", resident(&child)?);
    for path in ["/metrics", "/metrics", "/sd", "/sd"] {
        let begun = Instant::now();
        let text = get(port, path).await.ok_or("no answer")?;
        let (took, lines) = (begun.elapsed(), text.lines().count());
        println!("{path:<9} {took:>9.2?} {:>9} bytes {lines:>7} lines", text.len());
    }
    println!("resident, after scrapes      {:>9} kB", resident(&child)?);
    let mut classes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for kv in store.list(&Prefix::new(root.as_str())?).await?.kvs {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let class = key.split('/').nth(2).unwrap_or_default().to_owned();
        let (count, bytes) = classes.entry(class).or_default();
        (*count, *bytes) = (*count + 1, *bytes + kv.key.len() + kv.value.len());
    }
    for (class, (count, bytes)) in classes {
        println!("  {class:<12} {count:>6} keys {:>7} kB", bytes / 1024);
    }
    Ok(())
}

fn facts(node: &NodeName, n: u32) -> NodeFacts {
    NodeFacts {
        link: None,
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: node.clone(),
        capacity: Capacity {
            cpu: Cpu { millis: 64_000 },
            memory: ByteSize(256 << 30),
        },
        addresses: Addresses {
            host: Vec::new(),
            agent: Some(format!("10.{}.{}.{}:9464", n >> 16, (n >> 8) & 255, n & 255)),
            api: None,
            public: None,
        },
        engine: Engine::default(),
        agent_version: "bench".to_owned(),
        roles: Vec::new(),
        sealing_key: None,
        labels: BTreeMap::from([("zone".to_owned(), format!("z{}", n % 3))]),
    }
}

fn report(assignment: &Assignment) -> Report {
    let there = assignment
        .instances
        .iter()
        .filter(|instance| instance.state != AssignedState::Absent);
    let instances = there.map(|instance| ReportedInstance {
        namespace: instance.namespace.clone(),
        kind: instance.kind,
        workload: instance.workload.clone(),
        uid: instance.uid.clone(),
        slot: instance.slot.clone(),
        n: instance.n,
        digest: instance.digest.clone(),
        phase: if instance.state == AssignedState::Present {
            Phase::Running
        } else {
            Phase::Prepared
        },
        ready: instance.state == AssignedState::Present,
        container: None,
        restarts: 0,
        ports: instance.ports.clone(),
        addresses: Vec::new(),
        exit_code: None,
        next: None,
        failing: None,
        conditions: Vec::new(),
        image: None,
        token: None,
    });
    Report {
        network: Default::default(),
        virtual_ips: Default::default(),
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: assignment.node.clone(),
        applied: assignment.order,
        instances: instances.collect(),
        conditions: Vec::new(),
    }
}

fn resident(child: &Killed) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id()))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

/// User and system time, in seconds.
fn seconds(child: &Killed) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.0.id()))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

async fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

async fn metric(port: u16, series: &str) -> Option<f64> {
    value(&get(port, "/metrics").await?, series)
}

fn value(text: &str, series: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Passes, and what they took in all: observing, planning, everything; in seconds.
async fn passes(port: u16) -> (f64, f64, f64, f64) {
    let text = get(port, "/metrics").await.unwrap_or_default();
    let of = |series: &str| value(&text, series).unwrap_or(0.0);
    (
        of("reeve_controller_plan_seconds_count"),
        of("reeve_controller_observe_seconds_sum"),
        of("reeve_controller_plan_seconds_sum"),
        of("reeve_controller_pass_seconds_sum"),
    )
}

async fn told(port: u16) -> Result<(), Failure> {
    let text = get(port, "/metrics").await.ok_or("no answer")?;
    let wanted = [
        "reeve_controller_passes_total",
        "reeve_controller_writes_total",
        "reeve_controller_plan_seconds_bucket",
    ];
    for line in text.lines() {
        if wanted.iter().any(|series| line.starts_with(series)) && !line.ends_with(" 0") {
            println!("  {line}");
        }
    }
    Ok(())
}
