//! What a host has and can: [`probe`] asks the kernel which links it can make, [`host`] which addresses it has beside ours and
//! how large packets to other hosts may be, [`Changes`] tells when something that matters here has changed. The agent calls
//! them; nothing stays behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt as _;
use ipnet::IpNet;
use planner::network::links::{Host, Mac, Names, Probed, ROUTE_PROTOCOL};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::WiresError;
use super::kernel::{Answer, Kernel, SeenVxlan, code, say};

/// Asks the kernel, by making one of each and taking it away again.
pub async fn probe() -> Result<Probed, WiresError> {
    let kernel = Kernel::new().map_err(WiresError::Netlink)?;
    // Two agents of one host may ask at once.
    let name = format!("rvp{:x}", std::process::id());
    let wireguard = made(&kernel, &name, kernel.add_wireguard(&name).await).await;
    let vxlan = SeenVxlan {
        id: 1,
        port: 4_789,
        ..SeenVxlan::default()
    };
    let vxlan = kernel.add_vxlan(&name, &vxlan, &Mac([2, 0, 0, 0, 0, 1]), 1_280).await;
    let vxlan = made(&kernel, &name, vxlan).await;
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    Ok(Probed {
        wireguard,
        vxlan,
        tun: opened.map(drop).map_err(|error| format!("/dev/net/tun: {error}")),
    })
}

/// EOPNOTSUPP, EPERM.
const UNSUPPORTED: i32 = 95;
const DENIED: i32 = 1;

async fn made(kernel: &Kernel, name: &str, done: Answer<()>) -> Result<(), String> {
    match done {
        Ok(()) => {
            for link in kernel.links().await.unwrap_or_default() {
                if link.name == name {
                    let _ = kernel.delete_link(link.index).await;
                }
            }
            Ok(())
        }
        Err(error) if code(&error) == UNSUPPORTED => Err("it has no module for it".to_owned()),
        Err(error) if code(&error) == DENIED => {
            Err("it does not let this process: CAP_NET_ADMIN is missing".to_owned())
        }
        Err(error) => Err(say(&error)),
    }
}

/// Whether a device leads to other hosts: not those of engines, of containers, or of ours.
pub(super) fn leads_out(name: &str) -> bool {
    let bridge = name.strip_prefix("br-").is_some_and(|rest| rest.len() == 12);
    !(name == "lo" || name.starts_with("docker") || name.starts_with("veth") || bridge || is_ours(name))
}

/// Whether some cluster's agent made it.
fn is_ours(name: &str) -> bool {
    name.starts_with("rv-") || (name.starts_with("rv") && name.len() == 13)
}

/// This host's addresses on devices that lead to others, and the size of packets there: of the device of its default route,
/// else the smallest of them.
pub async fn host() -> Result<Host, WiresError> {
    let kernel = Kernel::new().map_err(WiresError::Netlink)?;
    let refused = WiresError::kernel;
    let links = kernel.links().await.map_err(refused("list the devices"))?;
    let all = kernel.addresses().await.map_err(refused("list the addresses"))?;
    let routes = kernel.routes().await.map_err(refused("list the routes"))?;
    let out = |index: u32| {
        links
            .iter()
            .find(|link| link.index == index && link.up && leads_out(&link.name))
    };
    let foreign = |(index, address): &(u32, IpNet)| {
        let link = links.iter().find(|link| link.index == *index)?;
        let theirs = !is_ours(&link.name) && !address.addr().is_loopback();
        theirs.then(|| (link.name.clone(), *address))
    };
    let beside = all.iter().filter_map(foreign).collect();
    let addresses: BTreeSet<(u32, IpNet)> = all.into_iter().filter(|(index, _)| out(*index).is_some()).collect();
    let default = routes
        .iter()
        .filter(|route| route.to.prefix_len() == 0)
        .min_by_key(|route| route.metric);
    let mtu = match default.and_then(|route| route.device).and_then(out) {
        Some(link) => link.mtu,
        None => addresses
            .iter()
            .filter_map(|(index, _)| out(*index))
            .map(|link| link.mtu)
            .min()
            .unwrap_or(1_500),
    };
    Ok(Host {
        addresses: addresses.into_iter().map(|(_, address)| address).collect(),
        beside,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}

/// Tells of changes of the kernel's tables that links may have to answer: our device, routes of ours, the host's addresses.
/// What has no such news (a peer of WireGuard that somebody removed) only a look from time to time finds.
#[derive(Debug)]
pub struct Changes {
    news: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Changes {
    /// Of the network namespace that the caller's thread is in.
    pub async fn new(names: &Names) -> Result<Self, WiresError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(WiresError::Netlink)?;
        let connection = tokio::spawn(connection);
        let mut ours = Ours {
            names: names.clone(),
            indexes: BTreeSet::new(),
        };
        let kernel = Kernel::new().map_err(WiresError::Netlink)?;
        let links = kernel.links().await.map_err(WiresError::kernel("list the devices"))?;
        let known: Vec<u32> = links
            .iter()
            .filter(|link| ours.named(&link.name))
            .map(|link| link.index)
            .collect();
        ours.indexes.extend(known);
        let news = Arc::new(Notify::new());
        let told = Arc::clone(&news);
        let task = tokio::spawn(async move {
            let _ends = Ends(connection);
            while let Some((message, _)) = messages.next().await {
                if ours.matters(message.payload) {
                    told.notify_one();
                }
            }
            // The connection broke: who waits looks himself, and asks anew.
            told.notify_one();
        });
        Ok(Self { news, task })
    }

    /// Until something has changed since the last call. Many changes at once are one; some are our own.
    pub async fn wait(&self) {
        self.news.notified().await;
    }

    /// Whether it still hears anything: make another one where not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Ours {
    names: Names,
    indexes: BTreeSet<u32>,
}

impl Ours {
    fn named(&self, name: &str) -> bool {
        name == self.names.wireguard || name == self.names.vxlan
    }

    fn matters(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = payload else {
            // Some were lost, or are not understood.
            return true;
        };
        if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message {
            self.link(&link)
        } else if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) = message {
            self.indexes.contains(&address.header.index) || address.header.scope == AddressScope::Universe
        } else if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) = message {
            self.route(&route)
        } else if let RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) = message {
            self.indexes.contains(&entry.header.ifindex)
        } else {
            false
        }
    }

    fn link(&mut self, link: &LinkMessage) -> bool {
        let name = link.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute {
                Some(name)
            } else {
                None
            }
        });
        match name {
            Some(name) if self.named(name) => {
                self.indexes.insert(link.header.index);
                true
            }
            // Renamed away.
            Some(_) | None => self.indexes.remove(&link.header.index),
        }
    }

    fn route(&self, route: &RouteMessage) -> bool {
        let device = route.attributes.iter().find_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute {
                Some(index)
            } else {
                None
            }
        });
        u8::from(route.header.protocol) == ROUTE_PROTOCOL || device.is_some_and(|index| self.indexes.contains(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_engines_and_containers_lead_to_no_other_host() {
        for name in [
            "lo",
            "docker0",
            "docker_gwbridge",
            "veth12ab",
            "br-0123456789ab",
            "rv-0a1b",
            "rvw0123456789",
        ] {
            assert!(!leads_out(name), "{name}");
        }
        for name in ["eth0", "br0", "br-lan", "wg0", "bond0.7", "rvlan"] {
            assert!(leads_out(name), "{name}");
        }
    }
}
