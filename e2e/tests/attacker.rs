//! A host is lost to an attacker: with its certificate and key he writes real etcd however he can. Nothing is started, stopped
//! or changed on another node, and people are told.

use std::time::Duration;

use e2e::seats::{GLOBAL, agent, agent_dir, install_token, on, server, serves, succeeds};
use e2e::{Host, Lab, eventually};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, PutOptions, TlsOptions, Txn, TxnOp};
use serde_json::Value;
use trust::realm::Realm;
use trust::sign::{Pen, unweave};

/// The attacker: what the host he took had on its disk, and a client of his own.
struct Thief {
    client: Client,
    pen: Pen,
}

/// Ways to write one key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    /// In a transaction within a transaction, where etcd 3.4 does not ask who may.
    Nested,
    /// As that, under a lease of his own.
    Leased,
}
const WAYS: [Way; 3] = [Way::Plain, Way::Nested, Way::Leased];

impl Thief {
    async fn of(host: &Host, seed: &Host) -> Self {
        let read = |name: &str| std::fs::read_to_string(agent_dir(host).join("member").join(name)).expect(name);
        let (ca, cert, key) = (read("ca.crt"), read("node.crt"), read("node.key"));
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&ca))
            .identity(Identity::from_pem(&cert, &key));
        let options = ConnectOptions::new()
            .with_tls(tls)
            .with_connect_timeout(Duration::from_secs(5))
            .with_timeout(Duration::from_secs(5));
        let client = Client::connect([format!("https://{}:2379", seed.address)], Some(options));
        let certificate = trust::certificate::Certificate::from_pem(&cert).expect("a certificate");
        let pen = Pen::new(certificate, trust::key::Key::from_pem(&key).expect("a key"));
        Self {
            client: client.await.expect("the store takes his certificate"),
            pen: pen.expect("his own"),
        }
    }

    async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.client.clone().get(key, None).await.ok()?;
        Some(found.kvs().first()?.value().to_vec())
    }

    /// Writes, or is refused by the store.
    async fn put(&self, way: Way, key: &str, value: &[u8]) -> Result<(), String> {
        let mut client = self.client.clone();
        let written = match way {
            Way::Plain => client.put(key, value, None).await.map(drop),
            Way::Nested => {
                let inner = Txn::new().and_then([TxnOp::put(key, value, None)]);
                client.txn(Txn::new().and_then([TxnOp::txn(inner)])).await.map(drop)
            }
            Way::Leased => {
                let lease = client.lease_grant(600, None).await.map_err(|error| error.to_string())?;
                let options = PutOptions::new().with_lease(lease.id());
                let inner = Txn::new().and_then([TxnOp::put(key, value, Some(options))]);
                client.txn(Txn::new().and_then([TxnOp::txn(inner)])).await.map(drop)
            }
        };
        written.map_err(|error| error.to_string())
    }

    async fn delete(&self, key: &str) -> Result<(), String> {
        let mut client = self.client.clone();
        if client.delete(key, None).await.is_ok() {
            return Ok(());
        }
        let inner = Txn::new().and_then([TxnOp::delete(key, None)]);
        let deleted = client.txn(Txn::new().and_then([TxnOp::txn(inner)])).await;
        deleted.map(drop).map_err(|error| error.to_string())
    }
}

fn log(host: &Host) -> String {
    std::fs::read_to_string(host.dir.join("agent.log")).unwrap_or_default()
}

/// Writes again and again, in each way that goes, until the node's agent has said so: a controller takes each away at once.
async fn until_told(thief: &Thief, host: &Host, key: &str, value: &[u8], told: &str) {
    let mut through = Vec::new();
    for way in WAYS {
        let before = log(host).len();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            if thief.put(way, key, value).await.is_err() {
                // The store's own filter: then nothing is there to be refused.
                break;
            }
            let text = log(host);
            if text[before..].contains(told) {
                through.push(way);
                break;
            }
            assert!(
                std::time::Instant::now() < end,
                "{way:?}: not told: {told}\n{}",
                &text[before..]
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The same doubt is said once for as long as it lasts.
        eventually("the assignment is a controller's again", 60, || {
            let text = log(host);
            let over = match text.rfind("is not believed") {
                Some(last) => text[last..].contains("is a controller's again"),
                None => true,
            };
            if over { Ok(()) } else { Err(text[before..].to_owned()) }
        });
    }
    assert!(
        !through.is_empty(),
        "this store let nothing through: is the test still one?"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_one_nodes_keys_changes_nothing_on_another() {
    let lab = Lab::new(2);
    let [n1, n2] = lab.hosts.as_slice() else {
        panic!("two hosts")
    };
    let token = install_token(&lab, "token");
    let seeds = n1.address.clone();
    let _server = server(n1, &seeds, &token);
    eventually("the seed serves", 60, || serves(n1));
    let _agents = [agent(n1, &seeds, &token), agent(n2, &seeds, &token)];
    eventually("both nodes are there", 30, || {
        let text = succeeds(n1, &["get", "nodes", "-o", "name"]);
        if text.contains("n1") && text.contains("n2") {
            Ok(())
        } else {
            Err(text)
        }
    });
    let manifest = lab.file("web.yaml", GLOBAL);
    succeeds(n1, &["apply", "-f", &manifest, "--yes"]);
    let thief = Thief::of(n2, n1).await;
    let mut filtered = Err(String::new());
    for _ in 0..300 {
        // From a moment after the cluster's beginning the store asks who may.
        filtered = thief
            .put(Way::Plain, "/reeve/desired/default/service/evil", b"{}")
            .await;
        if filtered.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = filtered.expect_err("it is not a node's to write");
    assert!(refused.contains("permission denied"), "{refused}");
    let (own, other) = ("/reeve/assignments/n2", "/reeve/assignments/n1");
    let old = thief.get(other).await.expect("a node may read");
    let second = lab.file("more.yaml", &GLOBAL.replace("name: web", "name: more"));
    succeeds(n1, &["apply", "-f", &second, "--yes"]);
    let (lives, of_thief) = (n1.lives(), n2.lives());
    assert_eq!((lives.len(), of_thief.len()), (2, 2));

    let stored = thief.get(other).await.expect("an assignment");
    let (document, _) = unweave(&stored).expect("it is signed");
    let mut evil: Value = serde_json::from_slice(&document).expect("JSON");
    evil["order"]["generation"] = Value::from(1_000);
    for instance in evil["instances"].as_array_mut().expect("a list") {
        instance["state"] = Value::from("absent");
    }
    let evil = evil.to_string().into_bytes();

    // The filter: what is no business of a node's is refused, unless it is asked in a way that etcd does not look into.
    for key in [other, "/reeve/cordons/n1", "/reeve/sessions/n1", "/reeve/reports/n1"] {
        let refused = thief.put(Way::Plain, key, b"{}").await;
        let refused = refused.expect_err("it is not a node's to write");
        assert!(refused.contains("permission denied"), "{key}: {refused}");
    }
    let event = thief.put(Way::Plain, "/reeve/events/default/x", b"{}").await;
    event.expect("events are anybody's");

    // An order of his making; one that he signed, with his certificate among the signers'; his own one; an altered one.
    until_told(&thief, n1, other, &evil, "no controller has signed it").await;
    let forged = Realm::sign(&thief.pen, "n1", evil.clone());
    until_told(&thief, n1, other, &forged, "is not in the store").await;
    let certificate = thief.pen.certificate();
    let signer = format!("/reeve/trust/signers/{}", certificate.fingerprint());
    for way in WAYS {
        let _ = thief.put(way, &signer, certificate.to_pem().as_bytes()).await;
    }
    until_told(&thief, n1, other, &forged, "it is a node's, which may not do this").await;
    let own_one = thief.get(own).await.expect("an assignment");
    until_told(&thief, n1, other, &own_one, "the signature is not the signer's").await;
    let altered = String::from_utf8(stored.clone())
        .expect("JSON")
        .replacen("\"present\"", "\"absent\"", 1);
    until_told(
        &thief,
        n1,
        other,
        altered.as_bytes(),
        "the signature is not the signer's",
    )
    .await;
    assert_eq!(n1.lives(), lives);

    // What its instances run, altered where it stands.
    let spec = "/reeve/accepted/default/service/web/1";
    let accepted = String::from_utf8(thief.get(spec).await.expect("a record")).expect("JSON");
    let altered = accepted.replacen("3600", "3601", 1);
    assert_ne!(altered, accepted);
    let written: Vec<bool> = {
        let mut written = Vec::new();
        for way in WAYS {
            written.push(thief.put(way, spec, altered.as_bytes()).await.is_ok());
        }
        written
    };
    if written.contains(&true) {
        eventually("the altered spec is told", 30, || {
            let (_, text) = on(n1, &["describe", "service", "web"]);
            if text.contains("altered") { Ok(()) } else { Err(text) }
        });
        assert_eq!(n1.lives(), lives);
        let mut put = thief.client.clone();
        let inner = Txn::new().and_then([TxnOp::put(spec, accepted.as_bytes(), None)]);
        put.txn(Txn::new().and_then([TxnOp::txn(inner)]))
            .await
            .expect("it is put back");
    }

    // Deletions: of the certificates of those who sign, of the assignment, of the session.
    let signers: Vec<String> = {
        let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
        let found = thief
            .client
            .clone()
            .get("/reeve/trust/signers/", Some(options))
            .await
            .expect("a list");
        found
            .kvs()
            .iter()
            .map(|kv| kv.key_str().expect("text").to_owned())
            .collect()
    };
    let session = thief.client.clone().get("/reeve/sessions/n1", None).await;
    if let Some(kv) = session.expect("a node may read").kvs().first() {
        let _ = thief.client.clone().lease_revoke(kv.lease()).await;
    }
    for key in signers.iter().map(String::as_str).chain([other, "/reeve/sessions/n1"]) {
        let _ = thief.delete(key).await;
    }
    eventually("all is written anew", 60, || {
        let (_, text) = on(n1, &["get", "nodes"]);
        let ready = text
            .lines()
            .filter(|line| line.contains("Ready") && line.contains("2/2"))
            .count();
        if ready == 2 { Ok(()) } else { Err(text) }
    });
    assert_eq!(n1.lives(), lives);

    // An older order, genuine: what runs is kept, and it is told, until the leader has put it right.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !log(n1).contains("it has gone back in time") {
        let _ = thief.put(Way::Nested, other, &old).await;
        assert!(std::time::Instant::now() < end, "the replay is not told:\n{}", log(n1));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("what was in force is written back", 60, || {
        let text = log(n1);
        let last = text.rfind("it has gone back in time").unwrap_or(0);
        if text[last..].contains("the hold has ended") {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert_eq!(n1.lives(), lives);
    eventually("work goes on", 60, || {
        let (code, text) = on(n1, &["get", "services"]);
        let ready = text.lines().filter(|line| line.contains("2/2")).count();
        if code == Some(0) && ready == 2 {
            Ok(())
        } else {
            Err(text)
        }
    });
    assert_eq!((n1.lives(), n2.lives()), (lives, of_thief));
}
