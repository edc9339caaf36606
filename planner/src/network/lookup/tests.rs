//! Names as people look them up, and why there is no answer.

use std::collections::BTreeSet;

use schemas::kinds::Kind as Resource;
use schemas::records::{ClusterId, Endpoint, EndpointPort, InForcePolicy, SchemaVersion};
use serde_json::json;

use super::super::names::Realm;
use super::*;

struct World {
    endpoints: BTreeMap<ResourceKey, Arc<Endpoints>>,
    policies: BTreeMap<Namespace, Arc<Policies>>,
}

/// A service's namespace and name; its ports; its instances' slots, addresses and whether they are ready.
type Told = (
    &'static str,
    &'static str,
    &'static [u16],
    &'static [(&'static str, &'static str, bool)],
);

/// `shop` has web, db of which nothing is ready, and one without ports; `bank` lets shop into vault, and nobody into safe.
const WORLD: &[Told] = &[
    (
        "shop",
        "web",
        &[80],
        &[
            ("1", "10.210.1.2", true),
            ("2", "10.210.2.2", false),
            ("3", "10.210.3.2", true),
        ],
    ),
    (
        "shop",
        "db",
        &[5432],
        &[("1", "10.210.1.3", false), ("2", "10.210.2.3", false)],
    ),
    ("shop", "plain", &[], &[("n1", "10.210.1.4", true)]),
    ("bank", "vault", &[8200], &[("1", "10.210.1.9", true)]),
    ("bank", "safe", &[1], &[("1", "10.210.1.10", true)]),
];

fn world() -> World {
    let cluster = ClusterId::from_random([3; 16]);
    let record = |(namespace, name, ports, instances): &Told| {
        let key = ResourceKey {
            namespace: Some(namespace.parse().expect("a namespace")),
            kind: Resource::Service,
            name: name.parse().expect("a name"),
        };
        let ports = ports.iter().map(|port| EndpointPort {
            name: Some("main".to_owned()),
            port: *port,
            protocol: schemas::container::Protocol::Tcp,
            everywhere: None,
        });
        let instances = instances.iter().map(|(slot, address, ready)| Endpoint {
            slot: slot.parse().expect("a slot"),
            node: "n1".parse().expect("a name"),
            address: address.parse().expect("an address"),
            address6: None,
            ready: *ready,
        });
        let record = Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: cluster.clone(),
            ports: ports.collect(),
            instances: instances.collect(),
        };
        (key, Arc::new(record))
    };
    let policy = InForcePolicy {
        name: "vault".parse().expect("a name"),
        spec: serde_json::from_value(
            json!({ "services": ["vault"], "ingress": [{ "from": [{ "namespace": "shop" }] }] }),
        )
        .expect("a spec"),
    };
    let policies = Policies {
        schema_version: SchemaVersion::default(),
        cluster: cluster.clone(),
        policies: vec![policy],
    };
    World {
        endpoints: WORLD.iter().map(record).collect(),
        policies: [("bank".parse().expect("a namespace"), Arc::new(policies))].into(),
    }
}

impl World {
    fn known(&self) -> Known<'_> {
        Known {
            domain: "reeve.internal",
            endpoints: &self.endpoints,
            policies: &self.policies,
        }
    }

    fn ask(&self, from: &str, name: &str, kind: Type) -> (Found, Option<String>) {
        let mut names = Names::new(Realm {
            domain: "reeve.internal".to_owned(),
            cidr: "10.210.0.0/16".parse().expect("a range"),
            cidr6: None,
            servers: Vec::new(),
            hosts: BTreeSet::new(),
            own: BTreeMap::new(),
        });
        for (key, record) in &self.endpoints {
            names.put(key.namespace.as_ref().expect("one"), &key.name, record);
        }
        let wanted = Wanted {
            name: name.to_owned(),
            kind,
            from: from.parse().expect("a namespace"),
        };
        let known = self.known();
        let sees = |asker: &str, namespace: &str, service: &str| known.sees(asker, namespace, service);
        let found = look(&names, &wanted, &sees);
        let why = why(&known, &wanted, &found);
        (found, why)
    }
}

#[test]
fn a_name_is_tried_as_a_containers_resolver_tries_it() {
    let shop: Namespace = "shop".parse().expect("a namespace");
    assert_eq!(
        tried("db", &shop, "reeve.internal"),
        ["db.shop.reeve.internal", "db.reeve.internal", "db"]
    );
    assert_eq!(tried("db.shop.", &shop, "x"), ["db.shop"]);
    assert_eq!(tried("a.b.c.d.e.f", &shop, "x")[0], "a.b.c.d.e.f");
    assert_eq!(tried("10.210.1.2", &shop, "x"), ["2.1.210.10.in-addr.arpa"]);
    assert!(
        tried("fd00::1", &shop, "x")[0].starts_with("1.0.0.0."),
        "nibbles from the right"
    );
    assert_eq!(
        (Type::meant("10.1.2.3"), Type::meant("_a._tcp.b"), Type::meant("b")),
        (Type::Ptr, Type::Srv, Type::A)
    );
}

#[test]
fn what_is_there_is_answered_with_ready_instances_alone() {
    let world = world();
    let answered: &[(&str, &str, Type, &str, &[&str])] = &[
        (
            "shop",
            "web",
            Type::A,
            "web.shop.reeve.internal",
            &["10.210.1.2", "10.210.3.2"],
        ),
        (
            "shop",
            "WEB.shop",
            Type::A,
            "WEB.shop.reeve.internal",
            &["10.210.1.2", "10.210.3.2"],
        ),
        ("shop", "2.web", Type::A, "2.web.shop.reeve.internal", &["10.210.2.2"]),
        (
            "shop",
            "all.db",
            Type::A,
            "all.db.shop.reeve.internal",
            &["10.210.1.3", "10.210.2.3"],
        ),
        (
            "shop",
            "vault.bank",
            Type::A,
            "vault.bank.reeve.internal",
            &["10.210.1.9"],
        ),
        ("shop", "_main._tcp.plain", Type::Srv, "", &[]),
        (
            "shop",
            "_main._tcp.vault.bank",
            Type::Srv,
            "_main._tcp.vault.bank.reeve.internal",
            &["0 1 8200 1.vault.bank.reeve.internal"],
        ),
        (
            "shop",
            "10.210.2.2",
            Type::Ptr,
            "2.2.210.10.in-addr.arpa",
            &["2.web.shop.reeve.internal"],
        ),
    ];
    for (from, name, kind, whole, records) in answered {
        let (found, why) = world.ask(from, name, *kind);
        assert_eq!(found.records, *records, "{name}");
        if !records.is_empty() {
            assert_eq!(
                (found.name.as_str(), found.came, why),
                (*whole, Came::Answered, None),
                "{name}"
            );
        }
    }
}

#[test]
fn what_is_not_answered_says_why() {
    let world = world();
    let whys = [
        (
            "shop",
            "cache",
            Type::A,
            "there is no service cache with an address in namespace shop",
        ),
        (
            "shop",
            "db",
            Type::A,
            "none of its 2 instances is ready; all.db has them, ready or not",
        ),
        (
            "shop",
            "safe.bank",
            Type::A,
            "namespace shop may not see it: no NetworkPolicy of namespace bank lets anything from there into safe",
        ),
        ("shop", "7.web", Type::A, "web has no instance 7: it has 1, 2, 3"),
        (
            "shop",
            "_http._tcp.web",
            Type::Srv,
            "web declares no port http over tcp",
        ),
        ("shop", "plain", Type::Srv, "plain declares no ports"),
        ("shop", "web", Type::Aaaa, "the network has no IPv6 addresses"),
        (
            "shop",
            "10.210.9.9",
            Type::Ptr,
            "no instance has the address 10.210.9.9",
        ),
        (
            "shop",
            "example.com.",
            Type::A,
            "it is no name under reeve.internal: containers' questions about it go to the host's own servers",
        ),
    ];
    for (from, name, kind, said) in whys {
        let (found, why) = world.ask(from, name, kind);
        assert_ne!(found.came, Came::Answered, "{name}");
        assert_eq!(why.as_deref(), Some(said), "{name}");
    }
}

#[test]
fn no_name_however_odd_is_too_much() {
    let world = world();
    let long = "a.".repeat(200);
    for name in [
        "",
        ".",
        "..",
        "\u{1f980}",
        "a..b",
        &long,
        "_._",
        "all",
        "-",
        "1.2.3.4.5",
        "::ffff:1.2.3.4",
    ] {
        for kind in [Type::A, Type::Aaaa, Type::Srv, Type::Ptr] {
            let (found, why) = world.ask("shop", name, kind);
            assert!(found.records.is_empty() && why.is_some(), "{name}");
        }
    }
}
