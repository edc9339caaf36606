//! Programs of ours that outlive who started them: links and names go on while the agent is restarted or upgraded. The agent
//! calls [`look`], [`start`] and [`stop`]; the program itself calls [`hold`] first of all. Whether one runs is asked of the
//! kernel: it holds a lock on its pid file, which ends with it, so no number of a process is ever guessed or mistaken.
//! These calls wait, by the millisecond: not for an asynchronous thread; [`Ends`] is for one, and tells when a program ends.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal, setsid};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The largest log in bytes; the one before it is kept beside it.
const LOG_LIMIT: u64 = 1 << 20;
/// How often a program looks whether its log has grown too large.
const LOG_LOOK: Duration = Duration::from_secs(5);
/// How long a program may take from its start until it holds its pid file.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed program may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks while waiting.
const STEP: Duration = Duration::from_millis(2);
/// The largest pid file that is read, in bytes.
const PID_FILE_LIMIT: u64 = 4096;
/// What a program gets of its starter's environment: nothing that may hold a password.
const ENVIRONMENT: &[&str] = &["PATH", "REEVE_LOG", "RUST_BACKTRACE", "TZ"];

/// Where a program keeps its pid file, `<name>.pid`, and its log, `<name>.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub dir: PathBuf,
    /// A word of at most 15 letters: also what lists of processes show.
    pub name: String,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    pub place: Place,
    /// [`own_program`] for verbs of this binary.
    pub path: PathBuf,
    pub args: Vec<OsString>,
    /// Beside PATH, REEVE_LOG, RUST_BACKTRACE and TZ of the starter; nothing else of its environment is handed on.
    pub env: Vec<(OsString, OsString)>,
}

/// A program that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// As the kernel says; None when it is in another namespace of processes.
    pub pid: Option<Pid>,
    /// Which build it is, as [`build`] of that program says; empty while it is about to say it.
    pub build: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DetachedError {
    #[error("{act} `{}`", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the program `{name}` ended at once ({status}); its log: `{}`", log.display())]
    Ended {
        name: String,
        status: ExitStatus,
        log: PathBuf,
    },
    #[error("the program `{name}` is not ready after {} s; its log: `{}`", START_LIMIT.as_secs(), log.display())]
    Slow { name: String, log: PathBuf },
    #[error("signal the program `{name}`")]
    Signal {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("the program `{name}` does not end")]
    Stuck { name: String },
    #[error("the program `{name}` runs already")]
    Held { name: String },
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DetachedError {
    let path = path.to_owned();
    move |source| DetachedError::Io { act, path, source }
}

/// In a pid file. The pid is for people.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PidFile {
    pid: u32,
    build: String,
}

impl Place {
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }

    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Where the log's older part is.
    #[must_use]
    pub fn older_log(&self) -> PathBuf {
        self.dir.join(format!("{}.log.1", self.name))
    }
}

/// The program that runs here, to be started again: also when its file has been replaced since.
#[must_use]
pub fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Which build runs here: the size and age of its file. Two processes of one file say the same, those of a replaced file
/// another; nothing else follows from it.
pub fn build() -> io::Result<String> {
    let found = std::fs::metadata("/proc/self/exe")?;
    Ok(format!("{}-{}.{}", found.size(), found.mtime(), found.mtime_nsec()))
}

/// The program of a place, when it runs.
pub fn look(place: &Place) -> Result<Option<Running>, DetachedError> {
    let path = place.pid_file();
    let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open the file", &path)(error)),
    };
    let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))
        .map_err(|error| failed("ask who holds the file", &path)(error.into()))?;
    let Some(holder) = holder else {
        return Ok(None);
    };
    let mut text = Vec::new();
    (&mut file)
        .take(PID_FILE_LIMIT)
        .read_to_end(&mut text)
        .map_err(failed("read the file", &path))?;
    // It may be about to write it.
    let build = serde_json::from_slice::<PidFile>(&text).map_or_else(|_| String::new(), |file| file.build);
    Ok(Some(Running { pid: holder.pid, build }))
}

/// Moves a log that has grown too large out of the way.
fn tidy_log(place: &Place) -> io::Result<()> {
    let log = place.log();
    if std::fs::metadata(&log).is_ok_and(|found| found.len() > LOG_LIMIT) {
        // Who writes has it open: its content is copied and it is emptied in place. What is written in between is lost.
        std::fs::copy(&log, place.older_log())?;
        OpenOptions::new().write(true).open(&log)?.set_len(0)?;
    }
    Ok(())
}

/// Starts a program, and waits until it holds its pid file. One that runs already is found instead.
pub fn start(program: &Program) -> Result<Running, DetachedError> {
    let Program { place, path, args, env } = program;
    if let Some(running) = look(place)? {
        return Ok(running);
    }
    std::fs::create_dir_all(&place.dir).map_err(failed("create the directory", &place.dir))?;
    tidy_log(place).map_err(failed("shorten the log", &place.log()))?;
    let open_log = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(place.log())
            .map_err(failed("open the log", &place.log()))
    };
    let kept = ENVIRONMENT
        .iter()
        .filter_map(|name| std::env::var_os(name).map(|value| (OsString::from(name), value)));
    let mut child = Command::new(path)
        .args(args)
        .env_clear()
        .envs(kept)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(open_log()?)
        .stderr(open_log()?)
        .spawn()
        .map_err(failed("start the program", path))?;
    let begun = Instant::now();
    let found = loop {
        match look(place) {
            Ok(Some(running)) if !running.build.is_empty() => break Ok(running),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Another one may have been a moment faster.
            return match look(place)? {
                Some(running) => Ok(running),
                None => Err(DetachedError::Ended {
                    name: place.name.clone(),
                    status,
                    log: place.log(),
                }),
            };
        }
        if begun.elapsed() > START_LIMIT {
            break Err(DetachedError::Slow {
                name: place.name.clone(),
                log: place.log(),
            });
        }
        std::thread::sleep(STEP);
    };
    // One that was slower than another's must not take the place later, when that one was stopped.
    let ours = match &found {
        Ok(Running {
            pid: Some(pid),
            build: _,
        }) => u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id()),
        Ok(Running { pid: None, build: _ }) => true,
        Err(_) => false,
    };
    if !ours {
        let _ = child.kill();
    }
    // Whoever starts a program is told of its end, and has to ask; else its entry stays in the list of processes.
    let reaper = std::thread::Builder::new()
        .name("reaper".to_owned())
        .stack_size(64 << 10);
    let _ = reaper.spawn(move || child.wait());
    found
}

/// Ends a program: asks it to, and kills it when it has not gone within `patience`. One that does not run is no failure.
pub fn stop(place: &Place, patience: Duration) -> Result<(), DetachedError> {
    let asked = signal_until_gone(place, Signal::TERM, patience);
    if matches!(asked, Err(DetachedError::Stuck { name: _ })) {
        return signal_until_gone(place, Signal::KILL, KILL_LIMIT);
    }
    asked
}

/// Tells of the end of programs, when they end: the kernel says so.
#[derive(Debug)]
pub struct Ends {
    places: Vec<Place>,
    /// Those that ran when they were looked for last.
    followed: Vec<AsyncFd<OwnedFd>>,
}

impl Ends {
    #[must_use]
    pub fn of(places: Vec<Place>) -> Self {
        Self {
            places,
            followed: Vec::new(),
        }
    }

    /// Follows those that run now. One that cannot be followed is looked for the next time.
    pub async fn follow(&mut self) {
        let places = self.places.clone();
        let found = tokio::task::spawn_blocking(move || {
            let running = places.iter().filter_map(|place| look(place).ok()??.pid);
            running
                .filter_map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok())
                .collect::<Vec<_>>()
        });
        let found = found.await.unwrap_or_default().into_iter();
        #[expect(
            deprecated,
            reason = "what takes its place is unsafe; an OwnedFd is closed by nobody else"
        )]
        let readable = |fd| AsyncFd::with_interest(fd, Interest::READABLE).ok();
        self.followed = found.filter_map(readable).collect();
    }

    /// Until one of those that are followed has ended; for ever where none is.
    pub async fn wait(&self) {
        if self.followed.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.followed.iter().map(|one| Box::pin(one.readable()));
        drop(futures::future::select_all(ends).await);
    }
}

fn signal_until_gone(place: &Place, signal: Signal, patience: Duration) -> Result<(), DetachedError> {
    let refused = |error: Errno| DetachedError::Signal {
        name: place.name.clone(),
        source: error.into(),
    };
    let begun = Instant::now();
    let mut told = None;
    loop {
        let Some(running) = look(place)? else {
            return Ok(());
        };
        let pid = running.pid.ok_or_else(|| refused(Errno::SRCH))?;
        if told != Some(pid) {
            match pidfd_open(pid, PidfdFlags::empty()) {
                // The number may have become another's between: only if it still is the holder's, this is the holder.
                Ok(process) if look(place)?.is_some_and(|again| again.pid == Some(pid)) => {
                    match pidfd_send_signal(&process, signal) {
                        Ok(()) => told = Some(pid),
                        Err(Errno::SRCH) => {}
                        Err(error) => return Err(refused(error)),
                    }
                }
                Ok(_) | Err(Errno::SRCH) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        if begun.elapsed() > patience {
            return Err(DetachedError::Stuck {
                name: place.name.clone(),
            });
        }
        std::thread::sleep(STEP);
    }
}

/// That this process is the program of its place, until it ends.
#[derive(Debug)]
pub struct Held {
    // The lock ends with any handle of this file that this process closes: nothing else here may open it.
    _file: File,
}

/// What a program does first: leaves its starter's session, takes its place, says which build it is, and from then on keeps
/// its log small. Call it on the first thread, before there are others. [`DetachedError::Held`] when another has the place.
pub fn hold(place: &Place) -> Result<Held, DetachedError> {
    // Refused when it leads a session or group already: then nobody's end takes it along anyway.
    let _ = setsid();
    if let Ok(name) = CString::new(format!("reeve-{}", place.name)) {
        let _ = rustix::thread::set_name(&name);
    }
    std::fs::create_dir_all(&place.dir).map_err(failed("create the directory", &place.dir))?;
    let path = place.pid_file();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open the file", &path))?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => {
            return Err(DetachedError::Held {
                name: place.name.clone(),
            });
        }
        Err(error) => return Err(failed("lock the file", &path)(error.into())),
    }
    let build = build().map_err(failed("look at the file", &own_program()))?;
    let mut text = serde_json::to_vec(&PidFile {
        pid: std::process::id(),
        build,
    })
    .map_err(|error| failed("write the file", &path)(error.into()))?;
    text.push(b'\n');
    file.set_len(0)
        .and_then(|()| file.write_all(&text))
        .map_err(failed("write the file", &path))?;
    let logged = place.clone();
    let _ = std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(64 << 10)
        .spawn(move || {
            loop {
                std::thread::sleep(LOG_LOOK);
                // A full disk is no reason to end.
                let _ = tidy_log(&logged);
            }
        });
    Ok(Held { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "REEVE_TEST_DETACHED";

    /// Not a test of its own: what the tests below start, in a process of its own. Without being asked it does nothing.
    #[test]
    fn the_child_that_others_start() {
        let Some(told) = std::env::var_os(CHILD) else {
            return;
        };
        let told = told.into_string().expect("text");
        let (how, dir) = told.split_once(' ').expect("two words");
        let place = place(Path::new(dir));
        if how == "fails" {
            panic!("as it was told to");
        }
        let held = hold(&place);
        if how == "loud" {
            for _ in 0..40_000 {
                eprintln!("a line of some length that says nothing at all");
            }
        }
        if let Err(error) = &held {
            eprintln!("{error}");
            std::process::exit(3);
        }
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    fn place(dir: &Path) -> Place {
        Place {
            dir: dir.to_owned(),
            name: "child".to_owned(),
        }
    }

    fn program(dir: &Path, how: &str) -> Program {
        let words = ["--exact", "detached::tests::the_child_that_others_start", "--nocapture"];
        Program {
            place: place(dir),
            path: own_program(),
            args: words.iter().map(OsString::from).collect(),
            env: vec![(CHILD.into(), format!("{how} {}", dir.display()).into())],
        }
    }

    /// Ends what a test started, also when it fails.
    struct Ends(Place);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = stop(&self.0, Duration::ZERO);
        }
    }

    fn until(what: &str, met: impl Fn() -> bool) {
        let begun = Instant::now();
        while !met() {
            assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_is_started_once_found_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _ends = Ends(place.clone());
        assert_eq!(look(&place).unwrap(), None);
        let running = start(&program(dir.path(), "runs")).unwrap();
        assert_eq!(running.build, build().unwrap());
        assert_eq!(start(&program(dir.path(), "runs")).unwrap(), running, "it is found");
        assert_eq!(look(&place).unwrap(), Some(running.clone()));
        // A session of its own, and nothing of its starter's environment.
        let pid = running.pid.unwrap().as_raw_nonzero();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        assert_eq!(session[3], pid.to_string(), "{stat}");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(!environment.contains("CARGO"), "{environment}");
        stop(&place, Duration::from_secs(10)).unwrap();
        assert_eq!(look(&place).unwrap(), None);
        stop(&place, Duration::ZERO).unwrap();
        // Its entry in the list of processes is gone too.
        until("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_killed_program_leaves_a_pid_file_that_nobody_is_mistaken_by() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _ends = Ends(place.clone());
        let first = start(&program(dir.path(), "runs")).unwrap();
        let process = pidfd_open(first.pid.unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&process, Signal::KILL).unwrap();
        until("it is gone", || look(&place).unwrap().is_none());
        // The file says a process that runs: this one. It holds no lock, so it is not taken for the program.
        let text = format!("{{\"pid\":{},\"build\":\"x\"}}", std::process::id());
        std::fs::write(place.pid_file(), text).unwrap();
        stop(&place, Duration::ZERO).unwrap();
        let second = start(&program(dir.path(), "runs")).unwrap();
        assert_ne!(second.pid, first.pid);
    }

    #[tokio::test]
    async fn the_end_of_a_program_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _ends = Ends(place.clone());
        let mut followed = super::Ends::of(vec![place.clone()]);
        for _ in 0..2 {
            let told = async |followed: &super::Ends| {
                let limit = tokio::time::timeout(Duration::from_millis(50), followed.wait());
                limit.await.is_ok()
            };
            followed.follow().await;
            assert!(!told(&followed).await, "none runs");
            let running = start(&program(dir.path(), "runs")).unwrap();
            followed.follow().await;
            assert!(!told(&followed).await, "it runs");
            let process = pidfd_open(running.pid.unwrap(), PidfdFlags::empty()).unwrap();
            pidfd_send_signal(&process, Signal::KILL).unwrap();
            followed.wait().await;
            until("it is gone", || look(&place).unwrap().is_none());
        }
    }

    #[test]
    fn many_starters_at_once_make_one_program() {
        let dir = tempfile::tempdir().unwrap();
        let _ends = Ends(place(dir.path()));
        let program = program(dir.path(), "runs");
        let all: Vec<Running> = std::thread::scope(|scope| {
            let starters: Vec<_> = (0..6).map(|_| scope.spawn(|| start(&program).unwrap())).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        let found = look(&place(dir.path())).unwrap().unwrap();
        assert!(all.iter().all(|running| running.pid == found.pid), "{all:?}");
        // Those that were slower do not take its place when it is stopped.
        stop(&program.place, Duration::from_secs(10)).unwrap();
        let told = format!("{CHILD}=runs {}", dir.path().display());
        until("all of them are gone", || {
            let others = std::fs::read_dir("/proc").unwrap().flatten();
            let mut environments = others.filter_map(|other| std::fs::read(other.path().join("environ")).ok());
            !environments.any(|environment| environment.split(|byte| *byte == 0).any(|word| word == told.as_bytes()))
        });
        assert_eq!(look(&program.place).unwrap(), None);
    }

    #[test]
    fn one_that_ends_at_once_says_so_and_where_its_log_is() {
        let dir = tempfile::tempdir().unwrap();
        let error = start(&program(dir.path(), "fails")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`child` ended at once") && text.contains("child.log"),
            "{text}"
        );
        let log = std::fs::read_to_string(place(dir.path()).log()).unwrap();
        assert!(log.contains("as it was told to"), "{log}");
    }

    #[test]
    fn a_stopped_process_is_killed_after_the_patience() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _ends = Ends(place.clone());
        let running = start(&program(dir.path(), "runs")).unwrap();
        let process = pidfd_open(running.pid.unwrap(), PidfdFlags::empty()).unwrap();
        // A paused process takes no request to end.
        pidfd_send_signal(&process, Signal::STOP).unwrap();
        stop(&place, Duration::from_millis(50)).unwrap();
        assert_eq!(look(&place).unwrap(), None);
    }

    #[test]
    fn a_loud_program_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _ends = Ends(place.clone());
        start(&program(dir.path(), "loud")).unwrap();
        until("it moved its log", || place.older_log().exists());
        until("its log is short again", || {
            std::fs::metadata(place.log()).is_ok_and(|log| log.len() <= LOG_LIMIT)
        });
    }
}
