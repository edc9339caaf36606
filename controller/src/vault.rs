//! What people sealed for the controllers, sealed again for the nodes that need it: each node gets the accounts of
//! registries that its images are fetched with, under `handed/node.<name>`, and no others. A leading controller looks after
//! every plan, before it is written, so that a node has its accounts before its work. A controller that came later than a
//! value gets it under `handed/controller.<key>` from the one that leads.
//!
//! The value itself is never opened here: only its data key is, and sealed for another reader. What is handed out already
//! is not written again. A registry whose document cannot be read keeps what was handed out for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use planner::cluster::{LoginName, Plan, Snapshot, logins};
use runtime::{Cache, Fence, Guard, KeyValue, Outcome, Prefix, Store, StoreError, Txn};
use schemas::admit::admit_stored;
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::{NodeName, ResourceName};
use schemas::records::{Handed, HandedLogin, Record, SchemaVersion, Sealed};
use schemas::registry::{Account, RegistrySpec, sealed_as};
use serde_json::Value;
use trust::identity::{ClusterId, Name};
use trust::publish::{Believed, Holder};
use trust::seal::{Context, Envelope, Reader, SealError, SealingKey};
use trust::validity::Time;

use crate::presence::Presence;

/// Documents of one transaction.
const AT_ONCE: usize = 32;
/// Lines that are remembered as said.
const MOST_SAID: usize = 1_000;

/// What a controller needs to hand out what is sealed.
#[derive(Clone)]
pub struct VaultOptions {
    /// Opens what people sealed for this controller.
    pub key: Arc<SealingKey>,
    /// The public half as it is published now; it changes with the certificate that states it.
    pub published: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whom this host believes; None while its own files cannot be read.
    pub believed: Arc<dyn Fn(ClusterId) -> Option<Believed> + Send + Sync>,
}

impl fmt::Debug for VaultOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultOptions")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A document to write or to take away.
#[derive(Debug)]
pub(crate) struct Hand {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    guard: Guard,
}

/// A sealed value as it stands in the store.
struct Kept {
    edition: u64,
    envelope: Envelope,
}

/// What a leader keeps from pass to pass.
pub(crate) struct Vault {
    options: VaultOptions,
    /// Decoded once for each revision of their keys.
    registries: BTreeMap<ResourceName, (i64, Option<Arc<RegistrySpec>>)>,
    sealed: BTreeMap<ResourceName, (i64, BTreeMap<String, Kept>)>,
    handed: BTreeMap<String, (i64, Option<Arc<Handed>>)>,
    /// Published keys with the readers behind them.
    readers: BTreeMap<String, (String, Option<Reader>)>,
    /// All that the last pass looked at, when it found nothing to do; and what is in force of trust.
    rested: Option<u64>,
    trust: u64,
    /// What was said, so that it is said once.
    said: BTreeSet<String>,
}

/// The first 32 digits of a public key: how a controller's document is named.
fn short(key: &str) -> &str {
    key.get(..32).unwrap_or(key)
}

/// A number for what stands under these classes of keys, by their revisions; another one every ten minutes, for
/// certificates end without any key's change.
fn revisions(root: &Root, cache: &Cache, classes: &[&str], now: Time) -> u64 {
    let mut hasher = DefaultHasher::new();
    (now.unix_seconds() / 600).hash(&mut hasher);
    for class in classes {
        class.hash(&mut hasher);
        for kv in prefix(root, class).iter().flat_map(|prefix| cache.keys.under(prefix)) {
            (&kv.key, kv.mod_revision).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// A number for all that a pass here looks at beside its plan.
fn look(root: &Root, cache: &Cache, snapshot: &Snapshot, now: Time) -> u64 {
    let mut hasher = DefaultHasher::new();
    let classes = ["desired/_/registry", "sealed", "handed", "controllers", "trust"];
    revisions(root, cache, &classes, now).hash(&mut hasher);
    for (node, entry) in &snapshot.nodes {
        let facts = entry.facts.as_ref().map(|facts| facts.mod_revision);
        let assigned = entry.assignment.as_ref().map(|assignment| assignment.mod_revision);
        (node, facts, assigned).hash(&mut hasher);
    }
    hasher.finish()
}

fn prefix(root: &Root, class: &str) -> Option<Prefix> {
    Prefix::new(root.prefix(class)).ok()
}

impl Vault {
    pub(crate) const fn new(options: VaultOptions) -> Self {
        Self {
            options,
            registries: BTreeMap::new(),
            sealed: BTreeMap::new(),
            handed: BTreeMap::new(),
            readers: BTreeMap::new(),
            rested: None,
            trust: 0,
            said: BTreeSet::new(),
        }
    }

    /// What is to be written before this plan is. Nothing waits here.
    pub(crate) fn prepare(
        &mut self,
        root: &Root,
        cache: &Cache,
        snapshot: &Snapshot,
        plan: &Plan,
        now: Time,
    ) -> Vec<Hand> {
        let look = look(root, cache, snapshot, now);
        if plan.assignments.is_empty() && self.rested == Some(look) {
            return Vec::new();
        }
        let trust = revisions(root, cache, &["trust"], now);
        if self.trust != trust {
            // Somebody may be revoked: whose key is whose is asked anew.
            self.readers.clear();
            self.trust = trust;
        }
        self.follow(root, cache);
        if self.registries.is_empty() && self.handed.is_empty() {
            return Vec::new();
        }
        let Ok(cluster) = snapshot.cluster.id.as_str().parse::<ClusterId>() else {
            return Vec::new();
        };
        let good = self.registries.iter();
        let good: BTreeMap<ResourceName, Arc<RegistrySpec>> = good
            .filter_map(|(name, (_, spec))| Some((name.clone(), spec.clone()?)))
            .collect();
        let needed = logins(snapshot, plan, &good);
        let nothing = BTreeSet::new();
        let mut hands = Vec::new();
        for (node, entry) in &snapshot.nodes {
            let reader = format!("node.{node}");
            let needed = needed.get(node).unwrap_or(&nothing);
            if needed.is_empty() && !self.handed.contains_key(&reader) {
                continue;
            }
            let facts = entry.facts.as_ref().and_then(|facts| facts.value.as_ref().ok());
            let Some(published) = facts.and_then(|facts| facts.sealing_key.as_deref()) else {
                continue;
            };
            let name = node.as_str().parse::<Name>().ok();
            let Some(holder) = name.as_ref().map(Holder::Node) else {
                continue;
            };
            hands.extend(self.hand(root, cache, (&reader, published, holder), cluster, &good, needed, now));
        }
        for (published, id) in presences(root, cache) {
            let everything = self.values_not_for(&published, &id, cluster, &good, now);
            let reader = format!("controller.{id}");
            if !everything.is_empty() || self.handed.contains_key(&reader) {
                let whose = (reader.as_str(), published.as_str(), Holder::Controller);
                hands.extend(self.hand(root, cache, whose, cluster, &good, &everything, now));
            }
        }
        hands.extend(self.of_the_gone(root, cache, snapshot));
        self.rested = (hands.is_empty() && plan.assignments.is_empty()).then_some(look);
        hands
    }

    /// Says what a person must know, once.
    fn say(&mut self, line: String) {
        if self.said.len() >= MOST_SAID {
            self.said.clear();
        }
        if !self.said.contains(&line) {
            tracing::warn!("{line}");
            self.said.insert(line);
        }
    }

    /// Takes in what has changed under the keys that matter here.
    fn follow(&mut self, root: &Root, cache: &Cache) {
        let registries = Prefix::new(format!("{}_/registry/", root.prefix("desired"))).ok();
        let kvs = |prefix: &Option<Prefix>| -> Vec<Arc<KeyValue>> {
            let found = prefix
                .as_ref()
                .map(|prefix| cache.keys.under(prefix).cloned().collect());
            found.unwrap_or_default()
        };
        let mut before = std::mem::take(&mut self.registries);
        for kv in kvs(&registries) {
            let Some(Key::Desired(key)) = root.parse(&kv.key) else {
                continue;
            };
            let known = before.remove(&key.name);
            let entry = match known {
                Some(known) if known.0 == kv.mod_revision => known,
                // What was good before is what counts while the document is not.
                known => (kv.mod_revision, registry(&key, &kv).or(known.and_then(|known| known.1))),
            };
            self.registries.insert(key.name, entry);
        }
        let mut before = std::mem::take(&mut self.sealed);
        for kv in kvs(&prefix(root, "sealed")) {
            let Some(Key::Sealed(key)) = root.parse(&kv.key) else {
                continue;
            };
            if key.kind != Kind::Registry {
                continue;
            }
            let known = before.remove(&key.name).filter(|known| known.0 == kv.mod_revision);
            let entry = known.unwrap_or_else(|| (kv.mod_revision, values(&kv)));
            self.sealed.insert(key.name, entry);
        }
        let mut before = std::mem::take(&mut self.handed);
        for kv in kvs(&prefix(root, "handed")) {
            let Some(Key::Handed(reader)) = root.parse(&kv.key) else {
                continue;
            };
            let known = before.remove(&reader).filter(|known| known.0 == kv.mod_revision);
            let entry = known.unwrap_or_else(|| (kv.mod_revision, Handed::decode(&kv.value).ok().map(Arc::new)));
            self.handed.insert(reader, entry);
        }
    }

    /// The document of one reader, where it is not there yet as it should be.
    #[expect(clippy::too_many_arguments, reason = "all of a pass's own values")]
    fn hand(
        &mut self,
        root: &Root,
        cache: &Cache,
        (reader, published, holder): (&str, &str, Holder<'_>),
        cluster: ClusterId,
        registries: &BTreeMap<ResourceName, Arc<RegistrySpec>>,
        needed: &BTreeSet<LoginName>,
        now: Time,
    ) -> Option<Hand> {
        let to = self.reader(reader, published, holder, cluster, now)?;
        let stored = self.handed.get(reader);
        let stored_at = stored.map(|(revision, _)| *revision);
        let known = stored.and_then(|(_, handed)| handed.clone());
        let known = known.filter(|handed| handed.key == to.key().to_string());
        let same = |login: &&HandedLogin, wanted: &Wanted<'_>| {
            login.resource == *wanted.resource
                && login.registry == wanted.registry
                && login.account == *wanted.account
                && login.edition == wanted.kept.edition
                && login.digest == wanted.digest
        };
        let mut list = Vec::new();
        let mut troubles = Vec::new();
        for wanted in needed.iter().filter_map(|name| self.wanted(name, registries, cluster)) {
            let there = known
                .iter()
                .flat_map(|handed| &handed.logins)
                .find(|login| same(login, &wanted));
            let login = match there {
                Some(there) => Ok(there.clone()),
                None => self.seal(cluster, &wanted, &to),
            };
            match login {
                Ok(login) => list.push(login),
                Err(error) => {
                    troubles.push(format!(
                        "the password of `{}` at {} cannot be handed to {reader}: {error}; log in again with `reeve login {}`",
                        wanted.account.user, wanted.registry, wanted.registry
                    ));
                    // What it has of that account is better than nothing.
                    let older = known.iter().flat_map(|handed| &handed.logins);
                    let of_it = |login: &&HandedLogin| {
                        login.registry == wanted.registry && login.account.user == wanted.account.user
                    };
                    list.extend(older.filter(of_it).take(1).cloned());
                }
            }
        }
        // Of a registry that cannot be read nothing is known to be wrong.
        let unreadable = |login: &&HandedLogin| matches!(self.registries.get(&login.resource), Some((_, None)));
        list.extend(
            known
                .iter()
                .flat_map(|handed| &handed.logins)
                .filter(unreadable)
                .cloned(),
        );
        troubles.into_iter().for_each(|trouble| self.say(trouble));
        let is_there = known.as_ref().is_some_and(|handed| handed.logins == list);
        if is_there || (list.is_empty() && stored_at.is_none()) {
            return None;
        }
        let document = Handed {
            schema_version: SchemaVersion::default(),
            key: to.key().to_string(),
            logins: list,
        };
        let key = root.key(&Key::Handed(reader.to_owned())).into_bytes();
        let value = document.encode();
        if value.len() > Handed::MAX_BYTES {
            tracing::warn!(
                reader,
                bytes = value.len(),
                "more accounts than one document holds: not handed out"
            );
            return None;
        }
        let guard = seen(cache, &key);
        Some(Hand {
            key,
            value: Some(value),
            guard,
        })
    }

    fn wanted<'a>(
        &'a self,
        (resource, user): &'a LoginName,
        registries: &'a BTreeMap<ResourceName, Arc<RegistrySpec>>,
        cluster: ClusterId,
    ) -> Option<Wanted<'a>> {
        let spec = registries.get(resource)?;
        let account = spec.accounts.iter().find(|account| account.user == *user)?;
        let kept = self.sealed.get(resource)?.1.get(user)?;
        let name = sealed_as(&spec.registry, user);
        let digest = kept.envelope.digest(context(cluster, &name, kept.edition)).to_string();
        Some(Wanted {
            resource,
            registry: &spec.registry,
            account,
            kept,
            name,
            digest,
        })
    }

    /// Seals a value again, for one reader.
    fn seal(&self, cluster: ClusterId, wanted: &Wanted<'_>, to: &Reader) -> Result<HandedLogin, SealError> {
        let as_what = context(cluster, &wanted.name, wanted.kept.edition);
        let key = &self.options.key;
        let direct = wanted.kept.envelope.reseal(as_what, key, std::slice::from_ref(to));
        let envelope = match direct {
            // What came before us was handed to us by the leader of that time.
            Err(SealError::NotForThisKey) => self.handed_to_us(wanted).ok_or(SealError::NotForThisKey)?.reseal(
                as_what,
                key,
                std::slice::from_ref(to),
            )?,
            other => other?,
        };
        Ok(HandedLogin {
            resource: wanted.resource.clone(),
            registry: wanted.registry.to_owned(),
            account: wanted.account.clone(),
            edition: wanted.kept.edition,
            digest: wanted.digest.clone(),
            envelope: serde_json::to_value(&envelope).unwrap_or(Value::Null),
        })
    }

    fn handed_to_us(&self, wanted: &Wanted<'_>) -> Option<Envelope> {
        let own = self.options.key.public().to_string();
        let (_, handed) = self.handed.get(&format!("controller.{}", short(&own)))?;
        let login = handed
            .as_ref()?
            .logins
            .iter()
            .find(|login| login.digest == wanted.digest)?;
        serde_json::from_value(login.envelope.clone()).ok()
    }

    /// The accounts whose values this controller was not among the readers of.
    fn values_not_for(
        &mut self,
        published: &str,
        id: &str,
        cluster: ClusterId,
        registries: &BTreeMap<ResourceName, Arc<RegistrySpec>>,
        now: Time,
    ) -> BTreeSet<LoginName> {
        let Some(to) = self.reader(&format!("controller.{id}"), published, Holder::Controller, cluster, now) else {
            return BTreeSet::new();
        };
        let all = self.sealed.iter().flat_map(|(resource, (_, values))| {
            let users = values.iter().filter(|(_, kept)| !kept.envelope.is_for(&to.key()));
            users.map(move |(user, _)| (resource.clone(), user.clone()))
        });
        all.filter(|name| self.wanted(name, registries, cluster).is_some())
            .collect()
    }

    /// Whose key this is; what is not to be believed is said once.
    fn reader(
        &mut self,
        reader: &str,
        published: &str,
        holder: Holder<'_>,
        cluster: ClusterId,
        now: Time,
    ) -> Option<Reader> {
        if let Some((known, found)) = self.readers.get(reader)
            && known == published
            && found.is_some()
        {
            return found.clone();
        }
        let believed = (self.options.believed)(cluster)?;
        let found = match believed.reader(published, holder, now) {
            Ok(found) => Some(found),
            Err(error) => {
                self.say(format!(
                    "nothing is sealed for {reader}: {}",
                    crate::observe::chain(&error)
                ));
                None
            }
        };
        self.readers
            .insert(reader.to_owned(), (published.to_owned(), found.clone()));
        found
    }

    /// Documents of nodes that are no more.
    fn of_the_gone(&self, root: &Root, cache: &Cache, snapshot: &Snapshot) -> Vec<Hand> {
        let gone = |reader: &&String| {
            let node = reader.strip_prefix("node.").map(str::parse::<NodeName>);
            matches!(node, Some(Ok(node)) if !snapshot.nodes.contains_key(&node))
        };
        let keys = self.handed.keys().filter(gone);
        let keys = keys.map(|reader| root.key(&Key::Handed(reader.clone())).into_bytes());
        keys.map(|key| {
            let guard = seen(cache, &key);
            Hand {
                key,
                value: None,
                guard,
            }
        })
        .collect()
    }
}

/// An account that is to be handed out.
struct Wanted<'a> {
    resource: &'a ResourceName,
    registry: &'a str,
    account: &'a Account,
    kept: &'a Kept,
    name: String,
    digest: String,
}

const fn context(cluster: ClusterId, name: &str, edition: u64) -> Context<'_> {
    Context {
        cluster,
        namespace: "_",
        kind: "registry",
        name,
        edition,
    }
}

fn seen(cache: &Cache, key: &[u8]) -> Guard {
    cache
        .keys
        .get(key)
        .map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision))
}

fn registry(key: &ResourceKey, kv: &KeyValue) -> Option<Arc<RegistrySpec>> {
    let readable = (kv.lease == 0).then(|| admit_stored(key, &kv.value).ok()).flatten()?;
    match readable.document {
        Document::Registry(registry) => Some(Arc::new(registry.spec)),
        Document::Service(_) | Document::Node(_) | Document::ConfigFile(_) => None,
    }
}

fn values(kv: &KeyValue) -> BTreeMap<String, Kept> {
    let Ok(sealed) = Sealed::decode(&kv.value) else {
        return BTreeMap::new();
    };
    let values = sealed.values.into_iter().filter_map(|(user, value)| {
        let envelope = serde_json::from_value(value.envelope).ok()?;
        let edition = value.edition;
        Some((user, Kept { edition, envelope }))
    });
    values.collect()
}

/// The published keys of the controllers that are there, each with the name of its document.
fn presences(root: &Root, cache: &Cache) -> Vec<(String, String)> {
    let Some(prefix) = prefix(root, "controllers") else {
        return Vec::new();
    };
    let known = cache
        .keys
        .under(&prefix)
        .filter_map(|kv| Presence::decode(&kv.value).ok());
    known
        .filter_map(|presence| Some((presence.sealing_key?, presence.sealing_id?)))
        .filter(|(_, id)| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .collect()
}

/// How a controller's document is named, by its own key.
pub(crate) fn id_of(key: &SealingKey) -> String {
    short(&key.public().to_string()).to_owned()
}

/// Writes what was prepared: the last revision; None when the right to write is lost.
///
/// # Errors
/// As the store's.
pub(crate) async fn write<S: Store>(store: &S, fence: &Fence, hands: Vec<Hand>) -> Result<Option<i64>, StoreError> {
    let mut last = 0;
    for chunk in hands.chunks(AT_ONCE) {
        let txn = chunk.iter().fold(Txn::new(fence), |txn, hand| match &hand.value {
            Some(value) => txn.put(hand.key.clone(), value.clone(), hand.guard),
            None => txn.delete(hand.key.clone(), hand.guard),
        });
        match store.commit(txn).await? {
            Outcome::Committed { revision } => last = last.max(revision),
            // The next pass sees what was seen too late.
            Outcome::Conflict { keys: _ } => {}
            Outcome::FenceLost => return Ok(None),
        }
    }
    Ok(Some(last))
}
