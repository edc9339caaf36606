//! `reeve apply`, `plan` and `scale`: documents in, a plan shown, a yes where something is removed, one conditional write,
//! and the wait until it is in force.

use schemas::admit::{Admitted, admit_stored};
use schemas::kinds::Kind;
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{ApplyArgs, Common, PlanArgs, ScaleArgs, Waiting, scale_target};
use crate::connect::{Connection, Marker, connect};
use crate::edit::{self, Edit, Effect};
use crate::failure::{Exit, Failure};
use crate::manifest;
use crate::output::{self, Format, print};
use crate::preview::{Preview, preview};
use crate::secrets::notes;
use crate::view::{service_key, title};
use crate::wait::{Goal, wait};

pub async fn apply(common: &Common, args: &ApplyArgs) -> Verdict {
    let admitted = manifest::read(&args.files.files, common.namespace.as_ref())?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    bring_in(
        common,
        &connection,
        &marker,
        admitted,
        args.if_revision,
        args.yes,
        &args.waiting,
    )
    .await
}

pub async fn scale(common: &Common, args: &ScaleArgs) -> Verdict {
    let (name, replicas) = scale_target(args).map_err(Failure::usage)?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let key = service_key(&namespace, &name);
    let found = edit::stored(&connection, std::slice::from_ref(&key))
        .await?
        .pop()
        .flatten();
    let found = found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("there is no {}", title(&key)))
            .help("list services with `reeve get services -A`")
    })?;
    let admitted = admit_stored(&key, &found.value).map_err(Failure::invalid)?;
    let mut value = admitted.value;
    if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
        // One is what it has when nothing is said.
        let replicated = spec.get("mode").is_none_or(|mode| mode == "replicated");
        let said = spec.contains_key("replicas");
        if said || replicas != 1 || !replicated {
            spec.insert("replicas".to_owned(), json!(replicas));
        }
    }
    // What a number breaks (mode `global` has no replicas) is told as for any document.
    let admitted = admit_stored(&key, value.to_string().as_bytes()).map_err(Failure::invalid)?;
    let revision = Some(found.mod_revision);
    bring_in(
        common,
        &connection,
        &marker,
        vec![admitted],
        revision,
        args.yes,
        &args.waiting,
    )
    .await
}

pub async fn plan(common: &Common, args: &PlanArgs) -> Verdict {
    let admitted = manifest::read(&args.files.files, common.namespace.as_ref())?;
    let connection = connect(common).await?;
    connection.marker().await?;
    let edits = edit::edits(&connection, admitted, None).await?;
    let preview = preview(&connection, &edits).await?;
    match common.output {
        Format::Table | Format::Wide => {
            print(&preview.render(&edits));
            tell(&edits);
            print(&format!("plan: {}\n", preview.summary()));
        }
        Format::Json => print(&output::json(&report(&edits, &preview, None))),
        Format::Yaml => print(&output::yaml(&report(&edits, &preview, None))),
        Format::Name => names(&edits),
    }
    let differs = edits.iter().any(|edit| edit.effect != Effect::Unchanged);
    Ok(if differs && args.exit_code {
        Exit::Differs
    } else {
        Exit::Done
    })
}

pub async fn bring_in(
    common: &Common,
    connection: &Connection,
    marker: &Marker,
    admitted: Vec<Admitted>,
    if_revision: Option<i64>,
    yes: bool,
    waiting: &Waiting,
) -> Verdict {
    let edits = edit::edits(connection, admitted, if_revision).await?;
    bring_in_edits(common, connection, marker, edits, yes, waiting).await
}

/// Shows what edits come to, writes them, and waits.
pub async fn bring_in_edits(
    common: &Common,
    connection: &Connection,
    marker: &Marker,
    edits: Vec<Edit>,
    yes: bool,
    waiting: &Waiting,
) -> Verdict {
    let preview = preview(connection, &edits).await?;
    let machine = common.output.is_for_machines();
    if !machine {
        print(&preview.render(&edits));
        tell(&edits);
        if edits.iter().any(|edit| edit.effect != Effect::Unchanged) {
            print(&format!("plan: {}\n", preview.summary()));
        }
    }
    consent(&preview, yes)?;
    let written = edit::commit(connection, marker, &edits, &preview.removals).await?;
    let revision = written.values().max().copied();
    if machine {
        match common.output {
            Format::Name => names(&edits),
            Format::Yaml => print(&output::yaml(&report(&edits, &preview, revision))),
            Format::Json | Format::Table | Format::Wide => print(&output::json(&report(&edits, &preview, revision))),
        }
    } else if let Some(revision) = revision {
        print(&format!(
            "{} written, revision {revision}\n",
            output::count(written.len(), "document")
        ));
    }
    if waiting.no_wait {
        return Ok(Exit::Done);
    }
    let goal = |edit: &Edit| Goal::InForce {
        key: edit.key.clone(),
        revision: written.get(&edit.key).copied().unwrap_or(edit.found),
        removes: preview.removals.iter().any(|removal| removal.key == edit.key),
    };
    let renewed = preview.renewed.iter().map(|(key, before)| Goal::Renewed {
        key: key.clone(),
        before: *before,
    });
    let goals = edits.iter().map(goal).chain(renewed).collect();
    wait(connection, goals, waiting.timeout, machine).await?;
    Ok(Exit::Done)
}

/// What a person must know beside the plan.
fn tell(edits: &[Edit]) {
    for note in notes(edits) {
        print(&format!("note: {note}\n"));
    }
}

/// A yes to what is removed: asked for on a terminal, else `--yes`.
pub fn consent(preview: &Preview, yes: bool) -> Result<(), Failure> {
    let removed = preview.removed();
    if removed == 0 || yes {
        return Ok(());
    }
    let what = output::count(removed, "instance");
    if !output::can_ask() {
        return Err(Failure::usage(format!(
            "this removes {what}, and there is no terminal to ask on; nothing was written"
        ))
        .help("add --yes if that is meant"));
    }
    if output::ask(&format!("Remove {what}?")) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was written"))
    }
}

fn names(edits: &[Edit]) {
    edits
        .iter()
        .for_each(|edit| print(&format!("{}/{}\n", edit.key.kind.segment(), edit.key.name)));
}

fn report(edits: &[Edit], preview: &Preview, revision: Option<i64>) -> Value {
    let documents: Vec<Value> = edits
        .iter()
        .map(|edit| {
            let effect = match edit.effect {
                Effect::Create => "create",
                Effect::Change => "change",
                Effect::Unchanged => "unchanged",
                Effect::Delete => "delete",
            };
            json!({
                "kind": Kind::name(edit.key.kind),
                "namespace": edit.key.namespace,
                "name": edit.key.name,
                "effect": effect,
                "foundRevision": edit.found,
            })
        })
        .collect();
    let mut told =
        json!({ "documents": documents, "changes": preview.changes, "notes": notes(edits), "revision": revision });
    if !preview.holders.is_empty() {
        told["holders"] = json!(preview.holders);
    }
    told
}
