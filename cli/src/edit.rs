//! Writing desired state as a person: what would be written, on which conditions, and the transaction that does it.
//! `apply`, `scale` and `delete` go through here; every write is conditional on what was shown before it.

use std::collections::BTreeMap;

use runtime::{Guard, KeyValue, Outcome, Store, person};
use schemas::admit::Admitted;
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::{Document, Kind};
use schemas::records::{Ack, Digest, Record, SchemaVersion, ServiceStatus};
use serde_json::{Value, json};

use crate::connect::{Connection, Marker};
use crate::failure::{Exit, Failure};
use crate::preview::Removal;
use crate::view::{Declared, title};

/// Edits per transaction: each is a write and a compare, with an acknowledgement at most two writes.
const EDITS_PER_TXN: usize = 50;

/// What becomes of a key under `desired/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Create,
    Change,
    Unchanged,
    Delete,
}

/// One document's way into, or out of, the store.
#[derive(Debug)]
pub struct Edit {
    pub key: ResourceKey,
    pub effect: Effect,
    /// The document to write; None for a deletion.
    pub document: Option<Document>,
    bytes: Vec<u8>,
    /// The revision it was last written at; 0 when it is not there.
    pub found: i64,
    /// What is written, or must hold, in the same transaction.
    pub beside: Vec<Beside>,
}

/// Another key of an edit's transaction.
#[derive(Debug)]
pub struct Beside {
    pub key: Vec<u8>,
    pub guard: Guard,
    pub then: Then,
}

/// What becomes of a key beside a document.
#[derive(Debug)]
pub enum Then {
    Put(Vec<u8>),
    Delete,
    /// It is only compared.
    Nothing,
}

/// What is stored now for these keys, in their order.
pub async fn stored(connection: &Connection, keys: &[ResourceKey]) -> Result<Vec<Option<KeyValue>>, Failure> {
    let mut found = Vec::with_capacity(keys.len());
    for keys in keys.chunks(100) {
        let keys: Vec<Vec<u8>> = keys
            .iter()
            .map(|key| connection.key(&Key::Desired(key.clone())))
            .collect();
        found.extend(connection.store.get_many(&keys).await?.value);
    }
    Ok(found)
}

/// The edits that bring documents in; each document's conditions are checked.
pub async fn edits(
    connection: &Connection,
    admitted: Vec<Admitted>,
    if_revision: Option<i64>,
) -> Result<Vec<Edit>, Failure> {
    if if_revision.is_some() && admitted.len() != 1 {
        return Err(Failure::usage(format!(
            "--if-revision is about one document, these are {}",
            admitted.len()
        ))
        .help("write `resourceVersion` into each document's metadata instead"));
    }
    let keys: Vec<ResourceKey> = admitted.iter().map(Admitted::key).collect();
    keys.iter().for_each(|key| crate::audit::note(title(key)));
    let stored = stored(connection, &keys).await?;
    let mut edits = Vec::with_capacity(keys.len());
    for ((key, admitted), kv) in keys.into_iter().zip(admitted).zip(stored) {
        let found = kv.as_ref().map_or(0, |kv| kv.mod_revision);
        check(connection, &key, &admitted.document, found, if_revision).await?;
        let document = plain(admitted.document.clone());
        let before = kv.as_ref().map(|kv| Declared::new(&key, kv));
        let effect = match before {
            None => Effect::Create,
            Some(Declared {
                admitted: Ok(before), ..
            }) if plain(before.document.clone()) == document => Effect::Unchanged,
            Some(_) => Effect::Change,
        };
        let bytes = bytes(&admitted, &key);
        edits.push(Edit {
            key,
            effect,
            document: Some(document),
            bytes,
            found,
            beside: Vec::new(),
        });
    }
    say_again(connection, &mut edits).await?;
    Ok(edits)
}

/// Of services that run something newer than the store knows, a document that is as it was is a person's word, too: that it is
/// what should run.
async fn say_again(connection: &Connection, edits: &mut [Edit]) -> Result<(), Failure> {
    let same = |edit: &&mut Edit| edit.effect == Effect::Unchanged && edit.key.kind == Kind::Service;
    let mut same: Vec<&mut Edit> = edits.iter_mut().filter(same).collect();
    if same.is_empty() {
        return Ok(());
    }
    let marker = connection.marker_if_any().await?;
    if marker.is_none_or(|marker| marker.record.accepted_revision.is_none()) {
        return Ok(());
    }
    for some in same.chunks_mut(100) {
        let keys: Vec<Vec<u8>> = some
            .iter()
            .map(|edit| connection.key(&Key::Status(edit.key.clone())))
            .collect();
        let found = connection.store.get_many(&keys).await?.value;
        for (edit, kv) in some.iter_mut().zip(found) {
            let status = kv.and_then(|kv| ServiceStatus::decode(&kv.value).ok());
            let regressed = |status: ServiceStatus| status.conditions.iter().any(|one| one.reason == "StoreRegressed");
            if status.is_some_and(regressed) {
                edit.effect = Effect::Change;
            }
        }
    }
    Ok(())
}

impl Edit {
    /// The edit that takes a key away.
    pub fn delete(key: ResourceKey, found: i64) -> Self {
        Self {
            key,
            effect: Effect::Delete,
            document: None,
            bytes: Vec::new(),
            found,
            beside: Vec::new(),
        }
    }
}

/// Without what Reeve says in metadata, and with the namespace spelled out: to be compared.
fn plain(mut document: Document) -> Document {
    let namespace = document.key().namespace;
    let metadata = document.metadata_mut();
    metadata.namespace = namespace;
    (metadata.uid, metadata.generation, metadata.resource_version) = (None, None, None);
    document
}

/// The document as it was written, without Reeve's part of the metadata, as JSON that people can read.
fn bytes(admitted: &Admitted, key: &ResourceKey) -> Vec<u8> {
    let mut value = admitted.value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["uid", "generation", "resourceVersion"] {
            metadata.remove(key);
        }
        if let Some(namespace) = &key.namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
    }
    output_json(&value)
}

fn output_json(value: &Value) -> Vec<u8> {
    let pretty = crate::output::json(value).into_bytes();
    // Indentation must not carry a document over the limit.
    if pretty.len() <= runtime::store::MAX_VALUE_BYTES {
        pretty
    } else {
        value.to_string().into_bytes()
    }
}

/// Refuses when what the document, or the command line, expects of the store does not hold.
async fn check(
    connection: &Connection,
    key: &ResourceKey,
    document: &Document,
    found: i64,
    if_revision: Option<i64>,
) -> Result<(), Failure> {
    let refuse = |what: &str, wanted: &str, found: &str| {
        Err(Failure::new(
            Exit::Conflict,
            format!("{} has {what} {found}, not {wanted}; nothing was written", title(key)),
        )
        .help(format!(
            "look at it with `reeve get {} {} -o yaml`, then try again",
            key.kind.segment(),
            key.name
        )))
    };
    let metadata = document.metadata();
    let told = metadata
        .resource_version
        .as_ref()
        .map(|text| text.parse::<i64>().unwrap_or(-1));
    for wanted in if_revision.into_iter().chain(told) {
        if wanted != found {
            let there = if found == 0 {
                "none (it does not exist)".to_owned()
            } else {
                found.to_string()
            };
            return refuse("revision", &wanted.to_string(), &there);
        }
    }
    if metadata.uid.is_none() && metadata.generation.is_none() {
        return Ok(());
    }
    let status = connection.get(&Key::Status(key.clone())).await?;
    let status: Option<Value> = status.and_then(|kv| serde_json::from_slice(&kv.value).ok());
    let said = |name: &str| {
        status
            .as_ref()
            .and_then(|status| status.get(name))
            .cloned()
            .unwrap_or(Value::Null)
    };
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    if let Some(wanted) = &metadata.uid
        && said("uid") != json!(wanted)
    {
        return refuse("uid", wanted, &text(&said("uid")));
    }
    if let Some(wanted) = metadata.generation
        && said("generation") != json!(wanted)
    {
        return refuse("generation", &wanted.to_string(), &text(&said("generation")));
    }
    Ok(())
}

/// Writes the edits, with a yes to each resource's removals, and returns the revision of each write.
pub async fn commit(
    connection: &Connection,
    marker: &Marker,
    edits: &[Edit],
    removals: &[Removal],
) -> Result<BTreeMap<ResourceKey, i64>, Failure> {
    let changed = |edit: &&Edit| edit.effect != Effect::Unchanged;
    // What stands beside an unchanged document may have to be made whole.
    let work: Vec<&Edit> = edits
        .iter()
        .filter(|edit| changed(edit) || !edit.beside.is_empty())
        .collect();
    let mut written = BTreeMap::new();
    work.iter().for_each(|edit| crate::audit::note(title(&edit.key)));
    for chunk in work.chunks(EDITS_PER_TXN) {
        let mut txn = person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision));
        for edit in chunk {
            let key = connection.key(&Key::Desired(edit.key.clone()));
            let guard = if edit.found == 0 {
                Guard::Absent
            } else {
                Guard::Unchanged(edit.found)
            };
            txn = match edit.effect {
                Effect::Delete => txn.delete(key, guard),
                Effect::Create | Effect::Change => txn.put(key, edit.bytes.clone(), guard),
                Effect::Unchanged => txn.require(key, guard),
            };
            for Beside { key, guard, then } in &edit.beside {
                txn = match then {
                    Then::Put(value) => txn.put(key.clone(), value.clone(), *guard),
                    Then::Delete => txn.delete(key.clone(), *guard),
                    Then::Nothing => txn.require(key.clone(), *guard),
                };
            }
            if let Some(removal) = removals.iter().find(|removal| removal.key == edit.key) {
                let ack = ack(removal.digest.clone(), removal.instances);
                txn = txn.put(
                    connection.key(&Key::Ack(ack.digest.to_string())),
                    ack.encode(),
                    Guard::Any,
                );
            }
        }
        match connection.store.commit(txn).await? {
            Outcome::Committed { revision } => {
                let documents = chunk.iter().copied().filter(changed);
                written.extend(documents.map(|edit| (edit.key.clone(), revision)));
            }
            Outcome::FenceLost => {
                return Err(Failure::new(
                    Exit::Conflict,
                    "the cluster changed meanwhile; nothing was written",
                ));
            }
            Outcome::Conflict { keys } => return Err(conflict(connection, edits, &keys, !written.is_empty())),
        }
    }
    Ok(written)
}

fn conflict(connection: &Connection, edits: &[Edit], keys: &[runtime::Conflict], partly: bool) -> Failure {
    let mut failure = None;
    for conflict in keys {
        let edit = edits
            .iter()
            .find(|edit| connection.key(&Key::Desired(edit.key.clone())) == conflict.key);
        let line = match (edit, conflict.found) {
            (Some(edit), Some((_, now))) if edit.found == 0 => {
                format!("{} was created meanwhile, at revision {now}", title(&edit.key))
            }
            (Some(edit), Some((_, now))) => {
                format!(
                    "{} was changed meanwhile: it is at revision {now}, the plan is from {}",
                    title(&edit.key),
                    edit.found
                )
            }
            (Some(edit), None) => format!("{} was deleted meanwhile", title(&edit.key)),
            (None, _) => "the cluster was changed meanwhile (`init`, a restore or a move)".to_owned(),
        };
        failure = Some(match failure {
            None => Failure::new(Exit::Conflict, line),
            Some(failure) => Failure::detail(failure, line),
        });
    }
    let wrote = if partly {
        "the documents before it are written"
    } else {
        "nothing was written"
    };
    failure
        .unwrap_or_else(|| Failure::new(Exit::Conflict, "something was changed meanwhile"))
        .help(format!("{wrote}; run the command again to see the new plan"))
}

/// A yes of whoever runs this command.
pub fn ack(digest: Digest, count: usize) -> Ack {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Ack {
        schema_version: SchemaVersion::default(),
        digest,
        count,
        by: person(),
    }
}

/// `user@host`, for people.
pub fn person() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let user = user.or_else(login).unwrap_or_else(|| "unknown".to_owned());
    let name = format!("{user}@{}", hostname());
    crate::output::cut(&crate::failure::printable(&name), 200)
}

/// What this host calls the user of this process; a service manager or a container's shell often says it nowhere else.
fn login() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users.lines().map(|line| line.split(':'));
    fields.find_map(|mut user| {
        let name = user.next()?;
        (user.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// The host's name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
