//! A cluster in memory for the tests of the controller: the store, controllers as tasks, and agents that obey their
//! assignments and report, without any engine.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use controller::{ControllerError, ControllerOptions, Started};
use runtime::{
    Fence, Guard, MemoryStore, Outcome, Prefix, ReflectOptions, SessionOptions, Shutdown, Store, Txn, reflect, session,
};
use schemas::keys::{Key, ResourceKey, Root};
use schemas::names::{NodeName, Slot};
use schemas::records::{
    Addresses, Assigned, AssignedState, Assignment, Capacity, ClusterId, ClusterMarker, Digest, Engine, NodeFacts,
    Order, Phase, Record, Report, ReportedInstance, SchemaVersion, ServiceStatus, SessionRecord,
};
use schemas::units::{ByteSize, Cpu};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use trust::sign::Signing;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn cluster_id() -> ClusterId {
    ClusterId::from_random([7; 16])
}

pub fn marker(restore_epoch: u64) -> ClusterMarker {
    ClusterMarker {
        network: Default::default(),
        schema_version: SchemaVersion::default(),
        id: cluster_id(),
        restore_epoch,
        moved: None,
        accepted_revision: None,
    }
}

/// A store with a cluster's marker.
pub fn store() -> MemoryStore {
    let store = MemoryStore::new();
    store.put("/reeve/cluster", marker(0).encode());
    store
}

pub fn service(name: &str, replicas: u32, image: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  container:\n    image: {image}\n"
    )
}

pub fn desired(name: &str) -> String {
    format!("/reeve/desired/default/service/{name}")
}

pub fn put_service(store: &MemoryStore, name: &str, replicas: u32, image: &str) -> i64 {
    store.put(desired(name), service(name, replicas, image))
}

/// Waits for a condition; panics with the store's keys when it does not come.
pub async fn until<T>(store: &MemoryStore, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        if tokio::time::Instant::now() > deadline {
            for kv in store.dump() {
                let value: String = String::from_utf8_lossy(&kv.value).chars().take(1500).collect();
                eprintln!("{} = {value}", String::from_utf8_lossy(&kv.key));
            }
            panic!("waited in vain until {what}");
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

pub fn status(store: &MemoryStore, name: &str) -> Option<ServiceStatus> {
    let kv = store.peek(format!("/reeve/status/default/service/{name}"))?;
    ServiceStatus::decode(&kv.value).ok()
}

/// Waits until a service has so many ready instances of so many, and its status speaks of its newest value.
pub async fn ready(store: &MemoryStore, name: &str, count: u32) -> ServiceStatus {
    until(store, &format!("{name} has {count} ready instances"), || {
        let revision = store.peek(desired(name)).map_or(0, |kv| kv.mod_revision);
        let status = status(store, name)?;
        let counts = status.counts;
        let done = (counts.desired, counts.ready, counts.updated) == (count, count, count);
        (done && status.observed_revision == revision).then_some(status)
    })
    .await
}

pub fn assignment(store: &MemoryStore, node: &str) -> Option<Assignment> {
    let kv = store.peek(format!("/reeve/assignments/{node}"))?;
    Assignment::decode(&kv.value).ok()
}

/// Which slot of which workload is assigned where, those on their way out left aside.
pub fn placements(store: &MemoryStore) -> BTreeMap<(String, Slot), Vec<NodeName>> {
    let mut placements: BTreeMap<(String, Slot), Vec<NodeName>> = BTreeMap::new();
    for kv in store.dump() {
        if let Some(Key::Assignment(node)) = Root::default().parse(&kv.key)
            && let Ok(assignment) = Assignment::decode(&kv.value)
        {
            for instance in assignment.instances.iter().filter(|i| i.state != AssignedState::Absent) {
                placements
                    .entry((instance.workload.to_string(), instance.slot.clone()))
                    .or_default()
                    .push(node.clone());
            }
        }
    }
    placements
}

/// A controller as a task; ends it when dropped.
pub struct Controller {
    pub shutdown: Shutdown,
    pub http: std::net::SocketAddr,
    task: Option<JoinHandle<Result<(), ControllerError>>>,
}

impl Controller {
    pub async fn start<S: Store>(store: S, id: &str) -> Self {
        Self::start_signing(store, id, None).await
    }

    /// One that signs what it assigns.
    pub async fn start_signing<S: Store>(store: S, id: &str, signing: Option<watch::Receiver<Arc<Signing>>>) -> Self {
        let shutdown = Shutdown::new();
        let (tell, started) = oneshot::channel::<Started>();
        let mut options = ControllerOptions::new(store, Root::default(), id);
        options.http_addr = Some(([127, 0, 0, 1], 0).into());
        options.leader_ttl = Duration::from_secs(5);
        options.signing = signing;
        options.started = Some(tell);
        let task = tokio::spawn(controller::run(options, shutdown.clone()));
        let started = started.await.expect("the controller starts");
        Self {
            shutdown,
            http: started.http.expect("an address"),
            task: Some(task),
        }
    }

    /// Ends it in good order.
    pub async fn stop(mut self) -> Result<(), ControllerError> {
        self.shutdown.drain();
        let task = self.task.take().expect("it runs");
        tokio::time::timeout(PATIENCE, task)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }

    /// Ends it as `kill -9` does: no resignation.
    pub fn kill(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Waits for its end of its own.
    pub async fn ended(mut self) -> Result<(), ControllerError> {
        let task = self.task.take().expect("it runs");
        tokio::time::timeout(PATIENCE, task)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        http(self.http, "GET", path).await
    }

    /// One value of its metrics: the line up to the value, such as `reeve_controller_leader`.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub async fn passes(&self, outcome: &str) -> f64 {
        self.metric(&format!("reeve_controller_passes_total{{outcome=\"{outcome}\"}}"))
            .await
            .unwrap_or(0.0)
    }

    /// Waits until it has seen everything up to now and found nothing more to write.
    pub async fn rests_after(&self, store: &MemoryStore) {
        let poke = store.put("/reeve/poke", b"".as_slice());
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.metric("reeve_controller_settled_revision").await.unwrap_or(0.0) < poke as f64 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the controller does not come to rest"
            );
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

pub async fn http(address: std::net::SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it takes the request");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    (code, body.to_owned())
}

/// How an agent treats an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Everything it is assigned becomes ready at once.
    Obeys,
    /// It reports what it reported before, whatever is assigned.
    Stuck,
}

/// An agent of one node: obeys its assignment and reports. Keeps what it runs in memory, as an engine would.
pub struct Agent {
    pub node: NodeName,
    pub running: Arc<Mutex<BTreeMap<(String, Slot), Assigned>>>,
    pub lease: i64,
    pub conduct: Arc<Mutex<Conduct>>,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Agent {
    pub async fn start(store: &MemoryStore, node: &str) -> Self {
        Self::start_with(store, node, Arc::default()).await
    }

    pub async fn start_with(
        store: &MemoryStore,
        node: &str,
        running: Arc<Mutex<BTreeMap<(String, Slot), Assigned>>>,
    ) -> Self {
        let node: NodeName = node.parse().expect("a name");
        let root = Root::default();
        let shutdown = Shutdown::new();
        let record = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: cluster_id(),
            node: node.clone(),
            machine_id: format!("machine-of-{node}"),
            boot_id: "boot".to_owned(),
            watermark: Order::default(),
        };
        let options = SessionOptions {
            key: root.key(&Key::Session(node.clone())).into_bytes(),
            machine_id: record.machine_id.clone(),
            value: record.encode().into(),
            ttl: Duration::from_secs(15),
        };
        let session = session::open(store, &options, None, &shutdown)
            .await
            .expect("the session opens");
        let facts = NodeFacts {
            link: None,
            schema_version: SchemaVersion::default(),
            cluster: cluster_id(),
            node: node.clone(),
            capacity: Capacity {
                cpu: Cpu { millis: 64_000 },
                memory: ByteSize(64 << 30),
            },
            addresses: Addresses {
                host: Vec::new(),
                agent: Some(format!("10.0.0.1:{}", 10_000 + node.as_str().len())),
                api: None,
                public: None,
            },
            engine: Engine::default(),
            agent_version: "test".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: BTreeMap::new(),
        };
        let fence = Fence::session(&session);
        let txn = Txn::new(&fence).put(root.key(&Key::Node(node.clone())), facts.encode(), Guard::Any);
        assert!(matches!(store.commit(txn).await, Ok(Outcome::Committed { .. })));
        let lease = session.lease();
        let conduct = Arc::new(Mutex::new(Conduct::Obeys));
        let (told, runs, conduct_now) = (node.clone(), Arc::clone(&running), Arc::clone(&conduct));
        let (store, until_end) = (store.clone(), shutdown.clone());
        let task = tokio::spawn(async move {
            let _session = session;
            let prefix = Prefix::new("/reeve/assignments/").expect("a prefix");
            let mut reader = reflect(store.clone(), prefix, ReflectOptions::default(), &until_end);
            let key = Root::default().key(&Key::Assignment(told.clone()));
            let mut applied = Order::default();
            while let Ok(cache) = reader.ready().await {
                let conduct = *conduct_now.lock().expect("no panic");
                if let Some(kv) = cache.keys.get(key.as_bytes())
                    && let Ok(assignment) = Assignment::decode(&kv.value)
                    && conduct == Conduct::Obeys
                    && assignment.order >= applied
                {
                    applied = assignment.order;
                    let report = obey(&store, &assignment, &runs);
                    let key = Root::default().key(&Key::Report(told.clone()));
                    let stored = store.peek(&key).map(|kv| kv.value);
                    if stored.as_deref() != Some(report.encode().as_slice()) {
                        let _ = store
                            .commit(Txn::new(&fence).put(key, report.encode(), Guard::Any))
                            .await;
                    }
                }
                if reader.changed().await.is_err() {
                    break;
                }
            }
        });
        Self {
            node,
            running,
            lease,
            conduct,
            shutdown,
            task,
        }
    }

    /// What it runs: `web.1` and so on.
    pub fn runs(&self) -> Vec<String> {
        let running = self.running.lock().expect("no panic");
        running.values().map(|instance| instance.name().to_string()).collect()
    }

    /// Ends it as `kill -9` and the end of its lease do. What it runs keeps running.
    pub fn die(self, store: &MemoryStore) {
        self.task.abort();
        store.expire_lease(self.lease);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.drain();
        self.task.abort();
    }
}

/// Absence is never an order: only `Absent` takes an instance out.
fn obey(store: &MemoryStore, assignment: &Assignment, runs: &Mutex<BTreeMap<(String, Slot), Assigned>>) -> Report {
    let mut running = runs.lock().expect("no panic");
    for instance in &assignment.instances {
        let slot = (instance.uid.to_string(), instance.slot.clone());
        match instance.state {
            AssignedState::Absent => {
                running.remove(&slot);
            }
            AssignedState::Prepared | AssignedState::Present => {
                let resource = ResourceKey {
                    namespace: Some(instance.namespace.clone()),
                    kind: instance.kind,
                    name: instance.workload.clone(),
                };
                let key = Root::default().key(&Key::Accepted(resource, instance.n));
                let spec = store
                    .peek(&key)
                    .unwrap_or_else(|| panic!("{key} is assigned and not there"));
                assert_eq!(
                    Digest::of(&spec.value),
                    instance.digest,
                    "{key} has another digest than is assigned"
                );
                running.insert(slot, instance.clone());
            }
        }
    }
    let instances = running.values().map(|instance| ReportedInstance {
        namespace: instance.namespace.clone(),
        kind: instance.kind,
        workload: instance.workload.clone(),
        uid: instance.uid.clone(),
        slot: instance.slot.clone(),
        n: instance.n,
        digest: instance.digest.clone(),
        phase: if instance.state == AssignedState::Present {
            Phase::Running
        } else {
            Phase::Prepared
        },
        ready: instance.state == AssignedState::Present,
        container: None,
        restarts: 0,
        ports: instance.ports.clone(),
        addresses: Vec::new(),
        exit_code: None,
        next: None,
        failing: None,
        conditions: Vec::new(),
        image: None,
        token: None,
    });
    let mut instances: Vec<ReportedInstance> = instances.collect();
    instances.sort_by(|a, b| {
        (&a.namespace, &a.workload, &a.slot, &a.uid).cmp(&(&b.namespace, &b.workload, &b.slot, &b.uid))
    });
    Report {
        network: Default::default(),
        virtual_ips: Default::default(),
        schema_version: SchemaVersion::default(),
        cluster: cluster_id(),
        node: assignment.node.clone(),
        applied: assignment.order,
        instances,
        conditions: Vec::new(),
    }
}

/// Runs a test with a limit on its time.
pub async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("the test takes over a minute")
}
