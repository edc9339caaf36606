//! What seeds write into the record of what was done (`audit/<who>/<id>`), in the name of who did it: that a node joined or
//! left, that a person logged in, that a seed took its place again. Who does that has no right yet, or none any more, to
//! write it himself. `port` and `leave` call it, after it was done. A record that cannot be written is a warning.

use std::sync::Arc;
use std::time::Duration;

use runtime::{EtcdStore, Guard, Outcome, Prefix, Store as _, chain, person};
use schemas::keys::Key;
use schemas::records::{Done, Ended, Record as _, SchemaVersion};
use trust::identity::Subject;
use trust::validity::Time;

use crate::now;
use crate::persons::record_of;
use crate::port::Seat;

/// How long such a record is kept, in milliseconds: as the others.
const KEPT: u64 = 90 * 86_400_000;
/// The most of them that one writing takes away.
const CLEANED: usize = 100;

/// How often, and how long after each other, a record is tried that must not be waited for.
const TRIES: u32 = 24;
const AGAIN: Duration = Duration::from_secs(5);

/// Writes that somebody did something, as this seed saw it.
pub(crate) async fn tell(seat: &Seat, store: &EtcdStore, who: &Subject, verb: &str, objects: Vec<String>) {
    if let Err(why) = write(seat, store, who, verb, objects, now()).await {
        tracing::warn!(%who, verb, "not in the record: {why}");
    }
}

/// The same beside what goes on, for what the store itself waits for: that another member comes.
pub(crate) fn tell_beside(seat: Arc<Seat>, store: EtcdStore, who: Subject, verb: &'static str, objects: Vec<String>) {
    let at = now();
    tokio::spawn(async move {
        for left in (0..TRIES).rev() {
            match write(&seat, &store, &who, verb, objects.clone(), at).await {
                Ok(()) => return,
                Err(why) if left == 0 => tracing::warn!(%who, verb, "not in the record: {why}"),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    });
}

async fn write(
    seat: &Seat,
    store: &EtcdStore,
    who: &Subject,
    verb: &str,
    objects: Vec<String>,
    now: Time,
) -> Result<(), String> {
    let millis = now.unix_seconds() * 1_000;
    let done = done(seat, now, verb, objects);
    let part = record_of(who);
    let prefix = format!("{}{part}/", seat.root.prefix("audit"));
    let mut known: Vec<Vec<u8>> = Vec::new();
    if let Ok(prefix) = Prefix::new(prefix)
        && let Ok(listing) = store.list(&prefix).await
    {
        known = listing.kvs.into_iter().map(|kv| kv.key).collect();
    }
    // Of one second there may be several, and other seeds write too: the first number that is free.
    let place = |number: u16| {
        let id = format!("{millis:013}-{number:04x}");
        seat.root.key(&Key::Audit(part.clone(), id)).into_bytes()
    };
    let Some(key) = (0..=u16::MAX).map(place).find(|key| !known.contains(key)) else {
        return Err("there are too many of this second".to_owned());
    };
    let old = known
        .into_iter()
        .filter(|key| began(key).is_some_and(|began| began + KEPT < millis));
    let txn = old
        .take(CLEANED)
        .fold(person::txn().put(key, done.encode(), Guard::Absent), |txn, key| {
            txn.delete(key, Guard::Any)
        });
    match store.commit(txn).await {
        Ok(Outcome::Committed { revision: _ }) => Ok(()),
        Ok(Outcome::FenceLost | Outcome::Conflict { keys: _ }) => Err("another wrote the same record".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

fn done(seat: &Seat, now: Time, verb: &str, objects: Vec<String>) -> Done {
    Done {
        schema_version: SchemaVersion::default(),
        time: now.to_string(),
        by: format!("server/{}", seat.host),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        verb: verb.to_owned(),
        objects,
        more: 0,
        ended: Some(Ended {
            exit_code: 0,
            millis: 0,
        }),
    }
}

/// When a record began, by the end of its key.
fn began(key: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(key).ok()?;
    text.rsplit('/').next()?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_records_age_is_in_its_key() {
        assert_eq!(
            began(b"/reeve/audit/node.n1/1790000000000-0001"),
            Some(1_790_000_000_000)
        );
        for odd in [&b"/reeve/audit/node.n1/x"[..], b"", b"/x-1", b"\xff-1"] {
            assert_eq!(began(odd), None);
        }
    }
}
