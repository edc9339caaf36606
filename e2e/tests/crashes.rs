//! Crashes and losses of the store: no container stops or doubles, and what crashes meanwhile is restarted.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Etcd, Host, Lab, eventually, holds_for, reeve, succeed};

fn cluster() -> (Lab, Etcd, usize) {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    let controller = lab.control(&etcd);
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

fn same(host: &Host, before: &[(String, String, String)]) -> Result<(), String> {
    let now = host.lives();
    if now == before { Ok(()) } else { Err(format!("{now:?}")) }
}

#[test]
fn killing_controller_and_agent_restarts_nothing() {
    let (mut lab, etcd, controller) = cluster();
    let endpoints = etcd.endpoints.clone();
    let before = lab.hosts[0].lives();
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
    let before = lab.hosts[0].lives();
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
    let before = lab.hosts[0].lives();
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

/// What somebody says to etcd over HTTP.
fn post(endpoint: &str, path: &str, body: &str) -> String {
    let address = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(address).expect("etcd listens");
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("etcd takes it");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("etcd answers");
    answer
}

#[test]
fn a_store_that_is_full_older_wiped_or_gone_for_good_stops_nothing_and_comes_back_by_one_command() {
    let mut lab = Lab::new(2);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    lab.hosts.iter_mut().for_each(|host| host.start_agent(&endpoints, &[]));
    let manifest = |name: &str, replicas: u8| {
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n"
        )
    };
    let (two, three) = (
        lab.file("two.yaml", &manifest("web", 2)),
        lab.file("three.yaml", &manifest("web", 3)),
    );
    let api = lab.file("api.yaml", &manifest("api", 1));
    let (yesterday, now) = (lab.dir().join("yesterday"), lab.dir().join("now"));
    let (yesterday, now) = (yesterday.display().to_string(), now.display().to_string());
    let says = |lab: &Lab, args: &[&str], word: &str| {
        let output = lab.reeve(&endpoints, args);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if text.contains(word) { Ok(()) } else { Err(text) }
    };
    eventually("both nodes are there", 30, || says(&lab, &["get", "nodes"], "n2"));
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &two, "--timeout", "60s"]);
    lab.reeve_exits(&endpoints, 0, &["admin", "backup", &yesterday]);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &three, "--timeout", "60s"]);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &api, "--timeout", "60s"]);
    let lives = |lab: &Lab| lab.hosts.iter().flat_map(Host::lives).collect::<Vec<_>>();
    // Kills one container, sees it started again, and says what runs then.
    let killed = |lab: &Lab| {
        let before = lives(lab);
        let (name, id, _) = before[0].clone();
        let host = lab
            .hosts
            .iter()
            .find(|host| host.lives().iter().any(|one| one.1 == id))
            .expect("its host");
        host.docker(&["kill", &name]);
        eventually("the killed one runs again", 10, || {
            let all = lives(lab);
            let again = all.iter().any(|one| one.1 == id && !before.contains(one));
            if again && host.running().contains(&name) && all.len() == before.len() {
                Ok(())
            } else {
                Err(format!("{all:?}"))
            }
        });
        lives(lab)
    };
    let unchanged = |lab: &Lab, before: &[(String, String, String)]| {
        let all = lives(lab);
        if all == before {
            Ok(())
        } else {
            Err(format!("{all:?}, not {before:?}"))
        }
    };

    // Full.
    let alarm = |action: &str| {
        post(
            &endpoints,
            "/v3/maintenance/alarm",
            &format!(r#"{{"action":"{action}","memberID":"7","alarm":"NOSPACE"}}"#),
        )
    };
    assert!(alarm("ACTIVATE").contains("200"), "etcd takes the alarm");
    eventually("it is said", 20, || says(&lab, &["status"], "StoreUnavailable"));
    let before = killed(&lab);
    alarm("DEACTIVATE");
    eventually("and it is over", 20, || says(&lab, &["get", "services"], "3/3"));
    unchanged(&lab, &before).expect("nothing was restarted");

    // Yesterday's.
    lab.reeve_exits(&endpoints, 0, &["admin", "restore", &yesterday, "--over", "--yes"]);
    eventually("the newer spec is kept", 40, || {
        says(&lab, &["get", "services"], "StoreRegressed")
    });
    eventually("what no record knows is kept", 20, || {
        says(&lab, &["get", "instances"], "Orphaned")
    });
    unchanged(&lab, &before).expect("nothing was stopped");
    let before = killed(&lab);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &three, "--timeout", "60s"]);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &api, "--timeout", "60s"]);
    unchanged(&lab, &before).expect("what ran is what should run");

    // Wiped, and put back.
    lab.reeve_exits(&endpoints, 0, &["admin", "backup", &now]);
    etcd.ctl(&["del", "--prefix", "/reeve/"]);
    let before = killed(&lab);
    lab.reeve_exits(&endpoints, 0, &["admin", "restore", &now]);
    eventually("all is governed again", 40, || says(&lab, &["get", "services"], "3/3"));
    unchanged(&lab, &before).expect("nothing was stopped");

    // Wiped, and no backup.
    etcd.ctl(&["del", "--prefix", "/reeve/"]);
    let copies: Vec<String> = (0..2)
        .map(|at| lab.dir().join(format!("n{at}.copy")).display().to_string())
        .collect();
    for (host, copy) in lab.hosts.iter().zip(&copies) {
        let dir = host.dir.join("agent").display().to_string();
        lab.reeve_exits(&endpoints, 0, &["node", "copy", copy, "--data-dir", &dir]);
    }
    lab.reeve_exits(&endpoints, 0, &["admin", "rebuild", &copies[0], &copies[1], "--yes"]);
    eventually("all is governed again", 40, || says(&lab, &["get", "services"], "3/3"));
    unchanged(&lab, &before).expect("nothing was stopped");
    // And by whom: a change goes through, and touches nothing else.
    lab.reeve_exits(&endpoints, 0, &["scale", "api=2", "--timeout", "60s"]);
    let after = lives(&lab);
    assert!(
        before.iter().all(|one| after.contains(one)) && after.len() == before.len() + 1,
        "{after:?}"
    );
}

/// Another version of the same length: the last digit is another one.
fn neighbour(version: &str) -> String {
    let at = version
        .rfind(|c: char| c.is_ascii_digit())
        .expect("a version has digits");
    let digit = version.as_bytes()[at];
    let other = if digit == b'9' { b'8' } else { digit + 1 };
    format!("{}{}{}", &version[..at], char::from(other), &version[at + 1..])
}

#[test]
fn a_neighbouring_version_is_another_one_of_the_same_length() {
    for (own, next) in [
        ("0.1.0", "0.1.1"),
        ("0.1.7", "0.1.8"),
        ("0.1.9", "0.1.8"),
        ("1.2.19", "1.2.18"),
        ("1.20.10", "1.20.11"),
        ("2.0.0-rc.3", "2.0.0-rc.4"),
        ("2.0.0-beta", "2.0.1-beta"),
    ] {
        assert_eq!(neighbour(own), next);
        assert_eq!(own.len(), next.len());
    }
}

/// The next release: a copy of the binary that calls itself by another version, as long as the first.
fn next_release(lab: &Lab) -> (PathBuf, String) {
    let own = succeed(Command::new(reeve()).args(["version", "-o", "json"]));
    let own: serde_json::Value = serde_json::from_str(&own).expect("the version as JSON");
    let own = own["version"].as_str().expect("a version").to_owned();
    let next = neighbour(&own);
    let dir = lab.dir().join("next");
    std::fs::create_dir_all(&dir).expect("a directory of the lab");
    let path = dir.join("reeve");
    std::fs::copy(reeve(), &path).expect("a copy of the binary");
    let replace = format!("s/{}/{next}/g", own.replace('.', "\\."));
    succeed(Command::new("sed").args(["-i", &replace]).arg(&path).env("LC_ALL", "C"));
    assert!(succeed(Command::new(&path).arg("version")).contains(&next));
    (path, next)
}

#[test]
fn an_upgrade_of_the_binary_restarts_nothing_and_goes_on_where_the_old_one_was() {
    let (mut lab, etcd, controller) = cluster();
    let endpoints = etcd.endpoints.clone();
    let (next, version) = next_release(&lab);
    let before = lab.hosts[0].lives();
    let accepted = etcd.ctl(&["get", "--prefix", "/reeve/accepted/"]);
    let specs = |lab: &Lab| -> Vec<(String, Vec<u8>)> {
        let files = walk(&lab.hosts[0].dir.join("agent"));
        files.into_iter().filter(|(name, _)| name.contains("specs")).collect()
    };
    let on_disk = specs(&lab);
    assert!(!on_disk.is_empty(), "the agent keeps specs on disk");

    // One after the other, as on a fleet: for a while each works with the other's release.
    lab.hosts[0].agent().stop(Duration::from_secs(10));
    lab.hosts[0].binary.clone_from(&next);
    lab.hosts[0].start_agent(&endpoints, &[]);
    eventually("the node tells the agent's new version", 30, || {
        let told = etcd.ctl(&["get", "--prefix", "/reeve/nodes/"]);
        if told.contains(&version) { Ok(()) } else { Err(told) }
    });
    holds_for("nothing restarts under the new agent", Duration::from_secs(2), || {
        same(&lab.hosts[0], &before)
    });
    lab.process(controller).stop(Duration::from_secs(10));
    lab.binary.clone_from(&next);
    let listen = format!("{}:9500", lab.address(254));
    let second = lab.start(
        "controller-next",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    eventually("the new controller leads", 30, || {
        let output = lab.process(second).output();
        if output.contains("leads") { Ok(()) } else { Err(output) }
    });
    holds_for(
        "nothing restarts under the new controller",
        Duration::from_secs(3),
        || same(&lab.hosts[0], &before),
    );
    assert_eq!(etcd.ctl(&["get", "--prefix", "/reeve/accepted/"]), accepted);
    assert_eq!(specs(&lab), on_disk, "specs on disk are read, not written again");

    // The image of the manifest changes while the agent is away: what runs stays, and the next agent changes it.
    lab.hosts[0].docker(&["tag", "reeve/hello:1", "reeve/hello:2"]);
    lab.hosts[0].agent().stop(Duration::from_secs(10));
    let key = "/reeve/desired/default/service/web";
    let manifest = std::fs::read_to_string(lab.dir().join("web.yaml")).expect("the manifest");
    etcd.ctl(&["put", key, &manifest.replace("hello:1", "hello:2")]);
    eventually("the controller accepts the change", 20, || {
        let now = etcd.ctl(&["get", "--prefix", "/reeve/accepted/"]);
        if now == accepted { Err(now) } else { Ok(()) }
    });
    holds_for("without an agent nothing changes", Duration::from_secs(2), || {
        same(&lab.hosts[0], &before)
    });
    lab.hosts[0].start_agent(&endpoints, &[]);
    let images = |lab: &Lab| lab.hosts[0].docker(&["ps", "--format", "{{.Image}} {{.Names}}"]);
    eventually("the change goes through", 40, || {
        let text = images(&lab);
        if text.matches("reeve/hello:2 default.web.").count() == 2 {
            Ok(())
        } else {
            Err(text)
        }
    });
    lab.reeve_exits(
        &endpoints,
        0,
        &[
            "apply",
            "-f",
            &lab.file("again.yaml", &manifest.replace("hello:1", "hello:2")),
        ],
    );
    let changed = lab.hosts[0].lives();
    assert_eq!(changed.len(), 2);

    // Back to the release before: nothing restarts either.
    lab.hosts[0].agent().stop(Duration::from_secs(10));
    lab.process(second).stop(Duration::from_secs(10));
    (lab.binary, lab.hosts[0].binary) = (reeve(), reeve());
    let listen = format!("{}:9501", lab.address(254));
    lab.start(
        "controller-back",
        &["controller", "--etcd", &endpoints, "--metrics", &listen],
    );
    lab.hosts[0].start_agent(&endpoints, &[]);
    eventually("the old release is back", 30, || {
        let told = etcd.ctl(&["get", "--prefix", "/reeve/nodes/"]);
        if told.contains(&version) { Err(told) } else { Ok(()) }
    });
    holds_for("nothing restarts on the way back", Duration::from_secs(3), || {
        same(&lab.hosts[0], &changed)
    });
}

/// Every file below a directory, with what is in it; sockets are none.
fn walk(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the directory is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.is_file() {
            found.push((path.display().to_string(), std::fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}
