//! Names: what a node's DNS server knows, and what it answers, as values. [`Names`] is built from the network's settings and
//! from all endpoints, service by service; [`answer`] is asked for each question by the server in the crate `network`, and by
//! who wants to know what it would say. It promises: the plain name of a service leads to ready instances alone; what an
//! asker's namespace may not see is answered exactly as what is not there; and no name, however odd, is too much.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use schemas::container::Protocol;
use schemas::names::{Namespace, ResourceName, Slot};
use schemas::records::{Endpoint, EndpointPort, Endpoints};

#[cfg(test)]
mod tests;

/// How long, in seconds, anybody may keep an answer: not at all. A resolver that kept one for a second would name an instance
/// that is gone for that second; to ask again costs a packet to the asker's own host.
pub const TTL: u32 = 0;
/// Names with fewer dots than this are tried within the search domains first: all there are of ours, up to
/// `_http._tcp.all.web.shop`. With the usual 1, musl would never find `db.shop`, and glibc would ask the world for it first. A name
/// of the world costs two questions more, which this host answers itself.
pub const NDOTS: u8 = 5;
/// The label that stands for all instances of a service, ready or not: `all.<service>.<namespace>.<domain>`.
pub const ALL: &str = "all";
/// The most addresses in one answer: more fit no message. The turn decides which.
pub const MAX_ADDRESSES: usize = 2_000;
/// The most SRV records in one answer.
pub const MAX_TARGETS: usize = 400;
/// The most instances of one service that are known: as many as a record of endpoints has.
const MAX_INSTANCES: usize = 10_000;
/// The longest name in text: what fits a message.
const MAX_NAME: usize = 253;

/// What names are answered for, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// The cluster's domain, without a dot at its end.
    pub domain: String,
    /// The ranges that addresses of instances are from.
    pub cidr: Ipv4Net,
    pub cidr6: Option<Ipv6Net>,
    /// This node's own addresses in them: the servers' of its containers.
    pub servers: Vec<IpAddr>,
    /// The addresses this host asks from, where the network is exposed on it; none where it is hidden.
    pub hosts: BTreeSet<IpAddr>,
    /// Of this node's own instances, whose namespace an address is, as its assignment says: known before they run, and before
    /// any record of endpoints has them.
    pub own: BTreeMap<IpAddr, Namespace>,
}

/// Everything a node's server knows of the cluster's names.
#[derive(Clone, Debug)]
pub struct Names {
    realm: Realm,
    /// The domain's labels, in lower case, from the left.
    domain: Vec<String>,
    spaces: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Service>>,
    /// Whose an address is. More than one owner only while one's record is older than another's.
    owners: BTreeSet<(IpAddr, Arc<Key>)>,
    /// Before all keys: where the owners of an address begin.
    least: Arc<Key>,
    instances: usize,
}

/// Which service.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: Arc<str>,
    service: Arc<str>,
}

#[derive(Clone, Debug)]
struct Service {
    key: Arc<Key>,
    ports: Vec<EndpointPort>,
    /// In order of slots, each once.
    instances: Vec<Instance>,
}

#[derive(Clone, Debug)]
struct Instance {
    slot: Slot,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    ready: bool,
}

impl Instance {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.address)).chain(self.address6.map(IpAddr::V6))
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<'a> {
    /// An instance of this namespace.
    Instance { namespace: &'a str },
    /// This host, where the network is exposed on it: it may see all.
    Host,
}

/// What is asked, of class IN.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name's labels, from the left, as they came: any bytes.
    pub labels: &'a [&'a [u8]],
    pub kind: Kind,
}

/// Which records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    Soa,
    Ns,
    /// All there are: answered with addresses.
    Any,
    /// Any other: there are none.
    Other,
}

/// What to do with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Reply(Reply),
    /// It is not about this cluster: this host's own servers know.
    Forward,
    /// Who asks is not of this cluster.
    Refused,
}

/// An answer about this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whether there is such a name. One that has no records of the kind asked for is still there.
    pub exists: bool,
    pub records: Vec<Record>,
    /// What the asker will ask next.
    pub additional: Vec<Record>,
    /// How many labels of the question's name, from the right, are the zone's: whose SOA goes with an answer of no records.
    pub zone: usize,
}

/// One record. Its TTL is [`TTL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// None for the question's own name.
    pub owner: Option<String>,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    /// Priority 0 and weight 1 for all.
    Srv {
        port: u16,
        target: String,
    },
    Ptr(String),
    Ns(String),
    /// The zone's: see [`Names::domain`] for its server, which is named as the domain is.
    Soa,
}

/// How a container's resolver is to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<IpAddr>,
    /// In order: `<namespace>.<domain>` and `<domain>`, so that `<service>` and `<service>.<namespace>` are found.
    pub search: Vec<String>,
    /// In the words of resolv.conf.
    pub options: Vec<String>,
}

/// How the resolver of a namespace's containers is to be set up on a node whose server has these addresses.
#[must_use]
pub fn resolver(domain: &str, namespace: &Namespace, servers: Vec<IpAddr>) -> Resolver {
    let own = format!("{namespace}.{domain}");
    let search = [own, domain.to_owned()]
        .into_iter()
        .filter(|name| name.len() <= MAX_NAME);
    Resolver {
        servers,
        search: search.collect(),
        options: vec![format!("ndots:{NDOTS}")],
    }
}

impl Resolver {
    /// As the content of a container's /etc/resolv.conf. To mount it there keeps the engine's own server out of the way, which
    /// tells every container the names of all others on its bridge, of other namespaces too.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let Self {
            servers,
            search,
            options,
        } = self;
        let mut text = String::new();
        // Resolvers read three, and no more.
        for server in servers.iter().take(3) {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !search.is_empty() {
            text.push_str(&format!("search {}\n", search.join(" ")));
        }
        if !options.is_empty() {
            text.push_str(&format!("options {}\n", options.join(" ")));
        }
        text
    }
}

impl Names {
    #[must_use]
    pub fn new(realm: Realm) -> Self {
        Self {
            domain: labels_of(&realm.domain),
            realm,
            spaces: BTreeMap::new(),
            owners: BTreeSet::new(),
            least: Arc::new(Key {
                namespace: Arc::from(""),
                service: Arc::from(""),
            }),
            instances: 0,
        }
    }

    /// Other settings; services stay as they are.
    pub fn set_realm(&mut self, realm: Realm) {
        self.domain = labels_of(&realm.domain);
        self.realm = realm;
    }

    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The domain, in lower case.
    #[must_use]
    pub fn domain(&self) -> String {
        self.domain.join(".")
    }

    /// How many services it knows.
    #[must_use]
    pub fn services(&self) -> usize {
        self.spaces.values().map(BTreeMap::len).sum()
    }

    /// How many instances they have.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Which services it knows.
    #[must_use]
    pub fn names(&self) -> Vec<(Namespace, ResourceName)> {
        let all = self
            .spaces
            .iter()
            .flat_map(|(namespace, space)| space.keys().map(move |service| (namespace, service)));
        all.filter_map(|(namespace, service)| Some((namespace.parse().ok()?, service.parse().ok()?)))
            .collect()
    }

    /// A service as it is now: all that was known of it before is forgotten.
    pub fn put(&mut self, namespace: &Namespace, service: &ResourceName, endpoints: &Endpoints) {
        self.remove(namespace, service);
        let Endpoints {
            schema_version: _,
            cluster: _,
            ports,
            instances,
        } = endpoints;
        // Names of a namespace share its text.
        let namespace: Arc<str> = match self.spaces.get_key_value(namespace.as_str()) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::from(namespace.as_str()),
        };
        let service: Arc<str> = Arc::from(service.as_str());
        let key = Arc::new(Key {
            namespace: Arc::clone(&namespace),
            service: Arc::clone(&service),
        });
        let mut known: Vec<Instance> = instances.iter().take(MAX_INSTANCES).map(instance).collect();
        known.sort_by(|a, b| a.slot.cmp(&b.slot));
        known.dedup_by(|a, b| a.slot == b.slot);
        known.shrink_to_fit();
        for address in known.iter().flat_map(Instance::addresses) {
            self.owners.insert((address, Arc::clone(&key)));
        }
        self.instances += known.len();
        let entry = Service {
            key,
            ports: ports.clone(),
            instances: known,
        };
        self.spaces.entry(namespace).or_default().insert(service, entry);
    }

    /// A service that is no more.
    pub fn remove(&mut self, namespace: &Namespace, service: &ResourceName) {
        let Some(space) = self.spaces.get_mut(namespace.as_str()) else {
            return;
        };
        let Some(gone) = space.remove(service.as_str()) else {
            return;
        };
        if space.is_empty() {
            self.spaces.remove(namespace.as_str());
        }
        let Service {
            key,
            ports: _,
            instances,
        } = gone;
        self.instances -= instances.len();
        for address in instances.iter().flat_map(Instance::addresses) {
            self.owners.remove(&(address, Arc::clone(&key)));
        }
    }

    /// Whose an address is; None also where two namespaces have it.
    fn owner(&self, address: IpAddr) -> Option<&Arc<Key>> {
        let mut owners = self.owners.range((address, Arc::clone(&self.least))..);
        let (_, owner) = owners.next().filter(|(of, _)| *of == address)?;
        let others = owners.take_while(|(of, _)| *of == address);
        let mut strangers = others.filter(|(_, other)| other.namespace != owner.namespace);
        strangers.next().is_none().then_some(owner)
    }

    /// Who asks from an address; None for who is nobody here. An address that two namespaces have is nobody's.
    #[must_use]
    pub fn asker(&self, from: IpAddr) -> Option<Asker<'_>> {
        let from = from.to_canonical();
        if let Some(namespace) = self.realm.own.get(&from) {
            return Some(Asker::Instance {
                namespace: namespace.as_str(),
            });
        }
        match self.owner(from) {
            Some(key) => Some(Asker::Instance {
                namespace: &key.namespace,
            }),
            None => self.realm.hosts.contains(&from).then_some(Asker::Host),
        }
    }

    fn service(&self, namespace: &str, service: &str) -> Option<&Service> {
        self.spaces.get(namespace)?.get(service)
    }

    /// The full name of an instance.
    fn target(&self, service: &Service, slot: &Slot) -> String {
        let Key { namespace, service } = &*service.key;
        format!("{slot}.{service}.{namespace}.{}", self.domain.join("."))
    }
}

fn instance(endpoint: &Endpoint) -> Instance {
    let Endpoint {
        slot,
        node: _,
        address,
        address6,
        ready,
    } = endpoint;
    Instance {
        slot: slot.clone(),
        address: *address,
        address6: *address6,
        ready: *ready,
    }
}

fn labels_of(domain: &str) -> Vec<String> {
    let labels = domain.split('.').filter(|label| !label.is_empty());
    labels.map(str::to_ascii_lowercase).collect()
}

/// What to answer: `from` is the asker's address, `turn` any number, a different one each time, by which the order of addresses
/// turns. `sees(asker's namespace, namespace, service)` says what of other namespaces an asker's may see; of its own it sees all.
#[must_use]
pub fn answer(
    names: &Names,
    from: IpAddr,
    question: &Question<'_>,
    turn: u64,
    sees: &dyn Fn(&str, &str, &str) -> bool,
) -> Answer {
    match names.asker(from) {
        Some(asker) => answer_as(names, asker, question, turn, sees),
        None => Answer::Refused,
    }
}

/// The same for who asks, from whatever address.
#[must_use]
pub fn answer_as(
    names: &Names,
    asker: Asker<'_>,
    question: &Question<'_>,
    turn: u64,
    sees: &dyn Fn(&str, &str, &str) -> bool,
) -> Answer {
    let asked = Asked {
        names,
        asker,
        kind: question.kind,
        turn,
        sees,
    };
    // A name of other letters than ours is nobody's here, wherever it would be.
    let labels: Vec<String> = question.labels.iter().map(|label| lower(label)).collect();
    let reply = match labels.strip_suffix(names.domain.as_slice()) {
        Some(inner) if !names.domain.is_empty() => Some(asked.ours(inner)),
        _ => asked.short(&labels).or_else(|| asked.reverse(&labels)),
    };
    match (reply, asker) {
        (Some(reply), _) => Answer::Reply(reply),
        (None, Asker::Instance { namespace: _ }) => Answer::Forward,
        // It has servers of its own, and they may be what asks here: two that ask each other would never end.
        (None, Asker::Host) => Answer::Refused,
    }
}

/// A label in lower case. What is not text becomes one that no name has.
fn lower(label: &[u8]) -> String {
    match std::str::from_utf8(label) {
        Ok(text) if !text.contains('.') => text.to_ascii_lowercase(),
        _ => "?".to_owned(),
    }
}

struct Asked<'a> {
    names: &'a Names,
    asker: Asker<'a>,
    kind: Kind,
    turn: u64,
    sees: &'a dyn Fn(&str, &str, &str) -> bool,
}

/// What a name below a service's stands for.
enum Below<'a> {
    /// Instances, and the ports that are asked for.
    Targets { all: bool, ports: Vec<&'a EndpointPort> },
    /// One instance.
    Slot(&'a Instance),
    /// A name that has others below it, and nothing itself.
    Between,
}

impl<'a> Asked<'a> {
    fn reply(&self, exists: bool, records: Vec<Record>) -> Reply {
        Reply {
            exists,
            records,
            additional: Vec::new(),
            zone: self.names.domain.len(),
        }
    }

    fn visible(&self, key: &Key) -> bool {
        match self.asker {
            Asker::Host => true,
            Asker::Instance { namespace } => {
                *namespace == *key.namespace || (self.sees)(namespace, &key.namespace, &key.service)
            }
        }
    }

    /// A name of the domain: what is left of it.
    fn ours(&self, inner: &[String]) -> Reply {
        match inner {
            [] => self.domain(),
            [namespace] => {
                let own = matches!(self.asker, Asker::Instance { namespace: own } if own == namespace);
                let space = self.names.spaces.get(namespace.as_str());
                let exists = own || space.is_some_and(|space| space.values().any(|service| self.visible(&service.key)));
                self.reply(exists, Vec::new())
            }
            [below @ .., service, namespace] => {
                let service = self.names.service(namespace, service);
                match service.filter(|service| self.visible(&service.key)) {
                    Some(service) => self.service(below, service),
                    None => self.reply(false, Vec::new()),
                }
            }
        }
    }

    /// A service's name without the domain, as a resolver asks for it last, when nobody is ready: the world is not asked who has it.
    fn short(&self, labels: &[String]) -> Option<Reply> {
        let Asker::Instance { namespace: own } = self.asker else {
            return None;
        };
        let (service, namespace) = match labels {
            [service] => (service, own),
            [service, namespace] => (service, namespace.as_str()),
            _ => return None,
        };
        let service = self.names.service(namespace, service)?;
        self.visible(&service.key).then(|| Reply {
            zone: labels.len(),
            ..self.service(&[], service)
        })
    }

    /// The domain's own name.
    fn domain(&self) -> Reply {
        let own = |data| vec![Record { owner: None, data }];
        let records = match self.kind {
            Kind::Soa => own(Data::Soa),
            Kind::Ns => own(Data::Ns(self.names.domain())),
            Kind::A | Kind::Aaaa | Kind::Any => {
                let servers = self.names.realm.servers.iter().copied();
                addresses(self.kind, servers)
            }
            Kind::Srv | Kind::Ptr | Kind::Other => Vec::new(),
        };
        self.reply(true, records)
    }

    /// A service's name, or one below it.
    fn service(&self, below: &[String], service: &'a Service) -> Reply {
        match find(below, service) {
            None => self.reply(false, Vec::new()),
            Some(Below::Between) => self.reply(true, Vec::new()),
            Some(Below::Slot(instance)) => self.reply(true, addresses(self.kind, instance.addresses())),
            Some(Below::Targets { all, ports }) => match self.kind {
                Kind::Srv => self.targets(service, all, &ports),
                // A port's name has no addresses.
                _ if below.len() > usize::from(all) => self.reply(true, Vec::new()),
                Kind::A | Kind::Aaaa | Kind::Any => {
                    let instances = self.turned(service, all);
                    let found = instances.flat_map(Instance::addresses);
                    self.reply(true, addresses(self.kind, found))
                }
                Kind::Ptr | Kind::Soa | Kind::Ns | Kind::Other => self.reply(true, Vec::new()),
            },
        }
    }

    /// A service's instances, all or the ready ones, another one first at each turn.
    fn turned(&self, service: &'a Service, all: bool) -> impl Iterator<Item = &'a Instance> + use<'a> {
        let known = service.instances.iter();
        let chosen: Vec<&Instance> = known.filter(|instance| all || instance.ready).collect();
        let count = chosen.len();
        let first = match u64::try_from(count) {
            Ok(count) if count > 0 => usize::try_from(self.turn % count).unwrap_or(0),
            _ => 0,
        };
        let order = (0..count).map(move |step| (first + step) % count);
        let turned: Vec<&Instance> = order.map(|at| chosen[at]).collect();
        turned.into_iter()
    }

    fn targets(&self, service: &'a Service, all: bool, ports: &[&EndpointPort]) -> Reply {
        let mut reply = self.reply(true, Vec::new());
        if ports.is_empty() {
            return reply;
        }
        for instance in self
            .turned(service, all)
            .take(MAX_TARGETS / ports.len().min(MAX_TARGETS))
        {
            let target = self.names.target(service, &instance.slot);
            for port in ports.iter().take(MAX_TARGETS) {
                let data = Data::Srv {
                    port: port.port,
                    target: target.clone(),
                };
                reply.records.push(Record { owner: None, data });
            }
            reply.additional.extend(instance.addresses().map(|address| Record {
                owner: Some(target.clone()),
                data: Data::Address(address),
            }));
        }
        reply
    }

    /// A name that stands for an address of the cluster's ranges; None for all others.
    fn reverse(&self, labels: &[String]) -> Option<Reply> {
        let (address, bits, zone, over) = match labels {
            [places @ .., family, root] if root == "arpa" && family == "in-addr" => {
                let range = &self.names.realm.cidr;
                let (octets, read) = places_of(places, 4, decimal);
                let address: [u8; 4] = octets.try_into().ok()?;
                let address = IpAddr::V4(Ipv4Addr::from(address));
                let zone = usize::from(range.prefix_len()).div_ceil(8) + 2;
                (address, 8 * read, zone, places.len() > read)
            }
            [places @ .., family, root] if root == "arpa" && family == "ip6" => {
                let range = self.names.realm.cidr6.as_ref()?;
                let (nibbles, read) = places_of(places, 32, nibble);
                let address = nibbles
                    .iter()
                    .fold(0_u128, |sum, nibble| (sum << 4) | u128::from(*nibble));
                let zone = usize::from(range.prefix_len()).div_ceil(4) + 2;
                (IpAddr::V6(Ipv6Addr::from(address)), 4 * read, zone, places.len() > read)
            }
            _ => return None,
        };
        let (within, prefix, whole) = match address {
            IpAddr::V4(address) => {
                let range = &self.names.realm.cidr;
                (range.contains(&address), usize::from(range.prefix_len()), 32)
            }
            IpAddr::V6(address) => {
                let range = self.names.realm.cidr6.as_ref()?;
                (range.contains(&address), usize::from(range.prefix_len()), 128)
            }
        };
        if !within || bits < prefix {
            return None;
        }
        let mut reply = self.reply(true, Vec::new());
        reply.zone = zone;
        let own = |data| vec![Record { owner: None, data }];
        if over {
            reply.exists = false;
        } else if bits == whole {
            match self.named(address) {
                Some(name) if matches!(self.kind, Kind::Ptr | Kind::Any) => reply.records = own(Data::Ptr(name)),
                Some(_) => {}
                None => reply.exists = false,
            }
        } else if labels.len() == zone {
            match self.kind {
                Kind::Soa => reply.records = own(Data::Soa),
                Kind::Ns => reply.records = own(Data::Ns(self.names.domain())),
                Kind::A | Kind::Aaaa | Kind::Srv | Kind::Ptr | Kind::Any | Kind::Other => {}
            }
        }
        Some(reply)
    }

    /// The name of an address, where the asker may see it.
    fn named(&self, address: IpAddr) -> Option<String> {
        if self.names.realm.servers.contains(&address) {
            return Some(self.names.domain());
        }
        let key = self.names.owner(address)?;
        let service = self.names.service(&key.namespace, &key.service)?;
        let mut instances = service.instances.iter();
        let instance = instances.find(|instance| instance.addresses().any(|own| own == address))?;
        self.visible(key).then(|| self.names.target(service, &instance.slot))
    }
}

/// What the labels left of a service's name stand for; None for a name that is not there.
fn find<'a>(below: &[String], service: &'a Service) -> Option<Below<'a>> {
    let (left, all) = match below {
        [left @ .., last] if last == ALL => (left, true),
        left => (left, false),
    };
    match left {
        [] => Some(Below::Targets {
            all,
            ports: service.ports.iter().collect(),
        }),
        [protocol] if protocol.starts_with('_') => {
            let protocol = protocol_of(protocol)?;
            let any = service.ports.iter().any(|port| port.protocol == protocol);
            any.then_some(Below::Between)
        }
        [port, protocol] if port.starts_with('_') => {
            let protocol = protocol_of(protocol)?;
            let said = port.strip_prefix('_')?;
            let number = number(said);
            let fits = |port: &&EndpointPort| {
                let EndpointPort {
                    name,
                    port: at,
                    protocol: by,
                    everywhere: _,
                } = port;
                *by == protocol
                    && (Some(*at) == number || name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(said)))
            };
            let ports: Vec<&EndpointPort> = service.ports.iter().filter(fits).collect();
            (!ports.is_empty()).then_some(Below::Targets { all, ports })
        }
        [slot] if !all => {
            let slot: Slot = slot.parse().ok()?;
            let at = service.instances.binary_search_by(|instance| instance.slot.cmp(&slot));
            Some(Below::Slot(service.instances.get(at.ok()?)?))
        }
        _ => None,
    }
}

/// The records of addresses of the kind asked for. For all kinds at once: of the first family there is.
fn addresses(kind: Kind, found: impl Iterator<Item = IpAddr>) -> Vec<Record> {
    let mut six = None;
    let chosen = found.filter(|address| match kind {
        Kind::A => address.is_ipv4(),
        Kind::Aaaa => address.is_ipv6(),
        Kind::Any => *six.get_or_insert(address.is_ipv6()) == address.is_ipv6(),
        Kind::Srv | Kind::Ptr | Kind::Soa | Kind::Ns | Kind::Other => false,
    });
    let records = chosen.take(MAX_ADDRESSES).map(|address| Record {
        owner: None,
        data: Data::Address(address),
    });
    records.collect()
}

fn protocol_of(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// A number as people write it: digits alone, and no zero before others.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn decimal(label: &str) -> Option<u8> {
    number(label).and_then(|number| u8::try_from(number).ok())
}

fn nibble(label: &str) -> Option<u8> {
    let mut letters = label.chars();
    let value = letters.next()?.to_digit(16)?;
    letters.next().is_none().then_some(())?;
    u8::try_from(value).ok()
}

/// The places of an address that a reversed name has, filled up with zeros, and how many it has.
fn places_of(labels: &[String], whole: usize, read: impl Fn(&str) -> Option<u8>) -> (Vec<u8>, usize) {
    let places = labels.iter().rev().take(whole);
    let mut places: Vec<u8> = places.map_while(|label| read(label)).collect();
    let count = places.len();
    places.resize(whole, 0);
    (places, count)
}
