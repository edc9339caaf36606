//! A node's links to the other nodes, as values: which device it has, whom it reaches through it and where, and which routes
//! lead there. The agent calls [`kind`], [`own`] and [`links`]; the crate `network` makes it so. It promises that a node which
//! cannot encrypt, or whose record makes no sense, gets no link and is named with the reason; that nothing for the cluster's
//! ranges leaves by another way; and that no input panics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use schemas::names::NodeName;
use schemas::records::{AssignedNetwork, Backend, ClusterId, Digest, LinkKind, NetworkSettings, NodeLink, Peer};

/// Other nodes beyond this many, in order of their names, get no link.
pub const MAX_PEERS: usize = 5_000;
/// Of a node's addresses beyond this many none is looked at.
pub const MAX_ENDPOINTS: usize = 8;
/// How often a node that may be behind address translation makes itself heard, in seconds.
pub const KEEPALIVE_SECONDS: u16 = 25;
/// The number by which our routes are known, as `ip route show proto 186` shows them.
pub const ROUTE_PROTOCOL: u8 = 186;
/// The smallest packet a device of ours takes, in bytes: IPv6's least.
pub const MIN_MTU: u16 = 1_280;
/// Of a text from another node not more than this is repeated, in letters.
const MAX_WORDS: usize = 200;

/// A public key of WireGuard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// What this host has beside the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses, each with the network it is directly in; those of bridges for containers are none of them.
    pub addresses: Vec<IpNet>,
    /// Its devices that are not ours, each with its address and network: also bridges of engines.
    pub beside: Vec<(String, IpNet)>,
    /// The largest packet on the way to other nodes, in bytes.
    pub mtu: u16,
}

/// What this host's kernel can do; the reason where it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// WireGuard in the kernel.
    pub wireguard: Result<(), String>,
    /// Devices whose packets a process carries.
    pub tun: Result<(), String>,
    pub vxlan: Result<(), String>,
}

/// What [`links`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub cluster: &'a ClusterId,
    pub node: &'a NodeName,
    pub network: &'a AssignedNetwork,
    /// This node's link, as its facts say it.
    pub own: &'a NodeLink,
    /// Whose proofs were checked, where nodes have certificates.
    pub peers: &'a BTreeMap<NodeName, Peer>,
    pub host: &'a Host,
}

/// All that a node has of links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    pub names: Names,
    /// The cluster's ranges: a route of ours lies in them.
    pub ranges: Vec<IpNet>,
    pub device: Option<Device>,
    /// In order of where they lead.
    pub routes: Vec<Route>,
    pub linked: BTreeSet<NodeName>,
    /// Who gets no link, in order of names.
    pub refused: Vec<Refused>,
    /// Why this node has no links at all.
    pub why: Option<String>,
}

/// How this node's devices are called, whether they exist or not: nothing of another name is touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub wireguard: String,
    pub vxlan: String,
}

/// The device all links of a node go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// In bytes. Bridges for containers have the same.
    pub mtu: u16,
    /// What the host itself speaks from on this way: the network addresses of the node's subnets.
    pub addresses: Vec<IpAddr>,
    pub carrier: Carrier,
}

/// What is behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    Wireguard {
        /// In a process of ours, not in the kernel.
        user: bool,
        /// The UDP port it listens on.
        port: u16,
        /// In order of nodes.
        peers: Vec<WireguardPeer>,
    },
    Vxlan {
        /// 24 bits, of the cluster: two clusters on one wire do not hear each other.
        id: u32,
        port: u16,
        mac: Mac,
        /// This end's address where the outside is IPv6; with IPv4 the kernel picks it.
        local: Option<Ipv6Addr>,
        /// In order of nodes.
        peers: Vec<VxlanPeer>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireguardPeer {
    pub node: NodeName,
    pub key: Key,
    /// None: it must speak first.
    pub endpoint: Option<SocketAddr>,
    /// What it may send, and what goes to it: its subnets.
    pub allowed: Vec<IpNet>,
    /// In seconds; None: it is silent while nothing is to be sent.
    pub keepalive: Option<u16>,
}

/// A static entry of forwarding and one of neighbours for each address inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanPeer {
    pub node: NodeName,
    pub mac: Mac,
    pub remote: IpAddr,
    /// The other device's own addresses: what routes lead over.
    pub inside: Vec<IpAddr>,
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: IpNet,
    pub way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the device.
    Device,
    /// Into the device, to an address that no network of it holds.
    Over(IpAddr),
    /// To another host of this segment.
    Via(IpAddr),
    /// Nowhere: what has no link is refused at once, and leaves by no other way.
    Unreachable,
}

/// A node without a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub node: NodeName,
    pub why: String,
}

/// Which kind a node uses of what an administrator asked for; else why none, and what would help.
pub fn kind(backend: Backend, probed: &Probed) -> Result<LinkKind, String> {
    let Probed { wireguard, tun, vxlan } = probed;
    let user = || {
        tun.as_ref().map(|()| LinkKind::WireguardUser).map_err(|why| {
            format!(
                "no TUN device ({why}): load the kernel's module with `modprobe tun`, or give the agent /dev/net/tun"
            )
        })
    };
    match backend {
        Backend::Wireguard => match wireguard {
            Ok(()) => Ok(LinkKind::Wireguard),
            Err(none) => user().map_err(|why| {
                format!(
                    "no WireGuard in the kernel ({none}), and {why}; this node takes no part in the network until it can encrypt"
                )
            }),
        },
        Backend::WireguardUser => user(),
        Backend::Vxlan => vxlan.as_ref().map(|()| LinkKind::Vxlan).map_err(|why| {
            format!("no VXLAN in the kernel ({why}): load its module with `modprobe vxlan`")
        }),
        Backend::HostGw => Ok(LinkKind::HostGw),
        Backend::None => Ok(LinkKind::None),
    }
}

/// What a node's facts say of its link: private addresses first. `public` is where an administrator says it is reached from
/// elsewhere; without, its first address that is public.
#[must_use]
pub fn own(
    kind: Result<LinkKind, String>,
    key: Option<&Key>,
    settings: &NetworkSettings,
    host: &Host,
    public: Option<SocketAddr>,
) -> NodeLink {
    let reachable = |address: &IpAddr| usable(*address) && !in_ranges(settings, *address);
    let addresses: BTreeSet<IpAddr> = host.addresses.iter().map(IpNet::addr).filter(reachable).collect();
    let (private, global): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|address| is_private(*address));
    let at = |address: &IpAddr| SocketAddr::new(*address, settings.port);
    let (kind, why) = match kind {
        Ok(kind) => (Some(kind), None),
        Err(why) => (None, Some(why)),
    };
    let encrypts = matches!(kind, Some(LinkKind::Wireguard | LinkKind::WireguardUser));
    NodeLink {
        kind,
        why,
        key: key.filter(|_| encrypts).map(Key::to_string),
        endpoints: private.iter().chain(&global).map(at).take(MAX_ENDPOINTS).collect(),
        public_endpoint: public.or_else(|| global.first().map(at)),
        proof: None,
    }
}

/// What this host has inside the cluster's ranges that is not the cluster's: packets for one would be taken for the other's.
#[must_use]
pub fn clash(settings: &NetworkSettings, host: &Host) -> Option<String> {
    let (device, address) = host
        .beside
        .iter()
        .find(|(_, address)| in_ranges(settings, address.addr()))?;
    Some(format!(
        "{} of this host has the address {address}, inside of the cluster's network: give it one outside of it, else \
         containers may reach neither",
        words(device)
    ))
}

/// The largest packet inside, in bytes, where `outside6` says that links may go over IPv6.
#[must_use]
pub fn mtu(settings: &NetworkSettings, kind: LinkKind, underlay: u16, outside6: bool) -> u16 {
    let outside = match (kind, outside6) {
        (LinkKind::Wireguard | LinkKind::WireguardUser, true) => 80,
        (LinkKind::Wireguard | LinkKind::WireguardUser, false) => 60,
        (LinkKind::Vxlan, true) => 70,
        (LinkKind::Vxlan, false) => 50,
        (LinkKind::HostGw | LinkKind::None, _) => 0,
    };
    settings.mtu.unwrap_or(underlay.saturating_sub(outside)).max(MIN_MTU)
}

/// Whether a node's links may go over IPv6: it has such an address. It must not depend on who else there is, since bridges
/// get their size once.
#[must_use]
pub fn outside6(own: &NodeLink) -> bool {
    let all = own.endpoints.iter().take(MAX_ENDPOINTS).chain(&own.public_endpoint);
    all.into_iter().any(SocketAddr::is_ipv6)
}

/// How a node's devices are called: of cluster and node, for several may share a kernel.
#[must_use]
pub fn names(cluster: &ClusterId, node: &NodeName) -> Names {
    let digest = Digest::of(format!("reeve link\n{cluster}\n{node}\n").as_bytes()).to_string();
    let tail = digest.get(..10).unwrap_or_default();
    Names {
        wireguard: format!("rvw{tail}"),
        vxlan: format!("rvx{tail}"),
    }
}

/// All links of a node.
#[must_use]
pub fn links(input: &Input<'_>) -> Links {
    let Input {
        cluster,
        node,
        network,
        own,
        peers: _,
        host: _,
    } = *input;
    let AssignedNetwork {
        settings,
        subnet,
        subnet6,
        exposed: _,
    } = network;
    let ranges = std::iter::once(IpNet::V4(settings.cidr.trunc()))
        .chain(settings.cidr6.map(|range| IpNet::V6(range.trunc())))
        .collect::<Vec<_>>();
    let mut links = Links {
        names: names(cluster, node),
        routes: Vec::new(),
        device: None,
        linked: BTreeSet::new(),
        refused: Vec::new(),
        why: None,
        ranges,
    };
    if settings.backend == Backend::None {
        return links;
    }
    links.routes.extend(links.ranges.iter().map(|range| Route {
        to: *range,
        way: Way::Unreachable,
    }));
    let kind = match own.kind {
        Some(kind) if allowed(settings.backend, kind) => kind,
        Some(kind) => {
            links.why = Some(format!(
                "this node uses {}, and the cluster asks for {}",
                kind.word(),
                settings.backend.word()
            ));
            return links;
        }
        None => {
            links.why = Some(words(
                own.why
                    .as_deref()
                    .unwrap_or("this node says of itself that it has no link"),
            ));
            return links;
        }
    };
    if settings.number(subnet).is_none() {
        links.why = Some(format!(
            "this node's subnet {subnet} is none of the range {}",
            settings.cidr
        ));
        return links;
    }
    let mut door = Door {
        input,
        kind,
        subnets: BTreeMap::new(),
        keys: BTreeMap::new(),
        taken: 0,
    };
    let mut members = Vec::new();
    for (name, peer) in input.peers {
        if name == node {
            continue;
        }
        match door.admit(name, peer) {
            Ok(member) => members.push(member),
            Err(why) => links.refused.push(Refused {
                node: name.clone(),
                why,
            }),
        }
    }
    links.linked = members.iter().map(|member| member.node.clone()).collect();
    let inside = |subnet: &Ipv4Net, subnet6: &Option<ipnet::Ipv6Net>| -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(subnet.network()))
            .chain(subnet6.map(|subnet| IpAddr::V6(subnet.network())))
            .collect()
    };
    for member in &members {
        for subnet in &member.subnets {
            let same = |address: &IpAddr| address.is_ipv4() == matches!(subnet, IpNet::V4(_));
            let way = match kind {
                LinkKind::Wireguard | LinkKind::WireguardUser => Way::Device,
                LinkKind::Vxlan => Way::Over(subnet.network()),
                LinkKind::HostGw => match member.endpoints.iter().map(SocketAddr::ip).find(same) {
                    Some(address) => Way::Via(address),
                    None => continue,
                },
                LinkKind::None => continue,
            };
            links.routes.push(Route { to: *subnet, way });
        }
    }
    links.routes.sort_by_key(|route| route.to);
    let device = |name: &String, carrier| Device {
        name: name.clone(),
        mtu: mtu(settings, kind, input.host.mtu, outside6(own)),
        addresses: inside(subnet, subnet6),
        carrier,
    };
    links.device = match kind {
        LinkKind::Wireguard | LinkKind::WireguardUser => Some(device(
            &links.names.wireguard,
            Carrier::Wireguard {
                user: kind == LinkKind::WireguardUser,
                port: settings.port,
                peers: members.into_iter().filter_map(Member::wireguard).collect(),
            },
        )),
        LinkKind::Vxlan => Some(device(
            &links.names.vxlan,
            Carrier::Vxlan {
                id: vxlan_id(cluster),
                port: settings.port,
                mac: mac(subnet),
                local: vxlan_outside(own).and_then(|outside| match outside {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(address) => Some(address),
                }),
                peers: members.into_iter().filter_map(Member::vxlan).collect(),
            },
        )),
        LinkKind::HostGw | LinkKind::None => None,
    };
    links
}

/// Another node that gets a link.
struct Member {
    node: NodeName,
    subnet: Ipv4Net,
    subnets: Vec<IpNet>,
    key: Option<Key>,
    /// The one to use first; for host-gw one of each family.
    endpoints: Vec<SocketAddr>,
    keepalive: Option<u16>,
}

impl Member {
    fn wireguard(self) -> Option<WireguardPeer> {
        Some(WireguardPeer {
            node: self.node,
            key: self.key?,
            endpoint: self.endpoints.first().copied(),
            allowed: self.subnets,
            keepalive: self.keepalive,
        })
    }

    fn vxlan(self) -> Option<VxlanPeer> {
        Some(VxlanPeer {
            mac: mac(&self.subnet),
            remote: self.endpoints.first()?.ip(),
            inside: self.subnets.iter().map(IpNet::network).collect(),
            node: self.node,
        })
    }
}

/// Who is let in, with what was let in so far.
struct Door<'a> {
    input: &'a Input<'a>,
    kind: LinkKind,
    /// By their first address: those of one length cannot overlap otherwise.
    subnets: BTreeMap<Ipv4Addr, NodeName>,
    keys: BTreeMap<Key, NodeName>,
    taken: usize,
}

impl Door<'_> {
    fn admit(&mut self, name: &NodeName, peer: &Peer) -> Result<Member, String> {
        let Peer {
            schema_version: _,
            cluster,
            node,
            subnet,
            subnet6,
            link,
        } = peer;
        let Input {
            cluster: own_cluster,
            network,
            own,
            host,
            node: _,
            peers: _,
        } = *self.input;
        let settings = &network.settings;
        if node != name {
            return Err(format!("its record is about the node {node}"));
        }
        if cluster != own_cluster {
            return Err("its record is of another cluster".to_owned());
        }
        let kind = match link.kind {
            Some(kind) => kind,
            None => {
                return Err(match &link.why {
                    Some(why) => format!("it has no link: {}", words(why)),
                    None => "it has no link, and does not say why".to_owned(),
                });
            }
        };
        if !speaks(self.kind, kind) {
            let clear = !matches!(kind, LinkKind::Wireguard | LinkKind::WireguardUser);
            let encrypted = matches!(self.kind, LinkKind::Wireguard | LinkKind::WireguardUser);
            return Err(if clear && encrypted {
                format!("it uses {}, in clear; this cluster's traffic is encrypted", kind.word())
            } else {
                format!("it uses {}, this node {}", kind.word(), self.kind.word())
            });
        }
        let Some(number) = settings.number(subnet) else {
            return Err(format!("its subnet {subnet} is none of the range {}", settings.cidr));
        };
        if *subnet == network.subnet {
            return Err(format!("its subnet {subnet} is this node's own"));
        }
        if subnet6.is_some() && *subnet6 != settings.subnet6(number) {
            return Err("its IPv6 subnet is not the one beside its IPv4 subnet".to_owned());
        }
        if let Some(other) = self.subnets.get(&subnet.network()) {
            return Err(format!("its subnet {subnet} is that of {other}"));
        }
        let encrypts = matches!(self.kind, LinkKind::Wireguard | LinkKind::WireguardUser);
        let key = match (&link.key, encrypts) {
            (_, false) => None,
            (None, true) => return Err("it says no key".to_owned()),
            (Some(text), true) => {
                let key: Key = text.parse().map_err(|why: BadKey| format!("its key is none: {why}"))?;
                if own.key.as_deref() == Some(text.as_str()) {
                    return Err("its key is this node's own".to_owned());
                }
                if let Some(other) = self.keys.get(&key) {
                    return Err(format!("its key is that of {other}"));
                }
                Some(key)
            }
        };
        let (endpoints, keepalive) = match self.kind {
            LinkKind::Wireguard | LinkKind::WireguardUser => match endpoint(settings, host, link) {
                Some(Found { at, public }) => {
                    let translated = public && own.public_endpoint.is_none();
                    (vec![at], translated.then_some(KEEPALIVE_SECONDS))
                }
                None => (Vec::new(), None),
            },
            LinkKind::Vxlan => {
                let outside = vxlan_outside(own);
                let same = |at: &SocketAddr| outside.is_none_or(|outside| outside.is_ipv4() == at.is_ipv4());
                let mut link = link.clone();
                link.endpoints.truncate(MAX_ENDPOINTS);
                link.endpoints.retain(same);
                link.public_endpoint = link.public_endpoint.filter(same);
                let Some(found) = endpoint(settings, host, &link) else {
                    return Err("it says no address that this node can reach".to_owned());
                };
                (vec![found.at], None)
            }
            LinkKind::HostGw => {
                let near: Vec<SocketAddr> = candidates(settings, link).filter(|at| direct(host, at.ip())).collect();
                if !near.iter().any(SocketAddr::is_ipv4) {
                    return Err("it is on no segment that this node is on: plain routes do not lead there".to_owned());
                }
                (near, None)
            }
            LinkKind::None => (Vec::new(), None),
        };
        if self.taken == MAX_PEERS {
            return Err(format!("there are more than {MAX_PEERS} nodes"));
        }
        self.taken += 1;
        self.subnets.insert(subnet.network(), name.clone());
        if let Some(key) = key {
            self.keys.insert(key, name.clone());
        }
        Ok(Member {
            node: name.clone(),
            subnet: *subnet,
            subnets: std::iter::once(IpNet::V4(*subnet))
                .chain(subnet6.map(IpNet::V6))
                .collect(),
            key,
            endpoints,
            keepalive,
        })
    }
}

/// Where a node is reached.
struct Found {
    at: SocketAddr,
    public: bool,
}

/// Its private address where this host is in that network too, or it has no public one; else the public one.
fn endpoint(settings: &NetworkSettings, host: &Host, link: &NodeLink) -> Option<Found> {
    let spoken = |at: &SocketAddr| {
        let same = |own: &IpNet| own.addr().is_ipv4() == at.is_ipv4() && usable(own.addr());
        host.addresses.iter().any(same)
    };
    if let Some(at) = candidates(settings, link).find(|at| direct(host, at.ip())) {
        return Some(Found { at, public: false });
    }
    let public = link.public_endpoint.filter(|at| fit(settings, at) && spoken(at));
    match public {
        Some(at) => Some(Found { at, public: true }),
        None => candidates(settings, link)
            .find(spoken)
            .map(|at| Found { at, public: false }),
    }
}

fn candidates<'a>(settings: &'a NetworkSettings, link: &'a NodeLink) -> impl Iterator<Item = SocketAddr> + 'a {
    let first = link.endpoints.iter().take(MAX_ENDPOINTS).copied();
    first.filter(|at| fit(settings, at))
}

/// Whether something may be sent there: no address of nobody, none inside the network that is to be carried.
fn fit(settings: &NetworkSettings, at: &SocketAddr) -> bool {
    at.port() != 0 && usable(at.ip()) && !in_ranges(settings, at.ip())
}

/// Whether this host is directly in the network of an address, which is not its own.
fn direct(host: &Host, address: IpAddr) -> bool {
    let near = |own: &IpNet| own.prefix_len() > 0 && own.contains(&address);
    host.addresses.iter().all(|own| own.addr() != address) && host.addresses.iter().any(near)
}

fn usable(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(address) => !address.is_broadcast() && !address.is_link_local() && address.octets()[0] != 0,
        IpAddr::V6(address) => !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none(),
    }
}

fn in_ranges(settings: &NetworkSettings, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => settings.cidr.contains(&address),
        IpAddr::V6(address) => settings.cidr6.is_some_and(|range| range.contains(&address)),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        // Also what providers translate (100.64.0.0/10).
        IpAddr::V4(address) => {
            let [first, second, _, _] = address.octets();
            address.is_private() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// Whether a node may use this kind in such a cluster.
fn allowed(backend: Backend, kind: LinkKind) -> bool {
    match backend {
        Backend::Wireguard => matches!(kind, LinkKind::Wireguard | LinkKind::WireguardUser),
        Backend::WireguardUser => kind == LinkKind::WireguardUser,
        Backend::Vxlan => kind == LinkKind::Vxlan,
        Backend::HostGw => kind == LinkKind::HostGw,
        Backend::None => kind == LinkKind::None,
    }
}

fn speaks(own: LinkKind, other: LinkKind) -> bool {
    let encrypts = |kind| matches!(kind, LinkKind::Wireguard | LinkKind::WireguardUser);
    own == other || (encrypts(own) && encrypts(other))
}

/// This end's address of a VXLAN: IPv4 where there is one, since a device speaks one of the two.
fn vxlan_outside(own: &NodeLink) -> Option<IpAddr> {
    let all = || own.endpoints.iter().take(MAX_ENDPOINTS).map(SocketAddr::ip);
    all().find(IpAddr::is_ipv4).or_else(|| all().next())
}

fn vxlan_id(cluster: &ClusterId) -> u32 {
    let digest = Digest::of(format!("reeve vxlan\n{cluster}\n").as_bytes()).to_string();
    let number = digest.get(..6).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    number.unwrap_or_default().max(1)
}

/// Of a subnet, so that it needs no telling: administered locally, not of a group.
fn mac(subnet: &Ipv4Net) -> Mac {
    let [a, b, c, d] = subnet.network().octets();
    Mac([0x0a, 0x52, a, b, c, d])
}

/// Somebody else's text, short and in one line.
fn words(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(MAX_WORDS).map(plain).collect()
}

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKey;

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is 44 characters of base64")
    }
}

impl std::error::Error for BadKey {}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let digits = text
            .strip_suffix('=')
            .filter(|digits| digits.len() == 43)
            .ok_or(BadKey)?;
        let mut key = [0; 32];
        let (mut bits, mut held, mut place) = (0_u32, 0_u32, 0_usize);
        for digit in digits.bytes() {
            let value = BASE64.iter().position(|known| *known == digit).ok_or(BadKey)?;
            bits = (bits << 6) | u32::try_from(value).map_err(|_| BadKey)?;
            held += 6;
            if held >= 8 {
                held -= 8;
                let byte = u8::try_from((bits >> held) & 0xff).map_err(|_| BadKey)?;
                *key.get_mut(place).ok_or(BadKey)? = byte;
                place += 1;
                bits &= (1 << held) - 1;
            }
        }
        // One text for each key; and the key of nobody is none.
        if bits != 0 || place != 32 || key == [0; 32] {
            return Err(BadKey);
        }
        Ok(Self(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for group in self.0.chunks(3) {
            let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or_default());
            let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
            for digit in 0..4 {
                if digit > group.len() {
                    f.write_char('=')?;
                    continue;
                }
                let value = (bits >> (18 - 6 * digit)) & 0x3f;
                f.write_char(char::from(BASE64[value as usize]))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests;
