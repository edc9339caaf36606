use proptest::prelude::*;

use super::*;
use crate::revoked::Target;
use crate::testing::{DAY, Holder, NOW, World, cluster};

fn context(world: &World) -> Context<'static> {
    Context {
        cluster: world.cluster(),
        namespace: "shop",
        kind: "secret",
        name: "password",
        edition: 3,
    }
}

struct Side {
    held: Holder,
    key: SealingKey,
    reader: Reader,
}

fn side(world: &World, rest: &str) -> Side {
    let held = world.holder(rest);
    let key = SealingKey::generate().unwrap();
    let statement = Statement::write(key.public(), &held.certificate, &held.key).unwrap();
    let reader = Statement::verify(&statement, &world.trust(), NOW).unwrap();
    Side { held, key, reader }
}

#[test]
fn a_value_opens_for_its_readers_and_for_nobody_else() {
    let world = World::new();
    let (a, b, c) = (
        side(&world, "controller/a"),
        side(&world, "controller/b"),
        side(&world, "node/c"),
    );
    let envelope = Envelope::seal(context(&world), b"hunter2", &[a.reader, b.reader]).unwrap();
    assert_eq!(envelope.open(context(&world), &a.key).unwrap().as_slice(), b"hunter2");
    assert_eq!(envelope.open(context(&world), &b.key).unwrap().as_slice(), b"hunter2");
    assert_eq!(
        envelope.open(context(&world), &c.key).unwrap_err(),
        SealError::NotForThisKey
    );
    assert!(envelope.is_for(&a.key.public()) && !envelope.is_for(&c.key.public()));
    let json = envelope.to_json();
    assert!(!String::from_utf8_lossy(&json).contains("hunter2"));
}

#[test]
fn a_controller_reseals_for_a_node_without_touching_the_value() {
    let world = World::new();
    let (controller, node) = (side(&world, "controller/a"), side(&world, "node/n1"));
    let sealed = Envelope::seal(context(&world), b"value", &[controller.reader]).unwrap();
    let resealed = sealed.reseal(context(&world), &controller.key, &[node.reader]).unwrap();
    assert_eq!((&resealed.value, resealed.nonce), (&sealed.value, sealed.nonce));
    assert_eq!(resealed.digest(context(&world)), sealed.digest(context(&world)));
    assert_eq!(resealed.open(context(&world), &node.key).unwrap().as_slice(), b"value");
    assert_eq!(
        resealed.open(context(&world), &controller.key).unwrap_err(),
        SealError::NotForThisKey
    );
    let other = side(&world, "node/n2");
    assert_eq!(
        sealed.reseal(context(&world), &other.key, &[other.reader]).unwrap_err(),
        SealError::NotForThisKey
    );
}

#[test]
fn a_value_sealed_as_one_thing_never_opens_as_another() {
    let world = World::new();
    let reader = side(&world, "node/n1");
    let envelope = Envelope::seal(context(&world), b"value", std::slice::from_ref(&reader.reader)).unwrap();
    let own = context(&world);
    let others = [
        Context {
            cluster: cluster(2),
            ..own
        },
        Context {
            namespace: "shop2",
            ..own
        },
        Context {
            kind: "configfile",
            ..own
        },
        Context { name: "passwor", ..own },
        Context { edition: 4, ..own },
        Context {
            namespace: "shops",
            kind: "ecret",
            ..own
        },
    ];
    for other in others {
        assert_eq!(
            envelope.open(other, &reader.key).unwrap_err(),
            SealError::DoesNotOpen,
            "{other:?}"
        );
        assert_ne!(envelope.digest(other), envelope.digest(own));
    }
}

#[test]
fn the_data_key_of_one_value_does_not_open_another() {
    let world = World::new();
    let reader = side(&world, "node/n1");
    let readers = std::slice::from_ref(&reader.reader);
    let first = Envelope::seal(context(&world), b"first", readers).unwrap();
    let mut second = Envelope::seal(context(&world), b"other", readers).unwrap();
    second.readers.clone_from(&first.readers);
    assert_eq!(
        second.open(context(&world), &reader.key).unwrap_err(),
        SealError::DoesNotOpen
    );
}

#[test]
fn the_ciphertexts_of_equal_values_differ() {
    let world = World::new();
    let reader = side(&world, "node/n1");
    let seal = || Envelope::seal(context(&world), b"same", std::slice::from_ref(&reader.reader)).unwrap();
    assert_ne!(seal().value, seal().value);
}

#[test]
fn a_value_of_eight_mebibytes_is_sealed_and_a_longer_one_is_not() {
    let world = World::new();
    let reader = side(&world, "node/n1");
    let readers = std::slice::from_ref(&reader.reader);
    let value = vec![b'x'; MAX_VALUE_BYTES];
    let json = Envelope::seal(context(&world), &value, readers).unwrap().to_json();
    assert!(json.len() <= MAX_ENVELOPE_BYTES);
    let opened = Envelope::from_json(&json)
        .unwrap()
        .open(context(&world), &reader.key)
        .unwrap();
    assert_eq!(*opened, value);
    let longer = vec![0; MAX_VALUE_BYTES + 1];
    assert_eq!(
        Envelope::seal(context(&world), &longer, readers),
        Err(SealError::TooLong {
            found: MAX_VALUE_BYTES + 1
        })
    );
    assert_eq!(
        Envelope::from_json(&vec![b' '; MAX_ENVELOPE_BYTES + 1]),
        Err(SealError::EnvelopeTooLong)
    );
}

#[test]
fn an_envelope_has_at_least_one_reader_and_not_too_many_and_none_of_another_cluster() {
    let world = World::new();
    let reader = side(&world, "node/n1").reader;
    assert_eq!(Envelope::seal(context(&world), b"v", &[]), Err(SealError::Readers));
    let many = vec![reader; MAX_READERS + 1];
    assert_eq!(Envelope::seal(context(&world), b"v", &many), Err(SealError::Readers));
    let full = Envelope::seal(context(&world), b"v", &many[1..]).unwrap();
    assert_eq!(Envelope::from_json(&full.to_json()), Ok(full));
    let elsewhere = side(&World::of(cluster(2)), "node/n1").reader;
    assert_eq!(
        Envelope::seal(context(&world), b"v", &[elsewhere]),
        Err(SealError::OtherCluster(cluster(2)))
    );
}

#[test]
fn a_statement_counts_only_from_a_trusted_holder_and_unchanged() {
    let world = World::new();
    let own = side(&world, "node/n1");
    let write = |key: &SealingKey| Statement::write(key.public(), &own.held.certificate, &own.held.key).unwrap();
    let bytes = write(&own.key);
    let reader = Statement::verify(&bytes, &world.trust(), NOW).unwrap();
    assert_eq!(
        (reader.identity(), reader.key()),
        (own.held.certificate.identity(), own.key.public())
    );

    // Another's key put into it: what somebody with the store's write access would do to read a node's secrets.
    let thief = SealingKey::generate().unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let swapped = text.replace(&own.key.public().to_string(), &thief.public().to_string());
    assert_ne!(swapped, text);
    assert_eq!(
        Statement::verify(swapped.as_bytes(), &world.trust(), NOW),
        Err(StatementError::BadSignature)
    );

    // Another node's statement with this one's certificate in it.
    let other = side(&world, "node/n2");
    let stolen = Statement::write(thief.public(), &own.held.certificate, &other.held.key);
    assert_eq!(stolen, Err(KeyMismatch));
    let theirs =
        String::from_utf8(Statement::write(thief.public(), &other.held.certificate, &other.held.key).unwrap()).unwrap();
    let (theirs_der, own_der) = (
        BASE64.encode(&other.held.certificate.der()),
        BASE64.encode(&own.held.certificate.der()),
    );
    let mixed = theirs.replace(&theirs_der, &own_der);
    assert_eq!(
        Statement::verify(mixed.as_bytes(), &world.trust(), NOW),
        Err(StatementError::BadSignature)
    );

    let expired = Statement::verify(&bytes, &world.trust(), NOW.plus(91 * DAY));
    assert!(matches!(
        expired,
        Err(StatementError::Distrust(Distrust::Expired { .. }))
    ));
    let revoked = world
        .revoked
        .and(Target::Subject("node/n1".parse().unwrap()), "gone", NOW)
        .unwrap();
    let trust = Trust::new(world.bundle.clone(), revoked).unwrap();
    assert!(matches!(
        Statement::verify(&bytes, &trust, NOW),
        Err(StatementError::Distrust(Distrust::Revoked(_)))
    ));
    let stranger = World::new();
    assert!(matches!(
        Statement::verify(&bytes, &stranger.trust(), NOW),
        Err(StatementError::Distrust(Distrust::OtherAuthority))
    ));
}

#[test]
fn a_statement_is_no_signature_over_a_document() {
    let world = World::new();
    let controller = side(&world, "controller/c1");
    let document = sign::attach(
        b"{}".to_vec(),
        &Signature::of(
            &controller.held.key,
            &controller.held.certificate,
            Domain {
                word: "assignment",
                about: "",
            },
            b"{}",
        )
        .unwrap(),
    );
    assert_eq!(
        Statement::verify(&document, &world.trust(), NOW),
        Err(StatementError::NotStatement)
    );
}

#[test]
fn a_sealing_key_survives_its_file_and_is_not_shown() {
    let key = SealingKey::generate().unwrap();
    let again: SealingKey = format!("{}\n", key.to_text().as_str()).parse().unwrap();
    assert_eq!((again.private, again.public), (key.private, key.public));
    assert!(!format!("{key:?}").contains(&HEXLOWER.encode(&key.private)));
}

#[test]
fn a_sealing_key_of_small_order_is_refused() {
    let world = World::new();
    let held = world.holder("node/n1");
    for bytes in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let statement = Statement::write(SealingPublic(bytes), &held.certificate, &held.key).unwrap();
        let reader = Statement::verify(&statement, &world.trust(), NOW).unwrap();
        assert_eq!(Envelope::seal(context(&world), b"v", &[reader]), Err(SealError::BadKey));
    }
}

#[test]
fn the_size_of_a_sealed_secret_of_32_bytes_is_known() {
    let world = World::new();
    let reader = side(&world, "node/n1");
    let length = |readers: &[Reader]| {
        Envelope::seal(context(&world), &[7; 32], readers)
            .unwrap()
            .to_json()
            .len()
    };
    let readers = vec![reader.reader; 2];
    assert_eq!([length(&readers[..1]), length(&readers)], [312, 497]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_value_comes_back(value in proptest::collection::vec(any::<u8>(), 0..500), edition in any::<u64>()) {
        let world = World::new();
        let reader = side(&world, "node/n1");
        let context = Context { edition, ..context(&world) };
        let json = Envelope::seal(context, &value, std::slice::from_ref(&reader.reader)).unwrap().to_json();
        let envelope = Envelope::from_json(&json).unwrap();
        let opened = envelope.open(context, &reader.key).unwrap();
        prop_assert_eq!(opened.as_slice(), value);
    }

    #[test]
    fn no_changed_envelope_opens(place in any::<proptest::sample::Index>(), flip in 1u8..) {
        let world = World::new();
        let reader = side(&world, "node/n1");
        let envelope = Envelope::seal(context(&world), b"a value", std::slice::from_ref(&reader.reader)).unwrap();
        let mut json = envelope.to_json();
        let place = place.index(json.len());
        json[place] ^= flip;
        match Envelope::from_json(&json) {
            Ok(changed) => prop_assert!(changed == envelope || changed.open(context(&world), &reader.key).is_err()),
            Err(error) => prop_assert_eq!(error, SealError::NotEnvelope),
        }
    }

    #[test]
    fn no_bytes_break_the_readers(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,100}", public in any::<[u8; 32]>()) {
        let world = World::new();
        let _ = Envelope::from_json(&bytes);
        let _ = Statement::verify(&bytes, &world.trust(), NOW);
        let _ = text.parse::<SealingKey>();
        let _ = text.parse::<SealingPublic>();
        let reader = Reader { key: SealingPublic(public), ..side(&world, "node/n1").reader };
        let _ = Envelope::seal(context(&world), b"v", &[reader]);
    }
}
