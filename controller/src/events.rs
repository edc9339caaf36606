//! Events: what people should hear of, once. The leading controller hands over notices; a task writes them under a lease
//! of an hour, one lease for ten minutes of events. Nothing decides from them, and nothing waits for them: what comes
//! too fast, or too often, is dropped and counted.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use planner::cluster::Notice;
use runtime::boottime::Instant;
use runtime::{Fence, Guard, Store, StoreErrorKind, Txn};
use schemas::keys::{Key, Root};
use schemas::names::Namespace;
use schemas::records::{Event, Record, SchemaVersion};
use tokio::sync::mpsc;

/// How long an event can be read.
const TTL: Duration = Duration::from_secs(3600);
/// How long one lease is used for new events.
const BUCKET: Duration = Duration::from_secs(600);
/// The same notice is not told again for this long.
const QUIET: Duration = Duration::from_secs(3600);
/// Notices remembered for that, by their hash: more than can be told in that time. Beyond, the oldest are forgotten.
const MAX_SEEN: usize = 40_000;
/// Events of one minute; what is beyond is dropped.
const PER_MINUTE: u32 = 600;
/// Events waiting to be written.
const WAITING: usize = 1024;
/// Events of one write.
const AT_ONCE: usize = 64;

/// Where notices go in.
#[derive(Debug)]
pub struct Events {
    seen: HashMap<u64, Instant>,
    hasher: RandomState,
    minute: Instant,
    in_minute: u32,
    out: mpsc::Sender<Notice>,
}

/// What became of the notices of one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Handed over to be written.
    pub sent: u64,
    /// Dropped: too many of them.
    pub dropped: u64,
}

impl Events {
    /// The sender, and what [`write`] takes.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (out, waiting) = mpsc::channel(WAITING);
        (
            Self {
                seen: HashMap::new(),
                hasher: RandomState::new(),
                minute: Instant::now(),
                in_minute: 0,
                out,
            },
            waiting,
        )
    }

    /// Hands over those that were not told lately.
    pub fn tell<'a>(&mut self, notices: impl IntoIterator<Item = &'a Notice>) -> Told {
        let now = Instant::now();
        let mut told = Told::default();
        for notice in notices {
            let same = self.hasher.hash_one((&notice.about, notice.reason, &notice.message));
            if self.seen.get(&same).is_some_and(|at| now.since(*at) < QUIET) {
                continue;
            }
            if now.since(self.minute) >= Duration::from_secs(60) {
                (self.minute, self.in_minute) = (now, 0);
            }
            if self.in_minute >= PER_MINUTE || self.out.try_send(notice.clone()).is_err() {
                // Not remembered: it is told when there is room again.
                told.dropped += 1;
                continue;
            }
            self.in_minute += 1;
            if self.seen.len() >= MAX_SEEN {
                self.seen.retain(|_, at| now.since(*at) < QUIET);
            }
            self.seen.insert(same, now);
            told.sent += 1;
        }
        told
    }
}

/// Writes what comes in until its sender is gone. A failure loses the events at hand, and is logged.
pub async fn write<S: Store>(store: S, root: Root, fence: Fence, epoch: i64, mut waiting: mpsc::Receiver<Notice>) {
    let mut lease: Option<(i64, Instant)> = None;
    let mut number: u64 = 0;
    let mut notices = Vec::new();
    while waiting.recv_many(&mut notices, AT_ONCE).await > 0 {
        let now = Instant::now();
        if lease.is_none_or(|(_, since)| now.since(since) >= BUCKET) {
            match store.lease_grant(TTL).await {
                Ok(granted) => lease = Some((granted.id, now)),
                Err(error) => {
                    tracing::debug!(%error, lost = notices.len(), "events were not written");
                    notices.clear();
                    continue;
                }
            }
        }
        let Some((id, _)) = lease else { continue };
        let time = rfc3339_now();
        let txns = notices.drain(..).map(|notice| {
            number += 1;
            let key = root.key(&Key::Event(format!(
                "{}/{epoch:016x}-{number:08x}",
                namespace_of(&notice.about)
            )));
            let event = event(notice, &time);
            Txn::new(&fence).put_leased(key, event.encode(), Guard::Absent, id)
        });
        for outcome in store.batch(txns.collect()).await {
            if let Err(error) = outcome {
                tracing::debug!(%error, "an event was not written");
                if error.kind == StoreErrorKind::LeaseNotFound {
                    lease = None;
                }
            }
        }
    }
}

fn event(notice: Notice, time: &str) -> Event {
    let Notice {
        kind,
        reason,
        message,
        about,
        node,
    } = notice;
    Event {
        schema_version: SchemaVersion::default(),
        time: time.to_owned(),
        kind,
        reason: reason.to_owned(),
        message: message.chars().take(2048).collect(),
        about: about.chars().take(512).collect(),
        node,
        by: "controller".to_owned(),
    }
}

/// Events stand under the namespace of what they are about; `_` for what has none.
fn namespace_of(about: &str) -> String {
    let first = about.split('/').next().unwrap_or_default();
    first
        .parse::<Namespace>()
        .map_or_else(|_| "_".to_owned(), |namespace| namespace.to_string())
}

/// The time for people: RFC 3339, in UTC, whole seconds.
#[must_use]
pub fn rfc3339_now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use schemas::records::EventType;

    use super::*;

    fn notice(message: &str) -> Notice {
        Notice {
            kind: EventType::Normal,
            reason: "Accepted",
            message: message.to_owned(),
            about: "default/service/web".to_owned(),
            node: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_notice_is_told_once_an_hour() {
        let (mut events, _waiting) = Events::channel();
        assert_eq!(events.tell([&notice("a"), &notice("a"), &notice("b")]).sent, 2);
        assert_eq!(events.tell([&notice("a")]).sent, 0);
        tokio::time::advance(QUIET + Duration::from_secs(1)).await;
        assert_eq!(events.tell([&notice("a")]).sent, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_dropped_and_counted() {
        let (mut events, _waiting) = Events::channel();
        let flood: Vec<Notice> = (0..1000).map(|n| notice(&n.to_string())).collect();
        let told = events.tell(&flood);
        assert_eq!((told.sent, told.dropped), (u64::from(PER_MINUTE), 400));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(events.tell(&flood).sent, 400);
    }
}
