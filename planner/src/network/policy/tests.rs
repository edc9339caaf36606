use schemas::kinds::Kind;
use schemas::records::{Backend, ClusterId, Endpoint, InForcePolicy, NetworkSettings, SchemaVersion};
use serde_json::json;

use super::*;

struct World {
    network: AssignedNetwork,
    links: BTreeSet<String>,
    ports: BTreeSet<String>,
    local: Vec<Local>,
    endpoints: BTreeMap<ResourceKey, Arc<Endpoints>>,
    policies: BTreeMap<Namespace, Arc<Policies>>,
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("{text}"))
}

impl World {
    fn new() -> Self {
        Self {
            network: AssignedNetwork {
                settings: NetworkSettings {
                    cidr: parsed("10.210.0.0/16"),
                    cidr6: Some(parsed("fd10:210::/64")),
                    node_prefix: 24,
                    backend: Backend::Wireguard,
                    domain: "reeve.internal".to_owned(),
                    port: 51_820,
                    mtu: None,
                    key_days: None,
                },
                subnet: parsed("10.210.1.0/24"),
                subnet6: Some(parsed("fd10:210::1:0/112")),
                exposed: false,
            },
            links: BTreeSet::from(["rvwg0".to_owned()]),
            ports: BTreeSet::new(),
            local: Vec::new(),
            endpoints: BTreeMap::new(),
            policies: BTreeMap::new(),
        }
    }

    /// An instance, here if its address is of this node's.
    fn runs(mut self, namespace: &str, service: &str, address: &str) -> Self {
        let address: Ipv4Addr = parsed(address);
        let key = ResourceKey {
            namespace: Some(parsed(namespace)),
            kind: Kind::Service,
            name: parsed(service),
        };
        let empty = Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([7; 16]),
            ports: Vec::new(),
            instances: Vec::new(),
        };
        let entry = self.endpoints.entry(key).or_insert_with(|| Arc::new(empty));
        let place = u128::from(u32::from(address) & 0xffff);
        let (node, host) = (place >> 8, place & 0xff);
        Arc::make_mut(entry).instances.push(Endpoint {
            slot: parsed("1"),
            node: parsed("n1"),
            address,
            address6: Some(Ipv6Addr::from(
                u128::from(parsed::<Ipv6Addr>("fd10:210::")) | (node << 16) | host,
            )),
            ready: true,
        });
        if self.network.subnet.contains(&address) {
            self.local.push(Local {
                address,
                namespace: parsed(namespace),
                service: parsed(service),
                published: Vec::new(),
                plug: None,
                hears6: BTreeSet::new(),
            });
        }
        self
    }

    fn policy(mut self, namespace: &str, name: &str, spec: serde_json::Value) -> Self {
        let empty = Policies {
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([7; 16]),
            policies: Vec::new(),
        };
        let entry = self.policies.entry(parsed(namespace));
        let entry = Arc::make_mut(entry.or_insert_with(|| Arc::new(empty)));
        entry.policies.push(InForcePolicy {
            name: parsed(name),
            spec: serde_json::from_value(spec).expect("a spec"),
        });
        self
    }

    fn input(&self) -> Input<'_> {
        Input {
            network: &self.network,
            bridge: "rv-t",
            links: &self.links,
            ports: &self.ports,
            mac: Some([2, 0, 0, 0, 0, 1]),
            local: &self.local,
            endpoints: &self.endpoints,
            policies: &self.policies,
            leads: &[],
        }
    }

    fn rules(&self) -> Ruleset {
        rules(&self.input())
    }

    fn chain(&self, name: &str) -> String {
        let text = self.rules().whole("reeve_t");
        let from = text.split(&format!("\tchain {name} {{\n")).nth(1).expect("the chain");
        let lines = from.lines().take_while(|line| *line != "\t}");
        lines.map(|line| line.trim().to_owned() + "\n").collect()
    }

    fn judged(&self, from: &str, to: &str, port: u16) -> Judged {
        let packet = Packet {
            from: parsed(from),
            to: parsed(to),
            protocol: Protocol::Tcp,
            port,
            published: false,
        };
        judge(&self.input(), &packet)
    }
}

#[test]
fn a_service_that_no_policy_is_about_is_reached_from_its_namespace_hosts_and_by_published_ports() {
    let world = World::new()
        .runs("shop", "web", "10.210.1.2")
        .runs("shop", "db", "10.210.2.2")
        .runs("other", "web", "10.210.2.3");
    assert_eq!(
        world.chain("in.shop.web"),
        "ip saddr @ns.shop.4 accept\nip6 saddr @ns.shop.6 accept\n\
         ip saddr 10.210.0.0/16 ip saddr & 0.0.0.254 == 0.0.0.0 accept\n\
         ip6 saddr fd10:210::/64 ip6 saddr & ::fffe == :: accept\n\
         ct status dnat accept\ncounter goto refuse\n"
    );
    let text = world.rules().whole("t");
    assert!(text.contains("elements = { 10.210.1.2, 10.210.2.2 }"), "{text}");
    assert!(!text.contains("10.210.2.3"), "{text}");
    assert!(matches!(
        world.judged("10.210.2.2", "10.210.1.2", 80),
        Judged::Allowed { policy: None }
    ));
    assert_eq!(
        world.judged("10.210.2.3", "10.210.1.2", 80),
        Judged::OtherNamespace {
            service: "shop/web".to_owned()
        }
    );
}

#[test]
fn what_a_policy_is_about_refuses_all_that_none_lets_in_also_of_its_own_namespace() {
    let world = World::new()
        .runs("shop", "web", "10.210.1.3")
        .runs("shop", "db", "10.210.1.2")
        .runs("backup", "dumper", "10.210.2.3")
        .policy(
            "shop",
            "db",
            json!({ "services": ["db"], "ingress": [
                { "from": [{ "service": "web" }], "ports": [{ "port": 5432 }, { "port": 5433, "endPort": 5440 }, { "protocol": "UDP", "port": 53 }] },
                { "from": [{ "namespace": "backup" }, { "ipBlock": { "cidr": "192.168.0.0/16", "except": ["192.168.7.0/24"] } }] }
            ] }),
        );
    assert_eq!(
        world.chain("in.shop.db"),
        "ip saddr @svc.shop.web.4 tcp dport { 5432-5440 } accept\nip saddr @svc.shop.web.4 udp dport { 53 } accept\n\
         ip6 saddr @svc.shop.web.6 tcp dport { 5432-5440 } accept\nip6 saddr @svc.shop.web.6 udp dport { 53 } accept\n\
         ip saddr @ns.backup.4 accept\nip6 saddr @ns.backup.6 accept\n\
         ip saddr != 10.210.0.0/16 ip saddr 192.168.0.0/16 ip saddr != 192.168.7.0/24 accept\ncounter goto refuse\n"
    );
    let allowed = |judged| matches!(judged, Judged::Allowed { policy: Some(name) } if name == "db");
    assert!(allowed(world.judged("10.210.1.3", "10.210.1.2", 5432)));
    assert!(!allowed(world.judged("10.210.1.3", "10.210.1.2", 5431)));
    assert!(allowed(world.judged("10.210.2.3", "10.210.1.2", 1)));
    assert!(allowed(world.judged("192.168.1.1", "10.210.1.2", 1)));
    assert!(!allowed(world.judged("192.168.7.1", "10.210.1.2", 1)));
}

#[test]
fn policies_of_one_service_count_together_and_what_leaves_is_restricted_on_its_own() {
    let world = World::new()
        .runs("shop", "web", "10.210.1.2")
        .runs("shop", "db", "10.210.1.3")
        .policy("shop", "a", json!({ "policyTypes": ["Egress"] }))
        .policy(
            "shop",
            "b",
            json!({ "services": ["web"], "policyTypes": ["Egress"], "egress": [{ "to": [{ "service": "db" }] }] }),
        );
    assert_eq!(
        world.chain("out.shop.web"),
        "ip daddr @svc.shop.db.4 return\nip6 daddr @svc.shop.db.6 return\ncounter goto refuse\n"
    );
    assert_eq!(world.chain("out.shop.db"), "counter goto refuse\n");
    let text = world.rules().whole("t");
    assert!(text.contains("10.210.1.2 : jump out.shop.web"), "{text}");
    assert_eq!(
        world.judged("10.210.1.3", "10.210.1.2", 1),
        Judged::MayNotLeave {
            service: "shop/db".to_owned()
        }
    );
    assert!(matches!(
        world.judged("10.210.1.2", "10.210.1.3", 1),
        Judged::Allowed { .. }
    ));
}

#[test]
fn names_that_differ_by_where_they_are_divided_stay_two() {
    let world = World::new()
        .runs("a-b", "c", "10.210.1.2")
        .runs("a", "b-c", "10.210.1.3");
    assert!(world.chain("in.a_b.c").contains("@ns.a_b.4"));
    assert!(world.chain("in.a.b_c").contains("@ns.a.4"));
}

#[test]
fn what_changed_is_told_as_elements_where_the_chains_are_the_same() {
    let before = World::new()
        .runs("shop", "web", "10.210.1.2")
        .runs("shop", "db", "10.210.2.2")
        .rules();
    let after = World::new()
        .runs("shop", "web", "10.210.1.2")
        .runs("shop", "web", "10.210.1.4")
        .runs("shop", "db", "10.210.2.3")
        .rules();
    assert_eq!(after.since(&after.clone(), "t"), None);
    let text = after.since(&before, "t").expect("a change");
    assert!(!text.contains("chain"), "{text}");
    assert!(
        text.contains("delete element inet t ns.shop.4 { 10.210.2.2 }\n"),
        "{text}"
    );
    assert!(
        text.contains("add element inet t ns.shop.4 { 10.210.1.4, 10.210.2.3 }\n"),
        "{text}"
    );
    assert!(
        text.contains("add element inet t in4 { 10.210.1.4 : goto in.shop.web }\n"),
        "{text}"
    );
    let other = World::new().runs("shop", "api", "10.210.1.2").rules();
    assert!(
        other
            .since(&before, "t")
            .expect("a change")
            .contains("delete table inet t\n")
    );
}

#[test]
fn a_port_of_the_bridge_is_bound_to_its_instance_and_names_that_are_none_are_left_out() {
    let mut world = World::new()
        .runs("shop", "web", "10.210.1.2")
        .runs("shop", "web", "10.210.1.3");
    world.ports = BTreeSet::from(["veth1".to_owned(), "a\"; flush ruleset".to_owned()]);
    world.links.insert("x\" accept".to_owned());
    world.local[0].plug = Some(Plug {
        interface: "veth1".to_owned(),
        mac: [2, 0x42, 0, 0, 0, 0xab],
    });
    world.local[1].plug = Some(Plug {
        interface: "} flush".to_owned(),
        mac: [0; 6],
    });
    let chain = world.chain("plug.10.210.1.2");
    assert!(
        chain.starts_with("ether saddr != 02:42:00:00:00:ab counter drop\n"),
        "{chain}"
    );
    assert!(
        chain.contains("ip6 saddr != { fd10:210::1:2, fe80::/10, :: } counter drop\n"),
        "{chain}"
    );
    let text = world.rules().whole("t");
    assert!(
        text.contains("elements = { \"veth1\" : goto plug.10.210.1.2 }"),
        "{text}"
    );
    assert!(!text.contains("flush") && !text.contains("x\""), "{text}");
}

#[test]
fn policies_with_networks_that_are_none_open_nothing() {
    let world = World::new().runs("shop", "db", "10.210.1.2").policy(
        "shop",
        "db",
        json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "1.2.3.4 accept" } }, {}, { "ipBlock": { "cidr": "0.0.0.0/0", "except": ["x"] } }] }] }),
    );
    assert_eq!(world.chain("in.shop.db"), "counter goto refuse\n");
}

#[test]
fn a_name_is_found_by_those_who_are_let_in() {
    let world = World::new()
        .policy("shop", "one", json!({ "services": ["web"], "ingress": [{ "from": [{ "namespace": "bank" }] }] }))
        .policy(
            "shop",
            "two",
            json!({ "services": ["web"], "ingress": [{ "from": [{ "namespace": "mill", "service": "x" }], "ports": [{ "port": 1 }] }] }),
        )
        .policy("shop", "all", json!({ "services": ["front"], "ingress": [{}] }))
        .policy("shop", "none", json!({ "services": ["vault"] }));
    let seen = |service: &str| match seers(
        &parsed("shop"),
        &parsed(service),
        world.policies.get(&parsed("shop")).map(|all| &**all),
    ) {
        Seers::Everybody => "everybody".to_owned(),
        Seers::Namespaces(all) => all.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" "),
    };
    assert_eq!(seen("web"), "bank mill shop");
    assert_eq!(seen("front"), "everybody");
    assert_eq!(seen("vault"), "shop");
    assert_eq!(seen("other"), "shop");
}

#[test]
fn a_host_that_is_hidden_is_kept_away_but_for_root_and_published_ports() {
    let mut world = World::new().runs("shop", "web", "10.210.1.2");
    assert_eq!(
        world.chain("hidden"),
        "ct state established,related accept\nct status dnat accept\nmeta skuid != 0 counter goto refuse\n"
    );
    let output = world.chain("output");
    assert!(
        output.contains("ip daddr 10.210.0.0/16 ip daddr != 10.210.1.1 jump hidden\n"),
        "{output}"
    );
    assert!(
        output.contains("ip6 daddr fd10:210::/64 ip6 daddr != fd10:210::1:1 jump hidden\n"),
        "{output}"
    );
    world.network.exposed = true;
    assert!(!world.rules().whole("t").contains("hidden"));
}

#[test]
fn a_host_is_known_by_its_links_address_and_by_its_bridges() {
    let world = World::new().runs("shop", "web", "10.210.1.2");
    for host in ["10.210.2.0", "10.210.2.1", "fd10:210::2:0", "fd10:210::2:1"] {
        assert_eq!(
            world.judged(host, "10.210.1.2", 80),
            Judged::Allowed { policy: None },
            "{host}"
        );
    }
    assert_ne!(
        world.judged("10.210.2.3", "10.210.1.2", 80),
        Judged::Allowed { policy: None }
    );
}

#[test]
fn both_ends_are_weighed_with_the_rule_that_decides() {
    let world = World::new()
        .runs("shop", "web", "10.210.1.3")
        .runs("shop", "db", "10.210.1.2")
        .policy(
            "shop",
            "a",
            json!({ "services": ["db"], "ingress": [{ "from": [{ "service": "nobody" }] }] }),
        )
        .policy(
            "shop",
            "b",
            json!({ "services": ["db"], "ingress": [{}, { "from": [{ "service": "web" }] }] }),
        )
        .policy(
            "shop",
            "out",
            json!({ "services": ["web"], "policyTypes": ["Egress"], "egress": [] }),
        );
    let packet = Packet {
        from: parsed("10.210.1.3"),
        to: parsed("10.210.1.2"),
        protocol: Protocol::Tcp,
        port: 1,
        published: false,
    };
    let weighed = weigh(&world.input(), &packet);
    assert!(!weighed.leaving.allowed && weighed.entering.allowed, "{weighed:?}");
    assert_eq!(weighed.leaving.restricted_by, ["out"]);
    assert_eq!(weighed.entering.restricted_by, ["a", "b"]);
    assert_eq!(
        weighed.entering.by,
        Some(Rule {
            policy: "b".to_owned(),
            number: 1
        })
    );
}
