//! `reeve secret`: values that only the containers see that get them. A value is asked for, unseen, or read from a file or a
//! pipe, sealed for the controllers before it leaves this process, and printed by nobody. `get`, `describe`, `delete` and
//! `apply` ask here for what they say of secrets.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _};

use runtime::Guard;
use schemas::admit::{Admitted, admit_stored};
use schemas::container::SecretUse;
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::{Document, Kind};
use schemas::meta::API_VERSION;
use schemas::names::ResourceName;
use schemas::records::{Record, Sealed, SealedValue};
use schemas::secret::MAX_SECRET_BYTES;
use serde_json::{Value, json};
use trust::seal::{Context, Envelope, Reader};
use zeroize::Zeroizing;

use crate::Verdict;
use crate::apply::bring_in_edits;
use crate::args::secrets::{LsArgs, RmArgs, SecretVerb, SetArgs, UndoArgs};
use crate::args::{Common, DeleteArgs, Waiting};
use crate::connect::{Connection, Marker, connect};
use crate::delete::delete;
use crate::describe;
use crate::edit::{self, Beside, Edit, Effect, Then};
use crate::failure::{Exit, Failure, printable};
use crate::get;
use crate::output::{self, Cell, Format, Table, Tone, complain, print};
use crate::registry;
use crate::rows::{self, State};
use crate::view::{View, secret_key, title};

/// `reeve secret`.
pub async fn secret(common: &Common, verb: &SecretVerb) -> Verdict {
    match verb {
        SecretVerb::Set(args) => set(common, args).await,
        SecretVerb::Ls(args) => list(common, args).await,
        SecretVerb::Rm(args) => rm(common, args).await,
        SecretVerb::Undo(args) => undo(common, args).await,
    }
}

// ---- in -------------------------------------------------------------------------------------------------------------------

async fn set(common: &Common, args: &SetArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let key = secret_key(&common.namespace.clone().unwrap_or_default(), &args.name);
    // Whom to seal for is known before anybody types a value.
    let readers = registry::readers(common, &connection, &marker).await?;
    let value = value(args)?;
    let (before, mut sealed) = registry::sealed(&connection, &key).await?;
    sealed.put_edition(seal(&marker, &key, sealed.next_edition(), &value, &readers)?);
    write(common, &connection, &marker, &key, (&sealed, before), &args.waiting).await
}

/// A value, sealed as this edition of the secret.
fn seal(
    marker: &Marker,
    key: &ResourceKey,
    edition: u64,
    value: &[u8],
    readers: &[Reader],
) -> Result<SealedValue, Failure> {
    let cannot =
        |error: &(dyn std::error::Error + 'static)| Failure::new(Exit::Failed, "cannot seal the value").because(error);
    let namespace = key.namespace.clone().unwrap_or_default();
    let context = Context {
        cluster: marker.record.id.as_str().parse().map_err(|error| cannot(&error))?,
        namespace: namespace.as_str(),
        kind: Kind::Secret.segment(),
        name: key.name.as_str(),
        edition,
    };
    let envelope = Envelope::seal(context, value, readers).map_err(|error| cannot(&error))?;
    let digest = envelope.digest(context).to_string();
    Ok(SealedValue {
        edition,
        digest: Some(digest.parse().map_err(|error| cannot(&error))?),
        envelope: serde_json::to_value(&envelope).map_err(|error| cannot(&error))?,
        since: Some(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    })
}

/// Writes the sealed values beside the secret's document, which is made where there is none, and shows what comes of it.
async fn write(
    common: &Common,
    connection: &Connection,
    marker: &Marker,
    key: &ResourceKey,
    (sealed, before): (&Sealed, Option<i64>),
    waiting: &Waiting,
) -> Verdict {
    let stored = edit::stored(connection, std::slice::from_ref(key)).await?;
    let known = stored.into_iter().flatten().next();
    let known = known.and_then(|kv| admit_stored(key, &kv.value).ok());
    let admitted = match known {
        Some(known) => known,
        None => document(key)?,
    };
    let mut edits = edit::edits(connection, vec![admitted], None).await?;
    for edit in &mut edits {
        if edit.effect == Effect::Unchanged {
            edit.effect = Effect::Change;
        }
        edit.beside.push(Beside {
            key: connection.key(&Key::Sealed(key.clone())),
            guard: before.map_or(Guard::Absent, Guard::Unchanged),
            then: Then::Put(sealed.encode()),
        });
    }
    bring_in_edits(common, connection, marker, edits, false, waiting).await
}

fn document(key: &ResourceKey) -> Result<Admitted, Failure> {
    let metadata = json!({ "name": key.name, "namespace": key.namespace });
    let value = json!({ "apiVersion": API_VERSION, "kind": Kind::Secret.name(), "metadata": metadata, "spec": {} });
    admit_stored(key, value.to_string().as_bytes()).map_err(Failure::invalid)
}

fn value(args: &SetArgs) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let name = &args.name;
    // So long that it is never moved, which would leave a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 2));
    let most = MAX_SECRET_BYTES as u64 + 1;
    let file = args.file.as_deref();
    let read = match file {
        None if io::stdin().is_terminal() => {
            let typed = registry::password(&format!("Value of {name}: "))?;
            bytes.extend_from_slice(typed.as_bytes());
            Ok(0)
        }
        None | Some("-") => io::stdin().lock().take(most).read_to_end(&mut bytes),
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    let place = file
        .filter(|path| *path != "-")
        .map_or_else(|| "the value".to_owned(), |path| format!("`{}`", printable(path)));
    read.map_err(|error| Failure::new(Exit::Failed, format!("cannot read {place}")).because(&error))?;
    if bytes.is_empty() {
        return Err(Failure::usage(format!("{place} is empty")).help("to take a secret away, use `reeve secret rm`"));
    }
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(Failure::new(Exit::Invalid, format!("{place} has more than 64 KiB"))
            .help("a secret is a password or a key; `reeve upload` takes files of up to 8 MiB, which are not sealed"));
    }
    if bytes.ends_with(b"\n") && std::str::from_utf8(&bytes).is_ok_and(|text| text.lines().count() == 1) {
        complain("the value ends with a line break, which is part of it; `printf %s` writes none\n");
    }
    Ok(bytes)
}

async fn undo(common: &Common, args: &UndoArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let key = secret_key(&common.namespace.clone().unwrap_or_default(), &args.name);
    let (before, mut sealed) = registry::sealed(&connection, &key).await?;
    let kept: Vec<u64> = sealed.editions().map(|(edition, _)| edition.n).collect();
    let now = sealed.in_force().map(|(edition, _)| edition.n);
    let target = match args.edition {
        Some(n) => kept.iter().copied().find(|kept| *kept == n),
        None => kept.iter().copied().rfind(|n| now.is_none_or(|now| *n < now)),
    };
    let Some(target) = target else {
        let what = match args.edition {
            Some(n) => format!("{} has no edition {n}", title(&key)),
            None => format!("{} has no edition before this one", title(&key)),
        };
        let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
        let help = match kept.len() {
            0 => "list secrets with `reeve secret ls -A`".to_owned(),
            _ => format!("it has {}", kept.join(", ")),
        };
        return Err(Failure::new(Exit::Failed, what).help(help));
    };
    sealed.current = Some(target);
    write(common, &connection, &marker, &key, (&sealed, before), &args.waiting).await
}

// ---- out ------------------------------------------------------------------------------------------------------------------

async fn rm(common: &Common, args: &RmArgs) -> Verdict {
    let args = DeleteArgs {
        kind: Some(Kind::Secret.segment().to_owned()),
        names: args.names.clone(),
        files: Vec::new(),
        all: false,
        all_namespaces: false,
        yes: args.yes,
        force: args.force,
        ignore_not_found: false,
        waiting: args.waiting.clone(),
    };
    delete(common, &args).await
}

/// Lets a secret's value go with its document; None where there is neither.
pub async fn deletion(connection: &Connection, key: ResourceKey, found: Option<i64>) -> Result<Option<Edit>, Failure> {
    let place = Key::Sealed(key.clone());
    let value = connection.get(&place).await?;
    if found.is_none() && value.is_none() {
        return Ok(None);
    }
    let mut edit = Edit::delete(key, found.unwrap_or(0));
    if found.is_none() {
        edit.effect = Effect::Unchanged;
    }
    edit.beside.extend(value.map(|kv| Beside {
        key: connection.key(&place),
        guard: Guard::Unchanged(kv.mod_revision),
        then: Then::Delete,
    }));
    Ok(Some(edit))
}

// ---- what there is ----------------------------------------------------------------------------------------------------------

async fn list(common: &Common, args: &LsArgs) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let view = View::read(&connection, &["desired", "sealed"]).await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let everywhere = args.all_namespaces;
    let keys: Vec<&ResourceKey> = view
        .secret_keys()
        .filter(|key| everywhere || key.namespace.as_ref() == Some(&namespace))
        .collect();
    let values = || Value::Array(keys.iter().map(|key| told(&view, key)).collect());
    match common.output {
        Format::Json => print(&output::json(&values())),
        Format::Yaml => print(&output::yaml(&values())),
        Format::Name => keys.iter().for_each(|key| print(&format!("secret/{}\n", key.name))),
        Format::Table | Format::Wide if keys.is_empty() => {
            let place = if everywhere {
                String::new()
            } else {
                format!(" in namespace `{namespace}`")
            };
            complain(&format!("no secrets{place}: `reeve secret set NAME` makes one\n"));
        }
        Format::Table | Format::Wide => {
            let wide = common.output == Format::Wide;
            let namespaced = everywhere.then_some("NAMESPACE").into_iter();
            let head: Vec<&'static str> = namespaced.chain(HEAD.iter().copied()).collect();
            let mut table = Table::new(&head);
            for key in keys {
                let namespace = key.namespace.as_ref().filter(|_| everywhere).map(Into::into);
                table.row(namespace.into_iter().chain(row(&view, key, wide)).collect());
            }
            print(&table.render(output::limit_of(wide)));
        }
    }
    Ok(Exit::Done)
}

/// What machines are told of a secret.
fn told(view: &View, key: &ResourceKey) -> Value {
    let sealed = view.sealed.get(key).and_then(|sealed| sealed.as_ref().ok());
    let in_force = sealed.and_then(Sealed::in_force);
    let editions = sealed.into_iter().flat_map(Sealed::editions);
    json!({
        "namespace": key.namespace, "name": key.name, "status": state(view, key).word,
        "edition": in_force.as_ref().map(|(edition, _)| edition.n), "since": in_force.map(|(_, value)| &value.since),
        "editions": editions.map(|(edition, _)| edition.n).collect::<Vec<_>>(),
        "description": description(view, key), "usedBy": users(view, key, &BTreeSet::new()),
    })
}

pub const HEAD: &[&str] = &["NAME", "EDITION", "SET", "USED BY", "STATUS"];

/// A secret's line; its users by name, all of them when `wide`.
pub fn row(view: &View, key: &ResourceKey, wide: bool) -> Vec<Cell> {
    let sealed = view.sealed.get(key).and_then(|sealed| sealed.as_ref().ok());
    let in_force = sealed.and_then(Sealed::in_force);
    let users = users(view, key, &BTreeSet::new());
    let shown = if wide { users.len() } else { 3 };
    let mut names: Vec<String> = users.iter().take(shown).map(ToString::to_string).collect();
    if users.len() > names.len() {
        names.push(format!("and {} more", users.len() - names.len()));
    }
    let none = || "-".to_owned();
    let since = in_force
        .as_ref()
        .and_then(|(_, value)| output::ago(value.since.as_deref()?));
    let edition = in_force.map(|(edition, _)| edition.n.to_string());
    vec![
        key.name.as_str().into(),
        edition.unwrap_or_else(none).into(),
        since.map_or_else(none, |since| format!("{since} ago")).into(),
        names.join(", ").into(),
        state(view, key).cell(),
    ]
}

fn state(view: &View, key: &ResourceKey) -> State {
    if let Some(Err(problems)) = view.declared.get(key).map(|declared| &declared.admitted) {
        return rows::invalid(problems.problems.first(), problems.count() - 1);
    }
    let again = format!("set it with `reeve secret set {}`", key.name);
    match view.sealed.get(key) {
        Some(Ok(sealed)) if sealed.in_force().is_some() => State::new("Set", Tone::Good, ""),
        None if view.sealed_hidden => State::new("Unknown", Tone::Plain, "you may not see what is sealed"),
        Some(Ok(_)) | None => State::new("NoValue", Tone::Bad, again),
        Some(Err(why)) => State::new("Unreadable", Tone::Bad, format!("{why}; {again}")),
    }
}

fn description<'a>(view: &'a View, key: &ResourceKey) -> Option<&'a str> {
    match &view.declared.get(key)?.admitted.as_ref().ok()?.document {
        Document::Secret(secret) => secret.spec.description.as_deref(),
        Document::Service(_)
        | Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Registry(_)
        | Document::Command(_)
        | Document::NetworkPolicy(_)
        | Document::VirtualIP(_) => None,
    }
}

/// Services that are declared to get a secret; those in `without` are left out.
pub fn users(view: &View, key: &ResourceKey, without: &BTreeSet<&ResourceKey>) -> BTreeSet<ResourceName> {
    let users = view.declared.iter().filter_map(|(user, declared)| {
        let spec = rows::spec_of(Some(declared.as_ref()))?;
        let gets = spec.container.secrets.iter().any(|one| one.secret == key.name);
        (gets && user.namespace == key.namespace && !without.contains(user)).then(|| user.name.clone())
    });
    users.collect()
}

/// `reeve describe secret`.
pub fn describe(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key);
    if declared.is_none() && !view.sealed.contains_key(key) {
        return None;
    }
    if format.is_for_machines() {
        let document = declared.map(|declared| get::document(view, key, declared));
        let value = json!({ "resource": document, "secret": told(view, key) });
        return Some(match format {
            Format::Yaml => output::yaml(&value),
            Format::Name => format!("secret/{}\n", key.name),
            Format::Json | Format::Table | Format::Wide => output::json(&value),
        });
    }
    let mut text = describe::head(key, &state(view, key), None);
    describe::sentence_of(&mut text, "For", description(view, key).unwrap_or_default());
    let sealed = view.sealed.get(key).and_then(|sealed| sealed.as_ref().ok());
    if let Some((edition, value)) = sealed.and_then(Sealed::in_force) {
        let since = value.since.as_deref().and_then(output::ago);
        let since = since.map_or_else(String::new, |since| format!(", set {since} ago"));
        describe::line(&mut text, "Edition", &format!("{}{since}", edition.n));
        let kept = sealed.into_iter().flat_map(Sealed::editions);
        let kept: Vec<String> = kept.map(|(edition, _)| edition.n.to_string()).collect();
        describe::line(&mut text, "Kept", &kept.join(", "));
    }
    let users: Vec<String> = users(view, key, &BTreeSet::new())
        .iter()
        .map(|name| format!("service/{name}"))
        .collect();
    let users = if users.is_empty() {
        "nobody".to_owned()
    } else {
        users.join(", ")
    };
    describe::sentence_of(&mut text, "Used by", &users);
    if let Some(Err(problems)) = declared.map(|declared| &declared.admitted) {
        text.push('\n');
        text.push_str(&problems.render(output::look()));
    }
    Some(text)
}

/// What a person must know of secrets before documents are written: which of them the engine will show.
pub fn notes(edits: &[Edit]) -> Vec<String> {
    let news = edits.iter().filter(|edit| edit.effect != Effect::Unchanged);
    let notes = news.filter_map(|edit| {
        let Some(Document::Service(service)) = &edit.document else {
            return None;
        };
        let shown = |one: &SecretUse| Some(format!("{} ({})", one.secret, one.env.as_ref()?));
        let shown: Vec<String> = service.spec.container.secrets.iter().filter_map(shown).collect();
        (!shown.is_empty()).then(|| {
            format!(
                "{}: as variables, these secrets are shown by `docker inspect` and kept on the engine's disk: {}",
                title(&edit.key),
                shown.join(", ")
            )
        })
    });
    notes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_byte_for_byte_and_neither_empty_nor_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("value");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            value(&SetArgs {
                name: "a".parse().unwrap(),
                file: Some(path.display().to_string()),
                waiting: Waiting {
                    timeout: std::time::Duration::from_secs(1),
                    no_wait: true,
                },
            })
        };
        for bytes in [&b"\x00\xff\n"[..], b"hunter2", b" x "] {
            assert_eq!(read(bytes).unwrap().as_slice(), bytes);
        }
        assert_eq!(read(&vec![7; MAX_SECRET_BYTES]).unwrap().len(), MAX_SECRET_BYTES);
        assert!(format!("{:?}", read(b"").unwrap_err()).contains("empty"));
        let failure = format!("{:?}", read(&vec![b'x'; MAX_SECRET_BYTES + 1]).unwrap_err());
        assert!(failure.contains("64 KiB") && !failure.contains("xxx"), "{failure}");
    }
}
