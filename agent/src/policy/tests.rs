use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use schemas::container::ContainerSpec;
use schemas::names::InstanceName;
use schemas::records::AssignedPort;
use serde_json::{Value, json};

use super::*;
use crate::engine::{CLUSTER_LABEL, CreateRequest, translate};

mod corpus;

const CLUSTER: &str = "0123456789abcdef";

/// A request as the agent makes it of a container's manifest.
fn body(container: &Value) -> Value {
    let mut whole = json!({ "image": "app:1" });
    for (key, value) in container.as_object().expect("a mapping") {
        whole[key] = value.clone();
    }
    let spec: ContainerSpec = serde_json::from_value(whole).expect("a spec");
    let ports: Vec<AssignedPort> = spec
        .ports
        .iter()
        .filter_map(|port| {
            let host_port = match port.host_port? {
                schemas::container::HostPort::Fixed(fixed) => fixed,
                schemas::container::HostPort::Auto => 30_000,
            };
            Some(AssignedPort {
                container_port: port.container_port,
                protocol: port.protocol,
                host_ip: port.host_ip,
                host_port,
            })
        })
        .collect();
    let instance = InstanceName {
        namespace: "shop".parse().expect("a name"),
        workload: "web".parse().expect("a name"),
        slot: "1".parse().expect("a slot"),
    };
    let labels = BTreeMap::from([(CLUSTER_LABEL.to_owned(), CLUSTER.to_owned())]);
    let request = CreateRequest {
        seat: None,
        name: "shop.web.1.1",
        instance: &instance,
        spec: &spec,
        labels: &labels,
        ports: &ports,
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &Gate::open(),
    };
    translate::create_body(&request, (1, 41)).expect("a body").0
}

fn judge(gate: &Gate, body: &Value) -> Vec<Denial> {
    let asked = Asked {
        address: None,
        body,
        network: "reeve-01234567-shop",
        volumes: "shop.",
        files: &[],
    };
    match gate.judge(&asked) {
        Judgement::Granted => Vec::new(),
        Judgement::Denied { denials, text } => {
            assert!(
                !denials.is_empty() && text.chars().count() <= MAX_CHARACTERS + 600,
                "{text}"
            );
            denials
        }
        Judgement::Withheld(why) => panic!("{why}"),
    }
}

/// A gate with this policy in place of the built-in one, on a host whose own places are in `dir`.
fn gate(dir: &Path, policy: Policy) -> Gate {
    let options = PolicyOptions {
        file: dir.join("etc/policy.yaml"),
        named: false,
        built_in: policy,
        own: vec![dir.join("store")],
        guarded: vec![dir.join("engine.sock")],
    };
    Gate::new(options, &dir.join("agent"))
}

fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for folder in ["agent", "store", "etc", "srv/data"] {
        std::fs::create_dir_all(dir.path().join(folder)).expect("a directory");
    }
    std::fs::write(dir.path().join("engine.sock"), "").expect("a file");
    dir
}

fn opened(dir: &Path, policy: Policy, lines: &[(&str, bool)]) -> Gate {
    let host_paths = lines
        .iter()
        .map(|(path, read_only)| HostPath {
            path: dir.join(path),
            read_only: *read_only,
        })
        .collect();
    gate(dir, Policy { host_paths, ..policy })
}

fn bind(path: &Path) -> Value {
    body(&json!({ "mounts": [{ "type": "bind", "source": path, "target": "/x" }] }))
}

#[test]
fn what_a_service_usually_asks_passes() {
    let dir = host();
    let usual = json!({
        "image": "registry.example.com:5000/team/app:2",
        "env": { "A": 1 }, "user": "1000:1000", "workingDir": "/app",
        "ports": [{ "containerPort": 80, "hostPort": 80 }, { "containerPort": 53, "hostPort": "auto", "protocol": "UDP" }],
        "mounts": [
            { "type": "volume", "source": "data", "target": "/data" },
            { "type": "tmpfs", "target": "/tmp", "size": "16Mi", "mode": "1777" },
            { "type": "bind", "source": "/srv/site", "target": "/site", "readOnly": true },
            { "type": "bind", "source": "/mnt/disk", "target": "/disk" },
        ],
        "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } },
        "cpuShares": 512, "cpusetCpus": "0", "cpusetMems": "0", "memorySwap": "128Mi", "memorySwappiness": 10,
        "kernelMemory": "32Mi", "blkioWeight": 300, "pidsLimit": 64, "shmSize": "8Mi",
        "ulimits": { "nofile": { "soft": 1024, "hard": 2048 } },
        "sysctls": { "net.core.somaxconn": 512 },
        "capabilities": { "add": ["NET_BIND_SERVICE", "CAP_CHOWN"], "drop": ["ALL"] },
        "securityOpt": ["no-new-privileges", "no-new-privileges:true"],
        "readOnlyRootFilesystem": true, "init": true, "extraHosts": { "db.example": "host-gateway" },
        "dns": { "nameservers": ["192.0.2.53"], "searches": ["example"], "options": ["ndots:2"] },
        "logging": { "driver": "local", "options": { "max-size": "1m" } },
        "labels": { "a": "b" }, "stopSignal": "TERM", "tty": true, "stdin": true, "groupAdd": ["27"],
        "ipcMode": "shareable",
    });
    for container in [json!({}), usual, json!({ "networkMode": "none", "ipcMode": "private" })] {
        for policy in [Policy::of_a_node(), Policy::of_up()] {
            assert_eq!(judge(&gate(dir.path(), policy), &body(&container)), [], "{container}");
        }
    }
    let home = json!({ "mounts": [{ "type": "bind", "source": "/home/ann/site", "target": "/site" }] });
    assert_eq!(judge(&gate(dir.path(), Policy::of_up()), &body(&home)), []);
    assert_eq!(judge(&gate(dir.path(), Policy::of_a_node()), &body(&home)).len(), 1);
}

#[test]
fn links_are_followed_before_paths_are_judged() {
    let dir = host();
    let at = |path: &str| dir.path().join(path);
    symlink(at("engine.sock"), at("srv/data/harmless")).expect("a link");
    symlink(at("srv/data/harmless"), at("srv/twice")).expect("a link");
    symlink("/", at("srv/root")).expect("a link");
    symlink(at("not-there-yet"), at("srv/dangling")).expect("a link");
    symlink(at("srv/loop"), at("srv/loop")).expect("a link");
    symlink(at("srv/data"), at("srv/inner")).expect("a link");
    let gate = opened(dir.path(), Policy::of_a_node(), &[("srv", false)]);
    let denied = |path: &str| judge(&gate, &bind(&at(path)));
    assert_eq!(denied("srv/data"), []);
    assert_eq!(
        denied("srv/inner"),
        [],
        "a link that stays inside is as good as the path"
    );
    assert_eq!(denied("srv/data/not-there"), [], "the engine refuses what is not there");
    for path in [
        "srv/data/harmless",
        "srv/twice",
        "srv/root",
        "srv/root/etc/shadow",
        "srv/dangling",
        "srv/dangling/deeper",
        "srv/loop",
        "srv/data/../../engine.sock",
        "srv/root/proc/1/root",
    ] {
        let denials = denied(path);
        assert_eq!(denials.len(), 1, "{path}");
        assert_eq!(denials[0].rule, Rule::HostPath, "{path}: {denials:?}");
    }
    let said = denied("srv/twice")[0].to_string();
    assert!(
        said.contains("which leads to") && said.contains("engine.sock"),
        "{said}"
    );
}

#[test]
fn a_line_for_a_directory_opens_no_guarded_place_in_it_and_none_that_holds_one() {
    let dir = host();
    let at = |path: &str| dir.path().join(path);
    let whole = opened(dir.path(), Policy::of_a_node(), &[("", false)]);
    assert_eq!(judge(&whole, &bind(&at("srv"))), []);
    assert_eq!(judge(&whole, &bind(dir.path())), [], "it is what the line names");
    let socket = judge(&whole, &bind(&at("engine.sock")));
    assert_eq!(socket.len(), 1, "guarded places need a line of their own");
    assert!(
        socket[0].line.as_ref().is_some_and(|line| line.contains("engine.sock")),
        "{socket:?}"
    );
    for own in ["agent", "agent/ledger.json", "store/store.redb", "etc/policy.yaml"] {
        let denials = judge(&whole, &bind(&at(own)));
        assert_eq!(
            (denials.len(), denials[0].line.clone()),
            (1, None),
            "{own}: {denials:?}"
        );
        let named = opened(dir.path(), Policy::of_a_node(), &[(own, false)]);
        assert_eq!(
            judge(&named, &bind(&at(own))).len(),
            1,
            "not even a line that names {own}"
        );
    }
    let line = opened(dir.path(), Policy::of_a_node(), &[("engine.sock", true)]);
    let read_only = |read_only: bool| {
        body(
            &json!({ "mounts": [{ "type": "bind", "source": at("engine.sock"), "target": "/x", "readOnly": read_only }] }),
        )
    };
    assert_eq!(judge(&line, &read_only(true)), []);
    assert_eq!(judge(&line, &read_only(false)).len(), 1);

    // The host itself.
    let root = Policy {
        host_paths: places(&["/"]),
        ..Policy::of_a_node()
    };
    let gate = gate(dir.path(), root);
    assert_eq!(judge(&gate, &bind(Path::new("/"))), []);
    assert_eq!(judge(&gate, &bind(Path::new("/opt/x"))), []);
    for path in [
        "/etc",
        "/proc/1/root",
        "/var/lib",
        "/var/run/docker.sock",
        "/dev/sda",
        "/etc/reeve/policy.yaml",
    ] {
        assert_eq!(judge(&gate, &bind(Path::new(path))).len(), 1, "{path}");
    }
}

#[test]
fn files_that_the_agent_mounts_itself_pass_and_no_others() {
    let dir = host();
    let gate = gate(dir.path(), Policy::of_a_node());
    let own = dir.path().join("agent/files/1");
    let mounted = |read_only: bool| {
        body(&json!({ "mounts": [{ "type": "bind", "source": own, "target": "/x", "readOnly": read_only }] }))
    };
    let said = |body: &Value, files: &[String]| {
        gate.judge(&Asked {
            address: None,
            body,
            network: "reeve-01234567-shop",
            volumes: "shop.",
            files,
        })
    };
    let files = [own.display().to_string()];
    assert_eq!(said(&mounted(true), &files), Judgement::Granted);
    assert!(matches!(said(&mounted(false), &files), Judgement::Denied { .. }));
    assert!(matches!(said(&mounted(true), &[]), Judgement::Denied { .. }));
}

#[test]
fn images_are_compared_as_the_engine_understands_them() {
    let dir = host();
    let with = |images: &[&str], image: &str| {
        let policy = Policy {
            images: images.iter().map(|one| (*one).to_owned()).collect(),
            ..Policy::of_a_node()
        };
        judge(&gate(dir.path(), policy), &body(&json!({ "image": image }))).is_empty()
    };
    let hub = ["docker.io/library/"];
    for image in [
        "nginx",
        "nginx:1",
        "library/nginx",
        "docker.io/nginx",
        "index.docker.io/library/nginx",
        "docker.io/library/nginx:2",
    ] {
        assert!(with(&hub, image), "{image}");
    }
    for image in [
        "evil/nginx",
        "localhost/library/nginx",
        "docker.io.example.com/library/nginx",
        "registry.example.com/docker.io/library/nginx",
    ] {
        assert!(!with(&hub, image), "{image}");
    }
    let one = ["registry.example.com:5000/team/app"];
    assert!(with(&one, "registry.example.com:5000/team/app:1"));
    assert!(!with(&one, "registry.example.com:5000/team/app2:1"));
    assert!(
        !with(&one, "registry.example.com/team/app:1"),
        "another port is another registry"
    );
    let id = format!("sha256:{}", "a".repeat(64));
    assert!(!with(&hub, &id), "an id means any image of the node");
    assert!(with(&["*"], &id));
    assert!(with(&["docker.io/library/nginx:1"], "nginx:1"));
    assert!(!with(&["docker.io/library/nginx:1"], "nginx:2"));
}

#[test]
fn ports_can_be_bounded() {
    let dir = host();
    let policy = Policy {
        lowest_port: 1024,
        host_addresses: Some(["192.0.2.1".parse().expect("an address")].into()),
        ..Policy::of_a_node()
    };
    let gate = gate(dir.path(), policy);
    let port = |port: u16, ip: &str| {
        let mut spec = json!({ "ports": [{ "containerPort": 80, "hostPort": port }] });
        if !ip.is_empty() {
            spec["ports"][0]["hostIP"] = json!(ip);
        }
        judge(&gate, &body(&spec)).len()
    };
    assert_eq!(port(1024, "192.0.2.1"), 0);
    assert_eq!(port(1023, "192.0.2.1"), 1);
    assert_eq!(port(8080, "127.0.0.1"), 1);
    assert_eq!(port(80, ""), 2, "no address is all addresses");
}

// ---- the file ----------------------------------------------------------------------------------------------------------

fn published(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../manifests/policy")
        .join(name);
    std::fs::read_to_string(path).expect("a file of the project")
}

#[test]
fn the_published_policy_is_the_built_in_one() {
    let nothing = Policy {
        privileged: true,
        host_paths: Vec::new(),
        host_namespaces: [HostNamespace::Pid].into(),
        images: Vec::new(),
        capabilities: words(&["ALL"]),
        devices: vec![DeviceRule {
            path: PathBuf::from("/dev/x"),
            permissions: "r".to_owned(),
        }],
        security_options: words(&["x"]),
        sysctls: Vec::new(),
        lowest_port: 9,
        host_addresses: None,
        logging_drivers: words(&["x"]),
        ulimits: words(&["x"]),
        node_commands: [NodeCommand::Exec].into(),
    };
    let mut read = parse(&published("policy.yaml"), &nothing).expect("a policy");
    let mut built_in = Policy::of_a_node();
    read.sysctls.sort();
    built_in.sysctls.sort();
    assert_eq!(read, built_in);
    assert_eq!(
        parse("", &built_in),
        Ok(built_in.clone()),
        "nothing said is nothing changed"
    );
}

#[test]
fn the_examples_pass_and_the_one_with_every_option_with_its_policy() {
    let dir = host();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    let with_policy = parse(&published("every-option.yaml"), &Policy::of_up()).expect("a policy");
    let files = [
        "hello.yaml",
        "global.yaml",
        "zones.yaml",
        "application/application.yaml",
        "every-option.yaml",
    ];
    let mut denied = 0;
    for file in files {
        let text = std::fs::read_to_string(folder.join(file)).expect("an example");
        for admitted in schemas::admit(&text, Some(file)).expect("an example") {
            let schemas::Document::Service(service) = admitted.document else {
                continue;
            };
            let container = serde_json::to_value(&service.spec.container).expect("JSON");
            let body = body(&container);
            assert_eq!(judge(&gate(dir.path(), with_policy.clone()), &body), [], "{file}");
            let bare = judge(&gate(dir.path(), Policy::of_up()), &body).len();
            assert!(bare == 0 || file == "every-option.yaml", "{file}");
            denied += bare;
        }
    }
    assert!(denied > 3, "{denied}");
}

#[test]
fn every_problem_of_a_policy_has_its_line_and_column() {
    let text = "privileged: yes\npriviledged: true\nhostPaths:\n  - {path: srv}\n  - {path: /a/../b}\n  - readOnly: true\n  - {path: /x, readonly: true}\nimages: [nginx]\nhostNamespaces: [mount]\nlowestPort: 0\nhostAddresses: [here]\ndevices: [{path: /dev/x, permissions: rx}]\ncapabilities: net_admin\n";
    let problems = parse(text, &Policy::of_a_node()).expect_err("problems");
    let places: Vec<(usize, usize)> = problems.iter().map(|one| (one.line, one.column)).collect();
    assert_eq!(
        places,
        [
            (1, 13),
            (2, 1),
            (4, 12),
            (5, 12),
            (6, 5),
            (7, 16),
            (8, 10),
            (9, 18),
            (10, 13),
            (11, 17),
            (12, 39),
            (13, 15)
        ],
        "{problems:#?}"
    );
    assert!(problems[1].message.contains("priviledged"));
    for text in [
        "a: [",
        "a: 1\na: 2",
        "- x",
        "privileged: false\n---\nprivileged: true\n",
        "\u{0}",
        &"[".repeat(10_000),
    ] {
        assert!(parse(text, &Policy::of_a_node()).is_err(), "{text:.20}");
    }
}

#[test]
fn a_file_that_others_can_write_opens_nothing_and_denies_all() {
    let dir = host();
    let file = dir.path().join("etc/policy.yaml");
    let at = gate(dir.path(), Policy::of_a_node());
    let plain = body(&json!({}));
    let asked = Asked {
        address: None,
        body: &plain,
        network: "reeve-01234567-shop",
        volumes: "shop.",
        files: &[],
    };
    assert_eq!(at.judge(&asked), Judgement::Granted, "no file is the built-in policy");

    std::fs::write(&file, "privileged: true\n").expect("a file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("a mode");
    assert!(at.refresh());
    assert!(
        at.unreadable().is_some_and(|why| why.contains("written by others")),
        "{:?}",
        at.unreadable()
    );
    assert!(matches!(at.judge(&asked), Judgement::Withheld(_)));

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    assert!(at.refresh(), "a mode is a change, too");
    assert_eq!(at.unreadable(), None);
    let root = body(&json!({ "privileged": true }));
    assert_eq!(judge(&at, &root), []);
    assert!(!at.refresh(), "nothing has changed");

    std::fs::set_permissions(dir.path().join("etc"), std::fs::Permissions::from_mode(0o777)).expect("a mode");
    std::fs::write(&file, "privileged: true # again\n").expect("a file");
    assert!(at.refresh());
    assert!(
        at.unreadable().is_some_and(|why| why.contains("its directory")),
        "{:?}",
        at.unreadable()
    );
    std::fs::set_permissions(dir.path().join("etc"), std::fs::Permissions::from_mode(0o755)).expect("a mode");

    std::fs::write(&file, "privileged: maybe\n").expect("a file");
    assert!(at.refresh());
    assert!(
        at.unreadable().is_some_and(|why| why.contains("policy.yaml:1:13")),
        "{:?}",
        at.unreadable()
    );
    std::fs::write(&file, "x".repeat(300 << 10)).expect("a file");
    assert!(at.refresh());
    std::fs::remove_file(&file).expect("it goes");
    assert!(at.refresh());
    assert_eq!(at.judge(&asked), Judgement::Granted);

    let named = PolicyOptions {
        file,
        named: true,
        ..PolicyOptions::default()
    };
    let named = Gate::new(named, dir.path());
    assert!(
        matches!(named.judge(&asked), Judgement::Withheld(_)),
        "a named file must be there"
    );
}

#[test]
fn a_pipe_in_place_of_the_file_blocks_nobody() {
    let dir = host();
    let file = dir.path().join("etc/policy.yaml");
    let made = std::process::Command::new("mkfifo")
        .arg(&file)
        .status()
        .expect("mkfifo");
    assert!(made.success());
    let at = gate(dir.path(), Policy::of_a_node());
    assert!(
        at.unreadable().is_some_and(|why| why.contains("no regular file")),
        "{:?}",
        at.unreadable()
    );
}

#[test]
fn many_denials_are_told_in_bounded_text() {
    let dir = host();
    let add: Vec<String> = (0..60u8)
        .map(|one| format!("X{}", char::from(b'A' + one % 26)).repeat(4))
        .collect();
    let request = body(&json!({ "privileged": true, "capabilities": { "add": add } }));
    let asked = Asked {
        address: None,
        body: &request,
        network: "reeve-01234567-shop",
        volumes: "shop.",
        files: &[],
    };
    let Judgement::Denied { denials, text } = gate(dir.path(), Policy::of_a_node()).judge(&asked) else {
        panic!("denied");
    };
    assert_eq!(denials.len(), 61);
    assert!(text.chars().count() < 1_024 && text.ends_with("more"), "{text}");
}
