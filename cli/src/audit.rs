//! The record of what people do through `reeve`: each verb that changes something writes one document of its own,
//! `audit/<who>/<id>`, beside its work: when the cluster has been found, and again when the verb ends. `main` begins and ends
//! it, `connect` hands it the store, verbs name what they act on. It promises to hold up nothing and to fail nothing: what
//! cannot be recorded is a warning. Records hold no value, no password and no argument of a command.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtime::{EtcdStore, Guard, KeyValue, Outcome, Prefix, Store as _, chain, person};
use schemas::keys::{Key, Root};
use schemas::records::{Done, Ended, MAX_DONE_OBJECTS, Record as _, SchemaVersion};
use serde_json::json;

use trust::identity::Rights;

use crate::Verdict;
use crate::args::contexts::PersonVerb;
use crate::args::files::FilesVerb;
use crate::args::kv::KvVerb;
use crate::args::near::{ImagesVerb, OnNodes};
use crate::args::seats::TokenVerb;
use crate::args::secrets::SecretVerb;
use crate::args::{AdminVerb, AuditArgs, Common, NodeVerb, Verb};
use crate::connect::{Connection, SERVER_DIR, connect};
use crate::contexts::{self, Chosen};
use crate::edit;
use crate::failure::Exit;
use crate::output::{self, Cell, Format, Table, Tone, complain, print};

/// How long records are kept, and how many of each person.
const KEPT: Duration = Duration::from_secs(90 * 86_400);
const KEPT_RECORDS: usize = 2_000;
/// One record of so many makes its writer look for those that are too old.
const CLEANED_BY_ONE_OF: u128 = 32;
/// How long a verb waits for its record when everything else is done.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of who has no certificate of the cluster.
const NOBODY: &str = "_";

/// What this process was asked to do, where that changes something.
static ACT: Mutex<Option<Act>> = Mutex::new(None);

struct Act {
    verb: String,
    objects: Vec<String>,
    more: u64,
    who: String,
    since: Instant,
    begun: Option<Begun>,
}

/// The first writing of a record, under way.
struct Begun {
    store: EtcdStore,
    root: Root,
    key: Key,
    id: u128,
    time: String,
    writing: tokio::task::JoinHandle<Result<(), String>>,
}

fn with<T>(work: impl FnOnce(&mut Option<Act>) -> T) -> T {
    work(&mut ACT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The verb and what its arguments name, where it changes something. Documents that it reads are named by [`note`].
fn said(verb: &Verb) -> Option<(&'static str, Vec<String>)> {
    fn all<T: ToString>(kind: &str, names: &[T]) -> Vec<String> {
        names.iter().map(|name| format!("{kind}{}", name.to_string())).collect()
    }
    // Of a command its first word alone: the others may be secret.
    let on_nodes = |on: &OnNodes, command: &[String]| {
        let nodes = if on.all {
            vec!["all nodes".to_owned()]
        } else {
            all("node/", &on.nodes)
        };
        nodes.into_iter().chain(command.first().cloned()).collect()
    };
    let none = Vec::new;
    Some(match verb {
        Verb::Apply(_) => ("apply", none()),
        Verb::Delete(_) => ("delete", none()),
        Verb::Scale(args) => ("scale", vec![format!("service/{}", args.service)]),
        Verb::Upload(_) => ("upload", none()),
        Verb::Files(args) => match &args.verb {
            Some(FilesVerb::Undo(_)) => ("files undo", none()),
            Some(FilesVerb::Prune(args)) if !args.dry_run => ("files prune", none()),
            Some(FilesVerb::Prune(_)) | None => return None,
        },
        Verb::Secret(verb) => match verb {
            SecretVerb::Set(args) => ("secret set", all("secret/", std::slice::from_ref(&args.name))),
            SecretVerb::Rm(args) => ("secret rm", all("secret/", &args.names)),
            SecretVerb::Undo(args) => ("secret undo", all("secret/", std::slice::from_ref(&args.name))),
            SecretVerb::Ls(_) => return None,
        },
        Verb::Login(args) => ("login", vec![args.registry.clone()]),
        Verb::Logout(args) => ("logout", vec![args.registry.clone()]),
        Verb::Cordon(args) => ("cordon", all("node/", &args.nodes)),
        Verb::Uncordon(args) => ("uncordon", all("node/", &args.nodes)),
        Verb::Drain(args) => ("drain", all("node/", &args.nodes)),
        Verb::Node(NodeVerb::Rm(args)) => ("node rm", all("node/", &args.nodes)),
        Verb::Node(NodeVerb::Replace(args)) => ("node replace", vec![format!("node/{}", args.node)]),
        Verb::Admin(verb) => match verb {
            AdminVerb::Ack { digest } => ("admin ack", vec![digest.clone()]),
            AdminVerb::AcceptStore(_) => ("admin accept-store", none()),
            AdminVerb::RemoveOrphan(args) => (
                "admin remove-orphan",
                vec![format!("{} on node/{}", args.instance, args.node)],
            ),
            AdminVerb::MigrateStore(_) => ("admin migrate-store", none()),
            AdminVerb::RotateAuthority(args) if args.status => return None,
            AdminVerb::RotateAuthority(args) => ("admin rotate-authority", all("node/", &args.without)),
        },
        Verb::Token(verb) => match verb {
            TokenVerb::Create(args) => (
                "token create",
                match (&args.person, &args.rights) {
                    (Some(person), Some(rights)) => vec![format!("person/{person} ({rights})")],
                    _ => all("node/", &args.nodes),
                },
            ),
            TokenVerb::Rm { ids } => ("token rm", all("", ids)),
            TokenVerb::Install | TokenVerb::Ls => return None,
        },
        Verb::Kv(KvVerb::Set(args)) => ("kv set", vec![args.name.clone()]),
        Verb::Kv(KvVerb::Del { names }) => ("kv del", names.clone()),
        Verb::Kv(KvVerb::Get { .. } | KvVerb::Ls { .. }) => return None,
        Verb::Person(PersonVerb::Rm(args)) => ("person rm", all("person/", &args.names)),
        Verb::Person(PersonVerb::Ls) => return None,
        Verb::Node(NodeVerb::Exec(args)) => ("node exec", on_nodes(&args.on, &args.command)),
        Verb::Docker(args) => ("docker", on_nodes(&args.on, &args.command)),
        // Of a command its first word alone: the others may be secret.
        Verb::Exec(args) => (
            "exec",
            vec![args.what.clone(), args.command.first().cloned().unwrap_or_default()],
        ),
        Verb::Attach(args) => ("attach", vec![args.what.clone()]),
        Verb::Cp(args) => ("cp", vec![args.from.clone(), args.to.clone()]),
        Verb::PortForward(args) => ("port-forward", vec![args.what.clone()]),
        Verb::Images(args) => match &args.verb {
            Some(ImagesVerb::Rm(args)) => ("images rm", args.images.clone()),
            Some(ImagesVerb::Prune(args)) if !args.dry_run => ("images prune", none()),
            Some(ImagesVerb::Prune(_)) | None => return None,
        },
        // They look, or are about this machine alone.
        Verb::Init
        | Verb::Plan(_)
        | Verb::Get(_)
        | Verb::Describe(_)
        | Verb::Download(_)
        | Verb::Registries(_)
        | Verb::Validate(_)
        | Verb::Explain(_)
        | Verb::Schema(_)
        | Verb::Status(_)
        | Verb::Events(_)
        | Verb::Audit(_)
        | Verb::Logs(_)
        | Verb::Top(_)
        | Verb::Version
        | Verb::Completion { shell: _ }
        | Verb::LoginCluster(_)
        | Verb::Context(_)
        | Verb::Doctor(_)
        | Verb::Install(_)
        | Verb::Uninstall(_)
        | Verb::Controller(_)
        | Verb::Agent(_)
        | Verb::Up(_)
        | Verb::Server(_) => return None,
    })
}

/// Whose part of the records this process writes to: by the certificate that it shows. None: who only looks writes none.
fn who(common: &Common) -> Option<String> {
    Some(match contexts::chosen(common) {
        Ok(Chosen::Context(place)) => match place.person() {
            Some((_, Rights::Viewer)) => return None,
            Some((person, _)) => format!("person.{person}"),
            None => NOBODY.to_owned(),
        },
        Ok(Chosen::Here) => {
            let dir = common.data_dir.clone().unwrap_or_else(|| SERVER_DIR.into());
            // Where `reeve up` runs beside a seed's directory, the first is meant.
            let up = common.data_dir.clone().unwrap_or_else(crate::connect::default_data_dir);
            let seed = !up.join(crate::connect::ENDPOINT_FILE).exists() && dir.join("person.crt").exists();
            if seed {
                "person.root".to_owned()
            } else {
                NOBODY.to_owned()
            }
        }
        Ok(Chosen::Told) | Err(_) => NOBODY.to_owned(),
    })
}

/// Keeps in mind what this process was asked to do.
pub fn expect(common: &Common, verb: &Verb) {
    let Some((verb, objects)) = said(verb) else { return };
    let Some(who) = who(common) else { return };
    let act = Act {
        verb: verb.to_owned(),
        objects: Vec::new(),
        more: 0,
        who,
        since: Instant::now(),
        begun: None,
    };
    with(|current| *current = Some(act));
    objects.into_iter().for_each(note);
}

/// Names something that is acted on.
pub fn note(object: impl Into<String>) {
    let object = output::cut(&crate::failure::printable(&object.into()), 200);
    with(|act| {
        let Some(act) = act else { return };
        if act.objects.contains(&object) {
            return;
        }
        if act.objects.len() < MAX_DONE_OBJECTS {
            act.objects.push(object);
        } else {
            act.more += 1;
        }
    });
}

impl Act {
    fn record(&self, time: String, ended: Option<Ended>) -> Done {
        Done {
            schema_version: SchemaVersion::default(),
            time,
            by: edit::person(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            verb: self.verb.clone(),
            objects: self.objects.clone(),
            more: self.more,
            ended,
        }
    }
}

/// Writes that it begins, beside what the verb does meanwhile. The store is there.
pub fn begin(connection: &Connection) {
    with(|act| {
        let Some(act) = act.as_mut().filter(|act| act.begun.is_none()) else {
            return;
        };
        let now = jiff::Timestamp::now();
        let millis = u128::try_from(now.as_millisecond()).unwrap_or_default();
        let id = millis << 16 | u128::from(std::process::id() & 0xffff);
        let key = Key::Audit(act.who.clone(), format!("{millis:013}-{:04x}", id & 0xffff));
        let time = now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let (store, place) = (connection.store.clone(), connection.key(&key));
        let value = act.record(time.clone(), None).encode();
        let writing = tokio::spawn(async move { put(&store, place, value, Guard::Absent).await });
        act.begun = Some(Begun {
            store: connection.store.clone(),
            root: connection.root.clone(),
            key,
            id,
            time,
            writing,
        });
    });
}

async fn put(store: &EtcdStore, key: Vec<u8>, value: Vec<u8>, guard: Guard) -> Result<(), String> {
    match store.commit(person::txn().put(key, value, guard)).await {
        Ok(Outcome::Committed { revision: _ }) => Ok(()),
        Ok(Outcome::FenceLost | Outcome::Conflict { keys: _ }) => Err("another wrote the same record".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// Writes how it ended. Where the verb itself was denied, so is this, and nothing is said of it.
pub async fn end(exit_code: u8, denied: bool) {
    let Some(mut act) = with(Option::take) else { return };
    let Some(begun) = act.begun.take() else { return };
    let Begun {
        store,
        root,
        key,
        id,
        time,
        writing,
    } = begun;
    let ended = Ended {
        exit_code,
        millis: u64::try_from(act.since.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    let value = act.record(time, Some(ended)).encode();
    let work = async {
        writing.await.map_err(|error| error.to_string())??;
        put(&store, root.key(&key).into_bytes(), value, Guard::Any).await?;
        if id % CLEANED_BY_ONE_OF == 0 {
            clean(&store, &root, &act.who).await;
        }
        Ok(())
    };
    let why: String = match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(_) => "the store does not answer".to_owned(),
    };
    if !denied {
        complain(&format!("warning: this is not in the audit record: {why}\n"));
    }
}

/// When a record began, by its id.
fn began(id: &str) -> Option<u128> {
    id.split_once('-')?.0.parse().ok()
}

/// The records of one writer that are too old, or too many; oldest first.
fn too_old(kvs: &[KeyValue], now: u128) -> Vec<Vec<u8>> {
    let id = |key: &[u8]| {
        let text = String::from_utf8_lossy(key).into_owned();
        began(text.rsplit('/').next().unwrap_or_default()).unwrap_or(0)
    };
    let mut all: Vec<(u128, &[u8])> = kvs.iter().map(|kv| (id(&kv.key), &*kv.key)).collect();
    all.sort_unstable();
    let over = all.len().saturating_sub(KEPT_RECORDS);
    let last = now.saturating_sub(KEPT.as_millis());
    let gone = all
        .iter()
        .enumerate()
        .filter(|(at, (began, _))| *at < over || *began < last);
    gone.map(|(_, (_, key))| key.to_vec()).collect()
}

async fn clean(store: &EtcdStore, root: &Root, who: &str) {
    let Ok(prefix) = Prefix::new(format!("{}{who}/", root.prefix("audit"))) else {
        return;
    };
    let Ok(listing) = store.list(&prefix).await else { return };
    let now = u128::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let gone = too_old(&listing.kvs, now);
    let txn = gone
        .into_iter()
        .take(100)
        .fold(person::txn(), |txn, key| txn.delete(key, Guard::Any));
    if !txn.is_empty() {
        // The next one does what this one cannot.
        let _ = store.commit(txn).await;
    }
}

// ---- reeve audit -----------------------------------------------------------------------------------------------------

/// One record, and what its place says.
struct Found {
    /// The person, by the part of the records that its own certificate may write.
    person: Option<String>,
    id: String,
    revision: i64,
    record: Done,
}

impl Found {
    fn who(&self) -> String {
        match &self.person {
            Some(person) => person.clone(),
            None => format!("{} (told)", self.record.by),
        }
    }

    fn result(&self) -> (String, Tone) {
        match self.record.ended {
            None => ("not known".to_owned(), Tone::Busy),
            Some(Ended {
                exit_code: 0,
                millis: _,
            }) => ("done".to_owned(), Tone::Good),
            Some(Ended { exit_code, millis: _ }) => (format!("exit {exit_code}"), Tone::Bad),
        }
    }

    fn objects(&self) -> String {
        let named = self.record.objects.join(" ");
        match self.record.more {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }

    fn value(&self) -> serde_json::Value {
        let Done {
            schema_version: _,
            time,
            by,
            release,
            verb,
            objects,
            more,
            ended,
        } = &self.record;
        json!({
            "id": self.id, "time": time, "who": self.person.as_ref().unwrap_or(by), "byCertificate": self.person.is_some(), "by": by,
            "verb": verb, "objects": objects, "more": more, "exitCode": ended.map(|ended| ended.exit_code),
            "millis": ended.map(|ended| ended.millis), "release": release,
        })
    }
}

/// `reeve audit`.
pub async fn audit(common: &Common, args: &AuditArgs) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let listing = connection.class("audit").await?;
    let last = jiff::Timestamp::now().as_millisecond() - i64::try_from(args.since.as_millis()).unwrap_or(i64::MAX);
    let mut unreadable = 0;
    let mut all = Vec::new();
    for kv in &listing.kvs {
        let Some(Key::Audit(who, id)) = connection.root.parse(&kv.key) else {
            continue;
        };
        let Ok(record) = Done::decode(&kv.value) else {
            unreadable += 1;
            continue;
        };
        if began(&id).is_some_and(|began| i64::try_from(began).is_ok_and(|began| began >= last)) {
            all.push(Found {
                person: who.strip_prefix("person.").map(str::to_owned),
                id,
                revision: kv.create_revision,
                record,
            });
        }
    }
    all.retain(|found| args.by.as_ref().is_none_or(|by| found.who().contains(by.as_str())));
    // As the store took them: the only order that holds across machines.
    all.sort_by_key(|found| found.revision);
    if common.output.is_for_machines() {
        let values: Vec<serde_json::Value> = all.iter().map(Found::value).collect();
        print(&match common.output {
            Format::Name => all.iter().map(|found| format!("{}\n", found.id)).collect(),
            Format::Yaml => output::yaml(&json!(values)),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(values)),
        });
        return Ok(Exit::Done);
    }
    if unreadable > 0 {
        complain(&format!(
            "warning: {} of another release cannot be read\n",
            output::count(unreadable, "record")
        ));
    }
    if all.is_empty() {
        print("nothing is recorded in that time; --since 90d looks at all that is kept\n");
        return Ok(Exit::Done);
    }
    let wide = common.output == Format::Wide;
    let mut head = vec!["TIME", "WHO", "VERB", "RESULT", "WHAT"];
    if wide {
        head.extend(["BY", "RELEASE", "ID"]);
    }
    let mut table = Table::new(&head);
    for found in &all {
        let (result, tone) = found.result();
        let time = found.record.time.get(..19).unwrap_or_default().replace('T', " ");
        let mut row = vec![
            Cell::from(time),
            Cell::from(found.who()),
            Cell::from(found.record.verb.clone()),
            Cell::new(result, tone),
            Cell::from(found.objects()),
        ];
        if wide {
            let more = [found.record.by.clone(), found.record.release.clone(), found.id.clone()];
            row.extend(more.map(Cell::from));
        }
        table.row(row);
    }
    print(&table.render(output::limit_of(wide)));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn named(args: &[&str]) -> Option<(&'static str, Vec<String>)> {
        let cli = Cli::try_parse_from(args).expect("a command line");
        said(&cli.verb.expect("a verb"))
    }

    #[test]
    fn what_changes_something_is_recorded_and_what_looks_is_not() {
        let (verb, objects) = named(&["reeve", "node", "rm", "n1", "n2", "--yes"]).expect("it changes something");
        assert_eq!(
            (verb, objects),
            ("node rm", vec!["node/n1".to_owned(), "node/n2".to_owned()])
        );
        for looks in [
            &["reeve", "get", "services"][..],
            &["reeve", "plan", "-f", "x"],
            &["reeve", "images", "prune", "--dry-run"],
            &["reeve", "token", "ls"],
            &["reeve", "audit"],
        ] {
            assert_eq!(named(looks), None, "{looks:?}");
        }
    }

    #[test]
    fn no_argument_of_a_command_is_recorded() {
        let (_, objects) = named(&["reeve", "exec", "web.1", "--", "mysql", "-psecret"]).expect("it is recorded");
        assert_eq!(objects, ["web.1", "mysql"]);
    }

    #[test]
    fn old_records_go_and_so_do_the_oldest_of_too_many() {
        let day = 86_400_000;
        let now = 200 * day;
        let kv = |began: u128| KeyValue {
            key: format!("/reeve/audit/_/{began:013}-00ff").into_bytes(),
            value: bytes::Bytes::new(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        };
        assert_eq!(too_old(&[kv(now), kv(now - 89 * day)], now).len(), 0);
        assert_eq!(too_old(&[kv(now), kv(now - 91 * day)], now), [kv(now - 91 * day).key]);
        let many: Vec<KeyValue> = (0..KEPT_RECORDS as u128 + 3).map(|n| kv(now - n)).collect();
        let gone = too_old(&many, now);
        assert_eq!(gone.len(), 3);
        assert!(gone.contains(&kv(now - KEPT_RECORDS as u128 - 2).key));
    }
}
