//! `reeve up` on one host: everything in one process on the embedded store, as on the first day.

use std::path::Path;
use std::time::Duration;

use e2e::{Host, Lab, Process, eventually, holds_for, run};

const HELLO: &str = include_str!("../../manifests/examples/hello.yaml");

fn up(lab: &Lab) -> Process {
    let host = &lab.hosts[0];
    let up = host.up(&[]);
    eventually("the node is there", 30, || {
        let output = host.reeve(&["get", "nodes", "-o", "name"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("n1") {
            Ok(())
        } else {
            Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        }
    });
    up
}

fn etcdctl(host: &Host, args: &[&str]) -> String {
    let mut command = host.place.command(Path::new("etcdctl"));
    command.args(["--endpoints", "http://127.0.0.1:2379"]).args(args);
    let output = run(command.env("ETCDCTL_API", "3"));
    assert!(
        output.status.success(),
        "etcdctl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn revision(host: &Host) -> i64 {
    let text = etcdctl(host, &["get", "/nothing", "-w", "json"]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("etcdctl prints JSON");
    value
        .pointer("/header/revision")
        .and_then(serde_json::Value::as_i64)
        .expect("a header with a revision")
}

#[test]
fn hello_is_applied_changed_scaled_and_deleted_in_few_lines() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = up(&lab);
    let short = |text: &str| {
        assert!(text.lines().count() <= 12, "more than 12 lines:\n{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "wider than 80 columns:\n{text}"
        );
    };

    let file = lab.file("hello.yaml", HELLO);
    short(&host.reeve_exits(0, &["apply", "-f", &file]));
    assert_eq!(host.http("http://127.0.0.1:8080/"), Ok("Hello from Reeve.\n".into()));
    assert!(host.reeve_exits(0, &["get", "services"]).contains("hello"));
    assert_eq!(host.running(), ["default.hello.1.1"]);

    // A second apply finds nothing to do, and says so.
    let before = host.containers();
    short(&host.reeve_exits(0, &["apply", "-f", &file]));
    assert_eq!(host.reeve(&["plan", "-f", &file, "--exit-code"]).status.code(), Some(0));
    assert_eq!(host.containers(), before);

    // A change replaces the container; plan says so first, and writes nothing.
    let changed = lab.file(
        "changed.yaml",
        &HELLO.replace("interval: 1s", "interval: 1s\n    env: {COLOUR: blue}"),
    );
    let at = revision(host);
    assert!(
        host.reeve_exits(1, &["plan", "-f", &changed, "--exit-code"])
            .contains("container.env")
    );
    assert_eq!(revision(host), at, "plan wrote into the store");
    short(&host.reeve_exits(0, &["apply", "-f", &changed]));
    assert_eq!(host.running(), ["default.hello.1.2"]);

    // No second instance fits on a fixed port: told at once, with the rule.
    let refused = host.reeve_exits(7, &["scale", "hello", "--replicas", "2", "--timeout", "20s"]);
    assert!(refused.contains("8080"), "{refused}");
    short(&host.reeve_exits(0, &["scale", "hello", "--replicas", "1", "--yes"]));
    short(&host.reeve_exits(0, &["delete", "service", "hello", "--yes"]));
    assert_eq!(host.containers(), []);
}

#[test]
fn an_idle_minute_with_fifty_containers_writes_nothing() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = up(&lab);
    let manifest = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: many}\nspec:\n  replicas: 50\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
    let file = lab.file("many.yaml", manifest);
    host.reeve_exits(0, &["apply", "-f", &file, "--timeout", "4m"]);
    assert_eq!(host.running().len(), 50);
    // What is under way (events, the last report) settles first.
    let mut last = 0;
    eventually("the store is quiet", 60, || {
        let now = revision(host);
        let quiet = now == last;
        last = now;
        std::thread::sleep(Duration::from_secs(3));
        if quiet { Ok(()) } else { Err(format!("revision {now}")) }
    });
    let at = revision(host);
    holds_for("writes while idle", Duration::from_secs(60), || {
        if revision(host) == at {
            Ok(())
        } else {
            Err(format!("revision {} after {at}", revision(host)))
        }
    });
}

#[test]
fn kill_minus_nine_of_everything_restarts_no_container() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let mut first = up(&lab);
    let file = lab.file("hello.yaml", HELLO);
    host.reeve_exits(0, &["apply", "-f", &file]);
    let started = |host: &Host| {
        host.inspect("default.hello.1.1")
            .map(|c| (c["Id"].clone(), c["State"]["StartedAt"].clone()))
    };
    let before = started(host);
    first.kill();
    // A container that dies meanwhile is found dead and started by the next process.
    let _second = up(&lab);
    eventually("the service is ready again", 30, || {
        let text = host.reeve_exits(0, &["get", "services"]);
        if text.contains("1/1") { Ok(()) } else { Err(text) }
    });
    assert_eq!(started(host), before);
    host.docker(&["kill", "default.hello.1.1"]);
    eventually("a killed container is back", 5, || {
        host.http("http://127.0.0.1:8080/").map(drop)
    });
}
