//! The store's front: what clients of a seed's store meet in place of etcd. A seed runs it at the port where clients look for
//! etcd, with the seed's certificate, and passes on to its own member what [`allow`] lets through; the member itself listens
//! on loopback alone, to who shows a certificate that this process made. So etcd's faults in keeping its users apart are out
//! of reach, who was removed is cut off while connected, and the member has no need to be started again for either. Every caller
//! still has an etcd user of its own, behind the front.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::FutureExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ServerConfig};
use schemas::keys::Root;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use trust::authority::{Authority, AuthorityError, Grant, request};
use trust::bundle::Bundle;
use trust::certificate::Certificate;
use trust::identity::{Identity, Role, Who};
use trust::key::Key;
use trust::revoked::Revoked;
use trust::tls::{Door, Peers, ShowError};
use trust::trusted::Trust;

use crate::front::allow::{Denied, MAX_MESSAGE_BYTES, May};
use crate::keep::{Keep, KeepError};
use crate::port::Seat;
use crate::seed::served_at;
use crate::seeds::Host;
use crate::{CLIENT_PORT, now, rights};

pub mod allow;

const HANDSHAKE: Duration = Duration::from_secs(5);
/// How often it is asked whether a connection's certificate still counts.
pub const RECHECK: Duration = Duration::from_secs(1);
/// A client that says nothing is asked this often, and is gone when it does not answer in as long.
const ALIVE: Duration = Duration::from_secs(30);
/// How long a client stays with a front whose member does not answer.
const DOWN: Duration = Duration::from_secs(1);
/// How long the certificates between the front and its member last: longer than any process.
const LIFE: u64 = 10 * 365 * 86_400;
/// gRPC's own words.
const PERMISSION_DENIED: u8 = 7;
const UNAVAILABLE: u8 = 14;

/// Why there is no front.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("make certificates for the store's member")]
    Authority(#[from] AuthorityError),
    #[error("show a certificate to the store's member")]
    Show(#[from] ShowError),
    #[error("prepare TLS")]
    Tls(#[from] rustls::Error),
    #[error("listen on port {CLIENT_PORT} for the store's clients")]
    Listen(#[source] std::io::Error),
}

/// The authority between the front and its member, which nobody else has a certificate of: made anew with every start.
#[derive(Debug)]
pub struct Between(Authority);

/// The files of it that the member reads, in the seed's directory.
pub const MEMBER_CA: &str = "front.ca";
pub const MEMBER_CERTIFICATE: &str = "front.crt";
pub const MEMBER_KEY: &str = "front.key";

impl Between {
    /// Makes it, and writes what the member shows and asks for.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn new(keep: &Keep, seat: &Seat) -> Result<Self, FrontError> {
        let between = Self(Authority::new(seat.cluster, now())?);
        let label = crate::seed::name(&seat.host.label());
        let member = Identity::new(seat.cluster, Who::Server(label));
        let (certificate, key) = between.issue(served_at(Grant::new(member, LIFE), &seat.host))?;
        keep.write(MEMBER_CA, between.0.certificate().to_pem().as_bytes())?;
        keep.write(MEMBER_CERTIFICATE, certificate.to_pem().as_bytes())?;
        keep.write(MEMBER_KEY, key.to_pem().as_bytes())?;
        Ok(between)
    }

    fn issue(&self, grant: Grant) -> Result<(Certificate, Key), AuthorityError> {
        let key = Key::generate().map_err(AuthorityError::Key)?;
        let asked = request(&key, &grant.identity, &grant.addresses, &grant.dns_names)?;
        let none = Revoked::none(grant.identity.cluster);
        Ok((self.0.issue(&asked, &grant, &none, now())?, key))
    }

    /// How this caller is known to the member.
    fn client(&self, caller: &Identity) -> Result<ClientConfig, FrontError> {
        let (certificate, key) = self.issue(Grant::new(caller.clone(), LIFE))?;
        let bundle = Bundle::of(self.0.certificate().clone());
        let none = Revoked::none(bundle.cluster());
        let door = Door::new(Trust::new(bundle, none).expect("both are of one cluster"));
        door.show(&certificate, &key, self.0.certificate())?;
        let mut config = door.client(Peers::roles([Role::Server]), Arc::new(DefaultTimeProvider))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Where this seed's clients come: to its address, and from itself. A name may mean another address tomorrow.
///
/// # Errors
/// When a port cannot be had.
pub async fn listeners(me: &Host) -> Result<Vec<TcpListener>, FrontError> {
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let mut listeners = Vec::new();
    let own = me.address().unwrap_or(any);
    for address in std::iter::once(own).chain((!own.is_loopback() && own != any).then_some(loopback)) {
        let listener = TcpListener::bind((address, CLIENT_PORT)).await;
        listeners.push(listener.map_err(FrontError::Listen)?);
    }
    Ok(listeners)
}

/// A seed's front.
pub struct Front {
    pub root: Root,
    /// What it shows, and whom it trusts at each moment.
    pub door: Arc<Door>,
    pub between: Between,
    /// Where the member listens.
    pub member: SocketAddr,
}

impl Front {
    /// Serves clients at these until `end` says so.
    ///
    /// # Errors
    /// When TLS cannot be prepared.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<TcpListener>,
        mut end: watch::Receiver<bool>,
    ) -> Result<(), FrontError> {
        let clients = Peers::roles([Role::Server, Role::Controller, Role::Node, Role::Person]);
        let mut tls: ServerConfig = self.door.server(clients, Arc::new(DefaultTimeProvider))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let (front, tls) = (Arc::clone(&self), tls.clone());
            accepting.spawn(async move {
                let mut open = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => match accepted {
                            Ok((stream, address)) => {
                                open.spawn(Arc::clone(&front).meet(stream, address, tls.clone()));
                            }
                            // Out of file descriptors, or a client that left at once.
                            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                        },
                        Some(_) = open.join_next() => {}
                    }
                }
            });
        }
        // Dropped with all its connections.
        let _ = end.wait_for(|end| *end).await;
        Ok(())
    }

    async fn meet(self: Arc<Self>, stream: TcpStream, address: SocketAddr, tls: TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a handshake with a client of the store failed");
                return;
            }
            Err(_) => return,
        };
        let Ok(certificate) = trust::tls::peer(stream.get_ref().1.peer_certificates()) else {
            return;
        };
        let who = certificate.identity().clone();
        let upstream = timeout(HANDSHAKE, self.upstream(&who)).await;
        let (sender, connection) = match upstream.unwrap_or_else(|_| Err("it does not answer in time".to_owned())) {
            Ok((sender, connection)) => (Ok(sender), connection.left_future()),
            // It is told so, and comes again, here or to another seed.
            Err(why) => (Err(why), tokio::time::sleep(DOWN).right_future()),
        };
        let may = rights::may(&self.root, &who.who).map(Arc::new);
        let service = service_fn(move |request| {
            let (sender, may) = (sender.clone(), may.clone());
            async move {
                match sender {
                    Ok(sender) => pass_on(sender, may, request).await,
                    Err(why) => Ok(refused(UNAVAILABLE, &format!("the store's member of this seed: {why}"))),
                }
            }
        });
        let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(ALIVE))
            .keep_alive_timeout(ALIVE)
            .max_concurrent_streams(4_096);
        let serving = server.serve_connection(TokioIo::new(stream), service);
        let recheck = async {
            let mut ticks = interval(RECHECK);
            loop {
                ticks.tick().await;
                if let Err(why) = self.door.trust().recheck(&certificate, now()) {
                    return why;
                }
            }
        };
        tokio::pin!(connection);
        tokio::select! {
            // A client that goes, and a member that ends: each side hears of the other's end by its own.
            _ = serving => {}
            () = &mut connection => {}
            why = recheck => tracing::info!(%who, %address, %why, "a client of the store is cut off"),
        }
    }

    async fn upstream(&self, who: &Identity) -> Result<(Sender, impl Future<Output = ()> + use<>), String> {
        let told = |error: &dyn std::error::Error| runtime::chain(error);
        let config = self.between.client(who).map_err(|error| told(&error))?;
        let stream = TcpStream::connect(self.member).await.map_err(|error| told(&error))?;
        let _ = stream.set_nodelay(true);
        let name = ServerName::IpAddress(self.member.ip().into());
        let secured = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let secured = secured.map_err(|error| told(&error))?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(secured))
            .await
            .map_err(|error| told(&error))?;
        let connection = async move {
            let _ = connection.await;
        };
        Ok((sender, connection))
    }
}

type Sender = hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, Broken>>;
type Answer = UnsyncBoxBody<Bytes, hyper::Error>;

/// Why a client's message does not go on.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Client(#[from] hyper::Error),
}

/// One call: to the member, unless it is denied. Of who may do everything nothing is read.
async fn pass_on(
    mut sender: Sender,
    may: Option<Arc<May>>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let (parts, body) = request.into_parts();
    let method = parts.uri.path().to_owned();
    let is_grpc = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind == b"application/grpc" || kind.starts_with(b"application/grpc+proto")
    });
    if parts.method != Method::POST || !is_grpc {
        return Ok(refused(PERMISSION_DENIED, "the store is asked by gRPC"));
    }
    let denied = Arc::new(OnceLock::new());
    let body = match may {
        None => body.map_err(Broken::from).boxed_unsync(),
        Some(may) => Judged::new(body, may, method.clone(), Arc::clone(&denied)).boxed_unsync(),
    };
    let Ok(uri) = format!("https://store{method}").parse::<Uri>() else {
        return Ok(refused(PERMISSION_DENIED, "the store is asked by gRPC"));
    };
    let mut asked = Request::new(body);
    *asked.method_mut() = Method::POST;
    *asked.uri_mut() = uri;
    *asked.headers_mut() = passed(parts.headers);
    match sender.send_request(asked).await {
        Ok(answer) => Ok(answer.map(BodyExt::boxed_unsync)),
        Err(error) => Ok(match denied.get() {
            Some(why) => refused(PERMISSION_DENIED, &format!("{why}")),
            None => refused(UNAVAILABLE, &runtime::chain(&error)),
        }),
    }
}

/// What of a request's headers goes on: what gRPC needs, and not who somebody claims to be.
fn passed(headers: HeaderMap) -> HeaderMap {
    let mut passed = headers;
    for name in [
        HOST,
        CONTENT_LENGTH,
        HeaderName::from_static("token"),
        hyper::header::AUTHORIZATION,
    ] {
        passed.remove(name);
    }
    passed
}

/// gRPC's answer without a message.
fn refused(status: u8, why: &str) -> Response<Answer> {
    let said: String = why
        .bytes()
        .take(400)
        .map(|byte| match byte {
            b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    let mut response = Response::new(Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from(u16::from(status)),
    );
    if let Ok(said) = HeaderValue::from_str(&said) {
        headers.insert(HeaderName::from_static("grpc-message"), said);
    }
    response
}

/// A client's messages, each judged before it goes on.
struct Judged {
    body: Incoming,
    may: Arc<May>,
    method: String,
    came: Messages,
    denied: Arc<OnceLock<Denied>>,
    ended: bool,
}

/// What has come of a client's messages, however it is cut.
#[derive(Default)]
struct Messages(BytesMut);

/// A message's length stands before it, behind a byte that says whether it is compressed.
const PREFIX: usize = 5;

impl Messages {
    /// The next whole one as `judge` has it go on; None while it has not all come.
    fn next(&mut self, judge: impl FnOnce(&[u8]) -> Result<Vec<u8>, Denied>) -> Result<Option<Bytes>, Denied> {
        let Some(&[packed, a, b, c, d]) = self.0.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if packed != 0 || length > MAX_MESSAGE_BYTES {
            return Err(Denied::Broken);
        }
        if self.0.len() < PREFIX + length {
            return Ok(None);
        }
        self.0.advance(PREFIX);
        let judged = judge(&self.0.split_to(length))?;
        let length = u32::try_from(judged.len()).map_err(|_| Denied::Broken)?;
        let mut frame = BytesMut::with_capacity(PREFIX + judged.len());
        frame.put_u8(0);
        frame.put_u32(length);
        frame.put_slice(&judged);
        Ok(Some(frame.freeze()))
    }

    /// At the end nothing may be left of one.
    fn end(&self) -> Result<(), Denied> {
        self.0.is_empty().then_some(()).ok_or(Denied::Broken)
    }
}

impl Judged {
    fn new(body: Incoming, may: Arc<May>, method: String, denied: Arc<OnceLock<Denied>>) -> Self {
        Self {
            body,
            may,
            method,
            came: Messages::default(),
            denied,
            ended: false,
        }
    }

    /// The next message that may go on; None while it has not all come, or after the last.
    fn next(&mut self) -> Result<Option<Bytes>, Denied> {
        let judge = |message: &[u8]| self.may.judge(&self.method, message, drawn());
        let next = self.came.next(judge)?;
        if next.is_none() && self.ended {
            self.came.end()?;
        }
        Ok(next)
    }
}

/// Random enough for the number of a lease: etcd refuses one that is taken, and the client asks again.
fn drawn() -> u32 {
    use std::hash::{BuildHasher as _, RandomState};
    u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or_default()
}

impl Body for Judged {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        loop {
            match this.next() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                Ok(None) if this.ended => return Poll::Ready(None),
                Ok(None) => {}
                Err(why) => {
                    let _ = this.denied.set(why.clone());
                    (this.ended, this.came) = (true, Messages::default());
                    return Poll::Ready(Some(Err(Broken::Denied(why))));
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        this.came.0.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(Broken::Client(error)))),
                None => this.ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        [&[0], &length[..], message].concat()
    }

    #[test]
    fn messages_are_judged_one_by_one_however_they_are_cut() {
        let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();
        for size in 1..=bytes.len() {
            let (mut came, mut judged, mut out) = (Messages::default(), Vec::new(), Vec::new());
            for piece in bytes.chunks(size) {
                came.0.extend_from_slice(piece);
                let mut judge = |message: &[u8]| {
                    judged.push(message.to_vec());
                    Ok([message, b"!"].concat())
                };
                while let Some(frame) = came.next(&mut judge).expect("all are let through") {
                    out.extend_from_slice(&frame);
                }
            }
            assert_eq!(judged, [&b"one"[..], b"", b"three"], "{size}");
            assert_eq!(
                out,
                [framed(b"one!"), framed(b"!"), framed(b"three!")].concat(),
                "{size}"
            );
            assert_eq!(came.end(), Ok(()));
        }
    }

    #[test]
    fn what_is_packed_too_long_or_cut_off_goes_nowhere() {
        let next = |bytes: &[u8]| Messages(bytes.into()).next(|message| Ok(message.to_vec()));
        let mut packed = framed(b"one");
        packed[0] = 1;
        assert_eq!(next(&packed), Err(Denied::Broken));
        let mut long = framed(b"");
        long[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(next(&long), Err(Denied::Broken));
        let whole = framed(b"one");
        for end in 1..whole.len() {
            assert_eq!(next(&whole[..end]), Ok(None), "{end}");
            assert_eq!(Messages(whole[..end].into()).end(), Err(Denied::Broken), "{end}");
        }
        let denied = Messages(whole[..].into()).next(|_| Err(Denied::Nested));
        assert_eq!(denied, Err(Denied::Nested));
    }

    #[test]
    fn a_refusal_is_words_that_a_header_takes() {
        let answer = refused(PERMISSION_DENIED, "50 % of\nn\u{e4}chts");
        assert_eq!(answer.headers()["grpc-status"], "7");
        assert_eq!(answer.headers()["grpc-message"], "50 %25 of%0An%C3%A4chts");
    }

    #[test]
    fn nobody_says_by_a_header_who_he_is() {
        let mut headers = HeaderMap::new();
        for name in ["token", "authorization", "content-length", "te"] {
            headers.insert(name, HeaderValue::from_static("trailers"));
        }
        let passed = passed(headers);
        assert_eq!(passed.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["te"]);
    }
}
