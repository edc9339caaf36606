//! Files and secrets that instances get: what is fetched is kept on disk before it counts, what nobody needs any more is forgotten,
//! and the copies of a container go when it is gone.

use std::collections::BTreeSet;

use planner::network::names;
use planner::node::{Failure, FileId, InstanceKey, Op, Seat, SpecState, Step};
use runtime::chain;
use schemas::config_file::FileDigest;
use schemas::container::{ContainerSpec, Dns};
use schemas::records::network::gateway;

use super::facts;
use super::state::Agent;
use crate::execute::{Needs, Resolver};
use crate::files::{self, LayError, Layout};
use crate::secrets::{self, SecretLayout};

impl Agent {
    /// Content counts once it is on disk.
    pub(super) fn take_file(&mut self, id: FileId, content: Result<Vec<u8>, String>) {
        let digest = id.edition.digest;
        match content {
            Ok(bytes) => {
                let written = self.dir.write_content(&digest, &bytes);
                if !self.written(written) {
                    self.missed_files.insert(id);
                    return;
                }
                self.missed_files.retain(|missed| missed.edition.digest != digest);
                self.input.files.insert(digest, Ok(()));
            }
            Err(why) => {
                if self.input.files.get(&digest) != Some(&Err(why.clone())) {
                    tracing::warn!(file = %id.resource, edition = id.edition.n, "{why}; it is tried again");
                }
                self.missed_files.insert(id);
                self.input.files.insert(digest, Err(why));
            }
        }
    }

    /// What a step that starts a container needs on this node.
    pub(super) fn needs(&self, step: &Step) -> Result<Needs, Failure> {
        let of = |name: &str, spec: &ContainerSpec| {
            let files = Layout::of(self.dir.path(), name, spec)?;
            let (place, logins) = (&self.secret_place, &self.logins);
            let secrets = SecretLayout::of(place, logins, name, &step.instance.namespace, spec);
            Ok(Needs {
                files,
                secrets,
                addresses: facts::addresses(&self.options),
                resolver: None,
            })
        };
        let needs = match &step.op {
            Op::Create { name, spec, seat, .. } => of(name, &spec.container).map(|needs| Needs {
                resolver: seat
                    .as_ref()
                    .and_then(|seat| self.resolver(step, &spec.container, seat)),
                ..needs
            }),
            Op::Start { .. } => {
                let entry = self.input.ledger.entries.get(&step.instance);
                let Some(owned) = entry.and_then(|entry| entry.container.as_ref()) else {
                    return Ok(Needs::default());
                };
                let made_from = step.instance.spec(owned.spec.n, &owned.spec.digest);
                let Some(SpecState::Here(spec)) = self.input.specs.get(&made_from) else {
                    return Ok(Needs::default());
                };
                let name = step.instance.name().container(owned.spec.n);
                of(&name, &spec.container)
            }
            Op::Stop { .. }
            | Op::Kill { .. }
            | Op::Remove { .. }
            | Op::Unpause { .. }
            | Op::Rename { .. }
            | Op::UpdateLimits { .. }
            | Op::Connect { .. } => Ok(Needs::default()),
        };
        needs.map_err(|error: LayError| Failure {
            reason: error.reason(),
            message: chain(&error),
        })
    }

    /// How a container of the cluster's network finds names; None where a person says how it does.
    fn resolver(&self, step: &Step, spec: &ContainerSpec, seat: &Seat) -> Option<Resolver> {
        let own = spec.dns == Dns::default();
        let taken = spec.mounts.iter().any(|mount| mount.target == "/etc/resolv.conf");
        let namespace = &step.instance.namespace;
        (own && !taken).then(|| Resolver {
            path: self.dir.path().join("resolv").join(format!("{namespace}.conf")),
            content: names::resolver(&seat.domain, namespace, vec![gateway(&seat.ground.subnet).into()]).resolv_conf(),
        })
    }

    /// Forgets what is known of content that is not on disk any more: it was damaged, or removed by hand.
    pub(super) fn look_at_files(&mut self) {
        match self.dir.contents() {
            Ok(here) => self
                .input
                .files
                .retain(|digest, state| state.is_err() || here.contains(digest)),
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }

    /// Asks again for what could not be had, and forgets content that no spec on this node mounts.
    pub(super) fn sweep_files(&mut self) {
        let mut used: BTreeSet<FileDigest> = BTreeSet::new();
        for (id, state) in &self.input.specs {
            if let (SpecState::Here(spec), Some(namespace)) = (state, &id.resource.namespace) {
                used.extend(files::editions(namespace, &spec.container).map(|file| file.edition.digest));
            }
        }
        self.look_at_files();
        self.missed_files.retain(|id| used.contains(&id.edition.digest));
        if !self.missed_files.is_empty() {
            let missed = &self.missed_files;
            self.ends
                .files
                .send_modify(|wanted| wanted.extend(missed.iter().cloned()));
        }
        if self.input.assignment.is_none() || !self.seen {
            return;
        }
        let known: Vec<FileDigest> = self.input.files.keys().copied().collect();
        for digest in known.into_iter().filter(|digest| !used.contains(digest)) {
            self.input.files.remove(&digest);
            if let Err(error) = self.dir.remove_content(&digest) {
                tracing::warn!(
                    "the content of a file that nobody uses stays on disk: {}",
                    chain(&error)
                );
            }
        }
        self.drop_copies();
    }

    /// Removes the copies of an instance's container, which is gone.
    pub(super) fn drop_copies_of(&self, instance: &InstanceKey) {
        let entry = self.input.ledger.entries.get(instance);
        if let Some(owned) = entry.and_then(|entry| entry.container.as_ref()) {
            let name = instance.name().container(owned.spec.n);
            if let Err(error) = files::drop_copies_of(self.dir.path(), &name) {
                tracing::warn!(%instance, "the copies of its files stay on disk for now: {error}");
            }
            if let Err(error) = secrets::drop_one(&self.secret_place, &name) {
                tracing::warn!(%instance, "its secrets stay in memory for now: {error}");
            }
        }
    }

    /// Removes the copies of containers that are gone. One that is only intended, or of which only the engine knows,
    /// keeps its own.
    fn drop_copies(&self) {
        if !self.seen || self.engine_down.is_some() {
            return;
        }
        let owned = self.input.ledger.entries.iter().filter_map(|(key, entry)| {
            let owned = entry.container.as_ref()?;
            Some(key.name().container(owned.spec.n))
        });
        let listed = self.sight.containers.iter().filter_map(|one| {
            let own = one.own()?;
            Some(own.name())
        });
        let keep: BTreeSet<String> = owned.chain(listed).collect();
        if let Err(error) = files::drop_copies(self.dir.path(), &keep) {
            tracing::warn!("the copies of files of a container that is gone stay on disk: {error}");
        }
        if let Err(error) = secrets::drop_others(&self.secret_place, &keep) {
            tracing::warn!("the secrets of a container that is gone stay in memory: {error}");
        }
    }
}
