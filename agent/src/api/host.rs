//! Commands on the node itself, and its engine's own program: `reeve node exec` and `reeve docker`. Called by `server`, after
//! the caller's rights and the node's policy allowed it and it was recorded. A command is what was asked for, word by word,
//! without a shell; it has no standard input, runs in a process group of its own, and ends with its caller, its time, or this
//! agent.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::BytesMut;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::ask::{Ended, Refusal, Why};
use super::session::{Peer, send};
use super::wire::{Frame, Kind, PIECE};
use crate::policy::NodeCommand;

/// The longest that a command runs.
const MOST: Duration = Duration::from_secs(3_600);
/// How long what a command left behind may go on writing after it has ended.
const REST: Duration = Duration::from_millis(500);
/// Where programs are looked for: the agent's own variables are not the command's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Code(i64),
    /// The caller has gone.
    Left,
    /// Its time was over.
    Late,
}

/// Ends a whole process group when it is dropped: whatever the command began ends with it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Nothing is left of it: as well.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn docker() -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| Path::new(dir).join("docker"))
        .find(|path| path.is_file())
}

/// Starts the command.
fn start(kind: NodeCommand, words: &[String], engine: Option<&str>) -> Result<Child, Refusal> {
    let (program, args) = match kind {
        NodeCommand::Exec => {
            let (first, rest) = words
                .split_first()
                .filter(|(first, _)| !first.is_empty())
                .ok_or_else(|| Refusal::new(Why::NotUnderstood, "there is no command"))?;
            (PathBuf::from(first), rest)
        }
        NodeCommand::Docker => {
            let none = || {
                Refusal::new(Why::NotHere, "this node has no program `docker`").help(
                    "install it there (Debian: `apt install docker.io`); the engine alone does not bring it everywhere",
                )
            };
            (docker().ok_or_else(none)?, words)
        }
    };
    let mut command = Command::new(&program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let (NodeCommand::Docker, Some(engine)) = (kind, engine) {
        command.env("DOCKER_HOST", engine);
    }
    command.spawn().map_err(|error| {
        Refusal::new(
            Why::NotHere,
            format!(
                "`{}` cannot be started: {error}",
                crate::engine::clean(&program.to_string_lossy(), 200)
            ),
        )
        .help("name a program of that node, with its arguments; no shell reads them")
    })
}

/// Runs it to its end, and says how it ended.
pub async fn run<R: AsyncRead + Unpin>(
    kind: NodeCommand,
    words: &[String],
    engine: Option<&str>,
    limit: Duration,
    begun: Frame,
    peer: &mut Peer<R>,
) -> Result<Finished, Refusal> {
    let mut child = start(kind, words, engine)?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let group = Group(id.and_then(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let _ = peer.out.send(begun).await;
    let to = peer.out.clone();
    let passed = async {
        tokio::join!(pass(out, Kind::Stdout, &to), pass(err, Kind::Stderr, &to));
    };
    let mut passed = std::pin::pin!(passed);
    let limit = limit.min(MOST);
    let finished = tokio::select! {
        ended = async {
            // What it writes is passed on while it runs, and for a moment afterwards.
            let status = tokio::select! {
                status = child.wait() => status,
                () = &mut passed => return child.wait().await,
            };
            let _ = tokio::time::timeout(REST, &mut passed).await;
            status
        } => match ended {
            Ok(status) => Finished::Code(code(status)),
            Err(error) => return Err(Refusal::new(Why::Engine, format!("the command cannot be waited for: {error}"))),
        },
        () = tokio::time::sleep(limit) => Finished::Late,
        () = peer.gone() => Finished::Left,
    };
    drop(group);
    let last = match finished {
        Finished::Code(code) => Ended::Exited { code },
        Finished::Late => Ended::Failed(
            Refusal::new(Why::Denied, format!("it was ended after {} s", limit.as_secs()))
                .help("give it more with --timeout, an hour at most"),
        ),
        Finished::Left => return Ok(finished),
    };
    let _ = peer.out.send(Frame::json(Kind::End, &last)).await;
    Ok(finished)
}

/// As shells say it: of a signal, 128 and its number.
fn code(status: std::process::ExitStatus) -> i64 {
    use std::os::unix::process::ExitStatusExt as _;
    let of_signal = || status.signal().map(|number| 128 + i64::from(number));
    status.code().map(i64::from).or_else(of_signal).unwrap_or(1)
}

async fn pass(from: Option<impl AsyncRead + Unpin>, kind: Kind, to: &mpsc::Sender<Frame>) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if send(to, kind, buffer.split().freeze()).await => {}
            Ok(_) => return,
        }
    }
}
