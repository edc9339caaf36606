//! What the loop keeps on disk, and what it does when the disk is damaged or full. Nothing is persisted, nothing is started.

use std::sync::Arc;

use schemas::records::{Accepted, AcceptedBody, Assignment, NodeCondition};
use serde::{Deserialize, Serialize};

use super::state::Agent;
use super::{AgentError, ContactFile, now_ms};
use crate::disk::DiskError;
use crate::ledger;
use planner::node::{Contact, SpecState};
use runtime::chain;

/// With less free than this on the disk of the data directory or of the engine nothing new is started.
pub(super) const LEAST_FREE_BYTES: u64 = 16 << 20;
/// The same for free inodes, where the file system counts them.
const LEAST_FREE_FILES: u64 = 64;
/// What does not have to be on disk at once is after this.
const LAZY_SAVE_MS: u64 = 1_000;

/// A hold, on disk until the store is accepted.
#[derive(Serialize, Deserialize)]
pub(super) struct HoldFile {
    pub(super) message: String,
}

impl Agent {
    /// Reads what an earlier process left. What is damaged is set aside, said, and holds only itself; what cannot be read
    /// at all is an error, for it may be whole.
    pub(super) fn load(&mut self) -> Result<(), AgentError> {
        match self.dir.read_json::<Assignment>("assignment.json") {
            Ok(assignment) => {
                let (cluster, node) = (&self.input.cluster, &self.input.node);
                self.input.assignment = assignment
                    .filter(|one| one.cluster == *cluster && one.node == *node)
                    .map(Arc::new);
            }
            Err(error) => self.damage("AssignmentUnreadable", "assignment.json", error)?,
        }
        match ledger::load(&self.dir, &self.input.cluster, &self.boot_id) {
            Ok((ledger, applied)) => (self.input.ledger, self.floor) = (ledger, applied),
            Err(error) => self.damage("LedgerUnreadable", ledger::FILE, error)?,
        }
        let (specs, damaged) = self.dir.specs()?;
        self.input.specs = specs
            .into_iter()
            .filter_map(|(id, accepted)| Some((id, SpecState::Here(service(accepted)?))))
            .collect();
        for error in damaged {
            self.say_damage("SpecUnreadable", &error);
        }
        let contents = self.dir.contents()?;
        self.input.files = contents.into_iter().map(|digest| (digest, Ok(()))).collect();
        self.input.secrets = self.logins.secret_states(&self.secret_place);
        match self.dir.read_json::<HoldFile>("hold.json") {
            Ok(hold) => self.hold = hold.map(|hold| hold.message),
            Err(error) => self.hold = Some(chain(&error)),
        }
        self.tell_regressed();
        self.load_contact();
        self.set_applied();
        tracing::info!(
            node = %self.input.node,
            assigned = self.input.assignment.as_ref().map_or(0, |assignment| assignment.instances.len()),
            containers = self.input.ledger.entries.values().filter(|entry| entry.container.is_some()).count(),
            "starting from what is on disk"
        );
        Ok(())
    }

    /// When the store was last heard of in this boot. What is not known was too long ago.
    fn load_contact(&mut self) {
        let kept = self.dir.read_json::<ContactFile>("contact.json").ok().flatten();
        let kept = kept.filter(|file| file.boot_id == self.boot_id && file.heard_ms <= now_ms());
        self.heard_kept_ms = kept.map(|file| file.heard_ms);
        self.input.contact = Contact::since(self.heard_kept_ms);
    }

    /// Takes up what the session has heard of the store.
    pub(super) fn hear_contact(&mut self) {
        let Some(life) = self.ends.life.borrow().clone() else {
            return;
        };
        // The clock first: what is a moment too long ago is on the safe side.
        let now = now_ms();
        let (ago, renewal) = life.renewed();
        if self.heard == Some(renewal) {
            return;
        }
        self.heard = Some(renewal);
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        self.input.contact.renewed(now.saturating_sub(ago));
    }

    /// Where anything here goes by the store's word: keeps on disk when that was heard, and says whether it is asked for.
    pub(super) fn keep_contact(&mut self) {
        let (mut least, mut exclusive) = (None, false);
        for spec in self.input.specs.values() {
            if let SpecState::Here(spec) = spec {
                least = least.into_iter().chain(spec.stop_after()).min();
                exclusive |= spec.exclusive;
            }
        }
        let any = least.is_some();
        let least_ms = least.map_or(u64::MAX, |least| least.millis);
        let wants = (any || exclusive) && self.input.contact.wants_word(least_ms);
        self.ends.word.send_if_modified(|wanted| {
            let news = *wanted != wants;
            *wanted = wants;
            news
        });
        let heard_ms = self.input.contact.heard_ms();
        let Some(heard) = heard_ms.filter(|_| any && heard_ms != self.heard_kept_ms) else {
            return;
        };
        let file = ContactFile {
            boot_id: self.boot_id.clone(),
            heard_ms: heard,
        };
        self.heard_kept_ms = heard_ms;
        if let Err(error) = self.dir.note_json("contact.json", &file) {
            tracing::debug!(
                "{}; a restarted agent may stop sooner what goes by the store's word",
                chain(&error)
            );
        }
    }

    fn damage(&mut self, reason: &str, file: &str, error: DiskError) -> Result<(), AgentError> {
        if !matches!(error, DiskError::Damaged { .. }) {
            return Err(error.into());
        }
        self.say_damage(reason, &error);
        self.dir.set_aside(file);
        Ok(())
    }

    fn say_damage(&mut self, reason: &str, error: &DiskError) {
        let message = format!("{}; it was set aside as `*.damaged`", chain(error));
        tracing::error!("{message}");
        self.damaged.push(NodeCondition {
            reason: reason.to_owned(),
            message,
        });
    }

    pub(super) fn set_applied(&mut self) {
        let order = self.input.assignment.as_ref().map(|assignment| assignment.order);
        self.floor = self.floor.max(order.unwrap_or_default());
        self.ends.applied.send_replace(order.unwrap_or_default());
    }

    /// Writes the ledger. Where it cannot be written, nothing new is begun until it can.
    pub(super) fn save(&mut self) -> bool {
        let saved = ledger::save(
            &self.dir,
            &self.input.cluster,
            &self.boot_id,
            &self.input.ledger,
            self.floor,
        );
        self.save_at_ms = None;
        self.written(saved)
    }

    pub(super) fn save_soon(&mut self) {
        self.save_at_ms.get_or_insert(self.input.now_ms + LAZY_SAVE_MS);
    }

    /// What became of a write that must be on disk before anything new is begun.
    pub(super) fn written(&mut self, result: Result<(), DiskError>) -> bool {
        let Err(error) = result else { return true };
        let remedy = if error.is_full() {
            "free space there"
        } else {
            "see that the disk is whole and writable"
        };
        let why = format!("{}; {remedy}", chain(&error));
        if self.unwritable.as_ref() != Some(&why) {
            tracing::error!("{why}; nothing new is started until then, what runs is kept");
        }
        self.unwritable = Some(why);
        false
    }

    /// Looks whether there is space, and tries again what could not be written.
    pub(super) fn check_disk(&mut self) {
        let full = rustix::fs::statvfs(self.dir.path()).is_ok_and(|fs| {
            fs.f_bavail.saturating_mul(fs.f_frsize) < LEAST_FREE_BYTES
                || (fs.f_files > 0 && fs.f_favail < LEAST_FREE_FILES)
        });
        if full && !self.data_full {
            tracing::error!(
                "the disk of `{}` is full: nothing new is started, what runs is kept; free space there",
                self.dir.path().display()
            );
        }
        self.data_full = full;
        if self.unwritable.is_some() && !full && self.save() {
            tracing::info!("the disk can be written again");
            self.unwritable = None;
        }
    }

    /// Whether nothing new may be begun for want of a disk.
    pub(super) fn is_full(&self) -> bool {
        self.data_full || self.engine_full || self.unwritable.is_some()
    }
}

/// The spec of a service's accepted record.
pub(super) fn service(accepted: Accepted) -> Option<Arc<schemas::service::ServiceSpec>> {
    match accepted.body {
        AcceptedBody::Service(spec) => Some(Arc::from(spec)),
        AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted => None,
    }
}
