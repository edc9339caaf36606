//! The kernel's tables over netlink, as far as links go: [`Kernel`] reads them and makes single changes. `links` decides
//! nothing with it but what differs. Each call ends by itself: the kernel answers at once, or says why not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use planner::network::links::{Mac, ROUTE_PROTOCOL, Route, Way};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, LinkWireguard, RouteMessageBuilder};
use tokio::task::JoinHandle;

pub type Answer<T> = Result<T, rtnetlink::Error>;

/// A connection to the kernel's tables: those of the network namespace that its maker's thread was in.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A device.
#[derive(Clone, Debug)]
pub struct SeenLink {
    pub index: u32,
    pub name: String,
    pub kind: Option<InfoKind>,
    pub vxlan: Option<SeenVxlan>,
    pub mtu: u32,
    pub mac: Vec<u8>,
    pub up: bool,
}

/// What a VXLAN cannot change while it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenVxlan {
    pub id: u32,
    pub port: u16,
    pub learning: bool,
    pub local: Option<Ipv6Addr>,
    /// Something nobody asked for: where unknown packets go, or another way of working.
    pub odd: bool,
}

/// A route of the main table.
#[derive(Clone, Debug)]
pub struct SeenRoute {
    pub to: IpNet,
    pub protocol: u8,
    pub kind: RouteType,
    pub device: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub metric: u32,
    message: RouteMessage,
}

/// Who is behind an address, or where a hardware address is.
#[derive(Clone, Debug)]
pub struct SeenNeighbour {
    pub mac: Vec<u8>,
    pub address: Option<IpAddr>,
    pub permanent: bool,
    message: NeighbourMessage,
}

impl SeenRoute {
    /// Whether it is what it should be.
    pub fn is(&self, route: &Route, device: Option<u32>) -> bool {
        if self.to != route.to {
            return false;
        }
        match route.way {
            Way::Unreachable => self.kind == RouteType::Unreachable,
            Way::Device => self.unicast() && self.device == device && device.is_some() && self.gateway.is_none(),
            Way::Over(over) => {
                self.unicast() && self.device == device && device.is_some() && self.gateway == Some(over)
            }
            Way::Via(via) => self.unicast() && self.gateway == Some(via),
        }
    }

    fn unicast(&self) -> bool {
        self.kind == RouteType::Unicast
    }
}

/// What a refusal of the kernel's says.
pub fn say(error: &rtnetlink::Error) -> String {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return message.to_io().to_string();
    }
    "the kernel's answer is not understood".to_owned()
}

/// The number of a refusal of the kernel's; 0 of any other error.
pub fn code(error: &rtnetlink::Error) -> i32 {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return message.raw_code().abs();
    }
    0
}

impl Kernel {
    pub fn new() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }

    pub async fn links(&self) -> Answer<Vec<SeenLink>> {
        let all: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(all.into_iter().map(seen_link).collect())
    }

    pub async fn add_vxlan(&self, name: &str, vxlan: &SeenVxlan, mac: &Mac, mtu: u16) -> Answer<()> {
        let SeenVxlan {
            id,
            port,
            learning,
            local,
            odd: _,
        } = *vxlan;
        let mut message = LinkVxlan::new(name, id)
            .port(port)
            .learning(learning)
            .mtu(u32::from(mtu))
            .address(mac.0.to_vec());
        if let Some(local) = local {
            message = message.local6(local);
        }
        self.handle.link().add(message.build()).execute().await
    }

    pub async fn add_wireguard(&self, name: &str) -> Answer<()> {
        self.handle.link().add(LinkWireguard::new(name).build()).execute().await
    }

    pub async fn delete_link(&self, index: u32) -> Answer<()> {
        self.handle.link().del(index).execute().await
    }

    pub async fn set_mtu(&self, index: u32, mtu: u16) -> Answer<()> {
        let message = LinkUnspec::new_with_index(index).mtu(u32::from(mtu)).build();
        self.handle.link().set(message).execute().await
    }

    pub async fn set_mac(&self, index: u32, mac: &Mac) -> Answer<()> {
        let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build();
        self.handle.link().set(message).execute().await
    }

    pub async fn set_up(&self, index: u32) -> Answer<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await
    }

    /// All addresses: the device's number, the address with its network.
    pub async fn addresses(&self) -> Answer<Vec<(u32, IpNet)>> {
        let all: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await?;
        Ok(all
            .into_iter()
            .filter(|message| message.header.scope != AddressScope::Link)
            .filter_map(|message| Some((message.header.index, address(&message)?)))
            .collect())
    }

    pub async fn add_address(&self, index: u32, address: IpAddr) -> Answer<()> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, address, length);
        if address.is_ipv6() {
            // Nobody else can have it, and looking for one takes a second.
            let flags = AddressFlags::Nodad;
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        }
        request.execute().await
    }

    pub async fn delete_address(&self, index: u32, address: IpNet) -> Answer<()> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let message = std::mem::take(request.message_mut());
        self.handle.address().del(message).execute().await
    }

    /// The routes of the main table.
    pub async fn routes(&self) -> Answer<Vec<SeenRoute>> {
        let mut seen = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let all: Vec<RouteMessage> = self.handle.route().get(message).execute().try_collect().await?;
            seen.extend(all.into_iter().filter_map(seen_route));
        }
        Ok(seen)
    }

    pub async fn add_route(&self, route: &Route, device: Option<u32>) -> Answer<()> {
        let Route { to, way } = route;
        let built = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to.network(), to.prefix_len());
        let Ok(message) = built else {
            return Err(rtnetlink::Error::RequestFailed);
        };
        let message = message.protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        let over = |message: RouteMessageBuilder<IpAddr>, gateway: IpAddr| message.gateway(gateway).ok();
        let message = match (way, device) {
            (Way::Unreachable, _) => Some(message.kind(RouteType::Unreachable)),
            (Way::Device, Some(index)) => Some(message.output_interface(index).scope(RouteScope::Link)),
            (Way::Over(gateway), Some(index)) => over(message.output_interface(index).onlink(), *gateway),
            (Way::Via(gateway), _) => over(message, *gateway),
            (Way::Device | Way::Over(_), None) => None,
        };
        let Some(message) = message else {
            return Err(rtnetlink::Error::RequestFailed);
        };
        self.handle.route().add(message.build()).execute().await
    }

    pub async fn delete_route(&self, route: &SeenRoute) -> Answer<()> {
        self.handle.route().del(route.message.clone()).execute().await
    }

    /// Who is behind which address of a device.
    pub async fn neighbours(&self, index: u32) -> Answer<Vec<SeenNeighbour>> {
        let mut seen = self.table(AddressFamily::Inet, index).await?;
        seen.extend(self.table(AddressFamily::Inet6, index).await?);
        Ok(seen)
    }

    /// Where which hardware address of a device is.
    pub async fn forwarding(&self, index: u32) -> Answer<Vec<SeenNeighbour>> {
        self.table(AddressFamily::Bridge, index).await
    }

    async fn table(&self, family: AddressFamily, index: u32) -> Answer<Vec<SeenNeighbour>> {
        let request = self.handle.neighbours().get().set_address_family(family);
        let all: Vec<NeighbourMessage> = request.execute().try_collect().await?;
        let here = all.into_iter().filter(|message| message.header.ifindex == index);
        Ok(here.map(seen_neighbour).collect())
    }

    pub async fn set_neighbour(&self, index: u32, address: IpAddr, mac: &Mac) -> Answer<()> {
        let request = self.handle.neighbours().add(index, address);
        request.link_layer_address(&mac.0).replace().execute().await
    }

    pub async fn add_forwarding(&self, index: u32, mac: &Mac, remote: IpAddr) -> Answer<()> {
        let request = self.handle.neighbours().add_bridge(index, &mac.0);
        request.destination(remote).flags(NeighbourFlags::Own).execute().await
    }

    pub async fn delete_neighbour(&self, seen: &SeenNeighbour) -> Answer<()> {
        self.handle.neighbours().del(seen.message.clone()).execute().await
    }
}

fn seen_link(message: LinkMessage) -> SeenLink {
    let mut seen = SeenLink {
        index: message.header.index,
        name: String::new(),
        kind: None,
        vxlan: None,
        mtu: 0,
        mac: Vec::new(),
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            seen.name = name;
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            seen.mtu = mtu;
        } else if let LinkAttribute::Address(mac) = attribute {
            seen.mac = mac;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    seen.kind = Some(kind);
                } else if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                    seen.vxlan = Some(seen_vxlan(&data));
                }
            }
        }
    }
    seen
}

fn seen_vxlan(data: &[InfoVxlan]) -> SeenVxlan {
    let mut seen = SeenVxlan::default();
    for info in data {
        if let InfoVxlan::Id(id) = info {
            seen.id = *id;
        } else if let InfoVxlan::Port(port) = info {
            seen.port = *port;
        } else if let InfoVxlan::Learning(learning) = info {
            seen.learning = *learning;
        } else if let InfoVxlan::Local6(local) = info {
            seen.local = Some(*local);
        } else if let InfoVxlan::Group(_)
        | InfoVxlan::Group6(_)
        | InfoVxlan::Local(_)
        | InfoVxlan::CollectMetadata(true) = info
        {
            seen.odd = true;
        }
    }
    seen
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(found) = attribute {
            local = Some(*found);
        } else if let AddressAttribute::Address(found) = attribute {
            address = Some(*found);
        }
    }
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

fn seen_route(message: RouteMessage) -> Option<SeenRoute> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    // Where none is said.
    let mut to = Some(if header.address_family == AddressFamily::Inet6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    });
    let (mut device, mut gateway, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            to = ip(address);
        } else if let RouteAttribute::Oif(index) = attribute {
            device = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            gateway = ip(address);
        } else if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        } else if let RouteAttribute::Table(number) = attribute {
            table = *number;
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    Some(SeenRoute {
        to: IpNet::new(to?, header.destination_prefix_length).ok()?,
        protocol: u8::from(header.protocol),
        kind: header.kind,
        device,
        gateway,
        metric,
        message,
    })
}

fn seen_neighbour(message: NeighbourMessage) -> SeenNeighbour {
    let (mut mac, mut address) = (Vec::new(), None);
    for attribute in &message.attributes {
        if let NeighbourAttribute::LinkLayerAddress(found) = attribute {
            mac.clone_from(found);
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) = attribute {
            address = Some(IpAddr::V4(*found));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) = attribute {
            address = Some(IpAddr::V6(*found));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) = attribute {
            // Of forwarding, whose family does not say which it is.
            let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from).ok();
            address = four.or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from).ok());
        }
    }
    SeenNeighbour {
        mac,
        address,
        permanent: message.header.state == NeighbourState::Permanent,
        message,
    }
}

/// Those of `have` that nobody wants, and those of `want` that are not there.
pub fn differ<T: Ord + Clone>(want: &BTreeSet<T>, have: &BTreeSet<T>) -> (Vec<T>, Vec<T>) {
    (
        have.difference(want).cloned().collect(),
        want.difference(have).cloned().collect(),
    )
}
