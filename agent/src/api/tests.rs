//! The API at its socket: who gets in, what is refused, and that nothing a guest sends disturbs the others.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use planner::node::Ledger;
use runtime::KeyValue;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind as Resource;
use schemas::records::{ClusterId, Order, Report, SchemaVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::ask::{Ask, Asked, Named, Why};
use super::wire::{Frame, Kind, MAX_ASK, Reader, write};
use super::*;
use crate::engine::fake::FakeEngine;
use crate::events_out::Told;
use crate::seen::Seen;

/// The API of node n1 with an engine that has nothing near it; ends with the test.
struct Served {
    dir: tempfile::TempDir,
    serving: JoinHandle<()>,
    events: mpsc::Receiver<Told>,
    seen: Arc<Seen>,
    _directory: watch::Sender<Option<Arc<Directory>>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Served {
    async fn new(rights: Rights) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = ApiOptions {
            rights,
            ..ApiOptions::default()
        };
        let policy = crate::policy::PolicyOptions {
            file: dir.path().join("policy.yaml"),
            ..crate::policy::PolicyOptions::default()
        };
        let gate = Arc::new(crate::policy::Gate::new(policy, dir.path()));
        let doors = open(dir.path(), &options).await.expect("it opens");
        let cluster = ClusterId::from_random([1; 16]);
        let report = Report {
            network: Default::default(),
            virtual_ips: Default::default(),
            schema_version: SchemaVersion::default(),
            cluster: cluster.clone(),
            node: "n1".parse().expect("a name"),
            applied: Order::default(),
            instances: Vec::new(),
            conditions: Vec::new(),
        };
        let (directory, directories) =
            watch::channel(Some(Arc::new(Directory::of(&report, &Ledger::default(), Vec::new()))));
        let (tell, events) = mpsc::channel(8);
        let node = "n1".parse().expect("a name");
        let seen = Arc::new(Seen::new(&cluster, &node, dir.path().join("names")));
        let shared = Shared {
            node: "n1".parse().expect("a name"),
            cluster,
            version: "1".to_owned(),
            near: None,
            engine: Arc::new(FakeEngine::new()),
            directories,
            events: tell,
            data_dir: dir.path().to_owned(),
            gate,
            engine_host: None,
            shelf: Shelf::of(declared()),
            seen: seen.clone(),
        };
        Self {
            serving: tokio::spawn(doors.serve(shared)),
            dir,
            events,
            seen,
            _directory: directory,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join(SOCKET)
    }

    fn client(&self) -> Client {
        Client::new(Way::Socket(self.socket()))
    }

    async fn why(&self, ask: Ask) -> Why {
        let asked = Asked {
            by: "me@here".to_owned(),
            ask,
        };
        match self.client().ask(&"n1".parse().expect("a name"), &asked).await {
            Err(AskError::Refused(refusal)) => refusal.why,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it is done"),
        }
    }
}

/// What stands in the store: `say`, which runs in web.
fn declared() -> BTreeMap<ResourceKey, KeyValue> {
    let key = ResourceKey {
        namespace: Some(Namespace::default()),
        kind: Resource::Command,
        name: "say".parse().expect("a name"),
    };
    let text = "apiVersion: reeve/v1\nkind: Command\nmetadata: {name: say}\n\
                spec: {service: web, command: [echo, \"${what}\"], parameters: [{name: what}]}\n";
    let kv = KeyValue {
        key: Vec::new(),
        value: text.into(),
        create_revision: 3,
        mod_revision: 3,
        version: 1,
        lease: 0,
    };
    [(key, kv)].into()
}

fn run(command: &str, what: &str) -> Ask {
    Ask::Run {
        command: command.parse().expect("a name"),
        revision: 3,
        instance: web(),
        parameters: [("what".to_owned(), what.to_owned())].into(),
        arguments: Vec::new(),
        input: false,
        terminal: None,
    }
}

fn web() -> Named {
    Named {
        namespace: Default::default(),
        workload: "web".parse().expect("a name"),
        slot: "1".parse().expect("a slot"),
    }
}

fn exec(command: &str) -> Ask {
    Ask::Exec {
        instance: web(),
        command: vec![command.to_owned()],
        input: false,
        terminal: None,
    }
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_says_whose_it_is() {
    let served = Served::new(Rights::default()).await;
    let mode = std::fs::metadata(served.socket())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let who = served.client().who().await.expect("it answers");
    assert_eq!(who.node, "n1");
    let other: schemas::names::NodeName = "n2".parse().expect("a name");
    let asked = Asked {
        by: String::new(),
        ask: Ask::Top {},
    };
    let error = served.client().ask(&other, &asked).await.err().expect("it is n1");
    assert!(matches!(error, AskError::OtherNode { .. }), "{error}");
    // A socket that an agent left behind is no obstacle to the next.
    drop(
        open(served.dir.path(), &ApiOptions::default())
            .await
            .expect("it opens again"),
    );
}

#[tokio::test]
async fn a_command_that_is_not_allowed_is_refused_before_anything_else() {
    let mut served = Served::new(Rights::default()).await;
    assert_eq!(served.why(exec("sh")).await, Why::Denied);
    let forward = Ask::Forward {
        instance: web(),
        port: 80,
    };
    assert_eq!(served.why(forward).await, Why::Denied);
    assert!(served.events.try_recv().is_err());
    assert!(!served.dir.path().join("exec.jsonl").exists());
    let served = Served::new(Rights { exec: true }).await;
    assert_eq!(
        served.why(exec("sh")).await,
        Why::Engine,
        "this engine has nothing near it"
    );
}

/// A conversation that was begun by hand.
async fn upgraded(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.expect("a connection");
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it listens");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn whatever_a_guest_sends_he_hurts_himself_only() {
    let served = Served::new(Rights { exec: true }).await;
    // No request, another one, one that goes on for ever.
    for bytes in [
        &b"\x00\x01\x02\xff\r\n\r\n"[..],
        b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/near HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(served.socket()).await.expect("a connection");
        stream.write_all(bytes).await.expect("it listens");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 101"));
    }
    let mut endless = UnixStream::connect(served.socket()).await.expect("a connection");
    let _ = endless.write_all(b"GET / HTTP/1.1\r\nX: ").await;
    let _ = endless.write_all(&vec![b'x'; 1 << 20]).await;
    // Frames that are none, too large, of the wrong kind, or no question.
    let texts: [&[u8]; 4] = [
        b"{}",
        b"not JSON",
        b"{\"by\":\"x\",\"ask\":{\"act\":\"burn\"}}",
        &[b'['; 60_000],
    ];
    for text in texts {
        let mut stream = upgraded(&served.socket()).await;
        let frame = Frame::new(Kind::Ask, text.to_vec());
        write(&mut stream, &frame).await.expect("it listens");
        let answer = Reader::new(&mut stream, MAX_ASK).next().await.expect("a frame");
        let said = String::from_utf8_lossy(&answer.expect("an answer").payload).into_owned();
        assert!(said.contains("NotUnderstood"), "{said}");
    }
    for bytes in [
        &[1, 255, 255, 255, 255][..],
        &[99, 0, 0, 0, 0],
        &[3, 0, 0, 0, 1, 0],
        &[1, 0, 0],
    ] {
        let mut stream = upgraded(&served.socket()).await;
        stream.write_all(bytes).await.expect("it listens");
        stream.shutdown().await.expect("it listens");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    // All that was said, and the next guest is served as the first.
    assert_eq!(served.client().who().await.expect("it answers").node, "n1");
    let logs = Ask::Logs {
        instance: web(),
        follow: false,
        since: None,
        tail: None,
        after: None,
    };
    assert_eq!(served.why(logs).await, Why::Engine);
}

fn certified(role: Option<&str>, rights: Option<&str>) -> Caller {
    Caller::Certificate {
        subject: "CN=somebody".to_owned(),
        role: role.map(str::to_owned),
        rights: rights.map(|text| text.parse().expect("rights")),
    }
}

const INSIDE: [Act; 5] = [Act::Exec, Act::Run, Act::Attach, Act::Forward, Act::Copy];

#[tokio::test]
async fn a_named_command_is_looked_up_before_anything_is_done_and_after_its_caller_is_known() {
    // The node allows none: what there is, is nobody's business.
    let closed = Served::new(Rights::default()).await;
    assert_eq!(closed.why(run("nothing", "x")).await, Why::Denied);
    let served = Served::new(Rights { exec: true }).await;
    assert_eq!(served.why(run("nothing", "x")).await, Why::NotHere);
    assert_eq!(served.why(run("say", "--version")).await, Why::NotUnderstood);
    // All is well, as far as the engine, which here has no way near its containers.
    assert_eq!(served.why(run("say", "x")).await, Why::Engine);
}

#[test]
fn rights_to_named_commands_are_no_rights_to_others() {
    let open = Rights { exec: true };
    let (shop, other): (Namespace, Namespace) = ("shop".parse().expect("a name"), "other".parse().expect("a name"));
    let check =
        |rights: &str, act, about: Option<&Namespace>| may(&certified(Some("person"), Some(rights)), act, about, open);
    for (rights, here, there) in [
        ("viewer", false, false),
        ("viewer+run", true, true),
        ("viewer+run=shop", true, false),
        ("operator", false, false),
        ("operator+host", false, false),
        ("namespaces=shop", false, false),
        ("namespaces=shop+exec", true, false),
        ("operator+exec", true, true),
        ("admin", true, true),
    ] {
        assert_eq!(check(rights, Act::Run, Some(&shop)).is_ok(), here, "{rights}");
        assert_eq!(check(rights, Act::Run, Some(&other)).is_ok(), there, "{rights}");
        // About no namespace at all: for who has all of it.
        let all = ["operator+exec", "admin"].contains(&rights);
        assert_eq!(check(rights, Act::Run, None).is_ok(), all, "{rights}");
        for act in [Act::Exec, Act::Attach, Act::Forward, Act::Copy] {
            let more = here && !rights.starts_with("viewer");
            assert_eq!(check(rights, act, Some(&shop)).is_ok(), more, "{rights} {act:?}");
            assert_eq!(
                check(rights, act, Some(&other)).is_ok(),
                more && there,
                "{rights} {act:?}"
            );
        }
        let host = ["operator+host", "admin"].contains(&rights);
        assert_eq!(check(rights, Act::Host, None).is_ok(), host, "{rights}");
        assert_eq!(
            check(rights, Act::RemoveImages, None).is_ok(),
            rights.starts_with("operator") || rights == "admin"
        );
    }
    let denied = check("viewer+run=shop", Act::Run, Some(&other)).expect_err("another namespace");
    assert!(denied.message.ends_with("named commands in that namespace"), "{denied}");
    let denied = check("namespaces=shop", Act::Exec, Some(&shop)).expect_err("no commands");
    assert!(
        denied.remedy.ends_with("--rights namespaces=shop+exec`"),
        "{}",
        denied.remedy
    );
    let denied = check("viewer", Act::Run, Some(&shop)).expect_err("no commands");
    assert!(denied.remedy.ends_with("--rights viewer+run`"), "{}", denied.remedy);
    // The node has the last word for these as for others.
    let closed = Rights::default();
    assert!(
        may(
            &certified(Some("person"), Some("viewer+run")),
            Act::Run,
            Some(&shop),
            closed
        )
        .is_err()
    );
    assert!(may(&certified(Some("node"), None), Act::Run, Some(&shop), open).is_err());
}

#[test]
fn only_reading_is_allowed_until_the_node_says_so() {
    let callers = [
        Caller::Local { uid: 0 },
        certified(None, None),
        certified(Some("person"), Some("admin")),
        certified(Some("person"), Some("operator+exec")),
    ];
    for caller in &callers {
        for act in [Act::Logs, Act::Top] {
            assert!(may(caller, act, None, Rights::default()).is_ok());
        }
        for act in INSIDE {
            let denied = may(caller, act, None, Rights::default()).expect_err("it is off");
            assert!(denied.remedy.contains("--allow-exec"));
            assert!(may(caller, act, None, Rights { exec: true }).is_ok());
        }
    }
}

#[test]
fn a_nodes_certificate_opens_nothing_on_other_nodes() {
    let node = certified(Some("node"), None);
    for act in [Act::Logs, Act::Top].into_iter().chain(INSIDE) {
        assert!(may(&node, act, None, Rights { exec: true }).is_err());
    }
}

#[test]
fn a_person_does_what_its_rights_cover_and_no_more() {
    let open = Rights { exec: true };
    let shop: Namespace = "shop".parse().expect("a name");
    let other: Namespace = "other".parse().expect("a name");
    let allowed = |rights: Option<&str>, act, about: Option<&Namespace>| {
        may(&certified(Some("person"), rights), act, about, open).is_ok()
    };
    for act in INSIDE {
        for rights in ["viewer", "operator", "operator+host", "namespaces=shop"] {
            assert!(!allowed(Some(rights), act, Some(&shop)), "{rights} {act:?}");
        }
        assert!(allowed(Some("operator+exec"), act, Some(&shop)));
    }
    assert!(allowed(Some("viewer"), Act::Logs, Some(&shop)) && allowed(Some("viewer"), Act::Images, None));
    assert!(!allowed(Some("viewer"), Act::RemoveImages, None) && allowed(Some("operator"), Act::RemoveImages, None));
    for rights in [
        "viewer",
        "viewer+run",
        "operator",
        "operator+exec+host",
        "namespaces=shop+exec",
    ] {
        assert!(!allowed(Some(rights), Act::RotateKey, None), "{rights}");
    }
    assert!(allowed(Some("admin"), Act::RotateKey, None));
    assert!(may(&certified(Some("node"), None), Act::RotateKey, None, open).is_err());
    assert!(allowed(Some("namespaces=shop"), Act::Logs, Some(&shop)));
    assert!(!allowed(Some("namespaces=shop"), Act::Logs, Some(&other)));
    // A certificate of a later release, with rights that mean nothing here.
    assert!(!allowed(None, Act::Logs, Some(&shop)));
}

#[test]
fn commands_on_nodes_need_a_right_of_their_own() {
    let node = Rights { exec: true };
    for rights in ["viewer", "operator", "operator+exec", "namespaces=shop"] {
        assert!(
            may(&certified(Some("person"), Some(rights)), Act::Host, None, node).is_err(),
            "{rights}"
        );
    }
    for rights in ["operator+host", "operator+exec+host", "admin"] {
        assert!(
            may(&certified(Some("person"), Some(rights)), Act::Host, None, node).is_ok(),
            "{rights}"
        );
    }
}

fn on_node(command: &[&str], seconds: u32) -> Asked {
    Asked {
        by: "me@here".to_owned(),
        ask: Ask::Host {
            kind: crate::policy::NodeCommand::Exec,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            seconds,
            named: None,
        },
    }
}

/// What it wrote to its standard output, and how it ended.
async fn heard(mut talk: Talk) -> (String, super::ask::Ended) {
    let mut out = Vec::new();
    loop {
        let frame = talk.next().await.expect("it answers").expect("it has an end");
        match frame.kind {
            Kind::Stdout => out.extend_from_slice(&frame.payload),
            Kind::End => {
                let ended = serde_json::from_slice(&frame.payload).expect("JSON");
                return (String::from_utf8_lossy(&out).into_owned(), ended);
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Served {
    fn allow_commands(&self) {
        std::fs::write(self.dir.path().join("policy.yaml"), "nodeCommands: [exec]\n").expect("it is written");
    }

    async fn begins(&self, asked: &Asked) -> Talk {
        let talk = self.client().ask(&"n1".parse().expect("a name"), asked).await;
        talk.unwrap_or_else(|error| panic!("{error}"))
    }
}

#[tokio::test]
async fn a_command_on_the_node_waits_for_the_policy_and_is_run_word_by_word_and_recorded() {
    let served = Served::new(Rights { exec: true }).await;
    let asked = on_node(
        &["sh", "-c", "printf '<%s>' \"$@\"; exit 3", "sh", "a b", "ä'\"$x*"],
        60,
    );
    assert_eq!(served.why(asked.ask.clone()).await, Why::Denied, "no policy allows it");
    assert!(!served.dir.path().join("exec.jsonl").exists());
    served.allow_commands();
    let (out, ended) = heard(served.begins(&asked).await).await;
    assert_eq!(out, "<a b><ä'\"$x*>");
    assert_eq!(ended, super::ask::Ended::Exited { code: 3 });
    // The end is recorded when the conversation is over.
    let record = loop {
        let text = std::fs::read_to_string(served.dir.path().join("exec.jsonl")).expect("it is recorded");
        if text.lines().count() == 2 {
            break text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert!(record.lines().all(|line| line.contains("\"me@here\"")), "{record}");
    assert!(
        record
            .lines()
            .nth(1)
            .is_some_and(|line| line.contains("\"exitCode\":3")),
        "{record}"
    );
    let missing = on_node(&["/no/such/program"], 60).ask;
    assert_eq!(served.why(missing).await, Why::NotHere);
}

#[tokio::test]
async fn a_command_on_the_node_ends_with_its_time_and_with_its_caller_and_what_it_began_does_too() {
    let served = Served::new(Rights { exec: true }).await;
    served.allow_commands();
    let (_, ended) = heard(served.begins(&on_node(&["sleep", "1000"], 1)).await).await;
    assert!(matches!(ended, super::ask::Ended::Failed(_)), "{ended:?}");
    // Its child, too: it writes its own number, and stays.
    let asked = on_node(&["sh", "-c", "sh -c 'echo $$; exec sleep 1000' & wait"], 600);
    let mut talk = served.begins(&asked).await;
    let frame = talk.next().await.expect("it answers").expect("it says its number");
    let child = String::from_utf8_lossy(&frame.payload).trim().to_owned();
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // A zombie has ended.
        !stat.is_empty() && !stat.contains(") Z ")
    };
    assert!(lives(), "{child}");
    drop(talk);
    let mut tries = 0;
    while lives() {
        tries += 1;
        assert!(tries < 3_000, "the child outlives its caller");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The first document of an answer.
async fn said(served: &Served, ask: Ask) -> serde_json::Value {
    let asked = Asked {
        by: "me@here".to_owned(),
        ask,
    };
    let node = "n1".parse().expect("a name");
    let mut talk = served.client().ask(&node, &asked).await.expect("it begins");
    let frame = talk.next().await.expect("a frame").expect("one");
    assert_eq!(frame.kind, Kind::Data);
    serde_json::from_slice(&frame.payload).expect("JSON")
}

async fn refused(served: &Served, ask: Ask) -> Why {
    let asked = Asked {
        by: "me@here".to_owned(),
        ask,
    };
    let node = "n1".parse().expect("a name");
    match served.client().ask(&node, &asked).await {
        Err(AskError::Refused(refusal)) => refusal.why,
        Ok(_) | Err(_) => panic!("it is not refused"),
    }
}

fn network_of_n1() -> schemas::records::AssignedNetwork {
    serde_json::from_value(serde_json::json!({
        "settings": { "cidr": "127.8.0.0/16", "nodePrefix": 24, "backend": "none", "domain": "x", "port": 1 },
        "subnet": "127.8.1.0/24",
    }))
    .expect("a network")
}

#[tokio::test]
async fn another_key_is_asked_of_who_looks_after_links_and_nobody_waits_for_nobody() {
    let served = Served::new(Rights::default()).await;
    assert_eq!(refused(&served, Ask::RotateKey {}).await, Why::Busy);
    let (asks, mut asked) = mpsc::channel(1);
    served.seen.rotated_by(asks);
    let next = ask::KeyNext {
        key: "a".to_owned(),
        next: "b".to_owned(),
    };
    let answer = next.clone();
    let keeper = tokio::spawn(async move {
        let one: crate::rotation::Asked = asked.recv().await.expect("a question");
        drop(one.send(Ok(answer)));
        // Who is asked and gone does not answer.
        drop(asked.recv().await);
    });
    let said = said(&served, Ask::RotateKey {}).await;
    assert_eq!(said, serde_json::to_value(&next).expect("JSON"));
    assert_eq!(refused(&served, Ask::RotateKey {}).await, Why::Busy);
    keeper.await.expect("it ends");
}

#[tokio::test]
async fn a_nodes_end_of_the_network_is_told_and_links_are_those_of_its_peers() {
    let served = Served::new(Rights::default()).await;
    let here = said(&served, Ask::Network {}).await;
    assert!(here.get("subnet").is_none(), "{here}");
    let own = [("127.8.1.2".parse().expect("an address"), Namespace::default())].into();
    served.seen.assigned(Some(&network_of_n1()), &own);
    let peer: schemas::records::Peer = serde_json::from_value(serde_json::json!({
        "schemaVersion": SchemaVersion::default(), "cluster": ClusterId::from_random([1; 16]), "node": "n2", "subnet": "127.8.2.0/24",
        "link": { "kind": "none" },
    }))
    .expect("a peer");
    let node: schemas::names::NodeName = "n2".parse().expect("a name");
    let links = planner::network::links::Links {
        names: planner::network::links::names(&ClusterId::from_random([1; 16]), &node),
        ranges: Vec::new(),
        device: None,
        routes: Vec::new(),
        linked: [node.clone()].into(),
        refused: Vec::new(),
        why: None,
    };
    let peers = [(node.clone(), peer)].into();
    served.seen.linked(links, None, &peers, 3);
    served.seen.ping(&node, Some(400));
    served.seen.ping(&node, None);
    served.seen.ping(&"n3".parse().expect("a name"), None);
    let after = || async {
        loop {
            let here = said(&served, Ask::Network {}).await;
            // What was asked a moment ago is said again for a second.
            if here.get("subnet").is_some() {
                return here;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let here = after().await;
    assert_eq!(
        (&here["addressesUsed"], &here["addressesLeft"], &here["repairs"]),
        (&1.into(), &252.into(), &3.into()),
        "{here}"
    );
    let links = here["links"].as_array().expect("links");
    assert_eq!(links.len(), 1, "{here}");
    let link = &links[0];
    assert_eq!(
        (&link["node"], &link["asked"], &link["lost"], &link["latencyMicros"]),
        (&"n2".into(), &2.into(), &1.into(), &400.into()),
        "{here}"
    );
}

#[tokio::test]
async fn a_door_is_knocked_at_where_it_is_this_nodes_own_and_of_that_namespace() {
    let served = Served::new(Rights::default()).await;
    let door = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = door.local_addr().expect("an address");
    let knock = |namespace: &str, protocol| Ask::Knock {
        namespace: namespace.parse().expect("a namespace"),
        address: address.ip(),
        port: address.port(),
        protocol,
    };
    let tcp = schemas::container::Protocol::Tcp;
    assert_eq!(served.why(knock("default", tcp)).await, Why::NotHere, "nobody's");
    let own = [(address.ip(), Namespace::default())].into();
    served.seen.assigned(Some(&network_of_n1()), &own);
    assert_eq!(served.why(knock("other", tcp)).await, Why::NotHere, "another's");
    assert_eq!(said(&served, knock("default", tcp)).await, "open");
    let udp = schemas::container::Protocol::Udp;
    assert_eq!(said(&served, knock("default", udp)).await, "unseen");
    drop(door);
    assert_eq!(said(&served, knock("default", tcp)).await, "closed");
}

#[tokio::test]
async fn a_name_is_not_looked_up_where_there_is_no_network_or_no_server() {
    let served = Served::new(Rights::default()).await;
    let ask = |name: &str| Ask::Lookup {
        wanted: planner::network::lookup::Wanted {
            name: name.to_owned(),
            kind: planner::network::lookup::Type::A,
            from: Namespace::default(),
        },
    };
    assert_eq!(served.why(ask(&"a".repeat(254))).await, Why::NotUnderstood);
    assert_eq!(served.why(ask("db")).await, Why::NotHere);
    served.seen.assigned(Some(&network_of_n1()), &BTreeMap::new());
    assert_eq!(served.why(ask("db")).await, Why::Engine);
}

#[test]
fn who_has_some_namespaces_looks_up_names_in_the_name_of_those_alone() {
    let caller = Caller::Certificate {
        subject: "CN=anna".to_owned(),
        role: Some("person".to_owned()),
        rights: Some("namespaces=shop".parse().expect("rights")),
    };
    let may = |namespace: &str| {
        let namespace = namespace.parse().expect("a namespace");
        may(&caller, Act::Network, Some(&namespace), Rights::default()).is_ok()
    };
    assert!(may("shop") && !may("bank"));
}
