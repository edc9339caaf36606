//! Forty containers on one node, from the command to all running: `reeve apply`, the same create and start calls made
//! straight to the Docker API at its best concurrency, and a service of the same engine in swarm mode; interleaved on one
//! engine, medians of `ROUNDS` (7). Run by `make bench`; prints a table and judges nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use e2e::{Host, Lab, eventually};
use serde_json::{Value, json};

const COUNT: usize = 40;

/// Swarm asks the registry before it takes the image that is there: of a port that nobody serves it is refused at once.
const SWARM_IMAGE: &str = "127.0.0.1:1/hello:1";

/// One request to the engine's socket; the status and the body.
fn call(host: &Host, method: &str, path: &str, body: &str) -> (u16, String) {
    let socket = host.docker_host.trim_start_matches("unix://");
    let mut stream = UnixStream::connect(socket).expect("the engine's socket");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("the engine reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the engine answers");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    // Small answers may come in chunks; the JSON is between the first brace or bracket and the last.
    let start = body.find(['{', '[']).unwrap_or(0);
    let end = body.rfind(['}', ']']).map_or(body.len(), |end| end + 1);
    (status, body.get(start..end).unwrap_or("").to_owned())
}

fn running(host: &Host) -> usize {
    let filters = "%7B%22status%22%3A%5B%22running%22%5D%7D";
    let (_, body) = call(host, "GET", &format!("/containers/json?filters={filters}"), "");
    body.matches("\"Id\":").count()
}

fn wait_running(host: &Host, count: usize) {
    let end = Instant::now() + Duration::from_secs(180);
    while running(host) != count {
        assert!(Instant::now() < end, "{} of {count} run after 180 s", running(host));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn direct(host: &Host, workers: usize) -> Duration {
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= COUNT {
                        return;
                    }
                    let body = json!({
                        "Image": "reeve/hello:1", "Cmd": ["sleep", "3600"], "Hostname": format!("many-{index}"),
                        "HostConfig": {"NetworkMode": "bench", "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}}
                    });
                    let (status, text) = call(host, "POST", &format!("/containers/create?name=direct{index}"), &body.to_string());
                    assert_eq!(status, 201, "{text}");
                    let id: Value = serde_json::from_str(&text).expect("the engine answers JSON");
                    let id = id["Id"].as_str().expect("an id").to_owned();
                    let (status, text) = call(host, "POST", &format!("/containers/{id}/start"), "");
                    assert_eq!(status, 204, "{text}");
                }
            });
        }
    });
    wait_running(host, COUNT);
    let time = begin.elapsed();
    clear(host);
    time
}

fn clear(host: &Host) {
    let ids = host.docker(&["ps", "-aq"]);
    let ids: Vec<&str> = ids.lines().collect();
    if !ids.is_empty() {
        let mut args = vec!["rm", "-f"];
        args.extend(ids);
        host.docker(&args);
    }
    wait_running(host, 0);
}

fn through_reeve(host: &Host, file: &str) -> Duration {
    let begin = Instant::now();
    let output = host.reeve(&["apply", "-f", file, "--yes", "--no-wait"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_running(host, COUNT);
    let time = begin.elapsed();
    host.reeve_exits(0, &["delete", "-f", file, "--yes"]);
    wait_running(host, 0);
    time
}

fn through_swarm(host: &Host) -> Duration {
    let begin = Instant::now();
    host.docker(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "many",
        "--replicas",
        "40",
        SWARM_IMAGE,
        "sleep",
        "3600",
    ]);
    wait_running(host, COUNT);
    let time = begin.elapsed();
    host.docker(&["service", "rm", "many"]);
    clear(host);
    time
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    let rounds: usize = std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(7);
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    host.docker(&["network", "create", "bench"]);
    host.docker(&["tag", "reeve/hello:1", SWARM_IMAGE]);
    host.docker(&["swarm", "init", "--advertise-addr", &host.address]);
    let _up = host.up(&[]);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&host.reeve(&["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    let manifest = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: many}\nspec:\n  replicas: 40\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
    let file = lab.file("many.yaml", manifest);
    let best = [2, 4, 8, 16]
        .into_iter()
        .min_by_key(|workers| direct(host, *workers))
        .expect("four to choose from");
    let (mut straight, mut reeve, mut swarm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        straight.push(direct(host, best));
        reeve.push(through_reeve(host, &file));
        swarm.push(through_swarm(host));
    }
    let mut ratios: Vec<f64> = reeve
        .iter()
        .zip(&straight)
        .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("{COUNT} containers on one node, from the command to all running, medians of {rounds} interleaved rounds");
    println!(
        "  Docker API, {best} at once     {:6.2} s",
        median(&mut straight).as_secs_f64()
    );
    println!(
        "  reeve apply               {:6.2} s   {ratio:.2} x the API, pair by pair (goal 1.05 x)",
        median(&mut reeve).as_secs_f64()
    );
    println!("  the engine in swarm mode  {:6.2} s", median(&mut swarm).as_secs_f64());
}
