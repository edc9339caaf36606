//! This node's relay, kept as it should be: ports at containers' own `localhost`, and ports that are open on every node. The
//! ground (`ground.rs`) calls [`Relays::keep`] whenever it has looked; what is open is `planner::network::relay`'s, and
//! `reeve relay` carries it. A node that needs none has no such process. It promises: the process outlives this one, and what
//! it carries does not notice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use network::relay::{self, Counts, Ensured, Health, Relay};
use planner::network::relay::{Held, Input, Lead, Reaching, Table, leads, table};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use runtime::chain;
use schemas::keys::ResourceKey;
use schemas::names::{Namespace, NodeName};
use schemas::records::{Endpoints, NetworkSettings, NodeCondition, Policies};

/// Where the relay keeps its table, under the data directory.
const DIR: &str = "relay";

/// What the agent's loop says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Containers of this node that reach services at their own host.
    pub reaching: Vec<Reaching>,
    /// The lowest port of this node that may be opened, as its policy says, and the addresses; None: all.
    pub lowest_port: u16,
    pub host_ips: Option<Vec<IpAddr>>,
}

/// What the relay's table follows from.
pub struct Wanted<'a> {
    pub node: &'a NodeName,
    pub settings: &'a NetworkSettings,
    pub addresses: BTreeSet<IpAddr>,
    pub reach: &'a Reach,
    pub endpoints: &'a BTreeMap<ResourceKey, Arc<Endpoints>>,
    pub policies: &'a BTreeMap<Namespace, Arc<Policies>>,
}

/// The relay of one agent.
#[derive(Debug)]
pub struct Relays {
    relay: Relay,
    /// What was written last.
    table: Option<Table>,
    /// Whether the process knows of it.
    told: bool,
    /// The ports of the node that it has; while it does not answer those it had. None: it was not asked yet.
    held: Option<BTreeSet<Held>>,
}

/// What the relay must have, and what is left out, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    table: Table,
    left_out: Vec<String>,
}

impl Relays {
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self {
            relay: Relay {
                dir: data_dir.join(DIR),
                source: None,
            },
            table: None,
            told: false,
            held: None,
        }
    }

    pub fn process(&self) -> network::detached::Place {
        self.relay.place()
    }

    /// What is to be open.
    #[must_use]
    pub fn plan(wanted: &Wanted<'_>) -> Planned {
        let (table, left_out) = table(&Input {
            node: wanted.node,
            settings: wanted.settings,
            addresses: &wanted.addresses,
            lowest_port: wanted.reach.lowest_port,
            host_ips: wanted.reach.host_ips.as_deref(),
            reaching: &wanted.reach.reaching,
            endpoints: wanted.endpoints,
            policies: wanted.policies,
        });
        Planned { table, left_out }
    }

    /// What the kernel leads past the relay, as far as the relay has the ports.
    pub async fn leads(&mut self, planned: &Planned) -> Vec<Lead> {
        // What an agent before this one began goes on without a gap.
        if self.held.is_none() && self.relay.dir.exists() {
            let health = relay::health(&self.relay.dir).await;
            self.held = health.ok().map(|health| health.held.into_iter().collect());
        }
        leads(&planned.table, self.held.get_or_insert_default())
    }

    /// Sees to it that what is planned is open; `own` is the node's own address in the network, by which other nodes' filters
    /// know it. What is wrong with that is returned.
    pub async fn keep(&mut self, planned: Planned, own: IpAddr) -> Vec<NodeCondition> {
        self.relay.source = Some(own);
        let mut troubles = planned.left_out;
        troubles.extend(self.place(planned.table).await);
        let condition = |why: String| NodeCondition {
            reason: "RelayDown".to_owned(),
            message: format!("ports that lead to services may be closed: {why}"),
        };
        troubles.into_iter().map(condition).collect()
    }

    async fn place(&mut self, table: Table) -> Vec<String> {
        let nothing = table.listeners.is_empty();
        if nothing && !self.relay.dir.exists() {
            return Vec::new();
        }
        if self.table.as_ref() != Some(&table) {
            if let Err(error) = relay::write(&self.relay.dir, &table) {
                return vec![chain(&error)];
            }
            self.table = Some(table);
            self.told = false;
        }
        if nothing {
            return self.rest().await;
        }
        match self.relay.ensure().await {
            Ok((Ensured::Ran, health)) if self.told => self.heard(&health),
            // It has read the table just now.
            Ok((Ensured::Started | Ensured::Replaced, health)) => {
                self.told = true;
                self.heard(&health)
            }
            Ok((Ensured::Ran, _)) => self.tell().await,
            Err(error) => vec![chain(&error)],
        }
    }

    async fn tell(&mut self) -> Vec<String> {
        match relay::tell(&self.relay.dir).await {
            Ok(health) => {
                self.told = true;
                self.heard(&health)
            }
            Err(error) => vec![chain(&error)],
        }
    }

    /// What it has, and what is wrong with it.
    fn heard(&mut self, health: &Health) -> Vec<String> {
        self.held = Some(health.held.iter().copied().collect());
        health.troubles()
    }

    /// Nothing is to be open: the process goes when nothing is any more.
    async fn rest(&mut self) -> Vec<String> {
        self.held = Some(BTreeSet::new());
        // What is open by what was closed goes on.
        let open = match relay::tell(&self.relay.dir).await {
            Ok(health) => health.open,
            Err(_) => 0,
        };
        if open > 0 {
            return Vec::new();
        }
        match self.relay.stop().await {
            Ok(()) => Vec::new(),
            Err(error) => vec![chain(&error)],
        }
    }
}

/// Takes the relay's process away: for a host that leaves.
///
/// # Errors
/// Why it stays.
pub async fn raze(data_dir: &Path) -> Result<(), String> {
    let dir = data_dir.join(DIR);
    let relay = Relay { dir, source: None };
    relay.stop().await.map_err(|error| chain(&error))
}

/// Where a scrape asks for the relay's numbers.
#[must_use]
pub fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join(DIR)
}

/// The relay's numbers, asked of it now; none where none runs.
///
/// # Errors
/// A name that is no metric's, which a test excludes.
pub async fn registry(dir: &Path) -> Result<Registry, prometheus::Error> {
    let registry = Registry::new();
    if dir.as_os_str().is_empty() || !dir.exists() {
        return Ok(registry);
    }
    let Ok(health) = relay::health(dir).await else {
        return Ok(registry);
    };
    let open = IntGauge::new(
        "reeve_agent_relay_open",
        "Connections and UDP flows that this node's relay carries now.",
    )?;
    open.set(i64::try_from(health.open).unwrap_or(i64::MAX));
    registry.register(Box::new(open))?;
    let labels = ["namespace", "service", "port"];
    type Take = fn(&Counts) -> u64;
    let families: [(&str, &str, Take); 3] = [
        (
            "reeve_agent_relay_connections_total",
            "Connections and UDP flows that this node's relay led to an instance.",
            |counts| counts.connections,
        ),
        (
            "reeve_agent_relay_refused_total",
            "Those it refused: no instance was ready or answered, who came may not, or there were too many.",
            |counts| counts.refused,
        ),
        (
            "reeve_agent_relay_failed_over_total",
            "Instances that did not answer this node's relay, so that it tried the next one.",
            |counts| counts.failed_over,
        ),
    ];
    for (name, help, take) in families {
        let family = IntCounterVec::new(Opts::new(name, help), &labels)?;
        for (target, counts) in &health.counts {
            let Some((namespace, rest)) = target.split_once('/') else {
                continue;
            };
            let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
            let labels = [namespace, service, port];
            family.with_label_values(&labels).inc_by(take(counts));
        }
        registry.register(Box::new(family))?;
    }
    Ok(registry)
}
