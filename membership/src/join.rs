//! How a host that has nothing but a token becomes a member of its cluster: it asks one seed after the other, each proven by
//! the authority that the token pins, until one lets it in. `reeve agent --seeds` begins with this; a second start finds the
//! certificate on its disk and asks nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::time_provider::DefaultTimeProvider;
use trust::authority::{Authority, AuthorityError, request};
use trust::bundle::{Bundle, BundleError};
use trust::certificate::{Certificate, CertificateError};
use trust::identity::{Identity, Who};
use trust::tls::{ShowError, Stranger, newcomer, shown_authority};
use trust::token::{JoinToken, Token};

use crate::call::{CallError, call};
use crate::keep::{Context, Keep, KeepError};
use crate::port::{JoinAnswer, JoinQuestion, SeedState};
use crate::seeds::{Host, Seeds};
use crate::{SEED_PORT, now};

/// Between two rounds of asking.
const AGAIN: Duration = Duration::from_secs(3);

/// Why a host cannot join, now or ever.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("this host is `{found}` of cluster {cluster} already, not `{asked}`")]
    OtherIdentity {
        found: String,
        asked: String,
        cluster: trust::identity::ClusterId,
    },
    #[error("this host belongs to cluster {found}, but the token is of cluster {asked}")]
    OtherCluster {
        found: trust::identity::ClusterId,
        asked: trust::identity::ClusterId,
    },
    #[error("the token cannot be used")]
    Token(#[source] AuthorityError),
    #[error("{at} refuses to let this host in: {reason}")]
    Refused { at: String, reason: String },
    #[error("{} of the seeds belong to another cluster than the token: {}", .0.len(), told(.0))]
    Strangers(BTreeMap<Host, String>),
    #[error("{at} sent a certificate that is not what was asked for")]
    Certificate {
        at: String,
        #[source]
        source: Option<CertificateError>,
    },
    #[error("{at} sent authorities that are not proven")]
    Authorities {
        at: String,
        #[source]
        source: BundleError,
    },
    #[error("{at} is of a cluster with the seeds {found}, and not {asked}")]
    OtherSeeds { at: String, found: Seeds, asked: Seeds },
    #[error("this is the only seed: there is no other that could give it its seat")]
    Alone,
    #[error("TLS cannot be prepared")]
    Tls(#[source] rustls::Error),
    #[error("this host has not joined yet")]
    NotJoined,
    #[error("cannot show this host's certificate")]
    Show(#[source] ShowError),
}

/// `h1: why`, once for each: who is missed, or strange.
#[must_use]
pub fn lines(hosts: &BTreeMap<Host, String>) -> Vec<String> {
    let line = |(host, why): (&Host, &String)| {
        if why.starts_with(host.as_str()) {
            why.clone()
        } else {
            format!("{host}: {why}")
        }
    };
    hosts.iter().map(line).collect()
}

fn told(hosts: &BTreeMap<Host, String>) -> String {
    lines(hosts).join("; ")
}

/// The join token in, or derived from, what a person gave.
///
/// # Errors
/// When an install token has no authority, which depends on nothing given.
pub fn join_token(token: &Token) -> Result<JoinToken, JoinError> {
    match token {
        Token::Join(token) => Ok(token.clone()),
        Token::Install(token) => {
            let authority = Authority::derived(token).map_err(JoinError::Token)?;
            Ok(token.join(authority.certificate().fingerprint()))
        }
    }
}

/// What this host is already, by its disk: how it reaches the store. None: it has not joined.
///
/// # Errors
/// When what is there is damaged, or somebody else's.
pub fn joined(keep: &Keep, who: &Who) -> Result<Option<Context>, JoinError> {
    let name = who.role().to_string();
    let (Some(held), Some(context)) = (keep.held(&name)?, keep.read_json::<Context>(crate::keep::CONTEXT)?) else {
        return Ok(None);
    };
    let identity = held.certificate.identity();
    if identity.who.subject() != who.subject() {
        return Err(JoinError::OtherIdentity {
            found: identity.who.subject().to_string(),
            asked: who.subject().to_string(),
            cluster: identity.cluster,
        });
    }
    // One whose certificate has ended joins again, with the key it has.
    Ok((now() <= held.certificate.validity().until).then_some(context))
}

/// Asks until one of the seeds lets this host in. `waiting` hears, once for each change, who is missed and why.
///
/// # Errors
/// When asking again cannot help: the token is wrong, used up or expired, or the seeds are another cluster's.
pub async fn join(
    keep: &Keep,
    token: &JoinToken,
    seeds: &Seeds,
    who: &Who,
    waiting: impl FnMut(&BTreeMap<Host, String>),
) -> Result<Context, JoinError> {
    let tls = newcomer(token.authority(), Arc::new(DefaultTimeProvider)).map_err(JoinError::Tls)?;
    let tls = Arc::new(tls);
    let all: Vec<&Host> = seeds.iter().collect();
    let ask = async |host: &Host| ask(keep, token, host, who, &tls).await;
    until_one_does(&all, waiting, ask).await
}

/// Asks these one after the other, again and again, until one does what is asked. `waiting` hears, once for each change, who is
/// missed and why.
///
/// # Errors
/// When one refuses for good, or all are another cluster's.
pub(crate) async fn until_one_does<T>(
    hosts: &[&Host],
    mut waiting: impl FnMut(&BTreeMap<Host, String>),
    ask: impl AsyncFn(&Host) -> Result<T, Refusal>,
) -> Result<T, JoinError> {
    let mut before = BTreeMap::new();
    loop {
        let mut missed = BTreeMap::new();
        let mut strangers = BTreeMap::new();
        for host in hosts.iter().copied() {
            match ask(host).await {
                Ok(done) => return Ok(done),
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Stranger(why)) => drop(strangers.insert(host.clone(), why)),
                Err(Refusal::Later(why)) => drop(missed.insert(host.clone(), why)),
            }
        }
        // While one may still come, another's words do not count: it may be an old machine at a new seed's address.
        if missed.is_empty() {
            return Err(JoinError::Strangers(strangers));
        }
        missed.append(&mut strangers);
        if missed != before {
            waiting(&missed);
            before = missed;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

pub(crate) enum Refusal {
    Later(String),
    Stranger(String),
    Final(JoinError),
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Stranger {
                at: _,
                source: Stranger::PinnedNotNow,
            } => Self::Later(runtime::chain(&error)),
            CallError::Stranger { at: _, source } => Self::Stranger(source.to_string()),
            CallError::Refused { at, refused } if !refused.later => Self::Final(JoinError::Refused {
                at: at.clone(),
                reason: refused.reason.clone(),
            }),
            CallError::Silent { .. }
            | CallError::Slow { .. }
            | CallError::BrokenOff { .. }
            | CallError::Nonsense { .. }
            | CallError::Refused { .. } => Self::Later(runtime::chain(&error)),
        }
    }
}

impl From<KeepError> for Refusal {
    fn from(error: KeepError) -> Self {
        Self::Final(error.into())
    }
}

pub(crate) async fn ask(
    keep: &Keep,
    token: &JoinToken,
    host: &Host,
    who: &Who,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Context, Refusal> {
    let at = host.at(SEED_PORT);
    // Whom it belongs to is asked first: the identity in the request names the cluster.
    let (state, _) = call::<(), SeedState>(host, SEED_PORT, tls, "/v1/seed", None).await?;
    let name = who.role().to_string();
    let key = keep.key(&name)?;
    let identity = Identity::new(state.cluster, who.clone());
    let asked = request(&key, &identity, &[], &[]).map_err(|error| Refusal::Final(JoinError::Token(error)))?;
    let question = JoinQuestion {
        token: token.to_text().to_string(),
        request: STANDARD.encode(asked),
    };
    let (answer, shown) = call::<_, JoinAnswer>(host, SEED_PORT, tls, "/v1/join", Some(&question)).await?;
    let odd = |source| {
        let at = at.clone();
        Refusal::Final(JoinError::Certificate { at, source })
    };
    let certificate = Certificate::from_pem(&answer.certificate).map_err(|error| odd(Some(error)))?;
    if *certificate.key() != key.public() || *certificate.identity() != identity {
        return Err(odd(None));
    }
    let authority = shown_authority(Some(&shown)).map_err(|error| odd(Some(error)))?;
    let authorities = STANDARD.decode(&answer.authorities).map_err(|_| odd(None))?;
    let bundle = Bundle::adopt(&authorities, &authority, now())
        .map_err(|source| Refusal::Final(JoinError::Authorities { at: at.clone(), source }))?;
    keep.write_bundle(&authorities, &bundle)?;
    keep.write_certificate(&name, &certificate)?;
    // Last: with it the host has joined.
    Ok(keep.write_context(answer.endpoints, &name)?)
}
