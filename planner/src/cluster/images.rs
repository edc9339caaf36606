//! What the tag in a service's spec stands for. It is settled once for an accepted spec, by the first report of a node that
//! was given an instance of it, and holds for all its slots, also those that come later; a spec with the same reference
//! takes it over. The service's status remembers it, and so does every assignment. `memory.rs` asks while it is built.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::container::PullPolicy;
use schemas::image::ImagePin;
use schemas::records::{Assigned, AssignedImage, ImageSource, ReportedInstance, ServiceStatus, SettledImage};
use schemas::service::ServiceSpec;

use super::accept::{Life, Standing, record};
use super::memory::{Inst, Svc, service_of};
use super::pass::Pass;
use super::snapshot::Snapshot;
use super::world::{NONE, Node, Nodes};
use crate::change::{Cost, cost, is_tagged};

/// How many numbers a status remembers: as many as there are accepted records for people to go back to.
const REMEMBERED: usize = 20;

/// How many nodes an assignment names that have an image.
const SOURCES: usize = 3;
/// Of how many those are chosen.
const KNOWN_SOURCES: usize = 64;
/// The longest address of an agent that is passed on.
const MAX_ADDRESS: usize = 300;

/// What the image of the spec in force is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ImageOf {
    /// What its reference says: a digest, or whatever is on the node.
    #[default]
    Named,
    /// Not settled yet.
    Open,
    Settled(ImagePin),
}

impl ImageOf {
    /// What an assignment says of it.
    pub(super) fn assigned(self) -> Option<AssignedImage> {
        match self {
            Self::Named => None,
            Self::Open => Some(AssignedImage::Settling),
            Self::Settled(pin) => Some(AssignedImage::Settled(pin)),
        }
    }
}

/// The images that a service's status remembers, where it speaks of this life.
fn known<'s>(status: Option<&'s Arc<ServiceStatus>>, life: &Life<'_>) -> &'s [SettledImage] {
    let uid = match &life.standing {
        Standing::Live(live) => &*live.uid,
        Standing::Never | Standing::Deleted | Standing::Held { .. } => return &[],
    };
    let same_life = status.filter(|status| status.uid.as_ref() == Some(uid));
    same_life.map_or(&[], |status| &status.images)
}

/// What the image of number `n` is: settled for itself, or for another number that means the same by it.
fn settled(life: &Life<'_>, known: &[SettledImage], n: u64, spec: &ServiceSpec) -> Option<ImagePin> {
    let lends = |one: &&SettledImage| one.image == spec.container.image && keeps(life, one.n, spec);
    let own = known.iter().find(|one| one.n == n);
    let before = || known.iter().rev().filter(|one| one.n < n).find(lends);
    let after = || known.iter().filter(|one| one.n > n).find(lends);
    own.or_else(before).or_else(after).map(|one| one.pin)
}

/// What the image of the spec in force is, as the status remembers it.
pub(super) fn remembered(life: &Life<'_>, n: u64, spec: &ServiceSpec, status: Option<&Arc<ServiceStatus>>) -> ImageOf {
    settled(life, known(status, life), n, spec).map_or(ImageOf::Open, ImageOf::Settled)
}

/// Whether a spec with the same reference means what number `n` meant. With `Always` only where no container is replaced:
/// whoever asks for that wants new containers to have what the tag stands for by then.
fn keeps(life: &Life<'_>, n: u64, spec: &ServiceSpec) -> bool {
    spec.container.pull_policy != PullPolicy::Always
        || spec_of(life, n).is_some_and(|old| !matches!(cost(old, spec), Cost::Replace { .. }))
}

fn spec_of<'l>(life: &'l Life<'_>, n: u64) -> Option<&'l ServiceSpec> {
    let (record, _) = record(life.history?, life.key, n)?;
    service_of(&record.body)
}

/// What a pass has found out about images.
#[derive(Default)]
pub(super) struct Settled {
    /// What is settled now and was not before, by service.
    pub now: BTreeMap<u32, Vec<SettledImage>>,
    /// What other numbers than the one in force have for an image, where an instance of theirs has yet to be told.
    older: BTreeMap<(u32, u64), ImagePin>,
}

impl Settled {
    /// What the assignment of an instance says of its image from now on, where it says something else than before.
    pub(super) fn assigned(&self, inst: &Inst, svc: &Svc<'_>) -> Option<AssignedImage> {
        match svc.image {
            ImageOf::Settled(pin) if inst.n == svc.n => Some(AssignedImage::Settled(pin)),
            ImageOf::Named | ImageOf::Open | ImageOf::Settled(_) => self
                .older
                .get(&(inst.svc, inst.n))
                .map(|pin| AssignedImage::Settled(*pin)),
        }
    }
}

/// Settles what is open and was told: by the lowest slot, and of those by the first node in order of names. `waiting` are
/// the places of instances that do not know yet what their image is, though somebody may.
pub(super) fn settle(
    snapshot: &Snapshot,
    lives: &[Life<'_>],
    nodes: &Nodes<'_>,
    svcs: &mut [Svc<'_>],
    insts: &mut [Inst],
    waiting: &[u32],
) -> Settled {
    let mut out = Settled::default();
    let mut by_svc: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for at in waiting {
        by_svc.entry(insts[*at as usize].svc).or_default().push(*at);
    }
    for (at, waiting) in by_svc {
        let svc = &mut svcs[at as usize];
        let life = &lives[svc.life];
        let status = snapshot.service_statuses.get(svc.key);
        let mut known = known(status.and_then(|stored| stored.value.as_ref().ok()), life).to_vec();
        let mut told: Vec<(u64, bool, u64, u32, ImagePin)> = Vec::new();
        told.extend(waiting.iter().filter_map(|inst| told_by(&insts[*inst as usize], nodes)));
        // Of each number, what an assignment says goes before what is only reported.
        told.sort_unstable();
        for (n, _, _, _, pin) in told {
            let Some(spec) = spec_of(life, n).filter(|spec| is_tagged(spec)) else {
                continue;
            };
            if settled(life, &known, n, spec).is_none() {
                let image = spec.container.image.clone();
                let new = SettledImage { n, image, pin };
                known.push(new.clone());
                known.sort_by_key(|one| one.n);
                out.now.entry(at).or_default().push(new);
            }
        }
        if let (ImageOf::Open, Some(spec)) = (svc.image, svc.spec) {
            svc.image = settled(life, &known, svc.n, spec).map_or(ImageOf::Open, ImageOf::Settled);
        }
        for inst in waiting {
            let inst = &mut insts[inst as usize];
            if inst.n != svc.n
                && let Some(spec) = spec_of(life, inst.n).filter(|spec| is_tagged(spec))
                && let Some(pin) = settled(life, &known, inst.n, spec)
            {
                out.older.insert((at, inst.n), pin);
            }
            inst.repin = !inst.seen.pinned && out.assigned(inst, svc).is_some();
        }
    }
    // Others of their services may have been told nothing themselves.
    for inst in insts.iter_mut().filter(|inst| out.now.contains_key(&inst.svc)) {
        let svc = &svcs[inst.svc as usize];
        inst.repin |= !inst.seen.pinned && inst.assigned != NONE && out.assigned(inst, svc).is_some();
    }
    out
}

/// The number, whether it is only reported, the slot, the node, and the image. Only a node that was given an instance of this
/// number has a say.
fn told_by(inst: &Inst, nodes: &Nodes<'_>) -> Option<(u64, bool, u64, u32, ImagePin)> {
    let node = nodes.list.get(inst.node as usize)?;
    let assigned = node.assignment?.instances.get(inst.assigned as usize)?;
    let n = assigned.n;
    let reported = || {
        let said = node.report?.instances.get(inst.reported as usize)?;
        match &said.next {
            _ if said.n == n => said.image,
            Some(next) if next.n == n => next.image,
            Some(_) | None => None,
        }
    };
    let (only_reported, pin) = match assigned.image {
        Some(AssignedImage::Settled(pin)) => (false, pin),
        Some(AssignedImage::Settling) | None => (true, reported()?),
    };
    Some((n, only_reported, inst.slot, inst.node, pin))
}

/// What the image of a number is that a node reports, and that is written into its assignment anew: to be settled where
/// nothing remembers it. What the node itself says counts in the pass after this one, beside what others say.
pub(super) fn of_number(
    snapshot: &Snapshot,
    svc: &Svc<'_>,
    life: &Life<'_>,
    reported: &ReportedInstance,
    now: Option<&Vec<SettledImage>>,
) -> Option<AssignedImage> {
    let spec = spec_of(life, reported.n).filter(|spec| is_tagged(spec))?;
    if let (ImageOf::Settled(pin), true) = (svc.image, svc.n == reported.n) {
        return Some(AssignedImage::Settled(pin));
    }
    let status = snapshot.service_statuses.get(svc.key);
    let mut known = known(status.and_then(|stored| stored.value.as_ref().ok()), life).to_vec();
    known.extend(now.into_iter().flatten().cloned());
    known.sort_by_key(|one| one.n);
    let pin = settled(life, &known, reported.n, spec);
    Some(pin.map_or(AssignedImage::Settling, AssignedImage::Settled))
}

/// The nodes that have an image, found out once a pass for each service that asks; at most [`KNOWN_SOURCES`] of each.
#[derive(Default)]
pub(super) struct Holders {
    nodes: BTreeMap<(u32, ImagePin), Vec<u32>>,
    /// The services that run an image, by the image; found out when a service asks none of whose own nodes has it.
    services: Option<BTreeMap<ImagePin, Vec<u32>>>,
}

impl Pass<'_> {
    /// Which nodes are to be asked for the image where its registry does not give it: of those that have it, different
    /// ones first by different nodes. None where nobody has it, and where this very node does.
    pub(super) fn sources(
        &self,
        svc: u32,
        node: u32,
        image: Option<AssignedImage>,
        holders: &mut Holders,
    ) -> Vec<ImageSource> {
        let Some(AssignedImage::Settled(pin)) = image else {
            return Vec::new();
        };
        if !holders.nodes.contains_key(&(svc, pin)) {
            let found = self.find_holders(svc, pin, &mut holders.services);
            holders.nodes.insert((svc, pin), found);
        }
        let known = holders.nodes.get(&(svc, pin)).map_or(&[][..], Vec::as_slice);
        if known.is_empty() || known.contains(&node) {
            return Vec::new();
        }
        let chosen = known.iter().cycle().skip(node as usize % known.len());
        let source = |at: &u32| {
            let node = &self.nodes.list[*at as usize];
            Some(ImageSource {
                node: node.name.clone(),
                api: api(node)?.to_owned(),
            })
        };
        chosen.take(known.len().min(SOURCES)).filter_map(source).collect()
    }

    /// The same for an instance that is assigned already.
    pub(super) fn sources_of(
        &self,
        inst: &Inst,
        image: Option<AssignedImage>,
        holders: &mut Holders,
    ) -> Vec<ImageSource> {
        match image {
            Some(AssignedImage::Settled(pin)) if !self.has(inst, pin) => {
                self.sources(inst.svc, inst.node, image, holders)
            }
            Some(AssignedImage::Settled(_) | AssignedImage::Settling) | None => Vec::new(),
        }
    }

    /// Tells those that nobody gives their image whom else to ask, where none of those they were told of has it any more.
    pub(super) fn name_sources(&mut self) {
        let mut holders = Holders::default();
        let mut asks = BTreeMap::new();
        for at in &self.memory.starved {
            let inst = &self.memory.insts[*at as usize];
            let listed = self.listed(inst).filter(|_| inst.to_n == inst.n && inst.stays());
            let Some((listed, AssignedImage::Settled(pin))) = listed.and_then(|listed| Some((listed, listed.image?)))
            else {
                continue;
            };
            if listed.from.iter().any(|source| self.gives(source, pin)) {
                if inst.seen.stale {
                    asks.insert(*at, Vec::new());
                }
                continue;
            }
            let from = self.sources(inst.svc, inst.node, listed.image, &mut holders);
            if !from.is_empty() {
                asks.insert(*at, from);
            }
        }
        self.asks = asks;
    }

    /// The nodes of this service that have the image; else those of others that run it. In order of slots.
    fn find_holders(&self, svc: u32, pin: ImagePin, services: &mut Option<BTreeMap<ImagePin, Vec<u32>>>) -> Vec<u32> {
        let mut found = Vec::new();
        self.add_holders(svc, pin, &mut found);
        if found.is_empty() {
            let services = services.get_or_insert_with(|| {
                let mut services: BTreeMap<ImagePin, Vec<u32>> = BTreeMap::new();
                for (at, svc) in (0..).zip(&self.memory.svcs) {
                    if let ImageOf::Settled(pin) = svc.image {
                        services.entry(pin).or_default().push(at);
                    }
                }
                services
            });
            for other in services.get(&pin).into_iter().flatten() {
                self.add_holders(*other, pin, &mut found);
            }
        }
        found
    }

    fn add_holders(&self, svc: u32, pin: ImagePin, found: &mut Vec<u32>) {
        for offset in 0..self.memory.svcs.get(svc as usize).map_or(0, |svc| svc.slots) {
            for (_, inst) in self.memory.in_slot(svc as usize, offset) {
                let node = &self.nodes.list[inst.node as usize];
                if found.len() < KNOWN_SOURCES
                    && self.has(inst, pin)
                    && node.reachable()
                    && api(node).is_some()
                    && !found.contains(&inst.node)
                {
                    found.push(inst.node);
                }
            }
            if found.len() == KNOWN_SOURCES {
                break;
            }
        }
    }

    /// Whether the image is on the instance's node: it is made of it, or keeps it for later, or was found there.
    fn has(&self, inst: &Inst, pin: ImagePin) -> bool {
        let seen = &inst.seen;
        if seen.pinned && (seen.running && seen.in_force || seen.prepared) {
            return self
                .listed(inst)
                .is_some_and(|listed| listed.image == Some(AssignedImage::Settled(pin)));
        }
        seen.imaged
            && self.reported(inst).is_some_and(|said| {
                let next = said.next.as_ref().and_then(|next| next.image);
                said.image == Some(pin) || next == Some(pin)
            })
    }

    /// Whether a node that an assignment names has the image still, and is to be found where that says.
    fn gives(&self, source: &ImageSource, pin: ImagePin) -> bool {
        let Some(at) = self.nodes.find(&source.node).map(|at| at as usize) else {
            return false;
        };
        let node = &self.nodes.list[at];
        let here = self.memory.starts[at] as usize..self.memory.starts[at + 1] as usize;
        node.reachable()
            && api(node) == Some(source.api.as_str())
            && self.memory.insts[here].iter().any(|inst| self.has(inst, pin))
    }

    fn listed(&self, inst: &Inst) -> Option<&Assigned> {
        let assignment = self.nodes.list[inst.node as usize].assignment?;
        assignment.instances.get(inst.assigned as usize)
    }
}

/// Where other nodes find a node's agent.
fn api<'n>(node: &Node<'n>) -> Option<&'n str> {
    let api = node.facts.and_then(|facts| facts.addresses.api.as_deref());
    api.filter(|api| api.len() <= MAX_ADDRESS)
}

/// What the status remembers from now on. `before` is what it remembers.
pub(super) fn to_remember(
    svc: &Svc<'_>,
    life: &Life<'_>,
    before: Option<&Arc<ServiceStatus>>,
    now: Option<&Vec<SettledImage>>,
) -> Vec<SettledImage> {
    let mut images = known(before, life).to_vec();
    images.extend(now.into_iter().flatten().cloned());
    if let (ImageOf::Settled(pin), Some(spec)) = (svc.image, svc.spec)
        && images.iter().all(|one| one.n != svc.n)
    {
        let image = spec.container.image.clone();
        images.push(SettledImage { n: svc.n, image, pin });
    }
    images.sort_by_key(|one| one.n);
    images.drain(..images.len().saturating_sub(REMEMBERED));
    images
}
