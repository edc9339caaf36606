//! What a node has heard of the store, and since when not. The agent keeps one and hands it to [`super::plan`], which decides
//! by it what may not run while nobody can say that it is still assigned here (`onDisconnect.stopAfter`). It holds moments of
//! this machine's own clock alone, of when something was asked for and not of when it was answered.

use schemas::service::ServiceSpec;

/// A node's word from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// When the last renewal of the session that succeeded was asked for, in ms of BOOTTIME; None: not since the machine was booted,
    /// as far as anybody knows.
    heard_ms: Option<u64>,
    /// The longest time without since the store said what is assigned, of those that are over; and when it was over.
    gap_ms: u64,
    gap_end_ms: u64,
    /// The store has said to this very process what is assigned.
    confirmed: bool,
}

impl Contact {
    /// Of a process that begins, with what the one before it left.
    #[must_use]
    pub fn since(heard_ms: Option<u64>) -> Self {
        Self {
            heard_ms,
            ..Self::default()
        }
    }

    /// When the store was last heard of.
    #[must_use]
    pub fn heard_ms(&self) -> Option<u64> {
        self.heard_ms
    }

    /// A renewal that was asked for then has succeeded.
    pub fn renewed(&mut self, asked_ms: u64) {
        let gap = self.heard_ms.map_or(u64::MAX, |heard| asked_ms.saturating_sub(heard));
        if gap > self.gap_ms {
            self.gap_ms = gap;
            self.gap_end_ms = asked_ms;
        }
        self.heard_ms = Some(self.heard_ms.map_or(asked_ms, |heard| heard.max(asked_ms)));
    }

    /// The store, asked then, has said under a session that lives what is assigned, and that is in force.
    pub fn confirm(&mut self, asked_ms: u64) {
        if asked_ms >= self.gap_end_ms {
            self.gap_ms = 0;
            self.confirmed = true;
        }
    }

    /// Whether the store is to be asked what is assigned, where something stops after so long without it.
    #[must_use]
    pub fn wants_word(&self, least_ms: u64) -> bool {
        !self.confirmed || self.gap_ms >= least_ms
    }

    /// Whether an instance of a service may run on: until when, if that is known. Err: it may not.
    pub(super) fn may_run(&self, spec: &ServiceSpec, now_ms: u64) -> Result<Option<u64>, ()> {
        let Some(after) = spec.stop_after() else {
            return Ok(None);
        };
        let heard = self.heard_ms.ok_or(())?;
        let until = heard.saturating_add(after.millis);
        (now_ms < until && self.gap_ms < after.millis)
            .then_some(Some(until))
            .ok_or(())
    }

    /// The same for one that does not run: it may only begin when the store has said so to this process. So it is for every exclusive
    /// one: while the host was off it may have been given to another.
    pub(super) fn may_begin(&self, spec: &ServiceSpec, now_ms: u64) -> Result<Option<u64>, ()> {
        let until = self.may_run(spec, now_ms)?;
        let goes_by_word = until.is_some() || spec.exclusive;
        (self.confirmed || !goes_by_word).then_some(until).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServiceSpec {
        let text = r#"{"container": {"image": "app:1"}, "onDisconnect": {"stopAfter": "60s"}}"#;
        serde_json::from_str(text).expect("a spec")
    }

    #[test]
    fn what_goes_by_the_stores_word_runs_for_so_long_after_it_and_begins_with_another() {
        let spec = spec();
        let mut contact = Contact::since(None);
        assert_eq!(contact.may_run(&spec, 5), Err(()), "nobody knows since when");
        contact.renewed(1_000);
        assert_eq!(contact.may_run(&spec, 1_000), Err(()), "a session alone is no word");
        contact.confirm(999);
        assert_eq!(contact.may_run(&spec, 1_000), Err(()), "that was asked before");
        contact.confirm(1_000);
        assert_eq!(contact.may_begin(&spec, 1_000), Ok(Some(61_000)));
        assert_eq!(contact.may_begin(&spec, 60_999), Ok(Some(61_000)));
        assert_eq!(contact.may_run(&spec, 61_000), Err(()));
        // It was too long: that there is a session again is not enough.
        contact.renewed(61_000);
        assert!(contact.wants_word(60_000));
        assert_eq!(contact.may_run(&spec, 61_000), Err(()));
        contact.confirm(61_000);
        assert_eq!(contact.may_begin(&spec, 61_000), Ok(Some(121_000)));
        // Shorter times do not add up, and the longest one counts.
        for at in [100_000, 159_999, 170_000] {
            contact.renewed(at);
        }
        assert!(contact.may_run(&spec, 170_000).is_ok() && !contact.wants_word(60_000));
    }

    #[test]
    fn a_process_that_begins_lets_run_and_starts_nothing_before_a_word() {
        let mut contact = Contact::since(Some(1_000));
        assert_eq!(contact.may_run(&spec(), 60_999), Ok(Some(61_000)));
        assert_eq!(contact.may_begin(&spec(), 2_000), Err(()));
        assert_eq!(
            contact.may_run(&spec(), 61_000),
            Err(()),
            "time goes on where the one before it left it"
        );
        // An exclusive one that is kept runs on for ever, and begins with a word alone.
        let text = r#"{"container": {"image": "app:1"}, "exclusive": true}"#;
        let kept: ServiceSpec = serde_json::from_str(text).expect("a spec");
        assert_eq!(contact.may_run(&kept, u64::MAX), Ok(None));
        assert_eq!(contact.may_begin(&kept, 2_000), Err(()));
        contact.renewed(70_000);
        assert_eq!(contact.may_run(&spec(), 70_000), Err(()));
        contact.confirm(70_001);
        assert!(contact.may_begin(&spec(), 70_001).is_ok());
        assert_eq!(contact.may_begin(&kept, u64::MAX), Ok(None));
    }
}
