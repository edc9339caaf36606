//! What the end of a step changes in the ledger. The agent calls [`settle`] when a step has ended, then plans again.

use schemas::records::{Failing, FailingReason};

use super::instance::delay;
use super::ledger::{LedgerEntry, Up};
use super::types::{InstanceKey, Op, OpOutcome};

/// Delays after steps that failed in a row: 1 s doubling to 1 minute.
const RETRY_MS: (u64, u64) = (1_000, 60_000);

/// Enters the end of a step into its instance's entry.
pub fn settle(key: &InstanceKey, entry: &mut LedgerEntry, op: &Op, outcome: &OpOutcome, now_ms: u64) {
    match outcome {
        OpOutcome::Created { id, conditions } => {
            if let Some(owned) = &mut entry.container {
                owned.id = Some(id.clone());
            }
            entry.conditions.clone_from(conditions);
        }
        OpOutcome::Done => {
            entry.failures = 0;
            entry.retry_after_ms = 0;
            match op {
                Op::Create { .. } => started(entry, now_ms),
                Op::Start { .. } => {
                    entry.restarts = entry.restarts.saturating_add(u32::from(entry.exit_code.is_some()));
                    started(entry, now_ms);
                }
                Op::Remove { .. } => {
                    entry.container = None;
                    entry.up = None;
                    entry.kill = false;
                    entry.restarting = false;
                }
                Op::UpdateLimits { .. } => entry.limits = None,
                Op::Kill { .. } => entry.kill = false,
                Op::Stop { .. } | Op::Unpause { .. } | Op::Rename { .. } | Op::Connect { .. } => {}
            }
        }
        OpOutcome::Failed(failure) => {
            entry.failures = entry.failures.saturating_add(1);
            entry.retry_after_ms = now_ms + delay(key, entry.failures, RETRY_MS.0, RETRY_MS.1);
            entry.kill |= matches!(op, Op::Stop { .. }) && failure.reason == FailingReason::StopFailed;
            let n = entry.in_force.as_ref().map_or(0, |spec| spec.n);
            entry.failing = Some(Failing {
                n,
                reason: failure.reason,
                message: failure.message.clone(),
                logs: Vec::new(),
            });
        }
    }
}

fn started(entry: &mut LedgerEntry, now_ms: u64) {
    entry.up = Some(Up {
        since_ms: now_ms,
        started_at: None,
        ready_ms: None,
    });
    entry.restarting = false;
    entry.stopped = false;
    entry.pull_after_ms = None;
}
