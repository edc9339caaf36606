//! The text that WireGuard devices in a process are told and asked in, as `wg` does: over a socket with the device's name in
//! `/var/run/wireguard`. What comes back is sized and checked: it is another process.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use planner::network::links::Key;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::configure::{Change, PeerChange, Seen, SeenPeer};

/// Where all devices in processes have their sockets.
const DIR: &str = "/var/run/wireguard";
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest answer, in bytes: 5,000 peers make 2 MB.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum UapiError {
    #[error("ask the device `{device}`")]
    Io {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("the device `{device}` does not answer within {} s", LIMIT.as_secs())]
    Slow { device: String },
    #[error("the device `{device}` answers what is not understood: {what}")]
    Odd { device: String, what: String },
    #[error("the device `{device}` refuses (error {code})")]
    Refused { device: String, code: i32 },
}

/// A device's socket.
#[must_use]
pub fn socket(device: &str) -> PathBuf {
    PathBuf::from(format!("{DIR}/{device}.sock"))
}

/// Reads a device.
pub async fn get(device: &str) -> Result<Seen, UapiError> {
    let answer = ask(device, "get=1\n\n").await?;
    let odd = |what: String| UapiError::Odd {
        device: device.to_owned(),
        what,
    };
    let (seen, code) = read(&answer).map_err(odd)?;
    refused(device, code)?;
    Ok(seen)
}

/// Tells a device.
pub async fn set(device: &str, change: &Change) -> Result<(), UapiError> {
    let answer = ask(device, &write(change)).await?;
    let code = answer
        .lines()
        .find_map(|line| line.strip_prefix("errno=")?.parse().ok());
    let Some(code) = code else {
        return Err(UapiError::Odd {
            device: device.to_owned(),
            what: "no number of an error".to_owned(),
        });
    };
    refused(device, code)
}

fn refused(device: &str, code: i32) -> Result<(), UapiError> {
    let device = device.to_owned();
    if code == 0 {
        Ok(())
    } else {
        Err(UapiError::Refused { device, code })
    }
}

async fn ask(device: &str, question: &str) -> Result<Zeroizing<String>, UapiError> {
    let whole = async {
        let mut stream = UnixStream::connect(socket(device)).await?;
        stream.write_all(question.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Zeroizing::new(Vec::new());
        (&mut stream).take(MAX_ANSWER).read_to_end(&mut answer).await?;
        let text = std::str::from_utf8(&answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Zeroizing::new(text.to_owned()))
    };
    match tokio::time::timeout(LIMIT, whole).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(UapiError::Io {
            device: device.to_owned(),
            source,
        }),
        Err(_) => Err(UapiError::Slow {
            device: device.to_owned(),
        }),
    }
}

fn hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn write(change: &Change) -> Zeroizing<String> {
    let Change {
        private,
        port,
        unmark,
        peers,
    } = change;
    let mut text = Zeroizing::new("set=1\n".to_owned());
    if let Some(private) = private {
        let _ = writeln!(text, "private_key={}", *hex(private));
    }
    if let Some(port) = port {
        let _ = writeln!(text, "listen_port={port}");
    }
    if *unmark {
        let _ = writeln!(text, "fwmark=0");
    }
    for peer in peers {
        let PeerChange {
            key,
            remove,
            endpoint,
            keepalive,
            allowed,
            unshare,
        } = peer;
        let _ = writeln!(text, "public_key={}", *hex(&key.0));
        if *remove {
            let _ = writeln!(text, "remove=true");
            continue;
        }
        if *unshare {
            let _ = writeln!(text, "preshared_key={}", *hex(&[0; 32]));
        }
        if let Some(endpoint) = endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        if let Some(keepalive) = keepalive {
            let _ = writeln!(text, "persistent_keepalive_interval={keepalive}");
        }
        if let Some(allowed) = allowed {
            let _ = writeln!(text, "replace_allowed_ips=true");
            for subnet in allowed {
                let _ = writeln!(text, "allowed_ip={subnet}");
            }
        }
    }
    let _ = writeln!(text);
    text
}

/// What a device says of itself, and the number of its error.
fn read(answer: &str) -> Result<(Seen, i32), String> {
    let mut seen = Seen::default();
    let mut of: Option<(Key, SeenPeer)> = None;
    let mut code = None;
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let (word, value) = line.split_once('=').ok_or("a line without `=`")?;
        let odd = || format!("its {word}");
        match (word, &mut of) {
            ("private_key", _) => seen.private = unhex(value).map(Zeroizing::new),
            ("listen_port", _) => seen.port = Some(value.parse().map_err(|_| odd())?),
            ("fwmark", _) => seen.mark = value.parse().map_err(|_| odd())?,
            ("errno", _) => code = Some(value.parse().map_err(|_| odd())?),
            ("public_key", of) => {
                if let Some((key, peer)) = of.take() {
                    seen.peers.insert(key, peer);
                }
                *of = Some((Key(unhex(value).ok_or_else(odd)?), SeenPeer::default()));
            }
            ("endpoint", Some((_, peer))) => peer.endpoint = Some(value.parse().map_err(|_| odd())?),
            ("allowed_ip", Some((_, peer))) => {
                let subnet: IpNet = value.parse().map_err(|_| odd())?;
                peer.allowed.insert(subnet.trunc());
            }
            ("persistent_keepalive_interval", Some((_, peer))) => peer.keepalive = value.parse().map_err(|_| odd())?,
            ("preshared_key", Some((_, peer))) => peer.preshared = value.bytes().any(|digit| digit != b'0'),
            ("last_handshake_time_sec", Some((_, peer))) => {
                let seconds: u64 = value.parse().map_err(|_| odd())?;
                peer.handshake = (seconds > 0).then_some(seconds);
            }
            ("rx_bytes", Some((_, peer))) => peer.received_bytes = value.parse().map_err(|_| odd())?,
            ("tx_bytes", Some((_, peer))) => peer.sent_bytes = value.parse().map_err(|_| odd())?,
            // Words of other editions.
            _ => {}
        }
    }
    if let Some((key, peer)) = of {
        seen.peers.insert(key, peer);
    }
    Ok((seen, code.ok_or("no number of an error")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As WireGuard's page on its text has it.
    const SAID: &str = "\
private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
fwmark=7
listen_port=12912
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
endpoint=[abcd:23::33]:51820
allowed_ip=192.168.4.4/32
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
tx_bytes=38333
rx_bytes=2224
allowed_ip=192.168.4.6/32
allowed_ip=192.168.5.7/24
persistent_keepalive_interval=111
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
endpoint=182.122.22.19:3233
protocol_version=1
errno=0

";

    #[test]
    fn what_a_device_says_is_read() {
        let (seen, code) = read(SAID).unwrap();
        assert_eq!((code, seen.port, seen.mark, seen.peers.len()), (0, Some(12_912), 7, 2));
        let peers: Vec<&SeenPeer> = seen.peers.values().collect();
        assert_eq!((peers[0].handshake, peers[0].keepalive), (Some(1_700_000_000), 111));
        assert_eq!((peers[0].received_bytes, peers[0].sent_bytes), (2_224, 38_333));
        assert!(peers[0].allowed.contains(&"192.168.5.0/24".parse().unwrap()) && !peers[0].preshared);
        assert!(peers[1].preshared && peers[1].endpoint.unwrap().is_ipv6());
    }

    #[test]
    fn no_answer_of_another_process_panics() {
        for bad in [
            "",
            "x",
            "errno",
            "errno=x",
            "public_key=zz\nerrno=0",
            "listen_port=99999\nerrno=0",
            "endpoint=1\n",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let long = "public_key=".to_owned() + &"é".repeat(32) + "\nerrno=0\n";
        assert!(read(&long).is_err());
        for cut in 0..SAID.len() {
            let _ = read(&SAID[..cut]);
        }
    }

    #[test]
    fn a_change_is_said_as_wg_says_it() {
        let key = Key([0xab; 32]);
        let change = Change {
            private: Some(Zeroizing::new([1; 32])),
            port: Some(51_820),
            unmark: true,
            peers: vec![
                PeerChange {
                    key,
                    remove: true,
                    endpoint: None,
                    keepalive: None,
                    allowed: None,
                    unshare: false,
                },
                PeerChange {
                    key,
                    remove: false,
                    endpoint: Some("[2001:db8::1]:7".parse().unwrap()),
                    keepalive: Some(25),
                    allowed: Some(vec!["10.210.2.0/24".parse().unwrap()]),
                    unshare: true,
                },
            ],
        };
        let key = "ab".repeat(32);
        let expected = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\nfwmark=0\npublic_key={key}\nremove=true\npublic_key={key}\n\
             preshared_key={}\nendpoint=[2001:db8::1]:7\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=10.210.2.0/24\n\n",
            "01".repeat(32),
            "0".repeat(64)
        );
        assert_eq!(*write(&change), expected);
    }
}
