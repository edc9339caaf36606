//! The command line of people who work from a machine of their own: logging in to clusters, choosing between them, and who
//! else may.

use clap::{Args, Subcommand};
use membership::seeds::Seeds;
use schemas::names::ResourceName;
use trust::identity::Name;

use super::seats::TokenArgs;

#[derive(Debug, Args)]
pub struct LoginClusterArgs {
    /// All seeds of the cluster, or one of them
    #[arg(long, value_name = "HOST,HOST", env = "REEVE_SEEDS", hide_env_values = true)]
    pub seeds: Seeds,
    #[command(flatten)]
    pub token: TokenArgs,
    /// What the cluster is to be called here [default: made of the first seed's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<ResourceName>,
}

#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// List the clusters that this user has logged in to
    #[command(visible_alias = "list")]
    Ls,
    /// Work with this cluster from now on; `here` for what runs on this host
    #[command(after_help = "Example: reeve context use prod\n         reeve context use here")]
    Use {
        #[arg(value_name = "NAME")]
        name: ResourceName,
    },
    /// Say everything about one; about the one in use when no name is given
    #[command(after_help = "Example: reeve context show")]
    Show {
        #[arg(value_name = "NAME")]
        name: Option<ResourceName>,
    },
    /// Forget clusters: the key and the certificate on this machine are removed
    #[command(
        after_help = "The certificate counts until it ends: `reeve person rm` ends it at once.\nExample: reeve context rm old"
    )]
    Rm {
        #[arg(value_name = "NAME", required = true)]
        names: Vec<ResourceName>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PersonVerb {
    /// List who has a certificate, with which rights
    #[command(visible_alias = "list")]
    Ls,
    /// Shut people out at once, what they have open included
    #[command(
        after_help = "On a seed, as root, or with the right `admin` from elsewhere.\nExample: reeve person rm anna"
    )]
    Rm(PersonRmArgs),
}

#[derive(Debug, Args)]
pub struct PersonRmArgs {
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<Name>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Why, for those who ask later
    #[arg(long, value_name = "NOTE")]
    pub note: Option<String>,
}
