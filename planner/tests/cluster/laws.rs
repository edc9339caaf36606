//! The laws of the cluster planner as properties over random clusters of up to 200 nodes and random histories. A case is
//! a list of bytes, from which everything is drawn, so that a failing one shrinks. `REEVE_CASES` multiplies how many
//! cases each law gets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use planner::cluster::{Plan, PlanOptions, Reason, Removal, plan_with};
use proptest::prelude::*;
use proptest::test_runner::Config;
use schemas::names::{NodeName, Slot};
use schemas::records::{Assigned, AssignedState, ConditionType, CordonMode, Order, Phase, Report, Uid};
use serde_json::{Value, json};

use crate::support::{Cluster, key, name};

/// Draws from a list of bytes; zeros when it has run out.
struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    fn below(&mut self, limit: usize) -> usize {
        let mut value = 0;
        for _ in 0..if limit > 256 { 2 } else { 1 } {
            value = value * 256 + usize::from(self.bytes.get(self.at).copied().unwrap_or(0));
            self.at += 1;
        }
        value % limit.max(1)
    }
    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 1
    }
    fn more(&self) -> bool {
        self.at < self.bytes.len()
    }
}

fn cases(count: u32) -> Config {
    let times = std::env::var("REEVE_CASES")
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .unwrap_or(1);
    Config {
        cases: count.saturating_mul(times),
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..Config::default()
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 8..most)
}

fn placement(script: &mut Script) -> Value {
    match script.below(16) {
        0 => json!({ "required": [{ "key": "zone", "operator": "In", "values": ["a", "b"] }] }),
        1 => json!({ "required": [{ "key": "disk", "operator": "Exists" }] }),
        2 => json!({ "spread": [{ "topologyKey": "zone" }] }),
        3 => {
            json!({ "spread": [{ "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" }, { "topologyKey": "disk", "maxSkew": 3 }] })
        }
        4 => json!({ "maxPerNode": 1 }),
        5 => json!({ "antiAffinity": [{ "service": "s0" }] }),
        6 => json!({ "antiAffinity": [{ "service": "s1", "topologyKey": "zone" }], "priority": 3 }),
        7 => json!({ "affinity": [{ "service": "s2", "topologyKey": "zone" }] }),
        8 => {
            json!({ "preferred": [{ "weight": 7, "expression": { "key": "zone", "operator": "NotIn", "values": ["a"] } }], "priority": -2 })
        }
        9 => json!({ "nodeNames": ["n1", "n2", "n3", "n5"] }),
        10 => {
            json!({ "affinity": [{ "service": "s0", "weight": 5 }, { "service": "s3", "weight": 50, "topologyKey": "zone" }] })
        }
        11 => json!({ "roles": ["db"] }),
        _ => json!({}),
    }
}

fn service(script: &mut Script, images: &[&str]) -> Value {
    let image = images[script.below(images.len())];
    let ports = match script.below(9) {
        // In a cluster without a network of its own it is nobody's.
        8 => json!([{ "containerPort": 80, "hostPort": 8080, "publish": "everywhere" }]),
        0 => json!([{ "containerPort": 80, "hostPort": 8080 }]),
        1 => {
            json!([{ "containerPort": 80, "hostPort": "auto" }, { "containerPort": 81, "hostPort": "auto", "protocol": "UDP" }])
        }
        _ => json!([]),
    };
    let cpu = ["0", "100m", "1", "2500m"][script.below(4)];
    let policy = ["Always", "Never"][script.below(2)];
    let container = json!({ "image": image, "ports": ports, "resources": { "requests": { "cpu": cpu } } });
    let tolerations = if script.one_in(3) {
        json!([{ "operator": "Exists" }])
    } else {
        json!([])
    };
    let mut container = container;
    if script.one_in(4) {
        container["files"] = json!([{ "file": format!("f{}", script.below(3)), "path": "/f" }]);
    }
    let mut value = json!({ "container": container, "placement": placement(script), "restartPolicy": policy, "tolerations": tolerations });
    let count = script.below(8);
    if script.one_in(6) {
        value["mode"] = json!("global");
        for rule in ["spread", "maxPerNode"] {
            value["placement"].as_object_mut().expect("a map").remove(rule);
        }
    } else {
        value["replicas"] = json!(count);
        if script.one_in(5) {
            value["seeds"] = json!(1 + script.below(3));
        }
    }
    if script.one_in(5) {
        value["dependsOn"] = json!([format!("s{}", script.below(5))]);
    }
    value
}

fn add_node(cluster: &mut Cluster, script: &mut Script, at: usize) {
    let zone = ["a", "b", "c"][script.below(3)];
    let mut labels = vec![("zone", zone)];
    if script.one_in(2) {
        labels.push(("disk", "ssd"));
    }
    cluster.node(&format!("n{at}"), &labels);
    if script.one_in(6) {
        let effect = ["NoSchedule", "PreferNoSchedule"][script.below(2)];
        let taint = json!({ "key": "x", "effect": effect });
        cluster.apply_node(&format!("n{at}"), json!({ "taints": [taint], "roles": ["db"] }));
    }
}

fn random(script: &mut Script, most: usize) -> Cluster {
    let mut cluster = Cluster::new();
    for at in 1..=1 + script.below(most) {
        add_node(&mut cluster, script, at);
    }
    cluster
}

fn some_node(cluster: &Cluster, script: &mut Script) -> NodeName {
    let at = script.below(cluster.agents.len());
    cluster.agents.keys().nth(at).cloned().expect("clusters have nodes")
}

const IMAGES: &[&str] = &["app:1", "app:2", "app:3"];

/// Something happens. `wild` adds what loses records.
fn happen(cluster: &mut Cluster, script: &mut Script, images: &[&str], wild: bool) {
    let node = some_node(cluster, script);
    let service_name = format!("s{}", script.below(5));
    if script.one_in(6) {
        let file = format!("f{}", script.below(3));
        match script.below(4) {
            0 => cluster.delete_file(&file),
            content => cluster.apply_file(&file, json!({ "text": content.to_string() })),
        }
        return;
    }
    match script.below(if wild { 22 } else { 16 }) {
        0..=3 => {
            let value = service(script, images);
            cluster.apply(&service_name, value);
        }
        4 => cluster.delete(&service_name),
        5 => cluster.apply_invalid(&service_name),
        6 => cluster.session(node.as_str(), false),
        7 | 8 => cluster.session(node.as_str(), true),
        9 => cluster.cordon(node.as_str(), Some(CordonMode::Cordon)),
        10 => cluster.cordon(node.as_str(), Some(CordonMode::Drain)),
        11 => cluster.cordon(node.as_str(), None),
        12 => {
            let zone = ["a", "b", "c"][script.below(3)];
            cluster.apply_node(
                node.as_str(),
                json!({ "labels": { "zone": zone }, "unschedulable": script.one_in(4) }),
            );
        }
        13 => cluster.snapshot.epoch += 1,
        14 => cluster.snapshot.complete = script.below(4) != 0,
        15 => {
            // It acts, and nobody hears of it until its next report.
            let before = cluster.snapshot.nodes.get(&node).and_then(|entry| entry.report.clone());
            cluster.step(node.as_str());
            if let Some(entry) = cluster.snapshot.nodes.get_mut(&node) {
                entry.report = before;
            }
        }
        16 => cluster.entry(node.as_str()).assignment = None,
        17 => cluster.entry(node.as_str()).report = None,
        18 => cluster.entry(node.as_str()).facts = None,
        19 => cluster.entry(node.as_str()).verdict = None,
        20 => {
            if let Some(stored) = &mut cluster.entry(node.as_str()).assignment {
                stored.value = Err("not JSON".to_owned());
            }
        }
        _ => cluster.cordon(node.as_str(), Some(CordonMode::Retire)),
    }
}

/// All is well again: every node is back, and open.
fn recover(cluster: &mut Cluster) {
    cluster.snapshot.complete = true;
    cluster.snapshot.breaker.spent = 0;
    for (node, agent) in cluster.agents.clone() {
        let _ = agent;
        if cluster.entry(node.as_str()).facts.is_none() {
            cluster.facts(node.as_str(), 4_000, 8 << 30, &[("zone", "a")]);
        }
        cluster.session(node.as_str(), true);
        cluster.cordon(node.as_str(), None);
        cluster.report(node.as_str());
    }
}

/// Every assigned instance that is present, by uid and slot.
fn present(cluster: &Cluster) -> BTreeMap<(Uid, Slot), Vec<NodeName>> {
    let mut found: BTreeMap<(Uid, Slot), Vec<NodeName>> = BTreeMap::new();
    for (node, one) in cluster.assigned() {
        if one.state == AssignedState::Present {
            found.entry((one.uid, one.slot)).or_default().push(node);
        }
    }
    found
}

/// Containers that really run, by uid and slot.
fn running(cluster: &Cluster) -> BTreeMap<(Uid, Slot), Vec<NodeName>> {
    let mut found: BTreeMap<(Uid, Slot), Vec<NodeName>> = BTreeMap::new();
    for (node, agent) in &cluster.agents {
        for (id, container) in &agent.held {
            if container.steps >= 2 {
                found.entry(id.clone()).or_default().push(node.clone());
            }
        }
    }
    found
}

fn same(a: &Plan, b: &Plan) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

/// Settles, letting a person say yes to whatever the breaker holds.
fn settle(cluster: &mut Cluster) -> usize {
    let mut rounds = cluster.settle();
    for _ in 0..20 {
        let Some(held) = cluster.snapshot.breaker.held.clone() else {
            return rounds;
        };
        cluster.ack(held.digest);
        cluster.snapshot.breaker.spent = 0;
        rounds += cluster.settle();
    }
    panic!("the breaker never lets go");
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_history_settles_rests_and_ends_as_desired(bytes in bytes(160)) {
        history(bytes)?;
    }

    #[test]
    fn any_history_with_a_network_settles_and_no_address_has_two_owners(bytes in bytes(160)) {
        history_in(bytes, Some(crate::network::small()))?;
    }

    #[test]
    fn histories_that_lose_records_settle_too(bytes in bytes(160)) {
        let mut script = Script { bytes, at: 0 };
        let mut cluster = random(&mut script, 8);
        cluster.snapshot.cluster.network = script.one_in(2).then(crate::network::small);
        while script.more() {
            for _ in 0..script.below(3) {
                happen(&mut cluster, &mut script, IMAGES, true);
            }
            cluster.pass();
            for _ in 0..script.below(3) {
                let node = some_node(&cluster, &mut script);
                cluster.step(node.as_str());
            }
        }
        recover(&mut cluster);
        settle(&mut cluster);
        for (id, nodes) in running(&cluster) {
            prop_assert!(nodes.len() == 1, "{id:?} runs on {nodes:?}");
        }
    }

    #[test]
    fn absence_is_never_an_order(bytes in bytes(120)) {
        let mut script = Script { bytes, at: 0 };
        let mut cluster = random(&mut script, 12);
        for at in 0..5 {
            let value = service(&mut script, IMAGES);
            cluster.apply(&format!("s{at}"), value);
        }
        settle(&mut cluster);
        for node in cluster.agents.keys().cloned().collect::<Vec<_>>() {
            // Its agent has been restarted, so that its session says what it had applied.
            cluster.session(node.as_str(), true);
            for class in 0..6 {
                if script.one_in(3) {
                    let entry = cluster.entry(node.as_str());
                    match class {
                        0 => entry.assignment = None,
                        1 => entry.report = None,
                        2 => entry.facts = None,
                        3 => entry.session = None,
                        4 => entry.verdict = None,
                        _ => drop(entry.assignment.as_mut().map(|stored| stored.value = Err("garbage".to_owned()))),
                    }
                }
            }
        }
        if script.one_in(3) {
            cluster.snapshot.complete = false;
            let gone: Vec<_> = cluster.snapshot.desired.keys().filter(|_| script.one_in(2)).cloned().collect();
            for key in gone {
                cluster.snapshot.desired.remove(&key);
            }
        }
        let plan = cluster.passed();
        for write in &plan.assignments {
            for one in &write.assignment.instances {
                prop_assert!(one.state != AssignedState::Absent, "{} on {}", one.name(), write.assignment.node);
            }
        }
        // With everything back, what ran runs where it ran.
        for write in plan.assignments {
            let node = write.assignment.node;
            if let Some(entry) = cluster.snapshot.nodes.get_mut(&node) {
                let known = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok()).cloned();
                let agent = &cluster.agents[&node];
                let listed = known.map_or(0, |assignment| assignment.instances.iter().filter(|one| agent.held.contains_key(&(one.uid.clone(), one.slot.clone()))).count());
                prop_assert_eq!(listed, agent.held.len(), "{} forgot an instance", node);
            }
        }
    }

    #[test]
    fn placed_instances_stay_put_whatever_else_comes_and_goes(bytes in bytes(120)) {
        let mut script = Script { bytes, at: 0 };
        let most = [4, 20, 200][script.below(3)];
        let mut cluster = random(&mut script, most);
        for at in 0..3 {
            let mut value = service(&mut script, IMAGES);
            value["placement"].as_object_mut().expect("a map").remove("required");
            cluster.apply(&format!("s{at}"), value);
        }
        settle(&mut cluster);
        let before = present(&cluster);
        for at in 0..2 {
            let nodes = cluster.agents.len() + 1;
            add_node(&mut cluster, &mut script, nodes);
            let value = service(&mut script, IMAGES);
            cluster.apply(&format!("s{}", 3 + at), value);
            let node = some_node(&cluster, &mut script);
            match script.below(4) {
                0 => cluster.cordon(node.as_str(), Some(CordonMode::Cordon)),
                1 => cluster.session(node.as_str(), false),
                2 => cluster.facts(node.as_str(), 10, 10, &[("zone", "b")]),
                _ => cluster.apply_node(node.as_str(), json!({ "unschedulable": true, "roles": ["db"], "taints": [{ "key": "y", "effect": "NoSchedule" }] })),
            }
            // Roles bind; what asks for them may move.
            settle(&mut cluster);
        }
        let after = present(&cluster);
        let roles: BTreeSet<Uid> = cluster.snapshot.desired.iter().filter_map(|(key, entry)| match &entry.body {
            planner::cluster::DesiredBody::Service(spec) if !spec.placement.roles.is_empty() => cluster.snapshot.service_statuses.get(key)?.value.as_ref().ok()?.uid.clone(),
            _ => None,
        }).collect();
        for (id, nodes) in before {
            prop_assert!(roles.contains(&id.0) || after.get(&id) == Some(&nodes), "{id:?} was on {nodes:?}");
        }
    }

    #[test]
    fn a_change_takes_down_one_slot_at_most(bytes in bytes(160)) {
        change(bytes)?;
    }

    #[test]
    fn the_breaker_bounds_what_goes_unacknowledged(bytes in bytes(160)) {
        breaker(bytes)?;
    }

    #[test]
    fn choosing_by_heaps_is_choosing_by_looking_at_every_node(bytes in bytes(200)) {
        let mut script = Script { bytes, at: 0 };
        let most = [5, 30, 200][script.below(3)];
        let mut cluster = random(&mut script, most);
        let mut other = cluster.clone();
        other.exhaustive = true;
        for at in 0..6 {
            let mut value = service(&mut script, IMAGES);
            if value.get("replicas").is_some() && script.one_in(2) {
                value["replicas"] = json!(script.below(60));
            }
            for cluster in [&mut cluster, &mut other] {
                cluster.apply(&format!("s{}", at % 5), value.clone());
            }
            // Several services in one pass, so that one set's heaps grow stale while another's are used.
            if at == 3 || at == 5 {
                settle(&mut cluster);
                settle(&mut other);
                prop_assert_eq!(cluster.picture(), other.picture());
            }
        }
    }

    #[test]
    fn garbage_from_nodes_never_panics_and_passes_come_to_rest(bytes in bytes(300)) {
        garbled(bytes)?;
    }
}

fn garbled(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let mut script = Script { bytes, at: 0 };
    let mut cluster = random(&mut script, 5);
    for at in 0..4 {
        let value = service(&mut script, IMAGES);
        cluster.apply(&format!("s{at}"), value);
    }
    settle(&mut cluster);
    while script.more() {
        garbage(&mut cluster, &mut script);
    }
    for at in 0..script.below(5) {
        let value = service(&mut script, IMAGES);
        cluster.apply(&format!("s{at}"), value);
    }
    let plan = cluster.plan();
    prop_assert!(same(&plan, &plan_with(&cluster.snapshot, PlanOptions::default())));
    let mut rests = false;
    for _ in 0..12 {
        let plan = cluster.plan();
        rests = plan.rests(&cluster.snapshot);
        if rests {
            break;
        }
        if std::env::var_os("REEVE_TRACE").is_some() {
            for (key, status) in plan
                .statuses
                .iter()
                .filter(|(key, status)| !status.is_stored(key, &cluster.snapshot))
            {
                eprintln!(
                    "{key}: {status:?}\n  was {:?}",
                    cluster.snapshot.service_statuses.get(key)
                );
            }
            eprintln!(
                "accepted {} ended {:?} breaker {:?}",
                plan.accepted.len(),
                plan.ended,
                plan.breaker
            );
            for write in &plan.assignments {
                eprintln!(
                    "{:?}\n  was {:?}",
                    write.assignment, cluster.snapshot.nodes[&write.assignment.node].assignment
                );
            }
        }
        cluster.execute(&plan);
    }
    prop_assert!(rests, "passes alone must come to rest");
    Ok(())
}

/// One node says something it should not.
fn garbage(cluster: &mut Cluster, script: &mut Script) {
    let node = some_node(cluster, script);
    let other = some_node(cluster, script);
    let foreign = cluster
        .snapshot
        .nodes
        .get(&other)
        .and_then(|entry| entry.report.clone());
    let uid: Uid = format!("{:032x}", script.below(3)).parse().expect("a uid");
    let kind = script.below(12);
    let number = [0, 1, 2, u64::MAX, 1 << 48][script.below(5)];
    let entry = cluster.entry(node.as_str());
    let report = entry
        .report
        .as_ref()
        .and_then(|stored| stored.value.as_ref().ok())
        .cloned();
    let Some(report) = report else { return };
    let mut report = Report::clone(&report);
    match kind {
        0 => report.instances.reverse(),
        1 => report.instances.extend(report.instances.clone()),
        2 => report.instances.iter_mut().for_each(|one| one.n = number),
        3 => report.instances.iter_mut().for_each(|one| one.uid = uid.clone()),
        4 => report.instances.iter_mut().enumerate().for_each(|(at, one)| {
            one.slot = if at % 2 == 0 {
                Slot::Index(u32::MAX)
            } else {
                Slot::Node(name("zz"))
            }
        }),
        5 => report.instances.iter_mut().for_each(|one| one.slot = Slot::Index(1)),
        6 => {
            report.applied = Order {
                restore_epoch: 0,
                epoch: 10,
                generation: number,
            }
        }
        7 => report.node = name("someone-else"),
        8 => report.instances.iter_mut().for_each(|one| one.phase = Phase::Orphaned),
        9 => {
            if let Some(foreign) = foreign.and_then(|stored| stored.value.ok()) {
                report.instances.extend(foreign.instances.iter().cloned());
            }
        }
        10 => report.instances.clear(),
        _ => report.instances.iter_mut().for_each(|one| one.phase = Phase::Prepared),
    }
    if let Some(stored) = &mut entry.report {
        stored.value = if number == 2 && kind == 10 {
            Err("not JSON".to_owned())
        } else {
            Ok(Arc::new(report))
        };
    }
    if let (Some(stored), 0) = (&mut entry.assignment, script.below(6))
        && let Ok(assignment) = &mut stored.value
    {
        let assignment = Arc::make_mut(assignment);
        match script.below(4) {
            0 => assignment.instances.reverse(),
            1 => assignment.instances.extend(assignment.instances.clone()),
            2 => assignment.instances.iter_mut().for_each(|one| one.n = u64::MAX),
            _ => assignment
                .instances
                .iter_mut()
                .for_each(|one| one.state = AssignedState::Prepared),
        }
    }
}

fn change(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let mut script = Script { bytes, at: 0 };
    let mut cluster = random(&mut script, 6);
    cluster.missing.insert("missing".to_owned());
    cluster.crashing.insert("crashing".to_owned());
    let replicas = 2 + script.below(5);
    let spec = |image: &str, policy: &str| json!({ "replicas": replicas, "container": { "image": image, "files": [{ "file": "f0", "path": "/f" }] }, "restartPolicy": policy, "tolerations": [{ "operator": "Exists" }] });
    cluster.apply_file("f0", json!({ "text": "0" }));
    cluster.apply("s0", spec("app:1", "Always"));
    settle(&mut cluster);
    prop_assert_eq!(cluster.serving("s0"), replicas);
    let images = ["app:1", "app:2", "missing", "crashing", "app:3"];
    let mut applied = 0;
    while script.more() {
        if script.below(6) == 0 && applied < 4 {
            applied += 1;
            let image = images[script.below(images.len())];
            cluster.apply("s0", spec(image, ["Always", "Never"][script.below(2)]));
        }
        if script.one_in(8) {
            match script.below(5) {
                0 => cluster.delete_file("f0"),
                content => cluster.apply_file("f0", json!({ "text": content.to_string() })),
            }
        }
        if script.one_in(12) && cluster.agents.len() > 1 {
            // One at a time: with no other node open, a slot on its way would have no place to go to.
            for node in cluster.agents.keys().cloned().collect::<Vec<_>>() {
                cluster.cordon(node.as_str(), None);
            }
            let node = some_node(&cluster, &mut script);
            cluster.cordon(node.as_str(), script.one_in(2).then_some(CordonMode::Drain));
        }
        cluster.pass();
        trace(&cluster, "pass");
        for _ in 0..script.below(4) {
            let node = some_node(&cluster, &mut script);
            cluster.step(node.as_str());
            trace(&cluster, node.as_str());
        }
        prop_assert!(
            cluster.serving("s0") + 1 >= replicas,
            "{} of {replicas} serve",
            cluster.serving("s0")
        );
    }
    cluster.apply("s0", spec("app:9", "Always"));
    for node in cluster.agents.keys().cloned().collect::<Vec<_>>() {
        cluster.cordon(node.as_str(), None);
    }
    for _ in 0..60 {
        cluster.pass();
        for node in cluster.agents.keys().cloned().collect::<Vec<_>>() {
            cluster.step(node.as_str());
            trace(&cluster, node.as_str());
            prop_assert!(cluster.serving("s0") + 1 >= replicas);
        }
    }
    prop_assert_eq!(cluster.serving("s0"), replicas);
    prop_assert_eq!(cluster.condition("s0", ConditionType::Progressing).reason, "Complete");
    Ok(())
}

/// Prints what is going on, for whoever looks for the reason of a failure: `REEVE_TRACE=1`.
fn trace(cluster: &Cluster, what: &str) {
    if std::env::var_os("REEVE_TRACE").is_some() {
        let truth: Vec<String> = cluster
            .agents
            .iter()
            .flat_map(|(node, agent)| {
                agent.held.values().map(move |c| {
                    let next = c
                        .next
                        .as_ref()
                        .map_or(String::new(), |next| format!(" next {}", next.n));
                    format!(
                        "{}@{node} n{} {:?} steps {}{next}",
                        c.entry.name(),
                        c.entry.n,
                        c.entry.state,
                        c.steps
                    )
                })
            })
            .collect();
        let numbers: Vec<u64> = cluster.assigned().iter().map(|(_, one)| one.n).collect();
        eprintln!("{what}: {} {numbers:?}\n    {}", cluster.picture(), truth.join("; "));
    }
}

#[test]
fn replay() {
    let Ok(text) = std::env::var("REEVE_BYTES") else { return };
    let bytes = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|one| one.parse().ok())
        .collect();
    let case = match std::env::var("REEVE_LAW").as_deref() {
        Ok("garbage") => garbled,
        Ok("history") => history,
        Ok("breaker") => breaker,
        _ => change,
    };
    case(bytes).expect("it holds");
}

fn history(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    history_in(bytes, None)
}

/// A history in a cluster with a network, whose own rules hold after every step.
fn history_in(bytes: Vec<u8>, network: Option<schemas::records::NetworkSettings>) -> Result<(), TestCaseError> {
    let mut script = Script { bytes, at: 0 };
    let most = [3, 8, 30][script.below(3)];
    let mut cluster = random(&mut script, most);
    cluster.snapshot.cluster.network = network;
    let mut watch = crate::network::Watch::default();
    while script.more() {
        for _ in 0..script.below(3) {
            happen(&mut cluster, &mut script, IMAGES, false);
        }
        let plan = cluster.plan();
        prop_assert!(
            same(&plan, &plan_with(&cluster.snapshot, PlanOptions::default())),
            "it is deterministic"
        );
        cluster.execute(&plan);
        watch.look(&cluster)?;
        for (id, nodes) in present(&cluster) {
            prop_assert!(nodes.len() == 1, "{id:?} is present on {nodes:?}");
        }
        for _ in 0..script.below(3) {
            let node = some_node(&cluster, &mut script);
            cluster.step(node.as_str());
        }
        watch.look(&cluster)?;
        for (id, nodes) in running(&cluster) {
            prop_assert!(nodes.len() == 1, "{id:?} runs on {nodes:?}");
        }
    }
    trace(&cluster, "before it is well again");
    recover(&mut cluster);
    settle(&mut cluster);
    watch.look(&cluster)?;
    trace(&cluster, "at the end");
    for (id, nodes) in running(&cluster) {
        prop_assert!(nodes.len() == 1, "{id:?} runs on {nodes:?}");
    }
    // Who is told addresses that nobody can have waits for ever, and that is said.
    let plan = cluster.plan();
    let waits = |change: &&planner::cluster::Change| matches!(change.waits, Some(Reason::WaitsForSeeds { .. }));
    let waiting: BTreeSet<String> = plan
        .changes
        .iter()
        .filter(waits)
        .map(|one| one.resource.to_string())
        .collect();
    let waits = |service: &str| waiting.contains(&key(service).to_string());
    let assigned: BTreeSet<(NodeName, Uid, Slot)> = cluster
        .assigned()
        .into_iter()
        .map(|(node, one)| {
            assert!(
                one.state == AssignedState::Present || waits(one.workload.as_str()),
                "{one:?}"
            );
            (node, one.uid, one.slot)
        })
        .collect();
    let held = cluster.agents.iter().flat_map(|(node, agent)| {
        agent
            .held
            .keys()
            .map(move |(uid, slot)| (node.clone(), uid.clone(), slot.clone()))
    });
    prop_assert_eq!(assigned, held.collect::<BTreeSet<_>>());
    for name in ["s0", "s1", "s2", "s3", "s4"] {
        if cluster.snapshot.service_statuses.contains_key(&key(name)) && cluster.status(name).generation.is_some() {
            let status = cluster.status(name);
            let unplaced = cluster.condition(name, ConditionType::Scheduled).reason == "NoNodeFits";
            prop_assert!(
                unplaced || waits(name) || status.counts.assigned == status.counts.desired,
                "{:?}",
                status
            );
            prop_assert!(
                waits(name) || status.counts.ready == status.counts.assigned,
                "{:?}",
                status
            );
            prop_assert!(!unplaced || !status.refusals.is_empty());
        }
    }
    Ok(())
}

fn breaker(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let mut script = Script { bytes, at: 0 };
    let mut cluster = random(&mut script, 20);
    for at in 0..5 {
        cluster.apply(
            &format!("s{at}"),
            json!({ "replicas": script.below(40), "tolerations": [{ "operator": "Exists" }] }),
        );
    }
    settle(&mut cluster);
    cluster.snapshot.breaker.spent = 0;
    let mut replaced = BTreeSet::new();
    let mut budget = 20;
    while script.more() {
        let at = script.below(5);
        match script.below(4) {
            0 => cluster.delete(&format!("s{at}")),
            1 => cluster.apply(
                &format!("s{at}"),
                json!({ "replicas": script.below(40), "tolerations": [{ "operator": "Exists" }] }),
            ),
            2 => {
                let node = some_node(&cluster, &mut script);
                cluster.lose(node.as_str());
            }
            _ => {}
        }
        let known = running(&cluster);
        budget = budget.max(known.values().map(Vec::len).sum::<usize>().div_ceil(5));
        let plan = cluster.passed();
        // What is replaced because its node is lost is bounded where losses are declared; it runs elsewhere then.
        let assigned = cluster.assigned();
        for removal in plan
            .removals
            .iter()
            .filter(|removal| removal.reason == Reason::NodeLost && !removal.held)
        {
            let id = (&removal.uid, &removal.slot);
            let serves = |one: &Assigned| one.state != AssignedState::Absent && (&one.uid, &one.slot) == id;
            if assigned.iter().any(|(_, one)| serves(one)) {
                replaced.insert((removal.node.clone(), removal.uid.clone(), removal.slot.clone()));
            }
        }
        let replaced =
            |node: &NodeName, one: &Assigned| replaced.contains(&(node.clone(), one.uid.clone(), one.slot.clone()));
        let stopped: usize = plan
            .assignments
            .iter()
            .map(|write| {
                let lines = write.assignment.instances.iter();
                let runs_here = |one: &Assigned| {
                    let nodes = known.get(&(one.uid.clone(), one.slot.clone()));
                    nodes.is_some_and(|nodes| nodes.contains(&write.assignment.node))
                };
                let stopped = lines.filter(|one| one.state == AssignedState::Absent && runs_here(one));
                stopped.filter(|one| !replaced(&write.assignment.node, one)).count()
            })
            .sum();
        let held = |removal: &Removal| removal.held || removal.reason == Reason::NodeLost;
        prop_assert!(plan.breaker.held.is_none() || plan.removals.iter().all(held));
        prop_assert!(stopped <= budget);
        prop_assert!(usize::try_from(plan.breaker.spent).expect("small") <= budget);
        let node = some_node(&cluster, &mut script);
        cluster.step(node.as_str());
    }
    Ok(())
}
