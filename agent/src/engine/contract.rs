//! What every engine must do, run against the one in memory and against a real Docker: so that a test which trusts the
//! first may be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use schemas::container::ContainerSpec;
use schemas::names::InstanceName;
use schemas::records::AssignedPort;
use serde_json::{Value, json};

use super::docker::Docker;
use super::fake::FakeEngine;
use super::{
    Action, CLUSTER_LABEL, ContainerRuntime, ContainerState, CreateRequest, EngineError, ErrorKind, Event, Observed,
};

#[path = "../../tests/support/mod.rs"]
mod support;

const CLUSTER: &str = "contract";

fn instance(slot: &str) -> InstanceName {
    InstanceName {
        namespace: "default".parse().expect("a namespace"),
        workload: "web".parse().expect("a name"),
        slot: slot.parse().expect("a slot"),
    }
}

fn spec(more: &Value) -> ContainerSpec {
    let mut spec = json!({ "image": support::IMAGE, "command": ["/bin/sleep", "1000"], "stopSignal": "SIGKILL" });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).expect("a spec")
}

struct Hand<'a> {
    engine: &'a dyn ContainerRuntime,
}

impl Hand<'_> {
    async fn create(
        &self,
        name: &str,
        slot: &str,
        spec: &ContainerSpec,
        ports: &[AssignedPort],
    ) -> super::Result<String> {
        let labels = BTreeMap::from([
            (CLUSTER_LABEL.to_owned(), CLUSTER.to_owned()),
            ("reeve.slot".to_owned(), slot.to_owned()),
        ]);
        let instance = instance(slot);
        let request = CreateRequest {
            seat: None,
            name,
            instance: &instance,
            spec,
            labels: &labels,
            ports,
            files: &[],
            secrets: &[],
            addresses: &schemas::records::Addresses::default(),
            depends_on: &[],
            gate: &crate::policy::Gate::open(),
        };
        self.engine.create(request).await.map(|created| created.id)
    }
    async fn listed(&self, id: &str) -> Option<Observed> {
        self.engine
            .list(CLUSTER)
            .await
            .expect("a list")
            .into_iter()
            .find(|one| one.id == id)
    }
    async fn state(&self, id: &str) -> ContainerState {
        self.listed(id).await.expect("it is listed").state
    }
}

fn kind<T: std::fmt::Debug>(result: super::Result<T>) -> ErrorKind {
    let error: EngineError = result.expect_err("it must fail");
    assert!(
        !error.said.is_empty() && !error.act.is_empty() && !error.remedy().is_empty(),
        "{error:?}"
    );
    error.kind
}

async fn contract(engine: Arc<dyn ContainerRuntime>, port: u16) {
    let hand = Hand {
        engine: engine.as_ref(),
    };
    let grace = Duration::from_secs(10);
    assert!(engine.version().await.expect("a version").api >= super::OLDEST_API);
    let info = engine.info().await.expect("what the host has");
    assert!(
        info.cpus > 0 && info.memory_bytes > 0 && info.disk_free_bytes.is_some(),
        "{info:?}"
    );

    let mut events = engine.events(CLUSTER);
    let connected = tokio::time::timeout(grace, events.next())
        .await
        .expect("an event in time");
    assert_eq!(connected, Some(Event::Connected));

    // Images.
    let image = support::IMAGE.parse().expect("an image");
    let missing = "reeve.test/missing:1".parse().expect("an image");
    assert!(engine.image(&image).await.expect("a look-up").is_some());
    assert_eq!(engine.image(&missing).await.expect("a look-up"), None);
    let nothing = spec(&json!({ "image": "reeve.test/missing:1" }));
    assert_eq!(
        kind(hand.create("default.web.9.1", "9", &nothing, &[]).await),
        ErrorKind::ImageNotFound
    );

    // A network that is not there is no container's fault, and can be made.
    let namespace = instance("1").namespace;
    let plain = spec(&json!({}));
    engine.ensure_network(CLUSTER, &namespace).await.expect("a network");
    engine
        .ensure_network(CLUSTER, &namespace)
        .await
        .expect("the same network");

    // Create, and create again.
    let published = spec(&json!({ "ports": [{ "containerPort": 80, "hostPort": port }] }));
    let ports = [AssignedPort {
        container_port: 80,
        protocol: schemas::container::Protocol::Tcp,
        host_ip: None,
        host_port: port,
    }];
    let first = hand
        .create("default.web.1.1", "1", &published, &ports)
        .await
        .expect("a container");
    assert_eq!(
        kind(hand.create("default.web.1.1", "1", &plain, &[]).await),
        ErrorKind::Conflict {
            holder: Some(first.clone())
        }
    );
    let seen = hand.listed(&first).await.expect("it is listed");
    assert_eq!(
        (seen.name.as_str(), seen.state, seen.image.as_str()),
        ("default.web.1.1", ContainerState::Created, support::IMAGE)
    );
    assert_eq!(seen.labels["reeve.slot"], "1");
    assert!(engine.list("another").await.expect("a list").is_empty());
    let unassigned = hand.create("default.web.8.1", "8", &published, &[]).await;
    assert_eq!(kind(unassigned), ErrorKind::Refused);

    // Start, twice.
    engine.start(&first).await.expect("a start");
    engine.start(&first).await.expect("a start of what runs");
    let seen = hand.listed(&first).await.expect("it is listed");
    assert_eq!(seen.state, ContainerState::Running);
    assert_eq!(seen.networks.keys().collect::<Vec<_>>(), ["reeve-contract-default"]);
    assert_eq!(seen.networks["reeve-contract-default"].addresses.len(), 1);
    let inspection = engine.inspect(&first).await.expect("an inspection");
    assert_eq!(inspection.observed.networks, seen.networks);
    let started_at = inspection
        .observed
        .details
        .as_ref()
        .and_then(|details| details.started_at.clone());
    assert!(started_at.is_some() && inspection.pid.is_some());
    assert_eq!(kind(engine.remove(&first).await), ErrorKind::Conflict { holder: None });
    engine.unpause(&first).await.expect("an unpause of what is not paused");
    engine
        .connect(CLUSTER, &first, &instance("1"))
        .await
        .expect("a connect of what is connected");

    // A port is had once.
    let second = hand
        .create("default.web.2.1", "2", &published, &ports)
        .await
        .expect("a container");
    assert_eq!(
        kind(engine.start(&second).await),
        ErrorKind::PortTaken { port: Some(port) }
    );
    assert_ne!(hand.state(&second).await, ContainerState::Running);
    assert_eq!(
        kind(engine.rename(&second, "default.web.1.1").await),
        ErrorKind::Conflict {
            holder: Some(first.clone())
        }
    );
    engine.rename(&second, "renamed").await.expect("a rename");
    assert_eq!(hand.listed(&second).await.expect("it is listed").name, "renamed");

    // Commands and use.
    let run = |command: &str| vec![command.to_owned()];
    assert_eq!(
        engine
            .exec(&first, &run("/bin/true"), grace)
            .await
            .expect("a command")
            .code,
        0
    );
    assert_eq!(
        engine
            .exec(&first, &run("/bin/false"), grace)
            .await
            .expect("a command")
            .code,
        1
    );
    let stats = engine.stats(&first).await.expect("a sample");
    assert!(stats.memory_bytes > 0, "{stats:?}");

    // Limits in place.
    let limited = spec(&json!({ "resources": { "limits": { "memory": "64Mi", "cpu": "500m" } } }));
    engine.update_limits(&first, &limited).await.expect("an update");
    let limits = engine
        .inspect(&first)
        .await
        .expect("an inspection")
        .observed
        .details
        .expect("details")
        .limits;
    assert_eq!((limits.memory, limits.nano_cpus), (64 << 20, 500_000_000));
    engine.update_limits(&first, &plain).await.expect("an update back");
    let limits = engine
        .inspect(&first)
        .await
        .expect("an inspection")
        .observed
        .details
        .expect("details")
        .limits;
    assert_eq!((limits.memory, limits.nano_cpus), (0, 0));

    // Ends.
    engine.stop(&first, grace).await.expect("a stop");
    engine.stop(&first, grace).await.expect("a stop of what has ended");
    assert!(matches!(hand.state(&first).await, ContainerState::Exited { code: Some(code) } if code != 0));
    let ended = engine.inspect(&first).await.expect("an inspection").observed;
    assert!(ended.details.is_some_and(|details| details.exit_code.is_some()));
    assert!(matches!(
        kind(engine.exec(&first, &run("/bin/true"), grace).await),
        ErrorKind::Conflict { .. }
    ));
    engine.start(&first).await.expect("a start again");
    let again = engine
        .inspect(&first)
        .await
        .expect("an inspection")
        .observed
        .details
        .and_then(|details| details.started_at);
    assert_ne!(again, started_at);
    engine.kill(&first).await.expect("a kill");
    while hand.state(&first).await == ContainerState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.kill(&first).await.expect("a kill of what has ended");
    engine.remove(&first).await.expect("a removal");
    engine.remove(&first).await.expect("a removal of what is gone");
    engine.stop(&first, grace).await.expect("a stop of what is gone");
    engine.kill(&first).await.expect("a kill of what is gone");
    assert_eq!(kind(engine.inspect(&first).await), ErrorKind::NotFound);
    assert_eq!(kind(engine.start(&first).await), ErrorKind::NotFound);
    assert_eq!(hand.listed(&first).await, None);
    engine.remove(&second).await.expect("a removal");

    // Networks: those of other namespaces go, unless a container is up in one, or they are another cluster's.
    let namespace = |name: &str| name.parse::<schemas::names::Namespace>().expect("a namespace");
    engine
        .ensure_network(CLUSTER, &namespace("left"))
        .await
        .expect("a network");
    engine
        .ensure_network("elsewhere", &namespace("left"))
        .await
        .expect("a network of the same namespace");
    let user = hand
        .create("default.web.3.1", "3", &plain, &[])
        .await
        .expect("a container");
    engine.start(&user).await.expect("a start");
    let keep = BTreeSet::new();
    engine.drop_networks(CLUSTER, &keep).await.expect("a tidying");
    let joined = |id: String, slot: &'static str| {
        let engine = engine.clone();
        async move { engine.connect(CLUSTER, &id, &instance(slot)).await }
    };
    joined(user.clone(), "3").await.expect("a network in use stays");
    let elsewhere = InstanceName {
        namespace: namespace("left"),
        ..instance("3")
    };
    assert_eq!(
        kind(engine.connect(CLUSTER, &user, &elsewhere).await),
        ErrorKind::NotFound
    );
    engine
        .connect("elsewhere", &user, &elsewhere)
        .await
        .expect("another cluster's stays");
    engine.kill(&user).await.expect("a kill");
    while hand.state(&user).await == ContainerState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.remove(&user).await.expect("a removal");
    let keep = BTreeSet::from([namespace("default")]);
    engine.drop_networks(CLUSTER, &keep).await.expect("a tidying");
    let kept = hand
        .create("default.web.4.1", "4", &plain, &[])
        .await
        .expect("a container");
    engine.start(&kept).await.expect("a network that is kept stays");
    engine.kill(&kept).await.expect("a kill");
    while hand.state(&kept).await == ContainerState::Running {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    engine.remove(&kept).await.expect("a removal");
    engine
        .drop_networks(CLUSTER, &BTreeSet::new())
        .await
        .expect("a tidying");
    engine
        .ensure_network(CLUSTER, &namespace("default"))
        .await
        .expect("made again");
    assert!(engine.list(CLUSTER).await.expect("a list").is_empty());

    // All of it was told.
    let mut told = BTreeSet::new();
    while !told.contains("Removed") {
        let event = tokio::time::timeout(grace, events.next())
            .await
            .expect("an event in time")
            .expect("no end");
        match event {
            Event::Container { id, action } if id == first => {
                let word = format!("{action:?}");
                told.insert(word.split([' ', '{']).next().unwrap_or_default().to_owned());
                if let Action::Died { code } = action {
                    assert!(code.is_some());
                }
            }
            Event::Container { .. } | Event::ImageGone => {}
            Event::Connected | Event::Disconnected(_) => panic!("the stream broke: {event:?}"),
        }
    }
    for word in ["Created", "Started", "Died", "Updated", "Removed"] {
        assert!(told.contains(word), "{word} was not told: {told:?}");
    }
}

#[tokio::test]
async fn an_engine_in_memory_keeps_the_contract() {
    let engine = FakeEngine::with_images(&[support::IMAGE]);
    engine.exec_ends("/bin/false", 1);
    contract(Arc::new(engine), 18_080).await;
}

#[tokio::test]
async fn a_docker_engine_keeps_the_contract() {
    let own = support::Engine::start();
    let docker = Docker::new(&own.address()).expect("an address");
    contract(Arc::new(docker), support::free_port()).await;
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unavailable_and_may_come_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let address = format!("unix://{}/none.sock", directory.path().display());
    let docker = Docker::new(&address).expect("an engine that is down can be named");
    let error = docker.version().await.expect_err("nothing answers");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.said.contains("none.sock"), "{error}");
    let mut events = docker.events(CLUSTER);
    assert!(matches!(events.next().await, Some(Event::Disconnected(_))));
    assert!(matches!(events.next().await, Some(Event::Disconnected(_))));
}

#[tokio::test]
async fn an_engine_too_old_is_refused_with_both_versions() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = format!("tcp://{}", listener.local_addr().expect("an address"));
    let serve = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 4_096];
        let _size = stream.read(&mut request).await.expect("a request");
        let body = "{\"Version\":\"19.03.15\",\"ApiVersion\":\"1.40\"}";
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.expect("an answer");
    });
    let error = Docker::new(&address)
        .expect("an address")
        .version()
        .await
        .expect_err("too old");
    assert_eq!(error.kind, ErrorKind::TooOld);
    assert!(
        error.said.contains("19.03.15") && error.said.contains("20.10"),
        "{error}"
    );
    assert!(error.remedy().contains("upgrade"));
    serve.await.expect("served");
}

#[tokio::test]
async fn a_call_that_never_ends_is_a_timeout_that_names_it() {
    let never = std::future::pending::<super::Result<()>>();
    let error = super::wire::within("list containers", Duration::from_millis(20), never)
        .await
        .expect_err("no answer");
    assert_eq!(
        (error.kind, error.act.as_str()),
        (ErrorKind::Timeout, "list containers")
    );
}
