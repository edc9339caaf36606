//! Every example of `manifests/examples/` is applied to a real engine and comes to be what it says.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Host, Lab, Process, eventually, succeed};
use serde_json::{Value, json};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples")
}

/// What the example with every option asks beyond the built-in policy.
fn policy() -> String {
    std::fs::read_to_string(examples().join("../policy/every-option.yaml")).expect("the example's policy")
}

fn up(lab: &Lab, more: &[&str]) -> Process {
    let host = &lab.hosts[0];
    let up = host.up(more);
    eventually("the node is there", 30, || {
        let text = String::from_utf8_lossy(&host.reeve(&["get", "nodes", "-o", "name"]).stdout).into_owned();
        if text.contains("n1") { Ok(()) } else { Err(text) }
    });
    up
}

fn apply(host: &Host, name: &str, timeout: &str) -> String {
    let file = examples().join(name).display().to_string();
    host.reeve_exits(0, &["apply", "-f", &file, "--yes", "--timeout", timeout])
}

#[test]
fn every_option_is_what_the_engine_says_it_is() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let policy = lab.file("policy.yaml", &policy());
    let _up = up(&lab, &["--policy", &policy]);
    let value = lab.file("value", "every secret");
    host.reeve_exits(0, &["secret", "set", "every-secret", "--file", &value]);
    apply(host, "every-option.yaml", "90s");

    let c = host
        .inspect("default.every-option.1.1")
        .expect("the container is there");
    let expected: Vec<(&str, Value)> = vec![
        ("/Config/Image", json!("reeve/hello:1")),
        ("/Config/Entrypoint", json!(["sh", "-c"])),
        (
            "/Config/Cmd",
            json!(["trap 'exit 0' TERM; while :; do sleep 1 & wait; done"]),
        ),
        ("/Config/WorkingDir", json!("/tmp")),
        ("/Config/User", json!("0:0")),
        ("/HostConfig/GroupAdd", json!(["4", "27"])),
        ("/Config/Hostname", json!("every")),
        (
            "/HostConfig/PortBindings/80~1tcp",
            json!([{"HostIp": "127.0.0.1", "HostPort": "18080"}]),
        ),
        ("/HostConfig/NanoCpus", json!(500_000_000)),
        ("/HostConfig/Memory", json!(64 << 20)),
        ("/HostConfig/CpuShares", json!(512)),
        ("/HostConfig/CpusetCpus", json!("0")),
        ("/HostConfig/CpusetMems", json!("0")),
        ("/HostConfig/PidsLimit", json!(64)),
        ("/HostConfig/ShmSize", json!(8 << 20)),
        ("/HostConfig/Sysctls/net.core.somaxconn", json!("512")),
        (
            "/HostConfig/Devices",
            json!([{"PathOnHost": "/dev/null", "PathInContainer": "/dev/mynull", "CgroupPermissions": "rw"}]),
        ),
        ("/HostConfig/Privileged", json!(false)),
        ("/HostConfig/ReadonlyRootfs", json!(true)),
        ("/HostConfig/SecurityOpt", json!(["no-new-privileges"])),
        ("/HostConfig/Init", json!(true)),
        ("/HostConfig/ExtraHosts", json!(["legacy.example:192.0.2.10"])),
        ("/HostConfig/Dns", json!(["192.0.2.53"])),
        ("/HostConfig/DnsSearch", json!(["example.internal"])),
        ("/HostConfig/DnsOptions", json!(["ndots:2"])),
        (
            "/HostConfig/LogConfig",
            json!({"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}),
        ),
        ("/Config/Labels/example.team", json!("tools")),
        ("/Config/StopSignal", json!("SIGTERM")),
        ("/Config/Tty", json!(true)),
        ("/Config/OpenStdin", json!(true)),
        ("/HostConfig/IpcMode", json!("shareable")),
        ("/HostConfig/RestartPolicy/Name", json!("no")),
        ("/State/Running", json!(true)),
    ];
    let wrong: Vec<String> = expected
        .iter()
        .filter(|(path, value)| c.pointer(path) != Some(value))
        .map(|(path, value)| format!("{path}: {:?}, not {value}", c.pointer(path)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let env = c["Config"]["Env"].as_array().expect("an environment");
    for entry in [
        "EVERY_SECRET=every secret",
        "GREETING=quotes ' \" and $dollars, an = and\na second line",
        "NUMBER=8080",
        "SWITCH=true",
        "EMPTY=",
        // What every container is told about itself.
        "CONTAINER_NAME=default.every-option.1.1",
        "SERVICE_NAME=every-option",
        "NAMESPACE=default",
        "SLOT=1",
        "NODE_NAME=n1",
        "PORT_HTTP=18080",
        "TCP_CHECKED_SERVICE=tcp-checked",
    ] {
        assert!(env.contains(&json!(entry)), "{entry:?} in {env:?}");
    }
    let names = |path: &str| -> Vec<String> {
        let list = c.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter()
            .filter_map(Value::as_str)
            .map(|cap| cap.trim_start_matches("CAP_").to_owned())
            .collect()
    };
    assert_eq!(names("/HostConfig/CapAdd"), ["NET_ADMIN"]);
    assert_eq!(names("/HostConfig/CapDrop"), ["MKNOD"]);
    let ulimits = c
        .pointer("/HostConfig/Ulimits")
        .and_then(Value::as_array)
        .expect("ulimits");
    assert!(
        ulimits.contains(&json!({"Name": "nofile", "Soft": 1024, "Hard": 2048})),
        "{ulimits:?}"
    );
    let seen = host.docker(&[
        "exec",
        "default.every-option.1.1",
        "sh",
        "-c",
        "cat /etc/every.conf; ls -ln /etc/every.conf",
    ]);
    assert!(seen.starts_with("every = option\n-r--r-----"), "{seen}");
    assert_eq!(
        seen.lines()
            .last()
            .map(|line| line.split_whitespace().skip(2).take(2).collect()),
        Some(vec!["1000", "4"])
    );
    let seen = host.docker(&[
        "exec",
        "default.every-option.1.1",
        "sh",
        "-c",
        "cat /etc/every.key; ls -ln /etc/every.key",
    ]);
    assert!(seen.starts_with("every secret-r--r-----"), "{seen}");
    let mounts = c["Mounts"].as_array().expect("mounts");
    let mount = |target: &str| {
        mounts
            .iter()
            .find(|mount| mount["Destination"] == target)
            .unwrap_or_else(|| panic!("{target} in {mounts:?}"))
    };
    assert_eq!(
        (&mount("/host/hostname")["Type"], &mount("/host/hostname")["RW"]),
        (&json!("bind"), &json!(false))
    );
    assert_eq!(
        (&mount("/data")["Type"], &mount("/data")["RW"]),
        (&json!("volume"), &json!(true))
    );
    assert_eq!(mount("/scratch")["Type"], json!("tmpfs"));
    let udp = c
        .pointer("/HostConfig/PortBindings/53~1udp/0/HostPort")
        .and_then(Value::as_str)
        .expect("a chosen port");
    assert!(
        (30_000..=32_767).contains(&udp.parse::<u32>().expect("a number")),
        "{udp}"
    );

    // What the kernel or the engine discards is a condition, and what it keeps is as asked.
    let said = host.reeve_exits(0, &["describe", "service", "every-option"]);
    for (path, asked, word) in [
        ("/HostConfig/MemorySwap", json!(128 << 20), "memorySwap"),
        ("/HostConfig/MemorySwappiness", json!(10), "memorySwappiness"),
        ("/HostConfig/BlkioWeight", json!(300), "blkioWeight"),
        ("/HostConfig/KernelMemory", json!(32 << 20), "kernelMemory"),
    ] {
        let kept = c.pointer(path) == Some(&asked);
        assert!(
            kept || said.contains(word),
            "{path} is {:?} and nothing says so:\n{said}",
            c.pointer(path)
        );
    }

    let c = host.inspect("default.host-network.1.1").expect("the second is there");
    for (path, value) in [
        ("/HostConfig/NetworkMode", json!("host")),
        ("/HostConfig/PidMode", json!("host")),
        ("/HostConfig/IpcMode", json!("host")),
        ("/HostConfig/UsernsMode", json!("host")),
    ] {
        assert_eq!(c.pointer(path), Some(&value), "{path}");
    }
    assert_eq!(host.http("http://127.0.0.1:18081/"), Ok("Hello from Reeve.\n".into()));

    // A host that lacks a capability itself cannot start a privileged container: then the engine's refusal is told.
    lab.file("policy.yaml", &format!("{}privileged: true\n", self::policy()));
    let privileged = "apiVersion: reeve/v1\nkind: Service\nmetadata: {name: privileged}\nspec:\n  container: {image: 'reeve/hello:1', command: [sleep, '3600'], privileged: true, stopGracePeriod: 0s}\n";
    let file = lab.file("privileged.yaml", privileged);
    let output = host.reeve(&["apply", "-f", &file, "--yes", "--timeout", "30s"]);
    let c = host.inspect("default.privileged.1.1").expect("it was created");
    assert_eq!(c.pointer("/HostConfig/Privileged"), Some(&json!(true)));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("StartFailed"), "{said}");

    host.reeve_exits(0, &["delete", "services", "--all", "-A", "--yes"]);
    assert_eq!(host.containers(), []);
    assert!(
        host.docker(&["volume", "ls", "-q"]).lines().count() >= 1,
        "volumes are data and stay"
    );
}

#[test]
fn the_smaller_examples_run() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let _up = up(&lab, &["--label", "zone=a"]);
    apply(host, "hello.yaml", "60s");
    assert_eq!(host.http("http://127.0.0.1:8080/"), Ok("Hello from Reeve.\n".into()));
    apply(host, "command.yaml", "60s");
    // As where `reeve up` runs: through the socket in its data directory.
    let dir = host.dir.join("up").display().to_string();
    let here = ["--data-dir", dir.as_str()];
    let said = host.reeve_exits(
        0,
        &[["run", "say", "--param", "to=everybody"].as_slice(), &here].concat(),
    );
    assert!(said.contains("hello everybody"), "{said}");
    let refused = host.reeve_exits(6, &[["run", "disk-space", "--yes"].as_slice(), &here].concat());
    assert!(refused.contains("nodeCommands: [exec]"), "{refused}");
    apply(host, "global.yaml", "60s");
    assert!(host.running().contains(&"default.watcher.n1.1".to_owned()));
    let value = lab.file("value", "hunter2");
    host.reeve_exits(0, &["secret", "set", "db-password", "--file", &value]);
    apply(host, "secret.yaml", "60s");
    apply(host, "files.yaml", "60s");
    let page = host.docker(&[
        "exec",
        "default.pages.1.1",
        "wget",
        "-q",
        "-O-",
        "http://127.0.0.1:8080/",
    ]);
    assert!(page.contains("This page is a ConfigFile."), "{page}");
    // The example of zones wants three nodes; on one, two of six fit and the rest say why not.
    let file = examples().join("zones.yaml").display().to_string();
    let said = host.reeve_exits(7, &["apply", "-f", &file, "--yes", "--timeout", "30s"]);
    assert!(said.contains("maxPerNode") || said.contains("MaxPerNode"), "{said}");
    assert_eq!(host.running().iter().filter(|name| name.contains(".front.")).count(), 2);
}

#[test]
fn an_application_of_three_services_finds_itself_by_name() {
    let lab = Lab::new(1);
    let host = &lab.hosts[0];
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/packages");
    succeed(
        Command::new(examples().join("application/images.sh"))
            .env("DOCKER_HOST", &host.docker_host)
            .env("REEVE_PACKAGE_CACHE", cache),
    );
    let _up = up(&lab, &[]);
    apply(host, "application/application.yaml", "120s");
    let visit = || host.http("http://127.0.0.1:8088/");
    let parse = |text: String| -> Result<(u64, u64), String> {
        let numbers: Vec<u64> = text
            .split([' ', ',', '\n'])
            .filter_map(|word| word.parse().ok())
            .collect();
        match numbers[..] {
            [cache, database] => Ok((cache, database)),
            _ => Err(text),
        }
    };
    let first = eventually("a request passes through all three", 30, || visit().and_then(parse));
    let second = parse(visit().expect("the web server answers")).expect("both counts");
    assert!(second.0 > first.0 && second.1 > first.1, "{first:?}, then {second:?}");

    // The database's container goes; its data, a volume, stays, and its name finds the new one.
    host.docker(&["rm", "-f", "default.database.1.1"]);
    let third = eventually("the new container has the old rows", 40, || visit().and_then(parse));
    assert!(third.1 > second.1, "{second:?}, then {third:?}");
}
