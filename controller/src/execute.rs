//! From a [`Plan`] to the store, and nothing decided on the way: [`prepare`] lists the fenced transactions of a pass,
//! pure; [`Batch::commit`] sends them in an order that is safe to break off anywhere.
//!
//! Every transaction compares the leader's key, the cluster's marker, and the revision of what it overwrites. First goes
//! the certificate that signs, then what removals spend of their budget, then accepted records, then assignments (one transaction per node, with what its
//! removals rest on), then what is for people, then what is forgotten. A small pass sends the first three as one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use planner::cluster::{AcceptedWrite, AssignmentWrite, Guard as Rests, Plan, Snapshot, Status};
use runtime::{Fence, Guard, KeyMap, Outcome, Store, StoreError, Txn};
use schemas::keys::{Key, ResourceKey, Root, TrustKey};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{
    Accepted, AcceptedBody, Assigned, Assignment, Breaker, Condition, Record, Verdict, VerdictRecord,
};
use trust::sign::{Domain, weave};

use crate::observe::Observer;

/// The most facts that the removals of one assignment may rest on; the rest waits for the next pass. A transaction has
/// at most 127 compares, some of them for the fence, the marker and the assignment itself.
const MAX_GUARDS: usize = 100;
/// A pass of at most so many writes, and so many bytes, sends them as one transaction: one commit of the store instead of
/// two between a manifest and its containers.
const SMALL_WRITES: usize = 16;
const SMALL_BYTES: usize = 256 << 10;

/// What a write is about; a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Certificates of those who sign assignments.
    Signer,
    /// The removal budget.
    Breaker,
    /// Accepted specs and deletions, and the deletion of old ones.
    Accepted,
    /// Nodes' assignments.
    Assignment,
    /// Statuses of resources and nodes.
    Status,
    /// What is published of the cluster's network.
    Network,
    /// Nodes' verdicts.
    Verdict,
    /// Acknowledgements that are used up.
    Ack,
    /// All keys of a node that is gone.
    Node,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Signer,
        Self::Breaker,
        Self::Accepted,
        Self::Assignment,
        Self::Status,
        Self::Network,
        Self::Verdict,
        Self::Ack,
        Self::Node,
    ];

    /// As the metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signer => "signer",
            Self::Breaker => "breaker",
            Self::Accepted => "accepted",
            Self::Assignment => "assignment",
            Self::Status => "status",
            Self::Network => "network",
            Self::Verdict => "verdict",
            Self::Ack => "ack",
            Self::Node => "node",
        }
    }
}

/// One transaction of a pass, before it is fenced.
#[derive(Clone, Debug)]
struct Step {
    class: Class,
    requires: Vec<(String, Guard)>,
    /// A key, its new value (none deletes it), and what it must be now.
    writes: Vec<(String, Option<Bytes>, Guard)>,
    /// The accepted record it creates.
    creates: Option<(ResourceKey, u64)>,
    /// The accepted records of this pass that it refers to: it is left out when one of them is not created.
    refers: Vec<(ResourceKey, u64)>,
    /// Whether it removes instances, and so spends what the breaker grants.
    removes: bool,
}

/// All writes of one pass.
#[derive(Clone, Debug)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    fence: Fence,
    /// The marker's key, and how it was seen: required by every transaction.
    marker: (String, Guard),
    /// Before everything that they vouch for.
    signers: Vec<Step>,
    budget: Vec<Step>,
    accepted: Vec<Step>,
    assignments: Vec<Step>,
    /// What people read, and what is forgotten.
    rest: Vec<Step>,
    /// Something was left for the next pass, which is due at once.
    pub unfinished: bool,
}

/// How a batch ended.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The highest revision at which something of it was written: no pass before the cache has reached it.
    pub revision: Option<i64>,
    /// Writes by class and outcome: `committed`, `conflict`, `failed`, `fenced`, `refused`.
    pub counts: BTreeMap<(Class, &'static str), u64>,
    /// The leadership is lost.
    pub fence_lost: bool,
    /// Something was found otherwise than the plan assumed: plan again.
    pub conflicts: usize,
    /// The first failure of the store: what comes after it was not sent.
    pub error: Option<StoreError>,
    /// Writes that no store would take, such as an assignment over 1 MiB. They hurt themselves only.
    pub refused: Vec<StoreError>,
    /// Removals are in force, or may be: what the plan spends is spent.
    pub removed: bool,
}

/// What all transactions of a pass are made of.
pub struct Base<'a> {
    observer: &'a Observer,
    root: &'a Root,
    keys: &'a KeyMap,
    fence: &'a Fence,
}

impl<'a> Base<'a> {
    /// Of the state that an observer has seen.
    #[must_use]
    pub const fn new(observer: &'a Observer, fence: &'a Fence) -> Self {
        Self {
            observer,
            root: observer.root(),
            keys: observer.keys(),
            fence,
        }
    }

    fn batch(&self) -> Batch {
        Batch {
            fence: self.fence.clone(),
            marker: self.as_seen(&Key::Cluster),
            signers: Vec::new(),
            budget: Vec::new(),
            accepted: Vec::new(),
            assignments: Vec::new(),
            rest: Vec::new(),
            unfinished: false,
        }
    }

    /// A key, and the demand that it is still as it was seen.
    fn as_seen(&self, key: &Key) -> (String, Guard) {
        let key = self.root.key(key);
        let guard = self
            .keys
            .get(key.as_bytes())
            .map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision));
        (key, guard)
    }

    /// An assignment as it is stored: signed, where controllers sign.
    fn document(&self, assignment: &Assignment) -> Vec<u8> {
        let document = assignment.encode();
        let Some(signing) = self.observer.signing() else {
            return document;
        };
        let signature = signing
            .pen
            .sign(Domain::assignment(assignment.node.as_str()), &document);
        weave(document, &signature)
    }

    /// Our own certificate, where it is not published yet.
    fn own_signer(&self) -> Option<Step> {
        let certificate = self.observer.signing()?.pen.certificate();
        let key = Key::Trust(TrustKey::Signer(certificate.fingerprint().to_string()));
        let value = certificate.to_pem().into_bytes();
        let stored = self.keys.get(self.root.key(&key).as_bytes());
        let is_there = stored.is_some_and(|kv| kv.value == value);
        (!is_there).then(|| self.put(Class::Signer, &key, value))
    }

    /// The step that writes one key, if it is as it was seen.
    fn put(&self, class: Class, key: &Key, value: Vec<u8>) -> Step {
        let (key, guard) = self.as_seen(key);
        let mut step = Step::new(class);
        step.writes.push((key, Some(value.into()), guard));
        step
    }

    /// The step that deletes those of the keys that were seen; none if there is none.
    fn delete(&self, class: Class, keys: &[Key]) -> Option<Step> {
        let mut step = Step::new(class);
        let seen = keys
            .iter()
            .map(|key| self.as_seen(key))
            .filter(|(_, guard)| *guard != Guard::Absent);
        step.writes.extend(seen.map(|(key, guard)| (key, None, guard)));
        (!step.writes.is_empty()).then_some(step)
    }

    fn rests_on(&self, step: &mut Step, rests: &Rests) {
        let (key, guard) = match rests {
            Rests::DesiredAbsent(key) => (Key::Desired(key.clone()), Guard::Absent),
            Rests::DesiredAt { key, mod_revision } => (Key::Desired(key.clone()), Guard::Unchanged(*mod_revision)),
            Rests::CordonAt { node, mod_revision } => (Key::Cordon(node.clone()), Guard::Unchanged(*mod_revision)),
            Rests::SessionAbsent(node) => (Key::Session(node.clone()), Guard::Absent),
            Rests::SessionAt { node, create_revision } => {
                (Key::Session(node.clone()), Guard::CreatedAt(*create_revision))
            }
        };
        step.requires.push((self.root.key(&key), guard));
    }
}

/// The writes of new verdicts, and of nodes that are forgotten in full.
pub fn prepare_verdicts(base: &Base<'_>, writes: &[(NodeName, VerdictRecord)], forget: &[NodeName]) -> Batch {
    let mut batch = base.batch();
    for (node, record) in writes {
        let mut step = base.put(Class::Verdict, &Key::Verdict(node.clone()), record.encode());
        // What a person says of a node is about the verdict that he saw.
        step.requires.push(base.as_seen(&Key::Cordon(node.clone())));
        if record.verdict == Verdict::Lost {
            base.rests_on(&mut step, &Rests::SessionAbsent(node.clone()));
        }
        batch.rest.push(step);
    }
    for node in forget {
        let keys = [Key::Node, Key::Report, Key::Assignment, Key::Verdict, Key::Cordon].map(|key| key(node.clone()));
        if let Some(mut step) = base.delete(Class::Node, &keys) {
            base.rests_on(&mut step, &Rests::SessionAbsent(node.clone()));
            batch.rest.push(step);
        }
    }
    batch
}

/// The writes that bring the store to what a plan says. `now` is the leader's time for people, RFC 3339 in UTC.
/// Only what differs is written: an empty batch is what a steady state gives.
pub fn prepare(base: &Base<'_>, snapshot: &Snapshot, plan: &Plan, now: &str) -> Batch {
    let mut batch = base.batch();
    let stored_breaker = base.keys.get(base.root.key(&Key::Breaker).as_bytes());
    let breaker = plan.breaker.encode();
    let is_default = plan.breaker == Breaker::default();
    if stored_breaker.map_or(!is_default, |kv| kv.value != breaker) {
        batch.budget.push(base.put(Class::Breaker, &Key::Breaker, breaker));
    }
    let created: BTreeSet<(&ResourceKey, u64)> =
        plan.accepted.iter().map(|write| (&write.key, write.record.n)).collect();
    for AcceptedWrite { key, record, guard } in &plan.accepted {
        let mut step = Step::new(Class::Accepted);
        base.rests_on(&mut step, guard);
        let path = base.root.key(&Key::Accepted(key.clone(), record.n));
        step.writes.push((path, Some(record.encode().into()), Guard::Absent));
        step.creates = Some((key.clone(), record.n));
        step.refers = files_of(key, record)
            .filter(|(key, n)| created.contains(&(key, *n)))
            .collect();
        batch.accepted.push(step);
    }
    batch.signers.extend(base.own_signer());
    for write in &plan.assignments {
        let (mut step, whole) = assignment(base, snapshot, write, &created);
        batch.unfinished |= !whole;
        // With what they rest on, and with their statuses: of two grants of one address only one comes into force.
        for fact in &write.grants {
            base.rests_on(&mut step, fact);
        }
        for key in &write.granted {
            let status = plan.statuses.get(key);
            match status.and_then(|status| status_step(base, snapshot, key, status, now)) {
                Some(told) => step.writes.extend(told.writes),
                None => step.requires.push(base.as_seen(&Key::Status(key.clone()))),
            }
        }
        batch.assignments.push(step);
    }
    let written: BTreeSet<&NodeName> = plan.assignments.iter().map(|write| &write.assignment.node).collect();
    for node in base.observer.to_sign_again().filter(|node| !written.contains(node)) {
        let stored = snapshot.nodes.get(node).and_then(|entry| entry.assignment.as_ref());
        if let Some(Ok(same)) = stored.map(|stored| &stored.value) {
            let value = base.document(same);
            batch
                .assignments
                .push(base.put(Class::Assignment, &Key::Assignment(node.clone()), value));
        }
    }
    // Peers before names: who can be asked for can be reached.
    for (node, peer) in &plan.network.peers {
        let key = Key::Peer(node.clone());
        match peer {
            Some(peer) => batch.rest.push(base.put(Class::Network, &key, peer.encode())),
            None => batch.rest.extend(base.delete(Class::Network, &[key])),
        }
    }
    for (resource, endpoints) in &plan.network.endpoints {
        let key = Key::Endpoints(resource.clone());
        match endpoints {
            Some(endpoints) => batch.rest.push(base.put(Class::Network, &key, endpoints.encode())),
            None => batch.rest.extend(base.delete(Class::Network, &[key])),
        }
    }
    for (namespace, policies) in &plan.network.policies {
        let key = Key::Policies(namespace.clone());
        match policies {
            Some(policies) => batch.rest.push(base.put(Class::Network, &key, policies.encode())),
            None => batch.rest.extend(base.delete(Class::Network, &[key])),
        }
    }
    let granted: BTreeSet<&ResourceKey> = plan.assignments.iter().flat_map(|write| &write.granted).collect();
    for (key, status) in plan.statuses.iter().filter(|(key, _)| !granted.contains(key)) {
        batch.rest.extend(status_step(base, snapshot, key, status, now));
    }
    let forgotten = plan.ended.iter().map(|key| (Class::Status, Key::Status(key.clone())));
    let forgotten = forgotten.chain(
        base.observer
            .ended_signers()
            .map(|signer| (Class::Signer, Key::Trust(TrustKey::Signer(signer.to_string())))),
    );
    let forgotten = forgotten.chain(
        plan.spent_acks
            .iter()
            .map(|digest| (Class::Ack, Key::Ack(digest.to_string()))),
    );
    let forgotten = forgotten.chain(
        plan.forgotten
            .iter()
            .map(|(key, n)| (Class::Accepted, Key::Accepted(key.clone(), *n))),
    );
    batch
        .rest
        .extend(forgotten.filter_map(|(class, key)| base.delete(class, &[key])));
    batch
}

/// The editions that an accepted service mounts.
fn files_of<'a>(key: &'a ResourceKey, record: &'a Accepted) -> impl Iterator<Item = (ResourceKey, u64)> + 'a {
    let files = match &record.body {
        AcceptedBody::Service(spec) => &spec.container.files[..],
        AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => &[],
    };
    files.iter().filter_map(|mount| {
        let file = ResourceKey {
            namespace: key.namespace.clone(),
            kind: Kind::ConfigFile,
            name: mount.file.clone(),
        };
        Some((file, mount.edition.as_ref()?.n))
    })
}

/// One node's assignment; and whether it is all of what was planned for it.
fn assignment(
    base: &Base<'_>,
    snapshot: &Snapshot,
    write: &AssignmentWrite,
    created: &BTreeSet<(&ResourceKey, u64)>,
) -> (Step, bool) {
    let AssignmentWrite {
        assignment,
        stored_mod_revision,
        guards,
        grants,
        granted,
    } = write;
    let guards: BTreeSet<&Rests> = guards.iter().collect();
    let stored = snapshot
        .nodes
        .get(&assignment.node)
        .and_then(|node| node.assignment.as_ref());
    let stored = stored.and_then(|stored| stored.value.as_ref().ok());
    let (kept, left) = split(&guards, MAX_GUARDS.saturating_sub(grants.len() + granted.len()));
    let whole = left.is_empty();
    let reduced = if whole {
        None
    } else {
        Some(without(assignment, stored.map(|a| a.as_ref()), &left))
    };
    let assignment = reduced.as_ref().unwrap_or(assignment);

    let mut step = Step::new(Class::Assignment);
    for guard in &kept {
        base.rests_on(&mut step, guard);
    }
    let path = base.root.key(&Key::Assignment(assignment.node.clone()));
    let guard = if *stored_mod_revision == 0 {
        Guard::Absent
    } else {
        Guard::Unchanged(*stored_mod_revision)
    };
    step.writes.push((path, Some(base.document(assignment).into()), guard));
    step.removes = !kept.is_empty();
    if !created.is_empty() {
        let refers = assignment
            .instances
            .iter()
            .map(|instance| (resource(instance), instance.n));
        let refers: BTreeSet<(ResourceKey, u64)> = refers.filter(|(key, n)| created.contains(&(key, *n))).collect();
        step.refers = refers.into_iter().collect();
    }
    (step, whole)
}

/// The facts that fit in one transaction, and the resources whose facts do not.
fn split<'a>(guards: &BTreeSet<&'a Rests>, most: usize) -> (Vec<&'a Rests>, BTreeSet<&'a ResourceKey>) {
    let about = |guard: &'a Rests| match guard {
        Rests::DesiredAbsent(key) | Rests::DesiredAt { key, mod_revision: _ } => Some(key),
        Rests::CordonAt { .. } | Rests::SessionAbsent(_) | Rests::SessionAt { .. } => None,
    };
    let mut kept: Vec<&Rests> = guards.iter().copied().filter(|guard| about(guard).is_none()).collect();
    let mut left = BTreeSet::new();
    let mut resources = BTreeSet::new();
    for guard in guards.iter().copied() {
        let Some(key) = about(guard) else { continue };
        if left.contains(key) || (kept.len() >= most && !resources.contains(key)) {
            left.insert(key);
        } else {
            resources.insert(key);
            kept.push(guard);
        }
    }
    (kept, left)
}

/// An assignment in which the instances of some resources stay as they are stored.
fn without(assignment: &Assignment, stored: Option<&Assignment>, left: &BTreeSet<&ResourceKey>) -> Assignment {
    let stays = |instance: &&Assigned| left.contains(&resource(instance));
    let mut instances: Vec<Assigned> = assignment.instances.iter().filter(|i| !stays(i)).cloned().collect();
    instances.extend(
        stored
            .iter()
            .flat_map(|stored| stored.instances.iter())
            .filter(stays)
            .cloned(),
    );
    instances.sort_by(|a, b| {
        (&a.namespace, &a.workload, &a.slot, &a.uid).cmp(&(&b.namespace, &b.workload, &b.slot, &b.uid))
    });
    Assignment {
        instances,
        ..assignment.clone()
    }
}

fn resource(instance: &Assigned) -> ResourceKey {
    ResourceKey {
        namespace: Some(instance.namespace.clone()),
        kind: instance.kind,
        name: instance.workload.clone(),
    }
}

/// The write of one status, if it differs from the stored one in more than `since`.
fn status_step(base: &Base<'_>, snapshot: &Snapshot, key: &ResourceKey, status: &Status, now: &str) -> Option<Step> {
    if status.is_stored(key, snapshot) {
        return None;
    }
    let value = match status {
        Status::Service(status) => {
            let old = snapshot
                .service_statuses
                .get(key)
                .and_then(|stored| stored.value.as_ref().ok());
            let mut new = status.as_ref().clone();
            carry_since(&mut new.conditions, old.map(|old| old.conditions.as_slice()), now);
            new.encode()
        }
        Status::Node(status) => {
            let node = key.name.as_str().parse::<NodeName>().ok()?;
            let old = snapshot
                .node_statuses
                .get(&node)
                .and_then(|stored| stored.value.as_ref().ok());
            let mut new = status.as_ref().clone();
            carry_since(&mut new.conditions, old.map(|old| old.conditions.as_slice()), now);
            new.encode()
        }
        Status::ConfigFile(status) => {
            let old = snapshot
                .file_statuses
                .get(key)
                .and_then(|stored| stored.value.as_ref().ok());
            let mut new = status.as_ref().clone();
            carry_since(&mut new.conditions, old.map(|old| old.conditions.as_slice()), now);
            new.encode()
        }
        Status::VirtualIp(status) => {
            let old = snapshot.virtual_ip_statuses.get(key);
            let old = old.and_then(|stored| stored.value.as_ref().ok());
            // Another holder has held it since now.
            let old = old.filter(|old| (&old.node, old.session) == (&status.node, status.session));
            let mut new = status.as_ref().clone();
            carry_since(&mut new.conditions, old.map(|old| old.conditions.as_slice()), now);
            new.encode()
        }
    };
    Some(base.put(Class::Status, &Key::Status(key.clone()), value))
}

/// A condition whose status and reason are as before began when it began; any other begins now.
fn carry_since(new: &mut [Condition], old: Option<&[Condition]>, now: &str) {
    for condition in new {
        let before = old.and_then(|old| old.iter().find(|before| before.kind == condition.kind));
        let unchanged = before.filter(|before| before.status == condition.status && before.reason == condition.reason);
        condition.since = unchanged
            .and_then(|before| before.since.clone())
            .or_else(|| Some(now.to_owned()));
    }
}

impl Step {
    const fn new(class: Class) -> Self {
        Self {
            class,
            requires: Vec::new(),
            writes: Vec::new(),
            creates: None,
            refers: Vec::new(),
            removes: false,
        }
    }

    fn bytes(&self) -> usize {
        self.writes
            .iter()
            .map(|(key, value, _)| key.len() + value.as_ref().map_or(0, Bytes::len))
            .sum()
    }
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many writes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signers.len() + self.budget.len() + self.accepted.len() + self.assignments.len() + self.rest.len()
    }

    fn txn<'a>(&self, steps: impl IntoIterator<Item = &'a Step>) -> Txn {
        let mut txn = Txn::new(&self.fence).require(self.marker.0.clone(), self.marker.1);
        for step in steps {
            for (key, guard) in &step.requires {
                txn = txn.require(key.clone(), *guard);
            }
            for (key, value, guard) in &step.writes {
                txn = match value {
                    Some(value) => txn.put(key.clone(), value.clone(), *guard),
                    None => txn.delete(key.clone(), *guard),
                };
            }
        }
        txn
    }

    /// The first four groups, where they are few enough to be one transaction.
    fn first(&self) -> Option<Vec<&Step>> {
        let steps: Vec<&Step> = self
            .signers
            .iter()
            .chain(&self.budget)
            .chain(&self.accepted)
            .chain(&self.assignments)
            .collect();
        let bytes: usize = steps.iter().map(|step| step.bytes()).sum();
        let compares: usize = steps.iter().map(|step| step.requires.len() + step.writes.len()).sum();
        let small = steps.len() <= SMALL_WRITES && bytes <= SMALL_BYTES && compares <= MAX_GUARDS;
        (small && steps.len() > 1).then_some(steps)
    }

    /// Sends it. `together` allows to send a small pass as one transaction; it is refused after a conflict, so that one
    /// resource that changes all the time cannot hold up the others.
    pub async fn commit<S: Store>(self, store: &S, together: bool) -> Committed {
        let mut done = Committed::default();
        match self.first().filter(|_| together) {
            Some(steps) => {
                let outcome = store.commit(self.txn(steps.iter().copied())).await;
                for step in steps {
                    done.note(step, &outcome);
                }
            }
            None => {
                self.send(store, &mut done, &self.signers).await;
                self.send(store, &mut done, &self.budget).await;
                // What a removal spends is written down before it, or it waits.
                let counted = done.conflicts == 0 && done.refused.is_empty();
                // What names editions of this pass comes after them, and not without them.
                let (after, first): (Vec<&Step>, Vec<&Step>) =
                    self.accepted.iter().partition(|step| !step.refers.is_empty());
                let mut refused = self.send(store, &mut done, first).await;
                let (left, after): (Vec<&Step>, Vec<&Step>) = after
                    .into_iter()
                    .partition(|step| step.refers.iter().any(|referred| refused.contains(referred)));
                refused.extend(left.into_iter().filter_map(|step| step.creates.clone()));
                refused.extend(self.send(store, &mut done, after).await);
                let fits = |step: &&Step| {
                    (counted || !step.removes) && !step.refers.iter().any(|referred| refused.contains(referred))
                };
                self.send(store, &mut done, self.assignments.iter().filter(fits)).await;
            }
        }
        self.send(store, &mut done, &self.rest).await;
        done
    }

    /// Sends steps, unless something has failed before; returns the accepted records that were not created.
    async fn send<'a, S: Store>(
        &self,
        store: &S,
        done: &mut Committed,
        steps: impl IntoIterator<Item = &'a Step>,
    ) -> BTreeSet<(ResourceKey, u64)> {
        let mut refused = BTreeSet::new();
        let steps: Vec<&Step> = steps.into_iter().collect();
        if steps.is_empty() || !done.may_go_on() {
            return refused;
        }
        let outcomes = store.batch(steps.iter().map(|step| self.txn([*step])).collect()).await;
        for (step, outcome) in steps.iter().zip(outcomes) {
            if !done.note(step, &outcome) {
                refused.extend(step.creates.clone());
            }
        }
        refused
    }
}

impl Committed {
    /// Whether more may be sent after this.
    pub(crate) const fn may_go_on(&self) -> bool {
        !self.fence_lost && self.error.is_none()
    }

    /// Takes in what was sent after this.
    pub(crate) fn add(&mut self, later: Self) {
        let Self {
            revision,
            counts,
            fence_lost,
            conflicts,
            error,
            refused,
            removed,
        } = later;
        self.revision = self.revision.max(revision);
        for (what, count) in counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.fence_lost |= fence_lost;
        self.conflicts += conflicts;
        self.error = self.error.take().or(error);
        self.refused.extend(refused);
        self.removed |= removed;
    }

    /// Counts one outcome; whether the step is in force.
    fn note(&mut self, step: &Step, outcome: &Result<Outcome, StoreError>) -> bool {
        let word = match outcome {
            Ok(Outcome::Committed { revision }) => {
                self.revision = self.revision.max(Some(*revision));
                self.removed |= step.removes;
                "committed"
            }
            Ok(Outcome::FenceLost) => {
                self.fence_lost = true;
                "fenced"
            }
            Ok(Outcome::Conflict { keys }) => {
                // The cache must reach what was found, or the same plan is made again.
                let found = keys
                    .iter()
                    .filter_map(|conflict| conflict.found.map(|(_, modified)| modified))
                    .max();
                self.revision = self.revision.max(found);
                self.conflicts += 1;
                "conflict"
            }
            Err(error) if error.is_about_the_request() => {
                self.refused.push(error.clone());
                "refused"
            }
            Err(error) => {
                self.removed |= step.removes && error.is_outage();
                self.error.get_or_insert_with(|| error.clone());
                "failed"
            }
        };
        *self.counts.entry((step.class, word)).or_default() += 1;
        word == "committed"
    }
}

#[cfg(test)]
mod tests;
