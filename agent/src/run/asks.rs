//! Questions to the engine (inspections, image lookups): one at a time for each object, and after a failure not again
//! before a while, however often the planner wants to know. An answer to a question that was asked before something
//! changed counts for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime::backoff::jitter;

/// Delays after failures in a row: 250 ms doubling to 30 s.
const RETRY_MS: (u64, u64) = (250, 30_000);
/// A failure that nobody asked about again for so long is forgotten.
const FORGET_MS: u64 = 120_000;

/// What is being asked, by object.
#[derive(Debug, Default)]
pub struct Asks {
    /// True: something has changed since, so the answer will be stale.
    open: BTreeMap<String, bool>,
    /// How often in a row it failed, and the moment before which it is not asked again.
    failed: BTreeMap<String, (u32, u64)>,
}

impl Asks {
    /// Whether to ask now. True must be followed by [`Asks::ended`].
    pub fn begin(&mut self, what: &str, now_ms: u64) -> bool {
        let waits = self.failed.get(what).is_some_and(|(_, again_ms)| *again_ms > now_ms);
        if waits || self.open.contains_key(what) {
            return false;
        }
        self.open.insert(what.to_owned(), false);
        true
    }

    /// Something about it has changed: an answer under way is of no use.
    pub fn stale(&mut self, what: &str) {
        if let Some(stale) = self.open.get_mut(what) {
            *stale = true;
        }
    }

    /// The same of everything.
    pub fn all_stale(&mut self) {
        self.open.values_mut().for_each(|stale| *stale = true);
    }

    /// The answer is in. False: it is stale, ask again.
    pub fn ended(&mut self, what: &str, failed: bool, now_ms: u64) -> bool {
        let stale = self.open.remove(what).unwrap_or(false);
        if failed {
            let (count, again_ms) = self.failed.entry(what.to_owned()).or_default();
            let bound = RETRY_MS.0.saturating_mul(1 << (*count).min(20)).min(RETRY_MS.1);
            let delay = jitter(Duration::from_millis(bound / 2), Duration::from_millis(bound));
            *count = count.saturating_add(1);
            *again_ms = now_ms.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(bound));
        } else {
            self.failed.remove(what);
        }
        !stale
    }

    /// Forgets old failures.
    pub fn sweep(&mut self, now_ms: u64) {
        self.failed
            .retain(|_, (_, again_ms)| again_ms.saturating_add(FORGET_MS) > now_ms);
    }

    /// The engine was away: what failed then may work now.
    pub fn forgive(&mut self) {
        self.failed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_failed_is_not_asked_again_at_once() {
        let mut asks = Asks::default();
        assert!(asks.begin("a", 0));
        assert!(!asks.begin("a", 0), "it is being asked");
        assert!(asks.ended("a", true, 0));
        assert!(!asks.begin("a", 100));
        assert!(asks.begin("b", 100), "others are");
        assert!(asks.begin("a", 300));
        assert!(asks.ended("a", false, 300));
        assert!(asks.begin("a", 300), "after an answer it may be asked at any time");
    }

    #[test]
    fn an_answer_from_before_a_change_counts_for_nothing() {
        let mut asks = Asks::default();
        assert!(asks.begin("a", 0));
        asks.stale("a");
        assert!(!asks.ended("a", false, 0));
        assert!(asks.begin("a", 0));
        assert!(asks.ended("a", false, 0));
    }
}
