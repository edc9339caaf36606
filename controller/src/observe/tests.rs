use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use schemas::records::{Addresses, Capacity, Engine, SchemaVersion};

use planner::cluster::DesiredBody;

use super::*;

/// A store by hand: keys, and the revision.
#[derive(Clone, Default)]
struct World {
    keys: BTreeMap<Vec<u8>, Arc<KeyValue>>,
    revision: i64,
    store: u64,
}

impl World {
    /// With a cluster's marker.
    fn cluster() -> Self {
        let mut world = Self {
            store: 1,
            ..Self::default()
        };
        world.put("cluster", &marker(0).encode());
        world
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        self.put_raw(format!("/reeve/{key}").as_bytes(), value, 0);
    }

    fn put_raw(&mut self, key: &[u8], value: &[u8], lease: i64) {
        self.revision += 1;
        let create_revision = self.keys.get(key).map_or(self.revision, |old| old.create_revision);
        let kv = KeyValue {
            key: key.to_vec(),
            value: Bytes::copy_from_slice(value),
            create_revision,
            mod_revision: self.revision,
            version: 1,
            lease,
        };
        self.keys.insert(key.to_vec(), Arc::new(kv));
    }

    fn delete(&mut self, key: &str) {
        self.revision += 1;
        self.keys.remove(format!("/reeve/{key}").as_bytes());
    }

    fn state(&self) -> State {
        State {
            revision: self.revision,
            cluster_id: self.store,
            went_back: None,
            keys: KeyMap::from_unsorted(self.keys.values().cloned().collect()),
        }
    }

    /// As after a re-list: the same keys and values, all of them new copies.
    fn relisted(&self) -> State {
        let copies = self.keys.values().map(|kv| Arc::new(KeyValue::clone(kv)));
        State {
            keys: KeyMap::from_unsorted(copies.collect()),
            ..self.state()
        }
    }
}

fn cluster_id() -> ClusterId {
    ClusterId::from_random([7; 16])
}

fn marker(restore_epoch: u64) -> ClusterMarker {
    ClusterMarker {
        network: Default::default(),
        schema_version: SchemaVersion::default(),
        id: cluster_id(),
        restore_epoch,
        moved: None,
        accepted_revision: None,
    }
}

fn facts(node: &str) -> Vec<u8> {
    let facts = NodeFacts {
        link: None,
        schema_version: SchemaVersion::default(),
        cluster: cluster_id(),
        node: node.parse().expect("a name"),
        capacity: Capacity::default(),
        addresses: Addresses::default(),
        engine: Engine::default(),
        agent_version: "0".to_owned(),
        roles: Vec::new(),
        sealing_key: None,
        labels: BTreeMap::new(),
    };
    facts.encode()
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn service(name: &str) -> String {
    format!("apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  container:\n    image: hello\n")
}

fn observed(world: &World) -> Observer {
    let mut observer = Observer::new(Root::default());
    observer.observe(&world.state()).expect("a cluster in order");
    observer
}

/// All that an observer says.
fn picture(observer: &Observer) -> String {
    let foreign: Vec<KeyNote> = observer.foreign().collect();
    let unreadable: Vec<KeyNote> = observer.unreadable().collect();
    format!(
        "{:#?}\n{foreign:#?}\n{unreadable:#?}\n{:?}",
        observer.snapshot(),
        observer.leader()
    )
}

fn a_cluster_in_order() -> World {
    let mut world = World::cluster();
    world.put("desired/default/service/web", service("web").as_bytes());
    world.put("nodes/n1", &facts("n1"));
    world
}

#[test]
fn a_valid_resource_is_read_as_yaml_and_as_json() {
    let mut world = a_cluster_in_order();
    let json = r#"{"apiVersion":"reeve/v1","kind":"Service","metadata":{"name":"api"},"spec":{"container":{"image":"hello"}}}"#;
    world.put("desired/default/service/api", json.as_bytes());
    let observer = observed(&world);
    let bodies: Vec<_> = observer.snapshot().desired.values().map(|entry| &entry.body).collect();
    assert!(
        matches!(bodies.as_slice(), [DesiredBody::Service(a), DesiredBody::Service(b)] if a == b),
        "{bodies:?}"
    );
    assert!(observer.snapshot().complete);
}

#[test]
fn garbage_at_every_class_of_keys_is_said_and_disturbs_nothing_else() {
    let deep = "[".repeat(100_000);
    let large = vec![b'x'; 2 << 20];
    let garbage: [&[u8]; 8] = [
        b"",
        b"\xff\xfe",
        b"null",
        b"{}",
        b"[1",
        br#"{"schemaVersion":99}"#,
        deep.as_bytes(),
        &large,
    ];
    let digest = "a".repeat(64);
    let classes = [
        "status/default/service/web".to_owned(),
        "status/_/node/n1".to_owned(),
        "accepted/default/service/web/1".to_owned(),
        "accepted/_/node/n9/1".to_owned(),
        "assignments/n1".to_owned(),
        "verdicts/n1".to_owned(),
        "cordons/n1".to_owned(),
        format!("acks/{digest}"),
        "acks/no-digest".to_owned(),
        "breaker".to_owned(),
        "nodes/n2".to_owned(),
        "reports/n1".to_owned(),
    ];
    let good = a_cluster_in_order();
    for class in &classes {
        for value in garbage {
            let mut world = good.clone();
            world.put(class, value);
            let mut observer = observed(&world);
            let shown = String::from_utf8_lossy(&value[..value.len().min(30)]).into_owned();
            // An empty breaker-like object may be a readable one; what is unreadable must be said.
            let said: Vec<KeyNote> = observer.unreadable().collect();
            assert_eq!(said.len(), 1, "{class} = {shown}: {said:?}");
            assert!(said[0].key.starts_with(&format!("/reeve/{class}")), "{said:?}");
            assert!(said[0].why.len() < 700, "{}", said[0].why);
            assert_eq!(observer.foreign_count(), 0);
            assert_eq!(observer.snapshot().desired.len(), 1, "{class} = {shown}");
            assert!(observer.snapshot().nodes.contains_key(&name("n1")), "{class} = {shown}");
            assert!(observer.snapshot().complete);
            world.delete(class);
            observer.observe(&world.state()).expect("a cluster in order");
            let mut clean = good.clone();
            clean.revision = world.revision;
            assert_eq!(
                picture(&observer),
                picture(&observed(&clean)),
                "{class} = {shown}: a trace is left"
            );
        }
    }
    for value in garbage {
        let mut world = good.clone();
        world.put("desired/default/service/api", value);
        let observer = observed(&world);
        let entry = observer.snapshot().desired.values().next().expect("the entry");
        let DesiredBody::Invalid(problems) = &entry.body else {
            panic!("{entry:?}")
        };
        assert!(!problems.is_empty());
        assert!(
            problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1),
            "{problems:?}"
        );
    }
}

#[test]
fn a_key_that_is_nothing_of_ours_is_noted_with_the_reason() {
    let mut world = a_cluster_in_order();
    for (key, word) in [
        (
            "desired/default/gadget/x",
            "`gadget` is no kind; known here: service, node",
        ),
        (
            "desired/default/service",
            "it is not `desired/<namespace>/<kind>/<name>`",
        ),
        (
            "desired/default/service/a/b",
            "it is not `desired/<namespace>/<kind>/<name>`",
        ),
        ("desired/default/service/UPPER", "`UPPER` is no name"),
        ("desired/_/service/web", "`_` is no namespace"),
        ("desired/default/node/n1", "a Node has no namespace"),
        ("assignments/1", "it is no key of Reeve's"),
        ("junk", "it is no key of Reeve's"),
    ] {
        let mut world = world.clone();
        world.put(key, b"anything");
        let mut observer = observed(&world);
        let notes: Vec<KeyNote> = observer.foreign().collect();
        assert_eq!(notes.len(), 1, "{key}");
        assert!(notes[0].why.starts_with(word), "{key}: {}", notes[0].why);
        assert_eq!(observer.snapshot().desired.len(), 1, "{key}");
        world.delete(key);
        observer.observe(&world.state()).expect("a cluster in order");
        assert_eq!(observer.foreign_count(), 0, "{key}");
    }
    world.put_raw(b"/reeve/desired/\xff\x1b[31m", b"x", 0);
    let observer = observed(&world);
    let note = observer.foreign().next().expect("a note").to_string();
    assert!(
        note.contains(r"\xff\x1b[31m") && note.chars().all(|c| !c.is_control()),
        "{note}"
    );
}

#[test]
fn a_resource_that_hangs_on_a_lease_is_invalid() {
    let mut world = World::cluster();
    world.put_raw(b"/reeve/desired/default/service/web", service("web").as_bytes(), 5);
    let observer = observed(&world);
    let entry = observer.snapshot().desired.values().next().expect("the entry");
    let DesiredBody::Invalid(problems) = &entry.body else {
        panic!("{entry:?}")
    };
    assert_eq!(problems[0].code, schemas::problem::Code::Leased);
}

#[test]
fn a_body_that_disagrees_with_its_key_is_invalid_at_its_place() {
    let mut world = World::cluster();
    world.put("desired/default/service/web", service("other").as_bytes());
    let observer = observed(&world);
    let entry = observer.snapshot().desired.values().next().expect("the entry");
    let DesiredBody::Invalid(problems) = &entry.body else {
        panic!("{entry:?}")
    };
    assert_eq!((problems[0].line, problems[0].column), (4, 9), "{problems:?}");
}

#[test]
fn a_session_without_a_lease_is_no_session() {
    let session = SessionRecord {
        schema_version: SchemaVersion::default(),
        cluster: cluster_id(),
        node: "n1".parse().expect("a name"),
        machine_id: "m".to_owned(),
        boot_id: "b".to_owned(),
        watermark: Default::default(),
    };
    let mut world = a_cluster_in_order();
    world.put_raw(b"/reeve/sessions/n1", &session.encode(), 9);
    assert!(observed(&world).snapshot().nodes[&name("n1")].session.is_some());
    world.put_raw(b"/reeve/sessions/n1", &session.encode(), 0);
    let observer = observed(&world);
    assert!(observer.snapshot().nodes[&name("n1")].session.is_none());
    assert_eq!(observer.unreadable_count(), 1);
}

#[test]
fn what_a_node_writes_about_another_is_not_believed() {
    let mut world = a_cluster_in_order();
    world.put("nodes/n2", &facts("n1"));
    let observer = observed(&world);
    let facts = observer.snapshot().nodes[&name("n2")].facts.as_ref().expect("facts");
    assert!(
        facts.value.as_ref().is_err_and(|why| why.contains("about `n1`")),
        "{facts:?}"
    );
}

#[test]
fn a_few_changes_decode_a_few_values() {
    let mut world = World::cluster();
    for n in 0..2_000 {
        world.put(&format!("nodes/n{n}"), &facts(&format!("n{n}")));
    }
    let mut observer = observed(&world);
    let before = observer.decoded();
    for n in 0..7 {
        world.put(&format!("nodes/n{n}"), &facts(&format!("n{n}")));
    }
    observer.observe(&world.state()).expect("a cluster in order");
    assert_eq!(observer.decoded() - before, 7);
    observer.observe(&world.relisted()).expect("a cluster in order");
    assert_eq!(
        observer.decoded() - before,
        7,
        "a re-list of the same values decodes nothing"
    );
}

#[test]
fn without_the_marker_nothing_is_decided() {
    let mut world = a_cluster_in_order();
    let mut observer = observed(&world);
    world.delete("cluster");
    assert_eq!(
        observer.observe(&world.state()),
        Err(Hold::NoCluster { root: Root::default() })
    );
    assert!(!observer.snapshot().complete);
    world.put("cluster", b"{}");
    assert!(matches!(
        observer.observe(&world.state()),
        Err(Hold::MarkerUnreadable { .. })
    ));
    world.put("cluster", &marker(0).encode());
    observer.observe(&world.state()).expect("a cluster in order");
    assert!(observer.snapshot().complete);
    let newer = String::from_utf8(marker(0).encode())
        .expect("JSON")
        .replace("\"schemaVersion\":1", "\"schemaVersion\":2");
    world.put("cluster", newer.as_bytes());
    let hold = observer.observe(&world.state()).expect_err("a newer release's");
    assert!(hold.to_string().contains("upgrade reeve"), "{hold}");
}

#[test]
fn another_cluster_and_a_moved_one_are_refused_for_good() {
    let mut world = a_cluster_in_order();
    let mut observer = observed(&world);
    let other = ClusterMarker {
        id: ClusterId::from_random([8; 16]),
        ..marker(0)
    };
    world.put("cluster", &other.encode());
    let hold = observer.observe(&world.state()).expect_err("another cluster's");
    assert!(
        matches!(hold, Hold::OtherCluster { .. }) && hold.is_for_good(),
        "{hold}"
    );
    let moved = ClusterMarker {
        moved: Some(schemas::records::Moved {
            to: vec!["http://new:2379".to_owned()],
        }),
        ..marker(0)
    };
    world.put("cluster", &moved.encode());
    let hold = observer.observe(&world.state()).expect_err("a moved cluster's");
    assert!(
        hold.remedy()
            .is_some_and(|text| text.contains("--etcd http://new:2379"))
            && hold.is_for_good(),
        "{hold}"
    );
}

#[test]
fn a_store_that_has_gone_back_is_held_until_a_person_accepts_it() {
    let old = a_cluster_in_order();
    let mut world = old.clone();
    world.put("nodes/n2", &facts("n2"));
    let mut observer = observed(&world);
    let mut back = old;
    assert!(matches!(observer.observe(&back.state()), Err(Hold::WentBack { .. })));
    // Also when it has caught up: what was lost is lost.
    for _ in 0..10 {
        back.put("nodes/n3", &facts("n3"));
    }
    assert!(matches!(observer.observe(&back.state()), Err(Hold::WentBack { .. })));
    assert!(
        matches!(observer.fresh().observe(&back.state()), Err(Hold::WentBack { .. })),
        "a fault in a pass forgets it"
    );
    back.put("cluster", &marker(1).encode());
    observer.observe(&back.state()).expect("accepted");
    assert!(observer.snapshot().complete);
    back.put("cluster", &marker(0).encode());
    assert!(
        matches!(observer.observe(&back.state()), Err(Hold::WentBack { .. })),
        "the restore epoch never falls"
    );
}

#[test]
fn what_only_the_reflector_saw_of_going_back_holds_too() {
    let mut world = a_cluster_in_order();
    let mut observer = observed(&world);
    world.put("nodes/n2", &facts("n2"));
    let went_back = Some(Position {
        cluster_id: 1,
        revision: 900,
    });
    let state = State {
        went_back,
        ..world.state()
    };
    assert_eq!(observer.observe(&state), Err(Hold::WentBack { seen: 900, epoch: 0 }));
    world.put("cluster", &marker(1).encode());
    for _ in 0..2 {
        let state = State {
            went_back,
            ..world.state()
        };
        observer.observe(&state).expect("accepted");
    }
}

#[test]
fn an_accepted_older_store_is_read_anew_also_where_revisions_are_the_same() {
    let mut world = a_cluster_in_order();
    let mut other = world.clone();
    world.put("desired/default/service/web", b"was lost");
    other.put("desired/default/service/web", service("web").as_bytes());
    let mut observer = observed(&world);
    other.put("cluster", &marker(1).encode());
    observer.observe(&other.state()).expect("accepted");
    assert_eq!(picture(&observer), picture(&observed(&other)));
}

#[test]
fn an_ack_that_is_overwritten_with_garbage_is_no_ack() {
    let digest = Digest::of(b"removals");
    let ack = Ack {
        schema_version: SchemaVersion::default(),
        digest: digest.clone(),
        count: 1,
        by: "me@here".to_owned(),
    };
    let mut world = World::cluster();
    world.put(&format!("acks/{digest}"), &ack.encode());
    let mut observer = observed(&world);
    assert_eq!(observer.snapshot().acks.len(), 1);
    world.put(&format!("acks/{digest}"), b"garbage");
    observer.observe(&world.state()).expect("a cluster in order");
    assert!(observer.snapshot().acks.is_empty());
    let other = Digest::of(b"other removals");
    world.put(&format!("acks/{other}"), &ack.encode());
    observer.observe(&world.state()).expect("a cluster in order");
    assert!(observer.snapshot().acks.is_empty(), "an ack under the key of another");
}

#[test]
fn an_unreadable_breaker_counts_as_spent() {
    let mut world = World::cluster();
    world.put("breaker", b"garbage");
    assert_eq!(observed(&world).snapshot().breaker.spent, ALL_SPENT);
    world.delete("breaker");
    assert_eq!(observed(&world).snapshot().breaker, Breaker::default());
}

#[test]
fn a_list_gives_what_the_leader_sees() {
    let mut world = a_cluster_in_order();
    world.put(
        "election/controller",
        br#"{"holder":"me at 10.0.0.1:9464","lease":"1"}"#,
    );
    world.put("junk", b"");
    let kvs: Vec<KeyValue> = world.keys.values().map(|kv| KeyValue::clone(kv)).collect();
    let listing = Listing {
        revision: world.revision,
        cluster_id: 1,
        kvs,
    };
    let seen = snapshot_from_listing(&Root::default(), &listing).expect("a cluster in order");
    assert!(seen.snapshot.complete);
    assert_eq!(seen.snapshot.epoch, world.revision - 1);
    assert_eq!(
        (seen.foreign.len(), seen.leader.as_deref()),
        (1, Some("me at 10.0.0.1:9464"))
    );
    let empty = Listing {
        revision: 1,
        cluster_id: 1,
        kvs: Vec::new(),
    };
    let hold = snapshot_from_listing(&Root::default(), &empty).expect_err("no cluster");
    assert!(hold.remedy().is_some_and(|text| text.contains("reeve init")));
}

/// Keys of every class, so that random histories meet on them.
fn pool() -> Vec<String> {
    let mut keys: Vec<String> = [
        "breaker",
        "election/controller",
        "junk",
        "desired/default/gadget/x",
        "acks/x",
        "events/default/1",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.push(format!("acks/{}", "a".repeat(64)));
    for name in ["n1", "n2"] {
        for class in ["nodes", "reports", "sessions", "assignments", "verdicts", "cordons"] {
            keys.push(format!("{class}/{name}"));
        }
        for class in ["desired", "status"] {
            keys.push(format!("{class}/default/service/{name}"));
            keys.push(format!("{class}/_/node/{name}"));
        }
        keys.push(format!("accepted/default/service/{name}/1"));
        keys.push(format!("accepted/default/service/{name}/2"));
    }
    keys.push("status/_/node/7".to_owned());
    keys
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_way_to_a_state_leaves_no_trace_in_the_snapshot(
        steps in prop::collection::vec((0_usize..64, 0_usize..6, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let pool = pool();
        let mut world = World::cluster();
        let mut observer = observed(&world);
        for (key, value, look, relist) in steps {
            let key = &pool[key % pool.len()];
            match value {
                0 => world.delete(key),
                1 => world.put(key, b"garbage"),
                2 => world.put(key, &facts("n1")),
                3 => world.put(key, service("n1").as_bytes()),
                4 => world.put(key, br#"{"schemaVersion":1,"spent":3}"#),
                _ => world.put_raw(format!("/reeve/{key}").as_bytes(), b"{}", 4),
            }
            if look {
                let state = if relist { world.relisted() } else { world.state() };
                observer.observe(&state).expect("a cluster in order");
            }
        }
        observer.observe(&world.state()).expect("a cluster in order");
        prop_assert_eq!(picture(&observer), picture(&observed(&world)));
        let known: BTreeSet<_> = observer.snapshot().nodes.keys().collect();
        prop_assert!(known.len() <= 2);
    }
}
