//! An engine that exists in memory only and behaves like one, for tests of the agent's loop: names and ports are unique,
//! states follow each other as they do in Docker, and events are told. Tests make it fail, hang, crash and lose things with
//! the methods that are no calls of [`ContainerRuntime`]. Held to the real engine by one contract that both pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::image::{ImagePin, ImageRef};
use schemas::records::InstanceCondition;
use serde_json::Value;
use tokio::sync::broadcast;

use super::{
    Action, ContainerState, Details, EngineError, ErrorKind, Event, ImageId, LocalImage, Observed, Result, translate,
};

mod calls;

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
    images: BTreeMap<String, LocalImage>,
    /// What registries have under a tag; what is not listed is pulled too, and no digest of it is known.
    published: BTreeMap<String, ImagePin>,
    networks: BTreeMap<String, String>,
    next: u64,
    starts: u64,
    /// Every call that changes something, in order: `create default.web.1.1`.
    calls: Vec<String>,
    lists: u64,
    /// How often something may have changed.
    stirred: u64,
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
    /// The user of the last pull.
    pulled_as: Option<String>,
    /// Names of containers that end at once when started, and their code.
    crashing: BTreeMap<String, i64>,
    /// Host ports that something else has.
    taken_ports: BTreeSet<u16>,
    exec: BTreeMap<String, i64>,
    logs: Vec<String>,
    /// What lists and inspections are asked besides: image lookups.
    look_ups: u64,
    /// What every create is answered beside the id.
    conditions: Vec<InstanceCondition>,
    /// The first instance that had two containers at once.
    doubled: Option<String>,
    /// Free bytes where the engine keeps its data; plenty when None.
    free: Option<u64>,
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
        self.world().stirred += 1;
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
        self.world().images.insert(
            reference,
            LocalImage {
                id,
                pin: None,
                loaded: false,
            },
        );
    }

    /// A registry has this under this tag from now on.
    pub fn publish(&self, image: &str, pin: ImagePin) {
        self.world().published.insert(image.to_owned(), pin);
    }

    /// What a pull brings: a published image under its tag and by its digest, else one of no digest.
    fn fetch(&self, image: &ImageRef) -> LocalImage {
        let reference = translate::engine_reference(image);
        let pin = {
            let mut world = self.world();
            let by_digest = |pin: &&ImagePin| Some(pin.digest.to_string().as_str()) == image.digest();
            let pin = match image.digest() {
                Some(_) => world.published.values().find(by_digest).copied(),
                None => world.published.get(&reference).copied(),
            };
            if let Some(pin) = pin {
                let id = ImageId(pin.id.to_string());
                let here = LocalImage {
                    id,
                    pin: Some(pin),
                    loaded: false,
                };
                world.images.insert(reference.clone(), here.clone());
                world.images.insert(image.at(pin.digest).as_str().to_owned(), here);
            }
            pin
        };
        if pin.is_none() {
            self.add_image(image.as_str());
        }
        self.world().images[&reference].clone()
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

    /// The machine goes down, and is on again: nothing of it runs any more, and nobody was told.
    pub fn power_off(&self) {
        let mut world = self.world();
        for container in world.containers.values_mut().filter(|one| one.is_up()) {
            container.end(137);
        }
        world.stirred += 1;
        world.down = false;
        world.hanging.clear();
        world.failures.clear();
        drop(world);
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

    /// The user whom the last pull was made as.
    pub fn pulled_as(&self) -> Option<String> {
        self.world().pulled_as.clone()
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

    /// Every network is gone, as after a person's `docker network prune`.
    pub fn remove_networks(&self) {
        self.world().networks.clear();
    }

    /// The networks there are.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        self.world().networks.keys().cloned().collect()
    }

    /// It lets go of it.
    pub fn free_port(&self, port: u16) {
        self.world().taken_ports.remove(&port);
    }

    /// What every create says of its options, as an engine does that discards some.
    pub fn say_of_options(&self, conditions: Vec<InstanceCondition>) {
        self.world().conditions = conditions;
    }

    /// The disk that holds the engine's data has so much free.
    pub fn set_free(&self, bytes: Option<u64>) {
        self.world().free = bytes;
    }

    /// An image is gone, as after a person's `docker rmi`; told as that is.
    pub fn remove_image(&self, image: &str) {
        if let Ok(image) = image.parse::<ImageRef>() {
            self.world().images.remove(&translate::engine_reference(&image));
        }
        let _heard = self.events.send(Event::ImageGone);
        self.changed.notify_waiters();
    }

    /// The first instance that ever had two containers at once, both made by a create.
    #[must_use]
    pub fn doubled(&self) -> Option<String> {
        self.world().doubled.clone()
    }

    /// How often an image was looked up.
    #[must_use]
    pub fn look_ups(&self) -> u64 {
        self.world().look_ups
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
            image_id: None,
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

    /// How often something of it may have changed: while that stays the same, so do its containers and the calls to it.
    #[must_use]
    pub fn stirred(&self) -> u64 {
        self.world().stirred
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
            let mut world = self.world();
            world.calls.push(format!("{verb} {object}"));
            world.stirred += 1;
            drop(world);
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
