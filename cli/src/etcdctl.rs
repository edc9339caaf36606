//! `reeve admin etcdctl`: etcd's own program, told where the store is and with which certificates it is reached. `admin.rs`
//! calls it. It asks the store nothing first, since people need it most when the store does not answer.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use runtime::TlsFiles;

use crate::Verdict;
use crate::args::{Common, EtcdctlArgs};
use crate::connect::{connect, reach};
use crate::failure::{Exit, Failure};

/// How long the audit record may keep the program waiting.
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn etcdctl(common: &Common, args: &EtcdctlArgs) -> Verdict {
    let (endpoints, tls, _told) = reach(common)?;
    if let Ok(Ok(connection)) = tokio::time::timeout(PATIENCE, connect(common)).await {
        crate::audit::begin(&connection);
    }
    let mut command = Command::new("etcdctl");
    // What a person's shell says of another store is not about this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_")) {
        command.env_remove(name);
    }
    command.envs(settings(&endpoints, tls.as_ref())).args(&args.args);
    let status = tokio::task::spawn_blocking(move || command.status())
        .await
        .map_err(|error| Failure::new(Exit::Failed, "cannot wait for etcdctl").because(&error))?
        .map_err(|error| {
            let failure = Failure::new(Exit::Failed, "cannot run etcdctl").because(&error);
            if error.kind() == ErrorKind::NotFound {
                failure.help("install it on this machine: `apt install etcd-client`, or from etcd's releases")
            } else {
                failure
            }
        })?;
    let code = status
        .code()
        .or(status.signal().map(|number| 128 + number))
        .unwrap_or(1);
    if code == 0 {
        return Ok(Exit::Done);
    }
    crate::audit::end(u8::try_from(code).unwrap_or(1), false).await;
    std::process::exit(code);
}

/// etcdctl's variables: they hold for every one of its verbs, and show in no list of processes.
fn settings(endpoints: &[String], tls: Option<&TlsFiles>) -> Vec<(&'static str, OsString)> {
    let mut all = vec![
        ("ETCDCTL_API", "3".into()),
        ("ETCDCTL_ENDPOINTS", endpoints.join(",").into()),
    ];
    if let Some(TlsFiles { ca, identity }) = tls {
        all.push(("ETCDCTL_CACERT", ca.into()));
        if let Some((cert, key)) = identity {
            all.push(("ETCDCTL_CERT", cert.into()));
            all.push(("ETCDCTL_KEY", key.into()));
        }
    }
    all
}
