//! `reeve admin restore`: puts what a file of `reeve admin backup` holds into an empty store, or back into the store of the same
//! cluster. The whole file is checked before the first write; the cluster's marker comes last, with a restore epoch above all that
//! was seen, so that nobody acts on half of it and nodes go on without a further command. Interrupted, it is run again.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _};
use std::path::Path;

use runtime::embedded::Embedded;
use runtime::{EtcdStore, Guard, KeyValue, Outcome, Prefix, Store, person};
use schemas::keys::Key;
use schemas::records::{ClusterMarker, Record as _};
use serde_json::json;

use crate::Verdict;
use crate::args::{Common, RestoreArgs};
use crate::backup::file::{self, Backup};
use crate::connect::{Connection, connect, default_data_dir};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, print};
use crate::up;
use crate::wait::Progress;

mod steps;

pub use steps::BELIEVED;
use steps::Steps;

/// Transactions between two words of progress.
const ROUND: usize = 512;

/// A store that is to be written: one that answers, or the embedded one in a directory where no `reeve up` runs.
pub struct Target {
    pub connection: Connection,
    /// Open for as long as this lives.
    embedded: Option<Embedded>,
}

/// Connects as the flags say; where a `reeve up` that does not run kept its store, that is opened here.
pub async fn target(common: &Common) -> Result<Target, Failure> {
    let dir = common.data_dir.clone().unwrap_or_else(default_data_dir);
    let refused = match connect(common).await {
        Ok(connection) => {
            return Ok(Target {
                connection,
                embedded: None,
            });
        }
        Err(failure) => failure,
    };
    let ours = up::was_here(&dir) && common.etcd.is_none() && common.context.is_none();
    if refused.exit != Exit::Unreachable || !ours {
        return Err(refused);
    }
    let embedded = up::open(&dir).await?;
    let connection = Connection {
        store: EtcdStore::from_client(embedded.client()),
        root: common.prefix.clone(),
        endpoints: dir.display().to_string(),
        context: None,
        viewer: false,
    };
    Ok(Target {
        connection,
        embedded: Some(embedded),
    })
}

pub async fn restore(common: &Common, args: &RestoreArgs) -> Verdict {
    let backup = read(&args.file)?;
    let target = target(common).await?;
    let source = Source {
        of: "the file",
        verb: "restore",
        over: args.over,
        yes: args.yes,
    };
    if !common.output.is_for_machines() {
        let header = &backup.header;
        print(&format!(
            "{}: cluster {} as it was at {} (revision {}, restore epoch {}): {}\n",
            args.file,
            header.cluster,
            header.made,
            header.revision,
            header.restore_epoch,
            output::count(backup.entries.len() + 1, "key")
        ));
    }
    write(common, &target, &backup, &source).await
}

/// Reads a file and checks all of it.
fn read(path: &str) -> Result<Backup, Failure> {
    let read = if path == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(file::FileError::Io)
            .and_then(|_| file::read(bytes.as_slice()))
    } else {
        std::fs::File::open(Path::new(path))
            .map_err(file::FileError::Io)
            .and_then(|found| file::read(BufReader::new(found)))
    };
    read.map_err(|error| {
        let exit = match &error {
            file::FileError::Io(_) => Exit::Failed,
            file::FileError::Foreign
            | file::FileError::Newer { .. }
            | file::FileError::Damaged { .. }
            | file::FileError::Cut { .. } => Exit::Invalid,
        };
        Failure::new(exit, format!("cannot restore from {path}"))
            .because(&error)
            .help(error.remedy())
    })
}

/// Where what is written comes from, for the words.
pub struct Source {
    pub of: &'static str,
    pub verb: &'static str,
    pub over: bool,
    pub yes: bool,
}

/// What stands in the store now.
struct Found {
    revision: i64,
    kvs: BTreeMap<Vec<u8>, KeyValue>,
    marker: Option<(ClusterMarker, i64)>,
}

async fn look(connection: &Connection) -> Result<Found, Failure> {
    let prefix = Prefix::new(connection.root.as_str())?;
    let listing = connection.store.list(&prefix).await?;
    let kvs: BTreeMap<Vec<u8>, KeyValue> = listing.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let marker = kvs.get(&connection.key(&Key::Cluster));
    let marker = marker.and_then(|kv| Some((ClusterMarker::decode(&kv.value).ok()?, kv.mod_revision)));
    Ok(Found {
        revision: listing.revision,
        kvs,
        marker,
    })
}

/// Writes all of it, and the marker last.
pub async fn write(common: &Common, target: &Target, backup: &Backup, source: &Source) -> Verdict {
    let Target { connection, embedded } = target;
    let found = look(connection).await?;
    let steps = steps::steps(&connection.root, backup, &found.kvs);
    admit(connection, backup, &found, &steps, source)?;
    let machine = common.output.is_for_machines();
    if source.over && found.kvs.values().any(|kv| kv.lease == 0) {
        if !machine {
            print(&overview(connection, &steps));
        }
        confirm(connection, backup, source)?;
    }
    let mut progress = Progress::new(machine);
    // From here on, until the marker is back, nobody plans.
    if let Some(kv) = found.kvs.get(&connection.key(&Key::Cluster)) {
        let txn = person::txn().delete(kv.key.clone(), Guard::Unchanged(kv.mod_revision));
        settled(connection.store.commit(txn).await, "cluster", source)?;
    }
    let (total, mut done, mut revision) = (steps.txns.len(), 0, found.revision);
    let mut left = steps.txns;
    while !left.is_empty() {
        let rest = left.split_off(left.len().min(ROUND));
        for outcome in connection.store.batch(left).await {
            revision = revision.max(settled(outcome, "a key", source)?);
            done += 1;
        }
        progress.say(&format!("{done} of {total} written"));
        left = rest;
    }
    // Nodes may have told more of themselves meanwhile.
    let now = look(connection).await?;
    let before = found.marker.map(|(marker, _)| marker);
    let heard = found.kvs.values().chain(now.kvs.values());
    let epoch = steps::epoch_above(&connection.root, backup, before.as_ref(), heard);
    let marker = ClusterMarker {
        restore_epoch: epoch,
        moved: None,
        accepted_revision: Some(revision.max(now.revision)),
        ..backup.marker.clone()
    };
    let txn = person::txn().put(connection.key(&Key::Cluster), marker.encode(), Guard::Absent);
    settled(connection.store.commit(txn).await, "cluster", source)?;
    drop(progress);
    crate::audit::begin(connection);
    let said = json!({
        "cluster": marker.id, "restoreEpoch": epoch, "added": steps.added, "changed": steps.changed, "removed": steps.removed,
        "tooLarge": steps.too_large,
    });
    match common.output {
        Format::Json => print(&output::json(&said)),
        Format::Yaml => print(&output::yaml(&said)),
        Format::Name => print(&format!("{}\n", marker.id)),
        Format::Table | Format::Wide => {
            print(&format!(
                "cluster {} is back, in restore epoch {epoch}: {} written, {} removed\n",
                marker.id,
                output::count(steps.added + steps.changed, "key"),
                steps.removed
            ));
            print(&after(&steps.too_large, &steps.softened));
            if embedded.is_some() {
                print("next: reeve up\n");
            }
        }
    }
    Ok(Exit::Done)
}

/// Whether this may go into this store.
fn admit(
    connection: &Connection,
    backup: &Backup,
    found: &Found,
    steps: &Steps,
    source: &Source,
) -> Result<(), Failure> {
    let at = &connection.endpoints;
    let ours = &backup.header.cluster;
    let other = |what: String| {
        let message = format!("{what}, and {} is of cluster {ours}; nothing was written", source.of);
        Failure::new(Exit::Conflict, message)
            .help("name the store of that cluster with --etcd, an empty one, or another prefix with --prefix")
    };
    if let Some((marker, _)) = &found.marker {
        if marker.id != *ours {
            return Err(other(format!("the store at {at} holds cluster {}", marker.id)));
        }
        if !source.over {
            let message = format!("the store at {at} holds cluster {ours} already; nothing was written");
            return Err(Failure::new(Exit::Conflict, message).help(format!(
                "to put it back to what {} has, add --over to `{}`; to go on from the store as it is, `reeve admin accept-store`",
                source.of, source.verb
            )));
        }
    }
    if let Some((key, of)) = steps::stranger(&connection.root, ours, found.kvs.values()) {
        return Err(other(format!("the store at {at} holds `{key}` of cluster {of}")));
    }
    // Without a marker nobody acts: what is there is what an interrupted run left, or it is somebody's.
    let odd = steps.changed + steps.removed > 0 || found.kvs.contains_key(&connection.key(&Key::Cluster));
    if found.marker.is_none() && !source.over && odd {
        let message = format!(
            "the store at {at} is not empty under `{}`: what it holds is not what {} holds; nothing was written",
            connection.root, source.of
        );
        return Err(Failure::new(Exit::Conflict, message).help(format!(
            "if it is what is left of cluster {ours}, --over after `{}` puts it right",
            source.verb
        )));
    }
    Ok(())
}

/// What changes in a store that holds something.
fn overview(connection: &Connection, steps: &Steps) -> String {
    let mut text = format!(
        "into the store at {}: {} added, {} changed, {} removed\n",
        connection.endpoints, steps.added, steps.changed, steps.removed
    );
    for (what, list) in [
        ("declared again", &steps.back),
        ("no longer declared (what runs of it is kept, as orphaned)", &steps.gone),
        (
            "declared as before (what runs is kept until it is applied)",
            &steps.differ,
        ),
    ] {
        if !list.is_empty() {
            let some = list.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if list.len() > 5 { ", ..." } else { "" };
            text.push_str(&format!("  {what}: {some}{more}\n"));
        }
    }
    text
}

fn confirm(connection: &Connection, backup: &Backup, source: &Source) -> Result<(), Failure> {
    if source.yes {
        return Ok(());
    }
    if !output::can_ask() {
        return Err(Failure::usage(
            "writing over a store needs a yes, and there is no terminal to ask on; nothing was written",
        )
        .help("add --yes if that is meant"));
    }
    let question = format!(
        "Put cluster {} in {} back to what {} has?",
        backup.header.cluster, connection.endpoints, source.of
    );
    if output::ask(&question) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was written"))
    }
}

/// What was written, or why the run ends here.
fn settled(outcome: Result<Outcome, runtime::StoreError>, what: &str, source: &Source) -> Result<i64, Failure> {
    let again = format!(
        "nobody acts on what is half written: run `reeve admin {}` again, and it goes on",
        source.verb
    );
    match outcome {
        Ok(Outcome::Committed { revision }) => Ok(revision),
        Ok(Outcome::FenceLost) => Err(Failure::new(Exit::Conflict, "the store was written meanwhile").help(again)),
        Ok(Outcome::Conflict { keys }) => {
            let key = keys
                .first()
                .map_or_else(|| what.to_owned(), |key| String::from_utf8_lossy(&key.key).into_owned());
            Err(Failure::new(Exit::Conflict, format!("`{key}` was written meanwhile")).help(again))
        }
        Err(error) => Err(Failure::from(error).detail(again)),
    }
}

/// What people should expect now.
fn after(too_large: &[String], softened: &[schemas::names::NodeName]) -> String {
    let mut text = String::from(
        "nodes go on by themselves; nothing is stopped, and nothing is restarted:\n\
         - what was started since, and no record knows, is kept and shown as Orphaned; apply it again and\n  it is taken up as it runs, or `reeve admin remove-orphan`\n\
         - a service that runs a newer spec than is declared keeps it (StoreRegressed) until you apply\n  what should run\n\
         - what was deleted since is declared again, and starts; tokens and people who were shut out\n  since count again: look at `reeve token ls` and `reeve person ls`\n",
    );
    if !softened.is_empty() {
        let nodes: Vec<&str> = softened.iter().map(|node| node.as_str()).collect();
        text.push_str(&format!(
            "- cordoned, where it was drained or leaving: {}\n",
            nodes.join(", ")
        ));
    }
    for key in too_large {
        text.push_str(&format!("- left out, for its value is over 1 MiB: {key}\n"));
    }
    text
}
