//! Files: which edition of a `ConfigFile` a service mounts. An accepted service names the editions it was accepted with,
//! so a new edition is a new spec of every service that mounts the file, and goes through like any change. What does not
//! exist keeps a spec from being accepted; what is deleted stays with those that have it. `accept.rs` and `output.rs` call
//! this; secrets resolve in the same way, beside it.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemas::config_file::FileEdition;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Accepted, ConditionStatus, ConditionType, ConfigFileStatus, SchemaVersion};
use schemas::service::ServiceSpec;

use super::accept::{Body, Life, Standing};
use super::draft::{self, Draft, condition};
use super::memory::service_of;
use super::pass::Pass;
use super::secrets;
use super::snapshot::{DesiredBody, Snapshot};
use super::status::{notice, problems};
use super::types::{Notice, Reason, Status};

/// How many users a status lists.
const LISTED: usize = 20;

/// Room for the specs that a pass makes itself, so that they live as long as the snapshot's.
pub(super) struct Room {
    cells: Vec<OnceCell<Box<ServiceSpec>>>,
    next: Cell<usize>,
}

impl Room {
    /// Enough for each service's.
    pub(super) fn for_services_of(snapshot: &Snapshot) -> Self {
        Self {
            cells: (0..snapshot.desired.len()).map(|_| OnceCell::new()).collect(),
            next: Cell::new(0),
        }
    }

    fn keep(&self, spec: ServiceSpec) -> Option<&ServiceSpec> {
        let at = self.next.get();
        self.next.set(at + 1);
        self.cells.get(at).map(|cell| &**cell.get_or_init(|| Box::new(spec)))
    }
}

/// What a service's files and secrets amount to, as its status says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// They do not exist, or have no content yet: the desired spec is not accepted. The reason, and the sentence.
    Missing(&'static str, String),
    /// They are deleted; the service keeps the editions it has. The reason, and their names.
    Deleted(&'static str, String),
}

/// The desired spec with the editions it is accepted with; None when a file or secret of its has none. And what is to be told.
pub(super) fn resolve<'a>(
    snapshot: &Snapshot,
    lives: &[Life<'a>],
    room: &'a Room,
    namespace: &Namespace,
    desired: &ServiceSpec,
    before: Option<&ServiceSpec>,
) -> (Option<&'a ServiceSpec>, Option<Told>) {
    let mut spec = desired.clone();
    let (mut missing, mut deleted) = (Vec::new(), BTreeSet::new());
    for mount in &mut spec.container.files {
        let life = find(lives, namespace, &mount.file);
        mount.edition = life.and_then(edition);
        if mount.edition.is_some() {
            continue;
        }
        let known = before.and_then(|before| {
            let same = before.container.files.iter().find(|old| old.file == mount.file)?;
            same.edition
        });
        match (known, life.map(|life| (&life.standing, life.desired))) {
            (Some(known), there) => {
                mount.edition = Some(known);
                // One whose record cannot be read says so itself.
                if !matches!(there, Some((Standing::Held { .. }, _))) {
                    deleted.insert(mount.file.clone());
                }
            }
            (None, Some((_, Some(_)))) => missing.push(format!(
                "file `{}` has no valid content; `reeve describe configfile {}` says why",
                mount.file, mount.file
            )),
            (None, Some((_, None)) | None) => missing.push(format!(
                "there is no file `{}` in namespace `{namespace}`: put it with `reeve upload FILE {}`",
                mount.file, mount.file
            )),
        }
    }
    let (unset, gone) = secrets::resolve(snapshot, namespace, &mut spec, before);
    let reason = if missing.is_empty() {
        "SecretMissing"
    } else {
        "FileMissing"
    };
    missing.extend(unset);
    // One may be mounted twice.
    missing.dedup();
    if let Some(first) = missing.first() {
        let more = match missing.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        return (None, Some(Told::Missing(reason, format!("{first}{more}"))));
    }
    let (reason, deleted) = if deleted.is_empty() {
        ("SecretDeleted", gone)
    } else {
        ("FileDeleted", deleted)
    };
    let told = (!deleted.is_empty()).then(|| {
        let names: Vec<String> = deleted.iter().take(5).map(|name| format!("`{name}`")).collect();
        Told::Deleted(reason, names.join(", "))
    });
    (room.keep(spec), told)
}

/// The life of a file. Lives are in order of keys.
fn find<'l, 'a>(lives: &'l [Life<'a>], namespace: &Namespace, file: &ResourceName) -> Option<&'l Life<'a>> {
    let place = (Some(namespace), Kind::ConfigFile, file);
    let at = lives
        .binary_search_by(|life| (life.key.namespace.as_ref(), life.key.kind, &life.key.name).cmp(&place))
        .ok()?;
    lives.get(at)
}

/// The edition of a file that is in force.
fn edition(life: &Life<'_>) -> Option<FileEdition> {
    match &life.standing {
        Standing::Live(live) => match live.body {
            Body::ConfigFile(file) => Some(FileEdition {
                n: live.n,
                digest: file.digest,
                size: file.size,
            }),
            Body::Service(_) | Body::Node(_) => None,
        },
        Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
    }
}

/// The editions that a service's record refers to, each with its file's name.
fn editions_of(record: &Accepted) -> impl Iterator<Item = (&ResourceName, u64)> {
    let files = service_of(&record.body).map_or(&[][..], |spec| &spec.container.files);
    files
        .iter()
        .filter_map(|mount| Some((&mount.file, mount.edition.as_ref()?.n)))
}

/// The highest number of a file that any record of a service names: a new edition must not take it again.
pub(super) fn highest_named(lives: &[Life<'_>], mounting: &[usize], file: &ResourceKey) -> u64 {
    let mut highest = 0;
    for life in mounting.iter().map(|at| &lives[*at]) {
        if life.key.namespace != file.namespace {
            continue;
        }
        for record in records(life) {
            for (name, n) in editions_of(record) {
                if *name == file.name && n <= super::accept::MAX_REPORTED {
                    highest = highest.max(n);
                }
            }
        }
    }
    highest
}

fn records<'l>(life: &'l Life<'_>) -> impl Iterator<Item = &'l Arc<Accepted>> {
    life.history
        .into_iter()
        .flat_map(|history| history.records.values())
        .filter_map(|entry| entry.value.as_ref().ok())
}

impl<'a> Pass<'a> {
    /// What the records of services that are kept name, as (namespace, file, number).
    pub(super) fn named_editions(&self, forgotten: &[(ResourceKey, u64)]) -> BTreeSet<(&'a str, &'a str, u64)> {
        let forgotten: BTreeSet<(&ResourceKey, u64)> = forgotten.iter().map(|(key, n)| (key, *n)).collect();
        let mut named = BTreeSet::new();
        for (key, history) in &self.snapshot.accepted {
            let (Kind::Service, Some(namespace)) = (key.kind, &key.namespace) else {
                continue;
            };
            for (n, entry) in &history.records {
                let Ok(record) = &entry.value else { continue };
                if !forgotten.contains(&(key, *n)) {
                    named.extend(editions_of(record).map(|(file, n)| (namespace.as_str(), file.as_str(), n)));
                }
            }
        }
        named
    }

    /// The services that mount each file, as they are in force or desired, in order of names.
    fn users(&self) -> BTreeMap<(&'a Namespace, &'a ResourceName), BTreeSet<&'a ResourceName>> {
        let mut users: BTreeMap<_, BTreeSet<&ResourceName>> = BTreeMap::new();
        for life in self.mounting.iter().map(|at| &self.lives[*at]) {
            let Some(namespace) = &life.key.namespace else { continue };
            let in_force = match &life.standing {
                Standing::Live(live) => match live.body {
                    Body::Service(spec) => Some(spec),
                    Body::Node(_) | Body::ConfigFile(_) => None,
                },
                Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
            };
            let desired = match life.desired.map(|entry| &entry.body) {
                Some(DesiredBody::Service(spec)) => Some(&**spec),
                Some(DesiredBody::Node(_) | DesiredBody::ConfigFile(_) | DesiredBody::Invalid(_)) | None => None,
            };
            for mount in in_force
                .into_iter()
                .chain(desired)
                .flat_map(|spec| &spec.container.files)
            {
                users
                    .entry((namespace, &mount.file))
                    .or_default()
                    .insert(&life.key.name);
            }
        }
        users
    }

    /// The statuses of files. One that is deleted has a status for as long as a service uses it.
    pub(super) fn file_statuses(
        &self,
        statuses: &mut Vec<(ResourceKey, Status)>,
        ended: &mut Vec<ResourceKey>,
        notices: &mut Vec<Notice>,
    ) {
        let stored = &self.snapshot.file_statuses;
        if stored.is_empty() && self.files.is_empty() {
            return;
        }
        let users = self.users();
        let mut told: BTreeSet<&ResourceKey> = BTreeSet::new();
        for life in self.files.iter().map(|at| &self.lives[*at]) {
            let Some(namespace) = &life.key.namespace else { continue };
            let used_by = users.get(&(namespace, &life.key.name));
            let gone = life.desired.is_none() && matches!(life.standing, Standing::Deleted | Standing::Never);
            if gone && used_by.is_none() {
                continue;
            }
            told.insert(life.key);
            let conditions = vec![if gone {
                condition(
                    ConditionType::Accepted,
                    ConditionStatus::False,
                    "DeletedAndUsed",
                    "the file is deleted; the services that mount it keep their edition",
                )
            } else {
                self.accepted_condition(life)
            }];
            let status = ConfigFileStatus {
                schema_version: SchemaVersion::default(),
                observed_revision: life.desired.map_or(0, |entry| entry.mod_revision),
                edition: edition(life),
                users: used_by.map_or(0, |users| u32::try_from(users.len()).unwrap_or(u32::MAX)),
                used_by: used_by
                    .into_iter()
                    .flatten()
                    .take(LISTED)
                    .map(|name| (*name).clone())
                    .collect(),
                conditions: Vec::new(),
                problems: problems(life.desired),
            };
            let before = stored.get(life.key).and_then(|stored| stored.value.as_ref().ok());
            let status = draft::file(status, conditions, before);
            if before.is_none_or(|before| !Arc::ptr_eq(before, &status)) {
                let before = before.map(|before| &before.conditions[..]);
                notice(notices, &status.conditions, before, life.key, None);
            }
            statuses.push((life.key.clone(), Status::ConfigFile(status)));
        }
        if self.snapshot.complete {
            ended.extend(stored.keys().filter(|key| !told.contains(key)).cloned());
        }
    }

    /// Why a service's number `from` gives way to the one in force, where content alone is why.
    pub(super) fn content_changed(&self, svc: u32, from: u64) -> Option<Reason> {
        let one = &self.memory.svcs[svc as usize];
        let history = self.lives[one.life].history?;
        let old = service_of(&history.records.get(&from)?.value.as_ref().ok()?.body)?;
        let new = one.spec?;
        let differ = |file: &ResourceName| {
            let edition = |spec: &ServiceSpec| {
                let mount = spec.container.files.iter().find(|mount| mount.file == *file)?;
                mount.edition
            };
            let (old, new) = (edition(old)?, edition(new)?);
            (old.digest != new.digest).then_some((old.n, new.n))
        };
        let file = new.container.files.iter().find_map(|mount| {
            let (from, to) = differ(&mount.file)?;
            Some(Reason::FileChanged {
                file: mount.file.clone(),
                from,
                to,
            })
        });
        file.or_else(|| secrets::changed(old, new))
    }
}

/// What a service's status says of its files, where that is something: the reason and the message.
pub(super) fn condition_of<'t>(told: Option<&Told>, in_force: bool) -> Option<Draft<'t>> {
    let kind = ConditionType::Accepted;
    match told? {
        Told::Missing(reason, why) => {
            let last = if in_force {
                "; the last good spec stays in force"
            } else {
                "; until then nothing runs"
            };
            Some(condition(kind, ConditionStatus::False, *reason, format!("{why}{last}")))
        }
        Told::Deleted(reason, names) => {
            let remedy = match *reason {
                "SecretDeleted" => "set it again, or take it out of `secrets`",
                _ => "upload it again, or take it out of `files`",
            };
            Some(condition(
                kind,
                ConditionStatus::True,
                *reason,
                format!("the spec is in force; {names} is deleted, and its edition stays in use: {remedy}"),
            ))
        }
    }
}
