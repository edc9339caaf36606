//! The leader's clock and its faults, on the in-memory store under tokio's paused clock.

use super::*;
use crate::memory::{MemoryStore, WriteFault};

fn options(holder: &str) -> LeaderOptions {
    LeaderOptions::new(Prefix::new("/reeve/election/").expect("ends in a slash"), holder)
}

async fn lead(store: &MemoryStore, holder: &str) -> Leadership {
    let won = campaign(store, &options(holder), &Shutdown::new()).await;
    won.expect("campaigns").expect("wins")
}

#[tokio::test(start_paused = true)]
async fn a_leader_stays_one_as_long_as_the_store_answers_and_writes_nothing_for_it() {
    let store = MemoryStore::new();
    let leadership = lead(&store, "a").await;
    let (revision, commits) = (store.revision(), store.commits());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!leadership.is_lost());
    assert_eq!((store.revision(), store.commits()), (revision, commits));
    let value = store.peek(leadership.key()).expect("is there").value;
    let holder: Holder = serde_json::from_slice(&value).expect("a holder");
    assert_eq!(holder.holder, "a");
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_steps_down_before_its_lease_can_have_ended() {
    let store = MemoryStore::new();
    let leadership = lead(&store, "a").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let cut = Instant::now();
    store.set_down(true);
    leadership.lost().lost().await;
    let after = cut.elapsed();
    // The last renewal was at most a third of the time to live before the cut.
    assert!(
        after > Duration::from_secs(5) && after < Duration::from_secs(10),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_costs_no_leadership() {
    let store = MemoryStore::new();
    let leadership = lead(&store, "a").await;
    for _ in 0..20 {
        store.set_down(true);
        tokio::time::sleep(Duration::from_secs(4)).await;
        store.set_down(false);
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    assert!(!leadership.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_ended_notices_and_a_waiter_follows() {
    let store = MemoryStore::new();
    let first = lead(&store, "a").await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { lead(&store, "b").await }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    let lease = store.peek(first.key()).expect("is there").lease;
    let ended = Instant::now();
    store.expire_lease(lease);
    let second = waiting.await.expect("it wins");
    assert!(ended.elapsed() < Duration::from_millis(100), "{:?}", ended.elapsed());
    assert!(second.epoch() > first.epoch());
    first.lost().lost().await;
    assert!(ended.elapsed() < Duration::from_secs(5));
    assert!(!second.is_lost());
}

#[tokio::test(start_paused = true)]
async fn lost_answers_make_no_second_leader_and_leave_no_lease() {
    let store = MemoryStore::new();
    store.fail_next_write(WriteFault::AnswerLost);
    let first = lead(&store, "a").await;
    assert!(!first.is_lost());
    first.resign().await;
    store.fail_next_write(WriteFault::Late);
    let second = lead(&store, "b").await;
    // The late write's lease was revoked, so the store does not take it; in memory, its guard refuses it.
    assert!(
        store
            .deliver_late_writes()
            .iter()
            .all(|o| !matches!(o, Outcome::Committed { .. }))
    );
    assert!(!second.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_campaign_outlasts_an_outage_and_ends_at_the_drain() {
    let store = MemoryStore::new();
    store.set_down(true);
    let shutdown = Shutdown::new();
    let waiting = tokio::spawn({
        let (store, shutdown) = (store.clone(), shutdown.clone());
        async move { campaign(&store, &options("a"), &shutdown).await }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!waiting.is_finished());
    store.set_down(false);
    let won = waiting.await.expect("no panic").expect("campaigns").expect("wins");
    let held = tokio::spawn({
        let (store, shutdown) = (store.clone(), shutdown.clone());
        async move { campaign(&store, &options("b"), &shutdown).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    shutdown.drain();
    assert!(held.await.expect("no panic").expect("no error").is_none());
    assert!(!won.is_lost());
    store.fail_next_read(StoreErrorKind::Denied);
    let denied = campaign(&store, &options("c"), &Shutdown::new()).await;
    assert_eq!(denied.expect_err("no waiting mends it").kind, StoreErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_put_over_the_election_keeps_nobody_from_leading() {
    let store = MemoryStore::new();
    let first = lead(&store, "a").await;
    store.put(first.key(), "garbage, and no lease");
    first.lost().lost().await;
    let second = lead(&store, "b").await;
    assert!(second.epoch() > first.epoch());
    let held = store.peek(second.key()).expect("is there");
    assert_ne!(held.lease, 0);
    // Before anybody ever led it is no different.
    let store = MemoryStore::new();
    store.put(second.key(), "garbage, and no lease");
    assert!(!lead(&store, "a").await.is_lost());
}
