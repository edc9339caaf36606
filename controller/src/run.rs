//! The controller's life: check the cluster's marker, follow the store, campaign, and while leading run passes: observe,
//! plan, execute. Events wake, state decides: a pass takes the whole store as it is, and no pass begins before the cache
//! has reached what the last one wrote. `reeve controller` and `reeve up` call [`run`]; any number may run, one leads.
//!
//! Never here: an unfenced write, a decision, a removal that no plan says. A lost leadership ends the pass at hand at
//! once; whatever of it was written stands, and the next leader goes on from there.
//!
//! A panic within a pass is a bug of ours. It must not take the process down in a loop, nor stop what else the store asks
//! for, so it ends that pass only: it is logged, counted, and the next try comes after a growing delay.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use planner::cluster::{self, Notice, Plan, PlanOptions, VerdictsOut};
use runtime::backoff::Backoff;
use runtime::boottime::{self, Instant};
use runtime::{
    Cache, Fence, LeaderOptions, Leadership, Lost, Position, Prefix, Reader, ReflectOptions, Shutdown, Store,
    StoreError, campaign, reflect,
};
use schemas::keys::{Key, Root};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{ClusterMarker, EventType, Order, Record, Verdict};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::events::{self, Events};
use crate::execute::{self, Base, Batch};
use crate::http::{self, Served};
use crate::metrics::{self, Metrics, View};
use crate::observe::{Hold, Observer, State};

/// How to run a controller.
#[derive(Debug)]
pub struct ControllerOptions<S> {
    /// The store.
    pub store: S,
    /// Where all keys stand.
    pub root: Root,
    /// Who this is, for people: `host:pid`.
    pub id: String,
    /// Where to serve metrics, health and discovery; nowhere when none. Port 0 lets the system choose.
    pub http_addr: Option<SocketAddr>,
    /// `host:port` under which Prometheus reaches that server; the address it listens on when none.
    pub advertise: Option<String>,
    /// The shortest time from the end of a pass to the next; 5 ms by default. The first pass after a quiet time is at once.
    pub debounce: Duration,
    /// How long a leader that says nothing stays leader; 5 to 60 s, 10 s by default.
    pub leader_ttl: Duration,
    /// Told once the server listens and the marker is right.
    pub started: Option<oneshot::Sender<Started>>,
}

/// A controller that has begun to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where it serves HTTP.
    pub http: Option<SocketAddr>,
}

impl<S> ControllerOptions<S> {
    /// Everything else by default, and no HTTP server.
    pub fn new(store: S, root: Root, id: impl Into<String>) -> Self {
        Self {
            store,
            root,
            id: id.into(),
            http_addr: None,
            advertise: None,
            debounce: Duration::from_millis(5),
            leader_ttl: Duration::from_secs(10),
            started: None,
        }
    }
}

/// Why a controller has ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The store's cluster is not one to work for.
    #[error("run the controller")]
    Hold {
        /// Why.
        #[source]
        source: Hold,
    },
    /// The store refused what no waiting mends.
    #[error("run the controller")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The HTTP server could not listen.
    #[error("listen on {address} for metrics")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ControllerError {
    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Hold { source } => source.remedy(),
            Self::Store { source } => source.remedy(),
            Self::Listen { .. } => Some("choose another address with --metrics".to_owned()),
        }
    }
}

impl From<Hold> for ControllerError {
    fn from(source: Hold) -> Self {
        Self::Hold { source }
    }
}
impl From<StoreError> for ControllerError {
    fn from(source: StoreError) -> Self {
        Self::Store { source }
    }
}

/// The delays after failed passes: long enough not to burden a sick store, short enough that nobody waits for us.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// The delays after conflicts: the cache is about to learn what the store knew.
const CONFLICT: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Passes never compute for more than half of the time; but a longer one than this is not waited for.
const LONGEST_GAP: Duration = Duration::from_millis(500);
/// A standby decodes what has changed this often, so that it can take over at once.
const WARM: Duration = Duration::from_millis(500);
/// The store is asked something at least this often, so that its health is known.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A held leader looks again this often even when nothing changes.
const HELD: Duration = Duration::from_secs(5);
/// A write that no store would take is tried again this late; changes are acted on as always.
const REFUSED: Duration = Duration::from_secs(60);

/// Runs until the shutdown drains. Outages of the store are waited out, also at the start.
///
/// # Errors
/// When the store holds no cluster, another one, or one that has moved or needs a newer release; when the store refuses
/// access; when the HTTP server cannot listen.
pub async fn run<S: Store>(options: ControllerOptions<S>, shutdown: Shutdown) -> Result<(), ControllerError> {
    let ControllerOptions {
        store,
        root,
        id,
        http_addr,
        advertise,
        debounce,
        leader_ttl,
        started,
    } = options;
    if check_marker(&store, &root, &shutdown).await?.is_break() {
        return Ok(());
    }
    let listener = match http_addr {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|source| ControllerError::Listen { address, source })?,
        ),
        None => None,
    };
    let listens = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let address = advertise.or_else(|| listens.map(|address| address.to_string()));

    let prefix = Prefix::new(root.as_str())?;
    let skip = vec![Prefix::new(root.prefix("events"))?];
    let reader = reflect(
        store.clone(),
        prefix,
        ReflectOptions {
            skip,
            ..ReflectOptions::default()
        },
        &shutdown,
    );
    let metrics = Arc::new(Metrics::new());
    let _server = listener.map(|listener| {
        let served = Served {
            metrics: Arc::clone(&metrics),
            cache: reader.clone(),
            store: store.health().clone(),
            root: root.clone(),
            address: address.clone().unwrap_or_default(),
        };
        Task(tokio::spawn(http::serve(listener, served)))
    });
    let _heartbeat = Task(tokio::spawn(heartbeat(store.clone(), root.key(&Key::Cluster))));
    // The first document of a kind would otherwise wait for its validator to be made.
    tokio::task::spawn_blocking(|| {
        for kind in Kind::ALL {
            let _ = kind.schema();
        }
    });
    if let Some(started) = started {
        // Nobody may be waiting any more.
        let _ = started.send(Started { http: listens });
    }
    let election = LeaderOptions {
        ttl: leader_ttl,
        ..LeaderOptions::new(
            Prefix::new(root.prefix("election"))?,
            http::holder(&id, address.as_deref()),
        )
    };
    let observer = Arc::new(Mutex::new(Observer::new(root.clone())));
    let mut controller = Controller {
        store,
        root,
        reader,
        observer,
        metrics,
        debounce,
        shutdown,
        told_hold: None,
    };
    while let Some(leadership) = controller.stand_by(&election).await? {
        let epoch = leadership.epoch();
        tracing::info!(epoch, "this controller leads");
        controller.metrics.leads(Some(epoch));
        let ended = controller.lead(&leadership).await;
        controller.metrics.leads(None);
        let end = match ended {
            Ok(End::Lost) => {
                tracing::warn!(epoch, "the leadership is lost");
                continue;
            }
            Ok(End::Draining) => Ok(()),
            Err(error) => Err(error),
        };
        tokio::select! {
            () = leadership.resign() => {}
            () = controller.shutdown.aborting() => {}
        }
        return end;
    }
    Ok(())
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads the marker before anything else is done; breaks off when the shutdown drains first.
async fn check_marker<S: Store>(
    store: &S,
    root: &Root,
    shutdown: &Shutdown,
) -> Result<ControlFlow<()>, ControllerError> {
    let mut backoff = Backoff::default();
    let key = root.key(&Key::Cluster);
    let read = loop {
        let error = match store.get(key.as_bytes()).await {
            Ok(read) => break read,
            Err(error) if error.is_outage() => error,
            Err(error) => return Err(error.into()),
        };
        let delay = backoff.delay();
        tracing::warn!(%error, ?delay, "the store does not answer; trying again");
        tokio::select! {
            () = shutdown.draining() => return Ok(ControlFlow::Break(())),
            () = boottime::sleep(delay) => {}
        }
    };
    let Some(kv) = read.value else {
        return Err(Hold::NoCluster { root: root.clone() }.into());
    };
    match ClusterMarker::decode(&kv.value) {
        Ok(ClusterMarker {
            schema_version: _,
            id: _,
            restore_epoch: _,
            moved: None,
        }) => Ok(ControlFlow::Continue(())),
        Ok(ClusterMarker {
            schema_version: _,
            id: _,
            restore_epoch: _,
            moved: Some(moved),
        }) => Err(Hold::Moved { to: moved.to }.into()),
        Err(error) => Err(Hold::MarkerUnreadable {
            why: crate::observe::chain(&error),
        }
        .into()),
    }
}

/// Keeps the store's health known while nothing else asks it anything.
async fn heartbeat<S: Store>(store: S, key: String) {
    loop {
        boottime::sleep(HEARTBEAT).await;
        if store
            .health()
            .last_answer()
            .is_none_or(|last| last.elapsed() >= HEARTBEAT)
        {
            // Its outcome is in the store's health.
            let _ = store.get(key.as_bytes()).await;
        }
    }
}

/// Why a leader stops leading.
enum End {
    Lost,
    Draining,
}

/// When the next pass is due.
enum Next {
    /// When something changes, or after this long.
    Changed(Option<Duration>),
    /// After this long, whatever changes; or at once.
    After(Duration),
    /// The reflector has ended, or the leadership: there is none.
    Never(End),
}

/// What one pass thought of, before anything is written.
enum Thought {
    Held(Hold),
    Verdicts { batch: Batch, out: VerdictsOut },
    Planned(Box<Planned>),
}

struct Planned {
    plan: Plan,
    batch: Batch,
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
    /// What the reflector last said of the store's going back.
    went_back: Option<Position>,
    /// Removals by when they were done, in milliseconds since `start`; none before the first pass.
    spent: Option<Vec<(u64, u32)>>,
    behind: BTreeMap<NodeName, (Order, Instant)>,
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

struct Controller<S> {
    store: S,
    root: Root,
    reader: Reader,
    observer: Arc<Mutex<Observer>>,
    metrics: Arc<Metrics>,
    debounce: Duration,
    shutdown: Shutdown,
    /// The hold that was logged last.
    told_hold: Option<Hold>,
}

impl<S: Store> Controller<S> {
    /// Campaigns, with the observer kept warm; none when the shutdown drains.
    async fn stand_by(&mut self, election: &LeaderOptions) -> Result<Option<Leadership>, ControllerError> {
        let (store, shutdown) = (self.store.clone(), self.shutdown.clone());
        let mut reader = self.reader.clone();
        // A store without the cluster's marker is not campaigned in.
        loop {
            tokio::select! {
                () = shutdown.draining() => return Ok(None),
                cache = reader.ready() => {
                    let Ok(cache) = cache else { return Ok(None) };
                    if self.warm_up(&cache).await? {
                        break;
                    }
                }
            }
            tokio::select! {
                () = shutdown.draining() => return Ok(None),
                () = boottime::sleep(WARM) => {}
            }
        }
        let campaign = campaign(&store, election, &shutdown);
        tokio::pin!(campaign);
        loop {
            let follow = async {
                boottime::sleep(WARM).await;
                if reader.changed().await.is_err() {
                    // The reflector ends at shutdown only, and so does the campaign.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                won = &mut campaign => return Ok(won?),
                () = follow => {}
            }
            if let Some(cache) = self.reader.snapshot() {
                self.warm_up(&cache).await?;
            }
        }
    }

    /// Decodes what has changed; false while the store may not be acted on.
    async fn warm_up(&mut self, cache: &Cache) -> Result<bool, ControllerError> {
        let (observer, state) = (Arc::clone(&self.observer), State::from(cache));
        match tokio::task::spawn_blocking(move || lock(&observer).observe(&state)).await {
            Ok(Ok(())) => {
                self.acts_again();
                Ok(true)
            }
            Ok(Err(hold)) => {
                self.say_hold(hold)?;
                Ok(false)
            }
            Err(_) => {
                self.panicked();
                Ok(false)
            }
        }
    }

    /// Runs passes until the leadership is lost or the shutdown drains.
    async fn lead(&mut self, leadership: &Leadership) -> Result<End, ControllerError> {
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
            went_back: None,
            spent: None,
            behind: BTreeMap::new(),
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
        let gap = thought.min(LONGEST_GAP).max(self.debounce);
        let (shutdown, reader) = (self.shutdown.clone(), &mut self.reader);
        let due = async move {
            match next {
                Next::Never(end) => return Some(end),
                Next::After(delay) => boottime::sleep(delay).await,
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
        let (batch, planned) = match thought {
            Thought::Held(hold) => {
                self.metrics.passed("held", began.elapsed());
                self.say_hold(hold)?;
                return Ok(Next::Changed(Some(HELD)));
            }
            Thought::Verdicts { batch, out } => {
                self.acts_again();
                self.metrics.told(desk.events.tell(&verdict_notices(&out)));
                (batch, None)
            }
            Thought::Planned(planned) => {
                self.acts_again();
                let Planned {
                    plan,
                    batch,
                    view,
                    spent,
                    observe,
                    took,
                } = *planned;
                self.metrics.thought(observe, took);
                self.metrics.told(desk.events.tell(&plan.notices));
                (batch, Some((plan, view, spent)))
            }
        };
        let (quiet, unfinished, writes) = (batch.is_empty(), batch.unfinished, batch.len());
        let committed = batch.commit(&self.store, desk.conflict.failures() == 0).await;
        self.metrics.wrote(&committed);
        desk.wrote = desk.wrote.max(committed.revision.unwrap_or(0));
        let is_plan = planned.is_some();
        if let Some((plan, mut view, spent)) = planned {
            let more = plan.breaker.spent.saturating_sub(spent);
            let now = desk.now_ms();
            if let Some(list) = desk.spent.as_mut().filter(|_| committed.removed && more > 0) {
                list.push((now, more));
            }
            if !quiet {
                let (accepted, assignments) = (plan.accepted.len(), plan.assignments.len());
                tracing::debug!(writes, accepted, assignments, "a plan was executed");
            }
            view.statuses = plan.statuses;
            view.breaker = plan.breaker;
            self.metrics.show(Some(Arc::new(view)));
        }
        let took = began.elapsed();
        if committed.fence_lost {
            // The keeper of the leadership may not have noticed yet.
            self.metrics.passed("failed", took);
            return Ok(Next::Never(End::Lost));
        }
        if let Some(error) = committed.error {
            let delay = desk.retry.delay();
            tracing::warn!(%error, ?delay, "a write failed");
            self.metrics.passed("failed", took);
            return Ok(Next::After(delay));
        }
        desk.retry.reset();
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
        if !notices.is_empty() {
            return Ok(Next::Changed(Some(REFUSED)));
        }
        if unfinished || !is_plan {
            return Ok(Next::After(Duration::ZERO));
        }
        Ok(Next::Changed(look_again(desk)))
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
            reader.changed().await.ok()?;
        }
    }

    /// The part of a pass that computes, on a thread of its own; none when it panicked.
    async fn think(&self, desk: &mut Desk, cache: Cache) -> Option<Thought> {
        let observer = Arc::clone(&self.observer);
        let (fence, epoch, now_ms) = (desk.fence.clone(), desk.epoch, desk.now_ms());
        let (spent, behind) = (desk.spent.clone(), std::mem::take(&mut desk.behind));
        let thinking = tokio::task::spawn_blocking(move || {
            think(&mut lock(&observer), &cache, &fence, epoch, spent, now_ms, behind)
        });
        match thinking.await {
            Ok((thought, spent, behind)) => {
                (desk.spent, desk.behind) = (spent, behind);
                Some(thought)
            }
            Err(_) => {
                self.panicked();
                None
            }
        }
    }

    /// After a panic what was decoded is not to be trusted; where the store was is.
    fn panicked(&self) {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        *observer = observer.fresh();
        self.observer.clear_poison();
        tracing::error!("a pass panicked: this is a bug in reeve; please report it with the lines above");
    }

    /// Logs a hold when it is new; ends the process where waiting mends nothing.
    fn say_hold(&mut self, hold: Hold) -> Result<(), ControllerError> {
        self.metrics.holds(true);
        if hold.is_for_good() {
            return Err(hold.into());
        }
        if self.told_hold.as_ref() != Some(&hold) {
            let remedy = hold.remedy().unwrap_or_default();
            tracing::error!(%hold, %remedy, "nothing is changed while the store is like this");
            self.told_hold = Some(hold);
        }
        Ok(())
    }

    fn acts_again(&mut self) {
        if self.told_hold.take().is_some() {
            tracing::info!("the store is in order again");
        }
        self.metrics.holds(false);
    }
}

fn lock(observer: &Mutex<Observer>) -> std::sync::MutexGuard<'_, Observer> {
    observer.lock().unwrap_or_else(PoisonError::into_inner)
}

type Spent = Option<Vec<(u64, u32)>>;
type Behind = BTreeMap<NodeName, (Order, Instant)>;

/// Observe and plan; nothing waits and nothing is written here.
fn think(
    observer: &mut Observer,
    cache: &Cache,
    fence: &Fence,
    epoch: i64,
    spent: Spent,
    now_ms: u64,
    mut behind: Behind,
) -> (Thought, Spent, Behind) {
    let began = std::time::Instant::now();
    if let Err(hold) = observer.observe(&State::from(cache)) {
        return (Thought::Held(hold), spent, behind);
    }
    observer.set_epoch(epoch);
    // A new leader takes what is stored as spent at its own start: never less than what was.
    let mut list = spent.unwrap_or_else(|| vec![(now_ms, observer.snapshot().breaker.spent)]);
    list.retain(|(at, count)| *count > 0 && now_ms.saturating_sub(*at) < cluster::BREAKER_WINDOW_MS);
    let spent = cluster::refill(&list, now_ms);
    observer.set_spent(spent);
    let observed = began.elapsed();

    let out = cluster::verdicts(observer.snapshot());
    if !out.writes.is_empty() || !out.forget.is_empty() {
        let batch = execute::prepare_verdicts(&Base::new(observer, fence), &out.writes, &out.forget);
        return (Thought::Verdicts { batch, out }, Some(list), behind);
    }
    let began = std::time::Instant::now();
    let plan = cluster::plan_with(
        observer.snapshot(),
        PlanOptions {
            list_keeps: false,
            exhaustive: false,
        },
    );
    let took = began.elapsed();
    let batch = execute::prepare(
        &Base::new(observer, fence),
        observer.snapshot(),
        &plan,
        &events::rfc3339_now(),
    );
    let view = View {
        statuses: BTreeMap::new(),
        nodes: metrics::node_views(observer.snapshot(), &mut behind),
        breaker: observer.snapshot().breaker.clone(),
        foreign: observer.foreign_count(),
        unreadable: observer.unreadable_count(),
    };
    let planned = Planned {
        plan,
        batch,
        view,
        spent,
        observe: observed,
        took,
    };
    (Thought::Planned(Box::new(planned)), Some(list), behind)
}

/// When the oldest removal falls out of the budget's window.
fn look_again(desk: &Desk) -> Option<Duration> {
    let oldest = desk.spent.iter().flatten().map(|(at, _)| *at).min()?;
    let left = (oldest + cluster::BREAKER_WINDOW_MS).saturating_sub(desk.now_ms());
    Some(Duration::from_millis(left.max(1)))
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
