//! `reeve trace`: which hop or rule stops a connection. It reads who is where and which policies are in force, asks the sender's
//! agent for the link and the receiver's whether somebody listens, and prints what `planner::network::trace` makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent::api::ask::{Ask, Knocked, NetworkHere};
use planner::network::policy::Input;
use planner::network::trace::{End, Knock, Link, Passed, Port, Seen, Trace, trace as follow};
use schemas::container::Protocol;
use schemas::names::{InstanceName, NodeName};
use schemas::records::AssignedNetwork;
use serde_json::json;

use super::ground::{Records, ask_each, records};
use super::{Target, Ways, list, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::seen::TraceArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, Cell, Format, Table, Tone, print};
use crate::view::{View, title};

pub async fn trace(common: &Common, args: &TraceArgs) -> Verdict {
    let (to, port) = split(&args.to)?;
    let (connection, view, ways) = prepare(common).await?;
    let marker = connection.marker().await?;
    let records = records(&connection, &marker).await?;
    let from = end(common, &records, &view, &args.from)?;
    let to = end(common, &records, &view, to)?;
    let port = match port {
        Some(port) => port,
        None => usual(&records, &to, &args.to)?,
    };
    let seen = seen(&view, &ways, &from, &to, port).await;
    let subnets: BTreeMap<_, _> = records
        .peers
        .iter()
        .map(|(node, peer)| (node.clone(), peer.subnet))
        .collect();
    let subnet = subnets.values().next().copied().or_else(|| records.settings.subnet(0));
    let subnet = subnet.ok_or_else(|| Failure::new(Exit::Failed, "no node has a part of the network"))?;
    let network = AssignedNetwork {
        settings: records.settings.clone(),
        subnet,
        subnet6: None,
        exposed: false,
    };
    let nothing = BTreeSet::new();
    let input = Input {
        network: &network,
        bridge: "",
        links: &nothing,
        ports: &nothing,
        mac: None,
        local: &[],
        endpoints: &records.endpoints,
        policies: &records.policies,
        leads: &[],
    };
    let way = follow(&input, &subnets, &from, &to, port, &seen);
    show(common, &way);
    Ok(if way.passes { Exit::Done } else { Exit::Conflict })
}

fn show(common: &Common, way: &Trace) {
    let hops = || -> Vec<serde_json::Value> {
        let hops = way.hops.iter();
        hops.map(|hop| json!({ "at": hop.at, "passes": hop.passed.word(), "message": hop.says }))
            .collect()
    };
    let value = || json!({ "passes": way.passes, "verdict": way.verdict, "hops": hops() });
    match common.output {
        Format::Json => print(&output::json(&value())),
        Format::Yaml => print(&output::yaml(&value())),
        Format::Name => print(if way.passes { "passes\n" } else { "stopped\n" }),
        Format::Table | Format::Wide => {
            print(&text(way, output::limit_of(common.output == Format::Wide)));
        }
    }
}

fn text(way: &Trace, limit: Option<usize>) -> String {
    let mut table = Table::of_sentences(&["HOP", "", "WHAT"]);
    for hop in &way.hops {
        let tone = match hop.passed {
            Passed::Yes => Tone::Good,
            Passed::No => Tone::Bad,
            Passed::Unknown => Tone::Busy,
        };
        table.row(vec![
            hop.at.into(),
            Cell::new(hop.passed.word(), tone),
            hop.says.as_str().into(),
        ]);
    }
    let verdict = output::wrap(&way.verdict, limit.unwrap_or(usize::MAX)).join("\n");
    format!("{}\n{verdict}\n", table.render(limit))
}

/// A receiver and its port: `db.1:5432/udp`, `[fd00::2]:80`, `fd00::2`.
fn split(text: &str) -> Result<(&str, Option<Port>), Failure> {
    let wrong =
        |port: &str| Failure::usage(format!("`{port}` is no port")).help("write it as `db.1:5432`, or `db.1:53/udp`");
    let bare = text.strip_prefix("node:").unwrap_or(text);
    let (name, port) = match (text.parse::<IpAddr>(), bare.rsplit_once(':')) {
        (Ok(_), _) | (Err(_), None) => return Ok((text, None)),
        (Err(_), Some((_, port))) => (&text[..text.len() - port.len() - 1], port),
    };
    let (number, protocol) = match port.split_once('/') {
        None | Some((_, "tcp")) => (port.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((number, "udp")) => (number, Protocol::Udp),
        Some(_) => return Err(wrong(port)),
    };
    let number = number
        .parse::<u16>()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| wrong(port))?;
    let name = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    Ok((name, Some(Port { number, protocol })))
}

/// The first port that the receiver's service declares.
fn usual(records: &Records, to: &End, said: &str) -> Result<Port, Failure> {
    let declared = match to {
        End::Instance { name, .. } => {
            let key = crate::view::service_key(&name.namespace, &name.workload);
            records.endpoints.get(&key).and_then(|record| record.ports.first())
        }
        End::Node(_) | End::Outside(_) => None,
    };
    match declared {
        Some(port) => Ok(Port {
            number: port.port,
            protocol: port.protocol,
        }),
        None => Err(Failure::usage(format!("say at which port of {said}")).help(format!("such as `{said}:80`"))),
    }
}

/// Who is meant.
fn end(common: &Common, records: &Records, view: &View, text: &str) -> Result<End, Failure> {
    if let Some(node) = text.strip_prefix("node:") {
        let node: NodeName = node
            .parse()
            .map_err(|error| Failure::usage(format!("`{node}` is no node's name: {error}")))?;
        if !view.node_names().contains(&node) {
            return Err(Failure::new(Exit::Failed, format!("there is no node {node}"))
                .help("list nodes with `reeve get nodes`"));
        }
        return Ok(End::Node(node));
    }
    let instance = |name: InstanceName, one: &schemas::records::Endpoint, address: IpAddr| End::Instance {
        name,
        node: one.node.clone(),
        address,
        ready: one.ready,
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        for (key, record) in &records.endpoints {
            let one = record
                .instances
                .iter()
                .find(|one| one.addresses().any(|own| own == address));
            if let (Some(one), Some(namespace)) = (one, &key.namespace) {
                let name = InstanceName {
                    namespace: namespace.clone(),
                    workload: key.name.clone(),
                    slot: one.slot.clone(),
                };
                return Ok(instance(name, one, address));
            }
        }
        let own = |node: &&NodeName| {
            let subnet = records.peers.get(*node).map(|peer| peer.subnet);
            subnet.is_some_and(|subnet| {
                let gateway = schemas::records::network::gateway(&subnet);
                IpAddr::V4(gateway) == address || IpAddr::V4(subnet.network()) == address
            })
        };
        return Ok(match records.peers.keys().find(own) {
            Some(node) => End::Node(node.clone()),
            None => End::Outside(address),
        });
    }
    let target = Target::parse(common, text)?;
    let key = target.service();
    let all = records
        .endpoints
        .get(&key)
        .map_or(&[][..], |record| record.instances.as_slice());
    let slots: Vec<String> = all.iter().map(|one| format!("{}.{}", key.name, one.slot)).collect();
    let found = match &target {
        Target::Instance(name) => all.iter().find(|one| one.slot == name.slot),
        Target::Service(_) if all.len() > 1 => {
            return Err(Failure::usage(format!("{} has {} instances", title(&key), all.len()))
                .help(format!("name one: {}", list(&slots))));
        }
        Target::Service(_) => all.first(),
    };
    match found {
        Some(one) => {
            let name = InstanceName {
                namespace: key.namespace.clone().unwrap_or_default(),
                workload: key.name.clone(),
                slot: one.slot.clone(),
            };
            Ok(instance(name, one, IpAddr::V4(one.address)))
        }
        None if all.is_empty() => {
            Err(
                Failure::new(Exit::Failed, format!("{} has no instance with an address", title(&key))).help(format!(
                    "`reeve describe service {} -n {}` says why",
                    key.name,
                    namespace(&key)
                )),
            )
        }
        None => Err(
            Failure::new(Exit::Failed, format!("there is no instance {text}")).help(format!(
                "{} has {}",
                title(&key),
                list(&slots)
            )),
        ),
    }
}

fn namespace(key: &schemas::keys::ResourceKey) -> String {
    key.namespace.clone().unwrap_or_default().to_string()
}

/// What two agents say.
async fn seen(view: &View, ways: &Ways, from: &End, to: &End, port: Port) -> Seen {
    let (here, there) = (from.node(), to.node());
    let link = async {
        match (here, there) {
            (Some(here), Some(there)) if here != there => link(view, ways, here, there).await,
            (_, _) => Ok(Link::default()),
        }
    };
    let knock = async {
        let End::Instance {
            name, node, address, ..
        } = to
        else {
            return Ok(Knock::Unseen);
        };
        let ask = Ask::Knock {
            namespace: name.namespace.clone(),
            address: *address,
            port: port.number,
            protocol: port.protocol,
        };
        let answers = ask_each::<Knocked>(view, ways, "knock", [node.clone()], &ask).await;
        let answer = answers.into_values().next();
        let answer = answer.unwrap_or_else(|| Err(Failure::new(Exit::Failed, "nobody was asked")));
        answer
            .map_err(|failure| failure.sentence())
            .map(|knocked| match knocked {
                Knocked::Open => Knock::Open,
                Knocked::Closed => Knock::Closed,
                Knocked::Silent => Knock::Silent,
                Knocked::Unseen => Knock::Unseen,
            })
    };
    let (link, knock) = tokio::join!(link, knock);
    let exposed = here.and_then(|node| view.assignments.get(node)?.as_ref().ok()?.network.as_ref());
    Seen {
        link,
        knock,
        exposed: exposed.is_some_and(|network| network.exposed),
    }
}

async fn link(view: &View, ways: &Ways, here: &NodeName, there: &NodeName) -> Result<Link, String> {
    let answers = ask_each::<NetworkHere>(view, ways, "look at the links", [here.clone()], &Ask::Network {}).await;
    let answer = match answers.into_values().next() {
        Some(Ok(answer)) => answer,
        Some(Err(failure)) => return Err(failure.sentence()),
        None => return Err("nobody was asked".to_owned()),
    };
    let kind = answer.kind.map(|kind| kind.word().to_owned());
    match answer.links.into_iter().find(|link| link.node == *there) {
        Some(link) => Ok(Link {
            kind,
            refused: link.refused,
            handshake_seconds: link.handshake_seconds,
            routed: link.routed,
            asked: usize::from(link.asked),
            lost: usize::from(link.lost),
            latency_micros: link.latency_micros,
        }),
        None => Ok(Link {
            kind,
            refused: Some(format!("{here} knows of no link to {there}")),
            ..Link::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use planner::network::trace::Hop;

    #[test]
    fn a_receiver_and_its_port_are_told_apart() {
        let told = |text: &'static str| {
            let (name, port) = split(text).expect("it is understood");
            (name, port.map(|port| (port.number, port.protocol)))
        };
        assert_eq!(told("db.1"), ("db.1", None));
        assert_eq!(told("db.1:5432"), ("db.1", Some((5432, Protocol::Tcp))));
        assert_eq!(told("shop/db.1:53/udp"), ("shop/db.1", Some((53, Protocol::Udp))));
        assert_eq!(told("db.1:80/tcp"), ("db.1", Some((80, Protocol::Tcp))));
        assert_eq!(told("node:n1"), ("node:n1", None));
        assert_eq!(told("node:n1:22"), ("node:n1", Some((22, Protocol::Tcp))));
        assert_eq!(told("10.1.2.3:80"), ("10.1.2.3", Some((80, Protocol::Tcp))));
        assert_eq!(told("fd00::2"), ("fd00::2", None));
        assert_eq!(told("[fd00::2]:80"), ("fd00::2", Some((80, Protocol::Tcp))));
        for bad in ["db.1:", "db.1:0", "db.1:99999", "db.1:80/sctp", "db.1:x"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hops_are_told_in_eighty_columns_and_end_with_one_sentence() {
        let hop = |at, passed, says: &str| Hop {
            at,
            passed,
            says: says.to_owned(),
        };
        let way = Trace {
            hops: vec![
                hop("from", Passed::Yes, "web.1 of namespace default on n1, 10.88.0.2"),
                hop(
                    "enters",
                    Passed::No,
                    "NetworkPolicy db-in restricts what enters db, and no rule allows this at port 80/tcp",
                ),
            ],
            passes: false,
            verdict: "web.1 to db.1, port 80/tcp: stopped, NetworkPolicy db-in restricts what enters db".to_owned(),
        };
        let told = anstream::adapter::strip_str(&text(&way, Some(80))).to_string();
        assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
        assert!(told.contains("enters   stopped   NetworkPolicy db-in"), "{told}");
        assert!(
            told.ends_with("\n\nweb.1 to db.1, port 80/tcp: stopped, NetworkPolicy db-in restricts what enters\ndb\n"),
            "{told}"
        );
    }
}
