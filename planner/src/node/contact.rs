//! What a node has heard of the store, and since when not. The agent keeps one and hands it to [`super::plan`], which decides
//! by it what may not run while nobody can say that it is still assigned here (`onDisconnect.stopAfter`). It holds moments of
//! this machine's own clock alone, of when something was asked for and not of when it was answered.

use schemas::service::ServiceSpec;

/// No service stops sooner than this without the store, in milliseconds: a shorter time without it need not be remembered.
pub const LEAST_SILENCE_MS: u64 = 10_000;

/// A node's word from the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// When the last renewal of the session that succeeded was asked for, in ms of BOOTTIME; None: not since the machine was booted,
    /// as far as anybody knows.
    heard_ms: Option<u64>,
    /// The longest time without since the store said what is assigned, of those that are over; and when the last one was.
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
        if gap >= LEAST_SILENCE_MS {
            self.gap_ms = self.gap_ms.max(gap);
            self.gap_end_ms = asked_ms;
        }
        self.heard_ms = Some(self.heard_ms.map_or(asked_ms, |heard| heard.max(asked_ms)));
    }

    /// Whether a renewal that was asked for then ends a time without that may be too long: what must stop for that is to be
    /// stopped first.
    #[must_use]
    pub fn is_late(&self, asked_ms: u64) -> bool {
        self.heard_ms
            .is_none_or(|heard| asked_ms.saturating_sub(heard) >= LEAST_SILENCE_MS)
    }

    /// The store, asked then, has said under a session that lives what is assigned, and that is in force.
    pub fn confirm(&mut self, asked_ms: u64) {
        if asked_ms >= self.gap_end_ms {
            self.gap_ms = 0;
            self.confirmed = true;
        }
    }

    /// Whether the store is to be asked what is assigned.
    #[must_use]
    pub fn wants_word(&self) -> bool {
        !self.confirmed || self.gap_ms > 0
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

    /// The same for one that does not run: it may only begin when the store has said so to this process.
    pub(super) fn may_begin(&self, spec: &ServiceSpec, now_ms: u64) -> Result<Option<u64>, ()> {
        let until = self.may_run(spec, now_ms)?;
        (until.is_none() || self.confirmed).then_some(until).ok_or(())
    }
}
