//! Makes a node's links what they should be. The agent asks [`probe`] and [`host`], says in its facts what follows
//! (`planner::network::links::{kind, own}`), and calls [`Wires::converge`] with `planner::network::links::links` whenever its
//! peers change, [`Changes`] tells of something, and every few seconds. It promises that only what differs is touched, that
//! nothing of another name or number is, and that links go on while nobody calls. [`raze`] takes all of it away.

mod host;
mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use planner::network::links::{Carrier, Device, Key, Links, Mac, Names, ROUTE_PROTOCOL, VxlanPeer, Way, WireguardPeer};
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::route::{RouteProtocol, RouteType};
use schemas::names::NodeName;

pub use self::host::{Changes, host, probe};
use self::kernel::{Answer, Kernel, SeenLink, SeenRoute, SeenVxlan, differ, say};
use crate::detached::{self, DetachedError, Program};
use crate::wireguard::uapi::UapiError;
use crate::wireguard::{self, Change, Keys, Seen, call, configure, generic, uapi, waiting};

/// How long a process that carries packets may take to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one may take until its device answers.
const START: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);
/// How often a process is told its port when it does not get it.
const REBINDS: u32 = 5;
/// How long a node's key before goes on while its new one does not answer: who has stolen a key keeps it no longer.
const GO_ON: Duration = Duration::from_secs(3_600);
/// The port of what is thrown away.
const DISCARD: u16 = 9;
/// EEXIST.
const EXISTS: i32 = 17;

#[derive(Debug, thiserror::Error)]
pub enum WiresError {
    #[error("open a connection to the kernel's tables")]
    Netlink(#[source] io::Error),
    #[error("{act}: {why}")]
    Kernel { act: &'static str, why: String },
    #[error(transparent)]
    Process(#[from] DetachedError),
    #[error("ask the links: {why}")]
    Ask { why: String },
}

impl WiresError {
    fn kernel(act: &'static str) -> impl Fn(rtnetlink::Error) -> Self {
        move |error| Self::Kernel { act, why: say(&error) }
    }
}

/// What came of making links what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converged {
    /// What was changed, each with its object: nothing where all was as it should be.
    pub repaired: Vec<String>,
    /// What could not be, with the remedy. The next call tries again.
    pub trouble: Vec<String>,
}

/// The other end of a link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    pub node: NodeName,
    /// Where it was last heard from, or is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Since the last handshake; None: none yet, or the link has none.
    pub handshake_age: Option<Duration>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// Which process to start for a device: its name, its largest packet in bytes, the directory of pid file and log.
pub type Starter = Box<dyn Fn(&str, u16, PathBuf) -> Program + Send + Sync>;

/// What links need beside the kernel.
pub struct Setup {
    /// Where the process that carries packets has its pid file and log.
    pub dir: PathBuf,
    /// [`own_verb`], but for tests.
    pub starter: Starter,
}

/// `reeve wireguard`, of the binary that runs here.
#[must_use]
pub fn own_verb(device: &str, mtu: u16, dir: PathBuf) -> Program {
    let mut args: Vec<OsString> = vec!["wireguard".into(), "--device".into(), device.into()];
    args.extend([
        "--mtu".into(),
        mtu.to_string().into(),
        "--dir".into(),
        dir.clone().into(),
    ]);
    Program {
        place: wireguard::place(dir, device),
        path: detached::own_program(),
        args,
        env: Vec::new(),
    }
}

/// A node's links.
pub struct Wires {
    setup: Setup,
    kernel: Kernel,
    /// Where each peer was said to be.
    told: BTreeMap<Key, SocketAddr>,
    /// Since when a new key of a peer has not answered.
    waits: BTreeMap<Key, Instant>,
}

impl Wires {
    /// In the network namespace that the caller's thread is in; all later calls in the same.
    pub fn new(setup: Setup) -> Result<Self, WiresError> {
        Ok(Self {
            setup,
            kernel: Kernel::new().map_err(WiresError::Netlink)?,
            told: BTreeMap::new(),
            waits: BTreeMap::new(),
        })
    }

    /// Since when the newest of the new keys of peers has not answered: look again soon. None where none is waited for.
    #[must_use]
    pub fn waits(&self) -> Option<Duration> {
        self.waits.values().map(Instant::elapsed).min()
    }

    /// Makes all as it should be, as far as it can be. `keys` are needed where links are encrypted.
    pub async fn converge(&mut self, links: &Links, keys: &Keys) -> Converged {
        let mut log = Converged::default();
        if let Err(why) = self.all(links, keys, &mut log).await {
            log.trouble.push(why);
        }
        log
    }

    async fn all(&mut self, links: &Links, keys: &Keys, log: &mut Converged) -> Result<(), String> {
        forward(links, log);
        // First what keeps traffic from leaving by another way.
        self.routes(links, None, true, log).await?;
        let index = match &links.device {
            Some(device) => {
                self.remove_others(links, &device.name, log).await?;
                match self.device(device, keys, log).await {
                    Ok(index) => Some(index),
                    Err(why) => {
                        log.trouble.push(why);
                        None
                    }
                }
            }
            None => {
                self.remove_others(links, "", log).await?;
                None
            }
        };
        self.routes(links, index, false, log).await
    }

    /// Takes away what is ours and not `kept`.
    async fn remove_others(&mut self, links: &Links, kept: &str, log: &mut Converged) -> Result<(), String> {
        if kept != links.names.wireguard {
            self.told.clear();
            self.stop(&links.names.wireguard, log).await;
        }
        for link in self.seen().await? {
            let ours = link.name == links.names.wireguard || link.name == links.names.vxlan;
            if ours && link.name != kept {
                let done = self.kernel.delete_link(link.index).await;
                act(log, format!("removed the device {}", link.name), done);
            }
        }
        Ok(())
    }

    async fn seen(&self) -> Result<Vec<SeenLink>, String> {
        let refused = |error| format!("list the devices: {}", say(&error));
        self.kernel.links().await.map_err(refused)
    }

    async fn find(&self, name: &str) -> Result<Option<SeenLink>, String> {
        Ok(self.seen().await?.into_iter().find(|link| link.name == name))
    }

    async fn device(&mut self, device: &Device, keys: &Keys, log: &mut Converged) -> Result<u32, String> {
        let Device {
            name,
            mtu,
            addresses,
            carrier,
        } = device;
        let link = match carrier {
            Carrier::Wireguard {
                user: true,
                port: _,
                peers: _,
            } => self.process(name, *mtu, log).await?,
            Carrier::Wireguard {
                user: false,
                port: _,
                peers: _,
            } => {
                self.stop(name, log).await;
                self.in_kernel(name, log).await?
            }
            Carrier::Vxlan {
                id,
                port,
                mac,
                local,
                peers: _,
            } => {
                let wanted = SeenVxlan {
                    id: *id,
                    port: *port,
                    learning: false,
                    local: *local,
                    odd: false,
                };
                self.vxlan(name, &wanted, mac, *mtu, log).await?
            }
        };
        let index = link.index;
        if link.mtu != u32::from(*mtu) {
            let done = self.kernel.set_mtu(index, *mtu).await;
            act(
                log,
                format!("packets of {name} are {mtu} bytes at most, not {}", link.mtu),
                done,
            );
        }
        loosen(name, log);
        if !link.up {
            let done = self.kernel.set_up(index).await;
            act(log, format!("the device {name} is up"), done);
        }
        self.addresses(name, index, addresses, log).await?;
        match carrier {
            Carrier::Wireguard { user, port, peers } => self.peers(name, *user, *port, peers, keys, log).await?,
            Carrier::Vxlan {
                id: _,
                port: _,
                mac: _,
                local: _,
                peers,
            } => self.tables(name, index, peers, log).await?,
        }
        Ok(index)
    }

    async fn vxlan(
        &self,
        name: &str,
        wanted: &SeenVxlan,
        mac: &Mac,
        mtu: u16,
        log: &mut Converged,
    ) -> Result<SeenLink, String> {
        if let Some(found) = self.find(name).await? {
            if found.kind == Some(InfoKind::Vxlan) && found.vxlan == Some(*wanted) {
                if found.mac != mac.0 {
                    let done = self.kernel.set_mac(found.index, mac).await;
                    act(log, format!("the hardware address of {name} is {mac}"), done);
                }
                return Ok(found);
            }
            let done = self.kernel.delete_link(found.index).await;
            act(log, format!("removed the device {name}, which was another"), done);
        }
        let made = self.kernel.add_vxlan(name, wanted, mac, mtu).await;
        made.map_err(|error| format!("make the device {name} (VXLAN): {}", say(&error)))?;
        log.repaired.push(format!("made the device {name} (VXLAN)"));
        self.made(name).await
    }

    async fn made(&self, name: &str) -> Result<SeenLink, String> {
        let found = self.find(name).await?;
        found.ok_or_else(|| format!("the device {name} was removed as soon as it was made"))
    }

    async fn in_kernel(&self, name: &str, log: &mut Converged) -> Result<SeenLink, String> {
        if let Some(found) = self.find(name).await? {
            if found.kind == Some(InfoKind::Wireguard) {
                return Ok(found);
            }
            let done = self.kernel.delete_link(found.index).await;
            act(log, format!("removed the device {name}, which was another"), done);
        }
        let made = self.kernel.add_wireguard(name).await;
        made.map_err(|error| format!("make the device {name} (WireGuard): {}", say(&error)))?;
        log.repaired.push(format!("made the device {name} (WireGuard)"));
        self.made(name).await
    }

    /// The device of a process: started where it does not run, or does not answer.
    async fn process(&mut self, name: &str, mtu: u16, log: &mut Converged) -> Result<SeenLink, String> {
        let place = wireguard::place(self.setup.dir.clone(), name);
        let looked = blocking(move || detached::look(&place)).await;
        let running = looked.map_err(|error| chain(&error))?.is_some();
        let found = self.find(name).await?;
        let carries = found.as_ref().is_some_and(|link| link.kind == Some(InfoKind::Tun));
        if running && carries && uapi::get(name).await.is_ok() {
            return found.ok_or_else(|| format!("the device {name} is gone"));
        }
        if running {
            // Its device is gone, or it hangs.
            self.stop(name, log).await;
        }
        if let Some(left) = self.find(name).await? {
            let done = self.kernel.delete_link(left.index).await;
            act(log, format!("removed the device {name}, which was another"), done);
        }
        self.told.clear();
        let program = (self.setup.starter)(name, mtu, self.setup.dir.clone());
        let log_file = program.place.log();
        let started = blocking(move || detached::start(&program)).await;
        started.map_err(|error| format!("start the process of {name}: {}", chain(&error)))?;
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let found = self.find(name).await?;
            if let Some(link) = found.filter(|link| link.kind == Some(InfoKind::Tun))
                && uapi::get(name).await.is_ok()
            {
                log.repaired.push(format!("started the process of {name}"));
                return Ok(link);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!(
                    "the process of {name} does not answer; its log: {}",
                    log_file.display()
                ));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    async fn stop(&self, name: &str, log: &mut Converged) {
        let place = wireguard::place(self.setup.dir.clone(), name);
        let stopped = blocking(move || {
            let ran = detached::look(&place)?.is_some();
            if ran {
                detached::stop(&place, PATIENCE)?;
            }
            Ok::<bool, DetachedError>(ran)
        });
        match stopped.await {
            Ok(true) => {
                // One that was killed left it.
                let _ = std::fs::remove_file(uapi::socket(name));
                log.repaired.push(format!("stopped the process of {name}"));
            }
            Ok(false) => {}
            Err(error) => log
                .trouble
                .push(format!("stop the process of {name}: {}", chain(&error))),
        }
    }

    async fn addresses(&self, name: &str, index: u32, wanted: &[IpAddr], log: &mut Converged) -> Result<(), String> {
        let all = self.kernel.addresses().await;
        let all = all.map_err(|error| format!("list the addresses: {}", say(&error)))?;
        let have: BTreeSet<IpNet> = all
            .into_iter()
            .filter(|(of, _)| *of == index)
            .map(|(_, has)| has)
            .collect();
        let want: BTreeSet<IpNet> = wanted.iter().map(|address| IpNet::from(*address)).collect();
        let (extra, missing) = differ(&want, &have);
        for address in extra {
            let done = self.kernel.delete_address(index, address).await;
            act(log, format!("removed the address {address} from {name}"), done);
        }
        for address in missing {
            let done = self.kernel.add_address(index, address.addr()).await;
            act(log, format!("gave {name} the address {}", address.addr()), done);
        }
        Ok(())
    }

    /// What a VXLAN's neighbours and forwarding are.
    async fn tables(&self, name: &str, index: u32, peers: &[VxlanPeer], log: &mut Converged) -> Result<(), String> {
        let refused = |error| format!("list the neighbours of {name}: {}", say(&error));
        let entry = |mac: &[u8], remote: IpAddr| (mac.to_vec(), remote);
        let want: BTreeSet<(Vec<u8>, IpAddr)> = peers.iter().map(|peer| entry(&peer.mac.0, peer.remote)).collect();
        let mut have = BTreeSet::new();
        for seen in self.kernel.forwarding(index).await.map_err(refused)? {
            let known = seen.address.map(|remote| entry(&seen.mac, remote));
            match known {
                Some(known) if want.contains(&known) && seen.permanent => {
                    have.insert(known);
                }
                Some(_) | None => {
                    let done = self.kernel.delete_neighbour(&seen).await;
                    let to = seen.address.map_or_else(|| "nowhere".to_owned(), |to| to.to_string());
                    act(log, format!("removed the forwarding of {name} to {to}"), done);
                }
            }
        }
        for peer in peers
            .iter()
            .filter(|peer| !have.contains(&entry(&peer.mac.0, peer.remote)))
        {
            let done = self.kernel.add_forwarding(index, &peer.mac, peer.remote).await;
            act(
                log,
                format!("{name} forwards to {} at {}", peer.node, peer.remote),
                done,
            );
        }
        let behind: BTreeMap<IpAddr, &VxlanPeer> = peers
            .iter()
            .flat_map(|peer| peer.inside.iter().map(move |inside| (*inside, peer)))
            .collect();
        let mut right = BTreeSet::new();
        for seen in self.kernel.neighbours(index).await.map_err(refused)? {
            let Some(address) = seen.address else { continue };
            match behind.get(&address) {
                Some(peer) if seen.permanent && seen.mac == peer.mac.0 => {
                    right.insert(address);
                }
                // Set anew below.
                Some(_) => {}
                None if seen.permanent => {
                    let done = self.kernel.delete_neighbour(&seen).await;
                    act(log, format!("removed the neighbour {address} of {name}"), done);
                }
                None => {}
            }
        }
        for (address, peer) in behind.iter().filter(|(address, _)| !right.contains(address)) {
            let done = self.kernel.set_neighbour(index, *address, &peer.mac).await;
            act(log, format!("{address} on {name} is {}", peer.node), done);
        }
        Ok(())
    }

    async fn peers(
        &mut self,
        name: &str,
        user: bool,
        port: u16,
        peers: &[WireguardPeer],
        keys: &Keys,
        log: &mut Converged,
    ) -> Result<(), String> {
        let seen = read(name, user).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let mut kept = waiting(peers, &seen, now);
        self.waits.retain(|key, _| kept.contains_key(key));
        for key in kept.keys() {
            self.waits.entry(*key).or_insert_with(Instant::now);
        }
        kept.retain(|key, _| self.waits.get(key).is_some_and(|since| since.elapsed() < GO_ON));
        let change = configure(keys.private(), port, peers, &seen, &self.told, &kept, now);
        if !change.is_empty() {
            let told = if user {
                tell(name, port, &change).await.map_err(|error| chain(&error))
            } else {
                generic::set(name, &change).map_err(|error| chain(&error))
            };
            if let Err(why) = told {
                if user && (change.port.is_some() || change.private.is_some()) {
                    // It would say next time that all is well, and hear nothing: the next call starts another.
                    self.stop(name, log).await;
                }
                return Err(format!(
                    "configure the device {name}: {why}; where its UDP port {port} is another program's, end that one"
                ));
            }
            say_change(name, peers, &change, log);
            knock(&call(peers, &seen, &change));
        }
        self.told = peers
            .iter()
            .filter_map(|peer| Some((peer.key, peer.endpoint?)))
            .collect();
        Ok(())
    }

    /// `refusals`: only those that lead nowhere.
    async fn routes(
        &self,
        links: &Links,
        device: Option<u32>,
        refusals: bool,
        log: &mut Converged,
    ) -> Result<(), String> {
        let all = self.kernel.routes().await;
        let all = all.map_err(|error| format!("list the routes: {}", say(&error)))?;
        let in_ranges = |seen: &SeenRoute| links.ranges.iter().any(|range| range.contains(&seen.to));
        let ours = |seen: &&SeenRoute| {
            let through = device.is_some() && seen.device == device && seen.kind == RouteType::Unicast;
            (seen.protocol == ROUTE_PROTOCOL && in_ranges(seen)) || (through && !is_kernels(seen))
        };
        let mut right = BTreeSet::new();
        if !refusals {
            for seen in all.iter().filter(ours) {
                let wanted = links.routes.iter().find(|route| seen.is(route, device));
                match wanted {
                    Some(route) if seen.protocol == ROUTE_PROTOCOL && right.insert(route.to) => {}
                    Some(_) | None => {
                        let done = self.kernel.delete_route(seen).await;
                        act(log, format!("removed the route to {}", seen.to), done);
                    }
                }
            }
        }
        for route in &links.routes {
            let refusal = route.way == Way::Unreachable;
            let needs = matches!(route.way, Way::Device | Way::Over(_));
            if (refusals && !refusal) || right.contains(&route.to) || (needs && device.is_none()) {
                continue;
            }
            if refusals && all.iter().filter(ours).any(|seen| seen.is(route, None)) {
                continue;
            }
            match self.kernel.add_route(route, device).await {
                Err(error) if kernel::code(&error) == EXISTS => log.trouble.push(format!(
                    "{} is routed by somebody else: remove that route, as `ip route show {}` has it",
                    route.to, route.to
                )),
                done => act(log, format!("routed {} {}", route.to, way(&route.way)), done),
            }
        }
        Ok(())
    }

    /// As [`state`].
    pub async fn state(&self, links: &Links) -> Result<Vec<PeerState>, WiresError> {
        state(links).await
    }
}

/// The other ends, in order of nodes: of WireGuard what the device says; of others only who they are.
pub async fn state(links: &Links) -> Result<Vec<PeerState>, WiresError> {
    let plain = |node: &NodeName, endpoint| PeerState {
        node: node.clone(),
        endpoint,
        handshake_age: None,
        received_bytes: 0,
        sent_bytes: 0,
    };
    let Some(Device {
        name,
        carrier,
        mtu: _,
        addresses: _,
    }) = &links.device
    else {
        return Ok(links.linked.iter().map(|node| plain(node, None)).collect());
    };
    let (user, peers) = match carrier {
        Carrier::Wireguard { user, peers, port: _ } => (*user, peers),
        Carrier::Vxlan { peers, port, .. } => {
            let at = |peer: &VxlanPeer| plain(&peer.node, Some(SocketAddr::new(peer.remote, *port)));
            return Ok(peers.iter().map(at).collect());
        }
    };
    let seen = read(name, user).await.map_err(|why| WiresError::Ask { why })?;
    let now = SystemTime::now();
    let state = |peer: &WireguardPeer| {
        let Some(seen) = seen.peers.get(&peer.key) else {
            return plain(&peer.node, peer.endpoint);
        };
        let last = seen
            .handshake
            .map(|last| SystemTime::UNIX_EPOCH + Duration::from_secs(last));
        PeerState {
            node: peer.node.clone(),
            endpoint: seen.endpoint.or(peer.endpoint),
            handshake_age: last.map(|last| now.duration_since(last).unwrap_or_default()),
            received_bytes: seen.received_bytes,
            sent_bytes: seen.sent_bytes,
        }
    };
    Ok(peers.iter().map(state).collect())
}

/// Of these routes, those that the kernel does not have as they should be.
pub async fn missing(links: &Links) -> Result<BTreeSet<IpNet>, WiresError> {
    let kernel = Kernel::new().map_err(WiresError::Netlink)?;
    let name = links.device.as_ref().map(|device| &device.name);
    let all = kernel.links().await.map_err(WiresError::kernel("list the devices"))?;
    let device = all.iter().find(|link| Some(&link.name) == name).map(|link| link.index);
    let seen = kernel.routes().await.map_err(WiresError::kernel("list the routes"))?;
    let mut by: BTreeMap<IpNet, Vec<&SeenRoute>> = BTreeMap::new();
    for one in &seen {
        by.entry(one.to).or_default().push(one);
    }
    let there = |route: &&planner::network::links::Route| {
        let found = by.get(&route.to).map_or(&[][..], Vec::as_slice);
        found.iter().any(|seen| seen.is(route, device))
    };
    let wanted = links.routes.iter();
    Ok(wanted.filter(|route| !there(route)).map(|route| route.to).collect())
}

/// Takes away what links made: the process, the devices, and the routes in these ranges. Keys stay in their directory.
pub async fn raze(names: &Names, ranges: &[IpNet], dir: PathBuf) -> Result<(), WiresError> {
    for name in [&names.wireguard, &names.vxlan] {
        let place = wireguard::place(dir.clone(), name);
        blocking(move || detached::stop(&place, PATIENCE)).await?;
        let _ = std::fs::remove_file(uapi::socket(name));
    }
    let kernel = Kernel::new().map_err(WiresError::Netlink)?;
    for link in kernel.links().await.map_err(WiresError::kernel("list the devices"))? {
        if link.name == names.wireguard || link.name == names.vxlan {
            let removed = kernel.delete_link(link.index).await;
            removed.map_err(WiresError::kernel("remove a device"))?;
        }
    }
    for route in kernel.routes().await.map_err(WiresError::kernel("list the routes"))? {
        if route.protocol == ROUTE_PROTOCOL && ranges.iter().any(|range| range.contains(&route.to)) {
            let removed = kernel.delete_route(&route).await;
            removed.map_err(WiresError::kernel("remove a route"))?;
        }
    }
    Ok(())
}

/// One packet to each of these: a device begins a session when it has something to send.
fn knock(doors: &[IpNet]) {
    let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    for door in doors {
        let from = if door.addr().is_ipv4() { &four } else { &six };
        // Without, the next packet of anybody does the same.
        if let Ok(from) = from {
            let _ = from.send_to(&[], (door.network(), DISCARD));
        }
    }
}

/// Tells a process's device. With another port or mark it opens its sockets anew, and may find its port taken: by another
/// program, or for a moment by its own old ones. Then it listens nowhere, though it says that it does, until it is told of
/// another port and back.
async fn tell(name: &str, port: u16, change: &Change) -> Result<(), UapiError> {
    let mut told = uapi::set(name, change).await;
    let at = |port| Change {
        port: Some(port),
        ..Change::default()
    };
    for _ in 0..REBINDS {
        if told.is_ok() || (change.port.is_none() && change.private.is_none() && !change.unmark) {
            break;
        }
        tokio::time::sleep(STEP).await;
        told = match uapi::set(name, &at(0)).await {
            Ok(()) => uapi::set(name, &at(port)).await,
            Err(error) => Err(error),
        };
    }
    told
}

async fn read(name: &str, user: bool) -> Result<Seen, String> {
    if user {
        uapi::get(name).await.map_err(|error| chain(&error))
    } else {
        generic::get(name).map_err(|error| chain(&error))
    }
}

fn say_change(name: &str, peers: &[WireguardPeer], change: &Change, log: &mut Converged) {
    let Change {
        private,
        port,
        unmark,
        peers: changed,
    } = change;
    if private.is_some() {
        log.repaired.push(format!("gave {name} its key"));
    }
    if let Some(port) = port {
        log.repaired.push(format!("{name} listens on UDP port {port}"));
    }
    if *unmark {
        log.repaired.push(format!("packets of {name} carry no mark"));
    }
    for told in changed {
        let of = peers.iter().find(|peer| peer.key == told.key);
        log.repaired.push(match of {
            Some(peer) => format!("told {name} of {}", peer.node),
            None => format!("removed a peer that is none from {name}"),
        });
    }
}

fn way(way: &Way) -> String {
    match way {
        Way::Device => "into the device".to_owned(),
        Way::Over(over) => format!("over {over}"),
        Way::Via(via) => format!("by way of {via}"),
        Way::Unreachable => "nowhere, where no link leads".to_owned(),
    }
}

fn act(log: &mut Converged, what: String, done: Answer<()>) {
    match done {
        Ok(()) => log.repaired.push(what),
        Err(error) => log.trouble.push(format!("{what}: {}", say(&error))),
    }
}

/// What the kernel itself added with an address or a device.
fn is_kernels(seen: &SeenRoute) -> bool {
    seen.protocol == u8::from(RouteProtocol::Kernel)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DetachedError> + Send + 'static,
) -> Result<T, DetachedError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(found) = cause {
        text.push_str(": ");
        text.push_str(&found.to_string());
        cause = found.source();
    }
    text
}

/// That the kernel passes packets on between devices.
fn forward(links: &Links, log: &mut Converged) {
    if links.routes.is_empty() {
        return;
    }
    setting("/proc/sys/net/ipv4/ip_forward", "1", log);
    if links.ranges.iter().any(|range| matches!(range, IpNet::V6(_))) {
        let all = "/proc/sys/net/ipv6/conf/all/forwarding";
        if !std::path::Path::new(all).exists() {
            return;
        }
        // Who passes packets on takes no routers' word from then on, unless told to: devices that did go on doing so.
        if std::fs::read_to_string(all).is_ok_and(|is| is.trim() != "1") {
            for device in std::fs::read_dir("/proc/sys/net/ipv6/conf")
                .into_iter()
                .flatten()
                .flatten()
            {
                let accepts = device.path().join("accept_ra");
                let name = device.file_name().to_string_lossy().into_owned();
                let listens = self::host::leads_out(&name) && name != "all" && name != "default";
                if listens && std::fs::read_to_string(&accepts).is_ok_and(|is| is.trim() == "1") {
                    setting(&accepts.to_string_lossy(), "2", log);
                }
            }
        }
        setting(all, "1", log);
    }
}

/// That the kernel takes packets from the device though their senders are reached by another: routes come and go one by one.
fn loosen(name: &str, log: &mut Converged) {
    setting(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2", log);
}

fn setting(path: &str, value: &str, log: &mut Converged) {
    let is = std::fs::read_to_string(path).unwrap_or_default();
    if is.trim() == value {
        return;
    }
    match std::fs::write(path, value) {
        Ok(()) => log.repaired.push(format!("set {path} to {value}")),
        Err(error) => log.trouble.push(format!("set {path} to {value}: {error}")),
    }
}
