//! Host paths: where one leads, and which places of a host are more than a path. Called by the policy's check and by the
//! gate; looking a path up reads the file system, the rest is pure.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where each asked path leads, or why that cannot be told.
pub type Resolved = BTreeMap<String, Result<PathBuf, String>>;

/// Control sockets, kernel interfaces and the data of engines and stores: a line for a directory above does not open them.
const GUARDED: &[&str] = &[
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/root",
    "/run/buildkit",
    "/run/containerd",
    "/run/crio",
    "/run/dbus",
    "/run/docker",
    "/run/docker.sock",
    "/run/docker.pid",
    "/run/podman",
    "/run/reeve",
    "/run/secrets",
    "/run/systemd",
    "/sys",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/spool/cron",
    "/var/lib/reeve",
];

/// Places that are more than a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Reeve's own: no policy opens them.
    own: Vec<PathBuf>,
    /// Opened only by a line that names them, or something in them.
    guarded: Vec<PathBuf>,
}

impl Guarded {
    /// These, and the usual ones, each also as where it leads.
    #[must_use]
    pub fn new(own: Vec<PathBuf>, guarded: Vec<PathBuf>) -> Self {
        let both = |list: Vec<PathBuf>| -> Vec<PathBuf> {
            let mut all = Vec::new();
            for path in list {
                if let Some(leads) = path.to_str().and_then(|text| resolve(text).ok()) {
                    all.push(leads);
                }
                all.push(path);
            }
            all.sort();
            all.dedup();
            all
        };
        let usual = GUARDED.iter().map(PathBuf::from);
        Self {
            own: both(own),
            guarded: both(usual.chain(guarded).collect()),
        }
    }

    /// Guards one more.
    pub fn guard(&mut self, path: PathBuf) {
        *self = Self::new(
            std::mem::take(&mut self.own),
            std::mem::take(&mut self.guarded).into_iter().chain([path]).collect(),
        );
    }

    /// Whether this very path is guarded.
    #[must_use]
    pub fn names(&self, path: &Path) -> bool {
        self.guarded.iter().chain(&self.own).any(|one| one == path)
    }

    /// The place of Reeve's own that a path is in.
    #[must_use]
    pub fn own(&self, path: &Path) -> Option<&Path> {
        self.own.iter().find(|own| path.starts_with(own)).map(PathBuf::as_path)
    }

    /// Whether a line of the policy for `line` opens `path`.
    #[must_use]
    pub fn opens(&self, line: &Path, path: &Path) -> bool {
        if !path.starts_with(line) {
            return false;
        }
        let all = || self.own.iter().chain(&self.guarded);
        // What holds such a place in itself must be named itself.
        let holds = all().any(|place| place.starts_with(path) && place != path);
        let inside = all().filter(|place| path.starts_with(place));
        (!holds || line == path) && inside.into_iter().all(|place| line.starts_with(place))
    }

    /// What makes a path more than a path: the guarded place it is, is in, or holds.
    #[must_use]
    pub fn why(&self, path: &Path) -> Option<&Path> {
        let all = || self.own.iter().chain(&self.guarded).map(PathBuf::as_path);
        all()
            .find(|place| path.starts_with(place))
            .or_else(|| all().find(|place| place.starts_with(path)))
    }
}

/// Where a path of this host leads, through every link. What is not there yet leads to itself; a link that leads nowhere is
/// an error, for it may lead somewhere the next moment.
pub fn resolve(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err("it is no absolute path".to_owned());
    }
    if path.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err("it has `..` in it".to_owned());
    }
    // Without repeated and trailing slashes, as the engine takes it.
    let path: PathBuf = path.components().collect();
    let mut missing: Vec<&std::ffi::OsStr> = Vec::new();
    let mut there = path.as_path();
    loop {
        match std::fs::canonicalize(there) {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |real, part| real.join(part))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if std::fs::symlink_metadata(there).is_ok() {
                    return Err(format!("`{}` is a link that leads nowhere", there.display()));
                }
                let (Some(name), Some(parent)) = (there.file_name(), there.parent()) else {
                    return Err(format!("look it up: {error}"));
                };
                missing.push(name);
                there = parent;
            }
            Err(error) => return Err(format!("it cannot be looked up: {error}")),
        }
    }
}
