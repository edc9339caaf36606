//! The envelope every resource shares: `apiVersion`, `kind`, `metadata`, `spec`. Kinds fill in `spec`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{Namespace, ResourceName};

/// The version of the words people write.
pub const API_VERSION: &str = "reeve/v1";

/// Whether a value is its type's default; defaults are not written out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a resource is called, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// The resource's name: a DNS label, unique within its namespace and kind.
    pub name: ResourceName,
    /// The namespace; `default` when absent. Cluster-wide kinds (Node) have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Short texts to select resources by; at most 64. A key is at most 63 characters (a prefix of at most 253 and `/` may stand before it), a value at most 63.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Notes for people and tools; nothing selects by them. At most 64, of at most 4,096 bytes each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Written by Reeve: which life of this name this is. In a manifest it is a condition: `apply` refuses when it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Written by Reeve: the number of the accepted spec in force. In a manifest it is a condition: `apply` refuses when it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Written by Reeve: the store revision of the last write. In a manifest it is a condition: `apply` refuses when it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]{1,19}$"))]
    pub resource_version: Option<String>,
}

/// A resource of one kind, typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource<S> {
    pub metadata: Metadata,
    pub spec: S,
}
