//! The framing of a conversation with an agent, after the connection was upgraded: a kind (one byte), a length (four bytes,
//! big endian), and that many bytes. The agent's API and its client share it. Nothing is believed of the other side: an
//! unknown kind, a length over the limit or an end within a frame is an error, and no frame takes memory before its
//! length was checked.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

/// Bytes before a payload.
const HEAD: usize = 5;
/// The largest payload that an agent sends: a line of a log, with what belongs to it.
pub const MAX_ANSWER: usize = 3 << 20;
/// The largest payload that an agent takes.
pub const MAX_ASK: usize = 64 << 10;
/// What is sent in one frame of a stream of bytes.
pub const PIECE: usize = 32 << 10;
/// Whoever waits says so this often.
pub const PING: Duration = Duration::from_secs(10);
/// Whoever has said nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(35);
/// A frame that the other side does not take for so long: it is cut off.
pub const STALL: Duration = Duration::from_secs(300);
/// Frames that wait to be sent.
const QUEUE: usize = 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The one question of a conversation, as JSON; its first frame.
    Ask = 1,
    /// What becomes of it, as JSON; the first frame back.
    Answer = 2,
    /// Bytes for the other side: of a standard input, a file, or a forwarded connection.
    Data = 3,
    /// No more of them come.
    DataEnd = 4,
    /// What a command wrote.
    Stdout = 5,
    Stderr = 6,
    /// A line of a log: `logs::Line`.
    Line = 7,
    /// Which container the lines after it are of, as JSON.
    Container = 8,
    /// The terminal has another size, as JSON.
    Resize = 9,
    /// The last frame, as JSON: how it ended.
    End = 10,
    /// Says only that the other side lives.
    Ping = 11,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ask,
            2 => Self::Answer,
            3 => Self::Data,
            4 => Self::DataEnd,
            5 => Self::Stdout,
            6 => Self::Stderr,
            7 => Self::Line,
            8 => Self::Container,
            9 => Self::Resize,
            10 => Self::End,
            11 => Self::Ping,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub payload: Bytes,
}

impl Frame {
    #[must_use]
    pub fn new(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self {
            kind,
            payload: payload.into(),
        }
    }

    /// One whose payload is JSON.
    #[must_use]
    pub fn json(kind: Kind, value: &impl serde::Serialize) -> Self {
        let payload = serde_json::to_vec(value).expect("our own types have string keys, which JSON can say");
        Self::new(kind, payload)
    }
}

/// Why no frame could be had.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("read from the connection")]
    Read(#[source] io::Error),
    #[error("the connection ended within a frame")]
    Torn,
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error("a frame of kind {0} is not known")]
    Unknown(u8),
}

/// Reads frames. Dropping a [`Reader::next`] under way loses nothing.
pub struct Reader<R> {
    from: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Payloads over `limit` bytes are refused.
    pub fn new(from: R, limit: usize) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// The next frame; None when the other side has ended well.
    pub async fn next(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            let read = self.from.read_buf(&mut self.buffer).await.map_err(WireError::Read)?;
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(WireError::Torn)
                };
            }
        }
    }

    fn take(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(head) = self.buffer.get(..HEAD) else {
            return Ok(None);
        };
        let kind = Kind::of(head[0]).ok_or(WireError::Unknown(head[0]))?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.limit {
            return Err(WireError::TooLarge(length));
        }
        if self.buffer.len() < HEAD + length {
            self.buffer.reserve(HEAD + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let payload = self.buffer.split_to(length).freeze();
        Ok(Some(Frame { kind, payload }))
    }
}

/// Writes one frame.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let Frame { kind, payload } = frame;
    let length = u32::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut head = [0; HEAD];
    head[0] = *kind as u8;
    head[1..].copy_from_slice(&length.to_be_bytes());
    to.write_all(&head).await?;
    to.write_all(payload).await?;
    to.flush().await
}

/// Sends frames from a queue of its own until all senders are gone, and a ping where there is nothing else to say. A side
/// that takes nothing for [`STALL`] is given up. Returns when all is sent or nothing more can be.
pub async fn send_all(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Frame>) -> io::Result<()> {
    let ping = Frame::new(Kind::Ping, Bytes::new());
    loop {
        let frame = match tokio::time::timeout(PING, queue.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(_) => ping.clone(),
        };
        tokio::time::timeout(STALL, write(&mut to, &frame))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    to.shutdown().await
}

/// A queue of frames for [`send_all`].
#[must_use]
pub fn queue() -> (mpsc::Sender<Frame>, mpsc::Receiver<Frame>) {
    mpsc::channel(QUEUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], limit: usize) -> (Vec<Frame>, Option<WireError>) {
        let mut reader = Reader::new(bytes, limit);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in_however_the_bytes_arrive() {
        let frames = [
            Frame::new(Kind::Data, vec![0_u8, 255, 10, 13]),
            Frame::new(Kind::DataEnd, Vec::new()),
            Frame::json(Kind::End, &serde_json::json!({ "exitCode": 3 })),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            write(&mut bytes, frame).await.expect("memory takes all");
        }
        let (whole, error) = read(&bytes, MAX_ASK).await;
        assert!(error.is_none() && whole == frames, "{whole:?}");
        // One byte at a time, each wait given up once.
        let (mut to, from) = tokio::io::duplex(1);
        let sent = tokio::spawn(async move { to.write_all(&bytes).await });
        let mut reader = Reader::new(from, MAX_ASK);
        let mut got = Vec::new();
        loop {
            tokio::select! {
                biased;
                next = reader.next() => match next.expect("it is whole") {
                    Some(frame) => got.push(frame),
                    None => break,
                },
                () = tokio::task::yield_now() => {}
            }
        }
        sent.await.expect("no panic").expect("all is taken");
        assert_eq!(got, frames);
    }

    #[tokio::test]
    async fn hostile_bytes_are_errors_and_take_no_memory() {
        let (_, error) = read(&[3, 255, 255, 255, 255, 0], MAX_ASK).await;
        assert!(matches!(error, Some(WireError::TooLarge(_))), "{error:?}");
        let (_, error) = read(&[77, 0, 0, 0, 0], MAX_ASK).await;
        assert!(matches!(error, Some(WireError::Unknown(77))), "{error:?}");
        let (_, error) = read(&[3, 0, 0, 0, 9, 1, 2], MAX_ASK).await;
        assert!(matches!(error, Some(WireError::Torn)), "{error:?}");
        let (frames, error) = read(b"", MAX_ASK).await;
        assert!(frames.is_empty() && error.is_none());
        let mut seed: u64 = 7;
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    u8::try_from(seed >> 60).unwrap_or(0)
                })
                .collect();
            let _ = read(&bytes, 16).await;
        }
    }
}
