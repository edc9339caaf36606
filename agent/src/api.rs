//! The agent's API for people who want to be near their containers: logs, commands, terminals. `reeve` speaks to it through
//! [`Client`]; the agent starts it with [`open`]. It listens on a socket in the data directory that only the agent's own user
//! and root can open, and on TCP only with mutual TLS. It knows the containers of the agent's ledger and no others, decides
//! what a caller may by one pure function, and never tells the loop what to do.
//!
//! A conversation is one HTTP/1.1 request, `GET /v1/near` with `Upgrade: reeve-near`, and then frames (`wire`): one
//! question (`ask`), one answer, and what the act sends.

use std::fmt;
use std::net::SocketAddr;

use schemas::names::Namespace;
use trust::identity::{Commands, Rights as Granted, Runs};

pub mod ask;
mod audit;
mod client;
mod copy;
mod directory;
mod host;
mod images;
pub mod lines;
mod logs;
mod named;
mod network;
mod reach;
mod server;
mod session;
mod share;
mod tls;
mod top;
pub mod wire;

pub use client::{AskError, Client, Talk, Way};
pub(crate) use directory::Directory;
pub(crate) use named::Shelf;
pub use server::OpenError;
pub(crate) use server::{Shared, open};
pub use tls::{Files, Security, TlsError};

/// The socket in an agent's data directory.
pub const SOCKET: &str = "api.sock";
/// The one path of the API.
const PATH: &str = "/v1/near";
/// What a connection is upgraded to.
const PROTOCOL: &str = "reeve-near";
/// Headers of the answer that say who answers.
const NODE_HEADER: &str = "reeve-node";
const CLUSTER_HEADER: &str = "reeve-cluster";

/// Where an agent's API listens besides its socket, and what it allows.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    pub tcp: Option<Tcp>,
    pub rights: Rights,
    /// The engine as Docker's own program is told of it (`DOCKER_HOST`); None where the usual one is meant.
    pub engine_host: Option<String>,
}

/// The API on TCP.
#[derive(Clone, Debug)]
pub struct Tcp {
    pub address: SocketAddr,
    /// `host:port` under which others reach it; the address itself when None.
    pub advertise: Option<String>,
    pub security: Security,
}

/// What a node allows at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Commands in containers, their standard input, connections to their ports, and copies of their files.
    pub exec: bool,
}

/// Who is at the other end of a connection, as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Over the socket in the data directory: the agent's own user, or root.
    Local { uid: u32 },
    /// With a certificate of the cluster's CA.
    Certificate {
        /// Such as `CN=alice`.
        subject: String,
        /// The role in the cluster that a certificate of seeds bears, such as `node`.
        role: Option<String>,
        /// What it says its holder may do, where it is a person's and this release understands it.
        rights: Option<Granted>,
    },
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "uid {uid} of this host"),
            Self::Certificate {
                subject,
                role: None,
                rights: _,
            } => write!(f, "certificate {subject}"),
            Self::Certificate {
                subject,
                role: Some(role),
                rights: _,
            } => write!(f, "certificate {subject} of a {role}"),
        }
    }
}

/// What is done near a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Logs,
    Top,
    /// Looking at the node's end of the network, and what its names stand for.
    Network,
    /// Replacing the key of the node's links.
    RotateKey,
    /// Looking at the node's images.
    Images,
    /// Removing such of them as nobody uses.
    RemoveImages,
    Exec,
    /// A command that is declared by name.
    Run,
    Attach,
    Forward,
    Copy,
    /// Giving an image to another node, whose registry is away.
    Share,
    /// A command on the node itself; whether the node allows it, its policy says.
    Host,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    pub message: String,
    pub remedy: String,
}

fn denied(message: impl Into<String>, remedy: impl Into<String>) -> Result<(), Denied> {
    Err(Denied {
        message: message.into(),
        remedy: remedy.into(),
    })
}

impl Act {
    /// What it is, for people.
    const fn words(self) -> &'static str {
        match self {
            Self::Logs => "reading logs",
            Self::Top => "measuring",
            Self::Network => "looking at the network",
            Self::RotateKey => "replacing the keys of links",
            Self::Images => "looking at images",
            Self::RemoveImages => "removing images",
            Self::Exec => "running commands in containers",
            Self::Run => "running named commands",
            Self::Attach => "attaching to containers",
            Self::Forward => "connecting to containers' ports",
            Self::Copy => "copying into and out of containers",
            Self::Share => "giving images to other nodes",
            Self::Host => "running commands on nodes",
        }
    }

    /// Whether it changes nothing and reaches into nothing.
    const fn looks(self) -> bool {
        matches!(self, Self::Logs | Self::Top | Self::Network | Self::Images)
    }

    /// Whether it reaches into a container.
    const fn inside(self) -> bool {
        matches!(self, Self::Exec | Self::Run | Self::Attach | Self::Forward | Self::Copy)
    }
}

/// Whether a caller may do that, to an instance of this namespace where it is about one: what the caller's certificate says,
/// and then what the node allows anybody. A node's certificate opens nothing but images: what one node's intruder holds must not reach
/// into the others. On an etcd of one's own, certificates say nothing of rights: each of the CA may what the node allows.
pub fn may(caller: &Caller, act: Act, about: Option<&Namespace>, rights: Rights) -> Result<(), Denied> {
    match caller {
        Caller::Local { uid: _ } => {}
        Caller::Certificate {
            subject: _,
            role,
            rights,
        } => match (role.as_deref(), rights) {
            // The one thing that nodes have of each other.
            (Some("node") | None, _) if act == Act::Share => return Ok(()),
            (_, _) if act == Act::Share => {
                return denied("images are given to nodes alone", "pull it from its registry");
            }
            (Some("node"), _) => {
                return denied(
                    "a node's certificate opens nothing on other nodes but images that both run",
                    "use a person's certificate, or this node's own socket",
                );
            }
            (Some("person"), None) => {
                return denied(
                    "this agent does not know the rights in your certificate",
                    "use the same release of reeve on both sides",
                );
            }
            (Some("person"), Some(granted)) => person(granted, act, about)?,
            (Some(_) | None, _) => {}
        },
    }
    let Rights { exec } = rights;
    if exec || !act.inside() {
        return Ok(());
    }
    denied(
        format!("{} is not allowed on this node", act.words()),
        "start its agent with --allow-exec to allow it",
    )
}

/// Whether what was granted to a person covers that.
fn person(granted: &Granted, act: Act, about: Option<&Namespace>) -> Result<(), Denied> {
    let enough = match granted {
        Granted::Admin => true,
        Granted::Operator(_) if act == Act::RotateKey => false,
        Granted::Operator(Commands { exec, host }) => (*exec || !act.inside()) && (*host || act != Act::Host),
        Granted::Viewer(runs) => {
            act.looks() || (act == Act::Run && about.is_some_and(|space| runs.cover(space.as_str())))
        }
        Granted::Namespaces { names, exec } => {
            let here = about.map(|space| names.iter().any(|name| name.as_str() == space.as_str()));
            (act.looks() && here.unwrap_or(true)) || (act.inside() && *exec && here.unwrap_or(false))
        }
    };
    if enough {
        return Ok(());
    }
    let some = match granted {
        Granted::Viewer(runs) => act == Act::Run && *runs != Runs::Nowhere,
        Granted::Namespaces { names: _, exec } => act.looks() || (act.inside() && *exec),
        Granted::Admin | Granted::Operator(_) => false,
    };
    let elsewhere = if some { " in that namespace" } else { "" };
    let more = match (act, granted) {
        (Act::Host, _) => "operator+host".to_owned(),
        (Act::RotateKey, _) => "admin".to_owned(),
        (Act::Run, Granted::Viewer(Runs::Nowhere)) => "viewer+run".to_owned(),
        (_, Granted::Namespaces { names, exec: false }) if act.inside() => {
            let rights = Granted::Namespaces {
                names: names.clone(),
                exec: true,
            };
            rights.to_string()
        }
        (_, _) if act.inside() => "operator+exec".to_owned(),
        (_, _) => "operator".to_owned(),
    };
    denied(
        format!("your rights, `{granted}`, do not cover {}{elsewhere}", act.words()),
        format!("ask an administrator for a token with more: `reeve token create --person NAME --rights {more}`"),
    )
}

#[cfg(test)]
mod tests;
