//! Whatever is done by hand to what Reeve runs is repaired within five seconds; what is not Reeve's is left alone.

use std::time::{Duration, Instant};

use e2e::{Host, Lab, Process, eventually, holds_for};

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  replicas: 2
  container:
    image: reeve/hello:1
    command: [httpd, -f, -p, '80', -h, /www]
    resources: {limits: {memory: 64Mi}}
    stopGracePeriod: 1s
";

fn start(lab: &Lab) -> Process {
    let host = &lab.hosts[0];
    let up = host.up(&[]);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&host.reeve(&["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    let file = lab.file("web.yaml", WEB);
    host.reeve_exits(0, &["apply", "-f", &file]);
    up
}

/// The service as it should be: exactly these two containers of ours, running, unpaused, limited, on their network.
fn whole(host: &Host) -> Result<(), String> {
    let others = |name: &str| {
        ["foreign", "copy", "default.web.3."]
            .iter()
            .any(|other| name.starts_with(other))
    };
    let ours: Vec<String> = host
        .docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])
        .lines()
        .filter(|line| !others(line))
        .map(str::to_owned)
        .collect();
    if ours.len() != 2 {
        return Err(format!("{ours:?}"));
    }
    for name in ["default.web.1.1", "default.web.2.1"] {
        let c = host.inspect(name)?;
        if c["State"]["Running"] != true || c["State"]["Paused"] != false {
            return Err(format!("{name}: {}", c["State"]));
        }
        if c["HostConfig"]["Memory"] != 64 << 20 {
            return Err(format!("{name}: memory {}", c["HostConfig"]["Memory"]));
        }
        if c["NetworkSettings"]["Networks"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
        {
            return Err(format!("{name}: no network"));
        }
    }
    Ok(())
}

#[test]
fn drift_of_every_kind_is_repaired_within_five_seconds() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = start(&lab);
    eventually("all is well", 10, || whole(host));
    let networks = host.docker(&[
        "inspect",
        "-f",
        "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}",
        "default.web.1.1",
    ]);
    let hands: Vec<(&str, Vec<&str>)> = vec![
        ("rm", vec!["rm", "-f", "default.web.1.1"]),
        ("stop", vec!["stop", "-t", "0", "default.web.1.1"]),
        ("kill", vec!["kill", "default.web.1.1"]),
        ("pause", vec!["pause", "default.web.1.1"]),
        ("rename", vec!["rename", "default.web.1.1", "somebody"]),
        (
            "update",
            vec!["update", "--memory", "32m", "--memory-swap", "64m", "default.web.1.1"],
        ),
        (
            "network disconnect",
            vec!["network", "disconnect", "-f", &networks, "default.web.1.1"],
        ),
        (
            "restart policy",
            vec!["update", "--restart", "always", "default.web.1.1"],
        ),
    ];
    for (what, args) in hands {
        // What is done ends before the command does: the time counted is no shorter than the agent's.
        let begin = Instant::now();
        host.docker(&args);
        eventually(&format!("repaired after {what}"), 5, || whole(host));
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
        eprintln!("repaired after {what}: {took:?}");
    }
    let policy = || {
        host.inspect("default.web.1.1")
            .map(|c| c["HostConfig"]["RestartPolicy"]["Name"].clone())
    };
    eventually("the restart policy is no again", 5, || match policy()?.as_str() {
        Some("no" | "") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    holds_for("nothing doubles afterwards", Duration::from_secs(3), || whole(host));
}

#[test]
fn foreign_containers_and_copies_with_our_labels_are_untouched() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = start(&lab);
    // Two hundred that exist, of which a few run: what counts is that they are there and stay as they are.
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for index in (worker..200).step_by(4) {
                    let name = format!("foreign{index}");
                    host.docker(&["create", "--name", &name, "reeve/hello:1", "sleep", "3600"]);
                }
            });
        }
    });
    let running: Vec<String> = (0..5).map(|index| format!("foreign{index}")).collect();
    host.docker(&["start", &running[0], &running[1], &running[2], &running[3], &running[4]]);
    // Hand-made copies that bear every label of a real one.
    let labels = host.inspect("default.web.1.1").expect("our container")["Config"]["Labels"].clone();
    let mut arguments: Vec<String> = Vec::new();
    for (key, value) in labels.as_object().expect("labels") {
        arguments.push("--label".into());
        arguments.push(format!("{key}={}", value.as_str().unwrap_or("")));
    }
    for index in 0..5 {
        let name = format!("copy{index}");
        let mut args = vec!["run", "-d", "--name", &name];
        args.extend(arguments.iter().map(String::as_str));
        args.extend(["reeve/hello:1", "sleep", "3600"]);
        host.docker(&args);
    }
    // And one that also has the name the next instance of ours will have: the third, by the second spec.
    let mut args = vec!["run", "-d", "--name", "default.web.3.2"];
    args.extend(arguments.iter().map(String::as_str));
    args.extend(["reeve/hello:1", "sleep", "3600"]);
    host.docker(&args);
    let others = || -> Vec<(String, String)> {
        let ours = |name: &str| name.starts_with("default.web.1.") || name.starts_with("default.web.2.");
        host.containers().into_iter().filter(|(name, _)| !ours(name)).collect()
    };
    let before = others();
    assert_eq!(before.len(), 206);
    host.docker(&["rm", "-f", "default.web.2.1"]);
    eventually("our own is repaired among them", 5, || whole(host));
    holds_for("the others stay", Duration::from_secs(5), || {
        if others() == before {
            whole(host)
        } else {
            Err("a foreign container changed".into())
        }
    });
    // A third instance finds its name taken: told with the remedy, and the other keeps the name.
    let said = host.reeve_exits(6, &["scale", "web", "--replicas", "3", "--yes", "--timeout", "30s"]);
    assert!(said.contains("NameTaken") && said.contains("default.web.3.2"), "{said}");
    assert_eq!(others(), before);
    host.reeve_exits(0, &["scale", "web", "--replicas", "2", "--yes"]);
    assert_eq!(others(), before);
    whole(host).expect("the first two stay");
    let file = lab.file("web.yaml", WEB);
    host.reeve_exits(0, &["delete", "-f", &file, "--yes"]);
    assert_eq!(others(), before);
    assert_eq!(
        host.running()
            .iter()
            .filter(|name| name.starts_with("copy")
                || name.starts_with("foreign")
                || name.as_str() == "default.web.3.2")
            .count(),
        11
    );
}
