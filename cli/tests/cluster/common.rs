//! What the tests of the binary share: a store on loopback that is served by the test itself.

use std::path::Path;

use runtime::EtcdStore;
use runtime::embedded::{Embedded, OpenOptions};

/// An embedded store in a directory, without a cluster: its URL, a client that goes past the wire, and the runtime that
/// serves it for as long as it lives.
pub fn serve(dir: &Path) -> (String, EtcdStore, tokio::runtime::Runtime) {
    let embedded = Embedded::open(OpenOptions::new(dir.join("store"))).expect("a store");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let store = EtcdStore::from_client(embedded.client());
    runtime.spawn(async move { embedded.serve(listener, std::future::pending()).await });
    (endpoint, store, runtime)
}
