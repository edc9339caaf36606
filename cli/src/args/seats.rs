//! The command line of hosts of one's own: seeds, tokens, and how an agent joins.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use membership::seeds::{Host, Seeds};
use schemas::names::NodeName;
use trust::identity::{Name, Rights};

use super::{LogArgs, duration};

/// A token, as a person gives it.
#[derive(Clone, Debug, Default, Args)]
pub struct TokenArgs {
    /// A file that holds the token, or - for standard input
    #[arg(long, value_name = "FILE", env = "REEVE_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// All seeds, by address or name, in any order: 1, 3, 5 or 7
    #[arg(long, value_name = "HOST,HOST", env = "REEVE_SEEDS", hide_env_values = true)]
    pub seeds: Seeds,
    /// Which of them this host is [default: the one with an address of this host]
    #[arg(long, value_name = "HOST")]
    pub host: Option<Host>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// The store's program
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/etcd")]
    pub etcd_program: PathBuf,
    /// How long the certificates of hosts last; each is renewed at a third of its life
    #[arg(long, value_parser = duration, default_value = "365d", value_name = "DURATION")]
    pub certificate_life: Duration,
    /// Where the controller's /metrics, /healthz, /readyz and /sd are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9463")]
    pub metrics: std::net::SocketAddr,
    /// HOST:PORT under which others reach that address [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Print a token that a new cluster is installed with
    #[command(
        after_help = "Give it to every host of the new cluster; hosts join with it for a day.\nWho has it in that time can be the cluster: keep it as a password.\nExample: reeve token install > token"
    )]
    Install,
    /// Print a token that nodes join with, a person logs in with, or a lost seed comes back with
    #[command(
        after_help = "On a seed, as root; for nodes and people also with the right `admin` from elsewhere.\nA person uses it once, with `reeve login-cluster`. Who has a seed's token in its time\ncan be the cluster: keep it as a password.\nExample: reeve token create --ttl 1h --uses 2\n         reeve token create --person anna --rights operator+exec\n         reeve token create --seed 10.0.0.3"
    )]
    Create(TokenCreateArgs),
    /// List the tokens that nodes and people may join with
    #[command(visible_alias = "list")]
    Ls,
    /// Withdraw tokens: nobody joins with them any more
    #[command(after_help = "Example: reeve token rm 3f1c0a77b2d4e6f8")]
    Rm {
        #[arg(value_name = "ID", required = true)]
        ids: Vec<trust::token::TokenId>,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// How long it can be used, at most 30d
    #[arg(long, value_parser = duration, default_value = "1h", value_name = "DURATION")]
    pub ttl: Duration,
    /// How many nodes may join with it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// Only a node of this name; repeatable
    #[arg(long = "node", value_name = "NAME")]
    pub nodes: Vec<NodeName>,
    /// A person of this name instead of nodes, once
    #[arg(long, value_name = "NAME", requires = "rights", conflicts_with_all = ["nodes", "uses"])]
    pub person: Option<Name>,
    /// What the person may do: `admin`, `operator`, `namespaces=shop,web`, or `viewer`. Commands in containers also with
    /// `operator+exec` and `namespaces=shop,web+exec`, on nodes with `operator+host`, both with `operator+exec+host`; only
    /// those that are declared by name with `viewer+run` or `viewer+run=shop,web`
    #[arg(long, value_name = "RIGHTS", requires = "person")]
    pub rights: Option<Rights>,
    /// This seed, whose disk was lost, and the node on its host, instead of nodes; on another seed, once
    #[arg(long, value_name = "HOST", conflicts_with_all = ["nodes", "uses", "person"])]
    pub seed: Option<Host>,
}
