use proptest::prelude::*;

use super::*;
use crate::testing::{DAY, NOW, World, cluster};

#[test]
fn a_revoked_subject_key_or_certificate_is_found_and_others_are_not() {
    let world = World::new();
    let (gone, stays) = (world.holder("node/n1").certificate, world.holder("node/n2").certificate);
    let targets = [
        Target::Subject(gone.identity().who.subject()),
        Target::Key(gone.key().fingerprint()),
        Target::Certificate(gone.fingerprint()),
    ];
    for target in targets {
        let list = world.revoked.and(target, "stolen", NOW).unwrap();
        assert_eq!(list.check(&gone).unwrap_err().reason, "stolen");
        assert_eq!(list.check(&stays), Ok(()));
    }
}

#[test]
fn a_person_is_revoked_whatever_the_rights() {
    let world = World::new();
    let admin = world.holder("person/anna?admin").certificate;
    let list = world
        .revoked
        .and(Target::Subject("person/anna".parse().unwrap()), "left", NOW)
        .unwrap();
    assert!(list.check(&admin).is_err());
    assert!(
        list.check(&world.holder("person/anna?namespaces=shop").certificate)
            .is_err()
    );
    assert!(list.check(&world.holder("node/anna").certificate).is_ok());
}

#[test]
fn a_list_is_never_taken_back() {
    let world = World::new();
    let first = world
        .revoked
        .and(Target::Subject("node/n1".parse().unwrap()), "x", NOW)
        .unwrap();
    let second = first
        .and(Target::Subject("node/n2".parse().unwrap()), "x", NOW)
        .unwrap();
    let accept =
        |held: &Revoked, offered: &Revoked| held.accept(&offered.signed_by(&world.authority), &world.bundle, NOW);
    assert_eq!(accept(&world.revoked, &second), Ok(second.clone()));
    assert_eq!(accept(&second, &first), Err(ListError::Older { held: 2, found: 1 }));
    assert_eq!(accept(&second, &second), Ok(second.clone()));
    let other = first
        .and(Target::Subject("node/n3".parse().unwrap()), "x", NOW)
        .unwrap();
    assert_eq!(accept(&second, &other), Err(ListError::TwoOfOneNumber { number: 2 }));
}

#[test]
fn only_the_authority_revokes() {
    let (world, stranger) = (World::new(), World::new());
    let list = world
        .revoked
        .and(Target::Subject("node/n1".parse().unwrap()), "x", NOW)
        .unwrap();
    let accept = |bytes: &[u8]| world.revoked.accept(bytes, &world.bundle, NOW);
    assert_eq!(
        accept(&list.signed_by(&stranger.authority)),
        Err(ListError::Unproven(Unproven::OtherSigner))
    );
    let changed = String::from_utf8(list.signed_by(&world.authority))
        .unwrap()
        .replace("node/n1", "node/n2");
    assert_eq!(
        accept(changed.as_bytes()),
        Err(ListError::Unproven(Unproven::BadSignature))
    );
    assert_eq!(
        accept(&world.bundle.signed_by(&world.authority)),
        Err(ListError::Unproven(Unproven::BadSignature))
    );
    let late = world.authority.certificate().validity().until.plus(1);
    let refused = world
        .revoked
        .accept(&list.signed_by(&world.authority), &world.bundle, late);
    assert_eq!(refused, Err(ListError::Unproven(Unproven::NotNow)));
}

#[test]
fn the_list_of_another_cluster_is_refused() {
    let (here, there) = (World::new(), World::of(cluster(2)));
    let list = there
        .revoked
        .and(Target::Subject("node/n1".parse().unwrap()), "x", NOW)
        .unwrap();
    // Even when one authority's key serves both.
    let refused = here.revoked.accept(&list.signed_by(&here.authority), &here.bundle, NOW);
    assert_eq!(refused, Err(ListError::OtherCluster { found: cluster(2) }));
}

#[test]
fn entries_end_when_all_they_concern_has_ended() {
    let world = World::new();
    let old = Target::Subject("node/n1".parse().unwrap());
    let list = world.revoked.and(old.clone(), "x", NOW).unwrap();
    let much_later = NOW.plus(MAX_LIFETIME_SECONDS + 2 * DAY);
    let list = list
        .and(Target::Subject("node/n2".parse().unwrap()), "x", much_later)
        .unwrap();
    assert!(list.entries().all(|(target, _)| *target != old));
    assert_eq!(list.entries().count(), 1);
}

#[test]
fn a_long_reason_is_cut_where_a_letter_ends() {
    let world = World::new();
    let list = world
        .revoked
        .and(Target::Subject("node/n1".parse().unwrap()), &"é".repeat(300), NOW)
        .unwrap();
    let (_, revocation) = list.entries().next().unwrap();
    assert_eq!(revocation.reason, "é".repeat(100));
}

proptest! {
    #[test]
    fn a_list_survives_its_file(names in proptest::collection::btree_set("[a-z]{1,9}", 0..20), reason in "\\PC{0,300}") {
        let world = World::new();
        let mut list = world.revoked.clone();
        for name in names {
            list = list.and(Target::Subject(format!("node/{name}").parse().unwrap()), &reason, NOW).unwrap();
        }
        prop_assert_eq!(Revoked::from_own_disk(&list.signed_by(&world.authority)), Ok(list));
    }

    #[test]
    fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,100}") {
        let world = World::new();
        let _ = world.revoked.accept(&bytes, &world.bundle, NOW);
        let _ = Revoked::from_own_disk(&sign::attach(text.into_bytes(), &world.authority.sign(WORD, b"")));
    }
}
