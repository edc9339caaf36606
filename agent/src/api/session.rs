//! A command in a container, or a container's own process, as a conversation: bytes both ways until either ends. Called by
//! `server`, after it was allowed and recorded. Nothing of what passes is kept or logged.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::ask::{Ended, Refusal, Size, Why};
use super::wire::{Frame, Kind, PIECE, Reader, SILENCE};
use crate::engine::near::{Near, Output, Session, Stream};

/// How long a command that closed its output may take to end.
const END: Duration = Duration::from_secs(10);
/// How long a terminal may take to be there.
const TERMINAL: Duration = Duration::from_secs(2);

/// Who is at the other end of a conversation: what he sends, and where to send.
pub struct Peer<R> {
    pub reader: Reader<R>,
    pub out: mpsc::Sender<Frame>,
}

/// How the passing of bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The process has said all.
    Ended,
    /// The caller has gone.
    Left,
}

impl<R: AsyncRead + Unpin> Peer<R> {
    /// The next frame that says something; None when the caller has gone, or is silent for too long.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match tokio::time::timeout(SILENCE, self.reader.next()).await {
                Ok(Ok(Some(frame))) if frame.kind == Kind::Ping => {}
                Ok(Ok(frame)) => return frame,
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    /// Waits until the caller has gone. He has nothing to say in an act that only tells.
    pub async fn gone(&mut self) {
        if self.next().await.is_some() {
            tracing::debug!("a caller of the API spoke where there is nothing to say; it is cut off");
        }
    }
}

/// Passes bytes both ways. `terminal` is how a change of size is told: the path of what has it.
pub async fn pass<R: AsyncRead + Unpin>(
    near: &Near,
    session: Session,
    terminal: &str,
    peer: &mut Peer<R>,
) -> std::io::Result<Passed> {
    let Session { io, tty } = session;
    let (read, write) = tokio::io::split(io);
    let out = peer.out.clone();
    let from_engine = async {
        let mut output = Output::new(read, tty);
        while let Some((stream, bytes)) = output.next().await? {
            let kind = match stream {
                Stream::Out => Kind::Stdout,
                Stream::Err => Kind::Stderr,
            };
            if !send(&out, kind, bytes).await {
                return Ok(Passed::Left);
            }
        }
        Ok(Passed::Ended)
    };
    tokio::select! {
        passed = from_engine => passed,
        () = to_engine(near, write, terminal, peer) => Ok(Passed::Left),
    }
}

/// Passes on what the engine sends, to its end; how that ended. None when the caller went first.
pub async fn pass_on<R: AsyncRead + Unpin>(mut body: Incoming, peer: &mut Peer<R>) -> Option<Ended> {
    let out = peer.out.clone();
    let pass = async {
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    let data = frame.into_data().unwrap_or_default();
                    if !send(&out, Kind::Data, data).await {
                        return None;
                    }
                }
                Err(error) => {
                    let why = Refusal::new(Why::Engine, format!("the engine broke off: {error}"));
                    return Some(Ended::Failed(why));
                }
            }
        }
        Some(Ended::Done)
    };
    tokio::select! {
        ended = pass => ended,
        () = peer.gone() => None,
    }
}

/// Sends bytes in frames; false when nobody takes them.
pub async fn send(out: &mpsc::Sender<Frame>, kind: Kind, mut bytes: Bytes) -> bool {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        if out.send(Frame::new(kind, piece)).await.is_err() {
            return false;
        }
    }
    true
}

/// Returns when the caller has gone.
async fn to_engine<R: AsyncRead + Unpin>(
    near: &Near,
    mut write: impl AsyncWrite + Unpin,
    terminal: &str,
    peer: &mut Peer<R>,
) {
    let mut open = true;
    while let Some(frame) = peer.next().await {
        match frame.kind {
            Kind::Data if open => {
                tokio::select! {
                    // A process that reads no more is no reason to end: it may still have something to say.
                    written = write.write_all(&frame.payload) => open = written.is_ok(),
                    () = peer.out.closed() => return,
                }
            }
            Kind::DataEnd if open => {
                let _ = write.shutdown().await;
                open = false;
            }
            Kind::Resize => {
                if let Ok(Size { rows, columns }) = serde_json::from_slice(&frame.payload) {
                    let _ = near.resize(terminal, rows, columns).await;
                }
            }
            Kind::Data | Kind::DataEnd => {}
            Kind::Ask
            | Kind::Answer
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Line
            | Kind::Container
            | Kind::End
            | Kind::Ping => return,
        }
    }
}

/// Gives a terminal its first size: it may be a moment until there is one.
pub async fn first_size(near: &Near, terminal: &str, size: Size) {
    let began = Instant::now();
    while near.resize(terminal, size.rows, size.columns).await.is_err() && began.elapsed() < TERMINAL {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The code of a command that has said all; None when it does not end, or the engine does not tell.
pub async fn code(near: &Near, exec: &str) -> Option<i64> {
    let began = Instant::now();
    while began.elapsed() < END {
        match near.exec_state(exec).await {
            Ok(state) if !state.running => return state.code,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(_) => return None,
        }
    }
    None
}
