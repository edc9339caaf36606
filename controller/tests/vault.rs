//! What leading controllers hand out of what people sealed: to whom, again after what, and what never.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::{ControllerOptions, VaultOptions};
use runtime::{MemoryStore, Shutdown};
use schemas::records::{Handed, NodeFacts, Record, SchemaVersion, Sealed, SealedValue};
use schemas::registry::sealed_as;
use support::*;
use trust::publish::{Believed, Holder, plain};
use trust::seal::{Context, Envelope, SealingKey};
use trust::validity::Time;

const REGISTRY: &str = "r.example:5000";

fn trusted() -> trust::identity::ClusterId {
    cluster_id().as_str().parse().expect("a cluster id")
}

fn key() -> Arc<SealingKey> {
    Arc::new(SealingKey::generate().expect("randomness"))
}

/// A controller with a vault; ends when it is dropped.
struct Vaulted {
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

impl Vaulted {
    fn start(store: &MemoryStore, id: &str, key: &Arc<SealingKey>) -> Self {
        let mut options = ControllerOptions::new(store.clone(), Default::default(), id);
        options.http_addr = Some(([127, 0, 0, 1], 0).into());
        let published = plain(key.public());
        options.vault = Some(VaultOptions {
            key: Arc::clone(key),
            published: Arc::new(move || published.clone()),
            believed: Arc::new(|cluster| Some(Believed::Store(cluster))),
        });
        let shutdown = Shutdown::new();
        let run = controller::run(options, shutdown.clone());
        let task = tokio::spawn(async move { run.await.expect("it runs") });
        Self { shutdown, task }
    }

    async fn stop(mut self) {
        self.shutdown.drain();
        (&mut self.task).await.expect("it ends");
    }
}

impl Drop for Vaulted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn node(store: &MemoryStore, name: &str) -> (Agent, Arc<SealingKey>) {
    let agent = Agent::start(store, name).await;
    let (key, place) = (key(), format!("/reeve/nodes/{name}"));
    let mut facts = NodeFacts::decode(&store.peek(&place).expect("facts").value).expect("facts");
    facts.sealing_key = Some(plain(key.public()));
    store.put(place, facts.encode());
    (agent, key)
}

fn declare(store: &MemoryStore, users: &[(&str, &str)]) {
    let accounts: String = users
        .iter()
        .map(|(user, images)| format!("    - {{user: {user}, images: [{images}]}}\n"))
        .collect();
    store.put(
        "/reeve/desired/_/registry/r",
        format!(
            "apiVersion: reeve/v1\nkind: Registry\nmetadata: {{name: r}}\nspec:\n  registry: {REGISTRY}\n  accounts:\n{accounts}"
        ),
    );
}

/// As `reeve login` does it.
fn seal(store: &MemoryStore, passwords: &[(&str, &str, u64)], readers: &[&SealingKey]) {
    let values = passwords.iter().map(|(user, password, edition)| {
        let name = sealed_as(REGISTRY, user);
        let readers = readers.iter().map(|key| {
            let told = plain(key.public());
            let read = Believed::Store(trusted()).reader(&told, Holder::Controller, Time::from_unix_seconds(0));
            read.expect("a reader")
        });
        let readers: Vec<_> = readers.collect();
        let envelope = Envelope::seal(context(&name, *edition), password.as_bytes(), &readers).expect("sealed");
        let envelope = serde_json::to_value(&envelope).expect("JSON");
        let edition = *edition;
        let value = SealedValue {
            edition,
            envelope,
            digest: None,
            since: None,
        };
        ((*user).to_owned(), value)
    });
    let sealed = Sealed {
        schema_version: SchemaVersion::default(),
        values: values.collect(),
        current: None,
    };
    store.put("/reeve/sealed/_/registry/r", sealed.encode());
}

fn context(name: &str, edition: u64) -> Context<'_> {
    Context {
        cluster: trusted(),
        namespace: "_",
        kind: "registry",
        name,
        edition,
    }
}

/// What a node can open of what it was handed: user and password.
fn opened(store: &MemoryStore, node: &str, key: &SealingKey) -> Option<BTreeMap<String, String>> {
    let kv = store.peek(format!("/reeve/handed/node.{node}"))?;
    let handed = Handed::decode(&kv.value).expect("a document");
    let open = handed.logins.into_iter().map(|login| {
        let name = sealed_as(&login.registry, &login.account.user);
        let envelope: Envelope = serde_json::from_value(login.envelope).expect("an envelope");
        let value = envelope.open(context(&name, login.edition), key).expect("it opens");
        (login.account.user, String::from_utf8(value.to_vec()).expect("text"))
    });
    Some(open.collect())
}

async fn has(store: &MemoryStore, node: &str, key: &SealingKey, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> = wanted
        .iter()
        .map(|(user, password)| ((*user).to_owned(), (*password).to_owned()))
        .collect();
    until(store, &format!("{node} can open {wanted:?}"), || {
        (opened(store, node, key).as_ref() == Some(&wanted)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_node_is_handed_what_its_images_need_and_no_more_and_in_no_clear_word() {
    limited(async {
        let (store, one) = (store(), key());
        let controller = Vaulted::start(&store, "one", &one);
        let (_n1, k1) = node(&store, "n1").await;
        declare(&store, &[("ci", "team"), ("other", "other")]);
        seal(&store, &[("ci", "hunter2", 1), ("other", "canary", 2)], &[&one]);
        put_service(&store, "public", 1, "hello:1");
        ready(&store, "public", 1).await;
        assert_eq!(opened(&store, "n1", &k1), None, "nothing is fetched with an account");
        put_service(&store, "web", 1, &format!("{REGISTRY}/team/app:1"));
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        // Before the work that needs it.
        let handed = store.peek("/reeve/handed/node.n1").expect("it is there").mod_revision;
        assert!(store.peek("/reeve/assignments/n1").expect("it is there").mod_revision > handed);

        seal(&store, &[("ci", "hunter3", 3), ("other", "canary", 2)], &[&one]);
        has(&store, "n1", &k1, &[("ci", "hunter3")]).await;
        // A node that comes later.
        let (_n2, k2) = node(&store, "n2").await;
        put_service(&store, "web", 2, &format!("{REGISTRY}/team/app:1"));
        has(&store, "n2", &k2, &[("ci", "hunter3")]).await;
        // What is handed out is not written again.
        ready(&store, "web", 2).await;
        let before: Vec<_> = [1, 2].map(|n| store.peek(format!("/reeve/handed/node.n{n}"))).into();
        put_service(&store, "public", 2, "hello:1");
        ready(&store, "public", 2).await;
        let after: Vec<_> = [1, 2].map(|n| store.peek(format!("/reeve/handed/node.n{n}"))).into();
        assert_eq!(before, after);
        // Whose account is taken away has it no more.
        assert!(store.delete("/reeve/desired/_/registry/r"));
        has(&store, "n1", &k1, &[]).await;
        for kv in store.dump() {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            assert!(
                !text.contains("hunter") && !text.contains("canary"),
                "{}",
                String::from_utf8_lossy(&kv.key)
            );
        }
        controller.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_registry_that_cannot_be_read_keeps_what_was_handed_out() {
    limited(async {
        let (store, one) = (store(), key());
        let controller = Vaulted::start(&store, "one", &one);
        let (_n1, k1) = node(&store, "n1").await;
        declare(&store, &[("ci", "team")]);
        seal(&store, &[("ci", "hunter2", 1)], &[&one]);
        put_service(&store, "web", 1, &format!("{REGISTRY}/team/app:1"));
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        controller.stop().await;
        store.put("/reeve/desired/_/registry/r", "kind: Registry\nspec: {registry: [");
        // Another one, who never saw it whole.
        let controller = Vaulted::start(&store, "two", &one);
        put_service(&store, "public", 1, "hello:1");
        ready(&store, "public", 1).await;
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        controller.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_controller_that_came_later_than_a_password_hands_it_out_too() {
    limited(async {
        let (store, one, two) = (store(), key(), key());
        let first = Vaulted::start(&store, "one", &one);
        declare(&store, &[("ci", "team")]);
        seal(&store, &[("ci", "hunter2", 1)], &[&one]);
        until(&store, "the first leads", || {
            store.peek("/reeve/election/controller").map(drop)
        })
        .await;
        let second = Vaulted::start(&store, "two", &two);
        let place = format!("/reeve/handed/controller.{}", &two.public().to_string()[..32]);
        until(&store, "the second has it from the first", || {
            let handed = Handed::decode(&store.peek(&place)?.value).ok()?;
            (!handed.logins.is_empty()).then_some(())
        })
        .await;
        first.stop().await;
        let (_n1, k1) = node(&store, "n1").await;
        put_service(&store, "web", 1, &format!("{REGISTRY}/team/app:1"));
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        second.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_cannot_open_a_new_password_takes_nothing_away() {
    limited(async {
        let (store, one, lost) = (store(), key(), key());
        let controller = Vaulted::start(&store, "one", &one);
        let (_n1, k1) = node(&store, "n1").await;
        declare(&store, &[("ci", "team")]);
        seal(&store, &[("ci", "hunter2", 1)], &[&one]);
        put_service(&store, "web", 1, &format!("{REGISTRY}/team/app:1"));
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        // Sealed for a controller that is no more.
        seal(&store, &[("ci", "hunter3", 2)], &[&lost]);
        put_service(&store, "public", 1, "hello:1");
        ready(&store, "public", 1).await;
        has(&store, "n1", &k1, &[("ci", "hunter2")]).await;
        controller.stop().await;
    })
    .await;
}

// ---- secrets --------------------------------------------------------------------------------------------------------------

/// As `reeve secret set` does it.
fn set(store: &MemoryStore, name: &str, value: &str, readers: &[&SealingKey]) {
    let place = format!("/reeve/sealed/default/secret/{name}");
    let mut sealed = store
        .peek(&place)
        .map_or_else(Sealed::default, |kv| Sealed::decode(&kv.value).expect("a document"));
    let readers = readers.iter().map(|key| {
        let told = plain(key.public());
        let read = Believed::Store(trusted()).reader(&told, Holder::Controller, Time::from_unix_seconds(0));
        read.expect("a reader")
    });
    let readers: Vec<_> = readers.collect();
    let edition = sealed.next_edition();
    let as_what = secret_context(name, edition);
    let envelope = Envelope::seal(as_what, value.as_bytes(), &readers).expect("sealed");
    sealed.put_edition(SealedValue {
        edition,
        digest: Some(envelope.digest(as_what).to_string().parse().expect("a digest")),
        envelope: serde_json::to_value(&envelope).expect("JSON"),
        since: None,
    });
    store.put(place, sealed.encode());
}

fn secret_context(name: &str, edition: u64) -> Context<'_> {
    Context {
        cluster: trusted(),
        namespace: "default",
        kind: "secret",
        name,
        edition,
    }
}

/// What a node can open of the secrets it was handed: name, edition and value.
fn secrets(store: &MemoryStore, node: &str, key: &SealingKey) -> Vec<(String, u64, String)> {
    let Some(kv) = store.peek(format!("/reeve/handed/node.{node}")) else {
        return Vec::new();
    };
    let handed = Handed::decode(&kv.value).expect("a document");
    let open = handed.secrets.into_iter().map(|one| {
        let envelope: Envelope = serde_json::from_value(one.envelope).expect("an envelope");
        let value = envelope
            .open(secret_context(one.name.as_str(), one.edition.n), key)
            .expect("it opens");
        let text = String::from_utf8(value.to_vec()).expect("text");
        (one.name.to_string(), one.edition.n, text)
    });
    open.collect()
}

async fn gets(store: &MemoryStore, node: &str, key: &SealingKey, wanted: &[(&str, u64, &str)]) {
    let wanted: Vec<(String, u64, String)> = wanted
        .iter()
        .map(|(name, n, value)| ((*name).to_owned(), *n, (*value).to_owned()))
        .collect();
    until(store, &format!("{node} can open {wanted:?}"), || {
        (secrets(store, node, key) == wanted).then_some(())
    })
    .await;
}

fn put_user(store: &MemoryStore, name: &str, replicas: u32, secrets: &[&str]) {
    let secrets: Vec<String> = secrets.iter().map(|name| format!("{{secret: {name}}}")).collect();
    let secrets = secrets.join(", ");
    store.put(
        format!("/reeve/desired/default/service/{name}"),
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  container: {{image: hello, secrets: [{secrets}]}}\n  placement: {{maxPerNode: 1}}\n"
        ),
    );
}

#[tokio::test]
async fn each_node_is_handed_the_secrets_of_its_instances_and_no_others() {
    limited(async {
        let (store, one) = (store(), key());
        let controller = Vaulted::start(&store, "one", &one);
        let (_n1, k1) = node(&store, "n1").await;
        set(&store, "password", "hunter2", &[&one]);
        set(&store, "other", "canary", &[&one]);
        put_user(&store, "web", 1, &["password"]);
        gets(&store, "n1", &k1, &[("password", 1, "hunter2")]).await;
        // Before the work that needs it.
        let handed = store.peek("/reeve/handed/node.n1").expect("it is there").mod_revision;
        assert!(store.peek("/reeve/assignments/n1").expect("it is there").mod_revision > handed);
        ready(&store, "web", 1).await;
        // The old one goes when nothing there runs with it any more.
        set(&store, "password", "hunter3", &[&one]);
        gets(&store, "n1", &k1, &[("password", 2, "hunter3")]).await;
        // A node that comes later.
        let (_n2, k2) = node(&store, "n2").await;
        put_user(&store, "web", 2, &["password"]);
        gets(&store, "n2", &k2, &[("password", 2, "hunter3")]).await;
        ready(&store, "web", 2).await;
        // A value that is taken out of the store stays where it is in use.
        assert!(store.delete("/reeve/sealed/default/secret/password"));
        put_user(&store, "public", 1, &[]);
        ready(&store, "public", 1).await;
        gets(&store, "n2", &k2, &[("password", 2, "hunter3")]).await;
        assert!(store.delete("/reeve/desired/default/service/web"));
        gets(&store, "n1", &k1, &[]).await;
        gets(&store, "n2", &k2, &[]).await;
        for kv in store.dump() {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            assert!(!text.contains("hunter") && !text.contains("canary"), "{key}");
        }
        controller.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_controller_that_came_later_than_a_secret_hands_it_out_too() {
    limited(async {
        let (store, one, two) = (store(), key(), key());
        let first = Vaulted::start(&store, "one", &one);
        set(&store, "password", "hunter2", &[&one]);
        until(&store, "the first leads", || {
            store.peek("/reeve/election/controller").map(drop)
        })
        .await;
        let second = Vaulted::start(&store, "two", &two);
        let place = format!("/reeve/handed/controller.{}", &two.public().to_string()[..32]);
        until(&store, "the second has it from the first", || {
            let handed = Handed::decode(&store.peek(&place)?.value).ok()?;
            (!handed.secrets.is_empty()).then_some(())
        })
        .await;
        first.stop().await;
        let (_n1, k1) = node(&store, "n1").await;
        put_user(&store, "web", 1, &["password"]);
        gets(&store, "n1", &k1, &[("password", 1, "hunter2")]).await;
        second.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_value_under_anothers_digest_is_handed_to_nobody() {
    limited(async {
        let (store, one) = (store(), key());
        let controller = Vaulted::start(&store, "one", &one);
        let (_n1, k1) = node(&store, "n1").await;
        set(&store, "password", "hunter2", &[&one]);
        set(&store, "password", "hunter3", &[&one]);
        let place = "/reeve/sealed/default/secret/password";
        let mut sealed = Sealed::decode(&store.peek(place).expect("it is there").value).expect("a document");
        let digest = sealed.values["1"].digest.clone();
        sealed.values.get_mut("2").expect("it is there").digest = digest;
        store.put(place, sealed.encode());
        put_user(&store, "web", 1, &["password"]);
        put_user(&store, "public", 1, &[]);
        ready(&store, "public", 1).await;
        assert_eq!(secrets(&store, "n1", &k1), []);
        controller.stop().await;
    })
    .await;
}
