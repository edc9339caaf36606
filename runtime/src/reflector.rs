//! A copy of a prefix that follows the store: one writer (a task that cannot be cloned), many cheap readers. A re-list
//! is swapped in whole, so no reader ever sees half a list. Controllers reflect the whole root; agents their own keys.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::boottime::{self, Instant};
use crate::map::KeyMap;
use crate::shutdown::Shutdown;
use crate::store::{KeyValue, Prefix, Store, WatchInput, WatchStream};
use crate::watch::{Action, Event, Input, Machine};

/// The store as it was at one revision. Cloning is free.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// All changes up to this revision are in, and none after it.
    pub revision: i64,
    /// Which store it is a copy of.
    pub cluster_id: u64,
    /// How often the whole prefix was listed in this process; 1 at first.
    pub lists: u64,
    /// Set for good once the store answered with an older revision than before, or turned out to be another store:
    /// the latest position seen before that. The cache shows the store as it is now all the same; who removes
    /// anything must look at this first.
    pub went_back: Option<Position>,
    /// The keys. The `Arc` of one stays the same until the key changes, through re-lists too.
    pub keys: KeyMap,
    /// Counts the changes of keys.
    generation: u64,
}

/// A place in the history of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which store.
    pub cluster_id: u64,
    /// The revision.
    pub revision: i64,
}

/// How to reflect.
#[derive(Clone, Debug)]
pub struct ReflectOptions {
    /// Keys under these prefixes are left out of the cache (`/reeve/events/`).
    pub skip: Vec<Prefix>,
    /// A watch that says nothing for this long is opened anew; 11 minutes, as etcd reports progress every ten.
    pub silence: Duration,
    /// The delays between failures; 100 ms to 10 s by default.
    pub backoff: Backoff,
}

impl Default for ReflectOptions {
    fn default() -> Self {
        Self {
            skip: Vec::new(),
            silence: Duration::from_secs(660),
            backoff: Backoff::default(),
        }
    }
}

/// Starts to reflect a prefix until the shutdown drains or the last reader is gone. Returns at once; wait for
/// [`Reader::ready`]. Needs a tokio runtime.
pub fn reflect<S: Store>(store: S, prefix: Prefix, options: ReflectOptions, shutdown: &Shutdown) -> Reader {
    let (publish, cache) = watch::channel(None);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let closed = publish.clone();
        tokio::select! {
            () = shutdown.draining() => {}
            () = closed.closed() => {}
            () = follow(store, prefix, options, publish) => {}
        }
    });
    Reader { cache, seen: 0 }
}

/// The driver: does what the machine says, for ever.
async fn follow<S: Store>(store: S, prefix: Prefix, options: ReflectOptions, publish: watch::Sender<Option<Cache>>) {
    let ReflectOptions {
        skip,
        silence,
        mut backoff,
    } = options;
    let mut machine = Machine::new();
    let mut writer = Writer::new(skip);
    let mut action = Machine::start();
    let mut open: Option<WatchStream> = None;
    let mut last_failure = None;
    loop {
        let input = match action {
            Action::List { after_failure } => {
                drop(open.take());
                if after_failure {
                    pause(&mut backoff, &mut last_failure).await;
                }
                match store.list(&prefix).await {
                    Ok(listing) => Input::Listed(listing),
                    Err(error) => {
                        let cause = error.source.as_ref().map(ToString::to_string);
                        tracing::warn!(%error, cause, remedy = error.remedy(), "the store cannot be listed");
                        Input::ListFailed
                    }
                }
            }
            Action::Watch { from, after_failure } => {
                if after_failure {
                    drop(open.take());
                    pause(&mut backoff, &mut last_failure).await;
                }
                open = Some(store.watch(&prefix, from));
                action = Action::Read;
                continue;
            }
            Action::Read => match &mut open {
                None => Input::Silence,
                Some(stream) => tokio::select! {
                    said = stream.next() => said.map_or(Input::Silence, Input::Watch),
                    () = boottime::sleep(silence) => Input::Silence,
                },
            },
        };
        match &input {
            Input::Watch(WatchInput::Response { .. }) => backoff.reset(),
            Input::Watch(WatchInput::Disconnected(error)) => tracing::debug!(%error, %prefix, "a watch broke"),
            Input::Watch(WatchInput::Canceled {
                compact_revision,
                reason,
            }) => {
                tracing::debug!(compact_revision, %reason, %prefix, "the store ended a watch");
            }
            Input::Watch(WatchInput::Opened { .. }) | Input::Listed(_) | Input::ListFailed => {}
            Input::Silence | Input::Gap => tracing::debug!(%prefix, "a watch fell silent or left a gap"),
        }
        let (events, next) = machine.step(input);
        action = next;
        for event in events {
            match writer.apply(event) {
                Ok(None) => {}
                Ok(Some(cache)) => {
                    publish.send_replace(Some(cache));
                }
                Err(Gap { key }) => {
                    tracing::warn!(key = %String::from_utf8_lossy(&key), "an event does not continue the cache: listing again");
                    (_, action) = machine.step(Input::Gap);
                    break;
                }
            }
        }
    }
}

/// Waits after a failure. One that comes after a good while is the first of its row again.
async fn pause(backoff: &mut Backoff, last_failure: &mut Option<Instant>) {
    const GOOD_WHILE: Duration = Duration::from_secs(60);
    if last_failure.is_some_and(|at| at.elapsed() > GOOD_WHILE) {
        backoff.reset();
    }
    boottime::sleep(backoff.delay()).await;
    *last_failure = Some(Instant::now());
}

/// The one writer of a cache: applies events, and gives out each state that readers may see.
#[derive(Debug)]
pub(crate) struct Writer {
    skip: Vec<Prefix>,
    cache: Option<Cache>,
    listing: Vec<Arc<KeyValue>>,
    lists: u64,
    changed: bool,
}

/// An event that does not continue the cache.
#[derive(Debug)]
pub(crate) struct Gap {
    key: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(skip: Vec<Prefix>) -> Self {
        Self {
            skip,
            cache: None,
            listing: Vec::new(),
            lists: 0,
            changed: false,
        }
    }

    /// Applies one event; returns the cache when readers may see it.
    pub(crate) fn apply(&mut self, event: Event) -> Result<Option<Cache>, Gap> {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(kv) => {
                if !self.is_skipped(&kv.key) {
                    let known = self.cache.as_ref().and_then(|c| c.keys.get(&kv.key));
                    let same = known.filter(|known| ***known == kv).cloned();
                    self.listing.push(same.unwrap_or_else(|| Arc::new(kv)));
                }
            }
            Event::InitDone { position, went_back } => return Ok(Some(self.swap(position, went_back))),
            Event::Apply(kv) => self.put(kv)?,
            Event::Delete { key, revision: _ } => self.delete(key)?,
            Event::Synced { revision } => {
                if let Some(cache) = &mut self.cache {
                    cache.revision = cache.revision.max(revision);
                    cache.generation += u64::from(std::mem::take(&mut self.changed));
                    return Ok(Some(cache.clone()));
                }
            }
        }
        Ok(None)
    }

    fn swap(&mut self, position: Position, went_back: Option<Position>) -> Cache {
        self.lists += 1;
        self.changed = false;
        let keys = KeyMap::from_unsorted(std::mem::take(&mut self.listing));
        let old = self.cache.take();
        let earlier = old.as_ref().and_then(|c| c.went_back);
        let unchanged = old.as_ref().is_some_and(|c| c.keys == keys) && went_back.is_none();
        let generation = old.map_or(0, |c| c.generation) + u64::from(!unchanged);
        let cache = Cache {
            revision: position.revision,
            cluster_id: position.cluster_id,
            lists: self.lists,
            went_back: went_back.or(earlier),
            keys,
            generation,
        };
        self.cache = Some(cache.clone());
        cache
    }

    fn put(&mut self, kv: KeyValue) -> Result<(), Gap> {
        if self.is_skipped(&kv.key) {
            return Ok(());
        }
        let Some(cache) = &mut self.cache else {
            return Err(Gap { key: kv.key });
        };
        let continues = match cache.keys.get(&kv.key) {
            Some(known) if known.mod_revision == kv.mod_revision => return Ok(()),
            Some(known) => known.create_revision == kv.create_revision && known.version + 1 == kv.version,
            None => kv.version == 1,
        };
        if !continues {
            return Err(Gap { key: kv.key });
        }
        cache.keys.insert(Arc::new(kv));
        self.changed = true;
        Ok(())
    }

    fn delete(&mut self, key: Vec<u8>) -> Result<(), Gap> {
        if self.is_skipped(&key) {
            return Ok(());
        }
        match self.cache.as_mut().and_then(|c| c.keys.remove(&key)) {
            Some(_) => {
                self.changed = true;
                Ok(())
            }
            None => Err(Gap { key }),
        }
    }

    fn is_skipped(&self, key: &[u8]) -> bool {
        self.skip.iter().any(|prefix| prefix.covers(key))
    }
}

/// Reads one reflected prefix.
#[derive(Clone, Debug)]
pub struct Reader {
    cache: watch::Receiver<Option<Cache>>,
    /// The generation that `changed` last told of.
    seen: u64,
}

/// The reflector has ended (at shutdown): nothing changes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("follow the store: the reflector has ended")]
pub struct Ended;

impl Reader {
    /// The cache now; `None` before the first complete list.
    pub fn snapshot(&self) -> Option<Cache> {
        self.cache.borrow().clone()
    }

    /// Waits for the first complete list.
    pub async fn ready(&self) -> Result<Cache, Ended> {
        self.synced_to(0).await
    }

    /// Waits until every change up to a revision is in. Only the revision of a write under this prefix is certain to be
    /// reached without further writes.
    pub async fn synced_to(&self, revision: i64) -> Result<Cache, Ended> {
        let mut cache = self.cache.clone();
        let found = cache
            .wait_for(|c| c.as_ref().is_some_and(|c| c.revision >= revision))
            .await;
        found.ok().and_then(|c| c.clone()).ok_or(Ended)
    }

    /// Whether the reflector has ended, so that nothing changes any more.
    pub fn has_ended(&self) -> bool {
        self.cache.has_changed().is_err()
    }

    /// Whether every change up to a revision is in.
    pub fn is_at_least(&self, revision: i64) -> bool {
        self.cache.borrow().as_ref().is_some_and(|c| c.revision >= revision)
    }

    /// Waits for a change of any key since this reader last called `changed`; the first list is one. Says nothing about
    /// what changed: take a snapshot.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        loop {
            let generation = self.cache.borrow_and_update().as_ref().map_or(0, |c| c.generation);
            if generation != self.seen {
                self.seen = generation;
                return Ok(());
            }
            self.cache.changed().await.map_err(|_| Ended)?;
        }
    }
}

#[cfg(test)]
mod tests;
