//! The one error of the store. Every store operation returns it; commands, logs and loops print it. It names the act
//! and the object, chains its cause once, and says what a person can do.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What went wrong with a store operation.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{act} `{object}`: {kind}")]
pub struct StoreError {
    /// The verb: `read`, `list`, `write`, `renew the lease of`, ...
    pub act: &'static str,
    /// The key, prefix, lease or endpoints concerned.
    pub object: String,
    /// What kind of failure; decides what the caller may do next.
    pub kind: StoreErrorKind,
    /// What the transport or the store said.
    #[source]
    pub source: Option<Arc<dyn Error + Send + Sync>>,
}

/// The kinds of failure, each with what it means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No endpoint could be reached; nothing was written.
    Unreachable,
    /// No answer within the deadline; nothing was written, as far as a read afterwards could tell. A late arrival of
    /// the same write is harmless, for its guards no longer hold once anything else was written.
    DeadlineExceeded,
    /// A write that may or may not be in force: reading back could not tell either. Observe again before deciding.
    Ambiguous,
    /// The revision asked for is gone from history.
    Compacted {
        /// The oldest revision that can still be read; 0 when the store did not say.
        at: i64,
    },
    /// The revision asked for is later than the store's: the store is not the one that was read before.
    FutureRevision,
    /// A value over 1 MiB, or a request over the store's limits.
    TooLarge {
        /// The size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The store's space quota is used up, or its disk is full; it serves reads only.
    NoSpace,
    /// The store refused this user or this certificate.
    Denied,
    /// The lease does not exist (any more).
    LeaseNotFound,
    /// TLS could not be agreed on.
    Tls,
    /// Something answered, but not etcd's API.
    NotEtcd,
    /// The request is wrong in itself: an empty key, a key twice in one transaction, ...
    Invalid(String),
    /// Any other answer of the store, in its words.
    Refused(String),
}

impl fmt::Display for StoreErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => write!(f, "the store cannot be reached"),
            Self::DeadlineExceeded => write!(f, "no answer within the deadline"),
            Self::Ambiguous => write!(f, "no answer, and whether the write is in force is unknown"),
            Self::Compacted { at } => write!(f, "the revision is compacted; the oldest is {at}"),
            Self::FutureRevision => write!(f, "the store is behind the revision asked for"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "{bytes} bytes are over the limit of {limit}")
            }
            Self::NoSpace => write!(f, "the store has no space left"),
            Self::Denied => write!(f, "the store denied access"),
            Self::LeaseNotFound => write!(f, "the lease does not exist"),
            Self::Tls => write!(f, "TLS failed"),
            Self::NotEtcd => write!(f, "what answers there is not etcd"),
            Self::Invalid(why) => write!(f, "invalid request: {why}"),
            Self::Refused(why) => write!(f, "{why}"),
        }
    }
}

impl StoreError {
    /// An error without a cause.
    pub fn new(act: &'static str, object: impl Into<String>, kind: StoreErrorKind) -> Self {
        Self {
            act,
            object: object.into(),
            kind,
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The store may be healthy again later: nothing is wrong with the request.
    pub fn is_outage(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unreachable | StoreErrorKind::DeadlineExceeded | StoreErrorKind::Ambiguous
        )
    }

    /// The store took offence at this very request and wrote nothing: the same one will fail again, others need not.
    pub fn is_about_the_request(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::TooLarge { .. } | StoreErrorKind::Invalid(_) | StoreErrorKind::Refused(_)
        )
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        let text = match &self.kind {
            StoreErrorKind::Unreachable => {
                "check that etcd runs and that --etcd (REEVE_ETCD) names its client URLs".to_owned()
            }
            StoreErrorKind::DeadlineExceeded | StoreErrorKind::Ambiguous => {
                "check etcd's health: `etcdctl endpoint status --cluster`; a majority of its members must be up".to_owned()
            }
            StoreErrorKind::NoSpace => {
                "free space on the disk of the store; where etcd's quota is reached: `etcdctl compact`, `etcdctl defrag`, then `etcdctl alarm disarm`, or raise --quota-backend-bytes".to_owned()
            }
            StoreErrorKind::Denied => "check the user, password or client certificate".to_owned(),
            StoreErrorKind::Tls => {
                "check http:// against https://, and the CA, certificate and key files".to_owned()
            }
            StoreErrorKind::NotEtcd => "name etcd's client URL, by default port 2379, not a peer or metrics URL".to_owned(),
            StoreErrorKind::TooLarge { .. } => "make the document smaller: one value may have 1 MiB".to_owned(),
            StoreErrorKind::Compacted { .. }
            | StoreErrorKind::FutureRevision
            | StoreErrorKind::LeaseNotFound
            | StoreErrorKind::Invalid(_)
            | StoreErrorKind::Refused(_) => return None,
        };
        Some(text)
    }
}
