//! Secrets in the loop: looked at before anything stops, there without the store and after a reboot, in the engine's request
//! alone where they are variables, and gone with their container.

use schemas::records::{Handed, HandedSecret, NodeFacts};

use super::*;
use crate::secrets::SecretPlace;

const WEB: &str = "default.web.1.1";

impl Bed {
    /// Seals values for the agent's key, as it published it, and hands them to it.
    async fn hand(&self, values: &[(&str, u64, &[u8])]) -> Vec<HandedSecret> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let published = loop {
            let facts = self.store.peek(key(&Key::Node(node())));
            let facts = facts.and_then(|kv| NodeFacts::decode(&kv.value).ok());
            if let Some(found) = facts.and_then(|facts| facts.sealing_key) {
                break found;
            }
            assert!(tokio::time::Instant::now() < end, "the agent publishes no key");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let secrets: Vec<_> = values
            .iter()
            .map(|(name, n, value)| crate::secrets::testing::sealed(&published, &self.cluster, name, *n, value))
            .collect();
        self.give(&published, secrets.clone());
        secrets
    }

    fn give(&self, published: &str, secrets: Vec<HandedSecret>) {
        let handed = Handed {
            schema_version: SchemaVersion::default(),
            key: crate::secrets::testing::public(published, &self.cluster).to_string(),
            logins: Vec::new(),
            secrets,
        };
        self.store.put(key(&Key::Handed("node.n1".to_owned())), handed.encode());
    }

    /// What the container of this name sees at a path.
    fn reads(&self, container: &str, path: &str) -> Option<Vec<u8>> {
        let body = self.engine.containers().get(container)?.body.clone();
        let mounts = body["HostConfig"]["Mounts"].as_array()?.clone();
        let mount = mounts.into_iter().find(|mount| mount["Target"] == path)?;
        assert_eq!((&mount["Type"], &mount["ReadOnly"]), (&json!("bind"), &json!(true)));
        std::fs::read(mount["Source"].as_str()?).ok()
    }

    fn in_memory(&self) -> std::path::PathBuf {
        SecretPlace::new(self.dir.path()).ready().unwrap().to_owned()
    }

    /// All that the agent has on disk, and all that it has told.
    fn everything(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut open = vec![self.dir.path().to_owned()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if let Ok(bytes) = std::fs::read(&path) {
                    all.extend(bytes);
                }
            }
        }
        for kv in self.store.dump() {
            all.extend(&kv.value);
        }
        for container in self.engine.containers().values() {
            all.extend(container.body["Labels"].to_string().into_bytes());
        }
        all
    }
}

/// Takes what was laid out in memory away again.
struct Swept(std::path::PathBuf);
impl Drop for Swept {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn getting(image: &str, one: &HandedSecret) -> Value {
    let mut spec = spec(image);
    spec["container"]["secrets"] = json!([
        { "secret": one.name, "edition": one.edition },
        { "secret": one.name, "env": "PASSWORD", "edition": one.edition },
    ]);
    spec
}

fn unavailable(report: &Report) -> Option<String> {
    let failing = one(report)?.failing.as_ref()?;
    (failing.reason == FailingReason::SecretUnavailable).then(|| failing.message.clone())
}

async fn started() -> (Bed, Swept, Assigned) {
    let mut bed = Bed::new();
    let swept = Swept(bed.in_memory());
    bed.start();
    let handed = bed.hand(&[("password", 1, b"hunter2-canary")]).await;
    let web = bed.accept("web", 1, 1, getting("app:1", &handed[0]));
    bed.assign(std::slice::from_ref(&web));
    bed.until("ready", ready).await;
    (bed, swept, web)
}

fn contains(all: &[u8], word: &[u8]) -> bool {
    all.windows(word.len()).any(|found| found == word)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_gets_its_secrets_and_nothing_else_of_the_agents_has_them() {
    let (mut bed, _swept, mut web) = started().await;
    assert_eq!(bed.reads(WEB, "/run/secrets/password").unwrap(), b"hunter2-canary");
    let body = bed.engine.containers()[WEB].body.clone();
    let variables = body["Env"].as_array().unwrap();
    assert!(variables.contains(&json!("PASSWORD=hunter2-canary")), "{variables:?}");
    assert!(!contains(&bed.everything(), b"hunter2"));
    web.state = AssignedState::Absent;
    bed.assign(&[web]);
    let place = bed.in_memory();
    bed.until("gone", |report| report.instances.is_empty()).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    while place.join(WEB).exists() {
        assert!(tokio::time::Instant::now() < end, "its secrets go with it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_handed_or_does_not_open_stops_nothing_and_is_told_until_it_is_there() {
    let (mut bed, _swept, _web) = started().await;
    let next = bed.hand(&[("password", 2, b"\xff\x00")]).await;
    let published = {
        let kv = bed.store.peek(key(&Key::Node(node()))).unwrap();
        NodeFacts::decode(&kv.value).unwrap().sealing_key.unwrap()
    };
    bed.give(&published, Vec::new());
    let web = bed.accept("web", 1, 2, getting("app:1", &next[0]));
    bed.assign(&[web]);
    let report = bed.until("told", |report| unavailable(report).is_some()).await;
    let line = one(&report).unwrap();
    assert_eq!((line.n, line.ready, line.failing.as_ref().unwrap().n), (1, true, 2));
    let said = unavailable(&report).unwrap();
    assert!(said.contains("reeve secret set password"), "{said}");
    // It comes, and is no text.
    bed.give(&published, next);
    bed.until("told", |report| {
        unavailable(report).is_some_and(|said| said.contains("no variable"))
    })
    .await;
    assert_eq!(bed.engine.running(), [WEB.to_owned()].into(), "the old one serves on");
    let third = bed.hand(&[("password", 3, b"hunter3")]).await;
    let web = bed.accept("web", 1, 3, getting("app:1", &third[0]));
    bed.assign(&[web]);
    bed.until("goes on by itself", |report| {
        one(report).is_some_and(|line| line.n == 3 && line.ready && line.failing.is_none())
    })
    .await;
    assert_eq!(
        bed.reads("default.web.1.3", "/run/secrets/password").unwrap(),
        b"hunter3"
    );
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_store_gone_and_the_memory_empty_secrets_are_there_after_a_restart() {
    let (mut bed, _swept, _web) = started().await;
    bed.kill().await;
    bed.store.set_down(true);
    // As a reboot does.
    std::fs::remove_dir_all(bed.in_memory()).unwrap();
    bed.engine.crash(WEB, 3);
    bed.start();
    bed.engine_until("started again", |engine| {
        engine.calls().iter().filter(|call| call.starts_with("start")).count() == 2
    })
    .await;
    assert_eq!(bed.reads(WEB, "/run/secrets/password").unwrap(), b"hunter2-canary");
    bed.engine.remove_by_hand(WEB);
    bed.engine_until("created again", |engine| {
        engine.calls().iter().filter(|call| call.starts_with("create")).count() == 2 && !engine.running().is_empty()
    })
    .await;
    assert_eq!(bed.reads(WEB, "/run/secrets/password").unwrap(), b"hunter2-canary");
    let variables = bed.engine.containers()[WEB].body["Env"].clone();
    assert!(variables.to_string().contains("PASSWORD=hunter2-canary"));
    assert!(!contains(&bed.everything(), b"hunter2"));
    bed.store.set_down(false);
    bed.until("reported", ready).await;
    bed.stop().await;
}
