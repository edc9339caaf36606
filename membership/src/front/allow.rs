//! What a request to the store may be, of whom: a pure function of a caller's grants and of the bytes of one message. `front`
//! asks it before anything reaches etcd, whose own users are a filter with holes: 3.4 does not ask them within nested
//! transactions, nor about leases. It promises that what it lets through reads and writes granted keys alone, that a
//! caller's leases are the caller's, and that no bytes make it panic.

use etcd_client::proto::{
    PbDeleteRequest, PbLeaseGrantRequest, PbLeaseKeepAliveRequest, PbLeaseRevokeRequest, PbLeaseTimeToLiveRequest,
    PbPutRequest, PbRangeRequest, PbTxnOpRequest, PbTxnRequest, PbWatchRequest, PbWatchRequestUnion,
};
use prost::Message;

/// The longest message of a caller who is not root: etcd takes requests of 1.5 MiB.
pub const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// How many of a lease's bits name its owner; the rest is drawn.
const DRAWN_BITS: u32 = 24;

/// Keys from the first to before the second, by their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys {
    from: Vec<u8>,
    /// None: without an end.
    to: Option<Vec<u8>>,
}

/// What a caller may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct May {
    reads: Vec<Keys>,
    writes: Vec<Keys>,
    /// Whose leases they are.
    owner: u64,
}

/// Why a request does not reach the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this certificate does not read these keys")]
    Reads,
    #[error("this certificate does not write these keys")]
    Writes,
    #[error("a transaction within a transaction")]
    Nested,
    #[error("a lease of another")]
    Lease,
    #[error("not for this certificate: {0}")]
    Method(String),
    #[error("the message is no request of the store's")]
    Broken,
}

impl Keys {
    /// One key, or all that begin so.
    fn granted(key: &str, under: bool) -> Self {
        let from = key.as_bytes().to_vec();
        let to = if under {
            after_all_under(&from)
        } else {
            Some(after(&from))
        };
        Self { from, to }
    }

    /// As etcd reads a key and the end of its range.
    fn asked(key: &[u8], range_end: &[u8]) -> Self {
        let from = key.to_vec();
        let to = match range_end {
            [] => Some(after(&from)),
            [0] => None,
            end => Some(end.to_vec()),
        };
        Self { from, to }
    }

    fn covers(&self, other: &Self) -> bool {
        let ends_within = match (&self.to, &other.to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => theirs <= mine,
        };
        self.from <= other.from && ends_within
    }
}

/// The first key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// The first key that does not begin so; None where there is none.
fn after_all_under(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut next = prefix.get(..=last)?.to_vec();
    *next.last_mut()? += 1;
    Some(next)
}

impl May {
    /// Of keys, or all under them, and whether they may be written, too.
    #[must_use]
    pub fn new<'a>(grants: impl IntoIterator<Item = (&'a str, bool, bool)>, owner: u64) -> Self {
        let mut may = Self {
            owner: owner >> (DRAWN_BITS + 1),
            ..Self::default()
        };
        for (key, under, write) in grants {
            let keys = Keys::granted(key, under);
            if write {
                may.writes.push(keys.clone());
            }
            may.reads.push(keys);
        }
        may
    }

    fn reads(&self, key: &[u8], range_end: &[u8]) -> Result<(), Denied> {
        let asked = Keys::asked(key, range_end);
        let granted = self.reads.iter().any(|keys| keys.covers(&asked));
        granted.then_some(()).ok_or(Denied::Reads)
    }

    fn writes(&self, key: &[u8], range_end: &[u8]) -> Result<(), Denied> {
        let asked = Keys::asked(key, range_end);
        let granted = self.writes.iter().any(|keys| keys.covers(&asked));
        granted.then_some(()).ok_or(Denied::Writes)
    }

    fn owns(&self, lease: i64) -> Result<(), Denied> {
        let owner = u64::try_from(lease).map(|lease| lease >> DRAWN_BITS);
        (owner == Ok(self.owner)).then_some(()).ok_or(Denied::Lease)
    }

    fn puts(&self, request: &PbPutRequest) -> Result<(), Denied> {
        self.writes(&request.key, &[])?;
        if request.lease == 0 {
            return Ok(());
        }
        self.owns(request.lease)
    }

    fn commits(&self, request: &PbTxnRequest) -> Result<(), Denied> {
        for compare in &request.compare {
            self.reads(&compare.key, &compare.range_end)?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(PbTxnOpRequest::RequestRange(range)) => self.reads(&range.key, &range.range_end)?,
                Some(PbTxnOpRequest::RequestPut(put)) => self.puts(put)?,
                Some(PbTxnOpRequest::RequestDeleteRange(delete)) => self.writes(&delete.key, &delete.range_end)?,
                Some(PbTxnOpRequest::RequestTxn(_)) => return Err(Denied::Nested),
                None => return Err(Denied::Broken),
            }
        }
        Ok(())
    }

    /// Judges one message of a call of this method, and gives what goes on in its place: written anew, so that etcd reads what
    /// was judged, whatever else its bytes could be taken for. `drawn` is random, for a lease that is granted.
    ///
    /// # Errors
    /// When it is not to reach the store.
    pub fn judge(&self, method: &str, message: &[u8], drawn: u32) -> Result<Vec<u8>, Denied> {
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(Denied::Broken);
        }
        match method {
            "/etcdserverpb.KV/Range" => judged(message, |request: &mut PbRangeRequest| {
                self.reads(&request.key, &request.range_end)
            }),
            "/etcdserverpb.KV/Put" => judged(message, |request| self.puts(request)),
            "/etcdserverpb.KV/DeleteRange" => judged(message, |request: &mut PbDeleteRequest| {
                self.writes(&request.key, &request.range_end)
            }),
            "/etcdserverpb.KV/Txn" => judged(message, |request| self.commits(request)),
            "/etcdserverpb.Watch/Watch" => {
                judged(message, |request: &mut PbWatchRequest| match &request.request_union {
                    Some(PbWatchRequestUnion::CreateRequest(create)) => self.reads(&create.key, &create.range_end),
                    Some(PbWatchRequestUnion::CancelRequest(_) | PbWatchRequestUnion::ProgressRequest(_)) => Ok(()),
                    None => Err(Denied::Broken),
                })
            }
            "/etcdserverpb.Lease/LeaseGrant" => judged(message, |request: &mut PbLeaseGrantRequest| {
                if request.id == 0 {
                    let id = self.owner << DRAWN_BITS | u64::from(drawn) & ((1 << DRAWN_BITS) - 1);
                    request.id = i64::try_from(id).map_err(|_| Denied::Lease)?;
                }
                self.owns(request.id)
            }),
            "/etcdserverpb.Lease/LeaseRevoke" => {
                judged(message, |request: &mut PbLeaseRevokeRequest| self.owns(request.id))
            }
            "/etcdserverpb.Lease/LeaseKeepAlive" => {
                judged(message, |request: &mut PbLeaseKeepAliveRequest| self.owns(request.id))
            }
            "/etcdserverpb.Lease/LeaseTimeToLive" => {
                judged(message, |request: &mut PbLeaseTimeToLiveRequest| self.owns(request.id))
            }
            // They tell what the store is, and nothing of what is in it.
            "/etcdserverpb.Maintenance/Status" | "/etcdserverpb.Cluster/MemberList" => Ok(Vec::new()),
            other => Err(Denied::Method(other.chars().take(100).collect())),
        }
    }
}

fn judged<M: Message + Default>(
    message: &[u8],
    judge: impl FnOnce(&mut M) -> Result<(), Denied>,
) -> Result<Vec<u8>, Denied> {
    let mut request = M::decode(message).map_err(|_| Denied::Broken)?;
    judge(&mut request)?;
    Ok(request.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbTxnRequestOp;

    use super::*;

    fn n1() -> May {
        May::new(
            [
                ("/reeve/", true, false),
                ("/reeve/nodes/n1", false, true),
                ("/reeve/events/", true, true),
            ],
            u64::MAX / 3,
        )
    }

    fn put(key: &str, lease: i64) -> PbPutRequest {
        PbPutRequest {
            key: key.into(),
            value: b"1".to_vec(),
            lease,
            ..PbPutRequest::default()
        }
    }

    fn op(request: PbTxnOpRequest) -> PbTxnRequestOp {
        PbTxnRequestOp { request: Some(request) }
    }

    fn judge(method: &str, message: &impl Message) -> Result<Vec<u8>, Denied> {
        n1().judge(&format!("/etcdserverpb.{method}"), &message.encode_to_vec(), 7)
    }

    #[test]
    fn own_keys_are_written_and_no_others() {
        for (key, granted) in [
            ("/reeve/nodes/n1", true),
            ("/reeve/events/n1/1", true),
            ("/reeve/nodes/n10", false),
            ("/reeve/nodes/n1/", false),
            ("/reeve/desired/default/service/web", false),
            ("/reeve/events", false),
            ("/other", false),
            ("", false),
        ] {
            let told = judge("KV/Put", &put(key, 0));
            assert_eq!(told.is_ok(), granted, "{key}: {told:?}");
            assert!(told.is_ok() || told == Err(Denied::Writes));
        }
    }

    #[test]
    fn a_range_counts_with_its_end() {
        let range = |key: &[u8], end: &[u8]| PbRangeRequest {
            key: key.to_vec(),
            range_end: end.to_vec(),
            ..PbRangeRequest::default()
        };
        for (key, end, granted) in [
            (&b"/reeve/"[..], &b"/reeve0"[..], true),
            (b"/reeve/nodes/", b"/reeve/nodes0", true),
            (b"/reeve/", b"/reeve1", false),
            (b"/reeve/", b"\0", false),
            (b"\0", b"\0", false),
            (b"/reev", b"/reeve0", false),
            (b"/reeve/x", b"/other", true),
        ] {
            assert_eq!(judge("KV/Range", &range(key, end)).is_ok(), granted, "{key:?} {end:?}");
            // A watch that is created, as it is on the wire: its fields 1 and 2 are these.
            let field = |number: u8, bytes: &[u8]| {
                let length = u8::try_from(bytes.len()).expect("short");
                [&[number << 3 | 2, length], bytes].concat()
            };
            let create = field(1, &[field(1, key), field(2, end)].concat());
            let watch = n1().judge("/etcdserverpb.Watch/Watch", &create, 7);
            assert_eq!(watch.is_ok(), granted, "{key:?} {end:?}");
        }
        let delete = PbDeleteRequest {
            key: b"/reeve/events/".to_vec(),
            range_end: b"/reeve/evf".to_vec(),
            prev_kv: false,
        };
        assert_eq!(judge("KV/DeleteRange", &delete), Err(Denied::Writes));
    }

    #[test]
    fn nothing_hides_in_a_transaction() {
        let txn = |success: Vec<PbTxnRequestOp>| PbTxnRequest {
            success,
            ..PbTxnRequest::default()
        };
        let own = || op(PbTxnOpRequest::RequestPut(put("/reeve/nodes/n1", 0)));
        let others = || op(PbTxnOpRequest::RequestPut(put("/reeve/nodes/n2", 0)));
        assert!(judge("KV/Txn", &txn(vec![own()])).is_ok());
        assert_eq!(judge("KV/Txn", &txn(vec![own(), others()])), Err(Denied::Writes));
        let failing = PbTxnRequest {
            failure: vec![others()],
            ..PbTxnRequest::default()
        };
        assert_eq!(judge("KV/Txn", &failing), Err(Denied::Writes));
        // Even one that does what is granted: etcd would not ask.
        let nested = op(PbTxnOpRequest::RequestTxn(txn(vec![own()])));
        assert_eq!(judge("KV/Txn", &txn(vec![own(), nested])), Err(Denied::Nested));
        assert_eq!(
            judge("KV/Txn", &txn(vec![PbTxnRequestOp { request: None }])),
            Err(Denied::Broken)
        );
    }

    #[test]
    fn a_lease_is_of_who_was_granted_it() {
        let told = judge("Lease/LeaseGrant", &PbLeaseGrantRequest { ttl: 15, id: 0 }).expect("a lease");
        let own = PbLeaseGrantRequest::decode(&*told).expect("a request");
        assert!(own.id > 0 && own.ttl == 15, "{own:?}");
        assert!(judge("KV/Put", &put("/reeve/nodes/n1", own.id)).is_ok());
        assert!(judge("Lease/LeaseKeepAlive", &PbLeaseKeepAliveRequest { id: own.id }).is_ok());
        let other = own.id ^ (1 << 40);
        for id in [other, 1, -1, i64::MIN, i64::MAX] {
            assert_eq!(judge("KV/Put", &put("/reeve/nodes/n1", id)), Err(Denied::Lease), "{id}");
            assert_eq!(
                judge("Lease/LeaseRevoke", &PbLeaseRevokeRequest { id }),
                Err(Denied::Lease)
            );
            assert_eq!(
                judge("Lease/LeaseKeepAlive", &PbLeaseKeepAliveRequest { id }),
                Err(Denied::Lease)
            );
            let told = judge("Lease/LeaseTimeToLive", &PbLeaseTimeToLiveRequest { id, keys: true });
            assert_eq!(told, Err(Denied::Lease));
            assert_eq!(
                judge("Lease/LeaseGrant", &PbLeaseGrantRequest { ttl: 15, id }),
                Err(Denied::Lease)
            );
        }
    }

    #[test]
    fn what_is_no_request_of_clients_is_refused_and_nothing_panics() {
        for method in [
            "Auth/UserAdd",
            "Lease/LeaseLeases",
            "Cluster/MemberAdd",
            "KV/Compact",
            "Maintenance/Snapshot",
            "",
        ] {
            let told = n1().judge(&format!("/etcdserverpb.{method}"), &[], 0);
            assert!(matches!(told, Err(Denied::Method(_))), "{method}: {told:?}");
        }
        let methods = [
            "KV/Range",
            "KV/Put",
            "KV/DeleteRange",
            "KV/Txn",
            "Watch/Watch",
            "Lease/LeaseGrant",
        ];
        let mut bytes: Vec<u8> = Vec::new();
        for step in 0..4_000_u32 {
            bytes.push(u8::try_from(step.wrapping_mul(2_654_435_761) >> 24).unwrap_or_default());
            if bytes.len() > 60 {
                bytes.clear();
            }
            for method in methods {
                let _ = n1().judge(&format!("/etcdserverpb.{method}"), &bytes, step);
            }
        }
    }
}
