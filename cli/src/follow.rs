//! Following the store: a view after each change of any key, through the same reflector the controller uses, so that a
//! broken connection, a compaction or a restart of the store is never seen by whoever looks. `get -w`, `status --watch`
//! and the waiting of `apply` and `delete` call it.

use std::time::Duration;

use runtime::{KeyValue, Prefix, Reader, ReflectOptions, Shutdown, reflect};
use schemas::keys::Key;

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::view::View;

/// How long the store may be silent at the start before that is an error.
const FIRST: Duration = Duration::from_secs(15);
/// Changes that come within this time are shown together.
const TOGETHER: Duration = Duration::from_millis(20);

/// What is followed for who may not read everything.
const SHOWN: [&str; 9] = [
    "desired",
    "status",
    "assignments",
    "verdicts",
    "cordons",
    "nodes",
    "reports",
    "sessions",
    "election",
];

/// A view that follows the store.
pub struct Follow {
    /// One, of all; several for who may not read everything.
    readers: Vec<Reader>,
    /// Single keys that no prefix of those has.
    single: Vec<KeyValue>,
    keys: Vec<Key>,
    connection: Connection,
    pub view: View,
    /// A change was heard of, and the view does not show it yet.
    behind: bool,
    /// Kept: the reflector ends with it.
    _shutdown: Shutdown,
}

impl Follow {
    /// Everything but events and history.
    pub async fn cluster(connection: &Connection) -> Result<Self, Failure> {
        if connection.viewer {
            let classes = SHOWN.map(|class| connection.root.prefix(class));
            return Self::start(connection, &classes, &[], &[Key::Breaker]).await;
        }
        let all = [connection.root.as_str().to_owned()];
        Self::start(
            connection,
            &all,
            &["events", "accepted", "acks", "blobs", "audit", "kv"],
            &[],
        )
        .await
    }

    /// One class of keys.
    pub async fn class(connection: &Connection, class: &str) -> Result<Self, Failure> {
        Self::start(connection, &[connection.root.prefix(class)], &[], &[]).await
    }

    async fn start(
        connection: &Connection,
        prefixes: &[String],
        skip: &[&str],
        single: &[Key],
    ) -> Result<Self, Failure> {
        let shutdown = Shutdown::new();
        let skip = skip
            .iter()
            .map(|class| Prefix::new(connection.root.prefix(class)))
            .collect::<Result<_, _>>()?;
        let options = ReflectOptions {
            skip,
            ..ReflectOptions::default()
        };
        let mut readers = Vec::new();
        for prefix in prefixes {
            let followed = Prefix::new(prefix.as_str())?;
            readers.push(reflect(connection.store.clone(), followed, options.clone(), &shutdown));
        }
        for (reader, prefix) in readers.iter().zip(prefixes) {
            let first = tokio::time::timeout(FIRST, reader.ready()).await;
            let Ok(Ok(_)) = first else {
                return Err(Failure::new(
                    Exit::Unreachable,
                    format!(
                        "cannot follow `{prefix}`: the store at {} does not answer",
                        connection.endpoints
                    ),
                ));
            };
        }
        let mut follow = Self {
            readers,
            single: read(connection, single).await?,
            keys: single.to_vec(),
            connection: connection.clone(),
            view: View::default(),
            behind: false,
            _shutdown: shutdown,
        };
        follow.look();
        Ok(follow)
    }

    fn look(&mut self) {
        let caches: Vec<_> = self.readers.iter().filter_map(Reader::snapshot).collect();
        let kvs = caches.iter().flat_map(|cache| cache.keys.iter().map(AsRef::as_ref));
        self.view = View::of(&self.connection.root, kvs.chain(&self.single), Some(&self.view));
    }

    /// Waits for a change, and a moment more for those that come with it. Callers wait for other things beside it and drop
    /// it at any time: what it has heard of by then, the next call shows.
    pub async fn changed(&mut self) -> Result<(), Failure> {
        if !self.behind {
            let ended = |_| Failure::new(Exit::Failed, "cannot follow the store: the reflector has ended");
            let any = self.readers.iter_mut().map(|reader| Box::pin(reader.changed()));
            futures::future::select_all(any).await.0.map_err(ended)?;
            self.behind = true;
        }
        tokio::time::sleep(TOGETHER).await;
        self.single = read(&self.connection, &self.keys).await?;
        self.behind = false;
        self.look();
        Ok(())
    }
}

async fn read(connection: &Connection, keys: &[Key]) -> Result<Vec<KeyValue>, Failure> {
    let mut found = Vec::new();
    for key in keys {
        found.extend(connection.get(key).await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use runtime::embedded::{Embedded, OpenOptions};
    use runtime::{EtcdStore, Guard, Store as _, person};
    use schemas::keys::Root;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_is_shown_also_when_the_waiting_for_it_was_given_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let embedded = Embedded::open(OpenOptions::new(dir.path())).expect("a store");
        let connection = Connection {
            store: EtcdStore::from_client(embedded.client()),
            root: Root::default(),
            endpoints: "in this process".to_owned(),
            context: None,
            viewer: false,
        };
        let mut follow = Follow::class(&connection, "desired").await.expect("it answers");
        follow.changed().await.expect("the first list is a change");
        let txn = person::txn().put("/reeve/desired/default/service/web", "spec: {}", Guard::Any);
        let _ = connection.store.commit(txn).await.expect("it is written");
        // Given up within the moment in which it waits for more.
        let heard = async {
            while !follow.behind {
                let _ = tokio::time::timeout(TOGETHER / 4, follow.changed()).await;
            }
        };
        tokio::time::timeout(FIRST, heard)
            .await
            .expect("the change is heard of");
        assert!(follow.view.declared.is_empty());
        let shown = tokio::time::timeout(FIRST, follow.changed()).await;
        shown.expect("it is shown without another change").expect("it follows");
        assert_eq!(follow.view.declared.len(), 1);
    }
}
