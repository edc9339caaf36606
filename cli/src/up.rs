//! `reeve up`: the embedded store, a controller and an agent in one process, on loopback only. The first run makes the
//! cluster, a later one continues it. Ending it leaves the containers running.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::Policy;
use agent::engine::ContainerRuntime;
use controller::ControllerOptions;
use runtime::EtcdStore;
use runtime::embedded::{Embedded, OpenError, OpenOptions};
use schemas::names::NodeName;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::Verdict;
use crate::admin::{Founded, found};
use crate::args::{Common, UpArgs};
use crate::connect::{Connection, ENDPOINT_FILE, Marker, default_data_dir};
use crate::daemons::{engine, node_name, of_agent, of_controller, of_engine, policy, signals};
use crate::edit::hostname;
use crate::failure::{Exit, Failure};
use crate::logging;
use crate::output::{complain, print};
use crate::sealing;

/// In the data directory: the id of the cluster in its store, for people, and to notice a store that was lost.
const CLUSTER_FILE: &str = "cluster";
/// How long the controller may take to begin before that is told.
const BEGIN: Duration = Duration::from_secs(10);

/// Where everything listens.
struct Places {
    store: TcpListener,
    controller: SocketAddr,
    agent: SocketAddr,
}

pub async fn up(common: &Common, args: &UpArgs) -> Verdict {
    if common.etcd.is_some() && std::env::var_os("REEVE_ETCD").is_none() {
        return Err(Failure::usage("`reeve up` brings its own store; --etcd is not for it")
            .help("run `reeve controller` and `reeve agent` on a store of yours"));
    }
    logging::start(&args.log, args.log_format)?;
    let shutdown = signals()?;
    let node = node_name(args.node.as_ref())?;
    let engine = engine(args.docker.as_deref())?;
    engine.version().await.map_err(|error| of_engine(&error))?;
    let dir = common.data_dir.clone().unwrap_or_else(default_data_dir);
    private_dir(&dir)?;
    let embedded = open(&dir).await?;
    let places = places(args).await?;
    let address = places
        .store
        .local_addr()
        .map_err(|error| cannot("tell the store's address", &error))?;
    let endpoint = format!("http://{address}");
    let store = EtcdStore::from_client(embedded.client());
    let connection = Connection {
        store: store.clone(),
        root: common.prefix.clone(),
        endpoints: endpoint.clone(),
        context: None,
        viewer: false,
    };
    let (marker, new) = continue_or_found(&connection, &dir).await?;
    write(&dir.join(CLUSTER_FILE), marker.record.id.as_str())?;

    let embedded = Arc::new(embedded);
    let (stop_store, store_stopped) = oneshot::channel::<()>();
    let served = Arc::clone(&embedded);
    let server = tokio::spawn(async move {
        let stopped = async {
            // Also when the sender is dropped: nobody is left who would stop it.
            let _ = store_stopped.await;
        };
        served.serve(places.store, stopped).await
    });
    write(&dir.join(ENDPOINT_FILE), &endpoint)?;

    let mut options = ControllerOptions::new(
        store.clone(),
        common.prefix.clone(),
        format!("{}-{}", hostname(), std::process::id()),
    );
    options.http_addr = Some(places.controller);
    options.vault = Some(sealing::plain(&dir)?);
    let (started, begun) = oneshot::channel();
    options.started = Some(started);
    let mut controller = tokio::spawn(controller::run(options, shutdown.clone()));
    let mut options = agent::AgentOptions::new(node.clone(), dir.join("agent"));
    options.root = common.prefix.clone();
    options.labels = args.labels.iter().cloned().collect::<BTreeMap<_, _>>();
    options.http = Some(places.agent);
    options.api.rights.exec = !args.no_exec;
    options.api.engine_host = Some(engine.address());
    options.version = env!("CARGO_PKG_VERSION").to_owned();
    options.policy = policy(common, args.policy.as_ref(), Policy::of_up(), &engine.address());
    // The store beside the agent is nobody's to mount either.
    options.policy.own.push(dir.clone());
    let runtime: Arc<dyn ContainerRuntime> = engine.clone();
    let mut agent = tokio::spawn(agent::run(options, store, runtime, shutdown.clone()));

    let told = tokio::select! {
        begun = tokio::time::timeout(BEGIN, begun) => matches!(begun, Ok(Ok(_))),
        () = shutdown.draining() => false,
    };
    if told {
        print(&greeting(&Greeting {
            node: &node,
            docker: &engine.address(),
            dir: &dir,
            marker: &marker,
            endpoint: &endpoint,
            root: common.prefix.as_str(),
            metrics: (places.controller, places.agent),
            new,
        }));
        if let Some(note) = crate::contexts::elsewhere(common) {
            complain(&note);
        }
    } else if !shutdown.is_draining() && !controller.is_finished() {
        complain("the controller has not begun yet; see the log\n");
    }

    let mut failure = None;
    let (mut controller_ended, mut agent_ended) = (false, false);
    while !(controller_ended && agent_ended) {
        tokio::select! {
            ended = &mut controller, if !controller_ended => {
                controller_ended = true;
                failure = failure.or(ended.map_or_else(|panic| Some(cannot("run the controller", &panic)), |ended| ended.err().map(|error| of_controller(&error))));
            }
            ended = &mut agent, if !agent_ended => {
                agent_ended = true;
                failure = failure.or(ended.map_or_else(|panic| Some(cannot("run the agent", &panic)), |ended| ended.err().map(|error| of_agent(&error))));
            }
            () = shutdown.aborting() => break,
        }
        // One of them alone is no cluster.
        shutdown.drain();
    }
    controller.abort();
    agent.abort();
    // Whoever reads the file next must not be sent to a store that is gone.
    let _ = std::fs::remove_file(dir.join(ENDPOINT_FILE));
    let _ = stop_store.send(());
    // Streams that clients hold open are not waited for longer than this.
    let _ = tokio::time::timeout(Duration::from_secs(3), server).await;
    if let Some(embedded) = Arc::into_inner(embedded) {
        embedded.close().await;
    }
    match failure {
        Some(failure) => Err(failure),
        None => {
            print("Reeve has stopped; its containers keep running, and `reeve up` goes on with them.\n");
            Ok(Exit::Done)
        }
    }
}

struct Greeting<'a> {
    node: &'a NodeName,
    docker: &'a str,
    dir: &'a Path,
    marker: &'a Marker,
    endpoint: &'a str,
    root: &'a str,
    metrics: (SocketAddr, SocketAddr),
    new: bool,
}

/// What runs, where it is reached, and what to try: for a person, in 80 columns where names are of usual length.
fn greeting(of: &Greeting<'_>) -> String {
    let Greeting {
        node,
        docker,
        dir,
        marker,
        endpoint,
        root,
        metrics: (controller, agent),
        new,
    } = of;
    // Where verbs find both the store and the agent, without it in the usual directory.
    let export = if *dir == default_data_dir() {
        String::new()
    } else {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
        format!("  export REEVE_DATA_DIR='{}'\n", dir.display())
    };
    let version = env!("CARGO_PKG_VERSION");
    let what = if *new {
        "a new cluster"
    } else {
        "going on with the cluster that was here"
    };
    format!(
        "reeve {version} is up: {what}
  cluster   {id}
  node      {node}, Docker at {docker}
  data      {dir}
  etcdctl   --endpoints {endpoint} get --prefix {root}desired/
  metrics   http://{controller}/metrics  http://{agent}/metrics
  others    http://{controller}/sd tells Prometheus of all

Try next, in another terminal:
{export}  reeve apply -f hello.yaml
  reeve status --watch

Ctrl-C stops Reeve; the containers keep running.
",
        id = marker.record.id,
        dir = dir.display()
    )
}

fn cannot(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Failed, format!("cannot {what}")).because(error)
}

/// A directory for the owner alone: who reads it reads every secret of the cluster.
fn private_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| {
        cannot(&format!("make the data directory {}", dir.display()), &error).help("choose another with --data-dir")
    })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, format!("{text}\n")).map_err(|error| cannot(&format!("write {}", path.display()), &error))
}

/// Whether a `reeve up` kept its store in this directory.
pub fn was_here(dir: &Path) -> bool {
    dir.join(CLUSTER_FILE).exists() || dir.join("store").exists()
}

/// Opens the store in a directory; nobody else has it then.
pub async fn open(dir: &Path) -> Result<Embedded, Failure> {
    let options = OpenOptions::new(dir.join("store"));
    let opened = tokio::task::spawn_blocking(move || Embedded::open(options)).await;
    let opened = opened.map_err(|panic| cannot("open the store", &panic))?;
    opened.map_err(|error| {
        let failure = match &error {
            OpenError::InUse { dir: _ } => {
                let message = format!("a `reeve up` is running on {} already", dir.display());
                return Failure::new(Exit::Conflict, message).help("use it, stop it, or choose another --data-dir");
            }
            OpenError::Io { .. }
            | OpenError::Damaged { .. }
            | OpenError::Format { .. }
            | OpenError::BadSnapshot { .. }
            | OpenError::NotEmpty { .. } => Failure::new(Exit::Failed, error.to_string()),
        };
        match std::error::Error::source(&error) {
            Some(source) => failure.because(source),
            None => failure,
        }
    })
}

/// The marker: found, or made in an empty store that was never one of a cluster. And whether it is new.
async fn continue_or_found(connection: &Connection, dir: &Path) -> Result<(Marker, bool), Failure> {
    if connection.marker_if_any().await?.is_some() {
        return Ok((connection.marker().await?, false));
    }
    let file: PathBuf = dir.join(CLUSTER_FILE);
    if let Ok(id) = std::fs::read_to_string(&file) {
        let message = format!(
            "the store in {} is empty, but it held cluster {}",
            dir.display(),
            id.trim()
        );
        return Err(Failure::new(Exit::Failed, message).help(format!(
            "put it back with `reeve admin restore FILE`, or without a backup `reeve admin rebuild`; to begin anew and leave what runs to itself, delete {}",
            file.display()
        )));
    }
    let new = matches!(found(&connection.store, &connection.root, None).await?, Founded::New(_));
    Ok((connection.marker().await?, new))
}

async fn places(args: &UpArgs) -> Result<Places, Failure> {
    let listen = address("--listen", &args.listen)?;
    if !listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "--listen {listen}: the store of `reeve up` is for this machine alone"
        ))
        .help("listen on 127.0.0.1; for several machines run etcd, `reeve controller` and `reeve agent`"));
    }
    let store = TcpListener::bind(listen).await.map_err(|error| {
        cannot(&format!("listen on {listen}"), &error)
            .help("another store may run there; choose a free port with `--listen auto`")
    })?;
    let controller = free(address("--metrics", &args.metrics)?).await?;
    let mut agent = free(address("--agent-metrics", &args.agent_metrics)?).await?;
    if agent == controller {
        agent = free(SocketAddr::new(agent.ip(), 0)).await?;
    }
    Ok(Places {
        store,
        controller,
        agent,
    })
}

fn address(flag: &str, text: &str) -> Result<SocketAddr, Failure> {
    if text == "auto" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    let text = text.replace("localhost", "127.0.0.1");
    text.parse().map_err(|_| {
        Failure::usage(format!("{flag} {text} is no address")).help("write IP:PORT such as 127.0.0.1:2379, or auto")
    })
}

/// This address, or another port of it where the port is taken: metrics must not keep a cluster from coming up.
async fn free(wanted: SocketAddr) -> Result<SocketAddr, Failure> {
    let bound = match TcpListener::bind(wanted).await {
        Ok(bound) => Ok(bound),
        Err(_) => TcpListener::bind(SocketAddr::new(wanted.ip(), 0)).await,
    };
    bound
        .and_then(|bound| bound.local_addr())
        .map_err(|error| cannot(&format!("listen on {wanted} for metrics"), &error))
}
