//! The control loop: takes items from a [`Queue`](crate::queue::Queue) and reconciles them, several at once but never
//! one item twice at once. Controllers and agents run it; it promises that an item added while it runs is run again.

use std::collections::{HashMap, HashSet};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::queue::Queue;
use crate::shutdown::Shutdown;

/// What a reconcile that did not fail asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: until it is added again.
    Done,
    /// Look again after this long, or earlier when it is added again. Resets the back-off, as `Done` does.
    After(Duration),
}

/// How to run.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// How many items run at once; at least 1.
    pub parallel: usize,
    /// The delays after failures, per item: 100 ms to 10 s by default.
    pub backoff: Backoff,
}

impl Default for ControlOptions {
    fn default() -> Self {
        Self {
            parallel: 1,
            backoff: Backoff::default(),
        }
    }
}

/// Runs until the shutdown drains, then waits for what runs; aborting drops what runs. A failure (or a panic) of an item
/// is logged and tried again after its back-off.
pub async fn run<K, E, F, R>(queue: Queue<K>, options: ControlOptions, shutdown: Shutdown, reconcile: F)
where
    K: Clone + Eq + Hash + Ord + Debug + Send + 'static,
    E: Display + Send + 'static,
    F: Fn(K) -> R,
    R: Future<Output = Result<Next, E>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut busy = HashSet::new();
    let mut failing: HashMap<K, Backoff> = HashMap::new();
    loop {
        let room = busy.len() < options.parallel.max(1);
        tokio::select! {
            biased;
            () = shutdown.draining() => break,
            Some(ended) = running.join_next(), if !busy.is_empty() => {
                settle(ended, &queue, &options, &mut busy, &mut failing);
            }
            item = queue.next(|item| !busy.contains(item)), if room => {
                busy.insert(item.clone());
                let work = reconcile(item.clone());
                running.spawn(async move {
                    let end = std::panic::AssertUnwindSafe(work).catch_unwind().await;
                    (item, end.map_err(|_| ()))
                });
            }
        }
    }
    tokio::select! {
        () = shutdown.aborting() => running.shutdown().await,
        () = async { while running.join_next().await.is_some() {} } => {}
    }
}

type Ended<K, E> = (K, Result<Result<Next, E>, ()>);

fn settle<K, E>(
    ended: Result<Ended<K, E>, tokio::task::JoinError>,
    queue: &Queue<K>,
    options: &ControlOptions,
    busy: &mut HashSet<K>,
    failing: &mut HashMap<K, Backoff>,
) where
    K: Clone + Eq + Hash + Ord + Debug,
    E: Display,
{
    // Panics are caught inside and nothing is cancelled before the drain: an error here cannot carry an item.
    let Ok((item, end)) = ended else { return };
    busy.remove(&item);
    let failure = match end {
        Ok(Ok(Next::Done)) => None,
        Ok(Ok(Next::After(delay))) => {
            queue.add_after(item.clone(), delay);
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(()) => Some("it panicked".to_owned()),
    };
    let Some(reason) = failure else {
        failing.remove(&item);
        return;
    };
    let backoff = failing.entry(item.clone()).or_insert_with(|| options.backoff.clone());
    let delay = backoff.delay();
    tracing::warn!(?item, %reason, failures = backoff.failures(), ?delay, "reconcile failed");
    queue.add_after(item, delay);
}

#[cfg(test)]
mod tests;
