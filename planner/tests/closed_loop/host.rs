//! One host of the closed loop: a Docker in memory, the agent's disk, and the agent's process, whose every step the history
//! orders one by one: take a list, hear it, plan, run a step, hear of its end, write the report. Killing the process at any
//! point loses what is not on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use planner::cluster::Snapshot;
use planner::node::*;
use schemas::image::{ImageDigest, ImagePin, ImageRef};
use schemas::names::NodeName;
use schemas::records::{AcceptedBody, AssignedImage, Assignment, ClusterId, Digest, FailingReason, Order, Report};
use schemas::service::ServiceSpec;

/// A container as the engine has it.
#[derive(Clone, Debug)]
pub struct Real {
    pub seen: Observed,
    /// Made by somebody else, or not to be told from that.
    pub foreign: bool,
    pub up_since_ms: u64,
    instance: InstanceKey,
    pub spec: Arc<ServiceSpec>,
}

impl Real {
    pub fn up(&self) -> bool {
        matches!(
            self.seen.state,
            ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
        )
    }
    pub fn instance(&self) -> &InstanceKey {
        &self.instance
    }
}

/// What ended a container by our own hand, for the laws.
#[derive(Debug)]
pub struct Ended {
    pub instance: InstanceKey,
    pub reason: Reason,
    pub served: bool,
}

#[derive(Debug)]
pub struct Host {
    pub name: NodeName,
    // The disk.
    disk_ledger: Ledger,
    held: bool,
    // The process.
    pub input: NodeInput,
    seen: bool,
    pub under_way: Vec<Step>,
    /// When the last step of an instance ended, counted.
    ends: u64,
    ended: BTreeMap<InstanceKey, u64>,
    list: Option<(u64, Vec<Observed>)>,
    inspected: BTreeMap<String, Details>,
    wanted: BTreeSet<SpecId>,
    wanted_files: BTreeSet<FileId>,
    probes: BTreeMap<String, ProbeTarget>,
    pub report: Option<Arc<Report>>,
    /// Whether the last pass had nothing to do.
    pub quiet: bool,
    // The engine.
    pub containers: Vec<Real>,
    local: BTreeMap<String, ImagePin>,
    pub away: bool,
    next_id: u64,
    starts: u64,
    /// Containers of ours that we ended since the laws last looked.
    pub news: Vec<Ended>,
}

/// How a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Fine,
    Fails,
    /// It takes effect, and the process is killed before it hears of it.
    Unheard,
    /// Of a create: the container is made and not started, and the process is killed.
    Half,
}

/// What the world makes of images.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    /// Once true, every image exists, runs and is healthy.
    pub healed: bool,
    /// Every pull by tag finds that the tag was moved.
    pub moves: u64,
}

impl Registry {
    /// What a pull gives.
    fn fetch(&mut self, image: &ImageRef) -> ImagePin {
        let digest = match image.digest() {
            Some(digest) => digest.parse().expect("a digest"),
            None => {
                self.moves += 1;
                let text = format!("{} {}", image.name(), self.moves);
                ImageDigest::from(*Digest::of(text.as_bytes()).bytes())
            }
        };
        ImagePin { digest, id: digest }
    }
    pub fn missing(&self, image: &str) -> bool {
        !self.healed && image.starts_with("missing")
    }
    pub fn crashing(&self, image: &str) -> bool {
        !self.healed && image.starts_with("crashing")
    }
    pub fn sick(&self, image: &str) -> bool {
        !self.healed && image.starts_with("sick")
    }
}

impl Host {
    pub fn new(name: &NodeName, cluster: &ClusterId, now_ms: u64) -> Self {
        Self {
            name: name.clone(),
            disk_ledger: Ledger::default(),
            held: false,
            input: NodeInput {
                mtu: Some(1_420),
                ..NodeInput::new(now_ms, name.clone(), cluster.clone())
            },
            seen: false,
            under_way: Vec::new(),
            ends: 0,
            ended: BTreeMap::new(),
            list: None,
            inspected: BTreeMap::new(),
            wanted: BTreeSet::new(),
            wanted_files: BTreeSet::new(),
            probes: BTreeMap::new(),
            report: None,
            quiet: false,
            containers: Vec::new(),
            local: BTreeMap::new(),
            away: false,
            next_id: 0,
            starts: 0,
            news: Vec::new(),
        }
    }

    pub fn applied(&self) -> Order {
        self.input.assignment.as_ref().map(|a| a.order).unwrap_or_default()
    }

    /// SIGKILL and a new start: what is on the disk is what is known.
    pub fn kill(&mut self) {
        let fresh = Self::new(&self.name, &self.input.cluster, self.input.now_ms);
        // Noted with every renewal.
        let contact = Contact::since(self.input.contact.heard_ms());
        self.input = NodeInput {
            assignment: self.input.assignment.clone(),
            specs: std::mem::take(&mut self.input.specs),
            files: std::mem::take(&mut self.input.files),
            secrets: std::mem::take(&mut self.input.secrets),
            ledger: self.disk_ledger.clone(),
            contact,
            ..fresh.input
        };
        self.seen = false;
        self.under_way.clear();
        self.ends = 0;
        self.ended.clear();
        self.list = None;
        self.inspected.clear();
        self.wanted.clear();
        self.wanted_files.clear();
        self.probes.clear();
        self.report = None;
        self.quiet = false;
    }

    /// Instances whose readiness is not on the disk: a kill makes them unready until they are measured again.
    pub fn ready_in_memory_only(&self) -> Vec<InstanceKey> {
        let ready = |entry: &LedgerEntry| entry.up.as_ref().is_some_and(|up| up.ready_ms.is_some());
        let on_disk = |key: &InstanceKey| self.disk_ledger.entries.get(key).is_some_and(ready);
        let all = self.input.ledger.entries.iter().filter(|(_, entry)| ready(entry));
        all.filter(|(key, _)| !on_disk(key))
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub fn save_nothing(&mut self) {
        self.disk_ledger = Ledger::default();
    }

    pub fn lose_ledger(&mut self) {
        // A renamed container cannot be told from a look-alike without the ledger: it becomes a stranger.
        for real in &mut self.containers {
            let own = real.seen.own().expect("labels");
            real.foreign |= own.name() != real.seen.name;
        }
        self.disk_ledger = Ledger::default();
        self.kill();
    }

    // ---- what comes in ---------------------------------------------------------------------------------------------

    /// Reads what the store holds for this node, and the specs it waits for.
    pub fn read_store(&mut self, store: &Snapshot) {
        let entry = &store.nodes[&self.name];
        if let Some(Ok(offered)) = entry.assignment.as_ref().map(|stored| &stored.value) {
            self.judge(offered);
            self.input.contact.confirm(self.input.now_ms);
        }
        for id in self.wanted.clone() {
            let found = store
                .accepted
                .get(&id.resource)
                .and_then(|history| history.records.get(&id.n));
            let state = match found.map(|entry| (&entry.digest, &entry.value)) {
                Some((digest, Ok(record))) if *digest == id.digest => match &record.body {
                    AcceptedBody::Service(spec) => SpecState::Here(Arc::new((**spec).clone())),
                    AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => {
                        SpecState::Damaged("no service".to_owned())
                    }
                },
                _ => SpecState::Damaged("the store does not have it".to_owned()),
            };
            self.input.specs.insert(id, state);
        }
        // What could not be had is asked for again.
        self.input.files.retain(|_, state| state.is_ok());
        for id in &self.wanted_files {
            let found = store
                .accepted
                .get(&id.resource)
                .and_then(|history| history.records.get(&id.edition.n))
                .and_then(|entry| entry.value.as_ref().ok());
            let state = match found.map(|record| &record.body) {
                Some(AcceptedBody::ConfigFile(file)) if file.digest == id.edition.digest => Ok(()),
                _ => Err("the store does not have it".to_owned()),
            };
            self.input.files.insert(id.edition.digest, state);
        }
        // Editions are kept for longer than it takes to hand one out.
        for state in self.input.specs.values() {
            let SpecState::Here(spec) = state else { continue };
            for edition in spec.container.secrets.iter().filter_map(|one| one.edition.as_ref()) {
                self.input.secrets.insert(edition.digest.clone(), Ok(SecretState::Text));
            }
        }
    }

    fn judge(&mut self, offered: &Arc<Assignment>) {
        let before = self.applied();
        let ruling = judge(
            &self.input.cluster,
            &self.name,
            self.input.assignment.as_deref(),
            self.held,
            offered,
        );
        match ruling {
            Ruling::Accept => {
                assert!(offered.order > before, "order only rises");
                self.input.assignment = Some(offered.clone());
                self.held = false;
            }
            Ruling::Same => self.held = false,
            other => panic!(
                "{}: the store never went back, and yet {other:?}; in force {:?}, offered {:?}",
                self.name, self.input.assignment, offered
            ),
        }
    }

    /// Its agent's session is renewed, and was at every moment from then on.
    pub fn renew(&mut self, from_ms: u64, now_ms: u64) {
        let between = (from_ms..now_ms).step_by(5_000);
        between.chain([now_ms]).for_each(|at| self.input.contact.renewed(at));
    }

    /// An agent that is alive does what it has to without the store.
    pub fn go_on(&mut self, registry: &Registry, now_ms: u64) {
        for _ in 0..4 {
            self.ask_list();
            self.hear_list();
            self.pass(now_ms);
            while !self.under_way.is_empty() {
                self.run_step(0, Fate::Fine, registry, now_ms);
            }
        }
    }

    /// Asks the engine what there is; [`Host::hear_list`] hears the answer, perhaps much later.
    pub fn ask_list(&mut self) {
        if !self.away {
            self.list = Some((
                self.ends,
                self.containers.iter().map(|real| real.seen.clone()).collect(),
            ));
        }
    }

    pub fn hear_list(&mut self) {
        let Some((mark, mut list)) = self.list.take() else {
            return;
        };
        for container in &mut list {
            container.details = self.inspected.get(&container.id).cloned();
        }
        self.input.observed = Ok(list);
        self.ended.retain(|_, end| *end > mark);
        self.seen = true;
    }

    /// The engine has been away for so long that the agent believes it.
    pub fn give_up_engine(&mut self) {
        self.list = None;
        self.input.observed = Err("the engine does not answer".to_owned());
        self.seen = true;
    }

    /// An event of the engine arrives: what an inspection told before does not count.
    pub fn hear_event(&mut self, id: &str) {
        self.inspected.remove(id);
        if let Ok(list) = &mut self.input.observed {
            list.iter_mut()
                .filter(|one| one.id == id)
                .for_each(|one| one.details = None);
        }
    }

    // ---- the pass --------------------------------------------------------------------------------------------------

    pub fn pass(&mut self, now_ms: u64) {
        self.input.now_ms = now_ms;
        if !self.seen {
            return;
        }
        self.input.busy = self.under_way.iter().map(|step| step.instance.clone()).collect();
        self.input.busy.extend(self.ended.keys().cloned());
        let out = plan(&self.input);
        self.check(&out);
        let proof = out
            .ledger
            .iter()
            .any(|(key, entry)| match (self.input.ledger.entries.get(key), entry) {
                (Some(old), Some(new)) => old.proof_differs(new),
                (None, Some(_)) | (Some(_), None) => true,
                (None, None) => false,
            });
        self.quiet = out.steps.is_empty()
            && out.ledger.is_empty()
            && out.pulls.is_empty()
            && out.look_up.is_empty()
            && out.inspect.is_empty()
            && self.under_way.is_empty();
        for (key, entry) in out.ledger {
            match entry {
                Some(entry) => self.input.ledger.entries.insert(key, entry),
                None => self.input.ledger.entries.remove(&key),
            };
        }
        if proof {
            self.save();
        }
        self.under_way.extend(out.steps);
        for (image, _) in out.pulls {
            self.input.images.entry(image).or_default().pulling.get_or_insert(0);
        }
        for id in out.inspect {
            if let Some(real) = self.containers.iter().find(|real| real.seen.id == id) {
                let details = real.seen.details.clone().unwrap_or_default();
                self.inspected.insert(id.clone(), details.clone());
                if let Ok(list) = &mut self.input.observed {
                    for one in list.iter_mut().filter(|one| one.id == id) {
                        one.details = Some(details.clone());
                    }
                }
            }
        }
        for image in out.look_up {
            let here = self.local.get(&image);
            let known = Image {
                present: here.is_some(),
                pin: here.copied(),
                ..Image::default()
            };
            self.input.images.insert(image, known);
        }
        self.wanted = out.wanted_specs;
        self.wanted_files = out.wanted_files;
        self.probes = out.probes;
        self.report = Some(Arc::new(out.report));
    }

    pub fn save(&mut self) {
        self.disk_ledger = self.input.ledger.clone();
    }

    /// What must hold of any plan.
    fn check(&self, out: &NodePlan) {
        let assigned = |key: &InstanceKey| {
            let all = self
                .input
                .assignment
                .iter()
                .flat_map(|assignment| &assignment.instances);
            all.into_iter().find(|one| InstanceKey::from(*one) == *key)
        };
        for step in &out.steps {
            assert!(!self.input.busy.contains(&step.instance), "two steps at once: {step:?}");
            if let Reason::Absent = step.reason {
                assert_eq!(
                    assigned(&step.instance).map(|one| one.state),
                    Some(schemas::records::AssignedState::Absent),
                    "absence is never an order: {step:?}"
                );
            }
            if let (Reason::SpecChanged { .. }, Op::Stop { .. } | Op::Kill { .. }) = (&step.reason, &step.op) {
                let entry = out.ledger.get(&step.instance).cloned().flatten();
                let entry = entry.or(self.input.ledger.entries.get(&step.instance).cloned());
                let entry = entry.expect("an entry");
                let in_force = entry.in_force.expect("a spec in force");
                let spec = self.input.specs.get(&step.instance.spec(in_force.n, &in_force.digest));
                let Some(SpecState::Here(spec)) = spec else {
                    panic!("stopped for a spec that is not here: {step:?}")
                };
                let image = match entry.image {
                    Some(AssignedImage::Settled(pin)) => spec.container.image.at(pin.digest),
                    Some(AssignedImage::Settling) | None => spec.container.image.clone(),
                };
                assert!(
                    self.local.contains_key(image.as_str()),
                    "stopped before the new image is here: {step:?}"
                );
            }
        }
    }

    // ---- the engine ------------------------------------------------------------------------------------------------

    /// All pulls under way end.
    pub fn end_pulls(&mut self, registry: &mut Registry, now_ms: u64) {
        for (name, image) in &mut self.input.images {
            if image.pulling.take().is_none() {
                continue;
            }
            if registry.missing(name) {
                image.failed = Some(PullFailure {
                    reason: FailingReason::ImageNotFound,
                    message: "no such image".to_owned(),
                    retry_ms: now_ms + 5_000,
                    others_asked: false,
                });
            } else {
                let reference: ImageRef = name.parse().expect("a reference");
                let pin = registry.fetch(&reference);
                self.local.insert(name.clone(), pin);
                self.local.insert(reference.at(pin.digest).as_str().to_owned(), pin);
                *image = Image {
                    present: true,
                    pulled_ms: Some(now_ms),
                    pulling: None,
                    failed: None,
                    pin: Some(pin),
                    loaded: false,
                };
            }
        }
    }

    /// Runs one step that is under way.
    pub fn run_step(&mut self, at: usize, fate: Fate, registry: &Registry, now_ms: u64) {
        if self.under_way.is_empty() {
            return;
        }
        self.input.now_ms = now_ms;
        let step = self.under_way.remove(at % self.under_way.len());
        let failed = |reason| {
            OpOutcome::Failed(Failure {
                reason,
                message: "no".to_owned(),
            })
        };
        if step.until_ms.is_some_and(|until| now_ms >= until) {
            self.heard(&step, vec![failed(FailingReason::Isolated)]);
            return;
        }
        if self.away || fate == Fate::Fails {
            self.heard(&step, vec![failed(FailingReason::StopFailed)]);
            return;
        }
        let outcomes = self.act(&step, fate == Fate::Half, registry, now_ms);
        match fate {
            Fate::Unheard | Fate::Half => self.kill(),
            Fate::Fine | Fate::Fails => self.heard(&step, outcomes),
        }
    }

    fn heard(&mut self, step: &Step, outcomes: Vec<OpOutcome>) {
        for outcome in outcomes {
            let entry = self.input.ledger.entries.entry(step.instance.clone()).or_default();
            let created = matches!(outcome, OpOutcome::Created { .. });
            settle(&step.instance, entry, &step.op, &outcome, self.input.now_ms);
            if created {
                self.save();
            }
        }
        self.ends += 1;
        self.ended.insert(step.instance.clone(), self.ends);
        if let Op::Start { id } | Op::UpdateLimits { id, .. } | Op::Rename { id, .. } | Op::Connect { id, .. } =
            &step.op
        {
            self.hear_event(&id.clone());
        }
    }

    /// A container's end of its network.
    fn end(&self, step: &Step, seat: Option<&Seat>) -> (String, NetworkEnd) {
        match seat {
            Some(seat) => {
                let addresses = vec![IpAddr::V4(seat.address)];
                (seat.ground.name(), NetworkEnd { addresses })
            }
            None => {
                let name = network_name(self.input.cluster.as_str(), &step.instance.namespace);
                (name, NetworkEnd::default())
            }
        }
    }

    fn act(&mut self, step: &Step, half: bool, registry: &Registry, now_ms: u64) -> Vec<OpOutcome> {
        let failed = |reason| {
            vec![OpOutcome::Failed(Failure {
                reason,
                message: "no".to_owned(),
            })]
        };
        let taken = |name: &str| self.containers.iter().any(|real| real.seen.name == name);
        let seat = match &step.op {
            Op::Connect { seat, .. } => seat.as_deref(),
            _ => None,
        };
        let connected = self.end(step, seat);
        let id = match &step.op {
            Op::Create {
                name,
                labels,
                spec,
                image,
                ports: _,
                seat,
            } => {
                if taken(name) {
                    return failed(FailingReason::NameTaken);
                }
                let Some(pin) = self.local.get(image.as_str()).copied() else {
                    self.input.images.remove(image.as_str());
                    return failed(FailingReason::ImageNotFound);
                };
                self.next_id += 1;
                self.starts += 1;
                let id = format!("{:064x}", self.next_id);
                let seen = Observed {
                    id: id.clone(),
                    name: name.clone(),
                    labels: labels.to_map(),
                    state: if half {
                        ContainerState::Created
                    } else {
                        ContainerState::Running
                    },
                    image: image.as_str().to_owned(),
                    image_id: Some(pin.id),
                    networks: [self.end(step, seat.as_deref())].into(),
                    details: Some(Details {
                        started_at: Some(self.starts.to_string()),
                        restart_policy: "no".to_owned(),
                        ..Details::default()
                    }),
                };
                self.containers.push(Real {
                    seen,
                    foreign: false,
                    up_since_ms: now_ms,
                    instance: step.instance.clone(),
                    spec: spec.clone(),
                });
                return vec![
                    OpOutcome::Created {
                        id,
                        conditions: Vec::new(),
                    },
                    OpOutcome::Done,
                ];
            }
            Op::Rename { to, .. } if taken(to) => return failed(FailingReason::NameTaken),
            Op::Rename { id, .. }
            | Op::Start { id }
            | Op::Stop { id, .. }
            | Op::Kill { id }
            | Op::Remove { id }
            | Op::Unpause { id }
            | Op::UpdateLimits { id, .. }
            | Op::Connect { id, .. } => id.clone(),
        };
        let Some(real) = self.containers.iter_mut().find(|real| real.seen.id == id) else {
            // Gone is as good as stopped or removed.
            return match step.op {
                Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. } => vec![OpOutcome::Done],
                _ => failed(FailingReason::StartFailed),
            };
        };
        assert!(!real.foreign, "a step on a container that is not ours: {step:?}");
        assert_eq!(*real.instance(), step.instance, "a step on another's container");
        let was_up = real.up();
        let image = real.seen.image.clone();
        match &step.op {
            Op::Create { .. } => {}
            Op::Start { .. } => {
                if !was_up {
                    self.starts += 1;
                    real.up_since_ms = now_ms;
                    real.seen.state = ContainerState::Running;
                    let details = real.seen.details.get_or_insert_with(Details::default);
                    details.started_at = Some(self.starts.to_string());
                }
            }
            Op::Stop { .. } | Op::Kill { .. } => {
                if was_up {
                    real.seen.state = ContainerState::Exited { code: Some(143) };
                    let served = !registry.crashing(&image) && !registry.sick(&image);
                    self.news.push(Ended {
                        instance: step.instance.clone(),
                        reason: step.reason.clone(),
                        served,
                    });
                }
            }
            Op::Unpause { .. } => real.seen.state = ContainerState::Running,
            Op::Rename { to, .. } => real.seen.name.clone_from(to),
            Op::UpdateLimits { .. } => {
                if let Some(details) = &mut real.seen.details {
                    "no".clone_into(&mut details.restart_policy);
                }
            }
            Op::Connect { .. } => {
                let (network, end) = connected;
                real.seen.networks.insert(network, end);
            }
            Op::Remove { .. } => {
                if was_up {
                    // It came up behind the agent's back: the engine refuses to remove what runs.
                    return failed(FailingReason::StopFailed);
                }
                self.containers.retain(|real| real.seen.id != id);
            }
        }
        vec![OpOutcome::Done]
    }

    /// Time goes by: what crashes, crashes; probes answer.
    pub fn time(&mut self, registry: &Registry, now_ms: u64, told: bool) {
        let mut died = Vec::new();
        for real in &mut self.containers {
            if !real.foreign && real.seen.state == ContainerState::Running && registry.crashing(&real.seen.image) {
                real.seen.state = ContainerState::Exited { code: Some(1) };
                died.push(real.seen.id.clone());
            }
        }
        if told {
            died.iter().for_each(|id| self.hear_event(id));
        }
        for (id, target) in self.probes.clone() {
            let Some(real) = self.containers.iter().find(|real| real.seen.id == id && real.up()) else {
                continue;
            };
            let probe = if registry.sick(&real.seen.image) {
                Probe::Unhealthy {
                    message: "sick".to_owned(),
                }
            } else {
                Probe::Healthy
            };
            self.input.probes.insert(id, Probed { target, probe });
        }
        self.input.now_ms = now_ms;
    }

    /// Whether an instance serves, by the engine's own truth.
    pub fn serves(&self, key: &InstanceKey, registry: &Registry, now_ms: u64) -> bool {
        self.containers.iter().any(|real| {
            !real.foreign
                && real.seen.state == ContainerState::Running
                && real.instance() == key
                && !registry.crashing(&real.seen.image)
                && !registry.sick(&real.seen.image)
                && (real.spec.container.health_check.is_some() || now_ms >= real.up_since_ms + 5_000)
        })
    }

    /// A person lays hands on one of the containers.
    pub fn hand(&mut self, at: usize, what: usize, told: bool) {
        let known: BTreeSet<String> = self
            .input
            .ledger
            .entries
            .values()
            .filter_map(|entry| entry.container_id().map(str::to_owned))
            .collect();
        let mut ours: Vec<&mut Real> = self.containers.iter_mut().filter(|real| !real.foreign).collect();
        if ours.is_empty() {
            return;
        }
        let at = at % ours.len();
        let real = ours.swap_remove(at);
        let id = real.seen.id.clone();
        let stopped = ContainerState::Exited { code: Some(0) };
        match what {
            0 => {
                real.seen.name = format!("by-hand-{}", &id[56..]);
                // Renamed before the ledger ever heard of it: no name, no id, so it is a stranger.
                real.foreign |= !known.contains(&id);
            }
            1 if real.seen.state == ContainerState::Running => real.seen.state = ContainerState::Paused,
            2 => real.seen.networks.clear(),
            3 => {
                if let Some(details) = &mut real.seen.details {
                    "always".clone_into(&mut details.restart_policy);
                }
            }
            4 if real.up() => {
                real.seen.state = stopped;
                self.input.stopped_by_person.insert(id.clone());
            }
            5 if real.up() => real.seen.state = ContainerState::Exited { code: Some(137) },
            6 => self.containers.retain(|real| real.seen.id != id),
            7 => real.seen.state = ContainerState::Dead,
            8 => {
                // A copy with every label. No engine lets two that are up have one address.
                let mut copy = real.clone();
                copy.seen.networks.clear();
                self.next_id += 1;
                copy.seen.id = format!("{:064x}", self.next_id);
                copy.seen.name = format!("copy-{}", self.next_id);
                copy.foreign = true;
                self.containers.push(copy);
            }
            _ => {}
        }
        if told {
            self.hear_event(&id);
        }
    }
}
