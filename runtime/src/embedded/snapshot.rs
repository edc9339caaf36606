//! Snapshots of the embedded store: what `etcdctl snapshot save` writes, and how it comes back.
//!
//! The file is our own format, not etcd's database: restore it with `Embedded::restore`;
//! `etcdctl snapshot restore` refuses it. It holds, integers little-endian: the magic line; then
//! revision, compacted revision, number of leases, number of records; per lease id and TTL; per
//! record its revision (main, sub), length and bytes as on disk; zeros up to a multiple of 512;
//! and at the end the SHA-256 of all before it, which is where etcd has it too.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use etcd_client::proto::{PbResponseHeader, PbSnapshotResponse};
use futures::Stream;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::Core;
use super::disk::{Batch, Cursor, DecodeError, Disk, Meta, OpenError, decode_item, encode_item};
use super::mvcc::{Item, Store};

const MAGIC: &[u8] = b"reeve embedded store snapshot 1\n";
/// Bytes of one piece of the stream, about.
const PIECE: usize = 256 << 10;
const ALIGN: usize = 512;
const HASH: usize = 32;

/// The store at one revision, sharing its items with the live one.
pub(crate) struct Snapshot {
    head: Vec<u8>,
    items: VecDeque<Arc<Item>>,
    total: usize,
}

impl Snapshot {
    pub fn take(core: &Core) -> Self {
        let state = core.read();
        let mut items: Vec<_> = state.store.all().cloned().collect();
        let revision = state.store.committed();
        let compacted = state.store.compacted();
        let leases = state.leases.stored();
        drop(state);
        items.sort_unstable_by_key(|item| (item.main, item.sub));
        let mut head = MAGIC.to_vec();
        head.extend(revision.to_le_bytes());
        head.extend(compacted.to_le_bytes());
        head.extend((leases.len() as u64).to_le_bytes());
        head.extend((items.len() as u64).to_le_bytes());
        for (id, ttl) in leases {
            head.extend(id.to_le_bytes());
            head.extend(ttl.to_le_bytes());
        }
        let body: usize = items.iter().map(|i| 16 + encoded_len(i)).sum();
        Self {
            total: (head.len() + body).next_multiple_of(ALIGN) + HASH,
            head,
            items: items.into(),
        }
    }

    /// The file, piece by piece as the client takes it.
    pub fn stream(
        self,
        header: Option<PbResponseHeader>,
    ) -> impl Stream<Item = Result<PbSnapshotResponse, Status>> + Send + 'static {
        let Self { head, items, total } = self;
        let start = Some((items, Sha256::new(), head, 0_usize));
        futures::stream::unfold(start, move |state| {
            async move {
                let (mut items, mut hash, mut piece, sent) = state?;
                while piece.len() < PIECE
                    && let Some(item) = items.pop_front()
                {
                    let (record, _) = encode_item(&item);
                    piece.extend(item.main.to_le_bytes());
                    piece.extend(item.sub.to_le_bytes());
                    // A record is at most a request long.
                    let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
                    piece.extend(len.to_le_bytes());
                    piece.extend(record);
                }
                let last = items.is_empty();
                if last {
                    let end = (sent + piece.len()).next_multiple_of(ALIGN);
                    piece.resize(end - sent, 0);
                }
                hash.update(&piece);
                let next = match last {
                    true => {
                        piece.extend(std::mem::take(&mut hash).finalize());
                        None
                    }
                    false => Some((items, hash, Vec::new(), sent + piece.len())),
                };
                let response = PbSnapshotResponse {
                    header,
                    remaining_bytes: total.saturating_sub(sent + piece.len()) as u64,
                    blob: piece,
                    version: String::new(),
                };
                Some((Ok(response), next))
            }
        })
    }
}

fn encoded_len(item: &Item) -> usize {
    encode_item(item).0.len()
}

/// Makes a store in `dir` from a snapshot file, with new ids. The directory must hold none.
pub(crate) fn restore(dir: &Path, file: &Path) -> Result<(), OpenError> {
    let bytes = std::fs::read(file).map_err(OpenError::io("read", file))?;
    let bad = |what: &str| OpenError::BadSnapshot {
        path: file.into(),
        what: what.into(),
    };
    let (body, hash) = bytes
        .len()
        .checked_sub(HASH)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or_else(|| bad("it is cut short"))?;
    if !body.starts_with(MAGIC) {
        return Err(bad("it begins with something else"));
    }
    if Sha256::digest(body)[..] != *hash {
        return Err(bad("its checksum is wrong"));
    }
    let (batch, items) = parse(&body[MAGIC.len()..]).map_err(|e| match e {
        DecodeError::Format(_) => bad("its format is unknown"),
        DecodeError::Wrong(what) => bad(what),
    })?;
    Store::load(items, batch.revision, batch.compacted).map_err(|what| bad(&what))?;
    let meta = Meta::draw().map_err(OpenError::io("draw ids for", dir))?;
    Disk::create(dir, meta, &batch)
}

fn parse(bytes: &[u8]) -> Result<(Batch, Vec<Item>), DecodeError> {
    let mut rest = Cursor(bytes);
    let revision = i64::from_le_bytes(rest.array()?);
    let compacted = i64::from_le_bytes(rest.array()?);
    let leases = u64::from_le_bytes(rest.array()?);
    let records = u64::from_le_bytes(rest.array()?);
    if revision < 1 || compacted > revision {
        return Err(DecodeError::Wrong("its revisions make no sense"));
    }
    let mut batch = Batch {
        revision,
        compacted,
        ..Batch::default()
    };
    for _ in 0..leases {
        let id = i64::from_le_bytes(rest.array()?);
        let ttl = i64::from_le_bytes(rest.array()?);
        batch.leases.push((id, Some(ttl)));
    }
    let mut items = Vec::new();
    for _ in 0..records {
        let main = i64::from_le_bytes(rest.array()?);
        let sub = u32::from_le_bytes(rest.array()?);
        let len = u32::from_le_bytes(rest.array()?);
        let (item, _) = decode_item(main, sub, rest.take(len as usize)?)?;
        batch.put.push(Arc::new(item.clone()));
        items.push(item);
    }
    if rest.0.len() >= ALIGN || rest.0.iter().any(|b| *b != 0) {
        return Err(DecodeError::Wrong("something follows its last record"));
    }
    Ok((batch, items))
}
