//! A host is lost to an attacker: with its certificate and key he writes and reads real etcd however he can. Nothing is
//! started, stopped or changed on another node, and people are told; of the secrets he opens those of his own node alone, and
//! of other nodes' agents he gets what nodes give each other: an image that they run, until he is shut out.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::seats::{GLOBAL, agent, agent_dir, install_token, on, server, server_dir, server_log, serves, succeeds};
use e2e::{Host, Lab, eventually};
use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};
use serde_json::{Value, json};
use trust::identity::ClusterId;
use trust::realm::Realm;
use trust::seal::{Context, Envelope, SealingKey};
use trust::sign::{Pen, unweave};

/// The attacker: what the host he took had on its disk, and a client of his own.
struct Thief {
    client: Client,
    /// The store's own administrator, for what he would do if he got past its front: each defence is to hold by itself.
    store: Client,
    pen: Pen,
    cluster: ClusterId,
    /// What is sealed for his node opens with this.
    sealing: SealingKey,
}

/// Values of secrets: of the thief's own node, and of another one's.
const OWN: &str = "canary-Tq2vPz81-own";
const OTHERS: [&str; 2] = ["canary-Yc5mWd47-others", "canary-Jf8kRb36-others"];

/// What runs on one node alone and gets one secret.
fn getting(service: &str, node: &str, image: &str, secret: &str) -> String {
    format!(
        "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {service}}}\nspec:\n  update: {{minReady: 1s}}\n  container:\n    image: {image}\n    command: [sleep, '3600']\n    stopGracePeriod: 0s\n    secrets: [{{secret: {secret}}}]\n  placement: {{nodeNames: [{node}]}}\n"
    )
}

/// Ways to write one key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    /// In a transaction within a transaction, where etcd 3.4 does not ask who may.
    Nested,
    /// As that, under a lease of his own.
    Leased,
    /// By who has got into the store all the same.
    Within,
}
const WAYS: [Way; 4] = [Way::Plain, Way::Nested, Way::Leased, Way::Within];

impl Thief {
    async fn of(host: &Host, seed: &Host) -> Self {
        let read = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
        let client = async |dir: &Path, who: &str| {
            let [cert, key] = ["crt", "key"].map(|end| read(dir, &format!("{who}.{end}")));
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read(dir, "ca.crt")))
                .identity(Identity::from_pem(cert, key));
            let options = ConnectOptions::new()
                .with_tls(tls)
                .with_connect_timeout(Duration::from_secs(5))
                .with_timeout(Duration::from_secs(5));
            Client::connect([format!("https://{}:2379", seed.address)], Some(options)).await
        };
        let member = agent_dir(host).join("member");
        let (cert, key) = (read(&member, "node.crt"), read(&member, "node.key"));
        let certificate = trust::certificate::Certificate::from_pem(&cert).expect("a certificate");
        let cluster = certificate.identity().cluster;
        let pen = Pen::new(certificate, trust::key::Key::from_pem(&key).expect("a key"));
        let sealing = std::fs::read_to_string(agent_dir(host).join("sealing.key")).expect("a sealing key");
        Self {
            client: client(&member, "node").await.expect("the store takes his certificate"),
            store: client(&server_dir(seed), "person")
                .await
                .expect("the store takes its administrator's"),
            pen: pen.expect("his own"),
            cluster,
            sealing: sealing.parse().expect("a sealing key"),
        }
    }

    /// All that the store gives him: what is there, asked plainly and in a way that etcd 3.4 does not look into, and all
    /// that ever was there, by a watch from the beginning.
    async fn loot(&self) -> Vec<(String, Vec<u8>)> {
        let mut loot = Vec::new();
        let mut take = |kvs: &[etcd_client::KeyValue]| {
            let pieces = kvs
                .iter()
                .map(|kv| (kv.key_str().expect("text").to_owned(), kv.value().to_vec()));
            loot.extend(pieces);
        };
        let mut client = self.client.clone();
        let plain = client.get("/reeve/", Some(GetOptions::new().with_prefix())).await;
        let plain = plain.expect("a node reads");
        let now = plain.header().expect("a header").revision();
        take(plain.kvs());
        let whole = TxnOp::get("", Some(GetOptions::new().with_all_keys()));
        let nested = Txn::new().and_then([TxnOp::txn(Txn::new().and_then([whole]))]);
        let refused = client
            .txn(nested)
            .await
            .expect_err("nothing is asked within")
            .to_string();
        assert!(refused.contains("a transaction within a transaction"), "{refused}");
        let history = async {
            let mut from = 1;
            'again: loop {
                let options = WatchOptions::new().with_prefix().with_start_revision(from);
                let mut stream = client.watch("/reeve/", Some(options)).await.expect("a watch");
                while let Some(answer) = stream.message().await.expect("an answer") {
                    if answer.canceled() {
                        assert!(answer.compact_revision() > from, "refused: {answer:?}");
                        from = answer.compact_revision();
                        continue 'again;
                    }
                    for event in answer.events() {
                        let kv = event.kv().expect("a key");
                        take(std::slice::from_ref(kv));
                        if kv.mod_revision() >= now {
                            return;
                        }
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), history)
            .await
            .expect("the watch comes to what is there");
        loot
    }

    /// Every sealed value that opens with his key, whatever he takes it for; `sealed` counts those he has tried.
    fn opened(&self, loot: &[(String, Vec<u8>)], sealed: &mut usize) -> Vec<String> {
        let mut opened = Vec::new();
        for (_, bytes) in loot {
            let mut values: Vec<Value> = serde_json::from_slice(bytes).into_iter().collect();
            while let Some(value) = values.pop() {
                if let Ok(envelope) = serde_json::from_value::<Envelope>(value.clone()) {
                    *sealed += 1;
                    for (name, edition) in ["own", "others"]
                        .iter()
                        .flat_map(|name| (1..=4).map(move |n| (*name, n)))
                    {
                        let what = Context {
                            cluster: self.cluster,
                            namespace: "default",
                            kind: "secret",
                            name,
                            edition,
                        };
                        if let Ok(value) = envelope.open(what, &self.sealing) {
                            opened.push(String::from_utf8_lossy(&value).into_owned());
                        }
                    }
                }
                match value {
                    Value::Array(list) => values.extend(list),
                    Value::Object(fields) => values.extend(fields.into_iter().map(|(_, value)| value)),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
                }
            }
        }
        opened
    }

    /// Of all he gets only the secret of his own node opens, and no clear word of another's is in it.
    async fn reads_his_own_alone(&self, when: &str) {
        let (loot, mut sealed) = (self.loot().await, 0);
        let mut opened = self.opened(&loot, &mut sealed);
        opened.dedup();
        assert_eq!(opened, [OWN], "{when}: of {sealed} sealed values");
        assert!(sealed > 4, "{when}: only {sealed} sealed values were found");
        for (key, bytes) in &loot {
            for other in OTHERS {
                let found = bytes.windows(other.len()).any(|part| part == other.as_bytes());
                assert!(!found, "{when}: {key} has a secret");
            }
        }
    }

    /// Writes in a way that goes; whether one did.
    async fn puts(&self, key: &str, value: &[u8]) -> bool {
        for way in WAYS {
            if self.put(way, key, value).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Writes again and again until the leader has said so, where the store lets him.
    async fn until_leader_tells(&self, seed: &Host, key: &str, value: &Value, told: &str) {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while self.puts(key, value.to_string().as_bytes()).await {
            let log = server_log(seed);
            if log.contains(told) {
                return;
            }
            assert!(std::time::Instant::now() < end, "not told: {told}\n{log}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn json(&self, key: &str) -> Value {
        let bytes = self.get(key).await.unwrap_or_else(|| panic!("{key} is not there"));
        let document = unweave(&bytes).map_or(bytes, |(document, _)| document.to_vec());
        serde_json::from_slice(&document).expect("JSON")
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
            Way::Within => self.store.clone().put(key, value, None).await.map(drop),
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
        client
            .delete(key, None)
            .await
            .expect_err("it is not a node's to delete");
        let inner = Txn::new().and_then([TxnOp::delete(key, None)]);
        let nested = client.txn(Txn::new().and_then([TxnOp::txn(inner)])).await;
        nested.expect_err("nor within a transaction");
        let deleted = self.store.clone().delete(key, None).await;
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
    assert_eq!(through, [Way::Within], "only who is in the store already gets there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_one_nodes_keys_changes_nothing_on_another() {
    let mut lab = Lab::new(2);
    let image = format!("{}/team/app:1", lab.registry());
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

    // The front: what is no business of a node's is refused, however it is asked.
    for key in [
        other,
        "/reeve/cordons/n1",
        "/reeve/sessions/n1",
        "/reeve/reports/n1",
        "/reeve/desired/default/service/evil",
        "/elsewhere",
    ] {
        for way in [Way::Plain, Way::Nested, Way::Leased] {
            let refused = thief.put(way, key, b"{}").await;
            let refused = refused.expect_err("it is not a node's to write");
            assert!(refused.contains("does not have permission"), "{key}: {refused}");
        }
    }
    let lease = thief
        .client
        .clone()
        .lease_grant(600, None)
        .await
        .expect("a lease of his own");
    thief.client.clone().lease_revoke(lease.id()).await.expect("it is his");
    let leases = thief.client.clone().leases().await;
    leases.expect_err("others' leases are no business of his");
    let users = thief.client.clone().user_list().await;
    users.expect_err("nor are the store's users");
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
        let back = thief.put(Way::Within, spec, accepted.as_bytes()).await;
        back.expect("it is put back");
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
        let revoked = thief.client.clone().lease_revoke(kv.lease()).await;
        revoked.expect_err("it is another's lease");
        let _ = thief.store.clone().lease_revoke(kv.lease()).await;
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
        let _ = thief.put(Way::Within, other, &old).await;
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
    reads_no_secret_of_another(&lab, &thief, &image).await;
    gets_what_nodes_give_each_other(&lab, &thief, &image).await;
}

/// n2's thief as a reader: `others` is a secret of n1, `own` is n2's.
async fn reads_no_secret_of_another(lab: &Lab, thief: &Thief, image: &str) {
    let [n1, n2] = lab.hosts.as_slice() else {
        panic!("two hosts")
    };
    let set = |name: &str, value: &str| {
        let file = lab.file("value", value);
        let said = succeeds(n1, &["secret", "set", name, "--file", &file, "--timeout", "90s"]);
        std::fs::remove_file(file).expect("it was there");
        said
    };
    set("own", OWN);
    set("others", OTHERS[0]);
    n1.docker(&["tag", "reeve/hello:1", image]);
    n1.docker(&["push", image]);
    for text in [
        getting("keeper", "n1", image, "others"),
        getting("mine", "n2", "reeve/hello:1", "own"),
    ] {
        let file = lab.file("getting.yaml", &text);
        succeeds(n1, &["apply", "-f", &file, "--yes", "--timeout", "90s"]);
    }
    let lives = n1.lives();
    thief.reads_his_own_alone("as it is").await;

    // He says that he runs what n1 runs, as his report may: it is taken from him, and nothing is handed to him for it.
    let theirs = thief.json("/reeve/reports/n1").await;
    let instances = theirs["instances"].as_array().expect("a list");
    let keeper = instances
        .iter()
        .find(|one| one["workload"] == "keeper")
        .expect("it runs");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let told = loop {
        let mut lie = thief.json("/reeve/reports/n2").await;
        let mine = lie["instances"].as_array_mut().expect("a list");
        if mine.iter().all(|one| one["workload"] != "keeper") {
            mine.push(keeper.clone());
            mine.sort_by_key(|one| (one["workload"].to_string(), one["slot"].to_string()));
            let lie = lie.to_string();
            let put = thief.put(Way::Plain, "/reeve/reports/n2", lie.as_bytes()).await;
            put.expect("a report is its node's to write");
        }
        let assigned = thief.json("/reeve/assignments/n2").await;
        let list = assigned["instances"].as_array().expect("a list");
        if let Some(told) = list.iter().find(|one| one["workload"] == "keeper") {
            break told.clone();
        }
        assert!(std::time::Instant::now() < end, "no leader answers the lie: {assigned}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(told["state"], "absent", "{told}");
    thief.reads_his_own_alone("after a lie").await;

    // What was handed to one under the name of the other: nobody takes it, and each is handed his own again.
    let keys = ["/reeve/handed/node.n1", "/reeve/handed/node.n2"];
    let before = [thief.json(keys[0]).await, thief.json(keys[1]).await];
    for (key, other) in [(keys[0], &before[1]), (keys[1], &before[0])] {
        thief.puts(key, other.to_string().as_bytes()).await;
    }
    let end = std::time::Instant::now() + Duration::from_secs(60);
    for (key, before) in keys.iter().zip(&before) {
        loop {
            let now = thief.json(key).await;
            if now["key"] == before["key"] && now["secrets"][0]["name"] == before["secrets"][0]["name"] {
                break;
            }
            assert!(std::time::Instant::now() < end, "{key} stays another's: {now}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    thief.reads_his_own_alone("after handing it to himself").await;

    // His key in the place of n1's, and as a controller's: nothing is sealed for it.
    let his = thief.json("/reeve/nodes/n2").await["sealingKey"].clone();
    let facts = thief.json("/reeve/nodes/n1").await;
    let mut forged = facts.clone();
    forged["sealingKey"] = his.clone();
    let told = "nothing is sealed for node.n1: ";
    thief.until_leader_tells(n1, "/reeve/nodes/n1", &forged, told).await;
    thief.puts("/reeve/nodes/n1", facts.to_string().as_bytes()).await;
    let mut client = thief.client.clone();
    let controllers = client.get("/reeve/controllers/", Some(GetOptions::new().with_prefix()));
    let controllers = controllers.await.expect("a node reads");
    let mut forged: Value = serde_json::from_slice(controllers.kvs()[0].value()).expect("JSON");
    forged["sealingKey"] = his;
    forged["sealingId"] = Value::from("0123456789abcdef0123456789abcdef");
    let told = "nothing is sealed for controller.0123456789abcdef";
    thief
        .until_leader_tells(n1, "/reeve/controllers/evil", &forged, told)
        .await;
    // A new value while he is there: whoever sets it does not seal it for him, and n1 gets it.
    let said = set("others", OTHERS[1]);
    assert!(!said.contains(OTHERS[1]), "{said}");
    let keeper = n1
        .running()
        .into_iter()
        .find(|name| name.contains(".keeper."))
        .expect("it runs");
    assert_eq!(n1.docker(&["exec", &keeper, "cat", "/run/secrets/others"]), OTHERS[1]);
    thief.reads_his_own_alone("after giving out his key").await;

    // Nor is it anywhere on his disk. Of the others' containers only the one with the new value is another.
    for other in OTHERS {
        let mut grep = Command::new("grep");
        grep.args(["-rlaF", "--devices=skip", other])
            .arg(agent_dir(n2))
            .arg(&n2.dir);
        assert_eq!(String::from_utf8_lossy(&e2e::run(&mut grep).stdout), "");
    }
    let after = n1.lives();
    let kept = lives.iter().filter(|one| after.contains(one)).count();
    assert_eq!(
        (after.len(), kept),
        (lives.len(), lives.len() - 1),
        "{lives:?} {after:?}"
    );
}

/// What the agent of `to` says to one question, asked by hand with this certificate.
fn asked(to: &Host, identity: Option<(&Path, &str)>, ask: &Value) -> String {
    let question = json!({ "by": "nobody", "ask": ask }).to_string();
    let mut bytes =
        b"GET /v1/near HTTP/1.1\r\nHost: agent\r\nConnection: upgrade\r\nUpgrade: reeve-near\r\n\r\n\x01".to_vec();
    bytes.extend(u32::try_from(question.len()).expect("short").to_be_bytes());
    bytes.extend(question.as_bytes());
    let mut command = Command::new("timeout");
    let address = format!("{}:9465", to.address);
    command.args(["10", "openssl", "s_client", "-quiet", "-connect", &address]);
    if let Some((dir, who)) = identity {
        for (option, end) in [("-cert", "crt"), ("-key", "key")] {
            command.arg(option).arg(dir.join(format!("{who}.{end}")));
        }
    }
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = pipes.spawn().expect("openssl");
    // It may have been turned away already.
    let _ = child.stdin.take().expect("a pipe").write_all(&bytes);
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// n2's thief at the agent of n1, which runs `image`.
async fn gets_what_nodes_give_each_other(lab: &Lab, thief: &Thief, image: &str) {
    let [n1, n2] = lab.hosts.as_slice() else {
        panic!("two hosts")
    };
    let assigned = thief.json("/reeve/assignments/n1").await;
    let list = assigned["instances"].as_array().expect("a list");
    let keeper = list.iter().find(|one| one["workload"] == "keeper").expect("it runs");
    let text = |name: &str| {
        keeper["image"]["settled"][name]
            .as_str()
            .expect("it is settled")
            .to_owned()
    };
    let (digest, id) = (text("digest"), text("id"));
    let repository = image.rsplit_once(':').expect("a tag").0;
    let ask = |reference: String, id: &str| json!({ "act": "image", "image": reference, "id": id });
    let runs = ask(format!("{repository}@{digest}"), &id);
    let member = agent_dir(n2).join("member");
    let thief_asks = |ask: &Value| asked(n1, Some((&member, "node")), ask);

    // An image that n1 runs is had by who holds a node's key, and nothing else is: neither by him nor by others.
    let said = thief_asks(&runs);
    assert!(
        said.contains("\"begun\"") && said.contains("manifest.json"),
        "{said:.400}"
    );
    for (other, why) in [
        (ask(format!("{repository}@{digest}"), &digest), "NotHere"),
        (ask(format!("{repository}-other@{digest}"), &id), "NotHere"),
        (ask(image.to_owned(), &id), "NotHere"),
        (json!({ "act": "images" }), "Denied"),
        (json!({ "act": "top" }), "Denied"),
    ] {
        let said = thief_asks(&other);
        assert!(said.contains("refused") && said.contains(why), "{other}: {said:.400}");
    }
    let said = asked(n1, Some((&server_dir(n1), "person")), &runs);
    assert!(
        said.contains("Denied") && said.contains("to nodes alone"),
        "{said:.400}"
    );
    assert_eq!(asked(n1, None, &runs), "", "who shows nothing is nobody");

    // He is found out, and shut out.
    succeeds(n1, &["node", "rm", "n2", "--now", "--yes", "--note", "stolen"]);
    eventually("n1's agent turns him away", 30, || {
        let said = thief_asks(&runs);
        if said.is_empty() {
            Ok(())
        } else {
            Err(format!("{said:.400}"))
        }
    });
}
