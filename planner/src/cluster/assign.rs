//! Lays out what a pass has decided as assignments: those that differ from the stored ones, and the removals in them.
//! Called by `output.rs`.

use schemas::records::{Assigned, AssignedState, Assignment, Order, SchemaVersion};

use super::accept::{MAX_REPORTED, record};
use super::images::{self, Holders};
use super::memory::{Inst, To};
use super::pass::Pass;
use super::place::New;
use super::types::{AssignmentWrite, Removal};
use super::virtual_ips::Floating;
use super::world::NONE;

impl Pass<'_> {
    pub(super) fn assignments(&self, floating: &Floating) -> Vec<AssignmentWrite> {
        let news = self.news_by_node();
        let mut writes = Vec::new();
        // Service, slot, place among the known or the new, and whether it is new.
        let mut lines: Vec<(u32, u64, u32, bool)> = Vec::new();
        let mut holders = Holders::default();
        for (at, node) in self.nodes.list.iter().enumerate() {
            if node.held.is_some() && !node.rewrite {
                continue;
            }
            let id = u32::try_from(at).unwrap_or(NONE);
            let from = self.memory.starts[at] as usize;
            let insts = &self.memory.insts[from..self.memory.starts[at + 1] as usize];
            let here = &news.0[news.1[at]..news.1[at + 1]];
            let changed = |(at, inst): (u32, &Inst)| {
                self.given.known.contains_key(&at)
                    || inst.to != To::Stay && (inst.assigned != NONE || inst.to != To::Out)
                    || inst.assigned == NONE && inst.state().is_some()
                    || inst.repin && inst.stays()
                    || inst.seen.starved && self.asks.get(&at).is_some_and(|from| !from.is_empty())
            };
            let network = self.net.as_ref().and_then(|net| net.assigned(id));
            let same_network = node.assignment.map_or(network.is_none(), |one| one.network == network);
            // In an epoch that a person began by accepting the store, every node is told anew: only that ends its hold.
            let now = self.snapshot.cluster.restore_epoch;
            let same_epoch = node.assignment.is_none_or(|one| one.order.restore_epoch >= now);
            let virtual_ips = floating.list(id);
            let same_virtual_ips = node.assignment.map_or(&[][..], |one| &one.virtual_ips) == virtual_ips;
            let reseeded = || {
                let differs = |inst: &Inst| {
                    let stored = node
                        .assignment
                        .and_then(|one| one.instances.get(inst.assigned as usize));
                    inst.stays() && stored.is_some_and(|one| one.seeds != self.seeds_for(inst.svc, &one.seeds))
                };
                !self.seeds.is_empty() && insts.iter().any(differs)
            };
            if here.is_empty()
                && !node.rewrite
                && same_epoch
                && !floating.enrols(node)
                && same_network
                && same_virtual_ips
                && !reseeded()
                && !(self.memory.starts[at]..).zip(insts).any(changed)
            {
                continue;
            }
            lines.clear();
            lines.extend(insts.iter().enumerate().map(|(offset, inst)| {
                let at = u32::try_from(from + offset).unwrap_or(NONE);
                (inst.svc, inst.slot, at, false)
            }));
            lines.extend(here.iter().map(|at| {
                let want = &self.news[*at as usize].0.want;
                (want.svc, want.slot, *at, true)
            }));
            // Services stand in order of namespaces and names, and slots' codes in order of slots: where each slot occurs
            // once, numbers are all that need sorting.
            lines.sort_by_key(|(svc, slot, ..)| (*svc, *slot));
            let slots = lines.windows(2).all(|two| (two[0].0, two[0].1) < (two[1].0, two[1].1));
            let known =
                |(svc, slot, ..): &(u32, u64, u32, bool)| *svc != NONE && !self.memory.is_odd(*slot, &self.nodes);
            let sorted = slots && lines.iter().all(known);
            let mut instances: Vec<Assigned> = Vec::with_capacity(lines.len());
            instances.extend(lines.iter().filter_map(|(_, _, at, new)| {
                if *new {
                    let (new, state) = &self.news[*at as usize];
                    self.assigned_new(*at, new, *state, &mut holders)
                } else {
                    self.assigned(*at, &self.memory.insts[*at as usize], &mut holders)
                }
            }));
            if !sorted {
                sort_and_merge(&mut instances);
            }
            if same_epoch
                && node.assignment.is_some_and(|stored| {
                    stored.instances == instances && stored.network == network && same_virtual_ips
                })
            {
                continue;
            }
            let watermark = node
                .entry
                .session
                .as_ref()
                .and_then(|stored| stored.value.as_ref().ok())
                .map(|session| session.watermark.generation);
            let generation = node
                .entry
                .highest_order()
                .generation
                .max(watermark.filter(|mark| *mark <= MAX_REPORTED).unwrap_or(0));
            let order = Order {
                restore_epoch: self.snapshot.cluster.restore_epoch,
                epoch: self.snapshot.epoch,
                generation: generation.saturating_add(1),
            };
            writes.push(AssignmentWrite {
                assignment: Assignment {
                    schema_version: SchemaVersion::default(),
                    cluster: self.snapshot.cluster.id.clone(),
                    node: node.name.clone(),
                    order,
                    network,
                    virtual_ips: virtual_ips.to_vec(),
                    instances,
                },
                stored_mod_revision: node.entry.assignment.as_ref().map_or(0, |stored| stored.mod_revision),
                guards: self
                    .guards
                    .get(&id)
                    .into_iter()
                    .flatten()
                    .chain(floating.withdrawals(id))
                    .cloned()
                    .collect(),
                grants: floating.grants(id),
                granted: floating.granted(id),
            });
        }
        writes
    }

    /// What is new, as places in [`Pass::news`], node after node; and where each node's begin.
    pub(super) fn news_by_node(&self) -> (Vec<u32>, Vec<usize>) {
        let mut starts = vec![0_usize; self.nodes.list.len() + 1];
        for (new, _) in &self.news {
            starts[new.node as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0_u32; self.news.len()];
        for (at, (new, _)) in self.news.iter().enumerate() {
            let place = &mut next[new.node as usize];
            order[*place] = u32::try_from(at).unwrap_or(NONE);
            *place += 1;
        }
        (order, starts)
    }

    /// The entry of an instance that was known before.
    fn assigned(&self, at: u32, inst: &Inst, holders: &mut Holders) -> Option<Assigned> {
        let state = inst.state()?;
        let node = &self.nodes.list[inst.node as usize];
        let mut entry = if let Some(stored) = node
            .assignment
            .and_then(|assignment| assignment.instances.get(inst.assigned as usize))
        {
            stored.clone()
        } else {
            // An orphan that goes may be of a service that no record knows: it goes by what its node calls it.
            let reported = self.reported(inst)?;
            let svc = self.memory.svcs.get(inst.svc as usize);
            let known = svc.and_then(|svc| {
                let life = &self.lives[svc.life];
                let (_, digest) = record(life.history?, life.key, reported.n)?;
                Some(digest.clone())
            });
            Assigned {
                address: inst.address.filter(|_| self.net.is_some()),
                seeds: Vec::new(),
                token: inst.token,
                namespace: svc.map_or(&reported.namespace, |svc| svc.namespace).clone(),
                kind: svc.map_or(reported.kind, |svc| svc.key.kind),
                workload: svc.map_or(&reported.workload, |svc| &svc.key.name).clone(),
                uid: reported.uid.clone(),
                slot: reported.slot.clone(),
                state,
                n: reported.n,
                digest: known.unwrap_or_else(|| reported.digest.clone()),
                ports: reported.ports.clone(),
                image: svc.and_then(|svc| {
                    let now = self.memory.settled.now.get(&inst.svc);
                    images::of_number(self.snapshot, svc, &self.lives[svc.life], reported, now)
                }),
                from: Vec::new(),
            }
        };
        entry.state = state;
        if inst.mint && self.is_exclusive(inst.svc) {
            entry.token = Some(self.new_token(inst.svc, inst.slot));
        }
        if state != AssignedState::Absent && inst.to_n != inst.n {
            let live = self.in_force(inst.svc as usize)?;
            entry.n = live.n;
            entry.digest = live.digest.clone().into_owned();
            entry.image = self.memory.svcs[inst.svc as usize].image.assigned();
            entry.from = self.sources_of(inst, entry.image, holders);
        } else if state != AssignedState::Absent && inst.repin {
            let svc = &self.memory.svcs[inst.svc as usize];
            entry.image = self.memory.settled.assigned(inst, svc).or(entry.image);
            entry.from = self.sources_of(inst, entry.image, holders);
        } else if let Some(from) = self.asks.get(&at).filter(|from| !from.is_empty()) {
            entry.from.clone_from(from);
        } else if state == AssignedState::Absent || inst.seen.running && inst.seen.in_force {
            // It needs nobody any more: a node's document stays short.
            entry.from.clear();
        }
        if self.net.is_none() {
            // What a report calls its address is the engine's own doing, in a network of the engine's.
            entry.address = None;
        } else if state != AssignedState::Absent {
            entry.address = self.address_of(at).filter(|_| self.is_bridged(inst));
            entry.seeds = self.seeds_for(inst.svc, &entry.seeds);
        }
        if let Some(ports) = self.ports.get(&at) {
            entry.ports.clone_from(ports);
        }
        Some(entry)
    }

    fn assigned_new(&self, at: u32, new: &New, state: AssignedState, holders: &mut Holders) -> Option<Assigned> {
        let svc = &self.memory.svcs[new.want.svc as usize];
        let live = self.in_force(new.want.svc as usize)?;
        // Who is prepared holds nothing yet.
        let holds = svc.exclusive && state == AssignedState::Present;
        Some(Assigned {
            address: self.given.to_new(at),
            seeds: self.seeds_for(new.want.svc, &[]),
            token: holds.then(|| self.new_token(new.want.svc, new.want.slot)),
            namespace: svc.namespace.clone(),
            kind: svc.key.kind,
            workload: svc.key.name.clone(),
            uid: live.uid.clone().into_owned(),
            slot: self.memory.slot(new.want.slot, &self.nodes),
            state,
            n: live.n,
            digest: live.digest.clone().into_owned(),
            ports: new.ports.clone(),
            image: svc.image.assigned(),
            from: self.sources(new.want.svc, new.node, svc.image.assigned(), holders),
        })
    }

    pub(super) fn removal_list(&self) -> Vec<Removal> {
        let mut list: Vec<Removal> = self
            .removals
            .iter()
            .filter_map(|judged| {
                let inst = &self.memory.insts[judged.inst as usize];
                Some(Removal {
                    key: self.memory.svcs.get(inst.svc as usize)?.key.clone(),
                    uid: self.uid(inst)?.clone(),
                    slot: self.memory.slot(inst.slot, &self.nodes),
                    node: self.nodes.list[inst.node as usize].name.clone(),
                    reason: judged.reason.clone(),
                    own: judged.own,
                    held: judged.held,
                })
            })
            .collect();
        list.sort_by(|a, b| (&a.key, &a.slot, &a.node).cmp(&(&b.key, &b.slot, &b.node)));
        list
    }
}

/// By namespace, workload and slot; a new instance in a slot whose old entry on this very node is still listed takes its
/// place.
fn sort_and_merge(instances: &mut Vec<Assigned>) {
    instances.sort_by(|a, b| {
        (&a.namespace, &a.workload, &a.slot, &a.uid, a.state).cmp(&(
            &b.namespace,
            &b.workload,
            &b.slot,
            &b.uid,
            b.state,
        ))
    });
    instances.dedup_by(|next, kept| {
        let same = (&next.uid, &next.slot) == (&kept.uid, &kept.slot)
            && (&next.namespace, &next.workload) == (&kept.namespace, &kept.workload);
        if same && kept.state == AssignedState::Absent {
            std::mem::swap(next, kept);
        }
        same
    });
}
