//! etcd's gRPC services over the embedded store: KV, Watch, Lease, Maintenance, Cluster, and the
//! refusals of Auth.
//!
//! Reads are answered from memory at the committed revision, so every answered write is in them.
//! Writes go to the writer, bounded by the bytes in flight.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use etcd_client::proto::*;
use futures::Stream;
use futures::future::{Ready, ready};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::Core;
use super::disk::{crc32c_more, encode_item};
use super::refusal::Refusal;
use super::snapshot;
use super::txn;
use super::watch::Session;
use super::writer::{Command, Reply, now};

/// The version of etcd that this is a faithful copy of.
const VERSION: &str = "3.4.23";
/// The raft term in every header: there is no raft, and clients want one above zero.
const RAFT_TERM: u64 = 2;
/// The largest message that is decoded at all, in bytes; above the limit on requests, so that
/// those which are too large get etcd's answer.
const MAX_MESSAGE: usize = 16 << 20;
/// Responses that wait for a slow client of a stream.
const STREAM_BUFFER: usize = 8;

/// Ends streams: when their server shuts down, or the store closes.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    /// None for the in-process client, which no server carries.
    pub server: Option<watch::Receiver<bool>>,
    pub store: watch::Receiver<bool>,
}

impl Stop {
    /// Returns when either ends; also when its sender is gone.
    pub async fn wait(&mut self) {
        let server = async {
            match &mut self.server {
                Some(server) => {
                    let _ = server.wait_for(|stopped| *stopped).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = server => {}
            _ = self.store.wait_for(|stopped| *stopped) => {}
        }
    }
}

/// All services of one server.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub core: std::sync::Arc<Core>,
    pub stop: Stop,
}

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    pub fn routes(self) -> Routes {
        Routes::new(PbKvServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(PbWatchServer::new(self.clone()))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self.clone()))
            .add_service(PbClusterServer::new(self))
            .add_service(NoAuth)
            .prepare()
    }

    /// A header at `revision`, or at the newest.
    pub fn header(&self, revision: Option<i64>) -> Option<PbResponseHeader> {
        Some(PbResponseHeader {
            cluster_id: self.core.cluster_id,
            member_id: self.core.member_id,
            revision: revision.unwrap_or_else(|| self.core.revision()),
            raft_term: RAFT_TERM,
        })
    }

    /// Fills in what the store left open.
    fn complete(&self, header: &mut Option<PbResponseHeader>) {
        *header = self.header(header.as_ref().map(|h| h.revision));
    }

    /// Queues a write of about `size` bytes and waits for its answer.
    async fn write<T>(&self, size: usize, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
        let units = u32::try_from(size / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.core.room.acquire_many(units).await;
        let _room = room.map_err(|_| Refusal::Stopped)?;
        let (reply, answer) = oneshot::channel();
        self.core.commands.send(command(reply)).map_err(|_| Refusal::Stopped)?;
        answer.await.map_err(|_| Refusal::Stopped)?
    }

    fn range_now(&self, req: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        txn::check_range(req)?;
        self.core.check_open()?;
        let mut response = {
            let state = self.core.read();
            state.store.range(req, state.store.committed())?
        };
        self.complete(&mut response.header);
        Ok(response)
    }
}

#[tonic::async_trait]
impl PbKvService for Api {
    async fn range(&self, request: Request<PbRangeRequest>) -> Answer<PbRangeResponse> {
        self.range_now(request.get_ref()).map(Response::new)
    }

    type RangeStreamStream = BoxStream<PbRangeStreamResponse>;

    /// The whole range in one piece.
    async fn range_stream(&self, request: Request<PbRangeRequest>) -> Answer<Self::RangeStreamStream> {
        let response = PbRangeStreamResponse {
            range_response: Some(self.range_now(request.get_ref())?),
        };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(response)))))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Answer<PbPutResponse> {
        let req = request.into_inner();
        txn::check_put(&req)?;
        let size = txn::check_size(&req)?;
        let mut response = self.write(size, |reply| Command::Put(req, reply)).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Answer<PbDeleteResponse> {
        let req = request.into_inner();
        txn::check_delete(&req)?;
        let size = txn::check_size(&req)?;
        let mut response = self.write(size, |reply| Command::Delete(req, reply)).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Answer<PbTxnResponse> {
        let req = request.into_inner();
        txn::check_txn(&req)?;
        let mut response = if txn::is_read_only(&req) {
            self.core.check_open()?;
            let state = self.core.read();
            txn::read(&state.store, state.store.committed(), req)?
        } else {
            let size = txn::check_size(&req)?;
            self.write(size, |reply| Command::Txn(req, reply)).await?
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Answer<PbCompactionResponse> {
        let revision = request.get_ref().revision;
        let mut response = self.write(0, |reply| Command::Compact(revision, reply)).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }
}

#[tonic::async_trait]
impl PbWatchService for Api {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Answer<Self::WatchStream> {
        self.core.check_open()?;
        let (responses, stream) = mpsc::channel(STREAM_BUFFER);
        let session = Session::new(self.clone(), responses, self.stop.clone());
        let period = self.core.progress_interval;
        tokio::spawn(session.run(request.into_inner(), period));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl PbLeaseService for Api {
    async fn lease_grant(&self, request: Request<PbLeaseGrantRequest>) -> Answer<PbLeaseGrantResponse> {
        let PbLeaseGrantRequest { ttl, id } = *request.get_ref();
        let mut response = self.write(0, |reply| Command::Grant { id, ttl, reply }).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(&self, request: Request<PbLeaseRevokeRequest>) -> Answer<PbLeaseRevokeResponse> {
        let id = request.get_ref().id;
        let mut response = self.write(0, |reply| Command::Revoke(id, reply)).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        self.core.check_open()?;
        let (responses, stream) = mpsc::channel(STREAM_BUFFER);
        let mut requests = request.into_inner();
        let api = self.clone();
        let mut stop = self.stop.clone();
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    () = responses.closed() => return,
                    () = stop.wait() => {
                        let _ = responses.try_send(Err(Refusal::Stopped.into()));
                        return;
                    }
                    request = requests.message() => request,
                };
                let Ok(Some(PbLeaseKeepAliveRequest { id })) = request else {
                    return;
                };
                let response = PbLeaseKeepAliveResponse {
                    header: api.header(None),
                    id,
                    ttl: api.core.keep_alive(id).unwrap_or(0),
                };
                let sent = tokio::select! {
                    sent = responses.send(Ok(response)) => sent.is_ok(),
                    () = stop.wait() => false,
                };
                if !sent {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Answer<PbLeaseTimeToLiveResponse> {
        let PbLeaseTimeToLiveRequest { id, keys } = *request.get_ref();
        self.core.check_open()?;
        let found = self.core.read().leases.time_to_live(id, keys, now());
        let header = self.header(None);
        Ok(Response::new(match found {
            Some(lease) => PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl: lease.remaining,
                granted_ttl: lease.granted,
                keys: lease.keys,
            },
            None => PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..Default::default()
            },
        }))
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Answer<PbLeaseLeasesResponse> {
        self.core.check_open()?;
        let ids = self.core.read().leases.by_expiry();
        Ok(Response::new(PbLeaseLeasesResponse {
            header: self.header(None),
            leases: ids.into_iter().map(|id| PbLeaseStatus { id }).collect(),
        }))
    }
}

#[tonic::async_trait]
impl PbMaintenanceService for Api {
    /// There are no alarms: a full disk refuses each write by itself, and takes the next one as
    /// soon as there is room.
    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Answer<PbAlarmResponse> {
        Ok(Response::new(PbAlarmResponse {
            header: self.header(None),
            alarms: Vec::new(),
        }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Answer<PbStatusResponse> {
        self.core.check_open()?;
        let header = self.header(None);
        let index = header.as_ref().map_or(0, |h| h.revision.unsigned_abs());
        let size = self.core.size.load(std::sync::atomic::Ordering::Relaxed);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let full = self.core.full.load(std::sync::atomic::Ordering::Relaxed);
        let errors = full.then(|| "NOSPACE: the last write found the disk full".to_owned());
        Ok(Response::new(PbStatusResponse {
            errors: errors.into_iter().collect(),
            header,
            version: VERSION.into(),
            db_size: size,
            db_size_in_use: size,
            leader: self.core.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: RAFT_TERM,
            ..Default::default()
        }))
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Answer<PbDefragmentResponse> {
        self.write(0, Command::Shrink).await?;
        Ok(Response::new(PbDefragmentResponse {
            header: self.header(None),
        }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Answer<PbHashResponse> {
        self.core.check_open()?;
        let (hash, _, _) = self.hash_at(0)?;
        Ok(Response::new(PbHashResponse {
            header: self.header(None),
            hash,
        }))
    }

    /// Equal for equal history, and not comparable with etcd's: the records differ.
    async fn hash_kv(&self, request: Request<PbHashKvRequest>) -> Answer<PbHashKvResponse> {
        self.core.check_open()?;
        let (hash, hash_revision, compact_revision) = self.hash_at(request.get_ref().revision)?;
        Ok(Response::new(PbHashKvResponse {
            header: self.header(None),
            hash,
            compact_revision,
            hash_revision,
        }))
    }

    type SnapshotStream = BoxStream<PbSnapshotResponse>;

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Answer<Self::SnapshotStream> {
        self.core.check_open()?;
        let snapshot = snapshot::Snapshot::take(&self.core);
        Ok(Response::new(Box::pin(snapshot.stream(self.header(None)))))
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Answer<PbMoveLeaderResponse> {
        Err(Refusal::BadLeader.into())
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Answer<PbDowngradeResponse> {
        Err(Refusal::Unsupported("downgrade").into())
    }
}

impl Api {
    /// A checksum of all versions kept up to `revision` (0: the newest), with the revision and
    /// that of the last compaction.
    fn hash_at(&self, revision: i64) -> Result<(u32, i64, i64), Refusal> {
        let state = self.core.read();
        let committed = state.store.committed();
        let compacted = state.store.compacted();
        let revision = match revision {
            r if r > committed => return Err(Refusal::FutureRevision),
            r if r <= 0 => committed,
            r if r < compacted => return Err(Refusal::Compacted),
            r => r,
        };
        let hash = state
            .store
            .all()
            .filter(|item| item.main <= revision)
            .fold(0, |hash, item| crc32c_more(hash, &encode_item(item).0));
        Ok((hash, revision, compacted))
    }
}

#[tonic::async_trait]
impl PbClusterService for Api {
    async fn member_add(&self, _: Request<PbMemberAddRequest>) -> Answer<PbMemberAddResponse> {
        Err(Refusal::Unsupported("it has one member").into())
    }

    async fn member_remove(&self, _: Request<PbMemberRemoveRequest>) -> Answer<PbMemberRemoveResponse> {
        Err(Refusal::Unsupported("it has one member").into())
    }

    async fn member_update(&self, _: Request<PbMemberUpdateRequest>) -> Answer<PbMemberUpdateResponse> {
        Err(Refusal::Unsupported("it has one member").into())
    }

    async fn member_list(&self, _: Request<PbMemberListRequest>) -> Answer<PbMemberListResponse> {
        self.core.check_open()?;
        Ok(Response::new(PbMemberListResponse {
            header: self.header(None),
            members: vec![PbMember {
                id: self.core.member_id,
                name: "embedded".into(),
                peer_ur_ls: Vec::new(),
                client_ur_ls: self.core.listening(),
                is_learner: false,
            }],
        }))
    }

    async fn member_promote(&self, _: Request<PbMemberPromoteRequest>) -> Answer<PbMemberPromoteResponse> {
        Err(Refusal::Unsupported("it has one member").into())
    }
}

/// The Auth service: there are no users here, and every method says so. The TLS certificate, or
/// being on this machine, is what lets a client in.
#[derive(Debug, Clone)]
struct NoAuth;

impl NamedService for NoAuth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl<B> tower::Service<tonic::codegen::http::Request<B>> for NoAuth {
    type Response = tonic::codegen::http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::codegen::http::Request<B>) -> Self::Future {
        ready(Ok(Status::from(Refusal::AuthNotEnabled).into_http()))
    }
}
