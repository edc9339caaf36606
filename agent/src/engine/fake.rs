//! An engine that exists in memory only and behaves like one, for tests of the agent's loop: names and ports are unique,
//! states follow each other as they do in Docker, and events are told. Tests make it fail, hang, crash and lose things with
//! the methods that are no calls of [`ContainerRuntime`]. Held to the real engine by one contract that both pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, BoxStream};
use schemas::container::ContainerSpec;
use schemas::image::ImageRef;
use schemas::names::{InstanceName, Namespace};
use schemas::records::InstanceCondition;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{
    Action, CLUSTER_LABEL, ContainerRuntime, ContainerState, CreateRequest, Created, Details, EngineError, EngineInfo,
    EngineVersion, ErrorKind, Event, ExecEnd, ImageId, Inspection, NetworkEnd, Observed, ProgressSink, PullProgress,
    Result, Stats, translate,
};

/// An engine in memory. Clones are the same engine.
#[derive(Clone)]
pub struct FakeEngine {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<Event>,
    /// Told whenever something may have changed, for [`FakeEngine::when`] and hanging calls.
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Default)]
struct World {
    containers: BTreeMap<String, FakeContainer>,
    images: BTreeMap<String, ImageId>,
    networks: BTreeMap<String, String>,
    next: u64,
    starts: u64,
    /// Every call that changes something, in order: `create default.web.1.1`.
    calls: Vec<String>,
    lists: u64,
    /// Containers whose end the next so many lists do not show yet, as the real engine's do not: it tells of a death before
    /// it files it.
    late: BTreeMap<String, u32>,
    inspects: u64,
    down: bool,
    /// What the next calls of a verb fail with; the front first.
    failures: BTreeMap<String, VecDeque<ErrorKind>>,
    /// Verbs whose calls do not come back until released.
    hanging: BTreeSet<String>,
    /// What pulls of a reference give; unnamed ones succeed.
    pulls: BTreeMap<String, VecDeque<ErrorKind>>,
    /// Names of containers that end at once when started, and their code.
    crashing: BTreeMap<String, i64>,
    /// Host ports that something else has.
    taken_ports: BTreeSet<u16>,
    exec: BTreeMap<String, i64>,
    logs: Vec<String>,
}

/// A container of a [`FakeEngine`].
#[derive(Clone, Debug)]
pub struct FakeContainer {
    pub observed: Observed,
    pub ports: BTreeSet<u16>,
    pub body: Value,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            world: Arc::default(),
            events: broadcast::channel(4_096).0,
            changed: Arc::default(),
        }
    }
}

impl FakeEngine {
    /// An empty engine that is up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One with these images.
    #[must_use]
    pub fn with_images(images: &[&str]) -> Self {
        let engine = Self::new();
        for image in images {
            engine.add_image(image);
        }
        engine
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: &str, action: Action) {
        // Nobody listening is no failure.
        let _heard = self.events.send(Event::Container {
            id: id.to_owned(),
            action,
        });
        self.changed.notify_waiters();
    }

    /// Makes an image present.
    pub fn add_image(&self, image: &str) {
        let reference = image
            .parse::<ImageRef>()
            .map_or_else(|_| image.to_owned(), |image| translate::engine_reference(&image));
        let id = ImageId(format!("sha256:{reference}"));
        self.world().images.insert(reference, id);
    }

    /// Removes every image.
    pub fn drop_images(&self) {
        self.world().images.clear();
    }

    /// From now on nothing answers; the event stream breaks.
    pub fn go_down(&self) {
        self.world().down = true;
        let _heard = self.events.send(Event::Disconnected(EngineError::new(
            ErrorKind::Unavailable,
            "follow the engine's events",
            "the connection broke",
        )));
        self.changed.notify_waiters();
    }

    /// It answers again.
    pub fn come_up(&self) {
        self.world().down = false;
        let _heard = self.events.send(Event::Connected);
        self.changed.notify_waiters();
    }

    /// The next call of a verb (`create`, `start`, `stop`, `kill`, `remove`, `unpause`, `rename`, `update`, `connect`,
    /// `network`, `list`, `inspect`, `image`) fails; given twice, the next two do.
    pub fn fail_next(&self, verb: &str, kind: ErrorKind) {
        self.world()
            .failures
            .entry(verb.to_owned())
            .or_default()
            .push_back(kind);
    }

    /// Calls of a verb hang until released.
    pub fn hang(&self, verb: &str) {
        self.world().hanging.insert(verb.to_owned());
    }

    /// Hanging calls of a verb go on.
    pub fn release(&self, verb: &str) {
        self.world().hanging.remove(verb);
        self.changed.notify_waiters();
    }

    /// The next pull of a reference fails.
    pub fn fail_pull(&self, image: &str, kind: ErrorKind) {
        self.world().pulls.entry(image.to_owned()).or_default().push_back(kind);
    }

    /// A container of this name ends at once, whenever it is started; None takes it back.
    pub fn crash_at_start(&self, name: &str, code: Option<i64>) {
        let mut world = self.world();
        match code {
            Some(code) => world.crashing.insert(name.to_owned(), code),
            None => world.crashing.remove(name),
        };
    }

    /// Something outside has a host port.
    pub fn take_port(&self, port: u16) {
        self.world().taken_ports.insert(port);
    }

    /// What commands in a container (named by their first word) end with; 0 otherwise.
    pub fn exec_ends(&self, command: &str, code: i64) {
        self.world().exec.insert(command.to_owned(), code);
    }

    /// What every container has logged.
    pub fn set_logs(&self, lines: &[&str]) {
        self.world().logs = lines.iter().map(|line| (*line).to_owned()).collect();
    }

    /// A running container ends by itself.
    pub fn crash(&self, name: &str, code: i64) {
        let id = {
            let mut world = self.world();
            let Some(container) = world.by_name(name).filter(|one| one.is_up()) else {
                return;
            };
            container.end(code);
            let id = container.observed.id.clone();
            world.late.insert(id.clone(), 2);
            id
        };
        self.tell(&id, Action::Died { code: Some(code) });
    }

    /// A person's `docker stop`.
    pub fn stop_by_hand(&self, name: &str) {
        self.crash(name, 143);
        let id = self.world().by_name(name).map(|one| one.observed.id.clone());
        if let Some(id) = id {
            self.tell(&id, Action::Stopped);
        }
    }

    /// A person's `docker rm -f`.
    pub fn remove_by_hand(&self, name: &str) {
        let id = self.world().by_name(name).map(|one| one.observed.id.clone());
        if let Some(id) = id {
            self.crash(name, 137);
            self.world().containers.remove(&id);
            self.tell(&id, Action::Removed);
        }
    }

    /// Changes a container as a person might; told as an update.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut FakeContainer)) {
        let id = {
            let mut world = self.world();
            let Some(container) = world.by_name(name) else { return };
            change(container);
            container.observed.id.clone()
        };
        self.tell(&id, Action::Updated);
    }

    /// A running container that somebody else made; its id.
    pub fn add_foreign(&self, name: &str, labels: &BTreeMap<String, String>) -> String {
        let id = self.world().new_id();
        let observed = Observed {
            id: id.clone(),
            name: name.to_owned(),
            labels: labels.clone(),
            state: ContainerState::Running,
            image: "foreign:latest".to_owned(),
            networks: BTreeMap::new(),
            details: Some(Details {
                restart_policy: "no".to_owned(),
                ..Details::default()
            }),
        };
        self.world().containers.insert(
            id.clone(),
            FakeContainer {
                observed,
                ports: BTreeSet::new(),
                body: Value::Null,
            },
        );
        self.tell(&id, Action::Started);
        id
    }

    /// Every container, by name; with details.
    #[must_use]
    pub fn containers(&self) -> BTreeMap<String, FakeContainer> {
        self.world()
            .containers
            .values()
            .map(|one| (one.observed.name.clone(), one.clone()))
            .collect()
    }

    /// Names of the running ones.
    #[must_use]
    pub fn running(&self) -> BTreeSet<String> {
        let world = self.world();
        world
            .containers
            .values()
            .filter(|one| one.observed.state == ContainerState::Running)
            .map(|one| one.observed.name.clone())
            .collect()
    }

    /// Every call that changed something or tried to, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.world().calls.clone()
    }

    /// How many lists and inspections there were.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let world = self.world();
        (world.lists, world.inspects)
    }

    /// Waits until something holds of the engine.
    pub async fn when(&self, mut holds: impl FnMut(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// What every call meets first: a hang, an engine that is down, a failure that was asked for.
    async fn enter(&self, verb: &str, object: &str, changes: bool) -> Result<()> {
        if changes {
            self.world().calls.push(format!("{verb} {object}"));
            self.changed.notify_waiters();
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.world().hanging.contains(verb) {
                break;
            }
            changed.await;
        }
        let act = format!("{verb} `{object}`");
        let mut world = self.world();
        if world.down {
            return Err(EngineError::new(ErrorKind::Unavailable, act, "nothing answers"));
        }
        match world.failures.get_mut(verb).and_then(VecDeque::pop_front) {
            Some(kind) => Err(EngineError::new(kind, act, "as the test asked")),
            None => Ok(()),
        }
    }
}

impl World {
    fn new_id(&mut self) -> String {
        self.next += 1;
        format!("{:064x}", self.next)
    }

    fn by_name(&mut self, name: &str) -> Option<&mut FakeContainer> {
        self.containers.values_mut().find(|one| one.observed.name == name)
    }

    /// By id or by name, as an engine finds it.
    fn get(&mut self, act: &str, container: &str) -> Result<&mut FakeContainer> {
        self.containers
            .values_mut()
            .find(|one| one.observed.id == container || one.observed.name == container)
            .ok_or_else(|| EngineError::new(ErrorKind::NotFound, act, &format!("No such container: {container}")))
    }
}

impl FakeContainer {
    fn is_up(&self) -> bool {
        matches!(self.observed.state, ContainerState::Running | ContainerState::Paused)
    }

    fn end(&mut self, code: i64) {
        self.observed.state = ContainerState::Exited { code: Some(code) };
        if let Some(details) = self.observed.details.as_mut() {
            details.exit_code = Some(code);
        }
        for end in self.observed.networks.values_mut() {
            end.addresses.clear();
        }
    }

    fn details(&mut self) -> &mut Details {
        self.observed.details.get_or_insert_with(Details::default)
    }
}

fn host_ports(body: &Value) -> BTreeSet<u16> {
    let bindings = body["HostConfig"]["PortBindings"].as_object().into_iter().flatten();
    bindings
        .flat_map(|(_, list)| list.as_array().into_iter().flatten())
        .filter_map(|binding| binding["HostPort"].as_str()?.parse().ok())
        .collect()
}

impl ContainerRuntime for FakeEngine {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>> {
        async move {
            self.enter("version", "engine", false).await?;
            Ok(EngineVersion {
                version: "20.10.24".into(),
                api: (1, 41),
                os: "linux".into(),
                arch: "amd64".into(),
                kernel: "6.1".into(),
            })
        }
        .boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>> {
        async move {
            let version = self.version().await?;
            Ok(EngineInfo {
                version,
                engine_id: "fake".into(),
                hostname: "fake".into(),
                cpus: 4,
                memory_bytes: 8 << 30,
                storage_driver: "overlay2".into(),
                cgroup_version: "2".into(),
                root: "/var/lib/docker".into(),
                disk_free_bytes: Some(64 << 30),
                warnings: Vec::new(),
            })
        }
        .boxed()
    }

    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>> {
        async move {
            self.world().lists += 1;
            self.enter("list", cluster, false).await?;
            let mut world = self.world();
            let late = std::mem::take(&mut world.late);
            let ours = world
                .containers
                .values()
                .filter(|one| one.observed.labels.get(CLUSTER_LABEL).is_some_and(|id| id == cluster));
            let listed = ours
                .map(|one| {
                    let mut seen = Observed {
                        details: None,
                        ..one.observed.clone()
                    };
                    if late.contains_key(&seen.id) && matches!(seen.state, ContainerState::Exited { .. }) {
                        seen.state = ContainerState::Running;
                    }
                    seen
                })
                .collect();
            world.late = late
                .into_iter()
                .filter(|(_, left)| *left > 1)
                .map(|(id, left)| (id, left - 1))
                .collect();
            Ok(listed)
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>> {
        async move {
            self.world().inspects += 1;
            self.enter("inspect", container, false).await?;
            let mut world = self.world();
            let found = world.get(&format!("inspect container `{container}`"), container)?;
            let pid = matches!(found.observed.state, ContainerState::Running | ContainerState::Paused).then_some(4_242);
            let mut config = found.body.clone();
            let networking = config["NetworkingConfig"]["EndpointsConfig"].take();
            let raw = json!({ "Id": found.observed.id, "Config": config, "HostConfig": found.body["HostConfig"], "NetworkSettings": { "Networks": networking } });
            let image_id = ImageId(format!("sha256:{}", found.observed.image));
            Ok(Inspection { observed: found.observed.clone(), image_id, pid, error: String::new(), raw: Arc::new(raw) })
        }
        .boxed()
    }

    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>> {
        async move {
            self.enter("create", request.name, true).await?;
            let act = format!("create container `{}`", request.name);
            let (body, conditions) = translate::create_body(&request, (1, 41))
                .map_err(|error| EngineError::new(ErrorKind::Refused, &act, &error.to_string()))?;
            let id = {
                let mut world = self.world();
                if let Some(holder) = world.by_name(request.name) {
                    let holder = Some(holder.observed.id.clone());
                    return Err(EngineError::new(
                        ErrorKind::Conflict { holder },
                        &act,
                        "the name is already in use",
                    ));
                }
                let image = translate::engine_reference(&request.spec.image);
                if !world.images.contains_key(&image) {
                    return Err(EngineError::new(
                        ErrorKind::ImageNotFound,
                        &act,
                        &format!("No such image: {image}"),
                    ));
                }
                let network = body["HostConfig"]["NetworkMode"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let id = world.new_id();
                let labels = body["Labels"].as_object().into_iter().flatten();
                let observed = Observed {
                    id: id.clone(),
                    name: request.name.to_owned(),
                    labels: labels
                        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                        .collect(),
                    state: ContainerState::Created,
                    image,
                    networks: BTreeMap::from([(network, NetworkEnd::default())]),
                    details: Some(Details {
                        restart_policy: "no".into(),
                        limits: translate::limits(request.spec),
                        ..Details::default()
                    }),
                };
                let ports = host_ports(&body);
                world
                    .containers
                    .insert(id.clone(), FakeContainer { observed, ports, body });
                id
            };
            self.tell(&id, Action::Created);
            Ok(Created { id, conditions })
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter("start", &name, true).await?;
            let act = format!("start container `{name}`");
            let crashed = {
                let mut guard = self.world();
                let world = &mut *guard;
                let ports = world.get(&act, id)?.ports.clone();
                let mut held = world
                    .containers
                    .values()
                    .filter(|one| one.is_up() && one.observed.id != id)
                    .flat_map(|one| &one.ports)
                    .chain(&world.taken_ports);
                if let Some(port) = held.find(|port| ports.contains(port)).copied() {
                    return Err(EngineError::new(
                        ErrorKind::PortTaken { port: Some(port) },
                        &act,
                        "port is already allocated",
                    ));
                }
                world.starts += 1;
                let (starts, networks) = (world.starts, world.networks.clone());
                let crashing = world.crashing.get(&name).copied();
                let container = world.get(&act, id)?;
                match container.observed.state {
                    ContainerState::Running => return Ok(()),
                    ContainerState::Paused => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            &act,
                            "cannot start a paused container, try unpause instead",
                        ));
                    }
                    ContainerState::Dead | ContainerState::Removing => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            &act,
                            "it is marked for removal",
                        ));
                    }
                    ContainerState::Created | ContainerState::Restarting | ContainerState::Exited { .. } => {}
                }
                for (index, (network, end)) in container.observed.networks.iter_mut().enumerate() {
                    if network == "host" || network == "none" {
                        continue;
                    }
                    if !networks.contains_key(network) {
                        return Err(EngineError::new(
                            ErrorKind::NotFound,
                            &act,
                            &format!("network {network} not found"),
                        ));
                    }
                    let low = u8::try_from(starts % 250).unwrap_or(0) + 2;
                    end.addresses =
                        vec![std::net::Ipv4Addr::new(172, 18, u8::try_from(index).unwrap_or(0), low).into()];
                }
                container.observed.state = ContainerState::Running;
                container.details().started_at = Some(format!("start {starts}"));
                container.details().exit_code = None;
                crashing
            };
            self.tell(id, Action::Started);
            if let Some(code) = crashed {
                self.crash(&name, code);
            }
            Ok(())
        }
        .boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, _grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.end("stop", id, 143)
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.end("kill", id, 137)
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter("remove", &name, true).await?;
            {
                let mut world = self.world();
                match world.containers.get(id) {
                    None => return Ok(()),
                    Some(one) if one.is_up() => {
                        let said = "You cannot remove a running container";
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            format!("remove container `{name}`"),
                            said,
                        ));
                    }
                    Some(_) => world.containers.remove(id),
                };
            }
            self.tell(id, Action::Removed);
            Ok(())
        }
        .boxed()
    }

    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("unpause", id, true).await?;
            {
                let mut world = self.world();
                let container = world.get("unpause", id)?;
                match container.observed.state {
                    ContainerState::Paused => container.observed.state = ContainerState::Running,
                    ContainerState::Running => return Ok(()),
                    ContainerState::Created
                    | ContainerState::Restarting
                    | ContainerState::Exited { .. }
                    | ContainerState::Dead
                    | ContainerState::Removing => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            "unpause",
                            "it is not running",
                        ));
                    }
                }
            }
            self.tell(id, Action::Unpaused);
            Ok(())
        }
        .boxed()
    }

    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("rename", name, true).await?;
            {
                let mut world = self.world();
                if let Some(holder) = world.by_name(name) {
                    let holder = Some(holder.observed.id.clone());
                    return Err(EngineError::new(
                        ErrorKind::Conflict { holder },
                        "rename",
                        "the name is already in use",
                    ));
                }
                world.get("rename", id)?.observed.name = name.to_owned();
            }
            self.tell(id, Action::Renamed);
            Ok(())
        }
        .boxed()
    }

    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>> {
        async move {
            self.enter("update", id, true).await?;
            {
                let mut world = self.world();
                let details = world.get("update", id)?.details();
                details.limits = translate::limits(spec);
                details.restart_policy = "no".to_owned();
            }
            self.tell(id, Action::Updated);
            Ok(Vec::new())
        }
        .boxed()
    }

    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("network", namespace.as_str(), false).await?;
            self.world()
                .networks
                .entry(translate::network_name(namespace))
                .or_insert_with(|| cluster.to_owned());
            Ok(())
        }
        .boxed()
    }

    fn connect<'a>(&'a self, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("connect", id, true).await?;
            let network = translate::network_name(&instance.namespace);
            {
                let mut world = self.world();
                if !world.networks.contains_key(&network) {
                    return Err(EngineError::new(
                        ErrorKind::NotFound,
                        "connect",
                        &format!("network {network} not found"),
                    ));
                }
                let container = world.get("connect", id)?;
                let addresses = if container.is_up() {
                    vec![std::net::Ipv4Addr::new(172, 18, 9, 9).into()]
                } else {
                    Vec::new()
                };
                container
                    .observed
                    .networks
                    .entry(network)
                    .or_insert(NetworkEnd { addresses });
            }
            self.tell(id, Action::NetworkConnected);
            Ok(())
        }
        .boxed()
    }

    fn pull<'a>(&'a self, image: &'a ImageRef, progress: ProgressSink) -> BoxFuture<'a, Result<ImageId>> {
        async move {
            self.enter("pull", image.as_str(), true).await?;
            let failure = self.world().pulls.get_mut(image.as_str()).and_then(VecDeque::pop_front);
            if let Some(kind) = failure {
                return Err(EngineError::new(
                    kind,
                    format!("pull image `{image}`"),
                    "as the test asked",
                ));
            }
            progress(PullProgress {
                done_bytes: 1,
                total_bytes: 2,
                percent: 50,
                attempt: 1,
            });
            self.add_image(image.as_str());
            self.changed.notify_waiters();
            Ok(ImageId(format!("sha256:{}", translate::engine_reference(image))))
        }
        .boxed()
    }

    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<ImageId>>> {
        async move {
            self.enter("image", image.as_str(), false).await?;
            Ok(self.world().images.get(&translate::engine_reference(image)).cloned())
        }
        .boxed()
    }

    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            self.enter("logs", id, false).await?;
            let mut world = self.world();
            world.get("logs", id)?;
            Ok(world.logs[world.logs.len().saturating_sub(lines)..].to_vec())
        }
        .boxed()
    }

    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>> {
        async move {
            let first = command.first().cloned().unwrap_or_default();
            let entered = tokio::time::timeout(timeout, self.enter("exec", &first, false)).await;
            entered.unwrap_or_else(|_| Err(EngineError::new(ErrorKind::Timeout, "exec", "no answer in time")))?;
            let mut world = self.world();
            if !world.get("exec", id)?.is_up() {
                return Err(EngineError::new(
                    ErrorKind::Conflict { holder: None },
                    "exec",
                    "the container is not running",
                ));
            }
            Ok(ExecEnd {
                code: world.exec.get(&first).copied().unwrap_or(0),
                output: String::new(),
            })
        }
        .boxed()
    }

    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>> {
        async move {
            self.enter("stats", id, false).await?;
            self.world().get("stats", id)?;
            Ok(Stats {
                cpu_seconds: 1.5,
                memory_bytes: 1 << 20,
                memory_limit_bytes: 1 << 30,
                receive_bytes: 10,
                transmit_bytes: 20,
                pids: 1,
            })
        }
        .boxed()
    }

    fn events(&self, _cluster: &str) -> BoxStream<'static, Event> {
        let receiver = self.events.subscribe();
        let first = stream::once(async { Event::Connected });
        let rest = stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                // Events were missed: as after a reconnect, all is to be looked at anew.
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Event::Connected, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        first.chain(rest).boxed()
    }
}

impl FakeEngine {
    fn end<'a>(&'a self, verb: &'static str, id: &'a str, code: i64) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter(verb, &name, true).await?;
            {
                let mut world = self.world();
                let Some(container) = world.containers.get_mut(id).filter(|one| one.is_up()) else {
                    return Ok(());
                };
                container.end(code);
            }
            self.tell(id, Action::Died { code: Some(code) });
            if verb == "stop" {
                self.tell(id, Action::Stopped);
            }
            Ok(())
        }
        .boxed()
    }
}
