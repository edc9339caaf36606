//! The keys of the store: built and parsed in one place. Every prefix ends in `/`, so `web` never matches `web2`.
//! Everyone who reads or writes the store asks here; nobody joins strings elsewhere.

use std::fmt;

use crate::config_file::FileDigest;
use crate::kinds::Kind;
use crate::names::{Namespace, NodeName, ResourceName};

/// The prefix of everything, when none is configured.
pub const DEFAULT_ROOT: &str = "/reeve/";

/// A resource's place: its kind, namespace (None for cluster-wide kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    pub namespace: Option<Namespace>,
    pub kind: Kind,
    pub name: ResourceName,
}

impl fmt::Display for ResourceKey {
    /// `default/service/web`, `_/node/n1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_ref().map_or("_", Namespace::as_str);
        write!(f, "{namespace}/{}/{}", self.kind.segment(), self.name)
    }
}

/// What a key under the root is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Cluster,
    Desired(ResourceKey),
    Status(ResourceKey),
    Accepted(ResourceKey, u64),
    Assignment(NodeName),
    Verdict(NodeName),
    Cordon(NodeName),
    Ack(String),
    Breaker,
    Node(NodeName),
    Report(NodeName),
    Session(NodeName),
    Election,
    /// A controller that is there, leading or not.
    Controller(String),
    /// The rest of an event's key.
    Event(String),
    /// The record of a token that hosts join with, by the token's id.
    Join(String),
    /// What the cluster's authority says of trust.
    Trust(TrustKey),
    /// A certificate that was issued: to a subject such as `node/n1`, by its serial number.
    Issued(String, String),
    /// A part of a file's content: immutable, named by the digest of the whole and numbered from 0.
    Blob(FileDigest, u32),
    /// The values of a resource that only controllers can open.
    Sealed(ResourceKey),
    /// What the leader has sealed for one reader: `node.<name>` or `controller.<key>`.
    Handed(String),
    /// What somebody did through `reeve`: by whose part of the records it stands in (`person.anna`, or `_` for who has no
    /// certificate of the cluster), and its id, which begins with the time.
    Audit(String, String),
    /// What other nodes need to reach a node's containers.
    Peer(NodeName),
    /// Where a service's instances are.
    Endpoints(ResourceKey),
    /// The network policies of a namespace that are in force.
    Policies(Namespace),
    /// A value of people's own: in a namespace, by its name, which may have slashes.
    Own(Namespace, String),
}

/// A key under `trust/`. Its values are signed by the authority: a plain writer of the store changes nobody's trust by them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrustKey {
    /// The cluster's authorities, by their number.
    Authorities(u64),
    /// The list of the revoked.
    Revoked,
    /// A controller's certificate, by its fingerprint: who signed what nodes must run. The authority's signature is in it.
    Signer(String),
}

/// The root under which all keys stand: begins and ends with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(String);

/// Why a text is not a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a key prefix: write one that begins and ends with `/`, such as `/reeve/`")]
pub struct RootError(String);

impl Default for Root {
    fn default() -> Self {
        Self(DEFAULT_ROOT.to_owned())
    }
}
impl std::str::FromStr for Root {
    type Err = RootError;
    fn from_str(text: &str) -> Result<Self, RootError> {
        let fine = text.len() >= 3
            && text.len() <= 128
            && text.starts_with('/')
            && text.ends_with('/')
            && !text.contains("//");
        if fine && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RootError(text.to_owned()))
        }
    }
}
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Root {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full key.
    #[must_use]
    pub fn key(&self, key: &Key) -> String {
        let root = &self.0;
        match key {
            Key::Cluster => format!("{root}cluster"),
            Key::Desired(resource) => format!("{root}desired/{resource}"),
            Key::Status(resource) => format!("{root}status/{resource}"),
            Key::Accepted(resource, n) => format!("{root}accepted/{resource}/{n}"),
            Key::Assignment(node) => format!("{root}assignments/{node}"),
            Key::Verdict(node) => format!("{root}verdicts/{node}"),
            Key::Cordon(node) => format!("{root}cordons/{node}"),
            Key::Ack(digest) => format!("{root}acks/{digest}"),
            Key::Breaker => format!("{root}breaker"),
            Key::Node(node) => format!("{root}nodes/{node}"),
            Key::Report(node) => format!("{root}reports/{node}"),
            Key::Session(node) => format!("{root}sessions/{node}"),
            Key::Election => format!("{root}election/controller"),
            Key::Controller(id) => format!("{root}controllers/{id}"),
            Key::Event(rest) => format!("{root}events/{rest}"),
            Key::Join(id) => format!("{root}joins/{id}"),
            Key::Trust(TrustKey::Authorities(number)) => format!("{root}trust/authorities/{number}"),
            Key::Trust(TrustKey::Revoked) => format!("{root}trust/revoked"),
            Key::Trust(TrustKey::Signer(fingerprint)) => format!("{root}trust/signers/{fingerprint}"),
            Key::Issued(subject, serial) => format!("{root}issued/{subject}/{serial}"),
            Key::Blob(digest, part) => format!("{root}blobs/{}/{part}", digest.hex()),
            Key::Sealed(resource) => format!("{root}sealed/{resource}"),
            Key::Handed(reader) => format!("{root}handed/{reader}"),
            Key::Audit(who, id) => format!("{root}audit/{who}/{id}"),
            Key::Peer(node) => format!("{root}peers/{node}"),
            Key::Endpoints(resource) => format!("{root}endpoints/{resource}"),
            Key::Policies(namespace) => format!("{root}policies/{namespace}"),
            Key::Own(namespace, name) => format!("{root}kv/{namespace}/{name}"),
        }
    }

    /// The prefix of a class of keys: `desired` gives `/reeve/desired/`.
    #[must_use]
    pub fn prefix(&self, class: &str) -> String {
        format!("{}{class}/", self.0)
    }

    /// What this key is; None when it is nothing of ours (a foreign key under our prefix, or not UTF-8).
    #[must_use]
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(self.0.as_str())?;
        if rest.len() > 512 {
            return None;
        }
        match rest {
            "cluster" => return Some(Key::Cluster),
            "breaker" => return Some(Key::Breaker),
            "election/controller" => return Some(Key::Election),
            _ => {}
        }
        let (class, rest) = rest.split_once('/')?;
        match class {
            "desired" => resource(rest).map(Key::Desired),
            "status" => resource(rest).map(Key::Status),
            "accepted" => {
                let (place, n) = rest.rsplit_once('/')?;
                let number = n.parse::<u64>().ok().filter(|value| value.to_string() == n)?;
                resource(place).map(|place| Key::Accepted(place, number))
            }
            "assignments" => rest.parse().ok().map(Key::Assignment),
            "verdicts" => rest.parse().ok().map(Key::Verdict),
            "cordons" => rest.parse().ok().map(Key::Cordon),
            "peers" => rest.parse().ok().map(Key::Peer),
            "endpoints" => resource(rest).map(Key::Endpoints),
            "policies" => rest.parse().ok().map(Key::Policies),
            "nodes" => rest.parse().ok().map(Key::Node),
            "reports" => rest.parse().ok().map(Key::Report),
            "sessions" => rest.parse().ok().map(Key::Session),
            "controllers" => (!rest.is_empty() && !rest.contains('/')).then(|| Key::Controller(rest.to_owned())),
            "acks" => (!rest.is_empty() && !rest.contains('/')).then(|| Key::Ack(rest.to_owned())),
            "events" => Some(Key::Event(rest.to_owned())),
            "trust" => trust(rest).map(Key::Trust),
            "issued" => {
                let (subject, serial) = rest.rsplit_once('/')?;
                let (role, name) = subject.split_once('/')?;
                let fine = [role, name, serial]
                    .iter()
                    .all(|part| !part.is_empty() && !part.contains('/'));
                fine.then(|| Key::Issued(subject.to_owned(), serial.to_owned()))
            }
            "sealed" => resource(rest).map(Key::Sealed),
            "handed" => (!rest.is_empty() && !rest.contains('/')).then(|| Key::Handed(rest.to_owned())),
            "audit" => {
                let (who, id) = rest.split_once('/')?;
                let fine = !who.is_empty() && !id.is_empty() && !id.contains('/');
                fine.then(|| Key::Audit(who.to_owned(), id.to_owned()))
            }
            "kv" => {
                let (namespace, name) = rest.split_once('/')?;
                own_name(name).then_some(())?;
                Some(Key::Own(namespace.parse().ok()?, name.to_owned()))
            }
            "joins" => (!rest.is_empty() && !rest.contains('/')).then(|| Key::Join(rest.to_owned())),
            "blobs" => {
                let (digest, part) = rest.split_once('/')?;
                let number = part.parse::<u32>().ok().filter(|value| value.to_string() == part)?;
                FileDigest::from_hex(digest)
                    .ok()
                    .map(|digest| Key::Blob(digest, number))
            }
            _ => None,
        }
    }
}

fn trust(rest: &str) -> Option<TrustKey> {
    if rest == "revoked" {
        return Some(TrustKey::Revoked);
    }
    match rest.split_once('/')? {
        ("authorities", n) => {
            let number = n.parse::<u64>().ok().filter(|value| value.to_string() == n)?;
            Some(TrustKey::Authorities(number))
        }
        ("signers", fingerprint) => {
            let digits = fingerprint
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            (digits && fingerprint.len() == 64).then(|| TrustKey::Signer(fingerprint.to_owned()))
        }
        _ => None,
    }
}

/// The longest name of a value of people's own, in bytes.
pub const MAX_OWN_NAME: usize = 256;

/// Whether a text may name a value of people's own: letters, digits and `._-`, in parts between single slashes.
#[must_use]
pub fn own_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.len() <= MAX_OWN_NAME && text.split('/').all(part)
}

fn resource(place: &str) -> Option<ResourceKey> {
    let mut parts = place.split('/');
    let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let kind = Kind::from_segment(kind)?;
    let namespace = match (kind.namespaced(), namespace) {
        (false, "_") => None,
        (true, text) => Some(text.parse().ok()?),
        (false, _) => return None,
    };
    Some(ResourceKey {
        namespace,
        kind,
        name: name.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_parses_back_to_itself() {
        let root = Root::default();
        let web = ResourceKey {
            namespace: Some(Namespace::default()),
            kind: Kind::Service,
            name: "web".parse().expect("a name"),
        };
        let n1: NodeName = "n1".parse().expect("a name");
        let registry = ResourceKey {
            namespace: None,
            kind: Kind::Registry,
            name: "r-example".parse().expect("a name"),
        };
        let keys = [
            Key::Cluster,
            Key::Desired(web.clone()),
            Key::Status(web.clone()),
            Key::Accepted(web, 7),
            Key::Assignment(n1.clone()),
            Key::Verdict(n1.clone()),
            Key::Cordon(n1.clone()),
            Key::Ack("abc".into()),
            Key::Breaker,
            Key::Node(n1.clone()),
            Key::Report(n1.clone()),
            Key::Session(n1),
            Key::Election,
            Key::Controller("host-17".into()),
            Key::Event("default/web/1".into()),
            Key::Join("0123456789abcdef".into()),
            Key::Trust(TrustKey::Authorities(3)),
            Key::Trust(TrustKey::Revoked),
            Key::Trust(TrustKey::Signer("0f".repeat(32))),
            Key::Issued("node/n1".into(), "00ff".into()),
            Key::Blob(FileDigest::of(b"x"), 12),
            Key::Sealed(registry),
            Key::Handed("node.n1".into()),
            Key::Audit("person.anna".into(), "1790000000000-00ff".into()),
            Key::Own(Namespace::default(), "deploy/last".into()),
        ];
        for key in keys {
            assert_eq!(root.parse(root.key(&key).as_bytes()), Some(key));
        }
    }

    #[test]
    fn a_foreign_key_is_nothing_of_ours() {
        let root = Root::default();
        for key in [
            "/reeve/",
            "/reeve",
            "/other/cluster",
            "/reeve/desired/default/service",
            "/reeve/desired/default/service/a/b",
            "/reeve/desired/_/service/web",
            "/reeve/desired/default/node/n1",
            "/reeve/desired/default/gadget/x",
            "/reeve/accepted/default/service/web/07",
            "/reeve/assignments/1",
            "/reeve/junk",
            "/reeve/blobs/abc/0",
            "/reeve/audit/person.anna",
            "/reeve/kv/default/a//b",
            "/reeve/kv/Default/a",
            "/reeve/desired/default/Service/web",
        ] {
            assert_eq!(root.parse(key.as_bytes()), None, "{key}");
        }
        assert_eq!(root.parse(b"/reeve/\xff\xfe"), None);
    }
}
