//! Hosts of one's own: seeds and the nodes that join them, each started as its operator would.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Host, Lab, Process, eventually, run};

pub fn server_dir(host: &Host) -> PathBuf {
    host.dir.join("server")
}

pub fn server_log(host: &Host) -> String {
    std::fs::read_to_string(host.dir.join("server.log")).unwrap_or_default()
}

pub fn server(host: &Host, seeds: &str, token: &str) -> Process {
    server_with(host, seeds, token, &[])
}

pub fn server_with(host: &Host, seeds: &str, token: &str, more: &[&str]) -> Process {
    let dir = server_dir(host).display().to_string();
    Process::start(
        &format!("server of {}", host.name),
        Some(&host.place),
        &host.binary,
        &[
            ["server", "--data-dir", &dir, "--seeds", seeds, "--token-file", token].as_slice(),
            more,
        ]
        .concat(),
        &[],
        host.dir.join("server.log"),
    )
}

pub fn agent_dir(host: &Host) -> PathBuf {
    host.dir.parent().expect("the lab's").join(format!("of-{}", host.name))
}

pub fn agent(host: &Host, seeds: &str, token: &str) -> Process {
    let dir = agent_dir(host).display().to_string();
    let args = [
        "agent",
        "--data-dir",
        &dir,
        "--seeds",
        seeds,
        "--token-file",
        token,
        "--node",
        &host.name,
    ];
    Process::start(
        &format!("agent of {}", host.name),
        Some(&host.place),
        &host.binary,
        &[args.as_slice(), &["--docker", &host.docker_host]].concat(),
        &[],
        host.dir.join("agent.log"),
    )
}

/// Ends a host's server and its store's member as a loss of power does.
pub fn cut_power(host: &Host, server: &mut Process) {
    server.kill();
    let pid = std::fs::read_to_string(server_dir(host).join("etcd.pid")).expect("a member ran");
    run(Command::new("kill").args(["-9", pid.trim()]));
    let gone = Path::new("/proc").join(pid.trim()).join("cmdline");
    eventually("the member is gone", 10, || {
        let dead = std::fs::read(&gone).unwrap_or_default().is_empty();
        if dead { Ok(()) } else { Err(pid.clone()) }
    });
}

/// Runs `reeve` on a seed, as its operator would.
pub fn on(host: &Host, args: &[&str]) -> (Option<i32>, String) {
    let dir = server_dir(host).display().to_string();
    let output = run(host
        .place
        .command(&host.binary)
        .args(args)
        .args(["--data-dir", &dir])
        .env_remove("REEVE_ETCD")
        .env("NO_COLOR", "1")
        .env("COLUMNS", "80"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code(), text.concat())
}

pub fn succeeds(host: &Host, args: &[&str]) -> String {
    let (code, text) = on(host, args);
    assert_eq!(code, Some(0), "reeve {args:?} said:\n{text}");
    text
}

pub fn serves(host: &Host) -> Result<(), String> {
    let log = server_log(host);
    if log.contains(" serves: ") { Ok(()) } else { Err(log) }
}

pub fn cluster_of(host: &Host) -> String {
    let log = server_log(host);
    let line = log.lines().rev().find_map(|line| line.trim().strip_prefix("cluster "));
    line.unwrap_or_default().trim().to_owned()
}

/// The store's members with their states, as etcd's own tool lists them with the person's certificate of a seed.
pub fn members(host: &Host) -> Result<String, String> {
    etcdctl(host, &server_dir(host), "person", host, &["member", "list"])
}

/// What etcd's own tool says on `host`, with the certificate `<who>.crt` of this directory, of the member on `seed`.
pub fn etcdctl(host: &Host, dir: &Path, who: &str, seed: &Host, args: &[&str]) -> Result<String, String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let endpoint = format!("https://{}:2379", seed.address);
    let (ca, cert, key) = (file("ca.crt"), file(&format!("{who}.crt")), file(&format!("{who}.key")));
    let how = [
        "--endpoints",
        &endpoint,
        "--cacert",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
    ];
    host.within("etcdctl", &[how.as_slice(), args].concat())
}

pub fn install_token(lab: &Lab, name: &str) -> String {
    let (code, token) = on(&lab.hosts[0], &["token", "install"]);
    assert_eq!(code, Some(0), "{token}");
    lab.file(name, &token)
}

pub const GLOBAL: &str = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  mode: global\n  container:\n    image: reeve/hello:1\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n";
