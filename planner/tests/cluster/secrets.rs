//! Secrets: what a new, a missing and a deleted value come to for the services that get them, and which node needs which.

use std::collections::BTreeMap;
use std::sync::Arc;

use planner::cluster::{Action, Plan, Reason, SecretNeeds, logins, secrets};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{AcceptedBody, AssignedState, ConditionStatus, ConditionType, CordonMode, Digest};
use schemas::registry::RegistrySpec;
use schemas::secret::SecretEdition;
use serde_json::{Value, json};

use crate::support::{Cluster, key, name};

fn secret_key(name: &str) -> ResourceKey {
    ResourceKey {
        kind: Kind::Secret,
        name: name.parse().expect("a name"),
        ..key("web")
    }
}

fn edition(name: &str, n: u64) -> SecretEdition {
    SecretEdition {
        n,
        digest: Digest::of(format!("{name} {n}").as_bytes()),
    }
}

fn set(cluster: &mut Cluster, name: &str, n: u64) {
    cluster.snapshot.secrets.insert(secret_key(name), edition(name, n));
}

fn getting(replicas: u32, secrets: &[&str]) -> Value {
    let secrets: Vec<Value> = secrets.iter().map(|secret| json!({ "secret": secret })).collect();
    json!({ "replicas": replicas, "container": { "secrets": secrets } })
}

/// A cluster where `web` gets `password`, `page` gets nothing, and `both` gets `password` and `token`.
fn started() -> Cluster {
    let mut cluster = Cluster::of(3);
    set(&mut cluster, "password", 1);
    set(&mut cluster, "token", 1);
    cluster.apply("web", getting(2, &["password"]));
    cluster.apply("page", getting(2, &[]));
    cluster.apply("both", getting(1, &["password", "token"]));
    cluster.settle();
    cluster
}

fn generation(cluster: &Cluster, service: &str) -> u64 {
    cluster.status(service).generation.expect("it is in force")
}

fn editions(cluster: &Cluster, service: &str) -> Vec<u64> {
    let records = &cluster.snapshot.accepted[&key(service)].records;
    let (_, last) = records.last_key_value().expect("a record");
    match &last.value.as_ref().expect("readable").body {
        AcceptedBody::Service(spec) => {
            let secrets = spec.container.secrets.iter();
            secrets.map(|one| one.edition.as_ref().expect("an edition").n).collect()
        }
        other @ (AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted) => panic!("{other:?}"),
    }
}

fn reasons(plan: &Plan) -> Vec<(String, &Action, &Reason)> {
    let news = plan.changes.iter().filter(|change| change.action != Action::Keep);
    news.map(|change| (change.instance.to_string(), &change.action, &change.reason))
        .collect()
}

#[test]
fn a_new_value_replaces_its_users_one_after_the_other_and_nobody_else() {
    let mut cluster = started();
    let page = generation(&cluster, "page");
    set(&mut cluster, "token", 2);
    let plan = cluster.passed();
    let fields = vec!["container.secrets.content".to_owned()];
    let reason = Reason::SecretChanged {
        secret: "token".parse().unwrap(),
        from: 1,
        to: 2,
    };
    assert_eq!(
        reasons(&plan),
        [("both.1".to_owned(), &Action::Replace { fields }, &reason)]
    );
    cluster.settle();
    assert_eq!((generation(&cluster, "both"), generation(&cluster, "web")), (2, 1));
    set(&mut cluster, "password", 2);
    for _ in 0..40 {
        cluster.pass();
        for node in ["n1", "n2", "n3"] {
            cluster.step(node);
            assert!(cluster.serving("web") >= 1 && cluster.serving("page") == 2);
        }
    }
    assert_eq!(
        (editions(&cluster, "both"), editions(&cluster, "web")),
        (vec![2, 2], vec![2])
    );
    assert_eq!(generation(&cluster, "page"), page);
    // Back to a value before: another edition, and no new one.
    set(&mut cluster, "password", 1);
    cluster.settle();
    assert_eq!(editions(&cluster, "web"), [1]);
    assert!(cluster.plan().rests(&cluster.snapshot));
}

#[test]
fn a_secret_without_a_value_is_waited_for_and_the_last_good_spec_stays_in_force() {
    let mut cluster = started();
    cluster.apply("new", getting(1, &["later"]));
    cluster.apply("web", getting(2, &["password", "later"]));
    cluster.settle();
    let accepted = cluster.condition("new", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::False, "SecretMissing")
    );
    assert!(
        accepted.message.contains("reeve secret set later"),
        "{}",
        accepted.message
    );
    assert_eq!(cluster.status("new").generation, None);
    assert_eq!((generation(&cluster, "web"), cluster.serving("web")), (1, 2));
    // A value of that name in another namespace is none of this one's.
    let elsewhere = ResourceKey {
        namespace: Some("other".parse().unwrap()),
        ..secret_key("later")
    };
    cluster.snapshot.secrets.insert(elsewhere, edition("later", 1));
    cluster.settle();
    assert_eq!(cluster.status("new").generation, None);
    set(&mut cluster, "later", 1);
    cluster.settle();
    assert_eq!((cluster.serving("new"), generation(&cluster, "web")), (1, 2));
    assert_eq!(cluster.condition("web", ConditionType::Accepted).reason, "Valid");
}

#[test]
fn a_value_that_is_gone_takes_nothing_away() {
    let mut cluster = started();
    cluster.snapshot.secrets.clear();
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty() && plan.accepted.is_empty());
    let accepted = cluster.condition("web", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::True, "SecretDeleted")
    );
    cluster.settle();
    assert_eq!((cluster.serving("web"), generation(&cluster, "web")), (2, 1));
}

#[test]
fn a_node_needs_the_secrets_of_its_own_instances_and_keeps_what_is_still_in_force_there() {
    let mut cluster = started();
    let names = |needs: &SecretNeeds| {
        let list = |set: &std::collections::BTreeSet<planner::cluster::SecretName>| -> Vec<String> {
            set.iter()
                .map(|one| format!("{} {}", one.name, one.edition.n))
                .collect()
        };
        (list(&needs.assigned), list(&needs.in_force))
    };
    let plan = cluster.plan();
    let needs = secrets(&cluster.snapshot, &plan);
    for (node, entry) in &cluster.snapshot.nodes {
        let assignment = entry.assignment.as_ref().unwrap().value.as_ref().unwrap();
        let runs = |name: &str| assignment.instances.iter().any(|one| one.workload.as_str() == name);
        let mut wanted: Vec<String> = Vec::new();
        if runs("web") || runs("both") {
            wanted.push("password 1".to_owned());
        }
        if runs("both") {
            wanted.push("token 1".to_owned());
        }
        let found = needs.get(node).map(names).unwrap_or_default();
        assert_eq!(found, (wanted.clone(), wanted), "{node}");
    }
    // A new value: the node is to have it before its work, and keeps the old one while that is in force.
    set(&mut cluster, "token", 2);
    let plan = cluster.plan();
    let needs = secrets(&cluster.snapshot, &plan);
    let both: Vec<_> = needs
        .values()
        .map(names)
        .filter(|(new, _)| new.contains(&"token 2".to_owned()))
        .collect();
    assert_eq!(both.len(), 1);
    assert!(both[0].1.contains(&"token 1".to_owned()), "{both:?}");
    cluster.settle();
    cluster.cordon("n1", Some(CordonMode::Drain));
    cluster.settle();
    let plan = cluster.plan();
    let n1 = cluster
        .snapshot
        .nodes
        .keys()
        .find(|node| node.as_str() == "n1")
        .unwrap();
    let left = secrets(&cluster.snapshot, &plan).remove(n1).unwrap_or_default();
    assert_eq!(left, SecretNeeds::default(), "a node that runs nothing needs nothing");
}

#[test]
fn a_node_that_says_it_runs_what_it_was_not_given_is_handed_nothing_for_it() {
    // By its name it comes before the others, or after them.
    ["a1", "n9"].iter().for_each(|node| given_nothing_for_lies(node));
}

fn given_nothing_for_lies(node: &str) {
    let mut cluster = started();
    let registry = json!({ "registry": "docker.io", "accounts": [{ "user": "reader" }] });
    let registry: RegistrySpec = serde_json::from_value(registry).expect("a registry");
    let registries = BTreeMap::from([("hub".parse().expect("a name"), Arc::new(registry))]);
    // Secrets and accounts that a node is to be handed.
    let given = |cluster: &mut Cluster, node: &NodeName| {
        let plan = cluster.plan();
        let secrets = secrets(&cluster.snapshot, &plan).remove(node).unwrap_or_default();
        let logins = logins(&cluster.snapshot, &plan, &registries)
            .remove(node)
            .unwrap_or_default();
        (secrets.assigned.len(), logins.assigned.len())
    };
    // It was assigned nothing, though its report may say otherwise. It says it runs what another node runs, and slots that
    // nobody wants: so many that the breaker holds their removal.
    cluster.node(node, &[]);
    let taken: Vec<_> = cluster
        .assigned()
        .into_iter()
        .filter(|(_, one)| one.workload.as_str() != "page")
        .collect();
    let holder = taken[0].0.clone();
    let (secrets, logins) = given(&mut cluster, &holder);
    assert!(secrets > 0 && logins > 0, "who was given it is");
    let mut lies = Vec::new();
    for slot in 1..=40 {
        for (_, one) in &taken {
            let slot = schemas::names::Slot::Index(slot);
            lies.push(schemas::records::Assigned { slot, ..one.clone() });
        }
    }
    for applied in [0, 7] {
        for lies in [&lies[..1], &lies] {
            let mut cluster = cluster.clone();
            let agent = cluster.agents.get_mut(&name(node)).expect("an agent");
            agent.applied.generation = applied;
            cluster.claim(node, lies);
            for pass in 0..5 {
                assert_eq!(
                    given(&mut cluster, &name(node)),
                    (0, 0),
                    "{node}, {} lies, applied {applied}, pass {pass}",
                    lies.len()
                );
                cluster.pass();
            }
            let (_, kept) = cluster
                .assigned()
                .into_iter()
                .find(|(of, one)| *of == holder && one.name() == taken[0].1.name())
                .expect("listed still");
            assert_eq!(kept.state, AssignedState::Present, "nothing is taken from who runs it");
        }
    }
}
