//! Whole hosts: `reeve install` alone makes a cluster of fresh hosts in any order, names what is wrong with one and takes
//! back what does not come to its end; `reeve uninstall` takes nodes and seeds out of it again.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::seats::GLOBAL;
use e2e::{Host, Lab, Process, eventually, run};

const EDGE: &str = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: edge}\nspec:\n  placement: {roles: [edge]}\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
/// What n4 is told beside the rest.
const N4: [&str; 4] = ["--role", "edge", "--public-address", "auto"];

fn base(host: &Host) -> PathBuf {
    host.dir.parent().expect("the lab's").join(format!("of-{}", host.name))
}

fn log(host: &Host) -> PathBuf {
    host.dir.join("install.log")
}

/// Starts `reeve install` on a host; the log begins anew.
fn install(host: &Host, args: &[&str]) -> Process {
    let _ = std::fs::remove_file(log(host));
    let base = base(host).display().to_string();
    let own = [
        "install",
        "--data-dir",
        &base,
        "--node",
        &host.name,
        "--docker",
        &host.docker_host,
    ];
    let env = [("COLUMNS", "80"), ("NO_COLOR", "1")];
    Process::start(
        &format!("install of {}", host.name),
        Some(&host.place),
        &host.binary,
        &[own.as_slice(), args].concat(),
        &env,
        log(host),
    )
}

/// Waits for an install to end with this code; what it said.
fn ends(host: &Host, mut process: Process, code: i32) -> String {
    eventually(&format!("the install of {} ends", host.name), 180, || {
        if process.alive() { Err(process.output()) } else { Ok(()) }
    });
    let found = process.stop(std::time::Duration::from_secs(1));
    let text = process.output();
    assert_eq!(found, Some(code), "{}:\n{text}", host.name);
    text
}

/// Runs `reeve` on a host, as its operator would.
fn on(host: &Host, args: &[&str]) -> (Option<i32>, String) {
    let output = run(host
        .place
        .command(&host.binary)
        .args(args)
        .arg("--data-dir")
        .arg(base(host))
        .env_remove("REEVE_ETCD")
        .env("NO_COLOR", "1")
        .env("COLUMNS", "80"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code(), text.concat())
}

fn says(host: &Host, code: i32, args: &[&str]) -> String {
    let (found, text) = on(host, args);
    assert_eq!(found, Some(code), "on {}: reeve {args:?} said:\n{text}", host.name);
    text
}

/// Kills all that an install runs on a host, as a loss of power does.
fn cut_power(host: &Host) {
    for file in [
        "supervisor/supervisor.pid",
        "supervisor/server.pid",
        "supervisor/agent.pid",
        "server/etcd.pid",
    ] {
        let Ok(pid) = std::fs::read_to_string(base(host).join(file)) else {
            continue;
        };
        run(Command::new("kill").args(["-9", pid.trim()]));
        let place = Path::new("/proc").join(pid.trim()).join("cmdline");
        eventually("it is gone", 10, || {
            if std::fs::read(&place).unwrap_or_default().is_empty() {
                Ok(())
            } else {
                Err(pid.clone())
            }
        });
    }
}

/// Starts what is installed on a host again, as after a reboot.
fn supervise(host: &Host) -> Process {
    let dir = base(host).display().to_string();
    Process::start(
        &format!("supervisor of {}", host.name),
        Some(&host.place),
        &host.binary,
        &["install", "--supervise", "--data-dir", &dir],
        &[],
        host.dir.join("supervise.log"),
    )
}

fn members(host: &Host) -> Result<String, String> {
    let file = |name: &str| base(host).join("server").join(name).display().to_string();
    let endpoint = format!("https://{}:2379", host.address);
    let args = [
        "--endpoints",
        &endpoint,
        "--cacert",
        &file("ca.crt"),
        "--cert",
        &file("controller.crt"),
    ];
    host.within(
        "etcdctl",
        &[args.as_slice(), &["--key", &file("controller.key"), "member", "list"]].concat(),
    )
}

fn started(host: &Host, count: usize) -> Result<(), String> {
    let list = members(host)?;
    let all = list.lines().filter(|line| line.contains(", started, ")).count();
    if all == count && list.lines().count() == count {
        Ok(())
    } else {
        Err(list)
    }
}

fn install_token(lab: &Lab) -> String {
    let output = run(Command::new(&lab.hosts[0].binary).args(["token", "install"]));
    lab.file("token", &String::from_utf8_lossy(&output.stdout))
}

#[test]
fn five_fresh_hosts_become_a_cluster_in_any_order_and_leave_it_one_by_one() {
    let lab = Lab::new(5);
    let [n1, n2, n3, n4, n5] = lab.hosts.as_slice() else {
        panic!("five hosts")
    };
    let token = install_token(&lab);
    let (a, b, c) = (&n1.address, &n2.address, &n3.address);
    let seeds = [format!("{c},{a},{b}"), format!("{a},{b},{c}"), format!("{b},{c},{a}")];
    let with = |order: usize| ["--seeds", seeds[order].as_str(), "--token-file", token.as_str()];

    // Two things are wrong with one of them: both are named with what to do, and nothing is made.
    let squatter = Process::start(
        "a stranger on port 2380",
        Some(&n2.place),
        Path::new("busybox"),
        &["nc", "-l", "-p", "2380"],
        &[],
        n2.dir.join("squatter.log"),
    );
    let wrong = [with(0).as_slice(), &["--etcd-program", "/nonexistent/etcd"]].concat();
    eventually("it is told", 20, || {
        let text = ends(n2, install(n2, &wrong), 6);
        let told =
            text.contains("bad   port 2380") && text.contains("bad   etcd") && text.matches("fix: ").count() >= 2;
        if told { Ok(()) } else { Err(text) }
    });
    assert!(!base(n2).exists(), "nothing was made");
    drop(squatter);
    let text = ends(n2, install(n2, &[with(0).as_slice(), &["--dry-run"]].concat()), 0);
    assert!(text.contains("Nothing was changed.") && !base(n2).exists(), "{text}");
    assert!(
        text.lines()
            .filter(|line| !line.starts_with("  /"))
            .all(|line| line.chars().count() <= 80),
        "{text}"
    );

    // Who ends the waiting takes all back.
    let early = install(n2, &with(1));
    eventually("it says whom it misses, and which port", 30, || {
        let text = early.output();
        let told = text.contains("waiting for 2 seeds") && text.contains(&format!("{a}:2378"));
        if told { Ok(()) } else { Err(text) }
    });
    early.signal("INT");
    let text = ends(n2, early, 6);
    assert!(text.contains("everything that was made is taken back"), "{text}");
    assert!(!base(n2).exists(), "all is taken back");

    // All of them, shuffled and at once.
    let order = [(n4, 0), (n3, 1), (n1, 2), (n5, 1), (n2, 0)];
    let running: Vec<(&Host, Process)> = order
        .map(|(host, order)| {
            let more: &[&str] = if host.name == "n4" { &N4 } else { &[] };
            (host, install(host, &[with(order).as_slice(), more].concat()))
        })
        .into();
    for (host, process) in running {
        let text = ends(host, process, 0);
        assert!(text.contains("reeve is installed: "), "{text}");
        assert!(
            !base(host).join("install/token").exists(),
            "the token is not left on {}",
            host.name
        );
    }
    let nodes = says(n1, 0, &["get", "nodes", "-o", "name"]);
    assert_eq!(nodes.lines().count(), 5, "{nodes}");
    started(n1, 3).expect("three members");
    // What it was told reaches placement and people.
    let text = says(n2, 0, &["describe", "node", "n4"]);
    assert!(
        text.contains("Public:      ") && text.contains(&n4.address) && text.contains("edge"),
        "{text}"
    );
    let manifest = lab.file("edge.yaml", EDGE);
    says(n2, 0, &["apply", "-f", &manifest, "--yes"]);
    assert_eq!(n4.running(), ["default.edge.1.1"]);
    says(n2, 0, &["delete", "service", "edge", "--yes"]);

    // All is well, and what is known of this etcd is told, in 80 columns.
    for host in [n1, n4] {
        let text = says(host, 0, &["doctor"]);
        let told = ["seed ", "clock ", "cert node", "nodes", "ports"]
            .iter()
            .all(|word| text.contains(word));
        assert!(told && text.contains("0 bad"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    let checks: serde_json::Value = serde_json::from_str(&says(n1, 0, &["doctor", "-o", "json"])).expect("JSON");
    assert_eq!(checks["bad"], 0, "{checks}");

    let manifest = lab.file("web.yaml", GLOBAL);
    says(n3, 0, &["apply", "-f", &manifest, "--yes"]);
    let lives: Vec<_> = lab.hosts.iter().map(Host::lives).collect();
    assert!(lives.iter().all(|lives| lives.len() == 1), "{lives:?}");

    // A second run says what is there, and changes nothing.
    let text = ends(n4, install(n4, &[with(2).as_slice(), &N4].concat()), 0);
    assert!(
        text.contains("installed as node n4") && text.contains("nothing was changed"),
        "{text}"
    );
    let text = ends(
        n4,
        install(n4, &[with(2).as_slice(), &["--label", "zone=b"]].concat()),
        4,
    );
    assert!(text.contains("with other options"), "{text}");

    // Any one host may go: the others manage on, and it comes back.
    for (dead, other) in [(n1, n2), (n2, n3), (n3, n1), (n4, n1)] {
        cut_power(dead);
        eventually(&format!("without {} the others manage on", dead.name), 60, || {
            let (code, text) = on(other, &["cordon", "n5"]);
            if code == Some(0) { Ok(()) } else { Err(text) }
        });
        says(other, 0, &["uncordon", "n5"]);
        let text = if dead.name == "n4" {
            String::new()
        } else {
            says(other, 6, &["doctor"])
        };
        assert!(
            dead.name == "n4" || text.contains(&format!("bad   seed {}", dead.address)),
            "{text}"
        );
        let text = says(dead, 6, &["install", "--status"]);
        assert!(text.contains("does not run"), "{text}");
        // It stays as long as the lab.
        std::mem::forget(supervise(dead));
        eventually(&format!("{} is back", dead.name), 60, || {
            let (code, text) = on(dead, &["install", "--status"]);
            if code == Some(0) { started(other, 3) } else { Err(text) }
        });
    }
    let after: Vec<_> = lab.hosts.iter().map(Host::lives).collect();
    assert_eq!(after, lives, "no container was restarted");

    // A node leaves: what it ran is gone from it, its data stays.
    let text = says(n5, 0, &["uninstall", "--yes"]);
    assert!(
        text.contains("node n5 is retired") && text.contains("node n5 is uninstalled"),
        "{text}"
    );
    assert_eq!(n5.running(), Vec::<String>::new());
    assert!(base(n5).join("agent").exists() && !base(n5).join("install").exists());
    let tables = |host: &Host| {
        let output = run(host.place.command(Path::new("nft")).args(["list", "tables", "inet"]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(
        tables(n4).contains("reeve_") && !tables(n5).contains("reeve_"),
        "{}",
        tables(n5)
    );
    let text = says(n1, 0, &["get", "nodes", "n5"]);
    assert!(text.contains("Retired"), "{text}");
    // Who came and went is in the record: seeds by themselves, nodes by the seeds that they asked.
    let recorded = |verb: &str, who: &str, object: &str| {
        let records: serde_json::Value = serde_json::from_str(&says(n1, 0, &["audit", "-o", "json"])).expect("JSON");
        let found = records.as_array().expect("a list").iter().any(|one| {
            let objects = one["objects"].to_string();
            one["verb"] == verb && one["who"] == who && objects.contains(object) && one["exitCode"] == 0
        });
        assert!(found, "no record of {verb} by {who}, {object}: {records:#}");
    };
    recorded("install", "root", &format!("seed {a} and node n1"));
    recorded("join", "node/n5", "token ");
    recorded("leave", "node/n5", &format!("from {}", n5.address));
    says(n5, 6, &["uninstall", "--yes"]);

    // A seed leaves, and two are left that cannot do without each other.
    says(n3, 0, &["uninstall", "--yes"]);
    started(n1, 2).expect("two members");
    recorded("uninstall", "root", &format!("seed {c} and node n3"));
    n1.cut(true);
    eventually("the last but one may not go while the other is silent", 60, || {
        let (code, text) = on(n2, &["uninstall", "--yes"]);
        let told = code == Some(4) && text.contains("cannot go on without this seed");
        if told { Ok(()) } else { Err(format!("{code:?} {text}")) }
    });
    n1.cut(false);
    eventually("they manage on", 60, || {
        let (code, text) = on(n2, &["get", "nodes"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });

    // It comes back with the data that stayed, and needs no token.
    let text = ends(n3, install(n3, &["--seeds", &seeds[1]]), 0);
    assert!(text.contains("reeve is installed: "), "{text}");
    eventually("three members again", 60, || started(n1, 3));

    // The end of it all, with all its data.
    for host in [n4, n3, n2] {
        says(host, 0, &["uninstall", "--yes", "--purge-data"]);
        assert!(!base(host).exists(), "{} is clean", host.name);
    }
    let text = says(n1, 4, &["uninstall", "--yes", "--purge-data"]);
    assert!(text.contains("the only seed"), "{text}");
    says(n1, 0, &["uninstall", "--yes", "--purge-data", "--end-cluster"]);
    assert!(!base(n1).exists());
}

#[test]
fn five_seeds_begun_at_once_with_one_cut_off_are_one_cluster_and_a_lost_one_comes_back() {
    let lab = Lab::new(7);
    let (seeds, nodes) = lab.hosts.split_at(5);
    let token = install_token(&lab);
    let all: Vec<&str> = seeds.iter().map(|host| host.address.as_str()).collect();
    // Two hosts that are nodes alone begin before any seed; every host is told the list in another order.
    let list = |first: usize| -> String {
        let turned = (0..all.len()).map(|index| all[(first + index) % all.len()]);
        turned.collect::<Vec<_>>().join(",")
    };
    let first = &seeds[0];
    first.cut(true);
    let early: Vec<Process> = nodes
        .iter()
        .map(|host| install(host, &["--seeds", &list(2), "--token-file", &token]))
        .collect();
    let running: Vec<Process> = seeds
        .iter()
        .enumerate()
        .rev()
        .map(|(index, host)| install(host, &["--seeds", &list(index), "--token-file", &token]))
        .collect();
    for process in &running[..4] {
        eventually("it waits for the one that is cut off", 60, || {
            let text = process.output();
            let told = text.contains("waiting for 1 seed;") && text.contains(&format!("{}:2378", first.address));
            if told { Ok(()) } else { Err(text) }
        });
    }
    assert!(
        seeds.iter().all(|host| !base(host).join("server/etcd").exists()),
        "nobody has begun alone"
    );
    first.cut(false);
    let mut clusters = std::collections::BTreeSet::new();
    for (host, process) in seeds.iter().rev().chain(nodes).zip(running.into_iter().chain(early)) {
        let text = ends(host, process, 0);
        let line = text.lines().find_map(|line| line.trim().strip_prefix("cluster "));
        clusters.insert(line.unwrap_or_default().trim().to_owned());
    }
    assert!(clusters.len() == 1 && !clusters.contains(""), "{clusters:?}");
    started(first, 5).expect("five members");

    // Two are lost, the first with all its data: three manage on, and it takes its place again.
    cut_power(first);
    cut_power(&seeds[1]);
    std::fs::remove_dir_all(base(first)).expect("a disk can be lost");
    let third = &seeds[2];
    eventually("three of five manage on", 60, || {
        let (code, text) = on(third, &["cordon", "n5"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    // etcd takes in no member while another one is silent: the second comes back first.
    let second = &seeds[1];
    let _second = supervise(second);
    eventually("the second is back", 60, || {
        let (code, text) = on(second, &["install", "--status"]);
        if code == Some(0) { Ok(()) } else { Err(text) }
    });
    ends(
        first,
        install(first, &["--seeds", &list(3), "--token-file", &token, "--no-agent"]),
        0,
    );
    eventually("it is a member again", 60, || {
        let list = members(third)?;
        let mine = list
            .lines()
            .any(|line| line.contains(", started, ") && line.contains(&first.address));
        if mine && list.lines().count() == 5 {
            Ok(())
        } else {
            Err(list)
        }
    });
}
