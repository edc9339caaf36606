//! What a host keeps on its disk of who it is: a directory for its owner alone, files written whole or not at all. Seeds and
//! agents have one each; nothing in it leaves the host but certificates.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trust::authority::{Authority, AuthorityError};
use trust::bundle::{Bundle, BundleError};
use trust::certificate::{AuthorityCertificate, Certificate, CertificateError};
use trust::key::{Fingerprint, Key, KeyError};
use trust::revoked::ListError;

/// The files of the authority that a cluster begins with.
const FIRST: &str = "authority";
/// How the files of those that follow it begin.
const LATER: &str = "authority-";

/// The files of a later authority: by the beginning of its pin.
fn later(pin: &Fingerprint) -> String {
    format!("{LATER}{}", &pin.to_string()[..16])
}

/// No file of ours is larger.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The directory.
#[derive(Debug)]
pub struct Keep {
    dir: PathBuf,
    /// Held as long as the process lives: two of them never work on one directory.
    _lock: Option<File>,
}

/// How a client reaches the store: `context.json` in the directories of seeds and agents. The verbs read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Context {
    /// Client URLs.
    pub endpoints: Vec<String>,
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The file of a [`Context`].
pub const CONTEXT: &str = "context.json";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("cannot {act} {}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is in use by another process of reeve: end it first, or choose another --data-dir", path.display())]
    InUse { path: PathBuf },
    #[error("{} is larger than {MAX_FILE_BYTES} bytes, which no file of ours is", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not what this release wrote", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} holds no key", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("{} holds no certificate", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: CertificateError,
    },
    #[error("{} holds no authority", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: AuthorityError,
    },
    #[error("{} holds no authorities", path.display())]
    Bundle {
        path: PathBuf,
        #[source]
        source: BundleError,
    },
    #[error("{} holds no list of the revoked", path.display())]
    Revoked {
        path: PathBuf,
        #[source]
        source: ListError,
    },
    #[error("{} has the certificate of another key than the one beside it", path.display())]
    Mismatch { path: PathBuf },
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Held {
    pub certificate: Certificate,
    pub key: Key,
}

impl Keep {
    /// Opens the directory, and makes it where it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or another process has it.
    pub fn open(dir: &Path) -> Result<Self, KeepError> {
        let io = |act| {
            move |source| KeepError::Io {
                act,
                path: dir.to_owned(),
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io("make"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(io("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| KeepError::InUse { path: dir.to_owned() })?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: Some(lock),
        })
    }

    /// The directory that another process has, for reading.
    #[must_use]
    pub fn beside(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _lock: None,
        }
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn io<T>(&self, act: &'static str, name: &str, done: std::io::Result<T>) -> Result<T, KeepError> {
        let path = self.path(name);
        done.map_err(|source| KeepError::Io { act, path, source })
    }

    /// A file, or None where there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, KeepError> {
        let mut bytes = Vec::new();
        let file = match File::open(self.path(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => self.io("open", name, opened)?,
        };
        self.io("read", name, file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(KeepError::TooLarge { path: self.path(name) });
        }
        Ok(Some(bytes))
    }

    fn text(&self, name: &str) -> Result<Option<String>, KeepError> {
        Ok(self
            .read(name)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Writes a file for the owner alone; a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), KeepError> {
        let (beside, path) = (self.path(&format!("{name}.new")), self.path(name));
        let _ = std::fs::remove_file(&beside);
        let written = || {
            let mut file = OpenOptions::new()
                .create_new(true)
                .write(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        self.io("write", name, written())
    }

    /// # Errors
    /// When it is there and not what it should be.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, KeepError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let path = self.path(name);
        let value = serde_json::from_slice(&bytes).map_err(|source| KeepError::Json { path, source })?;
        Ok(Some(value))
    }

    /// # Errors
    /// When the disk does not take it.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), KeepError> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| KeepError::Json {
            path: self.path(name),
            source,
        })?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    /// The key `<name>.key`; made now where there is none. So a crash in the middle of joining asks again with the same key.
    ///
    /// # Errors
    /// When there is no randomness, or the disk does not take it.
    pub fn key(&self, name: &str) -> Result<Key, KeepError> {
        let file = format!("{name}.key");
        let wrong = |source| KeepError::Key {
            path: self.path(&file),
            source,
        };
        if let Some(text) = self.text(&file)? {
            return Key::from_pem(&text).map_err(wrong);
        }
        let key = Key::generate().map_err(wrong)?;
        self.write(&file, key.to_pem().as_bytes())?;
        Ok(key)
    }

    /// The certificate `<name>.crt` with its key, where both are here.
    ///
    /// # Errors
    /// When they are damaged or do not belong together.
    pub fn held(&self, name: &str) -> Result<Option<Held>, KeepError> {
        let file = format!("{name}.crt");
        let path = self.path(&file);
        let Some(text) = self.text(&file)? else { return Ok(None) };
        let certificate = Certificate::from_pem(&text).map_err(|source| KeepError::Certificate {
            path: path.clone(),
            source,
        })?;
        let key = self.key(name)?;
        if *certificate.key() == key.public() {
            Ok(Some(Held { certificate, key }))
        } else {
            Err(KeepError::Mismatch { path })
        }
    }

    /// # Errors
    /// When the disk does not take it.
    pub fn write_certificate(&self, name: &str, certificate: &Certificate) -> Result<(), KeepError> {
        self.write(&format!("{name}.crt"), certificate.to_pem().as_bytes())
    }

    /// Forgets who this host was: its key, its certificate, and how it reached the store. What they were, for one who does not
    /// become anybody else.
    ///
    /// # Errors
    /// When the disk does not let go of them.
    pub fn set_aside(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>, KeepError> {
        let mut files = Vec::new();
        for file in [CONTEXT.to_owned(), format!("{name}.crt"), format!("{name}.key")] {
            if let Some(bytes) = self.read(&file)? {
                self.remove(&file)?;
                files.push((file, bytes));
            }
        }
        Ok(files)
    }

    /// Puts back what was set aside.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn bring_back(&self, files: &[(String, Vec<u8>)]) -> Result<(), KeepError> {
        // The key first: with the context the host has joined.
        for (file, bytes) in files.iter().rev() {
            self.write(file, bytes)?;
        }
        Ok(())
    }

    /// The authority with this pin and its key, on a seed.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn authority(&self, pin: &Fingerprint) -> Result<Option<Authority>, KeepError> {
        for name in [later(pin), FIRST.to_owned()] {
            let file = format!("{name}.crt");
            let (Some(certificate), Some(key)) = (self.text(&file)?, self.text(&format!("{name}.key"))?) else {
                continue;
            };
            let authority = Authority::from_pem(&certificate, &key).map_err(|source| KeepError::Authority {
                path: self.path(&file),
                source,
            })?;
            if authority.certificate().fingerprint() == *pin {
                return Ok(Some(authority));
            }
        }
        Ok(None)
    }

    /// Keeps an authority: the one that a cluster begins with.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write_authority(&self, authority: &Authority) -> Result<(), KeepError> {
        self.write_authority_as(FIRST, authority)
    }

    /// Keeps an authority beside those that are here.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write_later_authority(&self, authority: &Authority) -> Result<(), KeepError> {
        self.write_authority_as(&later(&authority.certificate().fingerprint()), authority)
    }

    fn write_authority_as(&self, name: &str, authority: &Authority) -> Result<(), KeepError> {
        self.write(&format!("{name}.key"), authority.key_pem().as_bytes())?;
        self.write(&format!("{name}.crt"), authority.certificate().to_pem().as_bytes())
    }

    /// The pins of the authorities whose keys are here.
    ///
    /// # Errors
    /// When the directory cannot be read, or one is damaged.
    pub fn authorities(&self) -> Result<Vec<Fingerprint>, KeepError> {
        let mut pins = Vec::new();
        for entry in self.io("list", "", std::fs::read_dir(&self.dir))? {
            let name = self.io("list", "", entry)?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".key")) else {
                continue;
            };
            if name != FIRST && !name.starts_with(LATER) {
                continue;
            }
            let file = format!("{name}.crt");
            let Some(text) = self.text(&file)? else { continue };
            let found = AuthorityCertificate::all_from_pem(&text).map_err(|source| KeepError::Certificate {
                path: self.path(&file),
                source,
            })?;
            pins.extend(found.iter().map(AuthorityCertificate::fingerprint));
        }
        Ok(pins)
    }

    /// Destroys the key of an authority, and its certificate.
    ///
    /// # Errors
    /// When the disk does not let go of them.
    pub fn forget_authority(&self, pin: &Fingerprint) -> Result<(), KeepError> {
        if let Some(text) = self.text(&format!("{FIRST}.crt"))? {
            let first = AuthorityCertificate::all_from_pem(&text).unwrap_or_default();
            if first.iter().any(|first| first.fingerprint() == *pin) {
                self.remove(&format!("{FIRST}.key"))?;
                self.remove(&format!("{FIRST}.crt"))?;
            }
        }
        self.remove(&format!("{}.key", later(pin)))?;
        self.remove(&format!("{}.crt", later(pin)))
    }

    fn remove(&self, file: &str) -> Result<(), KeepError> {
        match std::fs::remove_file(self.path(file)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => self.io("remove", file, removed),
        }
    }

    /// The authorities that are trusted here.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn bundle(&self) -> Result<Option<Bundle>, KeepError> {
        let Some(bytes) = self.read("authorities.json")? else {
            return Ok(None);
        };
        let bundle = Bundle::from_own_disk(&bytes).map_err(|source| KeepError::Bundle {
            path: self.path("authorities.json"),
            source,
        })?;
        Ok(Some(bundle))
    }

    /// Keeps the authorities, as they were signed, and beside them the PEM file for the store and its clients.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write_bundle(&self, signed: &[u8], bundle: &Bundle) -> Result<(), KeepError> {
        self.write("ca.crt", bundle.to_pem().as_bytes())?;
        self.write("authorities.json", signed)
    }

    /// Tells the verbs how to reach the store as the holder of `<name>.crt`.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write_context(&self, endpoints: Vec<String>, name: &str) -> Result<Context, KeepError> {
        let context = Context {
            endpoints,
            ca: self.path("ca.crt"),
            cert: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
        };
        self.write_json(CONTEXT, &context)?;
        Ok(context)
    }
}

impl Context {
    /// The context in a directory, where it can be read.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(dir.join(CONTEXT))
            .ok()?
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(&dir.path().join("host")).unwrap();
        let first = keep.key("node").unwrap();
        assert_eq!(keep.key("node").unwrap().public(), first.public());
        for (name, mode) in [("node.key", 0o600), ("lock", 0o600), (".", 0o700)] {
            let found = std::fs::metadata(keep.path(name)).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
    }

    #[test]
    fn authorities_are_kept_by_their_pins_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        let cluster = trust::identity::ClusterId::from_bytes([7; 16]);
        let [first, second] = [1, 2].map(|_| Authority::new(cluster, crate::now()).unwrap());
        let pins = [&first, &second].map(|one| one.certificate().fingerprint());
        keep.write_authority(&first).unwrap();
        keep.write_later_authority(&second).unwrap();
        for (pin, one) in pins.iter().zip([&first, &second]) {
            let found = keep.authority(pin).unwrap().unwrap();
            assert_eq!(found.certificate(), one.certificate());
        }
        let mut held = keep.authorities().unwrap();
        held.sort();
        let mut both = pins.to_vec();
        both.sort();
        assert_eq!(held, both);
        keep.forget_authority(&pins[0]).unwrap();
        assert!(keep.authority(&pins[0]).unwrap().is_none() && !dir.path().join("authority.key").exists());
        assert_eq!(keep.authorities().unwrap(), [pins[1]]);
        keep.forget_authority(&pins[1]).unwrap();
        assert!(keep.authorities().unwrap().is_empty());
    }

    #[test]
    fn two_processes_never_work_on_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keep::open(dir.path()).unwrap();
        assert!(matches!(Keep::open(dir.path()), Err(KeepError::InUse { .. })));
        drop(first);
        Keep::open(dir.path()).unwrap();
    }

    #[test]
    fn what_is_damaged_is_told_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        keep.write("node.key", b"garbage").unwrap();
        assert!(
            keep.key("node")
                .unwrap_err()
                .to_string()
                .ends_with("node.key holds no key")
        );
        keep.write("authorities.json", &[0xff; 100]).unwrap();
        assert!(keep.bundle().is_err());
        std::fs::write(
            keep.path("large"),
            vec![0; usize::try_from(MAX_FILE_BYTES).unwrap() + 1],
        )
        .unwrap();
        assert!(matches!(keep.read("large"), Err(KeepError::TooLarge { .. })));
        assert_eq!(keep.read("none").unwrap(), None);
    }
}
