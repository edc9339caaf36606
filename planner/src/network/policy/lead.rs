//! Ports of the node from which the kernel leads who comes from outside straight to an instance of the node: a part of the
//! filter's own table, which `policy.rs` writes, so that it is replaced and put right with it. The instance sees who came, and
//! its own chain of the filter judges that, as it judges whoever comes by a published port. Promises: nobody is led but to an
//! instance that runs here and is plugged in, of the very service whose port it is; not who comes from this host, its
//! containers or the cluster's network: the relay answers those.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use schemas::container::Protocol;

use super::super::relay::Lead;
use super::text::Table;
use super::{Inside, Local, protocol_word};

/// Engines translate at -100: what they, or anybody else, lead somewhere is theirs.
const BASE: &str = "type nat hook prerouting priority -90; policy accept;";

impl Inside<'_> {
    /// The chains that lead; none where nobody is led.
    pub(super) fn leading(&self, table: &mut Table) {
        let mut made: BTreeSet<String> = BTreeSet::new();
        // Of each map its elements: the address where it has one, the protocol and the port.
        let mut maps: BTreeMap<(bool, char), BTreeMap<String, String>> = BTreeMap::new();
        for lead in self.input.leads {
            let wild = lead.at.ip.is_none_or(|ip| ip.is_unspecified());
            for family in ['4', '6'] {
                if lead.at.ip.is_some_and(|ip| ip.is_ipv4() != (family == '4')) {
                    continue;
                }
                let to = self.led_to(lead, family == '4');
                let Some(verdict) = translation(lead, &to) else {
                    continue;
                };
                let chain = format!("to.{}.{family}", lead.target.replace('-', "_").replace(['/', ':'], "."));
                let what = format!("{} . {}", protocol_word(lead.at.protocol), lead.at.port);
                let what = match lead.at.ip.filter(|_| !wild) {
                    Some(ip) => format!("{ip} . {what}"),
                    None => what,
                };
                let elements = maps.entry((wild, family)).or_default();
                elements.entry(what).or_insert_with(|| format!("goto {chain}"));
                if made.insert(chain.clone()) {
                    table.chain(&chain, None, vec![verdict]);
                }
            }
        }
        if maps.is_empty() {
            return;
        }
        let settings = &self.input.network.settings;
        let mut rules = vec![
            format!("iifname {{ {}, \"lo\" }} return", self.bridge()),
            format!("ip saddr {} return", settings.cidr),
        ];
        rules.extend(settings.cidr6.map(|cidr6| format!("ip6 saddr {cidr6} return")));
        rules.push("fib daddr type != local return".to_owned());
        // An address of its own is more than all of them.
        for ((wild, family), elements) in maps {
            let name = format!("{}{family}", if wild { "any" } else { "at" });
            let (of, asked) = match (wild, family) {
                (true, '4') => ("inet_proto . inet_service", "meta nfproto ipv4 meta l4proto"),
                (true, _) => ("inet_proto . inet_service", "meta nfproto ipv6 meta l4proto"),
                (false, '4') => ("ipv4_addr . inet_proto . inet_service", "ip daddr . meta l4proto"),
                (false, _) => ("ipv6_addr . inet_proto . inet_service", "ip6 daddr . meta l4proto"),
            };
            table.map(&name, of);
            for (element, verdict) in elements {
                table.add(&name, &element, Some(verdict));
            }
            rules.push(format!("{asked} . th dport vmap @{name}"));
        }
        table.chain("prerouting", Some(BASE), rules);
    }

    /// Where one is led to, of one family: what runs here, hangs on the bridge, and is of that service.
    fn led_to(&self, lead: &Lead, four: bool) -> Vec<SocketAddr> {
        let one = |to: &SocketAddr| {
            let IpAddr::V4(address) = to.ip() else { return None };
            let one = self.local.get(&address).filter(|one| is_of(one, &lead.target))?;
            if four {
                return Some(*to);
            }
            let own = self.address6(address)?;
            let hears = one.hears6.contains(&(lead.at.protocol, to.port()));
            hears.then_some(SocketAddr::new(IpAddr::V6(own), to.port()))
        };
        lead.to.iter().filter_map(one).collect()
    }
}

/// Whether it can be reached, and is one of that service: who is behind a target was told by another.
fn is_of(one: &Local, target: &str) -> bool {
    let name = target.split(':').next();
    one.plug.is_some() && name == Some(&format!("{}/{}", one.namespace, one.service))
}

/// One after the other; a client of a UDP port has the same one again after a pause. None where nobody is there.
fn translation(lead: &Lead, to: &[SocketAddr]) -> Option<String> {
    let first = to.first()?;
    let (family, port) = (if first.is_ipv4() { "ip" } else { "ip6" }, first.port());
    let protocol = protocol_word(lead.at.protocol);
    let head = format!("meta l4proto {protocol} dnat {family} to");
    if to.len() == 1 {
        return Some(format!("{head} {first}"));
    }
    let turn = match lead.at.protocol {
        Protocol::Tcp => "numgen inc".to_owned(),
        Protocol::Udp => format!("jhash {family} saddr . udp sport"),
    };
    let all: Vec<String> = (0..)
        .zip(to)
        .map(|(at, to): (usize, _)| format!("{at} : {}", to.ip()))
        .collect();
    Some(format!(
        "{head} {turn} mod {} map {{ {} }}:{port}",
        to.len(),
        all.join(", ")
    ))
}

/// A UDP flow that the kernel translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its client sends.
    pub asked: SocketAddr,
    /// Who answers.
    pub answers: SocketAddr,
}

/// Whether a flow leads to an address of this node's containers at which nobody is: each datagram would keep it alive, and none
/// arrive. `here` are the addresses at which somebody is.
#[must_use]
pub fn is_stale(flow: &Flow, network: &schemas::records::AssignedNetwork, here: &BTreeSet<IpAddr>) -> bool {
    let ours = match flow.answers.ip() {
        IpAddr::V4(address) => network.subnet.contains(&address),
        IpAddr::V6(address) => network.subnet6.is_some_and(|subnet6| subnet6.contains(&address)),
    };
    ours && flow.asked.ip() != flow.answers.ip() && !here.contains(&flow.answers.ip())
}

#[cfg(test)]
mod tests;
