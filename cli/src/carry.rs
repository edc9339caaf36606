//! `reeve wireguard`, which the agent starts and people do not: the process that carries a device's packets, apart from the
//! agent, so that an agent's restart or upgrade ends no link.

use std::path::PathBuf;

use clap::Args;

use crate::Verdict;
use crate::args::LogArgs;
use crate::failure::{Exit, Failure};
use crate::logging;

/// What the agent says of the device.
#[derive(Clone, Debug, Args)]
pub struct WireguardArgs {
    /// The device's name, at most 15 letters
    #[arg(long, value_name = "NAME", value_parser = device)]
    device: String,
    /// The largest packet inside, in bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,
    /// Where its pid file and its log are
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

fn device(name: &str) -> Result<String, String> {
    let ours = name.starts_with("rv") && name.len() <= 15 && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if ours {
        Ok(name.to_owned())
    } else {
        Err("a device of Reeve's begins with `rv` and has at most 15 letters and digits".to_owned())
    }
}

/// `reeve wireguard`. It has its runtime itself: before its place is taken there may be no second thread.
pub fn wireguard(args: &WireguardArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    match network::wireguard::run(&args.device, args.mtu, args.dir.clone()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Failed, "cannot carry packets")
            .because(&error)
            .help("the agent starts this by itself: see `reeve doctor`")),
    }
}
