//! From the store to what the planner may know: a [`Snapshot`] of one revision. The loop feeds an [`Observer`] with
//! each state of its cache, the CLI calls [`snapshot_from_listing`]; both see the same. Every value is decoded
//! defensively: what cannot be read is said in its place, what is not ours is noted, and nothing else is disturbed.
//!
//! The observer keeps what it decoded: a new state of the cache costs a walk over its keys and the decoding of those that
//! changed. The result never depends on the way there; a test compares it with a fresh one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use planner::cluster::{Memo, NodeEntry, Snapshot, Stored};
use runtime::{Cache, KeyMap, KeyValue, Listing, Position, Prefix};
use schemas::admit::admit_stored;
use schemas::keys::{Key, ResourceKey, Root, TrustKey};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{
    Ack, Assignment, Breaker, ClusterId, ClusterMarker, ConfigFileStatus, Cordon, Digest, Endpoints, NodeFacts,
    NodeStatus, Order, Peer, Policies, Record, Report, Sealed, ServiceStatus, SessionRecord, VerdictRecord,
    VirtualIpStatus,
};
use trust::key::Fingerprint;
use trust::sign::Signing;
use trust::validity::Time;

mod authors;
mod decode;
mod hold;

use authors::Authors;
pub(crate) use decode::chain;
use decode::{about, accepted, desired, network_policy, printable, remedied, stored, virtual_ip, why_foreign};
pub use hold::Hold;

/// What an unreadable breaker counts as: spent beyond any budget, so that removals wait until it is refilled.
const ALL_SPENT: u32 = 1_000_000;

/// A key under our prefix with something wrong: it is nothing of ours, or its record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyNote {
    /// The key, as text: what is not UTF-8 or not printable is escaped, and shortened to 200 characters.
    pub key: String,
    /// What is wrong with it, and what to do.
    pub why: String,
}

impl fmt::Display for KeyNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.why)
    }
}

/// Everything seen in one state of the store.
#[derive(Clone, Debug)]
pub struct Observed {
    /// For the planner.
    pub snapshot: Snapshot,
    /// Keys under our prefix that are nothing of ours, in order.
    pub foreign: Vec<KeyNote>,
    /// Records of ours that cannot be read, in order.
    pub unreadable: Vec<KeyNote>,
    /// Who leads, as the election key says.
    pub leader: Option<String>,
}

/// Takes one complete list of all keys under the root: what `reeve plan`, `get` and `status` work on.
///
/// # Errors
/// When the list is not that of a cluster this build may act on.
pub fn snapshot_from_listing(root: &Root, listing: &Listing) -> Result<Observed, Hold> {
    let mut observer = Observer::new(root.clone());
    let keys = listing.kvs.iter().map(|kv| Arc::new(kv.clone())).collect();
    let state = State {
        revision: listing.revision,
        cluster_id: listing.cluster_id,
        went_back: None,
        keys: KeyMap::from_unsorted(keys),
    };
    observer.observe(&state)?;
    let epoch = observer.stored_epoch;
    observer.set_epoch(epoch);
    let (foreign, unreadable) = (observer.foreign().collect(), observer.unreadable().collect());
    Ok(Observed {
        snapshot: observer.snapshot,
        foreign,
        unreadable,
        leader: observer.leader,
    })
}

/// The store at one revision, complete: a list, or a reflector's cache.
#[derive(Clone, Debug)]
pub struct State {
    /// The revision.
    pub revision: i64,
    /// Which store.
    pub cluster_id: u64,
    /// What the reflector saw of the store's going back: the latest place before that.
    pub went_back: Option<Position>,
    /// All keys under the root, events and the parts of files left out.
    pub keys: KeyMap,
}

impl From<&Cache> for State {
    fn from(cache: &Cache) -> Self {
        Self {
            revision: cache.revision,
            cluster_id: cache.cluster_id,
            went_back: cache.went_back,
            keys: cache.keys.clone(),
        }
    }
}

/// The newest place in the store's history that this process has seen.
#[derive(Clone, Debug)]
struct Watermark {
    store: u64,
    revision: i64,
    cluster: ClusterId,
    restore_epoch: u64,
}

/// Follows a cache and keeps its decoded form.
#[derive(Debug)]
pub struct Observer {
    root: Root,
    /// What the snapshot was made from.
    keys: KeyMap,
    marker: Option<Stored<ClusterMarker>>,
    snapshot: Snapshot,
    foreign: BTreeMap<Vec<u8>, String>,
    unreadable: BTreeMap<Vec<u8>, String>,
    leader: Option<String>,
    stored_epoch: i64,
    watermark: Option<Watermark>,
    /// The restore epoch under which the store went back; over when the marker's is higher.
    went_back: Option<(i64, u64)>,
    /// What the reflector saw of going back that a person has accepted since.
    accepted_back: Option<Position>,
    decoded: u64,
    /// Whose word assignments are, where they are signed.
    authors: Option<Authors>,
    /// What the last plan found out about values that are still in the snapshot.
    pub(crate) memo: Memo,
}

impl Observer {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let nobody = ClusterMarker {
            network: None,
            schema_version: Default::default(),
            id: ClusterId::from_random([0; 16]),
            restore_epoch: 0,
            moved: None,
            accepted_revision: None,
        };
        let snapshot = Snapshot {
            revision: 0,
            cluster: nobody,
            epoch: 0,
            complete: false,
            desired: BTreeMap::new(),
            accepted: BTreeMap::new(),
            nodes: BTreeMap::new(),
            service_statuses: BTreeMap::new(),
            node_statuses: BTreeMap::new(),
            file_statuses: BTreeMap::new(),
            secrets: BTreeMap::new(),
            peers: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            policies: BTreeMap::new(),
            network_policies: BTreeMap::new(),
            virtual_ips: BTreeMap::new(),
            virtual_ip_statuses: BTreeMap::new(),
            acks: BTreeMap::new(),
            breaker: Breaker::default(),
        };
        Self {
            root,
            keys: KeyMap::default(),
            marker: None,
            snapshot,
            foreign: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            leader: None,
            stored_epoch: 0,
            watermark: None,
            went_back: None,
            accepted_back: None,
            decoded: 0,
            authors: None,
            memo: Memo::default(),
        }
    }

    /// One that has seen nothing but where the store was: what replaces this one after a fault in a pass.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self {
            watermark: self.watermark.clone(),
            went_back: self.went_back,
            accepted_back: self.accepted_back,
            authors: self.authors.as_ref().map(Authors::fresh),
            ..Self::new(self.root.clone())
        }
    }

    /// From now on only assignments that a controller signed count, and ours are signed with this pen.
    pub fn sign(&mut self, signing: &Arc<Signing>, now: Time) {
        let Some(authors) = &mut self.authors else {
            self.authors = Some(Authors::new(Arc::clone(signing), now));
            // What was read until now was believed unseen.
            self.read_assignments_again(|_| true);
            return;
        };
        if authors.take(signing, now) {
            self.read_assignments_again(|_| true);
        }
    }

    /// With what assignments are signed; None where nothing is.
    #[must_use]
    pub fn signing(&self) -> Option<&Signing> {
        self.authors.as_ref().map(|authors| &*authors.signing)
    }

    /// Nodes whose stored assignments should be signed anew as they are.
    pub(crate) fn to_sign_again(&self) -> impl Iterator<Item = &NodeName> {
        self.authors.iter().flat_map(Authors::due)
    }

    /// Published signers that nobody needs any more.
    pub(crate) fn ended_signers(&self) -> impl Iterator<Item = &Fingerprint> {
        self.authors.iter().flat_map(Authors::ended)
    }

    /// Records are written once, and signed assignments name their bytes: what has become another since is nobody's word.
    fn doubt_altered_records(&mut self) {
        let Some(authors) = &mut self.authors else { return };
        for (resource, n) in authors.take_altered(&self.snapshot) {
            let history = self.snapshot.accepted.get_mut(&resource);
            if let Some(entry) = history.and_then(|history| history.records.get_mut(&n)) {
                entry.value = Err(authors::ALTERED.to_owned());
            }
            let key = self.root.key(&Key::Accepted(resource, n)).into_bytes();
            self.unreadable.insert(key, authors::ALTERED.to_owned());
        }
    }

    fn read_assignments_again(&mut self, of: impl Fn(&NodeName) -> bool) {
        let Ok(prefix) = Prefix::new(self.root.prefix("assignments")) else {
            return;
        };
        let again = |kv: &&Arc<KeyValue>| matches!(self.root.parse(&kv.key), Some(Key::Assignment(node)) if of(&node));
        let again: Vec<Arc<KeyValue>> = self.keys.under(&prefix).filter(again).cloned().collect();
        for kv in again {
            self.put_in(&kv);
        }
    }

    /// The store has been at this revision, as who wrote it knows: any state below is an older one.
    pub fn has_been_at(&mut self, revision: i64) {
        if let Some(seen) = &mut self.watermark {
            seen.revision = seen.revision.max(revision);
        }
    }

    /// Takes a newer state of the cache. Afterwards [`Observer::snapshot`] is of that revision, and complete.
    ///
    /// # Errors
    /// When nothing may be decided from this state. The decoded values are kept, and later states are taken as always.
    pub fn observe(&mut self, state: &State) -> Result<(), Hold> {
        self.snapshot.complete = false;
        let marker = self.marker_of(state);
        if let Some(Ok(new)) = marker.as_ref().map(|stored| &stored.value)
            && new.id != self.snapshot.cluster.id
        {
            // Records are checked against the cluster's id when they are decoded.
            *self = self.fresh();
            self.snapshot.cluster = new.clone();
        }
        let news = match &mut self.authors {
            Some(authors) => authors.admit(&self.root, &state.keys),
            None => false,
        };
        self.follow(&state.keys);
        if news {
            let unknown = self.authors.as_mut().map(Authors::take_unknown).unwrap_or_default();
            self.read_assignments_again(|node| unknown.contains(node));
        }
        self.doubt_altered_records();
        self.marker = marker;
        self.snapshot.revision = state.revision;
        let marker = self.judge(state)?;
        self.watermark = Some(Watermark {
            store: state.cluster_id,
            revision: state.revision,
            cluster: marker.id.clone(),
            restore_epoch: marker.restore_epoch,
        });
        self.went_back = None;
        self.snapshot.cluster = marker;
        self.snapshot.complete = true;
        Ok(())
    }

    /// The snapshot of the last state; for decisions only after `observe` succeeded.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Who reads the snapshot as a leader says under which epoch it writes.
    pub const fn set_epoch(&mut self, epoch: i64) {
        self.snapshot.epoch = epoch;
    }

    /// What the planner shall take as spent of the removal budget, in place of what is stored; the stored one is
    /// returned by [`Observer::stored_breaker`].
    pub const fn set_spent(&mut self, spent: u32) {
        self.snapshot.breaker.spent = spent;
    }

    /// The order of the last assignment that this leader made for each node.
    pub fn set_written(&mut self, written: &BTreeMap<NodeName, Order>) {
        for (node, order) in written {
            if let Some(entry) = self.snapshot.nodes.get_mut(node) {
                entry.written = *order;
            }
        }
    }

    /// The breaker as stored; `None` when it is not there or unreadable.
    #[must_use]
    pub fn stored_breaker(&self) -> Option<Breaker> {
        let kv = self.keys.get(self.root.key(&Key::Breaker).as_bytes())?;
        Breaker::decode(&kv.value).ok()
    }

    /// Where the keys stand.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// The state that the snapshot was made from.
    #[must_use]
    pub const fn keys(&self) -> &KeyMap {
        &self.keys
    }

    /// Who leads, as the election key says.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    /// Keys under the root that are nothing of ours.
    pub fn foreign(&self) -> impl Iterator<Item = KeyNote> + '_ {
        self.foreign.iter().map(|(key, why)| KeyNote {
            key: printable(key),
            why: why.clone(),
        })
    }

    /// How many foreign keys there are.
    #[must_use]
    pub fn foreign_count(&self) -> usize {
        self.foreign.len()
    }

    /// Records of ours that cannot be read.
    pub fn unreadable(&self) -> impl Iterator<Item = KeyNote> + '_ {
        self.unreadable.iter().map(|(key, why)| KeyNote {
            key: printable(key),
            why: why.clone(),
        })
    }

    /// How many records of ours cannot be read.
    #[must_use]
    pub fn unreadable_count(&self) -> usize {
        self.unreadable.len()
    }

    /// How many values were decoded so far.
    #[must_use]
    pub const fn decoded(&self) -> u64 {
        self.decoded
    }

    fn marker_of(&self, state: &State) -> Option<Stored<ClusterMarker>> {
        let kv = state.keys.get(self.root.key(&Key::Cluster).as_bytes())?;
        Some(stored(
            kv,
            ClusterMarker::decode(&kv.value).map_err(|error| chain(&error)),
        ))
    }

    /// Whether this state may be acted on.
    fn judge(&mut self, state: &State) -> Result<ClusterMarker, Hold> {
        let marker = match &self.marker {
            None => {
                return Err(Hold::NoCluster {
                    root: self.root.clone(),
                });
            }
            Some(Stored { value: Err(why), .. }) => return Err(Hold::MarkerUnreadable { why: why.clone() }),
            Some(Stored { value: Ok(marker), .. }) => marker.clone(),
        };
        if let Some(moved) = &marker.moved {
            return Err(Hold::Moved { to: moved.to.clone() });
        }
        if let Some(seen) = &self.watermark {
            if marker.id != seen.cluster {
                return Err(Hold::OtherCluster {
                    ours: seen.cluster.clone(),
                    found: marker.id,
                });
            }
            let lower = state.cluster_id != seen.store || state.revision < seen.revision;
            if lower || marker.restore_epoch < seen.restore_epoch {
                self.went_back.get_or_insert((seen.revision, seen.restore_epoch));
            }
        }
        // The reflector sees what falls between two looks of ours.
        if let Some(position) = state.went_back.filter(|position| self.accepted_back != Some(*position)) {
            let epoch = self
                .watermark
                .as_ref()
                .map_or(marker.restore_epoch, |seen| seen.restore_epoch);
            self.went_back.get_or_insert((position.revision, epoch));
        }
        match self.went_back {
            Some((seen, epoch)) if marker.restore_epoch <= epoch => Err(Hold::WentBack { seen, epoch }),
            // Either nothing is wrong, or a person has accepted the store as it is.
            Some(_) | None => {
                self.accepted_back = state.went_back;
                Ok(marker)
            }
        }
    }

    /// Brings the decoded values from the keys they were made from to these.
    fn follow(&mut self, keys: &KeyMap) {
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        let (mut old, mut new) = (self.keys.iter().peekable(), keys.iter().peekable());
        loop {
            match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(before), None) => {
                    gone.push(Arc::clone(before));
                    old.next();
                }
                (None, Some(now)) => {
                    changed.push(Arc::clone(now));
                    new.next();
                }
                (Some(before), Some(now)) if Arc::ptr_eq(before, now) => {
                    old.next();
                    new.next();
                }
                (Some(before), Some(now)) => match before.key.cmp(&now.key) {
                    std::cmp::Ordering::Less => {
                        gone.push(Arc::clone(before));
                        old.next();
                    }
                    std::cmp::Ordering::Greater => {
                        changed.push(Arc::clone(now));
                        new.next();
                    }
                    std::cmp::Ordering::Equal => {
                        // After a re-list every value is a new copy; after a restore, revisions can mean other values.
                        if before != now {
                            changed.push(Arc::clone(now));
                        }
                        old.next();
                        new.next();
                    }
                },
            }
        }
        drop((old, new));
        for kv in gone {
            self.take_out(&kv.key);
        }
        for kv in changed {
            self.put_in(&kv);
        }
        self.keys = keys.clone();
    }

    fn take_out(&mut self, key: &[u8]) {
        self.unreadable.remove(key);
        let Some(parsed) = self.root.parse(key) else {
            self.foreign.remove(key);
            return;
        };
        let snapshot = &mut self.snapshot;
        match parsed {
            Key::Cluster
            | Key::Event(_)
            | Key::Controller(_)
            | Key::Blob(..)
            | Key::Handed(_)
            | Key::Audit(..)
            | Key::Own(..)
            | Key::Join(_)
            | Key::Trust(_)
            | Key::Issued(..) => {}
            Key::Sealed(resource) => {
                snapshot.secrets.remove(&resource);
            }
            Key::Desired(resource) => {
                snapshot.network_policies.remove(&resource);
                snapshot.virtual_ips.remove(&resource);
                snapshot.desired.remove(&resource);
            }
            Key::Status(resource) => match resource.kind {
                Kind::Service => {
                    snapshot.service_statuses.remove(&resource);
                }
                Kind::Node => {
                    if let Ok(node) = resource.name.as_str().parse::<NodeName>() {
                        snapshot.node_statuses.remove(&node);
                    }
                    self.foreign.remove(key);
                }
                Kind::ConfigFile => {
                    snapshot.file_statuses.remove(&resource);
                }
                Kind::VirtualIP => {
                    snapshot.virtual_ip_statuses.remove(&resource);
                }
                Kind::Registry | Kind::Secret | Kind::Command | Kind::NetworkPolicy => {}
            },
            Key::Accepted(resource, n) => {
                if let Some(history) = snapshot.accepted.get_mut(&resource) {
                    history.records.remove(&n);
                    if history.records.is_empty() {
                        snapshot.accepted.remove(&resource);
                    }
                }
            }
            Key::Peer(node) => {
                snapshot.peers.remove(&node);
            }
            Key::Endpoints(resource) => {
                snapshot.endpoints.remove(&resource);
            }
            Key::Policies(namespace) => {
                snapshot.policies.remove(&namespace);
            }
            Key::Ack(text) => {
                if let Ok(digest) = text.parse::<Digest>() {
                    snapshot.acks.remove(&digest);
                }
            }
            Key::Breaker => snapshot.breaker = Breaker::default(),
            Key::Election => (self.leader, self.stored_epoch) = (None, 0),
            Key::Assignment(node) => {
                if let Some(authors) = &mut self.authors {
                    authors.forget(&node);
                }
                self.node(node, |entry| entry.assignment = None);
            }
            Key::Verdict(node) => self.node(node, |entry| entry.verdict = None),
            Key::Cordon(node) => self.node(node, |entry| entry.cordon = None),
            Key::Node(node) => self.node(node, |entry| entry.facts = None),
            Key::Report(node) => self.node(node, |entry| entry.report = None),
            Key::Session(node) => self.node(node, |entry| entry.session = None),
        }
    }

    fn put_in(&mut self, kv: &KeyValue) {
        let Some(parsed) = self.root.parse(&kv.key) else {
            self.foreign.insert(kv.key.clone(), why_foreign(&self.root, &kv.key));
            return;
        };
        self.decoded += 1;
        self.unreadable.remove(&kv.key);
        let cluster = self.snapshot.cluster.id.clone();
        let why = match parsed {
            Key::Cluster
            | Key::Event(_)
            | Key::Controller(_)
            | Key::Blob(..)
            | Key::Handed(_)
            | Key::Audit(..)
            | Key::Own(..)
            | Key::Join(_)
            | Key::Trust(TrustKey::Authorities(_) | TrustKey::Revoked)
            | Key::Issued(..) => None,
            Key::Trust(TrustKey::Signer(name)) => authors::signer(&name, kv)
                .err()
                .map(|why| format!("{why}; delete the key, controllers write theirs anew")),
            Key::Sealed(resource) => self.put_sealed(resource, kv),
            // Nothing runs by them: `vault.rs` reads a registry, people a secret's document, agents a command, and the planner none.
            Key::Desired(resource) if matches!(resource.kind, Kind::Registry | Kind::Secret | Kind::Command) => {
                let problems = admit_stored(&resource, &kv.value).err();
                problems.and_then(|problems| problems.problems.first().map(ToString::to_string))
            }
            Key::Desired(resource) if resource.kind == Kind::NetworkPolicy => {
                let (policy, why) = network_policy(&resource, kv);
                self.snapshot.network_policies.insert(resource, policy);
                why
            }
            Key::Desired(resource) if resource.kind == Kind::VirtualIP => {
                let declared = virtual_ip(&resource, kv);
                self.snapshot.virtual_ips.insert(resource, declared);
                None
            }
            Key::Desired(resource) => {
                let entry = desired(&resource, kv);
                self.snapshot.desired.insert(resource, entry);
                None
            }
            Key::Status(resource) => self.put_status(resource, kv),
            Key::Accepted(resource, n) => {
                let entry = accepted(&resource, n, kv);
                if let Some(authors) = &mut self.authors {
                    let overwritten = kv.create_revision != kv.mod_revision;
                    authors.accepted.insert((resource.clone(), n), overwritten);
                }
                let why = entry.value.as_ref().err().cloned();
                self.snapshot
                    .accepted
                    .entry(resource)
                    .or_default()
                    .records
                    .insert(n, entry);
                why
            }
            Key::Peer(node) => {
                let value = about(
                    Peer::decode(&kv.value),
                    |peer| (&peer.cluster, &peer.node),
                    &cluster,
                    &node,
                );
                let value = remedied(value, "it is written anew").map(Arc::new);
                let why = value.as_ref().err().cloned();
                self.snapshot.peers.insert(node, stored(kv, value));
                why
            }
            Key::Endpoints(resource) => {
                let value = Endpoints::decode(&kv.value).map_err(|error| chain(&error));
                let value = value.and_then(|record| {
                    let ours = record.cluster == cluster;
                    let other = || {
                        format!(
                            "read the endpoints: they are of cluster {}, this is {cluster}",
                            record.cluster
                        )
                    };
                    if ours { Ok(record) } else { Err(other()) }
                });
                let value = remedied(value, "they are written anew").map(Arc::new);
                let why = value.as_ref().err().cloned();
                self.snapshot.endpoints.insert(resource, stored(kv, value));
                why
            }
            Key::Policies(namespace) => {
                let value = Policies::decode(&kv.value).map_err(|error| chain(&error));
                let value = value.and_then(|record| {
                    let ours = record.cluster == cluster;
                    let other = || {
                        format!(
                            "read the network policies: they are of cluster {}, this is {cluster}",
                            record.cluster
                        )
                    };
                    if ours { Ok(record) } else { Err(other()) }
                });
                let value = remedied(value, "they are written anew").map(Arc::new);
                let why = value.as_ref().err().cloned();
                self.snapshot.policies.insert(namespace, stored(kv, value));
                why
            }
            Key::Ack(text) => self.put_ack(&text, kv),
            Key::Breaker => match Breaker::decode(&kv.value) {
                Ok(breaker) => {
                    self.snapshot.breaker = breaker;
                    None
                }
                Err(error) => {
                    self.snapshot.breaker = Breaker {
                        spent: ALL_SPENT,
                        ..Breaker::default()
                    };
                    Some(format!("{}; it is written anew", chain(&error)))
                }
            },
            Key::Election => {
                self.stored_epoch = kv.create_revision;
                let holder: Option<runtime::leader::Holder> = serde_json::from_slice(&kv.value).ok();
                self.leader =
                    Some(holder.map_or_else(|| "unknown".to_owned(), |h| h.holder.chars().take(300).collect()));
                None
            }
            Key::Assignment(node) => {
                let genuine = match &mut self.authors {
                    Some(authors) => authors.judge(&node, &kv.value),
                    None => Ok(()),
                };
                let value = genuine.and_then(|()| {
                    about(
                        Assignment::decode(&kv.value),
                        |a| (&a.cluster, &a.node),
                        &cluster,
                        &node,
                    )
                });
                let value = remedied(value, "it is held, and written anew from its report").map(Arc::new);
                let entry = self.snapshot.nodes.get(&node);
                let before = entry.and_then(|entry| entry.assignment.as_ref());
                let (value, why) = match &mut self.authors {
                    Some(authors) => authors.over(&node, before, kv.mod_revision, value),
                    None => {
                        let why = value.as_ref().err().cloned();
                        (value, why)
                    }
                };
                self.node(node, |entry| entry.assignment = Some(stored(kv, value)));
                why
            }
            Key::Report(node) => {
                let value = about(Report::decode(&kv.value), |r| (&r.cluster, &r.node), &cluster, &node);
                let value = remedied(
                    value,
                    "its agent writes it anew with its next change; check the agent's version",
                );
                let why = value.as_ref().err().cloned();
                self.node(node, |entry| entry.report = Some(stored(kv, value.map(Arc::new))));
                why
            }
            Key::Node(node) => {
                let value = about(NodeFacts::decode(&kv.value), |f| (&f.cluster, &f.node), &cluster, &node);
                let value = remedied(value, "restart the node's agent, which writes it anew");
                let why = value.as_ref().err().cloned();
                self.node(node, |entry| entry.facts = Some(stored(kv, value)));
                why
            }
            Key::Session(node) => {
                let value = about(
                    SessionRecord::decode(&kv.value),
                    |s| (&s.cluster, &s.node),
                    &cluster,
                    &node,
                );
                let value = remedied(value, "delete the key; the node's agent opens it again");
                let why = value.as_ref().err().cloned();
                // One without a lease would never end: it is no word of an agent's.
                let leased = kv.lease != 0;
                self.node(node, |entry| entry.session = leased.then(|| stored(kv, value)));
                let unleased = || Some("it hangs on no lease, so no agent keeps it; delete the key".to_owned());
                if leased { why } else { unleased() }
            }
            Key::Verdict(node) => {
                let value = remedied(
                    VerdictRecord::decode(&kv.value).map_err(|error| chain(&error)),
                    "it is written anew",
                );
                let why = value.as_ref().err().cloned();
                self.node(node, |entry| entry.verdict = Some(stored(kv, value)));
                why
            }
            Key::Cordon(node) => {
                let value = Cordon::decode(&kv.value).map_err(|error| chain(&error));
                let value = remedied(value, "set it again with `reeve cordon`, `drain` or `uncordon`");
                let why = value.as_ref().err().cloned();
                self.node(node, |entry| entry.cordon = Some(stored(kv, value)));
                why
            }
        };
        if let Some(why) = why {
            self.unreadable.insert(kv.key.clone(), why);
        }
    }

    fn put_status(&mut self, resource: ResourceKey, kv: &KeyValue) -> Option<String> {
        match resource.kind {
            Kind::Service => {
                let value = remedied(
                    ServiceStatus::decode(&kv.value).map_err(|error| chain(&error)),
                    "it is written anew",
                );
                let why = value.as_ref().err().cloned();
                self.snapshot
                    .service_statuses
                    .insert(resource, stored(kv, value.map(Arc::new)));
                why
            }
            Kind::Node => {
                let Ok(node) = resource.name.as_str().parse::<NodeName>() else {
                    let why = "no node has such a name; delete the key".to_owned();
                    self.foreign.insert(kv.key.clone(), why);
                    return None;
                };
                let value = remedied(
                    NodeStatus::decode(&kv.value).map_err(|error| chain(&error)),
                    "it is written anew",
                );
                let why = value.as_ref().err().cloned();
                self.snapshot
                    .node_statuses
                    .insert(node, stored(kv, value.map(Arc::new)));
                why
            }
            Kind::ConfigFile => {
                let value = remedied(
                    ConfigFileStatus::decode(&kv.value).map_err(|error| chain(&error)),
                    "it is written anew",
                );
                let why = value.as_ref().err().cloned();
                self.snapshot
                    .file_statuses
                    .insert(resource, stored(kv, value.map(Arc::new)));
                why
            }
            Kind::VirtualIP => {
                let value = remedied(
                    VirtualIpStatus::decode(&kv.value).map_err(|error| chain(&error)),
                    "it is written anew",
                );
                let why = value.as_ref().err().cloned();
                self.snapshot
                    .virtual_ip_statuses
                    .insert(resource, stored(kv, value.map(Arc::new)));
                why
            }
            Kind::Registry | Kind::Secret | Kind::Command | Kind::NetworkPolicy => None,
        }
    }

    /// Of a secret's sealed values, which edition is in force.
    fn put_sealed(&mut self, resource: ResourceKey, kv: &KeyValue) -> Option<String> {
        if resource.kind != Kind::Secret {
            return None;
        }
        self.snapshot.secrets.remove(&resource);
        let set = format!("set it again with `reeve secret set {}`", resource.name);
        match Sealed::decode(&kv.value) {
            Ok(sealed) => match sealed.in_force() {
                Some((edition, _)) => {
                    self.snapshot.secrets.insert(resource, edition);
                    None
                }
                None => Some(format!("it has no edition in force; {set}")),
            },
            Err(error) => Some(format!("{}; {set}", chain(&error))),
        }
    }

    fn put_ack(&mut self, text: &str, kv: &KeyValue) -> Option<String> {
        let remedy = "delete the key, and acknowledge again with `reeve admin ack`";
        let Ok(digest) = text.parse::<Digest>() else {
            return Some(format!("its name is not the digest of a set of removals; {remedy}"));
        };
        // An ack that was good before must not stay in force when its value is overwritten.
        self.snapshot.acks.remove(&digest);
        match Ack::decode(&kv.value) {
            Ok(ack) if ack.digest == digest => {
                self.snapshot.acks.insert(digest, ack);
                None
            }
            Ok(_) => Some(format!("it is about another set of removals than its key; {remedy}")),
            Err(error) => Some(format!("{}; {remedy}", chain(&error))),
        }
    }

    fn node(&mut self, node: NodeName, change: impl FnOnce(&mut NodeEntry)) {
        let entry = self.snapshot.nodes.entry(node.clone()).or_default();
        change(entry);
        let NodeEntry {
            facts,
            session,
            verdict,
            cordon,
            assignment,
            report,
            written: _,
        } = entry;
        let nothing = facts.is_none()
            && session.is_none()
            && verdict.is_none()
            && cordon.is_none()
            && assignment.is_none()
            && report.is_none();
        if nothing {
            self.snapshot.nodes.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests;
