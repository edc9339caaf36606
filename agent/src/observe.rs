//! What the agent knows of its engine between lists: the last list, what inspections told, which images are here, and
//! whom a person stopped. Events only mark what is stale; lists and inspections decide.

use std::collections::{BTreeMap, BTreeSet};

use planner::node::{Details, Image, InstanceKey, Observed};

use crate::engine::{Action, Inspection};

/// The agent's picture of the engine.
#[derive(Debug, Default)]
pub struct Sight {
    /// The last list, with what is known from inspections laid over it.
    pub containers: Vec<Observed>,
    /// What inspections told, by id, until an event makes it stale.
    inspected: BTreeMap<String, (String, Details)>,
    /// Counts the ends of steps; a list begun before an end is stale for that instance.
    ends: u64,
    ended: BTreeMap<InstanceKey, u64>,
    /// What of images is known, by reference.
    pub images: BTreeMap<String, Image>,
    /// Containers that we stop, or have stopped and not started since.
    ours: BTreeSet<String>,
    /// Containers that a person stopped or killed since they last started.
    pub stopped_by_person: BTreeSet<String>,
}

impl Sight {
    /// The mark to keep when a list is begun.
    #[must_use]
    pub const fn mark(&self) -> u64 {
        self.ends
    }

    /// Takes a list in that was begun at `mark`. Returns the instances for which it is stale already.
    pub fn listed(&mut self, mut containers: Vec<Observed>, mark: u64) -> BTreeSet<InstanceKey> {
        let ids: BTreeSet<&str> = containers.iter().map(|container| container.id.as_str()).collect();
        self.inspected.retain(|id, _| ids.contains(id.as_str()));
        self.ours.retain(|id| ids.contains(id.as_str()));
        self.stopped_by_person.retain(|id| ids.contains(id.as_str()));
        for container in &mut containers {
            if let Some((image, details)) = self.inspected.get(&container.id) {
                container.image.clone_from(image);
                container.details = Some(details.clone());
            }
        }
        self.containers = containers;
        self.ended.retain(|_, end| *end > mark);
        self.ended.keys().cloned().collect()
    }

    /// A step of this instance has ended: what was listed of it before no longer counts.
    pub fn step_ended(&mut self, key: &InstanceKey) {
        self.ends += 1;
        self.ended.insert(key.clone(), self.ends);
    }

    /// Instances for which the last list is stale.
    pub fn stale(&self) -> impl Iterator<Item = &InstanceKey> {
        self.ended.keys()
    }

    /// Takes an inspection in.
    pub fn inspected(&mut self, inspection: Inspection) {
        let Observed {
            id,
            name: _,
            labels: _,
            state: _,
            image,
            networks: _,
            details,
        } = inspection.observed;
        let Some(details) = details else { return };
        if let Some(container) = self.containers.iter_mut().find(|container| container.id == id) {
            container.image.clone_from(&image);
            container.details = Some(details.clone());
        }
        self.inspected.insert(id, (image, details));
    }

    /// What an inspection told of this container no longer counts.
    pub fn forget(&mut self, id: &str) {
        self.inspected.remove(id);
        if let Some(container) = self.containers.iter_mut().find(|container| container.id == id) {
            container.details = None;
        }
    }

    /// Nothing known may be trusted: the engine was away.
    pub fn forget_all(&mut self) {
        self.inspected.clear();
        for container in &mut self.containers {
            container.details = None;
        }
        self.images
            .retain(|_, image| image.pulling.is_some() || image.failed.is_some());
    }

    /// We stop this container, or kill it.
    pub fn we_stop(&mut self, id: &str) {
        self.ours.insert(id.to_owned());
    }

    /// We started this container.
    pub fn we_started(&mut self, id: &str) {
        self.ours.remove(id);
        self.stopped_by_person.remove(id);
    }

    /// Takes an event in. Returns whether the container should be inspected: somebody may have changed it.
    pub fn event(&mut self, id: &str, action: Action) -> bool {
        match action {
            Action::Created | Action::Removed | Action::OutOfMemory => {}
            Action::Died { .. } => self.forget(id),
            Action::Killed | Action::Stopped => {
                if !self.ours.contains(id) {
                    self.stopped_by_person.insert(id.to_owned());
                }
            }
            Action::Started => {
                self.ours.remove(id);
                self.stopped_by_person.remove(id);
                self.forget(id);
            }
            Action::Updated => {
                self.forget(id);
                return true;
            }
            Action::Paused
            | Action::Unpaused
            | Action::Renamed
            | Action::NetworkConnected
            | Action::NetworkDisconnected => {}
        }
        false
    }
}
