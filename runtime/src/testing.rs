//! Real etcd processes for tests, on loopback in a temporary directory, killed on drop. The binary `etcd` must be in
//! PATH: a missing one fails the test with the remedy, for a test that is skipped proves nothing.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::etcd::{EtcdOptions, EtcdStore};

/// A running etcd cluster of one or more members.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// Held for its files; last, so that the members are gone before it.
    _dir: TempDir,
}

#[derive(Debug)]
struct Member {
    url: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Etcd {
    /// Starts so many members and waits until each answers; panics with the remedy or etcd's last words.
    pub async fn start(members: usize) -> Self {
        Self::start_with(members, &[]).await
    }

    /// The same with more arguments for each member.
    pub async fn start_with(members: usize, more: &[&str]) -> Self {
        // Another process may take a port between our look and etcd's: then all is tried again.
        let mut last = String::new();
        for _ in 0..5 {
            match Self::try_start(members, more).await {
                Ok(etcd) => return etcd,
                Err(words) => last = words,
            }
        }
        panic!("etcd does not start: {last}");
    }

    async fn try_start(count: usize, more: &[&str]) -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("reeve-etcd-")
            .tempdir()
            .map_err(|e| e.to_string())?;
        let ports = free_ports(count * 2)?;
        let (clients, peers) = ports.split_at(count);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(n, port)| format!("m{n}={}", url(port)))
            .collect();
        let mut members = Vec::with_capacity(count);
        for n in 0..count {
            let mut arguments = Vec::new();
            let data = dir.path().join(format!("m{n}"));
            let pairs = [
                ("--name", format!("m{n}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", url(&clients[n])),
                ("--advertise-client-urls", url(&clients[n])),
                ("--listen-peer-urls", url(&peers[n])),
                ("--initial-advertise-peer-urls", url(&peers[n])),
                ("--initial-cluster", cluster.join(",")),
                ("--initial-cluster-token", dir.path().display().to_string()),
                ("--logger", "zap".to_owned()),
                ("--log-level", "error".to_owned()),
            ];
            for (flag, value) in pairs {
                arguments.extend([flag.to_owned(), value]);
            }
            arguments.extend(more.iter().map(|&flag| flag.to_owned()));
            let log = dir.path().join(format!("m{n}.log"));
            let child = spawn(&arguments, &log)?;
            members.push(Member {
                url: url(&clients[n]),
                arguments,
                log,
                child,
            });
        }
        let mut etcd = Self { members, _dir: dir };
        for n in 0..count {
            etcd.until_up(n).await?;
        }
        Ok(etcd)
    }

    /// The client URLs, joined with commas as `--etcd` takes them.
    pub fn endpoints(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(|m| m.url.as_str()).collect();
        urls.join(",")
    }

    /// The client URL of one member.
    pub fn url(&self, member: usize) -> &str {
        &self.members[member].url
    }

    /// A store over all members.
    pub async fn store(&self) -> EtcdStore {
        let connected = EtcdStore::connect(EtcdOptions::new(&self.endpoints())).await;
        connected.expect("an etcd that was waited for takes a connection")
    }

    /// One number of the first member's metrics.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        self.metric_of(0, series).await
    }

    /// One number of a member's metrics.
    pub async fn metric_of(&self, member: usize, series: &str) -> Option<f64> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.url(member).trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.trim().parse().ok()
    }

    /// Stops a member as if its machine hung (SIGSTOP).
    pub fn pause(&mut self, member: usize) {
        self.signal(member, Signal::STOP);
    }

    /// Lets a paused member go on.
    pub fn resume(&mut self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    /// Kills a member (SIGKILL); its data stays.
    pub fn kill(&mut self, member: usize) {
        let child = &mut self.members[member].child;
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts a killed member on its data again, and waits until it answers.
    pub async fn restart(&mut self, member: usize) {
        let started = spawn(&self.members[member].arguments, &self.members[member].log);
        self.members[member].child = started.expect("what ran before runs again");
        self.until_up(member)
            .await
            .expect("a member comes back on its own data");
    }

    fn signal(&self, member: usize, signal: Signal) {
        let id = i32::try_from(self.members[member].child.id())
            .ok()
            .and_then(Pid::from_raw);
        let _ = id.map(|id| kill_process(id, signal));
    }

    async fn until_up(&mut self, n: usize) -> Result<(), String> {
        let begun = Instant::now();
        let member = &mut self.members[n];
        let mut options = EtcdOptions::new(&member.url);
        options.deadline = Duration::from_secs(2);
        loop {
            if let Ok(store) = EtcdStore::connect(options.clone()).await
                && crate::store::Store::get(&store, b"up").await.is_ok()
            {
                return Ok(());
            }
            let words = || {
                let log = std::fs::read_to_string(&member.log).unwrap_or_default();
                log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
            };
            if let Ok(Some(status)) = member.child.try_wait() {
                return Err(format!("it ended with {status}: {}", words()));
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(format!("no answer within 60 s: {}", words()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String], log: &PathBuf) -> Result<Child, String> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|e| e.to_string())?;
    let errors = output.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new("etcd");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    command.spawn().map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        assert!(
            !missing,
            "`etcd` is not in PATH: install it (Debian: apt-get install etcd-server)"
        );
        error.to_string()
    })
}

/// Ports that were free a moment ago, all different.
fn free_ports(count: usize) -> Result<Vec<u16>, String> {
    let bind = || TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string());
    let held: Vec<TcpListener> = (0..count).map(|_| bind()).collect::<Result<_, _>>()?;
    held.iter()
        .map(|l| l.local_addr().map(|a| a.port()).map_err(|e| e.to_string()))
        .collect()
}
