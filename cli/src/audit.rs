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

use trust::identity::{Rights, Runs};

use crate::Verdict;
use crate::args::contexts::PersonVerb;
use crate::args::files::FilesVerb;
use crate::args::kv::KvVerb;
use crate::args::near::{ImagesVerb, OnNodes};
use crate::args::network::NetworkVerb;
use crate::args::seats::TokenVerb;
use crate::args::secrets::SecretVerb;
use crate::args::seen::ExposeArgs;
use crate::args::virtual_ip::VirtualIpVerb;
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
/// The same where a member of the store has just gone.
const PATIENCE_OF_A_SEED: Duration = Duration::from_secs(10);
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
    let exposed = |args: &ExposeArgs| match (args.all_nodes, args.node.as_slice()) {
        (true, _) => vec!["all nodes".to_owned()],
        (false, []) => vec!["this node".to_owned()],
        (false, nodes) => all("node/", nodes),
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
        Verb::Node(NodeVerb::ConfirmLost(args)) => ("node confirm-lost", all("node/", &args.nodes)),
        Verb::Node(NodeVerb::Replace(args)) => ("node replace", vec![format!("node/{}", args.node)]),
        Verb::Network(NetworkVerb::Create(args)) => ("network create", vec![args.cidr.to_string()]),
        Verb::Network(NetworkVerb::RotateKeys(args)) => ("network rotate-keys", exposed(args)),
        Verb::Network(NetworkVerb::Status) | Verb::Lookup(_) | Verb::Trace(_) => return None,
        Verb::Expose(args) => ("expose", exposed(args)),
        Verb::Hide(args) => ("hide", exposed(args)),
        Verb::VirtualIp(VirtualIpVerb::Move(args)) => ("virtualip move", vec![format!("virtualip/{}", args.name)]),
        Verb::Admin(verb) => match verb {
            AdminVerb::Ack { digest } => ("admin ack", vec![digest.clone()]),
            AdminVerb::AcceptStore(_) => ("admin accept-store", none()),
            AdminVerb::Backup(_) => ("admin backup", none()),
            AdminVerb::Rebuild(_) => ("admin rebuild", none()),
            AdminVerb::Restore(_) => ("admin restore", none()),
            AdminVerb::RemoveOrphan(args) => (
                "admin remove-orphan",
                vec![format!("{} on node/{}", args.instance, args.node)],
            ),
            AdminVerb::MigrateStore(_) => ("admin migrate-store", none()),
            AdminVerb::Etcdctl(args) => (
                "admin etcdctl",
                // Its verb alone: values may be secret, and so may be what a flag says.
                args.args
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .take_while(|word| !word.starts_with('-'))
                    .take(2)
                    .collect(),
            ),
            AdminVerb::RotateAuthority(args) if args.status => return None,
            AdminVerb::RotateAuthority(args) => ("admin rotate-authority", all("node/", &args.without)),
        },
        Verb::Token(verb) => match verb {
            TokenVerb::Create(args) => (
                "token create",
                match (&args.seed, &args.person, &args.rights) {
                    (Some(host), ..) => vec![format!("seed/{host}")],
                    (None, Some(person), Some(rights)) => vec![format!("person/{person} ({rights})")],
                    (None, ..) => all("node/", &args.nodes),
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
        Verb::Node(NodeVerb::Copy(_)) => return None,
        Verb::Node(NodeVerb::Exec(args)) => ("node exec", on_nodes(&args.on, &args.command)),
        Verb::Docker(args) => ("docker", on_nodes(&args.on, &args.command)),
        // Of a command its first word alone: the others may be secret.
        Verb::Exec(args) => (
            "exec",
            vec![args.what.clone(), args.command.first().cloned().unwrap_or_default()],
        ),
        // Where it ran is named when that is known; values of parameters are not.
        Verb::Run(args) => match &args.name {
            Some(name) => ("run", vec![format!("command/{name}")]),
            None => return None,
        },
        Verb::Attach(args) => ("attach", vec![args.what.clone()]),
        Verb::Cp(args) => ("cp", vec![args.from.clone(), args.to.clone()]),
        Verb::PortForward(args) => ("port-forward", vec![args.what.clone()]),
        Verb::Images(args) => match &args.verb {
            Some(ImagesVerb::Rm(args)) => ("images rm", args.images.clone()),
            Some(ImagesVerb::Prune(args)) if !args.dry_run => ("images prune", none()),
            Some(ImagesVerb::Prune(_)) | None => return None,
        },
        Verb::Init(_) => ("init", none()),
        // Of a seed by itself; a node's host has no right to write here, and the seed that lets it in or out does.
        Verb::Install(args) if !args.dry_run && !args.status && !args.supervise => ("install", none()),
        Verb::Uninstall(_) => ("uninstall", none()),
        // They look, are about this machine alone, or are recorded by the seed that they ask.
        Verb::Plan(_)
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
        | Verb::Controller(_)
        | Verb::Agent(_)
        | Verb::Up(_)
        | Verb::Server(_)
        | Verb::Names(_)
        | Verb::Relay(_)
        | Verb::Wireguard(_) => return None,
    })
}

/// Whose part of the records this process writes to: by the certificate that it shows. None: who only looks writes none.
fn who(common: &Common) -> Option<String> {
    Some(match contexts::chosen(common) {
        Ok(Chosen::Context(place)) => match place.person() {
            Some((_, Rights::Viewer(Runs::Nowhere))) => return None,
            Some((person, _)) => format!("person.{person}"),
            None => NOBODY.to_owned(),
        },
        Ok(Chosen::Here) => {
            // What `reeve install` was told to keep everything in has the seed's in a directory of its own.
            let dirs = match &common.data_dir {
                Some(dir) => vec![dir.clone(), dir.join("server")],
                None => vec![SERVER_DIR.into()],
            };
            // Where `reeve up` runs beside a seed's directory, the first is meant.
            let up = common.data_dir.clone().unwrap_or_else(crate::connect::default_data_dir);
            let seed = !up.join(crate::connect::ENDPOINT_FILE).exists()
                && dirs.iter().any(|dir| dir.join("person.crt").exists());
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

/// Begins the record of an act by which this host itself comes or goes: whose it is shows only now, and the store may be out of
/// reach, which then says nothing against the act.
pub async fn begin_here(common: &Common) {
    let here = Common {
        context: contexts::HERE.parse().ok(),
        ..common.clone()
    };
    let who = who(&here).filter(|who| who != NOBODY);
    let seed = who.is_some();
    // Of a node's host, the seed that it asks writes it.
    with(|act| match who {
        Some(who) => act.iter_mut().for_each(|act| act.who.clone_from(&who)),
        None => *act = None,
    });
    let begun = async { connect(&here).await?.marker().await };
    if seed && !matches!(tokio::time::timeout(PATIENCE, begun).await, Ok(Ok(_))) {
        complain("warning: this is not in the audit record: the store does not answer\n");
    }
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
    end_within(PATIENCE, false, exit_code, denied).await;
}

/// The same for who has just taken a member out of the store: the others may choose a leader meanwhile, so it is tried again.
pub async fn end_of_a_seed() {
    end_within(PATIENCE_OF_A_SEED, true, 0, false).await;
}

async fn end_within(patience: Duration, again: bool, exit_code: u8, denied: bool) {
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
        let place = root.key(&key).into_bytes();
        while let Err(why) = put(&store, place.clone(), value.clone(), Guard::Any).await {
            if !again {
                return Err(why);
            }
            tokio::time::sleep(PATIENCE_OF_A_SEED / 50).await;
        }
        if id % CLEANED_BY_ONE_OF == 0 {
            clean(&store, &root, &act.who).await;
        }
        Ok(())
    };
    let why: String = match tokio::time::timeout(patience, work).await {
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
    /// By the part of the records that it is in: a person, `anna`, or a host that a seed wrote for, `node/n1`. None: he says so.
    proven: Option<String>,
    id: String,
    revision: i64,
    record: Done,
}

impl Found {
    fn who(&self) -> String {
        match &self.proven {
            Some(who) => who.clone(),
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
            "id": self.id, "time": time, "who": self.proven.as_ref().unwrap_or(by), "byCertificate": self.proven.is_some(), "by": by,
            "verb": verb, "objects": objects, "more": more, "exitCode": ended.map(|ended| ended.exit_code),
            "millis": ended.map(|ended| ended.millis), "release": release,
        })
    }
}

/// Whose part of the records it is, where a certificate was needed to write there.
fn proven(part: &str) -> Option<String> {
    match part.split_once('.')? {
        ("person", name) => Some(name.to_owned()),
        (role @ ("node" | "server"), name) => Some(format!("{role}/{name}")),
        _ => None,
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
                proven: proven(&who),
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
        let run = ["reeve", "run", "flush", "--param", "key=secret", "--", "secret"];
        let (_, objects) = named(&run).expect("it is recorded");
        assert_eq!(objects, ["command/flush"]);
    }

    /// Where it is audited that somebody did this.
    enum Audited {
        /// By the command itself, under `audit/<who>/`, for such a command line.
        Itself(&'static str),
        /// By the seed that it asks, in the name of who asked, as this verb; where nobody is asked, as here.
        Seed(&'static str),
        /// It changes nothing.
        Looks,
        /// It changes this machine alone: nothing that others share.
        Machine,
        /// A program that runs for long: what it does follows from what was declared, which is recorded; that a host comes and
        /// goes, seeds record.
        Program,
    }
    use Audited::{Itself, Looks, Machine, Program, Seed};

    /// Every verb.
    const VERBS: &[(&str, Audited)] = &[
        ("init", Itself("init")),
        ("controller", Program),
        ("agent", Program),
        ("up", Program),
        ("server", Program),
        ("wireguard", Program),
        ("names", Program),
        ("relay", Program),
        // Of a node; of a seed it is by itself, too.
        ("install", Itself("install --seeds a")),
        ("doctor", Looks),
        ("uninstall", Itself("uninstall")),
        ("token install", Machine),
        ("token create", Itself("token create --person anna --rights viewer")),
        ("token ls", Looks),
        ("token rm", Itself("token rm 0123456789abcdef")),
        ("login-cluster", Seed("login-cluster")),
        ("context ls", Looks),
        ("context use", Machine),
        ("context show", Looks),
        ("context rm", Machine),
        ("person ls", Looks),
        ("person rm", Itself("person rm anna")),
        ("apply", Itself("apply -f x")),
        ("plan", Looks),
        ("get", Looks),
        ("describe", Looks),
        ("delete", Itself("delete service web")),
        ("upload", Itself("upload x")),
        ("download", Looks),
        ("files", Looks),
        ("files undo", Itself("files undo x")),
        ("files prune", Itself("files prune")),
        ("secret set", Itself("secret set x")),
        ("secret ls", Looks),
        ("secret rm", Itself("secret rm x")),
        ("secret undo", Itself("secret undo x")),
        ("login", Itself("login r.example")),
        ("logout", Itself("logout r.example")),
        ("registries", Looks),
        ("registries tags", Looks),
        ("registries search", Looks),
        ("network create", Itself("network create")),
        ("network status", Looks),
        ("network rotate-keys", Itself("network rotate-keys --node n1")),
        ("lookup", Looks),
        ("trace", Looks),
        ("expose", Itself("expose --node n1")),
        ("hide", Itself("hide --all-nodes")),
        ("virtualip move", Itself("virtualip move web --to n1")),
        ("validate", Looks),
        ("explain", Looks),
        ("schema", Looks),
        ("status", Looks),
        ("events", Looks),
        ("kv get", Looks),
        ("kv set", Itself("kv set a b")),
        ("kv ls", Looks),
        ("kv del", Itself("kv del a")),
        ("audit", Looks),
        ("logs", Looks),
        ("exec", Itself("exec web.1 -- x")),
        ("run", Itself("run x")),
        ("docker", Itself("docker --all -- ps")),
        ("attach", Itself("attach web.1")),
        ("top", Looks),
        ("images", Looks),
        ("images rm", Itself("images rm x")),
        ("images prune", Itself("images prune")),
        ("cp", Itself("cp a web.1:/a")),
        ("port-forward", Itself("port-forward web.1 80")),
        ("scale", Itself("scale web=1")),
        ("cordon", Itself("cordon n1")),
        ("uncordon", Itself("uncordon n1")),
        ("drain", Itself("drain n1")),
        ("node rm", Itself("node rm n1")),
        ("node confirm-lost", Itself("node confirm-lost n1")),
        ("node replace", Itself("node replace n1")),
        ("node copy", Looks),
        ("node exec", Itself("node exec --all -- x")),
        ("admin ack", Itself("admin ack x")),
        ("admin remove-orphan", Itself("admin remove-orphan n1 web.1")),
        ("admin accept-store", Itself("admin accept-store")),
        ("admin backup", Itself("admin backup x")),
        ("admin rebuild", Itself("admin rebuild x")),
        ("admin restore", Itself("admin restore x")),
        ("admin migrate-store", Itself("admin migrate-store --to http://a")),
        ("admin rotate-authority", Itself("admin rotate-authority")),
        ("admin etcdctl", Itself("admin etcdctl member list")),
        ("version", Looks),
        ("completion", Looks),
    ];

    #[test]
    fn of_every_verb_it_is_known_where_it_is_audited() {
        use clap::CommandFactory as _;
        fn walk(verb: &clap::Command, path: &str, all: &mut Vec<String>) {
            for sub in verb.get_subcommands() {
                let name = format!("{path} {}", sub.get_name()).trim().to_owned();
                // A verb that is one by itself, too.
                if !sub.is_subcommand_required_set() {
                    all.push(name.clone());
                }
                walk(sub, &name, all);
            }
        }
        let mut all = Vec::new();
        walk(&Cli::command(), "", &mut all);
        let mut known: Vec<&str> = VERBS.iter().map(|(verb, _)| *verb).collect();
        let unknown: Vec<&String> = all.iter().filter(|verb| !known.contains(&verb.as_str())).collect();
        assert!(unknown.is_empty(), "where are these audited? {unknown:?}");
        known.retain(|verb| !all.iter().any(|one| one == verb));
        assert!(known.is_empty(), "these are no verbs: {known:?}");
        for (verb, audited) in VERBS {
            match audited {
                Itself(line) => {
                    let words = std::iter::once("reeve").chain(line.split(' ')).collect::<Vec<_>>();
                    let (said, _) = named(&words).unwrap_or_else(|| panic!("`reeve {line}` is recorded nowhere"));
                    assert_eq!(said, *verb, "`reeve {line}`");
                }
                Seed(told) => {
                    let seeds = include_str!("../../membership/src/port.rs");
                    assert!(seeds.contains(&format!("\"{told}\"")), "no seed records `{told}`");
                }
                Looks | Machine | Program => {}
            }
        }
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
