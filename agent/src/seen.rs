//! What others may see of this node's end of the network. `ground.rs` says what it made, `pings.rs` which nodes answered; the
//! API and the metrics ask [`Seen::here`], which looks at links, routes, the filter and the names' server when it is asked, and
//! not more often than once a second. It decides nothing, and nobody waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use planner::network::links::Links;
use planner::network::pings::Record;
use runtime::chain;
use schemas::names::{Namespace, NodeName};
use schemas::records::network::{gateway, usable};
use schemas::records::{AssignedNetwork, ClusterId, LinkKind, Peer};
use tokio::sync::{mpsc, oneshot};

use crate::api::ask::{KeyHere, KeyNext, LinkHere, NamesHere, NetworkHere, Refusal, Why};
use crate::rotation::Asked;
use crate::walls::filter::Filter;

/// How long an answer is the same for whoever asks.
const KEEP: Duration = Duration::from_secs(1);
/// Time for the kernel, a link's process and `nft` to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Time until a next key is on disk: the agent may be in the middle of a look.
const TURN: Duration = Duration::from_secs(20);
/// The most chains of the filter that are told of.
const MAX_CHAINS: usize = 1_000;

/// This node's end.
pub(crate) struct Seen {
    cluster: ClusterId,
    node: NodeName,
    names: PathBuf,
    filter: Filter,
    stands: Mutex<Stands>,
    pings: Mutex<BTreeMap<NodeName, Record>>,
    repairs: AtomicU64,
    /// Who replaces the key of links.
    rotates: Mutex<Option<mpsc::Sender<Asked>>>,
    last: tokio::sync::Mutex<Option<(Instant, Arc<NetworkHere>)>>,
}

/// As it was made last.
#[derive(Clone, Default)]
struct Stands {
    network: Option<AssignedNetwork>,
    own: BTreeMap<IpAddr, Namespace>,
    kind: Option<LinkKind>,
    key: Option<KeyHere>,
    links: Option<Arc<Links>>,
    /// Where each other node answers pings.
    targets: BTreeMap<NodeName, Ipv4Addr>,
    routes: BTreeMap<NodeName, IpNet>,
}

impl Seen {
    pub(crate) fn new(cluster: &ClusterId, node: &NodeName, names: PathBuf) -> Self {
        Self {
            cluster: cluster.clone(),
            node: node.clone(),
            names,
            filter: Filter::new(cluster, node),
            stands: Mutex::default(),
            pings: Mutex::default(),
            repairs: AtomicU64::new(0),
            rotates: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// What this node was assigned; None where the cluster has no network.
    pub(crate) fn assigned(&self, network: Option<&AssignedNetwork>, own: &BTreeMap<IpAddr, Namespace>) {
        let mut stands = lock(&self.stands);
        if stands.network.as_ref() != network {
            stands.network = network.cloned();
        }
        if stands.own != *own {
            stands.own.clone_from(own);
        }
    }

    /// The key of its links; None where they have none.
    pub(crate) fn keyed(&self, key: Option<KeyHere>) {
        lock(&self.stands).key = key;
    }

    /// Who is to be asked for another key from now on.
    pub(crate) fn rotated_by(&self, asks: mpsc::Sender<Asked>) {
        *lock(&self.rotates) = Some(asks);
    }

    /// Begins to replace the key of this node's links.
    pub(crate) async fn rotate(&self) -> Result<KeyNext, Refusal> {
        let busy =
            || Refusal::new(Why::Busy, "the agent does not look after its links now").help("try again in a moment");
        let asks = lock(&self.rotates).clone().ok_or_else(busy)?;
        let (asked, answer) = oneshot::channel();
        let whole = async {
            asks.send(asked).await.map_err(|_| busy())?;
            answer.await.map_err(|_| busy())?
        };
        tokio::time::timeout(TURN, whole).await.map_err(|_| busy())?
    }

    /// Its links as they should be, to whom, and how many things were put right.
    pub(crate) fn linked(
        &self,
        links: Links,
        kind: Option<LinkKind>,
        peers: &BTreeMap<NodeName, Peer>,
        repairs: usize,
    ) {
        self.repairs.fetch_add(repairs as u64, Ordering::Relaxed);
        let mut stands = lock(&self.stands);
        stands.kind = kind;
        if stands.links.as_deref() == Some(&links) && stands.routes.len() == peers.len() {
            return;
        }
        let by_device = links.device.is_some();
        let refused: BTreeSet<&NodeName> = links.refused.iter().map(|one| &one.node).collect();
        let linked = peers.iter().filter(|(node, _)| !refused.contains(node));
        // A link's device has its subnet's own address from its first moment; a bridge is there when something runs.
        let target = |peer: &Peer| {
            if by_device {
                peer.subnet.network()
            } else {
                gateway(&peer.subnet)
            }
        };
        stands.targets = linked.map(|(node, peer)| (node.clone(), target(peer))).collect();
        stands.routes = peers
            .iter()
            .map(|(node, peer)| (node.clone(), IpNet::V4(peer.subnet)))
            .collect();
        let known: BTreeSet<NodeName> = stands.targets.keys().cloned().collect();
        stands.links = Some(Arc::new(links));
        drop(stands);
        lock(&self.pings).retain(|node, _| known.contains(node));
    }

    /// Whom to ask, and where.
    pub(crate) fn targets(&self) -> BTreeMap<NodeName, Ipv4Addr> {
        lock(&self.stands).targets.clone()
    }

    /// A node answered within so many microseconds, or did not.
    pub(crate) fn ping(&self, node: &NodeName, took: Option<u32>) {
        if lock(&self.stands).targets.contains_key(node) {
            lock(&self.pings).entry(node.clone()).or_default().note(took);
        }
    }

    /// Whose an address of this node's own instances is.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<Namespace> {
        lock(&self.stands).own.get(&address).cloned()
    }

    /// What this node was assigned of the network.
    pub(crate) fn network(&self) -> Option<AssignedNetwork> {
        lock(&self.stands).network.clone()
    }

    /// What the kernel calls the bridge of this node's containers.
    pub(crate) fn bridge(&self) -> String {
        planner::node::bridge(&self.cluster, &self.node)
    }

    /// Where the names' server has its copy.
    pub(crate) fn names(&self) -> &std::path::Path {
        &self.names
    }

    /// All that is to be seen now.
    pub(crate) async fn here(&self) -> Arc<NetworkHere> {
        let mut last = self.last.lock().await;
        if let Some((at, here)) = last.as_ref()
            && at.elapsed() < KEEP
        {
            return Arc::clone(here);
        }
        let here = Arc::new(self.look().await);
        *last = Some((Instant::now(), Arc::clone(&here)));
        here
    }

    async fn look(&self) -> NetworkHere {
        let stands = lock(&self.stands).clone();
        let Some(network) = stands.network else {
            return NetworkHere::default();
        };
        let all = usable(&network.subnet);
        let all = (all.end() + 1).saturating_sub(*all.start());
        let used = stands.own.keys().filter(|address| address.is_ipv4()).count();
        let used = u32::try_from(used).unwrap_or(u32::MAX);
        let mut troubles = Vec::new();
        let (mut states, mut missing) = (BTreeMap::new(), BTreeSet::new());
        if let Some(links) = &stands.links {
            match tokio::time::timeout(LIMIT, network::links::state(links)).await {
                Ok(Ok(found)) => states = found.into_iter().map(|one| (one.node.clone(), one)).collect(),
                Ok(Err(error)) => troubles.push(chain(&error)),
                Err(_) => troubles.push("its links do not say how they are".to_owned()),
            }
            match tokio::time::timeout(LIMIT, network::links::missing(links)).await {
                Ok(Ok(found)) => missing = found,
                Ok(Err(error)) => troubles.push(chain(&error)),
                Err(_) => troubles.push("the kernel does not list its routes".to_owned()),
            }
        }
        let why = |node: &NodeName| {
            let links = stands.links.as_ref()?;
            let refused = links.refused.iter().find(|one| one.node == *node);
            refused.map(|one| one.why.clone()).or_else(|| links.why.clone())
        };
        let pings = lock(&self.pings).clone();
        let link = |(node, route): (&NodeName, &IpNet)| {
            let state = states.get(node);
            let record = pings.get(node);
            let (asked, lost) = record.map_or((0, 0), |record| (record.asked(), record.lost()));
            LinkHere {
                node: node.clone(),
                endpoint: state.and_then(|state| state.endpoint),
                handshake_seconds: state.and_then(|state| state.handshake_age).map(|age| age.as_secs()),
                received_bytes: state.map_or(0, |state| state.received_bytes),
                sent_bytes: state.map_or(0, |state| state.sent_bytes),
                route: *route,
                routed: !missing.contains(route),
                refused: why(node),
                asked: u8::try_from(asked).unwrap_or(u8::MAX),
                lost: u8::try_from(lost).unwrap_or(u8::MAX),
                latency_micros: record.and_then(Record::median),
            }
        };
        let links = stands.routes.iter().map(link).collect();
        let refused = match tokio::time::timeout(LIMIT, self.filter.refused()).await {
            Ok(Ok(counts)) => counts.into_iter().take(MAX_CHAINS).collect(),
            Ok(Err(why)) => {
                troubles.push(format!("the filter does not say what it refused: {why}"));
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        let names = match network::names::health(&self.names).await {
            Ok(health) => Some(NamesHere {
                troubles: health.troubles(),
                answering: health.answering,
                services: health.services,
                counts: health.counts,
            }),
            Err(error) => {
                troubles.push(chain(&error));
                None
            }
        };
        NetworkHere {
            subnet: Some(network.subnet),
            kind: stands.kind,
            link_key: stands.key,
            exposed: network.exposed,
            addresses_used: used,
            addresses_left: all.saturating_sub(used),
            links,
            refused,
            names,
            repairs: self.repairs.load(Ordering::Relaxed),
            troubles,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one; if it did, the value would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
