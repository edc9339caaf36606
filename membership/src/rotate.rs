//! The hands of a seed in a rotation of the authority: the keys it holds, what it hands to other seeds and to nobody else, and
//! what it publishes when [`crate::rotation::next`] says so. `upkeep` calls it as long as a rotation is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Json;
use axum::extract::{ConnectInfo, State};
use runtime::{EtcdStore, Guard, Listing, Outcome, Prefix, Store as _, StoreError, chain, person};
use rustls::ClientConfig;
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::{Key as StoreKey, Root, TrustKey};
use schemas::records::{Cordon, CordonMode, Record as _};
use serde::{Deserialize, Serialize};
use trust::authority::Authority;
use trust::bundle::{Bundle, BundleError};
use trust::certificate::{AuthorityCertificate, Certificate, Endorsement};
use trust::identity::{Role, Subject, Who};
use trust::key::Fingerprint;
use trust::revoked::{Revoked, Target};
use trust::sign::unweave;
use trust::tls::{newcomer, shown_authority};
use trust::validity::Time;

use crate::believed::Believed;
use crate::call::call;
use crate::issued::Issued;
use crate::keep::{Keep, KeepError};
use crate::port::{Caller, Failure, Seat, SeedState, formed, later, refuse};
use crate::seeds::Host;
use crate::{SEED_PORT, now};

/// How a newcomer whose token pins an earlier authority is led to the one that is shown.
const ENDORSED: &str = "endorsed.json";

/// The authorities whose keys a seed holds.
#[derive(Debug, Default)]
pub struct Keys(RwLock<BTreeMap<Fingerprint, Arc<Authority>>>);

impl Keys {
    #[must_use]
    pub fn of(authorities: impl IntoIterator<Item = Authority>) -> Self {
        let keys = Self::default();
        authorities.into_iter().for_each(|authority| keys.add(authority));
        keys
    }

    /// Those of these authorities whose keys are on this disk.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn on_disk(keep: &Keep, bundle: &Bundle) -> Result<Self, KeepError> {
        let found: Result<Vec<_>, _> = bundle
            .authorities()
            .map(|authority| keep.authority(&authority.fingerprint()))
            .collect();
        Ok(Self::of(found?.into_iter().flatten()))
    }

    pub fn add(&self, authority: Authority) {
        let pin = authority.certificate().fingerprint();
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(pin, Arc::new(authority));
    }

    pub fn remove(&self, pin: &Fingerprint) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(pin);
    }

    #[must_use]
    pub fn get(&self, pin: &Fingerprint) -> Option<Arc<Authority>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(pin).cloned()
    }

    #[must_use]
    pub fn pins(&self) -> BTreeSet<Fingerprint> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.keys().copied().collect()
    }

    /// The one that issues.
    #[must_use]
    pub fn issuing(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        self.get(&bundle.present().fingerprint())
    }

    /// The one that issues for this seed itself: a former one too, while the key of the present one is still asked for.
    #[must_use]
    pub fn issuing_here(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        let former = || {
            let mut former = bundle.former().iter();
            former.find_map(|authority| self.get(&authority.fingerprint()))
        };
        self.issuing(bundle).or_else(former)
    }

    /// The one whose word counts longest: the announced one's, else that of the one that issues.
    #[must_use]
    pub fn stating(&self, bundle: &Bundle) -> Option<Arc<Authority>> {
        let next = bundle.next().and_then(|next| self.get(&next.fingerprint()));
        next.or_else(|| self.issuing(bundle))
    }
}

/// `POST /v1/authority`: a seed asks another for an authority's key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityQuestion {
    pub pin: Fingerprint,
}

/// The authority, whole: who has this is the cluster.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityAnswer {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

/// The seed's end of it.
pub(crate) async fn authority(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(question): Json<AuthorityQuestion>,
) -> Result<Json<AuthorityAnswer>, Failure> {
    let AuthorityQuestion { pin } = question;
    let only = || refuse("only the other seeds of this cluster are given its authority");
    let shown = caller.certificate.as_ref().ok_or_else(only)?;
    let seed = match &shown.identity().who {
        Who::Server(name) => seat.seeds.iter().find(|host| host.label() == name.as_str()),
        Who::Node(_) | Who::Controller(_) | Who::Person(..) => None,
    };
    let Some(seed) = seed.filter(|seed| **seed != seat.host) else {
        tracing::warn!(who = %shown.identity(), "was refused the authority's key");
        return Err(only());
    };
    let believed = seat.believed();
    believed
        .trust()
        .recheck(shown, now())
        .map_err(|error| refuse(chain(&error)))?;
    let bundle = believed.bundle();
    let meant = std::iter::once(bundle.present())
        .chain(bundle.next())
        .any(|authority| authority.fingerprint() == pin);
    let held = seat.keys.get(&pin).filter(|_| meant);
    let held = held.ok_or_else(|| later("this seed has no key of that authority"))?;
    tracing::info!(%seed, authority = %short(&pin), "gave the authority's key to another seed");
    Ok(Json(AuthorityAnswer {
        certificate: held.certificate().to_pem(),
        key: held.key_pem().to_string(),
    }))
}

/// Asks the other seeds for the key of an authority that is believed here, and keeps it.
///
/// # Errors
/// When none of them gives it: each one's words.
pub(crate) async fn fetch(
    keep: &Keep,
    seat: &Seat,
    calling: &Arc<ClientConfig>,
    pin: &Fingerprint,
) -> Result<(), String> {
    // The verb that announced it left it here.
    if let Some(here) = keep.authority(pin).map_err(|error| chain(&error))? {
        seat.keys.add(here);
        return Ok(());
    }
    let believed = seat.believed();
    let wanted = believed.bundle().authority(pin).ok_or("it is not believed here")?;
    let question = AuthorityQuestion { pin: *pin };
    let mut why = Vec::new();
    for host in seat.seeds.iter().filter(|host| **host != seat.host) {
        match call::<_, AuthorityAnswer>(host, SEED_PORT, calling, "/v1/authority", Some(&question)).await {
            Ok((answer, _)) => match Authority::from_pem(&answer.certificate, &answer.key) {
                Ok(found) if found.certificate() == wanted => {
                    keep.write_later_authority(&found).map_err(|error| chain(&error))?;
                    seat.keys.add(found);
                    tracing::info!(from = %host, authority = %short(pin), "has the authority's key now");
                    return Ok(());
                }
                Ok(_) => why.push(format!("{host} gave another authority than was asked for")),
                Err(error) => why.push(format!("{host}: {}", chain(&error))),
            },
            Err(error) => why.push(chain(&error)),
        }
    }
    Err(format!("no seed gives the key of the authority: {}", why.join("; ")))
}

/// `POST /v1/renewed`: who shows a certificate has it on its disk and uses it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {}

/// The seed's end of it: from then on nobody waits for that one to have a certificate of the present authority.
pub(crate) async fn renewed(
    State(seat): State<Arc<Seat>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Json(Renewed {}): Json<Renewed>,
) -> Result<Json<Renewed>, Failure> {
    let Some(shown) = caller.certificate else {
        return Err(refuse("who shows no certificate has none"));
    };
    let (store, _) = formed(&seat)?;
    let subject = shown.identity().who.subject().to_string();
    let place = seat
        .root
        .key(&StoreKey::Issued(subject, shown.serial().to_string()))
        .into_bytes();
    let found = store.get(&place).await.map_err(|error| later(chain(&error)))?;
    let Some(found) = found.value else {
        return Err(refuse("no seed has issued that certificate"));
    };
    let Some(note) = Issued::of_json(&found.value).filter(|note| !note.held) else {
        return Ok(Json(Renewed {}));
    };
    let note = Issued { held: true, ..note };
    let txn = person::txn().put(place, note.to_json(), Guard::Unchanged(found.mod_revision));
    match store.commit(txn).await.map_err(|error| later(chain(&error)))? {
        Outcome::Committed { revision: _ } => Ok(Json(Renewed {})),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Err(later("ask again")),
    }
}

/// The beginning of a pin: enough for people to tell authorities apart.
#[must_use]
pub fn short(pin: &Fingerprint) -> String {
    pin.to_string()[..16].to_owned()
}

/// Why a step cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("make the next set of authorities")]
    Bundle(#[from] BundleError),
    #[error("the key of an authority is missing here")]
    NoKey,
    #[error("what is in the store is not the authority's word: {0}")]
    Foreign(String),
}

/// What the store says of trust now, on top of what is believed here; and with it the list as it was found.
pub(crate) async fn heard(
    store: &EtcdStore,
    root: &Root,
    mut believed: Believed,
) -> Result<(Believed, Listing), StepError> {
    let prefix = Prefix::new(root.prefix("trust"))?;
    let listing = store.list(&prefix).await?;
    let said = listing.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
        Some(StoreKey::Trust(key)) => Some((key, &*kv.value)),
        Some(_) | None => None,
    });
    let heard = believed.hear(said, now());
    // A set that is still to come, and which is not the authority's, stands in nobody's way yet.
    let following = believed.bundle().number() + 1;
    let counts = |key: &TrustKey| !matches!(key, TrustKey::Authorities(number) if *number > following);
    match heard.refused.into_iter().find(|(key, _)| counts(key)) {
        Some((_, why)) => Err(StepError::Foreign(why)),
        None => Ok((believed, listing)),
    }
}

/// The guard that a key in the list is as it was found.
pub(crate) fn as_found(listing: &Listing, key: &str) -> Guard {
    let found = listing.kvs.iter().find(|kv| kv.key == key.as_bytes());
    found.map_or(Guard::Absent, |kv| Guard::Unchanged(kv.mod_revision))
}

/// Publishes the next set of authorities, and the list of the revoked under the signature of its first. False: another was first.
///
/// # Errors
/// When the store does not take it.
pub(crate) async fn publish(
    store: &EtcdStore,
    root: &Root,
    (believed, listing): (&Believed, &Listing),
    bundle: &Bundle,
    signer: &Authority,
) -> Result<bool, StepError> {
    let place = root.key(&StoreKey::Trust(TrustKey::Authorities(bundle.number())));
    let mut txn = person::txn().put(place, bundle.signed_by(signer), Guard::Absent);
    let revoked = believed.revoked();
    if revoked.number() > 0 && bundle.present() == signer.certificate() {
        let place = root.key(&StoreKey::Trust(TrustKey::Revoked));
        let guard = as_found(listing, &place);
        txn = txn.put(place, revoked.signed_by(signer), guard);
    }
    match store.commit(txn).await? {
        Outcome::Committed { revision: _ } => Ok(true),
        Outcome::FenceLost | Outcome::Conflict { keys: _ } => Ok(false),
    }
}

/// Has the announced authority issue from now on.
pub(crate) async fn promote(seat: &Seat, store: &EtcdStore) -> Result<(), StepError> {
    let (believed, listing) = heard(store, &seat.root, seat.believed()).await?;
    let bundle = believed.bundle().promote()?;
    let signer = seat.keys.issuing(&bundle).ok_or(StepError::NoKey)?;
    if publish(store, &seat.root, (&believed, &listing), &bundle, &signer).await? {
        tracing::info!(authority = %short(&bundle.present().fingerprint()), "the announced authority issues from now on");
    }
    Ok(())
}

/// Has nobody believe this authority any more.
pub(crate) async fn forget(seat: &Seat, store: &EtcdStore, pin: &Fingerprint) -> Result<(), StepError> {
    let (believed, listing) = heard(store, &seat.root, seat.believed()).await?;
    let bundle = believed.bundle().forget(pin)?;
    let signer = seat.keys.issuing(&bundle).ok_or(StepError::NoKey)?;
    if publish(store, &seat.root, (&believed, &listing), &bundle, &signer).await? {
        tracing::info!(authority = %short(pin), "the former authority is no longer believed");
    }
    Ok(())
}

/// Who holds certificates of an authority that issues no more, and no word of having another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Nodes that are not retired, and what controllers have still to sign: the former authority is kept for these.
    pub needed: BTreeSet<String>,
    /// People: they log in again, and nothing waits for them.
    pub people: BTreeSet<String>,
}

/// Whom the former authority is still needed by.
///
/// # Errors
/// When the store does not answer.
pub async fn awaited(store: &EtcdStore, root: &Root, believed: &Believed) -> Result<Awaited, StoreError> {
    let issued = store.list(&Prefix::new(root.prefix("issued"))?).await?;
    let cordons = store.list(&Prefix::new(root.prefix("cordons"))?).await?;
    let retired = cordons.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
        Some(StoreKey::Cordon(node)) => {
            let cordon = Cordon::decode(&kv.value).ok()?;
            (cordon.mode == CordonMode::Retire).then(|| format!("node/{node}"))
        }
        Some(_) | None => None,
    });
    let notes = issued.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
        Some(StoreKey::Issued(subject, _)) => Some((subject, Issued::of_json(&kv.value)?)),
        Some(_) | None => None,
    });
    let present = believed.bundle().present().fingerprint();
    let mut waiting = holders(notes, &present, believed.revoked(), now());
    for retired in retired {
        waiting.needed.remove(&retired);
    }
    if waiting.needed.is_empty() {
        let unsigned = unsigned(store, root, believed).await?;
        if unsigned > 0 {
            let what = format!("what {unsigned} nodes run, which the leading controller signs anew");
            waiting.needed.insert(what);
        }
    }
    Ok(waiting)
}

/// By the notes of what was issued.
fn holders(
    notes: impl IntoIterator<Item = (String, Issued)>,
    present: &Fingerprint,
    revoked: &Revoked,
    now: Time,
) -> Awaited {
    let mut former: BTreeSet<Subject> = BTreeSet::new();
    let mut fine: BTreeSet<Subject> = BTreeSet::new();
    let gone: BTreeMap<&Subject, Time> = revoked
        .entries()
        .filter_map(|(target, entry)| match target {
            Target::Subject(subject) => Some((subject, entry.at)),
            Target::Key(_) | Target::Certificate(_) => None,
        })
        .collect();
    for (subject, note) in notes {
        let Ok(subject) = subject.parse::<Subject>() else {
            continue;
        };
        let counts = note.until >= now && gone.get(&subject).is_none_or(|at| note.from > *at);
        if !counts {
            continue;
        }
        match (note.issuer == Some(*present), note.held) {
            (true, true) => fine.insert(subject),
            (true, false) => false,
            (false, _) => former.insert(subject),
        };
    }
    let mut awaited = Awaited::default();
    for subject in former.difference(&fine) {
        let list = match subject.role {
            Role::Person => &mut awaited.people,
            Role::Node | Role::Server | Role::Controller => &mut awaited.needed,
        };
        list.insert(subject.to_string());
    }
    awaited
}

/// How many assignments are signed by a certificate of a former authority.
async fn unsigned(store: &EtcdStore, root: &Root, believed: &Believed) -> Result<usize, StoreError> {
    let signers = store.list(&Prefix::new(root.prefix("trust/signers"))?).await?;
    let bundle = believed.bundle();
    let by_present = |kv: &runtime::KeyValue| {
        let certificate = Certificate::from_pem(std::str::from_utf8(&kv.value).ok()?).ok()?;
        (bundle.issuer(&certificate) == Some(bundle.present())).then(|| certificate.fingerprint())
    };
    let good: BTreeSet<Fingerprint> = signers.kvs.iter().filter_map(by_present).collect();
    let assignments = store.list(&Prefix::new(root.prefix("assignments"))?).await?;
    let signers = assignments.kvs.iter().filter_map(|kv| unweave(&kv.value));
    Ok(signers
        .filter(|(_, signature)| !good.contains(&signature.signer()))
        .count())
}

/// Whether a seed shows an authority that followed the ones believed here, as these themselves say.
pub(crate) async fn has_left(host: &Host, bundle: &Bundle) -> bool {
    let pin = bundle.present().fingerprint();
    let Ok(tls) = newcomer(pin, Arc::new(DefaultTimeProvider)) else {
        return false;
    };
    let asked = call::<(), SeedState>(host, SEED_PORT, &Arc::new(tls), "/v1/seed", None).await;
    let Ok((state, shown)) = asked else { return false };
    let shown = shown_authority(Some(&shown));
    state.cluster == bundle.cluster() && shown.is_ok_and(|shown| bundle.authority(&shown.fingerprint()).is_none())
}

/// How earlier authorities lead to one: the latest first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endorsed {
    /// The one they lead to.
    to: Option<Fingerprint>,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Step {
    earlier: AuthorityCertificate,
    /// PEM.
    endorsement: String,
}

/// Notes that the present authority follows the one before it, for who still pins that one.
///
/// # Errors
/// When the disk does not take it.
pub(crate) fn endorse(keep: &Keep, keys: &Keys, bundle: &Bundle) -> Result<(), String> {
    let Some(before) = bundle.former().first() else {
        return Ok(());
    };
    let to = bundle.present().fingerprint();
    let known: Endorsed = keep
        .read_json(ENDORSED)
        .map_err(|error| chain(&error))?
        .unwrap_or_default();
    let Some(key) = keys.get(&before.fingerprint()).filter(|_| known.to != Some(to)) else {
        return Ok(());
    };
    let endorsement = key.endorse(bundle.present(), now()).map_err(|error| chain(&error))?;
    let mut steps = vec![Step {
        earlier: before.clone(),
        endorsement: endorsement.to_pem(),
    }];
    if known.to == Some(before.fingerprint()) {
        steps.extend(known.steps);
    }
    steps.truncate(trust::bundle::MAX_FORMER);
    let endorsed = Endorsed { to: Some(to), steps };
    keep.write_json(ENDORSED, &endorsed).map_err(|error| chain(&error))
}

/// How earlier authorities lead to this one. What cannot be read leads nowhere.
#[must_use]
pub(crate) fn endorsements(keep: &Keep, to: &Fingerprint) -> Vec<(AuthorityCertificate, Endorsement)> {
    let known: Option<Endorsed> = keep.read_json(ENDORSED).ok().flatten();
    let steps = known
        .filter(|known| known.to == Some(*to))
        .map(|known| known.steps)
        .unwrap_or_default();
    let read = |step: Step| Some((step.earlier, Endorsement::from_pem(&step.endorsement).ok()?));
    steps.into_iter().map_while(read).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use trust::identity::ClusterId;

    use super::*;

    const OLD: Fingerprint = Fingerprint::from_bytes([1; 32]);
    const NEW: Fingerprint = Fingerprint::from_bytes([2; 32]);

    fn note(subject: &str, issuer: Option<Fingerprint>, held: bool, from: u64) -> (String, Issued) {
        let note = Issued {
            from: Time::from_unix_seconds(from),
            until: Time::from_unix_seconds(from + 1_000),
            issuer,
            held,
            rights: None,
        };
        (subject.to_owned(), note)
    }

    #[test]
    fn whoever_has_not_shown_a_new_certificate_is_waited_for() {
        let revoked = Revoked::none(ClusterId::from_bytes([7; 16]))
            .and(
                Target::Subject("node/gone".parse().unwrap()),
                "removed",
                Time::from_unix_seconds(500),
            )
            .unwrap();
        let notes = [
            note("node/fine", Some(OLD), false, 1),
            note("node/fine", Some(NEW), true, 100),
            // It was issued, and has perhaps never arrived.
            note("node/halfway", Some(OLD), true, 1),
            note("node/halfway", Some(NEW), false, 100),
            // Of a release that had one authority alone.
            note("node/early", None, false, 1),
            note("node/newcomer", Some(NEW), false, 100),
            note("node/gone", Some(OLD), false, 400),
            note("person/anna", Some(OLD), false, 1),
            ("nobody".to_owned(), note("", None, false, 1).1),
        ];
        let at = |seconds| holders(notes.clone(), &NEW, &revoked, Time::from_unix_seconds(seconds));
        let awaited = at(600);
        let needed: Vec<&str> = awaited.needed.iter().map(String::as_str).collect();
        assert_eq!(needed, ["node/early", "node/halfway"]);
        assert_eq!(awaited.people, BTreeSet::from(["person/anna".to_owned()]));
        // What has ended needs nobody.
        assert_eq!(at(2_000), Awaited::default());
    }

    #[test]
    fn a_token_of_an_earlier_authority_is_led_to_the_present_one() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        let cluster = ClusterId::from_bytes([7; 16]);
        let [a, b, c] = [1, 2, 3].map(|_| Authority::new(cluster, now()).unwrap());
        let [first, second, third] = [&a, &b, &c].map(|one| one.certificate().clone());
        let keys = Keys::of([a, b, c]);
        let bundle = Bundle::of(first.clone());
        assert!(endorsements(&keep, &first.fingerprint()).is_empty());
        let bundle = bundle.announce(second.clone()).unwrap().promote().unwrap();
        endorse(&keep, &keys, &bundle).unwrap();
        let led = endorsements(&keep, &second.fingerprint());
        assert!(led.len() == 1 && led[0].1.proves(&first, &second, now()));
        let bundle = bundle.forget(&first.fingerprint()).unwrap();
        keys.remove(&first.fingerprint());
        let bundle = bundle.announce(third.clone()).unwrap().promote().unwrap();
        // Asked twice, as after a crash.
        for _ in 0..2 {
            endorse(&keep, &keys, &bundle).unwrap();
        }
        let led = endorsements(&keep, &third.fingerprint());
        assert!(led.len() == 2 && led[0].1.proves(&second, &third, now()) && led[1].1.proves(&first, &second, now()));
        assert!(endorsements(&keep, &second.fingerprint()).is_empty());
    }
}
