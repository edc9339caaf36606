//! An instance's log as a conversation: lines of its container, then of what it is restarted as, then of its next container,
//! each once. Called by `server`. It promises that whoever goes on after the last line it got misses none.

use std::time::Duration;

use schemas::names::InstanceName;
use schemas::records::Phase;
use tokio::sync::mpsc;

use super::ask::{Cursor, Ended, Named, Read, Refusal, Since, Stamp, Why};
use super::directory::{Directories, known};
use super::lines::{Line, Lines};
use super::wire::{Frame, Kind};
use crate::engine::near::{Near, Part, Stay};
use crate::engine::{EngineError, ErrorKind};

/// An instance that does not run is looked at this often, beside what the loop tells.
const LOOK: Duration = Duration::from_millis(500);
/// A log that ends at once is not asked for more often than this.
const AGAIN: Duration = Duration::from_millis(100);

/// What was asked.
pub struct Wanted {
    pub instance: Named,
    pub follow: bool,
    pub since: Option<Since>,
    pub tail: Option<u32>,
    pub after: Option<Read>,
}

/// Why it does not go on.
enum Stop {
    /// Nobody takes what is sent.
    Left,
    Engine(EngineError),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Answers, sends, and says how it ended; ends early when nobody listens.
pub async fn serve(near: &Near, directories: &mut Directories, wanted: Wanted, out: &mpsc::Sender<Frame>) {
    if let Err(refusal) = begin(near, directories, &wanted).await {
        let _ = out.send(super::server::refusal(refusal)).await;
        return;
    }
    if out.send(super::server::begun()).await.is_err() {
        return;
    }
    let ended = match follow(near, directories, &wanted, out).await {
        Ok(ended) => ended,
        Err(Stop::Left) => return,
        Err(Stop::Engine(error)) => Ended::Failed(failed(error)),
    };
    let _ = out.send(Frame::json(Kind::End, &ended)).await;
}

/// What must be so for it to begin.
async fn begin(near: &Near, directories: &mut Directories, wanted: &Wanted) -> Result<(), Refusal> {
    let directory = known(directories).await.ok_or_else(super::server::not_ready)?;
    let name = wanted.instance.name();
    let entry = directory.get(&name).ok_or_else(|| super::server::not_here(&name))?;
    let Some(id) = &entry.container else {
        return if wanted.follow {
            Ok(())
        } else {
            let message = format!("{name} has no container yet: {}", phase(entry.phase));
            Err(Refusal::new(Why::NotRunning, message).help("`reeve describe` says why; -f waits for it"))
        };
    };
    // A driver that cannot be read back says so at once.
    let part = Part {
        tail: Some(0),
        ..Part::default()
    };
    match near.logs(id, false, part).await {
        Ok(_) => Ok(()),
        // It has gone meanwhile: who follows waits for the next one.
        Err(error) if error.kind == ErrorKind::NotFound && wanted.follow => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

fn phase(phase: Phase) -> String {
    format!("{phase:?}").to_ascii_lowercase()
}

fn is_unreadable(error: &EngineError) -> bool {
    error.said.contains("does not support reading")
}

fn failed(error: EngineError) -> Refusal {
    if is_unreadable(&error) {
        return Refusal::new(Why::Unreadable, "its logging driver cannot be read back").help(
            "read the log where the driver sends it, or choose `json-file`, `local` or `journald` as `logging.driver`",
        );
    }
    error.into()
}

/// Sends the lines of one instance, over all its containers.
async fn follow(
    near: &Near,
    directories: &mut Directories,
    wanted: &Wanted,
    out: &mpsc::Sender<Frame>,
) -> Result<Ended, Stop> {
    let name = wanted.instance.name();
    let now = jiff::Timestamp::now();
    let floor = match (wanted.since, wanted.tail) {
        (Some(Since::At(stamp)), _) => stamp,
        (Some(Since::Ago { millis }), _) => {
            let ms = now
                .as_millisecond()
                .saturating_sub(i64::try_from(millis).unwrap_or(i64::MAX));
            Stamp {
                seconds: ms.max(0) / 1_000,
                nanos: u32::try_from(ms.max(0) % 1_000).unwrap_or(0) * 1_000_000,
            }
        }
        (None, Some(_) | None) => Stamp::default(),
    };
    // The container whose lines are read, and how far.
    let mut reading: Option<(String, Lines)> = wanted
        .after
        .as_ref()
        .map(|read| (read.container.clone(), Lines::new(read.cursor)));
    let mut tail = wanted.tail.filter(|_| wanted.after.is_none());
    loop {
        let Some(id) = container(directories, &name, wanted.follow).await else {
            return Ok(Ended::Gone);
        };
        let mut lines = match reading.take() {
            Some((container, lines)) if container == id => lines,
            // What came before was of another container: its rest went with it.
            Some(_) | None => Lines::new(Cursor { stamp: floor, count: 0 }),
        };
        let mut sent = Sent { out, any: false };
        // With --tail, what is written from now on comes after the last lines, also when there are none.
        let opened = tail.map(|_| Cursor {
            stamp: Stamp {
                seconds: now.as_second(),
                nanos: u32::try_from(now.subsec_nanosecond()).unwrap_or(0),
            },
            count: 0,
        });
        tell_container(&id, opened.unwrap_or(lines.cursor()), out).await?;
        let stay = near.stay(&id);
        loop {
            match read(near, &id, &mut lines, wanted.follow, tail.take(), floor, &mut sent).await {
                Ok(()) => {}
                Err(Stop::Engine(error)) if wanted.follow && passes(&error) => {}
                Err(stop) => return Err(stop),
            }
            if !wanted.follow {
                for line in lines.rest() {
                    sent.send(line).await?;
                }
                return Ok(Ended::Done);
            }
            match opened {
                Some(opened) if !sent.any => lines = Lines::new(opened),
                Some(_) | None => lines.again(),
            }
            // What an engine does not send to those who follow when a container ends is in its log all the same.
            match read(near, &id, &mut lines, false, None, floor, &mut sent).await {
                Ok(()) => {
                    for line in lines.rest() {
                        sent.send(line).await?;
                    }
                }
                Err(Stop::Engine(error)) if passes(&error) => {}
                Err(stop) => return Err(stop),
            }
            lines.again();
            if stay.is_ending() {
                break;
            }
            tokio::time::sleep(AGAIN).await;
            if !more(near, directories, &name, &id, Some(&stay), out).await? && !stay.is_ending() {
                break;
            }
        }
        // Its removal waits for nobody who stays no longer.
        drop(stay);
        more(near, directories, &name, &id, None, out).await?;
        reading = Some((id, lines));
    }
}

/// Whether following goes on after it: the container may be gone, the engine may be restarting.
fn passes(error: &EngineError) -> bool {
    !is_unreadable(error) && (error.kind == ErrorKind::NotFound || error.is_passing())
}

struct Sent<'a> {
    out: &'a mpsc::Sender<Frame>,
    any: bool,
}

impl Sent<'_> {
    async fn send(&mut self, line: Line) -> Result<(), Stop> {
        self.any = true;
        let frame = Frame::new(Kind::Line, line.encode());
        self.out.send(frame).await.map_err(|_| Stop::Left)
    }
}

async fn tell_container(id: &str, cursor: Cursor, out: &mpsc::Sender<Frame>) -> Result<(), Stop> {
    let told = Read {
        container: id.to_owned(),
        cursor,
    };
    let frame = Frame::json(Kind::Container, &told);
    out.send(frame).await.map_err(|_| Stop::Left)
}

/// One reading of a container's log, from where `lines` are.
async fn read(
    near: &Near,
    id: &str,
    lines: &mut Lines,
    follow: bool,
    tail: Option<u32>,
    floor: Stamp,
    sent: &mut Sent<'_>,
) -> Result<(), Stop> {
    let about = near.about(id).await?;
    let since = Some(lines.cursor().stamp.max(floor)).filter(|stamp| *stamp != Stamp::default());
    let part = Part { follow, since, tail };
    let mut entries = near.logs(id, about.tty, part).await?;
    loop {
        let entry = tokio::select! {
            entry = entries.next() => entry?,
            () = sent.out.closed() => return Err(Stop::Left),
        };
        let Some(entry) = entry else { return Ok(()) };
        if let Some(line) = lines.take(entry) {
            sent.send(line).await?;
        }
    }
}

/// The instance's container now; waits for one where that is asked for. None when the instance is not of this node.
async fn container(directories: &mut Directories, name: &InstanceName, wait: bool) -> Option<String> {
    loop {
        let directory = known(directories).await?;
        directories.borrow_and_update();
        match &directory.get(name)?.container {
            Some(id) => return Some(id.clone()),
            None if !wait => return None,
            None => directories.changed().await.ok()?,
        }
    }
}

/// Waits until this container of the instance runs (true), is about to be removed (true), or is no longer the instance's.
async fn more(
    near: &Near,
    directories: &mut Directories,
    name: &InstanceName,
    id: &str,
    stay: Option<&Stay>,
    out: &mpsc::Sender<Frame>,
) -> Result<bool, Stop> {
    loop {
        let same = directories
            .borrow_and_update()
            .as_ref()
            .and_then(|directory| directory.get(name).cloned())
            .is_some_and(|entry| entry.container.as_deref() == Some(id));
        if !same {
            return Ok(false);
        }
        match near.about(id).await {
            Ok(about) if about.running => return Ok(true),
            Ok(_) | Err(_) => {}
        }
        let ending = async {
            match stay {
                Some(stay) => stay.ending().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = directories.changed() => if changed.is_err() { return Ok(false) },
            () = tokio::time::sleep(LOOK) => {}
            () = ending => return Ok(true),
            () = out.closed() => return Err(Stop::Left),
        }
    }
}
