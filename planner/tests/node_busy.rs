//! What a pass says of an instance, in situations that histories at random meet too seldom: while a step on it is under way,
//! and while it ends again and again.

use std::collections::BTreeMap;
use std::sync::Arc;

use planner::node::*;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::Slot;
use schemas::records::{
    Assigned, AssignedState, Assignment, ClusterId, Digest, FailingReason, Order, Phase, SchemaVersion, Uid,
};

fn cluster() -> ClusterId {
    ClusterId::from_random([7; 16])
}

fn assignment(n: u64) -> Arc<Assignment> {
    let key = ResourceKey {
        namespace: Some("default".parse().expect("a name")),
        kind: Kind::Service,
        name: "web".parse().expect("a name"),
    };
    let instance = Assigned {
        address: None,
        seeds: Vec::new(),
        token: None,
        namespace: "default".parse().expect("a name"),
        kind: Kind::Service,
        workload: "web".parse().expect("a name"),
        uid: Uid::derive(&cluster(), &key, 1),
        slot: Slot::Index(1),
        state: AssignedState::Present,
        n,
        digest: Digest::of(&[u8::try_from(n).expect("small")]),
        ports: Vec::new(),
        image: None,
        from: Vec::new(),
    };
    let order = Order {
        restore_epoch: 0,
        epoch: 1,
        generation: n,
    };
    Arc::new(Assignment {
        network: Default::default(),
        virtual_ips: Default::default(),
        schema_version: SchemaVersion::default(),
        cluster: cluster(),
        node: "n1".parse().expect("a name"),
        order,
        instances: vec![instance],
    })
}

/// Plans, writes the ledger down, and answers every probe asked for.
fn pass(input: &mut NodeInput, probe: &Probe) -> NodePlan {
    let out = plan(input);
    for (key, entry) in out.ledger.clone() {
        match entry {
            Some(entry) => input.ledger.entries.insert(key, entry),
            None => input.ledger.entries.remove(&key),
        };
    }
    for (id, target) in out.probes.clone() {
        let probe = probe.clone();
        input.probes.insert(id, Probed { target, probe });
    }
    input.now_ms += 100;
    out
}

/// A node that has the image and both specs, and is assigned the first.
fn node() -> NodeInput {
    let mut input = NodeInput::new(1_000_000, "n1".parse().expect("a name"), cluster());
    input.assignment = Some(assignment(1));
    for n in [1, 2] {
        let text =
            format!(r#"{{"container":{{"image":"app:1","healthCheck":{{"http":{{"port":80,"path":"/{n}"}}}}}}}}"#);
        let spec = Arc::new(serde_json::from_str(&text).expect("a spec"));
        let key = InstanceKey::from(&assignment(n).instances[0]);
        input
            .specs
            .insert(key.spec(n, &assignment(n).instances[0].digest), SpecState::Here(spec));
    }
    let image = Image {
        present: true,
        ..Image::default()
    };
    input.images.insert("app:1".to_owned(), image);
    input
}

#[test]
fn what_is_to_go_is_told_of_while_its_create_may_be_under_way() {
    let mut input = node();
    let create = pass(&mut input, &Probe::Healthy).steps.remove(0);
    assert!(matches!(create.op, Op::Create { .. }), "{create:?}");
    input.busy.insert(create.instance.clone());
    let mut gone = (*assignment(2)).clone();
    gone.instances[0].state = AssignedState::Absent;
    input.assignment = Some(Arc::new(gone));

    // The list has nothing of it yet; a report without it would let the leader forget it, and make it an orphan.
    let told = pass(&mut input, &Probe::Healthy);
    assert_eq!(told.report.instances[0].phase, Phase::Stopping);

    // It has ended, as a list shows that came after: nothing was made.
    input.busy.clear();
    let told = pass(&mut input, &Probe::Healthy);
    assert!(told.report.instances.is_empty() && told.steps.is_empty(), "{told:?}");
}

/// Creates its container and starts it.
fn started(input: &mut NodeInput, probe: &Probe) -> Observed {
    let create = pass(input, probe).steps.remove(0);
    let Op::Create { name, labels, .. } = &create.op else {
        panic!("{create:?}")
    };
    let container = Observed {
        id: "a".repeat(64),
        name: name.clone(),
        labels: labels.to_map(),
        state: ContainerState::Running,
        image: "app:1".to_owned(),
        networks: BTreeMap::new(),
        details: None,
        image_id: None,
    };
    let entry = input.ledger.entries.get_mut(&create.instance).expect("an intent");
    let created = OpOutcome::Created {
        id: container.id.clone(),
        conditions: Vec::new(),
    };
    settle(&create.instance, entry, &create.op, &created, input.now_ms);
    settle(&create.instance, entry, &create.op, &OpOutcome::Done, input.now_ms);
    container
}

/// The reason and the message of why it fails, when its deadline has passed and it ended so often before.
fn fails_after(ends: u32) -> (FailingReason, String) {
    let unknown = Probe::default();
    let mut input = node();
    let mut container = started(&mut input, &unknown);
    for _ in 0..ends {
        container.state = ContainerState::Running;
        input.observed = Ok(vec![container.clone()]);
        let told = pass(&mut input, &unknown).report;
        assert!(told.instances[0].failing.is_none(), "{told:?}");
        container.state = ContainerState::Exited { code: Some(3) };
        input.observed = Ok(vec![container.clone()]);
        let mut steps = pass(&mut input, &unknown).steps;
        while steps.is_empty() {
            steps = pass(&mut input, &unknown).steps;
        }
        let entry = input.ledger.entries.get_mut(&steps[0].instance).expect("an entry");
        settle(&steps[0].instance, entry, &steps[0].op, &OpOutcome::Done, input.now_ms);
    }
    container.state = ContainerState::Running;
    input.observed = Ok(vec![container]);
    input.now_ms += 3_600_000;
    let told = pass(&mut input, &unknown).report.instances.remove(0);
    let failing = told.failing.expect("its deadline has passed");
    (failing.reason, failing.message)
}

#[test]
fn what_is_not_ready_in_time_says_so_and_what_ended_again_and_again_says_that() {
    for ends in [0, 1] {
        let (reason, message) = fails_after(ends);
        assert_eq!(reason, FailingReason::ProgressDeadlineExceeded, "{message}");
        assert_eq!(message, "it was not ready within 5m; it is tried on");
    }
    let (reason, message) = fails_after(2);
    assert_eq!(reason, FailingReason::CrashLoop, "{message}");
    assert_eq!(
        message,
        "it ended with code 3, 2 times in a row, and was not ready within 5m: see its last lines"
    );
}

#[test]
fn a_container_that_is_being_stopped_does_not_become_ready_by_a_new_check() {
    let mut input = node();
    let unhealthy = Probe::Unhealthy {
        message: "404".to_owned(),
    };

    // Its check fails, and it is stopped to be started again.
    input.observed = Ok(vec![started(&mut input, &unhealthy)]);
    let _ = pass(&mut input, &unhealthy);
    let stop = pass(&mut input, &unhealthy).steps.remove(0);
    assert!(matches!(stop.op, Op::Stop { .. }), "{stop:?}");
    input.busy.insert(stop.instance.clone());

    // While it is, a spec with another check comes, and the check passes: the container serves to its end.
    input.assignment = Some(assignment(2));
    let _ = pass(&mut input, &Probe::Healthy);
    let told = pass(&mut input, &Probe::Healthy).report.instances.remove(0);
    assert!(!told.ready, "{told:?}");

    // Where nothing is under way, the same makes it ready.
    input.busy.clear();
    let told = pass(&mut input, &Probe::Healthy).report.instances.remove(0);
    assert_eq!((told.n, told.ready), (2, true), "{told:?}");
}
