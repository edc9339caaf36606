//! The server itself: it listens, answers, and takes up what changed in its copy. `reeve names` runs it, in a process of its
//! own and on one thread. It promises to answer from its copy alone; that no asker, however fast or odd, keeps it from the
//! others for long; and that what it holds for all of them together is bounded.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use planner::network::lookup::{self, Found, Wanted};
use planner::network::names::{Answer, Asker, Names, Question as Asked, answer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use schemas::names::Namespace;
use schemas::records::Endpoints;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::control::{self, Counts, Health, ListenHealth, Told};
use super::copy::{self, CopyError, Part, Sees, Settings};
use super::forward::Upstreams;
use super::wire::{self, Code, Question, Read, Way};

/// Questions a second that one asker may have, and how many at once.
const RATE: f64 = 20_000.0;
const BURST: f64 = 20_000.0;
/// The same of all together who are nobody here.
const STRANGERS_RATE: f64 = 1_000.0;
/// Questions about the world that wait for their answer: of all, and of one asker.
const MAX_FORWARDS: usize = 512;
const MAX_FORWARDS_EACH: usize = 64;
/// Connections: of all, and of one asker.
const MAX_CONNECTIONS: usize = 512;
const MAX_CONNECTIONS_EACH: usize = 32;
/// Answers of one connection that are on their way.
const PIPELINE: usize = 16;
/// How long a connection may be quiet, and how long a message may take once begun.
const IDLE: Duration = Duration::from_secs(10);
/// How long it waits before it tries again to listen, or to read what it could not.
const AGAIN: Duration = Duration::from_millis(500);
/// Files that cannot be read, of which it tells.
const MAX_UNREADABLE: usize = 20;
/// Questions taken from a socket before others have their turn.
const AT_ONCE: usize = 64;

/// What to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The copy.
    pub dir: PathBuf,
    /// Where to listen, by UDP and TCP: addresses need not be there yet.
    pub listen: Vec<SocketAddr>,
    /// This host's own servers are in it: /etc/resolv.conf.
    pub resolv_conf: PathBuf,
}

struct Server {
    dir: PathBuf,
    /// None until settings were read.
    names: RefCell<Option<Names>>,
    domain: RefCell<String>,
    own: RefCell<BTreeMap<IpAddr, Namespace>>,
    sees: RefCell<Sees>,
    unreadable: RefCell<BTreeMap<Part, String>>,
    loaded: Cell<bool>,
    listening: RefCell<Vec<ListenHealth>>,
    upstreams: Upstreams,
    counts: Cell<Counts>,
    turn: Cell<u64>,
    rates: RefCell<HashMap<IpAddr, Bucket>>,
    forwards: RefCell<HashMap<IpAddr, usize>>,
    connections: RefCell<HashMap<IpAddr, usize>>,
}

/// How much an asker may ask yet.
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: f64, burst: f64, now: Instant) -> bool {
        self.left = (self.left + rate * now.duration_since(self.at).as_secs_f64()).min(burst);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// What to do with a message.
enum Next {
    Send(Vec<u8>),
    Forward(Box<Question>),
    Nothing,
}

/// One of a bounded number, given back at its end.
struct Place {
    server: Rc<Server>,
    of: fn(&Server) -> &RefCell<HashMap<IpAddr, usize>>,
    asker: IpAddr,
}

impl Place {
    fn take(
        server: &Rc<Server>,
        of: fn(&Server) -> &RefCell<HashMap<IpAddr, usize>>,
        asker: IpAddr,
        all: usize,
        each: usize,
    ) -> Option<Self> {
        let mut taken = of(server).borrow_mut();
        if taken.values().sum::<usize>() >= all || taken.get(&asker).is_some_and(|count| *count >= each) {
            return None;
        }
        *taken.entry(asker).or_default() += 1;
        Some(Self {
            server: Rc::clone(server),
            of,
            asker,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = (self.of)(&self.server).borrow_mut();
        if let Some(count) = taken.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.asker);
            }
        }
    }
}

/// Serves until the process ends. Only what it cannot do without is a failure: its own socket.
pub async fn run(options: Options) -> io::Result<()> {
    let Options {
        dir,
        listen,
        resolv_conf,
    } = options;
    let control = control::listen(&dir)?;
    let server = Rc::new(Server {
        dir,
        names: RefCell::default(),
        domain: RefCell::default(),
        own: RefCell::default(),
        sees: RefCell::default(),
        unreadable: RefCell::default(),
        loaded: Cell::new(false),
        listening: RefCell::new(
            listen
                .iter()
                .map(|address| ListenHealth {
                    address: *address,
                    why: Some("not yet".to_owned()),
                })
                .collect(),
        ),
        upstreams: Upstreams::new(resolv_conf, listen.iter().map(SocketAddr::ip).collect()),
        counts: Cell::default(),
        turn: Cell::new(0),
        rates: RefCell::default(),
        forwards: RefCell::default(),
        connections: RefCell::default(),
    });
    let told = Rc::clone(&server);
    tokio::task::spawn_local(async move { told.serve_control(control).await });
    // What comes while the copy is read waits in the sockets.
    let (loaded, ready) = tokio::sync::watch::channel(false);
    for (place, address) in listen.iter().enumerate() {
        for way in [Way::Udp, Way::Tcp] {
            let server = Rc::clone(&server);
            let ready = ready.clone();
            let address = *address;
            tokio::task::spawn_local(async move { server.listen(place, address, way, ready).await });
        }
    }
    server
        .take_up(&Told {
            all: true,
            ..Told::default()
        })
        .await;
    server.loaded.set(true);
    {
        let health = server.health();
        let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
        tracing::info!(
            services = health.services,
            instances = health.instances,
            listen = listen.join(" "),
            "names are answered"
        );
    }
    let _ = loaded.send(true);
    server.retry().await;
    Ok(())
}

impl Server {
    /// Reads what could not be read again and again: it may have been mended by hand.
    async fn retry(&self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let changed = self.unreadable.borrow().keys().take(MAX_UNREADABLE).cloned().collect();
            self.take_up(&Told {
                changed,
                ..Told::default()
            })
            .await;
            // Buckets that are full again are nobody's.
            let now = Instant::now();
            let full = |bucket: &Bucket| now.duration_since(bucket.at).as_secs_f64() * RATE >= BURST;
            self.rates.borrow_mut().retain(|_, bucket| !full(bucket));
        }
    }

    async fn serve_control(self: Rc<Self>, control: UnixListener) {
        loop {
            match control.accept().await {
                Ok((stream, _)) => {
                    let server = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        let _ = tokio::time::timeout(Duration::from_secs(60), server.told(stream)).await;
                    });
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn told(&self, mut stream: UnixStream) -> io::Result<()> {
        let told = control::hear(&mut stream).await?;
        if let Some(wanted) = &told.ask {
            let found = self.look(wanted);
            return control::answer(&mut stream, &found).await;
        }
        self.take_up(&told).await;
        control::answer(&mut stream, &self.health()).await
    }

    /// What a name leads to for an instance of that namespace; None while nothing was read yet.
    fn look(&self, wanted: &Wanted) -> Option<Found> {
        let names = self.names.borrow();
        let sees = self.sees.borrow();
        let may = |asker: &str, namespace: &str, service: &str| sees.sees(asker, namespace, service);
        let names = names.as_ref().filter(|_| self.loaded.get())?;
        Some(lookup::look(names, wanted, &may))
    }

    fn health(&self) -> Health {
        let names = self.names.borrow();
        let unreadable = self.unreadable.borrow();
        Health {
            answering: self.loaded.get() && names.is_some(),
            listen: self.listening.borrow().clone(),
            services: names.as_ref().map_or(0, Names::services),
            instances: names.as_ref().map_or(0, Names::instances),
            unreadable: unreadable.values().take(MAX_UNREADABLE).cloned().collect(),
            upstreams: self.upstreams.health(),
            counts: self.counts.get(),
        }
    }

    /// Takes up files that changed. Others are answered in between.
    async fn take_up(&self, told: &Told) {
        let Told { changed, all, ask: _ } = told;
        if !all {
            // Settings first: without them there is nothing to put a service into.
            for part in changed {
                self.take_up_part(part);
                tokio::task::yield_now().await;
            }
            return;
        }
        for part in [Part::Own, Part::Sees, Part::Settings] {
            self.take_up_part(&part);
        }
        let listed = match copy::services(&self.dir) {
            Ok(listed) => listed,
            Err(error) => return tracing::warn!("{}", told_whole(&error)),
        };
        let known = self.names.borrow().as_ref().map(Names::names).unwrap_or_default();
        for (namespace, service) in known {
            if !listed.contains(&(namespace.clone(), service.clone())) {
                self.take_up_part(&Part::Service(namespace, service));
            }
        }
        for (namespace, service) in listed {
            self.take_up_part(&Part::Service(namespace, service));
            tokio::task::yield_now().await;
        }
    }

    fn take_up_part(&self, part: &Part) {
        match self.read_part(part) {
            Ok(()) => {
                self.unreadable.borrow_mut().remove(part);
            }
            Err(error) => {
                let said = told_whole(&error);
                let before = self.unreadable.borrow_mut().insert(part.clone(), said.clone());
                if before.as_ref() != Some(&said) {
                    tracing::warn!("{said}");
                }
            }
        }
    }

    fn read_part(&self, part: &Part) -> Result<(), CopyError> {
        match part {
            Part::Settings => {
                // Settings that are gone are no order to forget them.
                if let Some(settings) = copy::read::<Settings>(&self.dir, part)? {
                    let realm = settings.realm(self.own.borrow().clone());
                    let mut names = self.names.borrow_mut();
                    let fresh = names.is_none();
                    match names.as_mut() {
                        Some(names) => names.set_realm(realm),
                        None => *names = Some(Names::new(realm)),
                    }
                    let domain = names.as_ref().map(Names::domain).unwrap_or_default();
                    drop(names);
                    *self.domain.borrow_mut() = domain;
                    if fresh && self.loaded.get() {
                        self.read_services()?;
                    }
                }
            }
            Part::Own => {
                let own = copy::read::<BTreeMap<IpAddr, Namespace>>(&self.dir, part)?.unwrap_or_default();
                if let Some(names) = self.names.borrow_mut().as_mut() {
                    let mut realm = names.realm().clone();
                    realm.own.clone_from(&own);
                    names.set_realm(realm);
                }
                *self.own.borrow_mut() = own;
            }
            Part::Sees => {
                *self.sees.borrow_mut() = copy::read::<Sees>(&self.dir, part)?.unwrap_or_default();
            }
            Part::Service(namespace, service) => {
                let record = copy::read::<Endpoints>(&self.dir, part)?;
                if let Some(names) = self.names.borrow_mut().as_mut() {
                    match record {
                        Some(record) => names.put(namespace, service, &record),
                        None => names.remove(namespace, service),
                    }
                }
            }
        }
        Ok(())
    }

    /// All services: settings came after them.
    fn read_services(&self) -> Result<(), CopyError> {
        for (namespace, service) in copy::services(&self.dir)? {
            self.take_up_part(&Part::Service(namespace, service));
        }
        Ok(())
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// What to do with a message from an asker.
    fn next(&self, bytes: &[u8], from: IpAddr, way: Way) -> Next {
        let from = from.to_canonical();
        let names = self.names.borrow();
        let asker = names.as_ref().and_then(|names| names.asker(from));
        // All who are nobody share one bucket: addresses are easily invented.
        let (key, rate, burst) = match asker {
            Some(Asker::Instance { namespace: _ } | Asker::Host) => (from, RATE, BURST),
            None => (IpAddr::from([0, 0, 0, 0]), STRANGERS_RATE, STRANGERS_RATE),
        };
        let now = Instant::now();
        let free = {
            let mut rates = self.rates.borrow_mut();
            let bucket = rates.entry(key).or_insert(Bucket { left: burst, at: now });
            bucket.take(rate, burst, now)
        };
        if !free {
            self.count(|counts| counts.dropped += 1);
            return Next::Nothing;
        }
        let question = match wire::read(bytes, way) {
            Read::Question(question) => question,
            Read::Reject(answer) => {
                self.count(|counts| counts.dropped += 1);
                return Next::Send(answer);
            }
            Read::Ignore => {
                self.count(|counts| counts.dropped += 1);
                return Next::Nothing;
            }
        };
        self.count(|counts| counts.questions += 1);
        let Some(names) = names.as_ref() else {
            // Without settings it knows nobody, and may know somebody soon.
            self.count(|counts| counts.failed += 1);
            return Next::Send(question.refuse(Code::Failed));
        };
        if !question.internet {
            self.count(|counts| counts.refused += 1);
            return Next::Send(question.refuse(Code::Refused));
        }
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let labels = question.labels();
        let asked = Asked {
            labels: &labels,
            kind: question.words(),
        };
        let sees = self.sees.borrow();
        let may = |asker: &str, namespace: &str, service: &str| sees.sees(asker, namespace, service);
        match answer(names, from, &asked, turn, &may) {
            Answer::Reply(reply) => {
                self.count(|counts| counts.answered += 1);
                Next::Send(question.reply(&reply, &self.domain.borrow()))
            }
            Answer::Refused => {
                self.count(|counts| counts.refused += 1);
                Next::Send(question.refuse(Code::Refused))
            }
            Answer::Forward => Next::Forward(question),
        }
    }

    /// The answer of this host's own servers.
    async fn forward(self: &Rc<Self>, question: &Question, from: IpAddr, way: Way) -> Vec<u8> {
        let place = Place::take(self, |server| &server.forwards, from, MAX_FORWARDS, MAX_FORWARDS_EACH);
        let answer = match &place {
            Some(_) => self.upstreams.ask(question, way).await.ok(),
            None => None,
        };
        match answer {
            Some(answer) => {
                self.count(|counts| counts.forwarded += 1);
                answer
            }
            None => {
                self.count(|counts| counts.failed += 1);
                question.refuse(Code::Failed)
            }
        }
    }

    /// Listens at an address by one way, again whenever it cannot.
    async fn listen(
        self: Rc<Self>,
        place: usize,
        address: SocketAddr,
        way: Way,
        mut ready: tokio::sync::watch::Receiver<bool>,
    ) {
        loop {
            let result: io::Result<()> = async {
                match way {
                    Way::Udp => {
                        let socket = Rc::new(udp(address)?);
                        let _ = ready.wait_for(|ready| *ready).await;
                        self.say_listening(place, way, None);
                        self.serve_udp(&socket).await
                    }
                    Way::Tcp => {
                        let listener = tcp(address)?;
                        let _ = ready.wait_for(|ready| *ready).await;
                        self.say_listening(place, way, None);
                        self.serve_tcp(&listener).await
                    }
                }
            }
            .await;
            if let Err(error) = result {
                self.say_listening(place, way, Some(&error));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn say_listening(&self, place: usize, way: Way, error: Option<&io::Error>) {
        let mut listening = self.listening.borrow_mut();
        let Some(health) = listening.get_mut(place) else {
            return;
        };
        let way = match way {
            Way::Udp => "UDP",
            Way::Tcp => "TCP",
        };
        match error {
            Some(error) => {
                let why = format!("{way}: {error}");
                if health.why.as_ref() != Some(&why) {
                    tracing::warn!("cannot listen at {} by {way}: {error}", health.address);
                }
                health.why = Some(why);
            }
            // What another way says of itself stays said.
            None if health
                .why
                .as_ref()
                .is_none_or(|why| why == "not yet" || why.starts_with(way)) =>
            {
                health.why = None
            }
            None => {}
        }
    }

    async fn serve_udp(self: &Rc<Self>, socket: &Rc<UdpSocket>) -> io::Result<()> {
        let mut buffer = vec![0; wire::QUESTION_LIMIT + 1];
        let mut at_once = 0;
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await?;
            match self.next(&buffer[..length], from.ip(), Way::Udp) {
                Next::Nothing => {}
                // An asker who cannot be reached is no reason to end.
                Next::Send(answer) => drop(socket.send_to(&answer, from).await),
                Next::Forward(question) => {
                    let server = Rc::clone(self);
                    let socket = Rc::clone(socket);
                    tokio::task::spawn_local(async move {
                        let answer = server.forward(&question, from.ip(), Way::Udp).await;
                        let _ = socket.send_to(&answer, from).await;
                    });
                }
            }
            at_once += 1;
            if at_once % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn serve_tcp(self: &Rc<Self>, listener: &TcpListener) -> io::Result<()> {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                // One that went away meanwhile, or no room for more: the next may do.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let from = from.ip().to_canonical();
            let place = Place::take(
                self,
                |server| &server.connections,
                from,
                MAX_CONNECTIONS,
                MAX_CONNECTIONS_EACH,
            );
            let Some(place) = place else {
                self.count(|counts| counts.dropped += 1);
                continue;
            };
            let server = Rc::clone(self);
            tokio::task::spawn_local(async move {
                let _place = place;
                server.serve_connection(stream, from).await;
            });
        }
    }

    /// Reads questions and writes answers, each as it is there.
    async fn serve_connection(self: Rc<Self>, stream: TcpStream, from: IpAddr) {
        let (mut read, write) = stream.into_split();
        let (answers, to_write) = mpsc::channel(PIPELINE);
        let writer = tokio::task::spawn_local(write_answers(write, to_write));
        let room = Arc::new(Semaphore::new(PIPELINE));
        while let Ok(Ok(message)) = tokio::time::timeout(IDLE, read_message(&mut read)).await {
            let sent = match self.next(&message, from, Way::Tcp) {
                Next::Nothing => break,
                Next::Send(answer) => answers.send(answer).await.is_ok(),
                Next::Forward(question) => {
                    let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                        break;
                    };
                    let server = Rc::clone(&self);
                    let answers = answers.clone();
                    tokio::task::spawn_local(async move {
                        let answer = server.forward(&question, from, Way::Tcp).await;
                        let _ = answers.send(answer).await;
                        drop(permit);
                    });
                    true
                }
            };
            if !sent {
                break;
            }
        }
        drop(answers);
        // What is on its way may still arrive.
        let _ = writer.await;
    }
}

async fn read_message(read: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = usize::from(read.read_u16().await?);
    if length > wire::QUESTION_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    read.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_answers(mut write: OwnedWriteHalf, mut answers: mpsc::Receiver<Vec<u8>>) {
    while let Some(answer) = answers.recv().await {
        let Ok(length) = u16::try_from(answer.len()) else {
            continue;
        };
        let mut message = length.to_be_bytes().to_vec();
        message.extend_from_slice(&answer);
        let written = tokio::time::timeout(IDLE, write.write_all(&message)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

fn told_whole(error: &CopyError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A socket that is bound to an address, there or not: the bridge may come later, and be made again.
fn bound(address: SocketAddr, kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let (family, flags) = match address {
        SocketAddr::V4(_) => (AddressFamily::INET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK),
        SocketAddr::V6(_) => (AddressFamily::INET6, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK),
    };
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
        }
    }
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    } else {
        // As much as the host allows: what comes while the copy is read waits here.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, 1 << 20);
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(bound(address, SocketType::DGRAM)?))
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, SocketType::STREAM)?;
    rustix::net::listen(&socket, 128)?;
    TcpListener::from_std(std::net::TcpListener::from(socket))
}
