//! What the tests of the embedded store share: it served on loopback, a real etcd beside it, and
//! raw calls of etcd's API to either, so that requests no client library would send can be sent.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use runtime::embedded::{Embedded, OpenOptions};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// The embedded store in a directory of its own, served on a free loopback port.
pub struct Served {
    pub store: Arc<Embedded>,
    pub endpoint: String,
    pub dir: TempDir,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl Served {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Embedded::open(OpenOptions::new(dir.path().join("store"))).unwrap();
        Self::serve(store, dir).await
    }

    pub async fn serve(store: Embedded, dir: TempDir) -> Self {
        let store = Arc::new(store);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = Arc::clone(&store);
        let server = tokio::spawn(async move {
            let until = async {
                let _ = stopped.await;
            };
            serving.serve(listener, until).await.unwrap();
        });
        Self {
            store,
            endpoint,
            dir,
            stop: Some(stop),
            server: Some(server),
        }
    }

    pub async fn raw(&self) -> Raw {
        Raw::connect(&self.endpoint).await
    }

    /// Ends the server and closes the store; the directory stays until the result is dropped.
    pub async fn close(mut self) -> TempDir {
        drop(self.stop.take());
        self.server.take().unwrap().await.unwrap();
        Arc::into_inner(self.store).unwrap().close().await;
        self.dir
    }
}

/// A real etcd of one member; ends with its value.
pub struct RealEtcd {
    child: Child,
    pub endpoint: String,
    _dir: TempDir,
}

impl RealEtcd {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let free = || {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap()
        };
        // Held together, so that the two differ.
        let (client, peer) = loop {
            let (a, b) = (free(), free());
            if a != b {
                break (a.to_string(), b.to_string());
            }
        };
        let child = Command::new("etcd")
            .args(["--name", "real", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &format!("http://{client}")])
            .args(["--advertise-client-urls", &format!("http://{client}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("real=http://{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`etcd` must be installed for this test: apt-get install etcd-server");
        let real = Self {
            child,
            endpoint: client,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(mut raw) = Raw::try_connect(&real.endpoint).await
                && raw
                    .range(etcd_client::proto::PbRangeRequest {
                        key: b"x".to_vec(),
                        ..Default::default()
                    })
                    .await
                    .is_ok()
            {
                return real;
            }
            assert!(Instant::now() < deadline, "etcd does not answer after 30 s");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn raw(&self) -> Raw {
        Raw::connect(&self.endpoint).await
    }
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// etcd's API without a client library in between.
#[derive(Clone)]
pub struct Raw(Grpc<Channel>);

/// A refusal, as two stores can be compared by.
pub type Refused = (Code, String);

macro_rules! calls {
    ($($name:ident: $path:literal, $req:ident => $res:ident;)*) => { $(
        pub async fn $name(
            &mut self,
            req: etcd_client::proto::$req,
        ) -> Result<etcd_client::proto::$res, Refused> {
            self.call($path, req).await
        }
    )* };
}

impl Raw {
    pub async fn connect(endpoint: &str) -> Self {
        Self::try_connect(endpoint).await.unwrap()
    }

    async fn try_connect(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::try_from(format!("http://{endpoint}"))?
            .timeout(Duration::from_secs(30))
            .tcp_nodelay(true);
        let grpc = Grpc::new(endpoint.connect().await?);
        Ok(Self(grpc.max_decoding_message_size(256 << 20)))
    }

    async fn call<Q, A>(&mut self, path: &'static str, req: Q) -> Result<A, Refused>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(tonic::Request::new(req), path, codec).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status: Status| (status.code(), status.message().to_owned()))
    }

    calls! {
        range: "/etcdserverpb.KV/Range", PbRangeRequest => PbRangeResponse;
        put: "/etcdserverpb.KV/Put", PbPutRequest => PbPutResponse;
        delete: "/etcdserverpb.KV/DeleteRange", PbDeleteRequest => PbDeleteResponse;
        txn: "/etcdserverpb.KV/Txn", PbTxnRequest => PbTxnResponse;
        compact: "/etcdserverpb.KV/Compact", PbCompactionRequest => PbCompactionResponse;
        grant: "/etcdserverpb.Lease/LeaseGrant", PbLeaseGrantRequest => PbLeaseGrantResponse;
        revoke: "/etcdserverpb.Lease/LeaseRevoke", PbLeaseRevokeRequest => PbLeaseRevokeResponse;
        time_to_live: "/etcdserverpb.Lease/LeaseTimeToLive",
            PbLeaseTimeToLiveRequest => PbLeaseTimeToLiveResponse;
        leases: "/etcdserverpb.Lease/LeaseLeases", PbLeaseLeasesRequest => PbLeaseLeasesResponse;
        hash_kv: "/etcdserverpb.Maintenance/HashKV", PbHashKvRequest => PbHashKvResponse;
    }

    /// A watch stream that sends `requests` and stays open.
    pub async fn watch(
        &mut self,
        requests: Vec<etcd_client::proto::PbWatchRequest>,
    ) -> Streaming<etcd_client::proto::PbWatchResponse> {
        use futures::StreamExt;
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::default();
        let stream = futures::stream::iter(requests).chain(futures::stream::pending());
        let request = tonic::Request::new(stream);
        self.0.streaming(request, path, codec).await.unwrap().into_inner()
    }
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}
