//! Processes of a test: started with their output in a file, ended when dropped, and by the kernel when the test dies.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::clean;
use crate::explain::explain;

/// Where a host of a lab is: its network, and its own view of the file system with its machine id and boot id.
#[derive(Clone)]
pub struct Place {
    pub(crate) netns: String,
    pub(crate) mounts: PathBuf,
}

impl Place {
    /// The words before a command that is to run there. It begins in the root directory.
    #[must_use]
    pub fn words(&self) -> [String; 3] {
        let (netns, mounts) = (&self.netns, self.mounts.display());
        [
            "nsenter".to_owned(),
            format!("--net=/run/netns/{netns}"),
            format!("--mount={mounts}"),
        ]
    }

    /// A command that runs there.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let [enter, words @ ..] = self.words();
        let mut command = Command::new(enter);
        command.args(words).arg(program);
        command
    }
}

/// The `reeve` binary of this build; `REEVE_BIN` names another.
#[must_use]
pub fn reeve() -> PathBuf {
    if let Some(path) = std::env::var_os("REEVE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let path = test
        .ancestors()
        .nth(2)
        .expect("tests are in target/<profile>/deps")
        .join("reeve");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p cli` first, as `make test` does",
        path.display()
    );
    path
}

/// Runs a command to its end, output captured.
pub fn run(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Runs a command that must succeed; returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process that runs beside the test.
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
    /// How many lines of its log a failed test prints.
    tail: usize,
    /// A store it serves, to be asked before it ends in a failed test: its place and endpoints.
    store: Option<(Option<Place>, String)>,
}

impl Process {
    /// Starts it on the host whose place is given, or beside the test. It gets SIGTERM when the test's thread dies, and bears
    /// the mark of the lab in whose directory its log is.
    pub fn start(
        name: &str,
        place: Option<&Place>,
        program: &Path,
        args: &[&str],
        env: &[(&str, &str)],
        log: PathBuf,
    ) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file in the lab's directory");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        command.args(place.iter().flat_map(|place| place.words()));
        command.arg(program).args(args).envs(env.iter().copied());
        command.envs(clean::mark(&log));
        let errors = file.try_clone().expect("a second handle on the log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
            // Engines and stores talk much and are seldom at fault.
            tail: if program.ends_with("reeve") { 40 } else { 6 },
            store: None,
        }
    }

    /// When the test fails, the cluster of this store is described before the process ends.
    pub(crate) fn explain_with(&mut self, place: Option<&Place>, endpoints: &str) {
        self.store = Some((place.cloned(), endpoints.to_owned()));
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Prints the last lines of its log, for whoever reads of a failed test.
    pub(crate) fn tell(&self) {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let tail = &lines[lines.len().saturating_sub(self.tail)..];
        if !tail.is_empty() {
            eprintln!("--- last lines of {}:\n{}", self.name, tail.join("\n"));
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name: `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let _ = run(Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string()));
    }

    /// Kills it at once and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and gives it so long before it is killed; returns its exit code.
    pub fn stop(&mut self, patience: Duration) -> Option<i32> {
        // The number of one that has ended may be another's by now, and is for nobody to signal.
        if let Ok(Some(status)) = self.child.try_wait() {
            return status.code().or(status.signal().map(|signal| 128 + signal));
        }
        self.signal("TERM");
        self.signal("CONT");
        let end = Instant::now() + patience;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.code().or(status.signal().map(|signal| 128 + signal)),
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => break,
            }
        }
        self.kill();
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed && let Some((place, endpoints)) = &self.store {
            explain(place.as_ref(), endpoints);
        }
        self.stop(Duration::from_secs(5));
        if failed {
            self.tell();
        }
    }
}
