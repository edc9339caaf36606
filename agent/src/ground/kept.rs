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
use schemas::records::Endpoints;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// More than 5,000 nodes take.
const MAX_BYTES: u64 = 64 << 20;

/// What was kept in a file; nothing where it cannot be read. `what` is for people.
pub(super) fn read_file<T: DeserializeOwned + Default>(path: &Path, what: &str) -> T {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
    let unread = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "what is known of {what} cannot be read; it is read from the store");
        T::default()
    };
    match read {
        Ok(_) => serde_json::from_slice(&text).unwrap_or_else(|error| unread(&error)),
        Err(error) if error.kind() == ErrorKind::NotFound => T::default(),
        Err(error) => unread(&error),
    }
}

/// Keeps it, whole or as it was.
pub(super) fn keep_file<T: Serialize>(path: &Path, value: &T, what: &str) {
    let beside = path.with_extension("new");
    let text = serde_json::to_vec(value).unwrap_or_default();
    if let Err(error) = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path)) {
        tracing::warn!(%error, "{what} cannot be kept on disk; after a restart they are read from the store");
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

/// The ranges that were routed here, as the names' settings still say.
pub(super) fn read_ranges(dir: &Path) -> Vec<IpNet> {
    let settings = names::read::<Settings>(dir, &Part::Settings);
    let Ok(Some(settings)) = settings else {
        return Vec::new();
    };
    let six = settings.cidr6.map(IpNet::V6);
    std::iter::once(IpNet::V4(settings.cidr)).chain(six).collect()
}
