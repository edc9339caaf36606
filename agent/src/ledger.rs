//! The ledger as a file: `ledger.json`. Read once at start, written before any step that makes or forgets a container. Where it is
//! damaged, what it owned is adopted by name, labels and inspection.

use planner::node::{InstanceKey, Ledger, LedgerEntry};
use schemas::records::{ClusterId, Order, SchemaVersion};
use serde::{Deserialize, Serialize};

use crate::disk::{DataDir, DiskError};

pub const FILE: &str = "ledger.json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LedgerFile {
    schema_version: SchemaVersion,
    cluster: ClusterId,
    /// The boot in which its moments were taken.
    boot_id: String,
    /// The order in force when it was written: what is below it is never taken, though the assignment's file be damaged.
    #[serde(default)]
    applied: Order,
    instances: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    instance: InstanceKey,
    #[serde(flatten)]
    entry: LedgerEntry,
}

/// Reads the ledger, and the order that was in force; empty when there is none. Moments of an earlier boot are cleared.
pub fn load(dir: &DataDir, cluster: &ClusterId, boot_id: &str) -> Result<(Ledger, Order), DiskError> {
    let Some(file) = dir.read_json::<LedgerFile>(FILE)? else {
        return Ok(Default::default());
    };
    if file.cluster != *cluster {
        let why = format!("it is of cluster {}, this agent of {cluster}", file.cluster);
        return Err(DiskError::Damaged {
            path: dir.path().join(FILE),
            why,
        });
    }
    let same_boot = file.boot_id == boot_id;
    let line = |Line { instance, mut entry }: Line| {
        if !same_boot {
            entry.forget_moments();
        }
        (instance, entry)
    };
    let entries = file.instances.into_iter().map(line).collect();
    Ok((Ledger { entries }, file.applied))
}

/// Writes the ledger; on return it is on disk.
pub fn save(
    dir: &DataDir,
    cluster: &ClusterId,
    boot_id: &str,
    ledger: &Ledger,
    applied: Order,
) -> Result<(), DiskError> {
    let line = |(instance, entry): (&InstanceKey, &LedgerEntry)| Line {
        instance: instance.clone(),
        entry: entry.clone(),
    };
    let file = LedgerFile {
        schema_version: SchemaVersion::default(),
        cluster: cluster.clone(),
        boot_id: boot_id.to_owned(),
        applied,
        instances: ledger.entries.iter().map(line).collect(),
    };
    dir.write_json(FILE, &file)
}
