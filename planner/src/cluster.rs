//! Who runs what where, for the whole cluster: a [`Snapshot`] of the store in, a [`Plan`] out. The leading controller calls
//! it on every pass and `reeve plan` calls it with a manifest laid over the snapshot, so a person sees what the leader will do.
//! Total (any snapshot), deterministic, resting (its own effects change nothing more), and it stays put.

mod accept;
mod addresses;
mod assign;
mod breaker;
mod changes;
mod draft;
mod exclusive;
mod explain;
mod files;
mod images;
mod logins;
mod memo;
mod memory;
mod output;
mod pass;
mod place;
mod policies;
mod ports;
mod queue;
mod resolve;
mod secrets;
mod sets;
mod snapshot;
mod status;
mod turns;
mod types;
mod verdicts;
mod virtual_ips;
mod world;

pub use logins::{LoginName, LoginNeeds, login, logins};
pub use memo::Memo;
pub use output::removal_digest;
pub use secrets::{SecretName, SecretNeeds, secrets};
pub use snapshot::{
    AcceptedEntry, AcceptedHistory, DeclaredVirtualIp, DesiredBody, DesiredEntry, NodeEntry, Snapshot, Stored,
};
pub use types::{
    AcceptedWrite, Action, AssignmentWrite, Change, Guard, Holder, NetworkWrites, Notice, Plan, Reason, Removal,
    Status, Stray, VerdictsOut,
};
pub use verdicts::{Absences, BREAKER_WINDOW_MS, LOSS_PACE_MS, Moment, refill, verdicts};

/// What a plan leaves out for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Whether changes are listed for people. The leader executes assignments and reads none.
    pub list_changes: bool,
    /// Whether every choice of a node looks at all nodes. Slow; it chooses the same, which tests prove.
    pub exhaustive: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            list_changes: true,
            exhaustive: false,
        }
    }
}

/// What to do with the cluster now, and what comes of it in the end.
pub fn plan(snapshot: &Snapshot) -> Plan {
    plan_with(snapshot, PlanOptions::default())
}

/// As [`plan`], with less or more listed.
pub fn plan_with(snapshot: &Snapshot, options: PlanOptions) -> Plan {
    plan_again(snapshot, options, &mut Memo::default())
}

/// As [`plan_with`], with what the pass before has found out about values that have not changed since: the same plan, sooner.
pub fn plan_again(snapshot: &Snapshot, options: PlanOptions, memo: &mut Memo) -> Plan {
    let room = files::Room::for_services_of(snapshot);
    pass::Pass::run(snapshot, &room, options.exhaustive, memo).into_plan(options, memo)
}
