//! The list of the revoked: whose certificates count no more though their time is not over. Signed by the authority,
//! numbered, and only rising: whoever can write the store can keep a newer list from a host, but cannot make it take back one
//! that it has seen. Entries end by themselves when every certificate that they could concern has ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::authority::{Authority, MAX_LIFETIME_SECONDS};
use crate::bundle::{Bundle, Unproven, detached};
use crate::certificate::Certificate;
use crate::identity::{ClusterId, Subject};
use crate::key::{Fingerprint, PublicKey};
use crate::sign;
use crate::validity::Time;

/// How many entries a list has at most.
pub const MAX_ENTRIES: usize = 10_000;
/// The longest signed list that is looked at, in bytes.
pub const MAX_LIST_BYTES: usize = 4 * 1_024 * 1_024;
/// The longest reason, in bytes; longer ones are cut.
pub const MAX_REASON_BYTES: usize = 200;

const WORD: &str = "authority/revoked";

/// Whom or what an entry concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// Every certificate of this role and name that began before the entry was made; a later one, for one who joined
    /// again, is good.
    Subject(Subject),
    /// Every certificate for the key with this fingerprint (of its SPKI).
    Key(Fingerprint),
    /// The certificate with this fingerprint (of its DER).
    Certificate(Fingerprint),
}

/// When and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// When it was revoked: certificates of a subject that began later are good.
    pub at: Time,
    /// The entry may be dropped after this: what it concerns has ended.
    pub until: Time,
    /// For people.
    pub reason: String,
}

/// The revoked of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    cluster: ClusterId,
    number: u64,
    entries: BTreeMap<Target, Revocation>,
}

/// The form in which a list is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    version: u32,
    cluster: ClusterId,
    number: u64,
    entries: Vec<(Target, Revocation)>,
}

/// Why a list from elsewhere was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the list of the revoked has more than {MAX_ENTRIES} entries")]
    TooLong,
    #[error("the list of the revoked is not proven to be the authority's")]
    Unproven(#[source] Unproven),
    #[error("the bytes are not a list of the revoked that this version reads")]
    NotList,
    #[error("the list belongs to the cluster {found}, not to this one")]
    OtherCluster { found: ClusterId },
    #[error("the list has number {found}, but number {held} is in force here")]
    Older { held: u64, found: u64 },
    #[error("two lists have the number {number}: the authority's key was used in two places")]
    TwoOfOneNumber { number: u64 },
}

impl Revoked {
    /// The list of a cluster in which nobody was revoked yet: number 0.
    #[must_use]
    pub const fn none(cluster: ClusterId) -> Self {
        Self {
            cluster,
            number: 0,
            entries: BTreeMap::new(),
        }
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    pub fn entries(&self) -> impl Iterator<Item = (&Target, &Revocation)> {
        self.entries.iter()
    }

    /// The next list: this one and another entry, without the entries that have ended.
    ///
    /// # Errors
    /// When it has as many entries as a list may have.
    pub fn and(&self, target: Target, reason: &str, now: Time) -> Result<Self, ListError> {
        let mut entries = self.entries.clone();
        entries.retain(|_, revocation| revocation.until >= now);
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let revocation = Revocation {
            at: now,
            // A certificate issued up to this moment, by the fastest clock, has ended by then.
            until: now.plus(MAX_LIFETIME_SECONDS).plus(86_400),
            reason: reason[..end].to_owned(),
        };
        entries.insert(target, revocation);
        if entries.len() > MAX_ENTRIES {
            return Err(ListError::TooLong);
        }
        Ok(Self {
            cluster: self.cluster,
            number: self.number.saturating_add(1),
            entries,
        })
    }

    /// Whether a certificate is on the list.
    ///
    /// # Errors
    /// With the entry that concerns it.
    pub fn check(&self, certificate: &Certificate) -> Result<(), Revocation> {
        let subject = Target::Subject(certificate.identity().who.subject());
        let earlier = |revocation: &&Revocation| certificate.validity().from <= revocation.at;
        let entry = self
            .entries
            .get(&subject)
            .filter(earlier)
            .or_else(|| self.entries.get(&Target::Key(certificate.key().fingerprint())))
            .or_else(|| self.entries.get(&Target::Certificate(certificate.fingerprint())));
        match entry {
            Some(revocation) => Err(revocation.clone()),
            None => Ok(()),
        }
    }

    /// When this subject was last revoked.
    #[must_use]
    pub fn revoked_before(&self, subject: &Subject) -> Option<Time> {
        let entry = self.entries.get(&Target::Subject(subject.clone()))?;
        Some(entry.at)
    }

    /// Whether this key is revoked.
    #[must_use]
    pub fn revokes_key(&self, key: &PublicKey) -> bool {
        self.entries.contains_key(&Target::Key(key.fingerprint()))
    }

    /// The list as it is stored and sent: a line of JSON, and below it the authority's signature.
    #[must_use]
    pub fn signed_by(&self, authority: &Authority) -> Vec<u8> {
        let Self {
            cluster,
            number,
            entries,
        } = self.clone();
        let written = Written {
            version: 1,
            cluster,
            number,
            entries: entries.into_iter().collect(),
        };
        let document = serde_json::to_vec(&written).expect("a list is plain JSON");
        let signature = authority.sign(WORD, &document);
        sign::attach(document, &signature)
    }

    /// The list in force after this one was offered: a newer one, signed by the present or next authority of the bundle; or
    /// this one, when the one offered is the same.
    ///
    /// # Errors
    /// With the reason why it is not accepted.
    pub fn accept(&self, bytes: &[u8], bundle: &Bundle, now: Time) -> Result<Self, ListError> {
        let document = bundle
            .said(WORD, bytes, MAX_LIST_BYTES, now)
            .map_err(ListError::Unproven)?;
        let offered = Self::read(document)?;
        if offered.cluster != self.cluster {
            return Err(ListError::OtherCluster { found: offered.cluster });
        }
        match offered.number.cmp(&self.number) {
            std::cmp::Ordering::Greater => Ok(offered),
            std::cmp::Ordering::Equal if offered == *self => Ok(offered),
            std::cmp::Ordering::Equal => Err(ListError::TwoOfOneNumber { number: self.number }),
            std::cmp::Ordering::Less => Err(ListError::Older {
                held: self.number,
                found: offered.number,
            }),
        }
    }

    /// A list from this host's own disk, where its signature was verified before it was written.
    ///
    /// # Errors
    /// When the bytes are not a list.
    pub fn from_own_disk(bytes: &[u8]) -> Result<Self, ListError> {
        let (document, _) = detached(bytes, MAX_LIST_BYTES).map_err(ListError::Unproven)?;
        Self::read(document)
    }

    fn read(document: &[u8]) -> Result<Self, ListError> {
        let written: Written = serde_json::from_slice(document).map_err(|_| ListError::NotList)?;
        let Written {
            version,
            cluster,
            number,
            entries,
        } = written;
        if version != 1 {
            return Err(ListError::NotList);
        }
        if entries.len() > MAX_ENTRIES {
            return Err(ListError::TooLong);
        }
        Ok(Self {
            cluster,
            number,
            entries: entries.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests;
