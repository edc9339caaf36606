//! `reeve relay`, which the agent starts and people do not: the process that carries connections to services, apart from the
//! agent, so that an agent's restart or upgrade cuts none.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use crate::Verdict;
use crate::args::LogArgs;
use crate::failure::{Exit, Failure};
use crate::logging;

/// What the agent says of the relay.
#[derive(Clone, Debug, Args)]
pub struct RelayArgs {
    /// Its table, its pid file and its log
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The node's address in the cluster's network
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    #[command(flatten)]
    log: LogArgs,
}

/// `reeve relay`. It has its runtime itself: before its place is taken there may be no second thread.
pub fn relay(args: &RelayArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    let relay = ::network::relay::Relay {
        dir: args.dir.clone(),
        source: args.source,
    };
    match ::network::relay::serve(&relay) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Failed, "cannot relay")
            .because(&error)
            .help("the agent starts this by itself: see `reeve doctor`")),
    }
}
