//! The API's doors: a socket in the data directory and, where asked for, TCP with mutual TLS. Guests are few, say who they
//! are and what they want within seconds, and are cut off when they fall silent; what they send can at worst end their own
//! conversation. One task per guest; all end with the server.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use schemas::names::{InstanceName, NodeName};
use schemas::records::ClusterId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;

use super::ask::{Answer, Ask, Asked, Ended, Named, Refusal, Why};
use super::audit::{Audit, Begun};
use super::copy;
use super::directory::{Directories, known};
use super::named::{self, Ready, Shelf, Wanted};
use super::session::{self, Passed, Peer};
use super::tls::{Served, TlsError};
use super::wire::{self, Frame, Kind, Reader};
use super::{
    Act, ApiOptions, CLUSTER_HEADER, Caller, NODE_HEADER, PATH, PROTOCOL, Rights, SOCKET, host, images, logs, may,
    network, reach, share, top,
};
use crate::engine::ContainerRuntime;
use crate::engine::clean;
use crate::engine::near::{Inside, Near};
use crate::events_out::Told;
use crate::policy::{Gate, NodeCommand};
use crate::seen::Seen;

/// Guests at each door at once; others wait.
const GUESTS: usize = 64;
/// Time for a guest to have said who he is and what he wants.
const HELLO: Duration = Duration::from_secs(15);
/// The most that is read of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// Time for the last frames of a conversation.
const LAST: Duration = Duration::from_secs(30);

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("listen on {address} for the API: choose another --api-addr, or end what has it")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("prepare TLS for the API")]
    Tls(#[from] TlsError),
}

/// What conversations are about.
pub(crate) struct Shared {
    pub node: NodeName,
    pub cluster: ClusterId,
    pub version: String,
    /// None where the engine has no way near its containers.
    pub near: Option<Near>,
    pub engine: Arc<dyn ContainerRuntime>,
    pub directories: Directories,
    pub events: mpsc::Sender<Told>,
    pub data_dir: PathBuf,
    /// Whether commands may be run on the node itself.
    pub gate: Arc<Gate>,
    /// See [`ApiOptions::engine_host`].
    pub engine_host: Option<String>,
    /// Where named commands are read.
    pub shelf: Shelf,
    /// How this node's end of the network stands.
    pub seen: Arc<Seen>,
}

/// The doors, open.
pub(crate) struct Doors {
    local: Option<UnixListener>,
    remote: Option<(TcpListener, Arc<Served>)>,
    rights: Rights,
}

/// Opens the doors. A socket that cannot be made is said, and is no reason not to run containers.
pub(crate) async fn open(data_dir: &Path, options: &ApiOptions) -> Result<Doors, OpenError> {
    let ApiOptions {
        tcp,
        rights,
        engine_host: _,
    } = options;
    let path = data_dir.join(SOCKET);
    let local = match bind(&path) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(
                %error,
                "`{}` cannot be made: `reeve logs` and the like do not reach this agent through it; is the path longer than 100 characters?",
                path.display()
            );
            None
        }
    };
    let remote = match tcp {
        None => None,
        Some(tcp) => {
            let served = Arc::new(Served::new(tcp.security.clone())?);
            let listener = TcpListener::bind(tcp.address).await;
            let address = tcp.address;
            Some((
                listener.map_err(|source| OpenError::Listen { address, source })?,
                served,
            ))
        }
    };
    Ok(Doors {
        local,
        remote,
        rights: *rights,
    })
}

/// The socket, for its owner alone from its first moment: it gets its name after its mode.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    let made = path.with_extension("new");
    let _ = std::fs::remove_file(&made);
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

impl Doors {
    /// Serves for ever; dropping it ends every conversation.
    pub(crate) async fn serve(self, shared: Shared) {
        let Self { local, remote, rights } = self;
        let audit = Audit::new(shared.data_dir.clone(), shared.node.clone(), shared.events.clone());
        let hall = Arc::new(Hall { shared, rights, audit });
        let at_local = async {
            match local {
                Some(listener) => welcome_local(listener, &hall).await,
                None => std::future::pending().await,
            }
        };
        let at_remote = async {
            match remote {
                Some((listener, served)) => welcome_remote(listener, served, &hall).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(at_local, at_remote);
    }
}

async fn welcome_local(listener: UnixListener, hall: &Arc<Hall>) {
    let own = rustix::process::geteuid().as_raw();
    let permits = Arc::new(Semaphore::new(GUESTS));
    let mut guests = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await.ok();
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, or a guest who left at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while guests.try_join_next().is_some() {}
        // The mode of the socket says the same; this holds also where somebody changed it.
        let Some(uid) = peer(&stream).filter(|uid| *uid == own || *uid == 0) else {
            continue;
        };
        guests.spawn(guest(stream, Caller::Local { uid }, hall.clone(), permit));
    }
}

fn peer(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|cred| cred.uid())
}

async fn welcome_remote(listener: TcpListener, served: Arc<Served>, hall: &Arc<Hall>) {
    let permits = Arc::new(Semaphore::new(GUESTS));
    let mut guests = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await.ok();
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while guests.try_join_next().is_some() {}
        let (served, hall) = (served.clone(), hall.clone());
        guests.spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HELLO, secure(stream, &served)).await {
                Ok(Ok((stream, caller))) => {
                    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                    let shown = shown.map(|shown| shown.as_ref().to_vec());
                    tokio::select! {
                        () = guest(stream, caller, hall, permit) => {}
                        // Who is shut out meanwhile is cut off in the middle.
                        () = served.until_revoked(shown) => tracing::info!(%from, "a caller of the API no longer counts, and is cut off"),
                    }
                }
                Ok(Err(error)) => tracing::debug!(%from, %error, "a caller of the API is not let in"),
                Err(_) => {}
            }
        });
    }
}

/// TLS, and who the caller is by it.
async fn secure(
    stream: TcpStream,
    served: &Served,
) -> std::io::Result<(tokio_rustls::server::TlsStream<TcpStream>, Caller)> {
    let stream = TlsAcceptor::from(served.config()).accept(stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = shown.and_then(|shown| caller(shown));
    let caller = caller.ok_or_else(|| std::io::Error::other("its certificate is not understood"))?;
    Ok((stream, caller))
}

/// Whose certificate it is. None where it cannot be read: what it says is then unknown, and so is what it may.
fn caller(certificate: &[u8]) -> Option<Caller> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let uris = names.filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        uri.strip_prefix("reeve://")
    });
    let subject = crate::engine::clean(&parsed.subject().to_string(), 256);
    // `reeve://<cluster>/<role>/<name>`; one that is not of this shape is held to be the least of all.
    let uri = { uris }.next();
    let role = uri.map(|uri| crate::engine::clean(uri.split('/').nth(1).unwrap_or("node"), 32));
    let rights = uri.and_then(|uri| uri.split_once('?')?.1.parse().ok());
    Some(Caller::Certificate { subject, role, rights })
}

/// What all conversations share.
struct Hall {
    shared: Shared,
    rights: Rights,
    audit: Audit,
}

/// One guest, from his first byte to his last.
async fn guest(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    caller: Caller,
    hall: Arc<Hall>,
    _permit: Option<OwnedSemaphorePermit>,
) {
    let asked: Arc<Mutex<Option<OnUpgrade>>> = Arc::default();
    let service = service_fn(|request| {
        let response = head(request, &asked, &hall.shared);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HELLO)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    if !matches!(tokio::time::timeout(HELLO, connection).await, Ok(Ok(()))) {
        return;
    }
    let upgrade = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(upgrade) = upgrade else { return };
    if let Ok(io) = upgrade.await {
        converse(TokioIo::new(io), &caller, &hall).await;
    }
}

/// The answer to a request's head.
fn head(mut request: Request<Incoming>, asked: &Mutex<Option<OnUpgrade>>, shared: &Shared) -> Response<Full<Bytes>> {
    let told = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != PATH {
        return told(
            StatusCode::NOT_FOUND,
            "there is nothing here but what `reeve` asks for\n",
        );
    }
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    if request.method() != Method::GET || !wanted {
        return told(StatusCode::UPGRADE_REQUIRED, "speak to this with `reeve`\n");
    }
    *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(hyper::upgrade::on(&mut request));
    let mut response = told(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    let says = [
        (NODE_HEADER, shared.node.as_str()),
        (CLUSTER_HEADER, shared.cluster.as_str()),
    ];
    for (name, value) in says {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// One conversation.
async fn converse(io: TokioIo<Upgraded>, caller: &Caller, hall: &Hall) {
    let (read, write) = tokio::io::split(io);
    let (out, queue) = wire::queue();
    let mut peer = Peer {
        reader: Reader::new(read, wire::MAX_ASK),
        out,
    };
    let talk = async move {
        match tokio::time::timeout(HELLO, peer.reader.next()).await {
            Ok(Ok(Some(frame))) if frame.kind == Kind::Ask => match understand(&frame.payload, &hall.shared) {
                Ok(asked) => act(asked, caller, hall, &mut peer).await,
                Err(refused) => drop(peer.out.send(refusal(refused)).await),
            },
            Ok(Err(error)) => {
                let why = Refusal::new(Why::NotUnderstood, format!("cannot read the question: {error}"));
                let _ = peer.out.send(refusal(why)).await;
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    };
    let mut sending = std::pin::pin!(wire::send_all(write, queue));
    let talk = std::pin::pin!(talk);
    let ended = tokio::select! {
        () = talk => true,
        // Nothing more can be sent: whoever still waits learns it by his queue.
        _ = &mut sending => false,
    };
    if ended {
        let _ = tokio::time::timeout(LAST, sending).await;
    }
}

fn understand(payload: &[u8], shared: &Shared) -> Result<Asked, Refusal> {
    serde_json::from_slice(payload).map_err(|error| {
        let message = format!(
            "reeve {} on node {} does not understand the question: {error}",
            shared.version, shared.node
        );
        Refusal::new(Why::NotUnderstood, message).help("use the same release of reeve on both sides")
    })
}

pub(super) fn refusal(refusal: Refusal) -> Frame {
    Frame::json(Kind::Answer, &Answer::Refused(refusal))
}

pub(super) fn begun() -> Frame {
    Frame::json(Kind::Answer, &Answer::Begun)
}

pub(super) fn not_ready() -> Refusal {
    Refusal::new(Why::Busy, "the agent has not looked at its engine yet").help("try again in a moment")
}

pub(super) fn not_here(name: &InstanceName) -> Refusal {
    Refusal::new(
        Why::NotHere,
        format!("this node has no instance {name} in namespace {}", name.namespace),
    )
    .help("`reeve get instances -A` shows what is where")
}

async fn act<R: AsyncRead + Unpin>(asked: Asked, caller: &Caller, hall: &Hall, peer: &mut Peer<R>) {
    let Asked { by, ask } = asked;
    let out = peer.out.clone();
    let done = match ask {
        Ask::Logs {
            instance,
            follow,
            since,
            tail,
            after,
        } => {
            let near = hall.near(caller, Act::Logs, Some(&instance));
            match near {
                Err(refused) => Err(refused),
                Ok(near) => {
                    let wanted = logs::Wanted {
                        instance,
                        follow,
                        since,
                        tail,
                        after,
                    };
                    let mut directories = hall.shared.directories.clone();
                    tokio::select! {
                        () = logs::serve(near, &mut directories, wanted, &out) => {}
                        () = peer.gone() => {}
                    }
                    Ok(())
                }
            }
        }
        Ask::Top {} => hall.top(caller, peer).await,
        Ask::Network {} => hall.network(caller, network::Question::Here, &out).await,
        Ask::RotateKey {} => {
            tracing::info!(%caller, by = clean(&by, 200), "the key of this node's links is to be replaced, by a person");
            hall.network(caller, network::Question::RotateKey, &out).await
        }
        Ask::Lookup { wanted } => hall.network(caller, network::Question::Lookup(wanted), &out).await,
        Ask::Knock {
            namespace,
            address,
            port,
            protocol,
        } => {
            let question = network::Question::Knock {
                namespace,
                address,
                port,
                protocol,
            };
            hall.network(caller, question, &out).await
        }
        Ask::Images {} => hall.images(caller, None, peer).await,
        Ask::Image { image, id } => hall.share(caller, &image, &id, peer).await,
        Ask::RemoveImages { images } => {
            tracing::info!(%caller, by = clean(&by, 200), images = images.len(), "images are to be removed, by a person");
            hall.images(caller, Some(&images), peer).await
        }
        Ask::Exec {
            instance,
            command,
            input,
            terminal,
        } => {
            let begun = |container: &str| Begun {
                command: command.clone(),
                terminal: terminal.is_some(),
                ..Begun::new("exec", &instance, container, caller, &by)
            };
            let inside = Inside {
                words: command.clone(),
                input,
                tty: terminal.is_some(),
                ..Inside::default()
            };
            hall.exec(caller, Act::Exec, &instance, &inside, terminal, None, begun, peer)
                .await
        }
        Ask::Run {
            command,
            revision,
            instance,
            parameters,
            arguments,
            input,
            terminal,
        } => {
            let asked = Wanted {
                command: &command,
                revision,
                instance: &instance,
                parameters: &parameters,
                arguments: &arguments,
                input,
                terminal: terminal.is_some(),
            };
            match hall.named(caller, &asked).await {
                Err(refused) => Err(refused),
                Ok(Ready { inside, limit }) => {
                    let begun = |container: &str| Begun {
                        command: inside.words.clone(),
                        terminal: terminal.is_some(),
                        named: Some(format!("{}/{command}", instance.namespace)),
                        ..Begun::new("run", &instance, container, caller, &by)
                    };
                    hall.exec(caller, Act::Run, &instance, &inside, terminal, limit, begun, peer)
                        .await
                }
            }
        }
        Ask::Host {
            kind,
            command,
            seconds,
            named,
        } => {
            let begun = Begun {
                named: named.map(|named| clean(&named, 130)),
                ..Begun::on_node(kind.word(), &command, caller, &by)
            };
            hall.host(caller, kind, &command, seconds, begun, peer).await
        }
        Ask::Attach {
            instance,
            input,
            terminal,
        } => {
            let begun = |container: &str| Begun {
                terminal: terminal.is_some(),
                ..Begun::new("attach", &instance, container, caller, &by)
            };
            hall.attach(caller, &instance, input, terminal, begun, peer).await
        }
        Ask::Forward { instance, port } => {
            let begun = |container: &str| Begun {
                port: Some(port),
                ..Begun::new("forward", &instance, container, caller, &by)
            };
            hall.forward(caller, &instance, port, begun, peer).await
        }
        Ask::Place { instance, path } => match hall.container(caller, Act::Copy, &instance).await {
            Ok((near, container)) => copy::place(near, &container, &path, &out).await,
            Err(refused) => Err(refused),
        },
        Ask::CopyOut { instance, path } => match hall.container(caller, Act::Copy, &instance).await {
            Ok((near, container)) => {
                let begun = Begun {
                    path: Some(path.clone()),
                    ..Begun::new("copyOut", &instance, &container, caller, &by)
                };
                match hall.record(begun) {
                    Ok(mut running) => copy::out(near, &container, &path, peer, &mut running).await,
                    Err(refused) => Err(refused),
                }
            }
            Err(refused) => Err(refused),
        },
        Ask::CopyIn { instance, path } => match hall.container(caller, Act::Copy, &instance).await {
            Ok((near, container)) => {
                let begun = Begun {
                    path: Some(path.clone()),
                    ..Begun::new("copyIn", &instance, &container, caller, &by)
                };
                match hall.record(begun) {
                    Ok(mut running) => copy::into(near, &container, &path, peer, &mut running).await,
                    Err(refused) => Err(refused),
                }
            }
            Err(refused) => Err(refused),
        },
    };
    if let Err(refused) = done {
        let _ = out.send(refusal(refused)).await;
    }
}

impl Hall {
    /// The way near containers, for an act that this caller may do.
    fn near(&self, caller: &Caller, act: Act, about: Option<&Named>) -> Result<&Near, Refusal> {
        may(caller, act, about.map(|named| &named.namespace), self.rights)
            .map_err(|denied| Refusal::new(Why::Denied, denied.message).help(denied.remedy))?;
        self.shared
            .near
            .as_ref()
            .ok_or_else(|| Refusal::new(Why::Engine, "the engine of this agent has no way near its containers"))
    }

    /// The container of an instance of this node, whether it runs or not.
    async fn container(&self, caller: &Caller, act: Act, instance: &Named) -> Result<(&Near, String), Refusal> {
        let near = self.near(caller, act, Some(instance))?;
        let mut directories = self.shared.directories.clone();
        let directory = known(&mut directories).await.ok_or_else(not_ready)?;
        let name = instance.name();
        let entry = directory.get(&name).ok_or_else(|| not_here(&name))?;
        let none =
            || Refusal::new(Why::NotRunning, format!("{name} has no container yet")).help("`reeve describe` says why");
        Ok((near, entry.container.clone().ok_or_else(none)?))
    }

    /// The container of an instance of this node, which must run.
    async fn running(&self, near: &Near, instance: &Named) -> Result<(String, crate::engine::near::About), Refusal> {
        let mut directories = self.shared.directories.clone();
        let directory = known(&mut directories).await.ok_or_else(not_ready)?;
        let name = instance.name();
        let entry = directory.get(&name).ok_or_else(|| not_here(&name))?;
        let stopped =
            || Refusal::new(Why::NotRunning, format!("{name} does not run")).help("`reeve describe` says why");
        let id = entry.container.clone().ok_or_else(stopped)?;
        let about = near.about(&id).await?;
        if about.running { Ok((id, about)) } else { Err(stopped()) }
    }

    fn record(&self, begun: Begun) -> Result<super::audit::Running, Refusal> {
        self.audit.begin(begun).map_err(|error| {
            let message = format!("it cannot be recorded, and so is not begun: {error}");
            Refusal::new(Why::Unrecorded, message).help("see that the disk of the agent's data directory has room")
        })
    }

    async fn network(
        &self,
        caller: &Caller,
        question: network::Question,
        out: &mpsc::Sender<Frame>,
    ) -> Result<(), Refusal> {
        network::answer(&self.shared, self.rights, caller, question, out).await
    }

    async fn top<R: AsyncRead + Unpin>(&self, caller: &Caller, peer: &mut Peer<R>) -> Result<(), Refusal> {
        may(caller, Act::Top, None, self.rights)
            .map_err(|denied| Refusal::new(Why::Denied, denied.message).help(denied.remedy))?;
        let mut directories = self.shared.directories.clone();
        let directory = known(&mut directories).await.ok_or_else(not_ready)?;
        let usage = tokio::select! {
            usage = top::measure(&self.shared.engine, &directory) => usage,
            () = peer.gone() => return Ok(()),
        };
        let _ = peer.out.send(begun()).await;
        // In pieces: a node may have many instances.
        let bytes = Frame::json(Kind::Data, &usage).payload;
        session::send(&peer.out, Kind::Data, bytes).await;
        let _ = peer.out.send(Frame::json(Kind::End, &Ended::Done)).await;
        Ok(())
    }

    /// Gives an image to another node.
    async fn share<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        image: &str,
        id: &str,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        let near = self.near(caller, Act::Share, None)?;
        let mut directories = self.shared.directories.clone();
        let directory = known(&mut directories).await.ok_or_else(not_ready)?;
        let engine = self.shared.engine.as_ref();
        tracing::info!(%caller, image = clean(image, 600), "an image is asked for by another node");
        share::send_image(near, engine, directory.images(), image, id, peer).await
    }

    /// Lists the engine's images, or removes some of them.
    async fn images<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        remove: Option<&[String]>,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        let act = match remove {
            None => Act::Images,
            Some(_) => Act::RemoveImages,
        };
        let near = self.near(caller, act, None)?;
        let mut directories = self.shared.directories.clone();
        let directory = known(&mut directories).await.ok_or_else(not_ready)?;
        let answer = match remove {
            None => Frame::json(Kind::Data, &images::list(near, directory.images()).await?),
            Some(asked) => Frame::json(Kind::Data, &images::remove(near, directory.images(), asked).await?),
        };
        let _ = peer.out.send(begun()).await;
        session::send(&peer.out, Kind::Data, answer.payload).await;
        let _ = peer.out.send(Frame::json(Kind::End, &Ended::Done)).await;
        Ok(())
    }

    /// A named command, by what the store says of it: not before it is known that this caller may run any.
    async fn named(&self, caller: &Caller, asked: &Wanted<'_>) -> Result<Ready, Refusal> {
        may(caller, Act::Run, Some(&asked.instance.namespace), self.rights)
            .map_err(|denied| Refusal::new(Why::Denied, denied.message).help(denied.remedy))?;
        let found = self.shared.shelf.command(&asked.key()).await?;
        named::ready(found.as_ref(), asked)
    }

    #[expect(clippy::too_many_arguments, reason = "called twice, with what was asked")]
    async fn exec<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        act: Act,
        instance: &Named,
        command: &Inside,
        terminal: Option<super::ask::Size>,
        limit: Option<Duration>,
        record: impl FnOnce(&str) -> Begun,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        let near = self.near(caller, act, Some(instance))?;
        if command.words.first().is_none_or(String::is_empty) {
            return Err(Refusal::new(Why::NotUnderstood, "there is no command"));
        }
        let (container, _) = self.running(near, instance).await?;
        let mut running = self.record(record(&container))?;
        let exec = near.exec(&container, command).await?;
        let session = near.start_exec(&exec, command.tty).await?;
        let place = format!("/exec/{exec}");
        if let Some(size) = terminal {
            session::first_size(near, &place, size).await;
        }
        let _ = peer.out.send(begun()).await;
        let pass = session::pass(near, session, &place, peer);
        let passed = match limit {
            None => pass.await,
            Some(limit) => match tokio::time::timeout(limit, pass).await {
                Ok(passed) => passed,
                Err(_) => {
                    let why = format!("it was given up after {} s", limit.as_secs_f32());
                    let why = Refusal::new(Why::Denied, why)
                        .help("no engine can end a command in a container: look whether it still runs there");
                    let _ = peer.out.send(Frame::json(Kind::End, &Ended::Failed(why))).await;
                    return Ok(());
                }
            },
        };
        if passed.is_ok_and(|passed| passed == Passed::Left) {
            return Ok(());
        }
        let ended = match session::code(near, &exec).await {
            Some(code) => {
                running.ended(code);
                Ended::Exited { code }
            }
            None => Ended::Failed(Refusal::new(
                Why::Engine,
                "the engine does not tell how the command ended",
            )),
        };
        let _ = peer.out.send(Frame::json(Kind::End, &ended)).await;
        Ok(())
    }

    async fn host<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        kind: NodeCommand,
        command: &[String],
        seconds: u32,
        record: Begun,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        may(caller, Act::Host, None, self.rights)
            .map_err(|denied| Refusal::new(Why::Denied, denied.message).help(denied.remedy))?;
        self.shared
            .gate
            .allows_command(kind)
            .map_err(|(message, remedy)| Refusal::new(Why::Denied, message).help(remedy))?;
        let mut running = self.record(record)?;
        let limit = Duration::from_secs(u64::from(seconds.max(1)));
        let engine = self.shared.engine_host.as_deref();
        if let host::Finished::Code(code) = host::run(kind, command, engine, limit, begun(), peer).await? {
            running.ended(code);
        }
        Ok(())
    }

    async fn attach<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        instance: &Named,
        input: bool,
        terminal: Option<super::ask::Size>,
        record: impl FnOnce(&str) -> Begun,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        let near = self.near(caller, Act::Attach, Some(instance))?;
        let (container, about) = self.running(near, instance).await?;
        let mut running = self.record(record(&container))?;
        let session = near.attach(&container, input && about.stdin, about.tty).await?;
        let place = format!("/containers/{container}");
        if let Some(size) = terminal.filter(|_| about.tty) {
            session::first_size(near, &place, size).await;
        }
        let _ = peer.out.send(begun()).await;
        let passed = session::pass(near, session, &place, peer).await;
        if passed.is_ok_and(|passed| passed == Passed::Left) {
            return Ok(());
        }
        let ended = match near.about(&container).await {
            Ok(about) if !about.running => {
                running.ended(about.exit_code);
                Ended::Exited { code: about.exit_code }
            }
            Ok(_) | Err(_) => Ended::Done,
        };
        let _ = peer.out.send(Frame::json(Kind::End, &ended)).await;
        Ok(())
    }

    async fn forward<R: AsyncRead + Unpin>(
        &self,
        caller: &Caller,
        instance: &Named,
        port: u16,
        record: impl FnOnce(&str) -> Begun,
        peer: &mut Peer<R>,
    ) -> Result<(), Refusal> {
        let near = self.near(caller, Act::Forward, Some(instance))?;
        let (container, _) = self.running(near, instance).await?;
        let mut running = self.record(record(&container))?;
        let stream = reach::connect(near, &container, port).await?;
        let _ = peer.out.send(begun()).await;
        reach::pass(stream, peer).await;
        running.ended(0);
        let _ = peer.out.send(Frame::json(Kind::End, &Ended::Done)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certified(names: &[&str]) -> Option<Caller> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        for name in names {
            params
                .subject_alt_names
                .push(SanType::URI((*name).try_into().expect("ASCII")));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        caller(certificate.der())
    }

    fn role(names: &[&str]) -> Option<String> {
        match certified(names) {
            Some(Caller::Certificate {
                subject: _,
                role,
                rights: _,
            }) => role,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_callers_role_is_what_its_certificate_says_and_an_odd_one_is_the_least() {
        assert_eq!(role(&[]), None);
        assert_eq!(role(&["https://else/node"]), None);
        assert_eq!(role(&["reeve://abc/person/anna"]).as_deref(), Some("person"));
        assert_eq!(role(&["reeve://abc/node/n1"]).as_deref(), Some("node"));
        assert_eq!(role(&["reeve://abc"]).as_deref(), Some("node"));
        assert_eq!(caller(b"no certificate"), None);
    }

    #[test]
    fn what_a_certificate_grants_is_read_and_what_is_not_understood_grants_nothing() {
        let granted = |name: &str| match certified(&[name]) {
            Some(Caller::Certificate { rights, .. }) => rights.map(|rights| rights.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(granted("reeve://abc/person/anna?viewer").as_deref(), Some("viewer"));
        assert_eq!(
            granted("reeve://abc/person/anna?operator+exec").as_deref(),
            Some("operator+exec")
        );
        assert_eq!(granted("reeve://abc/person/anna?emperor"), None);
        assert_eq!(granted("reeve://abc/person/anna"), None);
    }
}
