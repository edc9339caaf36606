//! A real Docker engine for a test, and what goes with it: an image without a registry, a registry on loopback, a registry
//! that only fails. Self-contained: other tests may include this file. Everything started here is ended on drop, also when
//! the test panics, and nothing else is touched: the engine is always the test's own.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The image every engine has: `/bin/sh` and busybox's tools.
pub const IMAGE: &str = "reeve.test/busybox:1";

/// Waits until `ready` says so; panics with what it waited for.
pub fn wait(what: &str, most: Duration, mut ready: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < most, "waited {most:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with the test.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("start {command:?}: {error}")),
        )
    }
    pub fn id(&self) -> u32 {
        self.0.id()
    }
    pub fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
    fn signal(&self, signal: &str) {
        let _sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("-TERM");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// A dockerd of the test's own, in a directory of its own.
pub struct Engine {
    process: Option<Process>,
    directory: PathBuf,
    /// Engines of one network namespace overwrite each other's packet filter while they start: one at a time.
    _turn: std::fs::File,
}

impl Engine {
    /// Starts one, with [`IMAGE`] imported.
    pub fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("reeve-engine-{}-{}", std::process::id(), unique()));
        let turn = std::fs::File::create(std::env::temp_dir().join("reeve-engine.lock")).expect("a lock file");
        turn.lock().expect("the turn of this engine");
        std::fs::create_dir_all(&directory).expect("a directory for the engine");
        let mut engine = Self {
            process: None,
            directory,
            _turn: turn,
        };
        engine.run();
        engine.import(IMAGE);
        engine
    }

    fn run(&mut self) {
        let at = |name: &str| self.directory.join(name);
        let log = std::fs::File::create(at("dockerd.log")).expect("a log file");
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("-H")
            .arg(self.address())
            // Engines side by side must not share the default bridge; the tests use networks of their own.
            .arg("--bridge=none")
            .arg("--insecure-registry=127.0.0.0/8")
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.process = Some(Process::start(&mut command));
        let begun = Instant::now();
        while self.docker(&["version"]).is_err() {
            let log = || std::fs::read_to_string(at("dockerd.log")).unwrap_or_default();
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "dockerd does not answer: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `unix:///...`.
    pub fn address(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.display())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The engine's own client; its output, or what it said on failing.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker")
            .arg("-H")
            .arg(self.address())
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// Makes a small image under this name.
    pub fn import(&self, image: &str) {
        let tree = self.directory.join("tree");
        if !tree.exists() {
            for name in ["bin", "tmp", "etc", "data", "www"] {
                std::fs::create_dir_all(tree.join(name)).expect("the tree of an image");
            }
            std::fs::copy("/usr/bin/busybox", tree.join("bin/busybox"))
                .or_else(|_| std::fs::copy("/bin/busybox", tree.join("bin/busybox")))
                .expect("busybox-static is installed");
            for tool in [
                "sh", "sleep", "httpd", "wget", "nc", "cat", "echo", "true", "false", "id", "hostname", "nslookup",
                "kill", "ls", "touch",
            ] {
                std::os::unix::fs::symlink("busybox", tree.join("bin").join(tool)).expect("a link");
            }
            std::fs::write(
                tree.join("etc/passwd"),
                "root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n",
            )
            .expect("passwd");
            std::fs::write(tree.join("etc/group"), "root:x:0:\nweb:x:1000:\naudio:x:29:\n").expect("group");
        }
        let mut tar = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar");
        let out = tar.stdout.take().expect("tar's output");
        let import = Command::new("docker")
            .arg("-H")
            .arg(self.address())
            .args(["import", "-", image])
            .stdin(out)
            .output()
            .expect("docker import");
        assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
        let _ended = tar.wait();
    }

    /// `kill -9`, and a new start on the same data.
    pub fn crash_and_return(&mut self) {
        if let Some(process) = &self.process {
            process.signal("-KILL");
        }
        self.process = None;
        // Its containerd dies with it, a moment later: a new engine must not take that for its own.
        let file = self.directory.join("exec/containerd/containerd.pid");
        let containerd = std::fs::read_to_string(&file).unwrap_or_default();
        wait("containerd to end", Duration::from_secs(20), || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", containerd.trim())).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
        });
        for left in [file, self.directory.join("pid")] {
            let _gone = std::fs::remove_file(left);
        }
        self.run();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(ids) = self.docker(&["ps", "-aq"]) {
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let _removed = self.docker(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
        if let Ok(ids) = self.docker(&["network", "ls", "-q", "--filter", "type=custom"]) {
            for id in ids.split_whitespace() {
                let _removed = self.docker(&["network", "rm", id]);
            }
        }
        self.process = None;
        end_of(&self.directory);
        // Mounts of containers that could not be removed would keep the directory.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let prefix = self.directory.display().to_string();
        let mut ours: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .filter(|path| path.starts_with(&prefix))
            .collect();
        ours.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in ours {
            let _unmounted = Command::new("umount")
                .arg("-l")
                .arg(path)
                .stderr(Stdio::null())
                .status();
        }
        let _removed = std::fs::remove_dir_all(&self.directory);
    }
}

/// Ends what an engine that crashed left running: processes that were started with its directory in their arguments
/// (its containerd, the shims), and the shims' own children, which are its containers.
fn end_of(directory: &Path) {
    let path = directory.display().to_string();
    let processes = || {
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    };
    let ours: Vec<u32> = processes()
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&path)))
        .filter(|pid| *pid != std::process::id())
        .collect();
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let children: Vec<u32> = processes()
        .filter(|pid| parent(pid).is_some_and(|parent| ours.contains(&parent)))
        .collect();
    for pid in children.iter().chain(&ours) {
        let _killed = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .stderr(Stdio::null())
            .status();
    }
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A free port of loopback.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A real registry on loopback, which wants the user `reeve` and the password `secret`.
pub struct Registry {
    _process: Process,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the registry");
        let port = free_port();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(
            at("htpasswd"),
            "reeve:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
        )
        .expect("htpasswd");
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"127.0.0.1:{port}\" }}\nauth: {{ htpasswd: {{ realm: reeve, path: {} }} }}\n",
            at("data").display(),
            at("htpasswd").display()
        );
        std::fs::write(at("config.yml"), config).expect("the registry's configuration");
        let log = std::fs::File::create(at("log")).expect("a log file");
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        let process = Process::start(&mut command);
        wait("the registry to listen", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            _process: process,
            port,
            _directory: directory,
        }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes an image of `engine` as `path` (`team/app:1`); the reference to pull.
    pub fn push(&self, engine: &Engine, image: &str, path: &str) -> String {
        let reference = format!("{}/{path}", self.host());
        let config = engine.directory().join("push");
        let config = config.to_str().expect("a path");
        let login = Command::new("docker")
            .args([
                "--config",
                config,
                "-H",
                &engine.address(),
                "login",
                "-u",
                "reeve",
                "-p",
                "secret",
                &self.host(),
            ])
            .output()
            .expect("docker login");
        assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
        engine.docker(&["tag", image, &reference]).expect("tag");
        engine.docker(&["--config", config, "push", &reference]).expect("push");
        engine.docker(&["rmi", &reference]).expect("untag");
        reference
    }
}
