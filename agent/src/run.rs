//! The agent's loop: wake, list, plan, write down, execute. `reeve agent` and `reeve up` call [`run`]. It promises that a
//! kill at any moment is safe, that no outage of the store delays a container, and that stopping it stops no container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use planner::node::{
    Image, InstanceKey, NodeInput, NodePlan, Observed, Op, OpOutcome, Ruling, SpecId, SpecState, Step, judge, plan,
    settle,
};
use runtime::{SessionRecord, Shutdown, Store};
use rustix::time::{ClockId, clock_gettime};
use schemas::image::ImageRef;
use schemas::keys::Root;
use schemas::names::NodeName;
use schemas::records::{
    Accepted, AcceptedBody, Addresses, Assignment, Capacity, ClusterId, Engine, FailingReason, NodeCondition,
    NodeFacts, Order, Phase, Record, Report, SchemaVersion,
};
use schemas::units::{ByteSize, Cpu};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::disk::{DataDir, DiskError};
use crate::engine::{ContainerRuntime, Event, Inspection, Result as EngineResult};
use crate::events_out::{self, Told};
use crate::execute::{Ran, execute, pull_failure, sentence};
use crate::http::{self, Health, Shown};
use crate::ledger;
use crate::metrics::{InstanceSample, Metrics};
use crate::observe::Sight;
use crate::probe::Prober;
use crate::register::marker;
use crate::register::{self, Identity, News, Wants, chain};

/// The engine is told to be down after lists have failed for this long.
const ENGINE_PATIENCE_MS: u64 = 10_000;
/// Two lists begin at least this far apart, unless something ended.
const BETWEEN_LISTS_MS: u64 = 25;
/// After the engine told something it is listed again after so long, for it tells before it files: a list at once may still
/// show what was.
const ECHOES_MS: [u64; 2] = [100, 1_000];
/// With less free than this on the data directory's disk nothing new is started.
const LEAST_FREE_BYTES: u64 = 16 << 20;
/// What does not have to be on disk at once is after this.
const LAZY_SAVE_MS: u64 = 1_000;
/// How long a shutdown waits for steps under way.
const DRAIN: Duration = Duration::from_secs(10);
/// Delays after failed pulls: 2 s doubling to 2 minutes.
const PULL_RETRY_MS: (u64, u64) = (2_000, 120_000);

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: NodeName,
    pub root: Root,
    /// Where the agent keeps what it must not forget.
    pub data_dir: PathBuf,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// Where metrics and health are served; nowhere when None.
    pub http: Option<SocketAddr>,
    /// `host:port` under which others reach that; the address itself when None.
    pub advertise: Option<String>,
    /// The agent's version.
    pub version: String,
    /// Steps at once; 8 by default.
    pub parallelism: usize,
    /// Pulls at once; 3 by default.
    pub pulls: usize,
    /// How long a silent agent keeps its session; 15 s by default.
    pub session_ttl: Duration,
    /// Everything is looked at anew this often; 30 s by default.
    pub sweep: Duration,
}

impl AgentOptions {
    /// With the defaults.
    #[must_use]
    pub fn new(node: NodeName, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            root: Root::default(),
            data_dir: data_dir.into(),
            labels: BTreeMap::new(),
            http: None,
            advertise: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            parallelism: 8,
            pulls: 3,
            session_ttl: Duration::from_secs(15),
            sweep: Duration::from_secs(30),
        }
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("use the agent's data directory")]
    Disk(#[from] DiskError),
    #[error(
        "start the agent: the store has no cluster under `{root}`; create it with `reeve init`, or check --etcd and --prefix"
    )]
    NoCluster { root: Root },
    #[error("start the agent: {why}")]
    Marker { why: String },
    #[error("start the agent: shutting down before the store answered")]
    ShuttingDown,
    #[error("serve the agent's metrics")]
    Http(#[from] http::ListenError),
    #[error("name the agent's metrics")]
    Metrics(#[from] prometheus::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterFile {
    schema_version: SchemaVersion,
    id: ClusterId,
}

/// A session on disk, and the boot it was opened in: after another boot it may be a clone's, and is not resumed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionFile {
    boot_id: String,
    session: SessionRecord,
}

/// A hold, on disk until the store is accepted.
#[derive(Serialize, Deserialize)]
struct HoldFile {
    message: String,
}

/// CLOCK_BOOTTIME in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Runs the agent until the shutdown drains. Containers keep running afterwards.
pub async fn run<S: Store>(
    mut options: AgentOptions,
    store: S,
    engine: Arc<dyn ContainerRuntime>,
    shutdown: Shutdown,
) -> Result<(), AgentError> {
    let dir = DataDir::open(&options.data_dir)?;
    let metrics = Arc::new(Metrics::new(&options.node)?);
    let health = Arc::new(Health::default());
    // Tasks that end with this future, whoever drops it.
    let mut tasks = JoinSet::new();
    if let Some(address) = options.http {
        let listener = http::listen(address).await?;
        options.http = listener.local_addr().ok();
        let shown = Shown {
            metrics: metrics.clone(),
            health: health.clone(),
            engine: engine.clone(),
        };
        let end = shutdown.clone();
        tasks.spawn(async move {
            if let Err(error) = http::serve(listener, shown, async move { end.draining().await }).await {
                tracing::error!(%error, "metrics are no longer served");
            }
        });
    }
    let cluster = cluster(&dir, &store, &options.root, &shutdown).await?;
    let boot_id = machine_text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let machine_id = machine_id(&dir)?;
    let session = dir.read_json::<SessionFile>("session.json").unwrap_or_else(|error| {
        tracing::warn!(
            error = chain(&error),
            "the session on disk is damaged; another is opened"
        );
        None
    });
    let session = session.filter(|file| file.boot_id == boot_id).map(|file| file.session);
    let identity = Identity {
        root: options.root.clone(),
        node: options.node.clone(),
        cluster: cluster.clone(),
        machine_id,
        boot_id: boot_id.clone(),
        session_ttl: options.session_ttl,
    };
    let (report, report_rx) = watch::channel(None);
    let (specs, specs_rx) = watch::channel(BTreeSet::new());
    let (facts, facts_rx) = watch::channel(None);
    let (applied, applied_rx) = watch::channel(Order::default());
    let (events, events_rx) = mpsc::channel(256);
    let (news_tx, news) = mpsc::channel(256);
    let wants = Wants {
        report: report_rx,
        specs: specs_rx,
        facts: facts_rx,
        applied: applied_rx,
    };
    let (ends_tx, ends) = mpsc::unbounded_channel();
    let probed = Arc::new(Notify::new());
    let mut agent = Agent {
        prober: Prober::new(engine.clone(), probed.clone()),
        metrics: metrics.clone(),
        health,
        offered: None,
        foreign: None,
        input: NodeInput {
            now_ms: now_ms(),
            node: options.node.clone(),
            cluster: cluster.clone(),
            assignment: None,
            specs: BTreeMap::new(),
            ledger: Default::default(),
            observed: Err("the engine has not answered yet".to_owned()),
            images: BTreeMap::new(),
            probes: BTreeMap::new(),
            stopped_by_person: BTreeSet::new(),
            busy: BTreeSet::new(),
            logs: BTreeMap::new(),
            disk_full: false,
            conditions: Vec::new(),
        },
        steps: Arc::new(Semaphore::new(options.parallelism.max(1))),
        restarts: Arc::new(Semaphore::new(options.parallelism.max(1))),
        pulls: Arc::new(Semaphore::new(options.pulls.max(1))),
        options,
        dir,
        engine,
        boot_id,
        sight: Sight::default(),
        ends_tx,
        busy: BTreeSet::new(),
        listing: false,
        list_wanted: true,
        list_at_ms: 0,
        dying: BTreeMap::new(),
        echo: None,
        list_failing_since: None,
        seen: false,
        sweep_at_ms: 0,
        look_again_ms: None,
        save_at_ms: None,
        used_specs: BTreeSet::new(),
        pull_failures: BTreeMap::new(),
        inspecting: BTreeSet::new(),
        looking_up: BTreeSet::new(),
        logs_asked: BTreeMap::new(),
        trouble: None,
        hold: None,
        unreadable: None,
        damaged: Vec::new(),
        look_alikes: Vec::new(),
        last_report: None,
        report,
        specs,
        facts,
        applied,
        events,
    };
    agent.load();
    tasks.spawn(register::link(
        store,
        identity,
        session,
        wants,
        events_rx,
        news_tx,
        metrics,
        shutdown.clone(),
    ));
    agent.serve(ends, news, &probed, &shutdown).await;
    Ok(())
}

/// The cluster this agent is of: from disk, or at the first start from the store.
async fn cluster<S: Store>(
    dir: &DataDir,
    store: &S,
    root: &Root,
    shutdown: &Shutdown,
) -> Result<ClusterId, AgentError> {
    if let Some(file) = dir.read_json::<ClusterFile>("cluster.json")? {
        return Ok(file.id);
    }
    let mut backoff = runtime::backoff::Backoff::default();
    loop {
        match marker(store, root).await {
            Ok(Some(Ok(marker))) => {
                dir.write_json(
                    "cluster.json",
                    &ClusterFile {
                        schema_version: SchemaVersion::default(),
                        id: marker.id.clone(),
                    },
                )?;
                return Ok(marker.id);
            }
            Ok(Some(Err(why))) => return Err(AgentError::Marker { why }),
            Ok(None) => return Err(AgentError::NoCluster { root: root.clone() }),
            Err(error) => tracing::warn!(
                error = chain(&error),
                remedy = error.remedy(),
                "the first start waits for the store"
            ),
        }
        tokio::select! {
            () = shutdown.draining() => return Err(AgentError::ShuttingDown),
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
}

fn machine_text(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty() && text.len() <= 128)
}

/// This machine's id: the host's own, or one drawn once where it has none.
fn machine_id(dir: &DataDir) -> Result<String, AgentError> {
    if let Some(known) = dir.read("machine")? {
        return Ok(String::from_utf8_lossy(&known).trim().chars().take(128).collect());
    }
    let id = machine_text("/etc/machine-id")
        .or_else(|| machine_text("/proc/sys/kernel/random/uuid"))
        .unwrap_or_else(|| "unknown".to_owned());
    dir.write("machine", id.as_bytes())?;
    Ok(id)
}

/// The end of something the loop began.
enum End {
    Listed {
        mark: u64,
        result: EngineResult<Vec<Observed>>,
    },
    Created {
        step: Step,
        outcome: OpOutcome,
    },
    Step {
        step: Step,
        ran: Ran,
        took: Duration,
    },
    Pulled {
        image: String,
        began_ms: u64,
        took: Duration,
        result: EngineResult<()>,
    },
    PullProgress {
        image: String,
        percent: u8,
    },
    LookedUp {
        image: String,
        result: EngineResult<bool>,
    },
    Inspected {
        id: String,
        result: EngineResult<Inspection>,
    },
    Logs {
        instance: InstanceKey,
        lines: Vec<String>,
    },
    Facts(Box<NodeFacts>, Option<u64>),
}

struct Agent {
    options: AgentOptions,
    dir: DataDir,
    engine: Arc<dyn ContainerRuntime>,
    boot_id: String,
    input: NodeInput,
    sight: Sight,
    prober: Prober,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// The last assignment that was offered, whatever became of it.
    offered: Option<Arc<Assignment>>,
    /// It was for another cluster or node.
    foreign: Option<String>,
    ends_tx: mpsc::UnboundedSender<End>,
    steps: Arc<Semaphore>,
    /// Starts of ended containers never wait for creates.
    restarts: Arc<Semaphore>,
    pulls: Arc<Semaphore>,
    /// Instances with a step under way.
    busy: BTreeSet<InstanceKey>,
    listing: bool,
    list_wanted: bool,
    /// No list before this.
    list_at_ms: u64,
    /// Containers that were told dead and that a list may still show as running (the engine tells of a death before it
    /// files it), with how many lists have.
    dying: BTreeMap<String, u32>,
    /// When the engine last told something, and how many of the lists after it are done.
    echo: Option<(u64, usize)>,
    list_failing_since: Option<u64>,
    /// Whether there was a list, or a failure that lasted.
    seen: bool,
    sweep_at_ms: u64,
    look_again_ms: Option<u64>,
    save_at_ms: Option<u64>,
    used_specs: BTreeSet<SpecId>,
    pull_failures: BTreeMap<String, u32>,
    inspecting: BTreeSet<String>,
    looking_up: BTreeSet<String>,
    /// Which logs were asked for: of which container, after how many restarts.
    logs_asked: BTreeMap<InstanceKey, (String, u32)>,
    trouble: Option<(&'static str, String)>,
    hold: Option<String>,
    unreadable: Option<String>,
    damaged: Vec<NodeCondition>,
    look_alikes: Vec<String>,
    last_report: Option<Arc<Report>>,
    report: watch::Sender<Option<Arc<Report>>>,
    specs: watch::Sender<BTreeSet<SpecId>>,
    facts: watch::Sender<Option<Arc<NodeFacts>>>,
    applied: watch::Sender<Order>,
    events: mpsc::Sender<Told>,
}

impl Agent {
    // ---- disk ------------------------------------------------------------------------------------------------------

    /// Reads what an earlier process left. What is damaged is set aside, said, and holds only itself.
    fn load(&mut self) {
        match self.dir.read_json::<Assignment>("assignment.json") {
            Ok(assignment) => {
                self.input.assignment = assignment.filter(|a| a.cluster == self.input.cluster).map(Arc::new)
            }
            Err(error) => {
                self.damage("AssignmentUnreadable", &error);
                self.dir.set_aside("assignment.json");
            }
        }
        match ledger::load(&self.dir, &self.input.cluster, &self.boot_id) {
            Ok(ledger) => self.input.ledger = ledger,
            Err(error) => {
                self.damage("LedgerUnreadable", &error);
                ledger::set_aside(&self.dir);
            }
        }
        match self.dir.specs() {
            Ok((specs, damaged)) => {
                self.input.specs = specs
                    .into_iter()
                    .filter_map(|(id, accepted)| Some((id, SpecState::Here(service(accepted)?))))
                    .collect();
                for error in damaged {
                    self.damage("SpecUnreadable", &error);
                }
            }
            Err(error) => self.damage("SpecUnreadable", &error),
        }
        match self.dir.read_json::<HoldFile>("hold.json") {
            Ok(hold) => self.hold = hold.map(|hold| hold.message),
            Err(error) => self.hold = Some(chain(&error)),
        }
        self.set_applied();
        tracing::info!(
            node = %self.input.node,
            instances = self.input.assignment.as_ref().map_or(0, |assignment| assignment.instances.len()),
            ledger = self.input.ledger.entries.len(),
            specs = self.input.specs.len(),
            "the agent starts from its disk"
        );
    }

    fn damage(&mut self, reason: &str, error: &DiskError) {
        tracing::error!(error = chain(error), "a file of the agent is damaged; it was set aside");
        let message = format!("{}; it was set aside as `*.damaged`", chain(error));
        self.damaged.push(NodeCondition {
            reason: reason.to_owned(),
            message,
        });
    }

    fn set_applied(&self) {
        let order = self
            .input
            .assignment
            .as_ref()
            .map(|assignment| assignment.order)
            .unwrap_or_default();
        self.applied.send_replace(order);
    }

    /// Writes the ledger. Where it cannot be written, nothing new is begun until it can.
    fn save(&mut self) -> bool {
        let saved = ledger::save(&self.dir, &self.input.cluster, &self.boot_id, &self.input.ledger);
        self.save_at_ms = None;
        self.written(saved)
    }

    fn written(&mut self, result: Result<(), DiskError>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                if !self.input.disk_full {
                    tracing::error!(
                        error = chain(&error),
                        full = error.is_full(),
                        "the agent cannot write to its disk: nothing new is started"
                    );
                }
                self.input.disk_full = true;
                false
            }
        }
    }

    fn save_soon(&mut self) {
        self.save_at_ms.get_or_insert(self.input.now_ms + LAZY_SAVE_MS);
    }

    // ---- the loop --------------------------------------------------------------------------------------------------

    async fn serve(
        &mut self,
        mut ends: mpsc::UnboundedReceiver<End>,
        mut news: mpsc::Receiver<News>,
        probed: &Notify,
        shutdown: &Shutdown,
    ) {
        let mut events = self.engine.events(self.input.cluster.as_str());
        loop {
            self.input.now_ms = now_ms();
            self.tick();
            let wake = self.next_wake();
            tokio::select! {
                () = shutdown.draining() => break,
                Some(event) = events.next() => self.heard(event),
                Some(end) = ends.recv() => self.ended(end),
                Some(told) = news.recv() => self.told(told),
                () = probed.notified() => self.input.probes = self.prober.results(),
                () = tokio::time::sleep(wake) => {}
            }
            self.input.now_ms = now_ms();
            while let Ok(end) = ends.try_recv() {
                self.ended(end);
            }
            while let Ok(told) = news.try_recv() {
                self.told(told);
            }
            self.pass();
        }
        self.drain(ends).await;
    }

    /// Lets steps under way end; begins nothing.
    async fn drain(&mut self, mut ends: mpsc::UnboundedReceiver<End>) {
        let waited = tokio::time::timeout(DRAIN, async {
            while !self.busy.is_empty() {
                match ends.recv().await {
                    Some(end) => self.ended(end),
                    None => break,
                }
            }
        });
        if waited.await.is_err() {
            tracing::warn!(
                under_way = self.busy.len(),
                "not all steps ended in time; the next start reads back what became of them"
            );
        }
        self.save();
        tracing::info!("the agent has ended; its containers run on");
    }

    /// What is due by the clock: a list, a sweep, a lazy write.
    fn tick(&mut self) {
        let now = self.input.now_ms;
        if now >= self.sweep_at_ms {
            self.sweep();
        }
        if self.save_at_ms.is_some_and(|at| now >= at) {
            self.save();
        }
        if let Some((told_ms, done)) = self.echo
            && now >= told_ms + ECHOES_MS[done]
        {
            self.list_wanted = true;
            self.echo = (done + 1 < ECHOES_MS.len()).then_some((told_ms, done + 1));
        }
        if self.list_wanted && !self.listing && now >= self.list_at_ms {
            self.list_wanted = false;
            self.listing = true;
            self.list_at_ms = now + BETWEEN_LISTS_MS;
            let (engine, cluster, mark) = (self.engine.clone(), self.input.cluster.clone(), self.sight.mark());
            self.begin(async move {
                End::Listed {
                    mark,
                    result: engine.list(cluster.as_str()).await,
                }
            });
        }
    }

    fn next_wake(&self) -> Duration {
        let list = (self.list_wanted && !self.listing).then_some(self.list_at_ms);
        let echo = self.echo.map(|(told_ms, done)| told_ms + ECHOES_MS[done]);
        let next = [Some(self.sweep_at_ms), self.look_again_ms, self.save_at_ms, list, echo]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX);
        Duration::from_millis(next.saturating_sub(now_ms()).min(2_000))
    }

    fn begin(&self, work: impl Future<Output = End> + Send + 'static) {
        let ends = self.ends_tx.clone();
        tokio::spawn(async move {
            let _ = ends.send(work.await);
        });
    }

    /// The slow look at everything: a list, an inspection of each container, what is free on disk, what nobody needs.
    fn sweep(&mut self) {
        self.sweep_at_ms = self.input.now_ms + u64::try_from(self.options.sweep.as_millis()).unwrap_or(30_000);
        self.list_wanted = true;
        let mine: Vec<String> = self
            .input
            .ledger
            .entries
            .values()
            .filter_map(|entry| entry.container_id().map(str::to_owned))
            .collect();
        for id in mine {
            self.inspect(id);
        }
        self.check_disk();
        if let Some(offered) = self
            .offered
            .clone()
            .filter(|offered| self.input.assignment.as_ref() != Some(offered))
        {
            self.judge(offered);
        }
        if self.input.assignment.is_some() && self.seen {
            let idle: Vec<SpecId> = self
                .input
                .specs
                .keys()
                .filter(|id| !self.used_specs.contains(id))
                .cloned()
                .collect();
            for id in idle {
                self.input.specs.remove(&id);
                if let Err(error) = self.dir.remove_spec(&id) {
                    tracing::warn!(error = chain(&error), "an unused spec stays on disk");
                }
            }
        }
        // What could not be had is asked for again.
        let damaged: BTreeSet<SpecId> = self
            .input
            .specs
            .iter()
            .filter(|(_, state)| matches!(state, SpecState::Damaged(_)))
            .map(|(id, _)| id.clone())
            .collect();
        if !damaged.is_empty() {
            self.specs.send_modify(|wanted| wanted.extend(damaged));
        }
        self.learn_facts();
    }

    fn check_disk(&mut self) {
        let free = rustix::fs::statvfs(self.dir.path()).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        let full = free.is_ok_and(|free| free < LEAST_FREE_BYTES);
        if full {
            self.input.disk_full = true;
        } else if self.input.disk_full {
            self.input.disk_full = false;
            self.save();
        }
    }

    fn learn_facts(&self) {
        let engine = self.engine.clone();
        let (node, cluster, options) = (
            self.input.node.clone(),
            self.input.cluster.clone(),
            self.options.clone(),
        );
        let ends = self.ends_tx.clone();
        tokio::spawn(async move {
            let Ok(info) = engine.info().await else { return };
            let version = &info.version;
            let advertised = options
                .advertise
                .clone()
                .or(options.http.map(|address| address.to_string()));
            let facts = NodeFacts {
                schema_version: SchemaVersion::default(),
                cluster,
                node,
                capacity: Capacity {
                    cpu: Cpu {
                        millis: info.cpus.saturating_mul(1_000),
                    },
                    memory: ByteSize(info.memory_bytes),
                },
                addresses: Addresses {
                    host: host_addresses(),
                    agent: advertised,
                },
                engine: Engine {
                    version: version.version.clone(),
                    api_version: format!("{}.{}", version.api.0, version.api.1),
                    os: version.os.clone(),
                    arch: version.arch.clone(),
                    kernel: version.kernel.clone(),
                    storage_driver: info.storage_driver.clone(),
                    cgroup_version: info.cgroup_version.clone(),
                },
                agent_version: options.version.clone(),
                labels: register::labels(&options.labels, &version.os, &version.arch),
            };
            let _ = ends.send(End::Facts(Box::new(facts), info.disk_free_bytes));
        });
    }

    // ---- what comes in ---------------------------------------------------------------------------------------------

    fn heard(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.sight.forget_all();
                self.list_now();
                self.sweep_at_ms = self.input.now_ms;
            }
            Event::Disconnected(error) => {
                tracing::warn!(error = %error, remedy = error.remedy(), "the engine's events ended; asking it again");
                self.list_wanted = true;
            }
            Event::Container { id, action } => {
                let ours = self
                    .input
                    .ledger
                    .entries
                    .values()
                    .any(|entry| entry.container_id() == Some(id.as_str()));
                if self.sight.event(&id, action) && ours {
                    self.inspect(id.clone());
                }
                self.input.stopped_by_person.clone_from(&self.sight.stopped_by_person);
                self.list_wanted = true;
                self.echo = Some((self.input.now_ms, 0));
                if matches!(action, crate::engine::Action::Died { .. }) {
                    self.dying.insert(id, 0);
                    self.list_at_ms = 0;
                } else if matches!(action, crate::engine::Action::Started | crate::engine::Action::Removed) {
                    self.dying.remove(&id);
                }
            }
        }
    }

    fn list_now(&mut self) {
        self.list_wanted = true;
        self.list_at_ms = 0;
    }

    fn ended(&mut self, end: End) {
        match end {
            End::Listed { mark, result } => self.listed(mark, result),
            End::Created { step, outcome } => {
                self.settle(&step, &outcome);
                self.save_soon();
            }
            End::Step { step, ran, took } => {
                self.metrics.operated(step.op.verb(), took, ran.failed.as_ref());
                self.step_ended(&step, &ran.outcome);
            }
            End::Pulled {
                image,
                began_ms,
                took,
                result,
            } => {
                self.metrics
                    .operated("pull", took, result.as_ref().err().map(|error| &error.kind));
                self.pulled(image, began_ms, result);
            }
            End::PullProgress { image, percent } => {
                if let Some(image) = self.input.images.get_mut(&image)
                    && let Some(pulling) = &mut image.pulling
                {
                    *pulling = percent;
                }
            }
            End::LookedUp { image, result } => {
                self.looking_up.remove(&image);
                match result {
                    Ok(present) => {
                        self.input.images.insert(
                            image,
                            Image {
                                present,
                                ..Image::default()
                            },
                        );
                    }
                    Err(error) => tracing::debug!(%error, image, "an image could not be looked up"),
                }
            }
            End::Inspected { id, result } => {
                self.inspecting.remove(&id);
                match result {
                    Ok(inspection) => {
                        self.sight.inspected(inspection);
                        self.refresh_observed();
                    }
                    Err(error) => tracing::debug!(%error, "a container could not be inspected"),
                }
            }
            End::Logs { instance, lines } => {
                self.input.logs.insert(instance, lines);
            }
            End::Facts(facts, free) => {
                if free.is_some_and(|free| free < LEAST_FREE_BYTES) {
                    self.input.disk_full = true;
                }
                self.facts.send_if_modified(|known| {
                    let differs = known.as_deref() != Some(facts.as_ref());
                    if differs {
                        *known = Some(Arc::new(*facts));
                    }
                    differs
                });
            }
        }
    }

    fn listed(&mut self, mark: u64, result: EngineResult<Vec<Observed>>) {
        self.listing = false;
        match result {
            Ok(containers) => {
                self.list_failing_since = None;
                self.seen = true;
                if !self.sight.listed(containers, mark).is_empty() {
                    self.list_wanted = true;
                }
                self.input.observed = Ok(Vec::new());
                self.refresh_observed();
                self.ask_again_for_the_dying();
            }
            Err(error) => {
                self.metrics.engine_failed(&error.kind);
                let since = *self.list_failing_since.get_or_insert(self.input.now_ms);
                self.list_wanted = true;
                self.list_at_ms = self.input.now_ms + 500;
                if self.input.now_ms.saturating_sub(since) >= ENGINE_PATIENCE_MS {
                    self.seen = true;
                    self.input.observed = Err(sentence(&error));
                }
            }
        }
    }

    /// A list that still shows a dead container as running is repeated soon: after 5 ms, then twice as long each time, ten
    /// times at most (5 s in all).
    fn ask_again_for_the_dying(&mut self) {
        let running: BTreeSet<&str> = self
            .sight
            .containers
            .iter()
            .filter(|one| one.state == planner::node::ContainerState::Running)
            .map(|one| one.id.as_str())
            .collect();
        self.dying.retain(|id, lists| {
            *lists += 1;
            *lists <= 10 && running.contains(id.as_str())
        });
        if let Some(lists) = self.dying.values().min() {
            self.list_wanted = true;
            self.list_at_ms = self.input.now_ms + (5 << (lists - 1));
        }
    }

    fn refresh_observed(&mut self) {
        if self.input.observed.is_ok() {
            self.input.observed = Ok(self.sight.containers.clone());
        }
    }

    fn settle(&mut self, step: &Step, outcome: &OpOutcome) {
        let entry = self.input.ledger.entries.entry(step.instance.clone()).or_default();
        settle(&step.instance, entry, &step.op, outcome, self.input.now_ms);
    }

    fn step_ended(&mut self, step: &Step, outcome: &OpOutcome) {
        let (verb, instance) = (step.op.verb(), &step.instance);
        match outcome {
            OpOutcome::Failed(failure) => {
                tracing::warn!(%instance, verb, reason = ?failure.reason, "{}", failure.message)
            }
            OpOutcome::Done | OpOutcome::Created { .. } => tracing::debug!(%instance, verb, "done"),
        }
        self.settle(step, outcome);
        self.busy.remove(&step.instance);
        self.sight.step_ended(&step.instance);
        self.list_wanted = true;
        self.save_soon();
        match &step.op {
            Op::Start { id }
            | Op::UpdateLimits { id, .. }
            | Op::Rename { id, .. }
            | Op::Connect { id }
            | Op::Unpause { id } => {
                self.sight.forget(id);
                if matches!(step.op, Op::Start { .. }) {
                    self.sight.we_started(id);
                }
            }
            Op::Create { spec, .. } => {
                let lacks_image =
                    matches!(outcome, OpOutcome::Failed(failure) if failure.reason == FailingReason::ImageNotFound);
                if lacks_image {
                    self.input.images.remove(spec.container.image.as_str());
                }
            }
            Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. } => {}
        }
    }

    fn pulled(&mut self, image: String, began_ms: u64, result: EngineResult<()>) {
        let known = match result {
            Ok(()) => {
                self.pull_failures.remove(&image);
                Image {
                    present: true,
                    pulled_ms: Some(began_ms),
                    pulling: None,
                    failed: None,
                }
            }
            Err(error) => {
                tracing::warn!(image, %error, remedy = error.remedy(), "a pull failed");
                let count = self.pull_failures.entry(image.clone()).or_insert(0);
                *count = count.saturating_add(1);
                let bound = PULL_RETRY_MS
                    .0
                    .saturating_mul(1 << (*count - 1).min(20))
                    .min(PULL_RETRY_MS.1);
                let delay = runtime::backoff::jitter(Duration::from_millis(bound / 2), Duration::from_millis(bound));
                let delay = u64::try_from(delay.as_millis()).unwrap_or(bound);
                let present = self.input.images.get(&image).is_some_and(|image| image.present);
                Image {
                    present,
                    pulled_ms: None,
                    pulling: None,
                    failed: Some(pull_failure(&error, self.input.now_ms, delay)),
                }
            }
        };
        self.input.images.insert(image, known);
    }

    fn told(&mut self, news: News) {
        match news {
            News::Trouble(trouble) => self.trouble = trouble,
            News::Session(session) => {
                let file = SessionFile {
                    boot_id: self.boot_id.clone(),
                    session,
                };
                if let Err(error) = self.dir.write_json("session.json", &file) {
                    tracing::warn!(
                        error = chain(&error),
                        "the session is not on disk; a restart waits for its end"
                    );
                }
            }
            News::Offered(Err(why)) => {
                self.unreadable = Some(format!("{why}; what was assigned before stays in force"))
            }
            News::Offered(Ok(offered)) => {
                self.unreadable = None;
                self.offered = Some(offered.clone());
                self.judge(offered);
            }
            News::Spec(id, Err(why)) => {
                self.input.specs.insert(id, SpecState::Damaged(why));
            }
            News::Spec(id, Ok(bytes)) => self.take_spec(id, &bytes),
        }
    }

    /// An assignment comes into force when it is newer, and on disk.
    fn judge(&mut self, offered: Arc<Assignment>) {
        self.foreign = None;
        let ruling = judge(
            &self.input.cluster,
            &self.input.node,
            self.input.assignment.as_deref(),
            self.hold.is_some(),
            &offered,
        );
        match ruling {
            Ruling::Accept => {
                let written = self.dir.write("assignment.json", &offered.encode());
                if !self.written(written) {
                    // Nothing is persisted, nothing is started: it is judged again at the next sweep.
                    return;
                }
                tracing::debug!(order = ?offered.order, instances = offered.instances.len(), "a new assignment is in force");
                self.input.assignment = Some(offered);
                self.damaged
                    .retain(|condition| condition.reason != "AssignmentUnreadable");
                self.set_applied();
                self.release();
            }
            Ruling::Same => self.release(),
            Ruling::WentBack(message) => {
                tracing::error!(%message, "held");
                let written = self.dir.write_json(
                    "hold.json",
                    &HoldFile {
                        message: message.clone(),
                    },
                );
                self.written(written);
                self.hold = Some(message);
            }
            Ruling::Foreign(message) => {
                tracing::error!(%message, "an assignment is not for this agent");
                self.foreign = Some(message);
            }
            Ruling::StillHeld => {}
        }
    }

    fn release(&mut self) {
        if self.hold.take().is_some()
            && let Err(error) = self.dir.remove("hold.json")
        {
            tracing::warn!(error = chain(&error), "the end of a hold is not on disk");
        }
    }

    /// A spec counts once it is on disk.
    fn take_spec(&mut self, id: SpecId, bytes: &[u8]) {
        let state = match Accepted::decode(bytes).map_err(|error| chain(&error)) {
            Err(why) => SpecState::Damaged(why),
            Ok(accepted) => match service(accepted) {
                None => SpecState::Damaged(format!(
                    "the accepted record {} of {} is no service's spec",
                    id.n, id.resource
                )),
                Some(spec) => {
                    let written = self.dir.write_spec(&id, bytes);
                    if !self.written(written) {
                        return;
                    }
                    SpecState::Here(spec)
                }
            },
        };
        self.input.specs.insert(id, state);
    }

    // ---- a pass ----------------------------------------------------------------------------------------------------

    /// Plans, writes down what must be, and begins what is to be done.
    fn pass(&mut self) {
        if !self.seen {
            return;
        }
        let began = std::time::Instant::now();
        self.input.conditions = self.conditions();
        self.input.busy.clone_from(&self.busy);
        self.input.busy.extend(self.sight.stale().cloned());
        let mut plan = plan(&self.input);
        if !self.write_down(&plan) {
            // Nothing is persisted, nothing is started: the same pass again, knowing that.
            plan = planner::node::plan(&self.input);
            for (key, entry) in std::mem::take(&mut plan.ledger) {
                self.enter(key, entry);
            }
            plan.steps.retain(|step| !matches!(step.op, Op::Create { .. }));
        }
        let NodePlan {
            ledger: _,
            steps,
            pulls,
            inspect,
            look_alikes,
            look_up,
            wanted_specs,
            used_specs,
            probes,
            look_again_ms,
            report,
        } = plan;
        for step in steps {
            self.start_step(step);
        }
        for (reference, pull) in pulls {
            self.start_pull(reference, pull.image, &pull.instance);
        }
        for id in inspect {
            self.inspect(id);
        }
        for image in look_up {
            self.look_up(image);
        }
        self.specs.send_if_modified(|wanted| {
            let differs = *wanted != wanted_specs;
            *wanted = wanted_specs;
            differs
        });
        if look_alikes != self.look_alikes && !look_alikes.is_empty() {
            tracing::warn!(containers = ?look_alikes, "containers bear this cluster's labels and are not of this agent: left alone");
        }
        self.look_alikes = look_alikes;
        self.used_specs = used_specs;
        self.prober.keep(&probes);
        self.look_again_ms = look_again_ms;
        self.show(&report, began.elapsed());
        self.publish(report);
    }

    /// Shows the pass to whoever scrapes.
    fn show(&self, report: &Report, took: Duration) {
        self.metrics.reconciled(took);
        let offered = self.offered.as_ref().map_or(report.applied, |offered| offered.order);
        self.metrics.assignment(offered.generation, report.applied.generation);
        let sample = |line: &schemas::records::ReportedInstance| InstanceSample {
            name: line.name(),
            running: line.container.clone().filter(|_| line.phase == Phase::Running),
            ready: line.ready,
            restarts: line.restarts,
        };
        self.metrics
            .set_instances(report.instances.iter().map(sample).collect());
        let ready = match (&self.input.observed, &self.input.assignment) {
            (Err(why), _) => Err(why.clone()),
            (Ok(_), None) => Err("no assignment is known yet".to_owned()),
            (Ok(_), Some(_)) => Ok(()),
        };
        self.health.turned(ready);
    }

    fn conditions(&self) -> Vec<NodeCondition> {
        let mut conditions = self.damaged.clone();
        let mut add = |reason: &str, message: &str| {
            conditions.push(NodeCondition {
                reason: reason.to_owned(),
                message: message.to_owned(),
            })
        };
        if let Some((reason, message)) = &self.trouble {
            add(reason, message);
        }
        if let Some(message) = &self.foreign {
            add("WrongCluster", message);
        }
        if let Some(message) = &self.hold {
            add("OrderWentBack", message);
        }
        if let Some(message) = &self.unreadable {
            add("AssignmentUnreadable", message);
        }
        conditions
    }

    fn enter(&mut self, key: InstanceKey, entry: Option<planner::node::LedgerEntry>) {
        match entry {
            Some(entry) => self.input.ledger.entries.insert(key, entry),
            None => self.input.ledger.entries.remove(&key),
        };
    }

    /// Enters the plan's changes into the ledger; what is proof is on disk on return. False: it could not be written,
    /// and the ledger is as before.
    fn write_down(&mut self, plan: &NodePlan) -> bool {
        if plan.ledger.is_empty() {
            return true;
        }
        let entries = &self.input.ledger.entries;
        let proof = plan.ledger.iter().any(|(key, entry)| match (entries.get(key), entry) {
            (Some(old), Some(new)) => old.proof_differs(new),
            (None, Some(_)) | (Some(_), None) => true,
            (None, None) => false,
        });
        let before = proof.then(|| self.input.ledger.clone());
        for (key, entry) in &plan.ledger {
            self.enter(key.clone(), entry.clone());
        }
        let Some(before) = before else {
            self.save_soon();
            return true;
        };
        let saved = self.save();
        if !saved {
            self.input.ledger = before;
        }
        saved
    }

    fn start_step(&mut self, step: Step) {
        tracing::info!(instance = %step.instance, verb = step.op.verb(), "{}", step.reason);
        self.busy.insert(step.instance.clone());
        if let Op::Stop { id, .. } | Op::Kill { id } = &step.op {
            self.sight.we_stop(id);
        }
        let permits = if matches!(step.op, Op::Start { .. }) {
            self.restarts.clone()
        } else {
            self.steps.clone()
        };
        let (engine, cluster, ends) = (self.engine.clone(), self.input.cluster.clone(), self.ends_tx.clone());
        self.begin(async move {
            let _permit = permits.acquire_owned().await;
            let created = {
                let step = step.clone();
                move |outcome| {
                    let _ = ends.send(End::Created { step, outcome });
                }
            };
            let began = std::time::Instant::now();
            let ran = execute(engine.as_ref(), &cluster, &step, created).await;
            End::Step {
                step,
                ran,
                took: began.elapsed(),
            }
        });
    }

    fn start_pull(&mut self, reference: String, image: ImageRef, instance: &InstanceKey) {
        let known = self.input.images.entry(reference.clone()).or_default();
        if known.pulling.is_some() {
            return;
        }
        known.pulling = Some(0);
        tracing::info!(%instance, image = reference, "pull");
        let began_ms = self.input.now_ms;
        let (engine, permits, ends) = (self.engine.clone(), self.pulls.clone(), self.ends_tx.clone());
        self.begin(async move {
            let _permit = permits.acquire_owned().await;
            let name = reference.clone();
            let progress = Arc::new(move |progress: crate::engine::PullProgress| {
                let _ = ends.send(End::PullProgress {
                    image: name.clone(),
                    percent: progress.percent,
                });
            });
            let began = std::time::Instant::now();
            let result = engine.pull(&image, progress).await.map(drop);
            End::Pulled {
                image: reference,
                began_ms,
                took: began.elapsed(),
                result,
            }
        });
    }

    fn inspect(&mut self, id: String) {
        if self.inspecting.insert(id.clone()) {
            let engine = self.engine.clone();
            self.begin(async move {
                let result = engine.inspect(&id).await;
                End::Inspected { id, result }
            });
        }
    }

    fn look_up(&mut self, image: String) {
        let Ok(reference) = image.parse::<ImageRef>() else {
            return;
        };
        if self.looking_up.insert(image.clone()) {
            let engine = self.engine.clone();
            self.begin(async move {
                let result = engine.image(&reference).await.map(|id| id.is_some());
                End::LookedUp { image, result }
            });
        }
    }

    /// Hands the report over, tells of what changed, and fetches the last lines of what fails.
    fn publish(&mut self, report: Report) {
        let mut failing = BTreeSet::new();
        for line in &report.instances {
            let logged = line.failing.as_ref().is_some_and(|failing| {
                matches!(
                    failing.reason,
                    FailingReason::CrashLoop
                        | FailingReason::Unhealthy
                        | FailingReason::ProgressDeadlineExceeded
                        | FailingReason::StartFailed
                )
            });
            let key = InstanceKey::reported(line);
            let id = self
                .input
                .ledger
                .entries
                .get(&key)
                .and_then(|entry| entry.container_id().map(str::to_owned));
            let (true, Some(id)) = (logged, id) else { continue };
            failing.insert(key.clone());
            let asked = (id.clone(), line.restarts);
            if self.logs_asked.get(&key) != Some(&asked) {
                self.logs_asked.insert(key.clone(), asked);
                let engine = self.engine.clone();
                self.begin(async move {
                    End::Logs {
                        instance: key,
                        lines: engine.logs(&id, 10).await.unwrap_or_default(),
                    }
                });
            }
        }
        self.logs_asked.retain(|key, _| failing.contains(key));
        self.input.logs.retain(|key, _| failing.contains(key));
        if self.last_report.as_deref() == Some(&report) {
            return;
        }
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        for told in events_out::between(self.last_report.as_deref(), &report, &time) {
            // A full queue drops events: they are for people, and the loop never waits.
            let _ = self.events.try_send(told);
        }
        let report = Arc::new(report);
        self.last_report = Some(report.clone());
        self.report.send_replace(Some(report));
    }
}

/// The spec of a service's accepted record.
fn service(accepted: Accepted) -> Option<Arc<schemas::service::ServiceSpec>> {
    match accepted.body {
        AcceptedBody::Service(spec) => Some(Arc::from(spec)),
        AcceptedBody::Node(_) | AcceptedBody::Deleted => None,
    }
}

/// The addresses this host sends from, loopback left out. Connecting a datagram socket sends nothing.
fn host_addresses() -> Vec<std::net::IpAddr> {
    let from = |local: &str, far: &str| -> Option<std::net::IpAddr> {
        let socket = std::net::UdpSocket::bind(local).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    from("0.0.0.0:0", "192.0.2.1:9")
        .into_iter()
        .chain(from("[::]:0", "[2001:db8::1]:9"))
        .collect()
}

#[cfg(test)]
mod tests;
