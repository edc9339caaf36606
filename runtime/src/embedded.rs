//! The embedded store: etcd's own API, in process, over a durable database of one file.
//!
//! `reeve up` and one-node installs open it; everything above talks to it with the same client as
//! to etcd, and `etcdctl` works against it. One member, no raft, no authentication of its own.
//!
//! It promises: a write is answered after the disk has it, and all that was answered is there
//! after a crash; reads never touch the disk and see every answered write; a full or failing disk
//! refuses writes, each with an error, while reads go on; a damaged file is never opened as if it
//! were whole, or as an empty store.
//!
//! ```text
//! client -> api -> writer (one thread: batch, apply, commit, publish, answer) -> disk (redb)
//!            |                      |
//!            +--- reads --> mvcc, lease (memory) <-- history -- watch (one task per stream)
//! ```

mod api;
mod disk;
mod lease;
mod mvcc;
mod refusal;
mod snapshot;
mod txn;
mod watch;
mod writer;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch as channel};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use api::{Api, Stop};
pub use disk::OpenError;
use disk::{Batch, DirLock, Disk, Meta};
use lease::Leases;
use mvcc::Store;
use refusal::Refusal;
use writer::{Command, State, Writer, now};

/// KiB of writes that may wait for the disk; further ones wait outside.
const ROOM: usize = 64 << 10;

/// How much history is kept for watches that start in the past and reads of old revisions. What
/// passes either limit is compacted; the values in force always stay.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Default: 10 minutes. Time while the machine is suspended counts.
    pub age: Duration,
    /// In revisions. Default: 10,000.
    pub revisions: i64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(600),
            revisions: 10_000,
        }
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The directory of the store; created when missing, of no other use to anybody.
    pub dir: PathBuf,
    pub retention: Retention,
    /// How often a quiet watch that asked for progress is told. Default: 10 minutes, as in etcd.
    pub progress_interval: Duration,
}

impl OpenOptions {
    /// The defaults, for the store in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            retention: Retention::default(),
            progress_interval: Duration::from_secs(600),
        }
    }
}

/// Why a listener is not, or no longer, served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Who can write the store is root on every host of the cluster.
    #[error(
        "refused to serve the store on {addr} without mutual TLS; listen on a loopback address, or give a certificate and the authority of the clients"
    )]
    NotLoopback { addr: SocketAddr },
    #[error("cannot tell the address of the listener")]
    Listener(#[source] io::Error),
    #[error("cannot use the TLS certificate, key or authority for {addr}")]
    Tls {
        addr: SocketAddr,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("serving the store on {addr} ended")]
    Transport {
        addr: SocketAddr,
        #[source]
        source: tonic::transport::Error,
    },
}

/// What a server beyond loopback needs, all as PEM.
#[derive(Clone)]
pub struct MutualTls {
    /// The server's certificate, and its chain.
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    /// Only clients with a certificate of this authority get in.
    pub client_authority: Vec<u8>,
}

impl std::fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MutualTls")
    }
}

/// What the services and the writer share.
#[derive(Debug)]
pub(crate) struct Core {
    state: Arc<RwLock<State>>,
    commands: Sender<Command>,
    room: Semaphore,
    /// The newest visible revision.
    published: channel::Sender<i64>,
    closing: channel::Sender<bool>,
    cluster_id: u64,
    member_id: u64,
    size: Arc<AtomicU64>,
    full: Arc<AtomicBool>,
    urls: Mutex<Vec<String>>,
    progress_interval: Duration,
}

impl Core {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        // A panic of another thread leaves whole revisions behind: they are published last.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn revision(&self) -> i64 {
        self.read().store.committed()
    }

    fn check_open(&self) -> Result<(), Refusal> {
        match *self.closing.borrow() {
            true => Err(Refusal::Stopped),
            false => Ok(()),
        }
    }

    fn keep_alive(&self, id: i64) -> Option<i64> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.leases.keep_alive(id, now())
    }

    fn listening(&self) -> Vec<String> {
        let urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        urls.clone()
    }

    fn stop(&self) {
        self.closing.send_replace(true);
        self.room.close();
        // Gone already when the writer ended by itself.
        let _ = self.commands.send(Command::Close);
    }
}

/// An open store. Dropping it closes it; `close` does so without blocking the runtime.
#[derive(Debug)]
pub struct Embedded {
    core: Arc<Core>,
    writer: Option<JoinHandle<()>>,
    /// Held by the writer too, until it has ended.
    _lock: Arc<DirLock>,
}

impl Embedded {
    /// Opens the store in a directory, or makes a new one where there is none. Blocks while the
    /// file is read: call it before the runtime is busy, or with `spawn_blocking`.
    pub fn open(options: OpenOptions) -> Result<Self, OpenError> {
        let OpenOptions {
            dir,
            retention,
            progress_interval,
        } = options;
        let lock = Arc::new(DirLock::take(&dir)?);
        if !Disk::exists(&dir) {
            let meta = Meta::draw().map_err(OpenError::io("draw ids for", &dir))?;
            let empty = Batch {
                revision: meta.revision,
                compacted: meta.compacted,
                ..Batch::default()
            };
            Disk::create(&dir, meta, &empty)?;
        }
        let (disk, loaded) = Disk::open(&dir)?;
        let meta = *disk.meta();
        let store = Store::load(loaded.items, meta.revision, meta.compacted).map_err(|what| OpenError::Damaged {
            path: dir.join(disk::FILE),
            what,
        })?;
        let mut leases = Leases::load(&loaded.leases, now());
        for item in store.live() {
            leases.attach(item.lease, &item.key);
        }
        let state = Arc::new(RwLock::new(State { store, leases }));
        let (commands, receiver) = std::sync::mpsc::channel();
        let (published, _) = channel::channel(meta.revision);
        let (closing, _) = channel::channel(false);
        let size = Arc::new(AtomicU64::new(disk.size()));
        let full = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            state: Arc::clone(&state),
            disk,
            commands: receiver,
            published: published.clone(),
            size: Arc::clone(&size),
            full: Arc::clone(&full),
            retention,
            samples: [(now(), meta.revision)].into(),
            hold_expiry: Duration::ZERO,
        };
        let held = Arc::clone(&lock);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                writer.run();
                drop(held);
            })
            .map_err(OpenError::io("start the writer of", &dir))?;
        let core = Core {
            state,
            commands,
            room: Semaphore::new(ROOM),
            published,
            closing,
            cluster_id: meta.cluster_id,
            member_id: meta.member_id,
            size,
            full,
            urls: Mutex::new(Vec::new()),
            progress_interval,
        };
        Ok(Self {
            core: Arc::new(core),
            writer: Some(thread),
            _lock: lock,
        })
    }

    /// Makes a store in `dir`, which must hold none, from the file that `etcdctl snapshot save`
    /// wrote from an embedded store. Keys, revisions and leases are those of the snapshot; the
    /// store's cluster id and member id are new, as with etcd. Blocks.
    pub fn restore(dir: &Path, file: &Path) -> Result<(), OpenError> {
        let _lock = DirLock::take(dir)?;
        if Disk::exists(dir) {
            return Err(OpenError::NotEmpty { dir: dir.into() });
        }
        snapshot::restore(dir, file)
    }

    /// A client that talks to this store in process, without a socket. Its calls need a tokio
    /// runtime and have no deadline of their own. After `close` it is told that the server stopped.
    pub fn client(&self) -> etcd_client::Client {
        let routes = self.api(None).routes();
        let service = ServiceExt::<tonic::codegen::http::Request<tonic::body::Body>>::map_err(
            routes,
            |never: std::convert::Infallible| -> tower::BoxError { match never {} },
        );
        let service = BoxCloneSyncService::new(service);
        etcd_client::Client::from_channel(etcd_client::Channel::Custom(service), None)
            .now_or_never()
            .and_then(Result::ok)
            .expect("a client without a user asks nothing of the server when it is made")
    }

    fn api(&self, server: Option<channel::Receiver<bool>>) -> Api {
        Api {
            core: Arc::clone(&self.core),
            stop: Stop {
                server,
                store: self.core.closing.subscribe(),
            },
        }
    }

    /// Serves the store in plain text on a loopback listener until `shutdown` or `close`, then
    /// ends the open streams and returns. Other listeners are refused.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let addr = listener.local_addr().map_err(ServeError::Listener)?;
        if !addr.ip().is_loopback() {
            return Err(ServeError::NotLoopback { addr });
        }
        self.run_server(listener, addr, None, shutdown).await
    }

    /// Serves the store over mutual TLS on any listener, otherwise as `serve`.
    pub async fn serve_mutual_tls(
        &self,
        listener: TcpListener,
        tls: MutualTls,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let addr = listener.local_addr().map_err(ServeError::Listener)?;
        let MutualTls {
            certificate,
            key,
            client_authority,
        } = tls;
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(client_authority))
            .client_auth_optional(false);
        self.run_server(listener, addr, Some(config), shutdown).await
    }

    async fn run_server(
        &self,
        listener: TcpListener,
        addr: SocketAddr,
        tls: Option<ServerTlsConfig>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let (stopping, stopped) = channel::channel(false);
        let mut store_closing = self.core.closing.subscribe();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server
                .tls_config(tls)
                .map_err(|source| ServeError::Tls { addr, source })?;
        }
        let url = format!("{scheme}://{addr}");
        self.with_urls(|urls| urls.push(url.clone()));
        let result = server
            .add_routes(self.api(Some(stopped)).routes())
            .serve_with_incoming_shutdown(
                // Without TCP_NODELAY small answers wait for the client's delayed ACK.
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                async {
                    tokio::select! {
                        () = shutdown => {}
                        _ = store_closing.wait_for(|closing| *closing) => {}
                    }
                    // Ends the streams, which the server would wait for.
                    stopping.send_replace(true);
                },
            )
            .await;
        self.with_urls(|urls| urls.retain(|u| *u != url));
        result.map_err(|source| ServeError::Transport { addr, source })
    }

    fn with_urls(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut urls = self.core.urls.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut urls);
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.core.revision()
    }

    /// Commits the writes that wait, refuses new ones, ends streams and servers, and returns when
    /// the file is closed: the directory can be opened again.
    pub async fn close(mut self) {
        self.core.stop();
        if let Some(writer) = self.writer.take() {
            // Fails only when the runtime is going down; the writer ends all the same.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.core.stop();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was reported when it happened.
            let _ = writer.join();
        }
    }
}
