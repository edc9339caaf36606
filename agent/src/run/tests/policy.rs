//! The node's policy in the loop: what is denied is neither fetched nor made, what runs is never stopped by it, and every
//! reason is told.

use super::*;

fn privileged(image: &str) -> Value {
    let mut spec = spec(image);
    spec["container"]["privileged"] = json!(true);
    spec
}

impl Bed {
    /// Writes the policy in one step, as an editor does.
    fn policy(&self, text: &str) {
        let new = self.dir.path().join("policy.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.dir.path().join("policy.yaml")).unwrap();
    }

    fn calls(&self, verb: &str) -> usize {
        let begins = format!("{verb} ");
        self.engine
            .calls()
            .iter()
            .filter(|call| call.starts_with(&begins))
            .count()
    }
}

fn denied(report: &Report) -> Option<String> {
    let failing = one(report)?.failing.as_ref()?;
    (failing.reason == FailingReason::PolicyDenied).then(|| failing.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_denies_is_neither_fetched_nor_made_until_the_policy_allows_it() {
    let mut bed = Bed::new();
    bed.engine.drop_images();
    bed.start();
    let mut spec = privileged("app:1");
    spec["container"]["pidMode"] = json!("host");
    spec["container"]["mounts"] = json!([{ "type": "bind", "source": "/etc", "target": "/x" }]);
    let web = bed.accept("web", 1, 1, spec);
    bed.assign(&[web]);
    let report = bed.until("denied", |report| denied(report).is_some()).await;
    let line = one(&report).unwrap();
    assert_eq!((line.phase, line.failing.as_ref().unwrap().n), (Phase::Failed, 1));
    let said = denied(&report).unwrap();
    for word in [
        "container.privileged",
        "container.pidMode",
        "container.mounts[0]",
        "privileged: true",
        "hostPaths",
    ] {
        assert!(said.contains(word), "{word} in {said}");
    }
    // A denial is no failure that is tried again and again.
    let before = bed.store.revision();
    bed.two_sweeps().await;
    assert_eq!(
        bed.engine.calls(),
        Vec::<String>::new(),
        "nothing is asked of the engine"
    );
    assert_eq!(bed.store.revision(), before, "nothing is written");

    bed.policy("privileged: true\nhostNamespaces: [pid]\n");
    bed.until("one reason is left", |report| {
        denied(report).is_some_and(|said| said.contains("hostPaths") && !said.contains("privileged"))
    })
    .await;
    bed.policy("privileged: true\nhostNamespaces: [pid]\nhostPaths: [{path: /etc}]\n");
    bed.until("it runs", ready).await;
    assert_eq!((bed.calls("pull"), bed.calls("create")), (1, 1));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_change_stops_nothing() {
    let mut bed = hello().await;
    let web = bed.accept("web", 1, 2, privileged("app:2"));
    bed.assign(&[web]);
    let report = bed.until("denied", |report| denied(report).is_some()).await;
    let line = one(&report).unwrap();
    assert_eq!((line.n, line.ready, line.failing.as_ref().unwrap().n), (1, true, 2));
    assert_eq!(
        line.next.as_ref().map(|next| (next.n, next.phase)),
        Some((2, Phase::Held))
    );
    bed.two_sweeps().await;
    assert_eq!(bed.calls("stop"), 0);
    assert_eq!(bed.engine.running(), ["default.web.1.1".to_owned()].into());
    // What is corrected goes through.
    let web = bed.accept("web", 1, 3, spec("app:2"));
    bed.assign(&[web]);
    bed.until("the corrected one is ready", |report| {
        one(report).is_some_and(|line| line.n == 3 && line.ready && line.failing.is_none())
    })
    .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stricter_policy_stops_nothing_that_runs_and_says_so() {
    let mut bed = Bed::new();
    bed.policy("privileged: true\n");
    bed.start();
    let web = bed.accept("web", 1, 1, privileged("app:1"));
    bed.assign(&[web]);
    bed.until("it runs", |report| {
        ready(report) && one(report).unwrap().conditions.is_empty()
    })
    .await;
    bed.policy("privileged: false\n");
    let told = |report: &Report| {
        one(report).is_some_and(|line| {
            line.ready && line.failing.is_none() && line.conditions.iter().any(|one| one.reason == "PolicyDenied")
        })
    };
    bed.until("told, and ready", told).await;
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("a crashed one is restarted", |engine| engine.running().len() == 1)
        .await;
    // Also by an agent that starts under the stricter policy.
    bed.kill().await;
    bed.engine.crash("default.web.1.1", 1);
    bed.start();
    bed.until("restarted, and told", told).await;
    assert_eq!((bed.calls("stop"), bed.calls("remove"), bed.calls("create")), (0, 0, 1));
    // Made again it is not.
    bed.engine.remove_by_hand("default.web.1.1");
    bed.until("denied", |report| denied(report).is_some()).await;
    assert_eq!(bed.calls("create"), 1);
    bed.policy("privileged: true\n");
    bed.until("it is back", |report| {
        ready(report) && one(report).unwrap().conditions.is_empty()
    })
    .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_cannot_be_read_lets_nothing_new_be_made_and_keeps_what_runs() {
    let mut bed = hello().await;
    bed.policy("privileged: [\n");
    let unreadable = |report: &Report| report.conditions.iter().any(|one| one.reason == "PolicyUnreadable");
    let report = bed.until("said", unreadable).await;
    assert!(
        report.conditions[0].message.contains("policy.yaml:1:"),
        "{:?}",
        report.conditions
    );
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let db = bed.accept("db", 1, 1, spec("app:1"));
    bed.assign(&[db, web]);
    bed.until("nothing new", |report| {
        report.instances.len() == 2 && denied(report).is_some()
    })
    .await;
    bed.engine.crash("default.web.1.1", 1);
    bed.engine_until("what ran is restarted", |engine| {
        engine.running().contains("default.web.1.1")
    })
    .await;
    let report = bed.report().unwrap();
    let web = report
        .instances
        .iter()
        .find(|line| line.workload.as_str() == "web")
        .unwrap();
    assert_eq!(
        (web.conditions.len(), web.failing.is_none()),
        (0, true),
        "nothing is said of what runs"
    );
    bed.policy("{}\n");
    bed.until("db is made", |report| {
        report.instances.len() == 2 && ready(report) && !unreadable(report)
    })
    .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_leads_elsewhere_by_the_time_of_the_create_is_caught_there() {
    let mut bed = Bed::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("open/data")).unwrap();
    let link = dir.path().join("open/link");
    std::os::unix::fs::symlink(dir.path().join("open/data"), &link).unwrap();
    bed.policy(&format!(
        "hostPaths: [{{path: {}}}]\n",
        dir.path().join("open").display()
    ));
    // No sweep looks again within the test's patience.
    bed.sweep = Duration::from_secs(600);
    // The question is answered; then the image takes its time, and meanwhile the link is turned.
    bed.engine.drop_images();
    bed.engine.hang("pull");
    bed.start();
    let mut spec = spec("app:1");
    spec["container"]["mounts"] = json!([{ "type": "bind", "source": link, "target": "/x" }]);
    let web = bed.accept("web", 1, 1, spec);
    bed.assign(&[web]);
    bed.until("it is being fetched", |report| {
        one(report).is_some_and(|line| matches!(line.phase, Phase::Pulling { .. }))
    })
    .await;
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    bed.engine.release("pull");
    let report = bed.until("denied", |report| denied(report).is_some()).await;
    assert!(denied(&report).unwrap().contains("/etc"), "{report:?}");
    assert_eq!(bed.engine.containers().len(), 0);
    bed.stop().await;
}
