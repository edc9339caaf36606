//! Gives an image of this node to another node of the cluster, whose registry is away. Called by `server`, after it was allowed.
//! Only what a service on this node was settled to be is given, by the id that the other one was told.

use schemas::image::ImageRef;
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;

use super::ask::{Refusal, Why};
use super::server::begun;
use super::session::{Peer, pass_on};
use super::wire::{Frame, Kind};
use crate::engine::ContainerRuntime;
use crate::engine::near::Near;

/// Images that are given away at once; others ask another node.
const SHARED: usize = 2;
static TURNS: Semaphore = Semaphore::const_new(SHARED);

/// Sends the image. `wanted` are the images of this node's services.
pub async fn send_image<R: AsyncRead + Unpin>(
    near: &Near,
    engine: &dyn ContainerRuntime,
    wanted: &[ImageRef],
    image: &str,
    id: &str,
    peer: &mut Peer<R>,
) -> Result<(), Refusal> {
    let none = || Refusal::new(Why::NotHere, "no service on this node runs that image");
    let reference: ImageRef = image.parse().map_err(|_| none())?;
    let digest = reference
        .digest()
        .and_then(|digest| digest.parse().ok())
        .ok_or_else(none)?;
    if !wanted.contains(&reference) {
        return Err(none());
    }
    let mut here = engine.image(&reference).await?;
    if here.is_none() {
        here = engine.image(&reference.loaded_as(digest)).await?;
    }
    let found = here.filter(|found| found.id.0 == id);
    let found =
        found.ok_or_else(|| Refusal::new(Why::NotHere, "this node has another image under that digest, or none"))?;
    let Ok(_turn) = TURNS.try_acquire() else {
        return Err(Refusal::new(Why::Busy, "it gives images to others just now"));
    };
    let body = near.save_image(&found.id.0).await?;
    let out = peer.out.clone();
    let _ = out.send(begun()).await;
    let ended = pass_on(body, peer).await;
    if let Some(ended) = ended {
        let _ = out.send(Frame::json(Kind::End, &ended)).await;
    }
    Ok(())
}
