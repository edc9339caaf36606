//! What cannot find others by name: a cache at `localhost` that moves and dies, and a port that is open on every host.

use std::process::Command;
use std::time::Duration;

use e2e::{Lab, eventually, holds_for};

const APP: &str = "\
apiVersion: reeve/v1
kind: Service
metadata: {name: cache}
spec:
  container:
    image: reeve/redis:1
    pullPolicy: Never
    command: [redis-server, --bind, 0.0.0.0, --protected-mode, 'no', --save, '']
    ports: [{name: redis, containerPort: 6379}]
    stopGracePeriod: 1s
    healthCheck: {tcp: {port: 6379}, interval: 500ms}
  placement: {nodeNames: [n2]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: client}
spec:
  container:
    image: reeve/redis:1
    pullPolicy: Never
    command: [sleep, infinity]
    stopGracePeriod: 1s
    connect: [{port: 6379, service: cache, servicePort: redis}]
  placement: {nodeNames: [n1]}
---
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  container:
    image: reeve/hello:1
    command: [httpd, -f, -v, -p, '80', -h, /www]
    ports: [{name: http, containerPort: 80, hostPort: 18080, publish: everywhere}]
    stopGracePeriod: 1s
  placement: {nodeNames: [n1]}
";

/// Whom the web server says it answered last.
fn served(lab: &Lab) -> Result<String, String> {
    let host = &lab.hosts[0];
    let running = host.running();
    let web = running.iter().find(|name| name.starts_with("default.web."));
    let output = e2e::run(&mut host.docker_command(&["logs", web.ok_or("no web server runs")?]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| line.contains("response:"));
    let who = last.and_then(|line| line.split_once(": response:")?.0.rsplit_once(':'));
    who.map(|(who, _)| who.trim_matches(['[', ']']).trim_start_matches("::ffff:").to_owned())
        .ok_or(said)
}

/// What a client says to its own host; whoever answers `PONG` is the cache.
fn ping(lab: &Lab) -> Result<(), String> {
    let host = &lab.hosts[0];
    let running = host.running();
    let client = running.iter().find(|name| name.starts_with("default.client."));
    let client = client.ok_or("no client runs")?;
    for address in ["127.0.0.1", "localhost"] {
        let output = e2e::run(&mut host.docker_command(&["exec", client, "redis-cli", "-h", address, "ping"]));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.trim() != "PONG" {
            return Err(format!("{address}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(())
}

#[test]
fn a_cache_at_localhost_is_followed_and_a_port_everywhere_is_answered_by_each_host() {
    let mut lab = Lab::new(2);
    let etcd = lab.etcd(1);
    let endpoints = etcd.endpoints.clone();
    lab.control(&etcd);
    let create = ["network", "create", "--cidr", "10.189.0.0/16", "--backend", "vxlan"];
    lab.reeve_exits(&endpoints, 0, &create);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/debian-image.sh");
    for host in &mut lab.hosts {
        let mut command = Command::new(script);
        e2e::succeed(
            command
                .args(["reeve/redis:1", "redis-server", "redis-tools"])
                .env("DOCKER_HOST", &host.docker_host),
        );
        host.start_agent(&endpoints, &[]);
    }
    let app = lab.file("app.yaml", APP);
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &app, "--timeout", "2m"]);
    eventually("the client finds the cache at localhost", 20, || ping(&lab));
    for host in &lab.hosts {
        eventually(&format!("{} answers on the port", host.name), 20, || {
            let said = host.within("curl", &["-sS", "-m", "3", "http://127.0.0.1:18080/"])?;
            if said.contains("Hello") { Ok(()) } else { Err(said) }
        });
    }
    // From outside: on its own node the server sees who asks, and from the other one that node.
    let own = lab.address(254);
    for (host, wanted) in lab.hosts.iter().zip([own.as_str(), "10.189."]) {
        eventually(&format!("{} is asked from outside", host.name), 20, || {
            let url = format!("http://{}:18080/", host.address);
            let output = e2e::run(Command::new("curl").args(["-sS", "-m", "3", &url]));
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let who = served(&lab)?;
            let seen = said.contains("Hello") && who.starts_with(wanted);
            seen.then_some(())
                .ok_or_else(|| format!("{said}{}: by {who}", String::from_utf8_lossy(&output.stderr)))
        });
    }

    // Killed, and moved to the client's own host: the client goes on, and is not restarted for it.
    let client = |lab: &Lab| lab.hosts[0].docker(&["ps", "-q", "--no-trunc", "--filter", "name=default.client."]);
    let before = client(&lab);
    let cache = lab.hosts[1].running();
    let cache = cache.iter().find(|name| name.starts_with("default.cache."));
    lab.hosts[1].docker(&["kill", cache.expect("the cache runs")]);
    eventually("the client goes on after a kill", 20, || ping(&lab));
    let moved = lab.file("moved.yaml", &APP.replace("nodeNames: [n2]", "nodeNames: [n1]"));
    lab.reeve_exits(&endpoints, 0, &["apply", "-f", &moved, "--timeout", "2m"]);
    eventually("the client goes on after a move", 20, || ping(&lab));
    assert_eq!(client(&lab), before);

    // The client itself begins again, in a new network, and the agent is killed: ports are there as before.
    let name = lab.hosts[0].running();
    let name = name.iter().find(|name| name.starts_with("default.client."));
    lab.hosts[0].docker(&["kill", name.expect("the client runs")]);
    eventually("a restarted client finds it again", 20, || ping(&lab));
    let pid = lab.hosts[0].agent().pid();
    e2e::run(Command::new("kill").args(["-9", &pid.to_string()]));
    holds_for("the relay goes on without its agent", Duration::from_secs(2), || {
        ping(&lab)
    });
}
