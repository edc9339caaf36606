//! How fast an agent is on a real engine: from an assignment in the store to the create, and from the death of a container
//! to its restart. `cargo run -p agent --example latency -- unix:///var/run/docker.sock IMAGE [COUNT]`; the image needs
//! `sleep`. The store is in memory; what it makes is removed at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent::engine::docker::Docker;
use agent::engine::*;
use agent::{AgentOptions, run};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::BoxStream;
use runtime::{MemoryStore, Shutdown};
use schemas::container::ContainerSpec;
use schemas::image::ImageRef;
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::Kind;
use schemas::names::{InstanceName, Namespace, NodeName};
use schemas::records::{
    Accepted, AcceptedBody, Assigned, AssignedState, Assignment, ClusterId, ClusterMarker, Digest, InstanceCondition,
    Order, Record, Report, SchemaVersion, Uid,
};
use serde_json::json;

/// The engine, with a note of when each call began and ended.
struct Timed {
    engine: Arc<Docker>,
    calls: Arc<Mutex<Vec<(String, Instant, Instant)>>>,
}

impl Timed {
    async fn note<T>(&self, call: impl Into<String>, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let answer = work.await;
        let mut calls = self.calls.lock().expect("no panic while it is held");
        calls.push((call.into(), began, Instant::now()));
        answer
    }
}

impl ContainerRuntime for Timed {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>> {
        self.engine.version()
    }
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>> {
        self.note("info", self.engine.info()).boxed()
    }
    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>> {
        self.note("list", self.engine.list(cluster)).boxed()
    }
    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>> {
        self.note(format!("inspect {container}"), self.engine.inspect(container))
            .boxed()
    }
    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>> {
        self.note(format!("create {}", request.name), self.engine.create(request))
            .boxed()
    }
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.note(format!("start {id}"), self.engine.start(id)).boxed()
    }
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.note("stop", self.engine.stop(id, grace)).boxed()
    }
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.engine.kill(id)
    }
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.note("remove", self.engine.remove(id)).boxed()
    }
    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.engine.unpause(id)
    }
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.engine.rename(id, name)
    }
    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>> {
        self.engine.update_limits(id, spec)
    }
    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>> {
        self.note("network", self.engine.ensure_network(cluster, namespace))
            .boxed()
    }
    fn connect<'a>(&'a self, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>> {
        self.engine.connect(id, instance)
    }
    fn pull<'a>(&'a self, image: &'a ImageRef, progress: ProgressSink) -> BoxFuture<'a, Result<ImageId>> {
        self.engine.pull(image, progress)
    }
    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>>> {
        self.note("image", self.engine.image(image)).boxed()
    }
    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>> {
        self.engine.logs(id, lines)
    }
    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>> {
        self.engine.exec(id, command, timeout)
    }
    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>> {
        self.engine.stats(id)
    }
    fn events(&self, cluster: &str) -> BoxStream<'static, Event> {
        self.engine.events(cluster)
    }
}

struct Bench {
    store: MemoryStore,
    cluster: ClusterId,
    node: NodeName,
    image: String,
    generation: u64,
    calls: Arc<Mutex<Vec<(String, Instant, Instant)>>>,
}

impl Bench {
    fn put(&self, key: &Key, value: Vec<u8>) {
        self.store.put(Root::default().key(key), value);
    }

    fn accept(&self, index: usize) -> Assigned {
        let resource = ResourceKey {
            namespace: Some("bench".parse().expect("a namespace")),
            kind: Kind::Service,
            name: format!("s{index}").parse().expect("a name"),
        };
        let uid = Uid::derive(&self.cluster, &resource, 1);
        let spec = json!({ "container": { "image": self.image, "command": ["sleep", "3600"], "stopGracePeriod": "0s" }, "update": { "minReady": "10ms" } });
        let accepted = Accepted {
            schema_version: SchemaVersion::default(),
            n: 1,
            uid: uid.clone(),
            desired_revision: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body: AcceptedBody::Service(serde_json::from_value(spec).expect("a spec")),
        };
        let bytes = accepted.encode();
        let digest = Digest::of(&bytes);
        self.put(&Key::Accepted(resource.clone(), 1), bytes);
        Assigned {
            namespace: "bench".parse().expect("a namespace"),
            kind: Kind::Service,
            workload: resource.name,
            uid,
            slot: "1".parse().expect("a slot"),
            state: AssignedState::Present,
            n: 1,
            digest,
            ports: Vec::new(),
        }
    }

    fn assign(&mut self, instances: &[Assigned]) {
        self.generation += 1;
        let assignment = Assignment {
            schema_version: SchemaVersion::default(),
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            order: Order {
                restore_epoch: 0,
                epoch: 1,
                generation: self.generation,
            },
            instances: instances.to_vec(),
        };
        self.put(&Key::Assignment(self.node.clone()), assignment.encode());
    }

    async fn ready(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let report = self.store.peek(Root::default().key(&Key::Report(self.node.clone())));
            let report = report.and_then(|kv| Report::decode(&kv.value).ok());
            if report.is_some_and(|report| {
                report.applied.generation == self.generation
                    && report.instances.iter().filter(|line| line.ready).count() == count
                    && report.instances.len() == count
            }) {
                return;
            }
            assert!(Instant::now() < end, "{count} are not ready in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Calls since `from`, in order of their beginning.
    fn since(&self, from: Instant) -> Vec<(String, Duration, Duration)> {
        let calls = self.calls.lock().expect("no panic while it is held");
        let mut since: Vec<_> = calls
            .iter()
            .filter(|(_, began, _)| *began >= from)
            .map(|(call, began, ended)| (call.clone(), *began - from, *ended - *began))
            .collect();
        since.sort_by_key(|(_, began, _)| *began);
        since
    }

    async fn begins(&self, from: Instant, call: &str) -> Duration {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some((_, at, _)) = self.since(from).into_iter().find(|(name, _, _)| name.starts_with(call)) {
                return at;
            }
            assert!(Instant::now() < end, "no {call} in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn print(what: &str, goal: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<48} p50 {:6.2} ms  p90 {:6.2} ms  p99 {:6.2} ms  ({} times; goal {goal})",
        at(50),
        at(90),
        at(99),
        times.len()
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let address = args.next().expect("the engine's address");
    let image = args.next().expect("an image");
    let count: usize = args.next().map_or(30, |text| text.parse().expect("a count"));
    let docker = Arc::new(Docker::new(&address).expect("an engine's address"));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let dir = std::env::temp_dir().join(format!("reeve-latency-{}", std::process::id()));
    let node: NodeName = "bench".parse().expect("a name");
    let mut bench = Bench {
        store: MemoryStore::new(),
        cluster: ClusterId::from_random([9; 16]),
        node: node.clone(),
        image,
        generation: 0,
        calls: calls.clone(),
    };
    let marker = ClusterMarker {
        schema_version: SchemaVersion::default(),
        id: bench.cluster.clone(),
        restore_epoch: 0,
        moved: None,
    };
    bench.put(&Key::Cluster, marker.encode());
    let shutdown = Shutdown::new();
    let engine = Arc::new(Timed {
        engine: docker.clone(),
        calls,
    });
    let agent = tokio::spawn(run(
        AgentOptions::new(node, &dir),
        bench.store.clone(),
        engine,
        shutdown.clone(),
    ));
    bench.assign(&[]);
    bench.ready(0).await;

    let told = Arc::new(Mutex::new(BTreeMap::new()));
    let (mut events, ear) = (docker.events(bench.cluster.as_str()), told.clone());
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::Container {
                id,
                action: Action::Died { .. },
            } = event
            {
                ear.lock()
                    .expect("no panic while it is held")
                    .insert(id, Instant::now());
            }
        }
    });
    let (mut all, mut creates, mut deaths, mut tellings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for index in 0..count {
        all.push(bench.accept(index));
        let from = Instant::now();
        bench.assign(&all);
        creates.push(bench.begins(from, "create").await);
        bench.ready(all.len()).await;
        if index == 1 {
            for (call, at, took) in bench.since(from).into_iter().take(12) {
                println!(
                    "  {:7.2} ms  {call} ({:.2} ms)",
                    at.as_secs_f64() * 1e3,
                    took.as_secs_f64() * 1e3
                );
            }
        }
    }
    // The echoes of the last events.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let listed = docker.list(bench.cluster.as_str()).await.expect("a list");
    for (index, container) in listed.iter().enumerate() {
        let pid = docker
            .inspect(&container.id)
            .await
            .expect("an inspection")
            .pid
            .expect("it runs");
        let from = Instant::now();
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(killed.is_ok_and(|status| status.success()));
        let from_kill = Instant::now();
        let begins = bench.begins(from, &format!("start {}", container.id)).await;
        deaths.push(begins.saturating_sub(from_kill - from));
        let at = told
            .lock()
            .expect("no panic while it is held")
            .get(&container.id)
            .copied();
        tellings.extend(at.map(|at| (from + begins).saturating_duration_since(at)));
        bench.ready(all.len()).await;
        if index == 1 {
            for (call, at, took) in bench.since(from).into_iter().take(12) {
                println!(
                    "  {:7.2} ms  {call} ({:.2} ms)",
                    at.as_secs_f64() * 1e3,
                    took.as_secs_f64() * 1e3
                );
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    print("assignment put -> create begins", "10 ms", &mut creates);
    print("death of a container -> start begins", "10 ms p99", &mut deaths);
    print("the engine tells of it -> start begins", "10 ms p99", &mut tellings);
    for one in &mut all {
        one.state = AssignedState::Absent;
    }
    bench.assign(&all);
    bench.ready(0).await;
    shutdown.drain();
    let _ended = agent.await;
    let _removed = std::fs::remove_dir_all(dir);
}
