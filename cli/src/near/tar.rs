//! Archives as they pass between a container and this host: written from files here, and unpacked here. What comes from a
//! container is hostile: nothing is written outside the target, no link is followed, devices and the like are passed over,
//! nothing is set-uid, and every number is checked. Called by `cp`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, linkat, mkdirat, openat, statat, symlinkat, unlinkat};

/// Of the format.
const BLOCK: usize = 512;
/// The longest extended header that is read.
const MAX_EXTENDED: u64 = 1 << 20;
/// How deep directories may be.
const MAX_DEPTH: usize = 256;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// To this target.
    Symlink(PathBuf),
    /// To this entry.
    Hardlink(PathBuf),
    /// Of this type, which is not unpacked.
    Other(u8),
}

/// One entry's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub path: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    /// Bytes that follow.
    pub size: u64,
}

/// What an archive is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Entry(Entry),
    /// Bytes of the entry before.
    Data(Vec<u8>),
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is damaged: {why}"))
}

/// Reads an archive as its bytes come.
#[derive(Default)]
pub(super) struct Reader {
    buffer: VecDeque<u8>,
    /// Bytes of the entry, and of the padding after it, that are still to come.
    data: u64,
    padding: u64,
    /// What an extended header says of the next entry.
    next: Extended,
    /// An extended header is being gathered: its type, and what has come.
    gathering: Option<(u8, Vec<u8>)>,
    ended: bool,
}

#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Reader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.buffer.extend(bytes);
        }
    }

    /// Whether the archive was whole.
    pub(super) fn is_whole(&self) -> bool {
        self.ended || (self.data == 0 && self.gathering.is_none() && self.buffer.is_empty())
    }

    fn take(&mut self, most: u64) -> Vec<u8> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        self.buffer.drain(..most).collect()
    }

    /// The next part; None when more bytes are needed, or it has ended.
    pub(super) fn next(&mut self) -> io::Result<Option<Part>> {
        loop {
            if self.ended || (self.buffer.is_empty() && self.data + self.padding > 0) {
                return Ok(None);
            }
            if self.data > 0 {
                let bytes = self.take(self.data);
                self.data -= bytes.len() as u64;
                match &mut self.gathering {
                    Some((_, gathered)) => gathered.extend(bytes),
                    None => return Ok(Some(Part::Data(bytes))),
                }
                continue;
            }
            if let Some((kind, gathered)) = self.gathering.take() {
                self.extended(kind, &gathered)?;
                continue;
            }
            if self.padding > 0 {
                self.padding -= self.take(self.padding).len() as u64;
                continue;
            }
            if self.buffer.len() < BLOCK {
                return Ok(None);
            }
            let block = self.take(BLOCK as u64);
            if block.iter().all(|byte| *byte == 0) {
                self.ended = true;
                self.buffer.clear();
                return Ok(None);
            }
            if let Some(entry) = self.head(&block)? {
                return Ok(Some(Part::Entry(entry)));
            }
        }
    }

    fn head(&mut self, block: &[u8]) -> io::Result<Option<Entry>> {
        let told = number(&block[148..156]).ok_or_else(|| wrong("a checksum is no number"))?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if told != sum {
            return Err(wrong("a checksum does not hold"));
        }
        let kind = block[156];
        let size = number(&block[124..136]).ok_or_else(|| wrong("a size is no number"))?;
        let extends = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let size = if extends {
            size
        } else {
            self.next.size.take().unwrap_or(size)
        };
        // Links and directories have no bytes, whatever they say.
        let holds = extends || matches!(kind, 0 | b'0' | b'7') || !matches!(kind, b'1'..=b'6');
        self.data = if holds { size } else { 0 };
        if self.data > u64::MAX / 2 {
            return Err(wrong("a size is beyond any file"));
        }
        self.padding = self.data.next_multiple_of(BLOCK as u64) - self.data;
        if extends {
            if size > MAX_EXTENDED {
                return Err(wrong("an extended header is too large"));
            }
            self.gathering = Some((kind, Vec::new()));
            return Ok(None);
        }
        let Extended { path, link, size: _ } = std::mem::take(&mut self.next);
        let path = path.unwrap_or_else(|| {
            let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
            let ustar = &block[257..262] == b"ustar" && !prefix.is_empty();
            if ustar {
                [prefix, b"/", name].concat()
            } else {
                name.to_vec()
            }
        });
        let link = as_path(link.unwrap_or_else(|| text(&block[157..257]).to_vec()));
        let path = as_path(path);
        Ok(Some(Entry {
            kind: match kind {
                0 | b'0' | b'7' if path.as_os_str().as_bytes().ends_with(b"/") => Kind::Directory,
                0 | b'0' | b'7' => Kind::File,
                b'1' => Kind::Hardlink(link),
                b'2' => Kind::Symlink(link),
                b'5' => Kind::Directory,
                other => Kind::Other(other),
            },
            mode: number(&block[100..108])
                .and_then(|mode| u32::try_from(mode).ok())
                .unwrap_or(0o644)
                & 0o777,
            size: self.data,
            path,
        }))
    }

    fn extended(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        match kind {
            b'L' => self.next.path = Some(text(bytes).to_vec()),
            b'K' => self.next.link = Some(text(bytes).to_vec()),
            b'x' => {
                let mut rest = bytes;
                while !rest.is_empty() && rest[0] != 0 {
                    // "<length> <key>=<value>\n", the length being of all of it.
                    let bad = || wrong("an extended header is not understood");
                    let space = rest.iter().take(12).position(|byte| *byte == b' ').ok_or_else(bad)?;
                    let length = std::str::from_utf8(&rest[..space])
                        .ok()
                        .and_then(|text| text.parse::<usize>().ok());
                    let length = length
                        .filter(|length| *length > space + 1 && *length <= rest.len())
                        .ok_or_else(bad)?;
                    let record = &rest[space + 1..length - 1];
                    rest = &rest[length..];
                    let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
                    let value = record[equals + 1..].to_vec();
                    match &record[..equals] {
                        b"path" => self.next.path = Some(value),
                        b"linkpath" => self.next.link = Some(value),
                        b"size" => {
                            let size = String::from_utf8(value).ok().and_then(|text| text.parse().ok());
                            self.next.size = Some(size.ok_or_else(bad)?);
                        }
                        _ => {}
                    }
                }
            }
            // What a global header says is about times and comments.
            _ => {}
        }
        Ok(())
    }
}

fn as_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits, or a binary number where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let rest = &field[1..];
        let (high, low) = rest.split_at(rest.len().checked_sub(8)?);
        if field[0] != 0x80 || high.iter().any(|byte| *byte != 0) {
            return None;
        }
        return Some(u64::from_be_bytes(low.try_into().ok()?));
    }
    let digits = text(field);
    let digits = std::str::from_utf8(digits).ok()?.trim_matches(' ');
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(digits, 8).ok()
}

/// Unpacks into a directory of this host.
pub(super) struct Unpacker {
    root: OwnedFd,
    /// What the first name in each path becomes.
    top: std::ffi::OsString,
    file: Option<(File, u64)>,
    /// How many files were written.
    pub files: u64,
    pub bytes: u64,
    /// What was passed over, and why.
    pub passed_over: Vec<String>,
}

impl Unpacker {
    /// Entries `x/...` become `<dir>/<top>/...`.
    pub(super) fn new(dir: &Path, top: &std::ffi::OsStr) -> io::Result<Self> {
        Ok(Self {
            root: File::open(dir)?.into(),
            top: top.to_owned(),
            file: None,
            files: 0,
            bytes: 0,
            passed_over: Vec::new(),
        })
    }

    pub(super) fn take(&mut self, part: Part) -> io::Result<()> {
        match part {
            Part::Data(bytes) => {
                if let Some((file, left)) = &mut self.file {
                    file.write_all(&bytes)?;
                    self.bytes += bytes.len() as u64;
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Ok(())
            }
            Part::Entry(entry) => {
                self.file = None;
                match self.entry(&entry) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        if self.passed_over.len() < 20 {
                            self.passed_over.push(format!("{}: {error}", entry.path.display()));
                        }
                        Ok(())
                    }
                    other => other.map_err(|error| {
                        io::Error::new(error.kind(), format!("write {}: {error}", entry.path.display()))
                    }),
                }
            }
        }
    }

    /// The names below the root that a path leads to. `..`, an absolute path and the like lead nowhere.
    fn names(&self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let mut names = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) if names.is_empty() => {
                    names.push(self.top.clone());
                    // What it was called does not matter.
                    let _ = name;
                }
                Component::Normal(name) => names.push(name.to_owned()),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(refuse("it leads out of the target"));
                }
            }
        }
        if names.len() > MAX_DEPTH {
            return Err(refuse("it is too deep"));
        }
        // The directory itself, as `.`.
        if names.is_empty() {
            names.push(self.top.clone());
        }
        Ok(names)
    }

    /// The directory that holds the last of the names; made where it is missing. No link is followed.
    fn folder(&self, names: &[std::ffi::OsString]) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self.root.try_clone()?;
        for name in &names[..names.len() - 1] {
            match mkdirat(&at, name.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = openat(&at, name.as_os_str(), flags, Mode::empty()).map_err(no_link)?;
        }
        Ok(at)
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let names = self.names(&entry.path)?;
        let name = names
            .last()
            .expect("a path has a name, or is the target itself")
            .clone();
        if let Kind::Other(kind) = entry.kind {
            let why = format!("what is of type `{}` is not copied", char::from(kind).escape_default());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let folder = self.folder(&names)?;
        let mode = Mode::from_raw_mode(entry.mode);
        match &entry.kind {
            Kind::Directory => {
                match mkdirat(&folder, name.as_os_str(), mode | Mode::RWXU) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&folder, name.as_os_str(), flags, Mode::empty())
                    .map(drop)
                    .map_err(no_link)
            }
            Kind::File => {
                clear(&folder, &name)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(&folder, name.as_os_str(), flags, Mode::RUSR | Mode::WUSR)?;
                fchmod(made.as_fd(), mode)?;
                self.files += 1;
                self.file = Some((made.into(), entry.size));
                Ok(())
            }
            Kind::Symlink(target) => {
                clear(&folder, &name)?;
                symlinkat(target.as_path(), &folder, name.as_os_str())?;
                self.files += 1;
                Ok(())
            }
            Kind::Hardlink(of) => {
                let of = self.names(of)?;
                let from = self.folder(&of)?;
                let last = of.last().expect("a path has a name, or is the target itself");
                clear(&folder, &name)?;
                linkat(&from, last.as_os_str(), &folder, name.as_os_str(), AtFlags::empty())?;
                self.files += 1;
                Ok(())
            }
            Kind::Other(_) => Ok(()),
        }
    }

    /// Whether the last file is whole.
    pub(super) fn is_whole(&self) -> bool {
        self.file.as_ref().is_none_or(|(_, left)| *left == 0)
    }
}

/// Where a link or a file stands in the place of a directory.
fn no_link(error: rustix::io::Errno) -> io::Error {
    if matches!(error, rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) {
        return io::Error::new(
            io::ErrorKind::InvalidInput,
            "a link or a file stands in its way, and links are not followed",
        );
    }
    error.into()
}

/// Makes room for a file, by its name: what a link leads to is left alone, and a directory too.
fn clear(folder: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a directory stands in its way",
        )),
        Ok(_) => Ok(unlinkat(folder, name, AtFlags::empty())?),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file or a directory of this host as an archive in which it is called `top`; each piece goes to `out`, which may
/// refuse to take more.
pub(super) fn pack(from: &Path, top: &Path, out: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<(u64, u64)> {
    let mut sums = (0, 0);
    // A person's own path may lead through links; below it none is followed.
    let found = std::fs::metadata(from)?;
    put(from, top, &found, 0, out, &mut sums)?;
    if out(vec![0; 2 * BLOCK]) {
        Ok(sums)
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

fn put(
    from: &Path,
    name: &Path,
    found: &std::fs::Metadata,
    depth: usize,
    out: &mut dyn FnMut(Vec<u8>) -> bool,
    sums: &mut (u64, u64),
) -> io::Result<()> {
    let told = |error: io::Error| io::Error::new(error.kind(), format!("read {}: {error}", from.display()));
    if depth > MAX_DEPTH {
        return Err(told(io::Error::other("it is too deep")));
    }
    let kind = found.file_type();
    let mut send = |bytes: Vec<u8>| {
        if out(bytes) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
    };
    if kind.is_dir() {
        send(head(name, found, b'5', 0, None))?;
        let mut entries = std::fs::read_dir(from)
            .map_err(told)?
            .collect::<io::Result<Vec<_>>>()
            .map_err(told)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let found = std::fs::symlink_metadata(&path).map_err(told)?;
            put(&path, &name.join(entry.file_name()), &found, depth + 1, out, sums)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(from).map_err(told)?;
        sums.0 += 1;
        return send(head(name, found, b'2', 0, Some(&target)));
    }
    if !kind.is_file() {
        // Sockets, pipes and devices.
        return Ok(());
    }
    let mut file = File::open(from).map_err(told)?;
    let size = found.len();
    send(head(name, found, b'0', size, None))?;
    let mut left = size;
    while left > 0 {
        let mut piece = vec![0; usize::try_from(left.min(32 << 10)).unwrap_or(32 << 10)];
        let read = file.read(&mut piece).map_err(told)?;
        if read == 0 {
            return Err(told(io::Error::other("it became shorter meanwhile")));
        }
        piece.truncate(read);
        left -= read as u64;
        send(piece)?;
    }
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    sums.0 += 1;
    sums.1 += size;
    send(vec![0; usize::try_from(padding).unwrap_or(0)])
}

/// An entry's head, with an extended one before it where names are long. What is copied belongs to root in the container.
fn head(name: &Path, found: &std::fs::Metadata, kind: u8, size: u64, link: Option<&Path>) -> Vec<u8> {
    let name = name.as_os_str().as_bytes();
    let link = link.map_or(&b""[..], |link| link.as_os_str().as_bytes());
    let mut out = Vec::new();
    let mut records = Vec::new();
    let mut record = |key: &str, value: &[u8]| {
        let body = key.len() + value.len() + 3;
        // The length counts its own digits.
        let mut length = body + body.to_string().len();
        if length.to_string().len() > body.to_string().len() {
            length += 1;
        }
        records.extend(format!("{length} {key}=").into_bytes());
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if name.len() > 100 {
        record("path", name);
    }
    if link.len() > 100 {
        record("linkpath", link);
    }
    if size > 0o77_777_777_777 {
        record("size", size.to_string().as_bytes());
    }
    if !records.is_empty() {
        out.extend(block(b"extended", 0o644, 0, b'x', records.len() as u64, b""));
        let padding = records.len().next_multiple_of(BLOCK) - records.len();
        out.extend(records);
        out.resize(out.len() + padding, 0);
    }
    let size = if size > 0o77_777_777_777 { 0 } else { size };
    out.extend(block(name, found.mode() & 0o777, found.mtime(), kind, size, link));
    out
}

fn block(name: &[u8], mode: u32, time: i64, kind: u8, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", time.clamp(0, 0o77_777_777_777)).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests;
