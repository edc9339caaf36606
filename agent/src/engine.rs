//! The container engine of a node, in our words. The agent's loop calls [`ContainerRuntime`]; [`docker`] speaks it to a
//! real Docker engine, [`fake`] plays one for tests. Every call has a deadline of its own, says what went wrong as a typed
//! [`ErrorKind`] with the engine's own words (cleaned and shortened), and touches nothing but what it names.
//! Nothing here decides anything, and nothing here ever removes a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
pub use planner::node::{ContainerState, Details, Ground, Limits, NetworkEnd, Observed, Seat};
use schemas::container::ContainerSpec;
use schemas::image::{ImagePin, ImageRef};
use schemas::names::{InstanceName, Namespace, ResourceName};
use schemas::records::{Addresses, AssignedPort, InstanceCondition};

use crate::logins::Login;
use crate::policy::{Asked, Gate, Judgement};
use crate::secrets::SecretVariable;

mod answers;
#[cfg(test)]
mod contract;
mod credentials;
pub mod docker;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod listen;
#[cfg(any(test, feature = "testing"))]
pub mod mortal;
pub mod near;
mod pull;
pub mod translate;
mod wire;

/// The oldest engine API that Reeve works with: Docker 20.10.
pub const OLDEST_API: (u32, u32) = (1, 41);

/// The label that says which cluster a container or network belongs to; its value is the cluster id.
pub use planner::node::LABEL_CLUSTER as CLUSTER_LABEL;

/// What became of a call.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Takes the progress of a pull; called at most ten times a second.
pub type ProgressSink = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// A container engine. Shared as `Arc<dyn ContainerRuntime>`; every method may be called at any time from any task.
/// Containers are named by their full id. A stopped future leaves the engine to finish, or not, what was asked: read back.
pub trait ContainerRuntime: Send + Sync + 'static {
    /// The engine's version; refused with [`ErrorKind::TooOld`] below [`OLDEST_API`].
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>>;
    /// What the host has. Costly (tens of milliseconds): at start and on a slow sweep only.
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>>;
    /// All containers with the label [`CLUSTER_LABEL`]` = cluster`, in every state, by id; one request, no inspect.
    /// One that cannot be read whole is listed with what could be read.
    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>>;
    /// Everything about one container, by id or name.
    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>>;
    /// Creates a container and starts nothing, if the final request passes the request's gate: else [`ErrorKind::Policy`], and
    /// the engine is not asked. The namespace's network must exist when the spec's network is `bridge`.
    /// A taken name is [`ErrorKind::Conflict`]; a missing bind source is [`ErrorKind::Refused`].
    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>>;
    /// Starts a created or ended container; one that runs already is a success.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Sends the container's stop signal, waits `grace`, then SIGKILL; returns when it has ended. Ended or missing already is a success.
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<()>>;
    /// SIGKILL, without waiting for the end. Ended or missing already is a success.
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Removes an ended container, never its volumes. Missing is a success; one that runs is [`ErrorKind::Conflict`].
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Lets a paused container run on; one that is not paused is a success.
    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Gives a container another name.
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Sets the limits as the spec says and the restart policy `no`, in place. What the engine discards comes back as conditions.
    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>>;
    /// Makes sure that the namespace's network exists. Cheap when it is known to.
    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>>;
    /// Removes the networks of all namespaces but these: only such as bear the cluster's label and the name we give, and
    /// that no running container uses.
    fn drop_networks<'a>(&'a self, cluster: &'a str, keep: &'a BTreeSet<Namespace>) -> BoxFuture<'a, Result<()>>;
    /// Makes sure that the node's end of the cluster's network exists, as it is said. Cheap when it is known to.
    fn ensure_ground<'a>(&'a self, ground: &'a Ground) -> BoxFuture<'a, Result<()>>;
    /// Gives a container its place in the cluster's network; one that it has already is a success.
    fn take_seat<'a>(&'a self, id: &'a str, seat: &'a Seat) -> BoxFuture<'a, Result<()>>;
    /// Connects a container to its namespace's network under its names; connected already is a success.
    fn connect<'a>(&'a self, cluster: &'a str, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>>;
    /// Fetches an image as `login`, else with the host's own credentials. Passing faults are retried (4 times, 0.5 s to 4 s);
    /// [`ErrorKind::ImageNotFound`] and [`ErrorKind::Denied`] fail at once. Five minutes of silence are a timeout.
    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        login: Option<&'a Login>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<LocalImage>>;
    /// A local image; None when the host does not have it.
    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<LocalImage>>>;
    /// The last lines a container logged, oldest first: at most `lines`, each at most 256 characters, cleaned.
    /// Empty when its logging driver cannot be read.
    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>>;
    /// Runs a command in a container and returns its exit code. After `timeout` the answer is [`ErrorKind::Timeout`];
    /// the command may run on, for engines cannot end one.
    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>>;
    /// What a running container has used so far; one sample, no waiting for a second.
    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>>;
    /// The way near containers, for people: None where there is none.
    fn near(&self) -> Option<near::Near> {
        None
    }
    /// What happens to the cluster's containers, for ever: the stream reconnects by itself with back-off and says so.
    /// Events are hints: after [`Event::Connected`] list and inspect anew, for what happened in between is not told.
    fn events(&self, cluster: &str) -> BoxStream<'static, Event>;
}

/// An engine's version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineVersion {
    pub version: String,
    /// The newest API it speaks, as (major, minor).
    pub api: (u32, u32),
    pub os: String,
    pub arch: String,
    pub kernel: String,
}

/// What a host and its engine have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineInfo {
    pub version: EngineVersion,
    /// The engine's own id: another engine under the same address has another.
    pub engine_id: String,
    pub hostname: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub storage_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Where the engine keeps its data.
    pub root: String,
    /// Free bytes there; None when the engine is not on this machine.
    pub disk_free_bytes: Option<u64>,
    /// What the engine warns of: no swap limit support, and the like.
    pub warnings: Vec<String>,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// Where containers' output goes when nothing else is said: `json-file`, `local`, `journald`, ...
    pub logging_driver: String,
    /// Whether containers outlive the engine's own restart.
    pub live_restore: bool,
    /// Whether root in a container is another user on the host.
    pub user_namespaces: bool,
}

/// The id of an image: `sha256:...`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub String);

/// An image that the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalImage {
    pub id: ImageId,
    /// What the registry in its reference knows it by. None of an image that was built or loaded here: of those nobody else
    /// knows a digest; and of one whose id no digest is.
    pub pin: Option<ImagePin>,
    /// It came from another node, and has the name for that.
    pub loaded: bool,
}

/// A container as an inspection tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// As a list tells it, and with the details.
    pub observed: Observed,
    pub image_id: ImageId,
    /// The process id of its first process on the host; None when it does not run.
    pub pid: Option<u32>,
    /// Why the last start failed, cleaned; empty when it did not.
    pub error: String,
    /// The whole answer, for `translate::discrepancies`.
    pub raw: Arc<serde_json::Value>,
}

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct CreateRequest<'a> {
    /// The container's name: `<namespace>.<workload>.<slot>.<n>`.
    pub name: &'a str,
    /// Gives the host name, the network and the names in it.
    pub instance: &'a InstanceName,
    pub spec: &'a ContainerSpec,
    /// Reeve's own labels, of which the cluster's says which network is meant; the spec's are added.
    pub labels: &'a BTreeMap<String, String>,
    /// The node's ports, one for each published port of the spec, in the spec's order.
    pub ports: &'a [AssignedPort],
    /// The files it mounts, as they are laid out on this node; bound read-only.
    pub files: &'a [FileBind],
    /// Variables whose values are secrets: they are in the request, and nowhere else of ours.
    pub secrets: &'a [SecretVariable],
    /// Where the node is found, of which its variables tell.
    pub addresses: &'a Addresses,
    /// Services it depends on, of which its variables tell.
    pub depends_on: &'a [ResourceName],
    /// Its place in the cluster's network; None where it stands in the network of its namespace, or in none.
    pub seat: Option<&'a Seat>,
    /// The node's policy: the engine is asked nothing that does not pass it.
    pub gate: &'a Gate,
}

impl CreateRequest<'_> {
    /// The network of ours that its container is on, if it is on one.
    #[must_use]
    pub fn network(&self) -> String {
        let cluster = self.labels.get(CLUSTER_LABEL).map_or("", String::as_str);
        match self.seat {
            Some(seat) => seat.ground.name(),
            None => translate::network_name(cluster, &self.instance.namespace),
        }
    }

    /// Passes the final request through the gate. Engines call it just before they create.
    async fn admit(&self, act: &str, body: &serde_json::Value) -> Result<()> {
        let files: Vec<String> = self.files.iter().map(FileBind::source).collect();
        let asked = Asked {
            body,
            network: &self.network(),
            address: self.seat.map(|seat| seat.address),
            volumes: &translate::volume_name(&self.instance.namespace, ""),
            files: &files,
        };
        match self.gate.admit(&asked).await {
            Judgement::Granted => Ok(()),
            Judgement::Denied { denials: _, text } => Err(EngineError::new(ErrorKind::Policy, act, &text)),
            Judgement::Withheld(why) => Err(EngineError::new(ErrorKind::Policy, act, &why)),
        }
    }
}

/// A file of the agent's own that a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileBind {
    /// Where it is on this node: an absolute path.
    pub source: PathBuf,
    /// Where the container sees it.
    pub target: String,
}

impl FileBind {
    /// The source as the engine is told it.
    #[must_use]
    pub fn source(&self) -> String {
        self.source.to_string_lossy().into_owned()
    }
}

/// What was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: String,
    /// Options this engine cannot do (`OptionUnsupported`) or said to have discarded (`OptionDiscarded`).
    pub conditions: Vec<InstanceCondition>,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub done_bytes: u64,
    /// Bytes of the layers whose size is known by now: it grows during the first seconds.
    pub total_bytes: u64,
    /// 0 to 100, never falling; 0 while unknown.
    pub percent: u8,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// How a command in a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecEnd {
    pub code: i64,
    /// The last of what it wrote, cleaned: at most 256 characters.
    pub output: String,
}

/// What a container has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub receive_bytes: u64,
    pub transmit_bytes: u64,
    pub pids: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The stream is up, for the first time or again: what happened before it is unknown.
    Connected,
    /// The stream is down; it will be tried again.
    Disconnected(EngineError),
    /// An image lost a name, or is gone.
    ImageGone,
    Container {
        id: String,
        action: Action,
    },
}

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Created,
    Started,
    Died {
        code: Option<i64>,
    },
    /// Somebody, perhaps we, used the engine's stop (told after `Died`).
    Stopped,
    Killed,
    OutOfMemory,
    Paused,
    Unpaused,
    Renamed,
    Updated,
    Removed,
    NetworkConnected,
    NetworkDisconnected,
}

/// What kind of failure it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nothing answers at the engine's address, or the connection broke.
    Unavailable,
    /// It did not answer in time. The call may still take effect: read back.
    Timeout,
    /// No such container, or network.
    NotFound,
    /// The name is taken, by this id where the engine says so; or the container is in a state that forbids it.
    Conflict {
        holder: Option<String>,
    },
    /// Something on the host has the port.
    PortTaken {
        port: Option<u16>,
    },
    /// The disk is full.
    NoSpace,
    /// The registry, or the engine, refuses us.
    Denied,
    /// There is no such image.
    ImageNotFound,
    /// The registry failed for a passing reason.
    Registry,
    /// The engine refused what was asked: a bad option, a missing path.
    Refused,
    /// This node's policy forbids it.
    Policy,
    /// The engine speaks no API that we do.
    TooOld,
    Other,
}

/// A call to the engine that failed: what was tried, on what, and what the engine said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{act}: {said}")]
pub struct EngineError {
    pub kind: ErrorKind,
    /// What was tried: "create container `default.web.1.1`".
    pub act: String,
    /// The engine's own words, without control characters, at most 400 characters.
    pub said: String,
}

impl EngineError {
    #[must_use]
    pub fn new(kind: ErrorKind, act: impl Into<String>, said: &str) -> Self {
        Self {
            kind,
            act: act.into(),
            said: clean(said, 400),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match &self.kind {
            ErrorKind::Unavailable => {
                "start the engine (`systemctl start docker`), or name its address with --docker or DOCKER_HOST"
            }
            ErrorKind::Timeout => "the engine is slow or stuck; see its log (`journalctl -u docker`)",
            ErrorKind::NotFound => "somebody removed it; it is made again if it is still wanted",
            ErrorKind::Conflict { .. } => {
                "rename or remove the container that has the name (`docker rename`, `docker rm`)"
            }
            ErrorKind::PortTaken { .. } => "free the port on this node (`ss -ltnup`), or choose another hostPort",
            ErrorKind::NoSpace => "free disk space on this node (`docker system df` shows what uses it)",
            ErrorKind::Denied => {
                "log in with an account that may read the image: `reeve login` with the registry's name (or, for this node alone, `docker login` as the agent's user)"
            }
            ErrorKind::ImageNotFound => "see that the image's name and tag are right, and that it was pushed",
            ErrorKind::Registry => "it is tried again; see that this node reaches the registry",
            ErrorKind::Policy => "change the service, or have the policy of this node changed",
            ErrorKind::Refused => "correct the option that the engine names",
            ErrorKind::TooOld => "upgrade the engine to Docker 20.10 or later",
            ErrorKind::Other => "see the engine's log (`journalctl -u docker`)",
        }
    }

    /// Whether the same call may succeed later with nothing changed by a person.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match &self.kind {
            ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::Registry
            | ErrorKind::NoSpace
            | ErrorKind::Other => true,
            ErrorKind::NotFound
            | ErrorKind::Conflict { .. }
            | ErrorKind::PortTaken { .. }
            | ErrorKind::Denied
            | ErrorKind::ImageNotFound
            | ErrorKind::Refused
            | ErrorKind::Policy
            | ErrorKind::TooOld => false,
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text from outside made fit for messages: control characters become spaces, runs of space one, cut at `most` characters.
#[must_use]
pub fn clean(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most * 4));
    let mut count = 0;
    let mut gap = false;
    for c in text.chars() {
        // Bidirectional overrides and the like can make a message read as another one.
        let hidden = c.is_control()
            || c.is_whitespace()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if hidden {
            gap = !out.is_empty();
            continue;
        }
        if count + usize::from(gap) + 1 > most {
            if most > 1 {
                out.pop();
                out.push('…');
            }
            break;
        }
        if gap {
            out.push(' ');
            count += 1;
            gap = false;
        }
        out.push(c);
        count += 1;
    }
    out
}
