//! The controllers of the closed loop: one leads, reads a picture of the store that may be older than the store but never
//! than the last write of any leader, and commits its plan transaction by transaction, each compared as the real one is.
//! It can be killed, or lose the lead, between any two of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use planner::cluster::{
    Absences, AcceptedEntry, AcceptedWrite, AssignmentWrite, Guard, Memo, Moment, PlanOptions, Snapshot, Status,
    Stored, plan_again, plan_with, verdicts,
};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, Slot};
use schemas::records::{Breaker, Digest, Endpoints, Peer, Record, Uid, Verdict, VerdictRecord};

/// One transaction.
#[derive(Clone, Debug)]
pub enum Txn {
    Breaker(Breaker),
    Accepted(Box<AcceptedWrite>),
    /// With the accepted records of its plan that it needs, and the removals it holds.
    Assignment(Box<AssignmentWrite>, Vec<(ResourceKey, u64)>, BTreeSet<(Uid, Slot)>),
    Status(ResourceKey, Box<Status>),
    Peer(NodeName, Option<Box<Peer>>),
    Endpoints(ResourceKey, Option<Box<Endpoints>>),
    Ended(ResourceKey),
    Ack(Digest),
    Forget(ResourceKey, u64),
    Verdict(NodeName, VerdictRecord),
    ForgetNode(NodeName),
}

#[derive(Debug, Default)]
pub struct Leader {
    pub pending: VecDeque<Txn>,
    /// No picture older than this is planned from.
    pub wrote: i64,
    memo: Memo,
    pub absences: Absences,
    /// Whether the last thought had nothing to write.
    pub quiet: bool,
    /// What the reports said to be ready when the leader last thought.
    pub ready: BTreeSet<(Uid, Slot)>,
}

pub fn stored<T>(revision: i64, value: T) -> Stored<T> {
    Stored {
        create_revision: revision,
        mod_revision: revision,
        value: Ok(value),
    }
}

pub fn bump(store: &mut Snapshot) -> i64 {
    store.revision += 1;
    store.revision
}

impl Leader {
    /// Plans from a picture; what was left of the plan before is dropped, as by a crash.
    pub fn think(&mut self, picture: &Snapshot, at: Moment) {
        self.pending.clear();
        self.quiet = false;
        let reports = picture
            .nodes
            .values()
            .filter_map(|entry| entry.report.as_ref()?.value.as_ref().ok());
        let ready = reports.flat_map(|report| &report.instances).filter(|line| line.ready);
        self.ready = ready.map(|line| (line.uid.clone(), line.slot.clone())).collect();
        let out = verdicts(picture, &mut self.absences, at);
        if !out.writes.is_empty() || !out.forget.is_empty() {
            self.pending
                .extend(out.writes.into_iter().map(|(node, record)| Txn::Verdict(node, record)));
            self.pending.extend(out.forget.into_iter().map(Txn::ForgetNode));
            return;
        }
        let options = PlanOptions {
            list_changes: false,
            exhaustive: false,
        };
        let plan = plan_again(picture, options, &mut self.memo);
        assert_eq!(plan, plan_with(picture, options), "a memo changes nothing but the time");
        self.quiet = plan.rests(picture);
        if plan.breaker != picture.breaker {
            self.pending.push_back(Txn::Breaker(plan.breaker.clone()));
        }
        let created: BTreeSet<(ResourceKey, u64)> = plan
            .accepted
            .iter()
            .map(|write| (write.key.clone(), write.record.n))
            .collect();
        self.pending
            .extend(plan.accepted.into_iter().map(|write| Txn::Accepted(Box::new(write))));
        for write in plan.assignments {
            let mut needs = Vec::new();
            for one in &write.assignment.instances {
                let resource = ResourceKey {
                    namespace: Some(one.namespace.clone()),
                    kind: one.kind,
                    name: one.workload.clone(),
                };
                if created.contains(&(resource.clone(), one.n)) {
                    needs.push((resource, one.n));
                }
            }
            let node = &write.assignment.node;
            let removed = plan
                .removals
                .iter()
                .filter(|removal| !removal.held && removal.node == *node);
            let removed = removed
                .map(|removal| (removal.uid.clone(), removal.slot.clone()))
                .collect();
            self.pending.push_back(Txn::Assignment(Box::new(write), needs, removed));
        }
        for (key, status) in plan.statuses {
            if !status.is_stored(&key, picture) {
                self.pending.push_back(Txn::Status(key, Box::new(status)));
            }
        }
        let peers = plan.network.peers.into_iter();
        self.pending
            .extend(peers.map(|(node, peer)| Txn::Peer(node, peer.map(Box::new))));
        let endpoints = plan.network.endpoints.into_iter();
        self.pending
            .extend(endpoints.map(|(key, one)| Txn::Endpoints(key, one.map(Box::new))));
        self.pending.extend(plan.ended.into_iter().map(Txn::Ended));
        self.pending.extend(plan.spent_acks.into_iter().map(Txn::Ack));
        self.pending
            .extend(plan.forgotten.into_iter().map(|(key, n)| Txn::Forget(key, n)));
    }

    /// Commits the next transaction; answers it when it is in force.
    pub fn commit(&mut self, store: &mut Snapshot) -> Option<Txn> {
        let txn = self.pending.pop_front()?;
        let done = apply(store, &txn);
        // A conflict too is only understood from what was found.
        self.wrote = store.revision;
        done.then_some(txn)
    }
}

fn holds(store: &Snapshot, guard: &Guard) -> bool {
    match guard {
        Guard::DesiredAbsent(key) => !store.desired.contains_key(key),
        Guard::DesiredAt { key, mod_revision } => store
            .desired
            .get(key)
            .is_some_and(|entry| entry.mod_revision == *mod_revision),
        Guard::CordonAt { node, mod_revision } => {
            let cordon = store.nodes.get(node).and_then(|entry| entry.cordon.as_ref());
            cordon.is_some_and(|stored| stored.mod_revision == *mod_revision)
        }
        Guard::SessionAbsent(node) => store.nodes.get(node).is_none_or(|entry| entry.session.is_none()),
        Guard::SessionAt { node, create_revision } => {
            let session = store.nodes.get(node).and_then(|entry| entry.session.as_ref());
            session.is_some_and(|stored| stored.create_revision == *create_revision)
        }
    }
}

/// Whether the transaction was in order, and so is in force now.
fn apply(store: &mut Snapshot, txn: &Txn) -> bool {
    match txn {
        Txn::Breaker(breaker) => {
            bump(store);
            store.breaker = breaker.clone();
        }
        Txn::Accepted(write) => {
            if !holds(store, &write.guard) {
                return false;
            }
            bump(store);
            let entry = AcceptedEntry {
                digest: Digest::of(&write.record.encode()),
                value: Ok(Arc::new(write.record.clone())),
            };
            let history = store.accepted.entry(write.key.clone()).or_default();
            let before = history.records.insert(write.record.n, entry);
            assert!(before.is_none(), "{} {} is accepted twice", write.key, write.record.n);
        }
        Txn::Assignment(write, needs, _) => {
            let node = &write.assignment.node;
            let there = |(key, n): &(ResourceKey, u64)| {
                store
                    .accepted
                    .get(key)
                    .is_some_and(|history| history.records.contains_key(n))
            };
            let known = store.nodes.get(node).and_then(|entry| entry.assignment.as_ref());
            let same = known.map_or(0, |stored| stored.mod_revision) == write.stored_mod_revision;
            if !same || !needs.iter().all(there) || !write.guards.iter().all(|guard| holds(store, guard)) {
                return false;
            }
            if let Some(Ok(old)) = known.map(|stored| &stored.value) {
                assert!(write.assignment.order > old.order, "order only rises");
            }
            let revision = bump(store);
            store.nodes.entry(node.clone()).or_default().assignment =
                Some(stored(revision, Arc::new(write.assignment.clone())));
        }
        Txn::Status(key, status) => {
            let revision = bump(store);
            match &**status {
                Status::Service(status) => {
                    store
                        .service_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
                Status::Node(status) => {
                    let node = key.name.as_str().parse().expect("a name");
                    store.node_statuses.insert(node, stored(revision, status.clone()));
                }
                Status::ConfigFile(status) => {
                    store
                        .file_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
                Status::VirtualIp(status) => {
                    store
                        .virtual_ip_statuses
                        .insert(key.clone(), stored(revision, status.clone()));
                }
            }
        }
        Txn::Peer(node, peer) => {
            let revision = bump(store);
            match peer {
                Some(peer) => drop(
                    store
                        .peers
                        .insert(node.clone(), stored(revision, Arc::new((**peer).clone()))),
                ),
                None => drop(store.peers.remove(node)),
            }
        }
        Txn::Endpoints(key, one) => {
            let revision = bump(store);
            match one {
                Some(one) => drop(
                    store
                        .endpoints
                        .insert(key.clone(), stored(revision, Arc::new((**one).clone()))),
                ),
                None => drop(store.endpoints.remove(key)),
            }
        }
        Txn::Ended(key) => {
            bump(store);
            store.service_statuses.remove(key);
            store.file_statuses.remove(key);
            if let (Kind::Node, Ok(node)) = (key.kind, key.name.as_str().parse::<NodeName>()) {
                store.node_statuses.remove(&node);
            }
        }
        Txn::Ack(digest) => {
            bump(store);
            store.acks.remove(digest);
        }
        Txn::Forget(key, n) => {
            bump(store);
            if let Some(history) = store.accepted.get_mut(key) {
                history.records.remove(n);
            }
        }
        Txn::Verdict(node, record) => {
            let there = store.nodes.get(node).is_some_and(|entry| entry.session.is_some());
            if there && record.verdict == Verdict::Lost {
                return false;
            }
            let revision = bump(store);
            store.nodes.entry(node.clone()).or_default().verdict = Some(stored(revision, record.clone()));
        }
        Txn::ForgetNode(node) => {
            if store.nodes.get(node).is_some_and(|entry| entry.session.is_some()) {
                return false;
            }
            bump(store);
            store.nodes.remove(node);
        }
    }
    true
}
