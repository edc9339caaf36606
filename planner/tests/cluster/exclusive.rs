//! Exclusive services: who holds a slot, what gives it to another, and the tokens of one holder after the other.

use planner::cluster::{Guard, Moment};
use schemas::records::{Assigned, AssignedState, ConditionType, CordonMode, Verdict};
use serde_json::{Value, json};

use crate::support::{Cluster, name};

const MINUTE: u64 = 60_000;

fn wait(cluster: &mut Cluster, millis: u64) {
    let Moment { now_ms, healthy_ms } = cluster.moment;
    cluster.moment = Moment {
        now_ms: now_ms + millis,
        healthy_ms: Some(healthy_ms.unwrap_or(0) + millis),
    };
    cluster.judge();
}

fn leave(cluster: &mut Cluster, node: &str) {
    cluster.session(node, false);
    cluster.judge();
}

/// An exclusive service that would rather be on n3.
fn db(more: Value) -> Value {
    let mut spec = json!({
        "exclusive": true,
        "placement": { "preferred": [{ "weight": 100, "expression": { "key": "reeve.node", "operator": "In", "values": ["n3"] } }] },
    });
    for (key, value) in more.as_object().expect("a map") {
        spec[key] = value.clone();
    }
    spec
}

/// Three nodes, with `db.1` on n3.
fn held(more: Value) -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.apply("db", db(more));
    cluster.settle();
    wait(&mut cluster, 60 * MINUTE);
    assert_eq!(cluster.picture(), "db.1 on n3");
    cluster
}

/// The one that is to run, and its token.
fn holder(cluster: &Cluster) -> (String, u64) {
    let present = cluster.assigned().into_iter();
    let present: Vec<_> = present.filter(|(_, one)| one.state == AssignedState::Present).collect();
    let [(node, one)] = &present[..] else {
        panic!("not one holder: {present:?}")
    };
    (node.to_string(), one.token.expect("a token"))
}

fn why(cluster: &Cluster) -> String {
    let condition = cluster.condition("db", ConditionType::Progressing);
    format!("{}: {}", condition.reason, condition.message)
}

#[test]
fn time_gives_nothing_exclusive_away_and_a_persons_word_does() {
    let mut cluster = held(json!({}));
    let (_, first) = holder(&cluster);
    leave(&mut cluster, "n3");
    wait(&mut cluster, 24 * 60 * MINUTE);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 on n3");
    cluster.confirm_lost("n3");
    wait(&mut cluster, 0);
    // It is taken off its node before anybody else is given it.
    let plan = cluster.passed();
    assert_eq!(
        (plan.assignments.len(), cluster.picture().as_str()),
        (1, "db.1 absent on n3")
    );
    let plan = cluster.passed();
    assert_eq!(cluster.picture(), "db.1 absent on n3, db.1 on n1");
    let guards = &plan.assignments[0].guards;
    assert!(guards.contains(&Guard::SessionAbsent(name("n3"))), "{guards:?}");
    cluster.settle();
    let (_, second) = holder(&cluster);
    assert!(second > first, "{second} after {first}");
    // What is back is removed by its assignment; the holder stays, with his token.
    cluster.session("n3", true);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 on n1");
    assert_eq!((holder(&cluster).1, cluster.serving("db")), (second, 1));
}

#[test]
fn who_is_back_before_another_has_it_stops_first() {
    let mut cluster = held(json!({}));
    leave(&mut cluster, "n3");
    cluster.confirm_lost("n3");
    wait(&mut cluster, 0);
    cluster.pass();
    assert_eq!(cluster.picture(), "db.1 absent on n3");
    cluster.session("n3", true);
    cluster.pass();
    assert_eq!(
        cluster.picture(),
        "db.1 absent on n3",
        "its node has not said that it is gone"
    );
    cluster.settle();
    assert_eq!((holder(&cluster).0.as_str(), cluster.serving("db")), ("n1", 1));
}

#[test]
fn who_stops_by_himself_is_replaced_when_he_must_have_also_by_a_wrong_word() {
    let mut cluster =
        held(json!({ "onDisconnect": { "stopAfter": "60s" }, "container": { "stopGracePeriod": "40s" } }));
    leave(&mut cluster, "n3");
    cluster.confirm_lost("n3");
    // 60 s, 40 s to stop, and a tenth.
    for (more, picture) in [
        (0, "db.1 on n3"),
        (109_999, "db.1 on n3"),
        (1, "db.1 absent on n3, db.1 on n1"),
    ] {
        wait(&mut cluster, more);
        cluster.settle();
        assert_eq!(cluster.picture(), picture);
    }
    // A spec that stops sooner does not count for who may not have read it; nor does a new leader's time begin before him.
    let mut cluster = held(json!({ "onDisconnect": { "stopAfter": "10m" } }));
    leave(&mut cluster, "n3");
    cluster.apply("db", db(json!({ "onDisconnect": { "stopAfter": "10s" } })));
    cluster.confirm_lost("n3");
    cluster.settle();
    wait(&mut cluster, 10 * MINUTE);
    cluster.absences = Default::default();
    wait(&mut cluster, 0);
    // 10 min, 10 s to stop, and a tenth.
    wait(&mut cluster, 670_999);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 on n3");
    wait(&mut cluster, 1);
    cluster.settle();
    assert_eq!(holder(&cluster).0, "n1");
}

#[test]
fn deleted_and_declared_anew_scaled_or_retired_it_waits_for_the_old_one() {
    // Another life of the same name.
    let mut cluster = held(json!({}));
    let (_, first) = holder(&cluster);
    leave(&mut cluster, "n3");
    wait(&mut cluster, 0);
    cluster.delete("db");
    cluster.settle();
    cluster.apply("db", db(json!({})));
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 absent on n3");
    assert!(
        why(&cluster).contains("MayRunElsewhere: db.1 may still run on node n3"),
        "{}",
        why(&cluster)
    );
    cluster.confirm_lost("n3");
    wait(&mut cluster, 0);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 absent on n3, db.1 on n1");
    assert!(holder(&cluster).1 > first);
    // Fewer, and more again.
    let mut cluster = held(json!({}));
    leave(&mut cluster, "n3");
    wait(&mut cluster, 0);
    cluster.apply("db", db(json!({ "replicas": 0 })));
    cluster.settle();
    cluster.apply("db", db(json!({})));
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 absent on n3");
    cluster.session("n3", true);
    cluster.settle();
    assert_eq!((holder(&cluster).0.as_str(), cluster.serving("db")), ("n3", 1));
    // Its node is retired, and does not say that it is gone.
    let mut cluster = held(json!({}));
    leave(&mut cluster, "n3");
    wait(&mut cluster, 0);
    cluster.cordon("n3", Some(CordonMode::Retire));
    wait(&mut cluster, 60 * MINUTE);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 absent on n3");
    let revision = cluster.revision();
    let stored = cluster.entry("n3").cordon.as_mut().expect("retired");
    stored.mod_revision = revision;
    stored.value.as_mut().expect("readable").lost = true;
    wait(&mut cluster, 0);
    cluster.settle();
    assert_eq!(holder(&cluster).0, "n1");
}

#[test]
fn what_nobody_has_written_down_any_more_keeps_it_from_others() {
    let mut cluster = held(json!({}));
    let (_, first) = holder(&cluster);
    leave(&mut cluster, "n3");
    wait(&mut cluster, 0);
    let entry = cluster.entry("n3");
    (entry.assignment, entry.report) = (None, None);
    cluster.settle();
    assert_eq!(cluster.picture(), "");
    assert!(why(&cluster).contains("node n3"), "{}", why(&cluster));
    // It is back, and says that it holds it.
    cluster.session("n3", true);
    cluster.report("n3");
    cluster.settle();
    assert_eq!(holder(&cluster), ("n3".to_owned(), first));
    // With its report there, nothing is lost at all.
    cluster.entry("n3").assignment = None;
    cluster.settle();
    assert_eq!(holder(&cluster), ("n3".to_owned(), first));
}

#[test]
fn a_second_one_that_a_node_says_it_has_goes_without_asking_the_breaker() {
    let mut cluster = held(json!({}));
    let (_, one) = cluster.assigned().into_iter().next().expect("one");
    cluster.snapshot.breaker.spent = 1_000;
    for token in [Some(1), None, Some(u64::MAX)] {
        let twin = Assigned { token, ..one.clone() };
        cluster.claim("n1", &[twin]);
        cluster.pass();
        assert_eq!(cluster.picture(), "db.1 absent on n1, db.1 on n3", "{token:?}");
        cluster.settle();
        assert_eq!(cluster.picture(), "db.1 on n3");
    }
}

#[test]
fn every_holder_has_a_higher_token_and_keeps_it() {
    let mut cluster = held(json!({}));
    let mut last = holder(&cluster);
    // Drained back and forth: each time the old one is gone before the next one starts.
    for at in 0..6 {
        let from = last.0.clone();
        cluster.cordon(&from, Some(CordonMode::Drain));
        cluster.settle();
        cluster.cordon(&from, None);
        cluster.settle();
        let now = holder(&cluster);
        assert!(now.0 != from && now.1 > last.1, "{at}: {now:?} after {last:?}");
        last = now;
    }
    // A new container of the same holder keeps it.
    cluster.apply("db", db(json!({ "container": { "image": "app:2" } })));
    cluster.settle();
    assert_eq!(holder(&cluster), last);
    // After a restore the store's revision may be any.
    cluster.snapshot.cluster.restore_epoch += 1;
    let from = last.0.clone();
    cluster.cordon(&from, Some(CordonMode::Drain));
    cluster.settle();
    let now = holder(&cluster);
    assert!(now.1 > last.1 && now.1 >> 40 == 1 && now.1 < 1 << 53, "{now:?}");
}

#[test]
fn a_service_that_becomes_exclusive_restarts_nothing_and_gets_its_token_with_its_next_container() {
    let mut cluster = Cluster::of(2);
    cluster.apply("db", json!({}));
    cluster.settle();
    let token = |cluster: &Cluster| cluster.assigned()[0].1.token;
    cluster.apply(
        "db",
        json!({ "exclusive": true, "onDisconnect": { "stopAfter": "1m" } }),
    );
    cluster.settle();
    assert_eq!((token(&cluster), cluster.assigned()[0].1.n), (None, 2));
    cluster.apply("db", json!({ "exclusive": true, "container": { "image": "app:2" } }));
    cluster.settle();
    let given = token(&cluster);
    assert!(given.is_some());
    cluster.apply("db", json!({ "exclusive": true, "container": { "image": "app:1" } }));
    cluster.settle();
    assert_eq!(token(&cluster), given);
}

#[test]
fn a_word_about_an_earlier_absence_lets_nothing_go() {
    let mut cluster = held(json!({}));
    leave(&mut cluster, "n3");
    cluster.confirm_lost("n3");
    wait(&mut cluster, 0);
    // Its node was back while nobody led, and is away again.
    cluster.absences = Default::default();
    let told = cluster.revision();
    cluster.entry("n3").report.as_mut().expect("a report").mod_revision = told;
    wait(&mut cluster, 60 * MINUTE);
    cluster.settle();
    assert_eq!(cluster.picture(), "db.1 on n3");
    let stored = cluster.snapshot.nodes[&name("n3")].verdict.clone().expect("a verdict");
    let record = stored.value.expect("readable");
    assert!(!record.off && record.verdict != Verdict::Ready, "{record:?}");
}
