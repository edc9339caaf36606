//! How somebody is shut out for good: the authority's list of the revoked grows by an entry, on a seed, and every seed cuts
//! what that one has open. `reeve node rm` does it.

use std::path::Path;
use std::time::Duration;

use runtime::{EtcdStore, Guard, Outcome, Store as _, StoreError, person};
use schemas::keys::{Key, Root, TrustKey};
use tokio::time::{Instant, sleep};
use trust::identity::Subject;
use trust::revoked::{ListError, Target};
use trust::tls::ShowError;

use crate::believed::Believed;
use crate::call::{call, to_seeds};
use crate::keep::{Keep, KeepError};
use crate::port::SeedState;
use crate::rotate::{StepError, as_found, heard};
use crate::seed::{KNOWN, Known};
use crate::seeds::Host;
use crate::{SEED_PORT, now};

/// How often another's write of the same list is met before it is given up.
const TRIES: usize = 8;
const AGAIN: Duration = Duration::from_millis(200);

/// Why nobody can be revoked from here.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the list of the revoked")]
    List(#[source] ListError),
    #[error("the list of the revoked in the store is not the authority's: {0}")]
    Foreign(String),
    #[error("another wrote the list of the revoked at this moment: ask again")]
    Conflict,
    #[error("cannot show this seed's certificate")]
    Show(#[source] ShowError),
    #[error("TLS cannot be prepared")]
    Tls(#[source] rustls::Error),
}

impl From<StepError> for RevokeError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Store(error) => Self::Store(error),
            StepError::Foreign(why) => Self::Foreign(why),
            error @ (StepError::Bundle(_) | StepError::NoKey) => Self::Foreign(runtime::chain(&error)),
        }
    }
}

/// A seed's directory, from which its authority speaks.
#[derive(Debug)]
pub struct Revoker {
    keep: Keep,
    known: Known,
}

impl Revoker {
    /// None: this host is no seed.
    ///
    /// # Errors
    /// When its directory is damaged.
    pub fn here(dir: &Path) -> Result<Option<Self>, RevokeError> {
        let keep = Keep::beside(dir);
        let known = keep.read_json::<Known>(KNOWN)?;
        Ok(known.map(|known| Self { keep, known }))
    }

    /// Puts a subject on the list. The list's number.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn revoke(
        &self,
        store: &EtcdStore,
        root: &Root,
        subject: &Subject,
        reason: &str,
    ) -> Result<u64, RevokeError> {
        let Some(believed) = Believed::on_disk(&self.keep)? else {
            return Err(RevokeError::Foreign("this seed has not begun".to_owned()));
        };
        let place = root.key(&Key::Trust(TrustKey::Revoked));
        for _ in 0..TRIES {
            // The authority may be replaced at this moment: whoever issues in the store's last set must sign.
            let (believed, listing) = heard(store, root, believed.clone()).await?;
            let bundle = believed.bundle();
            let authority = self.keep.authority(&bundle.present().fingerprint())?;
            let authority = authority.ok_or(StepError::NoKey)?;
            let list = believed
                .revoked()
                .and(Target::Subject(subject.clone()), reason, now())
                .map_err(RevokeError::List)?;
            let following = root.key(&Key::Trust(TrustKey::Authorities(bundle.number() + 1)));
            let txn = person::txn().require(following, Guard::Absent).put(
                place.clone(),
                list.signed_by(&authority),
                as_found(&listing, &place),
            );
            match store.commit(txn).await? {
                Outcome::Committed { revision: _ } => return Ok(list.number()),
                Outcome::FenceLost | Outcome::Conflict { keys: _ } => {}
            }
        }
        Err(RevokeError::Conflict)
    }

    /// Waits until every seed, but one that is gone for good, has cut what the revoked had open; those that have not when the
    /// time is over.
    ///
    /// # Errors
    /// When this seed cannot ask.
    pub async fn until_cut(
        &self,
        number: u64,
        patience: Duration,
        gone: Option<&Host>,
    ) -> Result<Vec<Host>, RevokeError> {
        let mut left: Vec<Host> = self
            .known
            .seeds
            .iter()
            .filter(|host| Some(*host) != gone)
            .cloned()
            .collect();
        let believed = Believed::on_disk(&self.keep)?;
        let (Some(believed), Some(held)) = (believed, self.keep.held("person")?) else {
            return Ok(left);
        };
        let door = believed.door(&held).map_err(RevokeError::Show)?;
        let tls = to_seeds(&door).map_err(RevokeError::Tls)?;
        let end = Instant::now() + patience;
        loop {
            let mut waiting = Vec::new();
            for host in left {
                let answer = call::<(), SeedState>(&host, SEED_PORT, &tls, "/v1/seed", None).await;
                if !answer.is_ok_and(|(state, _)| state.cut >= number) {
                    waiting.push(host);
                }
            }
            if waiting.is_empty() || Instant::now() >= end {
                return Ok(waiting);
            }
            left = waiting;
            sleep(AGAIN).await;
        }
    }
}
