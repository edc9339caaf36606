use proptest::prelude::*;

use super::*;
use crate::authority::Authority;
use crate::key::Key;
use crate::testing::{DAY, NOW, World, cluster, identity};

fn who(text: &str) -> Who {
    identity(cluster(1), text).who
}

struct Case {
    world: World,
    token: JoinToken,
    record: Record,
    key: PublicKey,
}

fn case(names: Names, uses: u32) -> Case {
    let world = World::new();
    let token = JoinToken::generate(world.authority.certificate().fingerprint()).unwrap();
    let record = Record::of(&token, world.cluster(), Admits::Node, names, uses, NOW.plus(DAY));
    Case {
        world,
        token,
        record,
        key: Key::generate().unwrap().public(),
    }
}

#[test]
fn a_token_survives_its_text() {
    let install = InstallToken::generate(NOW).unwrap();
    let text = install.to_text();
    assert_eq!(text.len(), 70);
    let again: InstallToken = format!("  {}\n", text.as_str()).parse().unwrap();
    assert_eq!(again.secret, install.secret);
    assert_eq!(again.created(), NOW);
    let join = JoinToken::generate(Fingerprint::of(b"x")).unwrap();
    assert_eq!(join.to_text().len(), 132);
    let again: JoinToken = join.to_text().parse().unwrap();
    assert_eq!(
        (again.authority, again.id, again.secret.0),
        (join.authority, join.id, join.secret.0)
    );
}

#[test]
fn every_single_wrong_character_is_told_as_a_typing_error() {
    for text in [
        InstallToken::generate(NOW).unwrap().to_text(),
        JoinToken::generate(Fingerprint::of(b"x")).unwrap().to_text(),
    ] {
        let beginning = text.rfind('1').unwrap() + 1;
        for place in beginning..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[place] = if wrong[place] == b'a' { b'b' } else { b'a' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(
                wrong.parse::<Token>().unwrap_err(),
                TokenError::Typo,
                "character {place}"
            );
        }
    }
}

#[test]
fn two_characters_swapped_are_told_as_a_typing_error() {
    let text = InstallToken::generate(NOW).unwrap().to_text();
    for place in 6..text.len() - 1 {
        let mut wrong = text.as_bytes().to_vec();
        wrong.swap(place, place + 1);
        if wrong != text.as_bytes() {
            assert_eq!(
                String::from_utf8(wrong).unwrap().parse::<InstallToken>().unwrap_err(),
                TokenError::Typo
            );
        }
    }
}

#[test]
fn a_cut_token_a_wrong_character_and_the_other_kind_are_told_apart() {
    let install = InstallToken::generate(NOW).unwrap().to_text().to_string();
    let join = JoinToken::generate(Fingerprint::of(b"x"))
        .unwrap()
        .to_text()
        .to_string();
    let of = |text: &str| text.parse::<InstallToken>().unwrap_err();
    assert_eq!(of(&install[..69]), TokenError::Length { found: 69, wanted: 70 });
    assert_eq!(
        of(&(install[..69].to_owned() + "0")),
        TokenError::Character { place: 70 }
    );
    assert_eq!(of(&install.to_uppercase()), TokenError::NotToken);
    assert_eq!(of(&join), TokenError::IsJoin);
    assert_eq!(install.parse::<JoinToken>().unwrap_err(), TokenError::IsInstall);
    assert!(matches!(join.parse::<Token>(), Ok(Token::Join(_))));
    assert!(matches!(install.parse::<Token>(), Ok(Token::Install(_))));
    assert_eq!("hello".parse::<Token>().unwrap_err(), TokenError::NotToken);
}

#[test]
fn no_token_shows_its_secret_when_printed_nor_in_an_error() {
    let install = InstallToken::generate(NOW).unwrap();
    let join = install.join(Fingerprint::of(b"x"));
    let record = Record::of(&join, cluster(1), Admits::Node, Names::Any, 1, NOW);
    let shown = format!("{install:?} {join:?} {record:?} {:?}", Token::Install(install.clone()));
    for secret in [&install.secret, &join.secret.0] {
        let digits: Vec<String> = secret.iter().map(u8::to_string).collect();
        assert!(!shown.contains(&HEXLOWER.encode(secret)) && !shown.contains(&digits[..4].join(", ")));
    }
    let text = install.to_text();
    assert!(!shown.contains(&text[6..20]));
    let error = format!("{:?}", text[..60].parse::<InstallToken>());
    assert!(!error.contains(&text[6..20]));
    assert!(
        !serde_json::to_string(&record)
            .unwrap()
            .contains(&HEXLOWER.encode(&join.secret.0))
    );
}

#[test]
fn what_is_derived_from_an_install_token_tells_nothing_of_the_rest() {
    let token = InstallToken::generate(NOW).unwrap();
    let pin = Authority::derived(&token).unwrap().certificate().fingerprint();
    let join = token.join(pin);
    assert_eq!(join.authority(), pin);
    assert_eq!(join.to_text(), token.join(pin).to_text());
    let values = [
        token.store_token(),
        HEXLOWER.encode(&join.secret.0),
        token.cluster().to_string(),
        join.id.to_string(),
    ];
    for (index, value) in values.iter().enumerate() {
        assert!(
            values
                .iter()
                .skip(index + 1)
                .all(|other| !value.contains(other.as_str()) && !other.contains(value.as_str()))
        );
    }
    let mut other = token.clone();
    other.created += 1;
    assert_ne!(other.cluster(), token.cluster());
}

#[test]
fn a_token_admits_as_often_as_it_was_made_for() {
    let Case { token, record, key, .. } = case(Names::Any, 2);
    let first = record.admit(&token, &who("node/n1"), &key, NOW).unwrap();
    let other = Key::generate().unwrap().public();
    let second = first.admit(&token, &who("node/n2"), &other, NOW).unwrap();
    assert_eq!(second.uses_left, 0);
    assert_eq!(second.admit(&token, &who("node/n3"), &key, NOW), Err(Refusal::UsedUp));
}

#[test]
fn who_crashed_in_the_middle_of_joining_may_ask_again_and_a_copy_of_it_may_not() {
    let Case { token, record, key, .. } = case(Names::Any, 1);
    let joined = record.admit(&token, &who("node/n1"), &key, NOW).unwrap();
    assert_eq!(joined.admit(&token, &who("node/n1"), &key, NOW), Ok(joined.clone()));
    let other = Key::generate().unwrap().public();
    assert_eq!(
        joined.admit(&token, &who("node/n1"), &other, NOW),
        Err(Refusal::NameTaken {
            name: "n1".parse().unwrap()
        })
    );
}

#[test]
fn a_seeds_token_admits_the_seed_and_the_node_on_its_host_though_they_have_one_name() {
    let Case { world, token, key, .. } = case(Names::Any, 1);
    let only = Names::Only(["n3".parse().unwrap()].into());
    let record = Record::of(&token, world.cluster(), Admits::Server, only, 2, NOW);
    let admit = |record: &Record, rest: &str, key: &PublicKey| record.admit(&token, &who(rest), key, NOW);
    let seed = admit(&record, "server/n3", &key).unwrap();
    let node_key = Key::generate().unwrap().public();
    let both = admit(&seed, "node/n3", &node_key).unwrap();
    // Asked again after a crash, and asked by a copy.
    assert_eq!(admit(&both, "server/n3", &key), Ok(both.clone()));
    assert!(matches!(
        admit(&both, "server/n3", &node_key),
        Err(Refusal::NameTaken { .. })
    ));
    assert_eq!(admit(&both, "node/n4", &node_key), Err(Refusal::UsedUp));
    assert!(matches!(
        admit(&record, "server/n4", &key),
        Err(Refusal::OtherName { .. })
    ));
    for other in ["controller/n3", "person/n3?admin"] {
        assert!(
            matches!(admit(&record, other, &key), Err(Refusal::OtherRole { .. })),
            "{other}"
        );
    }
}

#[test]
fn every_reason_to_refuse_a_token_is_told_apart() {
    let Case {
        world,
        token,
        record,
        key,
    } = case(Names::Only(["n1".parse().unwrap()].into()), 1);
    let admit = |record: &Record, token: &JoinToken, rest: &str, now| record.admit(token, &who(rest), &key, now);
    assert!(admit(&record, &token, "node/n1", NOW.plus(DAY)).is_ok());

    let mut wrong = token.clone();
    wrong.secret.0[31] ^= 1;
    assert_eq!(admit(&record, &wrong, "node/n1", NOW), Err(Refusal::WrongSecret));
    let elsewhere = JoinToken::generate(Fingerprint::of(b"other")).unwrap();
    assert_eq!(admit(&record, &elsewhere, "node/n1", NOW), Err(Refusal::OtherCluster));
    let mut unknown = token.clone();
    unknown.id.0[0] ^= 1;
    assert_eq!(
        admit(&record, &unknown, "node/n1", NOW),
        Err(Refusal::UnknownToken { id: unknown.id })
    );
    let expired = Refusal::Expired { at: record.expires };
    assert_eq!(admit(&record, &token, "node/n1", NOW.plus(DAY + 1)), Err(expired));
    let role = Refusal::OtherRole {
        admitted: Role::Node,
        asked: Role::Server,
    };
    assert_eq!(admit(&record, &token, "server/n1", NOW), Err(role));
    let name = Refusal::OtherName {
        asked: "n2".parse().unwrap(),
    };
    assert_eq!(admit(&record, &token, "node/n2", NOW), Err(name));

    assert_eq!(unrecorded(&elsewhere, &world.bundle), Refusal::OtherCluster);
    assert_eq!(
        unrecorded(&unknown, &world.bundle),
        Refusal::UnknownToken { id: unknown.id }
    );
}

#[test]
fn a_person_is_admitted_with_exactly_the_rights_that_the_token_gives() {
    let Case { world, token, key, .. } = case(Names::Any, 1);
    let shop: Rights = "namespaces=shop".parse().unwrap();
    let record = Record::of(
        &token,
        world.cluster(),
        Admits::Person(shop.clone()),
        Names::Any,
        1,
        NOW,
    );
    let json = serde_json::to_string(&record).unwrap();
    assert!(json.contains(r#""admits":{"person":"namespaces=shop"}"#), "{json}");
    assert!(
        record
            .admit(&token, &who("person/anna?namespaces=shop"), &key, NOW)
            .is_ok()
    );
    let refusal = Refusal::OtherRights {
        admitted: shop,
        asked: Rights::Admin,
    };
    assert_eq!(record.admit(&token, &who("person/anna?admin"), &key, NOW), Err(refusal));
    assert!(matches!(
        record.admit(&token, &who("node/anna"), &key, NOW),
        Err(Refusal::OtherRole { .. })
    ));
}

#[test]
fn who_does_not_know_the_secret_learns_nothing_of_the_record() {
    let Case { token, record, key, .. } = case(Names::Only(["n1".parse().unwrap()].into()), 0);
    let mut wrong = token.clone();
    wrong.secret.0[0] ^= 1;
    for (rest, now) in [
        ("node/n1", NOW),
        ("node/n2", NOW),
        ("server/n1", NOW),
        ("node/n1", NOW.plus(2 * DAY)),
    ] {
        assert_eq!(record.admit(&wrong, &who(rest), &key, now), Err(Refusal::WrongSecret));
    }
}

#[test]
fn a_record_that_the_authority_did_not_sign_admits_nobody() {
    let Case {
        world, token, record, ..
    } = case(Names::Any, 1);
    let bytes = record.signed_by(&world.authority);
    assert_eq!(Record::verified(&bytes, &world.bundle, NOW), Ok(record.clone()));
    // Whoever can write the store makes it say more, or makes a token of their own.
    let more = String::from_utf8(bytes.clone())
        .unwrap()
        .replace("\"admits\":\"node\"", "\"admits\":\"controller\"");
    assert_ne!(more.as_bytes(), bytes);
    let unproven = |reason| Err(RecordError::Unproven(reason));
    assert_eq!(
        Record::verified(more.as_bytes(), &world.bundle, NOW),
        unproven(Unproven::BadSignature)
    );
    let stranger = World::new();
    let own = Record::of(&token, world.cluster(), Admits::Controller, Names::Any, 1, NOW);
    assert_eq!(
        Record::verified(&own.signed_by(&stranger.authority), &world.bundle, NOW),
        unproven(Unproven::OtherSigner)
    );
    let list = world.revoked.signed_by(&world.authority);
    assert_eq!(
        Record::verified(&list, &world.bundle, NOW),
        unproven(Unproven::BadSignature)
    );
    let newer = Record {
        version: 2,
        ..record.clone()
    }
    .signed_by(&world.authority);
    assert_eq!(
        Record::verified(&newer, &world.bundle, NOW),
        Err(RecordError::NotRecord)
    );
    let elsewhere = Record {
        cluster: cluster(2),
        ..record
    }
    .signed_by(&world.authority);
    let refused = Record::verified(&elsewhere, &world.bundle, NOW);
    assert_eq!(refused, Err(RecordError::OtherCluster { found: cluster(2) }));
}

#[test]
fn the_install_tokens_join_is_admitted_by_its_record() {
    let install = InstallToken::generate(NOW).unwrap();
    let authority = Authority::derived(&install).unwrap();
    let join = install.join(authority.certificate().fingerprint());
    let record = Record::of(&join, install.cluster(), Admits::Node, Names::Any, 1, NOW);
    assert!(
        record
            .admit(&join, &who("node/n1"), &Key::generate().unwrap().public(), NOW)
            .is_ok()
    );
}

proptest! {
    #[test]
    fn a_record_survives_its_file(names in proptest::collection::btree_set("[a-z]{1,9}", 0..5), uses in 0..5_u32) {
        let names = match names.len() {
            0 => Names::Any,
            _ => Names::Only(names.iter().map(|name| name.parse().unwrap()).collect()),
        };
        let Case { world, token, record, key } = case(names, uses);
        let record = record.admit(&token, &who("node/a"), &key, NOW).unwrap_or(record);
        prop_assert_eq!(Record::verified(&record.signed_by(&world.authority), &world.bundle, NOW), Ok(record));
    }

    #[test]
    fn no_signed_bytes_break_the_reader_of_records(document in proptest::collection::vec(any::<u8>(), 0..300)) {
        let world = World::new();
        let signature = world.authority.sign(WORD, &document);
        prop_assert_eq!(Record::verified(&sign::attach(document, &signature), &world.bundle, NOW), Err(RecordError::NotRecord));
    }

    #[test]
    fn no_text_breaks_the_reader(text in "(reeve1|reevejoin1)?([a-z2-7]{0,130}|\\PC{0,60})") {
        prop_assert!(text.parse::<Token>().is_err());
        let _ = text.parse::<TokenId>();
    }
}

#[test]
fn a_token_for_one_person_tells_its_holder_alone_whom_it_was_made_for() {
    let Case {
        world,
        token,
        record: for_nodes,
        ..
    } = case(Names::Any, 1);
    let made = |names: Names| {
        let rights = "operator+exec".parse().unwrap();
        Record::of(&token, world.cluster(), Admits::Person(rights), names, 1, NOW.plus(DAY))
    };
    let one = made(Names::Only(["anna".parse().unwrap()].into()));
    assert_eq!(one.invites(&token, NOW), Ok(who("person/anna?operator+exec")));
    let mut wrong = token.clone();
    wrong.secret.0[0] ^= 1;
    assert_eq!(one.invites(&wrong, NOW), Err(Refusal::WrongSecret));
    assert!(matches!(
        one.invites(&token, NOW.plus(2 * DAY)),
        Err(Refusal::Expired { .. })
    ));
    for record in [for_nodes, made(Names::Any)] {
        assert!(matches!(record.invites(&token, NOW), Err(Refusal::OtherRole { .. })));
    }
}
