//! A store that was put back to what it was earlier, and taken as it is by a person: nodes know better what they run, and nothing
//! of it is stopped, moved or run twice until a person says what should run.

use std::collections::BTreeMap;
use std::sync::Arc;

use planner::cluster::Snapshot;
use proptest::prelude::*;
use schemas::names::{NodeName, Slot};
use schemas::records::{ConditionStatus, ConditionType, CordonMode, Uid};
use serde_json::json;

use super::support::{Cluster, key, name};

/// What runs: by node, life and slot, the number of its spec.
type Running = BTreeMap<(NodeName, Uid, Slot), u64>;

fn running(cluster: &Cluster) -> Running {
    let mut all = Running::new();
    for (node, agent) in &cluster.agents {
        for ((uid, slot), container) in &agent.held {
            all.insert((node.clone(), uid.clone(), slot.clone()), container.entry.n);
        }
    }
    all
}

/// The store as it was, as `reeve admin restore` leaves it: without what nodes say of themselves, in a new restore epoch.
fn restore(cluster: &mut Cluster, then: &Snapshot) {
    let mut back = then.clone();
    let now = &cluster.snapshot;
    back.cluster.restore_epoch = now.cluster.restore_epoch.max(back.cluster.restore_epoch) + 1;
    // All of it is written anew, by another store's revisions.
    back.epoch = 3;
    back.revision = now.revision.max(back.revision) + 100;
    back.cluster.accepted_revision = Some(back.revision);
    back.acks.clear();
    for entry in back.nodes.values_mut() {
        (entry.session, entry.report, entry.verdict) = (None, None, None);
        if let Some(cordon) = &mut entry.cordon
            && let Ok(cordon) = &mut cordon.value
        {
            cordon.mode = CordonMode::Cordon;
        }
    }
    cluster.snapshot = back;
    cluster.absences = Default::default();
}

fn comes_back(cluster: &mut Cluster, node: &str) {
    if cluster
        .snapshot
        .nodes
        .get(&name(node))
        .is_none_or(|entry| entry.facts.is_none())
    {
        cluster.facts(node, 4_000, 8 << 30, &[]);
    }
    cluster.session(node, true);
    cluster.pass();
    cluster.report(node);
    cluster.pass();
    cluster.pass();
}

fn lost(before: &Running, after: &Running) -> Vec<String> {
    let differs = before.iter().filter(|(place, n)| after.get(place) != Some(n));
    differs.map(|(place, n)| format!("{place:?} of spec {n}")).collect()
}

#[test]
fn what_was_changed_since_is_kept_as_it_runs_and_a_person_says_what_should_run() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.apply("old", json!({}));
    cluster.settle();
    let yesterday = cluster.snapshot.clone();
    let newer = json!({ "replicas": 4, "container": { "image": "app:2" } });
    cluster.apply("web", newer.clone());
    cluster.apply("api", json!({ "replicas": 2 }));
    cluster.settle();
    cluster.cordon("n3", Some(CordonMode::Drain));
    cluster.settle();
    cluster.cordon("n3", None);
    cluster.settle();
    let before = running(&cluster);
    restore(&mut cluster, &yesterday);
    for node in ["n2", "n1", "n3"] {
        comes_back(&mut cluster, node);
    }
    cluster.settle();
    assert_eq!(lost(&before, &running(&cluster)), [""; 0]);
    assert_eq!(running(&cluster).len(), before.len());
    let accepted = cluster.condition("web", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::False, "StoreRegressed")
    );
    assert!(accepted.message.contains("nodes run spec 2"), "{}", accepted.message);
    let counts = cluster.status("web").counts;
    assert_eq!((counts.desired, counts.ready), (4, 4));
    assert!(cluster.agents.values().all(|agent| agent.applied.restore_epoch == 1));
    // What runs is what should run.
    cluster.apply("web", newer);
    cluster.settle();
    assert_eq!(cluster.condition("web", ConditionType::Accepted).reason, "Valid");
    assert_eq!(cluster.status("web").generation, Some(3));
    assert_eq!(cluster.status("web").counts.ready, 4);
}

#[test]
fn the_spec_of_then_comes_into_force_when_a_person_writes_it_again() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    let yesterday = cluster.snapshot.clone();
    cluster.apply("web", json!({ "replicas": 2, "container": { "image": "app:2" } }));
    cluster.settle();
    restore(&mut cluster, &yesterday);
    comes_back(&mut cluster, "n1");
    comes_back(&mut cluster, "n2");
    cluster.settle();
    assert_eq!(
        cluster.condition("web", ConditionType::Accepted).reason,
        "StoreRegressed"
    );
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    assert_eq!(cluster.status("web").generation, Some(3));
    assert!(
        cluster
            .agents
            .values()
            .all(|agent| agent.held.values().all(|one| one.entry.n == 3))
    );
    // Written again when nothing is newer, it is no other spec.
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    assert_eq!(cluster.status("web").generation, Some(3));
}

#[test]
fn until_all_nodes_have_come_back_or_are_lost_nothing_is_started_in_their_place() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "placement": { "nodeNames": ["n1", "n2"] } }));
    cluster.settle();
    let yesterday = cluster.snapshot.clone();
    let (from, to) = if cluster.picture().contains("n1") {
        ("n1", "n2")
    } else {
        ("n2", "n1")
    };
    cluster.cordon(from, Some(CordonMode::Drain));
    cluster.settle();
    cluster.cordon(from, None);
    let before = running(&cluster);
    assert!(before.keys().all(|(node, ..)| *node == name(to)));
    restore(&mut cluster, &yesterday);
    // It says that it does not run it; whether the other one does is not known yet.
    comes_back(&mut cluster, from);
    for _ in 0..3 {
        cluster.pass();
        cluster.step(from);
    }
    assert_eq!(running(&cluster), before);
    comes_back(&mut cluster, to);
    cluster.settle();
    assert_eq!(running(&cluster), before);
    // And who never comes back is lost, as always.
    restore(&mut cluster, &yesterday);
    comes_back(&mut cluster, from);
    cluster.lose(to);
    cluster.settle();
    assert!(running(&cluster).keys().any(|(node, ..)| *node == name(from)));
}

/// Something that people do.
#[derive(Clone, Debug)]
enum Act {
    Apply { service: usize, replicas: u32, image: u8 },
    Delete(usize),
    Drain(usize),
    Uncordon(usize),
}

const SERVICES: [&str; 3] = ["web", "api", "db"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (0..3_usize, 1..5_u32, 1..4_u8).prop_map(|(service, replicas, image)| Act::Apply { service, replicas, image }),
        1 => (0..3_usize).prop_map(Act::Delete),
        1 => (0..3_usize).prop_map(Act::Drain),
        2 => (0..3_usize).prop_map(Act::Uncordon),
    ]
}

fn acts(cluster: &mut Cluster, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Apply {
                service,
                replicas,
                image,
            } => {
                let image = format!("app:{image}");
                cluster.apply(
                    SERVICES[*service],
                    json!({ "replicas": replicas, "container": { "image": image } }),
                );
            }
            Act::Delete(service) => cluster.delete(SERVICES[*service]),
            Act::Drain(node) => cluster.cordon(NODES[*node], Some(CordonMode::Drain)),
            Act::Uncordon(node) => cluster.cordon(NODES[*node], None),
        }
        cluster.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 300 }))]

    #[test]
    fn whatever_happened_since_nothing_that_runs_is_stopped(
        first in prop::collection::vec(act(), 1..5),
        since in prop::collection::vec(act(), 0..6),
        order in Just(NODES.to_vec()).prop_shuffle(),
    ) {
        let mut cluster = Cluster::of(3);
        acts(&mut cluster, &first);
        let then = cluster.snapshot.clone();
        acts(&mut cluster, &since);
        let before = running(&cluster);
        restore(&mut cluster, &then);
        for node in &order {
            comes_back(&mut cluster, node);
        }
        cluster.settle();
        let lost = lost(&before, &running(&cluster));
        prop_assert!(lost.is_empty(), "stopped or replaced: {lost:?}");
        // Nothing runs twice.
        let mut slots: Vec<(Uid, Slot)> = running(&cluster).into_keys().map(|(_, uid, slot)| (uid, slot)).collect();
        let all = slots.len();
        slots.sort();
        slots.dedup();
        prop_assert_eq!(slots.len(), all);
        // What a person declares now comes into force, everywhere.
        for (at, service) in SERVICES.iter().enumerate() {
            cluster.cordon(NODES[at], None);
            cluster.apply(service, json!({ "replicas": 2, "container": { "image": "app:9" } }));
        }
        cluster.settle();
        for service in SERVICES {
            prop_assert_eq!(cluster.status(service).counts.ready, 2, "{}", service);
            let spec = cluster.snapshot.accepted[&key(service)].records.last_key_value();
            let spec = spec.and_then(|(_, entry)| entry.value.as_ref().ok().map(Arc::clone));
            prop_assert_eq!(spec.map(|spec| spec.n), cluster.status(service).generation);
        }
    }
}
