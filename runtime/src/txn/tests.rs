//! Writes whose answers are lost, and what reading back makes of them.

use super::*;
use crate::memory::{MemoryStore, WriteFault};
use crate::person;

fn create(key: &str) -> Txn {
    person::txn().put(key.to_owned(), "mine", Guard::Absent)
}

fn kind(result: Result<Outcome, StoreError>) -> StoreErrorKind {
    result.expect_err("it fails").kind
}

#[tokio::test]
async fn a_write_in_force_whose_answer_is_lost_counts_as_committed() {
    let store = MemoryStore::new();
    store.put("/old", "1");
    store.fail_next_write(WriteFault::AnswerLost);
    let txn = create("/a").put("/b", "mine", Guard::Any).delete("/old", Guard::Exists);
    let end = store.commit(txn).await.expect("resolved");
    assert_eq!(end, Outcome::Committed { revision: 3 });
    assert_eq!((store.commits(), store.revision()), (1, 3), "it was sent once");
}

#[tokio::test]
async fn a_write_that_never_arrived_is_known_not_to_be_in_force() {
    let store = MemoryStore::new();
    store.fail_next_write(WriteFault::RequestLost);
    assert_eq!(kind(store.commit(create("/a")).await), StoreErrorKind::DeadlineExceeded);
    let revision = store.put("/a", "1");
    store.fail_next_write(WriteFault::RequestLost);
    let change = person::txn().put("/a", "2", Guard::Unchanged(revision));
    assert_eq!(kind(store.commit(change).await), StoreErrorKind::DeadlineExceeded);
    assert_eq!(store.commits(), 0);
}

#[tokio::test]
async fn what_cannot_be_told_stays_ambiguous() {
    let store = MemoryStore::new();
    store.put("/a", "theirs");
    // A guard that says nothing of the version: the other value may have come before or after ours.
    store.fail_next_write(WriteFault::RequestLost);
    let blind = person::txn().put("/a", "mine", Guard::Any);
    assert_eq!(kind(store.commit(blind).await), StoreErrorKind::Ambiguous);
    // Someone else's value where ours should be.
    store.fail_next_write(WriteFault::RequestLost);
    assert_eq!(kind(store.commit(create("/a")).await), StoreErrorKind::Ambiguous);
    // Reading back fails too.
    store.fail_next_write(WriteFault::AnswerLost);
    store.fail_next_read(StoreErrorKind::Unreachable);
    assert_eq!(kind(store.commit(create("/b")).await), StoreErrorKind::Ambiguous);
}

#[tokio::test]
async fn a_late_write_does_no_harm_to_what_came_after() {
    let store = MemoryStore::new();
    let revision = store.put("/a", "1");
    store.fail_next_write(WriteFault::Late);
    let change = |value: &'static str| person::txn().put("/a", value, Guard::Unchanged(revision));
    assert_eq!(
        kind(store.commit(change("late")).await),
        StoreErrorKind::DeadlineExceeded
    );
    let next = store.commit(change("next")).await.expect("answers");
    assert!(matches!(next, Outcome::Committed { .. }));
    assert!(matches!(store.deliver_late_writes()[0], Outcome::Conflict { .. }));
    assert_eq!(store.peek("/a").expect("is there").value, "next");
}

#[tokio::test]
async fn a_lost_answer_behind_a_lost_fence_is_a_lost_fence() {
    let store = MemoryStore::new();
    let epoch = store.put("/election/controller", "me");
    let fence = Fence::key(b"/election/controller".to_vec(), epoch);
    store.delete("/election/controller");
    store.put("/election/controller", "another");
    store.fail_next_write(WriteFault::RequestLost);
    let end = store.commit(Txn::new(&fence).put("/a", "1", Guard::Absent)).await;
    assert_eq!(end.expect("resolved"), Outcome::FenceLost);
    let batch = vec![Txn::new(&fence).put("/b", "1", Guard::Absent)];
    assert_eq!(store.batch(batch).await.remove(0).expect("answers"), Outcome::FenceLost);
    assert!(store.peek("/a").is_none() && store.peek("/b").is_none());
}

#[tokio::test]
async fn a_batch_goes_in_few_requests_within_the_limits() {
    let store = MemoryStore::new();
    let marker = store.put("/cluster", "1");
    let small = |n: usize| {
        person::txn()
            .require("/cluster", Guard::Unchanged(marker))
            .put(format!("/{n}"), "1", Guard::Absent)
    };
    let ended = store.batch((0..630).map(small).collect()).await;
    assert!(ended.iter().all(|e| matches!(e, Ok(Outcome::Committed { .. }))));
    assert!(store.commits() <= 11, "{} requests", store.commits());
    let before = store.commits();
    let large = |n: usize| person::txn().put(format!("/l/{n}"), vec![0; 400 << 10], Guard::Absent);
    let ended = store.batch((0..10).map(large).collect()).await;
    assert!(ended.iter().all(|e| matches!(e, Ok(Outcome::Committed { .. }))));
    assert_eq!(store.commits() - before, 4, "three of 400 KiB to a request");
    // The same key twice is two requests, not a refusal.
    let twice = vec![create("/x"), create("/x")];
    let ended = store.batch(twice).await;
    let committed = ended
        .iter()
        .filter(|e| matches!(e, Ok(Outcome::Committed { .. })))
        .count();
    assert_eq!(committed, 1);
}

#[tokio::test]
async fn every_transaction_of_a_batch_hears_of_an_outage() {
    let store = MemoryStore::new();
    store.set_down(true);
    let ended = store.batch((0..300).map(|n| create(&format!("/{n}"))).collect()).await;
    assert_eq!(ended.len(), 300);
    assert!(ended.into_iter().all(|e| kind(e) == StoreErrorKind::Unreachable));
}

#[tokio::test]
async fn in_a_batch_only_what_the_store_cannot_take_is_refused() {
    let store = MemoryStore::new();
    store.limit_requests(64 << 10);
    let sized = |n: usize| if n == 17 { 70 << 10 } else { 5 << 10 };
    let txns = (0..40).map(|n| person::txn().put(format!("/{n}"), vec![0; sized(n)], Guard::Absent));
    let ended = store.batch(txns.collect()).await;
    for (n, end) in ended.into_iter().enumerate() {
        if n == 17 {
            assert!(matches!(kind(end), StoreErrorKind::TooLarge { .. }));
        } else {
            assert!(matches!(end, Ok(Outcome::Committed { .. })), "{n}: {end:?}");
        }
    }
}
