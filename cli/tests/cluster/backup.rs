//! `reeve admin backup` and `restore`: what a file is, what is refused of it and why, what an interruption leaves, and that a
//! cluster which was put back goes on without anything being stopped.

use std::os::unix::fs::PermissionsExt as _;

use runtime::{Guard, Outcome, Prefix, Store, person};
use serde_json::Value;

use crate::lab::Lab;
use crate::store::Lab as Store1;

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata:
  name: web
spec:
  replicas: 2
  container:
    image: nginx:1
";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A store with a cluster, some documents, and a file of it.
fn backed_up() -> (Store1, String) {
    let lab = Store1::new();
    lab.exits(0, &["apply", "-f", &lab.file("web.yaml", WEB), "--no-wait"]);
    lab.put("/reeve/odd", "\u{1}\u{2}\u{3} of nobody's");
    lab.put("/reeve/kv/default/a", "one\ntwo \"three\" \\ ü");
    lab.put("/reeve/acks/x", "a yes");
    let file = lab.dir.path().join("b.backup").display().to_string();
    let (out, _) = lab.exits(0, &["admin", "backup", &file]);
    assert!(out.contains("1 resource in "), "{out}");
    (lab, file)
}

/// All keys but those of what was done, which differ.
fn keys(lab: &Store1) -> Vec<(String, String)> {
    let prefix = Prefix::new("/reeve/").expect("a prefix");
    let all = lab.on(lab.store.list(&prefix)).expect("a list").kvs;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = all.iter().map(|kv| (text(&kv.key), text(&kv.value)));
    all.filter(|(key, _)| !key.starts_with("/reeve/audit/")).collect()
}

#[test]
fn a_file_holds_all_of_the_cluster_and_goes_into_an_empty_store() {
    let (lab, file) = backed_up();
    let mode = std::fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = json(&lab.exits(0, &["admin", "backup", &file, "-o", "json"]).0);
    assert_eq!(said["resources"], 1);
    let (text, told) = lab.exits(0, &["admin", "backup", "-"]);
    assert!(
        text.lines().count() > 5 && told.contains("to standard output"),
        "{text}{told}"
    );
    let empty = Store1::bare();
    let (out, _) = empty.exits(0, &["admin", "restore", &file]);
    assert!(
        out.contains("is back, in restore epoch 2") && out.contains("nothing is stopped"),
        "{out}"
    );
    let (before, after) = (keys(&lab), keys(&empty));
    let names = |all: &[(String, String)]| all.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    let mut kept = names(&before);
    kept.retain(|key| key != "/reeve/acks/x");
    assert_eq!(names(&after), kept, "a yes of another day does not count again");
    for pair in after.iter().filter(|(key, _)| key != "/reeve/cluster") {
        assert!(before.contains(pair), "{pair:?}");
    }
    let marker = json(&empty.value("/reeve/cluster").expect("a marker"));
    assert_eq!(marker["restoreEpoch"], 2);
    assert_eq!(empty.exits(0, &["get", "services", "-o", "name"]).0, "service/web\n");
    // Twice is refused, and over it is asked.
    let (_, err) = empty.exits(4, &["admin", "restore", &file]);
    assert!(err.contains("already") && err.contains("--over"), "{err}");
    let (_, err) = empty.exits(2, &["admin", "restore", &file, "--over"]);
    assert!(err.contains("--yes"), "{err}");
    // Under another prefix, and from standard input.
    empty.exits(0, &["admin", "restore", &file, "--prefix", "/two/"]);
    assert!(empty.value("/two/desired/default/service/web").is_some());
}

#[test]
fn over_the_same_cluster_the_store_declares_again_what_the_file_does() {
    let (lab, file) = backed_up();
    lab.exits(0, &["delete", "service", "web", "--yes", "--no-wait"]);
    let api = WEB.replace("name: web", "name: api");
    lab.exits(0, &["apply", "-f", &lab.file("api.yaml", &api), "--no-wait"]);
    lab.put("/reeve/reports/n1", "what a node says is its own");
    let (out, _) = lab.exits(0, &["admin", "restore", &file, "--over", "--yes"]);
    assert!(out.contains("declared again: default/service/web"), "{out}");
    assert!(
        out.contains("no longer declared") && out.contains("default/service/api"),
        "{out}"
    );
    assert_eq!(lab.exits(0, &["get", "services", "-o", "name"]).0, "service/web\n");
    assert!(lab.value("/reeve/reports/n1").is_some() && lab.value("/reeve/acks/x").is_none());
    let other = Store1::new();
    let id = json(&lab.value("/reeve/cluster").expect("a marker"))["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    for args in [&["--over", "--yes"] as &[&str], &[]] {
        let (_, err) = other.exits(4, &[&["admin", "restore", &file], args].concat());
        let own = json(&other.value("/reeve/cluster").expect("a marker"));
        assert!(
            err.contains(&id) && err.contains(own["id"].as_str().expect("an id")),
            "{err}"
        );
    }
}

#[test]
fn what_an_interrupted_run_left_is_gone_on_with_and_what_is_somebody_elses_is_not() {
    let (lab, file) = backed_up();
    // As a crash before the marker leaves it: some of the keys, each as the file has it.
    let half = Store1::bare();
    let all = keys(&lab);
    for (key, value) in all
        .iter()
        .filter(|(key, _)| key.contains("desired") || key.contains("kv"))
    {
        half.put(key, value);
    }
    half.exits(0, &["admin", "restore", &file]);
    assert_eq!(keys(&half).len(), all.len() - 1);
    let odd = Store1::bare();
    odd.put("/reeve/desired/default/service/other", WEB);
    let (_, err) = odd.exits(4, &["admin", "restore", &file]);
    assert!(err.contains("is not empty") && err.contains("--over"), "{err}");
    assert!(
        odd.value("/reeve/desired/default/service/web").is_none(),
        "nothing was written"
    );
    odd.exits(0, &["admin", "restore", &file, "--over", "--yes"]);
    assert!(odd.value("/reeve/desired/default/service/other").is_none());
    // A node of another cluster writes there.
    let foreign = Store1::bare();
    let report = serde_json::json!({ "schemaVersion": 1, "cluster": "0".repeat(32), "node": "n1",
        "applied": { "restoreEpoch": 1, "epoch": 1, "generation": 1 }, "instances": [] });
    foreign.put("/reeve/reports/n1", &report.to_string());
    let (_, err) = foreign.exits(4, &["admin", "restore", &file, "--over", "--yes"]);
    assert!(
        err.contains("/reeve/reports/n1") && err.contains(&"0".repeat(32)),
        "{err}"
    );
}

#[test]
fn the_restore_epoch_is_above_all_that_nodes_have_seen_and_no_liar_uses_it_up() {
    let (lab, file) = backed_up();
    let cluster = json(&lab.value("/reeve/cluster").expect("a marker"))["id"].clone();
    for (node, epoch) in [("n1", 6_u64), ("n2", u64::MAX)] {
        let report = serde_json::json!({ "schemaVersion": 1, "cluster": cluster, "node": node,
            "applied": { "restoreEpoch": epoch, "epoch": 1, "generation": 1 }, "instances": [] });
        lab.put(&format!("/reeve/reports/{node}"), &report.to_string());
    }
    let (out, _) = lab.exits(0, &["admin", "restore", &file, "--over", "--yes", "-o", "json"]);
    assert_eq!(json(&out)["restoreEpoch"], 7);
}

#[test]
fn a_file_that_is_damaged_in_any_place_is_refused_with_the_place_before_anything_is_written() {
    let (_lab, file) = backed_up();
    let whole = std::fs::read(&file).expect("the file");
    let empty = Store1::bare();
    let refused = |bytes: &[u8], says: &str| {
        let path = empty.dir.path().join("bad.backup");
        std::fs::write(&path, bytes).expect("a file");
        let (_, err) = empty.exits(9, &["admin", "restore", &path.display().to_string()]);
        assert!(err.contains(says) && err.contains("help: "), "{says}: {err}");
    };
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let (third, last) = (lines[..3].concat().len() - 9, lines.len());
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    refused(&flip(third), "damaged at line 3");
    refused(&flip(3), "damaged at line 1");
    refused(&flip(whole.len() - 9), &format!("damaged at line {last}"));
    refused(
        &lines[..last - 1].concat(),
        &format!("cut short after line {}", last - 1),
    );
    refused(
        &whole[..whole.len() - 20],
        &format!("cut short after line {}", last - 1),
    );
    let without = [&lines[..3], &lines[4..]].concat().concat();
    refused(&without, &format!("damaged at line {}", last - 1));
    refused(&[whole.clone(), whole.clone()].concat(), "more after the last line");
    refused(b"", "is not a backup");
    refused(b"PK\x03\x04 something else\n", "is not a backup");
    assert_eq!(empty.revision(), 0);
    empty.exits(6, &["admin", "restore", "/nonexistent/x"]);
    empty.exits(6, &["admin", "backup", "/nonexistent/x"]);
}

#[test]
fn a_running_cluster_goes_on_from_yesterdays_store_and_nothing_of_it_is_stopped() {
    let lab = Lab::with(&["nginx:1", "nginx:2"], "100");
    let engine = || containers(&lab);
    lab.exits(0, &["apply", "-f", &lab.file("web.yaml", WEB.as_bytes())]);
    let file = lab.dir.path().join("b.backup").display().to_string();
    lab.exits(0, &["admin", "backup", &file]);
    let newer = WEB.replace("nginx:1", "nginx:2").replace("replicas: 2", "replicas: 3");
    lab.exits(0, &["apply", "-f", &lab.file("newer.yaml", newer.as_bytes()), "--yes"]);
    let api = WEB.replace("name: web", "name: api");
    lab.exits(0, &["apply", "-f", &lab.file("api.yaml", api.as_bytes())]);
    let before = engine();
    assert_eq!(before.len(), 5);
    lab.exits(0, &["admin", "restore", &file, "--over", "--yes"]);
    lab.until("the store is said to be from before", || {
        lab.out(&["get", "services"]).contains("StoreRegressed")
    });
    lab.until("what is not known is shown", || {
        lab.out(&["get", "instances"]).matches("Orphaned").count() == 2
    });
    assert_eq!(engine(), before);
    assert!(lab.out(&["describe", "service", "web"]).contains("reeve apply"));
    // What people say now counts: what runs is what should run.
    lab.exits(0, &["apply", "-f", &lab.file("newer.yaml", newer.as_bytes())]);
    lab.exits(0, &["apply", "-f", &lab.file("api.yaml", api.as_bytes())]);
    assert_eq!(engine(), before);
    assert!(!lab.out(&["status"]).contains("StoreRegressed"));
    // Wiped, and put back.
    lab.exits(0, &["admin", "backup", &file]);
    wipe(&lab);
    lab.exits(0, &["admin", "restore", &file]);
    lab.until("all is as it was", || lab.out(&["get", "nodes"]).contains("5/5"));
    lab.exits(0, &["scale", "web=4"]);
    let after = engine();
    assert!(before.iter().all(|one| after.contains(one)) && after.len() == 6);
}

/// All containers, by name: which they are.
fn containers(lab: &Lab) -> Vec<(String, String)> {
    let all = lab.engine.containers().into_iter();
    all.map(|(name, one)| (name, one.observed.id.clone())).collect()
}

fn wipe(lab: &Lab) {
    let prefix = Prefix::new("/reeve/").expect("a prefix");
    let all = lab.on(lab.store.list(&prefix)).expect("a list").kvs;
    let txns = all
        .into_iter()
        .map(|kv| person::txn().delete(kv.key, Guard::Any))
        .collect();
    for outcome in lab.on(lab.store.batch(txns)) {
        assert!(matches!(outcome, Ok(Outcome::Committed { .. })), "{outcome:?}");
    }
}

#[test]
fn without_any_store_and_backup_the_cluster_is_made_again_from_what_its_agents_keep() {
    let lab = Lab::with(&["nginx:1", "nginx:2"], "100");
    lab.exits(0, &["apply", "-f", &lab.file("web.yaml", WEB.as_bytes())]);
    let api = WEB.replace("name: web", "name: api\n  labels: {team: a}");
    lab.exits(0, &["apply", "-f", &lab.file("api.yaml", api.as_bytes())]);
    lab.exits(0, &["scale", "api=3"]);
    let before = containers(&lab);
    let agent = lab.dir.path().join("agent").display().to_string();
    let copy = lab.dir.path().join("n1.copy").display().to_string();
    lab.exits(0, &["node", "copy", &copy, "--data-dir", &agent]);
    let marker = lab
        .on(lab.store.get(b"/reeve/cluster"))
        .expect("a read")
        .value
        .expect("a marker");
    wipe(&lab);
    let text = lab.exits(2, &["admin", "rebuild", &copy]);
    assert!(
        text.contains("1 node and 2 services") && text.contains("Secrets") && text.contains("--yes"),
        "{text}"
    );
    assert_eq!(lab.count("/reeve/"), 0, "nothing is written without a yes");
    lab.exits(0, &["admin", "rebuild", &copy, "--yes"]);
    lab.until("all is there again", || lab.out(&["get", "nodes"]).contains("5/5"));
    let again = lab
        .on(lab.store.get(b"/reeve/cluster"))
        .expect("a read")
        .value
        .expect("a marker");
    let id = |bytes: &[u8]| json(&String::from_utf8_lossy(bytes))["id"].clone();
    assert_eq!(id(&marker.value), id(&again.value));
    assert_eq!(containers(&lab), before);
    assert_eq!(
        lab.exits(0, &["get", "svc", "-o", "name"]),
        "service/api\nservice/web\n"
    );
    // It is governed again, and what was declared is what was declared.
    assert!(
        lab.exits(0, &["apply", "-f", &lab.file("web.yaml", WEB.as_bytes())])
            .contains("unchanged")
    );
    lab.exits(0, &["scale", "web=3"]);
    let after = containers(&lab);
    assert!(before.iter().all(|one| after.contains(one)) && after.len() == 6);
    let (refused, other) = (lab.exits(4, &["admin", "rebuild", &copy, "--yes"]), Store1::new());
    assert!(refused.contains("already"), "{refused}");
    let (_, err) = other.exits(4, &["admin", "rebuild", &copy, "--yes", "--over"]);
    assert!(err.contains("holds cluster"), "{err}");
}

#[test]
fn copies_that_contradict_each_other_are_refused_by_the_names_of_their_nodes() {
    let lab = Lab::with(&["nginx:1"], "100");
    lab.exits(0, &["apply", "-f", &lab.file("web.yaml", WEB.as_bytes())]);
    let (one, two) = (lab.dir.path().join("agent"), lab.dir.path().join("two"));
    std::fs::create_dir_all(two.join("specs")).expect("a directory");
    let assignment = std::fs::read_to_string(one.join("assignment.json")).expect("an assignment");
    let spec = std::fs::read_dir(one.join("specs"))
        .expect("specs")
        .next()
        .expect("one")
        .expect("one");
    let bytes = std::fs::read_to_string(spec.path()).expect("a spec");
    let altered = bytes.replace("nginx:1", "nginx:9");
    let (digest, other) = (
        schemas::records::Digest::of(bytes.as_bytes()).to_string(),
        schemas::records::Digest::of(altered.as_bytes()).to_string(),
    );
    let as_n2 = assignment
        .replace("\"node\":\"n1\"", "\"node\":\"n2\"")
        .replace(&digest, &other);
    std::fs::write(two.join("assignment.json"), as_n2).expect("a file");
    let name = spec.file_name().to_string_lossy().replace(&digest, &other);
    std::fs::write(two.join("specs").join(name), &altered).expect("a file");
    let empty = Store1::bare();
    let (one, two) = (one.display().to_string(), two.display().to_string());
    let (_, err) = empty.exits(4, &["admin", "rebuild", &one, &two, "--yes"]);
    assert!(
        err.contains("`n1`") && err.contains("`n2`") && err.contains("--believe"),
        "{err}"
    );
    assert_eq!(empty.revision(), 0);
    empty.exits(0, &["admin", "rebuild", &one, &two, "--yes", "--believe", "n1"]);
    let web = empty.value("/reeve/desired/default/service/web").expect("web");
    assert!(web.contains("nginx:1"), "{web}");
    let junk = empty.file("junk.copy", "no copy");
    empty.exits(9, &["admin", "rebuild", &junk, "--yes"]);
    empty.exits(
        6,
        &["admin", "rebuild", &empty.dir.path().display().to_string(), "--yes"],
    );
    empty.exits(2, &["admin", "rebuild", &one, "--yes", "--trust", &two]);
}
