//! Lays out what a pass has decided as a [`Plan`]: assignments that differ from the stored ones, changes for people,
//! statuses with their conditions and refusals, and what may be forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::records::{Accepted, AcceptedBody, AssignedState, Digest};

use super::accept::Standing;
use super::memo::Memo;
use super::pass::Pass;
use super::status::notice;
use super::types::{Plan, Removal, Status, Stray};
use super::world::NONE;
use super::{PlanOptions, explain};

/// How many accepted records of a resource are kept for people to go back to.
const KEPT_RECORDS: usize = 20;
impl<'a> Pass<'a> {
    pub(super) fn into_plan(mut self, options: PlanOptions, memo: &mut Memo) -> Plan {
        let floating = self.virtual_ips();
        let assignments = self.assignments(&floating);
        let removals = self.removal_list();
        let strays = self.strays();
        // Nodes have no namespace, and so come first.
        let mut statuses = Vec::with_capacity(self.memory.svcs.len() + self.nodes.list.len());
        let mut of_services = Vec::with_capacity(self.memory.svcs.len());
        let mut stored_services = self.snapshot.service_statuses.iter().peekable();
        let mut notices = Vec::new();
        let refusals = explain::refusals(&mut self);
        let mut remaining = vec![0_u32; self.memory.svcs.len()];
        let mut node_counts = vec![(0_u32, 0_u32); self.nodes.list.len()];
        let mut room = vec![(0_i64, 0_i64); self.nodes.list.len()];
        for inst in &self.memory.insts {
            if inst.state().is_some()
                && let Some(count) = remaining.get_mut(inst.svc as usize)
            {
                *count += 1;
            }
            if inst.stays() {
                let counts = &mut node_counts[inst.node as usize];
                counts.0 += 1;
                counts.1 += u32::from(inst.seen.ready);
            }
        }
        let mut created = vec![0_u32; self.memory.svcs.len()];
        for (new, state) in &self.news {
            node_counts[new.node as usize].0 += 1;
            created[new.want.svc as usize] += u32::from(*state == AssignedState::Present);
        }
        for (at, node) in self.nodes.list.iter().enumerate() {
            let (cpu, memory) = node.allocatable();
            room[at] = (
                cpu - self.placer.free[at].0,
                memory.saturating_sub(self.placer.free[at].1),
            );
        }
        let mut ended = Vec::new();
        for at in 0..self.memory.svcs.len() {
            let svc = &self.memory.svcs[at];
            let key = svc.key.clone();
            let nothing_left = remaining[at] == 0 && self.lives[svc.life].desired.is_none();
            match &self.lives[svc.life].standing {
                Standing::Deleted | Standing::Never if nothing_left => {
                    if self.snapshot.service_statuses.contains_key(&key) && self.snapshot.complete {
                        ended.push(key);
                    }
                }
                Standing::Deleted | Standing::Never | Standing::Live(_) | Standing::Held { .. } => {
                    while stored_services.next_if(|(other, _)| *other < &key).is_some() {}
                    let stored = stored_services.next_if(|(other, _)| *other == &key);
                    let stored = stored.and_then(|(_, stored)| stored.value.as_ref().ok());
                    let id = u32::try_from(at).unwrap_or(NONE);
                    let refused = refusals.get(&id).cloned().unwrap_or_default();
                    let status = self.service_status(at, remaining[at], created[at], refused, stored, memo);
                    if stored.is_none_or(|stored| !Arc::ptr_eq(stored, &status)) {
                        let before = stored.map(|stored| &stored.conditions[..]);
                        notice(&mut notices, &status.conditions, before, &key, None);
                    }
                    of_services.push((key, Status::Service(status)));
                }
            }
        }
        self.node_statuses(&mut statuses, &mut ended, &mut notices, &node_counts, &room);
        statuses.append(&mut of_services);
        self.file_statuses(&mut statuses, &mut ended, &mut notices);
        let holders = floating.tell(self.snapshot, &mut statuses, &mut ended, &mut notices);
        if self.snapshot.complete {
            // Both are in order of keys.
            let mut svcs = self.memory.svcs.iter().peekable();
            for key in self.snapshot.service_statuses.keys() {
                while svcs.next_if(|svc| svc.key < key).is_some() {}
                if svcs.peek().is_none_or(|svc| svc.key != key) {
                    ended.push(key.clone());
                }
            }
        }
        let changes = if options.list_changes {
            self.changes()
        } else {
            Vec::new()
        };
        let forgotten = self.forgotten();
        let network = self.network_writes(memo);
        Plan {
            changes,
            accepted: self.accepted,
            forgotten,
            assignments,
            statuses: statuses.into_iter().collect(),
            ended,
            breaker: self.breaker,
            spent_acks: self.spent_acks,
            removals,
            strays,
            network,
            holders,
            notices,
        }
    }

    // ---- what nobody placed where it is -----------------------------------------------------------------------------

    fn strays(&mut self) -> BTreeSet<Stray> {
        let mut found: Vec<u32> = Vec::new();
        for svc in &self.memory.svcs {
            for head in [svc.beyond, svc.ended] {
                found.extend(self.memory.chain(head).map(|(inst, _)| inst));
            }
        }
        let busy = std::mem::take(&mut self.busy);
        for &(svc, offset) in &busy {
            let staying = self.memory.in_slot(svc as usize, offset).filter(|(_, one)| one.stays());
            let here: Vec<(u32, u32)> = staying.map(|(inst, one)| (inst, one.node)).collect();
            if here.is_empty() {
                continue;
            }
            let view = self.view(svc as usize, offset);
            let state = |inst: u32| self.memory.insts[inst as usize].state();
            let present = here
                .iter()
                .filter(|(inst, _)| state(*inst) == Some(AssignedState::Present));
            let alone = present.count() == 1;
            let set = self.memory.svcs[svc as usize].set;
            for (inst, node) in here {
                let fills = view.present == Some(inst) && alone || view.prepared == Some(inst);
                let held = self.nodes.list[node as usize].held.is_some();
                if !fills || held || self.placer.broken(&self.nodes, set, node).is_some() {
                    found.push(inst);
                }
            }
        }
        self.busy = busy;
        let stray = |inst: &u32| {
            let one = &self.memory.insts[*inst as usize];
            Some(Stray {
                node: self.nodes.list[one.node as usize].name.clone(),
                uid: self.uid(one).filter(|_| one.stays())?.clone(),
                slot: self.memory.slot(one.slot, &self.nodes),
            })
        };
        found.iter().filter_map(stray).collect()
    }

    // ---- what may be forgotten ------------------------------------------------------------------------------------

    fn forgotten(&self) -> Vec<(ResourceKey, u64)> {
        if !self.snapshot.complete || self.nodes.hold_all.is_some() {
            return Vec::new();
        }
        let mut forgotten = Vec::new();
        let many =
            |life: &super::accept::Life<'_>| life.history.is_some_and(|history| history.records.len() > KEPT_RECORDS);
        if !self.lives.iter().any(many) {
            return forgotten;
        }
        let mut referred: BTreeSet<(&str, &str, u64)> = BTreeSet::new();
        let crowded: BTreeSet<(&str, &str)> = self
            .lives
            .iter()
            .filter(|life| many(life))
            .map(|life| {
                (
                    life.key.namespace.as_ref().map_or("_", |namespace| namespace.as_str()),
                    life.key.name.as_str(),
                )
            })
            .collect();
        for node in &self.nodes.list {
            for one in node.assignment.into_iter().flat_map(|assignment| &assignment.instances) {
                if crowded.contains(&(one.namespace.as_str(), one.workload.as_str())) {
                    referred.insert((one.namespace.as_str(), one.workload.as_str(), one.n));
                }
            }
            for one in node.report.into_iter().flat_map(|report| &report.instances) {
                if crowded.contains(&(one.namespace.as_str(), one.workload.as_str())) {
                    let next = one.next.as_ref().map_or(one.n, |next| next.n);
                    for n in [one.n, next] {
                        referred.insert((one.namespace.as_str(), one.workload.as_str(), n));
                    }
                }
            }
        }
        let readable = self.nodes.list.iter().all(|node| {
            node.entry.assignment.as_ref().is_none_or(|stored| stored.value.is_ok())
                && node.entry.report.as_ref().is_none_or(|stored| stored.value.is_ok())
        });
        if !readable {
            // What cannot be read may refer to anything.
            return forgotten;
        }
        // Files come last: the services' records that are kept keep the editions that they name.
        let of_files = |life: &&super::accept::Life<'_>| life.key.kind == Kind::ConfigFile;
        let many = || self.lives.iter().filter(|life| many(life));
        let mut named = None;
        for life in many().filter(|life| !of_files(life)).chain(many().filter(of_files)) {
            let Some(history) = life.history else { continue };
            if of_files(&life) && named.is_none() {
                named = Some(self.named_editions(&forgotten));
            }
            let namespace = life.key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
            let deletion = |entry: &super::snapshot::AcceptedEntry| {
                entry
                    .value
                    .as_ref()
                    .is_ok_and(|record: &std::sync::Arc<Accepted>| record.body == AcceptedBody::Deleted)
            };
            let last_deletion = history
                .records
                .iter()
                .rev()
                .find(|(_, entry)| deletion(entry))
                .map(|(n, _)| *n);
            for (n, entry) in history.records.iter().rev().skip(KEPT_RECORDS) {
                let kept = Some(*n) == last_deletion
                    || entry.value.is_err()
                    || referred.contains(&(namespace, life.key.name.as_str(), *n))
                    || named
                        .as_ref()
                        .is_some_and(|named| named.contains(&(namespace, life.key.name.as_str(), *n)));
                if !kept {
                    forgotten.push((life.key.clone(), *n));
                }
            }
        }
        forgotten
    }
}

/// The digest a person's yes to all removals of one resource names: those of its own documents, as this plan has them.
/// None when the plan removes nothing of it. Write the acknowledgement in one txn with the change itself.
#[must_use]
pub fn removal_digest(plan: &Plan, key: &ResourceKey) -> Option<Digest> {
    let mine: Vec<&Removal> = plan
        .removals
        .iter()
        .filter(|removal| removal.own && removal.key == *key)
        .collect();
    (!mine.is_empty()).then(|| Digest::of_removals(mine.iter().map(|removal| (&removal.uid, &removal.slot))))
}
