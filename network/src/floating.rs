//! Addresses that go from host to host, as this host's kernel has them. The agent calls [`Addresses::converge`] with what is to be
//! held and how long that is certain; each address is given to the kernel for no longer than that, so that it drops the
//! address itself when nobody comes back. [`announce`] tells the others where it is now. What somebody else put on a device is
//! neither taken nor removed: ours bear a mark where the kernel keeps one, and stand in a ledger on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use planner::network::links::ROUTE_PROTOCOL;
use pnet_datalink::{Channel, Config, MacAddr, NetworkInterface};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// That an address is kept without end.
const FOREVER: u32 = u32::MAX;
/// Renewals for less than this much more are left for later.
const RENEWED: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum FloatingError {
    #[error("open a connection to the kernel's tables")]
    Netlink(#[source] io::Error),
    #[error("{act}: {why}")]
    Kernel { act: &'static str, why: String },
    #[error("announce {address}: {why}")]
    Announce { address: IpAddr, why: String },
}

/// An address that this host is to hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub address: IpNet,
    /// The device's name; None: the one that has an address of the same network.
    pub interface: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What this host holds of ours now, and on which device: looked at after all was done.
    pub held: BTreeMap<IpAddr, Place>,
    /// Of these, what it did not hold before.
    pub taken: BTreeSet<IpAddr>,
    /// What it cannot hold, each with the reason and the remedy.
    pub refused: BTreeMap<IpAddr, String>,
    /// What was taken away, or could not be.
    pub notes: Vec<String>,
}

/// A device, as far as announcing goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
}

/// The host's addresses.
#[derive(Debug)]
pub struct Addresses {
    handle: Handle,
    task: JoinHandle<()>,
    ledger: PathBuf,
    ours: BTreeSet<IpAddr>,
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Debug)]
struct Link {
    name: String,
    mac: Option<[u8; 6]>,
    up: bool,
}

#[derive(Clone, Debug)]
struct SeenAddress {
    index: u32,
    address: IpNet,
    ours: bool,
    /// Seconds that are left of it.
    valid: u32,
    message: AddressMessage,
}

fn say(error: &rtnetlink::Error) -> String {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return message.to_io().to_string();
    }
    "the kernel's answer is not understood".to_owned()
}

impl Addresses {
    /// Of the network namespace that the caller's thread is in. What the ledger has from before is ours still.
    pub fn new(ledger: PathBuf) -> Result<Self, FloatingError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(FloatingError::Netlink)?;
        let ours = std::fs::read(&ledger).ok();
        let ours = ours
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
            ledger,
            ours,
        })
    }

    /// Whether anything of ours was here when it was last looked at.
    #[must_use]
    pub fn has_any(&self) -> bool {
        !self.ours.is_empty()
    }

    /// Makes it hold what is wanted and nothing else of ours. `left` says, each time it is asked, for how many whole seconds
    /// from then that is certain; None: not at all.
    pub async fn converge(
        &mut self,
        wanted: &[Wanted],
        left: impl Fn() -> Option<u32>,
    ) -> Result<Outcome, FloatingError> {
        let links = self.links().await?;
        let before = self.seen().await?;
        let mut outcome = Outcome::default();
        // First what goes.
        for one in before.iter().filter(|one| one.ours) {
            let stays = wanted
                .iter()
                .any(|wanted| wanted.address == one.address && place(wanted, &links, &before) == Some(one.index));
            if !stays || left().is_none() {
                outcome.notes.push(self.remove(one, &links).await);
            }
        }
        for wanted in wanted {
            let ip = wanted.address.addr();
            let Some(seconds) = left() else { continue };
            let there = before.iter().find(|one| one.address.addr() == ip);
            if let Some(foreign) = there.filter(|one| !one.ours) {
                let on = links.get(&foreign.index).map_or("?", |link| link.name.as_str());
                outcome.refused.insert(
                    ip,
                    format!("somebody gave {ip} to {on} by hand; remove it there, or choose another address"),
                );
                continue;
            }
            let Some(index) = place(wanted, &links, &before) else {
                outcome.refused.insert(ip, nowhere(wanted));
                continue;
            };
            let Some(link) = links.get(&index).filter(|link| link.up) else {
                outcome
                    .refused
                    .insert(ip, format!("the device for {ip} is down; set it up"));
                continue;
            };
            let known = there.filter(|one| one.index == index && one.address == wanted.address);
            if known.is_some_and(|known| known.valid.saturating_add(RENEWED) >= seconds && known.valid <= seconds) {
                continue;
            }
            if self.ours.insert(ip)
                && let Err(error) = self.save()
            {
                self.ours.remove(&ip);
                let why = format!("what is held cannot be written down: {error}; free space in the data directory");
                outcome.refused.insert(ip, why);
                continue;
            }
            // As late as can be: what is asked for now counts from now.
            let Some(seconds) = left() else { continue };
            match self.put(index, wanted.address, seconds, known.is_some()).await {
                Ok(()) if known.is_none() => drop(outcome.taken.insert(ip)),
                Ok(()) => {}
                Err(error) => {
                    let why = format!("give {} the address {ip}: {}", link.name, say(&error));
                    outcome.refused.insert(ip, why);
                }
            }
        }
        // What took so long that it is not certain any more goes, and only what is there is told.
        let mut after = self.seen().await?;
        if left().is_none() {
            for one in after.iter().filter(|one| one.ours) {
                outcome.notes.push(self.remove(one, &links).await);
            }
            after = self.seen().await?;
        }
        for one in after.iter().filter(|one| one.ours) {
            let link = links.get(&one.index);
            let place = Place {
                index: one.index,
                name: link.map_or_else(String::new, |link| link.name.clone()),
                mac: link.and_then(|link| link.mac).unwrap_or_default(),
            };
            outcome.held.insert(one.address.addr(), place);
        }
        outcome.taken.retain(|ip| outcome.held.contains_key(ip));
        let held: BTreeSet<IpAddr> = outcome.held.keys().copied().collect();
        if self.ours != held {
            self.ours = held;
            if let Err(error) = self.save() {
                outcome
                    .notes
                    .push(format!("what is held cannot be written down: {error}"));
            }
        }
        Ok(outcome)
    }

    fn save(&self) -> io::Result<()> {
        let beside = self.ledger.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(&self.ours).unwrap_or_default())?;
        std::fs::rename(&beside, &self.ledger)
    }

    async fn links(&self) -> Result<BTreeMap<u32, Link>, FloatingError> {
        let all: Result<Vec<LinkMessage>, _> = self.handle.link().get().execute().try_collect().await;
        let all = all.map_err(|error| FloatingError::Kernel {
            act: "list the devices",
            why: say(&error),
        })?;
        Ok(all.into_iter().map(seen_link).collect())
    }

    async fn seen(&self) -> Result<Vec<SeenAddress>, FloatingError> {
        let all: Result<Vec<AddressMessage>, _> = self.handle.address().get().execute().try_collect().await;
        let all = all.map_err(|error| FloatingError::Kernel {
            act: "list the addresses",
            why: say(&error),
        })?;
        Ok(all
            .into_iter()
            .filter_map(|message| self.seen_address(message))
            .collect())
    }

    fn seen_address(&self, message: AddressMessage) -> Option<SeenAddress> {
        let (mut local, mut address, mut valid, mut protocol) = (None, None, FOREVER, None);
        for attribute in &message.attributes {
            if let AddressAttribute::Local(found) = attribute {
                local = Some(*found);
            } else if let AddressAttribute::Address(found) = attribute {
                address = Some(*found);
            } else if let AddressAttribute::CacheInfo(found) = attribute {
                valid = found.ifa_valid;
            } else if let AddressAttribute::Protocol(found) = attribute {
                protocol = Some(u8::from(*found)).filter(|protocol| *protocol != 0);
            }
        }
        let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
        // An older kernel keeps no mark: then the ledger says it, of those that end by themselves.
        let ours = match protocol {
            Some(protocol) => protocol == ROUTE_PROTOCOL,
            None => valid != FOREVER && self.ours.contains(&address.addr()),
        };
        Some(SeenAddress {
            index: message.header.index,
            address,
            ours,
            valid,
            message,
        })
    }

    async fn put(&self, index: u32, address: IpNet, seconds: u32, again: bool) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if again {
            request = request.replace();
        }
        let mut life = CacheInfo::default();
        life.ifa_valid = seconds;
        // Nothing that this host begins goes out from it, where there is a choice.
        life.ifa_preferred = if address.addr().is_ipv6() { 0 } else { seconds };
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::CacheInfo(life));
        attributes.push(AddressAttribute::Protocol(AddressProtocol::from(ROUTE_PROTOCOL)));
        if address.addr().is_ipv6() {
            // Who held it before may still be asked: it is known to be gone there.
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await
    }

    async fn remove(&self, one: &SeenAddress, links: &BTreeMap<u32, Link>) -> String {
        let on = links.get(&one.index).map_or("?", |link| link.name.as_str());
        match self.handle.address().del(one.message.clone()).execute().await {
            Ok(()) => format!("let go of {} on {on}", one.address.addr()),
            Err(error) => format!("let go of {} on {on}: {}", one.address.addr(), say(&error)),
        }
    }
}

/// The device that gets it.
fn place(wanted: &Wanted, links: &BTreeMap<u32, Link>, seen: &[SeenAddress]) -> Option<u32> {
    if let Some(name) = &wanted.interface {
        return links
            .iter()
            .find(|(_, link)| link.name == *name)
            .map(|(index, _)| *index);
    }
    let ip = wanted.address.addr();
    seen.iter()
        .filter(|one| !one.ours && one.address.contains(&ip) && one.address.prefix_len() > 0)
        .max_by_key(|one| one.address.prefix_len())
        .map(|one| one.index)
}

fn nowhere(wanted: &Wanted) -> String {
    match &wanted.interface {
        Some(name) => {
            format!("there is no device {name}; name another `interface`, or nodes that have it in `placement`")
        }
        None => format!(
            "no device has an address of the network of {}; name an `interface`, or nodes that are in it in `placement`",
            wanted.address
        ),
    }
}

fn seen_link(message: LinkMessage) -> (u32, Link) {
    let mut link = Link {
        name: String::new(),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::Address(mac) = attribute {
            link.mac = mac.try_into().ok();
        }
    }
    (message.header.index, link)
}

/// Tells all hosts on the device's network that the address is here: once; do it again, in case it was not heard.
pub fn announce(address: IpAddr, place: &Place) -> Result<(), FloatingError> {
    let told = match address {
        IpAddr::V4(address) => announce4(address, place),
        IpAddr::V6(address) => announce6(address, place),
    };
    told.map_err(|error| FloatingError::Announce {
        address,
        why: error.to_string(),
    })
}

/// The announcement of RFC 5227: a request for the address by who has it.
#[must_use]
pub fn gratuitous(address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // ARP, of Ethernet and IPv4, a request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame.resize(60, 0);
    frame
}

fn announce4(address: Ipv4Addr, place: &Place) -> io::Result<()> {
    let [a, b, c, d, e, f] = place.mac;
    let device = NetworkInterface {
        name: place.name.clone(),
        description: String::new(),
        index: place.index,
        mac: Some(MacAddr::new(a, b, c, d, e, f)),
        ips: Vec::new(),
        flags: 0,
    };
    let config = Config {
        promiscuous: false,
        ..Config::default()
    };
    let Channel::Ethernet(mut sender, _) = pnet_datalink::channel(&device, config)? else {
        return Err(io::Error::other("the device is no Ethernet"));
    };
    match sender.send_to(&gratuitous(address, place.mac), None) {
        Some(sent) => sent,
        None => Err(io::Error::other("nothing was sent")),
    }
}

/// An unsolicited neighbour advertisement to all nodes; the kernel adds its checksum.
fn announce6(address: Ipv6Addr, place: &Place) -> io::Result<()> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMPV6),
    )?;
    // Others are not believed.
    sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    rustix::net::bind(&socket, &SocketAddrV6::new(address, 0, 0, 0))?;
    // Its type, and that it overrides what was known.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(place.mac);
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, place.index);
    sendto(&socket, &message, SendFlags::empty(), &to)?;
    Ok(())
}

/// Tells of changes of the host's addresses and devices.
#[derive(Debug)]
pub struct Changes {
    news: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Changes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Changes {
    /// Of the network namespace that the caller's thread is in.
    pub fn new() -> Result<Self, FloatingError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(FloatingError::Netlink)?;
        let news = Arc::new(Notify::new());
        let told = Arc::clone(&news);
        let listening = tokio::spawn(async move {
            while messages.next().await.is_some() {
                told.notify_one();
            }
            told.notify_one();
        });
        Ok(Self {
            news,
            tasks: [tokio::spawn(connection), listening],
        })
    }

    /// Until something has changed since the last call.
    pub async fn wait(&self) {
        self.news.notified().await;
    }

    /// Whether it still hears anything.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_request_for_ones_own_address_to_everybody() {
        let frame = gratuitous(Ipv4Addr::new(192, 0, 2, 10), [2, 0, 0, 0, 0, 1]);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..32], [2, 0, 0, 0, 0, 1, 192, 0, 2, 10]);
        assert_eq!(frame[38..42], [192, 0, 2, 10]);
    }
}
