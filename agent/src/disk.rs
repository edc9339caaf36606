//! The agent's data directory: its assignment, the specs it runs, its ledger and its session. `run` reads it before it
//! asks anyone anything. Every write is whole or not at all (a temporary file, fsync, rename, fsync of the directory); a
//! damaged file is said and holds only what it is about; two agents never share a directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use planner::node::SpecId;
use rustix::fs::{FlockOperation, flock};
use schemas::config_file::FileDigest;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::records::{Accepted, Digest, Record};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// The accepted specs a node keeps.
pub type KeptSpecs = Vec<(SpecId, Accepted)>;

/// The largest file that is read at all.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("use the data directory `{}`: another agent uses it; stop that one, or give this one its own --data-dir", path.display())]
    Locked { path: PathBuf },
    #[error("read `{}`: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
}

impl DiskError {
    fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }

    /// Whether it is a matter of space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// The data directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
    #[cfg(any(test, feature = "testing"))]
    cut: crate::cut::Cut,
}

impl DataDir {
    /// Makes the directory if need be, and locks it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        fs::create_dir_all(path.join("specs")).map_err(DiskError::io("create the directory", path))?;
        files::prepare(path).map_err(DiskError::io("create the directories of files in", path))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(DiskError::io("open the file", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => DiskError::Locked { path: path.to_owned() },
            error => DiskError::io("lock the file", &lock_path)(error.into()),
        })?;
        let dir = Self {
            path: path.to_owned(),
            _lock: lock,
            #[cfg(any(test, feature = "testing"))]
            cut: crate::cut::Cut::never(),
        };
        dir.sweep_leftovers();
        Ok(dir)
    }

    /// With the end of its life, for tests: from then on nothing is written.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_cut(mut self, cut: crate::cut::Cut) -> Self {
        self.cut = cut;
        self
    }

    #[cfg(any(test, feature = "testing"))]
    fn alive(&self, path: &Path) -> Result<(), DiskError> {
        if self.cut.is_dead() {
            return Err(DiskError::io("write the file", path)(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }

    /// Removes temporary files of writes that a crash cut short.
    fn sweep_leftovers(&self) {
        for folder in [
            self.path.clone(),
            self.path.join("specs"),
            self.path.join(files::CONTENT),
        ] {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".new")) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file; None when there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        read_file(&self.path.join(name))
    }

    /// Reads a JSON file; None when there is none.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DiskError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged = |error: serde_json::Error| DiskError::Damaged {
            path: self.path.join(name),
            why: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Writes a file whole; on return it is on disk.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.path.join(name);
        #[cfg(any(test, feature = "testing"))]
        {
            self.alive(&path)?;
            if self.cut.is_mortal() {
                let _torn = fs::write(path.with_extension("torn.new"), &bytes[..bytes.len() / 2]);
            }
            if self.cut.effect() {
                return self.alive(&path);
            }
        }
        write_file(&path, bytes)?;
        #[cfg(any(test, feature = "testing"))]
        let _last = self.cut.effect();
        Ok(())
    }

    /// Writes a JSON file whole.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), DiskError> {
        let path = self.path.join(name);
        let bytes = serde_json::to_vec(value).map_err(|error| DiskError::Damaged {
            path,
            why: error.to_string(),
        })?;
        self.write(name, &bytes)
    }

    /// Writes a JSON file that may be lost when the host is: whole, and not waited for.
    pub fn note_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), DiskError> {
        let path = self.path.join(name);
        #[cfg(test)]
        self.alive(&path)?;
        let temporary = self.path.join(format!("{name}.new"));
        let written = serde_json::to_vec(value)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(DiskError::io("write the file", &path))
    }

    /// Removes a file; missing is a success.
    pub fn remove(&self, name: &str) -> Result<(), DiskError> {
        let path = self.path.join(name);
        #[cfg(any(test, feature = "testing"))]
        self.alive(&path)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::io("remove the file", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Sets a damaged file aside under another name, for a person to look at.
    pub fn set_aside(&self, name: &str) {
        let _ = fs::rename(self.path.join(name), self.path.join(format!("{name}.damaged")));
    }

    /// Every accepted spec on disk, and what is damaged (which is set aside).
    pub fn specs(&self) -> Result<(KeptSpecs, Vec<DiskError>), DiskError> {
        let folder = self.path.join("specs");
        let (mut specs, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&folder).map_err(DiskError::io("list the directory", &folder))? {
            let path = entry.map_err(DiskError::io("list the directory", &folder))?.path();
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let Some(id) = parse_spec_name(&name) else { continue };
            match read_spec(&path, &id) {
                Ok(Some(accepted)) => specs.push((id, accepted)),
                Ok(None) => {}
                Err(error) => {
                    self.set_aside(&format!("specs/{name}"));
                    damaged.push(error);
                }
            }
        }
        Ok((specs, damaged))
    }

    /// Keeps the bytes of an accepted record.
    pub fn write_spec(&self, id: &SpecId, bytes: &[u8]) -> Result<(), DiskError> {
        self.write(&format!("specs/{}", spec_name(id)), bytes)
    }

    /// Keeps the content of files, of this digest.
    pub fn write_content(&self, digest: &FileDigest, bytes: &[u8]) -> Result<(), DiskError> {
        self.write(&format!("{}/{}", files::CONTENT, digest.hex()), bytes)
    }

    /// Forgets content.
    pub fn remove_content(&self, digest: &FileDigest) -> Result<(), DiskError> {
        self.remove(&format!("{}/{}", files::CONTENT, digest.hex()))
    }

    /// The content on disk, by digest.
    pub fn contents(&self) -> Result<BTreeSet<FileDigest>, DiskError> {
        let folder = self.path.join(files::CONTENT);
        files::contents(&self.path).map_err(DiskError::io("list the directory", &folder))
    }

    /// Forgets an accepted spec.
    pub fn remove_spec(&self, id: &SpecId) -> Result<(), DiskError> {
        self.remove(&format!("specs/{}", spec_name(id)))
    }
}

/// `default.service.web-3-<digest>.json`. Names hold no dots, so it parses back.
fn spec_name(id: &SpecId) -> String {
    let SpecId {
        resource: ResourceKey { namespace, kind, name },
        n,
        digest,
    } = id;
    let namespace = namespace.as_ref().map_or("_", |namespace| namespace.as_str());
    format!("{namespace}.{}.{name}.{n}.{digest}.json", kind.segment())
}

pub(crate) fn parse_spec_name(text: &str) -> Option<SpecId> {
    let mut parts = text.strip_suffix(".json")?.split('.');
    let namespace = Some(parts.next()?)
        .filter(|text| *text != "_")
        .map(str::parse)
        .transpose()
        .ok()?;
    let kind = Kind::from_segment(parts.next()?)?;
    let name = parts.next()?.parse().ok()?;
    let n = parts.next()?.parse().ok()?;
    let digest = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(SpecId {
        resource: ResourceKey { namespace, kind, name },
        n,
        digest,
    })
}

fn read_spec(path: &Path, id: &SpecId) -> Result<Option<Accepted>, DiskError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let damaged = |why: String| DiskError::Damaged {
        path: path.to_owned(),
        why,
    };
    if Digest::of(&bytes) != id.digest {
        return Err(damaged("its digest is not the one in its name".to_owned()));
    }
    Accepted::decode(&bytes)
        .map(Some)
        .map_err(|error| damaged(error.to_string()))
}

pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::io("open the file", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(DiskError::io("read the file", path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DiskError::Damaged {
            path: path.to_owned(),
            why: format!("it is over {MAX_FILE_BYTES} bytes"),
        });
    }
    Ok(Some(bytes))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        DiskError::io("write the file", path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::records::{AcceptedBody, ClusterId, SchemaVersion, Uid};

    fn accepted() -> (SpecId, Vec<u8>) {
        let resource = ResourceKey {
            namespace: Some("default".parse().unwrap()),
            kind: Kind::Service,
            name: "web".parse().unwrap(),
        };
        let record = Accepted {
            schema_version: SchemaVersion::default(),
            n: 3,
            uid: Uid::derive(&ClusterId::from_random([1; 16]), &resource, 1),
            desired_revision: 7,
            labels: Default::default(),
            annotations: Default::default(),
            body: AcceptedBody::Deleted,
        };
        let bytes = record.encode();
        (
            SpecId {
                resource,
                n: 3,
                digest: Digest::of(&bytes),
            },
            bytes,
        )
    }

    #[test]
    fn two_agents_never_share_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DiskError::Locked { .. })));
        drop(first);
        assert!(DataDir::open(folder.path()).is_ok());
    }

    #[test]
    fn a_damaged_spec_is_set_aside_and_hurts_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let (id, bytes) = accepted();
        dir.write_spec(&id, &bytes).unwrap();
        let mut other = id.clone();
        other.n = 4;
        dir.write_spec(&other, b"{ not the bytes }").unwrap();
        let (specs, damaged) = dir.specs().unwrap();
        assert_eq!(specs.len(), 1);
        assert_eq!(specs[0].0, id);
        assert_eq!(damaged.len(), 1);
        assert!(dir.specs().unwrap().1.is_empty(), "it was set aside");
    }

    #[test]
    fn a_write_cut_short_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        dir.write("a.json", b"1").unwrap();
        std::fs::write(folder.path().join("a.json.new"), b"half").unwrap();
        drop(dir);
        let dir = DataDir::open(folder.path()).unwrap();
        assert_eq!(dir.read("a.json").unwrap().as_deref(), Some(&b"1"[..]));
        assert!(!folder.path().join("a.json.new").exists());
    }
}
