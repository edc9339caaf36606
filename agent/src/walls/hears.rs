//! At which ports the instances of this node listen by IPv6: the filter (`filter.rs`) asks for those that are open on every node.
//! A health check asks by IPv4; who comes by IPv6 is led only where somebody hears him, and the relay answers him elsewhere.
//! The kernel says it, in a process's own files; nothing is sent to anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};

use schemas::container::Protocol;

use super::filter::{Process, Wanted, contained};

/// What is read of a list, in bytes: of TCP those who listen come first.
const LIST_LIMIT: u64 = 256 << 10;
/// The kernel's words for a port that is listened at.
const LISTENS: &str = "0A";
const RECEIVES: &str = "07";

type Heard = BTreeMap<Ipv4Addr, BTreeSet<(Protocol, u16)>>;

/// Of each instance that is led to, at which of the ports in question it listens; and by which process that was found.
pub(super) fn hears6(wanted: &Wanted, pids: &BTreeMap<Process, u32>) -> (Heard, BTreeMap<Process, u32>) {
    let (mut heard, mut found) = (Heard::new(), BTreeMap::new());
    if wanted.network.subnet6.is_none() {
        return (heard, found);
    }
    let mut asked: Heard = BTreeMap::new();
    for lead in &wanted.leads {
        for to in &lead.to {
            if let IpAddr::V4(address) = to.ip() {
                asked.entry(address).or_default().insert((lead.at.protocol, to.port()));
            }
        }
    }
    let mut all = None;
    for one in &wanted.running {
        let (Some(ports), Some(process)) = (asked.get(&one.address), &one.process) else {
            continue;
        };
        let pid = match process {
            Process::Pid(pid) => Some(*pid),
            Process::Container(id) => pids.get(process).copied().filter(|pid| is_in(*pid, id)).or_else(|| {
                let all = all.get_or_insert_with(contained);
                all.iter()
                    .find(|(_, groups)| groups.contains(id.as_str()))
                    .map(|(pid, _)| *pid)
            }),
        };
        let Some(pid) = pid else { continue };
        found.insert(process.clone(), pid);
        let mut own = BTreeSet::new();
        for (protocol, list, state) in [(Protocol::Tcp, "tcp6", LISTENS), (Protocol::Udp, "udp6", RECEIVES)] {
            if ports.iter().any(|(of, _)| *of == protocol) {
                let listed = read(&format!("/proc/{pid}/net/{list}")).unwrap_or_default();
                own.extend(listening(&listed, state).map(|port| (protocol, port)));
            }
        }
        heard.insert(one.address, own.intersection(ports).copied().collect());
    }
    (heard, found)
}

fn is_in(pid: u32, id: &str) -> bool {
    read(&format!("/proc/{pid}/cgroup")).is_some_and(|groups| groups.contains(id))
}

fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LIST_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The ports of sockets in this state, but for those that only the container itself reaches.
fn listening<'a>(listed: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    let own = |ip: &str| ip == "00000000000000000000000001000000";
    listed.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (ip, port) = words.next()?.split_once(':')?;
        let found = words.nth(1)?;
        (found == state && !own(ip))
            .then(|| u16::from_str_radix(port, 16).ok())
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_read_of_the_kernels_list() {
        let listed = "  sl  local_address                         remote_address                        st tx_queue rx_queue\n   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00\n   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00\n   2: 10D2000A000000000000000002000100:01BB 10D2000A000000000000000003000100:C350 01 00000000:00000000 00\n   3: broken\n";
        assert_eq!(listening(listed, LISTENS).collect::<Vec<u16>>(), [80]);
        assert_eq!(listening("", LISTENS).count(), 0);
    }
}
