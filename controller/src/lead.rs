//! What a leading controller does: passes, one after the other. Each observes, plans and executes once; events wake it,
//! state decides. [`super::run`] calls it for as long as a leadership lasts.
//!
//! No pass begins before the cache has reached what the last one wrote, nor goes on once the leadership is lost: whatever
//! of it was written stands, and the next leader goes on from there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use planner::cluster::{self, Absences, Moment, Notice, Plan, PlanOptions, VerdictsOut};
use runtime::backoff::Backoff;
use runtime::blocking;
use runtime::boottime::{self, Instant};
use runtime::{Cache, Fence, Leadership, Lost, Position, Store, StoreError};
use schemas::keys::Key;
use schemas::names::NodeName;
use schemas::records::{EventType, Order, Verdict};
use tokio::sync::watch;
use trust::sign::Signing;
use trust::validity::Validity;

use crate::events::{self, Events};
use crate::execute::{self, Base, Batch, Committed};
use crate::metrics::{self, View};
use crate::observe::{Hold, Observer, State};
use crate::run::{Controller, ControllerError, Task, lock, today};
use crate::vault::{self, Hand, Vault};

/// The delays after failed passes: long enough not to burden a sick store, short enough that nobody waits for us.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// The delays after conflicts: the cache is about to learn what the store knew.
const CONFLICT: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Passes never compute for more than half of the time; but a longer one than this is not waited for.
const LONGEST_GAP: Duration = Duration::from_millis(500);
/// A held leader looks again this often even when nothing changes.
const HELD: Duration = Duration::from_secs(5);
/// The cache follows our own write within milliseconds. When it has not for so long, the store is asked whether it still
/// knows of it.
const OWN_WRITE: Duration = Duration::from_secs(2);
/// A write that no store would take is tried again this late; changes are acted on as always.
const REFUSED: Duration = Duration::from_secs(60);

/// Whether quiet assignments must be signed anew is looked at this often at least; more often where certificates are short.
const SIGNED: Duration = Duration::from_secs(3_600);

/// Why a leader stops leading.
pub(crate) enum End {
    Lost,
    Draining,
}

/// When the next pass is due.
enum Next {
    /// When something changes, or after this long.
    Changed(Option<Duration>),
    /// After this long, whatever changes.
    After(Duration),
    /// After the usual gap, whatever changes: there is more to do.
    Soon,
    /// The reflector has ended, or the leadership: there is none.
    Never(End),
}

/// What one pass thought of, before anything is written.
enum Thought {
    Held(Hold),
    /// New verdicts, or a plan, or both.
    Decided {
        verdicts: Option<Box<(Batch, VerdictsOut)>>,
        planned: Option<Box<Planned>>,
    },
}

struct Planned {
    plan: Plan,
    batch: Batch,
    /// What nodes need before they get their work.
    hands: Vec<Hand>,
    view: View,
    /// What was spent of the removal budget before this pass.
    spent: u32,
    observe: Duration,
    took: Duration,
}

/// What a leader keeps from pass to pass; a new leadership begins with a new one.
struct Desk {
    fence: Fence,
    epoch: i64,
    /// The cache must have reached this before the next pass.
    wrote: i64,
    /// The last pass wrote verdicts and made no plan: the next one makes a plan, whatever verdicts have changed since.
    verdicts_alone: bool,
    /// The store took offence at a write: the next pass sends each on its own.
    refused: bool,
    /// What the reflector last said of the store's going back.
    went_back: Option<Position>,
    /// Removals by when they were done, in milliseconds since `start`; none before the first pass.
    spent: Option<Vec<(u64, u32)>>,
    behind: BTreeMap<NodeName, (Order, Instant)>,
    /// Nodes that are away, and when a pass is due for their sake, in milliseconds since `start`.
    absences: Absences,
    losses_due: Option<u64>,
    /// The order of the last assignment that was made for each node.
    written: BTreeMap<NodeName, Order>,
    start: Instant,
    /// How long the last pass computed.
    thought: Duration,
    retry: Backoff,
    conflict: Backoff,
    events: Events,
}

impl Desk {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl<S: Store> Controller<S> {
    /// Runs passes until the leadership is lost or the shutdown drains.
    pub(crate) async fn lead(&mut self, leadership: &Leadership) -> Result<End, ControllerError> {
        let lost = leadership.lost();
        let fence = Fence::leader(leadership);
        let (events, waiting) = Events::channel();
        let _events = Task(tokio::spawn(events::write(
            self.store.clone(),
            self.root.clone(),
            fence.clone(),
            leadership.epoch(),
            waiting,
        )));
        let mut desk = Desk {
            fence,
            epoch: leadership.epoch(),
            wrote: leadership.epoch(),
            verdicts_alone: false,
            refused: false,
            // What was there before the leadership was won is no reason to look at less than its epoch.
            went_back: self.reader.snapshot().and_then(|cache| cache.went_back),
            spent: None,
            behind: BTreeMap::new(),
            absences: Absences::default(),
            losses_due: None,
            written: BTreeMap::new(),
            start: Instant::now(),
            thought: Duration::ZERO,
            retry: Backoff::new(RETRY.0, RETRY.1),
            conflict: Backoff::new(CONFLICT.0, CONFLICT.1),
            events,
        };
        let shutdown = self.shutdown.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = lost.lost() => return Ok(End::Lost),
                () = shutdown.aborting() => return Ok(End::Draining),
                next = self.pass(&mut desk) => next?,
            };
            if let Some(end) = self.wait(next, desk.thought, &lost).await {
                return Ok(end);
            }
        }
    }

    /// Waits until the next pass is due.
    async fn wait(&mut self, next: Next, thought: Duration, lost: &Lost) -> Option<End> {
        let gap = thought.clamp(self.debounce, LONGEST_GAP.max(self.debounce));
        let (shutdown, reader, signing) = (self.shutdown.clone(), &mut self.reader, &mut self.signing);
        let due = async move {
            match next {
                Next::Never(end) => return Some(end),
                Next::After(delay) => boottime::sleep(delay).await,
                Next::Soon => tokio::time::sleep(gap).await,
                Next::Changed(look_again) => {
                    tokio::time::sleep(gap).await;
                    let alarm = async {
                        match look_again {
                            Some(delay) => boottime::sleep(delay).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        changed = reader.changed() => if changed.is_err() { return Some(End::Draining) },
                        () = alarm => {}
                        () = renewed(signing) => {}
                    }
                }
            }
            None
        };
        tokio::select! {
            biased;
            () = lost.lost() => Some(End::Lost),
            () = shutdown.draining() => Some(End::Draining),
            end = due => end,
        }
    }

    /// Observes, plans and executes once.
    async fn pass(&mut self, desk: &mut Desk) -> Result<Next, ControllerError> {
        let cache = tokio::select! {
            () = self.shutdown.draining() => return Ok(Next::Never(End::Draining)),
            cache = self.reached(desk) => cache,
        };
        let Some(cache) = cache else {
            return Ok(Next::Never(End::Draining));
        };
        let began = Instant::now();
        let revision = cache.revision;
        let Some(thought) = self.think(desk, cache).await else {
            self.metrics.passed("panicked", began.elapsed());
            return Ok(Next::After(desk.retry.delay()));
        };
        desk.thought = began.elapsed();
        let (verdicts, planned) = match thought {
            Thought::Held(hold) => {
                self.metrics.passed("held", began.elapsed());
                self.say_hold(hold)?;
                return Ok(Next::Changed(Some(HELD)));
            }
            Thought::Decided { verdicts, planned } => (verdicts, planned),
        };
        self.acts_again();
        let is_plan = planned.is_some();
        desk.verdicts_alone = !is_plan;
        let together = desk.conflict.failures() == 0 && !desk.refused;
        let (mut quiet, mut unfinished, mut committed) = (true, false, Committed::default());
        if let Some(verdicts) = verdicts {
            let (batch, out) = *verdicts;
            quiet = batch.is_empty();
            committed = batch.commit(&self.store, together).await;
            self.metrics.told(desk.events.tell(&verdict_notices(&out)));
        }
        if let Some(planned) = planned.filter(|_| committed.may_go_on()) {
            let (more, left) = self.execute(desk, *planned, together).await;
            quiet &= more.counts.is_empty();
            unfinished = left;
            committed.add(more);
        }
        self.metrics.wrote(&committed);
        desk.wrote = desk.wrote.max(committed.revision.unwrap_or(0));
        let took = began.elapsed();
        if committed.fence_lost {
            // The keeper of the leadership may not have noticed yet.
            self.metrics.passed("failed", took);
            return Ok(Next::Never(End::Lost));
        }
        if let Some(error) = committed.error {
            let delay = desk.retry.delay();
            tracing::warn!(reason = "StoreUnavailable", %error, ?delay, remedy = error.remedy(), "a write failed: trying again");
            self.metrics.passed("failed", took);
            return Ok(Next::After(delay));
        }
        desk.retry.reset();
        desk.refused = !committed.refused.is_empty();
        let notices: Vec<Notice> = committed.refused.iter().map(refusal_notice).collect();
        self.metrics.told(desk.events.tell(&notices));
        if committed.conflicts > 0 {
            self.metrics.passed("conflict", took);
            return Ok(Next::After(desk.conflict.delay()));
        }
        desk.conflict.reset();
        self.metrics.passed(if quiet { "quiet" } else { "written" }, took);
        if quiet {
            self.metrics.settled(revision);
        }
        if desk.refused {
            return Ok(Next::Changed(Some(REFUSED)));
        }
        if unfinished || !is_plan {
            return Ok(Next::Soon);
        }
        let signs = self.signing().map(|signing| {
            let Validity { from, until } = signing.pen.certificate().validity();
            let life = until.unix_seconds().saturating_sub(from.unix_seconds());
            SIGNED.min(Duration::from_secs((life / 20).max(1)))
        });
        Ok(Next::Changed(look_again(desk, revision).into_iter().chain(signs).min()))
    }

    /// Sends what a plan writes, and shows it; whether something was left for the next pass.
    async fn execute(&self, desk: &mut Desk, planned: Planned, together: bool) -> (Committed, bool) {
        let Planned {
            plan,
            batch,
            hands,
            mut view,
            spent,
            observe,
            took,
        } = planned;
        self.metrics.thought(observe, took);
        self.metrics.told(desk.events.tell(&plan.notices));
        let (writes, unfinished) = (batch.len(), batch.unfinished);
        let handed = match vault::write(&self.store, &desk.fence, hands).await {
            Ok(handed) => handed,
            // No reason to hold any work back: what is public needs no account.
            Err(error) => {
                tracing::warn!(%error, "accounts of registries could not be handed out: trying again");
                None
            }
        };
        let mut committed = batch.commit(&self.store, together).await;
        committed.revision = committed.revision.max(handed.filter(|revision| *revision > 0));
        let more = plan.breaker.spent.saturating_sub(spent);
        let now = desk.now_ms();
        if let Some(list) = desk.spent.as_mut().filter(|_| committed.removed && more > 0) {
            list.push((now, more));
        }
        if writes > 0 {
            let (accepted, assignments) = (plan.accepted.len(), plan.assignments.len());
            tracing::debug!(writes, accepted, assignments, "a plan was executed");
        }
        view.statuses = plan.statuses;
        view.breaker = plan.breaker;
        self.metrics.show(Some(Arc::new(view)));
        (committed, unfinished)
    }

    /// The cache once it has reached our last write; or at once where the store has gone back, and with it our writes.
    async fn reached(&self, desk: &mut Desk) -> Option<Cache> {
        let mut reader = self.reader.clone();
        loop {
            if let Some(cache) = reader.snapshot() {
                if cache.went_back != desk.went_back {
                    (desk.went_back, desk.wrote) = (cache.went_back, 0);
                }
                if cache.revision >= desk.wrote {
                    return Some(cache);
                }
            }
            tokio::select! {
                changed = reader.changed() => changed.ok()?,
                () = boottime::sleep(OWN_WRITE) => self.look_for_own_write(desk).await,
            }
        }
    }

    /// Asks the store whether it still knows of our last write. When not, it has gone back without the cache having seen
    /// what was lost: from then on the observer has seen it.
    async fn look_for_own_write(&self, desk: &mut Desk) {
        let key = self.root.key(&Key::Cluster);
        if let Ok(read) = self.store.get(key.as_bytes()).await
            && read.revision < desk.wrote
        {
            lock(&self.observer).has_been_at(desk.wrote);
            desk.wrote = 0;
        }
    }

    /// The part of a pass that computes, on a thread of its own; none when it panicked.
    async fn think(&self, desk: &mut Desk, cache: Cache) -> Option<Thought> {
        let observer = Arc::clone(&self.observer);
        let (fence, epoch, now_ms) = (desk.fence.clone(), desk.epoch, desk.now_ms());
        let kept = Kept {
            spent: desk.spent.clone(),
            behind: std::mem::take(&mut desk.behind),
            absences: std::mem::take(&mut desk.absences),
            losses_due: None,
            written: desk.written.clone(),
        };
        let healthy = self.store.health().healthy_for();
        let healthy_ms = healthy.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let plan_at_once = desk.verdicts_alone;
        let (signing, vault) = (self.signing(), self.vault.clone());
        self.metrics.thinks(true);
        let thinking = blocking::spawn(move || {
            let known = Known {
                fence,
                epoch,
                at: Moment { now_ms, healthy_ms },
                plan_at_once,
                signing,
                vault,
            };
            think(&mut lock(&observer), &cache, &known, kept)
        });
        let thought = thinking.await;
        self.metrics.thinks(false);
        match thought {
            Ok((thought, kept)) => {
                (desk.spent, desk.behind) = (kept.spent, kept.behind);
                (desk.absences, desk.losses_due) = (kept.absences, kept.losses_due);
                desk.written = kept.written;
                Some(thought)
            }
            Err(_) => {
                self.panicked();
                None
            }
        }
    }
}

/// Waits for another certificate to sign with, or other authorities.
async fn renewed(signing: &mut Option<watch::Receiver<Arc<Signing>>>) {
    let changed = match signing {
        Some(signing) => signing.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// What thinking takes from a leader's [`Desk`] and puts back.
struct Kept {
    spent: Option<Vec<(u64, u32)>>,
    behind: BTreeMap<NodeName, (Order, Instant)>,
    absences: Absences,
    losses_due: Option<u64>,
    written: BTreeMap<NodeName, Order>,
}

/// What a pass knows beside the store.
struct Known {
    fence: Fence,
    epoch: i64,
    at: Moment,
    /// The last pass wrote verdicts only: a node that comes and goes all the time must not keep the others waiting.
    plan_at_once: bool,
    signing: Option<Arc<Signing>>,
    vault: Option<Arc<Mutex<Vault>>>,
}

/// Observe and plan; nothing waits and nothing is written here.
fn think(observer: &mut Observer, cache: &Cache, known: &Known, mut kept: Kept) -> (Thought, Kept) {
    let Known {
        fence,
        epoch,
        at,
        plan_at_once,
        signing,
        vault,
    } = known;
    let (epoch, now_ms) = (*epoch, at.now_ms);
    let began = std::time::Instant::now();
    if let Some(signing) = signing {
        observer.sign(signing, today());
    }
    if let Err(hold) = observer.observe(&State::from(cache)) {
        return (Thought::Held(hold), kept);
    }
    observer.set_epoch(epoch);
    // A new leader takes what is stored as spent at its own start: never less than what was.
    let mut list = kept
        .spent
        .take()
        .unwrap_or_else(|| vec![(now_ms, observer.snapshot().breaker.spent)]);
    list.retain(|(at, count)| *count > 0 && now_ms.saturating_sub(*at) < cluster::BREAKER_WINDOW_MS);
    let spent = cluster::refill(&list, now_ms);
    observer.set_spent(spent);
    observer.set_written(&kept.written);
    kept.spent = Some(list);
    let observed = began.elapsed();

    let out = cluster::verdicts(observer.snapshot(), &mut kept.absences, *at);
    kept.losses_due = out.look_again_ms.map(|left| now_ms.saturating_add(left));
    let mass_loss = out.mass_loss;
    let verdicts = (!out.writes.is_empty() || !out.forget.is_empty()).then(|| {
        let batch = execute::prepare_verdicts(&Base::new(observer, fence), &out.writes, &out.forget);
        Box::new((batch, out))
    });
    // A plan looks at what is stored: better at the new verdicts than at the old ones.
    if verdicts.is_some() && !plan_at_once {
        let planned = None;
        return (Thought::Decided { verdicts, planned }, kept);
    }
    let began = std::time::Instant::now();
    let mut memo = std::mem::take(&mut observer.memo);
    let plan = cluster::plan_again(
        observer.snapshot(),
        PlanOptions {
            list_changes: false,
            exhaustive: false,
        },
        &mut memo,
    );
    observer.memo = memo;
    let orders = plan.assignments.iter().map(|write| &write.assignment);
    kept.written
        .extend(orders.map(|assignment| (assignment.node.clone(), assignment.order)));
    let took = began.elapsed();
    let batch = execute::prepare(
        &Base::new(observer, fence),
        observer.snapshot(),
        &plan,
        &events::rfc3339_now(),
    );
    let hands = vault.as_ref().map(|vault| {
        let (root, snapshot) = (observer.root(), observer.snapshot());
        lock(vault).prepare(root, cache, snapshot, &plan, today())
    });
    let view = View {
        statuses: BTreeMap::new(),
        nodes: metrics::node_views(observer.snapshot(), &mut kept.behind),
        mass_loss,
        breaker: observer.snapshot().breaker.clone(),
        foreign: observer.foreign_count(),
        unreadable: observer.unreadable_count(),
    };
    let planned = Planned {
        plan,
        batch,
        hands: hands.unwrap_or_default(),
        view,
        spent,
        observe: observed,
        took,
    };
    let planned = Some(Box::new(planned));
    (Thought::Decided { verdicts, planned }, kept)
}

/// When a pass is due though nothing changes: when the oldest removal falls out of the budget's window, when a node has been
/// away for long enough, or when a write of this pass has not come back through the cache.
fn look_again(desk: &Desk, seen: i64) -> Option<Duration> {
    let refill = desk.spent.iter().flatten().map(|(at, _)| *at).min().map(|oldest| {
        let left = (oldest + cluster::BREAKER_WINDOW_MS).saturating_sub(desk.now_ms());
        Duration::from_millis(left.max(1))
    });
    let own = (desk.wrote > seen).then_some(OWN_WRITE);
    let losses = desk
        .losses_due
        .map(|due| Duration::from_millis(due.saturating_sub(desk.now_ms()).max(1)));
    refill.into_iter().chain(own).chain(losses).min()
}

/// What people hear of a write that no store would take.
fn refusal_notice(error: &StoreError) -> Notice {
    tracing::warn!(%error, "a write is refused; everything else goes on");
    let remedy = error.remedy().unwrap_or_default();
    Notice {
        kind: EventType::Warning,
        reason: "WriteRefused",
        message: format!("{error}; {remedy}"),
        about: "_/controller".to_owned(),
        node: None,
    }
}

/// What people hear of new verdicts.
fn verdict_notices(out: &VerdictsOut) -> Vec<Notice> {
    let notice = |node: &NodeName, kind, reason, message: String| Notice {
        kind,
        reason,
        message,
        about: format!("_/node/{node}"),
        node: Some(node.clone()),
    };
    let written = out.writes.iter().map(|(node, record)| {
        let (kind, reason) = match record.verdict {
            Verdict::Ready => (EventType::Normal, "NodeReady"),
            Verdict::Unreachable => (EventType::Warning, "NodeUnreachable"),
            Verdict::Lost => (EventType::Warning, "NodeLost"),
            Verdict::Retired => (EventType::Normal, "NodeRetired"),
        };
        notice(node, kind, reason, format!("node {node}: {}", record.reason))
    });
    let forgotten = out
        .forget
        .iter()
        .map(|node| notice(node, EventType::Normal, "NodeForgotten", format!("node {node} is gone")));
    written.chain(forgotten).collect()
}
