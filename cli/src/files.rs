//! `reeve upload`, `download` and `files`: content into the store and out of it, byte for byte; what there is and who uses
//! it; an older edition back in force; and the removal of content that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::path::Path;

use runtime::{Guard, Outcome, Store, person};
use schemas::admit::{Admitted, admit_stored};
use schemas::config_file::{ConfigFileSpec, Content, FileDigest, MAX_FILE_BYTES, MAX_PARTS, PART_BYTES};
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::{Document, Kind};
use schemas::meta::API_VERSION;
use schemas::names::ResourceName;
use schemas::records::{Accepted, AcceptedBody, Record};
use serde_json::{Value, json};

use crate::Verdict;
use crate::apply::bring_in_edits;
use crate::args::Common;
use crate::args::Waiting;
use crate::args::files::{DownloadArgs, FilesArgs, FilesVerb, PruneArgs, UndoArgs, UploadArgs};
use crate::connect::{Connection, Marker, connect};
use crate::edit::{self, Beside, Then};
use crate::failure::{Exit, Failure, printable};
use crate::output::{self, Format, Table, print};
use crate::rows;
use crate::view::{View, file_key, title};

// ---- into the store -------------------------------------------------------------------------------------------------

pub async fn upload(common: &Common, args: &UploadArgs) -> Verdict {
    let name = name_of(args)?;
    let bytes = read(&args.file)?;
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let key = file_key(&common.namespace.clone().unwrap_or_default(), &name);
    put(common, &connection, &marker, &key, &bytes, &args.waiting).await
}

/// Writes content under a file's name, with the metadata that the file has.
async fn put(
    common: &Common,
    connection: &Connection,
    marker: &Marker,
    key: &ResourceKey,
    bytes: &[u8],
    waiting: &Waiting,
) -> Verdict {
    let (spec, parts) = match ConfigFileSpec::inline(bytes) {
        Some(spec) => (spec, Vec::new()),
        None => {
            let digest = FileDigest::of(bytes);
            let parts = write_parts(connection, &digest, bytes).await?;
            (ConfigFileSpec::blob(digest, bytes.len() as u64), parts)
        }
    };
    let stored = edit::stored(connection, std::slice::from_ref(key))
        .await?
        .pop()
        .flatten();
    let before = stored.and_then(|kv| admit_stored(key, &kv.value).ok());
    let admitted = document(key, &spec, before.as_ref())?;
    let mut edits = edit::edits(connection, vec![admitted], None).await?;
    if let Some(edit) = edits.first_mut() {
        edit.beside = parts;
    }
    bring_in_edits(common, connection, marker, edits, false, waiting).await
}

/// The document of a file with this content.
fn document(key: &ResourceKey, spec: &ConfigFileSpec, before: Option<&Admitted>) -> Result<Admitted, Failure> {
    let mut metadata = json!({ "name": key.name, "namespace": key.namespace });
    if let Some(known) = before.map(|before| before.document.metadata()) {
        for (name, map) in [("labels", &known.labels), ("annotations", &known.annotations)] {
            if !map.is_empty() {
                metadata[name] = json!(map);
            }
        }
    }
    let value =
        json!({ "apiVersion": API_VERSION, "kind": Kind::ConfigFile.name(), "metadata": metadata, "spec": spec });
    admit_stored(key, value.to_string().as_bytes()).map_err(Failure::invalid)
}

/// Writes the parts of a blob, over what is there: a part that was lost or damaged is whole again. Answers what the
/// document's own transaction demands, so that no pruning comes between the two.
async fn write_parts(connection: &Connection, digest: &FileDigest, bytes: &[u8]) -> Result<Vec<Beside>, Failure> {
    let mut beside = Vec::new();
    for (number, part) in (0_u32..).zip(bytes.chunks(PART_BYTES)) {
        let key = connection.key(&Key::Blob(*digest, number));
        if number == 0 {
            beside.push(Beside {
                key,
                guard: Guard::Any,
                then: Then::Put(part.to_vec()),
            });
            continue;
        }
        let txn = person::txn().put(key.clone(), part.to_vec(), Guard::Any);
        match connection.store.commit(txn).await? {
            Outcome::Committed { revision } => beside.push(Beside {
                key,
                guard: Guard::Unchanged(revision),
                then: Then::Nothing,
            }),
            Outcome::FenceLost | Outcome::Conflict { .. } => {
                return Err(Failure::new(
                    Exit::Conflict,
                    "the cluster changed meanwhile; run the command again",
                ));
            }
        }
    }
    Ok(beside)
}

/// The name as told, or made of the file's.
fn name_of(args: &UploadArgs) -> Result<ResourceName, Failure> {
    let told = match &args.name {
        Some(name) => name.clone(),
        None if args.file == "-" => {
            return Err(Failure::usage("standard input has no name").help("say one: `reeve upload - NAME`"));
        }
        None => {
            let path = Path::new(&args.file);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.ok_or_else(|| Failure::usage(format!("`{}` is no file", printable(&args.file))))?;
            // What every name of a file may have and a resource's may not.
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if name.chars().all(plain) {
                suggestion(&name)
            } else {
                name
            }
        }
    };
    told.parse().map_err(|error: schemas::names::NameError| {
        let near = suggestion(&told);
        let help = match near.parse::<ResourceName>() {
            Ok(near) => format!("say `reeve upload {} {near}`", quoted(&args.file)),
            Err(_) => "say a name of a-z, 0-9 and `-` after the file".to_owned(),
        };
        Failure::usage(error.to_string()).help(help)
    })
}

/// The nearest text that may be a name.
fn suggestion(text: &str) -> String {
    let mut near = String::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            near.push(c);
        } else if !near.ends_with('-') && !near.is_empty() {
            near.push('-');
        }
    }
    near.truncate(63);
    near.trim_end_matches('-').to_owned()
}

/// A word as a shell takes it.
fn quoted(text: &str) -> String {
    let text = printable(text);
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn read(file: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_FILE_BYTES + 1;
    let done = if file == "-" {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    done.map_err(|error| Failure::new(Exit::Failed, format!("cannot read `{}`", printable(file))).because(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(
            Failure::new(Exit::Invalid, format!("`{}` has more than 8 MiB", printable(file)))
                .help("put what is larger into an image or a volume"),
        );
    }
    Ok(bytes)
}

// ---- out of the store -----------------------------------------------------------------------------------------------

pub async fn download(common: &Common, args: &DownloadArgs) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let key = file_key(&common.namespace.clone().unwrap_or_default(), &args.name);
    let spec = match args.edition {
        Some(n) => edition(&connection, &key, n).await?,
        None => newest(&connection, &key).await?,
    };
    let bytes = content(&connection, &key, &spec).await?;
    let failed = |what: String, error: &std::io::Error| Failure::new(Exit::Failed, what).because(error);
    match args.to.as_deref() {
        None | Some("-") => {
            let mut out = std::io::stdout().lock();
            let done = out.write_all(&bytes).and_then(|()| out.flush());
            done.map_err(|error| failed("cannot write to standard output".to_owned(), &error))?;
        }
        Some(path) => {
            let mut options = std::fs::OpenOptions::new();
            options.write(true);
            if args.force {
                options.create(true).truncate(true);
            } else {
                options.create_new(true);
            }
            let done = options.open(path).and_then(|mut file| file.write_all(&bytes));
            done.map_err(|error| {
                let failure = failed(format!("cannot write `{}`", printable(path)), &error);
                if error.kind() == std::io::ErrorKind::AlreadyExists {
                    failure.help("add --force to write over it")
                } else {
                    failure
                }
            })?;
        }
    }
    Ok(Exit::Done)
}

/// What was put last.
async fn newest(connection: &Connection, key: &ResourceKey) -> Result<ConfigFileSpec, Failure> {
    let found = connection.get(&Key::Desired(key.clone())).await?;
    let found = found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("there is no {}", title(key))).help(format!(
            "list files with `reeve files -A`; of one that was deleted, `reeve download {} --edition N` may have an edition",
            key.name
        ))
    })?;
    match admit_stored(key, &found.value).map_err(Failure::invalid)?.document {
        Document::ConfigFile(file) => Ok(file.spec),
        Document::Service(_)
        | Document::Node(_)
        | Document::Registry(_)
        | Document::Secret(_)
        | Document::Command(_)
        | Document::NetworkPolicy(_)
        | Document::VirtualIP(_) => Err(Failure::new(Exit::Failed, format!("{} is no file", title(key)))),
    }
}

/// One accepted edition.
async fn edition(connection: &Connection, key: &ResourceKey, n: u64) -> Result<ConfigFileSpec, Failure> {
    match editions(connection, key).await?.remove(&n) {
        Some(spec) => Ok(spec),
        None => Err(no_edition(connection, key, n).await?),
    }
}

async fn no_edition(connection: &Connection, key: &ResourceKey, n: u64) -> Result<Failure, Failure> {
    let known: Vec<String> = editions(connection, key)
        .await?
        .keys()
        .rev()
        .map(u64::to_string)
        .collect();
    let failure = Failure::new(Exit::Failed, format!("{} has no edition {n}", title(key)));
    Ok(if known.is_empty() {
        failure
    } else {
        failure.help(format!("there are {}", known.join(", ")))
    })
}

/// The editions that are kept, by number.
async fn editions(connection: &Connection, key: &ResourceKey) -> Result<BTreeMap<u64, ConfigFileSpec>, Failure> {
    let listing = connection.class(&format!("accepted/{key}")).await?;
    let mut editions = BTreeMap::new();
    for kv in &listing.kvs {
        let (Some(Key::Accepted(_, n)), Ok(record)) = (connection.root.parse(&kv.key), Accepted::decode(&kv.value))
        else {
            continue;
        };
        match record.body {
            AcceptedBody::ConfigFile(file) => {
                editions.insert(n, file.content);
            }
            AcceptedBody::Service(_) | AcceptedBody::Node(_) | AcceptedBody::Deleted => {}
        }
    }
    Ok(editions)
}

/// The bytes, checked against their digest where they stand apart.
async fn content(connection: &Connection, key: &ResourceKey, spec: &ConfigFileSpec) -> Result<Vec<u8>, Failure> {
    let damaged = |what: String| {
        Failure::new(Exit::Failed, format!("{}: {what}", title(key)))
            .help(format!("upload it again with `reeve upload FILE {}`", key.name))
    };
    match spec.content().map_err(|error| damaged(error.to_string()))? {
        Content::Inline(bytes) => Ok(bytes),
        Content::Blob { digest, size } => {
            let mut bytes = Vec::new();
            let mut part = 0;
            while (bytes.len() as u64) < size {
                let found = connection.get(&Key::Blob(digest, part)).await?;
                match found.filter(|kv| part < MAX_PARTS && !kv.value.is_empty()) {
                    Some(kv) => bytes.extend_from_slice(&kv.value),
                    None => return Err(damaged(format!("part {part} of its content is not in the store"))),
                }
                part += 1;
            }
            if FileDigest::of(&bytes) != digest {
                return Err(damaged("the store has other content than was uploaded".to_owned()));
            }
            Ok(bytes)
        }
    }
}

// ---- what there is --------------------------------------------------------------------------------------------------

pub async fn files(common: &Common, args: &FilesArgs) -> Verdict {
    match &args.verb {
        None => list(common, args.all_namespaces).await,
        Some(FilesVerb::Undo(args)) => undo(common, args).await,
        Some(FilesVerb::Prune(args)) => prune(common, args).await,
    }
}

async fn list(common: &Common, everywhere: bool) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let view = View::read(&connection, &["desired", "status"]).await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let keys: Vec<&ResourceKey> = view
        .file_keys()
        .filter(|key| everywhere || key.namespace.as_ref() == Some(&namespace))
        .collect();
    let value = |key: &&ResourceKey| {
        let status = view.files.get(key).and_then(|status| status.as_ref().ok());
        let edition = status.and_then(|status| status.edition);
        json!({
            "namespace": key.namespace, "name": key.name, "status": rows::file_state(&view, key).word,
            "edition": edition.map(|edition| edition.n), "size": edition.map(|edition| edition.size),
            "digest": edition.map(|edition| edition.digest), "users": status.map(|status| status.users),
            "usedBy": status.map(|status| &status.used_by),
        })
    };
    match common.output {
        Format::Json => print(&output::json(&Value::Array(keys.iter().map(value).collect()))),
        Format::Yaml => print(&output::yaml(&Value::Array(keys.iter().map(value).collect()))),
        Format::Name => keys.iter().for_each(|key| print(&format!("configfile/{}\n", key.name))),
        Format::Table | Format::Wide if keys.is_empty() => {
            let place = if everywhere {
                String::new()
            } else {
                format!(" in namespace `{namespace}`")
            };
            output::complain(&format!("no files{place}: put one with `reeve upload FILE`\n"));
        }
        Format::Table | Format::Wide => {
            let wide = common.output == Format::Wide;
            let head: Vec<&'static str> = everywhere
                .then_some("NAMESPACE")
                .into_iter()
                .chain(rows::FILE_HEAD.iter().copied())
                .collect();
            let mut table = Table::new(&head);
            for key in keys {
                let namespace = key.namespace.as_ref().filter(|_| everywhere).map(Into::into);
                table.row(namespace.into_iter().chain(rows::file_row(&view, key, wide)).collect());
            }
            print(&table.render(output::limit_of(wide)));
        }
    }
    Ok(Exit::Done)
}

async fn undo(common: &Common, args: &UndoArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let key = file_key(&common.namespace.clone().unwrap_or_default(), &args.name);
    let spec = match args.edition {
        Some(n) => edition(&connection, &key, n).await?,
        None => before(&connection, &key).await?,
    };
    let bytes = content(&connection, &key, &spec).await?;
    put(common, &connection, &marker, &key, &bytes, &args.waiting).await
}

/// The newest edition of other content than what is in force; of a deleted file, its last.
async fn before(connection: &Connection, key: &ResourceKey) -> Result<ConfigFileSpec, Failure> {
    let mut editions = editions(connection, key).await?;
    let there = connection.get(&Key::Desired(key.clone())).await?.is_some();
    let newest = editions.last_key_value().and_then(|(_, spec)| spec.identity());
    let found = editions
        .iter()
        .rev()
        .find(|(_, spec)| !there || spec.identity() != newest)
        .map(|(n, _)| *n);
    found.and_then(|n| editions.remove(&n)).ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{} has no edition before this one", title(key)))
            .help("list files with `reeve files -A`")
    })
}

/// Services that mount a file, by what is desired and by the file's status; those in `without` are left out.
pub fn users(view: &View, key: &ResourceKey, without: &BTreeSet<&ResourceKey>) -> BTreeSet<ResourceName> {
    let service = |name: &ResourceName| ResourceKey {
        namespace: key.namespace.clone(),
        kind: Kind::Service,
        name: name.clone(),
    };
    let desired = view.declared.iter().filter_map(|(user, declared)| {
        let spec = rows::spec_of(Some(declared.as_ref()))?;
        let mounts = spec.container.files.iter().any(|mount| mount.file == key.name);
        (mounts && user.namespace == key.namespace).then(|| user.name.clone())
    });
    let status = view.files.get(key).and_then(|status| status.as_ref().ok());
    let told = status.into_iter().flat_map(|status| status.used_by.iter().cloned());
    let mut users: BTreeSet<ResourceName> = desired.chain(told).collect();
    users.retain(|name| !without.contains(&service(name)));
    users
}

// ---- what nothing refers to -----------------------------------------------------------------------------------------

async fn prune(common: &Common, args: &PruneArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    // The parts first: what is put while they are listed is seen by the second list, or keeps its transaction from passing.
    let blobs = connection.class("blobs").await?;
    let mut parts: BTreeMap<FileDigest, Vec<(Vec<u8>, i64, usize)>> = BTreeMap::new();
    for kv in &blobs.kvs {
        if let Some(Key::Blob(digest, _)) = connection.root.parse(&kv.key) {
            let part = (kv.key.clone(), kv.mod_revision, kv.value.len());
            parts.entry(digest).or_default().push(part);
        }
    }
    for used in referred(&connection).await? {
        parts.remove(&used);
    }
    let bytes: usize = parts.values().flatten().map(|(_, _, size)| size).sum();
    let mut removed = Vec::new();
    for (digest, parts) in &parts {
        if args.dry_run || remove(&connection, &marker, parts).await? {
            removed.push(digest.to_string());
        }
    }
    match common.output {
        Format::Json => print(&output::json(&json!({ "removed": removed, "dryRun": args.dry_run }))),
        Format::Yaml => print(&output::yaml(&json!({ "removed": removed, "dryRun": args.dry_run }))),
        Format::Name => removed.iter().for_each(|digest| print(&format!("{digest}\n"))),
        Format::Table | Format::Wide if removed.is_empty() => print("nothing to remove: all content is referred to\n"),
        Format::Table | Format::Wide => {
            let word = if args.dry_run { "would go" } else { "removed" };
            let size = rows::bytes(bytes as u64);
            print(&format!("{} {word}, {size}\n", output::count(removed.len(), "blob")));
        }
    }
    Ok(Exit::Done)
}

/// Removes a blob, unless somebody has put it again meanwhile.
async fn remove(connection: &Connection, marker: &Marker, parts: &[(Vec<u8>, i64, usize)]) -> Result<bool, Failure> {
    // A part that an upload has written since keeps its transaction from passing.
    let mut whole = true;
    for chunk in parts.chunks(50) {
        let mut txn = person::txn().require(connection.key(&Key::Cluster), Guard::Unchanged(marker.mod_revision));
        for (key, revision, _) in chunk {
            txn = txn.delete(key.clone(), Guard::Unchanged(*revision));
        }
        whole &= matches!(connection.store.commit(txn).await?, Outcome::Committed { .. });
        if !whole {
            break;
        }
    }
    Ok(whole)
}

/// What a document or a kept edition refers to. One that cannot be read may refer to anything.
async fn referred(connection: &Connection) -> Result<BTreeSet<FileDigest>, Failure> {
    let unreadable = |key: &[u8], why: String| {
        Failure::new(
            Exit::Failed,
            format!(
                "`{}` cannot be read, and may refer to content: nothing was removed",
                printable(&String::from_utf8_lossy(key))
            ),
        )
        .detail(why)
    };
    let mut referred = BTreeSet::new();
    for kv in &connection.class("desired").await?.kvs {
        if let Some(Key::Desired(key)) = connection.root.parse(&kv.key)
            && key.kind == Kind::ConfigFile
        {
            match admit_stored(&key, &kv.value).map(|admitted| admitted.document) {
                Ok(Document::ConfigFile(file)) => referred.extend(file.spec.digest),
                Ok(
                    Document::Service(_)
                    | Document::Node(_)
                    | Document::Registry(_)
                    | Document::Secret(_)
                    | Document::Command(_)
                    | Document::NetworkPolicy(_)
                    | Document::VirtualIP(_),
                ) => {}
                Err(problems) => return Err(unreadable(&kv.key, problems.to_string())),
            }
        }
    }
    for kv in &connection.class("accepted").await?.kvs {
        if !matches!(connection.root.parse(&kv.key), Some(Key::Accepted(..))) {
            continue;
        }
        match Accepted::decode(&kv.value).map(|record| record.body) {
            Ok(AcceptedBody::ConfigFile(file)) => {
                referred.insert(file.digest);
                referred.extend(file.content.digest);
            }
            Ok(AcceptedBody::Service(spec)) => {
                let editions = spec.container.files.iter().filter_map(|mount| mount.edition);
                referred.extend(editions.map(|edition| edition.digest));
            }
            Ok(AcceptedBody::Node(_) | AcceptedBody::Deleted) => {}
            Err(error) => return Err(unreadable(&kv.key, error.to_string())),
        }
    }
    Ok(referred)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_the_files_or_suggested() {
        let name = |file: &str, name: Option<&str>| {
            name_of(&UploadArgs {
                file: file.to_owned(),
                name: name.map(str::to_owned),
                waiting: Waiting {
                    timeout: std::time::Duration::from_secs(1),
                    no_wait: true,
                },
            })
            .map(|name| name.to_string())
        };
        assert_eq!(name("/etc/nginx/nginx.conf", None).unwrap(), "nginx-conf");
        assert_eq!(name("My_File.TXT", None).unwrap(), "my-file-txt");
        assert_eq!(name("x", Some("conf")).unwrap(), "conf");
        let failure = name("my file.txt", None).unwrap_err();
        assert!(
            format!("{failure:?}").contains("reeve upload 'my file.txt' my-file-txt"),
            "{failure:?}"
        );
        let failure = name("x", Some("A b")).unwrap_err();
        assert!(format!("{failure:?}").contains("reeve upload x a-b"), "{failure:?}");
        assert!(name("-", None).is_err());
    }
}
