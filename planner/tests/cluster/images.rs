//! Images: what a tag stands for is settled once, by the first node that tells, and stays so, whatever is told later.

use std::collections::BTreeSet;

use proptest::prelude::*;
use schemas::image::ImagePin;
use schemas::records::{AssignedImage, AssignedState, ConditionType};
use serde_json::{Value, json};

use crate::support::{Cluster, key, name, pin};

/// A cluster of so many nodes, each of which finds another image under every tag.
fn telling(nodes: u8) -> Cluster {
    let mut cluster = Cluster::of(usize::from(nodes));
    for node in 1..=nodes {
        cluster.tells.insert(name(&format!("n{node}")), pin(node));
    }
    cluster
}

fn web(replicas: u32, image: &str) -> Value {
    json!({ "replicas": replicas, "container": { "image": image }, "placement": { "maxPerNode": 1 } })
}

/// What the assignments of `web` say of its image; None of one that says nothing.
fn assigned(cluster: &Cluster) -> BTreeSet<Option<AssignedImage>> {
    let all = cluster.assigned().into_iter();
    let web = all.filter(|(_, one)| one.workload.as_str() == "web" && one.state != AssignedState::Absent);
    web.map(|(_, one)| one.image).collect()
}

/// The one image that all instances of `web` are to run.
fn settled(cluster: &Cluster) -> ImagePin {
    let said: Vec<_> = assigned(cluster).into_iter().collect();
    match said.as_slice() {
        [Some(AssignedImage::Settled(pin))] => *pin,
        other => panic!("{other:?}"),
    }
}

fn remembered(cluster: &Cluster) -> Vec<(u64, ImagePin)> {
    let images = cluster.status("web").images;
    images.into_iter().map(|one| (one.n, one.pin)).collect()
}

#[test]
fn the_first_that_tells_settles_it_for_all_and_for_those_that_come_later() {
    let mut cluster = telling(3);
    cluster.apply("web", web(2, "app:1"));
    cluster.pass();
    assert_eq!(assigned(&cluster), [Some(AssignedImage::Settling)].into());
    cluster.settle();
    let first = settled(&cluster);
    assert_eq!(remembered(&cluster), [(1, first)]);
    assert_eq!(cluster.serving("web"), 2);
    // The tag is moved, and more are asked for.
    for node in ["n1", "n2", "n3"] {
        cluster.tells.insert(name(node), pin(99));
    }
    cluster.apply("web", web(3, "app:1"));
    cluster.settle();
    assert_eq!((settled(&cluster), cluster.serving("web")), (first, 3));
    assert_eq!(remembered(&cluster), [(1, first), (2, first)]);
    // None is left, and then there are some again: the status remembers it.
    cluster.apply("web", web(0, "app:1"));
    cluster.settle();
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    assert_eq!(settled(&cluster), first);
}

#[test]
fn another_tag_is_settled_anew_and_going_back_gives_the_old_image() {
    let mut cluster = telling(2);
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    let first = settled(&cluster);
    cluster.tells.values_mut().for_each(|told| *told = pin(50));
    cluster.apply("web", web(2, "app:2"));
    cluster.settle();
    assert_eq!((settled(&cluster), cluster.serving("web")), (pin(50), 2));
    cluster.tells.values_mut().for_each(|told| *told = pin(60));
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    assert_eq!((settled(&cluster), cluster.serving("web")), (first, 2));
}

#[test]
fn with_always_a_change_of_containers_takes_what_the_tag_stands_for_then() {
    let always = |replicas: u32, env: &str| json!({ "replicas": replicas, "container": { "image": "app:1", "pullPolicy": "Always", "env": { "A": env } } });
    let mut cluster = telling(2);
    cluster.apply("web", always(1, "1"));
    cluster.settle();
    let first = settled(&cluster);
    cluster.tells.values_mut().for_each(|told| *told = pin(50));
    cluster.apply("web", always(2, "1"));
    cluster.settle();
    assert_eq!(settled(&cluster), first, "more of the same are of the same");
    cluster.apply("web", always(2, "2"));
    cluster.settle();
    assert_eq!(settled(&cluster), pin(50));
    cluster.apply("web", always(2, "1"));
    cluster.settle();
    assert_eq!(settled(&cluster), first);
}

#[test]
fn what_no_registry_knows_runs_as_it_is_on_each_node() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    assert_eq!(assigned(&cluster), [Some(AssignedImage::Settling)].into());
    assert_eq!((cluster.serving("web"), remembered(&cluster)), (2, Vec::new()));
}

#[test]
fn a_digest_and_what_is_never_pulled_need_no_settling() {
    let mut cluster = telling(2);
    cluster.apply("web", web(2, &format!("app:1@{}", pin(7).digest)));
    cluster.settle();
    assert_eq!(assigned(&cluster), [None].into());
    cluster.apply(
        "web",
        json!({ "replicas": 2, "container": { "image": "app:1", "pullPolicy": "Never" } }),
    );
    cluster.settle();
    assert_eq!((assigned(&cluster), cluster.serving("web")), ([None].into(), 2));
}

#[test]
fn a_cluster_of_an_earlier_release_is_told_and_restarts_nothing() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    for (node, _) in cluster.assigned() {
        let entry = cluster.entry(node.as_str());
        let stored = entry.assignment.as_mut().expect("assigned");
        let assignment = stored.value.as_mut().expect("readable");
        std::sync::Arc::make_mut(assignment)
            .instances
            .iter_mut()
            .for_each(|one| one.image = None);
    }
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty(), "nothing is written for its own sake");
    for node in ["n1", "n2"] {
        cluster.tells.insert(name(node), pin(5));
    }
    let before = cluster.agents.clone();
    cluster.settle();
    assert_eq!(settled(&cluster), pin(5));
    for (node, agent) in &cluster.agents {
        for (id, container) in &agent.held {
            let was = &before[node].held[id];
            assert_eq!((container.steps, container.entry.n), (was.steps, was.entry.n));
        }
    }
}

#[test]
fn a_lost_status_is_told_by_assignments_and_lost_assignments_by_the_status() {
    let mut cluster = telling(2);
    cluster.apply("web", web(2, "app:1"));
    cluster.settle();
    let first = settled(&cluster);
    cluster.tells.values_mut().for_each(|told| *told = pin(50));
    cluster.snapshot.service_statuses.clear();
    cluster.settle();
    assert_eq!((settled(&cluster), remembered(&cluster)), (first, vec![(1, first)]));
    for node in ["n1", "n2"] {
        cluster.entry(node).assignment = None;
    }
    cluster.settle();
    assert_eq!((settled(&cluster), cluster.serving("web")), (first, 2));
}

/// The nodes that an instance may have its image from.
fn sources(cluster: &Cluster, slot: &str) -> Vec<String> {
    let found = cluster
        .assigned()
        .into_iter()
        .find(|(_, one)| one.name().to_string() == slot);
    let (_, one) = found.expect("assigned");
    one.from
        .iter()
        .map(|source| {
            assert_eq!(source.api, format!("{}.example:9465", source.node));
            source.node.to_string()
        })
        .collect()
}

/// A cluster whose agents reach each other.
fn reaching(nodes: u8) -> Cluster {
    let mut cluster = telling(nodes);
    for node in 1..=nodes {
        let node = format!("n{node}");
        let mut facts = cluster.entry(&node).facts.clone().expect("facts");
        facts.value.as_mut().expect("readable").addresses.api = Some(format!("{node}.example:9465"));
        cluster.entry(&node).facts = Some(facts);
    }
    cluster
}

fn node_of(cluster: &Cluster, slot: &str) -> String {
    let all = cluster.assigned().into_iter();
    let mut found = all.filter(|(_, one)| one.name().to_string() == slot);
    found.next().expect("assigned").0.to_string()
}

#[test]
fn who_is_assigned_a_settled_image_is_told_at_once_who_has_it() {
    let mut cluster = reaching(6);
    cluster.apply("web", web(2, "app:1"));
    cluster.pass();
    // The registry goes away when one node has the image, and the other one is told of that with what it was settled to be.
    let (first, second) = (node_of(&cluster, "web.1"), node_of(&cluster, "web.2"));
    cluster.step(&first);
    cluster.away.insert(name(&second));
    cluster.pass();
    assert_eq!(sources(&cluster, "web.2"), [first]);
    assert!(sources(&cluster, "web.1").is_empty(), "it has the image");
    cluster.settle();
    assert_eq!(cluster.serving("web"), 2);

    // More of the same, on nodes that have no registry: they ask different nodes first, and none of them fails.
    for node in 1..=6 {
        cluster.away.insert(name(&format!("n{node}")));
    }
    cluster.apply("web", web(4, "app:1"));
    cluster.pass();
    let (third, fourth) = (sources(&cluster, "web.3"), sources(&cluster, "web.4"));
    assert_eq!((third.len(), fourth.len()), (2, 2));
    assert_ne!(third[0], fourth[0]);
    for _ in 0..10 {
        for node in 1..=6 {
            cluster.step(&format!("n{node}"));
        }
        cluster.pass();
        let progressing = cluster.condition("web", ConditionType::Progressing);
        assert_ne!(progressing.reason, "ImagePullFailed");
    }
    assert_eq!(cluster.serving("web"), 4);

    // Another tag is news to all; the same one under a new number is on its nodes.
    cluster.away.clear();
    cluster.apply(
        "web",
        json!({ "replicas": 4, "container": { "image": "app:1", "env": { "A": "1" } }, "placement": { "maxPerNode": 1 } }),
    );
    for _ in 0..40 {
        cluster.pass();
        let all = cluster.assigned();
        let renewed = all.iter().filter(|(_, one)| one.n == all[0].1.n && one.n > 2);
        assert!(renewed.clone().all(|(_, one)| one.from.is_empty()), "{all:?}");
        for node in 1..=6 {
            cluster.step(&format!("n{node}"));
        }
    }
    assert_eq!(cluster.serving("web"), 4);
}

#[test]
fn of_many_nodes_too_those_that_have_an_image_are_told_of_nobody() {
    let mut cluster = reaching(70);
    let global = |env: &str| json!({ "mode": "global", "container": { "image": "app:1", "env": { "A": env } } });
    cluster.apply("web", global("1"));
    cluster.settle();
    cluster.apply("web", global("2"));
    let mut renewed = 0;
    while renewed < 70 {
        cluster.pass();
        for node in 1..=70 {
            cluster.step(&format!("n{node}"));
        }
        let all = cluster.assigned().into_iter();
        let new: Vec<_> = all.filter(|(_, one)| one.n == 2).collect();
        assert!(new.iter().all(|(_, one)| one.from.is_empty()), "{new:?}");
        renewed = new.len();
    }
}

#[test]
fn nodes_that_come_and_go_write_no_assignment_for_who_has_an_image() {
    let mut cluster = reaching(6);
    cluster.apply("web", web(3, "app:1"));
    cluster.settle();
    cluster.apply("web", web(4, "app:1"));
    cluster.settle();
    let told = sources(&cluster, "web.4");
    assert_eq!(told.len(), 3, "it was told, and has not been written since");
    // One that it was told of is not heard any more, and then it is lost for good and what ran there runs elsewhere.
    cluster.session(&told[0], false);
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty(), "{:?}", plan.assignments);
    cluster.lose(&told[0]);
    let plan = cluster.passed();
    let written: BTreeSet<String> = plan
        .assignments
        .iter()
        .map(|one| one.assignment.node.to_string())
        .collect();
    assert!(!written.contains(&node_of(&cluster, "web.4")), "{written:?}");
    cluster.settle();
    // What is written for another reason does not carry it further.
    cluster.apply(
        "other",
        json!({ "mode": "global", "container": { "image": "other:1" } }),
    );
    cluster.settle();
    assert!(sources(&cluster, "web.4").is_empty());
}

#[test]
fn an_instance_that_nobody_gives_its_image_has_not_failed_before_it_has_asked_those_that_came_to_have_it() {
    let mut cluster = reaching(4);
    cluster.apply("web", web(1, "app:1"));
    cluster.settle();
    let holder = node_of(&cluster, "web.1");
    for node in 1..=4 {
        cluster.away.insert(name(&format!("n{node}")));
    }
    cluster.apply("web", web(2, "app:1"));
    cluster.pass();
    assert_eq!(sources(&cluster, "web.2"), std::slice::from_ref(&holder));
    let asking = node_of(&cluster, "web.2");
    // The only one that has it is not heard: then it has failed, and says so.
    cluster.session(&holder, false);
    cluster.step(&asking);
    cluster.pass();
    let reason = |cluster: &Cluster| cluster.condition("web", ConditionType::Progressing).reason;
    assert_eq!(reason(&cluster), "ImagePullFailed");
    // It is heard again at another address, and the one that waits is told: from then on it has not failed.
    cluster.session(&holder, true);
    let mut facts = cluster.entry(&holder).facts.clone().expect("facts");
    facts.value.as_mut().expect("readable").addresses.api = Some("elsewhere.example:9465".to_owned());
    cluster.entry(&holder).facts = Some(facts);
    let plan = cluster.passed();
    assert_eq!(plan.assignments.len(), 1);
    assert_ne!(reason(&cluster), "ImagePullFailed");
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty(), "it is told once");
    assert_ne!(
        reason(&cluster),
        "ImagePullFailed",
        "its report is older than what it was told"
    );
    cluster.settle();
    assert_eq!(cluster.serving("web"), 2);
}

#[test]
fn an_image_that_only_another_service_runs_is_had_from_there() {
    let mut cluster = reaching(3);
    for at in 1..=3 {
        cluster.tells.insert(name(&format!("n{at}")), pin(7));
    }
    cluster.apply("web", web(1, "app:1"));
    cluster.apply("worker", web(1, "app:1"));
    cluster.settle();
    cluster.apply("web", web(0, "app:1"));
    cluster.settle();
    cluster.apply("web", web(3, "app:1"));
    cluster.pass();
    let worker = node_of(&cluster, "worker.1");
    let told: Vec<Vec<String>> = ["web.1", "web.2", "web.3"]
        .iter()
        .filter(|slot| node_of(&cluster, slot) != worker)
        .map(|slot| sources(&cluster, slot))
        .collect();
    assert_eq!(told, [[worker.clone()], [worker]]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nodes tell in any order, and lie; the tag moves with every step. What is settled once stays so.
    #[test]
    fn whatever_is_told_in_whatever_order_a_number_has_one_image(
        acts in proptest::collection::vec((0_u8..6, 1_u8..5, any::<u8>()), 5..60),
    ) {
        let mut cluster = telling(4);
        cluster.apply("web", web(2, "app:1"));
        let mut seen: Vec<(u64, ImagePin)> = Vec::new();
        for (act, node, byte) in acts {
            let node = format!("n{node}");
            match act {
                0 => cluster.pass(),
                1 | 2 => cluster.step(&node),
                3 => {
                    cluster.tells.insert(name(&node), pin(byte));
                    cluster.report(&node);
                }
                4 => cluster.apply("web", web(1 + u32::from(byte % 4), "app:1")),
                _ => cluster.apply("web", web(1 + u32::from(byte % 4), ["app:1", "app:2"][usize::from(byte % 2)])),
            }
            for (_, one) in cluster.assigned() {
                let Some(AssignedImage::Settled(pin)) = one.image else { continue };
                match seen.iter().find(|(n, _)| *n == one.n) {
                    Some((_, known)) => prop_assert_eq!(*known, pin, "number {} has two images", one.n),
                    None => seen.push((one.n, pin)),
                }
            }
        }
        cluster.settle();
        prop_assert_eq!(cluster.status("web").counts.ready, cluster.status("web").counts.desired);
        let all: BTreeSet<_> = assigned(&cluster);
        prop_assert!(all.len() <= 1, "{:?}", all);
        prop_assert!(cluster.snapshot.service_statuses.contains_key(&key("web")));
    }
}
