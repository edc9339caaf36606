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

/// A view that follows the store.
pub struct Follow {
    reader: Reader,
    connection: Connection,
    pub view: View,
    /// Kept: the reflector ends with it.
    _shutdown: Shutdown,
}

impl Follow {
    /// Everything but events and history.
    pub async fn cluster(connection: &Connection) -> Result<Self, Failure> {
        Self::start(connection, connection.root.as_str(), &["events", "accepted", "acks"]).await
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

    /// Waits for a change, and a moment more for those that come with it.
    pub async fn changed(&mut self) -> Result<(), Failure> {
        let ended = |_| Failure::new(Exit::Failed, "cannot follow the store: the reflector has ended");
        self.reader.changed().await.map_err(ended)?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.look();
        Ok(())
    }
}
