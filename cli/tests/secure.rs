//! The binary against an etcd that speaks TLS and lets in clients with a certificate of its authority only: by flags, by
//! variables, and with everything that can be wrong. etcd is a real one, in PATH; a missing one fails the test.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A certificate for loopback, and its key.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("parameters");
        (
            params.signed_by(&key, &self.0).expect("a certificate").pem(),
            key.serialize_pem(),
        )
    }
}

/// Ended with the test, whatever its end.
struct Running(Child, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.1).unwrap_or_default());
        }
    }
}

impl Running {
    /// Asks it to end, as systemd does; what it has logged.
    fn end(mut self) -> String {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status();
        assert!(asked.expect("kill runs").success());
        let status = self.0.wait().expect("it ends");
        let log = fs::read_to_string(&self.1).expect("a log");
        assert!(status.success(), "{status}: {log}");
        log
    }
}

struct Lab {
    dir: TempDir,
    url: String,
    _etcd: Running,
}

impl Lab {
    fn new() -> Self {
        Self::with_etcd(&[])
    }

    /// With more arguments for etcd.
    fn with_etcd(more: &[&str]) -> Self {
        let lab = Self::empty(more);
        lab.until(&["init"]);
        lab
    }

    /// A store that answers, and holds no cluster.
    fn empty(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ours, others) = (Authority::new(), Authority::new());
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
        write("ca.pem", &ours.0.pem());
        write("other-ca.pem", &others.0.pem());
        for (name, authority) in [("server", &ours), ("client", &ours), ("other", &others)] {
            let (certificate, key) = authority.issue();
            write(&format!("{name}.pem"), &certificate);
            write(&format!("{name}.key"), &key);
        }
        let bound = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [client, peer] = bound.map(|bound| bound.local_addr().expect("an address").port());
        let url = format!("https://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let place = |name: &str| dir.path().join(name).display().to_string();
        let log = dir.path().join("etcd.log");
        let etcd = Command::new("etcd")
            .args([
                "--name",
                "m0",
                "--data-dir",
                &place("etcd"),
                "--logger",
                "zap",
                "--log-level",
                "error",
            ])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m0={peer}")])
            .args(["--cert-file", &place("server.pem"), "--key-file", &place("server.key")])
            .args(["--client-cert-auth", "--trusted-ca-file", &place("ca.pem")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("etcd starts: install Debian's etcd-server");
        let lab = Self {
            dir,
            url,
            _etcd: Running(etcd, log),
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !lab.etcdctl(&["endpoint", "health"]).status.success() {
            assert!(Instant::now() < deadline, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        lab
    }

    fn etcdctl(&self, args: &[&str]) -> Output {
        let (ca, cert, key) = (self.place("ca.pem"), self.place("client.pem"), self.place("client.key"));
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([
                "--endpoints",
                &self.url,
                "--cacert",
                &ca,
                "--cert",
                &cert,
                "--key",
                &key,
            ])
            .args(args)
            .output()
            .expect("etcdctl starts: install Debian's etcd-client")
    }

    fn place(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The verb with nothing but what the arguments and this directory say.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
        command
            .args(args)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80")
            .env("HOME", self.dir.path());
        for name in [
            "REEVE_ETCD",
            "REEVE_CA",
            "REEVE_CERT",
            "REEVE_KEY",
            "REEVE_PREFIX",
            "REEVE_NAMESPACE",
            "REEVE_DATA_DIR",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// With flags.
    fn flags(&self, ca: &str, identity: Option<&str>) -> Vec<String> {
        let mut flags = vec!["--etcd".to_owned(), self.url.clone(), "--ca".to_owned(), self.place(ca)];
        if let Some(name) = identity {
            flags.extend(["--cert".to_owned(), self.place(&format!("{name}.pem"))]);
            flags.extend(["--key".to_owned(), self.place(&format!("{name}.key"))]);
        }
        flags
    }

    fn with(&self, flags: &[String], args: &[&str]) -> Output {
        self.command(args).args(flags).output().expect("reeve starts")
    }

    fn right(&self, args: &[&str]) -> Output {
        self.with(&self.flags("ca.pem", Some("client")), args)
    }

    /// Until it ends well; panics with its last words.
    fn until(&self, args: &[&str]) -> String {
        self.until_says(args, "")
    }

    fn until_says(&self, args: &[&str], word: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.right(args);
            let text = words(&output);
            if output.status.success() && text.contains(word) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "reeve {args:?} does not say `{word}`: {text}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn start(&self, name: &str, args: &[&str]) -> Running {
        let log = self.dir.path().join(format!("{name}.log"));
        let child = self
            .command(args)
            .args(self.flags("ca.pem", Some("client")))
            .env("REEVE_DATA_DIR", self.dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("reeve starts");
        Running(child, log)
    }
}

fn words(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{err}", String::from_utf8_lossy(&output.stdout))
}

const WEB: &str = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec: {container: {image: 'nginx:1'}}\n";

#[test]
fn verbs_controller_and_agent_reach_a_store_behind_mutual_tls() {
    let lab = Lab::new();
    // By flags, and by variables.
    let file = lab.place("web.yaml");
    fs::write(&file, WEB).expect("a file");
    let output = lab.right(&["apply", "-f", &file, "--no-wait"]);
    assert!(output.status.success(), "{}", words(&output));
    let output = lab
        .command(&["get", "services", "-o", "name"])
        .env("REEVE_ETCD", &lab.url)
        .env("REEVE_CA", lab.place("ca.pem"))
        .env("REEVE_CERT", lab.place("client.pem"))
        .env("REEVE_KEY", lab.place("client.key"))
        .output()
        .expect("reeve starts");
    assert_eq!(words(&output), "service/web\n");

    // etcd's own program is told where the store is, whatever the shell says of another; its end is ours.
    let etcdctl = |args: &[&str]| {
        let mut command = lab.command(&[]);
        command
            .args(lab.flags("ca.pem", Some("client")))
            .args(["admin", "etcdctl", "--"]);
        let other = command.args(args).env("ETCDCTL_ENDPOINTS", "http://127.0.0.1:1");
        other
            .env("ETCDCTL_USER", "nobody:nothing")
            .output()
            .expect("reeve starts")
    };
    let output = etcdctl(&["get", "--keys-only", "--prefix", "/reeve/"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("/web"), "{}", words(&output));
    let output = etcdctl(&["no-such-verb"]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    let audit = words(&lab.right(&["audit"]));
    assert!(audit.contains("admin etcdctl") && audit.contains("get"), "{audit}");
    let mut without = lab.command(&["admin", "etcdctl", "version"]);
    let output = without.env("PATH", lab.dir.path()).output().expect("reeve starts");
    assert_eq!(output.status.code(), Some(6));
    assert!(words(&output).contains("apt install etcd-client"), "{}", words(&output));

    // A controller leads; an agent waits for an engine that is not there, and its node is known meanwhile or not, but
    // it must not be the store that stops it.
    let controller = lab.start("controller", &["controller", "--metrics", "127.0.0.1:0"]);
    lab.until_says(&["status", "-o", "json"], "\"leader\": \"");
    lab.until_says(&["get", "services"], "NoNodeFits");
    let engine = format!("unix://{}", lab.place("no.sock"));
    let data = lab.place("agent");
    let args = [
        "agent",
        "--node",
        "n1",
        "--metrics",
        "127.0.0.1:0",
        "--docker",
        &engine,
        "--data-dir",
        &data,
    ];
    let agent = lab.start("agent", &args);
    lab.until_says(&["get", "nodes"], "n1");
    let told = agent.end();
    assert_eq!(told.matches("shutting down").count(), 1, "{told}");
    assert!(!told.contains("lost"), "a shutdown is no loss: {told}");
    drop(controller);
}

#[test]
fn what_is_wrong_with_tls_is_said_in_one_sentence_and_a_remedy() {
    let lab = Lab::new();
    let plain = lab.url.replace("https", "http");
    let plain = vec!["--etcd".to_owned(), plain];
    for (what, flags, remedy) in [
        ("no client certificate", lab.flags("ca.pem", None), "--cert"),
        (
            "a certificate of another authority",
            lab.flags("ca.pem", Some("other")),
            "other.pem",
        ),
        (
            "a server of another authority",
            lab.flags("other-ca.pem", Some("client")),
            "CA",
        ),
        ("http:// where TLS is spoken", plain, "https://"),
    ] {
        let began = Instant::now();
        let output = lab.with(&flags, &["get", "services"]);
        let text = words(&output);
        assert_eq!(output.status.code(), Some(3), "{what}: {text}");
        assert_eq!(text.lines().count(), 2, "{what}: {text}");
        assert!(
            text.starts_with("error: ") && text.contains("\nhelp: "),
            "{what}: {text}"
        );
        assert!(text.lines().all(|line| line.len() < 240), "{what}: {text}");
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{what}: took {:?}",
            began.elapsed()
        );
        assert!(
            text.lines().last().is_some_and(|help| help.contains(remedy)),
            "{what}: {text}"
        );
    }
}

#[test]
fn a_store_that_is_full_is_named_as_what_is_waited_for() {
    let lab = Lab::with_etcd(&["--quota-backend-bytes", "1000000"]);
    let file = lab.place("web.yaml");
    fs::write(&file, WEB).expect("a file");
    let apply = lab
        .command(&["apply", "-f", &file, "--timeout", "8s"])
        .args(lab.flags("ca.pem", Some("client")))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reeve starts");
    lab.until_says(&["get", "services", "-o", "name"], "service/web");
    let mut filled = false;
    for number in 0..40 {
        let put = lab.etcdctl(&["put", &format!("ballast/{number}"), &"x".repeat(100_000)]);
        filled |= String::from_utf8_lossy(&put.stderr).contains("database space exceeded");
    }
    assert!(filled, "etcd takes more than its quota");
    let output = apply.wait_with_output().expect("it ends");
    let text = words(&output);
    assert_eq!(output.status.code(), Some(124), "{text}");
    assert!(
        text.contains("waits for the controller; the store is full (NOSPACE)"),
        "{text}"
    );
    assert!(
        text.contains("help: free space on the disk of the store") && text.contains("alarm disarm"),
        "{text}"
    );
}

#[test]
fn a_cluster_moves_between_stores_of_different_authorities() {
    let (from, to) = (Lab::new(), Lab::empty(&[]));
    let file = from.place("web.yaml");
    fs::write(&file, WEB).expect("a file");
    let output = from.right(&["apply", "-f", &file, "--no-wait"]);
    assert!(output.status.success(), "{}", words(&output));
    let migrate = |more: &[&str]| {
        let args: Vec<&str> = ["admin", "migrate-store", "--yes", "--to", &to.url]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let output = from.right(&args);
        (output.status.code(), words(&output))
    };
    let (ca, cert, key) = (to.place("ca.pem"), to.place("client.pem"), to.place("client.key"));
    // The flags of the one store say nothing of the other.
    let (own_ca, other) = (from.place("ca.pem"), (to.place("other.pem"), to.place("other.key")));
    let nowhere = to.place("nowhere.pem");
    for (what, more, exit, word) in [
        ("nothing of it", vec![], 2, "needs --to-ca"),
        (
            "the first store's authority",
            vec!["--to-ca", &*own_ca, "--to-cert", &*cert, "--to-key", &*key],
            3,
            "--to-ca",
        ),
        ("no client certificate", vec!["--to-ca", &*ca], 3, "--to-cert"),
        (
            "a client of another authority",
            vec!["--to-ca", &*ca, "--to-cert", &*other.0, "--to-key", &*other.1],
            3,
            "other.pem",
        ),
        (
            "a certificate without its key",
            vec!["--to-ca", &*ca, "--to-cert", &*cert],
            2,
            "--to-key",
        ),
        (
            "a file that is not there",
            vec!["--to-ca", &*nowhere, "--to-cert", &*cert, "--to-key", &*key],
            2,
            "--to-ca",
        ),
    ] {
        let (code, text) = migrate(&more);
        assert_eq!(code, Some(exit), "{what}: {text}");
        assert!(text.contains(word), "{what}: {text}");
        let output = from.right(&["get", "services", "-o", "name"]);
        assert_eq!(words(&output), "service/web\n", "{what}: the cluster stays where it is");
    }
    let (code, text) = migrate(&["--to-ca", &ca, "--to-cert", &cert, "--to-key", &key]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains(&format!(
            "reeve controller --etcd {} --ca {ca} --cert {cert} --key {key}",
            to.url
        )),
        "{text}"
    );
    let output = from.right(&["get", "services"]);
    let text = words(&output);
    assert!(
        output.status.code() == Some(6) && text.contains("has moved to") && text.contains(&to.url),
        "{text}"
    );
    assert_eq!(words(&to.right(&["get", "services", "-o", "name"])), "service/web\n");
    let controller = to.start("controller", &["controller", "--metrics", "127.0.0.1:0"]);
    to.until_says(&["get", "services"], "NoNodeFits");
    drop(controller);
}
