//! The arguments of the verbs about registries.

use std::path::PathBuf;

use clap::Args;
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
pub struct LogoutArgs {
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// Which account, where there are several
    #[arg(short, long, value_name = "NAME")]
    pub user: Option<String>,
}
