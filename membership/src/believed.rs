//! Whom a host believes: the cluster's authorities and the list of the revoked, as they were signed. Seeds and agents keep
//! them on disk and hear newer ones from the store. What is heard counts only as the authority's word, and never takes a step
//! back: who can write the store changes nobody's trust with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtime::Cache;
use schemas::keys::{Key, Root, TrustKey};
use trust::bundle::Bundle;
use trust::revoked::Revoked;
use trust::tls::{Door, ShowError};
use trust::trusted::Trust;
use trust::validity::Time;

use crate::keep::{Held, Keep, KeepError};
use crate::now;

const AUTHORITIES: &str = "authorities.json";
const REVOKED: &str = "revoked.json";

/// What is in force on this host.
#[derive(Clone, Debug)]
pub struct Believed {
    bundle: Bundle,
    signed: Vec<u8>,
    revoked: Revoked,
    /// None: nobody was revoked yet.
    signed_revoked: Option<Vec<u8>>,
    /// What does not count and was told already: it stays in the store, and is looked at again and again.
    told: BTreeMap<TrustKey, String>,
}

/// What changed by what was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub authorities: bool,
    pub revoked: bool,
    /// What does not count, and why.
    pub refused: BTreeMap<TrustKey, String>,
}

impl Heard {
    #[must_use]
    pub const fn changed(&self) -> bool {
        self.authorities || self.revoked
    }
}

impl Believed {
    /// Where nobody was revoked yet.
    #[must_use]
    pub const fn begin(signed: Vec<u8>, bundle: Bundle) -> Self {
        let revoked = Revoked::none(bundle.cluster());
        Self {
            bundle,
            signed,
            revoked,
            signed_revoked: None,
            told: BTreeMap::new(),
        }
    }

    /// What this host's disk holds; None before it belongs to a cluster.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn on_disk(keep: &Keep) -> Result<Option<Self>, KeepError> {
        let (Some(bundle), Some(signed)) = (keep.bundle()?, keep.read(AUTHORITIES)?) else {
            return Ok(None);
        };
        let mut believed = Self::begin(signed, bundle);
        if let Some(bytes) = keep.read(REVOKED)? {
            believed.revoked = Revoked::from_own_disk(&bytes).map_err(|source| KeepError::Revoked {
                path: keep.path(REVOKED),
                source,
            })?;
            believed.signed_revoked = Some(bytes);
        }
        Ok(Some(believed))
    }

    /// Takes what is newer into force, the steps of a rotation in their order.
    #[must_use]
    pub fn hear<'a>(&mut self, said: impl IntoIterator<Item = (TrustKey, &'a [u8])>, now: Time) -> Heard {
        let mut heard = Heard::default();
        let said: BTreeMap<TrustKey, &[u8]> = said.into_iter().collect();
        for (key, bytes) in said {
            let refused = match &key {
                // Who signs is not asked here.
                TrustKey::Signer(_) => None,
                // A step that was taken already.
                TrustKey::Authorities(number) if *number <= self.bundle.number() => None,
                TrustKey::Authorities(_) => match self.bundle.accept(bytes, now) {
                    Ok(bundle) => {
                        heard.authorities |= bundle != self.bundle;
                        (self.bundle, self.signed) = (bundle, bytes.to_vec());
                        None
                    }
                    Err(error) => Some(runtime::chain(&error)),
                },
                TrustKey::Revoked => match self.revoked.accept(bytes, &self.bundle, now) {
                    Ok(revoked) => {
                        heard.revoked |= revoked != self.revoked;
                        (self.revoked, self.signed_revoked) = (revoked, Some(bytes.to_vec()));
                        None
                    }
                    Err(error) => Some(runtime::chain(&error)),
                },
            };
            if let Some(why) = refused {
                heard.refused.insert(key, why);
            }
        }
        heard
    }

    /// Takes what the store says into force and keeps it, and tells of what does not count. Whether anything changed.
    ///
    /// # Errors
    /// When the disk does not take it: then nothing has changed.
    pub fn follow(&mut self, keep: &Keep, root: &Root, cache: &Cache) -> Result<bool, KeepError> {
        let said: Vec<(TrustKey, &[u8])> = cache
            .keys
            .iter()
            .filter_map(|found| match root.parse(&found.key) {
                Some(Key::Trust(key)) => Some((key, &*found.value)),
                Some(_) | None => None,
            })
            .collect();
        let mut next = self.clone();
        let heard = next.hear(said, now());
        for (key, why) in heard
            .refused
            .iter()
            .filter(|(key, why)| self.told.get(*key) != Some(*why))
        {
            tracing::warn!(?key, why, "something else than the authority's word is in the store");
        }
        next.told.clone_from(&heard.refused);
        if heard.changed() {
            next.write(keep)?;
        }
        *self = next;
        Ok(heard.changed())
    }

    /// What a host shows, and whom it trusts, at its connections.
    ///
    /// # Errors
    /// When the key is not the certificate's.
    pub fn door(&self, held: &Held) -> Result<Arc<Door>, ShowError> {
        let door = Door::new(self.trust());
        door.show(&held.certificate, &held.key, self.bundle.present())?;
        Ok(door)
    }

    /// Keeps what is in force.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, keep: &Keep) -> Result<(), KeepError> {
        if let Some(signed) = &self.signed_revoked {
            keep.write(REVOKED, signed)?;
        }
        keep.write_bundle(&self.signed, &self.bundle)
    }

    #[must_use]
    pub const fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The authorities as they were signed.
    #[must_use]
    pub fn signed(&self) -> &[u8] {
        &self.signed
    }

    /// The list of the revoked as it was signed; None while nobody is on it.
    #[must_use]
    pub fn signed_revoked(&self) -> Option<&[u8]> {
        self.signed_revoked.as_deref()
    }

    #[must_use]
    pub const fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// For connections and signatures.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust::new(self.bundle.clone(), self.revoked.clone()).expect("a list is accepted for its own cluster alone")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use trust::authority::Authority;
    use trust::revoked::Target;
    use trust::token::InstallToken;

    use super::*;

    const NOW: Time = Time::from_unix_seconds(1_800_000_000);

    fn begun() -> (Authority, Believed) {
        let authority = Authority::derived(&InstallToken::generate(NOW).unwrap()).unwrap();
        let bundle = Bundle::of(authority.certificate().clone());
        let believed = Believed::begin(bundle.signed_by(&authority), bundle);
        (authority, believed)
    }

    fn list(authority: &Authority, base: &Revoked, who: &str) -> (Revoked, Vec<u8>) {
        let list = base.and(Target::Subject(who.parse().unwrap()), "removed", NOW).unwrap();
        let signed = list.signed_by(authority);
        (list, signed)
    }

    #[test]
    fn the_authoritys_word_counts_once_and_is_never_taken_back() {
        let (authority, mut believed) = begun();
        let none = Revoked::none(authority.certificate().cluster());
        let (one, first) = list(&authority, &none, "node/n1");
        let (_, second) = list(&authority, &one, "node/n2");
        let heard = believed.hear([(TrustKey::Revoked, second.as_slice())], NOW);
        assert_eq!(
            (heard.authorities, heard.revoked, heard.refused.len()),
            (false, true, 0)
        );
        assert!(!believed.hear([(TrustKey::Revoked, second.as_slice())], NOW).changed());
        let heard = believed.hear([(TrustKey::Revoked, first.as_slice())], NOW);
        assert!(!heard.changed() && heard.refused.len() == 1, "an older list is no news");
        assert_eq!(believed.revoked().number(), 2);
    }

    #[test]
    fn who_writes_the_store_changes_nobodys_trust() {
        let (_, mut believed) = begun();
        let (stranger, _) = begun();
        let (_, forged) = list(&stranger, &Revoked::none(believed.bundle().cluster()), "node/n1");
        let bundle = Bundle::of(stranger.certificate().clone()).signed_by(&stranger);
        let before = believed.clone();
        let heard = believed.hear(
            [
                (TrustKey::Revoked, forged.as_slice()),
                (TrustKey::Authorities(99), bundle.as_slice()),
                (TrustKey::Authorities(100), b"{}".as_slice()),
            ],
            NOW,
        );
        assert!(!heard.changed() && heard.refused.len() == 3, "{heard:?}");
        assert_eq!(believed.bundle(), before.bundle());
        assert_eq!(believed.revoked(), before.revoked());
    }

    #[test]
    fn the_disk_gives_back_what_was_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let keep = Keep::open(dir.path()).unwrap();
        assert!(Believed::on_disk(&keep).unwrap().is_none());
        let (authority, mut believed) = begun();
        let none = Revoked::none(authority.certificate().cluster());
        let (_, signed) = list(&authority, &none, "node/n1");
        assert!(believed.hear([(TrustKey::Revoked, signed.as_slice())], NOW).revoked);
        believed.write(&keep).unwrap();
        let again = Believed::on_disk(&keep).unwrap().unwrap();
        assert_eq!(
            (again.bundle(), again.revoked()),
            (believed.bundle(), believed.revoked())
        );
        keep.write(REVOKED, b"{").unwrap();
        assert!(matches!(Believed::on_disk(&keep), Err(KeepError::Revoked { .. })));
    }
}
