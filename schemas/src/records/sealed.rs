//! Records of values that only their readers can open: what people sealed (`sealed/`), and what the leader sealed again for
//! one reader (`handed/`). Both hold ciphertext alone; the envelopes are the crate `trust`'s, and opaque here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SchemaVersion;
use crate::names::ResourceName;
use crate::registry::Account;

/// `sealed/<namespace>/<kind>/<name>`: the values of one resource, sealed by a person's verb for the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealed {
    pub schema_version: SchemaVersion,
    /// By what each is called within the resource: a registry's by the user's name.
    pub values: BTreeMap<String, SealedValue>,
}

/// One sealed value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedValue {
    /// Rises with every new value.
    pub edition: u64,
    pub envelope: Value,
}

/// `handed/<reader>`: what the leader has sealed for one node, or for a controller that came later than a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handed {
    pub schema_version: SchemaVersion,
    /// The reader's public sealing key, so that a reader with a new key is told from one that has all.
    pub key: String,
    pub logins: Vec<HandedLogin>,
}

/// An account of a registry with its password, sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandedLogin {
    /// The Registry resource.
    pub resource: ResourceName,
    /// `host[:port]`.
    pub registry: String,
    pub account: Account,
    pub edition: u64,
    /// The digest of the sealed value: the same for every reader.
    pub digest: String,
    pub envelope: Value,
}
