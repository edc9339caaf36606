//! The copy on disk that a node's names are answered from: `settings.json`, `own.json`, `sees.json`, and one file per service
//! in `services/`. The agent writes it through [`Copy`]; the server reads it, at its start and when it is told what changed.
//! Each file is replaced whole, and one that cannot be read hurts what it is about alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use planner::network::names::Realm;
use planner::network::policy::{Seers, seers};
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Endpoints, Policies};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest file that is read, in bytes: more than a service of 10,000 instances takes.
const FILE_LIMIT: u64 = 8 << 20;
const SETTINGS: &str = "settings.json";
const OWN: &str = "own.json";
const SEES: &str = "sees.json";
const SERVICES: &str = "services";

/// What is answered for, and by whom: of the cluster's settings, and of this node's part of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The cluster's domain, without a dot at its end.
    pub domain: String,
    pub cidr: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr6: Option<Ipv6Net>,
    /// This node's addresses on the bridge of containers, where its server listens.
    pub servers: Vec<IpAddr>,
    /// The addresses this host asks from, where the network is exposed on it: those of `servers`, and loopback's. Empty where
    /// it is hidden.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: BTreeSet<IpAddr>,
}

impl Settings {
    /// With whose addresses this node's own are.
    #[must_use]
    pub fn realm(&self, own: BTreeMap<IpAddr, Namespace>) -> Realm {
        let Self {
            domain,
            cidr,
            cidr6,
            servers,
            hosts,
        } = self;
        Realm {
            domain: domain.clone(),
            cidr: *cidr,
            cidr6: *cidr6,
            servers: servers.clone(),
            hosts: hosts.clone(),
            own,
        }
    }
}

/// In the place of a namespace: all of them. No namespace is called so.
const EVERYBODY: &str = "*";

/// What namespaces may see of others. A namespace that is not in it sees its own alone, and what everybody sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sees(BTreeMap<String, Seen>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    #[serde(default, skip_serializing_if = "is_false")]
    all: bool,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    namespaces: BTreeSet<String>,
    /// As `<namespace>/<service>`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    services: BTreeSet<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Sees {
    /// A namespace sees one service of another.
    pub fn allow(&mut self, asker: &Namespace, namespace: &Namespace, service: &ResourceName) {
        let seen = self.0.entry(asker.to_string()).or_default();
        seen.services.insert(format!("{namespace}/{service}"));
    }

    /// A namespace sees all of another.
    pub fn allow_namespace(&mut self, asker: &Namespace, namespace: &Namespace) {
        let seen = self.0.entry(asker.to_string()).or_default();
        seen.namespaces.insert(namespace.to_string());
    }

    /// A namespace sees all of all others.
    pub fn allow_all(&mut self, asker: &Namespace) {
        self.0.entry(asker.to_string()).or_default().all = true;
    }

    /// All namespaces see a service.
    pub fn allow_everybody(&mut self, namespace: &Namespace, service: &ResourceName) {
        let seen = self.0.entry(EVERYBODY.to_owned()).or_default();
        seen.services.insert(format!("{namespace}/{service}"));
    }

    /// What follows from the network policies in force, for these services.
    #[must_use]
    pub fn of<'a>(
        services: impl IntoIterator<Item = (&'a Namespace, &'a ResourceName)>,
        policies: &BTreeMap<Namespace, Arc<Policies>>,
    ) -> Self {
        let mut sees = Self::default();
        for (namespace, service) in services {
            // Without a policy nobody else is let in.
            let Some(policies) = policies.get(namespace) else {
                continue;
            };
            match seers(namespace, service, Some(policies)) {
                Seers::Everybody => sees.allow_everybody(namespace, service),
                Seers::Namespaces(askers) => {
                    for asker in askers.iter().filter(|asker| *asker != namespace) {
                        sees.allow(asker, namespace, service);
                    }
                }
            }
        }
        sees
    }

    /// Whether `asker` sees that service of another namespace.
    #[must_use]
    pub fn sees(&self, asker: &str, namespace: &str, service: &str) -> bool {
        let one = format!("{namespace}/{service}");
        [asker, EVERYBODY]
            .iter()
            .filter_map(|who| self.0.get(*who))
            .any(|seen| {
                let Seen {
                    all,
                    namespaces,
                    services,
                } = seen;
                *all || namespaces.contains(namespace) || services.contains(&one)
            })
    }
}

/// One file of the copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    Settings,
    Own,
    Sees,
    Service(Namespace, ResourceName),
}

impl Part {
    fn file(&self) -> String {
        match self {
            Self::Settings => SETTINGS.to_owned(),
            Self::Own => OWN.to_owned(),
            Self::Sees => SEES.to_owned(),
            Self::Service(namespace, service) => format!("{SERVICES}/{namespace}.{service}.json"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is larger than {FILE_LIMIT} bytes", path.display())]
    Large { path: PathBuf },
    #[error("`{}` cannot be read as what it is", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Io { act, path, source }
}

/// The agent's side: the one who writes. Whoever changed something tells the server which parts: [`super::tell`].
#[derive(Debug)]
pub struct Copy {
    dir: PathBuf,
    /// Written, and perhaps not on the disk itself yet.
    unsettled: BTreeSet<Part>,
}

impl Copy {
    /// Makes the directory if need be, and takes away what a crash left half written.
    pub fn open(dir: &Path) -> Result<Self, CopyError> {
        let services = dir.join(SERVICES);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&services)
            .map_err(failed("create the directory", &services))?;
        for folder in [dir, &services] {
            let entries = fs::read_dir(folder).map_err(failed("list the directory", folder))?;
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().ends_with(".new") {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            unsettled: BTreeSet::new(),
        })
    }

    /// Writes the settings. True when they were others: then the server is to be told.
    pub fn settings(&mut self, settings: &Settings) -> Result<bool, CopyError> {
        self.write(Part::Settings, settings)
    }

    /// Writes whose addresses this node's own instances' are: before one of them starts.
    pub fn own(&mut self, own: &BTreeMap<IpAddr, Namespace>) -> Result<bool, CopyError> {
        self.write(Part::Own, own)
    }

    /// Writes what namespaces see of each other.
    pub fn sees(&mut self, sees: &Sees) -> Result<bool, CopyError> {
        self.write(Part::Sees, sees)
    }

    /// Writes a service's endpoints.
    pub fn put(
        &mut self,
        namespace: &Namespace,
        service: &ResourceName,
        record: &Endpoints,
    ) -> Result<bool, CopyError> {
        self.write(Part::Service(namespace.clone(), service.clone()), record)
    }

    /// Takes a service away. True when it was there.
    pub fn remove(&mut self, namespace: &Namespace, service: &ResourceName) -> Result<bool, CopyError> {
        let part = Part::Service(namespace.clone(), service.clone());
        let path = self.dir.join(part.file());
        self.unsettled.remove(&part);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove the file", &path)(error)),
        }
    }

    /// The services it has, readable or not: after a list of the store that is known to be whole, those that are not in it are
    /// to be removed.
    pub fn services(&self) -> Result<BTreeSet<(Namespace, ResourceName)>, CopyError> {
        services(&self.dir)
    }

    /// Has all that was written since the last time on the disk itself. It takes the disk's time for each file: after the
    /// server was told, not before.
    pub fn settle(&mut self) -> Result<(), CopyError> {
        while let Some(part) = self.unsettled.first().cloned() {
            let path = self.dir.join(part.file());
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(failed("write to the disk", &path))?;
            self.unsettled.remove(&part);
        }
        Ok(())
    }

    fn write<T: Serialize>(&mut self, part: Part, value: &T) -> Result<bool, CopyError> {
        let path = self.dir.join(part.file());
        let mut text = serde_json::to_vec(value).map_err(|error| failed("write the file", &path)(error.into()))?;
        text.push(b'\n');
        if fs::metadata(&path).is_ok_and(|found| found.len() == text.len() as u64)
            && fs::read(&path).is_ok_and(|found| found == text)
        {
            return Ok(false);
        }
        let fresh = path.with_extension("json.new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(failed("create the file", &fresh))?;
        file.write_all(&text).map_err(failed("write the file", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("replace the file", &path))?;
        self.unsettled.insert(part);
        Ok(true)
    }
}

/// The services that a copy has. Files of other names are nobody's.
pub fn services(dir: &Path) -> Result<BTreeSet<(Namespace, ResourceName)>, CopyError> {
    let folder = dir.join(SERVICES);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed("list the directory", &folder)(error)),
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let (namespace, service) = name.to_str()?.strip_suffix(".json")?.split_once('.')?;
        Some((namespace.parse().ok()?, service.parse().ok()?))
    });
    Ok(names.collect())
}

/// Reads one file of a copy; None when there is none.
pub fn read<T: DeserializeOwned>(dir: &Path, part: &Part) -> Result<Option<T>, CopyError> {
    let path = dir.join(part.file());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the file", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(failed("read the file", &path))?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(CopyError::Large { path });
    }
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(CopyError::Broken { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use schemas::records::{InForcePolicy, SchemaVersion};

    fn namespace(name: &str) -> Namespace {
        name.parse().unwrap()
    }

    fn resource(name: &str) -> ResourceName {
        name.parse().unwrap()
    }

    fn record() -> Endpoints {
        Endpoints {
            schema_version: SchemaVersion::default(),
            cluster: "c0ffee00c0ffee00c0ffee00c0ffee00".parse().unwrap(),
            ports: Vec::new(),
            instances: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_is_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut copy = Copy::open(dir.path()).unwrap();
        let (shop, web) = (namespace("shop"), resource("web"));
        assert!(copy.put(&shop, &web, &record()).unwrap());
        assert!(!copy.put(&shop, &web, &record()).unwrap(), "it is the same");
        copy.settle().unwrap();
        assert!(copy.unsettled.is_empty());
        let part = Part::Service(shop.clone(), web.clone());
        assert_eq!(read::<Endpoints>(dir.path(), &part).unwrap(), Some(record()));
        assert_eq!(copy.services().unwrap(), BTreeSet::from([(shop.clone(), web.clone())]));
        assert!(copy.remove(&shop, &web).unwrap());
        assert!(!copy.remove(&shop, &web).unwrap());
        assert_eq!(read::<Endpoints>(dir.path(), &part).unwrap(), None);
        assert_eq!(read::<Settings>(dir.path(), &Part::Settings).unwrap(), None);
        copy.settle().unwrap();
    }

    #[test]
    fn a_write_that_a_crash_cut_short_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut copy = Copy::open(dir.path()).unwrap();
        copy.put(&namespace("shop"), &resource("web"), &record()).unwrap();
        fs::write(dir.path().join("services/shop.web.json.new"), "{\"half").unwrap();
        let copy = Copy::open(dir.path()).unwrap();
        assert_eq!(copy.services().unwrap().len(), 1);
        assert!(!dir.path().join("services/shop.web.json.new").exists());
    }

    #[test]
    fn files_that_are_broken_too_large_or_nobodys_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let copy = Copy::open(dir.path()).unwrap();
        let part = Part::Service(namespace("shop"), resource("web"));
        let path = dir.path().join(part.file());
        for text in ["", "{", "[]", "{\"instances\":[{\"slot\":\"0\"}]}"] {
            fs::write(&path, text).unwrap();
            let error = read::<Endpoints>(dir.path(), &part).unwrap_err();
            assert!(
                matches!(error, CopyError::Broken { path: _, source: _ }),
                "{text}: {error}"
            );
        }
        File::create(&path).unwrap().set_len(FILE_LIMIT + 1).unwrap();
        let error = read::<Endpoints>(dir.path(), &part).unwrap_err();
        assert!(matches!(error, CopyError::Large { path: _ }), "{error}");
        for name in ["README", "shop.json", "Shop.web.json", "shop.web.x.json", ".json"] {
            fs::write(dir.path().join(SERVICES).join(name), "{}").unwrap();
        }
        assert_eq!(copy.services().unwrap().len(), 1);
    }

    #[test]
    fn a_namespace_sees_what_it_was_allowed_and_no_more() {
        let mut sees = Sees::default();
        sees.allow(&namespace("a"), &namespace("b"), &resource("x"));
        sees.allow_namespace(&namespace("a"), &namespace("c"));
        sees.allow_all(&namespace("z"));
        sees.allow_everybody(&namespace("e"), &resource("x"));
        let text = serde_json::to_string(&sees).unwrap();
        let read: Sees = serde_json::from_str(&text).unwrap();
        assert_eq!(read, sees);
        for (asker, space, service, seen) in [
            ("a", "b", "x", true),
            ("a", "b", "y", false),
            ("a", "c", "y", true),
            ("a", "d", "x", false),
            ("b", "a", "x", false),
            ("z", "b", "x", true),
            ("b", "e", "x", true),
            ("b", "e", "y", false),
        ] {
            assert_eq!(read.sees(asker, space, service), seen, "{asker} {space}/{service}");
        }
    }

    #[test]
    fn what_policies_let_in_finds_the_name_and_nobody_else_does() {
        let policy = |name: &str, spec: &str| InForcePolicy {
            name: resource(name),
            spec: serde_json::from_str(spec).unwrap(),
        };
        let record = Policies {
            schema_version: SchemaVersion::default(),
            cluster: "c0ffee00c0ffee00c0ffee00c0ffee00".parse().unwrap(),
            policies: vec![
                policy("all", r#"{"services": ["front"], "ingress": [{}]}"#),
                policy(
                    "one",
                    r#"{"services": ["db"], "ingress": [{"from": [{"namespace": "a"}]}]}"#,
                ),
            ],
        };
        let policies = BTreeMap::from([(namespace("b"), Arc::new(record))]);
        let all = [("b", "front"), ("b", "db"), ("b", "other"), ("c", "db")].map(|(n, s)| (namespace(n), resource(s)));
        let sees = Sees::of(all.iter().map(|(namespace, service)| (namespace, service)), &policies);
        for (asker, space, service, seen) in [
            ("a", "b", "front", true),
            ("z", "b", "front", true),
            ("a", "b", "db", true),
            ("z", "b", "db", false),
            ("a", "b", "other", false),
            ("a", "c", "db", false),
        ] {
            assert_eq!(sees.sees(asker, space, service), seen, "{asker} {space}/{service}");
        }
    }
}
