//! `reeve install`: looks at this host, makes it a seed or a node, starts what it runs for good, and waits until it works,
//! telling who is missed. A run that fails, or that Ctrl-C ends, takes back what it made; a run on an installed host says what
//! is there and changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use membership::bootstrap::Stage;
use membership::join::join_token;
use membership::keep::{Context, Keep};
use membership::seed::{KNOWN, Known};
use membership::seeds::{Host, Seeds};
use runtime::{Shutdown, Store as _};
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use serde_json::json;
use trust::key::Fingerprint;
use trust::token::Token;

use super::check::{self, Level, Line};
use super::look::{Wanted, judge, look};
use super::{Installed, Places, Program, of_keep, service};
use crate::Verdict;
use crate::args::Common;
use crate::args::host::InstallArgs;
use crate::connect::prepare_in;
use crate::daemons::{node_name, public_address, signals};
use crate::failure::{Exit, Failure};
use crate::output::{self, complain, print};
use crate::seats::{self, missing, myself, of_join};

/// A program that ended so often before it ever worked will not work by being started again.
const GIVE_UP_AFTER: u32 = 3;
/// All seeds are there and the store is not: after so long its ports are tried.
const TRY_PORTS_AFTER: Duration = Duration::from_secs(8);

/// `reeve install`.
pub async fn install(common: &Common, args: &InstallArgs) -> Verdict {
    let places = Places::of(common);
    if args.supervise {
        return service::supervise(&places).await;
    }
    if common.etcd.is_some() && std::env::var_os("REEVE_ETCD").is_none() {
        return Err(
            Failure::usage("`reeve install` is for clusters with seeds; --etcd is not for it").help(
                "on a store of yours, run `reeve controller` and `reeve agent`: manifests/systemd has units for both",
            ),
        );
    }
    let found = Installed::read(&places)?;
    if args.status {
        return match found {
            Some(found) => status(common, &places, &found, None).await,
            None => Err(Failure::new(
                Exit::Failed,
                format!("nothing is installed in {}", places.base.display()),
            )
            .help("`reeve install --help` says how; --data-dir names another directory")),
        };
    }
    if let Some(found) = &found
        && (found.complete || args.dry_run)
    {
        let differs = args.seeds.is_some() && programs_of(common, args, &places, found)? != found.programs;
        return status(common, &places, found, Some(differs)).await;
    }
    let given = told_token(args)?;
    let shutdown = signals()?;
    match found {
        Some(found) => go_on(common, args, &places, found, given, &shutdown).await,
        None => begin(common, args, &places, given, &shutdown).await,
    }
}

/// The token, from wherever it was given.
fn told_token(args: &InstallArgs) -> Result<Option<Token>, Failure> {
    match &args.token_text {
        None => seats::token(&args.token),
        Some(text) => {
            complain(
                "warning: a token on the command line can be read by others on this host while this runs; use --token-file\n",
            );
            text.trim()
                .parse()
                .map(Some)
                .map_err(|error: trust::token::TokenError| Failure::usage("--token is no token").because(&error))
        }
    }
}

/// What the programs are told. The same for the same options, on every run.
fn programs(
    common: &Common,
    args: &InstallArgs,
    places: &Places,
    seeds: &Seeds,
    host: Option<&Host>,
    node: Option<&NodeName>,
) -> Vec<Program> {
    let text = |path: &Path| path.display().to_string();
    let mut shared = vec![
        "--seeds".to_owned(),
        seeds.to_string(),
        "--token-file".to_owned(),
        text(&places.token()),
    ];
    if common.prefix.as_str() != schemas::keys::DEFAULT_ROOT {
        shared.extend(["--prefix".to_owned(), common.prefix.as_str().to_owned()]);
    }
    let mut programs = Vec::new();
    if let Some(host) = host {
        let mut words = vec!["server".to_owned(), "--data-dir".to_owned(), text(&places.server())];
        words.extend(shared.clone());
        words.extend([
            "--host".to_owned(),
            host.to_string(),
            "--etcd-program".to_owned(),
            text(&args.etcd_program),
        ]);
        programs.push(Program {
            name: "server".to_owned(),
            args: words,
        });
    }
    if let Some(node) = node {
        let mut words = vec!["agent".to_owned(), "--data-dir".to_owned(), text(&places.agent())];
        words.extend(shared);
        words.extend(["--node".to_owned(), node.to_string()]);
        if let Some(docker) = &args.docker {
            words.extend(["--docker".to_owned(), docker.clone()]);
        }
        for (key, value) in &args.labels {
            words.extend(["--label".to_owned(), format!("{key}={value}")]);
        }
        for role in &args.roles {
            words.extend(["--role".to_owned(), role.to_string()]);
        }
        if let Some(address) = &args.public_address {
            words.extend(["--public-address".to_owned(), address.clone()]);
        }
        if args.allow_exec {
            words.push("--allow-exec".to_owned());
        }
        programs.push(Program {
            name: "agent".to_owned(),
            args: words,
        });
    }
    programs
}

/// What these options would have this host run: to be compared with what it runs.
fn programs_of(
    common: &Common,
    args: &InstallArgs,
    places: &Places,
    found: &Installed,
) -> Result<Vec<Program>, Failure> {
    let seeds = args.seeds.as_ref().unwrap_or(&found.seeds);
    let host = args.host.as_ref().or(found.host.as_ref()).cloned();
    let node = match (args.no_agent, &args.node) {
        (true, _) => None,
        (false, Some(node)) => Some(node.clone()),
        (false, None) => Some(found.node.clone().map_or_else(|| node_name(None), Ok)?),
    };
    Ok(programs(common, args, places, seeds, host.as_ref(), node.as_ref()))
}

/// A first run.
async fn begin(
    common: &Common,
    args: &InstallArgs,
    places: &Places,
    given: Option<Token>,
    shutdown: &Shutdown,
) -> Verdict {
    let Some(seeds) = args.seeds.clone() else {
        return Err(Failure::usage("--seeds is missing")
            .help("name all seeds of the cluster, the same on every host: --seeds 10.0.0.1,10.0.0.2,10.0.0.3"));
    };
    let host = match &args.host {
        Some(_) => Some(myself(&seeds, args.host.as_ref())?),
        // A host that is several of them has to be told which; one that is none is a node.
        None if seeds.here().is_empty() => None,
        None => Some(myself(&seeds, None)?),
    };
    if args.no_agent && host.is_none() {
        return Err(Failure::usage(format!(
            "--no-agent, and none of the seeds {seeds} is this host: nothing is left"
        ))
        .help("say with --host which seed this is, or leave --no-agent away"));
    }
    let node = if args.no_agent {
        None
    } else {
        Some(node_name(args.node.as_ref())?)
    };
    let was_seed = places.server().join(KNOWN).exists();
    let was_node = places.agent().join("member").join(membership::keep::CONTEXT).exists();
    let token = match given {
        Some(token) => Some(token),
        // Its data was kept: it knows where it belongs.
        None if (host.is_none() || was_seed) && (node.is_none() || was_node) => None,
        None => {
            return Err(Failure::usage("there is no token: name its file with --token-file, `-` is standard input").help(
                "`reeve token install` prints one for a new cluster, `reeve token create` on a seed one for this cluster, with --seed \
                 for a seed whose disk was lost",
            ));
        }
    };
    let cluster = match &token {
        Some(Token::Install(token)) => Some(token.cluster()),
        Some(Token::Join(_)) | None => None,
    };
    if let Some(told) = &args.public_address {
        public_address(told, Some(&seeds))?;
    }
    let wanted = Wanted {
        docker: args.docker.clone(),
        agent: node.is_some(),
        seed: host.clone(),
        etcd_program: args.etcd_program.clone(),
        seeds: Some(seeds.clone()),
        data: places.base.clone(),
        running: false,
        token_made: match &token {
            Some(Token::Install(token)) => Some(token.created().unix_seconds()),
            Some(Token::Join(_)) | None => None,
        },
    };
    let lines = judge(&look(&wanted).await);
    let installed = Installed {
        cluster,
        host: host.clone(),
        node: node.clone(),
        supervisor: service::supervisor(),
        binary: std::env::current_exe()
            .map_err(|error| Failure::new(Exit::Failed, "cannot find this program's own file").because(&error))?,
        programs: programs(common, args, places, &seeds, host.as_ref(), node.as_ref()),
        seeds,
        made: [
            places.base.clone(),
            places.install(),
            places.server(),
            places.agent(),
            places.supervisor(),
        ]
        .into_iter()
        .filter(|dir| !dir.exists())
        .collect(),
        complete: false,
    };
    if args.dry_run {
        return dry_run(common, places, &installed, &lines);
    }
    let bad = check::count(&lines, Level::Bad);
    if bad > 0 {
        show(common, &lines, None);
        let message = format!(
            "{} must be mended first; nothing was changed",
            output::count(bad, "thing")
        );
        return Err(Failure::new(Exit::Failed, message).help("each says how above; then run it again"));
    }
    let warnings: Vec<Line> = lines.iter().filter(|line| line.level == Level::Warn).cloned().collect();
    if !common.output.is_for_machines() {
        print(&check::render(&warnings, output::limit()));
        print(&format!("this host becomes {}\n", installed.who()));
    }
    let keep = Keep::open(&places.install()).map_err(|error| of_keep(&error))?;
    let made = async {
        if let Some(token) = &token {
            keep.write("token", token_text(token).as_bytes())
                .map_err(|error| of_keep(&error))?;
        }
        installed.write(&keep)?;
        service::start(&installed, places).await
    };
    if let Err(failure) = made.await {
        return Err(taken_back(failure, places, &installed).await);
    }
    wait(common, args, places, installed, token.as_ref(), &keep, shutdown).await
}

fn token_text(token: &Token) -> String {
    match token {
        Token::Install(token) => format!("{}\n", token.to_text().as_str()),
        Token::Join(token) => format!("{}\n", token.to_text().as_str()),
    }
}

/// A run before this one did not come to its end.
async fn go_on(
    common: &Common,
    args: &InstallArgs,
    places: &Places,
    found: Installed,
    given: Option<Token>,
    shutdown: &Shutdown,
) -> Verdict {
    if args.seeds.is_some() && programs_of(common, args, places, &found)? != found.programs {
        return status(common, places, &found, Some(true)).await;
    }
    let keep = Keep::open(&places.install()).map_err(|error| of_keep(&error))?;
    let kept = keep.read("token").map_err(|error| of_keep(&error))?;
    let kept = kept.and_then(|text| String::from_utf8_lossy(&text).trim().parse::<Token>().ok());
    let token = given.or(kept);
    if !common.output.is_for_machines() {
        print(&format!("going on with the install of {}, begun before\n", found.who()));
    }
    let states = service::states(&found, places).await;
    if found
        .programs
        .iter()
        .any(|program| states.get(&program.name).is_none_or(|state| state.pid.is_none()))
    {
        service::stop(&found, places).await?;
        service::start(&found, places).await?;
    }
    wait(common, args, places, found, token.as_ref(), &keep, shutdown).await
}

fn show(common: &Common, lines: &[Line], installed: Option<serde_json::Value>) {
    if common.output.is_for_machines() {
        let mut value = json!({ "checks": lines });
        if let Some(installed) = installed {
            value["wouldInstall"] = installed;
        }
        print(&match common.output {
            output::Format::Yaml => output::yaml(&value),
            output::Format::Json | output::Format::Name | output::Format::Table | output::Format::Wide => {
                output::json(&value)
            }
        });
    } else {
        print(&check::render(lines, output::limit()));
    }
}

fn dry_run(common: &Common, places: &Places, installed: &Installed, lines: &[Line]) -> Verdict {
    let bad = check::count(lines, Level::Bad);
    let files = service::unit_files(installed);
    let programs: Vec<String> = installed
        .programs
        .iter()
        .map(|program| format!("{} {}", installed.binary.display(), program.args.join(" ")))
        .collect();
    show(
        common,
        lines,
        Some(
            json!({ "host": installed.host, "node": installed.node, "directories": installed.made, "files": files, "programs": programs }),
        ),
    );
    if !common.output.is_for_machines() {
        let by = match installed.supervisor {
            super::Supervisor::Systemd => "systemd",
            super::Supervisor::Process => "Reeve's own supervisor",
        };
        print(&format!(
            "\nThis host would become {}\nin {}, run by {by}:\n{}",
            installed.who(),
            places.base.display(),
            programs.iter().map(|line| format!("  {line}\n")).collect::<String>()
        ));
        print(
            &files
                .iter()
                .map(|file| format!("  {}\n", file.display()))
                .collect::<String>(),
        );
        print("Nothing was changed.\n");
    }
    Ok(if bad == 0 { Exit::Done } else { Exit::Failed })
}

/// What is there. `asked`: somebody wanted to install, with options that differ or not.
async fn status(common: &Common, places: &Places, found: &Installed, asked: Option<bool>) -> Verdict {
    let states = service::states(found, places).await;
    let runs = |program: &Program| states.get(&program.name).is_some_and(|state| state.pid.is_some());
    let all = found.programs.iter().all(runs);
    if common.output.is_for_machines() {
        print(&output::json(
            &json!({ "installed": found, "programs": states, "running": all }),
        ));
    } else {
        let cluster = found.cluster.map_or_else(String::new, |id| format!(" of cluster {id}"));
        let already = if asked.is_some() {
            " already; nothing was changed"
        } else {
            ""
        };
        print(&format!(
            "installed as {}{cluster}{already}\n  seeds     {}\n  data      {}\n",
            found.who(),
            found.seeds,
            places.base.display()
        ));
        for program in &found.programs {
            let state = states.get(&program.name).cloned().unwrap_or_default();
            let again = if state.ends > 0 {
                format!(", started again {}", output::count(state.ends as usize, "time"))
            } else {
                String::new()
            };
            let how = match (state.pid, &state.why) {
                (Some(pid), _) => format!("runs as process {pid}{again}"),
                (None, Some(why)) => format!("does not run{again}: {why}"),
                (None, None) => "does not run".to_owned(),
            };
            print(&format!("  {:<8}  {how}\n", program.name));
        }
        if !found.complete {
            print("  it has not been seen to work yet: `reeve install` goes on with it\n");
        }
    }
    if asked == Some(true) {
        return Err(
            Failure::new(Exit::Conflict, "this host is installed with other options than these")
                .help(format!("take it away first: `reeve uninstall{}`", places.flag())),
        );
    }
    if all {
        return Ok(Exit::Done);
    }
    let help = match found.supervisor {
        super::Supervisor::Systemd => {
            "start it with `systemctl start`, and see `journalctl -u reeve-server -u reeve-agent`".to_owned()
        }
        super::Supervisor::Process => format!(
            "start it with `setsid reeve install --supervise{} &`, also after each reboot; logs are in {}",
            places.flag(),
            places.supervisor().display()
        ),
    };
    Err(Failure::new(Exit::Failed, "not all of it runs").help(help))
}

/// Waits until this host works, and says so.
async fn wait(
    common: &Common,
    args: &InstallArgs,
    places: &Places,
    mut installed: Installed,
    token: Option<&Token>,
    keep: &Keep,
    shutdown: &Shutdown,
) -> Verdict {
    if args.no_wait {
        print("all is started; `reeve install --status` shows how it is, and `reeve install` waits until it works\n");
        return Ok(Exit::Done);
    }
    let pin = match token {
        Some(token) => Some(join_token(token).map_err(|error| of_join(&error))?.authority()),
        None => known_authority(places),
    };
    let ended = tokio::select! {
        ended = until_it_works(&installed, places, pin, &common.prefix, args.timeout) => ended,
        () = shutdown.draining() => Ended::Interrupted,
    };
    match ended {
        Ended::Works => {}
        Ended::TimedOut(what) => {
            return Err(
                Failure::new(Exit::TimedOut, format!("this host does not work yet: {what}"))
                    .help("it goes on by itself; `reeve install` waits again, `reeve install --status` shows it"),
            );
        }
        Ended::Interrupted => {
            return Err(taken_back(Failure::new(Exit::Failed, "interrupted"), places, &installed).await);
        }
        Ended::Fails(failure) => return Err(taken_back(failure, places, &installed).await),
    }
    installed.cluster = installed.cluster.or_else(|| known_cluster(places));
    installed.complete = true;
    // What could join with it has joined: it is not left lying about.
    let _ = std::fs::remove_file(places.token());
    installed.write(keep)?;
    crate::audit::note(installed.who());
    crate::audit::begin_here(common).await;
    if common.output.is_for_machines() {
        print(&output::json(&json!({ "installed": installed })));
    } else {
        print(&greeting(places, &installed));
    }
    Ok(Exit::Done)
}

fn greeting(places: &Places, installed: &Installed) -> String {
    let cluster = installed
        .cluster
        .map_or_else(String::new, |id| format!("\n  cluster   {id}"));
    let after = match installed.supervisor {
        super::Supervisor::Systemd => "systemd starts it after a reboot.".to_owned(),
        super::Supervisor::Process => format!(
            "systemd does not run here: after a reboot, start it with\n  setsid reeve install --supervise{} &",
            places.flag()
        ),
    };
    let next = if installed.host.is_some() {
        format!(
            "On this host, as root, verbs find the cluster: reeve get nodes{}\n",
            places.flag()
        )
    } else {
        String::new()
    };
    format!(
        "reeve is installed: {who}{cluster}\n  seeds     {seeds}\n  data      {data}\n\n{after}\n{next}",
        who = installed.who(),
        seeds = installed.seeds,
        data = places.base.display(),
    )
}

/// How waiting ended.
enum Ended {
    Works,
    TimedOut(String),
    Interrupted,
    Fails(Failure),
}

/// The authority this host trusts, where it has belonged to the cluster before.
fn known_authority(places: &Places) -> Option<Fingerprint> {
    let dirs = [places.server(), places.agent().join("member")];
    let bundle = dirs.iter().find_map(|dir| Keep::beside(dir).bundle().ok().flatten())?;
    bundle.authorities().next().map(|authority| authority.fingerprint())
}

fn known_cluster(places: &Places) -> Option<trust::identity::ClusterId> {
    let dirs = [places.server(), places.agent().join("member")];
    let bundle = dirs.iter().find_map(|dir| Keep::beside(dir).bundle().ok().flatten())?;
    Some(bundle.cluster())
}

/// Whether the cluster has been seen to be from here: then this seed is one of its members.
pub fn formed(places: &Places) -> bool {
    let known = Keep::beside(&places.server()).read_json::<Known>(KNOWN);
    matches!(known, Ok(Some(known)) if known.formed)
}

async fn until_it_works(
    installed: &Installed,
    places: &Places,
    pin: Option<Fingerprint>,
    root: &Root,
    timeout: Duration,
) -> Ended {
    let began = Instant::now();
    let mut said = String::new();
    let mut together: Option<Instant> = None;
    loop {
        let states = service::states(installed, places).await;
        let failed = installed.programs.iter().find_map(|program| {
            let state = states.get(&program.name)?;
            (state.ends >= GIVE_UP_AFTER).then(|| (program, state.why.clone().unwrap_or_default()))
        });
        if let Some((program, why)) = failed {
            let failure = Failure::new(Exit::Failed, format!("the {} does not run: {why}", program.name));
            return Ended::Fails(failure);
        }
        let seen = match pin {
            Some(pin) => membership::look::seeds(pin, &installed.seeds).await.unwrap_or_default(),
            None => BTreeMap::new(),
        };
        let server = match &installed.host {
            None => true,
            Some(_) => {
                let begun = membership::etcd::has_begun(&places.server().join("etcd"));
                begun && formed(places) && seen.values().any(|seed| stage(seed) == Some(Stage::Formed))
            }
        };
        let agent = match &installed.node {
            None => Ok(()),
            Some(node) => agent_is_ready(places, root, node).await,
        };
        if server && agent.is_ok() {
            return Ended::Works;
        }
        let gathered = !seen.is_empty() && seen.values().all(Result::is_ok);
        let since = *together.get_or_insert_with(Instant::now);
        if !gathered {
            together = None;
        }
        let mut text = waiting_for(&seen);
        if gathered
            && !seen.values().any(|seed| stage(seed) == Some(Stage::Formed))
            && since.elapsed() > TRY_PORTS_AFTER
        {
            for (place, why) in membership::look::shut_ports(&installed.seeds).await {
                text.push_str(&format!("  {place}: {why}\n"));
            }
        }
        if text.is_empty() && !server {
            let last =
                service::last_words(installed, places, "server").map_or_else(String::new, |said| format!("  {said}\n"));
            text = format!("the cluster is there: waiting until this seed has its place in it\n{last}");
        }
        if let (true, Err(why)) = (text.is_empty(), &agent) {
            text = format!("waiting for this host's agent: {why}\n");
        }
        for (name, state) in states.iter().filter(|(_, state)| state.ends > 0 && state.pid.is_none()) {
            text.push_str(&format!(
                "  the {name} has ended: {}\n",
                state.why.as_deref().unwrap_or("?")
            ));
        }
        if text != said {
            complain(&text);
            said = text;
        }
        if began.elapsed() >= timeout {
            return Ended::TimedOut(said.trim().replace('\n', "; "));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn stage(seed: &Result<membership::port::SeedState, String>) -> Option<Stage> {
    seed.as_ref().ok().map(|state| state.stage)
}

/// Who is missed. Empty when the cluster is.
fn waiting_for(seen: &BTreeMap<Host, Result<membership::port::SeedState, String>>) -> String {
    if seen.values().any(|seed| stage(seed) == Some(Stage::Formed)) {
        return String::new();
    }
    let silent: BTreeMap<Host, String> = seen
        .iter()
        .filter_map(|(host, seed)| Some((host.clone(), seed.as_ref().err()?.clone())))
        .collect();
    if silent.is_empty() {
        return "all seeds are there: waiting for a quorum of the store's members\n".to_owned();
    }
    format!(
        "waiting for {}; a new cluster begins when all are there\n{}",
        output::count(silent.len(), "seed"),
        missing(&silent)
    )
}

/// Whether this host's node has joined and has a session in the store; else how far it is.
async fn agent_is_ready(places: &Places, root: &Root, node: &NodeName) -> Result<(), String> {
    let joined = Context::in_dir(&places.agent().join("member"));
    let context = joined.ok_or_else(|| "it has not joined yet".to_owned())?;
    let store = prepare_in(&context).await.map_err(|failure| failure.sentence())?;
    let place = root.key(&Key::Session(node.clone())).into_bytes();
    match store.get(&place).await {
        Ok(read) if read.value.is_some() => Ok(()),
        Ok(_) => Err("it has joined, and has no session yet".to_owned()),
        Err(error) => Err(runtime::chain(&error)),
    }
}

/// Takes back what this install made, and says so in the failure.
async fn taken_back(failure: Failure, places: &Places, installed: &Installed) -> Failure {
    if formed(places) && installed.made.contains(&places.server()) {
        return failure.help(format!(
            "the cluster is there with this seed in it, so what was made is kept: `reeve install{0}` goes on with it, `reeve uninstall{0}` takes it away",
            places.flag()
        ));
    }
    match take_back(places, installed).await {
        Ok(()) => failure.help("everything that was made is taken back"),
        Err(error) => failure.detail(format!("what was made is not all taken back: {}", error.message)),
    }
}

async fn take_back(places: &Places, installed: &Installed) -> Result<(), Failure> {
    service::stop(installed, places).await?;
    let mut made: Vec<&PathBuf> = installed.made.iter().filter(|dir| **dir != places.base).collect();
    made.sort();
    for dir in made {
        remove(dir)?;
    }
    for file in [places.token(), places.install().join(super::RECORD)] {
        let _ = std::fs::remove_file(file);
    }
    if installed.made.contains(&places.base) {
        // Only when nothing of anybody else is in it.
        let _ = std::fs::remove_dir(&places.base);
    }
    Ok(())
}

/// Removes a directory with all that is in it.
pub fn remove(dir: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::Failed, format!("cannot remove {}", dir.display())).because(&error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state(stage: Stage) -> Result<membership::port::SeedState, String> {
        Ok(membership::port::SeedState {
            cluster: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            host: "10.0.0.1".parse().unwrap(),
            seeds: "10.0.0.1".parse().unwrap(),
            stage,
            cut: 0,
            authorities: membership::rotation::Standing::default(),
            clock: None,
        })
    }

    #[test]
    fn who_is_missed_is_told_with_the_port() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        let silent = Err("10.0.0.2:2378 does not answer: refused".to_owned());
        let mut seen = BTreeMap::from([(host("10.0.0.1"), state(Stage::Fresh)), (host("10.0.0.2"), silent)]);
        assert_eq!(
            waiting_for(&seen),
            "waiting for 1 seed; a new cluster begins when all are there\n  10.0.0.2:2378 does not answer: refused\n"
        );
        seen.insert(host("10.0.0.2"), state(Stage::Starting));
        assert!(waiting_for(&seen).starts_with("all seeds are there"));
        seen.insert(host("10.0.0.2"), state(Stage::Formed));
        assert_eq!(waiting_for(&seen), "");
    }
}
