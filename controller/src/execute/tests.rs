use std::sync::Arc;

use planner::cluster::{Snapshot, Stored};
use runtime::memory::WriteFault;
use runtime::{LeaderOptions, Leadership, MemoryStore, Prefix, Shutdown, campaign};
use schemas::config_file::FileDigest;
use schemas::kinds::Kind;
use schemas::names::Slot;
use schemas::records::{
    Accepted, AcceptedBody, AssignedState, ClusterId, ClusterMarker, ConditionStatus, ConditionType, Counts, Digest,
    Held, Order, SchemaVersion, ServiceStatus, Uid, Verdict,
};

use super::*;
use crate::observe::State;

const NOW: &str = "2026-01-01T00:00:00Z";

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

fn service(name: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: name.parse().expect("a name"),
    }
}

fn node() -> NodeName {
    "n1".parse().expect("a name")
}

/// A store with a marker, its leader, and what an observer sees of it.
struct Desk {
    store: MemoryStore,
    leadership: Leadership,
    observer: Observer,
}

impl Desk {
    async fn new() -> Self {
        let store = MemoryStore::new();
        let marker = ClusterMarker {
            network: Default::default(),
            schema_version: SchemaVersion::default(),
            id: cluster(),
            restore_epoch: 0,
            moved: None,
            accepted_revision: None,
        };
        store.put("/reeve/cluster", marker.encode());
        let options = LeaderOptions::new(Prefix::new("/reeve/election/").expect("a prefix"), "test");
        let leadership = campaign(&store, &options, &Shutdown::new())
            .await
            .expect("a store")
            .expect("a leadership");
        let mut desk = Self {
            store,
            leadership,
            observer: Observer::new(Root::default()),
        };
        desk.look();
        desk
    }

    fn look(&mut self) {
        let kvs = self
            .store
            .dump()
            .into_iter()
            .filter(|kv| !kv.key.starts_with(b"/reeve/events/"));
        let keys = runtime::KeyMap::from_unsorted(kvs.map(Arc::new).collect());
        let state = State {
            revision: self.store.revision(),
            cluster_id: 1,
            went_back: None,
            keys,
        };
        self.observer.observe(&state).expect("a cluster in order");
    }

    fn prepare(&self, plan: &Plan) -> Batch {
        let fence = Fence::leader(&self.leadership);
        prepare(&Base::new(&self.observer, &fence), self.observer.snapshot(), plan, NOW)
    }

    async fn execute(&mut self, plan: &Plan) -> Committed {
        let batch = self.prepare(plan);
        let done = batch.commit(&self.store, true).await;
        self.look();
        done
    }

    fn snapshot(&self) -> &Snapshot {
        self.observer.snapshot()
    }
}

fn nothing() -> Plan {
    Plan {
        network: Default::default(),
        holders: Vec::new(),
        changes: Vec::new(),
        accepted: Vec::new(),
        forgotten: Vec::new(),
        assignments: Vec::new(),
        statuses: BTreeMap::new(),
        ended: Vec::new(),
        breaker: Breaker::default(),
        spent_acks: Vec::new(),
        removals: Vec::new(),
        strays: BTreeSet::new(),
        notices: Vec::new(),
    }
}

fn deletion(name: &str) -> AcceptedWrite {
    let record = Accepted {
        schema_version: SchemaVersion::default(),
        n: 1,
        uid: Uid::derive(&cluster(), &service(name), 1),
        desired_revision: 0,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        body: AcceptedBody::Deleted,
    };
    AcceptedWrite {
        key: service(name),
        record,
        guard: Rests::DesiredAbsent(service(name)),
    }
}

fn instance(name: &str, state: AssignedState) -> Assigned {
    Assigned {
        address: None,
        seeds: Vec::new(),
        token: None,
        namespace: "default".parse().expect("a name"),
        kind: Kind::Service,
        workload: name.parse().expect("a name"),
        uid: Uid::derive(&cluster(), &service(name), 1),
        slot: Slot::Index(1),
        state,
        n: 1,
        digest: Digest::of(b"spec"),
        ports: Vec::new(),
        image: None,
        from: Vec::new(),
    }
}

fn assigns(generation: u64, stored: i64, instances: Vec<Assigned>, guards: Vec<Rests>) -> AssignmentWrite {
    let assignment = Assignment {
        network: Default::default(),
        virtual_ips: Default::default(),
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: node(),
        order: Order {
            restore_epoch: 0,
            epoch: 1,
            generation,
        },
        instances,
    };
    AssignmentWrite {
        assignment,
        stored_mod_revision: stored,
        guards,
        grants: Vec::new(),
        granted: Vec::new(),
    }
}

fn assigned(store: &MemoryStore) -> Option<Assignment> {
    store
        .peek("/reeve/assignments/n1")
        .map(|kv| Assignment::decode(&kv.value).expect("what we wrote"))
}

fn status(reason: &str, ready: u32) -> Status {
    Status::Service(std::sync::Arc::new(ServiceStatus {
        schema_version: SchemaVersion::default(),
        observed_revision: 1,
        generation: None,
        uid: None,
        counts: Counts {
            ready,
            ..Counts::default()
        },
        conditions: vec![Condition {
            kind: ConditionType::Ready,
            status: ConditionStatus::False,
            reason: reason.to_owned(),
            message: "m".to_owned(),
            since: None,
        }],
        problems: Vec::new(),
        refusals: Vec::new(),
        images: Vec::new(),
    }))
}

#[tokio::test]
async fn a_small_pass_is_one_write_of_the_store() {
    let mut desk = Desk::new().await;
    let before = desk.store.revision();
    let plan = Plan {
        accepted: vec![deletion("web")],
        assignments: vec![assigns(1, 0, vec![instance("web", AssignedState::Present)], Vec::new())],
        ..nothing()
    };
    let done = desk.execute(&plan).await;
    assert_eq!(
        (done.revision, desk.store.revision()),
        (Some(before + 1), before + 1),
        "{done:?}"
    );
    assert_eq!(done.counts[&(Class::Accepted, "committed")], 1);
    assert!(assigned(&desk.store).is_some());
}

#[tokio::test]
async fn an_assignment_waits_for_the_accepted_record_it_refers_to() {
    let mut desk = Desk::new().await;
    let plan = Plan {
        accepted: vec![deletion("web"), deletion("api")],
        assignments: vec![assigns(1, 0, vec![instance("web", AssignedState::Present)], Vec::new())],
        ..nothing()
    };
    // Someone put the resource that the plan took as deleted.
    desk.store.put("/reeve/desired/default/service/web", "anything");
    for together in [true, false] {
        let done = desk.prepare(&plan).commit(&desk.store, together).await;
        assert!(done.conflicts > 0, "{done:?}");
        assert!(assigned(&desk.store).is_none(), "{together}");
    }
    assert!(
        desk.store.peek("/reeve/accepted/default/service/api/1").is_some(),
        "the other goes on"
    );
    desk.look();
}

#[tokio::test]
async fn a_service_waits_for_the_editions_of_the_same_pass_that_it_mounts() {
    let mut desk = Desk::new().await;
    let file = ResourceKey {
        kind: Kind::ConfigFile,
        ..service("conf")
    };
    let spec = serde_json::from_value(serde_json::json!({ "container": { "image": "app:1", "files": [
        { "file": "conf", "path": "/f", "edition": { "n": 1, "digest": FileDigest::of(b"x"), "size": 1 } },
    ] } }));
    let mut web = deletion("web");
    web.record.body = AcceptedBody::Service(spec.expect("a service"));
    let mut conf = deletion("web");
    conf.key = file.clone();
    conf.guard = Rests::DesiredAbsent(file);
    // In whatever order they are planned.
    let plan = Plan {
        accepted: vec![web, conf],
        assignments: vec![assigns(1, 0, vec![instance("web", AssignedState::Present)], Vec::new())],
        ..nothing()
    };
    desk.store.put("/reeve/desired/default/configfile/conf", "anything");
    for together in [true, false] {
        let done = desk.prepare(&plan).commit(&desk.store, together).await;
        assert!(done.conflicts > 0, "{done:?}");
        assert!(desk.store.peek("/reeve/accepted/default/service/web/1").is_none());
        assert!(assigned(&desk.store).is_none(), "{together}");
    }
    desk.store.delete("/reeve/desired/default/configfile/conf");
    desk.look();
    let done = desk.prepare(&plan).commit(&desk.store, false).await;
    assert_eq!(done.conflicts, 0, "{done:?}");
    assert!(desk.store.peek("/reeve/accepted/default/service/web/1").is_some());
    assert!(assigned(&desk.store).is_some());
}

#[tokio::test]
async fn a_removal_rests_on_what_the_plan_saw() {
    let mut desk = Desk::new().await;
    let _ = desk
        .execute(&Plan {
            assignments: vec![assigns(1, 0, vec![instance("web", AssignedState::Present)], Vec::new())],
            ..nothing()
        })
        .await;
    let stored = desk
        .store
        .peek("/reeve/assignments/n1")
        .expect("it is there")
        .mod_revision;
    let remove = |guard: Rests| Plan {
        assignments: vec![assigns(
            2,
            stored,
            vec![instance("web", AssignedState::Absent)],
            vec![guard],
        )],
        ..nothing()
    };
    desk.store.put("/reeve/desired/default/service/web", "anything");
    desk.store.put("/reeve/sessions/n1", "anything");
    desk.store.put("/reeve/cordons/n1", "anything");
    let at = desk
        .store
        .peek("/reeve/desired/default/service/web")
        .expect("it is there")
        .mod_revision;
    for guard in [
        Rests::DesiredAbsent(service("web")),
        Rests::DesiredAt {
            key: service("web"),
            mod_revision: at - 1,
        },
        Rests::CordonAt {
            node: node(),
            mod_revision: 1,
        },
        Rests::SessionAbsent(node()),
    ] {
        let done = desk.prepare(&remove(guard.clone())).commit(&desk.store, true).await;
        assert_eq!((done.conflicts, done.removed), (1, false), "{guard:?}");
        assert_eq!(
            assigned(&desk.store).expect("it is there").order.generation,
            1,
            "{guard:?}"
        );
    }
    let done = desk
        .execute(&remove(Rests::DesiredAt {
            key: service("web"),
            mod_revision: at,
        }))
        .await;
    assert!(done.removed && done.conflicts == 0, "{done:?}");
}

#[tokio::test]
async fn every_write_is_fenced_by_the_leader_and_by_the_marker() {
    let mut desk = Desk::new().await;
    let plan = Plan {
        accepted: vec![deletion("web")],
        assignments: vec![assigns(1, 0, Vec::new(), Vec::new())],
        statuses: BTreeMap::from([(service("web"), status("A", 0))]),
        breaker: Breaker {
            spent: 3,
            ..Breaker::default()
        },
        ..nothing()
    };
    let fence = Fence::leader(&desk.leadership);
    let verdict = VerdictRecord {
        schema_version: SchemaVersion::default(),
        away: None,
        unsteady: false,
        off: false,
        silent: None,
        verdict: Verdict::Ready,
        reason: "r".to_owned(),
    };
    let verdicts =
        |desk: &Desk| prepare_verdicts(&Base::new(&desk.observer, &fence), &[(node(), verdict.clone())], &[]);
    let marker = desk.store.peek("/reeve/cluster").expect("a marker").value;
    desk.store.put("/reeve/cluster", marker.clone());
    let keys = desk.store.dump().len();
    for together in [true, false] {
        let done = desk.prepare(&plan).commit(&desk.store, together).await;
        assert!(
            done.counts.keys().all(|(_, outcome)| *outcome == "conflict"),
            "{done:?}"
        );
        assert!(verdicts(&desk).commit(&desk.store, together).await.conflicts == 1);
    }
    desk.look();
    desk.store.delete("/reeve/election/controller");
    for together in [true, false] {
        let done = desk.prepare(&plan).commit(&desk.store, together).await;
        assert!(
            done.fence_lost && done.counts.keys().all(|(_, outcome)| *outcome == "fenced"),
            "{done:?}"
        );
        assert!(verdicts(&desk).commit(&desk.store, together).await.fence_lost);
    }
    assert_eq!(desk.store.dump().len(), keys - 1);
}

#[tokio::test]
async fn a_status_is_written_when_it_differs_and_keeps_since() {
    let mut desk = Desk::new().await;
    let plan = |status: Status| Plan {
        statuses: BTreeMap::from([(service("web"), status)]),
        ..nothing()
    };
    let since = |desk: &Desk| {
        let stored = &desk.snapshot().service_statuses[&service("web")];
        let Stored { value: Ok(status), .. } = stored else {
            panic!("{stored:?}")
        };
        (status.conditions[0].since.clone().expect("a time"), status.counts.ready)
    };
    assert_eq!(
        desk.execute(&plan(status("A", 0))).await.counts[&(Class::Status, "committed")],
        1
    );
    assert_eq!(since(&desk), (NOW.to_owned(), 0));
    assert!(desk.prepare(&plan(status("A", 0))).is_empty());
    let fence = Fence::leader(&desk.leadership);
    let write =
        |desk: &Desk, plan: &Plan, now: &str| prepare(&Base::new(&desk.observer, &fence), desk.snapshot(), plan, now);
    let _ = write(&desk, &plan(status("A", 1)), "later")
        .commit(&desk.store, true)
        .await;
    desk.look();
    assert_eq!(
        since(&desk),
        (NOW.to_owned(), 1),
        "the condition goes on since it began"
    );
    let _ = write(&desk, &plan(status("B", 1)), "later")
        .commit(&desk.store, true)
        .await;
    desk.look();
    assert_eq!(since(&desk), ("later".to_owned(), 1));
}

#[tokio::test]
async fn a_status_that_cannot_be_read_is_written_anew() {
    let mut desk = Desk::new().await;
    desk.store.put("/reeve/status/default/service/web", "garbage");
    desk.look();
    let plan = Plan {
        statuses: BTreeMap::from([(service("web"), status("A", 0))]),
        ..nothing()
    };
    assert_eq!(desk.execute(&plan).await.conflicts, 0);
    assert!(desk.prepare(&plan).is_empty());
}

#[tokio::test]
async fn removals_that_rest_on_too_much_for_one_write_go_in_parts() {
    let mut desk = Desk::new().await;
    let names: Vec<String> = (0..250).map(|n| format!("s{n:03}")).collect();
    let all = |state| names.iter().map(|name| instance(name, state)).collect::<Vec<_>>();
    let _ = desk
        .execute(&Plan {
            assignments: vec![assigns(1, 0, all(AssignedState::Present), Vec::new())],
            ..nothing()
        })
        .await;
    let mut generation = 1;
    loop {
        let stored = desk
            .store
            .peek("/reeve/assignments/n1")
            .expect("it is there")
            .mod_revision;
        generation += 1;
        // What is absent already needs no guard any more.
        let now = assigned(&desk.store).expect("it is there");
        let present = now.instances.iter().filter(|i| i.state == AssignedState::Present);
        let guards: Vec<Rests> = present.map(|i| Rests::DesiredAbsent(resource(i))).collect();
        let left = guards.len();
        if left == 0 {
            break;
        }
        let plan = Plan {
            assignments: vec![assigns(generation, stored, all(AssignedState::Absent), guards)],
            ..nothing()
        };
        let batch = desk.prepare(&plan);
        assert_eq!(batch.unfinished, left > MAX_GUARDS);
        let done = desk.execute(&plan).await;
        assert!(done.error.is_none() && done.conflicts == 0, "{done:?}");
        let now = assigned(&desk.store).expect("it is there");
        assert_eq!(now.instances.len(), 250);
        let present = now
            .instances
            .iter()
            .filter(|i| i.state == AssignedState::Present)
            .count();
        assert_eq!(present, left.saturating_sub(MAX_GUARDS));
    }
    assert_eq!(generation, 5, "250 in parts of 100, and one look");
}

#[tokio::test]
async fn a_lost_answer_counts_as_removed_and_a_refusal_does_not() {
    let mut desk = Desk::new().await;
    let plan = Plan {
        assignments: vec![assigns(
            1,
            0,
            vec![instance("web", AssignedState::Absent)],
            vec![Rests::DesiredAbsent(service("web"))],
        )],
        breaker: Breaker {
            held: None::<Held>,
            spent: 1,
            ..Breaker::default()
        },
        ..nothing()
    };
    desk.store.fail_next_write(WriteFault::Refused);
    let done = desk.execute(&plan).await;
    assert!(done.error.is_some());
    desk.store.fail_next_write(WriteFault::AnswerLost);
    let done = desk.execute(&plan).await;
    assert!(done.error.is_none() && done.removed, "read back: {done:?}");
}

#[tokio::test]
async fn a_write_that_no_store_would_take_hurts_itself_only() {
    let mut desk = Desk::new().await;
    let mut huge = assigns(
        1,
        0,
        (0..9_000).map(|_| instance("web", AssignedState::Present)).collect(),
        Vec::new(),
    );
    huge.assignment.node = "n2".parse().expect("a name");
    let plan = Plan {
        accepted: vec![deletion("web")],
        assignments: vec![huge, assigns(1, 0, Vec::new(), Vec::new())],
        statuses: BTreeMap::from([(service("web"), status("A", 0))]),
        ..nothing()
    };
    let done = desk.execute(&plan).await;
    assert!(done.error.is_none() && done.refused.len() == 1, "{done:?}");
    assert!(assigned(&desk.store).is_some());
    assert!(desk.store.peek("/reeve/status/default/service/web").is_some());
    assert!(desk.store.peek("/reeve/assignments/n2").is_none());
}

#[tokio::test]
async fn a_node_that_is_forgotten_leaves_no_key_unless_it_is_back() {
    let mut desk = Desk::new().await;
    for class in ["nodes", "reports", "assignments", "verdicts", "cordons"] {
        desk.store.put(format!("/reeve/{class}/n1"), "anything");
    }
    desk.look();
    let fence = Fence::leader(&desk.leadership);
    desk.store.put("/reeve/sessions/n1", "anything");
    let forget = |desk: &Desk| prepare_verdicts(&Base::new(&desk.observer, &fence), &[], &[node()]);
    assert_eq!(forget(&desk).commit(&desk.store, true).await.conflicts, 1);
    assert!(desk.store.peek("/reeve/nodes/n1").is_some());
    desk.store.delete("/reeve/sessions/n1");
    assert_eq!(forget(&desk).commit(&desk.store, true).await.conflicts, 0);
    desk.look();
    assert!(desk.snapshot().nodes.is_empty());
}

#[tokio::test]
async fn nothing_is_removed_whose_cost_was_not_written_down() {
    let mut desk = Desk::new().await;
    let removal = assigns(
        1,
        0,
        vec![instance("web", AssignedState::Absent)],
        vec![Rests::DesiredAbsent(service("web"))],
    );
    let mut other = assigns(1, 0, vec![instance("db", AssignedState::Present)], Vec::new());
    other.assignment.node = "n2".parse().expect("a name");
    let plan = Plan {
        assignments: vec![removal.clone(), other],
        breaker: Breaker {
            spent: 1,
            ..Breaker::default()
        },
        ..nothing()
    };
    let batch = desk.prepare(&plan);
    desk.store.put("/reeve/breaker", "someone else's");
    let done = batch.commit(&desk.store, false).await;
    assert!(done.conflicts == 1 && !done.removed, "{done:?}");
    assert!(assigned(&desk.store).is_none(), "the removal waits");
    assert!(desk.store.peek("/reeve/assignments/n2").is_some(), "nothing else does");
    desk.look();
    let plan = Plan {
        assignments: vec![removal],
        ..plan
    };
    let done = desk.execute(&plan).await;
    assert!(done.removed && assigned(&desk.store).is_some(), "{done:?}");
}

#[tokio::test]
async fn a_node_is_not_called_lost_that_is_back_or_of_which_a_person_has_just_spoken() {
    let mut desk = Desk::new().await;
    desk.store.put("/reeve/nodes/n1", "anything");
    desk.look();
    let fence = Fence::leader(&desk.leadership);
    let say = |desk: &Desk, verdict| {
        let record = VerdictRecord {
            schema_version: SchemaVersion::default(),
            away: None,
            unsteady: false,
            off: false,
            silent: None,
            verdict,
            reason: "r".to_owned(),
        };
        prepare_verdicts(&Base::new(&desk.observer, &fence), &[(node(), record)], &[])
    };
    desk.store.put("/reeve/sessions/n1", "anything");
    assert_eq!(say(&desk, Verdict::Lost).commit(&desk.store, true).await.conflicts, 1);
    assert_eq!(
        say(&desk, Verdict::Unreachable)
            .commit(&desk.store, true)
            .await
            .conflicts,
        0
    );
    desk.store.delete("/reeve/sessions/n1");
    desk.look();
    desk.store.put("/reeve/cordons/n1", "anything");
    for verdict in [Verdict::Lost, Verdict::Unreachable] {
        assert_eq!(say(&desk, verdict).commit(&desk.store, true).await.conflicts, 1);
    }
    desk.look();
    assert_eq!(say(&desk, Verdict::Lost).commit(&desk.store, true).await.conflicts, 0);
}
