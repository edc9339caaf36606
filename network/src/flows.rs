//! UDP flows that the kernel translates and remembers, ended where they lead to nobody. The agent's filter calls [`end`] when
//! somebody who was led to is gone: each datagram of a client keeps what the kernel remembers alive, so that the client would be
//! led there for ever. The next one begins anew, by the rules as they are then. Which flow is over is the caller's to say. The
//! kernel answers while it is asked, so nothing here waits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use planner::network::policy::Flow;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_NETFILTER};

/// The kernel's words for what it knows of connections: its part of netfilter, and what to do.
const CTNETLINK: u16 = 1 << 8;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attributes: the two directions of a connection, and what is in each.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const UDP: u8 = 17;
/// Linux's numbers of the families.
const INET: u8 = 2;
const INET6: u8 = 10;
/// What a header takes, and what of netfilter's stands behind it.
const HEADER: usize = 16;
const OWN: usize = 4;
/// Messages beyond this many are not read.
const MAX_MESSAGES: usize = 4_000_000;

#[derive(Debug, thiserror::Error)]
#[error("end UDP flows that lead to nobody")]
pub struct FlowsError {
    #[source]
    source: io::Error,
}

/// Ends the translated UDP flows that are over, of all that the kernel knows. Returns how many.
///
/// # Errors
/// When the kernel does not say what it knows, or does not do it.
pub fn end(over: impl Fn(&Flow) -> bool) -> Result<usize, FlowsError> {
    let all = || -> io::Result<usize> {
        let mut ended = 0;
        for family in [INET, INET6] {
            let socket = open()?;
            socket.send(&message(GET, NLM_F_REQUEST | NLM_F_DUMP, family, &[]), 0)?;
            let mut originals = Vec::new();
            listen(&socket, |body| {
                let known = known(body);
                originals.extend(
                    known
                        .filter(|(flow, _)| over(flow))
                        .map(|(_, original)| original.to_vec()),
                );
            })?;
            for original in originals {
                socket.send(&message(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &original), 0)?;
                match listen(&socket, |_| ()) {
                    Ok(()) => ended += 1,
                    // It ended by itself.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(ended)
    };
    all().map_err(|source| FlowsError { source })
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&Kernel::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + OWN + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // A number of ours, and whose it is: the kernel's to fill in.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Reads what is answered, until that is all.
fn listen(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    for _ in 0..MAX_MESSAGES {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while let Some((kind, body, after)) = next(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                _ => each(body.get(OWN..).unwrap_or_default()),
            }
            rest = after;
        }
    }
    Err(io::Error::other("the kernel knows of more connections than are read"))
}

/// The kind and the body of the first message, and what comes after it.
fn next(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

/// The attributes of a message, or within one: their kind, what is in them, and their bytes as a whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        // The highest bits say how it is written.
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
        let (within, whole) = (bytes.get(4..length)?, bytes.get(..length.next_multiple_of(4))?);
        bytes = bytes.get(whole.len()..)?;
        Some((kind, within, whole))
    })
}

/// The flow that a message is about, where it is one of UDP, and the attribute by which it is ended.
fn known(body: &[u8]) -> impl Iterator<Item = (Flow, &[u8])> {
    let of = |wanted: u16| attributes(body).find(|(kind, ..)| *kind == wanted);
    let found = || {
        let (_, original, whole) = of(ORIGINAL)?;
        let (_, reply, _) = of(REPLY)?;
        let (asked, answers) = (ends(original)?.1, ends(reply)?.0);
        Some((Flow { asked, answers }, whole))
    };
    found().into_iter()
}

/// Who sends, and where to, in one direction; None where that is not UDP.
fn ends(direction: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let of = |wanted: u16| {
        attributes(direction)
            .find(|(kind, ..)| *kind == wanted)
            .map(|(_, within, _)| within)
    };
    let mut ips = attributes(of(ADDRESSES)?).filter_map(|(_, bytes, _)| ip(bytes));
    let (from, to) = (ips.next()?, ips.next()?);
    let mut protocol = attributes(of(PROTOCOL)?).map(|(_, bytes, _)| bytes);
    let is_udp = protocol.next()? == [UDP];
    let mut port = || Some(u16::from_be_bytes(*protocol.next()?.first_chunk()?));
    let (source, target) = (port()?, port()?);
    is_udp.then_some((SocketAddr::new(from, source), SocketAddr::new(to, target)))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = |bytes: &[u8]| {
        <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|octets| IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let six = |bytes: &[u8]| {
        <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
    };
    four(bytes).or_else(|| six(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, within: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(within.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(within);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn direction(kind: u16, from: (&[u8], u16), to: (&[u8], u16), protocol: u8) -> Vec<u8> {
        let addresses = [attribute(1, from.0), attribute(2, to.0)].concat();
        let ports = [
            attribute(1, &[protocol]),
            attribute(2, &from.1.to_be_bytes()),
            attribute(3, &to.1.to_be_bytes()),
        ];
        let within = [
            attribute(ADDRESSES | 0x8000, &addresses),
            attribute(PROTOCOL | 0x8000, &ports.concat()),
        ];
        attribute(kind | 0x8000, &within.concat())
    }

    #[test]
    fn a_flow_is_read_as_the_kernel_writes_it() {
        let (client, node, instance) = ([192, 0, 2, 7], [192, 0, 2, 1], [10, 210, 1, 2]);
        let of = |protocol: u8| {
            let original = direction(ORIGINAL, (&client, 4000), (&node, 5353), protocol);
            let reply = direction(REPLY, (&instance, 53), (&client, 4000), protocol);
            [original, reply, attribute(7, &[0; 4])].concat()
        };
        let wanted = Flow {
            asked: "192.0.2.1:5353".parse().unwrap(),
            answers: "10.210.1.2:53".parse().unwrap(),
        };
        let body = of(UDP);
        let found: Vec<(Flow, &[u8])> = known(&body).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, wanted);
        assert_eq!(
            found[0].1,
            direction(ORIGINAL, (&client, 4000), (&node, 5353), UDP),
            "it is ended by its own words"
        );
        assert_eq!(known(&of(6)).count(), 0, "a connection");
    }

    #[test]
    fn whatever_is_answered_is_read_to_its_end() {
        let original = direction(ORIGINAL, (&[192, 0, 2, 7], 4000), (&[192, 0, 2, 1], 5353), UDP);
        let whole = message(GET, 0, INET, &original);
        assert_eq!(
            next(&whole).map(|(kind, body, after)| (kind, body.len(), after.len())),
            Some((GET, whole.len() - HEADER, 0))
        );
        // Cut anywhere, and with each byte another.
        for at in 0..whole.len() {
            for other in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = other;
                for bytes in [&bytes[..], &whole[..at]] {
                    let mut rest = bytes;
                    while let Some((_, body, after)) = next(rest) {
                        assert!(body.len() + after.len() < rest.len());
                        assert!(attributes(body).count() <= body.len());
                        let _ = known(body.get(OWN..).unwrap_or_default()).count();
                        rest = after;
                    }
                }
            }
        }
    }
}
