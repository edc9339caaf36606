//! Sessions on the in-memory store under tokio's paused clock.

use super::*;
use crate::memory::MemoryStore;

const KEY: &str = "/reeve/sessions/n1";

fn options(machine: &str) -> SessionOptions {
    SessionOptions {
        key: KEY.as_bytes().to_vec(),
        machine_id: machine.to_owned(),
        value: Bytes::from(format!(r#"{{"machineId":"{machine}"}}"#)),
        ttl: Duration::from_secs(15),
    }
}

async fn try_it(store: &MemoryStore, machine: &str, record: Option<SessionRecord>) -> Result<Session, SessionError> {
    open(store, &options(machine), record, &Shutdown::new()).await
}

#[tokio::test(start_paused = true)]
async fn a_session_outlasts_outages_and_is_lost_only_by_the_stores_word() {
    let store = MemoryStore::new();
    let session = try_it(&store, "m1", None).await.expect("opens");
    store.set_down(true);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!session.is_lost());
    store.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!session.is_lost());
    store.expire_lease(session.lease());
    tokio::time::timeout(Duration::from_secs(10), session.lost().lost())
        .await
        .expect("it notices");
}

#[tokio::test(start_paused = true)]
async fn a_twin_with_the_same_machine_id_is_refused_while_the_first_lives() {
    let store = MemoryStore::new();
    let first = try_it(&store, "m1", None).await.expect("opens");
    let refused = try_it(&store, "m1", None).await.expect_err("it is held");
    assert!(matches!(&refused, SessionError::NodeTaken { by, same_machine: true, key: _ } if by == "m1"));
    assert!(refused.remedy().is_some_and(|r| r.contains("clone")));
    assert!(!first.is_lost());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_record_waits_for_its_own_lease_to_end() {
    let store = MemoryStore::new();
    let first = try_it(&store, "m1", None).await.expect("opens");
    let (old, lease) = (first.create_revision(), first.lease());
    drop(first);
    let opening = tokio::spawn({
        let store = store.clone();
        async move { try_it(&store, "m1", None).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!opening.is_finished());
    store.expire_lease(lease);
    let second = opening.await.expect("no panic").expect("opens");
    assert!(second.create_revision() > old);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_life_resumes_nothing() {
    let store = MemoryStore::new();
    let first = try_it(&store, "m1", None).await.expect("opens");
    let stale = SessionRecord {
        lease: first.lease(),
        create_revision: first.create_revision() - 1,
    };
    assert!(matches!(
        try_it(&store, "m1", Some(stale)).await,
        Err(SessionError::NodeTaken { .. })
    ));
    // A key that someone put by hand, without a lease, is nobody's: it is removed, and its life is not gone on with.
    store.delete(KEY);
    store.put(KEY, "by hand");
    let unleased = SessionRecord {
        lease: 0,
        create_revision: store.revision(),
    };
    let opened = try_it(&store, "m1", Some(unleased)).await.expect("opens");
    assert!(opened.create_revision() > unleased.create_revision && opened.lease() != 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_store_is_told_at_once() {
    let store = MemoryStore::new();
    store.set_down(true);
    let failed = try_it(&store, "m1", None).await.expect_err("no store");
    assert!(matches!(failed, SessionError::Store { source, .. } if source.is_outage()));
}

#[tokio::test(start_paused = true)]
async fn another_machine_is_refused_without_waiting() {
    let store = MemoryStore::new();
    let first = try_it(&store, "m1", None).await.expect("opens");
    let begun = Instant::now();
    let refused = try_it(&store, "m2", None).await.expect_err("it is held");
    assert!(matches!(&refused, SessionError::NodeTaken { by, same_machine: false, key: _ } if by == "m1"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!first.is_lost());
}

#[tokio::test(start_paused = true)]
async fn what_goes_by_a_session_ends_before_it_whoever_answers_late_or_not_at_all() {
    let store = MemoryStore::new();
    let before = Instant::now();
    let session = try_it(&store, "m1", None).await.expect("opens");
    let good = session.good_until();
    assert!(good.borrow().since(before) <= Duration::from_secs(15));
    // It is renewed, each time for as long as it lives after that was asked for.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let renewed = *good.borrow();
    assert!(renewed > Instant::now() && renewed.since(Instant::now()) <= Duration::from_secs(15));
    store.set_down(true);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(*good.borrow(), renewed);
    store.set_down(false);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(*good.borrow() > Instant::now());
    // Resumed by who would have it live longer, it lives as long as it was opened for.
    let record = session.record();
    drop(session);
    let longer = SessionOptions {
        ttl: Duration::from_secs(60),
        ..options("m1")
    };
    let resumed = open(&store, &longer, Some(record), &Shutdown::new())
        .await
        .expect("resumes");
    assert!(resumed.good_until().borrow().since(Instant::now()) <= Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_put_over_a_session_keeps_its_agent_from_nothing() {
    let store = MemoryStore::new();
    let first = try_it(&store, "m1", None).await.expect("opens");
    store.put(KEY, "garbage, and no lease");
    tokio::time::timeout(Duration::from_secs(10), first.lost().lost())
        .await
        .expect("it notices");
    let second = try_it(&store, "m1", Some(first.record())).await.expect("opens again");
    // Whoever still holds the old one cannot write.
    assert!(second.create_revision() > first.create_revision());
    assert!(store.peek(KEY).is_some_and(|kv| kv.lease == second.lease()));
}
