//! Hosts that go away: what is replaced elsewhere and when, what waits for its own host, and what becomes of both when the
//! host is back. With a real etcd of three members and two controllers.

use std::time::Duration;

use e2e::{Etcd, Host, Lab, eventually, holds_for};

const MANIFESTS: &str = r#"
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  replicas: 3
  replaceAfter: 10s
  container: {image: "reeve/hello:1", command: [httpd, -f, -p, "80", -h, /www], stopGracePeriod: 1s}
  placement: {spread: [{topologyKey: where}]}
  update: {minReady: 1s}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: db}
spec:
  container:
    image: "reeve/hello:1"
    command: [httpd, -f, -p, "80", -h, /www]
    stopGracePeriod: 1s
    mounts: [{type: volume, source: data, target: /data}]
  placement: {preferred: [{weight: 100, expression: {key: where, operator: In, values: [n3]}}]}
  update: {minReady: 1s}
"#;

struct Cluster {
    lab: Lab,
    etcd: Etcd,
    leader: [usize; 2],
}

impl Cluster {
    fn new() -> Self {
        let mut lab = Lab::new(3);
        let etcd = lab.etcd(3);
        let endpoints = etcd.endpoints.clone();
        lab.reeve_exits(&endpoints, 0, &["init"]);
        let mut control = |at: usize| {
            let listen = format!("{}:94{at}4", lab.address(254));
            let args = ["controller", "--etcd", &endpoints, "--metrics", &listen];
            lab.start(&format!("controller{at}"), &args)
        };
        let leader = [control(6), control(7)];
        for (host, label) in lab.hosts.iter_mut().zip(["where=n1", "where=n2", "where=n3"]) {
            host.start_agent(&endpoints, &["--label", label]);
        }
        let cluster = Self { lab, etcd, leader };
        cluster.says(&["get", "nodes"], &["n1 ", "n2 ", "n3 "], 30);
        let file = cluster.lab.file("web.yaml", MANIFESTS);
        cluster.lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--yes"]);
        cluster.runs(2, &["default.db.1.1", "default.web.3.1"]);
        cluster
    }

    /// Waits until a verb's output has all of these.
    fn says(&self, args: &[&str], words: &[&str], seconds: u64) {
        eventually(&format!("{words:?} in {args:?}"), seconds, || {
            let output = self.lab.reeve(&self.etcd.endpoints, args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match words.iter().all(|word| text.contains(word)) {
                true => Ok(()),
                false => Err(text),
            }
        });
    }

    fn runs(&self, host: usize, names: &[&str]) {
        eventually(&format!("{names:?} run on host {host}"), 60, || {
            let seen = self.lab.hosts[host].running();
            if seen == names {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        });
    }
}

fn webs(hosts: &[Host]) -> Vec<(String, String, String)> {
    let all = hosts.iter().flat_map(Host::lives);
    all.filter(|(name, ..)| name.contains(".web.")).collect()
}

#[test]
fn what_a_lost_host_ran_runs_elsewhere_and_what_keeps_data_waits_for_it() {
    let mut cluster = Cluster::new();
    let there = cluster.lab.hosts[2].lives();
    let others = webs(&cluster.lab.hosts[..2]);
    cluster.lab.hosts[2].cut(true);
    // A leader that ends meanwhile takes nothing with it: the next one waits anew.
    cluster.says(&["get", "nodes"], &["Unreachable"], 40);
    let first = cluster.leader[0];
    cluster.lab.process(first).signal("KILL");
    cluster.says(&["describe", "node", "n3"], &["it has been away for too long"], 90);
    let moved = eventually("web.3 runs on another host", 60, || {
        let seen = webs(&cluster.lab.hosts[..2]);
        if seen.len() == 3 {
            Ok(seen)
        } else {
            Err(format!("{seen:?}"))
        }
    });
    assert!(others.iter().all(|one| moved.contains(one)), "{others:?}, {moved:?}");
    cluster.says(&["get", "services"], &["web", "3/3", "db", "0/1"], 30);
    assert_eq!(
        cluster.lab.hosts[2].lives(),
        there,
        "nobody stops what a host without the store runs"
    );

    cluster.lab.hosts[2].cut(false);
    cluster.runs(2, &["default.db.1.1"]);
    cluster.says(&["get", "services"], &["web", "3/3", "db", "1/1"], 40);
    let db: Vec<_> = there.into_iter().filter(|(name, ..)| name.contains(".db.")).collect();
    assert_eq!(
        cluster.lab.hosts[2].lives(),
        db,
        "the data's own instance ran on all along"
    );
    assert_eq!(webs(&cluster.lab.hosts), moved, "what serves stays where it is");
}

#[test]
fn when_most_hosts_are_away_at_once_nothing_is_replaced_until_a_person_says_which_are_off() {
    let mut cluster = Cluster::new();
    let endpoints = cluster.etcd.endpoints.clone();
    let refused = cluster
        .lab
        .reeve_exits(&endpoints, 6, &["node", "confirm-lost", "n3", "--yes"]);
    assert!(refused.contains("is not away"), "{refused}");
    let before = webs(&cluster.lab.hosts);
    for host in &mut cluster.lab.hosts[1..] {
        host.agent().kill();
    }
    let both = ["n2 ", "n3 ", "Unreachable"];
    cluster.says(&["get", "nodes"], &both, 40);
    cluster.says(&["describe", "node", "n3"], &["TooManyAway", "confirm-lost"], 40);
    holds_for("nothing is replaced", Duration::from_secs(25), || {
        let seen = webs(&cluster.lab.hosts);
        if seen == before {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    let unsure = cluster.lab.reeve_exits(&endpoints, 2, &["node", "confirm-lost", "n3"]);
    assert!(unsure.contains("1 of them without the data"), "{unsure}");
    // Nobody stops what runs on a host whose agent has ended; a person does, who says then that it is off.
    for (name, ..) in cluster.lab.hosts[2].lives() {
        cluster.lab.hosts[2].docker(&["kill", &name]);
    }
    cluster.lab.reeve_exits(
        &endpoints,
        0,
        &["node", "confirm-lost", "n3", "--yes", "--note", "burnt"],
    );
    cluster.says(&["get", "nodes"], &["n3 ", "Lost,Cordoned"], 20);
    eventually("all of n3 runs on n1", 40, || {
        let mut seen = cluster.lab.hosts[0].running();
        seen.sort();
        let all = ["default.db.1.1", "default.web.1.1", "default.web.3.1"];
        if seen == all { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    // It is back: it starts nothing of what is elsewhere, and gets nothing new until somebody says so.
    cluster.lab.hosts[2].start_agent(&endpoints, &["--label", "where=n3"]);
    cluster.says(&["get", "nodes"], &["n3 ", "Ready,Cordoned"], 40);
    eventually("n3 has nothing left", 40, || {
        let left = cluster.lab.hosts[2].containers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    assert_eq!(cluster.lab.hosts[2].running(), Vec::<String>::new());
}

#[test]
fn a_store_that_stands_still_loses_no_node_and_moves_nothing() {
    let cluster = Cluster::new();
    let lives = || -> Vec<_> { cluster.lab.hosts.iter().flat_map(Host::lives).collect() };
    let assigned = || cluster.etcd.ctl(&["get", "--prefix", "/reeve/assignments/"]);
    let same = |before: &[(String, String, String)]| {
        let seen = lives();
        if seen == before {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    };
    cluster.says(&["get", "services"], &["web", "3/3", "db", "1/1"], 40);
    let (before, orders) = (lives(), assigned());
    for member in &cluster.etcd.members {
        member.signal("STOP");
    }
    // Longer than sessions live, and than `web` waits.
    holds_for("all runs on", Duration::from_secs(20), || same(&before));
    for member in &cluster.etcd.members {
        member.signal("CONT");
    }
    cluster.says(&["get", "services"], &["web", "3/3", "db", "1/1"], 60);
    holds_for("nothing moves", Duration::from_secs(15), || same(&before));
    assert_eq!(assigned(), orders, "no assignment was written");
    let events = cluster.lab.reeve(&cluster.etcd.endpoints, &["events"]);
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(events.contains("NodeReady") && !events.contains("NodeLost"), "{events}");
}
