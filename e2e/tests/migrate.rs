//! A cluster that began on the embedded store goes to real etcd, and no container notices.

use std::time::Duration;

use e2e::{Lab, eventually, holds_for};

#[test]
fn migrate_store_moves_a_running_cluster_and_restarts_nothing() {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    let mut up = lab.hosts[0].up(&[]);
    let host = &lab.hosts[0];
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&host.reeve(&["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    let manifest = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 2\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
    let file = lab.file("web.yaml", manifest);
    host.reeve_exits(0, &["apply", "-f", &file, "--timeout", "60s"]);
    let lives = |host: &e2e::Host| -> Vec<String> {
        host.containers()
            .iter()
            .map(|(name, id)| {
                format!(
                    "{name} {id} {}",
                    host.inspect(id)
                        .map(|c| c["State"]["StartedAt"].to_string())
                        .unwrap_or_default()
                )
            })
            .collect()
    };
    let before = lives(host);
    host.reeve_exits(0, &["admin", "migrate-store", "--to", &endpoints, "--yes"]);
    // Nothing acts on the old store any more: its `up` ends, and another one refuses; both say where the cluster is now.
    eventually("`up` ends by itself", 20, || {
        if up.alive() { Err("it runs".into()) } else { Ok(()) }
    });
    assert!(
        up.output().contains("moved") && up.output().contains(&endpoints),
        "{}",
        up.output()
    );
    let mut again = lab.hosts[0].up(&[]);
    eventually("another `up` refuses", 20, || {
        if again.alive() { Err("it runs".into()) } else { Ok(()) }
    });
    assert_eq!(lives(&lab.hosts[0]), before);
    let listen = format!("{}:9464", lab.address(254));
    lab.start(
        "controller",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    // The agent keeps what `up` kept: its data is a folder of up's.
    let data = lab.hosts[0].dir.join("up/agent").display().to_string();
    lab.hosts[0].start_agent(&endpoints, &["--data-dir", &data]);
    let host = &lab.hosts[0];
    eventually("all is ready on the new store", 40, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "services"]).stdout).into_owned();
        if text.contains("2/2") { Ok(()) } else { Err(text) }
    });
    holds_for("no container changed", Duration::from_secs(3), || {
        let now = lives(host);
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    lab.reeve_exits(&endpoints, 0, &["scale", "web", "--replicas", "1", "--yes"]);
    assert_eq!(host.running(), ["default.web.1.1"]);
}
