//! The rules of network policies: who is somebody, which ports are a range, and that no rule is there in vain.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Rules;
use crate::network_policy::{
    EgressRule, IngressRule, IpBlock, NetworkPeer, NetworkPolicySpec, NetworkPort, PolicyType, network,
};
use crate::problem::{Code, quote};
use crate::yaml::Step;

const SOMEBODY: &str = "write one of `namespace: NAME`, `service: NAME`, both of these, and `ipBlock: {cidr: ...}`";

impl Rules<'_> {
    pub(super) fn network_policy(&mut self, spec: &NetworkPolicySpec) {
        let NetworkPolicySpec {
            description: _,
            services,
            policy_types,
            ingress,
            egress,
        } = spec;
        self.distinct(path!["spec", "services"], services);
        let types: Vec<&str> = policy_types
            .iter()
            .map(|one| match one {
                PolicyType::Ingress => "Ingress",
                PolicyType::Egress => "Egress",
            })
            .collect();
        self.distinct(path!["spec", "policyTypes"], &types);
        let directions = [
            ("ingress", "Ingress", PolicyType::Ingress, ingress.is_empty()),
            ("egress", "Egress", PolicyType::Egress, egress.is_empty()),
        ];
        for (key, word, direction, none) in directions {
            if !none && !spec.restricts(direction) {
                self.say_key(
                    path!["spec", key],
                    Code::NetworkRule,
                    format!("these rules count for nothing: `policyTypes` is without `{word}`"),
                    format!("add `{word}` to `policyTypes`, or leave the rules out"),
                );
            }
        }
        for (index, IngressRule { from, ports }) in ingress.iter().enumerate() {
            self.peers(path!["spec", "ingress", index, "from"], from);
            self.network_ports(path!["spec", "ingress", index, "ports"], ports);
        }
        for (index, EgressRule { to, ports }) in egress.iter().enumerate() {
            self.peers(path!["spec", "egress", index, "to"], to);
            self.network_ports(path!["spec", "egress", index, "ports"], ports);
        }
    }

    fn peers(&mut self, path: &[Step], peers: &[NetworkPeer]) {
        for (index, peer) in peers.iter().enumerate() {
            let NetworkPeer {
                namespace,
                service,
                ip_block,
            } = peer;
            let place = [path, path![index]].concat();
            let named = namespace.is_some() || service.is_some();
            match ip_block {
                None if !named => self.say(&place, Code::NetworkRule, "nobody is named here", SOMEBODY),
                None => {}
                Some(_) if named => {
                    let message = "addresses outside the cluster are in no namespace and of no service";
                    self.say(&place, Code::NetworkRule, message, SOMEBODY);
                }
                Some(block) => self.ip_block(&[&place[..], path!["ipBlock"]].concat(), block),
            }
        }
    }

    fn ip_block(&mut self, path: &[Step], block: &IpBlock) {
        let IpBlock { cidr, except } = block;
        let whole = self.network(&[path, path!["cidr"]].concat(), cidr);
        for (index, text) in except.iter().enumerate() {
            let place = [path, path!["except", index]].concat();
            if let (Some(part), Some(whole)) = (self.network(&place, text), whole)
                && (!whole.contains(&part) || whole == part)
            {
                self.say(
                    &place,
                    Code::NetworkRule,
                    format!("{part} is no part of {whole}"),
                    "leave it out, or name a smaller network within `cidr`",
                );
            }
        }
    }

    fn network(&mut self, path: &[Step], text: &str) -> Option<IpNet> {
        let found = network(text);
        if found.is_none() {
            let (message, remedy) = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
                (Ok(within), _) => (
                    format!("{} is an address within a network", quote(text)),
                    format!(
                        "write `{}` for the network, `{}/{}` for the address",
                        within.trunc(),
                        within.addr(),
                        within.max_prefix_len()
                    ),
                ),
                (Err(_), Ok(address)) => (
                    format!("{} is an address and no network", quote(text)),
                    format!("write `{}`", IpNet::from(address)),
                ),
                (Err(_), Err(_)) => (
                    format!("{} is no network", quote(text)),
                    "write such as `192.168.0.0/16` or `2001:db8::/32`".to_owned(),
                ),
            };
            self.say(path, Code::BadNetwork, message, remedy);
        }
        found
    }

    fn network_ports(&mut self, path: &[Step], ports: &[NetworkPort]) {
        for (index, one) in ports.iter().enumerate() {
            let NetworkPort {
                port,
                end_port,
                protocol: _,
            } = one;
            let Some(end) = end_port else { continue };
            let place = [path, path![index, "endPort"]].concat();
            match port {
                None => self.say_key(
                    &place,
                    Code::NetworkRule,
                    "a range has no beginning",
                    "write `port` beside `endPort`",
                ),
                Some(port) if end < port => self.say(
                    &place,
                    Code::NetworkRule,
                    format!("the range ends before it begins with {port}"),
                    "make `endPort` at least `port`",
                ),
                Some(_) => {}
            }
        }
    }
}
