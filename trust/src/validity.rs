//! Moments and spans of time as certificates know them: whole seconds since 1970, UTC. Nothing here reads a clock: every
//! caller says what time it is, so that a test, or a host whose clock was just set right, can say so too.

use std::fmt;

use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};

/// A moment: whole seconds since 1970-01-01T00:00:00Z. In JSON a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The last moment a certificate can name (9999-12-31T23:59:59Z).
    pub const LAST: Self = Self(253_402_300_799);

    /// The moment so many seconds after 1970; what is later than [`Time::LAST`] becomes it.
    #[must_use]
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        if seconds > Self::LAST.0 {
            Self::LAST
        } else {
            Self(seconds)
        }
    }

    #[must_use]
    pub const fn unix_seconds(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, seconds: u64) -> Self {
        Self::from_unix_seconds(self.0.saturating_add(seconds))
    }

    #[must_use]
    pub const fn minus(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }

    /// As the library that writes certificates wants it.
    pub(crate) fn to_date(self) -> ::time::OffsetDateTime {
        let seconds = i64::try_from(self.0.min(Self::LAST.0)).expect("the last moment fits an i64");
        ::time::OffsetDateTime::from_unix_timestamp(seconds).expect("the last moment is a date")
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = self.to_date();
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        let (hour, minute, second) = (date.hour(), date.minute(), date.second());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl From<UnixTime> for Time {
    fn from(time: UnixTime) -> Self {
        Self::from_unix_seconds(time.as_secs())
    }
}

impl From<Time> for UnixTime {
    fn from(time: Time) -> Self {
        Self::since_unix_epoch(std::time::Duration::from_secs(time.0))
    }
}

/// From when until when a certificate holds; both ends belong to it, as X.509 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: Time,
    pub until: Time,
}

impl Validity {
    /// A life of so many seconds that begins now. It is dated back by a tenth of itself, at most one hour, so that a host
    /// whose clock is a little slow does not refuse a fresh certificate.
    #[must_use]
    pub fn beginning(now: Time, lifetime_seconds: u64) -> Self {
        Self {
            from: now.minus((lifetime_seconds / 10).min(3_600)),
            until: now.plus(lifetime_seconds),
        }
    }

    #[must_use]
    pub fn contains(self, now: Time) -> bool {
        self.from <= now && now <= self.until
    }

    /// When a certificate asks for its successor: a third of its life after it began.
    #[must_use]
    pub fn renewal(self) -> Time {
        let life = self.until.0.saturating_sub(self.from.0);
        self.from.plus(life / 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_asks_for_its_successor_at_a_third_of_its_life() {
        let life = Validity {
            from: Time(1_000),
            until: Time(1_900),
        };
        assert_eq!(life.renewal(), Time(1_300));
        assert!(life.contains(Time(1_000)) && life.contains(Time(1_900)));
        assert!(!life.contains(Time(999)) && !life.contains(Time(1_901)));
    }

    #[test]
    fn a_moment_is_shown_as_people_read_it() {
        assert_eq!(Time(1_790_000_000).to_string(), "2026-09-21T14:13:20Z");
        assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Time(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn no_sum_of_moments_leaves_the_calendar() {
        assert_eq!(Time(5).plus(u64::MAX), Time::LAST);
        assert_eq!(Time(5).minus(6), Time(0));
        let _ = Time::LAST.to_date();
        assert_eq!(Validity::beginning(Time(50), u64::MAX).until, Time::LAST);
    }
}
