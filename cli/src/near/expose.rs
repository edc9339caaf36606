//! `reeve expose` and `reeve hide`: whether a host's own processes, and not only containers, reach and resolve the cluster's
//! network. It is a key of the node's resource; the leader tells the node's agent, and what is printed has reached it.

use std::time::{Duration, Instant};

use schemas::admit::admit_stored;
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::network::gateway;
use schemas::records::{AssignedNetwork, Assignment, Record as _};
use serde_json::{Value, json};

use super::ground::{settings, some_meant};
use super::prepare;
use crate::Verdict;
use crate::args::Common;
use crate::args::seen::ExposeArgs;
use crate::connect::Connection;
use crate::edit::{self, Edit};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, print};
use crate::view::title;

/// How long the leader may take to tell the node.
const TOLD: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

pub async fn expose(common: &Common, args: &ExposeArgs) -> Verdict {
    set(common, args, true).await
}

pub async fn hide(common: &Common, args: &ExposeArgs) -> Verdict {
    set(common, args, false).await
}

async fn set(common: &Common, args: &ExposeArgs, exposed: bool) -> Verdict {
    let (connection, view, ways) = prepare(common).await?;
    let marker = connection.marker().await?;
    settings(&marker)?;
    let nodes = some_meant(&view, &ways, args)?;
    let mut edits = Vec::new();
    for node in &nodes {
        edits.extend(edited(&connection, node, exposed).await?);
    }
    edit::commit(&connection, &marker, &edits, &[]).await?;
    let begun = Instant::now();
    for node in &nodes {
        let network = loop {
            let network = assigned(&connection, node).await?;
            match network {
                Some(network) if network.exposed == exposed => break network,
                Some(_) | None if begun.elapsed() > TOLD => {
                    return Err(Failure::new(
                        Exit::TimedOut,
                        format!(
                            "it is written, but the leader has not told node {node} within {} s",
                            TOLD.as_secs()
                        ),
                    )
                    .help("see that a controller runs: `reeve status`"));
                }
                Some(_) | None => tokio::time::sleep(LOOK).await,
            }
        };
        say(common, node, &network);
    }
    Ok(Exit::Done)
}

/// The edit of a node's resource; None where it says so already.
async fn edited(connection: &Connection, node: &NodeName, exposed: bool) -> Result<Option<Edit>, Failure> {
    let key = ResourceKey {
        namespace: None,
        kind: Kind::Node,
        name: node
            .as_str()
            .parse()
            .map_err(|error| Failure::usage(format!("node {node} can have no resource: {error}")))?,
    };
    let found = edit::stored(connection, std::slice::from_ref(&key))
        .await?
        .pop()
        .flatten();
    let mut value = match &found {
        Some(found) => admit_stored(&key, &found.value).map_err(Failure::invalid)?.value,
        None if !exposed => return Ok(None),
        None => json!({ "apiVersion": "reeve/v1", "kind": "Node", "metadata": { "name": node }, "spec": {} }),
    };
    if let Some(document) = value.as_object_mut() {
        let spec = document.entry("spec").or_insert_with(|| json!({}));
        match spec.as_object_mut() {
            Some(spec) if exposed => drop(spec.insert("exposed".to_owned(), json!(true))),
            Some(spec) => drop(spec.remove("exposed")),
            None => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("{} has a spec that is none", title(&key)),
                ));
            }
        }
    }
    let admitted = admit_stored(&key, value.to_string().as_bytes()).map_err(Failure::invalid)?;
    let revision = Some(found.map_or(0, |found| found.mod_revision));
    Ok(edit::edits(connection, vec![admitted], revision).await?.pop())
}

async fn assigned(connection: &Connection, node: &NodeName) -> Result<Option<AssignedNetwork>, Failure> {
    let found = connection.get(&Key::Assignment(node.clone())).await?;
    Ok(found.and_then(|kv| Assignment::decode(&kv.value).ok()?.network))
}

fn say(common: &Common, node: &NodeName, network: &AssignedNetwork) {
    let server = gateway(&network.subnet);
    let value: Value =
        json!({ "node": node, "exposed": network.exposed, "nameserver": network.exposed.then_some(server) });
    match common.output {
        Format::Json => print(&output::json(&value)),
        Format::Yaml => print(&output::yaml(&value)),
        Format::Name => print(&format!("node/{node}\n")),
        Format::Table | Format::Wide if network.exposed => print(&format!(
            "node/{node}: its own processes reach the network; names under {}\n  are told to systemd-resolved; without it, put first in /etc/resolv.conf:\n  nameserver {server}\n",
            network.settings.domain
        )),
        Format::Table | Format::Wide => print(&format!(
            "node/{node}: its own processes, but root's, do not reach the network\n"
        )),
    }
}
