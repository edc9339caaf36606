//! The way of a connection, hop by hop: who sends it, what policies say at both ends, the link between the nodes, and who
//! receives it. `reeve trace` collects what the store and two agents say, and prints what [`trace`] makes of it. It decides
//! nothing that the nodes' filters do: of policies [`weigh`] tells, which a test holds to the filters' own rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use schemas::container::Protocol;
use schemas::names::{InstanceName, NodeName};
use schemas::records::network::gateway;

use super::policy::{Input, Packet, Rule, Side, weigh};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Instance {
        name: InstanceName,
        node: NodeName,
        address: IpAddr,
        ready: bool,
    },
    /// A host, as one of the network's.
    Node(NodeName),
    /// Somebody who is no instance.
    Outside(IpAddr),
}

/// Where a connection goes, at the receiver's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub protocol: Protocol,
}

/// What the sender's agent says of the link to the receiver's node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Such as `wireguard`.
    pub kind: Option<String>,
    /// Why there is none.
    pub refused: Option<String>,
    pub handshake_seconds: Option<u64>,
    /// Whether the kernel has the route.
    pub routed: bool,
    pub asked: usize,
    pub lost: usize,
    pub latency_micros: Option<u32>,
}

/// What came of knocking at the receiver's door, on its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    Open,
    /// Nobody listens at that port.
    Closed,
    /// No answer at all.
    Silent,
    /// Whether somebody listens at a UDP port cannot be seen from outside.
    Unseen,
}

/// What is known beside the store; an error is why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub link: Result<Link, String>,
    pub knock: Result<Knock, String>,
    /// Whether the sender's host may reach the network, where it is a host.
    pub exposed: bool,
}

/// Whether a hop lets it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    Yes,
    No,
    /// It could not be found out.
    Unknown,
}

impl Passed {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "ok",
            Self::No => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// One hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// `from`, `leaves`, `link`, `enters` or `to`.
    pub at: &'static str,
    pub passed: Passed,
    pub says: String,
}

/// The whole way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub hops: Vec<Hop>,
    pub passes: bool,
    /// In one sentence.
    pub verdict: String,
}

impl End {
    /// The node that it is on.
    #[must_use]
    pub const fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Instance { node, .. } | Self::Node(node) => Some(node),
            Self::Outside(_) => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Instance { name, .. } if name.namespace.as_str() == "default" => name.to_string(),
            Self::Instance { name, .. } => format!("{}/{name}", name.namespace),
            Self::Node(node) => format!("node {node}"),
            Self::Outside(address) => address.to_string(),
        }
    }

    fn address(&self, subnets: &BTreeMap<NodeName, Ipv4Net>) -> Option<IpAddr> {
        match self {
            Self::Instance { address, .. } | Self::Outside(address) => Some(*address),
            Self::Node(node) => subnets.get(node).map(|subnet| IpAddr::V4(gateway(subnet))),
        }
    }
}

/// What becomes of a connection. `input` is as [`weigh`] wants it, `subnets` are the nodes' own.
#[must_use]
pub fn trace(
    input: &Input<'_>,
    subnets: &BTreeMap<NodeName, Ipv4Net>,
    from: &End,
    to: &End,
    port: Port,
    seen: &Seen,
) -> Trace {
    let mut hops = vec![sender(from)];
    let near = from.node().is_some() && from.node() == to.node();
    match (from.address(subnets), to.address(subnets)) {
        (Some(source), Some(target)) => {
            let packet = Packet {
                from: source,
                to: target,
                protocol: port.protocol,
                port: port.number,
                published: false,
            };
            let weighed = weigh(input, &packet);
            hops.push(leaving(from, to, &weighed.leaving, near, seen));
            hops.extend(between(from, to, near, seen));
            hops.push(entering(from, to, &weighed.entering, near, weighed.nobody, port));
        }
        (None, _) | (_, None) => hops.push(Hop {
            at: "leaves",
            passed: Passed::No,
            says: "that node has no part of the network yet: `reeve network status` shows why".to_owned(),
        }),
    }
    hops.push(receiver(to, port, seen));
    let stopped = hops.iter().find(|hop| hop.passed == Passed::No);
    let unknown = hops.iter().find(|hop| hop.passed == Passed::Unknown);
    let what = format!(
        "{} to {}, port {}/{}",
        from.words(),
        to.words(),
        port.number,
        word(port.protocol)
    );
    let verdict = match (stopped, unknown) {
        (Some(hop), _) => format!("{what}: stopped, {}", hop.says),
        (None, Some(hop)) => format!("{what}: passes, as far as can be seen; {}", hop.says),
        (None, None) => format!("{what}: passes"),
    };
    Trace {
        passes: stopped.is_none(),
        hops,
        verdict,
    }
}

const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn sender(from: &End) -> Hop {
    let says = match from {
        End::Instance {
            name, node, address, ..
        } => format!("{name} of namespace {} on {node}, {address}", name.namespace),
        End::Node(node) => format!("{node} itself, as a host"),
        End::Outside(address) => format!("{address}, no instance"),
    };
    Hop {
        at: "from",
        passed: Passed::Yes,
        says,
    }
}

fn rule(by: &Rule) -> String {
    format!("rule {} of NetworkPolicy {} allows it", by.number, by.policy)
}

/// `NetworkPolicy a restricts`, `NetworkPolicies a and b restrict`.
fn restricting(names: &[String]) -> String {
    match names {
        [one] => format!("NetworkPolicy {one} restricts"),
        [some @ .., last] => format!("NetworkPolicies {} and {last} restrict", some.join(", ")),
        [] => "no NetworkPolicy restricts".to_owned(),
    }
}

fn leaving(from: &End, to: &End, side: &Side, near: bool, seen: &Seen) -> Hop {
    let hop = |passed, says: String| Hop {
        at: "leaves",
        passed,
        says,
    };
    match (from, to) {
        (End::Outside(_), _) => hop(Passed::Yes, "it begins outside".to_owned()),
        (End::Node(_), End::Node(_) | End::Outside(_)) => hop(
            Passed::Yes,
            "no policy is about what hosts send to each other".to_owned(),
        ),
        (End::Node(_), End::Instance { .. }) if seen.exposed => {
            hop(Passed::Yes, "the network is exposed on that host".to_owned())
        }
        (End::Node(node), End::Instance { .. }) => hop(
            Passed::No,
            format!("the network is hidden from that host, but for root's processes: `reeve expose --node {node}`"),
        ),
        (End::Instance { .. }, End::Node(_)) if near => match (&side.by, side.restricted_by.is_empty()) {
            (_, true) => hop(
                Passed::Yes,
                "its own host is open to it, but for control ports".to_owned(),
            ),
            (Some(by), false) => hop(Passed::Yes, rule(by)),
            (None, false) => hop(
                Passed::No,
                format!(
                    "{} what leaves it, and no rule allows this",
                    restricting(&side.restricted_by)
                ),
            ),
        },
        (End::Instance { .. }, End::Node(node)) => hop(
            Passed::No,
            format!("instances reach other nodes' own addresses, as {node}'s, by pings alone"),
        ),
        (End::Instance { .. }, End::Instance { .. } | End::Outside(_)) => match (&side.by, side.allowed) {
            (Some(by), _) => hop(Passed::Yes, rule(by)),
            (None, true) => hop(Passed::Yes, "no NetworkPolicy restricts what leaves it".to_owned()),
            (None, false) => hop(
                Passed::No,
                format!(
                    "{} what leaves it, and no rule allows this",
                    restricting(&side.restricted_by)
                ),
            ),
        },
    }
}

/// The link between two nodes; none where there is but one.
fn between(from: &End, to: &End, near: bool, seen: &Seen) -> Option<Hop> {
    let hop = |passed, says: String| {
        Some(Hop {
            at: "link",
            passed,
            says,
        })
    };
    let (Some(here), Some(there)) = (from.node(), to.node()) else {
        return match to {
            End::Outside(_) if from.node().is_some() => hop(Passed::Yes, "out under its host's own address".to_owned()),
            End::Outside(_) | End::Instance { .. } | End::Node(_) => None,
        };
    };
    if near {
        return hop(Passed::Yes, format!("both are on {here}"));
    }
    let way = format!("{here} to {there}");
    let link = match &seen.link {
        Ok(link) => link,
        Err(why) => return hop(Passed::Unknown, format!("{way}: {why}")),
    };
    if let Some(why) = &link.refused {
        return hop(Passed::No, format!("{way}: no link: {why}"));
    }
    let kind = link.kind.as_deref().unwrap_or("no link");
    if !link.routed {
        return hop(Passed::No, format!("{way}: {kind}, and no route leads there"));
    }
    let mut told = vec![format!("{way}: {kind}")];
    told.extend(
        link.handshake_seconds
            .map(|age| format!("handshake {} ago", seconds(age))),
    );
    told.extend(link.latency_micros.map(|took| format!("{} ms", millis(took))));
    if link.asked > 0 {
        told.push(format!("{} of {} pings lost", link.lost, link.asked));
    }
    let passed = match (link.asked, link.lost) {
        (0, _) => Passed::Unknown,
        (asked, lost) if asked == lost => Passed::No,
        (_, _) => Passed::Yes,
    };
    if link.asked == 0 {
        told.push("not measured yet".to_owned());
    }
    hop(passed, told.join(", "))
}

fn entering(from: &End, to: &End, side: &Side, near: bool, nobody: bool, port: Port) -> Hop {
    let hop = |passed, says: String| Hop {
        at: "enters",
        passed,
        says,
    };
    match (from, to) {
        (_, End::Node(_)) => hop(Passed::Yes, "no policy is about what hosts receive".to_owned()),
        (_, End::Outside(address)) if nobody => hop(Passed::No, format!("no instance has the address {address}")),
        (_, End::Outside(_)) => hop(Passed::Yes, "no policy is about what is outside".to_owned()),
        (End::Node(_), End::Instance { .. }) if near => hop(Passed::Yes, "it comes from its own host".to_owned()),
        (_, End::Instance { name, .. }) => match (&side.by, side.allowed) {
            (Some(by), _) => hop(Passed::Yes, rule(by)),
            (None, true) => hop(
                Passed::Yes,
                format!("no NetworkPolicy restricts what enters {}", name.workload),
            ),
            (None, false) if side.restricted_by.is_empty() => {
                let from = match from {
                    End::Instance { name, .. } => format!("namespace {}", name.namespace),
                    End::Node(_) | End::Outside(_) => "outside, but by a published port".to_owned(),
                };
                hop(
                    Passed::No,
                    format!(
                        "no NetworkPolicy of namespace {} lets anything in from {from}",
                        name.namespace
                    ),
                )
            }
            (None, false) => hop(
                Passed::No,
                format!(
                    "{} what enters {}, and no rule allows this at port {}/{}",
                    restricting(&side.restricted_by),
                    name.workload,
                    port.number,
                    word(port.protocol)
                ),
            ),
        },
    }
}

fn receiver(to: &End, port: Port, seen: &Seen) -> Hop {
    let hop = |passed, says: String| Hop { at: "to", passed, says };
    match to {
        End::Node(node) => hop(Passed::Yes, format!("{node} itself, as a host")),
        End::Outside(address) => hop(Passed::Yes, format!("{address}, no instance")),
        End::Instance {
            name,
            node,
            address,
            ready,
        } => {
            let ready = if *ready { "ready" } else { "not ready" };
            let at = format!("{name} on {node}, {ready}");
            let door = SocketAddr::new(*address, port.number);
            match &seen.knock {
                Ok(Knock::Open) => hop(Passed::Yes, format!("{at}, listens at {door}")),
                Ok(Knock::Closed) => hop(Passed::No, format!("{at}, but nobody listens at {door}")),
                Ok(Knock::Silent) => hop(Passed::No, format!("{at}, but does not answer at {door}")),
                Ok(Knock::Unseen) => hop(
                    Passed::Unknown,
                    format!("{at}; whether it listens at a UDP port is not seen"),
                ),
                Err(why) => hop(Passed::Unknown, format!("{at}; whether it listens is not known: {why}")),
            }
        }
    }
}

/// `12 s`, `3 min`, `2 h`.
#[must_use]
pub fn seconds(age: u64) -> String {
    match age {
        0..=119 => format!("{age} s"),
        120..=7_199 => format!("{} min", age / 60),
        7_200..=172_799 => format!("{} h", age / 3_600),
        _ => format!("{} d", age / 86_400),
    }
}

/// `0.04`, `0.4`, `12`.
#[must_use]
pub fn millis(micros: u32) -> String {
    match micros {
        0..=94 => format!("{}.{:02}", micros / 1_000, micros % 1_000 / 10),
        95..=9_949 => format!("{}.{}", (micros + 50) / 1_000, (micros + 50) % 1_000 / 100),
        _ => format!("{}", (u64::from(micros) + 500) / 1_000),
    }
}

#[cfg(test)]
mod tests;
