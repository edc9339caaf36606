//! `reeve login`, `logout` and `registries`: accounts of registries. A password is asked of the registry before it is kept,
//! sealed for the controllers before it leaves this process, and printed by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::sync::Arc;

use controller::presence::Presence;
use planner::cluster::{LoginName, login as login_for};
use runtime::{Guard, KeyValue};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use schemas::admit::{Admitted, admit_stored};
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::{Document, Kind};
use schemas::meta::API_VERSION;
use schemas::names::ResourceName;
use schemas::records::{FailingReason, Record, SchemaVersion, Sealed, SealedValue};
use schemas::registry::{
    Account, MAX_ACCOUNTS, MAX_PASSWORD_BYTES, RegistrySpec, is_registry, resource_name, sealed_as,
};
use serde_json::{Value, json};
use trust::publish::{Believed, Holder};
use trust::seal::{Context, Envelope, MAX_READERS, Reader};
use zeroize::Zeroizing;

use crate::Verdict;
use crate::args::Common;
use crate::args::registry::{LoginArgs, LogoutArgs, RegistriesArgs, RegistriesVerb};
use crate::connect::{Connection, Marker, connect};
use crate::describe;
use crate::edit::{self, Beside, Edit, Then};
use crate::failure::{Exit, Failure, printable};
use crate::output::{self, Cell, Format, Table, Tone, complain, print};
use crate::rows;
use crate::sealing;
use crate::seats::server_dir;
use crate::view::{Instance, View, registry_key, title};

mod ask;
mod browse;

use ask::{Answer, Way, ask};

// ---- in and out -------------------------------------------------------------------------------------------------------

/// A Registry as it is declared.
struct Found {
    key: ResourceKey,
    spec: RegistrySpec,
    admitted: Option<Admitted>,
}

/// `reeve login`.
pub async fn login(common: &Common, args: &LoginArgs) -> Verdict {
    let registry = named(&args.registry)?;
    let user = match &args.user {
        Some(user) => user.clone(),
        None if args.password_stdin => {
            return Err(Failure::usage("--password-stdin needs --user").help("the password is all that is read"));
        }
        None => asked("User: ")?,
    };
    if user.is_empty() || user.len() > 256 || user.contains(':') || user.chars().any(char::is_control) {
        return Err(Failure::usage(format!("`{}` is not a user's name", printable(&user)))
            .help("write it without `:`; a password is never an argument, `reeve login` asks for it"));
    }
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let mut found = find(&connection, &registry).await?;
    found.spec.insecure |= args.insecure;
    // Whom to seal for is known before anybody types a password.
    let readers = readers(common, &connection, &marker).await?;
    let password = if args.password_stdin {
        from_stdin()?
    } else {
        password(&format!("Password of {user} at {registry}: "))?
    };
    let way = Way {
        registry: &registry,
        insecure: found.spec.insecure,
        ca: args.registry_ca.as_deref(),
    };
    let answer = ask(&way, &user, &password).await.map_err(|error| {
        let remedy = error.remedy(&registry);
        Failure::new(Exit::Failed, format!("cannot {error}; nothing was saved"))
            .because(&error)
            .help(remedy)
    })?;
    let (before, sealed) = sealed(&connection, &found.key).await?;
    let (text, edition) = sealed_again(&marker, &registry, &user, &password, sealed, &readers)?;
    let before_account = found.spec.accounts.iter().position(|account| account.user == user);
    let at = before_account.unwrap_or_else(|| {
        found.spec.accounts.push(Account::new(&user));
        found.spec.accounts.len() - 1
    });
    if found.spec.accounts.len() > MAX_ACCOUNTS {
        return Err(
            Failure::new(Exit::Failed, format!("{registry} has {MAX_ACCOUNTS} accounts already"))
                .help("log out of one with `reeve logout`"),
        );
    }
    if let Some(account) = found.spec.accounts.get_mut(at) {
        if !args.images.is_empty() {
            account.images.clone_from(&args.images);
        }
        if !args.namespaces.is_empty() {
            account.namespaces.clone_from(&args.namespaces);
        }
    }
    write(&connection, &marker, &found, Some((text, before))).await?;
    if common.output.is_for_machines() {
        let value = json!({ "registry": registry, "user": user, "resource": found.key.name, "edition": edition });
        print(&machine(common.output, &value, &format!("registry/{}", found.key.name)));
        return Ok(Exit::Done);
    }
    if answer == Answer::AsksNobody {
        complain(&format!(
            "{registry} asks nobody for a name: whether the password is right is not known\n"
        ));
    }
    print(&format!(
        "logged in to {registry} as {user}; the next pull on every node uses it\n"
    ));
    Ok(Exit::Done)
}

/// `reeve logout`.
pub async fn logout(common: &Common, args: &LogoutArgs) -> Verdict {
    let registry = named(&args.registry)?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let mut found = find(&connection, &registry).await?;
    let users: Vec<String> = found.spec.accounts.iter().map(|account| account.user.clone()).collect();
    let user = match (&args.user, users.as_slice()) {
        (Some(user), users) if users.contains(user) => user.clone(),
        (None, [only]) => only.clone(),
        (Some(user), _) => {
            return Err(Failure::new(
                Exit::Failed,
                format!("nobody is logged in to {registry} as `{}`", printable(user)),
            )
            .help("list accounts with `reeve registries`"));
        }
        (None, []) => {
            return Err(Failure::new(Exit::Failed, format!("nobody is logged in to {registry}"))
                .help("list accounts with `reeve registries`"));
        }
        (None, several) => {
            return Err(
                Failure::usage(format!("{registry} has several accounts: {}", several.join(", ")))
                    .help("say which one with --user"),
            );
        }
    };
    found.spec.accounts.retain(|account| account.user != user);
    let (before, mut sealed) = sealed(&connection, &found.key).await?;
    let there = sealed.values.remove(&user).is_some();
    write(&connection, &marker, &found, there.then(|| (sealed.encode(), before))).await?;
    if common.output.is_for_machines() {
        let value = json!({ "registry": registry, "user": user, "resource": found.key.name });
        print(&machine(common.output, &value, &format!("registry/{}", found.key.name)));
    } else {
        print(&format!(
            "logged out of {registry} as {user}: its password is deleted\n"
        ));
    }
    Ok(Exit::Done)
}

/// The registry as images name it; what people paste is told from it.
fn named(text: &str) -> Result<String, Failure> {
    if is_registry(text) {
        return Ok(text.to_owned());
    }
    let near = text.split_once("://").map_or(text, |(_, rest)| rest);
    let near = near.split('/').next().unwrap_or_default();
    let failure = Failure::usage(format!("`{}` is not a registry as images name it", printable(text)));
    Err(if is_registry(near) {
        failure.help(format!("write `reeve login {near}`"))
    } else {
        failure.help("write `host.domain` or `host:port`; docker.io is Docker's own")
    })
}

/// The Registry for a name: as it is declared, or one to make.
async fn find(connection: &Connection, registry: &str) -> Result<Found, Failure> {
    let view = View::read(connection, &["desired"]).await?;
    for (key, declared) in view.declared.iter().filter(|(key, _)| key.kind == Kind::Registry) {
        if let Ok(admitted) = &declared.admitted
            && let Document::Registry(document) = &admitted.document
            && document.spec.registry.eq_ignore_ascii_case(registry)
        {
            return Ok(Found {
                key: key.clone(),
                spec: document.spec.clone(),
                admitted: Some(admitted.clone()),
            });
        }
    }
    let name = resource_name(registry).ok_or_else(|| {
        Failure::usage(format!("no resource can be named after {registry}")).help("declare it with `reeve apply`")
    })?;
    let free = |name: &ResourceName| !view.declared.contains_key(&registry_key(name));
    let name = Some(name.clone()).filter(free).or_else(|| {
        let stem: String = name.as_str().chars().take(60).collect();
        (2..100).filter_map(|n| format!("{stem}-{n}").parse().ok()).find(free)
    });
    let name = name.ok_or_else(|| Failure::new(Exit::Failed, format!("no name is left for {registry}")))?;
    Ok(Found {
        key: registry_key(&name),
        spec: RegistrySpec {
            registry: registry.to_owned(),
            insecure: false,
            accounts: Vec::new(),
        },
        admitted: None,
    })
}

/// Writes a registry's document with its sealed values, in one transaction.
async fn write(
    connection: &Connection,
    marker: &Marker,
    found: &Found,
    sealed: Option<(Vec<u8>, Option<i64>)>,
) -> Result<(), Failure> {
    let beside = sealed.map(|(value, before)| Beside {
        key: connection.key(&Key::Sealed(found.key.clone())),
        guard: before.map_or(Guard::Absent, Guard::Unchanged),
        then: Then::Put(value),
    });
    let mut metadata = json!({ "name": found.key.name });
    if let Some(known) = found.admitted.as_ref().map(|before| before.document.metadata()) {
        for (name, map) in [("labels", &known.labels), ("annotations", &known.annotations)] {
            if !map.is_empty() {
                metadata[name] = json!(map);
            }
        }
    }
    let value =
        json!({ "apiVersion": API_VERSION, "kind": Kind::Registry.name(), "metadata": metadata, "spec": found.spec });
    let admitted = admit_stored(&found.key, value.to_string().as_bytes()).map_err(Failure::invalid)?;
    let mut edits: Vec<Edit> = edit::edits(connection, vec![admitted], None).await?;
    if let Some(edit) = edits.first_mut() {
        edit.beside.extend(beside);
    }
    edit::commit(connection, marker, &edits, &[]).await.map(drop)
}

/// The sealed values of a registry or a secret, and the revision they were written at.
pub async fn sealed(connection: &Connection, key: &ResourceKey) -> Result<(Option<i64>, Sealed), Failure> {
    match connection.get(&Key::Sealed(key.clone())).await? {
        None => Ok((None, Sealed::default())),
        Some(kv) => {
            // What nobody can read is of no use to anybody: it is written anew.
            let sealed = Sealed::decode(&kv.value).unwrap_or_default();
            Ok((Some(kv.mod_revision), sealed))
        }
    }
}

/// The sealed values with this password among them.
fn sealed_again(
    marker: &Marker,
    registry: &str,
    user: &str,
    password: &str,
    mut sealed: Sealed,
    readers: &[Reader],
) -> Result<(Vec<u8>, u64), Failure> {
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, "cannot seal the password").because(error)
    };
    let edition = sealed.values.values().map(|value| value.edition).max().unwrap_or(0) + 1;
    let name = sealed_as(registry, user);
    let context = Context {
        cluster: marker.record.id.as_str().parse().map_err(|error| cannot(&error))?,
        namespace: "_",
        kind: "registry",
        name: &name,
        edition,
    };
    let envelope = Envelope::seal(context, password.as_bytes(), readers).map_err(|error| cannot(&error))?;
    let envelope = serde_json::to_value(&envelope).map_err(|error| cannot(&error))?;
    sealed.schema_version = SchemaVersion::default();
    let value = SealedValue {
        edition,
        envelope,
        digest: None,
        since: None,
    };
    sealed.values.insert(user.to_owned(), value);
    Ok((sealed.encode(), edition))
}

/// The controllers that are there, as this host believes them.
pub async fn readers(common: &Common, connection: &Connection, marker: &Marker) -> Result<Vec<Reader>, Failure> {
    let none = || Failure::new(Exit::Failed, "no controller is there to seal it for");
    let presences = connection.class("controllers").await?;
    let published = presences.kvs.iter().filter_map(published);
    let published: Vec<String> = published.collect();
    let believed = match sealing::authorities(&server_dir(common)) {
        Some(believed) => believed,
        None => Believed::Store(
            marker
                .record
                .id
                .as_str()
                .parse()
                .map_err(|error| none().because(&error))?,
        ),
    };
    let (mut readers, mut why) = (Vec::new(), None);
    for text in &published {
        match believed.reader(text, Holder::Controller, membership::now()) {
            Ok(reader) => readers.push(reader),
            Err(error) => why = Some(error),
        }
    }
    readers.truncate(MAX_READERS);
    match (readers.is_empty(), why) {
        (false, _) => Ok(readers),
        (true, Some(error @ trust::publish::PublishedError::NoAuthority)) => {
            Err(none().because(&error).help("run it on a seed, as root"))
        }
        (true, Some(error)) => Err(none().because(&error).help("see the controllers' logs")),
        (true, None) => Err(none().help("start one (`reeve up`, `reeve server` or `reeve controller`) and try again")),
    }
}

fn published(kv: &KeyValue) -> Option<String> {
    Presence::decode(&kv.value).ok()?.sealing_key
}

// ---- what a person types ------------------------------------------------------------------------------------------------

fn no_terminal() -> Failure {
    Failure::usage("there is no terminal to ask on")
        .help("write `--user NAME --password-stdin`, and pipe the password in")
}

fn asked(question: &str) -> Result<String, Failure> {
    if !output::can_ask() {
        return Err(no_terminal());
    }
    complain(question);
    let _ = io::stderr().flush();
    let mut line = String::new();
    let read = io::stdin().lock().take(1_024).read_line(&mut line);
    read.map_err(|error| Failure::new(Exit::Failed, "cannot read the answer").because(&error))?;
    Ok(line.trim().to_owned())
}

/// A password as it is typed, unseen.
pub fn password(question: &str) -> Result<Zeroizing<String>, Failure> {
    if !output::can_ask() {
        return Err(no_terminal());
    }
    let cannot = |error: io::Error| Failure::new(Exit::Failed, "cannot ask for the password").because(&error);
    let input = io::stdin();
    let before = tcgetattr(&input).map_err(|error| cannot(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    complain(question);
    let _ = io::stderr().flush();
    tcsetattr(&input, OptionalActions::Flush, &silent).map_err(|error| cannot(error.into()))?;
    let mut line = Zeroizing::new(String::with_capacity(1_024));
    let read = input.lock().take(MAX_PASSWORD_BYTES as u64 + 2).read_line(&mut line);
    let _ = tcsetattr(&input, OptionalActions::Now, &before);
    complain("\n");
    read.map_err(cannot)?;
    one_line(line)
}

fn from_stdin() -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_PASSWORD_BYTES + 4));
    if io::stdin().is_terminal() {
        return Err(Failure::usage("--password-stdin: standard input is a terminal")
            .help("pipe the password in, or leave the flag out and be asked"));
    }
    io::stdin()
        .lock()
        .take(MAX_PASSWORD_BYTES as u64 + 3)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(Exit::Failed, "cannot read the password").because(&error))?;
    one_line(text)
}

/// Without the line's end; a password has one line.
fn one_line(mut text: Zeroizing<String>) -> Result<Zeroizing<String>, Failure> {
    for end in ['\n', '\r'] {
        if text.ends_with(end) {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(Failure::usage("the password is empty"));
    }
    if text.len() > MAX_PASSWORD_BYTES {
        return Err(Failure::usage(format!(
            "the password has more than {MAX_PASSWORD_BYTES} bytes"
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Failure::usage(
            "the password has more than one line, or a control character",
        ));
    }
    Ok(text)
}

// ---- what there is --------------------------------------------------------------------------------------------------------

/// What is known of one account.
struct Row {
    resource: ResourceName,
    registry: String,
    account: Option<Account>,
    word: &'static str,
    tone: Tone,
    why: String,
    users: BTreeSet<String>,
}

/// `reeve registries`, and the verbs under it.
pub async fn registries(common: &Common, args: &RegistriesArgs) -> Verdict {
    match &args.verb {
        Some(RegistriesVerb::Tags(args)) => browse::tags(common, args).await,
        Some(RegistriesVerb::Search(args)) => browse::search(common, args).await,
        None => list(common).await,
    }
}

async fn list(common: &Common) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let view = View::read(
        &connection,
        &["desired", "assignments", "reports", "verdicts", "sessions"],
    )
    .await?;
    let sealed = passwords(&connection).await?;
    let (rows, broken) = rows_of(&view, &sealed);
    for (key, line) in &broken {
        complain(&format!(
            "{} is invalid: {line}; see `reeve describe registry {}`\n",
            title(key),
            key.name
        ));
    }
    if common.output.is_for_machines() {
        let values: Vec<Value> = rows.iter().map(value).collect();
        let names: Vec<String> = rows.iter().map(|row| format!("registry/{}\n", row.resource)).collect();
        print(&match common.output {
            Format::Name => names.concat(),
            Format::Yaml => output::yaml(&json!(values)),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(values)),
        });
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        complain("no registries: `reeve login REGISTRY` adds one\n");
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["REGISTRY", "ACCOUNT", "FOR", "STATUS", "USED BY"]);
    for row in &rows {
        let users: Vec<&str> = row.users.iter().map(String::as_str).take(3).collect();
        let more = match row.users.len() {
            all if all > 3 => format!(" and {} more", all - 3),
            _ => String::new(),
        };
        table.row(vec![
            row.registry.as_str().into(),
            row.account.as_ref().map_or("-", |account| account.user.as_str()).into(),
            row.account.as_ref().map_or_else(String::new, limits).into(),
            Cell::new(row.word, row.tone),
            format!("{}{more}", users.join(", ")).into(),
        ]);
    }
    print(&table.render(output::limit_of(common.output == Format::Wide)));
    for row in rows.iter().filter(|row| !row.why.is_empty()) {
        let user = row.account.as_ref().map_or("", |account| account.user.as_str());
        complain(&format!("{} {user}: {}\n", row.registry, row.why));
    }
    Ok(Exit::Done)
}

fn value(row: &Row) -> Value {
    json!({
        "resource": row.resource, "registry": row.registry, "user": row.account.as_ref().map(|account| &account.user),
        "images": row.account.as_ref().map(|account| &account.images),
        "namespaces": row.account.as_ref().map(|account| &account.namespaces),
        "status": row.word, "message": row.why, "usedBy": row.users,
    })
}

fn limits(account: &Account) -> String {
    let namespaces = account
        .namespaces
        .iter()
        .map(|namespace| format!("namespace {namespace}"));
    let all: Vec<String> = account.images.iter().cloned().chain(namespaces).collect();
    if all.is_empty() {
        "all images".to_owned()
    } else {
        all.join(", ")
    }
}

/// The accounts that have a password.
async fn passwords(connection: &Connection) -> Result<BTreeSet<LoginName>, Failure> {
    let mut found = BTreeSet::new();
    for kv in connection.class("sealed").await?.kvs {
        let Some(Key::Sealed(key)) = connection.root.parse(&kv.key) else {
            continue;
        };
        if key.kind == Kind::Registry
            && let Ok(sealed) = Sealed::decode(&kv.value)
        {
            found.extend(sealed.values.into_keys().map(|user| (key.name.clone(), user)));
        }
    }
    Ok(found)
}

type Broken = Vec<(ResourceKey, String)>;

fn rows_of(view: &View, sealed: &BTreeSet<LoginName>) -> (Vec<Row>, Broken) {
    let mut specs: BTreeMap<ResourceName, Arc<RegistrySpec>> = BTreeMap::new();
    let mut broken = Vec::new();
    for (key, declared) in view.declared.iter().filter(|(key, _)| key.kind == Kind::Registry) {
        match declared.admitted.as_ref().map(|admitted| &admitted.document) {
            Ok(Document::Registry(document)) => {
                specs.insert(key.name.clone(), Arc::new(document.spec.clone()));
            }
            Ok(
                Document::Service(_)
                | Document::Node(_)
                | Document::ConfigFile(_)
                | Document::Secret(_)
                | Document::Command(_)
                | Document::NetworkPolicy(_)
                | Document::VirtualIP(_),
            ) => {}
            Err(problems) => {
                let line = problems
                    .problems
                    .first()
                    .map_or_else(String::new, |problem| problem.line());
                broken.push((key.clone(), line));
            }
        }
    }
    let (mut users, mut refused) = (BTreeMap::<LoginName, BTreeSet<String>>::new(), BTreeMap::new());
    for (key, declared) in &view.declared {
        let (Some(namespace), Some(spec)) = (&key.namespace, rows::spec_of(Some(declared.as_ref()))) else {
            continue;
        };
        let Some(name) = login_for(&specs, namespace, &spec.container.image) else {
            continue;
        };
        users
            .entry(name.clone())
            .or_default()
            .insert(format!("{namespace}/{}", key.name));
        for instance in view.instances_of(key) {
            if let Some(message) = denied(&instance) {
                refused.insert(name.clone(), format!("refused on node {}: {message}", instance.node));
            }
        }
    }
    let mut rows = Vec::new();
    for (resource, spec) in &specs {
        let row = |account: Option<&Account>| Row {
            resource: resource.clone(),
            registry: spec.registry.clone(),
            account: account.cloned(),
            word: "NoAccount",
            tone: Tone::Plain,
            why: String::new(),
            users: BTreeSet::new(),
        };
        if spec.accounts.is_empty() {
            rows.push(row(None));
        }
        for account in &spec.accounts {
            let name = (resource.clone(), account.user.clone());
            let again = format!("`reeve login {} --user {}`", spec.registry, account.user);
            let (word, tone, why) = match (sealed.contains(&name), refused.get(&name)) {
                (false, _) => ("NoPassword", Tone::Bad, format!("log in with {again}")),
                (true, Some(why)) => ("Refused", Tone::Bad, format!("{why}; {again} renews the password")),
                (true, None) => ("Valid", Tone::Good, String::new()),
            };
            rows.push(Row {
                word,
                tone,
                why,
                users: users.get(&name).cloned().unwrap_or_default(),
                ..row(Some(account))
            });
        }
    }
    (rows, broken)
}

/// What an instance's node says of a registry that refuses.
fn denied(instance: &Instance<'_>) -> Option<String> {
    let failing = instance.reported?.failing.as_ref()?;
    (failing.reason == FailingReason::ImageDenied).then(|| printable(&failing.message))
}

fn machine(format: Format, value: &Value, name: &str) -> String {
    match format {
        Format::Yaml => output::yaml(value),
        Format::Name => format!("{name}\n"),
        Format::Json | Format::Table | Format::Wide => output::json(value),
    }
}

/// `reeve describe registry`.
pub fn describe(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key)?;
    if format.is_for_machines() {
        let value = json!({ "resource": crate::get::document(view, key, declared) });
        return Some(machine(format, &value, &format!("registry/{}", key.name)));
    }
    let mut text = String::new();
    match declared.admitted.as_ref().map(|admitted| &admitted.document) {
        Ok(Document::Registry(document)) => {
            let spec = &document.spec;
            let _ = writeln!(text, "{}\n", title(key));
            describe::line(&mut text, "Registry", &spec.registry);
            if spec.insecure {
                describe::line(&mut text, "Insecure", "it may be asked by plain HTTP");
            }
            for account in &spec.accounts {
                describe::line(
                    &mut text,
                    "Account",
                    &format!("{}, for {}", account.user, limits(account)),
                );
            }
            if spec.accounts.is_empty() {
                describe::line(
                    &mut text,
                    "Accounts",
                    &format!("none; `reeve login {}` adds one", spec.registry),
                );
            }
            describe::line(&mut text, "Revision", &declared.mod_revision.to_string());
        }
        Ok(
            Document::Service(_)
            | Document::Node(_)
            | Document::ConfigFile(_)
            | Document::Secret(_)
            | Document::Command(_)
            | Document::NetworkPolicy(_)
            | Document::VirtualIP(_),
        ) => return None,
        Err(problems) => {
            let _ = writeln!(text, "{} is invalid; what was handed out stays in use\n", title(key));
            text.push_str(&problems.render(output::look()));
        }
    }
    Some(text)
}
