//! The tokens that nodes and people join with after the first day: made on a seed, whose authority signs their records, listed and
//! withdrawn by whoever reaches the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::{EtcdStore, Guard, Outcome, Prefix, Store, StoreError, person};
use schemas::keys::{Key, Root};
use trust::identity::{Name, Role};
use trust::key::KeyError;
use trust::token::{Admits, JoinToken, Names, Record, RecordError, TokenId};

use crate::keep::{Keep, KeepError};
use crate::now;
use crate::rotate::Keys;
use crate::seed::{KNOWN, Known, name};
use crate::seeds::{Host, Seeds};

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
    #[error("another wrote the same key at this moment: ask again")]
    Conflict,
}

/// What a token is to admit.
#[derive(Clone, Debug)]
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
}

/// Makes a token, and its record.
///
/// # Errors
/// When this host is no seed, or the store does not take the record.
pub async fn create(
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
    let Wanted {
        admits,
        names,
        uses,
        seconds,
    } = wanted;
    let token = JoinToken::generate(pin)?;
    let names = if names.is_empty() {
        Names::Any
    } else {
        Names::Only(names)
    };
    let cluster = authority.certificate().cluster();
    let record = Record::of(&token, cluster, admits, names, uses, now().plus(seconds));
    let txn = person::txn().put(
        root.key(&Key::Join(token.id().to_string())),
        record.signed_by(&authority),
        Guard::Absent,
    );
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok((token, record)),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(TokensError::Conflict),
    }
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
