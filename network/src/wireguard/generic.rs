//! The kernel's own WireGuard, over generic netlink: the same two questions as `uapi`, in the kernel's language. The kernel
//! answers while it is asked, so nothing here waits.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;

use ipnet::IpNet;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use planner::network::links::Key;
use rtnetlink::packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use zeroize::Zeroizing;

use super::configure::{Change, PeerChange, Seen, SeenPeer};

/// How many peers one message tells of: it has to fit a socket's buffer.
const PEERS: usize = 100;
/// Answers beyond this many are not read.
const MAX_ANSWERS: usize = 100_000;

#[derive(Debug, thiserror::Error)]
#[error("{act} the kernel's device `{device}`")]
pub struct GenericError {
    act: &'static str,
    device: String,
    #[source]
    source: io::Error,
}

/// Reads a device.
pub fn get(device: &str) -> Result<Seen, GenericError> {
    let asked = || -> io::Result<Seen> {
        let (socket, family) = open()?;
        let question = WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::IfName(device.to_owned())],
        };
        Ok(read(exchange(&socket, question, family, NLM_F_REQUEST | NLM_F_DUMP)?))
    };
    asked().map_err(|source| GenericError {
        act: "ask",
        device: device.to_owned(),
        source,
    })
}

/// Tells a device.
pub fn set(device: &str, change: &Change) -> Result<(), GenericError> {
    let told = || -> io::Result<()> {
        let (socket, family) = open()?;
        for message in write(device, change) {
            exchange(&socket, message, family, NLM_F_REQUEST | NLM_F_ACK)?;
        }
        Ok(())
    };
    told().map_err(|source| GenericError {
        act: "tell",
        device: device.to_owned(),
        source,
    })
}

/// A connection, and the number under which WireGuard answers.
fn open() -> io::Result<(Socket, u16)> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    let question = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(WireguardMessage::family_name().to_owned())],
    };
    let control = question.family_id();
    let answers = exchange(&socket, question, control, NLM_F_REQUEST | NLM_F_ACK)?;
    let number = answers.iter().flat_map(|answer| &answer.nlas).find_map(|attribute| {
        if let GenlCtrlAttrs::FamilyId(number) = attribute {
            Some(*number)
        } else {
            None
        }
    });
    let missing = || io::Error::new(io::ErrorKind::NotFound, "this kernel has no WireGuard");
    Ok((socket, number.ok_or_else(missing)?))
}

fn exchange<F>(socket: &Socket, question: F, family: u16, flags: u16) -> io::Result<Vec<F>>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + PartialEq + Eq,
{
    socket.send(&encode(question, family, flags), 0)?;
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<GenlMessage<F>>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
            if let NetlinkPayload::InnerMessage(answer) = message.payload {
                if answers.len() == MAX_ANSWERS {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "more answers than are read"));
                }
                answers.push(answer.payload);
            } else if let NetlinkPayload::Error(error) = message.payload {
                return if error.raw_code() == 0 {
                    Ok(answers)
                } else {
                    Err(error.to_io())
                };
            } else if let NetlinkPayload::Done(_) = message.payload {
                return Ok(answers);
            }
        }
    }
}

fn encode<F>(question: F, family: u16, flags: u16) -> Vec<u8>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + PartialEq + Eq,
{
    let mut inner = GenlMessage::from_payload(question);
    inner.set_resolved_family_id(family);
    inner.finalize();
    let mut message = NetlinkMessage::from(inner);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// One message or more: the device's own words in the first.
fn write(device: &str, change: &Change) -> Vec<WireguardMessage> {
    let Change {
        private,
        port,
        unmark,
        peers,
    } = change;
    let mut own = Vec::new();
    own.extend(
        private
            .as_ref()
            .map(|private| WireguardAttribute::PrivateKey(**private)),
    );
    own.extend(port.map(WireguardAttribute::ListenPort));
    own.extend(unmark.then_some(WireguardAttribute::Fwmark(0)));
    let mut groups: Vec<&[PeerChange]> = peers.chunks(PEERS).collect();
    if groups.is_empty() {
        groups.push(&[]);
    }
    let message = |group: &[PeerChange]| {
        let mut attributes = vec![WireguardAttribute::IfName(device.to_owned())];
        attributes.append(&mut own);
        if !group.is_empty() {
            attributes.push(WireguardAttribute::Peers(group.iter().map(peer).collect()));
        }
        WireguardMessage {
            cmd: WireguardCmd::SetDevice,
            attributes,
        }
    };
    groups.into_iter().map(message).collect()
}

fn peer(change: &PeerChange) -> WireguardPeer {
    let PeerChange {
        key,
        remove,
        endpoint,
        keepalive,
        allowed,
        unshare,
    } = change;
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::RemoveMe, *remove);
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, allowed.is_some());
    let mut said = vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(flags),
    ];
    said.extend(unshare.then_some(WireguardPeerAttribute::PresharedKey([0; 32])));
    said.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
    said.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    said.extend(allowed.as_ref().map(|allowed| {
        let one = |subnet: &IpNet| {
            WireguardAllowedIp(vec![
                WireguardAllowedIpAttr::Family(match subnet {
                    IpNet::V4(_) => WireguardAddressFamily::Ipv4,
                    IpNet::V6(_) => WireguardAddressFamily::Ipv6,
                }),
                WireguardAllowedIpAttr::IpAddr(subnet.network()),
                WireguardAllowedIpAttr::Cidr(subnet.prefix_len()),
            ])
        };
        WireguardPeerAttribute::AllowedIps(allowed.iter().map(one).collect())
    }));
    WireguardPeer(said)
}

/// A device in one answer or more: a peer with much to say goes on in the next.
fn read(answers: Vec<WireguardMessage>) -> Seen {
    let mut seen = Seen::default();
    for attribute in answers.into_iter().flat_map(|answer| answer.attributes) {
        if let WireguardAttribute::PrivateKey(private) = attribute {
            seen.private = (private != [0; 32]).then(|| Zeroizing::new(private));
        } else if let WireguardAttribute::ListenPort(port) = attribute {
            seen.port = Some(port);
        } else if let WireguardAttribute::Fwmark(mark) = attribute {
            seen.mark = mark;
        } else if let WireguardAttribute::Peers(peers) = attribute {
            for peer in peers {
                read_peer(&mut seen.peers, peer);
            }
        }
    }
    seen
}

fn read_peer(peers: &mut BTreeMap<Key, SeenPeer>, WireguardPeer(said): WireguardPeer) {
    let key = said.iter().find_map(|attribute| {
        if let WireguardPeerAttribute::PublicKey(key) = attribute {
            Some(Key(*key))
        } else {
            None
        }
    });
    let Some(key) = key else {
        return;
    };
    let peer = peers.entry(key).or_default();
    for attribute in said {
        if let WireguardPeerAttribute::Endpoint(endpoint) = attribute {
            peer.endpoint = Some(endpoint);
        } else if let WireguardPeerAttribute::PersistentKeepalive(keepalive) = attribute {
            peer.keepalive = keepalive;
        } else if let WireguardPeerAttribute::PresharedKey(secret) = attribute {
            peer.preshared = secret != [0; 32];
        } else if let WireguardPeerAttribute::LastHandshake(last) = attribute {
            peer.handshake = u64::try_from(last.seconds).ok().filter(|seconds| *seconds > 0);
        } else if let WireguardPeerAttribute::RxBytes(bytes) = attribute {
            peer.received_bytes = bytes;
        } else if let WireguardPeerAttribute::TxBytes(bytes) = attribute {
            peer.sent_bytes = bytes;
        } else if let WireguardPeerAttribute::AllowedIps(allowed) = attribute {
            peer.allowed.extend(allowed.iter().filter_map(subnet));
        }
    }
}

fn subnet(WireguardAllowedIp(said): &WireguardAllowedIp) -> Option<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in said {
        if let WireguardAllowedIpAttr::IpAddr(found) = attribute {
            address = Some(*found);
        } else if let WireguardAllowedIpAttr::Cidr(found) = attribute {
            length = Some(*found);
        }
    }
    IpNet::new(address?, length?).ok().map(|subnet| subnet.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: u8) -> PeerChange {
        PeerChange {
            key: Key([number; 32]),
            remove: false,
            endpoint: Some(std::net::SocketAddr::from(([192, 0, 2, number], 51_820))),
            keepalive: Some(25),
            allowed: Some(vec![
                "10.210.2.0/24".parse().unwrap(),
                "fd00:210::2:0/112".parse().unwrap(),
            ]),
            unshare: false,
        }
    }

    fn decode(bytes: &[u8]) -> WireguardMessage {
        let message = NetlinkMessage::<GenlMessage<WireguardMessage>>::deserialize(bytes).unwrap();
        assert_eq!(
            (message.header.message_type, message.header.length as usize),
            (31, bytes.len())
        );
        let NetlinkPayload::InnerMessage(inner) = message.payload else {
            panic!("no message of WireGuard's");
        };
        inner.payload
    }

    #[test]
    fn what_the_kernel_is_told_it_would_say_again() {
        let told = Change {
            private: Some(Zeroizing::new([7; 32])),
            port: Some(51_820),
            unmark: true,
            peers: vec![change(2), change(3)],
        };
        let messages = write("rvw0", &told);
        assert_eq!(messages.len(), 1);
        let seen = read(
            messages
                .into_iter()
                .map(|message| decode(&encode(message, 31, NLM_F_REQUEST)))
                .collect(),
        );
        assert_eq!(
            (seen.private, seen.port, seen.mark),
            (Some(Zeroizing::new([7; 32])), Some(51_820), 0)
        );
        let peer = &seen.peers[&Key([2; 32])];
        assert_eq!(
            (peer.endpoint, peer.keepalive, peer.preshared),
            (change(2).endpoint, 25, false)
        );
        assert_eq!(
            peer.allowed.iter().copied().collect::<Vec<_>>(),
            change(2).allowed.unwrap()
        );
    }

    #[test]
    fn the_bytes_are_those_of_the_kernels_header() {
        let told = Change {
            private: None,
            port: Some(51_820),
            unmark: false,
            peers: vec![PeerChange {
                remove: true,
                endpoint: None,
                keepalive: None,
                allowed: None,
                ..change(5)
            }],
        };
        let bytes = encode(write("rvw0", &told).remove(0), 0x1f, NLM_F_REQUEST | NLM_F_ACK);
        let mut expected = vec![88, 0, 0, 0, 0x1f, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // The command (set, edition 1), the device's name, the port.
        expected.extend([1, 1, 0, 0]);
        expected.extend([9, 0, 2, 0, b'r', b'v', b'w', b'0', 0, 0, 0, 0]);
        expected.extend([6, 0, 6, 0, 0x6c, 0xca, 0, 0]);
        // A list of one peer: its key, and that it is to go.
        expected.extend([52, 0, 8, 0x80, 48, 0, 0, 0x80, 36, 0, 1, 0]);
        expected.extend([5; 32]);
        expected.extend([8, 0, 3, 0, 1, 0, 0, 0]);
        let length = u8::try_from(expected.len()).unwrap();
        expected[0] = length;
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_large_mesh_is_told_in_parts_and_read_from_parts() {
        let told = Change {
            peers: (0..=250).map(change).collect(),
            port: Some(1),
            ..Change::default()
        };
        let messages = write("rvw0", &told);
        assert_eq!(messages.len(), 3);
        let ports = messages
            .iter()
            .filter(|message| message.attributes.contains(&WireguardAttribute::ListenPort(1)));
        assert_eq!(ports.count(), 1);
        assert_eq!(read(messages).peers.len(), 251);
        let part = |subnet: &str| {
            let allowed = Some(vec![subnet.parse().unwrap()]);
            let peers = vec![PeerChange { allowed, ..change(1) }];
            write(
                "rvw0",
                &Change {
                    peers,
                    ..Change::default()
                },
            )
            .remove(0)
        };
        let seen = read(vec![part("10.210.2.0/24"), part("10.210.3.0/24")]);
        assert_eq!(seen.peers[&Key([1; 32])].allowed.len(), 2);
    }
}
