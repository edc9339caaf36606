//! The binary against a store: the embedded one, served on loopback by the test itself. No controller and no engine runs,
//! so that what is seen is what the verbs read and write.

use std::path::PathBuf;
use std::process::{Command, Output};

use runtime::{EtcdStore, Guard, Store, person};
use schemas::kinds::Document;
use schemas::names::Slot;
use schemas::records::{Accepted, AcceptedBody, ClusterMarker, Digest, Record, SchemaVersion, Uid};
use tempfile::TempDir;

/// A store on loopback; it ends with the test.
pub(crate) struct Lab {
    pub(crate) endpoint: String,
    pub(crate) dir: TempDir,
    pub(crate) store: EtcdStore,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Lab {
    /// A store without a cluster.
    pub(crate) fn bare() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (endpoint, store, runtime) = crate::common::serve(dir.path());
        Self {
            endpoint,
            dir,
            store,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn new() -> Self {
        let lab = Self::bare();
        lab.exits(0, &["init"]);
        lab
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
        command
            .args(args)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "80")
            .env("HOME", self.dir.path());
        command
            .env("REEVE_ETCD", &self.endpoint)
            .env("USER", "ann")
            .env_remove("REEVE_NAMESPACE")
            .env_remove("SUDO_USER");
        command.output().expect("reeve starts")
    }

    /// It must exit with this code; what it printed, then what it complained of.
    pub(crate) fn exits(&self, code: i32, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "reeve {args:?}\n{out}{err}");
        (out, err)
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> i64 {
        let txn = person::txn().put(key, value.as_bytes().to_vec(), Guard::Any);
        let outcome = self.on(self.store.commit(txn)).expect("a write");
        let runtime::Outcome::Committed { revision } = outcome else {
            panic!("{outcome:?}")
        };
        revision
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let read = self.on(self.store.get(key.as_bytes())).expect("a read");
        read.value.map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
    }

    /// When the cluster was last written, whatever is recorded of who did it.
    pub(crate) fn revision(&self) -> i64 {
        let prefix = runtime::Prefix::new("/reeve/").expect("a prefix");
        let all = self.on(self.store.list(&prefix)).expect("a read").kvs;
        let written = all.iter().filter(|kv| !kv.key.starts_with(b"/reeve/audit/"));
        written.map(|kv| kv.mod_revision).max().unwrap_or(0)
    }

    pub(crate) fn on<F: Future>(&self, future: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("the runtime ends with the lab")
            .block_on(future)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  container:
    image: nginx:1.27
";

#[test]
fn a_store_becomes_a_cluster_once() {
    let lab = Lab::bare();
    let (_, err) = lab.exits(6, &["get", "services"]);
    assert!(err.contains("holds no cluster") && err.contains("reeve init"), "{err}");
    let (out, _) = lab.exits(0, &["init", "-o", "name"]);
    let (_, err) = lab.exits(4, &["init"]);
    assert!(err.contains(out.trim()), "{err}");
    let other = lab.exits(0, &["init", "--prefix", "/other/", "-o", "name"]).0;
    let networked = ["init", "--prefix", "/networked/", "--network"];
    let (_, err) = lab.exits(2, &[networked.as_slice(), &["8.0.0.0/8"]].concat());
    assert!(err.contains("8.0.0.0/8"), "{err}");
    lab.exits(2, &["init", "--prefix", "/networked/", "--backend", "vxlan"]);
    let (out, _) = lab.exits(
        0,
        &[networked.as_slice(), &["10.99.0.0/16", "--backend", "vxlan"]].concat(),
    );
    assert!(
        out.contains("its network: 10.99.0.0/16, a /24 for each node, by vxlan"),
        "{out}"
    );
    let (out, _) = lab.exits(0, &["network", "status", "--prefix", "/networked/"]);
    assert!(out.contains("10.99.0.0/16"), "{out}");
    assert_ne!(other, out);
}

#[test]
fn what_is_applied_comes_out_again_and_is_unchanged_when_applied_once_more() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    let (out, _) = lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    assert!(out.contains("service/web: new") && out.lines().count() <= 12, "{out}");
    let revision = lab.revision();
    let (yaml, _) = lab.exits(0, &["get", "service", "web", "-o", "yaml"]);
    assert!(yaml.contains(&format!("resourceVersion: \"{revision}\"")), "{yaml}");
    for format in ["yaml", "json"] {
        let (text, _) = lab.exits(0, &["get", "service", "web", "-o", format]);
        let again = lab.file("again.yaml", &text);
        let (out, _) = lab.exits(0, &["apply", "-f", &again, "--no-wait"]);
        assert!(out.contains("unchanged"), "{out}");
    }
    assert_eq!(lab.revision(), revision, "an unchanged document is not written");
    assert_eq!(
        lab.exits(0, &["plan", "-f", &file, "--exit-code"]).0.lines().next(),
        Some("service/web: unchanged")
    );
    assert_eq!(lab.exits(0, &["get", "svc", "-o", "name"]).0, "service/web\n");
    let (out, _) = lab.exits(0, &["get", "services", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value[0]["spec"]["replicas"], 2);
}

#[test]
fn a_plan_writes_nothing_and_tells_differences_by_its_exit_code() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    let before = lab.revision();
    lab.exits(0, &["plan", "-f", &file]);
    lab.exits(1, &["plan", "-f", &file, "--exit-code"]);
    assert_eq!(lab.revision(), before);
}

#[test]
fn invalid_documents_write_nothing_at_all() {
    let lab = Lab::new();
    let bad = WEB.replace("replicas: 2", "replicas: two");
    let file = lab.file(
        "both.yaml",
        &format!("{}---\n{bad}", WEB.replace("name: web", "name: api")),
    );
    let before = lab.revision();
    let (_, err) = lab.exits(9, &["apply", "-f", &file]);
    assert!(err.contains("both.yaml:17:13") && err.contains("two"), "{err}");
    assert_eq!(lab.revision(), before);
}

#[test]
fn a_condition_that_does_not_hold_is_a_conflict_that_names_what_changed() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    lab.exits(4, &["apply", "-f", &file, "--no-wait", "--if-revision", "7"]);
    lab.exits(0, &["apply", "-f", &file, "--no-wait", "--if-revision", "0"]);
    let first = lab.revision();
    let (yaml, _) = lab.exits(0, &["get", "service/web", "-o", "yaml"]);
    let changed = lab.file("changed.yaml", &WEB.replace("replicas: 2", "replicas: 3"));
    lab.exits(
        0,
        &[
            "apply",
            "-f",
            &changed,
            "--no-wait",
            "--if-revision",
            &first.to_string(),
        ],
    );
    let old = lab.file("old.yaml", &yaml.replace("1.27", "1.28"));
    let (_, err) = lab.exits(4, &["apply", "-f", &old, "--no-wait"]);
    let now = lab.revision();
    assert!(
        err.contains(&format!("service/web has revision {now}, not {first}")),
        "{err}"
    );
    let uid = lab.file(
        "uid.yaml",
        &WEB.replace("name: web", "name: web\n  uid: 0123456789abcdef0123456789abcdef"),
    );
    let (_, err) = lab.exits(4, &["apply", "-f", &uid, "--no-wait"]);
    assert!(err.contains("uid none"), "{err}");
    assert_eq!(lab.revision(), now);
}

#[test]
fn an_invalid_value_in_the_store_is_shown_with_its_place() {
    let lab = Lab::new();
    lab.put(
        "/reeve/desired/default/service/web",
        &WEB.replace("replicas: 2", "replicas: two"),
    );
    let (out, _) = lab.exits(0, &["get", "services"]);
    assert!(out.contains("Invalid 7:13"), "{out}");
    let (out, _) = lab.exits(0, &["describe", "service", "web"]);
    assert!(
        out.contains("Invalid") && out.contains("7:13") && out.contains("replicas"),
        "{out}"
    );
    let (out, _) = lab.exits(0, &["get", "service", "web", "-o", "yaml"]);
    assert!(out.contains("replicas: two"), "{out}");
    let file = lab.file("web.yaml", WEB);
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    assert!(!lab.exits(0, &["get", "services"]).0.contains("Invalid"));
}

#[test]
fn foreign_keys_and_garbage_disturb_nothing() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    let long = "x".repeat(200_000);
    for (key, value) in [
        ("/reeve/junk", "x"),
        ("/reeve/desired/default/gadget/x", "{}"),
        ("/reeve/status/default/service/web", "{"),
        ("/reeve/assignments/n1", "[]"),
        ("/reeve/reports/n1", &long),
        ("/reeve/verdicts/n1", "null"),
        ("/reeve/cordons/n1", "\u{0}"),
        ("/reeve/breaker", "x"),
        ("/reeve/nodes/n1", "{\"node\":1}"),
        ("/reeve/election/controller", "\u{1b}[2J"),
        ("/reeve/events/default/x", "x"),
    ] {
        lab.put(key, value);
    }
    let (out, _) = lab.exits(0, &["status"]);
    assert!(
        out.contains("/reeve/junk") && out.contains("web") && out.contains("n1"),
        "{out}"
    );
    assert!(!out.contains('\u{1b}'), "{out}");
    for args in [
        &["get", "all", "-A", "-o", "wide"] as &[&str],
        &["get", "all", "-o", "yaml"],
        &["describe", "service", "web"],
        &["describe", "node", "n1"],
        &["status", "-o", "json"],
        &["events", "-A"],
    ] {
        lab.exits(0, args);
    }
}

#[test]
fn names_that_are_not_there_are_named() {
    let lab = Lab::new();
    for args in [
        &["get", "service", "web"] as &[&str],
        &["describe", "service", "web"],
        &["delete", "service", "web", "--yes"],
        &["scale", "web=2"],
        &["get", "instances", "web.1"],
    ] {
        let (_, err) = lab.exits(6, args);
        assert!(err.contains("web") && err.contains("help: "), "{args:?}: {err}");
    }
    let (_, err) = lab.exits(6, &["cordon", "n9"]);
    assert!(err.contains("no node `n9`"), "{err}");
    lab.exits(0, &["delete", "service", "web", "--yes", "--ignore-not-found"]);
    let (out, err) = lab.exits(0, &["get", "services"]);
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("", "no services in namespace `default`\n")
    );
}

#[test]
fn a_deletion_asks_and_takes_only_what_is_named() {
    let lab = Lab::new();
    let file = lab.file(
        "both.yaml",
        &format!("{WEB}---\n{}", WEB.replace("name: web", "name: api")),
    );
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    let (_, err) = lab.exits(2, &["delete", "service", "web"]);
    assert!(err.contains("--yes"), "{err}");
    let (out, _) = lab.exits(0, &["delete", "service", "web", "--yes", "--timeout", "20s"]);
    assert!(out.lines().count() <= 12, "{out}");
    assert_eq!(lab.exits(0, &["get", "svc", "-o", "name"]).0, "service/api\n");
    lab.exits(0, &["delete", "services", "--all", "-A", "--yes"]);
    assert_eq!(lab.exits(0, &["get", "svc", "-A", "-o", "name"]).0, "");
    lab.exits(0, &["delete", "services", "--all", "--yes"]);
}

/// What a controller and an agent would have written of two instances of `web` on `n1`; returns their uid.
fn run_two(lab: &Lab) -> Uid {
    let cluster = lab.value("/reeve/cluster").expect("a marker");
    let marker = ClusterMarker::decode(cluster.as_bytes()).expect("a marker");
    let admitted = schemas::admit::admit(WEB, None).expect("a valid document").remove(0);
    let Document::Service(service) = admitted.document.clone() else {
        panic!("a service")
    };
    let key = admitted.key();
    let uid = Uid::derive(&marker.id, &key, 1);
    let accepted = Accepted {
        schema_version: SchemaVersion::default(),
        n: 1,
        uid: uid.clone(),
        desired_revision: lab.revision(),
        labels: service.metadata.labels,
        annotations: service.metadata.annotations,
        body: AcceptedBody::Service(Box::new(service.spec)),
    }
    .encode();
    lab.put(
        "/reeve/accepted/default/service/web/1",
        &String::from_utf8_lossy(&accepted),
    );
    let digest = Digest::of(&accepted);
    let one = |slot: &str| {
        serde_json::json!({ "namespace": "default", "kind": "service", "workload": "web", "uid": uid, "slot": slot, "n": 1,
            "digest": digest, "state": "present", "phase": "running", "ready": true })
    };
    let order = serde_json::json!({ "restoreEpoch": 1, "epoch": 1, "generation": 1 });
    let instances = [one("1"), one("2")];
    let body = serde_json::json!({ "schemaVersion": 1, "cluster": marker.id, "node": "n1", "order": order, "applied": order,
        "instances": instances });
    lab.put("/reeve/assignments/n1", &body.to_string());
    lab.put("/reeve/reports/n1", &body.to_string());
    lab.put(
        "/reeve/verdicts/n1",
        r#"{"schemaVersion":1,"verdict":"ready","reason":"its session lives"}"#,
    );
    uid
}

#[test]
fn instances_are_listed_from_assignments_and_reports() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    run_two(&lab);
    let (out, _) = lab.exits(0, &["get", "instances"]);
    assert!(
        out.contains("web.1") && out.contains("web.2") && out.contains("Running"),
        "{out}"
    );
    assert_eq!(
        lab.exits(0, &["get", "in", "-o", "name", "-l", "app=web"]).0,
        "instance/web.1\ninstance/web.2\n"
    );
    assert_eq!(lab.exits(0, &["get", "in", "-o", "name", "-l", "app!=web"]).0, "");
    lab.exits(0, &["describe", "instance", "web.2"]);
}

#[test]
fn a_deletion_acknowledges_exactly_the_removals_it_showed() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    let uid = run_two(&lab);
    let fewer = lab.file("fewer.yaml", &WEB.replace("replicas: 2", "replicas: 1"));
    let (out, err) = lab.exits(2, &["apply", "-f", &fewer, "--no-wait"]);
    assert!(out.contains("remove web.2") && err.contains("--yes"), "{out}{err}");
    let (out, _) = lab.exits(0, &["delete", "service", "web", "--yes", "--no-wait"]);
    assert!(out.contains("stops 2 instances"), "{out}");
    let slots = [Slot::Index(1), Slot::Index(2)];
    let digest = Digest::of_removals(slots.iter().map(|slot| (&uid, slot)));
    let ack = lab.value(&format!("/reeve/acks/{digest}")).expect("an acknowledgement");
    assert!(ack.contains("\"count\":2") && ack.contains("ann@"), "{ack}");
}

#[test]
fn waiting_ends_with_the_status_that_the_controller_writes() {
    let lab = Lab::new();
    let file = lab.file("web.yaml", WEB);
    lab.exits(0, &["apply", "-f", &file, "--no-wait"]);
    let revision = lab.revision();
    let (_, err) = lab.exits(124, &["apply", "-f", &file, "--timeout", "1s"]);
    assert!(err.contains("waits for the controller"), "{err}");
    let status = |ready: u32, conditions: &str| {
        let counts = format!("{{\"desired\":2,\"assigned\":2,\"running\":{ready},\"ready\":{ready},\"updated\":2}}");
        let status = format!(
            "{{\"schemaVersion\":1,\"observedRevision\":{revision},\"generation\":1,\"counts\":{counts},\"conditions\":[{conditions}]}}"
        );
        lab.put("/reeve/status/default/service/web", &status);
    };
    let condition = |kind: &str, status: &str, reason: &str| {
        format!(
            "{{\"type\":\"{kind}\",\"status\":\"{status}\",\"reason\":\"{reason}\",\"message\":\"says {reason}\",\"since\":\"2020-01-01T00:00:00Z\"}}"
        )
    };
    status(
        2,
        &[
            condition("Progressing", "False", "Complete"),
            condition("Ready", "True", "Ready"),
        ]
        .join(","),
    );
    let (_, err) = lab.exits(0, &["apply", "-f", &file]);
    assert!(err.contains("service/web is ready: 2 of 2"), "{err}");
    status(
        1,
        &[
            condition("Progressing", "False", "ImageNotFound"),
            condition("Ready", "False", "Failing"),
        ]
        .join(","),
    );
    let (_, err) = lab.exits(6, &["apply", "-f", &file]);
    assert!(
        err.contains("ImageNotFound") && err.contains("(for ") && err.contains("1 of 2 ready"),
        "{err}"
    );
    status(0, &[condition("Scheduled", "False", "NoNodeFits")].join(","));
    let (_, err) = lab.exits(7, &["apply", "-f", &file]);
    assert!(err.contains("no node takes") && err.contains("NoNodeFits"), "{err}");
    status(0, &[condition("Accepted", "False", "NameTaken")].join(","));
    lab.exits(9, &["apply", "-f", &file]);
}

#[test]
fn nodes_are_cordoned_and_freed() {
    let lab = Lab::new();
    run_two(&lab);
    lab.exits(0, &["cordon", "n1", "--note", "disk"]);
    assert!(
        lab.value("/reeve/cordons/n1")
            .is_some_and(|text| text.contains("\"cordon\"") && text.contains("disk"))
    );
    assert!(lab.exits(0, &["get", "nodes"]).0.contains("Ready,Cordoned"));
    lab.exits(0, &["drain", "n1", "--no-wait"]);
    assert!(
        lab.value("/reeve/cordons/n1")
            .is_some_and(|text| text.contains("\"drain\""))
    );
    let (_, err) = lab.exits(124, &["drain", "n1", "--timeout", "1s"]);
    assert!(err.contains("web.1 on n1"), "{err}");
    lab.exits(2, &["node", "rm", "n1"]);
    lab.exits(0, &["node", "rm", "n1", "--yes", "--no-wait"]);
    assert!(
        lab.value("/reeve/cordons/n1")
            .is_some_and(|text| text.contains("\"retire\""))
    );
    lab.exits(0, &["uncordon", "n1"]);
    assert_eq!(lab.value("/reeve/cordons/n1"), None);
    assert!(lab.exits(0, &["uncordon", "n1"]).0.contains("was not cordoned"));
}

#[test]
fn what_the_breaker_holds_is_let_go_by_its_digest() {
    let lab = Lab::new();
    let digest = "ab".repeat(32);
    let held = format!(
        r#"{{"schemaVersion":1,"spent":0,"held":{{"digest":"{digest}","count":30,"budget":20,"sample":["default/web.1"]}}}}"#
    );
    lab.exits(6, &["admin", "ack", "abababab"]);
    lab.put("/reeve/breaker", &held);
    assert!(lab.exits(0, &["status"]).0.contains("reeve admin ack abababab"));
    lab.exits(6, &["admin", "ack", "cdcdcdcd"]);
    lab.exits(0, &["admin", "ack", "abababab"]);
    assert!(
        lab.value(&format!("/reeve/acks/{digest}"))
            .is_some_and(|text| text.contains("\"count\":30"))
    );
}

#[test]
fn accepting_a_store_raises_the_restore_epoch_above_all_that_was_applied_and_no_liar_uses_it_up() {
    let lab = Lab::new();
    run_two(&lab);
    let epoch = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON")["restoreEpoch"].clone();
    assert_eq!(
        epoch(&lab.exits(0, &["admin", "accept-store", "--yes", "-o", "json"]).0),
        2
    );
    let report = lab.value("/reeve/reports/n1").expect("a report");
    let says = |epoch: &str| report.replace("\"restoreEpoch\":1", &format!("\"restoreEpoch\":{epoch}"));
    lab.put("/reeve/reports/n1", &says("7"));
    assert_eq!(
        epoch(&lab.exits(0, &["admin", "accept-store", "--yes", "-o", "json"]).0),
        8
    );
    lab.put("/reeve/reports/n1", &says("18446744073709551615"));
    assert_eq!(
        epoch(&lab.exits(0, &["admin", "accept-store", "--yes", "-o", "json"]).0),
        9
    );
    assert_eq!(epoch(&lab.value("/reeve/cluster").expect("a marker")), 9);
}

#[test]
fn a_cluster_moves_to_an_empty_store_and_the_old_one_says_where() {
    let (from, to) = (Lab::new(), Lab::bare());
    let file = from.file("web.yaml", WEB);
    from.exits(0, &["apply", "-f", &file, "--no-wait"]);
    run_two(&from);
    from.put("/reeve/election/controller", "{}");
    from.exits(2, &["admin", "migrate-store", "--to", &to.endpoint]);
    from.exits(0, &["admin", "migrate-store", "--to", &to.endpoint, "--yes"]);
    let (_, err) = from.exits(6, &["get", "services"]);
    assert!(err.contains("has moved to") && err.contains(&to.endpoint), "{err}");
    assert_eq!(to.exits(0, &["get", "svc", "-o", "name"]).0, "service/web\n");
    assert_eq!(to.value("/reeve/assignments/n1"), from.value("/reeve/assignments/n1"));
    assert_eq!(to.value("/reeve/election/controller"), None);
    let id = |lab: &Lab, field: &str| {
        let marker = lab.value("/reeve/cluster").expect("a marker");
        serde_json::from_str::<serde_json::Value>(&marker).expect("JSON")[field].clone()
    };
    assert_eq!(id(&to, "id"), id(&from, "id"));
    assert_eq!(id(&to, "restoreEpoch"), 2);
    let other = Lab::new();
    let (_, err) = other.exits(4, &["admin", "migrate-store", "--to", &to.endpoint, "--yes"]);
    assert!(err.contains("not empty"), "{err}");
}
