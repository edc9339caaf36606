//! What the store last said of the network, as it is kept on this node's disk. `ground.rs` begins with it, so that all goes on while
//! the store is gone. What cannot be read counts for nothing: it is read from the store again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use network::names::{self, Part, Settings};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{Namespace, ResourceName};
use schemas::records::{Endpoints, Peer, Policies};

/// More than 5,000 nodes take.
const MAX_PEERS_BYTES: u64 = 64 << 20;

/// The other nodes as they were last known; none where nothing can be read.
pub(super) fn read_peers(path: &Path) -> Vec<Peer> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PEERS_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is known of other nodes cannot be read; it is read from the store");
            Vec::new()
        }),
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, "what is known of other nodes cannot be read; it is read from the store");
            }
            Vec::new()
        }
    }
}

pub(super) fn service(namespace: &Namespace, name: &ResourceName) -> ResourceKey {
    ResourceKey {
        namespace: Some(namespace.clone()),
        kind: Kind::Service,
        name: name.clone(),
    }
}

/// Who was where, as names are answered; what cannot be read is read from the store.
pub(super) fn read_endpoints(dir: &Path) -> BTreeMap<ResourceKey, Arc<Endpoints>> {
    let known = names::services(dir).unwrap_or_default().into_iter();
    let read = known.filter_map(|(namespace, name)| {
        let key = service(&namespace, &name);
        let record = names::read::<Endpoints>(dir, &Part::Service(namespace, name)).ok()??;
        Some((key, Arc::new(record)))
    });
    read.collect()
}

/// The network policies as they were last known; none where nothing can be read.
pub(super) fn read_policies(path: &Path) -> BTreeMap<Namespace, Arc<Policies>> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PEERS_BYTES).read_to_end(&mut text));
    let known: BTreeMap<Namespace, Policies> = match read {
        Ok(_) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is known of network policies cannot be read; it is read from the store");
            BTreeMap::new()
        }),
        Err(_) => BTreeMap::new(),
    };
    known
        .into_iter()
        .map(|(name, record)| (name, Arc::new(record)))
        .collect()
}

/// The ranges that were routed here, as the names' settings still say.
pub(super) fn read_ranges(dir: &Path) -> Vec<IpNet> {
    let settings = names::read::<Settings>(dir, &Part::Settings);
    let Ok(Some(settings)) = settings else {
        return Vec::new();
    };
    let six = settings.cidr6.map(IpNet::V6);
    std::iter::once(IpNet::V4(settings.cidr)).chain(six).collect()
}
