//! The kind `Service`: a workload that keeps running, as a number of replicas or once on every fitting node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::ContainerSpec;
use crate::meta::is_default;
use crate::names::ResourceName;
use crate::placement::{Placement, Toleration};
use crate::units::Span;

/// How long a node may be away before what it runs is replaced elsewhere, where a service does not say.
pub const REPLACE_AFTER: Span = Span { millis: 60_000 };

/// What a Service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// `replicated` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: Mode,
    /// How many instances, with mode `replicated`: 0 to 100,000; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: Option<u32>,
    /// What each instance runs.
    pub container: ContainerSpec,
    /// Services of its namespace that it uses. Nothing waits for them; that one is missing is told in the status, and the
    /// container learns each one's name as a variable: `CACHE_SERVICE=cache`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub depends_on: Vec<ResourceName>,
    /// How many of its first addresses every instance of it, and of what depends on it, is told when it is made, before any
    /// of them runs: `SERVICE_SEEDS=10.210.1.2,10.210.2.2`, and `STORE_SEEDS` for who depends on `store`. With mode
    /// `replicated`, in a cluster that has a network of its own; at most 64. None when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub seeds: Option<u32>,
    /// Where instances run; anywhere when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: Placement,
    /// Taints it does not mind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub tolerations: Vec<Toleration>,
    /// When its agent starts an ended container again; `Always` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart_policy: RestartPolicy,
    /// The delay between restarts in a row; doubled at each, from 1s to 1m, when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart_backoff: RestartBackoff,
    /// How a change goes through the instances.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: Update,
    /// How long a node may be away before its instances of this service are replaced on other nodes: `10s` to `24h`. When
    /// absent `1m`; and never where they keep data on their node, in a volume or a host path that they may write. The time
    /// counts while the store answers. What no other node can take stays, and so does what runs on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_after: Option<Span>,
    /// Whether each of its instances may run only once, whatever happens: one on a node that is away is replaced when that node
    /// says that it is gone, or a person that the host is off (`reeve node confirm-lost`), and never by time. Its container gets
    /// a number that only rises from one holder to the next, `REEVE_FENCING_TOKEN`, by which a storage can refuse the one before.
    /// After a reboot, and where it ended while its agent was away, it starts when the store has said that it is assigned there.
    /// With mode `replicated`, and without `replaceAfter`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exclusive: bool,
    /// What a node without the store does with its instances of this service; `keep` when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_disconnect: OnDisconnect,
}

/// What a node does with an instance when it cannot reach the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnDisconnect {
    /// It runs on, and is started again when it ends.
    #[default]
    Keep,
    /// It is stopped when the node has had no word of the store for so long: `10s` to `24h`. It starts again, also after a
    /// reboot, when the store has said again that it is assigned there.
    StopAfter(Span),
}

/// A text or a mapping, without alternatives: what is wrong with either is told at its place.
impl JsonSchema for OnDisconnect {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OnDisconnect".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut after = generator.subschema_for::<Span>();
        after.insert(
            "description".to_owned(),
            "It is stopped when the node has had no word of the store for so long: `10s` to `24h`. It starts again, also after a \
             reboot, when the store has said again that it is assigned there."
                .into(),
        );
        schemars::json_schema!({
            "type": ["string", "object"],
            "pattern": "^keep$",
            "patternErrorMessage": "`keep`, or `{stopAfter: 60s}`",
            "properties": { "stopAfter": after },
            "required": ["stopAfter"],
            "additionalProperties": false
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// `replicas` instances, on the nodes that placement chooses.
    #[default]
    Replicated,
    /// One instance on every node that placement allows.
    Global,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// As `Always`, but one that a person stopped with the engine's own `stop` stays stopped until it is changed or started.
    UnlessStopped,
    /// When it ended with another code than 0.
    OnFailure,
    /// Never.
    Never,
}

/// Delays between restarts in a row. The row ends when the instance has been ready for ten minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartBackoff {
    /// Before the second restart in a row (the first is at once); `1s` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,
    /// The longest; `1m` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
}

/// How a change goes through the instances: one at a time, the old one stopped first, the next when this one is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Update {
    /// How long an instance without a health check must be up to count as ready; `5s` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready: Option<Span>,
    /// How long an instance may take to become ready before the change counts as failed and stops; `5m` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Span>,
}

impl ServiceSpec {
    /// How long a node may be away before its instances are replaced on other nodes; None when they wait for it.
    #[must_use]
    pub fn replace_after(&self) -> Option<Span> {
        let usual = || (!self.container.keeps_data()).then_some(REPLACE_AFTER);
        self.replace_after.or_else(usual).filter(|_| !self.exclusive)
    }
    /// After how long without the store a node stops its instances; None when it keeps them.
    #[must_use]
    pub fn stop_after(&self) -> Option<Span> {
        match self.on_disconnect {
            OnDisconnect::Keep => None,
            OnDisconnect::StopAfter(after) => Some(after),
        }
    }
    /// How long a node must have been away for certain before its instances have stopped by themselves, whatever it is doing: what
    /// it waits, the container's grace, and a tenth more, at least 5 s, for clocks that run apart and for the stop itself. None
    /// when they do not stop.
    #[must_use]
    pub fn stopped_after(&self) -> Option<Span> {
        let millis = self.stop_after()?.millis.saturating_add(self.container.grace().millis);
        Some(Span {
            millis: millis.saturating_add((millis / 10).max(5_000)),
        })
    }
    /// How many instances a replicated service wants; None when it is global.
    #[must_use]
    pub fn wanted(&self) -> Option<u32> {
        match self.mode {
            Mode::Replicated => Some(self.replicas.unwrap_or(1)),
            Mode::Global => None,
        }
    }
}
impl Update {
    #[must_use]
    pub fn min_ready(&self) -> Span {
        self.min_ready.unwrap_or(Span::from_secs(5))
    }
    #[must_use]
    pub fn progress_deadline(&self) -> Span {
        self.progress_deadline.unwrap_or(Span::from_secs(300))
    }
}
