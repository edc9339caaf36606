//! Why nothing at all may be decided from the store as it is: what the controller and `reeve plan` say instead of a plan.

use schemas::keys::Root;
use schemas::records::ClusterId;

/// Why nothing at all may be decided from the store as it is now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// The marker is missing: a store that was never set up, or was wiped.
    #[error("the store has no cluster under `{root}`: the key `{root}cluster` is missing")]
    NoCluster {
        /// The prefix of all keys.
        root: Root,
    },
    /// The marker cannot be read.
    #[error("the cluster's marker cannot be read: {why}")]
    MarkerUnreadable {
        /// Why.
        why: String,
    },
    /// It is the marker of another cluster than before.
    #[error("the store is now that of cluster {found}; this controller works for {ours}")]
    OtherCluster {
        /// The cluster it works for.
        ours: ClusterId,
        /// The cluster found.
        found: ClusterId,
    },
    /// The cluster has gone to another store.
    #[error("the cluster has moved to {}", .to.join(","))]
    Moved {
        /// The endpoints of its store now.
        to: Vec<String>,
    },
    /// The store answered from an older state than before, or is another one.
    #[error("the store has gone back: it was at revision {seen}, restore epoch {epoch}")]
    WentBack {
        /// The highest revision seen.
        seen: i64,
        /// The restore epoch then.
        epoch: u64,
    },
}

impl Hold {
    /// One word for people and their tools: all that is not in order but a move, which is in order.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoCluster { .. }
            | Self::MarkerUnreadable { .. }
            | Self::OtherCluster { .. }
            | Self::WentBack { .. } => "StoreRegressed",
            Self::Moved { .. } => "StoreMoved",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoCluster { root } if root.as_str() == schemas::keys::DEFAULT_ROOT => {
                "create it with `reeve init`; if there was one, put it back with `reeve admin restore`, without a backup `reeve admin rebuild`"
                    .to_owned()
            }
            Self::NoCluster { root: _ } => {
                "check --prefix; create a cluster with `reeve init`; if there was one, put it back with `reeve admin restore`, without a backup `reeve admin rebuild`"
                    .to_owned()
            }
            Self::MarkerUnreadable { .. } => {
                "upgrade reeve if a newer release wrote it; else put a backup back with `reeve admin restore --over`".to_owned()
            }
            Self::OtherCluster { .. } => {
                "check --etcd and --prefix; restart the controller if this is meant".to_owned()
            }
            Self::Moved { to } => format!("use --etcd {}", to.join(",")),
            Self::WentBack { .. } => {
                "put the newest backup back with `reeve admin restore --over`; or take the store as it is with `reeve admin accept-store`".to_owned()
            }
        })
    }

    /// Whether waiting cannot mend it, so that the controller ends.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::OtherCluster { .. } | Self::Moved { .. } => true,
            Self::NoCluster { .. } | Self::MarkerUnreadable { .. } | Self::WentBack { .. } => false,
        }
    }
}
