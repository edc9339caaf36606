//! Secrets on real engines: what is set is what containers get, through changes, later nodes, restarts and an emptied memory,
//! and no clear word of it is left anywhere but where the engine itself puts a variable.

use std::path::Path;
use std::process::Command;

use e2e::{Etcd, Host, Lab, eventually};

/// In a file of the container alone.
const MOUNTED: [&str; 2] = ["canary-Hw7pLz20-mounted", "canary-Nq1xTk93-mounted"];
/// In a variable too.
const VARIABLE: &str = "canary-Bv4sRd58-variable";

struct Cluster {
    lab: Lab,
    etcd: Etcd,
}

fn web(replicas: u32, secrets: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  update: {{minReady: 1s}}\n  container:\n    image: reeve/hello:1\n    command: [sleep, '1000']\n    init: true\n    stopGracePeriod: 1s\n    secrets: [{secrets}]\n  placement: {{maxPerNode: 1}}\n"
    )
}

const AS_FILE: &str = "{secret: db-password, owner: '1000:29', mode: '0440'}";

impl Cluster {
    /// Three hosts, of which two have agents.
    fn new() -> Self {
        let mut lab = Lab::new(3);
        let etcd = lab.etcd(1);
        lab.control(&etcd);
        for host in &mut lab.hosts[..2] {
            host.start_agent(&etcd.endpoints, &[]);
        }
        let cluster = Self { lab, etcd };
        cluster.wait_said(&["get", "nodes"], &["n1", "n2"]);
        cluster
    }

    fn exits(&self, code: i32, args: &[&str]) -> String {
        self.lab.reeve_exits(&self.etcd.endpoints, code, args)
    }

    fn said(&self, args: &[&str]) -> String {
        let output = self.lab.reeve(&self.etcd.endpoints, args);
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        text.concat()
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

    /// `reeve secret set`, from a file that is gone afterwards.
    fn set(&self, name: &str, value: &str) -> String {
        let file = self.lab.file("value", value);
        let text = self.exits(0, &["secret", "set", name, "--file", &file]);
        std::fs::remove_file(file).expect("it was there");
        assert!(!text.contains(value), "{text}");
        text
    }

    fn apply(&self, text: &str) -> String {
        let file = self.lab.file("manifest.yaml", text);
        self.exits(0, &["apply", "-f", &file, "--yes", "--timeout", "90s"])
    }

    fn host_of(&self, container: &str) -> Option<&Host> {
        let runs = |host: &&Host| host.running().iter().any(|name| name == container);
        self.lab.hosts.iter().find(runs)
    }

    /// Waits until a container runs and prints this.
    fn prints(&self, container: &str, script: &str, wanted: &str) {
        eventually(&format!("{container} prints {wanted}"), 90, || {
            let Some(host) = self.host_of(container) else {
                return Err(self.said(&["describe", "service", "web"]));
            };
            let text = host.docker(&["exec", container, "sh", "-c", script]);
            if text == wanted { Ok(()) } else { Err(text) }
        });
    }

    fn reads(&self, container: &str, value: &str) {
        let script = "stat -c '%a %u %g' /run/secrets/db-password; cat /run/secrets/db-password";
        self.prints(container, script, &format!("440 1000 29\n{value}"));
    }

    /// Files below the lab that hold a word: logs, data directories, the store's and the engines' own.
    fn files_with(&self, word: &str) -> Vec<String> {
        let mut grep = Command::new("grep");
        grep.args(["-rlaF", "--devices=skip", word]).arg(self.lab.dir());
        let found = String::from_utf8_lossy(&e2e::run(&mut grep).stdout).into_owned();
        found.lines().map(str::to_owned).collect()
    }

    /// What is told of the cluster, each with its place.
    fn told(&self) -> Vec<(String, String)> {
        let mut told = vec![
            ("the store".to_owned(), self.etcd.ctl(&["get", "", "--prefix"])),
            ("describe".to_owned(), self.said(&["describe", "secret", "db-password"])),
            ("get".to_owned(), self.said(&["get", "all", "-A", "-o", "yaml"])),
            ("ls".to_owned(), self.said(&["secret", "ls", "-o", "json"])),
            ("events".to_owned(), self.said(&["events", "--all"])),
        ];
        let snapshot = self.lab.dir().join("snapshot.db");
        self.etcd.ctl(&["snapshot", "save", &snapshot.display().to_string()]);
        let controller = format!("http://{}:9464/metrics", self.lab.address(254));
        let curl = e2e::run(Command::new("curl").args(["-fsS", "--max-time", "5", &controller]));
        let metrics = String::from_utf8_lossy(&curl.stdout).into_owned();
        told.push(("the controller's metrics".to_owned(), metrics));
        for host in &self.lab.hosts {
            if let Ok(metrics) = host.http(&format!("http://{}:9465/metrics", host.address)) {
                told.push((format!("metrics of {}", host.name), metrics));
            }
        }
        told
    }

    fn inspections(&self) -> Vec<(String, String)> {
        let hosts = self.lab.hosts.iter();
        let all = hosts.flat_map(|host| {
            let containers = host.containers().into_iter();
            containers.map(move |(name, id)| (name, host.docker(&["inspect", &id])))
        });
        all.collect()
    }

    fn nothing_tells(&self, word: &str) {
        for (place, text) in self.told().into_iter().chain(self.inspections()) {
            assert!(!text.is_empty(), "{place} was not read");
            assert!(!text.contains(word), "{place} has a secret");
        }
        assert_eq!(
            self.files_with(word),
            Vec::<String>::new(),
            "a secret is in these files"
        );
    }
}

#[test]
fn a_mounted_secret_reaches_whoever_gets_it_through_everything_and_is_on_no_disk() {
    let mut cluster = Cluster::new();
    let text = cluster.set("db-password", MOUNTED[0]);
    assert!(text.contains("secret/db-password: new"), "{text}");
    cluster.apply(&web(2, AS_FILE));
    for container in ["default.web.1.1", "default.web.2.1"] {
        cluster.reads(container, MOUNTED[0]);
        let host = cluster.host_of(container).expect("it runs");
        let refused = host.docker(&[
            "exec",
            container,
            "sh",
            "-c",
            "echo x > /run/secrets/db-password && echo written || echo refused",
        ]);
        assert!(refused.contains("refused"), "{refused}");
    }

    // A new value: one after the other, and nobody else.
    let text = cluster.set("db-password", MOUNTED[1]);
    assert!(text.contains("edition 1 of secret db-password became 2"), "{text}");
    for container in ["default.web.1.2", "default.web.2.2"] {
        cluster.reads(container, MOUNTED[1]);
    }

    // A node that comes later.
    let endpoints = cluster.etcd.endpoints.clone();
    cluster.lab.hosts[2].start_agent(&endpoints, &[]);
    cluster.wait_said(&["get", "nodes"], &["n3"]);
    cluster.apply(&web(3, AS_FILE));
    cluster.reads("default.web.3.3", MOUNTED[1]);

    // An agent that starts again restarts nothing.
    let before: Vec<_> = cluster.lab.hosts.iter().map(Host::lives).collect();
    let host = &mut cluster.lab.hosts[0];
    host.agent().kill();
    host.start_agent(&endpoints, &[]);
    cluster.wait_said(&["get", "services"], &["3/3"]);
    assert_eq!(before, cluster.lab.hosts.iter().map(Host::lives).collect::<Vec<_>>());
    cluster.nothing_tells(MOUNTED[0]);
    cluster.nothing_tells(MOUNTED[1]);

    // As a reboot without a store: the memory is empty, and the node has what it was handed.
    cluster.etcd.members[0].kill();
    let host = &mut cluster.lab.hosts[0];
    let name = host.running().first().cloned().expect("one runs there");
    host.agent().kill();
    host.docker(&["kill", &name]);
    e2e::succeed(
        host.place
            .command(Path::new("sh"))
            .args(["-c", "rm -r /dev/shm/reeve-secrets-*"]),
    );
    host.start_agent(&endpoints, &[]);
    cluster.reads(&name, MOUNTED[1]);
}

#[test]
fn a_variable_is_where_the_engine_puts_it_and_nowhere_else_and_apply_says_so() {
    let cluster = Cluster::new();
    // Before there is a value, nothing is stopped and the status says what to do.
    let file = cluster
        .lab
        .file("manifest.yaml", &web(2, "{secret: db-password, env: DB_PASSWORD}"));
    let text = cluster.exits(0, &["apply", "-f", &file, "--yes", "--no-wait"]);
    assert!(
        text.contains("db-password (DB_PASSWORD)") && text.contains("docker inspect"),
        "{text}"
    );
    cluster.wait_said(
        &["describe", "service", "web"],
        &["SecretMissing", "reeve secret set db-password"],
    );
    cluster.set("db-password", VARIABLE);
    for container in ["default.web.1.1", "default.web.2.1"] {
        cluster.prints(container, "printf %s \"$DB_PASSWORD\"", VARIABLE);
    }
    for (place, text) in cluster.told() {
        assert!(!text.contains(VARIABLE), "{place} has a secret");
    }
    let inspections = cluster.inspections();
    let shown = inspections.iter().filter(|(_, text)| text.contains(VARIABLE)).count();
    assert_eq!(shown, 2, "as apply said");
    for file in cluster.files_with(VARIABLE) {
        let own = ["/data/containers/", "/data/containerd/", "/exec/"]
            .iter()
            .any(|part| file.contains(part));
        assert!(own, "a secret is in {file}");
    }

    // Refused while it is used, gone with its value afterwards; what runs keeps running.
    let text = cluster.exits(6, &["secret", "rm", "db-password", "--yes"]);
    assert!(text.contains("service/web"), "{text}");
    cluster.exits(0, &["delete", "service", "web", "--yes", "--timeout", "60s"]);
    cluster.exits(0, &["secret", "rm", "db-password", "--yes"]);
    assert_eq!(cluster.etcd.ctl(&["get", "/reeve/sealed/", "--prefix"]), "");
    eventually("nodes are handed nothing any more", 30, || {
        let text = cluster.etcd.ctl(&["get", "/reeve/handed/", "--prefix"]);
        if text.contains("envelope") { Err(text) } else { Ok(()) }
    });
}
