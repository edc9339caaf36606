//! The agent's loop: wake, list, plan, write down, execute. `reeve agent` and `reeve up` call [`run`]. It promises that a
//! kill at any moment is safe, that no outage of the store delays a container, and that stopping it stops no container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtime::{SessionRecord, Shutdown, Store, boottime, chain};
use schemas::keys::Root;
use schemas::names::{NodeName, ResourceName};
use schemas::records::{ClusterId, Order, SchemaVersion};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use trust::seal::SealingPublic;
use trust::trusted::Trust;

pub(crate) use self::state::Note;
use self::state::{Agent, Ends};
use crate::api::{self, ApiOptions};
use crate::disk::{DataDir, DiskError};
use crate::engine::ContainerRuntime;
use crate::expose;
use crate::ground::{self, Ground, Local, Prove};
use crate::http::{self, Health, Shown};
use crate::logins::{self, Logins};
use crate::metrics::Metrics;
use crate::pings;
use crate::policy::{Gate, PolicyOptions};
use crate::register::{self, Identity, Wants, marker};
use crate::seen::Seen;
use crate::virtual_ips::{self, Granted, Keeping};
use crate::walls::{self, Walls};

mod asks;
mod facts;
mod files;
mod heard;
mod keep;
mod orders;
mod pass;
mod permits;
mod state;
mod turn;

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub node: NodeName,
    pub root: Root,
    /// Where the agent keeps what it must not forget.
    pub data_dir: PathBuf,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The node's roles, where no Node resource names any.
    pub roles: Vec<ResourceName>,
    /// The address or name under which the outside reaches this node.
    pub public_address: Option<String>,
    /// Where metrics and health are served; nowhere when None.
    pub http: Option<SocketAddr>,
    /// `host:port` under which others reach that; the address itself when None.
    pub advertise: Option<String>,
    /// The API for people who want to be near their containers.
    pub api: ApiOptions,
    /// The agent's version.
    pub version: String,
    /// Steps at once; 8 by default.
    pub parallelism: usize,
    /// Pulls at once; 3 by default.
    pub pulls: usize,
    /// Whose assignments count: those that a controller of this cluster signed. None where the cluster has no certificates of
    /// its own; then what the store holds counts.
    pub trust: Option<watch::Receiver<Arc<Trust>>>,
    /// How this node's sealing key is published: stated under its certificate, where it has one.
    pub publish: Publish,
    /// How this node's word on its link is signed, where it has a certificate.
    pub prove: Prove,
    /// What assignments may ask of this node.
    pub policy: PolicyOptions,
    /// Hosts and ports of the store and the seeds, which containers are kept away from beside the agent's own API.
    pub control: BTreeSet<(String, u16)>,
    /// How long a silent agent keeps its session; 15 s by default.
    pub session_ttl: Duration,
    /// Everything is looked at anew this often; 30 s by default.
    pub sweep: Duration,
    /// Where a test ends the agent's life.
    #[cfg(any(test, feature = "testing"))]
    pub cut: crate::cut::Cut,
    /// The machine id and boot id of a machine that exists in a test only.
    #[cfg(any(test, feature = "testing"))]
    pub machine: Option<(String, String)>,
}

/// How a sealing key becomes what the store says of it.
#[derive(Clone)]
pub struct Publish(pub Arc<dyn Fn(SealingPublic) -> Option<String> + Send + Sync>);

impl Default for Publish {
    fn default() -> Self {
        Self(Arc::new(|key| Some(trust::publish::plain(key))))
    }
}
impl std::fmt::Debug for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publish")
    }
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
            roles: Vec::new(),
            public_address: None,
            http: None,
            advertise: None,
            api: ApiOptions::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            parallelism: 8,
            pulls: 3,
            trust: None,
            publish: Publish::default(),
            prove: Prove::default(),
            policy: PolicyOptions::default(),
            control: BTreeSet::new(),
            session_ttl: Duration::from_secs(15),
            sweep: Duration::from_secs(30),
            #[cfg(any(test, feature = "testing"))]
            cut: crate::cut::Cut::never(),
            #[cfg(any(test, feature = "testing"))]
            machine: None,
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
    #[error(
        "start the agent of node `{asked}`: the data directory `{}` is of node `{found}`; start it with --node {found}, or give it another --data-dir",
        path.display()
    )]
    OtherNode {
        asked: NodeName,
        found: NodeName,
        path: PathBuf,
    },
    /// A bug of ours: what was kept on disk is right, so it may be started again.
    #[error("run the agent: {task} broke off; start it again, and report what its log says above")]
    Broken { task: &'static str },
    #[error("serve the agent's API")]
    Api(#[from] api::OpenError),
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
    /// The node whose directory it is; older agents did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
}

/// A session on disk, and the boot it was opened in: after another boot it may be a clone's, and is not resumed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionFile {
    boot_id: String,
    session: SessionRecord,
}

/// When the store was last heard of, and the boot in which that was.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContactFile {
    boot_id: String,
    heard_ms: u64,
}

/// CLOCK_BOOTTIME in milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(boottime::since_boot().as_millis()).unwrap_or(u64::MAX)
}

/// Runs the agent until the shutdown drains. Containers keep running afterwards.
pub async fn run<S: Store>(
    mut options: AgentOptions,
    store: S,
    engine: Arc<dyn ContainerRuntime>,
    shutdown: Shutdown,
) -> Result<(), AgentError> {
    let dir = DataDir::open(&options.data_dir)?;
    #[cfg(any(test, feature = "testing"))]
    let dir = dir.with_cut(options.cut.clone());
    let metrics = Arc::new(Metrics::new(&options.node)?);
    let health = Arc::new(Health::default());
    // Tasks that end with this future, whoever drops it. None returns before the shutdown.
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
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
            // What runs matters more than who watches: its end ends nothing else.
            std::future::pending().await
        });
    }
    let cluster = cluster(&dir, &store, &options, &shutdown).await?;
    let boot_id = machine_text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let machine_id = machine_id(&dir)?;
    #[cfg(any(test, feature = "testing"))]
    let (machine_id, boot_id) = options.machine.clone().unwrap_or((machine_id, boot_id));
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
    let (files, files_rx) = watch::channel(BTreeSet::new());
    let (facts, facts_rx) = watch::channel(None);
    let (applied, applied_rx) = watch::channel(Order::default());
    let (word, word_rx) = watch::channel(false);
    let (events, events_rx) = mpsc::channel(256);
    let (news_tx, news) = mpsc::channel(256);
    let wants = Wants {
        report: report_rx,
        specs: specs_rx,
        files: files_rx,
        facts: facts_rx,
        applied: applied_rx,
        word: word_rx,
    };
    let (directory, directories) = watch::channel(None);
    let gate = Arc::new(Gate::new(options.policy.clone(), dir.path()));
    let doors = api::open(dir.path(), &options.api).await?;
    let seen = Arc::new(Seen::new(&cluster, &options.node, ground::names_dir(dir.path())));
    metrics.sees(seen.clone());
    let (asked, exposed) = (seen.clone(), seen.clone());
    let (node, end, kept_in) = (options.node.clone(), shutdown.clone(), dir.path().to_owned());
    tasks.spawn(async move {
        tokio::join!(
            pings::keep(asked, node, end.clone()),
            expose::keep(exposed, kept_in, end)
        );
        // Without them nothing is measured, and that is no reason to end.
        std::future::pending().await
    });
    let shared = api::Shared {
        node: options.node.clone(),
        cluster: cluster.clone(),
        version: options.version.clone(),
        near: engine.near(),
        engine: engine.clone(),
        directories,
        events: events.clone(),
        data_dir: dir.path().to_owned(),
        gate: gate.clone(),
        engine_host: options.api.engine_host.clone(),
        shelf: api::Shelf::new(store.clone(), options.root.clone(), cluster.clone()),
        seen: seen.clone(),
    };
    tasks.spawn(async move {
        doors.serve(shared).await;
        "the API"
    });
    let (local, local_rx) = watch::channel(Local::default());
    let (granted, granted_rx) = watch::channel(Granted::default());
    let (life, life_rx) = watch::channel(None);
    let ends = Ends {
        local,
        granted,
        report,
        specs,
        files,
        facts,
        applied,
        word,
        life: life_rx.clone(),
        events,
        directory,
    };
    let probed = Arc::new(Notify::new());
    let (notes_tx, notes) = mpsc::unbounded_channel();
    let trust = options.trust.clone();
    let logins = Arc::new(Logins::open(&dir, &cluster)?);
    let (followed, node, noted, end) = (logins.clone(), options.node.clone(), notes_tx.clone(), shutdown.clone());
    let (shelf, root) = (store.clone(), options.root.clone());
    tasks.spawn(async move {
        logins::follow(shelf, root, node, followed, noted, end).await;
        // Without it accounts stay as they are, and that is no reason to end.
        std::future::pending().await
    });
    let api = options.api.tcp.as_ref().map(|tcp| tcp.address);
    let engine_port = options.api.engine_host.as_deref().and_then(walls::host_and_port);
    let control = options.control.iter().cloned().chain(engine_port).collect();
    let walls = Arc::new(Walls::new(&cluster, &options.node, api, control));
    // Before the first container is started.
    walls.raise().await;
    let changed = notes_tx.clone();
    let kept = walls.clone().keep(
        options.sweep,
        move || drop(changed.send(Note::Walled)),
        shutdown.clone(),
    );
    tasks.spawn(async move {
        kept.await;
        std::future::pending().await
    });
    metrics.relay_in(crate::relays::dir(dir.path()));
    let kept = ground::keep(
        Ground {
            store: store.clone(),
            root: options.root.clone(),
            cluster: cluster.clone(),
            node: options.node.clone(),
            dir: dir.path().to_owned(),
            prove: options.prove.clone(),
            trust: options.trust.clone(),
            public: options.public_address.clone(),
            local: local_rx,
            notes: notes_tx.clone(),
            seen,
        },
        shutdown.clone(),
    );
    tasks.spawn(async move {
        kept.await;
        // Without it the network stays as it is, and that is no reason to end.
        std::future::pending().await
    });
    let kept = virtual_ips::keep(
        Keeping {
            dir: dir.path().to_owned(),
            granted: granted_rx,
            life: life_rx,
            notes: notes_tx.clone(),
            metrics: metrics.clone(),
        },
        shutdown.clone(),
    );
    tasks.spawn(async move {
        kept.await;
        // Without it the kernel drops what is held, and that is no reason to end.
        std::future::pending().await
    });
    let mut agent = Agent::new(
        options,
        dir,
        cluster,
        boot_id,
        engine,
        gate,
        logins,
        metrics.clone(),
        health,
        probed.clone(),
        notes_tx,
        walls,
        ends,
    );
    agent.load()?;
    let link = register::link(
        store,
        identity,
        session,
        trust,
        wants,
        events_rx,
        news_tx,
        life,
        metrics,
        shutdown.clone(),
    );
    let end = shutdown.clone();
    tasks.spawn(async move {
        link.await;
        if end.is_draining() {
            std::future::pending::<()>().await;
        }
        "the link to the store"
    });
    tokio::select! {
        ended = agent.serve(notes, news, &probed, &shutdown) => ended,
        Some(ended) = tasks.join_next() => Err(AgentError::Broken {
            task: ended.unwrap_or("a task of its"),
        }),
    }
}

/// The cluster this agent is of: from disk, or at the first start from the store.
async fn cluster<S: Store>(
    dir: &DataDir,
    store: &S,
    options: &AgentOptions,
    shutdown: &Shutdown,
) -> Result<ClusterId, AgentError> {
    let (root, node) = (&options.root, &options.node);
    let keep = |id: ClusterId| {
        let file = ClusterFile {
            schema_version: SchemaVersion::default(),
            id: id.clone(),
            node: Some(node.clone()),
        };
        dir.write_json("cluster.json", &file).map(|()| id)
    };
    match dir.read_json::<ClusterFile>("cluster.json")? {
        None => {}
        Some(ClusterFile {
            schema_version: _,
            id,
            node: None,
        }) => {
            // A disk that is full keeps no agent from what runs.
            let _kept = keep(id.clone());
            return Ok(id);
        }
        Some(ClusterFile {
            schema_version: _,
            id,
            node: Some(found),
        }) if found == *node => return Ok(id),
        Some(ClusterFile {
            schema_version: _,
            id: _,
            node: Some(found),
        }) => {
            let (asked, path) = (node.clone(), dir.path().to_owned());
            return Err(AgentError::OtherNode { asked, found, path });
        }
    }
    let mut backoff = runtime::backoff::Backoff::default();
    let mut said = None;
    loop {
        match marker(store, root).await {
            Ok(Some(Ok(marker))) => return Ok(keep(marker.id)?),
            Ok(Some(Err(why))) => return Err(AgentError::Marker { why }),
            Ok(None) => return Err(AgentError::NoCluster { root: root.clone() }),
            Err(error) => {
                let why = chain(&error);
                if said.as_ref() != Some(&why) {
                    tracing::warn!("the first start waits for the store: {why}{}", remedy(&error));
                    said = Some(why);
                }
            }
        }
        tokio::select! {
            () = shutdown.draining() => return Err(AgentError::ShuttingDown),
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
}

/// What to do about a fault of the store, as the end of a sentence.
fn remedy(error: &runtime::StoreError) -> String {
    error.remedy().map_or_else(String::new, |remedy| format!("; {remedy}"))
}

fn machine_text(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty() && text.len() <= 128)
}

/// This machine's id: the host's own, or one drawn once where it has none. The host's comes first, for a data directory
/// may be copied to another machine.
fn machine_id(dir: &DataDir) -> Result<String, AgentError> {
    if let Some(id) = machine_text("/etc/machine-id") {
        return Ok(id);
    }
    if let Some(known) = dir.read("machine")? {
        return Ok(String::from_utf8_lossy(&known).trim().chars().take(128).collect());
    }
    let id = machine_text("/proc/sys/kernel/random/uuid").unwrap_or_else(|| "unknown".to_owned());
    dir.write("machine", id.as_bytes())?;
    Ok(id)
}

/// A duration as people read it.
struct Took(Duration);

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1?}", self.0)
    }
}

#[cfg(test)]
mod tests;
