//! The list of seeds as a person gives it: `--seeds h1,h2,h3`, addresses or names, in any order. Every host makes the same
//! of it; a host knows itself in it by its own addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many seeds there may be: an even number survives no more than the odd one below it.
pub const COUNTS: [usize; 4] = [1, 3, 5, 7];
const MAX_HOST_BYTES: usize = 253;

/// One seed: an address or a DNS name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

/// The seeds of a cluster, sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Host>", into = "Vec<Host>")]
pub struct Seeds(Vec<Host>);

/// Why a list of seeds does not stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedsError {
    #[error("`{0}` is neither an address nor a DNS name")]
    Host(String),
    #[error("`{0}` is in the list of seeds twice")]
    Twice(Host),
    #[error("`{0}` and `{1}` cannot be told apart as members: write addresses instead")]
    Alike(Host, Host),
    #[error("there may be 1, 3, 5 or 7 seeds, not {0}: an even number survives no more failures than one fewer")]
    Count(usize),
}

impl Host {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When it is an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// As URLs spell it: an IPv6 address in brackets.
    #[must_use]
    pub fn at(&self, port: u16) -> String {
        match self.address() {
            Some(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            Some(IpAddr::V4(_)) | None => format!("{}:{port}", self.0),
        }
    }

    /// Its name as a member and in its certificate: a DNS label.
    #[must_use]
    pub fn label(&self) -> String {
        let plain: String = self
            .0
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let cut: String = plain.trim_matches('-').chars().take(63).collect();
        cut.trim_end_matches('-').to_owned()
    }

    /// Whether one of this host's own addresses is behind it: the system lets nobody listen at another's.
    fn is_here(&self) -> bool {
        let addresses: Vec<IpAddr> = match self.address() {
            Some(address) => vec![address],
            None => (self.0.as_str(), 0)
                .to_socket_addrs()
                .map_or_else(|_| Vec::new(), |all| all.map(|address| address.ip()).collect()),
        };
        addresses
            .into_iter()
            .any(|address| TcpListener::bind(SocketAddr::new(address, 0)).is_ok())
    }
}

impl Seeds {
    pub fn iter(&self) -> impl Iterator<Item = &Host> {
        self.0.iter()
    }

    #[must_use]
    pub fn contains(&self, host: &Host) -> bool {
        self.0.contains(host)
    }

    /// Those that are this host.
    #[must_use]
    pub fn here(&self) -> Vec<&Host> {
        self.0.iter().filter(|host| host.is_here()).collect()
    }

    fn checked(mut hosts: Vec<Host>) -> Result<Self, SeedsError> {
        hosts.sort();
        if let Some(pair) = hosts.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(SeedsError::Twice(pair[0].clone()));
        }
        let mut labels = BTreeSet::new();
        for host in &hosts {
            if !labels.insert(host.label()) {
                let other = hosts.iter().find(|other| other.label() == host.label());
                return Err(SeedsError::Alike(other.unwrap_or(host).clone(), host.clone()));
            }
        }
        if COUNTS.contains(&hosts.len()) {
            Ok(Self(hosts))
        } else {
            Err(SeedsError::Count(hosts.len()))
        }
    }
}

impl FromStr for Host {
    type Err = SeedsError;
    fn from_str(text: &str) -> Result<Self, SeedsError> {
        let wrong = || SeedsError::Host(text.chars().take(MAX_HOST_BYTES).collect());
        let plain = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = plain.parse::<IpAddr>() {
            // One spelling for each address, and no address that means "any".
            return if address.is_unspecified() {
                Err(wrong())
            } else {
                Ok(Self(address.to_string()))
            };
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // What ends in a number is an address that was mistyped: `10.0.0.256`.
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
        if name.len() <= MAX_HOST_BYTES && !number && name.split('.').all(label) {
            Ok(Self(name))
        } else {
            Err(wrong())
        }
    }
}

impl FromStr for Seeds {
    type Err = SeedsError;
    fn from_str(text: &str) -> Result<Self, SeedsError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self::checked(parts.map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl TryFrom<Vec<Host>> for Seeds {
    type Error = SeedsError;
    fn try_from(hosts: Vec<Host>) -> Result<Self, SeedsError> {
        Self::checked(hosts)
    }
}
impl From<Seeds> for Vec<Host> {
    fn from(seeds: Seeds) -> Self {
        seeds.0
    }
}
impl TryFrom<String> for Host {
    type Error = SeedsError;
    fn try_from(text: String) -> Result<Self, SeedsError> {
        text.parse()
    }
}
impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.0
    }
}
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<&str> = self.0.iter().map(Host::as_str).collect();
        f.write_str(&hosts.join(","))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let one: Seeds = "h3, H1.example.com.,10.0.0.2".parse().unwrap();
        let other: Seeds = "10.0.0.2,h3,h1.example.com".parse().unwrap();
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "10.0.0.2,h1.example.com,h3");
    }

    #[test]
    fn a_list_that_does_not_stand_says_why() {
        assert_eq!("h1,h2".parse::<Seeds>(), Err(SeedsError::Count(2)));
        assert_eq!(String::new().parse::<Seeds>(), Err(SeedsError::Count(0)));
        assert!(matches!("h1,h1,h2".parse::<Seeds>(), Err(SeedsError::Twice(_))));
        assert!(matches!("a.b,a-b,c".parse::<Seeds>(), Err(SeedsError::Alike(..))));
        for wrong in [
            "10.0.0.256",
            "h_1",
            "-h",
            "h..x",
            "0.0.0.0",
            "::",
            "h1:2379",
            "http://h1",
            &"x".repeat(300),
        ] {
            assert!(matches!(wrong.parse::<Host>(), Err(SeedsError::Host(_))), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_spelled_as_urls_and_members_need_them() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        assert_eq!(host("FD00::1").at(2379), "[fd00::1]:2379");
        assert_eq!(host("[fd00::0:1]"), host("fd00::1"));
        assert_eq!(host("10.0.0.1").at(2379), "10.0.0.1:2379");
        assert_eq!(host("10.0.0.1").label(), "10-0-0-1");
        assert_eq!(host("h1.example.com").label(), "h1-example-com");
        assert_eq!(host("fe80::").label(), "fe80");
    }

    #[test]
    fn a_host_knows_itself_by_its_own_addresses() {
        let seeds: Seeds = "127.0.0.1,203.0.113.7,203.0.113.8".parse().unwrap();
        assert_eq!(seeds.here(), ["127.0.0.1".parse::<Host>().as_ref().unwrap()]);
    }
}
