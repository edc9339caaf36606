//! Records of values that only their readers can open: what people sealed (`sealed/`), and what the leader sealed again for
//! one reader (`handed/`). Both hold ciphertext alone; the envelopes are the crate `trust`'s, and opaque here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Digest, SchemaVersion};
use crate::names::{Namespace, ResourceName};
use crate::registry::Account;
use crate::secret::{KEPT_EDITIONS, SecretEdition};

/// `sealed/<namespace>/<kind>/<name>`: the values of one resource, sealed by a person's verb for the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealed {
    pub schema_version: SchemaVersion,
    /// By what each is called within the resource: a registry's by the user's name, a secret's by the number of its edition.
    pub values: BTreeMap<String, SealedValue>,
    /// Which edition of a secret is in force; the highest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
}

/// One sealed value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedValue {
    /// Rises with every new value.
    pub edition: u64,
    pub envelope: Value,
    /// Of the sealed value, as an accepted service names it; a registry's needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// When it was set, for people: RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl Sealed {
    /// The editions of a secret, oldest first.
    pub fn editions(&self) -> impl Iterator<Item = (SecretEdition, &SealedValue)> {
        let editions = self.values.iter().filter_map(|(name, value)| {
            let n = name.parse::<u64>().ok().filter(|n| *n == value.edition)?;
            Some((n, value))
        });
        let sorted: BTreeMap<u64, &SealedValue> = editions.collect();
        sorted.into_iter().filter_map(|(n, value)| {
            let digest = value.digest.clone()?;
            Some((SecretEdition { n, digest }, value))
        })
    }

    /// The edition of a secret that is in force.
    #[must_use]
    pub fn in_force(&self) -> Option<(SecretEdition, &SealedValue)> {
        let fits = |(edition, _): &(SecretEdition, &SealedValue)| self.current.is_none_or(|n| edition.n == n);
        self.editions().filter(fits).last()
    }

    /// The number of a secret's next edition.
    #[must_use]
    pub fn next_edition(&self) -> u64 {
        let highest = self.values.values().map(|value| value.edition).max();
        highest.unwrap_or(0).saturating_add(1)
    }

    /// Puts a new edition of a secret in force, and lets the oldest go where there are more than [`KEPT_EDITIONS`].
    pub fn put_edition(&mut self, value: SealedValue) {
        self.current = None;
        self.values.insert(value.edition.to_string(), value);
        let mut numbers: Vec<u64> = self.values.values().map(|value| value.edition).collect();
        numbers.sort_unstable();
        let surplus = numbers.len().saturating_sub(KEPT_EDITIONS);
        for old in &numbers[..surplus] {
            self.values.remove(&old.to_string());
        }
    }
}

/// `handed/<reader>`: what the leader has sealed for one node, or for a controller that came later than a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handed {
    pub schema_version: SchemaVersion,
    /// The reader's public sealing key, so that a reader with a new key is told from one that has all.
    pub key: String,
    pub logins: Vec<HandedLogin>,
    /// Sorted by namespace, name and edition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<HandedSecret>,
}

/// An account of a registry with its password, sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandedLogin {
    /// The Registry resource.
    pub resource: ResourceName,
    /// `host[:port]`.
    pub registry: String,
    pub account: Account,
    pub edition: u64,
    /// The digest of the sealed value: the same for every reader.
    pub digest: String,
    pub envelope: Value,
}

/// One edition of a secret, sealed for one reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandedSecret {
    pub namespace: Namespace,
    pub name: ResourceName,
    /// Its number, and the digest by which accepted services name it.
    #[serde(flatten)]
    pub edition: SecretEdition,
    pub envelope: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(n: u64) -> SealedValue {
        SealedValue {
            edition: n,
            envelope: Value::Null,
            digest: Some(Digest::of(&n.to_be_bytes())),
            since: None,
        }
    }

    #[test]
    fn the_newest_edition_is_in_force_unless_another_is_named_and_the_oldest_go() {
        let mut sealed = Sealed::default();
        assert_eq!(
            (sealed.in_force().map(|(edition, _)| edition.n), sealed.next_edition()),
            (None, 1)
        );
        for n in 1..=12 {
            assert_eq!(sealed.next_edition(), n);
            sealed.put_edition(value(n));
        }
        let kept: Vec<u64> = sealed.editions().map(|(edition, _)| edition.n).collect();
        assert_eq!(kept, [8, 9, 10, 11, 12], "by number, not by text");
        assert_eq!(sealed.in_force().unwrap().0.n, 12);
        sealed.current = Some(9);
        assert_eq!((sealed.in_force().unwrap().0.n, sealed.next_edition()), (9, 13));
        sealed.put_edition(value(13));
        assert_eq!(sealed.in_force().unwrap().0.n, 13);
        sealed.current = Some(77);
        assert_eq!(sealed.in_force(), None);
    }
}
