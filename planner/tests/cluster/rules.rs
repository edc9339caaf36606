//! What is decided when, one rule a test.

use std::sync::Arc;

use planner::cluster::{Action, Reason, removal_digest};
use schemas::names::Slot;
use schemas::records::{AssignedState, ConditionStatus, ConditionType, CordonMode, Digest, Phase, RefusalRule, Uid};
use serde_json::json;

use crate::support::{Cluster, Container, key, line, name};

#[test]
fn a_service_gets_its_replicas_on_different_nodes_and_then_the_cluster_rests() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2, web.3 on n3");
    assert!(cluster.plan().rests(&cluster.snapshot));
    let status = cluster.status("web");
    assert_eq!(
        (
            status.counts.desired,
            status.counts.assigned,
            status.counts.ready,
            status.counts.updated
        ),
        (3, 3, 3, 3)
    );
    assert_eq!(cluster.condition("web", ConditionType::Progressing).reason, "Complete");
    assert_eq!(
        cluster.condition("web", ConditionType::Ready).status,
        ConditionStatus::True
    );
}

#[test]
fn a_service_whose_dependency_is_missing_runs_and_says_so_for_as_long() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", json!({ "dependsOn": ["cache", "db"] }));
    cluster.apply("cache", json!({}));
    cluster.settle();
    let accepted = |cluster: &Cluster| cluster.condition("web", ConditionType::Accepted);
    assert_eq!(cluster.picture(), "cache.1 on n1, web.1 on n1");
    assert_eq!(
        (accepted(&cluster).status, accepted(&cluster).reason.as_str()),
        (ConditionStatus::True, "DependencyMissing")
    );
    assert!(accepted(&cluster).message.contains("`db`"), "{:?}", accepted(&cluster));
    cluster.apply("db", json!({}));
    cluster.settle();
    assert_eq!(accepted(&cluster).reason, "Valid");
    cluster.delete("cache");
    cluster.settle();
    assert_eq!(accepted(&cluster).reason, "DependencyMissing");
    assert_eq!(
        cluster.picture(),
        "db.1 on n1, web.1 on n1",
        "nothing is stopped for it"
    );
}

#[test]
fn scaling_down_takes_the_highest_slots() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 5 }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.3 absent on n1, web.4 absent on n2, web.5 absent on n1"
    );
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2");
}

#[test]
fn a_deleted_service_is_removed_and_its_status_ends() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    cluster.delete("web");
    let plan = cluster.passed();
    assert_eq!(plan.accepted.len(), 1);
    assert_eq!(cluster.condition("web", ConditionType::Progressing).reason, "Deleting");
    cluster.settle();
    assert_eq!(cluster.picture(), "");
    assert!(cluster.snapshot.service_statuses.is_empty());
}

#[test]
fn an_incomplete_list_deletes_nothing() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    cluster.delete("web");
    cluster.snapshot.complete = false;
    let plan = cluster.passed();
    assert!(plan.accepted.is_empty() && plan.assignments.is_empty());
}

#[test]
fn a_service_deleted_and_made_again_is_a_new_life_with_higher_numbers() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", json!({}));
    cluster.settle();
    let first = cluster.status("web");
    cluster.delete("web");
    cluster.settle();
    cluster.apply("web", json!({}));
    cluster.settle();
    let second = cluster.status("web");
    assert_eq!((first.generation, second.generation), (Some(1), Some(3)));
    assert_ne!(first.uid, second.uid);
}

#[test]
fn an_invalid_value_keeps_the_last_good_spec_in_force() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", json!({}));
    cluster.settle();
    cluster.apply_invalid("web");
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty() && plan.accepted.is_empty());
    let accepted = cluster.condition("web", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::False, "Invalid")
    );
    assert!(accepted.message.contains("line 4, column 3"), "{}", accepted.message);
    cluster.apply("web", json!({}));
    cluster.settle();
    assert_eq!(
        cluster.condition("web", ConditionType::Accepted).status,
        ConditionStatus::True
    );
    assert_eq!(
        cluster.status("web").generation,
        Some(1),
        "the same spec again is no new one"
    );
}

#[test]
fn a_change_goes_one_slot_at_a_time_in_slot_order() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 3, "container": { "image": "app:2" } }));
    let plan = cluster.plan();
    let lines: Vec<String> = plan.changes.iter().map(line).collect();
    assert_eq!(
        lines,
        [
            "web.1 n1 Replace { fields: [\"container.image\"] } SpecChanged { from: 1, to: 2 }",
            "web.2 n2 Replace { fields: [\"container.image\"] } SpecChanged { from: 1, to: 2 } waits WaitsFor { instance: InstanceName { namespace: \"default\", workload: \"web\", slot: Index(1) } }",
            "web.3 n3 Replace { fields: [\"container.image\"] } SpecChanged { from: 1, to: 2 } waits WaitsFor { instance: InstanceName { namespace: \"default\", workload: \"web\", slot: Index(1) } }",
        ]
    );
    assert_eq!(plan.assignments.len(), 1);
    for _ in 0..100 {
        cluster.pass();
        for node in ["n1", "n2", "n3"] {
            cluster.step(node);
        }
        assert!(cluster.serving("web") >= 2);
    }
    assert!(cluster.assigned().iter().all(|(_, one)| one.n == 2));
    assert_eq!(cluster.condition("web", ConditionType::Progressing).reason, "Complete");
}

#[test]
fn a_change_whose_image_is_missing_stops_at_the_first_slot_and_a_good_one_goes_through() {
    for (bad, reason) in [("missing", "ImageNotFound"), ("crashing", "CrashLoop")] {
        let mut cluster = Cluster::of(3);
        cluster.missing.insert("missing".to_owned());
        cluster.crashing.insert("crashing".to_owned());
        cluster.apply("web", json!({ "replicas": 3 }));
        cluster.settle();
        cluster.apply("web", json!({ "replicas": 3, "container": { "image": bad } }));
        cluster.settle();
        assert_eq!(cluster.assigned().iter().filter(|(_, one)| one.n == 2).count(), 1);
        let progressing = cluster.condition("web", ConditionType::Progressing);
        assert_eq!(
            (progressing.status, progressing.reason.as_str()),
            (ConditionStatus::False, reason)
        );
        let plan = cluster.plan();
        let waits = plan
            .changes
            .iter()
            .filter(|change| matches!(change.waits, Some(Reason::ChangeFailed { .. })))
            .count();
        assert_eq!(waits, 2);
        cluster.apply("web", json!({ "replicas": 3, "container": { "image": "app:3" } }));
        cluster.settle();
        assert_eq!(
            cluster.assigned().iter().filter(|(_, one)| one.n == 3).count(),
            3,
            "{bad}"
        );
        assert_eq!(cluster.serving("web"), 3);
    }
}

#[test]
fn going_back_to_the_spec_that_runs_touches_the_failing_slot_alone() {
    let mut cluster = Cluster::of(3);
    cluster.missing.insert("missing".to_owned());
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 3, "container": { "image": "missing" } }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    let mut numbers: Vec<u64> = cluster.assigned().iter().map(|(_, one)| one.n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 1, 3]);
    assert_eq!(cluster.status("web").counts.updated, 3);
    assert_eq!(cluster.condition("web", ConditionType::Progressing).reason, "Complete");
}

#[test]
fn what_the_agent_alone_notices_is_in_force_at_once_and_replicas_cost_nothing() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 3, "restartPolicy": "Never" }));
    let plan = cluster.passed();
    assert_eq!(plan.assignments.len(), 3);
    assert!(
        plan.changes
            .iter()
            .all(|change| matches!(change.action, Action::Update { .. }))
    );
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 2, "restartPolicy": "Never" }));
    let plan = cluster.passed();
    assert_eq!(plan.assignments.len(), 1);
}

#[test]
fn an_unreachable_node_keeps_its_instances_and_gets_no_new_ones() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    cluster.session("n2", false);
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2");
    assert_eq!(cluster.status("web").counts.ready, 1);
    assert_eq!(cluster.condition("web", ConditionType::Ready).reason, "NodeUnreachable");
    cluster.apply("api", json!({ "replicas": 2 }));
    cluster.settle();
    assert!(cluster.picture().contains("api.1 on n1, api.2 on n1"));
}

#[test]
fn a_slot_on_an_unreachable_node_is_passed_over_and_takes_its_turn_on_return() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.session("n1", false);
    cluster.apply("web", json!({ "replicas": 3, "container": { "image": "app:2" } }));
    cluster.settle();
    assert_eq!(
        cluster.assigned().iter().map(|(_, one)| one.n).collect::<Vec<_>>(),
        [1, 2, 2]
    );
    assert_eq!(
        cluster.condition("web", ConditionType::Progressing).reason,
        "NodeUnreachable"
    );
    cluster.session("n1", true);
    cluster.settle();
    assert!(cluster.assigned().iter().all(|(_, one)| one.n == 2));
}

#[test]
fn a_drained_node_empties_one_instance_at_a_time_prepared_first() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.cordon("n2", Some(CordonMode::Drain));
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.2 prepared on n1, web.3 on n3"
    );
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.2 prepared on n1, web.3 on n3",
        "not before the image is there"
    );
    cluster.step("n1");
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 absent on n2, web.2 prepared on n1, web.3 on n3",
        "stop first"
    );
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 absent on n2, web.2 prepared on n1, web.3 on n3",
        "until it is gone"
    );
    cluster.step("n2");
    cluster.pass();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n1, web.3 on n3");
    cluster.settle();
    assert_eq!(cluster.serving("web"), 3);
}

#[test]
fn a_retired_node_gives_up_everything_at_once_and_is_forgotten_when_empty() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 6 }));
    cluster.settle();
    cluster.cordon("n3", Some(CordonMode::Retire));
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.3 absent on n3, web.3 on n1, web.4 on n1, web.5 on n2, web.6 absent on n3, web.6 on n2"
    );
    cluster.settle();
    cluster.session("n3", false);
    cluster.settle();
    assert!(!cluster.snapshot.nodes.contains_key(&name("n3")));
}

#[test]
fn a_lost_node_is_replaced_elsewhere() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    cluster.lose("n3");
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.3 absent on n3, web.3 on n1"
    );
}

#[test]
fn the_breaker_holds_what_goes_beyond_the_budget_until_a_person_says_yes() {
    let mut cluster = Cluster::of(4);
    cluster.apply("web", json!({ "replicas": 30 }));
    cluster.settle();
    cluster.apply("web", json!({ "replicas": 5 }));
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty());
    let held = plan.breaker.held.clone().expect("held");
    assert_eq!((held.count, held.budget), (25, 20));
    assert_eq!(
        cluster.condition("web", ConditionType::Progressing).reason,
        "HeldByBreaker"
    );
    assert!(cluster.plan().rests(&cluster.snapshot));
    assert_eq!(removal_digest(&plan, &key("web")), Some(held.digest.clone()));
    cluster.ack(held.digest);
    cluster.settle();
    assert_eq!(cluster.status("web").counts.assigned, 5);
    assert!(cluster.snapshot.acks.is_empty() && cluster.snapshot.breaker.held.is_none());
    assert_eq!(cluster.snapshot.breaker.spent, 0);
}

#[test]
fn removals_in_a_row_use_up_the_budget() {
    let mut cluster = Cluster::of(4);
    cluster.apply("web", json!({ "replicas": 40 }));
    cluster.settle();
    for left in [25, 20] {
        cluster.apply("web", json!({ "replicas": left }));
        cluster.settle();
        assert_eq!(cluster.status("web").counts.assigned, left);
    }
    cluster.apply("web", json!({ "replicas": 19 }));
    cluster.settle();
    assert_eq!(cluster.snapshot.breaker.spent, 20);
    assert!(cluster.snapshot.breaker.held.is_some());
    cluster.snapshot.breaker.spent = 0;
    cluster.settle();
    assert!(cluster.snapshot.breaker.held.is_none());
}

#[test]
fn deleted_assignments_neither_double_nor_move_anything() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 7 }));
    cluster.settle();
    let before = cluster.picture();
    for entry in cluster.snapshot.nodes.values_mut() {
        entry.assignment = None;
    }
    cluster.settle();
    assert_eq!(cluster.picture(), before);
    assert!(cluster.assigned().iter().all(|(_, one)| one.n == 1));
}

#[test]
fn a_node_ahead_of_the_store_is_held_alone_and_several_hold_all() {
    let mut cluster = Cluster::of(5);
    cluster.apply("web", json!({ "replicas": 5 }));
    cluster.settle();
    let ahead = |cluster: &mut Cluster, node: &str| {
        cluster.agents.get_mut(&name(node)).expect("a node").applied.generation += 5;
        cluster.report(node);
    };
    ahead(&mut cluster, "n1");
    cluster.apply("web", json!({ "replicas": 1 }));
    cluster.apply("api", json!({ "replicas": 5 }));
    cluster.settle();
    assert!(!cluster.picture().contains("api.1 on n1") && cluster.picture().contains("api.5"));
    ahead(&mut cluster, "n2");
    ahead(&mut cluster, "n3");
    cluster.apply("api", json!({ "replicas": 9 }));
    cluster.delete("web");
    let plan = cluster.passed();
    assert!(plan.accepted.is_empty() && plan.assignments.is_empty());
}

#[test]
fn nodes_ahead_of_a_store_that_a_person_has_accepted_go_on() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    for node in ["n1", "n2", "n3"] {
        cluster.agents.get_mut(&name(node)).expect("a node").applied.generation += 5;
        cluster.report(node);
    }
    cluster.apply("api", json!({ "replicas": 3 }));
    assert!(cluster.passed().assignments.is_empty());
    cluster.snapshot.cluster.restore_epoch += 1;
    cluster.settle();
    assert_eq!(
        cluster.picture(),
        "api.1 on n1, api.2 on n2, api.3 on n3, web.1 on n1, web.2 on n2, web.3 on n3"
    );
    assert!(cluster.agents.values().all(|agent| agent.applied.restore_epoch == 1));
}

#[test]
fn of_duplicates_the_assigned_one_is_kept() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({}));
    cluster.settle();
    let container = cluster.agents[&name("n1")].held.values().next().expect("one").clone();
    let id = (container.entry.uid.clone(), container.entry.slot.clone());
    cluster
        .agents
        .get_mut(&name("n3"))
        .expect("a node")
        .held
        .insert(id, container);
    cluster.report("n3");
    cluster.pass();
    assert_eq!(cluster.picture(), "web.1 absent on n3, web.1 on n1");
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1");
}

#[test]
fn a_second_copy_that_is_only_on_its_way_is_called_off_while_the_breaker_holds() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({}));
    cluster.settle();
    cluster.apply("many", json!({ "replicas": 30 }));
    cluster.settle();
    let web = |one: &&Container| one.entry.workload.as_str() == "web";
    let container = cluster.agents[&name("n1")]
        .held
        .values()
        .find(web)
        .expect("web.1")
        .clone();
    let (uid, slot) = (container.entry.uid.clone(), container.entry.slot.clone());
    let held = &mut cluster.agents.get_mut(&name("n3")).expect("a node").held;
    held.insert((uid.clone(), slot), container);
    cluster.report("n3");
    let stored = cluster.entry("n3").report.as_mut().expect("a report");
    let mut report = schemas::records::Report::clone(stored.value.as_ref().expect("readable"));
    for one in report.instances.iter_mut().filter(|one| one.uid == uid) {
        (one.phase, one.ready, one.container) = (Phase::Pulling { percent: 0 }, false, None);
    }
    stored.value = Ok(Arc::new(report));
    cluster.delete("many");
    cluster.pass();
    assert!(cluster.snapshot.breaker.held.is_some());
    let web: Vec<_> = cluster
        .assigned()
        .into_iter()
        .filter(|(_, one)| one.uid == uid)
        .collect();
    let states: Vec<_> = web.iter().map(|(node, one)| (node.as_str(), one.state)).collect();
    assert_eq!(states, [("n1", AssignedState::Present), ("n3", AssignedState::Absent)]);
}

#[test]
fn a_global_service_runs_on_every_fitting_node() {
    let mut cluster = Cluster::of(3);
    cluster.apply_node("n2", json!({ "taints": [{ "key": "db", "effect": "NoSchedule" }] }));
    cluster.apply("agent", json!({ "mode": "global" }));
    cluster.settle();
    assert_eq!(cluster.picture(), "agent.n1 on n1, agent.n3 on n3");
    assert_eq!(cluster.status("agent").counts.desired, 2);
    cluster.node("n4", &[]);
    cluster.cordon("n3", Some(CordonMode::Drain));
    cluster.settle();
    assert_eq!(cluster.picture(), "agent.n1 on n1, agent.n4 on n4");
    cluster.apply(
        "agent",
        json!({ "mode": "global", "placement": { "nodeNames": ["n1"] } }),
    );
    cluster.settle();
    assert_eq!(cluster.picture(), "agent.n1 on n1");
}

#[test]
fn roles_that_an_agent_was_given_count_until_a_person_names_others() {
    let mut cluster = Cluster::new();
    for node in ["n1", "n2", "n3"] {
        cluster.node(node, &[]);
    }
    for (node, role) in [("n2", "db"), ("n3", "db")] {
        if let Some(facts) = cluster
            .entry(node)
            .facts
            .as_mut()
            .and_then(|facts| facts.value.as_mut().ok())
        {
            facts.roles = vec![role.parse().expect("a role")];
        }
    }
    cluster.apply_node("n3", json!({ "roles": ["cache"] }));
    cluster.apply("db", json!({ "replicas": 2, "placement": { "roles": ["db"] } }));
    cluster.apply("cache", json!({ "placement": { "roles": ["cache"] } }));
    cluster.settle();
    assert_eq!(cluster.picture(), "cache.1 on n3, db.1 on n2, db.2 on n2");
}

#[test]
fn constraints_decide_where() {
    let mut cluster = Cluster::new();
    for (node, zone, disk) in [
        ("n1", "a", "10"),
        ("n2", "a", "500"),
        ("n3", "b", "500"),
        ("n4", "c", "20"),
    ] {
        cluster.node(node, &[("zone", zone), ("disk", disk)]);
    }
    cluster.apply_node("n3", json!({ "roles": ["db"], "labels": { "zone": "d" } }));
    let cases = [
        (
            json!({ "required": [{ "key": "zone", "operator": "In", "values": ["a"] }] }),
            "n1 n2 n1",
        ),
        (
            json!({ "required": [{ "key": "disk", "operator": "Gt", "values": ["100"] }] }),
            "n2 n3 n2",
        ),
        (
            json!({ "required": [{ "key": "disk", "operator": "Lt", "values": ["15"] }] }),
            "n1 n1 n1",
        ),
        (
            json!({ "required": [{ "key": "zone", "operator": "NotIn", "values": ["a", "c"] }] }),
            "n3 n3 n3",
        ),
        (json!({ "required": [{ "key": "gpu", "operator": "Exists" }] }), "- - -"),
        (
            json!({ "required": [{ "key": "reeve.node", "operator": "In", "values": ["n4"] }] }),
            "n4 n4 n4",
        ),
        (json!({ "roles": ["db", "other"] }), "n3 n3 n3"),
        (json!({ "nodeNames": ["n4", "n2"] }), "n2 n4 n2"),
        (json!({ "nodeNames": ["n4", "n2"], "maxPerNode": 1 }), "n2 n4 -"),
        (
            json!({ "preferred": [{ "weight": 5, "expression": { "key": "zone", "operator": "In", "values": ["c"] } }] }),
            "n4 n4 n4",
        ),
        (json!({ "spread": [{ "topologyKey": "zone" }] }), "n1 n3 n4"),
        (
            json!({ "spread": [{ "topologyKey": "zone" }], "nodeNames": ["n1", "n2"] }),
            "n1 n2 n1",
        ),
        (
            json!({ "antiAffinity": [{ "service": "web" }], "nodeNames": ["n1", "n2"] }),
            "n1 n2 -",
        ),
        (
            json!({ "antiAffinity": [{ "service": "web", "topologyKey": "zone" }] }),
            "n1 n3 n4",
        ),
        (
            json!({ "affinity": [{ "service": "web", "topologyKey": "zone" }] }),
            "n1 n2 n1",
        ),
        (json!({ "affinity": [{ "service": "other" }] }), "- - -"),
        (json!({ "affinity": [{ "service": "web", "weight": 10 }] }), "n1 n1 n1"),
    ];
    for (placement, places) in cases {
        for exhaustive in [false, true] {
            let mut cluster = cluster.clone();
            cluster.exhaustive = exhaustive;
            cluster.apply("web", json!({ "replicas": 3, "placement": placement }));
            cluster.settle();
            let assigned = cluster.assigned();
            let found: Vec<String> = (1..=3)
                .map(|slot| {
                    let here = assigned
                        .iter()
                        .find(|(_, one)| one.slot == schemas::names::Slot::Index(slot));
                    here.map_or("-".to_owned(), |(node, _)| node.to_string())
                })
                .collect();
            assert_eq!(found.join(" "), places, "{placement}");
        }
    }
}

#[test]
fn anti_affinity_holds_in_both_directions() {
    let mut cluster = Cluster::of(2);
    cluster.apply(
        "db",
        json!({ "placement": { "antiAffinity": [{ "service": "noisy" }] } }),
    );
    cluster.settle();
    cluster.apply("noisy", json!({ "replicas": 3 }));
    cluster.settle();
    assert_eq!(
        cluster.picture(),
        "db.1 on n1, noisy.1 on n2, noisy.2 on n2, noisy.3 on n2"
    );
}

#[test]
fn every_refusal_says_which_rule_how_many_nodes_and_by_how_much() {
    let mut cluster = Cluster::of(3);
    cluster.cordon("n3", Some(CordonMode::Cordon));
    cluster.session("n2", false);
    cluster.apply(
        "big",
        json!({ "container": { "resources": { "requests": { "cpu": "6", "memory": "1Gi" } } } }),
    );
    cluster.settle();
    let status = cluster.status("big");
    let told: Vec<_> = status
        .refusals
        .iter()
        .map(|one| (one.rule, one.nodes, one.detail.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (RefusalRule::NodeNotReady, 1, "unreachable"),
            (RefusalRule::NodeCordoned, 1, "nothing new is placed there"),
            (RefusalRule::Cpu, 3, "needs 6 CPU, 4 free at most"),
        ]
    );
    let scheduled = cluster.condition("big", ConditionType::Scheduled);
    assert_eq!(
        (scheduled.status, scheduled.reason.as_str()),
        (ConditionStatus::False, "NoNodeFits")
    );
    let plan = cluster.plan();
    assert!(plan.rests(&cluster.snapshot));
    assert!(plan.changes.iter().any(|change| change.action == Action::Unschedulable));
}

#[test]
fn resources_are_kept_free_and_priority_places_first() {
    let mut cluster = Cluster::of(1);
    let needs = |cpu: &str, priority: i32| json!({ "replicas": 2, "placement": { "priority": priority }, "container": { "resources": { "requests": { "cpu": cpu } } } });
    cluster.apply("a", needs("2", 0));
    cluster.apply("b", needs("1500m", 5));
    cluster.settle();
    assert_eq!(cluster.picture(), "b.1 on n1, b.2 on n1");
}

#[test]
fn host_ports_are_held_once_and_chosen_ones_are_kept() {
    let mut cluster = Cluster::of(2);
    let port = |host: serde_json::Value| json!({ "replicas": 2, "container": { "ports": [{ "containerPort": 80, "hostPort": host }] } });
    cluster.apply("a", port(json!(8080)));
    cluster.apply("b", port(json!(8080)));
    cluster.apply("c", port(json!("auto")));
    cluster.apply("d", port(json!("auto")));
    cluster.settle();
    assert_eq!(
        cluster.status("b").refusals.first().map(|one| (one.rule, one.nodes)),
        Some((RefusalRule::HostPort, 2))
    );
    let ports = |cluster: &Cluster, service: &str| -> Vec<u16> {
        cluster
            .assigned()
            .iter()
            .filter(|(_, one)| one.workload.as_str() == service)
            .map(|(_, one)| one.ports[0].host_port)
            .collect()
    };
    assert_eq!(
        (ports(&cluster, "c"), ports(&cluster, "d")),
        (vec![30_000, 30_000], vec![30_001, 30_001])
    );
    cluster.delete("c");
    cluster.apply("d", json!({ "replicas": 2, "container": { "image": "app:2", "ports": [{ "containerPort": 80, "hostPort": "auto" }] } }));
    cluster.settle();
    assert_eq!(ports(&cluster, "d"), [30_001, 30_001]);
}

#[test]
fn an_unreadable_accepted_record_holds_its_resource_alone() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", json!({}));
    cluster.apply("api", json!({}));
    cluster.settle();
    let history = cluster.snapshot.accepted.get_mut(&key("web")).expect("one");
    history.records.get_mut(&1).expect("one").value = Err("not JSON".to_owned());
    cluster.delete("web");
    cluster.apply("api", json!({ "replicas": 2 }));
    cluster.settle();
    assert_eq!(cluster.picture(), "api.1 on n1, api.2 on n1, web.1 on n1");
    assert_eq!(cluster.condition("web", ConditionType::Accepted).reason, "Unreadable");
}

#[test]
fn a_life_whose_records_are_gone_goes_on() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    let uid = cluster.status("web").uid;
    cluster.snapshot.accepted.clear();
    cluster.settle();
    assert_eq!(cluster.status("web").uid, uid);
    assert_eq!(cluster.status("web").generation, Some(2));
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2");
}

#[test]
fn only_the_last_twenty_records_and_those_in_use_are_kept() {
    let mut cluster = Cluster::of(1);
    for number in 0..30 {
        cluster.apply(
            "web",
            json!({ "replicas": 1, "container": { "image": format!("app:{number}") } }),
        );
        cluster.pass();
    }
    cluster.settle();
    assert_eq!(cluster.snapshot.accepted[&key("web")].records.len(), 20);
}

#[test]
fn an_orphan_is_left_alone_and_told_of() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", json!({}));
    cluster.settle();
    let agent = cluster.agents.get_mut(&name("n1")).expect("a node");
    let mut container = agent.held.values().next().expect("one").clone();
    container.entry.uid = "0".repeat(32).parse().expect("a uid");
    agent
        .held
        .insert((container.entry.uid.clone(), container.entry.slot.clone()), container);
    cluster.report("n1");
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty());
    assert!(
        plan.notices
            .iter()
            .any(|notice| notice.message.contains("no record knows")),
        "{:?}",
        plan.notices
    );
    assert!(cluster.passed().notices.is_empty());
}

/// A cluster whose n1 and n2 both report an orphan `web.1` of the same uid beside what is assigned, and that uid.
fn with_orphans() -> (Cluster, Uid) {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    let uid: Uid = "0".repeat(32).parse().expect("a uid");
    for node in ["n1", "n2"] {
        let agent = cluster.agents.get_mut(&name(node)).expect("a node");
        let mut container = agent.held.values().next().expect("one").clone();
        container.entry.uid = uid.clone();
        container.entry.slot = Slot::Index(1);
        agent.held.insert((uid.clone(), Slot::Index(1)), container);
        report_orphans(&mut cluster, node, &uid);
    }
    (cluster, uid)
}

/// The report of a node as an agent writes it, which knows what no record knows.
fn report_orphans(cluster: &mut Cluster, node: &str, uid: &Uid) {
    cluster.report(node);
    let stored = cluster.entry(node).report.as_mut().expect("a report");
    let mut report = schemas::records::Report::clone(stored.value.as_ref().expect("readable"));
    for one in report.instances.iter_mut().filter(|one| one.uid == *uid) {
        one.phase = Phase::Orphaned;
    }
    stored.value = Ok(Arc::new(report));
}

#[test]
fn an_acknowledged_orphan_is_removed_from_its_node_alone() {
    let (mut cluster, uid) = with_orphans();
    let _ = cluster.passed();
    cluster.ack(Digest::of_orphan(&name("n1"), &uid, &Slot::Index(1)));
    let plan = cluster.passed();
    assert_eq!(plan.assignments.len(), 1, "{:?}", plan.assignments);
    let absent: Vec<_> = plan.assignments[0]
        .assignment
        .instances
        .iter()
        .filter(|one| one.state == AssignedState::Absent)
        .collect();
    assert_eq!(absent.len(), 1);
    assert_eq!((&absent[0].uid, &absent[0].slot), (&uid, &Slot::Index(1)));
    assert_eq!(absent[0].workload.as_str(), "web");
    assert_eq!(cluster.snapshot.acks.len(), 1, "kept until the order is seen in force");
    cluster.step("n1");
    let _ = cluster.passed();
    assert!(cluster.snapshot.acks.is_empty());
    let held = |cluster: &Cluster, node: &str| {
        let agent = &cluster.agents[&name(node)];
        agent.held.contains_key(&(uid.clone(), Slot::Index(1)))
    };
    assert!(!held(&cluster, "n1"));
    assert!(held(&cluster, "n2"), "the same name on another node was not meant");
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2");
    assert!(cluster.passed().assignments.is_empty());
}

#[test]
fn an_ack_of_an_orphan_waits_while_its_node_is_held_and_never_removes_what_is_assigned() {
    let (mut cluster, uid) = with_orphans();
    // n1 claims to have applied what nobody wrote: it is held.
    let stored = cluster.entry("n1").report.as_mut().expect("a report");
    let mut report = schemas::records::Report::clone(stored.value.as_ref().expect("readable"));
    let applied = report.applied;
    report.applied.generation += 5;
    stored.value = Ok(Arc::new(report.clone()));
    let ack = Digest::of_orphan(&name("n1"), &uid, &Slot::Index(1));
    cluster.ack(ack.clone());
    assert!(cluster.passed().assignments.is_empty());
    assert!(cluster.snapshot.acks.contains_key(&ack));
    report.applied = applied;
    cluster.entry("n1").report.as_mut().expect("a report").value = Ok(Arc::new(report));
    assert_eq!(cluster.passed().assignments.len(), 1);
    // Of an instance that is assigned, whatever its node calls it: nothing happens, and the ack is dropped.
    let web = cluster.status("web").uid.expect("a uid");
    report_orphans(&mut cluster, "n2", &web);
    cluster.ack(Digest::of_orphan(&name("n2"), &web, &Slot::Index(2)));
    let plan = cluster.passed();
    let orders = plan.assignments.iter().flat_map(|write| &write.assignment.instances);
    assert!(
        orders
            .filter(|one| one.uid == web)
            .all(|one| one.state == AssignedState::Present)
    );
    assert!(
        !cluster
            .snapshot
            .acks
            .contains_key(&Digest::of_orphan(&name("n2"), &web, &Slot::Index(2)))
    );
}

#[test]
fn an_ack_of_nothing_is_dropped() {
    let mut cluster = Cluster::of(1);
    cluster.ack(Digest::of(b"nothing"));
    cluster.pass();
    assert!(cluster.snapshot.acks.is_empty());
}

#[test]
fn while_nobody_knows_what_a_live_node_runs_nothing_is_created() {
    let mut cluster = Cluster::of(3);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    // Its agent was restarted, and so its session tells what it had applied; then its keys are deleted by hand.
    cluster.session("n2", true);
    cluster.entry("n2").assignment = None;
    cluster.entry("n2").report = None;
    cluster.apply("api", json!({}));
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty());
    assert!(
        plan.changes
            .iter()
            .any(|change| matches!(change.waits, Some(Reason::NodeHeld { .. })))
    );
    cluster.report("n2");
    cluster.settle();
    assert_eq!(cluster.picture(), "api.1 on n1, web.1 on n1, web.2 on n2, web.3 on n3");
}

#[test]
fn a_slot_that_is_down_on_its_way_elsewhere_keeps_the_others_up() {
    let mut cluster = Cluster::of(3);
    let spec =
        |image: &str, policy: &str| json!({ "replicas": 2, "container": { "image": image }, "restartPolicy": policy });
    cluster.apply("web", spec("app:1", "Always"));
    cluster.settle();
    cluster.sick.insert("web.1".to_owned());
    cluster.step("n1");
    cluster.cordon("n1", Some(CordonMode::Drain));
    cluster.apply("web", spec("app:1", "Never"));
    cluster.pass();
    cluster.step("n1");
    assert_eq!(cluster.picture(), "web.1 on n1, web.1 prepared on n3, web.2 on n2");
    // The agent of n2 has not said yet that it has the second number, when the third comes.
    cluster.apply("web", spec("app:3", "Never"));
    cluster.pass();
    let second = cluster
        .assigned()
        .into_iter()
        .find(|(node, _)| *node == name("n2"))
        .expect("one");
    assert_eq!(second.1.n, 2);
    cluster.settle();
    assert!(
        cluster
            .assigned()
            .iter()
            .any(|(node, one)| *node == name("n3") && one.n == 3)
    );
}
