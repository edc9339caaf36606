//! A person has the cluster's authority replaced, on a seed: the new one is made here and announced, and then the seeds do the
//! rest by themselves ([`crate::rotation`]), whether anybody looks or not. `reeve admin rotate-authority` calls it.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use runtime::{EtcdStore, StoreError, chain};
use schemas::keys::Root;
use trust::authority::{Authority, AuthorityError};
use trust::bundle::BundleError;
use trust::key::Fingerprint;

use crate::believed::Believed;
use crate::call::call;
use crate::keep::{Keep, KeepError};
use crate::port::SeedState;
use crate::rotate::{Awaited, StepError, awaited, heard, publish};
use crate::rotation::{Authorities, Standing};
use crate::seeds::Host;
use crate::voice::{AskError, Voice};
use crate::{SEED_PORT, now};

/// Why the authority cannot be replaced from here.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("this seed has not begun")]
    NotBegun,
    #[error("cannot make a new authority")]
    Authority(#[from] AuthorityError),
    #[error("cannot announce it")]
    Bundle(#[from] BundleError),
    #[error("the announced authority issues already, and cannot be taken back")]
    Issues,
    #[error("no authority is announced")]
    NothingAnnounced,
    #[error("another wrote the authorities at this moment: ask again")]
    Conflict,
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Who asks.
#[derive(Debug)]
pub struct Rotator {
    voice: Voice,
    keep: Keep,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub authorities: Authorities,
    /// Every seed, or why it says nothing.
    pub seeds: BTreeMap<Host, Result<Standing, String>>,
    /// Asked once the new authority issues.
    pub awaited: Awaited,
}

/// The steps as people are told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No rotation is under way.
    Rests,
    /// The new authority is believed beside the one that issues.
    Announced,
    /// It issues.
    Promoted,
    /// Everybody has its certificates, and the seeds show them.
    Serving,
    /// The former one is forgotten; the seeds' stores are started again without it.
    Forgotten,
}

impl Picture {
    #[must_use]
    pub fn stage(&self) -> Stage {
        let Authorities {
            number,
            next,
            present,
            former,
        } = &self.authorities;
        let shows = |said: &Result<Standing, String>| said.as_ref().is_ok_and(|said| said.shows == Some(*present));
        // One that is silent begins with what is in force when it comes back.
        let settled = |said: &Result<Standing, String>| {
            said.as_ref().map_or(true, |said| {
                said.anchored >= *number && said.holds == BTreeSet::from([*present])
            })
        };
        if next.is_some() {
            Stage::Announced
        } else if former.is_empty() {
            if *number == 1 || self.seeds.values().all(settled) {
                Stage::Rests
            } else {
                Stage::Forgotten
            }
        } else if self.seeds.values().any(shows) {
            Stage::Serving
        } else {
            Stage::Promoted
        }
    }
}

impl Rotator {
    /// A person elsewhere can look; a seed can also begin and withdraw.
    #[must_use]
    pub fn of(voice: Voice) -> Self {
        let keep = voice.keep();
        Self { voice, keep }
    }

    fn believed(&self) -> Result<Believed, RotateError> {
        Believed::on_disk(&self.keep)?.ok_or(RotateError::NotBegun)
    }

    /// Makes a new authority and announces it, unless one is announced or on its way. Its pin; None when that was so.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn begin(&self, store: &EtcdStore, root: &Root) -> Result<Option<Fingerprint>, RotateError> {
        let (believed, listing) = heard(store, root, self.believed()?).await?;
        let bundle = believed.bundle();
        if bundle.is_rotating() {
            return Ok(None);
        }
        let present = self.keep.authority(&bundle.present().fingerprint())?;
        let present = present.ok_or(StepError::NoKey)?;
        let new = Authority::new(bundle.cluster(), now())?;
        let announced = bundle.announce(new.certificate().clone())?;
        // The key first: what is announced must be somewhere.
        self.keep.write_later_authority(&new)?;
        let pin = new.certificate().fingerprint();
        if !publish(store, root, (&believed, &listing), &announced, &present).await? {
            self.keep.forget_authority(&pin)?;
            return Err(RotateError::Conflict);
        }
        // A server that started meanwhile did not know yet what it is.
        if self.keep.authority(&pin)?.is_none() {
            self.keep.write_later_authority(&new)?;
        }
        Ok(Some(pin))
    }

    /// Takes the announced authority back, as long as it issues nothing.
    ///
    /// # Errors
    /// When it does, or the store does not take it.
    pub async fn withdraw(&self, store: &EtcdStore, root: &Root) -> Result<Fingerprint, RotateError> {
        let (believed, listing) = heard(store, root, self.believed()?).await?;
        let bundle = believed.bundle();
        let Some(next) = bundle.next() else {
            return Err(if bundle.former().is_empty() {
                RotateError::NothingAnnounced
            } else {
                RotateError::Issues
            });
        };
        let pin = next.fingerprint();
        let present = self.keep.authority(&bundle.present().fingerprint())?;
        let present = present.ok_or(StepError::NoKey)?;
        let without = bundle.forget(&pin)?;
        if publish(store, root, (&believed, &listing), &without, &present).await? {
            Ok(pin)
        } else {
            Err(RotateError::Conflict)
        }
    }

    /// How far it is, by the store and by what every seed says.
    ///
    /// # Errors
    /// When the store does not answer, or the seeds cannot be asked from here.
    pub async fn look(&self, store: &EtcdStore, root: &Root) -> Result<Picture, RotateError> {
        let own = self.believed()?;
        let tls = self.voice.tls()?;
        let (believed, _) = heard(store, root, own).await?;
        let asked = self.voice.seeds().iter().map(async |host| {
            let said = call::<(), SeedState>(host, SEED_PORT, &tls, "/v1/seed", None).await;
            let said = said.map(|(state, _)| state.authorities).map_err(|error| chain(&error));
            (host.clone(), said)
        });
        let seeds = join_all(asked).await.into_iter().collect();
        let mut awaited = awaited(store, root, &believed).await?;
        if believed.bundle().former().is_empty() {
            // Whoever has not logged in again is without a certificate that counts, also when all is over.
            awaited.needed.clear();
        }
        Ok(Picture {
            authorities: Authorities::from(believed.bundle()),
            seeds,
            awaited,
        })
    }
}
