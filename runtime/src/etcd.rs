//! The store over etcd's API: a real etcd of several endpoints, or the embedded store through its in-process client. It
//! owns what etcd-client does not do: deadlines, and going on around a dead endpoint (one connection for each, the
//! working one preferred). Reads are tried again; a write is sent again only when it certainly never left.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KvClient, LeaseClient, MaintenanceClient, PutOptions, TxnOp, WatchClient,
};
use futures::{StreamExt, stream};

use crate::error::{StoreError, StoreErrorKind};
use crate::health::Health;
use crate::shutdown::Shutdown;
use crate::store::{KeyValue, Lease, LeaseLife, Listing, Prefix, Read, Store, StoreStatus, WatchStream};
use crate::txn::{Guard, Op, Outcome, Txn};

mod call;
mod classify;
mod connect;
mod diagnose;
mod watching;

use connect::{TlsBytes, connect_one};
use watching::Watching;

/// Keys per page of a list; fewer where values are large.
const PAGE: i64 = 500;
/// The largest answer that is taken: many pages of ordinary documents, and 128 values of the largest size do not fit,
/// which a list answers with smaller pages.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How often the TLS files are looked at.
const REREAD: Duration = Duration::from_secs(30);

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Client URLs, `http://` or `https://`; without a scheme, `http://`.
    pub endpoints: Vec<String>,
    /// For `https://` endpoints.
    pub tls: Option<TlsFiles>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// 2 s by default.
    pub connect_timeout: Duration,
    /// The deadline of every call; 5 s by default.
    pub deadline: Duration,
}

impl EtcdOptions {
    /// The endpoints of a list with commas, everything else by default.
    pub fn new(endpoints: &str) -> Self {
        let endpoints = endpoints.split(',').map(str::trim).filter(|e| !e.is_empty());
        Self {
            endpoints: endpoints.map(str::to_owned).collect(),
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(5),
        }
    }
}

/// PEM files for TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The CA that signed the servers' certificates.
    pub ca: PathBuf,
    /// This client's certificate and key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The store over etcd's API.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore")
            .field("endpoints", &self.inner.names())
            .finish_non_exhaustive()
    }
}

struct Inner {
    /// As many as there were at first, in their order; replaced whole when the TLS files change.
    members: RwLock<Arc<[Member]>>,
    source: Option<Source>,
    preferred: AtomicUsize,
    deadline: Duration,
    health: Health,
}

/// What the connections were made from, so that they can be made again.
struct Source {
    options: EtcdOptions,
    /// The bytes of the TLS files that the connections of now were made with.
    read: Mutex<TlsBytes>,
}

#[derive(Clone)]
struct Member {
    name: String,
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    maintenance: MaintenanceClient,
}

impl Member {
    fn new(name: String, client: &Client) -> Self {
        Self {
            name,
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            lease: client.lease_client(),
            maintenance: client.maintenance_client(),
        }
    }
}

impl EtcdStore {
    /// Connects, and checks that at least one endpoint answers as etcd does. One name for each failure: unreachable
    /// (all endpoints named), TLS, not etcd, denied.
    pub async fn connect(options: EtcdOptions) -> Result<Self, StoreError> {
        let all = options.endpoints.join(", ");
        let store = Self::prepare(options).await?;
        match store.find_one().await {
            Ok(()) => Ok(store),
            Err(error) => Err(StoreError {
                act: "connect to etcd at",
                object: all,
                ..error
            }),
        }
    }

    /// As [`Self::connect`], and asks nothing yet: for who must start while the store is gone (agents, controllers).
    pub async fn prepare(options: EtcdOptions) -> Result<Self, StoreError> {
        let all = options.endpoints.join(", ");
        let fail = |kind| StoreError::new("connect to etcd at", all.clone(), kind);
        if options.endpoints.is_empty() {
            return Err(fail(StoreErrorKind::Invalid("no endpoint is given".to_owned())));
        }
        let read = options.tls.as_ref().map(TlsBytes::read).transpose()?;
        let tls = read.as_ref().map(TlsBytes::options);
        let mut members = Vec::with_capacity(options.endpoints.len());
        let mut refused: Option<StoreError> = None;
        for endpoint in &options.endpoints {
            match connect_one(endpoint, &options, tls.as_ref()).await {
                Ok(member) => members.push(member),
                Err(error) => refused = Some(error),
            }
        }
        // With a user each endpoint is asked for a token first: a dead one is left out while another answers. Without,
        // nothing is sent here, and only a wrong URL or wrong TLS material fails.
        if let Some(error) = refused.filter(|e| members.is_empty() || !e.is_outage()) {
            return Err(error);
        }
        let deadline = options.deadline;
        let source = read.map(|read| Source {
            options,
            read: Mutex::new(read),
        });
        Ok(Self::over(members, deadline, source))
    }

    /// Looks at the TLS files again, and makes the connections anew when they have changed: certificates are renewed while
    /// we run. Calls and watches that are under way end on the connections they began on. Whether they had changed.
    ///
    /// # Errors
    /// When a file cannot be read, or holds nothing to connect with; the connections stay as they are.
    pub async fn reread_tls(&self) -> Result<bool, StoreError> {
        let Some(Source { options, read }) = &self.inner.source else {
            return Ok(false);
        };
        let Some(files) = &options.tls else { return Ok(false) };
        let found = TlsBytes::read(files)?;
        if *read.lock().unwrap_or_else(PoisonError::into_inner) == found {
            return Ok(false);
        }
        let tls = found.options();
        let mut members = Vec::new();
        for member in self.inner.members().iter() {
            members.push(connect_one(&member.name, options, Some(&tls)).await?);
        }
        *self.inner.members.write().unwrap_or_else(PoisonError::into_inner) = members.into();
        *read.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(true)
    }

    /// Looks at the TLS files every half minute until `shutdown`.
    pub async fn follow_tls(&self, shutdown: &Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REREAD) => {}
                () = shutdown.draining() => return,
            }
            match self.reread_tls().await {
                Ok(false) => {}
                Ok(true) => tracing::info!("the store is reached with renewed certificates"),
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "the TLS files for the store have changed and cannot be used")
                }
            }
        }
    }

    /// Over a client that is connected already: the embedded store's, in process.
    pub fn from_client(client: etcd_client::Client) -> Self {
        let member = Member::new("embedded".to_owned(), &client);
        Self::over(vec![member], Duration::from_secs(5), None)
    }

    fn over(members: Vec<Member>, deadline: Duration, source: Option<Source>) -> Self {
        let inner = Inner {
            members: RwLock::new(members.into()),
            source,
            preferred: AtomicUsize::new(0),
            deadline,
            health: Health::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// One page of a list. `None`: the answer would be too large.
    async fn page(&self, prefix: &Prefix, from: &[u8], revision: i64, limit: i64) -> Result<Option<Page>, StoreError> {
        let answer = self
            .repeat("list", prefix.as_str().as_bytes(), |mut member| {
                let options = GetOptions::new()
                    .with_range(prefix.range_end())
                    .with_revision(revision)
                    .with_limit(limit);
                let from = from.to_vec();
                async move { member.kv.get(from, Some(options)).await }
            })
            .await;
        let response = match answer {
            Ok(response) => response.0,
            Err(error) if limit > 1 && classify::is_too_large_an_answer(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let header = response.header.unwrap_or_default();
        Ok(Some(Page {
            revision: header.revision,
            cluster_id: header.cluster_id,
            more: response.more,
            kvs: response.kvs.into_iter().map(key_value).collect(),
        }))
    }

    /// As [`Store::list`], and tells how many keys were read so far, page after page.
    pub async fn list_telling(&self, prefix: &Prefix, mut told: impl FnMut(usize)) -> Result<Listing, StoreError> {
        let mut tries = 0;
        loop {
            let listing = self.try_list(prefix, &mut told).await;
            tries += 1;
            // The revision of the first page was compacted before the last was read: begin again.
            match listing {
                Err(error) if tries < 3 && matches!(error.kind, StoreErrorKind::Compacted { .. }) => {}
                listing => return listing,
            }
        }
    }

    async fn try_list(&self, prefix: &Prefix, told: &mut impl FnMut(usize)) -> Result<Listing, StoreError> {
        let mut limit = PAGE;
        let mut listing: Option<Listing> = None;
        let mut from = prefix.as_str().as_bytes().to_vec();
        loop {
            let revision = listing.as_ref().map_or(0, |l| l.revision);
            let Some(page) = self.page(prefix, &from, revision, limit).await? else {
                limit = (limit / 4).max(1);
                continue;
            };
            let listing = listing.get_or_insert(Listing {
                revision: page.revision,
                cluster_id: page.cluster_id,
                kvs: Vec::new(),
            });
            if listing.cluster_id != page.cluster_id {
                let why = StoreErrorKind::Refused("the endpoints belong to different stores".to_owned());
                return Err(StoreError::new("list", prefix.as_str(), why));
            }
            listing.kvs.extend(page.kvs);
            told(listing.kvs.len());
            match listing.kvs.last() {
                Some(last) if page.more => from = [last.key.as_slice(), b"\0"].concat(),
                Some(_) | None => break,
            }
        }
        listing.ok_or_else(|| StoreError::new("list", prefix.as_str(), StoreErrorKind::Unreachable))
    }
}

struct Page {
    revision: i64,
    cluster_id: u64,
    more: bool,
    kvs: Vec<KeyValue>,
}

impl Store for EtcdStore {
    async fn get(&self, key: &[u8]) -> Result<Read<Option<KeyValue>>, StoreError> {
        let response = self
            .repeat("read", key, |mut member| async move { member.kv.get(key, None).await })
            .await?
            .0;
        let header = response.header.unwrap_or_default();
        Ok(Read {
            revision: header.revision,
            cluster_id: header.cluster_id,
            value: response.kvs.into_iter().next().map(key_value),
        })
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Read<Vec<Option<KeyValue>>>, StoreError> {
        let object = keys.first().map_or(b"".as_slice(), |k| k);
        let response = self
            .repeat("read", object, |mut member| {
                let reads: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(key.clone(), None)).collect();
                let txn = etcd_client::Txn::new().and_then(reads);
                async move { member.kv.txn(txn).await }
            })
            .await?
            .0;
        let header = response.header.unwrap_or_default();
        let found = response.responses.into_iter().map(|answer| match answer.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => range.kvs.into_iter().next().map(key_value),
            Some(_) | None => None,
        });
        Ok(Read {
            revision: header.revision,
            cluster_id: header.cluster_id,
            value: found.collect(),
        })
    }

    async fn list(&self, prefix: &Prefix) -> Result<Listing, StoreError> {
        self.list_telling(prefix, |_| {}).await
    }

    fn watch(&self, prefix: &Prefix, from_revision: i64) -> WatchStream {
        let begin = Watching::Begin {
            store: self.clone(),
            prefix: prefix.clone(),
            from: from_revision,
        };
        stream::unfold(begin, Watching::next).boxed()
    }

    async fn submit(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let object = txn.writes.first().map_or(b"".as_slice(), |w| w.key.as_slice());
        let mut keys: Vec<&[u8]> = txn.compares().iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let fence = txn.fence.held.as_ref().map(|(key, created)| (key.as_slice(), *created));
        keys.extend(fence.iter().map(|(key, _)| *key));
        let response = self
            .once("write", object, |mut member| {
                let request = request(txn, &keys);
                async move { member.kv.txn(request).await }
            })
            .await?
            .0;
        if response.succeeded {
            return Ok(Outcome::Committed {
                revision: response.header.unwrap_or_default().revision,
            });
        }
        let positions = response.responses.into_iter().map(|answer| match answer.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => {
                range.kvs.first().map(|kv| (kv.create_revision, kv.mod_revision))
            }
            Some(_) | None => None,
        });
        let found: std::collections::HashMap<&[u8], Option<(i64, i64)>> = keys.iter().copied().zip(positions).collect();
        let at = |key: &[u8]| found.get(key).copied().flatten();
        if fence.is_some_and(|(key, created)| !Guard::CreatedAt(created).holds(at(key))) {
            return Ok(Outcome::FenceLost);
        }
        Ok(Outcome::Conflict {
            keys: txn.conflicts(at),
        })
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        // Repeated at need: a lease that nobody heard of ends by itself.
        let response = self
            .repeat(
                "grant a lease",
                format!("{seconds} s").as_bytes(),
                |mut member| async move { member.lease.grant(seconds, None).await },
            )
            .await?;
        Ok(Lease {
            id: response.id(),
            ttl: whole_seconds(response.ttl()),
        })
    }

    async fn lease_keep_alive(&self, lease: i64) -> Result<(), StoreError> {
        self.repeat(
            "renew the lease",
            format!("{lease:x}").as_bytes(),
            |mut member| async move {
                // The client's opening of the stream is one renewal. The stream is not kept: streams break silently.
                let (keeper, mut answers) = member.lease.keep_alive(lease).await?;
                drop(keeper);
                // The store ends its side too, so that nothing is left half open.
                let _ = answers.message().await;
                Ok(())
            },
        )
        .await
    }

    async fn lease_revoke(&self, lease: i64) -> Result<(), StoreError> {
        let answer = self
            .repeat(
                "revoke the lease",
                format!("{lease:x}").as_bytes(),
                |mut member| async move { member.lease.revoke(lease).await.map(|_| ()) },
            )
            .await;
        match answer {
            Err(error) if error.kind == StoreErrorKind::LeaseNotFound => Ok(()),
            answer => answer,
        }
    }

    async fn lease_time_to_live(&self, lease: i64) -> Result<LeaseLife, StoreError> {
        let object = format!("{lease:x}");
        let life = self
            .repeat("read the lease", object.as_bytes(), |mut member| async move {
                member.lease.time_to_live(lease, None).await
            })
            .await?;
        if life.ttl() < 0 {
            return Err(StoreError::new("read the lease", object, StoreErrorKind::LeaseNotFound));
        }
        Ok(LeaseLife {
            granted: whole_seconds(life.granted_ttl()),
            remaining: whole_seconds(life.ttl()),
        })
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let (endpoint, response) = self
            .repeat(
                "read the status of",
                self.inner.names().join(", ").as_bytes(),
                |mut member| async move {
                    let response = member.maintenance.status().await?;
                    Ok((member.name, response))
                },
            )
            .await?;
        let header = response.header().map_or((0, 0), |h| (h.revision(), h.cluster_id()));
        Ok(StoreStatus {
            endpoint,
            version: response.version().to_owned(),
            db_size_bytes: response.db_size(),
            revision: header.0,
            cluster_id: header.1,
            leader: response.leader(),
            errors: response.errors().to_vec(),
        })
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.repeat("compact", revision.to_string().as_bytes(), |mut member| async move {
            member.kv.compact(revision, None).await.map(|_| ())
        })
        .await
    }

    fn health(&self) -> &Health {
        &self.inner.health
    }
}

fn whole_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn key_value(kv: PbKeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: Bytes::from(kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// The request: the compares, the writes, and, where a compare fails, where its keys are.
fn request(txn: &Txn, keys: &[&[u8]]) -> etcd_client::Txn {
    let mut compares: Vec<Compare> = txn
        .compares()
        .into_iter()
        .filter_map(|(key, guard)| compare(key, guard))
        .collect();
    if let Some((key, created)) = &txn.fence.held {
        compares.extend(compare(key, Guard::CreatedAt(*created)));
    }
    let writes: Vec<TxnOp> = txn
        .writes
        .iter()
        .map(|write| match &write.op {
            Op::Put { value, lease } => {
                let options = (*lease != 0).then(|| PutOptions::new().with_lease(*lease));
                TxnOp::put(write.key.clone(), value.to_vec(), options)
            }
            Op::Delete => TxnOp::delete(write.key.clone(), None),
        })
        .collect();
    let reads: Vec<TxnOp> = keys
        .iter()
        .map(|key| TxnOp::get(*key, Some(GetOptions::new().with_keys_only())))
        .collect();
    etcd_client::Txn::new().when(compares).and_then(writes).or_else(reads)
}

fn compare(key: &[u8], guard: Guard) -> Option<Compare> {
    Some(match guard {
        Guard::Absent => Compare::create_revision(key, CompareOp::Equal, 0),
        Guard::Exists => Compare::create_revision(key, CompareOp::Greater, 0),
        Guard::Unchanged(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
        Guard::CreatedAt(revision) => Compare::create_revision(key, CompareOp::Equal, revision),
        Guard::Any => return None,
    })
}
