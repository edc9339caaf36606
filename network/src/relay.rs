//! Ports that lead to services, for programs that cannot find others by name: at a container's own `localhost`, and on every
//! node for services that are published everywhere. A process of its own, `reeve relay`, carries them, so that an agent that
//! is restarted or upgraded cuts no connection. What is open, and where to, follows from a table on disk, which is
//! `planner::network::relay`'s; the agent writes it ([`write`]), tells the process ([`tell`]), and keeps it running
//! ([`Relay::ensure`]). What a container sends goes out from its own network, as if it had connected itself: whatever holds for
//! its own connections holds for these. Promises: one who is slow, or opens thousands, harms itself only; what is taken from
//! the table is closed for newcomers, and what is open goes on.

mod control;
mod door;
mod server;
mod tcp;
mod udp;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

pub use control::{ControlError, Counts, Health, TableError, health, read, tell, write};

use crate::detached::{self, DetachedError, Place, Program};

/// What its pid file and log are called by.
const NAME: &str = "relay";
/// How long one has to end by itself before another takes its place.
const STOP: Duration = Duration::from_secs(2);
/// How long a new one may take until it can be spoken with.
const START: Duration = Duration::from_secs(10);

/// The relay of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The table, its pid file and its log are in it. It must be short: at most 90 bytes.
    pub dir: PathBuf,
    /// The address of this node in the cluster's network, by which other nodes know it: its own connections come from there.
    pub source: Option<IpAddr>,
}

/// What was found, or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It ran as it should.
    Ran,
    /// None ran.
    Started,
    /// It did not answer.
    Replaced,
}

#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    #[error("keep the relay running")]
    Program {
        #[source]
        source: DetachedError,
    },
    #[error("speak with the relay that was started")]
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
#[error("relay what `{}` says", dir.display())]
pub struct ServeError {
    dir: PathBuf,
    #[source]
    source: ServeCause,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeCause {
    #[error(transparent)]
    Held(DetachedError),
    #[error(transparent)]
    Run(io::Error),
}

impl Relay {
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            dir: self.dir.clone(),
            name: NAME.to_owned(),
        }
    }

    /// `reeve relay`, of the build that runs here.
    #[must_use]
    pub fn program(&self) -> Program {
        let mut args: Vec<OsString> = vec!["relay".into(), "--dir".into(), self.dir.clone().into()];
        if let Some(source) = self.source {
            args.extend(["--source".into(), source.to_string().into()]);
        }
        Program {
            place: self.place(),
            path: detached::own_program(),
            args,
            env: Vec::new(),
        }
    }

    /// Sees to it that it runs, and answers. One of an older build goes on while connections are open: they are worth more.
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
                && (same || health.open > 0)
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

    /// Ends it, where one runs: nothing is to be relayed on this node.
    pub async fn stop(&self) -> Result<(), EnsureError> {
        let place = self.place();
        Ok(blocking(move || detached::stop(&place, STOP)).await?)
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

/// The relay itself: returns when it cannot go on. Call it on a program's first thread, before there is a runtime.
pub fn serve(relay: &Relay) -> Result<(), ServeError> {
    let failed = |source| ServeError {
        dir: relay.dir.clone(),
        source,
    };
    let _held = detached::hold(&relay.place()).map_err(|source| failed(ServeCause::Held(source)))?;
    let run = || -> io::Result<()> {
        server::raise_files();
        let door = door::Door::new(relay.source)?;
        // What carries anybody's bytes keeps no right over this host but to reach its directory.
        keep_rights(CapabilitySet::DAC_READ_SEARCH)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(server::run(relay.dir.clone(), door)))
    };
    run().map_err(|error| failed(ServeCause::Run(error)))
}

/// Gives up all other rights of this thread.
fn keep_rights(wanted: CapabilitySet) -> rustix::io::Result<()> {
    set_no_new_privs(true)?;
    let kept = capabilities(None)?.permitted & wanted;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}
