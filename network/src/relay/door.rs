//! The one thread of the relay that enters containers' networks: it finds which network a container has, opens sockets in it,
//! and leaves; a socket stays in the network in which it was made. It keeps the rights for that, and reads nothing that comes
//! from anybody; the thread that does has none of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use planner::network::relay::Place;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};
use schemas::container::Protocol;
use tokio::sync::oneshot;

/// The longest list of groups of a process that is read, in bytes.
const GROUPS_LIMIT: u64 = 64 << 10;
/// An engine's ids are 64 digits; whatever is shorter may be a part of anything.
const ID_LENGTH: usize = 32;
const BACKLOG: i32 = 1_024;
/// How long one who is not there any more keeps a quiet connection.
const GONE: Duration = Duration::from_secs(30);

/// A container's network.
#[derive(Clone, Debug)]
pub struct Inside {
    network: Arc<OwnedFd>,
    /// By which it is told from others.
    pub number: (u64, u64),
}

/// A process of a container, and its network.
#[derive(Clone, Debug)]
pub struct Found {
    pub inside: Inside,
    pub pid: u32,
}

enum Ask {
    Find(Vec<Place>, oneshot::Sender<BTreeMap<Place, Found>>),
    Gone(Vec<(Place, Found)>, oneshot::Sender<Vec<Place>>),
    Listen(
        Option<Inside>,
        Protocol,
        SocketAddr,
        oneshot::Sender<io::Result<OwnedFd>>,
    ),
    Socket(Option<Inside>, Protocol, bool, oneshot::Sender<io::Result<OwnedFd>>),
}

/// The thread, as others see it.
#[derive(Clone, Debug)]
pub struct Door(mpsc::Sender<Ask>);

impl Door {
    /// Starts it, with what rights this thread has of those it needs.
    pub fn new(source: Option<IpAddr>) -> io::Result<Self> {
        let own = File::open("/proc/thread-self/ns/net")?;
        let number = number(&own.as_fd().try_clone_to_owned()?)?;
        let (asks, heard) = mpsc::channel();
        std::thread::Builder::new().name("door".to_owned()).spawn(move || {
            let kept = CapabilitySet::SYS_ADMIN
                | CapabilitySet::SYS_PTRACE
                | CapabilitySet::NET_BIND_SERVICE
                | CapabilitySet::DAC_READ_SEARCH;
            if let Err(error) = super::keep_rights(kept) {
                tracing::error!(error = %io::Error::from(error), "the relay cannot give up rights");
                return;
            }
            let host = Inside {
                network: Arc::new(own.into()),
                number,
            };
            for ask in heard {
                work(ask, &host, source);
            }
        })?;
        Ok(Self(asks))
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> io::Result<T> {
        let (answer, heard) = oneshot::channel();
        let closed = || io::Error::other("the relay's door is closed");
        self.0.send(ask(answer)).map_err(|_| closed())?;
        heard.await.map_err(|_| closed())
    }

    /// The networks of containers; those that have no process have none.
    pub async fn find(&self, places: Vec<Place>) -> io::Result<BTreeMap<Place, Found>> {
        self.ask(|answer| Ask::Find(places, answer)).await
    }

    /// Those whose process has ended, or is another's by now.
    pub async fn gone(&self, known: Vec<(Place, Found)>) -> io::Result<Vec<Place>> {
        self.ask(|answer| Ask::Gone(known, answer)).await
    }

    /// A socket that listens, or for UDP receives: in a container's network, or this host's.
    pub async fn listen(
        &self,
        inside: Option<&Inside>,
        protocol: Protocol,
        address: SocketAddr,
    ) -> io::Result<OwnedFd> {
        self.ask(|answer| Ask::Listen(inside.cloned(), protocol, address, answer))
            .await?
    }

    /// A socket to connect with.
    pub async fn socket(&self, inside: Option<&Inside>, protocol: Protocol, six: bool) -> io::Result<OwnedFd> {
        self.ask(|answer| Ask::Socket(inside.cloned(), protocol, six, answer))
            .await?
    }
}

fn work(ask: Ask, host: &Inside, source: Option<IpAddr>) {
    // Who asked may have gone.
    match ask {
        Ask::Find(places, answer) => drop(answer.send(find(&places, host))),
        Ask::Gone(known, answer) => {
            let is_gone = |found: &Found| {
                let now = rustix::fs::stat(format!("/proc/{}/ns/net", found.pid));
                now.map(|now| (now.st_dev, now.st_ino)) != Ok(found.inside.number)
            };
            let gone = known.into_iter().filter(|(_, found)| is_gone(found));
            let _ = answer.send(gone.map(|(place, _)| place).collect());
        }
        Ask::Listen(inside, protocol, address, answer) => {
            let made = enter(inside.as_ref().unwrap_or(host)).and_then(|()| listener(protocol, address));
            let _ = answer.send(made);
        }
        Ask::Socket(inside, protocol, six, answer) => {
            let made = enter(inside.as_ref().unwrap_or(host)).and_then(|()| {
                let made = socket(protocol, six)?;
                let own = source.filter(|source| inside.is_none() && source.is_ipv6() == six);
                if let Some(own) = own {
                    // Where the bridge is not there yet, so is nobody of this node.
                    let _ = rustix::net::bind(&made, &SocketAddr::new(own, 0));
                }
                Ok(made)
            });
            let _ = answer.send(made);
        }
    }
}

/// Each act says first where it is: none is done where the one before was.
fn enter(inside: &Inside) -> io::Result<()> {
    Ok(move_into_link_name_space(
        inside.network.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

fn number(network: &OwnedFd) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstat(network)?;
    Ok((found.st_dev, found.st_ino))
}

fn find(places: &[Place], host: &Inside) -> BTreeMap<Place, Found> {
    let mut found = BTreeMap::new();
    let mut containers: Vec<(&Place, &str)> = Vec::new();
    for place in places {
        match place {
            Place::Node => {}
            Place::Process(pid) => {
                if let Some(seen) = look(*pid, host, &|| true) {
                    found.insert(place.clone(), seen);
                }
            }
            Place::Container(id) => {
                let is = id.len() >= ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
                containers.extend(is.then_some((place, id.as_str())));
            }
        }
    }
    if containers.is_empty() {
        return found;
    }
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(groups) = groups(pid).filter(|groups| groups.len() > ID_LENGTH) else {
            continue;
        };
        let own = containers
            .iter()
            .find(|(place, id)| groups.contains(id) && !found.contains_key(*place));
        let Some((place, id)) = own else { continue };
        // The number may have become another's between.
        if let Some(seen) = look(pid, host, &|| {
            self::groups(pid).is_some_and(|groups| groups.contains(id))
        }) {
            found.insert((*place).clone(), seen);
            if found.len() == places.len() {
                break;
            }
        }
    }
    found
}

fn groups(pid: u32) -> Option<String> {
    let mut text = String::new();
    let file = File::open(format!("/proc/{pid}/cgroup")).ok()?;
    file.take(GROUPS_LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A process's network; None where it is gone, is not who is meant, or shares this host's.
fn look(pid: u32, host: &Inside, is_it: &dyn Fn() -> bool) -> Option<Found> {
    let network: OwnedFd = File::open(format!("/proc/{pid}/ns/net")).ok()?.into();
    let number = number(&network).ok()?;
    (number != host.number && is_it()).then(|| Found {
        inside: Inside {
            network: Arc::new(network),
            number,
        },
        pid,
    })
}

fn socket(protocol: Protocol, six: bool) -> io::Result<OwnedFd> {
    let family = if six { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let made = rustix::net::socket_with(family, kind, flags, None)?;
    if protocol == Protocol::Tcp {
        sockopt::set_socket_keepalive(&made, true)?;
        sockopt::set_tcp_keepidle(&made, GONE / 2)?;
        sockopt::set_tcp_keepintvl(&made, GONE / 6)?;
        sockopt::set_tcp_keepcnt(&made, 3)?;
        sockopt::set_tcp_nodelay(&made, true)?;
    }
    Ok(made)
}

/// What it accepts has the same options.
fn listener(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let made = socket(protocol, address.is_ipv6())?;
    if protocol == Protocol::Tcp {
        sockopt::set_socket_reuseaddr(&made, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&made, true)?;
    }
    rustix::net::bind(&made, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&made, BACKLOG)?;
    }
    Ok(made)
}

/// Whether there is no such address because that family is not there.
pub fn is_absent(address: IpAddr, error: &io::Error) -> bool {
    let known = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    let code = error.raw_os_error();
    address.is_ipv6() && known.iter().any(|errno| code == Some(errno.raw_os_error()))
}
