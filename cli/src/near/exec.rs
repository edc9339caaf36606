//! `reeve exec` and `reeve attach`: a command in an instance's container, or the container's own process, with this
//! terminal or these pipes. The command's exit code becomes ours.

use std::io::{IsTerminal as _, Write as _};

use agent::api::ask::{Ask, Asked, Ended, Named};
use agent::api::wire::{Frame, Kind};
use agent::api::{AskError, Talk};
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::terminal::{Raw, Typed, send_input, size};
use super::{Target, failed, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::{AttachArgs, ExecArgs};
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::output::complain;

pub async fn exec(common: &Common, args: &ExecArgs) -> Verdict {
    if args.tty && !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage("-t: standard input is no terminal").help("leave -t out where input comes by a pipe")
        );
    }
    let target = Target::parse(common, &args.what)?;
    let (_, view, ways) = prepare(common).await?;
    let instance = target.one(&view)?;
    let client = ways.to(&view, instance.node)?;
    let what = format!(
        "run `{}` in {}",
        args.command.first().map_or("", String::as_str),
        instance.name
    );
    let asked = Asked {
        by: person(),
        ask: Ask::Exec {
            instance: Named::from(&instance.name),
            command: args.command.clone(),
            input: args.interactive,
            terminal: args.tty.then(size),
        },
    };
    let node = instance.node;
    let talk = client
        .ask(node, &asked)
        .await
        .map_err(|error| failed(&what, node, &error))?;
    let session = Session {
        input: args.interactive,
        terminal: args.tty,
        keys: false,
    };
    let ended = session.run(talk).await.map_err(|error| failed(&what, node, &error))?;
    finish(ended, |error| failed(&what, node, &error)).await
}

pub async fn attach(common: &Common, args: &AttachArgs) -> Verdict {
    let target = Target::parse(common, &args.what)?;
    let (_, view, ways) = prepare(common).await?;
    let instance = target.one(&view)?;
    let client = ways.to(&view, instance.node)?;
    let what = format!("attach to {}", instance.name);
    // Whether it has a terminal is the container's own matter; ours is raw only where keys are passed on.
    let terminal = !args.no_stdin && std::io::stdin().is_terminal();
    let asked = Asked {
        by: person(),
        ask: Ask::Attach {
            instance: Named::from(&instance.name),
            input: !args.no_stdin,
            terminal: terminal.then(size),
        },
    };
    let node = instance.node;
    let talk = client
        .ask(node, &asked)
        .await
        .map_err(|error| failed(&what, node, &error))?;
    if terminal {
        complain("Ctrl-P Ctrl-Q leaves; the container runs on.\r\n");
    }
    let session = Session {
        input: !args.no_stdin,
        terminal,
        keys: terminal,
    };
    let ended = session.run(talk).await.map_err(|error| failed(&what, node, &error))?;
    finish(ended, |error| failed(&what, node, &error)).await
}

/// How a session ended, as seen from here.
pub(super) enum Finished {
    There(Ended),
    /// The keys to leave by were typed.
    Left,
    /// A signal ended us.
    Signal(i32),
}

pub(super) async fn finish(finished: Finished, failed: impl Fn(AskError) -> Failure) -> Verdict {
    match finished {
        Finished::There(Ended::Exited { code }) => {
            let _ = std::io::stdout().flush();
            crate::audit::end(u8::try_from(code & 0xff).unwrap_or(1), false).await;
            // What is above a byte is the shell's business nowhere.
            std::process::exit(i32::try_from(code & 0xff).unwrap_or(1));
        }
        Finished::There(Ended::Done | Ended::Gone) | Finished::Left => Ok(Exit::Done),
        Finished::There(Ended::Failed(refusal)) => Err(failed(AskError::Refused(refusal))),
        Finished::Signal(number) => {
            crate::audit::end(u8::try_from(128 + number).unwrap_or(u8::MAX), false).await;
            std::process::exit(128 + number);
        }
    }
}

/// What is passed on, and how.
pub(super) struct Session {
    pub input: bool,
    pub terminal: bool,
    /// Whether the keys to leave by are looked for.
    pub keys: bool,
}

impl Session {
    pub(super) async fn run(self, mut talk: Talk) -> Result<Finished, AskError> {
        let raw = if self.terminal { Raw::enter().ok() } else { None };
        let ended = self.pass(&mut talk).await;
        drop(raw);
        ended
    }

    async fn pass(&self, talk: &mut Talk) -> Result<Finished, AskError> {
        let mut input = self.input.then(|| send_input(talk.out.clone(), self.keys));
        let listen = |kind| signal(kind).map_err(|error| AskError::Broke(agent::api::wire::WireError::Read(error)));
        let mut resized = listen(SignalKind::window_change())?;
        let mut ended = listen(SignalKind::terminate())?;
        let mut hung_up = listen(SignalKind::hangup())?;
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        loop {
            tokio::select! {
                frame = talk.next() => {
                    let frame = frame?.ok_or(AskError::Ended)?;
                    match frame.kind {
                        Kind::Stdout => put(&mut out, &frame.payload).await,
                        Kind::Stderr => put(&mut err, &frame.payload).await,
                        Kind::End => {
                            let ended = serde_json::from_slice(&frame.payload).map_err(|_| AskError::Ended)?;
                            return Ok(Finished::There(ended));
                        }
                        Kind::Ask
                        | Kind::Answer
                        | Kind::Data
                        | Kind::DataEnd
                        | Kind::Line
                        | Kind::Container
                        | Kind::Resize
                        | Kind::Ping => return Err(AskError::Ended),
                    }
                }
                typed = end_of(&mut input) => {
                    if typed == Some(Typed::Detach) {
                        return Ok(Finished::Left);
                    }
                    // Its end was sent; what the other side says is still to come.
                    input = None;
                }
                _ = resized.recv(), if self.terminal => {
                    let _ = talk.out.send(Frame::json(Kind::Resize, &size())).await;
                }
                _ = ended.recv() => return Ok(Finished::Signal(15)),
                _ = hung_up.recv() => return Ok(Finished::Signal(1)),
            }
        }
    }
}

/// What ended standard input; never where there is none.
async fn end_of(input: &mut Option<tokio::sync::oneshot::Receiver<Typed>>) -> Option<Typed> {
    match input {
        Some(input) => input.await.ok(),
        None => std::future::pending().await,
    }
}

/// Bytes as they are, at once. That nobody takes them does not end the command.
async fn put(to: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    let _ = to.write_all(bytes).await;
    let _ = to.flush().await;
}
