//! The agent's HTTP server: `/metrics` for Prometheus, `/healthz` (the loop turns), `/readyz` (the engine answers and the
//! assignment is known). Plain HTTP, on loopback unless told otherwise; it takes no orders. Connections are few and short,
//! so that nobody can hold the agent by its ear.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use runtime::guest::Guest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::engine::ContainerRuntime;
use crate::metrics::Metrics;

/// Where the agent listens when nothing is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:9464";
/// Connections at once; others wait.
const CONNECTIONS: usize = 64;
/// The longest a connection lives, used or not.
const LIFETIME: Duration = Duration::from_secs(120);
/// The longest an answer takes.
const ANSWER: Duration = Duration::from_secs(10);
/// A loop that has not turned for so long is stuck: a quiet pass comes every 30 seconds.
const STUCK: Duration = Duration::from_secs(120);

/// How the agent is; the loop tells, the server shows.
pub struct Health {
    state: Mutex<(Instant, Result<(), String>)>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: Mutex::new((Instant::now(), Err("the first pass has not ended".to_owned()))),
        }
    }
}

impl Health {
    /// The loop turned; ready, or why not, in one sentence.
    pub fn turned(&self, ready: Result<(), String>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), ready);
    }

    fn live(&self) -> Result<(), String> {
        let age = self.state.lock().unwrap_or_else(PoisonError::into_inner).0.elapsed();
        if age < STUCK {
            Ok(())
        } else {
            Err(format!("the loop has not turned for {} s", age.as_secs()))
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.live()?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// What the server shows.
#[derive(Clone)]
pub struct Shown {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub engine: Arc<dyn ContainerRuntime>,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for metrics: choose another address, or end what has it")]
pub struct ListenError {
    pub address: SocketAddr,
    #[source]
    pub source: std::io::Error,
}

/// Takes the address; port 0 takes any.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })
}

/// Serves until `end`; requests under way are finished, for ten seconds at most.
pub async fn serve(
    listener: TcpListener,
    shown: Shown,
    end: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shown);
    let (told, mut heard) = tokio::sync::watch::channel(false);
    let listener = Door {
        listener,
        permits: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        end.await;
        told.send_replace(true);
    });
    let late = async move {
        if heard.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(ANSWER).await;
    };
    tokio::select! {
        done = async { server.await } => done,
        () = late => Ok(()),
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    match tokio::time::timeout(ANSWER, shown.metrics.scrape(shown.engine.as_ref())).await {
        Ok(Ok(text)) => (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            text,
        )
            .into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the metrics were not gathered in time\n",
        )
            .into_response(),
    }
}

fn said(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn healthz(State(shown): State<Shown>) -> Response {
    said(shown.health.live())
}

async fn readyz(State(shown): State<Shown>) -> Response {
    said(shown.health.ready())
}

/// A listener with a bounded number of guests.
struct Door {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Door {
    type Io = Guest<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest<TcpStream>, SocketAddr) {
        // The semaphore is never closed, so a permit always comes.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    return (Guest::new(stream, LIFETIME, permit), address);
                }
                // Out of file descriptors, or a guest who left at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::FakeEngine;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn the_server_shows_metrics_and_health_and_ends_when_told() {
        let metrics = Arc::new(Metrics::new(&"n1".parse().expect("a node")).expect("metrics"));
        let health = Arc::new(Health::default());
        let shown = Shown {
            metrics,
            health: Arc::clone(&health),
            engine: Arc::new(FakeEngine::new()),
        };
        let listener = listen("127.0.0.1:0".parse().expect("an address"))
            .await
            .expect("a listener");
        let address = listener.local_addr().expect("an address");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, shown, async move {
            let _told = ended.await;
        }));
        assert!(get(address, "/metrics").await.contains("reeve_agent_info{node=\"n1\""));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let not_ready = get(address, "/readyz").await;
        assert!(
            not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("first pass"),
            "{not_ready}"
        );
        health.turned(Ok(()));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        health.turned(Err("the engine does not answer".to_owned()));
        assert!(get(address, "/readyz").await.contains("the engine does not answer"));
        assert!(get(address, "/else").await.starts_with("HTTP/1.1 404"));
        let error = listen(address).await.expect_err("it is taken");
        assert!(error.to_string().contains(&address.to_string()));
        end.send(()).expect("it listens");
        serving.await.expect("it does not panic").expect("it ends well");
    }
}
