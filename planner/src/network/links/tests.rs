//! Tests of a node's links.

use proptest::prelude::*;
use schemas::records::SchemaVersion;

use super::*;

fn name(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn cluster() -> ClusterId {
    "11111111222243338444555555555555".parse().unwrap()
}

fn settings(backend: Backend) -> NetworkSettings {
    NetworkSettings {
        cidr: "10.210.0.0/16".parse().unwrap(),
        cidr6: Some("fd00:210::/96".parse().unwrap()),
        node_prefix: 24,
        backend,
        domain: "reeve.internal".to_owned(),
        port: 51_820,
        mtu: None,
        key_days: None,
    }
}

fn assigned(backend: Backend, number: u32) -> AssignedNetwork {
    let settings = settings(backend);
    AssignedNetwork {
        subnet: settings.subnet(number).unwrap(),
        subnet6: settings.subnet6(number),
        settings,
        exposed: false,
    }
}

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn link(kind: LinkKind, number: u8) -> NodeLink {
    NodeLink {
        kind: Some(kind),
        why: None,
        key: Some(key(number).to_string()),
        endpoints: vec![SocketAddr::from(([192, 168, 7, number], 51_820))],
        public_endpoint: None,
        proof: None,
    }
}

fn peer(node: &str, kind: LinkKind, number: u8) -> (NodeName, Peer) {
    let assigned = assigned(Backend::Wireguard, u32::from(number));
    let peer = Peer {
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: name(node),
        subnet: assigned.subnet,
        subnet6: assigned.subnet6,
        link: link(kind, number),
    };
    (name(node), peer)
}

fn host() -> Host {
    Host {
        addresses: vec!["192.168.7.1/24".parse().unwrap()],
        beside: Vec::new(),
        mtu: 1500,
    }
}

fn see(backend: Backend, own: &NodeLink, peers: &BTreeMap<NodeName, Peer>) -> Links {
    links(&Input {
        cluster: &cluster(),
        node: &name("n1"),
        network: &assigned(backend, 1),
        own,
        peers,
        host: &host(),
    })
}

fn wireguard(links: &Links) -> &[WireguardPeer] {
    match &links.device.as_ref().unwrap().carrier {
        Carrier::Wireguard {
            peers,
            user: _,
            port: _,
        } => peers,
        Carrier::Vxlan { .. } => panic!("a VXLAN"),
    }
}

fn why<'a>(links: &'a Links, node: &str) -> &'a str {
    &links
        .refused
        .iter()
        .find(|refused| refused.node == name(node))
        .unwrap()
        .why
}

#[test]
fn both_kinds_of_wireguard_make_one_mesh() {
    let peers = BTreeMap::from([
        peer("n1", LinkKind::Wireguard, 1),
        peer("n2", LinkKind::Wireguard, 2),
        peer("n3", LinkKind::WireguardUser, 3),
    ]);
    let links = see(Backend::Wireguard, &link(LinkKind::WireguardUser, 1), &peers);
    assert_eq!(links.refused, []);
    assert_eq!(links.linked, BTreeSet::from([name("n2"), name("n3")]));
    let device = links.device.as_ref().unwrap();
    assert_eq!(device.mtu, 1440);
    assert!(device.name.len() <= 15 && device.name.starts_with("rv"));
    assert_eq!(device.addresses[0], "10.210.1.0".parse::<IpAddr>().unwrap());
    assert_eq!(device.addresses[1], "fd00:210::1:0".parse::<IpAddr>().unwrap());
    let two = &wireguard(&links)[0];
    assert_eq!(two.endpoint, Some("192.168.7.2:51820".parse().unwrap()));
    assert_eq!(
        two.allowed,
        ["10.210.2.0/24".parse().unwrap(), "fd00:210::2:0/112".parse().unwrap()]
    );
    assert_eq!(two.keepalive, None);
    let routes: Vec<String> = links
        .routes
        .iter()
        .map(|route| format!("{} {:?}", route.to, route.way))
        .collect();
    assert_eq!(
        routes,
        [
            "10.210.0.0/16 Unreachable",
            "10.210.2.0/24 Device",
            "10.210.3.0/24 Device",
            "fd00:210::/96 Unreachable",
            "fd00:210::2:0/112 Device",
            "fd00:210::3:0/112 Device",
        ]
    );
}

#[test]
fn who_cannot_encrypt_gets_no_link_and_is_named() {
    let (name2, mut none) = peer("n2", LinkKind::None, 2);
    none.link.kind = None;
    none.link.why = Some("no TUN\nhere".to_owned());
    let peers = BTreeMap::from([
        (name2, none),
        peer("n3", LinkKind::Vxlan, 3),
        peer("n4", LinkKind::Wireguard, 4),
    ]);
    let links = see(Backend::Wireguard, &link(LinkKind::Wireguard, 1), &peers);
    assert_eq!(links.linked, BTreeSet::from([name("n4")]));
    assert_eq!(why(&links, "n2"), "it has no link: no TUN here");
    assert!(why(&links, "n3").contains("in clear"), "{}", why(&links, "n3"));
    assert!(
        links
            .routes
            .iter()
            .all(|route| !route.to.to_string().starts_with("10.210.3."))
    );
    // And one's own.
    let mut own = link(LinkKind::Wireguard, 1);
    own.kind = None;
    own.why = Some("no TUN".to_owned());
    let links = see(Backend::Wireguard, &own, &peers);
    assert_eq!((links.device, links.why), (None, Some("no TUN".to_owned())));
    assert!(links.routes.iter().all(|route| route.way == Way::Unreachable));
    assert_eq!(links.routes.len(), 2, "nothing for the cluster leaves by another way");
    let links = see(Backend::Wireguard, &link(LinkKind::Vxlan, 1), &peers);
    assert!(links.device.is_none() && links.why.unwrap().contains("asks for wireguard"));
}

#[test]
fn a_private_address_counts_where_one_is_in_its_network_too() {
    let far = |public: Option<&str>| {
        let (node, mut peer) = peer("n2", LinkKind::Wireguard, 2);
        peer.link.endpoints = vec!["10.9.9.9:51820".parse().unwrap(), "192.168.7.2:51820".parse().unwrap()];
        peer.link.public_endpoint = public.map(|at| at.parse().unwrap());
        (node, peer)
    };
    let seen = |peer: (NodeName, Peer), own: &NodeLink| {
        let links = see(Backend::Wireguard, own, &BTreeMap::from([peer]));
        let peer = wireguard(&links)[0].clone();
        (peer.endpoint.map(|at| at.to_string()), peer.keepalive)
    };
    let own = link(LinkKind::Wireguard, 1);
    let near = "192.168.7.2:51820".to_owned();
    assert_eq!(seen(far(Some("203.0.113.7:4000")), &own), (Some(near), None));
    let elsewhere = |public| {
        let (node, mut peer) = far(public);
        peer.link.endpoints.truncate(1);
        (node, peer)
    };
    let public = "203.0.113.7:4000".to_owned();
    assert_eq!(
        seen(elsewhere(Some(&public)), &own),
        (Some(public.clone()), Some(25)),
        "behind translation, one speaks first and again"
    );
    let mut reached = own.clone();
    reached.public_endpoint = Some("198.51.100.1:51820".parse().unwrap());
    assert_eq!(seen(elsewhere(Some(&public)), &reached), (Some(public.clone()), None));
    assert_eq!(seen(elsewhere(None), &own), (Some("10.9.9.9:51820".to_owned()), None));
    let (node, mut hidden) = far(None);
    // Nobody's address, one inside the network itself, one of a family that this host does not speak.
    hidden.link.endpoints = [
        "0.0.0.0:1",
        "10.210.7.7:51820",
        "127.0.0.1:9",
        "192.168.7.3:0",
        "[2001:db8::1]:51820",
    ]
    .map(|at| at.parse().unwrap())
    .to_vec();
    assert_eq!(seen((node, hidden), &own), (None, None));
}

#[test]
fn a_record_that_makes_no_sense_gets_no_link_and_the_others_do() {
    let changed = |node: &str, number: u8, change: fn(&mut Peer)| {
        let (node, mut peer) = peer(node, LinkKind::Wireguard, number);
        change(&mut peer);
        (node, peer)
    };
    let peers = BTreeMap::from([
        changed("a", 2, |peer| peer.subnet = "10.211.2.0/24".parse().unwrap()),
        changed("b", 3, |peer| peer.subnet = "10.210.2.0/23".parse().unwrap()),
        changed("c", 1, |peer| peer.link.key = Some(key(77).to_string())),
        changed("d", 4, |peer| peer.subnet6 = Some("fd00:210::9:0/112".parse().unwrap())),
        changed("e", 5, |peer| peer.link.key = Some(key(1).to_string())),
        changed("f", 6, |peer| peer.link.key = Some("short".to_owned())),
        changed("g", 7, |peer| peer.link.key = None),
        changed("h", 8, |peer| {
            peer.cluster = "99999999222243338444555555555555".parse().unwrap()
        }),
        changed("i", 9, |peer| peer.node = "n9".parse().unwrap()),
        changed("j", 10, |_| {}),
        changed("k", 10, |peer| peer.link.key = Some(key(99).to_string())),
        changed("l", 12, |peer| peer.link.key = Some(key(10).to_string())),
        changed("m", 13, |_| {}),
    ]);
    let links = see(Backend::Wireguard, &link(LinkKind::Wireguard, 1), &peers);
    assert_eq!(links.linked, BTreeSet::from([name("j"), name("m")]));
    for (node, word) in [
        ("a", "none of the range"),
        ("b", "none of the range"),
        ("c", "this node's own"),
        ("d", "IPv6"),
        ("e", "key is this node's own"),
        ("f", "44 characters"),
        ("g", "no key"),
        ("h", "another cluster"),
        ("i", "about the node n9"),
        ("k", "that of j"),
        ("l", "key is that of j"),
    ] {
        assert!(why(&links, node).contains(word), "{node}: {}", why(&links, node));
    }
}

#[test]
fn vxlan_needs_no_learning() {
    let peers = BTreeMap::from([peer("n2", LinkKind::Vxlan, 2), peer("n3", LinkKind::Wireguard, 3)]);
    let links = see(Backend::Vxlan, &link(LinkKind::Vxlan, 1), &peers);
    let device = links.device.clone().unwrap();
    assert_eq!(device.mtu, 1450);
    let Carrier::Vxlan {
        id,
        port: _,
        mac,
        local,
        peers,
    } = device.carrier
    else {
        panic!("no VXLAN");
    };
    assert!((1..1 << 24).contains(&id));
    assert_eq!((mac.to_string().as_str(), local), ("0a:52:0a:d2:01:00", None));
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].mac.to_string(), "0a:52:0a:d2:02:00");
    assert_eq!(peers[0].remote.to_string(), "192.168.7.2");
    assert_eq!(
        peers[0].inside,
        [
            "10.210.2.0".parse::<IpAddr>().unwrap(),
            "fd00:210::2:0".parse().unwrap()
        ]
    );
    assert_eq!(links.routes[1].way, Way::Over("10.210.2.0".parse().unwrap()));
    assert_eq!(why(&links, "n3"), "it uses wireguard, this node vxlan");
}

#[test]
fn plain_routes_lead_along_one_segment_only() {
    let (far, mut elsewhere) = peer("n3", LinkKind::HostGw, 3);
    elsewhere.link.endpoints = vec!["10.9.9.9:51820".parse().unwrap()];
    let peers = BTreeMap::from([peer("n2", LinkKind::HostGw, 2), (far, elsewhere)]);
    let links = see(Backend::HostGw, &link(LinkKind::HostGw, 1), &peers);
    assert_eq!(links.device, None);
    assert_eq!(links.routes[1].way, Way::Via("192.168.7.2".parse().unwrap()));
    assert!(why(&links, "n3").contains("no segment"));
    let none = see(Backend::None, &link(LinkKind::None, 1), &peers);
    assert_eq!((none.routes, none.device, none.refused), (vec![], None, vec![]));
}

#[test]
fn packets_fit_the_way() {
    let plain = settings(Backend::Wireguard);
    let size = |kind, outside6| mtu(&plain, kind, 1500, outside6);
    assert_eq!(
        (size(LinkKind::Wireguard, true), size(LinkKind::WireguardUser, false)),
        (1420, 1440)
    );
    assert_eq!(
        (size(LinkKind::Vxlan, true), size(LinkKind::Vxlan, false)),
        (1430, 1450)
    );
    assert_eq!(
        (size(LinkKind::HostGw, true), size(LinkKind::None, false)),
        (1500, 1500)
    );
    assert_eq!(mtu(&plain, LinkKind::Vxlan, 0, false), MIN_MTU);
    let said = NetworkSettings {
        mtu: Some(1300),
        ..plain
    };
    assert_eq!(mtu(&said, LinkKind::Vxlan, 9000, false), 1300);
}

#[test]
fn a_node_uses_the_kernel_where_it_can_and_says_what_would_help() {
    let no = || Err("no such device".to_owned());
    let all = Probed {
        wireguard: Ok(()),
        tun: Ok(()),
        vxlan: Ok(()),
    };
    let user = Probed {
        wireguard: no(),
        ..all.clone()
    };
    let nothing = Probed {
        wireguard: no(),
        tun: no(),
        vxlan: no(),
    };
    assert_eq!(kind(Backend::Wireguard, &all), Ok(LinkKind::Wireguard));
    assert_eq!(kind(Backend::WireguardUser, &all), Ok(LinkKind::WireguardUser));
    assert_eq!(kind(Backend::Wireguard, &user), Ok(LinkKind::WireguardUser));
    let why = kind(Backend::Wireguard, &nothing).unwrap_err();
    assert!(
        why.contains("modprobe tun") && why.contains("until it can encrypt"),
        "{why}"
    );
    assert!(kind(Backend::Vxlan, &nothing).unwrap_err().contains("modprobe vxlan"));
    assert_eq!(kind(Backend::HostGw, &nothing), Ok(LinkKind::HostGw));
    assert_eq!(kind(Backend::None, &nothing), Ok(LinkKind::None));
}

#[test]
fn a_host_says_which_of_its_own_addresses_lies_in_the_clusters_network() {
    let settings = settings(Backend::Wireguard);
    let beside = |networks: &[&str]| Host {
        beside: networks
            .iter()
            .map(|network| ("eth0".to_owned(), network.parse().unwrap()))
            .collect(),
        ..host()
    };
    let free = beside(&["192.168.7.1/24", "10.209.255.255/8", "10.211.0.1/16", "fd00:211::1/64"]);
    assert_eq!(clash(&settings, &free), None);
    for network in ["10.210.9.1/24", "10.210.3.3/32", "fd00:210::9/64"] {
        let why = clash(&settings, &beside(&["192.168.7.1/24", network])).unwrap();
        assert!(
            why.starts_with(&format!("eth0 of this host has the address {network}")),
            "{why}"
        );
    }
}

#[test]
fn a_node_says_its_private_addresses_first() {
    let host = Host {
        addresses: [
            "203.0.113.9/24",
            "192.168.7.1/24",
            "127.0.0.1/8",
            "10.210.1.1/24",
            "fe80::1/64",
            "100.64.3.3/10",
        ]
        .map(|address| address.parse().unwrap())
        .to_vec(),
        ..host()
    };
    let settings = settings(Backend::Wireguard);
    let link = own(Ok(LinkKind::Wireguard), Some(&key(3)), &settings, &host, None);
    let said: Vec<String> = link.endpoints.iter().map(SocketAddr::to_string).collect();
    assert_eq!(said, ["100.64.3.3:51820", "192.168.7.1:51820", "203.0.113.9:51820"]);
    assert_eq!(link.public_endpoint, Some("203.0.113.9:51820".parse().unwrap()));
    assert_eq!(link.key, Some(key(3).to_string()));
    let none = own(Err("no".to_owned()), Some(&key(3)), &settings, &host, None);
    assert_eq!((none.kind, none.key, none.why), (None, None, Some("no".to_owned())));
}

#[test]
fn a_key_is_read_as_it_is_written() {
    let text = "8bdQrVLqiw3ZoHCucNh1YfH0iCWuyStniRr8t7H24Fk=";
    let key: Key = text.parse().unwrap();
    assert_eq!((key.0[0], key.to_string().as_str()), (0xf1, text));
    for bad in [
        "",
        "=",
        "8bdQrVLqiw3ZoHCucNh1YfH0iCWuyStniRr8t7H24Fl=",
        "8bdQrVLqiw3ZoHCucNh1YfH0iCWuyStniRr8t7H24F =",
        "8bdQrVLqiw3ZoHCucNh1YfH0iCWuyStniRr8t7H24Fk",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ] {
        assert_eq!(bad.parse::<Key>(), Err(BadKey), "{bad}");
    }
}

fn any_link() -> impl Strategy<Value = NodeLink> {
    let kinds = prop::option::of(prop::sample::select(vec![
        LinkKind::Wireguard,
        LinkKind::WireguardUser,
        LinkKind::Vxlan,
        LinkKind::HostGw,
        LinkKind::None,
    ]));
    let at = (any::<bool>(), any::<u32>(), any::<u128>(), any::<u16>()).prop_map(|(six, four, long, port)| {
        if six {
            SocketAddr::new(IpAddr::V6(Ipv6Addr::from(long)), port)
        } else {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::from(four)), port)
        }
    });
    let near = (0_u8..=255, any::<u16>()).prop_map(|(last, port)| SocketAddr::from(([192, 168, 7, last], port)));
    let at = prop_oneof![at, near].boxed();
    let keys = prop_oneof![(0_u8..6).prop_map(|number| key(number).to_string()), ".{0,50}"];
    let endpoints = prop::collection::vec(at.clone(), 0..12);
    (
        kinds,
        prop::option::of(".{0,400}"),
        prop::option::of(keys),
        endpoints,
        prop::option::of(at),
    )
        .prop_map(|(kind, why, key, endpoints, public_endpoint)| NodeLink {
            kind,
            why,
            key,
            endpoints,
            public_endpoint,
            proof: None,
        })
}

fn any_peer() -> impl Strategy<Value = Peer> {
    let subnet = prop_oneof![
        (0_u32..6).prop_map(|number| settings(Backend::Wireguard).subnet(number).unwrap()),
        (any::<u32>(), 0_u8..=32).prop_map(|(first, length)| Ipv4Net::new(Ipv4Addr::from(first), length).unwrap()),
    ];
    let subnet6 = prop::option::of(
        (any::<u128>(), 0_u8..=128)
            .prop_map(|(first, length)| ipnet::Ipv6Net::new(Ipv6Addr::from(first), length).unwrap()),
    );
    (subnet, subnet6, any::<bool>(), any_link(), 0_u8..4).prop_map(|(subnet, odd, derived, link, node)| Peer {
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: name(&format!("n{node}")),
        subnet6: if derived {
            let settings = settings(Backend::Wireguard);
            settings.number(&subnet).and_then(|number| settings.subnet6(number))
        } else {
            odd
        },
        subnet,
        link,
    })
}

proptest! {
    #[test]
    fn whatever_nodes_say_links_are_apart_and_everybody_is_linked_or_named(
        peers in prop::collection::btree_map((0_u8..6).prop_map(|n| name(&format!("n{n}"))), any_peer(), 0..6),
        own in any_link(),
        backend in prop::sample::select(vec![Backend::Wireguard, Backend::WireguardUser, Backend::Vxlan, Backend::HostGw, Backend::None]),
        mtu in any::<u16>(),
        size in prop::option::of(any::<u16>()),
        addresses in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..4),
    ) {
        let mut network = assigned(backend, 1);
        network.settings.mtu = size;
        let addresses = addresses
            .into_iter()
            .map(|(address, length)| IpNet::new(IpAddr::V4(Ipv4Addr::from(address)), length).unwrap())
            .chain(host().addresses)
            .collect();
        let host = Host { addresses, mtu, ..host() };
        let input = Input { cluster: &cluster(), node: &name("n1"), network: &network, own: &own, peers: &peers, host: &host };
        let links = links(&input);
        prop_assert_eq!(&links, &super::links(&input));
        if links.why.is_none() && backend != Backend::None {
            let others = peers.keys().filter(|peer| **peer != name("n1")).count();
            prop_assert_eq!(links.linked.len() + links.refused.len(), others);
        }
        // Routes to others are apart from each other and from one's own, and lie in the ranges.
        let led: Vec<IpNet> = links.routes.iter().filter(|route| route.way != Way::Unreachable).map(|route| route.to).collect();
        for (place, route) in led.iter().enumerate() {
            prop_assert!(links.ranges.iter().any(|range| range.contains(route)));
            prop_assert!(!route.contains(&IpNet::V4(network.subnet)) && !IpNet::V4(network.subnet).contains(route));
            for other in &led[place + 1..] {
                prop_assert!(!route.contains(other) && !other.contains(route), "{} {}", route, other);
            }
        }
        let encrypted = matches!(backend, Backend::Wireguard | Backend::WireguardUser);
        if let Some(device) = &links.device {
            prop_assert!(device.mtu >= MIN_MTU);
            match &device.carrier {
                Carrier::Wireguard { peers: seen, user: _, port: _ } => {
                    prop_assert!(encrypted);
                    let keys: BTreeSet<Key> = seen.iter().map(|peer| peer.key).collect();
                    prop_assert_eq!(keys.len(), seen.len());
                    for at in seen.iter().filter_map(|peer| peer.endpoint) {
                        prop_assert!(links.ranges.iter().all(|range| !range.contains(&at.ip())));
                    }
                    for peer in seen {
                        let kind = peers[&peer.node].link.kind;
                        prop_assert!(matches!(kind, Some(LinkKind::Wireguard | LinkKind::WireguardUser)));
                    }
                }
                Carrier::Vxlan { .. } => prop_assert!(!encrypted),
            }
        } else if encrypted {
            prop_assert!(led.is_empty(), "in clear: {:?}", led);
        }
        for refused in &links.refused {
            prop_assert!(refused.why.chars().count() < 400 && !refused.why.contains('\n'));
        }
    }
}
