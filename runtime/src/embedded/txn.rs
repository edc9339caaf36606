//! Checks and evaluation of requests against the keys in memory, as etcd does them.
//!
//! The checks of shape need no state and run before a request is queued; the evaluation runs on
//! the writer (or, for a txn that only reads, under the readers' lock). Nested txns are bounded by
//! the decoder: a request nested deeper than 100 messages is never decoded.

use std::collections::BTreeSet;

use etcd_client::proto::PbTxnResponse;
use etcd_client::proto::{PbCompare, PbDeleteRequest, PbPutRequest, PbRangeRequest};
use etcd_client::proto::{PbKeyValue, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse};
use etcd_client::proto::{PbResponseHeader, PbResponseOp, PbTxnRequest, PbTxnRequestOp};
use prost::Message;

use super::lease::Leases;
use super::mvcc::{Store, Write, header};
use super::refusal::Refusal;

/// Operations in one branch of a txn, its nested ones included. etcd's default.
pub(crate) const MAX_TXN_OPS: usize = 128;
/// Bytes of one write request. etcd's default: 1.5 MiB.
pub(crate) const MAX_REQUEST: usize = 3 * 512 * 1024;
/// What etcd adds to a request before it compares it with the limit, about.
const ENVELOPE: usize = 16;

/// Refuses a write that is larger than etcd takes.
pub(crate) fn check_size(req: &impl Message) -> Result<usize, Refusal> {
    let size = req.encoded_len().saturating_add(ENVELOPE);
    match size > MAX_REQUEST {
        true => Err(Refusal::TooLarge),
        false => Ok(size),
    }
}

pub(crate) fn check_range(req: &PbRangeRequest) -> Result<(), Refusal> {
    match req.key.is_empty() {
        true => Err(Refusal::EmptyKey),
        false => Ok(()),
    }
}

pub(crate) fn check_delete(req: &PbDeleteRequest) -> Result<(), Refusal> {
    match req.key.is_empty() {
        true => Err(Refusal::EmptyKey),
        false => Ok(()),
    }
}

pub(crate) fn check_put(req: &PbPutRequest) -> Result<(), Refusal> {
    if req.key.is_empty() {
        Err(Refusal::EmptyKey)
    } else if req.ignore_value && !req.value.is_empty() {
        Err(Refusal::ValueProvided)
    } else if req.ignore_lease && req.lease != 0 {
        Err(Refusal::LeaseProvided)
    } else {
        Ok(())
    }
}

pub(crate) fn check_txn(req: &PbTxnRequest) -> Result<(), Refusal> {
    check_shape(req, MAX_TXN_OPS)?;
    check_overlaps(&req.success)?;
    check_overlaps(&req.failure)?;
    Ok(())
}

fn check_shape(req: &PbTxnRequest, budget: usize) -> Result<(), Refusal> {
    let ops = req.compare.len().max(req.success.len()).max(req.failure.len());
    let left = budget.checked_sub(ops).ok_or(Refusal::TooManyOps)?;
    if req.compare.iter().any(|c| c.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in req.success.iter().chain(&req.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(r)) => check_range(r)?,
            Some(PbTxnOpRequest::RequestPut(r)) => check_put(r)?,
            Some(PbTxnOpRequest::RequestDeleteRange(r)) => check_delete(r)?,
            Some(PbTxnOpRequest::RequestTxn(r)) => check_shape(r, left)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// What a branch writes: keys put, and ranges deleted as [from, to).
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Vec<u8>>,
    deletes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Touched {
    /// etcd compares a deletion "from a key on" as the empty range that its end of one zero byte
    /// spells, so such a deletion overlaps nothing. We do the same.
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes
            .iter()
            .any(|(from, to)| from.as_slice() <= key && key < to.as_slice())
    }
}

/// Refuses a branch that may write a key twice.
fn check_overlaps(ops: &[PbTxnRequestOp]) -> Result<Touched, Refusal> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(PbTxnOpRequest::RequestDeleteRange(r)) = &op.request {
            let end = match r.range_end.is_empty() {
                true => [r.key.as_slice(), &[0]].concat(),
                false => r.range_end.clone(),
            };
            touched.deletes.push((r.key.clone(), end));
        }
    }
    for op in ops {
        if let Some(PbTxnOpRequest::RequestTxn(nested)) = &op.request {
            let then = check_overlaps(&nested.success)?;
            let or_else = check_overlaps(&nested.failure)?;
            for key in &then.puts {
                if touched.puts.contains(key) || touched.deletes(key) {
                    return Err(Refusal::DuplicateKey);
                }
            }
            for key in &or_else.puts {
                if touched.puts.contains(key) || touched.deletes(key) {
                    return Err(Refusal::DuplicateKey);
                }
            }
            touched.puts.extend(then.puts);
            touched.puts.extend(or_else.puts);
            touched.deletes.extend(then.deletes);
            touched.deletes.extend(or_else.deletes);
        }
    }
    for op in ops {
        if let Some(PbTxnOpRequest::RequestPut(r)) = &op.request
            && (touched.deletes(&r.key) || !touched.puts.insert(r.key.clone()))
        {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok(touched)
}

/// True when no branch can write.
pub(crate) fn is_read_only(req: &PbTxnRequest) -> bool {
    req.success.iter().chain(&req.failure).all(|op| match &op.request {
        Some(PbTxnOpRequest::RequestRange(_)) | None => true,
        Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) => false,
        Some(PbTxnOpRequest::RequestTxn(nested)) => is_read_only(nested),
    })
}

/// `Put` outside a txn.
pub(crate) fn check_lease(req: &PbPutRequest, leases: &Leases) -> Result<(), Refusal> {
    match req.lease == 0 || leases.exists(req.lease) {
        true => Ok(()),
        false => Err(Refusal::LeaseNotFound),
    }
}

/// Runs a txn that only reads, at revision `current`.
pub(crate) fn read(store: &Store, current: i64, req: PbTxnRequest) -> Result<PbTxnResponse, Refusal> {
    let mut path = Vec::new();
    decide(store, current, &req, &mut path);
    check_ranges(store, current, &req, &mut path.iter())?;
    let mut response = read_branch(store, current, req, &mut path.iter())?;
    response.header = header(current);
    Ok(response)
}

fn read_branch(
    store: &Store,
    current: i64,
    req: PbTxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<PbTxnResponse, Refusal> {
    let (succeeded, ops) = take_branch(req, path);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        responses.push(match op.request {
            Some(PbTxnOpRequest::RequestRange(r)) => PbTxnOpResponse::ResponseRange(store.range(&r, current)?),
            Some(PbTxnOpRequest::RequestTxn(r)) => PbTxnOpResponse::ResponseTxn(read_branch(store, current, r, path)?),
            Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => {
                return Err(Refusal::KeyNotFound);
            }
        });
    }
    Ok(answer(succeeded, responses))
}

/// Runs a txn that may write, within `write`. A refusal must drop `write`.
pub(crate) fn apply(write: &mut Write<'_>, req: PbTxnRequest) -> Result<PbTxnResponse, Refusal> {
    let current = write.revision();
    let mut path = Vec::new();
    decide(write.store(), current, &req, &mut path);
    check_puts(write, current, &req, &mut path.iter())?;
    check_ranges(write.store(), current, &req, &mut path.iter())?;
    let mut response = apply_branch(write, req, &mut path.iter())?;
    response.header = header(write.revision());
    Ok(response)
}

fn apply_branch(
    write: &mut Write<'_>,
    req: PbTxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<PbTxnResponse, Refusal> {
    let (succeeded, ops) = take_branch(req, path);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        responses.push(match op.request {
            Some(PbTxnOpRequest::RequestRange(r)) => {
                PbTxnOpResponse::ResponseRange(write.store().range(&r, write.revision())?)
            }
            Some(PbTxnOpRequest::RequestPut(r)) => PbTxnOpResponse::ResponsePut(write.put(r)?),
            Some(PbTxnOpRequest::RequestDeleteRange(r)) => PbTxnOpResponse::ResponseDeleteRange(write.delete(&r)),
            Some(PbTxnOpRequest::RequestTxn(r)) => PbTxnOpResponse::ResponseTxn(apply_branch(write, r, path)?),
            None => return Err(Refusal::KeyNotFound),
        });
    }
    Ok(answer(succeeded, responses))
}

fn answer(succeeded: bool, responses: Vec<PbTxnOpResponse>) -> PbTxnResponse {
    PbTxnResponse {
        header: Some(PbResponseHeader::default()),
        succeeded,
        responses: responses
            .into_iter()
            .map(|response| PbResponseOp {
                response: Some(response),
            })
            .collect(),
    }
}

fn take_branch(req: PbTxnRequest, path: &mut std::slice::Iter<'_, bool>) -> (bool, Vec<PbTxnRequestOp>) {
    match path.next() {
        Some(true) => (true, req.success),
        Some(false) | None => (false, req.failure),
    }
}

fn branch<'a>(req: &'a PbTxnRequest, path: &mut std::slice::Iter<'_, bool>) -> &'a [PbTxnRequestOp] {
    match path.next() {
        Some(true) => &req.success,
        Some(false) | None => &req.failure,
    }
}

/// Decides every compare of the branches taken, before anything is written, depth first.
fn decide(store: &Store, current: i64, req: &PbTxnRequest, path: &mut Vec<bool>) {
    let succeeded = req.compare.iter().all(|c| holds(store, current, c));
    path.push(succeeded);
    let ops = match succeeded {
        true => &req.success,
        false => &req.failure,
    };
    for op in ops {
        if let Some(PbTxnOpRequest::RequestTxn(nested)) = &op.request {
            decide(store, current, nested, path);
        }
    }
}

fn check_puts(
    write: &Write<'_>,
    current: i64,
    req: &PbTxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<(), Refusal> {
    for op in branch(req, path) {
        match &op.request {
            Some(PbTxnOpRequest::RequestPut(r)) => {
                if (r.ignore_value || r.ignore_lease) && write.store().latest(&r.key, current).is_none() {
                    return Err(Refusal::KeyNotFound);
                }
                check_lease(r, write.leases())?;
            }
            Some(PbTxnOpRequest::RequestTxn(r)) => check_puts(write, current, r, path)?,
            Some(PbTxnOpRequest::RequestRange(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn check_ranges(
    store: &Store,
    current: i64,
    req: &PbTxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<(), Refusal> {
    for op in branch(req, path) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(r)) => match r.revision {
                0 => {}
                r if r > current => return Err(Refusal::FutureRevision),
                r if r < store.compacted() => return Err(Refusal::Compacted),
                _ => {}
            },
            Some(PbTxnOpRequest::RequestTxn(r)) => check_ranges(store, current, r, path)?,
            Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn holds(store: &Store, current: i64, compare: &PbCompare) -> bool {
    const VALUE: i32 = 3;
    let mut any = false;
    for item in store.select(&compare.key, &compare.range_end, current) {
        any = true;
        if !holds_for(compare, &item.to_pb()) {
            return false;
        }
    }
    // A value that is not there compares with nothing.
    any || (compare.target != VALUE && holds_for(compare, &PbKeyValue::default()))
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a compare with another target's value compares with nothing"
)]
fn holds_for(compare: &PbCompare, kv: &PbKeyValue) -> bool {
    use std::cmp::Ordering;
    let union = compare.target_union.as_ref();
    let number = |wanted: fn(&PbTargetUnion) -> Option<i64>| union.and_then(wanted).unwrap_or(0);
    let ordering = match compare.target {
        0 => kv.version.cmp(&number(|u| match u {
            PbTargetUnion::Version(v) => Some(*v),
            _ => None,
        })),
        1 => kv.create_revision.cmp(&number(|u| match u {
            PbTargetUnion::CreateRevision(v) => Some(*v),
            _ => None,
        })),
        2 => kv.mod_revision.cmp(&number(|u| match u {
            PbTargetUnion::ModRevision(v) => Some(*v),
            _ => None,
        })),
        3 => match union {
            Some(PbTargetUnion::Value(v)) => kv.value.cmp(v),
            _ => kv.value.as_slice().cmp(&[]),
        },
        4 => kv.lease.cmp(&number(|u| match u {
            PbTargetUnion::Lease(v) => Some(*v),
            _ => None,
        })),
        _ => Ordering::Equal,
    };
    match compare.result {
        0 => ordering == Ordering::Equal,
        1 => ordering == Ordering::Greater,
        2 => ordering == Ordering::Less,
        3 => ordering != Ordering::Equal,
        _ => true,
    }
}
