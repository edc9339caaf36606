//! The arguments of the verbs about files.

use clap::{Args, Subcommand};
use schemas::names::ResourceName;

use super::Waiting;

#[derive(Debug, Args)]
pub struct UploadArgs {
    /// The file, up to 8 MiB; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Its name in the namespace [default: made of the file's name]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct DownloadArgs {
    #[arg(value_name = "NAME")]
    pub name: ResourceName,
    /// Where to; standard output when absent, or `-`
    #[arg(value_name = "FILE")]
    pub to: Option<String>,
    /// An older edition; the newest when absent
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub edition: Option<u64>,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct FilesArgs {
    #[command(subcommand)]
    pub verb: Option<FilesVerb>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, Subcommand)]
pub enum FilesVerb {
    /// Put the edition before, or another one, in force again as a new edition
    #[command(after_help = "Example: reeve files undo nginx-conf\n         reeve files undo nginx-conf --edition 3")]
    Undo(UndoArgs),
    /// Remove content that no document and no kept edition refers to
    #[command(after_help = "Example: reeve files prune --dry-run")]
    Prune(PruneArgs),
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

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Say what would go, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}
