//! What a person asks of nodes: `cordon`, `uncordon`, `drain`, `node rm`, `node confirm-lost`. Each is one key, `cordons/<node>`; the leading
//! controller does what it says. In a cluster of seeds `node rm` also shuts the node out: its certificates no longer count.

use std::time::Duration;

use membership::revoke::{RevokeError, Revoker};
use membership::tokens;
use runtime::{Guard, Outcome, Store, person};
use schemas::keys::Key;
use schemas::names::{InstanceName, NodeName};
use schemas::records::{Cordon, CordonMode, Record, SchemaVersion};
use schemas::units::Span;
use serde_json::json;
use trust::identity::Subject;

use crate::Verdict;
use crate::args::{Common, ConfirmLostArgs, CordonArgs, DrainArgs, NodeRmArgs, NodeVerb};
use crate::connect::{Connection, Marker, connect};
use crate::edit;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, complain, print};
use crate::rows::spec_of;
use crate::seats::{of_ask, server_dir, voice};
use crate::view::{View, service_key};
use crate::wait::until_empty;

pub async fn cordon(common: &Common, args: &CordonArgs) -> Verdict {
    let (connection, marker, _) = known(common, &args.nodes).await?;
    for node in &args.nodes {
        set(
            &connection,
            &marker,
            node,
            Some(CordonMode::Cordon),
            args.note.as_deref(),
        )
        .await?;
        say(
            common,
            &format!("node/{node} is cordoned: nothing new is placed there"),
            node,
        );
    }
    Ok(Exit::Done)
}

pub async fn uncordon(common: &Common, args: &CordonArgs) -> Verdict {
    let (connection, marker, _) = known(common, &args.nodes).await?;
    for node in &args.nodes {
        let changed = set(&connection, &marker, node, None, None).await?;
        let now = if changed {
            "is no longer cordoned"
        } else {
            "was not cordoned"
        };
        say(common, &format!("node/{node} {now}"), node);
    }
    Ok(Exit::Done)
}

pub async fn drain(common: &Common, args: &DrainArgs) -> Verdict {
    let (connection, marker, view) = known(common, &args.nodes).await?;
    for node in &args.nodes {
        set(
            &connection,
            &marker,
            node,
            Some(CordonMode::Drain),
            args.note.as_deref(),
        )
        .await?;
        say(
            common,
            &format!("node/{node} is draining: {} to move", running(&view, node)),
            node,
        );
    }
    if !args.waiting.no_wait {
        until_empty(
            &connection,
            &args.nodes,
            args.waiting.timeout,
            common.output.is_for_machines(),
        )
        .await?;
        say_all(common, &args.nodes, "is empty; `reeve uncordon` takes it back into use");
    }
    Ok(Exit::Done)
}

pub async fn node(common: &Common, verb: &NodeVerb) -> Verdict {
    match verb {
        NodeVerb::Rm(args) => rm(common, args).await,
        NodeVerb::ConfirmLost(args) => confirm_lost(common, args).await,
        NodeVerb::Replace(args) => crate::replace::replace(common, args).await,
        NodeVerb::Copy(args) => crate::rebuild::node_copy(common, args),
        NodeVerb::Exec(args) => crate::near::node_exec(common, args).await,
    }
}

/// Writes a person's word that hosts are off. It is about the verdict that he sees, and about nodes that are away.
async fn confirm_lost(common: &Common, args: &ConfirmLostArgs) -> Verdict {
    let (connection, marker, view) = known(common, &args.nodes).await?;
    if let Some(node) = args.nodes.iter().find(|node| view.sessions.contains_key(*node)) {
        return Err(Failure::new(
            Exit::Failed,
            format!("node/{node} is not away: its agent has a session"),
        )
        .help(format!(
            "empty it with `reeve drain {node}`, or take it out with `reeve node rm {node}`"
        )));
    }
    if !args.yes {
        let names = listed(&args.nodes);
        let instances: usize = args.nodes.iter().map(|node| on(&view, node)).sum();
        let kept: usize = args.nodes.iter().map(|node| with_data(&view, node)).sum();
        let of_them = match kept {
            0 => String::new(),
            _ => format!(", {kept} of them without the data they keep there"),
        };
        let what = format!(
            "start {} of {names} elsewhere{of_them}{}",
            output::count(instances, "instance"),
            exclusive_on(&view, &args.nodes)
        );
        if !output::can_ask() {
            return Err(
                Failure::usage(format!("this would {what}, and there is no terminal to ask on"))
                    .help("add --yes if the hosts are off for certain"),
            );
        }
        if !output::ask(&format!("Are they off for certain? This would {what}.")) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    for node in &args.nodes {
        let place = Key::Verdict(node.clone());
        let seen = connection.get(&place).await?;
        let Some(seen) = seen else {
            return Err(Failure::new(
                Exit::Failed,
                format!("no controller has said yet what node/{node} is held to be"),
            )
            .help("see that one leads with `reeve status`, then run the command again"));
        };
        let about = [
            (connection.key(&place), Guard::Unchanged(seen.mod_revision)),
            (connection.key(&Key::Session(node.clone())), Guard::Absent),
        ];
        let (key, guard, before) = stored(&connection, node).await?;
        let mode = before.map_or(CordonMode::Cordon, |before| before.mode);
        let cordon = word(mode, true, args.note.as_deref());
        let mut txn = person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision));
        for (key, guard) in about {
            txn = txn.require(key, guard);
        }
        match connection.store.commit(txn.put(key, cordon.encode(), guard)).await? {
            Outcome::Committed { revision: _ } => {}
            Outcome::FenceLost | Outcome::Conflict { keys: _ } => {
                return Err(
                    Failure::new(Exit::Conflict, format!("node/{node} changed meanwhile, or is back"))
                        .help("look at it with `reeve get nodes`, then run the command again"),
                );
            }
        }
        say(
            common,
            &format!("node/{node} is lost: {} go elsewhere", running(&view, node)),
            node,
        );
    }
    Ok(Exit::Done)
}

/// Which exclusive instances a person's word lets go, and when.
fn exclusive_on(view: &View, nodes: &[NodeName]) -> String {
    let named = view.instances().into_iter().filter_map(|found| {
        let declared = view
            .declared
            .get(&service_key(&found.name.namespace, &found.name.workload));
        let spec = spec_of(declared.map(AsRef::as_ref)).filter(|spec| spec.exclusive)?;
        let when = spec.stopped_after().map_or("at once".to_owned(), |after| {
            format!("when its node has been away for {after}")
        });
        (nodes.contains(found.node) && !found.is_absent()).then(|| format!("{} {when}", found.name))
    });
    let named: Vec<String> = named.collect();
    match &named[..] {
        [] => String::new(),
        _ => format!("; exclusive of them: {}", named.join(", ")),
    }
}

/// An exclusive instance that may still run on a node's host: until a person says that it is off, and it has stopped where it does
/// that by itself.
pub fn may_run_exclusive(view: &View, node: &NodeName) -> Option<InstanceName> {
    let verdict = view.verdicts.get(node);
    let found = view.instances().into_iter().find(|found| {
        let declared = view
            .declared
            .get(&service_key(&found.name.namespace, &found.name.workload));
        let spec = spec_of(declared.map(AsRef::as_ref)).filter(|spec| spec.exclusive);
        let may = |stops: Option<Span>| match verdict.filter(|verdict| verdict.off) {
            None => true,
            Some(verdict) => stops.is_some_and(|stops| verdict.silent.is_none_or(|silent| silent < stops)),
        };
        found.node == node && spec.is_some_and(|spec| may(spec.stopped_after()))
    });
    found.map(|found| found.name)
}

/// How many of a node's instances keep data on it.
fn with_data(view: &View, node: &NodeName) -> usize {
    let keeps = |name: &InstanceName| {
        let declared = view.declared.get(&service_key(&name.namespace, &name.workload));
        spec_of(declared.map(AsRef::as_ref)).is_some_and(|spec| spec.container.keeps_data())
    };
    let instances = view.instances();
    let here = instances
        .iter()
        .filter(|found| found.node == node && !found.is_absent());
    here.filter(|found| keeps(&found.name)).count()
}

async fn rm(common: &Common, args: &NodeRmArgs) -> Verdict {
    let (connection, marker, view) = known(common, &args.nodes).await?;
    let names = listed(&args.nodes);
    let instances: usize = args.nodes.iter().map(|node| on(&view, node)).sum();
    if !args.yes {
        let what = format!("{names} and move {} elsewhere", output::count(instances, "instance"));
        if !output::can_ask() {
            return Err(
                Failure::usage(format!("this would retire {what}, and there is no terminal to ask on"))
                    .help("add --yes if that is meant"),
            );
        }
        if !output::ask(&format!("Retire {what}?")) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    for node in &args.nodes {
        set(
            &connection,
            &marker,
            node,
            Some(CordonMode::Retire),
            args.note.as_deref(),
        )
        .await?;
        say(
            common,
            &format!("node/{node} is retired: {} go elsewhere", running(&view, node)),
            node,
        );
    }
    if args.waiting.no_wait && !args.now {
        return Ok(Exit::Done);
    }
    if !args.now {
        until_empty(
            &connection,
            &args.nodes,
            args.waiting.timeout,
            common.output.is_for_machines(),
        )
        .await?;
    }
    match shut_out(common, &connection, args).await? {
        Shut::NoAuthority if args.now => {
            return Err(Failure::new(
                Exit::Failed,
                format!("{names} retired, but not shut out: only the cluster's authority can do that"),
            )
            .help(
                "run it on a seed, as root, or as a person with the right `admin`; a store of your own has its own users and \
                 certificates to withdraw",
            ));
        }
        Shut::NoAuthority => say_all(
            common,
            &args.nodes,
            "runs nothing any more; stop its agent, or take it back with `reeve uncordon`",
        ),
        Shut::Everywhere => say_all(
            common,
            &args.nodes,
            if args.now {
                "is shut out: its certificates no longer count, its connections are cut; what still runs there is for you to stop"
            } else {
                "runs nothing any more and is shut out; to come back it joins with a new token and `reeve uncordon`"
            },
        ),
    }
    Ok(Exit::Done)
}

/// Tells of tokens that a removed host may still have, and that let others in: under another name it could come back.
async fn open_tokens(common: &Common, connection: &Connection, nodes: &[NodeName]) {
    // Only a hint: what is asked for is done.
    let Ok(listed) = tokens::list(&server_dir(common), &connection.store, &connection.root).await else {
        return;
    };
    let now = membership::now();
    for (id, record) in listed {
        let Ok(record) = record else { continue };
        let had = |node: &&NodeName| record.joined.iter().any(|joined| joined.name.as_str() == node.as_str());
        if let Some(node) = nodes
            .iter()
            .find(had)
            .filter(|_| record.uses_left > 0 && now <= record.expires)
        {
            complain(&format!(
                "node/{node} joined with token {id}, which lets others in until {}: `reeve token rm {id}` withdraws it\n",
                record.expires
            ));
        }
    }
}

/// How far shutting out has come.
enum Shut {
    /// There is no authority to ask from here: a store of one's own, or neither a seed nor an administrator.
    NoAuthority,
    Everywhere,
}

/// How long the seeds may take to cut connections; what they have not done then they do when they can.
const CUT: Duration = Duration::from_secs(30);

/// Why somebody was not shut out.
pub fn not_shut_out(whom: &str, error: RevokeError) -> Failure {
    match error {
        RevokeError::Store(error) => Failure::from(error),
        RevokeError::Ask(error) => {
            let because = of_ask(&error);
            let failure = Failure::new(because.exit, format!("cannot shut {whom} out")).because(&error);
            match because.remedy() {
                Some(help) => failure.help(help),
                None => failure,
            }
        }
        error @ (RevokeError::Keep(_) | RevokeError::List(_) | RevokeError::Foreign(_) | RevokeError::Conflict) => {
            Failure::new(Exit::Failed, format!("cannot shut {whom} out")).because(&error)
        }
    }
}

async fn shut_out(common: &Common, connection: &Connection, args: &NodeRmArgs) -> Result<Shut, Failure> {
    let failed = |error| not_shut_out("the node", error);
    let Some(voice) = voice(common)? else {
        return Ok(Shut::NoAuthority);
    };
    let revoker = Revoker::of(voice);
    let reason = args.note.as_deref().unwrap_or("removed with `reeve node rm`");
    let mut number = 0;
    for node in &args.nodes {
        // A node of a longer name never had a certificate.
        if let Ok(subject) = format!("node/{node}").parse::<Subject>() {
            let revoked = revoker
                .revoke(&connection.store, &connection.root, &subject, reason)
                .await;
            number = revoked.map_err(failed)?;
        }
    }
    let left = revoker.until_cut(number, CUT, None).await.map_err(failed)?;
    open_tokens(common, connection, &args.nodes).await;
    if left.is_empty() {
        return Ok(Shut::Everywhere);
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    Err(Failure::new(
        Exit::TimedOut,
        format!(
            "no certificate of it counts any more, but these seeds have not said that they cut its connections: {}",
            left.join(", ")
        ),
    )
    .help("they do it when they are back; `reeve server` must run there"))
}

fn say(common: &Common, line: &str, node: &NodeName) {
    match common.output {
        Format::Table | Format::Wide => print(&format!("{line}\n")),
        Format::Name => print(&format!("node/{node}\n")),
        Format::Json => print(&format!("{}\n", json!({ "kind": "Node", "name": node }))),
        Format::Yaml => print(&format!(
            "---\n{}",
            output::yaml(&json!({ "kind": "Node", "name": node }))
        )),
    }
}

fn say_all(common: &Common, nodes: &[NodeName], what: &str) {
    if !common.output.is_for_machines() {
        nodes.iter().for_each(|node| print(&format!("node/{node} {what}\n")));
    }
}

fn listed(nodes: &[NodeName]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn on(view: &View, node: &NodeName) -> usize {
    view.instances()
        .iter()
        .filter(|found| found.node == node && !found.is_absent())
        .count()
}

fn running(view: &View, node: &NodeName) -> String {
    output::count(on(view, node), "instance")
}

/// Connects, and refuses names that are no node's: a typing error must not wait for a node that never comes.
pub async fn known(common: &Common, nodes: &[NodeName]) -> Result<(Connection, Marker, View), Failure> {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let classes = [
        "desired",
        "status",
        "nodes",
        "sessions",
        "verdicts",
        "cordons",
        "assignments",
        "reports",
    ];
    let view = View::read(&connection, &classes).await?;
    let names = view.node_names();
    match nodes
        .iter()
        .find(|node| !names.contains(node) && view.cordon(node).is_none())
    {
        None => Ok((connection, marker, view)),
        Some(node) => {
            Err(Failure::new(Exit::Failed, format!("there is no node `{node}`"))
                .help("list nodes with `reeve get nodes`"))
        }
    }
}

/// Where a node's cordon is stored, how it is guarded there, and what it says.
async fn stored(connection: &Connection, node: &NodeName) -> Result<(Vec<u8>, Guard, Option<Cordon>), Failure> {
    let place = Key::Cordon(node.clone());
    let found = connection.get(&place).await?;
    let guard = found
        .as_ref()
        .map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision));
    let before = found.as_ref().and_then(|kv| Cordon::decode(&kv.value).ok());
    Ok((connection.key(&place), guard, before))
}

/// What a person asks or says of a node.
fn word(mode: CordonMode, lost: bool, note: Option<&str>) -> Cordon {
    Cordon {
        schema_version: SchemaVersion::default(),
        mode,
        lost,
        by: edit::person(),
        note: note.map(|text| output::cut(text, 1000)),
    }
}

/// Writes or deletes a node's cordon; whether anything changed.
async fn set(
    connection: &Connection,
    marker: &Marker,
    node: &NodeName,
    mode: Option<CordonMode>,
    note: Option<&str>,
) -> Result<bool, Failure> {
    let (key, guard, before) = stored(connection, node).await?;
    let txn = person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision));
    let txn = match mode {
        None if guard == Guard::Absent => return Ok(false),
        None => txn.delete(key, guard),
        Some(mode) => {
            if before.is_some_and(|before| before.mode == mode && note.is_none()) {
                return Ok(false);
            }
            txn.put(key, word(mode, false, note).encode(), guard)
        }
    };
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(true),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            format!("node/{node} was cordoned, drained or freed by someone else meanwhile"),
        )
        .help("look at it with `reeve get nodes`, then run the command again")),
    }
}
