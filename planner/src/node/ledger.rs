//! The agent's ledger: which container is whose, and how each instance has fared. It is the proof of ownership. The agent
//! keeps it on disk; an intent to create is in it, on disk, before the create.

use std::collections::BTreeMap;

use schemas::image::ImagePin;
use schemas::records::{AssignedImage, AssignedPort, Digest, Failing, InstanceCondition};
use serde::{Deserialize, Serialize};

use super::types::{InstanceKey, Limits};

/// Every instance this node knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub entries: BTreeMap<InstanceKey, LedgerEntry>,
}

/// One instance. Moments are ms of BOOTTIME; the agent clears them when the machine has been booted since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LedgerEntry {
    /// The accepted spec whose probes and policies count, and whose container runs or is to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
    /// Its container, or the intent to create it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Owned>,
    /// Since when it has been up; None while it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<Up>,
    /// What the clock of `progressDeadline` runs for; None while it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trying: Option<Trying>,
    /// Restarts in a row.
    pub row: u32,
    /// Restarts since the container was created.
    pub restarts: u32,
    /// Steps that failed in a row.
    pub failures: u32,
    /// After an end: not started before.
    pub start_after_ms: u64,
    /// After a step that failed: not tried again before.
    pub retry_after_ms: u64,
    /// It ended and stays so, by its restart policy.
    pub stopped: bool,
    /// We stop it to start it again, whatever its restart policy says.
    pub restarting: bool,
    /// It did not end by being asked: SIGKILL next.
    pub kill: bool,
    /// With pull policy `Always`: a pull must have begun after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_after_ms: Option<u64>,
    /// The code with which it last ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Why it does not become, or stay, ready; kept until it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
    /// What the engine said of its options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<InstanceCondition>,
    /// Its limits as first inspected after create, or after they were set again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What the image of the spec in force was settled to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<AssignedImage>,
    /// Of an exclusive service: the token it was assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// What the image was found to be here, by number: of the spec in force, and of the one that is to follow it. None of
    /// one that no registry knows.
    #[serde(with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub found: BTreeMap<u64, Option<ImagePin>>,
}

/// A list of pairs: the agent's file flattens an entry into its line, and there serde reads no numbers back from a map's keys.
mod pairs {
    use std::collections::BTreeMap;

    use schemas::image::ImagePin;
    use serde::{Deserialize as _, Deserializer, Serializer};

    type Found = BTreeMap<u64, Option<ImagePin>>;

    pub fn serialize<S: Serializer>(found: &Found, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(found)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Found, D::Error> {
        Vec::<(u64, Option<ImagePin>)>::deserialize(from).map(|pairs| pairs.into_iter().collect())
    }
}

/// An accepted spec in force, with what is particular to the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    pub n: u64,
    pub digest: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<AssignedPort>,
}

/// A container of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owned {
    /// The full id; None while it is only intended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What it was made from.
    pub spec: InForce,
    /// The token it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
}

/// A container that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Up {
    pub since_ms: u64,
    /// The engine's own words for its start, once inspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Since when it has been ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
}

/// What an instance is trying to become ready as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trying {
    pub n: u64,
    pub since_ms: u64,
}

impl LedgerEntry {
    /// Clears every moment: the machine has been booted since they were written. What was up was ended by that, and not
    /// by itself.
    pub fn forget_moments(&mut self) {
        self.start_after_ms = 0;
        self.retry_after_ms = 0;
        self.pull_after_ms = None;
        self.trying = None;
        if let Some(up) = &mut self.up {
            self.restarting = true;
            *up = Up {
                since_ms: 0,
                started_at: None,
                ready_ms: None,
            };
        }
    }

    /// Whether what must be on disk before a step runs differs: the proof of ownership, and the spec in force.
    #[must_use]
    pub fn proof_differs(&self, other: &Self) -> bool {
        self.in_force != other.in_force || self.container != other.container || self.stopped != other.stopped
    }

    /// The id of its container, if it has one.
    #[must_use]
    pub fn container_id(&self) -> Option<&str> {
        self.container.as_ref().and_then(|owned| owned.id.as_deref())
    }
}
