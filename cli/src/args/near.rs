//! The command line of what people do near their containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use agent::api::ask::{Since, Stamp};
use agent::api::{ApiOptions, Files, Rights, Security, Tcp};
use clap::{Args, Subcommand, ValueEnum};
use membership::CLIENT_PORT;
use membership::seeds::{Host, Seeds};
use schemas::names::{NodeName, ResourceName};
use trust::tls::Door;

use super::{Common, duration};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// A service, `web` or `service/web`, or one instance, `web.2`
    #[arg(value_name = "WHAT")]
    pub what: String,
    /// Go on with what is written from now on: over restarts, and by new instances
    #[arg(short, long)]
    pub follow: bool,
    /// Only what is younger than this, or than an RFC 3339 time: `5m`, `2026-01-31T12:00:00Z`
    #[arg(long, value_name = "AGE|TIME", value_parser = since)]
    pub since: Option<Since>,
    /// Only so many of the last lines of each instance
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// Begin each line with the time at which it was written
    #[arg(long)]
    pub timestamps: bool,
    /// Begin each line with its instance, also where there is one only
    #[arg(long)]
    pub names: bool,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal: this one
    #[arg(short, long)]
    pub tty: bool,
    /// `web.2`, or a service with one instance
    #[arg(value_name = "INSTANCE")]
    pub what: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The command; none lists what there is
    #[arg(value_name = "COMMAND")]
    pub name: Option<ResourceName>,
    /// The value of a parameter; repeatable
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = pair, requires = "name")]
    pub params: Vec<(String, String)>,
    /// Only there: in the instance `web.2`, or on the nodes `n1,n2`, of those where it may run
    #[arg(long, value_name = "PLACE,PLACE", value_delimiter = ',', requires = "name")]
    pub on: Vec<String>,
    /// Do not ask before it runs on nodes
    #[arg(short, long, requires = "name")]
    pub yes: bool,
    /// List the commands of all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    pub all_namespaces: bool,
    /// Further arguments, where the command takes any
    #[arg(value_name = "ARGUMENT", last = true, requires = "name")]
    pub arguments: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// On which nodes, and for how long.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["nodes", "all"]))]
pub struct OnNodes {
    /// On these nodes
    #[arg(long, value_name = "NODE,NODE", value_delimiter = ',')]
    pub nodes: Vec<NodeName>,
    /// On all nodes
    #[arg(long)]
    pub all: bool,
    /// How long it may take on each node, at most 1h
    #[arg(long, value_parser = duration, default_value = "5m", value_name = "DURATION")]
    pub timeout: std::time::Duration,
}

#[derive(Debug, Args)]
pub struct NodeExecArgs {
    #[command(flatten)]
    pub on: OnNodes,
    /// The program and its arguments; no shell reads them
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DockerArgs {
    #[command(flatten)]
    pub on: OnNodes,
    /// What is given to `docker`
    #[arg(value_name = "ARGUMENT", required = true, last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// `web.2`, or a service with one instance
    #[arg(value_name = "INSTANCE")]
    pub what: String,
    /// Only watch
    #[arg(long)]
    pub no_stdin: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopOf {
    #[default]
    Instances,
    Nodes,
}

#[derive(Debug, Args)]
pub struct ImagesArgs {
    #[command(subcommand)]
    pub verb: Option<ImagesVerb>,
    /// On these nodes; on all when absent
    #[arg(long, global = true, value_name = "NODE,NODE", value_delimiter = ',')]
    pub nodes: Vec<NodeName>,
}

#[derive(Debug, Subcommand)]
pub enum ImagesVerb {
    /// Remove images that nobody uses, by name or id
    #[command(after_help = "Example: reeve images rm registry.example/shop:3")]
    Rm(ImagesRmArgs),
    /// Remove all images that nobody uses
    #[command(after_help = "Example: reeve images prune --dry-run")]
    Prune(ImagesPruneArgs),
}

#[derive(Debug, Args)]
pub struct ImagesRmArgs {
    /// Names, or at least 12 digits of ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ImagesPruneArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// What to measure
    #[arg(value_enum, default_value_t, value_name = "WHAT")]
    pub what: TopOf,
    /// Instances of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// A path here, or in a container: `web.1:/path`
    #[arg(value_name = "SOURCE")]
    pub from: String,
    /// The same; into it where it is a directory
    #[arg(value_name = "TARGET")]
    pub to: String,
}

#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// `web.2`, or a service with one instance
    #[arg(value_name = "INSTANCE")]
    pub what: String,
    /// A port here and the container's: `8080:80`; `:80` takes any free port, `80` the same
    #[arg(value_name = "LOCAL:REMOTE", required = true, value_parser = ports)]
    pub ports: Vec<(u16, u16)>,
}

/// Where an agent's API is served beyond its own host, and what it allows.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// Serve `reeve logs` and the like to other hosts here, or to `none` [default: with --seeds, port 9465 of the address
    /// toward them; else none, for it needs --ca, --cert and --key]
    #[arg(long, value_name = "IP:PORT", help_heading = "Near the containers")]
    pub api_addr: Option<ApiAddress>,
    /// HOST:PORT under which others reach that; the certificate must bear HOST [default: the address itself]
    #[arg(
        long,
        value_name = "HOST:PORT",
        requires = "api_addr",
        help_heading = "Near the containers"
    )]
    pub api_advertise: Option<String>,
    /// Allow `reeve exec`, `attach`, `cp` and `port-forward` on this node
    #[arg(long, help_heading = "Near the containers")]
    pub allow_exec: bool,
}

/// Where an agent's API listens on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    None,
    At(SocketAddr),
}

impl std::str::FromStr for ApiAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let address = text.parse().map(Self::At);
        address.map_err(|_| "write IP:PORT, such as 10.0.0.1:9465, or none".to_owned())
    }
}

/// The port of an agent's API, unless told otherwise.
pub const API_PORT: u16 = 9465;

/// This host's address toward the seeds.
fn toward(seeds: &Seeds) -> Option<IpAddr> {
    let reach = |host: &Host| {
        let target = (host.as_str(), CLIENT_PORT).to_socket_addrs().ok()?.next()?;
        let any: IpAddr = if target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        // Nothing is sent: the system only says which address it would send from.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    seeds.iter().find_map(reach)
}

impl ApiArgs {
    /// For an agent of a cluster of seeds: by the identities in certificates.
    pub fn of_a_member(&self, seeds: &Seeds, door: Arc<Door>) -> ApiOptions {
        let Self {
            api_addr,
            api_advertise,
            allow_exec,
        } = self;
        let address = match api_addr {
            Some(ApiAddress::None) => None,
            Some(ApiAddress::At(address)) => Some(*address),
            None => {
                let own = toward(seeds).map(|own| SocketAddr::new(own, API_PORT));
                if own.is_none() {
                    tracing::warn!(
                        "no address of this host leads to the seeds: `reeve logs` and the like work on this host only"
                    );
                }
                own
            }
        };
        ApiOptions {
            tcp: address.map(|address| Tcp {
                address,
                advertise: api_advertise.clone(),
                security: Security::Door(door),
            }),
            rights: Rights { exec: *allow_exec },
            engine_host: None,
        }
    }

    pub fn options(&self, common: &Common) -> Result<ApiOptions, Failure> {
        let Self {
            api_addr,
            api_advertise,
            allow_exec,
        } = self;
        let tcp = match api_addr {
            None | Some(ApiAddress::None) => None,
            Some(ApiAddress::At(address)) => {
                let files = tls_files(common).ok_or_else(|| {
                    Failure::usage("--api-addr needs --ca, --cert and --key")
                        .help("the API leaves this host behind mutual TLS only")
                })?;
                Some(Tcp {
                    address: *address,
                    advertise: api_advertise.clone(),
                    security: Security::Files(files),
                })
            }
        };
        Ok(ApiOptions {
            tcp,
            rights: Rights { exec: *allow_exec },
            engine_host: None,
        })
    }
}

/// The three files of mutual TLS, where all are named.
pub fn tls_files(common: &Common) -> Option<Files> {
    let file = |path: &Option<PathBuf>| path.clone();
    Some(Files {
        ca: file(&common.ca)?,
        cert: file(&common.cert)?,
        key: file(&common.key)?,
    })
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(age) = duration(text) {
        return Ok(Since::Ago {
            millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        });
    }
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|_| "write an age such as 5m or 2h30m, or a time such as 2026-01-31T12:00:00Z".to_owned())?;
    Ok(Since::At(Stamp {
        seconds: time.as_second().max(0),
        nanos: u32::try_from(time.subsec_nanosecond()).unwrap_or(0),
    }))
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let wrong = || "write LOCAL:REMOTE, such as 8080:80".to_owned();
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let remote: u16 = remote.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let local = if local.is_empty() {
        0
    } else {
        local.parse().map_err(|_| wrong())?
    };
    Ok((local, remote))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_times_and_ports_are_read() {
        assert_eq!(since("5m"), Ok(Since::Ago { millis: 300_000 }));
        let at = Stamp {
            seconds: 1_767_323_045,
            nanos: 5,
        };
        assert_eq!(since("2026-01-02T03:04:05.000000005Z"), Ok(Since::At(at)));
        assert!(since("yesterday").is_err());
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!((ports(":80"), ports("80")), (Ok((0, 80)), Ok((80, 80))));
        for bad in ["", "a", "80:", "80:0", "70000:1", "1:2:3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
