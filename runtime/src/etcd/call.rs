//! How a call goes through the endpoints: one connection for each, the working one preferred, a deadline over all tries.
//! Reads are tried again whatever happened; a write only when it certainly was not taken up.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout};

use super::classify::{Failure, Fate, classify};
use super::{EtcdStore, Inner, Member, diagnose};
use crate::backoff::jitter;
use crate::error::{StoreError, StoreErrorKind};

/// How often all endpoints are tried when none of them can be reached at all.
const ROUNDS: usize = 3;

/// The tries of one call.
struct Tries<'a> {
    inner: &'a Inner,
    end: Instant,
    /// The longest that one try may take: a member that hangs must not use up the time of the others.
    longest: Duration,
    count: usize,
    /// Tries in a row that reached nobody.
    unheard: usize,
    /// The failure that says most so far.
    telling: Option<Failure>,
}

impl<'a> Tries<'a> {
    fn new(inner: &'a Inner, longest: Duration) -> Self {
        let longest = if inner.members().len() == 1 {
            inner.deadline
        } else {
            longest
        };
        Self {
            inner,
            end: Instant::now() + inner.deadline,
            longest,
            count: 0,
            unheard: 0,
            telling: None,
        }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// One try at the preferred endpoint, which is passed over when it fails to answer.
    async fn call<T>(&self, call: impl AsyncFnOnce(Member) -> Result<T, etcd_client::Error>) -> Result<T, Failure> {
        let inner = self.inner;
        let (index, member) = inner.preferred();
        let patience = self.left().min(self.longest);
        let failure = match timeout(patience, call(member)).await {
            Ok(Ok(value)) => {
                inner.health.answered();
                return Ok(value);
            }
            Ok(Err(error)) => classify(error),
            Err(_) => Failure::timeout(),
        };
        if failure.is_transient() {
            inner.pass_over(index);
        } else {
            inner.health.answered();
        }
        Err(failure)
    }

    /// Waits until another try is in order; the failure to tell when there is no time or no sense in one.
    async fn another(&mut self, failure: Failure) -> Result<(), Failure> {
        let members = self.inner.members().len();
        self.count += 1;
        let reached = failure.fate != Fate::NeverSent;
        self.unheard = if reached { 0 } else { self.unheard + 1 };
        // A member that was reached says more than a closed port beside it.
        if reached || self.telling.is_none() {
            self.telling = Some(failure);
        }
        let pause = if self.count.is_multiple_of(members) {
            jitter(Duration::from_millis(50), Duration::from_millis(200))
        } else {
            Duration::ZERO
        };
        // Where anyone answers, a leader may yet be elected: then only the deadline ends it.
        if self.left() <= pause || self.unheard >= members * ROUNDS {
            self.inner.health.failed();
            return Err(self.telling.take().unwrap_or_else(Failure::timeout));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl EtcdStore {
    /// Asks all endpoints at once, and prefers the first that answers.
    pub(super) async fn find_one(&self) -> Result<(), StoreError> {
        let ask = |(index, member): (usize, &Member)| {
            let mut maintenance = member.maintenance.clone();
            let limit = self.inner.deadline;
            async move { (index, timeout(limit, maintenance.status()).await) }
        };
        let members = self.inner.members();
        let mut answers: stream::FuturesUnordered<_> = members.iter().enumerate().map(ask).collect();
        let mut worst: Option<Failure> = None;
        let plain = |f: &Failure| f.is_transient();
        while let Some((index, answer)) = answers.next().await {
            let failure = match answer {
                Ok(Ok(_)) => {
                    self.inner.preferred.store(index, Ordering::Relaxed);
                    self.inner.health.answered();
                    return Ok(());
                }
                Ok(Err(error)) => classify(error),
                Err(_) => Failure::timeout(),
            };
            // The failure that says most is told: a wrong certificate rather than a closed port.
            if worst.as_ref().is_none_or(|w| plain(w) && !plain(&failure)) {
                worst = Some(failure);
            }
        }
        let mut worst = worst.unwrap_or_else(Failure::timeout);
        if plain(&worst) {
            for member in members.iter() {
                if let Some(kind) = diagnose::diagnose(&member.name).await {
                    worst.kind = kind;
                    break;
                }
            }
        }
        Err(worst.told("connect to etcd at", String::new()))
    }

    /// Reads, and other acts that may be repeated.
    pub(super) async fn repeat<T, F, R>(&self, act: &'static str, object: &[u8], call: F) -> Result<T, StoreError>
    where
        F: Fn(Member) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut tries = Tries::new(&self.inner, self.inner.deadline / 4);
        loop {
            let failure = match tries.call(async |member| call(member).await).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if !failure.is_transient() {
                return Err(failure.told(act, text(object)));
            }
            tries.another(failure).await.map_err(|f| f.told(act, text(object)))?;
        }
    }

    /// A write: sent again only when it was certainly not taken up.
    pub(super) async fn once<T, F, R>(&self, act: &'static str, object: &[u8], call: F) -> Result<T, StoreError>
    where
        F: Fn(Member) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut tries = Tries::new(&self.inner, self.inner.deadline / 2);
        loop {
            let failure = match tries.call(async |member| call(member).await).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if !failure.is_transient() {
                return Err(failure.told(act, text(object)));
            }
            if failure.fate == Fate::Unknown {
                self.inner.health.failed();
                return Err(StoreError {
                    kind: StoreErrorKind::Ambiguous,
                    ..failure.told(act, text(object))
                });
            }
            tries.another(failure).await.map_err(|f| f.told(act, text(object)))?;
        }
    }
}

impl Inner {
    pub(super) fn members(&self) -> Arc<[Member]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The endpoint that is asked first, and its number.
    pub(super) fn preferred(&self) -> (usize, Member) {
        let members = self.members();
        let index = self.preferred.load(Ordering::Relaxed) % members.len();
        (index, members[index].clone())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.members().iter().map(|m| m.name.clone()).collect()
    }

    /// Prefers the endpoint after this one, unless another call has done so already.
    pub(super) fn pass_over(&self, index: usize) {
        let next = (index + 1) % self.members().len();
        let _ = self
            .preferred
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn text(object: &[u8]) -> String {
    String::from_utf8_lossy(object).into_owned()
}
