//! One member of the store: a real etcd, run and watched over by `reeve server`. Members demand certificates of each other
//! (only servers' count between them) and of their clients, of which each has one alone: its front. The process is started again when it ends, with a growing delay;
//! one that an earlier life of ours left behind is ended first, for two cannot share a directory.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use trust::identity::SERVER_COMMON_NAME;

use crate::front::{MEMBER_CA, MEMBER_CERTIFICATE, MEMBER_KEY};
use crate::keep::Keep;
use crate::seeds::{Host, Seeds};
use crate::{CLIENT_PORT, MEMBER_PORT, PEER_PORT};

/// How a member begins where its disk is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initial {
    /// With all others, as a new store.
    New,
    /// In a store that is: its members now, `name=url` each.
    Joining(Vec<String>),
}

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    pub program: PathBuf,
    pub me: Host,
    pub seeds: Seeds,
    /// By which members of one store know each other.
    pub store_token: String,
    /// Where the store's data is.
    pub data: PathBuf,
    /// Where certificates are: `ca.crt`, `server.crt`, `server.key` for its peers, `front.*` for its front.
    pub keep: PathBuf,
    pub initial: Initial,
}

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LAST_DELAY: Duration = Duration::from_secs(30);
/// One that ran for so long had begun well: the delay begins anew.
const WELL: Duration = Duration::from_secs(60);
/// How long it may take to end when asked.
const GRACE: Duration = Duration::from_secs(10);
/// A log beyond this is begun anew; the one before it is kept.
const LOG_BYTES: u64 = 16 << 20;

/// Where a member is reached by the others.
#[must_use]
pub fn peer_url(host: &Host) -> String {
    format!("https://{}", host.at(PEER_PORT))
}

/// Where a member is reached by clients.
#[must_use]
pub fn client_url(host: &Host) -> String {
    format!("https://{}", host.at(CLIENT_PORT))
}

/// Where a member answers its front: on loopback, whatever the seed's address is.
#[must_use]
pub fn member_address(host: &Host) -> SocketAddr {
    let own = host.address().filter(IpAddr::is_loopback);
    SocketAddr::new(own.unwrap_or(Ipv4Addr::LOCALHOST.into()), MEMBER_PORT)
}

/// Whether a member has begun in this directory. etcd makes it before all else.
#[must_use]
pub fn has_begun(data: &Path) -> bool {
    data.join("member").exists()
}

impl Member {
    /// What the program is told.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let (state, cluster) = match &self.initial {
            Initial::New => {
                let all: Vec<String> = self
                    .seeds
                    .iter()
                    .map(|seed| format!("{}={}", seed.label(), peer_url(seed)))
                    .collect();
                ("new", all.join(","))
            }
            Initial::Joining(members) => ("existing", members.join(",")),
        };
        // An address is listened at alone; a name may mean another address tomorrow.
        let listen = |port| match self.me.address() {
            Some(_) => format!("https://{}", self.me.at(port)),
            None => format!("https://0.0.0.0:{port}"),
        };
        let mut arguments: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let mut text = OsString::from(format!("--{name}="));
            text.push(value);
            arguments.push(text);
        };
        flag("name", &self.me.label());
        flag("data-dir", &self.data);
        flag("listen-client-urls", &format!("https://{}", member_address(&self.me)));
        flag("advertise-client-urls", &client_url(&self.me));
        flag("listen-peer-urls", &listen(PEER_PORT));
        flag("initial-advertise-peer-urls", &peer_url(&self.me));
        flag("initial-cluster", &cluster);
        flag("initial-cluster-token", &self.store_token);
        flag("initial-cluster-state", &state);
        for (side, ca, certificate, key) in [
            ("", MEMBER_CA, MEMBER_CERTIFICATE, MEMBER_KEY),
            ("peer-", "ca.crt", "server.crt", "server.key"),
        ] {
            flag(&format!("{side}client-cert-auth"), &"true");
            flag(&format!("{side}trusted-ca-file"), &self.keep.join(ca));
            flag(&format!("{side}cert-file"), &self.keep.join(certificate));
            flag(&format!("{side}key-file"), &self.keep.join(key));
        }
        // It would ask the member as a client without a certificate of the front's.
        flag("enable-grpc-gateway", &"false");
        flag("peer-cert-allowed-cn", &SERVER_COMMON_NAME);
        // A seed may call from another of its addresses than the one it is listed with; its certificate says who it is.
        flag("experimental-peer-skip-client-san-verification", &"true");
        // History is kept for an hour; watches and lists resume well within it.
        flag("auto-compaction-mode", &"periodic");
        flag("auto-compaction-retention", &"1h");
        flag("quota-backend-bytes", &"4294967296");
        flag("pre-vote", &"true");
        flag("logger", &"zap");
        flag("log-outputs", &"stderr");
        arguments
    }

    fn start(&self, log: &Path) -> std::io::Result<Child> {
        if std::fs::metadata(log).is_ok_and(|found| found.len() > LOG_BYTES) {
            std::fs::rename(log, log.with_extension("log.1"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        // Its environment could change any of this.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        command.spawn()
    }

    /// Runs the member until `end` says so, starting it again whenever it ends, and at once when `again` changes. `told`
    /// hears, for people, what keeps it from running.
    pub async fn run(
        self,
        keep: std::sync::Arc<Keep>,
        mut end: watch::Receiver<bool>,
        mut again: watch::Receiver<u64>,
        told: watch::Sender<Option<String>>,
    ) {
        let (pid_file, log) = ("etcd.pid", keep.path("etcd.log"));
        end_leftover(&keep, pid_file, &self.data).await;
        let mut delay = FIRST_DELAY;
        loop {
            let began = tokio::time::Instant::now();
            let why = match self.start(&log) {
                Ok(mut child) => {
                    if let Some(pid) = child.id() {
                        // Without the file a leftover is only not found.
                        let _ = keep.write(pid_file, pid.to_string().as_bytes());
                    }
                    told.send_replace(None);
                    tokio::select! {
                        status = child.wait() => match status {
                            Ok(status) => format!("etcd has ended ({status}); its log is {}", log.display()),
                            Err(error) => format!("etcd cannot be waited for: {error}"),
                        },
                        () = told_to_end(&mut end) => {
                            stop(&mut child).await;
                            let _ = std::fs::remove_file(keep.path(pid_file));
                            return;
                        }
                        Ok(()) = again.changed() => {
                            stop(&mut child).await;
                            continue;
                        }
                    }
                }
                Err(error) => format!("{} cannot be started: {error}", self.program.display()),
            };
            tracing::warn!(why, "the store's member does not run; it is started again");
            told.send_replace(Some(why));
            if began.elapsed() >= WELL {
                delay = FIRST_DELAY;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = told_to_end(&mut end) => return,
            }
            delay = (delay * 2).min(LAST_DELAY);
        }
    }
}

async fn told_to_end(end: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say so: it is the end, too.
    let _ = end.wait_for(|end| *end).await;
}

async fn stop(child: &mut Child) {
    if let Some(pid) = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Ends what an earlier life of ours started on this directory and could not end.
async fn end_leftover(keep: &Keep, pid_file: &str, data: &Path) {
    let Ok(Some(text)) = keep.read(pid_file) else { return };
    let number: Option<i32> = String::from_utf8_lossy(&text).trim().parse().ok();
    let Some(pid) = number.filter(|number| *number > 1).and_then(Pid::from_raw) else {
        return;
    };
    let ours = || {
        // The number may be another's by now: what it was started with tells.
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let wanted = format!("--data-dir={}", data.display());
        line.split(|byte| *byte == 0)
            .any(|argument| argument == wanted.as_bytes())
    };
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        if !ours() {
            return;
        }
        tracing::info!(
            pid = number,
            "ending the store's member that an earlier reeve left behind"
        );
        let _ = kill_process(pid, signal);
        let end = tokio::time::Instant::now() + patience;
        while ours() && test_kill_process(pid).is_ok() && tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn member(me: &str, initial: Initial) -> Vec<String> {
        let member = Member {
            program: "/usr/bin/etcd".into(),
            me: me.parse().unwrap(),
            seeds: "10.0.0.1,10.0.0.2,h3.example.com".parse().unwrap(),
            store_token: "abc".to_owned(),
            data: "/data/etcd".into(),
            keep: "/data".into(),
            initial,
        };
        member
            .arguments()
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    #[test]
    fn every_seed_names_the_same_members() {
        let find = |arguments: Vec<String>, name: &str| -> String {
            let begins = format!("--{name}=");
            arguments
                .iter()
                .find_map(|argument| argument.strip_prefix(&begins))
                .unwrap()
                .to_owned()
        };
        let one = find(member("10.0.0.1", Initial::New), "initial-cluster");
        assert_eq!(one, find(member("h3.example.com", Initial::New), "initial-cluster"));
        assert_eq!(
            one,
            "10-0-0-1=https://10.0.0.1:2380,10-0-0-2=https://10.0.0.2:2380,h3-example-com=https://h3.example.com:2380"
        );
    }

    #[test]
    fn neither_side_is_open_to_who_shows_no_certificate() {
        for initial in [Initial::New, Initial::Joining(vec!["a=https://a:2380".to_owned()])] {
            let arguments = member("10.0.0.1", initial);
            for wanted in [
                "--client-cert-auth=true",
                "--peer-client-cert-auth=true",
                "--peer-cert-allowed-cn=server",
                "--trusted-ca-file=/data/front.ca",
                "--listen-client-urls=https://127.0.0.1:2381",
                "--peer-trusted-ca-file=/data/ca.crt",
            ] {
                assert!(arguments.iter().any(|argument| argument == wanted), "{wanted}");
            }
            assert!(!arguments.iter().any(|argument| argument.contains("http://")));
        }
    }

    #[tokio::test]
    async fn a_leftover_is_ended_and_a_stranger_of_its_number_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        let data = dir.path().join("etcd");
        let start = |argument: String| {
            // A shell that waits, with our argument among its own.
            Command::new("/bin/sh")
                .args(["-c", "read x", "sh"])
                .arg(argument)
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        };
        let mut ours = start(format!("--data-dir={}", data.display()));
        keep.write("etcd.pid", ours.id().unwrap().to_string().as_bytes())
            .unwrap();
        tokio::join!(end_leftover(&keep, "etcd.pid", &data), async {
            assert!(!ours.wait().await.unwrap().success());
        });
        let mut other = start("--data-dir=/elsewhere".to_owned());
        keep.write("etcd.pid", other.id().unwrap().to_string().as_bytes())
            .unwrap();
        end_leftover(&keep, "etcd.pid", &data).await;
        assert_eq!(other.try_wait().unwrap(), None);
    }
}
