//! What the embedded store refuses, in etcd's own words and gRPC codes.
//!
//! Every part of the embedded store returns [`Refusal`]; the API turns it into a `tonic::Status`.
//! Clients written for etcd match on these texts, so they are etcd's to the letter.

use tonic::{Code, Status};

/// Why a request was not done. Nothing of a refused request is in force, except for
/// [`Refusal::Ambiguous`], which says that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: bad leader transferee")]
    BadLeader,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: server stopped")]
    Stopped,
    #[error("etcdserver: not supported by the embedded store: {0}")]
    Unsupported(&'static str),
    /// The disk failed and the write is certainly not in force.
    #[error("etcdserver: cannot write the embedded store: {0}")]
    Disk(String),
    /// The disk failed while committing: the write may or may not survive a restart.
    #[error("etcdserver: outcome of the write is unknown: {0}")]
    Ambiguous(String),
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::TooLarge => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::NoSpace => Code::ResourceExhausted,
            Self::LeaseNotFound => Code::NotFound,
            Self::LeaseExists | Self::BadLeader | Self::AuthNotEnabled => Code::FailedPrecondition,
            Self::Stopped | Self::Disk(_) | Self::Ambiguous(_) => Code::Unavailable,
            Self::Unsupported(_) => Code::Unimplemented,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Status::new(refusal.code(), refusal.to_string())
    }
}
