//! Statuses before they are written down: conditions that borrow their words, compared with the stored ones first, so that
//! a status that stays as it is costs no allocation and is shared with the snapshot. `output.rs` makes them.

use std::borrow::Cow;
use std::sync::Arc;

use schemas::problem::Problem;
use schemas::records::{Condition, ConditionStatus, ConditionType, ConfigFileStatus, NodeStatus, ServiceStatus};

/// A condition that is not written down yet.
pub(super) struct Draft<'a> {
    pub kind: ConditionType,
    pub status: ConditionStatus,
    pub reason: Cow<'a, str>,
    pub message: Words<'a>,
}

/// A message.
pub(super) enum Words<'a> {
    Text(Cow<'a, str>),
    /// `3 of 5 instances are ready`: what most statuses say, compared as numbers.
    Ready(u32, u32),
}

impl<'a> From<&'a str> for Words<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}
impl From<String> for Words<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl Words<'_> {
    fn says(&self, stored: &str) -> bool {
        match self {
            Self::Text(text) => text == stored,
            Self::Ready(ready, desired) => stored
                .strip_suffix(" instances are ready")
                .and_then(|numbers| numbers.split_once(" of "))
                .is_some_and(|(a, b)| a.parse() == Ok(*ready) && b.parse() == Ok(*desired)),
        }
    }
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text.into_owned(),
            Self::Ready(ready, desired) => format!("{ready} of {desired} instances are ready"),
        }
    }
}

impl Draft<'_> {
    fn is(&self, stored: &Condition) -> bool {
        (self.kind, self.status) == (stored.kind, stored.status)
            && self.reason == stored.reason
            && self.message.says(&stored.message)
    }
    fn write(self) -> Condition {
        Condition {
            kind: self.kind,
            status: self.status,
            reason: self.reason.into_owned(),
            message: self.message.into_text(),
            since: None,
        }
    }
}

pub(super) fn condition<'a>(
    kind: ConditionType,
    status: ConditionStatus,
    reason: impl Into<Cow<'a, str>>,
    message: impl Into<Words<'a>>,
) -> Draft<'a> {
    Draft {
        kind,
        status,
        reason: reason.into(),
        message: message.into(),
    }
}

fn same_conditions(drafts: &[Draft<'_>], stored: &[Condition]) -> bool {
    drafts.len() == stored.len() && drafts.iter().zip(stored).all(|(draft, stored)| draft.is(stored))
}

/// Equal as they are stored: where a problem lies in a text is not.
fn same_problems(new: &[Problem], stored: &[Problem]) -> bool {
    let place = |p: &Problem| (p.line, p.column, p.end_line, p.end_column, p.code);
    new.len() == stored.len()
        && new.iter().zip(stored).all(|(a, b)| {
            place(a) == place(b)
                && a.file == b.file
                && a.path == b.path
                && a.message == b.message
                && a.remedy == b.remedy
        })
}

fn write_all(drafts: Vec<Draft<'_>>) -> Vec<Condition> {
    drafts.into_iter().map(Draft::write).collect()
}

/// A service's status with these conditions; the stored one itself when it says the same.
pub(super) fn service(
    status: ServiceStatus,
    drafts: Vec<Draft<'_>>,
    stored: Option<&Arc<ServiceStatus>>,
) -> Arc<ServiceStatus> {
    let same = stored.filter(|stored| {
        let ServiceStatus {
            schema_version,
            observed_revision,
            generation,
            uid,
            counts,
            conditions: _,
            problems,
            refusals,
            images,
        } = &status;
        *schema_version == stored.schema_version
            && *observed_revision == stored.observed_revision
            && *generation == stored.generation
            && *uid == stored.uid
            && *counts == stored.counts
            && same_conditions(&drafts, &stored.conditions)
            && same_problems(problems, &stored.problems)
            && *refusals == stored.refusals
            && *images == stored.images
    });
    same.cloned().unwrap_or_else(|| {
        Arc::new(ServiceStatus {
            conditions: write_all(drafts),
            ..status
        })
    })
}

/// A node's status with these conditions; the stored one itself when it says the same.
pub(super) fn node(status: NodeStatus, drafts: Vec<Draft<'_>>, stored: Option<&Arc<NodeStatus>>) -> Arc<NodeStatus> {
    let same = stored.filter(|stored| {
        let NodeStatus {
            schema_version,
            observed_revision,
            generation,
            verdict,
            instances,
            ready,
            allocatable_cpu,
            allocatable_memory,
            reserved_cpu,
            reserved_memory,
            conditions: _,
            problems,
        } = &status;
        *schema_version == stored.schema_version
            && *observed_revision == stored.observed_revision
            && *generation == stored.generation
            && *verdict == stored.verdict
            && *instances == stored.instances
            && *ready == stored.ready
            && *allocatable_cpu == stored.allocatable_cpu
            && *allocatable_memory == stored.allocatable_memory
            && *reserved_cpu == stored.reserved_cpu
            && *reserved_memory == stored.reserved_memory
            && same_conditions(&drafts, &stored.conditions)
            && same_problems(problems, &stored.problems)
    });
    same.cloned().unwrap_or_else(|| {
        Arc::new(NodeStatus {
            conditions: write_all(drafts),
            ..status
        })
    })
}

/// A file's status with these conditions; the stored one itself when it says the same.
pub(super) fn file(
    status: ConfigFileStatus,
    drafts: Vec<Draft<'_>>,
    stored: Option<&Arc<ConfigFileStatus>>,
) -> Arc<ConfigFileStatus> {
    let same = stored.filter(|stored| {
        let ConfigFileStatus {
            schema_version,
            observed_revision,
            edition,
            users,
            used_by,
            conditions: _,
            problems,
        } = &status;
        *schema_version == stored.schema_version
            && *observed_revision == stored.observed_revision
            && *edition == stored.edition
            && *users == stored.users
            && *used_by == stored.used_by
            && same_conditions(&drafts, &stored.conditions)
            && same_problems(problems, &stored.problems)
    });
    same.cloned().unwrap_or_else(|| {
        Arc::new(ConfigFileStatus {
            conditions: write_all(drafts),
            ..status
        })
    })
}
