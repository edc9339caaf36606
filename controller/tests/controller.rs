//! Whole controllers on a store in memory, with agents that obey: what reaches the store, and above all what does not.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use runtime::MemoryStore;
use runtime::memory::WriteFault;
use schemas::records::{
    Ack, AssignedState, Breaker, ConditionStatus, ConditionType, Cordon, CordonMode, Digest, Record, SchemaVersion,
};
use support::*;

fn condition(store: &MemoryStore, name: &str, kind: ConditionType) -> Option<(ConditionStatus, String)> {
    let found = status(store, name)?
        .conditions
        .into_iter()
        .find(|condition| condition.kind == kind)?;
    Some((found.status, found.reason))
}

#[tokio::test]
async fn a_service_becomes_ready() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let (one, two) = (Agent::start(&store, "n1").await, Agent::start(&store, "n2").await);
    put_service(&store, "hello", 4, "hello:1");
    let status = ready(&store, "hello", 4).await;
    assert_eq!((one.runs().len(), two.runs().len()), (2, 2));
    assert!(
        status.conditions.iter().all(|condition| condition.since.is_some()),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_change_goes_through_and_a_deletion_takes_everything_away() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 3, "hello:1");
    ready(&store, "hello", 3).await;
    put_service(&store, "hello", 3, "hello:2");
    ready(&store, "hello", 3).await;
    let numbers: BTreeSet<u64> = agent
        .running
        .lock()
        .expect("no panic")
        .values()
        .map(|instance| instance.n)
        .collect();
    assert_eq!(numbers, BTreeSet::from([2]));
    assert_eq!(
        controller.passes("conflict").await,
        0.0,
        "nobody else writes what it writes"
    );
    assert!(store.delete(desired("hello")));
    until(&store, "all of it is gone", || agent.runs().is_empty().then_some(())).await;
    until(&store, "its status is gone", || {
        status(&store, "hello").is_none().then_some(())
    })
    .await;
    // Put again it is a new life: a new uid, and numbers go on.
    put_service(&store, "hello", 1, "hello:1");
    let status = ready(&store, "hello", 1).await;
    assert!(status.generation.is_some_and(|n| n > 3), "{status:?}");
}

#[tokio::test]
async fn an_invalid_put_keeps_the_last_good_spec_in_force() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    let before = assignment(&store, "n1");
    store.put(
        desired("hello"),
        "apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: hello\nspec:\n  replicas: two\n",
    );
    until(&store, "the status says that it is invalid", || {
        let accepted = condition(&store, "hello", ConditionType::Accepted)?;
        let problems = status(&store, "hello")?.problems;
        (accepted.0 == ConditionStatus::False && problems.iter().any(|p| (p.line, p.column) == (6, 13))).then_some(())
    })
    .await;
    assert_eq!(assignment(&store, "n1"), before);
    assert_eq!(agent.runs().len(), 2);
    put_service(&store, "hello", 2, "hello:1");
    until(&store, "the next valid put clears it", || {
        (condition(&store, "hello", ConditionType::Accepted)?.0 == ConditionStatus::True).then_some(())
    })
    .await;
}

#[tokio::test]
async fn garbage_under_every_class_of_keys_stops_nothing() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    let digest = "a".repeat(64);
    for key in [
        "desired/default/service/broken",
        "desired/default/gadget/x",
        "desired/nonsense",
        "status/default/service/other",
        "status/default/service/hello",
        "accepted/default/service/other/1",
        "assignments/n7",
        "verdicts/n1",
        "cordons/n1",
        "nodes/n8",
        "nodes/n1",
        "reports/n9",
        "sessions/n6",
        "breaker",
        &format!("acks/{digest}"),
        "acks/x",
        "junk",
    ] {
        for garbage in [
            b"".as_slice(),
            b"\xff\xfe\x00",
            b"[[[[",
            b"{}",
            br#"{"schemaVersion":99}"#,
        ] {
            store.put(format!("/reeve/{key}"), garbage.to_vec());
        }
    }
    // Agents that are really there say their facts anew.
    let restarted = Agent::start(&store, "n2").await;
    put_service(&store, "api", 2, "api:1");
    ready(&store, "api", 2).await;
    assert_eq!(agent.runs().iter().filter(|name| name.starts_with("hello")).count(), 2);
    assert_eq!(
        restarted.runs().len(),
        2,
        "n1's facts are garbage: nothing new is placed there"
    );
    assert_eq!(controller.passes("panicked").await, 0.0);
    assert!(
        controller
            .metric("reeve_foreign_keys")
            .await
            .is_some_and(|count| count >= 3.0)
    );
    assert!(
        controller
            .metric("reeve_unreadable_keys")
            .await
            .is_some_and(|count| count >= 5.0)
    );
}

#[tokio::test]
async fn a_steady_state_writes_nothing() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let _agents = [Agent::start(&store, "n1").await, Agent::start(&store, "n2").await];
    put_service(&store, "hello", 3, "hello:1");
    store.put(desired("broken"), "nonsense");
    store.put("/reeve/desired/default/gadget/x", "nonsense");
    ready(&store, "hello", 3).await;
    controller.rests_after(&store).await;
    let before = store.commits();
    for _ in 0..20 {
        controller.rests_after(&store).await;
    }
    assert_eq!(store.commits(), before);
}

#[tokio::test]
async fn another_controller_takes_over_and_changes_nothing() {
    let store = store();
    let first = Controller::start(store.clone(), "one").await;
    let _agents = [Agent::start(&store, "n1").await, Agent::start(&store, "n2").await];
    put_service(&store, "hello", 3, "hello:1");
    ready(&store, "hello", 3).await;
    first.rests_after(&store).await;
    let second = Controller::start(store.clone(), "two").await;
    assert_eq!(second.metric("reeve_controller_leader").await, Some(0.0));
    assert_eq!(
        second
            .metric("reeve_service_desired{namespace=\"default\",service=\"hello\"}")
            .await,
        None
    );
    let (placed, one, two) = (
        placements(&store),
        store.peek("/reeve/assignments/n1"),
        store.peek("/reeve/assignments/n2"),
    );
    let election = store.peek("/reeve/election/controller").expect("someone leads");
    first.kill();
    store.expire_lease(election.lease);
    until(&store, "the other leads", || {
        store
            .peek("/reeve/election/controller")
            .filter(|kv| kv.create_revision != election.create_revision)
    })
    .await;
    second.rests_after(&store).await;
    assert_eq!(second.metric("reeve_controller_leader").await, Some(1.0));
    assert_eq!(
        (
            placements(&store),
            store.peek("/reeve/assignments/n1"),
            store.peek("/reeve/assignments/n2")
        ),
        (placed, one, two)
    );
    put_service(&store, "hello", 4, "hello:1");
    ready(&store, "hello", 4).await;
}

#[tokio::test]
async fn a_leader_that_ends_in_good_order_is_followed_at_once() {
    let store = store();
    let first = Controller::start(store.clone(), "one").await;
    let _agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 1, "hello:1");
    ready(&store, "hello", 1).await;
    let second = Controller::start(store.clone(), "two").await;
    first.stop().await.expect("a good end");
    // No lease is let run out here: only the resignation can make room.
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    second.stop().await.expect("a good end");
    assert!(store.peek("/reeve/election/controller").is_none());
}

#[tokio::test]
async fn a_wiped_store_removes_nothing_and_is_not_written() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    store.delete_prefix("/reeve/");
    let held = || async { controller.get("/readyz").await };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while held().await.0 == 200 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "it goes on as if nothing had happened"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(agent.runs().len(), 2);
    let left: Vec<String> = store
        .dump()
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect();
    assert!(
        left.iter()
            .all(|key| key == "/reeve/election/controller" || key.starts_with("/reeve/sessions/")),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_store_that_has_gone_back_is_held_until_accepted() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    let backup = store.checkpoint();
    put_service(&store, "later", 2, "later:1");
    ready(&store, "later", 2).await;
    controller.rests_after(&store).await;
    store.restore(&backup);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while controller.metric("reeve_controller_held").await != Some(1.0) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the store's going back goes unnoticed"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(
        agent.runs().len(),
        4,
        "what the older store does not know keeps running"
    );
    store.put("/reeve/cluster", marker(1).encode());
    put_service(&store, "hello", 3, "hello:1");
    until(&store, "the accepted store is acted on", || {
        (status(&store, "hello")?.counts.desired == 3).then_some(())
    })
    .await;
    assert_eq!(
        agent.runs().iter().filter(|name| name.starts_with("later")).count(),
        2,
        "absence is no order"
    );
}

#[tokio::test]
async fn the_breaker_holds_a_mass_deletion_until_a_person_acknowledges_it() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    for n in 0..30 {
        put_service(&store, &format!("s{n}"), 1, "hello:1");
    }
    ready(&store, "s29", 1).await;
    until(&store, "all run", || (agent.runs().len() == 30).then_some(())).await;
    controller.rests_after(&store).await;
    store.delete_prefix("/reeve/desired/");
    let held = until(&store, "the breaker holds", || {
        let breaker = Breaker::decode(&store.peek("/reeve/breaker")?.value).ok()?;
        breaker.held
    })
    .await;
    assert_eq!(held.count, 30);
    controller.rests_after(&store).await;
    assert_eq!(agent.runs().len(), 30, "nothing is removed");
    assert_eq!(controller.metric("reeve_breaker_held").await, Some(30.0));
    let ack = Ack {
        schema_version: SchemaVersion::default(),
        digest: held.digest.clone(),
        count: held.count,
        by: "me@here".to_owned(),
    };
    store.put(format!("/reeve/acks/{}", held.digest), ack.encode());
    until(&store, "all is gone", || agent.runs().is_empty().then_some(())).await;
    until(&store, "the ack is used up", || {
        store
            .peek(format!("/reeve/acks/{}", held.digest))
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_leader_counts_what_the_old_one_has_removed() {
    let store = store();
    let first = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "many", 40, "hello:1");
    ready(&store, "many", 40).await;
    put_service(&store, "many", 25, "hello:1");
    ready(&store, "many", 25).await;
    let breaker = Breaker::decode(&store.peek("/reeve/breaker").expect("it is there").value).expect("what we wrote");
    assert_eq!((breaker.spent, breaker.held), (15, None));
    first.stop().await.expect("a good end");
    let second = Controller::start(store.clone(), "two").await;
    put_service(&store, "many", 15, "hello:1");
    until(&store, "the breaker holds", || {
        Breaker::decode(&store.peek("/reeve/breaker")?.value).ok()?.held
    })
    .await;
    second.rests_after(&store).await;
    assert_eq!(agent.runs().len(), 25);
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(
            tokio::net::TcpStream::connect(controller.http)
                .await
                .expect("it listens"),
        );
    }
    let asked = tokio::time::Instant::now();
    assert_eq!(controller.get("/healthz").await.0, 200);
    assert!(asked.elapsed() < std::time::Duration::from_secs(15));
    assert!(asked.elapsed() > std::time::Duration::from_secs(5), "there is no limit");
}

#[tokio::test]
async fn an_ack_of_other_removals_opens_nothing() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "big", 40, "hello:1");
    ready(&store, "big", 40).await;
    let digest = Digest::of(b"something else");
    let ack = Ack {
        schema_version: SchemaVersion::default(),
        digest: digest.clone(),
        count: 40,
        by: "me@here".to_owned(),
    };
    store.delete_prefix("/reeve/desired/");
    store.put(format!("/reeve/acks/{digest}"), ack.encode());
    until(&store, "the breaker holds", || {
        Breaker::decode(&store.peek("/reeve/breaker")?.value).ok()?.held
    })
    .await;
    controller.rests_after(&store).await;
    assert_eq!(agent.runs().len(), 40);
}

#[tokio::test]
async fn an_unreachable_node_keeps_its_instances() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let first = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    let _second = Agent::start(&store, "n2").await;
    let before = placements(&store);
    let running = Arc::clone(&first.running);
    first.die(&store);
    until(&store, "the loss is seen", || {
        (status(&store, "hello")?.counts.ready == 0).then_some(())
    })
    .await;
    controller.rests_after(&store).await;
    assert_eq!(placements(&store), before);
    let _back = Agent::start_with(&store, "n1", running).await;
    ready(&store, "hello", 2).await;
    assert_eq!(placements(&store), before);
}

#[tokio::test]
async fn deleted_assignments_are_written_anew_and_nothing_moves() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agents = [Agent::start(&store, "n1").await, Agent::start(&store, "n2").await];
    put_service(&store, "hello", 4, "hello:1");
    ready(&store, "hello", 4).await;
    controller.rests_after(&store).await;
    let before = placements(&store);
    store.delete_prefix("/reeve/assignments/");
    until(&store, "they are back", || (placements(&store) == before).then_some(())).await;
    controller.rests_after(&store).await;
    assert_eq!((agents[0].runs().len(), agents[1].runs().len()), (2, 2));
}

#[tokio::test]
async fn lost_answers_and_refused_writes_are_made_good() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 1, "hello:1");
    ready(&store, "hello", 1).await;
    for (replicas, fault) in [
        WriteFault::AnswerLost,
        WriteFault::RequestLost,
        WriteFault::Refused,
        WriteFault::Late,
    ]
    .into_iter()
    .enumerate()
    {
        let replicas = u32::try_from(replicas).expect("small") + 2;
        for _ in 0..3 {
            store.fail_next_write(fault);
        }
        put_service(&store, "hello", replicas, "hello:1");
        until(&store, "it runs", || {
            (agent.runs().len() == replicas as usize).then_some(())
        })
        .await;
        store.deliver_late_writes();
    }
    until(&store, "the count is right", || {
        (placements(&store).len() == 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_store_that_was_away_is_followed_again() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 1, "hello:1");
    ready(&store, "hello", 1).await;
    store.set_down(true);
    put_service(&store, "hello", 2, "hello:1");
    tokio::task::yield_now().await;
    store.set_down(false);
    until(&store, "it is followed again", || {
        (agent.runs().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_store_without_a_cluster_is_refused_with_the_remedy() {
    let store = MemoryStore::new();
    let options = controller::ControllerOptions::new(store.clone(), schemas::keys::Root::default(), "one");
    let error = controller::run(options, runtime::Shutdown::new())
        .await
        .expect_err("there is no cluster");
    assert!(
        error.remedy().is_some_and(|text| text.contains("reeve init")),
        "{error:?}"
    );
    assert!(store.dump().is_empty());
}

#[tokio::test]
async fn the_controller_of_a_cluster_that_moves_away_ends() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let mut moved = marker(0);
    moved.moved = Some(schemas::records::Moved {
        to: vec!["http://new:2379".to_owned()],
    });
    store.put("/reeve/cluster", moved.encode());
    let error = controller.ended().await.expect_err("it must not go on");
    assert!(
        error.remedy().is_some_and(|text| text.contains("http://new:2379")),
        "{error:?}"
    );
}

#[tokio::test]
async fn it_serves_metrics_health_and_discovery() {
    let store = store();
    let leader = Controller::start(store.clone(), "one").await;
    let _agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    leader.rests_after(&store).await;
    for (series, value) in [
        ("reeve_controller_leader", 1.0),
        ("reeve_service_desired{namespace=\"default\",service=\"hello\"}", 2.0),
        ("reeve_service_assigned{namespace=\"default\",service=\"hello\"}", 2.0),
        ("reeve_service_running{namespace=\"default\",service=\"hello\"}", 2.0),
        ("reeve_service_ready{namespace=\"default\",service=\"hello\"}", 2.0),
        ("reeve_service_updated{namespace=\"default\",service=\"hello\"}", 2.0),
        ("reeve_node_ready{node=\"n1\"}", 1.0),
        ("reeve_node_allocatable_cpu_cores{node=\"n1\"}", 64.0),
        ("reeve_node_assignment_lag_seconds{node=\"n1\"}", 0.0),
        ("reeve_store_up", 1.0),
        ("reeve_watch_lists", 1.0),
        ("reeve_breaker_held", 0.0),
    ] {
        assert_eq!(leader.metric(series).await, Some(value), "{series}");
    }
    assert_eq!(leader.get("/healthz").await.0, 200);
    assert_eq!(leader.get("/readyz").await.0, 200);
    assert_eq!(leader.get("/nothing").await.0, 404);
    assert_eq!(http(leader.http, "POST", "/metrics").await.0, 405);

    let standby = Controller::start(store.clone(), "two").await;
    // Any of them knows all.
    until(&store, "both controllers are known", || {
        let known = store
            .dump()
            .into_iter()
            .filter(|kv| kv.key.starts_with(b"/reeve/controllers/"));
        (known.count() == 2).then_some(())
    })
    .await;
    leader.rests_after(&store).await;
    let (code, text) = leader.get("/sd").await;
    let targets: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let found: BTreeSet<(String, String)> = targets
        .as_array()
        .expect("a list")
        .iter()
        .map(|target| {
            (
                target["labels"]["component"].to_string(),
                target["targets"][0].to_string(),
            )
        })
        .collect();
    let wanted = [
        ("\"controller\"".to_owned(), format!("\"{}\"", leader.http)),
        ("\"controller\"".to_owned(), format!("\"{}\"", standby.http)),
        ("\"agent\"".to_owned(), "\"10.0.0.1:10002\"".to_owned()),
    ];
    assert_eq!((code, found), (200, BTreeSet::from(wanted)));
    assert_eq!(standby.get("/readyz").await.0, 200);
    standby.stop().await.expect("a good end");
    until(&store, "the one that ended is known no more", || {
        let known = store
            .dump()
            .into_iter()
            .filter(|kv| kv.key.starts_with(b"/reeve/controllers/"));
        (known.count() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_are_leased_and_for_people() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    agent.die(&store);
    let event = until(&store, "the loss of a node is told", || {
        let events = store
            .dump()
            .into_iter()
            .filter(|kv| kv.key.starts_with(b"/reeve/events/_/"));
        events.into_iter().find_map(|kv| {
            let event = schemas::records::Event::decode(&kv.value).ok()?;
            (event.reason == "NodeUnreachable").then_some((kv.lease, event))
        })
    })
    .await;
    assert!(event.0 != 0);
    assert_eq!(
        (event.1.about.as_str(), event.1.by.as_str()),
        ("_/node/n1", "controller")
    );
}

#[tokio::test]
async fn nothing_is_absent_that_was_not_asked_to_be() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let _agents = [Agent::start(&store, "n1").await, Agent::start(&store, "n2").await];
    put_service(&store, "hello", 6, "hello:1");
    ready(&store, "hello", 6).await;
    for prefix in [
        "/reeve/nodes/",
        "/reeve/reports/",
        "/reeve/status/",
        "/reeve/verdicts/",
        "/reeve/assignments/",
    ] {
        store.delete_prefix(prefix);
        controller.rests_after(&store).await;
        for node in ["n1", "n2"] {
            let instances = assignment(&store, node)
                .map(|assignment| assignment.instances)
                .unwrap_or_default();
            assert!(
                instances
                    .iter()
                    .all(|instance| instance.state == AssignedState::Present),
                "{prefix}: {instances:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_store_that_lost_what_only_the_controller_knows_is_held_too() {
    let store = store();
    let controller = Controller::start(store.clone(), "one").await;
    let agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    controller.rests_after(&store).await;
    // The controller's answer to this is in force, and no watch tells of it before the backup takes its place.
    put_service(&store, "hello", 3, "hello:1");
    let backup = store.checkpoint();
    store.fail_next_write(WriteFault::Unwatched);
    until(&store, "the controller has written", || {
        (store.revision() > backup_revision(&store, "hello")).then_some(())
    })
    .await;
    store.restore(&backup);
    until_metric(&controller, "reeve_controller_held", 1.0).await;
    assert_eq!(agent.runs().len(), 2);
    store.put("/reeve/cluster", marker(1).encode());
    until(&store, "the accepted store is acted on", || {
        (status(&store, "hello")?.counts.ready == 3).then_some(())
    })
    .await;
}

fn backup_revision(store: &MemoryStore, name: &str) -> i64 {
    store.peek(desired(name)).expect("it was put").mod_revision
}

async fn until_metric(controller: &Controller, series: &str, value: f64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while controller.metric(series).await != Some(value) {
        assert!(tokio::time::Instant::now() < deadline, "{series} never is {value}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_node_whose_verdict_changes_all_the_time_holds_nobody_up() {
    let store = store();
    let _controller = Controller::start(store.clone(), "one").await;
    let _agent = Agent::start(&store, "n1").await;
    put_service(&store, "hello", 1, "hello:1");
    ready(&store, "hello", 1).await;
    // A report that nobody can read makes it a node that cannot be forgotten.
    let nodes: Vec<String> = (0..40).map(|n| format!("flap{n}")).collect();
    for node in &nodes {
        store.put(format!("/reeve/reports/{node}"), "nonsense");
    }
    let retire = Cordon {
        schema_version: SchemaVersion::default(),
        lost: false,
        mode: CordonMode::Retire,
        by: "me@here".to_owned(),
        note: None,
    };
    let flapping = tokio::spawn({
        let store = store.clone();
        async move {
            // Drawn, so that no two moments look alike.
            let mut drawn = 1_u64;
            loop {
                drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let node = &nodes[(drawn >> 33) as usize % nodes.len()];
                let key = format!("/reeve/cordons/{node}");
                match store.peek(&key) {
                    Some(_) => drop(store.delete(&key)),
                    None => drop(store.put(&key, retire.encode())),
                }
                tokio::task::yield_now().await;
            }
        }
    });
    until(&store, "the verdicts follow", || {
        (store.peek("/reeve/verdicts/flap11")?.version > 5).then_some(())
    })
    .await;
    put_service(&store, "hello", 2, "hello:1");
    ready(&store, "hello", 2).await;
    flapping.abort();
}

#[tokio::test]
async fn a_controller_that_cannot_reach_its_store_says_so_over_http() {
    let store = store();
    store.set_down(true);
    let shutdown = runtime::Shutdown::new();
    let address = free_address();
    let mut options = controller::ControllerOptions::new(store.clone(), schemas::keys::Root::default(), "one");
    options.http_addr = Some(address);
    let run = tokio::spawn(controller::run(options, shutdown.clone()));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "nothing listens");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (code, text) = http(address, "GET", "/readyz").await;
    assert!(
        code == 503 && text.contains("does not answer") && text.contains("--etcd"),
        "{text}"
    );
    assert_eq!(
        http(address, "GET", "/healthz").await.0,
        200,
        "no restart would mend it"
    );
    store.set_down(false);
    while http(address, "GET", "/readyz").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "it never gets ready");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    until(&store, "it leads", || store.peek("/reeve/election/controller")).await;
    store.put("/reeve/cluster", "nonsense");
    while http(address, "GET", "/readyz").await.0 == 200 {
        assert!(tokio::time::Instant::now() < deadline, "a held store is no ready one");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (_, text) = http(address, "GET", "/readyz").await;
    assert!(
        text.contains("StoreRegressed") && text.contains("marker") && text.contains("backup"),
        "the reason and the remedy: {text}"
    );
    shutdown.drain();
    run.await.expect("no panic").expect("a good end");
}

fn free_address() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("an address")
}
