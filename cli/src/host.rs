//! A whole host: `reeve install` checks it, makes it a seed or a node and sees to it that it stays one; `reeve uninstall`
//! takes that away. Where everything is, and the record of what was installed, are here; what runs the programs is
//! [`service`], what is looked at before is [`look`].
//!
//! ```text
//! DIR/install     the record, and the token until this host has joined
//! DIR/server      a seed's store, keys and certificates (`reeve server`)
//! DIR/agent       the node's, with all it needs to run on without the store (`reeve agent`)
//! DIR/supervisor  logs and process ids, where systemd does not run
//! ```

pub mod advisories;
pub mod authority;
pub mod check;
pub mod doctor;
pub mod install;
pub mod look;
pub mod service;
pub mod uninstall;

use std::path::{Path, PathBuf};

use membership::keep::{Keep, KeepError};
use membership::seeds::{Host, Seeds};
use schemas::names::NodeName;
use serde::{Deserialize, Serialize};

use crate::args::Common;
use crate::failure::{Exit, Failure};

/// Where everything is when nobody says otherwise.
pub const BASE_DIR: &str = "/var/lib/reeve";
/// The file of [`Installed`].
const RECORD: &str = "install.json";
/// The token, for as long as it is needed.
const TOKEN: &str = "token";

/// The directories of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub base: PathBuf,
}

impl Places {
    pub fn of(common: &Common) -> Self {
        let base = common.data_dir.clone().unwrap_or_else(|| BASE_DIR.into());
        let base = std::path::absolute(&base).unwrap_or(base);
        Self { base }
    }

    pub fn install(&self) -> PathBuf {
        self.base.join("install")
    }
    pub fn server(&self) -> PathBuf {
        self.base.join("server")
    }
    pub fn agent(&self) -> PathBuf {
        self.base.join("agent")
    }
    pub fn supervisor(&self) -> PathBuf {
        self.base.join("supervisor")
    }
    pub fn token(&self) -> PathBuf {
        self.install().join(TOKEN)
    }

    /// ` --data-dir DIR` for commands that people are told, where it is not the usual one.
    pub fn flag(&self) -> String {
        if self.base == Path::new(BASE_DIR) {
            String::new()
        } else {
            format!(" --data-dir {}", self.base.display())
        }
    }
}

/// One program that runs on this host for as long as it is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Program {
    /// `server` or `agent`.
    pub name: String,
    pub args: Vec<String>,
}

/// Who starts the programs, and starts them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Supervisor {
    Systemd,
    /// A process of ours.
    Process,
}

/// What was installed here: `install.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installed {
    pub cluster: Option<trust::identity::ClusterId>,
    pub seeds: Seeds,
    /// Which of them this host is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// As which node; None on a seed without an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    pub supervisor: Supervisor,
    pub binary: PathBuf,
    pub programs: Vec<Program>,
    /// Directories that were not there before: what an install that does not come to its end takes away again.
    pub made: Vec<PathBuf>,
    /// Whether it has been seen to work. Until then the next `reeve install` goes on with it.
    pub complete: bool,
}

impl Installed {
    /// What is installed in these places; None where nothing is.
    pub fn read(places: &Places) -> Result<Option<Self>, Failure> {
        Keep::beside(&places.install())
            .read_json(RECORD)
            .map_err(|error| of_keep(&error))
    }

    pub fn write(&self, keep: &Keep) -> Result<(), Failure> {
        keep.write_json(RECORD, self).map_err(|error| of_keep(&error))
    }

    /// `seed 10.0.0.1 and node n1`.
    pub fn who(&self) -> String {
        let seed = self.host.iter().map(|host| format!("seed {host}"));
        let node = self.node.iter().map(|node| format!("node {node}"));
        seed.chain(node).collect::<Vec<_>>().join(" and ")
    }
}

pub fn of_keep(error: &KeepError) -> Failure {
    let failure = Failure::new(Exit::Failed, error.to_string());
    let failure = match std::error::Error::source(error) {
        Some(source) => failure.because(source),
        None => failure,
    };
    match error {
        KeepError::InUse { path: _ } => {
            failure.help("another `reeve install` or `reeve uninstall` runs here: wait for it")
        }
        KeepError::Io { .. } => failure.help("run it as root, or choose another directory with --data-dir"),
        KeepError::TooLarge { .. }
        | KeepError::Json { .. }
        | KeepError::Key { .. }
        | KeepError::Certificate { .. }
        | KeepError::Authority { .. }
        | KeepError::Bundle { .. }
        | KeepError::Revoked { .. }
        | KeepError::Mismatch { .. } => failure,
    }
}
