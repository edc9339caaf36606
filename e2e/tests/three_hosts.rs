//! Three hosts, a real etcd of three members, two controllers: what is put into the store runs, and a change of it is safe.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use e2e::{Etcd, Host, Lab, Load, Process, Served, eventually, holds_for, now, reeve};

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

/// What a person watches while the test goes on: a process that prints, and how much of it was looked at.
struct Follower {
    what: &'static str,
    process: Process,
    seen: usize,
}

impl Follower {
    /// Waits until it prints each of these after what was looked at before.
    fn sees(&mut self, words: &[&str]) {
        let mut end = self.seen;
        eventually(&format!("{} follows", self.what), 20, || {
            let output = self.process.output();
            let news = output.get(self.seen..).unwrap_or_default();
            end = output.len();
            match words.iter().find(|word| !news.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("no {word:?} in:\n{news}")),
            }
        });
        self.seen = end;
    }
}

#[test]
fn what_etcdctl_puts_runs_and_what_it_deletes_goes_and_watchers_follow() {
    let cluster = cluster();
    let endpoints = cluster.etcd.endpoints.clone();
    let follow = |what, program: &Path, args: &[&str]| {
        let process = cluster.lab.follow(what, program, args, &endpoints);
        Follower { what, process, seen: 0 }
    };
    let watch = ["--endpoints", &endpoints, "watch", "--prefix", "/reeve/status/"];
    let mut keys = follow("etcdctl-watch", Path::new("etcdctl"), &watch);
    let mut table = follow("get-w", &reeve(), &["get", "services", "-w"]);
    let mut status = follow("status-watch", &reeve(), &["status", "--watch"]);
    // Each is connected before the first put.
    table.sees(&["NAME"]);
    status.sees(&["node/n3: Ready"]);

    let key = "/reeve/desired/default/service/web";
    let yaml = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  replicas: 3\n  container:\n    image: reeve/hello:1\n    command: [httpd, -f, -p, '80', -h, /www]\n    stopGracePeriod: 1s\n  placement: {maxPerNode: 1}\n";
    let json = r#"{"apiVersion":"reeve/v1","kind":"Service","metadata":{"name":"web"},"spec":{"replicas":3,"container":{"image":"reeve/hello:1","command":["httpd","-f","-p","80","-h","/www"],"stopGracePeriod":"1s"},"placement":{"maxPerNode":1}}}"#;
    cluster.etcd.ctl(&["put", key, yaml]);
    cluster.wait_running(&["default.web.1.1", "default.web.2.1", "default.web.3.1"], 30);
    assert!(
        cluster.lab.hosts.iter().all(|host| host.running().len() == 1),
        "one on each host"
    );
    keys.sees(&["PUT", "/reeve/status/default/service/web", "\"ready\":3"]);
    table.sees(&["web", "3/3"]);
    status.sees(&["service/web: 3/3 ready, Ready", "instance/default/web.2 on"]);

    // The same in JSON is no change: nothing is replaced, and it is said to have been seen.
    let before: Vec<_> = cluster.lab.hosts.iter().map(Host::lives).collect();
    cluster.etcd.ctl(&["put", key, json]);
    keys.sees(&["PUT", "/reeve/status/default/service/web"]);
    let after: Vec<_> = cluster.lab.hosts.iter().map(Host::lives).collect();
    assert_eq!(after, before);

    // Another beside it, in JSON.
    let other = json
        .replace("\"web\"", "\"other\"")
        .replace("\"replicas\":3", "\"replicas\":1");
    cluster
        .etcd
        .ctl(&["put", "/reeve/desired/default/service/other", &other]);
    keys.sees(&["/reeve/status/default/service/other", "\"ready\":1"]);
    table.sees(&["other", "1/1"]);
    status.sees(&["service/other: 1/1 ready, Ready"]);

    cluster.etcd.ctl(&["del", key]);
    cluster.wait_running(&["default.other.1.1"], 30);
    keys.sees(&["DELETE", "/reeve/status/default/service/web"]);
    table.sees(&["web", "Gone"]);
    status.sees(&["service/web: gone"]);

    // It runs again from JSON alone, on all three hosts.
    cluster.etcd.ctl(&["put", key, json]);
    keys.sees(&["/reeve/status/default/service/web", "\"ready\":3"]);
    table.sees(&["web", "3/3"]);
    status.sees(&["service/web: 3/3 ready, Ready"]);
    assert!(
        cluster
            .lab
            .hosts
            .iter()
            .all(|host| host.running().iter().any(|name| name.starts_with("default.web."))),
        "one on each host"
    );
    cluster.etcd.ctl(&["del", "--prefix", "/reeve/desired/"]);
    table.sees(&["Gone"]);
    status.sees(&["service/web: gone", "service/other: gone"]);
    cluster.wait_running(&[], 30);
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

/// When the instance of a host was away during the load: from the engine's first stop to the first answer after its last
/// start, None for what never ended.
fn away(host: &Host, since: u128, served: &[Served]) -> Option<(u128, Option<u128>)> {
    let second = |time: u128| format!("{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
    let (from, to) = (second(since), second(now()));
    let text = host.docker(&[
        "events",
        "--since",
        &from,
        "--until",
        &to,
        "--filter",
        "type=container",
        "--format",
        "{{.TimeNano}} {{.Action}} {{.Actor.Attributes.name}}",
    ]);
    let events: Vec<(u128, &str)> = text
        .lines()
        .filter(|line| line.contains(" default.web."))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?))
        })
        .collect();
    let begin = events
        .iter()
        .find(|(_, what)| matches!(*what, "kill" | "die" | "stop"))?
        .0;
    let started = events.iter().rev().find(|(_, what)| *what == "start");
    let end = started.and_then(|(at, _)| {
        let died = events.iter().any(|(time, what)| *what == "die" && time > at);
        let back = served.iter().find(|one| one.begin >= *at && one.result.is_ok());
        back.filter(|_| !died).map(|one| one.begin)
    });
    Some((begin, end))
}

/// Requests that failed although the instance was not being replaced.
fn failed_outside(served: &[Served], away: Option<(u128, Option<u128>)>) -> Vec<&Served> {
    // A request that began just before the stop may be cut by it.
    const UNDER_WAY: u128 = 50_000_000;
    let replaced =
        |time: u128| away.is_some_and(|(from, to)| time + UNDER_WAY >= from && to.is_none_or(|to| time <= to));
    let failed = served.iter().filter(|one| one.result.is_err());
    failed.filter(|one| !replaced(one.begin)).collect()
}

#[test]
fn a_bad_change_under_load_stops_at_the_first_slot_and_a_good_one_goes_through() {
    let mut cluster = cluster();
    let registry = cluster.lab.registry();
    let cluster = cluster;
    let endpoints = cluster.etcd.endpoints.clone();
    for host in &cluster.lab.hosts {
        host.docker(&["tag", "reeve/hello:1", "reeve/hello:2"]);
    }
    let manifest = |image: &str, command: &str, path: &str| {
        // Enough for a container to end again and again, and no longer for one that stays up and is not ready.
        let deadline = if command.contains("false") { "30s" } else { "8s" };
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n  update: {{progressDeadline: {deadline}}}\n  container:\n    image: {image}\n    pullPolicy: IfNotPresent\n    command: {command}\n    ports: [{{containerPort: 80, hostPort: 8080}}]\n    stopGracePeriod: 1s\n    healthCheck: {{http: {{port: 80, path: {path}}}, interval: 500ms}}\n"
        )
    };
    let good = "[httpd, -f, -p, '80', -h, /www]";
    let file = cluster.lab.file("good.yaml", &manifest("reeve/hello:1", good, "/"));
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);
    let hosts = &cluster.lab.hosts;
    let targets: Vec<SocketAddr> = hosts
        .iter()
        .map(|host| format!("{}:8080", host.address).parse().expect("an address"))
        .collect();
    let lives = || -> Vec<_> { hosts.iter().map(Host::lives).collect() };
    let unchanged = lives();

    // The slot at which changes stop; the same one each time, for a broken slot goes first.
    let mut broken = None;
    for (what, text, word) in [
        (
            "missing",
            manifest(&format!("{registry}/none:1"), good, "/"),
            "ImageNotFound",
        ),
        ("crashing", manifest("reeve/hello:2", "['false']", "/"), "CrashLoop"),
        ("never ready", manifest("reeve/hello:2", good, "/missing"), "Unhealthy"),
    ] {
        let file = cluster.lab.file("bad.yaml", &text);
        let (since, load) = (now(), Load::start(&targets));
        let said = cluster
            .lab
            .reeve_exits(&endpoints, 6, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
        assert!(said.contains(word) && said.contains("stops there"), "{what}: {said}");
        holds_for(
            &format!("{what}: stays where it stopped"),
            Duration::from_secs(3),
            || {
                let differ = lives()
                    .iter()
                    .zip(&unchanged)
                    .filter(|(now, before)| now != before)
                    .count();
                if differ <= 1 {
                    Ok(())
                } else {
                    Err(format!("{differ} slots changed"))
                }
            },
        );
        let served = load.stop();
        let now = lives();
        for (index, host) in hosts.iter().enumerate() {
            assert!(served[index].len() >= 50, "{what}: {} requests", served[index].len());
            let away = away(host, since, &served[index]);
            let failed = failed_outside(&served[index], away);
            if now[index] == unchanged[index] {
                assert!(
                    away.is_none() && failed.is_empty(),
                    "{what}: {} failed: {failed:?}",
                    host.name
                );
            } else {
                assert!(
                    broken.is_none_or(|slot| slot == index),
                    "{what}: another slot is broken"
                );
                broken = Some(index);
                let slot = now[index]
                    .first()
                    .and_then(|(name, _, _)| name.split('.').nth(2))
                    .unwrap_or("?");
                assert!(
                    said.contains(&format!(": web.{slot}: ")),
                    "{what}: the error does not name web.{slot}: {said}"
                );
            }
            eprintln!(
                "{what}: {} answered {}, failed {}, away {away:?}",
                host.name,
                served[index].len(),
                failed.len()
            );
        }
        // A missing image is found out before anything stops.
        assert_eq!(broken.is_none(), what == "missing", "{what}: {now:?}");
    }

    // A good one goes through: one slot after another, and whoever is not being replaced answers every request.
    let file = cluster.lab.file("next.yaml", &manifest("reeve/hello:2", good, "/"));
    let (since, load) = (now(), Load::start(&targets));
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
    let served = load.stop();
    let mut turns = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let away = away(host, since, &served[index]);
        let failed = failed_outside(&served[index], away);
        assert!(failed.is_empty(), "{}: away {away:?}, failed {failed:?}", host.name);
        let (from, to) = away.expect("each slot is replaced");
        let to = to.unwrap_or_else(|| panic!("{} does not come back", host.name));
        turns.push((from, to, &host.name));
    }
    turns.sort_unstable();
    for pair in turns.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two slots were away at once: {turns:?}");
    }
    assert_eq!(
        turns.first().map(|turn| turn.2),
        broken.map(|index| &hosts[index].name),
        "the broken one goes first"
    );
    let counts: Vec<usize> = served.iter().map(Vec::len).collect();
    eprintln!("good: {counts:?} requests, turns {turns:?}");
}
