//! Asks the other nodes over their links whether they are there, and how long an answer takes: ICMP echo, on the schedule of
//! `planner::network::pings`. `run.rs` starts [`keep`]; what comes of it is told to `seen.rs`. Without the right to a raw socket
//! nothing is measured, and nothing else suffers. What comes in is matched by its sender, number and a drawn word, and else
//! left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use planner::network::pings::{PATIENCE_MS, PERIOD_MS, round};
use runtime::Shutdown;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use schemas::names::NodeName;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use crate::seen::Seen;

/// Kinds of ICMP messages.
const ECHO: u8 = 8;
const REPLY: u8 = 0;
/// Kind, code, sum, id, number, and the drawn word.
const LENGTH: usize = 16;
/// How often a socket is tried for again.
const AGAIN: Duration = Duration::from_secs(60);

/// One that was asked and has not answered.
struct Asked {
    node: NodeName,
    at: Ipv4Addr,
    sent: Instant,
}

/// Asks until the shutdown drains.
pub(crate) async fn keep(seen: Arc<Seen>, own: NodeName, shutdown: Shutdown) {
    let work = async {
        let mut said = false;
        loop {
            match socket() {
                Ok(socket) => ask(&seen, &own, &socket).await,
                Err(error) if !said => {
                    said = true;
                    tracing::warn!(%error, "links are not measured: no raw socket; the agent needs CAP_NET_RAW for it");
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.draining() => {}
    }
}

fn socket() -> std::io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
    // To the kernel it is a socket as any other; only its packets are whole ones.
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Returns where the socket is of no use any more.
async fn ask(seen: &Seen, own: &NodeName, socket: &UdpSocket) {
    let word = RandomState::new().build_hasher().finish();
    let id = (word >> 48) as u16;
    let mut waiting: BTreeMap<u16, Asked> = BTreeMap::new();
    let mut buffer = [0_u8; 256];
    let (mut number, mut next): (u64, u16) = (0, 0);
    loop {
        let targets = seen.targets();
        let others: BTreeSet<NodeName> = targets.keys().cloned().collect();
        let begun = Instant::now();
        let after = |millis: u64| begun + Duration::from_millis(millis);
        let mut plan: std::collections::VecDeque<(Instant, NodeName)> = round(own, &others, number)
            .into_iter()
            .map(|(at, node)| (after(at), node.clone()))
            .collect();
        // A first look at a network that has just begun comes soon.
        let end = if others.is_empty() {
            after(1_000)
        } else {
            after(PERIOD_MS)
        };
        number = number.wrapping_add(1);
        loop {
            let oldest = waiting
                .values()
                .map(|asked| asked.sent + Duration::from_millis(PATIENCE_MS));
            let wake = plan
                .front()
                .map(|(at, _)| *at)
                .into_iter()
                .chain(oldest)
                .min()
                .map_or(end, |at| at.min(end));
            tokio::select! {
                () = sleep_until(wake) => {}
                heard = socket.recv_from(&mut buffer) => match heard {
                    Ok((length, from)) => {
                        let now = Instant::now();
                        if let Some(number) = reply(buffer.get(..length).unwrap_or_default(), id, word)
                            && waiting.get(&number).is_some_and(|asked| from.ip() == IpAddr::V4(asked.at))
                            && let Some(asked) = waiting.remove(&number)
                        {
                            let took = now.duration_since(asked.sent).as_micros();
                            seen.ping(&asked.node, Some(u32::try_from(took).unwrap_or(u32::MAX)));
                        }
                        continue;
                    }
                    // The kernel tells here of addresses that nobody has, too.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
            }
            let now = Instant::now();
            let late = |asked: &Asked| now.duration_since(asked.sent) >= Duration::from_millis(PATIENCE_MS);
            for (_, asked) in waiting.extract_if(.., |_, asked| late(asked)) {
                seen.ping(&asked.node, None);
            }
            while plan.front().is_some_and(|(at, _)| *at <= now) {
                let Some((_, node)) = plan.pop_front() else { break };
                let Some(at) = targets.get(&node).copied() else {
                    continue;
                };
                next = next.wrapping_add(1);
                match socket.send_to(&echo(id, next, word), SocketAddr::from((at, 0))).await {
                    Ok(_) => {
                        let sent = Instant::now();
                        waiting.insert(next, Asked { node, at, sent });
                    }
                    // No way leads there.
                    Err(_) => seen.ping(&node, None),
                }
            }
            if now >= end {
                break;
            }
        }
    }
}

/// The Internet's checksum.
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| {
        let (high, low) = (pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0));
        u32::from(u16::from_be_bytes([high, low]))
    });
    let mut total: u32 = pairs.sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn echo(id: u16, number: u16, word: u64) -> [u8; LENGTH] {
    let mut packet = [0_u8; LENGTH];
    packet[0] = ECHO;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    packet[8..].copy_from_slice(&word.to_be_bytes());
    let sum = sum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The number of an answer to a question of ours; None of anything else. An IPv4 header is before it.
fn reply(packet: &[u8], id: u16, word: u64) -> Option<u16> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let message: &[u8; LENGTH] = packet.get(header..)?.first_chunk()?;
    let said_id = u16::from_be_bytes([message[4], message[5]]);
    let ours = message[0] == REPLY && said_id == id && message[8..] == word.to_be_bytes();
    ours.then(|| u16::from_be_bytes([message[6], message[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it comes out of a raw socket.
    fn packet(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45_u8; 20];
        packet.extend_from_slice(message);
        packet
    }

    #[test]
    fn an_answer_to_a_question_of_ours_is_known_and_nothing_else_is() {
        let asked = echo(7, 300, 0x0102_0304_0506_0708);
        assert_eq!(sum(&asked), 0, "whoever sums a packet with its sum gets nothing");
        let mut answer = asked;
        answer[0] = REPLY;
        let word = 0x0102_0304_0506_0708;
        assert_eq!(reply(&packet(&answer), 7, word), Some(300));
        assert_eq!(reply(&packet(&asked), 7, word), None, "our own question");
        assert_eq!(reply(&packet(&answer), 8, word), None, "another's");
        assert_eq!(reply(&packet(&answer), 7, 1), None, "a guess");
        let whole = packet(&answer);
        for length in 0..whole.len() {
            assert_eq!(reply(&whole[..length], 7, word), None);
        }
        for first in 0..=u8::MAX {
            let mut odd = whole.clone();
            odd[0] = first;
            let _ = reply(&odd, 7, word);
        }
    }
}
