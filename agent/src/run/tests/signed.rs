//! Assignments that count only under a controller's signature.

use super::*;
use crate::register::today;
use schemas::keys::TrustKey;
use schemas::records::NodeCondition;
use trust::realm::Realm;
use trust::sign::Pen;

fn of_cluster() -> Realm {
    Realm::new([7; 16], today())
}

fn sign(pen: &Pen, assignment: &Assignment) -> Vec<u8> {
    Realm::sign(pen, assignment.node.as_str(), assignment.encode())
}

impl Bed {
    /// An agent that joined: it believes this realm's controllers.
    fn joined(realm: &Realm) -> (Self, watch::Sender<Arc<Trust>>) {
        let (trust, receiver) = watch::channel(Arc::new(realm.trust()));
        let mut bed = Self::new();
        bed.trust = Some(receiver);
        (bed, trust)
    }

    fn publish(&self, pen: &Pen) {
        let name = pen.certificate().fingerprint().to_string();
        let place = key(&Key::Trust(TrustKey::Signer(name)));
        self.store.put(place, pen.certificate().to_pem().into_bytes());
    }

    fn offer(&self, bytes: impl Into<Vec<u8>>) {
        self.store.put(key(&Key::Assignment(node())), bytes.into());
    }

    async fn doubts(&self, part: &str) -> Report {
        self.until(&format!("it is doubted: {part}"), |report| {
            let doubts = |c: &NodeCondition| c.reason == "AssignmentDoubted" && c.message.contains(part);
            report.conditions.iter().any(doubts)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_controller_signed_for_this_node_is_obeyed() {
    let realm = of_cluster();
    let pen = realm.pen("controller/c1");
    let (mut bed, _trust) = Bed::joined(&realm);
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let assignment = bed.next(std::slice::from_ref(&web));
    bed.offer(assignment.encode());
    bed.start();
    bed.doubts("no controller has signed it").await;
    // Signed, and nobody says whose certificate it is; then somebody does, and it is found without another write.
    let genuine = sign(&pen, &assignment);
    bed.offer(genuine.clone());
    bed.doubts("is not in the store").await;
    assert_eq!(bed.starts(), 0);
    bed.publish(&pen);
    bed.offer(genuine.clone());
    bed.until("it runs", |report| ready(report) && report.conditions.is_empty())
        .await;

    // Whatever else comes, it goes on running, and nothing else is started.
    let mut gone = web.clone();
    gone.state = AssignedState::Absent;
    let other = bed.accept("other", 1, 1, spec("app:2"));
    let evil = bed.next(&[gone.clone(), other.clone()]);
    bed.offer(evil.encode());
    bed.doubts("no controller has signed it").await;
    let thief = realm.pen("node/n2");
    bed.publish(&thief);
    bed.offer(sign(&thief, &evil));
    bed.doubts("it is a node's, which may not do this").await;
    let elsewhere = of_cluster().pen("controller/c1");
    bed.publish(&elsewhere);
    bed.offer(sign(&elsewhere, &evil));
    bed.doubts("no authority that is trusted here issued it").await;
    let mut of_another = evil.clone();
    of_another.node = "n2".parse().unwrap();
    bed.offer(sign(&pen, &of_another));
    bed.doubts("the signature is not the signer's").await;
    let text = String::from_utf8(genuine.clone()).unwrap();
    let altered = text.replacen("\"present\"", "\"absent\"", 1);
    assert_ne!(altered, text);
    bed.offer(altered);
    bed.doubts("the signature is not the signer's").await;
    bed.two_sweeps().await;
    assert_eq!((bed.starts(), bed.engine.running().len()), (1, 1));

    // Genuine again: the doubt ends, and a genuine order is followed.
    bed.offer(genuine);
    bed.until("no doubt is left", |report| report.conditions.is_empty())
        .await;
    let next = bed.next(&[gone]);
    bed.offer(sign(&pen, &next));
    bed.until("it is gone", |report| report.instances.is_empty()).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_genuine_assignment_is_a_hold_as_ever() {
    let realm = of_cluster();
    let pen = realm.pen("controller/c1");
    let (mut bed, _trust) = Bed::joined(&realm);
    bed.publish(&pen);
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let before = bed.next(&[]);
    let now = bed.next(&[web]);
    bed.offer(sign(&pen, &now));
    bed.start();
    bed.until("it runs", ready).await;
    bed.offer(sign(&pen, &before));
    bed.until("the replay is told", |report| {
        report.conditions.iter().any(|c| c.reason == "StoreRegressed")
    })
    .await;
    // Signed anew by another controller it is the same order, and ends the hold.
    let second = realm.pen("controller/c2");
    bed.publish(&second);
    bed.offer(sign(&second, &now));
    bed.until("the hold ends", |report| ready(report) && report.conditions.is_empty())
        .await;
    assert_eq!(bed.starts(), 1);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_needs_nobodys_signature_for_what_is_on_its_own_disk() {
    let realm = of_cluster();
    let pen = realm.pen("controller/c1");
    let (mut bed, trust) = Bed::joined(&realm);
    bed.publish(&pen);
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let assignment = bed.next(&[web]);
    bed.offer(sign(&pen, &assignment));
    bed.start();
    bed.until("it runs", ready).await;
    bed.stop().await;

    // The store is gone, the signer forgotten, and what ran has ended.
    bed.store.wipe();
    trust.send_replace(Arc::new(of_cluster().trust()));
    bed.engine.crash("default.web.1.1", 1);
    bed.start();
    bed.engine_until("it is started again", |engine| engine.running().len() == 1)
        .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_longer_trusted_orders_nothing_more_and_what_was_ordered_stays() {
    let realm = of_cluster();
    let pen = realm.pen("controller/c1");
    let (mut bed, trust) = Bed::joined(&realm);
    bed.publish(&pen);
    let web = bed.accept("web", 1, 1, spec("app:1"));
    let assignment = bed.next(std::slice::from_ref(&web));
    bed.offer(sign(&pen, &assignment));
    bed.start();
    bed.until("it runs", ready).await;
    let successor = of_cluster();
    trust.send_replace(Arc::new(successor.trust()));
    let mut gone = web;
    gone.state = AssignedState::Absent;
    let next = bed.next(&[gone]);
    bed.offer(sign(&pen, &next));
    bed.doubts("no authority that is trusted here issued it").await;
    assert_eq!((bed.starts(), bed.engine.running().len()), (1, 1));
    let pen = successor.pen("controller/c1");
    bed.publish(&pen);
    bed.offer(sign(&pen, &next));
    bed.until("it is gone", |report| report.instances.is_empty()).await;
    bed.stop().await;
}
