//! What goes by the store's word (`onDisconnect.stopAfter`): it stops without one, and starts with the next.

use super::*;

const SHORT: &str = "1500ms";

fn mortal(image: &str) -> Value {
    json!({ "container": { "image": image, "stopGracePeriod": "1s" }, "update": { "minReady": "10ms" }, "onDisconnect": { "stopAfter": SHORT } })
}

/// One that goes by the store's word, and one that does not.
async fn two() -> Bed {
    let mut bed = Bed::new();
    bed.session_ttl = Duration::from_millis(900);
    bed.start();
    let (db, web) = (
        bed.accept("db", 1, 1, mortal("app:1")),
        bed.accept("web", 1, 1, spec("app:1")),
    );
    bed.assign(&[db, web]);
    bed.until("ready", |report| report.instances.len() == 2 && ready(report))
        .await;
    bed
}

fn both() -> BTreeSet<String> {
    ["default.db.1.1".to_owned(), "default.web.1.1".to_owned()].into()
}
fn web_alone() -> BTreeSet<String> {
    ["default.web.1.1".to_owned()].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_it_stops_and_what_keeps_running_does_not_and_both_are_there_again_after() {
    let mut bed = two().await;
    let before = bed.engine.containers();
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), both(), "a session that is renewed is a word");
    bed.store.set_down(true);
    bed.engine_until("it has stopped", |engine| engine.running() == web_alone())
        .await;
    // Nothing starts it: no sweep, no other process, no hand.
    bed.two_sweeps().await;
    bed.stop().await;
    bed.start();
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), web_alone());
    bed.store.set_down(false);
    bed.engine_until("both run", |engine| engine.running() == both()).await;
    let after = bed.engine.containers();
    let id = |all: &BTreeMap<String, crate::engine::fake::FakeContainer>, name: &str| all[name].observed.id.clone();
    for name in both() {
        assert_eq!(id(&before, &name), id(&after, &name), "the same container");
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_restart_stops_nothing_and_starts_it_with_the_stores_word_alone() {
    let mut bed = two().await;
    let starts = bed.starts();
    bed.stop().await;
    bed.start();
    bed.until("ready", |report| report.instances.len() == 2 && ready(report))
        .await;
    bed.two_sweeps().await;
    assert_eq!((bed.engine.running(), bed.starts()), (both(), starts));
    // What has crashed meanwhile, with a store that does not answer, stays so.
    bed.kill().await;
    bed.store.set_down(true);
    bed.engine.crash("default.db.1.1", 3);
    bed.engine.crash("default.web.1.1", 3);
    bed.start();
    bed.engine_until("the other one runs", |engine| engine.running() == web_alone())
        .await;
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), web_alone());
    bed.store.set_down(false);
    bed.engine_until("both run", |engine| engine.running() == both()).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_to_another_meanwhile_does_not_start_again() {
    let mut bed = two().await;
    bed.store.set_down(true);
    bed.engine_until("it has stopped", |engine| engine.running() == web_alone())
        .await;
    let (mut db, web) = (
        bed.accept("db", 1, 1, mortal("app:1")),
        bed.accept("web", 1, 1, spec("app:1")),
    );
    db.state = AssignedState::Absent;
    let calls = bed.engine.calls().len();
    bed.assign(&[db, web]);
    bed.store.set_down(false);
    bed.until("it is gone", |report| {
        report.applied.generation == 2 && report.instances.len() == 1
    })
    .await;
    let started = bed.engine.calls().split_off(calls);
    assert!(!started.iter().any(|call| call.starts_with("start ")), "{started:?}");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_boot_nothing_of_what_was_heard_before_counts() {
    let mut bed = two().await;
    bed.stop().await;
    let path = bed.dir.path().join("contact.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["bootId"] = json!("another");
    std::fs::write(&path, file.to_string()).unwrap();
    bed.store.set_down(true);
    bed.start();
    bed.engine_until("it has stopped", |engine| engine.running() == web_alone())
        .await;
    bed.store.set_down(false);
    bed.engine_until("both run", |engine| engine.running() == both()).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holders_token_is_in_its_container_and_a_new_one_makes_a_new_container() {
    let mut bed = Bed::new();
    bed.start();
    let mut db = bed.accept("db", 1, 1, spec("app:1"));
    db.token = Some(7);
    bed.assign(std::slice::from_ref(&db));
    let holds =
        |token: u64| move |report: &Report| ready(report) && one(report).is_some_and(|line| line.token == Some(token));
    bed.until("ready", holds(7)).await;
    let token = |bed: &Bed| bed.engine.containers()["default.db.1.1"].observed.labels["reeve.token"].clone();
    let id = |bed: &Bed| bed.engine.containers()["default.db.1.1"].observed.id.clone();
    let first = id(&bed);
    assert_eq!(token(&bed), "7");
    // Restarts keep it, of the container and of the agent; and a ledger that is lost.
    bed.engine.crash("default.db.1.1", 3);
    bed.engine_until("it runs again", |engine| engine.running().len() == 1)
        .await;
    bed.kill().await;
    std::fs::remove_file(bed.dir.path().join("ledger.json")).unwrap();
    bed.start();
    bed.two_sweeps().await;
    bed.until("ready", holds(7)).await;
    assert_eq!(id(&bed), first);
    db.token = Some(9);
    bed.assign(&[db]);
    bed.engine_until("another container", |engine| {
        let all = engine.containers();
        all.get("default.db.1.1").is_some_and(|one| one.observed.id != first)
    })
    .await;
    bed.until("ready", holds(9)).await;
    assert_eq!(token(&bed), "9");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_one_goes_on_without_the_store_and_begins_in_a_new_process_with_its_word_alone() {
    let mut bed = Bed::new();
    bed.start();
    let mut exclusive = spec("app:1");
    exclusive["exclusive"] = json!(true);
    let (mut db, web) = (
        bed.accept("db", 1, 1, exclusive),
        bed.accept("web", 1, 1, spec("app:1")),
    );
    bed.assign(&[db.clone(), web.clone()]);
    bed.until("ready", |report| report.instances.len() == 2 && ready(report))
        .await;
    bed.store.set_down(true);
    bed.engine.crash("default.db.1.1", 3);
    bed.engine_until("it runs again", |engine| engine.running() == both())
        .await;
    // Its host is off, and it is given to another meanwhile.
    bed.kill().await;
    bed.engine.crash("default.db.1.1", 3);
    bed.engine.crash("default.web.1.1", 3);
    bed.start();
    bed.engine_until("the other one runs", |engine| engine.running() == web_alone())
        .await;
    bed.two_sweeps().await;
    assert_eq!(bed.engine.running(), web_alone());
    db.state = AssignedState::Absent;
    let calls = bed.engine.calls().len();
    bed.assign(&[db, web]);
    bed.store.set_down(false);
    bed.until("it is gone", |report| {
        report.applied.generation == 2 && report.instances.len() == 1
    })
    .await;
    let started = bed.engine.calls().split_off(calls);
    assert!(!started.iter().any(|call| call.starts_with("start ")), "{started:?}");
    bed.stop().await;
}
