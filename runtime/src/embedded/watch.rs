//! The Watch service of the embedded store: one task per stream, any number of watches on it.
//!
//! Nothing is queued per watch: each remembers the next revision it wants and takes it from the
//! history in memory when the client can take more. So a slow client holds up nobody and costs
//! nothing; if it falls behind a compaction its watch is cancelled with the compact revision, and
//! the client lists again, as with etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Status, Streaming};

use super::api::{Api, Stop};
use super::mvcc::{Commit, Item};
use super::refusal::Refusal;

/// Revisions looked at in one turn, so that a long catch-up leaves room for requests.
const TURN: usize = 1000;
/// A response is sent once its events hold this many bytes; one revision is never split.
const FULL: usize = 1 << 20;
/// Watches on one stream. etcd has no limit; a client beyond this one gets its watch refused.
const MAX_WATCHES: usize = 100_000;

#[derive(Debug)]
struct Watcher {
    key: Vec<u8>,
    /// As in a range: empty, one zero byte, or an end.
    end: Vec<u8>,
    next: i64,
    puts: bool,
    deletes: bool,
    prev: bool,
    progress: bool,
    /// Something was sent since the last progress tick.
    busy: bool,
}

impl Watcher {
    fn wants(&self, item: &Item) -> bool {
        let key = &item.key[..];
        let inside = match self.end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        };
        inside
            && match item.deleted {
                true => self.deletes,
                false => self.puts,
            }
    }
}

/// The client has gone, or the server ends.
struct Gone;

pub(crate) struct Session {
    api: Api,
    responses: Sender<Result<PbWatchResponse, Status>>,
    stop: Stop,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// Progress was asked for and not yet told.
    owed_progress: bool,
}

impl Session {
    pub fn new(api: Api, responses: Sender<Result<PbWatchResponse, Status>>, stop: Stop) -> Self {
        Self {
            api,
            responses,
            stop,
            watchers: BTreeMap::new(),
            next_id: 0,
            owed_progress: false,
        }
    }

    /// Serves the stream until the client or the server ends it.
    pub async fn run(mut self, mut requests: Streaming<PbWatchRequest>, progress: Duration) {
        let mut published = self.api.core.published.subscribe();
        let mut listening = true;
        let period = progress.max(Duration::from_millis(10));
        let mut tick = tokio::time::interval_at(Instant::now() + period, period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let current = *published.borrow_and_update();
            let behind = match self.deliver(current).await {
                Ok(behind) => behind,
                Err(Gone) => return,
            };
            let result = tokio::select! {
                biased;
                () = self.responses.closed() => Err(Gone),
                () = self.stop.wait() => {
                    let _ = self.responses.try_send(Err(Refusal::Stopped.into()));
                    Err(Gone)
                }
                request = requests.message(), if listening => match request {
                    Ok(Some(request)) => self.handle(request).await,
                    // The client will ask for nothing more, and may still listen.
                    Ok(None) => {
                        listening = false;
                        Ok(())
                    }
                    Err(_) => Err(Gone),
                },
                () = std::future::ready(()), if behind => Ok(()),
                changed = published.changed() => changed.map_err(|_| Gone),
                _ = tick.tick() => self.tell_progress(current).await,
            };
            if result.is_err() {
                return;
            }
        }
    }

    async fn send(&mut self, response: PbWatchResponse) -> Result<(), Gone> {
        tokio::select! {
            sent = self.responses.send(Ok(response)) => sent.map_err(|_| Gone),
            () = self.stop.wait() => Err(Gone),
        }
    }

    async fn handle(&mut self, request: PbWatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(req)) => {
                let watcher = Watcher {
                    key: match req.key.is_empty() {
                        true => vec![0], // the smallest key
                        false => req.key,
                    },
                    end: req.range_end,
                    next: req.start_revision,
                    puts: !req.filters.contains(&0),
                    deletes: !req.filters.contains(&1),
                    prev: req.prev_kv,
                    progress: req.progress_notify,
                    busy: false,
                };
                self.create(req.watch_id, watcher).await
            }
            Some(PbWatchRequestUnion::CancelRequest(req)) => {
                if self.watchers.remove(&req.watch_id).is_none() {
                    return Ok(()); // etcd says nothing either
                }
                let response = PbWatchResponse {
                    header: self.api.header(None),
                    watch_id: req.watch_id,
                    canceled: true,
                    ..Default::default()
                };
                self.send(response).await
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.owed_progress = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, wanted: i64, mut watcher: Watcher) -> Result<(), Gone> {
        let current = self.api.core.revision();
        let backwards = !matches!(watcher.end.as_slice(), [] | [0]) && watcher.key >= watcher.end;
        let reason = if backwards {
            "mvcc: watcher range is empty"
        } else if self.watchers.contains_key(&wanted) && wanted != 0 {
            "mvcc: duplicate watch ID provided on the WatchStream"
        } else if self.watchers.len() >= MAX_WATCHES {
            "etcdserver: too many watches on one stream"
        } else {
            ""
        };
        if !reason.is_empty() {
            let response = PbWatchResponse {
                header: self.api.header(Some(current)),
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: reason.into(),
                ..Default::default()
            };
            return self.send(response).await;
        }
        let id = match wanted {
            0 => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id = self.next_id.wrapping_add(1);
                }
                let id = self.next_id;
                self.next_id = id.wrapping_add(1);
                id
            }
            id => id,
        };
        if watcher.next == 0 {
            watcher.next = current.saturating_add(1);
        }
        self.watchers.insert(id, watcher);
        let response = PbWatchResponse {
            header: self.api.header(Some(current)),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        self.send(response).await
    }

    /// Gives every watch its next events up to `current`, one turn of them. True when some watch
    /// has still more to come.
    async fn deliver(&mut self, current: i64) -> Result<bool, Gone> {
        let Some(from) = self.watchers.values().map(|w| w.next).min() else {
            return self.settle_progress(current).await;
        };
        if from > current {
            return self.settle_progress(current).await;
        }
        let (commits, compacted) = {
            let state = self.api.core.read();
            let start = from.max(state.store.compacted());
            (state.store.commits(start, TURN), state.store.compacted())
        };
        // All that was looked at; every watch that was due has seen the history up to here.
        let seen = match commits.len() < TURN {
            true => commits.last().map_or(current, |c| c.revision.max(current)),
            false => commits.last().map_or(current, |c| c.revision),
        };
        let mut responses = Vec::new();
        let mut cancelled = Vec::new();
        let mut behind = false;
        for (id, watcher) in &mut self.watchers {
            if watcher.next < compacted {
                cancelled.push(*id);
                continue;
            }
            let mut bytes = 0;
            let mut events = Vec::new();
            let mut done = seen;
            let start = commits.partition_point(|c| c.revision < watcher.next);
            for commit in &commits[start..] {
                bytes += collect(watcher, commit, &mut events);
                if bytes >= FULL {
                    done = commit.revision;
                    break;
                }
            }
            watcher.next = watcher.next.max(done.saturating_add(1));
            behind |= done < current;
            if !events.is_empty() {
                watcher.busy = true;
                responses.push(PbWatchResponse {
                    header: self.api.header(Some(done)),
                    watch_id: *id,
                    events,
                    ..Default::default()
                });
            }
        }
        for id in cancelled {
            self.watchers.remove(&id);
            responses.push(PbWatchResponse {
                header: self.api.header(Some(current)),
                watch_id: id,
                canceled: true,
                compact_revision: compacted,
                ..Default::default()
            });
        }
        for response in responses {
            self.send(response).await?;
        }
        match behind {
            true => Ok(true),
            false => self.settle_progress(current).await,
        }
    }

    /// Every watch has had everything up to `current`.
    async fn settle_progress(&mut self, current: i64) -> Result<bool, Gone> {
        if std::mem::take(&mut self.owed_progress) {
            let response = PbWatchResponse {
                header: self.api.header(Some(current)),
                watch_id: -1, // for all of them
                ..Default::default()
            };
            self.send(response).await?;
        }
        Ok(false)
    }

    /// Tells quiet watches that asked for it how far they are.
    async fn tell_progress(&mut self, current: i64) -> Result<(), Gone> {
        let mut quiet = Vec::new();
        for (id, watcher) in &mut self.watchers {
            let busy = std::mem::take(&mut watcher.busy);
            if watcher.progress && !busy && watcher.next > current {
                quiet.push(*id);
            }
        }
        for watch_id in quiet {
            let response = PbWatchResponse {
                header: self.api.header(Some(current)),
                watch_id,
                ..Default::default()
            };
            self.send(response).await?;
        }
        Ok(())
    }
}

/// Adds what `watcher` wants of a commit, and returns its size.
fn collect(watcher: &Watcher, commit: &Arc<Commit>, events: &mut Vec<PbEvent>) -> usize {
    let mut bytes = 0;
    for change in &commit.changes {
        if !watcher.wants(&change.item) {
            continue;
        }
        let prev = change.prev.as_ref().filter(|_| watcher.prev);
        bytes += 64 + change.item.key.len() + change.item.value.len();
        bytes += prev.map_or(0, |p| p.key.len() + p.value.len());
        events.push(PbEvent {
            r#type: i32::from(change.item.deleted),
            kv: Some(change.item.to_pb()),
            prev_kv: prev.map(|p| p.to_pb()),
        });
    }
    bytes
}
