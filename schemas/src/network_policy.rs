//! The kind `NetworkPolicy`: who may connect to services of its namespace, and to whom they may. Kubernetes' words, but
//! services are chosen by name: a label that somebody sets opens nothing. What it comes to on a node is
//! `planner::network::policy`'s.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::Protocol;
use crate::meta::is_default;
use crate::names::{Namespace, ResourceName};

/// Who may talk to whom, for services of its namespace. A service that no policy selects may be reached from its own namespace
/// and, where it publishes ports, from outside; and it may reach everything that lets it in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicySpec {
    /// What it is for, in words; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub description: Option<String>,
    /// The services of its namespace that it is about, by name; all of them when absent. One that does not exist yet may be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub services: Vec<ResourceName>,
    /// What it restricts: `Ingress` (who connects to them), `Egress` (to whom they connect) or both. What is restricted is refused
    /// unless a rule allows it. When absent `Ingress`, and `Egress` if there are `egress` rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 2))]
    pub policy_types: Vec<PolicyType>,
    /// Who may connect to them. The rules of all policies that select a service count together; without any, nobody may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub ingress: Vec<IngressRule>,
    /// To whom they may connect. The rules of all policies that select a service count together; without any, to nobody. Names
    /// are always answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub egress: Vec<EgressRule>,
}

/// A direction, as seen from the services that a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PolicyType {
    Ingress,
    Egress,
}

/// Somebody, and the ports on which they may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressRule {
    /// Who may; everybody when absent, from other namespaces and from outside too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub from: Vec<NetworkPeer>,
    /// On which ports of the containers; on all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub ports: Vec<NetworkPort>,
}

/// Somebody, and the ports that may be connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// To whom; to everybody when absent, as far as they let it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub to: Vec<NetworkPeer>,
    /// To which ports; to all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub ports: Vec<NetworkPort>,
}

/// Somebody: a service, a namespace, or addresses outside the cluster's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPeer {
    /// A namespace; with `service`, where that is. The policy's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// A service; all of the namespace when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ResourceName>,
    /// Addresses outside the cluster's network, instead of the other two: what runs in the cluster is chosen by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// Addresses outside the cluster's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpBlock {
    /// A network: `192.168.0.0/16`, `2001:db8::/32`.
    #[schemars(extend("maxLength" = 64))]
    pub cidr: String,
    /// Networks in it that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub except: Vec<String>,
}

/// Ports of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPort {
    /// 1 to 65535; all of the protocol when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// The last of a range that begins with `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub end_port: Option<u16>,
    /// `TCP` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
}

impl NetworkPolicySpec {
    /// Whether it restricts this direction.
    #[must_use]
    pub fn restricts(&self, direction: PolicyType) -> bool {
        if self.policy_types.is_empty() {
            direction == PolicyType::Ingress || !self.egress.is_empty()
        } else {
            self.policy_types.contains(&direction)
        }
    }

    /// Whether it is about this service of its namespace.
    #[must_use]
    pub fn selects(&self, service: &ResourceName) -> bool {
        self.services.is_empty() || self.services.contains(service)
    }
}

/// A network as people write it; None of what is none, and of an address within one.
#[must_use]
pub fn network(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    (net.addr() == net.network()).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_types_a_policy_restricts_who_connects_and_what_leaves_if_it_has_rules_for_that() {
        let mut spec = NetworkPolicySpec::default();
        assert!(spec.restricts(PolicyType::Ingress) && !spec.restricts(PolicyType::Egress));
        spec.egress.push(EgressRule::default());
        assert!(spec.restricts(PolicyType::Ingress) && spec.restricts(PolicyType::Egress));
        spec.policy_types.push(PolicyType::Egress);
        assert!(!spec.restricts(PolicyType::Ingress) && spec.restricts(PolicyType::Egress));
    }

    #[test]
    fn a_network_is_no_address_within_one() {
        assert!(network("10.0.0.0/8").is_some() && network("2001:db8::/32").is_some());
        for none in ["10.0.0.1/8", "10.0.0.1", "10.0.0.0/33", "", "10.0.0.0/8 ; drop"] {
            assert!(network(none).is_none(), "{none}");
        }
    }
}
