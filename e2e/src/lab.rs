//! Hosts, engines and stores of a test, on one machine: each host is a network namespace on a common bridge and a mount
//! namespace, with a machine id, a boot id and a Docker engine of its own; etcd members and controllers run on the bridge's own address.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::clean;
use crate::explain::explain;
use crate::process::{Place, Process, reeve, run, succeed};
use crate::wait::eventually;

/// A laboratory of hosts. Dropping it ends and removes all it made.
pub struct Lab {
    /// Its number: part of all its names and of its subnet.
    number: u32,
    pub hosts: Vec<Host>,
    /// The binary of what `start` starts.
    pub binary: PathBuf,
    processes: Vec<Process>,
    /// Endpoints of the stores, for what a failed test prints.
    stores: Mutex<Vec<String>>,
    dir: tempfile::TempDir,
}

/// One host: its namespaces and a Docker engine.
pub struct Host {
    pub name: String,
    pub place: Place,
    pub address: String,
    pub docker_host: String,
    pub dir: PathBuf,
    /// The binary of its agent and of `up`.
    pub binary: PathBuf,
    engine: Process,
    agent: Option<Process>,
}

/// Real etcd members on the lab's bridge.
pub struct Etcd {
    pub members: Vec<Process>,
    /// What `--etcd` takes.
    pub endpoints: String,
    specs: Vec<(Vec<String>, PathBuf)>,
}

fn ip(args: &str) {
    succeed(Command::new("ip").args(args.split_whitespace()));
}

impl Lab {
    /// A lab of `hosts` hosts called n1, n2, ..., each with the image `reeve/hello:1`.
    #[must_use]
    pub fn new(hosts: usize) -> Self {
        clean::sweep();
        let dir = tempfile::Builder::new()
            .prefix(clean::PREFIX)
            .tempdir()
            .expect("a temporary directory");
        let number = std::process::id() % 100_000;
        clean::claim(dir.path(), number);
        let mut lab = Self {
            number,
            hosts: Vec::new(),
            binary: reeve(),
            processes: Vec::new(),
            stores: Mutex::default(),
            dir,
        };
        let bridge = lab.bridge();
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {}/24 dev {bridge}", lab.address(254)));
        ip(&format!("link set {bridge} up"));
        // Where an engine of this machine filters what is bridged, hosts of a lab still reach each other.
        let _ = run(Command::new("iptables").args(clean::passage("-I", &bridge)));
        for index in 1..=hosts {
            lab.add_host(index);
        }
        for host in &lab.hosts {
            host.wait_for_engine();
            host.import_hello("reeve/hello:1");
        }
        lab
    }

    /// The bridge that all hosts are on.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("rb{}", self.number)
    }

    /// A host's port on it, by its place among the hosts.
    #[must_use]
    pub fn link(&self, at: usize) -> String {
        format!("rl{}n{}", self.number, at + 1)
    }

    /// Address `last` of the lab's subnet; 254 is the bridge's own, where stores and controllers listen.
    #[must_use]
    pub fn address(&self, last: u8) -> String {
        format!("10.{}.{}.{last}", 64 + self.number / 250 % 64, self.number % 250)
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn add_host(&mut self, index: usize) {
        let name = format!("n{index}");
        let netns = format!("rv{}n{index}", self.number);
        let address = self.address(u8::try_from(index).expect("a handful of hosts"));
        let (bridge, link) = (self.bridge(), format!("rl{}n{index}", self.number));
        ip(&format!("netns add {netns}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {netns}"));
        ip(&format!("link set {link} master {bridge} up"));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!("-n {netns} addr add {address}/24 dev eth0"));
        ip(&format!("-n {netns} link set eth0 up"));
        ip(&format!("-n {netns} route add default via {}", self.address(254)));
        let dir = self.dir().join(&name);
        std::fs::create_dir_all(&dir).expect("a directory per host");
        let docker_host = format!("unix://{}/docker.sock", dir.display());
        let place = Place {
            netns,
            mounts: dir.join("namespaces/mounts"),
        };
        boot(&place, &dir);
        let engine = start_engine(&name, &place, &dir, &docker_host);
        self.hosts.push(Host {
            name,
            place,
            address,
            docker_host,
            dir,
            binary: reeve(),
            engine,
            agent: None,
        });
    }

    /// Starts etcd members on the bridge, `count` of them, and waits until they answer.
    pub fn etcd(&self, count: usize) -> Etcd {
        let host = self.address(254);
        let peers: Vec<String> = (0..count)
            .map(|i| format!("m{i}=http://{host}:{}", 23800 + i))
            .collect();
        let endpoints: Vec<String> = (0..count).map(|i| format!("http://{host}:{}", 23790 + i)).collect();
        let mut members = Vec::new();
        let mut specs = Vec::new();
        for (i, client) in endpoints.iter().enumerate() {
            let peer = format!("http://{host}:{}", 23800 + i);
            let args: Vec<String> = [
                "--name",
                &format!("m{i}"),
                "--data-dir",
                &format!("{}/etcd{i}", self.dir().display()),
                "--listen-client-urls",
                client,
                "--advertise-client-urls",
                client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &peers.join(","),
                "--initial-cluster-token",
                &self.bridge(),
                "--initial-cluster-state",
                "new",
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ]
            .map(str::to_owned)
            .to_vec();
            let log = self.dir().join(format!("etcd{i}.log"));
            members.push(start_member(i, &args, &log));
            specs.push((args, log));
        }
        let etcd = Etcd {
            members,
            endpoints: endpoints.join(","),
            specs,
        };
        let known = self.stores.lock();
        known
            .unwrap_or_else(PoisonError::into_inner)
            .push(etcd.endpoints.clone());
        eventually("etcd answers", 30, || etcd.try_ctl(&["endpoint", "health"]).map(drop));
        etcd
    }

    /// Starts a real registry on the bridge and returns its `host:port`; engines take it without TLS.
    pub fn registry(&mut self) -> String {
        self.registry_with("")
    }

    /// As [`Lab::registry`], and it wants a user of this htpasswd file; it reads the file anew when it changes.
    pub fn guarded_registry(&mut self, htpasswd: &str) -> String {
        let path = self.file("htpasswd", htpasswd);
        self.registry_with(&format!("auth: {{htpasswd: {{realm: lab, path: {path}}}}}\n"))
    }

    fn registry_with(&mut self, more: &str) -> String {
        let address = format!("{}:5000", self.address(254));
        let root = self.dir().join("registry").display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '{address}'}}\n{more}"
        );
        let config = self.file("registry.yaml", &config);
        let log = self.dir().join("registry.log");
        self.processes.push(Process::start(
            "registry",
            None,
            Path::new("docker-registry"),
            &["serve", &config],
            &[],
            log,
        ));
        eventually("the registry answers", 20, || {
            let url = format!("http://{address}/v2/");
            let output = run(Command::new("curl").args([
                "-sS",
                "-o",
                "/dev/null",
                "--max-time",
                "2",
                "-w",
                "%{http_code}",
                &url,
            ]));
            let code = String::from_utf8_lossy(&output.stdout).into_owned();
            if ["200", "401"].contains(&code.trim()) {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
        address
    }

    /// Makes the store a cluster and starts its controller; the process's number.
    pub fn control(&mut self, etcd: &Etcd) -> usize {
        self.reeve_exits(&etcd.endpoints, 0, &["init"]);
        let listen = format!("{}:9464", self.address(254));
        let args = ["controller", "--etcd", &etcd.endpoints, "--metrics", &listen];
        self.start("controller", &args)
    }

    /// Starts a process of this lab outside all hosts (a controller, a server). It ends with the lab.
    pub fn start(&mut self, name: &str, args: &[&str]) -> usize {
        let log = self.dir().join(format!("{name}.log"));
        let data = self.dir().join("controller").display().to_string();
        let env = [("REEVE_DATA_DIR", data.as_str())];
        self.processes
            .push(Process::start(name, None, &self.binary, args, &env, log));
        self.processes.len() - 1
    }

    /// Starts a program beside the test that prints what it follows: `reeve` of this build or another such as `etcdctl`,
    /// with the store's endpoints in its environment. It ends when it is dropped.
    #[must_use]
    pub fn follow(&self, name: &str, program: &Path, args: &[&str], endpoints: &str) -> Process {
        let env = [
            ("REEVE_ETCD", endpoints),
            ("ETCDCTL_API", "3"),
            ("NO_COLOR", "1"),
            ("COLUMNS", "120"),
        ];
        Process::start(name, None, program, args, &env, self.dir().join(format!("{name}.log")))
    }

    /// A process by the number `start` gave.
    pub fn process(&mut self, index: usize) -> &mut Process {
        &mut self.processes[index]
    }

    /// Runs `reeve` from outside all hosts.
    #[must_use]
    pub fn reeve(&self, endpoints: &str, args: &[&str]) -> Output {
        run(Command::new(reeve())
            .args(args)
            .env("REEVE_ETCD", endpoints)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80")
            .env("HOME", self.dir()))
    }

    /// As [`Lab::reeve`], and it must exit with `code`; returns what it printed, errors after output.
    pub fn reeve_exits(&self, endpoints: &str, code: i32, args: &[&str]) -> String {
        let output = self.reeve(endpoints, args);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "reeve {args:?} said:\n{text}");
        text
    }

    /// Writes a file into the lab's directory and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir().join(name);
        std::fs::write(&path, text).expect("a file in the lab's directory");
        path.display().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for endpoints in self.stores.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                explain(None, endpoints);
            }
            // Their logs go before they do.
            for host in &self.hosts {
                host.engine.tell();
            }
        }
        // Agents and controllers first, so that nothing repairs what is being taken away. Engines need no good order:
        // nothing of them is kept.
        for host in &mut self.hosts {
            host.agent = None;
        }
        self.processes.clear();
        clean::wipe(self.dir.path(), self.number);
    }
}

/// Gives the host its view of the file system, with a machine id, a boot id, a memory and links' sockets that no
/// other host has. Its engine and agents share it, as they do on a real one; what they mount is not seen outside.
fn boot(place: &Place, dir: &Path) {
    let own = dir.join("namespaces");
    std::fs::create_dir_all(&own).expect("a directory per host");
    for name in ["mounts", "machine-id", "boot-id"] {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel draws an id");
        let id = if name == "machine-id" {
            uuid.replace('-', "")
        } else {
            uuid
        };
        std::fs::write(own.join(name), id).expect("a file in the host's directory");
    }
    // A namespace can be kept on a private mount only.
    let own = own.display();
    succeed(Command::new("mount").args(["--bind", &own.to_string(), &own.to_string()]));
    succeed(Command::new("mount").args(["--make-private", &own.to_string()]));
    let script = format!(
        "mount --bind {own}/machine-id /etc/machine-id && mount --bind {own}/boot-id /proc/sys/kernel/random/boot_id && mount -t tmpfs tmpfs /dev/shm && mkdir -p /run/wireguard && mount -t tmpfs tmpfs /run/wireguard"
    );
    succeed(
        Command::new("unshare")
            .arg(format!("--mount={}", place.mounts.display()))
            .args(["sh", "-c", &script]),
    );
}

fn start_engine(name: &str, place: &Place, dir: &Path, docker_host: &str) -> Process {
    let path = |part: &str| format!("{}/{part}", dir.display());
    let _ = std::fs::remove_file(path("engine.pid"));
    Process::start(
        &format!("engine of {name}"),
        Some(place),
        Path::new("dockerd"),
        &[
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("engine.pid"),
            "-H",
            docker_host,
            "--shutdown-timeout",
            "1",
            "--insecure-registry",
            "10.0.0.0/8",
        ],
        &[("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")],
        dir.join("engine.log"),
    )
}

impl Host {
    /// A `docker` command on this host's engine.
    #[must_use]
    pub fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(args).env("DOCKER_HOST", &self.docker_host);
        command
    }

    /// Runs `docker` on this host's engine; it must succeed.
    pub fn docker(&self, args: &[&str]) -> String {
        succeed(&mut self.docker_command(args)).trim().to_owned()
    }

    /// What the engine says of a container, or why it says nothing.
    pub fn inspect(&self, container: &str) -> Result<Value, String> {
        let output = run(&mut self.docker_command(&["inspect", "--type", "container", container]));
        let list: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        list.get(0)
            .cloned()
            .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Names of the containers that run here, sorted.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .docker(&["ps", "--format", "{{.Names}}"])
            .lines()
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// Ids of all containers by name, running or not, sorted by name.
    #[must_use]
    pub fn containers(&self) -> Vec<(String, String)> {
        let text = self.docker(&["ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.ID}}"]);
        let mut pairs: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect();
        pairs.sort();
        pairs
    }

    fn wait_for_engine(&self) {
        eventually(&format!("the engine of {} answers", self.name), 30, || {
            let output = run(&mut self.docker_command(&["version"]));
            if output.status.success() {
                Ok(())
            } else {
                Err(self.engine.output().lines().last().unwrap_or("").to_owned())
            }
        });
    }

    /// Makes the busybox image under this name, without a registry.
    pub fn import_hello(&self, tag: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/hello-image.sh");
        succeed(Command::new(script).arg(tag).env("DOCKER_HOST", &self.docker_host));
    }

    /// Runs a command in this host's network; returns what it printed where it succeeds.
    pub fn within(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let output = run(self.place.command(Path::new(program)).args(args));
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ))
        }
    }

    /// Where the test finds what this host has at a path: its mounts are its own. While its engine runs.
    #[must_use]
    pub fn view(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.engine.pid()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Asks a URL in this host's network.
    pub fn http(&self, url: &str) -> Result<String, String> {
        self.within("curl", &["-fsS", "--max-time", "2", url])
    }

    /// Starts this host's agent.
    pub fn start_agent(&mut self, endpoints: &str, more: &[&str]) {
        let own = self.dir.join("agent").display().to_string();
        let (docker, name) = (self.docker_host.clone(), self.name.clone());
        let listen = format!("{}:9465", self.address);
        let mut args = vec![
            "agent",
            "--etcd",
            endpoints,
            "--node",
            &name,
            "--docker",
            &docker,
            "--metrics",
            &listen,
        ];
        if !more.contains(&"--data-dir") {
            args.extend(["--data-dir", &own]);
        }
        args.extend_from_slice(more);
        self.agent = Some(Process::start(
            &format!("agent of {name}"),
            Some(&self.place),
            &self.binary,
            &args,
            &[],
            self.dir.join("agent.log"),
        ));
    }

    /// This host's agent.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the test started this agent")
    }

    /// Cuts the host off from all others, or joins it again.
    pub fn cut(&self, cut: bool) {
        let link = self.place.netns.replacen("rv", "rl", 1);
        ip(&format!("link set {link} {}", if cut { "down" } else { "up" }));
    }

    /// Runs a `reeve up` on this host: everything in one process, on the embedded store.
    #[must_use]
    pub fn up(&self, more: &[&str]) -> Process {
        let data = self.dir.join("up").display().to_string();
        let mut args = vec![
            "up",
            "--data-dir",
            &data,
            "--docker",
            &self.docker_host,
            "--node",
            &self.name,
        ];
        args.extend_from_slice(more);
        let mut up = Process::start(
            "reeve up",
            Some(&self.place),
            &self.binary,
            &args,
            &[],
            self.dir.join("up.log"),
        );
        up.explain_with(Some(&self.place), "http://127.0.0.1:2379");
        up
    }

    /// Stops the engine with a signal and waits until it is gone: TERM takes its containers along, KILL leaves them behind.
    pub fn stop_engine(&mut self, signal: &str) {
        self.engine.signal(signal);
        let engine = &mut self.engine;
        eventually("the engine ends", 30, || {
            if engine.alive() { Err("it runs".into()) } else { Ok(()) }
        });
    }

    /// Starts the engine again and waits until it answers.
    pub fn start_engine(&mut self) {
        self.engine = start_engine(&self.name, &self.place, &self.dir, &self.docker_host);
        self.wait_for_engine();
    }

    /// Id and start of each container, sorted by name: what a restart would change.
    #[must_use]
    pub fn lives(&self) -> Vec<(String, String, String)> {
        let started = |id: &str| self.inspect(id).map(|c| c["State"]["StartedAt"].to_string());
        let all = self.containers().into_iter();
        all.map(|(name, id)| {
            let since = started(&id).unwrap_or_default();
            (name, id, since)
        })
        .collect()
    }

    /// Runs `reeve` in this host's network.
    #[must_use]
    pub fn reeve(&self, args: &[&str]) -> Output {
        run(self
            .place
            .command(&reeve())
            .args(args)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80")
            .env("REEVE_ETCD", "http://127.0.0.1:2379"))
    }

    /// As [`Host::reeve`], and it must exit with `code`; returns what it printed, errors after output.
    pub fn reeve_exits(&self, code: i32, args: &[&str]) -> String {
        let output = self.reeve(args);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "reeve {args:?} said:\n{text}");
        text
    }
}

fn start_member(index: usize, args: &[String], log: &Path) -> Process {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::start(
        &format!("etcd {index}"),
        None,
        Path::new("etcd"),
        &args,
        &[],
        log.to_owned(),
    )
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            explain(None, &self.endpoints);
        }
    }
}

impl Etcd {
    /// Runs `etcdctl`; Err with what it said when it fails.
    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints])
            .args(args);
        let output = run(&mut command);
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Runs `etcdctl`, which must succeed.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args)
            .unwrap_or_else(|error| panic!("etcdctl {args:?}: {error}"))
    }

    /// Starts a member again that was killed.
    pub fn restart(&mut self, index: usize) {
        let (args, log) = &self.specs[index];
        self.members[index] = start_member(index, args, log);
    }

    /// The store's revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        let text = self.ctl(&["get", "/nothing", "-w", "json"]);
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value
            .pointer("/header/revision")
            .and_then(Value::as_i64)
            .expect("etcd's header has a revision")
    }
}
