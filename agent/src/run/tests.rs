use super::*;
use crate::cut::Cut;
use crate::engine::ErrorKind;
use crate::engine::fake::FakeEngine;
use planner::node::ContainerState;
use runtime::MemoryStore;
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::Kind;
use schemas::records::{
    Accepted, AcceptedBody, Assigned, AssignedState, Assignment, ClusterMarker, Digest, FailingReason, Phase, Record,
    Report, ReportedInstance, Uid,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

mod crash;
mod faults;
mod files;
mod images;
mod isolated;
mod policy;
mod secrets;
mod signed;

const PATIENCE: Duration = Duration::from_secs(10);

/// A store, an engine, a data directory, and an agent between them.
struct Bed {
    dir: tempfile::TempDir,
    store: MemoryStore,
    engine: FakeEngine,
    cluster: ClusterId,
    generation: u64,
    sweep: Duration,
    session_ttl: Duration,
    /// Whose assignments count; the store's when None.
    trust: Option<watch::Receiver<Arc<Trust>>>,
    /// The agent's life, for what is left to start.
    cut: Cut,
    agent: Option<(Shutdown, JoinHandle<Result<(), AgentError>>)>,
}

impl Bed {
    fn new() -> Self {
        let bed = Self {
            dir: tempfile::tempdir().unwrap(),
            store: MemoryStore::new(),
            engine: FakeEngine::with_images(&["app:1", "app:2"]),
            cluster: ClusterId::from_random([7; 16]),
            generation: 0,
            sweep: Duration::from_millis(500),
            session_ttl: Duration::from_secs(15),
            trust: None,
            cut: Cut::never(),
            agent: None,
        };
        bed.mark();
        bed
    }

    fn mark(&self) {
        let marker = ClusterMarker {
            network: Default::default(),
            schema_version: SchemaVersion::default(),
            id: self.cluster.clone(),
            restore_epoch: 0,
            moved: None,
            accepted_revision: None,
        };
        self.store.put(key(&Key::Cluster), marker.encode());
    }

    fn start(&mut self) {
        let mut options = AgentOptions::new(node(), self.dir.path());
        options.sweep = self.sweep;
        options.policy.file = self.dir.path().join("policy.yaml");
        options.session_ttl = self.session_ttl;
        options.trust = self.trust.clone();
        options.cut = self.cut.clone();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(run(
            options,
            self.store.clone(),
            Arc::new(crate::engine::mortal::Mortal::new(
                self.engine.clone(),
                self.cut.clone(),
                self.dir.path(),
            )),
            shutdown.clone(),
        ));
        self.agent = Some((shutdown, task));
    }

    /// As a signal does.
    async fn stop(&mut self) {
        let Some((shutdown, task)) = self.agent.take() else {
            return;
        };
        shutdown.drain();
        task.await.unwrap().unwrap();
    }

    /// As `kill -9` does.
    async fn kill(&mut self) {
        let Some((_, task)) = self.agent.take() else { return };
        task.abort();
        let _ = task.await;
        // The directory's lock is gone with the task; its session is not.
    }

    /// Accepts a spec under this number; hands out its instance's line in an assignment.
    fn accept(&self, name: &str, slot: u32, n: u64, spec: Value) -> Assigned {
        self.accept_in("default", name, slot, n, spec)
    }

    fn accept_in(&self, namespace: &str, name: &str, slot: u32, n: u64, spec: Value) -> Assigned {
        let resource = ResourceKey {
            namespace: Some(namespace.parse().unwrap()),
            kind: Kind::Service,
            name: name.parse().unwrap(),
        };
        let uid = Uid::derive(&self.cluster, &resource, 1);
        let accepted = Accepted {
            schema_version: SchemaVersion::default(),
            n,
            uid: uid.clone(),
            desired_revision: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body: AcceptedBody::Service(serde_json::from_value(spec).unwrap()),
        };
        let bytes = accepted.encode();
        let digest = Digest::of(&bytes);
        self.store.put(key(&Key::Accepted(resource, n)), bytes);
        Assigned {
            address: None,
            seeds: Vec::new(),
            token: None,
            namespace: namespace.parse().unwrap(),
            kind: Kind::Service,
            workload: name.parse().unwrap(),
            uid,
            slot: slot.to_string().parse().unwrap(),
            state: AssignedState::Present,
            n,
            digest,
            ports: Vec::new(),
            image: None,
            from: Vec::new(),
        }
    }

    /// The labels of an instance's container.
    fn labels_of(&self, name: &str, slot: u32, n: u64) -> BTreeMap<String, String> {
        let assigned = self.accept(name, slot, n, spec("app:1"));
        let labels = planner::node::OwnLabels {
            cluster: self.cluster.clone(),
            node: node(),
            instance: (&assigned).into(),
            n,
            digest: assigned.digest,
            token: None,
        };
        labels.to_map()
    }

    /// What the next assignment of these instances is.
    fn next(&mut self, instances: &[Assigned]) -> Assignment {
        self.generation += 1;
        Assignment {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: self.cluster.clone(),
            node: node(),
            order: Order {
                restore_epoch: 0,
                epoch: 1,
                generation: self.generation,
            },
            instances: instances.to_vec(),
        }
    }

    fn assign(&mut self, instances: &[Assigned]) {
        let assignment = self.next(instances);
        self.store.put(key(&Key::Assignment(node())), assignment.encode());
    }

    fn report(&self) -> Option<Report> {
        self.store
            .peek(key(&Key::Report(node())))
            .map(|kv| Report::decode(&kv.value).unwrap())
    }

    /// Waits until the report says so.
    async fn until(&self, what: &str, mut holds: impl FnMut(&Report) -> bool) -> Report {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let report = self.report();
            if let Some(report) = report.as_ref().filter(|report| holds(report)) {
                return report.clone();
            }
            assert!(
                tokio::time::Instant::now() < end,
                "not within {PATIENCE:?}: {what}\nreport: {report:#?}\ncalls: {:#?}",
                self.engine.calls()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn engine_until(&self, what: &str, holds: impl FnMut(&FakeEngine) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, self.engine.when(holds)).await;
        assert!(
            waited.is_ok(),
            "not within {PATIENCE:?}: {what}\n{:#?}\ncalls: {:#?}",
            self.engine.containers(),
            self.engine.calls()
        );
    }

    fn starts(&self) -> usize {
        self.engine
            .calls()
            .iter()
            .filter(|call| call.starts_with("start "))
            .count()
    }

    /// Lets the agent pass over everything twice.
    async fn two_sweeps(&self) {
        let lists = self.engine.reads().0;
        let end = tokio::time::Instant::now() + PATIENCE;
        while self.engine.reads().0 < lists + 2 {
            assert!(tokio::time::Instant::now() < end, "the agent lists no more");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn node() -> NodeName {
    "n1".parse().unwrap()
}
fn key(key: &Key) -> String {
    Root::default().key(key)
}
fn spec(image: &str) -> Value {
    json!({ "container": { "image": image }, "update": { "minReady": "10ms" } })
}
fn one(report: &Report) -> Option<&ReportedInstance> {
    report.instances.first()
}
fn ready(report: &Report) -> bool {
    !report.instances.is_empty() && report.instances.iter().all(|line| line.ready)
}

async fn hello() -> Bed {
    let mut bed = Bed::new();
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.until("ready", ready).await;
    bed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assigned_instance_is_created_started_and_reported_ready() {
    let mut bed = hello().await;
    assert_eq!(bed.engine.running(), ["default.web.1.1".to_owned()].into());
    let report = bed.report().unwrap();
    assert_eq!(report.applied.generation, 1);
    let line = one(&report).unwrap();
    assert_eq!((line.n, &line.phase, line.restarts), (1, &Phase::Running, 0));
    assert!(bed.store.peek(key(&Key::Session(node()))).is_some());
    assert!(bed.store.peek(key(&Key::Node(node()))).is_some());
    bed.stop().await;
    assert_eq!(bed.engine.running().len(), 1, "stopping the agent stops no container");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_agent_writes_nothing() {
    let mut bed = hello().await;
    bed.two_sweeps().await;
    let before = bed.store.revision();
    bed.two_sweeps().await;
    assert_eq!(bed.store.revision(), before);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_image_is_here_before_the_old_container_stops() {
    let mut bed = hello().await;
    bed.engine.fail_pull("app:3", ErrorKind::ImageNotFound);
    let web = bed.accept("web", 1, 2, spec("app:3"));
    bed.assign(&[web]);
    bed.until("the pull fails", |report| {
        one(report)
            .and_then(|line| line.failing.as_ref())
            .is_some_and(|f| f.n == 2)
    })
    .await;
    assert_eq!(
        bed.engine.running(),
        ["default.web.1.1".to_owned()].into(),
        "the old one serves on"
    );
    let line = one(&bed.report().unwrap()).cloned().unwrap();
    assert_eq!(line.failing.unwrap().reason, FailingReason::ImageNotFound);
    assert_eq!((line.n, line.ready, line.next.unwrap().n), (1, true, 2));
    let web = bed.accept("web", 1, 3, spec("app:2"));
    bed.assign(&[web]);
    bed.until("the corrected one is ready", |report| {
        one(report).is_some_and(|line| line.n == 3 && line.ready)
    })
    .await;
    assert_eq!(bed.engine.running(), ["default.web.1.3".to_owned()].into());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_agent_reads_restarts_nothing() {
    let mut bed = hello().await;
    let mut other = spec("app:1");
    other["container"]["stopGracePeriod"] = json!("3s");
    let web = bed.accept("web", 1, 2, other);
    bed.assign(&[web]);
    bed.until("the new number is in force", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert_eq!(bed.starts(), 1);
    assert_eq!(
        bed.engine.running(),
        ["default.web.1.1".to_owned()].into(),
        "the name is derived from what made it"
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_instance_goes_and_an_unlisted_one_stays() {
    let mut bed = Bed::new();
    bed.start();
    let (mut web, db) = (
        bed.accept("web", 1, 1, spec("app:1")),
        bed.accept("db", 1, 1, spec("app:1")),
    );
    bed.assign(&[web.clone(), db]);
    bed.until("both ready", |report| report.instances.len() == 2 && ready(report))
        .await;
    web.state = AssignedState::Absent;
    bed.assign(&[web]);
    let report = bed
        .until("web is gone", |report| {
            report.instances.len() == 1 && report.applied.generation == 2
        })
        .await;
    assert_eq!(
        one(&report).unwrap().phase,
        Phase::Orphaned,
        "what no record lists is kept and shown"
    );
    assert_eq!(bed.engine.running(), ["default.db.1.1".to_owned()].into());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_is_ordered_absent_goes_though_nothing_is_known_of_its_spec() {
    let mut bed = hello().await;
    bed.assign(&[]);
    bed.until("an orphan", |report| {
        one(report).is_some_and(|line| line.phase == Phase::Orphaned)
    })
    .await;
    bed.stop().await;
    // Neither the store nor the disk has its spec any more.
    assert!(bed.store.delete_prefix("/reeve/accepted/") > 0);
    std::fs::remove_dir_all(bed.dir.path().join("specs")).unwrap();
    bed.start();
    bed.two_sweeps().await;
    let line = bed
        .until("an orphan still", |report| {
            one(report).is_some_and(|line| line.phase == Phase::Orphaned)
        })
        .await
        .instances
        .remove(0);
    assert_eq!(bed.engine.running().len(), 1);
    // As the leader orders it: by what the report says.
    bed.assign(&[Assigned {
        address: None,
        seeds: Vec::new(),
        token: None,
        namespace: line.namespace,
        kind: line.kind,
        workload: line.workload,
        uid: line.uid,
        slot: line.slot,
        state: AssignedState::Absent,
        n: line.n,
        digest: line.digest,
        ports: line.ports,
        image: None,
        from: Vec::new(),
    }]);
    let report = bed.until("it is gone", |report| report.instances.is_empty()).await;
    assert_eq!(report.applied.generation, 3);
    assert!(bed.engine.containers().is_empty());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absence_is_never_an_order() {
    let mut bed = hello().await;
    let assignment = bed.store.peek(key(&Key::Assignment(node()))).unwrap().value;
    bed.store.delete(key(&Key::Assignment(node())));
    bed.two_sweeps().await;
    bed.store.put(key(&Key::Assignment(node())), "{ broken");
    bed.until("the damage is said", |report| {
        report.conditions.iter().any(|c| c.reason == "AssignmentUnreadable")
    })
    .await;
    bed.store.wipe();
    bed.two_sweeps().await;
    bed.mark();
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running().len(), 1);
    assert_eq!(bed.starts(), 1);
    bed.store.put(key(&Key::Assignment(node())), assignment);
    bed.until("all is normal", |report| ready(report) && report.conditions.is_empty())
        .await;
    assert_eq!(bed.starts(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_assignment_is_a_hold_that_outlives_a_restart() {
    let mut bed = hello().await;
    let mut web = bed.accept("web", 1, 2, spec("app:1"));
    bed.assign(&[web.clone()]);
    bed.until("2 in force", |report| one(report).is_some_and(|line| line.n == 2))
        .await;
    bed.generation = 0;
    web.state = AssignedState::Absent;
    bed.assign(&[web.clone()]);
    let held = |report: &Report| report.conditions.iter().any(|c| c.reason == "StoreRegressed");
    bed.until("the hold is said", held).await;
    bed.stop().await;
    bed.start();
    bed.generation = 10;
    bed.assign(&[web]);
    bed.two_sweeps().await;
    bed.until("still held", held).await;
    assert_eq!(bed.engine.running().len(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_restarts_nothing_and_resumes_its_session() {
    let mut bed = hello().await;
    let session = bed.store.peek(key(&Key::Session(node()))).unwrap();
    bed.kill().await;
    bed.start();
    bed.two_sweeps().await;
    bed.until("ready", ready).await;
    assert_eq!(bed.starts(), 1);
    assert_eq!(
        bed.store.peek(key(&Key::Session(node()))).unwrap().create_revision,
        session.create_revision
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ledger_adopts_what_runs_and_doubles_nothing() {
    let mut bed = hello().await;
    bed.stop().await;
    std::fs::remove_file(bed.dir.path().join("ledger.json")).unwrap();
    bed.start();
    bed.two_sweeps().await;
    bed.until("ready again", ready).await;
    assert_eq!(bed.starts(), 1);
    assert_eq!(bed.engine.containers().len(), 1);
    bed.engine.remove_by_hand("default.web.1.1");
    bed.engine_until("created again", |engine| engine.running().len() == 1)
        .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_store_gone_a_restarted_agent_keeps_and_restarts_what_it_was_assigned() {
    let mut bed = hello().await;
    bed.stop().await;
    bed.store.set_down(true);
    bed.start();
    bed.two_sweeps().await;
    bed.engine.crash("default.web.1.1", 3);
    bed.engine_until("running again", |engine| {
        engine.running().len() == 1 && engine.calls().iter().filter(|c| c.starts_with("start")).count() == 2
    })
    .await;
    bed.engine.remove_by_hand("default.web.1.1");
    bed.engine_until("created again", |engine| engine.running().len() == 1)
        .await;
    bed.store.set_down(false);
    bed.until("reported", ready).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_person_changes_by_hand_is_put_right() {
    let mut bed = hello().await;
    let name = "default.web.1.1";
    let right = |engine: &FakeEngine| {
        engine.containers().get(name).is_some_and(|c| {
            let details = c.observed.details.clone().unwrap_or_default();
            c.observed.state == ContainerState::Running
                && details.restart_policy == "no"
                && details.limits.memory == 0
                && c.observed.networks.contains_key("reeve-07070707-default")
        })
    };
    let changes: [(&str, fn(&FakeEngine)); 6] = [
        ("stopped", |engine| engine.stop_by_hand("default.web.1.1")),
        ("removed", |engine| engine.remove_by_hand("default.web.1.1")),
        ("paused", |engine| {
            engine.change("default.web.1.1", |c| c.observed.state = ContainerState::Paused)
        }),
        ("renamed", |engine| {
            engine.change("default.web.1.1", |c| c.observed.name = "other".to_owned())
        }),
        ("limited", |engine| {
            engine.change("default.web.1.1", |c| {
                c.observed.details.as_mut().unwrap().limits.memory = 5 << 20
            })
        }),
        ("disconnected", |engine| {
            engine.change("default.web.1.1", |c| c.observed.networks.clear())
        }),
    ];
    for (what, change) in changes {
        bed.two_sweeps().await;
        change(&bed.engine);
        bed.engine_until(what, right).await;
    }
    assert_eq!(bed.engine.containers().len(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_containers_and_look_alikes_are_left_alone() {
    let mut bed = hello().await;
    let labels = bed.engine.containers()["default.web.1.1"].observed.labels.clone();
    bed.engine.add_foreign("copy", &labels);
    bed.engine.add_foreign("stranger", &BTreeMap::new());
    let mut web = bed.accept("web", 1, 1, spec("app:1"));
    web.state = AssignedState::Absent;
    bed.assign(&[web]);
    bed.until("ours is gone", |report| report.instances.is_empty()).await;
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), ["copy".to_owned(), "stranger".to_owned()].into());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_said_and_its_holder_left_alone() {
    let mut bed = Bed::new();
    bed.engine.add_foreign("default.web.1.1", &BTreeMap::new());
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    let report = bed
        .until("said", |report| one(report).is_some_and(|line| line.failing.is_some()))
        .await;
    assert_eq!(
        one(&report).unwrap().failing.as_ref().unwrap().reason,
        FailingReason::NameTaken
    );
    bed.engine.remove_by_hand("default.web.1.1");
    bed.until("then it is created", ready).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loop_backs_off_and_says_why_with_its_last_lines() {
    let mut bed = Bed::new();
    bed.engine.set_logs(&["panic: no config"]);
    bed.engine.crash_at_start("default.web.1.1", Some(3));
    bed.start();
    let mut quick = spec("app:1");
    quick["restartBackoff"] = json!({ "initial": "20ms", "max": "50ms" });
    let web = bed.accept("web", 1, 1, quick);
    bed.assign(&[web]);
    let report = bed
        .until("a crash loop with its last lines", |report| {
            one(report)
                .and_then(|line| line.failing.as_ref())
                .is_some_and(|f| f.reason == FailingReason::CrashLoop && !f.logs.is_empty())
        })
        .await;
    let line = one(&report).unwrap();
    assert_eq!(line.exit_code, Some(3));
    assert_eq!(line.failing.as_ref().unwrap().logs, ["panic: no config"]);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_that_hangs_delays_its_own_instance_only() {
    let mut bed = Bed::new();
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[web.clone(), db.clone()]);
    bed.until("both ready", |report| report.instances.len() == 2 && ready(report))
        .await;
    bed.engine.hang("stop");
    let mut gone = web;
    gone.state = AssignedState::Absent;
    bed.assign(&[gone, db]);
    bed.until("stopping", |report| {
        report.instances.iter().any(|line| line.phase == Phase::Stopping)
    })
    .await;
    bed.engine.crash("default.db.1.1", 1);
    bed.engine_until("db runs again", |engine| engine.running().contains("default.db.1.1"))
        .await;
    bed.engine.release("stop");
    bed.until("web is gone", |report| report.instances.len() == 1).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_spec_holds_its_own_instance_only() {
    let mut bed = Bed::new();
    bed.start();
    let mut web = bed.accept("web", 1, 1, spec("app:1"));
    web.digest = Digest::of(b"something else");
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[db, web]);
    let report = bed.until("db is ready, web held", |report| {
        report.instances.iter().any(|line| line.ready) && report.instances.iter().any(|line| line.phase == Phase::Held)
    });
    let held = report
        .await
        .instances
        .into_iter()
        .find(|line| line.phase == Phase::Held)
        .unwrap();
    assert_eq!(held.failing.unwrap().reason, FailingReason::SpecUnreadable);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_cluster_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let options = AgentOptions::new(node(), dir.path());
    let refused = run(
        options,
        MemoryStore::new(),
        Arc::new(FakeEngine::new()),
        Shutdown::new(),
    )
    .await;
    assert!(refused.unwrap_err().to_string().contains("reeve init"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_went_away_is_converged_again_when_it_is_back() {
    let mut bed = hello().await;
    bed.engine.go_down();
    tokio::time::sleep(Duration::from_millis(50)).await;
    bed.engine.come_up();
    bed.engine.crash("default.web.1.1", 137);
    bed.engine_until("runs again", |engine| engine.running().len() == 1)
        .await;
    bed.until("ready", ready).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_container_is_started_though_the_first_lists_still_show_it_running() {
    let mut bed = Bed::new();
    // No sweep comes to the rescue within the test's patience.
    bed.sweep = Duration::from_secs(600);
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.until("ready", ready).await;
    bed.engine.crash("default.web.1.1", 137);
    bed.engine_until("runs again", |engine| engine.running().len() == 1)
        .await;
    bed.stop().await;
}
