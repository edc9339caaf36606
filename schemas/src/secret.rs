//! The kind `Secret`: that there is a value which services of its namespace get, and what it is for. The value itself is in no
//! document: `reeve secret set` seals it for the controllers, and keeps it under `sealed/` with the editions before it. So a
//! document from a repository can be applied at any time, and neither shows, changes nor loses a value.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::records::Digest;

/// The longest value, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 << 10;
/// How many editions of a secret are kept: the one in force, and those that `reeve secret undo` can go back to.
pub const KEPT_EDITIONS: usize = 5;

/// A secret, without its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretSpec {
    /// What it is for, in words; at most 1,024 characters. The value is never written here: `reeve secret set` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 1_024))]
    pub description: Option<String>,
}

/// One edition of a secret, as an accepted service refers to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretEdition {
    /// 1 for the first value, and one more with every new one.
    pub n: u64,
    /// Of the sealed value, under a key that was drawn for it: two editions of equal value have different ones.
    pub digest: Digest,
}
