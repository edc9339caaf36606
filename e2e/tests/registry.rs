//! A password-protected registry on real engines: a wrong login is refused, a right one reaches every node that needs it,
//! a changed password is told and renewed without restarting anything, and no clear word of it is left anywhere.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use e2e::seats::{agent, etcdctl, install_token, on, server, server_dir, server_log, serves, succeeds};
use e2e::{Etcd, Host, Lab, eventually};

const FIRST: &str = "canary-Kw3vTq81-first";
const SECOND: &str = "canary-Zr6mXp42-second";
/// The lines of an htpasswd file for user `ci` with these passwords.
const FIRST_LINE: &str = "ci:$2y$05$kBILK419WYPmLqXg3ksPN.KgMxuXd8PeYbUDgj3AsgA4VViUQuhqK\n";
const SECOND_LINE: &str = "ci:$2y$05$BADJZJcGYNrBiq3nRNlHwOU/fp3K513l9qUgU/bNr8WXOwKJBWSnS\n";

struct Cluster {
    lab: Lab,
    etcd: Etcd,
    registry: String,
}

/// Runs a verb that reads a password from a pipe; how it ended, and what it said.
fn piped(command: &mut Command, password: &str) -> (Option<i32>, String) {
    let mut child = command
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reeve starts");
    let mut input = child.stdin.take().expect("a pipe");
    writeln!(input, "{password}").expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.concat();
    assert!(!text.contains(password), "a password is printed");
    (output.status.code(), text)
}

/// Puts an image into the registry; nothing of it stays on the host.
fn push(host: &Host, registry: &str, tag: &str, password: &str) {
    let reference = format!("{registry}/team/app:{tag}");
    let config = tempfile::tempdir().expect("a directory");
    let place = config.path().to_str().expect("a path");
    host.docker(&["--config", place, "login", "-u", "ci", "-p", password, registry]);
    // Another image for each tag.
    host.docker(&["create", "--name", "pushed", "reeve/hello:1", "sh"]);
    host.docker(&["commit", "--change", &format!("LABEL tag={tag}"), "pushed", &reference]);
    host.docker(&["rm", "pushed"]);
    host.docker(&["--config", place, "push", &reference]);
    host.docker(&["rmi", &reference]);
}

fn manifest(registry: &str, tag: &str, replicas: u32) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  update: {{minReady: 1s}}\n  container:\n    image: {registry}/team/app:{tag}\n    pullPolicy: Always\n    command: [sleep, '1000']\n    stopGracePeriod: 1s\n  placement: {{maxPerNode: 1}}\n"
    )
}

impl Cluster {
    fn new() -> Self {
        let mut lab = Lab::new(3);
        let etcd = lab.etcd(1);
        lab.control(&etcd);
        for host in &mut lab.hosts[..2] {
            host.start_agent(&etcd.endpoints, &[]);
        }
        let registry = lab.guarded_registry(FIRST_LINE);
        let cluster = Self { lab, etcd, registry };
        cluster.wait_nodes(2);
        cluster
    }

    fn wait_nodes(&self, count: usize) {
        eventually("the nodes are ready", 60, || {
            let text = self.said(&["get", "nodes"]);
            if text.matches("Ready").count() >= count {
                Ok(())
            } else {
                Err(text)
            }
        });
    }

    fn exits(&self, code: i32, args: &[&str]) -> String {
        self.lab.reeve_exits(&self.etcd.endpoints, code, args)
    }

    fn said(&self, args: &[&str]) -> String {
        let Output { stdout, stderr, .. } = self.lab.reeve(&self.etcd.endpoints, args);
        format!(
            "{}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        )
    }

    fn wait_said(&self, args: &[&str], words: &[&str]) {
        eventually(&format!("reeve {args:?} says {words:?}"), 90, || {
            let text = self.said(args);
            if words.iter().all(|word| text.contains(word)) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }

    /// `reeve login` with a password from a pipe.
    fn login(&self, code: i32, registry: &str, password: &str) -> String {
        let mut command = Command::new(e2e::reeve());
        command
            .args(["login", registry, "--user", "ci", "--password-stdin", "--insecure"])
            .env("REEVE_ETCD", &self.etcd.endpoints)
            .env("HOME", self.lab.dir());
        let (ended, text) = piped(&mut command, password);
        assert_eq!(ended, Some(code), "reeve login {registry} said:\n{text}");
        text
    }

    fn push(&self, tag: &str, password: &str) {
        push(&self.lab.hosts[0], &self.registry, tag, password);
    }

    fn web(&self, tag: &str, replicas: u32) -> String {
        let text = manifest(&self.registry, tag, replicas);
        self.lab.file(&format!("web-{tag}-{replicas}.yaml"), &text)
    }

    /// How many hosts run the image that was pushed under this tag. Every image is labelled with it: what runs is named by
    /// its digest.
    fn hosts_of(&self, image: &str) -> usize {
        let tag = image.rsplit(':').next().unwrap_or_default();
        let runs = |host: &&Host| {
            let seen = host.docker(&["ps", "--format", "{{.Image}} {{.Label \"tag\"}}"]);
            seen.lines()
                .any(|line| line.contains("team/app") && line.ends_with(&format!(" {tag}")))
        };
        self.lab.hosts.iter().filter(runs).count()
    }

    fn wait_on(&self, image: &str, hosts: usize) {
        eventually(&format!("{image} runs on {hosts} hosts"), 90, || {
            let seen = self.hosts_of(image);
            if seen == hosts {
                Ok(())
            } else {
                Err(format!("{seen}: {}", self.said(&["describe", "service", "web"])))
            }
        });
    }
}

#[test]
fn an_account_reaches_every_node_that_needs_it_and_its_password_is_nowhere() {
    let mut cluster = Cluster::new();
    cluster.push("1", FIRST);
    let registry = cluster.registry.clone();

    // Nothing is saved that the registry does not confirm.
    let text = cluster.login(6, &registry, "wrong");
    assert!(
        text.contains("refuses user `ci`") && text.contains("nothing was saved"),
        "{text}"
    );
    let store = cluster.etcd.endpoints.trim_start_matches("http://").to_owned();
    let text = cluster.login(6, &store, "wrong");
    assert!(text.contains("no registry"), "{text}");
    assert!(cluster.said(&["registries"]).contains("no registries"));

    // Without an account the status says who refuses, and what to do; with one it goes on by itself.
    let one = cluster.web("1", 2);
    cluster.exits(0, &["apply", "-f", &one, "--yes", "--no-wait"]);
    cluster.wait_said(
        &["describe", "service", "web"],
        &["ImageDenied", "wants a login", "reeve login"],
    );
    let text = cluster.login(0, &registry, FIRST);
    assert!(text.contains("logged in"), "{text}");
    cluster.wait_on("team/app:1", 2);
    cluster.wait_said(&["registries"], &["ci", "Valid", "default/web"]);
    let lives: Vec<_> = cluster.lab.hosts.iter().map(Host::lives).collect();

    // The password is changed there: the next pull says so, and what runs goes on.
    cluster.lab.file("htpasswd", SECOND_LINE);
    eventually("the registry knows the new password", 30, || {
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "-u", &format!("ci:{SECOND}"), &format!("http://{registry}/v2/")]);
        let output = e2e::run(&mut curl);
        if output.status.success() {
            Ok(())
        } else {
            Err("refused".into())
        }
    });
    cluster.push("2", SECOND);
    let two = cluster.web("2", 2);
    cluster.exits(0, &["apply", "-f", &two, "--yes", "--no-wait"]);
    cluster.wait_said(
        &["describe", "service", "web"],
        &["ImageDenied", &format!("{registry} refuses `ci`"), "reeve login"],
    );
    cluster.wait_said(&["registries"], &["Refused", "renews the password"]);
    assert_eq!(lives, cluster.lab.hosts.iter().map(Host::lives).collect::<Vec<_>>());

    // Renewed, it is used by the next pull; no agent is started again.
    cluster.login(0, &registry, SECOND);
    cluster.wait_on("team/app:2", 2);
    cluster.wait_said(&["registries"], &["Valid"]);

    // A node that comes later.
    let endpoints = cluster.etcd.endpoints.clone();
    cluster.lab.hosts[2].start_agent(&endpoints, &[]);
    cluster.wait_nodes(3);
    let three = cluster.web("2", 3);
    cluster.exits(0, &["apply", "-f", &three, "--yes", "--timeout", "90s"]);
    cluster.wait_on("team/app:2", 3);

    // An agent that starts again without the store has the account on its disk, sealed.
    cluster.nothing_tells();

    cluster.exits(0, &["logout", &registry]);
    cluster.wait_said(&["registries"], &["NoAccount"]);
    eventually("nodes are handed nothing any more", 30, || {
        let text = cluster.etcd.ctl(&["get", "/reeve/handed/", "--prefix"]);
        if text.contains("envelope") { Err(text) } else { Ok(()) }
    });
}

impl Cluster {
    /// The canaries are in no store, log, label, inspection, metric, event or file of ours.
    fn nothing_tells(&self) {
        let mut places: Vec<(String, String)> = vec![
            ("the store".into(), self.etcd.ctl(&["get", "", "--prefix"])),
            (
                "describe".into(),
                self.said(&["describe", "registry", &self.resource()]),
            ),
            ("get".into(), self.said(&["get", "registries", "-o", "yaml"])),
            ("registries".into(), self.said(&["registries", "-o", "json"])),
            ("events".into(), self.said(&["events", "--all"])),
        ];
        let controller = format!("http://{}:9464/metrics", self.lab.address(254));
        let curl = e2e::run(Command::new("curl").args(["-fsS", "--max-time", "5", &controller]));
        places.push((
            "the controller's metrics".into(),
            String::from_utf8_lossy(&curl.stdout).into_owned(),
        ));
        for host in &self.lab.hosts {
            let metrics = host
                .http(&format!("http://{}:9465/metrics", host.address))
                .expect("metrics");
            places.push((format!("metrics of {}", host.name), metrics));
            for (name, id) in host.containers() {
                places.push((name, host.docker(&["inspect", &id])));
            }
        }
        for (place, text) in &places {
            assert!(!text.is_empty(), "{place} was not read");
            for word in [FIRST, SECOND] {
                assert!(!text.contains(word), "{place} has a password");
            }
        }
        // Logs, data directories, the store's and the engines' own files. The test's own words are not in there.
        for word in [FIRST, SECOND] {
            let mut grep = Command::new("grep");
            grep.args(["-rlaF", "--devices=skip", word]).arg(self.lab.dir());
            let found = String::from_utf8_lossy(&e2e::run(&mut grep).stdout).into_owned();
            assert_eq!(found, "", "a password is in these files");
        }
    }

    fn resource(&self) -> String {
        self.registry.replace(['.', ':'], "-")
    }
}

/// In a cluster of seeds keys are stated under certificates: a key that somebody wrote into the store gets nothing.
#[test]
fn in_a_cluster_of_seeds_nothing_is_sealed_for_a_key_that_no_certificate_states() {
    let mut lab = Lab::new(3);
    let registry = lab.guarded_registry(FIRST_LINE);
    let token = install_token(&lab, "token");
    let [n1, n2, n3] = lab.hosts.as_slice() else {
        panic!("three hosts")
    };
    let seeds = n1.address.clone();
    let _server = server(n1, &seeds, &token);
    eventually("the seed serves", 60, || serves(n1));
    let _second = agent(n2, &seeds, &token);
    push(n1, &registry, "1", FIRST);
    let mut command = n1.place.command(&n1.binary);
    command
        .args([
            "login",
            &registry,
            "--user",
            "ci",
            "--password-stdin",
            "--insecure",
            "--data-dir",
        ])
        .arg(server_dir(n1))
        .env_remove("REEVE_ETCD");
    let (code, text) = piped(&mut command, FIRST);
    assert_eq!(code, Some(0), "{text}");

    // People look around in it: what is declared says that it has no TLS.
    let image = format!("{registry}/team/app");
    let look = |words: &[&str], password: &str| {
        let mut command = n1.place.command(&n1.binary);
        command.arg("registries").args(words);
        command.args(["--user", "ci", "--password-stdin", "--data-dir"]);
        command.arg(server_dir(n1)).env_remove("REEVE_ETCD");
        piped(&mut command, password)
    };
    assert_eq!(look(&["tags", &image], FIRST), (Some(0), "TAG\n1\n".to_owned()));
    let (code, text) = look(&["search", &registry, "app"], FIRST);
    assert_eq!((code, text), (Some(0), format!("IMAGE\n{image}\n")));
    let (code, text) = look(&["tags", &format!("{image}:1")], FIRST);
    assert!(
        code == Some(0) && text.starts_with(&format!("{image}:1@sha256:")),
        "{text}"
    );
    let (code, text) = look(&["tags", &format!("{image}s")], FIRST);
    assert!(code == Some(6) && text.contains("has no image `team/apps`"), "{text}");
    for (code, text) in [look(&["tags", &image], SECOND), on(n1, &["registries", "tags", &image])] {
        assert!(code == Some(6) && text.contains("does not show that to us"), "{text}");
    }

    let file = lab.file("web.yaml", &manifest(&registry, "1", 1));
    succeeds(n1, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
    let ctl = |args: &[&str]| etcdctl(n1, &server_dir(n1), "person", n1, args).expect("etcdctl");
    let handed = ctl(&["get", "/reeve/handed/node.n2"]);
    assert!(handed.contains("envelope") && !handed.contains(FIRST), "{handed}");
    assert!(ctl(&["get", "/reeve/nodes/n2", "--print-value-only"]).contains("stated:"));

    // A third node comes; whoever writes the store puts a key of his in its place before it has any work.
    let _third = agent(n3, &seeds, &token);
    eventually("the third node is there", 60, || {
        let (_, text) = on(n1, &["get", "nodes"]);
        if text.matches("Ready").count() == 2 {
            Ok(())
        } else {
            Err(text)
        }
    });
    let facts = ctl(&["get", "/reeve/nodes/n3", "--print-value-only"]);
    let mut facts: serde_json::Value = serde_json::from_str(facts.trim()).expect("JSON");
    let stated = facts["sealingKey"].take();
    facts["sealingKey"] = format!("plain:{}", "ab".repeat(32)).into();
    ctl(&["put", "/reeve/nodes/n3", &facts.to_string()]);
    let file = lab.file("web.yaml", &manifest(&registry, "1", 2));
    succeeds(n1, &["apply", "-f", &file, "--yes", "--no-wait"]);
    eventually("the leader says so", 60, || {
        let log = server_log(n1);
        if log.contains("nothing is sealed for node.n3") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(ctl(&["get", "/reeve/handed/node.n3"]), "");
    facts["sealingKey"] = stated;
    ctl(&["put", "/reeve/nodes/n3", &facts.to_string()]);
    eventually("the node's own key counts", 90, || {
        let running = n3.running();
        if running.is_empty() {
            Err(on(n1, &["describe", "service", "web"]).1)
        } else {
            Ok(())
        }
    });
}
