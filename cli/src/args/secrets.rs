//! The arguments of the verbs about secrets. None takes a value: those are typed, piped or read from a file.

use clap::{Args, Subcommand};
use schemas::names::ResourceName;

use super::Waiting;

#[derive(Debug, Subcommand)]
pub enum SecretVerb {
    /// Give a secret a value: asked for, unseen, or read from a file or a pipe
    #[command(
        after_help = "Up to 64 KiB, of any kind, byte for byte. Whoever gets it is replaced, one instance after the other; that is waited for.\nExample: reeve secret set db-password\n         reeve secret set tls-key --file key.pem\n         openssl rand -hex 32 | reeve secret set token"
    )]
    Set(SetArgs),
    /// List secrets, with their editions and users
    #[command(visible_alias = "list", after_help = "Example: reeve secret ls -A")]
    Ls(LsArgs),
    /// Delete a secret and its value
    #[command(after_help = "Refused while a service gets it.\nExample: reeve secret rm db-password")]
    Rm(RmArgs),
    /// Put the value before, or another kept edition, in force again
    #[command(after_help = "The last 5 editions are kept.\nExample: reeve secret undo db-password")]
    Undo(UndoArgs),
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[arg(value_name = "NAME")]
    pub name: ResourceName,
    /// Read the value from this file; `-` is standard input
    #[arg(long, value_name = "PATH")]
    pub file: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also while services get it: those keep the edition they have, where they run
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct UndoArgs {
    #[arg(value_name = "NAME")]
    pub name: ResourceName,
    /// Which edition; the one before when absent
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub edition: Option<u64>,
    #[command(flatten)]
    pub waiting: Waiting,
}
