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
mod directory;
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
pub use tls::{Files, TlsError};

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
    pub files: Files,
}

/// What a node allows at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Commands in containers, their standard input, and connections to their ports.
    pub exec: bool,
}

/// Who is at the other end of a connection, as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Over the socket in the data directory: the agent's own user, or root.
    Local { uid: u32 },
    /// With a certificate of the cluster's CA; its subject, such as `CN=alice`.
    Certificate { subject: String },
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "uid {uid} of this host"),
            Self::Certificate { subject } => write!(f, "certificate {subject}"),
        }
    }
}

/// What is done near a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Logs,
    Top,
    Exec,
    Attach,
    Forward,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    pub message: String,
    pub remedy: String,
}

/// Whether a caller may. Whoever holds a certificate of the CA can write the store, and so is root on every host already:
/// callers are told apart in what is recorded, not yet in what they may.
pub fn may(caller: &Caller, act: Act, rights: Rights) -> Result<(), Denied> {
    let Rights { exec } = rights;
    match (act, caller) {
        (Act::Logs | Act::Top, Caller::Local { uid: _ } | Caller::Certificate { subject: _ }) => Ok(()),
        (Act::Exec | Act::Attach | Act::Forward, Caller::Local { uid: _ } | Caller::Certificate { subject: _ }) => {
            if exec {
                return Ok(());
            }
            let what = match act {
                Act::Attach => "attaching to containers",
                Act::Forward => "connecting to containers' ports",
                Act::Logs | Act::Top | Act::Exec => "running commands in containers",
            };
            Err(Denied {
                message: format!("{what} is not allowed on this node"),
                remedy: "start its agent with --allow-exec to allow it".to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_is_allowed_until_the_node_says_so() {
        let callers = [
            Caller::Local { uid: 0 },
            Caller::Certificate {
                subject: "CN=alice".to_owned(),
            },
        ];
        for caller in &callers {
            for act in [Act::Logs, Act::Top] {
                assert!(may(caller, act, Rights::default()).is_ok());
            }
            for act in [Act::Exec, Act::Attach, Act::Forward] {
                let denied = may(caller, act, Rights::default()).expect_err("it is off");
                assert!(denied.remedy.contains("--allow-exec"));
                assert!(may(caller, act, Rights { exec: true }).is_ok());
            }
        }
    }
}
