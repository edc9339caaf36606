use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::prelude::*;
use schemas::names::Namespace;
use schemas::records::{AssignedNetwork, Backend, ClusterId, InForcePolicy, NetworkSettings, Policies, SchemaVersion};
use serde_json::json;

use super::super::{Input, Packet, Plug, published, rules, weigh};
use super::*;
use crate::network::relay::Held;

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("{text}"))
}

fn network() -> AssignedNetwork {
    AssignedNetwork {
        settings: NetworkSettings {
            cidr: parsed("10.210.0.0/16"),
            cidr6: Some(parsed("fd10:210::/64")),
            node_prefix: 24,
            backend: Backend::Vxlan,
            domain: "reeve.internal".to_owned(),
            port: 4789,
            mtu: None,
            key_days: None,
        },
        subnet: parsed("10.210.1.0/24"),
        subnet6: Some(parsed("fd10:210::1:0/112")),
        exposed: false,
    }
}

fn local(place: u8, service: &str, plugged: bool, hears6: &[(Protocol, u16)]) -> Local {
    Local {
        address: Ipv4Addr::new(10, 210, 1, place),
        namespace: parsed("shop"),
        service: parsed(service),
        published: Vec::new(),
        plug: plugged.then(|| Plug {
            interface: format!("veth{place}"),
            mac: [2, 0, 0, 0, 0, place],
        }),
        hears6: hears6.iter().copied().collect(),
    }
}

fn lead(protocol: Protocol, ip: Option<&str>, port: u16, target: &str, to: &[&str]) -> Lead {
    Lead {
        at: Held {
            protocol,
            ip: ip.map(parsed),
            port,
        },
        target: target.to_owned(),
        to: to.iter().map(|to| parsed(to)).collect(),
    }
}

fn text(local: &[Local], leads: &[Lead], policies: &BTreeMap<Namespace, Arc<Policies>>) -> String {
    let (links, ports, endpoints) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    rules(&Input {
        network: &network(),
        bridge: "rv-t",
        links: &links,
        ports: &ports,
        mac: None,
        local,
        endpoints: &endpoints,
        policies,
        leads,
    })
    .whole("t")
}

fn chain(text: &str, name: &str) -> String {
    let from = text.split(&format!("\tchain {name} {{\n")).nth(1).expect("the chain");
    let lines = from.lines().take_while(|line| *line != "\t}");
    lines.map(|line| line.trim().to_owned() + "\n").collect()
}

#[test]
fn who_comes_from_outside_is_led_to_what_runs_here_of_the_same_family() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let here = [
        local(2, "web-a", true, &[(tcp, 80)]),
        local(3, "web-a", true, &[]),
        local(4, "dns", true, &[(udp, 53)]),
    ];
    let both = ["10.210.1.2:80", "10.210.1.3:80", "10.210.2.2:80"];
    let leads = [
        lead(tcp, None, 18080, "shop/web-a:80/tcp", &both),
        lead(tcp, Some("0.0.0.0"), 18081, "shop/web-a:80/tcp", &both),
        lead(udp, Some("192.0.2.1"), 5353, "shop/dns:53/udp", &["10.210.1.4:53"]),
        lead(udp, Some("2001:db8::1"), 5353, "shop/dns:53/udp", &["10.210.1.4:53"]),
    ];
    let text = text(&here, &leads, &BTreeMap::new());
    assert_eq!(
        chain(&text, "to.shop.web_a.80.tcp.4"),
        "meta l4proto tcp dnat ip to numgen inc mod 2 map { 0 : 10.210.1.2, 1 : 10.210.1.3 }:80\n"
    );
    // The other one does not listen there.
    assert_eq!(
        chain(&text, "to.shop.web_a.80.tcp.6"),
        "meta l4proto tcp dnat ip6 to [fd10:210::1:2]:80\n"
    );
    assert_eq!(
        chain(&text, "to.shop.dns.53.udp.4"),
        "meta l4proto udp dnat ip to 10.210.1.4:53\n"
    );
    assert_eq!(
        chain(&text, "prerouting"),
        "type nat hook prerouting priority -90; policy accept;\niifname { \"rv-t\", \"lo\" } return\n\
         ip saddr 10.210.0.0/16 return\nip6 saddr fd10:210::/64 return\nfib daddr type != local return\n\
         ip daddr . meta l4proto . th dport vmap @at4\nip6 daddr . meta l4proto . th dport vmap @at6\n\
         meta nfproto ipv4 meta l4proto . th dport vmap @any4\nmeta nfproto ipv6 meta l4proto . th dport vmap @any6\n"
    );
    for elements in [
        "{ 192.0.2.1 . udp . 5353 : goto to.shop.dns.53.udp.4 }",
        "{ 2001:db8::1 . udp . 5353 : goto to.shop.dns.53.udp.6 }",
        "{ tcp . 18080 : goto to.shop.web_a.80.tcp.4, tcp . 18081 : goto to.shop.web_a.80.tcp.4 }",
        "{ tcp . 18080 : goto to.shop.web_a.80.tcp.6 }",
    ] {
        assert!(text.contains(&format!("elements = {elements}\n")), "{elements}: {text}");
    }
}

#[test]
fn nobody_is_led_to_who_is_not_here_not_plugged_in_or_anothers() {
    let here = [local(2, "web", false, &[]), local(3, "db", true, &[])];
    let to = [
        "10.210.1.2:80",
        "10.210.1.3:80",
        "10.210.1.4:80",
        "10.210.2.2:80",
        "192.0.2.9:80",
    ];
    let leads = [lead(Protocol::Tcp, None, 18080, "shop/web:80/tcp", &to)];
    let with = text(&here, &leads, &BTreeMap::new());
    assert_eq!(with, text(&here, &[], &BTreeMap::new()));
    // A name that begins as another one's is another.
    let leads = [lead(Protocol::Tcp, None, 18080, "shop/db-old:80/tcp", &to)];
    assert_eq!(with, text(&here, &leads, &BTreeMap::new()));
}

#[test]
fn a_flow_is_stale_where_it_leads_to_an_address_of_ours_at_which_nobody_is() {
    let here = BTreeSet::from([parsed("10.210.1.2"), parsed("fd10:210::1:2")]);
    for (asked, answers, stale) in [
        ("192.0.2.1:5353", "10.210.1.3:53", true),
        ("192.0.2.1:5353", "10.210.1.2:53", false),
        ("[2001:db8::1]:5353", "[fd10:210::1:3]:53", true),
        ("[2001:db8::1]:5353", "[fd10:210::1:2]:53", false),
        // Not translated, and another's.
        ("10.210.1.3:53", "10.210.1.3:53", false),
        ("192.0.2.1:5353", "172.17.0.3:53", false),
        ("192.0.2.1:5353", "10.210.2.3:53", false),
    ] {
        let flow = Flow {
            asked: parsed(asked),
            answers: parsed(answers),
        };
        assert_eq!(is_stale(&flow, &network(), &here), stale, "{flow:?}");
    }
}

/// A policy about `web`, or about another: rules by number.
fn policies(about: bool, drawn: &[u8]) -> BTreeMap<Namespace, Arc<Policies>> {
    let rule = |drawn: &u8| match drawn % 7 {
        0 => json!({}),
        1 => json!({ "ports": [{ "port": 80 }] }),
        2 => json!({ "ports": [{ "port": 81, "endPort": 90 }, { "port": 80, "protocol": "UDP" }] }),
        3 => json!({ "from": [{ "namespace": "other" }, { "service": "db" }] }),
        4 => {
            json!({ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["64.0.0.0/2", "10.0.0.0/8"] } }], "ports": [{ "port": 80 }] })
        }
        5 => {
            json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }, { "ipBlock": { "cidr": "2000::/3", "except": ["2001:db8::/32"] } }] })
        }
        _ => json!({ "from": [{ "ipBlock": { "cidr": "128.0.0.0/1" } }], "ports": [{ "protocol": "UDP" }] }),
    };
    let spec = json!({ "services": [if about { "web" } else { "db" }], "ingress": drawn.iter().map(rule).collect::<Vec<_>>() });
    let record = Policies {
        schema_version: SchemaVersion::default(),
        cluster: ClusterId::from_random([7; 16]),
        policies: vec![InForcePolicy {
            name: parsed("p"),
            spec: serde_json::from_value(spec).expect("a spec"),
        }],
    };
    BTreeMap::from([(parsed("shop"), Arc::new(record))])
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u16>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0ad2_0000 | u32::from(bits)))),
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | bits >> 8))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        any::<u64>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(bits)))),
    ]
}

proptest! {
    #[test]
    fn the_filter_lets_in_exactly_whom_the_relay_would(
        about: bool, drawn in prop::collection::vec(any::<u8>(), 0..4), from in address(), udp: bool,
    ) {
        let network = network();
        let inside = match from {
            IpAddr::V4(from) => network.settings.cidr.contains(&from),
            IpAddr::V6(from) => network.settings.cidr6.is_some_and(|range| range.contains(&from)),
        };
        // Who comes from the cluster's network is not led.
        prop_assume!(!inside);
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let policies = policies(about, &drawn);
        let (namespace, service) = (parsed("shop"), parsed("web"));
        let own = policies.get(&namespace).map(AsRef::as_ref);
        let doors = published(&network.settings, &namespace, &service, own, protocol, 80);
        let (links, ports, endpoints) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let here = [local(2, "web", true, &[])];
        let input = Input {
            network: &network, bridge: "rv-t", links: &links, ports: &ports, mac: None, local: &here,
            endpoints: &endpoints, policies: &policies, leads: &[],
        };
        let to = if from.is_ipv4() { parsed("10.210.1.2") } else { parsed("fd10:210::1:2") };
        let weighed = weigh(&input, &Packet { from, to, protocol, port: 80, published: true });
        prop_assert_eq!(doors.admit(from), weighed.entering.allowed);
    }

    #[test]
    fn only_ports_that_are_open_lead_and_only_to_their_own_service_here(
        here in prop::collection::btree_map(2_u8..12, (0_u8..3, any::<bool>(), any::<bool>()), 0..8),
        open in prop::collection::vec((0_u8..3, any::<bool>(), 0_u8..4, prop::collection::vec((1_u8..3, 2_u8..12), 0..6)), 0..6),
    ) {
        let name = |number: u8| ["web", "web-2", "db"][usize::from(number)];
        let here: Vec<Local> = here.into_iter().map(|(place, (service, plugged, hears))| {
            let both = [(Protocol::Tcp, 80), (Protocol::Udp, 80)];
            local(place, name(service), plugged, if hears { &both } else { &[] })
        }).collect();
        let leads: Vec<Lead> = (0_u16..).zip(&open).map(|(at, (service, udp, ip, to))| {
            let (protocol, word) = if *udp { (Protocol::Udp, "udp") } else { (Protocol::Tcp, "tcp") };
            let ip = [None, Some("192.0.2.1"), Some("2001:db8::1"), Some("::")][usize::from(*ip)];
            let to: Vec<String> = to.iter().map(|(node, place)| format!("10.210.{node}.{place}:80")).collect();
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            lead(protocol, ip, 9000 + at, &format!("shop/{}:80/{word}", name(*service)), &to)
        }).collect();
        let text = text(&here, &leads, &BTreeMap::new());
        for (at, line) in text.lines().enumerate().filter(|(_, line)| line.contains(" dnat ip")) {
            let chain = text.lines().take(at).filter_map(|line| line.strip_prefix("\tchain ")).last().unwrap();
            let service = chain.split('.').nth(2).unwrap().replace('_', "-");
            let six = line.contains("dnat ip6");
            let target = line.split(" to ").nth(1).unwrap();
            let words = target.split(|letter: char| !(letter.is_ascii_hexdigit() || ".:".contains(letter)));
            let all: Vec<IpAddr> = words.filter_map(|word| {
                word.parse().ok().or_else(|| word.strip_suffix(":80")?.parse().ok())
            }).collect();
            prop_assert!(!all.is_empty(), "{}", line);
            for to in all {
                let is = |one: &&Local| {
                    let sixth = Ipv6Addr::from(u128::from(parsed::<Ipv6Addr>("fd10:210::1:0")) | u128::from(one.address.octets()[3]));
                    one.plug.is_some() && one.service.as_str() == service && to.is_ipv6() == six
                        && if six { IpAddr::V6(sixth) == to && !one.hears6.is_empty() } else { IpAddr::V4(one.address) == to }
                };
                prop_assert!(here.iter().any(|one| is(&one)), "{} is led to {}", chain, to);
                prop_assert!(leads.iter().any(|lead| lead.target.starts_with(&format!("shop/{service}:"))
                    && lead.to.iter().any(|led| six || led.ip() == to)), "{}", to);
            }
        }
        // Ports of the node that lead are those that were told.
        for port in text.split(" . ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u16>().ok()) {
            prop_assert!(leads.iter().any(|lead| lead.at.port == port), "{}", port);
        }
    }
}
