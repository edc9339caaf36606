//! Which accounts of registries each node needs: those that its assigned instances' images are fetched with, and no others.
//! The leader asks after each plan, before it writes the plan, and hands each node what this says. It reads the assignments
//! of the plan where there are new ones, so that a node has its accounts before its work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::image::ImageRef;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::records::{Accepted, AcceptedBody, AssignedState, Assignment};
use schemas::registry::{RegistrySpec, choose};

use super::snapshot::Snapshot;
use super::types::Plan;

/// An account: the Registry resource and the user's name.
pub type LoginName = (ResourceName, String);

/// The accounts that one node needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginNeeds {
    /// Of the images of its assigned instances.
    pub assigned: BTreeSet<LoginName>,
    /// Of [`Plan::strays`]: it keeps those where it has them, and is given nothing for them.
    pub kept: BTreeSet<LoginName>,
}

/// The accounts each node needs. Nodes that need none are not listed.
#[must_use]
pub fn logins(
    snapshot: &Snapshot,
    plan: &Plan,
    registries: &BTreeMap<ResourceName, Arc<RegistrySpec>>,
) -> BTreeMap<NodeName, LoginNeeds> {
    let mut needed: BTreeMap<NodeName, LoginNeeds> = BTreeMap::new();
    if registries.values().all(|registry| registry.accounts.is_empty()) {
        return needed;
    }
    let stored = snapshot.nodes.iter().filter_map(|(node, entry)| {
        let assignment = entry.assignment.as_ref()?.value.as_ref().ok()?;
        Some((node, &**assignment))
    });
    let mut assignments: BTreeMap<&NodeName, &Assignment> = stored.collect();
    for write in &plan.assignments {
        assignments.insert(&write.assignment.node, &write.assignment);
    }
    let new: BTreeMap<(&ResourceKey, u64), &Accepted> = plan
        .accepted
        .iter()
        .map(|write| ((&write.key, write.record.n), &write.record))
        .collect();
    // Thousands of instances run a handful of specs.
    let mut known: BTreeMap<(&Namespace, &ResourceName, u64), Option<LoginName>> = BTreeMap::new();
    for (node, assignment) in assignments {
        for instance in &assignment.instances {
            if instance.state == AssignedState::Absent || instance.kind != Kind::Service {
                continue;
            }
            let place = (&instance.namespace, &instance.workload, instance.n);
            let login = known.entry(place).or_insert_with(|| {
                let key = ResourceKey {
                    namespace: Some(instance.namespace.clone()),
                    kind: instance.kind,
                    name: instance.workload.clone(),
                };
                let stored = || {
                    let entry = snapshot.accepted.get(&key)?.records.get(&instance.n)?;
                    entry.value.as_ref().ok().map(|record| &**record)
                };
                let record = new.get(&(&key, instance.n)).copied().or_else(stored)?;
                login(registries, &instance.namespace, image(record)?)
            });
            if let Some(login) = login {
                let needs = needed.entry(node.clone()).or_default();
                let list = if plan.is_stray(node, instance) {
                    &mut needs.kept
                } else {
                    &mut needs.assigned
                };
                list.insert(login.clone());
            }
        }
    }
    needed
}

fn image(record: &Accepted) -> Option<&ImageRef> {
    match &record.body {
        AcceptedBody::Service(spec) => Some(&spec.container.image),
        AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => None,
    }
}

/// The account that an image is fetched with for an instance of this namespace.
#[must_use]
pub fn login(
    registries: &BTreeMap<ResourceName, Arc<RegistrySpec>>,
    namespace: &Namespace,
    image: &ImageRef,
) -> Option<LoginName> {
    let accounts = registries.iter().flat_map(|(name, registry)| {
        let host = registry.registry.as_str();
        let of = registry.accounts.iter();
        of.map(move |account| (name, host, account, (name.clone(), account.user.clone())))
    });
    choose(accounts, namespace, image)
}
