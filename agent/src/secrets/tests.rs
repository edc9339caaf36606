use std::os::unix::fs::PermissionsExt as _;

use schemas::records::{ClusterId, Handed, SchemaVersion};
use trust::publish::plain;

use super::testing::sealed;
use super::*;
use crate::disk::DataDir;

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

/// An agent's directory, its key, and its place in memory.
struct Host {
    dir: tempfile::TempDir,
    logins: Arc<Logins>,
    place: Arc<SecretPlace>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let logins = Arc::new(Logins::open(&data, &cluster()).unwrap());
        let place = Arc::new(SecretPlace::new(dir.path()));
        Self { dir, logins, place }
    }

    /// What a leader hands to this host.
    fn seal(&self, name: &str, n: u64, value: &[u8]) -> HandedSecret {
        sealed(&plain(self.logins.public()), &cluster(), name, n, value)
    }

    fn hand(&self, secrets: Vec<HandedSecret>) {
        self.logins.take(Handed {
            schema_version: SchemaVersion::default(),
            key: self.logins.public().to_string(),
            logins: Vec::new(),
            secrets,
        });
    }

    fn layout(&self, uses: serde_json::Value) -> SecretLayout {
        let spec = serde_json::from_value(serde_json::json!({ "image": "app:1", "secrets": uses })).unwrap();
        let (namespace, name) = (Namespace::default(), "default.web.1.1");
        SecretLayout::of(&self.place, &self.logins, name, &namespace, &spec).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(place) = self.place.ready() {
            let _ = fs::remove_dir_all(place);
        }
    }
}

#[test]
fn values_are_laid_out_in_memory_with_their_owner_and_mode_and_variables_are_given() {
    let host = Host::new();
    let (one, two) = (host.seal("a", 1, b"hunter2"), host.seal("b", 3, b"\x00\xff"));
    host.hand(vec![one.clone(), two.clone()]);
    let layout = host.layout(serde_json::json!([
        { "secret": "a", "edition": one.edition },
        { "secret": "b", "path": "/etc/key", "owner": "101:102", "mode": "0440", "edition": two.edition },
        { "secret": "a", "env": "A", "edition": one.edition },
    ]));
    let (binds, variables) = layout.lay(true).unwrap();
    let seen: Vec<_> = binds
        .iter()
        .map(|bind| {
            let found = fs::metadata(&bind.source).unwrap();
            assert!(in_memory(&bind.source), "{}", bind.source.display());
            (
                bind.target.as_str(),
                fs::read(&bind.source).unwrap(),
                found.uid(),
                found.mode() & 0o7777,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("/run/secrets/a", b"hunter2".to_vec(), 0, 0o400),
            ("/etc/key", b"\x00\xff".to_vec(), 101, 0o440)
        ]
    );
    let told: Vec<_> = variables
        .iter()
        .map(|one| (one.name.as_str(), one.value.as_str()))
        .collect();
    assert_eq!(told, [("A", "hunter2")]);
    assert!(!format!("{variables:?} {layout:?}").contains("hunter2"));
    let folder = binds[0].source.parent().unwrap();
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    // Before a later start no variable is opened, and a file that was lost or changed is made again.
    fs::write(&binds[0].source, b"hunter3").unwrap();
    fs::remove_file(&binds[1].source).unwrap();
    let (again, variables) = layout.lay(false).unwrap();
    assert!(variables.is_empty());
    assert_eq!(fs::read(&again[0].source).unwrap(), b"hunter2");
    assert_eq!(fs::read(&again[1].source).unwrap(), b"\x00\xff");
    // What is laid out stays good when what was handed has gone.
    host.hand(Vec::new());
    assert_eq!(layout.lay(false).unwrap().0.len(), 2);
    assert!(matches!(layout.lay(true), Err(SecretError::NotHanded { .. })));
    drop_others(&host.place, &BTreeSet::new()).unwrap();
    assert!(!folder.exists());
    fs::remove_dir(host.place.ready().unwrap()).unwrap();
    assert!(host.place.ready().unwrap().is_dir(), "it is made again");
    assert!(layout.lay(false).is_err());
}

#[test]
fn nothing_but_the_accepted_value_opens() {
    let host = Host::new();
    let (one, other) = (host.seal("a", 1, b"right"), host.seal("a", 1, b"wrong"));
    // Another value under the digest of the accepted one, another name, and another cluster's.
    let forged = HandedSecret {
        envelope: other.envelope.clone(),
        ..one.clone()
    };
    let renamed = HandedSecret {
        name: "b".parse().unwrap(),
        ..one.clone()
    };
    let foreign = sealed(
        &plain(host.logins.public()),
        &ClusterId::from_random([8; 16]),
        "a",
        1,
        b"x",
    );
    for wrong in [forged, renamed, foreign] {
        host.hand(vec![wrong.clone()]);
        let states = host.logins.secret_states(&host.place);
        assert!(states[&wrong.edition.digest].is_err(), "{states:?}");
        let name = wrong.name.to_string();
        let layout = host.layout(serde_json::json!([{ "secret": name, "edition": wrong.edition }]));
        assert!(matches!(layout.lay(true), Err(SecretError::Closed { .. })));
    }
}

#[test]
fn the_planner_is_told_what_is_good_for_a_variable() {
    let host = Host::new();
    let values = [("a", &b"text"[..]), ("b", b"\xff"), ("c", b"nul\0")];
    let handed: Vec<_> = values.iter().map(|(name, value)| host.seal(name, 1, value)).collect();
    host.hand(handed.clone());
    let states = host.logins.secret_states(&host.place);
    let told: Vec<_> = handed.iter().map(|one| states[&one.edition.digest].clone()).collect();
    assert_eq!(
        told,
        [Ok(SecretState::Text), Ok(SecretState::Bytes), Ok(SecretState::Bytes)]
    );
    let layout = host.layout(serde_json::json!([{ "secret": "b", "env": "B", "edition": handed[1].edition }]));
    let error = layout.lay(true).unwrap_err().to_string();
    assert!(error.contains("instead of `env`"), "{error}");
}

#[test]
fn no_link_and_no_directory_of_somebody_else_is_used() {
    let host = Host::new();
    let one = host.seal("a", 1, b"hunter2");
    host.hand(vec![one.clone()]);
    let place = host.place.ready().unwrap().to_owned();
    let layout = host.layout(serde_json::json!([{ "secret": "a", "edition": one.edition }]));
    std::os::unix::fs::symlink(host.dir.path(), place.join("default.web.1.1")).unwrap();
    assert!(matches!(layout.lay(true), Err(SecretError::Io { .. })));
    fs::remove_file(place.join("default.web.1.1")).unwrap();
    if geteuid().is_root() {
        fs::create_dir(place.join("default.web.1.1")).unwrap();
        std::os::unix::fs::chown(place.join("default.web.1.1"), Some(1), Some(1)).unwrap();
        assert!(matches!(layout.lay(true), Err(SecretError::Io { .. })));
    }
    assert!(!host.dir.path().join("0").exists());
}

#[test]
fn only_a_file_system_in_memory_counts_as_one() {
    assert!(in_memory(Path::new("/dev/shm")));
    for other in ["/proc", "/sys", "/nonexistent"] {
        assert!(!in_memory(Path::new(other)), "{other}");
    }
}
