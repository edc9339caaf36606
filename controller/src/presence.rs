//! That this controller is there, and where it serves its metrics: one leased key of its own, so that whoever asks any
//! controller's `/sd` finds them all. Written when it starts, gone a minute after its end at the latest, and nothing decides
//! from it. `run` keeps one announced where there is an address to tell.

use std::time::Duration;

use runtime::backoff::Backoff;
use runtime::{SessionOptions, Shutdown, Store, boottime, session};
use schemas::keys::{Key, Root};
use schemas::records::{Record, SchemaVersion};
use serde::{Deserialize, Serialize};

use crate::vault::{VaultOptions, id_of};

/// How long a controller that says nothing is still listed. A third of it is between two renewals.
const TTL: Duration = Duration::from_secs(60);
/// How often it is looked whether the key is published in another way.
const LOOK: Duration = Duration::from_secs(600);

/// The document of `controllers/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// The oldest release that may read it.
    pub schema_version: SchemaVersion,
    /// Who it is; so called because a session, which this is, looks for it there.
    pub machine_id: String,
    /// `host:port` of its metrics.
    pub address: String,
    /// The key that values are sealed for, so that this controller can hand them out; as it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
    /// How the document that the leader keeps for this controller is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_id: Option<String>,
}

impl Record for Presence {
    const WHAT: &'static str = "the controller's address";
    const MAX_BYTES: usize = 32 << 10;
}

/// The last part of the key: the id with what a key should not have replaced, at most 100 characters.
fn segment(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let text: String = id.chars().take(100).map(plain).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Keeps the key until the shutdown drains. A store without a cluster is not written.
pub(crate) async fn announce<S: Store>(
    store: S,
    root: Root,
    id: String,
    address: String,
    vault: Option<VaultOptions>,
    shutdown: Shutdown,
) {
    let mut presence = Presence {
        schema_version: SchemaVersion::default(),
        machine_id: id.chars().take(100).collect(),
        address,
        sealing_key: None,
        sealing_id: vault.as_ref().map(|vault| id_of(&vault.key)),
    };
    let published = || vault.as_ref().map(|vault| (vault.published)());
    let marker = root.key(&Key::Cluster);
    let mut backoff = Backoff::new(Duration::from_millis(100), TTL / 2);
    loop {
        presence.sealing_key = published();
        let options = SessionOptions {
            key: root.key(&Key::Controller(segment(&id))).into_bytes(),
            machine_id: presence.machine_id.clone(),
            value: presence.encode().into(),
            ttl: TTL,
        };
        let there = matches!(store.get(marker.as_bytes()).await, Ok(read) if read.value.is_some());
        if there && let Ok(session) = session::open(&store, &options, None, &shutdown).await {
            backoff.reset();
            let lost = session.lost();
            // What states the key changes with the certificate, a few times a year.
            let outdated = async {
                while published() == presence.sealing_key {
                    boottime::sleep(LOOK).await;
                }
            };
            tokio::select! {
                () = lost.lost() => {}
                () = outdated => {
                    session.close().await;
                    continue;
                }
                () = shutdown.draining() => return session.close().await,
            }
        }
        tokio::select! {
            () = shutdown.draining() => return,
            () = boottime::sleep(backoff.delay()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_gives_a_key_of_ours() {
        let root = Root::default();
        for id in ["host-17", "a/b c\n", "", "é", &"x".repeat(1000)] {
            let key = Key::Controller(segment(id));
            assert_eq!(root.parse(root.key(&key).as_bytes()), Some(key), "{id:?}");
        }
    }
}
