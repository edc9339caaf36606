//! The notes that seeds keep of the certificates they issue, `issued/<role>/<name>/<serial>`: by them people see
//! who has one, and until when, and a rotation of the authority knows whom it waits for.

use serde::{Deserialize, Serialize};
use trust::certificate::Certificate;
use trust::identity::{Rights, Who};
use trust::key::Fingerprint;
use trust::validity::Time;

/// One note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// From when it counts, in seconds since 1970.
    pub from: Time,
    /// Until when.
    pub until: Time,
    /// The authority that issued it; None in notes of releases that had one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Fingerprint>,
    /// Whether its holder has shown that it has it: told while an authority is replaced, for then it counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Of a person's: what it may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<Rights>,
}

impl Issued {
    #[must_use]
    pub fn of(certificate: &Certificate, issuer: Fingerprint) -> Self {
        let validity = certificate.validity();
        Self {
            from: validity.from,
            until: validity.until,
            issuer: Some(issuer),
            held: false,
            rights: match &certificate.identity().who {
                Who::Person(_, rights) => Some(rights.clone()),
                Who::Node(_) | Who::Server(_) | Who::Controller(_) => None,
            },
        }
    }

    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and words")
    }

    #[must_use]
    pub fn of_json(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
