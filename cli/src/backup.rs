//! `reeve admin backup`: everything that stands under the cluster's prefix, at one revision of the store, in one file. It may be
//! made at any time, for it reads alone. What hangs on a lease (sessions, who leads, events) is left out: it ends by itself.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use runtime::{KeyValue, Prefix};
use schemas::keys::{Key, Root};
use schemas::records::{ClusterMarker, Record as _};
use serde_json::json;

use crate::Verdict;
use crate::args::{BackupArgs, Common};
use crate::connect::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, complain, print};
use crate::wait::Progress;

pub mod file;

use file::Header;

/// What a backup came to, for people.
struct Made {
    header: Header,
    bytes: u64,
    resources: usize,
    sealed: usize,
    /// Whether nodes have certificates of the cluster's own.
    seeds: bool,
}

pub async fn backup(common: &Common, args: &BackupArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let prefix = Prefix::new(connection.root.as_str())?;
    let mut progress = Progress::new(common.output.is_for_machines());
    let listing = connection.store.list_telling(&prefix, |keys| {
        progress.say(&format!("{} read", output::count(keys, "key")));
    });
    let listing = listing.await.map_err(|error| {
        let failure = Failure::from(error);
        if failure.denied {
            failure.help(
                "a backup reads everything, sealed values too: make it with the right `admin`, or as root on a seed",
            )
        } else {
            failure
        }
    })?;
    let lasting = |kv: &&KeyValue| kv.lease == 0 && kv.key.starts_with(prefix.as_str().as_bytes());
    let kvs: Vec<&KeyValue> = listing.kvs.iter().filter(lasting).collect();
    let place = connection.key(&Key::Cluster);
    let found = kvs.iter().find(|kv| kv.key == place);
    let found = found.and_then(|kv| ClusterMarker::decode(&kv.value).ok());
    let Some(found) = found.filter(|found| found.id == marker.record.id) else {
        return Err(Failure::new(
            Exit::Conflict,
            "the cluster's marker was changed while it was read; nothing was written",
        )
        .help("look at the store with `reeve status`, then run the command again"));
    };
    let header = Header::new(&found, listing.revision, prefix.as_str(), kvs.len());
    let begins = prefix.as_str().len();
    let entries = kvs.iter().map(|kv| (&kv.key[begins..], &*kv.value));
    let bytes = match args.file.as_str() {
        "-" => file::write(BufWriter::new(std::io::stdout().lock()), &header, entries)
            .map_err(|error| Failure::new(Exit::Failed, "cannot write to standard output").because(&error))?,
        path => to_file(Path::new(path), |out| file::write(out, &header, entries))?,
    };
    drop(progress);
    let made = Made {
        resources: of_class(&connection.root, &kvs, |key| matches!(key, Key::Desired(_))),
        sealed: of_class(&connection.root, &kvs, |key| matches!(key, Key::Sealed(_))),
        seeds: of_class(&connection.root, &kvs, |key| {
            matches!(key, Key::Issued(..) | Key::Trust(_))
        }) > 0,
        header,
        bytes,
    };
    made.tell(common.output, &args.file);
    Ok(Exit::Done)
}

/// How many keys are of a class.
fn of_class(root: &Root, kvs: &[&KeyValue], is: impl Fn(&Key) -> bool) -> usize {
    kvs.iter()
        .filter(|kv| root.parse(&kv.key).is_some_and(|key| is(&key)))
        .count()
}

impl Made {
    fn tell(&self, format: Format, file: &str) {
        let header = &self.header;
        let said = json!({
            "cluster": header.cluster, "restoreEpoch": header.restore_epoch, "revision": header.revision,
            "keys": header.keys, "resources": self.resources, "bytes": self.bytes, "file": file,
        });
        let text = match format {
            Format::Json => output::json(&said),
            Format::Yaml => output::yaml(&said),
            Format::Name => format!("{file}\n"),
            Format::Table | Format::Wide => self.in_words(file),
        };
        // The file itself may be what goes to standard output.
        if file == "-" { complain(&text) } else { print(&text) }
    }

    fn in_words(&self, file: &str) -> String {
        let place = if file == "-" { "standard output" } else { file };
        let mut text = format!(
            "cluster {} at revision {}: {} in {}, {}, to {place}\n",
            self.header.cluster,
            self.header.revision,
            output::count(self.resources, "resource"),
            output::count(usize::try_from(self.header.keys).unwrap_or(usize::MAX), "key"),
            output::count(usize::try_from(self.bytes).unwrap_or(usize::MAX), "byte"),
        );
        if self.sealed > 0 {
            text.push_str(&format!(
                "{} in it stay sealed: they open with a controller's sealing.key alone, so keep one of those, too\n",
                output::count(self.sealed, "password and secret")
                    .replace("password and secrets", "passwords and secrets")
            ));
        }
        if self.seeds {
            text.push_str("the cluster's authority is not in it: keep the data directory of a seed, too (docs/keys-and-files.md)\n");
        }
        text
    }
}

/// Writes a file for its owner alone: beside, to the disk, and then under its name.
pub fn to_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<u64>) -> Result<u64, Failure> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let mut beside = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = folder.join(beside);
    let done = || {
        let file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        let mut out = BufWriter::new(file);
        let bytes = write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()?;
        Ok(bytes)
    };
    done().map_err(|error: std::io::Error| {
        let _ = std::fs::remove_file(&beside);
        Failure::new(Exit::Failed, format!("cannot write {}", path.display()))
            .because(&error)
            .help("name a file in a directory that is there, that you may write to, and that has room")
    })
}
