//! The embedded store on disk: one redb file, written by one thread.
//!
//! Format 1. Table `items`: (main revision, sub) -> record; table `leases`: id -> TTL in seconds;
//! table `meta`: one record with the ids, the revisions, and the count and sum of the checksums of
//! all records and leases, so that one that was lost or changed is found when the file is opened.
//! A record is: checksum (crc32c of the rest), kind, create, version, lease, length of the key,
//! the key, the value; integers little-endian.
//!
//! `commit` returns only after the disk has the batch. After a failed write redb refuses further
//! use of the open file, so the file is opened again and the answer read from it: see `Failed`.

use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::mvcc::Item;

const ITEMS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("items");
const LEASES: TableDefinition<'_, i64, i64> = TableDefinition::new("leases");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "meta";
const FORMAT: u32 = 1;

/// Bytes that redb may cache. Reads come from memory, so this only serves the writer.
const CACHE: usize = 8 << 20;

/// The name of the database in the store's directory.
pub(crate) const FILE: &str = "store.redb";
const NEW_FILE: &str = "store.redb.new";
const LOCK_FILE: &str = "lock";

/// Why a store cannot be opened, created or restored.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory could not be used.
    #[error("cannot {act} {}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another process, or another `Embedded` of this one, has the directory open.
    #[error("the store in {} is in use by another process; stop that one first, or choose another directory", dir.display())]
    InUse { dir: PathBuf },
    /// The file is not what was written to it.
    #[error("the store file {} is damaged ({what}); restore a snapshot into an empty directory, or put back a copy of the file", path.display())]
    Damaged { path: PathBuf, what: String },
    /// A newer version wrote it.
    #[error("the store file {} has format {found}, and this version reads format {FORMAT}; use the version that wrote it, or a newer one", path.display())]
    Format { path: PathBuf, found: u32 },
    /// The file to restore is not a snapshot of an embedded store, or not all of it.
    #[error("{} is not a whole snapshot of an embedded store ({what}); take another one", path.display())]
    BadSnapshot { path: PathBuf, what: String },
    /// A restore never overwrites.
    #[error("{} holds a store already; restore into an empty directory", dir.display())]
    NotEmpty { dir: PathBuf },
}

impl OpenError {
    pub(crate) fn io(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { act, path, source }
    }
}

/// What the store knows about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub cluster_id: u64,
    pub member_id: u64,
    pub revision: i64,
    pub compacted: i64,
    /// Rises with every commit; tells after a failure whether the commit is there.
    pub serial: u64,
    pub records: u64,
    /// Sum of the checksums of all records, wrapping.
    pub checksums: u64,
}

impl Meta {
    /// Of an empty store, with new ids.
    pub fn draw() -> io::Result<Self> {
        Ok(Self {
            cluster_id: random_u64()?,
            member_id: random_u64()?,
            revision: 1,
            compacted: -1,
            serial: 0,
            records: 0,
            checksums: 0,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let Self {
            cluster_id,
            member_id,
            revision,
            compacted,
            serial,
            records,
            checksums,
        } = self;
        let mut out = FORMAT.to_le_bytes().to_vec();
        out.extend(cluster_id.to_le_bytes());
        out.extend(member_id.to_le_bytes());
        out.extend(revision.to_le_bytes());
        out.extend(compacted.to_le_bytes());
        out.extend(serial.to_le_bytes());
        out.extend(records.to_le_bytes());
        out.extend(checksums.to_le_bytes());
        let sum = crc32c(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Cursor(bytes);
        let format = u32::from_le_bytes(rest.array()?);
        if format != FORMAT {
            return Err(DecodeError::Format(format));
        }
        let meta = Self {
            cluster_id: u64::from_le_bytes(rest.array()?),
            member_id: u64::from_le_bytes(rest.array()?),
            revision: i64::from_le_bytes(rest.array()?),
            compacted: i64::from_le_bytes(rest.array()?),
            serial: u64::from_le_bytes(rest.array()?),
            records: u64::from_le_bytes(rest.array()?),
            checksums: u64::from_le_bytes(rest.array()?),
        };
        let sum = u32::from_le_bytes(rest.array()?);
        if !rest.0.is_empty() || sum != crc32c(&bytes[..bytes.len() - 4]) {
            return Err(DecodeError::Wrong("the head record has a wrong checksum"));
        }
        if meta.revision < 1 || meta.compacted > meta.revision {
            return Err(DecodeError::Wrong("the head record makes no sense"));
        }
        Ok(meta)
    }
}

#[derive(Debug)]
pub(crate) enum DecodeError {
    Format(u32),
    Wrong(&'static str),
}

/// Takes fixed pieces off the front of untrusted bytes.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .ok_or(DecodeError::Wrong("a record is cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
}

/// The record of an item, and its checksum.
pub(crate) fn encode_item(item: &Item) -> (Vec<u8>, u32) {
    let Item {
        key,
        value,
        deleted,
        create,
        main: _,
        sub: _,
        version,
        lease,
    } = item;
    let mut out = Vec::with_capacity(33 + key.len() + value.len());
    out.extend([0; 4]);
    out.push(u8::from(*deleted));
    out.extend(create.to_le_bytes());
    out.extend(version.to_le_bytes());
    out.extend(lease.to_le_bytes());
    // A key is at most a request long, far below 4 GiB.
    out.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    let sum = item_checksum(item.main, item.sub, &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    (out, sum)
}

fn lease_checksum(id: i64, ttl: i64) -> u64 {
    crc32c_more(crc32c(&id.to_le_bytes()), &ttl.to_le_bytes()).into()
}

/// The revision is part of the checksum, so that a record in the wrong place is found too.
fn item_checksum(main: i64, sub: u32, body: &[u8]) -> u32 {
    let place = crc32c_more(crc32c(&main.to_le_bytes()), &sub.to_le_bytes());
    crc32c_more(place, body)
}

pub(crate) fn decode_item(main: i64, sub: u32, bytes: &[u8]) -> Result<(Item, u32), DecodeError> {
    let mut rest = Cursor(bytes);
    let sum = u32::from_le_bytes(rest.array()?);
    if sum != item_checksum(main, sub, rest.0) {
        return Err(DecodeError::Wrong("a record has a wrong checksum"));
    }
    let [deleted] = rest.array()?;
    let create = i64::from_le_bytes(rest.array()?);
    let version = i64::from_le_bytes(rest.array()?);
    let lease = i64::from_le_bytes(rest.array()?);
    let len = u32::from_le_bytes(rest.array()?);
    let key = rest.take(len as usize)?;
    let item = Item {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(rest.0),
        deleted: deleted != 0,
        create,
        main,
        sub,
        version,
        lease,
    };
    Ok((item, sum))
}

/// One batch to commit: all of it or nothing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub put: Vec<std::sync::Arc<Item>>,
    pub remove: Vec<std::sync::Arc<Item>>,
    /// (id, TTL) granted, or (id, none) revoked, in order.
    pub leases: Vec<(i64, Option<i64>)>,
    pub revision: i64,
    pub compacted: i64,
}

/// A commit that did not go through.
#[derive(Debug)]
pub(crate) struct Failed {
    /// True when the file was found to hold the batch all the same.
    pub committed: bool,
    /// The disk has no room.
    pub full: bool,
    pub reason: String,
}

/// Everything the file holds.
pub(crate) struct Loaded {
    pub items: Vec<Item>,
    pub leases: Vec<(i64, i64)>,
}

/// Keeps every other process out of a store's directory while it lives.
#[derive(Debug)]
pub(crate) struct DirLock(#[allow(dead_code, reason = "held, not read")] File);

impl DirLock {
    /// Creates the directory when it is missing, and locks it.
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(OpenError::io("create the directory", dir))?;
        let path = dir.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(OpenError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.into() }),
            Err(TryLockError::Error(e)) => Err(OpenError::io("lock", &path)(e)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// None after a failure, until the file could be opened again.
    db: Option<Database>,
    meta: Meta,
}

impl Disk {
    /// True when the directory holds a store.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).symlink_metadata().is_ok()
    }

    /// Creates the file beside its final name, with `fill` as its first batch, and moves it there
    /// whole: a crash leaves either no store or all of it.
    pub fn create(dir: &Path, meta: Meta, fill: &Batch) -> Result<(), OpenError> {
        let fresh = dir.join(NEW_FILE);
        let path = dir.join(FILE);
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::io("remove the unfinished", &fresh)(e));
            }
            _ => {}
        }
        let db = builder().create(&fresh).map_err(|e| open_error(&fresh, &e))?;
        let mut disk = Self {
            path: fresh.clone(),
            db: Some(db),
            meta,
        };
        disk.commit(fill).map_err(|failed| OpenError::Io {
            act: "write",
            path: fresh.clone(),
            source: io::Error::other(failed.reason),
        })?;
        drop(disk);
        std::fs::rename(&fresh, &path).map_err(OpenError::io("create", &path))?;
        File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(OpenError::io("sync the directory", dir))
    }

    /// Opens the file and reads all of it, checking every record.
    pub fn open(dir: &Path) -> Result<(Self, Loaded), OpenError> {
        let path = dir.join(FILE);
        let len = std::fs::metadata(&path).map_err(OpenError::io("open", &path))?.len();
        if len == 0 {
            return Err(damaged(&path, "it is empty"));
        }
        // redb trusts its pages; a damaged file may make it panic.
        catch_unwind(AssertUnwindSafe(|| Self::read(&path)))
            .unwrap_or_else(|_| Err(damaged(&path, "its pages cannot be read")))
    }

    fn read(path: &Path) -> Result<(Self, Loaded), OpenError> {
        let db = builder().open(path).map_err(|e| open_error(path, &e))?;
        let meta = read_meta(&db, path)?;
        let broken = |e: redb::Error| damaged(path, &e.to_string());
        let txn = db.begin_read().map_err(|e| broken(e.into()))?;
        let table = txn.open_table(ITEMS).map_err(|e| broken(e.into()))?;
        let mut items = Vec::new();
        let mut checksums = 0_u64;
        for entry in table.iter().map_err(|e| broken(e.into()))? {
            let (place, record) = entry.map_err(|e| broken(e.into()))?;
            let (main, sub) = place.value();
            let main = i64::try_from(main).unwrap_or(i64::MAX);
            let (item, sum) = decode_item(main, sub, record.value()).map_err(|e| undecodable(path, &e))?;
            checksums = checksums.wrapping_add(sum.into());
            items.push(item);
        }
        let table = txn.open_table(LEASES).map_err(|e| broken(e.into()))?;
        let mut leases = Vec::new();
        for entry in table.iter().map_err(|e| broken(e.into()))? {
            let (id, ttl) = entry.map_err(|e| broken(e.into()))?;
            checksums = checksums.wrapping_add(lease_checksum(id.value(), ttl.value()));
            leases.push((id.value(), ttl.value()));
        }
        let found = items.len() + leases.len();
        if meta.records != found as u64 || meta.checksums != checksums {
            let what = format!("it holds {found} records of {}, or others", meta.records);
            return Err(damaged(path, &what));
        }
        drop(table);
        drop(txn);
        let disk = Self {
            path: path.to_path_buf(),
            db: Some(db),
            meta,
        };
        Ok((disk, Loaded { items, leases }))
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Bytes of the file; 0 when it cannot be asked.
    pub fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    /// Commits the batch and returns when the disk has it.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let db = match self.db.take() {
            Some(db) => db,
            None => self.reopen()?,
        };
        let (result, next) = {
            let mut next = self.meta;
            let result = catch_unwind(AssertUnwindSafe(|| write(&db, batch, &mut next)))
                .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked".into())));
            (result, next)
        };
        match result {
            Ok(()) => {
                self.db = Some(db);
                self.meta = next;
                Ok(())
            }
            Err(error) => {
                let full = is_full(&error);
                let reason = error.to_string();
                // redb closes cleanly or not at all; either way the file decides.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
                let committed = match self.reopen() {
                    Ok(db) => {
                        self.db = Some(db);
                        self.meta.serial == next.serial
                    }
                    Err(_) => false,
                };
                Err(Failed {
                    committed,
                    full,
                    reason,
                })
            }
        }
    }

    /// Opens the file again after a failure, and learns what it holds.
    fn reopen(&mut self) -> Result<Database, Failed> {
        let path = &self.path;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = builder().open(path).map_err(|e| open_error(path, &e))?;
            let meta = read_meta(&db, path)?;
            Ok::<_, OpenError>((db, meta))
        }))
        .unwrap_or_else(|_| Err(damaged(path, "its pages cannot be read")));
        let failed = |reason: String| Failed {
            committed: false,
            full: false,
            reason,
        };
        let (db, meta) = opened.map_err(|e| failed(e.to_string()))?;
        if meta.serial < self.meta.serial {
            return Err(failed(format!("{} went back in time", path.display())));
        }
        self.meta = meta;
        Ok(db)
    }

    /// Gives unused pages of the file back to the file system.
    pub fn shrink(&mut self) -> Result<(), String> {
        let Some(db) = self.db.as_mut() else {
            return Err(format!("{} is not open after a failure", self.path.display()));
        };
        db.compact().map(|_| ()).map_err(|e| e.to_string())
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn write(db: &Database, batch: &Batch, meta: &mut Meta) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    {
        let mut items = txn.open_table(ITEMS)?;
        for item in &batch.put {
            let (record, sum) = encode_item(item);
            items.insert((item.main.unsigned_abs(), item.sub), record.as_slice())?;
            meta.records += 1;
            meta.checksums = meta.checksums.wrapping_add(sum.into());
        }
        for item in &batch.remove {
            let (_, sum) = encode_item(item);
            if items.remove((item.main.unsigned_abs(), item.sub))?.is_some() {
                meta.records = meta.records.saturating_sub(1);
                meta.checksums = meta.checksums.wrapping_sub(sum.into());
            }
        }
        let mut leases = txn.open_table(LEASES)?;
        for (id, ttl) in &batch.leases {
            let old = match ttl {
                Some(ttl) => leases.insert(id, ttl)?,
                None => leases.remove(id)?,
            };
            if let Some(old) = old {
                meta.records = meta.records.saturating_sub(1);
                meta.checksums = meta.checksums.wrapping_sub(lease_checksum(*id, old.value()));
            }
            if let Some(ttl) = ttl {
                meta.records += 1;
                meta.checksums = meta.checksums.wrapping_add(lease_checksum(*id, *ttl));
            }
        }
        meta.revision = batch.revision;
        meta.compacted = batch.compacted;
        meta.serial += 1;
        let mut table = txn.open_table(META)?;
        table.insert(META_KEY, meta.encode().as_slice())?;
    }
    txn.commit()?;
    Ok(())
}

fn read_meta(db: &Database, path: &Path) -> Result<Meta, OpenError> {
    let broken = |e: redb::Error| damaged(path, &e.to_string());
    let txn = db.begin_read().map_err(|e| broken(e.into()))?;
    let table = txn.open_table(META).map_err(|e| broken(e.into()))?;
    let record = table.get(META_KEY).map_err(|e| broken(e.into()))?;
    let record = record.ok_or_else(|| damaged(path, "it has no head record"))?;
    Meta::decode(record.value()).map_err(|e| undecodable(path, &e))
}

fn damaged(path: &Path, what: &str) -> OpenError {
    OpenError::Damaged {
        path: path.into(),
        what: what.into(),
    }
}

fn undecodable(path: &Path, error: &DecodeError) -> OpenError {
    match error {
        DecodeError::Format(found) => OpenError::Format {
            path: path.into(),
            found: *found,
        },
        DecodeError::Wrong(what) => damaged(path, what),
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "errors of others, most of which mean one thing"
)]
fn open_error(path: &Path, error: &DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
            dir: path.parent().unwrap_or(path).into(),
        },
        DatabaseError::Storage(redb::StorageError::Io(e)) => match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged(path, &e.to_string()),
            kind => OpenError::Io {
                act: "open",
                path: path.into(),
                source: match e.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(kind, e.to_string()),
                },
            },
        },
        other => damaged(path, &other.to_string()),
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "errors of others, few of which mean this")]
fn is_full(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(e) => matches!(
            e.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        ),
        _ => false,
    }
}

/// Drawn by the kernel.
pub(crate) fn random_u64() -> io::Result<u64> {
    use std::io::Read;
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// CRC-32C (Castagnoli).
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_more(0, bytes)
}

/// Continues a checksum over more bytes.
pub(crate) fn crc32c_more(sum: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut value = i as u32;
            let mut bit = 0;
            while bit < 8 {
                value = (value >> 1) ^ ((value & 1) * 0x82f6_3b78);
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    let mut sum = !sum;
    for byte in bytes {
        sum = (sum >> 8) ^ TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize];
    }
    !sum
}
