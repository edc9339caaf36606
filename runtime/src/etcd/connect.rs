//! From options to one connection for each endpoint. A plain connection is made with its first call; with a user, the
//! endpoint is asked for a token first.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::timeout;

use super::classify::{Failure, classify};
use super::{EtcdOptions, Member, TlsFiles};
use crate::error::{StoreError, StoreErrorKind};

/// What the TLS files hold.
#[derive(PartialEq, Eq)]
pub(super) struct TlsBytes {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsBytes {
    pub(super) fn read(files: &TlsFiles) -> Result<Self, StoreError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                StoreError::new("read the TLS file", path.display().to_string(), StoreErrorKind::Tls).because(error)
            })
        };
        let identity = match &files.identity {
            Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Self {
            ca: read(&files.ca)?,
            identity,
        })
    }

    pub(super) fn options(&self) -> TlsOptions {
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.ca));
        match &self.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        }
    }
}

pub(super) async fn connect_one(
    endpoint: &str,
    options: &EtcdOptions,
    tls: Option<&TlsOptions>,
) -> Result<Member, StoreError> {
    let fail = |kind| StoreError::new("connect to etcd at", endpoint, kind);
    let secure = endpoint.starts_with("https://");
    if endpoint.contains("://") && !secure && !endpoint.starts_with("http://") {
        let why = "an endpoint begins with http:// or https://".to_owned();
        return Err(fail(StoreErrorKind::Invalid(why)));
    }
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(options.connect_timeout)
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(3))
        .with_tcp_keepalive(Duration::from_secs(30))
        // A watch on a member that lost its leader ends, instead of going silent.
        .with_require_leader(true);
    match (secure, tls) {
        (true, Some(tls)) => connect = connect.with_tls(tls.clone()),
        (true, None) => {
            let why = "https:// needs the CA's certificate file".to_owned();
            return Err(fail(StoreErrorKind::Invalid(why)));
        }
        (false, _) => {}
    }
    if let Some((name, password)) = &options.user {
        connect = connect.with_user(name, password).with_auto_token_refresh(true);
    }
    // Without a user this sends nothing; with one it asks for a token, from this endpoint.
    match timeout(options.deadline, Client::connect([endpoint], Some(connect.clone()))).await {
        Ok(Ok(client)) => Ok(Member::new(endpoint.to_owned(), &client)),
        Ok(Err(error)) => Err(classify(error).told("connect to etcd at", endpoint.to_owned())),
        Err(_) => Err(Failure::timeout().told("connect to etcd at", endpoint.to_owned())),
    }
}
