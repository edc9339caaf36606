//! Exclusive services on hosts that are cut off and hosts that are off: by the engines' own events, on one clock, nothing of them
//! ever runs twice; what else runs there runs on, and nothing restarts when a host is back. With a real etcd of three members.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{Etcd, Host, Lab, eventually, holds_for};
use serde_json::Value;

const MANIFESTS: &str = r#"
apiVersion: reeve/v1
kind: Service
metadata: {name: db}
spec:
  exclusive: true
  onDisconnect: {stopAfter: 12s}
  container: {image: "reeve/hello:1", command: [httpd, -f, -p, "80", -h, /www], stopGracePeriod: 1s}
  placement: {preferred: [{weight: 100, expression: {key: where, operator: In, values: [n3]}}]}
  update: {minReady: 1s}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: one}
spec:
  exclusive: true
  container: {image: "reeve/hello:1", command: [httpd, -f, -p, "80", -h, /www], stopGracePeriod: 1s}
  placement: {preferred: [{weight: 100, expression: {key: where, operator: In, values: [n2]}}]}
  update: {minReady: 1s}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  replaceAfter: 1h
  container: {image: "reeve/hello:1", command: [httpd, -f, -p, "80", -h, /www], stopGracePeriod: 1s}
  placement: {preferred: [{weight: 100, expression: {key: where, operator: In, values: [n3]}}]}
  update: {minReady: 1s}
"#;

fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    since.as_secs()
}

/// When containers of a service began and ended on any host, in order of the machine's one clock, with the host.
fn events(hosts: &[Host], service: &str, since: u64) -> Vec<(u64, usize, bool)> {
    let (since, until) = (since.to_string(), (seconds() + 1).to_string());
    let mut all = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        let told = host.docker(&[
            "events",
            "--since",
            &since,
            "--until",
            &until,
            "--filter",
            "type=container",
            "--format",
            "{{json .}}",
        ]);
        for line in told.lines() {
            let event: Value = serde_json::from_str(line).expect("an event");
            let name = event["Actor"]["Attributes"]["name"].as_str().unwrap_or_default();
            let begins = match event["Action"].as_str() {
                Some("start") => true,
                Some("die") => false,
                _ => continue,
            };
            if name.starts_with(&format!("default.{service}.")) {
                all.push((event["timeNano"].as_u64().expect("a time"), at, begins));
            }
        }
    }
    all.sort_unstable();
    all
}

/// At no moment two containers of it ran.
fn never_twice(hosts: &[Host], service: &str, since: u64) {
    let all = events(hosts, service, since);
    let mut running = 0_i32;
    for (_, _, begins) in &all {
        running += if *begins { 1 } else { -1 };
        assert!((0..=1).contains(&running), "{service} ran twice: {all:?}");
    }
    assert_eq!(running, 1, "{service}: {all:?}");
}

fn says(lab: &Lab, etcd: &Etcd, args: &[&str], words: &[&str], seconds: u64) {
    eventually(&format!("{words:?} in {args:?}"), seconds, || {
        let output = lab.reeve(&etcd.endpoints, args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match words.iter().all(|word| text.contains(word)) {
            true => Ok(()),
            false => Err(text),
        }
    });
}

fn runs(lab: &Lab, host: usize, names: &[&str]) {
    eventually(&format!("{names:?} run on host {host}"), 90, || {
        let seen = lab.hosts[host].running();
        if seen == names {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
}

fn token(host: &Host, container: &str) -> u64 {
    let seen = host.inspect(container).expect("it is there");
    let env = seen["Config"]["Env"].as_array().cloned().unwrap_or_default();
    let told = env.iter().filter_map(Value::as_str);
    let mut told = told.filter_map(|one| one.strip_prefix("REEVE_FENCING_TOKEN="));
    told.next().and_then(|text| text.parse().ok()).expect("a token")
}

#[test]
fn exclusive_services_never_run_twice_whoever_is_cut_off_or_off_and_others_run_on() {
    let mut lab = Lab::new(3);
    let etcd = lab.etcd(3);
    let endpoints = etcd.endpoints.clone();
    lab.reeve_exits(&endpoints, 0, &["init"]);
    let listen = format!("{}:9464", lab.address(254));
    lab.start(
        "controller",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    for (host, label) in lab.hosts.iter_mut().zip(["where=n1", "where=n2", "where=n3"]) {
        host.start_agent(&endpoints, &["--label", label]);
    }
    says(&lab, &etcd, &["get", "nodes"], &["n1 ", "n2 ", "n3 "], 30);
    let since = seconds();
    let file = lab.file("exclusive.yaml", MANIFESTS);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--yes"]);
    let (db, one, web) = ("default.db.1.1", "default.one.1.1", "default.web.1.1");
    runs(&lab, 2, &[db, web]);
    runs(&lab, 1, &[one]);
    let (first, of_one) = (token(&lab.hosts[2], db), token(&lab.hosts[1], one));
    let lives = |lab: &Lab, host: usize, name: &str| -> Vec<_> {
        let all = lab.hosts[host].lives().into_iter();
        all.filter(|(of, ..)| of == name).collect()
    };
    let before = lives(&lab, 2, web);

    // Cut off: what says so stops, and starts again when the host is back; the other one runs on.
    lab.hosts[2].cut(true);
    runs(&lab, 2, &[web]);
    holds_for("nobody else has it", Duration::from_secs(20), || {
        let seen = (lab.hosts[0].running(), lab.hosts[1].running());
        if seen == (Vec::new(), vec![one.to_owned()]) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    lab.hosts[2].cut(false);
    runs(&lab, 2, &[db, web]);
    assert_eq!(lives(&lab, 2, web), before, "nothing restarts when a host is back");
    assert_eq!(token(&lab.hosts[2], db), first);
    says(&lab, &etcd, &["get", "services"], &["db", "1/1"], 40);

    // Cut off again, and a person is wrong at once: the word counts when it has stopped for certain.
    lab.hosts[2].cut(true);
    says(&lab, &etcd, &["get", "nodes"], &["Unreachable"], 40);
    let asked = lab.reeve_exits(&endpoints, 2, &["node", "confirm-lost", "n3"]);
    assert!(
        asked.contains("exclusive of them: db.1 when its node has been away for"),
        "{asked}"
    );
    lab.reeve_exits(&endpoints, 0, &["node", "confirm-lost", "n3", "--yes"]);
    eventually("db runs on another host", 90, || {
        let seen: Vec<String> = lab.hosts[..2].iter().flat_map(Host::running).collect();
        if seen.contains(&db.to_owned()) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    lab.hosts[2].cut(false);
    eventually("the host that is back has nothing", 60, || {
        let left = lab.hosts[2].containers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    let at = usize::from(lab.hosts[1].running().contains(&db.to_owned()));
    let second = token(&lab.hosts[at], db);
    assert!(second > first, "{second} after {first}");

    // A host that is off: nobody starts its exclusive service elsewhere before a person says so.
    lab.hosts[1].agent().kill();
    for name in lab.hosts[1].running() {
        lab.hosts[1].docker(&["kill", &name]);
    }
    says(&lab, &etcd, &["get", "nodes"], &["Unreachable"], 40);
    says(
        &lab,
        &etcd,
        &["describe", "service", "one"],
        &["If lost:", "confirm-lost"],
        20,
    );
    lab.reeve_exits(&endpoints, 0, &["uncordon", "n3"]);
    lab.reeve_exits(&endpoints, 0, &["node", "confirm-lost", "n2", "--yes"]);
    let at = eventually("one runs on another host", 60, || {
        let found = [0, 2]
            .into_iter()
            .find(|at| lab.hosts[*at].running().contains(&one.to_owned()));
        found.ok_or_else(|| "on none".to_owned())
    });
    assert!(token(&lab.hosts[at], one) > of_one);
    lab.hosts[1].start_agent(&endpoints, &["--label", "where=n2"]);
    eventually("the host that is back has nothing of it", 60, || {
        let left = lab.hosts[1].containers();
        let left: Vec<_> = left.into_iter().filter(|(name, _)| name.contains(".one.")).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    says(&lab, &etcd, &["get", "services"], &["db", "one", "web"], 20);
    eventually("all serve", 90, || {
        let output = lab.reeve(&endpoints, &["get", "services"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.matches("1/1").count() == 3 {
            Ok(())
        } else {
            Err(text)
        }
    });
    for service in ["db", "one"] {
        never_twice(&lab.hosts, service, since);
    }
}
