//! The port of a seed: where newcomers ask to join with a token, members have their certificates renewed, and seeds ask each
//! other how far they are. Behind TLS that
//! shows the newcomer a certificate of the authority that its token pins. Everything that comes in is sized, has a deadline,
//! and is answered with a reason when it is refused; who knows no secret learns nothing but that a seed is here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
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
use runtime::{EtcdStore, Guard, Outcome, Prefix, Store, chain, person};
use rustls::ServerConfig;
use schemas::keys::{Key as StoreKey, Root};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use trust::authority::{Authority, Grant, asked};
use trust::bundle::{Bundle, Unproven};
use trust::certificate::Certificate;
use trust::identity::{ClusterId, Identity, Role, Who};
use trust::key::{Fingerprint, PublicKey};
use trust::token::{JoinToken, Record, RecordError, unrecorded};

use crate::believed::Believed;
use crate::bootstrap::Stage;
use crate::etcd::{client_url, peer_url};
use crate::issued::Issued;
use crate::members::plain;
use crate::now;
use crate::persons;
use crate::rights;
use crate::rotate::{self, Keys};
use crate::rotation::Standing;
use crate::seeds::{Host, Seeds};

/// Connections at once; more wait.
const CONNECTIONS: usize = 256;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The longest a connection lives.
const LIFETIME: Duration = Duration::from_secs(30);
const MAX_QUESTION_BYTES: usize = 64 * 1_024;
/// The most of a refusal that is shown.
const MAX_REASON_CHARS: usize = 400;
/// A token's record may be written by two at once; who loses reads it again, this often.
const TRIES: usize = 8;
const CALL: Duration = Duration::from_secs(5);
/// Notes of certificates that have ended and are removed with one new note; the rest goes with the next.
const MAX_ENDED: usize = 32;

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
    /// The number of the list of the revoked whose entries have no open connection to this seed's store any more.
    #[serde(default)]
    pub cut: u64,
    /// How far it is with the cluster's authorities.
    #[serde(default)]
    pub authorities: Standing,
    /// What its clock says, in seconds since 1970: for people who look for a wrong one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<u64>,
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

/// `POST /v1/renew`: a member asks for the successor of the certificate that it shows. The answer is that of a join.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewQuestion {
    /// The request for a certificate: PKCS#10, DER, base64.
    pub request: String,
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
    pub believed: RwLock<Believed>,
    /// The authorities whose keys are here.
    pub keys: Keys,
    /// The authority that issues what this seed shows; None until it shows something.
    pub shows: Mutex<Option<Fingerprint>>,
    /// See [`Standing::anchored`].
    pub anchored: AtomicU64,
    /// How long the certificates last that are issued here, in seconds.
    pub life: u64,
    pub stage: watch::Sender<Stage>,
    /// See [`SeedState::cut`].
    pub cut: AtomicU64,
    /// The store, and a client for its members, once it has answered as this cluster's.
    pub store: Mutex<Option<(EtcdStore, Client)>>,
}

impl Seat {
    fn store(&self) -> Option<(EtcdStore, Client)> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom this seed believes now.
    #[must_use]
    pub fn believed(&self) -> Believed {
        self.believed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far it is with the authorities.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            believes: self.believed().bundle().number(),
            anchored: self.anchored.load(Ordering::Acquire),
            holds: self.keys.pins(),
            shows: *self.shows.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The authority that issued what is shown here: what this seed says to newcomers, it says in its name.
    pub(crate) fn shown(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        let shows = *self.shows.lock().unwrap_or_else(PoisonError::into_inner);
        shows
            .and_then(|pin| self.keys.get(&pin))
            .or_else(|| self.keys.issuing(bundle))
    }

    #[must_use]
    pub fn state(&self) -> SeedState {
        SeedState {
            cluster: self.cluster,
            host: self.host.clone(),
            seeds: self.seeds.clone(),
            stage: *self.stage.borrow(),
            cut: self.cut.load(Ordering::Acquire),
            authorities: self.standing(),
            clock: Some(now().unix_seconds()),
        }
    }
}

pub(crate) struct Failure(StatusCode, Refused);

pub(crate) fn refuse(reason: impl std::fmt::Display) -> Failure {
    Failure(
        StatusCode::FORBIDDEN,
        Refused {
            reason: reason.to_string(),
            later: false,
        },
    )
}

pub(crate) fn later(reason: impl std::fmt::Display) -> Failure {
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

pub(crate) fn formed(seat: &Seat) -> Result<(EtcdStore, Client), Failure> {
    let missing = || later("the cluster is not formed yet: its seeds are still coming together");
    seat.store().ok_or_else(missing)
}

/// This seed was away while the authority was replaced, and still asks for the new one's key.
pub(crate) fn keyless() -> Failure {
    later("this seed has not got the key of the cluster's authority yet")
}

/// The record of a token, if the authority stands by it.
pub(crate) fn record(bytes: &[u8], bundle: &Bundle) -> Result<Record, Failure> {
    Record::verified(bytes, bundle, now()).map_err(|error| {
        if error != RecordError::Unproven(Unproven::OtherSigner) {
            return refuse(chain(&error));
        }
        refuse(
            "the token was made before this cluster's authority was replaced, and counts no more: on a seed, `reeve token \
             create` prints a new one",
        )
    })
}

async fn join(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<JoinQuestion>,
) -> Result<Json<JoinAnswer>, Failure> {
    let (store, client) = formed(&seat)?;
    let token: JoinToken = question.token.parse().map_err(refuse)?;
    let request = STANDARD
        .decode(&question.request)
        .map_err(|_| refuse("the request for a certificate is not base64"))?;
    let (key, wanted) = asked(&request).map_err(|error| refuse(chain(&error)))?;
    let who = wanted.identity.who.clone();
    match &who {
        Who::Node(_) | Who::Person(..) => {}
        // A seed that was lost asks for its seat.
        Who::Server(_) | Who::Controller(_) => return Err(refuse("only nodes and people join with a token")),
    }
    persons::fits(&seat, &store, &who).await?;
    admitted(&seat, &store, &token, (&wanted.identity, &key), &caller).await?;
    rights::admit(&client, &seat.root, &wanted.identity)
        .await
        .map_err(|error| later(chain(&error)))?;
    let answer = issue(&seat, &store, &request, wanted.identity.clone()).await?;
    tracing::info!(who = %wanted.identity, token = %token.id(), from = %caller.address, "joined");
    let verb = match &who {
        Who::Person(..) => "login-cluster",
        Who::Node(_) | Who::Server(_) | Who::Controller(_) => "join",
    };
    let objects = vec![format!("token {}", token.id()), format!("from {}", caller.address.ip())];
    crate::record::tell(&seat, &store, &who.subject(), verb, objects).await;
    Ok(Json(answer))
}

/// Has a token let somebody with this key in, and writes that down before anything is issued.
pub(crate) async fn admitted(
    seat: &Seat,
    store: &EtcdStore,
    token: &JoinToken,
    (asked, key): (&Identity, &PublicKey),
    caller: &Caller,
) -> Result<(), Failure> {
    let who = &asked.who;
    let place = seat.root.key(&StoreKey::Join(token.id().to_string())).into_bytes();
    let bundle = seat.believed().bundle().clone();
    let mut tries = 0;
    loop {
        let found = store.get(&place).await.map_err(|error| later(chain(&error)))?;
        let Some(found) = found.value else {
            return Err(refuse(unrecorded(token, &bundle)));
        };
        let record = record(&found.value, &bundle)?;
        let admitted = record.admit(token, who, key, now()).map_err(|refusal| {
            tracing::warn!(%asked, token = %token.id(), from = %caller.address, why = %refusal, "refused to join");
            refuse(refusal)
        })?;
        let mut admitted = admitted;
        let removed = seat.believed().revoked().revoked_before(&who.subject());
        let again = admitted == record;
        if let Some(joined) = admitted.joined_as(who) {
            // It was in by this token already. Whoever was removed since needs another's word to come back.
            if again && joined.removed != removed {
                return Err(refuse(format!(
                    "{} was removed from the cluster: it needs a new token to come back",
                    who.subject()
                )));
            }
            joined.removed = removed;
        }
        if again {
            return Ok(());
        }
        let signed = admitted.signed_by(&*seat.keys.stating(&bundle).ok_or_else(keyless)?);
        let txn = person::txn().put(place.clone(), signed, Guard::Unchanged(found.mod_revision));
        match store.commit(txn).await.map_err(|error| later(chain(&error)))? {
            Outcome::Committed { revision: _ } => return Ok(()),
            Outcome::FenceLost | Outcome::Conflict { keys: _ } if tries < TRIES => tries += 1,
            Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
                return Err(later("many join at this moment: ask again"));
            }
        }
    }
}

/// Issues a certificate, of which note is kept before anybody has it: what is not in the store could not be revoked.
async fn issue(seat: &Seat, store: &EtcdStore, request: &[u8], identity: Identity) -> Result<JoinAnswer, Failure> {
    let subject = identity.who.subject().to_string();
    // No addresses: who serves as a node is asked by identity, never by where it is.
    let grant = Grant::new(identity, seat.life);
    let believed = seat.believed();
    let now = now();
    let bundle = believed.bundle();
    let authority = seat.keys.issuing(bundle).ok_or_else(keyless)?;
    let certificate = authority
        .issue(request, &grant, believed.revoked(), now)
        .map_err(|error| refuse(chain(&error)))?;
    let mut txn = person::txn().put(
        seat.root
            .key(&StoreKey::Issued(subject.clone(), certificate.serial().to_string())),
        Issued::of(&certificate, authority.certificate().fingerprint()).to_json(),
        Guard::Absent,
    );
    let earlier =
        Prefix::new(format!("{}{subject}/", seat.root.prefix("issued"))).map_err(|error| refuse(chain(&error)))?;
    let earlier = store.list(&earlier).await.map_err(|error| later(chain(&error)))?;
    let ended = |value: &[u8]| Issued::of_json(value).is_none_or(|issued| issued.until < now);
    for kv in earlier.kvs.into_iter().filter(|kv| ended(&kv.value)).take(MAX_ENDED) {
        txn = txn.delete(kv.key, Guard::Any);
    }
    match store.commit(txn).await.map_err(|error| later(chain(&error)))? {
        Outcome::Committed { revision: _ } => {}
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => return Err(later("ask again")),
    }
    Ok(JoinAnswer {
        certificate: certificate.to_pem(),
        authorities: STANDARD.encode(bundle.signed_by(&*seat.shown(bundle).ok_or_else(keyless)?)),
        endpoints: seat.seeds.iter().map(client_url).collect(),
    })
}

/// A member has its certificate renewed: for itself alone, with the key that it has.
async fn renew(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<RenewQuestion>,
) -> Result<Json<JoinAnswer>, Failure> {
    let RenewQuestion { request } = question;
    let Some(shown) = caller.certificate else {
        return Err(refuse("who shows no certificate has none to renew"));
    };
    // It may have been revoked since the handshake.
    seat.believed()
        .trust()
        .recheck(&shown, now())
        .map_err(|error| refuse(chain(&error)))?;
    let request = STANDARD
        .decode(&request)
        .map_err(|_| refuse("the request for a certificate is not base64"))?;
    let (key, wanted) = asked(&request).map_err(|error| refuse(chain(&error)))?;
    if wanted.identity != *shown.identity() || key != *shown.key() {
        return Err(refuse(format!(
            "{} may renew its own certificate, with its own key, and no other",
            shown.identity()
        )));
    }
    let (store, _) = formed(&seat)?;
    let answer = issue(&seat, &store, &request, wanted.identity.clone()).await?;
    tracing::info!(who = %wanted.identity, from = %caller.address, "renewed a certificate");
    Ok(Json(answer))
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
    let (store, client) = formed(&seat)?;
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
        .map_err(|error| later(unchanged(&error)))?;
    tracing::info!(%host, "takes its place among the store's members again");
    if let Some(shown) = &caller.certificate {
        // Until the newcomer is there the store may take nothing: it must not wait for this.
        crate::record::tell_beside(
            seat.clone(),
            store,
            shown.identity().who.subject(),
            "seat",
            vec![format!("from {}", caller.address.ip())],
        );
    }
    Ok(Json(PlaceAnswer { members }))
}

/// Why the store's members are as they were, for people.
fn unchanged(error: &etcd_client::Error) -> String {
    let why = plain(error);
    if why.contains("unhealthy cluster") {
        return "its members have to be together for some seconds before one may come".to_owned();
    }
    let why: String = why.chars().take(MAX_REASON_CHARS / 4).collect();
    format!("the store does not change its members yet: {why}")
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
        .route("/v1/invited", post(persons::invited))
        .route("/v1/renew", post(renew))
        .route("/v1/renewed", post(rotate::renewed))
        .route("/v1/authority", post(rotate::authority))
        .route("/v1/place", post(place))
        .route("/v1/seat", post(crate::seat::answer))
        .route("/v1/token", post(crate::tokens::answer))
        .route("/v1/revoke", post(crate::revoke::answer))
        .route("/v1/leave", post(crate::leave::answer))
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
pub(crate) struct Caller {
    pub(crate) address: SocketAddr,
    /// Proven by the handshake; a newcomer has none.
    pub(crate) certificate: Option<Certificate>,
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

/// Whom the port lets in with a certificate: seeds, people and nodes; newcomers come without.
#[must_use]
pub fn guests() -> trust::tls::Peers {
    trust::tls::Peers::roles([Role::Server, Role::Person, Role::Node])
}
