//! What each node is held to be, and the refill of the removal budget: the two decisions that rest on what the leader
//! knows beyond the plan (sessions, its own clock). The leader calls [`verdicts`] before [`super::plan`] and stores what
//! it answers, so that `plan` needs no time. Liveness is evidence: nothing here moves or removes an instance. Why a node
//! is called lost when it is: decision 0033.

use std::collections::{BTreeMap, BTreeSet};

use schemas::keys::ResourceKey;
use schemas::names::NodeName;
use schemas::records::{AssignedState, CordonMode, SchemaVersion, Verdict, VerdictRecord};
use schemas::service::{REPLACE_AFTER, ServiceSpec};
use schemas::units::Span;

use super::memory::service_of;
use super::snapshot::{NodeEntry, Snapshot};
use super::types::VerdictsOut;

/// How long a removal counts against the budget, in milliseconds of the leader's own clock: ten minutes.
pub const BREAKER_WINDOW_MS: u64 = 600_000;
/// After one node was called lost the next one is this much later, in milliseconds: Kubernetes' pace (one in ten seconds,
/// `--node-eviction-rate`). What is started elsewhere meanwhile has time to be up.
pub const LOSS_PACE_MS: u64 = 10_000;

/// A node that went away so many times in so many milliseconds gets nothing new until fewer of them are that recent.
const FLAPS: usize = 3;
const FLAP_WINDOW_MS: u64 = 600_000;

const READY: &str = "its session lives";
pub(super) const UNSTEADY: &str =
    "its session lives, and was gone three times in the last ten minutes: nothing new is placed here for now";
const RETIRED: &str = "a person retired it";
const RETIRED_AWAY: &str = "a person retired it; its session is gone";
const RETIRED_OFF: &str = "a person retired it, and says that its host is off";
const AWAY: &str = "its session is gone: its agent has stopped, or cannot reach the store";
const TOO_LONG: &str = "its session has been gone for too long: what it ran goes elsewhere";
const OFF: &str = "a person says that its host is off: what it ran goes elsewhere";
pub(super) const MASS: &str = "more than half of the nodes are away at once: nothing is replaced until some are back, or a person \
                    says which hosts are off with `reeve node confirm-lost`";

/// What a leader remembers of nodes that are away, from one time to the next. A new leader knows nothing, and waits anew.
#[derive(Clone, Debug, Default)]
pub struct Absences {
    /// Since when each session is gone, in milliseconds of the leader's own clock.
    since: BTreeMap<NodeName, u64>,
    /// The report that each had when it went: another one says that it was back meanwhile.
    told: BTreeMap<NodeName, i64>,
    /// When a node was last called lost.
    lost_at: Option<u64>,
    /// When each session was seen to go, the last few times.
    left: BTreeMap<NodeName, Vec<u64>>,
}

/// The leader's own time, and the store's health as it sees it, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    pub now_ms: u64,
    /// For how long the store has answered without a gap; None when it does not.
    pub healthy_ms: Option<u64>,
}

/// What every node ought to be held to be, as far as it differs from what is stored; and the nodes that may be forgotten.
///
/// A live session makes a node ready, a missing one unreachable, a person's `retire` retired, whatever the session says. A
/// node that is away for as long as one of its services waits (`replaceAfter`) is lost: that time counts from when this
/// leader saw it away, and only while the store is healthy. One node is called lost at a time, ten seconds apart, and none
/// while more than half of those that were there are away at once. What a person confirms counts at once, until the node is back.
pub fn verdicts(snapshot: &Snapshot, absences: &mut Absences, at: Moment) -> VerdictsOut {
    let mut out = VerdictsOut::default();
    let mut away: Vec<Away<'_>> = Vec::new();
    let (mut present, mut new) = (0_usize, 0_usize);
    absences.since.retain(|name, _| snapshot.nodes.contains_key(name));
    absences.told.retain(|name, _| snapshot.nodes.contains_key(name));
    absences.left.retain(|name, left| {
        left.retain(|at_ms| at.now_ms.saturating_sub(*at_ms) < FLAP_WINDOW_MS);
        !left.is_empty() && snapshot.nodes.contains_key(name)
    });
    for (name, entry) in &snapshot.nodes {
        let retired = cordon(entry).is_some_and(|(mode, _)| mode == CordonMode::Retire);
        if !is_node(entry) {
            let leftover = entry.verdict.is_some() && entry.cordon.is_none();
            if retired || leftover {
                out.forget.push(name.clone());
            }
            continue;
        }
        if retired && entry.session.is_none() && runs_nothing(name, entry, snapshot) {
            out.forget.push(name.clone());
            continue;
        }
        if entry.session.is_some() {
            absences.since.remove(name);
            present += usize::from(!retired);
        }
        if entry.session.is_none() {
            let told = entry.report.as_ref().map_or(0, |stored| stored.mod_revision);
            let before = absences.told.insert(name.clone(), told);
            if before.is_some_and(|before| before != told) {
                absences.since.remove(name);
            }
        } else {
            absences.told.remove(name);
        }
        if retired {
            let held = match (&entry.session, confirmed(entry)) {
                (Some(_), _) => Held::Retired,
                (None, false) => {
                    absences.since.entry(name.clone()).or_insert(at.now_ms);
                    Held::RetiredAway
                }
                (None, true) => Held::RetiredOff(absences.silence(name, entry, snapshot, at, &mut out)),
            };
            out.say(name, entry, held);
        } else if entry.session.is_some() {
            let left = absences.left.get(name).map_or(&[][..], Vec::as_slice);
            // When the third last one is too long ago to count.
            let steady = left.len().checked_sub(FLAPS).map(|at| left[at] + FLAP_WINDOW_MS);
            let held = if steady.is_some() { Held::Unsteady } else { Held::Ready };
            out.say(name, entry, held);
            out.look_again_ms = out
                .look_again_ms
                .into_iter()
                .chain(steady.map(|due| due - at.now_ms))
                .min();
        } else if confirmed(entry) {
            // A word about one says nothing about the others.
            new += 1;
            let silent = absences.silence(name, entry, snapshot, at, &mut out);
            out.say(name, entry, Held::Off(silent));
        } else {
            let since = *absences.since.entry(name.clone()).or_insert_with(|| {
                absences.left.entry(name.clone()).or_default().push(at.now_ms);
                at.now_ms
            });
            // A word that is not about this absence leaves nothing behind.
            let lost = stored(entry).filter(|record| record.verdict == Verdict::Lost && !record.off);
            new += usize::from(lost.is_none());
            away.push(Away {
                name,
                entry,
                since,
                lost: lost.and_then(|record| record.away),
            });
        }
    }
    if away.is_empty() {
        return out;
    }
    // The only node there is has nobody to be replaced on.
    let alone = present + new == 1;
    out.mass_loss = 2 * new > present + new && !alone;
    // Who has been away for longest comes first.
    away.sort_by_key(|one| (one.since, one.name));
    for one in away {
        let gone = at.now_ms.saturating_sub(one.since).min(at.healthy_ms.unwrap_or(0));
        let timers = waits(snapshot, one.entry);
        let passed = timers.iter().rfind(|wait| wait.millis <= gone);
        let next = timers
            .iter()
            .find(|wait| wait.millis > gone && one.lost.is_none_or(|lost| **wait > lost));
        let due = next.map(|wait| wait.millis - gone);
        let soon = match (one.lost, passed) {
            (Some(lost), passed) => {
                let now = passed.copied().unwrap_or_default().max(lost);
                out.say(one.name, one.entry, Held::Lost(now));
                due
            }
            (None, _) if out.mass_loss => {
                out.say(one.name, one.entry, Held::Mass);
                None
            }
            (None, Some(passed)) if !alone => {
                let pause = absences
                    .lost_at
                    .map(|last| (last + LOSS_PACE_MS).saturating_sub(at.now_ms));
                match pause.filter(|left| *left > 0) {
                    Some(left) => {
                        out.say(one.name, one.entry, Held::Away);
                        Some(left)
                    }
                    None => {
                        absences.lost_at = Some(at.now_ms);
                        out.say(one.name, one.entry, Held::Lost(*passed));
                        due
                    }
                }
            }
            (None, _) => {
                out.say(one.name, one.entry, Held::Away);
                due.filter(|_| !alone)
            }
        };
        out.look_again_ms = out.look_again_ms.into_iter().chain(soon).min();
    }
    out
}

impl Absences {
    /// For how long a node that a person says is off has been away at least, as far as exclusive instances that stop by
    /// themselves wait for that: the longest such time that has passed. The time is counted as that of a loss is.
    fn silence(
        &mut self,
        name: &NodeName,
        entry: &NodeEntry,
        snapshot: &Snapshot,
        at: Moment,
        out: &mut VerdictsOut,
    ) -> Option<Span> {
        let since = *self.since.entry(name.clone()).or_insert(at.now_ms);
        let gone = at.now_ms.saturating_sub(since).min(at.healthy_ms.unwrap_or(0));
        let waits = stops(snapshot, entry);
        let known = stored(entry)
            .filter(|record| record.off)
            .and_then(|record| record.silent);
        let next = waits
            .iter()
            .find(|wait| wait.millis > gone && known.is_none_or(|known| **wait > known));
        let soon = next.map(|wait| wait.millis - gone);
        out.look_again_ms = out.look_again_ms.into_iter().chain(soon).min();
        waits.iter().rfind(|wait| wait.millis <= gone).copied().max(known)
    }
}

/// A node without a session.
struct Away<'s> {
    name: &'s NodeName,
    entry: &'s NodeEntry,
    since: u64,
    /// Of one that is lost already, how long it was away at least.
    lost: Option<Span>,
}

/// What a node is held to be, and why.
#[derive(Clone, Copy)]
enum Held {
    Ready,
    Unsteady,
    Retired,
    RetiredAway,
    /// By a person's word; away for so long at least.
    RetiredOff(Option<Span>),
    Away,
    Mass,
    /// Away for so long at least.
    Lost(Span),
    /// By a person's word; away for so long at least.
    Off(Option<Span>),
}

impl Held {
    fn record(self) -> VerdictRecord {
        let (verdict, reason) = match self {
            Self::Ready => (Verdict::Ready, READY),
            Self::Unsteady => (Verdict::Ready, UNSTEADY),
            Self::Retired => (Verdict::Retired, RETIRED),
            Self::RetiredAway => (Verdict::Retired, RETIRED_AWAY),
            Self::RetiredOff(_) => (Verdict::Retired, RETIRED_OFF),
            Self::Away => (Verdict::Unreachable, AWAY),
            Self::Mass => (Verdict::Unreachable, MASS),
            Self::Lost(_) => (Verdict::Lost, TOO_LONG),
            Self::Off(_) => (Verdict::Lost, OFF),
        };
        let (off, silent) = match self {
            Self::Off(silent) | Self::RetiredOff(silent) => (true, silent),
            Self::Ready
            | Self::Unsteady
            | Self::Retired
            | Self::RetiredAway
            | Self::Away
            | Self::Mass
            | Self::Lost(_) => (false, None),
        };
        VerdictRecord {
            schema_version: SchemaVersion::default(),
            verdict,
            away: match self {
                Self::Lost(away) => Some(away),
                Self::Ready
                | Self::Unsteady
                | Self::Retired
                | Self::RetiredAway
                | Self::RetiredOff(_)
                | Self::Away
                | Self::Mass
                | Self::Off(_) => None,
            },
            off,
            silent,
            unsteady: matches!(self, Self::Unsteady),
            reason: reason.to_owned(),
        }
    }
}

impl VerdictsOut {
    /// What a node is held to be; written where anything else is stored.
    fn say(&mut self, name: &NodeName, entry: &NodeEntry, held: Held) {
        let record = held.record();
        if stored(entry) != Some(&record) {
            self.writes.push((name.clone(), record));
        }
    }
}

fn stored(entry: &NodeEntry) -> Option<&VerdictRecord> {
    entry.verdict.as_ref().and_then(|stored| stored.value.as_ref().ok())
}

/// What a person asks of a node, and whether he says that its host is off.
fn cordon(entry: &NodeEntry) -> Option<(CordonMode, bool)> {
    let cordon = entry.cordon.as_ref()?.value.as_ref().ok()?;
    Some((cordon.mode, cordon.lost))
}

/// Whether a person's word that a host is off is about this absence: it came after the verdict that the node is away, or
/// has been heard already; and the node has written nothing since, so that it was not back unseen.
fn confirmed(entry: &NodeEntry) -> bool {
    let told = entry.report.as_ref().map_or(0, |stored| stored.mod_revision);
    let said = entry.verdict.as_ref().map_or(i64::MAX, |stored| stored.mod_revision);
    let heard = stored(entry).is_some_and(|record| record.off) && told < said;
    let word = entry
        .cordon
        .as_ref()
        .filter(|_| cordon(entry).is_some_and(|(_, lost)| lost));
    heard || word.is_some_and(|word| word.mod_revision > said.max(told))
}

/// How long what a node has takes to stop by itself, each time once.
fn stops(snapshot: &Snapshot, entry: &NodeEntry) -> BTreeSet<Span> {
    let assignment = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
    let report = entry.report.as_ref().and_then(|stored| stored.value.as_ref().ok());
    let assigned = assignment.map_or(&[][..], |assignment| &assignment.instances);
    let reported = report.map_or(&[][..], |report| &report.instances);
    let assigned = assigned.iter().map(|one| (&one.namespace, one.kind, &one.workload));
    let reported = reported.iter().map(|one| (&one.namespace, one.kind, &one.workload));
    let keys: BTreeSet<ResourceKey> = assigned
        .chain(reported)
        .map(|(namespace, kind, name)| ResourceKey {
            namespace: Some(namespace.clone()),
            kind,
            name: name.clone(),
        })
        .collect();
    // Of one that nobody knows anything of, it may be any.
    let blank = assignment.is_none() && report.is_none();
    let all = snapshot.accepted.iter().filter(|(key, _)| blank || keys.contains(key));
    let specs = all
        .map(|(_, history)| history)
        .flat_map(|history| history.records.values())
        .filter_map(|entry| entry.value.as_ref().ok())
        .filter_map(|record| service_of(&record.body));
    specs.filter_map(ServiceSpec::stopped_after).collect()
}

/// For how long what a node has waits, each time once; what nobody knows of waits as long as who does not say.
fn waits(snapshot: &Snapshot, entry: &NodeEntry) -> BTreeSet<Span> {
    let assignment = entry.assignment.as_ref().and_then(|stored| stored.value.as_ref().ok());
    let instances = assignment.map_or(&[][..], |assignment| &assignment.instances);
    let present = instances.iter().filter(|one| one.state != AssignedState::Absent);
    let keys: BTreeSet<ResourceKey> = present
        .map(|one| ResourceKey {
            namespace: Some(one.namespace.clone()),
            kind: one.kind,
            name: one.workload.clone(),
        })
        .collect();
    let wait = |key: &ResourceKey| {
        let records = snapshot
            .accepted
            .get(key)
            .into_iter()
            .flat_map(|history| history.records.values().rev());
        let spec = records
            .filter_map(|entry| entry.value.as_ref().ok())
            .find_map(|record| service_of(&record.body));
        spec.map_or(Some(REPLACE_AFTER), ServiceSpec::replace_after)
    };
    let mut waits: BTreeSet<Span> = keys.iter().filter_map(wait).collect();
    if waits.is_empty() {
        waits.insert(REPLACE_AFTER);
    }
    waits
}

/// Whether these keys make a node: a person's cordon or an old verdict alone do not.
pub(super) fn is_node(entry: &NodeEntry) -> bool {
    entry.facts.is_some() || entry.session.is_some() || entry.report.is_some() || entry.assignment.is_some()
}

/// Whether a node without a session is known to run nothing: its agent said so of its newest assignment, or it never had one.
fn runs_nothing(name: &NodeName, entry: &NodeEntry, snapshot: &Snapshot) -> bool {
    let assigned = entry.assignment.as_ref().map(|stored| stored.value.as_ref());
    match entry.report.as_ref().map(|stored| stored.value.as_ref()) {
        Some(Ok(report)) => {
            let newest = match assigned {
                None => true,
                Some(Ok(assignment)) => report.applied >= assignment.order,
                Some(Err(_)) => false,
            };
            report.instances.is_empty() && newest && report.node == *name && report.cluster == snapshot.cluster.id
        }
        Some(Err(_)) => false,
        None => {
            entry.facts.is_none()
                && assigned.is_none_or(|read| read.is_ok_and(|assignment| assignment.instances.is_empty()))
        }
    }
}

/// The removals that still count, at `now_ms`, of those done at the given times (milliseconds of this leader's own clock,
/// and how many): those of the last ten minutes. A new leader begins its list with what `breaker` holds stored, as of its
/// own start: never less than what was really spent.
#[must_use]
pub fn refill(spent_at: &[(u64, u32)], now_ms: u64) -> u32 {
    spent_at
        .iter()
        .filter(|(at, _)| now_ms.saturating_sub(*at) < BREAKER_WINDOW_MS)
        .fold(0, |sum, (_, count)| sum.saturating_add(*count))
}
