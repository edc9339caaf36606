//! What a name leads to, for people: the name is tried as a container's resolver would try it, and answered by [`names`] as the
//! node's server answers. `reeve lookup` computes it from the store, and a node's server from its own copy, by the same
//! function. Where there is no answer, [`why`] says why in a sentence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use schemas::keys::ResourceKey;
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Endpoints, Policies};
use serde::{Deserialize, Serialize};

use super::names::{Answer, Asker, Data, Kind, NDOTS, Names, Question, Record, Reply, answer_as, resolver};
use super::policy::{Seers, seers};

/// The longest name that is asked about, in bytes.
pub const MAX_NAME: usize = 253;

/// Which records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Type {
    A,
    Aaaa,
    Srv,
    Ptr,
}

impl Type {
    /// What is meant by a name where nothing is said: PTR by an address, SRV by what begins with `_`, else A.
    #[must_use]
    pub fn meant(name: &str) -> Self {
        if name.parse::<IpAddr>().is_ok() {
            Self::Ptr
        } else if name.starts_with('_') {
            Self::Srv
        } else {
            Self::A
        }
    }

    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Srv => "SRV",
            Self::Ptr => "PTR",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::A => Kind::A,
            Self::Aaaa => Kind::Aaaa,
            Self::Srv => Kind::Srv,
            Self::Ptr => Kind::Ptr,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// As a program would write it: `db`, `db.shop`, an address.
    pub name: String,
    pub kind: Type,
    /// As an instance of which namespace.
    pub from: Namespace,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Came {
    Answered,
    /// There is the name, and nothing of this kind under it.
    Empty,
    NoSuchName,
    /// It is none of the cluster's: this host's own servers know.
    Elsewhere,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// The whole name that was answered for.
    pub name: String,
    pub came: Came,
    /// In order of their text: addresses, `0 1 <port> <target>`, names.
    pub records: Vec<String>,
}

/// The whole names that a resolver of this namespace's containers tries, in order.
#[must_use]
pub fn tried(name: &str, from: &Namespace, domain: &str) -> Vec<String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return vec![reversed(address)];
    }
    if let Some(whole) = name.strip_suffix('.') {
        return vec![whole.to_owned()];
    }
    let search = resolver(domain, from, Vec::new()).search;
    let mut all: Vec<String> = search.iter().map(|under| format!("{name}.{under}")).collect();
    let dots = name.bytes().filter(|byte| *byte == b'.').count();
    let at = if dots < usize::from(NDOTS) { all.len() } else { 0 };
    all.insert(at, name.to_owned());
    all
}

/// The name of an address, for PTR.
fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let whole = u128::from(address);
            let nibbles = (0..32).map(|at| format!("{:x}.", (whole >> (4 * at)) & 0xf));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

/// Asks, as a container's resolver does: the first name with an answer counts, else the first that is there, else the first.
/// `sees` as for [`super::names::answer`].
#[must_use]
pub fn look(names: &Names, wanted: &Wanted, sees: &dyn Fn(&str, &str, &str) -> bool) -> Found {
    let Wanted { name, kind, from } = wanted;
    let asker = Asker::Instance {
        namespace: from.as_str(),
    };
    let mut best: Option<Found> = None;
    for name in tried(name, from, &names.domain()) {
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        let question = Question {
            labels: &labels,
            kind: kind.kind(),
        };
        let (came, records) = match answer_as(names, asker, &question, 0, sees) {
            Answer::Reply(Reply { exists: false, .. }) => (Came::NoSuchName, Vec::new()),
            Answer::Reply(Reply { records, .. }) if records.is_empty() => (Came::Empty, Vec::new()),
            Answer::Reply(Reply { records, .. }) => (Came::Answered, said(&records)),
            Answer::Forward | Answer::Refused => (Came::Elsewhere, Vec::new()),
        };
        let found = Found { name, came, records };
        match came {
            Came::Answered => return found,
            Came::Empty if best.as_ref().is_none_or(|best| best.came != Came::Empty) => best = Some(found),
            Came::Empty => {}
            Came::NoSuchName | Came::Elsewhere => {
                best.get_or_insert(found);
            }
        }
    }
    best.unwrap_or_else(|| Found {
        name: name.clone(),
        came: Came::NoSuchName,
        records: Vec::new(),
    })
}

fn said(records: &[Record]) -> Vec<String> {
    let mut said: Vec<(Option<IpAddr>, String)> = records
        .iter()
        .map(|record| match &record.data {
            Data::Address(address) => (Some(*address), address.to_string()),
            Data::Srv { port, target } => (None, format!("0 1 {port} {target}")),
            Data::Ptr(name) | Data::Ns(name) => (None, name.clone()),
            Data::Soa => (None, "soa".to_owned()),
        })
        .collect();
    said.sort();
    said.into_iter().map(|(_, text)| text).collect()
}

/// The store's records, as far as names follow from them.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub domain: &'a str,
    pub endpoints: &'a BTreeMap<ResourceKey, Arc<Endpoints>>,
    pub policies: &'a BTreeMap<Namespace, Arc<Policies>>,
}

/// Which service a name is about, and the labels before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub namespace: Namespace,
    pub service: ResourceName,
    pub below: Vec<String>,
}

impl<'a> Known<'a> {
    /// Whether an asker's namespace sees a service of another one, as policies have it.
    #[must_use]
    pub fn sees(&self, asker: &str, namespace: &str, service: &str) -> bool {
        let (Ok(namespace), Ok(service)) = (namespace.parse::<Namespace>(), service.parse::<ResourceName>()) else {
            return false;
        };
        let policies = self.policies.get(&namespace).map(AsRef::as_ref);
        match seers(&namespace, &service, policies) {
            Seers::Everybody => true,
            Seers::Namespaces(all) => all.iter().any(|one| one.as_str() == asker),
        }
    }

    fn endpoints_of(&self, namespace: &Namespace, service: &ResourceName) -> Option<&'a Endpoints> {
        let is = |key: &&ResourceKey| key.namespace.as_ref() == Some(namespace) && key.name == *service;
        let key = self.endpoints.keys().find(is)?;
        self.endpoints.get(key).map(AsRef::as_ref)
    }

    /// Which service is meant: one that is there, of all that the name could be about, else the first.
    #[must_use]
    pub fn subject(&self, wanted: &Wanted) -> Option<Subject> {
        if let Ok(address) = wanted.name.parse::<IpAddr>() {
            let (key, _) = self.endpoints.iter().find(|(_, record)| {
                let mut all = record.instances.iter().flat_map(|one| one.addresses());
                all.any(|own| own == address)
            })?;
            return Some(Subject {
                namespace: key.namespace.clone()?,
                service: key.name.clone(),
                below: Vec::new(),
            });
        }
        let end = format!(".{}", self.domain.to_ascii_lowercase());
        let about = |name: String| {
            let name = name.to_ascii_lowercase();
            let labels: Vec<&str> = name.strip_suffix(&end)?.split('.').collect();
            let [below @ .., service, namespace] = labels.as_slice() else {
                return None;
            };
            Some(Subject {
                namespace: namespace.parse().ok()?,
                service: service.parse().ok()?,
                below: below.iter().map(|label| (*label).to_owned()).collect(),
            })
        };
        let all: Vec<Subject> = tried(&wanted.name, &wanted.from, self.domain)
            .into_iter()
            .filter_map(about)
            .collect();
        let there = all
            .iter()
            .find(|one| self.endpoints_of(&one.namespace, &one.service).is_some());
        there.or_else(|| all.first()).cloned()
    }

    /// The record of endpoints that an answer is made of.
    #[must_use]
    pub fn record(&self, subject: &Subject) -> Option<&'a Endpoints> {
        self.endpoints_of(&subject.namespace, &subject.service)
    }
}

/// Why there is no answer, in a sentence; None where there is one.
#[must_use]
pub fn why(known: &Known<'_>, wanted: &Wanted, found: &Found) -> Option<String> {
    if found.came == Came::Answered {
        return None;
    }
    let Some(subject) = known.subject(wanted) else {
        return Some(match wanted.name.parse::<IpAddr>() {
            Ok(address) => format!("no instance has the address {address}"),
            Err(_) => elsewhere(known),
        });
    };
    let Subject {
        namespace,
        service,
        below,
    } = &subject;
    let Some(record) = known.record(&subject) else {
        return Some(format!(
            "there is no service {service} with an address in namespace {namespace}"
        ));
    };
    let own = wanted.from == *namespace;
    if !own && !known.sees(wanted.from.as_str(), namespace.as_str(), service.as_str()) {
        return Some(format!(
            "namespace {} may not see it: no NetworkPolicy of namespace {namespace} lets anything from there into {service}",
            wanted.from
        ));
    }
    let all = record.instances.len();
    let ready = record.instances.iter().filter(|one| one.ready).count();
    let slots: Vec<String> = record
        .instances
        .iter()
        .take(8)
        .map(|one| one.slot.to_string())
        .collect();
    let six = record.instances.iter().any(|one| one.address6.is_some());
    let of = match all {
        1 => "its only instance is not ready".to_owned(),
        _ => format!("none of its {all} instances is ready"),
    };
    Some(match (below.as_slice(), wanted.kind) {
        _ if all == 0 => format!("{service} of namespace {namespace} has no instance with an address"),
        (_, Type::Ptr) => "a PTR is asked for by an address".to_owned(),
        ([port, protocol], _) if port.starts_with('_') && found.came == Came::NoSuchName => format!(
            "{service} declares no port {} over {}",
            port.trim_start_matches('_'),
            protocol.trim_start_matches('_')
        ),
        ([slot], Type::A | Type::Aaaa) if found.came == Came::NoSuchName => {
            format!("{service} has no instance {slot}: it has {}", slots.join(", "))
        }
        (_, Type::Aaaa) if !six => "the network has no IPv6 addresses".to_owned(),
        (_, Type::Srv) if record.ports.is_empty() => format!("{service} declares no ports"),
        (_, _) if ready == 0 => format!("{of}; all.{service} has them, ready or not"),
        (_, _) => format!("there is nothing of type {} under that name", wanted.kind.word()),
    })
}

fn elsewhere(known: &Known<'_>) -> String {
    format!(
        "it is no name under {}: containers' questions about it go to the host's own servers",
        known.domain
    )
}

/// Whether two servers said the same.
#[must_use]
pub fn same(one: &Found, other: &Found) -> bool {
    one.came == other.came && one.records == other.records
}

#[cfg(test)]
mod tests;
