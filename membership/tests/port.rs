//! Who may ask what at a seed's port, over real TLS: everything that is refused before the store is asked, and what an
//! administrator gets.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use membership::believed::Believed;
use membership::bootstrap::Stage;
use membership::call::{CallError, call};
use membership::leave::{LeaveAnswer, LeaveQuestion};
use membership::now;
use membership::port::{self, JoinAnswer, JoinQuestion, PlaceAnswer, PlaceQuestion, RenewQuestion, Seat, SeedState};
use membership::revoke::{RevokeAnswer, RevokeQuestion};
use membership::rotate::{AuthorityAnswer, AuthorityQuestion, Keys};
use membership::seat::{SeatAnswer, SeatQuestion};
use membership::seeds::Host;
use membership::tokens::{TokenAnswer, TokenQuestion, Wanted};
use runtime::embedded::{Embedded, OpenOptions};
use runtime::{EtcdStore, Guard, Outcome, Prefix, Store as _, person};
use rustls::ClientConfig;
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::{Key as StoreKey, Root, TrustKey};
use schemas::records::{Done, Record as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use trust::authority::{Authority, Grant, request};
use trust::bundle::Bundle;
use trust::identity::{Identity, Rights, Role};
use trust::key::Key;
use trust::revoked::{Revoked, Target};
use trust::tls::{Door, Peers, newcomer};
use trust::token::{Admits, InstallToken, JoinToken, Names, Record};
use trust::trusted::Trust;

/// A seed at 127.0.0.1 among five that is formed by its own word, and has no store to ask unless it is given one.
struct Served {
    token: InstallToken,
    port: u16,
    host: Host,
    seat: Arc<Seat>,
    end: watch::Sender<bool>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end.send_replace(true);
    }
}

/// The door of somebody of this authority: `server/10-0-0-2`.
fn door(authority: &Authority, who: &str) -> Arc<Door> {
    door_with(authority, who, &Key::generate().unwrap())
}

fn door_with(authority: &Authority, who: &str, key: &Key) -> Arc<Door> {
    let cluster = authority.certificate().cluster();
    let identity: Identity = format!("reeve://{cluster}/{who}").parse().unwrap();
    let grant = Grant::new(identity, 3_600);
    let asked = request(key, &grant.identity, &[], &[]).unwrap();
    let certificate = authority.issue(&asked, &grant, &Revoked::none(cluster), now()).unwrap();
    let trust = Trust::new(Bundle::of(authority.certificate().clone()), Revoked::none(cluster)).unwrap();
    let door = Door::new(trust);
    door.show(&certificate, key, authority.certificate()).unwrap();
    door
}

async fn served() -> Served {
    served_with(None).await
}

/// A store without users, as the embedded one is: it takes everything but what is about those.
fn store(dir: &std::path::Path) -> (Embedded, (EtcdStore, etcd_client::Client)) {
    let embedded = Embedded::open(OpenOptions::new(dir.join("store"))).unwrap();
    let clients = (EtcdStore::from_client(embedded.client()), embedded.client());
    (embedded, clients)
}

async fn served_with(store: Option<(EtcdStore, etcd_client::Client)>) -> Served {
    let token = InstallToken::generate(now()).unwrap();
    let authority = Authority::derived(&token).unwrap();
    let tls = door(&authority, "server/127-0-0-1")
        .server_for_newcomers(port::guests(), Arc::new(DefaultTimeProvider))
        .unwrap();
    let bundle = Bundle::of(authority.certificate().clone());
    let host: Host = "127.0.0.1".parse().unwrap();
    let seat = Arc::new(Seat {
        cluster: token.cluster(),
        host: host.clone(),
        seeds: "127.0.0.1,10.0.0.2,10.0.0.3,127.88.0.1,127.88.0.2".parse().unwrap(),
        root: Root::default(),
        believed: RwLock::new(Believed::begin(bundle.signed_by(&authority), bundle)),
        keys: Keys::of([authority]),
        shows: Mutex::default(),
        anchored: AtomicU64::new(0),
        life: 3_600,
        cut: AtomicU64::new(0),
        stage: watch::channel(Stage::Formed).0,
        store: Mutex::new(store),
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (end, ended) = watch::channel(false);
    let shared = Arc::clone(&seat);
    tokio::spawn(port::serve(listener, tls, seat, ended));
    Served {
        token,
        port,
        host,
        seat: shared,
        end,
    }
}

impl Served {
    fn authority(&self) -> Authority {
        Authority::derived(&self.token).unwrap()
    }

    /// As somebody with a certificate of this cluster.
    fn as_one(&self, who: &str) -> Arc<ClientConfig> {
        let door = door(&self.authority(), who);
        let servers = Peers::roles([Role::Server]);
        Arc::new(door.client(servers, Arc::new(DefaultTimeProvider)).unwrap())
    }

    /// As somebody who has nothing but the token.
    fn as_newcomer(&self) -> Arc<ClientConfig> {
        let pin = self.authority().certificate().fingerprint();
        Arc::new(newcomer(pin, Arc::new(DefaultTimeProvider)).unwrap())
    }

    async fn place(&self, tls: &Arc<ClientConfig>, host: &str) -> Result<PlaceAnswer, CallError> {
        let question = PlaceQuestion {
            host: host.parse().unwrap(),
        };
        let asked = call(&self.host, self.port, tls, "/v1/place", Some(&question)).await;
        asked.map(|(answer, _)| answer)
    }

    async fn renew(&self, tls: &Arc<ClientConfig>, who: &str, key: &Key) -> Result<JoinAnswer, CallError> {
        use base64::Engine as _;
        let identity: Identity = format!("reeve://{}/{who}", self.token.cluster()).parse().unwrap();
        let asked = request(key, &identity, &[], &[]).unwrap();
        let question = RenewQuestion {
            request: base64::engine::general_purpose::STANDARD.encode(asked),
        };
        let asked = call(&self.host, self.port, tls, "/v1/renew", Some(&question)).await;
        asked.map(|(answer, _)| answer)
    }

    async fn join(&self, tls: &Arc<ClientConfig>, who: &str) -> Result<JoinAnswer, CallError> {
        use base64::Engine as _;
        let identity: Identity = format!("reeve://{}/{who}", self.token.cluster()).parse().unwrap();
        let asked = request(&Key::generate().unwrap(), &identity, &[], &[]).unwrap();
        let question = JoinQuestion {
            token: self
                .token
                .join(self.authority().certificate().fingerprint())
                .to_text()
                .to_string(),
            request: base64::engine::general_purpose::STANDARD.encode(asked),
        };
        let asked = call(&self.host, self.port, tls, "/v1/join", Some(&question)).await;
        asked.map(|(answer, _)| answer)
    }
}

fn refused<T: std::fmt::Debug>(asked: Result<T, CallError>) -> (String, bool) {
    let error = asked.unwrap_err();
    let why = format!("{error:?}");
    let CallError::Refused { at: _, refused } = error else {
        panic!("{why}");
    };
    (refused.reason, refused.later)
}

#[tokio::test]
async fn only_a_seed_itself_takes_its_place_among_the_members() {
    let served = served().await;
    for tls in [
        served.as_newcomer(),
        served.as_one("server/10-0-0-3"),
        served.as_one("person/anna?admin"),
        served.as_one("node/10-0-0-2"),
    ] {
        let (reason, later) = refused(served.place(&tls, "10.0.0.2").await);
        assert_eq!(
            (reason.as_str(), later),
            ("only the seed 10.0.0.2 itself may take its place", false)
        );
    }
    // Who is no seed of the list, and this one's own place.
    for (who, host) in [("server/10-0-0-9", "10.0.0.9"), ("server/127-0-0-1", "127.0.0.1")] {
        let (reason, later) = refused(served.place(&served.as_one(who), host).await);
        assert!(reason.contains("none of the other seeds") && !later, "{reason}");
    }
    // The seed itself gets as far as the store, which is not there.
    let (reason, later) = refused(served.place(&served.as_one("server/10-0-0-2"), "10.0.0.2").await);
    assert!(reason.contains("not formed") && later, "{reason}");
}

#[tokio::test]
async fn who_is_in_has_its_own_certificate_renewed_and_no_other() {
    let served = served().await;
    let (own, other) = (Key::generate().unwrap(), Key::generate().unwrap());
    let door = door_with(&served.authority(), "node/n1", &own);
    let n1 = Arc::new(
        door.client(Peers::roles([Role::Server]), Arc::new(DefaultTimeProvider))
            .unwrap(),
    );
    for (tls, who, key, why) in [
        (&n1, "node/n2", &own, "and no other"),
        (&n1, "server/127-0-0-1", &own, "and no other"),
        (&n1, "person/n1?admin", &own, "and no other"),
        (&n1, "node/n1", &other, "with its own key"),
        (&served.as_newcomer(), "node/n1", &own, "shows no certificate"),
    ] {
        let (reason, later) = refused(served.renew(tls, who, key).await);
        assert!(reason.contains(why) && !later, "{who}: {reason}");
    }
    // It gets as far as the store, which is not there.
    let (reason, later) = refused(served.renew(&n1, "node/n1", &own).await);
    assert!(reason.contains("not formed") && later, "{reason}");
    // Controllers have no business here.
    let controller = served
        .renew(&served.as_one("controller/127-0-0-1"), "node/n1", &own)
        .await;
    assert!(!matches!(controller.unwrap_err(), CallError::Refused { .. }));
}

#[tokio::test]
async fn nobody_joins_before_the_cluster_is() {
    let served = served().await;
    let (reason, later) = refused(served.join(&served.as_newcomer(), "node/n1").await);
    assert!(reason.contains("not formed") && later, "{reason}");
}

#[tokio::test]
async fn a_seed_shows_itself_to_who_has_its_token_and_to_nobody_else() {
    let served = served().await;
    let (state, _) = call::<(), SeedState>(&served.host, served.port, &served.as_newcomer(), "/v1/seed", None)
        .await
        .unwrap();
    assert_eq!((state.cluster, state.stage), (served.token.cluster(), Stage::Formed));
    let other = Authority::derived(&InstallToken::generate(now()).unwrap()).unwrap();
    let pin = other.certificate().fingerprint();
    let tls = Arc::new(newcomer(pin, Arc::new(DefaultTimeProvider)).unwrap());
    let asked = call::<(), SeedState>(&served.host, served.port, &tls, "/v1/seed", None).await;
    assert!(matches!(asked.unwrap_err(), CallError::Stranger { .. }));
    // And one with a certificate of another cluster's is not let in.
    let door = door(&other, "server/10-0-0-2");
    let tls = Arc::new(
        door.client(Peers::roles([Role::Server]), Arc::new(DefaultTimeProvider))
            .unwrap(),
    );
    assert!(served.place(&tls, "10.0.0.2").await.is_err());
}

#[tokio::test]
async fn the_authoritys_key_is_given_to_the_other_seeds_and_to_nobody_else() {
    let served = served().await;
    let authority = served.authority();
    let pin = authority.certificate().fingerprint();
    let ask = async |tls: &Arc<ClientConfig>, pin| {
        let question = AuthorityQuestion { pin };
        let asked = call::<_, AuthorityAnswer>(&served.host, served.port, tls, "/v1/authority", Some(&question)).await;
        asked.map(|(answer, _)| (answer.certificate, answer.key))
    };
    let strangers = [
        served.as_newcomer(),
        served.as_one("node/n1"),
        served.as_one("person/root?admin"),
        // A server of no seed's name, and one that says to be this seed itself.
        served.as_one("server/10-0-0-9"),
        served.as_one("server/127-0-0-1"),
    ];
    for tls in strangers {
        let (why, later) = refused(ask(&tls, pin).await);
        assert!(why.contains("only the other seeds") && !later, "{why}");
    }
    let (certificate, key) = ask(&served.as_one("server/10-0-0-2"), pin).await.unwrap();
    let given = Authority::from_pem(&certificate, &key).unwrap();
    assert_eq!(given.certificate(), authority.certificate());
    let other = Authority::new(served.token.cluster(), now()).unwrap();
    let pin = other.certificate().fingerprint();
    let (why, later) = refused(ask(&served.as_one("server/10-0-0-2"), pin).await);
    assert!(why.contains("no key of that authority") && later, "{why}");
}

#[tokio::test]
async fn only_an_administrator_has_tokens_made_and_others_shut_out_and_never_a_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let (_embedded, (store, client)) = store(dir.path());
    let served = served_with(Some((store.clone(), client))).await;
    let pin = served.authority().certificate().fingerprint();
    let token = async |tls: &Arc<ClientConfig>, admits: Admits, names: &[&str], uses: u32| {
        let token = JoinToken::generate(pin).unwrap();
        let question = TokenQuestion {
            mark: token.mark(),
            wanted: Wanted {
                admits,
                names: names.iter().map(|name| name.parse().unwrap()).collect(),
                uses,
                seconds: 60,
            },
        };
        let asked = call::<_, TokenAnswer>(&served.host, served.port, tls, "/v1/token", Some(&question)).await;
        asked.map(|(answer, _)| (token, answer.record))
    };
    let revoke = async |tls: &Arc<ClientConfig>, subject: &str| {
        let question = RevokeQuestion {
            subject: subject.to_owned(),
            reason: "left".to_owned(),
        };
        let asked = call::<_, RevokeAnswer>(&served.host, served.port, tls, "/v1/revoke", Some(&question)).await;
        asked.map(|(answer, _)| answer.number)
    };
    for tls in [
        served.as_newcomer(),
        served.as_one("node/n1"),
        served.as_one("server/10-0-0-2"),
        served.as_one("person/otto?operator+exec+host"),
        served.as_one("person/otto?viewer"),
    ] {
        for refusal in [
            refused(token(&tls, Admits::Node, &[], 1).await),
            refused(revoke(&tls, "node/n1").await),
        ] {
            assert!(
                refusal.0.contains("with the right `admin`") && !refusal.1,
                "{refusal:?}"
            );
        }
    }
    let anna = served.as_one("person/anna?admin");
    for (admits, names, uses) in [
        (Admits::Server, ["10-0-0-2"].as_slice(), 2),
        (Admits::Controller, &["10-0-0-2"], 1),
        (Admits::Person(Rights::Admin), &["root"], 1),
        (Admits::Person(Rights::Admin), &["otto"], 2),
        (Admits::Person(Rights::Admin), &[], 1),
        (Admits::Node, &[], 0),
        (Admits::Node, &[], 10_001),
    ] {
        let (why, later) = refused(token(&anna, admits.clone(), names, uses).await);
        assert!(!later, "{admits:?}: {why}");
    }
    for subject in ["server/10-0-0-2", "controller/10-0-0-2", "person/root", "nobody"] {
        let (why, later) = refused(revoke(&anna, subject).await);
        assert!(!later, "{subject}: {why}");
    }
    // What is made counts: its record is the authority's word, and holds no secret.
    let (made, record) = token(&anna, Admits::Node, &["n7"], 1).await.unwrap();
    let place = Root::default().key(&StoreKey::Join(made.id().to_string()));
    let kept = store.get(place.as_bytes()).await.unwrap().value.unwrap().value;
    let bundle = Bundle::of(served.authority().certificate().clone());
    assert_eq!(Record::verified(&kept, &bundle, now()), Ok(record));
    assert_eq!(revoke(&anna, "node/n1").await.unwrap(), 1);
    assert_eq!(revoke(&anna, "person/otto").await.unwrap(), 2);
}

#[tokio::test]
async fn who_joined_after_a_removal_may_ask_again_and_who_was_removed_since_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let (_embedded, clients) = store(dir.path());
    let served = served_with(Some(clients)).await;
    let authority = served.authority();
    let pin = authority.certificate().fingerprint();
    let token = JoinToken::generate(pin).unwrap();
    let record = Record::of(
        &token,
        served.token.cluster(),
        Admits::Node,
        Names::Any,
        1,
        now().plus(60),
    );
    let place = Root::default().key(&StoreKey::Join(token.id().to_string()));
    let (kept, _) = served.seat.store.lock().unwrap().clone().unwrap();
    let txn = person::txn().put(place, record.signed_by(&authority), Guard::Absent);
    assert!(matches!(kept.commit(txn).await, Ok(Outcome::Committed { .. })));
    let remove = |at: u64| {
        let bundle = Bundle::of(authority.certificate().clone());
        let mut believed = Believed::begin(bundle.signed_by(&authority), bundle);
        let mut list = Revoked::none(served.token.cluster());
        for _ in 0..at {
            let target = Target::Subject("node/n1".parse().unwrap());
            list = list.and(target, "gone", now().plus(at)).unwrap();
        }
        let signed = list.signed_by(&authority);
        assert!(believed.hear([(TrustKey::Revoked, signed.as_slice())], now()).revoked);
        *served.seat.believed.write().unwrap() = believed;
    };
    remove(1);
    let key = Key::generate().unwrap();
    let ask = async || {
        use base64::Engine as _;
        let identity: Identity = format!("reeve://{}/node/n1", served.token.cluster()).parse().unwrap();
        let question = JoinQuestion {
            token: token.to_text().to_string(),
            request: base64::engine::general_purpose::STANDARD.encode(request(&key, &identity, &[], &[]).unwrap()),
        };
        let asked = call::<_, JoinAnswer>(
            &served.host,
            served.port,
            &served.as_newcomer(),
            "/v1/join",
            Some(&question),
        )
        .await;
        refused(asked.map(|_| ()))
    };
    // This store has no users, so that nobody gets any further; the token is used.
    let (why, later) = ask().await;
    assert!(later, "{why}");
    let (why, later) = ask().await;
    assert!(later && !why.contains("was removed"), "{why}");
    remove(2);
    let (why, later) = ask().await;
    assert!(!later && why.contains("was removed"), "{why}");
}

#[tokio::test]
async fn that_a_node_left_is_recorded_in_its_name_by_the_seed_that_it_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (_embedded, clients) = store(dir.path());
    let served = served_with(Some(clients)).await;
    let question = LeaveQuestion {
        note: "gone".to_owned(),
    };
    for _ in 0..2 {
        let tls = served.as_one("node/n1");
        let asked = call::<_, LeaveAnswer>(&served.host, served.port, &tls, "/v1/leave", Some(&question)).await;
        asked.unwrap();
    }
    // Another's name is not to be had, and who is no node leaves no record.
    let tls = served.as_one("person/anna?admin");
    let asked = call::<_, LeaveAnswer>(&served.host, served.port, &tls, "/v1/leave", Some(&question)).await;
    refused(asked);
    let (kept, _) = served.seat.store.lock().unwrap().clone().unwrap();
    let listing = kept
        .list(&Prefix::new(Root::default().prefix("audit")).unwrap())
        .await
        .unwrap();
    assert_eq!(listing.kvs.len(), 2);
    for kv in &listing.kvs {
        assert!(kv.key.starts_with(b"/reeve/audit/node.n1/"));
        let done = Done::decode(&kv.value).unwrap();
        assert_eq!((done.verb.as_str(), done.by.as_str()), ("leave", "server/127.0.0.1"));
        assert_eq!(done.objects, ["node/n1", "from 127.0.0.1"]);
        assert_eq!(done.ended.map(|ended| ended.exit_code), Some(0));
    }
}

#[tokio::test]
async fn a_seat_is_for_who_has_its_token_and_not_while_its_seed_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (_embedded, clients) = store(dir.path());
    let served = served_with(Some(clients)).await;
    let pin = served.authority().certificate().fingerprint();
    let ask = async |who: &str, host: &str| {
        use base64::Engine as _;
        let identity: Identity = format!("reeve://{}/{who}", served.token.cluster()).parse().unwrap();
        let key = Key::generate().unwrap();
        let question = SeatQuestion {
            token: JoinToken::generate(pin).unwrap().to_text().to_string(),
            request: base64::engine::general_purpose::STANDARD.encode(request(&key, &identity, &[], &[]).unwrap()),
            host: host.parse().unwrap(),
        };
        let tls = served.as_newcomer();
        let asked = call::<_, SeatAnswer>(&served.host, served.port, &tls, "/v1/seat", Some(&question)).await;
        let (why, later) = refused(asked.map(|_| ()));
        assert!(!later, "{why}");
        why
    };
    assert!(
        ask("server/10-0-0-9", "10.0.0.9")
            .await
            .contains("none of the other seeds")
    );
    assert!(
        ask("server/127-0-0-1", "127.0.0.1")
            .await
            .contains("none of the other seeds")
    );
    assert!(ask("server/10-0-0-3", "10.0.0.2").await.contains("is that of"));
    assert!(ask("node/10-0-0-2", "10.0.0.2").await.contains("is that of"));
    assert!(
        ask("server/127-88-0-1", "127.88.0.1")
            .await
            .contains("no token with the id")
    );
    let up = TcpListener::bind(("127.88.0.2", membership::SEED_PORT)).await.unwrap();
    assert!(ask("server/127-88-0-2", "127.88.0.2").await.contains("answers"));
    drop(up);
}
