//! The variables by which a container is told about itself. They belong to the container that is made, not to its spec: a
//! release that learns another one changes no spec, and so replaces no container. A person's variable of the same name wins.

use std::collections::BTreeMap;

use planner::node::{LABEL_CLUSTER, LABEL_NODE, LABEL_TOKEN};
use schemas::container::{ContainerSpec, NetworkMode, Protocol};

use super::super::CreateRequest;

/// Every variable of a request's container by name, a person's included.
pub(super) fn all(request: &CreateRequest<'_>) -> BTreeMap<String, String> {
    let mut all = own(request);
    let persons = request.spec.env.iter();
    all.extend(persons.map(|(key, value)| (key.clone(), value.0.clone())));
    let secrets = request.secrets.iter();
    all.extend(secrets.map(|one| (one.name.clone(), one.value.to_string())));
    all
}

fn own(request: &CreateRequest<'_>) -> BTreeMap<String, String> {
    let label = |key: &str| request.labels.get(key).cloned();
    let told = [
        ("CONTAINER_NAME", Some(request.name.to_owned())),
        ("SERVICE_NAME", Some(request.instance.workload.to_string())),
        ("NAMESPACE", Some(request.instance.namespace.to_string())),
        ("SLOT", Some(request.instance.slot.to_string())),
        ("NODE_NAME", label(LABEL_NODE)),
        ("CLUSTER_ID", label(LABEL_CLUSTER)),
        ("REEVE_FENCING_TOKEN", label(LABEL_TOKEN)),
    ];
    let told = told
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let published = request.spec.ports.iter().any(|port| port.host_port.is_some());
    let public = request.addresses.public.clone().filter(|_| published);
    let host = request.addresses.host.first().map(ToString::to_string);
    let found = [("NODE_ADDRESS", host), ("PUBLIC_HOST_IP", public)];
    let found = found
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let services = request.depends_on.iter();
    let services = services.map(|name| (format!("{}_SERVICE", word(name.as_str())), name.to_string()));
    let seeds = request.seat.map_or(&[][..], |seat| &seat.seeds);
    let seeds = seeds.iter().map(|seeds| {
        let own = seeds.service == request.instance.workload;
        let of = if own {
            "SERVICE".to_owned()
        } else {
            word(seeds.service.as_str())
        };
        let all: Vec<String> = seeds.addresses.iter().map(ToString::to_string).collect();
        (format!("{of}_SEEDS"), all.join(","))
    });
    let address = request.seat.map(|seat| seat.address.to_string());
    told.chain(found)
        .chain(address.map(|address| ("CONTAINER_IP".to_owned(), address)))
        .chain(seeds)
        .chain(services)
        .chain(ports(request.spec, request.ports))
        .collect()
}

/// A name as part of a variable's.
fn word(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// `PORT_HTTP=30017`: for each published port, by its name or else its number, the node's port.
fn ports(spec: &ContainerSpec, assigned: &[schemas::records::AssignedPort]) -> impl Iterator<Item = (String, String)> {
    let mut given = assigned.iter();
    let published = spec.ports.iter().filter_map(move |port| match port.everywhere() {
        Some(everywhere) => Some((port, everywhere)),
        None if port.is_on_node() => Some((port, given.next()?.host_port)),
        None => None,
    });
    // Without a network of its own it has no port of the node's but those it opens itself.
    let bridge = spec.network_mode == NetworkMode::Bridge;
    let pairs = published.filter(move |_| bridge);
    pairs.map(|(port, given)| {
        let name = match (&port.name, port.protocol) {
            (Some(name), _) => word(name.as_str()),
            (None, Protocol::Tcp) => port.container_port.to_string(),
            (None, Protocol::Udp) => format!("{}_UDP", port.container_port),
        };
        (format!("PORT_{name}"), given.to_string())
    })
}
