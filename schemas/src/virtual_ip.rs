//! The kind `VirtualIP`: one address on one of several nodes. Who holds it is `planner::cluster`'s to decide, how it is put on a
//! host and taken away is the agent's.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::is_default;
use crate::names::{NodeName, ResourceName};
use crate::placement::{Expression, Preference};

/// An address that one of several nodes holds, on its host's own network: never two at a time, and where it may be it stays. It
/// moves when its node is lost or may not hold it any more, and when a person says so (`reeve virtualip move`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualIpSpec {
    /// What it is for, in words; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub description: Option<String>,
    /// The address with the length of its network's prefix: `192.0.2.10/24`, `2001:db8::10/64`. Nothing else has it.
    #[schemars(extend("maxLength" = 64))]
    pub address: String,
    /// The device of the host that gets it: `eth0`. When absent, the one that has an address of the same network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 15))]
    pub interface: Option<String>,
    /// Which nodes may hold it; any when absent. Taints do not count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: VirtualIpPlacement,
    /// A service of its namespace: only a node on which an instance of it is ready may hold the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ResourceName>,
    /// Nodes that are to hold it before all others while they may, the best first: it goes back to them. `reeve virtualip
    /// move` writes this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub prefer: Vec<NodeName>,
}

/// Which nodes may hold an address. All but `preferred` binds always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualIpPlacement {
    /// The only nodes that may; any when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 10_000))]
    pub node_names: Vec<NodeName>,
    /// Roles of which a node must have at least one; any node when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub roles: Vec<ResourceName>,
    /// Expressions over node labels that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub required: Vec<Expression>,
    /// Expressions over node labels that add their weight where they hold, when a holder is chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub preferred: Vec<Preference>,
}

/// An address as people write it for a host to have: with its prefix, and one that a host can have. The reason otherwise.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn address(text: &str) -> Result<IpNet, &'static str> {
    let net: IpNet = text
        .parse()
        .map_err(|_| "is no address with the length of its prefix")?;
    let own = net.addr();
    let point = net.prefix_len() + 1 >= net.max_prefix_len();
    if net.prefix_len() == 0 {
        return Err("has a prefix of no length");
    }
    if own.is_unspecified() || own.is_loopback() || own.is_multicast() {
        return Err("is none that other hosts can reach");
    }
    if let IpAddr::V6(own) = own
        && own.is_unicast_link_local()
    {
        return Err("is none that other networks can reach");
    }
    let last = own.is_ipv4() && own == net.broadcast();
    if !point && (own == net.network() || last) {
        return Err("is the first or the last of its network, which no host has");
    }
    Ok(net)
}

/// Whether a device can have such a name.
#[must_use]
pub fn is_interface(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && name.bytes().all(fits)
}

impl VirtualIpSpec {
    /// Its address, where it is one.
    #[must_use]
    pub fn address(&self) -> Option<IpNet> {
        address(&self.address).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_host_can_have_is_an_address() {
        for fine in [
            "192.0.2.10/24",
            "10.0.0.0/32",
            "10.0.0.1/31",
            "2001:db8::1/64",
            "2001:db8::/128",
        ] {
            assert!(address(fine).is_ok(), "{fine}");
        }
        for none in [
            "192.0.2.10",
            "192.0.2.0/24",
            "192.0.2.255/24",
            "127.0.0.1/8",
            "224.0.0.1/4",
            "0.0.0.0/8",
            "1.2.3.4/0",
            "fe80::1/64",
            "::1/128",
            "2001:db8::/64",
            "ff02::1/16",
            "",
            "10.0.0.1/33",
            "10.0.0.1/24 dev lo",
        ] {
            assert!(address(none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_device_has_a_short_name_without_slashes() {
        assert!(is_interface("eth0") && is_interface("bond0.7") && is_interface("br-lan"));
        for none in ["", "..", "a/b", "a b", "eth0:1", "0123456789abcdef"] {
            assert!(!is_interface(none), "{none}");
        }
    }
}
