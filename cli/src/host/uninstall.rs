//! `reeve uninstall`: a node retires itself and waits until it runs nothing, a seed goes out of the store's members where the
//! rest can go on without it; then what runs here is stopped and what `reeve install` made is removed. Data stays unless it is
//! named. Before any of that it says what goes and what stays.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::engine::{ContainerRuntime as _, ContainerState};
use membership::etcd::client_url;
use membership::keep::{CONTEXT, Context, Keep};
use membership::leave::{LeaveError, leave};
use membership::members::{self, Leave, may_leave};
use membership::seeds::Host;
use runtime::TlsFiles;
use serde_json::json;

use super::install::{formed, remove};
use super::{Installed, Places, service};
use crate::Verdict;
use crate::args::Common;
use crate::args::host::UninstallArgs;
use crate::daemons::engine;
use crate::failure::{Exit, Failure};
use crate::output::{self, complain, print};
use crate::seats::failed;

/// A member's store that left: it can never be used again, and may hold what somebody wants to look at.
const LEFT: &str = "etcd.left";

/// What becomes of this host's part in the cluster.
#[derive(Debug)]
struct Parting {
    /// The node retires itself.
    retires: bool,
    /// The member to take out of the store, and where another answers.
    member: Option<(u64, String, TlsFiles)>,
}

/// `reeve uninstall`.
pub async fn uninstall(common: &Common, args: &UninstallArgs) -> Verdict {
    let places = Places::of(common);
    let Some(installed) = Installed::read(&places)? else {
        return Err(Failure::new(
            Exit::Failed,
            format!("nothing is installed in {}", places.base.display()),
        )
        .help("--data-dir names another directory; what was started by hand is stopped by hand"));
    };
    let parting = parting(args, &places, &installed).await?;
    let (goes, stays) = told(args, &places, &installed, &parting);
    if !common.output.is_for_machines() {
        let list = |lines: &[String]| lines.iter().map(|line| format!("  {line}\n")).collect::<String>();
        print(&format!("this goes:\n{}this stays:\n{}", list(&goes), list(&stays)));
    }
    if !args.yes {
        if !output::can_ask() {
            return Err(Failure::usage(format!(
                "this would take away {}, and there is no terminal to ask on",
                installed.who()
            ))
            .help("add --yes if that is meant"));
        }
        if !output::ask(&format!("Uninstall {}?", installed.who())) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    crate::audit::note(installed.who());
    crate::audit::begin_here(common).await;
    if parting.retires {
        retire(args, &places, &installed).await?;
    }
    if let Some((id, through, tls)) = &parting.member {
        members::remove(through, Some(tls), *id).await.map_err(|error| {
            failed(&error).help("see `reeve doctor`; nothing was stopped on this host, so it can be run again")
        })?;
        complain("this seed is no longer one of the store's members\n");
    }
    // The store may end with what is stopped: this is the last moment to say so there.
    crate::audit::end_of_a_seed().await;
    service::stop(&installed, &places).await?;
    if let (Some(cluster), Some(node)) = (&installed.cluster, &installed.node) {
        agent::walls::raze(&cluster.to_string(), node)
            .await
            .unwrap_or_else(|why| {
                complain(&format!(
                    "what keeps containers from the cluster's ports is still there: {why}\n"
                ));
            });
    }
    if let (Some(cluster), Some(node)) = (&installed.cluster, &installed.node)
        && let Ok(cluster) = cluster.to_string().parse()
    {
        agent::raze(&cluster, node, &places.agent())
            .await
            .unwrap_or_else(|why| {
                complain(&format!(
                    "this host's end of the cluster's network is still there: {why}\n"
                ));
            });
    }
    if parting.member.is_some() {
        // A store that has been taken out never comes back: with it the seed could not take its place again.
        let (store, left) = (places.server().join("etcd"), places.server().join(LEFT));
        remove(&left)?;
        std::fs::rename(&store, &left).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot rename {}", store.display())).because(&error)
        })?;
    }
    if args.purge_data {
        for dir in [places.server(), places.agent(), places.supervisor()] {
            remove(&dir)?;
        }
    }
    remove(&places.install())?;
    // Only when nothing is in it any more.
    let _ = std::fs::remove_dir(&places.base);
    if common.output.is_for_machines() {
        print(&output::json(
            &json!({ "uninstalled": installed, "removed": goes, "kept": stays }),
        ));
    } else {
        print(&format!("{} is uninstalled\n", installed.who()));
        if let (Some(node), true, false) = (&installed.node, parting.retires, args.purge_data) {
            print(&format!(
                "the node is retired: when it is installed again, `reeve uncordon {node}` takes it back\n"
            ));
        }
    }
    Ok(Exit::Done)
}

/// What there is to do in the cluster, or why this host cannot go.
async fn parting(args: &UninstallArgs, places: &Places, installed: &Installed) -> Result<Parting, Failure> {
    let mut parting = Parting {
        retires: installed.node.is_some() && places.agent().join("member").join(CONTEXT).exists(),
        member: None,
    };
    let Some(host) = installed.host.as_ref().filter(|_| formed(places)) else {
        return Ok(parting);
    };
    let leave = if args.end_cluster {
        None
    } else {
        Some(member(places, host).await?)
    };
    let end = "--end-cluster stops it all the same";
    match leave {
        None => parting.retires = false,
        Some((Leave::Gone, _)) => {}
        Some((Leave::May { id, through }, tls)) => parting.member = Some((id, through, tls)),
        Some((Leave::Last, _)) => {
            return Err(
                Failure::new(Exit::Conflict, "this is the only seed: with it the cluster ends").help(format!(
                    "{end}; containers keep running, and the data stays unless --purge-data is given"
                )),
            );
        }
        Some((Leave::TooFew { healthy, rest, silent }, _)) => {
            let message = format!(
                "the others cannot go on without this seed: {healthy} of {rest} answer, and more than half must"
            );
            return Err(Failure::new(Exit::Conflict, message)
                .detail(format!("not well: {}", silent.join(", ")))
                .help(format!(
                    "bring them back first (`reeve doctor` says what is wrong); {end}"
                )));
        }
    }
    Ok(parting)
}

async fn member(places: &Places, host: &Host) -> Result<(Leave, TlsFiles), Failure> {
    let keep = Keep::beside(&places.server());
    let Some(context) = Context::in_dir(&places.server()) else {
        return Err(Failure::new(
            Exit::Failed,
            format!("{} does not say where the store is", places.server().display()),
        ));
    };
    // As the controller, which may change members; a person may not everywhere.
    let tls = TlsFiles {
        ca: keep.path("ca.crt"),
        identity: Some((keep.path("controller.crt"), keep.path("controller.key"))),
    };
    let seen = members::look(&context.endpoints, Some(&tls))
        .await
        .map_err(|error| failed(&error))?;
    if seen.iter().all(|one| one.id.is_none()) {
        return Err(
            Failure::new(Exit::Unreachable, "the store does not say who its members are")
                .detail(
                    seen.iter()
                        .filter_map(|one| one.health.clone().err())
                        .next()
                        .unwrap_or_default(),
                )
                .help("`reeve doctor` says what is wrong; --end-cluster stops this seed all the same"),
        );
    }
    Ok((may_leave(&seen, &client_url(host)), tls))
}

/// What goes and what stays, for people.
fn told(args: &UninstallArgs, places: &Places, installed: &Installed, parting: &Parting) -> (Vec<String>, Vec<String>) {
    let mut goes = Vec::new();
    let mut stays = Vec::new();
    if let (Some(node), true) = (&installed.node, parting.retires) {
        goes.push(format!(
            "node {node} is retired: what it runs goes elsewhere, and is stopped here"
        ));
    } else if installed.node.is_some() {
        stays.push("containers keep running; nobody looks after them".to_owned());
    }
    match (&installed.host, &parting.member) {
        (Some(host), Some(_)) => goes.push(format!("seed {host} goes out of the store's members")),
        (Some(host), None) if args.end_cluster => goes.push(format!("seed {host} stops; the cluster may end with it")),
        (Some(_), None) | (None, _) => {}
    }
    let names: Vec<&str> = installed.programs.iter().map(|program| program.name.as_str()).collect();
    goes.push(format!("what runs here: {}", names.join(", ")));
    goes.extend(
        service::unit_files(installed)
            .iter()
            .map(|file| file.display().to_string()),
    );
    goes.push(places.install().display().to_string());
    let data: Vec<PathBuf> = [places.server(), places.agent(), places.supervisor()]
        .into_iter()
        .filter(|dir| dir.exists())
        .collect();
    for dir in data {
        let place = dir.display();
        let what = if dir == places.server() {
            format!("{place} (this seed's copy of the store, its keys)")
        } else if dir == places.agent() {
            format!("{place} (the node's keys, files and records)")
        } else {
            format!("{place} (logs)")
        };
        if args.purge_data { &mut goes } else { &mut stays }.push(what);
    }
    stays.push("Docker, its images and volumes".to_owned());
    stays.push(installed.binary.display().to_string());
    (goes, stays)
}

/// The node retires itself, and what it ran goes elsewhere.
async fn retire(args: &UninstallArgs, places: &Places, installed: &Installed) -> Result<(), Failure> {
    let keep = Keep::beside(&places.agent().join("member"));
    if let Err(error) = leave(&keep, &installed.seeds, "its host was uninstalled").await {
        if args.force {
            let name = installed.node.as_ref().map_or_else(String::new, ToString::to_string);
            complain(&format!(
                "the cluster was not told: run `reeve node rm {name}` on a seed ({})\n",
                runtime::chain(&error)
            ));
            return Ok(());
        }
        let failure = failed(&error);
        return Err(match error {
            LeaveError::Join(_) => failure.help("--force goes on without"),
            LeaveError::Call(_) => failure.help(
                "see that a seed can be reached (`reeve doctor`); or go on with --force, and run `reeve node rm` on a seed",
            ),
        });
    }
    complain("the node is retired: waiting until it runs nothing\n");
    let began = Instant::now();
    let mut said = usize::MAX;
    loop {
        match running(installed).await {
            Ok(0) => return Ok(()),
            Ok(count) if count != said => {
                complain(&format!("  {} left\n", output::count(count, "container")));
                said = count;
            }
            Ok(_) => {}
            // Without an engine nothing runs that could be waited for.
            Err(why) => {
                complain(&format!("  {why}: not waiting for its containers\n"));
                return Ok(());
            }
        }
        if began.elapsed() >= args.timeout {
            return Err(Failure::new(
                Exit::TimedOut,
                format!(
                    "{} still here after {}",
                    output::count(said, "container"),
                    output::short(args.timeout.as_secs())
                ),
            )
            .help(
                "`reeve status` on a seed says what holds them; nothing was stopped or removed, so it can be run again",
            ));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// How many of the cluster's containers run on this host's engine.
async fn running(installed: &Installed) -> Result<usize, String> {
    let words = installed
        .programs
        .iter()
        .filter(|program| program.name == "agent")
        .flat_map(|program| &program.args);
    let docker = words.skip_while(|word| *word != "--docker").nth(1);
    let engine = engine(docker.map(String::as_str)).map_err(|failure| failure.message)?;
    let Some(cluster) = installed.cluster else { return Ok(0) };
    let listed = engine
        .list(&cluster.to_string())
        .await
        .map_err(|error| error.to_string())?;
    Ok(listed.iter().filter(|one| one.state == ContainerState::Running).count())
}
