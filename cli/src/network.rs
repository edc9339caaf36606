//! `reeve network`: gives a cluster its network, and shows it. The settings stand in the cluster's marker; who gets which
//! subnet and address is the leader's to say.

use std::net::IpAddr;

use runtime::{Guard, Outcome, Store as _, person};
use schemas::keys::Key;
use schemas::records::network::{DEFAULT_KEY_DAYS, VXLAN_PORT, WIREGUARD_PORT, usable};
use schemas::records::{Backend, ClusterMarker, LinkKind, NetworkSettings, Peer, Record as _};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::Common;
use crate::args::network::{BackendWord, NetworkCreateArgs, NetworkVerb};
use crate::connect::{Connection, connect};
use crate::failure::{Exit, Failure};
use crate::output::{self, Cell, Format, Table, Tone, print};
use crate::view::View;

/// `reeve network`.
pub async fn network(common: &Common, verb: &NetworkVerb) -> Verdict {
    match verb {
        NetworkVerb::Create(args) => create(common, args).await,
        NetworkVerb::Status => status(common).await,
        NetworkVerb::RotateKeys(args) => crate::near::rotate_keys(common, args).await,
    }
}

/// The network that is asked for, if it can be.
pub(crate) fn settings(args: &NetworkCreateArgs) -> Result<NetworkSettings, Failure> {
    let backend = match args.backend {
        BackendWord::Wireguard => Backend::Wireguard,
        BackendWord::WireguardUser => Backend::WireguardUser,
        BackendWord::Vxlan => Backend::Vxlan,
        BackendWord::HostGw => Backend::HostGw,
        BackendWord::None => Backend::None,
    };
    let usual = if backend == Backend::Vxlan {
        VXLAN_PORT
    } else {
        WIREGUARD_PORT
    };
    let settings = NetworkSettings {
        cidr: args.cidr,
        cidr6: args.cidr6,
        node_prefix: args.node_prefix,
        backend,
        domain: args.domain.to_ascii_lowercase(),
        port: args.port.unwrap_or(usual),
        mtu: args.mtu,
        key_days: args.key_days.filter(|days| *days != DEFAULT_KEY_DAYS),
    };
    let problems = settings.problems();
    if problems.is_empty() {
        return Ok(settings);
    }
    Err(Failure::usage(format!(
        "the network cannot be so: {}",
        problems.join("; ")
    )))
}

/// Whose address lies in the range.
fn clash(settings: &NetworkSettings, view: &View) -> Option<String> {
    let inside = |address: &&IpAddr| match address {
        IpAddr::V4(address) => settings.cidr.contains(address),
        IpAddr::V6(address) => settings.cidr6.is_some_and(|range| range.contains(address)),
    };
    view.facts.iter().find_map(|(node, facts)| {
        let facts = facts.as_ref().ok()?;
        let address = facts.addresses.host.iter().find(inside)?;
        Some(format!("node {node} has the address {address}"))
    })
}

async fn create(common: &Common, args: &NetworkCreateArgs) -> Verdict {
    let settings = settings(args)?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let only_days = |there: &NetworkSettings| {
        let key_days = settings.key_days;
        args.key_days.is_some()
            && NetworkSettings {
                key_days,
                ..there.clone()
            } == settings
    };
    let before = marker.record.network.as_ref().filter(|there| **there != settings);
    let changes = before.is_some_and(only_days);
    if let Some(there) = marker.record.network.as_ref().filter(|_| !changes) {
        if *there == settings {
            say(common, &settings, "is there already");
            return Ok(Exit::Done);
        }
        return Err(Failure::new(
            Exit::Conflict,
            format!("the cluster has a network already: {}", in_words(there)),
        )
        .help("of it only --key-days can be changed, with all else as it is; `reeve network status` shows it"));
    }
    let view = View::read(&connection, &["nodes"]).await?;
    if let Some(who) = clash(&settings, &view).filter(|_| !changes) {
        return Err(
            Failure::new(Exit::Conflict, format!("the range {} is in use: {who}", settings.cidr))
                .help("choose another with --cidr, such as 10.99.0.0/16"),
        );
    }
    let record = ClusterMarker {
        network: Some(settings.clone()),
        ..marker.record.clone()
    };
    let txn = person::txn().put(
        connection.key(&Key::Cluster),
        record.encode(),
        Guard::Unchanged(marker.mod_revision),
    );
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => {
            say(common, &settings, if changes { "is changed" } else { "is made" });
            if !changes && !common.output.is_for_machines() {
                print("next: `reeve network status` shows how nodes join it\n");
            }
            Ok(Exit::Done)
        }
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            "somebody has changed the cluster's marker meanwhile; nothing was changed",
        )
        .help("try again")),
    }
}

fn kind(kind: LinkKind) -> String {
    let clear = match kind {
        LinkKind::Vxlan | LinkKind::HostGw => ", in clear",
        LinkKind::Wireguard | LinkKind::WireguardUser | LinkKind::None => "",
    };
    format!("{}{clear}", kind.word())
}

pub(crate) fn in_words(settings: &NetworkSettings) -> String {
    let sixth = settings.cidr6.map(|range| format!(" and {range}")).unwrap_or_default();
    let keys = match settings.key_days {
        Some(0) => ", keys replaced when asked".to_owned(),
        Some(days) => format!(", keys replaced within {}", output::count(usize::from(days), "day")),
        None => String::new(),
    };
    format!(
        "{}{sixth}, a /{} for each node, by {}, names under {}{keys}",
        settings.cidr,
        settings.node_prefix,
        settings.backend.word(),
        settings.domain
    )
}

fn say(common: &Common, settings: &NetworkSettings, what: &str) {
    match common.output {
        Format::Json => print(&output::json(&json!({ "network": settings }))),
        Format::Yaml => print(&output::yaml(&json!({ "network": settings }))),
        Format::Name => print(&format!("{}\n", settings.cidr)),
        Format::Table | Format::Wide => print(&format!("the network {what}: {}\n", in_words(settings))),
    }
}

async fn peers(connection: &Connection) -> Result<Vec<Peer>, Failure> {
    let prefix = runtime::Prefix::new(connection.root.prefix("peers"))
        .map_err(|error| Failure::new(Exit::Failed, "cannot list the nodes of the network").because(&error))?;
    let listing = connection.store.list(&prefix).await?;
    Ok(listing
        .kvs
        .iter()
        .filter_map(|kv| Peer::decode(&kv.value).ok())
        .collect())
}

async fn status(common: &Common) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let Some(settings) = marker.record.network.clone() else {
        return Err(Failure::new(Exit::Failed, "the cluster has no network of its own")
            .help("`reeve network create` gives it one"));
    };
    let peers = peers(&connection).await?;
    let view = View::read(&connection, &["nodes", "reports", "assignments", "sessions"]).await?;
    let links = crate::near::links(common, &marker, &view).await?;
    let mut rows: Vec<Value> = Vec::new();
    let mut table = Table::new(&["NODE", "SUBNET", "USED", "LEFT", "LINK", "AT"]);
    let mut wrong: Vec<String> = Vec::new();
    for node in view.facts.keys() {
        let assignment = view.assignments.get(node).and_then(|found| found.as_ref().ok());
        let subnet = assignment
            .and_then(|one| one.network.as_ref())
            .map(|network| network.subnet);
        let used = assignment.map_or(0, |one| {
            one.instances.iter().filter(|one| one.address.is_some()).count()
        });
        let report = view.reports.get(node).and_then(|found| found.as_ref().ok());
        let left = subnet.map(|subnet| {
            let lingering = report.and_then(|report| report.network.as_ref());
            let kept = lingering.map_or(0, |network| network.lingering.len());
            usable(&subnet).count().saturating_sub(used + kept)
        });
        let link = peers.iter().find(|peer| peer.node == *node).map(|peer| &peer.link);
        let there = view.sessions.contains_key(node);
        let (word, tone) = match (link.map(|link| link.kind), there) {
            (_, false) => ("away".to_owned(), Tone::Bad),
            (Some(Some(found)), true) => (kind(found), Tone::Good),
            (Some(None), true) => ("cannot".to_owned(), Tone::Bad),
            (None, true) => ("not yet".to_owned(), Tone::Busy),
        };
        let at = link.and_then(|link| link.public_endpoint.or(link.endpoints.first().copied()));
        let of_network = [
            "NetworkDown",
            "NetworkOverlaps",
            "LinkDown",
            "NamesDown",
            "PolicyDown",
            "WallsDown",
        ];
        let conditions = report.map_or(&[][..], |report| &report.conditions);
        let conditions: Vec<_> = conditions
            .iter()
            .filter(|condition| of_network.contains(&condition.reason.as_str()))
            .collect();
        wrong.extend(
            conditions
                .iter()
                .map(|one| format!("{node}: {}: {}", one.reason, one.message)),
        );
        rows.push(json!({
            "node": node, "subnet": subnet, "addresses": used, "addressesLeft": left, "link": link, "reachable": there, "conditions": conditions,
        }));
        table.row(vec![
            node.into(),
            subnet.map_or("-".to_owned(), |subnet| subnet.to_string()).into(),
            used.into(),
            left.map_or("-".to_owned(), |left| left.to_string()).into(),
            Cell::new(word, tone),
            at.map_or("-".to_owned(), |at| at.to_string()).into(),
        ]);
    }
    let free = settings
        .subnets()
        .saturating_sub(u32::try_from(peers.len()).unwrap_or(u32::MAX));
    match common.output {
        Format::Json => print(&output::json(
            &json!({ "network": settings, "freeSubnets": free, "nodes": rows, "links": links.value() }),
        )),
        Format::Yaml => print(&output::yaml(
            &json!({ "network": settings, "freeSubnets": free, "nodes": rows, "links": links.value() }),
        )),
        Format::Name => rows
            .iter()
            .for_each(|row| print(&format!("{}\n", row["node"].as_str().unwrap_or_default()))),
        Format::Table | Format::Wide => {
            print(&format!(
                "{}; {} free\n\n",
                in_words(&settings),
                output::count(free as usize, "subnet")
            ));
            print(&table.render(output::limit_of(common.output == Format::Wide)));
            for line in &wrong {
                print(&format!("{line}\n"));
            }
            let wide = common.output == Format::Wide;
            print(&links.text(wide, output::limit_of(wide)));
        }
    }
    Ok(Exit::Done)
}
