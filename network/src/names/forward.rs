//! What is not about the cluster is asked of this host's own servers, those of its resolv.conf. The server calls it. An answer
//! counts only from the server that was asked, under the number and for the question that were sent; a server that is silent
//! is passed over for a while, and when all are, the asker is told at once. Nothing is kept: whoever is asked has a cache.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::wire::{self, Question, Way};

/// After this long without an answer the next server is asked too.
const NEXT: Duration = Duration::from_millis(800);
/// How long all of it may take: less than the 5 s after which resolvers ask again.
const DEADLINE: Duration = Duration::from_millis(4_000);
/// How long a server that was silent, or slower than another, is not asked.
const REST: Duration = Duration::from_secs(5);
/// The same of one that could not be reached at all: it may be starting.
const REFUSED_REST: Duration = Duration::from_millis(500);
/// How often, at most, it looks whether resolv.conf has changed.
const LOOK: Duration = Duration::from_millis(200);
/// The most servers that are used of it.
const MAX_SERVERS: usize = 8;
/// The largest resolv.conf that is read, in bytes.
const CONF_LIMIT: u64 = 1 << 20;
/// The largest answer by UDP that is read: more than was asked for.
const UDP_BUFFER: usize = 4096;

/// This host's own servers.
#[derive(Debug)]
pub struct Upstreams {
    conf: PathBuf,
    /// Where we listen ourselves: never asked.
    ours: Vec<IpAddr>,
    known: RefCell<Known>,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    /// Of the file as it was read: its place, size and age.
    stamp: Option<(u64, u64, i64, i64)>,
    servers: Vec<Server>,
}

#[derive(Clone, Debug)]
struct Server {
    address: SocketAddr,
    rests_until: Option<Instant>,
}

/// One of this host's own servers, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamHealth {
    pub address: SocketAddr,
    /// Whether it was silent lately.
    pub resting: bool,
}

/// Why nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    NoServers,
    Silent,
}

impl Upstreams {
    #[must_use]
    pub fn new(conf: PathBuf, ours: Vec<IpAddr>) -> Self {
        Self {
            conf,
            ours,
            known: RefCell::default(),
        }
    }

    /// Reads resolv.conf again when it is another.
    fn look(&self) {
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        if known.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
            return;
        }
        known.looked = Some(now);
        let stamp = fs::metadata(&self.conf)
            .ok()
            .map(|found| (found.ino(), found.size(), found.mtime(), found.mtime_nsec()));
        if stamp == known.stamp && stamp.is_some() {
            return;
        }
        known.stamp = stamp;
        let text = match stamp {
            Some((_, size, _, _)) if size <= CONF_LIMIT => fs::read_to_string(&self.conf).unwrap_or_default(),
            _ => String::new(),
        };
        let before = std::mem::take(&mut known.servers);
        known.servers = servers(&text, &self.ours)
            .into_iter()
            .map(|address| Server {
                address,
                rests_until: before
                    .iter()
                    .find(|server| server.address == address)
                    .and_then(|server| server.rests_until),
            })
            .collect();
    }

    #[must_use]
    pub fn health(&self) -> Vec<UpstreamHealth> {
        self.look();
        let now = Instant::now();
        let known = self.known.borrow();
        let servers = known.servers.iter().map(|server| UpstreamHealth {
            address: server.address,
            resting: server.rests_until.is_some_and(|until| until > now),
        });
        servers.collect()
    }

    /// Whom to ask, in order: those that rest come last. While all rest, one question at a time tries one of them; the others
    /// are told at once.
    fn candidates(&self) -> Result<Vec<SocketAddr>, Unanswered> {
        self.look();
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        if known.servers.is_empty() {
            return Err(Unanswered::NoServers);
        }
        let (mut awake, mut resting) = (Vec::new(), Vec::new());
        for server in &mut known.servers {
            match server.rests_until {
                Some(until) if until > now => resting.push(server.address),
                Some(_) => {
                    // This question tries it; it counts as silent until it has answered.
                    server.rests_until = Some(now + REST);
                    awake.push(server.address);
                }
                None => awake.push(server.address),
            }
        }
        if awake.is_empty() {
            return Err(Unanswered::Silent);
        }
        awake.append(&mut resting);
        Ok(awake)
    }

    fn rest(&self, address: SocketAddr, until: Option<Instant>) {
        let mut known = self.known.borrow_mut();
        for server in known.servers.iter_mut().filter(|server| server.address == address) {
            server.rests_until = until;
        }
    }

    /// Asks them: the next one when one is silent or fails, and all again while there is time. The answer is the asker's own
    /// to send.
    pub async fn ask(&self, question: &Question, way: Way) -> Result<Vec<u8>, Unanswered> {
        let mut candidates = self.candidates()?;
        let deadline = tokio::time::sleep(DEADLINE);
        tokio::pin!(deadline);
        let mut running = FuturesUnordered::new();
        let mut silent: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut failure = None;
        let mut at = 0;
        let mut start = true;
        loop {
            if start && !candidates.is_empty() {
                let address = candidates[at % candidates.len()];
                at += 1;
                if !silent.iter().any(|(other, _)| *other == address) {
                    silent.push((address, Instant::now()));
                }
                running.push(async move { (address, one(address, question, way).await) });
            }
            if running.is_empty() {
                return failure.ok_or(Unanswered::Silent);
            }
            tokio::select! {
                Some((address, result)) = running.next() => {
                    silent.retain(|(other, _)| *other != address);
                    match result {
                        Ok(answer) if wire::is_failure(&answer) => {
                            self.rest(address, None);
                            failure.get_or_insert(answer);
                        }
                        Ok(answer) => {
                            self.rest(address, None);
                            // Those that had their time and said nothing: others go first for a while.
                            let now = Instant::now();
                            for (other, since) in silent {
                                if now.duration_since(since) >= NEXT {
                                    self.rest(other, Some(now + REST));
                                }
                            }
                            return Ok(answer);
                        }
                        Err(_) => self.rest(address, Some(Instant::now() + REFUSED_REST)),
                    }
                    // It has said what it has to say.
                    candidates.retain(|other| *other != address);
                    at = 0;
                    candidates.sort_by_key(|other| silent.iter().any(|(asked, _)| asked == other));
                    start = true;
                }
                () = tokio::time::sleep(NEXT) => start = true,
                () = &mut deadline => {
                    for (address, _) in silent {
                        self.rest(address, Some(Instant::now() + REST));
                    }
                    return failure.ok_or(Unanswered::Silent);
                }
            }
        }
    }
}

/// The servers that a resolv.conf names, without those that are ourselves.
fn servers(text: &str, ours: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let address = SocketAddr::new(address, 53);
        if !ours.contains(&address.ip()) && !found.contains(&address) && found.len() < MAX_SERVERS {
            found.push(address);
        }
    }
    found
}

/// A number that nobody guesses.
fn drawn() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// Asks one server.
async fn one(address: SocketAddr, question: &Question, way: Way) -> io::Result<Vec<u8>> {
    let onward = question.onward(drawn()?);
    let answer = by_udp(address, &onward).await?;
    // Who asks by TCP gets all of it; who asks by UDP is told to, and comes again.
    let answer = if wire::is_truncated(&answer) && way == Way::Tcp {
        by_tcp(address, &onward).await?
    } else {
        answer
    };
    let answer = question.answered(&onward, &answer);
    answer.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

async fn by_udp(address: SocketAddr, onward: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port of its own for each question; the kernel draws it, and lets in what comes from that server alone.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    socket.send(onward).await?;
    let mut buffer = vec![0; UDP_BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be somebody's guess: the true answer may still come.
        if wire::answers(onward, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(address: SocketAddr, onward: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(onward.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(onward);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolvers_read_them_and_never_ourselves() {
        let text = "# nameserver 1.1.1.1\n\
                    search nameserver\n\
                    nameserver 192.0.2.1\n\
                    \tnameserver\t2001:db8::1 # the second\n\
                    nameserver 10.210.1.1\n\
                    nameserver nonsense\n\
                    nameserver\n\
                    nameserver 192.0.2.1\n\
                    nameservers 192.0.2.9\n\
                    nameserver 127.0.0.53";
        let ours = ["10.210.1.1".parse().unwrap()];
        let found: Vec<String> = servers(text, &ours).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "127.0.0.53:53"]);
        let many: String = (0..50).map(|at| format!("nameserver 192.0.2.{at}\n")).collect();
        assert_eq!(servers(&many, &[]).len(), MAX_SERVERS);
    }
}
