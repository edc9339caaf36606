//! The arguments of the verbs about registries.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use schemas::names::Namespace;

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// `host` or `host:port`, as images name it; docker.io is Docker's own
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// The user's name at the registry; asked for when absent
    #[arg(short, long, value_name = "NAME")]
    pub user: Option<String>,
    /// Read the password from standard input; else it is asked for
    #[arg(long)]
    pub password_stdin: bool,
    /// Use the account for these images only: the beginning of their path, such as `team`
    #[arg(long, value_name = "PATH")]
    pub images: Vec<String>,
    /// Use the account for instances of these namespaces only
    #[arg(long = "only-for", value_name = "NAMESPACE")]
    pub namespaces: Vec<Namespace>,
    /// The authority that signed the registry's certificate, PEM, where this host does not know it
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// The registry speaks plain HTTP; every engine needs the same in its settings
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Debug, Args)]
pub struct RegistriesArgs {
    #[command(subcommand)]
    pub verb: Option<RegistriesVerb>,
}

#[derive(Debug, Subcommand)]
pub enum RegistriesVerb {
    /// List the tags that a registry has of an image; of one tag, its digest
    #[command(
        after_help = "Example: reeve registries tags registry.example:5000/team/app\n         reeve registries tags team/app:1 --user ci"
    )]
    Tags(TagsArgs),
    /// List the images that a registry has; of docker.io, those that fit a word
    #[command(
        after_help = "Example: reeve registries search registry.example:5000 app\n         reeve registries search docker.io redis"
    )]
    Search(SearchArgs),
}

#[derive(Debug, Args)]
pub struct TagsArgs {
    /// As a manifest names it: `host:port/path`, with a tag to see its digest
    #[arg(value_name = "IMAGE")]
    pub image: String,
    #[command(flatten)]
    pub look: LookArgs,
}

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// `host` or `host:port`, as images name it; docker.io is Docker's own
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// What the name must have in it
    #[arg(value_name = "WORD")]
    pub word: Option<String>,
    #[command(flatten)]
    pub look: LookArgs,
}

/// How a registry is looked at.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// Ask in this user's name; the password is asked for. What `reeve login` keeps is sealed, and is not read for this
    #[arg(short, long, value_name = "NAME")]
    pub user: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "user")]
    pub password_stdin: bool,
    /// The authority that signed the registry's certificate, PEM, where this host does not know it
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// The registry speaks plain HTTP; known of those that are declared so
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Debug, Args)]
pub struct LogoutArgs {
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// Which account, where there are several
    #[arg(short, long, value_name = "NAME")]
    pub user: Option<String>,
}
