//! What `lookup`, `trace`, `expose` and `network status` share: the records of the network in the store, and questions to many
//! agents at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::api::ask::{Ask, Asked};
use futures::{StreamExt as _, stream};
use schemas::keys::{Key, ResourceKey};
use schemas::names::{Namespace, NodeName};
use schemas::records::{Endpoints, NetworkSettings, Peer, Policies, Record};
use serde::de::DeserializeOwned;

use super::{Ways, failed, whole};
use crate::args::seen::ExposeArgs;
use crate::connect::{Connection, Marker};
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::view::View;

/// Agents that are asked at once.
const AT_ONCE: usize = 32;

/// The network's records, as far as they can be read.
pub(super) struct Records {
    pub settings: NetworkSettings,
    pub endpoints: BTreeMap<ResourceKey, Arc<Endpoints>>,
    pub policies: BTreeMap<Namespace, Arc<Policies>>,
    pub peers: BTreeMap<NodeName, Peer>,
}

/// The cluster's network.
pub(super) fn settings(marker: &Marker) -> Result<NetworkSettings, Failure> {
    marker.record.network.clone().ok_or_else(|| {
        Failure::new(Exit::Failed, "the cluster has no network of its own").help("`reeve network create` gives it one")
    })
}

pub(super) async fn records(connection: &Connection, marker: &Marker) -> Result<Records, Failure> {
    let mut records = Records {
        settings: settings(marker)?,
        endpoints: BTreeMap::new(),
        policies: BTreeMap::new(),
        peers: BTreeMap::new(),
    };
    for class in ["endpoints", "policies", "peers"] {
        for kv in &connection.class(class).await?.kvs {
            let Some(key) = connection.root.parse(&kv.key) else {
                continue;
            };
            // What cannot be read is as if it were not there.
            if let Key::Endpoints(key) = key {
                let record = Endpoints::decode(&kv.value).ok();
                records.endpoints.extend(record.map(|one| (key, Arc::new(one))));
            } else if let Key::Policies(namespace) = key {
                let record = Policies::decode(&kv.value).ok();
                records.policies.extend(record.map(|one| (namespace, Arc::new(one))));
            } else if let Key::Peer(node) = key {
                records
                    .peers
                    .extend(Peer::decode(&kv.value).ok().map(|one| (node, one)));
            }
        }
    }
    Ok(records)
}

/// Asks these nodes' agents, many at once; each answer, or why there is none.
pub(super) async fn ask_each<T: DeserializeOwned>(
    view: &View,
    ways: &Ways,
    what: &str,
    nodes: impl IntoIterator<Item = NodeName>,
    ask: &Ask,
) -> BTreeMap<NodeName, Result<T, Failure>> {
    let by = person();
    let tasks = nodes.into_iter().map(|node| {
        let (ask, by) = (ask.clone(), by.clone());
        async move {
            let answer = match ways.to(view, &node) {
                Ok(client) => whole(&client, &node, Asked { by, ask })
                    .await
                    .map_err(|error| failed(what, &node, &error)),
                Err(failure) => Err(failure),
            };
            (node, answer)
        }
    });
    stream::iter(tasks).buffer_unordered(AT_ONCE).collect().await
}

/// The nodes that are meant: those that are named, all there are, or this host's.
pub(super) fn meant(view: &View, ways: &Ways, named: &[NodeName], all: bool) -> Result<Vec<NodeName>, Failure> {
    let known = view.node_names();
    if let Some(unknown) = named.iter().find(|node| !known.contains(node)) {
        return Err(
            Failure::new(Exit::Failed, format!("there is no node {unknown}")).help("list nodes with `reeve get nodes`")
        );
    }
    if all {
        return Ok(known);
    }
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    Ok(known
        .into_iter()
        .filter(|node| ways.local.contains_key(node.as_str()))
        .collect())
}

/// The same for what acts on nodes: at least one.
pub(super) fn some_meant(view: &View, ways: &Ways, args: &ExposeArgs) -> Result<Vec<NodeName>, Failure> {
    let nodes = meant(view, ways, &args.node, args.all_nodes)?;
    if nodes.is_empty() {
        return Err(Failure::usage("no agent of the cluster is found on this host")
            .help("name a node with --node, or all with --all-nodes"));
    }
    Ok(nodes)
}
