//! What the loop knows, and what it has under way. The other files of this folder are what it does with that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planner::node::{FileId, InstanceKey, Making, NodeInput, Observed, OpOutcome, SpecId, Step};
use runtime::backoff::Backoff;
use runtime::boottime;
use schemas::names::Namespace;
use schemas::records::{Assignment, ClusterId, NodeCondition, NodeFacts, Order, Report, ReportedVirtualIps};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::AgentOptions;
use super::asks::Asks;
use crate::api::Directory;
use crate::disk::DataDir;
use crate::engine::{ContainerRuntime, Inspection, LocalImage, Result as EngineResult};
use crate::events_out::Told;
use crate::execute::Ran;
use crate::ground::{Footing, Local};
use crate::http::Health;
use crate::logins::Logins;
use crate::metrics::Metrics;
use crate::observe::Sight;
use crate::peers::Peers;
use crate::policy::{Gate, Judgement};
use crate::probe::Prober;
use crate::secrets::SecretPlace;
use crate::virtual_ips::{Granted, Life};
use crate::walls::Walls;

/// Inspections and lookups at once.
const READS: usize = 8;
/// Stops at once.
const STOPS: usize = 32;

/// The loop's ends of its channels to the store's link.
pub(super) struct Ends {
    pub(super) report: watch::Sender<Option<Arc<Report>>>,
    pub(super) specs: watch::Sender<BTreeSet<SpecId>>,
    pub(super) files: watch::Sender<BTreeSet<FileId>>,
    pub(super) facts: watch::Sender<Option<Arc<NodeFacts>>>,
    pub(super) applied: watch::Sender<Order>,
    /// Whether something waits for the store's word.
    pub(super) word: watch::Sender<bool>,
    /// The session that is open.
    pub(super) life: watch::Receiver<Option<Life>>,
    /// For who keeps this node's end of the cluster's network.
    pub(super) local: watch::Sender<Local>,
    /// For who keeps its virtual addresses.
    pub(super) granted: watch::Sender<Granted>,
    pub(super) events: mpsc::Sender<Told>,
    /// For the API: which containers are whose.
    pub(super) directory: watch::Sender<Option<Arc<Directory>>>,
}

/// The end of something the loop began.
pub(super) enum End {
    Listed {
        mark: u64,
        took: Duration,
        result: EngineResult<Vec<Observed>>,
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
        /// Other nodes were asked for it too.
        others_asked: bool,
        result: EngineResult<LocalImage>,
    },
    LookedUp {
        image: String,
        result: EngineResult<Option<LocalImage>>,
    },
    Inspected {
        id: String,
        result: EngineResult<Inspection>,
    },
    Logs {
        instance: InstanceKey,
        lines: Vec<String>,
    },
    Facts(Option<(Box<NodeFacts>, Option<u64>)>),
    Tidied(EngineResult<()>),
    /// What the policy says of a request whose paths had to be looked up; None when the looking broke off.
    Judged {
        making: Making,
        judgement: Option<Judgement>,
    },
}

/// What is told while work goes on.
pub(crate) enum Note {
    /// A container was created, and is about to be started.
    Created {
        step: Box<Step>,
        outcome: OpOutcome,
    },
    PullProgress {
        image: String,
        percent: u8,
    },
    /// The host paths of a request are not looked up in time; that goes on.
    Unjudged(Making),
    /// The accounts of registries have changed.
    Handed,
    /// What is to be said of the walls around control ports has changed.
    Walled,
    /// What is to be said of this node's end of the cluster's network has changed.
    Ground(Box<Footing>),
    /// Which virtual addresses are held, as the kernel has them.
    VirtualIps(Box<ReportedVirtualIps>),
}

pub(super) struct Agent {
    pub(super) options: AgentOptions,
    pub(super) dir: DataDir,
    pub(super) engine: Arc<dyn ContainerRuntime>,
    /// The node's policy.
    pub(super) gate: Arc<Gate>,
    /// What keeps containers away from control ports.
    pub(super) walls: Arc<Walls>,
    /// The accounts that images are fetched with.
    pub(super) logins: Arc<Logins>,
    /// Other nodes, for when a registry is away.
    pub(super) peers: Arc<Peers>,
    /// Where secrets are laid out, in memory.
    pub(super) secret_place: Arc<SecretPlace>,
    /// What it is being asked; true: something has changed since, so it is asked again.
    pub(super) judging: BTreeMap<Making, bool>,
    /// When its file is looked at again.
    pub(super) gate_at_ms: u64,
    pub(super) boot_id: String,
    /// All that the planner is given. Between passes `sight` has the containers.
    pub(super) input: NodeInput,
    pub(super) sight: Sight,
    pub(super) prober: Prober,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,

    // What was assigned.
    /// The last assignment that was offered, whatever became of it.
    pub(super) offered: Option<Arc<Assignment>>,
    /// The highest order that was ever in force, as far as the disk knows.
    pub(super) floor: Order,
    /// The offered one was for another cluster or node.
    pub(super) foreign: Option<String>,
    pub(super) unreadable: Option<String>,
    /// What stands in the store is no controller's word.
    pub(super) doubted: Option<String>,
    /// The assignment offered last as it was signed, with its signer's certificate: kept on disk once it is in force.
    pub(super) signed: Option<(Bytes, Bytes)>,
    pub(super) hold: Option<String>,
    pub(super) trouble: Option<(&'static str, String)>,
    pub(super) used_specs: BTreeSet<SpecId>,
    /// Specs that could not be had, or not be kept: asked for again.
    pub(super) missed_specs: BTreeSet<SpecId>,
    /// The same of files.
    pub(super) missed_files: BTreeSet<FileId>,

    // The store's word.
    /// By which renewal of the session the store was last heard of.
    pub(super) heard: Option<boottime::Instant>,
    /// What of that is on disk.
    pub(super) heard_kept_ms: Option<u64>,

    // The disk.
    pub(super) save_at_ms: Option<u64>,
    pub(super) damaged: Vec<NodeCondition>,
    /// Why the last write failed; nothing new is begun until one succeeds.
    pub(super) unwritable: Option<String>,
    /// The data directory's disk, and the engine's, have too little space.
    pub(super) data_full: bool,
    pub(super) engine_full: bool,

    // Work under way. It ends with this struct, so that a loop that is dropped leaves nobody behind who calls the engine.
    pub(super) work: JoinSet<End>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    /// Instances with a step under way.
    pub(super) busy: BTreeSet<InstanceKey>,
    /// Creates under way, and when the last one began or ended.
    pub(super) creating: usize,
    pub(super) create_ms: u64,
    pub(super) steps: Arc<Semaphore>,
    /// Starts of ended containers never wait for creates.
    pub(super) restarts: Arc<Semaphore>,
    /// Stops mostly wait for the container: they have room of their own.
    pub(super) stops: Arc<Semaphore>,
    pub(super) pulls: Arc<Semaphore>,
    pub(super) reads: Arc<Semaphore>,
    pub(super) inspections: Asks,
    pub(super) look_ups: Asks,
    pub(super) learning: bool,
    /// Namespaces that may have a network here; None at the start and after a failure, when any may be left over, and
    /// when an instance has gone.
    pub(super) networks: Option<BTreeSet<Namespace>>,
    pub(super) tidying: bool,

    // Lists.
    pub(super) listing: bool,
    pub(super) list_wanted: bool,
    /// No list before this.
    pub(super) list_at_ms: u64,
    /// How long the last one took.
    pub(super) list_took_ms: u64,
    /// When the engine last told something, and how many of the lists after it are done.
    pub(super) echo: Option<(u64, usize)>,
    pub(super) list_failing_since: Option<u64>,
    pub(super) list_retry: Backoff,
    /// Why the engine is held to be down.
    pub(super) engine_down: Option<String>,
    /// Whether the break of its events has been said.
    pub(super) deaf: bool,
    /// Whether there was a list, or a failure that lasted.
    pub(super) seen: bool,

    pub(super) sweep_at_ms: u64,
    pub(super) look_again_ms: Option<u64>,
    /// Failures in a row, and the last message, by image.
    pub(super) pull_failures: BTreeMap<String, (u32, String)>,
    /// Which logs were asked for: of which container, after how many restarts.
    pub(super) logs_asked: BTreeMap<InstanceKey, (String, u32)>,
    pub(super) look_alikes: Vec<String>,
    pub(super) last_report: Option<Arc<Report>>,
    /// What this node's end of the cluster's network is.
    pub(super) ground: Footing,
    /// The virtual addresses it holds; None of one that never had any.
    pub(super) virtual_ips: Option<ReportedVirtualIps>,
    pub(super) ends: Ends,
}

impl Agent {
    /// One that knows nothing yet.
    #[expect(clippy::too_many_arguments, reason = "called once, with what `run` has made")]
    pub(super) fn new(
        options: AgentOptions,
        dir: DataDir,
        cluster: ClusterId,
        boot_id: String,
        engine: Arc<dyn ContainerRuntime>,
        gate: Arc<Gate>,
        logins: Arc<Logins>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        probed: Arc<Notify>,
        notes: mpsc::UnboundedSender<Note>,
        walls: Arc<Walls>,
        ends: Ends,
    ) -> Self {
        let security = options.api.tcp.as_ref().map(|tcp| tcp.security.clone());
        let peers = Arc::new(Peers::new(options.node.clone(), security, engine.clone()));
        let at_once = |count: usize| Arc::new(Semaphore::new(count.max(1)));
        Self {
            prober: Prober::new(engine.clone(), probed),
            metrics,
            health,
            input: NodeInput {
                permits: Some(BTreeMap::new()),
                ..NodeInput::new(super::now_ms(), options.node.clone(), cluster)
            },
            sight: Sight::default(),
            offered: None,
            floor: Order::default(),
            foreign: None,
            unreadable: None,
            doubted: None,
            signed: None,
            hold: None,
            trouble: None,
            used_specs: BTreeSet::new(),
            missed_specs: BTreeSet::new(),
            missed_files: BTreeSet::new(),
            heard: None,
            heard_kept_ms: None,
            save_at_ms: None,
            damaged: Vec::new(),
            unwritable: None,
            data_full: false,
            engine_full: false,
            work: JoinSet::new(),
            notes,
            walls,
            busy: BTreeSet::new(),
            creating: 0,
            create_ms: 0,
            steps: at_once(options.parallelism),
            restarts: at_once(options.parallelism),
            stops: at_once(STOPS),
            pulls: at_once(options.pulls),
            reads: at_once(READS),
            inspections: Asks::default(),
            look_ups: Asks::default(),
            learning: false,
            networks: None,
            tidying: false,
            listing: false,
            list_wanted: true,
            list_at_ms: 0,
            list_took_ms: 0,
            echo: None,
            list_failing_since: None,
            list_retry: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            engine_down: None,
            deaf: false,
            seen: false,
            sweep_at_ms: 0,
            look_again_ms: None,
            pull_failures: BTreeMap::new(),
            logs_asked: BTreeMap::new(),
            look_alikes: Vec::new(),
            last_report: None,
            ground: Footing::default(),
            virtual_ips: None,
            ends,
            options,
            secret_place: Arc::new(SecretPlace::new(dir.path())),
            dir,
            engine,
            gate,
            logins,
            peers,
            judging: BTreeMap::new(),
            gate_at_ms: 0,
            boot_id,
        }
    }
}
