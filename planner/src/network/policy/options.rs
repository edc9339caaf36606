//! What Docker's own filters need to hear so that packets which are routed to containers come through: options of the network
//! when it is made, and rules in the chain that Docker leaves to others. By versions, as decision 0027 has them.

use std::collections::BTreeMap;

use schemas::records::AssignedNetwork;

/// The first API whose engines drop what is routed to containers, and have a mode without that: 28.0.
const DROPS_ROUTED: (u32, u32) = (1, 48);

/// The options of a node's network. Who may talk to whom, and what leaves under the host's address, is the policy table's to
/// say, and so none of Docker's.
#[must_use]
pub fn network_options(api: (u32, u32), bridge: &str, mtu: Option<u16>) -> BTreeMap<String, String> {
    let option = |key: &str, value: String| (format!("com.docker.network.{key}"), value);
    let mut options = BTreeMap::from([
        option("bridge.name", bridge.to_owned()),
        option("bridge.enable_ip_masquerade", "false".to_owned()),
        // Between two containers packets pass the host, in and out at the same bridge: without it Docker would drop them.
        option("bridge.enable_icc", "true".to_owned()),
    ]);
    options.extend(mtu.map(|mtu| option("driver.mtu", mtu.to_string())));
    if api >= DROPS_ROUTED {
        for family in ["ipv4", "ipv6"] {
            options.extend([option(
                &format!("bridge.gateway_mode_{family}"),
                "nat-unprotected".to_owned(),
            )]);
        }
    }
    options
}

/// The rules that the chain `DOCKER-USER` needs, as `iptables` (false) and `ip6tables` (true) take them after `-C`, `-I` and
/// `-D`. They let through what comes from the cluster's network, and with `leads` what is led to an instance and what answers
/// that; the policy table has refused by then what may not. They stay when nothing is led any more: what was begun goes on.
#[must_use]
pub fn accepts(network: &AssignedNetwork, bridge: &str, table: &str, leads: bool) -> Vec<(bool, Vec<String>)> {
    let rule = |six: bool, matches: &str| {
        let text = format!("{matches} -m comment --comment {table} -j ACCEPT");
        (six, text.split(' ').map(str::to_owned).collect())
    };
    let six = network.settings.cidr6.filter(|_| network.subnet6.is_some());
    let ranges = std::iter::once((false, network.settings.cidr.to_string()));
    let ranges = ranges.chain(six.map(|range| (true, range.to_string())));
    let mut rules = Vec::new();
    for (six, range) in ranges {
        rules.push(rule(six, &format!("-s {range} -o {bridge}")));
        if leads {
            rules.push(rule(six, &format!("-o {bridge} {LED} ORIGINAL")));
            rules.push(rule(six, &format!("-i {bridge} {LED} REPLY")));
        }
    }
    rules
}

/// How a packet of a connection that was translated is known.
const LED: &str = "-m conntrack --ctstate DNAT --ctdir";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_engines_that_know_it_are_asked_not_to_drop_what_is_routed() {
        let old = network_options((1, 41), "rv-a", None);
        assert!(old.keys().all(|key| !key.contains("gateway_mode")), "{old:?}");
        assert_eq!(old["com.docker.network.bridge.enable_ip_masquerade"], "false");
        for api in [(1, 48), (1, 52), (2, 0)] {
            let new = network_options(api, "rv-a", Some(1420));
            assert_eq!(new["com.docker.network.bridge.gateway_mode_ipv4"], "nat-unprotected");
            assert_eq!(new["com.docker.network.bridge.gateway_mode_ipv6"], "nat-unprotected");
            assert_eq!(new["com.docker.network.driver.mtu"], "1420");
        }
        assert!(network_options((1, 47), "rv-a", None).len() == old.len());
    }
}
