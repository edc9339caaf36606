//! The port of a seed: where newcomers ask to join with a token, and seeds ask each other how far they are. Behind TLS that
//! shows the newcomer a certificate of the authority that its token pins. Everything that comes in is sized, has a deadline,
//! and is answered with a reason when it is refused; who knows no secret learns nothing but that a seed is here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use etcd_client::Client;
use runtime::guest::Guest;
use runtime::{EtcdStore, Guard, Outcome, Store, chain, person};
use rustls::ServerConfig;
use schemas::keys::{Key as StoreKey, Root};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use trust::authority::{Authority, Grant, asked};
use trust::bundle::Bundle;
use trust::certificate::Certificate;
use trust::identity::{ClusterId, Role, Who};
use trust::revoked::Revoked;
use trust::token::{JoinToken, Record, unrecorded};

use crate::bootstrap::Stage;
use crate::etcd::{client_url, peer_url};
use crate::now;
use crate::seeds::{Host, Seeds};

/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The longest a connection lives.
const LIFETIME: Duration = Duration::from_secs(30);
const MAX_QUESTION_BYTES: usize = 64 * 1_024;
/// The most of a refusal that is shown.
const MAX_REASON_CHARS: usize = 400;
/// How long a certificate of a host lasts, in seconds: 365 days.
pub const HOST_SECONDS: u64 = 365 * 86_400;
/// A token's record may be written by two at once; who loses reads it again, this often.
const TRIES: usize = 8;
const CALL: Duration = Duration::from_secs(5);

/// Why somebody was refused: the answer with every status that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    pub reason: String,
    /// Whether asking again later may help.
    pub later: bool,
}

impl Refused {
    /// As shown to people: a seed may say much.
    #[must_use]
    pub fn bounded(self) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        Self {
            reason: self.reason.chars().take(MAX_REASON_CHARS).map(plain).collect(),
            later: self.later,
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// `GET /v1/seed`: who answers here, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeedState {
    pub cluster: ClusterId,
    pub host: Host,
    pub seeds: Seeds,
    pub stage: Stage,
}

/// `POST /v1/join`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinQuestion {
    /// The join token, whole.
    pub token: String,
    /// The request for a certificate: PKCS#10, DER, base64.
    pub request: String,
}

/// What a newcomer gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// PEM.
    pub certificate: String,
    /// The cluster's authorities as they were signed, base64.
    pub authorities: String,
    /// The store's client URLs.
    pub endpoints: Vec<String>,
}

/// `POST /v1/place`: a seed with an empty disk asks for its old place among the store's members.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlaceQuestion {
    pub host: Host,
}

/// The members to begin with, `name=url` each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceAnswer {
    pub members: Vec<String>,
}

/// What a seed answers from.
pub struct Seat {
    pub cluster: ClusterId,
    pub host: Host,
    pub seeds: Seeds,
    pub root: Root,
    pub authority: Authority,
    /// As it was signed, and read.
    pub bundle: (Vec<u8>, Bundle),
    pub stage: watch::Sender<Stage>,
    /// The store, and a client for its members, once it has answered as this cluster's.
    pub store: Mutex<Option<(EtcdStore, Client)>>,
}

impl Seat {
    fn store(&self) -> Option<(EtcdStore, Client)> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn state(&self) -> SeedState {
        SeedState {
            cluster: self.cluster,
            host: self.host.clone(),
            seeds: self.seeds.clone(),
            stage: *self.stage.borrow(),
        }
    }
}

struct Failure(StatusCode, Refused);

fn refuse(reason: impl std::fmt::Display) -> Failure {
    Failure(
        StatusCode::FORBIDDEN,
        Refused {
            reason: reason.to_string(),
            later: false,
        },
    )
}

fn later(reason: impl std::fmt::Display) -> Failure {
    Failure(
        StatusCode::SERVICE_UNAVAILABLE,
        Refused {
            reason: reason.to_string(),
            later: true,
        },
    )
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

async fn seed(State(seat): State<Arc<Seat>>) -> Json<SeedState> {
    Json(seat.state())
}

fn formed(seat: &Seat) -> Result<(EtcdStore, Client), Failure> {
    let missing = || later("the cluster is not formed yet: its seeds are still coming together");
    seat.store().ok_or_else(missing)
}

async fn join(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<JoinQuestion>,
) -> Result<Json<JoinAnswer>, Failure> {
    let (store, _) = formed(&seat)?;
    let token: JoinToken = question.token.parse().map_err(refuse)?;
    let request = STANDARD
        .decode(&question.request)
        .map_err(|_| refuse("the request for a certificate is not base64"))?;
    let (key, wanted) = asked(&request).map_err(|error| refuse(chain(&error)))?;
    let who = wanted.identity.who.clone();
    match &who {
        Who::Node(_) | Who::Person(..) => {}
        Who::Server(_) | Who::Controller(_) => return Err(refuse("only nodes and people join with a token")),
    }
    let place = seat.root.key(&StoreKey::Join(token.id().to_string())).into_bytes();
    let mut tries = 0;
    loop {
        let found = store.get(&place).await.map_err(|error| later(chain(&error)))?;
        let Some(found) = found.value else {
            return Err(refuse(unrecorded(&token, &seat.bundle.1)));
        };
        let record = Record::verified(&found.value, &seat.bundle.1, now()).map_err(|error| refuse(chain(&error)))?;
        let admitted = record.admit(&token, &who, &key, now()).map_err(|refusal| {
            tracing::warn!(asked = %wanted.identity, token = %token.id(), from = %caller.address, why = %refusal, "refused to join");
            refuse(refusal)
        })?;
        if admitted == record {
            break;
        }
        let signed = admitted.signed_by(&seat.authority);
        let txn = person::txn().put(place.clone(), signed, Guard::Unchanged(found.mod_revision));
        match store.commit(txn).await.map_err(|error| later(chain(&error)))? {
            Outcome::Committed { revision: _ } => break,
            Outcome::FenceLost | Outcome::Conflict { keys: _ } if tries < TRIES => tries += 1,
            Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
                return Err(later("many join at this moment: ask again"));
            }
        }
    }
    // No addresses: who serves as a node is asked by identity, never by where it is.
    let grant = Grant::new(wanted.identity.clone(), HOST_SECONDS);
    let certificate = seat
        .authority
        .issue(&request, &grant, &Revoked::none(seat.cluster), now())
        .map_err(|error| refuse(chain(&error)))?;
    tracing::info!(who = %wanted.identity, token = %token.id(), from = %caller.address, "joined");
    Ok(Json(JoinAnswer {
        certificate: certificate.to_pem(),
        authorities: STANDARD.encode(&seat.bundle.0),
        endpoints: seat.seeds.iter().map(client_url).collect(),
    }))
}

/// A seed whose disk was lost takes its place again: its former member goes, and a new one of the same address comes.
async fn place(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<PlaceQuestion>,
) -> Result<Json<PlaceAnswer>, Failure> {
    let PlaceQuestion { host } = question;
    let named = caller
        .certificate
        .as_ref()
        .map(|certificate| certificate.identity().who.clone());
    match named {
        Some(Who::Server(name)) if name.as_str() == host.label() => {}
        Some(_) | None => return Err(refuse(format!("only the seed {host} itself may take its place"))),
    }
    if !seat.seeds.contains(&host) || host == seat.host {
        return Err(refuse(format!(
            "{host} is none of the other seeds of this cluster: {}",
            seat.seeds
        )));
    }
    let (_, client) = formed(&seat)?;
    let mut cluster = client.cluster_client();
    let calls = async {
        let listed = cluster.member_list().await?;
        let url = peer_url(&host);
        let old: BTreeSet<u64> = listed
            .members()
            .iter()
            .filter(|member| member.peer_urls().contains(&url))
            .map(etcd_client::Member::id)
            .collect();
        for id in old {
            cluster.member_remove(id).await?;
        }
        let added = cluster.member_add([url.clone()], None).await?;
        let own = added.member().map(etcd_client::Member::id);
        let members = added.member_list().iter().flat_map(|member| {
            let name = if Some(member.id()) == own {
                host.label()
            } else {
                member.name().to_owned()
            };
            member
                .peer_urls()
                .iter()
                .map(move |url| format!("{name}={url}"))
                .collect::<Vec<_>>()
        });
        Ok::<Vec<String>, etcd_client::Error>(members.collect())
    };
    let members = timeout(CALL, calls)
        .await
        .map_err(|_| later("the store does not answer in time: have its members a quorum?"))?
        .map_err(|error| later(format!("the store does not change its members: {error}")))?;
    tracing::info!(%host, "takes its place among the store's members again");
    Ok(Json(PlaceAnswer { members }))
}

/// Serves until `end`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    seat: Arc<Seat>,
    mut end: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/seed", get(seed))
        .route("/v1/join", post(join))
        .route("/v1/place", post(place))
        .layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES))
        .with_state(seat);
    let gate = Gate::new(listener, Arc::new(tls))?;
    let router = router.into_make_service_with_connect_info::<Caller>();
    let served = axum::serve(gate, router);
    tokio::select! {
        done = async { served.await } => done,
        _ = end.wait_for(|end| *end) => Ok(()),
    }
}

/// Who asks.
#[derive(Clone, Debug)]
struct Caller {
    address: SocketAddr,
    /// Proven by the handshake; a newcomer has none.
    certificate: Option<Certificate>,
}

impl Connected<IncomingStream<'_, Gate>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Takes connections and does their handshakes beside each other, so that a slow guest keeps nobody else waiting.
struct Gate {
    address: SocketAddr,
    guests: mpsc::Receiver<(Secured, Caller)>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A guest behind TLS.
type Secured = Guest<TlsStream<TcpStream>>;

impl Gate {
    fn new(listener: TcpListener, tls: Arc<ServerConfig>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, guests) = mpsc::channel(CONNECTIONS);
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = tokio::spawn(async move {
            // The semaphore is never closed: a permit always comes.
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                let Ok((stream, address)) = listener.accept().await else {
                    // Out of file descriptors, or a guest who left at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (tls, sender) = (TlsAcceptor::from(Arc::clone(&tls)), sender.clone());
                tokio::spawn(async move {
                    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => {
                            tracing::debug!(%address, %error, "a handshake failed");
                            return;
                        }
                        Err(_) => return,
                    };
                    let shown = stream.get_ref().1.peer_certificates();
                    let certificate = shown.and_then(|shown| trust::tls::peer(Some(shown)).ok());
                    let guest = Guest::new(stream, LIFETIME, Some(permit));
                    // The server has ended when nobody takes it.
                    let _ = sender.send((guest, Caller { address, certificate })).await;
                });
            }
        });
        Ok(Self {
            address,
            guests,
            accepting,
        })
    }
}

impl axum::serve::Listener for Gate {
    type Io = Secured;
    type Addr = Caller;

    async fn accept(&mut self) -> (Secured, Caller) {
        match self.guests.recv().await {
            Some(guest) => guest,
            // The accepting task ends with us alone.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Caller> {
        Ok(Caller {
            address: self.address,
            certificate: None,
        })
    }
}

/// Whom the port lets in with a certificate: seeds and people; newcomers come without.
#[must_use]
pub fn guests() -> trust::tls::Peers {
    trust::tls::Peers::roles([Role::Server, Role::Person])
}
