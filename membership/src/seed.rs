//! A seed: a host that keeps the store. `reeve server` runs it: it derives what the install token says, comes together with
//! the other seeds as [`bootstrap::next`] decides, runs the store's member beside it, makes the cluster once, and answers
//! newcomers for as long as it lives.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::Client;
use futures::future::join_all;
use runtime::{EtcdOptions, EtcdStore, Guard, Outcome, Shutdown, Store, StoreError, TlsFiles, chain, person};
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::{Key as StoreKey, Root};
use schemas::records::{ClusterId, ClusterMarker, Record as _};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use trust::authority::{Authority, AuthorityError, Grant, request};
use trust::bundle::Bundle;
use trust::certificate::{AuthorityCertificate, Certificate};
use trust::identity::{Identity, Name, Rights, Role, Who};
use trust::key::Key;
use trust::tls::{Door, ShowError};
use trust::token::{Admits, InstallToken, JoinToken, Names, Record, Token};

use crate::believed::Believed;
use crate::bootstrap::{Answer, Next, Own, Stage, next, on_disk};
use crate::call::{CallError, call, to_seeds};
use crate::etcd::{Initial, Member, client_url, has_begun, member_address};
use crate::front::{self, Between, Front, FrontError};
use crate::join::{JoinError, lines};
use crate::keep::{Context, Held, Keep, KeepError};
use crate::members::{self, MembersError};
use crate::port::{self, PlaceAnswer, PlaceQuestion, Seat, SeedState};
use crate::rights;
use crate::rotate::{self, Keys};
use crate::seat;
use crate::seeds::{Host, Seeds};
use crate::upkeep::Upkeep;
use crate::{SEED_PORT, now};

/// How long a certificate of a host lasts unless told otherwise, in seconds: 365 days.
pub const HOST_SECONDS: u64 = 365 * 86_400;
/// How long hosts may join with the install token, in seconds from its making: a day. Later ones get a token of their own.
pub const INSTALL_SECONDS: u64 = 86_400;
/// How many hosts may join with the install token.
const INSTALL_USES: u32 = 10_000;
const AGAIN: Duration = Duration::from_secs(1);

/// How to run a seed.
#[derive(Debug)]
pub struct SeedOptions {
    pub dir: PathBuf,
    pub root: Root,
    /// Needed for the first start; then the disk knows. A join token is for a seed of a cluster that is, whose disk was lost.
    pub token: Option<Token>,
    pub seeds: Seeds,
    /// Which of them this host is.
    pub me: Host,
    /// The store's program.
    pub etcd: PathBuf,
    /// How long the certificates last that are issued here, in seconds.
    pub life: u64,
}

/// What is known of this seed from an earlier start: `seed.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Known {
    pub cluster: trust::identity::ClusterId,
    pub host: Host,
    pub seeds: Seeds,
    pub store_token: String,
    /// Whether the cluster has been seen to be. Never taken back.
    pub formed: bool,
    /// How the member began, for as long as its store has no data of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joining: Vec<String>,
}

/// The file of [`Known`].
pub const KNOWN: &str = "seed.json";

/// What is said of a seed that belongs to this cluster by an authority that this host does not know.
pub const LEFT: &str = "the cluster's authority was replaced, and this host has the one before";

/// Why a seed cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Seat(#[from] JoinError),
    #[error("this host is no seed yet, and there is no token")]
    NoToken,
    #[error("this host is a seed of cluster {found}, but the token is of cluster {asked}")]
    OtherCluster {
        found: trust::identity::ClusterId,
        asked: trust::identity::ClusterId,
    },
    #[error("this host was installed as {found_host} among the seeds {found}, not as {host} among {asked}")]
    OtherSeeds {
        found_host: Host,
        found: Seeds,
        host: Host,
        asked: Seeds,
    },
    #[error("cannot make the seed's certificates")]
    Authority(#[from] AuthorityError),
    #[error("cannot show the seed's certificate")]
    Show(#[source] ShowError),
    #[error("TLS cannot be prepared")]
    Tls(#[source] rustls::Error),
    #[error("cannot run the store's front")]
    Front(#[from] FrontError),
    #[error("cannot listen on port {SEED_PORT} for newcomers")]
    Listen(#[source] std::io::Error),
    #[error("the seeds do not belong together: {}", lines(.0).join("; "))]
    Strangers(BTreeMap<Host, String>),
    #[error("cannot reach this seed's own store")]
    Store(#[source] StoreError),
    #[error("cannot reach this seed's own store")]
    Client(#[source] MembersError),
    #[error("the store holds cluster {found}, but this seed is of cluster {own}")]
    OtherStore {
        found: String,
        own: trust::identity::ClusterId,
    },
    #[error("cluster {cluster} has been, and no seed has its store any more")]
    Gone { cluster: trust::identity::ClusterId },
    #[error("no authority's key is in {}", .0.display())]
    NoKey(PathBuf),
    #[error("cannot note that the authority has followed another: {0}")]
    Endorse(String),
    #[error("ended while the seeds were still coming together")]
    Ended,
}

/// What people are told while the seeds come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// These are missed, each with the reason.
    Missing(BTreeMap<Host, String>),
    /// This seed's store is gone, and none of the others has it as far as is known: these say nothing.
    Lost(BTreeMap<Host, String>),
    /// None of the other seeds gives this one its seat yet, each with the reason.
    Seat(BTreeMap<Host, String>),
    /// All are there: a new store begins.
    Beginning,
    /// The cluster is, and this seed takes its old place in it.
    TakingPlace(Host),
    /// It does not have it yet; why.
    NoPlace(String),
    /// The store has begun, and has no quorum yet; why, where that is known.
    Quorum(Option<String>),
}

/// A seed whose cluster is.
#[derive(Debug)]
pub struct Formed {
    pub store: EtcdStore,
    pub cluster: trust::identity::ClusterId,
    /// Whether this start is the one that made it.
    pub new: bool,
    /// How a person on this host reaches the store.
    pub context: Context,
    started: Started,
}

impl Formed {
    /// Ends the port and the store's member, in good order.
    pub async fn end(self) {
        self.started.end().await;
    }
}

/// What runs beside: the port, and the store's member.
#[derive(Debug)]
struct Started {
    end: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Started {
    async fn end(self) {
        self.end.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Starts a seed, and waits until its cluster is.
///
/// # Errors
/// When waiting longer cannot help, or `shutdown` comes first.
pub async fn start(
    options: SeedOptions,
    shutdown: &Shutdown,
    mut progress: impl FnMut(&Progress),
) -> Result<Formed, SeedError> {
    let keep = Arc::new(Keep::open(&options.dir)?);
    if let Some(Token::Join(token)) = &options.token
        && vacant(&keep)?
    {
        tokio::select! {
            taken = take_seat(&keep, token, &options, &mut progress) => taken?,
            () = shutdown.draining() => return Err(SeedError::Ended),
        }
    }
    let (believed, keys, mut known) = identity(&keep, &options)?;
    let door = Door::new(believed.trust());
    let listening = door
        .server_for_newcomers(port::guests(), Arc::new(DefaultTimeProvider))
        .map_err(SeedError::Tls)?;
    let calling = to_seeds(&door).map_err(SeedError::Tls)?;

    let address = SocketAddr::new(
        options.me.address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        SEED_PORT,
    );
    let listener = TcpListener::bind(address).await.map_err(SeedError::Listen)?;
    let data = keep.path("etcd");
    let (own, stage) = on_disk(has_begun(&data), known.formed);
    let seat = Arc::new(Seat {
        cluster: known.cluster,
        host: options.me.clone(),
        seeds: options.seeds.clone(),
        root: options.root.clone(),
        believed: RwLock::new(believed),
        keys,
        shows: Mutex::default(),
        anchored: AtomicU64::new(0),
        life: options.life,
        stage: watch::channel(stage).0,
        cut: AtomicU64::new(0),
        store: Mutex::default(),
    });
    renew_own(&keep, &seat, &door)?;
    let between = Between::new(&keep, &seat)?;
    let (end, ended) = watch::channel(false);
    let serving = tokio::spawn({
        let (seat, ended) = (Arc::clone(&seat), ended.clone());
        async move {
            if let Err(error) = port::serve(listener, listening, seat, ended).await {
                tracing::error!(%error, "newcomers are no longer answered");
            }
        }
    });
    let mut started = Started {
        end,
        tasks: vec![serving],
    };
    let formed = async {
        if own != Own::Store {
            known.joining = come_together(own, &seat, &calling, &mut progress).await?;
            keep.write_json(KNOWN, &known)?;
        }
        if own == Own::Empty {
            seat.stage.send_replace(Stage::Starting);
        }
        let member = Member {
            program: options.etcd.clone(),
            me: options.me.clone(),
            seeds: options.seeds.clone(),
            store_token: known.store_token.clone(),
            data: data.clone(),
            keep: options.dir.clone(),
            initial: if known.joining.is_empty() {
                Initial::New
            } else {
                Initial::Joining(known.joining.clone())
            },
        };
        let front = Arc::new(Front {
            root: options.root.clone(),
            door: Arc::clone(&door),
            between,
            member: member_address(&options.me),
        });
        let listeners = front::listeners(&options.me).await?;
        let serves = ended.clone();
        started.tasks.push(tokio::spawn(async move {
            if let Err(error) = front.serve(listeners, serves).await {
                tracing::error!(error = chain(&error), "the store's clients are no longer answered");
            }
        }));
        let (trouble, troubles) = watch::channel(None);
        let (again, agains) = watch::channel(0);
        started.tasks.push(tokio::spawn(member.run(
            Arc::clone(&keep),
            ended.clone(),
            agains,
            trouble,
        )));
        let endpoints: Vec<String> = options.seeds.iter().map(client_url).collect();
        let context = keep.write_context(endpoints, "person")?;
        let (store, new) = found(&options, &keep, &seat, &troubles, &mut progress).await?;
        let client = member_client(&options.seeds, &keep).await?;
        *seat.store.lock().unwrap_or_else(PoisonError::into_inner) = Some((store.clone(), client));
        known.formed = true;
        known.joining.clear();
        keep.write_json(KNOWN, &known)?;
        seat.stage.send_replace(Stage::Formed);
        let upkeep = Upkeep {
            keep: Arc::clone(&keep),
            seat: Arc::clone(&seat),
            door: Arc::clone(&door),
            store: store.clone(),
            calling: Arc::clone(&calling),
            again,
        };
        started.tasks.push(tokio::spawn(upkeep.run(shutdown.clone())));
        let (rights, mut done) = (rights::set_up(Arc::clone(&seat)), ended.clone());
        started.tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = rights => {}
                _ = done.wait_for(|end| *end) => {}
            }
        }));
        Ok((store, new, context))
    };
    let formed = tokio::select! {
        formed = formed => formed,
        () = shutdown.draining() => Err(SeedError::Ended),
    };
    match formed {
        Ok((store, new, context)) => Ok(Formed {
            store,
            cluster: known.cluster,
            new,
            context,
            started,
        }),
        Err(error) => {
            started.end().await;
            Err(error)
        }
    }
}

/// Whether this disk holds nothing that a seed could go on with: it was never one, or has not got as far as the cluster.
fn vacant(keep: &Keep) -> Result<bool, KeepError> {
    let known = keep.read_json::<Known>(KNOWN)?;
    Ok(known.is_none_or(|known| !known.formed) && !has_begun(&keep.path("etcd")))
}

/// Becomes a seed of a cluster that is, with a token made for that. Its disk then says that the cluster has been seen: so
/// whatever becomes of the others, this one never begins another.
async fn take_seat(
    keep: &Keep,
    token: &JoinToken,
    options: &SeedOptions,
    progress: &mut impl FnMut(&Progress),
) -> Result<(), SeedError> {
    let waiting = |missed: &BTreeMap<Host, String>| progress(&Progress::Seat(missed.clone()));
    let cluster = seat::take(keep, token, &options.seeds, &options.me, waiting).await?;
    let known = Known {
        cluster,
        host: options.me.clone(),
        seeds: options.seeds.clone(),
        // Members that join a store which is are told its id by the others.
        store_token: cluster.to_string(),
        formed: true,
        joining: Vec::new(),
    };
    keep.write_json(KNOWN, &known)?;
    Ok(())
}

impl SeedOptions {
    fn install_token(&self) -> Option<&InstallToken> {
        match &self.token {
            Some(Token::Install(token)) => Some(token),
            Some(Token::Join(_)) | None => None,
        }
    }
}

/// Who this seed is: from its disk, and else from the token.
fn identity(keep: &Keep, options: &SeedOptions) -> Result<(Believed, Keys, Known), SeedError> {
    let asked = options.install_token().map(InstallToken::cluster);
    let known = keep.read_json::<Known>(KNOWN)?;
    let held = match Believed::on_disk(keep)? {
        Some(believed) => Some(believed),
        // It ended before it had written whom it believes.
        None if known.is_some() => first(keep)?,
        None => None,
    };
    let cluster = held.as_ref().map(|held| held.bundle().cluster());
    if let (Some(found), Some(asked)) = (cluster, asked)
        && found != asked
    {
        return Err(SeedError::OtherCluster { found, asked });
    }
    if let (Some(known), Some(believed)) = (known, held.as_ref()) {
        if known.seeds != options.seeds || known.host != options.me {
            return Err(SeedError::OtherSeeds {
                found_host: known.host,
                found: known.seeds,
                host: options.me.clone(),
                asked: options.seeds.clone(),
            });
        }
        let believed = believed.clone();
        // What was brought from another seed has another file for programs than the one that is here.
        if keep
            .read("ca.crt")?
            .is_none_or(|found| found != believed.bundle().to_pem().as_bytes())
        {
            believed.write(keep)?;
        }
        let keys = keys(keep, &believed)?;
        return Ok((believed, keys, known));
    }
    let token = options.install_token().ok_or(SeedError::NoToken)?;
    let believed = match held {
        // Brought from another seed, for the cluster has left the token's authority.
        Some(believed) => believed,
        None => {
            let authority = Authority::derived(token)?;
            keep.write_authority(&authority)?;
            begun(&authority)
        }
    };
    believed.write(keep)?;
    let known = Known {
        cluster: token.cluster(),
        host: options.me.clone(),
        seeds: options.seeds.clone(),
        store_token: token.store_token(),
        formed: false,
        joining: Vec::new(),
    };
    let keys = keys(keep, &believed)?;
    keep.write_json(KNOWN, &known)?;
    Ok((believed, keys, known))
}

/// What a cluster begins with.
fn begun(authority: &Authority) -> Believed {
    let bundle = Bundle::of(authority.certificate().clone());
    Believed::begin(bundle.signed_by(authority), bundle)
}

fn first(keep: &Keep) -> Result<Option<Believed>, SeedError> {
    let pins = keep.authorities()?;
    let Some(authority) = pins.first().map(|pin| keep.authority(pin)).transpose()?.flatten() else {
        return Ok(None);
    };
    let believed = begun(&authority);
    believed.write(keep)?;
    Ok(Some(believed))
}

/// The keys of those that are believed; whatever else is here of a rotation that ended is destroyed.
fn keys(keep: &Keep, believed: &Believed) -> Result<Keys, SeedError> {
    for pin in keep.authorities()? {
        if believed.bundle().authority(&pin).is_none() {
            keep.forget_authority(&pin)?;
        }
    }
    let keys = Keys::on_disk(keep, believed.bundle())?;
    if keys.issuing_here(believed.bundle()).is_none() {
        return Err(SeedError::NoKey(keep.path("")));
    }
    Ok(keys)
}

/// What a seed serves at.
pub(crate) fn served_at(mut grant: Grant, host: &Host) -> Grant {
    grant.addresses = vec![Ipv4Addr::LOCALHOST.into()];
    grant.dns_names = vec!["localhost".to_owned()];
    match host.address() {
        Some(address) if address != Ipv4Addr::LOCALHOST => grant.addresses.push(address),
        Some(_) => {}
        None => grant.dns_names.push(host.to_string()),
    }
    grant
}

/// The certificate `<role>.crt` on this disk; issued anew by this authority when there is none, when another's is there, or
/// its time comes.
fn certificate(
    keep: &Keep,
    seat: &Seat,
    who: Who,
    host: Option<&Host>,
    by: &Authority,
) -> Result<(Certificate, Key), SeedError> {
    let name = who.role().to_string();
    let believed = seat.believed();
    let fine = |held: &Held| {
        let issuer = believed.bundle().issuer(&held.certificate);
        issuer == Some(by.certificate()) && !held.certificate.renewal_is_due(now())
    };
    if let Some(held) = keep.held(&name)?.filter(fine) {
        return Ok((held.certificate, held.key));
    }
    let mut grant = Grant::new(Identity::new(seat.cluster, who), seat.life);
    if let Some(host) = host {
        grant = served_at(grant, host);
    }
    let key = keep.key(&name)?;
    let asked = request(&key, &grant.identity, &grant.addresses, &grant.dns_names)?;
    let certificate = by.issue(&asked, &grant, believed.revoked(), now())?;
    tracing::info!(who = %grant.identity, until = %certificate.validity().until, "this seed has a new certificate");
    keep.write_certificate(&name, &certificate)?;
    Ok((certificate, key))
}

/// The authority in whose name this seed shows itself: the one it did, for others may not know the present one yet.
fn showing(keep: &Keep, seat: &Seat) -> Result<Arc<Authority>, SeedError> {
    let believed = seat.believed();
    let bundle = believed.bundle();
    let mut shows = *seat.shows.lock().unwrap_or_else(PoisonError::into_inner);
    if shows.is_none() {
        let held = keep.held(&Role::Server.to_string())?;
        let issuer = held.as_ref().and_then(|held| bundle.issuer(&held.certificate));
        shows = issuer.map(AuthorityCertificate::fingerprint);
    }
    let known = shows.filter(|pin| bundle.authority(pin).is_some());
    // A seed whose disk was lost in the middle of a rotation shows what everybody still knows.
    let oldest = || {
        bundle
            .former()
            .iter()
            .rev()
            .find_map(|one| seat.keys.get(&one.fingerprint()))
    };
    let by = known.and_then(|pin| seat.keys.get(&pin)).or_else(oldest);
    by.or_else(|| seat.keys.issuing_here(bundle))
        .ok_or_else(|| SeedError::NoKey(keep.path("")))
}

/// A name in a certificate: a member's label always is one.
pub(crate) fn name(label: &str) -> Name {
    label.parse().expect("a label is a DNS label")
}

/// Makes sure that this seed's certificates are good for a while: its own, which it shows, its controller's and its person's.
pub(crate) fn renew_own(keep: &Keep, seat: &Seat, door: &Door) -> Result<(), SeedError> {
    let label = seat.host.label();
    let missing = || SeedError::NoKey(keep.path(""));
    let issuing = seat.keys.issuing_here(seat.believed().bundle()).ok_or_else(missing)?;
    let by = showing(keep, seat)?;
    let pin = by.certificate().fingerprint();
    let (shown, key) = certificate(keep, seat, Who::Server(name(&label)), Some(&seat.host), &by)?;
    *seat.shows.lock().unwrap_or_else(PoisonError::into_inner) = Some(pin);
    certificate(keep, seat, Who::Controller(name(&label)), None, &issuing)?;
    certificate(keep, seat, Who::Person(name("root"), Rights::Admin), None, &issuing)?;
    let earlier = rotate::endorsements(keep, &pin);
    door.show_endorsed(&shown, &key, by.certificate(), &earlier)
        .map_err(SeedError::Show)
}

/// Shows a certificate of the present authority from now on.
pub(crate) fn serve_anew(keep: &Keep, seat: &Seat, door: &Door) -> Result<(), SeedError> {
    let bundle = seat.believed().bundle().clone();
    rotate::endorse(keep, &seat.keys, &bundle).map_err(SeedError::Endorse)?;
    *seat.shows.lock().unwrap_or_else(PoisonError::into_inner) = Some(bundle.present().fingerprint());
    renew_own(keep, seat, door)
}

/// Asks the others until it is clear how this seed begins; the members to join, none for a new store.
async fn come_together(
    own: Own,
    seat: &Seat,
    tls: &Arc<rustls::ClientConfig>,
    progress: &mut impl FnMut(&Progress),
) -> Result<Vec<String>, SeedError> {
    let mut before = None;
    let mut taking = false;
    let mut tell = |now: Progress| {
        // Said once, though it is tried again and again.
        let said = taking && matches!(now, Progress::TakingPlace(_));
        taking |= matches!(now, Progress::TakingPlace(_));
        if !said && before.as_ref() != Some(&now) {
            progress(&now);
            before = Some(now);
        }
    };
    loop {
        let others: Vec<&Host> = seat.seeds.iter().filter(|host| **host != seat.host).collect();
        let answers = join_all(others.iter().map(|host| ask(seat, host, tls))).await;
        let answers: BTreeMap<Host, Answer> = others.into_iter().cloned().zip(answers).collect();
        match next(own, &answers) {
            Next::Begin => {
                tell(Progress::Beginning);
                return Ok(Vec::new());
            }
            Next::TakePlace { through } => {
                tell(Progress::TakingPlace(through.clone()));
                let question = PlaceQuestion {
                    host: seat.host.clone(),
                };
                match call::<_, PlaceAnswer>(&through, SEED_PORT, tls, "/v1/place", Some(&question)).await {
                    Ok((answer, _)) => return Ok(answer.members),
                    Err(error) => tell(Progress::NoPlace(chain(&error))),
                }
            }
            Next::Wait(missing) if own == Own::Lost => tell(Progress::Lost(missing)),
            Next::Wait(missing) => tell(Progress::Missing(missing)),
            Next::Refuse(strange) => return Err(SeedError::Strangers(strange)),
            Next::Gone => return Err(SeedError::Gone { cluster: seat.cluster }),
            Next::Continue => unreachable!("this disk has no store"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(seat: &Seat, host: &Host, tls: &Arc<rustls::ClientConfig>) -> Answer {
    match call::<(), SeedState>(host, SEED_PORT, tls, "/v1/seed", None).await {
        Ok((state, _)) if state.cluster != seat.cluster => {
            Answer::Stranger(format!("it is of cluster {}", state.cluster))
        }
        Ok((state, _)) if state.seeds != seat.seeds => {
            Answer::Stranger(format!("it was given other seeds: {}", state.seeds))
        }
        Ok((state, _)) if state.host != *host => Answer::Stranger(format!("the seed {} answers there", state.host)),
        Ok((state, _)) => Answer::At(state.stage),
        Err(CallError::Stranger { at: _, source }) => {
            if rotate::has_left(host, seat.believed().bundle()).await {
                Answer::Stranger(LEFT.to_owned())
            } else {
                Answer::Stranger(chain(&source))
            }
        }
        Err(error) => Answer::Silent(chain(&error)),
    }
}

pub(crate) fn tls_files(keep: &Keep) -> TlsFiles {
    TlsFiles {
        ca: keep.path("ca.crt"),
        identity: Some((keep.path("controller.crt"), keep.path("controller.key"))),
    }
}

/// Waits for the store to have a quorum, and makes sure that it holds our cluster: made by whichever seed is first.
async fn found(
    options: &SeedOptions,
    keep: &Keep,
    seat: &Seat,
    troubles: &watch::Receiver<Option<String>>,
    progress: &mut impl FnMut(&Progress),
) -> Result<(EtcdStore, bool), SeedError> {
    let all: Vec<String> = options.seeds.iter().map(client_url).collect();
    let mut etcd = EtcdOptions::new(&all.join(","));
    etcd.tls = Some(tls_files(keep));
    let store = EtcdStore::prepare(etcd).await.map_err(SeedError::Store)?;
    let place = options.root.key(&StoreKey::Cluster).into_bytes();
    let own = ClusterId::from_random(*seat.cluster.bytes());
    let mut before = None;
    loop {
        match store.get(&place).await {
            Ok(found) => {
                if let Some(found) = found.value {
                    let marker = ClusterMarker::decode(&found.value).ok();
                    return match marker.filter(|marker| marker.id == own) {
                        Some(_) => Ok((store, false)),
                        None => Err(SeedError::OtherStore {
                            found: String::from_utf8_lossy(&found.value).chars().take(200).collect(),
                            own: seat.cluster,
                        }),
                    };
                }
                if make(options, seat, &store, &own).await.map_err(SeedError::Store)? {
                    return Ok((store, true));
                }
            }
            Err(_) => {
                let trouble = Progress::Quorum(troubles.borrow().clone());
                if before.as_ref() != Some(&trouble) {
                    progress(&trouble);
                    before = Some(trouble);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Writes the marker, and with it the record by which hosts join with the install token. False: another seed was first.
async fn make(options: &SeedOptions, seat: &Seat, store: &EtcdStore, own: &ClusterId) -> Result<bool, StoreError> {
    let marker = ClusterMarker::first(own.clone());
    let mut txn = person::txn().put(options.root.key(&StoreKey::Cluster), marker.encode(), Guard::Absent);
    if let Some(token) = options.install_token() {
        let bundle = seat.believed().bundle().clone();
        if let Some(authority) = seat.keys.issuing(&bundle) {
            let join = token.join(authority.certificate().fingerprint());
            let expires = now().plus(INSTALL_SECONDS);
            let record = Record::of(&join, seat.cluster, Admits::Node, Names::Any, INSTALL_USES, expires);
            let place = options.root.key(&StoreKey::Join(join.id().to_string()));
            txn = txn.put(place, record.signed_by(&authority), Guard::Any);
        }
    }
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(true),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Ok(false),
    }
}

/// A client for the store's members, as a controller.
pub(crate) async fn member_client(seeds: &Seeds, keep: &Keep) -> Result<Client, SeedError> {
    let endpoints: Vec<String> = seeds.iter().map(client_url).collect();
    let client = members::client(&endpoints, Some(&tls_files(keep))).await;
    client.map_err(SeedError::Client)
}
