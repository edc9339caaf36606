//! Host ports: which of a node's are taken, and which an instance gets. `place.rs` and `turns.rs` ask.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemas::container::{HostPort, PortSpec, Protocol};
use schemas::records::AssignedPort;

use super::memory::Memory;
use super::world::Nodes;

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
        for spec in wanted {
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

/// The fixed ports that an instance will ask for when its turn to change comes: nothing else is placed on them.
pub(super) fn coming_ports(nodes: &Nodes<'_>, memory: &Memory<'_>, inst: &super::memory::Inst) -> Vec<AssignedPort> {
    let Some(svc) = memory.svcs.get(inst.svc as usize) else {
        return Vec::new();
    };
    let Some(spec) = svc.spec.filter(|_| inst.n != svc.n) else {
        return Vec::new();
    };
    let held = held_ports(nodes, inst);
    let fixed = spec.container.ports.iter().filter_map(|port| match port.host_port {
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
