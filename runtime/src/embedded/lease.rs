//! The leases of the embedded store: who lives how long, and which keys die with it.
//!
//! Pure: time comes in as a duration since boot (suspended time included), and nothing here does
//! IO. The writer grants and revokes; keep-alives only move an expiry and are not persisted, as in
//! etcd, so that every lease has its full TTL again after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::mvcc::Item;
use super::refusal::Refusal;

/// The shortest TTL in seconds; shorter ones are raised to it. etcd's, with its default timings.
pub(crate) const MIN_TTL: i64 = 2;
/// The longest TTL in seconds. etcd's.
pub(crate) const MAX_TTL: i64 = 9_000_000_000;

#[derive(Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    /// Since boot.
    expires: Duration,
    keys: BTreeSet<Bytes>,
}

/// How to take back what an uncommitted batch did.
#[derive(Debug)]
pub(crate) struct Undo(Step);

#[derive(Debug)]
enum Step {
    Granted(i64),
    Revoked(i64, Lease),
}

/// What `LeaseTimeToLive` tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TimeToLive {
    /// Whole seconds left, rounded down.
    pub remaining: i64,
    pub granted: i64,
    pub keys: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<i64, Lease>,
    /// No lease expires before this; a lower bound, refreshed by `expired`.
    earliest: Option<Duration>,
}

impl Leases {
    /// Leases as they come from the disk, each with its full TTL from `now`.
    pub fn load(stored: &[(i64, i64)], now: Duration) -> Self {
        let mut leases = Self::default();
        for &(id, ttl) in stored {
            leases.insert(id, ttl, now);
        }
        leases
    }

    fn insert(&mut self, id: i64, ttl: i64, now: Duration) {
        let expires = now.saturating_add(Duration::from_secs(ttl.max(0).unsigned_abs()));
        self.earliest = Some(self.earliest.map_or(expires, |e| e.min(expires)));
        self.leases.insert(
            id,
            Lease {
                ttl,
                expires,
                keys: BTreeSet::new(),
            },
        );
    }

    pub fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Grants `id`, and returns the TTL in force.
    pub fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<(i64, Undo), Refusal> {
        if ttl > MAX_TTL {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.exists(id) {
            return Err(Refusal::LeaseExists);
        }
        let ttl = ttl.max(MIN_TTL);
        self.insert(id, ttl, now);
        Ok((ttl, Undo(Step::Granted(id))))
    }

    /// The keys that must be deleted when `id` is revoked, in order.
    pub fn keys(&self, id: i64) -> Result<Vec<Bytes>, Refusal> {
        let lease = self.leases.get(&id).ok_or(Refusal::LeaseNotFound)?;
        Ok(lease.keys.iter().cloned().collect())
    }

    pub fn remove(&mut self, id: i64) -> Option<Undo> {
        let lease = self.leases.remove(&id)?;
        Some(Undo(Step::Revoked(id, lease)))
    }

    /// Starts the TTL again; the TTL, or `None` for a lease that is gone or has run out.
    pub fn keep_alive(&mut self, id: i64, now: Duration) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        if lease.expires <= now {
            return None;
        }
        lease.expires = now.saturating_add(Duration::from_secs(lease.ttl.max(0).unsigned_abs()));
        Some(lease.ttl)
    }

    pub fn time_to_live(&self, id: i64, keys: bool, now: Duration) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        let remaining = lease.expires.saturating_sub(now).as_secs();
        Some(TimeToLive {
            remaining: i64::try_from(remaining).unwrap_or(i64::MAX),
            granted: lease.ttl,
            keys: match keys {
                true => lease.keys.iter().map(|k| k.to_vec()).collect(),
                false => Vec::new(),
            },
        })
    }

    /// Every lease, the one that expires first in front.
    pub fn by_expiry(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.leases.iter().map(|(id, l)| (l.expires, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// (id, ttl) of every lease: what a snapshot keeps.
    pub fn stored(&self) -> Vec<(i64, i64)> {
        self.leases.iter().map(|(id, l)| (*id, l.ttl)).collect()
    }

    /// Leases that have run out. Cheap when none can have.
    pub fn expired(&mut self, now: Duration) -> Vec<i64> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let expired: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, l)| l.expires <= now)
            .map(|(id, _)| *id)
            .collect();
        self.earliest = self.leases.values().map(|l| l.expires).filter(|e| *e > now).min();
        if !expired.is_empty() {
            // Seen again until they are really revoked.
            self.earliest = Some(now);
        }
        expired
    }

    /// When to look again, at the latest.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.earliest
    }

    pub fn attach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub fn detach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Takes back a batch whose commit failed: `undo` in the order it was done, then the keys anew
    /// from `items`, the newest of each key.
    pub fn roll_back<'a>(&mut self, undo: Vec<Undo>, items: impl Iterator<Item = &'a Arc<Item>>, now: Duration) {
        for Undo(step) in undo.into_iter().rev() {
            match step {
                Step::Granted(id) => {
                    self.leases.remove(&id);
                }
                Step::Revoked(id, lease) => {
                    self.leases.insert(id, lease);
                }
            }
        }
        for lease in self.leases.values_mut() {
            lease.keys.clear();
        }
        for item in items {
            self.attach(item.lease, &item.key);
        }
        self.earliest = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_lease_expires_after_its_ttl_and_not_before() {
        let mut leases = Leases::default();
        leases.grant(7, 10, S(100)).unwrap();
        assert!(leases.expired(S(109)).is_empty());
        assert_eq!(leases.expired(S(110)), vec![7]);
        assert_eq!(leases.expired(S(110)), vec![7], "until it is revoked");
        leases.remove(7);
        assert!(leases.expired(S(111)).is_empty());
    }

    #[test]
    fn a_kept_alive_lease_stays_and_an_expired_one_cannot_be_revived() {
        let mut leases = Leases::default();
        leases.grant(7, 10, S(0)).unwrap();
        assert_eq!(leases.keep_alive(7, S(9)), Some(10));
        assert!(leases.expired(S(18)).is_empty());
        assert_eq!(leases.keep_alive(7, S(19)), None);
        assert_eq!(leases.keep_alive(8, S(0)), None);
    }

    #[test]
    fn ttls_have_a_floor_and_a_ceiling() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(1, -5, S(0)).unwrap().0, MIN_TTL);
        let err = leases.grant(2, MAX_TTL + 1, S(0)).unwrap_err();
        assert_eq!(err, Refusal::LeaseTtlTooLarge);
        let err = leases.grant(1, 5, S(0)).unwrap_err();
        assert_eq!(err, Refusal::LeaseExists);
    }

    #[test]
    fn a_rolled_back_batch_leaves_the_leases_as_they_were() {
        let mut leases = Leases::default();
        leases.grant(1, 10, S(0)).unwrap();
        let (_, granted) = leases.grant(2, 10, S(0)).unwrap();
        let revoked = leases.remove(1).unwrap();
        leases.roll_back(vec![granted, revoked], std::iter::empty(), S(0));
        assert!(leases.exists(1));
        assert!(!leases.exists(2));
    }
}
