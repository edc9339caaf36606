//! Bounded exponential back-off with full jitter, for every retry of the shells. Never used by anything that decides.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Doubles from `base` to `cap`; each delay is drawn evenly between a tenth of `base` and the step's bound.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// 100 ms to 10 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl Backoff {
    /// With its own bounds.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The delay before the next try; longer after each call.
    pub fn delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        jitter(self.base / 10, bound)
    }

    /// How many delays since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// After a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A duration drawn evenly from `least..=most`.
pub fn jitter(least: Duration, most: Duration) -> Duration {
    // Each RandomState has its own keys: a hash of nothing is a fair draw, and needs no generator of ours.
    let draw = RandomState::new().build_hasher().finish();
    let span = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX - 1);
    least + Duration::from_nanos(draw % (span + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_their_bounds_and_start_again_after_a_success() {
        let mut backoff = Backoff::default();
        for step in 0..100_u32 {
            let bound = Duration::from_millis(100 * (1 << step.min(10))).min(Duration::from_secs(10));
            let delay = backoff.delay();
            assert!(
                delay >= Duration::from_millis(10) && delay <= bound,
                "{step}: {delay:?}"
            );
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }

    #[test]
    fn jitter_covers_the_whole_range() {
        let most = Duration::from_millis(100);
        let draws: Vec<_> = (0..2000).map(|_| jitter(Duration::ZERO, most)).collect();
        assert!(draws.iter().any(|d| *d < most / 10));
        assert!(draws.iter().any(|d| *d > most * 9 / 10));
    }
}
