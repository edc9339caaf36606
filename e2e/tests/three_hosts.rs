//! Three hosts, a real etcd of three members, two controllers: what is put into the store runs, and a change of it is safe.

use std::time::{Duration, Instant};

use e2e::{Etcd, Lab, eventually, holds_for};

const ZONES: &str = include_str!("../../manifests/examples/zones.yaml");

struct Cluster {
    lab: Lab,
    etcd: Etcd,
    controllers: [usize; 2],
}

fn cluster() -> Cluster {
    let mut lab = Lab::new(3);
    let etcd = lab.etcd(3);
    let endpoints = etcd.endpoints.clone();
    lab.reeve_exits(&endpoints, 0, &["init"]);
    let listen = [
        format!("{}:9464", lab.address(254)),
        format!("{}:9474", lab.address(254)),
    ];
    let controllers = [
        lab.start(
            "controller0",
            &["controller", "--etcd", &endpoints, "--metrics", &listen[0]],
        ),
        lab.start(
            "controller1",
            &["controller", "--etcd", &endpoints, "--metrics", &listen[1]],
        ),
    ];
    for (host, zone) in lab.hosts.iter_mut().zip(["zone=a", "zone=b", "zone=c"]) {
        host.start_agent(&endpoints, &["--label", zone]);
    }
    eventually("three nodes are ready", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes"]).stdout).into_owned();
        if text.matches("Ready").count() >= 3 {
            Ok(())
        } else {
            Err(text)
        }
    });
    Cluster { lab, etcd, controllers }
}

impl Cluster {
    fn running(&self) -> Vec<String> {
        let mut all: Vec<String> = self.lab.hosts.iter().flat_map(|host| host.running()).collect();
        all.sort();
        all
    }

    fn wait_running(&self, names: &[&str], seconds: u64) {
        eventually(&format!("{names:?} run"), seconds, || {
            let seen = self.running();
            if seen == names {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        });
    }
}

#[test]
fn what_etcdctl_puts_runs_and_what_it_deletes_goes() {
    let cluster = cluster();
    let yaml = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 3\n  container:\n    image: reeve/hello:1\n    command: [httpd, -f, -p, '80', -h, /www]\n    stopGracePeriod: 1s\n  placement: {maxPerNode: 1}\n";
    cluster.etcd.ctl(&["put", "/reeve/desired/default/service/web", yaml]);
    cluster.wait_running(&["default.web.1.1", "default.web.2.1", "default.web.3.1"], 30);
    assert!(
        cluster.lab.hosts.iter().all(|host| host.running().len() == 1),
        "one on each host"
    );

    let json = r#"{"apiVersion":"reeve/v1","kind":"Service","metadata":{"name":"job"},"spec":{"container":{"image":"reeve/hello:1","command":["sleep","3600"],"stopGracePeriod":"0s"}}}"#;
    cluster.etcd.ctl(&["put", "/reeve/desired/default/service/job", json]);
    cluster.wait_running(
        &[
            "default.job.1.1",
            "default.web.1.1",
            "default.web.2.1",
            "default.web.3.1",
        ],
        30,
    );
    eventually("the status follows", 20, || {
        let text = cluster
            .etcd
            .ctl(&["get", "--prefix", "/reeve/status/default/service/web"]);
        if text.contains("\"ready\":3") {
            Ok(())
        } else {
            Err(text)
        }
    });

    cluster.etcd.ctl(&["del", "/reeve/desired/default/service/web"]);
    cluster.wait_running(&["default.job.1.1"], 30);
    eventually("its status is gone", 20, || {
        let text = cluster
            .etcd
            .ctl(&["get", "--prefix", "/reeve/status/default/service/web"]);
        if text.is_empty() { Ok(()) } else { Err(text) }
    });
}

#[test]
fn another_controller_takes_over_and_nothing_restarts() {
    let mut cluster = cluster();
    let file = cluster.lab.file("zones.yaml", ZONES);
    let endpoints = cluster.etcd.endpoints.clone();
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);
    let before: Vec<_> = cluster.lab.hosts.iter().map(|host| host.containers()).collect();
    assert!(
        before.iter().all(|list| list.len() == 2),
        "two in each zone: {before:?}"
    );
    for index in cluster.controllers {
        cluster.lab.process(index).kill();
        let listen = format!("{}:94{}", cluster.lab.address(254), 80 + index);
        cluster.lab.start(
            &format!("controller{}", index + 2),
            &["controller", "--etcd", &endpoints, "--metrics", &listen],
        );
        // Whoever leads now acts on what is written now.
        let name = format!("after{index}");
        let yaml = format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  container: {{image: 'reeve/hello:1', command: [sleep, '3600'], stopGracePeriod: 0s}}\n"
        );
        cluster
            .etcd
            .ctl(&["put", &format!("/reeve/desired/default/service/{name}"), &yaml]);
        eventually("the next leader acts", 40, || {
            let running = cluster.running();
            if running.contains(&format!("default.{name}.1.1")) {
                Ok(())
            } else {
                Err(format!("{running:?}"))
            }
        });
    }
    let after: Vec<Vec<_>> = cluster
        .lab
        .hosts
        .iter()
        .map(|host| {
            host.containers()
                .into_iter()
                .filter(|(name, _)| name.contains("front"))
                .collect()
        })
        .collect();
    assert_eq!(after, before);
}

#[test]
fn a_bad_change_stops_at_the_first_slot_and_the_rest_serve_on() {
    let mut cluster = cluster();
    let _registry = cluster.lab.registry();
    let cluster = cluster;
    let endpoints = cluster.etcd.endpoints.clone();
    for host in &cluster.lab.hosts {
        host.docker(&["tag", "reeve/hello:1", "reeve/hello:2"]);
    }
    let manifest = |image: &str, command: &str, path: &str| {
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n  update: {{progressDeadline: 8s}}\n  container:\n    image: {image}\n    pullPolicy: IfNotPresent\n    command: {command}\n    ports: [{{containerPort: 80, hostPort: 8080}}]\n    stopGracePeriod: 1s\n    healthCheck: {{http: {{port: 80, path: {path}}}, interval: 500ms}}\n"
        )
    };
    let good = "[httpd, -f, -p, '80', -h, /www]";
    let file = cluster.lab.file("good.yaml", &manifest("reeve/hello:1", good, "/"));
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);
    let serving = |cluster: &Cluster| {
        cluster
            .lab
            .hosts
            .iter()
            .filter(|host| host.http(&format!("http://{}:8080/", host.address)).is_ok())
            .count()
    };
    assert_eq!(serving(&cluster), 3);

    for (what, text, word) in [
        (
            "an image that is missing",
            manifest("127.0.0.1:1/none:1", good, "/"),
            "mage",
        ),
        (
            "one that crashes",
            manifest("reeve/hello:2", "['false']", "/"),
            "CrashLoop",
        ),
        (
            "one that is never ready",
            manifest("reeve/hello:2", good, "/missing"),
            "Unhealthy",
        ),
    ] {
        let file = cluster.lab.file("bad.yaml", &text);
        let said = cluster
            .lab
            .reeve_exits(&endpoints, 6, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
        assert!(said.contains(word), "{what}: {said}");
        holds_for(
            &format!("{what}: the other slots serve"),
            Duration::from_secs(3),
            || {
                let count = serving(&cluster);
                if count >= 2 {
                    Ok(())
                } else {
                    Err(format!("{count} serve"))
                }
            },
        );
    }

    // A good one goes through: at most one slot is away at any time.
    let file = cluster.lab.file("next.yaml", &manifest("reeve/hello:2", good, "/"));
    let mut fewest = 3;
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| {
            cluster
                .lab
                .reeve(&endpoints, &["apply", "-f", &file, "--yes", "--timeout", "90s"])
        });
        let begin = Instant::now();
        while !apply.is_finished() && begin.elapsed() < Duration::from_secs(100) {
            fewest = fewest.min(serving(&cluster));
        }
        let output = apply.join().expect("apply ran");
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    assert!(fewest >= 2, "only {fewest} of three served during the change");
    assert_eq!(serving(&cluster), 3);
}
