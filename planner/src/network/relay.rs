//! What a node's relay does, as values: which ports it listens at and for whom ([`table`]), which instance is next
//! ([`order`]), who may come in from outside ([`Listener::admits`]), what it says ahead ([`proxy_header`]), which client of a UDP
//! port is with which instance ([`Flows`]), and which ports the kernel leads past it ([`leads`]). The agent writes the table to
//! disk, the crate `network` carries it out. Promises: the same input gives the same table; a table that was read from disk is
//! used only as far as it holds together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemas::container::{Connect, Protocol, ServicePort};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, NodeName};
use schemas::records::{Endpoints, NetworkSettings, Policies};
use serde::{Deserialize, Serialize};

use super::policy::{Doors, published};

/// Listeners that one relay has, at most; what is beyond is left out, and said.
pub const MAX_LISTENERS: usize = 4_096;
/// Instances that a connection is led to, at most: the first of them.
pub const MAX_BACKENDS: usize = 1_024;

/// What a relay must have. `Default` is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    /// Each place, protocol, address and port once, in order.
    pub listeners: Vec<Listener>,
    /// The instances behind each, by [`Listener::target`].
    pub targets: BTreeMap<String, Vec<Backend>>,
}

/// One port that is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    pub place: Place,
    pub protocol: Protocol,
    /// The node's address; all of them, or both of a container's own host, where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// `shop/db:5432/tcp`.
    pub target: String,
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Who may come in from outside.
    #[serde(default)]
    pub doors: Doors,
}

/// Where a port is open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// On the node.
    Node,
    /// At the own host of a container, by its whole id as the kernel's control groups have it.
    Container(String),
    /// The same, by one of its processes.
    Process(u32),
}

/// An instance that is ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub address: SocketAddr,
    /// Whether it is on this node.
    #[serde(default)]
    pub here: bool,
}

/// A port of the node, as a relay opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    pub protocol: Protocol,
    /// As [`Listener::ip`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    pub port: u16,
}

/// A port of the node from which the kernel leads who comes from outside straight to instances of this node, so that they see
/// who came. The filter has the last word on who is an instance of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    pub at: Held,
    /// As [`Listener::target`].
    pub target: String,
    /// Those of this node that are ready: at least one.
    pub to: Vec<SocketAddr>,
}

/// A container of this node that reaches services at its own host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reaching {
    pub place: Place,
    pub namespace: Namespace,
    pub connect: Vec<Connect>,
}

/// What a table follows from.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    pub node: &'a NodeName,
    pub settings: &'a NetworkSettings,
    /// The node's own addresses: a UDP port on all of them is a listener for each, so that answers come from where was asked.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// The lowest port of the node that may be opened, as its own policy says, and the addresses; None: all.
    pub lowest_port: u16,
    pub host_ips: Option<&'a [IpAddr]>,
    pub reaching: &'a [Reaching],
    pub endpoints: &'a BTreeMap<ResourceKey, std::sync::Arc<Endpoints>>,
    pub policies: &'a BTreeMap<Namespace, std::sync::Arc<Policies>>,
}

/// The table of a node, and what is left out, for people.
#[must_use]
pub fn table(input: &Input<'_>) -> (Table, Vec<String>) {
    let mut found = Table::default();
    let mut left_out = Vec::new();
    for one in input.reaching {
        for connect in &one.connect {
            let namespace = connect.namespace.as_ref().unwrap_or(&one.namespace);
            let key = ResourceKey {
                namespace: Some(namespace.clone()),
                kind: Kind::Service,
                name: connect.service.clone(),
            };
            let endpoints = input.endpoints.get(&key).map(AsRef::as_ref);
            let wanted = connect.target();
            let name = match &wanted {
                ServicePort::Number(port) => port.to_string(),
                ServicePort::Name(name) => name.to_string(),
            };
            let target = format!(
                "{namespace}/{}:{name}/{}",
                connect.service,
                protocol_word(connect.protocol)
            );
            found.add(
                input.node,
                &target,
                endpoints,
                port_of(endpoints, &wanted, connect.protocol),
            );
            found.listeners.push(Listener {
                place: one.place.clone(),
                protocol: connect.protocol,
                ip: None,
                port: connect.port,
                target,
                proxy_protocol: false,
                // The node's filter judges: it goes out from the container itself.
                doors: Doors::default(),
            });
        }
    }
    for (key, endpoints) in input.endpoints {
        let Some(namespace) = &key.namespace else { continue };
        for port in &endpoints.ports {
            let Some(open) = &port.everywhere else { continue };
            let word = protocol_word(port.protocol);
            if open.host_port < input.lowest_port {
                let (port, lowest) = (open.host_port, input.lowest_port);
                left_out.push(format!(
                    "port {port} of {namespace}/{} is below {lowest}, the lowest that this node's policy lets be opened",
                    key.name
                ));
                continue;
            }
            let allowed = |ip: &IpAddr| input.host_ips.is_none_or(|ips| ips.contains(ip));
            let wildcard = open.host_ip.is_none_or(|ip| ip.is_unspecified());
            let ips: Vec<Option<IpAddr>> = match open.host_ip {
                Some(ip) if !wildcard && allowed(&ip) => vec![Some(ip)],
                Some(_) if !wildcard => Vec::new(),
                _ if port.protocol == Protocol::Tcp && input.host_ips.is_none() => vec![open.host_ip],
                // Not on all of them at once.
                _ => {
                    let own = input.addresses.iter().chain(&[IpAddr::V4(Ipv4Addr::LOCALHOST)]);
                    own.filter(|ip| allowed(ip)).map(|ip| Some(*ip)).collect()
                }
            };
            if ips.is_empty() {
                left_out.push(format!(
                    "port {} of {namespace}/{} is on no address that this node's policy lets be opened",
                    open.host_port, key.name
                ));
            }
            let target = format!("{namespace}/{}:{}/{word}", key.name, port.port);
            found.add(input.node, &target, Some(endpoints), Some(port.port));
            let policies = input.policies.get(namespace).map(AsRef::as_ref);
            let doors = published(input.settings, namespace, &key.name, policies, port.protocol, port.port);
            for ip in ips {
                found.listeners.push(Listener {
                    place: Place::Node,
                    protocol: port.protocol,
                    ip,
                    port: open.host_port,
                    target: target.clone(),
                    proxy_protocol: open.proxy_protocol,
                    doors: doors.clone(),
                });
            }
        }
    }
    found.listeners.sort();
    let same = |a: &Listener| (a.place.clone(), a.protocol, a.ip, a.port);
    found.listeners.dedup_by(|b, a| same(a) == same(b));
    if found.listeners.len() > MAX_LISTENERS {
        let more = found.listeners.len() - MAX_LISTENERS;
        left_out.push(format!("{more} ports are left out: one node opens {MAX_LISTENERS}"));
        found.listeners.truncate(MAX_LISTENERS);
    }
    (found, left_out)
}

/// What the kernel leads past the relay: ports that the relay has, of services with a ready instance on this node. Not where
/// instances are to be told who came: only the relay says so.
#[must_use]
pub fn leads(table: &Table, held: &BTreeSet<Held>) -> Vec<Lead> {
    let lead = |one: &Listener| {
        let at = one.held().filter(|at| !one.proxy_protocol && held.contains(at))?;
        let here = table.targets.get(&one.target)?.iter().filter(|backend| backend.here);
        let to: Vec<SocketAddr> = here.map(|backend| backend.address).collect();
        let target = one.target.clone();
        (!to.is_empty()).then_some(Lead { at, target, to })
    };
    table.listeners.iter().filter_map(lead).collect()
}

impl Table {
    fn add(&mut self, node: &NodeName, target: &str, endpoints: Option<&Endpoints>, port: Option<u16>) {
        if self.targets.contains_key(target) {
            return;
        }
        let instances = endpoints.map_or(&[][..], |endpoints| &endpoints.instances);
        let ready = instances.iter().filter(|one| one.ready).filter_map(|one| {
            Some(Backend {
                address: SocketAddr::new(IpAddr::V4(one.address), port?),
                here: one.node == *node,
            })
        });
        self.targets
            .insert(target.to_owned(), ready.take(MAX_BACKENDS).collect());
    }
}

/// The number of a service's port; None for a name that it does not have.
fn port_of(endpoints: Option<&Endpoints>, wanted: &ServicePort, protocol: Protocol) -> Option<u16> {
    match wanted {
        ServicePort::Number(port) => Some(*port),
        ServicePort::Name(name) => {
            let mut ports = endpoints?.ports.iter();
            let named = ports.find(|port| port.protocol == protocol && port.name.as_deref() == Some(name.as_str()));
            named.map(|port| port.port)
        }
    }
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

impl Listener {
    /// The node's port that it is; None for one of a container.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        let at = Held {
            protocol: self.protocol,
            ip: self.ip,
            port: self.port,
        };
        (self.place == Place::Node).then_some(at)
    }

    /// Whether somebody from there may come in.
    #[must_use]
    pub fn admits(&self, from: IpAddr) -> bool {
        match self.place {
            Place::Node => self.doors.admit(from.to_canonical()),
            Place::Container(_) | Place::Process(_) => true,
        }
    }
}

/// In which order to try instances: those of this node first where `here_first`, of equals another one first at each turn, and
/// who failed a moment ago last.
#[must_use]
pub fn order(
    backends: &[Backend],
    turn: u64,
    here_first: bool,
    failed: &dyn Fn(&SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let count = backends.len() as u64;
    let first = turn.checked_rem(count).and_then(|first| usize::try_from(first).ok());
    let (before, after) = backends.split_at(first.unwrap_or(0));
    let mut turned: Vec<(bool, bool, SocketAddr)> = after
        .iter()
        .chain(before)
        .map(|one| (failed(&one.address), here_first && !one.here, one.address))
        .collect();
    // It keeps the order of equals.
    turned.sort_by_key(|(failed, far, _)| (*failed, *far));
    turned.into_iter().map(|(_, _, address)| address).collect()
}

/// What is said ahead of a connection: PROXY protocol, version 2.
#[must_use]
pub fn proxy_header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
    const PROXY: u8 = 0x21;
    const STREAM4: u8 = 0x11;
    const STREAM6: u8 = 0x21;
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(PROXY);
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            bytes.push(STREAM4);
            bytes.extend(12_u16.to_be_bytes());
            bytes.extend(source.octets());
            bytes.extend(target.octets());
        }
        (source, target) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes.push(STREAM6);
            bytes.extend(36_u16.to_be_bytes());
            bytes.extend(six(source).octets());
            bytes.extend(six(target).octets());
        }
    }
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes
}

/// Which client of a UDP port is with which instance. Times are of any clock that does not go back, in milliseconds.
#[derive(Debug)]
pub struct Flows<T> {
    flows: BTreeMap<SocketAddr, Flow<T>>,
    limit: usize,
    idle: u64,
}

#[derive(Debug)]
struct Flow<T> {
    backend: SocketAddr,
    used: u64,
    kept: T,
}

impl<T> Flows<T> {
    #[must_use]
    pub const fn new(limit: usize, idle: u64) -> Self {
        Self {
            flows: BTreeMap::new(),
            limit,
            idle,
        }
    }

    /// A client's flow, used now: None where it has none, or the instance is no longer among those that are ready.
    pub fn find(&mut self, client: &SocketAddr, now: u64, backends: &[Backend]) -> Option<&mut T> {
        let flow = self.flows.get(client)?;
        let there = backends.iter().any(|one| one.address == flow.backend);
        if !there {
            self.flows.remove(client);
            return None;
        }
        let flow = self.flows.get_mut(client)?;
        flow.used = now;
        Some(&mut flow.kept)
    }

    /// Takes a flow in. False where there is no room: then idle ones are to go first.
    pub fn put(&mut self, client: SocketAddr, backend: SocketAddr, now: u64, kept: T) -> bool {
        if !self.flows.contains_key(&client) && self.flows.len() >= self.limit {
            self.sweep(now);
            if self.flows.len() >= self.limit {
                return false;
            }
        }
        let used = now;
        self.flows.insert(client, Flow { backend, used, kept });
        true
    }

    /// An answer came for a client.
    pub fn touch(&mut self, client: &SocketAddr, now: u64) {
        if let Some(flow) = self.flows.get_mut(client) {
            flow.used = now;
        }
    }

    /// Ends a client's flow.
    pub fn remove(&mut self, client: &SocketAddr) {
        self.flows.remove(client);
    }

    /// Ends those that nothing went over for a while.
    pub fn sweep(&mut self, now: u64) {
        let idle = self.idle;
        self.flows.retain(|_, flow| now.saturating_sub(flow.used) < idle);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

#[cfg(test)]
mod tests;
