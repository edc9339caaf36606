//! What the agent knows of its engine between lists: the last list, what inspections told, and whom a person stopped.
//! Events mark what is stale, and lists and inspections decide; a death alone is believed at once.

use std::collections::{BTreeMap, BTreeSet};

use planner::node::{ContainerState, Details, InstanceKey, Observed};

use crate::engine::{Action, Inspection};

/// The agent's picture of the engine.
#[derive(Debug, Default)]
pub struct Sight {
    /// The last list, with what is known from inspections laid over it.
    pub containers: Vec<Observed>,
    /// What inspections told, by id, until an event makes it stale.
    inspected: BTreeMap<String, (String, Details)>,
    /// Containers that were told dead, or that an inspection found ended. An engine tells of a death before it files it, so
    /// that a list begun later may still show them running; until something starts them they are ended.
    ended: BTreeMap<String, ContainerState>,
    /// Counts the ends of steps; a list begun before an end is stale for that instance.
    ends: u64,
    steps: BTreeMap<InstanceKey, u64>,
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

    /// Takes a list in that was begun at `mark`. Returns whether it is stale already for some instance.
    pub fn listed(&mut self, mut containers: Vec<Observed>, mark: u64) -> bool {
        let ids: BTreeSet<&str> = containers.iter().map(|container| container.id.as_str()).collect();
        self.inspected.retain(|id, _| ids.contains(id.as_str()));
        self.ended.retain(|id, _| ids.contains(id.as_str()));
        self.ours.retain(|id| ids.contains(id.as_str()));
        self.stopped_by_person.retain(|id| ids.contains(id.as_str()));
        for container in &mut containers {
            if let Some((image, details)) = self.inspected.get(&container.id) {
                container.image.clone_from(image);
                container.details = Some(details.clone());
            }
            if let Some(state) = self.ended.get(&container.id)
                && container.state == ContainerState::Running
            {
                container.state = *state;
            }
        }
        self.containers = containers;
        self.steps.retain(|_, end| *end > mark);
        !self.steps.is_empty()
    }

    /// A step of this instance has ended: what was listed of it before no longer counts.
    pub fn step_ended(&mut self, key: &InstanceKey) {
        self.ends += 1;
        self.steps.insert(key.clone(), self.ends);
    }

    /// Instances for which the last list is stale.
    pub fn stale(&self) -> impl Iterator<Item = &InstanceKey> {
        self.steps.keys()
    }

    /// Takes an inspection in.
    pub fn inspected(&mut self, inspection: Inspection) {
        let Observed {
            id,
            name: _,
            labels: _,
            state,
            image,
            image_id: _,
            networks: _,
            details,
        } = inspection.observed;
        let has_ended = matches!(state, ContainerState::Exited { .. });
        if has_ended {
            self.ended.insert(id.clone(), state);
        } else {
            self.ended.remove(&id);
        }
        let container = self.containers.iter_mut().find(|container| container.id == id);
        let Some(details) = details else { return };
        if let Some(container) = container {
            container.image.clone_from(&image);
            container.details = Some(details.clone());
            if has_ended {
                container.state = state;
            }
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
        self.ended.clear();
        for container in &mut self.containers {
            container.details = None;
        }
    }

    /// We stop this container, or kill it.
    pub fn we_stop(&mut self, id: &str) {
        self.ours.insert(id.to_owned());
    }

    /// It has started, by us or by another.
    pub fn started(&mut self, id: &str) {
        self.ours.remove(id);
        self.stopped_by_person.remove(id);
        self.ended.remove(id);
        self.forget(id);
    }

    /// Takes an event in. Returns whether the container is to be inspected: somebody may have changed it.
    pub fn event(&mut self, id: &str, action: Action) -> bool {
        match action {
            Action::Died { code } => {
                self.forget(id);
                let state = ContainerState::Exited { code };
                let container = self.containers.iter_mut().find(|container| container.id == id);
                if let Some(container) = container.filter(|one| one.state == ContainerState::Running) {
                    container.state = state;
                    self.ended.insert(id.to_owned(), state);
                }
                // Without its code nobody knows whether it is to be started again.
                code.is_none()
            }
            Action::Updated => {
                self.forget(id);
                true
            }
            Action::Started => {
                self.started(id);
                false
            }
            Action::Killed | Action::Stopped => {
                if !self.ours.contains(id) {
                    self.stopped_by_person.insert(id.to_owned());
                }
                false
            }
            Action::Created
            | Action::Removed
            | Action::OutOfMemory
            | Action::Paused
            | Action::Unpaused
            | Action::Renamed
            | Action::NetworkConnected
            | Action::NetworkDisconnected => false,
        }
    }
}
