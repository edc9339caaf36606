//! A virtual address over three hosts on one bridge: asked for all the time, by ARP, while its holders are killed, stopped, cut off
//! and told to let go. Never do two answer one question. `REEVE_ROUNDS` says how many times; 3 unless said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Etcd, Lab, eventually};

/// Asks who has the address, as somebody who has none yet, twenty times a second; each answer is a line: the question's number
/// and who answered.
const ASKER: &str = "
import select, socket, struct, sys, time
device, address = sys.argv[1], socket.inet_aton(sys.argv[2])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
wire.bind((device, 0))
own = open('/sys/class/net/%s/address' % device).read().strip()
mac = bytes(int(part, 16) for part in own.split(':'))
ask = b'\\xff' * 6 + mac + struct.pack('!HHHBBH', 0x0806, 1, 0x0800, 6, 4, 1) + mac + b'\\0' * 4 + b'\\0' * 6 + address
number = 0
while True:
    number += 1
    wire.send(ask)
    end = time.monotonic() + 0.05
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([wire], [], [], left)[0]:
            break
        frame = wire.recv(1500)
        if frame[20:22] == b'\\x00\\x02' and frame[28:32] == address and frame[0:6] == mac:
            print(number, ':'.join('%02x' % byte for byte in frame[22:28]), flush=True)
    if time.monotonic() < end:
        time.sleep(max(0, end - time.monotonic()))
";

struct Cluster {
    lab: Lab,
    etcd: Etcd,
    address: String,
    manifest: String,
    asker: e2e::Process,
    macs: BTreeMap<String, usize>,
}

impl Cluster {
    fn new() -> Self {
        let mut lab = Lab::new(3);
        let etcd = lab.etcd(1);
        let endpoints = etcd.endpoints.clone();
        lab.control(&etcd);
        for host in &mut lab.hosts {
            host.start_agent(&endpoints, &[]);
        }
        let address = lab.address(200);
        let manifest = format!(
            "apiVersion: reeve/v1\nkind: VirtualIP\nmetadata: {{name: front}}\nspec: {{address: {address}/24}}\n"
        );
        let manifest = lab.file("front.yaml", &manifest);
        eventually("all nodes are there, and a plan says who is to hold it", 30, || {
            let nodes = lab.reeve_exits(&endpoints, 0, &["get", "nodes"]);
            let said = lab.reeve_exits(&endpoints, 0, &["plan", "-f", &manifest]);
            let there = nodes
                .lines()
                .filter(|line| line.starts_with('n') && line.contains("Ready"))
                .count()
                == 3;
            if there && said.contains("held by nobody -> n") {
                Ok(())
            } else {
                Err(nodes + &said)
            }
        });
        lab.reeve_exits(&endpoints, 0, &["apply", "-f", &manifest]);
        let mut macs = BTreeMap::new();
        for (at, host) in lab.hosts.iter().enumerate() {
            let said = host
                .within("ip", &["-brief", "link", "show", "dev", "eth0"])
                .expect("a device");
            let mac = said.split_whitespace().nth(2).expect("its hardware address");
            macs.insert(mac.to_owned(), at);
        }
        let bridge = lab.bridge();
        let log = lab.dir().join("asker.log");
        let python = Path::new("/usr/bin/env");
        let asker = e2e::Process::start(
            "asker",
            None,
            python,
            &["python3", "-c", ASKER, &bridge, &address],
            &[],
            log,
        );
        Self {
            lab,
            etcd,
            address,
            manifest,
            asker,
            macs,
        }
    }

    /// Who answered which question; a line that is not whole yet is left out.
    fn answers(&self) -> Vec<(u64, usize)> {
        let output = self.asker.output();
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = |line: &str| {
            let (number, mac) = line.split_once(' ')?;
            Some((number.parse().ok()?, *self.macs.get(mac)?))
        };
        whole.lines().filter_map(line).collect()
    }

    /// Waits until one that is not `before` answers: who, and after how long.
    fn answered_by_another(&self, what: &str, before: usize, since: Instant) -> (usize, Duration) {
        let seen = self.answers().len();
        let now = eventually(&format!("{what}: another answers"), 60, || {
            let new = self.answers();
            let other = new.iter().skip(seen.saturating_sub(1)).find(|(_, who)| *who != before);
            other.map(|(_, who)| *who).ok_or_else(|| format!("{:?}", new.last()))
        });
        (now, since.elapsed())
    }

    /// The most that answered one question.
    fn most_at_once(&self) -> usize {
        let mut by_question: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        for (number, who) in self.answers() {
            by_question.entry(number).or_default().insert(who);
        }
        by_question.values().map(BTreeSet::len).max().unwrap_or(0)
    }

    fn holder(&self) -> usize {
        eventually("somebody answers", 60, || {
            let seen = self.answers();
            seen.last().map(|(_, who)| *who).ok_or_else(|| self.asker.output())
        })
    }
}

#[test]
fn never_do_two_hosts_answer_for_a_virtual_address_whatever_happens_to_its_holder() {
    let rounds = std::env::var("REEVE_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(3);
    let mut cluster = Cluster::new();
    let endpoints = cluster.etcd.endpoints.clone();
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 0..rounds {
        let before = cluster.holder();
        let link = cluster.lab.link(before);
        let since = Instant::now();
        let what = [
            "moved by hand",
            "agent killed",
            "cut off from the store",
            "agent stopped",
            "link down",
        ][round % 5];
        let store = cluster.lab.address(254);
        let wall = |act: &str| {
            let rule = [act, "OUTPUT", "-d", &store, "-p", "tcp", "-j", "DROP"];
            cluster.lab.hosts[before]
                .within("iptables", &rule)
                .expect("the rule is taken");
        };
        match what {
            "moved by hand" => {
                let to = format!("n{}", (before + 1) % 3 + 1);
                cluster
                    .lab
                    .reeve_exits(&endpoints, 0, &["virtualip", "move", "front", "--to", &to]);
                // The next ones are to find a holder by themselves.
                let said = cluster
                    .lab
                    .reeve_exits(&endpoints, 0, &["describe", "virtualip", "front"]);
                assert!(said.contains(&to), "{said}");
                cluster
                    .lab
                    .reeve_exits(&endpoints, 0, &["apply", "-f", &cluster.manifest]);
            }
            "agent killed" => cluster.lab.hosts[before].agent().kill(),
            "cut off from the store" => wall("-I"),
            "agent stopped" => cluster.lab.hosts[before].agent().signal("STOP"),
            _ => drop(e2e::succeed(Command::new("ip").args(["link", "set", &link, "down"]))),
        }
        let (now, took) = cluster.answered_by_another(what, before, since);
        assert_ne!(now, before);
        times.entry(what).or_default().push(took);
        println!("round {round}: {what}: n{} -> n{} after {took:?}", before + 1, now + 1);
        match what {
            "moved by hand" => {}
            "agent killed" => cluster.lab.hosts[before].start_agent(&endpoints, &[]),
            "cut off from the store" => {
                let rule = ["-D", "OUTPUT", "-d", &store, "-p", "tcp", "-j", "DROP"];
                cluster.lab.hosts[before]
                    .within("iptables", &rule)
                    .expect("the rule goes");
            }
            "agent stopped" => cluster.lab.hosts[before].agent().signal("CONT"),
            _ => drop(e2e::succeed(Command::new("ip").args(["link", "set", &link, "up"]))),
        }
        let node = format!("n{}", before + 1);
        eventually(&format!("{node} is back"), 60, || {
            let said = cluster.lab.reeve_exits(&endpoints, 0, &["get", "nodes"]);
            let line = said
                .lines()
                .find(|line| line.starts_with(&node))
                .unwrap_or_default()
                .to_owned();
            if line.contains("Ready") { Ok(()) } else { Err(line) }
        });
        assert!(
            cluster.most_at_once() <= 1,
            "round {round}, {what}: {} answered at once",
            cluster.most_at_once()
        );
    }
    // Taken away by hand, it is put back.
    let holder = cluster.holder();
    let with = format!("{}/24", cluster.address);
    let host = &cluster.lab.hosts[holder];
    host.within("ip", &["addr", "del", &with, "dev", "eth0"])
        .expect("it is there");
    eventually("it is back", 10, || {
        let said = host.within("ip", &["addr", "show", "dev", "eth0"])?;
        if said.contains(&with) { Ok(()) } else { Err(said) }
    });
    cluster
        .lab
        .reeve_exits(&endpoints, 0, &["delete", "virtualip", "front", "--yes"]);
    eventually("nobody has it", 20, || {
        let said: Result<Vec<String>, String> = cluster
            .lab
            .hosts
            .iter()
            .map(|host| host.within("ip", &["addr", "show", "dev", "eth0"]))
            .collect();
        let said = said?.concat();
        if said.contains(&with) { Err(said) } else { Ok(()) }
    });
    for (what, times) in &mut times {
        times.sort();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{what}: {} times, median {median:?}, most {most:?}", times.len());
    }
    println!(
        "{rounds} rounds, {} answers, at most {} at once",
        cluster.answers().len(),
        cluster.most_at_once()
    );
    assert!(cluster.most_at_once() <= 1);
}
