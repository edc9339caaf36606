//! What keeps the programs of an installed host running: units of systemd where that runs, else a small supervisor of our own,
//! `reeve install --supervise`, which starts a program again when it ends, with a growing delay. `install`, `uninstall`
//! and `doctor` ask here whether they run, and why not.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use membership::keep::{Keep, KeepError};
use runtime::Shutdown;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::{Installed, Places, Program, Supervisor, of_keep};
use crate::Verdict;
use crate::daemons::signals;
use crate::failure::{Exit, Failure, printable};
use crate::output::print;

/// Where units go.
const UNITS: &str = "/etc/systemd/system";
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(30);
/// One that ran for so long had begun well: the delay begins anew.
const WELL: Duration = Duration::from_secs(60);
/// How long programs may take to end when asked; a seed ends its store's member in it.
const GRACE: Duration = Duration::from_secs(30);
/// A log beyond this is begun anew; the one before it is kept.
const LOG_BYTES: u64 = 16 << 20;
/// The end of a log that is looked at for the reason of an end.
const TAIL_BYTES: u64 = 4_096;
const STATUS: &str = "status.json";
const PID: &str = "supervisor.pid";
/// What would say something else than the arguments do.
const VARIABLES: [&str; 9] = [
    "REEVE_ETCD",
    "REEVE_PREFIX",
    "REEVE_CA",
    "REEVE_CERT",
    "REEVE_KEY",
    "REEVE_DATA_DIR",
    "REEVE_SEEDS",
    "REEVE_TOKEN_FILE",
    "REEVE_NODE",
];

/// How a program is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// None when it does not run.
    pub pid: Option<u32>,
    /// How often it has ended since it was started.
    pub ends: u32,
    /// How it ended last, in its own words where it left some.
    pub why: Option<String>,
}

/// Whether systemd runs this host, as sd_booted(3) finds out.
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Who keeps programs running here.
pub fn supervisor() -> Supervisor {
    if systemd_runs() {
        Supervisor::Systemd
    } else {
        Supervisor::Process
    }
}

fn unit(program: &Program) -> String {
    format!("reeve-{}.service", program.name)
}

/// The files that [`start`] writes outside the data directory.
pub fn unit_files(installed: &Installed) -> Vec<PathBuf> {
    match installed.supervisor {
        Supervisor::Process => Vec::new(),
        Supervisor::Systemd => installed
            .programs
            .iter()
            .map(|one| Path::new(UNITS).join(unit(one)))
            .collect(),
    }
}

/// A word of `ExecStart=`, as systemd.syntax(7) wants it.
fn quoted(word: &str) -> String {
    let escaped: String = word
        .chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            '%' => vec!['%', '%'],
            '$' => vec!['$', '$'],
            _ => vec![c],
        })
        .collect();
    format!("\"{escaped}\"")
}

/// The unit of a program: the one of manifests/systemd, with the command line of this host.
fn unit_text(program: &Program, binary: &Path) -> String {
    let model = match program.name.as_str() {
        "server" => include_str!("../../../manifests/systemd/reeve-server.service"),
        _ => include_str!("../../../manifests/systemd/reeve-agent.service"),
    };
    let words = std::iter::once(binary.display().to_string()).chain(program.args.iter().cloned());
    let line: Vec<String> = words.map(|word| quoted(&word)).collect();
    let mut text = String::from("# Written by `reeve install`; `reeve uninstall` removes it.\n");
    for one in model.lines() {
        match one {
            _ if one.starts_with("ExecStart=") => text.push_str(&format!("ExecStart={}\n", line.join(" "))),
            // Its variables would say what the arguments say here.
            _ if one.starts_with("EnvironmentFile=") || one.starts_with("# REEVE_SEEDS") => {}
            _ => text.push_str(&format!("{one}\n")),
        }
    }
    text
}

async fn systemctl(args: &[&str]) -> Result<String, Failure> {
    let cannot = || Failure::new(Exit::Failed, format!("cannot have systemd do `{}`", args.join(" ")));
    let output = Command::new("systemctl").args(args).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| cannot().because(&error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(cannot().detail(said.lines().next().unwrap_or("it did not say why")))
}

/// Starts all programs, now and after each reboot where systemd sees to it.
pub async fn start(installed: &Installed, places: &Places) -> Result<(), Failure> {
    match installed.supervisor {
        Supervisor::Systemd => {
            for program in &installed.programs {
                let file = Path::new(UNITS).join(unit(program));
                std::fs::write(&file, unit_text(program, &installed.binary)).map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot write {}", file.display())).because(&error)
                })?;
            }
            systemctl(&["daemon-reload"]).await?;
            for program in &installed.programs {
                systemctl(&["enable", "--now", &unit(program)]).await?;
            }
            Ok(())
        }
        Supervisor::Process => start_supervisor(installed, places),
    }
}

fn start_supervisor(installed: &Installed, places: &Places) -> Result<(), Failure> {
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, "cannot start the supervisor").because(error)
    };
    // Makes the directory, and finds out whether one runs already.
    drop(Keep::open(&places.supervisor()).map_err(|error| of_keep(&error))?);
    let log = places.supervisor().join("supervisor.log");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|error| cannot(&error))?;
    let errors = file.try_clone().map_err(|error| cannot(&error))?;
    let mut command = std::process::Command::new(&installed.binary);
    command
        .args(["install", "--supervise", "--data-dir"])
        .arg(&places.base)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.spawn().map_err(|error| cannot(&error))?;
    Ok(())
}

/// Whether our own supervisor runs on these directories.
fn supervisor_runs(places: &Places) -> bool {
    places.supervisor().is_dir() && matches!(Keep::open(&places.supervisor()), Err(KeepError::InUse { path: _ }))
}

/// How the programs are.
pub async fn states(installed: &Installed, places: &Places) -> BTreeMap<String, State> {
    match installed.supervisor {
        Supervisor::Process => {
            let read = Keep::beside(&places.supervisor()).read_json::<BTreeMap<String, State>>(STATUS);
            let mut told = read.ok().flatten().unwrap_or_default();
            let runs = supervisor_runs(places);
            for program in &installed.programs {
                let state = told.entry(program.name.clone()).or_default();
                if !runs {
                    state.pid = None;
                    state
                        .why
                        .get_or_insert_with(|| "its supervisor does not run".to_owned());
                }
            }
            told
        }
        Supervisor::Systemd => {
            let mut told = BTreeMap::new();
            for program in &installed.programs {
                let shown = ["show", "-p", "MainPID,NRestarts,ActiveState", &unit(program)];
                let text = systemctl(&shown).await.unwrap_or_default();
                let value = |name: &str| {
                    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                    line.map(str::to_owned)
                };
                let number = |name: &str| value(name).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
                let ends = number("NRestarts");
                let journal = Command::new("journalctl")
                    .args(["-u", &unit(program), "-n", "20", "-o", "cat", "--no-pager"])
                    .output()
                    .await;
                let journal = journal.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
                let state = State {
                    pid: Some(number("MainPID")).filter(|pid| *pid > 0),
                    ends,
                    why: if ends > 0 {
                        reason(&journal.unwrap_or_default())
                    } else {
                        None
                    },
                };
                told.insert(program.name.clone(), state);
            }
            told
        }
    }
}

/// Stops all programs, and keeps them from being started again.
pub async fn stop(installed: &Installed, places: &Places) -> Result<(), Failure> {
    match installed.supervisor {
        Supervisor::Systemd => {
            for program in &installed.programs {
                let file = Path::new(UNITS).join(unit(program));
                if file.exists() {
                    systemctl(&["disable", "--now", &unit(program)]).await?;
                    std::fs::remove_file(&file).map_err(|error| {
                        Failure::new(Exit::Failed, format!("cannot remove {}", file.display())).because(&error)
                    })?;
                }
            }
            systemctl(&["daemon-reload"]).await.map(drop)
        }
        Supervisor::Process => {
            let until = Instant::now() + GRACE + Duration::from_secs(10);
            let mut asked = false;
            while supervisor_runs(places) {
                let pid = Keep::beside(&places.supervisor()).read(PID).ok().flatten();
                let pid = pid.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok());
                if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| !asked) {
                    asked = kill_process(pid, Signal::TERM).is_ok();
                }
                if Instant::now() > until {
                    return Err(
                        Failure::new(Exit::TimedOut, "the programs of this host do not end").help(format!(
                            "see the logs in {}, end them by hand, and run it again",
                            places.supervisor().display()
                        )),
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // A supervisor that was killed leaves its programs behind.
            for program in &installed.programs {
                end_leftover(&places.supervisor(), program).await;
            }
            Ok(())
        }
    }
}

/// `reeve install --supervise`.
pub async fn supervise(places: &Places) -> Verdict {
    let shutdown = signals()?;
    // It outlives the terminal it was started from; one that was started by hand stays with it.
    let _ = rustix::process::setsid();
    let Some(installed) = Installed::read(places)? else {
        return Err(Failure::new(
            Exit::Failed,
            format!("nothing is installed in {}", places.base.display()),
        )
        .help("install this host first: `reeve install --help`"));
    };
    if installed.supervisor == Supervisor::Systemd {
        return Err(Failure::new(Exit::Conflict, "systemd runs what is installed here")
            .help("`systemctl status 'reeve-*'` shows it"));
    }
    let keep = open(places).await.map_err(|error| {
        if matches!(error, KeepError::InUse { path: _ }) {
            Failure::new(Exit::Conflict, "the programs of this host run already")
                .help("`reeve install --status` shows them")
        } else {
            of_keep(&error)
        }
    })?;
    let write = |states: &BTreeMap<String, State>| {
        // Without it they run as well; they are only not told of.
        let _ = keep.write_json(STATUS, states);
    };
    keep.write(PID, std::process::id().to_string().as_bytes())
        .map_err(|error| of_keep(&error))?;
    write(&BTreeMap::new());
    let (told, mut heard) = tokio::sync::mpsc::channel::<(String, State)>(8);
    let mut tasks = tokio::task::JoinSet::new();
    for program in installed.programs.clone() {
        let (binary, dir) = (installed.binary.clone(), places.supervisor());
        let (told, shutdown) = (told.clone(), shutdown.clone());
        tasks.spawn(async move { run_on(&binary, &program, &dir, &told, &shutdown).await });
    }
    drop(told);
    let mut states = BTreeMap::new();
    while let Some((name, state)) = heard.recv().await {
        states.insert(name, state);
        write(&states);
    }
    tasks.join_all().await;
    let _ = std::fs::remove_file(places.supervisor().join(PID));
    print("the programs of this host have ended; its containers keep running\n");
    Ok(Exit::Done)
}

/// The directory, for ourselves. Who looks whether we run holds it for a moment.
async fn open(places: &Places) -> Result<Keep, KeepError> {
    let mut tries = 0;
    loop {
        match Keep::open(&places.supervisor()) {
            Err(KeepError::InUse { path: _ }) if tries < 20 => tries += 1,
            opened => return opened,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs one program until the end, starting it again whenever it ends.
async fn run_on(
    binary: &Path,
    program: &Program,
    dir: &Path,
    told: &tokio::sync::mpsc::Sender<(String, State)>,
    shutdown: &Shutdown,
) {
    end_leftover(dir, program).await;
    let log = dir.join(format!("{}.log", program.name));
    let pid_file = pid_file(dir, program);
    let mut state = State::default();
    let mut delay = FIRST_DELAY;
    loop {
        let began = Instant::now();
        let written = std::fs::metadata(&log).map_or(0, |found| found.len());
        let why = match spawn(binary, program, &log) {
            Ok(mut child) => {
                state.pid = child.id();
                let _ = std::fs::write(&pid_file, child.id().unwrap_or(0).to_string());
                let _ = told.send((program.name.clone(), state.clone())).await;
                let status = loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        () = tokio::time::sleep(Duration::from_secs(60)) => turn_over(&log),
                        () = shutdown.draining() => {
                            end(&mut child, shutdown).await;
                            let _ = std::fs::remove_file(&pid_file);
                            return;
                        }
                    }
                };
                let last = reason(&tail(&log, written));
                match (status, last) {
                    (_, Some(said)) => said,
                    (Ok(status), None) => status.to_string(),
                    (Err(error), None) => error.to_string(),
                }
            }
            Err(error) => format!("{} cannot be started: {error}", binary.display()),
        };
        state.pid = None;
        state.ends = state.ends.saturating_add(1);
        state.why = Some(why);
        let _ = told.send((program.name.clone(), state.clone())).await;
        if began.elapsed() >= WELL {
            delay = FIRST_DELAY;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shutdown.draining() => return,
        }
        delay = (delay * 2).min(LAST_DELAY);
    }
}

fn spawn(binary: &Path, program: &Program, log: &Path) -> std::io::Result<Child> {
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(binary);
    command
        .args(&program.args)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .kill_on_drop(true);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.spawn()
}

/// Begins a log anew that has grown large; the program goes on writing at its end.
fn turn_over(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|found| found.len() > LOG_BYTES) {
        let kept = std::fs::copy(log, log.with_extension("log.1"));
        let emptied = OpenOptions::new()
            .write(true)
            .open(log)
            .and_then(|file| file.set_len(0));
        if let Err(error) = kept.and(emptied) {
            tracing::warn!(%error, log = %log.display(), "a log cannot be begun anew");
        }
    }
}

async fn end(child: &mut Child, shutdown: &Shutdown) {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    tokio::select! {
        _ = child.wait() => return,
        () = tokio::time::sleep(GRACE) => {}
        () = shutdown.aborting() => {}
    }
    let _ = child.kill().await;
}

fn pid_file(dir: &Path, program: &Program) -> PathBuf {
    dir.join(format!("{}.pid", program.name))
}

/// Ends what an earlier supervisor started and could not end. The number may be another's by now: the arguments tell.
async fn end_leftover(dir: &Path, program: &Program) {
    let file = pid_file(dir, program);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let Some(number) = text.trim().parse::<i32>().ok().filter(|number| *number > 1) else {
        return;
    };
    let ours = || {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).skip(1).collect();
        let words = words.strip_suffix(&[b"".as_slice()]).unwrap_or(&words);
        words
            .iter()
            .eq(program.args.iter().map(String::as_bytes).collect::<Vec<_>>().iter())
    };
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        let Some(pid) = Pid::from_raw(number).filter(|_| ours()) else {
            break;
        };
        let _ = kill_process(pid, signal);
        let until = Instant::now() + patience;
        while ours() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let _ = std::fs::remove_file(file);
}

/// What a log says since `from`, at most its end.
fn tail(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let all = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.min(all).max(all.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// The last that a program has said, where we keep its log.
pub fn last_words(installed: &Installed, places: &Places, name: &str) -> Option<String> {
    match installed.supervisor {
        Supervisor::Systemd => None,
        Supervisor::Process => reason(&tail(&places.supervisor().join(format!("{name}.log")), 0)),
    }
}

/// Why a program ended, by its own last words: its error with the help after it, else the last line.
fn reason(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.iter().rposition(|line| line.starts_with("error: "));
    let said = match from {
        Some(from) => lines[from..].join(" "),
        None => (*lines.last()?).to_owned(),
    };
    let said = printable(&said);
    Some(
        said.strip_prefix("error: ")
            .unwrap_or(&said)
            .chars()
            .take(600)
            .collect(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn program(args: &[&str]) -> Program {
        Program {
            name: "server".to_owned(),
            args: args.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn a_unit_is_the_one_of_the_project_with_this_hosts_command_line() {
        let text = unit_text(
            &program(&["server", "--data-dir", "/a b/100%"]),
            Path::new("/usr/local/bin/reeve"),
        );
        assert!(
            text.contains("ExecStart=\"/usr/local/bin/reeve\" \"server\" \"--data-dir\" \"/a b/100%%\"\n"),
            "{text}"
        );
        assert!(
            text.contains("KillMode=mixed") && text.contains("WantedBy=multi-user.target"),
            "{text}"
        );
        assert!(
            !text.contains("EnvironmentFile") && !text.contains("REEVE_SEEDS"),
            "{text}"
        );
        assert_eq!(quoted(r#"a"\$"#), r#""a\"\\$$""#);
    }

    #[test]
    fn the_reason_of_an_end_is_the_programs_own() {
        let log = "INFO x\nwaiting for 1 seed\nerror: this host is no seed\nhelp: name it with --host\n";
        assert_eq!(reason(log).unwrap(), "this host is no seed help: name it with --host");
        assert_eq!(reason("one\ntwo\n\n").unwrap(), "two");
        assert_eq!(reason("\n"), None);
    }

    #[test]
    fn only_the_end_of_a_log_is_read_and_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "old\nnew\n").unwrap();
        assert_eq!(tail(&log, 4), "new\n");
        std::fs::write(&log, "x".repeat(20_000)).unwrap();
        assert_eq!(tail(&log, 0).len() as u64, TAIL_BYTES);
        assert_eq!(tail(&log, 1 << 40), "");
    }

    #[tokio::test]
    async fn a_program_that_ends_is_started_again_and_a_leftover_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(&["-c", "echo error: no luck >&2; exit 6"]);
        let (told, mut heard) = tokio::sync::mpsc::channel(8);
        let shutdown = Shutdown::new();
        let (path, end) = (dir.path().to_owned(), shutdown.clone());
        let one = program.clone();
        let task = tokio::spawn(async move { run_on(Path::new("/bin/sh"), &one, &path, &told, &end).await });
        while let Some((_, state)) = heard.recv().await {
            if state.ends == 2 {
                assert_eq!(state.why.as_deref(), Some("no luck"));
                break;
            }
        }
        shutdown.drain();
        task.await.unwrap();

        let waits = Program {
            args: vec!["-c".to_owned(), "read x".to_owned()],
            ..program
        };
        let start = |args: &[String]| {
            let mut command = Command::new("/bin/sh");
            command
                .args(args)
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        };
        let mut ours = start(&waits.args);
        std::fs::write(pid_file(dir.path(), &waits), ours.id().unwrap().to_string()).unwrap();
        tokio::join!(end_leftover(dir.path(), &waits), async {
            assert!(!ours.wait().await.unwrap().success());
        });
        let mut other = start(&["-c".to_owned(), "read y".to_owned()]);
        std::fs::write(pid_file(dir.path(), &waits), other.id().unwrap().to_string()).unwrap();
        end_leftover(dir.path(), &waits).await;
        assert_eq!(other.try_wait().unwrap(), None);
    }
}
