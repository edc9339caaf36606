//! A controller on the embedded store: the same client code as on a real etcd, in process.

mod support;

use std::time::{Duration, Instant};

use runtime::embedded::{Embedded, OpenOptions};
use runtime::{EtcdStore, SessionOptions, Shutdown, Store, session};
use schemas::records::{
    Addresses, Assignment, Capacity, Engine, NodeFacts, Order, Record, SchemaVersion, ServiceStatus, SessionRecord,
};
use schemas::units::{ByteSize, Cpu};
use support::{Controller, PATIENCE, cluster_id, desired, limited, marker, service};

async fn appears<T>(store: &EtcdStore, key: &str, read: impl Fn(&[u8]) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = store.get(key.as_bytes()).await.expect("the store answers").value;
        if let Some(value) = found.and_then(|kv| read(&kv.value)) {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {key}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_put_as_with_etcdctl_is_accepted_and_assigned() {
    limited(async {
        let dir = tempfile::tempdir().expect("a directory");
        let embedded = Embedded::open(OpenOptions::new(dir.path())).expect("it opens");
        let mut client = embedded.client();
        client
            .put("/reeve/cluster", marker(0).encode(), None)
            .await
            .expect("a write");
        let store = EtcdStore::from_client(embedded.client());
        let controller = Controller::start(store.clone(), "one").await;
        let node = "n1".parse().expect("a name");
        let facts = NodeFacts {
            link: None,
            schema_version: SchemaVersion::default(),
            cluster: cluster_id(),
            node,
            capacity: Capacity {
                cpu: Cpu { millis: 4_000 },
                memory: ByteSize(8 << 30),
            },
            addresses: Addresses::default(),
            engine: Engine::default(),
            agent_version: "test".to_owned(),
            roles: Vec::new(),
            sealing_key: None,
            labels: Default::default(),
        };
        let session = SessionRecord {
            schema_version: SchemaVersion::default(),
            cluster: cluster_id(),
            node: facts.node.clone(),
            machine_id: "m".to_owned(),
            boot_id: "b".to_owned(),
            watermark: Order::default(),
        };
        client
            .put("/reeve/nodes/n1", facts.encode(), None)
            .await
            .expect("a write");
        let options = SessionOptions {
            key: b"/reeve/sessions/n1".to_vec(),
            machine_id: session.machine_id.clone(),
            value: session.encode().into(),
            ttl: Duration::from_secs(15),
        };
        let _session = session::open(&store, &options, None, &Shutdown::new())
            .await
            .expect("the session opens");
        appears(&store, "/reeve/verdicts/n1", |_| Some(())).await;

        client
            .put(desired("hello"), service("hello", 2, "hello:1"), None)
            .await
            .expect("a write");
        let assignment = appears(&store, "/reeve/assignments/n1", |value| Assignment::decode(value).ok()).await;
        assert_eq!(assignment.instances.len(), 2);
        let status = appears(&store, "/reeve/status/default/service/hello", |value| {
            ServiceStatus::decode(value)
                .ok()
                .filter(|status| status.counts.assigned == 2)
        })
        .await;
        assert_eq!(status.generation, Some(1));
        client.delete(desired("hello"), None).await.expect("a write");
        appears(&store, "/reeve/accepted/default/service/hello/2", |_| Some(())).await;
        controller.stop().await.expect("a good end");
        embedded.close().await;
    })
    .await;
}
