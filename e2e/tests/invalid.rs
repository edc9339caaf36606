//! Bad values in the store: each hurts itself only, says where it is wrong, and is over with the next good value.

use std::time::Duration;

use e2e::{Etcd, Lab, eventually, holds_for};

fn service(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n{extra}"
    )
}

fn cluster() -> (Lab, Etcd) {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    lab.hosts[0].start_agent(&endpoints, &[]);
    (lab, etcd)
}

#[test]
fn an_invalid_put_changes_no_container_and_says_where_it_is_wrong() {
    let (lab, etcd) = cluster();
    let endpoints = etcd.endpoints.clone();
    let key = "/reeve/desired/default/service/web";
    etcd.ctl(&["put", key, &service("web", "")]);
    etcd.ctl(&["put", "/reeve/desired/default/service/other", &service("other", "")]);
    let host = &lab.hosts[0];
    let both = ["default.other.1.1", "default.web.1.1"];
    eventually("both run", 30, || {
        if host.running() == both {
            Ok(())
        } else {
            Err(format!("{:?}", host.running()))
        }
    });
    let before = host.containers();

    let large = format!("{}# {}", service("web", ""), "x".repeat(1_200_000));
    let bad = [
        (service("web", "  replicsa: 3\n"), "replicas", "line 10"),
        ("spec: [".to_owned(), "", "line 1"),
        (service("other", ""), "web", ""),
        (
            service("web", "").replace("kind: Service", "kind: Servise"),
            "Service",
            "line 2",
        ),
        (service("web", "").replace("reeve/v1", "reeve/v9"), "reeve/v1", "line 1"),
        (
            service("web", "").replace("image: reeve/hello:1", "image: Reeve/Hello:1"),
            "image",
            "line 7",
        ),
        ("\u{7f}\u{1}\u{2}".to_owned(), "", ""),
        (large, "", ""),
    ];
    for (text, word, place) in bad {
        let file = lab.file("bad", &text);
        let shell = format!("ETCDCTL_API=3 etcdctl --endpoints {endpoints} put {key} < {file}");
        e2e::succeed(std::process::Command::new("sh").args(["-c", &shell]));
        let what = text.chars().take(200).collect::<String>();
        eventually(&format!("describe says what is wrong with {what}"), 10, || {
            let said = lab.reeve_exits(&endpoints, 0, &["describe", "service", "web"]);
            if said.contains(word) && said.contains(place) && said.contains("Invalid") {
                Ok(())
            } else {
                Err(said)
            }
        });
        let listed = lab.reeve_exits(&endpoints, 0, &["get", "services"]);
        assert!(listed.contains("Invalid"), "{listed}");
        assert_eq!(host.containers(), before);
    }
    holds_for("the running ones stay", Duration::from_secs(2), || {
        if host.containers() == before {
            Ok(())
        } else {
            Err(format!("{:?}", host.containers()))
        }
    });
    // The next valid put clears it. It is what runs already, so nothing restarts.
    etcd.ctl(&["put", key, &service("web", "")]);
    eventually("the problem is gone", 10, || {
        let said = lab.reeve_exits(&endpoints, 0, &["get", "services"]);
        if said.contains("Invalid") { Err(said) } else { Ok(()) }
    });
    assert_eq!(host.containers(), before);
}

#[test]
fn foreign_and_broken_values_at_every_kind_of_key_stop_nothing() {
    let (lab, etcd) = cluster();
    etcd.ctl(&["put", "/reeve/desired/default/service/web", &service("web", "")]);
    let host = &lab.hosts[0];
    eventually("it runs", 30, || {
        if host.running() == ["default.web.1.1"] {
            Ok(())
        } else {
            Err(format!("{:?}", host.running()))
        }
    });
    let before = host.containers();
    for key in [
        "/reeve/junk",
        "/reeve/desired/junk",
        "/reeve/desired/default/gadget/x",
        "/reeve/desired/default/service/UPPER",
        "/reeve/status/default/service/web",
        "/reeve/verdicts/n1",
        "/reeve/cordons/n9",
        "/reeve/reports/n9",
        "/reeve/reports/n1",
        "/reeve/nodes/n9",
        "/reeve/sessions/n9",
        "/reeve/assignments/n9",
        "/reeve/assignments/n1",
        "/reeve/breaker",
        "/reeve/acks/x",
        "/reeve/accepted/default/service/web/99",
    ] {
        for value in ["not json", "{}", "[]", r#"{"schemaVersion":99}"#] {
            etcd.ctl(&["put", key, value]);
        }
    }
    holds_for("what runs stays", Duration::from_secs(4), || {
        if host.containers() == before {
            Ok(())
        } else {
            Err(format!("{:?}", host.containers()))
        }
    });
    etcd.ctl(&["del", "/reeve/accepted/default/service/web/99"]);
    etcd.ctl(&["put", "/reeve/desired/default/service/second", &service("second", "")]);
    eventually("work goes on", 30, || {
        let seen = host.running();
        if seen == ["default.second.1.1", "default.web.1.1"] {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    assert!(host.containers().contains(&before[0]));
}
