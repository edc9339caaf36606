//! How the host of a seed whose disk is gone becomes that seed again with nothing but a token made for it: it asks another seed
//! for a server's certificate, and with that for the authority's key, as seeds do. So such a token is the cluster, for as long as
//! it counts: it is made on a seed alone, for one seed, used once, and not while that seed answers. `reeve server` begins with
//! [`take`] where its disk knows nothing; [`answer`] is the other end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::chain;
use rustls::ClientConfig;
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::TrustKey;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use trust::authority::{Authority, Grant, asked, request};
use trust::bundle::Bundle;
use trust::certificate::{AuthorityCertificate, Certificate, CertificateError};
use trust::identity::{ClusterId, Identity, Role, Who};
use trust::tls::{newcomer, shown_authority};
use trust::token::JoinToken;

use crate::believed::Believed;
use crate::call::{call, to_seeds};
use crate::join::{JoinError, Refusal, until_one_does};
use crate::keep::{Held, Keep};
use crate::port::{Caller, Failure, Seat, SeedState, admitted, formed, keyless, refuse};
use crate::rotate::{AuthorityAnswer, AuthorityQuestion};
use crate::seed::{name, served_at};
use crate::seeds::{Host, Seeds};
use crate::{SEED_PORT, now};

/// How long the seed whose seat is asked for may take to answer.
const ALIVE: Duration = Duration::from_secs(2);
/// How long the certificate lasts that is given here: with the authority's key the seed makes its own.
const SECONDS: u64 = 3_600;

/// `POST /v1/seat`: who has a seed's token asks to be that seed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeatQuestion {
    /// The join token, whole.
    pub token: String,
    /// The request for a certificate: PKCS#10, DER, base64.
    pub request: String,
    pub host: Host,
}

/// What makes it that seed, but for the authority's key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatAnswer {
    /// PEM.
    pub certificate: String,
    /// The cluster's authorities as they were signed, base64.
    pub authorities: String,
    /// The list of the revoked as it was signed, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
}

/// The seed's end of it.
pub(crate) async fn answer(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<SeatQuestion>,
) -> Result<Json<SeatAnswer>, Failure> {
    let SeatQuestion { token, request, host } = question;
    let (store, _) = formed(&seat)?;
    let token: JoinToken = token.parse().map_err(refuse)?;
    if !seat.seeds.contains(&host) || host == seat.host {
        return Err(refuse(format!(
            "{host} is none of the other seeds of this cluster: {}",
            seat.seeds
        )));
    }
    let request = STANDARD
        .decode(&request)
        .map_err(|_| refuse("the request for a certificate is not base64"))?;
    let (key, wanted) = asked(&request).map_err(|error| refuse(chain(&error)))?;
    let identity = Identity::new(seat.cluster, Who::Server(name(&host.label())));
    if wanted.identity != identity {
        return Err(refuse(format!("the seat of {host} is that of {identity}")));
    }
    if answers(&host).await {
        return Err(refuse(format!(
            "the seed {host} answers: nobody takes its seat as long as it does"
        )));
    }
    admitted(&seat, &store, &token, (&identity, &key), &caller).await?;
    let believed = seat.believed();
    let bundle = believed.bundle();
    // No note is kept of it in the store: whoever is a server has the authority's key, and is shut out by another authority
    // alone.
    let grant = served_at(Grant::new(identity, SECONDS.min(seat.life)), &host);
    let authority = seat.keys.issuing(bundle).ok_or_else(keyless)?;
    let certificate = authority
        .issue(&request, &grant, believed.revoked(), now())
        .map_err(|error| refuse(chain(&error)))?;
    tracing::warn!(%host, token = %token.id(), from = %caller.address, "gave the seat of a seed to the holder of its token");
    let objects = vec![format!("token {}", token.id()), format!("from {}", caller.address.ip())];
    crate::record::tell(&seat, &store, &wanted.identity.who.subject(), "join", objects).await;
    Ok(Json(SeatAnswer {
        certificate: certificate.to_pem(),
        authorities: STANDARD.encode(bundle.signed_by(&*seat.shown(bundle).ok_or_else(keyless)?)),
        revoked: believed.signed_revoked().map(|list| STANDARD.encode(list)),
    }))
}

/// Whether something answers at a seed's port.
pub async fn answers(host: &Host) -> bool {
    let tried = timeout(ALIVE, TcpStream::connect(host.at(SEED_PORT))).await;
    matches!(tried, Ok(Ok(_)))
}

/// Asks until one of the other seeds gives this host its seat, and keeps what makes it that seed. `waiting` hears, once for each
/// change, who is missed and why. The cluster it is.
///
/// # Errors
/// When asking again cannot help.
pub async fn take(
    keep: &Keep,
    token: &JoinToken,
    seeds: &Seeds,
    me: &Host,
    waiting: impl FnMut(&BTreeMap<Host, String>),
) -> Result<ClusterId, JoinError> {
    let tls = newcomer(token.authority(), Arc::new(DefaultTimeProvider)).map_err(JoinError::Tls)?;
    let tls = Arc::new(tls);
    let others: Vec<&Host> = seeds.iter().filter(|host| *host != me).collect();
    if others.is_empty() {
        return Err(JoinError::Alone);
    }
    let ask = async |host: &Host| at(keep, token, host, (seeds, me), &tls).await;
    until_one_does(&others, waiting, ask).await
}

async fn at(
    keep: &Keep,
    token: &JoinToken,
    host: &Host,
    (seeds, me): (&Seeds, &Host),
    tls: &Arc<ClientConfig>,
) -> Result<ClusterId, Refusal> {
    let at = host.at(SEED_PORT);
    let (state, _) = call::<(), SeedState>(host, SEED_PORT, tls, "/v1/seed", None).await?;
    if state.seeds != *seeds {
        return Err(Refusal::Final(JoinError::OtherSeeds {
            at,
            found: state.seeds,
            asked: seeds.clone(),
        }));
    }
    let role = Role::Server.to_string();
    let key = keep.key(&role)?;
    let identity = Identity::new(state.cluster, Who::Server(name(&me.label())));
    let grant = served_at(Grant::new(identity.clone(), SECONDS), me);
    let wanted = request(&key, &identity, &grant.addresses, &grant.dns_names);
    let question = SeatQuestion {
        token: token.to_text().to_string(),
        request: STANDARD.encode(wanted.map_err(|error| Refusal::Final(JoinError::Token(error)))?),
        host: me.clone(),
    };
    let (answer, shown) = call::<_, SeatAnswer>(host, SEED_PORT, tls, "/v1/seat", Some(&question)).await?;
    let SeatAnswer {
        certificate,
        authorities,
        revoked,
    } = answer;
    let odd = |source: Option<CertificateError>| {
        let at = at.clone();
        Refusal::Final(JoinError::Certificate { at, source })
    };
    let certificate = Certificate::from_pem(&certificate).map_err(|error| odd(Some(error)))?;
    if *certificate.key() != key.public() || *certificate.identity() != identity {
        return Err(odd(None));
    }
    let authority = shown_authority(Some(&shown)).map_err(|error| odd(Some(error)))?;
    let signed = STANDARD.decode(&authorities).map_err(|_| odd(None))?;
    let bundle = Bundle::adopt(&signed, &authority, now())
        .map_err(|source| Refusal::Final(JoinError::Authorities { at: at.clone(), source }))?;
    let mut believed = Believed::begin(signed, bundle);
    if let Some(list) = revoked {
        let list = STANDARD.decode(&list).map_err(|_| odd(None))?;
        // One that does not count is heard again from the store.
        let _ = believed.hear([(TrustKey::Revoked, list.as_slice())], now());
    }
    let held = Held { certificate, key };
    let found = keys(&believed, &held, host).await?;
    // All of it is there before this host is a seed by its disk: a crash in the middle asks again, with the same key.
    for authority in &found {
        keep.write_later_authority(authority)?;
    }
    keep.write_certificate(&role, &held.certificate)?;
    believed.write(keep)?;
    tracing::info!(from = %host, cluster = %state.cluster, "this host has its seat");
    Ok(state.cluster)
}

/// The keys of the authority that issues and of the one that is announced.
async fn keys(believed: &Believed, held: &Held, host: &Host) -> Result<Vec<Authority>, Refusal> {
    let door = believed
        .door(held)
        .map_err(|error| Refusal::Final(JoinError::Show(error)))?;
    let tls = to_seeds(&door).map_err(|error| Refusal::Final(JoinError::Tls(error)))?;
    let bundle = believed.bundle();
    let mut found = Vec::new();
    for wanted in std::iter::once(bundle.present()).chain(bundle.next()) {
        let pin = AuthorityCertificate::fingerprint(wanted);
        let question = AuthorityQuestion { pin };
        let asked = call::<_, AuthorityAnswer>(host, SEED_PORT, &tls, "/v1/authority", Some(&question)).await;
        let AuthorityAnswer { certificate, key } = asked?.0;
        match Authority::from_pem(&certificate, &key) {
            Ok(authority) if authority.certificate() == wanted => found.push(authority),
            Ok(_) => {
                return Err(Refusal::Later(format!(
                    "{host} gave another authority than was asked for"
                )));
            }
            Err(error) => return Err(Refusal::Later(format!("{host}: {}", chain(&error)))),
        }
    }
    Ok(found)
}
