//! Who may ask what at a seed's port, over real TLS: everything that is refused before the store is asked.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use membership::believed::Believed;
use membership::bootstrap::Stage;
use membership::call::{CallError, call};
use membership::now;
use membership::port::{self, JoinAnswer, JoinQuestion, PlaceAnswer, PlaceQuestion, RenewQuestion, Seat, SeedState};
use membership::rotate::{AuthorityAnswer, AuthorityQuestion, Keys};
use membership::seeds::Host;
use rustls::ClientConfig;
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::Root;
use tokio::net::TcpListener;
use tokio::sync::watch;
use trust::authority::{Authority, Grant, request};
use trust::bundle::Bundle;
use trust::identity::{Identity, Role};
use trust::key::Key;
use trust::revoked::Revoked;
use trust::tls::{Door, Peers, newcomer};
use trust::token::InstallToken;
use trust::trusted::Trust;

/// A seed at 127.0.0.1 among three that is formed by its own word, and has no store to ask.
struct Served {
    token: InstallToken,
    port: u16,
    host: Host,
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
        seeds: "127.0.0.1,10.0.0.2,10.0.0.3".parse().unwrap(),
        root: Root::default(),
        believed: RwLock::new(Believed::begin(bundle.signed_by(&authority), bundle)),
        keys: Keys::of([authority]),
        shows: Mutex::default(),
        anchored: AtomicU64::new(0),
        life: 3_600,
        cut: AtomicU64::new(0),
        stage: watch::channel(Stage::Formed).0,
        store: Mutex::default(),
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (end, ended) = watch::channel(false);
    tokio::spawn(port::serve(listener, tls, seat, ended));
    Served { token, port, host, end }
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
