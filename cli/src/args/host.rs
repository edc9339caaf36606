//! The command line of a whole host: installing it, taking it away again, and looking whether all is well.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use membership::seeds::{Host, Seeds};
use schemas::names::{NodeName, ResourceName};

use super::seats::TokenArgs;
use super::{duration, label};

#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// All seeds, by address or name, in any order: 1, 3, 5 or 7; the same on every host
    #[arg(long, value_name = "HOST,HOST", env = "REEVE_SEEDS", hide_env_values = true)]
    pub seeds: Option<Seeds>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// The token itself; others on this host can read it meanwhile, so prefer --token-file
    #[arg(long = "token", value_name = "TOKEN", conflicts_with = "token_file")]
    pub token_text: Option<String>,
    /// Which of the seeds this host is [default: the one with an address of this host]
    #[arg(long, value_name = "HOST")]
    pub host: Option<Host>,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME", env = "REEVE_NODE", hide_env_values = true)]
    pub node: Option<NodeName>,
    /// The Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "HOST", env = "DOCKER_HOST", hide_env_values = true)]
    pub docker: Option<String>,
    /// A label for placement; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// A role for placement, where no Node resource names any; repeatable
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<ResourceName>,
    /// The address or name under which the outside reaches this node; `auto`: the one that leads to the seeds
    #[arg(long, value_name = "IP|NAME|auto")]
    pub public_address: Option<String>,
    /// Allow `reeve exec`, `attach`, `cp` and `port-forward` on this node
    #[arg(long)]
    pub allow_exec: bool,
    /// A seed only: run no agent, and so no containers, on this host
    #[arg(long)]
    pub no_agent: bool,
    /// The store's program, on seeds
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/etcd")]
    pub etcd_program: PathBuf,
    /// Check this host, say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the others; what is installed goes on afterwards
    #[arg(long, value_parser = duration, default_value = "1h", value_name = "DURATION")]
    pub timeout: Duration,
    /// Return as soon as all is started
    #[arg(long)]
    pub no_wait: bool,
    /// Say what is installed here, and whether it runs
    #[arg(long, conflicts_with_all = ["dry_run", "supervise", "no_wait"])]
    pub status: bool,
    /// Run what is installed here, and stay: after a reboot, where systemd does not run
    #[arg(long, conflicts_with_all = ["dry_run", "no_wait"])]
    pub supervise: bool,
}

#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Remove the data, too: a seed's copy of the store, the node's keys, files and records, and all logs
    #[arg(long)]
    pub purge_data: bool,
    /// Go on where the cluster cannot be told that this node leaves
    #[arg(long)]
    pub force: bool,
    /// Stop this seed though the others cannot go on without it: the cluster ends, or stands still
    #[arg(long)]
    pub end_cluster: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait until what ran here is elsewhere
    #[arg(long, value_parser = duration, default_value = "5m", value_name = "DURATION")]
    pub timeout: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The Docker engine of this host [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "HOST", env = "DOCKER_HOST", hide_env_values = true)]
    pub docker: Option<String>,
    /// The store's program, on seeds
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/etcd")]
    pub etcd_program: PathBuf,
    /// Leave out what is well
    #[arg(long)]
    pub quiet: bool,
}
