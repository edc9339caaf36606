//! `reeve node copy` and `reeve admin rebuild`: for the day when every store is gone and there is no backup. Each agent keeps what it
//! was assigned and the accepted specs of that; copies of these make the cluster again, as far as they go. What they cannot say is
//! told before anything is written; what contradicts itself is refused by name. Nothing that runs is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use agent::copy::{self, Copy};
use membership::believed::Believed;
use membership::keep::Keep;
use schemas::admit::admit_stored;
use schemas::keys::{Key, ResourceKey, Root, TrustKey};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{
    Accepted, AcceptedBody, AssignedState, Assignment, ClusterMarker, Digest, NetworkSettings, Record as _,
};
use serde_json::{Value, json};
use trust::certificate::Certificate;
use trust::trusted::Trust;
use trust::validity::Time;

use crate::Verdict;
use crate::args::{Common, CopyArgs, RebuildArgs};
use crate::backup::file::{self, Backup, Entry, Header};
use crate::backup::to_file;
use crate::connect::SERVER_DIR;
use crate::failure::{Exit, Failure};
use crate::output::{self, complain, print};
use crate::restore::{self, Source};

/// Where an agent keeps its data when it is not told.
const AGENT_DIR: &str = "/var/lib/reeve/agent";

/// `reeve node copy`: what this host's agent knows, in one file.
pub fn node_copy(common: &Common, args: &CopyArgs) -> Verdict {
    let dir = common.data_dir.clone().unwrap_or_else(|| AGENT_DIR.into());
    let copy = of_dir(&dir)?;
    let root = Root::default();
    let mut entries: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut put = |key: &Key, value: Vec<u8>| entries.insert(below(&root, key), value);
    let marker = ClusterMarker {
        restore_epoch: copy.assignment.order.restore_epoch,
        network: copy.assignment.network.as_ref().map(|network| network.settings.clone()),
        ..ClusterMarker::first(copy.assignment.cluster.clone())
    };
    put(&Key::Cluster, marker.encode());
    put(&Key::Assignment(copy.assignment.node.clone()), copy.bytes.clone());
    if let Some(signer) = &copy.signer {
        let certificate = Certificate::from_pem(&String::from_utf8_lossy(signer)).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("cannot read {}", dir.join(copy::SIGNER).display()),
            )
            .because(&error)
        })?;
        put(
            &Key::Trust(TrustKey::Signer(certificate.fingerprint().to_string())),
            signer.clone(),
        );
    }
    for (resource, n, bytes) in &copy.specs {
        put(&Key::Accepted(resource.clone(), *n), bytes.clone());
    }
    let header = Header::new(&marker, 0, root.as_str(), entries.len());
    let all = entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    match args.file.as_str() {
        "-" => file::write(std::io::stdout().lock(), &header, all)
            .map_err(|error| Failure::new(Exit::Failed, "cannot write to standard output").because(&error))?,
        path => to_file(Path::new(path), |out| file::write(out, &header, all))?,
    };
    complain(&format!(
        "node {}: assignment {}, {}, {}\n",
        copy.assignment.node,
        copy.assignment.order.generation,
        output::count(copy.assignment.instances.len(), "instance"),
        output::count(copy.specs.len(), "spec")
    ));
    Ok(Exit::Done)
}

fn below(root: &Root, key: &Key) -> Vec<u8> {
    root.key(key).as_bytes()[root.as_str().len()..].to_vec()
}

fn of_dir(dir: &Path) -> Result<Copy, Failure> {
    copy::read(dir).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot copy from {}", dir.display()))
            .because(&error)
            .help("name the agent's data directory with --data-dir: of `reeve up` it is `agent` in its own; read it as its owner")
    })
}

/// One node's copy, and where it came from.
struct Told {
    from: String,
    copy: Copy,
}

/// A data directory, or a file of `reeve node copy`.
fn read(path: &Path) -> Result<Told, Failure> {
    let from = path.display().to_string();
    if path.is_dir() {
        return Ok(Told {
            copy: of_dir(path)?,
            from,
        });
    }
    let refuse = |why: String| {
        Failure::new(Exit::Invalid, format!("cannot rebuild from {from}: {why}"))
            .help("name what `reeve node copy` wrote, or the data directory of an agent; nothing was written")
    };
    let opened = std::fs::File::open(path).map_err(file::FileError::Io);
    let backup = opened.and_then(|found| file::read(BufReader::new(found)));
    let backup = backup.map_err(|error| refuse(runtime::chain(&error)))?;
    let root = Root::default();
    let (mut assignment, mut signer, mut specs) = (None, None, Vec::new());
    for Entry { key, value } in backup.entries {
        match root.parse(&[root.as_str().as_bytes(), &key].concat()) {
            Some(Key::Assignment(node)) if assignment.is_none() => {
                let read = Assignment::decode(&value).map_err(|error| refuse(runtime::chain(&error)))?;
                if read.node != node || read.cluster != backup.header.cluster {
                    return Err(refuse(format!(
                        "its assignment is not that of node `{node}` of its cluster"
                    )));
                }
                assignment = Some((read, value));
            }
            Some(Key::Accepted(resource, n)) => specs.push((resource, n, value)),
            Some(Key::Trust(TrustKey::Signer(_))) => signer = Some(value),
            Some(_) | None => {
                return Err(refuse(format!(
                    "`{}` is nothing that a copy has",
                    String::from_utf8_lossy(&key)
                )));
            }
        }
    }
    let (assignment, bytes) = assignment.ok_or_else(|| refuse("it has no assignment".to_owned()))?;
    specs.retain(|(resource, n, bytes)| copy::names(&assignment, resource, *n, &Digest::of(bytes)));
    Ok(Told {
        from,
        copy: Copy {
            assignment,
            bytes,
            signer,
            specs,
        },
    })
}

/// What the copies come to.
#[derive(Default)]
struct Merged {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    network: Option<NetworkSettings>,
    restore_epoch: u64,
    services: Vec<String>,
    /// What cannot be declared again, and why.
    left: Vec<String>,
    notes: Vec<String>,
}

pub async fn rebuild(common: &Common, args: &RebuildArgs) -> Verdict {
    let told: Vec<Told> = args.copies.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let cluster = told[0].copy.assignment.cluster.clone();
    if let Some(other) = told.iter().find(|one| one.copy.assignment.cluster != cluster) {
        let found = &other.copy.assignment.cluster;
        let message = format!(
            "{} is of cluster {cluster}, and {} is of cluster {found}",
            told[0].from, other.from
        );
        return Err(Failure::new(Exit::Conflict, message).help("name the copies of one cluster; nothing was written"));
    }
    let trust = trust(args)?;
    for one in &told {
        believe(one, trust.as_ref())?;
    }
    let merged = merge(told, args.believe.as_ref())?;
    let root = &common.prefix;
    let marker = ClusterMarker {
        restore_epoch: merged.restore_epoch,
        network: merged.network.clone(),
        ..ClusterMarker::first(cluster)
    };
    let backup = Backup {
        header: Header::new(&marker, 0, root.as_str(), merged.entries.len() + 1),
        marker,
        entries: merged
            .entries
            .iter()
            .map(|(key, value)| Entry {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
    };
    if !common.output.is_for_machines() {
        print(&overview(&backup, &merged));
    }
    let target = restore::target(common).await?;
    confirm(args, &backup)?;
    let source = Source {
        of: "what the copies say",
        verb: "rebuild",
        over: args.over,
        // Asked above, with all that is not in the copies.
        yes: true,
    };
    restore::write(common, &target, &backup, &source).await
}

/// Whom the copies must be signed by: as told, else the seed on this host.
fn trust(args: &RebuildArgs) -> Result<Option<Trust>, Failure> {
    let told = args.trust.as_deref();
    let dir = told.unwrap_or(Path::new(SERVER_DIR));
    let believed = Believed::on_disk(&Keep::beside(dir));
    match (believed, told) {
        (Ok(Some(believed)), _) => Ok(Some(believed.trust())),
        (Ok(None), None) => Ok(None),
        (Ok(None), Some(dir)) => Err(
            Failure::usage(format!("--trust {}: it has no authorities.json", dir.display()))
                .help("name the data directory of a seed, or `member` in that of an agent"),
        ),
        (Err(error), _) => Err(Failure::new(
            Exit::Failed,
            format!("cannot read the authorities in {}", dir.display()),
        )
        .because(&error)),
    }
}

fn believe(one: &Told, trust: Option<&Trust>) -> Result<(), Failure> {
    let node = &one.copy.assignment.node;
    match (trust, &one.copy.signer) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Failure::usage(format!(
            "the copy of node `{node}` ({}) is signed, and nobody was named who is believed",
            one.from
        ))
        .help("name the data directory of a seed, or `member` in an agent's, with --trust")),
        (Some(trust), _) => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = Time::from_unix_seconds(since.map_or(0, |since| since.as_secs()));
            one.copy.believe(trust, now).map_err(|why| {
                Failure::new(
                    Exit::Conflict,
                    format!("the copy of node `{node}` ({}) does not count: {why}", one.from),
                )
                .help("leave it out, or take another copy from that node; nothing was written")
            })
        }
    }
}

/// One word for all of it, or who contradicts whom.
fn merge(told: Vec<Told>, preferred: Option<&NodeName>) -> Result<Merged, Failure> {
    let root = Root::default();
    let mut merged = Merged::default();
    let mut nodes: BTreeMap<NodeName, Told> = BTreeMap::new();
    for one in told {
        let node = one.copy.assignment.node.clone();
        let Some(known) = nodes.get(&node) else {
            nodes.insert(node, one);
            continue;
        };
        let (order, other) = (known.copy.assignment.order, one.copy.assignment.order);
        if order == other && known.copy.assignment != one.copy.assignment {
            return Err(contradiction(
                &format!(
                    "node `{node}`: {} and {} are two assignments of one order",
                    known.from, one.from
                ),
                "leave one of them out",
            ));
        }
        if other > order {
            nodes.insert(node, one);
        }
    }
    let mut records: BTreeMap<(ResourceKey, u64), (Vec<u8>, NodeName)> = BTreeMap::new();
    let mut held: BTreeMap<String, Vec<NodeName>> = BTreeMap::new();
    let mut wanted: BTreeSet<ResourceKey> = BTreeSet::new();
    for (node, Told { from: _, copy }) in &nodes {
        let assignment = &copy.assignment;
        merged.restore_epoch = merged.restore_epoch.max(assignment.order.restore_epoch);
        merged.network = merged
            .network
            .take()
            .or(assignment.network.as_ref().map(|one| one.settings.clone()));
        merged
            .entries
            .insert(below(&root, &Key::Assignment(node.clone())), copy.bytes.clone());
        if let Some(signer) = &copy.signer
            && let Ok(certificate) = Certificate::from_pem(&String::from_utf8_lossy(signer))
        {
            let key = Key::Trust(TrustKey::Signer(certificate.fingerprint().to_string()));
            merged.entries.insert(below(&root, &key), signer.clone());
        }
        for one in assignment
            .instances
            .iter()
            .filter(|one| one.state != AssignedState::Absent)
        {
            let key = ResourceKey {
                namespace: Some(one.namespace.clone()),
                kind: one.kind,
                name: one.workload.clone(),
            };
            if !copy
                .specs
                .iter()
                .any(|(resource, n, _)| *resource == key && *n == one.n)
            {
                merged.notes.push(format!(
                    "{}/{} on {node}: its spec {} is in no copy of that node",
                    one.namespace,
                    one.name(),
                    one.n
                ));
            }
            wanted.insert(key);
            if one.state == AssignedState::Present {
                let slot = format!("{}/{} ({})", one.namespace, one.name(), one.uid);
                held.entry(slot).or_default().push(node.clone());
            }
        }
        for (resource, n, bytes) in &copy.specs {
            let key = (resource.clone(), *n);
            match records.get(&key) {
                Some((known, by)) if known != bytes => {
                    if preferred == Some(by) {
                        continue;
                    }
                    if preferred != Some(node) {
                        return Err(contradiction(
                            &format!("{resource}: nodes `{by}` and `{node}` have two specs of number {n}"),
                            &format!(
                                "say who is right with --believe {by} or --believe {node}, or leave one of them out"
                            ),
                        ));
                    }
                }
                Some(_) => continue,
                None => {}
            }
            records.insert(key, (bytes.clone(), node.clone()));
        }
    }
    for (slot, on) in held.iter().filter(|(_, on)| on.len() > 1) {
        let on: Vec<&str> = on.iter().map(|node| node.as_str()).collect();
        merged.notes.push(format!(
            "{slot} is assigned to {}: once all are back, one of them is kept",
            on.join(" and ")
        ));
    }
    for resource in &wanted {
        let newest = records.iter().rfind(|((key, _), _)| key == resource);
        match newest.map(|(_, (bytes, _))| declare(resource, bytes)) {
            Some(Ok(document)) => {
                merged
                    .entries
                    .insert(below(&root, &Key::Desired(resource.clone())), document);
                merged.services.push(resource.to_string());
            }
            Some(Err(why)) => merged.left.push(format!("{resource}: {why}")),
            None => merged.left.push(format!(
                "{resource}: no copy has its spec; what runs of it is kept, as orphaned"
            )),
        }
    }
    for ((resource, n), (bytes, _)) in records {
        merged.entries.insert(below(&root, &Key::Accepted(resource, n)), bytes);
    }
    Ok(merged)
}

fn contradiction(what: &str, help: &str) -> Failure {
    Failure::new(
        Exit::Conflict,
        format!("the copies contradict each other: {what}; nothing was written"),
    )
    .help(help)
}

/// The document that an accepted record came from: as a person would have written it.
fn declare(resource: &ResourceKey, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let record = Accepted::decode(bytes).map_err(|error| runtime::chain(&error))?;
    let AcceptedBody::Service(mut spec) = record.body else {
        return Err("its record is no service's".to_owned());
    };
    for mount in &mut spec.container.files {
        mount.edition = None;
    }
    for secret in &mut spec.container.secrets {
        secret.edition = None;
    }
    let spec = serde_json::to_value(&*spec).map_err(|error| error.to_string())?;
    let mut metadata = json!({ "name": resource.name, "namespace": resource.namespace });
    for (field, words) in [("labels", &record.labels), ("annotations", &record.annotations)] {
        if !words.is_empty() {
            metadata[field] = json!(words);
        }
    }
    let document: Value = json!({
        "apiVersion": "reeve/v1", "kind": Kind::name(resource.kind), "metadata": metadata, "spec": spec,
    });
    let text = document.to_string().into_bytes();
    admit_stored(resource, &text).map_err(|problems| {
        let first = problems.problems.first().map(schemas::problem::Problem::line);
        first.unwrap_or_else(|| "its spec is not valid any more".to_owned())
    })?;
    Ok(text)
}

/// What is known, and what is not.
fn overview(backup: &Backup, merged: &Merged) -> String {
    let assignments = merged
        .entries
        .keys()
        .filter(|key| key.starts_with(b"assignments/"))
        .count();
    let mut text = format!(
        "cluster {}: {} and {} from the copies\n",
        backup.header.cluster,
        output::count(assignments, "node"),
        output::count(merged.services.len(), "service")
    );
    for line in merged.left.iter().chain(&merged.notes) {
        text.push_str(&format!("- {line}\n"));
    }
    text.push_str(
        "not in them, to be declared again: services without an instance, ConfigFiles, Secrets and their values,\n\
         Registries and passwords, Commands, NetworkPolicies, VirtualIPs, Nodes, cordons, kv. What runs keeps\n\
         the files and secrets it has. Nodes of which there is no copy must be off, or what they run is orphaned\n",
    );
    text
}

fn confirm(args: &RebuildArgs, backup: &Backup) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !output::can_ask() {
        return Err(Failure::usage(
            "rebuilding a cluster needs a yes, and there is no terminal to ask on; nothing was written",
        )
        .help("add --yes if that is meant"));
    }
    if output::ask(&format!("Rebuild cluster {} from this?", backup.header.cluster)) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was written"))
    }
}
