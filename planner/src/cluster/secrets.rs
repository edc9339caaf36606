//! Secrets: which edition a service gets, and which node needs which. An accepted service names the editions of its secrets
//! as it does those of its files, and for the same reasons. The values are sealed and play no part here: what is decided
//! on is that there is an edition, and its digest. `files.rs` calls [`resolve`]; the leader asks [`secrets`] after each plan.

use std::collections::{BTreeMap, BTreeSet};

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::records::{Accepted, AssignedState};
use schemas::secret::SecretEdition;
use schemas::service::ServiceSpec;

use super::memory::service_of;
use super::snapshot::Snapshot;
use super::types::{Plan, Reason};

/// One edition of a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretName {
    pub namespace: Namespace,
    pub name: ResourceName,
    pub edition: SecretEdition,
}

/// What one node needs of secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretNeeds {
    /// What its assigned instances get.
    pub assigned: BTreeSet<SecretName>,
    /// What containers get that it says are still in force there, and what [`Plan::strays`] do: it keeps that where it has it,
    /// and is given nothing for it.
    pub in_force: BTreeSet<SecretName>,
}

/// Puts the editions into a desired spec. Answers what is missing, in sentences, and what is gone and stays in use.
pub(super) fn resolve(
    snapshot: &Snapshot,
    namespace: &Namespace,
    desired: &mut ServiceSpec,
    before: Option<&ServiceSpec>,
) -> (Vec<String>, BTreeSet<ResourceName>) {
    let (mut missing, mut gone) = (Vec::new(), BTreeSet::new());
    for one in &mut desired.container.secrets {
        let key = key(namespace, &one.secret);
        one.edition = snapshot.secrets.get(&key).cloned();
        if one.edition.is_some() {
            continue;
        }
        one.edition = before.and_then(|before| {
            let same = before.container.secrets.iter().find(|old| old.secret == one.secret)?;
            same.edition.clone()
        });
        if one.edition.is_some() {
            gone.insert(one.secret.clone());
        } else {
            let name = &one.secret;
            missing.push(format!(
                "secret `{name}` has no value in namespace `{namespace}`: set it with `reeve secret set {name}`"
            ));
        }
    }
    (missing, gone)
}

pub(super) fn key(namespace: &Namespace, secret: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::Secret,
        name: secret.clone(),
    }
}

/// Why a spec gives way to another, where it is a secret's value.
pub(super) fn changed(old: &ServiceSpec, new: &ServiceSpec) -> Option<Reason> {
    new.container.secrets.iter().find_map(|one| {
        let same = old.container.secrets.iter().find(|old| old.secret == one.secret)?;
        let (from, to) = (same.edition.as_ref()?, one.edition.as_ref()?);
        (from.digest != to.digest).then(|| Reason::SecretChanged {
            secret: one.secret.clone(),
            from: from.n,
            to: to.n,
        })
    })
}

/// What each node needs, with this plan's assignments where there are new ones: a node has its secrets before its work.
/// Nodes that need none are not listed.
#[must_use]
pub fn secrets<'a>(snapshot: &'a Snapshot, plan: &'a Plan) -> BTreeMap<NodeName, SecretNeeds> {
    let mut needs: BTreeMap<NodeName, SecretNeeds> = BTreeMap::new();
    let written: BTreeMap<(&ResourceKey, u64), &Accepted> = plan
        .accepted
        .iter()
        .map(|write| ((&write.key, write.record.n), &write.record))
        .collect();
    let mut records = Records {
        snapshot,
        written,
        known: BTreeMap::new(),
    };
    let next: BTreeMap<&NodeName, _> = plan
        .assignments
        .iter()
        .map(|write| (&write.assignment.node, &write.assignment))
        .collect();
    for (node, entry) in &snapshot.nodes {
        let stored = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
        let assigned = next.get(node).copied().or(stored.map(|assignment| &**assignment));
        let instances = assigned.map_or(&[][..], |assignment| &assignment.instances);
        let kept = instances.iter().filter(|one| one.state != AssignedState::Absent);
        let mut mine: BTreeSet<(&Namespace, &ResourceName, _, _)> = BTreeSet::new();
        for one in kept.filter(|one| one.kind == Kind::Service) {
            mine.insert((&one.namespace, &one.workload, &one.uid, &one.slot));
            let found = records.of(&one.namespace, &one.workload, one.n);
            if !found.is_empty() {
                let needs = needs.entry(node.clone()).or_default();
                let list = if plan.is_stray(node, one) {
                    &mut needs.in_force
                } else {
                    &mut needs.assigned
                };
                list.extend(found.iter().cloned());
            }
        }
        // Until the next spec is in force, and through a reboot then, a node needs what the one before gets.
        let report = entry.report.as_ref().and_then(|stored| stored.value.as_ref().ok());
        for one in report.into_iter().flat_map(|report| &report.instances) {
            if mine.contains(&(&one.namespace, &one.workload, &one.uid, &one.slot)) {
                let found = records.of(&one.namespace, &one.workload, one.n);
                if !found.is_empty() {
                    needs
                        .entry(node.clone())
                        .or_default()
                        .in_force
                        .extend(found.iter().cloned());
                }
            }
        }
    }
    needs
}

/// What accepted services get; thousands of instances run a handful of them.
struct Records<'a> {
    snapshot: &'a Snapshot,
    written: BTreeMap<(&'a ResourceKey, u64), &'a Accepted>,
    known: BTreeMap<(&'a Namespace, &'a ResourceName, u64), Vec<SecretName>>,
}

impl<'a> Records<'a> {
    fn of(&mut self, namespace: &'a Namespace, workload: &'a ResourceName, n: u64) -> &[SecretName] {
        self.known.entry((namespace, workload, n)).or_insert_with(|| {
            let key = ResourceKey {
                namespace: Some(namespace.clone()),
                kind: Kind::Service,
                name: workload.clone(),
            };
            let stored = || {
                let entry = self.snapshot.accepted.get(&key)?.records.get(&n)?;
                entry.value.as_ref().ok().map(|record| &**record)
            };
            let record = self.written.get(&(&key, n)).copied().or_else(stored);
            let spec = record.and_then(|record| service_of(&record.body));
            let secrets = spec.map_or(&[][..], |spec| &spec.container.secrets);
            let one = |one: &schemas::container::SecretUse| {
                Some(SecretName {
                    namespace: namespace.clone(),
                    name: one.secret.clone(),
                    edition: one.edition.clone()?,
                })
            };
            secrets.iter().filter_map(one).collect()
        })
    }
}
