//! Who holds a virtual address: what is decided when, and the one law, as a property: never two nodes that answer for one address.
//! Its model has what the promise rests on: nodes that obey their fence (the kernel drops an address before the session of
//! its grant ends), reports and transactions that come late, and leaders that know nothing but the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use planner::cluster::{AssignmentWrite, DeclaredVirtualIp, Guard, Plan, Status, plan};
use proptest::prelude::*;
use proptest::test_runner::Config;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Namespace;
use schemas::records::{
    AssignedVirtualIp, AssignedVirtualIpState, ConditionType, CordonMode, HeldVirtualIp, Order, RefusedVirtualIp,
    ReportedVirtualIps,
};
use serde_json::{Value, json};

use crate::support::{Cluster, name};

fn vip(text: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some(Namespace::default()),
        kind: Kind::VirtualIP,
        name: text.parse().expect("a name"),
    }
}

fn declare(cluster: &mut Cluster, text: &str, spec: Value) {
    let revision = cluster.revision();
    let known = cluster.snapshot.virtual_ips.get(&vip(text));
    let declared = DeclaredVirtualIp {
        create_revision: known.map_or(revision, |known| known.create_revision),
        mod_revision: revision,
        spec: Ok(Arc::new(serde_json::from_value(spec).expect("a spec"))),
    };
    cluster.snapshot.virtual_ips.insert(vip(text), declared);
}

fn delete(cluster: &mut Cluster, text: &str) {
    cluster.revision();
    cluster.snapshot.virtual_ips.remove(&vip(text));
}

fn session(cluster: &Cluster, node: &str) -> Option<i64> {
    let entry = cluster.snapshot.nodes.get(&name(node))?;
    entry.session.as_ref().map(|stored| stored.create_revision)
}

fn listed(cluster: &Cluster, node: &str) -> (Order, Vec<AssignedVirtualIp>) {
    let entry = cluster.snapshot.nodes.get(&name(node));
    let stored = entry.and_then(|entry| entry.assignment.as_ref());
    let assignment = stored.and_then(|stored| stored.value.as_ref().ok());
    assignment.map_or_else(Default::default, |one| (one.order, one.virtual_ips.clone()))
}

/// A node does at once what its assignment says, and says so.
fn obey(cluster: &mut Cluster, node: &str) {
    let (order, list) = listed(cluster, node);
    let now = session(cluster, node);
    let held = list
        .into_iter()
        .filter(|one| one.state == AssignedVirtualIpState::Held && now == Some(one.session))
        .map(held_of);
    let agent = cluster.agents.get_mut(&name(node)).expect("a node");
    agent.applied = order;
    agent.virtual_ips = Some(ReportedVirtualIps {
        applied: order,
        held: held.collect(),
        refused: Vec::new(),
    });
    cluster.report(node);
}

fn held_of(one: AssignedVirtualIp) -> HeldVirtualIp {
    HeldVirtualIp {
        namespace: one.namespace,
        name: one.name,
        address: one.address,
        session: one.session,
    }
}

/// Each node with what it is assigned: `n1: web`, with `-` before what it is to let go.
fn granted(cluster: &Cluster) -> Vec<String> {
    let nodes: Vec<String> = cluster.snapshot.nodes.keys().map(ToString::to_string).collect();
    let mut lines = Vec::new();
    for node in nodes {
        for one in listed(cluster, &node).1 {
            let mark = if one.state == AssignedVirtualIpState::Held {
                ""
            } else {
                "-"
            };
            lines.push(format!("{node}: {mark}{}", one.name));
        }
    }
    lines
}

/// Passes and obedient nodes, until a plan writes nothing.
fn settle(cluster: &mut Cluster) {
    for _ in 0..100 {
        let plan = cluster.passed();
        let nodes: Vec<String> = cluster.agents.keys().map(ToString::to_string).collect();
        for node in &nodes {
            if session(cluster, node).is_some() {
                obey(cluster, node);
            }
        }
        if plan.rests(&cluster.snapshot) && cluster.plan().rests(&cluster.snapshot) {
            return;
        }
    }
    panic!("does not settle: {:?}", granted(cluster));
}

fn ready(cluster: &Cluster, text: &str) -> String {
    let status = cluster.snapshot.virtual_ip_statuses[&vip(text)]
        .value
        .as_ref()
        .expect("readable");
    let ready = status
        .conditions
        .iter()
        .find(|one| one.kind == ConditionType::Ready)
        .expect("one");
    let node = status
        .node
        .as_ref()
        .map_or_else(String::new, |node| format!(" on {node}"));
    format!("{}{node}", ready.reason)
}

fn web() -> Value {
    json!({ "address": "192.0.2.10/24" })
}

#[test]
fn it_stays_where_it_is_until_its_node_is_lost_and_does_not_come_back_by_itself() {
    let mut cluster = Cluster::of(3);
    declare(&mut cluster, "web", web());
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n1: web"]);
    assert_eq!(ready(&cluster, "web"), "Held on n1");
    cluster.session("n1", false);
    let plan = cluster.passed();
    let write = plan
        .assignments
        .iter()
        .find(|write| write.assignment.node == name("n2"))
        .expect("a grant");
    assert!(
        write.grants.contains(&Guard::SessionAbsent(name("n1"))),
        "{:?}",
        write.grants
    );
    assert!(
        write
            .grants
            .iter()
            .any(|fact| matches!(fact, Guard::SessionAt { node, .. } if *node == name("n2")))
    );
    assert!(
        write.grants.iter().any(|fact| matches!(fact, Guard::DesiredAt { .. })),
        "{:?}",
        write.grants
    );
    assert_eq!(write.granted, [vip("web")]);
    assert_eq!(granted(&cluster), ["n2: web"]);
    assert_eq!(ready(&cluster, "web"), "Taking on n2");
    cluster.session("n1", true);
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n2: web"]);
    assert_eq!(ready(&cluster, "web"), "Held on n2");
}

#[test]
fn by_hand_it_moves_only_when_its_holder_has_said_that_it_let_go() {
    let mut cluster = Cluster::of(3);
    declare(&mut cluster, "web", web());
    settle(&mut cluster);
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "prefer": ["n3"] }),
    );
    let plan = cluster.passed();
    assert_eq!(plan.holders[0].from, Some(name("n1")));
    assert_eq!(plan.holders[0].to, Some(name("n3")));
    for _ in 0..3 {
        assert_eq!(granted(&cluster), ["n1: -web"]);
        assert_eq!(ready(&cluster, "web"), "Moving");
        cluster.pass();
    }
    // It applied the order, and its report of that still lists it.
    let (order, _) = listed(&cluster, "n1");
    let agent = cluster.agents.get_mut(&name("n1")).expect("a node");
    agent.applied = order;
    cluster.report("n1");
    cluster.pass();
    assert_eq!(granted(&cluster), ["n1: -web"]);
    // It no longer holds it, but said so by an older order: it may have taken it since.
    let agent = cluster.agents.get_mut(&name("n1")).expect("a node");
    agent.virtual_ips.as_mut().expect("some").held.clear();
    cluster.report("n1");
    cluster.pass();
    assert_eq!(granted(&cluster), ["n1: -web"]);
    obey(&mut cluster, "n1");
    cluster.pass();
    assert_eq!(granted(&cluster), ["n3: web"]);
    // The preferred one comes and goes: it is there whenever it can be.
    settle(&mut cluster);
    cluster.session("n3", false);
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n1: web"]);
    cluster.session("n3", true);
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n3: web"]);
}

#[test]
fn a_restarted_agent_gets_it_anew_for_its_new_session() {
    let mut cluster = Cluster::of(2);
    declare(&mut cluster, "web", web());
    settle(&mut cluster);
    let before = listed(&cluster, "n1").1[0].session;
    cluster.session("n1", false);
    cluster.session("n1", true);
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n1: web"]);
    assert_ne!(listed(&cluster, "n1").1[0].session, before);
}

#[test]
fn only_nodes_that_may_hold_it_do_and_else_it_is_said_why() {
    let mut cluster = Cluster::of(3);
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "placement": { "nodeNames": ["n2"] } }),
    );
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n2: web"]);
    cluster.cordon("n2", Some(CordonMode::Drain));
    settle(&mut cluster);
    assert!(granted(&cluster).is_empty());
    let plan = cluster.plan();
    assert_eq!(
        plan.holders[0].why,
        "no node may hold it: 1 drained or retired, 2 not named by `placement.nodeNames`"
    );
    assert_eq!(ready(&cluster, "web"), "NoNodeFits");
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "placement": { "required": [{ "key": "reeve.node", "operator": "In", "values": ["n3"] }] } }),
    );
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n3: web"]);
}

#[test]
fn it_is_where_its_service_is_ready() {
    let mut cluster = Cluster::of(3);
    cluster.apply(
        "app",
        json!({ "container": { "image": "app:1" }, "placement": { "nodeNames": ["n3"] } }),
    );
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "service": "app" }),
    );
    cluster.pass();
    assert_eq!(ready(&cluster, "web"), "NoNodeFits");
    cluster.settle();
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n3: web"]);
    cluster.sick.insert("app.1".to_owned());
    cluster.step("n3");
    settle(&mut cluster);
    assert!(granted(&cluster).is_empty(), "{:?}", granted(&cluster));
}

#[test]
fn of_two_that_want_one_address_the_older_has_it_and_the_other_is_told() {
    let mut cluster = Cluster::of(2);
    declare(&mut cluster, "web", web());
    settle(&mut cluster);
    declare(&mut cluster, "a", web());
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n1: web"]);
    assert_eq!(ready(&cluster, "a"), "AddressTaken");
    // The other gets it when the holder has let go of what is deleted.
    delete(&mut cluster, "web");
    let plan = cluster.passed();
    let write = &plan.assignments[0];
    assert!(write.guards.contains(&Guard::DesiredAbsent(vip("web"))), "{write:?}");
    assert_eq!(granted(&cluster), ["n1: -web"]);
    settle(&mut cluster);
    assert_eq!(ready(&cluster, "a"), "Held on n1");
    assert!(!cluster.snapshot.virtual_ip_statuses.contains_key(&vip("web")));
}

#[test]
fn what_is_not_valid_any_more_and_what_an_incomplete_list_lacks_stay_where_they_are() {
    let mut cluster = Cluster::of(2);
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "prefer": ["n2"] }),
    );
    settle(&mut cluster);
    cluster.snapshot.virtual_ips.get_mut(&vip("web")).expect("there").spec = Err(Vec::new());
    settle(&mut cluster);
    assert_eq!(granted(&cluster), ["n2: web"]);
    cluster.snapshot.virtual_ips.clear();
    cluster.snapshot.complete = false;
    let plan = plan(&cluster.snapshot);
    assert!(plan.assignments.is_empty() && plan.ended.is_empty());
}

#[test]
fn a_lost_assignment_is_written_anew_and_moves_nothing() {
    let mut cluster = Cluster::of(3);
    declare(
        &mut cluster,
        "web",
        json!({ "address": "192.0.2.10/24", "prefer": ["n2"] }),
    );
    declare(&mut cluster, "new", json!({ "address": "192.0.2.11/24" }));
    settle(&mut cluster);
    let before = granted(&cluster);
    cluster.entry("n2").assignment = None;
    declare(&mut cluster, "late", json!({ "address": "192.0.2.12/24" }));
    cluster.pass();
    // Nobody knows what else n2 holds.
    assert_eq!(granted(&cluster), before);
    cluster.pass();
    assert_eq!(ready(&cluster, "late"), "Moving");
    settle(&mut cluster);
    assert!(
        granted(&cluster).contains(&"n2: web".to_owned()),
        "{:?}",
        granted(&cluster)
    );
    assert!(ready(&cluster, "late").starts_with("Held on"));
}

#[test]
fn who_cannot_hold_it_says_why() {
    let mut cluster = Cluster::of(1);
    declare(&mut cluster, "web", web());
    settle(&mut cluster);
    let (order, list) = listed(&cluster, "n1");
    let agent = cluster.agents.get_mut(&name("n1")).expect("a node");
    agent.applied = order;
    agent.virtual_ips = Some(ReportedVirtualIps {
        applied: order,
        held: Vec::new(),
        refused: vec![RefusedVirtualIp {
            namespace: list[0].namespace.clone(),
            name: list[0].name.clone(),
            message: "no device has an address of its network".to_owned(),
        }],
    });
    cluster.report("n1");
    cluster.pass();
    assert_eq!(ready(&cluster, "web"), "Refused on n1");
}

// ---- the property ---------------------------------------------------------------------------------------------------

/// One node: an agent with a disk, and a kernel that drops what the agent does not renew.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Its disk.
    order: Order,
    list: Vec<AssignedVirtualIp>,
    /// The session it believes to have, and whether its fence still stands.
    session: Option<i64>,
    fence: bool,
    kernel: BTreeSet<IpAddr>,
    /// What the part that keeps addresses last told the agent.
    told: Option<ReportedVirtualIps>,
    running: bool,
}

type Late = (i64, AssignmentWrite, BTreeMap<ResourceKey, (Status, i64)>);

struct World {
    cluster: Cluster,
    models: BTreeMap<String, Model>,
    /// Transactions that were sent and not decided: with the epoch of their leader, and the revisions of statuses they saw.
    late: Vec<Late>,
    /// When each status was last written.
    statuses: BTreeMap<ResourceKey, i64>,
}

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
const NAMES: [&str; 3] = ["a", "b", "c"];

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::of(NODES.len());
        cluster.judge();
        let model = |node: &&str| {
            let model = Model {
                session: session(&cluster, node),
                fence: true,
                running: true,
                ..Model::default()
            };
            ((*node).to_owned(), model)
        };
        let models = NODES.iter().map(model).collect();
        let mut world = Self {
            cluster,
            models,
            late: Vec::new(),
            statuses: BTreeMap::new(),
        };
        for _ in 0..2 {
            // Every node has an assignment.
            world.pass(&mut |_| true);
        }
        world
    }

    /// A leader plans, and its transactions are sent: some are decided at once, some later, in any order.
    fn pass(&mut self, at_once: &mut dyn FnMut(usize) -> bool) {
        self.cluster.judge();
        let plan: Plan = plan(&self.cluster.snapshot);
        let epoch = self.cluster.snapshot.epoch;
        let mut granted = BTreeSet::new();
        for (at, write) in plan.assignments.iter().enumerate() {
            let mut seen = BTreeMap::new();
            for key in &write.granted {
                granted.insert(key.clone());
                let revision = self.statuses.get(key).copied().unwrap_or(0);
                seen.insert(key.clone(), (plan.statuses[key].clone(), revision));
            }
            if at_once(at) {
                self.commit(epoch, write, &seen);
            } else {
                self.late.push((epoch, write.clone(), seen));
            }
        }
        for (key, status) in plan.statuses {
            if !granted.contains(&key) && !status.is_stored(&key, &self.cluster.snapshot) {
                self.write_status(key, status);
            }
        }
        for key in plan.ended {
            self.statuses.remove(&key);
            self.cluster.snapshot.virtual_ip_statuses.remove(&key);
        }
    }

    fn write_status(&mut self, key: ResourceKey, status: Status) {
        let revision = self.cluster.revision();
        if let Status::VirtualIp(status) = status {
            self.statuses.insert(key.clone(), revision);
            let stored = planner::cluster::Stored {
                create_revision: revision,
                mod_revision: revision,
                value: Ok(status),
            };
            self.cluster.snapshot.virtual_ip_statuses.insert(key, stored);
        }
    }

    fn holds(&self, fact: &Guard) -> bool {
        match fact {
            Guard::DesiredAbsent(key) => !self.cluster.snapshot.virtual_ips.contains_key(key),
            Guard::DesiredAt { key, mod_revision } => {
                let declared = self.cluster.snapshot.virtual_ips.get(key);
                declared.is_some_and(|declared| declared.mod_revision == *mod_revision)
            }
            Guard::SessionAbsent(node) => session(&self.cluster, node.as_str()).is_none(),
            Guard::SessionAt { node, create_revision } => {
                session(&self.cluster, node.as_str()) == Some(*create_revision)
            }
            Guard::CordonAt { .. } => true,
        }
    }

    /// As the store does it: all compares hold, or nothing is written.
    fn commit(&mut self, epoch: i64, write: &AssignmentWrite, seen: &BTreeMap<ResourceKey, (Status, i64)>) {
        let node = write.assignment.node.clone();
        let entry = self.cluster.snapshot.nodes.get(&node);
        let stored = entry.and_then(|entry| entry.assignment.as_ref());
        let fits = epoch == self.cluster.snapshot.epoch
            && stored.map_or(0, |stored| stored.mod_revision) == write.stored_mod_revision
            && write.guards.iter().chain(&write.grants).all(|fact| self.holds(fact))
            && seen
                .iter()
                .all(|(key, (_, revision))| self.statuses.get(key).copied().unwrap_or(0) == *revision);
        if !fits {
            return;
        }
        let created = stored.map(|stored| stored.create_revision);
        let revision = self.cluster.revision();
        self.cluster.entry(node.as_str()).assignment = Some(planner::cluster::Stored {
            create_revision: created.unwrap_or(revision),
            mod_revision: revision,
            value: Ok(Arc::new(write.assignment.clone())),
        });
        for (key, (status, _)) in seen {
            self.write_status(key.clone(), status.clone());
        }
    }

    /// The agent takes what stands in the store, if it can ask.
    fn accept(&mut self, node: &str) {
        let (order, list) = listed(&self.cluster, node);
        let model = self.models.get_mut(node).expect("a node");
        if model.running
            && model.session.is_some()
            && model.session == session(&self.cluster, node)
            && order > model.order
        {
            (model.order, model.list) = (order, list);
        }
    }

    /// Addresses are made what the disk says, as far as the fence stands.
    fn converge(&mut self, node: &str) {
        let model = self.models.get_mut(node).expect("a node");
        if !model.running {
            return;
        }
        let mine: Vec<AssignedVirtualIp> = model
            .list
            .iter()
            .filter(|one| {
                one.state == AssignedVirtualIpState::Held && Some(one.session) == model.session && model.fence
            })
            .cloned()
            .collect();
        model.kernel = mine.iter().map(AssignedVirtualIp::ip).collect();
        model.told = Some(ReportedVirtualIps {
            applied: model.order,
            held: mine.into_iter().map(held_of).collect(),
            refused: Vec::new(),
        });
    }

    fn report(&mut self, node: &str) {
        let model = &self.models[node];
        if !model.running || model.session.is_none() || model.session != session(&self.cluster, node) {
            return;
        }
        let agent = self.cluster.agents.get_mut(&name(node)).expect("a node");
        agent.applied = model.order;
        agent.virtual_ips.clone_from(&model.told);
        self.cluster.report(node);
    }

    /// The agent is away for longer than its session lives. The kernel comes first: that is the fence.
    fn expire(&mut self, node: &str) {
        let model = self.models.get_mut(node).expect("a node");
        model.fence = false;
        model.kernel.clear();
        self.cluster.session(node, false);
    }

    /// The agent is there (again): its session goes on, or it opens another.
    fn connect(&mut self, node: &str) {
        if session(&self.cluster, node).is_none() {
            self.cluster.session(node, true);
        }
        let now = session(&self.cluster, node);
        let model = self.models.get_mut(node).expect("a node");
        model.running = true;
        model.session = now;
        model.fence = true;
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut holders: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
        for (node, model) in &self.models {
            for ip in &model.kernel {
                holders.entry(*ip).or_default().push(node);
            }
        }
        for (ip, nodes) in holders {
            prop_assert!(nodes.len() <= 1, "{ip} is on {nodes:?}: {:?}", granted(&self.cluster));
        }
        Ok(())
    }
}

fn history(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for chunk in bytes.chunks_exact(3) {
        let (what, who, how) = (chunk[0], usize::from(chunk[1]), chunk[2]);
        let node = NODES[who % NODES.len()];
        let one = NAMES[who % NAMES.len()];
        match what % 20 {
            0..=4 => {
                let mut bits = how;
                world.pass(&mut |_| {
                    bits = bits.rotate_left(1);
                    bits & 3 != 0
                });
            }
            5 | 6 => {
                if !world.late.is_empty() {
                    let (epoch, write, seen) = world.late.remove(who % world.late.len());
                    world.commit(epoch, &write, &seen);
                }
            }
            7 | 8 => world.accept(node),
            9 | 10 => world.converge(node),
            11 | 12 => world.report(node),
            13 => world.expire(node),
            14 => world.connect(node),
            15 => {
                // Another leader: what the one before sent is fenced.
                world.cluster.revision();
                world.cluster.snapshot.epoch += 1;
            }
            16 | 17 => {
                let prefer = NODES[usize::from(how) % NODES.len()];
                // Two of the three want one address.
                let address = format!("192.0.2.{}/24", 10 + usize::from(one == "c"));
                let placement = if how & 64 == 0 {
                    json!({})
                } else {
                    json!({ "nodeNames": [prefer] })
                };
                let prefer = if how & 32 == 0 { json!([prefer]) } else { json!([]) };
                declare(
                    &mut world.cluster,
                    one,
                    json!({ "address": address, "prefer": prefer, "placement": placement }),
                );
            }
            18 if how & 3 == 0 => delete(&mut world.cluster, one),
            18 => {
                // Killed, and started: what its disk has is what it goes by.
                let now = session(&world.cluster, node);
                let model = world.models.get_mut(node).expect("a node");
                model.running = how & 1 == 1;
                model.told = None;
                if now != model.session || !model.fence {
                    model.session = None;
                }
            }
            _ if how & 3 == 0 => world.cluster.entry(node).assignment = None,
            _ => {
                let mode = (how & 4 == 0).then_some(CordonMode::Drain);
                world.cluster.cordon(node, mode);
            }
        }
        world.check()?;
    }
    // In the end, with everybody there, each address is on one node.
    declare(&mut world.cluster, "c", json!({ "address": "192.0.2.11/24" }));
    for node in NODES {
        world.cluster.cordon(node, None);
        world.connect(node);
    }
    for _ in 0..30 {
        world.pass(&mut |_| true);
        for node in NODES {
            world.accept(node);
            world.converge(node);
            world.report(node);
        }
        world.check()?;
    }
    let wanted: IpAddr = "192.0.2.11".parse().expect("an address");
    let holders: Vec<&String> = world
        .models
        .iter()
        .filter(|(_, model)| model.kernel.contains(&wanted))
        .map(|(node, _)| node)
        .collect();
    prop_assert_eq!(holders.len(), 1, "{:?} {:?}", holders, granted(&world.cluster));
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100), failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() })]

    #[test]
    fn never_do_two_nodes_hold_one_address(bytes in proptest::collection::vec(any::<u8>(), 30..600)) {
        history(&bytes)?;
    }
}

#[test]
fn who_has_not_said_that_it_has_an_assignment_is_granted_nothing() {
    let mut cluster = Cluster::of(2);
    declare(&mut cluster, "web", web());
    for _ in 0..3 {
        // A leader plans, and no agent says anything.
        cluster.pass();
        assert!(granted(&cluster).is_empty(), "{:?}", granted(&cluster));
        let enrolled = |entry: &planner::cluster::NodeEntry| entry.assignment.is_some();
        assert!(cluster.snapshot.nodes.values().all(enrolled));
    }
    settle(&mut cluster);
    assert_eq!(granted(&cluster).len(), 1);
}
