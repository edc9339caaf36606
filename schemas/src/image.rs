//! Image references, parsed fully: `[host[:port]/]path[:tag][@sha256:digest]`, by the grammar of the distribution
//! project's `reference` package. The text a person wrote is kept; `registry`, `repository`, `tag` and `digest` are views.
//! And what a reference comes to: the digest that a registry knows it by, with the id that engines give to its content.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("an image reference is 1 to 512 characters long; this one has {0}")]
    Length(usize),
    #[error(
        "`{0}` is not an image path: lower-case letters, digits and single `.`, `_`, `__` or `-` between them, parts separated by `/`"
    )]
    Path(String),
    #[error("`{0}` is not a tag: 1 to 128 letters, digits, `_`, `.` or `-`, not beginning with `.` or `-`")]
    Tag(String),
    #[error("`{0}` is not a digest: `sha256:` and 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error("`{0}` is not a registry: a host name or address, and a port from 1 to 65535")]
    Registry(String),
}

/// A reference to an image: `nginx`, `nginx:1.25`, `registry.example:5000/team/app:2`, `app@sha256:...`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("minLength" = 1, "maxLength" = 512))]
pub struct ImageRef {
    text: String,
    registry: Option<String>,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageRef {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// `host[:port]` as written; None means the engine's default registry.
    #[must_use]
    pub fn registry(&self) -> Option<&str> {
        self.registry.as_deref()
    }
    /// The path without registry, tag or digest: `team/app`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }
    /// The tag as written; with neither tag nor digest the engine takes `latest`.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
    /// Whether the reference may mean another image tomorrow without being changed: no digest, and no tag or `latest`.
    #[must_use]
    pub fn floats(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref().is_none_or(|tag| tag == "latest")
    }
    /// `registry/repository`, as pulls name it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.repository),
            None => self.repository.clone(),
        }
    }
    /// What an image is called on a node that had it from another node, and not from its registry: `name:sha256-...`.
    #[must_use]
    pub fn loaded_as(&self, digest: ImageDigest) -> Self {
        let tag = digest.to_string().replace(':', "-");
        Self {
            text: format!("{}:{tag}", self.name()),
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: Some(tag),
            digest: None,
        }
    }
    /// The digest it names: as a digest, or as [`ImageRef::loaded_as`] says it.
    #[must_use]
    pub fn pinned(&self) -> Option<ImageDigest> {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.parse().ok(),
            (None, Some(tag)) => tag
                .strip_prefix("sha256-")
                .and_then(|hex| format!("sha256:{hex}").parse().ok()),
            (None, None) => None,
        }
    }
    /// Whether both name the same repository of the same registry, with Docker's own spelled out or not.
    #[must_use]
    pub fn is_of_same_repository(&self, other: &Self) -> bool {
        let whole = |image: &'_ Self| {
            let registry = crate::registry::registry_of(image).to_owned();
            let path = image
                .repository
                .strip_prefix("library/")
                .unwrap_or(&image.repository)
                .to_owned();
            (registry, path)
        };
        whole(self) == whole(other)
    }
    /// The same image by a digest instead of its tag: `registry/repository@sha256:...`.
    #[must_use]
    pub fn at(&self, digest: ImageDigest) -> Self {
        let digest = digest.to_string();
        Self {
            text: format!("{}@{digest}", self.name()),
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

/// The SHA-256 of a manifest or of an image's configuration: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDigest([u8; 32]);

/// What a reference with a tag stands for, once and for all instances of an accepted spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagePin {
    /// What the registry calls it: of an image for several architectures, the digest of its index.
    pub digest: ImageDigest,
    /// The image's id in the engine of the node that fetched it first.
    pub id: ImageDigest,
}

impl ImageDigest {
    /// The first 12 of its hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()["sha256:".len()..][..12].to_owned()
    }
}
impl From<[u8; 32]> for ImageDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}
impl FromStr for ImageDigest {
    type Err = ImageError;
    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = || ImageError::Digest(text.chars().take(80).collect());
        let hex = text
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64)
            .ok_or_else(wrong)?;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
                return Err(wrong());
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}
impl TryFrom<String> for ImageDigest {
    type Error = ImageError;
    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}
impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> Self {
        digest.to_string()
    }
}
impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn path_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alnum) || !bytes.last().is_some_and(alnum) {
        return false;
    }
    // Separators: one `.`, one or two `_`, or any number of `-`.
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn registry_ok(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|p| !p.starts_with('+') && p.parse::<u16>().is_ok_and(|n| n > 0));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    port_ok && host_ok
}

impl FromStr for ImageRef {
    type Err = ImageError;
    fn from_str(text: &str) -> Result<Self, ImageError> {
        if text.is_empty() || text.len() > 512 {
            return Err(ImageError::Length(text.chars().count()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest {
            let hex = digest.strip_prefix("sha256:").unwrap_or("");
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                return Err(ImageError::Digest(digest.to_owned()));
            }
        }
        // As the engine decides it: the first part is a registry when it has a dot or a port, or is `localhost`.
        let (registry, rest) = match rest.split_once('/') {
            Some((first, tail)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), tail),
            _ => (None, rest),
        };
        if let Some(registry) = registry
            && !registry_ok(registry)
        {
            return Err(ImageError::Registry(registry.to_owned()));
        }
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(good) || tag.starts_with(['.', '-']) {
                return Err(ImageError::Tag(tag.to_owned()));
            }
        }
        if path.is_empty() || path.len() > 255 || !path.split('/').all(path_part) {
            return Err(ImageError::Path(path.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            registry: registry.map(str::to_owned),
            repository: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}
impl TryFrom<String> for ImageRef {
    type Error = ImageError;
    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}
impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.text
    }
}
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_reference_is_found() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let all: ImageRef = format!("r.example:5000/a/b/c_d__e--f:v1.2@{digest}")
            .parse()
            .expect("a full reference");
        assert_eq!(all.registry(), Some("r.example:5000"));
        assert_eq!(all.repository(), "a/b/c_d__e--f");
        assert_eq!((all.tag(), all.digest()), (Some("v1.2"), Some(digest.as_str())));
        let bare: ImageRef = "nginx".parse().expect("a bare name");
        assert_eq!((bare.registry(), bare.repository(), bare.tag()), (None, "nginx", None));
        assert!(bare.floats());
        let host: ImageRef = "localhost/x".parse().expect("localhost is a registry");
        assert_eq!(host.registry(), Some("localhost"));
        let v6: ImageRef = "[::1]:5000/x:1".parse().expect("an IPv6 registry");
        assert_eq!((v6.registry(), v6.repository()), (Some("[::1]:5000"), "x"));
    }

    #[test]
    fn a_tag_gives_way_to_a_digest() {
        let text = format!("sha256:{}", "0a".repeat(32));
        let digest: ImageDigest = text.parse().expect("a digest");
        assert_eq!(
            (digest.to_string(), digest.short()),
            (text.clone(), "0a0a0a0a0a0a".to_owned())
        );
        let image: ImageRef = "r.example:5000/team/app:1".parse().expect("a reference");
        let pinned = image.at(digest);
        assert_eq!(pinned.as_str(), format!("r.example:5000/team/app@{text}"));
        assert_eq!(pinned.as_str().parse::<ImageRef>().expect("a reference"), pinned);
        let loaded = image.loaded_as(digest);
        assert_eq!(loaded.as_str().parse::<ImageRef>().expect("a reference"), loaded);
        assert_eq!(
            (image.pinned(), pinned.pinned(), loaded.pinned()),
            (None, Some(digest), Some(digest))
        );
        for wrong in [
            "",
            "sha256:",
            "sha256:0A",
            &text[..70],
            &text.replace("0a", "0A"),
            &text.replace("256", "512"),
        ] {
            assert!(wrong.parse::<ImageDigest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_reference_names_the_part_that_is_wrong() {
        let parse = |text: &str| text.parse::<ImageRef>().expect_err(text);
        assert!(matches!(parse("Nginx"), ImageError::Path(_)));
        assert!(matches!(parse("a..b"), ImageError::Path(_)));
        assert!(matches!(parse("a///b"), ImageError::Path(_)));
        assert!(matches!(parse("a:"), ImageError::Tag(_)));
        assert!(matches!(parse("a:-x"), ImageError::Tag(_)));
        assert!(matches!(parse("a@sha256:12"), ImageError::Digest(_)));
        assert!(matches!(parse("h.x:70000/a"), ImageError::Registry(_)));
        assert!(matches!(parse(""), ImageError::Length(0)));
        assert!(matches!(parse("a b"), ImageError::Path(_)));
    }
}
