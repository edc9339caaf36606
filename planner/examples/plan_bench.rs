//! Times the cluster planner: cold plans, quiet ones, and after one lost node, at 1,000 and 5,000 nodes, and at 256 with a network
//! of the cluster's own beside the same without. Snapshots are
//! built in memory first, so that what is timed is from snapshot to plan, in time on a core.
//! `cargo run --release -p planner --example plan_bench`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use planner::cluster::{
    AcceptedEntry, AcceptedHistory, DesiredBody, DesiredEntry, Memo, NodeEntry, Plan, PlanOptions, Snapshot, Status,
    Stored, plan_again,
};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::network::{DEFAULT_DOMAIN, WIREGUARD_PORT};
use schemas::records::{
    Accepted, AcceptedBody, Addresses, Assignment, Backend, Breaker, Capacity, ClusterId, ClusterMarker, Digest,
    Engine, LinkKind, NetworkSettings, NodeFacts, NodeLink, Order, Phase, Record, Report, ReportedInstance,
    ReportedNetwork, SchemaVersion, SessionRecord, Uid, Verdict, VerdictRecord,
};
use schemas::service::ServiceSpec;
use schemas::units::{ByteSize, Cpu};

fn stored<T>(value: T) -> Stored<T> {
    Stored {
        create_revision: 1,
        mod_revision: 1,
        value: Ok(value),
    }
}

fn spec(at: usize, replicas: usize) -> ServiceSpec {
    let placement = match at % 4 {
        0 => serde_json::json!({}),
        1 => serde_json::json!({ "required": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] }),
        2 => serde_json::json!({ "spread": [{ "topologyKey": "zone", "maxSkew": 2 }] }),
        _ => {
            serde_json::json!({ "spread": [{ "topologyKey": "zone" }], "preferred": [{ "weight": 10, "expression": { "key": "disk", "operator": "In", "values": ["ssd"] } }] })
        }
    };
    serde_json::from_value(serde_json::json!({
        "replicas": replicas,
        "container": { "image": "registry.example/app:1", "resources": { "requests": { "cpu": "50m", "memory": "64Mi" } } },
        "placement": placement,
    }))
    .expect("a service")
}

fn snapshot(nodes: usize, services: usize, replicas: usize, network: bool) -> Snapshot {
    let settings = || NetworkSettings {
        cidr: "10.0.0.0/8".parse().expect("a range"),
        cidr6: None,
        node_prefix: 22,
        backend: Backend::Vxlan,
        domain: DEFAULT_DOMAIN.to_owned(),
        port: WIREGUARD_PORT,
        mtu: None,
        key_days: None,
    };
    let cluster = ClusterMarker {
        network: network.then(settings),
        schema_version: SchemaVersion::default(),
        id: ClusterId::from_random([1; 16]),
        restore_epoch: 0,
        moved: None,
        accepted_revision: None,
    };
    let mut snapshot = Snapshot {
        endpoints: BTreeMap::new(),
        policies: BTreeMap::new(),
        network_policies: BTreeMap::new(),
        virtual_ips: BTreeMap::new(),
        virtual_ip_statuses: BTreeMap::new(),
        peers: BTreeMap::new(),
        revision: 1_000,
        cluster: cluster.clone(),
        epoch: 5,
        complete: true,
        desired: BTreeMap::new(),
        accepted: BTreeMap::new(),
        nodes: BTreeMap::new(),
        service_statuses: BTreeMap::new(),
        node_statuses: BTreeMap::new(),
        file_statuses: BTreeMap::new(),
        secrets: BTreeMap::new(),
        acks: BTreeMap::new(),
        breaker: Breaker::default(),
    };
    for at in 0..nodes {
        let name: NodeName = format!("node-{at:05}").parse().expect("a name");
        let facts = NodeFacts {
            link: network.then(|| NodeLink {
                kind: Some(LinkKind::Vxlan),
                why: None,
                key: None,
                endpoints: vec![([172, 16, (at / 250) as u8, (at % 250) as u8], 4_789).into()],
                public_endpoint: None,
                proof: None,
            }),
            schema_version: SchemaVersion::default(),
            cluster: cluster.id.clone(),
            node: name.clone(),
            capacity: Capacity {
                // Enough for 600 instances, of which a node of a few hundred has many.
                cpu: Cpu { millis: 64_000 },
                memory: ByteSize(64 << 30),
            },
            addresses: Addresses::default(),
            engine: Engine::default(),
            agent_version: "0.1.0".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: [
                ("zone", ["a", "b", "c"][at % 3]),
                ("disk", ["ssd", "hdd"][at % 2]),
                ("reeve.os", "linux"),
                ("reeve.arch", "amd64"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        };
        let session = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: cluster.id.clone(),
            node: name.clone(),
            machine_id: String::new(),
            boot_id: String::new(),
            watermark: Order::default(),
        };
        let verdict = VerdictRecord {
            schema_version: SchemaVersion::default(),
            away: None,
            unsteady: false,
            off: false,
            silent: None,
            verdict: Verdict::Ready,
            reason: "test".to_owned(),
        };
        let report = Report {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: cluster.id.clone(),
            node: name.clone(),
            applied: Order::default(),
            instances: Vec::new(),
            conditions: Vec::new(),
        };
        let entry = NodeEntry {
            facts: Some(stored(facts)),
            session: Some(stored(session)),
            verdict: Some(stored(verdict)),
            cordon: None,
            assignment: None,
            report: Some(stored(Arc::new(report))),
            written: Default::default(),
        };
        snapshot.nodes.insert(name, entry);
    }
    for at in 0..services {
        let key = ResourceKey {
            namespace: Some(format!("team-{}", at % 20).parse().expect("a name")),
            kind: Kind::Service,
            name: format!("service-{at:05}").parse().expect("a name"),
        };
        let spec = spec(at, replicas);
        let record = Accepted {
            schema_version: SchemaVersion::default(),
            n: 1,
            uid: Uid::derive(&cluster.id, &key, 1),
            desired_revision: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body: AcceptedBody::Service(Box::new(spec.clone())),
        };
        let entry = AcceptedEntry {
            digest: Digest::of(&record.encode()),
            value: Ok(Arc::new(record)),
        };
        snapshot.accepted.insert(
            key.clone(),
            AcceptedHistory {
                records: [(1, entry)].into(),
            },
        );
        let desired = DesiredEntry {
            create_revision: 1,
            mod_revision: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body: DesiredBody::Service(Arc::new(spec)),
        };
        snapshot.desired.insert(key, desired);
    }
    snapshot
}

/// Executes a plan, and lets every agent obey at once.
fn obey(snapshot: &mut Snapshot, plan: &Plan) {
    for write in &plan.assignments {
        let assignment: &Assignment = &write.assignment;
        let entry = snapshot.nodes.entry(assignment.node.clone()).or_default();
        let instances = assignment
            .instances
            .iter()
            .filter(|one| one.state != schemas::records::AssignedState::Absent)
            .map(|one| ReportedInstance {
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
                addresses: one.address.map(IpAddr::V4).into_iter().collect(),
                exit_code: None,
                next: None,
                failing: None,
                conditions: Vec::new(),
                image: None,
                token: one.token,
            })
            .collect();
        let network = assignment.network.as_ref().map(|network| ReportedNetwork {
            subnet: network.subnet,
            lingering: Vec::new(),
        });
        let report = Report {
            network,
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: snapshot.cluster.id.clone(),
            node: assignment.node.clone(),
            applied: assignment.order,
            instances,
            conditions: Vec::new(),
        };
        entry.assignment = Some(stored(Arc::new(assignment.clone())));
        entry.report = Some(stored(Arc::new(report)));
    }
    for (key, status) in &plan.statuses {
        match status {
            Status::Service(status) => {
                snapshot.service_statuses.insert(key.clone(), stored(status.clone()));
            }
            Status::Node(status) => {
                snapshot
                    .node_statuses
                    .insert(key.name.as_str().parse().expect("a name"), stored(status.clone()));
            }
            Status::ConfigFile(status) => {
                snapshot.file_statuses.insert(key.clone(), stored(status.clone()));
            }
            Status::VirtualIp(status) => {
                snapshot.virtual_ip_statuses.insert(key.clone(), stored(status.clone()));
            }
        }
    }
    for (node, peer) in &plan.network.peers {
        let peer = peer.clone().map(|peer| (node.clone(), stored(Arc::new(peer))));
        snapshot.peers.extend(peer);
    }
    for (key, endpoints) in &plan.network.endpoints {
        let endpoints = endpoints.clone().map(|record| (key.clone(), stored(Arc::new(record))));
        snapshot.endpoints.extend(endpoints);
    }
    snapshot.breaker = plan.breaker.clone();
}

/// How long this process has been on a core, so that a busy machine counts for less. Linux counts it up every few
/// milliseconds only, which evens out in a mean.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.expect("Linux counts this"))
}

/// The mean of so many plans. With `warm` each knows what the one before found out, as a leader's do.
fn time(snapshot: &Snapshot, runs: u32, warm: bool) -> (Duration, Plan) {
    let options = PlanOptions {
        list_changes: false,
        ..PlanOptions::default()
    };
    let mut memo = Memo::default();
    let mut last = plan_again(snapshot, options, &mut memo);
    let mut total = Duration::ZERO;
    for _ in 0..runs {
        if !warm {
            memo = Memo::default();
        }
        let start = on_core();
        let plan = plan_again(snapshot, options, &mut memo);
        total += on_core().saturating_sub(start);
        last = plan;
    }
    (total / runs, last)
}

/// The most memory this process has had so far, in MB.
fn most_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.expect("Linux counts this") / 1024
}

fn main() {
    println!(
        "{:>6} {:>9} {:>9} {:>8} {:>9} {:>8} {:>14} {:>10} {:>13}",
        "nodes", "services", "replicas", "network", "cold ms", "its MB", "new leader ms", "quiet ms", "lost node ms"
    );
    let only = std::env::args().nth(1);
    for (nodes, services, replicas, network) in [
        (1_000, 30, 1_000, false),
        (1_000, 3_000, 10, false),
        (5_000, 150, 1_000, false),
        (5_000, 15_000, 10, false),
        (256, 5_000, 30, false),
        (256, 5_000, 30, true),
    ] {
        if only.as_ref().is_some_and(|only| *only != services.to_string()) {
            continue;
        }
        let mut snapshot = snapshot(nodes, services, replicas, network);
        let before = most_memory();
        let (cold, plan) = time(&snapshot, 9, false);
        let memory = most_memory().saturating_sub(before);
        obey(&mut snapshot, &plan);
        for _ in 0..3 {
            let (_, plan) = time(&snapshot, 1, false);
            obey(&mut snapshot, &plan);
        }
        let (new_leader, _) = time(&snapshot, 15, false);
        let (quiet, plan) = time(&snapshot, 25, true);
        assert!(plan.assignments.is_empty() && plan.rests(&snapshot), "it rests");
        let placed: usize = snapshot
            .nodes
            .values()
            .filter_map(|entry| entry.assignment.as_ref())
            .map(|a| a.value.as_ref().map_or(0, |a| a.instances.len()))
            .sum();
        assert_eq!(placed, services * replicas);
        let first = snapshot.nodes.values_mut().next().expect("a node");
        first.session = None;
        let lost = VerdictRecord {
            schema_version: SchemaVersion::default(),
            away: None,
            unsteady: false,
            off: true,
            silent: None,
            verdict: Verdict::Lost,
            reason: "test".to_owned(),
        };
        first.verdict = Some(stored(lost));
        let (after, plan) = time(&snapshot, 25, true);
        assert!(!plan.assignments.is_empty());
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1_000.0);
        println!(
            "{nodes:>6} {services:>9} {replicas:>9} {:>8} {:>9} {:>8} {:>14} {:>10} {:>13}",
            if network { "yes" } else { "no" },
            ms(cold),
            memory,
            ms(new_leader),
            ms(quiet),
            ms(after)
        );
    }
}
