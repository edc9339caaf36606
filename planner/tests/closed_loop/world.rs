//! The world of the closed loop: a store, a leader, some hosts, people, and bad luck, all drawn from a list of bytes so that
//! a failing history shrinks. After each act [`World::check`] asks the laws.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use planner::change::{Cost, cost};
use planner::cluster::{Absences, DesiredBody, DesiredEntry, Moment, Snapshot};
use planner::node::{ContainerState, InstanceKey, Reason};
use schemas::config_file::{ConfigFileSpec, FileDigest};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, Slot};
use schemas::problem::Problem;
use schemas::records::{
    AcceptedBody, Ack, Addresses, AssignedState, Backend, Breaker, Capacity, ClusterId, ClusterMarker, ConditionType,
    Cordon, CordonMode, Digest, Engine, NetworkSettings, NodeFacts, SchemaVersion, SessionRecord, Uid, Verdict,
    VerdictRecord,
};
use schemas::secret::SecretEdition;
use schemas::service::{Mode, ServiceSpec};
use schemas::units::{ByteSize, Cpu};
use serde_json::{Value, json};

use crate::host::{Fate, Host, Real, Registry};
use crate::leader::{Leader, Txn, bump, stored};

/// Histories that broke a law once, by a bug of ours or one that was put in to see the test fail.
pub const SEEDS: &[(&str, &[u8])] = &[
    // A node that a person says is off was back between two looks of the leader: it has not been away for so long.
    (
        "exclusive",
        &[
            32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 19, 0, 120, 3, 0, 0, 0, 0, 0, 100, 0, 0, 12, 0, 120, 61, 179,
            0, 62, 0, 0, 52, 0, 9, 51, 187, 107, 225, 109, 226, 222, 140, 53, 69, 112, 210, 119, 127, 234, 195, 61, 35,
            5, 182, 63, 85, 93, 94, 102, 182, 80, 254, 122, 251, 164, 133, 75, 51, 213, 156, 147, 221, 49, 244, 112,
            28, 11, 63, 24, 75, 32, 81, 139, 91, 89, 251, 153, 152, 212, 29, 81, 85, 91, 220, 68, 163, 156, 134, 208,
            85, 209, 127, 226, 4, 164, 150, 241, 169, 142,
        ],
    ),
    // A lost node is back without its engine, and then its assignment is lost, while what it had starts elsewhere.
    (
        "any",
        &[
            3, 145, 0, 0, 0, 9, 0, 2, 0, 0, 73, 0, 73, 0, 0, 0, 0, 139, 2, 0, 12, 0, 73, 0, 0, 0, 86, 12, 0, 12, 0, 0,
            107, 0, 57, 7, 20, 0, 33, 0, 2, 1, 232, 0, 69, 19, 0, 73, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 62, 0, 86, 51, 14, 11, 0, 0, 0, 55, 0, 0, 174, 157, 66, 88, 107, 0, 135, 0, 15, 0, 0, 0, 52,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 86, 12, 0, 0, 0, 86, 12, 0, 0, 145, 19, 0, 0, 17, 1, 2, 10, 12,
            0, 107, 0, 12, 0, 19, 1, 52, 0, 0, 0, 0, 144, 0, 0, 107, 5, 68, 0, 73, 20, 195, 6, 100, 0, 233, 0, 0, 0, 1,
            0, 26, 0, 88, 255, 126,
        ],
    ),
    // Somebody copies a container that is up.
    (
        "networked",
        &[
            106, 170, 63, 0, 0, 19, 0, 12, 0, 57, 0, 84, 0, 129, 0, 2, 21, 12, 0, 56, 0, 101, 86, 19, 0, 88, 19, 52,
            19, 235, 19, 0, 0, 0, 86, 232, 0, 0, 107, 145, 228, 190, 0, 44,
        ],
    ),
    // The assignment of a node that pulls for a slot is lost while the slot has been prepared elsewhere.
    (
        "any",
        &[
            8, 12, 0, 100, 0, 19, 0, 0, 144, 0, 0, 0, 0, 241, 12, 0, 56, 0, 0, 0, 0, 0, 0, 19, 0, 12, 0, 0, 0, 62, 87,
            56, 141, 0, 12, 4, 10, 27, 12, 0, 0, 214, 0, 0, 0, 0, 214, 0, 0, 0, 116, 0, 0, 28, 0, 28, 0, 150, 218, 0,
            0, 0, 0, 62, 1, 0, 86, 161, 0, 195, 86, 0, 12, 0, 167, 250, 0, 0, 55, 0, 86, 38, 0, 0, 0, 19, 3, 119, 0,
            31, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 31, 0, 0, 0, 86, 227, 5, 0, 19, 75, 0,
            62, 0, 0, 86, 12, 0, 119, 0, 119, 0, 143, 0, 52, 0, 0, 0, 0, 19, 43, 100, 0, 245, 238, 12, 0, 107, 124, 62,
            0, 19, 0, 62, 0, 107, 254,
        ],
    ),
    // A slot is ordered away while its create is under way: it is not gone before that has ended.
    (
        "changes",
        &[
            44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 76, 0, 19, 0, 83, 0, 62, 1, 0, 120, 0, 4, 0, 1, 58, 63, 0, 64, 0, 0, 62, 0,
            92, 220, 190, 0, 227, 244, 19, 1, 220, 0, 83, 192, 0, 64, 12, 0, 12, 0, 19, 1, 12, 0, 184, 0, 0, 0, 0, 8,
            0, 0, 0, 0, 0, 0, 126, 0, 62, 0, 92, 108, 99, 144, 0, 0, 0, 170, 0, 0, 28, 0, 0, 0, 0, 62, 0, 108, 4,
        ],
    ),
    // A lost node comes back with second copies of two slots that serve elsewhere by now.
    (
        "any",
        &[
            65, 0, 139, 0, 6, 12, 0, 107, 0, 245, 21, 19, 0, 107, 0, 12, 0, 157, 92, 0, 0, 0, 0, 0, 0, 0, 86, 12, 0,
            144, 1, 4, 224, 84, 2, 59, 0, 0, 0, 0, 0, 0, 0, 0, 0, 62, 43, 0, 0, 0, 0, 63, 0, 0, 0, 0, 0, 63, 0, 0, 0,
            38, 0, 0, 0, 0, 73, 52, 62, 1, 107, 122, 62, 1, 157, 110, 73, 3, 88, 107, 0, 62, 1, 62, 1, 77, 218, 85, 0,
            0, 0, 86, 62, 0, 107, 34, 49, 0, 84, 0, 0, 0, 0, 0, 62, 0, 19, 44,
        ],
    ),
    // Two slots must move and no node fits them: both are changed where they are, not the first alone.
    (
        "changes",
        &[
            188, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 56, 0, 0, 0, 2, 179, 64, 83, 0, 19, 0, 12,
            0, 19, 0, 12, 0, 0, 243, 0, 0, 120, 0, 0, 27, 91, 59, 62, 0, 19, 0, 12, 0, 12, 0, 12, 0, 0, 128, 204, 0,
            12, 0, 83, 0, 0,
        ],
    ),
    // An assignment is lost while what its tag stands for is being settled by the others.
    (
        "any",
        &[
            19, 100, 0, 12, 0, 100, 0, 19, 0, 145, 9, 0, 0, 122, 132, 2, 69, 88, 19, 0, 12, 0, 12, 0, 12, 0, 100, 0,
            19, 0, 12, 0, 100, 0, 145, 17, 76, 0, 114, 34, 66, 211, 19, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 73, 0,
            0, 0, 62, 0, 107, 177, 19, 0, 8, 8, 16, 81, 0, 19, 0, 150, 0, 107, 1, 233, 2, 0, 0, 17, 0, 0, 86, 19, 0,
            19, 0, 19, 0, 8, 8, 19, 0, 16, 8, 19, 0, 16, 8, 8, 8, 38, 0, 0, 0, 104, 8, 8, 8, 96, 62, 0, 255, 33, 8, 16,
        ],
    ),
];

pub fn bytes_of(text: &str) -> Vec<u8> {
    let numbers = text.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|one| one.parse().ok()).collect()
}

/// Draws from a list of bytes; zeros when it has run out.
pub struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    pub fn below(&mut self, limit: usize) -> usize {
        let value = usize::from(self.bytes.get(self.at).copied().unwrap_or(0));
        self.at += 1;
        value % limit.max(1)
    }
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 1
    }
    pub fn more(&self) -> bool {
        self.at < self.bytes.len()
    }
}

type Id = (Uid, Slot);

pub struct World {
    pub script: Script,
    store: Snapshot,
    /// What a reader that lags behind sees.
    picture: Option<Snapshot>,
    leader: Leader,
    hosts: BTreeMap<NodeName, Host>,
    registry: Registry,
    /// The image of each accepted spec that containers were made of.
    images: BTreeMap<(Uid, u64), String>,
    now_ms: u64,
    services: usize,
    /// Only what changes services and troubles agents happens: nodes stay.
    pub calm: bool,
    /// No container of ours may end by our hand.
    pub nothing_may_end: bool,
    /// Slots that a change has taken down, until they serve again.
    down: BTreeSet<Id>,
    /// Slots on nodes that were away, or taken away by order: they need not wait for their turn.
    excused: BTreeSet<Id>,
    /// `s0` and `s1` are exclusive; `s1` stops on a node that is cut off for a minute.
    pub exclusive: bool,
    /// What ran on nodes of which a person said that they are off, though they are not: of what does not stop by itself.
    worded: BTreeMap<NodeName, BTreeSet<(String, Slot)>>,
    /// Of each exclusive slot: the highest token that a container was made with, and where; and the containers that were seen.
    tokens: BTreeMap<(String, Slot), (u64, NodeName)>,
    made: BTreeSet<(NodeName, String)>,
    /// What ran on nodes that were declared lost or retired: it may run elsewhere as well.
    forfeited: BTreeMap<NodeName, BTreeSet<Id>>,
}

fn tracing() -> bool {
    std::env::var_os("REEVE_TRACE").is_some()
}

fn id(key: &InstanceKey) -> Id {
    (key.uid.clone(), key.slot.clone())
}

fn file_key(text: &str) -> ResourceKey {
    ResourceKey {
        kind: Kind::ConfigFile,
        ..key(text)
    }
}
/// The one secret there is.
fn secret_key() -> ResourceKey {
    ResourceKey {
        kind: Kind::Secret,
        ..key("x0")
    }
}
fn key(text: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: text.parse().expect("a name"),
    }
}

impl World {
    pub fn new(bytes: Vec<u8>, nodes: usize, services: usize) -> Self {
        let mut script = Script { bytes, at: 0 };
        let count = nodes + script.below(3);
        let cluster = ClusterMarker {
            network: Default::default(),
            schema_version: SchemaVersion::default(),
            id: ClusterId::from_random([7; 16]),
            restore_epoch: 0,
            moved: None,
            accepted_revision: None,
        };
        let store = Snapshot {
            endpoints: BTreeMap::new(),
            policies: BTreeMap::new(),
            network_policies: BTreeMap::new(),
            virtual_ips: BTreeMap::new(),
            virtual_ip_statuses: BTreeMap::new(),
            peers: BTreeMap::new(),
            revision: 100,
            cluster,
            epoch: 10,
            complete: true,
            desired: BTreeMap::new(),
            accepted: BTreeMap::new(),
            nodes: BTreeMap::new(),
            service_statuses: BTreeMap::new(),
            node_statuses: BTreeMap::new(),
            file_statuses: BTreeMap::new(),
            secrets: BTreeMap::new(),
            acks: BTreeMap::new(),
            breaker: Breaker::default(),
        };
        let mut world = Self {
            script,
            store,
            picture: None,
            leader: Leader::default(),
            hosts: BTreeMap::new(),
            registry: Registry::default(),
            images: BTreeMap::new(),
            now_ms: 1_000_000,
            services,
            calm: false,
            nothing_may_end: false,
            down: BTreeSet::new(),
            excused: BTreeSet::new(),
            forfeited: BTreeMap::new(),
            exclusive: false,
            worded: BTreeMap::new(),
            tokens: BTreeMap::new(),
            made: BTreeSet::new(),
        };
        for at in 1..=count {
            let node: NodeName = format!("n{at}").parse().expect("a name");
            let host = Host::new(&node, &world.store.cluster.id, world.now_ms);
            world.hosts.insert(node.clone(), host);
            world.session(&node, true);
        }
        world
    }

    // ---- the store -------------------------------------------------------------------------------------------------

    fn put(&mut self, key: ResourceKey, body: DesiredBody) {
        let revision = bump(&mut self.store);
        let before = self
            .store
            .desired
            .get(&key)
            .map_or(revision, |entry| entry.create_revision);
        let entry = DesiredEntry {
            create_revision: before,
            mod_revision: revision,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body,
        };
        self.store.desired.insert(key, entry);
    }

    fn apply(&mut self, name: &str, value: Value) {
        let mut value = value;
        if self.exclusive && name != "s2" {
            value["exclusive"] = json!(true);
            if name == "s1" {
                value["onDisconnect"] = json!({ "stopAfter": "60s" });
            }
            if value["mode"] == json!("global") {
                value["mode"] = json!("replicated");
                value["replicas"] = json!(2);
            }
        }
        let spec: ServiceSpec = serde_json::from_value(value).expect("a service");
        self.put(key(name), DesiredBody::Service(Arc::new(spec)));
    }

    fn put_file(&mut self, name: &str, content: usize) {
        let spec = ConfigFileSpec::inline(content.to_string().as_bytes()).expect("it is short");
        self.put(file_key(name), DesiredBody::ConfigFile(Arc::new(spec)));
    }

    fn set_secret(&mut self, n: usize) {
        let edition = SecretEdition {
            n: n as u64,
            digest: Digest::of(&n.to_be_bytes()),
        };
        self.store.secrets.insert(secret_key(), edition);
    }

    pub fn apply_good(&mut self, name: &str) {
        let replicas = 2 + self.script.below(3);
        self.apply(name, json!({ "replicas": replicas, "container": { "image": "app:1" } }));
    }

    fn random_service(&mut self, name: &str) -> Value {
        let script = &mut self.script;
        let image = [
            "app:1",
            "app:2",
            "app:3",
            "missing:1",
            "crashing:1",
            "sick:1",
            "app:4",
            "app:5",
        ][script.below(8)];
        let mut container = json!({ "image": image });
        match script.below(8) {
            0 | 1 => container["healthCheck"] = json!({ "tcp": { "port": 80 } }),
            2 => container["stopGracePeriod"] = json!("3s"),
            3 if name == "s0" => container["ports"] = json!([{ "containerPort": 80, "hostPort": 8080 }]),
            4 => container["ports"] = json!([{ "containerPort": 80, "hostPort": "auto" }]),
            _ => {}
        }
        match script.below(4) {
            0 => container["files"] = json!([{ "file": format!("f{}", script.below(2)), "path": "/f" }]),
            1 => container["secrets"] = json!([{ "secret": "x0" }]),
            _ => {}
        }
        if image.starts_with("sick") {
            container["healthCheck"] = json!({ "tcp": { "port": 80 } });
        }
        let placement = match script.below(10) {
            0 => json!({ "maxPerNode": 1 }),
            1 => json!({ "nodeNames": ["n1", "n2"] }),
            2 => json!({ "spread": [{ "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" }] }),
            3 => json!({ "required": [{ "key": "zone", "operator": "In", "values": ["a"] }] }),
            _ => json!({}),
        };
        let mut value = json!({ "container": container, "placement": placement });
        if !self.calm && script.below(8) == 1 {
            value["mode"] = json!("global");
            for rule in ["spread", "maxPerNode"] {
                value["placement"].as_object_mut().expect("a map").remove(rule);
            }
        } else {
            value["replicas"] = json!(script.below(4) + usize::from(self.calm));
        }
        value
    }

    fn register(&mut self, node: &NodeName) {
        let revision = bump(&mut self.store);
        let zone = if matches!(node.as_str(), "n1" | "n2") { "a" } else { "b" };
        let facts = NodeFacts {
            link: None,
            schema_version: SchemaVersion::default(),
            cluster: self.store.cluster.id.clone(),
            node: node.clone(),
            capacity: Capacity {
                cpu: Cpu { millis: 8_000 },
                memory: ByteSize(16 << 30),
            },
            addresses: Addresses::default(),
            engine: Engine::default(),
            agent_version: "0.1.0".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: [("zone".to_owned(), zone.to_owned())].into(),
        };
        self.store.nodes.entry(node.clone()).or_default().facts = Some(stored(revision, facts));
    }

    /// Gives or takes a node's session. Without one its agent neither reads nor writes the store.
    fn session(&mut self, node: &NodeName, there: bool) {
        let had = self.store.nodes.get(node).is_some_and(|entry| entry.session.is_some());
        if had == there {
            return;
        }
        let revision = bump(&mut self.store);
        let now = self.now_ms;
        self.host(node).renew(now, now);
        if there && self.exclusive {
            // A session lives for longer than a leader may stand still whose time counts: it is never missed.
            self.leader.absences = Absences::default();
        }
        if !there {
            self.excuse(node);
            self.store.nodes.entry(node.clone()).or_default().session = None;
            return;
        }
        if self.store.nodes.get(node).is_none_or(|entry| entry.facts.is_none()) {
            self.register(node);
        }
        let record = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: self.store.cluster.id.clone(),
            node: node.clone(),
            machine_id: node.to_string(),
            boot_id: "1".to_owned(),
            watermark: self.hosts[node].applied(),
        };
        self.store.nodes.entry(node.clone()).or_default().session = Some(stored(revision, record));
    }

    fn connected(&self, node: &NodeName) -> bool {
        self.store.nodes.get(node).is_some_and(|entry| entry.session.is_some())
    }

    fn cordon(&mut self, node: &NodeName, mode: Option<CordonMode>) {
        let revision = bump(&mut self.store);
        let record = mode.map(|mode| Cordon {
            schema_version: SchemaVersion::default(),
            lost: false,
            mode,
            by: "me@here".to_owned(),
            note: None,
        });
        self.store.nodes.entry(node.clone()).or_default().cordon = record.map(|record| stored(revision, record));
    }

    /// What a node has, or is to have, need not take turns any more: it is, or was, away.
    fn excuse(&mut self, node: &NodeName) {
        self.excused.extend(ids_of(&self.store, &self.hosts, node));
    }

    /// Whether the node is lost or retired: what it has may be elsewhere too.
    fn given_up(&self, node: &NodeName) -> bool {
        self.store.nodes.get(node).is_some_and(|entry| {
            let lost = |stored: &planner::cluster::Stored<VerdictRecord>| {
                matches!(&stored.value, Ok(record) if record.verdict == Verdict::Lost)
            };
            let retired = |stored: &planner::cluster::Stored<Cordon>| {
                matches!(&stored.value, Ok(cordon) if cordon.mode == CordonMode::Retire)
            };
            entry.verdict.as_ref().is_some_and(lost) || entry.cordon.as_ref().is_some_and(retired)
        })
    }

    fn forfeit(&mut self, node: &NodeName) {
        self.excuse(node);
        let all = ids_of(&self.store, &self.hosts, node);
        self.forfeited.entry(node.clone()).or_default().extend(all);
    }

    // ---- what happens ----------------------------------------------------------------------------------------------

    fn some_host(&mut self) -> NodeName {
        let at = self.script.below(self.hosts.len());
        self.hosts.keys().nth(at).cloned().expect("there are hosts")
    }

    fn host(&mut self, node: &NodeName) -> &mut Host {
        self.hosts.get_mut(node).expect("hosts stay")
    }

    /// One act.
    pub fn happen(&mut self) {
        let act = self.script.below(match (self.calm, self.exclusive) {
            (true, _) => 64,
            (false, true) => 160,
            (false, false) => 88,
        });
        if tracing() {
            eprintln!("act {act}");
        }
        match act {
            0..=7 => {
                let store = self.store.clone();
                self.think(&store);
                self.commit(usize::MAX);
            }
            8..=11 => self.think_of_a_picture(),
            12..=15 => {
                let most = 1 + self.script.below(3);
                self.commit(most);
            }
            16 => self.new_leader(),
            17 | 18 => self.picture = Some(self.store.clone()),
            19..=27 => {
                let node = self.some_host();
                self.cycle(&node);
            }
            28..=55 => self.trouble(act - 28),
            56 => {
                let file = format!("f{}", self.script.below(2));
                match self.script.below(4) {
                    0 => {
                        self.store.desired.remove(&file_key(&file));
                        self.store.secrets.remove(&secret_key());
                        bump(&mut self.store);
                    }
                    content => {
                        self.put_file(&file, content);
                        self.set_secret(content);
                    }
                }
            }
            57..=61 => {
                let name = format!("s{}", self.script.below(self.services));
                let value = self.random_service(&name);
                self.apply(&name, value);
            }
            62 => {
                let node = self.some_host();
                self.cordon(&node, Some(CordonMode::Drain));
            }
            63 | 64 => {
                let node = self.some_host();
                self.cordon(&node, None);
            }
            65 | 66 => {
                let name = key(&format!("s{}", self.script.below(self.services)));
                if self.store.desired.remove(&name).is_some() {
                    bump(&mut self.store);
                }
            }
            67 => {
                let name = format!("s{}", self.script.below(self.services));
                self.apply_invalid(&name);
            }
            68 => {
                let node = self.some_host();
                self.cordon(&node, Some(CordonMode::Cordon));
            }
            69..=72 => {
                let node = self.some_host();
                self.session(&node, false);
            }
            73..=76 => {
                let node = self.some_host();
                self.session(&node, true);
            }
            77 => self.declare_lost(),
            78 => {
                let node = self.some_host();
                self.forfeit(&node);
                self.cordon(&node, Some(CordonMode::Retire));
            }
            79..=84 => self.lose_a_record(act - 79),
            88..=99 => {
                let node = self.some_host();
                self.confirm_lost(&node);
            }
            100..=119 => {
                let millis = [30_000, 61_000, 77_000, 100_000][self.script.below(4)];
                self.time(millis);
            }
            120..=159 => self.episode((act - 120) / 10),
            85 => {
                self.store.complete = self.script.one_in(2);
                bump(&mut self.store);
            }
            _ => {
                if let Some(held) = self.store.breaker.held.clone() {
                    self.ack(held.digest);
                }
            }
        }
    }

    fn ack(&mut self, digest: schemas::records::Digest) {
        let ack = Ack {
            schema_version: SchemaVersion::default(),
            digest: digest.clone(),
            count: 1,
            by: "me@here".to_owned(),
        };
        bump(&mut self.store);
        self.store.acks.insert(digest, ack);
    }

    /// Something is missing, somewhere: all that [`World::happen`] has of that kind.
    pub fn lack(&mut self) {
        let act = self.script.below(40);
        if tracing() {
            eprintln!("lack {act}");
        }
        match act {
            0..=5 => {
                let store = self.store.clone();
                self.think(&store);
                self.commit(usize::MAX);
            }
            6..=8 => self.think_of_a_picture(),
            9..=11 => {
                let most = 1 + self.script.below(3);
                self.commit(most);
            }
            12 => self.new_leader(),
            13 => self.picture = Some(self.store.clone()),
            14..=19 => {
                let node = self.some_host();
                self.cycle(&node);
            }
            20..=28 => {
                // Without hands and crashes: only what is slow, lost and killed.
                let what = [0, 3, 5, 7, 14, 17, 19, 21, 22][act - 20];
                self.trouble(what);
            }
            29 | 30 => {
                let node = self.some_host();
                self.session(&node, false);
            }
            31 | 32 => {
                let node = self.some_host();
                self.session(&node, true);
            }
            33..=37 => self.lose_a_record(act - 33),
            38 => {
                self.store.complete = false;
                bump(&mut self.store);
                self.store.desired.clear();
            }
            _ => {
                let name = format!("s{}", self.script.below(self.services));
                self.apply_invalid(&name);
            }
        }
    }

    fn apply_invalid(&mut self, name: &str) {
        let problem: Problem = serde_json::from_value(json!({
            "line": 4, "column": 3, "endLine": 4, "endColumn": 9, "path": "spec.replica", "code": "UnknownKey",
            "message": "unknown key `replica`", "remedy": "did you mean `replicas`?",
        }))
        .expect("a problem");
        self.put(key(name), DesiredBody::Invalid(vec![problem]));
    }

    fn new_leader(&mut self) {
        self.leader.pending.clear();
        self.leader.absences = Absences::default();
        self.store.epoch = bump(&mut self.store);
        // It takes the lead by a write of its own.
        self.leader.wrote = self.store.epoch;
    }

    fn think(&mut self, picture: &Snapshot) {
        // Where nothing may end no node may be lost, and so the store never is well.
        let at = Moment {
            now_ms: self.now_ms,
            healthy_ms: (!self.nothing_may_end).then_some(self.now_ms),
        };
        self.leader.think(picture, at);
    }

    fn think_of_a_picture(&mut self) {
        let usable = self
            .picture
            .take()
            .filter(|picture| picture.revision >= self.leader.wrote && !self.exclusive);
        let picture = usable.unwrap_or_else(|| self.store.clone());
        self.think(&picture);
    }

    /// Commits so many transactions of what the leader has planned.
    fn commit(&mut self, most: usize) {
        for _ in 0..most {
            if self.leader.pending.is_empty() {
                return;
            }
            let done = self.leader.commit(&mut self.store);
            if let Some(Txn::Verdict(node, record)) = &done
                && record.verdict == Verdict::Lost
            {
                self.forfeit(node);
            }
            if let Some(Txn::Assignment(write, _, removed)) = done {
                self.excused.extend(removed);
                // A slot that is not ready, by all that the leader could know, may go down beside another.
                let listed = write.assignment.instances.iter();
                let listed: Vec<Id> = listed.map(|one| (one.uid.clone(), one.slot.clone())).collect();
                self.excused
                    .extend(listed.into_iter().filter(|one| !self.leader.ready.contains(one)));
                let node = &write.assignment.node;
                if self.given_up(node) {
                    self.forfeit(node);
                } else if !self.connected(node) {
                    self.excuse(node);
                }
                if tracing() {
                    let lines = write.assignment.instances.iter();
                    let lines: Vec<String> = lines
                        .map(|one| format!("{} {:?} n{} {:?}", one.name(), one.state, one.n, one.image))
                        .collect();
                    eprintln!("  {} := {:?} {lines:?}", write.assignment.node, write.assignment.order);
                }
            }
        }
    }

    /// Trouble of all kinds on one host.
    fn trouble(&mut self, what: usize) {
        let node = self.some_host();
        if tracing() {
            eprintln!("  {node}: trouble {what}");
        }
        let connected = self.connected(&node);
        let (now, registry) = (self.now_ms, self.registry.clone());
        match what {
            0..=2 if connected => {
                let store = &self.store;
                self.hosts.get_mut(&node).expect("hosts stay").read_store(store);
            }
            3 | 4 => self.host(&node).ask_list(),
            5 | 6 => self.host(&node).hear_list(),
            7..=9 => self.host(&node).pass(now),
            10..=13 => {
                let at = self.script.below(4);
                let fate = [Fate::Fine, Fate::Fine, Fate::Fails, Fate::Unheard, Fate::Half][self.script.below(5)];
                if matches!(fate, Fate::Unheard | Fate::Half) {
                    self.forget_readiness(&node, false);
                }
                self.host(&node).run_step(at, fate, &registry, now);
            }
            14 | 15 => {
                let host = self.hosts.get_mut(&node).expect("hosts stay");
                host.end_pulls(&mut self.registry, now);
            }
            16..=18 => self.write_report(&node),
            19 | 20 => {
                let seconds = [1, 6, 30, 61, 400, 700][self.script.below(6)];
                self.time(seconds * 1_000);
            }
            21 => {
                self.forget_readiness(&node, false);
                self.host(&node).kill();
            }
            22 => {
                self.forget_readiness(&node, true);
                self.host(&node).lose_ledger();
            }
            // What no engine stops runs on.
            23 if self.exclusive => {}
            23 => {
                let away = self.script.one_in(2);
                let host = self.host(&node);
                host.away = away;
                if away {
                    host.give_up_engine();
                }
            }
            24..=26 => {
                let (at, what, told) = (self.script.below(8), self.script.below(9), self.script.one_in(2));
                self.host(&node).hand(at, what, told);
            }
            27 => self.host(&node).save(),
            _ => {}
        }
    }

    /// An agent that is killed may forget that something is ready: by its word, which is all there is, it is not.
    fn forget_readiness(&mut self, node: &NodeName, all: bool) {
        if all {
            self.host(node).save_nothing();
        }
        let forgotten = self.hosts[node].ready_in_memory_only();
        self.excused.extend(forgotten.iter().map(id));
    }

    fn write_report(&mut self, node: &NodeName) {
        let Some(report) = self.hosts[node].report.clone() else {
            return;
        };
        let entry = self.store.nodes.get(node);
        let known = entry
            .and_then(|entry| entry.report.as_ref())
            .map(|stored| &stored.value);
        if self.connected(node) && known != Some(&Ok(report.clone())) {
            if tracing() {
                let lines: Vec<String> = report
                    .instances
                    .iter()
                    .map(|one| {
                        let next = one.next.as_ref().map(|next| next.n);
                        format!(
                            "{} n{} {:?} ready {} next {next:?} image {:?} failing {:?}",
                            one.name(),
                            one.n,
                            one.phase,
                            one.ready,
                            one.image.map(|pin| pin.digest.short()),
                            one.failing.as_ref().map(|failing| failing.reason),
                        )
                    })
                    .collect();
                eprintln!("  {node} says {:?} {lines:?}", report.applied);
            }
            let revision = bump(&mut self.store);
            self.store.nodes.entry(node.clone()).or_default().report = Some(stored(revision, report));
        }
    }

    fn time(&mut self, millis: u64) {
        let from = self.now_ms;
        self.now_ms += millis;
        let nodes: Vec<NodeName> = self.hosts.keys().cloned().collect();
        for node in nodes {
            let (connected, now) = (self.connected(&node), self.now_ms);
            let host = self.hosts.get_mut(&node).expect("hosts stay");
            if connected {
                host.renew(from, now);
            } else if self.exclusive {
                // Whatever else happens to it: its agent and its engine are there.
                host.go_on(&self.registry, now);
            }
        }
        let told = self.script.one_in(2);
        for host in self.hosts.values_mut() {
            host.time(&self.registry, self.now_ms, told);
        }
        if millis > 600_000 {
            // Ten minutes refill the budget.
            self.store.breaker.spent = 0;
            bump(&mut self.store);
        }
    }

    /// All of an agent's work once, without trouble.
    fn cycle(&mut self, node: &NodeName) {
        let (connected, now) = (self.connected(node), self.now_ms);
        let host = self.hosts.get_mut(node).expect("hosts stay");
        for _ in 0..2 {
            if connected {
                host.read_store(&self.store);
            }
            host.ask_list();
            host.hear_list();
            host.pass(now);
            while !host.under_way.is_empty() {
                host.run_step(0, Fate::Fine, &self.registry, now);
            }
            host.end_pulls(&mut self.registry, now);
        }
        host.ask_list();
        host.hear_list();
        host.pass(now);
        self.write_report(node);
    }

    /// What leads to a slot's next holder, in few acts.
    fn episode(&mut self, what: usize) {
        let node = self.some_host();
        match what {
            0 => {
                self.session(&node, false);
                let store = self.store.clone();
                self.think(&store);
                self.commit(usize::MAX);
                self.confirm_lost(&node);
            }
            1 => {
                self.time(78_000);
                let most = self.script.below(4);
                for _ in 0..=most {
                    let store = self.store.clone();
                    self.think(&store);
                    self.commit(usize::MAX);
                }
            }
            2 => {
                for node in self.hosts.keys().cloned().collect::<Vec<_>>() {
                    self.cycle(&node);
                    self.check();
                }
            }
            _ => {
                let store = self.store.clone();
                self.think(&store);
                let most = 1 + self.script.below(3);
                self.commit(most);
                self.session(&node, true);
                self.cycle(&node);
            }
        }
    }

    /// A person says that a host is off, and is wrong.
    fn confirm_lost(&mut self, node: &NodeName) {
        let node = node.clone();
        if self.connected(&node) {
            return;
        }
        self.forfeit(&node);
        let revision = bump(&mut self.store);
        let before = self.store.nodes.get(&node).and_then(|entry| entry.cordon.as_ref());
        let mode = before
            .and_then(|stored| stored.value.as_ref().ok())
            .map_or(CordonMode::Cordon, |one| one.mode);
        let record = Cordon {
            schema_version: SchemaVersion::default(),
            lost: true,
            mode,
            by: "me@here".to_owned(),
            note: None,
        };
        self.store.nodes.entry(node.clone()).or_default().cordon = Some(stored(revision, record));
        self.mistake(&node);
    }

    fn mistake(&mut self, node: &NodeName) {
        let host = &self.hosts[node];
        let assigned = host
            .input
            .assignment
            .iter()
            .flat_map(|assignment| &assignment.instances);
        let assigned = assigned.map(|one| (one.workload.to_string(), one.slot.clone()));
        let stored = self.store.nodes.get(node).and_then(|entry| entry.assignment.as_ref());
        let stored = stored.and_then(|stored| stored.value.as_ref().ok());
        let stored = stored.into_iter().flat_map(|assignment| &assignment.instances);
        let stored = stored.map(|one| (one.workload.to_string(), one.slot.clone()));
        let there = host
            .containers
            .iter()
            .map(|real| (real.instance().workload.to_string(), real.instance().slot.clone()));
        let all: Vec<_> = assigned
            .chain(stored)
            .chain(there)
            .filter(|(name, _)| name == "s0")
            .collect();
        self.worded.entry(node.clone()).or_default().extend(all);
    }

    fn declare_lost(&mut self) {
        if self.exclusive {
            let node = self.some_host();
            return self.confirm_lost(&node);
        }
        let node = self.some_host();
        let held = self.store.nodes.get(&node).and_then(|entry| entry.verdict.as_ref());
        let unreachable = held.is_some_and(|stored| {
            stored
                .value
                .as_ref()
                .is_ok_and(|record| record.verdict == Verdict::Unreachable)
        });
        if unreachable && !self.connected(&node) {
            self.forfeit(&node);
            let record = VerdictRecord {
                schema_version: SchemaVersion::default(),
                away: None,
                unsteady: false,
                off: true,
                silent: None,
                verdict: Verdict::Lost,
                reason: "away for too long".to_owned(),
            };
            let revision = bump(&mut self.store);
            self.leader.wrote = revision;
            self.store.nodes.entry(node).or_default().verdict = Some(stored(revision, record));
        }
    }

    /// A key of a node vanishes. Of assignment and report one at most, and while the other says the same: what nobody
    /// has written down anywhere, nobody can know.
    fn lose_a_record(&mut self, what: usize) {
        let node = self.some_host();
        let told = self.hosts[&node].report.clone();
        let applied = self.hosts[&node].applied();
        let Some(entry) = self.store.nodes.get(&node) else {
            return;
        };
        let report = entry.report.as_ref().and_then(|stored| stored.value.as_ref().ok());
        let order = entry
            .assignment
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .map(|one| one.order);
        let told_all =
            order == Some(applied) && report.is_some_and(|report| report.applied == applied) && report == told.as_ref();
        if !told_all && matches!(what, 0 | 1 | 5) {
            return;
        }
        self.excuse(&node);
        bump(&mut self.store);
        let entry = self.store.nodes.entry(node).or_default();
        match what {
            0 => entry.assignment = None,
            1 => entry.report = None,
            2 => entry.verdict = None,
            3 => entry.facts = None,
            4 => entry.session = None,
            _ => {
                if let Some(stored) = &mut entry.assignment {
                    stored.value = Err("not JSON".to_owned());
                }
            }
        }
    }

    // ---- the laws --------------------------------------------------------------------------------------------------

    /// The accepted spec of a service as it is now, if it has one.
    fn accepted(&self, key: &ResourceKey) -> Option<(u64, &Uid, &ServiceSpec)> {
        let record = self
            .store
            .accepted
            .get(key)?
            .records
            .last_key_value()?
            .1
            .value
            .as_ref()
            .ok()?;
        match &record.body {
            AcceptedBody::Service(spec) => Some((record.n, &record.uid, spec)),
            AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => None,
        }
    }

    /// Whether the slot is one that its service wants filled, and counts.
    fn wanted(&self, instance: &InstanceKey) -> bool {
        let Some((_, uid, spec)) = self.accepted(&instance.resource()) else {
            return false;
        };
        let slot = match &instance.slot {
            Slot::Index(at) => spec.mode == Mode::Replicated && *at <= spec.replicas.unwrap_or(1),
            Slot::Node(_) => false,
        };
        *uid == instance.uid && slot
    }

    /// Containers of ours that are up, and where.
    pub fn running(&self) -> BTreeMap<Id, BTreeSet<(NodeName, String)>> {
        let mut found: BTreeMap<Id, BTreeSet<(NodeName, String)>> = BTreeMap::new();
        for (node, host) in &self.hosts {
            for real in host.containers.iter().filter(|real| !real.foreign && real.up()) {
                let at = (node.clone(), real.seen.id.clone());
                found.entry(id(real.instance())).or_default().insert(at);
            }
        }
        found
    }

    /// Whatever becomes of a tag: all containers of one accepted spec are of one image, wherever and whenever they are made.
    fn check_images(&mut self) {
        let containers = self.hosts.values().flat_map(|host| &host.containers);
        for real in containers.filter(|real| !real.foreign) {
            let Some(own) = real.seen.own() else { continue };
            let image = real.seen.image.clone();
            let known = self
                .images
                .entry((own.instance.uid, own.n))
                .or_insert_with(|| image.clone());
            assert_eq!(*known, image, "two images of {} n{}", own.instance.workload, own.n);
        }
    }

    /// A network of the cluster's own, from now on.
    pub fn lay_network(&mut self) {
        self.store.cluster.network = Some(NetworkSettings {
            cidr: "10.210.0.0/24".parse().expect("a range"),
            cidr6: None,
            node_prefix: 28,
            backend: Backend::Wireguard,
            domain: "reeve.internal".to_owned(),
            port: 51_820,
            mtu: None,
            key_days: None,
        });
    }

    /// No address has two containers that are up, on whatever node.
    fn check_addresses(&self) {
        let mut owners = BTreeMap::new();
        for (node, host) in &self.hosts {
            for real in host
                .containers
                .iter()
                .filter(|real| real.seen.state == ContainerState::Running)
            {
                for address in real.seen.networks.values().flat_map(|end| &end.addresses) {
                    let owner = (node, &real.seen.name);
                    let other = owners.insert(*address, owner);
                    assert!(other.is_none(), "{address} is {other:?}'s and {owner:?}'s");
                }
            }
        }
    }

    /// An exclusive slot has one container that runs, of whatever life, and each that is made has a token above those of others.
    fn check_exclusive(&mut self) {
        let mut running: BTreeMap<(String, Slot), BTreeSet<(NodeName, String)>> = BTreeMap::new();
        let mut made: Vec<(u64, (String, Slot), NodeName)> = Vec::new();
        for (node, host) in &self.hosts {
            for real in host.containers.iter().filter(|real| !real.foreign) {
                let slot = (real.instance().workload.to_string(), real.instance().slot.clone());
                let mistaken = self.worded.get(node).is_some_and(|all| all.contains(&slot));
                if slot.0 == "s2" || mistaken {
                    continue;
                }
                let at = (node.clone(), real.seen.id.clone());
                let own = real.seen.own().expect("labels");
                if self.made.insert(at.clone()) {
                    made.push((own.token.expect("a token"), slot.clone(), node.clone()));
                }
                if matches!(real.seen.state, ContainerState::Running | ContainerState::Restarting) {
                    running.entry(slot).or_default().insert(at);
                }
            }
        }
        for (slot, places) in running {
            assert!(places.len() == 1, "{slot:?} runs twice: {places:?}");
        }
        made.sort();
        for (token, slot, node) in made {
            if let Some((highest, on)) = self.tokens.get(&slot) {
                let above = token > *highest || token == *highest && node == *on;
                assert!(above, "{slot:?} of {node} has {token} after {highest} of {on}");
            }
            self.tokens.insert(slot, (token, node));
        }
        let hosts = &self.hosts;
        for (node, all) in &mut self.worded {
            let host = &hosts[node];
            let assigned = host
                .input
                .assignment
                .iter()
                .flat_map(|assignment| &assignment.instances);
            let assigned = assigned.filter(|one| one.state != AssignedState::Absent);
            let mut kept: BTreeSet<_> = assigned
                .map(|one| (one.workload.to_string(), one.slot.clone()))
                .collect();
            kept.extend(
                { host.containers.iter() }
                    .map(|real| (real.instance().workload.to_string(), real.instance().slot.clone())),
            );
            all.retain(|slot| kept.contains(slot));
        }
    }

    pub fn check(&mut self) {
        if self.exclusive {
            self.check_exclusive();
        }
        self.check_addresses();
        self.check_images();
        for ((uid, slot), places) in self.running() {
            let given_up = |node: &NodeName| {
                self.forfeited
                    .get(node)
                    .is_some_and(|all| all.contains(&(uid.clone(), slot.clone())))
            };
            let counted: Vec<_> = places.iter().filter(|(node, _)| !given_up(node)).collect();
            let alone = counted.len() <= 1
                && places.iter().map(|(node, _)| node).collect::<BTreeSet<_>>().len() == places.len();
            assert!(alone, "{uid} {slot} runs twice: {places:?}");
        }
        let hosts = &self.hosts;
        for (node, all) in &mut self.forfeited {
            let host = &hosts[node];
            let assigned = |one: &Id| {
                let all = host
                    .input
                    .assignment
                    .iter()
                    .flat_map(|assignment| &assignment.instances);
                all.into_iter()
                    .any(|entry| (&entry.uid, &entry.slot) == (&one.0, &one.1) && entry.state != AssignedState::Absent)
            };
            all.retain(|one| assigned(one) || host.containers.iter().any(|real| id(real.instance()) == *one));
        }
        self.check_turns();
    }

    /// Law 16: a change takes down one slot at most.
    fn check_turns(&mut self) {
        let mut news = Vec::new();
        for (node, host) in &mut self.hosts {
            news.extend(host.news.drain(..).map(|ended| (node.clone(), ended)));
        }
        for (node, ended) in news {
            assert!(
                !self.nothing_may_end,
                "{} ended on {node}: {:?}",
                ended.instance, ended.reason
            );
            let by_change = matches!(ended.reason, Reason::SpecChanged { .. } | Reason::Absent);
            if !by_change || !ended.served || !self.wanted(&ended.instance) {
                continue;
            }
            let one = id(&ended.instance);
            if self.excused.contains(&one) {
                continue;
            }
            // The second copy of what a node that came back still ran: the first serves, so the slot is not taken down.
            // When that one ends in its turn, nothing else serves, and it counts.
            let others = self.hosts.iter().filter(|(name, _)| **name != node);
            if others.into_iter().any(|(_, host)| self.serves_on(host, &one)) {
                continue;
            }
            let last = ended.instance.clone();
            let others: Vec<&Id> = self
                .down
                .iter()
                .filter(|other| other.0 == one.0 && other.1 != one.1 && !self.excused.contains(*other))
                .filter(|other| {
                    self.wanted(&InstanceKey {
                        slot: other.1.clone(),
                        ..last.clone()
                    })
                })
                .collect();
            assert!(
                others.is_empty(),
                "{last} of {node} is taken down ({:?}) while {others:?} is down",
                ended.reason
            );
            self.down.insert(one);
        }
        let mut down = std::mem::take(&mut self.down);
        down.retain(|one| self.serves(one).is_none());
        self.down = down;
        let mut excused = std::mem::take(&mut self.excused);
        excused.retain(|one| {
            let Some((node, host)) = self.serves(one) else {
                return true;
            };
            !settled(&self.store, host, node, one)
        });
        self.excused = excused;
    }

    fn serves_on(&self, host: &Host, one: &Id) -> bool {
        let mine = |real: &&Real| !real.foreign && id(real.instance()) == *one;
        let (registry, now) = (&self.registry, self.now_ms);
        let mut containers = host.containers.iter().filter(mine);
        containers.any(|real| host.serves(real.instance(), registry, now))
    }

    /// The first host on which a slot serves.
    fn serves(&self, one: &Id) -> Option<(&NodeName, &Host)> {
        self.hosts.iter().find(|(_, host)| self.serves_on(host, one))
    }

    // ---- the end ---------------------------------------------------------------------------------------------------

    /// The faults stop: every node is back and open, every image is good.
    pub fn recover(&mut self) {
        self.nothing_may_end = false;
        self.registry.healed = true;
        self.store.complete = true;
        self.picture = None;
        for node in self.hosts.keys().cloned().collect::<Vec<_>>() {
            self.cordon(&node, None);
            self.session(&node, false);
            self.session(&node, true);
            self.register(&node);
            self.host(&node).away = false;
        }
        for file in ["f0", "f1"] {
            self.put_file(file, 9);
        }
        self.set_secret(9);
        // In place of a document that is not valid, or was wiped, its last good one.
        for name in (0..self.services).map(|at| key(&format!("s{at}"))) {
            let invalid =
                matches!(self.store.desired.get(&name), Some(entry) if matches!(entry.body, DesiredBody::Invalid(_)));
            let wiped = !self.store.desired.contains_key(&name);
            let last = self.accepted(&name).map(|(_, _, spec)| spec.clone());
            if let (true, Some(spec)) = (invalid || wiped, last) {
                self.put(name, DesiredBody::Service(Arc::new(spec)));
            }
        }
    }

    /// Rounds without faults, until nothing is left to do.
    pub fn settle(&mut self) {
        let mut quiet = 0;
        for round in 0..250 {
            self.time(if quiet > 0 || round % 40 == 39 { 700_000 } else { 61_000 });
            let store = self.store.clone();
            self.think(&store);
            let rests = self.leader.quiet;
            self.commit(usize::MAX);
            if let Some(held) = self.store.breaker.held.clone() {
                self.ack(held.digest);
            }
            let before = self.store.revision;
            for node in self.hosts.keys().cloned().collect::<Vec<_>>() {
                self.cycle(&node);
                self.check();
            }
            let rested = rests && before == self.store.revision && self.hosts.values().all(|host| host.quiet);
            quiet = if rested { quiet + 1 } else { 0 };
            if quiet == 3 {
                return;
            }
        }
        let picture: Vec<_> = self
            .store
            .nodes
            .values()
            .map(|entry| (&entry.assignment, &entry.report))
            .collect();
        panic!("it does not come to rest: {:?}\n{picture:#?}", self.leader.pending);
    }

    pub fn check_desired(&self) {
        let mut running = self.running();
        for name in (0..self.services).map(|at| key(&format!("s{at}"))) {
            let Some(entry) = self.store.desired.get(&name) else {
                assert!(self.accepted(&name).is_none(), "{name} is deleted");
                continue;
            };
            let DesiredBody::Service(desired) = &entry.body else {
                continue;
            };
            let (n, uid, spec) = self.accepted(&name).expect("valid specs are accepted");
            let mut unresolved = spec.clone();
            for mount in &mut unresolved.container.files {
                let edition = mount.edition.take().expect("accepted with an edition");
                assert_eq!(edition.digest, FileDigest::of(b"9"), "{name} mounts what is in force");
            }
            for one in &mut unresolved.container.secrets {
                let edition = one.edition.take();
                assert_eq!(
                    edition.as_ref(),
                    self.store.secrets.get(&secret_key()),
                    "{name} gets what is in force"
                );
            }
            let mut plain = (**desired).clone();
            plain.container.files.iter_mut().for_each(|mount| mount.edition = None);
            plain.container.secrets.iter_mut().for_each(|one| one.edition = None);
            assert_eq!(unresolved, plain, "{name}: what is desired is accepted");
            let status = self.store.service_statuses[&name].value.as_ref().expect("readable");
            let reason = |kind| {
                let found = status.conditions.iter().find(|condition| condition.kind == kind);
                found.map_or("", |condition| condition.reason.as_str())
            };
            let placed = reason(ConditionType::Scheduled) == "AllPlaced";
            assert!(
                placed || reason(ConditionType::Scheduled) == "NoNodeFits",
                "{status:#?}"
            );
            assert!(
                !placed || status.counts.assigned == status.counts.desired,
                "{status:#?}"
            );
            assert_eq!(status.counts.assigned, status.counts.ready, "{status:#?}");
            let stuck = matches!(reason(ConditionType::Progressing), "HostPort" | "NoNodeFits");
            assert!(stuck || reason(ConditionType::Progressing) == "Complete", "{status:#?}");
            let mut count = 0;
            let (own, others): (BTreeMap<_, _>, _) = running.into_iter().partition(|((of, _), _)| of == uid);
            running = others;
            for ((_, slot), places) in own {
                assert_eq!(places.len(), 1, "{name} {slot}");
                count += 1;
                let (node, container) = places.first().expect("one");
                let real = self.hosts[node]
                    .containers
                    .iter()
                    .find(|real| real.seen.id == *container);
                let real = real.expect("it runs");
                assert_eq!(real.seen.state, ContainerState::Running);
                let made = real.seen.own().expect("labels").n;
                assert!(
                    stuck || made == n || !matches!(cost(&real.spec, spec), Cost::Replace { .. }),
                    "{name} {slot} runs number {made} for {n}"
                );
            }
            assert_eq!(count, status.counts.assigned, "{name}");
        }
        assert!(running.is_empty(), "nobody asked for {running:?}");
        for (node, host) in &self.hosts {
            let left = host
                .containers
                .iter()
                .filter(|real| !real.foreign && !real.up())
                .count();
            assert_eq!(left, 0, "{node} keeps what has ended");
        }
    }
}

/// All that a node has, or is to have.
fn ids_of(store: &Snapshot, hosts: &BTreeMap<NodeName, Host>, node: &NodeName) -> BTreeSet<Id> {
    let host = &hosts[node];
    let stored = store.nodes.get(node).and_then(|entry| entry.assignment.as_ref());
    let stored = stored.and_then(|stored| stored.value.as_ref().ok());
    let listed = stored
        .into_iter()
        .chain(&host.input.assignment)
        .flat_map(|assignment| &assignment.instances);
    let listed = listed.map(|one| (one.uid.clone(), one.slot.clone()));
    listed
        .chain(host.containers.iter().map(|real| id(real.instance())))
        .collect()
}

/// Whether a slot has become what it is assigned, and the leader can know.
fn settled(store: &Snapshot, host: &Host, node: &NodeName, one: &Id) -> bool {
    let Some(entry) = store.nodes.get(node) else {
        return false;
    };
    let ready = entry.session.is_some()
        && entry.verdict.as_ref().is_some_and(|stored| {
            stored
                .value
                .as_ref()
                .is_ok_and(|record| record.verdict == Verdict::Ready)
        });
    let assignment = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
    let report = entry.report.as_ref().and_then(|stored| stored.value.as_ref().ok());
    let (Some(assignment), Some(report)) = (assignment, report) else {
        return false;
    };
    let listed = assignment
        .instances
        .iter()
        .find(|entry| (&entry.uid, &entry.slot) == (&one.0, &one.1));
    let Some(listed) = listed.filter(|listed| listed.state == AssignedState::Present) else {
        return false;
    };
    let real = host
        .containers
        .iter()
        .find(|real| !real.foreign && id(real.instance()) == *one);
    let made = real
        .and_then(|real| real.seen.own())
        .is_some_and(|own| own.n == listed.n);
    ready
        && host.applied() == assignment.order
        && report.applied == assignment.order
        && host.report.as_ref() == Some(report)
        && made
}
