use super::*;
use crate::keys::ResourceKey;
use crate::kinds::Kind;
use crate::names::Slot;

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

#[test]
fn a_record_of_a_newer_release_is_refused_with_the_remedy() {
    let marker = ClusterMarker {
        network: None,
        schema_version: SchemaVersion::default(),
        id: cluster(),
        restore_epoch: 0,
        moved: None,
        accepted_revision: None,
    };
    let text = String::from_utf8(marker.encode()).expect("JSON is UTF-8");
    assert_eq!(
        ClusterMarker::decode(text.as_bytes()).expect("what was written"),
        marker
    );
    let newer = text.replace("\"schemaVersion\":1", "\"schemaVersion\":2");
    let error = ClusterMarker::decode(newer.as_bytes()).expect_err("a newer version");
    let RecordError::Json { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("upgrade reeve"), "{source}");
}

#[test]
fn a_record_over_its_limit_is_not_even_parsed() {
    let bytes = vec![b' '; 20 * KIB];
    assert!(matches!(
        ClusterMarker::decode(&bytes),
        Err(RecordError::TooLarge { .. })
    ));
}

#[test]
fn a_uid_depends_on_cluster_key_and_first_number_alone() {
    let key = ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: "web".parse().expect("a name"),
    };
    let uid = Uid::derive(&cluster(), &key, 1);
    assert_eq!(uid, Uid::derive(&cluster(), &key, 1));
    assert_ne!(uid, Uid::derive(&cluster(), &key, 2));
    assert_ne!(uid, Uid::derive(&ClusterId::from_random([8; 16]), &key, 1));
}

#[test]
fn the_digest_of_removals_does_not_depend_on_their_order() {
    let key = ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: "web".parse().expect("a name"),
    };
    let uid = Uid::derive(&cluster(), &key, 1);
    let (one, two) = (Slot::Index(1), Slot::Index(2));
    assert_eq!(
        Digest::of_removals([(&uid, &one), (&uid, &two)]),
        Digest::of_removals([(&uid, &two), (&uid, &one)])
    );
    assert_ne!(Digest::of_removals([(&uid, &one)]), Digest::of_removals([(&uid, &two)]));
}

/// A record from before files: it reads as it was, and is written again byte for byte, so that nothing takes it for another.
#[test]
fn an_accepted_service_of_an_older_release_is_the_same_to_this_one() {
    let bytes = br#"{"schemaVersion":1,"n":7,"uid":"0123456789abcdef0123456789abcdef","desiredRevision":9,"body":{"service":{"replicas":2,"container":{"image":"app:1","mounts":[{"type":"tmpfs","target":"/t"}]}}}}"#;
    let record = Accepted::decode(bytes).expect("an older record");
    let AcceptedBody::Service(spec) = &record.body else {
        panic!("{record:?}")
    };
    assert!(spec.container.files.is_empty());
    assert_eq!(record.encode(), bytes);
}
