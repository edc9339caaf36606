//! The work queue: each item at most once, at its earliest time. Watches and timers add to it; [`crate::control`] takes.
//! It knows nothing of running; a reason is never kept, for no work may depend on why it was asked for.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::boottime::{self, Instant};

/// The handle; all clones are one queue.
#[derive(Clone, Debug)]
pub struct Queue<K> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    due: HashMap<K, (Instant, u64)>,
    order: BTreeSet<(Instant, u64, K)>,
    drawn: u64,
}

impl<K: Clone + Eq + Hash + Ord> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            due: HashMap::new(),
            order: BTreeSet::new(),
            drawn: 0,
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// Due now.
    pub fn add(&self, item: K) {
        self.add_at(item, Instant::now());
    }

    /// Due after a delay, or earlier when it is queued for earlier.
    pub fn add_after(&self, item: K, delay: Duration) {
        self.add_at(item, Instant::now() + delay);
    }

    /// Due at a moment, or earlier when it is queued for earlier.
    pub fn add_at(&self, item: K, at: Instant) {
        let mut state = self.lock();
        if let Some((queued, serial)) = state.due.get(&item).copied() {
            if queued <= at {
                return;
            }
            state.order.remove(&(queued, serial, item.clone()));
        }
        // The serial keeps items of one moment in the order in which they came.
        let serial = state.drawn;
        state.drawn += 1;
        state.due.insert(item.clone(), (at, serial));
        state.order.insert((at, serial, item));
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Forgets an item.
    pub fn remove(&self, item: &K) -> bool {
        let mut state = self.lock();
        let Some((at, serial)) = state.due.remove(item) else {
            return false;
        };
        state.order.remove(&(at, serial, item.clone()));
        true
    }

    /// How many items wait, due or not.
    pub fn len(&self) -> usize {
        self.lock().due.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the item that is due first among those that `may` be taken, waiting for it. For one consumer; dropping
    /// the future loses nothing.
    pub async fn next(&self, may: impl Fn(&K) -> bool) -> K {
        loop {
            let earliest = {
                let mut state = self.lock();
                let first = state.order.iter().find(|(_, _, item)| may(item)).cloned();
                match first {
                    Some(first) if first.0 <= Instant::now() => {
                        state.order.remove(&first);
                        state.due.remove(&first.2);
                        return first.2;
                    }
                    Some((at, _, _)) => Some(at),
                    None => None,
                }
            };
            // `notify_one` stores a permit, so an `add` between the look above and here still wakes this.
            match earliest {
                Some(at) => {
                    tokio::select! {
                        () = boottime::sleep_until(at) => {}
                        () = self.inner.changed.notified() => {}
                    }
                }
                None => self.inner.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(_: &&str) -> bool {
        true
    }

    #[tokio::test(start_paused = true)]
    async fn an_item_added_twice_comes_once_at_its_earliest_time() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!(queue.next(any).await, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn items_come_in_order_of_their_times_then_of_their_coming() {
        let queue = Queue::new();
        let now = Instant::now();
        queue.add_at("late", now + Duration::from_secs(1));
        queue.add_at("b", now);
        queue.add_at("a", now);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(queue.next(any).await);
        }
        assert_eq!(taken, ["b", "a", "late"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_consumer_is_woken_by_an_earlier_item() {
        let queue = Queue::new();
        queue.add_after("later", Duration::from_secs(60));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next(any).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.add("now");
        assert_eq!(waiting.await.expect("the consumer ends"), "now");
    }

    #[tokio::test(start_paused = true)]
    async fn an_item_that_may_not_run_does_not_hold_the_others() {
        let queue = Queue::new();
        queue.add("busy");
        queue.add("free");
        assert_eq!(queue.next(|k| *k != "busy").await, "free");
        assert!(queue.remove(&"busy") && !queue.remove(&"busy"));
    }
}
