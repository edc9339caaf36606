//! What policies come to for one service, before any packet filter: who is allowed, on which ports. `policy.rs` writes it as
//! rules; [`judge`] answers for one connection, for `trace`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schemas::container::Protocol;
use schemas::keys::ResourceKey;
use schemas::names::{Namespace, ResourceName};
use schemas::network_policy::{IpBlock, NetworkPeer, NetworkPort, PolicyType, network};
use schemas::records::{Endpoints, NetworkSettings, Policies};
use serde::{Deserialize, Serialize};

use super::Input;

/// As seen from a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Who is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Everybody, from outside too.
    Any,
    Namespace(Namespace),
    Service(Namespace, ResourceName),
    /// Addresses that are not of the cluster's network, without some of them.
    Block(IpNet, Vec<IpNet>),
    /// Other nodes, as hosts.
    Hosts,
    /// Whoever comes by a published port.
    Published,
}

/// On which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ports {
    All,
    /// Ranges that neither touch nor overlap, in order.
    Some {
        tcp: Vec<(u16, u16)>,
        udp: Vec<(u16, u16)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allow {
    pub who: Who,
    pub ports: Ports,
    /// The policy that says so; None for what is so without any.
    pub policy: Option<ResourceName>,
    /// Which of its rules of that direction, from 1.
    pub rule: usize,
}

/// What is allowed of a service in one direction; all else is refused, unless it leaves one that no policy restricts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Whether a policy restricts it.
    pub selected: bool,
    pub allows: Vec<Allow>,
}

/// What the policies of its namespace come to for a service.
pub(super) fn allowed(
    direction: Direction,
    namespace: &Namespace,
    service: &ResourceName,
    policies: Option<&Policies>,
) -> Allowed {
    let kind = match direction {
        Direction::Ingress => PolicyType::Ingress,
        Direction::Egress => PolicyType::Egress,
    };
    let mut selected = false;
    let mut allows = Vec::new();
    let about = policies.into_iter().flat_map(|record| &record.policies);
    for policy in about.filter(|policy| policy.spec.restricts(kind) && policy.spec.selects(service)) {
        selected = true;
        let rules: Vec<(&[NetworkPeer], &[NetworkPort])> = match direction {
            Direction::Ingress => policy
                .spec
                .ingress
                .iter()
                .map(|rule| (&*rule.from, &*rule.ports))
                .collect(),
            Direction::Egress => policy
                .spec
                .egress
                .iter()
                .map(|rule| (&*rule.to, &*rule.ports))
                .collect(),
        };
        for (at, (peers, listed)) in rules.into_iter().enumerate() {
            let ports = ports(listed);
            let everybody = peers.is_empty().then_some(Who::Any);
            let named = peers.iter().filter_map(|peer| who(peer, namespace));
            allows.extend(everybody.into_iter().chain(named).map(|who| Allow {
                who,
                ports: ports.clone(),
                policy: Some(policy.name.clone()),
                rule: at + 1,
            }));
        }
    }
    if !selected && direction == Direction::Ingress {
        let open = [Who::Namespace(namespace.clone()), Who::Hosts, Who::Published];
        allows.extend(open.map(|who| Allow {
            who,
            ports: Ports::All,
            policy: None,
            rule: 0,
        }));
    }
    Allowed { selected, allows }
}

/// None for what names nobody, which admission refuses.
fn who(peer: &NetworkPeer, own: &Namespace) -> Option<Who> {
    let NetworkPeer {
        namespace,
        service,
        ip_block,
    } = peer;
    if let Some(IpBlock { cidr, except }) = ip_block {
        let whole = network(cidr)?;
        let mut left_out = Vec::with_capacity(except.len());
        for text in except {
            // Rather nobody than somebody who is left out.
            left_out.push(network(text)?);
        }
        return Some(Who::Block(
            whole,
            left_out.into_iter().filter(|one| same_family(&whole, one)).collect(),
        ));
    }
    let of = namespace.clone().unwrap_or_else(|| own.clone());
    match (service, namespace) {
        (Some(service), _) => Some(Who::Service(of, service.clone())),
        (None, Some(_)) => Some(Who::Namespace(of)),
        (None, None) => None,
    }
}

const fn same_family(a: &IpNet, b: &IpNet) -> bool {
    matches!((a, b), (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)))
}

fn ports(listed: &[NetworkPort]) -> Ports {
    if listed.is_empty() {
        return Ports::All;
    }
    let of = |wanted: Protocol| {
        let mut ranges: Vec<(u16, u16)> = listed
            .iter()
            .filter(|one| one.protocol == wanted)
            .map(|one| match (one.port, one.end_port) {
                (None, _) => (1, u16::MAX),
                (Some(port), end) => (port, end.unwrap_or(port)),
            })
            .filter(|(first, last)| first <= last)
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                Some(_) | None => merged.push((first, last)),
            }
        }
        merged
    };
    Ports::Some {
        tcp: of(Protocol::Tcp),
        udp: of(Protocol::Udp),
    }
}

/// Who finds a service's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seers {
    Everybody,
    Namespaces(BTreeSet<Namespace>),
}

/// Who finds a service's name: its own namespace, and those from which its own policies let anything in, on any port. What may
/// leave the other side is not asked.
#[must_use]
pub fn seers(namespace: &Namespace, service: &ResourceName, policies: Option<&Policies>) -> Seers {
    let mut namespaces = BTreeSet::from([namespace.clone()]);
    for allow in allowed(Direction::Ingress, namespace, service, policies).allows {
        match allow.who {
            Who::Any => return Seers::Everybody,
            Who::Namespace(of) | Who::Service(of, _) => drop(namespaces.insert(of)),
            Who::Block(_, _) | Who::Hosts | Who::Published => {}
        }
    }
    Seers::Namespaces(namespaces)
}

/// Who may come in by a port that every node has open. `Default` is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Doors {
    /// Some: those from there only; none of the list: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Vec<Block>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Block {
    net: IpNet,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<IpNet>,
}

impl Doors {
    /// Whether somebody from there may come in.
    #[must_use]
    pub fn admit(&self, from: IpAddr) -> bool {
        let fits = |block: &Block| block.net.contains(&from) && !block.except.iter().any(|part| part.contains(&from));
        self.blocks.as_ref().is_none_or(|blocks| blocks.iter().any(fits))
    }
}

/// Who may come to a port of a service by one that every node has open: as by any published port, and where a policy is about
/// the service, those from outside whom it lets in by their addresses. Instances come to such a service by its own addresses.
#[must_use]
pub fn published(
    settings: &NetworkSettings,
    namespace: &Namespace,
    service: &ResourceName,
    policies: Option<&Policies>,
    protocol: Protocol,
    port: u16,
) -> Doors {
    let ingress = allowed(Direction::Ingress, namespace, service, policies);
    if !ingress.selected {
        return Doors::default();
    }
    let cluster = std::iter::once(IpNet::V4(settings.cidr)).chain(settings.cidr6.map(IpNet::V6));
    let inside: Vec<IpNet> = cluster.collect();
    let mut blocks = Vec::new();
    for allow in ingress
        .allows
        .into_iter()
        .filter(|allow| is_in(&allow.ports, protocol, port))
    {
        let mut add = |net: IpNet, except: Vec<IpNet>| {
            let own = inside.iter().filter(|range| same_family(&net, range)).copied();
            let except = except.into_iter().chain(own).collect();
            blocks.push(Block { net, except });
        };
        match allow.who {
            Who::Any => {
                for all in ["0.0.0.0/0", "::/0"].iter().filter_map(|all| all.parse().ok()) {
                    add(all, Vec::new());
                }
            }
            Who::Block(net, except) => add(net, except),
            Who::Namespace(_) | Who::Service(_, _) | Who::Hosts | Who::Published => {}
        }
    }
    Doors { blocks: Some(blocks) }
}

/// One connection, as it arrives at the container: its port, and not one that is published for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// Whether it comes by a published port.
    pub published: bool,
}

/// What becomes of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// By this policy; without one because nothing restricts it.
    Allowed { policy: Option<String> },
    /// Who connects is restricted by policies, and none allows it.
    MayNotLeave { service: String },
    /// Policies restrict who connects to it, and none allows it.
    NotLetIn { service: String },
    /// It is of another namespace, and no policy lets that in.
    OtherNamespace { service: String },
    /// No instance has that address.
    Nobody,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub policy: String,
    /// Which of its rules of that direction, from 1.
    pub number: usize,
}

/// What policies come to for one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// As `<namespace>/<service>`; None where no service of ours is at that end.
    pub service: Option<String>,
    /// The policies that restrict it in this direction.
    pub restricted_by: Vec<String>,
    pub allowed: bool,
    /// What allows it; None where nothing needs to.
    pub by: Option<Rule>,
}

/// A connection as both ends' policies have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    pub leaving: Side,
    pub entering: Side,
    /// It is for an address of the cluster's that no instance has.
    pub nobody: bool,
}

/// What the nodes' filters do with a connection between two instances, or from or to outside, as far as records tell: what
/// [`super::rules`] writes for the two nodes comes to the same, a test compares. `input.local` and `bridge` do not matter.
#[must_use]
pub fn judge(input: &Input<'_>, packet: &Packet) -> Judged {
    let Weighed {
        leaving,
        entering,
        nobody,
    } = weigh(input, packet);
    let policy = |rule: Option<Rule>| rule.map(|rule| rule.policy);
    match (leaving, entering) {
        (
            Side {
                allowed: false,
                service: Some(service),
                ..
            },
            _,
        ) => Judged::MayNotLeave { service },
        _ if nobody => Judged::Nobody,
        (leaving, Side { service: None, .. }) => Judged::Allowed {
            policy: policy(leaving.by),
        },
        (leaving, Side { allowed: true, by, .. }) => Judged::Allowed {
            policy: policy(by.or(leaving.by)),
        },
        (
            _,
            Side {
                service: Some(service),
                restricted_by,
                ..
            },
        ) if restricted_by.is_empty() => Judged::OtherNamespace { service },
        (
            _,
            Side {
                service: Some(service), ..
            },
        ) => Judged::NotLetIn { service },
    }
}

/// The same, with the rules by which it is so, for both ends though the first may stop it.
#[must_use]
pub fn weigh(input: &Input<'_>, packet: &Packet) -> Weighed {
    let owner = |address: IpAddr| {
        let of = |(key, record): (&ResourceKey, &std::sync::Arc<schemas::records::Endpoints>)| {
            let has = record
                .instances
                .iter()
                .any(|one| one.addresses().any(|own| own == address));
            has.then(|| Some((key.namespace.clone()?, key.name.clone()))).flatten()
        };
        let local = || {
            let six = |four: Ipv4Addr| {
                let network = input.network;
                let subnet6 = network.subnet6.as_ref()?;
                Some(schemas::records::network::address6(four, &network.subnet, subnet6))
            };
            let is = |one: &&super::Local| {
                IpAddr::V4(one.address) == address || six(one.address).map(IpAddr::V6) == Some(address)
            };
            input
                .local
                .iter()
                .find(is)
                .map(|one| (one.namespace.clone(), one.service.clone()))
        };
        local().or_else(|| input.endpoints.iter().find_map(of))
    };
    let (from, to) = (owner(packet.from), owner(packet.to));
    let side = |direction: Direction,
                own: Option<&(Namespace, ResourceName)>,
                other: IpAddr,
                whose: Option<&(Namespace, ResourceName)>| {
        let Some((namespace, service)) = own else {
            return Side {
                service: None,
                restricted_by: Vec::new(),
                allowed: true,
                by: None,
            };
        };
        let policies = input.policies.get(namespace).map(AsRef::as_ref);
        let Allowed { selected, mut allows } = allowed(direction, namespace, service, policies);
        if direction == Direction::Ingress {
            let key = ResourceKey {
                namespace: Some(namespace.clone()),
                kind: schemas::kinds::Kind::Service,
                name: service.clone(),
            };
            allows.extend(input.endpoints.get(&key).and_then(|record| from_nodes(record)));
        }
        let fits = |allow: &&Allow| {
            fits_ports(&allow.ports, packet) && fits_who(&allow.who, input, other, whose, packet.published)
        };
        let found = allows.iter().find(fits);
        let by = found.and_then(|allow| {
            Some(Rule {
                policy: allow.policy.as_ref()?.to_string(),
                number: allow.rule,
            })
        });
        Side {
            service: Some(format!("{namespace}/{service}")),
            restricted_by: restricting(direction, service, policies),
            // Who leaves is restricted by policies alone.
            allowed: found.is_some() || (direction == Direction::Egress && !selected),
            by,
        }
    };
    Weighed {
        leaving: side(Direction::Egress, from.as_ref(), packet.to, to.as_ref()),
        entering: side(Direction::Ingress, to.as_ref(), packet.from, from.as_ref()),
        nobody: to.is_none() && in_range(input, packet.to),
    }
}

/// The policies that restrict a service in one direction, in order of names.
fn restricting(direction: Direction, service: &ResourceName, policies: Option<&Policies>) -> Vec<String> {
    let kind = match direction {
        Direction::Ingress => PolicyType::Ingress,
        Direction::Egress => PolicyType::Egress,
    };
    let about = policies.into_iter().flat_map(|record| &record.policies);
    let about = about.filter(|policy| policy.spec.restricts(kind) && policy.spec.selects(service));
    about.map(|policy| policy.name.to_string()).collect()
}

fn in_range(input: &Input<'_>, address: IpAddr) -> bool {
    let settings = &input.network.settings;
    match address {
        IpAddr::V4(address) => settings.cidr.contains(&address),
        IpAddr::V6(address) => settings.cidr6.is_some_and(|range: Ipv6Net| range.contains(&address)),
    }
}

fn fits_ports(ports: &Ports, packet: &Packet) -> bool {
    is_in(ports, packet.protocol, packet.port)
}

fn is_in(ports: &Ports, protocol: Protocol, port: u16) -> bool {
    match ports {
        Ports::All => true,
        Ports::Some { tcp, udp } => {
            let ranges = match protocol {
                Protocol::Tcp => tcp,
                Protocol::Udp => udp,
            };
            ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
        }
    }
}

/// What other nodes may come to: the ports that every node has open lead to it from there, and who came was judged there.
pub(super) fn from_nodes(endpoints: &Endpoints) -> Option<Allow> {
    let open = endpoints.ports.iter().filter(|port| port.everywhere.is_some());
    let of = |wanted: Protocol| {
        let own = open.clone().filter(|port| port.protocol == wanted);
        let mut found: Vec<(u16, u16)> = own.map(|port| (port.port, port.port)).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let (tcp, udp) = (of(Protocol::Tcp), of(Protocol::Udp));
    (!tcp.is_empty() || !udp.is_empty()).then_some(Allow {
        who: Who::Hosts,
        ports: Ports::Some { tcp, udp },
        policy: None,
        rule: 0,
    })
}

fn fits_who(
    who: &Who,
    input: &Input<'_>,
    other: IpAddr,
    whose: Option<&(Namespace, ResourceName)>,
    published: bool,
) -> bool {
    match who {
        Who::Any => true,
        Who::Namespace(namespace) => whose.is_some_and(|(of, _)| of == namespace),
        Who::Service(namespace, service) => whose.is_some_and(|(of, name)| of == namespace && name == service),
        Who::Block(whole, except) => {
            !in_range(input, other) && whole.contains(&other) && !except.iter().any(|part| part.contains(&other))
        }
        Who::Hosts => {
            in_range(input, other)
                && match other {
                    IpAddr::V4(address) => {
                        let subnet = Ipv4Net::new(address, input.network.settings.node_prefix);
                        // A host speaks from its bridge's address, or from its link's, which is the subnet's own.
                        subnet.is_ok_and(|subnet| {
                            let own = subnet.trunc();
                            own.network() == address || schemas::records::network::gateway(&own) == address
                        })
                    }
                    IpAddr::V6(address) => u128::from(address) & 0xfffe == 0,
                }
        }
        Who::Published => published,
    }
}
