//! The file of `reeve admin backup`: lines that people can read, each with its own sum, and a sum of all at the end. Written
//! and read here alone. Reading believes nothing: bytes of anybody's end in a value or in an error that names the line, and a
//! file that was cut short or changed in any place is refused before anything is done with it.
//!
//! ```text
//! <16 hex digits> {"format":"reeve-backup","version":1,"cluster":"...","restoreEpoch":1,"revision":812,...}
//! <16 hex digits> {"key":"desired/default/service/web","value":"apiVersion: ..."}
//! <16 hex digits> {"key":"sealed/default/secret/db","base64":"..."}
//! <16 hex digits> {"end":2,"sha256":"..."}
//! ```
//!
//! The digits are the first of the SHA-256 of the rest of the line, its newline left out; the last line's are those of all digits
//! before it, one after the other. Keys stand in order and are told without the cluster's prefix.

use std::io::{BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::records::{ClusterId, ClusterMarker, Digest, Record as _};
use serde::{Deserialize, Serialize};

/// What a reader of this release understands.
pub const VERSION: u32 = 1;
const FORMAT: &str = "reeve-backup";
/// A value has 1 MiB at most, and at most doubles here.
const MAX_LINE: u64 = 4 << 20;
/// More than any cluster has.
const MAX_KEYS: u64 = 20_000_000;
const MAX_NUMBER: u64 = 1 << 53;
const SUM: usize = 16;
const MARKER: &[u8] = b"cluster";

/// The first line: what the file is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub format: String,
    pub version: u32,
    pub cluster: ClusterId,
    pub restore_epoch: u64,
    /// The store's revision at which all of it was read.
    pub revision: i64,
    /// Of the records.
    pub schema_version: u32,
    /// The prefix of the keys where it was made.
    pub prefix: String,
    pub keys: u64,
    /// When, on the clock of who made it: for people.
    pub made: String,
    /// The release that made it: for people.
    pub reeve: String,
}

impl Header {
    pub fn new(marker: &ClusterMarker, revision: i64, prefix: &str, keys: usize) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            cluster: marker.id.clone(),
            restore_epoch: marker.restore_epoch,
            revision,
            schema_version: schemas::records::SCHEMA_VERSION,
            prefix: prefix.to_owned(),
            keys: keys as u64,
            made: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            reeve: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: u64,
    sha256: Digest,
}

/// A key below the prefix, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// A whole file that was found to be in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    pub header: Header,
    pub marker: ClusterMarker,
    /// All keys but the marker's, in order.
    pub entries: Vec<Entry>,
}

/// Why a file is no backup that counts.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("it cannot be read")]
    Io(#[from] std::io::Error),
    #[error("it is not a backup of reeve's")]
    Foreign,
    #[error("it is of format {found}, and this release reads up to {VERSION}")]
    Newer { found: u32 },
    #[error("it is damaged at line {line}: {why}")]
    Damaged { line: u64, why: String },
    #[error("it was cut short after line {line}: its last line is missing")]
    Cut { line: u64 },
}

impl FileError {
    /// What a person can do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Io(_) => "see that the file is there, and that you may read it",
            Self::Foreign => {
                "name a file that `reeve admin backup` wrote; a snapshot of etcd's goes back with etcd's own tools"
            }
            Self::Newer { .. } => "use the release of reeve that made it, or a later one",
            Self::Damaged { .. } | Self::Cut { .. } => {
                "use another copy of it, or an earlier backup; nothing was written"
            }
        }
    }
}

fn sum(text: &[u8]) -> String {
    let digest = Digest::of(text).to_string();
    digest.chars().filter(char::is_ascii_hexdigit).take(SUM).collect()
}

struct Writer<W> {
    out: W,
    sums: Vec<u8>,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    fn line(&mut self, value: &impl Serialize) -> std::io::Result<()> {
        let text = serde_json::to_vec(value).map_err(std::io::Error::other)?;
        let sum = sum(&text);
        self.sums.extend_from_slice(sum.as_bytes());
        for part in [sum.as_bytes(), b" ", &text, b"\n"] {
            self.out.write_all(part)?;
            self.bytes += part.len() as u64;
        }
        Ok(())
    }
}

/// Text as it is, where that is no longer than twice; else base64.
fn text_of(bytes: &[u8]) -> Result<String, String> {
    let as_base64 = || STANDARD.encode(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| as_base64())?;
    let escaped: usize = text
        .chars()
        .map(|c| match c {
            '"' | '\\' | '\n' | '\r' | '\t' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        })
        .sum();
    if escaped <= 2 * bytes.len() {
        Ok(text.to_owned())
    } else {
        Err(as_base64())
    }
}

/// Writes a whole file; how many bytes it has.
///
/// # Errors
/// When `out` does not take it.
pub fn write<'a>(
    out: impl Write,
    header: &Header,
    entries: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> std::io::Result<u64> {
    let mut writer = Writer {
        out,
        sums: Vec::new(),
        bytes: 0,
    };
    writer.line(header)?;
    let mut number = 0;
    for (key, value) in entries {
        let (key, key_base64) = split(text_of(key));
        let (value, base64) = split(text_of(value));
        writer.line(&Line {
            key,
            key_base64,
            value,
            base64,
        })?;
        number += 1;
    }
    let sha256 = Digest::of(&writer.sums);
    writer.line(&End { end: number, sha256 })?;
    writer.out.flush()?;
    Ok(writer.bytes)
}

fn split(text: Result<String, String>) -> (Option<String>, Option<String>) {
    match text {
        Ok(text) => (Some(text), None),
        Err(base64) => (None, Some(base64)),
    }
}

struct Lines<R> {
    from: R,
    number: u64,
    sums: Vec<u8>,
    /// Of the lines before the last one.
    before: usize,
}

impl<R: BufRead> Lines<R> {
    fn damaged(&self, why: impl Into<String>) -> FileError {
        FileError::Damaged {
            line: self.number,
            why: why.into(),
        }
    }

    /// The next line's JSON, its sum compared. None at the end of the file.
    fn next(&mut self) -> Result<Option<Vec<u8>>, FileError> {
        let mut line = Vec::new();
        (&mut self.from).take(MAX_LINE + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if line.len() as u64 > MAX_LINE {
            let why = format!("it is longer than {MAX_LINE} bytes");
            return Err(if self.number == 1 {
                FileError::Foreign
            } else {
                self.damaged(why)
            });
        }
        if line.pop() != Some(b'\n') {
            return Err(match self.number {
                1 => FileError::Foreign,
                _ => FileError::Cut { line: self.number - 1 },
            });
        }
        let Some((told, text)) = line
            .split_at_checked(SUM)
            .and_then(|(sum, rest)| Some((sum, rest.strip_prefix(b" ")?)))
        else {
            return Err(if self.number == 1 {
                FileError::Foreign
            } else {
                self.damaged("it begins with no sum")
            });
        };
        if self.number == 1 && !told.iter().all(u8::is_ascii_hexdigit) {
            return Err(FileError::Foreign);
        }
        if told != sum(text).as_bytes() {
            return Err(self.damaged("its sum is not that of its text"));
        }
        self.before = self.sums.len();
        self.sums.extend_from_slice(told);
        Ok(Some(text.to_vec()))
    }
}

/// Reads a whole file and checks all of it.
///
/// # Errors
/// When it is not whole, with the place.
pub fn read(from: impl BufRead) -> Result<Backup, FileError> {
    let mut lines = Lines {
        from,
        number: 0,
        sums: Vec::new(),
        before: 0,
    };
    let first = lines.next()?.ok_or(FileError::Foreign)?;
    let header = header(&first, &lines)?;
    let mut marker = None;
    let mut entries: Vec<Entry> = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    loop {
        let Some(text) = lines.next()? else {
            return Err(FileError::Cut { line: lines.number });
        };
        if text.starts_with(b"{\"end\"") {
            let end: End = serde_json::from_slice(&text).map_err(|error| lines.damaged(error.to_string()))?;
            let number = entries.len() as u64 + u64::from(marker.is_some());
            if end.sha256 != Digest::of(&lines.sums[..lines.before]) {
                return Err(
                    lines.damaged("its sum is not that of the lines before it: some are missing, or in another order")
                );
            }
            if end.end != number || header.keys != number {
                return Err(lines.damaged(format!(
                    "the file holds {number} keys, and says {} and {}",
                    header.keys, end.end
                )));
            }
            break;
        }
        let entry = entry(&text, &lines)?;
        if last.as_ref().is_some_and(|last| *last >= entry.key) {
            return Err(lines.damaged("its key is not after the one before it"));
        }
        last = Some(entry.key.clone());
        if entry.key == MARKER {
            let read = ClusterMarker::decode(&entry.value);
            let read =
                read.map_err(|error| lines.damaged(format!("the cluster's marker: {}", runtime::chain(&error))))?;
            if read.id != header.cluster || read.restore_epoch != header.restore_epoch {
                return Err(lines.damaged("the cluster's marker is not the one that the first line tells of"));
            }
            marker = Some(read);
        } else {
            entries.push(entry);
        }
        if entries.len() as u64 > header.keys {
            return Err(lines.damaged(format!(
                "there are more keys than the {} of the first line",
                header.keys
            )));
        }
    }
    if lines.next()?.is_some() {
        return Err(lines.damaged("there is more after the last line"));
    }
    let Some(marker) = marker else {
        return Err(lines.damaged("the cluster's marker is not in it"));
    };
    Ok(Backup {
        header,
        marker,
        entries,
    })
}

fn header<R: BufRead>(text: &[u8], lines: &Lines<R>) -> Result<Header, FileError> {
    #[derive(Deserialize)]
    struct What {
        format: String,
        version: u32,
    }
    let what: What = serde_json::from_slice(text).map_err(|_| FileError::Foreign)?;
    if what.format != FORMAT {
        return Err(FileError::Foreign);
    }
    if what.version > VERSION {
        return Err(FileError::Newer { found: what.version });
    }
    let header: Header = serde_json::from_slice(text).map_err(|error| lines.damaged(error.to_string()))?;
    if header.schema_version > schemas::records::SCHEMA_VERSION {
        return Err(lines.damaged(format!(
            "its records are of schema version {}, and this release reads up to {}",
            header.schema_version,
            schemas::records::SCHEMA_VERSION
        )));
    }
    let sane =
        header.version >= 1 && header.keys <= MAX_KEYS && header.restore_epoch <= MAX_NUMBER && header.revision >= 0;
    if sane {
        Ok(header)
    } else {
        Err(lines.damaged("it has a number beyond all bounds"))
    }
}

fn entry<R: BufRead>(text: &[u8], lines: &Lines<R>) -> Result<Entry, FileError> {
    let line: Line = serde_json::from_slice(text).map_err(|error| lines.damaged(error.to_string()))?;
    let bytes = |text: Option<String>, base64: Option<String>, what: &str| match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map_err(|error| lines.damaged(format!("its {what} is no base64: {error}"))),
        (Some(_), Some(_)) | (None, None) => Err(lines.damaged(format!("it does not say one {what}"))),
    };
    let key = bytes(line.key, line.key_base64, "key")?;
    let value = bytes(line.value, line.base64, "value")?;
    if key.is_empty() || key.len() > 2 * runtime::store::MAX_KEY_BYTES {
        return Err(lines.damaged("its key is empty or too long"));
    }
    Ok(Entry { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marker() -> ClusterMarker {
        ClusterMarker::first(ClusterId::from_random([7; 16]))
    }

    fn written(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let marker = marker();
        let mut all: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = entries.iter().cloned().collect();
        all.insert(MARKER.to_vec(), marker.encode());
        let mut bytes = Vec::new();
        let header = Header::new(&marker, 812, "/reeve/", all.len());
        let told = write(
            &mut bytes,
            &header,
            all.iter().map(|(key, value)| (key.as_slice(), value.as_slice())),
        );
        assert_eq!(told.expect("memory takes it"), bytes.len() as u64);
        bytes
    }

    fn entries() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let key = prop_oneof![
            "[a-z/]{1,20}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 1..20)
        ];
        let value = prop_oneof![
            ".{0,40}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..60)
        ];
        prop::collection::vec((key, value), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_written_is_read_whatever_bytes_it_has(entries in entries()) {
            let read = read(written(&entries).as_slice()).expect("it is whole");
            let mut all: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = entries.into_iter().collect();
            all.remove(MARKER);
            let found: std::collections::BTreeMap<_, _> = read.entries.into_iter().map(|one| (one.key, one.value)).collect();
            prop_assert_eq!(found, all);
            prop_assert_eq!(read.marker, marker());
        }

        #[test]
        fn no_altered_missing_or_added_byte_is_taken(
            entries in entries(),
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
            how in 0..4_u8,
        ) {
            let whole = written(&entries);
            let at = at.index(whole.len());
            let mut bytes = whole.clone();
            match how {
                0 => bytes[at] = to,
                1 => { bytes.remove(at); }
                2 => bytes.truncate(at),
                _ => bytes.insert(at, to),
            }
            prop_assert_eq!(read(bytes.as_slice()).is_ok(), bytes == whole);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read(bytes.as_slice()).is_err());
        }

        #[test]
        fn no_lines_with_right_sums_break_it(lines in prop::collection::vec("[ -~]{0,60}", 0..6)) {
            // Whoever makes a file can make its sums.
            let mut bytes = Vec::new();
            let mut writer = Writer { out: &mut bytes, sums: Vec::new(), bytes: 0 };
            let header = Header::new(&marker(), 1, "/reeve/", lines.len());
            writer.line(&header).expect("memory takes it");
            for line in &lines {
                let text = format!("{} {line}\n", sum(line.as_bytes()));
                writer.out.extend_from_slice(text.as_bytes());
            }
            prop_assert!(read(bytes.as_slice()).is_err());
        }
    }

    #[test]
    fn lines_in_another_order_or_of_another_cluster_are_refused_though_each_is_whole() {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..4_u8).map(|n| (vec![b'd', b'0' + n], vec![n; 9])).collect();
        let whole = written(&pairs);
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let mut swapped = lines.clone();
        swapped.swap(2, 3);
        assert!(matches!(
            read(swapped.concat().as_slice()),
            Err(FileError::Damaged { line: 4, .. })
        ));
        let mut twice = lines.clone();
        twice.insert(3, lines[2]);
        assert!(matches!(
            read(twice.concat().as_slice()),
            Err(FileError::Damaged { line: 4, .. })
        ));
        let other = ClusterMarker::first(ClusterId::from_random([8; 16]));
        let mut bytes = Vec::new();
        let header = Header::new(&other, 1, "/reeve/", 1);
        let encoded = marker().encode();
        write(&mut bytes, &header, std::iter::once((MARKER, encoded.as_slice()))).expect("memory takes it");
        assert!(matches!(
            read(bytes.as_slice()),
            Err(FileError::Damaged { line: 2, .. })
        ));
        let newer = String::from_utf8(whole.clone()).expect("text");
        let first = newer.lines().next().expect("a line")[SUM + 1..].replace("\"version\":1", "\"version\":2");
        let newer = format!("{} {first}\n", sum(first.as_bytes()));
        assert!(matches!(read(newer.as_bytes()), Err(FileError::Newer { found: 2 })));
    }

    #[test]
    fn a_line_without_end_fills_no_memory() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(read(endless), Err(FileError::Foreign)));
        let whole = written(&[]);
        let first = whole.split_inclusive(|byte| *byte == b'\n').next().expect("a line");
        let endless = std::io::BufReader::new(first.chain(std::io::repeat(b'x')));
        assert!(matches!(read(endless), Err(FileError::Damaged { line: 2, .. })));
    }
}
