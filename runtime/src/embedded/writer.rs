//! The one thread that changes the embedded store.
//!
//! The API queues commands; the writer takes all that wait, applies them in memory beyond what
//! readers see, commits them to the disk together, makes them visible, and only then answers. A
//! batch that the disk refuses is taken back and every writer in it gets an error; reads go on.
//! It also revokes leases that ran out, and compacts history that is old enough.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::proto::{PbCompactionResponse, PbDeleteRequest, PbDeleteResponse};
use etcd_client::proto::{PbLeaseGrantResponse, PbLeaseRevokeResponse};
use etcd_client::proto::{PbPutRequest, PbPutResponse, PbTxnRequest, PbTxnResponse};
use tokio::sync::{oneshot, watch};

use super::Retention;
use super::disk::{Batch, Disk, Failed, random_u64};
use super::lease::{Leases, Undo};
use super::mvcc::{Store, Write, header};
use super::refusal::Refusal;
use super::txn;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

pub(crate) enum Command {
    Put(PbPutRequest, Reply<PbPutResponse>),
    Delete(PbDeleteRequest, Reply<PbDeleteResponse>),
    Txn(PbTxnRequest, Reply<PbTxnResponse>),
    Grant {
        id: i64,
        ttl: i64,
        reply: Reply<PbLeaseGrantResponse>,
    },
    Revoke(i64, Reply<PbLeaseRevokeResponse>),
    Compact(i64, Reply<PbCompactionResponse>),
    Shrink(Reply<()>),
    /// Commit what waits, and end.
    Close,
}

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct State {
    pub store: Store,
    pub leases: Leases,
}

/// Commands in one commit.
const MAX_BATCH: usize = 1024;
/// Leases revoked in one commit, so that a mass expiry does not hold up the writers.
const MAX_EXPIRED: usize = 256;
/// The longest sleep while leases exist: a suspend is noticed this long after resuming.
const LEASE_NAP: Duration = Duration::from_millis(500);
/// How long after a failed write no lease is revoked, so that a full disk is not written in a loop.
const EXPIRY_HOLD: Duration = Duration::from_secs(1);
/// How often the age of history is noted.
const SAMPLE: Duration = Duration::from_secs(30);

/// Time since boot, suspended time included.
pub(crate) fn now() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

pub(crate) struct Writer {
    pub state: Arc<RwLock<State>>,
    pub disk: Disk,
    pub commands: Receiver<Command>,
    /// The newest visible revision.
    pub published: watch::Sender<i64>,
    /// Bytes of the database file.
    pub size: Arc<std::sync::atomic::AtomicU64>,
    /// Whether the last write found the disk full.
    pub full: Arc<std::sync::atomic::AtomicBool>,
    pub retention: Retention,
    /// (when, revision then), oldest first: how old history is.
    pub samples: VecDeque<(Duration, i64)>,
    /// Since boot; leases that ran out are not revoked before, because the disk just failed.
    pub hold_expiry: Duration,
}

type Finisher = Box<dyn FnOnce(Result<(), Refusal>)>;

/// One batch on its way.
#[derive(Default)]
struct Round {
    finishers: Vec<Finisher>,
    undo: Vec<Undo>,
    leases: Vec<(i64, Option<i64>)>,
}

impl Round {
    /// Keeps an answer until the batch is on disk.
    fn answer<T: 'static>(&mut self, reply: Reply<T>, result: Result<T, Refusal>) {
        self.finishers.push(Box::new(move |outcome| {
            // Whoever asked may have gone.
            let _ = reply.send(outcome.and(result));
        }));
    }
}

impl Writer {
    /// Runs until `Close`, or until nobody can send any more.
    pub fn run(mut self) {
        loop {
            let first = match self.wait() {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut batch: Vec<Command> = first.into_iter().collect();
            while batch.len() < MAX_BATCH && !batch.last().is_some_and(alone) {
                match self.commands.try_recv() {
                    Ok(command) => batch.push(command),
                    Err(_) => break,
                }
            }
            let last = match batch.last().is_some_and(alone) {
                true => batch.pop(),
                false => None,
            };
            self.round(batch);
            match last {
                Some(Command::Compact(revision, reply)) => {
                    let _ = reply.send(self.compact(revision));
                }
                Some(Command::Shrink(reply)) => {
                    let _ = reply.send(self.disk.shrink().map_err(Refusal::Disk));
                    self.note_size();
                }
                Some(Command::Close) => return,
                Some(_) | None => {}
            }
            self.retire_history();
        }
    }

    /// The next command, or a time-out when there is something to do without one.
    fn wait(&self) -> Result<Command, RecvTimeoutError> {
        let now = now();
        let expiry = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match state.leases.is_empty() {
                true => None,
                false => state.leases.next_expiry().map(|at| {
                    at.max(self.hold_expiry)
                        .saturating_sub(now)
                        .clamp(Duration::from_millis(5), LEASE_NAP)
                }),
            }
        };
        let sample = self.samples.front().map(|(at, _)| {
            (*at + self.retention.age)
                .saturating_sub(now)
                .max(Duration::from_millis(100))
        });
        match expiry.into_iter().chain(sample).min() {
            Some(nap) => self.commands.recv_timeout(nap),
            None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Applies, commits, publishes, answers.
    fn round(&mut self, commands: Vec<Command>) {
        let now = now();
        let mut round = Round::default();
        let batch = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            let expired = match now < self.hold_expiry {
                true => Vec::new(),
                false => state.leases.expired(now),
            };
            if expired.is_empty() && commands.is_empty() {
                return;
            }
            for id in expired.into_iter().take(MAX_EXPIRED) {
                // An expired lease exists until it is revoked right here.
                let _ = revoke(state, &mut round, id);
            }
            for command in commands {
                apply(state, &mut round, command, now);
            }
            let put = state
                .store
                .pending()
                .iter()
                .flat_map(|c| c.changes.iter().map(|change| Arc::clone(&change.item)))
                .collect();
            Batch {
                put,
                remove: Vec::new(),
                leases: std::mem::take(&mut round.leases),
                revision: state.store.head(),
                compacted: state.store.compacted(),
            }
        };
        let outcome = match batch.put.is_empty() && batch.leases.is_empty() {
            true => Ok(()),
            false => {
                let outcome = self.disk.commit(&batch);
                let full = outcome.as_ref().is_err_and(|failed| failed.full);
                self.full.store(full, std::sync::atomic::Ordering::Relaxed);
                outcome
            }
        };
        let answer = self.settle(outcome, round.undo, now);
        for finish in round.finishers {
            finish(answer.clone());
        }
    }

    /// Publishes or takes back what was applied, as the disk decided.
    fn settle(&mut self, outcome: Result<(), Failed>, undo: Vec<Undo>, now: Duration) -> Result<(), Refusal> {
        let kept = match &outcome {
            Ok(()) => true,
            Err(failed) => failed.committed,
        };
        let published = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            let before = state.store.committed();
            if kept {
                state.store.publish();
            } else {
                state.store.roll_back();
                state.leases.roll_back(undo, state.store.live(), now);
            }
            let after = state.store.committed();
            (after != before).then_some(after)
        };
        if let Some(revision) = published {
            self.published.send_replace(revision);
            self.note_size();
            self.sample(revision, now);
        }
        if outcome.is_err() {
            self.hold_expiry = now.saturating_add(EXPIRY_HOLD);
        }
        outcome.map_err(|failed| {
            let Failed {
                committed,
                full,
                reason,
            } = failed;
            tracing::error!(%reason, committed, "the embedded store could not be written");
            match (committed, full) {
                (true, _) => Refusal::Ambiguous(reason),
                (false, true) => Refusal::NoSpace,
                (false, false) => Refusal::Disk(reason),
            }
        })
    }

    fn note_size(&self) {
        self.size.store(self.disk.size(), std::sync::atomic::Ordering::Relaxed);
    }

    fn sample(&mut self, revision: i64, now: Duration) {
        let due = self
            .samples
            .back()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= SAMPLE.min(self.retention.age));
        if due {
            self.samples.push_back((now, revision));
        }
    }

    /// Compacts what is older than is kept: by age, and by number where there is more.
    fn retire_history(&mut self) {
        let now = now();
        let mut target = None;
        while let Some((at, revision)) = self.samples.front()
            && now.saturating_sub(*at) >= self.retention.age
        {
            target = Some(*revision);
            self.samples.pop_front();
        }
        let (committed, compacted) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            (state.store.committed(), state.store.compacted())
        };
        if self.samples.is_empty() && committed > target.unwrap_or(compacted) {
            // Commits since the last note: they are as old as is kept one age from now.
            self.samples.push_back((now, committed));
        }
        let keep = self.retention.revisions.max(1);
        // A tenth more than is kept, so that a busy store does not compact at every commit.
        if committed.saturating_sub(compacted) > keep.saturating_add(keep / 10) {
            target = target.max(Some(committed - keep));
        }
        if let Some(target) = target
            && target > compacted
            && let Err(error) = self.compact(target)
        {
            tracing::warn!(%error, "the embedded store could not drop old history");
        }
    }

    fn compact(&mut self, revision: i64) -> Result<PbCompactionResponse, Refusal> {
        let (dropped, batch) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.store.check_compact(revision)?;
            let dropped = state.store.compaction(revision);
            let batch = Batch {
                put: Vec::new(),
                remove: state.store.doomed(&dropped).cloned().collect(),
                leases: Vec::new(),
                revision: state.store.committed(),
                compacted: revision,
            };
            (dropped, batch)
        };
        let outcome = self.disk.commit(&batch);
        if outcome.as_ref().err().is_none_or(|failed| failed.committed) {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.store.compact(revision, &dropped);
        }
        self.note_size();
        self.settle(outcome, Vec::new(), now())?;
        Ok(PbCompactionResponse {
            header: header(batch.revision),
        })
    }
}

/// Commands that do not go into a batch with others.
fn alone(command: &Command) -> bool {
    match command {
        Command::Compact(..) | Command::Shrink(_) | Command::Close => true,
        Command::Put(..) | Command::Delete(..) | Command::Txn(..) | Command::Grant { .. } | Command::Revoke(..) => {
            false
        }
    }
}

fn apply(state: &mut State, round: &mut Round, command: Command, now: Duration) {
    match command {
        Command::Put(req, reply) => {
            let result = txn::check_lease(&req, &state.leases).and_then(|()| {
                let mut write = Write::begin(&mut state.store, &mut state.leases);
                let response = write.put(req)?;
                write.finish();
                Ok(response)
            });
            round.answer(reply, result);
        }
        Command::Delete(req, reply) => {
            let mut write = Write::begin(&mut state.store, &mut state.leases);
            let response = write.delete(&req);
            write.finish();
            round.answer(reply, Ok(response));
        }
        Command::Txn(req, reply) => {
            let mut write = Write::begin(&mut state.store, &mut state.leases);
            let result = txn::apply(&mut write, req);
            if result.is_ok() {
                write.finish();
            } else if write.revert() {
                // Refused midway (only overlapping deletes and puts can be): the keys are back,
                // and the leases' keys follow them.
                let State { store, leases } = state;
                leases.roll_back(Vec::new(), store.live(), now);
            }
            round.answer(reply, result);
        }
        Command::Grant { id, ttl, reply } => {
            let result = grant(state, round, id, ttl, now);
            round.answer(reply, result);
        }
        Command::Revoke(id, reply) => {
            let result = revoke(state, round, id);
            round.answer(reply, result);
        }
        // Never in a batch.
        Command::Compact(..) | Command::Shrink(_) | Command::Close => {}
    }
}

fn grant(
    state: &mut State,
    round: &mut Round,
    id: i64,
    ttl: i64,
    now: Duration,
) -> Result<PbLeaseGrantResponse, Refusal> {
    let id = match id {
        0 => draw_id(&state.leases)?,
        id => id,
    };
    let (ttl, undo) = state.leases.grant(id, ttl, now)?;
    round.undo.push(undo);
    round.leases.push((id, Some(ttl)));
    Ok(PbLeaseGrantResponse {
        header: header(state.store.head()),
        id,
        ttl,
        error: String::new(),
    })
}

fn draw_id(leases: &Leases) -> Result<i64, Refusal> {
    loop {
        let drawn = random_u64().map_err(|e| Refusal::Disk(format!("no random numbers: {e}")))?;
        // Positive, as etcd's.
        let id = i64::try_from(drawn >> 1).unwrap_or(0);
        if id != 0 && !leases.exists(id) {
            return Ok(id);
        }
    }
}

fn revoke(state: &mut State, round: &mut Round, id: i64) -> Result<PbLeaseRevokeResponse, Refusal> {
    let keys = state.leases.keys(id)?;
    let mut write = Write::begin(&mut state.store, &mut state.leases);
    for key in keys {
        write.delete(&PbDeleteRequest {
            key: key.to_vec(),
            ..Default::default()
        });
    }
    let revision = write.finish();
    round.undo.extend(state.leases.remove(id));
    round.leases.push((id, None));
    Ok(PbLeaseRevokeResponse {
        header: header(revision),
    })
}
