//! The agent is ended after each effect it has on the engine or the disk, in turn, and started again on what is left.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::*;

/// Histories at once.
const AT_ONCE: usize = 24;

/// What never holds: two containers for one instance, or a foreign one touched.
fn check(bed: &Bed, at: i64) {
    let mut owners = BTreeSet::new();
    for (name, container) in bed.engine.containers() {
        if name == "copy" || name == "stranger" {
            assert_eq!(container.observed.state, ContainerState::Running, "{at}: {name}");
            continue;
        }
        let own = container.observed.own().expect("made by the agent");
        assert!(owners.insert(own.instance.clone()), "{at}: two of {}", own.instance);
    }
    let calls = bed.engine.calls();
    assert_eq!(bed.engine.doubled(), None, "{at}: {calls:#?}");
    let foreign = calls
        .iter()
        .find(|call| call.ends_with("copy") || call.ends_with("stranger"));
    assert_eq!(foreign, None, "{at}");
}

/// One history: an adopted instance, two created, an image changed, one removed. The life ends after `at` effects; the next
/// one goes on. Returns whether it ended before the history did.
async fn history(at: i64) -> bool {
    // What an earlier agent left: `old` runs, and the ledger knows it.
    let mut bed = Bed::new();
    bed.sweep = Duration::from_millis(200);
    bed.session_ttl = Duration::from_millis(500);
    let old = bed.accept("old", 1, 1, spec("app:1"));
    bed.start();
    bed.assign(std::slice::from_ref(&old));
    bed.until("old is ready", ready).await;
    bed.stop().await;
    let labels = bed.engine.containers()["default.old.1.1"].observed.labels.clone();
    bed.engine.add_foreign("copy", &labels);
    bed.engine.add_foreign("stranger", &BTreeMap::new());
    if at % 3 == 0 {
        // Its ledger is lost besides: it is adopted by name, labels and inspection.
        std::fs::remove_file(bed.dir.path().join("ledger.json")).unwrap();
    }

    bed.cut = Cut::after(at);
    bed.start();
    let (web, mut db) = (
        bed.accept("web", 1, 1, spec("app:1")),
        bed.accept("db", 1, 1, spec("app:1")),
    );
    let changed = bed.accept("web", 1, 2, spec("app:2"));
    let mut died = false;
    let all = |count: usize| move |report: &Report| report.instances.len() == count && ready(report);
    bed.assign(&[old.clone(), web, db.clone()]);
    bed.survives(&mut died, at, all(3)).await;
    bed.assign(&[old.clone(), changed.clone(), db.clone()]);
    let second = |report: &Report| all(3)(report) && report.instances.iter().any(|line| line.n == 2);
    bed.survives(&mut died, at, second).await;
    db.state = AssignedState::Absent;
    bed.assign(&[old, changed, db]);
    bed.survives(&mut died, at, all(2)).await;
    let names = ["copy", "default.old.1.1", "default.web.1.2", "stranger"];
    let calls = bed.engine.calls();
    assert_eq!(
        bed.engine.containers().into_keys().collect::<Vec<_>>(),
        names,
        "{at}: {calls:#?}"
    );
    let starts = calls
        .iter()
        .filter(|call| call.starts_with("start default.old"))
        .count();
    assert_eq!(starts, 1, "{at}: what runs as assigned is left alone");
    bed.stop().await;
    died
}

impl Bed {
    /// Waits until the report says so; an agent that has met its end meanwhile is followed by another.
    async fn survives(&mut self, died: &mut bool, at: i64, holds: impl Fn(&Report) -> bool) {
        let generation = self.generation;
        let cut = self.cut.clone();
        let applied = |report: &Report| report.applied.generation == generation && holds(report);
        if !*died {
            tokio::select! {
                () = cut.died() => *died = true,
                _ = self.until("as assigned", &applied) => {}
            }
            if *died {
                self.kill().await;
                check(self, at);
                self.cut = Cut::never();
                self.start();
            }
        }
        self.until("as assigned, at last", &applied).await;
        check(self, at);
    }
}

#[tokio::test]
async fn an_agent_that_ends_after_any_of_its_effects_goes_on_without_doubling_or_losing_anything() {
    let (next, over) = (AtomicI64::new(1), AtomicBool::new(false));
    let lives = (0..AT_ONCE).map(|_| async {
        let mut ended = 0;
        while !over.load(Ordering::SeqCst) {
            if history(next.fetch_add(1, Ordering::SeqCst)).await {
                ended += 1;
            } else {
                over.store(true, Ordering::SeqCst);
            }
        }
        ended
    });
    let ended: i32 = futures::future::join_all(lives).await.into_iter().sum();
    println!("{ended} lives ended");
    assert!(ended > 30, "only {ended} effects: the history is not what it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_comes_through_after_its_agents_end_is_taken_and_not_doubled() {
    let mut bed = Bed::new();
    bed.engine.hang("create");
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    bed.assign(&[web]);
    bed.engine_until("the create is under way", |engine| !engine.calls().is_empty())
        .await;
    bed.kill().await;
    bed.start();
    bed.engine_until("the next create is under way", |engine| engine.calls().len() == 2)
        .await;
    // The engine ends what it was asked first.
    let labels = bed.labels_of("web", 1, 1);
    let id = bed.engine.add_foreign("default.web.1.1", &labels);
    bed.engine.change("default.web.1.1", |one| {
        one.observed.image = "app:1".to_owned();
        one.observed.state = ContainerState::Created;
        one.observed.networks = BTreeMap::from([("reeve-07070707-default".to_owned(), Default::default())]);
    });
    bed.engine.release("create");
    bed.until("ready", ready).await;
    let containers = bed.engine.containers();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers["default.web.1.1"].observed.id, id);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_made_copy_under_the_right_name_is_not_taken_for_ours() {
    let mut bed = Bed::new();
    bed.start();
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let labels = bed.labels_of("web", 1, 1);
    let id = bed.engine.add_foreign("default.web.1.1", &labels);
    bed.assign(&[web]);
    let report = bed
        .until("said", |report| one(report).is_some_and(|line| line.failing.is_some()))
        .await;
    assert_eq!(
        one(&report).unwrap().failing.as_ref().unwrap().reason,
        FailingReason::NameTaken
    );
    bed.two_sweeps().await;
    assert_eq!(bed.engine.containers()["default.web.1.1"].observed.id, id);
    assert_eq!(bed.starts(), 0);
    bed.stop().await;
}
