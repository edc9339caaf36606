//! The authorities that a host trusts together, in order: the next one (announced, issuing nothing yet), the present one
//! (issuing), and former ones (issuing no more, their certificates still good). A rotation is three small steps, each spread
//! to every host before the following: announce, promote, forget. At no moment is there a host that refuses another's
//! certificate, so nothing is restarted. Bundles are numbered, and signed by an authority that the host trusts already.

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::certificate::{AuthorityCertificate, Certificate};
use crate::identity::ClusterId;
use crate::key::Fingerprint;
use crate::sign::{self, Signature};
use crate::trusted::issued;
use crate::validity::Time;

/// How many former authorities are kept at most.
pub const MAX_FORMER: usize = 4;
/// The longest signed bundle that is looked at, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 64 * 1_024;

const WORD: &str = "authority/bundle";

/// The authorities of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    number: u64,
    next: Option<AuthorityCertificate>,
    present: AuthorityCertificate,
    /// The latest first.
    former: Vec<AuthorityCertificate>,
}

/// The form in which a bundle is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    version: u32,
    cluster: ClusterId,
    number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<AuthorityCertificate>,
    present: AuthorityCertificate,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<AuthorityCertificate>,
}

/// Why a statement, such as a bundle, a list of the revoked or a token's record, does not count as the authority's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error("it is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("there is no signature below it")]
    NotSigned,
    #[error("it is signed by neither the present nor the next authority known here: were steps of a rotation missed?")]
    OtherSigner,
    #[error("its signature is not the authority's over these bytes as this kind of statement")]
    BadSignature,
    #[error("the certificate of the authority that signed it is not valid now")]
    NotNow,
}

/// Why a step of a rotation, or a bundle from elsewhere, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is not proven to be the authority's")]
    Unproven(#[source] Unproven),
    #[error("the bytes are not a bundle that this version reads")]
    NotBundle,
    #[error("the bundle belongs to the cluster {found}, not to this one")]
    OtherCluster { found: ClusterId },
    #[error("the bundle has number {found}, but number {held} is in force here")]
    Older { held: u64, found: u64 },
    #[error("an authority is in the bundle twice")]
    Twice,
    #[error("an authority is announced already: promote or withdraw it first")]
    Announced,
    #[error("no authority is announced that could be promoted")]
    NothingAnnounced,
    #[error("{MAX_FORMER} former authorities are still trusted: forget the oldest first")]
    TooManyFormer,
    #[error("the authority meant is not in the bundle in that place")]
    Unknown,
}

impl Bundle {
    /// The first bundle of a cluster: one authority.
    #[must_use]
    pub const fn of(present: AuthorityCertificate) -> Self {
        Self {
            number: 1,
            next: None,
            present,
            former: Vec::new(),
        }
    }

    /// Rises with every step.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.present.cluster()
    }

    /// The one that issues.
    #[must_use]
    pub const fn present(&self) -> &AuthorityCertificate {
        &self.present
    }

    #[must_use]
    pub const fn next(&self) -> Option<&AuthorityCertificate> {
        self.next.as_ref()
    }

    /// Those that issue no more, the latest first.
    #[must_use]
    pub fn former(&self) -> &[AuthorityCertificate] {
        &self.former
    }

    /// Whether a rotation is under way: an authority is announced, or one is still to be forgotten.
    #[must_use]
    pub const fn is_rotating(&self) -> bool {
        self.next.is_some() || !self.former.is_empty()
    }

    /// The one of them that issued a certificate.
    #[must_use]
    pub fn issuer(&self, certificate: &Certificate) -> Option<&AuthorityCertificate> {
        self.authorities().find(|authority| issued(authority, certificate))
    }

    /// All of them: present, next, former.
    pub fn authorities(&self) -> impl Iterator<Item = &AuthorityCertificate> {
        std::iter::once(&self.present).chain(&self.next).chain(&self.former)
    }

    /// The authority with this fingerprint.
    #[must_use]
    pub fn authority(&self, fingerprint: &Fingerprint) -> Option<&AuthorityCertificate> {
        self.authorities()
            .find(|authority| authority.fingerprint() == *fingerprint)
    }

    /// The PEM file for programs that want one, such as the store's `--trusted-ca-file`.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.authorities().map(AuthorityCertificate::to_pem).collect()
    }

    /// The bundle in which everybody trusts the next authority too.
    ///
    /// # Errors
    /// When one is announced already, or this one is known or of another cluster.
    pub fn announce(&self, next: AuthorityCertificate) -> Result<Self, BundleError> {
        if self.next.is_some() {
            return Err(BundleError::Announced);
        }
        let announced = Self {
            next: Some(next),
            ..self.clone()
        };
        announced.stepped()
    }

    /// The bundle in which the announced authority issues, and the present one becomes a former one.
    ///
    /// # Errors
    /// When none is announced, or too many former ones are kept.
    pub fn promote(&self) -> Result<Self, BundleError> {
        let present = self.next.clone().ok_or(BundleError::NothingAnnounced)?;
        let former = std::iter::once(&self.present).chain(&self.former).cloned().collect();
        let promoted = Self {
            number: self.number,
            next: None,
            present,
            former,
        };
        promoted.stepped()
    }

    /// The bundle without a former or announced authority: what it issued is refused from then on.
    ///
    /// # Errors
    /// When none has this fingerprint.
    pub fn forget(&self, fingerprint: &Fingerprint) -> Result<Self, BundleError> {
        let other = |authority: &AuthorityCertificate| authority.fingerprint() != *fingerprint;
        let left = Self {
            number: self.number,
            next: self.next.clone().filter(other),
            present: self.present.clone(),
            former: self
                .former
                .iter()
                .filter(|authority| other(authority))
                .cloned()
                .collect(),
        };
        if left == *self {
            Err(BundleError::Unknown)
        } else {
            left.stepped()
        }
    }

    fn stepped(mut self) -> Result<Self, BundleError> {
        self.number = self.number.saturating_add(1);
        self.checked()
    }

    fn checked(self) -> Result<Self, BundleError> {
        let all: Vec<&AuthorityCertificate> = self.authorities().collect();
        for (index, authority) in all.iter().enumerate() {
            if authority.cluster() != self.cluster() {
                return Err(BundleError::OtherCluster {
                    found: authority.cluster(),
                });
            }
            if all[..index].iter().any(|earlier| earlier.key() == authority.key()) {
                return Err(BundleError::Twice);
            }
        }
        if self.former.len() > MAX_FORMER {
            return Err(BundleError::TooManyFormer);
        }
        Ok(self)
    }

    /// The bundle as it is stored and sent: a line of JSON, and below it the signature of an authority. Who holds the bundle
    /// of the number before accepts it if that authority is its present or its next one.
    #[must_use]
    pub fn signed_by(&self, authority: &Authority) -> Vec<u8> {
        let Self {
            number,
            next,
            present,
            former,
        } = self.clone();
        let written = Written {
            version: 1,
            cluster: self.cluster(),
            number,
            next,
            present,
            former,
        };
        let document = serde_json::to_vec(&written).expect("a bundle is plain JSON");
        let signature = authority.sign(WORD, &document);
        sign::attach(document, &signature)
    }

    /// The bundle in force after this one was offered: a newer one, signed by our present or next authority; or this one,
    /// when the one offered is the same. A host that missed several steps is offered each of them in turn.
    ///
    /// # Errors
    /// With the reason why it is not accepted.
    pub fn accept(&self, bytes: &[u8], now: Time) -> Result<Self, BundleError> {
        let document = self
            .said(WORD, bytes, MAX_BUNDLE_BYTES, now)
            .map_err(BundleError::Unproven)?;
        let offered = Self::read(document)?;
        if offered.cluster() != self.cluster() {
            return Err(BundleError::OtherCluster {
                found: offered.cluster(),
            });
        }
        if offered == *self {
            return Ok(offered);
        }
        if offered.number <= self.number {
            return Err(BundleError::Older {
                held: self.number,
                found: offered.number,
            });
        }
        Ok(offered)
    }

    /// The bundle that a newcomer begins with: signed by the authority that the server it speaks to was proven by (see
    /// [`crate::tls::newcomer`]), and naming that one: as its present one, or as a former one that servers still show.
    ///
    /// # Errors
    /// With the reason why it is not accepted.
    pub fn adopt(bytes: &[u8], proven: &AuthorityCertificate, now: Time) -> Result<Self, BundleError> {
        let document = Self::of(proven.clone())
            .said(WORD, bytes, MAX_BUNDLE_BYTES, now)
            .map_err(BundleError::Unproven)?;
        let bundle = Self::read(document)?;
        if bundle.present == *proven || bundle.former.contains(proven) {
            Ok(bundle)
        } else {
            Err(BundleError::Unknown)
        }
    }

    /// The document of a statement that the present or the next authority signed: former ones have no more say.
    pub(crate) fn said<'a>(&self, word: &str, bytes: &'a [u8], limit: usize, now: Time) -> Result<&'a [u8], Unproven> {
        let (document, signature) = detached(bytes, limit)?;
        let signer = std::iter::once(&self.present)
            .chain(&self.next)
            .find(|authority| authority.fingerprint() == signature.signer())
            .ok_or(Unproven::OtherSigner)?;
        if !signer.validity().contains(now) {
            return Err(Unproven::NotNow);
        }
        if signature.is_by(signer.key(), self.cluster(), word, "", document) {
            Ok(document)
        } else {
            Err(Unproven::BadSignature)
        }
    }

    /// A bundle from this host's own disk, where its signature was verified before it was written.
    ///
    /// # Errors
    /// When the bytes are not a bundle.
    pub fn from_own_disk(bytes: &[u8]) -> Result<Self, BundleError> {
        let (document, _) = detached(bytes, MAX_BUNDLE_BYTES).map_err(BundleError::Unproven)?;
        Self::read(document)
    }

    fn read(document: &[u8]) -> Result<Self, BundleError> {
        let written: Written = serde_json::from_slice(document).map_err(|_| BundleError::NotBundle)?;
        let Written {
            version,
            cluster,
            number,
            next,
            present,
            former,
        } = written;
        if version != 1 || cluster != present.cluster() {
            return Err(BundleError::NotBundle);
        }
        let bundle = Self {
            number,
            next,
            present,
            former,
        };
        bundle.checked()
    }
}

/// A statement and the signature below it, whoever's it is.
pub(crate) fn detached(bytes: &[u8], limit: usize) -> Result<(&[u8], Signature), Unproven> {
    if bytes.len() > limit {
        return Err(Unproven::TooLong { limit });
    }
    sign::detach(bytes).ok_or(Unproven::NotSigned)
}

#[cfg(test)]
mod tests;
