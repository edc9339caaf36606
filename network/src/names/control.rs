//! The socket in the copy's directory by which the agent speaks with the server: it says which files changed, and hears when
//! they are in force, and how the server is. One line of JSON each way. Only who may write the directory can reach it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use planner::network::lookup::{Found, Wanted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::copy::Part;
use super::forward::UpstreamHealth;

const SOCKET: &str = "control";
/// The largest line, in bytes.
const LINE_LIMIT: u64 = 4 << 20;
/// More changes than these are told as one: all.
const MAX_CHANGES: usize = 5_000;
/// How long the server may take until all changes are in force.
const TELL_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to say how it is.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// What the agent says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Files that changed, came or went.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub changed: BTreeSet<Part>,
    /// Anything may have.
    #[serde(default)]
    pub all: bool,
    /// What this name leads to is asked: the answer is that, and not how the server is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Wanted>,
}

/// How a server is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Whether it has read its whole copy, and answers.
    pub answering: bool,
    pub listen: Vec<ListenHealth>,
    pub services: usize,
    pub instances: usize,
    /// Files that cannot be read, and why: at most 20. What they are about stays as it was last read.
    pub unreadable: Vec<String>,
    /// This host's own servers, which are asked about the world.
    pub upstreams: Vec<UpstreamHealth>,
    pub counts: Counts,
}

impl Health {
    /// What is wrong with it, for people, each in a line: where it cannot listen, and files it cannot read. Nothing while it is
    /// still reading its copy. That this host's own servers are silent is in `upstreams`: it comes and goes.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let Self {
            answering,
            listen,
            services: _,
            instances: _,
            unreadable,
            upstreams: _,
            counts: _,
        } = self;
        if !answering {
            return Vec::new();
        }
        let deaf = listen.iter().filter_map(|ListenHealth { address, why }| {
            let why = why.as_ref()?;
            Some(format!("cannot listen at {address}: {why}"))
        });
        deaf.chain(unreadable.iter().cloned()).collect()
    }
}

/// One address it listens at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenHealth {
    pub address: SocketAddr,
    /// Why it does not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub questions: u64,
    /// Of those, about the cluster.
    pub answered: u64,
    /// About the world, and answered by others.
    pub forwarded: u64,
    /// About the world, and nobody answered.
    pub failed: u64,
    /// From who may not ask.
    pub refused: u64,
    /// What was no question, and what came too fast.
    pub dropped: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("reach the names' server at `{}`", path.display())]
    Reach {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the names' server at `{}` does not answer", path.display())]
    Silent { path: PathBuf },
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// Tells the server of `dir` which files of its copy changed, and waits until they are in force.
pub async fn tell(dir: &Path, changed: impl IntoIterator<Item = Part>) -> Result<Health, ControlError> {
    let changed: BTreeSet<Part> = changed.into_iter().collect();
    let told = if changed.len() > MAX_CHANGES {
        Told {
            all: true,
            ..Told::default()
        }
    } else {
        Told {
            changed,
            ..Told::default()
        }
    };
    say(dir, &told, TELL_LIMIT).await
}

/// Asks the server of `dir` how it is.
pub async fn health(dir: &Path) -> Result<Health, ControlError> {
    say(dir, &Told::default(), HEALTH_LIMIT).await
}

/// Asks the server of `dir` what it answers to a name; None while it has read nothing yet.
pub async fn look(dir: &Path, wanted: Wanted) -> Result<Option<Found>, ControlError> {
    let told = Told {
        ask: Some(wanted),
        ..Told::default()
    };
    say(dir, &told, HEALTH_LIMIT).await
}

async fn say<T: DeserializeOwned>(dir: &Path, told: &Told, limit: Duration) -> Result<T, ControlError> {
    let path = socket(dir);
    let reach = |source: io::Error| ControlError::Reach {
        path: path.clone(),
        source,
    };
    let talk = async {
        let mut stream = UnixStream::connect(&path).await?;
        let mut line = serde_json::to_vec(told)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).take(LINE_LIMIT).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    };
    match tokio::time::timeout(limit, talk).await {
        Ok(result) => result.map_err(reach),
        Err(_) => Err(ControlError::Silent { path: path.clone() }),
    }
}

/// Opens the server's end. It has the directory for itself: a socket that is there is a dead one's.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let path = socket(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Reads what is told.
pub async fn hear(stream: &mut UnixStream) -> io::Result<Told> {
    let mut line = String::new();
    BufReader::new(stream).take(LINE_LIMIT).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

/// Answers.
pub async fn answer<T: Serialize>(stream: &mut UnixStream, said: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
