use super::*;

use std::sync::Arc;

use proptest::prelude::*;
use schemas::records::{
    Backend as Carrier, ClusterId, Endpoint, EndpointPort, Everywhere, InForcePolicy, SchemaVersion,
};

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("{text}"))
}

fn cluster() -> ClusterId {
    ClusterId::from_random([3; 16])
}

fn settings() -> NetworkSettings {
    NetworkSettings {
        cidr: parsed("10.88.0.0/16"),
        cidr6: None,
        node_prefix: 24,
        backend: Carrier::Vxlan,
        domain: "reeve.internal".to_owned(),
        port: 4789,
        mtu: None,
        key_days: None,
    }
}

fn key(namespace: &str, name: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some(parsed(namespace)),
        kind: Kind::Service,
        name: parsed(name),
    }
}

/// A service with one port; instances are (node, ready).
fn service(port: EndpointPort, instances: &[(u8, bool)]) -> Arc<Endpoints> {
    let instance = |(at, (node, ready)): (usize, &(u8, bool))| Endpoint {
        slot: parsed(&(at + 1).to_string()),
        node: parsed(&format!("n{node}")),
        address: parsed(&format!("10.88.{node}.{}", at + 2)),
        address6: None,
        ready: *ready,
    };
    Arc::new(Endpoints {
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        ports: vec![port],
        instances: instances.iter().enumerate().map(instance).collect(),
    })
}

fn port(name: &str, number: u16) -> EndpointPort {
    EndpointPort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Protocol::Tcp,
        everywhere: None,
    }
}

fn open(number: u16, host_port: u16, host_ip: Option<&str>) -> EndpointPort {
    EndpointPort {
        everywhere: Some(Everywhere {
            host_port,
            host_ip: host_ip.map(parsed),
            proxy_protocol: true,
        }),
        ..port("http", number)
    }
}

struct World {
    node: NodeName,
    settings: NetworkSettings,
    addresses: BTreeSet<IpAddr>,
    reaching: Vec<Reaching>,
    endpoints: BTreeMap<ResourceKey, Arc<Endpoints>>,
    policies: BTreeMap<Namespace, Arc<Policies>>,
}

impl World {
    fn new(connect: &str) -> Self {
        Self {
            node: parsed("n1"),
            settings: settings(),
            addresses: BTreeSet::from([parsed("192.0.2.1"), parsed("2001:db8::1")]),
            reaching: vec![Reaching {
                place: Place::Container("c".repeat(64)),
                namespace: parsed("shop"),
                connect: serde_json::from_str(connect).unwrap(),
            }],
            endpoints: BTreeMap::from([
                (
                    key("shop", "db"),
                    service(port("sql", 5432), &[(1, true), (2, false), (3, true)]),
                ),
                (key("other", "db"), service(port("sql", 6000), &[(2, true)])),
                (
                    key("shop", "web"),
                    service(open(80, 8080, None), &[(1, true), (2, true)]),
                ),
            ]),
            policies: BTreeMap::new(),
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            node: &self.node,
            settings: &self.settings,
            addresses: &self.addresses,
            lowest_port: 1,
            host_ips: None,
            reaching: &self.reaching,
            endpoints: &self.endpoints,
            policies: &self.policies,
        }
    }
}

fn said(one: &Listener) -> String {
    let place = match &one.place {
        Place::Node => "node",
        Place::Container(_) | Place::Process(_) => "inside",
    };
    let ip = one.ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
    format!("{place} {ip} {} -> {}", one.port, one.target)
}

fn backends(table: &Table, target: &str) -> Vec<String> {
    let all = table.targets[target].iter();
    all.map(|one| format!("{}{}", one.address, if one.here { " here" } else { "" }))
        .collect()
}

#[test]
fn a_table_has_what_containers_reach_and_what_is_open_everywhere_with_those_that_are_ready() {
    let world = World::new(
        r#"[{"port": 5432, "service": "db"}, {"port": 5433, "service": "db", "namespace": "other", "servicePort": "sql"},
            {"port": 1, "service": "nobody"}, {"port": 2, "service": "db", "servicePort": "no-such"}]"#,
    );
    let (table, left_out) = table(&world.input());
    assert_eq!(left_out, Vec::<String>::new());
    let all: Vec<String> = table.listeners.iter().map(said).collect();
    let wanted = [
        "node * 8080 -> shop/web:80/tcp",
        "inside * 1 -> shop/nobody:1/tcp",
        "inside * 2 -> shop/db:no-such/tcp",
        "inside * 5432 -> shop/db:5432/tcp",
        "inside * 5433 -> other/db:sql/tcp",
    ];
    assert_eq!(all, wanted);
    assert_eq!(
        backends(&table, "shop/db:5432/tcp"),
        ["10.88.1.2:5432 here", "10.88.3.4:5432"]
    );
    assert_eq!(backends(&table, "other/db:sql/tcp"), ["10.88.2.2:6000"]);
    assert_eq!(
        backends(&table, "shop/web:80/tcp"),
        ["10.88.1.2:80 here", "10.88.2.3:80"]
    );
    for empty in ["shop/nobody:1/tcp", "shop/db:no-such/tcp"] {
        assert_eq!(backends(&table, empty), Vec::<String>::new());
    }
    let text = serde_json::to_string(&table).unwrap();
    assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
}

#[test]
fn a_nodes_own_policy_says_which_of_its_ports_are_opened_and_on_which_addresses() {
    let mut world = World::new("[]");
    let own: [IpAddr; 1] = [parsed("192.0.2.1")];
    let of = |world: &World, lowest_port: u16, host_ips: Option<&[IpAddr]>| {
        let (table, left_out) = table(&Input {
            lowest_port,
            host_ips,
            ..world.input()
        });
        let all: Vec<String> = table.listeners.iter().map(said).collect();
        (all, left_out.len())
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(
        of(&world, 8080, None),
        (vec!["node * 8080 -> shop/web:80/tcp".to_owned()], 0)
    );
    assert_eq!(of(&world, 8081, None), (none.clone(), 1));
    let on_own = vec!["node 192.0.2.1 8080 -> shop/web:80/tcp".to_owned()];
    assert_eq!(of(&world, 1, Some(&own)), (on_own, 0));
    world
        .endpoints
        .insert(key("shop", "web"), service(open(80, 8080, Some("127.0.0.1")), &[]));
    assert_eq!(of(&world, 1, Some(&own)), (none, 1));
    // Answers to datagrams come from where was asked: each address has its own.
    let mut dns = open(53, 5353, None);
    dns.protocol = Protocol::Udp;
    world.endpoints.insert(key("shop", "web"), service(dns, &[]));
    let (all, _) = of(&world, 1, None);
    let target = "5353 -> shop/web:53/udp";
    let wanted = ["127.0.0.1", "192.0.2.1", "2001:db8::1"].map(|ip| format!("node {ip} {target}"));
    assert_eq!(all, wanted);
}

#[test]
fn who_comes_from_outside_is_let_in_as_the_policies_of_the_service_say() {
    let policy = |spec: &str| {
        let record = Policies {
            schema_version: SchemaVersion::default(),
            cluster: cluster(),
            policies: vec![InForcePolicy {
                name: parsed("p"),
                spec: serde_json::from_str(spec).unwrap(),
            }],
        };
        BTreeMap::from([(parsed("shop"), Arc::new(record))])
    };
    for (spec, outside, inside, except) in [
        (r#"{"services": ["other"], "ingress": []}"#, true, true, true),
        (r#"{"services": ["web"], "ingress": [{}]}"#, true, false, true),
        (
            r#"{"services": ["web"], "ingress": [{"ports": [{"port": 81}]}]}"#,
            false,
            false,
            false,
        ),
        (
            r#"{"services": ["web"], "ingress": [{"from": [{"namespace": "a"}]}]}"#,
            false,
            false,
            false,
        ),
        (
            r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]}}]}]}"#,
            true,
            false,
            false,
        ),
    ] {
        let mut world = World::new("[]");
        world.policies = policy(spec);
        let (table, _) = table(&world.input());
        let web = &table.listeners[0];
        for (from, wanted) in [
            ("203.0.113.5", outside),
            ("::ffff:203.0.113.5", outside),
            ("10.88.9.9", inside),
            ("198.51.100.7", except),
        ] {
            assert_eq!(web.admits(parsed(from)), wanted, "{spec} {from}");
        }
    }
}

#[test]
fn a_header_says_who_came_as_the_specification_has_it() {
    let header = proxy_header(parsed("192.0.2.7:1025"), parsed("198.51.100.8:443"));
    let wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x08\x04\x01\x01\xbb";
    assert_eq!(header, wanted);
    assert_eq!(
        proxy_header(parsed("[::ffff:192.0.2.7]:1025"), parsed("198.51.100.8:443")),
        wanted
    );
    let six = proxy_header(parsed("[2001:db8::1]:1"), parsed("[::1]:2"));
    assert_eq!((six.len(), six[13], &six[14..16]), (52, 0x21, &[0_u8, 36][..]));
}

#[test]
fn the_kernel_leads_past_the_relay_only_ports_that_the_relay_has_and_only_to_who_is_ready_here() {
    let mut world = World::new(r#"[{"port": 5432, "service": "db"}]"#);
    let quiet = |host_port: u16, name: &str| {
        let mut port = open(80, host_port, None);
        port.everywhere.as_mut().unwrap().proxy_protocol = false;
        port.name = Some(name.to_owned());
        port
    };
    let all = [(1, true), (1, false), (2, true), (1, true)];
    world
        .endpoints
        .insert(key("shop", "front"), service(quiet(9000, "http"), &all));
    world.endpoints.insert(
        key("shop", "far"),
        service(quiet(9001, "http"), &[(2, true), (1, false)]),
    );
    let (table, _) = table(&world.input());
    let every: BTreeSet<Held> = table.listeners.iter().filter_map(Listener::held).collect();
    assert_eq!(every.len(), 3, "those of containers are none: {every:?}");
    let found = leads(&table, &every);
    let at = Held {
        protocol: Protocol::Tcp,
        ip: None,
        port: 9000,
    };
    let wanted = Lead {
        at,
        target: "shop/front:80/tcp".to_owned(),
        to: vec![parsed("10.88.1.2:80"), parsed("10.88.1.5:80")],
    };
    // 8080 says who came; of 9001 nobody is ready here.
    let wanted = [wanted];
    assert_eq!(found, wanted);
    assert_eq!(leads(&table, &BTreeSet::from([at])), wanted);
    assert_eq!(leads(&table, &BTreeSet::new()), []);
    let on_one = Held {
        ip: Some(parsed("192.0.2.1")),
        ..at
    };
    assert_eq!(leads(&table, &BTreeSet::from([on_one])), [], "another listener");
}

fn drawn() -> impl Strategy<Value = Vec<Backend>> {
    let one = (0_u8..40, any::<bool>());
    prop::collection::btree_map(0_u8..40, one, 0..12).prop_map(|all| {
        let backend = |(at, (_, here))| Backend {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, at)), 80),
            here,
        };
        all.into_iter().map(backend).collect()
    })
}

proptest! {
    #[test]
    fn each_is_tried_once_who_failed_last_who_is_here_first_and_each_is_first_in_its_turn(
        all in drawn(), turn in any::<u64>(), here_first: bool, failed in prop::collection::btree_set(0_u8..40, 0..6),
    ) {
        let failed = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => failed.contains(&ip.octets()[3]),
            IpAddr::V6(_) => false,
        };
        let found = order(&all, turn, here_first, &failed);
        let each: BTreeSet<SocketAddr> = found.iter().copied().collect();
        prop_assert_eq!(each.len(), all.len());
        prop_assert_eq!(found.len(), all.len());
        let here: BTreeMap<SocketAddr, bool> = all.iter().map(|one| (one.address, one.here)).collect();
        let rank = |address: &SocketAddr| (failed(address), here_first && !here[address]);
        prop_assert!(found.windows(2).all(|two| rank(&two[0]) <= rank(&two[1])));
        // As many turns as there are have each of the best first once, where they are alike.
        if all.iter().all(|one| rank(&one.address) == rank(&all[0].address)) {
            let from = turn % 1_000;
            let firsts: BTreeSet<SocketAddr> = (0..all.len() as u64)
                .filter_map(|step| order(&all, from + step, here_first, &failed).first().copied())
                .collect();
            prop_assert_eq!(firsts.len(), all.len());
        }
    }

    #[test]
    fn a_flow_stays_with_its_instance_while_that_is_ready_and_something_is_said(
        acts in prop::collection::vec((0_u8..6, 0_u8..8, 0_u64..50), 0..200), limit in 1_usize..6,
    ) {
        const IDLE: u64 = 60;
        let client = |at: u8| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, at)), 9);
        let backend = |at: u8| Backend { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, at)), 53), here: false };
        let mut flows: Flows<u8> = Flows::new(limit, IDLE);
        // What is so, plainly: the instance and the last time.
        let mut model: BTreeMap<u8, (u8, u64)> = BTreeMap::new();
        let mut now = 0;
        let mut ready: Vec<Backend> = (0..4).map(backend).collect();
        for (act, at, later) in acts {
            now += later;
            match act {
                0 => ready = (0..4).filter(|one| *one != at % 4).map(backend).collect(),
                1 => {
                    flows.sweep(now);
                    model.retain(|_, (_, used)| now - *used < IDLE);
                }
                2 => {
                    flows.touch(&client(at), now);
                    if let Some((_, used)) = model.get_mut(&at) { *used = now; }
                }
                _ => {
                    let known = model.get(&at).copied().filter(|(of, _)| ready.contains(&backend(*of)));
                    let found = flows.find(&client(at), now, &ready).copied();
                    prop_assert_eq!(found, known.map(|(of, _)| of));
                    if let Some((of, _)) = known {
                        model.insert(at, (of, now));
                        continue;
                    }
                    model.remove(&at);
                    let of = at % 4;
                    if flows.put(client(at), backend(of).address, now, of) {
                        if model.len() >= limit { model.retain(|_, (_, used)| now - *used < IDLE); }
                        model.insert(at, (of, now));
                    } else {
                        model.retain(|_, (_, used)| now - *used < IDLE);
                        prop_assert_eq!(model.len(), limit);
                    }
                }
            }
            prop_assert!(flows.len() <= limit);
            prop_assert_eq!(flows.len(), model.len());
            prop_assert_eq!(flows.is_empty(), model.is_empty());
        }
    }
}
