//! One request to a seed's port: TLS first, so that a stranger is told apart before anything is said, then HTTP, all of it
//! within deadlines and sizes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::time_provider::DefaultTimeProvider;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use trust::identity::Role;
use trust::tls::{Door, Peers, Stranger, stranger};

use crate::port::Refused;
use crate::seeds::Host;

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 256 * 1_024;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{at} does not answer")]
    Silent {
        at: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{at} does not answer within {} s", within.as_secs())]
    Slow { at: String, within: Duration },
    #[error("{at} is not a seed of this cluster")]
    Stranger {
        at: String,
        #[source]
        source: Stranger,
    },
    #[error("{at} broke off")]
    BrokenOff {
        at: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{at} answers what no seed says ({status})")]
    Nonsense { at: String, status: StatusCode },
    #[error("{at} refuses: {refused}")]
    Refused { at: String, refused: Refused },
}

/// How to connect to seeds with what this door shows; nobody else counts at the other end.
///
/// # Errors
/// When rustls refuses the configuration, which depends on nothing given.
pub fn to_seeds(door: &Arc<Door>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let servers = Peers::roles([Role::Server]);
    door.client(servers, Arc::new(DefaultTimeProvider)).map(Arc::new)
}

/// Asks a seed. The certificates that it showed come with the answer.
///
/// # Errors
/// When it does not answer, is a stranger, refuses, or answers nonsense.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    host: &Host,
    port: u16,
    tls: &Arc<ClientConfig>,
    path: &str,
    question: Option<&Q>,
) -> Result<(A, Vec<CertificateDer<'static>>), CallError> {
    let at = host.at(port);
    let slow = |within| {
        let at = at.clone();
        move |_| CallError::Slow { at, within }
    };
    let silent = |source: std::io::Error| {
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls.and_then(stranger) {
            Some(stranger) => CallError::Stranger {
                at: at.clone(),
                source: stranger.clone(),
            },
            None => CallError::Silent { at: at.clone(), source },
        }
    };
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| CallError::BrokenOff { at: at.clone(), source };
    let stream = timeout(CONNECT, TcpStream::connect(at.as_str())).await;
    let stream = stream.map_err(slow(CONNECT))?.map_err(silent)?;
    let name = ServerName::try_from("seed").expect("a DNS name");
    let secured = timeout(CONNECT, TlsConnector::from(Arc::clone(tls)).connect(name, stream)).await;
    let secured = secured.map_err(slow(CONNECT))?.map_err(silent)?;
    let shown: Vec<CertificateDer<'static>> = secured
        .get_ref()
        .1
        .peer_certificates()
        .map(|shown| shown.iter().map(|one| one.clone().into_owned()).collect())
        .unwrap_or_default();

    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(secured))
            .await
            .map_err(|error| broken(error.into()))?;
        let body = match question {
            Some(question) => serde_json::to_vec(question).map_err(|error| broken(error.into()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(if question.is_some() { Method::POST } else { Method::GET })
            .uri(path)
            .header(header::HOST, "seed")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.into()))?;
        // Driven beside us, so that an answer is read to its end also when the connection ends with it.
        let driven = tokio::spawn(connection);
        let answered = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(|error| broken(error.into()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(broken)?;
            Ok((status, body.to_bytes()))
        };
        let answered = answered.await;
        driven.abort();
        answered
    };
    let (status, body) = timeout(ANSWER, exchange).await.map_err(slow(ANSWER))??;
    if status.is_success() {
        let answer = serde_json::from_slice(&body).map_err(|_| CallError::Nonsense { at: at.clone(), status })?;
        return Ok((answer, shown));
    }
    match serde_json::from_slice::<Refused>(&body) {
        Ok(refused) => Err(CallError::Refused {
            at,
            refused: refused.bounded(),
        }),
        Err(_) => Err(CallError::Nonsense { at, status }),
    }
}
