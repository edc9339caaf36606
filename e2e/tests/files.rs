//! Files on real engines: what is uploaded is what containers see, a change of one touches its users alone, and neither a
//! deleted file nor a damaged one takes anything away.

use std::net::SocketAddr;
use std::time::Duration;

use e2e::{Etcd, Lab, Load, eventually, holds_for};

struct Cluster {
    lab: Lab,
    etcd: Etcd,
}

fn cluster(hosts: usize) -> Cluster {
    let mut lab = Lab::new(hosts);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    for host in &mut lab.hosts {
        host.start_agent(&endpoints, &[]);
    }
    eventually("the nodes are ready", 30, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["get", "nodes"]).stdout).into_owned();
        if text.matches("Ready").count() >= hosts {
            Ok(())
        } else {
            Err(text)
        }
    });
    Cluster { lab, etcd }
}

impl Cluster {
    fn exits(&self, code: i32, args: &[&str]) -> String {
        self.lab.reeve_exits(&self.etcd.endpoints, code, args)
    }

    fn apply(&self, text: &str) {
        let file = self.lab.file("manifest.yaml", text);
        self.exits(0, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
    }

    fn running(&self) -> Vec<String> {
        let mut all: Vec<String> = self.lab.hosts.iter().flat_map(|host| host.running()).collect();
        all.sort();
        all
    }

    /// What a container prints, on whichever host it is.
    fn within(&self, container: &str, script: &str) -> String {
        let host = self
            .lab
            .hosts
            .iter()
            .find(|host| host.running().iter().any(|name| name == container));
        let host = host.unwrap_or_else(|| panic!("{container} runs nowhere: {:?}", self.running()));
        host.docker(&["exec", container, "sh", "-c", script])
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

    fn wait_said(&self, args: &[&str], word: &str) -> String {
        eventually(&format!("reeve {args:?} says {word}"), 60, || {
            let output = self.lab.reeve(&self.etcd.endpoints, args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.contains(word) { Ok(text) } else { Err(text) }
        })
    }
}

fn web(name: &str, replicas: u32, port: u16, file: &str) -> String {
    let files = if file.is_empty() {
        String::new()
    } else {
        format!("\n    files: [{{file: {file}, path: /etc/data, owner: '1000:29', mode: '0640'}}]")
    };
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  container:\n    image: reeve/hello:1\n    command: [httpd, -f, -p, '80', -h, /www]\n    init: true\n    stopGracePeriod: 1s\n    ports: [{{containerPort: 80, hostPort: {port}}}]{files}\n    healthCheck: {{http: {{port: 80}}, interval: 1s}}\n  placement: {{maxPerNode: 1}}\n"
    )
}

#[test]
fn four_mebibytes_of_bytes_arrive_unchanged_and_survive_the_store() {
    let mut cluster = cluster(1);
    let bytes: Vec<u8> = (0_u32..4 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let path = cluster.lab.dir().join("geo.bin");
    std::fs::write(&path, &bytes).expect("a file");
    cluster.exits(0, &["upload", &path.display().to_string(), "geo"]);
    cluster.apply(&web("web", 1, 8080, "geo"));
    let sum = |cluster: &Cluster, container: &str| {
        let text = cluster.within(container, "sha256sum /etc/data; ls -ln /etc/data");
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        (words[0].clone(), words[2].clone(), words[4].clone(), words[5].clone())
    };
    let digest = schemas_digest(&bytes);
    let wanted = (digest, "-rw-r-----".to_owned(), "1000".to_owned(), "29".to_owned());
    assert_eq!(sum(&cluster, "default.web.1.1"), wanted);
    let refused = cluster.within("default.web.1.1", "echo x > /etc/data && echo written || echo refused");
    assert!(refused.contains("refused"), "{refused}");

    // The store goes, the agent is killed, the container is removed by hand: it is made again, from the disk.
    cluster.etcd.members[0].kill();
    let host = &mut cluster.lab.hosts[0];
    host.agent().kill();
    host.docker(&["rm", "-f", "default.web.1.1"]);
    let endpoints = cluster.etcd.endpoints.clone();
    host.start_agent(&endpoints, &[]);
    cluster.wait_running(&["default.web.1.1"], 60);
    assert_eq!(sum(&cluster, "default.web.1.1"), wanted);
}

fn schemas_digest(bytes: &[u8]) -> String {
    schemas::config_file::FileDigest::of(bytes).hex()
}

#[test]
fn a_new_edition_under_load_replaces_its_users_and_others_answer_every_request() {
    let cluster = cluster(3);
    let conf = cluster.lab.file("conf", "one\n");
    cluster.exits(0, &["upload", &conf]);
    cluster.apply(&web("user", 3, 8080, "conf"));
    cluster.apply(&web("other", 3, 8081, ""));
    let others: Vec<SocketAddr> = cluster
        .lab
        .hosts
        .iter()
        .map(|host| format!("{}:8081", host.address).parse().expect("an address"))
        .collect();
    let load = Load::start(&others);
    let conf = cluster.lab.file("conf", "two\n");
    let said = cluster.exits(0, &["upload", &conf]);
    assert!(said.contains("edition 1 of file conf became 2"), "{said}");
    cluster.wait_running(
        &[
            "default.other.1.1",
            "default.other.2.1",
            "default.other.3.1",
            "default.user.1.2",
            "default.user.2.2",
            "default.user.3.2",
        ],
        120,
    );
    assert_eq!(cluster.within("default.user.2.2", "cat /etc/data"), "two");
    let served = load.stop();
    let failed: Vec<_> = served.iter().flatten().filter(|one| one.result.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(served.iter().all(|one| one.len() > 20));
}

#[test]
fn a_deleted_file_and_a_damaged_one_take_nothing_away() {
    let cluster = cluster(2);
    let conf = cluster.lab.file("conf", "one\n");
    cluster.exits(0, &["upload", &conf]);
    cluster.apply(&web("web", 1, 8080, "conf"));
    let lives = || cluster.lab.hosts.iter().map(e2e::Host::lives).collect::<Vec<_>>();
    let before = lives();
    cluster.etcd.ctl(&["del", "/reeve/desired/default/configfile/conf"]);
    cluster.wait_said(&["describe", "service", "web"], "FileDeleted");
    holds_for("it runs on", Duration::from_secs(3), || {
        if lives() == before {
            Ok(())
        } else {
            Err("replaced".to_owned())
        }
    });
    // Also on a node that never had it.
    cluster.apply(&web("web", 2, 8080, "conf"));
    cluster.wait_running(&["default.web.1.1", "default.web.2.2"], 60);
    assert_eq!(cluster.within("default.web.2.2", "cat /etc/data"), "one");

    // A part that is wrong holds the change at its first slot, and the old ones serve on.
    let large = cluster.lab.dir().join("large");
    let bytes = vec![7_u8; 600 << 10];
    std::fs::write(&large, &bytes).expect("a file");
    let part = format!("/reeve/blobs/{}/1", schemas_digest(&bytes));
    let spec = format!(
        "apiVersion: reeve/v1\nkind: ConfigFile\nmetadata: {{name: conf}}\nspec: {{digest: 'sha256:{}', size: {}}}\n",
        schemas_digest(&bytes),
        bytes.len()
    );
    cluster.etcd.ctl(&["put", &part, "wrong"]);
    cluster
        .etcd
        .ctl(&["put", "/reeve/desired/default/configfile/conf", &spec]);
    let said = cluster.wait_said(&["describe", "service", "web", "-o", "json"], "FileUnavailable");
    assert!(said.contains("reeve upload FILE conf"), "{said}");
    assert_eq!(cluster.running(), ["default.web.1.1", "default.web.2.2"]);
    cluster.exits(0, &["upload", &large.display().to_string(), "conf"]);
    cluster.wait_running(&["default.web.1.3", "default.web.2.3"], 90);
    assert!(
        cluster
            .within("default.web.1.3", "ls -ln /etc/data")
            .contains(&bytes.len().to_string())
    );
}
