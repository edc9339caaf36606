//! Rare acts: `init` makes a store a cluster, `admin ack` lets held removals go, `admin accept-store` takes a store that
//! has gone back in time as it is, `admin migrate-store` carries a cluster to another store.

use std::io::Read;

use runtime::{EtcdStore, Guard, KeyValue, Outcome, Prefix, Store, person};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::{Breaker, ClusterId, ClusterMarker, Digest, Moved, NetworkSettings, Record};
use serde_json::json;

use crate::Verdict;
use crate::args::network::InitArgs;
use crate::args::{AcceptArgs, AdminVerb, Common, MigrateArgs};
use crate::backup;
use crate::connect::{self, Connection, Marker, TlsFlags, connect};
use crate::edit;
use crate::failure::{Exit, Failure};
use crate::network;
use crate::orphan;
use crate::output::{self, Format, print};
use crate::rebuild;
use crate::restore;
use crate::rotate;
use crate::view::View;

pub async fn init(common: &Common, args: &InitArgs) -> Verdict {
    let network = args.network().map(|args| network::settings(&args)).transpose()?;
    let connection = connect(common).await?;
    match found(&connection.store, &connection.root, network.as_ref()).await? {
        Founded::New(id) => {
            crate::audit::begin(&connection);
            match common.output {
                Format::Json => print(&output::json(&json!({ "cluster": id }))),
                Format::Yaml => print(&output::yaml(&json!({ "cluster": id }))),
                Format::Name => print(&format!("{id}\n")),
                Format::Table | Format::Wide => {
                    print(&format!(
                        "cluster {id} is made, under `{}` in {}\n",
                        connection.root, connection.endpoints
                    ));
                    if let Some(network) = &network {
                        print(&format!("its network: {}\n", network::in_words(network)));
                    }
                    print(&format!(
                        "next: reeve controller --etcd {0}\n      reeve agent --etcd {0}\n",
                        connection.endpoints
                    ));
                }
            }
            Ok(Exit::Done)
        }
        Founded::There => {
            let marker = connection.marker_if_any().await?;
            let which = marker.map_or_else(
                || "a cluster".to_owned(),
                |marker| format!("cluster {}", marker.record.id),
            );
            Err(Failure::new(
                Exit::Conflict,
                format!("the store at {} holds {which} already", connection.endpoints),
            )
            .help("use it as it is, or choose another --prefix"))
        }
    }
}

/// How an attempt to found a cluster ended.
pub enum Founded {
    New(ClusterId),
    /// There is one.
    There,
}

/// Writes the marker where there is none.
pub async fn found(store: &EtcdStore, root: &Root, network: Option<&NetworkSettings>) -> Result<Founded, Failure> {
    let mut random = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| Failure::new(Exit::Failed, "cannot draw a cluster id from /dev/urandom").because(&error))?;
    let id = ClusterId::from_random(random);
    let marker = ClusterMarker {
        network: network.cloned(),
        ..ClusterMarker::first(id.clone())
    };
    let txn = person::txn().put(root.key(&Key::Cluster), marker.encode(), Guard::Absent);
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(Founded::New(id)),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Ok(Founded::There),
    }
}

pub async fn admin(common: &Common, verb: &AdminVerb) -> Verdict {
    match verb {
        AdminVerb::Ack { digest } => ack(common, digest).await,
        AdminVerb::AcceptStore(args) => accept_store(common, args).await,
        AdminVerb::Backup(args) => backup::backup(common, args).await,
        AdminVerb::Rebuild(args) => rebuild::rebuild(common, args).await,
        AdminVerb::Restore(args) => restore::restore(common, args).await,
        AdminVerb::RemoveOrphan(args) => orphan::remove(common, args).await,
        AdminVerb::MigrateStore(args) => migrate(common, args).await,
        AdminVerb::Etcdctl(args) => crate::etcdctl::etcdctl(common, args).await,
        AdminVerb::RotateAuthority(args) => rotate::rotate(common, args).await,
    }
}

/// What agents and assignments say of restore epochs: the highest that is believed, and the nodes that have applied what
/// this store does not hold.
pub fn said_of_epochs(view: &View, marker: &ClusterMarker) -> (u64, Vec<String>) {
    let believed = |epoch: u64| epoch <= marker.restore_epoch.saturating_add(restore::BELIEVED);
    let mut highest = marker.restore_epoch;
    let mut ahead = Vec::new();
    let assigned = |node: &NodeName| view.assignments.get(node).and_then(|found| found.as_ref().ok());
    for assignment in view.assignments.values().filter_map(|found| found.as_ref().ok()) {
        if believed(assignment.order.restore_epoch) {
            highest = highest.max(assignment.order.restore_epoch);
        }
    }
    for (node, report) in &view.reports {
        let Ok(report) = report else { continue };
        if report.cluster != marker.id {
            continue;
        }
        if believed(report.applied.restore_epoch) {
            highest = highest.max(report.applied.restore_epoch);
        }
        if assigned(node).is_none_or(|assignment| report.applied > assignment.order) && report.applied.generation > 0 {
            ahead.push(node.to_string());
        }
    }
    (highest, ahead)
}

async fn accept_store(common: &Common, args: &AcceptArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let view = View::read(&connection, &["assignments", "reports"]).await?;
    let (highest, ahead) = said_of_epochs(&view, &marker.record);
    let machine = common.output.is_for_machines();
    if !machine {
        if ahead.is_empty() {
            print("no node has applied anything that this store does not hold\n");
        } else {
            let nodes = output::count(ahead.len(), "node");
            let some = ahead.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if ahead.len() > 5 { ", ..." } else { "" };
            print(&format!(
                "{nodes} applied what this store does not hold: {some}{more}\n"
            ));
        }
        print(
            "What the store declares now comes into force. What it does not know of keeps\nrunning and is shown as orphaned (`reeve admin remove-orphan`).\n",
        );
    }
    if !args.yes {
        if !output::can_ask() {
            return Err(Failure::usage(
                "accepting a store needs a yes, and there is no terminal to ask on; nothing was changed",
            )
            .help("add --yes if that is meant"));
        }
        if !output::ask(&format!("Go on from the store at {} as it is?", connection.endpoints)) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    let epoch = highest.saturating_add(1);
    let record = ClusterMarker {
        restore_epoch: epoch,
        accepted_revision: Some(connection.class("election").await?.revision),
        ..marker.record.clone()
    };
    let txn = person::txn().put(
        connection.key(&Key::Cluster),
        record.encode(),
        Guard::Unchanged(marker.mod_revision),
    );
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => {
            let said = json!({ "cluster": record.id, "restoreEpoch": epoch });
            match common.output {
                Format::Json => print(&output::json(&said)),
                Format::Yaml => print(&output::yaml(&said)),
                Format::Name => print(&format!("{}\n", record.id)),
                Format::Table | Format::Wide => print(&format!(
                    "accepted: cluster {} goes on in restore epoch {epoch}\n",
                    record.id
                )),
            }
            Ok(Exit::Done)
        }
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            "the cluster's marker was changed meanwhile; nothing was accepted",
        )
        .help("look at it with `reeve status`, then run the command again")),
    }
}

async fn ack(common: &Common, text: &str) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let breaker = connection.get(&Key::Breaker).await?;
    let breaker = breaker
        .map(|kv| Breaker::decode(&kv.value))
        .transpose()
        .map_err(|error| Failure::new(Exit::Failed, "cannot read what the breaker holds").because(&error))?;
    let held = breaker.and_then(|breaker| breaker.held);
    let full: Option<Digest> = text.parse().ok();
    let (digest, number) = match (held, full) {
        (Some(held), _) if text.len() >= 8 && held.digest.as_str().starts_with(text) => {
            (held.digest, held.count as usize)
        }
        // Of something held a moment ago, or shown by an event.
        (_, Some(digest)) => (digest, 0),
        (Some(held), None) => {
            return Err(
                Failure::new(Exit::Failed, format!("what is held is {}, not {text}", held.digest))
                    .help(format!("say yes with `reeve admin ack {}`", &held.digest.as_str()[..8])),
            );
        }
        (None, None) => {
            return Err(Failure::new(Exit::Failed, "nothing is held").help("`reeve status` shows what waits for a yes"));
        }
    };
    let ack = edit::ack(digest, number);
    let txn = person::txn()
        .require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision))
        .put(
            connection.key(&Key::Ack(ack.digest.to_string())),
            ack.encode(),
            Guard::Any,
        );
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => {
            print(&format!(
                "acknowledged {}: {}\n",
                &ack.digest.as_str()[..8],
                output::count(number, "removal")
            ));
            Ok(Exit::Done)
        }
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
            Err(Failure::new(Exit::Conflict, "the cluster was changed meanwhile"))
        }
    }
}

/// What stays behind: it is bound to leases, or to this store's revisions.
fn stays(key: &Key) -> bool {
    match key {
        Key::Session(_) | Key::Controller(_) | Key::Election | Key::Event(_) | Key::Cluster => true,
        Key::Desired(_)
        | Key::Join(_)
        | Key::Trust(_)
        | Key::Issued(..)
        | Key::Status(_)
        | Key::Accepted(..)
        | Key::Assignment(_)
        | Key::Verdict(_)
        | Key::Cordon(_)
        | Key::Ack(_)
        | Key::Breaker
        | Key::Node(_)
        | Key::Blob(..)
        | Key::Sealed(_)
        | Key::Handed(_)
        | Key::Audit(..)
        | Key::Own(..)
        | Key::Peer(_)
        | Key::Endpoints(_)
        | Key::Policies(_)
        | Key::Report(_) => false,
    }
}

async fn migrate(common: &Common, args: &MigrateArgs) -> Verdict {
    let from = connect(common).await?;
    let marker = from.marker().await?;
    let tls = TlsFlags {
        begins: "to-",
        ca: args.to_ca.as_ref(),
        cert: args.to_cert.as_ref(),
        key: args.to_key.as_ref(),
    };
    let to = Connection {
        store: connect::open(&args.to, tls).await?,
        root: from.root.clone(),
        endpoints: args.to.clone(),
        context: None,
        viewer: false,
    };
    let prefix = Prefix::new(from.root.as_str())?;
    let there = to.store.list(&prefix).await?;
    if there.cluster_id
        == from
            .store
            .list(&Prefix::new(from.root.prefix("election"))?)
            .await?
            .cluster_id
    {
        return Err(Failure::usage("--to is the store the cluster is in already"));
    }
    if let Some(kv) = there.kvs.first() {
        return Err(Failure::new(
            Exit::Conflict,
            format!("the store at {} is not empty under `{}`", args.to, to.root),
        )
        .detail(format!("such as {}", String::from_utf8_lossy(&kv.key)))
        .help("choose an empty store; what a failed migration left is deleted with `etcdctl del --prefix`"));
    }
    let id = &marker.record.id;
    if !args.yes {
        if !output::can_ask() {
            return Err(
                Failure::usage("moving a cluster needs a yes, and there is no terminal to ask on")
                    .help("add --yes if that is meant"),
            );
        }
        if !output::ask(&format!("Move cluster {id} to {}?", args.to)) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was moved"));
        }
    }
    // From here on the controllers and agents of the old store write nothing: each of their writes compares the marker,
    // or is made by a process that stops when it sees the move.
    let endpoints: Vec<String> = args.to.split(',').map(|url| url.trim().to_owned()).collect();
    let moved = ClusterMarker {
        moved: Some(Moved { to: endpoints }),
        ..marker.record.clone()
    };
    let moved_at = mark(&from, &moved, marker.mod_revision).await?;
    match copy(&from, &to, &marker, &prefix).await {
        Ok(number) => {
            print(&format!(
                "cluster {id} is in {} now: {} copied\n",
                args.to,
                output::count(number, "key")
            ));
            print(&format!("next: stop what uses {}, then\n", from.endpoints));
            let mut at = format!("--etcd {}", args.to);
            for (flag, file) in [("ca", &args.to_ca), ("cert", &args.to_cert), ("key", &args.to_key)] {
                if let Some(file) = file {
                    at.push_str(&format!(" --{flag} {}", file.display()));
                }
            }
            print(&format!(
                "      reeve controller {at}\n      reeve agent {at}    (after `reeve up`: with --data-dir DIR/agent)\n"
            ));
            Ok(Exit::Done)
        }
        Err(failure) => {
            // The old store goes on; what was copied has no marker, so nobody acts on it.
            let back = mark(&from, &marker.record, moved_at).await;
            let said = if back.is_ok() {
                "the cluster stays where it is"
            } else {
                "the old store still says that the cluster has moved"
            };
            Err(failure.detail(said))
        }
    }
}

async fn mark(connection: &Connection, record: &ClusterMarker, found: i64) -> Result<i64, Failure> {
    let txn = person::txn().put(connection.key(&Key::Cluster), record.encode(), Guard::Unchanged(found));
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision } => Ok(revision),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            "the cluster's marker was changed meanwhile; nothing was moved",
        )),
    }
}

async fn copy(from: &Connection, to: &Connection, marker: &Marker, prefix: &Prefix) -> Result<usize, Failure> {
    let listing = from.store.list(prefix).await?;
    let goes = |kv: &&KeyValue| kv.lease == 0 && from.root.parse(&kv.key).is_none_or(|key| !stays(&key));
    let kvs: Vec<&KeyValue> = listing.kvs.iter().filter(goes).collect();
    let txns = kvs
        .iter()
        .map(|kv| person::txn().put(kv.key.clone(), kv.value.clone(), Guard::Absent))
        .collect();
    for (kv, outcome) in kvs.iter().zip(to.store.batch(txns).await) {
        match outcome? {
            Outcome::Committed { revision: _ } => {}
            Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
                let key = String::from_utf8_lossy(&kv.key);
                return Err(Failure::new(
                    Exit::Conflict,
                    format!("`{key}` was written in the new store meanwhile"),
                ));
            }
        }
    }
    let record = ClusterMarker {
        restore_epoch: marker.record.restore_epoch + 1,
        moved: None,
        accepted_revision: None,
        ..marker.record.clone()
    };
    let txn = person::txn().put(to.key(&Key::Cluster), record.encode(), Guard::Absent);
    match to.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(kvs.len()),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            "the new store became another cluster meanwhile",
        )),
    }
}
