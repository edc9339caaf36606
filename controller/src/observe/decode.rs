//! One stored value to what the planner may know of it, or to the reason why it cannot be read, with the remedy. Hostile
//! input ends here: sized by the records, refused with words, and never a panic. [`super::Observer`] calls it.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use planner::cluster::{AcceptedEntry, DeclaredVirtualIp, DesiredBody, DesiredEntry, Stored};
use runtime::KeyValue;
use schemas::admit;
use schemas::keys::{ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::NodeName;
use schemas::network_policy::NetworkPolicySpec;
use schemas::records::{Accepted, AcceptedBody, ClusterId, Digest, Record};

pub(super) fn stored<T>(kv: &KeyValue, value: Result<T, String>) -> Stored<T> {
    Stored {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        value,
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let text = runtime::chain(error);
    let clean = text
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    clean.take(500).collect()
}

pub(super) fn remedied<T>(value: Result<T, String>, remedy: &str) -> Result<T, String> {
    value.map_err(|why| format!("{why}; {remedy}"))
}

/// Refuses a record that is about another cluster or node than its key.
pub(super) fn about<T: Record>(
    decoded: Result<T, schemas::records::RecordError>,
    of: impl Fn(&T) -> (&ClusterId, &NodeName),
    cluster: &ClusterId,
    node: &NodeName,
) -> Result<T, String> {
    let record = decoded.map_err(|error| chain(&error))?;
    let (its_cluster, its_node) = of(&record);
    if its_node != node {
        return Err(format!(
            "read {}: it is about `{its_node}`, its key about `{node}`",
            T::WHAT
        ));
    }
    if its_cluster != cluster {
        return Err(format!(
            "read {}: it is of cluster {its_cluster}, this is {cluster}",
            T::WHAT
        ));
    }
    Ok(record)
}

pub(super) fn desired(resource: &ResourceKey, kv: &KeyValue) -> DesiredEntry {
    let admitted = if kv.lease == 0 {
        admit::admit_stored(resource, &kv.value)
    } else {
        Err(admit::leased(resource))
    };
    let (labels, annotations, body) = match admitted.map(|admitted| admitted.document) {
        Ok(Document::Service(service)) => {
            let metadata = service.metadata;
            (
                metadata.labels,
                metadata.annotations,
                DesiredBody::Service(Arc::new(service.spec)),
            )
        }
        Ok(Document::Node(node)) => {
            let metadata = node.metadata;
            (
                metadata.labels,
                metadata.annotations,
                DesiredBody::Node(Arc::new(node.spec)),
            )
        }
        Ok(Document::ConfigFile(file)) => {
            let metadata = file.metadata;
            (
                metadata.labels,
                metadata.annotations,
                DesiredBody::ConfigFile(Arc::new(file.spec)),
            )
        }
        // Not the planner's: whoever lists keeps them apart.
        Ok(
            Document::Registry(_)
            | Document::Secret(_)
            | Document::Command(_)
            | Document::NetworkPolicy(_)
            | Document::VirtualIP(_),
        ) => (BTreeMap::new(), BTreeMap::new(), DesiredBody::Invalid(Vec::new())),
        Err(problems) => (
            BTreeMap::new(),
            BTreeMap::new(),
            DesiredBody::Invalid(problems.problems),
        ),
    };
    DesiredEntry {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        labels,
        annotations,
        body,
    }
}

/// A network policy as it is declared; None, and why, where it is not valid.
pub(super) fn network_policy(
    resource: &ResourceKey,
    kv: &KeyValue,
) -> (Option<Arc<NetworkPolicySpec>>, Option<String>) {
    let admitted = if kv.lease == 0 {
        admit::admit_stored(resource, &kv.value)
    } else {
        Err(admit::leased(resource))
    };
    match admitted.map(|admitted| admitted.document) {
        Ok(Document::NetworkPolicy(policy)) => (Some(Arc::new(policy.spec)), None),
        // A document is of the kind that its key names.
        Ok(_) => (None, None),
        Err(problems) => {
            let first = problems.problems.first().map(ToString::to_string).unwrap_or_default();
            (None, Some(format!("{first}; what it last said stays in force")))
        }
    }
}

/// A virtual address as it is declared; or what is wrong with it.
pub(super) fn virtual_ip(resource: &ResourceKey, kv: &KeyValue) -> DeclaredVirtualIp {
    let admitted = if kv.lease == 0 {
        admit::admit_stored(resource, &kv.value)
    } else {
        Err(admit::leased(resource))
    };
    let spec = match admitted.map(|admitted| admitted.document) {
        Ok(Document::VirtualIP(one)) => Ok(Arc::new(one.spec)),
        // A document is of the kind that its key names.
        Ok(_) => Err(Vec::new()),
        Err(problems) => Err(problems.problems),
    };
    DeclaredVirtualIp {
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        spec,
    }
}

pub(super) fn accepted(resource: &ResourceKey, n: u64, kv: &KeyValue) -> AcceptedEntry {
    let value = Accepted::decode(&kv.value)
        .map_err(|error| chain(&error))
        .and_then(|record| {
            let fits = match (&record.body, resource.kind) {
                (AcceptedBody::Service(_), Kind::Service)
                | (AcceptedBody::Node(_), Kind::Node)
                | (AcceptedBody::ConfigFile(_), Kind::ConfigFile)
                | (AcceptedBody::Deleted, _) => true,
                (AcceptedBody::Service(_) | AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_), _) => false,
            };
            if fits && record.n == n {
                Ok(Arc::new(record))
            } else {
                Err(format!(
                    "read {}: it is about something else than its key",
                    Accepted::WHAT
                ))
            }
        });
    let value = remedied(
        value,
        "restore the key from a backup, or put the resource again with a change",
    );
    AcceptedEntry {
        digest: Digest::of(&kv.value),
        value,
    }
}

/// A key for people: escaped where it is not printable, and at most 200 characters.
pub(super) fn printable(key: &[u8]) -> String {
    let mut text: String = key.escape_ascii().take(201).map(char::from).collect();
    if text.len() > 200 {
        text.truncate(199);
        text.push('~');
    }
    text
}

/// What is wrong with a key that is nothing of ours.
pub(super) fn why_foreign(root: &Root, key: &[u8]) -> String {
    let rest = key.strip_prefix(root.as_str().as_bytes()).unwrap_or(key);
    let Some(place) = rest.strip_prefix(b"desired/".as_slice()) else {
        return "it is no key of Reeve's; delete it, or keep it outside this prefix".to_owned();
    };
    let Ok(place) = std::str::from_utf8(place) else {
        return "it is not UTF-8; delete it".to_owned();
    };
    let parts: Vec<&str> = place.split('/').collect();
    let &[namespace, kind, name] = parts.as_slice() else {
        return "it is not `desired/<namespace>/<kind>/<name>`; put the resource with `reeve apply`, and delete this key".to_owned();
    };
    let Some(kind) = Kind::from_segment(kind) else {
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.segment()).collect();
        let found = printable(kind.as_bytes());
        return format!(
            "`{found}` is no kind; known here: {}; delete the key, or upgrade reeve",
            kinds.join(", ")
        );
    };
    if kind.namespaced() && namespace.parse::<schemas::names::Namespace>().is_err() {
        let found = printable(namespace.as_bytes());
        return format!(
            "`{found}` is no namespace: 1 to 63 of a-z, 0-9 and -; delete the key, and put it under a right one"
        );
    }
    if !kind.namespaced() && namespace != "_" {
        return format!(
            "a {} has no namespace; put it under `desired/_/{}/`, and delete this key",
            kind.name(),
            kind.segment()
        );
    }
    let found = printable(name.as_bytes());
    format!("`{found}` is no name: 1 to 63 of a-z, 0-9 and -; delete the key, and put it under a right one")
}
