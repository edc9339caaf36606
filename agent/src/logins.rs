//! What this node was handed: sealed for its own key, kept sealed on disk. Here are the accounts of registries, opened for the
//! one pull that needs one; `secrets.rs` opens secrets. What the leader hands out stands under one key, which is followed here; a new password counts at the
//! next pull, and pulls that were refused are tried again at once. The loop asks [`Logins::of`] before each pull.
//!
//! That the key is gone, or cannot be read, changes nothing: only a newer document does.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use runtime::{Prefix, ReflectOptions, Shutdown, Store, chain};
use schemas::image::ImageRef;
use schemas::keys::{Key, Root};
use schemas::names::{Namespace, NodeName};
use schemas::records::{ClusterId, Handed, HandedLogin, Record};
use schemas::registry::{DOCKER_IO, choose, sealed_as};
use tokio::sync::mpsc;
use trust::seal::{Context, Envelope, SealError, SealingKey, SealingPublic};
use zeroize::Zeroizing;

use crate::disk::{DataDir, DiskError};
use crate::run::Note;

/// The private key, in the data directory, for its owner alone.
const KEY_FILE: &str = "sealing.key";
/// What was handed out last, as it is in the store: sealed.
const HANDED_FILE: &str = "handed.json";

/// An account, opened for a pull.
pub struct Login {
    /// The Registry resource.
    pub resource: String,
    /// `host[:port]`.
    pub registry: String,
    pub user: String,
    password: Zeroizing<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({} at {})", self.user, self.registry)
    }
}

impl Login {
    /// An account with its password.
    pub fn new(resource: &str, registry: &str, user: &str, password: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            registry: registry.to_owned(),
            user: user.to_owned(),
            password: Zeroizing::new(password.to_owned()),
        }
    }

    /// The value of `X-Registry-Auth`.
    #[must_use]
    pub fn header(&self) -> Zeroizing<String> {
        let server = match self.registry.as_str() {
            DOCKER_IO => "https://index.docker.io/v1/",
            registry => registry,
        };
        let login =
            serde_json::json!({ "username": self.user, "password": self.password.as_str(), "serveraddress": server });
        Zeroizing::new(URL_SAFE.encode(Zeroizing::new(login.to_string()).as_bytes()))
    }
}

/// Why an account that is for an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("open the password of `{user}` at {registry}, which was sealed for this node")]
pub struct LoginError {
    user: String,
    registry: String,
    #[source]
    source: SealError,
}

/// What was handed to this node.
#[derive(Debug)]
pub struct Logins {
    key: SealingKey,
    cluster: ClusterId,
    handed: Mutex<Option<Arc<Handed>>>,
}

impl Logins {
    /// With what is on disk; the key is made at the first start.
    pub(crate) fn open(dir: &DataDir, cluster: &ClusterId) -> Result<Self, DiskError> {
        let key = key(dir)?;
        let handed = dir.read_json::<Handed>(HANDED_FILE).unwrap_or_else(|error| {
            tracing::warn!("{}; what was handed to this node is read from the store", chain(&error));
            None
        });
        let handed = handed.filter(|handed| handed.key == key.public().to_string());
        Ok(Self {
            key,
            cluster: cluster.clone(),
            handed: Mutex::new(handed.map(Arc::new)),
        })
    }

    /// What others seal for.
    #[must_use]
    pub fn public(&self) -> SealingPublic {
        self.key.public()
    }

    pub(crate) const fn key(&self) -> &SealingKey {
        &self.key
    }

    /// The cluster as envelopes are bound to it.
    pub(crate) fn cluster(&self) -> Result<trust::identity::ClusterId, SealError> {
        self.cluster.as_str().parse().map_err(|_| SealError::NotEnvelope)
    }

    pub(crate) fn handed(&self) -> Option<Arc<Handed>> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The account for an image that an instance of this namespace runs; None where none is declared for it.
    ///
    /// # Errors
    /// When it does not open.
    pub fn of(&self, namespace: &Namespace, image: &ImageRef) -> Option<Result<Login, LoginError>> {
        let handed = self.handed()?;
        let accounts = handed.logins.iter();
        let accounts = accounts.map(|login| (&login.resource, login.registry.as_str(), &login.account, login));
        let login = choose(accounts, namespace, image)?;
        Some(self.opened(login))
    }

    fn opened(&self, login: &HandedLogin) -> Result<Login, LoginError> {
        let HandedLogin {
            resource,
            registry,
            account,
            edition,
            digest: _,
            envelope,
        } = login;
        let wrong = |source| LoginError {
            user: account.user.clone(),
            registry: registry.clone(),
            source,
        };
        let no_envelope = SealError::NotEnvelope;
        let name = sealed_as(registry, &account.user);
        let context = Context {
            cluster: self.cluster().map_err(wrong)?,
            namespace: "_",
            kind: "registry",
            name: &name,
            edition: *edition,
        };
        let envelope: Envelope = serde_json::from_value(envelope.clone()).map_err(|_| wrong(no_envelope))?;
        let value = envelope.open(context, &self.key).map_err(wrong)?;
        let password = std::str::from_utf8(&value).map_err(|_| wrong(no_envelope))?;
        Ok(Login::new(resource.as_str(), registry, &account.user, password))
    }

    /// Takes what stands in the store; whether it is news.
    pub(crate) fn take(&self, handed: Handed) -> bool {
        if handed.key != self.key.public().to_string() {
            // For a key that this node no longer has: the leader writes it anew once it knows ours.
            return false;
        }
        let mut known = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = known.as_deref() != Some(&handed);
        if differs {
            *known = Some(Arc::new(handed));
        }
        differs
    }
}

/// This node's key, from disk, or made now.
fn key(dir: &DataDir) -> Result<SealingKey, DiskError> {
    if let Some(bytes) = dir.read(KEY_FILE)? {
        let bytes = Zeroizing::new(bytes);
        match std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()) {
            Some(key) => return Ok(key),
            None => {
                tracing::warn!("{KEY_FILE} holds no key: another is made, and values are sealed for that");
                dir.set_aside(KEY_FILE);
            }
        }
    }
    let path = dir.path().join(KEY_FILE);
    let failed = |why: String| DiskError::Damaged {
        path: path.clone(),
        why,
    };
    let key = SealingKey::generate().map_err(|error| failed(error.to_string()))?;
    write_private(&path, key.to_text().as_bytes()).map_err(|error| failed(format!("it cannot be written: {error}")))?;
    Ok(key)
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Follows what the leader hands to this node, and keeps it on disk. Ends with the shutdown.
pub(crate) async fn follow<S: Store>(
    store: S,
    root: Root,
    node: NodeName,
    logins: Arc<Logins>,
    disk: mpsc::UnboundedSender<Note>,
    shutdown: Shutdown,
) {
    let key = root.key(&Key::Handed(format!("node.{node}")));
    let prefix = Prefix::exact(key.clone()).expect("a key of ours does not end in `/`");
    let mut reader = runtime::reflect(store, prefix, ReflectOptions::default(), &shutdown);
    while reader.changed().await.is_ok() {
        let Some(kv) = reader
            .snapshot()
            .and_then(|cache| cache.keys.get(key.as_bytes()).cloned())
        else {
            continue;
        };
        match Handed::decode(&kv.value) {
            Ok(handed) => {
                if logins.take(handed) {
                    let _ = disk.send(Note::Handed);
                }
            }
            Err(error) => tracing::warn!("{}; what was handed before stays in use", chain(&error)),
        }
    }
}

/// Writes to disk what is in use. A disk that takes nothing costs only what a restart without the store would need.
pub(crate) fn save(dir: &DataDir, logins: &Logins) {
    let Some(handed) = logins.handed() else { return };
    if let Err(error) = dir.write_json(HANDED_FILE, &*handed) {
        tracing::warn!(
            "{}; after a restart what was handed is read from the store",
            chain(&error)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::records::SchemaVersion;
    use schemas::registry::Account;
    use trust::publish::{Believed, Holder, plain};
    use trust::validity::Time;

    fn cluster() -> ClusterId {
        ClusterId::from_random([7; 16])
    }

    /// What a leader hands to a node with this key.
    fn handed(logins: &Logins, password: &str, edition: u64, registry: &str) -> Handed {
        let trusted: trust::identity::ClusterId = cluster().as_str().parse().unwrap();
        let name: trust::identity::Name = "n1".parse().unwrap();
        let reader = Believed::Store(trusted)
            .reader(&plain(logins.public()), Holder::Node(&name), Time::from_unix_seconds(0))
            .unwrap();
        let sealed_name = sealed_as("r.example:5000", "ci");
        let context = Context {
            cluster: trusted,
            namespace: "_",
            kind: "registry",
            name: &sealed_name,
            edition,
        };
        let envelope = Envelope::seal(context, password.as_bytes(), &[reader]).unwrap();
        Handed {
            schema_version: SchemaVersion::default(),
            key: logins.public().to_string(),
            logins: vec![HandedLogin {
                resource: "r".parse().unwrap(),
                registry: registry.to_owned(),
                account: Account::new("ci"),
                edition,
                digest: String::new(),
                envelope: serde_json::to_value(&envelope).unwrap(),
            }],
            secrets: Vec::new(),
        }
    }

    fn password(logins: &Logins, image: &str) -> Option<String> {
        let found = logins.of(&Namespace::default(), &image.parse().unwrap())?;
        Some(found.unwrap().password.to_string())
    }

    #[test]
    fn what_was_handed_out_opens_and_outlives_a_restart_and_a_new_password_replaces_it() {
        let place = tempfile::tempdir().unwrap();
        let dir = DataDir::open(place.path()).unwrap();
        let logins = Logins::open(&dir, &cluster()).unwrap();
        assert_eq!(password(&logins, "r.example:5000/app:1"), None);
        let first = handed(&logins, "hunter2", 1, "r.example:5000");
        assert!(logins.take(first.clone()));
        assert!(!logins.take(first));
        save(&dir, &logins);
        let again = Logins::open(&dir, &cluster()).unwrap();
        assert_eq!(password(&again, "r.example:5000/app:1").as_deref(), Some("hunter2"));
        assert_eq!(password(&again, "other.example/app:1"), None);
        assert!(again.take(handed(&again, "hunter3", 2, "r.example:5000")));
        assert_eq!(password(&again, "r.example:5000/app:1").as_deref(), Some("hunter3"));
        for file in [KEY_FILE, HANDED_FILE] {
            let text = std::fs::read_to_string(place.path().join(file)).unwrap();
            assert!(!text.contains("hunter"), "{file}");
        }
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(place.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_password_goes_to_no_other_registry_than_it_was_sealed_for() {
        let place = tempfile::tempdir().unwrap();
        let dir = DataDir::open(place.path()).unwrap();
        let logins = Logins::open(&dir, &cluster()).unwrap();
        assert!(logins.take(handed(&logins, "hunter2", 1, "evil.example")));
        let found = logins.of(&Namespace::default(), &"evil.example/app:1".parse().unwrap());
        let error = found.expect("an account").expect_err("it does not open");
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_for_another_key_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let dir = DataDir::open(place.path()).unwrap();
        let logins = Logins::open(&dir, &cluster()).unwrap();
        let mut other = handed(&logins, "x", 1, "r.example:5000");
        other.key = "00".repeat(32);
        assert!(!logins.take(other));
    }

    #[test]
    fn a_login_is_never_printed() {
        let login = Login::new("r", "r.example", "ci", "hunter2");
        assert!(!format!("{login:?}").contains("hunter2"));
        let header = URL_SAFE.decode(login.header().as_bytes()).unwrap();
        assert!(String::from_utf8(header).unwrap().contains("hunter2"));
    }
}
