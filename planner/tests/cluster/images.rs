//! Images: what a tag stands for is settled once, by the first node that tells, and stays so, whatever is told later.

use std::collections::BTreeSet;

use proptest::prelude::*;
use schemas::image::ImagePin;
use schemas::records::{AssignedImage, AssignedState};
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
        .map(|source| format!("{} at {}", source.node, source.api))
        .collect()
}

#[test]
fn with_its_registry_away_an_instance_is_told_who_has_its_image_and_else_nobody_is() {
    let mut cluster = telling(4);
    cluster.apply("web", web(3, "app:1"));
    cluster.settle();
    for node in ["n1", "n2", "n3", "n4"] {
        let mut facts = cluster.entry(node).facts.clone().expect("facts");
        facts.value.as_mut().expect("readable").addresses.api = Some(format!("{node}.example:9465"));
        cluster.entry(node).facts = Some(facts);
    }
    cluster.settle();
    let (free, _) = ["n1", "n2", "n3", "n4"]
        .map(|node| (node, cluster.assigned().iter().any(|(of, _)| of.as_str() == node)))
        .into_iter()
        .find(|(_, busy)| !busy)
        .expect("one is free");
    cluster.away.insert(name(free));
    cluster.apply("web", web(4, "app:1"));
    cluster.pass();
    assert_eq!(
        sources(&cluster, "web.4"),
        Vec::<String>::new(),
        "nobody knows yet that it is away"
    );
    cluster.step(free);
    cluster.pass();
    let told = sources(&cluster, "web.4");
    assert_eq!(told.len(), 3);
    assert!(
        told.iter()
            .all(|one| one.ends_with(".example:9465") && !one.starts_with(free)),
        "{told:?}"
    );
    let plan = cluster.plan();
    assert!(plan.assignments.is_empty(), "it is told once");
    assert!(sources(&cluster, "web.1").is_empty());
    // Those that it was told are lost: nobody else has it.
    cluster.away.clear();
    cluster.settle();
    assert_eq!(cluster.serving("web"), 4);
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
