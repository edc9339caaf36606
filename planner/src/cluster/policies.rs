//! Which network policies are in force: one record for each namespace, from what is declared. `addresses.rs` asks for what is
//! to be published. A policy that is not valid any more stays as it was last valid; one that is deleted goes.

use std::collections::{BTreeMap, BTreeSet};

use schemas::names::{Namespace, ResourceName};
use schemas::network_policy::{EgressRule, IngressRule, IpBlock, NetworkPeer, NetworkPolicySpec, NetworkPort};
use schemas::records::{InForcePolicy, Policies, SchemaVersion};

use super::snapshot::Snapshot;
use super::types::NetworkWrites;

/// What the policies of one namespace may come to, in bytes of JSON: less than a record may have.
const MOST: usize = 768 << 10;

/// What differs from what is published. Where there is no network, nothing is in force.
pub(super) fn policies(snapshot: &Snapshot, writes: &mut NetworkWrites) {
    let mut declared: BTreeMap<&Namespace, BTreeMap<&ResourceName, Option<&NetworkPolicySpec>>> = BTreeMap::new();
    if snapshot.cluster.network.is_some() {
        for (key, spec) in &snapshot.network_policies {
            if let Some(namespace) = &key.namespace {
                let of = declared.entry(namespace).or_default();
                of.insert(&key.name, spec.as_deref());
            }
        }
    }
    let namespaces: BTreeSet<&Namespace> = declared.keys().copied().chain(snapshot.policies.keys()).collect();
    for namespace in namespaces {
        let there = snapshot.policies.get(namespace);
        let before = there.and_then(|stored| stored.value.as_ref().ok());
        let in_force = |name: &ResourceName| before?.policies.iter().find(|one| one.name == *name);
        let now: Vec<InForcePolicy> = declared
            .get(namespace)
            .into_iter()
            .flatten()
            .filter_map(|(name, spec)| {
                let spec = spec.or_else(|| in_force(name).map(|one| &one.spec))?;
                Some(InForcePolicy {
                    name: (*name).clone(),
                    spec: spec.clone(),
                })
            })
            .collect();
        if before.is_some_and(|before| before.policies == now) {
            continue;
        }
        if now.is_empty() {
            if there.is_some() {
                writes.policies.push((namespace.clone(), None));
            }
        } else if now.iter().map(weight).sum::<usize>() <= MOST {
            let record = Policies {
                schema_version: SchemaVersion::default(),
                cluster: snapshot.cluster.id.clone(),
                policies: now,
            };
            writes.policies.push((namespace.clone(), Some(record)));
        }
    }
}

/// What a policy comes to in JSON, in bytes: rather more than less.
fn weight(policy: &InForcePolicy) -> usize {
    /// A word with its key, quotes and escapes.
    fn word(text: &str) -> usize {
        24 + text.len()
    }
    fn peer(peer: &NetworkPeer) -> usize {
        let NetworkPeer {
            namespace,
            service,
            ip_block,
        } = peer;
        let block =
            |IpBlock { cidr, except }: &IpBlock| word(cidr) + except.iter().map(|one| word(one)).sum::<usize>() + 32;
        16 + namespace.as_ref().map_or(0, |name| word(name.as_str()))
            + service.as_ref().map_or(0, |name| word(name.as_str()))
            + ip_block.as_ref().map_or(0, block)
    }
    const PORT: usize = 64;
    let rule =
        |peers: &[NetworkPeer], ports: &[NetworkPort]| 48 + peers.iter().map(peer).sum::<usize>() + ports.len() * PORT;
    let InForcePolicy { name, spec } = policy;
    let NetworkPolicySpec {
        description,
        services,
        policy_types,
        ingress,
        egress,
    } = spec;
    let ingress = ingress.iter().map(|IngressRule { from, ports }| rule(from, ports));
    let egress = egress.iter().map(|EgressRule { to, ports }| rule(to, ports));
    128 + word(name.as_str())
        + description.as_ref().map_or(0, |text| 24 + 6 * text.len())
        + services.iter().map(|name| word(name.as_str())).sum::<usize>()
        + policy_types.len() * 16
        + ingress.chain(egress).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use schemas::network_policy::PolicyType;

    use super::*;

    #[test]
    fn a_policy_is_never_larger_than_it_is_weighed() {
        let name = "n".repeat(63);
        let block = serde_json::json!({ "ipBlock": { "cidr": "2001:db8:1111:2222:3333:4444::/96", "except": ["2001:db8:1111:2222:3333:4444:5555:0/112"] } });
        let peers = serde_json::json!([{ "namespace": name, "service": name }, block]);
        let rule = |key: &str| serde_json::json!({ key: peers, "ports": [{ "port": 10_000, "endPort": 20_000, "protocol": "UDP" }] });
        let spec: NetworkPolicySpec = serde_json::from_value(serde_json::json!({
            "description": "\u{1}\u{2}",
            "services": [name],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [rule("from"), {}],
            "egress": [rule("to")],
        }))
        .expect("a spec");
        assert!(spec.restricts(PolicyType::Egress));
        let name = name.parse().expect("a name");
        let policy = InForcePolicy { name, spec };
        let real = serde_json::to_string(&policy).expect("JSON").len();
        assert!(real <= weight(&policy), "{real}, {}", weight(&policy));
        assert!(weight(&policy) < 2 * real + 256, "{real}, {}", weight(&policy));
    }
}
