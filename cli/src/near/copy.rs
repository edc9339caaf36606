//! `reeve cp`: files and directories between this host and an instance's container, byte for byte. What comes from a
//! container is unpacked by `tar`, which trusts nothing of it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use agent::api::ask::{Ask, Asked, Ended, Named, Place};
use agent::api::wire::{Frame, Kind};
use agent::api::{AskError, Client, Talk};
use bytes::Bytes;
use schemas::names::{InstanceName, NodeName};

use super::tar::{Reader, Unpacker, pack};
use super::{Target, failed, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::CopyArgs;
use crate::edit::person;
use crate::failure::{Exit, Failure, printable};
use crate::output::{complain, count, print};

/// One side of a copy.
enum Side<'a> {
    Here(&'a Path),
    /// In an instance's container.
    There(&'a str, &'a str),
}

impl<'a> Side<'a> {
    /// `web.1:/path`, or a path here; one with a colon in its first part is written `./a:b`.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((what, path)) if !what.is_empty() && !what.starts_with(['.', '/']) => Self::There(what, path),
            Some(_) | None => Self::Here(Path::new(text)),
        }
    }
}

pub async fn copy(common: &Common, args: &CopyArgs) -> Verdict {
    let (what, path, out, here) = match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::There(what, path), Side::Here(here)) => (what, path, true, here),
        (Side::Here(here), Side::There(what, path)) => (what, path, false, here),
        (Side::Here(_), Side::Here(_)) => {
            return Err(Failure::usage("neither path is in a container").help("write one of them as web.1:/path"));
        }
        (Side::There(..), Side::There(..)) => {
            return Err(Failure::usage("both paths are in containers").help("copy to this host first"));
        }
    };
    if !path.starts_with('/') {
        return Err(Failure::usage(format!("`{path}`: a path in a container begins with /"))
            .help(format!("write {what}:/{path}")));
    }
    let target = Target::parse(common, what)?;
    let (_, view, ways) = prepare(common).await?;
    let instance = target.one(&view)?;
    let there = There {
        client: ways.to(&view, instance.node)?,
        name: instance.name.clone(),
        node: instance.node.clone(),
    };
    if out {
        there.fetch(path, here).await
    } else {
        there.bring(here, path).await
    }
}

/// An instance's container.
struct There {
    client: Client,
    name: InstanceName,
    node: NodeName,
}

impl There {
    fn fails(&self, path: &str, error: &AskError) -> Failure {
        failed(&format!("copy {}:{}", self.name, printable(path)), &self.node, error)
    }

    async fn ask(&self, path: &str, ask: Ask) -> Result<Talk, Failure> {
        let asked = Asked { by: person(), ask };
        let talk = self.client.ask(&self.node, &asked).await;
        talk.map_err(|error| self.fails(path, &error))
    }

    /// What is at a path.
    async fn place(&self, path: &str) -> Result<Place, Failure> {
        let ask = Ask::Place {
            instance: Named::from(&self.name),
            path: path.to_owned(),
        };
        let mut talk = self.ask(path, ask).await?;
        let frame = talk.next().await.map_err(|error| self.fails(path, &error))?;
        frame
            .and_then(|frame| serde_json::from_slice(&frame.payload).ok())
            .ok_or_else(|| self.fails(path, &AskError::Ended))
    }

    async fn fetch(&self, path: &str, here: &Path) -> Verdict {
        let path = trimmed(path);
        let called = Path::new(path).file_name();
        let called = called.ok_or_else(|| Failure::usage("name a file or a directory below /"))?;
        let (dir, top) = if here.is_dir() {
            (here.to_owned(), called)
        } else {
            beside(here)?
        };
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot copy to {}", here.display())).because(&error)
        };
        let ask = Ask::CopyOut {
            instance: Named::from(&self.name),
            path: path.to_owned(),
        };
        let mut unpacker = Unpacker::new(&dir, top).map_err(cannot)?;
        let mut talk = self.ask(path, ask).await?;
        let mut reader = Reader::default();
        loop {
            let frame = talk.next().await.map_err(|error| self.fails(path, &error))?;
            let frame = frame.ok_or_else(|| self.fails(path, &AskError::Ended))?;
            if frame.kind == Kind::Data {
                reader.push(&frame.payload);
                while let Some(part) = reader.next().map_err(cannot)? {
                    unpacker.take(part).map_err(cannot)?;
                }
                continue;
            }
            self.ended(path, &frame)?;
            break;
        }
        if !reader.is_whole() || !unpacker.is_whole() {
            return Err(self.fails(path, &AskError::Ended));
        }
        for line in &unpacker.passed_over {
            complain(&format!("not copied: {}\n", printable(line)));
        }
        let to = dir.join(top);
        say(
            &format!("{}:{path}", self.name),
            &to.display().to_string(),
            unpacker.files,
            unpacker.bytes,
        );
        Ok(if unpacker.passed_over.is_empty() {
            Exit::Done
        } else {
            Exit::Failed
        })
    }

    async fn bring(&self, here: &Path, path: &str) -> Verdict {
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot read {}", here.display())).because(&error)
        };
        let real = here.canonicalize().map_err(cannot)?;
        // A link here is called by its own name; `.` by that of the directory.
        let called = here
            .file_name()
            .or(real.file_name())
            .unwrap_or(OsStr::new("root"))
            .to_owned();
        let path = trimmed(path);
        let (dir, top) = match self.place(path).await? {
            Place::Directory => (path.to_owned(), called),
            Place::File | Place::Nothing => {
                let (dir, top) = path.rsplit_once('/').unwrap_or(("", path));
                let dir = if dir.is_empty() { "/" } else { dir };
                if self.place(dir).await? != Place::Directory {
                    return Err(
                        Failure::new(Exit::Failed, format!("{} has no directory {dir}", self.name))
                            .help(format!("make it: `reeve exec {} -- mkdir -p {dir}`", self.name)),
                    );
                }
                (dir.to_owned(), top.into())
            }
        };
        let ask = Ask::CopyIn {
            instance: Named::from(&self.name),
            path: dir.clone(),
        };
        let mut talk = self.ask(path, ask).await?;
        let out = talk.out.clone();
        let (from, top_path) = (real.clone(), PathBuf::from(&top));
        let packing = tokio::task::spawn_blocking(move || {
            let mut send =
                |bytes: Vec<u8>| bytes.is_empty() || out.blocking_send(Frame::new(Kind::Data, bytes)).is_ok();
            let packed = pack(&from, &top_path, &mut send);
            if packed.is_ok() {
                let _ = out.blocking_send(Frame::new(Kind::DataEnd, Bytes::new()));
            }
            packed
        });
        let mut packing = std::pin::pin!(packing);
        let mut sums = None;
        loop {
            tokio::select! {
                packed = &mut packing, if sums.is_none() => {
                    match packed.map_err(std::io::Error::other).and_then(|packed| packed) {
                        Ok(packed) => sums = Some(packed),
                        // It is the agent that took no more: it says why.
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => sums = Some((0, 0)),
                        Err(error) => return Err(cannot(error)),
                    }
                }
                frame = talk.next() => {
                    let frame = frame.map_err(|error| self.fails(path, &error))?;
                    let frame = frame.ok_or_else(|| self.fails(path, &AskError::Ended))?;
                    self.ended(path, &frame)?;
                    let (files, bytes) = sums.unwrap_or_default();
                    let to = format!("{}:{}/{}", self.name, dir.trim_end_matches('/'), top.to_string_lossy());
                    say(&here.display().to_string(), &to, files, bytes);
                    return Ok(Exit::Done);
                }
            }
        }
    }

    /// Whether the last frame says that all is well.
    fn ended(&self, path: &str, frame: &Frame) -> Result<(), Failure> {
        match serde_json::from_slice(&frame.payload) {
            Ok(Ended::Done) if frame.kind == Kind::End => Ok(()),
            Ok(Ended::Failed(refusal)) => Err(self.fails(path, &AskError::Refused(refusal))),
            Ok(Ended::Done | Ended::Gone | Ended::Exited { code: _ }) | Err(_) => {
                Err(self.fails(path, &AskError::Ended))
            }
        }
    }
}

/// Without slashes at its end; the root stays.
fn trimmed(path: &str) -> &str {
    match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    }
}

/// The directory and the name of what is to be made.
fn beside(path: &Path) -> Result<(PathBuf, &OsStr), Failure> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} is no name of a file", path.display())))?;
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok((dir.to_owned(), name))
}

fn say(from: &str, to: &str, files: u64, bytes: u64) {
    let files = count(usize::try_from(files).unwrap_or(usize::MAX), "file");
    print(&printable(&format!(
        "{from} -> {to}: {files}, {}",
        super::top::size(bytes)
    )));
    print("\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_container_has_an_instance_before_its_colon() {
        assert!(matches!(Side::parse("web.1:/a:b"), Side::There("web.1", "/a:b")));
        for here in ["a", "/a:b", "./a:b", ":x", "../x:y"] {
            assert!(matches!(Side::parse(here), Side::Here(_)), "{here}");
        }
        assert_eq!((trimmed("/a//"), trimmed("//")), ("/a", "/"));
    }
}
