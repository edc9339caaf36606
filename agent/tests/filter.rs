//! Network policies in real kernels' filters: two nodes, containers and a machine outside as network namespaces, real connections,
//! and an answer to each that is worked out anew here. Needs root and `nft`.

#[path = "support/nets.rs"]
mod nets;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use agent::walls::filter::{Filter, Process, Running, Wanted};
use nets::{Net, Node, four, link, outside, six, until};
use planner::network::policy::{Input, Judged, Packet, judge};
use planner::network::relay::{Held, Lead};
use schemas::container::Protocol;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Namespace;
use schemas::records::{
    AssignedNetwork, Backend, ClusterId, Endpoint, Endpoints, InForcePolicy, NetworkSettings, Policies, SchemaVersion,
};
use serde_json::{Value, json};

const PORTS: [u16; 2] = [80, 5432];
/// What runs where: the node, the namespace, the service. Places on a node are in this order, from 2 on.
const RUNS: [(u8, &str, &str); 7] = [
    (1, "shop", "web"),
    (1, "shop", "db"),
    (1, "other", "web"),
    (2, "shop", "web"),
    (2, "backup", "dumper"),
    (2, "other", "api"),
    (2, "shop", "cache"),
];

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().unwrap_or_else(|| panic!("{text}"))
}

fn id() -> ClusterId {
    ClusterId::from_random([9; 16])
}

/// The place of one of [`RUNS`] on its node.
fn place(at: usize) -> u8 {
    let before = RUNS[..at].iter().filter(|(node, ..)| *node == RUNS[at].0).count();
    u8::try_from(before + 2).expect("few")
}

fn endpoints() -> BTreeMap<ResourceKey, Arc<Endpoints>> {
    let mut found: BTreeMap<ResourceKey, Endpoints> = BTreeMap::new();
    for (at, (node, namespace, service)) in RUNS.iter().enumerate() {
        let key = ResourceKey {
            namespace: Some(parsed(namespace)),
            kind: Kind::Service,
            name: parsed(service),
        };
        let record = found.entry(key).or_insert_with(|| Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: id(),
            ports: Vec::new(),
            instances: Vec::new(),
        });
        let (IpAddr::V4(address), IpAddr::V6(address6)) = (four(*node, place(at)), six(*node, place(at))) else {
            unreachable!("one of each family");
        };
        record.instances.push(Endpoint {
            slot: parsed(&(record.instances.len() + 1).to_string()),
            node: parsed(&format!("n{node}")),
            address,
            address6: Some(address6),
            ready: true,
        });
    }
    found.into_iter().map(|(key, record)| (key, Arc::new(record))).collect()
}

struct Lab {
    nodes: [Node; 2],
    outside: Net,
    filters: [Filter; 2],
    published: Vec<(u16, Protocol)>,
    leads: Vec<Lead>,
}

impl Lab {
    fn new() -> Self {
        let mut nodes = [Node::new(1), Node::new(2)];
        link(&nodes[0], &nodes[1]);
        for (node, ..) in RUNS {
            nodes[usize::from(node) - 1].container().listens(&PORTS);
        }
        // Engines turn it on and off for a whole host: one node has it, and one has not.
        for (node, on) in nodes.iter().zip(["1", "0"]) {
            for family in ["iptables", "ip6tables", "arptables"] {
                node.net.set_if_there(&format!("bridge/bridge-nf-call-{family}"), on);
            }
        }
        let outside = outside(&nodes[0]);
        outside.listens(&PORTS);
        let filters = [1, 2].map(|number| Filter::new(&id(), &parsed(&format!("n{number}"))));
        Self {
            nodes,
            outside,
            filters,
            published: Vec::new(),
            leads: Vec::new(),
        }
    }

    fn of(&self, at: usize) -> &Net {
        &self.nodes[usize::from(RUNS[at].0) - 1].containers[usize::from(place(at)) - 2]
    }

    fn wanted(&self, node: u8, policies: &BTreeMap<Namespace, Arc<Policies>>) -> Wanted {
        let running = RUNS.iter().enumerate().filter(|(_, one)| one.0 == node);
        let running = running.map(|(at, (_, namespace, service))| {
            let IpAddr::V4(address) = four(node, place(at)) else {
                unreachable!("it is IPv4")
            };
            Running {
                address,
                namespace: parsed(namespace),
                service: parsed(service),
                published: self.published.clone(),
                process: Some(Process::Pid(self.of(at).pid())),
            }
        });
        Wanted {
            network: AssignedNetwork {
                settings: NetworkSettings {
                    cidr: parsed("10.210.0.0/16"),
                    cidr6: Some(parsed("fd10:210::/64")),
                    node_prefix: 24,
                    backend: Backend::HostGw,
                    domain: "reeve.internal".to_owned(),
                    port: 51_820,
                    mtu: None,
                    key_days: None,
                },
                subnet: parsed(&format!("10.210.{node}.0/24")),
                subnet6: Some(parsed(&format!("fd10:210::{node}:0/112"))),
                exposed: false,
            },
            bridge: "rv-t".to_owned(),
            links: BTreeSet::from(["rvl".to_owned()]),
            running: running.collect(),
            endpoints: Arc::new(endpoints()),
            policies: Arc::new(policies.clone()),
            leads: self.leads.clone(),
        }
    }

    /// Puts these policies in force on both nodes.
    fn apply(&self, policies: &BTreeMap<Namespace, Arc<Policies>>) {
        for (node, filter) in self.nodes.iter().zip(&self.filters) {
            let wanted = self.wanted(node.number, policies);
            on(node, async || filter.apply(wanted).await);
            assert_eq!(filter.trouble(), None);
        }
    }

    fn look(&self, node: usize) {
        on(&self.nodes[node], async || self.filters[node].look().await);
        assert_eq!(self.filters[node].trouble(), None);
    }
}

/// Waits for something that is done in a node's namespace.
fn on<T: Send>(node: &Node, act: impl AsyncFnOnce() -> T + Send) -> T {
    node.net.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(act())
    })
}

/// Somebody in a rule of these tests.
#[derive(Clone, Copy, Debug)]
enum Peer {
    All,
    Space(&'static str),
    Service(&'static str, &'static str),
    /// The machine outside.
    Outside,
    /// All outside but that machine.
    ElseOutside,
}

/// One rule: who, and whether only on the first of [`PORTS`].
type Rule = (Peer, bool);

#[derive(Clone, Debug)]
struct Policy {
    namespace: &'static str,
    services: Vec<&'static str>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Policy {
    fn spec(&self) -> Value {
        let rules = |side: &str, rules: &Option<Vec<Rule>>| -> Vec<Value> {
            let rule = |(peer, first): &Rule| {
                let mut rule = match peer {
                    Peer::All => json!({}),
                    Peer::Space(namespace) => json!({ side: [{ "namespace": namespace }] }),
                    Peer::Service(namespace, service) => {
                        json!({ side: [{ "namespace": namespace, "service": service }] })
                    }
                    Peer::Outside => {
                        json!({ side: [{ "ipBlock": { "cidr": "192.168.50.0/24", "except": ["192.168.50.128/25"] } }] })
                    }
                    // All addresses there are: of the cluster's own it says nothing.
                    Peer::ElseOutside => {
                        json!({ side: [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["192.168.50.2/32"] } }, { "ipBlock": { "cidr": "::/0" } }] })
                    }
                };
                if *first {
                    rule["ports"] = json!([{ "port": PORTS[0] }, { "port": PORTS[0], "protocol": "UDP" }]);
                }
                rule
            };
            rules.iter().flatten().map(rule).collect()
        };
        let types: Vec<&str> = [("Ingress", &self.ingress), ("Egress", &self.egress)]
            .into_iter()
            .filter(|(_, rules)| rules.is_some())
            .map(|(word, _)| word)
            .collect();
        json!({
            "services": self.services,
            "policyTypes": types,
            "ingress": rules("from", &self.ingress),
            "egress": rules("to", &self.egress),
        })
    }

    fn is_about(&self, who: usize) -> bool {
        let (_, namespace, service) = RUNS[who];
        self.namespace == namespace && (self.services.is_empty() || self.services.contains(&service))
    }
}

/// A peer's rule, read anew: whether it means this instance, or the machine outside.
fn means(peer: Peer, who: Option<usize>) -> bool {
    match (peer, who.map(|who| RUNS[who])) {
        (Peer::All, _) | (Peer::Outside, None) => true,
        (Peer::Space(namespace), Some((_, of, _))) => namespace == of,
        (Peer::Service(namespace, service), Some((_, of, name))) => (namespace, service) == (of, name),
        (Peer::Outside | Peer::ElseOutside, Some(_)) | (_, None) => false,
    }
}

/// What must become of a connection: the table of decision 0027.
fn expected(policies: &[Policy], from: Option<usize>, to: Option<usize>, port: u16) -> bool {
    let opens = |rules: &[&Vec<Rule>], other: Option<usize>| {
        let mut all = rules.iter().flat_map(|rules| rules.iter());
        all.any(|(peer, first)| means(*peer, other) && (!first || port == PORTS[0]))
    };
    let leaves = from.is_none_or(|from| {
        let about = policies.iter().filter(|policy| policy.is_about(from));
        let rules: Vec<&Vec<Rule>> = about.filter_map(|policy| policy.egress.as_ref()).collect();
        rules.is_empty() || opens(&rules, to)
    });
    let enters = to.is_none_or(|to| {
        let about = policies.iter().filter(|policy| policy.is_about(to));
        let rules: Vec<&Vec<Rule>> = about.filter_map(|policy| policy.ingress.as_ref()).collect();
        if rules.is_empty() {
            // Its own namespace; from outside only what is published.
            from.is_some_and(|from| RUNS[from].1 == RUNS[to].1)
        } else {
            opens(&rules, from)
        }
    });
    leaves && enters
}

fn records(policies: &[Policy]) -> BTreeMap<Namespace, Arc<Policies>> {
    let mut found: BTreeMap<Namespace, Policies> = BTreeMap::new();
    for (at, policy) in policies.iter().enumerate() {
        let record = found.entry(parsed(policy.namespace)).or_insert_with(|| Policies {
            schema_version: SchemaVersion::default(),
            cluster: id(),
            policies: Vec::new(),
        });
        record.policies.push(InForcePolicy {
            name: parsed(&format!("p{at}")),
            spec: serde_json::from_value(policy.spec()).expect("a spec"),
        });
    }
    found
        .into_iter()
        .map(|(name, record)| (name, Arc::new(record)))
        .collect()
}

/// The same numbers every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("a number") % limit
    }

    fn rules(&mut self) -> Option<Vec<Rule>> {
        let peers = [
            Peer::All,
            Peer::Space("shop"),
            Peer::Space("other"),
            Peer::Service("shop", "web"),
            Peer::Service("backup", "dumper"),
            Peer::Service("other", "api"),
            Peer::Outside,
            Peer::ElseOutside,
        ];
        let count = self.below(4);
        // As often none as one, two or three.
        (self.below(3) > 0).then(|| {
            (0..count)
                .map(|_| (peers[self.below(peers.len())], self.below(2) == 0))
                .collect()
        })
    }

    fn policies(&mut self) -> Vec<Policy> {
        let count = self.below(4);
        let one = |draw: &mut Self| {
            let (_, namespace, service) = RUNS[draw.below(RUNS.len())];
            Policy {
                namespace,
                services: if draw.below(3) == 0 { Vec::new() } else { vec![service] },
                ingress: draw.rules(),
                egress: draw.rules(),
            }
        };
        let mut drawn: Vec<Policy> = (0..count).map(|_| one(self)).collect();
        drawn.retain(|policy| policy.ingress.is_some() || policy.egress.is_some());
        drawn
    }
}

#[test]
fn hundreds_of_pairs_in_drawn_policies_connect_exactly_as_they_are_allowed_to() {
    let lab = Lab::new();
    let mut draw = Draw(4);
    let (mut allowed, mut refused) = (0_u32, 0_u32);
    let out: IpAddr = parsed("192.168.50.2");
    for round in 0..8 {
        // The first round is of no policy at all.
        let policies = if round == 0 { Vec::new() } else { draw.policies() };
        let records = records(&policies);
        lab.apply(&records);
        let wanted = lab.wanted(1, &records);
        let nobody = (BTreeSet::new(), Vec::new());
        let input = Input {
            network: &wanted.network,
            bridge: "rv-t",
            links: &nobody.0,
            ports: &nobody.0,
            mac: None,
            local: &nobody.1,
            endpoints: &wanted.endpoints,
            policies: &wanted.policies,
            leads: &[],
        };
        let everybody: Vec<Option<usize>> = (0..RUNS.len()).map(Some).chain([None]).collect();
        for (from, to) in everybody
            .iter()
            .flat_map(|from| everybody.iter().map(move |to| (*from, *to)))
        {
            if from == to {
                continue;
            }
            // The way to the machine outside is node 1's.
            let far = |who: Option<usize>| who.is_some_and(|who| RUNS[who].0 == 2);
            if (from.is_none() && far(to)) || (to.is_none() && far(from)) {
                continue;
            }
            let source = from.map_or(&lab.outside, |from| lab.of(from));
            let at = |who: Option<usize>, of: fn(u8, u8) -> IpAddr| who.map_or(out, |who| of(RUNS[who].0, place(who)));
            for port in PORTS {
                let wants = expected(&policies, from, to, port);
                let said = |what: &str, got: bool| {
                    assert_eq!(
                        got, wants,
                        "round {round}: {what} {from:?} -> {to:?}:{port} with {policies:#?}"
                    );
                };
                said("TCP", source.connects(at(to, four), port).is_some());
                // Outside has no IPv6.
                if from.is_some() && to.is_some() {
                    said("TCP over IPv6", source.connects(at(to, six), port).is_some());
                }
                if round % 3 == 1 {
                    said("UDP", source.sends(at(to, four), port));
                }
                let packet = Packet {
                    from: at(from, four),
                    to: at(to, four),
                    protocol: Protocol::Tcp,
                    port,
                    published: false,
                };
                let judged = judge(&input, &packet);
                said("as it is told,", matches!(judged, Judged::Allowed { policy: _ }));
                *(if wants { &mut allowed } else { &mut refused }) += 1;
            }
        }
    }
    assert!(allowed >= 120 && refused >= 120, "{allowed} allowed, {refused} refused");
}

#[test]
fn what_is_published_is_open_until_a_policy_is_about_it_and_what_leaves_has_the_hosts_address() {
    let mut lab = Lab::new();
    lab.published = vec![(8080, Protocol::Tcp)];
    let web = |policies: &[Policy]| lab.apply(&records(policies));
    // As an engine publishes a port.
    lab.nodes[0].net.nft(
        "table ip engine {\nchain prerouting {\ntype nat hook prerouting priority -100;\niifname != \"rv-t\" tcp dport 8080 dnat to 10.210.1.2:80\n}\n}\n",
    );
    let (host, out): (IpAddr, IpAddr) = (parsed("192.168.50.1"), parsed("192.168.50.2"));
    web(&[]);
    assert_eq!(
        lab.outside.connects(host, 8080),
        Some(out),
        "a published port, with the client's own address"
    );
    assert_eq!(lab.outside.connects(four(1, 2), 80), None, "not published");
    assert_eq!(lab.of(0).connects(out, 80), Some(host), "under the host's address");
    assert_eq!(
        lab.of(0).connects(four(2, 2), 80),
        Some(four(1, 2)),
        "under its own address"
    );
    // Hosts: one's own always, others as far as no policy is about the service.
    let (first, second) = (&lab.nodes[0].net, &lab.nodes[1].net);
    assert_eq!(first.connects(four(1, 2), 80), Some(four(1, 1)));
    assert_eq!(first.connects(four(2, 2), 80), Some(four(1, 1)));
    let closed = |ingress: Vec<Rule>| Policy {
        namespace: "shop",
        services: vec!["web"],
        ingress: Some(ingress),
        egress: None,
    };
    web(&[closed(Vec::new())]);
    assert_eq!(lab.outside.connects(host, 8080), None, "a policy is about it");
    assert_eq!(
        first.connects(four(1, 2), 80),
        Some(four(1, 1)),
        "its own host checks its health"
    );
    assert_eq!(first.connects(four(2, 2), 80), None, "another host is nobody special");
    web(&[closed(vec![(Peer::Outside, false)])]);
    assert_eq!(lab.outside.connects(host, 8080), Some(out));
    // Through the host it would come as the host: that way is closed to who is on it.
    first.listens(&[8080, 53]);
    assert_eq!(lab.of(2).connects(four(1, 1), 8080), None);
    assert!(
        lab.of(2).connects(four(1, 1), 53).is_some() && lab.of(2).sends(four(1, 1), 53),
        "names"
    );
    second.listens(&[53]);
    assert_eq!(lab.of(2).connects(four(2, 1), 53), None, "another node's own address");
    // A cloud's own secrets, wherever they would be.
    first.ip("route add 169.254.169.254/32 via 192.168.50.2\n");
    lab.outside.ip("addr add 169.254.169.254/32 dev lo\n");
    assert!(
        first.connects(parsed("169.254.169.254"), 80).is_some(),
        "the host itself"
    );
    assert_eq!(lab.of(0).connects(parsed("169.254.169.254"), 80), None);
}

/// A port of the first node that leads to an instance of it.
fn lead(port: u16, target: &str, to: &[SocketAddr]) -> Lead {
    let protocol = [Protocol::Tcp, Protocol::Udp][usize::from(target.ends_with("/udp"))];
    Lead {
        at: Held {
            protocol,
            ip: None,
            port,
        },
        target: target.to_owned(),
        to: to.to_vec(),
    }
}

#[test]
fn who_comes_from_outside_is_led_to_instances_as_himself_and_nobody_else_is() {
    let mut lab = Lab::new();
    let (host, out): (IpAddr, IpAddr) = (parsed("192.168.50.1"), parsed("192.168.50.2"));
    let (host6, out6): (IpAddr, IpAddr) = (parsed("fd50::1"), parsed("fd50::2"));
    lab.nodes[0].net.ip("-6 addr add fd50::1/64 dev out nodad\n");
    lab.outside
        .ip("-6 addr add fd50::2/64 dev eth0 nodad\n-6 route add fd10:210::/64 via fd50::1\n");
    let first = |lab: &Lab, text: &str| -> String {
        lab.nodes[0].net.within(|| {
            let output = Command::new("sh").args(["-c", text]).output().expect("a shell");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}: {said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    };
    // As an engine has it: nothing is forwarded that nobody accepts, and the way out is another of its bridges.
    first(
        &lab,
        "iptables -P FORWARD DROP && iptables -N DOCKER-USER && iptables -A DOCKER-USER -j RETURN \
         && iptables -A FORWARD -j DOCKER-USER && iptables -A FORWARD -i rv-t -o out -j DROP \
         && iptables -A FORWARD -o rv-t -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    );
    let user = |lab: &Lab| first(lab, "iptables -S DOCKER-USER");
    let [web, db, far] = [four(1, 2), four(1, 3), four(2, 2)].map(|ip| SocketAddr::new(ip, 80));
    let asks = |lab: &Lab| lab.outside.connects(host, 18080);
    lab.apply(&records(&[]));
    assert_eq!(asks(&lab), None, "nobody listens there");
    // Who is behind a port is another's word: the database is no such service.
    lab.leads = [(18080, &[web, db][..]), (18082, &[far])]
        .map(|(port, to)| lead(port, "shop/web:80/tcp", to))
        .to_vec();
    lab.apply(&records(&[]));
    assert_eq!(asks(&lab), Some(out), "the client's own address");
    assert_eq!(lab.outside.connects(host6, 18080), Some(out6), "the same by IPv6");
    assert_eq!(lab.outside.connects(four(1, 2), 80), None, "straight to it");
    // Here nobody stands in for the relay: who is not led is refused.
    assert_eq!(lab.nodes[0].net.connects(host, 18080), None, "the host itself");
    assert_eq!(lab.of(6).connects(four(2, 1), 18082), None, "a container of its node");
    assert_eq!(lab.of(3).connects(four(1, 1), 18080), None, "one of another node");
    assert_eq!(
        lab.of(0).connects(out, 80),
        None,
        "what is not an answer is the engine's to judge"
    );
    let closed = |ingress: Vec<Rule>| {
        records(&[Policy {
            namespace: "shop",
            services: vec!["web"],
            ingress: Some(ingress),
            egress: None,
        }])
    };
    for (rule, lets_in) in [
        (vec![], false),
        (vec![(Peer::Outside, true)], true),
        (vec![(Peer::ElseOutside, false)], false),
        (vec![(Peer::Space("shop"), false)], false),
        (vec![(Peer::All, false)], true),
    ] {
        lab.apply(&closed(rule.clone()));
        assert_eq!(asks(&lab), lets_in.then_some(out), "{rule:?}");
    }
    lab.apply(&records(&[]));
    let table = planner::walls::filter_table(id().as_str(), "n1");
    lab.nodes[0].net.nft(&format!("flush chain inet {table} prerouting\n"));
    first(&lab, "iptables -F DOCKER-USER");
    assert_eq!(asks(&lab), None);
    lab.look(0);
    assert_eq!(asks(&lab), Some(out));
    let kept = user(&lab);
    lab.look(0);
    assert_eq!(user(&lab), kept, "nothing is added twice");
    // What another translates is his.
    let engine = "table ip engine {\nchain prerouting {\ntype nat hook prerouting priority -100; policy accept;\ntcp dport 18080 redirect to :1\n}\n}\n";
    lab.nodes[0].net.nft(engine);
    let listed = first(&lab, "nft list table ip engine");
    assert_eq!(asks(&lab), None);
    lab.look(0);
    assert_eq!(first(&lab, "nft list table ip engine"), listed);
    lab.nodes[0].net.nft("delete table ip engine\n");
    // One after the other: of two one listens.
    lab.of(0).listens(&[9000]);
    let mut both = lab.wanted(1, &records(&[]));
    both.running[1].service = parsed("web");
    let to = [web, db].map(|to| SocketAddr::new(to.ip(), 9000));
    both.leads = vec![lead(19000, "shop/web:9000/tcp", &to)];
    on(&lab.nodes[0], async || lab.filters[0].apply(both).await);
    let met: Vec<bool> = (0..6).map(|_| lab.outside.connects(host, 19000).is_some()).collect();
    assert_eq!(met.iter().filter(|met| **met).count(), 3, "{met:?}");
    // What was begun goes on when nobody is led any more.
    lab.apply(&records(&[]));
    let (mut stream, _) = lab.outside.stream(host, 18080).expect("it is led");
    lab.leads = Vec::new();
    lab.apply(&records(&[]));
    assert_eq!(asks(&lab), None);
    stream.write_all(b"more").expect("it is open");
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).expect("it is answered");
    assert_eq!(&heard, b"more");
}

#[test]
fn a_client_that_goes_on_sending_is_not_led_to_who_is_gone() {
    let mut lab = Lab::new();
    let (host, web) = ("192.168.50.1:18053", SocketAddr::new(four(1, 2), 5432));
    lab.leads = vec![lead(18053, "shop/web:5432/udp", &[web])];
    lab.apply(&records(&[]));
    let client = lab.outside.within(|| {
        let client = UdpSocket::bind("0.0.0.0:0").expect("a port");
        client.connect(host).expect("a way");
        client
    });
    client
        .set_read_timeout(Some(std::time::Duration::from_millis(500)))
        .expect("a limit");
    let answered = || client.send(b"x").is_ok() && client.recv(&mut [0; 4]).is_ok();
    assert!(answered(), "the instance answers");
    // It is not ready, but there: what was begun goes on, and the relay takes who is new.
    lab.leads = Vec::new();
    lab.apply(&records(&[]));
    assert!(answered(), "it goes on");
    lab.nodes[0].net.listens(&[18053]);
    lab.nodes[0].net.ip("link del veth2\n");
    assert!(!answered(), "what the kernel remembers swallows it");
    lab.look(0);
    assert!(answered(), "the relay answers");
}

#[test]
fn nobody_is_another_on_the_bridge() {
    let lab = Lab::new();
    lab.apply(&records(&[]));
    let (thief, victim) = (lab.of(2), lab.of(0));
    let target = lab.of(1);
    assert!(victim.connects(four(1, 3), 80).is_some());
    assert_eq!(thief.connects(four(1, 3), 80), None, "another namespace");
    // It takes the victim's address beside its own, and a neighbour entry that needs nobody's answer.
    thief.ip("addr add 10.210.1.2/32 dev eth0\nroute replace 10.210.1.3/32 via 10.210.1.1 src 10.210.1.2\n");
    assert_eq!(thief.connects(four(1, 3), 80), None, "another's address");
    thief.within(|| {
        let _ = std::process::Command::new("ping")
            .args(["-c1", "-W1", "-I", "10.210.1.2", "10.210.1.1"])
            .output();
    });
    thief.ip("addr del 10.210.1.2/32 dev eth0\n");
    // Past the host, straight to the other's card: over an address that no policy knows.
    let card = std::fs::read_to_string(target.class().join("eth0/address")).expect("a card");
    thief.ip(&format!("neigh replace 10.210.1.3 lladdr {} dev eth0\n", card.trim()));
    assert_eq!(thief.connects(four(1, 3), 80), None, "straight to its card");
    // One that may, and knows the card from before, still gets there: by the host.
    victim.ip(&format!("neigh replace 10.210.1.3 lladdr {} dev eth0\n", card.trim()));
    assert!(victim.connects(four(1, 3), 80).is_some(), "as it was before");
    // Another's card: the host would send the other's packets to it.
    let card = std::fs::read_to_string(victim.class().join("eth0/address")).expect("a card");
    thief.ip(&format!(
        "link set eth0 down\nlink set eth0 address {}\nlink set eth0 up\n",
        card.trim()
    ));
    let _ = thief.connects(four(1, 1), 53);
    assert!(
        victim.connects(four(1, 3), 80).is_some(),
        "the victim still is who it is"
    );
    let counts = on(&lab.nodes[0], async || lab.filters[0].refused().await).expect("counters");
    assert!(
        counts.get("plug.10.210.1.4").is_some_and(|count| *count > 0),
        "{counts:?}"
    );
    assert!(counts.get("in.shop.db").is_some_and(|count| *count > 0), "{counts:?}");
}

#[test]
fn known_connections_outlive_what_changes_and_what_is_damaged_is_put_right() {
    let lab = Lab::new();
    lab.apply(&records(&[]));
    let (mut stream, _) = lab.of(3).stream(four(1, 3), 5432).expect("its own namespace");
    let mut echo = |word: &[u8; 4]| {
        stream.write_all(word).expect("it is open");
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).expect("it is answered");
        assert_eq!(&heard, word);
    };
    echo(b"one1");
    // A whole new table: chains change.
    let all = Policy {
        namespace: "shop",
        services: vec!["db"],
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
    };
    let policies = records(&[all]);
    lab.apply(&policies);
    echo(b"two2");
    assert_eq!(lab.of(3).connects(four(1, 3), 5432), None, "a new one is refused");
    // Elements only: an instance that is new elsewhere.
    let before = lab.nodes[0].net.within(|| refusing(&lab.filters[0]));
    lab.apply(&records(&[]));
    echo(b"thr3");
    assert_eq!(lab.nodes[0].net.within(|| refusing(&lab.filters[0])), before);
    let table = planner::walls::filter_table(id().as_str(), "n1");
    let open = || lab.of(2).connects(four(1, 3), 80).is_some();
    assert!(!open());
    // And whether it opens what is closed.
    let damages = [
        (format!("delete table inet {table}\n"), true),
        (format!("delete table bridge {table}\n"), false),
        (format!("flush chain inet {table} in.shop.db\n"), true),
        (format!("insert rule inet {table} forward accept\n"), true),
        (format!("delete element inet {table} in4 {{ 10.210.1.3 }}\n"), false),
        (format!("add element inet {table} ns.shop.4 {{ 10.210.1.4 }}\n"), true),
    ];
    for (damage, opens) in &damages {
        lab.nodes[0].net.nft(damage);
        assert!(!opens || open(), "{damage}");
        lab.look(0);
        assert!(!open(), "{damage}");
        assert!(lab.of(0).connects(four(1, 3), 80).is_some(), "{damage}");
        echo(b"four");
    }
    // What stands beside the tables.
    lab.nodes[0].net.set("ipv4/conf/rv-t/proxy_arp_pvlan", "0");
    lab.nodes[0].net.ip("-6 neigh del proxy fd10:210::1:3 dev rv-t\n");
    lab.look(0);
    lab.of(0).ip("neigh flush all\n-6 neigh flush all\n");
    assert!(lab.of(0).connects(four(1, 3), 80).is_some() && lab.of(0).connects(six(1, 3), 80).is_some());
    // A container that is made anew has another port.
    lab.nodes[0]
        .net
        .ip("link set veth2 down\nlink set veth2 name veth99\nlink set veth99 up\n");
    lab.look(0);
    until("its new port is known", || lab.of(0).connects(four(1, 3), 80).is_some());
}

#[test]
fn the_bridge_is_put_back_with_all_that_hung_on_it() {
    let lab = Lab::new();
    lab.apply(&records(&[]));
    let (mut stream, _) = lab.of(3).stream(four(1, 3), 5432).expect("its own namespace");
    let mut echo = |word: &[u8; 4]| {
        stream.write_all(word).expect("it is open");
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).expect("it is answered");
        assert_eq!(&heard, word);
    };
    echo(b"one1");
    for (damage, cut) in [
        ("link del rv-t\n", four(1, 2)),
        ("link set rv-t down\n", six(1, 2)),
        ("addr flush dev rv-t\n", four(1, 2)),
        ("route del 10.210.1.0/24 dev rv-t\n", four(1, 2)),
        ("-6 route del fd10:210::1:0/112 dev rv-t\n", six(1, 2)),
        ("link set veth2 nomaster\n", four(1, 2)),
    ] {
        lab.nodes[0].net.ip(damage);
        assert_eq!(lab.of(3).connects(cut, 80), None, "{damage}");
        lab.look(0);
        // The ways to other nodes went with the address, and are the links' to put back.
        lab.nodes[0]
            .net
            .ip("route replace 10.210.2.0/24 via 172.30.0.2 src 10.210.1.1\n");
        for (from, to) in [(3, four(1, 2)), (3, six(1, 2)), (0, four(1, 3)), (0, four(2, 2))] {
            until(&format!("{from} reaches {to} after {damage}"), || {
                lab.of(from).connects(to, 80).is_some()
            });
        }
        assert_eq!(lab.of(2).connects(four(1, 3), 80), None, "{damage}: policies hold");
        echo(b"two2");
    }
    // Something else of its name is in the way, until it is not.
    lab.nodes[0]
        .net
        .ip("link del rv-t\nlink add rv-t type veth peer name other2\n");
    on(&lab.nodes[0], async || lab.filters[0].look().await);
    assert!(refusing(&lab.filters[0]));
    lab.nodes[0].net.ip("link del rv-t\n");
    lab.look(0);
    until("all hangs there again", || lab.of(0).connects(four(1, 3), 80).is_some());
    // What never was there is the engine's to make, and what is another's hangs where it hangs.
    let bare = Filter::new(&id(), &parsed("n3"));
    let wanted = Wanted {
        bridge: "rv-u".to_owned(),
        running: Vec::new(),
        ..lab.wanted(1, &records(&[]))
    };
    lab.nodes[0].net.ip("link add foreign type veth peer name other\n");
    on(&lab.nodes[0], async || bare.apply(wanted).await);
    lab.look(0);
    let listed = lab.nodes[0]
        .net
        .within(|| Command::new("ip").args(["-o", "link"]).output().expect("it lists"));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(!listed.contains("rv-u"), "{listed}");
    let line = |name: &str| {
        listed
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(!line(" foreign@").contains("master"), "{listed}");
}

fn refusing(filter: &Filter) -> bool {
    filter.trouble().is_some()
}
