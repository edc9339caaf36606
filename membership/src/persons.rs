//! People with certificates of their own: whom a token was made for, how a machine that runs no node logs in with it, and who
//! has which rights by the notes that seeds keep. `reeve login-cluster` and `reeve person` call it; seeds answer with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use runtime::{EtcdStore, Prefix, Store as _, StoreError, chain};
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::{Key as StoreKey, Root};
use serde::{Deserialize, Serialize};
use trust::certificate::Certificate;
use trust::identity::{ClusterId, Name, Rights, Role, Subject, Who};
use trust::revoked::Revoked;
use trust::tls::newcomer;
use trust::token::{JoinToken, unrecorded};
use trust::validity::Time;

use crate::call::{CallError, call};
use crate::issued::Issued;
use crate::join::{self, JoinError, Refusal};
use crate::keep::{Context, Keep};
use crate::port::{Failure, Seat, SeedState, formed, later, record, refuse};
use crate::seeds::{Host, Seeds};
use crate::{SEED_PORT, now};

/// `POST /v1/invited`: who has a token asks whom it was made for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InvitedQuestion {
    /// The join token, whole.
    pub token: String,
}

/// Whom it was made for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvitedAnswer {
    pub name: Name,
    pub rights: Rights,
}

/// The seed's end of it.
pub(crate) async fn invited(
    State(seat): State<Arc<Seat>>,
    Json(question): Json<InvitedQuestion>,
) -> Result<Json<InvitedAnswer>, Failure> {
    let (store, _) = formed(&seat)?;
    let token: JoinToken = question.token.parse().map_err(refuse)?;
    let place = seat.root.key(&StoreKey::Join(token.id().to_string()));
    let found = store
        .get(place.as_bytes())
        .await
        .map_err(|error| later(chain(&error)))?;
    let bundle = seat.believed().bundle().clone();
    let found = found.value.ok_or_else(|| refuse(unrecorded(&token, &bundle)))?;
    let record = record(&found.value, &bundle)?;
    match record.invites(&token, now()).map_err(refuse)? {
        Who::Person(name, rights) => Ok(Json(InvitedAnswer { name, rights })),
        Who::Node(_) | Who::Server(_) | Who::Controller(_) => Err(refuse("the token is not a person's")),
    }
}

/// Somebody who has, or had, a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub name: Name,
    /// By the newest note; None where that cannot be read.
    pub rights: Option<Rights>,
    /// Until when its longest certificate lasts.
    pub until: Time,
    /// Since when none of them counts any more.
    pub removed: Option<Time>,
}

impl Person {
    /// Whether one of its certificates counts.
    #[must_use]
    pub fn counts(&self, now: Time) -> bool {
        self.removed.is_none() && now <= self.until
    }
}

/// Everybody whom the seeds gave a certificate, by name.
///
/// # Errors
/// When the store does not answer.
pub async fn list(store: &EtcdStore, root: &Root, revoked: &Revoked) -> Result<Vec<Person>, StoreError> {
    let prefix = format!("{}person/", root.prefix("issued"));
    let listing = store.list(&Prefix::new(prefix)?).await?;
    let notes = listing.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
        Some(StoreKey::Issued(subject, _)) => Some((subject, Issued::of_json(&kv.value)?)),
        Some(_) | None => None,
    });
    Ok(people(notes, revoked))
}

fn people(notes: impl Iterator<Item = (String, Issued)>, revoked: &Revoked) -> Vec<Person> {
    let mut all: BTreeMap<Name, (Time, Person)> = BTreeMap::new();
    for (subject, issued) in notes {
        let Ok(subject) = subject.parse::<Subject>() else {
            continue;
        };
        let before = revoked.revoked_before(&subject);
        let Issued {
            from,
            until,
            issuer: _,
            held: _,
            rights,
        } = issued;
        // One that was issued afterwards counts, whatever became of those before.
        let person = Person {
            name: subject.name.clone(),
            rights,
            until,
            removed: before.filter(|before| from <= *before),
        };
        match all.get_mut(&subject.name) {
            Some((newest, known)) if from < *newest => known.until = known.until.max(until),
            Some(known) => {
                let until = person.until.max(known.1.until);
                *known = (from, Person { until, ..person });
            }
            None => drop(all.insert(subject.name, (from, person))),
        }
    }
    all.into_values().map(|(_, person)| person).collect()
}

/// Refuses a second set of rights for one person: its earlier certificates would still open what they opened.
pub(crate) async fn fits(seat: &Seat, store: &EtcdStore, who: &Who) -> Result<(), Failure> {
    let Who::Person(name, rights) = who else { return Ok(()) };
    let known = list(store, &seat.root, seat.believed().revoked()).await;
    let known = known.map_err(|error| later(chain(&error)))?;
    match known.iter().find(|person| person.name == *name && person.counts(now())) {
        Some(Person {
            rights: Some(found), ..
        }) if found != rights => Err(refuse(format!(
            "{name} is in the cluster with the rights `{found}`: on a seed, `reeve person rm {name}` ends those, and a new \
             token gives others"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The part of keys under `audit/` that is of one writer: `person.anna`.
#[must_use]
pub fn record_of(subject: &Subject) -> String {
    format!("{}.{}", subject.role, subject.name)
}

/// Who has logged in, and where the cluster is.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    pub context: Context,
    pub certificate: Certificate,
    /// All of them, whichever were named.
    pub seeds: Seeds,
}

/// Which cluster a token is for, as the first of the seeds says that proves to be of it.
pub async fn cluster(token: &JoinToken, seeds: &Seeds) -> Option<ClusterId> {
    let tls = Arc::new(newcomer(token.authority(), Arc::new(DefaultTimeProvider)).ok()?);
    for host in seeds.iter() {
        if let Ok((state, _)) = call::<(), SeedState>(host, SEED_PORT, &tls, "/v1/seed", None).await {
            return Some(state.cluster);
        }
    }
    None
}

/// Gets a person's certificate with a token, from the first of the seeds that gives one. The key is made here and stays here.
///
/// # Errors
/// When none of them does: the first reason that no other seed could answer otherwise, else each one's.
pub async fn login(keep: &Keep, token: &JoinToken, seeds: &Seeds) -> Result<LoggedIn, LoginError> {
    let tls = newcomer(token.authority(), Arc::new(DefaultTimeProvider)).map_err(JoinError::Tls)?;
    let tls = Arc::new(tls);
    let mut missed = BTreeMap::new();
    for host in seeds.iter() {
        match at(keep, token, host, &tls).await {
            Ok(done) => return Ok(done),
            Err(Refusal::Final(error)) => return Err(error.into()),
            Err(Refusal::Stranger(why) | Refusal::Later(why)) => drop(missed.insert(host.clone(), why)),
        }
    }
    Err(LoginError::Nobody(missed))
}

async fn at(keep: &Keep, token: &JoinToken, host: &Host, tls: &Arc<rustls::ClientConfig>) -> Result<LoggedIn, Refusal> {
    let (state, _) = call::<(), SeedState>(host, SEED_PORT, tls, "/v1/seed", None).await?;
    let question = InvitedQuestion {
        token: token.to_text().to_string(),
    };
    let answer = call::<_, InvitedAnswer>(host, SEED_PORT, tls, "/v1/invited", Some(&question)).await;
    let (InvitedAnswer { name, rights }, _) = answer.map_err(not_invited)?;
    let who = Who::Person(name, rights);
    let context = join::ask(keep, token, host, &who, tls).await?;
    let held = keep.held(&Role::Person.to_string())?;
    Ok(LoggedIn {
        context,
        certificate: held.ok_or(Refusal::Final(JoinError::NotJoined))?.certificate,
        seeds: state.seeds,
    })
}

/// A seed that knows no such question is of an earlier release.
fn not_invited(error: CallError) -> Refusal {
    if let CallError::Nonsense { at, status } = &error
        && *status == hyper::StatusCode::NOT_FOUND
    {
        return Refusal::Later(format!(
            "{at} runs a release of reeve that gives people no certificates: upgrade it first"
        ));
    }
    error.into()
}

/// Why nobody can log in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("no seed lets you in: {}", join::lines(.0).join("; "))]
    Nobody(BTreeMap<Host, String>),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use trust::revoked::Target;

    use super::*;

    #[test]
    fn the_newest_certificate_says_what_a_person_may_and_a_removal_ends_those_before_it() {
        let at = Time::from_unix_seconds;
        let note = |name: &str, from: u64, rights: &str| {
            let issued = Issued {
                from: at(from),
                until: at(from + 100),
                issuer: None,
                held: false,
                rights: Some(rights.parse().unwrap()),
            };
            (format!("person/{name}"), issued)
        };
        let revoked = Revoked::none(ClusterId::from_bytes([7; 16]));
        let revoked = revoked.and(Target::Subject("person/otto".parse().unwrap()), "left", at(50));
        let revoked = revoked.unwrap();
        let notes = [
            note("anna", 30, "viewer"),
            note("anna", 10, "admin"),
            note("otto", 40, "operator"),
        ];
        let found = people(notes.clone().into_iter(), &revoked);
        let told: Vec<_> = found
            .iter()
            .map(|one| {
                (
                    one.name.as_str(),
                    one.rights.as_ref().unwrap().to_string(),
                    one.counts(at(60)),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("anna", "viewer".to_owned(), true),
                ("otto", "operator".to_owned(), false)
            ]
        );
        let again = notes.into_iter().chain([note("otto", 51, "viewer")]);
        let found = people(again, &revoked);
        assert!(found[1].counts(at(60)), "a later certificate counts: {found:?}");
        assert!(!found[1].counts(at(200)), "it has ended");
    }
}
