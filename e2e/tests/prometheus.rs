//! A real Prometheus that knows nothing but the discovery URL, and the rules we ship.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Lab, Process, eventually, succeed};
use serde_json::Value;

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/prometheus")
}

#[test]
fn prometheus_finds_scrapes_and_alerts() {
    let mut lab = Lab::new(2);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.reeve_exits(&endpoints, 0, &["init"]);
    let controller = format!("{}:9464", lab.address(254));
    lab.start(
        "controller",
        &["controller", "--etcd", &endpoints, "--metrics", &controller],
    );
    for host in &mut lab.hosts {
        host.start_agent(&endpoints, &[]);
    }
    let manifest = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 2\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n  placement: {maxPerNode: 1}\n";
    let file = lab.file("web.yaml", manifest);
    eventually("two nodes are there", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.lines().count() >= 2 { Ok(()) } else { Err(text) }
    });
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);

    // The shipped configuration, with nothing changed but the discovery URL and the paces.
    let rules = monitoring().join("rules.yaml");
    succeed(Command::new("promtool").args(["check", "rules"]).arg(&rules));
    let text = std::fs::read_to_string(monitoring().join("prometheus.yaml")).expect("the shipped configuration");
    let text = text
        .replace("http://127.0.0.1:9464/sd", &format!("http://{controller}/sd"))
        .replace("rules.yaml", &rules.display().to_string())
        .replace("15s", "1s");
    let config = lab.file("prometheus.yaml", &text);
    succeed(Command::new("promtool").args(["check", "config", &config]));
    let listen = format!("{}:9090", lab.address(254));
    let data = lab.dir().join("prometheus").display().to_string();
    let _prometheus = Process::start(
        "prometheus",
        None,
        Path::new("prometheus"),
        &[
            "--config.file",
            &config,
            "--storage.tsdb.path",
            &data,
            "--web.listen-address",
            &listen,
        ],
        &[],
        lab.dir().join("prometheus.log"),
    );
    let ask = |path: &str, query: &str| -> Result<Value, String> {
        let output = e2e::run(Command::new("curl").args([
            "-fsS",
            "--max-time",
            "2",
            "-G",
            &format!("http://{listen}/api/v1/{path}"),
            "--data-urlencode",
            query,
        ]));
        serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let value = |query: &str| -> Result<f64, String> {
        let answer = ask("query", &format!("query={query}"))?;
        let text = answer
            .pointer("/data/result/0/value/1")
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{query}: {answer}"))?;
        text.parse().map_err(|_| text.to_owned())
    };
    let is = |query: &str, wanted: f64| {
        eventually(&format!("{query} is {wanted}"), 40, || match value(query)? {
            seen if (seen - wanted).abs() < f64::EPSILON => Ok(()),
            seen => Err(seen.to_string()),
        });
    };
    is("count(up == 1)", 3.0);
    for name in ["desired", "assigned", "running", "ready"] {
        is(
            &format!("reeve_service_{name}{{namespace=\"default\",service=\"web\"}}"),
            2.0,
        );
    }
    for query in [
        "count(reeve_node_allocatable_memory_bytes)",
        "count(reeve_node_allocatable_cpu_cores)",
        "count(reeve_node_reserved_cpu_cores)",
        "count(reeve_instance_memory_bytes)",
        "count(reeve_instance_restarts_total)",
    ] {
        is(query, 2.0);
    }
    for query in [
        "reeve_controller_plan_seconds_count > 0",
        "reeve_controller_pass_seconds_count > 0",
        "max(reeve_agent_reconcile_duration_seconds_count) > 0",
    ] {
        eventually(query, 40, || value(query).map(drop));
    }
    let metrics = e2e::succeed(Command::new("curl").args(["-fsS", &format!("http://{controller}/metrics")]));
    let file = lab.file("metrics.txt", &metrics);
    succeed(Command::new("sh").args(["-c", &format!("promtool check metrics < {file}")]));

    // One host's engine goes; the service is under its count, and an alert says so.
    lab.hosts[1].agent().kill();
    eventually("the alert fires", 90, || {
        let answer = ask("query", "query=ALERTS{alertname=\"ReeveServiceUnderCount\"}")?;
        if answer.to_string().contains("\"service\":\"web\"") {
            Ok(())
        } else {
            Err(answer.to_string())
        }
    });
}
