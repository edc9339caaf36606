//! The command line of the cluster's network.

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use schemas::records::network::{DEFAULT_CIDR, DEFAULT_DOMAIN, DEFAULT_NODE_PREFIX, MAX_KEY_DAYS};

#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// Give the cluster a network: addresses, links between nodes, and names
    #[command(
        after_help = "Links are encrypted unless --backend says otherwise. Of it only --key-days can be changed later, with all else as it is.\nWhat runs gets an address at once, and names when its container is made anew.\nExample: reeve network create --cidr 10.99.0.0/16\n         reeve network create --backend vxlan"
    )]
    Create(NetworkCreateArgs),
    /// Show each node's subnet and link, latency and loss between all pairs, and what is wrong
    #[command(
        visible_alias = "st",
        after_help = "Agents are asked as for `reeve top`; those that do not answer are named. In a cell, ! is loss, ? is not known.\nExample: reeve network status -o wide"
    )]
    Status,
    /// Replace the keys of nodes' encrypted links now, one node after the other
    #[command(
        after_help = "Each node replaces its key by itself before it is as old as `network create --key-days` says.\nThis is for a key that others may have seen. Links go on meanwhile.\nExample: reeve network rotate-keys --node n1\n         reeve network rotate-keys --all-nodes"
    )]
    RotateKeys(super::seen::ExposeArgs),
}

/// Of `reeve init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Give the cluster a network at once, of this private range; `reeve network create` has more choices, and does it later
    #[arg(long, value_name = "RANGE")]
    pub network: Option<Ipv4Net>,
    /// What carries traffic between nodes
    #[arg(long, value_enum, default_value_t = BackendWord::Wireguard, requires = "network")]
    pub backend: BackendWord,
}

impl InitArgs {
    /// The network that is asked for.
    pub fn network(&self) -> Option<NetworkCreateArgs> {
        self.network.map(|cidr| NetworkCreateArgs {
            cidr,
            cidr6: None,
            node_prefix: DEFAULT_NODE_PREFIX,
            backend: self.backend,
            domain: DEFAULT_DOMAIN.to_owned(),
            port: None,
            mtu: None,
            key_days: None,
        })
    }
}

#[derive(Debug, Args)]
pub struct NetworkCreateArgs {
    /// The private range that nodes get their subnets from
    #[arg(long, value_name = "RANGE", default_value = DEFAULT_CIDR)]
    pub cidr: Ipv4Net,
    /// A range of IPv6 for containers, of fc00::/7; none unless said
    #[arg(long, value_name = "RANGE")]
    pub cidr6: Option<Ipv6Net>,
    /// The length of each node's part of the range: 24 is 253 addresses
    #[arg(long, value_name = "BITS", default_value_t = DEFAULT_NODE_PREFIX)]
    pub node_prefix: u8,
    /// What carries traffic between nodes
    #[arg(long, value_enum, default_value_t = BackendWord::Wireguard)]
    pub backend: BackendWord,
    /// The domain of names
    #[arg(long, value_name = "DOMAIN", default_value = DEFAULT_DOMAIN)]
    pub domain: String,
    /// The UDP port of links [default: 51820; with vxlan 4789]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The largest packet in bytes; what fits unless said
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Nodes replace the keys of encrypted links after so many days; 0: only when asked [default: 30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_KEY_DAYS)))]
    pub key_days: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendWord {
    /// Encrypted, by the kernel where it can, else by a process
    Wireguard,
    /// Encrypted, by a process on every node
    WireguardUser,
    /// In clear, for trusted networks
    Vxlan,
    /// In clear, for nodes on one segment
    HostGw,
    /// Links are made by somebody else
    None,
}
