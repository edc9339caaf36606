//! Whose published links are taken for their own: where nodes have certificates, only what a node signed under one that is trusted now.
//! `ground.rs` asks before it links to anybody, so that who can write the store alone gets no packet of others.

use std::collections::BTreeMap;

use runtime::chain;
use schemas::names::NodeName;
use schemas::records::{NodeLink, Peer};
use trust::publish::verify_link;
use trust::trusted::Trust;
use trust::validity::Time;

/// Reasons that are told at once.
const TOLD: usize = 5;

/// The peers that are believed, and why others are not.
pub(super) type Believed = (BTreeMap<NodeName, Peer>, Vec<String>);

/// Which of these are believed; all of them where nodes have no certificates. A node needs no link to itself.
pub(super) fn believed(
    own: &NodeName,
    peers: &BTreeMap<NodeName, Peer>,
    trust: Option<&Trust>,
    today: Time,
) -> Believed {
    let (mut good, mut doubted) = (BTreeMap::new(), Vec::new());
    for (node, peer) in peers.iter().filter(|(node, _)| *node != own) {
        match trust.map_or(Ok(()), |trust| is_own(node, &peer.link, trust, today)) {
            Ok(()) => drop(good.insert(node.clone(), peer.clone())),
            Err(why) => doubted.push(format!(
                "no link to node {node}: what is published of it is not its own word: {why}"
            )),
        }
    }
    doubted.truncate(TOLD);
    (good, doubted)
}

fn is_own(node: &NodeName, link: &NodeLink, trust: &Trust, today: Time) -> Result<(), String> {
    let (Some(proof), Ok(name)) = (&link.proof, node.as_str().parse()) else {
        return Err("it is not signed".to_owned());
    };
    let signed = (proof.certificate.as_str(), proof.signature.as_str());
    verify_link(&document(&unproven(link)), &name, signed, trust, today).map_err(|error| chain(&error))
}

/// What is signed of a link.
pub(super) fn document(link: &NodeLink) -> Vec<u8> {
    serde_json::to_vec(link).unwrap_or_default()
}

pub(super) fn unproven(link: &NodeLink) -> NodeLink {
    NodeLink {
        proof: None,
        ..link.clone()
    }
}

#[cfg(test)]
mod tests {
    use schemas::records::LinkProof;
    use trust::realm::{LIFE, Realm};
    use trust::sign::{Domain, Pen};

    use super::*;
    use crate::register::today;

    fn link(key: &str) -> NodeLink {
        let said = serde_json::json!({
            "kind": "wireguard", "key": format!("{key:A>42}A="), "endpoints": ["192.168.7.2:51820"],
        });
        serde_json::from_value(said).expect("a link")
    }

    fn peer(node: &str, link: NodeLink) -> Peer {
        let subnet = "10.210.2.0/24";
        let said = serde_json::json!({
            "schemaVersion": 1, "cluster": "07070707070707070707070707070707", "node": node, "subnet": subnet, "link": link,
        });
        serde_json::from_value(said).expect("a peer")
    }

    fn signed(link: NodeLink, pen: &Pen, node: &str) -> NodeLink {
        let domain = Domain {
            word: "link",
            about: node,
        };
        let signature = pen.sign(domain, &document(&link)).to_string();
        NodeLink {
            proof: Some(LinkProof {
                certificate: pen.certificate().to_pem(),
                signature,
            }),
            ..link
        }
    }

    #[test]
    fn only_who_signed_what_is_published_of_him_is_linked_to() {
        let realm = Realm::new([7; 16], today());
        let (n1, n2) = ("n1".parse().expect("a name"), "n2".parse::<NodeName>().expect("a name"));
        let mine = realm.pen("node/n2");
        let good = signed(link("b"), &mine, "n2");
        let judge = |link: NodeLink, trust: Option<&Trust>| {
            let peers = [("n1", good.clone()), ("n2", link)]
                .map(|(node, link)| (node.parse().expect("a name"), peer(node, link)))
                .into();
            let (found, doubted) = believed(&n1, &peers, trust, realm.now);
            assert!(!found.contains_key(&n1), "no link to oneself");
            assert_eq!(found.contains_key(&n2), doubted.is_empty(), "{doubted:?}");
            doubted.into_iter().next()
        };
        let trust = realm.trust();
        assert_eq!(judge(good.clone(), Some(&trust)), None);
        assert_eq!(
            judge(link("b"), None),
            None,
            "without certificates the store is believed"
        );
        let refused = |link: NodeLink, part: &str| {
            let why = judge(link, Some(&trust)).unwrap_or_else(|| panic!("it is believed: {part}"));
            assert!(why.starts_with("no link to node n2: ") && why.contains(part), "{why}");
        };
        refused(link("b"), "not signed");
        // Another key, or another place, under a signature that was over the first.
        refused(
            NodeLink {
                key: link("c").key,
                ..good.clone()
            },
            "signed",
        );
        refused(
            NodeLink {
                endpoints: vec!["192.168.7.66:51820".parse().expect("an address")],
                ..good.clone()
            },
            "signed",
        );
        refused(signed(link("c"), &realm.pen("node/n3"), "n2"), "node/n3");
        refused(signed(link("c"), &realm.pen("controller/n2"), "n2"), "controller/n2");
        refused(signed(link("b"), &mine, "n3"), "signed");
        let old = realm.pen_at("node/n2", realm.now.minus(2 * LIFE));
        refused(signed(link("b"), &old, "n2"), "");
        let stranger = Realm::new([8; 16], today());
        refused(signed(link("c"), &stranger.pen("node/n2"), "n2"), "");
    }
}
