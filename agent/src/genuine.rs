//! Whether what stands under the node's assignment key is a controller's word. An agent that joined a cluster by a token asks
//! here before it judges anything else; one without the cluster's certificates has nobody to believe, and takes what its store
//! says. Pure: the certificate of a signer that is not known yet is fetched by the caller, and admitted here.

use schemas::names::NodeName;
use schemas::records::{Assignment, Record as _};
use trust::certificate::{Certificate, CertificateError};
use trust::key::Fingerprint;
use trust::sign::{Domain, Keyring, Refusal, unweave};
use trust::validity::Time;

/// What a signature adds to a document, and more.
const SIGNATURE_ROOM: usize = 1_024;

/// Why an assignment does not count.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// It is signed, but no document that this release reads; or there is no telling.
    #[error("{0}")]
    Unreadable(String),
    #[error("no controller has signed it")]
    NotSigned,
    /// Its certificate is to be had at `trust/signers/<fingerprint>`, or not.
    #[error("the certificate of its signer {0} is not in the store")]
    Unknown(Fingerprint),
    #[error("the store holds no certificate as that of its signer {signer}")]
    NoCertificate {
        signer: Fingerprint,
        #[source]
        source: CertificateError,
    },
    #[error("the store holds another certificate as that of its signer {signer}")]
    OtherCertificate { signer: Fingerprint },
    #[error("it does not count as a controller's word")]
    Refused(#[source] Refusal),
}

/// All that [`Doubt::word`] says.
pub const WORDS: [&str; 5] = ["unreadable", "unsigned", "unknown_signer", "signature", "signer"];

impl Doubt {
    /// One word for the metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::NotSigned => "unsigned",
            Self::Unknown(_) | Self::NoCertificate { .. } | Self::OtherCertificate { .. } => "unknown_signer",
            Self::Refused(Refusal::BadSignature) => "signature",
            Self::Refused(
                Refusal::Signer(_)
                | Refusal::UnknownSigner { .. }
                | Refusal::NotYetValid { .. }
                | Refusal::Expired { .. }
                | Refusal::TooManySigners,
            ) => "signer",
        }
    }
}

/// The assignment in these bytes, if a controller of the cluster signed exactly them for this node.
///
/// # Errors
/// With the reason why they count for nothing.
pub fn genuine(keyring: &Keyring, node: &NodeName, bytes: &[u8], now: Time) -> Result<Assignment, Doubt> {
    if bytes.len() > Assignment::MAX_BYTES + SIGNATURE_ROOM {
        let (size, limit) = (bytes.len(), Assignment::MAX_BYTES);
        return Err(Doubt::Unreadable(format!(
            "read the assignment: {size} bytes, over the limit of {limit}"
        )));
    }
    let (document, signature) = unweave(bytes).ok_or(Doubt::NotSigned)?;
    let domain = Domain::assignment(node.as_str());
    match keyring.verify(domain, &document, &signature, now) {
        Ok(_) => Assignment::decode(&document).map_err(|error| Doubt::Unreadable(runtime::chain(&error))),
        Err(Refusal::UnknownSigner { signer }) => Err(Doubt::Unknown(signer)),
        Err(refusal) => Err(Doubt::Refused(refusal)),
    }
}

/// Believes a signer by its certificate as published: PEM, from anywhere.
///
/// # Errors
/// When it is not that signer's, or not a controller's of this cluster.
pub fn admit(keyring: &mut Keyring, signer: Fingerprint, published: &[u8], now: Time) -> Result<(), Doubt> {
    let text = String::from_utf8_lossy(published);
    let certificate = Certificate::from_pem(&text).map_err(|source| Doubt::NoCertificate { signer, source })?;
    if certificate.fingerprint() != signer {
        return Err(Doubt::OtherCertificate { signer });
    }
    keyring.admit(&certificate.der(), now).map(drop).map_err(Doubt::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::today;
    use proptest::prelude::*;
    use schemas::records::{ClusterId, Order, SchemaVersion};
    use trust::realm::Realm;

    fn n1() -> NodeName {
        "n1".parse().unwrap()
    }

    fn of(cluster: u8) -> Realm {
        Realm::new([cluster; 16], today())
    }

    /// An assignment of nothing.
    fn assignment(generation: u64) -> Assignment {
        Assignment {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: ClusterId::from_random([7; 16]),
            node: n1(),
            order: Order {
                restore_epoch: 1,
                epoch: 1,
                generation,
            },
            instances: Vec::new(),
        }
    }

    /// What one controller signed for n1, as it is stored; and a keyring that knows that controller.
    fn signed() -> (Realm, Vec<u8>, Keyring) {
        let realm = of(7);
        let pen = realm.pen("controller/c1");
        let mut keyring = Keyring::new(realm.trust());
        let published = pen.certificate().to_pem();
        admit(
            &mut keyring,
            pen.certificate().fingerprint(),
            published.as_bytes(),
            realm.now,
        )
        .unwrap();
        let bytes = Realm::sign(&pen, "n1", assignment(3).encode());
        (realm, bytes, keyring)
    }

    fn word(result: Result<Assignment, Doubt>) -> &'static str {
        result.map_or_else(|doubt| doubt.word(), |_| "taken")
    }

    #[test]
    fn what_a_controller_signed_for_this_node_is_taken() {
        let (realm, bytes, keyring) = signed();
        let taken = genuine(&keyring, &n1(), &bytes, realm.now).unwrap();
        assert_eq!(taken, assignment(3));
    }

    #[test]
    fn who_has_no_controllers_key_orders_nothing() {
        let (realm, bytes, keyring) = signed();
        let here = |bytes: &[u8]| word(genuine(&keyring, &n1(), bytes, realm.now));
        let document = assignment(4);
        assert_eq!(here(&document.encode()), "unsigned");
        assert_eq!(here(b""), "unsigned");
        // A node's, a server's and a person's own certificates sign nothing.
        for who in ["node/n2", "server/s1", "person/root?admin"] {
            let pen = realm.pen(who);
            let forged = Realm::sign(&pen, "n1", document.encode());
            assert_eq!(here(&forged), "unknown_signer");
            let mut keyring = keyring.clone();
            let (signer, published) = (pen.certificate().fingerprint(), pen.certificate().to_pem());
            let refused = admit(&mut keyring, signer, published.as_bytes(), realm.now).unwrap_err();
            assert_eq!(refused.word(), "signer", "{who}");
            assert_eq!(word(genuine(&keyring, &n1(), &forged, realm.now)), "unknown_signer");
        }
        // Nor a controller of another cluster, nor one of another authority that claims to be this cluster's.
        for other in [of(8), of(7)] {
            let pen = other.pen("controller/c1");
            let mut keyring = keyring.clone();
            let (signer, published) = (pen.certificate().fingerprint(), pen.certificate().to_pem());
            let refused = admit(&mut keyring, signer, published.as_bytes(), realm.now).unwrap_err();
            assert_eq!(refused.word(), "signer");
        }
        // One node's assignment is not another's.
        assert_eq!(
            word(genuine(&keyring, &"n2".parse().unwrap(), &bytes, realm.now)),
            "signature"
        );
    }

    #[test]
    fn a_published_certificate_counts_for_its_own_name_only() {
        let (realm, _, mut keyring) = signed();
        let (one, two) = (realm.pen("controller/c1"), realm.pen("controller/c2"));
        let refused = admit(
            &mut keyring,
            one.certificate().fingerprint(),
            two.certificate().to_pem().as_bytes(),
            realm.now,
        );
        assert!(matches!(refused, Err(Doubt::OtherCertificate { .. })));
        for junk in [&b""[..], b"\xff", b"-----BEGIN CERTIFICATE-----", &[b'a'; 100_000]] {
            let refused = admit(&mut keyring, one.certificate().fingerprint(), junk, realm.now);
            assert!(matches!(refused, Err(Doubt::NoCertificate { .. })));
        }
    }

    #[test]
    fn a_signature_counts_for_as_long_as_its_signers_certificate() {
        let (realm, bytes, keyring) = signed();
        let late = realm.now.plus(200 * 86_400);
        assert_eq!(word(genuine(&keyring, &n1(), &bytes, late)), "signer");
    }

    #[test]
    fn what_is_signed_and_cannot_be_read_says_so() {
        let (realm, _, keyring) = signed();
        let pen = realm.pen("controller/c1");
        let mut keyring = keyring;
        let published = pen.certificate().to_pem();
        admit(
            &mut keyring,
            pen.certificate().fingerprint(),
            published.as_bytes(),
            realm.now,
        )
        .unwrap();
        let odd = br#"{"schemaVersion":99}"#.to_vec();
        let signature = pen.sign(Domain::assignment("n1"), &odd);
        let bytes = trust::sign::weave(odd, &signature);
        assert_eq!(word(genuine(&keyring, &n1(), &bytes, realm.now)), "unreadable");
        let long = vec![b'x'; 2 << 20];
        assert_eq!(word(genuine(&keyring, &n1(), &long, realm.now)), "unreadable");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_altered_byte_of_a_signed_assignment_is_taken(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
            let (realm, bytes, keyring) = signed();
            let at = at.index(bytes.len());
            let mut altered = bytes.clone();
            if cut {
                altered.remove(at);
            } else {
                altered[at] = to;
            }
            let taken = genuine(&keyring, &n1(), &altered, realm.now).is_ok();
            prop_assert_eq!(taken, altered == bytes);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let (realm, _, keyring) = signed();
            prop_assert!(genuine(&keyring, &n1(), &bytes, realm.now).is_err());
        }
    }
}
