//! An image's archive as another node sends it (`docker save` of an id), looked through while it is passed on to the engine. It
//! is passed on whole only if it holds one image, without names, whose configuration has the expected digest: that is the
//! image's id, and the engine itself compares the layers with it. What tells names and images (`manifest.json`,
//! `index.json`) and all that follows is held back until the end, so that a bad archive is never complete.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use schemas::image::ImageDigest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// One block of a tar archive.
const BLOCK: usize = 512;
/// The most that is held back.
const MAX_HELD: usize = 16 << 20;
/// The most that a description may have.
const MAX_TEXT: u64 = 1 << 20;
/// Files of one image; 127 layers have four each.
const MAX_FILES: usize = 4_096;
/// Annotations by which an image would get a name.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Why an archive is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it sends is not the image: {0}")]
pub struct NotTheImage(String);

fn not(why: impl Into<String>) -> NotTheImage {
    NotTheImage(why.into())
}

/// What a file is looked through for.
enum Body {
    /// Its digest.
    Hashed(String, Sha256),
    /// Its text: a description, or an extended header.
    Kept(String, Vec<u8>),
}

enum State {
    /// The next header, so far.
    Header(Vec<u8>),
    /// What is left of a file, and of its padding.
    File { body: Body, left: u64, padding: u64 },
    /// After the end marker only zeros come.
    End,
}

/// An archive on its way.
pub struct Archive {
    id: ImageDigest,
    state: State,
    held: Option<BytesMut>,
    digests: BTreeMap<String, ImageDigest>,
    texts: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    /// One that must hold the image with this id.
    #[must_use]
    pub fn new(id: ImageDigest) -> Self {
        Self {
            id,
            state: State::Header(Vec::new()),
            held: None,
            digests: BTreeMap::new(),
            texts: BTreeMap::new(),
        }
    }

    /// The next bytes; answers what may be passed on.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Bytes, NotTheImage> {
        let mut out = BytesMut::new();
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::Header(read) => {
                    let used = (BLOCK - read.len()).min(bytes.len());
                    read.extend_from_slice(&bytes[..used]);
                    if read.len() == BLOCK {
                        let header = std::mem::take(read);
                        self.state = self.begin(&header)?;
                        // Only once it is known what it begins.
                        self.put(&mut out, &header)?;
                    }
                    used
                }
                State::File { body, left, padding } => {
                    let used = usize::try_from(*left + *padding).unwrap_or(usize::MAX).min(bytes.len());
                    let of_file = usize::try_from(*left).unwrap_or(usize::MAX).min(used);
                    match body {
                        Body::Hashed(_, hash) => hash.update(&bytes[..of_file]),
                        Body::Kept(_, text) => text.extend_from_slice(&bytes[..of_file]),
                    }
                    *left -= of_file as u64;
                    *padding -= (used - of_file) as u64;
                    self.put(&mut out, &bytes[..used])?;
                    self.end_of_file()?;
                    used
                }
                State::End if bytes.iter().any(|byte| *byte != 0) => return Err(not("something follows its end")),
                State::End => {
                    self.put(&mut out, bytes)?;
                    bytes.len()
                }
            };
            bytes = &bytes[used..];
        }
        Ok(out.freeze())
    }

    fn put(&mut self, out: &mut BytesMut, bytes: &[u8]) -> Result<(), NotTheImage> {
        match &mut self.held {
            None => out.extend_from_slice(bytes),
            Some(held) if held.len() + bytes.len() <= MAX_HELD => held.extend_from_slice(bytes),
            Some(_) => return Err(not("too much follows its description")),
        }
        Ok(())
    }

    /// What a header begins.
    fn begin(&mut self, header: &[u8]) -> Result<State, NotTheImage> {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(State::End);
        }
        let text = |from: usize, to: usize| {
            let field = &header[from..to];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            std::str::from_utf8(&field[..end]).map_err(|_| not("a name of its files is not text"))
        };
        let octal = text(124, 136)?.trim_matches([' ', '\0']);
        let size = u64::from_str_radix(octal, 8).map_err(|_| not("a size of its files is no number"))?;
        let prefix = if &header[257..262] == b"ustar" {
            text(345, 500)?
        } else {
            ""
        };
        let name = match (prefix, text(0, 100)?) {
            ("", name) => name.to_owned(),
            (prefix, name) => format!("{prefix}/{name}"),
        };
        let odd = name.starts_with('/') || name.split('/').any(|part| part == "..") || name == "repositories";
        if odd || self.digests.len() + self.texts.len() > MAX_FILES {
            return Err(not(format!("it has the file `{}`", crate::engine::clean(&name, 80))));
        }
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let file = |body| State::File {
            body,
            left: size,
            padding,
        };
        let state = match header[156] {
            b'0' | 0 if name == "manifest.json" || name == "index.json" => {
                if size > MAX_TEXT || self.texts.contains_key(&name) {
                    return Err(not(format!("its {name} is too large, or there twice")));
                }
                self.held.get_or_insert_default();
                file(Body::Kept(name, Vec::new()))
            }
            b'0' | 0 => file(Body::Hashed(name, Sha256::new())),
            b'5' if size == 0 => State::Header(Vec::new()),
            // Older engines write a layer once, and lead to it from where it is used again.
            b'2' if size == 0 && is_layer(text(157, 257)?) => State::Header(Vec::new()),
            b'x' if size <= MAX_TEXT => file(Body::Kept("x".to_owned(), Vec::new())),
            _ => {
                return Err(not(format!(
                    "`{}` in it is no plain file",
                    crate::engine::clean(&name, 80)
                )));
            }
        };
        Ok(match state {
            State::File { body, left: 0, .. } => {
                self.known(body)?;
                State::Header(Vec::new())
            }
            other @ (State::Header(_) | State::File { .. } | State::End) => other,
        })
    }

    fn end_of_file(&mut self) -> Result<(), NotTheImage> {
        if !matches!(
            self.state,
            State::File {
                left: 0,
                padding: 0,
                ..
            }
        ) {
            return Ok(());
        }
        if let State::File { body, .. } = std::mem::replace(&mut self.state, State::Header(Vec::new())) {
            self.known(body)?;
        }
        Ok(())
    }

    fn known(&mut self, body: Body) -> Result<(), NotTheImage> {
        match body {
            // What comes later under the same name would count instead.
            Body::Hashed(name, hash) => {
                let digest = ImageDigest::from(<[u8; 32]>::from(hash.finalize()));
                if self.digests.insert(name, digest).is_some() {
                    return Err(not("a file is there twice"));
                }
            }
            Body::Kept(name, text) if name == "x" => {
                let text = String::from_utf8_lossy(&text);
                if ["path=", "linkpath=", "size=", "GNU."]
                    .iter()
                    .any(|key| text.contains(key))
                {
                    return Err(not("a file of it has a second name"));
                }
            }
            Body::Kept(name, text) => drop(self.texts.insert(name, text)),
        }
        Ok(())
    }

    /// The end: what was held back, if all is right.
    pub fn finish(self) -> Result<Bytes, NotTheImage> {
        let whole = match &self.state {
            State::End => true,
            State::Header(read) => read.is_empty(),
            State::File { .. } => false,
        };
        if !whole {
            return Err(not("it breaks off"));
        }
        let read = |name: &str| -> Result<Option<Value>, NotTheImage> {
            let Some(text) = self.texts.get(name) else {
                return Ok(None);
            };
            let value = serde_json::from_slice(text).map_err(|_| not(format!("its {name} cannot be read")))?;
            Ok(Some(value))
        };
        let manifest = read("manifest.json")?.ok_or_else(|| not("it has no manifest.json"))?;
        let [image] = manifest.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(not("it is not one image"));
        };
        let unnamed = match &image["RepoTags"] {
            Value::Null => true,
            Value::Array(tags) => tags.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => false,
        };
        if !unnamed || read("index.json")?.as_ref().is_some_and(names_something) {
            return Err(not("it brings names with it"));
        }
        let config = image["Config"].as_str().and_then(|config| self.digests.get(config));
        if config != Some(&self.id) {
            return Err(not("its configuration is another image's"));
        }
        Ok(self.held.unwrap_or_default().freeze())
    }
}

/// Whether a link leads to a layer of the same archive: `../<id>/layer.tar`.
fn is_layer(link: &str) -> bool {
    let id = link
        .strip_prefix("../")
        .and_then(|rest| rest.strip_suffix("/layer.tar"));
    id.is_some_and(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a description anywhere gives a name. serde_json bounds its depth.
fn names_something(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| NAMES.contains(&key.as_str()) || names_something(value)),
        Value::Array(all) => all.iter().any(names_something),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..262].copy_from_slice(b"ustar");
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(BLOCK), 0);
        header
    }

    fn config() -> (&'static [u8], ImageDigest) {
        let config = br#"{"rootfs":{}}"#;
        (config, ImageDigest::from(<[u8; 32]>::from(Sha256::digest(config))))
    }

    /// An archive as an engine writes it, with this manifest.
    fn archive(manifest: &str, more: &[Vec<u8>]) -> Vec<u8> {
        let layer = "a".repeat(64);
        let mut all = vec![
            file(&format!("{layer}/"), b'5', "", b""),
            file(&format!("{layer}/layer.tar"), b'0', "", &[7; 1_500]),
            file("b/layer.tar", b'2', &format!("../{layer}/layer.tar"), b""),
            file("config.json", b'0', "", config().0),
        ];
        all.extend_from_slice(more);
        all.push(file("manifest.json", b'0', "", manifest.as_bytes()));
        let mut bytes = all.concat();
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    /// What is passed on in the end, with the bytes coming in pieces of this size; and what of it was before the end.
    fn pass(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize), NotTheImage> {
        let mut archive = Archive::new(config().1);
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            out.extend_from_slice(&archive.take(piece)?);
        }
        let before = out.len();
        out.extend_from_slice(&archive.finish()?);
        Ok((out, before))
    }

    const GOOD: &str = r#"[{"Config":"config.json","RepoTags":null,"Layers":[]}]"#;

    #[test]
    fn a_good_archive_is_passed_on_as_it_came_and_its_end_only_when_it_is_known_to_be_good() {
        let bytes = archive(GOOD, &[]);
        for piece in [1, 7, 511, 512, 513, 4_096, bytes.len()] {
            let (out, before) = pass(&bytes, piece).expect("it is good");
            assert_eq!(out, bytes, "in pieces of {piece}");
            assert!(before + 3 * BLOCK < bytes.len(), "the description is held back");
        }
    }

    #[test]
    fn whatever_is_not_just_that_image_is_refused() {
        let bad = [
            archive(r#"[{"Config":"config.json","RepoTags":["reeve/hello:1"]}]"#, &[]),
            archive(r#"[{"Config":"other.json","RepoTags":null}]"#, &[]),
            archive(r#"[{"Config":"config.json"},{"Config":"config.json"}]"#, &[]),
            archive("[]", &[]),
            archive("nonsense", &[]),
            archive(GOOD, &[file("repositories", b'0', "", b"{}")]),
            archive(GOOD, &[file("../out", b'0', "", b"")]),
            archive(GOOD, &[file("/etc/passwd", b'0', "", b"x")]),
            archive(GOOD, &[file("c/layer.tar", b'2', "/etc/passwd", b"")]),
            archive(GOOD, &[file("c/dev", b'3', "", b"")]),
            archive(GOOD, &[file("config.json", b'0', "", b"another")]),
            archive(GOOD, &[file("x", b'x', "", b"20 path=repositories\n")]),
            archive(GOOD, &[file("manifest.json", b'0', "", GOOD.as_bytes())]),
            archive(
                GOOD,
                &[file(
                    "index.json",
                    b'0',
                    "",
                    br#"{"manifests":[{"annotations":{"io.containerd.image.name":"a:1"}}]}"#,
                )],
            ),
        ];
        for (at, bytes) in bad.iter().enumerate() {
            assert!(pass(bytes, 1_000).is_err(), "case {at}");
        }
        let good = archive(GOOD, &[]);
        assert!(
            pass(&good[..good.len() - 3 * BLOCK - 1], 1_000).is_err(),
            "it breaks off"
        );
        let mut changed = good.clone();
        let at = good
            .windows(6)
            .position(|text| text == b"rootfs")
            .expect("the configuration");
        changed[at] = b'R';
        assert!(pass(&changed, 1_000).is_err(), "another configuration");
        let mut more = good;
        more.extend_from_slice(b"more");
        assert!(pass(&more, 1_000).is_err(), "something follows its end");
    }

    #[test]
    fn random_bytes_neither_panic_nor_pass() {
        let mut seed: u64 = 3;
        for _ in 0..300 {
            let mut bytes = archive(GOOD, &[]);
            for _ in 0..20 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(seed >> 33).unwrap_or(0) % bytes.len();
                bytes[at] = u8::try_from(seed >> 24 & 0xff).unwrap_or(0);
            }
            if let Ok((out, _)) = pass(&bytes, 700) {
                assert_eq!(out.len(), bytes.len());
            }
        }
    }
}
