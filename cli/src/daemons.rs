//! `reeve controller` and `reeve agent`: the flags become options, the rest is those crates'. Both start while the store
//! is gone and wait for it; the first signal ends them in good order, the second at once.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use agent::engine::docker::Docker;
use agent::engine::{ContainerRuntime, EngineError, ErrorKind};
use agent::{Policy, PolicyOptions};
use controller::ControllerOptions;
use membership::seeds::{Host, Seeds, SeedsError};
use runtime::{EtcdStore, Shutdown};
use schemas::names::NodeName;

use crate::Verdict;
use crate::args::{AgentArgs, Common, ControllerArgs};
use crate::connect;
use crate::edit::hostname;
use crate::failure::{Exit, Failure};
use crate::logging;
use crate::sealing;
use crate::seats;

/// Where a controller keeps its sealing key when it is not told.
const CONTROLLER_DIR: &str = "/var/lib/reeve/controller";

pub async fn controller(common: &Common, args: &ControllerArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    let shutdown = signals()?;
    let store = connect::prepare(common).await?;
    let id = args
        .id
        .clone()
        .unwrap_or_else(|| format!("{}-{}", hostname(), std::process::id()));
    let mut options = ControllerOptions::new(store, common.prefix.clone(), id.clone());
    options.http_addr = Some(args.metrics);
    options.advertise = args.advertise.clone();
    follow_certificates(&options.store, &shutdown);
    let dir = common.data_dir.clone().unwrap_or_else(|| CONTROLLER_DIR.into());
    options.vault = sealing::plain(&dir)
        .inspect_err(|failure| {
            tracing::warn!(
                "{}; name a directory with --data-dir: without a key no password of a registry is handed out",
                failure.message
            );
        })
        .ok();
    tracing::info!(controller = id, metrics = %args.metrics, version = env!("CARGO_PKG_VERSION"), "controller starts");
    let run = controller::run(options, shutdown.clone());
    until_aborted(&shutdown, run)
        .await
        .map_or(Ok(()), |ended| ended.map_err(|error| of_controller(&error)))?;
    tracing::info!("controller has ended");
    Ok(Exit::Done)
}

pub async fn agent(common: &Common, args: &AgentArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    let shutdown = signals()?;
    let node = node_name(args.node.as_ref())?;
    let engine = engine(args.docker.as_deref())?;
    match engine.version().await {
        Ok(version) => tracing::info!(engine = version.version, address = engine.address(), "engine found"),
        // After a reboot the engine may come later than its agent.
        Err(error) if error.kind == ErrorKind::Unavailable || error.kind == ErrorKind::Timeout => {
            tracing::warn!(error = %error, remedy = error.remedy(), "the engine does not answer yet");
        }
        Err(error) => return Err(of_engine(&error)),
    }
    let data_dir = common.data_dir.clone().unwrap_or_else(|| "/var/lib/reeve/agent".into());
    // Held as long as the agent runs: what it is in its cluster.
    let (store, member) = match &args.seeds {
        Some(_) if common.etcd.is_some() && std::env::var_os("REEVE_ETCD").is_none() => {
            return Err(Failure::usage(
                "--seeds and --etcd: an agent joins seeds, or uses a store of yours",
            ));
        }
        Some(seeds) => {
            let (context, keep) =
                seats::agent_joins(&node, seeds, &common.prefix, &args.token, &data_dir, &shutdown).await?;
            let store = connect::prepare_in(&context).await?;
            let member = seats::member(&keep, seeds, &common.prefix)?;
            tokio::spawn(Arc::clone(&member).run(store.clone(), shutdown.clone()));
            (store, Some(member))
        }
        None => (connect::prepare(common).await?, None),
    };
    follow_certificates(&store, &shutdown);
    let mut options = agent::AgentOptions::new(node.clone(), data_dir);
    options.root = common.prefix.clone();
    options.labels = args.labels.iter().cloned().collect::<BTreeMap<_, _>>();
    options.roles.clone_from(&args.roles);
    if let Some(told) = &args.public_address {
        options.public_address = Some(public_address(told, args.seeds.as_ref())?);
    }
    options.http = Some(args.metrics);
    options.advertise = args.advertise.clone();
    options.api = match (&member, &args.seeds) {
        (Some(member), Some(seeds)) => args.api.of_a_member(seeds, member.door()),
        (_, None) | (None, Some(_)) => args.api.options(common)?,
    };
    options.api.engine_host = Some(engine.address());
    options.control = control(common, args.seeds.as_ref())?;
    options.trust = member.as_ref().map(|member| member.trust());
    if member.is_some() {
        options.publish = sealing::member(&options.data_dir.join("member"));
        options.prove = sealing::prove(&options.data_dir.join("member"), &node);
    }
    options.version = env!("CARGO_PKG_VERSION").to_owned();
    options.policy = policy(common, args.policy.as_ref(), Policy::of_a_node(), &engine.address());
    tracing::info!(%node, metrics = %args.metrics, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let engine: Arc<dyn ContainerRuntime> = engine;
    let run = agent::run(options, store, engine, shutdown.clone());
    until_aborted(&shutdown, run)
        .await
        .map_or(Ok(()), |ended| ended.map_err(|error| of_agent(&error)))?;
    tracing::info!("agent has ended; its containers keep running");
    Ok(Exit::Done)
}

/// The ports of the store's members and of the seeds.
fn control(common: &Common, seeds: Option<&Seeds>) -> Result<BTreeSet<(String, u16)>, Failure> {
    let ports = [membership::SEED_PORT, membership::CLIENT_PORT, membership::PEER_PORT];
    let of_seed = |seed: &Host| ports.map(|port| (seed.to_string(), port));
    match seeds {
        Some(seeds) => Ok(seeds.iter().flat_map(of_seed).collect()),
        None => {
            let (endpoints, _, _) = connect::reach(common)?;
            Ok(endpoints
                .iter()
                .filter_map(|url| agent::walls::host_and_port(url))
                .collect())
        }
    }
}

/// Certificates for the store may be renewed by whoever wrote their files: they are looked at as long as we run.
pub fn follow_certificates(store: &EtcdStore, shutdown: &Shutdown) {
    let (store, shutdown) = (store.clone(), shutdown.clone());
    tokio::spawn(async move { store.follow_tls(&shutdown).await });
}

/// The address under which the outside reaches this host, checked. `auto` is this host's own address on the way to the first
/// seed: nothing is sent for it.
pub fn public_address(told: &str, seeds: Option<&Seeds>) -> Result<String, Failure> {
    if told != "auto" {
        let host: Host = told
            .parse()
            .map_err(|error: SeedsError| Failure::usage("--public-address").because(&error))?;
        return Ok(host.to_string());
    }
    let found = seeds.into_iter().flat_map(Seeds::iter).find_map(|seed| {
        let any: IpAddr = match seed.address() {
            Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Some(IpAddr::V4(_)) | None => Ipv4Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(seed.at(membership::SEED_PORT).as_str()).ok()?;
        socket.local_addr().ok().map(|address| address.ip().to_string())
    });
    found.ok_or_else(|| {
        Failure::usage("--public-address auto: no way leads from here to a seed")
            .help("write the address or the name itself")
    })
}

/// The node's policy: the file that was named, else the usual one, else the built-in policy. The private key of this
/// process is opened by none, and the engine's socket only by a line of its own.
pub fn policy(common: &Common, file: Option<&PathBuf>, built_in: Policy, engine: &str) -> PolicyOptions {
    let usual = PolicyOptions::default();
    let socket = engine.strip_prefix("unix://").map(PathBuf::from);
    PolicyOptions {
        named: file.is_some(),
        file: file.cloned().unwrap_or(usual.file),
        built_in,
        own: common.key.iter().cloned().collect(),
        guarded: socket.into_iter().collect(),
    }
}

/// SIGINT and SIGTERM.
pub fn signals() -> Result<Shutdown, Failure> {
    Shutdown::on_signals().map_err(|error| Failure::new(Exit::Failed, "cannot listen for signals").because(&error))
}

/// None when the second signal came first.
async fn until_aborted<T>(shutdown: &Shutdown, run: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        ended = run => Some(ended),
        () = shutdown.aborting() => None,
    }
}

/// The engine as told, else DOCKER_HOST, else the usual socket. Nothing is asked of it yet.
pub fn engine(told: Option<&str>) -> Result<Arc<Docker>, Failure> {
    agent::engine::docker::connect(told.filter(|text| !text.is_empty())).map_err(Failure::usage)
}

pub fn of_engine(error: &EngineError) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("cannot {}", error.act));
    // What may not be used runs: its own words say what to do.
    match error.said.split_once(": run the agent as ") {
        Some((said, remedy)) => failure.because(&Said(said.to_owned())).help(format!(
            "run it as {remedy}, or name another engine with --docker or DOCKER_HOST"
        )),
        None => failure.because(&Said(error.said.clone())).help(error.remedy()),
    }
}

/// An engine's own words as a cause.
#[derive(Debug)]
struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Said {}

pub fn of_controller(error: &controller::ControllerError) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("cannot {error}"));
    let failure = std::error::Error::source(error)
        .map(|source| failure_because(&failure, source))
        .unwrap_or(failure);
    match error.remedy() {
        Some(remedy) => failure.help(remedy),
        None => failure,
    }
}

pub fn of_agent(error: &agent::AgentError) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("cannot {error}"));
    std::error::Error::source(error)
        .map(|source| failure_because(&failure, source))
        .unwrap_or(failure)
}

fn failure_because(failure: &Failure, source: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(failure.exit, failure.message.clone()).because(source)
}

/// The node's name: as told, else the host's, up to its first dot.
pub fn node_name(told: Option<&NodeName>) -> Result<NodeName, Failure> {
    if let Some(told) = told {
        return Ok(told.clone());
    }
    let host = hostname();
    let first = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let label: String = first
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let label = label.trim_matches('-').to_owned();
    let name = label.parse().or_else(|_| format!("node-{label}").parse());
    name.map_err(|_| {
        Failure::usage(format!("this host's name, `{host}`, cannot be a node's")).help("name the node with --node")
    })
}
