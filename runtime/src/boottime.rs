//! Time as durations are counted everywhere here: suspended time included (CLOCK_BOOTTIME), wall clocks excluded.
//! Called by leases, leaders, sessions, queues and health. Under tokio's paused clock it follows that clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment of this machine's life; comparable within one process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

/// Suspends shorter than this are not told from the noise of reading two clocks.
const NOTICED_SUSPEND: Duration = Duration::from_millis(50);
/// The longest single sleep: a suspend is noticed this long after resuming, at the latest.
const LONGEST_NAP: Duration = Duration::from_secs(2);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        static BASE: OnceLock<std::time::Instant> = OnceLock::new();
        let base = tokio::time::Instant::from_std(*BASE.get_or_init(std::time::Instant::now));
        Self(tokio::time::Instant::now().saturating_duration_since(base) + suspended())
    }

    /// The time since then; zero when that moment lies ahead.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The time from `earlier` to `self`; zero when it is the other way round.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The time since this machine booted: what outlives a process, and may be kept on disk beside the boot's id.
pub fn since_boot() -> Duration {
    static AT_FIRST: OnceLock<Duration> = OnceLock::new();
    let now = Instant::now();
    *AT_FIRST.get_or_init(|| of(ClockId::Boottime).saturating_sub(now.0)) + now.0
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Sleeps until a moment, suspended time counted.
pub async fn sleep_until(moment: Instant) {
    loop {
        let left = moment.since(Instant::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_NAP)).await;
    }
}

/// Sleeps for a duration, suspended time counted.
pub async fn sleep(duration: Duration) {
    sleep_until(Instant::now() + duration).await;
}

/// How long the machine was suspended since the first call: CLOCK_BOOTTIME less CLOCK_MONOTONIC.
fn suspended() -> Duration {
    static FIRST: OnceLock<Duration> = OnceLock::new();
    static MOST_MILLIS: AtomicU64 = AtomicU64::new(0);
    let apart = apart();
    let since_first = apart.saturating_sub(*FIRST.get_or_init(|| apart));
    let known = Duration::from_millis(MOST_MILLIS.load(Ordering::Relaxed));
    if since_first > known + NOTICED_SUSPEND {
        let millis = u64::try_from(since_first.as_millis()).unwrap_or(u64::MAX);
        MOST_MILLIS.fetch_max(millis, Ordering::Relaxed);
        return since_first;
    }
    known
}

fn apart() -> Duration {
    of(ClockId::Boottime).saturating_sub(of(ClockId::Monotonic))
}

fn of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_follows_the_paused_clock() {
        let start = Instant::now();
        sleep(Duration::from_secs(3600)).await;
        let slept = start.elapsed();
        assert!(slept >= Duration::from_secs(3600), "{slept:?}");
        assert!(slept < Duration::from_secs(3601), "{slept:?}");
    }

    #[test]
    fn it_never_goes_back() {
        let mut last = Instant::now();
        for _ in 0..10_000 {
            let now = Instant::now();
            assert!(now >= last);
            last = now;
        }
    }
}
