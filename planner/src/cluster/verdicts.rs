//! What each node is held to be, and the refill of the removal budget: the two decisions that rest on what the leader
//! knows beyond the plan (sessions, its own clock). The leader calls [`verdicts`] before [`super::plan`] and stores what
//! it answers, so that `plan` needs no time. Liveness is evidence: nothing here moves or removes an instance.

use schemas::names::NodeName;
use schemas::records::{CordonMode, SchemaVersion, Verdict, VerdictRecord};

use super::snapshot::{NodeEntry, Snapshot};
use super::types::VerdictsOut;

/// How long a removal counts against the budget, in milliseconds of the leader's own clock: ten minutes.
pub const BREAKER_WINDOW_MS: u64 = 600_000;

/// What every node ought to be held to be, as far as it differs from what is stored; and the nodes that may be forgotten.
///
/// A live session makes a node ready, a missing one unreachable (a stored `Lost` stays until the session is back), a
/// person's `retire` retired, whatever the session says.
pub fn verdicts(snapshot: &Snapshot) -> VerdictsOut {
    let mut out = VerdictsOut::default();
    for (name, entry) in &snapshot.nodes {
        let retired = matches!(entry.cordon.as_ref().map(|stored| &stored.value), Some(Ok(cordon)) if cordon.mode == CordonMode::Retire);
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
        let stored = entry
            .verdict
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .map(|record| record.verdict);
        let (verdict, reason) = match (retired, entry.session.is_some(), stored) {
            (true, _, _) => (Verdict::Retired, "a person retired it"),
            (false, true, _) => (Verdict::Ready, "its session lives"),
            (false, false, Some(Verdict::Lost)) => (Verdict::Lost, "its session has been gone for too long"),
            (false, false, _) => (
                Verdict::Unreachable,
                "its session is gone: its agent has stopped, or cannot reach the store",
            ),
        };
        if stored != Some(verdict) {
            let record = VerdictRecord {
                schema_version: SchemaVersion::default(),
                verdict,
                reason: reason.to_owned(),
            };
            out.writes.push((name.clone(), record));
        }
    }
    out
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
