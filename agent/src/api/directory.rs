//! Which containers are this agent's own, for its API: told by the loop whenever its report changes, read by
//! conversations. What is not in it does not exist for the API, whatever the engine runs.

use std::collections::BTreeMap;
use std::time::Duration;

use planner::node::{InstanceKey, Ledger};
use schemas::image::ImageRef;
use schemas::names::InstanceName;
use schemas::records::{Phase, Report};
use tokio::sync::watch;

/// How long a question waits for an agent that has just started.
const FIRST: Duration = Duration::from_secs(10);

/// The instances of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    entries: BTreeMap<InstanceName, Entry>,
    /// What the specs that this node holds are made of.
    images: Vec<ImageRef>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full id of its container, if it has one.
    pub container: Option<String>,
    pub phase: Phase,
    /// Tells a change of anything about it, such as a restart.
    pub restarts: u32,
}

impl Directory {
    /// What a report and the ledger beneath it say.
    #[must_use]
    pub fn of(report: &Report, ledger: &Ledger, images: Vec<ImageRef>) -> Self {
        let mut entries: BTreeMap<InstanceName, Entry> = BTreeMap::new();
        for line in &report.instances {
            let owned = ledger.entries.get(&InstanceKey::reported(line));
            let entry = Entry {
                container: owned.and_then(|entry| entry.container_id().map(str::to_owned)),
                phase: line.phase,
                restarts: line.restarts,
            };
            // Of two lives of one name, the one that runs is meant.
            let known = entries.get(&line.name());
            if known.is_none_or(|known| known.phase != Phase::Running || entry.phase == Phase::Running) {
                entries.insert(line.name(), entry);
            }
        }
        Self { entries, images }
    }

    /// The images that must stay.
    #[must_use]
    pub fn images(&self) -> &[ImageRef] {
        &self.images
    }

    #[must_use]
    pub fn get(&self, name: &InstanceName) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Every container of ours that there is.
    pub fn containers(&self) -> impl Iterator<Item = (&InstanceName, &str)> {
        let with = |(name, entry)| Some((name, Entry::container(entry)?));
        self.entries.iter().filter_map(with)
    }
}

impl Entry {
    fn container(entry: &Self) -> Option<&str> {
        entry.container.as_deref()
    }
}

/// The reading end. None until the loop has looked at its engine once.
pub type Directories = watch::Receiver<Option<std::sync::Arc<Directory>>>;

/// What is known now; waits for an agent that has just started. None when it does not come to know anything.
pub async fn known(directories: &mut Directories) -> Option<std::sync::Arc<Directory>> {
    let known = directories.wait_for(Option::is_some);
    let known = tokio::time::timeout(FIRST, known).await.ok()?.ok()?;
    known.clone()
}
