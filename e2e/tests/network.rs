//! Three hosts and one network of the cluster's own: encrypted links, addresses that are planned, names that follow.

use std::time::Duration;

use e2e::{Etcd, Lab, eventually, holds_for};

const APP: &str = "\
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  container:
    image: reeve/hello:1
    command: [httpd, -f, -p, '80', -h, /www]
    ports: [{name: http, containerPort: 80}]
    stopGracePeriod: 1s
  dependsOn: [cache, db]
  placement: {nodeNames: [n1]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: cache}
spec:
  container:
    image: reeve/hello:1
    command: [httpd, -f, -p, '6379', -h, /www]
    stopGracePeriod: 1s
  placement: {nodeNames: [n2]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: db}
spec:
  container:
    image: reeve/hello:1
    command: [httpd, -f, -p, '5432', -h, /www]
    stopGracePeriod: 1s
  placement: {nodeNames: [n3]}
";

struct Cluster {
    lab: Lab,
    etcd: Etcd,
}

fn cluster_of(hosts: usize, backend: &str) -> Cluster {
    let mut lab = Lab::new(hosts);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    lab.reeve_exits(
        &endpoints,
        0,
        &["network", "create", "--cidr", "10.88.0.0/16", "--backend", backend],
    );
    for host in &mut lab.hosts {
        host.start_agent(&endpoints, &[]);
    }
    eventually("all nodes are linked", 40, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["network", "status"]).stdout).into_owned();
        let linked = text
            .lines()
            .filter(|line| line.starts_with('n') && line.contains("10.88."))
            .count();
        if linked == hosts && !text.contains("not yet") && !text.contains("away") {
            Ok(())
        } else {
            Err(text)
        }
    });
    Cluster { lab, etcd }
}

impl Cluster {
    /// What a container of `service` gets from this address: asked by name of the C library there, where it is a name.
    fn fetch(&self, service: &str, url: &str) -> Result<String, String> {
        let (host_name, port) = url.rsplit_once(':').unwrap_or((url, "80"));
        let script = format!(
            "set -e; found=$(getent ahostsv4 {host_name}); set -- $found; \
             printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 $1 {port} | grep Hello"
        );
        for host in &self.lab.hosts {
            for name in host.running() {
                if name.starts_with(&format!("default.{service}.")) {
                    let output = e2e::run(&mut host.docker_command(&["exec", &name, "sh", "-c", &script]));
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
                    return if output.status.success() {
                        Ok(said)
                    } else {
                        Err(format!("{url}: {said}{wrong}"))
                    };
                }
            }
        }
        Err(format!("no container of {service} runs"))
    }

    fn reaches(&self, service: &str, url: &str, seconds: u64) {
        eventually(&format!("{service} reaches {url}"), seconds, || {
            self.fetch(service, url).map(drop)
        });
    }
}

#[test]
fn what_runs_on_three_hosts_is_found_by_name_over_encrypted_links() {
    let mut cluster = cluster_of(3, "wireguard");
    let endpoints = cluster.etcd.endpoints.clone();
    let app = cluster.lab.file("app.yaml", APP);
    let said = cluster.lab.reeve_exits(&endpoints, 0, &["plan", "-f", &app]);
    // Nodes have subnets in the order in which they came.
    let planned = |on: &str| {
        let (_, rest) = said
            .split_once(&format!("{on} at "))
            .unwrap_or_else(|| panic!("no {on}: {said}"));
        rest.split(':').next().unwrap_or_default().to_owned()
    };
    assert!(planned("web.1 on n1").ends_with(".2"), "{said}");
    let db = format!("{}:5432", planned("db.1 on n3"));
    cluster.lab.reeve_exits(&endpoints, 0, &["apply", "-f", &app]);
    for url in [
        "cache:6379",
        "db:5432",
        "db.default:5432",
        "db.default.reeve.internal:5432",
        "1.db.default.reeve.internal:5432",
        &db,
    ] {
        cluster.reaches("web", url, 20);
    }
    cluster.reaches("db", "web:80", 20);

    // It moves, and is found where it is now, by nobody where it was.
    let moved = cluster
        .lab
        .file("moved.yaml", &APP.replace("nodeNames: [n3]", "nodeNames: [n2]"));
    cluster.lab.reeve_exits(&endpoints, 0, &["apply", "-f", &moved]);
    cluster.reaches("web", "db:5432", 20);
    let found = cluster.lab.hosts[0].running();
    let web = found
        .iter()
        .find(|name| name.starts_with("default.web."))
        .expect("web runs");
    let said = cluster.lab.hosts[0].docker(&["exec", web, "getent", "ahostsv4", "db"]);
    let old = db.split(':').next().unwrap_or_default();
    assert!(!said.contains(old), "{said} was {old}");

    // Somebody takes away the device that links one host to the others, and then the process behind another's.
    let links = cluster.lab.hosts[0]
        .within("ip", &["-brief", "link"])
        .expect("links are listed");
    let device = links
        .lines()
        .find_map(|line| line.split_whitespace().next().filter(|name| name.starts_with("rvw")));
    let device = device.expect("a link").to_owned();
    cluster.lab.hosts[0]
        .within("ip", &["link", "del", &device])
        .expect("it goes");
    cluster.reaches("web", "db:5432", 20);
    let names = cluster.lab.hosts[1].dir.join("agent/names/names.pid");
    let held = std::fs::read(&names).expect("it says who it is");
    let held: serde_json::Value = serde_json::from_slice(&held).expect("it says so in JSON");
    let pid = held["pid"].as_u64().expect("a number").to_string();
    e2e::succeed(std::process::Command::new("kill").args(["-9", &pid]));
    cluster.reaches("cache", "db:5432", 20);

    // With the store and the agents gone, names and traffic go on.
    let pid = cluster.lab.hosts[0].agent().pid();
    e2e::run(std::process::Command::new("kill").args(["-9", &pid.to_string()]));
    cluster.etcd.members.clear();
    holds_for("names go on", Duration::from_secs(3), || {
        cluster.fetch("web", "db:5432").map(drop)
    });
}

/// A member of a store that knows nothing but what it is told: its slot, its address, and the first addresses. Where the others
/// say that it was one of them, and it has nothing any more, it takes its own place again.
const MEMBER: &str = r#"
set -e
name=m$SLOT all= n=0
for seed in $(echo "$SERVICE_SEEDS" | tr , ' '); do n=$((n + 1)); all="$all,m$n=http://$seed:2380"; done
state=new
if [ ! -d /data/$name ]; then
  for seed in $(echo "$SERVICE_SEEDS" | tr , ' '); do
    [ "$seed" != "$CONTAINER_IP" ] || continue
    known=$(etcdctl --command-timeout=3s --endpoints "http://$seed:2379" member list 2>/dev/null || true)
    old=$(echo "$known" | grep ", started, $name," | cut -d, -f1 || true)
    [ -n "$known" ] || continue
    if ! echo "$known" | grep -q "http://$CONTAINER_IP:2380"; then
      [ -z "$old" ] || etcdctl --endpoints "http://$seed:2379" member remove "$old"
      until etcdctl --endpoints "http://$seed:2379" member add "$name" --peer-urls "http://$CONTAINER_IP:2380"; do sleep 1; done
    fi
    state=existing
    break
  done
fi
exec etcd --name "$name" --data-dir "/data/$name" --initial-cluster "${all#,}" --initial-cluster-state $state \
  --listen-peer-urls "http://$CONTAINER_IP:2380" --initial-advertise-peer-urls "http://$CONTAINER_IP:2380" \
  --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls "http://$CONTAINER_IP:2379"
"#;

#[test]
fn a_store_of_three_forms_by_its_first_addresses_alone_and_outlives_each_members_move() {
    let cluster = cluster_of(4, "vxlan");
    let endpoints = cluster.etcd.endpoints.clone();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/debian-image.sh");
    for host in &cluster.lab.hosts {
        let mut command = std::process::Command::new(script);
        e2e::succeed(
            command
                .args(["reeve/etcd:1", "etcd-server", "etcd-client"])
                .env("DOCKER_HOST", &host.docker_host),
        );
    }
    let member: String = MEMBER.lines().map(|line| format!("        {line}\n")).collect();
    let manifest = format!(
        "\
apiVersion: reeve/v1
kind: Service
metadata: {{name: store}}
spec:
  replicas: 3
  seeds: 3
  placement: {{maxPerNode: 1}}
  container:
    image: reeve/etcd:1
    pullPolicy: Never
    stopGracePeriod: 5s
    env: {{ETCDCTL_API: '3'}}
    command: [sh, -c]
    args:
      - |
{member}    healthCheck: {{exec: {{command: [etcdctl, endpoint, health]}}, interval: 2s, timeout: 8s, startPeriod: 1m}}
    mounts: [{{type: volume, source: data, target: /data}}]
"
    );
    let manifest = cluster.lab.file("store.yaml", &manifest);
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["apply", "-f", &manifest, "--timeout", "3m"]);
    cluster.whole("begun");
    for slot in 1..=3 {
        let node = cluster.node_of(&format!("store.{slot}."));
        cluster
            .lab
            .reeve_exits(&endpoints, 0, &["drain", &node, "--timeout", "3m"]);
        cluster.whole(&format!("after {slot} moved"));
        cluster.lab.reeve_exits(&endpoints, 0, &["uncordon", &node]);
    }
}

impl Cluster {
    /// The node on which an instance runs.
    fn node_of(&self, instance: &str) -> String {
        let runs = |host: &&e2e::Host| host.running().iter().any(|name| name.contains(instance));
        let host = self.lab.hosts.iter().find(runs);
        host.map_or_else(|| panic!("{instance} runs nowhere"), |host| host.name.clone())
    }

    /// Waits until the store has three members that all answer, and keeps what was put into it.
    fn whole(&self, when: &str) {
        eventually(&format!("the store is whole, {when}"), 120, || {
            let mut answers = 0;
            let mut said = String::new();
            for host in &self.lab.hosts {
                for name in host.running().iter().filter(|name| name.starts_with("default.store.")) {
                    let script = "etcdctl put kept \"$(etcdctl get kept --print-value-only) more\" >/dev/null && etcdctl member list";
                    let output = e2e::run(&mut host.docker_command(&["exec", name, "sh", "-c", script]));
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    answers += usize::from(output.status.success() && text.matches(", started,").count() == 3);
                    said.push_str(&text);
                    said.push_str(&String::from_utf8_lossy(&output.stderr));
                }
            }
            if answers == 3 { Ok(()) } else { Err(said) }
        });
        let words = self.kept();
        assert!(words >= 3, "{when}: {words} of what was put are there");
    }

    fn kept(&self) -> usize {
        let host = &self.lab.hosts[usize::from(self.lab.hosts[0].running().is_empty())];
        let name = host
            .running()
            .into_iter()
            .find(|name| name.starts_with("default.store."));
        let name = name.expect("a member runs there");
        let said = host.docker(&["exec", &name, "etcdctl", "get", "kept", "--print-value-only"]);
        said.matches("more").count()
    }
}
