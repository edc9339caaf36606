//! Crashes and losses of the store: no container stops or doubles, and what crashes meanwhile is restarted.

use std::time::Duration;

use e2e::{Etcd, Host, Lab, eventually, holds_for};

fn cluster() -> (Lab, Etcd, usize) {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.reeve_exits(&endpoints, 0, &["init"]);
    let listen = format!("{}:9464", lab.address(254));
    let controller = lab.start(
        "controller",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    lab.hosts[0].start_agent(&endpoints, &[]);
    let manifest = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 2\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
    let file = lab.file("web.yaml", manifest);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);
    (lab, etcd, controller)
}

/// Id and start of each container: what must not change.
fn lives(host: &Host) -> Vec<(String, String, String)> {
    host.containers()
        .into_iter()
        .map(|(name, id)| {
            let started = host
                .inspect(&id)
                .map(|c| c["State"]["StartedAt"].to_string())
                .unwrap_or_default();
            (name, id, started)
        })
        .collect()
}

fn same(host: &Host, before: &[(String, String, String)]) -> Result<(), String> {
    let now = lives(host);
    if now == before { Ok(()) } else { Err(format!("{now:?}")) }
}

#[test]
fn killing_controller_and_agent_restarts_nothing() {
    let (mut lab, etcd, controller) = cluster();
    let endpoints = etcd.endpoints.clone();
    let before = lives(&lab.hosts[0]);
    for round in 0..3 {
        lab.process(controller).kill();
        lab.hosts[0].agent().kill();
        let listen = format!("{}:{}", lab.address(254), 9500 + round);
        lab.start(
            &format!("controller-again{round}"),
            &["controller", "--etcd", &endpoints, "--metrics", &listen],
        );
        lab.hosts[0].start_agent(&endpoints, &[]);
        holds_for("nothing restarts", Duration::from_secs(3), || {
            same(&lab.hosts[0], &before)
        });
    }
}

#[test]
fn without_the_store_all_keeps_running_and_crashes_are_repaired() {
    let (mut lab, mut etcd, _) = cluster();
    let before = lives(&lab.hosts[0]);
    etcd.members[0].kill();
    holds_for("nothing stops", Duration::from_secs(10), || {
        same(&lab.hosts[0], &before)
    });
    // A container that dies is started again, also by an agent that itself was restarted without the store.
    lab.hosts[0].docker(&["kill", "default.web.1.1"]);
    let up = |lab: &Lab| {
        let running = lab.hosts[0].running();
        if running == ["default.web.1.1", "default.web.2.1"] {
            Ok(())
        } else {
            Err(format!("{running:?}"))
        }
    };
    eventually("the killed one is back", 5, || up(&lab));
    lab.hosts[0].agent().kill();
    lab.hosts[0].docker(&["kill", "default.web.2.1"]);
    let endpoints = etcd.endpoints.clone();
    lab.hosts[0].start_agent(&endpoints, &[]);
    eventually("an agent without a store repairs from its disk", 10, || up(&lab));
    let ids: Vec<String> = lab.hosts[0].containers().into_iter().map(|(_, id)| id).collect();
    assert_eq!(
        ids,
        before.iter().map(|life| life.1.clone()).collect::<Vec<_>>(),
        "the same containers"
    );
    holds_for("the rest of the minute", Duration::from_secs(40), || up(&lab));
    etcd.restart(0);
    eventually("the store is back and all is ready", 40, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "services"]).stdout).into_owned();
        if text.contains("2/2") { Ok(()) } else { Err(text) }
    });
    holds_for("and stays", Duration::from_secs(3), || up(&lab));
}

#[test]
fn deleted_assignments_and_a_deleted_ledger_stop_and_double_nothing() {
    let (mut lab, etcd, _) = cluster();
    let endpoints = etcd.endpoints.clone();
    let before = lives(&lab.hosts[0]);
    etcd.ctl(&["del", "--prefix", "/reeve/assignments/"]);
    eventually("assignments are written again", 20, || {
        let text = etcd.ctl(&["get", "--prefix", "/reeve/assignments/"]);
        if text.contains("\"slot\":\"2\"") {
            Ok(())
        } else {
            Err(text)
        }
    });
    holds_for("nothing changes", Duration::from_secs(3), || {
        same(&lab.hosts[0], &before)
    });

    lab.hosts[0].agent().kill();
    let ledger = lab.hosts[0].dir.join("agent/ledger.json");
    assert!(ledger.exists(), "{} is where the ledger is", ledger.display());
    std::fs::remove_file(ledger).expect("the ledger can be deleted");
    lab.hosts[0].start_agent(&endpoints, &[]);
    holds_for("what runs is adopted", Duration::from_secs(5), || {
        same(&lab.hosts[0], &before)
    });
    lab.reeve_exits(&endpoints, 0, &["delete", "service", "web", "--yes"]);
    assert_eq!(lab.hosts[0].containers(), []);
}
