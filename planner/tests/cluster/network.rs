//! The cluster's network: who gets which subnet and address, what stays, what is published, and who waits for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use planner::cluster::{Action, Memo, PlanOptions, Reason, plan_again, plan_with};
use proptest::prelude::TestCaseError;
use proptest::prop_assert;
use schemas::names::{NodeName, Slot};
use schemas::records::network::usable;
use schemas::records::{
    AssignedState, Backend, ConditionType, CordonMode, Endpoints, LinkKind, NetworkSettings, NodeLink, RefusalRule, Uid,
};
use serde_json::json;

use crate::support::{Cluster, key, name};

/// A network of 64 nodes with 13 addresses each.
pub fn small() -> NetworkSettings {
    NetworkSettings {
        cidr: "10.210.0.0/22".parse().expect("a range"),
        cidr6: Some("fd10:210::/64".parse().expect("a range")),
        node_prefix: 28,
        backend: Backend::Wireguard,
        domain: "reeve.internal".to_owned(),
        port: 51_820,
        mtu: None,
        key_days: None,
    }
}

/// What must hold after every step: no subnet and no address has two owners, none is outside, none changes while its slot is
/// on its node, also in what agents hold and have not let go of.
#[derive(Default)]
pub struct Watch {
    owned: BTreeMap<(NodeName, Uid, Slot), Ipv4Addr>,
}

impl Watch {
    pub fn look(&mut self, cluster: &Cluster) -> Result<(), TestCaseError> {
        let Some(settings) = &cluster.snapshot.cluster.network else {
            return Ok(());
        };
        let mut subnets = BTreeMap::new();
        for (node, entry) in &cluster.snapshot.nodes {
            let assignment = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
            let Some(network) = assignment.and_then(|one| one.network.as_ref()) else {
                continue;
            };
            prop_assert!(
                settings.number(&network.subnet).is_some(),
                "{node} has {}",
                network.subnet
            );
            let other = subnets.insert(network.subnet, node);
            prop_assert!(other.is_none(), "{node} and {other:?} have {}", network.subnet);
        }
        let mut owners: BTreeMap<Ipv4Addr, (NodeName, Uid, Slot)> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let assigned = cluster.assigned().into_iter();
        let held = cluster.agents.iter().flat_map(|(node, agent)| {
            let entries = agent.held.values().map(|container| container.entry.clone());
            entries.map(|entry| (node.clone(), entry))
        });
        for (node, one) in assigned.chain(held) {
            let Some(address) = one.address else { continue };
            let owner = (node, one.uid.clone(), one.slot.clone());
            let known = owners.insert(address, owner.clone());
            prop_assert!(
                known.is_none() || known.as_ref() == Some(&owner),
                "{address}: {known:?} and {owner:?}"
            );
            if one.state != AssignedState::Absent {
                seen.insert(owner, address);
            }
        }
        for (owner, address) in &seen {
            let before = self.owned.get(owner);
            prop_assert!(
                before.is_none_or(|before| before == address),
                "{owner:?}: {before:?}, {address}"
            );
        }
        self.owned = seen;
        // A port that is open everywhere is one service's, and no instance of another has it anywhere.
        let mut everywhere = BTreeMap::new();
        for (key, stored) in &cluster.snapshot.endpoints {
            for port in stored.value.iter().flat_map(|record| &record.ports) {
                if let Some(open) = &port.everywhere {
                    let other = everywhere.insert((port.protocol, open.host_port), &key.name);
                    prop_assert!(other.is_none(), "{key} and {other:?} have {}", open.host_port);
                }
            }
        }
        for (node, one) in cluster.assigned() {
            for port in one.ports.iter().filter(|_| one.state == AssignedState::Present) {
                let owner = everywhere.get(&(port.protocol, port.host_port));
                prop_assert!(
                    owner.is_none_or(|owner| **owner == one.workload),
                    "{} on {node} has {}, which {owner:?} has everywhere",
                    one.workload,
                    port.host_port
                );
            }
        }
        Ok(())
    }
}

fn started(nodes: usize) -> Cluster {
    let mut cluster = Cluster::of(nodes);
    cluster.snapshot.cluster.network = Some(small());
    cluster.settle();
    cluster
}

fn addresses(cluster: &Cluster) -> BTreeMap<String, String> {
    let listed = cluster
        .assigned()
        .into_iter()
        .filter(|(_, one)| one.state != AssignedState::Absent);
    let line = |(node, one): (NodeName, schemas::records::Assigned)| {
        let address = one.address.map_or("none".to_owned(), |address| address.to_string());
        (format!("{}.{} on {node}", one.workload, one.slot), address)
    };
    listed.map(line).collect()
}

fn of(cluster: &Cluster, instance: &str) -> String {
    let all = addresses(cluster);
    let found = all
        .iter()
        .find(|(name, _)| name.starts_with(&format!("{instance} on ")));
    found.map_or_else(|| panic!("no {instance}: {all:?}"), |(_, address)| address.clone())
}

fn published(cluster: &Cluster, service: &str) -> Endpoints {
    let stored = &cluster.snapshot.endpoints[&key(service)];
    Endpoints::clone(stored.value.as_ref().expect("readable"))
}

fn subnet(cluster: &Cluster, node: &str) -> String {
    let assignment = cluster.snapshot.nodes[&name(node)].assignment.as_ref();
    let network = assignment.and_then(|stored| stored.value.as_ref().expect("readable").network.clone());
    network.map_or("none".to_owned(), |network| network.subnet.to_string())
}

fn link(cluster: &mut Cluster, node: &str, kind: Option<LinkKind>) {
    let facts = cluster.entry(node).facts.as_mut().expect("facts");
    facts.value.as_mut().expect("readable").link = Some(NodeLink {
        kind,
        why: kind.is_none().then(|| "no TUN".to_owned()),
        key: None,
        endpoints: Vec::new(),
        public_endpoint: None,
        proof: None,
    });
}

#[test]
fn a_port_that_is_open_everywhere_is_one_services_and_taken_on_every_node() {
    let mut cluster = started(2);
    let web = |ports: serde_json::Value| json!({ "replicas": 2, "container": { "ports": ports } });
    let everywhere =
        || json!([{ "containerPort": 80, "hostPort": 8080, "publish": "everywhere", "proxyProtocol": true }]);
    let node = || json!([{ "containerPort": 80, "hostPort": 8080 }]);
    cluster.apply("web", web(everywhere()));
    cluster.settle();
    // Both may be on one node: none has the port itself.
    assert_eq!(cluster.serving("web"), 2);
    assert!(cluster.assigned().iter().all(|(_, one)| one.ports.is_empty()));
    let open = |cluster: &Cluster, service: &str| published(cluster, service).ports[0].everywhere.clone();
    let said = open(&cluster, "web").expect("it is open");
    assert_eq!((said.host_port, said.proxy_protocol), (8080, true));
    // Another service gets it neither everywhere nor on a node, though it comes first by name.
    cluster.apply("api", web(everywhere()));
    cluster.apply("bpi", web(node()));
    cluster.settle();
    for refused in ["api", "bpi"] {
        assert_eq!(cluster.serving(refused), 0);
        let refusals = cluster.status(refused).refusals;
        assert_eq!(
            refusals.first().map(|one| (one.rule, one.nodes)),
            Some((RefusalRule::HostPort, 2))
        );
    }
    assert_eq!((open(&cluster, "api"), open(&cluster, "web").is_some()), (None, true));
    // It is given up, and has a new owner; that one's instances are placed.
    cluster.apply("web", web(json!([{ "containerPort": 80 }])));
    cluster.settle();
    assert_eq!((open(&cluster, "web"), open(&cluster, "api").is_some()), (None, true));
    assert_eq!((cluster.serving("api"), cluster.serving("bpi")), (2, 0));
    // One that nodes have is not opened everywhere.
    cluster.delete("api");
    cluster.settle();
    assert_eq!(cluster.serving("bpi"), 2);
    cluster.apply("web", web(everywhere()));
    cluster.settle();
    assert_eq!((open(&cluster, "web"), cluster.serving("web")), (None, 2));
}

#[test]
fn each_node_gets_a_subnet_and_each_slot_the_lowest_address() {
    let mut cluster = started(2);
    assert_eq!(subnet(&cluster, "n1"), "10.210.0.0/28");
    assert_eq!(subnet(&cluster, "n2"), "10.210.0.16/28");
    cluster.apply("web", json!({ "replicas": 3 }));
    let plan = cluster.passed();
    let planned: Vec<String> = plan
        .changes
        .iter()
        .map(|change| format!("{} {}", change.instance.slot, change.address.expect("an address")))
        .collect();
    assert_eq!(planned, ["1 10.210.0.2", "2 10.210.0.18", "3 10.210.0.3"]);
    cluster.settle();
    for line in planned {
        let (slot, address) = line.split_once(' ').expect("two words");
        assert_eq!(of(&cluster, &format!("web.{slot}")), address);
    }
    let said: Vec<String> = published(&cluster, "web")
        .instances
        .iter()
        .map(|one| {
            format!(
                "{} {} {} {}",
                one.slot,
                one.address,
                one.address6.expect("IPv6 too"),
                one.ready
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            "1 10.210.0.2 fd10:210::2 true",
            "2 10.210.0.18 fd10:210::1:2 true",
            "3 10.210.0.3 fd10:210::3 true"
        ]
    );
}

#[test]
fn what_is_changed_restarted_or_scaled_back_has_its_address_still() {
    let mut cluster = started(1);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.apply("api", json!({ "replicas": 1 }));
    cluster.settle();
    let before = addresses(&cluster);
    cluster.apply("web", json!({ "replicas": 2, "container": { "image": "app:2" } }));
    cluster.settle();
    assert_eq!(addresses(&cluster), before);
    // The slot goes and comes again while its address lingers; another service gets the next one meanwhile.
    cluster.apply("web", json!({ "replicas": 1, "container": { "image": "app:2" } }));
    cluster.settle();
    cluster.apply("other", json!({ "replicas": 1 }));
    cluster.settle();
    assert_eq!(of(&cluster, "other.1"), "10.210.0.5");
    cluster.apply("web", json!({ "replicas": 2, "container": { "image": "app:2" } }));
    cluster.settle();
    assert_eq!(of(&cluster, "web.2"), before["web.2 on n1"]);
    // The grace is over: whoever is next gets what is free.
    cluster.delete("web");
    cluster.settle();
    cluster.apply("first", json!({ "replicas": 1 }));
    cluster.settle();
    assert_eq!(of(&cluster, "first.1"), "10.210.0.6");
    cluster.agents.get_mut(&name("n1")).expect("a node").lingering.clear();
    cluster.report("n1");
    cluster.apply("next", json!({ "replicas": 1 }));
    cluster.settle();
    assert_eq!(of(&cluster, "next.1"), "10.210.0.3");
}

#[test]
fn assignments_that_are_lost_are_written_anew_with_the_same_addresses() {
    let mut cluster = started(2);
    cluster.apply("web", json!({ "replicas": 4 }));
    cluster.settle();
    let (before, subnets) = (addresses(&cluster), [subnet(&cluster, "n1"), subnet(&cluster, "n2")]);
    for node in ["n1", "n2"] {
        cluster.entry(node).assignment = None;
    }
    cluster.snapshot.peers.clear();
    cluster.settle();
    assert_eq!(addresses(&cluster), before);
    assert_eq!([subnet(&cluster, "n1"), subnet(&cluster, "n2")], subnets);
}

#[test]
fn without_a_network_no_address_of_an_engines_own_is_assigned() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    for node in ["n1", "n2"] {
        let entry = cluster.entry(node);
        entry.assignment = None;
        let report = entry.report.as_mut().and_then(|one| one.value.as_mut().ok());
        for one in &mut Arc::make_mut(report.expect("readable")).instances {
            one.addresses = vec!["172.18.0.4".parse().expect("an address")];
        }
    }
    cluster.settle();
    let given: BTreeSet<String> = addresses(&cluster).into_values().collect();
    assert_eq!(given, BTreeSet::from(["none".to_owned()]));
}

#[test]
fn a_full_subnet_refuses_in_words_and_others_are_used() {
    let mut cluster = started(2);
    cluster.apply("web", json!({ "replicas": 30 }));
    cluster.settle();
    let status = cluster.status("web");
    assert_eq!(status.counts.assigned, 26);
    let refusal = &status.refusals[0];
    assert_eq!((refusal.rule, refusal.nodes), (RefusalRule::Address, 2));
    assert_eq!(
        refusal.detail,
        "no address in the cluster's network: its subnet has no address left"
    );
    // What takes no address has room.
    cluster.apply("host", json!({ "replicas": 2, "container": { "networkMode": "host" } }));
    cluster.settle();
    assert_eq!(cluster.status("host").counts.assigned, 2);
}

#[test]
fn the_range_itself_may_be_used_up() {
    let mut cluster = Cluster::new();
    cluster.snapshot.cluster.network = Some(NetworkSettings {
        cidr: "10.210.0.0/27".parse().expect("a range"),
        ..small()
    });
    for at in 1..=3 {
        cluster.node(&format!("n{at}"), &[]);
    }
    cluster.settle();
    assert_eq!(subnet(&cluster, "n3"), "none");
    cluster.apply("web", json!({ "replicas": 1, "placement": { "nodeNames": ["n3"] } }));
    cluster.settle();
    let status = cluster.status("web");
    assert!(status.refusals.iter().any(|one| one.rule == RefusalRule::Address
        && one.detail.ends_with("the cluster's network has no subnet left for it")));
    // One leaves for good, and its subnet is the third one's.
    cluster.cordon("n1", Some(CordonMode::Retire));
    cluster.settle();
    cluster.session("n1", false);
    cluster.agents.remove(&name("n1"));
    cluster.settle();
    assert!(!cluster.snapshot.nodes.contains_key(&name("n1")));
    cluster.settle();
    assert_eq!(subnet(&cluster, "n3"), "10.210.0.0/28");
    assert_eq!(cluster.status("web").counts.assigned, 1);
}

#[test]
fn a_node_without_a_link_gets_nothing_that_others_could_not_reach() {
    let mut cluster = started(2);
    link(&mut cluster, "n1", Some(LinkKind::WireguardUser));
    link(&mut cluster, "n2", None);
    cluster.apply("web", json!({ "replicas": 3 }));
    cluster.settle();
    assert!(addresses(&cluster).keys().all(|instance| instance.ends_with("on n1")));
    let peers: Vec<&str> = cluster.snapshot.peers.keys().map(NodeName::as_str).collect();
    assert_eq!(peers, ["n1", "n2"]);
}

#[test]
fn the_first_addresses_are_told_before_anything_runs() {
    let mut cluster = started(3);
    let store = |replicas: u32| json!({ "replicas": replicas, "seeds": 3, "placement": { "maxPerNode": 1 } });
    cluster.apply("store", store(3));
    cluster.apply("web", json!({ "dependsOn": ["store"] }));
    let plan = cluster.passed();
    let told: BTreeSet<String> = plan
        .assignments
        .iter()
        .flat_map(|write| &write.assignment.instances)
        .map(|one| {
            let seeds = one
                .seeds
                .iter()
                .map(|seeds| format!("{} {:?}", seeds.service, seeds.addresses));
            format!("{:?} {}", one.state, seeds.collect::<String>())
        })
        .collect();
    assert_eq!(
        told.into_iter().collect::<Vec<_>>(),
        ["Present store [10.210.0.2, 10.210.0.18, 10.210.0.34]"]
    );
    cluster.settle();
    assert_eq!(cluster.status("web").counts.ready, 1);
    // A fourth node, a fifth member: the seeds stay the first three.
    cluster.node("n4", &[]);
    cluster.apply("store", store(4));
    cluster.settle();
    let (_, last) = cluster
        .assigned()
        .into_iter()
        .find(|(node, _)| node.as_str() == "n4")
        .expect("on n4");
    assert_eq!(last.seeds[0].addresses.len(), 3);
}

#[test]
fn members_wait_until_every_first_address_is_known() {
    let mut cluster = started(2);
    cluster.apply(
        "store",
        json!({ "replicas": 3, "seeds": 3, "placement": { "maxPerNode": 1 } }),
    );
    cluster.apply("web", json!({ "dependsOn": ["store"] }));
    let plan = cluster.passed();
    let waits = |change: &&planner::cluster::Change| matches!(&change.waits, Some(Reason::WaitsForSeeds { service }) if service.as_str() == "store");
    assert_eq!(plan.changes.iter().filter(waits).count(), 3);
    cluster.settle();
    assert_eq!(cluster.serving("store") + cluster.serving("web"), 0);
    assert!(
        cluster
            .assigned()
            .iter()
            .all(|(_, one)| one.state == AssignedState::Prepared)
    );
    assert_eq!(
        cluster.condition("store", ConditionType::Scheduled).reason,
        "NoNodeFits"
    );
    cluster.node("n3", &[]);
    cluster.settle();
    assert_eq!((cluster.serving("store"), cluster.serving("web")), (3, 1));
    assert!(published(&cluster, "store").instances.iter().all(|one| one.ready));
}

#[test]
fn who_moves_is_told_where_and_names_follow() {
    let mut cluster = started(2);
    cluster.apply("web", json!({ "replicas": 1 }));
    cluster.settle();
    assert_eq!(of(&cluster, "web.1"), "10.210.0.2");
    cluster.cordon("n1", Some(CordonMode::Drain));
    let plan = cluster.passed();
    let moved = plan
        .changes
        .iter()
        .find(|change| matches!(change.action, Action::Move { .. }));
    assert_eq!(
        moved.and_then(|change| change.address),
        Some("10.210.0.18".parse().expect("an address"))
    );
    cluster.settle();
    let now = &published(&cluster, "web").instances[0];
    assert_eq!(
        (now.node.as_str(), now.address.to_string()),
        ("n2", "10.210.0.18".to_owned())
    );
    // A node that is not there serves nobody.
    cluster.session("n2", false);
    cluster.settle();
    assert!(!published(&cluster, "web").instances[0].ready);
    cluster.delete("web");
    cluster.settle();
    assert!(cluster.snapshot.endpoints.is_empty());
}

#[test]
fn who_only_says_that_it_runs_an_instance_is_not_where_its_name_leads() {
    let mut cluster = started(2);
    cluster.apply("web", json!({ "replicas": 1, "placement": { "nodeNames": ["n2"] } }));
    cluster.settle();
    let (_, mut claimed) = cluster.assigned().into_iter().next().expect("one");
    // It does not serve for now, and a node whose name comes first says that it does.
    cluster.sick.insert("web.1".to_owned());
    cluster.step("n2");
    claimed.address = Some("10.210.0.9".parse().expect("an address"));
    cluster.claim("n1", std::slice::from_ref(&claimed));
    cluster.pass();
    let led = &published(&cluster, "web").instances[0];
    assert_eq!((led.node.as_str(), led.ready), ("n2", false));
}

#[test]
fn in_a_full_subnet_an_address_that_two_claim_is_still_one_owners() {
    let mut cluster = started(1);
    cluster.apply("web", json!({ "replicas": 13 }));
    cluster.settle();
    cluster.apply("other", json!({ "replicas": 1 }));
    cluster.settle();
    assert_eq!(cluster.status("other").counts.assigned, 0);
    let (_, first) = cluster.assigned().into_iter().next().expect("one");
    // What it never was given it says it runs, at an address of an instance that it was given.
    let other = schemas::records::Assigned {
        slot: "14".parse().expect("a slot"),
        ..first
    };
    cluster.claim("n1", &[other]);
    cluster.pass();
    let given: Vec<Ipv4Addr> = cluster
        .assigned()
        .into_iter()
        .filter_map(|(_, one)| one.address.filter(|_| one.state != AssignedState::Absent))
        .collect();
    let distinct: BTreeSet<&Ipv4Addr> = given.iter().collect();
    assert_eq!((given.len(), distinct.len()), (13, 13), "{given:?}");
}

#[test]
fn a_network_that_comes_later_gives_addresses_to_what_runs() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    assert_eq!(of(&cluster, "web.1"), "none");
    cluster.snapshot.cluster.network = Some(small());
    cluster.settle();
    assert_eq!(of(&cluster, "web.1"), "10.210.0.2");
    assert_eq!(cluster.status("web").counts.ready, 2);
}

#[test]
fn the_last_address_of_a_subnet_and_its_gateway_are_nobodys() {
    let subnet = "10.210.0.16/28".parse().expect("a subnet");
    let range = usable(&subnet);
    assert_eq!(Ipv4Addr::from(*range.start()).to_string(), "10.210.0.18");
    assert_eq!(Ipv4Addr::from(*range.end()).to_string(), "10.210.0.30");
}

/// How many records of endpoints a pass writes that knows of the one before; as many as one that knows of none.
fn rewritten(cluster: &Cluster, memo: &mut Memo) -> usize {
    let options = PlanOptions {
        list_changes: false,
        exhaustive: false,
    };
    let plan = plan_again(&cluster.snapshot, options, memo);
    assert_eq!(
        plan,
        plan_with(&cluster.snapshot, options),
        "a memo changes nothing but the time"
    );
    plan.network.endpoints.len()
}

fn move_address(cluster: &mut Cluster, node: &str, to: &str) {
    let to: Ipv4Addr = to.parse().expect("an address");
    let entry = cluster.entry(node);
    let assignment = entry.assignment.as_mut().and_then(|one| one.value.as_mut().ok());
    Arc::make_mut(assignment.expect("readable")).instances[0].address = Some(to);
    let report = entry.report.as_mut().and_then(|one| one.value.as_mut().ok());
    Arc::make_mut(report.expect("readable")).instances[0].addresses = vec![to.into()];
}

#[test]
fn what_is_remembered_of_endpoints_counts_while_all_that_they_say_is_so() {
    let mut cluster = started(2);
    cluster.apply("web", json!({ "replicas": 2 }));
    cluster.settle();
    let mut memo = Memo::default();
    assert_eq!((rewritten(&cluster, &mut memo), rewritten(&cluster, &mut memo)), (0, 0));
    // Another address, and the first again.
    let own = of(&cluster, "web.1");
    move_address(&mut cluster, "n1", "10.210.0.9");
    assert_eq!((rewritten(&cluster, &mut memo), rewritten(&cluster, &mut memo)), (1, 1));
    move_address(&mut cluster, "n1", &own);
    assert_eq!((rewritten(&cluster, &mut memo), rewritten(&cluster, &mut memo)), (0, 0));
    // The same places and addresses, and no IPv6 any more.
    let sixth = cluster
        .snapshot
        .cluster
        .network
        .as_mut()
        .and_then(|net| net.cidr6.take());
    assert_eq!(rewritten(&cluster, &mut memo), 1);
    cluster.snapshot.cluster.network.as_mut().expect("a network").cidr6 = sixth;
    assert_eq!((rewritten(&cluster, &mut memo), rewritten(&cluster, &mut memo)), (0, 0));
    // Another record, of the very same instances.
    let stored = cluster.snapshot.endpoints.get_mut(&key("web")).expect("published");
    Arc::make_mut(stored.value.as_mut().expect("readable")).instances[0].ready = false;
    assert_eq!(rewritten(&cluster, &mut memo), 1);
}
