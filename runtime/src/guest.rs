//! A connection that somebody else opened: it counts against a bound and ends after a while, used or not, so that nobody can
//! hold a server by its ear. Every HTTP server of ours that answers strangers wraps what it accepts in one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// A guest, who leaves after a while.
pub struct Guest<S> {
    stream: S,
    leave: Pin<Box<Sleep>>,
    /// The seat it takes as long as it is there.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Guest<S> {
    /// A guest who has come now.
    pub fn new(stream: S, lifetime: Duration, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            leave: Box::pin(tokio::time::sleep(lifetime)),
            _permit: permit,
        }
    }

    fn must_leave(&mut self, cx: &mut Context<'_>) -> bool {
        self.leave.as_mut().poll(cx).is_ready()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.must_leave(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.must_leave(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_guest_who_stays_is_sent_away() {
        let (mut other, stream) = tokio::io::duplex(64);
        let mut guest = Guest::new(stream, Duration::from_secs(30), None);
        guest.write_all(b"x").await.expect("there is time");
        let mut byte = [0];
        other.read_exact(&mut byte).await.expect("it was written");
        // Nobody says anything: the paused clock goes on to the end of the visit.
        let read = guest.read(&mut byte).await.expect_err("it waited for ever");
        assert_eq!(read.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            guest.write(b"x").await.expect_err("it may not").kind(),
            io::ErrorKind::TimedOut
        );
    }
}
