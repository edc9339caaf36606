//! One instance's walk: from what is assigned, what is observed and what the ledger remembers to its next step, its next
//! ledger entry and its line in the report. A walk orders nothing but on the container its entry owns.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use schemas::container::{NetworkMode, PullPolicy};
use schemas::image::{ImagePin, ImageRef};
use schemas::records::network::address6;
use schemas::records::{
    Assigned, AssignedImage, Failing, FailingReason, ImageSource, InstanceCondition, Next, Phase, ReportedInstance,
    Seeds,
};
use schemas::service::{RestartPolicy, ServiceSpec};
use schemas::units::Span;

use super::labels::OwnLabels;
use super::ledger::{InForce, LedgerEntry, Owned, Trying, Up};
use super::plan::{InTheWay, Walked, World, earlier, network_name};
use super::types::{
    ContainerState, FileId, Ground, InstanceKey, Making, NetworkEnd, NodeInput, NodePlan, Observed, Op, Permit, Probe,
    ProbeTarget, Pull, PullFailure, Reason, Seat, SecretState, SpecId, SpecState, Step,
};
use crate::change::{Cost, backoff, cost, is_tagged};

/// A row of restarts ends when the instance has been ready for this long.
const ROW_ENDS_MS: u64 = 600_000;
/// From this many restarts in a row on it is a crash loop.
const CRASH_LOOP: u32 = 3;
/// A container that the engine is removing is looked at again after this.
const REMOVING_MS: u64 = 1_000;
/// The longest message of a failing instance, in characters.
const MESSAGE_CHARS: usize = 1_024;

/// What an instance is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Prepared(InForce),
    Present(InForce),
    /// The number its entry names: what it is reported under while nobody knows more of it.
    Absent(InForce),
    /// No record knows it: kept as it is.
    Orphaned,
}

/// The delay before try number `count` in a row (from 1): doubling, and spread over its upper half by instance and count,
/// so that what fails together is not tried together.
pub(super) fn delay(key: &InstanceKey, count: u32, initial: u64, max: u64) -> u64 {
    let bound = initial
        .saturating_mul(1 << count.saturating_sub(1).min(30))
        .min(max)
        .max(1);
    let text = format!("{} {} {count}", key.uid, key.slot);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    bound - bound / 2 + (hash >> 17) % (bound / 2 + 1)
}

/// What an assignment says of an instance's image, and of its place in the cluster's network.
#[derive(Clone, Copy, Default)]
pub(super) struct Said<'a> {
    image: Option<AssignedImage>,
    from: &'a [ImageSource],
    address: Option<Ipv4Addr>,
    seeds: &'a [Seeds],
    token: Option<u64>,
}

impl<'a> Said<'a> {
    pub(super) fn of(assigned: &'a Assigned) -> Self {
        Self {
            image: assigned.image,
            from: &assigned.from,
            address: assigned.address,
            seeds: &assigned.seeds,
            token: assigned.token,
        }
    }
}

pub(super) struct Walk<'a, 'o> {
    input: &'a NodeInput,
    world: &'o World<'a>,
    key: &'o InstanceKey,
    goal: &'o Goal,
    /// What the assignment says of the image of the goal's spec.
    image: Option<AssignedImage>,
    /// Which nodes have it.
    from: &'a [ImageSource],
    /// Its address in the cluster's network, and those it is told.
    address: Option<Ipv4Addr>,
    seeds: &'a [Seeds],
    /// Its token, as assigned.
    token: Option<u64>,
    /// Until when its container may be started, where that goes by the store's word.
    until_ms: Option<u64>,
    entry: LedgerEntry,
    out: &'o mut NodePlan,
    next: Option<Next>,
    /// Shown in the report instead of what the entry remembers: derived anew in every pass.
    failing: Option<Failing>,
}

/// Whether the node's policy lets a container be made.
enum May {
    Yes,
    No,
    Unknown,
}

/// What is known of an image that an instance waits for.
enum ImageState {
    Ready,
    /// It is here. What its tag stands for is being settled.
    Settling,
    /// Looked up, or waiting for its turn.
    Unknown,
    Pulling(u8),
}

impl<'a, 'o> Walk<'a, 'o> {
    pub(super) fn new(
        input: &'a NodeInput,
        world: &'o World<'a>,
        key: &'o InstanceKey,
        goal: &'o Goal,
        said: Said<'a>,
        entry: LedgerEntry,
        out: &'o mut NodePlan,
    ) -> Self {
        Self {
            input,
            world,
            key,
            goal,
            image: said.image,
            from: said.from,
            address: said.address,
            seeds: said.seeds,
            token: said.token,
            until_ms: None,
            entry,
            out,
            next: None,
            failing: None,
        }
    }

    pub(super) fn run(mut self) -> Walked {
        if self.input.observed.is_err() {
            return self.unseen();
        }
        if !self.adopt() {
            // A candidate is being looked at. Nothing is begun before that, or there might be two.
            return self.report(Phase::Held, None, None);
        }
        let container = self.entry.container_id().and_then(|id| self.world.container(id));
        let gone = self.entry.container_id().is_some() && container.is_none();
        if gone {
            self.entry.container = None;
            self.entry.up = None;
        }
        self.learn_image();
        match self.goal.clone() {
            Goal::Absent(_) => self.absent(container),
            Goal::Orphaned => self.orphaned(container),
            Goal::Prepared(spec) => self.prepared(container, spec),
            Goal::Present(spec) => self.present(container, spec, gone),
        }
    }

    /// The engine does not answer: what is known is told, nothing is done.
    fn unseen(mut self) -> Walked {
        let phase = match (&self.entry.up, self.goal) {
            (Some(_), _) => Phase::Running,
            // Gone is only what an engine without it says: with the ledger lost it may run for all we know.
            (None, Goal::Absent(_)) => Phase::Held,
            (None, _) => Phase::Pending,
        };
        let n = self.shown_spec().map_or(0, |spec| spec.n);
        self.failing = Some(failing(
            n,
            FailingReason::EngineUnavailable,
            "the engine does not answer",
        ));
        let known = self.input.ledger.entries.get(self.key).cloned();
        let (reported, _, _) = self.report(phase, None, None);
        (
            reported.map(|line| ReportedInstance { ready: false, ..line }),
            known,
            None,
        )
    }

    /// What the assignment says of the image of the spec that is in force already.
    fn learn_image(&mut self) {
        let target = match self.goal {
            Goal::Prepared(spec) | Goal::Present(spec) => spec.n,
            Goal::Absent(_) | Goal::Orphaned => return,
        };
        let n = self.entry.in_force.as_ref().map(|spec| spec.n);
        if n == Some(target) && self.image.is_some() {
            self.entry.image = self.image;
        }
        self.entry
            .found
            .retain(|found, _| *found == target || Some(*found) == n);
    }

    // ---- whose container -------------------------------------------------------------------------------------------

    /// Finds the container of an instance that has none in the ledger, or only an intent. False: wait, one is examined.
    fn adopt(&mut self) -> bool {
        if self.entry.container_id().is_some() {
            return true;
        }
        let intent = self
            .entry
            .container
            .as_ref()
            .map(|owned| (owned.spec.n, owned.spec.digest.clone()));
        let mut best: Option<(bool, u64, &Observed, OwnLabels)> = None;
        for candidate in self.world.candidates(self.key) {
            let Some(labels) = candidate.own() else { continue };
            let intended = intent
                .as_ref()
                .is_some_and(|(n, digest)| *n == labels.n && *digest == labels.digest);
            // Also of one that was intended: a person may have made a copy under its name before us.
            let Some(spec) = self.spec(&labels.spec()) else {
                return false;
            };
            let Ok(spec) = spec else { continue };
            if candidate.details.is_none() {
                self.out.inspect.insert(candidate.id.clone());
                return false;
            }
            if !same_image(&candidate.image, &spec.container.image, self.pin(labels.n)) {
                continue;
            }
            let wanted = match self.goal {
                Goal::Present(spec) | Goal::Prepared(spec) => spec.n == labels.n,
                Goal::Absent(_) | Goal::Orphaned => false,
            };
            if best
                .as_ref()
                .is_none_or(|(was_wanted, n, _, _)| (*was_wanted, *n) < (wanted || intended, labels.n))
            {
                best = Some((wanted || intended, labels.n, candidate, labels));
            }
        }
        let Some((_, _, container, labels)) = best else {
            return true;
        };
        let ports = match (&self.entry.container, self.goal) {
            (Some(owned), _) if owned.spec.n == labels.n => owned.spec.ports.clone(),
            (_, Goal::Present(spec) | Goal::Prepared(spec)) => spec.ports.clone(),
            (_, Goal::Absent(_) | Goal::Orphaned) => Vec::new(),
        };
        let spec = InForce {
            n: labels.n,
            digest: labels.digest,
            ports,
        };
        if self.entry.in_force.is_none() {
            // What it was made of is what its number was settled to be.
            let digest = container.image.parse::<ImageRef>().ok();
            let digest = digest.and_then(|image| image.pinned());
            self.entry.image = digest.map(|digest| {
                let id = container.image_id.unwrap_or(digest);
                AssignedImage::Settled(ImagePin { digest, id })
            });
            self.entry.in_force = Some(spec.clone());
        }
        self.entry.container = Some(Owned {
            id: Some(container.id.clone()),
            spec,
            token: labels.token,
        });
        true
    }

    /// An accepted spec: None when it is not here yet (then it is asked for), Err when it cannot be had.
    fn spec(&mut self, id: &SpecId) -> Option<Result<Arc<ServiceSpec>, String>> {
        match self.input.specs.get(id) {
            Some(SpecState::Here(spec)) => Some(Ok(spec.clone())),
            Some(SpecState::Damaged(why)) => Some(Err(why.clone())),
            None => {
                self.out.wanted_specs.insert(id.clone());
                None
            }
        }
    }

    fn spec_of(&mut self, spec: &InForce) -> Option<Result<Arc<ServiceSpec>, String>> {
        self.spec(&self.key.spec(spec.n, &spec.digest))
    }

    /// What the node's policy says of a container of this spec: None when that is not known yet, and then it is asked for.
    fn permit(&mut self, spec: &InForce) -> Option<Permit> {
        let Some(permits) = &self.input.permits else {
            return Some(Permit::Granted);
        };
        let making = Making {
            spec: self.key.spec(spec.n, &spec.digest),
            ports: spec.ports.clone(),
            image: self.pin(spec.n).map(|pin| pin.digest),
        };
        let known = permits.get(&making).cloned();
        if known.is_none() {
            self.out.wanted_permits.insert(making);
        }
        known
    }

    /// Whether a container of this spec may be made. Sets `failing` where the policy says no.
    fn may_make(&mut self, spec: &InForce) -> May {
        match self.permit(spec) {
            Some(Permit::Granted) => May::Yes,
            Some(Permit::Denied(why) | Permit::Withheld(why)) => {
                self.failing = Some(failing(spec.n, FailingReason::PolicyDenied, &why));
                May::No
            }
            None => May::Unknown,
        }
    }

    // ---- goals -----------------------------------------------------------------------------------------------------

    fn absent(mut self, container: Option<&'a Observed>) -> Walked {
        let Some(container) = container else {
            if self.input.busy.contains(self.key) {
                // A create ordered before may be under way: it is not gone until that has ended and a list lacks it.
                return self.report(Phase::Stopping, None, None);
            }
            return (None, None, None);
        };
        let step = self.end(container, Reason::Absent);
        self.report(Phase::Stopping, Some(container), step)
    }

    /// Stops, then removes the container: one step at a time, whatever state it is in.
    fn end(&mut self, container: &Observed, reason: Reason) -> Option<Step> {
        if let Some(up) = &mut self.entry.up {
            up.ready_ms = None;
        }
        if self.waits(self.entry.retry_after_ms) {
            return None;
        }
        let id = container.id.clone();
        let op = match container.state {
            ContainerState::Running | ContainerState::Restarting if self.entry.kill => Op::Kill { id },
            ContainerState::Running | ContainerState::Restarting => Op::Stop {
                id,
                grace: self.grace(),
            },
            ContainerState::Paused => Op::Unpause { id },
            ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Dead => Op::Remove { id },
            ContainerState::Removing => {
                self.waits(self.input.now_ms + REMOVING_MS);
                return None;
            }
        };
        Some(self.step(op, reason))
    }

    fn grace(&mut self) -> Span {
        let spec = self.entry.in_force.clone().and_then(|spec| self.spec_of(&spec));
        spec.and_then(Result::ok)
            .map_or(Span::from_secs(10), |spec| spec.container.grace())
    }

    fn orphaned(mut self, container: Option<&'a Observed>) -> Walked {
        let (Some(container), Some(spec)) = (container, self.entry.in_force.clone()) else {
            return (None, None, None);
        };
        match self.spec_of(&spec) {
            Some(Ok(spec)) => {
                let (_, step) = self.keep(container, &spec);
                self.report(Phase::Orphaned, Some(container), step)
            }
            Some(Err(_)) | None => self.report(Phase::Orphaned, Some(container), None),
        }
    }

    fn prepared(mut self, container: Option<&'a Observed>, target: InForce) -> Walked {
        if let Some(container) = container {
            // It runs already. Being prepared is no order to stop.
            let spec = self
                .entry
                .in_force
                .clone()
                .and_then(|spec| self.spec_of(&spec))
                .and_then(Result::ok);
            let Some(spec) = spec else {
                return self.report(Phase::Held, Some(container), None);
            };
            let (phase, step) = self.keep(container, &spec);
            return self.report(phase, Some(container), step);
        }
        if self.entry.in_force.as_ref() != Some(&target) {
            self.entry.image = self.image;
        }
        self.entry.in_force = Some(target.clone());
        self.entry.container = None;
        let spec = match self.spec_of(&target) {
            Some(Ok(spec)) => spec,
            Some(Err(why)) => return self.unreadable(&target, &why, None),
            None => return self.report(Phase::Pending, None, None),
        };
        match self.may_make(&target) {
            May::Yes => {}
            May::No => return self.report(Phase::Failed, None, None),
            May::Unknown => return self.report(Phase::Pending, None, None),
        }
        let phase = match self.image(&spec, target.n, Reason::Prepared) {
            ImageState::Ready | ImageState::Settling => Phase::Prepared,
            ImageState::Pulling(percent) => Phase::Pulling { percent },
            ImageState::Unknown => Phase::Pending,
        };
        self.report(phase, None, None)
    }

    fn present(mut self, container: Option<&'a Observed>, target: InForce, gone: bool) -> Walked {
        self.entry.token = self.token.or(self.entry.token);
        self.bring_into_force(container, &target);
        let Some(in_force) = self.entry.in_force.clone() else {
            // The first spec is not here.
            return match self.spec_of(&target) {
                Some(Err(why)) => self.unreadable(&target, &why, container),
                Some(Ok(_)) | None => self.report(Phase::Pending, container, None),
            };
        };
        let spec = match self.spec_of(&in_force) {
            Some(Ok(spec)) => spec,
            Some(Err(why)) => return self.unreadable(&in_force, &why, container),
            None => return self.report(Phase::Held, container, None),
        };
        let Some(container) = container else {
            return self.create(&in_force, &spec, gone);
        };
        match self.replacing(&in_force, &spec, in_force == target) {
            Replacing::No => {
                let (phase, step) = self.keep(container, &spec);
                self.report(phase, Some(container), step)
            }
            Replacing::Unknown => self.report(Phase::Held, Some(container), None),
            Replacing::Yes { from, fields } => {
                let reason = Reason::SpecChanged {
                    from,
                    to: in_force.n,
                    fields,
                };
                if !matches!(self.may_make(&in_force), May::Yes) {
                    // Its successor must not be made, or nobody knows yet: the old one runs on.
                    return self.run_on(container, &spec);
                }
                if self.input.disk_full {
                    // Its successor could not be made: the old one runs on until there is space.
                    self.failing = Some(disk_full(in_force.n));
                    return self.run_on(container, &spec);
                }
                if !matches!(self.image(&spec, in_force.n, reason.clone()), ImageState::Ready) {
                    // It was here when the spec came into force and has gone since: the old one runs on until it is back.
                    return self.run_on(container, &spec);
                }
                self.try_for(in_force.n);
                let step = self.end(container, reason);
                self.report(Phase::Stopping, Some(container), step)
            }
        }
    }

    /// Keeps the container that a spec in force is to replace, and says that this spec is not ready.
    fn run_on(mut self, container: &Observed, spec: &Arc<ServiceSpec>) -> Walked {
        let (phase, step) = self.keep(container, spec);
        let (reported, kept, step) = self.report(phase, Some(container), step);
        (
            reported.map(|line| ReportedInstance { ready: false, ..line }),
            kept,
            step,
        )
    }

    /// Brings the assigned spec into force, if nothing speaks against it: it is here, and either costs no container, or
    /// its image is local. Until then the one in force stays so.
    fn bring_into_force(&mut self, container: Option<&Observed>, target: &InForce) {
        let Some(old) = self.entry.in_force.clone() else {
            if let Some(Ok(_)) = self.spec_of(target) {
                self.aim(target);
            }
            return;
        };
        if old == *target {
            return;
        }
        let spec = match self.spec_of(target) {
            Some(Ok(spec)) => spec,
            Some(Err(why)) => {
                self.next = Some(next(target.n, Phase::Held));
                self.failing = Some(failing(target.n, FailingReason::SpecUnreadable, &why));
                return;
            }
            None => {
                self.next = Some(next(target.n, Phase::Pending));
                return;
            }
        };
        let from = self
            .entry
            .container
            .as_ref()
            .map_or_else(|| old.clone(), |owned| owned.spec.clone());
        let old_spec = self.spec_of(&from).and_then(Result::ok);
        let ports_stay = from.ports == target.ports;
        let fields = match old_spec.as_ref().map(|old| cost(old, &spec)) {
            Some(Cost::Nothing | Cost::AgentOnly { .. }) if container.is_some() && ports_stay => {
                return self.aim(target);
            }
            Some(Cost::Nothing | Cost::AgentOnly { .. }) => vec!["container.ports"],
            Some(Cost::Replace { fields }) => fields,
            // What it was made from cannot be read: it is replaced like anything that differs.
            None => vec!["container"],
        };
        if container.is_none() {
            let old_image = old_spec.map(|old| self.reference(&old, from.n));
            match old_image
                .as_ref()
                .map(|image| (image, self.input.images.get(image.as_str())))
            {
                // It can be made again, as long as its successor cannot be made.
                Some((_, Some(known))) if known.present => {}
                Some((image, None)) => {
                    self.out.look_up.insert(image.as_str().to_owned());
                    self.next = Some(next(target.n, Phase::Pending));
                    return;
                }
                // It never was, and cannot be.
                Some((_, Some(_))) | None => return self.aim(target),
            }
        }
        let waits = match self.may_make(target) {
            May::Yes => None,
            May::No => Some(Phase::Held),
            May::Unknown => Some(Phase::Pending),
        };
        if let Some(phase) = waits {
            self.next = Some(next(target.n, phase));
            return;
        }
        let reason = Reason::SpecChanged {
            from: old.n,
            to: target.n,
            fields,
        };
        let image = if self.input.disk_full {
            self.failing = Some(disk_full(target.n));
            ImageState::Unknown
        } else {
            self.image(&spec, target.n, reason)
        };
        match image {
            ImageState::Ready => self.aim(target),
            ImageState::Pulling(percent) => self.next = Some(next(target.n, Phase::Pulling { percent })),
            ImageState::Unknown => self.next = Some(next(target.n, Phase::Pending)),
            ImageState::Settling => {
                self.next = Some(Next {
                    image: self.found(target.n),
                    ..next(target.n, Phase::Pending)
                });
            }
        }
    }

    /// Puts a spec in force: what held the one before back no longer counts.
    fn aim(&mut self, target: &InForce) {
        self.entry.image = self.image;
        self.entry.in_force = Some(target.clone());
        self.entry.stopped = false;
        self.entry.row = 0;
        self.entry.failures = 0;
        self.entry.start_after_ms = 0;
        self.entry.retry_after_ms = 0;
        self.entry.failing = None;
        self.entry.trying = None;
    }

    /// What its container was made with, and what is in force: with `newest` that is what is assigned.
    fn replacing(&mut self, in_force: &InForce, spec: &ServiceSpec, newest: bool) -> Replacing {
        let Some((made_from, token)) = self.entry.container.as_ref().map(|one| (one.spec.clone(), one.token)) else {
            return Replacing::No;
        };
        if newest && self.token.is_some() && token != self.token {
            return Replacing::Yes {
                from: made_from.n,
                fields: vec!["fencingToken"],
            };
        }
        if made_from == *in_force {
            return Replacing::No;
        }
        if made_from.ports != in_force.ports {
            return Replacing::Yes {
                from: made_from.n,
                fields: vec!["container.ports"],
            };
        }
        match self.spec_of(&made_from) {
            None => Replacing::Unknown,
            Some(Err(_)) => Replacing::Yes {
                from: made_from.n,
                fields: vec!["container"],
            },
            Some(Ok(old)) => match cost(&old, spec) {
                Cost::Nothing | Cost::AgentOnly { .. } => Replacing::No,
                Cost::Replace { fields } => Replacing::Yes {
                    from: made_from.n,
                    fields,
                },
            },
        }
    }

    // ---- creating --------------------------------------------------------------------------------------------------

    fn create(mut self, in_force: &InForce, spec: &Arc<ServiceSpec>, gone: bool) -> Walked {
        let n = in_force.n;
        match self.may_make(in_force) {
            May::Yes => {}
            May::No => return self.report(Phase::Failed, None, None),
            May::Unknown => return self.report(Phase::Pending, None, None),
        }
        if self.input.disk_full {
            self.failing = Some(disk_full(n));
            return self.report(Phase::Failed, None, None);
        }
        match self.image(spec, n, Reason::Assigned) {
            ImageState::Ready => {}
            ImageState::Settling => return self.report(Phase::Pending, None, None),
            ImageState::Unknown => {
                let phase = if self.failing.is_some() {
                    Phase::Failed
                } else {
                    Phase::Pending
                };
                return self.report(phase, None, None);
            }
            ImageState::Pulling(percent) => return self.report(Phase::Pulling { percent }, None, None),
        }
        match self.input.contact.may_begin(spec, self.input.now_ms) {
            Ok(until) => self.until_ms = until,
            Err(()) => {
                self.say_isolated(n);
                return self.report(Phase::Pending, None, None);
            }
        }
        self.try_for(n);
        self.deadline(spec);
        match self.world.in_the_way(self.key, &in_force.ports) {
            None => {}
            Some(InTheWay::Predecessor | InTheWay::PortGoes) => return self.report(Phase::Pending, None, None),
            Some(InTheWay::PortStays(other, port)) => {
                let message =
                    format!("port {port} of this node is held by {other}: choose another hostPort for one of them");
                self.failing = Some(failing(n, FailingReason::PortTaken, &message));
                return self.report(Phase::Failed, None, None);
            }
        }
        if self.waits(self.entry.retry_after_ms) {
            return self.report(Phase::Failed, None, None);
        }
        if self.groundless(spec) {
            return self.report(Phase::Pending, None, None);
        }
        self.entry.container = Some(Owned {
            id: None,
            spec: in_force.clone(),
            token: self.entry.token,
        });
        self.entry.up = None;
        self.entry.restarts = 0;
        self.entry.stopped = false;
        self.entry.kill = false;
        self.entry.restarting = false;
        self.entry.conditions.clear();
        self.entry.limits = None;
        self.entry.exit_code = None;
        let labels = OwnLabels {
            cluster: self.input.cluster.clone(),
            node: self.input.node.clone(),
            instance: self.key.clone(),
            n,
            digest: in_force.digest.clone(),
            token: self.entry.token,
        };
        let op = Op::Create {
            name: labels.name(),
            labels,
            spec: spec.clone(),
            image: Box::new(self.reference_here(spec, n)),
            ports: in_force.ports.clone(),
            seat: self.seat(spec),
        };
        let step = self.step(op, if gone { Reason::Gone } else { Reason::Assigned });
        self.report(Phase::Pending, None, Some(step))
    }

    /// Whether the image, the files and the secrets are ready for a new container; asks for what is missing, and sets `failing` where
    /// it cannot be had.
    fn image(&mut self, spec: &ServiceSpec, n: u64, reason: Reason) -> ImageState {
        let files = self.files(spec, n);
        match self.image_alone(spec, n, reason) {
            ImageState::Ready if !files => ImageState::Unknown,
            state @ (ImageState::Ready | ImageState::Settling | ImageState::Unknown | ImageState::Pulling(_)) => state,
        }
    }

    /// Whether all files are on this node, as they were accepted.
    fn files(&mut self, spec: &ServiceSpec, n: u64) -> bool {
        let mut ready = true;
        for mount in &spec.container.files {
            let Some(id) = FileId::of(&self.key.namespace, mount) else {
                let why = format!(
                    "the accepted spec names no edition of file `{}`: apply it again",
                    mount.file
                );
                self.failing = Some(failing(n, FailingReason::SpecUnreadable, &why));
                ready = false;
                continue;
            };
            match self.input.files.get(&id.edition.digest) {
                Some(Ok(())) => continue,
                Some(Err(why)) => self.failing = Some(failing(n, FailingReason::FileUnavailable, why)),
                None if self.input.disk_full => self.failing = Some(disk_full(n)),
                None => {
                    self.out.wanted_files.insert(id);
                }
            }
            ready = false;
        }
        ready & self.secrets(spec, n)
    }

    /// Whether all secrets were handed to this node, as they were accepted.
    fn secrets(&mut self, spec: &ServiceSpec, n: u64) -> bool {
        let mut ready = true;
        for one in &spec.container.secrets {
            let name = &one.secret;
            let Some(edition) = &one.edition else {
                let why = format!("the accepted spec names no edition of secret `{name}`: apply it again");
                self.failing = Some(failing(n, FailingReason::SpecUnreadable, &why));
                ready = false;
                continue;
            };
            let why = match self.input.secrets.get(&edition.digest) {
                Some(Ok(SecretState::Bytes)) if one.env.is_some() => {
                    format!("secret `{name}` holds bytes that no variable can have: give it a `path` instead of `env`")
                }
                Some(Ok(SecretState::Text | SecretState::Bytes)) => continue,
                Some(Err(why)) => format!("secret `{name}`, edition {}: {why}", edition.n),
                None => format!(
                    "edition {} of secret `{name}` was not handed to this node: a controller must lead that can open it, or set it again with `reeve secret set {name}`",
                    edition.n
                ),
            };
            self.failing = Some(failing(n, FailingReason::SecretUnavailable, &why));
            ready = false;
        }
        ready
    }

    // ---- which image -----------------------------------------------------------------------------------------------

    /// What is said of the image of number `n`: by the assignment, or by what the ledger kept of an earlier one.
    fn said(&self, n: u64) -> Option<AssignedImage> {
        match self.goal {
            Goal::Prepared(spec) | Goal::Present(spec) if spec.n == n && self.image.is_some() => self.image,
            Goal::Prepared(_) | Goal::Present(_) | Goal::Absent(_) | Goal::Orphaned => {
                let in_force = self.entry.in_force.as_ref().is_some_and(|spec| spec.n == n);
                self.entry.image.filter(|_| in_force)
            }
        }
    }

    /// What the tag of number `n` was settled to be.
    fn pin(&self, n: u64) -> Option<ImagePin> {
        match self.said(n) {
            Some(AssignedImage::Settled(pin)) => Some(pin),
            Some(AssignedImage::Settling) | None => None,
        }
    }

    /// The spec's image as the engine is told it.
    fn reference(&self, spec: &ServiceSpec, n: u64) -> ImageRef {
        match self.pin(n).filter(|_| is_tagged(spec)) {
            Some(pin) => spec.container.image.at(pin.digest),
            None => spec.container.image.clone(),
        }
    }

    /// The same for a new container: where it came from another node, by the name it has then.
    fn reference_here(&self, spec: &ServiceSpec, n: u64) -> ImageRef {
        let reference = self.reference(spec, n);
        let known = self.input.images.get(reference.as_str());
        match reference.pinned() {
            Some(digest) if known.is_some_and(|image| image.loaded) => reference.loaded_as(digest),
            Some(_) | None => reference,
        }
    }

    /// What the image of number `n` is here, where the assignment is about that number and does not say.
    fn found(&self, n: u64) -> Option<ImagePin> {
        let asked = match self.goal {
            Goal::Prepared(spec) | Goal::Present(spec) => spec.n == n,
            Goal::Absent(_) | Goal::Orphaned => false,
        };
        let known = || self.pin(n).or(self.entry.found.get(&n).copied().flatten());
        match self.image {
            Some(AssignedImage::Settled(_)) => None,
            Some(AssignedImage::Settling) | None => known().filter(|_| asked),
        }
    }

    /// Finds out what the image is that a container runs, where no assignment says so.
    fn find_image(&mut self, container: &Observed, spec: &ServiceSpec) {
        // Also where its container is of an earlier number, and stays because the one in force means the same.
        let Some(n) = self.entry.in_force.as_ref().map(|spec| spec.n) else {
            return;
        };
        let known = !is_tagged(spec) || self.pin(n).is_some() || self.entry.found.contains_key(&n);
        let (false, Some(id)) = (known, container.image_id) else {
            return;
        };
        let reference = spec.container.image.as_str();
        match self.input.images.get(reference) {
            // The tag may have been moved since, on this very host.
            Some(image) => {
                let pin = image.pin.filter(|pin| pin.id == id);
                self.entry.found.insert(n, pin);
            }
            None => {
                self.out.look_up.insert(reference.to_owned());
            }
        }
    }

    fn image_alone(&mut self, spec: &ServiceSpec, n: u64, reason: Reason) -> ImageState {
        let settling = is_tagged(spec) && self.said(n) == Some(AssignedImage::Settling);
        if settling && self.found(n).is_some() {
            return ImageState::Settling;
        }
        let reference = &self.reference(spec, n);
        let Some(image) = self.input.images.get(reference.as_str()) else {
            self.out.look_up.insert(reference.as_str().to_owned());
            return ImageState::Unknown;
        };
        let fresh = match spec.container.pull_policy {
            // The bytes of a digest are the same whenever they are fetched.
            PullPolicy::Always if self.pin(n).is_some() => true,
            PullPolicy::Always => {
                let after = *self.entry.pull_after_ms.get_or_insert(self.input.now_ms);
                image.pulled_ms.is_some_and(|pulled| pulled >= after)
            }
            PullPolicy::IfNotPresent => true,
            PullPolicy::Never if !image.present => {
                let message = format!(
                    "image `{}` is not on this node, and pullPolicy is Never: load it, or change pullPolicy",
                    reference.as_str()
                );
                self.failing = Some(failing(n, FailingReason::ImageNotFound, &message));
                return ImageState::Unknown;
            }
            PullPolicy::Never => true,
        };
        // From another node only that very image counts.
        let present = image.present && (!image.loaded || image.pin.map(|pin| pin.id) == self.pin(n).map(|pin| pin.id));
        if present && fresh {
            if settling && let Some(pin) = image.pin {
                self.entry.found.insert(n, Some(pin));
                return ImageState::Settling;
            }
            return ImageState::Ready;
        }
        if self.input.disk_full {
            self.failing = Some(disk_full(n));
            return ImageState::Unknown;
        }
        let others = self.others(n);
        // What other nodes have has not failed before they were asked.
        let asks = |failed: &PullFailure| {
            others.is_some() && failed.reason == FailingReason::ImagePullFailed && !failed.others_asked
        };
        if let Some(failed) = image.failed.as_ref().filter(|failed| !asks(failed)) {
            self.failing = Some(failing(n, failed.reason, &failed.message));
            if image.pulling.is_none() && self.waits(failed.retry_ms) {
                return ImageState::Unknown;
            }
        }
        if image.pulling.is_none() {
            let pull = || Pull {
                image: reference.clone(),
                others,
                instance: self.key.clone(),
                reason,
            };
            self.out.pulls.entry(reference.as_str().to_owned()).or_insert_with(pull);
        }
        ImageState::Pulling(image.pulling.unwrap_or(0))
    }

    /// The nodes to be asked for the image of number `n` where its registry does not give it.
    fn others(&self, n: u64) -> Option<(ImagePin, Vec<ImageSource>)> {
        let target = match self.goal {
            Goal::Prepared(spec) | Goal::Present(spec) => spec.n == n,
            Goal::Absent(_) | Goal::Orphaned => false,
        };
        let known = target && !self.from.is_empty();
        self.pin(n).filter(|_| known).map(|pin| (pin, self.from.to_vec()))
    }

    // ---- keeping ---------------------------------------------------------------------------------------------------

    /// Keeps a container as it ought to be: running, ready, and not drifted.
    fn keep(&mut self, container: &Observed, spec: &Arc<ServiceSpec>) -> (Phase, Option<Step>) {
        if let Some(isolated) = self.isolated(container, spec) {
            return isolated;
        }
        let id = || container.id.clone();
        let waits = self.waits(self.entry.retry_after_ms);
        let now_or_later = |walk: &mut Self, op: Op, reason: Reason| (!waits).then(|| walk.step(op, reason));
        match container.state {
            ContainerState::Running => {
                self.find_image(container, spec);
                let step = self.running(container, spec);
                (Phase::Running, step)
            }
            ContainerState::Paused => {
                self.not_ready(spec);
                (
                    Phase::Running,
                    now_or_later(self, Op::Unpause { id: id() }, Reason::Paused),
                )
            }
            ContainerState::Restarting => {
                self.not_ready(spec);
                let reason = Reason::RestartPolicyChanged {
                    found: found_policy(container),
                };
                (
                    Phase::BackOff,
                    now_or_later(
                        self,
                        Op::UpdateLimits {
                            id: id(),
                            spec: spec.clone(),
                        },
                        reason,
                    ),
                )
            }
            ContainerState::Created => {
                self.entry.up = None;
                self.try_for_in_force();
                self.deadline(spec);
                let phase = if self.entry.failures > 0 {
                    Phase::Failed
                } else {
                    Phase::Pending
                };
                (phase, now_or_later(self, Op::Start { id: id() }, Reason::NeverStarted))
            }
            ContainerState::Exited { code } => self.ended(container, spec, code),
            ContainerState::Dead => {
                self.entry.up = None;
                (Phase::Failed, now_or_later(self, Op::Remove { id: id() }, Reason::Dead))
            }
            ContainerState::Removing => {
                self.waits(self.input.now_ms + REMOVING_MS);
                (Phase::Pending, None)
            }
        }
    }

    /// What becomes of a container that must not run without the store's word, on a node that has none; None where it may.
    fn isolated(&mut self, container: &Observed, spec: &ServiceSpec) -> Option<(Phase, Option<Step>)> {
        if spec.stop_after().is_none() && !spec.exclusive {
            return None;
        }
        let after = spec.stop_after().unwrap_or_default();
        let n = self.entry.in_force.as_ref().map_or(0, |spec| spec.n);
        let now = self.input.now_ms;
        let contact = &self.input.contact;
        let may = match container.state {
            // Nothing of it runs; by a person's hand alone.
            ContainerState::Running | ContainerState::Restarting | ContainerState::Paused => contact.may_run(spec, now),
            ContainerState::Created | ContainerState::Exited { .. } => contact.may_begin(spec, now),
            ContainerState::Dead | ContainerState::Removing => return None,
        };
        if let Ok(until) = may {
            self.until_ms = until;
            if let Some(until) = until {
                self.waits(until);
            }
            return None;
        }
        self.say_isolated(n);
        match container.state {
            ContainerState::Running | ContainerState::Restarting => {}
            ContainerState::Exited { code } => {
                // By our own hand, most likely: no row of restarts.
                if self.entry.up.take().is_some() {
                    self.entry.exit_code = code;
                }
                return Some((Phase::Stopped, None));
            }
            ContainerState::Paused | ContainerState::Created | ContainerState::Dead | ContainerState::Removing => {
                return Some((Phase::Stopped, None));
            }
        }
        if let Some(up) = &mut self.entry.up {
            up.ready_ms = None;
        }
        if self.waits(self.entry.retry_after_ms) {
            return Some((Phase::Stopping, None));
        }
        // The store's word starts it again, and not its restart policy.
        self.entry.restarting = true;
        let id = container.id.clone();
        let op = if self.entry.kill {
            Op::Kill { id }
        } else {
            let grace = spec.container.grace();
            Op::Stop { id, grace }
        };
        Some((Phase::Stopping, Some(self.step(op, Reason::Isolated { after }))))
    }

    fn say_isolated(&mut self, n: u64) {
        let why = "this node had no word of the store for as long as `onDisconnect.stopAfter` says, or its agent has just begun: it \
                   starts when the store says that it is assigned here";
        self.failing = Some(failing(n, FailingReason::Isolated, why));
    }

    fn running(&mut self, container: &Observed, spec: &Arc<ServiceSpec>) -> Option<Step> {
        let now = self.input.now_ms;
        let started_at = container
            .details
            .as_ref()
            .and_then(|details| details.started_at.clone());
        self.entry.stopped = false;
        let restarted = match (&mut self.entry.up, started_at) {
            (None, _) => true,
            (Some(up), Some(seen)) => match &up.started_at {
                Some(known) => *known != seen,
                None => {
                    up.started_at = Some(seen);
                    false
                }
            },
            (Some(_), None) => false,
        };
        if restarted {
            let started_at = container
                .details
                .as_ref()
                .and_then(|details| details.started_at.clone());
            self.entry.up = Some(Up {
                since_ms: now,
                started_at,
                ready_ms: None,
            });
        }
        let unhealthy = self.readiness(container, spec);
        if self.waits(self.entry.retry_after_ms) {
            return None;
        }
        if let Some(message) = unhealthy
            && spec.restart_policy != RestartPolicy::Never
        {
            self.entry.restarting = true;
            let op = if self.entry.kill {
                Op::Kill {
                    id: container.id.clone(),
                }
            } else {
                Op::Stop {
                    id: container.id.clone(),
                    grace: spec.container.grace(),
                }
            };
            return Some(self.step(op, Reason::Unhealthy { message }));
        }
        self.drift(container, spec)
    }

    /// Whether it serves. Returns the probe's word when it does not and must be restarted.
    fn readiness(&mut self, container: &Observed, spec: &ServiceSpec) -> Option<String> {
        let now = self.input.now_ms;
        let since = self.entry.up.as_ref().map_or(now, |up| up.since_ms);
        let was_ready = self.entry.up.as_ref().is_some_and(|up| up.ready_ms.is_some());
        let mut unhealthy = None;
        let ready = match &spec.container.health_check {
            None => {
                let at = since + spec.update.min_ready().millis;
                was_ready || !self.waits(at)
            }
            Some(check) => {
                let target = ProbeTarget {
                    instance: self.key.clone(),
                    check: check.clone(),
                    network: spec.container.network_mode,
                    addresses: container
                        .networks
                        .values()
                        .flat_map(|end| end.addresses.iter().copied())
                        .collect(),
                    up_since_ms: since,
                };
                let known = self.input.probes.get(&container.id);
                let probe = known.filter(|known| known.target == target).map(|known| &known.probe);
                self.out.probes.insert(container.id.clone(), target);
                match probe {
                    Some(Probe::Healthy) => true,
                    Some(Probe::Unhealthy { message }) => {
                        unhealthy = Some(message.clone());
                        false
                    }
                    Some(Probe::Unknown) | None => was_ready,
                }
            }
        };
        if !ready {
            if let Some(message) = &unhealthy {
                self.fail(FailingReason::Unhealthy, message);
            }
            self.not_ready(spec);
            return unhealthy;
        }
        let ready_ms = self.entry.up.as_mut().map_or(now, |up| *up.ready_ms.get_or_insert(now));
        self.entry.failing = None;
        self.entry.trying = None;
        if self.entry.row > 0 && !self.waits(ready_ms + ROW_ENDS_MS) {
            self.entry.row = 0;
        }
        None
    }

    fn not_ready(&mut self, spec: &ServiceSpec) {
        if let Some(up) = &mut self.entry.up {
            up.ready_ms = None;
        }
        self.try_for_in_force();
        self.deadline(spec);
    }

    /// Its place in the cluster's network; None where it stands in the network of its namespace, or in none.
    fn seat(&self, spec: &ServiceSpec) -> Option<Box<Seat>> {
        let network = self.input.assignment.as_ref()?.network.as_ref()?;
        let address = self.address.filter(|address| network.subnet.contains(address))?;
        let mtu = self.input.mtu?;
        (spec.container.network_mode == NetworkMode::Bridge).then(|| {
            Box::new(Seat {
                ground: Ground {
                    cluster: self.input.cluster.clone(),
                    node: self.input.node.clone(),
                    subnet: network.subnet,
                    subnet6: network.subnet6,
                    mtu,
                },
                address,
                address6: network.subnet6.map(|own| address6(address, &network.subnet, &own)),
                domain: network.settings.domain.clone(),
                seeds: self.seeds.to_vec(),
            })
        })
    }

    /// Whether its place in the cluster's network is not ready yet.
    fn groundless(&self, spec: &ServiceSpec) -> bool {
        let bridge = spec.container.network_mode == NetworkMode::Bridge;
        let has_network = self
            .input
            .assignment
            .as_ref()
            .is_some_and(|assignment| assignment.network.is_some());
        bridge && has_network && self.address.is_some() && self.input.mtu.is_none()
    }

    /// Puts right what somebody changed by hand.
    fn drift(&mut self, container: &Observed, spec: &Arc<ServiceSpec>) -> Option<Step> {
        let id = container.id.clone();
        let made_n = self.entry.container.as_ref().map_or(0, |owned| owned.spec.n);
        let name = self.key.name().container(made_n);
        if container.name != name {
            let found = container.name.clone();
            return Some(self.step(Op::Rename { id, to: name }, Reason::Renamed { found }));
        }
        let bridge = spec.container.network_mode == NetworkMode::Bridge;
        let seat = self.seat(spec);
        let network = || match &seat {
            Some(seat) => seat.ground.name(),
            None => network_name(self.input.cluster.as_str(), &self.key.namespace),
        };
        if bridge && !self.groundless(spec) {
            let end = container.networks.get(&network());
            let elsewhere = |end: &NetworkEnd, seat: &Seat| {
                !end.addresses.is_empty() && !end.addresses.contains(&IpAddr::V4(seat.address))
            };
            let away = match (end, &seat) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(end), Some(seat)) => elsewhere(end, seat),
            };
            if away {
                return Some(self.step(Op::Connect { id, seat }, Reason::Disconnected));
            }
        }
        let Some(details) = container.details.as_ref() else {
            if self.entry.limits.is_none() {
                // Once, soon after its start: what its limits are while nobody has touched them.
                self.out.inspect.insert(id);
            }
            return None;
        };
        if !matches!(details.restart_policy.as_str(), "" | "no") {
            let found = details.restart_policy.clone();
            return Some(self.step(
                Op::UpdateLimits { id, spec: spec.clone() },
                Reason::RestartPolicyChanged { found },
            ));
        }
        match &self.entry.limits {
            None => self.entry.limits = Some(details.limits.clone()),
            Some(known) if *known != details.limits => {
                return Some(self.step(Op::UpdateLimits { id, spec: spec.clone() }, Reason::LimitsChanged));
            }
            Some(_) => {}
        }
        None
    }

    fn ended(&mut self, container: &Observed, spec: &Arc<ServiceSpec>, code: Option<i64>) -> (Phase, Option<Step>) {
        let code = code.or(container.details.as_ref().and_then(|details| details.exit_code));
        let by_person = self.input.stopped_by_person.contains(&container.id);
        if self.entry.up.take().is_some() {
            self.entry.exit_code = code;
            if by_person {
                self.entry.start_after_ms = 0;
                self.entry.stopped |= spec.restart_policy == RestartPolicy::UnlessStopped && !self.entry.restarting;
            } else {
                let (initial, max) = backoff(&spec.restart_backoff);
                let wait = if self.entry.row == 0 {
                    0
                } else {
                    delay(self.key, self.entry.row, initial.millis, max.millis)
                };
                self.entry.start_after_ms = self.input.now_ms + wait;
                self.entry.row = self.entry.row.saturating_add(1);
            }
        } else if self.entry.exit_code.is_none() {
            self.entry.exit_code = code;
        }
        let done = match spec.restart_policy {
            RestartPolicy::Always | RestartPolicy::UnlessStopped => false,
            RestartPolicy::OnFailure => code == Some(0),
            RestartPolicy::Never => true,
        };
        let for_good = spec.restart_policy == RestartPolicy::Never;
        self.entry.stopped |= done && (for_good || !self.entry.restarting);
        if self.entry.stopped {
            self.entry.trying = None;
            return (Phase::Stopped, None);
        }
        if self.entry.row > CRASH_LOOP && !self.entry.restarting {
            self.fail(
                FailingReason::CrashLoop,
                &format!("{}: see its last lines", self.ended_in_a_row()),
            );
        }
        self.try_for_in_force();
        self.deadline(spec);
        if self.waits(self.entry.start_after_ms.max(self.entry.retry_after_ms)) {
            let phase = if self.entry.failures > 0 {
                Phase::Failed
            } else {
                Phase::BackOff
            };
            return (phase, None);
        }
        let reason = if by_person {
            Reason::StoppedByHand
        } else {
            Reason::Ended { code }
        };
        (
            Phase::BackOff,
            Some(self.step(
                Op::Start {
                    id: container.id.clone(),
                },
                reason,
            )),
        )
    }

    // ---- clocks and words ------------------------------------------------------------------------------------------

    /// Whether a moment lies ahead; if so the pass comes again then.
    fn waits(&mut self, moment_ms: u64) -> bool {
        let ahead = moment_ms > self.input.now_ms;
        if ahead {
            earlier(&mut self.out.look_again_ms, moment_ms);
        }
        ahead
    }

    /// Starts the clock of `progressDeadline`, if it does not run for this number already.
    fn try_for(&mut self, n: u64) {
        if self.entry.trying.as_ref().is_none_or(|trying| trying.n != n) {
            self.entry.trying = Some(Trying {
                n,
                since_ms: self.input.now_ms,
            });
        }
    }

    fn try_for_in_force(&mut self) {
        if let Some(n) = self.entry.in_force.as_ref().map(|spec| spec.n) {
            self.try_for(n);
        }
    }

    fn deadline(&mut self, spec: &ServiceSpec) {
        let Some(since) = self.entry.trying.as_ref().map(|trying| trying.since_ms) else {
            return;
        };
        let allowed = spec.update.progress_deadline();
        if !self.waits(since + allowed.millis) && self.entry.failing.is_none() {
            // One end may have been chance; more than one is why it is not ready.
            if self.entry.row > 1 {
                let ended = self.ended_in_a_row();
                let message = format!("{ended}, and was not ready within {allowed}: see its last lines");
                self.fail(FailingReason::CrashLoop, &message);
            } else {
                let message = format!("it was not ready within {allowed}; it is tried on");
                self.fail(FailingReason::ProgressDeadlineExceeded, &message);
            }
        }
    }

    fn ended_in_a_row(&self) -> String {
        let code = self.entry.exit_code.map(|code| format!(" with code {code}"));
        format!(
            "it ended{}, {} times in a row",
            code.unwrap_or_default(),
            self.entry.row
        )
    }

    fn fail(&mut self, reason: FailingReason, message: &str) {
        let n = self.entry.in_force.as_ref().map_or(0, |spec| spec.n);
        self.entry.failing = Some(failing(n, reason, message));
    }

    fn unreadable(mut self, spec: &InForce, why: &str, container: Option<&Observed>) -> Walked {
        self.failing = Some(failing(spec.n, FailingReason::SpecUnreadable, why));
        self.report(Phase::Held, container, None)
    }

    fn step(&self, op: Op, reason: Reason) -> Step {
        let begins = matches!(op, Op::Create { .. } | Op::Start { .. } | Op::Unpause { .. });
        Step {
            instance: self.key.clone(),
            op,
            reason,
            until_ms: self.until_ms.filter(|_| begins),
        }
    }

    fn shown_spec(&self) -> Option<&InForce> {
        self.entry.in_force.as_ref().or(match self.goal {
            Goal::Present(spec) | Goal::Prepared(spec) => Some(spec),
            Goal::Absent(spec) => self.entry.container.as_ref().map(|owned| &owned.spec).or(Some(spec)),
            Goal::Orphaned => self.entry.container.as_ref().map(|owned| &owned.spec),
        })
    }

    /// A policy that got stricter stops nothing; that it would not let the container be made again is told.
    fn outgrown(&mut self, container: Option<&Observed>) -> Option<InstanceCondition> {
        if container.is_none() || matches!(self.goal, Goal::Absent(_)) {
            return None;
        }
        let made_from = self.entry.container.as_ref().map(|owned| owned.spec.clone())?;
        // What it was made from may be gone from here; then nobody can tell.
        let known = self.input.specs.get(&self.key.spec(made_from.n, &made_from.digest));
        if !matches!(known, Some(SpecState::Here(_))) {
            return None;
        }
        let Some(Permit::Denied(why)) = self.permit(&made_from) else {
            return None;
        };
        let message = format!("it is kept, and would not be made again: {why}");
        Some(InstanceCondition {
            reason: "PolicyDenied".to_owned(),
            message: message.chars().take(MESSAGE_CHARS).collect(),
        })
    }

    fn report(mut self, phase: Phase, container: Option<&Observed>, step: Option<Step>) -> Walked {
        let outgrown = self.outgrown(container);
        let Some(spec) = self.shown_spec().cloned() else {
            // Absent, and only a candidate is known of it: it is told once it is known whose that is.
            let kept = self.input.ledger.entries.contains_key(self.key).then_some(self.entry);
            return (None, kept, step);
        };
        let image = self.found(spec.n);
        let running = container.filter(|container| container.state == ContainerState::Running);
        let mut failing = self.failing.or_else(|| self.entry.failing.clone());
        if let (Some(failing), Some(logs)) = (&mut failing, self.input.logs.get(self.key)) {
            failing.logs.clone_from(logs);
        }
        let InstanceKey {
            namespace,
            workload,
            slot,
            uid,
            kind,
        } = self.key.clone();
        let mut addresses: Vec<_> = running
            .iter()
            .flat_map(|c| c.networks.values())
            .flat_map(|end| end.addresses.iter().copied())
            .collect();
        addresses.sort();
        // Its own is told also while it does not run: so it is remembered where assignments are lost.
        if addresses.is_empty() {
            addresses.extend(self.address.map(IpAddr::V4));
        }
        let line = ReportedInstance {
            namespace,
            kind,
            workload,
            uid,
            slot,
            n: spec.n,
            digest: spec.digest,
            phase,
            ready: running.is_some() && self.entry.up.as_ref().is_some_and(|up| up.ready_ms.is_some()),
            container: self.entry.container_id().map(|id| id.chars().take(12).collect()),
            restarts: self.entry.restarts,
            ports: spec.ports,
            addresses,
            exit_code: self.entry.exit_code,
            next: self.next,
            failing,
            conditions: self.entry.conditions.iter().cloned().chain(outgrown).collect(),
            image,
            token: self
                .entry
                .token
                .or(self.entry.container.as_ref().and_then(|owned| owned.token)),
        };
        (Some(line), Some(self.entry), step)
    }
}

/// Whether the container in place was made from something else than what is in force.
enum Replacing {
    No,
    Yes {
        from: u64,
        fields: Vec<&'static str>,
    },
    /// What it was made from is not here yet.
    Unknown,
}

/// Whether an inspected container's image is the one a spec names: as written, or as the engine is given it (the digest
/// where there is one or its tag was settled, else the tag, else `latest`).
fn same_image(found: &str, named: &ImageRef, pin: Option<ImagePin>) -> bool {
    let given = match (named.digest(), named.tag()) {
        (Some(digest), _) => format!("{}@{digest}", named.name()),
        (None, tag) => format!("{}:{}", named.name(), tag.unwrap_or("latest")),
    };
    // With the ledger lost, what an earlier number was settled to be is not known here any more.
    let settled = || {
        let found: Option<ImageRef> = found.parse().ok();
        let of = found.filter(|found| found.name() == named.name());
        let digest = of.and_then(|found| found.pinned());
        digest.is_some_and(|digest| pin.is_none_or(|pin| pin.digest == digest))
    };
    found == named.as_str() || found == given || (named.digest().is_none() && settled())
}

fn next(n: u64, phase: Phase) -> Next {
    Next { n, phase, image: None }
}

fn found_policy(container: &Observed) -> String {
    container
        .details
        .as_ref()
        .map_or_else(|| "always".to_owned(), |details| details.restart_policy.clone())
}

fn disk_full(n: u64) -> Failing {
    failing(
        n,
        FailingReason::DiskFull,
        "the disk of this node is full: nothing new is started until there is space",
    )
}

fn failing(n: u64, reason: FailingReason, message: &str) -> Failing {
    Failing {
        n,
        reason,
        message: message.chars().take(MESSAGE_CHARS).collect(),
        logs: Vec::new(),
    }
}
