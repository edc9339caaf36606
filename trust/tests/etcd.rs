//! A real etcd, as Debian ships it, with files that this crate made: members that demand each other's certificates, and
//! clients of every kind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::ServerName;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConnection, StreamOwned};
use trust::authority::{Authority, Grant, request};
use trust::bundle::Bundle;
use trust::certificate::Certificate;
use trust::identity::{Identity, Role, SERVER_COMMON_NAME};
use trust::key::Key;
use trust::revoked::Revoked;
use trust::tls::{Door, Peers, peer};
use trust::token::InstallToken;
use trust::trusted::Trust;
use trust::validity::Time;

const DAY: u64 = 86_400;

fn now() -> Time {
    Time::from_unix_seconds(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
}

struct Held {
    certificate: Certificate,
    key: Key,
}

fn hold(authority: &Authority, rest: &str, at: Time, seconds: u64) -> Held {
    let cluster = authority.certificate().cluster();
    let identity: Identity = format!("reeve://{cluster}/{rest}").parse().unwrap();
    let mut grant = Grant::new(identity, seconds);
    grant.addresses = vec![Ipv4Addr::LOCALHOST.into()];
    grant.dns_names = vec!["localhost".into()];
    let key = Key::generate().unwrap();
    let request = request(&key, &grant.identity, &grant.addresses, &grant.dns_names).unwrap();
    let certificate = authority.issue(&request, &grant, &Revoked::none(cluster), at).unwrap();
    Held { certificate, key }
}

fn write(folder: &Path, name: &str, held: &Held) {
    fs::write(folder.join(format!("{name}.crt")), held.certificate.to_pem()).unwrap();
    fs::write(folder.join(format!("{name}.key")), held.key.to_pem().as_bytes()).unwrap();
}

/// A process that ends with its test.
struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client that listens, and the lines that it has heard.
struct Watch {
    _running: Running,
    lines: Receiver<String>,
}

impl Watch {
    fn hears(&self, text: &str, within: Duration) -> bool {
        let end = Instant::now() + within;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line == text {
                return true;
            }
        }
        false
    }
}

/// A store of two members: they have a quorum only when they speak to each other.
struct Store {
    folder: tempfile::TempDir,
    clients: Vec<u16>,
    peers: Vec<u16>,
    members: Vec<Running>,
}

impl Store {
    fn start(authority: &Authority) -> Self {
        let mut store = Self {
            folder: tempfile::tempdir().unwrap(),
            clients: Vec::new(),
            peers: Vec::new(),
            members: Vec::new(),
        };
        fs::write(store.path("ca.crt"), authority.certificate().to_pem()).unwrap();
        fs::write(
            store.path("revoked.crl"),
            authority.revocation_file(&[], 0, now()).unwrap(),
        )
        .unwrap();
        // Held until all are chosen, so that none is chosen twice.
        let ports: Vec<TcpListener> = (0..4)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let mut ports = ports.iter().map(|port| port.local_addr().unwrap().port());
        for member in 0..2 {
            store.clients.push(ports.next().unwrap());
            store.peers.push(ports.next().unwrap());
            write(
                store.folder.path(),
                &format!("s{member}"),
                &hold(authority, &format!("server/s{member}"), now(), DAY),
            );
        }
        for member in 0..2 {
            store.members.push(store.member(member));
        }
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn member(&self, member: usize) -> Running {
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let cluster: Vec<String> = self
            .peers
            .iter()
            .enumerate()
            .map(|(m, port)| format!("s{m}={}", url(*port)))
            .collect();
        let name = format!("s{member}");
        let log = fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let file = |name: String| self.path(&name);
        let mut command = Command::new("/usr/bin/etcd");
        command
            .env_clear()
            .arg("--name")
            .arg(&name)
            .arg("--data-dir")
            .arg(self.path(&format!("{name}.data")));
        command.args([
            "--listen-client-urls",
            &url(self.clients[member]),
            "--advertise-client-urls",
            &url(self.clients[member]),
        ]);
        command.args([
            "--listen-peer-urls",
            &url(self.peers[member]),
            "--initial-advertise-peer-urls",
            &url(self.peers[member]),
        ]);
        command.args([
            "--initial-cluster",
            &cluster.join(","),
            "--initial-cluster-token",
            "test",
        ]);
        command.args([
            "--client-cert-auth",
            "--peer-client-cert-auth",
            "--peer-cert-allowed-cn",
            SERVER_COMMON_NAME,
        ]);
        command
            .arg("--trusted-ca-file")
            .arg(self.path("ca.crt"))
            .arg("--peer-trusted-ca-file")
            .arg(self.path("ca.crt"));
        for flag in ["", "peer-"] {
            command
                .arg(format!("--{flag}cert-file"))
                .arg(file(format!("{name}.crt")));
            command
                .arg(format!("--{flag}key-file"))
                .arg(file(format!("{name}.key")));
        }
        for flag in ["--client-crl-file", "--peer-crl-file"] {
            command.arg(flag).arg(self.path("revoked.crl"));
        }
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null());
        Running(command.spawn().unwrap())
    }

    fn log(&self, member: usize) -> String {
        fs::read_to_string(self.path(&format!("s{member}.log"))).unwrap_or_default()
    }

    fn etcdctl(&self, who: Option<&str>, arguments: &[&str]) -> Output {
        self.command(who).args(arguments).output().unwrap()
    }

    fn command(&self, who: Option<&str>) -> Command {
        let mut command = Command::new("/usr/bin/etcdctl");
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(format!("https://127.0.0.1:{}", self.clients[0]));
        command
            .arg("--cacert")
            .arg(self.path("ca.crt"))
            .args(["--dial-timeout", "2s", "--command-timeout", "3s"]);
        if let Some(who) = who {
            command
                .arg("--cert")
                .arg(self.path(&format!("{who}.crt")))
                .arg("--key")
                .arg(self.path(&format!("{who}.key")));
        }
        command
    }

    /// A watch that is open: it has heard a first write.
    fn watch(&self, who: &str, key: &str) -> Watch {
        let mut running = Running(
            self.command(Some(who))
                .args(["watch", key])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let (sender, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(running.0.stdout.take().unwrap());
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let watch = Watch {
            _running: running,
            lines,
        };
        let end = Instant::now() + Duration::from_secs(20);
        // Written again and again, until the watch is there to hear it.
        while !watch.hears("first", Duration::from_millis(200)) {
            assert!(Instant::now() < end && self.etcdctl(Some("node"), &["put", key, "first"]).status.success());
        }
        watch
    }

    fn wait_until_it_answers(&self, who: &str) {
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let answer = self.etcdctl(Some(who), &["put", "begun", "yes"]);
            if answer.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert!(Instant::now() < end, "{said}\n{}\n{}", self.log(0), self.log(1));
        }
    }
}

/// Asks a port over TLS as somebody: who answers, and what.
fn ask(trust: &Trust, held: Option<&Held>, authority: &Authority, port: u16) -> std::io::Result<(Certificate, String)> {
    let door = Door::new(trust.clone());
    if let Some(held) = held {
        door.show(&held.certificate, &held.key, authority.certificate())
            .unwrap();
    }
    let config = door
        .client(Peers::roles([Role::Server]), Arc::new(DefaultTimeProvider))
        .unwrap();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // Go closes without saying so after an answer that closes the connection.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        Err(error) => return Err(error),
    }
    let shown = peer(stream.conn.peer_certificates()).unwrap();
    Ok((shown, String::from_utf8_lossy(&answer).into_owned()))
}

#[test]
fn etcd_takes_our_certificates_for_peers_and_clients_and_refuses_all_others() {
    let authority = Authority::derived(&InstallToken::generate(now()).unwrap()).unwrap();
    let store = Store::start(&authority);
    let stranger = Authority::new(authority.certificate().cluster(), now()).unwrap();
    let node = hold(&authority, "node/n1", now(), DAY);
    write(store.folder.path(), "node", &node);
    write(
        store.folder.path(),
        "person",
        &hold(&authority, "controller/c1", now(), DAY),
    );
    write(store.folder.path(), "stranger", &hold(&stranger, "node/n1", now(), DAY));
    write(
        store.folder.path(),
        "expired",
        &hold(&authority, "node/n2", now().minus(3_600), 1_800),
    );

    store.wait_until_it_answers("node");
    let answer = store.etcdctl(Some("person"), &["get", "begun", "--print-value-only"]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "yes\n");
    let members = store.etcdctl(Some("node"), &["member", "list"]);
    assert_eq!(String::from_utf8_lossy(&members.stdout).matches("started").count(), 2);
    for refused in [None, Some("stranger"), Some("expired")] {
        let answer = store.etcdctl(refused, &["get", "begun"]);
        assert!(!answer.status.success(), "{refused:?} was let in");
    }

    // The peers' port: only servers, by the common name that they share.
    let trust = Trust::new(
        Bundle::of(authority.certificate().clone()),
        Revoked::none(authority.certificate().cluster()),
    )
    .unwrap();
    let server = hold(&authority, "server/s7", now(), DAY);
    let (shown, answer) = ask(&trust, Some(&server), &authority, store.peers[0]).unwrap();
    assert_eq!(shown.identity().who.name().as_str(), "s0");
    assert!(answer.contains("200 OK") && answer.contains("etcdserver"), "{answer}");
    for refused in [Some(&node), None] {
        assert!(ask(&trust, refused, &authority, store.peers[0]).is_err());
    }
    assert!(
        ask(&trust, Some(&node), &authority, store.clients[0])
            .unwrap()
            .1
            .contains("200 OK")
    );

    // A revoked node is refused from the next handshake on, others are not.
    let revoked = hold(&authority, "node/n3", now(), DAY);
    write(store.folder.path(), "revoked", &revoked);
    assert!(store.etcdctl(Some("revoked"), &["get", "begun"]).status.success());
    let watch = store.watch("revoked", "seen");
    let list = [(revoked.certificate.serial(), now())];
    fs::write(
        store.path("revoked.crl"),
        authority.revocation_file(&list, 1, now()).unwrap(),
    )
    .unwrap();
    assert!(!store.etcdctl(Some("revoked"), &["get", "begun"]).status.success());
    assert!(store.etcdctl(Some("node"), &["get", "begun"]).status.success());

    // But its open connection stays open: it hears of what is written afterwards.
    assert!(store.etcdctl(Some("node"), &["put", "seen", "still"]).status.success());
    assert!(watch.hears("still", Duration::from_secs(20)));
    drop(watch);
    // And without the file nobody is let in.
    let file = fs::read(store.path("revoked.crl")).unwrap();
    fs::remove_file(store.path("revoked.crl")).unwrap();
    assert!(!store.etcdctl(Some("node"), &["get", "begun"]).status.success());
    fs::write(store.path("revoked.crl"), file).unwrap();
    assert!(store.etcdctl(Some("node"), &["get", "begun"]).status.success());

    // What a rotation must know: etcd reads its own certificate again at every handshake, its authorities only at its start.
    let renewed = hold(&authority, "server/s0", now(), 2 * DAY);
    write(store.folder.path(), "s0", &renewed);
    let (shown, _) = ask(&trust, Some(&node), &authority, store.clients[0]).unwrap();
    assert_eq!(shown.fingerprint(), renewed.certificate.fingerprint());
    let both = authority.certificate().to_pem() + &stranger.certificate().to_pem();
    fs::write(store.path("ca.crt"), both).unwrap();
    assert!(!store.etcdctl(Some("stranger"), &["get", "begun"]).status.success());
    let mut store = store;
    store.members.remove(0);
    let again = store.member(0);
    store.members.insert(0, again);
    store.wait_until_it_answers("stranger");
}
