//! Network policies: what is published of them, and when.

use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Namespace;
use schemas::network_policy::NetworkPolicySpec;
use serde_json::json;

use crate::network::small;
use crate::support::Cluster;

fn policy(name: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some(Namespace::default()),
        kind: Kind::NetworkPolicy,
        name: name.parse().expect("a name"),
    }
}

fn spec(services: &[&str]) -> Option<Arc<NetworkPolicySpec>> {
    Some(Arc::new(
        serde_json::from_value(json!({ "services": services })).expect("a spec"),
    ))
}

fn published(cluster: &Cluster) -> Vec<String> {
    let of = cluster.snapshot.policies.iter();
    let policies = of.flat_map(|(namespace, stored)| {
        let record = stored.value.as_ref().expect("readable");
        let line = move |one: &schemas::records::InForcePolicy| {
            let services: Vec<&str> = one.spec.services.iter().map(|name| name.as_str()).collect();
            format!("{namespace}/{}: {}", one.name, services.join(" "))
        };
        record.policies.iter().map(line).collect::<Vec<_>>()
    });
    policies.collect()
}

#[test]
fn a_policy_that_is_not_valid_any_more_stays_as_it_was_and_a_deleted_one_goes() {
    let mut cluster = Cluster::of(1);
    cluster.snapshot.network_policies.insert(policy("a"), spec(&["web"]));
    cluster.settle();
    assert!(published(&cluster).is_empty(), "there is no network");
    cluster.snapshot.cluster.network = Some(small());
    cluster.snapshot.network_policies.insert(policy("b"), spec(&["db"]));
    cluster.settle();
    assert_eq!(published(&cluster), ["default/a: web", "default/b: db"]);
    cluster.snapshot.network_policies.insert(policy("b"), None);
    cluster.snapshot.network_policies.insert(policy("c"), None);
    cluster
        .snapshot
        .network_policies
        .insert(policy("a"), spec(&["web", "cache"]));
    cluster.settle();
    assert_eq!(published(&cluster), ["default/a: web cache", "default/b: db"]);
    cluster.snapshot.network_policies.remove(&policy("a"));
    cluster.settle();
    assert_eq!(published(&cluster), ["default/b: db"]);
    cluster.snapshot.network_policies.remove(&policy("b"));
    cluster.settle();
    assert!(cluster.snapshot.policies.is_empty());
}

#[test]
fn of_an_incomplete_list_no_policy_is_taken_away() {
    let mut cluster = Cluster::of(1);
    cluster.snapshot.cluster.network = Some(small());
    cluster.snapshot.network_policies.insert(policy("a"), spec(&[]));
    cluster.settle();
    cluster.snapshot.network_policies.clear();
    cluster.snapshot.complete = false;
    let plan = planner::cluster::plan(&cluster.snapshot);
    assert!(plan.network.policies.is_empty());
}

#[test]
fn more_policies_than_a_record_holds_leave_it_as_it_is() {
    let mut cluster = Cluster::of(1);
    cluster.snapshot.cluster.network = Some(small());
    cluster.snapshot.network_policies.insert(policy("a"), spec(&["web"]));
    cluster.settle();
    let peers: Vec<_> = (0..64)
        .map(|at| json!({ "namespace": format!("{at:0>63}"), "service": "s" }))
        .collect();
    let rules: Vec<_> = (0..64).map(|_| json!({ "from": peers })).collect();
    let large: NetworkPolicySpec = serde_json::from_value(json!({ "ingress": rules })).expect("a spec");
    for name in ["b", "c"] {
        cluster
            .snapshot
            .network_policies
            .insert(policy(name), Some(Arc::new(large.clone())));
    }
    cluster.settle();
    assert_eq!(published(&cluster), ["default/a: web"]);
}
