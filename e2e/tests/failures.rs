//! What goes wrong on real parts: a full disk, an engine that goes and comes, images and ports that cannot be had, engines
//! and stores that are not what they should be. Each is told in one sentence with a remedy, and what runs goes on.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Host, Lab, Process, eventually, holds_for, succeed};

fn service(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n"
    )
}

fn up(lab: &Lab) -> Process {
    let host = &lab.hosts[0];
    let up = host.up(&[]);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&host.reeve(&["get", "nodes"]).stdout).into_owned();
        if text.contains("Ready") { Ok(()) } else { Err(text) }
    });
    let file = lab.file("web.yaml", &service("web", 2));
    host.reeve_exits(0, &["apply", "-f", &file, "--timeout", "60s"]);
    up
}

/// The two of `web`, and that they run.
fn web_runs(host: &Host) -> Result<(), String> {
    let running = host.running();
    let both = ["default.web.1.1", "default.web.2.1"];
    if both.iter().all(|name| running.iter().any(|running| running == name)) {
        Ok(())
    } else {
        Err(format!("{running:?}"))
    }
}

/// One error in one sentence, then at most some lines on it, then what to do.
fn told_well(said: &str, words: &[&str]) {
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    let remedy = said.lines().any(|line| line.starts_with("help: ")) || said.contains("; create it with ");
    assert!(errors == 1 && remedy, "no single sentence with a remedy:\n{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
}

/// A small disk of its own at a directory of a host; it goes with the lab.
fn small_disk(host: &Host, dir: &Path, size: &str) {
    std::fs::create_dir_all(dir).expect("a directory");
    let options = format!("size={size},mode=0700");
    succeed(
        host.place
            .command(Path::new("mount"))
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir),
    );
}

/// Fills the disk of a directory to the last byte; gives the file that does.
fn fill(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("fill");
    let mut file = std::fs::File::create(&path).expect("a file");
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_starts_nothing_new_and_stops_nothing() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let (agent, store) = (host.dir.join("up/agent"), host.dir.join("up/store"));
    small_disk(host, &agent, "48m");
    small_disk(host, &store, "48m");
    let up = up(&lab);
    let before = host.containers();

    // The agent's disk.
    let filled = fill(&host.view(&agent));
    host.docker(&["kill", "default.web.1.1"]);
    eventually("what runs is restarted on a full disk", 5, || web_runs(host));
    let file = lab.file("extra.yaml", &service("extra", 1));
    let output = host.reeve(&["apply", "-f", &file, "--yes", "--timeout", "8s"]);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(matches!(output.status.code(), Some(6 | 124)), "{said}");
    told_well(&said, &["DiskFull", "node n1", "free space"]);
    eventually("the node says that its disk is full", 40, || {
        let text = host.reeve_exits(0, &["describe", "node", "n1"]);
        if text.contains("DiskFull") { Ok(()) } else { Err(text) }
    });
    assert_eq!(host.containers(), before, "nothing new was started, nothing ended");
    std::fs::remove_file(filled).expect("the file that fills the disk");
    eventually("with space again, what waited starts", 40, || {
        let running = host.running();
        if running.iter().any(|name| name == "default.extra.1.1") {
            web_runs(host)
        } else {
            Err(format!("{running:?}"))
        }
    });
    host.reeve_exits(0, &["delete", "service", "extra", "--yes"]);

    // The store's disk.
    let filled = fill(&host.view(&store));
    // What the store has in hand is used up first.
    let junk = lab.file("junk", &"x".repeat(900_000));
    let put = format!("etcdctl --endpoints http://127.0.0.1:2379 put /junk < {junk}");
    let full = (0..100).find_map(|_| host.within("env", &["ETCDCTL_API=3", "sh", "-c", &put]).err());
    let full = full.expect("a store without space refuses");
    assert!(full.contains("space exceeded"), "{full}");
    let file = lab.file(
        "more.yaml",
        &format!("{}# {}\n", service("more", 1), "x".repeat(900_000)),
    );
    let said = host.reeve_exits(6, &["apply", "-f", &file, "--yes", "--timeout", "5s"]);
    told_well(&said, &["no space left", "free space on the disk"]);
    web_runs(host).expect("what runs stays");
    host.docker(&["kill", "default.web.2.1"]);
    eventually("crashes are repaired while the store is full", 5, || web_runs(host));
    let tries = || up.output().matches("the store failed").count();
    let so_far = tries();
    holds_for(
        "a full store is tried again with patience",
        Duration::from_secs(8),
        || {
            let more = tries() - so_far;
            if more <= 16 {
                Ok(())
            } else {
                Err(format!("{more} tries"))
            }
        },
    );
    std::fs::remove_file(filled).expect("the file that fills the disk");
    eventually("with space again, the store takes writes", 60, || {
        let output = host.reeve(&["apply", "-f", &file, "--yes", "--timeout", "20s"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    assert!(host.running().contains(&"default.more.1.1".to_owned()));
    let after: Vec<_> = host
        .containers()
        .into_iter()
        .filter(|(name, _)| name.contains(".web."))
        .collect();
    assert_eq!(after, before, "the same containers all the time");
}

#[test]
fn an_engine_that_goes_and_comes_has_all_its_containers_again() {
    let mut lab = Lab::new(1);
    let _up = up(&lab);
    let before = lab.hosts[0].containers();
    for signal in ["TERM", "KILL"] {
        lab.hosts[0].stop_engine(signal);
        eventually("the node says that its engine is away", 30, || {
            let text = lab.hosts[0].reeve_exits(0, &["get", "nodes", "-o", "wide"]);
            if text.contains("EngineUnavailable") {
                Ok(())
            } else {
                Err(text)
            }
        });
        let text = lab.hosts[0].reeve_exits(0, &["get", "services"]);
        assert!(text.contains("0/2"), "{text}");
        lab.hosts[0].start_engine();
        let host = &lab.hosts[0];
        eventually("all runs again", 30, || web_runs(host));
        assert_eq!(host.containers(), before, "the same containers, started again");
        eventually("and is told to be ready", 30, || {
            let text = host.reeve_exits(0, &["get", "services"]);
            if text.contains("2/2") && text.contains("Ready") {
                Ok(())
            } else {
                Err(text)
            }
        });
    }
}

#[test]
fn what_cannot_be_had_is_told_at_once_and_disturbs_nothing_else() {
    let mut lab = Lab::new(1);
    let registry = lab.registry();
    let _up = up(&lab);
    let host = &lab.hosts[0];
    let before = host.lives();

    // An image that the registry does not have.
    let image = format!("{registry}/team/none:1");
    let file = lab.file("none.yaml", &service("none", 1).replace("reeve/hello:1", &image));
    let begin = Instant::now();
    let said = host.reeve_exits(6, &["apply", "-f", &file, "--yes"]);
    told_well(&said, &["ImageNotFound", &image, "none.1"]);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    host.reeve_exits(0, &["delete", "service", "none", "--yes"]);

    // Two services that want one port of the host: the second is told who has it.
    let port = |name: &str| {
        service(name, 1).replace(
            "    command",
            "    ports: [{containerPort: 80, hostPort: 8080}]\n    command",
        )
    };
    let file = lab.file("first.yaml", &port("first"));
    host.reeve_exits(0, &["apply", "-f", &file, "--yes"]);
    let file = lab.file("second.yaml", &port("second"));
    let said = host.reeve_exits(7, &["apply", "-f", &file, "--yes"]);
    told_well(&said, &["8080", "n1"]);
    assert!(host.running().contains(&"default.first.1.1".to_owned()));
    assert!(!host.containers().iter().any(|(name, _)| name.contains("second")));
    // It gets the port once it is free.
    host.reeve_exits(0, &["delete", "service", "first", "--yes"]);
    eventually("the second has the port", 20, || {
        let running = host.running();
        if running.contains(&"default.second.1.1".to_owned()) {
            Ok(())
        } else {
            Err(format!("{running:?}"))
        }
    });

    // A port that something else on the host has: told by the engine, and tried again until it is free.
    let taken = host.docker(&["run", "-d", "-p", "8181:80", "reeve/hello:1", "sleep", "3600"]);
    let file = lab.file("third.yaml", &port("third").replace("8080", "8181"));
    let said = host.reeve_exits(6, &["apply", "-f", &file, "--yes", "--timeout", "60s"]);
    told_well(&said, &["8181", "third.1"]);
    host.docker(&["rm", "-f", &taken]);
    eventually("the third has the port", 40, || {
        let text = host.reeve_exits(0, &["get", "service", "third"]);
        if text.contains("1/1") { Ok(()) } else { Err(text) }
    });
    let web: Vec<_> = host
        .lives()
        .into_iter()
        .filter(|(name, _, _)| name.contains(".web."))
        .collect();
    assert_eq!(web, before);
}

/// Answers as an engine of long ago until the test ends.
fn old_engine(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("a socket in the lab's directory");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        let body = r#"{"Version":"1.13.1","ApiVersion":"1.26","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#;
                        let length = body.len();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                        );
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn what_cannot_begin_says_why_and_what_runs_goes_on() {
    let mut lab = Lab::new(1);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    let dir = |lab: &Lab, name: &str| lab.dir().join(name).display().to_string();
    let file = lab.file("web.yaml", &service("web", 2));
    let docker = lab.hosts[0].docker_host.clone();

    // A store without a cluster.
    told_well(
        &lab.reeve_exits(&endpoints, 6, &["apply", "-f", &file]),
        &["no cluster", "reeve init"],
    );
    told_well(
        &lab.reeve_exits(&endpoints, 6, &["controller", "--metrics", "127.0.0.1:0"]),
        &["no cluster", "reeve init"],
    );
    let (none, agent) = (dir(&lab, "none"), ["agent", "--node", "n9", "--metrics", "127.0.0.1:0"]);
    let with = |more: &[&'static str]| -> Vec<&'static str> { agent.iter().chain(more).copied().collect() };
    let args = [&with(&[])[..], &["--docker", &docker, "--data-dir", &none]].concat();
    told_well(&lab.reeve_exits(&endpoints, 6, &args), &["no cluster", "reeve init"]);

    // No Docker, and one that is too old.
    let nowhere = format!("unix://{}", dir(&lab, "nowhere.sock"));
    let place = dir(&lab, "up-none");
    let up = ["up", "--listen", "127.0.0.1:0", "--data-dir", &place, "--docker"];
    let run_up = |docker: &str| {
        let output = e2e::run(Command::new(e2e::reeve()).args(up).arg(docker).env("NO_COLOR", "1"));
        assert_eq!(output.status.code(), Some(6));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    told_well(&run_up(&nowhere), &["nowhere.sock"]);
    let socket = lab.dir().join("old.sock");
    old_engine(&socket);
    let old = format!("unix://{}", socket.display());
    told_well(&run_up(&old), &["1.13.1", "20.10", "upgrade the engine"]);
    let args = [&with(&[])[..], &["--docker", &old, "--data-dir", &none]].concat();
    told_well(
        &lab.reeve_exits(&endpoints, 6, &args),
        &["1.13.1", "20.10", "upgrade the engine"],
    );
    assert!(!Path::new(&place).join("store").exists(), "nothing was begun");

    // A cluster, with something that runs.
    lab.control(&etcd);
    lab.hosts[0].start_agent(&endpoints, &[]);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes"]).stdout).into_owned();
        if text.contains("Ready") { Ok(()) } else { Err(text) }
    });
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "60s"]);
    let before = lab.hosts[0].lives();

    // The agent is pointed at another cluster: it takes nothing from there, says so, and what runs stays and is repaired.
    lab.reeve_exits(&endpoints, 0, &["init", "--prefix", "/other/"]);
    let there = || etcd.ctl(&["get", "--prefix", "/other/", "--keys-only"]);
    let other = there();
    assert!(other.contains("/other/cluster"), "{other}");
    lab.hosts[0].agent().stop(Duration::from_secs(10));
    lab.hosts[0].start_agent(&endpoints, &["--prefix", "/other/"]);
    eventually("the agent says that the store is of another cluster", 20, || {
        let output = lab.hosts[0].agent().output();
        let told = output
            .lines()
            .any(|line| line.contains("of cluster") && line.contains("--etcd"));
        if told { Ok(()) } else { Err(output) }
    });
    lab.hosts[0].docker(&["kill", "default.web.1.1"]);
    let host = &lab.hosts[0];
    eventually("it repairs what it knows", 10, || web_runs(host));
    assert_eq!(there(), other, "it wrote nothing there");
    lab.hosts[0].agent().stop(Duration::from_secs(10));
    lab.hosts[0].start_agent(&endpoints, &[]);
    let host = &lab.hosts[0];
    eventually("back in its own cluster all is ready", 30, || {
        let text = lab.reeve_exits(&endpoints, 0, &["get", "services"]);
        if text.contains("2/2") { Ok(()) } else { Err(text) }
    });
    let second = host.lives().into_iter().find(|(name, _, _)| name.contains(".web.2."));
    assert_eq!(second, before.get(1).cloned());

    // A value of two megabytes, by file and by hand.
    let env = format!("    env: {{LARGE: {}}}\n", "x".repeat(2 << 20));
    let large = lab.file("large.yaml", &format!("{}{env}", service("web", 2)));
    let output = lab.reeve(&endpoints, &["apply", "-f", &large, "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("large.yaml") && said.contains("help: "), "{said}");
    let shell =
        format!("ETCDCTL_API=3 etcdctl --endpoints {endpoints} put /reeve/desired/default/service/web < {large}");
    let output = e2e::run(Command::new("sh").args(["-c", &shell]));
    assert!(!output.status.success(), "etcd takes no two megabytes");
    holds_for("what runs stays", Duration::from_secs(1), || web_runs(&lab.hosts[0]));
}
