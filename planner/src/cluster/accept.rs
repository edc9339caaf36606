//! Acceptance: which spec of each resource is in force. Takes valid desired values that differ from the last accepted
//! record as new ones, keeps the last good spec where a value is invalid, and takes a resource as deleted only when a
//! complete list lacks it. The first step of [`super::plan`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::config_file::{ConfigFileSpec, FileDigest};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, ResourceName};
use schemas::node::NodeSpec;
use schemas::records::{Accepted, AcceptedBody, AcceptedFile, AssignedState, Digest, Record, SchemaVersion, Uid};
use schemas::service::ServiceSpec;

use super::files::{self, Room, Told};
use super::memo::Memo;
use super::snapshot::{AcceptedHistory, DesiredBody, DesiredEntry, Snapshot};
use super::types::{AcceptedWrite, Guard};
use super::world::NONE;

/// Numbers above this are taken from no report or assignment: a node that lies must not use up the numbers.
pub(super) const MAX_REPORTED: u64 = 1 << 48;

/// One resource's name, and what is in force under it.
#[derive(Debug)]
pub(super) struct Life<'a> {
    pub key: &'a ResourceKey,
    pub desired: Option<&'a DesiredEntry>,
    pub history: Option<&'a AcceptedHistory>,
    pub standing: Standing<'a>,
    /// Where the memo has it that the desired spec equals the last record's; [`NONE`] when it does not.
    pub memo: u32,
    /// What there is to tell of the files that a service mounts.
    pub told: Option<Box<Told>>,
}

/// What [`accept`] answers.
pub(super) struct Accepting<'a> {
    /// What is in force under every name that is desired or was ever accepted, in order of keys.
    pub lives: Vec<Life<'a>>,
    /// The records to create.
    pub writes: Vec<AcceptedWrite>,
    /// The lives of services whose spec, in force or desired, mounts files.
    pub mounting: Vec<usize>,
    /// The lives of files.
    pub files: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Standing<'a> {
    /// No spec was ever accepted.
    Never,
    Live(InForce<'a>),
    /// The last accepted record, or the one of this pass, is a deletion.
    Deleted,
    /// The last accepted record cannot be read: nothing of the resource changes.
    Held {
        why: String,
        /// Not its records are at fault: nodes run a spec that is newer than all of them.
        regressed: bool,
    },
}

#[derive(Debug)]
pub(super) struct InForce<'a> {
    pub n: u64,
    pub uid: Cow<'a, Uid>,
    pub digest: Cow<'a, Digest>,
    pub body: Body<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Body<'a> {
    /// With the editions of its files, where it is in force.
    Service(&'a ServiceSpec),
    Node(&'a NodeSpec),
    ConfigFile(FileBody<'a>),
}

/// A file's content, and what it comes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileBody<'a> {
    pub content: &'a ConfigFileSpec,
    pub digest: FileDigest,
    pub size: u64,
}

/// However it is written: equal content makes no new edition.
impl PartialEq for FileBody<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, self.size) == (other.digest, other.size)
    }
}

impl<'a> FileBody<'a> {
    /// Of a desired value. `before` is known to be what its own content comes to.
    fn of(content: &'a ConfigFileSpec, before: Option<&AcceptedFile>) -> Option<Self> {
        let known = before.filter(|before| before.content == *content);
        let (digest, size) = match known {
            Some(known) => (known.digest, known.size),
            None => content.identity()?,
        };
        Some(Self { content, digest, size })
    }
}

/// The typed body of a desired value, when it is valid and of its key's kind.
fn desired_body<'a>(
    key: &ResourceKey,
    entry: &'a DesiredEntry,
    history: Option<&'a AcceptedHistory>,
) -> Option<Body<'a>> {
    match (&entry.body, key.kind) {
        (DesiredBody::Service(spec), Kind::Service) => Some(Body::Service(spec)),
        (DesiredBody::Node(spec), Kind::Node) => Some(Body::Node(spec)),
        (DesiredBody::ConfigFile(content), Kind::ConfigFile) => {
            let last = history.and_then(|history| history.records.last_key_value());
            let before = match last
                .and_then(|(_, entry)| entry.value.as_ref().ok())
                .map(|record| &record.body)
            {
                Some(AcceptedBody::ConfigFile(before)) => Some(&**before),
                Some(AcceptedBody::Service(_) | AcceptedBody::Node(_) | AcceptedBody::Deleted) | None => None,
            };
            FileBody::of(content, before).map(Body::ConfigFile)
        }
        (DesiredBody::Service(_) | DesiredBody::Node(_) | DesiredBody::ConfigFile(_) | DesiredBody::Invalid(_), _) => {
            None
        }
    }
}

/// The readable record with this number, if it is about its number and of this kind.
pub(super) fn record<'a>(
    history: &'a AcceptedHistory,
    key: &ResourceKey,
    n: u64,
) -> Option<(&'a Accepted, &'a Digest)> {
    let entry = history.records.get(&n)?;
    let record: &Accepted = entry.value.as_ref().ok()?;
    let kind = matches!(
        (&record.body, key.kind),
        (AcceptedBody::Deleted, _)
            | (AcceptedBody::Service(_), Kind::Service)
            | (AcceptedBody::Node(_), Kind::Node)
            | (AcceptedBody::ConfigFile(_), Kind::ConfigFile)
    );
    (record.n == n && kind).then_some((record, &entry.digest))
}

fn body_of(record: &Accepted) -> Option<Body<'_>> {
    match &record.body {
        AcceptedBody::Service(spec) => Some(Body::Service(spec)),
        AcceptedBody::Node(spec) => Some(Body::Node(spec)),
        AcceptedBody::ConfigFile(file) => Some(Body::ConfigFile(FileBody {
            content: &file.content,
            digest: file.digest,
            size: file.size,
        })),
        AcceptedBody::Deleted => None,
    }
}

/// What must be recorded for one resource, before its number is known.
enum Due<'a> {
    Spec {
        body: Body<'a>,
        entry: &'a DesiredEntry,
        uid: Option<&'a Uid>,
        /// It is the last record's, written again since the store went back: due only where nodes run a newer one.
        again: bool,
    },
    Deletion {
        last: &'a Accepted,
    },
}

/// What is in force, and the records to create. With `hold` nothing new is accepted: the store may have gone back.
/// Files come before the services that mount them, which are accepted with the editions of this very pass.
pub(super) fn accept<'a>(snapshot: &'a Snapshot, room: &'a Room, hold: bool, memo: &mut Memo) -> Accepting<'a> {
    let mut lives = Vec::with_capacity(snapshot.desired.len().max(snapshot.accepted.len()));
    let mut due: Vec<(usize, Due<'_>)> = Vec::new();
    let mut mounting: Vec<usize> = Vec::new();
    let mut files: Vec<usize> = Vec::new();
    let mut equal = memo.equal();
    let mut desired = snapshot.desired.iter().peekable();
    let mut accepted = snapshot.accepted.iter().peekable();
    loop {
        let order = match (desired.peek(), accepted.peek()) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let from_desired = if order.is_le() { desired.next() } else { None };
        let from_accepted = if order.is_ge() { accepted.next() } else { None };
        let Some(key) = from_desired.map(|(key, _)| key).or(from_accepted.map(|(key, _)| key)) else {
            break;
        };
        let entry = from_desired.map(|(_, entry)| entry);
        let history = from_accepted.map(|(_, history)| history);
        // What was compared in the pass before and is the same since is not compared again.
        let compared = compared(entry, history);
        let known = compared.and_then(|(desired, record)| equal.knows(key, desired, record));
        // What mounts files is never in the memo: it depends on more than these two.
        let mounts = known.is_none() && key.kind == Kind::Service && mounts_files(entry, history);
        if mounts {
            mounting.push(lives.len());
        }
        if key.kind == Kind::ConfigFile {
            files.push(lives.len());
        }
        let wanted = entry.and_then(|entry| desired_body(key, entry, history).map(|body| (entry, body)));
        let (standing, next, same) = stand(
            key,
            entry,
            wanted,
            history,
            (snapshot.complete, hold, snapshot.cluster.accepted_revision),
            known.is_some(),
        );
        let memo = match (known, compared) {
            (Some(known), _) => known,
            (None, Some((desired, record))) if same && !mounts => equal.learn(key, desired, record),
            (None, _) => NONE,
        };
        if let Some(next) = next.filter(|_| !mounts) {
            due.push((lives.len(), next));
        }
        lives.push(Life {
            key,
            desired: entry,
            history,
            standing,
            memo,
            told: None,
        });
    }
    let mut writes = number(snapshot, &mut lives, due, &mounting);
    let mut due: Vec<(usize, Due<'_>)> = Vec::new();
    for at in mounting.iter().copied() {
        let (next, told) = mount(snapshot, &lives, at, room, hold);
        lives[at].told = told.map(Box::new);
        due.extend(next.map(|next| (at, next)));
    }
    writes.extend(number(snapshot, &mut lives, due, &mounting));
    Accepting {
        lives,
        writes,
        mounting,
        files,
    }
}

/// Whether a service's desired spec, or the one in force, mounts files or gets secrets.
fn mounts_files(entry: Option<&DesiredEntry>, history: Option<&AcceptedHistory>) -> bool {
    let desired = match entry.map(|entry| &entry.body) {
        Some(DesiredBody::Service(spec)) => Some(&**spec),
        Some(DesiredBody::Node(_) | DesiredBody::ConfigFile(_) | DesiredBody::Invalid(_)) | None => None,
    };
    let last = history.and_then(|history| history.records.last_key_value());
    let last = last.and_then(|(_, entry)| super::memory::service_of(&entry.value.as_ref().ok()?.body));
    desired
        .into_iter()
        .chain(last)
        .any(|spec| !spec.container.files.is_empty() || !spec.container.secrets.is_empty())
}

/// What is due of a service that mounts files, now that it is known which editions those have.
fn mount<'a>(
    snapshot: &'a Snapshot,
    lives: &[Life<'a>],
    at: usize,
    room: &'a Room,
    hold: bool,
) -> (Option<Due<'a>>, Option<Told>) {
    let life = &lives[at];
    let before = match &life.standing {
        Standing::Live(live) => match live.body {
            Body::Service(spec) => Some(spec),
            Body::Node(_) | Body::ConfigFile(_) => None,
        },
        Standing::Never | Standing::Deleted | Standing::Held { .. } => None,
    };
    let (wanted, told) = match (life.desired, life.key.namespace.as_ref()) {
        (Some(entry), Some(namespace)) => match &entry.body {
            DesiredBody::Service(spec) => {
                let (resolved, told) = files::resolve(snapshot, lives, room, namespace, spec, before);
                (resolved.map(|spec| (entry, Body::Service(spec))), told)
            }
            DesiredBody::Node(_) | DesiredBody::ConfigFile(_) | DesiredBody::Invalid(_) => (None, None),
        },
        (Some(_), None) | (None, _) => (None, None),
    };
    let flags = (snapshot.complete, hold, snapshot.cluster.accepted_revision);
    let (_, due, _) = stand(life.key, life.desired, wanted, life.history, flags, false);
    (due, told)
}

/// The desired spec of a service and its last accepted record, which are to be compared.
fn compared<'a>(
    entry: Option<&'a DesiredEntry>,
    history: Option<&'a AcceptedHistory>,
) -> Option<(&'a Arc<ServiceSpec>, &'a Arc<Accepted>)> {
    let desired = match &entry?.body {
        DesiredBody::Service(spec) => spec,
        DesiredBody::Node(_) | DesiredBody::ConfigFile(_) | DesiredBody::Invalid(_) => return None,
    };
    let (_, last) = history?.records.last_key_value()?;
    Some((desired, last.value.as_ref().ok()?))
}

/// What is in force, and what is due. `known` says that the desired body is known to equal the accepted one; the answer's
/// last part, that it does.
fn stand<'a>(
    key: &ResourceKey,
    entry: Option<&'a DesiredEntry>,
    wanted: Option<(&'a DesiredEntry, Body<'a>)>,
    history: Option<&'a AcceptedHistory>,
    (complete, hold, since): (bool, bool, Option<i64>),
    known: bool,
) -> (Standing<'a>, Option<Due<'a>>, bool) {
    let Some((history, last)) =
        history.and_then(|history| history.records.last_key_value().map(|(n, _)| (history, *n)))
    else {
        let due = wanted.filter(|_| !hold).map(|(entry, body)| Due::Spec {
            body,
            entry,
            uid: None,
            again: false,
        });
        return (Standing::Never, due, false);
    };
    let Some((record, digest)) = record(history, key, last) else {
        let cause = history.records.get(&last).and_then(|entry| entry.value.as_ref().err());
        let cause = cause.map_or("it is not about its key", String::as_str);
        let why = format!("accepted record {last} of {key} cannot be read ({cause}); restore it, or remove its key");
        return (Standing::Held { why, regressed: false }, None, false);
    };
    let Some(in_force) = body_of(record) else {
        let due = wanted.filter(|_| !hold).map(|(entry, body)| Due::Spec {
            body,
            entry,
            uid: None,
            again: false,
        });
        return (Standing::Deleted, due, false);
    };
    let mut equal = false;
    let due = match (entry, wanted) {
        (None, _) => complete.then_some(Due::Deletion { last: record }),
        (Some(_), None) => None,
        (Some(_), Some((entry, body))) => {
            equal = known || body == in_force;
            // Nothing reads a file's labels but people, from the document.
            let alike = matches!(body, Body::ConfigFile(_))
                || (entry.labels == record.labels && entry.annotations == record.annotations);
            let same = equal && alike;
            let again = same
                && since.is_some_and(|at| entry.mod_revision > at && record.desired_revision != entry.mod_revision);
            (!same || again).then_some(Due::Spec {
                body,
                entry,
                uid: Some(&record.uid),
                again,
            })
        }
    };
    let live = InForce {
        n: last,
        uid: Cow::Borrowed(&record.uid),
        digest: Cow::Borrowed(digest),
        body: in_force,
    };
    (Standing::Live(live), due.filter(|_| !hold), equal)
}

/// What assignments and reports know of a name whose next record is due.
#[derive(Default)]
struct Seen<'a> {
    highest: u64,
    /// The uid that assignments (else reports) give it, for a life whose records are gone.
    assigned_uid: Option<&'a Uid>,
    reported_uid: Option<&'a Uid>,
}

fn number<'a>(
    snapshot: &'a Snapshot,
    lives: &mut [Life<'a>],
    due: Vec<(usize, Due<'a>)>,
    mounting: &[usize],
) -> Vec<AcceptedWrite> {
    if due.is_empty() {
        return Vec::new();
    }
    let mut seen: BTreeMap<(&Namespace, &ResourceName), Seen<'a>> = due
        .iter()
        .filter(|(life, _)| lives[*life].key.kind == Kind::Service)
        .filter_map(|(life, _)| {
            Some((
                (lives[*life].key.namespace.as_ref()?, &lives[*life].key.name),
                Seen::default(),
            ))
        })
        .collect();
    if !seen.is_empty() {
        for entry in snapshot.nodes.values() {
            let assignment = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
            for assigned in assignment.into_iter().flat_map(|assignment| &assignment.instances) {
                if let Some(seen) = seen.get_mut(&(&assigned.namespace, &assigned.workload)) {
                    seen.highest = seen
                        .highest
                        .max(Some(assigned.n).filter(|n| *n <= MAX_REPORTED).unwrap_or(0));
                    if assigned.state != AssignedState::Absent {
                        seen.assigned_uid = seen.assigned_uid.max(Some(&assigned.uid));
                    }
                }
            }
            let report = entry.report.as_ref().and_then(|stored| stored.value.as_ref().ok());
            for reported in report.into_iter().flat_map(|report| &report.instances) {
                if let Some(seen) = seen.get_mut(&(&reported.namespace, &reported.workload)) {
                    let next = reported.next.as_ref().map_or(0, |next| next.n);
                    for n in [reported.n, next] {
                        seen.highest = if n <= MAX_REPORTED {
                            seen.highest.max(n)
                        } else {
                            seen.highest
                        };
                    }
                    seen.reported_uid = seen.reported_uid.max(Some(&reported.uid));
                }
            }
        }
    }
    let mut writes = Vec::with_capacity(due.len());
    for (index, due) in due {
        let named = match lives[index].key.kind {
            Kind::ConfigFile => files::highest_named(lives, mounting, lives[index].key),
            Kind::Service
            | Kind::Node
            | Kind::Registry
            | Kind::Secret
            | Kind::Command
            | Kind::NetworkPolicy
            | Kind::VirtualIP => 0,
        };
        let life = &mut lives[index];
        let nothing = Seen::default();
        let seen = life
            .key
            .namespace
            .as_ref()
            .and_then(|namespace| seen.get(&(namespace, &life.key.name)))
            .unwrap_or(&nothing);
        let stored = life
            .history
            .and_then(|history| history.records.last_key_value())
            .map(|(n, _)| *n);
        if matches!(due, Due::Spec { again: true, .. }) && seen.highest <= stored.unwrap_or(0) {
            continue;
        }
        let n = seen.highest.max(named).max(stored.unwrap_or(0)).saturating_add(1);
        let (record, guard) = match due {
            Due::Spec {
                body,
                entry,
                uid,
                again: _,
            } => {
                let remembered = if stored.is_none() {
                    seen.assigned_uid.or(seen.reported_uid)
                } else {
                    None
                };
                let uid = uid
                    .or(remembered)
                    .cloned()
                    .unwrap_or_else(|| Uid::derive(&snapshot.cluster.id, life.key, n));
                let accepted = match body {
                    Body::Service(spec) => AcceptedBody::Service(Box::new(spec.clone())),
                    Body::Node(spec) => AcceptedBody::Node(spec.clone()),
                    Body::ConfigFile(file) => AcceptedBody::ConfigFile(Box::new(AcceptedFile {
                        digest: file.digest,
                        size: file.size,
                        content: file.content.clone(),
                    })),
                };
                let record = Accepted {
                    schema_version: SchemaVersion::default(),
                    n,
                    uid: uid.clone(),
                    desired_revision: entry.mod_revision,
                    labels: entry.labels.clone(),
                    annotations: entry.annotations.clone(),
                    body: accepted,
                };
                let digest = Cow::Owned(Digest::of(&record.encode()));
                life.standing = Standing::Live(InForce {
                    n,
                    uid: Cow::Owned(uid),
                    digest,
                    body,
                });
                (
                    record,
                    Guard::DesiredAt {
                        key: life.key.clone(),
                        mod_revision: entry.mod_revision,
                    },
                )
            }
            Due::Deletion { last } => {
                life.standing = Standing::Deleted;
                let record = Accepted {
                    schema_version: SchemaVersion::default(),
                    n,
                    uid: last.uid.clone(),
                    desired_revision: last.desired_revision,
                    labels: BTreeMap::new(),
                    annotations: BTreeMap::new(),
                    body: AcceptedBody::Deleted,
                };
                (record, Guard::DesiredAbsent(life.key.clone()))
            }
        };
        writes.push(AcceptedWrite {
            key: life.key.clone(),
            record,
            guard,
        });
    }
    writes
}
