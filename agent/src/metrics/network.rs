//! The node's end of the network for Prometheus, as [`crate::seen::Seen`] finds it when a scrape asks. Of other nodes only those
//! that are not reached have a series each, and no more than a few dozen: of all there would be millions in a large cluster.

use prometheus::proto::MetricFamily;
use prometheus::{Counter, CounterVec, Gauge, GaugeVec, Opts, Registry};

use crate::api::ask::{LinkHere, NetworkHere};

/// Other nodes that are named as not reached.
const MAX_DOWN: usize = 64;

/// How a link is, by its pings, and by what is known to be wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down,
    /// Not measured yet.
    Unknown,
}

fn state(link: &LinkHere) -> State {
    if link.refused.is_some() || !link.routed || (link.asked > 0 && link.lost == link.asked) {
        State::Down
    } else if link.asked == 0 {
        State::Unknown
    } else {
        State::Up
    }
}

/// None where the node has no part of a network.
pub(super) fn families(here: &NetworkHere) -> Result<Vec<MetricFamily>, prometheus::Error> {
    if here.subnet.is_none() {
        return Ok(Vec::new());
    }
    let registry = Registry::new();
    let gauges = |name: &str, help: &str, labels: &[&str]| -> Result<GaugeVec, prometheus::Error> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let gauge = |name: &str, help: &str, value: f64| -> Result<(), prometheus::Error> {
        let one = Gauge::new(name, help)?;
        one.set(value);
        registry.register(Box::new(one))
    };
    let counters = |name: &str, help: &str, labels: &[&str]| -> Result<CounterVec, prometheus::Error> {
        let family = CounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has only floating-point numbers")]
    let float = |value: u64| value as f64;
    let addresses = gauges(
        "reeve_network_addresses",
        "Addresses of the node's part of the network, by state: used, left.",
        &["state"],
    )?;
    addresses
        .with_label_values(&["used"])
        .set(f64::from(here.addresses_used));
    addresses
        .with_label_values(&["left"])
        .set(f64::from(here.addresses_left));
    let links = gauges(
        "reeve_network_links",
        "Links to other nodes, by state: up, down, and unknown while they are not measured.",
        &["state"],
    )?;
    let down = gauges(
        "reeve_network_link_down",
        "1 for each other node that is not reached over its link, 64 of them at most.",
        &["peer"],
    )?;
    for (word, wanted) in [("up", State::Up), ("down", State::Down), ("unknown", State::Unknown)] {
        let count = here.links.iter().filter(|link| state(link) == wanted).count();
        links.with_label_values(&[word]).set(float(count as u64));
    }
    for link in here
        .links
        .iter()
        .filter(|link| state(link) == State::Down)
        .take(MAX_DOWN)
    {
        down.with_label_values(&[link.node.as_str()]).set(1.0);
    }
    let oldest = here.links.iter().filter_map(|link| link.handshake_seconds).max();
    gauge(
        "reeve_network_oldest_handshake_seconds",
        "Since the last handshake of that link whose was longest ago; an idle one has none for long.",
        float(oldest.unwrap_or(0)),
    )?;
    if let Some(key) = &here.link_key {
        gauge(
            "reeve_network_link_key_age_seconds",
            "Since the key of the node's encrypted links was made; there is none where links have no keys.",
            float(key.age_seconds),
        )?;
    }
    let (asked, lost) = here.links.iter().fold((0_u64, 0_u64), |(asked, lost), link| {
        (asked + u64::from(link.asked), lost + u64::from(link.lost))
    });
    gauge(
        "reeve_network_loss_ratio",
        "Of the last pings to all other nodes, which part was not answered.",
        if asked > 0 { float(lost) / float(asked) } else { 0.0 },
    )?;
    let refused = counters(
        "reeve_network_refused_packets_total",
        "Packets refused since the filter was put in place, by its chain: in.<namespace>.<service>, out.<namespace>.<service> and others; - is _.",
        &["chain"],
    )?;
    for (chain, count) in &here.refused {
        refused.with_label_values(&[chain]).inc_by(float(*count));
    }
    let repairs = Counter::new(
        "reeve_network_repairs_total",
        "Devices, peers, routes and neighbours made or put right since the agent's start.",
    )?;
    repairs.inc_by(float(here.repairs));
    registry.register(Box::new(repairs))?;
    let up = here
        .names
        .as_ref()
        .is_some_and(|names| names.answering && names.troubles.is_empty());
    gauge(
        "reeve_names_up",
        "1 while the node's names' server answers and listens where it should, else 0.",
        f64::from(u8::from(up)),
    )?;
    let asked = counters(
        "reeve_names_questions_total",
        "Questions to the node's names' server since its start, by outcome.",
        &["outcome"],
    )?;
    if let Some(names) = &here.names {
        let counts = names.counts;
        let outcomes = [
            ("answered", counts.answered),
            ("forwarded", counts.forwarded),
            ("failed", counts.failed),
            ("refused", counts.refused),
            ("dropped", counts.dropped),
        ];
        for (outcome, count) in outcomes {
            asked.with_label_values(&[outcome]).inc_by(float(count));
        }
    }
    Ok(registry.gather())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ask::{KeyHere, NamesHere};
    use prometheus::{Encoder as _, TextEncoder};

    fn link(node: &str, asked: u8, lost: u8) -> LinkHere {
        LinkHere {
            node: node.parse().expect("a name"),
            endpoint: None,
            handshake_seconds: Some(7),
            received_bytes: 0,
            sent_bytes: 0,
            route: "10.1.0.0/24".parse().expect("a subnet"),
            routed: true,
            refused: None,
            asked,
            lost,
            latency_micros: None,
        }
    }

    #[test]
    fn a_scrape_tells_of_links_addresses_and_names() {
        let here = NetworkHere {
            subnet: Some("10.1.0.0/24".parse().expect("a subnet")),
            addresses_used: 3,
            addresses_left: 250,
            links: vec![link("n2", 10, 0), link("n3", 4, 4), link("n4", 0, 0), link("n5", 2, 1)],
            refused: [("in.shop.db".to_owned(), 9)].into(),
            names: Some(NamesHere {
                answering: true,
                ..NamesHere::default()
            }),
            repairs: 2,
            link_key: Some(KeyHere {
                key: "k".to_owned(),
                age_seconds: 86_400,
                next: None,
                replaced_in_seconds: None,
            }),
            ..NetworkHere::default()
        };
        let mut out = Vec::new();
        let families = families(&here).expect("metrics");
        TextEncoder::new().encode(&families, &mut out).expect("text");
        let text = String::from_utf8(out).expect("text");
        for line in [
            "reeve_network_addresses{state=\"left\"} 250",
            "reeve_network_links{state=\"up\"} 2",
            "reeve_network_links{state=\"down\"} 1",
            "reeve_network_links{state=\"unknown\"} 1",
            "reeve_network_link_down{peer=\"n3\"} 1",
            "reeve_network_oldest_handshake_seconds 7",
            "reeve_network_loss_ratio 0.3125",
            "reeve_network_refused_packets_total{chain=\"in.shop.db\"} 9",
            "reeve_network_repairs_total 2",
            "reeve_network_link_key_age_seconds 86400",
            "reeve_names_up 1",
            "reeve_names_questions_total{outcome=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("peer=\"n2\""), "{text}");
        assert_eq!(super::families(&NetworkHere::default()).expect("none").len(), 0);
    }
}
