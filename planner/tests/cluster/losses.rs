//! Nodes that are away: when they are called lost, how many at once, what is replaced elsewhere and what waits for them.

use planner::cluster::{LOSS_PACE_MS, Moment, verdicts};
use schemas::records::{CordonMode, Verdict};
use schemas::units::Span;
use serde_json::json;

use crate::support::{Cluster, name};

const MINUTE: u64 = 60_000;

/// Time goes on, with a store that answers all along.
fn wait(cluster: &mut Cluster, millis: u64) {
    let Moment { now_ms, healthy_ms } = cluster.moment;
    cluster.moment = Moment {
        now_ms: now_ms + millis,
        healthy_ms: Some(healthy_ms.unwrap_or(0) + millis),
    };
    cluster.judge();
}

fn verdict(cluster: &Cluster, node: &str) -> (Verdict, Option<Span>) {
    let stored = cluster.snapshot.nodes[&name(node)].verdict.as_ref().expect("a verdict");
    let record = stored.value.as_ref().expect("readable");
    (record.verdict, record.away)
}

fn count(cluster: &Cluster, of: Verdict) -> usize {
    let nodes = cluster.snapshot.nodes.keys();
    nodes.filter(|node| verdict(cluster, node.as_str()).0 == of).count()
}

/// So many nodes with a replica of `web` each, an hour after the start.
fn running(nodes: usize) -> Cluster {
    let mut cluster = Cluster::of(nodes);
    cluster.apply("web", json!({ "replicas": nodes }));
    cluster.settle();
    wait(&mut cluster, 60 * MINUTE);
    cluster
}

/// Nodes go away, and their agents with them.
fn leave(cluster: &mut Cluster, nodes: impl IntoIterator<Item = usize>) {
    for at in nodes {
        cluster.session(&format!("n{at}"), false);
    }
    cluster.judge();
}

#[test]
fn each_service_waits_as_long_as_it_says_and_data_as_long_as_it_takes() {
    let mut cluster = Cluster::of(2);
    let on = |mut spec: serde_json::Value| {
        spec["placement"] = json!({ "preferred": [{ "weight": 100, "expression": { "key": "reeve.node", "operator": "In", "values": ["n2"] } }] });
        spec
    };
    let data = json!([{ "type": "volume", "source": "data", "target": "/data" }]);
    cluster.apply("cache", on(json!({ "replaceAfter": "10s" })));
    cluster.apply("db", on(json!({ "container": { "mounts": data } })));
    cluster.apply(
        "dbx",
        on(json!({ "container": { "mounts": data }, "replaceAfter": "5m" })),
    );
    cluster.apply("web", on(json!({})));
    cluster.settle();
    wait(&mut cluster, 60 * MINUTE);
    let before = cluster.picture();
    assert_eq!(before, "cache.1 on n2, db.1 on n2, dbx.1 on n2, web.1 on n2");
    leave(&mut cluster, [2]);
    wait(&mut cluster, 9_999);
    cluster.settle();
    assert_eq!(
        (verdict(&cluster, "n2").0, cluster.picture()),
        (Verdict::Unreachable, before)
    );
    for (more, moved) in [
        (
            1,
            "cache.1 absent on n2, cache.1 on n1, db.1 on n2, dbx.1 on n2, web.1 on n2",
        ),
        (
            50_000,
            "cache.1 absent on n2, cache.1 on n1, db.1 on n2, dbx.1 on n2, web.1 absent on n2, web.1 on n1",
        ),
        (
            4 * MINUTE,
            "cache.1 absent on n2, cache.1 on n1, db.1 on n2, dbx.1 absent on n2, dbx.1 on n1, web.1 absent on n2, web.1 on n1",
        ),
        (
            24 * 60 * MINUTE,
            "cache.1 absent on n2, cache.1 on n1, db.1 on n2, dbx.1 absent on n2, dbx.1 on n1, web.1 absent on n2, web.1 on n1",
        ),
    ] {
        // The leader is told when to look.
        let due = verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment).look_again_ms;
        assert!(due.is_none_or(|due| due == more), "{due:?}, {more}");
        wait(&mut cluster, more);
        cluster.settle();
        assert_eq!(cluster.picture(), moved);
    }
    // It is back: what was replaced goes, what was waited for runs on.
    cluster.session("n2", true);
    cluster.settle();
    assert_eq!(cluster.picture(), "cache.1 on n1, db.1 on n2, dbx.1 on n1, web.1 on n1");
    assert_eq!(verdict(&cluster, "n2"), (Verdict::Ready, None));
}

#[test]
fn time_without_the_store_does_not_count() {
    let mut cluster = running(3);
    leave(&mut cluster, [3]);
    wait(&mut cluster, MINUTE - 1);
    cluster.moment.healthy_ms = None;
    for healthy in [None, Some(0), Some(1), Some(MINUTE - 1)] {
        cluster.moment = Moment {
            now_ms: cluster.moment.now_ms + MINUTE,
            healthy_ms: healthy,
        };
        cluster.judge();
        assert_eq!(verdict(&cluster, "n3").0, Verdict::Unreachable, "{healthy:?}");
    }
    wait(&mut cluster, 1);
    assert_eq!(verdict(&cluster, "n3"), (Verdict::Lost, Some(Span { millis: MINUTE })));
    // A new leader knows nothing of the time before it, and takes back nothing that was decided.
    leave(&mut cluster, [2]);
    cluster.absences = Default::default();
    wait(&mut cluster, 0);
    wait(&mut cluster, MINUTE - 1);
    let both = |cluster: &Cluster| (verdict(cluster, "n2").0, verdict(cluster, "n3").0);
    assert_eq!(both(&cluster), (Verdict::Unreachable, Verdict::Lost));
    wait(&mut cluster, 1);
    assert_eq!(both(&cluster), (Verdict::Lost, Verdict::Lost));
}

#[test]
fn ten_of_thirty_are_lost_one_after_the_other_and_twenty_are_held() {
    let mut cluster = running(30);
    leave(&mut cluster, 1..=10);
    wait(&mut cluster, MINUTE);
    for lost in 1..=10 {
        assert_eq!(count(&cluster, Verdict::Lost), lost);
        let due = verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment).look_again_ms;
        assert_eq!(due, (lost < 10).then_some(LOSS_PACE_MS));
        wait(&mut cluster, LOSS_PACE_MS - 1);
        assert_eq!(count(&cluster, Verdict::Lost), lost);
        wait(&mut cluster, 1);
    }
    cluster.settle();
    assert_eq!(cluster.status("web").counts.ready, 30);

    let mut cluster = running(30);
    leave(&mut cluster, 1..=20);
    assert!(verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment).mass_loss);
    wait(&mut cluster, 24 * 60 * MINUTE);
    assert_eq!(
        (count(&cluster, Verdict::Lost), count(&cluster, Verdict::Unreachable)),
        (0, 20)
    );
    // Some come back: the others are lost at their pace.
    for at in 1..=5 {
        cluster.session(&format!("n{at}"), true);
    }
    wait(&mut cluster, 0);
    assert!(!verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment).mass_loss);
    assert_eq!(count(&cluster, Verdict::Lost), 1);
    wait(&mut cluster, LOSS_PACE_MS);
    assert_eq!(count(&cluster, Verdict::Lost), 2);
}

#[test]
fn a_persons_word_counts_at_once_for_as_long_as_the_node_is_away() {
    let mut cluster = running(3);
    leave(&mut cluster, [2, 3]);
    wait(&mut cluster, 60 * MINUTE);
    assert_eq!(count(&cluster, Verdict::Lost), 0);
    cluster.confirm_lost("n3");
    wait(&mut cluster, 0);
    assert_eq!(verdict(&cluster, "n3"), (Verdict::Lost, None));
    cluster.settle();
    assert_eq!(
        cluster.picture(),
        "web.1 on n1, web.2 on n2, web.3 absent on n3, web.3 on n1"
    );
    // It says nothing about the other one.
    wait(&mut cluster, 60 * MINUTE);
    assert_eq!(verdict(&cluster, "n2").0, Verdict::Unreachable);
    // It is back, and away again: the word was about the time before. Until it is taken back nothing new is placed there.
    cluster.session("n3", true);
    cluster.settle();
    assert_eq!(verdict(&cluster, "n3").0, Verdict::Ready);
    cluster.apply("web", json!({ "replicas": 6 }));
    cluster.settle();
    assert!(!cluster.picture().contains("on n3"), "{}", cluster.picture());
    leave(&mut cluster, [3]);
    wait(&mut cluster, MINUTE - 1);
    assert_eq!(verdict(&cluster, "n3").0, Verdict::Unreachable);
    // Nor is it about a node that is there.
    cluster.session("n3", true);
    wait(&mut cluster, 0);
    cluster.confirm_lost("n3");
    wait(&mut cluster, MINUTE);
    assert_eq!(verdict(&cluster, "n3").0, Verdict::Ready);
}

#[test]
fn what_nobody_else_can_take_and_what_runs_everywhere_stays() {
    let mut cluster = Cluster::of(2);
    let only = json!({ "required": [{ "key": "reeve.node", "operator": "In", "values": ["n2"] }] });
    cluster.apply("all", json!({ "mode": "global" }));
    cluster.apply("here", json!({ "placement": only }));
    cluster.settle();
    let before = cluster.picture();
    leave(&mut cluster, [2]);
    for _ in 0..3 {
        wait(&mut cluster, 60 * MINUTE);
        cluster.settle();
        assert_eq!(cluster.picture(), before);
    }
    assert_eq!(verdict(&cluster, "n2").0, Verdict::Lost);
    assert!(!cluster.status("here").refusals.is_empty(), "it is told why");
    let assigned = cluster.snapshot.nodes[&name("n2")]
        .assignment
        .clone()
        .expect("assigned")
        .mod_revision;
    cluster.session("n2", true);
    cluster.settle();
    let now = cluster.snapshot.nodes[&name("n2")]
        .assignment
        .clone()
        .expect("assigned")
        .mod_revision;
    assert_eq!((cluster.picture(), now), (before, assigned), "nothing was touched");
}

#[test]
fn a_lost_node_asks_no_breaker() {
    let mut cluster = Cluster::of(2);
    cluster.apply("web", json!({ "replicas": 60 }));
    cluster.settle();
    wait(&mut cluster, MINUTE);
    leave(&mut cluster, [2]);
    wait(&mut cluster, MINUTE);
    let plan = cluster.passed();
    assert_eq!(
        (plan.breaker.held, plan.breaker.spent, plan.removals.len()),
        (None, 0, 30)
    );
    cluster.settle();
    assert_eq!(cluster.status("web").counts.ready, 60);
}

#[test]
fn a_node_alone_waits_for_itself() {
    let mut cluster = running(1);
    leave(&mut cluster, [1]);
    let out = verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment);
    assert!(!out.mass_loss && out.look_again_ms.is_none());
    wait(&mut cluster, 60 * MINUTE);
    assert_eq!(verdict(&cluster, "n1").0, Verdict::Unreachable);
    // One that is drained is lost as any other.
    let mut cluster = running(2);
    cluster.cordon("n2", Some(CordonMode::Cordon));
    leave(&mut cluster, [2]);
    wait(&mut cluster, MINUTE);
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 absent on n2, web.2 on n1");
}

#[test]
fn a_node_that_comes_and_goes_keeps_what_it_has_and_gets_nothing_new() {
    let mut cluster = running(2);
    let unsteady = |cluster: &Cluster| {
        let stored = cluster.snapshot.nodes[&name("n2")].verdict.as_ref().expect("a verdict");
        stored.value.as_ref().expect("readable").unsteady
    };
    for round in 0..3 {
        assert!(!unsteady(&cluster), "{round}");
        leave(&mut cluster, [2]);
        wait(&mut cluster, 20_000);
        cluster.session("n2", true);
        wait(&mut cluster, 0);
        cluster.settle();
        wait(&mut cluster, 20_000);
    }
    assert!(unsteady(&cluster));
    cluster.apply("web", json!({ "replicas": 4 }));
    cluster.settle();
    assert_eq!(cluster.picture(), "web.1 on n1, web.2 on n2, web.3 on n1, web.4 on n1");
    assert_eq!(cluster.status("web").counts.ready, 4);
    // It has been there for long enough when the first of the three is ten minutes ago.
    let due = verdicts(&cluster.snapshot, &mut cluster.absences, cluster.moment).look_again_ms;
    assert_eq!(due, Some(10 * MINUTE - 120_000));
    wait(&mut cluster, 10 * MINUTE - 120_001);
    assert!(unsteady(&cluster));
    wait(&mut cluster, 1);
    assert!(!unsteady(&cluster));
    cluster.apply("web", json!({ "replicas": 5 }));
    cluster.settle();
    assert!(cluster.picture().ends_with("web.5 on n2"), "{}", cluster.picture());
}
