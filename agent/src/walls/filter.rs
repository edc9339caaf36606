//! Who may talk to whom, kept in this host's packet filter. `run.rs` says what runs here, who is where and which policies are in
//! force; what the tables are then is `planner::network::policy`'s. Here they are put in place in one transaction that no known
//! connection notices, looked at every few seconds, and put right where somebody changed them. They stay when the agent ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use planner::network::policy::{Input, Local, Plug, Ruleset, accepts, is_stale, rules};
use planner::network::relay::Lead;
use planner::walls::filter_table;

use schemas::container::Protocol;
use schemas::keys::ResourceKey;
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::records::network::address6;
use schemas::records::{AssignedNetwork, ClusterId, Endpoints, Policies};
use tokio::sync::Mutex;

use super::{nft, tool};

/// What the filter follows from: values of the store, and what runs here.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub network: AssignedNetwork,
    /// The bridge of the network's containers on this node. It need not be there yet.
    pub bridge: String,
    /// The interfaces that lead to other nodes' containers; none where it may be any.
    pub links: BTreeSet<String>,
    /// What runs here, and what is about to: before a container is started it must be in here.
    pub running: Vec<Running>,
    pub endpoints: Arc<BTreeMap<ResourceKey, Arc<Endpoints>>>,
    pub policies: Arc<BTreeMap<Namespace, Arc<Policies>>>,
    /// Ports of the node from which who comes from outside is led straight to what runs here.
    pub leads: Vec<Lead>,
}

/// An instance of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub address: Ipv4Addr,
    pub namespace: Namespace,
    pub service: ResourceName,
    /// Ports of this host that lead to it.
    pub published: Vec<(u16, Protocol)>,
    /// By what its processes are found; None while it has none: its port is then bound to nobody.
    pub process: Option<Process>,
}

/// By what processes are found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    Pid(u32),
    /// The whole id of a container, as the kernel's control groups have it.
    Container(String),
}

/// Where each process is plugged in: the number of the bridge's port, and the card as it was first seen. What a container makes
/// of its card later is not believed.
pub(super) type Plugs = BTreeMap<Process, (String, [u8; 6])>;

/// The filter of one agent.
#[derive(Debug)]
pub struct Filter {
    table: String,
    state: Mutex<State>,
    /// Read by who must not wait.
    trouble: std::sync::Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Arc<Wanted>>,
    raised: Option<Ruleset>,
    /// The tables as `nft` lists them since.
    listed: String,
    plugs: Plugs,
    /// The bridge's card, as it was last seen.
    card: Option<[u8; 6]>,
    /// This kernel cannot lead: the relay does it.
    cannot_lead: bool,
    /// By which process each container's ports are found.
    pids: BTreeMap<Process, u32>,
    /// Who was led to by UDP; None: flows of an agent before this one may lead to nobody.
    led: Option<BTreeSet<IpAddr>>,
    /// Why flows cannot be ended, as it was said last.
    unended: Option<String>,
}

impl Filter {
    #[must_use]
    pub fn new(cluster: &ClusterId, node: &NodeName) -> Self {
        Self {
            table: filter_table(cluster.as_str(), node.as_str()),
            state: Mutex::default(),
            trouble: std::sync::Mutex::default(),
        }
    }

    /// Why policies do not hold here as they should; None where they do.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let why = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let fix = match why.as_str() {
            "the program `nft` is missing" => ": `apt install nftables`",
            "the program `ip` is missing" => ": `apt install iproute2`",
            _ => "",
        };
        Some(format!("network policies do not hold on this node: {why}{fix}"))
    }

    /// Takes what is wanted from now on, and puts it in place. True where what is to be said of it has changed.
    pub async fn apply(&self, wanted: Wanted) -> bool {
        let mut state = self.state.lock().await;
        state.wanted = Some(Arc::new(wanted));
        state.cannot_lead = false;
        self.settle(&mut state, false).await
    }

    /// Looks at what stands in the kernel, and puts it right. True where what is to be said of it has changed.
    pub async fn look(&self) -> bool {
        let mut state = self.state.lock().await;
        self.settle(&mut state, true).await
    }

    /// What it has refused since it was put in place: the chain's name and how many packets, as `nft` counts them. Chains are
    /// `in.<namespace>.<service>`, `out.<namespace>.<service>` and some of the filter's own; `-` in names is `_`.
    ///
    /// # Errors
    /// Why `nft` does not say it.
    pub async fn refused(&self) -> Result<BTreeMap<String, u64>, String> {
        let mut counts = BTreeMap::new();
        for family in ["inet", "bridge"] {
            let listed = nft(&["-t", "list", "table", family, &self.table], "").await?;
            count(&listed, &mut counts);
        }
        Ok(counts)
    }

    async fn settle(&self, state: &mut State, look: bool) -> bool {
        let Some(wanted) = state.wanted.clone() else {
            return false;
        };
        let done = self.place(state, &wanted, look).await;
        let now = done.err();
        let mut before = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *before != now;
        if changed {
            match &now {
                Some(why) => tracing::warn!(why, "network policies do not hold on this node"),
                None => tracing::info!(table = self.table, "network policies hold on this node again"),
            }
        }
        *before = now;
        changed
    }

    async fn place(&self, state: &mut State, wanted: &Arc<Wanted>, look: bool) -> Result<(), String> {
        // Kept where a look ends early: what hung here once is found by nothing else.
        let known = state.plugs.clone();
        let bridge = &wanted.bridge;
        let mended = super::bridge::mend(wanted, state.card, &known).await?;
        if !mended.is_empty() {
            tracing::warn!("somebody changed the containers' bridge: {}", mended.join("; "));
        }
        // Without a bridge there are neither ports nor an address; /sys may show another network than this process's.
        let listed = tool("ip", &["-o", "link", "show", "dev", bridge], "").await;
        let missing = listed.as_ref().err().filter(|why| why.ends_with("is missing")).cloned();
        let own = listed.as_deref().map(interfaces).unwrap_or_default();
        let there = !own.is_empty();
        let ports = if there {
            let listed = tool("ip", &["-o", "link", "show", "master", bridge], "").await?;
            interfaces(&listed)
        } else {
            Vec::new()
        };
        let card = own.into_iter().next().map(|one| one.mac);
        state.card = card.or(state.card);
        let of = Arc::clone(wanted);
        let pids = std::mem::take(&mut state.pids);
        let seen = tokio::task::spawn_blocking(move || seen(&of, ports, &known, pids)).await;
        let seen = seen.map_err(|error| format!("cannot look at the bridge: {error}"))?;
        let Seen {
            ports,
            plugs,
            plugged,
            hears6,
            pids,
        } = seen;
        state.pids = pids;
        let local: Vec<Local> = wanted
            .running
            .iter()
            .map(|one| Local {
                address: one.address,
                namespace: one.namespace.clone(),
                service: one.service.clone(),
                published: one.published.clone(),
                plug: plugged.get(&one.address).cloned(),
                hears6: hears6.get(&one.address).cloned().unwrap_or_default(),
            })
            .collect();
        state.plugs = plugs;
        let with = |leads: &[Lead]| {
            rules(&Input {
                network: &wanted.network,
                bridge: &wanted.bridge,
                links: &wanted.links,
                ports: &ports,
                mac: card,
                local: &local,
                endpoints: &wanted.endpoints,
                policies: &wanted.policies,
                leads,
            })
        };
        let mut now = with(if state.cannot_lead { &[] } else { &wanted.leads });
        // One after the other: `nft` 1.0 looks at one family only.
        let list = async || -> Result<String, String> {
            let inet = nft(&["-s", "list", "table", "inet", &self.table], "").await?;
            Ok(inet + &nft(&["-s", "list", "table", "bridge", &self.table], "").await?)
        };
        let drifted = match &state.raised {
            None => true,
            Some(_) if look => list().await.map_or(true, |found| found != state.listed),
            Some(_) => false,
        };
        if drifted && state.raised.is_some() {
            tracing::warn!(
                table = self.table,
                "somebody changed the network policies' tables; they are put back"
            );
        }
        let change = match &state.raised {
            Some(raised) if !drifted => now.since(raised, &self.table),
            Some(_) | None => Some(now.whole(&self.table)),
        };
        if let Some(text) = change {
            let mut done = nft(&["-f", "-"], &text).await;
            if done.is_err() && !drifted {
                // Elements that somebody took away cannot be taken away.
                done = nft(&["-f", "-"], &now.whole(&self.table)).await;
            }
            if let Err(why) = &done
                && !wanted.leads.is_empty()
                && !state.cannot_lead
            {
                // Who may talk to whom is not to fail with it.
                tracing::warn!(why, "ports everywhere are answered by the relay alone on this node");
                state.cannot_lead = true;
                now = with(&[]);
                done = nft(&["-f", "-"], &now.whole(&self.table)).await;
            }
            if let Err(why) = done {
                state.raised = None;
                return Err(why);
            }
            state.listed = list().await?;
            state.raised = Some(now);
        }
        forget(state, wanted, &local, there).await;
        match missing {
            Some(why) => Err(why),
            None if there => self.beside(wanted).await,
            None => Ok(()),
        }
    }

    /// What the host's own settings must be: containers of one bridge meet through the host, and Docker lets them.
    async fn beside(&self, wanted: &Wanted) -> Result<(), String> {
        let bridge = &wanted.bridge;
        let six = wanted.network.subnet6.as_ref();
        let four_settings = [
            ("ipv4/conf", "proxy_arp_pvlan", "1"),
            ("ipv4/neigh", "proxy_delay", "0"),
        ];
        let six_settings = [("ipv6/conf", "proxy_ndp", "1"), ("ipv6/neigh", "proxy_delay", "0")];
        let settings = four_settings
            .into_iter()
            .chain(six_settings.into_iter().filter(|_| six.is_some()));
        for (area, name, value) in settings {
            set(&format!("/proc/sys/net/{area}/{bridge}/{name}"), value)?;
        }
        if let Some(subnet6) = six {
            let own: BTreeSet<IpAddr> = wanted
                .running
                .iter()
                .filter(|one| wanted.network.subnet.contains(&one.address))
                .map(|one| IpAddr::V6(address6(one.address, &wanted.network.subnet, subnet6)))
                .collect();
            neighbours(bridge, &own).await?;
        }
        let leads = !wanted.leads.is_empty();
        let rules = accepts(&wanted.network, bridge, &self.table, leads);
        for six in [false, true] {
            let program = if six { "ip6tables" } else { "iptables" };
            let own: Vec<&Vec<String>> = rules
                .iter()
                .filter(|(of, _)| *of == six)
                .map(|(_, rule)| rule)
                .collect();
            if own.is_empty() {
                continue;
            }
            // An engine without that chain has no filter of its own, or one that was told to let us alone.
            let Ok(listed) = tool(program, &["-w", "5", "-S", "DOCKER-USER"], "").await else {
                continue;
            };
            let words = |act: &'static str, rule: &[&str]| -> Vec<String> {
                let head = ["-w", "5", act, "DOCKER-USER"];
                head.iter().chain(rule).map(|word| (*word).to_owned()).collect()
            };
            for rule in own {
                let line = format!("-A DOCKER-USER {}", rule.join(" "));
                let rule: Vec<&str> = rule.iter().map(String::as_str).collect();
                // Other versions may write it in other words.
                let is_there =
                    listed.lines().any(|found| found == line) || run(program, words("-C", &rule)).await.is_ok();
                if !is_there {
                    run(program, words("-I", &rule)).await?;
                }
            }
        }
        Ok(())
    }
}

async fn run(program: &'static str, words: Vec<String>) -> Result<String, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    tool(program, &words, "").await
}

/// Ends the UDP flows that lead to who is not here any more: what the kernel remembers of them would swallow what comes.
async fn forget(state: &mut State, wanted: &Arc<Wanted>, local: &[Local], there: bool) {
    let network = &wanted.network;
    let own = |address: &Ipv4Addr| {
        let sixth = network
            .subnet6
            .as_ref()
            .map(|six| address6(*address, &network.subnet, six));
        std::iter::once(IpAddr::V4(*address)).chain(sixth.map(IpAddr::V6))
    };
    let plugged = local.iter().filter(|one| one.plug.is_some());
    let here: BTreeSet<IpAddr> = plugged.flat_map(|one| own(&one.address)).collect();
    let udp = wanted.leads.iter().filter(|lead| lead.at.protocol == Protocol::Udp);
    let led = udp.flat_map(|lead| &lead.to).filter_map(|to| match to.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let led: BTreeSet<IpAddr> = led
        .flat_map(|address| own(&address))
        .filter(|address| here.contains(address))
        .collect();
    if let Some(before) = &mut state.led {
        before.extend(led.iter().copied());
    }
    let over = state.led.as_ref().map_or(there, |before| !before.is_subset(&here));
    if !over {
        return;
    }
    let of = Arc::clone(wanted);
    let end = move || network::flows::end(|flow| is_stale(flow, &of.network, &here));
    match tokio::task::spawn_blocking(end).await {
        Ok(Ok(ended)) => {
            if ended > 0 {
                tracing::info!(ended, "UDP flows that led to nobody were ended");
            }
            state.led = Some(led);
            state.unended = None;
        }
        Ok(Err(error)) => {
            let why = runtime::chain(&error);
            if state.unended.as_ref() != Some(&why) {
                tracing::warn!("{why}; it is tried again");
                state.unended = Some(why);
            }
        }
        Err(error) => tracing::warn!(%error, "UDP flows that lead to nobody are ended later"),
    }
}

/// What counters of a listing say, by chain; those of nothing are left out.
fn count(listed: &str, counts: &mut BTreeMap<String, u64>) {
    let mut chain = "";
    for line in listed.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if let Some((_, rest)) = line.split_once("counter packets ")
            && let Some(packets) = rest.split(' ').next().and_then(|word| word.parse::<u64>().ok())
            && packets > 0
        {
            *counts.entry(chain.to_owned()).or_default() += packets;
        }
    }
}

struct Seen {
    ports: BTreeSet<String>,
    plugs: Plugs,
    /// By address.
    plugged: BTreeMap<Ipv4Addr, Plug>,
    hears6: BTreeMap<Ipv4Addr, BTreeSet<(Protocol, u16)>>,
    pids: BTreeMap<Process, u32>,
}

/// The bridge's ports, and whose they are.
fn seen(wanted: &Wanted, ports: Vec<Interface>, known: &Plugs, pids: BTreeMap<Process, u32>) -> Seen {
    let by_index: BTreeMap<String, String> = ports.into_iter().map(|one| (one.index, one.name)).collect();
    let mut plugs = Plugs::new();
    let mut processes = None;
    for process in wanted.running.iter().filter_map(|one| one.process.as_ref()) {
        let known = known.get(process).filter(|(index, _)| by_index.contains_key(index));
        let found = known.cloned().or_else(|| match process {
            Process::Pid(pid) => plugged_in(*pid, &by_index),
            Process::Container(id) => {
                let all = processes.get_or_insert_with(contained);
                let own = all.iter().filter(|(_, groups)| groups.contains(id.as_str()));
                own.filter_map(|(pid, _)| plugged_in(*pid, &by_index)).next()
            }
        });
        plugs.extend(found.map(|found| (process.clone(), found)));
    }
    let mut plugged: BTreeMap<Ipv4Addr, Plug> = BTreeMap::new();
    for one in &wanted.running {
        let Some((index, mac)) = one.process.as_ref().and_then(|process| plugs.get(process)) else {
            continue;
        };
        if let Some(interface) = by_index.get(index) {
            let interface = interface.clone();
            plugged.entry(one.address).or_insert(Plug { interface, mac: *mac });
        }
    }
    let (hears6, pids) = super::hears::hears6(wanted, &pids);
    Seen {
        ports: by_index.into_values().collect(),
        plugs,
        plugged,
        hears6,
        pids,
    }
}

/// One line of `ip -o link`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub index: String,
    pub name: String,
    mac: [u8; 6],
}

pub(super) fn interfaces(listed: &str) -> Vec<Interface> {
    let one = |line: &str| {
        let (index, rest) = line.split_once(": ")?;
        let (name, rest) = rest.split_once(": ")?;
        let (_, rest) = rest.split_once("link/ether ")?;
        Some(Interface {
            index: index.to_owned(),
            name: name.split('@').next()?.to_owned(),
            mac: mac(rest.split_whitespace().next()?)?,
        })
    };
    listed.lines().filter_map(one).collect()
}

/// Processes that are in a control group of their own, with its name.
pub(super) fn contained() -> Vec<(u32, String)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        // An engine's ids are 64 digits.
        (groups.len() > 64).then_some((pid, groups))
    });
    found.collect()
}

/// The port of the bridge at whose other end a process is, and its card there.
fn plugged_in(pid: u32, by_index: &BTreeMap<String, String>) -> Option<(String, [u8; 6])> {
    let devices = std::fs::read_dir(format!("/proc/{pid}/root/sys/class/net")).ok()?;
    let mut found = devices.flatten().take(64).filter_map(|device| {
        let link = small(&device.path().join("iflink"))?;
        let card = mac(&small(&device.path().join("address"))?)?;
        by_index.contains_key(&link).then_some((link, card))
    });
    found.next()
}

/// A line of the kernel's own files; nothing else is opened.
fn small(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let is_file = std::fs::metadata(path).ok()?.is_file();
    let mut text = String::new();
    let file = is_file.then(|| std::fs::File::open(path).ok()).flatten()?;
    file.take(64).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .ok()?;
    bytes.try_into().ok()
}

/// Writes a setting of the kernel where it is another.
pub(super) fn set(path: &str, value: &str) -> Result<(), String> {
    match std::fs::read_to_string(path) {
        Ok(found) if found.trim() == value => Ok(()),
        Ok(_) => std::fs::write(path, value).map_err(|error| format!("cannot write {path}: {error}")),
        Err(error) => Err(format!("cannot read {path}: {error}")),
    }
}

/// For which IPv6 addresses the host answers on its bridge: those of its containers.
async fn neighbours(bridge: &str, wanted: &BTreeSet<IpAddr>) -> Result<(), String> {
    let listed = tool("ip", &["-6", "neigh", "show", "proxy", "dev", bridge], "").await?;
    let there: BTreeSet<IpAddr> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    let mut text = String::new();
    for gone in there.difference(wanted) {
        text.push_str(&format!("neigh del proxy {gone} dev {bridge}\n"));
    }
    for new in wanted.difference(&there) {
        text.push_str(&format!("neigh add proxy {new} dev {bridge}\n"));
    }
    if text.is_empty() {
        return Ok(());
    }
    tool("ip", &["-6", "-batch", "-"], &text).await.map(|_| ())
}

/// Takes the tables of an agent that is no more away, and what it told Docker's chain.
///
/// # Errors
/// Why they are still there.
pub async fn raze(cluster: &str, node: &NodeName) -> Result<(), String> {
    let table = filter_table(cluster, node.as_str());
    for program in ["iptables", "ip6tables"] {
        let Ok(listed) = tool(program, &["-w", "5", "-S", "DOCKER-USER"], "").await else {
            continue;
        };
        let comment = format!("--comment {table} ");
        for rule in listed.lines().filter(|line| line.contains(&comment)) {
            let words: Vec<&str> = rule.split_whitespace().skip(1).collect();
            let words: Vec<&str> = ["-w", "5", "-D"].into_iter().chain(words).collect();
            tool(program, &words, "").await?;
        }
    }
    let listed = nft(&["list", "tables"], "").await.unwrap_or_default();
    if listed.lines().any(|line| line.split(' ').next_back() == Some(&table)) {
        nft(&["-f", "-"], &Ruleset::gone(&table)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_by_chain() {
        let listed = "table inet t {\n\tchain in.shop.db {\n\t\tip saddr @a accept\n\t\tcounter packets 3 bytes 180 goto refuse\n\t}\n\tchain here {\n\t\tip saddr != @local4 counter packets 0 bytes 0 drop\n\t\tcounter packets 2 bytes 9 drop\n\t\tcounter packets 4 bytes 9 drop\n\t}\n}\n";
        let mut counts = BTreeMap::new();
        count(listed, &mut counts);
        assert_eq!(
            counts,
            BTreeMap::from([("in.shop.db".to_owned(), 3), ("here".to_owned(), 6)])
        );
    }

    #[test]
    fn a_line_of_an_interface_is_read() {
        let listed = "9: veth2@if2: <BROADCAST,UP> mtu 1500 qdisc noqueue master rv-t state UP mode DEFAULT group default qlen 1000\\    link/ether 4e:52:2d:14:65:a6 brd ff:ff:ff:ff:ff:ff link-netnsid 1\n";
        let found = Interface {
            index: "9".to_owned(),
            name: "veth2".to_owned(),
            mac: [0x4e, 0x52, 0x2d, 0x14, 0x65, 0xa6],
        };
        assert_eq!(interfaces(listed), [found]);
    }

    #[test]
    fn an_address_of_a_machine_has_six_bytes() {
        assert_eq!(mac("02:42:0a:d2:01:02"), Some([2, 0x42, 10, 0xd2, 1, 2]));
        for none in ["", "02:42", "02:42:0a:d2:01:02:03", "zz:42:0a:d2:01:02"] {
            assert_eq!(mac(none), None, "{none}");
        }
    }
}
