//! What names answer, told as tables; and laws that hold for any records, any asker and any question.

use super::*;

use proptest::prelude::*;
use schemas::records::SchemaVersion;

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn resource(name: &str) -> ResourceName {
    name.parse().unwrap()
}

fn realm() -> Realm {
    Realm {
        domain: "Reeve.internal".to_owned(),
        cidr: "10.210.0.0/16".parse().unwrap(),
        cidr6: Some("fd00:7::/64".parse().unwrap()),
        servers: vec!["10.210.1.1".parse().unwrap(), "fd00:7::1:1".parse().unwrap()],
        hosts: BTreeSet::from(["127.0.0.1".parse().unwrap()]),
        own: BTreeMap::from([("10.210.1.200".parse().unwrap(), namespace("shop"))]),
    }
}

fn endpoints(ports: &[(&str, u16, Protocol)], instances: &[(&str, &str, bool)]) -> Endpoints {
    Endpoints {
        schema_version: SchemaVersion::default(),
        cluster: "c0ffee00c0ffee00c0ffee00c0ffee00".parse().unwrap(),
        ports: ports
            .iter()
            .map(|(name, port, protocol)| EndpointPort {
                name: (!name.is_empty()).then(|| (*name).to_owned()),
                port: *port,
                protocol: *protocol,
                everywhere: None,
            })
            .collect(),
        instances: instances
            .iter()
            .map(|(slot, addresses, ready)| {
                let mut addresses = addresses.split(' ');
                Endpoint {
                    slot: slot.parse().unwrap(),
                    node: "n1".parse().unwrap(),
                    address: addresses.next().unwrap().parse().unwrap(),
                    address6: addresses.next().map(|address| address.parse().unwrap()),
                    ready: *ready,
                }
            })
            .collect(),
    }
}

/// `shop` has a web service, a store that is not ready and one of both families; `bank` has a vault.
fn names() -> Names {
    let mut names = Names::new(realm());
    let web = endpoints(
        &[("http", 80, Protocol::Tcp), ("", 443, Protocol::Tcp)],
        &[
            ("1", "10.210.1.2", true),
            ("2", "10.210.2.2", false),
            ("10", "10.210.3.2", true),
        ],
    );
    names.put(&namespace("shop"), &resource("web"), &web);
    let db = endpoints(&[("etcd-server", 2380, Protocol::Tcp)], &[("1", "10.210.1.3", false)]);
    names.put(&namespace("shop"), &resource("db"), &db);
    let both = endpoints(&[("q", 53, Protocol::Udp)], &[("n1", "10.210.1.4 fd00:7::1:4", true)]);
    names.put(&namespace("shop"), &resource("both"), &both);
    let vault = endpoints(&[("", 8200, Protocol::Tcp)], &[("1", "10.210.1.9", true)]);
    names.put(&namespace("bank"), &resource("vault"), &vault);
    names
}

const SHOP: &str = "10.210.1.2";
const BANK: &str = "10.210.1.9";

fn ask_with(
    names: &Names,
    from: &str,
    kind: Kind,
    name: &str,
    turn: u64,
    sees: &dyn Fn(&str, &str, &str) -> bool,
) -> Answer {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    let question = Question { labels: &labels, kind };
    answer(names, from.parse().unwrap(), &question, turn, sees)
}

/// In one line: addresses and targets, `nothing` for a name without them, `no such name`.
fn ask(from: &str, kind: Kind, name: &str) -> String {
    said(&ask_with(&names(), from, kind, name, 0, &|_, _, _| false))
}

fn said(answer: &Answer) -> String {
    let reply = match answer {
        Answer::Forward => return "forward".to_owned(),
        Answer::Refused => return "refused".to_owned(),
        Answer::Reply(reply) => reply,
    };
    if !reply.exists {
        assert!(reply.records.is_empty() && reply.additional.is_empty());
        return "no such name".to_owned();
    }
    let say = |record: &Record| {
        let data = match &record.data {
            Data::Address(address) => address.to_string(),
            Data::Srv { port, target } => format!("{target}:{port}"),
            Data::Ptr(name) | Data::Ns(name) => name.clone(),
            Data::Soa => "soa".to_owned(),
        };
        record
            .owner
            .as_ref()
            .map_or(data.clone(), |owner| format!("{owner}={data}"))
    };
    let all: Vec<String> = reply.records.iter().chain(&reply.additional).map(say).collect();
    if all.is_empty() {
        "nothing".to_owned()
    } else {
        all.join(" ")
    }
}

#[test]
fn names_lead_to_what_they_say() {
    use Kind::{A, Aaaa, Any, Ns, Other, Ptr, Soa, Srv};
    let table: &[(Kind, &str, &str)] = &[
        // As a resolver asks in the end: the world has no say in what a service of ours is called.
        (A, "web", "10.210.1.2 10.210.3.2"),
        (A, "web.shop", "10.210.1.2 10.210.3.2"),
        (A, "db", "nothing"),
        (A, "DB.shop", "nothing"),
        (A, "vault", "forward"),
        (A, "vault.bank", "forward"),
        (A, "1.web", "forward"),
        (A, "example", "forward"),
        // The plain name: ready instances alone.
        (A, "web.shop.reeve.internal", "10.210.1.2 10.210.3.2"),
        (A, "WEB.Shop.rEEve.internal", "10.210.1.2 10.210.3.2"),
        (Any, "web.shop.reeve.internal", "10.210.1.2 10.210.3.2"),
        (A, "both.shop.reeve.internal", "10.210.1.4"),
        (Aaaa, "both.shop.reeve.internal", "fd00:7::1:4"),
        // There, and without what is asked for: musl takes `no such name` for an answer to both families.
        (Aaaa, "web.shop.reeve.internal", "nothing"),
        (A, "db.shop.reeve.internal", "nothing"),
        (Aaaa, "db.shop.reeve.internal", "nothing"),
        (Other, "web.shop.reeve.internal", "nothing"),
        (Soa, "web.shop.reeve.internal", "nothing"),
        (A, "webb.shop.reeve.internal", "no such name"),
        (A, "web.shopp.reeve.internal", "no such name"),
        // One instance, ready or not.
        (A, "2.web.shop.reeve.internal", "10.210.2.2"),
        (A, "10.web.shop.reeve.internal", "10.210.3.2"),
        (Aaaa, "2.web.shop.reeve.internal", "nothing"),
        (Aaaa, "n1.both.shop.reeve.internal", "fd00:7::1:4"),
        (A, "1.db.shop.reeve.internal", "10.210.1.3"),
        (A, "3.web.shop.reeve.internal", "no such name"),
        (A, "02.web.shop.reeve.internal", "no such name"),
        (A, "0.web.shop.reeve.internal", "no such name"),
        (A, "n2.both.shop.reeve.internal", "no such name"),
        (A, "1.1.web.shop.reeve.internal", "no such name"),
        // All of them.
        (A, "all.web.shop.reeve.internal", "10.210.1.2 10.210.2.2 10.210.3.2"),
        (A, "all.db.shop.reeve.internal", "10.210.1.3"),
        (A, "1.all.db.shop.reeve.internal", "no such name"),
        // Ports.
        (
            Srv,
            "_http._tcp.web.shop.reeve.internal",
            "1.web.shop.reeve.internal:80 10.web.shop.reeve.internal:80 \
             1.web.shop.reeve.internal=10.210.1.2 10.web.shop.reeve.internal=10.210.3.2",
        ),
        (
            Srv,
            "_443._tcp.web.shop.reeve.internal",
            "1.web.shop.reeve.internal:443 10.web.shop.reeve.internal:443 \
             1.web.shop.reeve.internal=10.210.1.2 10.web.shop.reeve.internal=10.210.3.2",
        ),
        (
            Srv,
            "both.shop.reeve.internal",
            "n1.both.shop.reeve.internal:53 n1.both.shop.reeve.internal=10.210.1.4 \
             n1.both.shop.reeve.internal=fd00:7::1:4",
        ),
        (
            Srv,
            "_q._UDP.both.shop.reeve.internal",
            "n1.both.shop.reeve.internal:53 n1.both.shop.reeve.internal=10.210.1.4 \
             n1.both.shop.reeve.internal=fd00:7::1:4",
        ),
        // Members of a store find each other before they are ready.
        (
            Srv,
            "_etcd-server._tcp.all.db.shop.reeve.internal",
            "1.db.shop.reeve.internal:2380 1.db.shop.reeve.internal=10.210.1.3",
        ),
        (Srv, "_etcd-server._tcp.db.shop.reeve.internal", "nothing"),
        (Srv, "_0443._tcp.web.shop.reeve.internal", "no such name"),
        (Srv, "_http._udp.web.shop.reeve.internal", "no such name"),
        (Srv, "_https._tcp.web.shop.reeve.internal", "no such name"),
        (A, "_http._tcp.web.shop.reeve.internal", "nothing"),
        (A, "_tcp.web.shop.reeve.internal", "nothing"),
        (A, "_udp.web.shop.reeve.internal", "no such name"),
        // The domain, and names that only have others below them.
        (Soa, "reeve.internal", "soa"),
        (Ns, "reeve.internal", "reeve.internal"),
        (A, "reeve.internal", "10.210.1.1"),
        (Aaaa, "reeve.internal", "fd00:7::1:1"),
        (A, "shop.reeve.internal", "nothing"),
        // Addresses.
        (Ptr, "2.1.210.10.in-addr.arpa", "1.web.shop.reeve.internal"),
        (Ptr, "2.2.210.10.IN-ADDR.arpa", "2.web.shop.reeve.internal"),
        (Ptr, "1.1.210.10.in-addr.arpa", "reeve.internal"),
        (A, "2.1.210.10.in-addr.arpa", "nothing"),
        (Ptr, "77.1.210.10.in-addr.arpa", "no such name"),
        (Ptr, "x.2.1.210.10.in-addr.arpa", "no such name"),
        (Ptr, "x.1.210.10.in-addr.arpa", "no such name"),
        (Ptr, "1.210.10.in-addr.arpa", "nothing"),
        (Soa, "210.10.in-addr.arpa", "soa"),
        (Ptr, "10.in-addr.arpa", "forward"),
        (Ptr, "1.1.211.10.in-addr.arpa", "forward"),
        (Ptr, "in-addr.arpa", "forward"),
        (
            Ptr,
            "4.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.0.0.0.0.0.d.f.ip6.arpa",
            "n1.both.shop.reeve.internal",
        ),
        (Ptr, "8.b.d.0.1.0.0.2.ip6.arpa", "forward"),
        // The world's.
        (A, "example.com", "forward"),
        (A, "internal", "forward"),
        (A, "reeve.internal.com", "forward"),
        (A, "xreeve.internal", "forward"),
    ];
    for (kind, name, wanted) in table {
        assert_eq!(&ask(SHOP, *kind, name), wanted, "{kind:?} {name}");
    }
}

#[test]
fn who_is_nobody_here_is_told_nothing_at_all() {
    for name in [
        "web.shop.reeve.internal",
        "reeve.internal",
        "example.com",
        "2.1.210.10.in-addr.arpa",
    ] {
        assert_eq!(ask("10.210.9.9", Kind::A, name), "refused");
        assert_eq!(ask("8.8.8.8", Kind::A, name), "refused");
    }
    // This host, where it may: it asks others about the world.
    assert_eq!(ask("127.0.0.1", Kind::A, "vault.bank.reeve.internal"), "10.210.1.9");
    assert_eq!(ask("127.0.0.1", Kind::A, "example.com"), "refused");
    // By IPv6, in both ways.
    assert_eq!(ask("fd00:7::1:4", Kind::A, "db.shop.reeve.internal"), "nothing");
    assert_eq!(
        ask("::ffff:10.210.1.9", Kind::A, "vault.bank.reeve.internal"),
        "10.210.1.9"
    );
    // An instance of this node that no record has yet.
    assert_eq!(
        ask("10.210.1.200", Kind::A, "web.shop.reeve.internal"),
        "10.210.1.2 10.210.3.2"
    );
}

#[test]
fn what_a_namespace_may_not_see_is_answered_as_what_is_not_there() {
    let names = names();
    let without = {
        let mut names = names.clone();
        names.remove(&namespace("shop"), &resource("web"));
        names
    };
    let below = [
        "",
        "1.",
        "all.",
        "_http._tcp.",
        "_tcp.",
        "7.",
        "_no._tcp.",
        "_443._tcp.all.",
    ];
    for (from, sees) in [(BANK, false), (BANK, true), ("10.210.1.3", false)] {
        let may = |asker: &str, space: &str, service: &str| {
            assert_ne!(asker, space, "its own it always sees");
            sees && service != "web"
        };
        for kind in [Kind::A, Kind::Aaaa, Kind::Srv, Kind::Any, Kind::Other, Kind::Soa] {
            for below in below {
                let name = format!("{below}web.shop.reeve.internal");
                let got = ask_with(&names, from, kind, &name, 3, &may);
                let absent = ask_with(&without, from, kind, &name, 3, &may);
                if from == BANK {
                    assert_eq!(got, absent, "{name}");
                } else {
                    assert_eq!(got == absent, ["7.", "_no._tcp."].contains(&below), "{name}");
                }
            }
        }
        let reverse = ask_with(&names, from, Kind::Ptr, "2.1.210.10.in-addr.arpa", 0, &may);
        assert_eq!(said(&reverse) == "no such name", from == BANK);
    }
    // Its namespace is there for who sees something in it.
    let space = |sees: bool| {
        said(&ask_with(
            &names,
            BANK,
            Kind::A,
            "shop.reeve.internal",
            0,
            &|_, _, _| sees,
        ))
    };
    assert_eq!(space(false), "no such name");
    assert_eq!(space(true), "nothing");
    let web = |sees: bool| {
        said(&ask_with(
            &names,
            BANK,
            Kind::A,
            "db.shop.reeve.internal",
            0,
            &|_, _, _| sees,
        ))
    };
    assert_eq!(web(false), "no such name");
    assert_eq!(web(true), "nothing");
}

#[test]
fn another_instance_comes_first_at_each_turn() {
    let names = names();
    let first = |turn| {
        let answer = ask_with(
            &names,
            SHOP,
            Kind::A,
            "all.web.shop.reeve.internal",
            turn,
            &|_, _, _| false,
        );
        said(&answer).split(' ').next().unwrap().to_owned()
    };
    assert_eq!(
        [first(0), first(1), first(2), first(3)],
        ["10.210.1.2", "10.210.2.2", "10.210.3.2", "10.210.1.2"]
    );
    assert_eq!(first(u64::MAX), first(u64::MAX % 3));
}

#[test]
fn a_service_that_is_put_again_or_removed_leaves_nothing_behind() {
    let mut names = names();
    let all = names.instances();
    let moved = endpoints(&[], &[("1", "10.210.7.7", true)]);
    names.put(&namespace("shop"), &resource("web"), &moved);
    assert_eq!(names.instances(), all - 2);
    let ask = |names: &Names, from, name| said(&ask_with(names, from, Kind::A, name, 0, &|_, _, _| false));
    assert_eq!(ask(&names, "10.210.7.7", "web.shop.reeve.internal"), "10.210.7.7");
    assert_eq!(
        ask(&names, SHOP, "web.shop.reeve.internal"),
        "refused",
        "it has another address now"
    );
    for (space, service) in [
        ("shop", "web"),
        ("shop", "db"),
        ("shop", "both"),
        ("bank", "vault"),
        ("bank", "none"),
    ] {
        names.remove(&namespace(space), &resource(service));
    }
    assert_eq!((names.services(), names.instances()), (0, 0));
    assert!(names.owners.is_empty() && names.spaces.is_empty());
}

#[test]
fn an_address_that_two_namespaces_have_is_nobodys_until_one_lets_go() {
    let mut names = names();
    let taken = endpoints(&[], &[("1", SHOP, true)]);
    names.put(&namespace("bank"), &resource("thief"), &taken);
    assert_eq!(names.asker(SHOP.parse().unwrap()), None);
    names.remove(&namespace("shop"), &resource("web"));
    assert_eq!(
        names.asker(SHOP.parse().unwrap()),
        Some(Asker::Instance { namespace: "bank" })
    );
    // Of this node's own instances the assignment says it.
    let own = endpoints(&[], &[("1", "10.210.1.200", true)]);
    names.put(&namespace("bank"), &resource("thief"), &own);
    let asker = names.asker("10.210.1.200".parse().unwrap());
    assert_eq!(asker, Some(Asker::Instance { namespace: "shop" }));
}

#[test]
fn a_record_out_of_order_or_with_doubles_is_read_as_far_as_it_makes_sense() {
    let mut names = names();
    let odd = endpoints(
        &[],
        &[
            ("9", "10.210.5.9", true),
            ("1", "10.210.5.1", true),
            ("9", "10.210.5.8", true),
        ],
    );
    names.put(&namespace("shop"), &resource("odd"), &odd);
    let ask = |name| said(&ask_with(&names, SHOP, Kind::A, name, 0, &|_, _, _| false));
    assert_eq!(ask("all.odd.shop.reeve.internal"), "10.210.5.1 10.210.5.9");
    assert_eq!(ask("9.odd.shop.reeve.internal"), "10.210.5.9");
}

#[test]
fn answers_of_very_large_services_have_a_limit_and_turn() {
    let mut names = names();
    let mut large = endpoints(&[("a", 1, Protocol::Tcp), ("b", 2, Protocol::Tcp)], &[]);
    large.instances = (1..=12_000_u32)
        .map(|at| Endpoint {
            slot: Slot::Index(at),
            node: "n1".parse().unwrap(),
            address: Ipv4Addr::from(0x0ad2_8000 + at),
            address6: None,
            ready: true,
        })
        .collect();
    names.put(&namespace("shop"), &resource("large"), &large);
    let reply = |kind, turn| match ask_with(&names, SHOP, kind, "large.shop.reeve.internal", turn, &|_, _, _| false) {
        Answer::Reply(reply) => reply,
        other @ (Answer::Forward | Answer::Refused) => panic!("{other:?}"),
    };
    assert_eq!(reply(Kind::A, 0).records.len(), MAX_ADDRESSES);
    assert_ne!(reply(Kind::A, 0).records[0], reply(Kind::A, 9_999).records[0]);
    assert_eq!(reply(Kind::Srv, 0).records.len(), MAX_TARGETS);
    assert_eq!(names.instances(), 10_000 + 6);
}

#[test]
fn a_container_finds_services_by_their_short_names() {
    let servers = vec!["10.210.1.1".parse().unwrap()];
    let resolver = resolver("reeve.internal", &namespace("shop"), servers);
    assert_eq!(
        resolver.resolv_conf(),
        "nameserver 10.210.1.1\nsearch shop.reeve.internal reeve.internal\noptions ndots:5\n"
    );
    for short in [
        "db",
        "db.shop",
        "1.db",
        "1.db.shop",
        "vault.bank",
        "_http._tcp.web",
        "_http._tcp.all.web.shop",
    ] {
        // As resolvers do it: with fewer dots than ndots, the search domains come first.
        assert!(short.matches('.').count() < usize::from(NDOTS), "{short}");
        let found = resolver.search.iter().find_map(|domain| {
            let answer = ask_with(&names(), SHOP, Kind::A, &format!("{short}.{domain}"), 0, &|_, _, _| {
                true
            });
            (said(&answer) != "no such name").then(|| said(&answer))
        });
        assert!(found.is_some(), "{short}");
    }
}

fn any_slot() -> impl Strategy<Value = Slot> {
    prop_oneof![
        (1..6_u32).prop_map(Slot::Index),
        "(n[12]|all|x)".prop_map(|name| Slot::Node(name.parse().unwrap())),
    ]
}

fn any_endpoints() -> impl Strategy<Value = Endpoints> {
    let instance = (any_slot(), 0..40_u32, any::<bool>(), any::<bool>());
    let port = (prop_oneof![Just(None), "[a-c]".prop_map(Some)], 1..4_u16, any::<bool>());
    (
        proptest::collection::vec(port, 0..4),
        proptest::collection::vec(instance, 0..6),
    )
        .prop_map(|(ports, instances)| {
            let mut record = endpoints(&[], &[]);
            record.ports = ports
                .into_iter()
                .map(|(name, port, udp)| EndpointPort {
                    name,
                    port,
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    everywhere: None,
                })
                .collect();
            record.instances = instances
                .into_iter()
                .map(|(slot, at, six, ready)| Endpoint {
                    slot,
                    node: "n1".parse().unwrap(),
                    address: Ipv4Addr::from(0x0ad2_0100 + at),
                    address6: six.then(|| Ipv6Addr::from(0xfd00_0007_0000_0000_0000_0000_0001_0000 + u128::from(at))),
                    ready,
                })
                .collect();
            record
        })
}

/// Labels that are likely to be somebody's, and some that are nobody's.
fn any_label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "(s[ab]|n[ab]|all|_tcp|_udp|_[a-c]|_[0-3]|[0-9]|n1|x|X|reeve|internal|in-addr|ip6|arpa|10|210)"
            .prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

fn any_name() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let within = (proptest::collection::vec(any_label(), 0..6), 0..4_u8).prop_map(|(mut labels, end)| {
        let end: &[&str] = match end {
            0 => &["reeve", "internal"],
            1 => &["210", "10", "in-addr", "arpa"],
            2 => &["7", "0", "0", "0", "0", "0", "d", "f", "ip6", "arpa"],
            _ => &[],
        };
        labels.extend(end.iter().map(|label| label.as_bytes().to_vec()));
        labels
    });
    let service = (proptest::collection::vec(any_label(), 0..4), "s[ab]", "n[ab]").prop_map(|(mut labels, s, n)| {
        labels.extend([s.into_bytes(), n.into_bytes(), b"reeve".to_vec(), b"internal".to_vec()]);
        labels
    });
    prop_oneof![within, service]
}

const KINDS: [Kind; 8] = [
    Kind::A,
    Kind::Aaaa,
    Kind::Srv,
    Kind::Ptr,
    Kind::Soa,
    Kind::Ns,
    Kind::Any,
    Kind::Other,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn whatever_is_known_and_asked_the_laws_hold(
        history in proptest::collection::vec(("n[ab]", "s[ab]", proptest::option::weighted(0.8, any_endpoints())), 0..10),
        name in any_name(),
        kind in proptest::sample::select(KINDS.to_vec()),
        from in 0..42_u32,
        turn in any::<u64>(),
        open in any::<bool>(),
    ) {
        let mut names = Names::new(realm());
        let mut known: BTreeMap<(String, String), Endpoints> = BTreeMap::new();
        for (space, service, record) in history {
            match record {
                Some(record) => {
                    names.put(&namespace(&space), &resource(&service), &record);
                    known.insert((space, service), record);
                }
                None => {
                    names.remove(&namespace(&space), &resource(&service));
                    known.remove(&(space, service));
                }
            }
        }
        // The order in which records came says nothing.
        let mut anew = Names::new(realm());
        for ((space, service), record) in known.iter().rev() {
            anew.put(&namespace(space), &resource(service), record);
        }
        prop_assert_eq!(&names.owners, &anew.owners);
        let from = IpAddr::V4(Ipv4Addr::from(0x0ad2_0100 + from));
        let labels: Vec<&[u8]> = name.iter().map(Vec::as_slice).collect();
        let question = Question { labels: &labels, kind };
        let sees = |_: &str, space: &str, service: &str| open && space == "na" && service == "sa";
        let got = answer(&names, from, &question, turn, &sees);
        prop_assert_eq!(&got, &answer(&anew, from, &question, turn, &sees));
        let Some(asker) = names.asker(from) else {
            prop_assert_eq!(got, Answer::Refused);
            return Ok(());
        };
        let Asker::Instance { namespace: own } = asker else {
            panic!("this host does not ask here");
        };
        let Answer::Reply(reply) = got else {
            prop_assert_eq!(got, Answer::Forward);
            return Ok(());
        };
        prop_assert!(reply.zone <= labels.len());
        prop_assert!(reply.exists || reply.records.is_empty());
        let may = |space: &str, service: &str| own == space || sees(own, space, service);
        for record in reply.records.iter().chain(&reply.additional) {
            match &record.data {
                Data::Address(address) if !names.realm.servers.contains(address) => {
                    // Somebody the asker may see has it; and under the plain name, and a port's, somebody ready.
                    let plain = !labels.iter().any(|label| label.eq_ignore_ascii_case(b"all")) && record.owner.is_none()
                        && labels.len() == 4;
                    let has = known.iter().any(|((space, service), endpoints)| {
                        let all = endpoints.instances.iter();
                        let mut having = all.filter(|one| one.addresses().any(|own| own == *address));
                        may(space, service) && having.any(|one| one.ready || !plain)
                    });
                    prop_assert!(has, "{address}");
                }
                Data::Srv { port: _, target: name } | Data::Ptr(name) if name != "reeve.internal" => {
                    let parts: Vec<&str> = name.split('.').collect();
                    prop_assert!(may(parts[2], parts[1]), "{name}");
                }
                Data::Address(_) | Data::Srv { port: _, target: _ } | Data::Ptr(_) | Data::Ns(_) | Data::Soa => {}
            }
        }
        // What is said of one kind is not denied by another.
        for kind in KINDS {
            if let Answer::Reply(other) = answer(&names, from, &Question { labels: &labels, kind }, turn, &sees) {
                prop_assert_eq!(other.exists, reply.exists, "{:?}", kind);
            }
        }
    }
}
