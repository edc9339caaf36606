//! `reeve admin remove-orphan`: takes away an instance that runs on a node though no record knows it. It shows what is
//! meant, asks, writes a yes to exactly that (`acks/<digest>`), and waits until the node's report no longer lists it.
//! The leading controller orders the removal; nothing is removed that is assigned.

use std::time::{Duration, Instant};

use runtime::{Guard, Outcome, Store, person};
use schemas::keys::Key;
use schemas::names::{Namespace, NodeName, Slot};
use schemas::records::{Digest, Phase, Record, Uid};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Common, OrphanArgs};
use crate::connect::Connection;
use crate::edit;
use crate::failure::{Exit, Failure, printable};
use crate::follow::Follow;
use crate::nodes::known;
use crate::output::{self, Format, print, short};
use crate::view::{Instance, View};
use crate::wait::Progress;

/// One instance of one life.
type Id = (Uid, Slot);

pub async fn remove(common: &Common, args: &OrphanArgs) -> Verdict {
    let (namespace, name) = named(common, &args.instance);
    let (connection, marker, view) = known(common, std::slice::from_ref(&args.node)).await?;
    let called = of_name(&view, &args.node, &namespace, &name);
    let orphans: Vec<&Instance<'_>> = called.iter().filter(|found| found.is_orphan()).collect();
    if orphans.is_empty() {
        return Err(no_orphan(&view, &called, &args.node, &namespace, &name));
    }
    let machine = common.output.is_for_machines();
    if !machine {
        for found in &orphans {
            let container = found.reported.and_then(|reported| reported.container.as_deref());
            let container = container.map_or(String::new(), |id| format!(" (container {id})"));
            print(&format!(
                "remove {name} from {}{container}: no record knows it\n",
                args.node
            ));
        }
    }
    confirm(&orphans, args)?;
    let ids: Vec<Id> = orphans
        .iter()
        .map(|found| (found.uid.clone(), found.name.slot.clone()))
        .collect();
    let mut txn = person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision));
    for (uid, slot) in &ids {
        let ack = edit::ack(Digest::of_orphan(&args.node, uid, slot), 1);
        let key = connection.key(&Key::Ack(ack.digest.to_string()));
        txn = txn.put(key, ack.encode(), Guard::Any);
    }
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => {}
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
            return Err(Failure::new(
                Exit::Conflict,
                "the cluster was changed meanwhile; nothing was removed",
            ));
        }
    }
    let said = || -> Value {
        json!({ "node": args.node, "namespace": namespace, "instance": name,
                "uids": ids.iter().map(|(uid, _)| uid).collect::<Vec<_>>() })
    };
    match common.output {
        Format::Table | Format::Wide => {}
        Format::Json => print(&output::json(&said())),
        Format::Yaml => print(&output::yaml(&said())),
        Format::Name => print(&format!("instance/{name}\n")),
    }
    if args.waiting.no_wait {
        return Ok(Exit::Done);
    }
    let took = until_gone(&connection, &args.node, &ids, args.waiting.timeout, machine).await?;
    if !machine {
        print(&format!(
            "{name} is gone from {} after {}\n",
            args.node,
            short(took.as_secs())
        ));
    }
    Ok(Exit::Done)
}

/// `web.2`, `prod/web.2`, or `instance/web.2` as `-o name` prints it.
fn named(common: &Common, text: &str) -> (Namespace, String) {
    let namespace = common.namespace.clone().unwrap_or_default();
    match text.split_once('/') {
        None => (namespace, text.to_owned()),
        Some((prefix, name)) => match prefix.parse() {
            Ok(other) if prefix != "instance" => (other, name.to_owned()),
            _ => (namespace, name.to_owned()),
        },
    }
}

fn of_name<'a>(view: &'a View, node: &NodeName, namespace: &Namespace, name: &str) -> Vec<Instance<'a>> {
    let mut found = view.instances();
    found.retain(|one| one.node == node && one.name.namespace == *namespace && one.name.to_string() == name);
    found
}

/// Why there is nothing to remove under this name.
fn no_orphan(view: &View, called: &[Instance<'_>], node: &NodeName, namespace: &Namespace, name: &str) -> Failure {
    let nothing = "nothing was removed";
    match called.first() {
        Some(found) if found.is_absent() => Failure::new(
            Exit::Failed,
            format!("{name} on {node} is being removed already; {nothing} beyond that"),
        )
        .help("follow it with `reeve get instances -A -o wide`"),
        Some(found) if found.assigned.is_some() => Failure::new(
            Exit::Failed,
            format!("{name} on {node} is no orphan: it is assigned there; {nothing}"),
        )
        .help("`reeve scale` or `reeve delete` takes away what is declared"),
        Some(_) => Failure::new(
            Exit::Failed,
            format!("{node} does not call {name} an orphan; {nothing}"),
        )
        .help("wait until its agent has applied its assignment: `reeve get instances -A` then says Orphaned"),
        None => {
            let all = view.instances();
            let orphans: Vec<String> = all
                .iter()
                .filter(|found| found.node == node && found.is_orphan())
                .map(|found| format!("{}/{}", found.name.namespace, found.name))
                .collect();
            let failure = Failure::new(
                Exit::Failed,
                format!("{node} has no instance {name} in namespace {namespace}; {nothing}"),
            );
            match orphans.len() {
                0 => failure.help(format!("{node} reports no orphan at all")),
                more => failure.help(format!(
                    "its orphans are {}{}",
                    orphans.iter().take(5).cloned().collect::<Vec<_>>().join(", "),
                    if more > 5 { ", ..." } else { "" }
                )),
            }
        }
    }
}

fn confirm(orphans: &[&Instance<'_>], args: &OrphanArgs) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !output::can_ask() {
        return Err(Failure::usage(
            "removing what runs needs a yes, and there is no terminal to ask on; nothing was removed",
        )
        .help("add --yes if that is meant"));
    }
    let what = output::count(orphans.len(), "instance");
    if output::ask(&format!("Stop and remove {what} (volumes are kept)?")) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was removed"))
    }
}

/// Waits until the node's report lists none of them; how long that took.
async fn until_gone(
    connection: &Connection,
    node: &NodeName,
    ids: &[Id],
    timeout: Duration,
    quiet: bool,
) -> Result<Duration, Failure> {
    let began = Instant::now();
    let mut follow = Follow::cluster(connection).await?;
    let mut progress = Progress::new(quiet);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        let view = &follow.view;
        let all = view.instances();
        let left: Vec<&Instance<'_>> = all
            .iter()
            .filter(|found| found.node == node && found.reported.is_some())
            .filter(|found| {
                ids.iter()
                    .any(|(uid, slot)| found.uid == uid && found.name.slot == *slot)
            })
            .collect();
        let Some(first) = left.first() else {
            return Ok(began.elapsed());
        };
        let line = format!("{} on {node} {}", first.name, waits_for(view, first));
        progress.say(&line);
        if began.elapsed() >= timeout {
            return Err(Failure::new(
                Exit::TimedOut,
                format!("not gone after {}: {line}", short(timeout.as_secs())),
            )
            .help("a removal that is ordered goes on; run the command again if it still says Orphaned in `reeve get instances -A`"));
        }
        tokio::select! {
            changed = follow.changed() => changed?,
            _ = tick.tick() => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Exit::Failed, "no longer waiting; what was written stays and goes on"));
            }
        }
    }
}

/// What the removal of an orphan waits for.
fn waits_for(view: &View, found: &Instance<'_>) -> String {
    if !found.heard {
        return "goes when its node is back: no agent is heard there".to_owned();
    }
    match found.reported.and_then(|reported| reported.failing.as_ref()) {
        Some(failing) if found.is_absent() => {
            format!("does not go: {:?}: {}", failing.reason, printable(&failing.message))
        }
        _ if found.is_absent() => "is being stopped and removed".to_owned(),
        _ if view.leader.is_none() => {
            "waits for a controller: none leads; start one with `reeve controller`".to_owned()
        }
        _ => "waits for the controller".to_owned(),
    }
}

impl Instance<'_> {
    /// Whether its node keeps it though no record knows it.
    pub fn is_orphan(&self) -> bool {
        self.assigned.is_none() && self.reported.is_some_and(|reported| reported.phase == Phase::Orphaned)
    }
}
