//! The other side of the API: how `reeve` asks an agent. It promises that an answer is of the node and cluster that were
//! meant, and that a silent agent is noticed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use schemas::names::NodeName;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::ask::{Answer, Asked, Refusal};
use super::wire::{self, Frame, Kind, Reader, SILENCE, WireError};
use super::{CLUSTER_HEADER, NODE_HEADER, PATH, PROTOCOL};

/// Time to be connected and answered.
const HELLO: Duration = Duration::from_secs(5);
/// Time for an answer to a question: the engine may be busy.
const ANSWER: Duration = Duration::from_secs(60);

/// How an agent is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// The socket in its data directory.
    Socket(PathBuf),
    /// `host:port`, with mutual TLS.
    Tls { address: String, config: Arc<ClientConfig> },
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tls { address, config: _ } => write!(f, "{address}"),
        }
    }
}

/// An agent that can be asked.
#[derive(Clone, Debug)]
pub struct Client {
    pub way: Way,
}

/// Who answers at the end of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub node: String,
    pub cluster: String,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("reach the agent at {way}")]
    Reach {
        way: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{way} is no agent's API: it answered {status}")]
    NoAgent { way: String, status: u16 },
    #[error("at {way} is the agent of node {found}, not of {node}")]
    OtherNode { way: String, node: NodeName, found: String },
    #[error("the agent broke off")]
    Broke(#[source] WireError),
    #[error("the agent ended the conversation")]
    Ended,
    #[error("the agent says nothing any more")]
    Silent,
    /// It was understood, and is not done.
    #[error(transparent)]
    Refused(Refusal),
}

/// A conversation under way.
pub struct Talk {
    reader: Reader<ReadHalf<TokioIo<Upgraded>>>,
    /// What is sent to the agent; pings go by themselves.
    pub out: mpsc::Sender<Frame>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Client {
    #[must_use]
    pub fn new(way: Way) -> Self {
        Self { way }
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Io>> {
        match &self.way {
            Way::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Way::Tls { address, config } => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(
                    TlsConnector::from(config.clone()).connect(name, stream).await?,
                ))
            }
        }
    }

    async fn upgraded(&self) -> Result<(TokioIo<Upgraded>, Who), AskError> {
        let way = || self.way.to_string();
        let reach = |source| AskError::Reach { way: way(), source };
        let broke = |error: hyper::Error| reach(std::io::Error::other(error));
        let work = async {
            let io = self.connect().await.map_err(reach)?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
                .await
                .map_err(broke)?;
            tokio::spawn(async move {
                // Its errors reach whoever reads the answer.
                let _ended = connection.with_upgrades().await;
            });
            let request = Request::get(PATH)
                .header(HOST, "agent")
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, PROTOCOL)
                .body(Empty::<Bytes>::new())
                .expect("a request of constants is one");
            let response = sender.send_request(request).await.map_err(broke)?;
            if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status().as_u16();
                return Err(AskError::NoAgent { way: way(), status });
            }
            let says = |name: &str| {
                let value = response.headers().get(name).and_then(|value| value.to_str().ok());
                crate::engine::clean(value.unwrap_or_default(), 64)
            };
            let who = Who {
                node: says(NODE_HEADER),
                cluster: says(CLUSTER_HEADER),
            };
            let io = hyper::upgrade::on(response).await.map_err(broke)?;
            Ok((TokioIo::new(io), who))
        };
        match tokio::time::timeout(HELLO, work).await {
            Ok(done) => done,
            Err(_) => Err(reach(std::io::ErrorKind::TimedOut.into())),
        }
    }

    /// Who is there.
    pub async fn who(&self) -> Result<Who, AskError> {
        self.upgraded().await.map(|(_, who)| who)
    }

    /// Asks the agent of this node, and waits until what is asked has begun.
    pub async fn ask(&self, node: &NodeName, asked: &Asked) -> Result<Talk, AskError> {
        let (io, who) = self.upgraded().await?;
        if who.node != node.as_str() {
            return Err(AskError::OtherNode {
                way: self.way.to_string(),
                node: node.clone(),
                found: who.node,
            });
        }
        let (read, write) = tokio::io::split(io);
        let (out, queue) = wire::queue();
        // Ends when nobody sends any more.
        tokio::spawn(wire::send_all(write, queue));
        let mut talk = Talk {
            reader: Reader::new(read, wire::MAX_ANSWER),
            out,
        };
        let _ = talk.out.send(Frame::json(Kind::Ask, asked)).await;
        let answer = tokio::time::timeout(ANSWER, talk.next())
            .await
            .map_err(|_| AskError::Silent)??;
        let answer = answer
            .filter(|frame| frame.kind == Kind::Answer)
            .ok_or(AskError::Ended)?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Answer::Begun) => Ok(talk),
            Ok(Answer::Refused(refusal)) => Err(AskError::Refused(refusal)),
            Err(_) => Err(AskError::Ended),
        }
    }
}

impl Talk {
    /// The next frame that says something; None when the agent has ended. Dropping a call under way loses nothing.
    pub async fn next(&mut self) -> Result<Option<Frame>, AskError> {
        loop {
            match tokio::time::timeout(SILENCE, self.reader.next()).await {
                Ok(Ok(Some(frame))) if frame.kind == Kind::Ping => {}
                Ok(Ok(frame)) => return Ok(frame),
                Ok(Err(error)) => return Err(AskError::Broke(error)),
                Err(_) => return Err(AskError::Silent),
            }
        }
    }
}
