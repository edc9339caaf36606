//! The laws of `node::plan` under random histories on a simulated engine: crashes of agent and containers, lost ledgers,
//! failing steps, people's hands, changing assignments. After each history the node must come to rest as assigned.

#![allow(clippy::wildcard_enum_match_arm)] // What a test does not name is not what it looks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use planner::change::{Cost, cost};
use planner::node::*;
use proptest::prelude::*;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Slot;
use schemas::records::{
    Assigned, AssignedState, Assignment, ClusterId, Digest, FailingReason, Order, Phase, SchemaVersion, Uid,
};
use schemas::service::ServiceSpec;

const WORKLOADS: [&str; 3] = ["web", "db", "job"];

/// A node in memory: engine, images, disk.
struct Sim {
    input: NodeInput,
    containers: Vec<Observed>,
    foreign: BTreeSet<String>,
    next_id: u64,
    /// What every number of every workload is.
    versions: BTreeMap<(String, u64), (Digest, Arc<ServiceSpec>)>,
    local: BTreeSet<String>,
    /// The numbers that the node's policy denies, of every workload.
    denied: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Act {
    /// Plan and run every step; which fail, which take effect unheard because the agent is killed.
    Pass {
        fail: u8,
        unheard: u8,
    },
    Assign {
        workload: u8,
        state: u8,
        version: u8,
    },
    /// The workload is left out of the next assignment.
    Unlist {
        workload: u8,
    },
    NoAssignment,
    Crash {
        at: u8,
        code: u8,
    },
    Hand {
        at: u8,
        what: u8,
    },
    LoseLedger,
    LoseSpec {
        at: u8,
    },
    DropImages,
    LookAlike {
        at: u8,
    },
    EngineAway,
    DiskFull {
        full: bool,
    },
    Wait {
        seconds: u16,
    },
    Reboot,
    /// Another policy: a bit for each number it denies.
    Policy {
        denies: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (any::<u8>(), any::<u8>()).prop_map(|(fail, unheard)| Act::Pass { fail: fail & 7, unheard: unheard & 7 }),
        4 => Just(Act::Pass { fail: 7, unheard: 7 }),
        4 => (0..3u8, 0..6u8, 0..4u8).prop_map(|(workload, state, version)| Act::Assign { workload, state, version }),
        1 => (0..3u8).prop_map(|workload| Act::Unlist { workload }),
        1 => Just(Act::NoAssignment),
        2 => (any::<u8>(), 0..2u8).prop_map(|(at, code)| Act::Crash { at, code }),
        3 => (any::<u8>(), 0..6u8).prop_map(|(at, what)| Act::Hand { at, what }),
        1 => Just(Act::LoseLedger),
        1 => any::<u8>().prop_map(|at| Act::LoseSpec { at }),
        1 => Just(Act::DropImages),
        1 => any::<u8>().prop_map(|at| Act::LookAlike { at }),
        1 => Just(Act::EngineAway),
        1 => any::<bool>().prop_map(|full| Act::DiskFull { full }),
        2 => (0..900u16).prop_map(|seconds| Act::Wait { seconds }),
        1 => Just(Act::Reboot),
        2 => (0..16u8).prop_map(|denies| Act::Policy { denies }),
    ]
}

fn network() -> String {
    network_name(cluster().as_str(), &"default".parse().expect("a namespace"))
}

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

impl Sim {
    fn new() -> Self {
        let mut input = NodeInput::new(1_000_000, "n1".parse().expect("a name"), cluster());
        input.permits = Some(BTreeMap::new());
        let mut versions = BTreeMap::new();
        for workload in WORKLOADS {
            // 1 and 2 differ in the image, 3 differs from 2 in what only the agent reads, 4 in the environment.
            for (n, json) in [
                (1, r#"{"container":{"image":"app:1"}}"#),
                (2, r#"{"container":{"image":"app:2"}}"#),
                (3, r#"{"container":{"image":"app:2","stopGracePeriod":"3s"}}"#),
                (4, r#"{"container":{"image":"app:2","env":{"A":"1"}}}"#),
            ] {
                let spec = serde_json::from_str(json).expect("a spec");
                versions.insert(
                    (workload.to_owned(), n),
                    (Digest::of(format!("{workload}{n}").as_bytes()), Arc::new(spec)),
                );
            }
        }
        Self {
            input,
            containers: Vec::new(),
            foreign: BTreeSet::new(),
            next_id: 0,
            versions,
            local: BTreeSet::new(),
            denied: BTreeSet::new(),
        }
    }

    /// What the policy says of a number of an instance; None before it is asked.
    fn permit(&self, instance: &InstanceKey, n: u64) -> Option<&Permit> {
        let digest = &self.versions[&(instance.workload.to_string(), n)].0;
        let making = Making {
            spec: instance.spec(n, digest),
            image: None,
            ports: Vec::new(),
        };
        self.input.permits.as_ref().and_then(|permits| permits.get(&making))
    }

    fn assigned(&self, workload: &str, state: AssignedState, n: u64) -> Assigned {
        let key = ResourceKey {
            namespace: Some("default".parse().expect("a name")),
            kind: Kind::Service,
            name: workload.parse().expect("a name"),
        };
        Assigned {
            address: None,
            seeds: Vec::new(),
            token: None,
            namespace: "default".parse().expect("a name"),
            kind: Kind::Service,
            workload: workload.parse().expect("a name"),
            uid: Uid::derive(&cluster(), &key, 1),
            slot: Slot::Index(1),
            state,
            n,
            digest: self.versions[&(workload.to_owned(), n)].0.clone(),
            ports: Vec::new(),
            image: None,
            from: Vec::new(),
        }
    }

    fn instances(&self) -> Vec<Assigned> {
        self.input
            .assignment
            .as_ref()
            .map(|assignment| assignment.instances.clone())
            .unwrap_or_default()
    }

    fn assign(&mut self, instances: Vec<Assigned>) {
        let generation = self
            .input
            .assignment
            .as_ref()
            .map_or(0, |assignment| assignment.order.generation)
            + 1;
        self.input.assignment = Some(Arc::new(Assignment {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: cluster(),
            node: self.input.node.clone(),
            order: Order {
                restore_epoch: 0,
                epoch: 1,
                generation,
            },
            instances,
        }));
    }

    fn spec_at(&self, id: &SpecId) -> Option<&Arc<ServiceSpec>> {
        self.versions
            .get(&(id.resource.name.to_string(), id.n))
            .filter(|(digest, _)| *digest == id.digest)
            .map(|(_, spec)| spec)
    }

    fn observe(&mut self) {
        self.input.observed = Ok(self.containers.clone());
    }

    /// One pass: plan, check, write down, run the steps, hear of their ends.
    fn pass(&mut self, fail: u8, unheard: u8) -> NodePlan {
        let plan = plan(&self.input);
        self.check(&plan);
        for (key, entry) in plan.ledger.clone() {
            match entry {
                Some(entry) => self.input.ledger.entries.insert(key, entry),
                None => self.input.ledger.entries.remove(&key),
            };
        }
        for id in &plan.wanted_specs {
            if let Some(spec) = self.spec_at(id).cloned() {
                self.input.specs.insert(id.clone(), SpecState::Here(spec));
            }
        }
        for making in plan.wanted_permits.clone() {
            let permit = if self.denied.contains(&making.spec.n) {
                Permit::Denied("no".to_owned())
            } else {
                Permit::Granted
            };
            self.input.permits.get_or_insert_default().insert(making, permit);
        }
        for image in &plan.look_up {
            self.input.images.insert(
                image.clone(),
                Image {
                    present: self.local.contains(image),
                    ..Image::default()
                },
            );
        }
        for (image, _) in plan.pulls.clone() {
            let failed = (fail == 0).then(|| PullFailure {
                reason: FailingReason::ImagePullFailed,
                message: "no".to_owned(),
                retry_ms: self.input.now_ms + 5_000,
                others_asked: false,
            });
            if failed.is_none() {
                self.local.insert(image.clone());
            }
            let present = self.local.contains(&image);
            self.input.images.insert(
                image,
                Image {
                    present,
                    pulled_ms: failed.is_none().then_some(self.input.now_ms),
                    pulling: None,
                    failed,
                    pin: None,
                    loaded: false,
                },
            );
        }
        for id in &plan.inspect {
            if let Some(container) = self.containers.iter_mut().find(|c| c.id == *id) {
                container.details.get_or_insert_with(Details::default);
            }
        }
        for (at, step) in plan.steps.iter().enumerate() {
            let at = u8::try_from(at % 7).expect("small");
            if at == fail {
                let failure = Failure {
                    reason: FailingReason::StopFailed,
                    message: "no".to_owned(),
                };
                self.settle(step, &OpOutcome::Failed(failure));
                continue;
            }
            let outcomes = self.run(step);
            if at == unheard {
                // The agent is killed here: nothing more is run, nothing is heard.
                break;
            }
            for outcome in outcomes {
                self.settle(step, &outcome);
            }
        }
        self.law_one_container_each();
        self.observe();
        plan
    }

    fn settle(&mut self, step: &Step, outcome: &OpOutcome) {
        let entry = self.input.ledger.entries.entry(step.instance.clone()).or_default();
        settle(&step.instance, entry, &step.op, outcome, self.input.now_ms);
    }

    fn run(&mut self, step: &Step) -> Vec<OpOutcome> {
        let names: BTreeSet<String> = self.containers.iter().map(|c| c.name.clone()).collect();
        let mut on = |id: &str, change: &mut dyn FnMut(&mut Observed)| {
            assert!(
                !self.foreign.contains(id),
                "a step on a container that is not ours: {step:?}"
            );
            self.containers.iter_mut().filter(|c| c.id == id).for_each(change);
        };
        match &step.op {
            Op::Create { name, labels, spec, .. } => {
                if names.contains(name) {
                    let failure = Failure {
                        reason: FailingReason::NameTaken,
                        message: "taken".to_owned(),
                    };
                    return vec![OpOutcome::Failed(failure)];
                }
                if !self.local.contains(spec.container.image.as_str()) {
                    self.input.images.clear();
                    let failure = Failure {
                        reason: FailingReason::ImageNotFound,
                        message: "gone".to_owned(),
                    };
                    return vec![OpOutcome::Failed(failure)];
                }
                self.next_id += 1;
                let id = format!("{:064x}", self.next_id);
                self.containers.push(Observed {
                    id: id.clone(),
                    name: name.clone(),
                    labels: labels.to_map(),
                    state: ContainerState::Running,
                    image: spec.container.image.as_str().to_owned(),
                    networks: [(network(), NetworkEnd::default())].into(),
                    details: None,
                    image_id: None,
                });
                return vec![
                    OpOutcome::Created {
                        id,
                        conditions: Vec::new(),
                    },
                    OpOutcome::Done,
                ];
            }
            Op::Start { id } => on(id, &mut |c| c.state = ContainerState::Running),
            Op::Stop { id, .. } => on(id, &mut |c| c.state = ContainerState::Exited { code: Some(143) }),
            Op::Kill { id } => on(id, &mut |c| c.state = ContainerState::Exited { code: Some(137) }),
            Op::Unpause { id } => on(id, &mut |c| c.state = ContainerState::Running),
            Op::Rename { id, to } => {
                if names.contains(to) {
                    let failure = Failure {
                        reason: FailingReason::NameTaken,
                        message: "taken".to_owned(),
                    };
                    return vec![OpOutcome::Failed(failure)];
                }
                on(id, &mut |c| c.name.clone_from(to));
            }
            Op::UpdateLimits { id, .. } => on(id, &mut |c| c.details = Some(Details::default())),
            Op::Connect { id, .. } => on(id, &mut |c| {
                c.networks.insert(network(), NetworkEnd::default());
            }),
            Op::Remove { id } => {
                on(id, &mut |c| {
                    assert!(
                        !matches!(c.state, ContainerState::Running | ContainerState::Paused),
                        "removed while it runs"
                    )
                });
                self.containers.retain(|c| c.id != *id);
            }
        }
        vec![OpOutcome::Done]
    }

    /// What must hold of any plan.
    fn check(&self, out: &NodePlan) {
        let mut seen = BTreeSet::new();
        for step in &out.steps {
            assert!(
                seen.insert(step.instance.clone()),
                "two steps for one instance: {:?}",
                out.steps
            );
            let assigned = self
                .instances()
                .into_iter()
                .find(|i| InstanceKey::from(i) == step.instance);
            // Absence is never an order.
            if matches!(step.op, Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. }) {
                match &step.reason {
                    Reason::Absent => assert_eq!(
                        assigned.as_ref().map(|i| i.state),
                        Some(AssignedState::Absent),
                        "{step:?}"
                    ),
                    Reason::SpecChanged { to, fields, .. } => {
                        let in_force = out.ledger.get(&step.instance).cloned().flatten().or(self
                            .input
                            .ledger
                            .entries
                            .get(&step.instance)
                            .cloned());
                        let in_force = in_force.and_then(|entry| entry.in_force).expect("a spec in force");
                        assert_eq!(*to, in_force.n);
                        assert!(!fields.is_empty());
                        assert_eq!(
                            self.permit(&step.instance, *to),
                            Some(&Permit::Granted),
                            "an old container is ended for one that may not be made: {step:?}"
                        );
                        let (_, spec) = &self.versions[&(step.instance.workload.to_string(), *to)];
                        let image = self.input.images.get(spec.container.image.as_str());
                        assert!(
                            image.is_some_and(|image| image.present),
                            "the image is not here, and the old one is stopped: {step:?}"
                        );
                    }
                    Reason::Unhealthy { .. } | Reason::Dead => {}
                    other => panic!("a container is ended because {other:?}"),
                }
            }
            if let Op::Create { labels, .. } = &step.op {
                assert!(!self.input.disk_full, "created on a full disk");
                let permit = self.permit(&step.instance, labels.n);
                assert_eq!(
                    permit,
                    Some(&Permit::Granted),
                    "made though the policy denies it: {step:?}"
                );
                let entry = out.ledger.get(&step.instance).cloned().flatten().or(self
                    .input
                    .ledger
                    .entries
                    .get(&step.instance)
                    .cloned());
                assert!(
                    entry.is_some_and(|e| e.container.is_some_and(|c| c.id.is_none())),
                    "no intent before the create"
                );
            }
        }
        // Until the image of the new number is local, the old one stays in force.
        for (key, new) in &out.ledger {
            let (Some(new), Some(old)) = (new, self.input.ledger.entries.get(key)) else {
                continue;
            };
            let lives = |made: &Owned| {
                made.id
                    .as_ref()
                    .is_some_and(|id| self.containers.iter().any(|c| c.id == *id))
            };
            let Some(made) = old.container.as_ref().filter(|made| lives(made)) else {
                continue;
            };
            let (Some(was), Some(now)) = (&old.in_force, &new.in_force) else {
                continue;
            };
            let spec = |n: u64| &self.versions[&(key.workload.to_string(), n)].1;
            if was.n != now.n && matches!(cost(spec(made.spec.n), spec(now.n)), Cost::Replace { .. }) {
                let image = self.input.images.get(spec(now.n).container.image.as_str());
                assert!(
                    image.is_some_and(|image| image.present),
                    "{key}: {} in force before its image is here",
                    now.n
                );
            }
        }
        if self.input.disk_full {
            assert!(out.pulls.is_empty());
        }
        assert!(out.report.instances.is_sorted_by_key(InstanceKey::reported));
        // What is assigned present, and known, is in the report: the controller must never take it for gone.
        for assigned in self.instances().iter().filter(|i| i.state == AssignedState::Present) {
            assert!(
                out.report
                    .instances
                    .iter()
                    .any(|line| InstanceKey::reported(line) == InstanceKey::from(assigned))
            );
        }
    }

    /// Never two containers for one slot; those of others do not count.
    fn law_one_container_each(&self) {
        let mut seen = BTreeMap::new();
        for container in self.containers.iter().filter(|c| !self.foreign.contains(&c.id)) {
            let own = container.own().expect("ours has labels");
            if let Some(other) = seen.insert(own.instance, &container.name) {
                panic!("two containers for one slot: {other} and {}", container.name);
            }
        }
    }

    fn act(&mut self, act: &Act) {
        let workload = |at: &u8| WORKLOADS[usize::from(*at) % 3];
        match act {
            Act::Pass { fail, unheard } => {
                let _ = self.pass(*fail, *unheard);
            }
            Act::Assign {
                workload: at,
                state,
                version,
            } => {
                let state = match state {
                    0 => AssignedState::Absent,
                    1 => AssignedState::Prepared,
                    _ => AssignedState::Present,
                };
                let new = self.assigned(workload(at), state, u64::from(*version) + 1);
                let mut all = self.instances();
                all.retain(|i| i.workload != new.workload);
                all.push(new);
                self.assign(all);
            }
            Act::Unlist { workload: at } => {
                let mut all = self.instances();
                all.retain(|i| i.workload.as_str() != workload(at));
                self.assign(all);
            }
            Act::NoAssignment => self.input.assignment = None,
            Act::Crash { at, code } => {
                if let Some(c) = self.pick(*at).filter(|c| c.state == ContainerState::Running) {
                    c.state = ContainerState::Exited {
                        code: Some(i64::from(*code)),
                    };
                }
            }
            Act::Hand { at, what } => self.hand(*at, *what),
            Act::LoseLedger => {
                // A renamed container cannot be told from a look-alike without the ledger: it becomes a stranger.
                for c in &self.containers {
                    let own = c.own().expect("labels");
                    if own.name() != c.name {
                        self.foreign.insert(c.id.clone());
                    }
                }
                self.input.ledger = Ledger::default();
            }
            Act::LoseSpec { at } => {
                let id = self
                    .input
                    .specs
                    .keys()
                    .nth(usize::from(*at) % self.input.specs.len().max(1))
                    .cloned();
                id.map(|id| self.input.specs.remove(&id));
            }
            Act::DropImages => {
                self.local.clear();
                self.input.images.clear();
            }
            Act::LookAlike { at } => {
                let Some(mut copy) = self.pick(*at).cloned() else {
                    return;
                };
                self.next_id += 1;
                copy.id = format!("{:064x}", self.next_id);
                copy.name = format!("copy-{}", self.next_id);
                self.foreign.insert(copy.id.clone());
                self.containers.push(copy);
            }
            Act::EngineAway => {
                self.input.observed = Err("away".to_owned());
                let out = plan(&self.input);
                assert!(out.steps.is_empty() && out.ledger.is_empty() && out.pulls.is_empty());
                self.check(&out);
            }
            Act::DiskFull { full } => self.input.disk_full = *full,
            Act::Wait { seconds } => self.input.now_ms += u64::from(*seconds) * 1_000,
            Act::Policy { denies } => {
                self.denied = (1..=4).filter(|n| denies & (1 << (n - 1)) != 0).collect();
                self.input.permits = Some(BTreeMap::new());
            }
            Act::Reboot => {
                for c in self
                    .containers
                    .iter_mut()
                    .filter(|c| c.state == ContainerState::Running)
                {
                    c.state = ContainerState::Exited { code: Some(0) };
                }
                self.input
                    .ledger
                    .entries
                    .values_mut()
                    .for_each(LedgerEntry::forget_moments);
                // A new process knows nothing of images.
                self.input.images.clear();
                self.input.now_ms = 1_000;
            }
        }
        self.observe();
    }

    fn pick(&mut self, at: u8) -> Option<&mut Observed> {
        let foreign = &self.foreign;
        let mut ours: Vec<&mut Observed> = self
            .containers
            .iter_mut()
            .filter(|c| !foreign.contains(&c.id))
            .collect();
        if ours.is_empty() {
            None
        } else {
            Some(ours.swap_remove(usize::from(at) % ours.len()))
        }
    }

    fn hand(&mut self, at: u8, what: u8) {
        let Some(c) = self.pick(at) else { return };
        let id = c.id.clone();
        match what {
            0 => {
                c.name = format!("by-hand-{}", &id[56..]);
                // Renamed before the ledger ever heard of it: no name, no id, so it is a stranger.
                let known = self
                    .input
                    .ledger
                    .entries
                    .values()
                    .any(|entry| entry.container_id() == Some(id.as_str()));
                if !known {
                    self.foreign.insert(id);
                }
            }
            1 if c.state == ContainerState::Running => c.state = ContainerState::Paused,
            2 => c.networks.clear(),
            3 => {
                c.details = Some(Details {
                    restart_policy: "always".to_owned(),
                    ..Details::default()
                })
            }
            4 => self.containers.retain(|c| c.id != id),
            5 => c.state = ContainerState::Dead,
            _ => {}
        }
    }

    /// Passes until nothing is left to do; then everything assigned is as assigned.
    fn settle_down(&mut self) {
        self.input.disk_full = false;
        self.denied.clear();
        self.input.permits = Some(BTreeMap::new());
        self.observe();
        for round in 0..60 {
            let out = self.pass(9, 9);
            self.input.now_ms += 61_000;
            if round > 20
                && out.steps.is_empty()
                && out.ledger.is_empty()
                && out.pulls.is_empty()
                && out.look_up.is_empty()
            {
                break;
            }
        }
        // Rested: ten minutes of readiness have ended every row.
        self.input.now_ms += 1_000_000;
        let _ = self.pass(9, 9);
        let rest = self.pass(9, 9);
        assert!(
            rest.steps.is_empty() && rest.pulls.is_empty() && rest.ledger.is_empty(),
            "it does not rest: {rest:#?}"
        );
        let again = plan(&self.input);
        assert_eq!(again, rest, "the same input gives the same plan");
        for assigned in self.instances() {
            let key = InstanceKey::from(&assigned);
            let line = rest
                .report
                .instances
                .iter()
                .find(|line| InstanceKey::reported(line) == key);
            match assigned.state {
                AssignedState::Absent => assert_eq!(line, None, "{key} is absent"),
                AssignedState::Prepared => assert!(
                    line.is_some_and(|l| l.phase == Phase::Prepared || l.phase == Phase::Running),
                    "{line:#?}"
                ),
                AssignedState::Present => {
                    let line = line.expect("a present instance is reported");
                    assert!(
                        line.ready && line.n == assigned.n && line.next.is_none(),
                        "{key}: {line:#?}\n{:#?}",
                        self.containers
                    );
                    let entry = &self.input.ledger.entries[&key];
                    let made = &entry.container.as_ref().expect("a container").spec;
                    let spec = |n| &self.versions[&(assigned.workload.to_string(), n)].1;
                    assert!(
                        !matches!(cost(spec(made.n), spec(assigned.n)), Cost::Replace { .. }),
                        "{key} runs {} for {}",
                        made.n,
                        assigned.n
                    );
                }
            }
        }
    }
}

fn cases() -> u32 {
    std::env::var("REEVE_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_laws_hold_and_the_node_comes_to_rest_as_assigned(acts in proptest::collection::vec(act(), 1..40)) {
        let mut sim = Sim::new();
        for act in &acts {
            sim.act(act);
        }
        sim.settle_down();
    }
}
