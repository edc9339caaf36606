//! The command line of virtual addresses.

use clap::{Args, Subcommand};
use schemas::names::{NodeName, ResourceName};

use super::Waiting;

#[derive(Debug, Subcommand)]
pub enum VirtualIpVerb {
    /// Have another node hold it
    #[command(
        after_help = "Writes the node before all others into `spec.prefer`, and waits until it holds the address.\nIt goes back there whenever that node can hold it.\nExample: reeve virtualip move web --to n2"
    )]
    Move(VirtualIpMoveArgs),
}

#[derive(Debug, Args)]
pub struct VirtualIpMoveArgs {
    /// The VirtualIP's name
    #[arg(value_name = "NAME")]
    pub name: ResourceName,
    /// Who is to hold it
    #[arg(long, value_name = "NODE")]
    pub to: NodeName,
    #[command(flatten)]
    pub waiting: Waiting,
}
