//! What is to be seen of the network from outside, on two hosts: names as each node answers them, all pairs measured, what stops a
//! connection, and a host that takes part or does not. And keys of links that are replaced while packets go over them.

use std::process::Command;

use e2e::{Etcd, Lab, eventually, succeed};
use serde_json::Value;

const APP: &str = "\
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '80', -h, /www], stopGracePeriod: 1s, ports: [{containerPort: 80}]}
  placement: {nodeNames: [n1]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: db}
spec:
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '5432', -h, /www], stopGracePeriod: 1s}
  placement: {nodeNames: [n2]}
";

const POLICY: &str = "\
apiVersion: reeve/v1
kind: NetworkPolicy
metadata: {name: db-in}
spec: {services: [db], ingress: [{from: [{service: cache}]}]}
";

const SHOP: &str = "\
apiVersion: reeve/v1
kind: Service
metadata: {name: till, namespace: shop}
spec:
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '80', -h, /www], stopGracePeriod: 1s}
  placement: {nodeNames: [n1]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: safe, namespace: shop}
spec:
  container: {image: 'reeve/hello:1', command: [httpd, -f, -p, '80', -h, /www], stopGracePeriod: 1s}
  placement: {nodeNames: [n2]}
";

const RULES: &str = "\
apiVersion: reeve/v1
kind: NetworkPolicy
metadata: {name: db-in}
spec: {services: [db], ingress: [{from: [{service: web}, {namespace: shop, service: till}]}]}
---
apiVersion: reeve/v1
kind: NetworkPolicy
metadata: {name: safe-in, namespace: shop}
spec: {services: [safe], ingress: [{from: [{service: till}]}]}
";

/// Each service with its namespace, the host it runs on, and its port.
const SERVICES: [(&str, &str, usize, u16); 4] = [
    ("web", "default", 0, 80),
    ("db", "default", 1, 5432),
    ("till", "shop", 0, 80),
    ("safe", "shop", 1, 80),
];

/// Listens at what a cloud tells its machines their secrets at, and at a port of the host that is nobody's business.
const LISTENER: &str = "
import socket, threading
def serve(address, port):
    listener = socket.create_server((address, port))
    print('ready', flush=True)
    while True:
        listener.accept()[0].close()
threading.Thread(target=serve, args=('169.254.169.254', 80)).start()
serve('0.0.0.0', 8123)
";

struct Cluster {
    lab: Lab,
    etcd: Etcd,
    tls: Vec<String>,
}

/// A certificate of one CA for each of these addresses.
fn certificates(lab: &Lab, addresses: &[String]) {
    let dir = lab.dir();
    let openssl = |words: &str| succeed(Command::new("openssl").args(words.split_whitespace()).current_dir(dir));
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {curve} -days 2 -subj /CN=lab -keyout ca.key -out ca.pem"
    ));
    for address in addresses {
        openssl(&format!(
            "req {curve} -subj /CN={address} -keyout {address}.key -out {address}.csr"
        ));
        std::fs::write(
            dir.join(format!("{address}.ext")),
            format!("subjectAltName=IP:{address}\n"),
        )
        .expect("a file");
        openssl(&format!(
            "x509 -req -in {address}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {address}.ext -out {address}.pem"
        ));
    }
}

fn tls(lab: &Lab, address: &str) -> Vec<String> {
    let dir = lab.dir().display();
    let words = ["--ca", "ca.pem", "--cert", "pem", "--key", "key"];
    words
        .chunks(2)
        .flat_map(|pair| {
            let file = if pair[1] == "ca.pem" {
                format!("{dir}/ca.pem")
            } else {
                format!("{dir}/{address}.{}", pair[1])
            };
            [pair[0].to_owned(), file]
        })
        .collect()
}

impl Cluster {
    fn new() -> Self {
        let mut lab = Lab::new(2);
        let etcd = lab.etcd(1);
        let endpoints = etcd.endpoints.clone();
        lab.control(&etcd);
        lab.reeve_exits(&endpoints, 0, &["network", "create", "--cidr", "10.189.0.0/16"]);
        let mut addresses: Vec<String> = lab.hosts.iter().map(|host| host.address.clone()).collect();
        addresses.push(lab.address(254));
        certificates(&lab, &addresses);
        let own: Vec<Vec<String>> = addresses.iter().map(|address| tls(&lab, address)).collect();
        for (host, tls) in lab.hosts.iter_mut().zip(&own) {
            let api = format!("{}:9466", host.address);
            let mut args: Vec<&str> = tls.iter().map(String::as_str).collect();
            args.extend(["--api-addr", &api]);
            host.start_agent(&endpoints, &args);
        }
        let tls = own.last().expect("the lab's own").clone();
        Self { lab, etcd, tls }
    }

    fn words<'a>(&'a self, words: &'a [&'a str]) -> Vec<&'a str> {
        words
            .iter()
            .copied()
            .chain(self.tls.iter().map(String::as_str))
            .collect()
    }

    fn exits(&self, code: i32, words: &[&str]) -> String {
        self.lab.reeve_exits(&self.etcd.endpoints, code, &self.words(words))
    }

    /// Its exit code, and what it said.
    fn says(&self, words: &[&str]) -> (i32, String) {
        let output = self.lab.reeve(&self.etcd.endpoints, &self.words(words));
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), said)
    }

    fn eventually_says(&self, words: &[&str], code: i32, part: &str) -> String {
        eventually(&format!("reeve {words:?} says {part:?}"), 30, || {
            let (exit, said) = self.says(words);
            if exit == code && said.contains(part) {
                Ok(said)
            } else {
                Err(format!("{exit}: {said}"))
            }
        })
    }

    /// All ways between nodes that agents tell of.
    fn pairs(&self) -> Result<Vec<Value>, String> {
        let (_, said) = self.says(&["network", "status", "-o", "json"]);
        let value: Value = serde_json::from_str(&said).map_err(|_| said.clone())?;
        value["links"]["pairs"].as_array().cloned().ok_or(said)
    }

    fn address(&self, service: &str) -> String {
        let said = self.exits(0, &["lookup", service, "-o", "name"]);
        said.trim().to_owned()
    }

    /// What a process on n1 gets that is not root's.
    fn curl(&self, url: &str) -> Result<String, String> {
        let nobody = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "curl",
            "-fsS",
            "--max-time",
            "3",
            url,
        ];
        self.lab.hosts[0].within("setpriv", &nobody)
    }

    /// Which of these addresses a service's container connects to.
    fn connects<'a>(&self, service: &str, to: &'a [String]) -> Result<Vec<&'a str>, String> {
        let (_, namespace, host, _) = SERVICES.iter().find(|one| one.0 == service).expect("it is one");
        let host = &self.lab.hosts[*host];
        let start = format!("{namespace}.{service}.");
        let found = host.running().into_iter().find(|name| name.starts_with(&start));
        let container = found.ok_or_else(|| format!("{service} does not run"))?;
        let script = "for at; do (nc -w 2 ${at%:*} ${at##*:} -e true 2>/dev/null && echo $at) & done; wait";
        let mut words = vec!["exec", &container, "sh", "-c", script, "sh"];
        words.extend(to.iter().map(String::as_str));
        let said = succeed(&mut host.docker_command(&words));
        Ok(to
            .iter()
            .map(String::as_str)
            .filter(|at| said.lines().any(|line| line == *at))
            .collect())
    }

    /// Waits until, of all pairs of services, these and no others connect; `trace` says the same of each.
    fn only(&self, what: &str, allowed: &[(&str, &str)]) {
        let at = |(service, namespace, _, port): &(&str, &str, usize, u16)| {
            let said = self.exits(0, &["lookup", service, "-n", namespace, "-o", "name"]);
            format!("{}:{port}", said.trim())
        };
        let addresses: Vec<String> = SERVICES.iter().map(at).collect();
        for (from, ..) in SERVICES {
            let pairs = SERVICES.iter().zip(&addresses);
            let wanted: Vec<&str> = pairs
                .filter(|((to, ..), _)| *to == from || allowed.contains(&(from, to)))
                .map(|(_, address)| address.as_str())
                .collect();
            eventually(&format!("{what}: {from} connects to {wanted:?}"), 20, || {
                let found = self.connects(from, &addresses)?;
                if found == wanted {
                    Ok(())
                } else {
                    Err(format!("{found:?}"))
                }
            });
        }
        for (from, namespace, ..) in SERVICES {
            for (to, other, _, port) in SERVICES.iter().filter(|to| to.0 != from) {
                let (source, target) = (format!("{namespace}/{from}.1"), format!("{other}/{to}.1:{port}"));
                let (code, said) = self.says(&["trace", &source, &target]);
                let passes = allowed.contains(&(from, to));
                assert_eq!(code, if passes { 0 } else { 4 }, "{what}: {source} to {target}: {said}");
            }
        }
    }

    /// What n1's server answers to n1 itself.
    fn dig(&self, server: &str, name: &str) -> String {
        let at = format!("@{server}");
        let found = self.lab.hosts[0].within("dig", &["+short", "+time=2", "+tries=1", &at, name]);
        let said = found.unwrap_or_default();
        let addresses: Vec<&str> = said.lines().filter(|line| !line.starts_with(';')).collect();
        addresses.join(" ")
    }
}

#[test]
fn names_pairs_ways_and_hosts_are_seen_as_they_are() {
    let cluster = Cluster::new();
    let app = cluster.lab.file("app.yaml", APP);
    eventually("two nodes are there", 30, || {
        let (_, said) = cluster.says(&["get", "nodes", "-o", "name"]);
        if said.lines().count() == 2 { Ok(()) } else { Err(said) }
    });
    cluster.exits(0, &["apply", "-f", &app, "--timeout", "60s"]);

    // All pairs are measured, both ways.
    let pairs = eventually("both ways are measured", 40, || {
        let pairs = cluster.pairs()?;
        let good = |pair: &&Value| {
            let link = &pair["link"];
            pair["wrong"].is_null()
                && link["latencyMicros"].as_u64().is_some_and(|took| took > 0)
                && link["handshakeSeconds"].is_u64()
        };
        if pairs.iter().filter(good).count() == 2 {
            Ok(pairs)
        } else {
            Err(format!("{pairs:?}"))
        }
    });
    assert_eq!(
        (&pairs[0]["from"], &pairs[0]["to"]),
        (&"n1".into(), &"n2".into()),
        "{pairs:?}"
    );
    let said = cluster.exits(0, &["network", "status"]);
    assert!(said.contains("FROM (MS)") && !said.contains("without"), "{said}");
    assert!(said.lines().skip(1).all(|line| line.chars().count() <= 80), "{said}");

    // Names, from all nodes.
    let said = cluster.eventually_says(&["lookup", "db", "--all-nodes"], 0, "the same");
    assert_eq!(said.matches("the same").count(), 2, "{said}");
    let (web, db) = (cluster.address("web"), cluster.address("db"));
    assert!(said.contains(&db) && web.starts_with("10.189."), "{said}");
    let said = cluster.exits(4, &["lookup", "cache"]);
    assert!(
        said.contains("there is no service cache with an address in namespace default"),
        "{said}"
    );

    // What passes, and what stops it.
    let said = cluster.exits(0, &["trace", "web.1", "db.1:5432"]);
    assert!(said.contains("web.1 to db.1, port 5432/tcp: passes\n"), "{said}");
    assert!(said.contains("wireguard") && said.contains("handshake"), "{said}");
    let said = cluster.exits(4, &["trace", "web.1", "db.1:81"]);
    assert!(said.contains("nobody listens at"), "{said}");
    let policy = cluster.lab.file("policy.yaml", POLICY);
    cluster.exits(0, &["apply", "-f", &policy, "--no-wait"]);
    let stops = "NetworkPolicy db-in restricts what enters db";
    cluster.eventually_says(&["trace", "web.1", "db.1:5432"], 4, stops);
    cluster.exits(0, &["delete", "networkpolicy", "db-in", "--yes"]);
    cluster.eventually_says(&["trace", "web.1", "db.1:5432"], 0, "passes");

    // Between namespaces nothing passes but what a rule allows, and nothing to what keeps the cluster.
    let shop = cluster.lab.file("shop.yaml", SHOP);
    cluster.exits(0, &["apply", "-f", &shop, "--timeout", "60s"]);
    let within = [("web", "db"), ("db", "web"), ("till", "safe"), ("safe", "till")];
    cluster.only("without policies", &within);
    let rules = cluster.lab.file("rules.yaml", RULES);
    cluster.exits(0, &["apply", "-f", &rules, "--no-wait"]);
    let ruled = [
        ("web", "db"),
        ("till", "db"),
        ("db", "web"),
        ("till", "safe"),
        ("safe", "till"),
    ];
    cluster.only("with policies", &ruled);
    cluster.exits(0, &["delete", "networkpolicy", "db-in", "--yes"]);
    cluster.exits(0, &["delete", "networkpolicy", "safe-in", "-n", "shop", "--yes"]);
    cluster.only("without policies again", &within);
    let host = &cluster.lab.hosts[0];
    host.within("ip", &["addr", "add", "169.254.169.254/32", "dev", "lo"])
        .expect("an address");
    let python = std::path::Path::new("/usr/bin/env");
    let log = cluster.lab.dir().join("listener.log");
    let listener = e2e::Process::start(
        "listener",
        Some(&host.place),
        python,
        &["python3", "-c", LISTENER],
        &[],
        log,
    );
    eventually("two ports are open", 20, || {
        match listener.output().matches("ready").count() {
            2 => Ok(()),
            _ => Err(listener.output()),
        }
    });
    let (store, open) = (
        cluster.etcd.endpoints.replace("http://", ""),
        format!("{}:8123", host.address),
    );
    let mut doors = vec![store, "169.254.169.254:80".to_owned(), open.clone()];
    doors.extend(cluster.lab.hosts.iter().map(|host| format!("{}:9466", host.address)));
    for door in &doors {
        let (address, port) = door.rsplit_once(':').expect("a port");
        host.within("busybox", &["nc", "-w", "2", address, port, "-e", "true"])
            .unwrap_or_else(|error| panic!("the host reaches {door}: {error}"));
    }
    for (service, ..) in SERVICES {
        assert_eq!(cluster.connects(service, &doors), Ok(vec![open.as_str()]), "{service}");
    }
    drop(listener);

    // A host that is hidden, exposed, and hidden again.
    let (near, far) = (format!("http://{web}/"), format!("http://{db}:5432/"));
    assert!(
        cluster.curl(&near).is_err() && cluster.curl(&far).is_err(),
        "it is hidden"
    );
    let (part, _) = web.rsplit_once('.').expect("an address");
    let server = format!("{part}.1");
    assert_eq!(cluster.dig(&server, "web.default.reeve.internal"), "");
    cluster.lab.hosts[0]
        .http(&near)
        .expect("root's processes go on, as the agent's do");
    let (_, said) = cluster.says(&["trace", "node:n1", "web.1"]);
    assert!(said.contains("reeve expose --node n1"), "{said}");
    let said = cluster.exits(0, &["expose", "--node", "n1"]);
    assert!(said.contains(&format!("nameserver {server}\n")), "{said}");
    for url in [&near, &far] {
        eventually("an exposed host reaches it", 20, || cluster.curl(url).map(drop));
    }
    eventually("an exposed host resolves", 20, || {
        match cluster.dig(&server, "db.default.reeve.internal") {
            found if found == db => Ok(()),
            other => Err(other),
        }
    });
    cluster.exits(0, &["hide", "--node", "n1"]);
    eventually("a hidden host reaches nothing", 20, || match cluster.curl(&far) {
        Ok(_) => Err("it does".to_owned()),
        Err(_) => Ok(()),
    });
    eventually("a hidden host resolves nothing", 20, || {
        match cluster.dig(&server, "db.default.reeve.internal") {
            found if found.is_empty() => Ok(()),
            other => Err(other),
        }
    });

    // A host that is cut off is seen by its loss, and by its silence.
    cluster.lab.hosts[1].cut(true);
    eventually("loss is seen", 40, || {
        let pairs = cluster.pairs()?;
        let lost = pairs
            .iter()
            .any(|pair| pair["from"] == "n1" && pair["link"]["lost"].as_u64() > Some(0));
        if lost { Ok(()) } else { Err(format!("{pairs:?}")) }
    });
    let said = cluster.exits(0, &["network", "status"]);
    assert!(said.contains("n1 to n2: ") && said.contains("pings lost"), "{said}");
    let (code, said) = cluster.says(&["trace", "web.1", "db.1:5432"]);
    assert!(said.contains("link") && (code == 0 || code == 4), "{said}");
}

impl Cluster {
    /// The keys of links as each agent says them, in order of nodes.
    fn keys(&self) -> Result<Vec<Value>, String> {
        let (_, said) = self.says(&["network", "status", "-o", "json"]);
        let value: Value = serde_json::from_str(&said).map_err(|_| said.clone())?;
        let nodes = value["links"]["nodes"].as_object().ok_or_else(|| said.clone())?;
        let keys: Vec<Value> = nodes.values().map(|node| node["linkKey"].clone()).collect();
        if keys.len() == 2 && keys.iter().all(Value::is_object) {
            Ok(keys)
        } else {
            Err(said)
        }
    }

    /// How many pings, one each 20 ms, were answered, and the longest time without an answer in milliseconds.
    fn pings(&self, to: &str, count: u32) -> (usize, u64) {
        let count = count.to_string();
        let said = self.lab.hosts[0].within("ping", &["-i", "0.02", "-c", &count, "-W", "1", to]);
        let said = said.unwrap_or_else(|said| said);
        let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
        let numbers: Vec<u64> = said.lines().filter_map(number).collect();
        let longest = numbers.windows(2).map(|pair| (pair[1] - pair[0]) * 20).max();
        (numbers.len(), longest.unwrap_or(0))
    }
}

#[test]
fn keys_of_links_are_replaced_and_what_goes_over_them_goes_on() {
    let cluster = Cluster::new();
    let before = eventually("both agents tell of their keys", 40, || {
        let keys = cluster.keys()?;
        let (_, said) = cluster.says(&["network", "status"]);
        if said.contains("FROM (MS)") {
            Ok(keys)
        } else {
            Err(said)
        }
    });
    assert!(
        before
            .iter()
            .all(|key| key["next"].is_null() && key["replacedInSeconds"].is_u64()),
        "{before:?}"
    );
    let other = "10.189.1.0";
    eventually("the link carries", 40, || match cluster.pings(other, 20) {
        (20, _) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    let (said, (answered, longest)) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| cluster.pings(other, 500));
        let said = cluster.exits(0, &["network", "rotate-keys", "--all-nodes"]);
        (said, pings.join().expect("pings"))
    });
    assert_eq!(
        said,
        "node/n1: the key of its links is replaced\nnode/n2: the key of its links is replaced\n"
    );
    eprintln!("{answered} of 500 pings answered, {longest} ms without an answer at most");
    let after = eventually("both have another key that counts", 40, || {
        let keys = cluster.keys()?;
        let new = keys
            .iter()
            .zip(&before)
            .all(|(now, old)| now["key"] != old["key"] && now["next"].is_null());
        if new { Ok(keys) } else { Err(format!("{keys:?}")) }
    });
    eventually("the link carries by them", 40, || match cluster.pings(other, 20) {
        (20, _) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    assert!(
        after.iter().all(|key| key["ageSeconds"].as_u64() < Some(3_600)),
        "{after:?}"
    );
    cluster.exits(0, &["network", "create", "--cidr", "10.189.0.0/16", "--key-days", "0"]);
    eventually("no key becomes too old", 40, || {
        let keys = cluster.keys()?;
        let never = keys.iter().all(|key| key["replacedInSeconds"].is_null());
        if never { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    let (code, said) = cluster.says(&["network", "rotate-keys", "--node", "n3"]);
    assert!(code != 0 && said.contains("there is no node n3"), "{said}");
}
