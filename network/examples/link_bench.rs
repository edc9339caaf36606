//! Prints what links carry between two network namespaces: a VXLAN of ours beside the same set up by hand, and WireGuard in a
//! process of ours beside gotatun's own program (`GOTATUN`, its path; without it that part is left out). One stream of TCP, in
//! interleaved rounds (`ROUNDS`, 5) of `SECONDS` (2) each; medians and ratios. As root. For people: nothing passes or fails.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use network::detached::{self, Program};
use network::links::{Setup, Wires, host, raze};
use network::wireguard::{self, Keys};
use planner::network::links::{Carrier, Input, Key, Links, Mac, Route, VxlanPeer, Way, WireguardPeer, links, own};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use schemas::names::NodeName;
use schemas::records::{AssignedNetwork, Backend, ClusterId, LinkKind, NetworkSettings, Peer, SchemaVersion};

fn ip(args: &str) {
    let done = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("ip runs");
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn within<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let entered = || {
        let netns = File::open(format!("/run/netns/{netns}")).expect("the namespace is there");
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("as root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(entered).join().expect("it does not panic"))
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Two hosts on a bridge. What is made goes with it.
struct Lab {
    prefix: String,
    dir: tempfile::TempDir,
    keys: Vec<Keys>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [self.host(1), self.host(2), format!("{}w", self.prefix)] {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

impl Lab {
    fn new() -> Self {
        let prefix = format!("rvb{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let keys = (1..=2).map(|number| Keys::open(&dir.path().join(format!("n{number}"))).unwrap());
        let lab = Self {
            prefix,
            keys: keys.collect(),
            dir,
        };
        let wire = format!("{}w", lab.prefix);
        ip(&format!("netns add {wire}"));
        ip(&format!("-n {wire} link add br0 type bridge"));
        ip(&format!("-n {wire} link set br0 up"));
        for number in 1..=2 {
            let host = lab.host(number);
            ip(&format!("netns add {host}"));
            ip(&format!(
                "link add p{number} netns {wire} type veth peer name eth0 netns {host}"
            ));
            ip(&format!("-n {wire} link set p{number} master br0 up"));
            for args in [
                "link set lo up".to_owned(),
                format!("addr add 10.99.0.{number}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                "link add rv-held type bridge".to_owned(),
                format!("addr add 10.210.{number}.1/24 dev rv-held"),
                "link set rv-held up".to_owned(),
            ] {
                ip(&format!("-n {host} {args}"));
            }
        }
        lab
    }

    fn host(&self, number: u32) -> String {
        format!("{}h{number}", self.prefix)
    }

    fn files(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("n{number}"))
    }

    /// Bits a second that one stream carries from 1 to 2.
    fn throughput(&self, seconds: u64) -> f64 {
        let (address, from) = ("10.210.2.1", "10.210.1.1");
        let listener = within(&self.host(2), || TcpListener::bind((address, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let begun = Instant::now();
        while !Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.host(1),
                "ping",
                "-q",
                "-c",
                "1",
                "-W",
                "1",
                "-I",
                from,
                address,
            ])
            .output()
            .is_ok_and(|done| done.status.success())
        {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the other host is not reached"
            );
        }
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 17];
            let (mut bytes, begun) = (0_u64, Instant::now());
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return (bytes, begun.elapsed()),
                    Ok(read) => bytes += read as u64,
                }
            }
        });
        let mut stream = within(&self.host(1), || TcpStream::connect((address, port))).unwrap();
        let (block, begun) = (vec![7; 1 << 17], Instant::now());
        while begun.elapsed() < Duration::from_secs(seconds) {
            stream.write_all(&block).unwrap();
        }
        drop(stream);
        let (bytes, took) = receiver.join().unwrap();
        bytes as f64 * 8.0 / took.as_secs_f64()
    }

    fn desired(&self, number: u32, kind: LinkKind) -> Links {
        let cluster: ClusterId = "b".repeat(32).parse().unwrap();
        let node = |number| -> NodeName { format!("n{number}").parse().unwrap() };
        let vxlan = kind == LinkKind::Vxlan;
        let settings = NetworkSettings {
            cidr: "10.210.0.0/16".parse().unwrap(),
            cidr6: None,
            node_prefix: 24,
            backend: if vxlan { Backend::Vxlan } else { Backend::WireguardUser },
            domain: "reeve.internal".to_owned(),
            port: if vxlan { 4_789 } else { 51_820 },
            mtu: None,
            key_days: None,
        };
        let seen = |number| within(&self.host(number), || run(host())).unwrap();
        let said = |number: u32| {
            let key = self.keys[number as usize - 1].public();
            own(Ok(kind), Some(&key), &settings, &seen(number), None)
        };
        let peer = |number: u32| Peer {
            schema_version: SchemaVersion::default(),
            cluster: cluster.clone(),
            node: node(number),
            subnet: settings.subnet(number).unwrap(),
            subnet6: None,
            link: said(number),
        };
        let peers: BTreeMap<NodeName, Peer> = (1..=2).map(|number| (node(number), peer(number))).collect();
        links(&Input {
            cluster: &cluster,
            node: &node(number),
            network: &AssignedNetwork {
                subnet: settings.subnet(number).unwrap(),
                subnet6: None,
                settings: settings.clone(),
                exposed: false,
            },
            own: &said(number),
            peers: &peers,
            host: &seen(number),
        })
    }

    /// How long a node of 256 takes to make its links, and to see that nothing is to be done: in milliseconds.
    fn many(&self, kind: LinkKind) -> (f64, f64) {
        let mut desired = self.desired(1, kind);
        if let Some(Carrier::Wireguard { peers, .. }) = desired.device.as_mut().map(|device| &mut device.carrier) {
            let like = peers[0].clone();
            peers.extend((3..=255).map(|number: u8| WireguardPeer {
                key: Key([number; 32]),
                endpoint: Some(SocketAddr::from(([10, 99, 0, number], 51_820))),
                allowed: vec![format!("10.210.{number}.0/24").parse().unwrap()],
                ..like.clone()
            }));
        } else if let Some(Carrier::Vxlan { peers, .. }) = desired.device.as_mut().map(|device| &mut device.carrier) {
            let like = peers[0].clone();
            peers.extend((3..=255).map(|number: u8| VxlanPeer {
                mac: Mac([0x0a, 0x52, 10, 210, number, 0]),
                remote: format!("10.99.0.{number}").parse().unwrap(),
                inside: vec![format!("10.210.{number}.0").parse().unwrap()],
                ..like.clone()
            }));
        }
        desired.routes.extend((3..=255).map(|number: u8| Route {
            to: format!("10.210.{number}.0/24").parse().unwrap(),
            way: match kind {
                LinkKind::Vxlan => Way::Over(format!("10.210.{number}.0").parse().unwrap()),
                LinkKind::Wireguard | LinkKind::WireguardUser | LinkKind::HostGw | LinkKind::None => Way::Device,
            },
        }));
        let setup = Setup {
            dir: self.files(1),
            starter: Box::new(starter),
        };
        let took = within(&self.host(1), || {
            run(async {
                let mut wires = Wires::new(setup).unwrap();
                let mut took = Vec::new();
                for _ in 0..12 {
                    let begun = Instant::now();
                    let done = wires.converge(&desired, &self.keys[0]).await;
                    took.push(begun.elapsed().as_secs_f64() * 1_000.0);
                    assert!(done.trouble.is_empty(), "{:?}", done.trouble);
                }
                took
            })
        });
        let razed = raze(&desired.names, &desired.ranges, self.files(1));
        within(&self.host(1), || run(razed)).unwrap();
        let mut quiet = took[1..].to_vec();
        quiet.sort_by(f64::total_cmp);
        (took[0], quiet[quiet.len() / 2])
    }

    /// By Reeve.
    fn ours(&self, kind: LinkKind, seconds: u64) -> f64 {
        for number in 1..=2 {
            let desired = self.desired(number, kind);
            let setup = Setup {
                dir: self.files(number),
                starter: Box::new(starter),
            };
            let keys = &self.keys[number as usize - 1];
            let done = within(&self.host(number), || {
                run(async { Wires::new(setup).unwrap().converge(&desired, keys).await })
            });
            assert!(done.trouble.is_empty(), "{:?}", done.trouble);
        }
        let reached = self.throughput(seconds);
        for number in 1..=2 {
            let desired = self.desired(number, kind);
            let razed = raze(&desired.names, &desired.ranges, self.files(number));
            within(&self.host(number), || run(razed)).unwrap();
        }
        reached
    }

    fn vxlan_by_hand(&self, seconds: u64) -> f64 {
        for (number, other) in [(1, 2), (2, 1)] {
            let host = self.host(number);
            let mac = |number| format!("02:00:00:00:00:0{number}");
            ip(&format!(
                "-n {host} link add hand0 address {} mtu 1450 type vxlan id 77 dstport 4789 nolearning",
                mac(number)
            ));
            ip(&format!("-n {host} addr add 10.210.{number}.0/32 dev hand0"));
            ip(&format!("-n {host} link set hand0 up"));
            ip(&format!(
                "netns exec {host} bridge fdb add {} dev hand0 dst 10.99.0.{other}",
                mac(other)
            ));
            ip(&format!(
                "-n {host} neigh add 10.210.{other}.0 lladdr {} dev hand0 nud permanent",
                mac(other)
            ));
            ip(&format!(
                "-n {host} route add 10.210.{other}.0/24 via 10.210.{other}.0 dev hand0 onlink"
            ));
        }
        let reached = self.throughput(seconds);
        for number in 1..=2 {
            ip(&format!("-n {} link del hand0", self.host(number)));
        }
        reached
    }

    fn gotatun(&self, program: &Path, seconds: u64) -> f64 {
        let mut running: Vec<Ends> = Vec::new();
        let names = [1, 2].map(|number| format!("rvg{:x}n{number}", std::process::id()));
        for (number, other) in [(1_u32, 2_u32), (2, 1)] {
            let (host, name) = (self.host(number), &names[number as usize - 1]);
            // A session of its own, as ours has and as it makes one itself where nobody watches it: the kernel shares time out by sessions.
            let mut command = Command::new("setsid");
            command.args(["ip", "netns", "exec", &host]).arg(program).args([
                "--foreground",
                "--disable-drop-privileges",
                "--verbosity",
                "error",
                name,
            ]);
            running.push(Ends(command.spawn().expect("gotatun's program starts")));
            let socket = format!("/var/run/wireguard/{name}.sock");
            let begun = Instant::now();
            let mut stream = loop {
                match UnixStream::connect(&socket) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{socket}: {error}"),
                }
            };
            let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let private = std::fs::read_to_string(self.files(number).join("wireguard.key")).unwrap();
            let private: Key = private.trim().parse().unwrap();
            let words = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint=10.99.0.{other}:51820\nallowed_ip=10.210.{other}.0/24\n\n",
                hex(private.0),
                hex(self.keys[other as usize - 1].public().0)
            );
            stream.write_all(words.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("errno=0"), "{answer}");
            ip(&format!("-n {host} addr add 10.210.{number}.0/32 dev {name}"));
            ip(&format!("-n {host} link set {name} mtu 1440 up"));
            ip(&format!("-n {host} route add 10.210.{other}.0/24 dev {name}"));
        }
        let reached = self.throughput(seconds);
        drop(running);
        for name in &names {
            let _ = std::fs::remove_file(format!("/var/run/wireguard/{name}.sock"));
        }
        reached
    }
}

/// A program that ends with the run.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn starter(device: &str, mtu: u16, dir: PathBuf) -> Program {
    Program {
        args: vec![
            "carry".into(),
            device.into(),
            mtu.to_string().into(),
            dir.clone().into(),
        ],
        place: wireguard::place(dir, device),
        path: detached::own_program(),
        env: Vec::new(),
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn say(what: &str, theirs: &str, goal: u32, pairs: &[(f64, f64)]) {
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (ours, other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let ratio = median(pairs.iter().map(|(ours, other)| ours / other).collect());
    println!(
        "{what}: ours {:.2} Gbit/s, {theirs} {:.2}; ratio {:.0} % (goal {goal} %)",
        median(ours) / 1e9,
        median(other) / 1e9,
        100.0 * ratio
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|word| word == "carry") {
        wireguard::run(&args[2], args[3].parse().unwrap(), PathBuf::from(&args[4])).unwrap();
        return;
    }
    let (rounds, seconds) = (number("ROUNDS", 5), number("SECONDS", 2));
    let lab = Lab::new();
    for (what, kind) in [
        ("VXLAN", LinkKind::Vxlan),
        ("WireGuard in a process", LinkKind::WireguardUser),
    ] {
        let (first, quiet) = lab.many(kind);
        println!("{what}, a node of 256: links made in {first:.0} ms; a look that finds nothing to do {quiet:.1} ms");
    }
    let pairs: Vec<(f64, f64)> = (0..rounds)
        .map(|_| (lab.ours(LinkKind::Vxlan, seconds), lab.vxlan_by_hand(seconds)))
        .collect();
    say("VXLAN", "by hand", 80, &pairs);
    let Some(program) = std::env::var_os("GOTATUN").map(PathBuf::from) else {
        println!("WireGuard in a process: left out, for want of gotatun's own program (GOTATUN)");
        return;
    };
    let pairs: Vec<(f64, f64)> = (0..rounds)
        .map(|_| {
            let ours = lab.ours(LinkKind::WireguardUser, seconds);
            (ours, lab.gotatun(&program, seconds))
        })
        .collect();
    say("WireGuard in a process", "gotatun's own program", 90, &pairs);
}
