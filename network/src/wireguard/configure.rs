//! What a WireGuard device is told: [`configure`] compares what it should be with what it is, and says only what differs, so
//! that no session of an unchanged peer ends. Pure; `uapi` and `generic` put it in the two languages that devices speak.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use planner::network::links::{Key, WireguardPeer};
use zeroize::Zeroizing;

/// A session whose last handshake is older is over, in seconds.
pub const SESSION_SECONDS: u64 = 180;

pub type Private = Zeroizing<[u8; 32]>;

/// A device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub private: Option<Private>,
    pub port: Option<u16>,
    pub mark: u32,
    pub peers: BTreeMap<Key, SeenPeer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPeer {
    pub endpoint: Option<SocketAddr>,
    pub allowed: BTreeSet<IpNet>,
    /// In seconds; 0: none.
    pub keepalive: u16,
    pub preshared: bool,
    /// In seconds since 1970; None: none yet.
    pub handshake: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// What it is told. Nothing where all is as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub private: Option<Private>,
    pub port: Option<u16>,
    /// Packets are to carry no mark.
    pub unmark: bool,
    /// Those to be removed are first: what they were allowed another may get.
    pub peers: Vec<PeerChange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    pub key: Key,
    pub remove: bool,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<u16>,
    /// Instead of what it has.
    pub allowed: Option<Vec<IpNet>>,
    /// It is to have no secret beside its key.
    pub unshare: bool,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        let Self {
            private,
            port,
            unmark,
            peers,
        } = self;
        private.is_none() && port.is_none() && !unmark && peers.is_empty()
    }
}

/// How often, in seconds, a key that was not heard from yet is called, while the one before goes on.
const CALL_SECONDS: u16 = 5;

/// Whose key is new and has not answered yet, with the key that the same node had before and whose session lives: it goes on by
/// that one until then, so that it does not matter who hears of a new key first.
pub fn waiting(peers: &[WireguardPeer], seen: &Seen, now: u64) -> BTreeMap<Key, Key> {
    let wanted: BTreeSet<Key> = peers.iter().map(|peer| peer.key).collect();
    // Subnets are a node's own.
    let before: BTreeMap<&BTreeSet<IpNet>, Key> = seen
        .peers
        .iter()
        .filter(|(key, old)| !wanted.contains(key) && !old.allowed.is_empty() && lives(old, now))
        .map(|(key, old)| (&old.allowed, *key))
        .collect();
    if before.is_empty() {
        return BTreeMap::new();
    }
    let wait = |peer: &WireguardPeer| {
        let answered = seen.peers.get(&peer.key).is_some_and(|is| is.handshake.is_some());
        let allowed: BTreeSet<IpNet> = peer.allowed.iter().copied().collect();
        let old = before.get(&allowed).filter(|_| !answered)?;
        Some((peer.key, *old))
    };
    peers.iter().filter_map(wait).collect()
}

fn lives(peer: &SeenPeer, now: u64) -> bool {
    peer.handshake
        .is_some_and(|last| now.saturating_sub(last) < SESSION_SECONDS)
}

/// Where one packet makes a device begin a session at once: to all after a change of its own key, and to those whose new key has
/// taken the place of the one before.
pub fn call(peers: &[WireguardPeer], seen: &Seen, change: &Change) -> Vec<IpNet> {
    let own = change.private.is_some() && seen.private.is_some();
    let moved: BTreeSet<Key> = change
        .peers
        .iter()
        .filter(|told| told.allowed.as_ref().is_some_and(|allowed| !allowed.is_empty()))
        .map(|told| told.key)
        .filter(|key| seen.peers.get(key).is_some_and(|is| is.allowed.is_empty()))
        .collect();
    let called = peers.iter().filter(|peer| own || moved.contains(&peer.key));
    called.filter_map(|peer| peer.allowed.first().copied()).collect()
}

/// What differs. `told` is where this process said a peer is, of those it said anything of; `now` in seconds since 1970. Where
/// a peer was heard from elsewhere than it is said to be, that stands while its session lives: it may be behind address
/// translation. `kept`: who waits for a new key's answer, by that key, with the one that goes on.
pub fn configure(
    private: &Private,
    port: u16,
    peers: &[WireguardPeer],
    seen: &Seen,
    told: &BTreeMap<Key, SocketAddr>,
    kept: &BTreeMap<Key, Key>,
    now: u64,
) -> Change {
    let mut change = Change {
        private: (seen.private.as_ref() != Some(private)).then(|| private.clone()),
        port: (seen.port != Some(port)).then_some(port),
        unmark: seen.mark != 0,
        peers: Vec::new(),
    };
    let wanted: BTreeSet<Key> = peers.iter().map(|peer| peer.key).collect();
    let go_on: BTreeSet<Key> = kept.values().copied().collect();
    let gone = |key: &&Key| !wanted.contains(key) && !go_on.contains(key);
    for key in seen.peers.keys().filter(gone) {
        change.peers.push(PeerChange {
            remove: true,
            ..PeerChange::nothing(*key)
        });
    }
    // What two peers say is theirs goes to one of them only, and not all devices say to which.
    let mut claims: BTreeMap<IpNet, u32> = BTreeMap::new();
    for subnet in seen.peers.values().flat_map(|peer| &peer.allowed) {
        *claims.entry(*subnet).or_default() += 1;
    }
    let unknown = SeenPeer::default();
    let disputed = |allowed: &BTreeSet<IpNet>| {
        allowed
            .iter()
            .any(|subnet| claims.get(subnet).is_some_and(|by| *by > 1))
    };
    for peer in peers {
        let found = seen.peers.get(&peer.key);
        let is = found.unwrap_or(&unknown);
        if let Some(old) = kept.get(&peer.key) {
            let heard = seen.peers.get(old).and_then(|old| old.endpoint);
            let told = PeerChange {
                endpoint: heard.or(peer.endpoint).filter(|_| is.endpoint.is_none()),
                keepalive: (is.keepalive != CALL_SECONDS).then_some(CALL_SECONDS),
                allowed: (!is.allowed.is_empty()).then(Vec::new),
                unshare: is.preshared,
                ..PeerChange::nothing(peer.key)
            };
            if found.is_none() || told != PeerChange::nothing(peer.key) {
                change.peers.push(told);
            }
            continue;
        }
        let lives = lives(is, now);
        let moved = told.get(&peer.key).is_some_and(|told| Some(*told) != peer.endpoint);
        let keepalive = peer.keepalive.unwrap_or(0);
        let allowed: BTreeSet<IpNet> = peer.allowed.iter().copied().collect();
        let told = PeerChange {
            remove: false,
            endpoint: peer
                .endpoint
                .filter(|at| is.endpoint != Some(*at) && (is.endpoint.is_none() || moved || !lives)),
            keepalive: (is.keepalive != keepalive).then_some(keepalive),
            allowed: (is.allowed != allowed || disputed(&is.allowed)).then(|| peer.allowed.clone()),
            unshare: is.preshared,
            ..PeerChange::nothing(peer.key)
        };
        if found.is_none() || told != PeerChange::nothing(peer.key) {
            change.peers.push(told);
        }
    }
    change
}

impl PeerChange {
    fn nothing(key: Key) -> Self {
        Self {
            key,
            remove: false,
            endpoint: None,
            keepalive: None,
            allowed: None,
            unshare: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    fn peer(number: u8) -> WireguardPeer {
        WireguardPeer {
            node: format!("n{number}").parse().unwrap(),
            key: key(number),
            endpoint: Some(SocketAddr::from(([192, 168, 7, number], 51_820))),
            allowed: vec![format!("10.210.{number}.0/24").parse().unwrap()],
            keepalive: None,
        }
    }

    fn as_told(peers: &[WireguardPeer]) -> Seen {
        let seen = |peer: &WireguardPeer| SeenPeer {
            endpoint: peer.endpoint,
            allowed: peer.allowed.iter().copied().collect(),
            keepalive: peer.keepalive.unwrap_or(0),
            ..SeenPeer::default()
        };
        Seen {
            private: Some(private()),
            port: Some(51_820),
            mark: 0,
            peers: peers.iter().map(|peer| (peer.key, seen(peer))).collect(),
        }
    }

    fn private() -> Private {
        Zeroizing::new([9; 32])
    }

    fn see(peers: &[WireguardPeer], seen: &Seen) -> Change {
        let kept = waiting(peers, seen, 10_000);
        configure(&private(), 51_820, peers, seen, &BTreeMap::new(), &kept, 10_000)
    }

    #[test]
    fn a_new_device_is_told_all_and_one_as_it_should_be_nothing() {
        let peers = [peer(2), peer(3)];
        let all = see(&peers, &Seen::default());
        assert!(all.private.is_some() && all.port == Some(51_820) && all.peers.len() == 2);
        assert_eq!(all.peers[0].allowed, Some(peers[0].allowed.clone()));
        assert!(see(&peers, &as_told(&peers)).is_empty());
    }

    #[test]
    fn only_what_differs_is_told() {
        let peers = [peer(2), peer(3), peer(4)];
        let mut seen = as_told(&peers);
        seen.peers.get_mut(&key(3)).unwrap().allowed.clear();
        seen.peers.insert(key(7), SeenPeer::default());
        seen.peers.get_mut(&key(4)).unwrap().preshared = true;
        seen.mark = 5;
        let change = see(&peers, &seen);
        assert!(change.private.is_none() && change.port.is_none() && change.unmark);
        let keys: Vec<(u8, bool)> = change.peers.iter().map(|peer| (peer.key.0[0], peer.remove)).collect();
        assert_eq!(keys, [(7, true), (3, false), (4, false)], "who goes, goes first");
        assert!(change.peers[1].endpoint.is_none() && change.peers[1].allowed.is_some());
        assert!(change.peers[2].unshare && change.peers[2].allowed.is_none());
    }

    #[test]
    fn a_subnet_that_two_claim_is_told_again() {
        let peers = [peer(2), peer(3)];
        let mut seen = as_told(&peers);
        let foreign = SeenPeer {
            allowed: peers[1].allowed.iter().copied().collect(),
            ..SeenPeer::default()
        };
        seen.peers.insert(key(7), foreign);
        let change = see(&peers, &seen);
        assert_eq!(change.peers.len(), 2);
        assert_eq!(
            (change.peers[1].key, &change.peers[1].allowed),
            (key(3), &Some(peers[1].allowed.clone()))
        );
    }

    /// A node's key was 2, and is 5 now.
    fn renewed() -> ([WireguardPeer; 2], Seen) {
        let mut seen = as_told(&[peer(2), peer(3)]);
        let old = seen.peers.get_mut(&key(2)).unwrap();
        old.handshake = Some(9_900);
        old.endpoint = Some("203.0.113.7:4000".parse().unwrap());
        let new = WireguardPeer { key: key(5), ..peer(2) };
        ([new, peer(3)], seen)
    }

    #[test]
    fn the_key_before_goes_on_until_the_new_one_answers() {
        let (peers, mut seen) = renewed();
        let change = see(&peers, &seen);
        assert_eq!(change.peers.len(), 1, "nothing is removed: {change:?}");
        let told = &change.peers[0];
        assert_eq!((told.key, told.remove, &told.allowed), (key(5), false, &None));
        assert_eq!(
            told.endpoint,
            seen.peers[&key(2)].endpoint,
            "where the node was heard from last"
        );
        assert_eq!(told.keepalive, Some(CALL_SECONDS), "it is called");
        assert!(call(&peers, &seen, &change).is_empty());
        let new = SeenPeer {
            endpoint: told.endpoint,
            keepalive: CALL_SECONDS,
            ..SeenPeer::default()
        };
        seen.peers.insert(key(5), new);
        assert!(see(&peers, &seen).is_empty(), "what was told begins no session anew");
        seen.peers.get_mut(&key(5)).unwrap().handshake = Some(9_999);
        let change = see(&peers, &seen);
        let keys: Vec<(u8, bool)> = change.peers.iter().map(|peer| (peer.key.0[0], peer.remove)).collect();
        assert_eq!(keys, [(2, true), (5, false)]);
        assert_eq!(change.peers[1].allowed, Some(peers[0].allowed.clone()));
        assert_eq!(call(&peers, &seen, &change), [peers[0].allowed[0]]);
    }

    #[test]
    fn a_key_before_whose_session_is_over_does_not_go_on() {
        let (peers, mut seen) = renewed();
        seen.peers.get_mut(&key(2)).unwrap().handshake = Some(10_000 - SESSION_SECONDS);
        assert!(waiting(&peers, &seen, 10_000).is_empty());
        let keys: Vec<(u8, bool)> = see(&peers, &seen)
            .peers
            .iter()
            .map(|one| (one.key.0[0], one.remove))
            .collect();
        assert_eq!(keys, [(2, true), (5, false)]);
    }

    #[test]
    fn who_has_another_key_of_its_own_calls_all() {
        let peers = [peer(2), peer(3)];
        let mut seen = as_told(&peers);
        seen.private = Some(Zeroizing::new([8; 32]));
        let change = see(&peers, &seen);
        assert_eq!(call(&peers, &seen, &change), [peers[0].allowed[0], peers[1].allowed[0]]);
        // A device that is new has nobody to be missed by.
        assert!(call(&peers, &Seen::default(), &see(&peers, &Seen::default())).is_empty());
    }

    #[test]
    fn where_a_peer_was_heard_stands_while_its_session_lives() {
        let peers = [peer(2)];
        let mut seen = as_told(&peers);
        let elsewhere = Some("203.0.113.7:4000".parse().unwrap());
        seen.peers.get_mut(&key(2)).unwrap().endpoint = elsewhere;
        seen.peers.get_mut(&key(2)).unwrap().handshake = Some(9_990);
        assert!(see(&peers, &seen).is_empty());
        let told = |at: &str| BTreeMap::from([(key(2), at.parse().unwrap())]);
        let now = |told| configure(&private(), 51_820, &peers, &seen, &told, &BTreeMap::new(), 10_000);
        assert!(now(told("192.168.7.2:51820")).is_empty());
        assert_eq!(
            now(told("192.168.7.9:51820")).peers[0].endpoint,
            peers[0].endpoint,
            "it has moved"
        );
        seen.peers.get_mut(&key(2)).unwrap().handshake = Some(9_000);
        assert_eq!(see(&peers, &seen).peers[0].endpoint, peers[0].endpoint);
        seen.peers.get_mut(&key(2)).unwrap().handshake = None;
        assert_eq!(see(&peers, &seen).peers[0].endpoint, peers[0].endpoint);
    }
}
