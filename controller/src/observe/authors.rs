//! Whose word the stored assignments are, where controllers sign: an assignment that none of them signed is nobody's order,
//! and counts as unreadable, so that it is held and written anew. [`super::Observer`] asks here; without a pen (a store of
//! one's own without the cluster's certificates) it asks nobody, and nothing is signed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use planner::cluster::{Snapshot, Stored};
use runtime::{KeyMap, KeyValue, Prefix};
use schemas::keys::{Key, ResourceKey, Root, TrustKey};
use schemas::names::NodeName;
use schemas::records::Assignment;
use trust::certificate::Certificate;
use trust::key::Fingerprint;
use trust::sign::{Domain, Keyring, Signing, unweave};
use trust::validity::Time;

use super::decode::chain;

/// Who signed what is stored.
#[derive(Debug)]
pub(super) struct Authors {
    pub signing: Arc<Signing>,
    keyring: Keyring,
    now: Time,
    /// Signers of what is stored, and for whom.
    signed: BTreeMap<Fingerprint, BTreeSet<NodeName>>,
    /// Assignments that count for nothing, for want of their signer.
    unknown: BTreeSet<NodeName>,
    /// Assignments that no controller can have written, over ones that one did: those are written back as they were.
    put_back: BTreeSet<NodeName>,
    /// Accepted records that have come or changed, and were not held against assignments yet; whether each was overwritten.
    pub accepted: BTreeMap<(ResourceKey, u64), bool>,
}

/// What is wrong with an accepted record that was written twice, or is not the one that is assigned.
pub(super) const ALTERED: &str = "read the accepted spec: it was altered since controllers accepted it, and counts for nothing; put it back from a backup";

impl Authors {
    pub fn new(signing: Arc<Signing>, now: Time) -> Self {
        let mut keyring = Keyring::new(signing.trust.clone());
        // One that does not count here is said by whoever refuses it.
        let _ = keyring.admit(&signing.pen.certificate().der(), now);
        Self {
            signing,
            keyring,
            now,
            signed: BTreeMap::new(),
            unknown: BTreeSet::new(),
            put_back: BTreeSet::new(),
            accepted: BTreeMap::new(),
        }
    }

    /// One that has seen nothing of the store.
    pub fn fresh(&self) -> Self {
        Self::new(Arc::clone(&self.signing), self.now)
    }

    /// Takes the time, and a new certificate or new authorities; true when everything must be looked at again.
    pub fn take(&mut self, signing: &Arc<Signing>, now: Time) -> bool {
        self.now = now;
        if Arc::ptr_eq(&self.signing, signing) {
            return false;
        }
        let others = self.signing.trust != signing.trust;
        self.signing = Arc::clone(signing);
        if others {
            self.keyring.retrust(signing.trust.clone());
        }
        let _ = self.keyring.admit(&signing.pen.certificate().der(), now);
        others
    }

    /// Pins the controllers whose certificates are published; true when one is new.
    pub fn admit(&mut self, root: &Root, keys: &KeyMap) -> bool {
        let Ok(prefix) = Prefix::new(root.prefix("trust/signers")) else {
            return false;
        };
        let mut new = false;
        for kv in keys.under(&prefix) {
            let Some(Key::Trust(TrustKey::Signer(name))) = root.parse(&kv.key) else {
                continue;
            };
            let known = |signer: Fingerprint| self.keyring.until(&signer).is_some();
            if name.parse().is_ok_and(known) {
                continue;
            }
            let Ok(certificate) = signer(&name, kv) else { continue };
            // However long ago it ended: what it signed is signed anew, and until then it is its word.
            let then = self.now.min(certificate.validity().until);
            new |= self.keyring.admit(&certificate.der(), then).is_ok();
        }
        new
    }

    /// The nodes whose assignments were refused because their signer was not known.
    pub fn take_unknown(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.unknown)
    }

    /// Whether a controller signed this as the node's assignment.
    pub fn judge(&mut self, node: &NodeName, bytes: &[u8]) -> Result<(), String> {
        self.forget(node);
        let Some((document, signature)) = unweave(bytes) else {
            return Err("read the assignment: no controller has signed it".to_owned());
        };
        let domain = Domain::assignment(node.as_str());
        match self.keyring.recall(domain, &document, &signature, self.now) {
            Ok(_) => {
                let signer = signature.signer();
                self.signed.entry(signer).or_default().insert(node.clone());
                Ok(())
            }
            Err(refusal) => {
                self.unknown.insert(node.clone());
                Err(format!("read the assignment: {}", chain(&refusal)))
            }
        }
    }

    /// Those of the records that came or changed which are not what signed assignments name; and those that were overwritten
    /// and that no assignment names.
    pub fn take_altered(&mut self, snapshot: &Snapshot) -> BTreeSet<(ResourceKey, u64)> {
        let changed = std::mem::take(&mut self.accepted);
        if changed.is_empty() {
            return BTreeSet::new();
        }
        let wanted: BTreeSet<(&str, u64)> = changed.keys().map(|(key, n)| (key.name.as_str(), *n)).collect();
        let mut altered: BTreeSet<(ResourceKey, u64)> = BTreeSet::new();
        let mut named: BTreeSet<(ResourceKey, u64)> = BTreeSet::new();
        let assignments = snapshot.nodes.values().filter_map(|node| node.assignment.as_ref());
        let assigned = assignments
            .filter_map(|stored| stored.value.as_ref().ok())
            .flat_map(|assignment| &assignment.instances);
        for instance in assigned.filter(|instance| wanted.contains(&(instance.workload.as_str(), instance.n))) {
            let resource = ResourceKey {
                namespace: Some(instance.namespace.clone()),
                kind: instance.kind,
                name: instance.workload.clone(),
            };
            let history = snapshot.accepted.get(&resource);
            let stored = history.and_then(|history| history.records.get(&instance.n));
            let place = (resource, instance.n);
            let Some(stored) = stored.filter(|_| changed.contains_key(&place)) else {
                continue;
            };
            if stored.digest == instance.digest {
                named.insert(place);
            } else {
                altered.insert(place);
            }
        }
        let overwritten = changed.into_iter().filter(|(_, overwritten)| *overwritten);
        altered.extend(
            overwritten
                .map(|(place, _)| place)
                .filter(|place| !named.contains(place)),
        );
        altered
    }

    /// What counts as the node's assignment where `value` was written over `before`, and what is to be told. Orders only rise:
    /// a lower one in a store that has gone on is a replay. It and what nobody signed are taken for what was there before.
    pub fn over(
        &mut self,
        node: &NodeName,
        before: Option<&Stored<Arc<Assignment>>>,
        mod_revision: i64,
        value: Result<Arc<Assignment>, String>,
    ) -> (Result<Arc<Assignment>, String>, Option<String>) {
        let why = match (&value, before.map(|before| &before.value)) {
            (Err(why), _) => why.clone(),
            (Ok(now), Some(Ok(before)))
                if now.order < before.order && now.order.restore_epoch == before.order.restore_epoch =>
            {
                "read the assignment: an older one was put in the place of a later one; that is written back".to_owned()
            }
            (Ok(_), _) => return (value, None),
        };
        let before = before.filter(|before| before.mod_revision < mod_revision);
        match before.and_then(|before| before.value.as_ref().ok()) {
            Some(before) => {
                self.put_back.insert(node.clone());
                (Ok(Arc::clone(before)), Some(why))
            }
            None => {
                let why = value.as_ref().err().cloned();
                (value, why)
            }
        }
    }

    /// The node's assignment is gone, or another.
    pub fn forget(&mut self, node: &NodeName) {
        self.unknown.remove(node);
        self.put_back.remove(node);
        self.signed.retain(|_, nodes| {
            nodes.remove(node);
            !nodes.is_empty()
        });
    }

    /// Nodes whose assignments are written again as they are: signed by a certificate that is to be replaced, where ours lasts
    /// longer; under an authority that issues no more, where ours is not; or overwritten by who has no right to.
    pub fn due(&self) -> impl Iterator<Item = &NodeName> {
        let own = self.signing.pen.certificate();
        let (mine, stays) = (own.fingerprint(), !self.keyring.is_former(&own.fingerprint()));
        let due = move |signer: &Fingerprint| {
            let longer = self
                .keyring
                .until(signer)
                .is_none_or(|until| until < own.validity().until);
            let former = stays && self.keyring.is_former(signer);
            *signer != mine && (former || longer && self.keyring.is_leaving(signer, self.now))
        };
        let due = self
            .signed
            .iter()
            .filter(move |(signer, _)| due(signer))
            .flat_map(|(_, nodes)| nodes);
        self.put_back.iter().chain(due)
    }

    /// Signers whose certificates have ended, and of whom nothing is left.
    pub fn ended(&self) -> impl Iterator<Item = &Fingerprint> {
        self.keyring.signers().filter(|signer| {
            let ended = self.keyring.until(signer).is_some_and(|until| until < self.now);
            ended && !self.signed.contains_key(signer)
        })
    }
}

/// The certificate under `trust/signers/`, when it is the one that its key names.
pub(super) fn signer(name: &str, kv: &KeyValue) -> Result<Certificate, String> {
    let text = std::str::from_utf8(&kv.value).map_err(|_| "it is not PEM".to_owned())?;
    let certificate = Certificate::from_pem(text).map_err(|error| chain(&error))?;
    if certificate.fingerprint().to_string() == name {
        Ok(certificate)
    } else {
        Err("it is another certificate than its key names".to_owned())
    }
}
