//! How somebody is shut out for good: the authority's list of the revoked grows by an entry, on a seed or by a seed for an
//! administrator elsewhere, and every seed cuts what that one has open. `reeve node rm` and `reeve person rm` do it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use runtime::{EtcdStore, Guard, Outcome, Store as _, StoreError, chain, person};
use schemas::keys::{Key, Root, TrustKey};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use trust::authority::Authority;
use trust::identity::{Role, Subject};
use trust::key::Fingerprint;
use trust::revoked::{ListError, Target};

use crate::believed::Believed;
use crate::call::call;
use crate::keep::KeepError;
use crate::port::{Caller, Failure, Seat, SeedState, formed, later, refuse};
use crate::rotate::{StepError, as_found, heard};
use crate::seeds::Host;
use crate::voice::{AskError, Voice, administrator};
use crate::{SEED_PORT, now};

/// How often another's write of the same list is met before it is given up.
const TRIES: usize = 8;
const AGAIN: Duration = Duration::from_millis(200);
/// The most of a reason that is kept.
const MAX_REASON_CHARS: usize = 200;

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
    #[error(transparent)]
    Ask(#[from] AskError),
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

/// `POST /v1/revoke`: an administrator asks to have somebody shut out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeQuestion {
    /// `node/n3`, `person/anna`.
    pub subject: String,
    /// Why, for those who ask later.
    pub reason: String,
}

/// It is on the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeAnswer {
    /// The list's number.
    pub number: u64,
}

/// The seed's end of it.
pub(crate) async fn answer(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<RevokeQuestion>,
) -> Result<Json<RevokeAnswer>, Failure> {
    let by = administrator(&seat, &caller)?;
    let RevokeQuestion { subject, reason } = question;
    let subject: Subject = subject.parse().map_err(refuse)?;
    let seeds_own = match subject.role {
        Role::Node => false,
        Role::Person => subject.name.as_str() == "root",
        Role::Server | Role::Controller => true,
    };
    if seeds_own {
        return Err(refuse(format!(
            "{subject} is the seeds' own, and is shut out by another authority alone"
        )));
    }
    let (store, _) = formed(&seat)?;
    let reason: String = { reason.chars() }
        .filter(|c| !c.is_control())
        .take(MAX_REASON_CHARS)
        .collect();
    let reason = format!("{reason} (by person/{by})");
    let key = |pin: &Fingerprint| Ok(seat.keys.get(pin));
    let done = add(&store, &seat.root, &seat.believed(), key, &subject, &reason).await;
    let number = done.map_err(|error| match error {
        RevokeError::List(error) => refuse(chain(&error)),
        error @ (RevokeError::Keep(_)
        | RevokeError::Store(_)
        | RevokeError::Foreign(_)
        | RevokeError::Conflict
        | RevokeError::Ask(_)) => later(chain(&error)),
    })?;
    tracing::warn!(%by, %subject, number, from = %caller.address, "shut somebody out for an administrator");
    Ok(Json(RevokeAnswer { number }))
}

/// Puts a subject on the list, in the name of the authority that issues by the store's last set. The list's number.
async fn add(
    store: &EtcdStore,
    root: &Root,
    believed: &Believed,
    key: impl Fn(&Fingerprint) -> Result<Option<Arc<Authority>>, KeepError>,
    subject: &Subject,
    reason: &str,
) -> Result<u64, RevokeError> {
    let place = root.key(&Key::Trust(TrustKey::Revoked));
    for _ in 0..TRIES {
        // The authority may be replaced at this moment: whoever issues in the store's last set must sign.
        let (believed, listing) = heard(store, root, believed.clone()).await?;
        let bundle = believed.bundle();
        let authority = key(&bundle.present().fingerprint())?.ok_or(StepError::NoKey)?;
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

/// Who has somebody shut out.
#[derive(Debug)]
pub struct Revoker(Voice);

impl Revoker {
    #[must_use]
    pub const fn of(voice: Voice) -> Self {
        Self(voice)
    }

    /// Puts a subject on the list. The list's number.
    ///
    /// # Errors
    /// When the store does not take it, or no seed does it.
    pub async fn revoke(
        &self,
        store: &EtcdStore,
        root: &Root,
        subject: &Subject,
        reason: &str,
    ) -> Result<u64, RevokeError> {
        let keep = self.0.keep();
        match &self.0 {
            Voice::Seed { .. } => {
                let Some(believed) = Believed::on_disk(&keep)? else {
                    return Err(RevokeError::Foreign("this seed has not begun".to_owned()));
                };
                let key = |pin: &Fingerprint| Ok(keep.authority(pin)?.map(Arc::new));
                add(store, root, &believed, key, subject, reason).await
            }
            Voice::Person { .. } => {
                let question = RevokeQuestion {
                    subject: subject.to_string(),
                    reason: reason.to_owned(),
                };
                let asked = self.0.ask("/v1/revoke", |_| Ok((question.clone(), ()))).await;
                let (RevokeAnswer { number }, ()) = asked?;
                Ok(number)
            }
        }
    }

    /// Waits until every seed, but one that is gone for good, has cut what the revoked had open; those that have not when the
    /// time is over.
    ///
    /// # Errors
    /// When the seeds cannot be asked from here.
    pub async fn until_cut(
        &self,
        number: u64,
        patience: Duration,
        gone: Option<&Host>,
    ) -> Result<Vec<Host>, RevokeError> {
        let seeds = self.0.seeds().iter();
        let mut left: Vec<Host> = seeds.filter(|host| Some(*host) != gone).cloned().collect();
        let tls = match self.0.tls() {
            Ok(tls) => tls,
            Err(AskError::NoCertificate(_)) => return Ok(left),
            Err(error) => return Err(error.into()),
        };
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
