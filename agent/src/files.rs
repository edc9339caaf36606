//! Files that containers mount: their content on the node's disk under the digest it was accepted with, and for each
//! container copies of its own with owner and mode, bound read-only. The loop calls this. It promises: nothing is copied
//! whose digest is wrong, a copy is whole or not there, no link is followed, and no copy goes before its container.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use schemas::config_file::{FileDigest, MAX_FILE_BYTES};
use schemas::container::{ContainerSpec, SecretUse};
use schemas::names::Namespace;
use schemas::records::FailingReason;
use zeroize::Zeroizing;

use crate::engine::FileBind;

/// Content, one file each, named by the digits of its digest.
pub const CONTENT: &str = "files";
/// Copies, one directory for each container, named like it.
pub const COPIES: &str = "containers";

/// Why a container's files cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read `{}`: it is not the content of {digest}; it is fetched again", path.display())]
    Damaged { path: PathBuf, digest: FileDigest },
    #[error("lay out the file at `{target}`: its accepted spec names no edition; apply the service again")]
    NoEdition { target: String },
}

impl LayError {
    fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { act, path, source }
    }

    /// What it means for the instance.
    #[must_use]
    pub fn reason(&self) -> FailingReason {
        match self {
            Self::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                FailingReason::DiskFull
            }
            Self::Io { .. } | Self::Damaged { .. } => FailingReason::FileUnavailable,
            Self::NoEdition { .. } => FailingReason::SpecUnreadable,
        }
    }
}

/// Makes the directories, readable by nobody else.
///
/// # Errors
/// When the disk cannot be written.
pub fn prepare(data: &Path) -> io::Result<()> {
    for name in [CONTENT, COPIES] {
        own_directory(&data.join(name))?;
    }
    Ok(())
}

/// A directory of ours: not a link to one, and closed to others.
pub(crate) fn own_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !fs::symlink_metadata(path)?.is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no directory"));
            }
            fs::set_permissions(path, Permissions::from_mode(0o700))
        }
        made => made,
    }
}

/// The content that is on disk, by digest. It is verified whenever it is copied.
///
/// # Errors
/// When the directory cannot be read.
pub fn contents(data: &Path) -> io::Result<BTreeSet<FileDigest>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(data.join(CONTENT))? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| FileDigest::from_hex(name).ok()));
    }
    Ok(found)
}

/// What one container mounts, and where that is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    content: PathBuf,
    /// The container's own directory.
    place: PathBuf,
    copies: Vec<FileCopy>,
}

#[derive(Clone, Debug)]
struct FileCopy {
    digest: FileDigest,
    size: u64,
    copy: Copy,
    target: String,
}

/// How a file of a container looks.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    /// None: nobody asked for one, so root's where that can be.
    owner: Option<(u32, u32)>,
    mode: u32,
}

impl Layout {
    /// The files of a container of this name; None when it mounts none.
    ///
    /// # Errors
    /// When the spec does not say which editions it mounts.
    pub fn of(data: &Path, container: &str, spec: &ContainerSpec) -> Result<Option<Self>, LayError> {
        if spec.files.is_empty() {
            return Ok(None);
        }
        let copy = |mount: &schemas::container::FileMount| {
            let edition = mount.edition.ok_or_else(|| LayError::NoEdition {
                target: mount.path.clone(),
            })?;
            Ok(FileCopy {
                digest: edition.digest,
                size: edition.size,
                copy: Copy {
                    owner: mount.owner.as_ref().and_then(|_| mount.owner()),
                    mode: mount.mode(),
                },
                target: mount.path.clone(),
            })
        };
        // The engine knows no working directory of ours.
        let data = std::path::absolute(data).map_err(LayError::io("find the directory", data))?;
        Ok(Some(Self {
            content: data.join(CONTENT),
            place: data.join(COPIES).join(container),
            copies: spec.files.iter().map(copy).collect::<Result<_, LayError>>()?,
        }))
    }

    /// Lays the files out. Copies that are there as they ought to be are left alone, unless `anew`: no container uses them.
    /// Blocks; for a thread of its own.
    ///
    /// # Errors
    /// When content is damaged (it is put aside then, to be fetched again) or the disk cannot be written.
    pub fn lay(&self, anew: bool) -> Result<Vec<FileBind>, LayError> {
        own_directory(&self.place).map_err(LayError::io("make the directory", &self.place))?;
        let mut changed = false;
        let mut binds = Vec::with_capacity(self.copies.len());
        for (index, one) in self.copies.iter().enumerate() {
            let path = self.place.join(index.to_string());
            if anew || !one.copy.is_at(&path, one.size) {
                let bytes = self.content_of(one)?;
                one.copy
                    .write(&path, &bytes)
                    .map_err(LayError::io("write the file", &path))?;
                changed = true;
            }
            binds.push(FileBind {
                source: path,
                target: one.target.clone(),
            });
        }
        if changed {
            let synced = File::open(&self.place).and_then(|folder| folder.sync_all());
            synced.map_err(LayError::io("sync the directory", &self.place))?;
        }
        Ok(binds)
    }

    fn content_of(&self, copy: &FileCopy) -> Result<Vec<u8>, LayError> {
        let path = self.content.join(copy.digest.hex());
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(LayError::io("read the file", &path))?;
        if bytes.len() as u64 != copy.size || FileDigest::of(&bytes) != copy.digest {
            let _ = fs::rename(&path, path.with_extension("damaged"));
            return Err(LayError::Damaged {
                path,
                digest: copy.digest,
            });
        }
        Ok(bytes)
    }
}

impl Copy {
    /// As a secret's file is to look.
    pub(crate) fn of_secret(one: &SecretUse) -> Self {
        Self {
            owner: one.owner.as_ref().and_then(|_| one.owner()),
            mode: one.mode(),
        }
    }

    /// Whether this copy is there, with these very bytes.
    pub(crate) fn holds(&self, path: &Path, bytes: &[u8]) -> bool {
        let same = || {
            fs::read(path)
                .map(Zeroizing::new)
                .is_ok_and(|found| found.as_slice() == bytes)
        };
        self.is_at(path, bytes.len() as u64) && same()
    }

    /// Whether this copy is there, as far as it can be seen without reading it.
    fn is_at(&self, path: &Path, size: u64) -> bool {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        fs::symlink_metadata(path).is_ok_and(|found| {
            found.is_file()
                && found.len() == size
                && found.mode() & 0o7777 == self.mode
                && (self.owner.is_none() || (found.uid(), found.gid()) == (uid, gid))
        })
    }

    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // New, so that nothing that somebody put there is followed or written to.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| self.dress(&file)).and_then(|()| {
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn dress(&self, file: &File) -> io::Result<()> {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        match std::os::unix::fs::fchown(file, Some(uid), Some(gid)) {
            // An agent that is not root can give its files to nobody else.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.owner.is_none() => {}
            changed => changed?,
        }
        file.set_permissions(Permissions::from_mode(self.mode))
    }
}

/// Removes the copies of one container. None is a success.
pub fn drop_copies_of(data: &Path, container: &str) -> io::Result<()> {
    drop_one(&data.join(COPIES), container)
}

/// Removes what is kept for one container below a directory. None is a success.
pub(crate) fn drop_one(folder: &Path, container: &str) -> io::Result<()> {
    match fs::remove_dir_all(folder.join(container)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the copies of containers that are not among `keep`. What cannot be removed is tried again with the next call.
pub fn drop_copies(data: &Path, keep: &BTreeSet<String>) -> io::Result<()> {
    drop_others(&data.join(COPIES), keep)
}

/// Removes what is kept below a directory for containers that are not among `keep`.
pub(crate) fn drop_others(folder: &Path, keep: &BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kept = entry.file_name().to_str().is_some_and(|name| keep.contains(name));
        if !kept {
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// What an instance mounts, as ids to fetch.
pub fn editions<'s>(
    namespace: &'s Namespace,
    spec: &'s ContainerSpec,
) -> impl Iterator<Item = planner::node::FileId> + 's {
    spec.files
        .iter()
        .filter_map(|mount| planner::node::FileId::of(namespace, mount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::config_file::FileEdition;

    fn spec(mounts: serde_json::Value) -> ContainerSpec {
        serde_json::from_value(serde_json::json!({ "image": "app:1", "files": mounts })).unwrap()
    }

    fn edition(bytes: &[u8]) -> serde_json::Value {
        let edition = FileEdition {
            n: 1,
            digest: FileDigest::of(bytes),
            size: bytes.len() as u64,
        };
        serde_json::to_value(edition).unwrap()
    }

    /// A data directory that has this content.
    fn data(contents: &[&[u8]]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        for bytes in contents {
            fs::write(folder.path().join(CONTENT).join(FileDigest::of(bytes).hex()), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn copies_have_their_content_owner_and_mode_and_are_closed_to_others() {
        let folder = data(&[b"one", b"\x00\xff"]);
        let spec = spec(serde_json::json!([
            { "file": "a", "path": "/a", "edition": edition(b"one") },
            { "file": "b", "path": "/b", "mode": "0600", "owner": "101:102", "edition": edition(b"\x00\xff") },
            { "file": "a", "path": "/c", "owner": "7", "edition": edition(b"one") },
        ]));
        let layout = Layout::of(folder.path(), "default.web.1.1", &spec).unwrap().unwrap();
        let binds = layout.lay(true).unwrap();
        let targets: Vec<&str> = binds.iter().map(|bind| bind.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/b", "/c"]);
        let seen: Vec<_> = binds
            .iter()
            .map(|bind| {
                let found = fs::metadata(&bind.source).unwrap();
                (
                    fs::read(&bind.source).unwrap(),
                    found.uid(),
                    found.gid(),
                    found.mode() & 0o7777,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (b"one".to_vec(), 0, 0, 0o444),
                (b"\x00\xff".to_vec(), 101, 102, 0o600),
                (b"one".to_vec(), 7, 7, 0o444)
            ]
        );
        for folder in [
            folder.path().join(COPIES),
            folder.path().join(COPIES).join("default.web.1.1"),
        ] {
            assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn damaged_content_is_never_copied_and_is_put_aside() {
        let folder = data(&[b"one"]);
        let content = folder.path().join(CONTENT).join(FileDigest::of(b"one").hex());
        fs::write(&content, b"two").unwrap();
        let spec = spec(serde_json::json!([{ "file": "a", "path": "/a", "edition": edition(b"one") }]));
        let layout = Layout::of(folder.path(), "c", &spec).unwrap().unwrap();
        let error = layout.lay(true).unwrap_err();
        assert!(matches!(error, LayError::Damaged { .. }), "{error}");
        assert!(contents(folder.path()).unwrap().is_empty(), "so it is fetched again");
        assert!(!folder.path().join(COPIES).join("c/0").exists());
    }

    #[test]
    fn no_link_is_followed_where_a_copy_is_made() {
        let folder = data(&[b"one"]);
        let outside = folder.path().join("outside");
        fs::write(&outside, b"untouched").unwrap();
        let spec = spec(serde_json::json!([{ "file": "a", "path": "/a", "edition": edition(b"one") }]));
        let layout = Layout::of(folder.path(), "c", &spec).unwrap().unwrap();
        layout.lay(true).unwrap();
        let copy = folder.path().join(COPIES).join("c/0");
        fs::remove_file(&copy).unwrap();
        for name in ["0", "0.new"] {
            std::os::unix::fs::symlink(&outside, folder.path().join(COPIES).join("c").join(name)).unwrap();
        }
        layout.lay(false).unwrap();
        assert!(fs::symlink_metadata(&copy).unwrap().is_file());
        assert_eq!(fs::read(&outside).unwrap(), b"untouched");
        // A directory that is a link is refused.
        fs::remove_dir_all(folder.path().join(COPIES).join("c")).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join(COPIES).join("c")).unwrap();
        assert!(layout.lay(false).is_err());
    }

    #[test]
    fn a_copy_that_was_lost_or_changed_is_made_again_and_others_go_with_their_containers() {
        let folder = data(&[b"one"]);
        let spec = spec(serde_json::json!([{ "file": "a", "path": "/a", "edition": edition(b"one") }]));
        let lay = |name: &str| {
            let layout = Layout::of(folder.path(), name, &spec).unwrap().unwrap();
            layout.lay(false).unwrap()[0].source.clone()
        };
        let (one, two) = (lay("default.web.1.1"), lay("default.web.1.2"));
        fs::set_permissions(&one, Permissions::from_mode(0o666)).unwrap();
        lay("default.web.1.1");
        assert_eq!(fs::metadata(&one).unwrap().mode() & 0o777, 0o444);
        drop_copies(folder.path(), &BTreeSet::from(["default.web.1.2".to_owned()])).unwrap();
        assert!(!one.exists() && two.exists());
    }
}
