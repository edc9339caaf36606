//! The names' server as a process, in a network of its own, asked by what containers ask with: dig, glibc, musl, a resolver
//! library, and sockets that mean no good. Needs root, and what `scripts/setup.sh test` installs.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use network::detached::{self, Place, Program};
use network::names::{Copy, Ensured, Health, Options, Part, Sees, Server, Settings, health, look, serve, tell};
use planner::network::lookup::{Came, Type, Wanted};
use schemas::container::Protocol;
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Endpoint, EndpointPort, Endpoints, SchemaVersion};

const SERVE: &str = "REEVE_TEST_NAMES";
const GATEWAY: &str = "10.210.1.1";
/// What asks in a room unless it says otherwise: `1.web.shop`.
const WEB: &str = "10.210.1.2";
const VAULT: &str = "10.210.1.3";
const STRANGER: &str = "10.210.1.99";
/// Where tests have this host's own servers.
const UPSTREAMS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// Not a test of its own: the server that the tests below start. Without being asked it does nothing.
#[test]
fn the_server_that_others_start() {
    let Some(told) = std::env::var_os(SERVE) else {
        return;
    };
    let told = told.into_string().expect("text");
    let mut words = told.split(' ');
    let dir = PathBuf::from(words.next().expect("a directory"));
    let resolv_conf = PathBuf::from(words.next().expect("a file"));
    let listen = words.map(|word| word.parse().expect("an address")).collect();
    let ended = serve(Options {
        dir,
        listen,
        resolv_conf,
    });
    eprintln!("{ended:?}");
    std::process::exit(3);
}

/// A network and a list of mounts of their own, in which the gateway's address is there, and what asks is an instance.
struct Room {
    keeper: Child,
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self::with(&format!("ip addr add {GATEWAY}/24 dev lo"))
    }

    /// With other commands than the one that gives the gateway's address.
    fn with(gateway: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let resolv = dir.path().join("container.conf");
        let resolver =
            planner::network::names::resolver("reeve.internal", &namespace("shop"), vec![GATEWAY.parse().unwrap()]);
        std::fs::write(&resolv, resolver.resolv_conf()).unwrap();
        std::fs::write(dir.path().join("host.conf"), "").unwrap();
        let script = format!(
            "set -e; ip link set lo up; {gateway}; \
             for a in {WEB} {VAULT} {STRANGER}; do ip addr add $a/32 dev lo; done; \
             for a in {}; do ip addr add $a/32 dev lo; done; \
             ip addr add fd00:7::1:1/128 dev lo; ip addr add fd00:7::1:2/128 dev lo; \
             mount --bind {} /etc/resolv.conf; echo ready; exec sleep 3600",
            UPSTREAMS.join(" "),
            resolv.display()
        );
        let mut keeper = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut line = String::new();
        let said = keeper.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let room = Self { keeper, dir };
        // What asks the gateway from here is an instance.
        room.run(&format!(
            "ip route change table local local {GATEWAY} dev lo src {WEB} || true"
        ));
        room
    }

    /// Runs a command in the room; its output.
    fn run(&self, command: &str) -> String {
        let output = Command::new("nsenter")
            .args(["-t", &self.keeper.id().to_string(), "-n", "-m", "sh", "-c", command])
            .output()
            .expect("nsenter");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.is_empty() {
            text
        } else {
            format!("{text}{errors}")
        }
    }

    /// Calls a function on a thread whose network is the room's.
    fn inside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let network = std::fs::File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(network.as_fd(), Some(kind)).unwrap();
                call()
            });
            inside.join().unwrap()
        })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("names")
    }

    fn upstreams(&self, text: &str) {
        let fresh = self.dir.path().join("host.conf.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.dir.path().join("host.conf")).unwrap();
    }

    fn server(&self) -> Server {
        Server {
            dir: self.path(),
            listen: vec![
                format!("{GATEWAY}:53").parse().unwrap(),
                "[fd00:7::1:1]:53".parse().unwrap(),
            ],
        }
    }

    fn program(&self, server: &Server) -> Program {
        let test = std::env::current_exe().unwrap();
        let mut told = format!(
            "{} {}",
            self.path().display(),
            self.dir.path().join("host.conf").display()
        );
        for address in &server.listen {
            told.push_str(&format!(" {address}"));
        }
        let words = [
            "-t",
            &self.keeper.id().to_string(),
            "-n",
            "-m",
            "--",
            test.to_str().unwrap(),
            "--exact",
            "the_server_that_others_start",
            "--nocapture",
        ];
        Program {
            place: server.place(),
            path: "/usr/bin/nsenter".into(),
            args: words.iter().map(Into::into).collect(),
            env: vec![(SERVE.into(), told.into())],
        }
    }

    async fn ensure(&self) -> (Ensured, Health) {
        self.ensure_as(&self.server()).await
    }

    async fn ensure_as(&self, server: &Server) -> (Ensured, Health) {
        let (done, _) = server.ensure_program(self.program(server)).await.unwrap();
        let health = until("it answers", async || {
            let health = health(&self.path()).await.unwrap();
            (health.answering && health.listen.iter().all(|listen| listen.why.is_none())).then_some(health)
        });
        (done, health.await)
    }

    /// What dig says, in short.
    fn dig(&self, words: &str) -> String {
        let said = self.run(&format!("dig +short +time=2 +tries=1 @{GATEWAY} {words}"));
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        lines.join(" ")
    }

    /// The code that dig was answered with.
    fn code(&self, words: &str) -> String {
        let said = self.run(&format!("dig +time=2 +tries=1 @{GATEWAY} {words}"));
        let code = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        code.map_or(said.clone(), ToOwned::to_owned)
    }

    /// Asks from an address of the room; the answer, or None when there is none in time.
    fn ask(&self, from: &str, name: &str, kind: RecordType) -> Option<Message> {
        self.inside(|| ask(from, name, kind, Duration::from_secs(10)))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let place = Place {
            dir: self.path(),
            name: "names".to_owned(),
        };
        let _ = detached::stop(&place, Duration::ZERO);
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

async fn until<T>(what: &str, mut met: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = met().await {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask(from: &str, name: &str, kind: RecordType, patience: Duration) -> Option<Message> {
    let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(&question(name, kind), (GATEWAY, 53)).unwrap();
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

fn ask_by_tcp(stream: &mut TcpStream, name: &str, kind: RecordType) {
    let message = question(name, kind);
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).unwrap();
}

fn read_by_tcp(stream: &mut TcpStream) -> Option<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).ok()?;
    Some(Message::from_vec(&bytes).unwrap())
}

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

fn resource(name: &str) -> ResourceName {
    name.parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        domain: "reeve.internal".to_owned(),
        cidr: "10.210.0.0/16".parse().unwrap(),
        cidr6: Some("fd00:7::/64".parse().unwrap()),
        servers: vec![GATEWAY.parse().unwrap(), "fd00:7::1:1".parse().unwrap()],
        hosts: Default::default(),
    }
}

fn instance(slot: u32, address: &str, ready: bool) -> Endpoint {
    Endpoint {
        slot: schemas::names::Slot::Index(slot),
        node: "n1".parse().unwrap(),
        address: address.parse().unwrap(),
        address6: None,
        ready,
    }
}

fn service(instances: Vec<Endpoint>) -> Endpoints {
    Endpoints {
        schema_version: SchemaVersion::default(),
        cluster: "c0ffee00c0ffee00c0ffee00c0ffee00".parse().unwrap(),
        ports: vec![EndpointPort {
            name: Some("http".to_owned()),
            port: 80,
            protocol: Protocol::Tcp,
            everywhere: None,
        }],
        instances,
    }
}

fn part(space: &str, name: &str) -> Part {
    Part::Service(namespace(space), resource(name))
}

/// `web` and `db` of the shop, the bank's vault.
fn written(room: &Room) -> Copy {
    let mut copy = Copy::open(&room.path()).unwrap();
    copy.settings(&settings()).unwrap();
    let mut web = service(vec![
        instance(1, WEB, true),
        instance(2, "10.210.2.2", false),
        instance(3, "10.210.3.2", true),
    ]);
    web.instances[0].address6 = Some("fd00:7::1:2".parse().unwrap());
    copy.put(&namespace("shop"), &resource("web"), &web).unwrap();
    copy.put(
        &namespace("shop"),
        &resource("db"),
        &service(vec![instance(1, "10.210.1.5", false)]),
    )
    .unwrap();
    copy.put(
        &namespace("bank"),
        &resource("vault"),
        &service(vec![instance(1, VAULT, true)]),
    )
    .unwrap();
    copy.settle().unwrap();
    copy
}

#[tokio::test]
async fn dig_finds_what_is_there_and_only_what_it_may_see() {
    let room = Room::new();
    let mut copy = written(&room);
    room.ensure().await;
    for (words, wanted) in [
        ("web.shop.reeve.internal", "10.210.1.2 10.210.3.2"),
        ("WEB.shop.REEVE.internal", "10.210.1.2 10.210.3.2"),
        ("+tcp web.shop.reeve.internal", "10.210.1.2 10.210.3.2"),
        ("+noedns web.shop.reeve.internal", "10.210.1.2 10.210.3.2"),
        ("aaaa web.shop.reeve.internal", "fd00:7::1:2"),
        ("all.web.shop.reeve.internal", "10.210.1.2 10.210.2.2 10.210.3.2"),
        ("2.web.shop.reeve.internal", "10.210.2.2"),
        ("db.shop.reeve.internal", ""),
        (
            "srv _http._tcp.web.shop.reeve.internal",
            "0 1 80 1.web.shop.reeve.internal. 0 1 80 3.web.shop.reeve.internal.",
        ),
        ("-x 10.210.1.2", "1.web.shop.reeve.internal."),
        ("-x fd00:7::1:2", "1.web.shop.reeve.internal."),
        ("ns reeve.internal", "reeve.internal."),
        ("reeve.internal", GATEWAY),
    ] {
        assert_eq!(room.dig(words), wanted, "{words}");
    }
    for (words, wanted) in [
        ("web.shop.reeve.internal", "NOERROR"),
        ("aaaa 3.web.shop.reeve.internal", "NOERROR"),
        ("db.shop.reeve.internal", "NOERROR"),
        ("txt web.shop.reeve.internal", "NOERROR"),
        ("none.shop.reeve.internal", "NXDOMAIN"),
        ("vault.bank.reeve.internal", "NXDOMAIN"),
        ("-x 10.210.1.3", "NXDOMAIN"),
        ("-x 10.210.1.77", "NXDOMAIN"),
        ("ch txt version.bind", "REFUSED"),
        ("+opcode=update web.shop.reeve.internal", "NOTIMP"),
        ("+edns=1 +noednsneg web.shop.reeve.internal", "BADVERS"),
        (&format!("-b {VAULT} vault.bank.reeve.internal"), "NOERROR"),
        (&format!("-b {VAULT} web.shop.reeve.internal"), "NXDOMAIN"),
        (&format!("-b {STRANGER} web.shop.reeve.internal"), "REFUSED"),
        (&format!("-b {STRANGER} none.shop.reeve.internal"), "REFUSED"),
        (&format!("-b {STRANGER} example.com"), "REFUSED"),
        (&format!("-b {GATEWAY} web.shop.reeve.internal"), "REFUSED"),
        // By IPv6, from an instance's address.
        ("-b fd00:7::1:2 @fd00:7::1:1 web.shop.reeve.internal", "NOERROR"),
    ] {
        assert_eq!(room.code(words), wanted, "{words}");
    }
    // What is there and may not be seen, and what is not there, differ in nothing but the name.
    let unlike = |name: &str| {
        let said = room.run(&format!(
            "dig +noall +comments +authority +answer +additional @{GATEWAY} {name}"
        ));
        let lines = said.lines().filter(|line| !line.contains("id: "));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(unlike("vault.bank.reeve.internal"), unlike("vaulx.bank.reeve.internal"));
    // A rule opens the vault; this host is let in; and both are taken away again.
    let mut sees = Sees::default();
    sees.allow(&namespace("shop"), &namespace("bank"), &resource("vault"));
    assert!(copy.sees(&sees).unwrap());
    let mut exposed = settings();
    exposed.hosts.insert(GATEWAY.parse().unwrap());
    assert!(copy.settings(&exposed).unwrap());
    tell(&room.path(), [Part::Sees, Part::Settings]).await.unwrap();
    assert_eq!(room.dig("vault.bank.reeve.internal"), VAULT);
    // Who asks by the socket hears the same, in the name of any namespace.
    let ask = async |from: &str| {
        let wanted = Wanted {
            name: "vault.bank".to_owned(),
            kind: Type::A,
            from: namespace(from),
        };
        let found = look(&room.path(), wanted).await.unwrap().expect("it has read its copy");
        (found.came, found.records)
    };
    assert_eq!(ask("shop").await, (Came::Answered, vec![VAULT.to_owned()]));
    assert_eq!(ask("else").await, (Came::NoSuchName, Vec::new()));
    assert_eq!(
        room.dig(&format!("-b {GATEWAY} web.shop.reeve.internal")),
        "10.210.1.2 10.210.3.2"
    );
    assert_eq!(
        room.code(&format!("-b {GATEWAY} example.com")),
        "REFUSED",
        "it has servers of its own"
    );
    copy.sees(&Sees::default()).unwrap();
    copy.settings(&settings()).unwrap();
    tell(&room.path(), [Part::Sees, Part::Settings]).await.unwrap();
    assert_eq!(room.code("vault.bank.reeve.internal"), "NXDOMAIN");
    assert_eq!(room.code(&format!("-b {GATEWAY} web.shop.reeve.internal")), "REFUSED");
    // An instance of this node may ask before any record has it.
    let own = BTreeMap::from([(STRANGER.parse().unwrap(), namespace("bank"))]);
    assert!(copy.own(&own).unwrap());
    tell(&room.path(), [Part::Own]).await.unwrap();
    assert_eq!(room.dig(&format!("-b {STRANGER} vault.bank.reeve.internal")), VAULT);
}

/// What a container's libc does with a name, in C: `found ADDRESS...` or `failed CODE`.
const GETADDRINFO: &str = r#"
#include <stdio.h>
#include <string.h>
#include <netdb.h>
#include <arpa/inet.h>
#include <sys/socket.h>
int main(int n, char **words) {
    struct addrinfo want, *found, *at;
    memset(&want, 0, sizeof want);
    want.ai_socktype = SOCK_STREAM;
    want.ai_family = n > 2 ? AF_INET : AF_UNSPEC;
    int code = getaddrinfo(words[1], 0, &want, &found);
    if (code) { printf("failed %s\n", gai_strerror(code)); return 0; }
    printf("found");
    for (at = found; at; at = at->ai_next) {
        char text[64];
        void *address = at->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
                                                 : (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
        printf(" %s", inet_ntop(at->ai_family, address, text, sizeof text));
    }
    printf("\n");
    return 0;
}
"#;

const DNSPYTHON: &str = r#"
import dns.resolver
r = dns.resolver.Resolver()
r.lifetime = 5
def ask(name, kind="A", **more):
    try:
        found = r.resolve(name, kind, search=True, **more)
        return " ".join(sorted(str(one) for one in found))
    except Exception as error:
        return type(error).__name__
print(ask("web"), ask("web", tcp=True), ask("db.shop"), ask("none"), ask("vault.bank"), sep="|")
print(ask("_http._tcp.all.db", "SRV"), r.resolve_address("10.210.3.2")[0], ask("large.shop"), sep="|")
"#;

#[tokio::test]
async fn glibc_musl_and_a_resolver_library_find_short_names_and_tell_what_is_not_there() {
    let room = Room::new();
    let mut copy = written(&room);
    let large: Vec<Endpoint> = (1..=300)
        .map(|slot| instance(slot, &Ipv4Addr::from(0x0ad2_8000 + slot).to_string(), true))
        .collect();
    copy.put(&namespace("shop"), &resource("large"), &service(large))
        .unwrap();
    // The world knows none of it.
    upstream(&room, UPSTREAMS[0], |asked, _| {
        let mut none = answer_to(&asked, 0);
        none.metadata.response_code = ResponseCode::NXDomain;
        vec![none.to_vec().unwrap()]
    });
    room.upstreams(&format!("nameserver {}\n", UPSTREAMS[0]));
    room.ensure().await;
    let source = room.dir.path().join("ask.c");
    std::fs::write(&source, GETADDRINFO).unwrap();
    let build = |compiler: &str, more: &[&str]| {
        let program = room.dir.path().join(compiler);
        let built = Command::new(compiler)
            .args(more)
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .status();
        assert!(built.expect("a compiler: scripts/setup.sh test").success());
        program
    };
    let glibc = build("cc", &[]);
    let musl = build("musl-gcc", &["-static"]);
    for program in [&glibc, &musl] {
        let ask = |name: &str| {
            let said = room.run(&format!("{} {name}", program.display()));
            let mut words: Vec<&str> = said.split_whitespace().collect();
            words[1..].sort_unstable();
            words.join(" ")
        };
        for name in ["web", "web.shop", "web.shop.reeve.internal", "web.shop.reeve.internal."] {
            assert_eq!(
                ask(name),
                "found 10.210.1.2 10.210.3.2 fd00:7::1:2",
                "{program:?} {name}"
            );
        }
        // Without IPv6, and the answer about it must not be taken for `no such name`.
        assert_eq!(ask("3.web"), "found 10.210.3.2", "{program:?}");
        assert_eq!(ask("1.db"), "found 10.210.1.5", "{program:?}");
        assert!(ask("db").starts_with("failed"), "{program:?}: nobody is ready");
        assert!(ask("none").starts_with("failed"), "{program:?}");
        assert!(ask("vault.bank").starts_with("failed"), "{program:?}");
        // More than a packet: by TCP; and who knows no TCP takes what there is.
        let many = ask("large");
        assert!(
            many.starts_with("found ") && many.split(' ').count() > 25,
            "{program:?}: {many}"
        );
    }
    assert_eq!(
        room.run(&format!("{} large 4", glibc.display())).split(' ').count(),
        301
    );
    let script = room.dir.path().join("ask.py");
    std::fs::write(&script, DNSPYTHON).unwrap();
    let said = room.run(&format!("/usr/bin/python3 {}", script.display()));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines.first(),
        Some(&"10.210.1.2 10.210.3.2|10.210.1.2 10.210.3.2|NoAnswer|NXDOMAIN|NXDOMAIN"),
        "{said}"
    );
    let words: Vec<&str> = lines[1].split('|').collect();
    assert_eq!(
        words[..2],
        ["0 1 80 1.db.shop.reeve.internal.", "3.web.shop.reeve.internal."]
    );
    assert_eq!(words[2].split(' ').count(), 300);
}

#[tokio::test]
async fn what_is_told_is_in_force_when_the_answer_comes_and_addresses_turn() {
    let room = Room::new();
    let mut copy = written(&room);
    room.ensure().await;
    let (shop, web) = (namespace("shop"), resource("web"));
    let mut slowest = Duration::ZERO;
    for round in 0..200_u32 {
        let address = Ipv4Addr::from(0x0ad2_9000 + round);
        let begun = Instant::now();
        let record = service(vec![instance(1, WEB, false), instance(2, &address.to_string(), true)]);
        assert!(copy.put(&shop, &web, &record).unwrap());
        tell(&room.path(), [part("shop", "web")]).await.unwrap();
        let answer = room
            .ask(WEB, "web.shop.reeve.internal.", RecordType::A)
            .expect("an answer");
        slowest = slowest.max(begun.elapsed());
        let found: Vec<&RData> = answer.answers.iter().map(|record| &record.data).collect();
        assert_eq!(found, [&RData::A(A(address))], "round {round}");
        assert!(answer.answers.iter().all(|record| record.ttl == 0));
    }
    eprintln!("from a record to its answer: at most {slowest:?}");
    copy.put(
        &shop,
        &web,
        &service(
            (1..=5)
                .map(|slot| instance(slot, &format!("10.210.1.{}", slot + 1), true))
                .collect(),
        ),
    )
    .unwrap();
    tell(&room.path(), [part("shop", "web")]).await.unwrap();
    let mut first: Vec<String> = (0..5)
        .map(|_| {
            let answer = room.ask(WEB, "web.shop.reeve.internal.", RecordType::A).unwrap();
            assert_eq!(answer.answers.len(), 5);
            answer.answers[0].data.to_string()
        })
        .collect();
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 5, "each comes first once");
    copy.remove(&shop, &web).unwrap();
    tell(&room.path(), [part("shop", "web")]).await.unwrap();
    let gone = room.ask(VAULT, "web.shop.reeve.internal.", RecordType::A).unwrap();
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn with_everybody_gone_a_killed_server_comes_back_with_all_names() {
    let room = Room::new();
    drop(written(&room));
    let (done, _) = room.ensure().await;
    assert_eq!(done, Ensured::Started);
    assert_eq!(room.ensure().await.0, Ensured::Ran);
    // Killed, and at once asked by somebody who asks until he is answered.
    let running = detached::look(&room.server().place()).unwrap().unwrap();
    rustix::process::kill_process(running.pid.unwrap(), rustix::process::Signal::KILL).unwrap();
    until("it is gone", async || {
        detached::look(&room.server().place()).unwrap().is_none().then_some(())
    })
    .await;
    let begun = Instant::now();
    let (done, health) = room.ensure().await;
    assert_eq!(done, Ensured::Started);
    assert_eq!(health.services, 3);
    // It keeps no right over this host but these two: to listen at a port below 1024, and to reach its directory.
    let again = detached::look(&room.server().place()).unwrap().unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", again.pid.unwrap().as_raw_nonzero())).unwrap();
    let rights = tasks.flatten().find_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("CapPrm"))?;
        status.starts_with("Name:\treeve-names\n").then(|| line.to_owned())
    });
    assert_eq!(rights.as_deref(), Some("CapPrm:\t0000000000000404"));
    let answer = room.ask(WEB, "web.shop.reeve.internal.", RecordType::A).unwrap();
    assert_eq!(answer.answers.len(), 2);
    eprintln!("from its end to an answer: {:?}", begun.elapsed());
    // Paused: it is there, and answers nobody.
    let paused = detached::look(&room.server().place()).unwrap().unwrap();
    rustix::process::kill_process(paused.pid.unwrap(), rustix::process::Signal::STOP).unwrap();
    let tasks = format!("/proc/{}/task", paused.pid.unwrap().as_raw_nonzero());
    until("all of it has stopped", async || {
        let stopped = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            status.contains("State:\tT")
        };
        std::fs::read_dir(&tasks).unwrap().flatten().all(stopped).then_some(())
    })
    .await;
    assert_eq!(room.ensure().await.0, Ensured::Replaced);
    assert!(room.ask(WEB, "web.shop.reeve.internal.", RecordType::A).is_some());
    // It is of another build, as after an upgrade.
    let pid_file = room.server().place().pid_file();
    let text = std::fs::read_to_string(&pid_file).unwrap();
    std::fs::write(&pid_file, text.replace(&detached::build().unwrap(), "another")).unwrap();
    assert_eq!(room.ensure().await.0, Ensured::Replaced);
    assert_eq!(room.ensure().await.0, Ensured::Ran);
    // It is to listen elsewhere.
    let mut elsewhere = room.server();
    elsewhere.listen.pop();
    assert_eq!(room.ensure_as(&elsewhere).await.0, Ensured::Replaced);
    assert_eq!(room.ensure_as(&elsewhere).await.0, Ensured::Ran);
    elsewhere.stop().await.unwrap();
    assert_eq!(detached::look(&elsewhere.place()).unwrap(), None);
}

#[tokio::test]
async fn a_file_that_is_damaged_hurts_its_own_service_and_no_longer_than_it_is() {
    let room = Room::new();
    drop(written(&room));
    let file = room.path().join("services/shop.web.json");
    let whole = std::fs::read(&file).unwrap();
    room.ensure().await;
    let codes = || {
        ["web", "db"].map(|name| {
            let name = format!("all.{name}.shop.reeve.internal.");
            let answer = room.ask(WEB, &name, RecordType::A).unwrap();
            (answer.metadata.response_code, answer.answers.len())
        })
    };
    let good = [(ResponseCode::NoError, 3), (ResponseCode::NoError, 1)];
    assert_eq!(codes(), good);
    // While it runs: what was last read stays.
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let health = tell(&room.path(), [part("shop", "web")]).await.unwrap();
    assert_eq!(health.unreadable.len(), 1, "{health:?}");
    assert!(health.unreadable[0].contains("shop.web.json"), "{health:?}");
    assert_eq!(codes(), good);
    // At its start: the others are there. Who asks is known by the assignment, whatever happened to the record.
    let mut copy = Copy::open(&room.path()).unwrap();
    copy.own(&BTreeMap::from([(WEB.parse().unwrap(), namespace("shop"))]))
        .unwrap();
    room.server().stop().await.unwrap();
    let (_, health) = room.ensure().await;
    assert_eq!(health.unreadable.len(), 1, "{health:?}");
    assert_eq!(codes(), [(ResponseCode::NXDomain, 0), good[1]]);
    // Mended by whomever: taken up by itself.
    std::fs::write(&file, &whole).unwrap();
    until("it is read", async || (codes() == good).then_some(())).await;
    let health = health_of(&room).await;
    assert!(health.unreadable.is_empty(), "{health:?}");
    // Settings that are damaged or gone while it runs change nothing.
    for damage in ["{", ""] {
        std::fs::write(room.path().join("settings.json"), damage).unwrap();
        tell(&room.path(), [Part::Settings]).await.unwrap();
        assert_eq!(codes(), good);
    }
    std::fs::remove_file(room.path().join("settings.json")).unwrap();
    tell(&room.path(), [Part::Settings]).await.unwrap();
    assert_eq!(codes(), good);
    // Without any at its start it knows nobody: who asks is to ask again, not to believe that nothing is there.
    room.server().stop().await.unwrap();
    let server = room.server();
    server.ensure_program(room.program(&server)).await.unwrap();
    until("it listens", async || {
        health_of(&room)
            .await
            .listen
            .iter()
            .all(|listen| listen.why.is_none())
            .then_some(())
    })
    .await;
    assert_eq!(codes(), [(ResponseCode::ServFail, 0), (ResponseCode::ServFail, 0)]);
    copy.settings(&settings()).unwrap();
    tell(&room.path(), [Part::Settings]).await.unwrap();
    assert_eq!(codes(), good);
}

async fn health_of(room: &Room) -> Health {
    health(&room.path()).await.unwrap()
}

#[tokio::test]
async fn it_listens_at_an_address_before_it_is_there_and_after_it_was_made_again() {
    let room = Room::with("true");
    drop(written(&room));
    room.ensure().await;
    for _ in 0..2 {
        room.run(&format!(
            "ip addr add {GATEWAY}/24 dev lo && ip route change table local local {GATEWAY} dev lo src {WEB}"
        ));
        assert_eq!(room.dig("web.shop.reeve.internal"), "10.210.1.2 10.210.3.2");
        assert_eq!(room.dig("+tcp web.shop.reeve.internal"), "10.210.1.2 10.210.3.2");
        room.run(&format!(
            "ip addr del {GATEWAY}/24 dev lo; ip route del table local local {GATEWAY} dev lo"
        ));
        assert!(!room.dig("web.shop.reeve.internal").contains("10.210.3.2"));
    }
    // Somebody else has the port: it says so, and takes it when it is free.
    room.run(&format!("ip addr add {GATEWAY}/24 dev lo"));
    room.server().stop().await.unwrap();
    let taken = room.inside(|| UdpSocket::bind((GATEWAY, 53)).unwrap());
    let server = room.server();
    server.ensure_program(room.program(&server)).await.unwrap();
    until("it says why", async || {
        let health = health_of(&room).await;
        let why = health.listen[0].why.clone().unwrap_or_default();
        let said = health
            .troubles()
            .first()
            .is_some_and(|trouble| trouble.contains(GATEWAY));
        (said && why.starts_with("UDP: Address already in use")).then_some(())
    })
    .await;
    drop(taken);
    room.ensure().await;
}

/// A server of the world, at an address of the room: how it answers by UDP and TCP.
fn upstream(
    room: &Room,
    address: &str,
    answer: impl Fn(Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let (udp, tcp) = room.inside(|| {
        (
            UdpSocket::bind((address, 53)).unwrap(),
            TcpListener::bind((address, 53)).unwrap(),
        )
    });
    let answer = Arc::new(answer);
    let (count, by_udp) = (Arc::clone(&asked), Arc::clone(&answer));
    // They end with the process of the test.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            for reply in by_udp(Message::from_vec(&buffer[..length]).unwrap(), false) {
                let _ = udp.send_to(&reply, from);
            }
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            while let Some(message) = read_by_tcp(&mut stream) {
                for reply in answer(message, true) {
                    let mut bytes = u16::try_from(reply.len()).unwrap().to_be_bytes().to_vec();
                    bytes.extend(reply);
                    let _ = stream.write_all(&bytes);
                }
            }
        }
    });
    asked
}

/// A message that answers another, with so many addresses.
fn answer_to(asked: &Message, count: u32) -> Message {
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_queries(asked.queries.iter().cloned());
    for at in 0..count {
        let data = RData::A(A(Ipv4Addr::from(0xc633_6400 + at)));
        message.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, data));
    }
    message
}

#[tokio::test]
async fn the_world_is_asked_of_this_hosts_servers_and_lies_silence_and_failures_are_passed_over() {
    let room = Room::new();
    drop(written(&room));
    room.upstreams(&format!(
        "nameserver {GATEWAY}\nnameserver {}\nnameserver {}\n",
        UPSTREAMS[0], UPSTREAMS[1]
    ));
    room.ensure().await;
    let code = |name: &str| {
        let answer = room.ask(WEB, name, RecordType::A).expect("an answer in time");
        (answer.metadata.response_code, answer.answers.len())
    };
    // Both are dead, and say so.
    assert_eq!(code("example.com."), (ResponseCode::ServFail, 0));
    let upstreams = health_of(&room).await.upstreams;
    assert_eq!(upstreams.len(), 2, "never itself: {upstreams:?}");
    // The first lies in every way before it tells the truth, fails where it is told to, and cuts what is large.
    let first = upstream(&room, UPSTREAMS[0], |asked, by_tcp| {
        let name = asked.queries[0].name().to_ascii();
        let truth = answer_to(&asked, 2);
        if name == "silent.example.com." {
            return Vec::new();
        }
        if name == "failing.example.com." || name == "hopeless.example.com." {
            let mut failure = answer_to(&asked, 0);
            failure.metadata.response_code = ResponseCode::ServFail;
            return vec![failure.to_vec().unwrap()];
        }
        if name == "large.example.com." {
            if by_tcp {
                return vec![answer_to(&asked, 400).to_vec().unwrap()];
            }
            let mut cut = answer_to(&asked, 0);
            cut.metadata.truncation = true;
            return vec![cut.to_vec().unwrap()];
        }
        if by_tcp {
            return vec![truth.to_vec().unwrap()];
        }
        let mut wrong_number = answer_to(&asked, 9);
        wrong_number.metadata.id ^= 1;
        let mut other_name = answer_to(&asked, 9);
        other_name.queries = vec![Query::query(
            Name::from_ascii("other.example.com.").unwrap(),
            RecordType::A,
        )];
        let mut other_kind = answer_to(&asked, 9);
        other_kind.queries[0].set_query_type(RecordType::AAAA);
        let mut all: Vec<Vec<u8>> = [wrong_number, other_name, other_kind]
            .iter()
            .map(|lie| lie.to_vec().unwrap())
            .collect();
        all.extend([Vec::new(), vec![0xff; 40], vec![0; 12], truth.to_vec().unwrap()]);
        all
    });
    let second = upstream(&room, UPSTREAMS[1], |asked, _| {
        if asked.queries[0].name().to_ascii() == "hopeless.example.com." {
            let mut failure = answer_to(&asked, 0);
            failure.metadata.response_code = ResponseCode::Refused;
            return vec![failure.to_vec().unwrap()];
        }
        vec![answer_to(&asked, 5).to_vec().unwrap()]
    });
    until("they are asked again", async || {
        (code("example.com.") == (ResponseCode::NoError, 2)).then_some(())
    })
    .await;
    assert_eq!(code("eXample.Com."), (ResponseCode::NoError, 2));
    assert_eq!(
        code("failing.example.com."),
        (ResponseCode::NoError, 5),
        "the second knows"
    );
    assert_eq!(
        code("hopeless.example.com.").0,
        ResponseCode::ServFail,
        "what the first said"
    );
    // By TCP all of it, by UDP that there is more.
    let cut = room.ask(WEB, "large.example.com.", RecordType::A).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(room.dig("+tcp large.example.com").split(' ').count(), 400);
    assert_eq!(
        room.dig("large.example.com").split(' ').count(),
        400,
        "dig comes again by itself"
    );
    // Nobody has ever asked the world about the cluster, nor for who may not.
    let before = first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
    for name in [
        "web.shop.reeve.internal.",
        "none.reeve.internal.",
        "9.9.210.10.in-addr.arpa.",
    ] {
        room.ask(WEB, name, RecordType::PTR).unwrap();
        room.ask(STRANGER, name, RecordType::A).unwrap();
    }
    room.ask(STRANGER, "example.com.", RecordType::A).unwrap();
    assert_eq!(first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst), before);
    // One that is silent: the next is asked, and first for a while.
    assert_eq!(code("silent.example.com."), (ResponseCode::NoError, 5));
    let asked = first.load(Ordering::SeqCst);
    assert_eq!(code("example.com."), (ResponseCode::NoError, 5));
    assert_eq!(first.load(Ordering::SeqCst), asked, "it rests");
    assert!(health_of(&room).await.upstreams.iter().any(|upstream| upstream.resting));
    // Another resolv.conf counts at once, and none is an answer too.
    room.upstreams("# none\n");
    until("it is read", async || {
        (code("example.com.") == (ResponseCode::ServFail, 0)).then_some(())
    })
    .await;
    room.upstreams(&format!("nameserver {}\n", UPSTREAMS[1]));
    until("it is read", async || {
        (code("example.com.") == (ResponseCode::NoError, 5)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn silent_servers_of_the_world_cost_one_question_its_time_and_the_others_none() {
    let room = Room::new();
    drop(written(&room));
    room.upstreams(&format!("nameserver {}\n", UPSTREAMS[0]));
    room.ensure().await;
    let asked = upstream(&room, UPSTREAMS[0], |_, _| Vec::new());
    let slow = room
        .ask(WEB, "example.com.", RecordType::A)
        .expect("an answer before resolvers ask again");
    assert_eq!(slow.metadata.response_code, ResponseCode::ServFail);
    let times = asked.load(Ordering::SeqCst);
    assert!(times > 1, "a packet that was lost is no reason: asked {times} times");
    // Known to be silent: nobody waits.
    for _ in 0..50 {
        let fast = room.ask(WEB, "example.com.", RecordType::A).unwrap();
        assert_eq!(fast.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(asked.load(Ordering::SeqCst), times);
    // Names of the cluster never wait for the world: not even behind as many questions about it as may be open.
    room.upstreams(&format!("nameserver {}\n", UPSTREAMS[1]));
    let silent = room.inside(|| UdpSocket::bind((UPSTREAMS[1], 53)).unwrap());
    let (flood, answers) = room.inside(|| {
        let flood = UdpSocket::bind((WEB, 0)).unwrap();
        flood.set_nonblocking(true).unwrap();
        std::thread::sleep(Duration::from_millis(250));
        for at in 0..200 {
            flood
                .send_to(&question(&format!("n{at}.example.com."), RecordType::A), (GATEWAY, 53))
                .unwrap();
        }
        let answers: Vec<usize> = (0..50)
            .map(|_| {
                let answer = ask(WEB, "web.shop.reeve.internal.", RecordType::A, Duration::from_secs(10));
                answer.map_or(0, |answer| answer.answers.len())
            })
            .collect();
        (flood, answers)
    });
    assert_eq!(answers, [2; 50]);
    // Those beyond the limit were told so.
    let mut buffer = [0; 512];
    let mut refused = 0;
    while flood.recv(&mut buffer).is_ok() {
        refused += 1;
    }
    assert!(refused > 100, "{refused}");
    drop(silent);
}

#[tokio::test]
async fn who_means_no_good_keeps_nobody_else_from_asking() {
    let room = Room::new();
    let mut copy = written(&room);
    let large: Vec<Endpoint> = (1..=3_000)
        .map(|slot| instance(slot, &Ipv4Addr::from(0x0ad2_8000 + slot).to_string(), true))
        .collect();
    copy.put(&namespace("shop"), &resource("large"), &service(large))
        .unwrap();
    room.ensure().await;
    let place = room.server().place();
    let pid = detached::look(&place).unwrap().unwrap().pid;
    room.inside(|| {
        let connect = |from: &str| {
            let socket =
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
            rustix::net::connect(&socket, &SocketAddr::new(GATEWAY.parse().unwrap(), 53)).unwrap();
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        };
        // Garbage, floods, and an address that nobody has.
        let bad = UdpSocket::bind((STRANGER, 0)).unwrap();
        for at in 0..20_000_usize {
            let length = at % 600;
            let junk: Vec<u8> = (0..length)
                .map(|byte| u8::try_from((byte * 7 + at) % 256).unwrap())
                .collect();
            let _ = bad.send_to(&junk, (GATEWAY, 53));
        }
        let _ = bad.send_to(&vec![0; 60_000], (GATEWAY, 53));
        // Connections that say nothing, or half of it, or that never read.
        let mut kept: Vec<TcpStream> = (0..100).map(|_| connect(VAULT)).collect();
        for (at, stream) in kept.iter_mut().enumerate() {
            let _ = stream.write_all(&[0, 40, 1][..at % 4]);
        }
        let mut greedy = connect(WEB);
        greedy.set_nonblocking(true).unwrap();
        for _ in 0..2_000 {
            let message = question("large.shop.reeve.internal.", RecordType::A);
            let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(message);
            if greedy.write(&bytes).is_err() {
                break;
            }
        }
        // The others: by UDP, and by TCP many on one connection.
        for _ in 0..50 {
            // A datagram may be lost in the flood: resolvers ask again.
            let again = |_| ask(WEB, "web.shop.reeve.internal.", RecordType::A, Duration::from_secs(1));
            let answer = (0..20).find_map(again);
            assert_eq!(answer.expect("an answer").answers.len(), 2);
        }
        let mut stream = connect(WEB);
        for _ in 0..40 {
            ask_by_tcp(&mut stream, "web.shop.reeve.internal.", RecordType::A);
        }
        for _ in 0..40 {
            assert_eq!(read_by_tcp(&mut stream).expect("an answer").answers.len(), 2);
        }
        ask_by_tcp(&mut stream, "large.shop.reeve.internal.", RecordType::A);
        assert_eq!(
            read_by_tcp(&mut stream).expect("an answer").answers.len(),
            2_000,
            "as many as there may be"
        );
        // A message in pieces.
        let mut slow = connect(WEB);
        let message = question("web.shop.reeve.internal.", RecordType::A);
        let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(message);
        for piece in bytes.chunks(5) {
            slow.write_all(piece).unwrap();
            slow.flush().unwrap();
        }
        assert_eq!(read_by_tcp(&mut slow).expect("an answer").answers.len(), 2);
        // One that is quiet is ended, not kept for ever.
        assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0);
    });
    let health = health_of(&room).await;
    assert!(health.counts.dropped > 10_000, "{health:?}");
    assert_eq!(
        detached::look(&place).unwrap().unwrap().pid,
        pid,
        "it is the same process"
    );
    let memory = resident(pid.unwrap());
    assert!(memory < 100 << 20, "{memory} bytes");
}

fn resident(pid: rustix::process::Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(Path::new(&path)).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}
