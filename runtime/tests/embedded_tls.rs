//! The embedded store beyond loopback: mutual TLS, and nobody without a certificate of ours.

#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use runtime::embedded::{Embedded, MutualTls, OpenOptions, ServeError};
use runtime::{EtcdOptions, EtcdStore, Store as _, TlsFiles};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for `localhost`, and its key.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A server that lets in whom this authority knows.
    fn server(&self) -> MutualTls {
        let (certificate, key) = self.issue();
        MutualTls {
            certificate: certificate.into_bytes(),
            key: key.into_bytes(),
            client_authority: self.0.pem().into_bytes(),
        }
    }
}

async fn ask(port: u16, trusted: &Authority, identity: Option<(String, String)>) -> Result<i64, Error> {
    let mut tls = TlsOptions::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(trusted.0.pem()));
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let options = ConnectOptions::new().with_tls(tls).with_timeout(Duration::from_secs(5));
    let mut client = Client::connect([format!("https://127.0.0.1:{port}")], Some(options)).await?;
    let put = client.put("k", "v", None).await?;
    Ok(put.header().map_or(0, |h| h.revision()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_certificate_of_the_authority_get_in() {
    let (ours, others) = (Authority::new(), Authority::new());
    let tls = ours.server();
    let dir = tempfile::TempDir::new().unwrap();
    let store = Arc::new(Embedded::open(OpenOptions::new(dir.path())).unwrap());
    // All addresses, which plain text must never be served on; the test talks to loopback only.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = Arc::clone(&store);
    let server = tokio::spawn(async move {
        let until = async {
            let _ = stopped.await;
        };
        serving.serve_mutual_tls(listener, tls, until).await
    });
    assert_eq!(ask(port, &ours, Some(ours.issue())).await.unwrap(), 2);
    ask(port, &ours, None)
        .await
        .expect_err("a client without a certificate");
    ask(port, &ours, Some(others.issue()))
        .await
        .expect_err("a client of another authority");
    let plain = Client::connect([format!("http://127.0.0.1:{port}")], None).await;
    plain
        .unwrap()
        .put("k", "v", None)
        .await
        .expect_err("a client without TLS");
    assert_eq!(store.revision(), 2, "none of them wrote");
    drop(stop);
    server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_used_without_a_restart() {
    let (ours, others) = (Authority::new(), Authority::new());
    let tls = ours.server();
    let dir = tempfile::TempDir::new().unwrap();
    let store = Arc::new(Embedded::open(OpenOptions::new(dir.path())).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_stop, stopped) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let until = async {
            let _ = stopped.await;
        };
        store.serve_mutual_tls(listener, tls, until).await
    });
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    // One that counts nowhere, as after a rotation that this client missed.
    let (certificate, key) = others.issue();
    let mut options = EtcdOptions::new(&format!("https://localhost:{port}"));
    options.tls = Some(TlsFiles {
        ca: file("ca.crt", &ours.0.pem()),
        identity: Some((file("own.crt", &certificate), file("own.key", &key))),
    });
    let client = EtcdStore::prepare(options).await.unwrap();
    client.get(b"k").await.expect_err("a client of another authority");
    assert!(!client.reread_tls().await.unwrap(), "nothing has changed");
    let (certificate, key) = ours.issue();
    file("own.crt", &certificate);
    file("own.key", "half a key");
    client.reread_tls().await.expect_err("files that cannot be used");
    file("own.key", &key);
    assert!(client.reread_tls().await.unwrap());
    client.get(b"k").await.expect("a client of ours");
}

#[tokio::test]
async fn a_certificate_that_is_none_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = Embedded::open(OpenOptions::new(dir.path())).unwrap();
    let tls = MutualTls {
        certificate: b"no certificate".to_vec(),
        key: b"no key".to_vec(),
        client_authority: b"no authority".to_vec(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = store.serve_mutual_tls(listener, tls, async {}).await.unwrap_err();
    assert!(matches!(error, ServeError::Tls { .. }), "{error}");
}
