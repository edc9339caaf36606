//! The agent's end of the store: its session, its node's facts, the assignment it watches, the accepted specs it fetches,
//! its report and its events. A task of its own, so that no outage of the store ever delays a container. All it writes is
//! fenced by the session; all it reads is handed to the loop as values, to be judged there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use planner::node::{FileId, SpecId};
use runtime::backoff::{Backoff, jitter};
use runtime::boottime::{self, Instant};
use runtime::session::{self, SessionError, SessionOptions};
use runtime::{
    Fence, Guard, Outcome, Prefix, Reader, ReflectOptions, Session, SessionRecord, Shutdown, Store, StoreError,
    StoreErrorKind, Txn, chain,
};
use schemas::config_file::{Content, FileDigest, MAX_FILE_BYTES, MAX_PARTS};
use schemas::keys::{Key, Root, TrustKey};
use schemas::names::NodeName;
use schemas::records::{
    self, Accepted, AcceptedBody, Assignment, ClusterId, ClusterMarker, Digest, NodeFacts, Order, Record, Report,
    SchemaVersion,
};
use tokio::sync::{mpsc, watch};
use trust::key::Fingerprint;
use trust::sign::{Keyring, unweave};
use trust::trusted::Trust;
use trust::validity::Time;

use crate::events_out::{Bucket, Told};
use crate::genuine::{Doubt, WORDS, admit, genuine};
use crate::metrics::Metrics;
use crate::report;
use crate::run::now_ms;
use crate::virtual_ips::Life;

/// Events live this long.
const EVENT_TTL: Duration = Duration::from_secs(3600);
/// Events of this long share a lease.
const LEASE_BUCKET: Duration = Duration::from_secs(600);

/// An assignment that is not believed is looked at again after this long.
const DOUBTED: Duration = Duration::from_secs(30);
/// What it wrote of itself is looked at this often: somebody may have changed or deleted it, and nothing else would ever
/// write it again. At most; at least in half the time.
const LOOK_AGAIN: Duration = Duration::from_secs(40);
/// And this long after the store did not say who its signer is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the loop is told.
#[derive(Debug)]
pub enum News {
    /// The store has, or has no, fault that a person must know; the condition's reason and message.
    Trouble(Option<(&'static str, String)>),
    /// What stands under the node's assignment key. That nothing stands there is never said.
    Offered(Result<Arc<Assignment>, String>),
    /// As a controller signed it: the bytes, and that controller's certificate. What is offered next is what they say.
    Signed(Bytes, Bytes),
    /// What stands there is no controller's word, and why; what was assigned before stays in force.
    Doubted(String),
    /// An accepted spec: its bytes, which have the digest asked for; or why it cannot be had.
    Spec(SpecId, Result<Bytes, String>),
    /// The content of a file, which has the digest asked for; or why it cannot be had.
    File(FileId, Result<Vec<u8>, String>),
    /// A session is open: to be kept on disk.
    Session(SessionRecord),
    /// What stands under the node's assignment key by a linearizable read under a session that lived then, which was asked for at
    /// that moment, in ms of BOOTTIME.
    Word(u64, Arc<Assignment>),
}

/// What the loop tells.
#[derive(Clone, Debug)]
pub struct Wants {
    pub report: watch::Receiver<Option<Arc<Report>>>,
    pub specs: watch::Receiver<BTreeSet<SpecId>>,
    pub files: watch::Receiver<BTreeSet<FileId>>,
    pub facts: watch::Receiver<Option<Arc<NodeFacts>>>,
    /// The order in force, for the session's watermark.
    pub applied: watch::Receiver<Order>,
    /// Whether something waits for [`News::Word`].
    pub word: watch::Receiver<bool>,
}

/// Who the agent is to the store.
#[derive(Clone, Debug)]
pub struct Identity {
    pub root: Root,
    pub node: NodeName,
    pub cluster: ClusterId,
    pub machine_id: String,
    pub boot_id: String,
    pub session_ttl: Duration,
}

/// Reads the cluster marker. Ok(None): the store has none.
pub async fn marker<S: Store>(store: &S, root: &Root) -> Result<Option<Result<ClusterMarker, String>>, StoreError> {
    let read = store.get(root.key(&Key::Cluster).as_bytes()).await?;
    Ok(read
        .value
        .map(|kv| ClusterMarker::decode(&kv.value).map_err(|error| chain(&error))))
}

/// What this host's clock says, for the dates of certificates alone.
pub(crate) fn today() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Time::from_unix_seconds(since.map_or(0, |since| since.as_secs()))
}

/// The error and its remedy as one sentence.
fn sentence(error: &StoreError) -> String {
    let remedy = error.remedy().map_or_else(String::new, |remedy| format!("; {remedy}"));
    format!("{}{remedy}", chain(error))
}

/// Keeps the agent's end of the store until the shutdown drains. Outages are waited out.
#[expect(clippy::too_many_arguments, reason = "each is another end of another channel")]
pub async fn link<S: Store>(
    store: S,
    identity: Identity,
    record: Option<SessionRecord>,
    trust: Option<watch::Receiver<Arc<Trust>>>,
    wants: Wants,
    events: mpsc::Receiver<Told>,
    news: mpsc::Sender<News>,
    life: watch::Sender<Option<Life>>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) {
    let believes = trust.map(|trust| {
        let keyring = Keyring::new(Trust::clone(&trust.borrow()));
        metrics.doubts(&WORDS);
        Believes {
            trust,
            keyring,
            published: BTreeMap::new(),
        }
    });
    let mut link = Link {
        believes,
        store,
        identity,
        record,
        wants,
        events,
        news,
        life,
        metrics,
        leases: EventLeases::default(),
        written: Written::Unknown,
        said: None,
    };
    tokio::select! {
        () = shutdown.draining() => {}
        () = link.run(&shutdown) => {}
    }
    // The session is left to run out: a restarted agent resumes it.
}

/// The store is from before what was seen, empty, or another cluster's: nothing of it counts, and a person must look.
pub(crate) const REGRESSED: &str = "StoreRegressed";
/// The store cannot be reached, read or written: it is tried again until it can.
const UNAVAILABLE: &str = "StoreUnavailable";

struct Link<S> {
    store: S,
    identity: Identity,
    record: Option<SessionRecord>,
    /// None: the cluster has no certificates of its own, and the store is believed.
    believes: Option<Believes>,
    wants: Wants,
    events: mpsc::Receiver<Told>,
    news: mpsc::Sender<News>,
    /// The session that is open, for what goes by it.
    life: watch::Sender<Option<Life>>,
    metrics: Arc<Metrics>,
    leases: EventLeases,
    written: Written,
    /// The fault of the store that was said last: it is said once, and its end.
    said: Option<String>,
}

/// Whose assignments count.
struct Believes {
    trust: watch::Receiver<Arc<Trust>>,
    keyring: Keyring,
    /// The certificates of the signers in it, as they were published.
    published: BTreeMap<Fingerprint, Bytes>,
}

/// What is known of our own report in the store.
enum Written {
    Unknown,
    Known {
        report: Option<Box<Report>>,
        guard: Guard,
        /// When this process wrote it; None for what was read: that was written long enough ago, and a wait for it after a
        /// failure would look like a success, and end the back-off.
        at: Option<Instant>,
    },
}

/// The lease that events of one bucket of time share.
#[derive(Default)]
struct EventLeases {
    current: Option<(i64, Instant)>,
    count: u64,
}

impl<S: Store> Link<S> {
    async fn run(&mut self, shutdown: &Shutdown) {
        let mut backoff = Backoff::default();
        loop {
            let trouble = match self.connect(shutdown).await {
                Ok(session) => {
                    backoff.reset();
                    self.tell(News::Trouble(None)).await;
                    self.life.send_replace(Some(Life {
                        session: session.create_revision(),
                        good_until: session.good_until(),
                        lives: session.lives(),
                    }));
                    self.serve(&session, shutdown).await;
                    self.life.send_replace(None);
                    // What it reads with ends first when the agent is stopped: no session is lost by that.
                    if self.news.is_closed() || shutdown.is_draining() {
                        return;
                    }
                    tracing::warn!(node = %self.identity.node, "the session is lost; opening another");
                    continue;
                }
                Err(trouble) => trouble,
            };
            if let Some((reason, message)) = trouble {
                self.complain(&message);
                self.metrics.store_unavailable(false);
                self.tell(News::Trouble(Some((reason, message)))).await;
            }
            boottime::sleep(backoff.delay()).await;
        }
    }

    /// Says what is wrong with the store, once for as long as it is the same.
    fn complain(&mut self, why: &str) {
        self.metrics.store_unavailable(true);
        if self.said.as_deref() != Some(why) {
            tracing::warn!(reason = UNAVAILABLE, "{why}; what runs is kept, and it is tried again");
            self.said = Some(why.to_owned());
        }
    }

    async fn tell(&self, news: News) {
        let _ = self.news.send(news).await;
    }

    /// Checks that the store is of our cluster, and opens or resumes the session. The error is a condition, or None for a
    /// mere outage.
    async fn connect(&mut self, shutdown: &Shutdown) -> Result<Session, Option<(&'static str, String)>> {
        let wrong = |message: String| Some(("WrongCluster", message));
        let regressed = |message: String| Some((REGRESSED, message));
        match marker(&self.store, &self.identity.root).await {
            Err(error) => {
                self.complain(&sentence(&error));
                return Err(None);
            }
            Ok(None) => {
                return Err(regressed(
                    "the store has no cluster: it was wiped, or it is another one. Put it back with `reeve admin restore`, without a \
                     backup `reeve admin rebuild`, or check --etcd and the prefix; nothing is taken from it"
                        .to_owned(),
                ));
            }
            Ok(Some(Err(why))) => return Err(regressed(why)),
            Ok(Some(Ok(marker))) if marker.id != self.identity.cluster => {
                return Err(regressed(format!(
                    "the store is of cluster {}, this agent of {}: check --etcd, or give the agent an empty --data-dir",
                    marker.id, self.identity.cluster
                )));
            }
            Ok(Some(Ok(ClusterMarker { moved: Some(moved), .. }))) => {
                return Err(wrong(format!(
                    "the cluster has moved to {}: start the agent with --etcd of that store",
                    moved.to.join(",")
                )));
            }
            Ok(Some(Ok(_))) => {}
        }
        let value = records::SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: self.identity.cluster.clone(),
            node: self.identity.node.clone(),
            machine_id: self.identity.machine_id.clone(),
            boot_id: self.identity.boot_id.clone(),
            watermark: *self.wants.applied.borrow(),
        };
        let options = SessionOptions {
            key: self.key(&Key::Session(self.identity.node.clone())),
            machine_id: self.identity.machine_id.clone(),
            value: value.encode().into(),
            ttl: self.identity.session_ttl,
        };
        match session::open(&self.store, &options, self.record, shutdown).await {
            Ok(session) => {
                self.record = Some(session.record());
                self.tell(News::Session(session.record())).await;
                Ok(session)
            }
            Err(error @ SessionError::NodeTaken { .. }) => {
                let remedy = error.remedy().unwrap_or_default();
                let message = format!("{error}; {remedy}");
                Err(Some(("NodeTaken", message)))
            }
            Err(error) => {
                let remedy = error.remedy().map_or_else(String::new, |remedy| format!("; {remedy}"));
                self.complain(&format!("{}{remedy}", chain(&error)));
                Err(None)
            }
        }
    }

    fn key(&self, key: &Key) -> Vec<u8> {
        self.identity.root.key(key).into_bytes()
    }

    /// Serves until the session is lost.
    async fn serve(&mut self, session: &Session, shutdown: &Shutdown) {
        let fence = Fence::session(session);
        let lost = session.lost();
        self.written = Written::Unknown;
        let key = self.identity.root.key(&Key::Assignment(self.identity.node.clone()));
        let prefix = Prefix::exact(key.clone()).expect("a key of ours does not end in `/`");
        let mut assignment = runtime::reflect(self.store.clone(), prefix, ReflectOptions::default(), shutdown);
        let mut backoff = Backoff::default();
        let mut bucket = Bucket::new(50, 10, 0);
        let began = Instant::now();
        let mut due = Due {
            facts: true,
            specs: true,
            files: true,
            offer: None,
            look: Instant::now() + jitter(LOOK_AGAIN / 2, LOOK_AGAIN),
            // Before anything is offered: what waits for it need not be stopped.
            word: self.hear_word(session, key.as_bytes()).await,
        };
        // After a failure nothing is tried before this.
        let mut hold: Option<Instant> = None;
        loop {
            if lost.is_lost() {
                return;
            }
            if due.offer.is_some_and(|at| at <= Instant::now()) {
                due.offer = self.offer(&assignment, key.as_bytes()).await;
            }
            if due.word.is_some_and(|at| at <= Instant::now()) {
                due.word = self.hear_word(session, key.as_bytes()).await;
            }
            let wake = match hold {
                Some(moment) if moment > Instant::now() => Some(moment),
                Some(_) | None => match self.write_out(&fence, &mut due).await {
                    Ok(Step::Lost) => return,
                    Ok(Step::Done(wait)) => {
                        backoff.reset();
                        self.metrics.store_unavailable(false);
                        if self.said.take().is_some() {
                            tracing::info!("the store can be used again");
                        }
                        hold = None;
                        wait.map(|wait| Instant::now() + wait)
                    }
                    Err(error) => {
                        self.complain(&sentence(&error));
                        hold = Some(Instant::now() + backoff.delay());
                        hold
                    }
                },
            };
            let look = hold.is_none().then_some(due.look);
            tokio::select! {
                () = lost.lost() => return,
                changed = assignment.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due.offer = self.offer(&assignment, key.as_bytes()).await;
                }
                () = retrusted(&mut self.believes) => due.offer = Some(Instant::now()),
                changed = self.wants.report.changed() => if changed.is_err() { return },
                changed = self.wants.facts.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due.facts = true;
                }
                changed = self.wants.specs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due.specs = true;
                }
                changed = self.wants.files.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due.files = true;
                }
                changed = self.wants.word.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    due.word = self.wants.word.borrow_and_update().then(Instant::now);
                }
                Some(told) = self.events.recv() => {
                    let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    if bucket.take(now) {
                        self.write_event(&fence, told).await;
                    }
                }
                () = sleep_until(wake.into_iter().chain(due.offer).chain(due.word).chain(look).min()) => {}
            }
        }
    }

    /// Says what stands under the assignment's key. A key that is not there says nothing. What cannot be believed is looked
    /// at again at the moment returned, for its signer may be known by then.
    async fn offer(&mut self, reader: &Reader, key: &[u8]) -> Option<Instant> {
        let kv = reader.snapshot().and_then(|cache| cache.keys.get(key).cloned())?;
        if self.believes.is_none() {
            let offered = Assignment::decode(&kv.value).map_err(|error| chain(&error));
            self.tell(News::Offered(offered.map(Arc::new))).await;
            return None;
        }
        match self.judge(&kv.value).await {
            Ok(Ok(assignment)) => {
                let signer = unweave(&kv.value).map(|(_, signature)| signature.signer());
                let known = self.believes.as_ref().map(|believes| &believes.published);
                if let Some(certificate) = signer.and_then(|signer| known?.get(&signer).cloned()) {
                    self.tell(News::Signed(kv.value.clone(), certificate)).await;
                }
                self.tell(News::Offered(Ok(Arc::new(assignment)))).await;
                None
            }
            Ok(Err(Doubt::Unreadable(why))) => {
                self.tell(News::Offered(Err(why))).await;
                None
            }
            Ok(Err(doubt)) => {
                self.metrics.doubted(doubt.word());
                self.tell(News::Doubted(chain(&doubt))).await;
                Some(Instant::now() + DOUBTED)
            }
            Err(error) => {
                self.complain(&sentence(&error));
                Some(Instant::now() + jitter(ASK_AGAIN, ASK_AGAIN * 2))
            }
        }
    }

    /// Asks the store itself what is assigned, and says it where the session lived then. What is not there, cannot be read or is
    /// not believed is no word. Answers when it is to be asked again.
    async fn hear_word(&mut self, session: &Session, key: &[u8]) -> Option<Instant> {
        let asked_ms = now_ms();
        let keys = [session.key().to_vec(), key.to_vec()];
        let mut found = match self.store.get_many(&keys).await {
            Ok(found) => found.value.into_iter(),
            Err(error) => {
                self.complain(&sentence(&error));
                return Some(Instant::now() + jitter(ASK_AGAIN, ASK_AGAIN * 2));
            }
        };
        let (own, assigned) = (found.next().flatten(), found.next().flatten());
        let lives = own.is_some_and(|own| own.create_revision == session.create_revision());
        if let Some(kv) = assigned.filter(|_| lives) {
            let read = if self.believes.is_none() {
                Assignment::decode(&kv.value).ok()
            } else {
                self.judge(&kv.value).await.ok().and_then(Result::ok)
            };
            if let Some(assignment) = read {
                self.tell(News::Word(asked_ms, Arc::new(assignment))).await;
            }
        }
        self.wants
            .word
            .borrow()
            .then(|| Instant::now() + jitter(ASK_AGAIN, ASK_AGAIN * 2))
    }

    /// Whether a controller signed these bytes for this node. A signer that is not known yet is asked for.
    async fn judge(&mut self, bytes: &[u8]) -> Result<Result<Assignment, Doubt>, StoreError> {
        let Some(Believes {
            trust: _,
            keyring,
            published: known,
        }) = &mut self.believes
        else {
            return Ok(Err(Doubt::NotSigned));
        };
        let node = &self.identity.node;
        let signer = match genuine(keyring, node, bytes, today()) {
            Err(Doubt::Unknown(signer)) => signer,
            told => return Ok(told),
        };
        let place = Key::Trust(TrustKey::Signer(signer.to_string()));
        let place = self.identity.root.key(&place);
        let Some(published) = self.store.get(place.as_bytes()).await?.value else {
            return Ok(Err(Doubt::Unknown(signer)));
        };
        let admitted = admit(keyring, signer, &published.value, today());
        if admitted.is_ok() {
            known.insert(signer, published.value);
        }
        Ok(admitted.and_then(|()| genuine(keyring, node, bytes, today())))
    }

    /// Brings specs in, and facts and report out. Says how long until there may be more to do.
    async fn write_out(&mut self, fence: &Fence, due: &mut Due) -> Result<Step, StoreError> {
        if due.specs {
            self.fetch_specs().await?;
            due.specs = false;
        }
        if due.files {
            self.fetch_files().await?;
            due.files = false;
        }
        if due.look <= Instant::now() {
            self.look_at_report().await?;
            due.facts = true;
            due.look = Instant::now() + jitter(LOOK_AGAIN / 2, LOOK_AGAIN);
        }
        let facts = self.wants.facts.borrow_and_update().clone();
        if let Some(facts) = facts.filter(|_| due.facts) {
            let key = self.key(&Key::Node(self.identity.node.clone()));
            let known = self.store.get(&key).await?.value;
            let value = facts.encode();
            if known.as_ref().is_none_or(|kv| kv.value != value) {
                let guard = known.map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision));
                if self.store.commit(Txn::new(fence).put(key, value, guard)).await? == Outcome::FenceLost {
                    return Ok(Step::Lost);
                }
            }
            due.facts = false;
        }
        self.write_report(fence).await
    }

    /// Whether its report still is the one it wrote; else it is written again.
    async fn look_at_report(&mut self) -> Result<(), StoreError> {
        let Written::Known { guard, .. } = &self.written else {
            return Ok(());
        };
        let key = self.key(&Key::Report(self.identity.node.clone()));
        let found = self.store.get(&key).await?.value;
        if !guard.holds(found.map(|kv| (kv.create_revision, kv.mod_revision))) {
            self.written = Written::Unknown;
        }
        Ok(())
    }

    async fn write_report(&mut self, fence: &Fence) -> Result<Step, StoreError> {
        let Some(report) = self.wants.report.borrow_and_update().clone() else {
            return Ok(Step::Done(None));
        };
        let key = self.key(&Key::Report(self.identity.node.clone()));
        if matches!(self.written, Written::Unknown) {
            let found = self.store.get(&key).await?.value;
            let guard = found
                .as_ref()
                .map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision));
            let known = found.and_then(|kv| Report::decode(&kv.value).ok().map(Box::new));
            self.written = Written::Known {
                report: known,
                guard,
                at: None,
            };
            if let Written::Known { report: None, .. } = &self.written {
                tracing::debug!("no report of this node in the store yet");
            }
        }
        let Written::Known {
            report: known,
            guard,
            at,
        } = &self.written
        else {
            return Ok(Step::Done(None));
        };
        let ago = at.map_or(Duration::MAX, |at| at.elapsed());
        match report::due(known.as_deref(), &report, ago) {
            None => return Ok(Step::Done(None)),
            Some(wait) if !wait.is_zero() => return Ok(Step::Done(Some(wait))),
            Some(_) => {}
        }
        let txn = Txn::new(fence).put(key, report.encode(), *guard);
        self.written = match self.store.commit(txn).await {
            Ok(Outcome::Committed { revision }) => {
                self.metrics.store_written();
                Written::Known {
                    report: Some(Box::new(Report::clone(&report))),
                    guard: Guard::Unchanged(revision),
                    at: Some(Instant::now()),
                }
            }
            Ok(Outcome::FenceLost) => return Ok(Step::Lost),
            Ok(Outcome::Conflict { .. }) => {
                self.written = Written::Unknown;
                return Ok(Step::Done(Some(report::BETWEEN_WRITES)));
            }
            Err(error) => {
                self.written = Written::Unknown;
                return Err(error);
            }
        };
        Ok(Step::Done(None))
    }

    async fn fetch_specs(&mut self) -> Result<(), StoreError> {
        let wanted = self.wants.specs.borrow_and_update().clone();
        for chunk in wanted.into_iter().collect::<Vec<_>>().chunks(64) {
            let keys: Vec<Vec<u8>> = chunk
                .iter()
                .map(|id| self.key(&Key::Accepted(id.resource.clone(), id.n)))
                .collect();
            let found = self.store.get_many(&keys).await?.value;
            for (id, kv) in chunk.iter().zip(found) {
                let bytes = match kv {
                    None => Err(format!(
                        "the store has no accepted record {} of {}: apply it again",
                        id.n, id.resource
                    )),
                    Some(kv) if Digest::of(&kv.value) != id.digest => Err(format!(
                        "the accepted record {} of {} in the store is not the one assigned: apply it again",
                        id.n, id.resource
                    )),
                    Some(kv) => Ok(kv.value),
                };
                self.tell(News::Spec(id.clone(), bytes)).await;
            }
        }
        Ok(())
    }

    async fn fetch_files(&mut self) -> Result<(), StoreError> {
        let wanted = self.wants.files.borrow_and_update().clone();
        for id in wanted {
            let content = self.fetch_file(&id).await?;
            self.tell(News::File(id, content)).await;
        }
        Ok(())
    }

    /// The content of one edition of a file. What cannot be had is told in a sentence with the remedy.
    async fn fetch_file(&self, id: &FileId) -> Result<Result<Vec<u8>, String>, StoreError> {
        let FileId { resource, edition } = id;
        let again = || format!("upload it again with `reeve upload FILE {}`", resource.name);
        let missing = |what: String| {
            Ok(Err(format!(
                "edition {} of file `{}` {what}: {}",
                edition.n,
                resource.name,
                again()
            )))
        };
        let key = self.key(&Key::Accepted(resource.clone(), edition.n));
        let Some(kv) = self.store.get(&key).await?.value else {
            return missing("is not in the store".to_owned());
        };
        let content = match Accepted::decode(&kv.value).map(|record| record.body) {
            Ok(AcceptedBody::ConfigFile(file)) => file.content.content().map_err(|error| chain(&error)),
            Ok(AcceptedBody::Service(_) | AcceptedBody::Node(_) | AcceptedBody::Deleted) => {
                Err("is no file".to_owned())
            }
            Err(error) => Err(format!("cannot be read ({})", chain(&error))),
        };
        let bytes = match content {
            Ok(Content::Inline(bytes)) => bytes,
            Ok(Content::Blob { digest, size }) => {
                match blob(&self.store, &self.identity.root, &digest, size.min(edition.size)).await? {
                    Ok(bytes) => bytes,
                    Err(part) => return missing(format!("lacks part {part} in the store")),
                }
            }
            Err(why) => return missing(why),
        };
        if FileDigest::of(&bytes) != edition.digest {
            return missing("has other content in the store than was accepted".to_owned());
        }
        Ok(Ok(bytes))
    }

    /// Writes an event, or drops it: events are for people, and the next one comes.
    async fn write_event(&mut self, fence: &Fence, (namespace, event): Told) {
        if let Err(error) = self.try_write_event(fence, &namespace, &event).await {
            tracing::debug!(error = chain(&error), "an event was dropped");
            if error.kind == StoreErrorKind::LeaseNotFound {
                self.leases.current = None;
            }
        }
    }

    async fn try_write_event(
        &mut self,
        fence: &Fence,
        namespace: &str,
        event: &records::Event,
    ) -> Result<(), StoreError> {
        let lease = match self.leases.current {
            Some((lease, since)) if since.elapsed() < LEASE_BUCKET => lease,
            Some(_) | None => {
                let lease = self.store.lease_grant(EVENT_TTL).await?.id;
                self.leases.current = Some((lease, Instant::now()));
                lease
            }
        };
        self.leases.count += 1;
        // The time first, so that a list of events is in order.
        let id = format!(
            "{namespace}/{}-{}-{}",
            event.time, self.identity.node, self.leases.count
        );
        let key = self.key(&Key::Event(id));
        let _ = self
            .store
            .commit(Txn::new(fence).put_leased(key, event.encode(), Guard::Absent, lease))
            .await?;
        self.metrics.store_written();
        Ok(())
    }
}

/// What is to be done once, and not again until it changes.
struct Due {
    facts: bool,
    specs: bool,
    files: bool,
    /// When what is offered is looked at again.
    offer: Option<Instant>,
    /// When what it wrote of itself is looked at again.
    look: Instant,
    /// When the store is asked what is assigned.
    word: Option<Instant>,
}

/// Reads the parts of a blob until there are `size` bytes; the number of the part that is missing otherwise. What is read
/// is to be checked against the digest.
async fn blob<S: Store>(
    store: &S,
    root: &Root,
    digest: &FileDigest,
    size: u64,
) -> Result<Result<Vec<u8>, u32>, StoreError> {
    let mut bytes = Vec::new();
    for part in 0..MAX_PARTS {
        if bytes.len() as u64 >= size {
            return Ok(Ok(bytes));
        }
        let key = root.key(&Key::Blob(*digest, part));
        match store.get(key.as_bytes()).await?.value {
            Some(kv) if !kv.value.is_empty() && bytes.len() as u64 + kv.value.len() as u64 <= MAX_FILE_BYTES => {
                bytes.extend_from_slice(&kv.value);
            }
            Some(_) | None => return Ok(Err(part)),
        }
    }
    Ok(Err(MAX_PARTS))
}

enum Step {
    Done(Option<Duration>),
    Lost,
}

/// Waits for other authorities, or more who are revoked, and takes them into force. What is in force stays so.
async fn retrusted(believes: &mut Option<Believes>) {
    let Some(Believes {
        trust,
        keyring,
        published: _,
    }) = believes
    else {
        return std::future::pending().await;
    };
    if trust.changed().await.is_err() {
        // Nobody is left who could change it.
        return std::future::pending().await;
    }
    let trust = Trust::clone(&trust.borrow_and_update());
    keyring.retrust(trust);
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => boottime::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Labels of a node: what its person gave, with the engine's words for system and architecture.
#[must_use]
pub fn labels(given: &BTreeMap<String, String>, os: &str, arch: &str) -> BTreeMap<String, String> {
    let mut labels = given.clone();
    labels.insert("reeve.os".to_owned(), os.to_owned());
    labels.insert("reeve.arch".to_owned(), arch.to_owned());
    labels
}
