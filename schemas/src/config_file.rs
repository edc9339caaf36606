//! The kind `ConfigFile`: a file that services mount, and the words for its editions. Its content stands in the document,
//! or, above 128 KiB, in parts under `blobs/` that are named by their digest. Whoever reads content checks it against the
//! digest of the edition that was accepted. A later kind whose content is sealed has editions of the same shape.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::records::{Digest, HexError};

/// The most a document holds of a file itself, in bytes; JSON may need six times as much to say it.
pub const MAX_INLINE_BYTES: usize = 128 << 10;
/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 8 << 20;
/// The size of all parts of a blob but the last, as `reeve upload` writes them.
pub const PART_BYTES: usize = 512 << 10;
/// The most parts a blob is read from, whoever wrote them.
pub const MAX_PARTS: u32 = 1_024;

/// A file's content: exactly one of `text`, `base64`, or `digest` with `size`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigFileSpec {
    /// The content as text, stored as UTF-8; at most 128 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 131_072))]
    pub text: Option<String>,
    /// The content in base64, for what is no text; spaces and line ends count for nothing; at most 128 KiB of content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 262_144))]
    pub base64: Option<String>,
    /// The SHA-256 of content that is stored in parts under `blobs/`: `sha256:` and 64 digits. `reeve upload` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<FileDigest>,
    /// How many bytes that content has: up to 8,388,608 (8 MiB). Needed with `digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 8_388_608))]
    pub size: Option<u64>,
}

/// Where a file's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the document.
    Inline(Vec<u8>),
    /// Under `blobs/`.
    Blob { digest: FileDigest, size: u64 },
}

/// Why a file has no content that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("a file has exactly one of `text`, `base64` and `digest`; this one has {0}")]
    Count(usize),
    #[error("the content is no base64")]
    NotBase64(#[source] base64::DecodeError),
    #[error("`digest` needs `size`, and only `digest` does")]
    Size,
    #[error("the content has {0} bytes; a document holds at most {MAX_INLINE_BYTES}")]
    TooLong(usize),
}

impl ConfigFileSpec {
    /// A document's content for these bytes, where it can hold them: text where it is text, else base64.
    #[must_use]
    pub fn inline(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_INLINE_BYTES {
            return None;
        }
        let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.chars().all(|c| plain(c) && c != '\u{feff}'));
        Some(match text {
            Some(text) => Self {
                text: Some(text.to_owned()),
                ..Self::default()
            },
            None => Self {
                base64: Some(STANDARD.encode(bytes)),
                ..Self::default()
            },
        })
    }

    /// A document for content that stands under `blobs/`.
    #[must_use]
    pub fn blob(digest: FileDigest, size: u64) -> Self {
        Self {
            digest: Some(digest),
            size: Some(size),
            ..Self::default()
        }
    }

    /// Its content, or where that is.
    ///
    /// # Errors
    /// What admission refuses too.
    pub fn content(&self) -> Result<Content, ContentError> {
        let Self {
            text,
            base64,
            digest,
            size,
        } = self;
        let inline = |bytes: Vec<u8>| match bytes.len() {
            _ if size.is_some() => Err(ContentError::Size),
            length if length > MAX_INLINE_BYTES => Err(ContentError::TooLong(length)),
            _ => Ok(Content::Inline(bytes)),
        };
        match (text, base64, digest) {
            (Some(text), None, None) => inline(text.clone().into_bytes()),
            (None, Some(coded), None) => {
                let coded: Vec<u8> = coded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
                inline(STANDARD.decode(coded).map_err(ContentError::NotBase64)?)
            }
            (None, None, Some(digest)) => match size {
                Some(size) => Ok(Content::Blob {
                    digest: *digest,
                    size: *size,
                }),
                None => Err(ContentError::Size),
            },
            (text, base64, digest) => Err(ContentError::Count(
                usize::from(text.is_some()) + usize::from(base64.is_some()) + usize::from(digest.is_some()),
            )),
        }
    }

    /// The digest of its content and how many bytes it has; None when it has none that can be used.
    #[must_use]
    pub fn identity(&self) -> Option<(FileDigest, u64)> {
        match self.content().ok()? {
            Content::Inline(bytes) => Some((FileDigest::of(&bytes), bytes.len() as u64)),
            Content::Blob { digest, size } => Some((digest, size)),
        }
    }
}

/// One edition of a file, as an accepted service refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEdition {
    /// The number of the file's accepted record: with namespace, kind and name, its key.
    pub n: u64,
    /// Of the content.
    pub digest: FileDigest,
    /// Bytes.
    pub size: u64,
}

/// The SHA-256 of a file's content: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileDigest([u8; 32]);

impl FileDigest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*Digest::of(bytes).bytes())
    }

    /// Its hexadecimal digits alone, as keys and file names have them.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The digest that these 64 hexadecimal digits stand for.
    ///
    /// # Errors
    /// Any other text.
    pub fn from_hex(text: &str) -> Result<Self, HexError> {
        text.parse::<Digest>().map(|digest| Self(*digest.bytes()))
    }
}

/// Why a text is no file's digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileDigestError {
    #[error("a digest begins with `sha256:`")]
    Algorithm,
    #[error("read the digest")]
    Hex(#[from] HexError),
}

impl FromStr for FileDigest {
    type Err = FileDigestError;
    fn from_str(text: &str) -> Result<Self, FileDigestError> {
        let digits = text.strip_prefix("sha256:").ok_or(FileDigestError::Algorithm)?;
        Ok(Self::from_hex(digits)?)
    }
}
impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("sha256:{}", self.hex()))
    }
}
impl fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for FileDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for FileDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
impl JsonSchema for FileDigest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FileDigest".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^sha256:[0-9a-f]{64}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_one_identity_however_it_is_written() {
        let text = ConfigFileSpec::inline(b"listen 80;\n").unwrap();
        assert!(text.text.is_some());
        let coded = ConfigFileSpec {
            base64: Some("bGlzdGVu\n IDgwOwo=\n".to_owned()),
            ..ConfigFileSpec::default()
        };
        let (digest, size) = text.identity().unwrap();
        assert_eq!(coded.identity(), Some((digest, size)));
        assert_eq!(ConfigFileSpec::blob(digest, size).identity(), Some((digest, size)));
        assert_eq!(size, 11);
    }

    #[test]
    fn what_is_no_plain_text_is_written_in_base64_and_comes_back() {
        for bytes in [
            &b"\xff\x00\x01"[..],
            b"",
            b"a\r\nb",
            "\u{feff}x".as_bytes(),
            "ä\tö\n".as_bytes(),
        ] {
            let spec = ConfigFileSpec::inline(bytes).unwrap();
            assert_eq!(spec.content(), Ok(Content::Inline(bytes.to_vec())));
        }
        assert_eq!(ConfigFileSpec::inline(&vec![b'x'; MAX_INLINE_BYTES + 1]), None);
    }

    #[test]
    fn a_file_has_exactly_one_content() {
        let mut spec = ConfigFileSpec::default();
        assert_eq!(spec.content(), Err(ContentError::Count(0)));
        spec.text = Some("a".to_owned());
        spec.size = Some(1);
        assert_eq!(spec.content(), Err(ContentError::Size));
        spec.size = None;
        spec.base64 = Some("YQ==".to_owned());
        assert_eq!(spec.content(), Err(ContentError::Count(2)));
        spec.text = None;
        spec.base64 = Some("%%".to_owned());
        assert!(matches!(spec.content(), Err(ContentError::NotBase64(_))));
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = FileDigest::of(b"x");
        assert_eq!(digest.to_string().parse::<FileDigest>(), Ok(digest));
        assert!("2d711642".parse::<FileDigest>().is_err());
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<FileDigest>().is_err());
    }
}
