//! `audit/<who>/<id>`: what somebody did through `reeve`. Written by that person's own command, when it begins to change
//! something and when it ends; nothing decides from it. It names what was acted on, and holds no value and no argument.

use serde::{Deserialize, Serialize};

use super::SchemaVersion;

/// How many things one record names; further ones are counted.
pub const MAX_DONE_OBJECTS: usize = 32;

/// One act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    pub schema_version: SchemaVersion,
    /// When it began, by the clock of that machine: RFC 3339, UTC.
    pub time: String,
    /// `user@host`, in that machine's own words.
    pub by: String,
    /// The release of `reeve` there.
    pub release: String,
    /// Such as `apply`, `node rm`.
    pub verb: String,
    /// Such as `service/web`, `node/n1`.
    pub objects: Vec<String>,
    /// How many more there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// None: it had not ended when this was written, and may never have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// 0: all was done.
    pub exit_code: u8,
    pub millis: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
