//! The relay as a process, between network namespaces that are a host, a container and instances: what comes by TCP and UDP,
//! instances that die and change under load, who goes on without whom, and clients that mean no good. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use network::detached::{self, Program};
use network::relay::{Ensured, Health, Relay, health, serve, tell, write};
use planner::network::policy::Doors;
use planner::network::relay::{Backend, Listener, Place, Table};
use schemas::container::Protocol;

const SERVE: &str = "REEVE_TEST_RELAY";
const LIMIT: Duration = Duration::from_secs(20);

/// Not a test of its own: the relay that the tests below start. Without being asked it does nothing.
#[test]
fn the_relay_that_others_start() {
    let Some(dir) = std::env::var_os(SERVE) else {
        return;
    };
    let ended = serve(&Relay {
        dir: dir.into(),
        source: None,
    });
    eprintln!("{ended:?}");
    std::process::exit(3);
}

/// A network namespace, and the process that keeps it.
struct Net(Child);

impl Net {
    fn new(script: &str) -> Self {
        let script = format!("set -e; ip link set lo up; {script}; echo ready; exec sleep 3600");
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(keeper)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn run(&self, command: &str) {
        let pid = self.pid().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-n", "sh", "-c", command])
            .output()
            .expect("nsenter");
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Calls a function on a thread whose network is this one.
    fn inside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let network = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind)).unwrap();
                call()
            });
            inside.join().unwrap()
        })
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.end();
    }
}

/// A host with a container behind a link: the host has 10.99.0.1 and instances' addresses, the container 10.99.0.9.
struct Room {
    host: Net,
    container: Net,
    _dir: tempfile::TempDir,
    relay: Relay,
}

const CONTAINER: &str = "10.99.0.9";
const INSTANCES: [&str; 3] = ["10.99.0.11", "10.99.0.12", "10.99.0.13"];

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let room = Self {
            relay: Relay {
                dir: dir.path().join("relay"),
                source: None,
            },
            host: Net::new("true"),
            container: Net::new("true"),
            _dir: dir,
        };
        room.join(&room.container);
        let addresses = INSTANCES.map(|address| format!("ip addr add {address}/32 dev lo; "));
        room.host.run(&addresses.concat());
        room
    }

    fn join(&self, container: &Net) {
        self.host.run(&format!(
            "ip link del v0 2>/dev/null; ip link add v0 type veth peer name eth0 netns {} && ip addr add 10.99.0.1/24 dev v0 && ip link set v0 up",
            container.pid()
        ));
        container.run(&format!(
            "ip addr add {CONTAINER}/24 dev eth0 && ip link set eth0 up && ip route add default via 10.99.0.1"
        ));
    }

    fn place(&self) -> Place {
        Place::Process(self.container.pid())
    }

    fn on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(future)
    }

    fn ensure(&self) -> (Ensured, Health) {
        let program = Program {
            path: std::env::current_exe().unwrap(),
            args: ["--exact", "the_relay_that_others_start", "--nocapture"]
                .map(Into::into)
                .to_vec(),
            env: vec![(SERVE.into(), self.relay.dir.clone().into())],
            ..self.relay.program()
        };
        self.host
            .inside(|| Self::on(self.relay.ensure_program(program)).unwrap())
    }

    fn write(&self, table: &Table) {
        write(&self.relay.dir, table).unwrap();
    }

    /// Has a table in force.
    fn table(&self, listeners: &[Listener], targets: &[(&str, &[SocketAddr])]) -> Health {
        let backends = |addresses: &[SocketAddr]| -> Vec<Backend> {
            let backend = |address: &SocketAddr| Backend {
                address: *address,
                here: false,
            };
            addresses.iter().map(backend).collect()
        };
        self.write(&Table {
            listeners: listeners.to_vec(),
            targets: targets
                .iter()
                .map(|(name, addresses)| ((*name).to_owned(), backends(addresses)))
                .collect(),
        });
        if self.ensure().0 == Ensured::Ran {
            return Self::on(tell(&self.relay.dir)).unwrap();
        }
        self.health()
    }

    fn health(&self) -> Health {
        Self::on(health(&self.relay.dir)).unwrap()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = detached::stop(&self.relay.place(), Duration::from_secs(2));
    }
}

fn listener(place: Place, protocol: Protocol, port: u16, target: &str) -> Listener {
    Listener {
        place,
        protocol,
        ip: None,
        port,
        target: target.to_owned(),
        proxy_protocol: false,
        doors: Doors::default(),
    }
}

fn instance(at: usize, port: u16) -> SocketAddr {
    SocketAddr::new(INSTANCES[at].parse().unwrap(), port)
}

/// Waits for a condition.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LIMIT, "not so after {} s: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An instance: it says its name and who came, and then says again what it is told. It ends when it is dropped.
struct Echo {
    ended: Arc<AtomicBool>,
    from: Arc<std::sync::Mutex<BTreeSet<IpAddr>>>,
}

impl Echo {
    fn new(room: &Room, name: &'static str, address: SocketAddr) -> Self {
        let listener = room.host.inside(|| TcpListener::bind(address).unwrap());
        listener.set_nonblocking(true).unwrap();
        let (ended, from) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let echo = Self {
            ended: Arc::clone(&ended),
            from: Arc::clone(&from),
        };
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        from.lock().unwrap().insert(peer.ip());
                        let ended = Arc::clone(&ended);
                        std::thread::Builder::new()
                            .stack_size(64 << 10)
                            .spawn(move || Self::serve(stream, name, &ended))
                            .unwrap();
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        echo
    }

    fn serve(mut stream: TcpStream, name: &str, ended: &AtomicBool) {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = writeln!(stream, "{name}");
        let mut bytes = [0; 4096];
        while !ended.load(Ordering::Relaxed) {
            match stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(length) => {
                    if stream.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn dial(net: &Net, address: &str) -> std::io::Result<TcpStream> {
    net.inside(|| {
        let stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    })
}

/// Who answers, said in the first line.
fn greeted(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut name = String::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if byte[0] == b'\n' {
            return Ok(name);
        }
        name.push(char::from(byte[0]));
    }
}

fn who(net: &Net, address: &str) -> std::io::Result<String> {
    greeted(&mut dial(net, address)?)
}

fn said(stream: &mut TcpStream, text: &[u8]) -> bool {
    let mut back = vec![0; text.len()];
    stream.write_all(text).is_ok() && stream.read_exact(&mut back).is_ok() && back == text
}

const DB: &str = "shop/db:5432/tcp";

#[test]
fn localhost_leads_to_each_instance_in_turn_from_the_containers_own_address_and_past_those_that_are_gone() {
    let room = Room::new();
    let echoes: Vec<Echo> = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(at, name)| Echo::new(&room, name, instance(at, 5432)))
        .collect();
    let all: Vec<SocketAddr> = (0..3).map(|at| instance(at, 5432)).collect();
    let listeners = [listener(room.place(), Protocol::Tcp, 5433, DB)];
    let health = room.table(&listeners, &[(DB, &all)]);
    assert_eq!((health.listening, health.missing), (1, vec![]));

    for address in ["127.0.0.1:5433", "[::1]:5433"] {
        let met: BTreeSet<String> = (0..3).map(|_| who(&room.container, address).unwrap()).collect();
        assert_eq!(met.len(), 3, "each in turn: {met:?}");
    }
    let own: IpAddr = CONTAINER.parse().unwrap();
    assert_eq!(*echoes[0].from.lock().unwrap(), BTreeSet::from([own]));
    let on_host = dial(&room.host, "127.0.0.1:5433");
    assert!(on_host.is_err(), "it is open in the container only");

    // One dies, and nobody has said so yet.
    let mut echoes = echoes.into_iter();
    drop(echoes.next());
    until("the first instance is gone", || {
        room.host.inside(|| TcpStream::connect(instance(0, 5432)).is_err())
    });
    for _ in 0..6 {
        let met = who(&room.container, "127.0.0.1:5433").unwrap();
        assert!(met == "b" || met == "c", "{met}");
    }
    let counts = room.health().counts[DB];
    assert!(counts.failed_over >= 1 && counts.refused == 0, "{counts:?}");

    // None is ready: whoever comes is refused at once, and counted.
    room.table(&listeners, &[(DB, &[])]);
    assert!(who(&room.container, "127.0.0.1:5433").is_err());
    until("it is counted", || room.health().counts[DB].refused == 1);

    // What is not wanted any more is closed.
    room.table(&[], &[]);
    assert!(dial(&room.container, "127.0.0.1:5433").is_err());
}

#[test]
fn what_is_open_goes_on_while_instances_change_and_whoever_told_it_comes_and_goes() {
    let room = Room::new();
    let _echoes: Vec<Echo> = ["a", "b", "c"]
        .iter()
        .enumerate()
        .map(|(at, name)| Echo::new(&room, name, instance(at, 5432)))
        .collect();
    let listeners = [listener(room.place(), Protocol::Tcp, 5432, DB)];
    room.table(&listeners, &[(DB, &[instance(0, 5432)])]);
    let mut kept: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = dial(&room.container, "127.0.0.1:5432").unwrap();
            assert_eq!(greeted(&mut stream).unwrap(), "a");
            stream
        })
        .collect();
    let (stop, done, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let asked = dial(&room.container, "127.0.0.1:5432").and_then(|mut stream| {
                        greeted(&mut stream)?;
                        if said(&mut stream, b"ping") {
                            Ok(())
                        } else {
                            Err(ErrorKind::Other.into())
                        }
                    });
                    match asked {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(_) => lost.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        for turn in 0..60 {
            let ready: Vec<SocketAddr> = (0..3)
                .filter(|at| at % 3 != turn % 3)
                .map(|at| instance(at, 5432))
                .collect();
            room.table(&listeners, &[(DB, &ready)]);
        }
        until("there was load", || done.load(Ordering::Relaxed) > 200);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(lost.load(Ordering::Relaxed), 0);
    for stream in &mut kept {
        assert!(said(stream, b"still here"));
    }
    assert_eq!(
        room.ensure().0,
        Ensured::Ran,
        "an agent that comes back leaves it as it is"
    );
    for stream in &mut kept {
        assert!(said(stream, b"still here"));
    }
}

#[test]
fn a_container_that_begins_again_has_its_ports_again_in_its_new_network() {
    let mut room = Room::new();
    let _echo = Echo::new(&room, "a", instance(0, 5432));
    room.table(
        &[listener(room.place(), Protocol::Tcp, 5432, DB)],
        &[(DB, &[instance(0, 5432)])],
    );
    assert_eq!(who(&room.container, "127.0.0.1:5432").unwrap(), "a");
    // It ends: what was open for it is closed, and it is waited for.
    let mut open = dial(&room.container, "127.0.0.1:5432").unwrap();
    greeted(&mut open).unwrap();
    room.container.end();
    until("what it had open is closed", || room.health().open == 0);
    assert_eq!(room.health().listening, 0);
    let again = Net::new("true");
    room.join(&again);
    room.table(
        &[listener(Place::Process(again.pid()), Protocol::Tcp, 5432, DB)],
        &[(DB, &[instance(0, 5432)])],
    );
    assert_eq!(who(&again, "127.0.0.1:5432").unwrap(), "a");
}

#[test]
fn datagrams_go_to_one_instance_and_to_the_next_where_nobody_is() {
    const DNS: &str = "shop/dns:53/udp";
    let room = Room::new();
    let answerer = |name: &'static str, at: usize| {
        let socket = room.host.inside(|| UdpSocket::bind(instance(at, 53)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    let answer = [name.as_bytes(), b" ", &bytes[..length]].concat();
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        (ended, thread)
    };
    let (first, second) = (answerer("a", 0), answerer("b", 1));
    let (ready, other) = ([instance(0, 53), instance(1, 53)], [instance(1, 53)]);
    let listeners = [listener(room.place(), Protocol::Udp, 53, DNS)];
    room.table(&listeners, &[(DNS, &ready)]);
    let client = || {
        let socket = room.container.inside(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    let ask = |socket: &UdpSocket, text: &str| -> std::io::Result<String> {
        socket.send_to(text.as_bytes(), "127.0.0.1:53")?;
        let mut bytes = [0; 2048];
        let (length, from) = socket.recv_from(&mut bytes)?;
        assert_eq!(from, "127.0.0.1:53".parse().unwrap());
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    // A client stays with one; two are with two.
    let (one, two) = (client(), client());
    let met: BTreeSet<String> = [&one, &two]
        .iter()
        .map(|socket| {
            let met = ask(socket, "1").unwrap();
            let by = met.split(' ').next().unwrap().to_owned();
            assert_eq!(ask(socket, "2").unwrap(), format!("{by} 2"));
            by
        })
        .collect();
    assert_eq!(met.len(), 2);
    assert_eq!(room.health().counts[DNS].connections, 2);
    // One's instance is gone, and nobody has said so: the next client's first datagram goes to the other.
    first.0.store(true, Ordering::Relaxed);
    first.1.join().unwrap();
    for _ in 0..4 {
        assert_eq!(ask(&client(), "3").unwrap(), "b 3");
    }
    assert!(room.health().counts[DNS].failed_over >= 1);
    // Now it is said: who was with it is with the other.
    room.table(&listeners, &[(DNS, &other)]);
    for socket in [&one, &two] {
        assert_eq!(ask(socket, "4").unwrap(), "b 4");
    }
    second.0.store(true, Ordering::Relaxed);
    second.1.join().unwrap();
    // Nobody at all: it comes to an end.
    let nobody = client();
    nobody.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(ask(&nobody, "5").is_err());
    until("it is counted", || room.health().counts[DNS].refused >= 1);
}

#[test]
fn a_port_of_the_node_says_ahead_who_comes_and_lets_in_whom_it_may() {
    const WEB: &str = "shop/web:80/tcp";
    let room = Room::new();
    let server = room.host.inside(|| TcpListener::bind(instance(0, 80)).unwrap());
    let mut open = listener(Place::Node, Protocol::Tcp, 8080, WEB);
    open.proxy_protocol = true;
    room.table(&[open.clone()], &[(WEB, &[instance(0, 80)])]);
    // From another machine, as it were, and by both families.
    room.host.run("ip addr add fd99::1/64 dev v0 nodad");
    room.container.run("ip addr add fd99::9/64 dev eth0 nodad");
    for (to, kind, length) in [("10.99.0.1:8080", 0x11_u8, 12_usize), ("[fd99::1]:8080", 0x21, 36)] {
        let mut client = dial(&room.container, to).unwrap();
        client.write_all(b"GET").unwrap();
        let (mut met, _) = server.accept().unwrap();
        met.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = vec![0; 16 + length + 3];
        met.read_exact(&mut bytes).unwrap();
        // As the specification has it, read without what wrote it.
        assert_eq!(
            bytes[..12],
            [0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]
        );
        assert_eq!(bytes[12..16], [0x21, kind, 0, u8::try_from(length).unwrap()]);
        let (source, from) = (client.local_addr().unwrap(), &bytes[16..16 + length]);
        let ports = &from[length - 4..];
        assert_eq!(u16::from_be_bytes([ports[0], ports[1]]), source.port());
        assert_eq!(u16::from_be_bytes([ports[2], ports[3]]), 8080);
        match source.ip() {
            IpAddr::V4(ip) => assert_eq!(from[..4], ip.octets()),
            IpAddr::V6(ip) => assert_eq!(from[..16], ip.octets()),
        }
        assert_eq!(&bytes[16 + length..], b"GET");
    }
    // A policy lets in nobody from there.
    let doors = |text: &str| serde_json::from_str::<Doors>(text).unwrap();
    open.doors = doors(r#"{"blocks": [{"net": "10.99.0.0/24", "except": ["10.99.0.9/32"]}]}"#);
    room.table(&[open.clone()], &[(WEB, &[instance(0, 80)])]);
    assert!(who(&room.container, "10.99.0.1:8080").is_err());
    until("it is counted", || room.health().counts[WEB].refused == 1);
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "nobody came by");
    open.doors = doors(r#"{"blocks": [{"net": "10.99.0.0/24"}]}"#);
    // A port that somebody else has is none of its own.
    let _taken = room.host.inside(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let mut others = open.clone();
    others.port = 8081;
    let health = room.table(&[open.clone(), others], &[(WEB, &[instance(0, 80)])]);
    assert_eq!((health.held, health.missing.len()), (vec![open.held().unwrap()], 1));
    dial(&room.container, "10.99.0.1:8080").unwrap();
    until("it is let in", || server.accept().is_ok());
}

#[test]
fn thousands_that_come_and_say_nothing_harm_themselves_only() {
    const CACHE: &str = "shop/cache:6379/tcp";
    let room = Room::new();
    let other = Net::new("true");
    room.host.run(&format!(
        "ip link add v1 type veth peer name eth0 netns {} && ip addr add 10.98.0.1/24 dev v1 && ip link set v1 up",
        other.pid()
    ));
    other.run("ip addr add 10.98.0.9/24 dev eth0 && ip link set eth0 up && ip route add default via 10.98.0.1");
    // An instance that takes whatever comes, and reads nothing.
    let sink = room.host.inside(|| TcpListener::bind(instance(1, 6379)).unwrap());
    sink.set_nonblocking(true).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    std::thread::spawn(move || {
        let mut all = Vec::new();
        while !told.load(Ordering::Relaxed) {
            match sink.accept() {
                Ok(met) => all.push(met),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    let _echo = Echo::new(&room, "a", instance(0, 5432));
    let listeners = [
        listener(room.place(), Protocol::Tcp, 6379, CACHE),
        listener(Place::Process(other.pid()), Protocol::Tcp, 5432, DB),
    ];
    room.table(&listeners, &[(CACHE, &[instance(1, 6379)]), (DB, &[instance(0, 5432)])]);
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let raised = rustix::process::Rlimit {
        current: files,
        maximum: files,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let held: Vec<TcpStream> = room.container.inside(|| {
        let all = (0..5_000).filter_map(|at| {
            // Beyond its limit it is closed at once, which may be heard before the connection stands.
            let mut stream = TcpStream::connect("127.0.0.1:6379").ok()?;
            if at % 100 == 0 {
                // It sends, and nobody reads.
                stream.set_nonblocking(true).unwrap();
                while stream.write(&[7; 65_536]).is_ok_and(|length| length > 0) {}
            }
            Some(stream)
        });
        all.collect()
    });
    until("what is too much is refused", || {
        let counts = room.health().counts[CACHE];
        counts.refused >= 2_900 && counts.connections <= 2_048
    });
    // The neighbour does not notice.
    for _ in 0..50 {
        assert_eq!(who(&other, "127.0.0.1:5432").unwrap(), "a");
    }
    assert!(room.health().open <= 2_050);
    drop(held);
    ended.store(true, Ordering::Relaxed);
    until("all of them are gone", || room.health().open <= 51);
}
