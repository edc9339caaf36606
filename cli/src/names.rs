//! `reeve names`, which the agent starts and people do not: the process that answers containers' questions about names, apart
//! from the agent, so that an agent's restart or upgrade leaves nobody without an answer.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::Verdict;
use crate::args::LogArgs;
use crate::failure::{Exit, Failure};
use crate::logging;

/// What the agent says of the server.
#[derive(Clone, Debug, Args)]
pub struct NamesArgs {
    /// Its copy of what to answer, its pid file and its log
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where to listen, by UDP and TCP; repeatable
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// Names this host's own servers
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

/// `reeve names`. It has its runtime itself: before its place is taken there may be no second thread.
pub fn names(args: &NamesArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    let options = ::network::names::Options {
        dir: args.dir.clone(),
        listen: args.listen.clone(),
        resolv_conf: args.resolv_conf.clone(),
    };
    match ::network::names::serve(options) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Failed, "cannot answer names")
            .because(&error)
            .help("the agent starts this by itself: see `reeve doctor`")),
    }
}
