//! When the store last answered. Every store client owns one [`Health`]; the leading controller asks it before it calls
//! any node lost (after an outage the store must have been healthy for a full window).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::boottime::Instant;

/// Shared by all clones of one store client.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
    longest_gap: Duration,
}

#[derive(Debug, Default)]
struct State {
    last_answer: Option<Instant>,
    healthy_since: Option<Instant>,
}

impl Default for Health {
    /// A gap of 6 s without an answer breaks health: longer than a third of a leader's lease, shorter than a lease.
    fn default() -> Self {
        Self::new(Duration::from_secs(6))
    }
}

impl Health {
    /// With its own longest gap between two answers.
    pub fn new(longest_gap: Duration) -> Self {
        Self {
            state: Arc::default(),
            longest_gap,
        }
    }

    /// When the store last answered anything.
    pub fn last_answer(&self) -> Option<Instant> {
        self.lock().last_answer
    }

    /// For how long the store has answered without a failure and without a gap; `None` when it does not now. Someone
    /// must keep asking it (a lease renewed at a third of its time to live does), else silence counts as a gap.
    pub fn healthy_for(&self) -> Option<Duration> {
        let now = Instant::now();
        let state = self.lock();
        let last = state.last_answer?;
        if now.since(last) > self.longest_gap {
            return None;
        }
        state.healthy_since.map(|since| now.since(since))
    }

    /// An answer came, whatever it said.
    pub fn answered(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let gap = state.last_answer.is_none_or(|last| now.since(last) > self.longest_gap);
        if gap || state.healthy_since.is_none() {
            state.healthy_since = Some(now);
        }
        state.last_answer = Some(now);
    }

    /// A call got no answer from any endpoint.
    pub fn failed(&self) {
        self.lock().healthy_since = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gap_or_a_failure_starts_the_window_again() {
        let health = Health::default();
        assert_eq!(health.healthy_for(), None);
        for _ in 0..10 {
            health.answered();
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert!(health.healthy_for().is_some_and(|d| d >= Duration::from_secs(29)));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(health.healthy_for(), None);
        health.answered();
        assert!(health.healthy_for().is_some_and(|d| d < Duration::from_secs(1)));
        tokio::time::sleep(Duration::from_secs(5)).await;
        health.failed();
        assert_eq!(health.healthy_for(), None);
        health.answered();
        assert!(health.healthy_for().is_some_and(|d| d < Duration::from_secs(1)));
    }
}
