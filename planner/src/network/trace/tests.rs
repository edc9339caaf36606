//! Ways of connections, each told by the hop that stops it.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Namespace;
use schemas::records::{
    AssignedNetwork, Backend, ClusterId, Endpoint, Endpoints, InForcePolicy, NetworkSettings, Policies, SchemaVersion,
};
use serde_json::json;

use super::*;

struct World {
    network: AssignedNetwork,
    endpoints: BTreeMap<ResourceKey, Arc<Endpoints>>,
    policies: BTreeMap<Namespace, Arc<Policies>>,
    nothing: BTreeSet<String>,
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("{text}"))
}

/// shop/web on n1, shop/db on n2, bank/vault on n1; only web may come to db, and at its port alone.
fn world() -> World {
    let cluster = ClusterId::from_random([7; 16]);
    let service = |namespace: &str, name: &str, node: &str, address: &str| {
        let key = ResourceKey {
            namespace: Some(parsed(namespace)),
            kind: Kind::Service,
            name: parsed(name),
        };
        let record = Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: cluster.clone(),
            ports: Vec::new(),
            instances: vec![Endpoint {
                slot: parsed("1"),
                node: parsed(node),
                address: parsed(address),
                address6: None,
                ready: true,
            }],
        };
        (key, Arc::new(record))
    };
    let policy = InForcePolicy {
        name: parsed("db-in"),
        spec: serde_json::from_value(
            json!({ "services": ["db"], "ingress": [{ "from": [{ "service": "cache" }] },
                { "from": [{ "service": "web" }], "ports": [{ "port": 5432 }] }] }),
        )
        .expect("a spec"),
    };
    let policies = Policies {
        schema_version: SchemaVersion::default(),
        cluster: cluster.clone(),
        policies: vec![policy],
    };
    World {
        network: AssignedNetwork {
            settings: NetworkSettings {
                cidr: parsed("10.210.0.0/16"),
                cidr6: None,
                node_prefix: 24,
                backend: Backend::Wireguard,
                domain: "reeve.internal".to_owned(),
                port: 51_820,
                mtu: None,
                key_days: None,
            },
            subnet: parsed("10.210.1.0/24"),
            subnet6: None,
            exposed: false,
        },
        endpoints: [
            service("shop", "web", "n1", "10.210.1.2"),
            service("shop", "db", "n2", "10.210.2.2"),
            service("bank", "vault", "n1", "10.210.1.3"),
        ]
        .into(),
        policies: [(parsed("shop"), Arc::new(policies))].into(),
        nothing: BTreeSet::new(),
    }
}

fn instance(namespace: &str, name: &str, node: &str, address: &str) -> End {
    let (workload, slot) = name.split_once('.').expect("an instance");
    End::Instance {
        name: InstanceName {
            namespace: parsed(namespace),
            workload: parsed(workload),
            slot: parsed(slot),
        },
        node: parsed(node),
        address: parsed(address),
        ready: true,
    }
}

fn web() -> End {
    instance("shop", "web.1", "n1", "10.210.1.2")
}

fn db() -> End {
    instance("shop", "db.1", "n2", "10.210.2.2")
}

fn vault() -> End {
    instance("bank", "vault.1", "n1", "10.210.1.3")
}

fn seen() -> Seen {
    Seen {
        link: Ok(Link {
            kind: Some("wireguard".to_owned()),
            refused: None,
            handshake_seconds: Some(12),
            routed: true,
            asked: 10,
            lost: 0,
            latency_micros: Some(420),
        }),
        knock: Ok(Knock::Open),
        exposed: false,
    }
}

fn traced(from: &End, to: &End, port: u16, seen: &Seen) -> Trace {
    let world = world();
    let input = Input {
        network: &world.network,
        bridge: "",
        links: &world.nothing,
        ports: &world.nothing,
        mac: None,
        local: &[],
        endpoints: &world.endpoints,
        policies: &world.policies,
        leads: &[],
    };
    let subnets = [
        (parsed("n1"), parsed("10.210.1.0/24")),
        (parsed("n2"), parsed("10.210.2.0/24")),
    ];
    let port = Port {
        number: port,
        protocol: Protocol::Tcp,
    };
    trace(&input, &subnets.into(), from, to, port, seen)
}

/// Each hop as `at=ok`.
fn way(trace: &Trace) -> String {
    let hops: Vec<String> = trace
        .hops
        .iter()
        .map(|hop| format!("{}={}", hop.at, hop.passed.word()))
        .collect();
    hops.join(" ")
}

#[test]
fn what_passes_names_the_rule_that_lets_it_in() {
    let trace = traced(&web(), &db(), 5432, &seen());
    assert_eq!(way(&trace), "from=ok leaves=ok link=ok enters=ok to=ok");
    assert!(trace.passes);
    assert_eq!(trace.verdict, "shop/web.1 to shop/db.1, port 5432/tcp: passes");
    assert_eq!(trace.hops[3].says, "rule 2 of NetworkPolicy db-in allows it");
    assert_eq!(
        trace.hops[2].says,
        "n1 to n2: wireguard, handshake 12 s ago, 0.4 ms, 0 of 10 pings lost"
    );
}

#[test]
fn what_is_stopped_names_what_stops_it() {
    let refused = |change: &dyn Fn(&mut Seen), from: &End, to: &End, port: u16| {
        let mut seen = seen();
        change(&mut seen);
        let trace = traced(from, to, port, &seen);
        assert!(!trace.passes, "{trace:?}");
        let hop = trace
            .hops
            .iter()
            .find(|hop| hop.passed == Passed::No)
            .expect("one stops it");
        assert!(trace.verdict.contains(&hop.says), "{}", trace.verdict);
        format!("{}: {}", hop.at, hop.says)
    };
    let nothing = |_: &mut Seen| {};
    assert_eq!(
        refused(&nothing, &web(), &db(), 80),
        "enters: NetworkPolicy db-in restricts what enters db, and no rule allows this at port 80/tcp"
    );
    assert_eq!(
        refused(&nothing, &vault(), &web(), 80),
        "enters: no NetworkPolicy of namespace shop lets anything in from namespace bank"
    );
    let link = |change: &dyn Fn(&mut Link)| {
        let change = |seen: &mut Seen| change(seen.link.as_mut().expect("a link"));
        refused(&change, &web(), &db(), 5432)
    };
    assert!(link(&|link| link.lost = 10).starts_with("link: n1 to n2: wireguard"));
    assert!(link(&|link| link.routed = false).ends_with("no route leads there"));
    assert!(link(&|link| link.refused = Some("it cannot encrypt".to_owned())).ends_with("no link: it cannot encrypt"));
    assert_eq!(
        refused(&|seen| seen.knock = Ok(Knock::Closed), &web(), &db(), 5432),
        "to: db.1 on n2, ready, but nobody listens at 10.210.2.2:5432"
    );
    let outside = End::Outside(parsed("192.168.1.1"));
    assert!(refused(&nothing, &outside, &web(), 80).contains("but by a published port"));
    let empty = End::Outside(parsed("10.210.7.7"));
    assert_eq!(
        refused(&nothing, &web(), &empty, 80),
        "enters: no instance has the address 10.210.7.7"
    );
    let (near, far) = (End::Node(parsed("n1")), End::Node(parsed("n2")));
    assert!(refused(&nothing, &near, &web(), 80).contains("reeve expose --node n1"));
    assert!(refused(&nothing, &web(), &far, 22).contains("by pings alone"));
    assert!(refused(&nothing, &End::Node(parsed("n9")), &web(), 22).contains("no part of the network"));
}

#[test]
fn hosts_go_their_own_way_and_what_is_not_known_is_said() {
    let exposed = Seen {
        exposed: true,
        ..seen()
    };
    let (near, far) = (End::Node(parsed("n1")), End::Node(parsed("n2")));
    assert!(traced(&near, &web(), 80, &exposed).passes);
    assert!(traced(&far, &web(), 80, &exposed).passes);
    assert!(!traced(&near, &db(), 5432, &exposed).passes, "a policy is about db");
    assert!(
        traced(&far, &db(), 5432, &exposed).passes,
        "its own host checks its health"
    );
    assert!(traced(&web(), &near, 80, &seen()).passes);
    assert!(traced(&web(), &End::Outside(parsed("1.1.1.1")), 443, &seen()).passes);
    let unknown = Seen {
        link: Err("n1 does not answer".to_owned()),
        ..seen()
    };
    let trace = traced(&web(), &db(), 5432, &unknown);
    assert_eq!(way(&trace), "from=ok leaves=ok link=unknown enters=ok to=ok");
    assert!(
        trace.passes
            && trace
                .verdict
                .ends_with("as far as can be seen; n1 to n2: n1 does not answer")
    );
}

#[test]
fn times_are_short() {
    assert_eq!(
        (seconds(119), seconds(120), seconds(7_200)),
        ("119 s".into(), "2 min".into(), "2 h".into())
    );
    let told: Vec<String> = [0, 40, 94, 95, 420, 9_949, 9_950, u32::MAX].map(millis).into();
    assert_eq!(told, ["0.00", "0.04", "0.09", "0.1", "0.4", "9.9", "10", "4294967"]);
}
