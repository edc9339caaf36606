//! Host ports: which of a node's are taken, and which an instance gets. `place.rs` and `turns.rs` ask.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemas::container::{HostPort, PortSpec, Protocol};
use schemas::records::{AssignedPort, EndpointPort};

use super::memory::{Memory, Svc};
use super::snapshot::Snapshot;
use super::world::{NONE, Nodes};

/// Ports of `auto`.
const AUTO_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The ports of one node that are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports(BTreeMap<(Protocol, u16), Vec<Option<IpAddr>>>);

fn wildcard(ip: Option<IpAddr>) -> bool {
    ip.is_none_or(|ip| ip.is_unspecified())
}

impl Ports {
    fn taken(&self, protocol: Protocol, port: u16, ip: Option<IpAddr>) -> bool {
        self.0
            .get(&(protocol, port))
            .is_some_and(|held| wildcard(ip) || held.iter().any(|other| wildcard(*other) || *other == ip))
    }
    pub(super) fn take(&mut self, ports: &[AssignedPort]) {
        for port in ports {
            self.0
                .entry((port.protocol, port.host_port))
                .or_default()
                .push(port.host_ip);
        }
    }
    pub(super) fn give_back(&mut self, ports: &[AssignedPort]) {
        for port in ports {
            if let Some(held) = self.0.get_mut(&(port.protocol, port.host_port)) {
                if let Some(at) = held.iter().position(|ip| *ip == port.host_ip) {
                    held.swap_remove(at);
                }
                if held.is_empty() {
                    self.0.remove(&(port.protocol, port.host_port));
                }
            }
        }
    }
    /// The ports an instance would hold here, those it held before first; Err with the port that is taken.
    pub(super) fn choose(&self, wanted: &[PortSpec], held: &[AssignedPort]) -> Result<Vec<AssignedPort>, u16> {
        let mut chosen: Vec<AssignedPort> = Vec::new();
        let clashes = |chosen: &[AssignedPort], protocol, port, ip| {
            chosen.iter().any(|c| {
                c.protocol == protocol
                    && c.host_port == port
                    && (wildcard(c.host_ip) || wildcard(ip) || c.host_ip == ip)
            })
        };
        // What is open everywhere is nobody's own.
        for spec in wanted.iter().filter(|spec| spec.is_on_node()) {
            let host_port = match spec.host_port {
                None => continue,
                Some(HostPort::Fixed(port)) => {
                    if self.taken(spec.protocol, port, spec.host_ip)
                        || clashes(&chosen, spec.protocol, port, spec.host_ip)
                    {
                        return Err(port);
                    }
                    port
                }
                Some(HostPort::Auto) => {
                    let before = held.iter().find(|h| {
                        h.container_port == spec.container_port
                            && h.protocol == spec.protocol
                            && AUTO_PORTS.contains(&h.host_port)
                    });
                    let free = |port: &u16| {
                        !self.taken(spec.protocol, *port, spec.host_ip)
                            && !clashes(&chosen, spec.protocol, *port, spec.host_ip)
                    };
                    let port = before
                        .map(|held| held.host_port)
                        .filter(free)
                        .or_else(|| AUTO_PORTS.into_iter().find(free));
                    port.ok_or(0_u16)?
                }
            };
            chosen.push(AssignedPort {
                container_port: spec.container_port,
                protocol: spec.protocol,
                host_ip: spec.host_ip,
                host_port,
            });
        }
        Ok(chosen)
    }
}

/// The ports that are open on every node, each for one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Everywhere {
    /// Taken on each node.
    taken: Ports,
    /// Services that ask for one that is another's, with that port: none of theirs is open, and nothing of them is placed.
    barred: BTreeMap<u32, u16>,
}

/// A port that is to be open everywhere.
type Claim = (Protocol, u16, Option<IpAddr>);
/// Who holds a port on some node: on which address, and whose it is.
type Holder = (Option<IpAddr>, u32);

fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    wildcard(a) || wildcard(b) || a == b
}

impl Everywhere {
    /// Whose each port is: of who has it already, else of who comes first by name, and not while an instance of another
    /// service has it on any node.
    pub(super) fn new(snapshot: &Snapshot, nodes: &Nodes<'_>, memory: &Memory<'_>) -> Self {
        let of = |ports: &[PortSpec]| -> Vec<Claim> {
            let open = |port: &PortSpec| Some((port.protocol, port.everywhere()?, port.host_ip));
            ports.iter().filter_map(open).collect()
        };
        let published = |svc: &Svc<'_>| -> Vec<Claim> {
            let stored = snapshot.endpoints.get(svc.key);
            let stored = stored.and_then(|stored| stored.value.as_ref().ok());
            let open = |port: &EndpointPort| {
                let everywhere = port.everywhere.as_ref()?;
                Some((port.protocol, everywhere.host_port, everywhere.host_ip))
            };
            stored.map_or_else(Vec::new, |stored| stored.ports.iter().filter_map(open).collect())
        };
        let mut claims: Vec<(bool, u32, Vec<Claim>)> = Vec::new();
        for (at, svc) in memory.svcs.iter().enumerate().filter(|(_, svc)| !svc.deleted) {
            let wanted = match svc.spec {
                Some(spec) if svc.bridged => of(&spec.container.ports),
                Some(_) => Vec::new(),
                // What was published of a service that is held stays.
                None => published(svc),
            };
            if !wanted.is_empty() {
                let had = published(svc);
                let new = !wanted.iter().all(|claim| had.contains(claim));
                claims.push((new, u32::try_from(at).unwrap_or(NONE), wanted));
            }
        }
        let mut found = Self::default();
        if claims.is_empty() {
            return found;
        }
        claims.sort_by_key(|(new, svc, _)| (*new, memory.svcs.get(*svc as usize).map(|svc| svc.key)));
        let mut held: BTreeMap<(Protocol, u16), Vec<Holder>> = BTreeMap::new();
        for inst in memory.insts.iter().filter(|inst| inst.stays()) {
            for port in held_ports(nodes, inst) {
                let of = held.entry((port.protocol, port.host_port)).or_default();
                of.push((port.host_ip, inst.svc));
            }
        }
        for (new, svc, wanted) in claims {
            let another = |(protocol, port, ip): &&Claim| {
                let mut others = held.get(&(*protocol, *port)).into_iter().flatten();
                let held = new && others.any(|(other, of)| *of != svc && overlap(*other, *ip));
                held || found.taken.taken(*protocol, *port, *ip)
            };
            if let Some((_, port, _)) = wanted.iter().find(another) {
                found.barred.insert(svc, *port);
                continue;
            }
            for (protocol, port, ip) in wanted {
                found.taken.0.entry((protocol, port)).or_default().push(ip);
            }
        }
        found
    }

    /// The port for which nothing of a service is placed.
    pub(super) fn barred(&self, svc: u32) -> Option<u16> {
        self.barred.get(&svc).copied()
    }

    /// The ports of a node that are taken, before anything is there.
    pub(super) fn ports(&self) -> Ports {
        self.taken.clone()
    }
}

/// The fixed ports that an instance will ask for when its turn to change comes: nothing else is placed on them.
pub(super) fn coming_ports(nodes: &Nodes<'_>, memory: &Memory<'_>, inst: &super::memory::Inst) -> Vec<AssignedPort> {
    let Some(svc) = memory.svcs.get(inst.svc as usize) else {
        return Vec::new();
    };
    let Some(spec) = svc.spec.filter(|_| inst.n != svc.n) else {
        return Vec::new();
    };
    let held = held_ports(nodes, inst);
    let own = spec.container.ports.iter().filter(|port| port.is_on_node());
    let fixed = own.filter_map(|port| match port.host_port {
        Some(HostPort::Fixed(host_port)) => Some(AssignedPort {
            container_port: port.container_port,
            protocol: port.protocol,
            host_ip: port.host_ip,
            host_port,
        }),
        Some(HostPort::Auto) | None => None,
    });
    fixed.filter(|port| !held.contains(port)).collect()
}

/// The ports an instance holds on its node.
pub(super) fn held_ports<'a>(nodes: &Nodes<'a>, inst: &super::memory::Inst) -> &'a [AssignedPort] {
    let node = &nodes.list[inst.node as usize];
    if let Some(assigned) = node
        .assignment
        .and_then(|assignment| assignment.instances.get(inst.assigned as usize))
    {
        return &assigned.ports;
    }
    node.report
        .and_then(|report| report.instances.get(inst.reported as usize))
        .map_or(&[], |reported| &reported.ports)
}
