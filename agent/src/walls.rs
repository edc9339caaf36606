//! Keeps containers away from the control ports of this host and its cluster: the store, seeds, agents, the engine where it
//! listens on TCP. `run.rs` raises the walls before the first container is started and keeps them up. What they are is
//! `planner::walls`'s; here it becomes a table of the kernel's packet filter, by `nft`, replaced whole, and put back where
//! somebody took it away or changed it.

mod bridge;
pub mod filter;
mod hears;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use planner::walls::{Closed, Ports, closed, table};
use runtime::Shutdown;
use schemas::names::NodeName;
use schemas::records::ClusterId;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long a name may take to become addresses.
const RESOLVE: Duration = Duration::from_secs(5);
/// How long `nft` may take.
const NFT: Duration = Duration::from_secs(10);

const MISSING: &str = "the program `nft` is missing";

/// The walls of one agent.
pub struct Walls {
    table: String,
    api: Option<SocketAddr>,
    /// Hosts and ports as they are named.
    control: BTreeSet<(String, u16)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each host was when its name last became addresses.
    resolved: BTreeMap<String, BTreeSet<IpAddr>>,
    raised: Closed,
    /// The table as `nft` lists it since.
    listed: String,
    trouble: Option<String>,
}

impl Walls {
    #[must_use]
    pub fn new(
        cluster: &ClusterId,
        node: &NodeName,
        api: Option<SocketAddr>,
        control: BTreeSet<(String, u16)>,
    ) -> Self {
        Self {
            table: table(cluster.as_str(), node.as_str()),
            api,
            control,
            state: Mutex::default(),
        }
    }

    /// Why they are not up; None where they are, or where nothing is to be closed.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let why = self.state().trouble.clone()?;
        let fix = if why == MISSING { ": `apt install nftables`" } else { "" };
        Some(format!(
            "containers can reach the cluster's control ports, which certificates alone guard: {why}{fix}"
        ))
    }

    /// Raises them, or puts right what is no longer as it was raised. True where what is to be said of it has changed.
    pub async fn raise(&self) -> bool {
        let wanted = closed(&self.ports().await);
        let (raised, listed, before) = {
            let state = self.state();
            (state.raised.clone(), state.listed.clone(), state.trouble.clone())
        };
        if wanted.is_empty() && raised.is_empty() {
            return false;
        }
        let list = ["-s", "list", "table", "inet", &self.table];
        if before.is_none() && raised == wanted {
            if nft(&list, "").await.is_ok_and(|now| now == listed) {
                return false;
            }
            tracing::warn!(
                table = self.table,
                "somebody changed the walls around the control ports; they are put back"
            );
        }
        let done = match nft(&["-f", "-"], &wanted.ruleset(&self.table)).await {
            Ok(_) => nft(&list, "").await,
            Err(why) => Err(why),
        };
        let mut state = self.state();
        state.trouble = match done {
            Ok(listed) => {
                state.listed = listed;
                state.raised = wanted;
                None
            }
            Err(why) => Some(why),
        };
        if state.trouble != before {
            match &state.trouble {
                Some(why) => tracing::warn!(why, "containers are not kept away from the control ports"),
                None => tracing::info!(
                    table = self.table,
                    "containers are kept away from the control ports again"
                ),
            }
        }
        state.trouble != before
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after them this often, until the agent ends; they stay.
    pub async fn keep(self: Arc<Self>, every: Duration, changed: impl Fn(), shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.draining() => return,
            }
            if self.raise().await {
                changed();
            }
        }
    }

    async fn ports(&self) -> Ports {
        let hosts: BTreeSet<&String> = self.control.iter().map(|(host, _)| host).collect();
        let look_up = async |host: &String| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((bare, 0))).await {
                Ok(Ok(found)) => Some((host.clone(), found.map(|address| address.ip()).collect())),
                // It may be there again next time; until then it is where it was.
                Ok(Err(_)) | Err(_) => None,
            }
        };
        let found = join_all(hosts.into_iter().map(look_up)).await;
        self.state().resolved.extend(found.into_iter().flatten());
        let state = self.state();
        let addresses = |host: &String| state.resolved.get(host).into_iter().flatten().copied();
        let control: BTreeSet<SocketAddr> = self
            .control
            .iter()
            .flat_map(|(host, port)| addresses(host).map(|ip| SocketAddr::new(ip, *port)))
            .collect();
        // Only an address of this host can be bound.
        let here = |ip: &IpAddr| UdpSocket::bind((*ip, 0)).is_ok();
        Ports {
            api: self.api,
            here: control.iter().map(SocketAddr::ip).filter(here).collect(),
            control,
        }
    }
}

/// The host and the port of an address with a scheme, as etcd and engines have them; None where it names no port.
#[must_use]
pub fn host_and_port(url: &str) -> Option<(String, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "tcp" | "http" | "https") {
        return None;
    }
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// What the packet filter's program says of itself.
pub async fn filter() -> Result<String, String> {
    let said = nft(&["--version"], "").await?;
    Ok(said.split(" (").next().unwrap_or_default().trim().to_owned())
}

/// Takes the table of an agent that is no more away; where there is none, that is done.
pub async fn raze(cluster: &str, node: &NodeName) -> Result<(), String> {
    filter::raze(cluster, node).await?;
    let table = table(cluster, node.as_str());
    if nft(&["list", "table", "inet", &table], "").await.is_err() {
        return Ok(());
    }
    nft(&["-f", "-"], &format!("delete table inet {table}\n"))
        .await
        .map(|_| ())
}

/// What `nft` prints, or why it does not do it.
async fn nft(args: &[&str], input: &str) -> Result<String, String> {
    tool("nft", args, input).await
}

/// What one of the kernel's programs prints, or why it does not do it.
pub(crate) async fn tool(name: &str, args: &[&str], input: &str) -> Result<String, String> {
    let run = async |program: &str| -> std::io::Result<Output> {
        let mut child = Command::new(program)
            .args(args)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let ran = tokio::time::timeout(NFT, async {
        match run(name).await {
            // Where daemons have a short PATH.
            Err(error) if error.kind() == ErrorKind::NotFound => run(&format!("/usr/sbin/{name}")).await,
            ran => ran,
        }
    });
    let output = match ran.await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            return Err(format!("the program `{name}` is missing"));
        }
        Ok(Err(error)) => return Err(format!("cannot run `{name}`: {error}")),
        Err(_) => return Err(format!("`{name}` has not ended after {} s", NFT.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
    let root = if first.contains("Operation not permitted") {
        "; the agent must run as root"
    } else {
        ""
    };
    Err(format!("`{name}` refuses: {first}{root}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_from_what_stores_and_engines_are_called() {
        let found = |url| host_and_port(url).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(found("https://seed-1:2379").as_deref(), Some("seed-1 2379"));
        assert_eq!(found("http://[fd00::1]:2379/").as_deref(), Some("[fd00::1] 2379"));
        assert_eq!(found("tcp://10.0.0.1:2375").as_deref(), Some("10.0.0.1 2375"));
        for none in [
            "unix:///var/run/docker.sock",
            "10.0.0.1:2379",
            "https://seed",
            "https://seed:x",
            "",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    /// The kernel's filter is of a network namespace: the test's own is never touched.
    #[test]
    fn the_table_is_one_that_nft_takes_again_and_again() {
        let ports = Ports {
            api: "10.0.0.1:9465".parse().ok(),
            control: ["10.0.0.1:2379", "10.0.0.2:2379", "[fd00::3]:2380"]
                .iter()
                .map(|one| one.parse().expect("an address"))
                .collect(),
            here: BTreeSet::from(["10.0.0.1".parse().expect("an address")]),
        };
        let rules = closed(&ports).ruleset("reeve_test");
        let script = "nft -f rules && nft -f rules && nft -s list table inet reeve_test";
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("rules"), rules).expect("a file");
        let output = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .current_dir(dir.path())
            .output()
            .expect("unshare starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("reject with tcp reset").count(), 6, "{said}");
        assert!(said.contains("iifname \"rv-*\""), "{said}");
    }
}
