//! Where instances may and would rather run, and which taints they tolerate. The planner alone reads these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::is_default;
use crate::names::{NodeName, ResourceName};

/// Rules of placement. `nodeNames`, `roles` and `required` bind always; the rest counts only when something is placed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// The only nodes it may run on; any when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 10_000))]
    pub node_names: Vec<NodeName>,
    /// Roles of which a node must have at least one; any node when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub roles: Vec<ResourceName>,
    /// Expressions over node labels that must all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub required: Vec<Expression>,
    /// Expressions over node labels that add their weight where they hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub preferred: Vec<Preference>,
    /// Even distribution over the values of node labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 8))]
    pub spread: Vec<Spread>,
    /// The most instances of this workload on one node; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_per_node: Option<u32>,
    /// Services it must run near.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub affinity: Vec<Affinity>,
    /// Services it must not run near.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub anti_affinity: Vec<Affinity>,
    /// Higher is placed first; from -1,000,000 to 1,000,000, 0 when absent. Nothing running is displaced.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
}

/// One comparison of a node label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expression {
    /// The label's key.
    #[schemars(extend("minLength" = 1, "maxLength" = 317))]
    pub key: String,
    /// How the label is compared.
    pub operator: Operator,
    /// The values of `In` and `NotIn` (one or more), the one whole number of `Gt` and `Lt`; none for `Exists` and `DoesNotExist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 1_024))]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    Exists,
    DoesNotExist,
    /// The label is a whole number greater than the value.
    Gt,
    /// The label is a whole number less than the value.
    Lt,
}

/// An expression that is liked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preference {
    /// How much: 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub weight: u8,
    /// What is liked.
    pub expression: Expression,
}

/// Distribution over the values of a node label. Nodes without the label are left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spread {
    /// The label whose values are the domains: `zone`.
    #[schemars(extend("minLength" = 1, "maxLength" = 317))]
    pub topology_key: String,
    /// The most by which a domain may exceed the emptiest one; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_skew: Option<u32>,
    /// What to do when the skew cannot be kept; `DoNotSchedule` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_unsatisfiable: WhenUnsatisfiable,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnsatisfiable {
    #[default]
    DoNotSchedule,
    ScheduleAnyway,
}

/// Nearness to the instances of a service in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Affinity {
    /// The other service, or this one itself.
    pub service: ResourceName,
    /// The node label whose equal value means near; the node itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 317))]
    pub topology_key: Option<String>,
    /// 1 to 100 makes it a preference of that weight; it is required when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: Option<u8>,
}

/// A taint of a node that this workload does not mind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; every key when absent, with `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Equal` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub operator: TolerationOperator,
    /// The taint's value, with `Equal`; the empty text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The taint's effect; every effect when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    #[default]
    Equal,
    Exists,
}

/// A mark that keeps off all workloads that do not tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// What tolerations name it by.
    #[schemars(extend("minLength" = 1, "maxLength" = 317))]
    pub key: String,
    /// The empty text when absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it does to workloads that do not tolerate it.
    pub effect: TaintEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// Nothing new is placed; what runs stays.
    NoSchedule,
    /// Placed elsewhere where that is possible.
    PreferNoSchedule,
}

impl Toleration {
    /// Whether this toleration covers that taint.
    #[must_use]
    pub fn covers(&self, taint: &Taint) -> bool {
        let key = self.key.as_ref().is_none_or(|key| *key == taint.key);
        let effect = self.effect.is_none_or(|effect| effect == taint.effect);
        let value = match self.operator {
            TolerationOperator::Exists => true,
            TolerationOperator::Equal => self.key.is_some() && self.value.as_deref().unwrap_or("") == taint.value,
        };
        key && effect && value
    }
}
