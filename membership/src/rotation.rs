//! What a seed does next so that the cluster's authority is replaced, from what is in the store, on its disk, and what the other
//! seeds say: a pure function, asked again after every step, so that whoever dies at any moment is followed by whoever looks
//! next. The order behind it: **nobody shows a certificate that another does not believe yet, and nobody stops to believe one
//! that another still shows.** So nothing is restarted but the store's members, one wave after the other.
//!
//! ```text
//! announce   everybody also believes the new authority; every seed fetches its key, and starts its store's member again
//! promote    the new one issues: controllers and people on seeds at once, nodes one by one, a little apart
//! serve      when every node has its new certificate, seeds show new ones too: until then who was away still knows them
//! forget     nobody believes the old one any more; its key is destroyed, and the members are started again without it
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use trust::bundle::Bundle;
use trust::certificate::AuthorityCertificate;
use trust::key::Fingerprint;

use crate::seeds::Host;

/// How far a seed is with the authorities: part of what it answers to who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The number of the set of authorities that it believes.
    pub believes: u64,
    /// The number of the set that its store's member works with; 0 while that does not run.
    pub anchored: u64,
    /// The authorities whose keys it has.
    #[serde(default)]
    pub holds: BTreeSet<Fingerprint>,
    /// The authority that issued the certificate which it and its store's member show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shows: Option<Fingerprint>,
}

/// A set of authorities, by their pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    pub number: u64,
    pub next: Option<Fingerprint>,
    pub present: Fingerprint,
    /// The latest first.
    pub former: Vec<Fingerprint>,
}

impl From<&Bundle> for Authorities {
    fn from(bundle: &Bundle) -> Self {
        Self {
            number: bundle.number(),
            next: bundle.next().map(AuthorityCertificate::fingerprint),
            present: bundle.present().fingerprint(),
            former: bundle.former().iter().map(AuthorityCertificate::fingerprint).collect(),
        }
    }
}

impl Authorities {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeSet<Fingerprint> {
        let Self {
            number: _,
            next,
            present,
            former,
        } = self;
        std::iter::once(*present)
            .chain(*next)
            .chain(former.iter().copied())
            .collect()
    }
}

/// What is known.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is in force here.
    pub authorities: &'a Authorities,
    pub own: &'a Standing,
    /// Every other seed: how far it is, or why it says nothing.
    pub others: &'a BTreeMap<Host, Result<Standing, String>>,
    /// Who still needs the former authority, for people.
    pub awaited: &'a BTreeSet<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: no rotation is under way.
    Rest,
    /// Ask the other seeds for the key of this authority.
    FetchKey(Fingerprint),
    /// Have the store's member work with the authorities in force, when this seed's turn has come.
    Anchor,
    /// Publish that the announced authority issues from now on.
    Promote,
    /// Show a certificate of the present authority.
    Serve,
    /// Publish that this authority is no longer believed.
    Forget(Fingerprint),
    /// Destroy the keys of these: nobody believes them any more.
    Destroy(BTreeSet<Fingerprint>),
    /// Ask again: these seeds are not as far, each with what is missing.
    AwaitSeeds(BTreeMap<Host, String>),
    /// Ask again: these still need the former authority.
    AwaitOthers(BTreeSet<String>),
}

/// What a seed does next.
#[must_use]
pub fn next(facts: &Facts<'_>) -> Next {
    let Facts {
        authorities,
        own,
        others,
        awaited,
    } = facts;
    let Authorities {
        number,
        next,
        present,
        former,
    } = authorities;
    let missing = |why: &dyn Fn(&Standing) -> Option<&'static str>| -> BTreeMap<Host, String> {
        let of = |(host, said): (&Host, &Result<Standing, String>)| match said {
            Err(silent) => Some((host.clone(), silent.clone())),
            Ok(standing) => why(standing).map(|why| (host.clone(), why.to_owned())),
        };
        others.iter().filter_map(of).collect()
    };
    let behind = |other: &Standing| {
        if other.believes < *number {
            Some("it has not heard of it yet")
        } else if other.anchored < *number {
            Some("its store does not work with it yet")
        } else {
            None
        }
    };

    let needed = std::iter::once(present).chain(next);
    if let Some(pin) = needed.into_iter().find(|pin| !own.holds.contains(pin)) {
        return Next::FetchKey(*pin);
    }
    let stale: BTreeSet<Fingerprint> = own.holds.difference(&authorities.all()).copied().collect();
    if !stale.is_empty() {
        return Next::Destroy(stale);
    }
    if own.anchored < *number {
        return Next::Anchor;
    }
    if let Some(next) = next {
        let waiting = missing(&|other| {
            let keyless = !other.holds.contains(next);
            behind(other).or_else(|| keyless.then_some("it has no key of it yet"))
        });
        return if waiting.is_empty() {
            Next::Promote
        } else {
            Next::AwaitSeeds(waiting)
        };
    }
    let Some(oldest) = former.last() else { return Next::Rest };
    if !awaited.is_empty() {
        return Next::AwaitOthers((*awaited).clone());
    }
    let shown = own.shows == Some(*present);
    let waiting = missing(&|other| {
        let older = shown && other.shows != Some(*present);
        behind(other).or_else(|| older.then_some("it still shows a certificate of the former one"))
    });
    match (waiting.is_empty(), shown) {
        (false, _) => Next::AwaitSeeds(waiting),
        (true, false) => Next::Serve,
        (true, true) => Next::Forget(*oldest),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
