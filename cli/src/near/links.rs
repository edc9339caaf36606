//! What the agents add to `reeve network status`: how each node's end stands, and latency and loss between all pairs. A few nodes
//! are shown as a square of all pairs, many by their worst pairs; who does not answer is named with why.

use std::collections::BTreeMap;

use agent::api::ask::{Ask, KeyHere, LinkHere, NetworkHere};
use planner::network::trace::{millis, seconds};
use schemas::names::NodeName;
use schemas::records::LinkKind;
use serde_json::{Value, json};

use super::Ways;
use super::ground::ask_each;
use crate::args::Common;
use crate::connect::Marker;
use crate::failure::Failure;
use crate::output::{self, Cell, Table, Tone};
use crate::view::View;

/// The most nodes whose pairs make a square.
const SQUARE: usize = 10;
/// Pairs that are told one by one.
const WORST: usize = 20;

/// What the agents said, and who said nothing, with why.
#[derive(Default)]
pub struct Links {
    here: BTreeMap<NodeName, NetworkHere>,
    silent: BTreeMap<NodeName, String>,
}

/// One way between two nodes.
struct Pair<'a> {
    from: &'a NodeName,
    link: &'a LinkHere,
    encrypted: bool,
}

impl Pair<'_> {
    /// What is wrong with it; None where nothing is.
    fn wrong(&self) -> Option<String> {
        let LinkHere {
            handshake_seconds,
            routed,
            refused,
            asked,
            lost,
            ..
        } = self.link;
        if let Some(why) = refused {
            return Some(format!("no link: {why}"));
        }
        if !routed {
            return Some("no route leads there".to_owned());
        }
        let hands = match (self.encrypted, handshake_seconds) {
            (false, _) => String::new(),
            (true, Some(age)) => format!(", last handshake {} ago", seconds(*age)),
            (true, None) => ", no handshake".to_owned(),
        };
        if *lost > 0 {
            return Some(format!("{lost} of the last {asked} pings lost{hands}"));
        }
        (self.encrypted && handshake_seconds.is_none()).then(|| "no handshake".to_owned())
    }

    /// The worst first: no link, then loss, then slow ones.
    fn rank(&self) -> (bool, u16, u32) {
        let dead = self.link.refused.is_some() || !self.link.routed;
        let loss = u16::from(self.link.lost) * 100 / u16::from(self.link.asked.max(1));
        (dead, loss, self.link.latency_micros.unwrap_or(0))
    }

    /// In a few letters.
    fn cell(&self) -> String {
        let LinkHere {
            refused,
            routed,
            asked,
            lost,
            latency_micros,
            ..
        } = self.link;
        match latency_micros {
            _ if refused.is_some() || !routed => "none".to_owned(),
            _ if *asked == 0 => "?".to_owned(),
            None => "lost".to_owned(),
            Some(took) if *lost > 0 => format!("{}!", millis(*took)),
            Some(took) => millis(*took),
        }
    }
}

/// Asks all agents of nodes that are there.
pub async fn links(common: &Common, marker: &Marker, view: &View) -> Result<Links, Failure> {
    let ways = Ways::find(common, marker).await?;
    let nodes = view
        .facts
        .keys()
        .filter(|node| view.sessions.contains_key(node))
        .cloned();
    let mut links = Links::default();
    for (node, answer) in ask_each::<NetworkHere>(view, &ways, "look at the links", nodes, &Ask::Network {}).await {
        match answer {
            Ok(here) => drop(links.here.insert(node, here)),
            Err(failure) => {
                let help = failure.remedy().map(|help| format!("; {help}")).unwrap_or_default();
                links.silent.insert(node, format!("{}{help}", failure.sentence()));
            }
        }
    }
    Ok(links)
}

impl Links {
    fn pairs(&self) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for (from, here) in &self.here {
            let encrypted = matches!(here.kind, Some(LinkKind::Wireguard | LinkKind::WireguardUser));
            pairs.extend(here.links.iter().map(|link| Pair { from, link, encrypted }));
        }
        pairs
    }

    /// For programs.
    pub fn value(&self) -> Value {
        let pairs: Vec<Value> = self
            .pairs()
            .iter()
            .map(|pair| json!({ "from": pair.from, "to": pair.link.node, "link": pair.link, "wrong": pair.wrong() }))
            .collect();
        let nodes: BTreeMap<&NodeName, Value> = self
            .here
            .iter()
            .map(|(node, here)| {
                let NetworkHere {
                    subnet: _,
                    kind,
                    exposed,
                    link_key,
                    addresses_used,
                    addresses_left,
                    links: _,
                    refused,
                    names,
                    repairs,
                    troubles,
                } = here;
                let value = json!({
                    "linkKey": link_key,
                    "kind": kind, "exposed": exposed, "addressesUsed": addresses_used, "addressesLeft": addresses_left,
                    "refused": refused, "names": names, "repairs": repairs, "troubles": troubles,
                });
                (node, value)
            })
            .collect();
        json!({ "nodes": nodes, "pairs": pairs, "silent": self.silent })
    }

    /// For people.
    pub fn text(&self, wide: bool, limit: Option<usize>) -> String {
        let width = limit.unwrap_or(usize::MAX);
        let mut text = String::new();
        if !self.here.is_empty() {
            text.push_str(&format!("\n{}", self.ends(limit)));
        }
        let mut pairs = self.pairs();
        let square = square(&pairs, width.min(output::width().max(80)));
        match square {
            _ if pairs.is_empty() => {}
            _ if wide => text.push_str(&format!("\n{}", list(&pairs, limit))),
            Some(square) => text.push_str(&format!("\n{square}")),
            None => {
                pairs.sort_by_key(|pair| std::cmp::Reverse(pair.rank()));
                let count = pairs.len();
                pairs.truncate(WORST);
                text.push_str(&format!(
                    "\nthe worst of {}; all of them: -o wide\n{}",
                    output::count(count, "pair"),
                    list(&pairs, limit)
                ));
            }
        }
        let wrong: Vec<String> = self
            .pairs()
            .iter()
            .filter_map(|pair| Some(format!("{} to {}: {}", pair.from, pair.link.node, pair.wrong()?)))
            .collect();
        if !wrong.is_empty() {
            text.push('\n');
        }
        for line in wrong.iter().take(WORST) {
            text.push_str(&(output::wrap(line, width).join("\n") + "\n"));
        }
        if wrong.len() > WORST {
            text.push_str(&format!("and {} more\n", output::count(wrong.len() - WORST, "pair")));
        }
        for (node, here) in &self.here {
            for trouble in &here.troubles {
                text.push_str(&(output::wrap(&format!("on {node}: {trouble}"), width).join("\n") + "\n"));
            }
        }
        if !self.silent.is_empty() {
            text.push('\n');
        }
        for (node, why) in self.silent.iter().take(WORST) {
            text.push_str(&(output::wrap(&format!("without {node}: {why}"), width).join("\n") + "\n"));
        }
        if self.silent.len() > WORST {
            let more = output::count(self.silent.len() - WORST, "node");
            text.push_str(&format!("and without {more} more\n"));
        }
        text
    }

    /// A line of each node; of many, only those of which something is to be told.
    fn ends(&self, limit: Option<usize>) -> String {
        let mut table = Table::new(&[
            "NODE", "LEFT", "ROUTES", "REFUSED", "ASKED", "FAILED", "REPAIRS", "KEY", "HOST",
        ]);
        for (node, here) in &self.here {
            let routes = here.links.iter().filter(|link| link.routed).count();
            let tone = if routes < here.links.len() {
                Tone::Bad
            } else {
                Tone::Plain
            };
            let refused: u64 = here.refused.values().sum();
            let counts = here.names.as_ref().map(|names| names.counts);
            let low = here.addresses_left < 10;
            table.row(vec![
                node.as_str().into(),
                Cell::new(here.addresses_left, if low { Tone::Bad } else { Tone::Plain }),
                Cell::new(format!("{routes}/{}", here.links.len()), tone),
                refused.into(),
                counts
                    .map_or("-".to_owned(), |counts| counts.questions.to_string())
                    .into(),
                counts.map_or("-".to_owned(), |counts| counts.failed.to_string()).into(),
                here.repairs.into(),
                key(here),
                if here.exposed { "exposed" } else { "hidden" }.into(),
            ]);
        }
        table.render(limit)
    }
}

/// How old the key of a node's links is; whether another is about to count.
fn key(here: &NetworkHere) -> Cell {
    match &here.link_key {
        None => "-".into(),
        Some(KeyHere { next: Some(_), .. }) => Cell::new("rotating", Tone::Busy),
        Some(KeyHere { age_seconds, .. }) => seconds(*age_seconds).into(),
    }
}

/// Latency from each node, in lines, to each, in columns; None where that is too wide.
fn square(pairs: &[Pair<'_>], width: usize) -> Option<String> {
    let mut nodes: Vec<&NodeName> = pairs.iter().flat_map(|pair| [pair.from, &pair.link.node]).collect();
    nodes.sort();
    nodes.dedup();
    if nodes.len() > SQUARE || nodes.is_empty() {
        return None;
    }
    let long = |node: &&NodeName| node.as_str().len();
    let first = nodes.iter().map(long).max().unwrap_or(0).max("FROM (MS)".len());
    let widths: Vec<usize> = nodes.iter().map(|node| long(node).max(5)).collect();
    if first + widths.iter().map(|width| width + 2).sum::<usize>() > width {
        return None;
    }
    let mut text = format!("{:first$}", "FROM (MS)");
    for (node, width) in nodes.iter().zip(&widths) {
        text.push_str(&format!("  {:>width$}", node.as_str()));
    }
    text.push('\n');
    for from in &nodes {
        let mut line = format!("{:first$}", from.as_str());
        for (to, width) in nodes.iter().zip(&widths) {
            let pair = pairs.iter().find(|pair| pair.from == *from && pair.link.node == **to);
            let cell = pair.map_or_else(|| if from == to { "-" } else { "?" }.to_owned(), Pair::cell);
            line.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Some(text)
}

/// A line of each pair.
fn list(pairs: &[Pair<'_>], limit: Option<usize>) -> String {
    let mut table = Table::new(&["FROM", "TO", "MS", "LOST", "HANDSHAKE", "AT"]);
    for pair in pairs {
        let LinkHere {
            node,
            endpoint,
            handshake_seconds,
            asked,
            lost,
            ..
        } = pair.link;
        let bad = pair.wrong().is_some();
        let tone = if bad { Tone::Bad } else { Tone::Plain };
        let hands = match (pair.encrypted, handshake_seconds) {
            (false, _) => "-".to_owned(),
            (true, Some(age)) => format!("{} ago", seconds(*age)),
            (true, None) => "none".to_owned(),
        };
        table.row(vec![
            pair.from.as_str().into(),
            node.as_str().into(),
            Cell::new(pair.cell(), tone),
            Cell::new(format!("{lost}/{asked}"), tone),
            Cell::new(hands, tone),
            endpoint.map_or("-".to_owned(), |at| at.to_string()).into(),
        ]);
    }
    table.render(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> NodeName {
        format!("n{number}").parse().expect("a name")
    }

    /// All with all, each pair a bit slower.
    fn mesh(count: usize) -> Links {
        let link = |from: usize, to: usize| LinkHere {
            node: name(to),
            endpoint: None,
            handshake_seconds: Some(12),
            received_bytes: 0,
            sent_bytes: 0,
            route: "10.88.1.0/24".parse().expect("a range"),
            routed: true,
            refused: None,
            asked: 10,
            lost: 0,
            latency_micros: Some(u32::try_from(100 * (from + to)).expect("small")),
        };
        let here = |from: usize| NetworkHere {
            kind: Some(LinkKind::Wireguard),
            addresses_left: 250,
            links: (1..=count).filter(|to| *to != from).map(|to| link(from, to)).collect(),
            ..NetworkHere::default()
        };
        Links {
            here: (1..=count).map(|from| (name(from), here(from))).collect(),
            silent: BTreeMap::new(),
        }
    }

    fn told(links: &Links) -> String {
        let text = links.text(false, Some(80));
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text
    }

    #[test]
    fn few_nodes_are_a_square_and_pairs_that_lose_packets_are_marked_and_told() {
        let mut links = mesh(3);
        let damaged = &mut links.here.get_mut(&name(1)).expect("n1").links;
        damaged[0].lost = 4;
        damaged[1].lost = 10;
        damaged[1].latency_micros = None;
        damaged[1].handshake_seconds = None;
        links.here.get_mut(&name(1)).expect("n1").link_key = Some(KeyHere {
            key: "k".to_owned(),
            age_seconds: 3 * 86_400,
            next: Some("l".to_owned()),
            replaced_in_seconds: Some(5),
        });
        links
            .silent
            .insert(name(9), "cannot look at the links on node n9".to_owned());
        let text = told(&links);
        let square = "FROM (MS)     n1     n2     n3\n\
                      n1             -   0.3!   lost\n\
                      n2           0.3      -    0.5\n\
                      n3           0.4    0.5      -\n";
        assert!(text.contains(square), "{text}");
        assert!(
            text.contains("n1 to n2: 4 of the last 10 pings lost, last handshake 12 s ago\n"),
            "{text}"
        );
        assert!(
            text.contains("n1 to n3: 10 of the last 10 pings lost, no handshake\n"),
            "{text}"
        );
        assert!(
            text.contains("without n9: cannot look at the links on node n9\n"),
            "{text}"
        );
        assert!(
            text.contains("n1     250    2/2      0         -       -        0         rotating   hidden\n"),
            "{text}"
        );
    }

    #[test]
    fn ten_nodes_are_a_square_and_more_are_their_worst_pairs() {
        let text = told(&mesh(10));
        assert!(text.contains("FROM (MS)") && !text.contains("the worst"), "{text}");
        let mut links = mesh(11);
        links.here.get_mut(&name(4)).expect("n4").links[0].lost = 1;
        let text = told(&links);
        assert!(text.contains("the worst of 110 pairs"), "{text}");
        let first = text
            .lines()
            .skip_while(|line| !line.starts_with("FROM"))
            .nth(1)
            .unwrap_or_default();
        assert!(first.starts_with("n4     n1"), "{text}");
        assert!(text.lines().count() < 45, "{text}");
        let mut long = mesh(2);
        let here = long.here.remove(&name(1)).expect("n1");
        let odd = "a".repeat(60).parse().expect("a name");
        long.here.insert(odd, here);
        told(&long);
        assert!(!mesh(4).text(true, None).contains("FROM (MS)"));
        assert_eq!(Links::default().text(false, Some(80)), "");
    }
}
