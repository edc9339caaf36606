//! The agent's API for people who want to be near their containers: logs, commands, terminals. `reeve` speaks to it through
//! [`Client`]; the agent starts it with [`open`]. It listens on a socket in the data directory that only the agent's own user
//! and root can open, and on TCP only with mutual TLS. It knows the containers of the agent's ledger and no others, decides
//! what a caller may by one pure function, and never tells the loop what to do.
//!
//! A conversation is one HTTP/1.1 request, `GET /v1/near` with `Upgrade: reeve-near`, and then frames (`wire`): one
//! question (`ask`), one answer, and what the act sends.

use std::fmt;
use std::net::SocketAddr;

pub mod ask;
mod audit;
mod client;
mod copy;
mod directory;
mod images;
pub mod lines;
mod logs;
mod reach;
mod server;
mod session;
mod tls;
mod top;
pub mod wire;

pub use client::{AskError, Client, Talk, Way};
pub(crate) use directory::Directory;
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
    },
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "uid {uid} of this host"),
            Self::Certificate { subject, role: None } => write!(f, "certificate {subject}"),
            Self::Certificate {
                subject,
                role: Some(role),
            } => write!(f, "certificate {subject} of a {role}"),
        }
    }
}

/// What is done near a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Logs,
    Top,
    /// Looking at the node's images, and removing such as nobody uses.
    Images,
    Exec,
    Attach,
    Forward,
    Copy,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    pub message: String,
    pub remedy: String,
}

/// Whether a caller may. A node's certificate opens nothing: what one node's intruder holds must not reach into the others.
/// Any other of the CA can write the store, and so is root on every host already: those callers are told apart in what is
/// recorded, not yet in what they may.
pub fn may(caller: &Caller, act: Act, rights: Rights) -> Result<(), Denied> {
    let Rights { exec } = rights;
    let denied = |message: String, remedy: &str| {
        Err(Denied {
            message,
            remedy: remedy.to_owned(),
        })
    };
    match caller {
        Caller::Certificate {
            subject: _,
            role: Some(role),
        } if role == "node" => {
            return denied(
                "a node's certificate opens nothing on other nodes".to_owned(),
                "use a person's certificate, or this node's own socket",
            );
        }
        Caller::Local { uid: _ } | Caller::Certificate { subject: _, role: _ } => {}
    }
    let what = match act {
        Act::Logs | Act::Top | Act::Images => return Ok(()),
        Act::Exec => "running commands in containers",
        Act::Attach => "attaching to containers",
        Act::Forward => "connecting to containers' ports",
        Act::Copy => "copying into and out of containers",
    };
    if exec {
        return Ok(());
    }
    denied(
        format!("{what} is not allowed on this node"),
        "start its agent with --allow-exec to allow it",
    )
}

#[cfg(test)]
mod tests;
