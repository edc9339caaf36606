//! `reeve kv`: small values of people's own under `kv/<namespace>/`, for scripts and notes. Reeve decides nothing from them.
//! They are bounded, and not secret.

use std::io::{IsTerminal as _, Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::{Guard, KeyValue, Outcome, Prefix, Store as _, Txn, person};
use schemas::keys::Key;
use schemas::names::Namespace;
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::Common;
use crate::args::kv::{KvSetArgs, KvVerb};
use crate::connect::{Connection, Marker, connect};
use crate::failure::{Exit, Failure};
use crate::output::{self, Cell, Format, Table, print};

/// The largest value, in bytes.
const MAX_OWN_BYTES: usize = 8 << 10;
/// How many values one namespace has.
const MAX_OWN_VALUES: usize = 500;

/// `reeve kv`.
pub async fn kv(common: &Common, verb: &KvVerb) -> Verdict {
    let value = match verb {
        KvVerb::Set(args) => Some(value(args)?),
        KvVerb::Get { .. } | KvVerb::Del { .. } | KvVerb::Ls { .. } => None,
    };
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let place = |name: &String| Key::Own(namespace.clone(), name.clone());
    let missing = |name: &String| {
        Failure::new(
            Exit::Failed,
            format!("there is no value `{name}` in namespace {namespace}"),
        )
        .help("`reeve kv ls` lists them; -n names another namespace")
    };
    match verb {
        KvVerb::Get { name } => {
            let found = connection.get(&place(name)).await?.ok_or_else(|| missing(name))?;
            match common.output {
                Format::Json => print(&output::json(&told(name, &found))),
                Format::Yaml => print(&output::yaml(&told(name, &found))),
                Format::Table | Format::Wide | Format::Name => raw(&found.value)?,
            }
        }
        KvVerb::Set(args) => {
            let value = value.unwrap_or_default();
            set(&connection, &marker, &namespace, args, value).await?;
            say(common, &args.name, "is set");
        }
        KvVerb::Del { names } => {
            for name in names {
                let txn = begin(&connection, &marker).delete(connection.key(&place(name)), Guard::Exists);
                match connection.store.commit(txn).await? {
                    Outcome::Committed { revision: _ } => say(common, name, "is removed"),
                    Outcome::FenceLost | Outcome::Conflict { keys: _ } => return Err(missing(name)),
                }
            }
        }
        KvVerb::Ls { beginning } => list(common, &connection, &namespace, beginning).await?,
    }
    Ok(Exit::Done)
}

fn begin(connection: &Connection, marker: &Marker) -> Txn {
    person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision))
}

/// What is to be set, within its bound.
fn value(args: &KvSetArgs) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match (&args.value, &args.file) {
        (Some(value), _) => bytes.extend_from_slice(value.as_bytes()),
        (None, Some(file)) => {
            let limit = MAX_OWN_BYTES as u64 + 1;
            let read = if file.as_os_str() == "-" {
                std::io::stdin().take(limit).read_to_end(&mut bytes)
            } else {
                std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
            };
            read.map_err(|error| Failure::usage(format!("--file: cannot read {}", file.display())).because(&error))?;
        }
        (None, None) => {}
    }
    if bytes.len() > MAX_OWN_BYTES {
        return Err(Failure::usage(format!("a value has at most {MAX_OWN_BYTES} bytes"))
            .help("put larger ones with `reeve upload`"));
    }
    Ok(bytes)
}

async fn all(connection: &Connection, namespace: &Namespace) -> Result<Vec<(String, KeyValue)>, Failure> {
    let prefix = Prefix::new(format!("{}{namespace}/", connection.root.prefix("kv")))?;
    let listing = connection.store.list(&prefix).await?;
    let named = listing
        .kvs
        .into_iter()
        .filter_map(|kv| match connection.root.parse(&kv.key) {
            Some(Key::Own(_, name)) => Some((name, kv)),
            Some(_) | None => None,
        });
    Ok(named.collect())
}

async fn set(
    connection: &Connection,
    marker: &Marker,
    namespace: &Namespace,
    args: &KvSetArgs,
    value: Vec<u8>,
) -> Result<(), Failure> {
    let place = Key::Own(namespace.clone(), args.name.clone());
    let found = connection.get(&place).await?;
    if found.is_none() && all(connection, namespace).await?.len() >= MAX_OWN_VALUES {
        return Err(Failure::new(
            Exit::Failed,
            format!("namespace {namespace} has {MAX_OWN_VALUES} values already"),
        )
        .help("remove some with `reeve kv del`"));
    }
    let exists = || {
        Failure::new(Exit::Conflict, format!("there is a value `{}` already", args.name))
            .help("without --new it is replaced")
    };
    if args.new && found.is_some() {
        return Err(exists());
    }
    let guard = if args.new { Guard::Absent } else { Guard::Any };
    let txn = begin(connection, marker).put(connection.key(&place), value, guard);
    match connection.store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(()),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } if args.new => Err(exists()),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(Failure::new(
            Exit::Conflict,
            "the cluster was changed meanwhile (`init`, a restore or a move)",
        )),
    }
}

async fn list(common: &Common, connection: &Connection, namespace: &Namespace, beginning: &str) -> Result<(), Failure> {
    let mut found = all(connection, namespace).await?;
    found.retain(|(name, _)| name.starts_with(beginning));
    if common.output.is_for_machines() {
        let values: Vec<Value> = found.iter().map(|(name, kv)| told(name, kv)).collect();
        print(&match common.output {
            Format::Name => found.iter().map(|(name, _)| format!("{name}\n")).collect(),
            Format::Yaml => output::yaml(&json!(values)),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(values)),
        });
    } else if found.is_empty() {
        print(&format!(
            "there are no such values in namespace {namespace}; `reeve kv set NAME VALUE` sets one\n"
        ));
    } else {
        let mut table = Table::new(&["NAME", "BYTES", "REVISION", "VALUE"]);
        for (name, kv) in &found {
            let text = String::from_utf8(kv.value.to_vec()).unwrap_or_else(|_| "(no text)".to_owned());
            table.row(vec![
                Cell::from(name.clone()),
                Cell::from(kv.value.len().to_string()),
                Cell::from(kv.mod_revision.to_string()),
                Cell::from(text.lines().next().unwrap_or_default().to_owned()),
            ]);
        }
        print(&table.render(output::limit_of(common.output == Format::Wide)));
    }
    Ok(())
}

/// For machines; bytes that are no text in base64.
fn told(name: &str, kv: &KeyValue) -> Value {
    let value = match std::str::from_utf8(&kv.value) {
        Ok(text) => ("value", text.to_owned()),
        Err(_) => ("base64", STANDARD.encode(&kv.value)),
    };
    json!({ "name": name, value.0: value.1, "resourceVersion": kv.mod_revision.to_string() })
}

/// As it was set; on a terminal with the end of a line.
fn raw(value: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let on_terminal = std::io::stdout().is_terminal();
    let written = if on_terminal {
        let text = String::from_utf8_lossy(value);
        let lines: Vec<String> = text.lines().map(crate::failure::printable).collect();
        out.write_all(format!("{}\n", lines.join("\n")).as_bytes())
    } else {
        out.write_all(value)
    };
    written
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(Exit::Failed, "cannot print the value").because(&error))
}

fn say(common: &Common, name: &str, what: &str) {
    match common.output {
        Format::Name => print(&format!("{name}\n")),
        Format::Json => print(&format!("{}\n", json!({ "name": name }))),
        Format::Yaml => print(&output::yaml(&json!({ "name": name }))),
        Format::Table | Format::Wide => print(&format!("{name} {what}\n")),
    }
}
