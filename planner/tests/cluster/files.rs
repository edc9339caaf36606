//! Files: what a new edition, a missing and a deleted file come to for the services that mount them.

use planner::cluster::{Action, Plan, Reason};
use schemas::config_file::{ConfigFileSpec, FileEdition};
use schemas::records::{AcceptedBody, ConditionStatus, ConditionType, ConfigFileStatus, CordonMode};
use serde_json::{Value, json};

use crate::support::{Cluster, file_key, key};

fn mounting(replicas: u32, files: &[&str]) -> Value {
    let files: Vec<Value> = files
        .iter()
        .map(|file| json!({ "file": file, "path": format!("/etc/{file}") }))
        .collect();
    json!({ "replicas": replicas, "container": { "files": files } })
}

/// A cluster where `web` mounts `conf`, `page` mounts nothing, and `both` mounts `conf` and `other`.
fn started() -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.apply_file("conf", json!({ "text": "one" }));
    cluster.apply_file("other", json!({ "text": "other" }));
    cluster.apply("web", mounting(2, &["conf"]));
    cluster.apply("page", mounting(2, &[]));
    cluster.apply("both", mounting(1, &["conf", "other"]));
    cluster.settle();
    cluster
}

fn generation(cluster: &Cluster, service: &str) -> u64 {
    cluster.status(service).generation.expect("it is in force")
}

/// The editions of the last accepted spec of a service, in its order.
fn editions(cluster: &Cluster, service: &str) -> Vec<FileEdition> {
    let (_, last) = cluster.snapshot.accepted[&key(service)]
        .records
        .last_key_value()
        .expect("a record");
    match &last.value.as_ref().expect("readable").body {
        AcceptedBody::Service(spec) => {
            let files = spec.container.files.iter();
            files
                .map(|mount| mount.edition.expect("accepted with an edition"))
                .collect()
        }
        other @ (AcceptedBody::Node(_) | AcceptedBody::ConfigFile(_) | AcceptedBody::Deleted) => panic!("{other:?}"),
    }
}

fn file_status(cluster: &Cluster, file: &str) -> ConfigFileStatus {
    let stored = &cluster.snapshot.file_statuses[&file_key(file)];
    ConfigFileStatus::clone(stored.value.as_ref().expect("readable"))
}

fn reasons(plan: &Plan) -> Vec<(String, &Action, &Reason)> {
    let news = plan.changes.iter().filter(|change| change.action != Action::Keep);
    news.map(|change| (change.instance.to_string(), &change.action, &change.reason))
        .collect()
}

#[test]
fn a_new_edition_replaces_its_users_one_after_the_other_and_nobody_else() {
    let mut cluster = started();
    let page = generation(&cluster, "page");
    cluster.apply_file("other", json!({ "text": "another" }));
    let plan = cluster.passed();
    let fields = vec!["container.files.content".to_owned()];
    let reason = Reason::FileChanged {
        file: "other".parse().unwrap(),
        from: 1,
        to: 2,
    };
    assert_eq!(
        reasons(&plan),
        [("both.1".to_owned(), &Action::Replace { fields }, &reason)]
    );
    assert_eq!(plan.accepted.len(), 2, "the file and its one user");
    cluster.settle();
    assert_eq!((generation(&cluster, "both"), generation(&cluster, "web")), (2, 1));
    cluster.apply_file("conf", json!({ "text": "two" }));
    for _ in 0..40 {
        cluster.pass();
        for node in ["n1", "n2", "n3"] {
            cluster.step(node);
            assert!(cluster.serving("web") >= 1 && cluster.serving("page") == 2);
        }
    }
    assert_eq!((generation(&cluster, "both"), generation(&cluster, "web")), (3, 2));
    assert_eq!(generation(&cluster, "page"), page);
    assert_eq!(
        editions(&cluster, "both").iter().map(|one| one.n).collect::<Vec<_>>(),
        [2, 2]
    );
    assert_eq!(cluster.condition("web", ConditionType::Progressing).reason, "Complete");
    assert!(cluster.plan().rests(&cluster.snapshot));
}

#[test]
fn equal_content_makes_no_new_edition_however_it_is_written() {
    let mut cluster = started();
    let content = ConfigFileSpec::inline(b"one").unwrap().identity().unwrap();
    for value in [
        json!({ "text": "one" }),
        json!({ "base64": "b25l" }),
        json!({ "digest": content.0.to_string(), "size": content.1 }),
    ] {
        cluster.apply_file("conf", value);
        let plan = cluster.passed();
        assert!(plan.accepted.is_empty() && plan.assignments.is_empty());
    }
    assert_eq!(file_status(&cluster, "conf").edition.unwrap().n, 1);
}

#[test]
fn a_file_and_its_user_put_together_are_accepted_in_one_pass_the_file_first() {
    let mut cluster = Cluster::of(1);
    cluster.apply("web", mounting(1, &["zzz"]));
    cluster.apply_file("zzz", json!({ "text": "x" }));
    let plan = cluster.passed();
    let keys: Vec<_> = plan.accepted.iter().map(|write| write.key.clone()).collect();
    assert_eq!(keys, [file_key("zzz"), key("web")]);
    assert_eq!(editions(&cluster, "web")[0].n, 1);
}

#[test]
fn what_is_missing_is_waited_for_and_the_last_good_spec_stays_in_force() {
    let mut cluster = started();
    cluster.apply("new", mounting(1, &["later"]));
    cluster.apply("web", mounting(2, &["conf", "later"]));
    cluster.settle();
    let accepted = cluster.condition("new", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::False, "FileMissing")
    );
    assert!(accepted.message.contains("`later`") && accepted.message.contains("reeve upload FILE later"));
    assert_eq!(cluster.status("new").generation, None);
    let accepted = cluster.condition("web", ConditionType::Accepted);
    assert!(
        accepted.message.contains("the last good spec stays in force"),
        "{accepted:?}"
    );
    assert_eq!((generation(&cluster, "web"), cluster.serving("web")), (1, 2));
    cluster.apply_file("later", json!({ "text": "here" }));
    cluster.settle();
    assert_eq!((cluster.serving("new"), generation(&cluster, "web")), (1, 2));
    assert_eq!(cluster.condition("web", ConditionType::Accepted).reason, "Valid");
    assert_eq!(file_status(&cluster, "later").used_by.len(), 2);
}

#[test]
fn a_deleted_file_stays_with_its_users_wherever_they_go() {
    let mut cluster = started();
    cluster.delete_file("conf");
    let plan = cluster.passed();
    assert!(plan.assignments.is_empty(), "nothing changes on any node");
    let accepted = cluster.condition("web", ConditionType::Accepted);
    assert_eq!(
        (accepted.status, accepted.reason.as_str()),
        (ConditionStatus::True, "FileDeleted")
    );
    let status = file_status(&cluster, "conf");
    assert_eq!((status.edition, status.users), (None, 2));
    assert_eq!(status.conditions[0].reason, "DeletedAndUsed");
    let editions_before = editions(&cluster, "web");
    cluster.apply("web", mounting(3, &["conf"]));
    cluster.cordon("n1", Some(CordonMode::Drain));
    cluster.settle();
    assert_eq!(cluster.serving("web"), 3);
    assert_eq!(editions(&cluster, "web"), editions_before);
    // It comes back with other content: a higher number, never one that was.
    cluster.apply_file("conf", json!({ "text": "again" }));
    cluster.settle();
    assert_eq!(editions(&cluster, "web")[0].n, 3, "edition, deletion, edition");
    // Nobody uses it, and it goes without a trace.
    cluster.apply("web", mounting(3, &[]));
    cluster.apply("both", mounting(1, &[]));
    cluster.delete_file("conf");
    cluster.settle();
    assert!(!cluster.snapshot.file_statuses.contains_key(&file_key("conf")));
}

#[test]
fn a_number_that_a_service_names_is_not_given_again_though_the_files_records_are_lost() {
    let mut cluster = started();
    cluster.snapshot.accepted.remove(&file_key("conf"));
    cluster.apply_file("conf", json!({ "text": "new" }));
    cluster.settle();
    assert_eq!(editions(&cluster, "web")[0].n, 2);
}

#[test]
fn the_last_editions_are_kept_and_those_that_a_kept_spec_names() {
    let mut cluster = started();
    cluster.apply("old", mounting(1, &["other"]));
    cluster.settle();
    cluster.delete_file("other");
    cluster.settle();
    for round in 0..30 {
        cluster.apply_file("other", json!({ "base64": "%" }));
        cluster.settle();
        cluster.apply_file("conf", json!({ "text": format!("{round}") }));
        cluster.settle();
        assert!(cluster.plan().rests(&cluster.snapshot));
    }
    assert_eq!(cluster.snapshot.accepted[&file_key("conf")].records.len(), 20);
    assert!(cluster.snapshot.accepted[&file_key("other")].records.contains_key(&1));
    assert_eq!(cluster.condition("old", ConditionType::Accepted).reason, "FileDeleted");
}

#[test]
fn a_name_or_number_that_changes_nothing_in_the_container_replaces_nothing() {
    let mut cluster = started();
    cluster.apply_file("same", json!({ "text": "one" }));
    let mut value = mounting(2, &["same"]);
    value["container"]["files"][0]["path"] = json!("/etc/conf");
    value["container"]["files"][0]["mode"] = json!("444");
    cluster.apply("web", value);
    let plan = cluster.passed();
    assert_eq!(reasons(&plan), []);
    cluster.settle();
    assert_eq!(generation(&cluster, "web"), 2);
}
