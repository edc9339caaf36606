//! A connection to a port of a container, as a conversation: bytes both ways. Called by `server`, after it was allowed and
//! recorded. The port must be open on an address that the host reaches; what listens on the container's own loopback is not
//! reached.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::ask::{Refusal, Why};
use super::session::{Peer, send};
use super::wire::{Frame, Kind, PIECE};
use crate::engine::near::Near;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to a container's port.
pub async fn connect(near: &Near, id: &str, port: u16) -> Result<TcpStream, Refusal> {
    let Some(address) = near.address(id).await? else {
        return Err(
            Refusal::new(Why::NotRunning, "its container has no address on this host").help("give it a network"),
        );
    };
    let to = SocketAddr::new(address, port);
    let refused = |why: String| {
        Refusal::new(Why::NotRunning, format!("the container takes no connection: {why}"))
            .help("see that it listens there, on all its addresses and not on 127.0.0.1 alone")
    };
    match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused(format!("no answer within {} s", CONNECT.as_secs()))),
    }
}

/// Passes bytes until both sides have ended, or the caller has gone.
pub async fn pass<R: AsyncRead + Unpin>(stream: TcpStream, peer: &mut Peer<R>) {
    let (mut read, mut write) = stream.into_split();
    let out = peer.out.clone();
    let back = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) if send(&out, Kind::Data, buffer.split().freeze()).await => {}
                Ok(_) => return,
            }
        }
        let _ = out.send(Frame::new(Kind::DataEnd, bytes::Bytes::new())).await;
    };
    let forth = async {
        while let Some(frame) = peer.next().await {
            // What cannot be written any more is not the end: the other side may still have something to say.
            if frame.kind == Kind::Data {
                let _ = write.write_all(&frame.payload).await;
            } else if frame.kind == Kind::DataEnd {
                let _ = write.shutdown().await;
            } else {
                return;
            }
        }
    };
    tokio::select! {
        () = back => {}
        () = forth => {}
    }
}
