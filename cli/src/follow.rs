//! Following the store: a view after each change of any key, through the same reflector the controller uses, so that a
//! broken connection, a compaction or a restart of the store is never seen by whoever looks. `get -w`, `status --watch`
//! and the waiting of `apply` and `delete` call it.

use std::time::Duration;

use runtime::{Prefix, Reader, ReflectOptions, Shutdown, reflect};

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::view::View;

/// How long the store may be silent at the start before that is an error.
const FIRST: Duration = Duration::from_secs(15);
/// Changes that come within this time are shown together.
const TOGETHER: Duration = Duration::from_millis(20);

/// A view that follows the store.
pub struct Follow {
    reader: Reader,
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
        Self::start(
            connection,
            connection.root.as_str(),
            &["events", "accepted", "acks", "blobs"],
        )
        .await
    }

    /// One class of keys.
    pub async fn class(connection: &Connection, class: &str) -> Result<Self, Failure> {
        Self::start(connection, &connection.root.prefix(class), &[]).await
    }

    async fn start(connection: &Connection, prefix: &str, skip: &[&str]) -> Result<Self, Failure> {
        let shutdown = Shutdown::new();
        let skip = skip
            .iter()
            .map(|class| Prefix::new(connection.root.prefix(class)))
            .collect::<Result<_, _>>()?;
        let options = ReflectOptions {
            skip,
            ..ReflectOptions::default()
        };
        let reader = reflect(connection.store.clone(), Prefix::new(prefix)?, options, &shutdown);
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
        let mut follow = Self {
            reader,
            connection: connection.clone(),
            view: View::default(),
            behind: false,
            _shutdown: shutdown,
        };
        follow.look();
        Ok(follow)
    }

    fn look(&mut self) {
        if let Some(cache) = self.reader.snapshot() {
            let kvs = cache.keys.iter().map(AsRef::as_ref);
            self.view = View::of(&self.connection.root, kvs, Some(&self.view));
        }
    }

    /// Waits for a change, and a moment more for those that come with it. Callers wait for other things beside it and drop
    /// it at any time: what it has heard of by then, the next call shows.
    pub async fn changed(&mut self) -> Result<(), Failure> {
        if !self.behind {
            let ended = |_| Failure::new(Exit::Failed, "cannot follow the store: the reflector has ended");
            self.reader.changed().await.map_err(ended)?;
            self.behind = true;
        }
        tokio::time::sleep(TOGETHER).await;
        self.behind = false;
        self.look();
        Ok(())
    }
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
