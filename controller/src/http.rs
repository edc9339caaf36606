//! What a controller serves over HTTP, for people's tools: `/metrics`, `/healthz`, `/readyz`, and `/sd`, Prometheus' HTTP
//! service discovery. Only GET; it reads the cache and writes nothing. There are at most 64 connections, and one that
//! brings no request within 10 s, or nothing new for two minutes, is closed: no client can tie the controller down.
//!
//! `/sd` lists all controllers, leading or not, and every agent that registered an address: all but this controller from
//! keys in the store, which each of them keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use runtime::boottime::Instant;
use runtime::{Health, Prefix, Reader};
use schemas::keys::{Key, Root};
use schemas::records::{NodeFacts, Record};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::metrics::Metrics;
use crate::presence::Presence;

/// A store that has not answered for this long counts as away.
pub const STORE_SILENCE: Duration = Duration::from_secs(10);
/// No pass computes for this long: the largest cluster takes seconds.
const LONGEST_PASS: Duration = Duration::from_secs(120);
/// Controllers listed at most.
const CONTROLLERS: usize = 100;
/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a connection may take to its first answer.
const FIRST: Duration = Duration::from_secs(10);
/// How long it may bring nothing new after that; over the usual minute between two scrapes.
const IDLE: Duration = Duration::from_secs(120);

/// What the handlers read.
#[derive(Clone, Debug)]
pub struct Served {
    /// Counters, and the leader's last pass.
    pub metrics: Arc<Metrics>,
    /// The cache.
    pub cache: Reader,
    /// When the store last answered.
    pub store: Health,
    /// Where the keys stand.
    pub root: Root,
    /// `host:port` under which others reach this server.
    pub address: String,
    /// One scrape at a time.
    pub turn: Arc<Semaphore>,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, served: Served) {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/sd", get(discovery))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /sd\n") })
        .with_state(served);
    let bounded = Bounded {
        listener,
        room: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    if let Err(error) = axum::serve(bounded, app).await {
        tracing::error!(%error, "the HTTP server has ended");
    }
}

/// In a large cluster a scrape computes for a while: on a thread of its own, and one at a time.
async fn apart(served: Served, compute: impl FnOnce(&Served) -> String + Send + 'static) -> String {
    let turn = Arc::clone(&served.turn);
    // The semaphore is never closed, and what is computed does not panic: else the answer is empty.
    let _turn = turn.acquire().await.ok();
    tokio::task::spawn_blocking(move || compute(&served))
        .await
        .unwrap_or_default()
}

async fn metrics(State(served): State<Served>) -> Response {
    let text = apart(served, |served| {
        served.metrics.text(&served.store, served.cache.snapshot().as_ref())
    });
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text.await).into_response()
}

/// Healthy: nothing that a restart of this process would mend. A store that is away is no such thing.
async fn healthy(State(served): State<Served>) -> (StatusCode, String) {
    let told = if served.cache.has_ended() {
        Some("the store is followed no more".to_owned())
    } else {
        let long = served.metrics.thinking_for().filter(|long| *long > LONGEST_PASS);
        long.map(|long| format!("a pass has been computing for {} s", long.as_secs()))
    };
    answer(told.map(|why| format!("{why}: restart this controller, and report the bug")))
}

/// Ready: the store was read in full, it answers, and it may be acted on. A standby is ready too.
async fn ready(State(served): State<Served>) -> (StatusCode, String) {
    let silent = served.store.last_answer().map(Instant::elapsed);
    let told = match silent {
        None => Some(format!("the store does not answer yet; {CHECK_STORE}")),
        Some(silent) if silent >= STORE_SILENCE => Some(format!(
            "the store does not answer, for {} s; {CHECK_STORE}",
            silent.as_secs()
        )),
        Some(_) if served.cache.snapshot().is_none() => Some("the store has not been read in full yet".to_owned()),
        Some(_) => served.metrics.held(),
    };
    answer(told)
}

const CHECK_STORE: &str = "check that etcd runs, and that --etcd (REEVE_ETCD) names its client URLs";

/// One line, with the reason where it is a no.
fn answer(no: Option<String>) -> (StatusCode, String) {
    match no {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// One entry of Prometheus' HTTP service discovery.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Target {
    targets: Vec<String>,
    labels: BTreeMap<&'static str, String>,
}

async fn discovery(State(served): State<Served>) -> Response {
    let text = apart(served, |served| {
        serde_json::to_string(&targets(served)).unwrap_or_else(|_| "[]".to_owned())
    });
    ([(header::CONTENT_TYPE, "application/json")], text.await).into_response()
}

fn targets(served: &Served) -> Vec<Target> {
    let mut addresses = BTreeSet::from([served.address.clone()]);
    let Some(cache) = served.cache.snapshot() else {
        return addresses.iter().map(|own| target("controller", own, None)).collect();
    };
    // The leader's is in the election key too, also while it has no key of its own.
    let election = cache.keys.get(served.root.key(&Key::Election).as_bytes());
    let holder = election.and_then(|kv| serde_json::from_slice::<runtime::leader::Holder>(&kv.value).ok());
    addresses.extend(holder.and_then(|holder| holder_address(&holder.holder).map(str::to_owned)));
    if let Ok(controllers) = Prefix::new(served.root.prefix("controllers")) {
        let known = cache.keys.under(&controllers).take(CONTROLLERS);
        let known = known.filter_map(|kv| Presence::decode(&kv.value).ok());
        addresses.extend(known.map(|known| known.address).filter(|address| is_address(address)));
    }
    let mut targets: Vec<Target> = addresses.iter().map(|each| target("controller", each, None)).collect();
    let Ok(nodes) = Prefix::new(served.root.prefix("nodes")) else {
        return targets;
    };
    for kv in cache.keys.under(&nodes) {
        let Some(Key::Node(node)) = served.root.parse(&kv.key) else {
            continue;
        };
        let facts = NodeFacts::decode(&kv.value).ok().filter(|facts| facts.node == node);
        let Some(address) = facts
            .and_then(|facts| facts.addresses.agent)
            .filter(|address| is_address(address))
        else {
            continue;
        };
        targets.push(target("agent", &address, Some(node.to_string())));
    }
    targets
}

/// Both as meta labels, for who relabels, and as plain ones, for who does not.
fn target(component: &str, address: &str, node: Option<String>) -> Target {
    let mut labels = BTreeMap::from([
        ("__meta_reeve_component", component.to_owned()),
        ("component", component.to_owned()),
    ]);
    if let Some(node) = node {
        labels.insert("__meta_reeve_node", node.clone());
        labels.insert("node", node);
    }
    Target {
        targets: vec![address.to_owned()],
        labels,
    }
}

/// How a controller calls itself in the election key, so that the others find its HTTP server.
#[must_use]
pub fn holder(id: &str, address: Option<&str>) -> String {
    let mut text: String = id.chars().filter(|c| !c.is_control()).take(200).collect();
    if let Some(address) = address {
        let _ = write!(text, " at {address}");
    }
    text
}

fn holder_address(holder: &str) -> Option<&str> {
    holder
        .rsplit_once(" at ")
        .map(|(_, address)| address)
        .filter(|address| is_address(address))
}

/// `host:port` of a plain form: what nodes and others write is not to be trusted with more.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    port.parse::<u16>().is_ok_and(|port| port > 0) && !host.is_empty() && text.len() <= 260 && host.chars().all(plain)
}

/// Accepts so many connections at once, each with an idle limit.
struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let (stream, address) = <TcpListener as axum::serve::Listener>::accept(&mut self.listener).await;
        // The semaphore is never closed.
        let connection = Connection {
            stream,
            idle: Box::pin(tokio::time::sleep(FIRST)),
            _room: room.ok(),
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing was answered on it in time: reading alone, byte by byte, does not keep it.
struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn check_idle(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.idle.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_idle(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_idle(context)?;
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(wrote, Poll::Ready(Ok(count)) if count > 0) {
            self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_are_handed_to_prometheus() {
        for good in ["10.0.0.1:9464", "n1.example:80", "[::1]:9464", "localhost:1"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a",
            "a:0",
            "a:70000",
            "a/b:80",
            "http://a:80",
            "a b:80",
            "a\n:80",
            "u@a:80",
            &format!("{}:80", "a".repeat(300)),
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn the_leader_is_found_by_what_it_writes_into_the_election_key() {
        assert_eq!(
            holder_address(&holder("host at home:17", Some("10.0.0.1:9465"))),
            Some("10.0.0.1:9465")
        );
        assert_eq!(holder_address(&holder("host:17", None)), None);
    }
}
