//! The command line of values of people's own.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use schemas::keys::own_name;

#[derive(Debug, Subcommand)]
pub enum KvVerb {
    /// Print a value, as it was set
    #[command(after_help = "Example: reeve kv get deploy/last")]
    Get {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
    /// Set a value, up to 8 KiB; not for secrets: who reads the store reads it
    #[command(after_help = "Example: reeve kv set deploy/last 1.4.2\n         reeve kv set motd --file motd.txt")]
    Set(KvSetArgs),
    /// Remove values
    #[command(visible_alias = "rm", after_help = "Example: reeve kv del deploy/last")]
    Del {
        #[arg(value_name = "NAME", required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// List values
    #[command(visible_alias = "list", after_help = "Example: reeve kv ls deploy/")]
    Ls {
        /// Only names that begin so
        #[arg(value_name = "BEGINNING", default_value = "", hide_default_value = true)]
        beginning: String,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["value", "file"]))]
pub struct KvSetArgs {
    /// Letters, digits and `._-`, in parts between slashes
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,
    #[arg(value_name = "VALUE")]
    pub value: Option<String>,
    /// A file with the value, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only if there is none of that name yet
    #[arg(long)]
    pub new: bool,
}

fn name(text: &str) -> Result<String, String> {
    if own_name(text) {
        Ok(text.to_owned())
    } else {
        Err("write letters, digits and `._-` in parts between single slashes, 256 at most: deploy/last".to_owned())
    }
}
