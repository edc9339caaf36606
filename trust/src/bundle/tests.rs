use proptest::prelude::*;

use super::*;
use crate::revoked::Revoked;
use crate::testing::{Holder, NOW, World, cluster};
use crate::trusted::{Trust, Use};

fn trusts(bundle: &Bundle, held: &Holder) -> bool {
    let trust = Trust::new(bundle.clone(), Revoked::none(bundle.cluster())).unwrap();
    trust.verify(&held.certificate.der(), Use::Asking, NOW).is_ok()
}

#[test]
fn during_a_rotation_every_host_trusts_every_other_whatever_step_it_has_seen() {
    let (old, new) = (World::new(), World::new());
    let start = old.bundle.clone();
    let announced = start.announce(new.authority.certificate().clone()).unwrap();
    let promoted = announced.promote().unwrap();
    let forgotten = promoted.forget(&old.authority.certificate().fingerprint()).unwrap();
    let (before, after) = (old.holder("node/n1"), new.holder("node/n2"));
    // The new authority issues only once everybody has seen it announced, the old one is forgotten only once all have renewed.
    assert!(trusts(&start, &before) && trusts(&announced, &before) && trusts(&promoted, &before));
    assert!(trusts(&announced, &after) && trusts(&promoted, &after) && trusts(&forgotten, &after));
    assert!(!trusts(&start, &after) && !trusts(&forgotten, &before));
    assert_eq!(promoted.present(), new.authority.certificate());
    assert_eq!(announced.to_pem().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(
        [&start, &announced, &promoted, &forgotten].map(Bundle::number),
        [1, 2, 3, 4]
    );
}

#[test]
fn a_newer_bundle_is_accepted_from_the_present_or_the_next_authority_only() {
    let (old, new, stranger) = (World::new(), World::new(), World::new());
    let start = old.bundle.clone();
    let announced = start.announce(new.authority.certificate().clone()).unwrap();
    let promoted = announced.promote().unwrap();
    assert_eq!(
        start.accept(&announced.signed_by(&old.authority), NOW),
        Ok(announced.clone())
    );
    assert_eq!(
        start.accept(&announced.signed_by(&new.authority), NOW),
        Err(BundleError::Unproven(Unproven::OtherSigner))
    );
    assert_eq!(
        announced.accept(&promoted.signed_by(&new.authority), NOW),
        Ok(promoted.clone())
    );
    assert_eq!(
        announced.accept(&promoted.signed_by(&old.authority), NOW),
        Ok(promoted.clone())
    );
    assert_eq!(
        start.accept(&promoted.signed_by(&stranger.authority), NOW),
        Err(BundleError::Unproven(Unproven::OtherSigner))
    );
    // The former authority, whose key may be why it was replaced, has no more say.
    let taken_back = promoted.announce(stranger.authority.certificate().clone()).unwrap();
    assert_eq!(
        promoted.accept(&taken_back.signed_by(&old.authority), NOW),
        Err(BundleError::Unproven(Unproven::OtherSigner))
    );
}

#[test]
fn an_older_bundle_is_never_accepted_again() {
    let (old, new) = (World::new(), World::new());
    let announced = old.bundle.announce(new.authority.certificate().clone()).unwrap();
    let withdrawn = announced.forget(&new.authority.certificate().fingerprint()).unwrap();
    let older = announced.signed_by(&old.authority);
    assert_eq!(
        withdrawn.accept(&older, NOW),
        Err(BundleError::Older { held: 3, found: 2 })
    );
    assert_eq!(
        withdrawn.accept(&withdrawn.signed_by(&old.authority), NOW),
        Ok(withdrawn.clone())
    );
    let other_third = announced.promote().unwrap();
    let found = withdrawn.accept(&other_third.signed_by(&old.authority), NOW);
    assert_eq!(found, Err(BundleError::Older { held: 3, found: 3 }));
}

#[test]
fn a_changed_bundle_is_refused() {
    let (old, new) = (World::new(), World::new());
    let bytes = old
        .bundle
        .announce(new.authority.certificate().clone())
        .unwrap()
        .signed_by(&old.authority);
    let changed = String::from_utf8(bytes)
        .unwrap()
        .replace("\"number\":2", "\"number\":9");
    assert_eq!(
        old.bundle.accept(changed.as_bytes(), NOW),
        Err(BundleError::Unproven(Unproven::BadSignature))
    );
}

#[test]
fn a_list_of_the_revoked_does_not_pass_for_a_bundle() {
    let old = World::new();
    let list = old.revoked.signed_by(&old.authority);
    assert_eq!(
        old.bundle.accept(&list, NOW),
        Err(BundleError::Unproven(Unproven::BadSignature))
    );
}

#[test]
fn the_steps_of_a_rotation_keep_their_order() {
    let (a, b, c) = (World::new(), World::new(), World::new());
    let of = |world: &World| world.authority.certificate().clone();
    assert_eq!(a.bundle.promote(), Err(BundleError::NothingAnnounced));
    assert_eq!(a.bundle.announce(of(&a)), Err(BundleError::Twice));
    let announced = a.bundle.announce(of(&b)).unwrap();
    assert_eq!(announced.announce(of(&c)), Err(BundleError::Announced));
    assert_eq!(announced.forget(&of(&a).fingerprint()), Err(BundleError::Unknown));
    let elsewhere = World::of(cluster(2));
    assert_eq!(
        a.bundle.announce(of(&elsewhere)),
        Err(BundleError::OtherCluster { found: cluster(2) })
    );
    let mut bundle = a.bundle.clone();
    for _ in 0..MAX_FORMER {
        bundle = bundle.announce(of(&World::new())).unwrap().promote().unwrap();
    }
    let full = bundle.announce(of(&World::new())).unwrap();
    assert_eq!(full.promote(), Err(BundleError::TooManyFormer));
}

#[test]
fn a_bundle_survives_its_file() {
    let (old, new) = (World::new(), World::new());
    let bundle = old
        .bundle
        .announce(new.authority.certificate().clone())
        .unwrap()
        .promote()
        .unwrap();
    assert_eq!(Bundle::from_own_disk(&bundle.signed_by(&new.authority)), Ok(bundle));
}

#[test]
fn a_newcomer_begins_with_the_bundle_of_the_authority_it_was_shown() {
    let (old, new, stranger) = (World::new(), World::new(), World::new());
    let announced = old.bundle.announce(new.authority.certificate().clone()).unwrap();
    let promoted = announced.promote().unwrap();
    let (old_signed, signed) = (promoted.signed_by(&old.authority), promoted.signed_by(&new.authority));
    assert_eq!(
        Bundle::adopt(&signed, new.authority.certificate(), NOW),
        Ok(promoted.clone())
    );
    let refused = Bundle::adopt(&old_signed, new.authority.certificate(), NOW);
    assert_eq!(refused, Err(BundleError::Unproven(Unproven::OtherSigner)));
    // Until everybody knows the new one, servers show the former one's certificates.
    assert_eq!(
        Bundle::adopt(&old_signed, old.authority.certificate(), NOW),
        Ok(promoted.clone())
    );
    // One that is only announced proves nobody yet, and one that is not among them never does.
    for (bundle, shown) in [(&announced, &new), (&promoted, &stranger)] {
        let signed = bundle.signed_by(&shown.authority);
        assert_eq!(
            Bundle::adopt(&signed, shown.authority.certificate(), NOW),
            Err(BundleError::Unknown)
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,100}") {
        let world = World::new();
        let _ = world.bundle.accept(&bytes, NOW);
        let _ = Bundle::from_own_disk(&sign::attach(text.into_bytes(), &world.authority.sign(WORD, b"")));
    }
}

#[test]
fn a_certificate_is_known_by_the_authority_that_issued_it() {
    let (old, new) = (World::new(), World::new());
    let promoted = old
        .bundle
        .announce(new.authority.certificate().clone())
        .unwrap()
        .promote()
        .unwrap();
    let issuer = |bundle: &Bundle, held: &Holder| bundle.issuer(&held.certificate).map(|one| one.fingerprint());
    let (before, after) = (old.holder("node/n1"), new.holder("node/n1"));
    assert_eq!(
        issuer(&promoted, &before),
        Some(old.authority.certificate().fingerprint())
    );
    assert_eq!(
        issuer(&promoted, &after),
        Some(new.authority.certificate().fingerprint())
    );
    assert_eq!(issuer(&old.bundle, &after), None);
    assert!(promoted.is_rotating() && !old.bundle.is_rotating());
}
