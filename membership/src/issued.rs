//! The notes that seeds keep of the certificates they issue, `issued/<role>/<name>/<serial>`: by them the serial numbers of
//! one who is revoked are known, which is all that the store's own list of the revoked can name.

use std::collections::BTreeMap;

use schemas::keys::{Key, Root};
use serde::{Deserialize, Serialize};
use trust::certificate::{Certificate, Serial};
use trust::identity::{Rights, Subject, Who};
use trust::key::Fingerprint;
use trust::revoked::{Revoked, Target};
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

/// The serial numbers that no longer count, each with the moment it was revoked: of subjects on the list, what was issued
/// until then. Notes that cannot be read count as issued before.
pub fn revoked_serials<'a>(
    root: &Root,
    notes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    revoked: &Revoked,
) -> BTreeMap<Serial, Time> {
    let mut subjects: BTreeMap<&Subject, Time> = BTreeMap::new();
    for (target, revocation) in revoked.entries() {
        match target {
            Target::Subject(subject) => {
                subjects.insert(subject, revocation.at);
            }
            // Nothing revokes a single key or certificate yet.
            Target::Key(_) | Target::Certificate(_) => {}
        }
    }
    let mut serials = BTreeMap::new();
    for (key, value) in notes {
        let Some(Key::Issued(subject, serial)) = root.parse(key) else {
            continue;
        };
        let (Ok(subject), Ok(serial)) = (subject.parse::<Subject>(), serial.parse::<Serial>()) else {
            continue;
        };
        let Some(at) = subjects.get(&subject) else { continue };
        if Issued::of_json(value).is_none_or(|issued| issued.from <= *at) {
            serials.insert(serial, *at);
        }
    }
    serials
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use trust::identity::ClusterId;

    use super::*;

    const SERIALS: [&str; 4] = [
        "00000000000000000000000000000001",
        "00000000000000000000000000000002",
        "00000000000000000000000000000003",
        "00000000000000000000000000000004",
    ];

    #[test]
    fn what_was_issued_before_the_revocation_no_longer_counts() {
        let root = Root::default();
        let at = Time::from_unix_seconds(1_000);
        let list = Revoked::none(ClusterId::from_bytes([7; 16]))
            .and(Target::Subject("node/n1".parse().unwrap()), "removed", at)
            .unwrap();
        let note = |subject: &str, serial: &str, from: u64| {
            let issued = Issued {
                from: Time::from_unix_seconds(from),
                until: Time::from_unix_seconds(9_999),
                issuer: None,
                held: false,
                rights: None,
            };
            let key = root.key(&Key::Issued(subject.to_owned(), serial.to_owned()));
            (key.into_bytes(), issued.to_json())
        };
        let mut notes = vec![
            note("node/n1", SERIALS[0], 1_000),
            note("node/n1", SERIALS[1], 1_001),
            note("node/n11", SERIALS[2], 500),
        ];
        let (damaged, _) = note("node/n1", SERIALS[3], 0);
        notes.push((damaged, b"{".to_vec()));
        notes.push((b"/reeve/issued/node/n1/none".to_vec(), Vec::new()));
        let borrowed = notes.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        let found: Vec<String> = revoked_serials(&root, borrowed, &list)
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, [SERIALS[0], SERIALS[3]]);
    }
}
