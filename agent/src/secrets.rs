//! Secrets that containers get: opened for the one container that is about to start, and laid out as files in memory, where
//! the engine binds them read-only; or given as variables, which the engine keeps. The loop calls this. It promises: a value is
//! written to a tmpfs and nowhere else, no link is followed, and no file goes before its container.
//!
//! After a reboot the memory is empty, and what a container needs is laid out again before its start: the node keeps what
//! it was handed, sealed, on its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use planner::node::SecretState;
use rustix::process::geteuid;
use schemas::container::{ContainerSpec, SecretUse};
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Digest, HandedSecret};
use schemas::secret::{MAX_SECRET_BYTES, SecretEdition};
use trust::seal::{Context, Envelope, SealError};
use zeroize::Zeroizing;

use crate::engine::FileBind;
use crate::files::{self, Copy};
use crate::logins::Logins;

/// File systems in memory, by what `statfs` calls them: tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// Where those usually are.
const PLACES: [&str; 2] = ["/run", "/dev/shm"];

/// Why a container's secrets cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("open edition {n} of secret `{name}`, which was sealed for this node")]
    Closed {
        name: ResourceName,
        n: u64,
        #[source]
        source: SealError,
    },
    #[error("edition {n} of secret `{name}` was not handed to this node")]
    NotHanded { name: ResourceName, n: u64 },
    #[error("secret `{name}` holds bytes that no variable can have: give it a `path` instead of `env`")]
    NotText { name: ResourceName },
    #[error("the accepted spec names no edition of secret `{name}`: apply the service again")]
    NoEdition { name: ResourceName },
    #[error("{0}")]
    NoMemory(String),
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A variable whose value is a secret.
#[derive(Clone)]
pub struct SecretVariable {
    pub name: String,
    pub value: Zeroizing<String>,
}

impl fmt::Debug for SecretVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretVariable({})", self.name)
    }
}

// ---- opening --------------------------------------------------------------------------------------------------------------

impl Logins {
    /// The value of an edition, if it was handed to this node and is what its digest says.
    fn secret(
        &self,
        namespace: &Namespace,
        name: &ResourceName,
        edition: &SecretEdition,
    ) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let handed = self.handed();
        let same = |one: &&HandedSecret| (&one.namespace, &one.name, &one.edition) == (namespace, name, edition);
        let found = handed.as_ref().and_then(|handed| handed.secrets.iter().find(same));
        match found {
            Some(one) => self.opened_secret(one),
            None => Err(SecretError::NotHanded {
                name: name.clone(),
                n: edition.n,
            }),
        }
    }

    fn opened_secret(&self, one: &HandedSecret) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let HandedSecret {
            namespace,
            name,
            edition,
            envelope,
        } = one;
        let closed = |source| SecretError::Closed {
            name: name.clone(),
            n: edition.n,
            source,
        };
        let as_what = Context {
            cluster: self.cluster().map_err(closed)?,
            namespace: namespace.as_str(),
            kind: "secret",
            name: name.as_str(),
            edition: edition.n,
        };
        let envelope: Envelope =
            serde_json::from_value(envelope.clone()).map_err(|_| closed(SealError::NotEnvelope))?;
        // The digest is in the accepted spec, which a controller signed: nobody puts another value in its place.
        if envelope.digest(as_what).bytes() != edition.digest.bytes() {
            return Err(closed(SealError::DoesNotOpen));
        }
        let value = envelope.open(as_what, self.key()).map_err(closed)?;
        if value.len() > MAX_SECRET_BYTES {
            return Err(closed(SealError::TooLong { found: value.len() }));
        }
        Ok(value)
    }

    /// What the planner is told of each edition that was handed to this node.
    pub(crate) fn secret_states(&self, place: &SecretPlace) -> BTreeMap<Digest, Result<SecretState, String>> {
        let Some(handed) = self.handed().filter(|handed| !handed.secrets.is_empty()) else {
            return BTreeMap::new();
        };
        let place = place.ready().map_err(|error| runtime::chain(&error));
        let state = |one: &HandedSecret| {
            place.clone()?;
            let value = self.opened_secret(one).map_err(|error| runtime::chain(&error))?;
            Ok(if variable(&value).is_some() {
                SecretState::Text
            } else {
                SecretState::Bytes
            })
        };
        let states = handed
            .secrets
            .iter()
            .map(|one| (one.edition.digest.clone(), state(one)));
        states.collect()
    }
}

/// A value as a variable can have it.
fn variable(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'))
}

// ---- laying out -----------------------------------------------------------------------------------------------------------

/// The directory in memory that is this agent's, found at the first need.
#[derive(Debug)]
pub struct SecretPlace {
    /// Of the data directory: two agents of one host share no place.
    name: String,
    found: OnceLock<PathBuf>,
}

impl SecretPlace {
    /// For the agent of this data directory.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
        let digest = Digest::of(data.as_os_str().as_encoded_bytes());
        Self {
            name: digest.as_str().chars().take(16).collect(),
            found: OnceLock::new(),
        }
    }

    /// A directory on a tmpfs, closed to others.
    pub(crate) fn ready(&self) -> Result<&Path, SecretError> {
        if let Some(found) = self.found.get() {
            // Somebody may have tidied up since.
            let made = found
                .parent()
                .map_or(Ok(()), own_directory)
                .and_then(|()| own_directory(found));
            made.map_err(io_error("make the directory", found))?;
            return Ok(found);
        }
        let mut why = None;
        for base in bases() {
            let Some(parent) = base.parent().filter(|parent| in_memory(parent)) else {
                continue;
            };
            let place = base.join(&self.name);
            let made = own_directory(&base).and_then(|()| own_directory(&place));
            match made {
                Ok(()) if in_memory(&place) => return Ok(self.found.get_or_init(|| place)),
                Ok(()) => {}
                Err(error) => {
                    why = Some(format!(
                        "`{}` cannot be used below `{}`: {error}",
                        base.display(),
                        parent.display()
                    ))
                }
            }
        }
        let places = PLACES.join("` and `");
        Err(SecretError::NoMemory(why.unwrap_or_else(|| {
            format!("neither of `{places}` is a tmpfs, and secrets are laid out on no disk: mount a tmpfs there")
        })))
    }
}

/// The directories that hold those of agents, the best first. A policy opens none of them.
pub(crate) fn bases() -> Vec<PathBuf> {
    let user = geteuid();
    // Of a person's own session, which ends with it: good enough for what this person runs, and for nobody else.
    let session = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !user.is_root() && !path.is_empty());
    let own = session.map(PathBuf::from).into_iter();
    let all = own.chain(PLACES.iter().map(PathBuf::from));
    all.map(|place| place.join(format!("reeve-secrets-{}", user.as_raw())))
        .collect()
}

/// A directory of ours, where anybody may have made one before: not a link to one, not somebody else's, closed to others.
fn own_directory(path: &Path) -> io::Result<()> {
    files::own_directory(path)?;
    if fs::symlink_metadata(path)?.uid() == geteuid().as_raw() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is somebody else's"))
    }
}

fn in_memory(path: &Path) -> bool {
    let kind = rustix::fs::statfs(path).ok();
    let kind = kind.and_then(|kind| u64::try_from(kind.f_type).ok());
    kind.is_some_and(|kind| IN_MEMORY.contains(&kind))
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    let path = path.to_owned();
    move |source| SecretError::Io { act, path, source }
}

/// What one container gets.
#[derive(Clone, Debug)]
pub struct SecretLayout {
    place: Arc<SecretPlace>,
    logins: Arc<Logins>,
    container: String,
    namespace: Namespace,
    uses: Vec<SecretUse>,
}

impl SecretLayout {
    /// The secrets of a container of this name; None when it gets none.
    pub fn of(
        place: &Arc<SecretPlace>,
        logins: &Arc<Logins>,
        container: &str,
        namespace: &Namespace,
        spec: &ContainerSpec,
    ) -> Option<Self> {
        (!spec.secrets.is_empty()).then(|| Self {
            place: place.clone(),
            logins: logins.clone(),
            container: container.to_owned(),
            namespace: namespace.clone(),
            uses: spec.secrets.clone(),
        })
    }

    /// Lays the files out, and opens the variables of a container that is made `anew`. Files that are there as they ought to
    /// be are left alone otherwise, also when what was handed to this node has gone since. Blocks.
    ///
    /// # Errors
    /// When a value is not to be had, or there is no memory to lay it out in.
    pub fn lay(&self, anew: bool) -> Result<(Vec<FileBind>, Vec<SecretVariable>), SecretError> {
        let (mut binds, mut variables) = (Vec::new(), Vec::new());
        for (index, one) in self.uses.iter().enumerate() {
            let edition = one.edition.as_ref().ok_or_else(|| SecretError::NoEdition {
                name: one.secret.clone(),
            })?;
            let value = || self.logins.secret(&self.namespace, &one.secret, edition);
            match (&one.env, one.path()) {
                (Some(_), _) if !anew => {}
                (Some(name), _) => {
                    let value = value()?;
                    let text = variable(&value).ok_or_else(|| SecretError::NotText {
                        name: one.secret.clone(),
                    })?;
                    variables.push(SecretVariable {
                        name: name.clone(),
                        value: Zeroizing::new(text.to_owned()),
                    });
                }
                (None, None) => {}
                (None, Some(target)) => {
                    let folder = self.place.ready()?.join(&self.container);
                    own_directory(&folder).map_err(io_error("make the directory", &folder))?;
                    let source = folder.join(index.to_string());
                    let copy = Copy::of_secret(one);
                    match value() {
                        Ok(value) if anew || !copy.holds(&source, &value) => {
                            copy.write(&source, &value)
                                .map_err(io_error("write the file", &source))?;
                        }
                        Ok(_) => {}
                        Err(_) if !anew && source.is_file() => {}
                        Err(error) => return Err(error),
                    }
                    binds.push(FileBind { source, target });
                }
            }
        }
        Ok((binds, variables))
    }
}

/// Removes the files of containers that are not among `keep`.
pub(crate) fn drop_others(place: &SecretPlace, keep: &BTreeSet<String>) -> io::Result<()> {
    match place.found.get().cloned().or_else(|| place.left()) {
        Some(folder) => files::drop_others(&folder, keep),
        None => Ok(()),
    }
}

/// Removes the files of one container. None is a success.
pub(crate) fn drop_one(place: &SecretPlace, container: &str) -> io::Result<()> {
    match place.found.get().cloned().or_else(|| place.left()) {
        Some(folder) => files::drop_one(&folder, container),
        None => Ok(()),
    }
}

impl SecretPlace {
    /// What an earlier process of this agent left, before there is a need again.
    fn left(&self) -> Option<PathBuf> {
        let mine = |path: &PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
        };
        let places = bases().into_iter().filter(mine).map(|base| base.join(&self.name));
        places.filter(mine).find(|place| in_memory(place))
    }
}

/// Sealing as a leader does, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use trust::publish::{Believed, Holder};
    use trust::seal::{Reader, SealingPublic};
    use trust::validity::Time;

    use super::*;

    fn reader(published: &str, cluster: trust::identity::ClusterId) -> Reader {
        let node: trust::identity::Name = "n1".parse().unwrap();
        let believed = Believed::Store(cluster);
        let reader = believed.reader(published, Holder::Node(&node), Time::from_unix_seconds(0));
        reader.unwrap()
    }

    /// The key that a node published.
    pub(crate) fn public(published: &str, cluster: &schemas::records::ClusterId) -> SealingPublic {
        reader(published, cluster.as_str().parse().unwrap()).key()
    }

    /// A value sealed for the node that published this key.
    pub(crate) fn sealed(
        published: &str,
        cluster: &schemas::records::ClusterId,
        name: &str,
        n: u64,
        value: &[u8],
    ) -> HandedSecret {
        let cluster = cluster.as_str().parse().unwrap();
        let as_what = Context {
            cluster,
            namespace: "default",
            kind: "secret",
            name,
            edition: n,
        };
        let envelope = Envelope::seal(as_what, value, &[reader(published, cluster)]).unwrap();
        let digest = envelope.digest(as_what).to_string().parse().unwrap();
        HandedSecret {
            namespace: Namespace::default(),
            name: name.parse().unwrap(),
            edition: SecretEdition { n, digest },
            envelope: serde_json::to_value(&envelope).unwrap(),
        }
    }
}

#[cfg(test)]
mod tests;
