use proptest::prelude::*;

use super::*;
use crate::revoked::Target;
use crate::testing::{DAY, Holder, NOW, World, cluster};

const ASSIGNMENT: Domain<'static> = Domain::assignment("n1");

fn sign(held: &Holder, document: &[u8]) -> Signature {
    Signature::of(&held.key, &held.certificate, ASSIGNMENT, document).unwrap()
}

/// A world with a controller that its keyring knows.
fn known() -> (World, Holder, Keyring) {
    let world = World::new();
    let controller = world.holder("controller/c1");
    let mut keyring = Keyring::new(world.trust());
    keyring.admit(&controller.certificate.der(), NOW).unwrap();
    (world, controller, keyring)
}

#[test]
fn what_a_known_controller_signed_is_accepted_in_its_name() {
    let (_, controller, keyring) = known();
    let signature = sign(&controller, b"document");
    assert_eq!(signature.to_string().len(), SIGNATURE_TEXT_BYTES);
    let name = keyring.verify(ASSIGNMENT, b"document", &signature, NOW).unwrap();
    assert_eq!(name.as_str(), "c1");
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"documenT", &signature, NOW),
        Err(Refusal::BadSignature)
    );
}

#[test]
fn a_document_of_one_kind_or_about_one_thing_never_verifies_as_another() {
    let (_, controller, keyring) = known();
    let signature = sign(&controller, b"document");
    for other in [
        Domain {
            word: "resolved",
            about: "n1",
        },
        Domain {
            word: "assignment",
            about: "n2",
        },
        Domain {
            word: "assignmentn",
            about: "1",
        },
    ] {
        assert_eq!(
            keyring.verify(other, b"document", &signature, NOW),
            Err(Refusal::BadSignature)
        );
    }
}

#[test]
fn a_document_of_one_cluster_never_verifies_in_another() {
    // One key with a certificate in each of two clusters, which an attacker who runs one of them can arrange.
    let (here, there) = (World::new(), World::of(cluster(2)));
    let held = here.holder("controller/c1");
    let as_if_there = Signature::make(
        &held.key,
        held.certificate.fingerprint(),
        there.cluster(),
        "assignment",
        "n1",
        b"d",
    );
    let mut keyring = Keyring::new(here.trust());
    keyring.admit(&held.certificate.der(), NOW).unwrap();
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &as_if_there, NOW),
        Err(Refusal::BadSignature)
    );
    let refused = keyring.admit(&there.holder("controller/c1").certificate.der(), NOW);
    assert_eq!(
        refused,
        Err(Refusal::Signer(Distrust::OtherCluster { found: cluster(2) }))
    );
}

#[test]
fn a_nodes_signature_counts_for_nothing() {
    let (world, controller, mut keyring) = known();
    let node = world.holder("node/n1");
    let refused = keyring.admit(&node.certificate.der(), NOW);
    assert_eq!(refused, Err(Refusal::Signer(Distrust::OtherRole { found: Role::Node })));
    let signer = node.certificate.fingerprint();
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &sign(&node, b"d"), NOW),
        Err(Refusal::UnknownSigner { signer })
    );
    // Nor does one in the controller's name.
    let signature = Signature::make(
        &node.key,
        controller.certificate.fingerprint(),
        world.cluster(),
        "assignment",
        "n1",
        b"d",
    );
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &signature, NOW),
        Err(Refusal::BadSignature)
    );
}

#[test]
fn a_signature_counts_only_while_its_signers_certificate_is_valid() {
    let (_, controller, keyring) = known();
    let signature = sign(&controller, b"d");
    let Validity { from, until } = controller.certificate.validity();
    let name: Name = "c1".parse().unwrap();
    assert!(keyring.verify(ASSIGNMENT, b"d", &signature, until).is_ok());
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &signature, until.plus(1)),
        Err(Refusal::Expired {
            name: name.clone(),
            until
        })
    );
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &signature, from.minus(1)),
        Err(Refusal::NotYetValid { name, from })
    );
}

#[test]
fn a_revoked_controller_is_no_longer_pinned_nor_admitted_again() {
    let (world, controller, mut keyring) = known();
    let other = world.holder("controller/c2");
    keyring.admit(&other.certificate.der(), NOW).unwrap();
    let revoked = world
        .revoked
        .and(Target::Subject("controller/c1".parse().unwrap()), "lost", NOW)
        .unwrap();
    let gone = keyring.retrust(Trust::new(world.bundle.clone(), revoked).unwrap());
    let signer = controller.certificate.fingerprint();
    assert_eq!(gone, [signer]);
    assert_eq!(
        keyring.verify(ASSIGNMENT, b"d", &sign(&controller, b"d"), NOW),
        Err(Refusal::UnknownSigner { signer })
    );
    assert!(matches!(
        keyring.admit(&controller.certificate.der(), NOW),
        Err(Refusal::Signer(Distrust::Revoked(_)))
    ));
    assert!(keyring.verify(ASSIGNMENT, b"d", &sign(&other, b"d"), NOW).is_ok());
}

#[test]
fn when_an_authority_is_forgotten_its_controllers_are_too() {
    let (old, controller, mut keyring) = known();
    let new = World::new();
    let promoted = old
        .bundle
        .announce(new.authority.certificate().clone())
        .unwrap()
        .promote()
        .unwrap();
    let trust = |bundle| Trust::new(bundle, old.revoked.clone()).unwrap();
    assert!(keyring.retrust(trust(promoted.clone())).is_empty());
    assert!(keyring.verify(ASSIGNMENT, b"d", &sign(&controller, b"d"), NOW).is_ok());
    let forgotten = promoted.forget(&old.authority.certificate().fingerprint()).unwrap();
    assert_eq!(
        keyring.retrust(trust(forgotten)),
        [controller.certificate.fingerprint()]
    );
}

#[test]
fn a_keyring_stays_small_and_makes_room_from_the_expired() {
    let world = World::new();
    let mut keyring = Keyring::new(world.trust());
    for _ in 0..MAX_SIGNERS {
        keyring
            .admit(&world.holder("controller/c1").certificate.der(), NOW)
            .unwrap();
    }
    let one_more = world.holder("controller/c1").certificate;
    assert_eq!(keyring.admit(&one_more.der(), NOW), Err(Refusal::TooManySigners));
    let later = NOW.plus(91 * DAY);
    let fresh = world.holder_at("controller/c1", later).certificate;
    keyring.admit(&fresh.der(), later).unwrap();
    assert_eq!(keyring.signers().count(), 1);
}

#[test]
fn nobody_signs_with_a_key_that_is_not_the_certificates() {
    let world = World::new();
    let (a, b) = (world.holder("controller/a"), world.holder("controller/b"));
    assert_eq!(
        Signature::of(&a.key, &b.certificate, ASSIGNMENT, b"d"),
        Err(KeyMismatch)
    );
}

#[test]
fn a_signature_of_a_later_form_is_told_apart_from_nonsense() {
    let (_, controller, _) = known();
    let text = sign(&controller, b"d").to_string();
    assert_eq!(
        text.replacen("1.", "2.", 1).parse::<Signature>(),
        Err(SignatureError::Version)
    );
    assert_eq!(
        text.replacen("1.", "x.", 1).parse::<Signature>(),
        Err(SignatureError::NotSignature)
    );
    assert_eq!(
        format!("{text}=").parse::<Signature>(),
        Err(SignatureError::NotSignature)
    );
}

proptest! {
    #[test]
    fn an_attached_signature_comes_off_again(document in proptest::collection::vec(any::<u8>(), 0..200)) {
        let world = World::new();
        let held = world.holder("controller/c1");
        let signature = sign(&held, &document);
        let attached = attach(document.clone(), &signature);
        prop_assert_eq!(attached.len(), document.len() + 1 + SIGNATURE_TEXT_BYTES);
        prop_assert_eq!(detach(&attached), Some((document.as_slice(), signature)));
    }

    #[test]
    fn no_bytes_break_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[0-9]?\\.?[A-Za-z0-9_.-]{0,150}") {
        let _ = detach(&bytes);
        if let Ok(signature) = text.parse::<Signature>() {
            prop_assert_eq!(signature.to_string(), text);
        }
    }

    #[test]
    fn any_change_to_document_or_signature_is_seen(document in proptest::collection::vec(any::<u8>(), 1..60), place in any::<proptest::sample::Index>(), flip in 1u8..) {
        let (_, controller, keyring) = known();
        let signature = sign(&controller, &document);
        let mut changed = document.clone();
        let at = place.index(changed.len());
        changed[at] ^= flip;
        prop_assert!(keyring.verify(ASSIGNMENT, &changed, &signature, NOW).is_err());
        let mut other = signature.clone();
        let at = place.index(64);
        other.bytes[at] ^= flip;
        prop_assert!(keyring.verify(ASSIGNMENT, &document, &other, NOW).is_err());
    }
}

#[test]
fn an_object_is_still_json_with_its_signature_and_comes_apart_to_the_byte() {
    let (_, controller, keyring) = known();
    let pen = Pen::new(controller.certificate.clone(), controller.key).unwrap();
    let object = br#"{"node":"n1","instances":[]}"#.to_vec();
    let woven = weave(object.clone(), &pen.sign(ASSIGNMENT, &object));
    let value: serde_json::Value = serde_json::from_slice(&woven).unwrap();
    assert_eq!(value["node"], "n1");
    assert_eq!(value["signature"].as_str().map(str::len), Some(SIGNATURE_TEXT_BYTES));
    let (back, signature) = unweave(&woven).unwrap();
    assert_eq!(back, object);
    keyring.verify(ASSIGNMENT, &back, &signature, NOW).unwrap();
    for other in [&object[..], b"", b"\"}", b"{}"] {
        assert_eq!(unweave(other), None);
    }
    let cut = |end: usize| unweave(&woven[..end]);
    assert!((0..woven.len()).all(|end| cut(end).is_none()));
}

#[test]
fn what_a_signer_signed_is_recalled_after_its_end_and_signed_anew_long_before() {
    let (world, controller, mut keyring) = known();
    let signature = sign(&controller, b"d");
    let signer = controller.certificate.fingerprint();
    let Validity { from: _, until } = controller.certificate.validity();
    assert!(!keyring.is_leaving(&signer, NOW));
    assert!(keyring.is_leaving(&signer, NOW.plus(31 * DAY)));
    assert!(keyring.is_leaving(&Fingerprint::of(b"nobody"), NOW));
    keyring.recall(ASSIGNMENT, b"d", &signature, until.plus(DAY)).unwrap();
    assert_eq!(
        keyring.recall(ASSIGNMENT, b"D", &signature, until.plus(DAY)),
        Err(Refusal::BadSignature)
    );
    // The authority that issued it makes room for another.
    let other = crate::authority::Authority::new(world.cluster(), NOW).unwrap();
    let announced = world.bundle.announce(other.certificate().clone()).unwrap();
    let promoted = announced.promote().unwrap();
    for (bundle, leaving) in [(announced, false), (promoted, true)] {
        assert_eq!(
            keyring.retrust(Trust::new(bundle, world.revoked.clone()).unwrap()),
            Vec::new()
        );
        assert_eq!(keyring.is_leaving(&signer, NOW), leaving);
    }
}
