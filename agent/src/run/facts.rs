//! What this node is and has, as the engine and the host tell it: told to the store when it changes.

use std::sync::Arc;

use schemas::records::{Addresses, Capacity, Engine, NodeFacts, SchemaVersion};
use schemas::units::{ByteSize, Cpu};

use super::keep::LEAST_FREE_BYTES;
use super::state::{Agent, End};
use crate::AgentOptions;
use crate::api::Tcp;
use crate::register;

impl Agent {
    pub(super) fn learn_facts(&mut self) {
        if std::mem::replace(&mut self.learning, true) {
            return;
        }
        let (engine, gate) = (self.engine.clone(), self.gate.clone());
        let sealing = self.logins.public();
        let link = self.ground.link.clone();
        let (node, cluster, options) = (
            self.input.node.clone(),
            self.input.cluster.clone(),
            self.options.clone(),
        );
        self.begin(async move {
            let Ok(info) = engine.info().await else {
                return End::Facts(None);
            };
            let version = &info.version;
            let facts = NodeFacts {
                link,
                schema_version: SchemaVersion::default(),
                cluster,
                node,
                capacity: Capacity {
                    cpu: Cpu {
                        millis: info.cpus.saturating_mul(1_000),
                    },
                    memory: ByteSize(info.memory_bytes),
                },
                addresses: addresses(&options),
                engine: Engine {
                    version: version.version.clone(),
                    api_version: format!("{}.{}", version.api.0, version.api.1),
                    os: version.os.clone(),
                    arch: version.arch.clone(),
                    kernel: version.kernel.clone(),
                    storage_driver: info.storage_driver.clone(),
                    cgroup_version: info.cgroup_version.clone(),
                },
                agent_version: options.version.clone(),
                roles: options.roles.clone(),
                sealing_key: (options.publish.0)(sealing),
                labels: register::labels(&options.labels, &version.os, &version.arch),
            };
            // The engine's own data is opened by no line for a directory above it.
            gate.engine_root(&info.root);
            End::Facts(Some((Box::new(facts), info.disk_free_bytes)))
        });
    }

    pub(super) fn learned(&mut self, told: Option<(Box<NodeFacts>, Option<u64>)>) {
        self.learning = false;
        let Some((facts, free)) = told else { return };
        self.engine_full = free.is_some_and(|free| free < LEAST_FREE_BYTES);
        self.ends.facts.send_if_modified(|known| {
            let differs = known.as_deref() != Some(facts.as_ref());
            if differs {
                *known = Some(Arc::new(*facts));
            }
            differs
        });
    }
}

/// Where others reach the API: as told; else where it listens, or with the host's own address where that is everywhere.
fn api_address(tcp: &Tcp) -> String {
    let listens = tcp.address;
    let told = || {
        let ip = Some(listens.ip()).filter(|ip| !ip.is_unspecified());
        let ip = ip
            .or_else(|| host_addresses().into_iter().next())
            .unwrap_or(listens.ip());
        std::net::SocketAddr::new(ip, listens.port()).to_string()
    };
    tcp.advertise.clone().unwrap_or_else(told)
}

/// Where this node and its agent are found, as things are now.
pub(super) fn addresses(options: &AgentOptions) -> Addresses {
    let advertised = options
        .advertise
        .clone()
        .or(options.http.map(|address| address.to_string()));
    Addresses {
        host: host_addresses(),
        agent: advertised,
        api: options.api.tcp.as_ref().map(api_address),
        public: options.public_address.clone(),
    }
}

/// The addresses this host sends from, loopback left out. Connecting a datagram socket sends nothing.
fn host_addresses() -> Vec<std::net::IpAddr> {
    let from = |local: &str, far: &str| -> Option<std::net::IpAddr> {
        let socket = std::net::UdpSocket::bind(local).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    from("0.0.0.0:0", "192.0.2.1:9")
        .into_iter()
        .chain(from("[::]:0", "[2001:db8::1]:9"))
        .collect()
}
