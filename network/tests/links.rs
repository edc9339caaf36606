//! Links between three hosts, each a network namespace of its own on one bridge, which is in a fourth: real devices, real
//! packets. As root. Nothing of it is in the namespace of who runs the tests, and nothing stays behind.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use network::detached::{self, Program};
use network::links::{Changes, Converged, PeerState, Setup, Wires, host, probe, raze};
use network::wireguard::{self, Keys};
use planner::network::links::{Carrier, Input, Links, kind, links, names, own};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use schemas::names::NodeName;
use schemas::records::{AssignedNetwork, Backend, ClusterId, LinkKind, NetworkSettings, NodeLink, Peer, SchemaVersion};

/// Tells the process below which device, how large its packets, and where its files are.
const CHILD: &str = "REEVE_TEST_WIREGUARD";
/// What pings carry, as `ping -p` takes it, and as it is on the wire.
const PATTERN: &str = "5245455645494e434c454152";
const PLAIN: &[u8] = b"REEVEINCLEARREEVEINCLEAR";

/// Not a test of its own: the process that carries packets, as the tests below start it. Without being asked it does nothing.
#[test]
fn the_process_that_others_start() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = told.split(' ').collect();
    if let Err(error) = wireguard::run(words[0], words[1].parse().unwrap(), PathBuf::from(words[2])) {
        eprintln!("{error}");
        std::process::exit(3);
    }
    std::process::exit(0);
}

fn starter(device: &str, mtu: u16, dir: PathBuf) -> Program {
    let words = ["--exact", "the_process_that_others_start", "--nocapture"];
    Program {
        env: vec![(CHILD.into(), format!("{device} {mtu} {}", dir.display()).into())],
        place: wireguard::place(dir, device),
        path: detached::own_program(),
        args: words.iter().map(Into::into).collect(),
    }
}

fn ip(args: &str) -> Output {
    Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("ip runs")
}

#[track_caller]
fn must(args: &str) {
    let done = ip(args);
    assert!(
        done.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[track_caller]
fn until(what: &str, met: impl Fn() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does something in another network namespace, on a thread of its own.
fn within<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let entered = || {
        let netns = File::open(format!("/run/netns/{netns}")).expect("the namespace is there");
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("as root");
        work()
    };
    std::thread::scope(|scope| match scope.spawn(entered).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Three hosts, 1 to 3: host n is 10.99.0.n, its subnet 10.210.n.0/24, and something holds the subnet's first address.
struct Lab {
    prefix: String,
    dir: tempfile::TempDir,
    settings: NetworkSettings,
    links: Vec<NodeLink>,
    keys: Vec<Keys>,
}

static LABS: AtomicU32 = AtomicU32::new(0);

fn cluster() -> ClusterId {
    format!("{:032x}", std::process::id()).parse().unwrap()
}

fn node(number: usize) -> NodeName {
    format!("n{number}").parse().unwrap()
}

impl Lab {
    fn new(backend: Backend, kinds: [LinkKind; 3]) -> Self {
        let prefix = format!("rvt{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let settings = NetworkSettings {
            cidr: "10.210.0.0/16".parse().unwrap(),
            cidr6: Some("fd00:210::/96".parse().unwrap()),
            node_prefix: 24,
            backend,
            domain: "reeve.internal".to_owned(),
            port: if backend == Backend::Vxlan { 4_789 } else { 51_820 },
            mtu: None,
            key_days: None,
        };
        let mut lab = Self {
            prefix,
            dir: tempfile::tempdir().unwrap(),
            settings,
            links: Vec::new(),
            keys: Vec::new(),
        };
        let wire = lab.wire();
        must(&format!("netns add {wire}"));
        must(&format!("-n {wire} link add br0 type bridge mcast_snooping 0"));
        // Where the hosts' default routes lead: what has no way of ours would leave to there, in clear.
        must(&format!("-n {wire} addr add 10.99.0.254/24 dev br0"));
        must(&format!("-n {wire} link set br0 up"));
        for number in 1..=3 {
            let host = lab.host(number);
            must(&format!("netns add {host}"));
            must(&format!(
                "link add p{number} netns {wire} type veth peer name eth0 netns {host}"
            ));
            must(&format!("-n {wire} link set p{number} master br0 up"));
            for args in [
                "link set lo up".to_owned(),
                format!("addr add 10.99.0.{number}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                "route add default via 10.99.0.254".to_owned(),
                "link add rv-held type bridge".to_owned(),
                format!("addr add 10.210.{number}.1/24 dev rv-held"),
                format!("addr add fd00:210::{number}:1/112 dev rv-held nodad"),
                "link set rv-held up".to_owned(),
            ] {
                must(&format!("-n {host} {args}"));
            }
        }
        for number in 1..=3 {
            let keys = Keys::open(&lab.files(number)).unwrap();
            let seen = within(&lab.host(number), || run(host())).unwrap();
            let link = own(Ok(kinds[number - 1]), Some(&keys.public()), &lab.settings, &seen, None);
            lab.links.push(link);
            lab.keys.push(keys);
        }
        lab
    }

    fn wire(&self) -> String {
        format!("{}w", self.prefix)
    }

    fn host(&self, number: usize) -> String {
        format!("{}h{number}", self.prefix)
    }

    fn files(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("n{number}"))
    }

    fn peers(&self) -> BTreeMap<NodeName, Peer> {
        let peer = |number: usize| Peer {
            schema_version: SchemaVersion::default(),
            cluster: cluster(),
            node: node(number),
            subnet: self.settings.subnet(number as u32).unwrap(),
            subnet6: self.settings.subnet6(number as u32),
            link: self.links[number - 1].clone(),
        };
        (1..=3).map(|number| (node(number), peer(number))).collect()
    }

    fn desired(&self, number: usize) -> Links {
        let host = within(&self.host(number), || run(host())).unwrap();
        links(&Input {
            cluster: &cluster(),
            node: &node(number),
            network: &AssignedNetwork {
                settings: self.settings.clone(),
                subnet: self.settings.subnet(number as u32).unwrap(),
                subnet6: self.settings.subnet6(number as u32),
                exposed: false,
            },
            own: &self.links[number - 1],
            peers: &self.peers(),
            host: &host,
        })
    }

    fn wires(&self, number: usize) -> Wires {
        let setup = Setup {
            dir: self.files(number),
            starter: Box::new(starter),
        };
        Wires::new(setup).unwrap()
    }

    /// As an agent does that has just started.
    fn converge(&self, number: usize) -> Converged {
        let desired = self.desired(number);
        let keys = &self.keys[number - 1];
        within(&self.host(number), || {
            run(async { self.wires(number).converge(&desired, keys).await })
        })
    }

    fn state(&self, number: usize) -> Vec<PeerState> {
        let desired = self.desired(number);
        within(&self.host(number), || {
            run(async { self.wires(number).state(&desired).await })
        })
        .unwrap()
    }

    /// All three, until nothing is to be done.
    #[track_caller]
    fn settle(&self) {
        for number in 1..=3 {
            let first = self.converge(number);
            assert_eq!(first.trouble, Vec::<String>::new());
            assert_eq!(
                self.converge(number),
                Converged::default(),
                "after {:?}",
                first.repaired
            );
        }
    }

    /// The hosts that wait for another's new key to answer.
    fn waits(&self) -> Vec<usize> {
        let waits = |number: &usize| {
            let desired = self.desired(*number);
            within(&self.host(*number), || {
                run(async {
                    let mut wires = self.wires(*number);
                    wires.converge(&desired, &self.keys[*number - 1]).await;
                    wires.waits().is_some()
                })
            })
        };
        (1..=3).filter(waits).collect()
    }

    /// As agents do: until no new key is waited for.
    #[track_caller]
    fn follow(&self) {
        until("new keys answer", || self.waits().is_empty());
    }

    fn ping(&self, from: usize, to: usize) -> bool {
        self.ping_at(from, &format!("10.210.{from}.1"), &format!("10.210.{to}.1"))
    }

    fn ping6(&self, from: usize, to: usize) -> bool {
        self.ping_at(from, &format!("fd00:210::{from}:1"), &format!("fd00:210::{to}:1"))
    }

    fn ping_at(&self, number: usize, from: &str, to: &str) -> bool {
        let host = self.host(number);
        let args = format!("netns exec {host} ping -q -c 1 -W 2 -s 200 -p {PATTERN} -I {from} {to}");
        ip(&args).status.success()
    }

    fn device(&self, number: usize) -> String {
        self.desired(number).device.unwrap().name
    }

    /// Pings one pair, one after the other, while something else is done; tells how many there were and how many were lost.
    fn meanwhile<T>(&self, from: usize, to: usize, work: impl FnOnce() -> T) -> (T, u32, u32) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pings = scope.spawn(|| {
                let (mut sent, mut lost) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    sent += 1;
                    lost += u32::from(!self.ping(from, to));
                }
                (sent, lost)
            });
            let ends = Ends(&over);
            let done = work();
            drop(ends);
            let (sent, lost) = pings.join().unwrap();
            (done, sent, lost)
        })
    }

    /// How many frames on the wire hold what pings carry, of those on the bridge while something is done.
    fn seen_in_clear<T>(&self, work: impl FnOnce() -> T) -> (T, usize, usize) {
        let socket: OwnedFd = within(&self.wire(), || {
            let all = Protocol::from_raw(std::num::NonZeroU32::new(u32::from(3_u16.to_be())).unwrap());
            rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, Some(all)).unwrap()
        });
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let capture = scope.spawn(|| {
                let (mut frames, mut clear) = (0, 0);
                let mut buffer = vec![0; 70_000];
                loop {
                    let ended = over.load(Ordering::Relaxed);
                    match rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                        Ok((length, _)) => {
                            frames += 1;
                            let hit = buffer[..length].windows(PLAIN.len()).any(|window| window == PLAIN);
                            clear += usize::from(hit);
                        }
                        Err(_) if ended => return (frames, clear),
                        Err(_) => {}
                    }
                }
            });
            let ends = Ends(&over);
            let done = work();
            drop(ends);
            let (frames, clear) = capture.join().unwrap();
            (done, frames, clear)
        })
    }

    /// Damages host 1 by hand, and sees that it is found and repaired, while hosts 2 and 3 reach each other.
    #[track_caller]
    fn damage(&self, what: &str, harm: impl FnOnce()) {
        let (repaired, sent, lost) = self.meanwhile(2, 3, || {
            harm();
            let done = self.converge(1);
            assert_eq!(done.trouble, Vec::<String>::new(), "{what}");
            assert!(!done.repaired.is_empty(), "{what}: not seen");
            until(what, || self.ping(1, 2) && self.ping6(1, 2) && self.ping(1, 3));
            assert_eq!(self.converge(1), Converged::default(), "{what}");
            done.repaired
        });
        assert!(
            sent > 0 && lost == 0,
            "{what}: {lost} of {sent} lost between others: {repaired:?}"
        );
    }

    /// As `damage`, with a command of `ip` on host 1.
    #[track_caller]
    fn damage_ip(&self, args: &str) {
        self.damage(args, || must(&format!("-n {} {args}", self.host(1))));
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for number in 1..=3 {
            let device = names(&cluster(), &node(number)).wireguard;
            let _ = detached::stop(&wireguard::place(self.files(number), &device), Duration::from_secs(2));
            let _ = std::fs::remove_file(format!("/var/run/wireguard/{device}.sock"));
            let _ = ip(&format!("netns del {}", self.host(number)));
        }
        let _ = ip(&format!("netns del {}", self.wire()));
    }
}

#[test]
fn vxlan_carries_all_pairs_and_each_table_is_repaired() {
    let lab = Lab::new(Backend::Vxlan, [LinkKind::Vxlan; 3]);
    lab.settle();
    let ((), frames, clear) = lab.seen_in_clear(|| {
        for (from, to) in [(1, 2), (1, 3), (2, 3)] {
            until("all reach each other", || lab.ping(from, to) && lab.ping6(from, to));
        }
    });
    assert!(frames > 0 && clear > 0, "a VXLAN is in clear: {clear} of {frames}");
    // Who asks does not change anything, and the host itself is heard too.
    assert!(lab.ping_at(1, "10.210.1.0", "10.210.2.1"), "the host itself");
    assert!(lab.ping_at(1, "10.210.1.1", "10.210.2.0"), "the other host itself");
    let device = lab.device(1);
    let mac = "0a:52:0a:d2:02:00";
    lab.damage_ip("route del 10.210.2.0/24");
    lab.damage_ip("-6 route del fd00:210::2:0/112");
    lab.damage_ip("route del unreachable 10.210.0.0/16");
    lab.damage_ip(&format!("route replace 10.210.2.0/24 dev {device}"));
    lab.damage_ip(&format!("route add 10.210.9.0/24 dev {device} proto 186"));
    lab.damage_ip(&format!("neigh del 10.210.2.0 dev {device}"));
    lab.damage_ip(&format!(
        "neigh replace 10.210.2.0 lladdr 02:00:00:00:00:09 dev {device}"
    ));
    lab.damage_ip(&format!(
        "neigh add 10.210.77.0 lladdr 02:00:00:00:00:09 dev {device} nud permanent"
    ));
    for args in [
        format!("del {mac} dev {device}"),
        format!("replace {mac} dev {device} dst 10.99.0.77"),
        format!("append {mac} dev {device} dst 10.99.0.77"),
        format!("add 02:00:00:00:00:07 dev {device} dst 10.99.0.3"),
    ] {
        lab.damage(&args, || {
            let words = format!("netns exec {} bridge fdb {args}", lab.host(1));
            must(&words);
        });
    }
    lab.damage_ip(&format!("link set {device} mtu 1300"));
    lab.damage_ip(&format!("link set {device} address 02:00:00:00:00:08"));
    lab.damage_ip(&format!("addr flush dev {device}"));
    lab.damage_ip(&format!("addr add 10.210.1.77/32 dev {device}"));
    lab.damage_ip(&format!("link set {device} down"));
    lab.damage_ip(&format!("link del {device}"));
    lab.damage("another device of its name", || {
        must(&format!("-n {} link del {device}", lab.host(1)));
        must(&format!("-n {} link add {device} type bridge", lab.host(1)));
    });
    lab.damage("a setting of the kernel", || {
        within(&lab.host(1), || std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap();
    });
}

#[test]
fn plain_routes_carry_all_pairs_and_only_ours_are_touched() {
    let lab = Lab::new(Backend::HostGw, [LinkKind::HostGw; 3]);
    lab.settle();
    for (from, to) in [(1, 2), (1, 3), (2, 3)] {
        until("all reach each other", || lab.ping(from, to));
    }
    let host = lab.host(1);
    let shown = || String::from_utf8(ip(&format!("-n {host} route show")).stdout).unwrap();
    // The other hosts' IPv6 is not known: there is no such way, and no other either.
    assert!(!lab.ping6(1, 2));
    let harm = |args: &str, whole: bool| {
        let ((), sent, lost) = lab.meanwhile(2, 3, || {
            must(&format!("-n {host} {args}"));
            let done = lab.converge(1);
            assert_eq!(done.repaired.is_empty(), !whole, "{args}: {done:?}");
            until(args, || lab.ping(1, 2));
        });
        assert!(sent > 0 && lost == 0, "{args}: {lost} of {sent}");
    };
    harm("route del 10.210.2.0/24", true);
    harm("route replace 10.210.2.0/24 via 10.99.0.3 proto 186", true);
    harm("route add 10.210.8.0/24 via 10.99.0.3 proto 186", true);
    harm("route add 10.211.8.0/24 via 10.99.0.3 proto 186", false);
    harm("route add 192.168.77.0/24 via 10.99.0.3", false);
    assert!(shown().contains("10.211.8.0/24") && shown().contains("192.168.77.0/24"));
    // Somebody else's route in our way is named, and stays.
    must(&format!("-n {host} route del 10.210.3.0/24"));
    must(&format!("-n {host} route add 10.210.3.0/24 via 10.99.0.2 proto static"));
    let done = lab.converge(1);
    assert_eq!(done.repaired, Vec::<String>::new());
    assert!(
        done.trouble.len() == 1 && done.trouble[0].contains("routed by somebody else"),
        "{done:?}"
    );
    assert!(
        shown().contains("10.210.3.0/24 via 10.99.0.2 dev eth0 proto static"),
        "{}",
        shown()
    );
    // Taken away, all ours is gone and nothing else.
    let desired = lab.desired(1);
    within(&host, || run(raze(&desired.names, &desired.ranges, lab.files(1)))).unwrap();
    let left = shown();
    assert!(
        !left.contains("10.210.2.0/24") && !left.contains("unreachable"),
        "{left}"
    );
    assert!(
        left.contains("10.210.3.0/24") && left.contains("10.211.8.0/24") && left.contains("default"),
        "{left}"
    );
}

#[test]
fn wireguard_in_a_process_shows_nothing_in_clear_and_is_repaired() {
    let lab = Lab::new(Backend::WireguardUser, [LinkKind::WireguardUser; 3]);
    let ((), frames, clear) = lab.seen_in_clear(|| {
        lab.settle();
        for (from, to) in [(1, 2), (1, 3), (2, 3)] {
            until("all reach each other", || lab.ping(from, to) && lab.ping6(from, to));
        }
    });
    assert!(frames > 0 && clear == 0, "{clear} of {frames} frames in clear");
    let heard = |number| {
        lab.state(number)
            .into_iter()
            .all(|peer| peer.handshake_age.is_some() && peer.sent_bytes > 0)
    };
    until("all were heard of", || heard(1) && heard(2) && heard(3));
    let device = lab.device(1);
    let place = wireguard::place(lab.files(1), &device);
    let pid = || detached::look(&place).unwrap().unwrap().pid.unwrap();
    let other = public_hex(&lab, 2);
    let first = pid();
    lab.damage_ip("route del 10.210.2.0/24");
    lab.damage_ip(&format!("link set {device} mtu 1300"));
    lab.damage_ip(&format!("addr flush dev {device}"));
    lab.damage_ip(&format!("link set {device} down"));
    lab.damage("a peer removed", || {
        tell(&lab, &format!("public_key={other}\nremove=true\n"))
    });
    lab.damage("a peer without subnets", || {
        tell(&lab, &format!("public_key={other}\nreplace_allowed_ips=true\n"));
    });
    lab.damage("a peer elsewhere", || {
        tell(&lab, &format!("public_key={other}\nendpoint=10.99.0.77:9\n"))
    });
    lab.damage("a peer with a secret", || {
        tell(&lab, &format!("public_key={other}\npreshared_key={}\n", "7".repeat(64)));
    });
    lab.damage("a foreign peer", || {
        tell(
            &lab,
            &format!("public_key={}\nallowed_ip=10.210.3.0/24\n", "5".repeat(64)),
        );
    });
    lab.damage("another key", || {
        tell(&lab, &format!("private_key={}\n", "6".repeat(64)))
    });
    assert_eq!(pid(), first, "none of that ends the process");
    let ((), _, clear) = lab.seen_in_clear(|| {
        lab.damage("the process is killed", || {
            let kill = Command::new("kill")
                .arg("-9")
                .arg(first.as_raw_nonzero().to_string())
                .status();
            assert!(kill.unwrap().success());
            until("it is gone", || detached::look(&place).unwrap().is_none());
            assert!(!lab.ping(1, 2), "nothing carries it");
        });
    });
    assert_eq!(clear, 0, "what has no link leaves by no other way");
    assert_ne!(pid(), first);
    lab.damage_ip(&format!("link del {device}"));
}

/// Tells host 1's device something, as a person does with `wg`.
fn tell(lab: &Lab, words: &str) {
    let mut stream = UnixStream::connect(format!("/var/run/wireguard/{}.sock", lab.device(1))).unwrap();
    stream.write_all(format!("set=1\n{words}\n").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    // With another key it may fail to open its port again: that is part of the damage.
    let fine = answer.contains("errno=0") || words.starts_with("private_key");
    assert!(fine, "{words}: {answer}");
}

fn public_hex(lab: &Lab, number: usize) -> String {
    lab.keys[number - 1]
        .public()
        .0
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn a_new_key_counts_for_all_and_no_process_is_restarted() {
    let mut lab = Lab::new(Backend::WireguardUser, [LinkKind::WireguardUser; 3]);
    lab.settle();
    until("all reach each other", || lab.ping(1, 2) && lab.ping(2, 3));
    let device = lab.device(1);
    let place = wireguard::place(lab.files(1), &device);
    let before = detached::look(&place).unwrap();
    let next = lab.keys[0].prepare().unwrap();
    assert_eq!(lab.converge(1), Converged::default(), "it does not count yet");
    lab.links[0].key = Some(next.to_string());
    lab.keys[0].switch().unwrap();
    let ((), sent, lost) = lab.meanwhile(2, 3, || {
        lab.settle();
        lab.follow();
        until("by the new key", || lab.ping(1, 2) && lab.ping(3, 1));
    });
    assert!(sent > 0 && lost == 0, "{lost} of {sent} lost between others");
    assert_eq!(detached::look(&place).unwrap(), before);
}

#[test]
fn traffic_goes_on_through_a_rotation_whoever_hears_of_it_first() {
    let mut lab = Lab::new(Backend::WireguardUser, [LinkKind::WireguardUser; 3]);
    lab.settle();
    until("all reach each other", || {
        lab.ping(1, 2) && lab.ping(2, 1) && lab.ping(3, 1)
    });
    // The others hear of the next key while the node has not: its agent may be away for long.
    let next = lab.keys[0].prepare().unwrap();
    lab.links[0].key = Some(next.to_string());
    let stream = Stream::new(&lab, 2, 1);
    assert!(
        lab.converge(2).repaired.iter().any(|one| one.contains("n1")),
        "it is told of the new key"
    );
    assert_eq!(lab.converge(3).trouble, Vec::<String>::new());
    let heard = stream.heard();
    until("the key before goes on", || stream.heard() > heard + 100);
    assert_eq!(lab.waits(), [2, 3], "the new key does not answer yet");
    assert_eq!(lab.converge(2), Converged::default(), "and is not told again");
    assert_eq!(stream.lost(), 0, "nothing is lost before the node switches");
    lab.keys[0].switch().unwrap();
    assert_eq!(lab.converge(1).trouble, Vec::<String>::new());
    lab.follow();
    let heard = stream.heard();
    until("the new key carries it", || stream.heard() > heard + 20);
    eprintln!("the others first: {} ms without an answer", stream.longest());
    drop(stream);
    assert_eq!(old_keys(&lab, 2), 0, "the key before is gone");
    // The node hears first, and the others late.
    let next = lab.keys[0].prepare().unwrap();
    lab.keys[0].switch().unwrap();
    lab.links[0].key = Some(next.to_string());
    let stream = Stream::new(&lab, 1, 2);
    assert_eq!(lab.converge(1).trouble, Vec::<String>::new());
    assert!(!lab.ping(1, 3), "who has not heard of it does not know it");
    let begun = Instant::now();
    lab.follow();
    let heard = stream.heard();
    until("they have heard", || stream.heard() > heard + 20);
    eprintln!(
        "the node first: {} ms in all, {} ms since the others heard",
        stream.longest(),
        begun.elapsed().as_millis()
    );
    // Both ends at once.
    let nexts: Vec<_> = (0..2).map(|at| lab.keys[at].prepare().unwrap()).collect();
    for (at, next) in nexts.iter().enumerate() {
        lab.links[at].key = Some(next.to_string());
        lab.keys[at].switch().unwrap();
    }
    lab.follow();
    until("both have another key", || {
        lab.follow();
        lab.ping(1, 2) && lab.ping(2, 1) && lab.ping(3, 1) && lab.ping(3, 2)
    });
    assert_eq!((old_keys(&lab, 1), old_keys(&lab, 2), old_keys(&lab, 3)), (0, 0, 0));
}

/// Peers of a device that are nobody's present key.
fn old_keys(lab: &Lab, number: usize) -> usize {
    let path = format!("/var/run/wireguard/{}.sock", lab.device(number));
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"get=1\n\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let known: Vec<String> = (1..=3).map(|number| public_hex(lab, number)).collect();
    let keys = answer.lines().filter_map(|line| line.strip_prefix("public_key="));
    keys.filter(|key| !known.iter().any(|known| known == key)).count()
}

/// A ping each 20 ms from one host to another.
struct Stream {
    ping: std::process::Child,
    told: tempfile::NamedTempFile,
}

const BEAT: u64 = 20;

impl Stream {
    fn new(lab: &Lab, from: usize, to: usize) -> Self {
        let told = tempfile::NamedTempFile::new().unwrap();
        let (host, source, target) = (lab.host(from), format!("10.210.{from}.1"), format!("10.210.{to}.1"));
        let ping = Command::new("ip")
            .args(["netns", "exec", &host, "ping", "-i", "0.02", "-I", &source, &target])
            .stdout(told.reopen().unwrap())
            .spawn()
            .unwrap();
        let stream = Self { ping, told };
        until("it begins", || stream.heard() > 5);
        stream
    }

    fn numbers(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.told.path()).unwrap();
        let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
        text.lines().filter_map(number).collect()
    }

    fn heard(&self) -> usize {
        self.numbers().len()
    }

    /// Those before the last that was answered and were not.
    fn lost(&self) -> u64 {
        let numbers = self.numbers();
        let (first, last) = (numbers.first().unwrap(), numbers.last().unwrap());
        last + 1 - first - numbers.len() as u64
    }

    /// The longest time without an answer, in milliseconds.
    fn longest(&self) -> u64 {
        let numbers = self.numbers();
        let gaps = numbers.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        gaps.max().unwrap_or(0) * BEAT
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.ping.kill();
        let _ = self.ping.wait();
    }
}

#[test]
fn who_cannot_encrypt_is_not_reached_in_clear() {
    let lab = Lab::new(
        Backend::Wireguard,
        [LinkKind::WireguardUser, LinkKind::WireguardUser, LinkKind::Vxlan],
    );
    let ((), frames, clear) = lab.seen_in_clear(|| {
        for number in 1..=3 {
            let done = lab.converge(number);
            assert_eq!(done.trouble, Vec::<String>::new());
        }
        until("who can encrypt", || lab.ping(1, 2));
        assert!(!lab.ping(1, 3) && !lab.ping(3, 1) && !lab.ping6(2, 3));
    });
    assert!(frames > 0 && clear == 0, "{clear} of {frames} frames in clear");
    let desired = lab.desired(1);
    assert!(desired.refused[0].why.contains("in clear"), "{:?}", desired.refused);
    assert!(lab.desired(3).why.unwrap().contains("asks for wireguard"));
}

#[test]
fn another_kind_takes_the_place_of_the_one_before() {
    let mut lab = Lab::new(Backend::WireguardUser, [LinkKind::WireguardUser; 3]);
    lab.settle();
    until("encrypted", || lab.ping(1, 2));
    let names = lab.desired(1).names;
    lab.settings.backend = Backend::Vxlan;
    lab.settings.port = 4_789;
    for link in &mut lab.links {
        link.kind = Some(LinkKind::Vxlan);
        link.endpoints = link
            .endpoints
            .iter()
            .map(|at| SocketAddr::new(at.ip(), 4_789))
            .collect();
    }
    lab.settle();
    until("in clear", || lab.ping(1, 2) && lab.ping(2, 3));
    let shown = String::from_utf8(ip(&format!("-n {} -br link", lab.host(1))).stdout).unwrap();
    assert!(
        shown.contains(&names.vxlan) && !shown.contains(&names.wireguard),
        "{shown}"
    );
    assert_eq!(
        detached::look(&wireguard::place(lab.files(1), &names.wireguard)).unwrap(),
        None
    );
    lab.settings.backend = Backend::None;
    for link in &mut lab.links {
        link.kind = Some(LinkKind::None);
    }
    lab.settle();
    let shown = String::from_utf8(ip(&format!("-n {} -br link", lab.host(1))).stdout).unwrap();
    assert!(!shown.contains(&names.vxlan), "{shown}");
}

#[test]
fn a_port_that_is_taken_is_named_and_left_to_its_owner() {
    let lab = Lab::new(Backend::WireguardUser, [LinkKind::WireguardUser; 3]);
    let taken = within(&lab.host(1), || {
        let four = std::net::UdpSocket::bind("0.0.0.0:51820").unwrap();
        let six = std::net::UdpSocket::bind("[::]:51820");
        (four, six)
    });
    let done = lab.converge(1);
    assert!(
        done.trouble.iter().any(|why| why.contains("UDP port 51820")),
        "{done:?}"
    );
    let done = lab.converge(1);
    assert!(
        done.trouble.iter().any(|why| why.contains("UDP port 51820")),
        "it is said again: {done:?}"
    );
    drop(taken);
    lab.settle();
    until("once it is free", || lab.ping(1, 2));
}

#[test]
fn a_change_by_hand_is_told_at_once() {
    let lab = Lab::new(Backend::Vxlan, [LinkKind::Vxlan; 3]);
    lab.settle();
    let names = lab.desired(1).names;
    let host = lab.host(1);
    within(&host, || {
        run(async {
            let changes = Changes::new(&names).await.unwrap();
            let device = &names.vxlan;
            let limit = Duration::from_secs(60);
            for args in [
                "route del 10.210.2.0/24".to_owned(),
                format!("neigh del 10.210.2.0 dev {device}"),
                format!("addr flush dev {device}"),
                format!("link set {device} mtu 1300"),
                format!("link del {device}"),
            ] {
                must(&format!("-n {host} {args}"));
                tokio::time::timeout(limit, changes.wait()).await.expect(&args);
                // What belongs to the same change.
                while tokio::time::timeout(Duration::from_millis(200), changes.wait())
                    .await
                    .is_ok()
                {}
            }
            must(&format!("-n {host} link add veth9 type veth peer name veth8"));
            let quiet = tokio::time::timeout(Duration::from_millis(300), changes.wait()).await;
            assert!(quiet.is_err(), "a device of somebody else's is no news");
            assert!(!changes.is_over());
        })
    });
}

#[test]
fn a_host_knows_what_it_has_and_can() {
    let lab = Lab::new(Backend::Vxlan, [LinkKind::Vxlan; 3]);
    let (seen, probed) = within(&lab.host(2), || {
        run(async { (host().await.unwrap(), probe().await.unwrap()) })
    });
    assert_eq!(seen.mtu, 1500);
    assert!(seen.addresses.contains(&"10.99.0.2/24".parse().unwrap()), "{seen:?}");
    assert!(
        seen.addresses
            .iter()
            .all(|address| !address.to_string().starts_with("10.210.")),
        "{seen:?}"
    );
    assert_eq!((probed.vxlan.clone(), probed.tun.clone()), (Ok(()), Ok(())));
    let encrypted = kind(Backend::Wireguard, &probed).unwrap();
    assert_eq!(encrypted == LinkKind::Wireguard, probed.wireguard.is_ok());
    let left = String::from_utf8(ip(&format!("-n {} -br link", lab.host(2))).stdout).unwrap();
    assert!(!left.contains("rvp"), "what was tried is gone: {left}");
    let Some(Carrier::Vxlan { peers, .. }) = lab.desired(2).device.map(|device| device.carrier) else {
        panic!("no VXLAN");
    };
    assert_eq!(peers[0].remote.to_string(), "10.99.0.1");
}
