//! `reeve network rotate-keys`: another key for the links of nodes, one node after the other. Each node's agent is asked: it makes
//! the key, and has it on disk before it answers. What is printed as replaced has been told to all other nodes.

use std::time::{Duration, Instant};

use agent::api::ask::{Ask, KeyNext};
use schemas::keys::Key;
use schemas::names::NodeName;
use schemas::records::{Backend, NetworkSettings, Peer, Record as _};
use serde_json::json;

use super::ground::{ask_each, settings, some_meant};
use super::{Ways, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::seen::ExposeArgs;
use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, complain, print};
use crate::view::View;

/// How long the leader may take to tell the other nodes.
const TOLD: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

pub async fn rotate_keys(common: &Common, args: &ExposeArgs) -> Verdict {
    let (connection, view, ways) = prepare(common).await?;
    let marker = connection.marker().await?;
    keyless(&settings(&marker)?)?;
    let nodes = some_meant(&view, &ways, args)?;
    let mut exit = Exit::Done;
    // One after the other: of two ends of a link one stays as it is.
    for node in nodes {
        match rotate(&connection, &view, &ways, &node).await {
            Ok(turned) => say(common, &node, &turned),
            Err(failure) => {
                exit = failure.exit;
                complain(&failure.render(output::look()));
            }
        }
    }
    Ok(exit)
}

/// That there is something to rotate.
fn keyless(settings: &NetworkSettings) -> Result<(), Failure> {
    if settings.has_keys() {
        return Ok(());
    }
    let links = match settings.backend {
        Backend::Vxlan => "links by vxlan are in clear and have no keys",
        Backend::HostGw => "links by host-gw are in clear and have no keys",
        Backend::None | Backend::Wireguard | Backend::WireguardUser => "the cluster's links are made by somebody else",
    };
    Err(Failure::new(
        Exit::Failed,
        format!("{links}: there is nothing to rotate"),
    ))
}

async fn rotate(connection: &Connection, view: &View, ways: &Ways, node: &NodeName) -> Result<KeyNext, Failure> {
    let what = "replace the key of the links";
    let mut answers = ask_each::<KeyNext>(view, ways, what, [node.clone()], &Ask::RotateKey {}).await;
    let turned = answers
        .remove(node)
        .unwrap_or_else(|| Err(Failure::new(Exit::Failed, format!("node {node} was not asked"))))?;
    let begun = Instant::now();
    loop {
        let found = connection.get(&Key::Peer(node.clone())).await?;
        let told = found.and_then(|kv| Peer::decode(&kv.value).ok()?.link.key);
        if told.as_deref() == Some(turned.next.as_str()) {
            return Ok(turned);
        }
        if begun.elapsed() > TOLD {
            let message = format!(
                "the key of node {node} is made, but the leader has not told the other nodes within {} s",
                TOLD.as_secs()
            );
            return Err(Failure::new(Exit::TimedOut, message)
                .help("it counts as soon as they are told; see that a controller runs: `reeve status`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn say(common: &Common, node: &NodeName, turned: &KeyNext) {
    let KeyNext { key, next } = turned;
    let value = json!({ "node": node, "before": key, "key": next });
    match common.output {
        Format::Json => print(&output::json(&value)),
        Format::Yaml => print(&output::yaml(&value)),
        Format::Name => print(&format!("node/{node}\n")),
        Format::Table | Format::Wide => print(&format!("node/{node}: the key of its links is replaced\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(backend: Backend) -> NetworkSettings {
        NetworkSettings {
            cidr: "10.210.0.0/16".parse().expect("a range"),
            cidr6: None,
            node_prefix: 24,
            backend,
            domain: "reeve.internal".to_owned(),
            port: 51_820,
            mtu: None,
            key_days: None,
        }
    }

    #[test]
    fn links_without_keys_have_nothing_to_rotate() {
        for backend in [Backend::Vxlan, Backend::HostGw, Backend::None] {
            let failure = keyless(&of(backend)).expect_err("no keys");
            assert!(
                failure.sentence().ends_with("there is nothing to rotate"),
                "{}",
                failure.sentence()
            );
        }
        assert!(keyless(&of(Backend::Wireguard)).is_ok() && keyless(&of(Backend::WireguardUser)).is_ok());
    }
}
