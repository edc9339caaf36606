//! In whose name a person asks for what only the authority can do: on a seed with the seed's own files, elsewhere as a person
//! whom the seeds believe to be an administrator, through whichever of them answers. The verbs begin here; `revoke`, `tokens` and
//! `rotator` work with it. The authority's key stays on seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trust::certificate::AuthorityCertificate;
use trust::identity::{Name, Rights, Role, Who};
use trust::tls::{ShowError, shown_authority};

use crate::believed::Believed;
use crate::call::{CallError, call, to_seeds};
use crate::join::lines;
use crate::keep::{Keep, KeepError};
use crate::port::{Caller, Failure, Seat, SeedState, refuse};
use crate::seed::{KNOWN, Known};
use crate::seeds::{Host, Seeds};
use crate::{SEED_PORT, now};

/// Whose word it is.
#[derive(Clone, Debug)]
pub enum Voice {
    /// This host's seed, by its directory.
    Seed { dir: PathBuf, known: Box<Known> },
    /// Somebody with the right `admin`, by the directory of a context.
    Person { dir: PathBuf, seeds: Seeds },
}

/// Why the seeds cannot be asked, or do not do it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("there is no certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    #[error("cannot show the certificate")]
    Show(#[source] ShowError),
    #[error("TLS cannot be prepared")]
    Tls(#[source] rustls::Error),
    #[error("{at} refuses: {reason}")]
    Refused { at: String, reason: String },
    #[error("{at} runs a release of reeve that does not do this for people elsewhere: upgrade it first")]
    Older { at: String },
    #[error("no seed does it: {}", lines(.0).join("; "))]
    Nobody(BTreeMap<Host, String>),
}

impl Voice {
    /// None: this host is no seed.
    ///
    /// # Errors
    /// When its directory is damaged.
    pub fn here(dir: &Path) -> Result<Option<Self>, KeepError> {
        let known = Keep::beside(dir).read_json::<Known>(KNOWN)?;
        Ok(known.map(|known| Self::Seed {
            dir: dir.to_owned(),
            known: Box::new(known),
        }))
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        match self {
            Self::Seed { dir, known: _ } | Self::Person { dir, seeds: _ } => dir,
        }
    }

    #[must_use]
    pub fn seeds(&self) -> &Seeds {
        match self {
            Self::Seed { dir: _, known } => &known.seeds,
            Self::Person { dir: _, seeds } => seeds,
        }
    }

    /// Which seed this host is.
    #[must_use]
    pub fn own(&self) -> Option<&Host> {
        match self {
            Self::Seed { dir: _, known } => Some(&known.host),
            Self::Person { .. } => None,
        }
    }

    pub(crate) fn keep(&self) -> Keep {
        Keep::beside(self.dir())
    }

    /// Connections to the seeds, as the person.
    pub(crate) fn tls(&self) -> Result<Arc<ClientConfig>, AskError> {
        let none = || AskError::NoCertificate(self.dir().to_owned());
        let keep = self.keep();
        let believed = Believed::on_disk(&keep)?.ok_or_else(none)?;
        let held = keep.held(&Role::Person.to_string())?.ok_or_else(none)?;
        let door = believed.door(&held).map_err(AskError::Show)?;
        to_seeds(&door).map_err(AskError::Tls)
    }

    /// Asks one seed after the other until one has done it. `question` is made for the authority that the seed shows.
    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned, T>(
        &self,
        path: &str,
        question: impl Fn(&AuthorityCertificate) -> Result<(Q, T), String>,
    ) -> Result<(A, T), AskError> {
        let tls = self.tls()?;
        let mut missed = BTreeMap::new();
        for host in self.seeds().iter() {
            let asked = async {
                let (_, shown) = call::<(), SeedState>(host, SEED_PORT, &tls, "/v1/seed", None)
                    .await
                    .map_err(Missed::Call)?;
                let shown = shown_authority(Some(&shown)).map_err(|error| Missed::Other(runtime::chain(&error)))?;
                let (question, own) = question(&shown).map_err(Missed::Other)?;
                let answer = call::<_, A>(host, SEED_PORT, &tls, path, Some(&question)).await;
                Ok((answer.map_err(Missed::Call)?.0, own))
            };
            match asked.await {
                Ok(done) => return Ok(done),
                Err(Missed::Call(CallError::Refused { at, refused })) if !refused.later => {
                    return Err(AskError::Refused {
                        at,
                        reason: refused.reason,
                    });
                }
                Err(Missed::Call(CallError::Nonsense { at, status })) if status == hyper::StatusCode::NOT_FOUND => {
                    return Err(AskError::Older { at });
                }
                Err(Missed::Call(error)) => drop(missed.insert(host.clone(), runtime::chain(&error))),
                Err(Missed::Other(why)) => drop(missed.insert(host.clone(), why)),
            }
        }
        Err(AskError::Nobody(missed))
    }
}

enum Missed {
    Call(CallError),
    Other(String),
}

/// The seed's end of it: who shows the certificate of an administrator, which has not been revoked since the handshake.
pub(crate) fn administrator(seat: &Seat, caller: &Caller) -> Result<Name, Failure> {
    let only = || refuse("only people with the right `admin` may ask for this");
    let shown = caller.certificate.as_ref().ok_or_else(only)?;
    seat.believed()
        .trust()
        .recheck(shown, now())
        .map_err(|error| refuse(runtime::chain(&error)))?;
    match &shown.identity().who {
        Who::Person(name, Rights::Admin) => Ok(name.clone()),
        Who::Person(..) | Who::Node(_) | Who::Server(_) | Who::Controller(_) => Err(only()),
    }
}
