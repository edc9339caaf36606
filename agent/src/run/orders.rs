//! What comes in from the store: assignments, judged before they come into force, and accepted specs. Nothing that is not
//! there, or cannot be read, is an order.

use std::sync::Arc;

use planner::node::{Ruling, SpecId, SpecState, judge};
use runtime::chain;
use schemas::records::{Accepted, Assignment, Order, Record, SchemaVersion};

use super::SessionFile;
use super::keep::{HoldFile, service};
use super::state::Agent;
use crate::copy;
use crate::register::{News, REGRESSED};

impl Agent {
    pub(super) fn told(&mut self, news: News) {
        match news {
            News::Trouble(trouble) => {
                // In a store of another cluster nothing is written: this line is all that tells.
                if let Some((reason, message)) = trouble.as_ref().filter(|_| self.trouble != trouble) {
                    tracing::error!(reason, "{message}; what runs is kept");
                }
                self.trouble = trouble;
                self.tell_regressed();
            }
            News::Session(session) => {
                let file = SessionFile {
                    boot_id: self.boot_id.clone(),
                    session,
                };
                if let Err(error) = self.dir.write_json("session.json", &file) {
                    tracing::warn!("{}; a restarted agent waits for its session's end", chain(&error));
                }
            }
            News::Offered(Err(why)) => {
                let why = format!("{why}; what was assigned before stays in force");
                if self.unreadable.as_ref() != Some(&why) {
                    tracing::error!("the assignment in the store cannot be read: {why}");
                }
                self.unreadable = Some(why);
            }
            News::Signed(assignment, certificate) => self.signed = Some((assignment, certificate)),
            News::Doubted(why) => {
                let message = format!(
                    "the assignment in the store is not believed: {why}; what was assigned before stays in force. \
                     Controllers write it anew; if this comes again, somebody else writes the store: see who may"
                );
                if self.doubted.as_ref() != Some(&message) {
                    tracing::error!("{message}");
                }
                self.doubted = Some(message);
            }
            News::Offered(Ok(offered)) => {
                self.unreadable = None;
                if self.doubted.take().is_some() {
                    tracing::info!("the assignment in the store is a controller's again");
                }
                self.offered = Some(offered.clone());
                self.judge(offered);
            }
            News::Word(asked_ms, assignment) => {
                self.told(News::Offered(Ok(assignment.clone())));
                let in_force = self.input.assignment.as_ref();
                let in_force = in_force.is_some_and(|in_force| in_force.order >= assignment.order);
                if in_force && self.hold.is_none() && self.foreign.is_none() {
                    self.input.contact.confirm(asked_ms);
                }
            }
            News::Spec(id, Err(why)) => {
                self.missed_specs.insert(id.clone());
                self.input.specs.insert(id, SpecState::Damaged(why));
            }
            News::Spec(id, Ok(bytes)) => self.take_spec(id, &bytes),
            News::File(id, content) => self.take_file(id, content),
        }
    }

    /// An assignment comes into force when it is newer, and on disk.
    pub(super) fn judge(&mut self, offered: Arc<Assignment>) {
        let floor = self.known_order(offered.order);
        let in_force = floor.as_ref().or(self.input.assignment.as_deref());
        let ruling = judge(
            &self.input.cluster,
            &self.input.node,
            in_force,
            self.hold.is_some(),
            &offered,
        );
        if !matches!(ruling, Ruling::Foreign(_)) {
            self.foreign = None;
        }
        match ruling {
            Ruling::Accept => {
                let written = self.dir.write("assignment.json", &offered.encode());
                if !self.written(written) {
                    // Nothing is persisted, nothing is started: it is judged again at the next sweep.
                    return;
                }
                tracing::debug!(order = ?offered.order, instances = offered.instances.len(), "a new assignment is in force");
                self.input.assignment = Some(offered);
                self.damaged
                    .retain(|condition| condition.reason != "AssignmentUnreadable");
                self.forget_images();
                self.set_applied();
                self.release();
                self.keep_signed();
            }
            Ruling::Same => {
                self.release();
                if !self.dir.path().join(copy::SIGNED).exists() {
                    self.keep_signed();
                }
            }
            Ruling::WentBack(message) => {
                if self.hold.as_ref() != Some(&message) {
                    tracing::error!("{message}");
                }
                let message = HoldFile { message };
                let written = self.dir.write_json("hold.json", &message);
                self.written(written);
                self.hold = Some(message.message);
                self.tell_regressed();
            }
            Ruling::Foreign(message) => {
                if self.foreign.as_ref() != Some(&message) {
                    tracing::error!("{message}; what was assigned before stays in force");
                }
                self.foreign = Some(message);
            }
            Ruling::StillHeld => {}
        }
    }

    /// Keeps what a controller signed: not for this agent, which believes its own disk, but for the day when every store is gone.
    fn keep_signed(&mut self) {
        let Some((assignment, certificate)) = self.signed.take() else {
            return;
        };
        let written = self.dir.write(copy::SIGNER, &certificate);
        let written = written.and_then(|()| self.dir.write(copy::SIGNED, &assignment));
        if let Err(error) = written {
            tracing::warn!("the signed copy of the assignment is not on disk: {}", chain(&error));
        }
    }

    /// Where the disk remembers a higher order than the assignment it has (that file was damaged, or put back by hand), an
    /// empty assignment of that order: what is below it is not taken.
    fn known_order(&self, offered: Order) -> Option<Assignment> {
        let in_force = self.input.assignment.as_ref().map(|assignment| assignment.order);
        let lost = in_force.unwrap_or_default() < self.floor && offered != self.floor;
        lost.then(|| Assignment {
            network: None,
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: self.input.cluster.clone(),
            node: self.input.node.clone(),
            order: self.floor,
            instances: Vec::new(),
        })
    }

    /// Whether nothing of the store counts, for the metrics.
    pub(super) fn tell_regressed(&self) {
        let trouble = self.trouble.as_ref().is_some_and(|(reason, _)| *reason == REGRESSED);
        self.metrics.store_regressed(trouble || self.hold.is_some());
    }

    fn release(&mut self) {
        if self.hold.take().is_none() {
            return;
        }
        self.tell_regressed();
        match self.dir.remove("hold.json") {
            Ok(()) => tracing::info!("the hold has ended"),
            Err(error) => tracing::warn!("the end of a hold is not on disk: {}", chain(&error)),
        }
    }

    /// A spec counts once it is on disk.
    fn take_spec(&mut self, id: SpecId, bytes: &[u8]) {
        let spec = match Accepted::decode(bytes) {
            Err(error) => Err(chain(&error)),
            Ok(accepted) => service(accepted)
                .ok_or_else(|| format!("the accepted record {} of {} is no service's spec", id.n, id.resource)),
        };
        let state = match spec {
            Err(why) => {
                self.missed_specs.insert(id.clone());
                SpecState::Damaged(why)
            }
            Ok(spec) => {
                let written = self.dir.write_spec(&id, bytes);
                if !self.written(written) {
                    self.missed_specs.insert(id);
                    return;
                }
                self.missed_specs.remove(&id);
                SpecState::Here(spec)
            }
        };
        self.input.specs.insert(id, state);
    }

    /// What could not be had, or not be kept, is asked for again.
    pub(super) fn ask_for_missed_specs(&mut self) {
        let specs = &self.input.specs;
        let used = &self.used_specs;
        self.missed_specs
            .retain(|id| used.contains(id) && !matches!(specs.get(id), Some(SpecState::Here(_))));
        if !self.missed_specs.is_empty() {
            let missed = &self.missed_specs;
            self.ends
                .specs
                .send_modify(|wanted| wanted.extend(missed.iter().cloned()));
        }
    }
}
