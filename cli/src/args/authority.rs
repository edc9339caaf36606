//! The command line of replacing the cluster's authority.

use std::time::Duration;

use clap::Args;
use schemas::names::NodeName;

use super::duration;

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Say how far it is, and change nothing
    #[arg(long, conflicts_with_all = ["without", "withdraw", "yes", "no_wait"])]
    pub status: bool,
    /// Leave these nodes behind: they are shut out, and join again with a new token
    #[arg(long, value_name = "NODE,NODE", value_delimiter = ',')]
    pub without: Vec<NodeName>,
    /// Take a new authority back that is announced and issues nothing yet
    #[arg(long, conflicts_with_all = ["without", "yes", "no_wait"])]
    pub withdraw: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait; it goes on afterwards
    #[arg(long, value_parser = duration, default_value = "10m", value_name = "DURATION")]
    pub timeout: Duration,
    /// Return as soon as the new authority is announced
    #[arg(long)]
    pub no_wait: bool,
}
