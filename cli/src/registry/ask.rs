//! Asks a registry: whether it knows an account, and what it has. The registry API, with Basic or Bearer as the registry
//! demands. Bounded in time and size; nothing of the password is in any error. `reeve login` calls it before it saves,
//! `reeve registries tags` and `search` to look around.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use schemas::registry::DOCKER_IO;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);
/// Some registries give all their names at once, however many are asked for.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What is asked for: the documents that a tag may stand for, and lists.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/json";
/// Where systems keep the authorities they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How a registry is reached.
#[derive(Debug)]
pub struct Way<'a> {
    /// `host[:port]`.
    pub registry: &'a str,
    /// Whether plain HTTP will do.
    pub insecure: bool,
    /// A further authority.
    pub ca: Option<&'a Path>,
}

/// What a registry says of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Knows,
    /// It asks nobody for a name: whether the password is right cannot be known.
    AsksNobody,
}

/// Why an account was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("find {host}")]
    NoSuchHost {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("reach {at}")]
    Silent {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error("hear from {at} within {} s", ANSWER.as_secs())]
    Slow { at: String },
    #[error("speak TLS with {at}")]
    Tls {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error("read the authority in {}", path.display())]
    Authority { path: PathBuf, why: String },
    #[error("speak HTTP with {at}")]
    Http {
        at: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("log in: {at} is no registry (it answers {status})")]
    NotARegistry { at: String, status: StatusCode },
    #[error("log in: {at} refuses user `{user}` or the password")]
    Refused { at: String, user: String },
    #[error("log in: {at} fails ({status})")]
    Failing { at: String, status: StatusCode },
    #[error("log in: {at} sends us to `{realm}`, where no password is sent")]
    Realm { at: String, realm: String },
}

impl AskError {
    fn is_of_a_certificate(&self) -> bool {
        let Self::Tls { at: _, source } = self else {
            return false;
        };
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// It does not speak TLS, or not at the port for it.
    fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Silent { .. })
    }

    /// What a person can do.
    pub fn remedy(&self, registry: &str) -> String {
        match self {
            Self::NoSuchHost { .. } => {
                "see that the registry's name is right, and that this host can look it up".into()
            }
            Self::Silent { .. } | Self::Slow { .. } => {
                "see that the registry runs, and that its port is right (write `host:port`)".into()
            }
            Self::Tls { .. } => format!(
                "name the authority of its certificate with --registry-ca, or put it into /etc/docker/certs.d/{registry}/ca.crt; --insecure when it speaks plain HTTP"
            ),
            Self::Authority { .. } => "it is a file of certificates in PEM".into(),
            Self::Http { .. } | Self::NotARegistry { .. } => {
                "see that host and port are the registry's, as images name it, without a path".into()
            }
            Self::Refused { .. } => {
                "type the password again; many registries want an access token in place of the password".into()
            }
            Self::Failing { .. } => "try again later, or see the registry's log".into(),
            Self::Realm { .. } => "that address has no TLS; --insecure allows it where the registry is your own".into(),
        }
    }
}

/// One server to talk to.
struct Server {
    host: String,
    port: u16,
    secure: bool,
    /// As `Host` says it.
    authority: String,
}

/// An answer, as far as it matters.
struct Told {
    status: StatusCode,
    demands: Vec<String>,
    is_registry: bool,
    /// Where the list goes on.
    link: Option<String>,
    digest: Option<String>,
    body: Zeroizing<Vec<u8>>,
}

/// A registry that has greeted us, and how it wants to be asked.
struct Greeted {
    server: Server,
    tls: Arc<ClientConfig>,
    plain_will_do: bool,
    /// What it demands of who asks; None when it asks nobody.
    demands: Option<Vec<String>>,
}

/// Whose name a question is asked in: the user, and the header that shows the password.
struct Own {
    user: String,
    basic: Zeroizing<String>,
}

/// Somebody who looks around in a registry.
pub struct Reader {
    greeted: Greeted,
    own: Option<Own>,
    /// The header that the last scope was opened with.
    open: Option<(String, Zeroizing<String>)>,
}

/// A page of what a registry has.
#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub body: serde_json::Value,
    /// The path of the page after it.
    pub next: Option<String>,
    /// Of the document, where it is one of an image.
    pub digest: Option<String>,
}

fn split(authority: &str, default: u16) -> (String, u16) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (
            host.trim_matches(['[', ']']).to_owned(),
            port.parse().unwrap_or(default),
        ),
        _ => (authority.trim_matches(['[', ']']).to_owned(), default),
    }
}

/// Whether a name is this machine's own: engines speak plain HTTP there too.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn basic(user: &str, password: &str) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// Asks.
///
/// # Errors
/// When the registry does not confirm the account.
pub async fn ask(way: &Way<'_>, user: &str, password: &str) -> Result<Answer, AskError> {
    let greeted = greet(way).await?;
    let Greeted {
        server,
        tls,
        plain_will_do: _,
        demands,
    } = &greeted;
    let Some(demands) = demands else {
        return Ok(Answer::AsksNobody);
    };
    let at = server.authority.clone();
    let own = Own {
        user: user.to_owned(),
        basic: basic(user, password),
    };
    let status = match demands.iter().find_map(|demand| Bearer::of(demand)) {
        Some(bearer) => {
            let Some(token) = bearer.token(&greeted, Some(&own), None).await? else {
                return Err(AskError::Refused {
                    at,
                    user: user.to_owned(),
                });
            };
            get(server, tls, "/v2/", Some(&token)).await?.status
        }
        None => get(server, tls, "/v2/", Some(&own.basic)).await?.status,
    };
    let user = user.to_owned();
    match status {
        StatusCode::OK => Ok(Answer::Knows),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(AskError::Refused { at, user }),
        status => Err(AskError::Failing { at, status }),
    }
}

impl Reader {
    /// Greets a registry, to look around in somebody's name or in nobody's.
    ///
    /// # Errors
    /// When it cannot be reached, or is no registry.
    pub async fn new(way: &Way<'_>, own: Option<(&str, &str)>) -> Result<Self, AskError> {
        Ok(Self {
            greeted: greet(way).await?,
            own: own.map(|(user, password)| Own {
                user: user.to_owned(),
                basic: basic(user, password),
            }),
            open: None,
        })
    }

    /// A page. `scope` is what a registry that wants tokens is asked for: `repository:team/app:pull`.
    ///
    /// # Errors
    /// When it cannot be asked; a refusal is a page with its status.
    pub async fn page(&mut self, path: &str, scope: &str) -> Result<Page, AskError> {
        let Greeted {
            server,
            tls,
            plain_will_do: _,
            demands,
        } = &self.greeted;
        let known = self.open.take().filter(|(opened, _)| opened == scope);
        let header = match (known, demands) {
            (Some((_, header)), _) => Some(header),
            (None, None) => None,
            (None, Some(demands)) => match demands.iter().find_map(|demand| Bearer::of(demand)) {
                Some(bearer) => bearer.token(&self.greeted, self.own.as_ref(), Some(scope)).await?,
                None => self.own.as_ref().map(|own| own.basic.clone()),
            },
        };
        let told = get(server, tls, path, header.as_ref().map(|header| header.as_str())).await?;
        self.open = header.map(|header| (scope.to_owned(), header));
        let Told {
            status,
            demands: _,
            is_registry: _,
            link,
            digest,
            body,
        } = told;
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(AskError::Failing {
                at: server.authority.clone(),
                status,
            });
        }
        Ok(Page {
            status,
            body: serde_json::from_slice(&body).unwrap_or_default(),
            next: link.as_deref().and_then(next_of),
            digest,
        })
    }
}

/// The path in `</v2/_catalog?last=x&n=100>; rel="next"`, also where the whole address is named: it is asked of the same server.
fn next_of(link: &str) -> Option<String> {
    let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !rest.contains("next") {
        return None;
    }
    let path = match address.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..))?,
        None => address,
    };
    let clean = path.starts_with("/v2/") && path.len() <= 2_000 && path.bytes().all(|byte| byte.is_ascii_graphic());
    clean.then(|| path.to_owned())
}

async fn greet(way: &Way<'_>) -> Result<Greeted, AskError> {
    let authority = match way.registry {
        DOCKER_IO => "registry-1.docker.io",
        registry => registry,
    };
    let (host, port) = split(authority, 443);
    let plain_will_do = way.insecure || is_loopback(&host);
    let tls = Arc::new(tls(way)?);
    let mut server = Server {
        host,
        port,
        secure: true,
        authority: authority.to_owned(),
    };
    let greeted = match get(&server, &tls, "/v2/", None).await {
        // A server that shows a certificate speaks TLS: nothing is sent to it in clear, whatever was allowed.
        Err(error) if plain_will_do && !error.is_of_a_certificate() && error.is_of_the_way() => {
            (server.secure, server.port) = (false, split(authority, 80).1);
            get(&server, &tls, "/v2/", None).await?
        }
        greeted => greeted?,
    };
    let at = server.authority.clone();
    let demands = match greeted.status {
        StatusCode::OK if greeted.is_registry => None,
        StatusCode::UNAUTHORIZED if !greeted.demands.is_empty() => Some(greeted.demands),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(AskError::Failing { at, status });
        }
        status => return Err(AskError::NotARegistry { at, status }),
    };
    Ok(Greeted {
        server,
        tls,
        plain_will_do,
        demands,
    })
}

/// What a registry demands that wants tokens.
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: Option<String>,
}

impl Bearer {
    /// Reads `Bearer realm="...",service="..."`.
    fn of(demand: &str) -> Option<Self> {
        let (scheme, rest) = demand.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest.trim_start();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Self { realm: realm?, service })
    }

    /// The header with the token that the realm gives, for an account or for nobody; None when it refuses.
    async fn token(
        &self,
        greeted: &Greeted,
        own: Option<&Own>,
        scope: Option<&str>,
    ) -> Result<Option<Zeroizing<String>>, AskError> {
        let Greeted {
            server: registry,
            tls,
            plain_will_do,
            demands: _,
        } = greeted;
        let wrong = || AskError::Realm {
            at: registry.authority.clone(),
            realm: self.realm.chars().take(200).collect(),
        };
        let (scheme, rest) = self.realm.split_once("://").ok_or_else(wrong)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let secure = scheme.eq_ignore_ascii_case("https");
        let (host, port) = split(authority, if secure { 443 } else { 80 });
        let plain = scheme.eq_ignore_ascii_case("http") && (*plain_will_do || is_loopback(&host));
        let clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !(secure || plain) || !clean(authority) || !clean(path) || authority.contains('@') || host.is_empty() {
            return Err(wrong());
        }
        let server = Server {
            host,
            port,
            secure,
            authority: authority.to_owned(),
        };
        let mut query = own.map_or_else(String::new, |own| format!("account={}&", encoded(&own.user)));
        query.push_str("client_id=reeve");
        if let Some(scope) = scope {
            query.push_str(&format!("&scope={}", encoded(scope)));
        }
        if let Some(service) = &self.service {
            query.push_str(&format!("&service={}", encoded(service)));
        }
        let joint = if path.contains('?') { '&' } else { '?' };
        let own = own.map(|own| own.basic.as_str());
        let told = get(&server, tls, &format!("/{path}{joint}{query}"), own).await?;
        match told.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => return Ok(None),
            status => {
                return Err(AskError::Failing {
                    at: server.authority,
                    status,
                });
            }
        }
        let value: serde_json::Value = serde_json::from_slice(&told.body).unwrap_or_default();
        let token = value["token"].as_str().or_else(|| value["access_token"].as_str());
        match token.filter(|token| clean(token)) {
            Some(token) => Ok(Some(Zeroizing::new(format!("Bearer {token}")))),
            None => Err(AskError::NotARegistry {
                at: server.authority,
                status: told.status,
            }),
        }
    }
}

/// A word of a query.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// The authorities of this system, of the engine for this registry, and the one that was named.
fn tls(way: &Way<'_>) -> Result<ClientConfig, AskError> {
    let mut roots = RootCertStore::empty();
    let system = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let engines = PathBuf::from(format!("/etc/docker/certs.d/{}/ca.crt", way.registry));
    let engines = Some(engines.as_path()).filter(|path| path.exists());
    for path in system.into_iter().chain(engines) {
        let certificates = CertificateDer::pem_file_iter(path).into_iter().flatten().flatten();
        roots.add_parsable_certificates(certificates);
    }
    if let Some(path) = way.ca {
        let wrong = |why: String| AskError::Authority {
            path: path.to_owned(),
            why,
        };
        let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
        let found: Result<Vec<_>, _> = found.collect();
        let found = found.map_err(|error| wrong(error.to_string()))?;
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(wrong("it holds no certificate".to_owned()));
        }
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn get(server: &Server, tls: &Arc<ClientConfig>, path: &str, own: Option<&str>) -> Result<Told, AskError> {
    let at = server.authority.clone();
    let slow = |_| AskError::Slow { at: at.clone() };
    let found = tokio::net::lookup_host((server.host.as_str(), server.port)).await;
    let addresses: Vec<_> = found
        .map_err(|source| AskError::NoSuchHost {
            host: server.host.clone(),
            source,
        })?
        .collect();
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(addresses.as_slice())).await;
    let stream = connected
        .map_err(slow)?
        .map_err(|source| AskError::Silent { at: at.clone(), source })?;
    let exchange = async {
        if !server.secure {
            return over(stream, server, path, own).await;
        }
        let name = ServerName::try_from(server.host.clone()).map_err(|_| AskError::NoSuchHost {
            host: server.host.clone(),
            source: io::Error::from(io::ErrorKind::InvalidInput),
        })?;
        let secured = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        let secured = secured.map_err(|source| AskError::Tls { at: at.clone(), source })?;
        over(secured, server, path, own).await
    };
    tokio::time::timeout(ANSWER, exchange).await.map_err(slow)?
}

async fn over<S>(stream: S, server: &Server, path: &str, own: Option<&str>) -> Result<Told, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| AskError::Http {
        at: server.authority.clone(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.into()))?;
    let mut request = Request::builder()
        .uri(path)
        .header(header::HOST, server.authority.as_str())
        .header(header::ACCEPT, ACCEPT)
        .header(header::USER_AGENT, concat!("reeve/", env!("CARGO_PKG_VERSION")));
    if let Some(own) = own {
        let mut value = header::HeaderValue::from_str(own).map_err(|error| broken(error.into()))?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(error.into()))?;
    let driven = tokio::spawn(connection);
    let answered = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| broken(error.into()))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(broken)?;
        let texts = |name: header::HeaderName| -> Vec<String> {
            let values = parts.headers.get_all(name).iter();
            values
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect()
        };
        let digest = header::HeaderName::from_static("docker-content-digest");
        let body = Zeroizing::new(body.to_bytes().to_vec());
        let named = parts.headers.contains_key("docker-distribution-api-version");
        Ok(Told {
            status: parts.status,
            demands: texts(header::WWW_AUTHENTICATE),
            is_registry: named || body.trim_ascii() == b"{}",
            link: texts(header::LINK).into_iter().next(),
            digest: texts(digest).into_iter().next(),
            body,
        })
    };
    let answered = answered.await;
    driven.abort();
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demand_for_tokens_is_read_and_others_are_not() {
        let demand = r#"Bearer realm="https://auth.example/token?x=1",service="registry.example",scope="a,b""#;
        let found = Bearer::of(demand).expect("a demand");
        assert_eq!(found.realm, "https://auth.example/token?x=1");
        assert_eq!(found.service.as_deref(), Some("registry.example"));
        assert_eq!(Bearer::of(r#"Basic realm="Registry""#), None);
        for text in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer realm",
            "Bearer realm=\"x",
            "Bearer =,=,=",
        ] {
            assert_eq!(Bearer::of(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_goes_on_at_the_same_server_only() {
        let next = "/v2/_catalog?last=b&n=2";
        assert_eq!(next_of(&format!("<{next}>; rel=\"next\"")).as_deref(), Some(next));
        assert_eq!(
            next_of(&format!("<https://elsewhere.example{next}>; rel=\"next\"")).as_deref(),
            Some(next)
        );
        for text in [
            "",
            "<",
            "<>; rel=\"next\"",
            "</v2/x>; rel=\"prev\"",
            "</other>; rel=\"next\"",
            "</v2/a b>; rel=\"next\"",
            "<https://elsewhere.example>; rel=\"next\"",
        ] {
            assert_eq!(next_of(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        assert_eq!(split("r.example", 443), ("r.example".to_owned(), 443));
        assert_eq!(split("r.example:5000", 443), ("r.example".to_owned(), 5000));
        assert_eq!(split("[::1]:5000", 443), ("::1".to_owned(), 5000));
        assert!(is_loopback("127.0.0.9") && is_loopback("::1") && !is_loopback("10.0.0.1"));
        assert_eq!(encoded("a b/ä"), "a%20b%2F%C3%A4");
    }
}
