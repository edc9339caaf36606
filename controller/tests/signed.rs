//! Controllers that sign what they assign: what is written, what counts, and what is signed anew.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use runtime::MemoryStore;
use schemas::keys::{Key, Root, TrustKey};
use schemas::records::{AssignedState, Assignment, Record as _};
use support::{Agent, Conduct, Controller, assignment, placements, put_service, ready, store, until};
use tokio::sync::watch;
use trust::certificate::Certificate;
use trust::key::Fingerprint;
use trust::realm::{LIFE, Realm};
use trust::sign::{Domain, Keyring, Pen, Signing, unweave};
use trust::validity::Time;

mod support;

const N1: &str = "/reeve/assignments/n1";

fn realm() -> Realm {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    Realm::new([7; 16], Time::from_unix_seconds(since.as_secs()))
}

type Signs = (watch::Sender<Arc<Signing>>, watch::Receiver<Arc<Signing>>);

fn signs(realm: &Realm, pen: Pen) -> Signs {
    watch::channel(Arc::new(realm.signing(pen)))
}

fn signer_key(signer: &Fingerprint) -> String {
    Root::default().key(&Key::Trust(TrustKey::Signer(signer.to_string())))
}

/// Who signed the node's assignment, as an agent verifies it: with nothing but what is published.
fn signer(store: &MemoryStore, realm: &Realm, node: &str) -> Option<Fingerprint> {
    let kv = store.peek(format!("/reeve/assignments/{node}"))?;
    let (document, signature) = unweave(&kv.value)?;
    let published = store.peek(signer_key(&signature.signer()))?;
    let certificate = Certificate::from_pem(std::str::from_utf8(&published.value).ok()?).ok()?;
    let mut keyring = Keyring::new(realm.trust());
    keyring.admit(&certificate.der(), realm.now).ok()?;
    keyring
        .verify(Domain::assignment(node), &document, &signature, realm.now)
        .ok()?;
    Some(signature.signer())
}

async fn hello(store: &MemoryStore, realm: &Realm, signing: &Signs) -> (Controller, [Agent; 2]) {
    let controller = Controller::start_signing(store.clone(), "one", Some(signing.1.clone())).await;
    let agents = [Agent::start(store, "n1").await, Agent::start(store, "n2").await];
    put_service(store, "hello", 4, "hello:1");
    ready(store, "hello", 4).await;
    controller.rests_after(store).await;
    for node in ["n1", "n2"] {
        let own = signing.1.borrow().pen.certificate().fingerprint();
        assert_eq!(signer(store, realm, node), Some(own));
    }
    (controller, agents)
}

#[tokio::test]
async fn what_is_assigned_is_signed_and_another_leader_signs_nothing_again() {
    let (store, realm) = (store(), realm());
    let signing = signs(&realm, realm.pen("controller/c1"));
    let (first, _agents) = hello(&store, &realm, &signing).await;
    let (before, written) = (store.dump(), store.revision());
    // Only the poke of waiting for its rest is written.
    first.rests_after(&store).await;
    assert_eq!(store.revision(), written + 1);

    let other = signs(&realm, realm.pen("controller/c2"));
    let second = Controller::start_signing(store.clone(), "two", Some(other.1.clone())).await;
    let election = store.peek("/reeve/election/controller").expect("someone leads");
    first.kill();
    store.expire_lease(election.lease);
    let own = other.1.borrow().pen.certificate().fingerprint();
    until(&store, "the other leads and says who it is", || {
        store.peek(signer_key(&own))
    })
    .await;
    second.rests_after(&store).await;
    for kv in before.iter().filter(|kv| kv.key.starts_with(b"/reeve/assignments/")) {
        assert_eq!(store.peek(&kv.key).as_ref(), Some(kv), "a leader's change is no change");
    }
    // What it assigns itself it signs itself.
    put_service(&store, "hello", 6, "hello:1");
    ready(&store, "hello", 6).await;
    second.rests_after(&store).await;
    assert!(
        ["n1", "n2"]
            .iter()
            .any(|node| signer(&store, &realm, node) == Some(own))
    );
}

#[tokio::test]
async fn an_assignment_that_no_controller_signed_counts_for_nothing_and_is_written_anew() {
    let (store, realm) = (store(), realm());
    let signing = signs(&realm, realm.pen("controller/c1"));
    let (controller, agents) = hello(&store, &realm, &signing).await;
    for agent in &agents {
        // As real ones, they do not obey what is not signed.
        *agent.conduct.lock().expect("no panic") = Conduct::Stuck;
    }
    let (placed, own) = (placements(&store), signer(&store, &realm, "n1"));
    let genuine = store.peek(N1).expect("an assignment");
    let mut evil = Assignment::decode(&genuine.value).expect("an assignment");
    evil.order.generation += 1;
    for instance in &mut evil.instances {
        instance.state = AssignedState::Absent;
    }
    let thief = realm.pen("node/n2");
    store.put(
        signer_key(&thief.certificate().fingerprint()),
        thief.certificate().to_pem().into_bytes(),
    );
    let other_node = store.peek("/reeve/assignments/n2").expect("an assignment").value;
    // What was there before, as if it were new: genuine, and older.
    let mut replayed = Assignment::decode(&genuine.value).expect("an assignment");
    replayed.order.generation -= 1;
    replayed.instances.clear();
    let replayed = Realm::sign(&signing.1.borrow().pen, "n1", replayed.encode());
    let altered = String::from_utf8(genuine.value.to_vec())
        .expect("JSON")
        .replace("\"present\"", "\"absent\"");
    let forgeries = [
        altered.into_bytes(),
        evil.encode(),
        Realm::sign(&thief, "n1", evil.encode()),
        Realm::sign(&realm.pen("controller/c9"), "n1", br#"{"broken":1}"#.to_vec()),
        other_node.to_vec(),
        replayed,
    ];
    for forged in forgeries {
        store.put(N1, forged.clone());
        until(&store, "it is written anew", || {
            let now = store.peek(N1)?;
            (now.value == genuine.value && signer(&store, &realm, "n1") == own).then_some(())
        })
        .await;
        controller.rests_after(&store).await;
        assert_eq!(placements(&store), placed);
    }
    let kept = assignment(&store, "n1").expect("an assignment").instances;
    assert!(kept.iter().all(|instance| instance.state == AssignedState::Present));
}

#[tokio::test]
async fn quiet_assignments_are_signed_anew_when_their_signer_makes_room_for_another() {
    let (store, realm) = (store(), realm());
    let signing = signs(&realm, realm.pen_at("controller/c1", realm.now.minus(LIFE / 2)));
    let (controller, _agents) = hello(&store, &realm, &signing).await;
    let before = assignment(&store, "n1").expect("an assignment");
    let renewed = realm.pen("controller/c1");
    let own = renewed.certificate().fingerprint();
    signing.0.send_replace(Arc::new(realm.signing(renewed)));
    until(&store, "both are signed anew", || {
        let both = ["n1", "n2"].map(|node| signer(&store, &realm, node));
        (both == [Some(own); 2]).then_some(())
    })
    .await;
    controller.rests_after(&store).await;
    assert_eq!(assignment(&store, "n1"), Some(before), "the same order, to the letter");
    let written = store.revision();
    controller.rests_after(&store).await;
    assert_eq!(store.revision(), written + 1);
}

#[tokio::test]
async fn an_accepted_spec_that_was_altered_changes_nothing() {
    let (store, realm) = (store(), realm());
    let signing = signs(&realm, realm.pen("controller/c1"));
    let (controller, _agents) = hello(&store, &realm, &signing).await;
    let place = "/reeve/accepted/default/service/hello/1";
    let before = store.peek(place).expect("it was accepted");
    let assignments =
        || ["n1", "n2"].map(|node| store.peek(format!("/reeve/assignments/{node}")).expect("an assignment"));
    let assigned = assignments();
    let text = String::from_utf8(before.value.to_vec()).expect("JSON");
    let altered = text.replacen("hello:1", "evil:1", 1);
    assert_ne!(altered, text);
    let told = async |why: &str| {
        until(&store, why, || {
            let status = support::status(&store, "hello")?;
            let told = status
                .conditions
                .iter()
                .any(|c| c.message.contains("it was altered since"));
            told.then_some(())
        })
        .await;
    };
    store.put(place, altered.clone());
    told("an overwritten record is told").await;
    controller.rests_after(&store).await;
    assert_eq!(assignments(), assigned);
    store.put(place, before.value.clone());
    ready(&store, "hello", 4).await;
    controller.rests_after(&store).await;
    assert_eq!(assignments(), assigned);

    // Deleted and put, which looks as if it were new, while nobody is there who has seen the one before.
    controller.kill();
    let election = store.peek("/reeve/election/controller").expect("it led");
    store.expire_lease(election.lease);
    store.delete(place);
    store.put(place, altered);
    let second = Controller::start_signing(store.clone(), "two", Some(signing.1.clone())).await;
    told("a record that was put in its place is told").await;
    second.rests_after(&store).await;
    assert_eq!(assignments(), assigned);
    assert!(store.peek("/reeve/accepted/default/service/hello/2").is_none());
}

#[tokio::test]
async fn a_deleted_certificate_of_the_signer_is_published_again() {
    let (store, realm) = (store(), realm());
    let signing = signs(&realm, realm.pen("controller/c1"));
    let (_controller, _agents) = hello(&store, &realm, &signing).await;
    let own = signing.1.borrow().pen.certificate().fingerprint();
    store.delete(signer_key(&own));
    until(&store, "it is there again", || store.peek(signer_key(&own))).await;
}

#[tokio::test]
async fn what_was_assigned_before_controllers_signed_is_held_and_signed() {
    let (store, realm) = (store(), realm());
    let plain = Controller::start(store.clone(), "plain").await;
    let _agents = [Agent::start(&store, "n1").await, Agent::start(&store, "n2").await];
    put_service(&store, "hello", 4, "hello:1");
    ready(&store, "hello", 4).await;
    plain.stop().await.expect("it ends well");
    let placed = placements(&store);
    assert_eq!(signer(&store, &realm, "n1"), None);
    let signing = signs(&realm, realm.pen("controller/c1"));
    let controller = Controller::start_signing(store.clone(), "one", Some(signing.1.clone())).await;
    let own = signing.1.borrow().pen.certificate().fingerprint();
    until(&store, "both are signed", || {
        let both = ["n1", "n2"].map(|node| signer(&store, &realm, node));
        (both == [Some(own); 2]).then_some(())
    })
    .await;
    controller.rests_after(&store).await;
    assert_eq!(placements(&store), placed);
}
