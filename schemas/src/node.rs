//! The kind `Node`: what people say about a node. Optional; a node without one works.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::ResourceList;
use crate::meta::is_default;
use crate::names::ResourceName;
use crate::placement::Taint;

/// What people say about a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    /// Labels for placement, over those its agent reports; at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Roles for placement.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub roles: Vec<ResourceName>,
    /// Marks that keep off workloads without a matching toleration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub taints: Vec<Taint>,
    /// Whether nothing new is placed here. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unschedulable: bool,
    /// Whether processes of the host itself, and not only containers, may reach and resolve the cluster's network; `reeve expose`
    /// and `hide` set it. False when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exposed: bool,
    /// The address or name under which the outside reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub public_address: Option<String>,
    /// What is kept free for the host itself; nothing when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reserved: ResourceList,
}
