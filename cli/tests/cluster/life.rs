//! The binary against a whole cluster: the embedded store, a controller, and an agent on an engine in memory, all in this
//! process. What a person sees of one service's life, and how many lines of it.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use runtime::{Guard, Outcome, Prefix, Store, person};

fn started() -> Lab {
    Lab::with(&["nginx:1", "nginx:2"], "80")
}

impl Lab {
    /// As `exits(0, ..)`, on one screen: at most 12 lines of at most 80 columns.
    fn short(&self, args: &[&str]) -> String {
        let text = self.exits(0, args);
        assert!(text.lines().count() <= 12, "{} lines: {text}", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text
    }

    fn value(&self, key: &str) -> Option<String> {
        let read = self.on(self.store.get(key.as_bytes())).expect("a read");
        read.value.map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
    }

    /// Writes past every rule, as a restore does.
    fn put(&self, key: &str, value: &str) {
        let txn = person::txn().put(key, value.as_bytes().to_vec(), Guard::Any);
        let outcome = self.on(self.store.commit(txn)).expect("a write");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    /// Deletes all under these prefixes at once, as an accident does.
    fn wipe(&self, prefixes: &[&str]) {
        let mut txn = person::txn();
        for prefix in prefixes {
            let prefix = Prefix::new(*prefix).expect("a prefix");
            let listing = self.on(self.store.list(&prefix)).expect("a list");
            for kv in listing.kvs {
                txn = txn.delete(kv.key, Guard::Any);
            }
        }
        let outcome = self.on(self.store.commit(txn)).expect("a write");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    fn manifest(&self, text: &str) -> String {
        self.file("web.yaml", text.as_bytes())
    }
}

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata:
  name: web
spec:
  replicas: 3
  container:
    image: nginx:1
  update:
    minReady: 10ms
";

#[test]
fn the_life_of_a_service_takes_four_commands_of_one_screen_each() {
    let lab = started();
    let text = lab.short(&["apply", "-f", &lab.manifest(WEB)]);
    assert!(
        text.contains("create web.1-3 on n1") && text.contains("service/web is ready: 3 of 3"),
        "{text}"
    );
    let changed = lab.manifest(&WEB.replace("nginx:1", "nginx:2"));
    lab.exits(1, &["plan", "-f", &changed, "--exit-code"]);
    let text = lab.short(&["apply", "-f", &changed]);
    assert!(
        text.contains("replace web.1-3 on n1: container.image changed"),
        "{text}"
    );
    assert!(text.contains("plan: 3 to replace"), "{text}");
    lab.exits(0, &["plan", "-f", &changed, "--exit-code"]);
    let text = lab.exits(2, &["scale", "web=1"]);
    assert!(text.contains("remove web.2-3") && text.contains("--yes"), "{text}");
    let text = lab.short(&["scale", "web=1", "--yes"]);
    assert!(text.contains("plan: 2 to remove, 1 to keep"), "{text}");
    assert_eq!(
        lab.exits(0, &["get", "instances", "-o", "name"]),
        "instance/web.1\n",
        "what was removed is gone"
    );
    let text = lab.short(&["delete", "service", "web", "--yes"]);
    assert!(
        text.contains("stops 1 instance") && text.contains("service/web is gone"),
        "{text}"
    );
    assert_eq!(lab.exits(0, &["get", "all", "-o", "name"]), "node/n1\n");
}

#[test]
fn with_the_longest_names_each_command_still_takes_twelve_rows_of_80_columns() {
    let lab = started();
    let (name, namespace) = ("w".repeat(60), "n".repeat(63));
    let web = WEB.replace("name: web", &format!("name: {name}\n  namespace: {namespace}"));
    let rows = |text: &str| {
        text.lines()
            .map(|line| line.chars().count().div_ceil(80).max(1))
            .sum::<usize>()
    };
    let target = format!("{name}=1");
    let changed = web.replace("nginx:1", "nginx:2");
    for (file, args) in [
        (Some(&web), vec!["apply", "-f", "FILE"]),
        (Some(&changed), vec!["apply", "-f", "FILE"]),
        (None, vec!["scale", &target, "--yes", "-n", &namespace]),
        (None, vec!["delete", "service", &name, "--yes", "-n", &namespace]),
    ] {
        let path = file.map(|text| lab.manifest(text)).unwrap_or_default();
        let args: Vec<&str> = args
            .into_iter()
            .map(|arg| if arg == "FILE" { path.as_str() } else { arg })
            .collect();
        let text = lab.exits(0, &args);
        assert!(rows(&text) <= 12, "{args:?}: {} rows: {text}", rows(&text));
    }
}

#[test]
fn after_a_store_has_gone_back_all_is_held_until_a_person_accepts_it() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    let old = lab.value("/reeve/assignments/n1").expect("an assignment");
    lab.exits(0, &["scale", "web=4"]);
    // As a restored backup would have it.
    lab.put("/reeve/assignments/n1", &old);
    lab.until("the agent holds", || {
        lab.out(&["get", "nodes"]).contains("StoreRegressed")
    });
    let more = lab.exits(124, &["scale", "web=5", "--timeout", "2s"]);
    assert!(more.contains("accept-store"), "{more}");
    let text = lab.exits(2, &["admin", "accept-store"]);
    assert!(
        text.contains("1 node applied what this store does not hold: n1"),
        "{text}"
    );
    let text = lab.exits(0, &["admin", "accept-store", "--yes"]);
    assert!(text.contains("restore epoch 2"), "{text}");
    lab.exits(0, &["scale", "web=5"]);
    let nodes = lab.out(&["get", "nodes"]);
    assert!(nodes.contains("5/5") && !nodes.contains("StoreRegressed"), "{nodes}");
}

#[test]
fn a_change_that_fails_ends_with_the_reason_and_the_rest_serves_on() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    let missing = lab.manifest(&WEB.replace("nginx:1", "nginx:9"));
    lab.engine.fail_pull("nginx:9", agent::engine::ErrorKind::ImageNotFound);
    let text = lab.exits(6, &["apply", "-f", &missing, "--timeout", "30s"]);
    assert!(
        text.contains("ImageNotFound") && text.contains("3 of 3 ready"),
        "{text}"
    );
    assert!(lab.exits(0, &["get", "services"]).contains("ImageNotFound"));
    assert!(lab.exits(0, &["describe", "service", "web"]).contains("ImageNotFound"));
    lab.short(&["apply", "-f", &lab.manifest(WEB)]);
}

#[test]
fn what_no_node_takes_is_refused_with_every_rule_that_refused_it() {
    let lab = started();
    let picky = WEB.replace("  update:", "  placement:\n    nodeNames: [elsewhere]\n  update:");
    let file = lab.manifest(&picky);
    let text = lab.exits(0, &["plan", "-f", &file]);
    assert!(
        text.contains("cannot place web.1-3") && text.contains("NodeName"),
        "{text}"
    );
    let text = lab.exits(7, &["apply", "-f", &file, "--timeout", "30s"]);
    assert!(text.contains("NodeName: 1 node (n1)"), "{text}");
}

#[test]
fn a_drained_node_is_waited_for() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    // The only node: what it runs has nowhere to go, and stays.
    let text = lab.exits(124, &["drain", "n1", "--timeout", "1s"]);
    assert!(text.contains("3 instances left"), "{text}");
    assert!(
        text.contains("web.1 on n1: nowhere to go: NodeCordoned: 1 node (n1)"),
        "{text}"
    );
    assert!(lab.exits(0, &["get", "nodes"]).contains("Draining"));
    lab.exits(0, &["uncordon", "n1"]);
    lab.exits(0, &["node", "rm", "n1", "--yes", "--timeout", "30s"]);
    assert!(lab.exits(0, &["get", "nodes"]).contains("Retired"));
}

#[test]
fn what_a_change_removes_is_waited_for() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    lab.engine.hang("stop");
    let text = lab.exits(124, &["scale", "web=1", "--yes", "--timeout", "2s"]);
    assert!(text.contains("2 instances to stop"), "{text}");
    lab.engine.release("stop");
    lab.exits(0, &["scale", "web=1", "--timeout", "30s"]);
}

#[test]
fn what_no_record_knows_runs_on_until_a_person_removes_it() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    let text = lab.exits(6, &["admin", "remove-orphan", "n1", "web.1", "--yes"]);
    assert!(text.contains("no orphan: it is assigned"), "{text}");
    lab.wipe(&["/reeve/desired/", "/reeve/accepted/", "/reeve/assignments/"]);
    lab.until("three orphans", || {
        lab.out(&["get", "instances"]).matches("Orphaned").count() == 3
    });
    lab.until("the node says so", || {
        lab.out(&["describe", "node", "n1"]).contains("admin remove-orphan n1")
    });
    let text = lab.exits(2, &["admin", "remove-orphan", "n1", "web.2"]);
    assert!(text.contains("no record knows it") && text.contains("--yes"), "{text}");
    let text = lab.exits(6, &["admin", "remove-orphan", "n1", "web.9", "--yes"]);
    assert!(text.contains("its orphans are default/web.1, default/web.2"), "{text}");
    lab.exits(6, &["admin", "remove-orphan", "n2", "web.2", "--yes"]);
    // The engine refuses for a while: the command says what it waits for.
    lab.engine.hang("stop");
    let text = lab.exits(
        124,
        &["admin", "remove-orphan", "n1", "web.2", "--yes", "--timeout", "2s"],
    );
    assert!(text.contains("is being stopped and removed"), "{text}");
    let text = lab.exits(6, &["admin", "remove-orphan", "n1", "web.2", "--yes"]);
    assert!(text.contains("is being removed already"), "{text}");
    lab.engine.release("stop");
    lab.until("it is gone", || !lab.out(&["get", "instances"]).contains("web.2"));
    let text = lab.short(&["admin", "remove-orphan", "n1", "default/web.3", "--yes"]);
    assert!(text.contains("web.3 is gone from n1"), "{text}");
    let names = lab.exits(0, &["get", "instances", "-o", "name"]);
    assert_eq!(names, "instance/web.1\n", "the other one runs on");
    let text = lab.exits(0, &["admin", "remove-orphan", "n1", "web.1", "--yes", "-o", "json"]);
    assert!(text.contains("\"instance\": \"web.1\""), "{text}");
    assert_eq!(lab.exits(0, &["get", "all", "-o", "name"]), "node/n1\n");
    lab.until("no yes is left over", || lab.count("/reeve/acks/") == 0);
}

#[test]
fn a_service_that_waits_for_a_full_disk_says_which_node_and_why() {
    let lab = started();
    lab.exits(
        0,
        &["apply", "-f", &lab.manifest(&WEB.replace("replicas: 3", "replicas: 1"))],
    );
    let well = lab.exits(0, &["describe", "service", "web"]);
    assert!(!well.contains("Held by"), "{well}");
    lab.engine.set_free(Some(0));
    lab.until("the node says so", || lab.out(&["get", "nodes"]).contains("DiskFull"));
    let well = lab.exits(0, &["describe", "service", "web"]);
    assert!(!well.contains("Held by"), "what runs is not held: {well}");
    lab.exits(0, &["scale", "web=2", "--no-wait"]);
    lab.until("it says what holds it", || {
        let text = lab.out(&["describe", "service", "web"]);
        text.contains("Held by:     node n1: DiskFull: the disk is full")
    });
    lab.engine.set_free(None);
    lab.until("it goes on", || lab.out(&["get", "services"]).contains("2/2"));
    assert!(!lab.out(&["describe", "service", "web"]).contains("Held by"));
}

#[test]
fn scaling_to_what_a_service_has_anyway_changes_nothing() {
    let lab = started();
    lab.exits(0, &["apply", "-f", &lab.manifest(&WEB.replace("  replicas: 3\n", ""))]);
    let before = lab.value("/reeve/desired/default/service/web");
    let text = lab.exits(0, &["scale", "web=1"]);
    assert!(text.contains("unchanged"), "{text}");
    assert_eq!(lab.value("/reeve/desired/default/service/web"), before);
    lab.exits(0, &["scale", "web=2"]);
    // Said once, it is said: going back to one is a change.
    let text = lab.exits(0, &["scale", "web=1", "--yes"]);
    assert!(text.contains("plan: 1 to remove, 1 to keep"), "{text}");
}

#[test]
fn names_that_are_followed_are_kinds_and_names() {
    let lab = started();
    let log = lab.dir.path().join("names");
    let mut watch = Command::new(env!("CARGO_BIN_EXE_reeve"))
        .args(["get", "all", "-w", "-o", "name", "--etcd", &lab.endpoint])
        .env("HOME", lab.dir.path())
        .env_remove("REEVE_NAMESPACE")
        .stdout(std::fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("reeve starts");
    lab.exits(0, &["apply", "-f", &lab.manifest(WEB)]);
    let seen = || std::fs::read_to_string(&log).expect("a file");
    let deadline = Instant::now() + Duration::from_secs(20);
    let wanted = ["node/n1\n", "service/web\n", "instance/web.3\n"];
    while !wanted.iter().all(|name| seen().contains(name)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.exits(0, &["delete", "service", "web", "--yes"]);
    watch.kill().expect("a kill");
    watch.wait().expect("an end");
    let text = seen();
    assert!(wanted.iter().all(|name| text.contains(name)), "{text}");
    let good = |line: &str| ["node/n1", "service/web"].contains(&line) || line.starts_with("instance/web.");
    assert!(text.lines().all(good), "{text}");
}

#[test]
fn a_well_cluster_on_the_embedded_store_has_nothing_to_be_warned_of() {
    let lab = started();
    let text = lab.exits(0, &["doctor"]);
    assert!(
        text.contains("member embedded") && text.contains("1 of 1 ready"),
        "{text}"
    );
    assert!(text.contains(": 0 bad, 0 to be warned of"), "{text}");
    assert!(
        !text.contains("CVE-"),
        "etcd's faults are not the embedded store's: {text}"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
