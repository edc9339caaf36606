//! Records of the cluster's network: how it is laid out, what each node has of it, and who answers to a service's name. The
//! settings are an administrator's; what a node can do it says itself, untrusted; the rest is the leader's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{ClusterId, SchemaVersion, Uid};
use crate::container::Protocol;
use crate::meta::is_default;
use crate::names::{NodeName, ResourceName, Slot};
use crate::network_policy::NetworkPolicySpec;

/// How the cluster's network is laid out: in the cluster's marker, and with every assignment. The ranges never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSettings {
    /// From which nodes get their subnets: a private range, /8 to /24.
    pub cidr: Ipv4Net,
    /// The same of IPv6; none where containers have none. It has at least 16 + (the nodes' bits) bits to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr6: Option<Ipv6Net>,
    /// The length of a node's subnet's prefix: longer than the range's, at most 28. 24 unless said: 253 addresses.
    pub node_prefix: u8,
    /// What carries traffic between nodes.
    pub backend: Backend,
    /// The domain of names, without a dot at its end: `reeve.internal` unless said.
    pub domain: String,
    /// The UDP port of the links: 51820 unless said; VXLAN's is 4789.
    pub port: u16,
    /// The largest packet in bytes; what fits the way to the other nodes where none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// After so many days at most a node replaces the key of its links: 1 to 3650, 30 unless said; 0: only when a person asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_days: Option<u16>,
}

/// What an administrator chose to carry traffic between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Encrypted: by the kernel where it can, else in a process of its own. A node that can do neither joins nothing.
    Wireguard,
    /// Encrypted, in a process of its own on every node.
    WireguardUser,
    /// In clear, for networks that are trusted, over whatever lies between the nodes.
    Vxlan,
    /// In clear, for nodes on one segment: plain routes by their own addresses.
    HostGw,
    /// Somebody else carries it: addresses and names, no links.
    None,
}

/// What carries one node's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// The kernel's own WireGuard.
    Wireguard,
    /// WireGuard in a process of ours; speaks with the kernel's.
    WireguardUser,
    Vxlan,
    HostGw,
    None,
}

impl Backend {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::WireguardUser => "wireguard-user",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::None => "none",
        }
    }
}

impl LinkKind {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wireguard => Backend::Wireguard.word(),
            Self::WireguardUser => Backend::WireguardUser.word(),
            Self::Vxlan => Backend::Vxlan.word(),
            Self::HostGw => Backend::HostGw.word(),
            Self::None => Backend::None.word(),
        }
    }
}

/// In a node's facts: how other nodes reach its containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// What it uses; None where it can do nothing of what is asked for, and `why` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<LinkKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The public key of its WireGuard, in base64: 44 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where its link listens: private addresses first. At most 8 count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// Where it listens for who has no private way to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<SocketAddr>,
    /// Its certificate and its signature over all this: readers believe no key without, where nodes have certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<LinkProof>,
}

/// That a link is a node's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkProof {
    /// In PEM.
    pub certificate: String,
    /// Over the link without its proof, as JSON.
    pub signature: String,
}

/// In an assignment: what the node is to have of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedNetwork {
    pub settings: NetworkSettings,
    pub subnet: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// Whether the host's own processes may reach and resolve what runs in it.
    #[serde(default, skip_serializing_if = "crate::meta::is_default")]
    pub exposed: bool,
}

/// In a report: what the node has of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedNetwork {
    pub subnet: Ipv4Net,
    /// Addresses of instances that are gone, while others may still think of them: nobody else gets them meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lingering: Vec<Lingering>,
}

/// An address whose instance is gone, and has not been for long.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lingering {
    pub address: Ipv4Addr,
    /// Whose it was: the same slot gets it again.
    pub uid: Uid,
    pub slot: Slot,
}

/// `peers/<node>`: what the other nodes need to reach a node's containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    pub node: NodeName,
    pub subnet: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// As its facts have it.
    pub link: NodeLink,
}

/// `endpoints/<namespace>/service/<name>`: where a service's instances are, for names and for what leads to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoints {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
    /// In order of slots, each once; instances without an address are not in it. At most 10,000.
    pub instances: Vec<Endpoint>,
}

/// A port of a service's containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Protocol,
    /// Where every node has it open; None where not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub everywhere: Option<Everywhere>,
}

/// A port of every node that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Everywhere {
    pub host_port: u16,
    /// The node's address it is open on; all when absent.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Whether who connects is told ahead.
    #[serde(default, skip_serializing_if = "is_default")]
    pub proxy_protocol: bool,
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub slot: Slot,
    pub node: NodeName,
    pub address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Whether it serves, and its node is there.
    pub ready: bool,
}

/// `policies/<namespace>`: the network policies of a namespace that are in force, for the nodes' filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    pub schema_version: SchemaVersion,
    pub cluster: ClusterId,
    /// In order of names, each once; at least one.
    pub policies: Vec<InForcePolicy>,
}

/// A network policy as it is in force: as it was last valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForcePolicy {
    pub name: ResourceName,
    pub spec: NetworkPolicySpec,
}

/// The default domain of names.
pub const DEFAULT_DOMAIN: &str = "reeve.internal";
/// The default range.
pub const DEFAULT_CIDR: &str = "10.210.0.0/16";
/// The default length of a node's prefix.
pub const DEFAULT_NODE_PREFIX: u8 = 24;
/// The default age of a link's key, and the most, in days.
pub const DEFAULT_KEY_DAYS: u16 = 30;
pub const MAX_KEY_DAYS: u16 = 3_650;
/// WireGuard's usual port, and VXLAN's as IANA has it.
pub const WIREGUARD_PORT: u16 = 51_820;
pub const VXLAN_PORT: u16 = 4_789;

impl NetworkSettings {
    /// What is wrong with it, each with its remedy; nothing where it can be used.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let Self {
            cidr,
            cidr6,
            node_prefix,
            backend: _,
            domain,
            port,
            mtu,
            key_days,
        } = self;
        let mut found = Vec::new();
        let shared: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
        let private = cidr.network().is_private() && cidr.broadcast().is_private();
        if !private && !shared.contains(cidr) {
            found.push(format!(
                "{cidr} is not a private range: choose one of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
            ));
        }
        if cidr.addr() != cidr.network() {
            found.push(format!("{cidr} is an address in a range: write {}", cidr.trunc()));
        }
        if *node_prefix > 28 || *node_prefix <= cidr.prefix_len() || node_prefix - cidr.prefix_len() > 16 {
            let (least, most) = (
                cidr.prefix_len().saturating_add(1),
                cidr.prefix_len().saturating_add(16).min(28),
            );
            found.push(format!(
                "a node's part of {cidr} cannot be a /{node_prefix}: choose a length from {least} to {most}, or another range"
            ));
        }
        if let Some(cidr6) = cidr6 {
            let local = u128::from(cidr6.network()) >> 121 == 0xfc >> 1;
            if !local || cidr6.prefix_len() > 96 || cidr6.addr() != cidr6.network() {
                found.push(format!(
                    "{cidr6} is not a range of fc00::/7 of at most /96: choose one such as fd12:3456:789a::/64"
                ));
            }
        }
        let label = |label: &str| label.parse::<NodeName>().is_ok();
        if domain.len() > 100 || !domain.split('.').all(label) {
            found.push(format!(
                "`{domain}` is not a domain of at most 100 letters, digits and dashes between dots: write one such as {DEFAULT_DOMAIN}"
            ));
        }
        if *port == 0 {
            found.push("0 is no port: choose one from 1 to 65535".to_owned());
        }
        if mtu.is_some_and(|mtu| !(1_280..=9_216).contains(&mtu)) {
            found.push("the largest packet has 1280 to 9216 bytes".to_owned());
        }
        if key_days.is_some_and(|days| days > MAX_KEY_DAYS) {
            found.push(format!(
                "keys are replaced after 1 to {MAX_KEY_DAYS} days, or with 0 only when a person asks"
            ));
        }
        found
    }

    /// After how many days at most a node replaces the key of its links; None: only when a person asks.
    #[must_use]
    pub fn key_days(&self) -> Option<u16> {
        Some(self.key_days.unwrap_or(DEFAULT_KEY_DAYS)).filter(|days| *days > 0)
    }

    /// Whether its links have keys.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        matches!(self.backend, Backend::Wireguard | Backend::WireguardUser)
    }

    /// How many nodes it has subnets for.
    #[must_use]
    pub fn subnets(&self) -> u32 {
        let bits = self.node_prefix.saturating_sub(self.cidr.prefix_len());
        1_u32.checked_shl(u32::from(bits)).unwrap_or(0)
    }

    /// The subnet of this number, from 0; None beyond the last.
    #[must_use]
    pub fn subnet(&self, number: u32) -> Option<Ipv4Net> {
        if number >= self.subnets() || self.node_prefix > 30 {
            return None;
        }
        let size = 32 - u32::from(self.node_prefix);
        let first = u32::from(self.cidr.network()).checked_add(number << size)?;
        Ipv4Net::new(Ipv4Addr::from(first), self.node_prefix).ok()
    }

    /// The number of a subnet of this range; None of another's.
    #[must_use]
    pub fn number(&self, subnet: &Ipv4Net) -> Option<u32> {
        if subnet.prefix_len() != self.node_prefix || subnet.addr() != subnet.network() || !self.cidr.contains(subnet) {
            return None;
        }
        let size = 32 - u32::from(self.node_prefix);
        Some((u32::from(subnet.network()) - u32::from(self.cidr.network())) >> size)
    }

    /// The IPv6 subnet beside a subnet: a /112 by the same number; None where there is no IPv6.
    #[must_use]
    pub fn subnet6(&self, number: u32) -> Option<Ipv6Net> {
        let range = self.cidr6?;
        let first = u128::from(range.network()).checked_add(u128::from(number) << 16)?;
        let subnet = Ipv6Net::new(Ipv6Addr::from(first), 112).ok()?;
        range.contains(&subnet).then_some(subnet)
    }
}

/// The gateway of a subnet: its first address, on the node's bridge.
#[must_use]
pub fn gateway(subnet: &Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// The IPv6 address beside an IPv4 one of a node: the same place in its subnet.
#[must_use]
pub fn address6(address: Ipv4Addr, subnet: &Ipv4Net, subnet6: &Ipv6Net) -> Ipv6Addr {
    let place = u32::from(address).wrapping_sub(u32::from(subnet.network())) & 0xffff;
    Ipv6Addr::from(u128::from(subnet6.network()) + u128::from(place))
}

/// The addresses of a subnet that instances may have: without the network's own, the gateway's and the last.
#[must_use]
pub fn usable(subnet: &Ipv4Net) -> std::ops::RangeInclusive<u32> {
    let first = u32::from(subnet.network()) + 2;
    first..=u32::from(subnet.broadcast()).saturating_sub(1)
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.address)).chain(self.address6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> NetworkSettings {
        NetworkSettings {
            cidr: DEFAULT_CIDR.parse().unwrap(),
            cidr6: Some("fd12:3456:789a::/64".parse().unwrap()),
            node_prefix: DEFAULT_NODE_PREFIX,
            backend: Backend::Wireguard,
            domain: DEFAULT_DOMAIN.to_owned(),
            port: WIREGUARD_PORT,
            mtu: None,
            key_days: None,
        }
    }

    #[test]
    fn the_defaults_can_be_used_and_what_cannot_says_why() {
        assert_eq!(settings().problems(), Vec::<String>::new());
        let wrong = |change: &dyn Fn(&mut NetworkSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.problems()
        };
        let said = [
            wrong(&|one| one.cidr = "8.8.0.0/16".parse().unwrap()),
            wrong(&|one| one.cidr = "10.1.2.3/16".parse().unwrap()),
            wrong(&|one| one.node_prefix = 29),
            wrong(&|one| one.node_prefix = 16),
            wrong(&|one| one.cidr6 = Some("2001:db8::/64".parse().unwrap())),
            wrong(&|one| one.cidr6 = Some("fd12::/100".parse().unwrap())),
            wrong(&|one| one.domain = "reeve..internal".to_owned()),
            wrong(&|one| one.domain = String::new()),
            wrong(&|one| one.port = 0),
            wrong(&|one| one.mtu = Some(576)),
            wrong(&|one| one.key_days = Some(3_651)),
        ];
        for problems in said {
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    #[test]
    fn keys_last_thirty_days_unless_said_and_nought_is_never() {
        let after = |key_days| NetworkSettings { key_days, ..settings() };
        assert_eq!(after(None).key_days(), Some(DEFAULT_KEY_DAYS));
        assert_eq!(after(Some(1)).key_days(), Some(1));
        assert_eq!(after(Some(0)).key_days(), None);
        assert_eq!(after(Some(MAX_KEY_DAYS)).problems(), Vec::<String>::new());
        let text = serde_json::to_string(&after(Some(7))).unwrap();
        assert!(text.contains("\"keyDays\":7"), "{text}");
        assert!(!serde_json::to_string(&settings()).unwrap().contains("keyDays"));
    }

    #[test]
    fn every_subnet_has_a_number_and_every_number_below_the_end_a_subnet() {
        let settings = settings();
        assert_eq!(settings.subnets(), 256);
        for number in [0, 1, 255] {
            let subnet = settings.subnet(number).unwrap();
            assert_eq!(settings.number(&subnet), Some(number));
            assert!(settings.subnet6(number).is_some());
        }
        assert_eq!(settings.subnet(256), None);
        for other in ["10.211.0.0/24", "10.210.0.0/25", "10.210.0.1/24"] {
            assert_eq!(settings.number(&other.parse().unwrap()), None, "{other}");
        }
        let (subnet, subnet6) = (settings.subnet(3).unwrap(), settings.subnet6(3).unwrap());
        assert_eq!(gateway(&subnet).to_string(), "10.210.3.1");
        assert_eq!(
            address6("10.210.3.7".parse().unwrap(), &subnet, &subnet6).to_string(),
            "fd12:3456:789a::3:7"
        );
    }
}
