//! `reeve delete`: by kind and name, by manifest, or all of a kind. It says what stops, asks, writes the deletion with a
//! yes to exactly those removals, and waits until they are gone.

use std::collections::BTreeSet;

use schemas::admit::Admitted;
use schemas::keys::{ResourceKey, Root};
use schemas::kinds::Kind;
use schemas::names::{Namespace, ResourceName};
use serde_json::json;

use crate::Verdict;
use crate::args::{Common, DeleteArgs};
use crate::connect::{Connection, connect};
use crate::edit::{self, Edit};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::manifest;
use crate::output::{self, Format, print};
use crate::preview::preview;
use crate::secrets;
use crate::select::{What, what};
use crate::view::{View, title};
use crate::wait::{Goal, wait};

pub async fn delete(common: &Common, args: &DeleteArgs) -> Verdict {
    let named = if args.files.is_empty() {
        Some(named(common, args)?)
    } else {
        None
    };
    let admitted = manifest_keys(common, &args.files)?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let keys = match named {
        None => admitted,
        Some((kind, names)) if !args.all => keys_of(common, kind, &names)?,
        Some((kind, _)) => all(&connection, common, kind, args.all_namespaces).await?,
    };
    let found = edit::stored(&connection, &keys).await?;
    let mut edits = Vec::new();
    let mut missing = Vec::new();
    for (key, kv) in keys.into_iter().zip(found) {
        match kv {
            Some(kv) if key.kind == Kind::Secret => {
                edits.extend(secrets::deletion(&connection, key, Some(kv.mod_revision)).await?);
            }
            Some(kv) => edits.push(Edit::delete(key, kv.mod_revision)),
            None if key.kind == Kind::Secret => match secrets::deletion(&connection, key.clone(), None).await? {
                Some(edit) => edits.push(edit),
                None => missing.push(title(&key)),
            },
            None => missing.push(title(&key)),
        }
    }
    if !missing.is_empty() && !args.ignore_not_found && !args.all {
        return Err(Failure::new(
            Exit::Failed,
            format!("there is no {}; nothing was deleted", missing.join(" and no ")),
        )
        .help("list what there is with `reeve get all -A`, or add --ignore-not-found"));
    }
    let machine = common.output.is_for_machines();
    if edits.is_empty() {
        match common.output {
            Format::Table | Format::Wide => print("nothing to delete\n"),
            Format::Json => print(&output::json(&json!({ "deleted": [] }))),
            Format::Yaml => print(&output::yaml(&json!({ "deleted": [] }))),
            Format::Name => {}
        }
        return Ok(Exit::Done);
    }
    if !args.force && edits.iter().any(|edit| is_used(&edit.key)) {
        unused(&connection, &edits).await?;
    }
    let preview = preview(&connection, &edits).await?;
    if !machine {
        for edit in edits.iter().take(10) {
            let stops = preview
                .removals
                .iter()
                .find(|removal| removal.key == edit.key)
                .map_or(0, |found| found.instances);
            let stops = match (edit.key.kind, stops) {
                (Kind::Service, stops) => format!(": stops {}", output::count(stops, "instance")),
                (Kind::ConfigFile, _) => String::new(),
                (Kind::Secret, _) => ": its value goes with it, and is in no backup but those of the store".to_owned(),
                (Kind::Registry, _) => ": its accounts are used for no pull any more".to_owned(),
                (Kind::Command, _) => ": it is offered no more".to_owned(),
                (Kind::NetworkPolicy, _) => {
                    ": what it refused is refused no more, and what it allowed no longer allowed".to_owned()
                }
                (Kind::VirtualIP, _) => ": nobody answers for its address any more".to_owned(),
                (Kind::Node, _) => ": the node itself stays; take it out with `reeve node rm`".to_owned(),
            };
            print(&format!("delete {}{stops}\n", title(&edit.key)));
        }
        if edits.len() > 10 {
            print(&format!("... and {} more\n", edits.len() - 10));
        }
    }
    confirm(&edits, args.yes)?;
    edit::commit(&connection, &marker, &edits, &preview.removals).await?;
    let deleted = || {
        let one = |edit: &Edit| json!({ "kind": Kind::name(edit.key.kind), "namespace": edit.key.namespace, "name": edit.key.name });
        json!({ "deleted": edits.iter().map(one).collect::<Vec<_>>() })
    };
    match common.output {
        Format::Table | Format::Wide => {}
        Format::Json => print(&output::json(&deleted())),
        Format::Yaml => print(&output::yaml(&deleted())),
        Format::Name => edits
            .iter()
            .for_each(|edit| print(&format!("{}/{}\n", edit.key.kind.segment(), edit.key.name))),
    }
    if args.waiting.no_wait {
        return Ok(Exit::Done);
    }
    let goals = edits.into_iter().map(|edit| Goal::Gone { key: edit.key }).collect();
    wait(&connection, goals, args.waiting.timeout, machine).await?;
    Ok(Exit::Done)
}

/// Whether resources of its kind are used by services.
const fn is_used(key: &ResourceKey) -> bool {
    matches!(key.kind, Kind::ConfigFile | Kind::Secret)
}

/// Refuses to delete files and secrets that services use, but for services that go with them.
async fn unused(connection: &Connection, edits: &[Edit]) -> Result<(), Failure> {
    let view = View::read(connection, &["desired", "status"]).await?;
    let going: BTreeSet<&ResourceKey> = edits.iter().map(|edit| &edit.key).collect();
    let mut failure: Option<Failure> = None;
    for key in going.iter().filter(|key| is_used(key)) {
        let users = match key.kind {
            Kind::Secret => secrets::users(&view, key, &going),
            Kind::ConfigFile
            | Kind::Service
            | Kind::Node
            | Kind::Registry
            | Kind::Command
            | Kind::NetworkPolicy
            | Kind::VirtualIP => files::users(&view, key, &going),
        };
        if !users.is_empty() {
            let names: Vec<String> = users.iter().map(|name| format!("service/{name}")).collect();
            let line = format!("{} is used by {}; nothing was deleted", title(key), names.join(", "));
            failure = Some(match failure {
                None => Failure::new(Exit::Failed, line),
                Some(failure) => failure.detail(line),
            });
        }
    }
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure
            .help("take it out of their `files` or `secrets` first; with --force it goes, and they keep the edition they have")),
    }
}

fn manifest_keys(common: &Common, files: &[String]) -> Result<Vec<ResourceKey>, Failure> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    Ok(manifest::read(files, common.namespace.as_ref())?
        .iter()
        .map(Admitted::key)
        .collect())
}

fn named(common: &Common, args: &DeleteArgs) -> Result<(Kind, Vec<String>), Failure> {
    let kind = args.kind.as_deref().unwrap_or_default();
    let (what, names) = what(kind, &args.names)?;
    let What::Resource(kind) = what else {
        return Err(Failure::usage(format!("`{kind}` cannot be deleted"))
            .help("delete the service; its instances follow. One instance less is `reeve scale`"));
    };
    if names.is_empty() && !args.all {
        return Err(Failure::usage(format!("which {}?", kind.plural())).help(format!(
            "name them, or delete all of them with `reeve delete {} --all`",
            kind.plural()
        )));
    }
    // Checked before anything is connected to.
    keys_of(common, kind, &names)?;
    Ok((kind, names))
}

fn keys_of(common: &Common, kind: Kind, names: &[String]) -> Result<Vec<ResourceKey>, Failure> {
    let namespace = kind.namespaced().then(|| common.namespace.clone().unwrap_or_default());
    let key = |name: &String| {
        let name: ResourceName = name
            .parse()
            .map_err(|error: schemas::names::NameError| Failure::usage(error.to_string()))?;
        Ok(ResourceKey {
            namespace: namespace.clone(),
            kind,
            name,
        })
    };
    names.iter().map(key).collect()
}

async fn all(
    connection: &Connection,
    common: &Common,
    kind: Kind,
    everywhere: bool,
) -> Result<Vec<ResourceKey>, Failure> {
    let wanted: Option<Namespace> = (!everywhere).then(|| common.namespace.clone().unwrap_or_default());
    let listing = connection.class("desired").await?;
    let root: &Root = &connection.root;
    let keys = listing.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
        Some(schemas::keys::Key::Desired(key)) => Some(key),
        _ => None,
    });
    let here = |key: &ResourceKey| {
        key.kind == kind && (wanted.is_none() || key.namespace.is_none() || key.namespace == wanted)
    };
    Ok(keys.filter(here).collect())
}

fn confirm(edits: &[Edit], yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let what = if edits.len() == 1 {
        title(&edits[0].key)
    } else {
        output::count(edits.len(), "resource")
    };
    if !output::can_ask() {
        return Err(Failure::usage(format!(
            "this deletes {what}, and there is no terminal to ask on; nothing was deleted"
        ))
        .help("add --yes if that is meant"));
    }
    if output::ask(&format!("Delete {what}?")) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was deleted"))
    }
}
