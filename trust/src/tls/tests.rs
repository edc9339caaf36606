use std::collections::VecDeque;
use std::io::{Read, Write};

use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::bundle::Bundle;
use crate::revoked::{Revoked, Target};
use crate::testing::{DAY, Holder, NOW, World, cluster};

/// A clock that stands still.
#[derive(Debug)]
struct Still(Time);
impl TimeProvider for Still {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.into())
    }
}

fn clock() -> Arc<dyn TimeProvider> {
    Arc::new(Still(NOW))
}

fn door(world: &World, held: &Holder) -> Arc<Door> {
    let door = Door::new(world.trust());
    door.show(&held.certificate, &held.key, world.authority.certificate())
        .unwrap();
    door
}

/// What came of a handshake: each side's error, or who it found at the other end.
#[derive(Debug)]
struct Met {
    client: Result<Certificate, Error>,
    server: Result<Option<Certificate>, Error>,
    resumed: bool,
}

fn meet(client: ClientConfig, server: ServerConfig) -> Met {
    meet_with(&Arc::new(client), &Arc::new(server))
}

fn meet_with(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Met {
    let name = ServerName::try_from("anything.example").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    let (mut to_server, mut to_client) = (VecDeque::new(), VecDeque::new());
    for _ in 0..10 {
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        while !to_server.is_empty() {
            server.read_tls(&mut to_server).unwrap();
            server_error = server_error.or(server.process_new_packets().err());
        }
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        while !to_client.is_empty() {
            client.read_tls(&mut to_client).unwrap();
            client_error = client_error.or(client.process_new_packets().err());
        }
        if client_error.is_none() && server_error.is_none() && !client.is_handshaking() {
            // A word each way, for whatever comes after the handshake.
            client.writer().write_all(b"a").unwrap();
            server.writer().write_all(b"b").unwrap();
            let _ = client.reader().read(&mut [0; 9]);
            let _ = server.reader().read(&mut [0; 9]);
        }
    }
    let resumed = client.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    Met {
        client: client_error.map_or_else(|| Ok(peer(client.peer_certificates()).unwrap()), Err),
        server: server_error.map_or_else(
            || Ok(server.peer_certificates().map(|shown| peer(Some(shown)).unwrap())),
            Err,
        ),
        resumed,
    }
}

fn reason(error: &Error) -> &Stranger {
    stranger(error).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn a_controller_and_the_node_it_wants_find_each_other() {
    let world = World::new();
    let (controller, node) = (world.holder("controller/c1"), world.holder("node/n1"));
    let met = meet(
        door(&world, &controller)
            .client(Peers::One(Role::Node, "n1".parse().unwrap()), clock())
            .unwrap(),
        door(&world, &node)
            .server(Peers::roles([Role::Controller, Role::Person]), clock())
            .unwrap(),
    );
    assert_eq!(met.client.unwrap(), node.certificate);
    assert_eq!(met.server.unwrap(), Some(controller.certificate));
}

#[test]
fn a_client_refuses_a_server_of_another_role_name_or_authority() {
    let world = World::new();
    let client = door(&world, &world.holder("controller/c1"));
    let listen = |world: &World, rest: &str| {
        let all = Peers::roles([Role::Node, Role::Server, Role::Controller, Role::Person]);
        door(world, &world.holder(rest)).server(all, clock()).unwrap()
    };
    let wanted = || {
        client
            .client(Peers::One(Role::Node, "n1".parse().unwrap()), clock())
            .unwrap()
    };
    for other in ["server/n1", "node/n2"] {
        let met = meet(wanted(), listen(&world, other));
        assert!(
            matches!(reason(&met.client.unwrap_err()), Stranger::OtherPeer(_)),
            "{other}"
        );
        assert!(met.server.is_err());
    }
    // A person's certificate may not be shown by a server at all.
    let met = meet(
        client.client(Peers::roles([Role::Person]), clock()).unwrap(),
        listen(&world, "person/anna?admin"),
    );
    let wrong_use = Stranger::Distrust(Distrust::OtherUse { wanted: Use::Serving });
    assert_eq!(reason(&met.client.unwrap_err()), &wrong_use);
    let met = meet(wanted(), listen(&World::new(), "node/n1"));
    assert_eq!(
        reason(&met.client.unwrap_err()),
        &Stranger::Distrust(Distrust::OtherAuthority)
    );
    let met = meet(wanted(), listen(&World::of(cluster(2)), "node/n1"));
    let elsewhere = Stranger::Distrust(Distrust::OtherCluster { found: cluster(2) });
    assert_eq!(reason(&met.client.unwrap_err()), &elsewhere);
}

#[test]
fn a_server_refuses_a_client_of_another_role_or_authority_or_without_a_certificate() {
    let world = World::new();
    let listen = || {
        let peers = Peers::roles([Role::Controller]);
        door(&world, &world.holder("node/n1")).server(peers, clock()).unwrap()
    };
    let from = |world: &World, rest: &str| {
        door(world, &world.holder(rest))
            .client(Peers::roles([Role::Node]), clock())
            .unwrap()
    };
    let met = meet(from(&world, "node/n2"), listen());
    assert!(matches!(reason(&met.server.unwrap_err()), Stranger::OtherPeer(who) if who.who.role() == Role::Node));
    // The stranger's own trust would refuse the server first: it is made to trust it.
    let stranger_world = World::new();
    let held = stranger_world.holder("controller/c1");
    let blind = Door::new(world.trust());
    blind
        .show(&held.certificate, &held.key, stranger_world.authority.certificate())
        .unwrap();
    let met = meet(blind.client(Peers::roles([Role::Node]), clock()).unwrap(), listen());
    assert_eq!(
        reason(&met.server.unwrap_err()),
        &Stranger::Distrust(Distrust::OtherAuthority)
    );
    let nobody = Door::new(world.trust());
    let met = meet(nobody.client(Peers::roles([Role::Node]), clock()).unwrap(), listen());
    assert!(matches!(met.server, Err(Error::NoCertificatesPresented)));
}

#[test]
fn an_expired_or_revoked_peer_is_refused_from_the_next_handshake_on() {
    let world = World::new();
    let (controller, node) = (world.holder("controller/c1"), world.holder("node/n1"));
    let (client, server) = (door(&world, &controller), door(&world, &node));
    let late: Arc<dyn TimeProvider> = Arc::new(Still(NOW.plus(91 * DAY)));
    let met = meet(
        client.client(Peers::roles([Role::Node]), late).unwrap(),
        server.server(Peers::roles([Role::Controller]), clock()).unwrap(),
    );
    assert!(matches!(
        reason(&met.client.unwrap_err()),
        Stranger::Distrust(Distrust::Expired { .. })
    ));

    let ask = Arc::new(client.client(Peers::roles([Role::Node]), clock()).unwrap());
    let listen = Arc::new(server.server(Peers::roles([Role::Controller]), clock()).unwrap());
    assert!(meet_with(&ask, &listen).server.is_ok());
    let revoked = world
        .revoked
        .and(Target::Subject("controller/c1".parse().unwrap()), "gone", NOW)
        .unwrap();
    let trust = Trust::new(world.bundle.clone(), revoked).unwrap();
    // An open connection is found by asking again.
    assert!(server.trust().recheck(&controller.certificate, NOW).is_ok());
    assert!(trust.recheck(&controller.certificate, NOW).is_err());
    server.set_trust(trust);
    let met = meet_with(&ask, &listen);
    assert!(!met.resumed);
    assert!(matches!(
        reason(&met.server.unwrap_err()),
        Stranger::Distrust(Distrust::Revoked(_))
    ));
}

#[test]
fn no_session_is_resumed() {
    let world = World::new();
    let ask = Arc::new(
        door(&world, &world.holder("controller/c1"))
            .client(Peers::roles([Role::Node]), clock())
            .unwrap(),
    );
    let listen = Arc::new(
        door(&world, &world.holder("node/n1"))
            .server(Peers::roles([Role::Controller]), clock())
            .unwrap(),
    );
    for _ in 0..3 {
        let met = meet_with(&ask, &listen);
        assert!(met.client.is_ok() && met.server.is_ok() && !met.resumed);
    }
    // Nor when the client would.
    let mut eager = ClientConfig::clone(&ask);
    eager.resumption = Resumption::in_memory_sessions(8);
    let eager = Arc::new(eager);
    // Nor when the server would.
    let mut generous = ServerConfig::clone(&listen);
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    generous.send_tls13_tickets = 2;
    let generous = Arc::new(generous);
    for _ in 0..3 {
        assert!(!meet_with(&eager, &listen).resumed);
        assert!(!meet_with(&ask, &generous).resumed);
    }
    // Both together would: so the two above were asked in earnest.
    meet_with(&eager, &generous);
    assert!(meet_with(&eager, &generous).resumed);
}

#[test]
fn authorities_and_certificates_are_rotated_while_listeners_stay() {
    let (old, new) = (World::new(), World::new());
    let (client, server) = (
        door(&old, &old.holder("controller/c1")),
        door(&old, &old.holder("node/n1")),
    );
    let ask = Arc::new(client.client(Peers::roles([Role::Node]), clock()).unwrap());
    let listen = Arc::new(server.server(Peers::roles([Role::Controller]), clock()).unwrap());
    let meets = |step: &str| {
        let met = meet_with(&ask, &listen);
        assert!(met.client.is_ok() && met.server.is_ok(), "{step}: {met:?}");
    };
    let trust = |bundle: &Bundle| Trust::new(bundle.clone(), Revoked::none(old.cluster())).unwrap();
    let announced = old.bundle.announce(new.authority.certificate().clone()).unwrap();
    let promoted = announced.promote().unwrap();
    let forgotten = promoted.forget(&old.authority.certificate().fingerprint()).unwrap();
    let show = |door: &Door, rest: &str| {
        let held = new.holder(rest);
        door.show(&held.certificate, &held.key, new.authority.certificate())
            .unwrap();
    };
    let steps: [(&str, &dyn Fn()); 8] = [
        ("announced to the client", &|| client.set_trust(trust(&announced))),
        ("announced to the server", &|| server.set_trust(trust(&announced))),
        ("promoted at the server", &|| server.set_trust(trust(&promoted))),
        ("the server renewed", &|| show(&server, "node/n1")),
        ("promoted at the client", &|| client.set_trust(trust(&promoted))),
        ("the client renewed", &|| show(&client, "controller/c1")),
        ("forgotten at the client", &|| client.set_trust(trust(&forgotten))),
        ("forgotten at the server", &|| server.set_trust(trust(&forgotten))),
    ];
    meets("before");
    for (name, step) in steps {
        step();
        meets(name);
    }
}

#[test]
fn a_newcomer_speaks_to_a_server_of_the_pinned_authority_only() {
    let world = World::new();
    let pin = world.authority.certificate().fingerprint();
    let listen = |world: &World, rest: &str| {
        let peers = Peers::roles([Role::Node]);
        door(world, &world.holder(rest))
            .server_for_newcomers(peers, clock())
            .unwrap()
    };
    let met = meet(newcomer(pin, clock()).unwrap(), listen(&world, "server/s1"));
    assert_eq!(met.client.unwrap().identity().who.name().as_str(), "s1");
    assert_eq!(met.server.unwrap(), None);
    // A node, though of the same authority, is not asked to let anybody in.
    let met = meet(newcomer(pin, clock()).unwrap(), listen(&world, "node/n1"));
    assert!(matches!(reason(&met.client.unwrap_err()), Stranger::OtherPeer(_)));
    let met = meet(newcomer(pin, clock()).unwrap(), listen(&World::new(), "server/s1"));
    assert_eq!(reason(&met.client.unwrap_err()), &Stranger::NotPinned);
    // The pinned authority's certificate, which is public, behind a stranger's own.
    let liar = World::new();
    let held = liar.holder("server/s1");
    let lying = Door::new(world.trust());
    lying
        .show(&held.certificate, &held.key, world.authority.certificate())
        .unwrap();
    let met = meet(
        newcomer(pin, clock()).unwrap(),
        lying.server_for_newcomers(Peers::roles([]), clock()).unwrap(),
    );
    assert_eq!(
        reason(&met.client.unwrap_err()),
        &Stranger::Distrust(Distrust::OtherAuthority)
    );
}

#[test]
fn a_newcomer_is_told_when_the_pinned_authority_has_ended_or_the_servers_certificate_has() {
    let world = World::new();
    let pin = world.authority.certificate().fingerprint();
    let at = |now: Time| {
        let listen = door(&world, &world.holder("server/s1"));
        let server = listen.server_for_newcomers(Peers::roles([]), clock()).unwrap();
        let met = meet(newcomer(pin, Arc::new(Still(now))).unwrap(), server);
        reason(&met.client.unwrap_err()).clone()
    };
    let end = world.authority.certificate().validity().until;
    assert_eq!(at(end.plus(1)), Stranger::PinnedNotNow);
    assert!(matches!(at(end), Stranger::Distrust(Distrust::Expired { .. })));
}

#[test]
fn a_newcomer_whose_token_pins_an_earlier_authority_is_led_to_the_present_one() {
    let (first, second, third) = (World::new(), World::new(), World::new());
    let of = |world: &World| world.authority.certificate().clone();
    let endorse = |earlier: &World, later: &World| (of(earlier), earlier.authority.endorse(&of(later), NOW).unwrap());
    let held = third.holder("server/s1");
    let meet_showing = |pin: &World, earlier: &[(AuthorityCertificate, Endorsement)]| {
        let door = Door::new(third.trust());
        door.show_endorsed(&held.certificate, &held.key, &of(&third), earlier)
            .unwrap();
        let server = door.server_for_newcomers(Peers::roles([]), clock()).unwrap();
        meet(newcomer(of(pin).fingerprint(), clock()).unwrap(), server).client
    };
    let steps = [endorse(&second, &third), endorse(&first, &second)];
    for pin in [&first, &second, &third] {
        assert_eq!(meet_showing(pin, &steps).unwrap(), held.certificate);
    }
    let refused =
        |pin: &World, steps: &[_]| assert_eq!(reason(&meet_showing(pin, steps).unwrap_err()), &Stranger::NotPinned);
    refused(&first, &steps[..1]);
    refused(&first, &[steps[1].clone(), steps[0].clone()]);
    // Endorsed by another than it says, and another than the one who shows it.
    let stranger = World::new();
    let forged = stranger.authority.endorse(&of(&third), NOW).unwrap();
    refused(&second, &[(of(&second), forged.clone())]);
    refused(&second, &[(of(&stranger), forged)]);
    refused(&first, &[endorse(&first, &second)]);
    // The endorsement of an authority is no authority.
    let shown = steps[0].1.der().into_owned();
    assert!(AuthorityCertificate::from_der(&shown).is_err());
    assert!(Certificate::from_der(&shown).is_err());
}

#[test]
fn an_endorsement_counts_in_its_cluster_and_time_only() {
    let (first, second, elsewhere) = (World::new(), World::new(), World::of(cluster(2)));
    let of = |world: &World| world.authority.certificate().clone();
    let endorsement = first.authority.endorse(&of(&second), NOW).unwrap();
    assert_eq!(Endorsement::from_pem(&endorsement.to_pem()), Ok(endorsement.clone()));
    assert!(endorsement.proves(&of(&first), &of(&second), NOW));
    let end = of(&first).validity().until;
    assert!(!endorsement.proves(&of(&first), &of(&second), end.plus(1)));
    assert!(!endorsement.proves(&of(&second), &of(&first), NOW));
    assert!(first.authority.endorse(&of(&elsewhere), NOW).is_err());
    assert!(first.authority.endorse(&of(&second), end.plus(1)).is_err());
}

#[test]
fn what_a_newcomer_is_shown_tells_it_the_authority() {
    let world = World::new();
    let server = world.holder("server/s1");
    let chain = [
        server.certificate.der().into_owned(),
        world.authority.certificate().der().into_owned(),
    ];
    assert_eq!(shown_authority(Some(&chain)).unwrap(), *world.authority.certificate());
    assert!(shown_authority(Some(&chain[..1])).is_err() && shown_authority(None).is_err());
}

#[test]
fn where_newcomers_are_heard_a_certificate_that_is_shown_must_still_be_good() {
    let world = World::new();
    let server = door(&world, &world.holder("server/s1"));
    let listen = || {
        server
            .server_for_newcomers(Peers::roles([Role::Node]), clock())
            .unwrap()
    };
    let ask = |rest: &str| {
        door(&world, &world.holder(rest))
            .client(Peers::roles([Role::Server]), clock())
            .unwrap()
    };
    assert!(meet(ask("node/n1"), listen()).server.unwrap().is_some());
    assert!(matches!(
        reason(&meet(ask("controller/c1"), listen()).server.unwrap_err()),
        Stranger::OtherPeer(_)
    ));
}

#[test]
fn a_key_is_not_shown_with_anothers_certificate() {
    let world = World::new();
    let (a, b) = (world.holder("node/a"), world.holder("node/b"));
    let refused = Door::new(world.trust()).show(&a.certificate, &b.key, world.authority.certificate());
    assert_eq!(refused, Err(ShowError::Key(KeyMismatch)));
}
