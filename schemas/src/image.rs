//! Image references, parsed fully: `[host[:port]/]path[:tag][@sha256:digest]`, by the grammar of the distribution
//! project's `reference` package. The text a person wrote is kept; `registry`, `repository`, `tag` and `digest` are views.

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
