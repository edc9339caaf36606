//! Who may talk to whom, as one node's packet filter. The agent calls [`rules`] with what runs here, who is where and which
//! policies are in force, and hands the text to `nft`. Promises: the same input gives the same text; nothing but names,
//! numbers and addresses that were checked reaches it; only traffic from or to this node's own bridge is touched. What is
//! meant by it stands in decision 0027.

mod allow;
mod lead;
mod options;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use schemas::container::Protocol;
use schemas::keys::ResourceKey;
use schemas::names::{Namespace, ResourceName};
use schemas::records::network::{address6, gateway};
use schemas::records::{AssignedNetwork, Endpoints, Policies};

pub use allow::{Direction, Doors, Judged, Packet, Rule, Seers, Side, Weighed, judge, published, seers, weigh};
pub use lead::{Flow, is_stale};
pub use options::{accepts, network_options};
pub use text::Ruleset;

use super::relay::Lead;
use crate::walls::metadata;
use allow::{Allow, Ports, Who, allowed, from_nodes};
use text::Table;

/// What a node's filter follows from.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub network: &'a AssignedNetwork,
    /// The bridge of this node's containers.
    pub bridge: &'a str,
    /// The interfaces that lead to other nodes' containers; none where it may be any: other machines' word is then taken for
    /// where a packet comes from.
    pub links: &'a BTreeSet<String>,
    /// What the bridge's ports are called, as the kernel says.
    pub ports: &'a BTreeSet<String>,
    /// The bridge's own address as a machine; None while it is not there.
    pub mac: Option<[u8; 6]>,
    /// What runs here, and what is about to.
    pub local: &'a [Local],
    pub endpoints: &'a BTreeMap<ResourceKey, Arc<Endpoints>>,
    pub policies: &'a BTreeMap<Namespace, Arc<Policies>>,
    /// Ports of the node from which who comes from outside is led straight to instances of it.
    pub leads: &'a [Lead],
}

/// An instance on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub address: Ipv4Addr,
    pub namespace: Namespace,
    pub service: ResourceName,
    /// Ports of this host that lead to it.
    pub published: Vec<(u16, Protocol)>,
    /// Where it is plugged in; None while nobody knows.
    pub plug: Option<Plug>,
    /// Ports of [`Input::leads`] at which it listens by IPv6; what it has by IPv4 is asked by its health check.
    pub hears6: BTreeSet<(Protocol, u16)>,
}

/// A port of the bridge: only frames of this machine's address and the instance's addresses come out of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plug {
    /// The host's end of the pair.
    pub interface: String,
    pub mac: [u8; 6],
}

/// A node's filter. Two instances of one address, and names that no interface has, are left out.
#[must_use]
pub fn rules(input: &Input<'_>) -> Ruleset {
    let inside = Inside::new(input);
    Ruleset {
        inet: inside.routed(),
        bridge: inside.bridged(),
    }
}

/// A word that an interface may have as its name, and `nft` between quotes.
fn is_interface(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.@:".contains(letter);
    (1..=15).contains(&name.len()) && name.chars().all(plain)
}

/// A name as a part of the filter's own names: it has no `_` itself, so that two stay two.
fn word(name: &str) -> String {
    name.replace('-', "_")
}

struct Inside<'a> {
    input: &'a Input<'a>,
    local: BTreeMap<Ipv4Addr, &'a Local>,
    /// Of each service that runs here, its addresses.
    services: BTreeMap<(&'a Namespace, &'a ResourceName), Vec<Ipv4Addr>>,
    links: Vec<&'a str>,
}

impl<'a> Inside<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let mut local = BTreeMap::new();
        for one in input.local {
            if input.network.subnet.contains(&one.address) {
                local.entry(one.address).or_insert(one);
            }
        }
        let mut services: BTreeMap<_, Vec<Ipv4Addr>> = BTreeMap::new();
        for (address, one) in &local {
            services
                .entry((&one.namespace, &one.service))
                .or_default()
                .push(*address);
        }
        let links = input.links.iter().map(String::as_str).filter(|name| is_interface(name));
        Self {
            input,
            local,
            services,
            links: links.collect(),
        }
    }

    fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let network = self.input.network;
        Some(address6(address, &network.subnet, network.subnet6.as_ref()?))
    }

    fn bridge(&self) -> String {
        format!("\"{}\"", self.input.bridge)
    }

    /// The addresses of a namespace's services, or of one of them, wherever they are.
    fn of(&self, namespace: &Namespace, service: Option<&ResourceName>) -> BTreeSet<IpAddr> {
        let named = |key: &ResourceKey| {
            key.namespace.as_ref() == Some(namespace) && service.is_none_or(|service| key.name == *service)
        };
        // A namespace's keys stand together.
        let first = ResourceKey {
            namespace: Some(namespace.clone()),
            kind: schemas::kinds::Kind::Service,
            name: service.cloned().unwrap_or_else(first_name),
        };
        let published = self
            .input
            .endpoints
            .range(first..)
            .take_while(|(key, _)| named(key))
            .flat_map(|(_, endpoints)| &endpoints.instances);
        let mut found: BTreeSet<IpAddr> = published.flat_map(schemas::records::Endpoint::addresses).collect();
        // What is about to run here is published at the same time.
        for ((of, name), addresses) in &self.services {
            if *of == namespace && service.is_none_or(|service| *name == service) {
                found.extend(addresses.iter().map(|address| IpAddr::V4(*address)));
                let six = addresses.iter().filter_map(|address| self.address6(*address));
                found.extend(six.map(IpAddr::V6));
            }
        }
        found
    }

    /// What is routed: all that comes out of containers, and all that goes to them.
    fn routed(&self) -> Table {
        let mut table = Table::new("inet");
        let network = self.input.network;
        let (bridge, cidr, subnet) = (self.bridge(), network.settings.cidr, network.subnet);
        let six = network.settings.cidr6.zip(network.subnet6);
        for (name, kind) in [("local4", "ipv4_addr"), ("local6", "ipv6_addr")] {
            table.set(name, kind);
        }
        for (name, kind) in [
            ("in4", "ipv4_addr"),
            ("in6", "ipv6_addr"),
            ("out4", "ipv4_addr"),
            ("out6", "ipv6_addr"),
        ] {
            table.map(name, kind);
        }
        let mut closed: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
        for ((namespace, service), addresses) in &self.services {
            let suffix = format!("{}.{}", word(namespace.as_str()), word(service.as_str()));
            let policies = self.input.policies.get(*namespace).map(AsRef::as_ref);
            let mut ingress = allowed(Direction::Ingress, namespace, service, policies);
            let key = ResourceKey {
                namespace: Some((*namespace).clone()),
                kind: schemas::kinds::Kind::Service,
                name: (*service).clone(),
            };
            let open = self.input.endpoints.get(&key);
            ingress.allows.extend(open.and_then(|record| from_nodes(record)));
            let egress = allowed(Direction::Egress, namespace, service, policies);
            let mut rules: Vec<String> = ingress
                .allows
                .iter()
                .flat_map(|allow| self.rule(&mut table, allow, "saddr", "accept"))
                .collect();
            rules.push("counter goto refuse".to_owned());
            table.chain(&format!("in.{suffix}"), None, rules);
            if egress.selected {
                let mut rules: Vec<String> = egress
                    .allows
                    .iter()
                    .flat_map(|allow| self.rule(&mut table, allow, "daddr", "return"))
                    .collect();
                rules.push("counter goto refuse".to_owned());
                table.chain(&format!("out.{suffix}"), None, rules);
            }
            for address in addresses {
                let addresses = std::iter::once(IpAddr::V4(*address)).chain(self.address6(*address).map(IpAddr::V6));
                for address in addresses {
                    let family = if address.is_ipv4() { '4' } else { '6' };
                    let text = address.to_string();
                    table.add(&format!("local{family}"), &text, None);
                    table.add(&format!("in{family}"), &text, Some(format!("goto in.{suffix}")));
                    if egress.selected {
                        table.add(&format!("out{family}"), &text, Some(format!("jump out.{suffix}")));
                    }
                }
                if let Some(one) = self.local.get(address).filter(|_| ingress.selected) {
                    for (port, protocol) in &one.published {
                        closed.entry(protocol_word(*protocol)).or_default().insert(*port);
                    }
                }
            }
        }
        let known = |rules: &mut Vec<String>| {
            rules.push("ct state established,related accept".to_owned());
            rules.push("ct state invalid drop".to_owned());
        };
        table.chain(
            "refuse",
            None,
            vec![
                "meta l4proto tcp reject with tcp reset".to_owned(),
                "reject with icmpx type admin-prohibited".to_owned(),
            ],
        );
        // Out of containers, to whatever is not this host.
        let mut rules = Vec::new();
        known(&mut rules);
        rules.extend(metadata().map(|rule| format!("{rule} counter goto refuse")));
        rules.push("ip saddr != @local4 counter drop".to_owned());
        rules.push("ip6 saddr != @local6 counter drop".to_owned());
        rules.push("ip saddr vmap @out4".to_owned());
        rules.push("ip6 saddr vmap @out6".to_owned());
        table.chain("leaving", None, rules);
        // To containers, from wherever.
        let mut rules = Vec::new();
        known(&mut rules);
        let carriers: Vec<String> = std::iter::once(bridge.clone())
            .chain(self.links.iter().map(|link| format!("\"{link}\"")))
            .collect();
        let carriers = format!("{{ {} }}", carriers.join(", "));
        rules.push(format!("iifname != {bridge} ip saddr {subnet} counter drop"));
        if let Some((cidr6, subnet6)) = six {
            rules.push(format!("iifname != {bridge} ip6 saddr {subnet6} counter drop"));
            if !self.links.is_empty() {
                rules.push(format!("iifname != {carriers} ip6 saddr {cidr6} counter drop"));
            }
        }
        if !self.links.is_empty() {
            rules.push(format!("iifname != {carriers} ip saddr {cidr} counter drop"));
        }
        rules.push("ip daddr vmap @in4".to_owned());
        rules.push("ip6 daddr vmap @in6".to_owned());
        rules.push("counter goto refuse".to_owned());
        table.chain("entering", None, rules);
        table.chain(
            "forward",
            Some("type filter hook forward priority -10; policy accept;"),
            vec![
                format!("iifname {bridge} jump leaving"),
                format!("oifname {bridge} jump entering"),
            ],
        );
        self.host(&mut table, &closed);
        self.leading(&mut table);
        let mut rules = vec![format!(
            "ip saddr {subnet} ip daddr != {cidr} oifname != {carriers} masquerade"
        )];
        if let Some((cidr6, subnet6)) = six {
            rules.push(format!(
                "ip6 saddr {subnet6} ip6 daddr != {cidr6} oifname != {carriers} masquerade"
            ));
        }
        table.chain(
            "postrouting",
            Some("type nat hook postrouting priority 100; policy accept;"),
            rules,
        );
        table
    }

    /// What goes to this host itself. Which of its own ports are closed to containers is `walls`'.
    fn host(&self, table: &mut Table, closed: &BTreeMap<&str, BTreeSet<u16>>) {
        let network = self.input.network;
        let (bridge, settings) = (self.bridge(), &network.settings);
        let mut rules = vec![
            "ct state established,related accept".to_owned(),
            "ct state invalid drop".to_owned(),
            // Neighbours are found by it.
            "meta l4proto ipv6-icmp accept".to_owned(),
            "ip saddr != @local4 counter drop".to_owned(),
            "ip6 saddr != @local6 counter drop".to_owned(),
            "icmp type echo-request accept".to_owned(),
        ];
        rules.extend(metadata().map(|rule| format!("{rule} counter goto refuse")));
        let gateway4 = gateway(&network.subnet);
        for protocol in ["udp", "tcp"] {
            rules.push(format!("ip daddr {gateway4} {protocol} dport 53 accept"));
            if let Some(gateway6) = self.address6(gateway4) {
                rules.push(format!("ip6 daddr {gateway6} {protocol} dport 53 accept"));
            }
        }
        rules.push("ip saddr vmap @out4".to_owned());
        rules.push("ip6 saddr vmap @out6".to_owned());
        // What leads from here to a service that a policy is about would come to it as this host.
        for (protocol, ports) in closed {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            rules.push(format!(
                "{protocol} dport {{ {} }} counter goto refuse",
                ports.join(", ")
            ));
        }
        table.chain("here", None, rules);
        table.chain(
            "far",
            None,
            vec![
                "ct state established,related accept".to_owned(),
                "icmp type echo-request accept".to_owned(),
                "meta l4proto ipv6-icmp accept".to_owned(),
                "counter goto refuse".to_owned(),
            ],
        );
        let mut rules = vec![
            format!("iifname {bridge} jump here"),
            format!(
                "iifname != {{ {bridge}, \"lo\" }} ip saddr {} ip saddr & {} != 0.0.0.0 jump far",
                settings.cidr,
                host_mask(settings.node_prefix)
            ),
        ];
        if let Some(cidr6) = settings.cidr6 {
            rules.push(format!(
                "iifname != {{ {bridge}, \"lo\" }} ip6 saddr {cidr6} ip6 saddr & ::fffe != :: jump far"
            ));
        }
        table.chain(
            "input",
            Some("type filter hook input priority -10; policy accept;"),
            rules,
        );
        // Containers would be told to go straight to each other, past this host.
        let mut rules = vec![
            format!("oifname {bridge} icmp type redirect drop"),
            format!("oifname {bridge} icmpv6 type nd-redirect drop"),
        ];
        if !network.exposed {
            rules.extend(self.hidden(table));
        }
        table.chain(
            "output",
            Some("type filter hook output priority -10; policy accept;"),
            rules,
        );
    }

    /// What keeps this host's own processes away from containers, but for root's: the agent and the engine run as root, and who is
    /// root here could take these rules away. What the kernel itself says is nobody's.
    fn hidden(&self, table: &mut Table) -> Vec<String> {
        let network = self.input.network;
        let gateway4 = gateway(&network.subnet);
        table.chain(
            "hidden",
            None,
            vec![
                "ct state established,related accept".to_owned(),
                // By a published port.
                "ct status dnat accept".to_owned(),
                "meta skuid != 0 counter goto refuse".to_owned(),
            ],
        );
        let six = network.settings.cidr6.zip(self.address6(gateway4));
        let four = format!("ip daddr {} ip daddr != {gateway4} jump hidden", network.settings.cidr);
        let six = six.map(|(cidr6, gateway6)| format!("ip6 daddr {cidr6} ip6 daddr != {gateway6} jump hidden"));
        std::iter::once(four).chain(six).collect()
    }

    /// The rules of one that is allowed: none, where nothing can match.
    fn rule(&self, table: &mut Table, allow: &Allow, side: &str, verdict: &str) -> Vec<String> {
        let settings = &self.input.network.settings;
        let who: Vec<String> = match &allow.who {
            Who::Any => vec![String::new()],
            Who::Namespace(namespace) => self.named(table, namespace, None, side),
            Who::Service(namespace, service) => self.named(table, namespace, Some(service), side),
            Who::Hosts => {
                let four = format!(
                    "ip {side} {} ip {side} & {} == 0.0.0.0 ",
                    settings.cidr,
                    host_mask(settings.node_prefix)
                );
                let six = settings
                    .cidr6
                    .map(|cidr6| format!("ip6 {side} {cidr6} ip6 {side} & ::fffe == :: "));
                std::iter::once(four).chain(six).collect()
            }
            Who::Published => vec!["ct status dnat ".to_owned()],
            Who::Block(whole, except) => {
                let (family, cluster) = match whole {
                    ipnet::IpNet::V4(_) => ("ip", Some(settings.cidr.to_string())),
                    ipnet::IpNet::V6(_) => ("ip6", settings.cidr6.map(|cidr6| cidr6.to_string())),
                };
                let mut text = cluster.map_or_else(String::new, |range| format!("{family} {side} != {range} "));
                if whole.prefix_len() > 0 {
                    text.push_str(&format!("{family} {side} {whole} "));
                } else {
                    let protocol = if family == "ip" { "ipv4" } else { "ipv6" };
                    text.push_str(&format!("meta nfproto {protocol} "));
                }
                for left_out in except {
                    text.push_str(&format!("{family} {side} != {left_out} "));
                }
                vec![text]
            }
        };
        let ports: Vec<String> = match &allow.ports {
            Ports::All => vec![String::new()],
            Ports::Some { tcp, udp } => [("tcp", tcp), ("udp", udp)]
                .into_iter()
                .filter(|(_, ranges)| !ranges.is_empty())
                .map(|(protocol, ranges)| {
                    let range = |(first, last): &(u16, u16)| match first == last {
                        true => first.to_string(),
                        false => format!("{first}-{last}"),
                    };
                    let ranges: Vec<String> = ranges.iter().map(range).collect();
                    format!("{protocol} dport {{ {} }} ", ranges.join(", "))
                })
                .collect(),
        };
        who.iter()
            .flat_map(|who| ports.iter().map(move |ports| format!("{who}{ports}{verdict}")))
            .collect()
    }

    /// Matches on the sets of addresses of a namespace, or of a service: made where they are needed.
    fn named(
        &self,
        table: &mut Table,
        namespace: &Namespace,
        service: Option<&ResourceName>,
        side: &str,
    ) -> Vec<String> {
        let name = match service {
            None => format!("ns.{}", word(namespace.as_str())),
            Some(service) => format!("svc.{}.{}", word(namespace.as_str()), word(service.as_str())),
        };
        let (four, six) = (format!("{name}.4"), format!("{name}.6"));
        let has_six = self.input.network.settings.cidr6.is_some();
        if !table.has(&four) {
            table.set(&four, "ipv4_addr");
            if has_six {
                table.set(&six, "ipv6_addr");
            }
            for address in self.of(namespace, service) {
                match address {
                    IpAddr::V4(_) => table.add(&four, &address.to_string(), None),
                    IpAddr::V6(_) if has_six => table.add(&six, &address.to_string(), None),
                    IpAddr::V6(_) => {}
                }
            }
        }
        let mut matches = vec![format!("ip {side} @{four} ")];
        if has_six {
            matches.push(format!("ip6 {side} @{six} "));
        }
        matches
    }

    /// What crosses the bridge itself: nothing, for all goes through this host; and nobody says he is another.
    fn bridged(&self) -> Table {
        let mut table = Table::new("bridge");
        let network = self.input.network;
        table.set("ports", "ifname");
        table.set("taken4", "ipv4_addr");
        if network.subnet6.is_some() {
            table.set("taken6", "ipv6_addr");
        }
        table.map("plugs", "ifname");
        for port in self.input.ports.iter().filter(|name| is_interface(name)) {
            table.add("ports", &format!("\"{port}\""), None);
        }
        let mut plugged: BTreeSet<&str> = BTreeSet::new();
        for (address, one) in &self.local {
            let Some(plug) = one.plug.as_ref().filter(|plug| is_interface(&plug.interface)) else {
                continue;
            };
            if !plugged.insert(&plug.interface) {
                continue;
            }
            let mut rules = vec![
                format!("ether saddr != {} counter drop", card(&plug.mac)),
                format!("arp saddr ip != {{ {address}, 0.0.0.0 }} counter drop"),
                format!("ip saddr != {address} counter drop"),
            ];
            table.add("taken4", &address.to_string(), None);
            let own6 = self.address6(*address);
            let six = own6.map_or_else(String::new, |own| format!("{own}, "));
            rules.push(format!("ip6 saddr != {{ {six}fe80::/10, :: }} counter drop"));
            if let (Some(own), Some(subnet6)) = (own6, network.subnet6) {
                table.add("taken6", &own.to_string(), None);
                // Whose neighbour it says it is: the first bits are the subnet's, and then the rest must be its own.
                let (whole, first) = (u128::from(own), u128::from(subnet6.network()) >> 16);
                rules.push(format!(
                    "icmpv6 type nd-neighbor-advert @th,64,112 {first:#x} @th,64,128 != {whole:#x} counter drop"
                ));
            }
            rules.push("accept".to_owned());
            let chain = format!("plug.{address}");
            table.chain(&chain, None, rules);
            table.add(
                "plugs",
                &format!("\"{}\"", plug.interface),
                Some(format!("goto {chain}")),
            );
        }
        // A port that nobody knows yet may be whoever has no port of his own.
        let mut rules = vec![
            "iifname vmap @plugs".to_owned(),
            "arp saddr ip @taken4 counter drop".to_owned(),
            "ip saddr @taken4 counter drop".to_owned(),
        ];
        let mut crossing = vec![
            "iifname @ports drop".to_owned(),
            "oifname @ports drop".to_owned(),
            format!("arp daddr ip {} drop", network.subnet),
            format!("ip daddr {} drop", network.subnet),
        ];
        if let Some(subnet6) = network.subnet6 {
            rules.push("ip6 saddr @taken6 counter drop".to_owned());
            crossing.push(format!("ip6 daddr {subnet6} drop"));
        }
        table.chain(
            "prerouting",
            Some("type filter hook prerouting priority -300; policy accept;"),
            rules,
        );
        // Who knows another's card from before goes through the host too.
        let mut through = Vec::new();
        if let Some(mac) = &self.input.mac {
            let redirected = format!("meta pkttype other ether daddr set {} meta pkttype set host", card(mac));
            through.push(format!("iifname @ports ip daddr {} {redirected}", network.subnet));
            if let Some(subnet6) = network.subnet6 {
                through.push(format!("iifname @ports ip6 daddr {subnet6} {redirected}"));
            }
        }
        table.chain(
            "through",
            Some("type filter hook prerouting priority -290; policy accept;"),
            through,
        );
        table.chain(
            "forward",
            Some("type filter hook forward priority -200; policy accept;"),
            crossing,
        );
        table
    }
}

/// A machine's address as it is written.
fn card(mac: &[u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

/// The bits of an address that are 0 in what a node itself speaks from: its link's address, which is its subnet's own, and
/// its bridge's, which is the next.
fn host_mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0) & !1)
}

const fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// No name is before it.
fn first_name() -> ResourceName {
    "0".parse().expect("a digit is a name")
}

#[cfg(test)]
mod tests;
