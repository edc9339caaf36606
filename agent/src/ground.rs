//! This node's end of the cluster's network, kept as it should be: its links to the other nodes, and the names of what runs on
//! them. `run.rs` starts [`keep`] beside the agent's loop, which says what it was assigned, and hears when the ground is ready
//! to be built on. What must be is computed in `planner::network`; the crate `network` makes it so. What the store last said
//! is kept on disk, so that all of it goes on, and begins again, while the store is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use network::detached::{Ends, Place};
use network::links::{Changes, Setup, Wires, host, own_verb, probe};
use network::names::{self, Part, Sees, Server, Settings};
use network::wireguard::Keys;
use planner::network::links::{self, Host, Probed};
use runtime::{Cache, Prefix, Reader, ReflectOptions, Shutdown, Store, chain};
use schemas::keys::{Key, ResourceKey, Root};
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::records::network::{address6, gateway};
use schemas::records::{
    AssignedNetwork, ClusterId, ClusterMarker, Endpoints, LinkKind, LinkProof, NodeCondition, NodeLink, Peer, Policies,
    Record,
};
use tokio::sync::{mpsc, watch};
use trust::trusted::Trust;

use self::believed::{Believed, believed, document, unproven};
use self::kept::{keep_file, read_endpoints, read_file, read_ranges, service};
use self::public::Public;
use crate::register::{marker, today};
use crate::relays::{self, Reach, Relays};
use crate::rotation::{self, Turn, Turned};
use crate::run::Note;
use crate::seen::Seen;
use crate::walls::filter::{Filter, Running, Wanted};

mod believed;
mod guard;
mod kept;
mod public;

/// How often everything is looked at though nothing was heard.
const LOOK: Duration = Duration::from_secs(2);
/// What comes at once is answered at once.
const GATHER: Duration = Duration::from_millis(10);
/// A process that ended is started again at once, if that was not done just before.
const AGAIN: Duration = Duration::from_secs(2);
/// A new key of another node is looked at this often, for so long: until it answers the one before goes on.
const SOON: Duration = Duration::from_millis(100);
const SOON_FOR: Duration = Duration::from_secs(60);
/// A host's addresses, and what its kernel can do, are asked for anew after so many looks.
const LOOKS_TO_HOST: u32 = 15;
const PEERS_FILE: &str = "peers.json";
const POLICIES_FILE: &str = "policies.json";
/// Where links keep their keys and their process, and names their copy, under the data directory.
const LINKS_DIR: &str = "links";
const NAMES_DIR: &str = "names";
const DNS: u16 = 53;

/// Proves that a link is this node's own; None where nodes have no certificates.
#[derive(Clone)]
pub struct Prove(pub Arc<Prover>);

/// Signs a document under the node's certificate; None where it has none.
pub type Prover = dyn Fn(&[u8]) -> Option<LinkProof> + Send + Sync;

impl Default for Prove {
    fn default() -> Self {
        Self(Arc::new(|_| None))
    }
}
impl std::fmt::Debug for Prove {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prove")
    }
}

/// What the agent was assigned of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub network: Option<AssignedNetwork>,
    /// Whose the addresses of this node's own instances are.
    pub own: BTreeMap<IpAddr, Namespace>,
    /// What has an address here.
    pub running: Vec<Running>,
    pub reach: Reach,
}

/// What the agent is told of the ground.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footing {
    /// The largest packet in it, in bytes; None while nothing can be built on it.
    pub mtu: Option<u16>,
    /// What the node's facts say of its link.
    pub link: Option<NodeLink>,
    pub conditions: Vec<NodeCondition>,
}

/// What keeping the ground needs.
pub struct Ground<S> {
    pub store: S,
    pub root: Root,
    pub cluster: ClusterId,
    pub node: NodeName,
    pub dir: PathBuf,
    pub prove: Prove,
    pub trust: Option<watch::Receiver<Arc<Trust>>>,
    /// The address under which the outside reaches this node.
    pub public: Option<String>,
    pub local: watch::Receiver<Local>,
    pub notes: mpsc::UnboundedSender<Note>,
    /// Told of all that is made.
    pub seen: Arc<Seen>,
}

/// What a node's own facts are made of: asked for from time to time.
struct Here {
    probed: Probed,
    host: Host,
    link: NodeLink,
    looks: u32,
}

struct Keeper<S> {
    ground: Ground<S>,
    keys: Option<Keys>,
    /// Who wants another key, and waits for an answer.
    asked: Vec<rotation::Asked>,
    here: Option<Here>,
    public: Public,
    wires: Option<Wires>,
    copy: Option<names::Copy>,
    peers: BTreeMap<NodeName, Peer>,
    /// Who may talk to whom is kept by it.
    filter: Filter,
    endpoints: Arc<BTreeMap<ResourceKey, Arc<Endpoints>>>,
    policies: Arc<BTreeMap<Namespace, Arc<Policies>>>,
    wanted: Option<Wanted>,
    relays: Relays,
    /// Parts of the names' copy that the server was not told of yet.
    untold: BTreeSet<Part>,
    /// The revision at which each record of endpoints was read last.
    read: BTreeMap<Vec<u8>, i64>,
    /// Whose word was found to be their own, by whose trust; None: to be found out anew.
    checked: Option<(Arc<Trust>, Believed)>,
    told: Footing,
    said: BTreeSet<String>,
}

/// Keeps the ground until the shutdown drains. What was made stays.
pub async fn keep<S: Store>(ground: Ground<S>, shutdown: Shutdown) {
    let (store, root) = (ground.store.clone(), ground.root.clone());
    let reflect = |class: &str| -> Option<Reader> {
        let prefix = Prefix::new(root.prefix(class)).ok()?;
        Some(runtime::reflect(
            store.clone(),
            prefix,
            ReflectOptions::default(),
            &shutdown,
        ))
    };
    // A cluster without a network has nothing to be heard of.
    let (mut peers, mut endpoints): (Option<Reader>, Option<Reader>) = (None, None);
    let mut policies: Option<Reader> = None;
    let mut local = ground.local.clone();
    let names = links::names(&ground.cluster, &ground.node);
    let known: Vec<Peer> = read_file(&ground.dir.join(PEERS_FILE), "other nodes");
    let policies_known: BTreeMap<Namespace, Policies> = read_file(&ground.dir.join(POLICIES_FILE), "network policies");
    let mut keeper = Keeper {
        filter: Filter::new(&ground.cluster, &ground.node),
        endpoints: Arc::new(read_endpoints(&ground.dir.join(NAMES_DIR))),
        policies: Arc::new(
            policies_known
                .into_iter()
                .map(|(name, record)| (name, Arc::new(record)))
                .collect(),
        ),
        wanted: None,
        relays: Relays::new(&ground.dir),
        ground,
        keys: None,
        asked: Vec::new(),
        here: None,
        public: Public::default(),
        wires: None,
        copy: None,
        peers: known.into_iter().map(|peer| (peer.node.clone(), peer)).collect(),
        untold: BTreeSet::new(),
        read: BTreeMap::new(),
        checked: None,
        told: Footing::default(),
        said: BTreeSet::new(),
    };
    let mut changes: Option<Changes> = None;
    let mut ends = Ends::of(keeper.places());
    let mut ended: Option<Instant> = None;
    let (asks, mut asked) = mpsc::channel(8);
    keeper.ground.seen.rotated_by(asks);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let has_network = local.borrow_and_update().network.is_some();
        if has_network && peers.is_none() {
            (peers, endpoints) = (reflect("peers"), reflect("endpoints"));
            policies = reflect("policies");
        }
        if has_network && changes.as_ref().is_none_or(Changes::is_over) {
            changes = Changes::new(&names).await.ok();
        }
        let heard = async {
            match &changes {
                Some(changes) => changes.wait().await,
                None => std::future::pending().await,
            }
        };
        let (mut of_peers, mut of_endpoints, mut of_policies) = (false, false, false);
        tokio::select! {
            () = shutdown.draining() => return,
            changed = local.changed() => if changed.is_err() { return },
            () = news(&mut peers) => of_peers = true,
            () = news(&mut endpoints) => of_endpoints = true,
            () = news(&mut policies) => of_policies = true,
            () = heard, if has_network => tokio::time::sleep(GATHER).await,
            () = ends.wait(), if has_network && ended.is_none_or(|at| at.elapsed() > AGAIN) => ended = Some(Instant::now()),
            Some(one) = asked.recv() => keeper.asked.push(one),
            () = tokio::time::sleep(SOON), if keeper.waits() => {
                let now = local.borrow().network.clone();
                if let Some(network) = now {
                    keeper.link(&network, &mut Vec::new()).await;
                }
                continue;
            }
            _ = look.tick() => {}
        }
        if of_peers && let Some(cache) = peers.as_ref().and_then(Reader::snapshot) {
            keeper.take_peers(&cache).await;
        }
        if of_endpoints && let Some(cache) = endpoints.as_ref().and_then(Reader::snapshot) {
            keeper.take_endpoints(&cache).await;
        }
        if of_policies && let Some(cache) = policies.as_ref().and_then(Reader::snapshot) {
            keeper.take_policies(&cache).await;
        }
        let now = local.borrow_and_update().clone();
        keeper.converge(now).await;
        if has_network {
            ends.follow().await;
        }
    }
}

/// Waits for a change of what is followed; for ever where nothing is.
async fn news(reader: &mut Option<Reader>) {
    let ended = match reader {
        Some(reader) => reader.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending().await
    }
}

impl<S: Store> Keeper<S> {
    /// Whether a list of the store says that something is gone: only that of our own cluster does, as it is now.
    async fn is_whole(&self, cache: &Cache) -> bool {
        if cache.went_back.is_some() {
            return false;
        }
        let read = marker(&self.ground.store, &self.ground.root).await;
        matches!(read, Ok(Some(Ok(ClusterMarker { id, moved: None, .. }))) if id == self.ground.cluster)
    }

    async fn take_peers(&mut self, cache: &Cache) {
        let mut listed = BTreeSet::new();
        let mut changed = false;
        for kv in cache.keys.iter() {
            let Some(Key::Peer(node)) = self.ground.root.parse(&kv.key) else {
                continue;
            };
            listed.insert(node.clone());
            match Peer::decode(&kv.value) {
                Ok(peer) if peer.node == node && peer.cluster == self.ground.cluster => {
                    if self.peers.get(&node) != Some(&peer) {
                        self.peers.insert(node, peer);
                        changed = true;
                    }
                }
                Ok(_) => tracing::warn!(%node, "what is published of it is about another; what was known stays"),
                Err(error) => tracing::warn!(%node, "{}; what was known stays", chain(&error)),
            }
        }
        let gone: Vec<NodeName> = self
            .peers
            .keys()
            .filter(|node| !listed.contains(*node))
            .cloned()
            .collect();
        if !gone.is_empty() && self.is_whole(cache).await {
            changed = true;
            for node in gone {
                self.peers.remove(&node);
            }
        }
        if changed {
            self.checked = None;
            let all: Vec<&Peer> = self.peers.values().collect();
            keep_file(&self.ground.dir.join(PEERS_FILE), &all, "other nodes");
        }
    }

    async fn take_endpoints(&mut self, cache: &Cache) {
        let mut listed: BTreeSet<(Namespace, ResourceName)> = BTreeSet::new();
        let Some(mut copy) = self.copy() else { return };
        let mut changed = BTreeSet::new();
        let mut failed = None;
        let root = &self.ground.root;
        for kv in cache.keys.iter() {
            let Some(Key::Endpoints(resource)) = root.parse(&kv.key) else {
                continue;
            };
            let Some(namespace) = resource.namespace else { continue };
            listed.insert((namespace.clone(), resource.name.clone()));
            // Of thousands of services one changes at a time.
            if self.read.insert(kv.key.clone(), kv.mod_revision) == Some(kv.mod_revision) {
                continue;
            }
            match Endpoints::decode(&kv.value) {
                Ok(record) if record.cluster == self.ground.cluster => {
                    let key = service(&namespace, &resource.name);
                    if self.endpoints.get(&key).is_none_or(|known| **known != record) {
                        Arc::make_mut(&mut self.endpoints).insert(key, Arc::new(record.clone()));
                    }
                    match copy.put(&namespace, &resource.name, &record) {
                        Ok(true) => drop(changed.insert(Part::Service(namespace, resource.name))),
                        Ok(false) => {}
                        Err(error) => {
                            self.read.remove(&kv.key);
                            failed = Some(chain(&error));
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(service = %resource.name, "{}; what was known stays", chain(&error)),
            }
        }
        let known = copy.services().unwrap_or_default();
        let gone: Vec<(Namespace, ResourceName)> = known.difference(&listed).cloned().collect();
        self.copy = Some(copy);
        if !gone.is_empty() && self.is_whole(cache).await {
            for (namespace, name) in gone {
                Arc::make_mut(&mut self.endpoints).remove(&service(&namespace, &name));
                let removed = self.copy.as_mut().map(|copy| copy.remove(&namespace, &name));
                match removed {
                    Some(Ok(true)) => drop(changed.insert(Part::Service(namespace, name))),
                    Some(Ok(false)) | None => {}
                    Some(Err(error)) => failed = Some(chain(&error)),
                }
            }
        }
        if let Some(why) = failed {
            tracing::warn!("names may be old: {why}");
        }
        self.untold.extend(changed);
    }

    async fn take_policies(&mut self, cache: &Cache) {
        let mut listed = BTreeSet::new();
        let mut now = BTreeMap::clone(&self.policies);
        for kv in cache.keys.iter() {
            let Some(Key::Policies(namespace)) = self.ground.root.parse(&kv.key) else {
                continue;
            };
            listed.insert(namespace.clone());
            match Policies::decode(&kv.value) {
                Ok(record) if record.cluster == self.ground.cluster => drop(now.insert(namespace, Arc::new(record))),
                Ok(_) => {
                    tracing::warn!(%namespace, "its network policies are of another cluster; what was known stays")
                }
                Err(error) => tracing::warn!(%namespace, "{}; what was known stays", chain(&error)),
            }
        }
        if now.keys().any(|namespace| !listed.contains(namespace)) && self.is_whole(cache).await {
            now.retain(|namespace, _| listed.contains(namespace));
        }
        if now != *self.policies {
            let all: BTreeMap<&Namespace, &Policies> = now.iter().map(|(name, record)| (name, &**record)).collect();
            keep_file(&self.ground.dir.join(POLICIES_FILE), &all, "network policies");
            self.policies = Arc::new(now);
        }
    }

    /// Where the processes are that go on without the agent.
    fn places(&self) -> Vec<Place> {
        let server = Server {
            dir: self.names_dir(),
            listen: Vec::new(),
        };
        vec![server.place(), self.relays.process()]
    }

    fn names_dir(&self) -> PathBuf {
        self.ground.dir.join(NAMES_DIR)
    }

    /// The names' copy, taken out; put it back.
    fn copy(&mut self) -> Option<names::Copy> {
        if let Some(copy) = self.copy.take() {
            return Some(copy);
        }
        match names::Copy::open(&self.names_dir()) {
            Ok(copy) => Some(copy),
            Err(error) => {
                self.say(&format!("names cannot be kept on disk: {}", chain(&error)));
                None
            }
        }
    }

    /// Says it once, until it is over.
    fn say(&mut self, what: &str) {
        if self.said.insert(what.to_owned()) {
            tracing::warn!("{what}");
        }
    }

    /// Whether a new key of another node may answer any moment.
    fn waits(&self) -> bool {
        let since = self.wires.as_ref().and_then(Wires::waits);
        since.is_some_and(|since| since < SOON_FOR)
    }

    /// Makes the ground as it should be now.
    async fn converge(&mut self, local: Local) {
        let mut conditions = Vec::new();
        self.ground.seen.assigned(local.network.as_ref(), &local.own);
        let Some(network) = &local.network else {
            // Who asks this node for another key learns that it has none.
            self.asked.clear();
            if self.told != Footing::default() {
                self.tell(Footing::default());
            }
            return;
        };
        let ready = self.look(network, &mut conditions).await;
        let mut told = Footing {
            mtu: None,
            link: None,
            conditions: Vec::new(),
        };
        if ready {
            self.link(network, &mut conditions).await;
            if let Some(here) = &self.here {
                let kind = here.link.kind.unwrap_or(LinkKind::None);
                let outside6 = links::outside6(&here.link);
                told.mtu = Some(links::mtu(&network.settings, kind, here.host.mtu, outside6));
                told.link = Some(here.link.clone());
            }
        }
        let planned = self.planned(network, &local);
        self.guard(network, &local, &planned).await;
        self.name(network, &local, &mut conditions).await;
        self.relay(network, &local, planned, &mut conditions).await;
        conditions.sort();
        told.conditions = conditions;
        self.tell(told);
    }

    fn tell(&mut self, told: Footing) {
        if self.told == told {
            return;
        }
        self.said.clear();
        for condition in &told.conditions {
            if !self.told.conditions.contains(condition) {
                tracing::warn!(reason = condition.reason, "{}", condition.message);
            }
        }
        self.told = told.clone();
        let _ = self.ground.notes.send(Note::Ground(Box::new(told)));
    }

    /// What this host has, and what its link is then.
    async fn look(&mut self, network: &AssignedNetwork, conditions: &mut Vec<NodeCondition>) -> bool {
        let mut say = |reason: &str, message: String| {
            conditions.push(NodeCondition {
                reason: reason.to_owned(),
                message,
            });
        };
        if self.keys.is_none() {
            match Keys::open(&self.ground.dir.join(LINKS_DIR)) {
                Ok(keys) => self.keys = Some(keys),
                Err(error) => {
                    say(
                        "NetworkDown",
                        format!("the key of this node's link cannot be kept: {}", chain(&error)),
                    );
                    return false;
                }
            }
        }
        let known = self.here.take().filter(|here| here.looks < LOOKS_TO_HOST);
        let (probed, host, looks) = match known {
            Some(here) => (here.probed, here.host, here.looks + 1),
            None => match (probe().await, host().await) {
                (Ok(probed), Ok(host)) => {
                    if let Some(told) = &self.ground.public
                        && let Some(why) = self.public.find(told).await
                    {
                        self.say(&why);
                    }
                    (probed, host, 0)
                }
                (Err(error), _) | (_, Err(error)) => {
                    say(
                        "NetworkDown",
                        format!("the kernel does not say what it can do: {}", chain(&error)),
                    );
                    return false;
                }
            },
        };
        let reached = self
            .public
            .address()
            .map(|address| SocketAddr::new(address, network.settings.port));
        let kind = links::kind(network.settings.backend, &probed);
        let turned = self.turn(network, kind.as_ref().ok().copied());
        let key = turned.as_ref().map(|turned| turned.said);
        self.ground
            .seen
            .keyed(turned.as_ref().and_then(|turned| turned.here.clone()));
        if let Some(why) = turned.and_then(|turned| turned.trouble) {
            say("LinkDown", why);
        }
        let mut link = links::own(kind, key.as_ref(), &network.settings, &host, reached);
        link.proof = self.proof(&link);
        if let Some(why) = &link.why {
            say("NetworkDown", why.clone());
        }
        if let Some(why) = links::clash(&network.settings, &host) {
            say("NetworkOverlaps", why);
        }
        self.here = Some(Here {
            probed,
            host,
            link,
            looks,
        });
        true
    }

    /// This node's own key as it is to be now: links and facts go by it.
    fn turn(&mut self, network: &AssignedNetwork, kind: Option<LinkKind>) -> Option<Turned> {
        let own = self.peers.get(&self.ground.node);
        let turn = Turn {
            cluster: &self.ground.cluster,
            node: &self.ground.node,
            settings: &network.settings,
            kind,
            published: own.and_then(|own| own.link.key.as_ref()?.parse().ok()),
        };
        let asked = std::mem::take(&mut self.asked);
        let keys = self.keys.as_mut()?;
        Some(rotation::turn(keys, &turn, asked, SystemTime::now()))
    }

    /// Our own signature over what we say; the one that was made before, while it is over the same.
    fn proof(&self, link: &NodeLink) -> Option<LinkProof> {
        let before = self.told.link.as_ref();
        let same = before.filter(|before| unproven(before) == *link);
        let fresh = self.here.as_ref().is_none_or(|here| here.looks > 0);
        same.filter(|_| fresh)
            .and_then(|before| before.proof.clone())
            .or_else(|| (self.ground.prove.0)(&document(link)))
    }

    async fn link(&mut self, network: &AssignedNetwork, conditions: &mut Vec<NodeCondition>) {
        let Some(here) = &self.here else { return };
        let looks = here.looks;
        let (peers, doubted) = self.believed(looks);
        let (Some(here), Some(keys)) = (&self.here, &self.keys) else {
            return;
        };
        let mut trouble: Vec<String> = doubted;
        let wanted = links::links(&links::Input {
            cluster: &self.ground.cluster,
            node: &self.ground.node,
            network,
            own: &here.link,
            peers: &peers,
            host: &here.host,
        });
        let refused = wanted.refused.iter().take(5);
        trouble.extend(refused.map(|one| format!("no link to node {}: {}", one.node, one.why)));
        let wires = match self.wires.take() {
            Some(wires) => Ok(wires),
            None => Wires::new(Setup {
                dir: self.ground.dir.join(LINKS_DIR),
                starter: Box::new(own_verb),
            }),
        };
        match wires {
            Ok(mut wires) => {
                let done = wires.converge(&wanted, keys).await;
                if !done.repaired.is_empty() {
                    tracing::info!("links: {}", done.repaired.join("; "));
                }
                trouble.extend(done.trouble);
                self.wires = Some(wires);
                let kind = here.link.kind;
                self.ground.seen.linked(wanted, kind, &peers, done.repaired.len());
            }
            Err(error) => trouble.push(chain(&error)),
        }
        conditions.extend(trouble.into_iter().map(|message| NodeCondition {
            reason: "LinkDown".to_owned(),
            message,
        }));
    }

    /// The peers whose word is their own, and why others' is not. Found out where something has changed, and from time to time,
    /// for certificates end.
    fn believed(&mut self, looks: u32) -> Believed {
        let Some(trust) = self.ground.trust.as_ref().map(|trust| trust.borrow().clone()) else {
            return self.believed_by(None);
        };
        let known = self
            .checked
            .take()
            .filter(|(by, _)| looks > 0 && Arc::ptr_eq(by, &trust));
        let (_, believed) = self.checked.insert(match known {
            Some(known) => known,
            None => (trust.clone(), self.believed_by(Some(&trust))),
        });
        believed.clone()
    }

    fn believed_by(&self, trust: Option<&Trust>) -> Believed {
        believed(&self.ground.node, &self.peers, trust, today())
    }

    async fn name(&mut self, network: &AssignedNetwork, local: &Local, conditions: &mut Vec<NodeCondition>) {
        let first = gateway(&network.subnet);
        let sixth = network
            .subnet6
            .map(|subnet6| address6(first, &network.subnet, &subnet6));
        let servers: Vec<IpAddr> = std::iter::once(IpAddr::V4(first))
            .chain(sixth.map(IpAddr::V6))
            .collect();
        let settings = Settings {
            domain: network.settings.domain.clone(),
            cidr: network.settings.cidr,
            cidr6: network.settings.cidr6,
            servers: servers.clone(),
            hosts: servers.iter().copied().filter(|_| network.exposed).collect(),
        };
        let services = self.endpoints.keys();
        let services = services.filter_map(|key| Some((key.namespace.as_ref()?, &key.name)));
        let sees = Sees::of(services, &self.policies);
        let Some(mut copy) = self.copy() else {
            return;
        };
        let mut trouble = Vec::new();
        // What does not keep the rest from being told.
        let mut troubles = Vec::new();
        let written = [
            (Part::Settings, copy.settings(&settings)),
            (Part::Own, copy.own(&local.own)),
            (Part::Sees, copy.sees(&sees)),
        ];
        self.copy = Some(copy);
        for (part, done) in written {
            match done {
                Ok(true) => drop(self.untold.insert(part)),
                Ok(false) => {}
                Err(error) => trouble.push(chain(&error)),
            }
        }
        let server = Server {
            dir: self.names_dir(),
            listen: servers.into_iter().map(|own| SocketAddr::new(own, DNS)).collect(),
        };
        match server.ensure().await {
            Ok((names::Ensured::Ran, health)) => troubles = health.troubles(),
            // It has read the copy just now.
            Ok((names::Ensured::Started | names::Ensured::Replaced, _)) => self.untold.clear(),
            Err(error) => trouble.push(chain(&error)),
        }
        if trouble.is_empty() && !self.untold.is_empty() {
            match names::tell(&server.dir, self.untold.iter().cloned()).await {
                Ok(_) => self.untold.clear(),
                Err(error) => trouble.push(chain(&error)),
            }
            if let Some(Err(error)) = self.copy.as_mut().map(names::Copy::settle) {
                trouble.push(chain(&error));
            }
        }
        conditions.extend(trouble.into_iter().chain(troubles).map(|why| NodeCondition {
            reason: "NamesDown".to_owned(),
            message: format!("containers may find no names: {why}"),
        }));
    }
}

/// Where the names' copy is, under an agent's data directory.
pub(crate) fn names_dir(dir: &Path) -> PathBuf {
    dir.join(NAMES_DIR)
}

/// Takes away what was made of the cluster's network on this host: the processes of links and names, devices and routes. For a
/// host that leaves.
///
/// # Errors
/// What stays, and why.
pub async fn raze(cluster: &ClusterId, node: &NodeName, dir: &Path) -> Result<(), String> {
    let server = Server {
        dir: dir.join(NAMES_DIR),
        listen: Vec::new(),
    };
    let stopped = server.stop().await.map_err(|error| chain(&error));
    let ranges = read_ranges(&dir.join(NAMES_DIR));
    let razed = network::links::raze(&links::names(cluster, node), &ranges, dir.join(LINKS_DIR)).await;
    let relayed = relays::raze(dir).await;
    stopped.and(relayed).and(razed.map_err(|error| chain(&error)))
}
