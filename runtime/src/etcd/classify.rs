//! What an answer of etcd-client means: which kind of failure it is, and what it says about the fate of a write. Used by
//! the etcd store alone.

use std::error::Error;
use std::io;

use etcd_client::Error as ClientError;
use tonic::Code;

use crate::error::{StoreError, StoreErrorKind, chain};

/// What a failure says of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It never left this process.
    NeverSent,
    /// The store answered that it did nothing.
    Refused,
    /// Nothing: it may be in force, or may come into force yet.
    Unknown,
}

/// A failed call.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: StoreErrorKind,
    pub(super) fate: Fate,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub(super) const fn timeout() -> Self {
        Self {
            kind: StoreErrorKind::DeadlineExceeded,
            fate: Fate::Unknown,
            source: None,
        }
    }

    /// The store ended a stream without a word.
    pub(super) const fn ended() -> Self {
        Self {
            kind: StoreErrorKind::Unreachable,
            fate: Fate::Unknown,
            source: None,
        }
    }

    /// Another endpoint, or the same one later, may answer differently.
    pub(super) const fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unreachable | StoreErrorKind::DeadlineExceeded | StoreErrorKind::Ambiguous
        )
    }

    pub(super) fn told(self, act: &'static str, object: String) -> StoreError {
        let error = StoreError::new(act, object, self.kind);
        match self.source {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

pub(super) fn classify(error: ClientError) -> Failure {
    let (kind, fate) = judge(&error);
    let source: Option<Box<dyn Error + Send + Sync>> = match error {
        // The client's own error does not chain its cause; the status does.
        ClientError::GRpcStatus(status) => Some(Box::new(status)),
        ClientError::TransportError(error) => Some(Box::new(error)),
        ClientError::InvalidArgs(_)
        | ClientError::InvalidUri(_)
        | ClientError::IoError(_)
        | ClientError::WatchError(_)
        | ClientError::Utf8Error(_)
        | ClientError::LeaseKeepAliveError(_)
        | ClientError::ElectError(_)
        | ClientError::InvalidMetadataValue(_)
        | ClientError::EndpointError(_)
        | ClientError::EndpointsNotManaged
        | ClientError::Internal(_) => Some(Box::new(error)),
    };
    Failure { kind, fate, source }
}

/// A list page that is over the limit of what is taken.
pub(super) fn is_too_large_an_answer(error: &StoreError) -> bool {
    matches!(&error.kind, StoreErrorKind::Refused(why) if why.contains("decoded message length too large"))
}

fn judge(error: &ClientError) -> (StoreErrorKind, Fate) {
    match error {
        ClientError::GRpcStatus(status) => judge_status(status),
        ClientError::TransportError(error) => (connecting(&chain(error)), Fate::NeverSent),
        ClientError::IoError(_) | ClientError::EndpointError(_) | ClientError::EndpointsNotManaged => {
            (StoreErrorKind::Unreachable, Fate::NeverSent)
        }
        ClientError::LeaseKeepAliveError(text) if text.contains("lease not found") => {
            (StoreErrorKind::LeaseNotFound, Fate::Refused)
        }
        ClientError::WatchError(_)
        | ClientError::LeaseKeepAliveError(_)
        | ClientError::ElectError(_)
        | ClientError::Internal(_) => (StoreErrorKind::Unreachable, Fate::Unknown),
        ClientError::InvalidArgs(why) => (StoreErrorKind::Invalid(why.clone()), Fate::NeverSent),
        ClientError::InvalidUri(_) | ClientError::Utf8Error(_) | ClientError::InvalidMetadataValue(_) => {
            (StoreErrorKind::Invalid(error.to_string()), Fate::NeverSent)
        }
    }
}

fn judge_status(status: &tonic::Status) -> (StoreErrorKind, Fate) {
    let text = status.message();
    let has = |part: &str| text.contains(part);
    let refused = |kind| (kind, Fate::Refused);
    if never_connected(status) {
        return (connecting(&format!("{text} {}", chain(status))), Fate::NeverSent);
    }
    if has("required revision has been compacted") {
        return refused(StoreErrorKind::Compacted { at: 0 });
    }
    if has("required revision is a future revision") {
        return refused(StoreErrorKind::FutureRevision);
    }
    if has("requested lease not found") {
        return refused(StoreErrorKind::LeaseNotFound);
    }
    if has("request is too large") {
        return refused(StoreErrorKind::TooLarge {
            bytes: 0,
            limit: 3 << 19,
        });
    }
    if has("database space exceeded") || has("no space left") {
        return refused(StoreErrorKind::NoSpace);
    }
    // Said before anything is proposed: nothing was done, and another try is in order.
    if has("etcdserver: no leader") || has("etcdserver: too many requests") || has("etcdserver: not capable") {
        return refused(StoreErrorKind::Unreachable);
    }
    // What came while the store's users were being changed was not done, either.
    if has("revision of auth store is old") {
        return refused(StoreErrorKind::Unreachable);
    }
    // The connection's own words, whatever code the client made of them (`ResourceExhausted` for "calm down").
    let of_connection = text.starts_with("h2 protocol error");
    match status.code() {
        _ if of_connection => broken(status),
        Code::Unauthenticated | Code::PermissionDenied => refused(StoreErrorKind::Denied),
        Code::InvalidArgument if has("authentication failed") || has("user name") => refused(StoreErrorKind::Denied),
        Code::Unimplemented => refused(StoreErrorKind::NotEtcd),
        Code::DeadlineExceeded => (StoreErrorKind::DeadlineExceeded, Fate::Unknown),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted | Code::DataLoss => {
            broken(status)
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange => refused(StoreErrorKind::Refused(text.to_owned())),
    }
}

/// The call broke off on its way, or at the other end.
fn broken(status: &tonic::Status) -> (StoreErrorKind, Fate) {
    let words = format!("{} {}", status.message(), chain(status));
    let kind = if speaks_another_protocol(&words) {
        StoreErrorKind::NotEtcd
    } else if status.message().contains("timed out") {
        StoreErrorKind::DeadlineExceeded
    } else {
        StoreErrorKind::Unreachable
    };
    (kind, Fate::Unknown)
}

/// No connection was made, so nothing was sent.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Why a connection was not made.
fn connecting(words: &str) -> StoreErrorKind {
    let lower = words.to_lowercase();
    let tls = [
        "certificate",
        "tls",
        "handshake",
        "corrupt message",
        "unknownissuer",
        "alert",
    ];
    if tls.iter().any(|word| lower.contains(word)) {
        StoreErrorKind::Tls
    } else {
        StoreErrorKind::Unreachable
    }
}

fn speaks_another_protocol(words: &str) -> bool {
    let lower = words.to_lowercase();
    [
        "frame with invalid size",
        "invalid compression",
        "invalid content-type",
        "frame_size_error",
        "status: 404",
        "status code: 404",
    ]
    .iter()
    .any(|part| lower.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_while_users_were_changed_was_not_done_and_is_tried_again() {
        let status = tonic::Status::invalid_argument("etcdserver: revision of auth store is old");
        let failure = classify(ClientError::GRpcStatus(status));
        assert!(failure.is_transient());
        assert_eq!(failure.fate, Fate::Refused);
    }

    #[test]
    fn a_connection_that_is_told_to_calm_down_is_an_outage_and_no_refusal() {
        for code in [Code::ResourceExhausted, Code::PermissionDenied, Code::Internal] {
            let status = tonic::Status::new(code, "h2 protocol error: error reading a body from connection");
            let failure = classify(ClientError::GRpcStatus(status));
            assert_eq!(
                (&failure.kind, failure.fate),
                (&StoreErrorKind::Unreachable, Fate::Unknown),
                "{code:?}"
            );
        }
        let status = tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded");
        let failure = classify(ClientError::GRpcStatus(status));
        assert_eq!(failure.kind, StoreErrorKind::NoSpace);
    }
}
