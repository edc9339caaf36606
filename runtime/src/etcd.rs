//! The store over etcd's API: a real etcd of several endpoints, or the embedded store through its in-process client. It
//! owns what etcd-client does not do: deadlines, and going on around a dead endpoint.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::StoreError;

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Client URLs, `http://` or `https://`; without a scheme, `http://`.
    pub endpoints: Vec<String>,
    /// For `https://` endpoints.
    pub tls: Option<TlsFiles>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// 2 s by default.
    pub connect_timeout: Duration,
    /// The deadline of every call; 5 s by default.
    pub deadline: Duration,
}

impl EtcdOptions {
    /// The endpoints of a list with commas, everything else by default.
    pub fn new(endpoints: &str) -> Self {
        let endpoints = endpoints
            .split(',')
            .map(str::trim)
            .filter(|e| !e.is_empty());
        Self {
            endpoints: endpoints.map(str::to_owned).collect(),
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(5),
        }
    }
}

/// PEM files for TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The CA that signed the servers' certificates.
    pub ca: PathBuf,
    /// This client's certificate and key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The store over etcd's API.
#[derive(Clone, Debug)]
pub struct EtcdStore {}

impl EtcdStore {
    /// Connects, and checks that at least one endpoint answers as etcd does. One name for each failure: unreachable
    /// (all endpoints named), TLS, not etcd, denied.
    pub async fn connect(_options: EtcdOptions) -> Result<Self, StoreError> {
        todo!()
    }

    /// Over a client that is connected already: the embedded store's, in process.
    pub fn from_client(_client: etcd_client::Client) -> Self {
        todo!()
    }
}
