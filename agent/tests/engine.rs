//! The Docker engine against a real one: every option of a container, pulls from a real registry and a broken one, names
//! that resolve, commands and logs, and an engine that crashes. What each call must do is in the contract beside the code.

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::engine::docker::Docker;
use agent::engine::translate::{self, create_body, discrepancies};
use agent::engine::{
    CLUSTER_LABEL, ContainerRuntime, ContainerState, CreateRequest, ErrorKind, Event, ProgressSink, PullProgress,
};
use futures::StreamExt as _;
use schemas::container::ContainerSpec;
use schemas::names::InstanceName;
use schemas::records::AssignedPort;
use serde_json::{Value, json};
use support::{Engine, IMAGE, Registry};

const CLUSTER: &str = "c-test";

fn instance(workload: &str, slot: &str) -> InstanceName {
    InstanceName {
        namespace: "default".parse().expect("a namespace"),
        workload: workload.parse().expect("a name"),
        slot: slot.parse().expect("a slot"),
    }
}

fn spec(value: Value) -> ContainerSpec {
    let mut base = json!({ "image": IMAGE, "command": ["/bin/sleep", "1000"], "stopSignal": "SIGKILL" });
    for (key, value) in value.as_object().expect("an object") {
        base[key] = value.clone();
    }
    serde_json::from_value(base).expect("a spec")
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(CLUSTER_LABEL.to_owned(), CLUSTER.to_owned())])
}

fn silent() -> ProgressSink {
    Arc::new(|_| {})
}

async fn run(docker: &Docker, name: &InstanceName, spec: &ContainerSpec, ports: &[AssignedPort]) -> String {
    docker
        .ensure_network(CLUSTER, &name.namespace)
        .await
        .expect("a network");
    let (container, labels) = (name.container(1), labels());
    let request = CreateRequest {
        seat: None,
        name: &container,
        instance: name,
        spec,
        labels: &labels,
        ports,
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    let created = docker.create(request).await.expect("a container");
    docker.start(&created.id).await.expect("a start");
    created.id
}

async fn output(docker: &Docker, id: &str, command: &str) -> (i64, String) {
    let command: Vec<String> = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    let end = docker
        .exec(id, &command, Duration::from_secs(20))
        .await
        .expect("a command");
    (end.code, end.output)
}

/// Every option at once, but for those that exclude each other or that this kernel does not have.
fn every_option(bind: &str, port: u16) -> Value {
    json!({
        "command": ["/bin/sh", "-c"],
        "args": ["exec /bin/sleep 1000"],
        "env": { "A": "1", "B": "two words", "EMPTY": "" },
        "workingDir": "/tmp",
        "user": "1000:1000",
        "groupAdd": ["audio", "4000"],
        "hostname": "other",
        "ports": [
            { "containerPort": 80, "hostPort": port, "hostIP": "127.0.0.1" },
            { "containerPort": 53, "hostPort": "auto", "protocol": "UDP" },
            { "containerPort": 9000 }
        ],
        "mounts": [
            { "type": "bind", "source": bind, "target": "/host", "readOnly": true },
            { "type": "volume", "source": "data", "target": "/data" },
            { "type": "tmpfs", "target": "/scratch", "size": "1Mi", "mode": "1770" }
        ],
        "resources": { "requests": { "cpu": "100m", "memory": "16Mi" }, "limits": { "cpu": "500m", "memory": "64Mi" } },
        "cpuShares": 512,
        "cpusetCpus": "0",
        "cpusetMems": "0",
        "memorySwap": "128Mi",
        "pidsLimit": 64,
        "ulimits": { "nofile": { "soft": 1024, "hard": 2048 }, "core": { "soft": 0, "hard": -1 } },
        "shmSize": "16Mi",
        "sysctls": { "net.core.somaxconn": 1024 },
        "devices": [{ "hostPath": "/dev/null", "containerPath": "/dev/nothing", "permissions": "r" }],
        "capabilities": { "add": ["NET_ADMIN", "CAP_SYS_TIME"], "drop": ["MKNOD"] },
        "readOnlyRootFilesystem": true,
        "securityOpt": ["no-new-privileges"],
        "init": true,
        "extraHosts": { "db.test": "192.0.2.1" },
        "dns": { "nameservers": ["192.0.2.53"], "searches": ["test"], "options": ["ndots:2"] },
        "logging": { "driver": "json-file", "options": { "max-size": "1m", "max-file": "2" } },
        "labels": { "team": "a", "number": 7 },
        "stopSignal": "SIGINT",
        "stopGracePeriod": "1500ms",
        "tty": true,
        "stdin": true,
        "ipcMode": "shareable",
        "pidMode": "host",
        "usernsMode": "host"
    })
}

#[tokio::test]
async fn every_option_is_in_force_or_said_not_to_be() {
    let engine = Engine::start();
    let docker = Docker::new(&engine.address()).expect("an address");
    let api = docker.version().await.expect("a version").api;
    let bind = engine.directory().join("bound");
    std::fs::create_dir_all(&bind).expect("a directory to bind");
    std::fs::write(bind.join("file"), "hello").expect("a file to bind");
    let (port, other) = (support::free_port(), support::free_port());
    let name = instance("web", "1");
    let all = spec(every_option(bind.to_str().expect("a path"), port));
    let assigned = |container_port, protocol, host_ip: Option<&str>, host_port| AssignedPort {
        container_port,
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().expect("an address")),
        host_port,
    };
    use schemas::container::Protocol::{Tcp, Udp};
    let ports = [
        assigned(80, Tcp, Some("127.0.0.1"), port),
        assigned(53, Udp, None, other),
    ];
    docker
        .ensure_network(CLUSTER, &name.namespace)
        .await
        .expect("a network");
    let own = labels();
    let request = CreateRequest {
        seat: None,
        name: "default.web.1.1",
        instance: &name,
        spec: &all,
        labels: &own,
        ports: &ports,
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    let created = docker.create(request).await.expect("a container");
    assert_eq!(created.conditions, []);
    docker.start(&created.id).await.expect("a start");

    // What the engine says it has.
    let (body, unsupported) = create_body(&request, api).expect("a body");
    assert_eq!(unsupported, []);
    let inspection = docker.inspect(&created.id).await.expect("an inspection");
    assert_eq!(discrepancies(&body, &inspection.raw), []);
    assert_eq!(
        inspection
            .observed
            .details
            .as_ref()
            .map(|details| details.limits.clone()),
        Some(translate::limits(&all))
    );
    // A change of any of them is seen.
    for (section, key) in body.as_object().into_iter().flatten().map(|(key, _)| ("", key)).chain(
        body["HostConfig"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| ("HostConfig", key)),
    ) {
        if key == "HostConfig" || key == "RestartPolicy" {
            continue;
        }
        let mut changed = body.clone();
        let place = if section.is_empty() {
            &mut changed[key]
        } else {
            &mut changed[section][key]
        };
        *place = match &*place {
            Value::Bool(flag) => json!(!flag),
            Value::Number(number) => json!(number.as_i64().unwrap_or(0) + 1),
            Value::String(_) => json!("changed"),
            Value::Array(_) => json!(["changed"]),
            Value::Object(_) | Value::Null if key == "NetworkingConfig" => {
                json!({ "EndpointsConfig": { "other": { "Aliases": [] } } })
            }
            Value::Object(_) | Value::Null => json!({ "changed": "x" }),
        };
        assert_eq!(
            discrepancies(&changed, &inspection.raw).len(),
            1,
            "a change of {key} is not seen"
        );
    }

    // What the container itself sees.
    for (command, expected) in [
        ("echo $A-$B-$EMPTY.", "1-two words-."),
        ("cat /host/file", "hello"),
        ("hostname", "other"),
        ("id -u", "1000"),
        ("cat /proc/sys/net/core/somaxconn", "1024"),
        ("ulimit -n", "1024"),
    ] {
        assert_eq!(
            output(&docker, &created.id, command).await,
            (0, expected.to_owned()),
            "{command}"
        );
    }
    for refused in ["touch /host/x", "touch /x", "touch /scratch/x"] {
        assert_ne!(output(&docker, &created.id, refused).await.0, 0, "{refused}");
    }
    assert_eq!(
        engine.docker(&[
            "volume",
            "inspect",
            "-f",
            "{{index .Labels \"reeve.namespace\"}}",
            "default.data"
        ]),
        Ok("default".to_owned())
    );
    docker.stop(&created.id, Duration::from_secs(5)).await.expect("a stop");
    docker.remove(&created.id).await.expect("a removal");
    assert!(
        engine.docker(&["volume", "inspect", "default.data"]).is_ok(),
        "a volume was removed"
    );

    // The other modes.
    let host = spec(
        json!({ "networkMode": "host", "ports": [{ "containerPort": other, "hostPort": other }], "ipcMode": "host" }),
    );
    let none = spec(json!({ "networkMode": "none", "ipcMode": "none" }));
    let privileged = spec(json!({ "privileged": true }));
    for (slot, spec) in [("2", &host), ("3", &none), ("4", &privileged)] {
        let name = instance("web", slot);
        let container = name.container(1);
        let request = CreateRequest {
            seat: None,
            name: &container,
            instance: &name,
            spec,
            labels: &own,
            ports: &[],
            files: &[],
            secrets: &[],
            addresses: &schemas::records::Addresses::default(),
            depends_on: &[],
            gate: &agent::policy::Gate::open(),
        };
        let created = docker.create(request).await.expect("a container");
        // All capabilities can be given only by an engine that has them all.
        match docker.start(&created.id).await {
            Err(error) if spec.privileged => assert!(error.said.contains("caps"), "{error}"),
            started => started.expect("a start"),
        }
        let (body, _) = create_body(&request, api).expect("a body");
        let inspection = docker.inspect(&created.id).await.expect("an inspection");
        assert_eq!(discrepancies(&body, &inspection.raw), [], "slot {slot}");
        assert_eq!(created.conditions, []);
    }

    // What this kernel may not have: each is in force, or a condition says that it is not.
    let rare = [
        ("blkioWeight", json!(300)),
        ("memorySwappiness", json!(10)),
        ("kernelMemory", json!("32Mi")),
    ];
    for (index, (option, value)) in rare.into_iter().enumerate() {
        let name = instance("rare", &(index + 1).to_string());
        let spec = spec(json!({ option: value, "resources": { "limits": { "memory": "64Mi" } } }));
        let container = name.container(1);
        let request = CreateRequest {
            seat: None,
            name: &container,
            instance: &name,
            spec: &spec,
            labels: &own,
            ports: &[],
            files: &[],
            secrets: &[],
            addresses: &schemas::records::Addresses::default(),
            depends_on: &[],
            gate: &agent::policy::Gate::open(),
        };
        let created = match docker.create(request).await {
            Ok(created) => created,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Refused, "{option}: {error}");
                continue;
            }
        };
        let (body, _) = create_body(&request, api).expect("a body");
        let differs = discrepancies(&body, &docker.inspect(&created.id).await.expect("an inspection").raw);
        println!("{option}: {:?} {differs:?}", created.conditions);
        assert!(
            differs.is_empty() || !created.conditions.is_empty(),
            "{option} was silently discarded: {differs:?}"
        );
        docker.remove(&created.id).await.expect("a removal");
    }
    // A host path that is missing is said, and not made.
    let lost = spec(json!({ "mounts": [{ "type": "bind", "source": "/no/such/path", "target": "/x" }] }));
    let name = instance("lost", "1");
    let request = CreateRequest {
        seat: None,
        name: "default.lost.1.1",
        instance: &name,
        spec: &lost,
        labels: &own,
        ports: &[],
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    let error = docker.create(request).await.expect_err("the path is missing");
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.said.contains("/no/such/path"), "{error}");
    assert!(!std::path::Path::new("/no/such/path").exists());
    // A command that is missing too.
    let wrong = spec(json!({ "command": ["/no/such/command"] }));
    let request = CreateRequest {
        seat: None,
        name: "default.lost.1.2",
        instance: &name,
        spec: &wrong,
        labels: &own,
        ports: &[],
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    let created = docker.create(request).await.expect("a container");
    let error = docker.start(&created.id).await.expect_err("the command is missing");
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    assert!(error.said.contains("/no/such/command"), "{error}");
}

#[tokio::test]
async fn names_resolve_commands_end_in_time_and_logs_are_read() {
    let engine = Engine::start();
    let docker = Docker::new(&engine.address()).expect("an address");
    let server = spec(
        json!({ "command": ["/bin/sh", "-c", "echo one; echo two >&2; echo $(echo three); exec httpd -f -p 80 -h /etc"], "ports": [{ "containerPort": 80 }] }),
    );
    let served = run(&docker, &instance("web", "2"), &server, &[]).await;
    let client = run(&docker, &instance("client", "1"), &spec(json!({})), &[]).await;
    for name in ["web", "web.default", "web-2", "2.web"] {
        let mut last = (1, String::new());
        for _ in 0..50 {
            last = output(&docker, &client, &format!("wget -q -O - http://{name}/passwd")).await;
            if last.0 == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(last.0, 0, "{name} does not resolve or serve: {last:?}");
    }
    assert_eq!(output(&docker, &client, "hostname").await, (0, "client-1".to_owned()));

    let mut lines = docker.logs(&served, 10).await.expect("logs");
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
    assert_eq!(docker.logs(&served, 1).await.expect("logs").len(), 1);
    let tty = spec(json!({ "tty": true, "command": ["/bin/sh", "-c", "echo plain; exec sleep 1000"] }));
    let tty = run(&docker, &instance("tty", "1"), &tty, &[]).await;
    let mute = spec(json!({ "logging": { "driver": "none" } }));
    let mute = run(&docker, &instance("mute", "1"), &mute, &[]).await;
    for _ in 0..100 {
        if !docker.logs(&tty, 5).await.expect("logs of a terminal").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(docker.logs(&tty, 5).await.expect("logs of a terminal"), ["plain"]);
    assert_eq!(docker.logs(&mute, 5).await.expect("no logs"), Vec::<String>::new());

    // A command that hangs ends its own call in time, and no second one is begun beside it.
    let hang: Vec<String> = ["/bin/sleep", "3"].map(str::to_owned).to_vec();
    let begun = std::time::Instant::now();
    let late = docker
        .exec(&client, &hang, Duration::from_millis(300))
        .await
        .expect_err("it hangs");
    assert_eq!(late.kind, ErrorKind::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let second = docker
        .exec(&client, &hang, Duration::from_millis(300))
        .await
        .expect_err("it still hangs");
    assert!(second.said.contains("still not ended"), "{second}");
    assert_eq!(
        output(&docker, &served, "echo fine").await,
        (0, "fine".to_owned()),
        "another container is not held up"
    );
    let mut free = false;
    for _ in 0..100 {
        let quick: Vec<String> = vec!["/bin/true".to_owned()];
        if docker
            .exec(&client, &quick, Duration::from_secs(5))
            .await
            .is_ok_and(|end| end.code == 0)
        {
            free = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(free, "the container is never free again");

    // A hand that disconnects, and ours that connects again under the same names.
    engine
        .docker(&["network", "disconnect", "reeve-c-test-default", "default.web.2.1"])
        .expect("a disconnect");
    assert!(
        docker
            .inspect(&served)
            .await
            .expect("an inspection")
            .observed
            .networks
            .is_empty()
    );
    docker
        .connect(CLUSTER, &served, &instance("web", "2"))
        .await
        .expect("a connect");
    assert_eq!(
        output(&docker, &client, "wget -q -O - http://web-2/passwd >/dev/null; echo $?")
            .await
            .1,
        "0"
    );

    // A foreign network of our name is said.
    engine
        .docker(&["network", "create", "reeve-c-test-foreign"])
        .expect("a network");
    let error = docker
        .ensure_network(CLUSTER, &"foreign".parse().expect("a namespace"))
        .await
        .expect_err("not ours");
    assert!(
        matches!(error.kind, ErrorKind::Conflict { .. }) && error.said.contains("reeve-c-test-foreign"),
        "{error}"
    );
    // One removed by hand is made again.
    docker
        .ensure_network(CLUSTER, &"gone".parse().expect("a namespace"))
        .await
        .expect("a network");
    engine
        .docker(&["network", "rm", "reeve-c-test-gone"])
        .expect("a removal");
    let gone = InstanceName {
        namespace: "gone".parse().expect("a namespace"),
        ..instance("web", "1")
    };
    let (name, own, plain) = (gone.container(1), labels(), spec(json!({})));
    let request = CreateRequest {
        seat: None,
        name: &name,
        instance: &gone,
        spec: &plain,
        labels: &own,
        ports: &[],
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    let id = docker.create(request).await.expect("a container").id;
    assert_eq!(
        docker.start(&id).await.expect_err("no network").kind,
        ErrorKind::NotFound
    );
    docker
        .ensure_network(CLUSTER, &gone.namespace)
        .await
        .expect("a network again");
    docker.start(&id).await.expect("a start");
}

#[tokio::test]
async fn an_engine_that_crashes_is_told_and_found_again() {
    let mut engine = Engine::start();
    let docker = Docker::new(&engine.address()).expect("an address");
    let id = run(&docker, &instance("web", "1"), &spec(json!({})), &[]).await;
    let mut events = docker.events(CLUSTER);
    assert_eq!(events.next().await, Some(Event::Connected));
    engine.crash_and_return();
    assert!(matches!(events.next().await, Some(Event::Disconnected(error)) if error.kind == ErrorKind::Unavailable));
    loop {
        match tokio::time::timeout(Duration::from_secs(30), events.next())
            .await
            .expect("it is found again in time")
        {
            Some(Event::Connected) => break,
            Some(Event::Disconnected(_) | Event::Container { .. } | Event::ImageGone) => {}
            None => panic!("the stream ended"),
        }
    }
    let listed = docker.list(CLUSTER).await.expect("a list");
    assert_eq!(listed.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id]);
    assert_ne!(listed[0].state, ContainerState::Created);
}

#[tokio::test]
async fn images_are_pulled_with_the_hosts_credentials_and_failures_are_told_apart() {
    let engine = Engine::start();
    let registry = Registry::start();
    let reference = registry.push(&engine, IMAGE, "team/deep/app:1");
    engine.docker(&["rmi", IMAGE]).expect("a removal");
    let login = |user: &str, password: &str| {
        use base64::Engine as _;
        let directory = tempfile::tempdir().expect("a directory");
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let config = json!({ "auths": { registry.host(): { "auth": auth } } });
        std::fs::write(directory.path().join("config.json"), config.to_string()).expect("a configuration");
        directory
    };
    let good = login("reeve", "secret");
    let docker = |directory: &tempfile::TempDir| {
        Docker::new(&engine.address())
            .expect("an address")
            .with_credentials(directory.path().to_owned())
    };
    let image = reference.parse().expect("an image");

    let (wrong, none) = (login("reeve", "wrong"), tempfile::tempdir().expect("a directory"));
    for directory in [&wrong, &none] {
        let begun = std::time::Instant::now();
        let error = docker(directory)
            .pull(&image, None, silent())
            .await
            .expect_err("it is refused");
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        assert!(!format!("{error:?}").contains("wrong"), "a secret is told");
        assert!(begun.elapsed() < Duration::from_secs(5), "a refusal is not retried");
    }
    let allowed = docker(&good);
    let missing = format!("{}/team/deep/app:2", registry.host())
        .parse()
        .expect("an image");
    let error = allowed.pull(&missing, None, silent()).await.expect_err("there is none");
    assert_eq!(error.kind, ErrorKind::ImageNotFound, "{error}");

    let told: Arc<Mutex<Vec<PullProgress>>> = Arc::default();
    let heard = Arc::clone(&told);
    let sink: ProgressSink = Arc::new(move |progress| heard.lock().expect("a lock").push(progress));
    let id = allowed.pull(&image, None, sink).await.expect("a pull");
    assert_eq!(allowed.image(&image).await.expect("a look-up"), Some(id.clone()));
    let told = told.lock().expect("a lock").clone();
    assert!(
        !told.is_empty() && told.windows(2).all(|pair| pair[0].percent <= pair[1].percent),
        "{told:?}"
    );

    // By digest, with a tag beside it that is not there.
    let digests = engine
        .docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &reference])
        .expect("a digest");
    let digest = digests.split_once('@').expect("a digest").1;
    engine.docker(&["rmi", "-f", &id.id.0]).expect("a removal");
    let pinned: schemas::image::ImageRef = format!("{}/team/deep/app:9@{digest}", registry.host())
        .parse()
        .expect("an image");
    assert_eq!(allowed.image(&pinned).await.expect("a look-up"), None);
    assert_eq!(
        allowed.pull(&pinned, None, silent()).await.expect("a pull by digest"),
        id
    );
    assert_eq!(allowed.image(&pinned).await.expect("a look-up"), Some(id));
    let own = labels();
    let mut pinned_spec = spec(json!({}));
    pinned_spec.image = pinned;
    let name = instance("web", "1");
    let request = CreateRequest {
        seat: None,
        name: "default.web.1.1",
        instance: &name,
        spec: &pinned_spec,
        labels: &own,
        ports: &[],
        files: &[],
        secrets: &[],
        addresses: &schemas::records::Addresses::default(),
        depends_on: &[],
        gate: &agent::policy::Gate::open(),
    };
    allowed
        .create(request)
        .await
        .expect("a container of an image by digest");

    // No registry at all: a passing fault, tried again until it is there.
    let port = support::free_port();
    let absent: schemas::image::ImageRef = format!("127.0.0.1:{port}/app:1").parse().expect("an image");
    let attempts = Arc::new(AtomicUsize::new(0));
    let requests = Arc::clone(&attempts);
    std::thread::spawn(move || failing_registry(port, &requests));
    let pulling = tokio::time::timeout(Duration::from_secs(60), async {
        let docker = docker(&none);
        let pull = docker.pull(&absent, None, silent());
        tokio::pin!(pull);
        loop {
            tokio::select! {
                done = &mut pull => panic!("it ended: {done:?}"),
                () = tokio::time::sleep(Duration::from_millis(50)) => if attempts.load(Ordering::Relaxed) >= 6 { break },
            }
        }
    });
    pulling.await.expect("a failing registry is asked again and again");
}

/// A registry that has only the status 500 to say.
fn failing_registry(port: u16, requests: &AtomicUsize) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a listener");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        requests.fetch_add(1, Ordering::Relaxed);
        let mut request = [0; 4_096];
        let _size = stream.read(&mut request);
        let _sent =
            stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}
