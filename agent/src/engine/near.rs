//! What people do near a container, told to a real engine: its log as entries with their stamps, and what one must know of
//! it first. Called by the agent's API only. Nothing here makes, starts, stops or removes a container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use schemas::image::ImageRef;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

use super::wire::{Call, Wire, encode, message, refused, within};
use super::{EngineError, ErrorKind, Result};
use crate::api::ask::Stamp;

/// Time for an answer's head.
const READ: Duration = Duration::from_secs(15);
/// Time to remove an image: of large ones engines delete many files.
const REMOVE: Duration = Duration::from_secs(120);
/// Time for a command to start: its container may be busy.
const START: Duration = Duration::from_secs(30);
/// The longest entry of a log, and the longest line of a terminal's, that is read as one.
const MAX_ENTRY: usize = 1 << 20;
/// Drivers cut what a container writes into entries of so many bytes.
const ENTRY: usize = 16 << 10;
/// The largest refusal that is read.
const MAX_REFUSAL: usize = 1 << 20;
/// How long a removal waits for those who still read the log.
const READERS: Duration = Duration::from_secs(2);

/// A command in a container, or a container's own process, with its streams.
pub struct Session {
    pub io: TokioIo<Upgraded>,
    /// Its output is a terminal's: one stream, without framing.
    pub tty: bool,
}

/// A command in a container: its words, and where they differ from the container's own, its variables, directory and user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    pub words: Vec<String>,
    pub env: std::collections::BTreeMap<String, String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    /// It has a standard input.
    pub input: bool,
    pub tty: bool,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecState {
    pub running: bool,
    pub code: Option<i64>,
}

/// The way to what is near containers.
#[derive(Clone, Debug)]
pub struct Near {
    wire: Wire,
    readers: Arc<Readers>,
}

/// What one must know of a container first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub running: bool,
    /// Its output is a terminal's: one stream, without framing.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Of its last end.
    pub exit_code: i64,
}

/// Which part of a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    pub follow: bool,
    pub since: Option<Stamp>,
    pub tail: Option<u32>,
}

impl Near {
    pub(super) fn new(wire: Wire) -> Self {
        Self {
            wire,
            readers: Arc::default(),
        }
    }

    pub async fn about(&self, id: &str) -> Result<About> {
        let path = format!("/containers/{}/json", encode(id));
        let answer = self.wire.call("inspect the container", READ, Call::get(&path)).await?;
        let flag = |pointer: &str| answer.pointer(pointer).and_then(Value::as_bool);
        Ok(About {
            running: flag("/State/Running").unwrap_or(false),
            tty: flag("/Config/Tty").unwrap_or(false),
            stdin: flag("/Config/OpenStdin").unwrap_or(false),
            exit_code: answer["State"]["ExitCode"].as_i64().unwrap_or(0),
        })
    }

    /// All images, in the engine's own words.
    pub async fn images(&self) -> Result<Value> {
        self.wire.call("list images", READ, Call::get("/images/json")).await
    }

    /// All containers, running or not, ours or not, in the engine's own words: what they are made of is in them.
    pub async fn users_of_images(&self) -> Result<Value> {
        let path = "/containers/json?all=true";
        self.wire.call("list containers", READ, Call::get(path)).await
    }

    /// Takes a name from an image, and with the last one the image; the engine refuses while a container is made of it.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        let path = format!("/images/{}", encode(name));
        let act = format!("remove image `{name}`");
        self.wire.call(&act, REMOVE, Call::delete(&path)).await.map(drop)
    }

    /// One image with all its layers, as an archive without names.
    pub async fn save_image(&self, id: &str) -> Result<Incoming> {
        const ACT: &str = "read an image from the engine";
        let path = format!("/images/{}/get", encode(id));
        let response = within(ACT, REMOVE, self.open("GET", &path, Bytes::new(), ACT, false)).await?;
        Ok(response.into_body())
    }

    /// Takes an archive of an image. An error in its stream ends it, and nothing of it is kept.
    pub async fn load_image(
        &self,
        archive: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        const ACT: &str = "give an image to the engine";
        let frames: Frames = Box::pin(archive.map(|bytes| bytes.map(Frame::data)));
        let request = Request::post("/images/load?quiet=1")
            .header("Content-Type", "application/x-tar")
            .body(Either::Right(StreamBody::new(frames)))
            .map_err(|error| EngineError::new(ErrorKind::Other, ACT, &error.to_string()))?;
        let sent = self.wire.clone().send(request).await;
        let response = sent.map_err(|error| self.wire.failed(ACT, &error))?;
        let said = Limited::new(accepted(response, ACT).await?.into_body(), MAX_REFUSAL)
            .collect()
            .await;
        let said = said.map_err(|error| EngineError::new(ErrorKind::Other, ACT, &error.to_string()))?;
        let said = said.to_bytes();
        for line in said.split(|byte| *byte == b'\n') {
            let line: Value = serde_json::from_slice(line).unwrap_or_default();
            if let Some(error) = line["errorDetail"]["message"].as_str().or(line["error"].as_str()) {
                return Err(EngineError::new(ErrorKind::Other, ACT, error));
            }
        }
        Ok(())
    }

    /// Gives an image a name.
    pub async fn name_image(&self, id: &str, name: &ImageRef) -> Result<()> {
        const ACT: &str = "name an image";
        let tag = name.tag().unwrap_or("latest");
        let path = format!(
            "/images/{}/tag?repo={}&tag={}",
            encode(id),
            encode(&name.name()),
            encode(tag)
        );
        self.wire.call(ACT, READ, Call::post(&path, None)).await.map(drop)
    }

    /// Whoever reads a container's log stays with it meanwhile: its removal waits a moment for those who do.
    pub fn stay(&self, id: &str) -> Stay {
        *self.readers.lock().counts.entry(id.to_owned()).or_default() += 1;
        Stay {
            of: Arc::clone(&self.readers),
            id: id.to_owned(),
        }
    }

    /// A container's log.
    pub async fn logs(&self, id: &str, tty: bool, part: Part) -> Result<Entries> {
        let Part { follow, since, tail } = part;
        let mut path = format!(
            "/containers/{}/logs?stdout=1&stderr=1&timestamps=1&follow={}",
            encode(id),
            u8::from(follow)
        );
        if let Some(since) = since {
            path.push_str(&format!("&since={}", since.query()));
        }
        if let Some(tail) = tail {
            path.push_str(&format!("&tail={tail}"));
        }
        let act = "read the log of the container";
        let response = within(act, READ, self.open("GET", &path, Bytes::new(), act, false)).await?;
        Ok(Entries {
            body: response.into_body(),
            buffer: BytesMut::new(),
            tty,
            ended: false,
        })
    }

    /// A command that is ready to be run in a container; its id.
    pub async fn exec(&self, id: &str, command: &Inside) -> Result<String> {
        let Inside {
            words,
            env,
            working_dir,
            user,
            input,
            tty,
        } = command;
        let mut body = json!({
            "Cmd": words, "AttachStdin": input, "AttachStdout": true, "AttachStderr": true, "Tty": tty,
        });
        if !env.is_empty() {
            let pairs = env.iter().map(|(name, value)| format!("{name}={value}"));
            body["Env"] = pairs.collect();
        }
        if let Some(dir) = working_dir {
            body["WorkingDir"] = json!(dir);
        }
        if let Some(user) = user {
            body["User"] = json!(user);
        }
        let act = "prepare the command in the container";
        let path = format!("/containers/{}/exec", encode(id));
        let answer = self.wire.call(act, READ, Call::post(&path, Some(&body))).await?;
        let id = answer["Id"].as_str().filter(|id| !id.is_empty());
        id.map(str::to_owned)
            .ok_or_else(|| EngineError::new(ErrorKind::Other, act, "its answer has no id"))
    }

    /// Runs a command that is ready.
    pub async fn start_exec(&self, exec: &str, tty: bool) -> Result<Session> {
        let body = json!({ "Detach": false, "Tty": tty }).to_string();
        let path = format!("/exec/{}/start", encode(exec));
        let io = self
            .upgraded(&path, Bytes::from(body), "run the command in the container")
            .await?;
        Ok(Session { io, tty })
    }

    pub async fn exec_state(&self, exec: &str) -> Result<ExecState> {
        let path = format!("/exec/{}/json", encode(exec));
        let answer = self
            .wire
            .call("ask how the command ended", READ, Call::get(&path))
            .await?;
        Ok(ExecState {
            running: answer["Running"].as_bool().unwrap_or(false),
            code: answer["ExitCode"].as_i64(),
        })
    }

    /// Joins a container's own process.
    pub async fn attach(&self, id: &str, input: bool, tty: bool) -> Result<Session> {
        let path = format!(
            "/containers/{}/attach?stream=1&stdout=1&stderr=1&stdin={}",
            encode(id),
            u8::from(input)
        );
        let io = self.upgraded(&path, Bytes::new(), "attach to the container").await?;
        Ok(Session { io, tty })
    }

    /// Tells the terminal of a command (`/exec/<id>`) or a container (`/containers/<id>`) its size.
    pub async fn resize(&self, of: &str, rows: u16, columns: u16) -> Result<()> {
        let path = format!("{of}/resize?h={rows}&w={columns}");
        let resized = self
            .wire
            .call("resize the terminal", READ, Call::post(&path, None))
            .await;
        resized.map(drop)
    }

    /// An address of the container that this host reaches; loopback where it has the host's network.
    pub async fn address(&self, id: &str) -> Result<Option<IpAddr>> {
        let path = format!("/containers/{}/json", encode(id));
        let answer = self.wire.call("inspect the container", READ, Call::get(&path)).await?;
        if answer.pointer("/HostConfig/NetworkMode").and_then(Value::as_str) == Some("host") {
            return Ok(Some(IpAddr::from([127, 0, 0, 1])));
        }
        let networks = answer.pointer("/NetworkSettings/Networks").and_then(Value::as_object);
        let addresses = networks.into_iter().flatten().filter_map(|(_, network)| {
            let v4 = network["IPAddress"].as_str().and_then(|text| text.parse().ok());
            v4.or_else(|| network["GlobalIPv6Address"].as_str()?.parse().ok())
        });
        Ok({ addresses }.next())
    }

    /// Whether there is something at a path of a container, and whether it is a directory.
    pub async fn place(&self, id: &str, path: &str) -> Result<Option<bool>> {
        const ACT: &str = "look into the container";
        /// Go's bits for a directory and a link.
        const DIRECTORY: u64 = 1 << 31;
        const LINK: u64 = 1 << 27;
        let mut path = path.to_owned();
        // The engine resolves links on the way, and tells where one at the end leads.
        for _ in 0..2 {
            let asked = format!("/containers/{}/archive?path={}", encode(id), encode(&path));
            let response = match within(ACT, READ, self.open("HEAD", &asked, Bytes::new(), ACT, false)).await {
                Ok(response) => response,
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let told = response.headers().get("X-Docker-Container-Path-Stat");
            let told = told.and_then(|value| STANDARD.decode(value.as_bytes()).ok());
            let told: Option<Value> = told.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let told = told.ok_or_else(|| EngineError::new(ErrorKind::Other, ACT, "its answer is not understood"))?;
            let mode = told["mode"].as_u64().unwrap_or(0);
            match told["linkTarget"]
                .as_str()
                .filter(|target| mode & LINK != 0 && !target.is_empty())
            {
                Some(target) => path = target.to_owned(),
                None => return Ok(Some(mode & DIRECTORY != 0)),
            }
        }
        Ok(Some(false))
    }

    /// A file or directory of a container, as an archive.
    pub async fn archive(&self, id: &str, path: &str) -> Result<Incoming> {
        const ACT: &str = "read from the container";
        let path = format!("/containers/{}/archive?path={}", encode(id), encode(path));
        let response = within(ACT, START, self.open("GET", &path, Bytes::new(), ACT, false)).await?;
        Ok(response.into_body())
    }

    /// Unpacks an archive in a directory of a container. An error in its stream ends it.
    pub async fn unpack(
        &self,
        id: &str,
        path: &str,
        archive: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        const ACT: &str = "write into the container";
        let path = format!(
            "/containers/{}/archive?path={}&noOverwriteDirNonDir=true",
            encode(id),
            encode(path)
        );
        let frames: Frames = Box::pin(archive.map(|bytes| bytes.map(Frame::data)));
        let request = Request::put(path)
            .header("Content-Type", "application/x-tar")
            .body(Either::Right(StreamBody::new(frames)))
            .map_err(|error| EngineError::new(ErrorKind::Other, ACT, &error.to_string()))?;
        let sent = self.wire.clone().send(request).await;
        let response = sent.map_err(|error| self.wire.failed(ACT, &error))?;
        accepted(response, ACT).await.map(drop)
    }

    async fn upgraded(&self, path: &str, body: Bytes, act: &str) -> Result<TokioIo<Upgraded>> {
        let broke = |error: hyper::Error| EngineError::new(ErrorKind::Unavailable, act, &error.to_string());
        within(act, START, async {
            let response = self.open("POST", path, body, act, true).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(EngineError::new(
                    ErrorKind::Other,
                    act,
                    "the engine does not upgrade the connection",
                ));
            }
            Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(broke)?))
        })
        .await
    }

    /// Tells those who stay with a container that it is about to be removed, and waits until they have gone, for a moment at
    /// most.
    pub(super) async fn read_out(&self, id: &str) {
        if !self.readers.lock().counts.contains_key(id) {
            return;
        }
        self.readers.lock().leaving.insert(id.to_owned());
        self.readers.changed.notify_waiters();
        let _ = tokio::time::timeout(READERS, self.readers.until(|now| !now.counts.contains_key(id))).await;
        self.readers.lock().leaving.remove(id);
    }

    /// A request, up to its answer's head; refusals are errors.
    async fn open(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        act: &str,
        upgrade: bool,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", "application/json");
        if upgrade {
            request = request.header("Connection", "Upgrade").header("Upgrade", "tcp");
        }
        let request = request
            .body(Either::Left(Full::new(body)))
            .map_err(|error| EngineError::new(ErrorKind::Other, act, &error.to_string()))?;
        let sent = self.wire.clone().send(request).await;
        let response = sent.map_err(|error| self.wire.failed(act, &error))?;
        accepted(response, act).await
    }
}

/// Refusals are errors.
async fn accepted(response: Response<Incoming>, act: &str) -> Result<Response<Incoming>> {
    if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let read = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Err(refused(act, status, &message(&bytes)))
}

/// A request's body, as it comes.
type Frames = Pin<Box<dyn futures::Stream<Item = std::io::Result<Frame<Bytes>>> + Send>>;

/// Who reads which containers' logs just now.
#[derive(Debug, Default)]
struct Readers {
    now: Mutex<Now>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Now {
    counts: BTreeMap<String, usize>,
    /// Containers that are about to be removed.
    leaving: BTreeSet<String>,
}

impl Readers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        // Nothing panics while holding it; if it did, the counts would still be whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until(&self, so: impl Fn(&Now) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if so(&self.lock()) {
                return;
            }
            changed.await;
        }
    }
}

/// Somebody who reads a container's log, or waits for more of it.
#[derive(Debug)]
pub struct Stay {
    of: Arc<Readers>,
    id: String,
}

impl Stay {
    /// Whether the container is about to be removed: what was not read yet is to be read now.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.of.lock().leaving.contains(&self.id)
    }

    /// Waits until it is.
    pub async fn ending(&self) {
        self.of.until(|now| now.leaving.contains(&self.id)).await;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut now = self.of.lock();
        if let Some(count) = now.counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                now.counts.remove(&self.id);
            }
        }
        drop(now);
        self.of.changed.notify_waiters();
    }
}

/// Which stream something was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// One entry of a log: a line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// None where the driver gives none.
    pub stamp: Option<Stamp>,
    pub text: Bytes,
    /// Whether the line ends here.
    pub ends: bool,
}

/// The entries of a log, as the engine sends them.
pub struct Entries {
    body: Incoming,
    buffer: BytesMut,
    tty: bool,
    ended: bool,
}

impl Entries {
    /// The next entry; None when the engine has sent all.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        const ACT: &str = "read the log of the container";
        loop {
            let took = if self.tty {
                take_terminal(&mut self.buffer, self.ended)
            } else {
                take_framed(&mut self.buffer)
            };
            match took {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) if self.ended => return Ok(None),
                Ok(None) => {}
                Err(why) => return Err(EngineError::new(ErrorKind::Other, ACT, why)),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    let said = format!("the connection broke: {error}");
                    return Err(EngineError::new(ErrorKind::Unavailable, ACT, &said));
                }
                None => self.ended = true,
            }
        }
    }
}

/// What comes out of a [`Session`].
pub struct Output<R> {
    from: R,
    buffer: BytesMut,
    tty: bool,
}

impl<R: AsyncRead + Unpin> Output<R> {
    pub fn new(from: R, tty: bool) -> Self {
        let buffer = BytesMut::new();
        Self { from, buffer, tty }
    }

    /// The next bytes; None at the end. Dropping a call under way loses nothing.
    pub async fn next(&mut self) -> std::io::Result<Option<(Stream, Bytes)>> {
        loop {
            if self.tty && !self.buffer.is_empty() {
                return Ok(Some((Stream::Out, self.buffer.split().freeze())));
            }
            if !self.tty
                && let Some(frame) = take_frame(&mut self.buffer).map_err(std::io::Error::other)?
            {
                return Ok(Some(frame));
            }
            self.buffer.reserve(16 << 10);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// One frame of the engine's: a stream, three zeros, a length, and an entry.
fn take_framed(buffer: &mut BytesMut) -> std::result::Result<Option<Entry>, &'static str> {
    let Some((stream, payload)) = take_frame(buffer)? else {
        return Ok(None);
    };
    let (stamp, mut text) = stamped(payload);
    let ends = text.ends_with(b"\n");
    if ends {
        text.truncate(text.len() - 1);
    }
    Ok(Some(Entry {
        stream,
        stamp,
        text,
        ends,
    }))
}

/// The engine's own framing of two streams in one.
fn take_frame(buffer: &mut BytesMut) -> std::result::Result<Option<(Stream, Bytes)>, &'static str> {
    let Some(head) = buffer.get(..8) else { return Ok(None) };
    let stream = match head[..4] {
        [0 | 1, 0, 0, 0] => Stream::Out,
        [2 | 3, 0, 0, 0] => Stream::Err,
        _ => return Err("its answer is not framed as expected"),
    };
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_ENTRY {
        return Err("an entry is too large");
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    Ok(Some((stream, buffer.split_to(length).freeze())))
}

/// An entry of a terminal's log: a line without framing, in which each part of [`ENTRY`] bytes begins with the same stamp.
fn take_terminal(buffer: &mut BytesMut, ended: bool) -> std::result::Result<Option<Entry>, &'static str> {
    let end = buffer.iter().position(|byte| *byte == b'\n');
    // A part of a long line: stamped, full, and followed by the same stamp.
    let head = buffer.iter().take(64).position(|byte| *byte == b' ').map(|at| at + 1);
    if let Some(head) = head
        && end.is_none_or(|end| end > head + ENTRY)
        && buffer.len() >= head + ENTRY + head
        && buffer[head + ENTRY..head + ENTRY + head] == buffer[..head]
    {
        let (stamp, text) = stamped(buffer.split_to(head + ENTRY).freeze());
        if stamp.is_some() {
            return Ok(Some(Entry {
                stream: Stream::Out,
                stamp,
                text,
                ends: false,
            }));
        }
        return Err("an entry bears no time");
    }
    let line = match end {
        Some(end) => buffer.split_to(end + 1).freeze(),
        None if buffer.len() > MAX_ENTRY => return Err("a line is too large"),
        None if ended && !buffer.is_empty() => buffer.split().freeze(),
        None => return Ok(None),
    };
    let (stamp, mut text) = stamped(line);
    let ends = text.ends_with(b"\n");
    if ends {
        text.truncate(text.len() - 1);
    }
    // What a terminal ends its lines with.
    if text.ends_with(b"\r") {
        text.truncate(text.len() - 1);
    }
    Ok(Some(Entry {
        stream: Stream::Out,
        stamp,
        text,
        ends: true,
    }))
}

/// The stamp an entry begins with, and the rest.
fn stamped(mut entry: Bytes) -> (Option<Stamp>, Bytes) {
    let Some(at) = entry.iter().take(64).position(|byte| *byte == b' ') else {
        return (None, entry);
    };
    let parsed = std::str::from_utf8(&entry[..at]).ok();
    let Some(stamp) = parsed.and_then(|text| text.parse::<jiff::Timestamp>().ok()) else {
        return (None, entry);
    };
    // Before 1970 no engine ran: a negative part of a second cannot be.
    let nanos = u32::try_from(stamp.subsec_nanosecond()).unwrap_or(0);
    entry.advance(at + 1);
    let stamp = Stamp {
        seconds: stamp.as_second(),
        nanos,
    };
    (Some(stamp), entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let mut out = vec![stream, 0, 0, 0];
        out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        out.extend(text.as_bytes());
        out
    }

    #[test]
    fn an_entry_has_its_stream_its_stamp_and_its_end() {
        let mut buffer = BytesMut::from(&frame(2, "2026-01-02T03:04:05.000000007Z a b\n")[..]);
        buffer.extend_from_slice(&frame(1, "2026-01-02T03:04:05.000000008Z part"));
        let first = take_framed(&mut buffer).unwrap().unwrap();
        assert_eq!(
            (first.stream, &first.text[..], first.ends),
            (Stream::Err, &b"a b"[..], true)
        );
        assert_eq!(first.stamp.unwrap().nanos, 7);
        assert_eq!(first.stamp.unwrap().query(), "1767323045.000000007");
        let second = take_framed(&mut buffer).unwrap().unwrap();
        assert_eq!(
            (second.stream, &second.text[..], second.ends),
            (Stream::Out, &b"part"[..], false)
        );
        assert_eq!(take_framed(&mut buffer), Ok(None));
    }

    #[test]
    fn a_terminals_lines_are_whole_also_where_the_driver_has_cut_them() {
        let stamp = "2026-01-02T03:04:05.000000007Z ";
        let long = "x".repeat(ENTRY);
        let text = format!("{stamp}a\r\n{stamp}{long}{stamp}rest\r\n");
        let mut buffer = BytesMut::from(text.as_bytes());
        let mut entries = Vec::new();
        while let Some(entry) = take_terminal(&mut buffer, false).unwrap() {
            entries.push((entry.text, entry.ends));
        }
        let desired = [("a".to_owned(), true), (long, false), ("rest".to_owned(), true)];
        let desired = desired.map(|(text, ends)| (Bytes::from(text), ends));
        assert_eq!(entries, desired);
    }

    #[test]
    fn what_is_framed_wrongly_is_an_error_and_takes_no_memory() {
        for bytes in [&[9, 9, 9, 9, 0, 0, 0, 1, 0][..], &[1, 0, 0, 0, 255, 255, 255, 255]] {
            assert!(take_framed(&mut BytesMut::from(bytes)).is_err());
        }
        assert_eq!(take_framed(&mut BytesMut::from(&[1, 0, 0][..])), Ok(None));
        assert_eq!(stamped(Bytes::from_static(b"no stamp")).0, None);
    }

    #[tokio::test]
    async fn a_removal_tells_those_who_read_waits_for_them_and_not_for_ever() {
        let wire = Wire {
            address: super::super::wire::Address::parse("/nowhere").unwrap(),
        };
        let near = Near::new(wire);
        near.read_out("a").await;
        let (one, two) = (near.stay("a"), near.stay("a"));
        assert!(!one.is_ending());
        let removing = tokio::spawn({
            let near = near.clone();
            async move { near.read_out("a").await }
        });
        one.ending().await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(!removing.is_finished() && two.is_ending());
        drop(two);
        removing.await.unwrap();
        let stays = near.stay("a");
        let began = std::time::Instant::now();
        near.read_out("a").await;
        assert!(began.elapsed() >= READERS && !stays.is_ending());
    }
}
