//! Images from other nodes, for when their registry is away. The leader says which nodes have it; the loop's pulls ask
//! [`Peers::fetch`] when the registry has failed. Nodes that give to others just now are asked again after a while. What comes is looked through on its way (`archive`), and counts only if it
//! is the very image whose id was settled: then it gets a name of its own in the engine, `name:sha256-<digest>`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use runtime::backoff::{Backoff, jitter};
use runtime::chain;
use rustls::time_provider::DefaultTimeProvider;
use schemas::image::{ImagePin, ImageRef};
use schemas::names::NodeName;
use schemas::records::ImageSource;
use tokio::sync::{Semaphore, mpsc};
use trust::identity::Role;

use crate::api::ask::{Ask, Asked, Ended, Why};
use crate::api::wire::Kind;
use crate::api::{AskError, Client, Security, Way};
use crate::engine::near::Near;
use crate::engine::{ContainerRuntime, ImageId, LocalImage};

use self::archive::Archive;

mod archive;

/// Nodes that lost their registry at the same moment do not all ask at the same moment.
const SPREAD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Time for one image from one node.
const WHOLE: Duration = Duration::from_secs(1_800);
/// Nodes that are busy are asked for so long, with these bounds of the time between; then the registry has its turn again.
const PATIENCE: Duration = Duration::from_secs(300);
const DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// The largest image that is taken, as its archive.
const MAX_BYTES: u64 = 16 << 30;
/// Pieces that wait for the engine.
const WAITING: usize = 8;

/// Why a node did not give an image.
struct Missed {
    /// It gives to others just now.
    busy: bool,
    why: String,
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Self { busy: false, why }
    }
}

/// The way to the other nodes' agents.
pub(crate) struct Peers {
    node: NodeName,
    /// None where agents do not reach each other.
    security: Option<Security>,
    engine: Arc<dyn ContainerRuntime>,
    /// One image at a time.
    turn: Semaphore,
}

impl Peers {
    pub(crate) fn new(node: NodeName, security: Option<Security>, engine: Arc<dyn ContainerRuntime>) -> Self {
        Self {
            node,
            security,
            engine,
            turn: Semaphore::new(1),
        }
    }

    /// Whether others can be asked at all.
    pub(crate) fn can_ask(&self) -> bool {
        self.security.is_some() && self.engine.near().is_some()
    }

    /// The image from the first of these nodes that gives it; else why none does.
    pub(crate) async fn fetch(
        &self,
        image: &ImageRef,
        pin: ImagePin,
        sources: &[ImageSource],
    ) -> Result<LocalImage, String> {
        let (Some(security), Some(near)) = (&self.security, self.engine.near()) else {
            return Err(
                "other nodes have it, and agents do not reach each other here: start them with --api-addr".to_owned(),
            );
        };
        tokio::time::sleep(jitter(SPREAD.0, SPREAD.1)).await;
        let began = Instant::now();
        let mut backoff = Backoff::new(DELAYS.0, DELAYS.1);
        loop {
            let (mut why, mut busy) = (Vec::new(), false);
            let turn = self.turn.acquire().await;
            for source in sources {
                let work = self.fetch_from(security, &near, image, pin, source);
                match tokio::time::timeout(WHOLE, work).await {
                    Ok(Ok(found)) => {
                        tracing::info!(image = image.as_str(), from = %source.node, "fetched from another node");
                        return Ok(found);
                    }
                    Ok(Err(missed)) => {
                        busy |= missed.busy;
                        why.push(format!("{}: {}", source.node, missed.why));
                    }
                    Err(_) => why.push(format!("{}: it takes too long", source.node)),
                }
            }
            drop(turn);
            if !busy || began.elapsed() >= PATIENCE {
                return Err(format!("nor is it had from another node ({})", why.join("; ")));
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    fn client(security: &Security, source: &ImageSource) -> Result<Client, String> {
        let config = match security {
            Security::Files(files) => files.client().map_err(|error| chain(&error))?,
            Security::Door(door) => {
                let name = source
                    .node
                    .as_str()
                    .parse()
                    .map_err(|_| "its name is no node's".to_owned())?;
                let config = door.client(trust::tls::Peers::One(Role::Node, name), Arc::new(DefaultTimeProvider));
                Arc::new(config.map_err(|error| chain(&error))?)
            }
        };
        let address = source.api.clone();
        Ok(Client::new(Way::Tls { address, config }))
    }

    async fn fetch_from(
        &self,
        security: &Security,
        near: &Near,
        image: &ImageRef,
        pin: ImagePin,
        source: &ImageSource,
    ) -> Result<LocalImage, Missed> {
        let asked = Asked {
            by: format!("node {}", self.node),
            ask: Ask::Image {
                image: image.as_str().to_owned(),
                id: pin.id.to_string(),
            },
        };
        let client = Self::client(security, source)?;
        let mut talk = client.ask(&source.node, &asked).await.map_err(|error| Missed {
            busy: matches!(&error, AskError::Refused(refusal) if refusal.why == Why::Busy),
            why: chain(&error),
        })?;
        let (feed, fed) = mpsc::channel::<std::io::Result<Bytes>>(WAITING);
        let stream = futures::stream::unfold(fed, |mut fed| async move { Some((fed.recv().await?, fed)) });
        let feeding = async move {
            let passed = async {
                let mut archive = Archive::new(pin.id);
                let mut total = 0_u64;
                loop {
                    let frame = talk.next().await.map_err(|error| chain(&error))?;
                    match frame {
                        Some(frame) if frame.kind == Kind::Data => {
                            total += frame.payload.len() as u64;
                            if total > MAX_BYTES {
                                return Err("it is too large".to_owned());
                            }
                            let bytes = archive.take(&frame.payload).map_err(|error| error.to_string())?;
                            if !bytes.is_empty() && feed.send(Ok(bytes)).await.is_err() {
                                // The engine says why.
                                return Ok(());
                            }
                        }
                        Some(frame) if frame.kind == Kind::End => {
                            return match serde_json::from_slice(&frame.payload) {
                                Ok(Ended::Done) => {
                                    let rest = archive.finish().map_err(|error| error.to_string())?;
                                    let _ = feed.send(Ok(rest)).await;
                                    Ok(())
                                }
                                Ok(Ended::Failed(refusal)) => Err(refusal.to_string()),
                                Ok(Ended::Gone | Ended::Exited { .. }) | Err(_) => Err("it broke off".to_owned()),
                            };
                        }
                        Some(_) => {}
                        None => return Err("it broke off".to_owned()),
                    }
                }
            };
            let passed: Result<(), String> = passed.await;
            if passed.is_err() {
                // An archive that breaks off is none: the engine takes nothing of it.
                let _ = feed.send(Err(std::io::ErrorKind::ConnectionAborted.into())).await;
            }
            passed
        };
        let (passed, loaded) = tokio::join!(feeding, near.load_image(stream));
        passed?;
        loaded.map_err(|error| error.to_string())?;
        let id: ImageRef = pin.id.to_string().parse().map_err(|_| "its id is none".to_owned())?;
        let found = self.engine.image(&id).await.map_err(|error| error.to_string())?;
        if found.is_none_or(|found| found.id.0 != pin.id.to_string()) {
            return Err("the engine made another image of what was sent".to_owned().into());
        }
        let alias = image.loaded_as(pin.digest);
        near.name_image(&pin.id.to_string(), &alias)
            .await
            .map_err(|error| error.to_string())?;
        Ok(LocalImage {
            id: ImageId(pin.id.to_string()),
            pin: Some(pin),
            loaded: true,
        })
    }
}
