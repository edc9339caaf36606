use super::*;
use crate::revoked::Target;
use crate::testing::{DAY, NOW, World, cluster};

#[test]
fn every_reason_for_distrust_is_told_apart() {
    let world = World::new();
    let trust = world.trust();
    let held = world.holder("controller/c1");
    let der = held.certificate.der();
    let Validity { from, until } = held.certificate.validity();
    assert!(trust.verify(&der, Use::Signing, NOW).is_ok());
    assert_eq!(
        trust.verify(&der, Use::Signing, until.plus(1)),
        Err(Distrust::Expired { until })
    );
    assert_eq!(
        trust.verify(&der, Use::Serving, NOW),
        Err(Distrust::OtherUse { wanted: Use::Serving })
    );
    assert!(matches!(
        trust.verify(b"x", Use::Asking, NOW),
        Err(Distrust::NotOurs(_))
    ));
    assert!(matches!(
        trust.verify(&world.authority.certificate().der(), Use::Asking, NOW),
        Err(Distrust::NotOurs(CertificateError::IsAuthority))
    ));

    let later = world.holder_at("controller/c1", NOW.plus(10 * DAY)).certificate;
    let from_later = later.validity().from;
    assert!(from_later > from);
    assert_eq!(
        trust.verify(&later.der(), Use::Signing, NOW),
        Err(Distrust::NotYetValid { from: from_later })
    );

    let elsewhere = World::of(cluster(2)).holder("controller/c1").certificate;
    assert_eq!(
        trust.verify(&elsewhere.der(), Use::Signing, NOW),
        Err(Distrust::OtherCluster { found: cluster(2) })
    );
    // The same cluster id, but not its authority.
    let forged = World::new().holder("controller/c1").certificate;
    assert_eq!(
        trust.verify(&forged.der(), Use::Signing, NOW),
        Err(Distrust::OtherAuthority)
    );

    for rest in ["node/n1", "server/s1", "person/anna?admin"] {
        let other = world.holder(rest).certificate;
        let found = other.identity().who.role();
        assert_eq!(
            trust.verify(&other.der(), Use::Signing, NOW),
            Err(Distrust::OtherRole { found })
        );
    }

    let revoked = world
        .revoked
        .and(Target::Certificate(held.certificate.fingerprint()), "lost", NOW)
        .unwrap();
    let trust = Trust::new(world.bundle.clone(), revoked).unwrap();
    assert!(matches!(trust.verify(&der, Use::Signing, NOW), Err(Distrust::Revoked(why)) if why.reason == "lost"));
}

#[test]
fn a_certificate_with_any_bit_changed_is_not_trusted() {
    let world = World::new();
    let trust = world.trust();
    let der = world.holder("node/n1").certificate.der().to_vec();
    for place in 0..der.len() {
        for bit in 0..8 {
            let mut changed = der.clone();
            changed[place] ^= 1 << bit;
            assert!(
                trust.verify(&changed, Use::Asking, NOW).is_err(),
                "bit {bit} of byte {place}"
            );
        }
    }
}

#[test]
fn an_authority_whose_time_is_over_vouches_for_nobody() {
    let world = World::new();
    let end = world.authority.certificate().validity().until;
    let held = world.holder_at("node/n1", end.minus(DAY));
    assert!(world.trust().verify(&held.certificate.der(), Use::Asking, end).is_ok());
    assert_eq!(
        world.trust().verify(&held.certificate.der(), Use::Asking, end.plus(1)),
        Err(Distrust::OtherAuthority)
    );
}

#[test]
fn an_end_certificate_cannot_vouch_for_another() {
    // A node that signs a certificate with its own key, in its authority's name.
    let world = World::new();
    let node = world.holder("node/n1");
    let mut forged = world.holder("controller/c1").certificate.der().to_vec();
    let (_, parsed) =
        <x509_parser::prelude::X509Certificate<'_> as x509_parser::prelude::FromDer<_>>::from_der(&forged).unwrap();
    let signature = node.key.sign(parsed.tbs_certificate.as_ref());
    let place = forged.len() - 64;
    forged[place..].copy_from_slice(&signature);
    assert_eq!(
        world.trust().verify(&forged, Use::Signing, NOW),
        Err(Distrust::OtherAuthority)
    );
}

#[test]
fn authorities_and_revoked_of_two_clusters_make_no_trust() {
    let world = World::new();
    assert_eq!(
        Trust::new(world.bundle, Revoked::none(cluster(2))),
        Err(ClusterMismatch)
    );
}
