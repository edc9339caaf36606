//! What fails around the agent: full and broken disks, the wrong store, names and ports that others have, questions that
//! are not answered. Each is said, with its remedy, and hurts nothing else.

use schemas::names::Namespace;
use schemas::records::{AssignedPort, InstanceCondition};

use super::*;

fn condition(report: &Report, reason: &str) -> Option<String> {
    let found = report.conditions.iter().find(|one| one.reason == reason);
    found.map(|one| one.message.clone())
}

fn failing(report: &Report, workload: &str) -> Option<(FailingReason, String)> {
    let line = report
        .instances
        .iter()
        .find(|line| line.workload.as_str() == workload)?;
    line.failing
        .as_ref()
        .map(|failing| (failing.reason, failing.message.clone()))
}

/// A message names each part once.
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert_eq!(message.matches(part).count(), 1, "`{part}` once in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_full_disk_nothing_new_is_started_and_what_runs_is_kept_and_restarted() {
    let mut bed = hello().await;
    bed.engine.set_free(Some(1 << 20));
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.until("said", |report| condition(report, "DiskFull").is_some())
        .await;
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[web.clone(), db.clone()]);
    let report = bed
        .until("db is not begun", |report| failing(report, "db").is_some())
        .await;
    assert_eq!(failing(&report, "db").unwrap().0, FailingReason::DiskFull);
    bed.two_sweeps().await;
    let before = bed.store.revision();
    bed.two_sweeps().await;
    bed.two_sweeps().await;
    assert_eq!(bed.store.revision(), before, "it is said once, and not at every look");
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("web runs again", |engine| engine.running().contains("default.web.1.1"))
        .await;
    // A change of what runs waits too: its successor could not be made.
    let changed = bed.accept("web", 1, 2, spec("app:2"));
    bed.assign(&[changed, db]);
    bed.until("the assignment is applied", |report| report.applied.generation == 3)
        .await;
    bed.two_sweeps().await;
    assert_eq!(
        bed.engine.containers().into_keys().collect::<Vec<_>>(),
        ["default.web.1.1"]
    );
    bed.engine.set_free(None);
    bed.until("all is as assigned", |report| {
        report.instances.len() == 2 && ready(report) && report.instances.iter().any(|line| line.n == 2)
    })
    .await;
    assert_eq!(
        bed.engine.running(),
        ["default.db.1.1".to_owned(), "default.web.1.2".to_owned()].into()
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_container_whose_successor_cannot_be_made_for_want_of_space_is_not_stopped() {
    let mut bed = hello().await;
    // The new spec comes into force, and the old container is about to stop, when the disk fills up.
    bed.engine.hang("stop");
    bed.engine.fail_next("stop", ErrorKind::Timeout);
    let changed = bed.accept("web", 1, 2, spec("app:2"));
    bed.assign(&[changed]);
    bed.engine_until("it is being stopped", |engine| {
        engine.calls().iter().any(|call| call.starts_with("stop"))
    })
    .await;
    bed.engine.set_free(Some(1 << 20));
    bed.until("said", |report| condition(report, "DiskFull").is_some())
        .await;
    bed.engine.release("stop");
    // The failed stop is tried again after one second or so.
    for _ in 0..4 {
        bed.two_sweeps().await;
    }
    assert_eq!(bed.engine.running(), ["default.web.1.1".to_owned()].into());
    bed.engine.set_free(None);
    bed.until("then it changes", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert_eq!(bed.engine.running(), ["default.web.1.2".to_owned()].into());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_disk_that_cannot_be_written_what_runs_is_restarted_and_the_rest_waits() {
    let mut bed = hello().await;
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.two_sweeps().await;
    // A directory in the place of the temporary file: every write of the ledger fails, as on a broken disk.
    let in_the_way = bed.dir.path().join("ledger.json.new");
    let (specs, away) = (bed.dir.path().join("specs"), bed.dir.path().join("specs.away"));
    std::fs::create_dir(&in_the_way).unwrap();
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[web.clone(), db]);
    let report = bed
        .until("said", |report| condition(report, "DiskUnwritable").is_some())
        .await;
    says(
        &condition(&report, "DiskUnwritable").unwrap(),
        &[
            "write the file",
            "ledger.json",
            "Is a directory",
            "see that the disk is whole",
        ],
    );
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("web runs again", |engine| {
        engine.running().contains("default.web.1.1")
            && engine.calls().iter().filter(|call| call.starts_with("start")).count() == 2
    })
    .await;
    assert_eq!(bed.engine.containers().len(), 1, "db is not begun");
    // Nor is a spec taken that cannot be kept.
    std::fs::rename(&specs, &away).unwrap();
    let third = bed.accept("third", 1, 1, spec("app:1"));
    bed.assign(&[web, third]);
    bed.two_sweeps().await;
    std::fs::rename(&away, &specs).unwrap();
    std::fs::remove_dir(&in_the_way).unwrap();
    bed.engine_until("third is created", |engine| {
        engine.running().contains("default.third.1.1")
    })
    .await;
    bed.until("nothing is said any more", |report| report.conditions.is_empty())
        .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_cluster_is_said_and_nothing_is_taken_from_it() {
    let mut bed = hello().await;
    bed.stop().await;
    let ours = bed.cluster.clone();
    bed.store.wipe();
    bed.cluster = ClusterId::from_random([8; 16]);
    bed.mark();
    bed.assign(&[]);
    bed.start();
    bed.two_sweeps().await;
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("web is kept", |engine| engine.running().len() == 1)
        .await;
    assert_eq!(bed.report(), None, "nothing is written into it either");
    bed.cluster = ours;
    bed.mark();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.until("of our own again", ready).await;
    assert_eq!(bed.engine.containers().len(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_directory_of_another_node_is_refused_with_the_remedy() {
    let mut bed = hello().await;
    bed.stop().await;
    let options = AgentOptions::new("n2".parse().unwrap(), bed.dir.path());
    let refused = run(
        options,
        bed.store.clone(),
        Arc::new(bed.engine.clone()),
        Shutdown::new(),
    )
    .await;
    says(
        &refused.unwrap_err().to_string(),
        &["`n2`", "of node `n1`", "--node n1", "--data-dir"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_of_the_same_name_takes_nothing_and_disturbs_nothing() {
    let mut bed = hello().await;
    let session = bed.store.peek(key(&Key::Session(node()))).unwrap();
    let mut second = Bed::new();
    second.store = bed.store.clone();
    second.start();
    let lists = second.engine.reads().0;
    second
        .engine_until("it has looked around", |engine| engine.reads().0 >= lists)
        .await;
    second.two_sweeps().await;
    let held = bed.store.peek(key(&Key::Session(node()))).unwrap();
    assert_eq!(
        held.create_revision, session.create_revision,
        "the first keeps its session"
    );
    // The first goes on.
    let web = bed.accept("web", 1, 2, spec("app:2"));
    bed.assign(&[web]);
    bed.until("changed", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert!(second.engine.calls().is_empty(), "{:?}", second.engine.calls());
    second.kill().await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_port_that_a_stranger_has_is_said_and_taken_when_it_is_free() {
    let mut bed = Bed::new();
    bed.engine.take_port(8_080);
    bed.start();
    let mut published = spec("app:1");
    published["container"]["ports"] = json!([{ "containerPort": 80, "hostPort": 8080 }]);
    let mut web = bed.accept("web", 1, 1, published);
    web.ports = vec![AssignedPort {
        container_port: 80,
        host_port: 8_080,
        protocol: Default::default(),
        host_ip: None,
    }];
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[db, web]);
    let report = bed.until("said", |report| failing(report, "web").is_some()).await;
    let (reason, message) = failing(&report, "web").unwrap();
    assert_eq!(reason, FailingReason::PortTaken);
    says(
        &message,
        &[
            "start container `default.web.1.1`",
            "already allocated",
            "free the port",
            "hostPort",
        ],
    );
    bed.until("db is not held up", |report| {
        report.instances.iter().any(|line| line.ready)
    })
    .await;
    bed.engine.free_port(8_080);
    bed.until("then it runs", |report| report.instances.len() == 2 && ready(report))
        .await;
    assert_eq!(bed.engine.containers().len(), 2);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_was_removed_is_made_again_for_a_container_that_starts() {
    let mut bed = hello().await;
    bed.engine.remove_networks();
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("web runs again", |engine| engine.running().len() == 1)
        .await;
    bed.until("ready", |report| {
        ready(report) && one(report).is_some_and(|line| line.failing.is_none())
    })
    .await;
    assert_eq!(bed.engine.containers().len(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_goes_with_the_last_instance_of_its_namespace_and_no_other_does() {
    let mut bed = Bed::new();
    let shop: Namespace = "shop".parse().unwrap();
    bed.engine.ensure_network("another", &shop).await.unwrap();
    // Left over by an agent that was killed before it could tidy.
    bed.engine
        .ensure_network(bed.cluster.as_str(), &"old".parse().unwrap())
        .await
        .unwrap();
    bed.start();
    let mut web = bed.accept("web", 1, 1, spec("app:1"));
    let mut db = bed.accept_in("shop", "db", 1, 1, spec("app:1"));
    let mut spec_once = spec("app:1");
    spec_once["restartPolicy"] = json!("Never");
    let once = bed.accept_in("batch", "once", 1, 1, spec_once);
    bed.assign(&[once.clone(), web.clone(), db.clone()]);
    bed.until("all ready", |report| report.instances.len() == 3 && ready(report))
        .await;
    // One that has ended is no reason: its network is needed when it starts again.
    bed.engine.crash("batch.once.1.1", 0);
    bed.until("it has ended", |report| {
        report.instances.iter().any(|line| line.phase == Phase::Stopped)
    })
    .await;
    let ours = |names: &[&str]| -> Vec<String> {
        let mut names: Vec<String> = names.iter().map(|name| format!("reeve-07070707-{name}")).collect();
        names.push("reeve-another-shop".to_owned());
        names
    };
    bed.engine_until("the one that was left over goes", |engine| {
        engine.networks() == ours(&["batch", "default", "shop"])
    })
    .await;
    db.state = AssignedState::Absent;
    bed.assign(&[once.clone(), web.clone(), db]);
    bed.engine_until("db's goes", |engine| engine.networks() == ours(&["batch", "default"]))
        .await;
    web.state = AssignedState::Absent;
    bed.assign(&[once.clone(), web]);
    bed.engine_until("web's goes", |engine| engine.networks() == ours(&["batch"]))
        .await;
    let web = bed.accept("web", 1, 2, spec("app:1"));
    bed.assign(&[once, web]);
    bed.until("made again", |report| report.instances.iter().any(|line| line.ready))
        .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inspection_that_began_before_a_start_counts_for_nothing_after_it() {
    let mut bed = Bed::new();
    bed.sweep = Duration::from_millis(50);
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.until("ready", ready).await;
    // The first restart is at once; before the second there is time to look at what has ended.
    bed.engine.crash("default.web.1.1", 1);
    bed.until("ready again", |report| {
        ready(report) && one(report).is_some_and(|line| line.restarts == 1)
    })
    .await;
    bed.engine.crash("default.web.1.1", 1);
    bed.until("it waits", |report| {
        one(report).is_some_and(|line| line.phase == Phase::BackOff)
    })
    .await;
    let inspected = bed.engine.reads().1;
    bed.engine.hang("inspect answer");
    let end = tokio::time::Instant::now() + PATIENCE;
    while bed.engine.reads().1 == inspected {
        assert!(tokio::time::Instant::now() < end, "no inspection");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bed.starts(), 2, "the inspection began before the start");
    bed.engine_until("it runs again", |engine| engine.running().len() == 1)
        .await;
    bed.until("ready", ready).await;
    bed.two_sweeps().await;
    let written = bed.store.revision();
    bed.engine.release("inspect answer");
    bed.two_sweeps().await;
    assert_eq!(bed.store.revision(), written, "nothing is seen to have ended");
    assert_eq!(bed.starts(), 3, "what has ended before the start is started once");
    let report = bed.report().unwrap();
    assert_eq!(
        one(&report).map(|line| (line.restarts, line.phase)),
        Some((2, Phase::Running))
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_option_that_the_engine_discards_becomes_a_condition() {
    let mut bed = Bed::new();
    let discarded = InstanceCondition {
        reason: "OptionDiscarded".to_owned(),
        message: "Your kernel does not support swap limit capabilities".to_owned(),
    };
    bed.engine.say_of_options(vec![discarded.clone()]);
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    let report = bed.until("ready", ready).await;
    assert_eq!(one(&report).unwrap().conditions, [discarded]);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_that_was_damaged_on_disk_opens_no_door_to_an_older_one() {
    let mut bed = hello().await;
    bed.generation = 6;
    let web = bed.accept("web", 1, 2, spec("app:2"));
    bed.assign(&[web]);
    bed.until("2 in force", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    bed.stop().await;
    std::fs::write(bed.dir.path().join("assignment.json"), "{ half").unwrap();
    // The store has gone back meanwhile.
    bed.generation = 2;
    let mut gone = bed.accept("web", 1, 1, spec("app:1"));
    gone.state = AssignedState::Absent;
    bed.assign(&[gone]);
    bed.start();
    bed.until("held", |report| condition(report, "StoreRegressed").is_some())
        .await;
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), ["default.web.1.2".to_owned()].into());
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_fails_is_not_asked_in_a_loop() {
    let mut bed = Bed::new();
    bed.sweep = Duration::from_secs(600);
    for _ in 0..100_000 {
        bed.engine.fail_next("image", ErrorKind::Other);
    }
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.until("reported", |report| !report.instances.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let asked = bed.engine.look_ups();
    assert!((1..10).contains(&asked), "{asked} times in 0.6 s");
    bed.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_that_take_long_keep_no_other_instance_from_its_start() {
    let mut bed = Bed::new();
    bed.start();
    let mut many: Vec<Assigned> = (1..=12).map(|slot| bed.accept("web", slot, 1, spec("app:1"))).collect();
    bed.assign(&many);
    bed.until("all ready", |report| report.instances.len() == 12 && ready(report))
        .await;
    bed.engine.hang("stop");
    for one in &mut many {
        one.state = AssignedState::Absent;
    }
    many.push(bed.accept("db", 1, 1, spec("app:1")));
    bed.assign(&many);
    // At once, and not when the first permits are given back.
    let runs = bed.engine.when(|engine| engine.running().contains("default.db.1.1"));
    let waited = tokio::time::timeout(Duration::from_secs(3), runs).await;
    assert!(waited.is_ok(), "db waits for the stops: {:?}", bed.engine.calls());
    bed.engine.release("stop");
    bed.until("the others are gone", |report| {
        report.instances.len() == 1 && ready(report)
    })
    .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_hang_give_their_turn_to_others() {
    let mut bed = Bed::new();
    bed.start();
    let many: Vec<Assigned> = (1..=12).map(|slot| bed.accept("web", slot, 1, spec("app:1"))).collect();
    bed.engine.hang("create");
    bed.assign(&many);
    bed.engine_until(
        "all are asked of the engine, though eight are allowed at once",
        |engine| engine.calls().len() == 12,
    )
    .await;
    bed.engine.release("create");
    bed.until("all ready", |report| report.instances.len() == 12 && ready(report))
        .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_went_meanwhile_is_fetched_before_the_old_container_stops() {
    let mut bed = hello().await;
    let web = bed.accept("web", 1, 2, spec("app:2"));
    let back = bed.accept("web", 1, 3, spec("app:1"));
    bed.assign(&[web]);
    bed.until("2 is ready", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    bed.engine.remove_image("app:1");
    bed.engine.fail_pull("app:1", ErrorKind::ImageNotFound);
    bed.assign(&[back]);
    bed.until("the pull fails", |report| failing(report, "web").is_some())
        .await;
    assert_eq!(
        bed.engine.running(),
        ["default.web.1.2".to_owned()].into(),
        "the old one serves on"
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_container_costs_one_create_and_one_start_and_a_quiet_pass_no_inspection() {
    let mut bed = Bed::new();
    bed.sweep = Duration::from_secs(600);
    bed.start();
    let many: Vec<Assigned> = (1..=40).map(|slot| bed.accept("web", slot, 1, spec("app:1"))).collect();
    bed.assign(&many);
    bed.until("all ready", |report| report.instances.len() == 40 && ready(report))
        .await;
    let calls = bed.engine.calls();
    for verb in ["create ", "start "] {
        assert_eq!(calls.iter().filter(|call| call.starts_with(verb)).count(), 40, "{verb}");
    }
    assert_eq!(calls.len(), 80, "{calls:#?}");
    assert_eq!(bed.engine.look_ups(), 1, "one image, one look");
    // The echoes of the last events are over within 1.1 s.
    let mut reads = bed.engine.reads();
    loop {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let now = bed.engine.reads();
        if std::mem::replace(&mut reads, now) == now {
            break;
        }
    }
    // A start that is told late has its container inspected again.
    assert!(reads.1 <= 60, "each was inspected once: {}", reads.1);
    // A pass that has something to do costs a list, and inspects only what ended.
    let mut fewer = many.clone();
    fewer[0].state = AssignedState::Absent;
    bed.assign(&fewer);
    bed.until("one is gone", |report| report.instances.len() == 39).await;
    let (lists, inspections) = bed.engine.reads();
    assert_eq!(inspections, reads.1 + 1);
    assert!(
        lists - reads.0 <= 8,
        "{} lists for a stop and a removal",
        lists - reads.0
    );
    assert_eq!(bed.engine.calls().len(), 82);
    bed.stop().await;
}
