//! Two nodes and what runs on them, as network namespaces of this machine: bridges, a link between the nodes, and a machine
//! outside. Everything is gone when it is dropped. Needs root, `ip` and `unshare`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a connection may take that nobody refuses: none in these tests waits for anything but a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace, with its own view of interfaces, for as long as its process is there.
pub struct Net {
    process: Child,
}

impl Net {
    pub fn new() -> Self {
        let script = "mount -t sysfs sysfs /sys && echo ready && exec sleep 900";
        let mut process = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut said = [0; 5];
        let out = process.stdout.as_mut().expect("a pipe");
        out.read_exact(&mut said).expect("the namespace is there");
        let net = Self { process };
        net.ip("link set lo up");
        // Every refusal is told, not only some in a second.
        net.set("ipv4/icmp_ratelimit", "0");
        net
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn class(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/sys/class/net", self.pid()))
    }

    /// Does something in it, on a thread of its own.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
        std::thread::scope(|scope| {
            let moved = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may move into a namespace");
                act()
            });
            moved.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lines of `ip`, one after the other; those about IPv6 begin with `-6`.
    pub fn ip(&self, lines: &str) {
        self.within(|| {
            for line in lines.lines() {
                match line.strip_prefix("-6 ") {
                    Some(rest) => piped("ip", &["-6", "-batch", "-"], rest),
                    None => piped("ip", &["-batch", "-"], line),
                };
            }
        });
    }

    pub fn nft(&self, text: &str) -> String {
        self.within(|| piped("nft", &["-f", "-"], text))
    }

    pub fn set(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/net/{path}");
        self.within(|| std::fs::write(&path, value).expect("a setting"));
    }

    pub fn set_if_there(&self, path: &str, value: &str) {
        if self.within(|| std::path::Path::new("/proc/sys/net").join(path).exists()) {
            self.set(path, value);
        }
    }

    /// Answers on these ports, by TCP and UDP, with the address of who asks.
    pub fn listens(&self, ports: &[u16]) {
        for port in ports {
            let bind = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port);
            let (tcp, udp) = self.within(|| {
                let tcp = TcpListener::bind(bind).expect("a port");
                (tcp, UdpSocket::bind(bind).expect("a port"))
            });
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { return };
                    std::thread::spawn(move || {
                        let who = stream.peer_addr().map(|peer| peer.ip().to_canonical());
                        let _ = who.map(|who| stream.write_all(format!("{who}\n").as_bytes()));
                        // What it hears it says again.
                        let mut heard = [0; 16];
                        while let Ok(count @ 1..) = stream.read(&mut heard) {
                            let _ = stream.write_all(&heard[..count]);
                        }
                    });
                }
            });
            std::thread::spawn(move || {
                let mut heard = [0; 16];
                while let Ok((count, who)) = udp.recv_from(&mut heard) {
                    let _ = udp.send_to(&heard[..count], who);
                }
            });
        }
    }

    /// Connects: whose address the other side sees, or None where it is refused or nobody answers.
    pub fn connects(&self, to: IpAddr, port: u16) -> Option<IpAddr> {
        self.stream(to, port).map(|(_, who)| who)
    }

    /// A connection that stays, and who the other side says this is.
    pub fn stream(&self, to: IpAddr, port: u16) -> Option<(TcpStream, IpAddr)> {
        self.within(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            let (mut said, mut byte) = (String::new(), [0]);
            while stream.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
                said.push(char::from(byte[0]));
            }
            Some((stream, said.parse().ok()?))
        })
    }

    /// Sends a datagram: whether it is answered.
    pub fn sends(&self, to: IpAddr, port: u16) -> bool {
        self.within(|| {
            let any = match to {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let Ok(socket) = UdpSocket::bind((any, 0)) else {
                return false;
            };
            let _ = socket.set_read_timeout(Some(PATIENCE));
            // What is refused is told at once.
            socket.connect((to, port)).is_ok() && socket.send(b"x").is_ok() && socket.recv(&mut [0; 4]).is_ok()
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program with this as its input, in the namespace of the thread.
fn piped(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}\n{input}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for something to become so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node: its bridge is `rv-t`, its number says which subnet it has: `10.210.<number>.0/24` and `fd10:210::<number>:0/112`.
pub struct Node {
    pub net: Net,
    pub number: u8,
    pub containers: Vec<Net>,
}

pub fn four(node: u8, place: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 210, node, place))
}

pub fn six(node: u8, place: u8) -> IpAddr {
    let first = u128::from("fd10:210::".parse::<Ipv6Addr>().expect("an address"));
    IpAddr::V6(Ipv6Addr::from(first | u128::from(node) << 16 | u128::from(place)))
}

impl Node {
    pub fn new(number: u8) -> Self {
        let net = Net::new();
        net.set("ipv4/ip_forward", "1");
        net.set("ipv6/conf/all/forwarding", "1");
        net.ip(&format!(
            "link add rv-t type bridge\naddr add {}/24 dev rv-t\n-6 addr add {}/112 dev rv-t nodad\nlink set rv-t up\n",
            four(number, 1),
            six(number, 1)
        ));
        Self {
            net,
            number,
            containers: Vec::new(),
        }
    }

    /// A container at the next place, from 2 on: its end on the host is `vethN`.
    pub fn container(&mut self) -> &Net {
        let place = u8::try_from(self.containers.len() + 2).expect("few");
        let inside = Net::new();
        self.net.ip(&format!(
            "link add veth{place} type veth peer name eth0 netns {}\nlink set veth{place} master rv-t up\n",
            inside.pid()
        ));
        inside.ip(&format!(
            "addr add {}/24 dev eth0\n-6 addr add {}/112 dev eth0 nodad\nlink set eth0 up\nroute add default via {}\n-6 route add default via {}\n",
            four(self.number, place),
            six(self.number, place),
            four(self.number, 1),
            six(self.number, 1)
        ));
        self.containers.push(inside);
        self.containers.last().expect("just put there")
    }
}

/// A link between two nodes, `rvl` on both, with the routes to each other's containers.
pub fn link(a: &Node, b: &Node) {
    a.net
        .ip(&format!("link add rvl type veth peer name rvl netns {}\n", b.net.pid()));
    for (own, other) in [(a, b), (b, a)] {
        let (n, m) = (own.number, other.number);
        own.net.ip(&format!(
            "addr add 172.30.0.{n}/24 dev rvl\n-6 addr add fd30::{n}/64 dev rvl nodad\nlink set rvl up\n\
             route add 10.210.{m}.0/24 via 172.30.0.{m} src {}\n-6 route add fd10:210::{m}:0/112 via fd30::{m} src {}\n",
            four(n, 1),
            six(n, 1)
        ));
    }
}

/// A machine outside, at 192.168.50.2, of which a node is the way in at 192.168.50.1.
pub fn outside(node: &Node) -> Net {
    let net = Net::new();
    node.net.ip(&format!(
        "link add out type veth peer name eth0 netns {}\naddr add 192.168.50.1/24 dev out\nlink set out up\n",
        net.pid()
    ));
    net.ip("addr add 192.168.50.2/24 dev eth0\nlink set eth0 up\nroute add 10.210.0.0/16 via 192.168.50.1\n");
    net
}
