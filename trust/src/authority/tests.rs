use proptest::prelude::*;

use super::*;
use crate::identity::{Name, Who};
use crate::revoked::Target;
use crate::testing::{DAY, NOW, World, cluster, identity};
use crate::trusted::{Trust, Use};

fn grant(world: &World, rest: &str) -> Grant {
    Grant::new(identity(world.cluster(), rest), 90 * DAY)
}

fn issue(world: &World, request: &[u8], grant: &Grant) -> Result<Certificate, AuthorityError> {
    world.authority.issue(request, grant, &world.revoked, NOW)
}

/// A request with whatever is put into it.
fn request_of(key: &Key, with: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    with(&mut params);
    params.serialize_request(&Pair(key)).unwrap().der().to_vec()
}

#[test]
fn two_hosts_with_one_token_make_the_same_authority_byte_for_byte() {
    let token = InstallToken::generate(NOW).unwrap();
    let there: InstallToken = token.to_text().parse().unwrap();
    let (here, there) = (Authority::derived(&token).unwrap(), Authority::derived(&there).unwrap());
    assert_eq!(here.certificate().der(), there.certificate().der());
    assert_eq!(here.key_pem(), there.key_pem());
    assert_eq!(here.certificate().cluster(), token.cluster());
    assert!(here.certificate().validity().contains(NOW));

    let other = Authority::derived(&InstallToken::generate(NOW).unwrap()).unwrap();
    assert_ne!(here.certificate().fingerprint(), other.certificate().fingerprint());
    assert_ne!(here.certificate().cluster(), other.certificate().cluster());
}

/// A token whose secret is the letter `s`, thirty-two times, made at a known moment.
const TOKEN: &str = "reeve1onzxg43tonzxg43tonzxg43tonzxg43tonzxg43tonzxg43tonzwvmj3qb5kh6xx";

#[test]
fn a_derived_authority_stays_the_same_in_all_versions() {
    let token: InstallToken = TOKEN.parse().unwrap();
    let authority = Authority::derived(&token).unwrap();
    let certificate = Fingerprint::of(&authority.certificate().der()).to_string();
    assert_eq!(token.created(), NOW);
    assert_eq!(
        authority.certificate().cluster().to_string(),
        "f4dbdc1e17fccf806bbd13ab76a93c0c"
    );
    assert_eq!(
        certificate,
        "5572c653222f080f7709304e8e8612c36a9b73636dcdcb3b37a289fd188f48c2"
    );
}

#[test]
fn an_authority_survives_its_files() {
    let world = World::new();
    let (certificate, key) = (world.authority.certificate().to_pem(), world.authority.key_pem());
    let again = Authority::from_pem(&certificate, &key).unwrap();
    assert_eq!(again.certificate(), world.authority.certificate());
    let other = World::new();
    assert_eq!(
        Authority::from_pem(&certificate, &other.authority.key_pem()).unwrap_err(),
        AuthorityError::KeyMismatch
    );
}

#[test]
fn the_addresses_asked_for_are_in_the_certificate_and_no_others() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let mut grant = grant(&world, "server/s1");
    grant.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    grant.dns_names = vec!["a.example".into(), "b.example".into()];
    let asked = request(&key, &grant.identity, &grant.addresses[1..], &grant.dns_names[..1]).unwrap();
    let certificate = issue(&world, &asked, &grant).unwrap();
    assert_eq!(certificate.addresses(), &grant.addresses[1..]);
    assert_eq!(certificate.dns_names(), ["a.example"]);
    assert_eq!(certificate.identity(), &grant.identity);
}

#[test]
fn who_asks_to_be_another_than_was_granted_gets_nothing() {
    let world = World::new();
    let key = Key::generate().unwrap();
    for asked in ["node/n2", "server/n1", "controller/n1", "person/n1?admin"] {
        let request = request(&key, &identity(world.cluster(), asked), &[], &[]).unwrap();
        let refused = issue(&world, &request, &grant(&world, "node/n1"));
        assert!(matches!(refused, Err(AuthorityError::OtherIdentity { .. })), "{asked}");
    }
    let elsewhere = request(&key, &identity(cluster(2), "node/n1"), &[], &[]).unwrap();
    assert!(matches!(
        issue(&world, &elsewhere, &grant(&world, "node/n1")),
        Err(AuthorityError::OtherIdentity { .. })
    ));
    let of_another = Grant::new(identity(cluster(2), "node/n1"), DAY);
    assert_eq!(
        issue(&world, &elsewhere, &of_another),
        Err(AuthorityError::OtherCluster)
    );
}

#[test]
fn more_rights_than_were_granted_are_another_identity() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let asked = request(&key, &identity(world.cluster(), "person/anna?admin"), &[], &[]).unwrap();
    let granted = grant(&world, "person/anna?namespaces=shop");
    assert!(matches!(
        issue(&world, &asked, &granted),
        Err(AuthorityError::OtherIdentity { .. })
    ));
}

#[test]
fn an_address_or_name_that_was_not_granted_is_refused() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let mut granted = grant(&world, "node/n1");
    granted.addresses = vec!["10.0.0.1".parse().unwrap()];
    let asked = request(&key, &granted.identity, &["10.0.0.2".parse().unwrap()], &[]).unwrap();
    let refusal = AuthorityError::NameNotGranted {
        asked: "10.0.0.2".into(),
    };
    assert_eq!(issue(&world, &asked, &granted), Err(refusal));
    let asked = request(&key, &granted.identity, &[], &["store.example".into()]).unwrap();
    let refusal = AuthorityError::NameNotGranted {
        asked: "store.example".into(),
    };
    assert_eq!(issue(&world, &asked, &granted), Err(refusal));
}

#[test]
fn a_request_that_asks_to_be_an_authority_is_refused() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let granted = grant(&world, "node/n1");
    let name = SanType::URI(granted.identity.to_string().try_into().unwrap());
    let asked = request_of(&key, |params| {
        params.subject_alt_names = vec![name.clone()];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let never = |what| Err(AuthorityError::NeverGranted { what });
    assert_eq!(issue(&world, &asked, &granted), never("to be an authority"));
    let asked = request_of(&key, |params| {
        params.subject_alt_names = vec![name.clone()];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    });
    assert_eq!(issue(&world, &asked, &granted), never("usages of its own choice"));
    let asked = request_of(&key, |params| {
        params.subject_alt_names = vec![name.clone(), name.clone()]
    });
    assert_eq!(
        issue(&world, &asked, &granted),
        Err(AuthorityError::RequestNames(CertificateError::NoIdentity))
    );
}

#[test]
fn a_request_for_a_key_that_the_asker_does_not_have_is_refused() {
    let world = World::new();
    let (mine, theirs) = (Key::generate().unwrap(), Key::generate().unwrap());
    let granted = grant(&world, "node/n1");
    let mut request = request(&mine, &granted.identity, &[], &[]).unwrap();
    let place = request
        .windows(32)
        .position(|part| part == mine.public().bytes())
        .unwrap();
    request[place..place + 32].copy_from_slice(theirs.public().bytes());
    assert_eq!(issue(&world, &request, &granted), Err(AuthorityError::RequestSignature));
}

#[test]
fn a_request_with_a_key_of_another_algorithm_is_refused() {
    let world = World::new();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let granted = grant(&world, "node/n1");
    params.subject_alt_names = vec![SanType::URI(granted.identity.to_string().try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap();
    assert_eq!(
        issue(&world, request.der(), &granted),
        Err(AuthorityError::RequestSignature)
    );
}

#[test]
fn roles_get_the_usages_that_they_need() {
    let world = World::new();
    for (rest, server) in [
        ("node/n1", true),
        ("server/s1", true),
        ("controller/c1", false),
        ("person/p?admin", false),
    ] {
        assert_eq!(
            world.holder(rest).certificate.uses(),
            Uses { server, client: true },
            "{rest}"
        );
    }
}

#[test]
fn a_certificate_never_outlives_its_authority_nor_the_longest_life() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let mut granted = grant(&world, "node/n1");
    granted.lifetime_seconds = u64::MAX;
    let request = request(&key, &granted.identity, &[], &[]).unwrap();
    assert_eq!(
        issue(&world, &request, &granted).unwrap().validity().until,
        NOW.plus(MAX_LIFETIME_SECONDS)
    );
    let late = NOW.plus(AUTHORITY_SECONDS - DAY);
    let certificate = world.authority.issue(&request, &granted, &world.revoked, late).unwrap();
    assert_eq!(
        certificate.validity().until,
        world.authority.certificate().validity().until
    );
    let too_late = NOW.plus(AUTHORITY_SECONDS + 1);
    let refused = world.authority.issue(&request, &granted, &world.revoked, too_late);
    assert_eq!(refused, Err(AuthorityError::NotNow));
}

#[test]
fn a_certificate_is_renewed_with_a_new_key_and_the_same_names() {
    let world = World::new();
    let held = world.holder("node/n1");
    let due = held.certificate.validity().renewal();
    assert!(!held.certificate.renewal_is_due(due.minus(1)) && held.certificate.renewal_is_due(due));
    let grant = Grant::renewal(&held.certificate, 90 * DAY);
    let key = Key::generate().unwrap();
    let request = request(&key, &grant.identity, &grant.addresses, &grant.dns_names).unwrap();
    let renewed = world.authority.issue(&request, &grant, &world.revoked, due).unwrap();
    assert_eq!(
        (renewed.identity(), renewed.key()),
        (held.certificate.identity(), &key.public())
    );
    assert_eq!(renewed.dns_names(), held.certificate.dns_names());
    assert!(renewed.validity().until > held.certificate.validity().until);
}

#[test]
fn an_endorsement_for_one_cluster_proves_nothing_in_another_that_shares_the_keys() {
    let make = |number, key: &Key, from| {
        let key = Key::from_pkcs8_der(key.pkcs8_der().secret_pkcs8_der()).unwrap();
        Authority::make(
            cluster(number),
            key,
            [1; 16],
            Validity {
                from,
                until: NOW.plus(DAY),
            },
        )
        .unwrap()
    };
    let (first, second) = (Key::generate().unwrap(), Key::generate().unwrap());
    let (earlier, later) = (make(1, &first, NOW), make(1, &second, NOW));
    let (earlier_there, later_there) = (make(2, &first, NOW), make(2, &second, NOW));
    let endorsement = earlier.endorse(later.certificate(), NOW).unwrap();
    let proves =
        |earlier: &Authority, later: &Authority| endorsement.proves(earlier.certificate(), later.certificate(), NOW);
    assert!(proves(&earlier, &later));
    assert!(
        !proves(&earlier_there, &later_there) && !proves(&earlier, &later_there) && !proves(&earlier_there, &later)
    );
    // Nor before the later authority's time.
    let tomorrow = make(1, &second, NOW.plus(DAY));
    let endorsement = earlier.endorse(tomorrow.certificate(), NOW).unwrap();
    assert!(!endorsement.proves(earlier.certificate(), tomorrow.certificate(), NOW));
    assert!(endorsement.proves(earlier.certificate(), tomorrow.certificate(), NOW.plus(DAY)));
}

#[test]
fn who_joins_again_after_being_revoked_gets_a_certificate_that_counts() {
    let mut world = World::new();
    let before = world.holder("node/n1");
    let subject = before.certificate.identity().who.subject();
    world.revoked = world.revoked.and(Target::Subject(subject), "gone", NOW).unwrap();
    let trust = world.trust();
    assert!(
        trust
            .verify(&before.certificate.der(), Use::Asking, NOW.plus(2))
            .is_err()
    );
    let again = world.holder_at("node/n1", NOW.plus(1));
    assert!(trust.verify(&again.certificate.der(), Use::Asking, NOW.plus(2)).is_ok());
}

#[test]
fn the_file_of_the_revoked_names_the_serial_numbers_given() {
    use rustls::pki_types::pem::SectionKind;
    let world = World::new();
    let (gone, stays) = (
        world.holder("node/n1").certificate.serial(),
        world.holder("node/n2").certificate.serial(),
    );
    assert_ne!(gone, stays);
    assert_eq!(gone.to_string().parse(), Ok(gone));
    for (revoked, number) in [(vec![], 0), (vec![(gone, NOW)], u64::MAX)] {
        let text = world.authority.revocation_file(&revoked, number, NOW).unwrap();
        let der = pem::one(SectionKind::Crl, &text, 10_000).unwrap();
        let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&der).unwrap();
        let named: Vec<&[u8]> = list
            .iter_revoked_certificates()
            .map(|entry| entry.raw_serial())
            .collect();
        assert_eq!(
            named,
            revoked
                .iter()
                .map(|(serial, _)| serial.bytes().as_slice())
                .collect::<Vec<_>>()
        );
        let (tbs, signature) = (list.tbs_cert_list.as_ref(), &list.signature_value.data);
        assert!(world.authority.certificate().key().verifies(tbs, signature));
    }
}

#[test]
fn a_revoked_key_gets_no_new_certificate() {
    let mut world = World::new();
    let held = world.holder("node/n1");
    let key = Target::Key(held.key.public().fingerprint());
    world.revoked = world.revoked.and(key, "stolen", NOW).unwrap();
    let granted = grant(&world, "node/n1");
    let request = request(&held.key, &granted.identity, &[], &[]).unwrap();
    assert_eq!(issue(&world, &request, &granted), Err(AuthorityError::RevokedKey));
}

#[test]
fn a_request_with_any_bit_changed_is_refused() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let granted = grant(&world, "node/n1");
    let request = request(&key, &granted.identity, &[], &[]).unwrap();
    assert!(issue(&world, &request, &granted).is_ok());
    for place in 0..request.len() {
        for bit in 0..8 {
            let mut changed = request.clone();
            changed[place] ^= 1 << bit;
            assert!(issue(&world, &changed, &granted).is_err(), "bit {bit} of byte {place}");
        }
    }
}

#[test]
fn what_is_asked_can_be_read_before_it_is_granted() {
    let world = World::new();
    let key = Key::generate().unwrap();
    let wanted = identity(world.cluster(), "node/n1");
    let addresses = vec!["10.1.1.1".parse().unwrap()];
    let (asking, asked) = asked(&request(&key, &wanted, &addresses, &[]).unwrap()).unwrap();
    assert_eq!(
        (asking, asked.identity, asked.addresses),
        (key.public(), wanted, addresses)
    );
}

#[test]
fn too_many_names_or_names_that_are_none_are_not_asked_for() {
    let key = Key::generate().unwrap();
    let wanted = identity(cluster(1), "node/n1");
    let many: Vec<IpAddr> = (0..=u8::try_from(MAX_NAMES).unwrap())
        .map(|n| IpAddr::from([10, 0, 0, n]))
        .collect();
    assert_eq!(request(&key, &wanted, &many, &[]), Err(AuthorityError::TooManyNames));
    for name in ["*.example", "a b", "", "a..b"] {
        assert!(
            matches!(
                request(&key, &wanted, &[], &[name.into()]),
                Err(AuthorityError::NotDnsName { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn an_authority_and_a_trust_of_two_clusters_share_nothing() {
    let (here, there) = (World::new(), World::of(cluster(2)));
    let trust = Trust::new(there.bundle.clone(), there.revoked.clone()).unwrap();
    assert!(
        trust
            .verify(&here.holder("node/n1").certificate.der(), Use::Asking, NOW)
            .is_err()
    );
}

proptest! {
    #[test]
    fn no_bytes_break_the_reader_of_requests(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = asked(&bytes);
    }

    #[test]
    fn whoever_is_granted_something_is_who_was_asked_for(name in "[a-z0-9]{1,20}", role in 0_usize..3) {
        let world = World::new();
        let name: Name = name.parse().unwrap();
        let who = [Who::Node as fn(Name) -> Who, Who::Server, Who::Controller][role](name);
        let granted = Grant::new(Identity::new(world.cluster(), who), DAY);
        let key = Key::generate().unwrap();
        let certificate = issue(&world, &request(&key, &granted.identity, &[], &[]).unwrap(), &granted).unwrap();
        prop_assert_eq!(certificate.identity(), &granted.identity);
        prop_assert_eq!(certificate.key(), &key.public());
        prop_assert!(world.trust().verify(&certificate.der(), Use::Asking, NOW).is_ok());
    }
}
