//! Mutual TLS of the agents' API: by files, or by the identities of a cluster of seeds. Files are read anew for every
//! connection, so that a renewed certificate is used at once; while they cannot be read, those that were read last are.
//! Agents and their clients call it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider as _};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use trust::certificate::Certificate;
use trust::identity::Role;
use trust::tls::{Door, Peers};
use trust::validity::Time;

/// How often the certificates of open connections are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// PEM files: the CA of everybody, and an own certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What the API shows on TCP, and whom it lets in.
#[derive(Clone, Debug)]
pub enum Security {
    /// Whoever has a certificate of the CA.
    Files(Files),
    /// People, servers and controllers of the cluster, by the identity in their certificates.
    Door(Arc<Door>),
}

/// Why TLS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {} from {}", what, path.display())]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("prepare TLS with the certificates of the cluster")]
    Door(#[source] rustls::Error),
    #[error("{} holds no certificate in PEM", path.display())]
    Empty { path: PathBuf },
    #[error("use the certificate in {}", path.display())]
    Use {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("trust the CA in {}", path.display())]
    Trust {
        path: PathBuf,
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(read)?.collect();
    let found = found.map_err(read)?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(found)
}

impl Files {
    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for one in certificates(&self.ca, "the CA")? {
            let path = self.ca.clone();
            roots.add(one).map_err(|source| TlsError::Use { path, source })?;
        }
        Ok(roots)
    }

    fn identity(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::Read {
            what: "the key",
            path: self.key.clone(),
            source,
        })?;
        Ok((certificates(&self.cert, "the certificate")?, key))
    }

    fn server(&self) -> Result<ServerConfig, TlsError> {
        let path = || self.cert.clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone());
        let verifier = verifier.build().map_err(|source| TlsError::Trust {
            path: self.ca.clone(),
            source,
        })?;
        let (chain, key) = self.identity()?;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Use { path: path(), source })?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Use { path: path(), source })
    }

    /// For a client that shows its certificate, and believes those of the CA.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let path = || self.cert.clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (chain, key) = self.identity()?;
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Use { path: path(), source })?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map(Arc::new)
            .map_err(|source| TlsError::Use { path: path(), source })
    }
}

/// A server's side.
#[derive(Debug)]
pub enum Served {
    /// With what was read last.
    Files {
        files: Files,
        last: Mutex<Arc<ServerConfig>>,
    },
    /// The door knows by itself what counts.
    Door(Arc<Door>, Arc<ServerConfig>),
}

impl Served {
    /// Reads the files; an agent that cannot serve what it was told to does not start.
    pub fn new(security: Security) -> Result<Self, TlsError> {
        match security {
            Security::Files(files) => {
                let last = Mutex::new(Arc::new(files.server()?));
                Ok(Self::Files { files, last })
            }
            Security::Door(door) => {
                // Nodes for images only: see `may`.
                let guests = Peers::roles([Role::Person, Role::Server, Role::Controller, Role::Node]);
                let config = door.server(guests, Arc::new(DefaultTimeProvider));
                Ok(Self::Door(door, Arc::new(config.map_err(TlsError::Door)?)))
            }
        }
    }

    /// Returns when the certificate of an open connection no longer counts; never, where certificates are not revoked.
    pub async fn until_revoked(&self, shown: Option<Vec<u8>>) {
        let certificate = shown.and_then(|der| Certificate::from_der(&der).ok());
        let (Self::Door(door, _), Some(certificate)) = (self, certificate) else {
            return std::future::pending().await;
        };
        let clock = DefaultTimeProvider;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = clock.current_time().map(Time::from);
            if now.is_some_and(|now| door.trust().recheck(&certificate, now).is_err()) {
                return;
            }
        }
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        let (files, last) = match self {
            Self::Files { files, last } => (files, last),
            Self::Door(_, config) => return Arc::clone(config),
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        match files.server() {
            Ok(config) => *last = Arc::new(config),
            Err(error) => tracing::warn!(
                "the API goes on with the certificate it had: {}",
                runtime::chain(&error)
            ),
        }
        last.clone()
    }
}
