//! What people sealed for the controllers, sealed again for the nodes that need it: each node gets the accounts of
//! registries that its images are fetched with and the secrets of its instances, under `handed/node.<name>`, and no others. A leading controller looks after
//! every plan, before it is written, so that a node has what it needs before its work. A controller that came later than a
//! value gets it under `handed/controller.<key>` from the one that leads.
//!
//! The value itself is never opened here: only its data key is, and sealed for another reader. What is handed out already
//! is not written again. A registry whose document cannot be read keeps what was handed out for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use planner::cluster::{LoginName, LoginNeeds, Plan, SecretName, SecretNeeds, Snapshot, logins, secrets};
use runtime::{Cache, Fence, Guard, KeyValue, Outcome, Prefix, Store, StoreError, Txn};
use schemas::admit::admit_stored;
use schemas::keys::{Key, ResourceKey, Root};
use schemas::kinds::{Document, Kind};
use schemas::names::{NodeName, ResourceName};
use schemas::records::{Handed, HandedLogin, HandedSecret, Record, SchemaVersion, Sealed};
use schemas::registry::{Account, RegistrySpec, sealed_as};
use schemas::secret::SecretEdition;
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

/// What one reader is to be handed.
#[derive(Default)]
struct Needs {
    logins: BTreeSet<LoginName>,
    /// Accounts that the reader keeps where it has them.
    kept_logins: BTreeSet<LoginName>,
    /// In the order in which they are given room.
    secrets: Vec<SecretName>,
    /// What the reader keeps where it has it.
    kept: BTreeSet<SecretName>,
}

impl Needs {
    fn is_empty(&self) -> bool {
        let Self {
            logins,
            kept_logins,
            secrets,
            kept,
        } = self;
        logins.is_empty() && kept_logins.is_empty() && secrets.is_empty() && kept.is_empty()
    }
}

/// What a leader keeps from pass to pass.
pub(crate) struct Vault {
    options: VaultOptions,
    /// Decoded once for each revision of their keys.
    registries: BTreeMap<ResourceName, (i64, Option<Arc<RegistrySpec>>)>,
    sealed: BTreeMap<ResourceName, (i64, BTreeMap<String, Kept>)>,
    /// The editions of secrets.
    secrets: BTreeMap<ResourceKey, (i64, BTreeMap<SecretEdition, Envelope>)>,
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

/// A number for all that a pass here looks at beside its plan's assignments.
fn look(root: &Root, cache: &Cache, snapshot: &Snapshot, plan: &Plan, now: Time, secrets: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    let classes = ["desired/_/registry", "sealed", "handed", "controllers", "trust"];
    revisions(root, cache, &classes, now).hash(&mut hasher);
    plan.strays.hash(&mut hasher);
    for (node, entry) in &snapshot.nodes {
        let facts = entry.facts.as_ref().map(|facts| facts.mod_revision);
        let assigned = entry.assignment.as_ref().map(|assignment| assignment.mod_revision);
        // Which secrets are still in force on a node, its report says.
        let report = entry.report.as_ref().filter(|_| secrets);
        let reported = report.map(|report| report.mod_revision);
        (node, facts, assigned, reported).hash(&mut hasher);
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
            secrets: BTreeMap::new(),
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
        let look = look(root, cache, snapshot, plan, now, self.knows_secrets());
        if plan.assignments.is_empty() && self.rested == Some(look) {
            return Vec::new();
        }
        let trust = revisions(root, cache, &["trust"], now);
        if self.trust != trust {
            // Somebody may be revoked: whose key is whose is asked anew.
            self.readers.clear();
            self.trust = trust;
        }
        let Ok(cluster) = snapshot.cluster.id.as_str().parse::<ClusterId>() else {
            return Vec::new();
        };
        self.follow(root, cache, cluster);
        if self.registries.is_empty() && self.secrets.is_empty() && self.handed.is_empty() {
            return Vec::new();
        }
        let good = self.registries.iter();
        let good: BTreeMap<ResourceName, Arc<RegistrySpec>> = good
            .filter_map(|(name, (_, spec))| Some((name.clone(), spec.clone()?)))
            .collect();
        let mut accounts = logins(snapshot, plan, &good);
        let mut of_secrets = if self.knows_secrets() {
            secrets(snapshot, plan)
        } else {
            BTreeMap::new()
        };
        let mut hands = Vec::new();
        for (node, entry) in &snapshot.nodes {
            let reader = format!("node.{node}");
            let SecretNeeds { assigned, in_force } = of_secrets.remove(node).unwrap_or_default();
            let LoginNeeds {
                assigned: logins,
                kept: kept_logins,
            } = accounts.remove(node).unwrap_or_default();
            let needed = Needs {
                logins,
                kept_logins,
                secrets: assigned.into_iter().collect(),
                kept: in_force,
            };
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
            hands.extend(self.hand(root, cache, (&reader, published, holder), cluster, &good, &needed, now));
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

    /// Whether there is a secret at all, or was one.
    fn knows_secrets(&self) -> bool {
        let handed =
            |(_, handed): &(i64, Option<Arc<Handed>>)| handed.as_ref().is_some_and(|one| !one.secrets.is_empty());
        !self.secrets.is_empty() || self.handed.values().any(handed)
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
    fn follow(&mut self, root: &Root, cache: &Cache, cluster: ClusterId) {
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
        let mut secrets = std::mem::take(&mut self.secrets);
        for kv in kvs(&prefix(root, "sealed")) {
            let Some(Key::Sealed(key)) = root.parse(&kv.key) else {
                continue;
            };
            if key.kind == Kind::Secret {
                let known = secrets.remove(&key).filter(|known| known.0 == kv.mod_revision);
                let entry = known.unwrap_or_else(|| (kv.mod_revision, editions(cluster, &key, &kv)));
                self.secrets.insert(key, entry);
                continue;
            }
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
        needed: &Needs,
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
        let names = needed
            .logins
            .iter()
            .chain(needed.kept_logins.difference(&needed.logins));
        for name in names {
            let Some(wanted) = self.wanted(name, registries, cluster) else {
                continue;
            };
            let there = known
                .iter()
                .flat_map(|handed| &handed.logins)
                .find(|login| same(login, &wanted));
            let login = match there {
                Some(there) => Ok(there.clone()),
                None if !needed.logins.contains(name) => continue,
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
        let mut document = Handed {
            schema_version: SchemaVersion::default(),
            key: to.key().to_string(),
            logins: list,
            secrets: Vec::new(),
        };
        self.add_secrets(&mut document, known.as_deref(), cluster, needed, &to, &mut troubles);
        let troubles = troubles.into_iter().map(|trouble| trouble.replace(READER, reader));
        troubles.for_each(|trouble| self.say(trouble));
        let is_there = known.as_deref() == Some(&document);
        let nothing = document.logins.is_empty() && document.secrets.is_empty();
        if is_there || (nothing && stored_at.is_none()) {
            return None;
        }
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

    /// The secrets of one reader: what it has of them stays as it is, and what it lacks is sealed for it while there is room.
    fn add_secrets(
        &self,
        document: &mut Handed,
        known: Option<&Handed>,
        cluster: ClusterId,
        needed: &Needs,
        to: &Reader,
        troubles: &mut Vec<String>,
    ) {
        let is_of = |one: &HandedSecret, name: &SecretName| {
            (&one.namespace, &one.name, &one.edition) == (&name.namespace, &name.name, &name.edition)
        };
        let wants = |one: &&HandedSecret| {
            let mut wanted = needed.secrets.iter().chain(&needed.kept);
            wanted.any(|name| is_of(one, name))
        };
        let has = known.iter().flat_map(|known| &known.secrets).filter(wants);
        document.secrets.extend(has.cloned());
        let mut size = document.encode().len();
        for name in &needed.secrets {
            if document.secrets.iter().any(|one| is_of(one, name)) {
                continue;
            }
            let what = format!(
                "edition {} of secret `{}` in namespace `{}`",
                name.edition.n, name.name, name.namespace
            );
            let one = match self.seal_secret(cluster, name, to) {
                Ok(one) => one,
                Err(Unsealed::Gone) => {
                    troubles.push(format!(
                        "{what} is not in the store and cannot be handed to {READER}: set it again"
                    ));
                    continue;
                }
                Err(Unsealed::Closed(error)) => {
                    let again = format!(
                        "set it again with `reeve secret set {} -n {}`",
                        name.name, name.namespace
                    );
                    troubles.push(format!("{what} cannot be handed to {READER}: {error}; {again}"));
                    continue;
                }
            };
            let more = serde_json::to_vec(&one).map_or(usize::MAX, |bytes| bytes.len() + 16);
            if size.saturating_add(more) > Handed::MAX_BYTES {
                troubles.push(format!(
                    "{what} finds no room among what {READER} is handed: at most 1 MiB in all"
                ));
                continue;
            }
            size += more;
            document.secrets.push(one);
        }
        document
            .secrets
            .sort_by(|a, b| (&a.namespace, &a.name, &a.edition).cmp(&(&b.namespace, &b.name, &b.edition)));
    }

    /// Seals an edition of a secret again, for one reader.
    fn seal_secret(&self, cluster: ClusterId, name: &SecretName, to: &Reader) -> Result<HandedSecret, Unsealed> {
        let SecretName {
            namespace,
            name,
            edition,
        } = name;
        let key = ResourceKey {
            namespace: Some(namespace.clone()),
            kind: Kind::Secret,
            name: name.clone(),
        };
        let sealed = self.secrets.get(&key).and_then(|(_, editions)| editions.get(edition));
        let as_what = secret_context(cluster, namespace.as_str(), name.as_str(), edition.n);
        let own = &self.options.key;
        let reader = std::slice::from_ref(to);
        let envelope = match sealed.ok_or(Unsealed::Gone)?.reseal(as_what, own, reader) {
            // What came before us was handed to us by the leader of that time.
            Err(SealError::NotForThisKey) => {
                let handed = self.ours().and_then(|handed| {
                    let same = |one: &&HandedSecret| one.edition.digest == edition.digest;
                    let one = handed.secrets.iter().find(same)?;
                    serde_json::from_value::<Envelope>(one.envelope.clone()).ok()
                });
                let handed = handed.ok_or(Unsealed::Closed(SealError::NotForThisKey))?;
                handed.reseal(as_what, own, reader).map_err(Unsealed::Closed)?
            }
            other => other.map_err(Unsealed::Closed)?,
        };
        Ok(HandedSecret {
            namespace: namespace.clone(),
            name: name.clone(),
            edition: edition.clone(),
            envelope: serde_json::to_value(&envelope).unwrap_or(Value::Null),
        })
    }

    /// What this controller itself was handed.
    fn ours(&self) -> Option<&Handed> {
        let own = self.options.key.public().to_string();
        let (_, handed) = self.handed.get(&format!("controller.{}", short(&own)))?;
        handed.as_deref()
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
        let login = self.ours()?.logins.iter().find(|login| login.digest == wanted.digest)?;
        serde_json::from_value(login.envelope.clone()).ok()
    }

    /// The accounts and secrets whose values this controller was not among the readers of.
    fn values_not_for(
        &mut self,
        published: &str,
        id: &str,
        cluster: ClusterId,
        registries: &BTreeMap<ResourceName, Arc<RegistrySpec>>,
        now: Time,
    ) -> Needs {
        let Some(to) = self.reader(&format!("controller.{id}"), published, Holder::Controller, cluster, now) else {
            return Needs::default();
        };
        let all = self.sealed.iter().flat_map(|(resource, (_, values))| {
            let users = values.iter().filter(|(_, kept)| !kept.envelope.is_for(&to.key()));
            users.map(move |(user, _)| (resource.clone(), user.clone()))
        });
        let logins = all
            .filter(|name| self.wanted(name, registries, cluster).is_some())
            .collect();
        let mut secrets = Vec::new();
        for (key, (_, editions)) in &self.secrets {
            let Some(namespace) = &key.namespace else { continue };
            let closed = editions.iter().filter(|(_, envelope)| !envelope.is_for(&to.key()));
            secrets.extend(closed.map(|(edition, _)| SecretName {
                namespace: namespace.clone(),
                name: key.name.clone(),
                edition: edition.clone(),
            }));
        }
        // The newest first, for they are the likeliest to be needed.
        secrets.sort_by(|a, b| (b.edition.n, a).cmp(&(a.edition.n, b)));
        Needs {
            kept_logins: BTreeSet::new(),
            logins,
            secrets,
            kept: BTreeSet::new(),
        }
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

/// Where a sentence of trouble names the reader.
const READER: &str = "{reader}";

/// Why a secret is not sealed for a reader.
enum Unsealed {
    /// It is not in the store.
    Gone,
    /// It does not open.
    Closed(SealError),
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
        Document::Service(_)
        | Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Secret(_)
        | Document::Command(_)
        | Document::NetworkPolicy(_)
        | Document::VirtualIP(_) => None,
    }
}

/// As what an edition of a secret is sealed.
const fn secret_context<'a>(cluster: ClusterId, namespace: &'a str, name: &'a str, edition: u64) -> Context<'a> {
    Context {
        cluster,
        namespace,
        kind: "secret",
        name,
        edition,
    }
}

/// The editions that a secret's sealed values hold. One that is not what its digest says is none.
fn editions(cluster: ClusterId, key: &ResourceKey, kv: &KeyValue) -> BTreeMap<SecretEdition, Envelope> {
    let (Ok(sealed), Some(namespace)) = (Sealed::decode(&kv.value), &key.namespace) else {
        return BTreeMap::new();
    };
    let envelopes = sealed.editions().filter_map(|(edition, value)| {
        let envelope: Envelope = serde_json::from_value(value.envelope.clone()).ok()?;
        let as_what = secret_context(cluster, namespace.as_str(), key.name.as_str(), edition.n);
        let genuine = envelope.digest(as_what).bytes() == edition.digest.bytes();
        genuine.then_some((edition, envelope))
    });
    envelopes.collect()
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
