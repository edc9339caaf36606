//! Three hosts and one network of the cluster's own: encrypted links, addresses that are planned, names that follow.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::{Etcd, Lab, eventually, holds_for, now};
use serde_json::Value;

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

/// Those who must not notice anything.
const OTHERS: &str = "\
apiVersion: reeve/v1
kind: Service
metadata: {name: other}
spec:
  mode: global
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '80', -h, /www], stopGracePeriod: 1s}
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
        &["network", "create", "--cidr", "10.188.0.0/16", "--backend", backend],
    );
    for host in &mut lab.hosts {
        host.start_agent(&endpoints, &[]);
    }
    eventually("all nodes are linked", 40, || {
        let text = String::from_utf8_lossy(&lab.reeve(&endpoints, &["network", "status"]).stdout).into_owned();
        let linked = text
            .lines()
            .filter(|line| line.starts_with('n') && line.contains("10.188."))
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
             printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 $1 {port} | grep Hello"
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

    cluster.mends_what_is_damaged("db:5432");

    // With the store and the agents gone, names and traffic go on.
    let pid = cluster.lab.hosts[0].agent().pid();
    e2e::run(Command::new("kill").args(["-9", &pid.to_string()]));
    cluster.etcd.members.clear();
    holds_for("names go on", Duration::from_secs(3), || {
        cluster.fetch("web", "db:5432").map(drop)
    });
}

impl Cluster {
    /// All that the agent keeps on n1 is taken away, one after the other: each is put back, web reaches `url` again, and what passes
    /// between other hosts notices nothing.
    fn mends_what_is_damaged(&self, url: &str) {
        let [n1, n2, n3] = self.lab.hosts.as_slice() else {
            panic!("three hosts")
        };
        let within = |script: &str| n1.within("sh", &["-c", script]);
        let device = |start: &str| {
            let links = within("ip -brief link").expect("links are listed");
            let mut names = links.lines().filter_map(|line| line.split([' ', '@']).next());
            let found = names.find(|name| name.starts_with(start));
            found.unwrap_or_else(|| panic!("no {start}: {links}")).to_owned()
        };
        let (link, bridge) = (device("rvw"), device("rv-"));
        let table = within("nft list tables").expect("tables are listed");
        let table = table.lines().find(|line| line.contains("inet reeve_net_"));
        let table = table.expect("the filter's").trim_start_matches("table ").to_owned();
        let killed = |file: &str| {
            let file = n1.dir.join(file);
            format!(
                "kill -9 $(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' {})",
                file.display()
            )
        };
        let manifest = self.lab.file("others.yaml", OTHERS);
        self.lab
            .reeve_exits(&self.etcd.endpoints, 0, &["apply", "-f", &manifest]);
        let others = n2.running();
        let other = others.iter().find(|name| name.starts_with("default.other."));
        let target = n3.running();
        let target = target.iter().find(|name| name.starts_with("default.other."));
        let address = n3.docker(&["exec", target.expect("it runs on n3"), "hostname", "-i"]);
        let pings = Lines::of(&mut n2.docker_command(&[
            "exec",
            other.expect("it runs on n2"),
            "ping",
            "-i",
            "0.2",
            address.trim(),
        ]));
        let sent = |line: &str| line.split_once("seq=")?.1.split(' ').next()?.parse::<u64>().ok();
        eventually("others reach each other", 20, || {
            let all = pings.all();
            all.iter()
                .find_map(|(_, line)| sent(line))
                .map(drop)
                .ok_or(format!("{all:?}"))
        });
        let damages = [
            (
                "the link's device",
                format!("ip link del {link}"),
                format!("ip link show {link}"),
            ),
            (
                "the process of the link",
                killed(&format!("agent/links/{link}.pid")),
                format!("ip link show {link}"),
            ),
            (
                "the link's peers",
                format!(
                    "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"/run/wireguard/{link}.sock\"); \
                     s.send(b\"set=1\\nreplace_peers=true\\n\\n\"); s.recv(99)'"
                ),
                "true".to_owned(),
            ),
            (
                "the routes",
                format!("ip route show dev {link} | while read r; do ip route del $r dev {link}; done"),
                format!("ip route show dev {link} | grep -q ."),
            ),
            (
                "the containers' bridge",
                format!("ip link del {bridge}"),
                format!("ip link show {bridge}"),
            ),
            (
                "the bridge's address",
                format!("ip addr flush dev {bridge}"),
                format!("ip addr show {bridge} | grep -q inet"),
            ),
            (
                "the filter",
                format!("nft delete table {table}"),
                format!("nft list table {table}"),
            ),
            ("the names' process", killed("agent/names/names.pid"), "true".to_owned()),
        ];
        let mut told = Vec::new();
        for (what, damage, there) in damages {
            let since = Instant::now();
            within(&damage).unwrap_or_else(|error| panic!("{what}: {error}"));
            eventually(&format!("{what}: put back"), 30, || {
                within(&there)?;
                self.fetch("web", url).map(drop)
            });
            told.push(format!("{what}: {} ms", since.elapsed().as_millis()));
        }
        let all: Vec<u64> = pings.all().iter().filter_map(|(_, line)| sent(line)).collect();
        let lost = all.windows(2).filter(|two| two[1] != two[0] + 1).count();
        println!(
            "put back: {}; {} pings of others, {lost} gaps",
            told.join(", "),
            all.len()
        );
        assert_eq!(lost, 0, "others were disturbed: {all:?}");
    }
}

/// Lines of a program, each with the time at which it came, until this is dropped.
struct Lines {
    child: Child,
    seen: Arc<Mutex<Vec<(u128, String)>>>,
}

impl Lines {
    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (out, into) = (child.stdout.take().expect("it is piped"), Arc::clone(&seen));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                into.lock().expect("nobody panics here").push((now(), line));
            }
        });
        Self { child, seen }
    }

    fn all(&self) -> Vec<(u128, String)> {
        self.seen.lock().expect("nobody panics here").clone()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who asks for the names, by a C library's resolver.
const ASKER: &str = "\
---
apiVersion: reeve/v1
kind: Service
metadata: {name: asker}
spec:
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '80', -h, /www], stopGracePeriod: 1s}
  placement: {nodeNames: [n1]}
";

/// What a resolver on the web server's host is answered, all the time, and what nodes report meanwhile, as the store has it.
struct Watched {
    answers: Lines,
    store: Lines,
}

impl Cluster {
    fn watch(&self) -> Watched {
        let running = self.lab.hosts[0].running();
        let asker = running.iter().find(|name| name.starts_with("default.asker."));
        let script = "while :; do for n in cache database; do set -- $(getent ahostsv4 $n); echo $n ${1:-none}; done; sleep 0.1; done";
        let asker = asker.expect("it runs");
        let mut store = Command::new("etcdctl");
        store
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.etcd.endpoints, "watch", "--prefix", "/reeve/"]);
        Watched {
            answers: Lines::of(&mut self.lab.hosts[0].docker_command(&["exec", asker, "sh", "-c", script])),
            store: Lines::of(&mut store),
        }
    }
}

impl Watched {
    /// When a node first reported, or with `gone` first reported no more, that an instance of this service is ready, and where.
    fn reported(&self, after: u128, node: &str, service: &str, gone: bool) -> Option<(u128, String)> {
        let key = format!("/reeve/reports/{node}");
        let all = self.store.all();
        let reports = all.windows(2).filter(|two| two[0].1 == key && two[1].0 > after);
        let mut reports = reports.filter_map(|two| Some((two[1].0, serde_json::from_str::<Value>(&two[1].1).ok()?)));
        reports.find_map(|(time, report)| {
            let mut ready = report["instances"].as_array()?.iter().filter(|one| {
                one["workload"] == service
                    && one["ready"] == true
                    && one["addresses"].as_array().is_some_and(|all| !all.is_empty())
            });
            match (ready.next(), gone) {
                (Some(one), false) => Some((time, one["addresses"][0].as_str()?.to_owned())),
                (None, true) => Some((time, String::new())),
                (Some(_), true) | (None, false) => None,
            }
        })
    }

    fn session_over(&self, after: u128, node: &str) -> Option<u128> {
        let key = format!("/reeve/sessions/{node}");
        let all = self.store.all();
        let mut over = all
            .windows(2)
            .filter(|two| two[0].1 == "DELETE" && two[1].1 == key && two[0].0 > after);
        over.next().map(|two| two[0].0)
    }

    /// When each was asked for, which is when the one before had come, and what it was.
    fn answers(&self, service: &str) -> Vec<(u128, String)> {
        let all = self.answers.all();
        let of = |two: &[(u128, String)]| Some((two[0].0, two[1].1.strip_prefix(service)?.trim().to_owned()));
        all.windows(2).filter_map(of).collect()
    }

    /// After something was done: the name leads to where the instance is ready now, on this node. How long that took since it was
    /// reported, in milliseconds, and how many answers were stale: other ones later than is borne, or the former address after its end.
    fn follows(&self, what: &str, since: u128, service: &str, to: &str, ended: Option<(u128, &str)>) -> String {
        // Two seconds are promised; a busy machine is given more.
        let allowed = 5_000_000_000;
        let (ready, address) = eventually(&format!("{what}: {service} is ready on {to}"), 90, || {
            self.reported(since, to, service, false)
                .ok_or_else(|| "it is not reported".to_owned())
        });
        let named = eventually(&format!("{what}: {service} is named {address}"), 30, || {
            let answers = self.answers(service);
            let named = answers.iter().find(|(time, found)| *time > since && *found == address);
            let last = answers.last().map(|(_, found)| found.clone()).unwrap_or_default();
            // And goes on to be.
            let settled = answers
                .last()
                .is_some_and(|(time, found)| *time > ready + allowed + 1_000_000_000 && *found == address);
            named.map(|(time, _)| *time).filter(|_| settled).ok_or(last)
        });
        let asked: Vec<(u128, String)> = self
            .answers(service)
            .into_iter()
            .filter(|(time, _)| *time > since)
            .collect();
        let other = |(time, found): &&(u128, String)| *time > ready + allowed && *found != address;
        let former = |(time, found): &&(u128, String)| {
            ended.is_some_and(|(end, old)| *time > end + allowed && found == old && old != address)
        };
        let stale = asked.iter().filter(other).count() + asked.iter().filter(former).count();
        assert_eq!(
            stale, 0,
            "{what}: stale answers: {asked:?}; ready at {ready}, ended {ended:?}"
        );
        let after = named.saturating_sub(ready) / 1_000_000;
        format!(
            "{what}: {service} at {address}, named {after} ms after it was reported ready; {} answers, 0 stale 5 s after",
            asked.len()
        )
    }
}

#[test]
fn an_application_of_three_hosts_is_found_by_name_when_it_moves_is_replaced_and_loses_a_host() {
    let mut cluster = cluster_of(3, "wireguard-user");
    let endpoints = cluster.etcd.endpoints.clone();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples/application");
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/packages");
    let (first, others) = cluster.lab.hosts.split_first().expect("three hosts");
    e2e::succeed(
        Command::new(examples.join("images.sh"))
            .env("DOCKER_HOST", &first.docker_host)
            .env("REEVE_PACKAGE_CACHE", &packages),
    );
    for host in others {
        let carry = "docker save reeve/cache:1 reeve/database:1 | docker --host $0 load";
        e2e::succeed(
            Command::new("sh")
                .args(["-c", carry, &host.docker_host])
                .env("DOCKER_HOST", &first.docker_host),
        );
    }
    let text = std::fs::read_to_string(examples.join("application.yaml")).expect("the example is there");
    // Each on a host of its own; the images are the hosts' own.
    let placed = |cache: &str, database: &str| {
        let documents = text.split("---\n").zip(["n1", cache, database]);
        let documents: Vec<String> = documents
            .map(|(one, node)| {
                let one = one.replace("    image:", "    pullPolicy: Never\n    image:");
                format!("{one}  placement: {{nodeNames: [{node}]}}\n")
            })
            .collect();
        documents.join("---\n") + ASKER
    };
    let apply = |cluster: &Cluster, cache: &str, database: &str| {
        let file = cluster.lab.file("application.yaml", &placed(cache, database));
        cluster
            .lab
            .reeve_exits(&endpoints, 0, &["apply", "-f", &file, "--timeout", "2m"]);
    };
    let visit = |cluster: &Cluster, when: &str| {
        eventually(&format!("a request passes through all three, {when}"), 60, || {
            let said = cluster.lab.hosts[0].http("http://127.0.0.1:8088/")?;
            let numbers = said.split([' ', ',', '\n']).filter(|word| word.parse::<u64>().is_ok());
            if numbers.count() == 2 { Ok(()) } else { Err(said) }
        });
    };
    apply(&cluster, "n2", "n3");
    visit(&cluster, "at first");
    let watched = cluster.watch();
    eventually("the names are asked", 20, || {
        let last = watched.answers("database").pop();
        last.filter(|(_, found)| found.starts_with("10.188."))
            .ok_or_else(|| "not yet".to_owned())
    });
    let address = |service: &str| {
        watched
            .answers(service)
            .pop()
            .map(|(_, found)| found)
            .unwrap_or_default()
    };
    let mut told = Vec::new();

    // It moves.
    let (since, old) = (now(), address("cache"));
    apply(&cluster, "n3", "n3");
    let ended = watched.reported(since, "n2", "cache", true).map(|(time, _)| time);
    told.push(watched.follows("moved", since, "cache", "n3", ended.map(|end| (end, old.as_str()))));
    visit(&cluster, "after the cache moved");

    // Its container is taken away.
    let since = now();
    cluster.lab.hosts[2].docker(&["rm", "-f", "default.database.1.1"]);
    // Until it is noticed, reports say what was.
    let (since, _) = eventually("that it is gone is noticed", 30, || {
        watched
            .reported(since, "n3", "database", true)
            .ok_or_else(|| "it is reported ready".to_owned())
    });
    told.push(watched.follows("taken away", since, "database", "n3", None));
    visit(&cluster, "after the database's container was taken away");

    // The host of both is lost for good.
    let since = now();
    let old = [address("cache"), address("database")];
    cluster.lab.hosts[2].cut(true);
    cluster.lab.hosts[2].agent().kill();
    let over = eventually("the loss is noticed", 60, || {
        watched
            .session_over(since, "n3")
            .ok_or_else(|| "its session lasts".to_owned())
    });
    cluster.lab.reeve_exits(&endpoints, 0, &["node", "rm", "n3", "--yes"]);
    apply(&cluster, "n2", "n2");
    for (service, old) in ["cache", "database"].into_iter().zip(&old) {
        told.push(watched.follows("lost", since, service, "n2", Some((over, old))));
    }
    visit(&cluster, "after a host was lost");
    println!("{}", told.join("\n"));
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
        let mut command = Command::new(script);
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
