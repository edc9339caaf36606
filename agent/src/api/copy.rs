//! Files into and out of a container, as archives, as a conversation. Called by `server`, after it was allowed and recorded.
//! Archives are passed on as they are: the engine unpacks within the container, `reeve` within its target.

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::ask::{Ended, Place, Refusal, Why};
use super::audit::Running;
use super::server::begun;
use super::session::{Peer, pass_on};
use super::wire::{Frame, Kind};
use crate::engine::near::Near;

/// Pieces that wait for the engine.
const WAITING: usize = 8;

fn absolute(path: &str) -> Result<(), Refusal> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(Refusal::new(Why::NotUnderstood, "a path in a container begins with /"))
}

/// Tells what is at a path.
pub async fn place(near: &Near, id: &str, path: &str, out: &mpsc::Sender<Frame>) -> Result<(), Refusal> {
    absolute(path)?;
    let place = match near.place(id, path).await? {
        None => Place::Nothing,
        Some(true) => Place::Directory,
        Some(false) => Place::File,
    };
    for frame in [
        begun(),
        Frame::json(Kind::Data, &place),
        Frame::json(Kind::End, &Ended::Done),
    ] {
        let _ = out.send(frame).await;
    }
    Ok(())
}

/// Sends what is at a path.
pub async fn out<R: AsyncRead + Unpin>(
    near: &Near,
    id: &str,
    path: &str,
    peer: &mut Peer<R>,
    running: &mut Running,
) -> Result<(), Refusal> {
    absolute(path)?;
    let body = near.archive(id, path).await?;
    let out = peer.out.clone();
    let _ = out.send(begun()).await;
    let ended = pass_on(body, peer).await;
    if let Some(ended) = ended {
        running.ended(i64::from(ended != Ended::Done));
        let _ = out.send(Frame::json(Kind::End, &ended)).await;
    }
    Ok(())
}

/// Takes an archive and has it unpacked.
pub async fn into<R: AsyncRead + Unpin>(
    near: &Near,
    id: &str,
    path: &str,
    peer: &mut Peer<R>,
    running: &mut Running,
) -> Result<(), Refusal> {
    absolute(path)?;
    let (feed, fed) = mpsc::channel::<std::io::Result<Bytes>>(WAITING);
    let archive = futures::stream::unfold(fed, |mut fed| async move { Some((fed.recv().await?, fed)) });
    let out = peer.out.clone();
    let _ = out.send(begun()).await;
    let feeding = async {
        let mut feed = Some(feed);
        while let Some(frame) = peer.next().await {
            if frame.kind == Kind::DataEnd {
                feed = None;
            }
            if let (Kind::Data, Some(open)) = (frame.kind, &feed)
                && open.send(Ok(frame.payload)).await.is_err()
            {
                // What the engine no longer takes is not needed: it says why.
                feed = None;
            }
        }
        // He has gone before the end: what is there of the archive is no archive.
        if let Some(open) = feed {
            let _ = open.send(Err(std::io::ErrorKind::ConnectionAborted.into())).await;
        }
    };
    let ended = tokio::select! {
        unpacked = near.unpack(id, path, archive) => match unpacked {
            Ok(()) => Ended::Done,
            Err(error) => Ended::Failed(error.into()),
        },
        () = feeding => return Ok(()),
    };
    running.ended(i64::from(ended != Ended::Done));
    let _ = out.send(Frame::json(Kind::End, &ended)).await;
    Ok(())
}
