//! The tokens that nodes and people join with after the first day: made on a seed, whose authority signs their records, or
//! elsewhere by an administrator, for whom a seed signs them without seeing the secret; listed and withdrawn by whoever
//! reaches the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use runtime::{EtcdStore, Guard, Outcome, Prefix, Store, StoreError, chain, person};
use schemas::keys::{Key, Root};
use serde::{Deserialize, Serialize};
use trust::authority::Authority;
use trust::identity::{ClusterId, Name, Role, Who};
use trust::key::KeyError;
use trust::token::{Admits, JoinToken, MAX_USES, Names, Record, RecordError, TokenId, TokenMark};

use crate::keep::{Keep, KeepError};
use crate::now;
use crate::persons;
use crate::port::{Caller, Failure, Seat, formed, keyless, later, refuse};
use crate::rotate::Keys;
use crate::seed::{KNOWN, Known, name};
use crate::seeds::{Host, Seeds};
use crate::voice::{AskError, Voice, administrator};

/// No token lasts longer, in seconds: 30 days.
pub const MAX_SECONDS: u64 = 30 * 86_400;
/// How many nodes one token may name.
pub const MAX_NAMES: usize = 1_000;

/// Why a token cannot be made or listed.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("{} is not the data directory of a seed", .0.display())]
    NotASeed(PathBuf),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("cannot make a token")]
    Key(#[from] KeyError),
    #[error("the token's record")]
    Record(#[from] RecordError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{host} is none of the seeds {seeds}")]
    OtherSeed { host: Host, seeds: Seeds },
    #[error("{0} is this very seed: its own seat is not given away here")]
    OwnSeat(Host),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("a seed answered with the record of another token")]
    OtherToken,
    #[error("another wrote the same key at this moment: ask again")]
    Conflict,
}

/// What a token is to admit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    pub admits: Admits,
    /// Only these names; any when empty.
    pub names: BTreeSet<Name>,
    pub uses: u32,
    /// From now on.
    pub seconds: u64,
}

impl Wanted {
    /// Another seed, and the node on its host.
    ///
    /// # Errors
    /// When this host is no seed, or the very one, or that one is none.
    pub fn seat(dir: &Path, host: &Host, seconds: u64) -> Result<Self, TokensError> {
        let known = Keep::beside(dir).read_json::<Known>(KNOWN)?;
        let known = known.ok_or_else(|| TokensError::NotASeed(dir.to_owned()))?;
        if known.host == *host {
            return Err(TokensError::OwnSeat(host.clone()));
        }
        if !known.seeds.contains(host) {
            return Err(TokensError::OtherSeed {
                host: host.clone(),
                seeds: known.seeds,
            });
        }
        Ok(Self {
            admits: Admits::Server,
            names: BTreeSet::from([name(&host.label())]),
            uses: 2,
            seconds,
        })
    }

    fn record(self, mark: TokenMark, cluster: ClusterId) -> Record {
        let Self {
            admits,
            names,
            uses,
            seconds,
        } = self;
        let names = if names.is_empty() {
            Names::Any
        } else {
            Names::Only(names)
        };
        Record::marked(mark, cluster, admits, names, uses, now().plus(seconds))
    }

    /// What may be asked of a seed from elsewhere.
    fn fits(&self) -> Result<(), Failure> {
        let Self {
            admits,
            names,
            uses,
            seconds,
        } = self;
        match admits {
            Admits::Server | Admits::Controller => {
                return Err(refuse("a token of a seed is made on another seed, as root"));
            }
            Admits::Person(_) if names.len() != 1 || *uses != 1 => {
                return Err(refuse("a person's token is for one person, once"));
            }
            Admits::Person(_) if names.iter().any(|name| name.as_str() == "root") => {
                return Err(refuse("root is the seeds' own"));
            }
            Admits::Person(_) | Admits::Node => {}
        }
        if names.len() > MAX_NAMES || !(1..=MAX_USES).contains(uses) || !(1..=MAX_SECONDS).contains(seconds) {
            return Err(refuse("the token would have too many names or uses, or last too long"));
        }
        Ok(())
    }
}

/// Makes a token, and its record.
///
/// # Errors
/// When the store does not take the record, or no seed makes it.
pub async fn create(
    voice: &Voice,
    store: &EtcdStore,
    root: &Root,
    wanted: Wanted,
) -> Result<(JoinToken, Record), TokensError> {
    match voice {
        Voice::Seed { dir, known: _ } => create_here(dir, store, root, wanted).await,
        Voice::Person { .. } => create_by(voice, wanted).await,
    }
}

async fn create_here(
    dir: &Path,
    store: &EtcdStore,
    root: &Root,
    wanted: Wanted,
) -> Result<(JoinToken, Record), TokensError> {
    // A running server has the directory: it is read beside it.
    let keep = Keep::beside(dir);
    let not = || TokensError::NotASeed(dir.to_owned());
    let bundle = keep.bundle()?.ok_or_else(not)?;
    let authority = Keys::on_disk(&keep, &bundle)?.stating(&bundle).ok_or_else(not)?;
    // What seeds show is what a newcomer can ask for; while the authority is replaced, that is not yet the one that signs.
    let shown = keep.held(&Role::Server.to_string())?;
    let shown = shown.and_then(|held| bundle.issuer(&held.certificate).cloned());
    let pin = shown.as_ref().unwrap_or_else(|| bundle.present()).fingerprint();
    let token = JoinToken::generate(pin)?;
    let record = wanted.record(token.mark(), authority.certificate().cluster());
    if put(store, root, &record, &authority).await? {
        Ok((token, record))
    } else {
        Err(TokensError::Conflict)
    }
}

/// False: there is a token of that id.
async fn put(store: &EtcdStore, root: &Root, record: &Record, authority: &Authority) -> Result<bool, StoreError> {
    let place = root.key(&Key::Join(record.id.to_string()));
    let txn = person::txn().put(place, record.signed_by(authority), Guard::Absent);
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(true),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Ok(false),
    }
}

/// `POST /v1/token`: an administrator has a token's record made. The secret stays with them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenQuestion {
    pub mark: TokenMark,
    pub wanted: Wanted,
}

/// The record as it stands in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenAnswer {
    pub record: Record,
}

async fn create_by(voice: &Voice, wanted: Wanted) -> Result<(JoinToken, Record), TokensError> {
    let asked = voice.ask("/v1/token", |shown| {
        let token = JoinToken::generate(shown.fingerprint()).map_err(|error| chain(&error))?;
        let question = TokenQuestion {
            mark: token.mark(),
            wanted: wanted.clone(),
        };
        Ok((question, token))
    });
    let (TokenAnswer { record }, token) = asked.await?;
    if record.id == token.id() {
        Ok((token, record))
    } else {
        Err(TokensError::OtherToken)
    }
}

/// The seed's end of it. No token of a seed is made in this way: it is the cluster ([`crate::seat`]).
pub(crate) async fn answer(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<TokenQuestion>,
) -> Result<Json<TokenAnswer>, Failure> {
    let by = administrator(&seat, &caller)?;
    let TokenQuestion { mark, wanted } = question;
    wanted.fits()?;
    let (store, _) = formed(&seat)?;
    if let Admits::Person(rights) = &wanted.admits {
        for name in &wanted.names {
            persons::fits(&seat, &store, &Who::Person(name.clone(), rights.clone())).await?;
        }
    }
    let bundle = seat.believed().bundle().clone();
    if bundle.authority(&mark.authority).is_none() {
        return Err(later(
            "this seed does not know the authority that the token pins: ask again",
        ));
    }
    let authority = seat.keys.stating(&bundle).ok_or_else(keyless)?;
    let record = wanted.record(mark, seat.cluster);
    if !put(&store, &seat.root, &record, &authority)
        .await
        .map_err(|error| later(chain(&error)))?
    {
        return Err(refuse(format!("there is a token {} already", record.id)));
    }
    tracing::warn!(%by, token = %record.id, admits = ?record.admits, from = %caller.address, "made a token for an administrator");
    Ok(Json(TokenAnswer { record }))
}

/// All tokens; of one whose record does not count, why.
///
/// # Errors
/// When this host is no seed, or the store does not answer.
pub async fn list(
    dir: &Path,
    store: &EtcdStore,
    root: &Root,
) -> Result<Vec<(TokenId, Result<Record, String>)>, TokensError> {
    let Some(bundle) = Keep::beside(dir).bundle()? else {
        return Err(TokensError::NotASeed(dir.to_owned()));
    };
    let prefix = root.prefix("joins");
    let listing = store.list(&Prefix::new(prefix.clone())?).await?;
    let mut tokens = Vec::new();
    for kv in listing.kvs {
        let id = kv
            .key
            .strip_prefix(prefix.as_bytes())
            .and_then(|id| std::str::from_utf8(id).ok());
        // Whatever else is under the prefix is nobody's token.
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            let record = Record::verified(&kv.value, &bundle, now());
            tokens.push((id, record.map_err(|error| error.to_string())));
        }
    }
    Ok(tokens)
}

/// Withdraws a token. False: there is none.
///
/// # Errors
/// When the store does not answer.
pub async fn withdraw(store: &EtcdStore, root: &Root, id: TokenId) -> Result<bool, TokensError> {
    let txn = person::txn().delete(root.key(&Key::Join(id.to_string())), Guard::Exists);
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(true),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Ok(false),
    }
}
