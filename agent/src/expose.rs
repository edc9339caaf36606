//! That this host resolves the cluster's names where the network is exposed on it: systemd-resolved, where it runs, is told to ask
//! the node's server about the cluster's domain, on the bridge alone, and to forget that again where it is hidden. No file of
//! the host is written. Without systemd-resolved nothing is done: `reeve expose` prints the line that a person may add.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime::Shutdown;
use schemas::records::AssignedNetwork;
use schemas::records::network::gateway;
use tokio::time::Instant;

use crate::seen::Seen;
use crate::walls::tool;

/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_secs(2);
/// It is told again this often: its service may have been started anew, or the bridge made anew.
const AGAIN: Duration = Duration::from_secs(60);
/// Stands in the data directory while systemd-resolved was told something.
const MARK: &str = "exposed";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Until the shutdown drains. What was told stays.
pub(crate) async fn keep(seen: Arc<Seen>, dir: PathBuf, shutdown: Shutdown) {
    let mut told: Option<(AssignedNetwork, Instant)> = None;
    let work = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(network) = seen.network() else { continue };
            let known = told
                .as_ref()
                .is_some_and(|(of, at)| *of == network && at.elapsed() < AGAIN);
            if known {
                continue;
            }
            let mark = dir.join(MARK);
            match settle(&network, &seen.bridge(), &mark).await {
                Ok(()) => told = Some((network, Instant::now())),
                // The bridge may not be there yet.
                Err(why) => tracing::debug!(why, "systemd-resolved is not told of the cluster's names"),
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.draining() => {}
    }
}

async fn settle(network: &AssignedNetwork, bridge: &str, mark: &Path) -> Result<(), String> {
    if !network.exposed {
        if mark.exists() {
            tool("resolvectl", &["revert", bridge], "").await?;
            std::fs::remove_file(mark).map_err(|error| format!("remove {}: {error}", mark.display()))?;
        }
        return Ok(());
    }
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    if !is_resolved(&text) {
        return Ok(());
    }
    std::fs::write(mark, bridge).map_err(|error| format!("write {}: {error}", mark.display()))?;
    for words in words(network, bridge) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tool("resolvectl", &words, "").await?;
    }
    Ok(())
}

/// Whether systemd-resolved answers this host, as its resolv.conf says.
fn is_resolved(resolv_conf: &str) -> bool {
    let servers = resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let mut servers = servers.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    servers.any(|server| {
        ["127.0.0.53", "127.0.0.54"]
            .iter()
            .any(|stub| server.to_string() == *stub)
    })
}

/// What `resolvectl` is called with, one after the other.
fn words(network: &AssignedNetwork, bridge: &str) -> Vec<Vec<String>> {
    let of = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let mut domains = of(&["domain", bridge]);
    domains.push(format!("~{}", network.settings.domain));
    // Names of addresses, where the range is one zone.
    let range = network.settings.cidr;
    if range.prefix_len().is_multiple_of(8) {
        let octets = range.network().octets();
        let parts = octets.iter().take(usize::from(range.prefix_len() / 8)).rev();
        let zone: Vec<String> = parts.map(ToString::to_string).collect();
        domains.push(format!("~{}.in-addr.arpa", zone.join(".")));
    }
    vec![
        of(&["dns", bridge, &gateway(&network.subnet).to_string()]),
        domains,
        of(&["default-route", bridge, "no"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::records::{Backend, NetworkSettings};

    #[test]
    fn systemd_resolved_is_asked_for_the_clusters_names_alone() {
        let network = AssignedNetwork {
            settings: NetworkSettings {
                cidr: "10.210.0.0/16".parse().expect("a range"),
                cidr6: None,
                node_prefix: 24,
                backend: Backend::Wireguard,
                domain: "reeve.internal".to_owned(),
                port: 51_820,
                mtu: None,
                key_days: None,
            },
            subnet: "10.210.3.0/24".parse().expect("a subnet"),
            subnet6: None,
            exposed: true,
        };
        let told: Vec<String> = words(&network, "rv-1").iter().map(|words| words.join(" ")).collect();
        assert_eq!(
            told,
            [
                "dns rv-1 10.210.3.1",
                "domain rv-1 ~reeve.internal ~210.10.in-addr.arpa",
                "default-route rv-1 no"
            ]
        );
    }

    #[test]
    fn its_stub_is_known_by_its_address() {
        assert!(is_resolved("# stub\nnameserver 127.0.0.53\noptions edns0\n"));
        for other in [
            "",
            "nameserver 10.0.0.1\n",
            "#nameserver 127.0.0.53\n",
            "nameserver x\n",
        ] {
            assert!(!is_resolved(other), "{other}");
        }
    }

    #[tokio::test]
    async fn a_hidden_host_on_which_nothing_was_told_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let network = AssignedNetwork {
            exposed: false,
            subnet: "10.210.3.0/24".parse().expect("a subnet"),
            subnet6: None,
            settings: NetworkSettings {
                cidr: "10.210.0.0/16".parse().expect("a range"),
                cidr6: None,
                node_prefix: 24,
                backend: Backend::Wireguard,
                domain: "reeve.internal".to_owned(),
                port: 51_820,
                mtu: None,
                key_days: None,
            },
        };
        assert_eq!(settle(&network, "rv-1", &dir.path().join(MARK)).await, Ok(()));
    }
}
