use super::*;

fn spec(json: &str) -> ServiceSpec {
    serde_json::from_str(json).expect("a spec")
}

fn base() -> serde_json::Value {
    serde_json::json!({ "container": { "image": "app:1" } })
}

fn with(path: &[&str], value: serde_json::Value) -> ServiceSpec {
    let mut doc = base();
    let mut at = &mut doc;
    for part in path {
        at = &mut at[*part];
    }
    *at = value;
    serde_json::from_value(doc).expect("a spec")
}

#[test]
fn an_explicit_default_costs_nothing() {
    let plain = spec(r#"{"container": {"image": "app:1"}}"#);
    for (path, value) in [
        (vec!["replicas"], serde_json::json!(3)),
        (vec!["mode"], serde_json::json!("global")),
        (vec!["replaceAfter"], serde_json::json!("2m")),
        (vec!["exclusive"], serde_json::json!(true)),
        (vec!["onDisconnect"], serde_json::json!("keep")),
        (vec!["placement"], serde_json::json!({"nodeNames": ["n1"]})),
        (
            vec!["restartBackoff"],
            serde_json::json!({"initial": "1s", "max": "1m"}),
        ),
        (
            vec!["update"],
            serde_json::json!({"minReady": "5s", "progressDeadline": "5m"}),
        ),
        (vec!["container", "stopGracePeriod"], serde_json::json!("10s")),
        (vec!["container", "cpuShares"], serde_json::json!(1024)),
        (vec!["container", "shmSize"], serde_json::json!("64Mi")),
        (
            vec!["container", "resources"],
            serde_json::json!({"requests": {"cpu": "1"}}),
        ),
        (
            vec!["container", "logging"],
            serde_json::json!({"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}),
        ),
    ] {
        assert_eq!(cost(&plain, &with(&path, value)), Cost::Nothing, "{path:?}");
    }
}

#[test]
fn what_only_the_agent_reads_keeps_the_container() {
    let plain = spec(r#"{"container": {"image": "app:1"}}"#);
    for (path, value, field) in [
        (
            vec!["container", "pullPolicy"],
            serde_json::json!("Always"),
            "container.pullPolicy",
        ),
        (
            vec!["container", "stopGracePeriod"],
            serde_json::json!("3s"),
            "container.stopGracePeriod",
        ),
        (
            vec!["container", "healthCheck"],
            serde_json::json!({"tcp": {"port": 80}}),
            "container.healthCheck",
        ),
        (vec!["restartPolicy"], serde_json::json!("Never"), "restartPolicy"),
        (
            vec!["restartBackoff"],
            serde_json::json!({"initial": "2s"}),
            "restartBackoff.initial",
        ),
        (vec!["update"], serde_json::json!({"minReady": "1s"}), "update.minReady"),
        (
            vec!["update"],
            serde_json::json!({"progressDeadline": "1s"}),
            "update.progressDeadline",
        ),
    ] {
        assert_eq!(
            cost(&plain, &with(&path, value)),
            Cost::AgentOnly { fields: vec![field] }
        );
    }
}

#[test]
fn what_the_engine_fixes_at_create_replaces_and_says_which_fields() {
    let plain = spec(r#"{"container": {"image": "app:1"}}"#);
    for (path, value, field) in [
        (
            vec!["container", "image"],
            serde_json::json!("app:2"),
            "container.image",
        ),
        (vec!["container", "env"], serde_json::json!({"A": "1"}), "container.env"),
        (
            vec!["container", "resources"],
            serde_json::json!({"limits": {"cpu": "1"}}),
            "container.resources.limits.cpu",
        ),
        (
            vec!["container", "labels"],
            serde_json::json!({"a": "b"}),
            "container.labels",
        ),
        (
            vec!["container", "stopSignal"],
            serde_json::json!("SIGINT"),
            "container.stopSignal",
        ),
        (
            vec!["container", "ports"],
            serde_json::json!([{"containerPort": 80}]),
            "container.ports",
        ),
        (vec!["container", "tty"], serde_json::json!(true), "container.tty"),
        (vec!["dependsOn"], serde_json::json!(["cache"]), "dependsOn"),
    ] {
        assert_eq!(cost(&plain, &with(&path, value)), Cost::Replace { fields: vec![field] });
    }
}
