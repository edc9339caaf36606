//! The controller's life: follow the store, serve HTTP, check the cluster's marker, campaign, and while leading run
//! passes (`lead.rs`). Events wake, state decides: a pass takes the whole store as it is, and no pass begins before the
//! cache has reached what the last one wrote. `reeve controller` and `reeve up` call [`run`]; any number may run, one leads.
//!
//! Never here: an unfenced write, a decision, a removal that no plan says.
//!
//! A panic within a pass is a bug of ours. It must not take the process down in a loop, nor stop what else the store asks
//! for, so it ends that pass only: it is logged, counted, and the next try comes after a growing delay.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use runtime::backoff::Backoff;
use runtime::reflector::Ended;
use runtime::{
    Cache, LeaderOptions, Leadership, Prefix, Reader, ReflectOptions, Shutdown, Store, StoreError, campaign, reflect,
};
use runtime::{blocking, boottime};
use schemas::keys::{Key, Root};
use schemas::kinds::Kind;
use schemas::records::{ClusterMarker, Record};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use trust::sign::Signing;
use trust::validity::Time;

use crate::http::{self, Served};
use crate::lead::End;
use crate::metrics::Metrics;
use crate::observe::{Hold, Observer, State};
use crate::presence::announce;
use crate::vault::{Vault, VaultOptions};

/// How to run a controller.
#[derive(Debug)]
pub struct ControllerOptions<S> {
    /// The store.
    pub store: S,
    /// Where all keys stand.
    pub root: Root,
    /// Who this is, for people: `host:pid`.
    pub id: String,
    /// Where to serve metrics, health and discovery; nowhere when none. Port 0 lets the system choose.
    pub http_addr: Option<SocketAddr>,
    /// `host:port` under which Prometheus reaches that server; the address it listens on when none.
    pub advertise: Option<String>,
    /// The shortest time from the end of a pass to the next; 5 ms by default. The first pass after a quiet time is at once.
    pub debounce: Duration,
    /// How long a leader that says nothing stays leader; 5 to 60 s, 10 s by default.
    pub leader_ttl: Duration,
    /// With what assignments are signed, and whose count; nothing is signed without. A newer certificate counts from the next pass.
    pub signing: Option<watch::Receiver<Arc<Signing>>>,
    /// With what sealed values are handed to the nodes that need them; none are without.
    pub vault: Option<VaultOptions>,
    /// Told once the server listens and the marker is right.
    pub started: Option<oneshot::Sender<Started>>,
}

/// A controller that has begun to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where it serves HTTP.
    pub http: Option<SocketAddr>,
}

impl<S> ControllerOptions<S> {
    /// Everything else by default, and no HTTP server.
    pub fn new(store: S, root: Root, id: impl Into<String>) -> Self {
        Self {
            store,
            root,
            id: id.into(),
            http_addr: None,
            advertise: None,
            debounce: Duration::from_millis(5),
            leader_ttl: Duration::from_secs(10),
            signing: None,
            vault: None,
            started: None,
        }
    }
}

/// Why a controller has ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The store's cluster is not one to work for.
    #[error("run the controller")]
    Hold {
        /// Why.
        #[source]
        source: Hold,
    },
    /// The store refused what no waiting mends.
    #[error("run the controller")]
    Store {
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The HTTP server could not listen.
    #[error("listen on {address} for metrics")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The copy of the store is followed no more, without anyone having asked for an end: a fault of ours.
    #[error("run the controller")]
    Ended {
        /// Why.
        #[source]
        source: Ended,
    },
}

impl ControllerError {
    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Hold { source } => source.remedy(),
            Self::Store { source } => source.remedy(),
            Self::Listen { .. } => Some("choose another address with --metrics".to_owned()),
            Self::Ended { source: _ } => Some("restart it; please report the lines logged before".to_owned()),
        }
    }
}

impl From<Hold> for ControllerError {
    fn from(source: Hold) -> Self {
        Self::Hold { source }
    }
}
impl From<StoreError> for ControllerError {
    fn from(source: StoreError) -> Self {
        Self::Store { source }
    }
}

/// A standby decodes what has changed this often, so that it can take over at once.
const WARM: Duration = Duration::from_millis(500);
/// The store is asked something at least this often, so that its health is known.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Runs until the shutdown drains. Outages of the store are waited out, also at the start.
///
/// # Errors
/// When the store holds no cluster, another one, or one that has moved or needs a newer release; when the store refuses
/// access; when the HTTP server cannot listen.
pub async fn run<S: Store>(options: ControllerOptions<S>, shutdown: Shutdown) -> Result<(), ControllerError> {
    let ControllerOptions {
        store,
        root,
        id,
        http_addr,
        advertise,
        debounce,
        leader_ttl,
        signing,
        vault,
        started,
    } = options;
    let listener = match http_addr {
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .map_err(|source| ControllerError::Listen { address, source })?,
        ),
        None => None,
    };
    let listens = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let address = advertise.or_else(|| listens.map(|address| address.to_string()));

    let prefix = Prefix::new(root.as_str())?;
    let skip = vec![Prefix::new(root.prefix("events"))?, Prefix::new(root.prefix("blobs"))?];
    let reader = reflect(
        store.clone(),
        prefix,
        ReflectOptions {
            skip,
            ..ReflectOptions::default()
        },
        &shutdown,
    );
    let metrics = Arc::new(Metrics::new());
    let _server = listener.map(|listener| {
        let served = Served {
            metrics: Arc::clone(&metrics),
            cache: reader.clone(),
            store: store.health().clone(),
            root: root.clone(),
            address: address.clone().unwrap_or_default(),
            turn: Arc::new(Semaphore::new(1)),
        };
        Task(tokio::spawn(http::serve(listener, served)))
    });
    let _heartbeat = Task(tokio::spawn(heartbeat(store.clone(), root.key(&Key::Cluster))));
    // What is served above says meanwhile whether the store answers.
    if check_marker(&store, &root, &shutdown).await?.is_break() {
        return Ok(());
    }
    // The first document of a kind would otherwise wait for its validator to be made.
    blocking::spawn(|| {
        for kind in Kind::ALL {
            let _ = kind.schema();
        }
    });
    if let Some(started) = started {
        // Nobody may be waiting any more.
        let _ = started.send(Started { http: listens });
    }
    let mut announced = address.as_ref().map(|address| {
        let (store, root, id) = (store.clone(), root.clone(), id.clone());
        let (address, vault) = (address.clone(), vault.clone());
        Task(tokio::spawn(announce(
            store,
            root,
            id,
            address,
            vault,
            shutdown.clone(),
        )))
    });
    let election = LeaderOptions {
        ttl: leader_ttl,
        ..LeaderOptions::new(
            Prefix::new(root.prefix("election"))?,
            http::holder(&id, address.as_deref()),
        )
    };
    let observer = Arc::new(Mutex::new(Observer::new(root.clone())));
    let mut controller = Controller {
        store,
        root,
        reader,
        observer,
        metrics,
        debounce,
        signing,
        vault: vault.map(|options| Arc::new(Mutex::new(Vault::new(options)))),
        shutdown,
        told_hold: None,
    };
    let end = controller.live(&election).await;
    if let Some(announced) = announced.as_mut().filter(|_| controller.shutdown.is_draining()) {
        // It takes its key away.
        tokio::select! {
            _ = &mut announced.0 => {}
            () = controller.shutdown.aborting() => {}
        }
    }
    end
}

/// A task that ends with its owner.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads the marker before anything else is done; breaks off when the shutdown drains first.
async fn check_marker<S: Store>(
    store: &S,
    root: &Root,
    shutdown: &Shutdown,
) -> Result<ControlFlow<()>, ControllerError> {
    let mut backoff = Backoff::default();
    let key = root.key(&Key::Cluster);
    let read = loop {
        let error = match store.get(key.as_bytes()).await {
            Ok(read) => break read,
            Err(error) if error.is_outage() => error,
            Err(error) => return Err(error.into()),
        };
        let delay = backoff.delay();
        tracing::warn!(reason = "StoreUnavailable", %error, ?delay, remedy = error.remedy(), "the store does not answer: trying again");
        tokio::select! {
            () = shutdown.draining() => return Ok(ControlFlow::Break(())),
            () = boottime::sleep(delay) => {}
        }
    };
    let Some(kv) = read.value else {
        return Err(Hold::NoCluster { root: root.clone() }.into());
    };
    match ClusterMarker::decode(&kv.value) {
        Ok(ClusterMarker {
            schema_version: _,
            id: _,
            restore_epoch: _,
            moved: None,
            accepted_revision: _,
            network: _,
        }) => Ok(ControlFlow::Continue(())),
        Ok(ClusterMarker {
            schema_version: _,
            id: _,
            restore_epoch: _,
            moved: Some(moved),
            accepted_revision: _,
            network: _,
        }) => Err(Hold::Moved { to: moved.to }.into()),
        Err(error) => Err(Hold::MarkerUnreadable {
            why: crate::observe::chain(&error),
        }
        .into()),
    }
}

/// Keeps the store's health known while nothing else asks it anything.
async fn heartbeat<S: Store>(store: S, key: String) {
    loop {
        boottime::sleep(HEARTBEAT).await;
        if store
            .health()
            .last_answer()
            .is_none_or(|last| last.elapsed() >= HEARTBEAT)
        {
            // Its outcome is in the store's health.
            let _ = store.get(key.as_bytes()).await;
        }
    }
}

/// What standing by and leading share.
pub(crate) struct Controller<S> {
    pub(crate) store: S,
    pub(crate) root: Root,
    pub(crate) reader: Reader,
    pub(crate) observer: Arc<Mutex<Observer>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) debounce: Duration,
    pub(crate) signing: Option<watch::Receiver<Arc<Signing>>>,
    pub(crate) vault: Option<Arc<Mutex<Vault>>>,
    pub(crate) shutdown: Shutdown,
    /// The hold that was logged last.
    told_hold: Option<Hold>,
}

impl<S: Store> Controller<S> {
    /// Stands by and leads in turns, until the shutdown drains or waiting mends nothing.
    async fn live(&mut self, election: &LeaderOptions) -> Result<(), ControllerError> {
        while let Some(leadership) = self.stand_by(election).await? {
            let epoch = leadership.epoch();
            tracing::info!(epoch, "this controller leads");
            self.metrics.leads(Some(epoch));
            let ended = self.lead(&leadership).await;
            self.metrics.leads(None);
            let end = match ended {
                Ok(End::Lost) => {
                    tracing::warn!(epoch, "the leadership is lost: standing by");
                    continue;
                }
                Ok(End::Draining) => Ok(()),
                Err(error) => Err(error),
            };
            tokio::select! {
                () = leadership.resign() => {}
                () = self.shutdown.aborting() => {}
            }
            return end.and_then(|()| self.asked_to_end());
        }
        self.asked_to_end()
    }

    /// Campaigns, with the observer kept warm; none when the shutdown drains.
    async fn stand_by(&mut self, election: &LeaderOptions) -> Result<Option<Leadership>, ControllerError> {
        let (store, shutdown) = (self.store.clone(), self.shutdown.clone());
        let mut reader = self.reader.clone();
        // A store without the cluster's marker is not campaigned in.
        loop {
            tokio::select! {
                () = shutdown.draining() => return Ok(None),
                cache = reader.ready() => {
                    let Ok(cache) = cache else { return Ok(None) };
                    if self.warm_up(&cache).await? {
                        break;
                    }
                }
            }
            tokio::select! {
                () = shutdown.draining() => return Ok(None),
                () = boottime::sleep(WARM) => {}
            }
        }
        let campaign = campaign(&store, election, &shutdown);
        tokio::pin!(campaign);
        loop {
            let follow = async {
                boottime::sleep(WARM).await;
                if reader.changed().await.is_err() {
                    // The reflector ends at shutdown only, and so does the campaign.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                won = &mut campaign => return Ok(won?),
                () = follow => {}
            }
            if let Some(cache) = self.reader.snapshot() {
                self.warm_up(&cache).await?;
            }
        }
    }

    /// Decodes what has changed; false while the store may not be acted on.
    async fn warm_up(&mut self, cache: &Cache) -> Result<bool, ControllerError> {
        let (observer, state) = (Arc::clone(&self.observer), State::from(cache));
        let signing = self.signing();
        let observe = move || {
            let mut observer = lock(&observer);
            if let Some(signing) = signing {
                observer.sign(&signing, today());
            }
            observer.observe(&state)
        };
        match blocking::spawn(observe).await {
            Ok(Ok(())) => {
                self.acts_again();
                Ok(true)
            }
            Ok(Err(hold)) => {
                self.say_hold(hold)?;
                Ok(false)
            }
            Err(_) => {
                self.panicked();
                Ok(false)
            }
        }
    }

    pub(crate) fn signing(&self) -> Option<Arc<Signing>> {
        self.signing.as_ref().map(|signing| Arc::clone(&signing.borrow()))
    }

    /// The reflector ends at shutdown only.
    fn asked_to_end(&self) -> Result<(), ControllerError> {
        if self.shutdown.is_draining() {
            Ok(())
        } else {
            Err(ControllerError::Ended { source: Ended })
        }
    }

    /// After a panic what was decoded is not to be trusted; where the store was is.
    pub(crate) fn panicked(&self) {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        *observer = observer.fresh();
        self.observer.clear_poison();
        tracing::error!("a pass panicked: this is a bug in reeve; please report it with the lines above");
    }

    /// Logs a hold when it is new; ends the process where waiting mends nothing.
    pub(crate) fn say_hold(&mut self, hold: Hold) -> Result<(), ControllerError> {
        let remedy = hold.remedy().unwrap_or_default();
        self.metrics.holds(Some(format!("{}: {hold}; {remedy}", hold.reason())));
        if hold.is_for_good() {
            return Err(hold.into());
        }
        if self.told_hold.as_ref() != Some(&hold) {
            tracing::error!(reason = hold.reason(), %hold, %remedy, "nothing is changed while the store is like this");
            self.told_hold = Some(hold);
        }
        Ok(())
    }

    pub(crate) fn acts_again(&mut self) {
        if self.told_hold.take().is_some() {
            tracing::info!("the store is in order again");
        }
        self.metrics.holds(None);
    }
}

/// What this host's clock says, for the dates of certificates alone.
pub(crate) fn today() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Time::from_unix_seconds(since.map_or(0, |since| since.as_secs()))
}

pub(crate) fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
