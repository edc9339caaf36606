//! A cluster in virtual time: a store, controllers and nodes, each machine ticking in its turn, and the people and faults of a
//! history. Deterministic: the same shape, history and seed give the same world, tick by tick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::cut::Cut;
use agent::engine::ErrorKind;
use planner::node::ContainerState;
use runtime::MemoryStore;
use runtime::memory::Checkpoint;
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{
    Ack, Breaker, ClusterId, ClusterMarker, Cordon, CordonMode, Phase, Record, Report, SchemaVersion,
};

use crate::dice::Dice;
use crate::history::{Act, Shape, Step};
use crate::laws::Laws;
use crate::line::{At, Commit, Line, Way};
use crate::machine::{Machine, Program};

/// How long a tick is: what machines say to each other takes so long.
const TICK: Duration = Duration::from_millis(100);
/// How long it is where nothing has happened for [`CALM`].
const LONG_TICK: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(3);
/// How long nothing may happen before a cluster counts as being at rest.
const QUIET: Duration = Duration::from_secs(45);
/// How long a cluster may take to be as desired and at rest when nothing disturbs it any more: a node that came and went
/// gets nothing new for ten minutes.
const SETTLES: Duration = Duration::from_secs(25 * 60);

const NAMES: [&str; 5] = ["web", "db", "cache", "batch", "edge"];
const VERBS: [&str; 6] = ["create", "start", "stop", "remove", "list", "inspect"];

/// What ends by itself.
enum Due {
    Open(usize),
    Fast(usize),
    EngineUp(usize),
    Release(usize, &'static str),
    StoreUp,
    WatchesGoOn,
    Accept,
}

/// A cluster, and what happens to it.
pub struct World {
    /// The store.
    pub store: MemoryStore,
    /// Nodes first, then controllers.
    pub machines: Vec<Machine>,
    /// How many of them are nodes.
    pub nodes: usize,
    /// The laws, and what was broken.
    pub laws: Laws,
    now: Duration,
    journal: Arc<Mutex<Vec<Commit>>>,
    due: Vec<(Duration, Due)>,
    backup: Option<Checkpoint>,
    /// Some containers may be orphans: the store went back behind what made them.
    went_back: bool,
    store_stopped: bool,
    foreign: u32,
    /// Somebody said that a host is off, which may not have been so.
    misled: bool,
    /// Accepted records that somebody overwrote or deleted: nothing writes them again but a person who has a copy.
    spoiled: BTreeMap<String, bytes::Bytes>,
    /// When something last happened: a write, a call to an engine.
    last: Duration,
    stirred: (u64, u64),
    /// Writes of machines, all together.
    pub commits: usize,
    /// Prints what happens.
    pub trace: bool,
    _dir: tempfile::TempDir,
}

fn root() -> Root {
    Root::default()
}

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

fn service_key(name: &str) -> String {
    root().key(&Key::Desired(ResourceKey {
        namespace: "default".parse().ok(),
        kind: Kind::Service,
        name: name.parse().expect("a name"),
    }))
}

fn pick<T: Copy>(from: &[T], which: u8) -> Option<T> {
    from.get(usize::from(which).checked_rem(from.len())?).copied()
}

impl World {
    /// A cluster that has just been founded; machines begin with the first tick.
    ///
    /// # Panics
    /// Where no directory can be made.
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        runtime::blocking::in_turn();
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.expect("a directory for the machines' disks");
        let store = MemoryStore::new();
        let marker = ClusterMarker::first(cluster());
        store.put(root().key(&Key::Cluster), marker.encode());
        let journal = Arc::default();
        let mut dice = Dice::new(seed ^ 0xa11c_e000);
        let nodes = (1..=shape.nodes).map(|n| Program::Agent(format!("n{n}").parse().expect("a name")));
        let controllers = (1..=shape.controllers).map(|n| Program::Controller(format!("controller{n}")));
        let machines = nodes.chain(controllers).map(|program| {
            let name = match &program {
                Program::Agent(node) => node.to_string(),
                Program::Controller(name) => name.clone(),
            };
            let line = Line::new(&store, &name, dice.draw(), &journal);
            Machine::new(program, line, dir.path(), dice.draw())
        });
        let machines: Vec<Machine> = machines.collect();
        Self {
            machines,
            store,
            nodes: shape.nodes,
            laws: Laws::default(),
            now: Duration::ZERO,
            journal,
            due: Vec::new(),
            backup: None,
            went_back: false,
            store_stopped: false,
            foreign: 0,
            misled: false,
            spoiled: BTreeMap::new(),
            last: Duration::ZERO,
            stirred: (0, 0),
            commits: 0,
            trace: false,
            _dir: dir,
        }
    }

    /// For how long it has been there.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.now
    }

    /// Plays a history, lets everything be well again, and looks whether all comes to rest as desired.
    pub fn play(&mut self, shape: &Shape, steps: &[Step]) {
        let mut steps = steps.iter().peekable();
        let end = Duration::from_secs(shape.seconds);
        while self.now < end && self.laws.broken.is_empty() {
            while let Some((_, act)) = steps.next_if(|(at, _)| *at <= self.now) {
                self.act(*act);
            }
            let next = steps.peek().map_or(end, |(at, _)| *at);
            self.tick(next);
        }
        if self.laws.broken.is_empty() {
            self.recover();
            self.settle();
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:9.1} s  {}", self.now.as_secs_f64(), what());
        }
    }

    /// One tick of everything, at most until that moment.
    pub fn tick(&mut self, until: Duration) {
        let due = self.due.iter().map(|(at, _)| *at).chain([until]).min().unwrap_or(until);
        let time = if self.now.saturating_sub(self.last) < CALM {
            TICK
        } else {
            due.saturating_sub(self.now).clamp(TICK, LONG_TICK)
        };
        self.now += time;
        if !self.store_stopped {
            self.store.pass(time);
        }
        let now = self.now;
        let (over, due): (Vec<_>, Vec<_>) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.due = due;
        for (_, due) in over {
            self.ends(due);
        }
        for index in 0..self.machines.len() {
            let machine = &mut self.machines[index];
            let was = machine.is_up();
            machine.pass(time, now);
            let ended = machine.ended.take();
            let (name, up) = (machine.name.clone(), machine.is_up());
            if was && !up {
                self.say(|| {
                    format!(
                        "{name} has died{}",
                        ended.map_or_else(String::new, |why| format!(": {why}"))
                    )
                });
            }
        }
        let commits = std::mem::take(&mut *self.journal.lock().unwrap_or_else(PoisonError::into_inner));
        for commit in &commits {
            let keys: Vec<&str> = commit.keys.iter().map(|(key, _)| key.as_str()).collect();
            self.say(|| format!("{} wrote {}", commit.by, keys.join(" ")));
        }
        // Events are for people, and expire.
        let counts = |commit: &&Commit| commit.keys.iter().any(|(key, _)| !key.contains("/events/"));
        self.commits += commits.iter().filter(counts).count();
        self.laws.wrote(&commits);
        let mut calls = 0;
        for machine in &self.machines[..self.nodes] {
            self.laws.look(machine);
            calls += machine.engine.stirred();
        }
        if !self.misled {
            self.laws.one_holder(&self.machines[..self.nodes]);
        }
        let stirred = (self.commits as u64, calls);
        if stirred != self.stirred {
            self.stirred = stirred;
            self.last = self.now;
        }
    }

    fn later(&mut self, seconds: u8, due: Due) {
        self.due.push((self.now + Duration::from_secs(u64::from(seconds)), due));
    }

    fn ends(&mut self, due: Due) {
        match due {
            Due::Open(machine) => self.machines[machine].line.set(Way::Open),
            Due::Fast(machine) => self.machines[machine].line.slow(Duration::from_millis(3)),
            Due::EngineUp(node) => self.machines[node].engine.come_up(),
            Due::Release(node, verb) => self.machines[node].engine.release(verb),
            Due::StoreUp => {
                self.store_stopped = false;
                self.store.set_down(false);
                for machine in &self.machines {
                    if self.due.iter().all(|(_, due)| !matches!(due, Due::Open(_))) {
                        machine.line.set(Way::Open);
                    }
                }
            }
            Due::WatchesGoOn => self.store.hold_watches(false),
            Due::Accept => self.accept(),
        }
    }

    /// `reeve admin accept-store`.
    fn accept(&mut self) {
        let mut marker = ClusterMarker::first(cluster());
        let stored = self.store.peek(root().key(&Key::Cluster));
        if let Some(stored) = stored.and_then(|kv| ClusterMarker::decode(&kv.value).ok()) {
            marker.restore_epoch = stored.restore_epoch;
        }
        for kv in self.store.dump() {
            if let Some(Key::Report(_)) = root().parse(&kv.key)
                && let Ok(report) = Report::decode(&kv.value)
            {
                marker.restore_epoch = marker.restore_epoch.max(report.applied.restore_epoch);
            }
        }
        marker.restore_epoch += 1;
        marker.accepted_revision = Some(self.store.revision());
        self.say(|| format!("a person accepts the store, epoch {}", marker.restore_epoch));
        self.store.put(root().key(&Key::Cluster), marker.encode());
    }

    fn node(&self, which: u8) -> usize {
        usize::from(which) % self.nodes
    }

    fn machine(&self, which: u8) -> usize {
        usize::from(which) % self.machines.len()
    }

    fn apply(&mut self, service: u8, replicas: u8, variant: u8) {
        let name = NAMES[usize::from(service) % NAMES.len()];
        self.store.put(service_key(name), manifest(name, replicas, variant));
    }

    /// A key that is there, of a class.
    fn key_of(&self, class: u8, which: u8) -> Option<String> {
        const CLASSES: [&str; 9] = [
            "assignments/",
            "reports/",
            "nodes/",
            "sessions/",
            "status/",
            "accepted/",
            "verdicts/",
            "breaker",
            "election/",
        ];
        let class = CLASSES[usize::from(class) % CLASSES.len()];
        let keys: Vec<String> = self
            .store
            .dump()
            .into_iter()
            .filter_map(|kv| String::from_utf8(kv.key).ok())
            .filter(|key| key.starts_with(&format!("/reeve/{class}")))
            .collect();
        let index = usize::from(which).checked_rem(keys.len())?;
        keys.get(index).cloned()
    }

    fn act(&mut self, act: Act) {
        self.say(|| format!("--- {act:?}"));
        let now = self.now;
        self.last = now;
        match act {
            Act::Apply {
                service,
                replicas,
                variant,
            } => self.apply(service, replicas, variant),
            Act::Delete { service } => {
                self.store
                    .delete(service_key(NAMES[usize::from(service) % NAMES.len()]));
            }
            Act::Recreate {
                service,
                replicas,
                variant,
            } => {
                self.store
                    .delete(service_key(NAMES[usize::from(service) % NAMES.len()]));
                self.apply(service, replicas, variant);
            }
            Act::Invalid { service } => {
                let name = NAMES[usize::from(service) % NAMES.len()];
                self.store.put(service_key(name), "spec: [this, is, no, service");
            }
            Act::Garbage { class, which } => {
                if let Some(key) = self.key_of(class, which) {
                    self.spoil(&key);
                    self.store.put(&key, format!("{{\"garbage\": {which}"));
                }
            }
            Act::Lose { class, which } => {
                if let Some(key) = self.key_of(class, which) {
                    self.spoil(&key);
                    self.store.delete(&key);
                }
            }
            Act::LoseAssignments => {
                self.store.delete_prefix("/reeve/assignments/");
            }
            Act::Cordon { node, mode } => {
                let node: NodeName = self.machines[self.node(node)].name.parse().expect("a name");
                let key = root().key(&Key::Cordon(node));
                let cordon = |mode, lost| Cordon {
                    schema_version: SchemaVersion::default(),
                    mode,
                    lost,
                    by: "anna@desk".to_owned(),
                    note: None,
                };
                match mode % 4 {
                    0 => drop(self.store.put(key, cordon(CordonMode::Cordon, false).encode())),
                    1 => drop(self.store.put(key, cordon(CordonMode::Drain, false).encode())),
                    2 => {
                        self.misled = true;
                        self.store.put(key, cordon(CordonMode::Cordon, true).encode());
                    }
                    _ => drop(self.store.delete(key)),
                }
            }
            Act::ByHand { node, what, which } => self.by_hand(node, what, which),
            Act::Crash { node, which, code } => {
                let node = self.node(node);
                let engine = &self.machines[node].engine;
                let ours: Vec<String> = engine
                    .running()
                    .into_iter()
                    .filter(|name| !name.starts_with("foreign"))
                    .collect();
                if let Some(index) = usize::from(which).checked_rem(ours.len()) {
                    engine.crash(&ours[index], i64::from(code));
                }
            }
            Act::Kill { machine, seconds } => {
                let machine = self.machine(machine);
                self.machines[machine].kill(Some(now + Duration::from_secs(u64::from(seconds))));
            }
            Act::KillAtWrite { machine, write, when } => {
                let write = 1 + u64::from(write % 6);
                let at = match when % 3 {
                    0 => At::Before(write),
                    1 => At::After(write),
                    _ => At::Unanswered(write),
                };
                self.machines[self.machine(machine)].line.plan(Some(at));
            }
            Act::KillAtEffect { node, effect } => {
                let node = self.node(node);
                let again = now + Duration::from_secs(1);
                // A process has its end from its beginning on.
                self.machines[node].cut = Cut::after(1 + i64::from(effect % 24));
                self.machines[node].kill(Some(again));
            }
            Act::Stop { machine, seconds } => {
                let machine = self.machine(machine);
                self.machines[machine].stop(now + Duration::from_secs(u64::from(seconds)));
            }
            Act::Jump { machine, seconds } => {
                let machine = self.machine(machine);
                self.machines[machine].jump(Duration::from_secs(u64::from(seconds)));
            }
            Act::Drift { machine, percent } => {
                let machine = self.machine(machine);
                self.machines[machine].rate = 1.0 + f64::from(percent) / 100.0;
            }
            Act::Reboot { node, seconds } => {
                let node = self.node(node);
                self.laws.off(&self.machines[node].name);
                self.machines[node].reboot(now + Duration::from_secs(u64::from(seconds)));
            }
            Act::Cut { machine, way, seconds } => {
                let machine = self.machine(machine);
                let way = [Way::Silent, Way::Deaf, Way::Refused][usize::from(way) % 3];
                self.machines[machine].line.set(way);
                self.later(seconds, Due::Open(machine));
            }
            Act::Slow {
                machine,
                millis,
                seconds,
            } => {
                let machine = self.machine(machine);
                self.machines[machine]
                    .line
                    .slow(Duration::from_millis(u64::from(millis)));
                self.later(seconds, Due::Fast(machine));
            }
            Act::EngineDown { node, seconds } => {
                let node = self.node(node);
                self.machines[node].engine.go_down();
                self.later(seconds, Due::EngineUp(node));
            }
            Act::EngineHangs { node, verb, seconds } => {
                let (node, verb) = (self.node(node), VERBS[usize::from(verb) % VERBS.len()]);
                self.machines[node].engine.hang(verb);
                self.later(seconds, Due::Release(node, verb));
            }
            Act::EngineFails {
                node,
                verb,
                kind,
                times,
            } => {
                let (node, verb) = (self.node(node), VERBS[usize::from(verb) % VERBS.len()]);
                let kind = match kind % 5 {
                    0 => ErrorKind::Timeout,
                    1 => ErrorKind::Conflict { holder: None },
                    2 => ErrorKind::NoSpace,
                    3 => ErrorKind::Unavailable,
                    _ => ErrorKind::Other,
                };
                for _ in 0..=times % 3 {
                    self.machines[node].engine.fail_next(verb, kind.clone());
                }
            }
            Act::StoreDown { seconds } => {
                self.store.set_down(true);
                self.later(seconds, Due::StoreUp);
            }
            Act::StorePaused { seconds } => {
                for machine in &self.machines {
                    machine.line.set(Way::Silent);
                }
                self.later(seconds, Due::StoreUp);
            }
            Act::Compact => self.compact(),
            Act::Revoke { which } => {
                let leases: BTreeSet<i64> = self
                    .store
                    .dump()
                    .iter()
                    .map(|kv| kv.lease)
                    .filter(|lease| *lease != 0)
                    .collect();
                let leases: Vec<i64> = leases.into_iter().collect();
                if let Some(lease) = pick(&leases, which) {
                    self.store.expire_lease(lease);
                }
            }
            Act::RenewLeases => self.store.renew_leases(),
            Act::BreakWatches => self.store.break_watches(),
            Act::HoldWatches { seconds } => {
                self.store.hold_watches(true);
                self.later(seconds, Due::WatchesGoOn);
            }
            Act::Backup => self.backup = Some(self.store.checkpoint()),
            Act::Restore { seconds } => {
                if let Some(backup) = &self.backup {
                    self.store.restore(backup);
                    self.went_back = true;
                    self.later(seconds, Due::Accept);
                }
            }
        }
    }

    fn spoil(&mut self, key: &str) {
        if key.starts_with("/reeve/accepted/")
            && let Some(kv) = self.store.peek(key)
        {
            self.spoiled.entry(key.to_owned()).or_insert(kv.value);
        }
    }

    fn compact(&self) {
        let compacting = self.store.clone();
        let revision = compacting.revision();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        // One that is down is not compacted.
        let _done = runtime.block_on(async { runtime::Store::compact(&compacting, revision).await });
    }

    fn by_hand(&mut self, node: u8, what: u8, which: u8) {
        let node = self.node(node);
        let (engine, name) = (self.machines[node].engine.clone(), self.machines[node].name.clone());
        let ours: Vec<String> = engine
            .running()
            .into_iter()
            .filter(|name| !name.starts_with("foreign"))
            .collect();
        let one = usize::from(which)
            .checked_rem(ours.len())
            .map(|index| ours[index].clone());
        match (what % 4, one) {
            (0, Some(one)) => {
                self.laws.touch(&name, &one);
                engine.stop_by_hand(&one);
            }
            (1, Some(one)) => {
                self.laws.touch(&name, &one);
                engine.remove_by_hand(&one);
            }
            (2, Some(one)) => {
                self.laws.touch(&name, &one);
                engine.change(&one, |container| container.observed.state = ContainerState::Paused);
            }
            _ => {
                self.foreign += 1;
                let _id = engine.add_foreign(&format!("foreign{}", self.foreign), &BTreeMap::new());
            }
        }
    }

    /// Every fault ends; what people left half done, they finish.
    pub fn recover(&mut self) {
        self.say(|| "=== all is well again".to_owned());
        let due = std::mem::take(&mut self.due);
        for (_, due) in due {
            self.ends(due);
        }
        self.store_stopped = false;
        self.store.set_down(false);
        self.store.hold_watches(false);
        let now = self.now;
        for machine in &mut self.machines {
            machine.line.set(Way::Open);
            machine.line.slow(Duration::from_millis(3));
            machine.line.plan(None);
            machine.heal(now);
            for verb in VERBS {
                machine.engine.release(verb);
            }
        }
        for (key, value) in std::mem::take(&mut self.spoiled) {
            self.store.put(key, value);
        }
        for node in 1..=self.nodes {
            self.store.delete(format!("/reeve/cordons/n{node}"));
        }
        let invalid: Vec<&str> = NAMES
            .into_iter()
            .filter(|name| {
                self.store
                    .peek(service_key(name))
                    .is_some_and(|kv| !kv.value.starts_with(b"apiVersion"))
            })
            .collect();
        for name in invalid {
            self.store.put(service_key(name), manifest(name, 2, 0));
        }
        if self.went_back {
            self.apply_again();
        }
    }

    /// What nodes run newer than any record waits for a person who applies it again, also unchanged.
    fn apply_again(&self) {
        for name in NAMES {
            if let Some(kv) = self.store.peek(service_key(name)) {
                self.store.put(service_key(name), kv.value);
            }
        }
    }

    /// Waits until all is as desired and at rest.
    pub fn settle(&mut self) {
        let began = self.now;
        let mut again = 3;
        loop {
            self.tick(Duration::MAX);
            self.acknowledge();
            if !self.laws.broken.is_empty() {
                return;
            }
            let quiet = self.now.saturating_sub(self.last.max(began)) >= QUIET;
            let late = self.now - began > SETTLES;
            if !quiet && !late {
                continue;
            }
            let unmet = self.unmet();
            if quiet && unmet.is_empty() {
                return;
            }
            // What the reports said when the store was accepted may have been as old as the store: it says so, and a person
            // accepts it once more.
            if quiet && self.went_back && again > 0 {
                again -= 1;
                self.accept();
                self.apply_again();
                self.last = self.now;
            }
            // What waits for a time to be over is quiet meanwhile.
            if late {
                let rest = if quiet { "at rest" } else { "not at rest" };
                for unmet in &unmet {
                    self.laws.broken.push(format!("the end ({rest}): {unmet}"));
                }
                if unmet.is_empty() {
                    self.laws.broken.push("the end: it does not come to rest".to_owned());
                }
                return;
            }
        }
    }

    /// A person lets go what the breaker holds.
    fn acknowledge(&mut self) {
        let Some(kv) = self.store.peek(root().key(&Key::Breaker)) else {
            return;
        };
        let Ok(Breaker { held: Some(held), .. }) = Breaker::decode(&kv.value) else {
            return;
        };
        let key = root().key(&Key::Ack(held.digest.to_string()));
        if self.store.peek(&key).is_none() {
            self.say(|| format!("a person acknowledges {} removals", held.count));
            let ack = Ack {
                schema_version: SchemaVersion::default(),
                digest: held.digest,
                count: held.count,
                by: "anna@desk".to_owned(),
            };
            self.store.put(key, ack.encode());
        }
    }

    /// What there is at the end, for people.
    pub fn show(&self) {
        for machine in &self.machines[..self.nodes] {
            let text = |key: String| {
                let value = self.store.peek(key);
                value.map_or_else(String::new, |kv| String::from_utf8_lossy(&kv.value).into_owned())
            };
            let states = machine
                .engine
                .containers()
                .into_iter()
                .map(|(name, one)| (name, one.observed.state));
            let calls = machine.engine.calls();
            let disk = |file| std::fs::read_to_string(machine.dir.join(file)).unwrap_or_default();
            eprintln!("{}: {:?}", machine.name, states.collect::<Vec<_>>());
            eprintln!("  assigned {}", text(format!("/reeve/assignments/{}", machine.name)));
            eprintln!("  on disk  {}", disk("assignment.json"));
            eprintln!("  report   {}", text(format!("/reeve/reports/{}", machine.name)));
            eprintln!("  ledger   {}", disk("ledger.json"));
            eprintln!("  calls    {}", calls[calls.len().saturating_sub(20)..].join(", "));
        }
    }

    /// What is not as desired.
    fn unmet(&self) -> Vec<String> {
        let mut unmet = Vec::new();
        let mut running: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        let mut orphans = BTreeSet::new();
        for machine in &self.machines[..self.nodes] {
            let report = self.store.peek(format!("/reeve/reports/{}", machine.name));
            let Some(report) = report.and_then(|kv| Report::decode(&kv.value).ok()) else {
                unmet.push(format!("{} does not report", machine.name));
                continue;
            };
            let stray = report
                .instances
                .iter()
                .filter(|one| matches!(one.phase, Phase::Orphaned));
            orphans.extend(stray.map(|one| (machine.name.clone(), one.workload.to_string(), one.slot.to_string())));
            for (name, container) in machine.engine.containers() {
                let mut parts = name.split('.');
                let (Some(_), Some(workload), Some(slot), Some(_)) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    continue;
                };
                if orphans.contains(&(machine.name.clone(), workload.to_owned(), slot.to_owned())) {
                    continue;
                }
                if container.observed.state != ContainerState::Running {
                    unmet.push(format!("{name} on {} is {:?}", machine.name, container.observed.state));
                }
                let of = running.entry(workload.to_owned()).or_default();
                of.push((
                    slot.to_owned(),
                    format!("{} {}", container.observed.image, machine.name),
                ));
            }
        }
        if !orphans.is_empty() && !self.went_back {
            unmet.push(format!("orphaned, and no store ever went back: {orphans:?}"));
        }
        for name in NAMES {
            let found = running.remove(name).unwrap_or_default();
            let stored = self.store.peek(service_key(name));
            let Some(kv) = stored else {
                if !found.is_empty() {
                    unmet.push(format!("{name} is deleted, and there are {found:?}"));
                }
                continue;
            };
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            let field = |key: &str| {
                text.lines()
                    .find_map(|line| line.trim().strip_prefix(key))
                    .map(str::to_owned)
            };
            let image = field("image: ").unwrap_or_default();
            let count = match field("replicas: ") {
                Some(count) => count.parse().unwrap_or(0),
                None => self.nodes,
            };
            let slots: BTreeSet<&String> = found.iter().map(|(slot, _)| slot).collect();
            if found.len() != count || slots.len() != count {
                let status = self.store.peek(format!("/reeve/status/default/service/{name}"));
                let status = status.map_or_else(String::new, |kv| String::from_utf8_lossy(&kv.value).into_owned());
                unmet.push(format!(
                    "{name} wants {count}, and there are {found:?}; its status: {status}"
                ));
            }
            if let Some((slot, what)) = found.iter().find(|(_, what)| !what.contains(&image)) {
                unmet.push(format!("{name}.{slot} runs {what}, and {image} is desired"));
            }
        }
        unmet
    }
}

/// Of a service whose slots have one holder each: what says so.
pub(crate) fn exclusive(name: &str) -> Option<&'static str> {
    match name {
        "batch" => Some("  exclusive: true\n"),
        "edge" => Some("  exclusive: true\n  onDisconnect:\n    stopAfter: 20s\n"),
        _ => None,
    }
}

/// Whether its instances stop without the store.
pub(crate) fn stops_by_itself(name: &str) -> bool {
    exclusive(name).is_some_and(|text| text.contains("stopAfter"))
}

fn is_global(name: &str, variant: u8) -> bool {
    variant % 8 == 7 && exclusive(name).is_none()
}

/// What a person writes.
fn manifest(name: &str, replicas: u8, variant: u8) -> String {
    let image = 1 + variant % 3;
    let mut text = format!("apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n");
    if let Some(exclusive) = exclusive(name) {
        text += exclusive;
    }
    if is_global(name, variant) {
        text += "  mode: global\n";
    } else {
        text += &format!("  replicas: {}\n", replicas % 5);
    }
    if variant % 16 >= 12 && !is_global(name, variant) && exclusive(name).is_none() {
        text += "  replaceAfter: 10s\n";
    }
    text += &format!("  container:\n    image: app:{image}\n");
    if variant >= 128 {
        text += &format!("    env:\n      VARIANT: \"{variant}\"\n");
    }
    text
}
