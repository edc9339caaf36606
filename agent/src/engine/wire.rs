//! The way to an engine: HTTP over its Unix socket or TCP, one connection for each request, so that a restarted engine
//! leaves no dead connection behind (keeping them was measured: it saves 0.1 ms of a create's 100 and more). bollard speaks through [`Wire`] too; what bollard's closed types might refuse goes as
//! plain JSON. Every request has a deadline, every answer a size limit.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::{EngineError, ErrorKind, Result};

/// The largest answer that is read: a list of some ten thousand containers.
const MAX_ANSWER: usize = 64 << 20;
/// The longest line of a stream.
const MAX_LINE: usize = 1 << 20;
/// Time to get a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// bollard's body type.
type Body = Either<
    Full<Bytes>,
    StreamBody<Pin<Box<dyn Stream<Item = std::result::Result<Frame<Bytes>, std::io::Error>> + Send>>>,
>;

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String),
}

impl Address {
    /// Reads what `--docker` and DOCKER_HOST hold: `unix:///path`, `tcp://host:port`, `http://host:port`, or a path.
    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        let unix = |path: &str| {
            if path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(format!(
                    "`{text}` is not an absolute path: write unix:///var/run/docker.sock"
                ))
            }
        };
        match text.split_once("://") {
            Some(("unix", path)) => unix(path),
            None if text.starts_with('/') => unix(text),
            Some(("tcp" | "http", rest)) => {
                let rest = rest.trim_end_matches('/');
                let port = rest
                    .rsplit_once(':')
                    .and_then(|(host, port)| (!host.is_empty()).then_some(port)?.parse::<u16>().ok());
                match port {
                    Some(2_376) => Err(format!(
                        "`{text}` is the engine's port for TLS, which is not supported yet: use its Unix socket"
                    )),
                    Some(port) if port > 0 && !rest.contains('/') => Ok(Self::Tcp(rest.to_owned())),
                    _ => Err(format!("`{text}` has no port: write tcp://127.0.0.1:2375")),
                }
            }
            Some((scheme, _)) => Err(format!(
                "`{scheme}` is no way to an engine that is supported: use unix:// or tcp://"
            )),
            None => Err(format!(
                "`{text}` is not an engine's address: write unix:///var/run/docker.sock or tcp://127.0.0.1:2375"
            )),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The way to one engine. Connects when asked something, so it may be made before the engine runs.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub(super) address: Address,
}

impl Wire {
    async fn connect(&self) -> std::io::Result<Box<dyn Io>> {
        let connect = async {
            Ok(match &self.address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Io>,
                Address::Tcp(host) => {
                    let stream = TcpStream::connect(host).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            })
        };
        tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }

    /// One request, answered up to its head; also what bollard calls.
    pub(super) async fn send(
        self,
        mut request: Request<Body>,
    ) -> std::result::Result<Response<Incoming>, bollard::errors::Error> {
        let io = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        tokio::spawn(async move {
            // Its errors reach whoever reads the answer.
            let _ended = connection.with_upgrades().await;
        });
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = path.into();
        }
        request
            .headers_mut()
            .insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("docker"));
        Ok(sender.send_request(request).await?)
    }

    async fn head(&self, act: &str, call: Call<'_>) -> Result<Response<Incoming>> {
        let mut builder = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header("Content-Type", "application/json");
        if let Some(auth) = call.registry_auth {
            builder = builder.header("X-Registry-Auth", auth);
        }
        let body = call.body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = builder
            .body(Either::Left(Full::new(body)))
            .map_err(|error| EngineError::new(ErrorKind::Other, act, &error.to_string()))?;
        let response = self
            .clone()
            .send(request)
            .await
            .map_err(|error| self.failed(act, &error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let bytes = Limited::new(response.into_body(), MAX_LINE)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Err(refused(act, status.as_u16(), &message(&bytes)))
    }

    /// One request with a JSON answer; Null when there is none.
    pub(super) async fn call(&self, act: &str, deadline: Duration, call: Call<'_>) -> Result<Value> {
        within(act, deadline, async {
            let response = self.head(act, call).await?;
            let bytes = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| EngineError::new(ErrorKind::Unavailable, act, &error.to_string()))?
                .to_bytes();
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(&bytes)
                .map_err(|error| EngineError::new(ErrorKind::Other, act, &format!("its answer is not JSON: {error}")))
        })
        .await
    }

    /// Whether the engine answers at all. Cheap, where its version takes it ten milliseconds.
    pub(super) async fn ping(&self, act: &str, deadline: Duration) -> Result<()> {
        within(act, deadline, self.head(act, Call::get("/_ping")))
            .await
            .map(drop)
    }

    /// One request answered by lines of JSON, until the engine ends them.
    pub(super) async fn lines(&self, act: &str, deadline: Duration, call: Call<'_>) -> Result<Lines> {
        let response = within(act, deadline, self.head(act, call)).await?;
        Ok(Lines {
            act: act.to_owned(),
            body: response.into_body(),
            buffer: Vec::new(),
            ended: false,
        })
    }

    /// What a failed call of bollard's, or of [`Wire::send`], means.
    pub(super) fn failed(&self, act: &str, error: &bollard::errors::Error) -> EngineError {
        use bollard::errors::Error;
        let unavailable = |said: String| EngineError::new(ErrorKind::Unavailable, act, &said);
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "bollard's errors, of which only these mean something else to us"
        )]
        match error {
            Error::DockerResponseServerError { status_code, message } => refused(act, *status_code, message),
            Error::DockerStreamError { error } => refused(act, 500, error),
            Error::RequestTimeoutError => EngineError::new(ErrorKind::Timeout, act, "no answer in time"),
            Error::IOError { err } if err.kind() == std::io::ErrorKind::PermissionDenied => unavailable(format!(
                "this user may not use {}: run the agent as root or in the group `docker`",
                self.address
            )),
            Error::IOError { err } => unavailable(format!("nothing answers at {}: {err}", self.address)),
            Error::HyperResponseError { err } => {
                unavailable(format!("the connection to {} broke: {err}", self.address))
            }
            Error::JsonDataError { message, .. } => EngineError::new(
                ErrorKind::Other,
                act,
                &format!("its answer is not understood: {message}"),
            ),
            other => EngineError::new(ErrorKind::Other, act, &other.to_string()),
        }
    }
}

/// One request in plain words.
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    /// Path and query, encoded.
    pub(super) path: &'a str,
    pub(super) body: Option<&'a Value>,
    pub(super) registry_auth: Option<&'a str>,
}

impl<'a> Call<'a> {
    pub(super) const fn get(path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            body: None,
            registry_auth: None,
        }
    }
    pub(super) const fn delete(path: &'a str) -> Self {
        Self {
            method: "DELETE",
            path,
            body: None,
            registry_auth: None,
        }
    }
    pub(super) const fn post(path: &'a str, body: Option<&'a Value>) -> Self {
        Self {
            method: "POST",
            path,
            body,
            registry_auth: None,
        }
    }
}

/// A stream of JSON values, one a line.
pub(super) struct Lines {
    act: String,
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// The next value; None at the end. A line that is no JSON is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Ok(value) = serde_json::from_slice(&line) {
                    return Ok(Some(value));
                }
            }
            if self.ended {
                let rest = std::mem::take(&mut self.buffer);
                return Ok(serde_json::from_slice(&rest).ok());
            }
            if self.buffer.len() > MAX_LINE {
                return Err(EngineError::new(
                    ErrorKind::Other,
                    &self.act,
                    "a line of its answer is too long",
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(EngineError::new(
                        ErrorKind::Unavailable,
                        &self.act,
                        &format!("the connection broke: {error}"),
                    ));
                }
                None => self.ended = true,
            }
        }
    }
}

/// Waits at most `deadline`.
pub(super) async fn within<T>(act: &str, deadline: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(EngineError::new(
            ErrorKind::Timeout,
            act,
            &format!("no answer within {} s", deadline.as_secs_f32()),
        )),
    }
}

/// The engine's message in the body of a refusal.
pub(super) fn message(body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => value["message"]
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

/// Sorts a refusal by its status and words.
pub(super) fn refused(act: &str, status: u16, said: &str) -> EngineError {
    let low = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| low.contains(word));
    let kind = if has(&["no space left on device", "disk quota exceeded"]) {
        ErrorKind::NoSpace
    } else if has(&[
        "port is already allocated",
        "address already in use",
        "ports are not available",
    ]) {
        ErrorKind::PortTaken { port: port_in(&low) }
    } else if status == 404 && has(&["no such image"]) {
        ErrorKind::ImageNotFound
    } else if status == 404 {
        ErrorKind::NotFound
    } else if status == 409 {
        ErrorKind::Conflict {
            holder: holder_in(&low),
        }
    } else if status == 401 || status == 403 {
        ErrorKind::Denied
    } else if status == 400
        || has(&[
            "oci runtime create failed",
            "failed to create task for container",
            "executable file not found",
        ])
    {
        ErrorKind::Refused
    } else {
        ErrorKind::Other
    };
    let said = if said.trim().is_empty() {
        format!("it answered with status {status}")
    } else {
        said.to_owned()
    };
    EngineError::new(kind, act, &said)
}

/// The id in: name "/x" is already in use by container "64 hexadecimal digits".
fn holder_in(low: &str) -> Option<String> {
    let id: String = low
        .split_once("by container ")?
        .1
        .trim_start_matches('"')
        .chars()
        .take_while(char::is_ascii_hexdigit)
        .collect();
    (id.len() == 64).then_some(id)
}

/// The port in `bind for 0.0.0.0:8080 failed` or `listen tcp4 0.0.0.0:8080: bind: ...`.
fn port_in(low: &str) -> Option<u16> {
    low.split_whitespace()
        .filter_map(|word| word.trim_end_matches([':', ',', '.', '\'', '"', ')']).rsplit_once(':'))
        .find_map(|(_, port)| port.parse().ok().filter(|port| *port > 0))
}

/// Text made fit for a query.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted_by_their_words() {
        let kind = |status, said: &str| refused("x", status, said).kind;
        let id = "a".repeat(64);
        assert_eq!(
            kind(
                409,
                &format!(
                    "Conflict. The container name \"/w\" is already in use by container \"{id}\". You have to remove"
                )
            ),
            ErrorKind::Conflict { holder: Some(id) }
        );
        assert_eq!(
            kind(
                500,
                "driver failed programming external connectivity on endpoint w (1f): Bind for 0.0.0.0:8080 failed: port is already allocated"
            ),
            ErrorKind::PortTaken { port: Some(8080) }
        );
        assert_eq!(
            kind(
                500,
                "Error starting userland proxy: listen tcp4 0.0.0.0:8081: bind: address already in use"
            ),
            ErrorKind::PortTaken { port: Some(8081) }
        );
        assert_eq!(kind(404, "No such image: x:latest"), ErrorKind::ImageNotFound);
        assert_eq!(kind(404, "No such container: x"), ErrorKind::NotFound);
        assert_eq!(kind(500, "write /x: no space left on device"), ErrorKind::NoSpace);
        assert_eq!(kind(400, "invalid mount config"), ErrorKind::Refused);
        assert_eq!(kind(500, "?"), ErrorKind::Other);
    }

    #[test]
    fn an_engines_words_hold_no_control_characters_and_are_short() {
        let error = refused("start", 500, &format!("a\u{1b}[31m\r\nb\u{202e}{}", "x".repeat(9_000)));
        assert!(error.said.starts_with("a [31m b x"), "{}", error.said);
        assert_eq!(error.said.chars().count(), 400);
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(
            Address::parse("unix:///run/d.sock"),
            Ok(Address::Unix("/run/d.sock".into()))
        );
        assert_eq!(
            Address::parse("tcp://127.0.0.1:2375"),
            Ok(Address::Tcp("127.0.0.1:2375".into()))
        );
        assert_eq!(
            Address::parse("tcp://[::1]:2375"),
            Ok(Address::Tcp("[::1]:2375".into()))
        );
        for bad in [
            "",
            "ssh://x",
            "tcp://h",
            "tcp://h:0",
            "tcp://:80",
            "tcp://h:2376",
            "https://h:1",
            "unix://x",
            "npipe:////./x",
            "tcp://h:1/x",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
