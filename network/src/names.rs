//! Names on a node: a DNS server for its containers, in a process of its own that goes on while the agent is restarted and the
//! store is gone. What it says is decided in `planner::network::names`. The agent keeps its [`Copy`] of the cluster's records
//! in a directory, sees to it that the server runs, and [`tell`]s it what changed; `reeve names` calls [`serve`].
//!
//! What the agent does, and when:
//! 1. at its start, and about each second: [`Server::ensure`]; it starts one that is not there, hangs, is of another build, or
//!    listens elsewhere. Its [`Health`] says what is wrong;
//! 2. as soon as its assignment has a network, and on any change of it: [`Copy::settings`], with the node's gateway addresses
//!    as `servers`; and before any of its instances starts: [`Copy::own`];
//! 3. for each change of `endpoints/...`: [`Copy::put`] or [`Copy::remove`]; of those or of `policies/...`: [`Copy::sees`] with
//!    [`Sees::of`];
//! 4. after those that returned true, for many together: [`tell`] with their [`Part`]s; when it returns, they are in force;
//!    then, at leisure, [`Copy::settle`];
//! 5. for each container: [`planner::network::names::resolver`], whose `resolv_conf()` is to be mounted at /etc/resolv.conf.

mod control;
mod copy;
mod forward;
mod server;
mod wire;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use control::{ControlError, Counts, Health, ListenHealth, health, look, tell};
pub use copy::{Copy, CopyError, Part, Sees, Settings, read, services};
pub use forward::UpstreamHealth;
pub use server::Options;

use crate::detached::{self, DetachedError, Place, Program};

/// What its pid file and log are called by.
const NAME: &str = "names";
/// How long a server has to end by itself before another takes its place.
const STOP: Duration = Duration::from_secs(2);
/// How long a new one may take until it can be spoken with.
const START: Duration = Duration::from_secs(10);

/// The server of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The copy, its pid file and its log are in it. It must be short: at most 90 bytes.
    pub dir: PathBuf,
    /// The gateway addresses of the node's bridge, with port 53.
    pub listen: Vec<SocketAddr>,
}

/// What was found, or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It ran as it should.
    Ran,
    /// None ran.
    Started,
    /// It was of another build, listened elsewhere, or did not answer.
    Replaced,
}

#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("keep the names' server running")]
    Program {
        #[source]
        source: DetachedError,
    },
    #[error("speak with the names' server that was started")]
    Control {
        #[source]
        source: ControlError,
    },
}

impl From<DetachedError> for EnsureError {
    fn from(source: DetachedError) -> Self {
        Self::Program { source }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("take the place of the names' server in `{}`", dir.display())]
    Hold {
        dir: PathBuf,
        #[source]
        source: DetachedError,
    },
    #[error("serve names from `{}`", dir.display())]
    Run {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Server {
    #[must_use]
    pub fn place(&self) -> Place {
        place(self.dir.clone())
    }

    /// `reeve names`, of the build that runs here.
    #[must_use]
    pub fn program(&self) -> Program {
        let mut args: Vec<OsString> = vec!["names".into(), "--dir".into(), self.dir.clone().into()];
        for address in &self.listen {
            args.extend(["--listen".into(), address.to_string().into()]);
        }
        Program {
            place: self.place(),
            path: detached::own_program(),
            args,
            env: Vec::new(),
        }
    }

    /// Sees to it that it runs, of this build, listens where it should, and answers.
    pub async fn ensure(&self) -> Result<(Ensured, Health), EnsureError> {
        self.ensure_program(self.program()).await
    }

    /// The same with a program of one's own.
    pub async fn ensure_program(&self, program: Program) -> Result<(Ensured, Health), EnsureError> {
        let place = self.place();
        let found = blocking(move || detached::look(&place)).await?;
        let mut done = Ensured::Started;
        if let Some(running) = found {
            let health = health(&self.dir).await;
            // One that hangs does not end by itself either.
            let patience = if health.is_ok() { STOP } else { Duration::ZERO };
            let same = detached::build().is_ok_and(|build| build == running.build);
            if let Ok(health) = health
                && same
                && self.listens(&health)
            {
                return Ok((Ensured::Ran, health));
            }
            done = Ensured::Replaced;
            let place = self.place();
            blocking(move || detached::stop(&place, patience)).await?;
        }
        blocking(move || detached::start(&program)).await?;
        let begun = tokio::time::Instant::now();
        loop {
            match health(&self.dir).await {
                Ok(health) => return Ok((done, health)),
                Err(source) if begun.elapsed() > START => return Err(EnsureError::Control { source }),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn listens(&self, health: &Health) -> bool {
        health.listen.len() == self.listen.len()
            && self
                .listen
                .iter()
                .all(|own| health.listen.iter().any(|there| there.address == *own))
    }

    /// Ends it: the network was taken from this node.
    pub async fn stop(&self) -> Result<(), EnsureError> {
        let place = self.place();
        Ok(blocking(move || detached::stop(&place, STOP)).await?)
    }
}

fn place(dir: PathBuf) -> Place {
    Place {
        dir,
        name: NAME.to_owned(),
    }
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, DetachedError> + Send + 'static,
) -> Result<T, DetachedError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The server itself: returns when it cannot go on. Call it on a program's first thread, before there is a runtime.
pub fn serve(options: Options) -> Result<(), ServeError> {
    let dir = options.dir.clone();
    let _held = detached::hold(&place(dir.clone())).map_err(|source| ServeError::Hold {
        dir: dir.clone(),
        source,
    })?;
    let failed = |source| ServeError::Run { dir, source };
    if let Err(error) = give_up_rights() {
        return Err(failed(error.into()));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Err(failed(error)),
    };
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(server::run(options))).map_err(failed)
}

/// What reads packets of anybody in containers keeps no right over this host but to listen at port 53 and to reach its directory.
fn give_up_rights() -> rustix::io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
    set_no_new_privs(true)?;
    let had = capabilities(None)?.permitted;
    let kept = had & (CapabilitySet::NET_BIND_SERVICE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}
