//! The command line of what only a seed's authority does: replacing itself, and letting another host take a name over.

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

#[derive(Debug, Args)]
pub struct ReplaceArgs {
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// Replace it though it answers: it is shut out, and what runs there goes on beside the new host's
    #[arg(long)]
    pub although_it_answers: bool,
    /// How long the token can be used, at most 30d
    #[arg(long, value_parser = duration, default_value = "1d", value_name = "DURATION")]
    pub ttl: Duration,
    /// Why, for those who ask later
    #[arg(long)]
    pub note: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}
