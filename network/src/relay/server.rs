//! The relay's own loop: what is to be open is opened, what is not is closed, and containers that come, go or begin again are
//! followed. Carrying what comes is `tcp.rs`'s and `udp.rs`'s.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use planner::network::relay::{Backend, Listener, Place, Table, order};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schemas::container::Protocol;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::Instant;

use super::control::{self, Counts, Health};
use super::door::{Door, Found, Inside, is_absent};

/// Connections that are open at once, at most, while the process may have that many files.
const MAX_OPEN: u64 = 8_192;
/// UDP flows.
pub const MAX_FLOWS: u64 = 4_096;
/// Connections of one container, or of one port of the node.
const MAX_OPEN_OF_ONE: u64 = 2_048;
/// Connections of one client to one port of the node.
const MAX_OPEN_OF_CLIENT: u64 = 1_024;
/// Files beside those of connections: listeners, flows, networks.
const OTHER_FILES: u64 = 14_000;
/// How long an instance that did not answer is tried last.
const DOUBT: Duration = Duration::from_secs(5);
/// Between two looks for what is not there yet: doubled at each.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Between two looks whether containers' processes are there.
const FOLLOW: Duration = Duration::from_millis(200);
const LAST_LOOK: Duration = Duration::from_secs(2);
const HEAR_LIMIT: Duration = Duration::from_secs(5);
const MAX_TOLD: usize = 20;

/// Lets this process have as many files as it may.
pub fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// A service's port: who is behind it now.
#[derive(Debug, Default)]
pub struct Target {
    backends: RefCell<Rc<Vec<Backend>>>,
    turn: Cell<u64>,
    counts: Cell<Counts>,
}

impl Target {
    pub fn backends(&self) -> Rc<Vec<Backend>> {
        Rc::clone(&self.backends.borrow())
    }

    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }
}

/// What one open port knows. What it leads to may change while it is open.
#[derive(Debug)]
pub struct Post {
    pub shared: Rc<Shared>,
    pub place: Place,
    pub said: RefCell<(Listener, Rc<Target>)>,
    /// None: this host's.
    pub inside: Option<Inside>,
    /// Closed when the container has gone.
    pub gone: watch::Receiver<()>,
}

impl Post {
    pub fn target(&self) -> Rc<Target> {
        Rc::clone(&self.said.borrow().1)
    }

    pub fn admits(&self, from: IpAddr) -> bool {
        self.said.borrow().0.admits(from)
    }

    pub fn says_who(&self) -> bool {
        self.said.borrow().0.proxy_protocol
    }

    /// The instances in the order in which to try them now.
    pub fn order(&self, target: &Target) -> Vec<SocketAddr> {
        let turn = target.turn.get();
        target.turn.set(turn.wrapping_add(1));
        let doubted = self.shared.doubted.borrow();
        let now = Instant::now();
        let failed = |address: &SocketAddr| doubted.get(address).is_some_and(|until| *until > now);
        order(&target.backends(), turn, self.place == Place::Node, &failed)
    }
}

/// A place among those that may be open.
#[derive(Debug)]
pub struct Seat {
    shared: Rc<Shared>,
    keys: Vec<SeatKey>,
}

type SeatKey = (Place, u16, Option<IpAddr>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.open.set(self.shared.open.get().saturating_sub(1));
        let mut of = self.shared.open_of.borrow_mut();
        for key in &self.keys {
            if let Some(count) = of.get_mut(key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    of.remove(key);
                }
            }
        }
    }
}

#[derive(Debug)]
pub struct Shared {
    pub door: Door,
    targets: RefCell<BTreeMap<String, Rc<Target>>>,
    doubted: RefCell<BTreeMap<SocketAddr, Instant>>,
    open: Cell<u64>,
    open_of: RefCell<BTreeMap<SeatKey, u64>>,
    most: u64,
    pub flows: Cell<u64>,
}

impl Shared {
    /// An instance did not answer.
    pub fn doubt(&self, address: SocketAddr) {
        let mut doubted = self.doubted.borrow_mut();
        let now = Instant::now();
        if doubted.len() > 1_024 {
            doubted.retain(|_, until| *until > now);
        }
        doubted.insert(address, now + DOUBT);
    }

    /// It did.
    pub fn trust(&self, address: &SocketAddr) {
        self.doubted.borrow_mut().remove(address);
    }

    /// A place for one more; None where there is none: overall, of that container or port, or of that client.
    pub fn seat(self: &Rc<Self>, place: &Place, port: u16, client: IpAddr) -> Option<Seat> {
        let keys = match place {
            Place::Node => vec![
                ((place.clone(), port, None), MAX_OPEN_OF_ONE),
                ((place.clone(), port, Some(client)), MAX_OPEN_OF_CLIENT),
            ],
            Place::Container(_) | Place::Process(_) => vec![((place.clone(), 0, None), MAX_OPEN_OF_ONE)],
        };
        let mut of = self.open_of.borrow_mut();
        let full = keys
            .iter()
            .any(|(key, most)| of.get(key).is_some_and(|count| count >= most));
        if full || self.open.get() >= self.most {
            return None;
        }
        self.open.set(self.open.get() + 1);
        let keys: Vec<SeatKey> = keys.into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            *of.entry(key.clone()).or_default() += 1;
        }
        Some(Seat {
            shared: Rc::clone(self),
            keys,
        })
    }
}

/// A port that is open: its sockets are closed when it is dropped.
struct Open {
    post: Rc<Post>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Open {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A container's network while it has a process.
struct Hall {
    found: Found,
    /// Dropped with it: what is open for it ends.
    there: watch::Sender<()>,
    gone: watch::Receiver<()>,
    /// Its process has ended: another one may have the same network.
    ended: bool,
}

type OpenKey = (Place, Protocol, Option<IpAddr>, u16);

struct Server {
    dir: PathBuf,
    shared: Rc<Shared>,
    table: Table,
    unreadable: Option<String>,
    halls: BTreeMap<Place, Hall>,
    open: BTreeMap<OpenKey, Open>,
    missing: BTreeMap<OpenKey, String>,
    /// For ports of the node, which never goes.
    _node: watch::Sender<()>,
    node: watch::Receiver<()>,
}

/// Runs until it cannot go on.
pub async fn run(dir: PathBuf, door: Door) -> io::Result<()> {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let (node_there, node) = watch::channel(());
    let shared = Rc::new(Shared {
        door,
        targets: RefCell::default(),
        doubted: RefCell::default(),
        open: Cell::new(0),
        open_of: RefCell::default(),
        most: MAX_OPEN.min(files.saturating_sub(OTHER_FILES.min(files / 2)) / 2),
        flows: Cell::new(0),
    });
    let mut server = Server {
        dir: dir.clone(),
        shared,
        table: Table::default(),
        unreadable: None,
        halls: BTreeMap::new(),
        open: BTreeMap::new(),
        missing: BTreeMap::new(),
        _node: node_there,
        node,
    };
    server.load();
    server.settle().await;
    let control = control::listen(&dir)?;
    let mut delay = FIRST_LOOK;
    let mut look = Instant::now() + delay;
    let mut follow = tokio::time::interval(FOLLOW);
    follow.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let waits = server.waits();
        tokio::select! {
            met = control.accept() => {
                let (stream, _) = met?;
                if server.hear(stream).await {
                    delay = FIRST_LOOK;
                    look = Instant::now() + delay;
                }
            }
            _ = follow.tick() => {
                if server.follow().await {
                    server.settle().await;
                    delay = FIRST_LOOK;
                    look = Instant::now() + delay;
                }
            }
            () = tokio::time::sleep_until(look), if waits => {
                server.settle().await;
                delay = (delay * 2).min(LAST_LOOK);
                look = Instant::now() + delay;
            }
        }
    }
}

impl Server {
    /// True where the table was read again.
    async fn hear(&mut self, mut stream: UnixStream) -> bool {
        let Ok(Ok(told)) = tokio::time::timeout(HEAR_LIMIT, control::hear(&mut stream)).await else {
            return false;
        };
        if told.reload {
            self.load();
            self.settle().await;
        }
        let health = self.health();
        // One who does not read keeps nobody waiting.
        spawn_local(async move {
            let _ = tokio::time::timeout(HEAR_LIMIT, control::answer(&mut stream, &health)).await;
        });
        told.reload
    }

    fn load(&mut self) {
        match control::read(&self.dir) {
            Ok(table) => {
                self.unreadable = None;
                let mut targets = self.shared.targets.borrow_mut();
                targets.retain(|name, _| table.targets.contains_key(name));
                for (name, backends) in &table.targets {
                    let target = targets.entry(name.clone()).or_default();
                    if **target.backends.borrow() != *backends {
                        target.backends.replace(Rc::new(backends.clone()));
                    }
                }
                drop(targets);
                self.table = table;
            }
            Err(error) => {
                let told = chain(&error);
                tracing::warn!("{told}; what was known stays");
                self.unreadable = Some(told);
            }
        }
    }

    fn waits(&self) -> bool {
        !self.missing.is_empty()
    }

    /// True where a container's process has ended.
    async fn follow(&mut self) -> bool {
        let known = self.halls.iter().filter(|(_, hall)| !hall.ended);
        let known: Vec<(Place, Found)> = known.map(|(place, hall)| (place.clone(), hall.found.clone())).collect();
        if known.is_empty() {
            return false;
        }
        let gone = self.shared.door.gone(known).await.unwrap_or_default();
        for place in &gone {
            if let Some(hall) = self.halls.get_mut(place) {
                hall.ended = true;
            }
        }
        !gone.is_empty()
    }

    /// Makes what is open what is to be.
    async fn settle(&mut self) {
        let wanted: BTreeMap<OpenKey, Listener> = std::mem::take(&mut self.table.listeners)
            .into_iter()
            .map(|one| ((one.place.clone(), one.protocol, one.ip, one.port), one))
            .collect();
        self.open.retain(|key, _| wanted.contains_key(key));
        self.missing.retain(|key, _| wanted.contains_key(key));
        let places: BTreeSet<Place> = wanted.keys().map(|(place, ..)| place.clone()).collect();
        self.halls.retain(|place, _| places.contains(place));
        self.find(&places).await;
        for (key, listener) in &wanted {
            let target = Rc::clone(
                self.shared
                    .targets
                    .borrow_mut()
                    .entry(listener.target.clone())
                    .or_default(),
            );
            if let Some(open) = self.open.get(key) {
                let mut said = open.post.said.borrow_mut();
                if said.0 != *listener || !Rc::ptr_eq(&said.1, &target) {
                    *said = (listener.clone(), target);
                }
                continue;
            }
            match self.start(listener, target).await {
                Ok(Some(open)) => {
                    self.missing.remove(key);
                    self.open.insert(key.clone(), open);
                }
                Ok(None) => drop(self.missing.insert(key.clone(), String::new())),
                Err(error) => {
                    let why = format!("{}: {error}", described(listener));
                    if self.missing.insert(key.clone(), why.clone()).as_ref() != Some(&why) {
                        tracing::warn!("cannot listen at {why}");
                    }
                }
            }
        }
        self.table.listeners = wanted.into_values().collect();
    }

    /// Finds the networks of containers that have none yet, or whose process has ended.
    async fn find(&mut self, places: &BTreeSet<Place>) {
        let unknown = |place: &&Place| **place != Place::Node && self.halls.get(*place).is_none_or(|hall| hall.ended);
        let asked: Vec<Place> = places.iter().filter(unknown).cloned().collect();
        if asked.is_empty() {
            return;
        }
        let mut found = match self.shared.door.find(asked.clone()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "no container's network can be entered");
                return;
            }
        };
        for place in asked {
            let now = found.remove(&place);
            let number = now.as_ref().map(|now| now.inside.number);
            let before = self.halls.remove(&place);
            let same = before.as_ref().map(|hall| hall.found.inside.number) == number;
            if !same {
                // Another network, or none: what is open is of the one before.
                self.open.retain(|(of, ..), _| *of != place);
            }
            let Some(now) = now else { continue };
            let (there, gone) = match before {
                // The same network by another process: what is open stays.
                Some(hall) if same => (hall.there, hall.gone),
                Some(_) | None => watch::channel(()),
            };
            self.halls.insert(
                place,
                Hall {
                    found: now,
                    there,
                    gone,
                    ended: false,
                },
            );
        }
    }

    /// Opens a port. None where its container has no network yet.
    async fn start(&self, listener: &Listener, target: Rc<Target>) -> io::Result<Option<Open>> {
        let (inside, gone) = match (&listener.place, self.halls.get(&listener.place)) {
            (Place::Node, _) => (None, self.node.clone()),
            (Place::Container(_) | Place::Process(_), Some(hall)) => {
                (Some(hall.found.inside.clone()), hall.gone.clone())
            }
            (Place::Container(_) | Place::Process(_), None) => return Ok(None),
        };
        let post = Rc::new(Post {
            shared: Rc::clone(&self.shared),
            place: listener.place.clone(),
            said: RefCell::new((listener.clone(), target)),
            inside,
            gone,
        });
        let mut open = Open {
            post: Rc::clone(&post),
            tasks: Vec::new(),
        };
        for ip in addresses(listener) {
            let address = SocketAddr::new(ip, listener.port);
            let door = &self.shared.door;
            let socket = match door.listen(post.inside.as_ref(), listener.protocol, address).await {
                Ok(socket) => socket,
                // A host without that family; one address that was asked for is not left out.
                Err(error) if is_absent(ip, &error) && !open.tasks.is_empty() => continue,
                Err(error) => return Err(error),
            };
            let post = Rc::clone(&post);
            let task = match listener.protocol {
                Protocol::Tcp => {
                    let socket = tokio::net::TcpListener::from_std(socket.into())?;
                    spawn_local(super::tcp::accept(post, socket))
                }
                Protocol::Udp => {
                    let socket = tokio::net::UdpSocket::from_std(socket.into())?;
                    spawn_local(super::udp::carry(post, socket))
                }
            };
            open.tasks.push(task.abort_handle());
        }
        Ok(Some(open))
    }

    fn health(&self) -> Health {
        let told = self.missing.values().filter(|why| !why.is_empty());
        let targets = self.shared.targets.borrow();
        let counts = targets.iter().map(|(name, target)| (name.clone(), target.counts.get()));
        Health {
            listening: self.open.len(),
            held: self
                .open
                .values()
                .filter_map(|open| open.post.said.borrow().0.held())
                .collect(),
            missing: told
                .take(MAX_TOLD)
                .map(|why| format!("cannot listen at {why}"))
                .collect(),
            unreadable: self.unreadable.clone(),
            open: self.shared.open.get() + self.shared.flows.get(),
            counts: counts.collect(),
        }
    }
}

/// The addresses of a listener; the first must be there.
fn addresses(listener: &Listener) -> Vec<IpAddr> {
    let (four, six) = match listener.place {
        Place::Node => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        Place::Container(_) | Place::Process(_) => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    };
    listener
        .ip
        .map_or_else(|| vec![IpAddr::V4(four), IpAddr::V6(six)], |ip| vec![ip])
}

fn described(listener: &Listener) -> String {
    let protocol = match listener.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let Listener { port, target, .. } = listener;
    match &listener.place {
        Place::Node => format!("{protocol} port {port} of this node for {target}"),
        Place::Container(id) => {
            let short: String = id.chars().take(12).collect();
            format!("{protocol} port {port} in container {short} for {target}")
        }
        Place::Process(pid) => format!("{protocol} port {port} of process {pid} for {target}"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        told.push_str(": ");
        told.push_str(&source.to_string());
        next = source.source();
    }
    told
}
