//! Which of a host's and a cluster's own ports containers are kept away from, and the packet filter that says so. The agent
//! calls it with what it knows, and hands the text to `nft`. It promises that only traffic out of our own networks is
//! touched, and that nothing but numbers and addresses reaches the text.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, SocketAddr};

/// How the bridges of our networks begin, and of no others.
pub const BRIDGES: &str = "rv-";

/// What an agent knows of control ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Where this agent's API listens; other hosts' agents do so at the same port.
    pub api: Option<SocketAddr>,
    /// The store's members and the seeds, and the engine where it listens on TCP.
    pub control: BTreeSet<SocketAddr>,
    /// Which of those addresses are this host's.
    pub here: BTreeSet<IpAddr>,
}

/// What no container may open a connection to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Ports of this host, at whatever address of its.
    own: BTreeSet<u16>,
    /// A port of every other machine.
    agents: Option<u16>,
    far: BTreeSet<SocketAddr>,
}

/// What is to be closed. Loopback addresses are closed to containers as it is: they have their own.
#[must_use]
pub fn closed(ports: &Ports) -> Closed {
    let api = ports.api.filter(|api| !api.ip().is_loopback()).map(|api| api.port());
    let outside = |to: &&SocketAddr| !to.ip().is_loopback() && !to.ip().is_unspecified();
    let (own, far): (Vec<SocketAddr>, Vec<SocketAddr>) = ports
        .control
        .iter()
        .filter(outside)
        .partition(|to| ports.here.contains(&to.ip()));
    Closed {
        own: own.iter().map(SocketAddr::port).chain(api).collect(),
        agents: api,
        far: far.into_iter().collect(),
    }
}

impl Closed {
    /// Nothing is to be closed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { own, agents, far } = self;
        own.is_empty() && agents.is_none() && far.is_empty()
    }

    /// What `nft -f -` takes: the table as it is to be, in one transaction, whatever it was before.
    #[must_use]
    pub fn ruleset(&self, table: &str) -> String {
        let Self { own, agents, far } = self;
        let mut text = format!("table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n");
        let from = format!("iifname \"{BRIDGES}*\"");
        let mut chain = |hook: &str, rules: Vec<String>| {
            let _ = writeln!(
                text,
                "\tchain {hook} {{\n\t\ttype filter hook {hook} priority -10; policy accept;"
            );
            for rule in rules {
                let _ = writeln!(text, "\t\t{from} {rule} reject with tcp reset");
            }
            text.push_str("\t}\n");
        };
        chain("input", set("tcp dport", own.iter()).into_iter().collect());
        let (far4, far6): (Vec<&SocketAddr>, Vec<&SocketAddr>) = far.iter().partition(|to| to.is_ipv4());
        let pair = |to: &SocketAddr| format!("{} . {}", to.ip(), to.port());
        // A container of ours may listen at an agent's port; those are reached over our own networks.
        let agents = set("tcp dport", agents.iter()).map(|rule| format!("oifname != \"{BRIDGES}*\" {rule}"));
        let rules = [
            agents,
            set("ip daddr . tcp dport", far4.into_iter().map(pair)),
            set("ip6 daddr . tcp dport", far6.into_iter().map(pair)),
        ];
        let clouds = metadata().map(|rule| Some(rule.to_owned()));
        chain("forward", rules.into_iter().chain(clouds).flatten().collect());
        text.push_str("}\n");
        text
    }
}

/// The table of an agent: one for each cluster and node, for several may share a host.
#[must_use]
pub fn table(cluster: &str, node: &str) -> String {
    let word = |text: &str| -> String {
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
        text.chars().take(64).map(plain).collect()
    };
    format!("reeve_{}_{}", word(cluster), word(node))
}

/// The tables of an agent's policy filter, one of each family.
#[must_use]
pub fn filter_table(cluster: &str, node: &str) -> String {
    table(cluster, node).replacen("reeve_", "reeve_net_", 1)
}

/// What leads to the places where clouds tell a machine its own secrets, by HTTP. Some of them answer names too: that stays open.
#[must_use]
pub const fn metadata() -> [&'static str; 2] {
    [
        "ip daddr { 169.254.169.254, 169.254.170.2, 100.100.100.200, 192.0.0.192 } tcp dport != 53",
        "ip6 daddr { fd00:ec2::254, fd20:ce::254 } tcp dport != 53",
    ]
}

/// A match on a set; sets of nothing do not exist.
fn set<T: Display>(what: &str, of: impl Iterator<Item = T>) -> Option<String> {
    let all: Vec<String> = of.map(|one| one.to_string()).collect();
    (!all.is_empty()).then(|| format!("{what} {{ {} }}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(api: &str, control: &[&str], here: &[&str]) -> Ports {
        Ports {
            api: api.parse().ok(),
            control: control.iter().map(|one| one.parse().expect("an address")).collect(),
            here: here.iter().map(|one| one.parse().expect("an address")).collect(),
        }
    }

    #[test]
    fn what_is_on_this_host_is_closed_at_all_its_addresses_and_the_rest_where_it_is() {
        let closed = closed(&ports(
            "10.0.0.1:9465",
            &["10.0.0.1:2379", "10.0.0.2:2379", "[fd00::3]:2379", "127.0.0.1:2375"],
            &["10.0.0.1"],
        ));
        assert_eq!(
            closed.ruleset("t"),
            "table inet t {}\ndelete table inet t\ntable inet t {\n\
             \tchain input {\n\t\ttype filter hook input priority -10; policy accept;\n\
             \t\tiifname \"rv-*\" tcp dport { 2379, 9465 } reject with tcp reset\n\t}\n\
             \tchain forward {\n\t\ttype filter hook forward priority -10; policy accept;\n\
             \t\tiifname \"rv-*\" oifname != \"rv-*\" tcp dport { 9465 } reject with tcp reset\n\
             \t\tiifname \"rv-*\" ip daddr . tcp dport { 10.0.0.2 . 2379 } reject with tcp reset\n\
             \t\tiifname \"rv-*\" ip6 daddr . tcp dport { fd00::3 . 2379 } reject with tcp reset\n\
             \t\tiifname \"rv-*\" ip daddr { 169.254.169.254, 169.254.170.2, 100.100.100.200, 192.0.0.192 } tcp dport != 53 reject with tcp reset\n\
             \t\tiifname \"rv-*\" ip6 daddr { fd00:ec2::254, fd20:ce::254 } tcp dport != 53 reject with tcp reset\n\t}\n}\n"
        );
    }

    #[test]
    fn what_only_this_host_reaches_needs_no_wall() {
        let none = closed(&ports(
            "127.0.0.1:9465",
            &["127.0.0.1:2379", "[::1]:2379"],
            &["127.0.0.1"],
        ));
        assert!(none.is_empty(), "{none:?}");
        assert!(!closed(&ports("", &["10.0.0.1:2379"], &[])).is_empty());
    }

    #[test]
    fn a_table_has_a_name_that_is_one_word_whatever_node_and_cluster_are_called() {
        assert_eq!(
            table("c-1", "web.example-1; flush ruleset"),
            "reeve_c_1_web_example_1__flush_ruleset"
        );
        assert_ne!(table("c", "n1"), table("c", "n2"));
    }
}
