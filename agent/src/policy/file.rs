//! The policy file: whose it must be, how it is read, and every problem with line and column. Called by the gate. It reads a
//! regular file of bounded size only, and takes nothing from a file that somebody else than root or the agent could write.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use schemas::yaml::{Content, Key, TextSpan, Tree};

use super::check::security_option;
use super::{DeviceRule, HostNamespace, HostPath, NodeCommand, Policy};

/// The largest policy file.
const MAX_POLICY_BYTES: u64 = 256 << 10;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    place: (u64, u64),
    changed: (i64, i64, i64, i64),
    size: u64,
    mode: u32,
    owner: u32,
}

/// The state of the file; None where there is none, or none that can be seen.
pub fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Fingerprint {
        place: (meta.dev(), meta.ino()),
        changed: (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()),
        size: meta.size(),
        mode: meta.mode(),
        owner: meta.uid(),
    })
}

/// The file's text; None when it is not there. The error is one sentence with the remedy.
pub fn read(path: &Path) -> Result<Option<String>, String> {
    // Not waiting for whoever would write into a pipe of that name.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("it cannot be opened: {error}")),
    };
    let meta = file
        .metadata()
        .map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    trusted("it", meta.uid(), meta.mode())?;
    let real = std::fs::canonicalize(path).map_err(|error| format!("it cannot be looked at: {error}"))?;
    // Who can write a directory above can put another file in its place; a sticky one (`/tmp`) only lets owners do that.
    for above in real.ancestors().skip(1) {
        let meta = std::fs::metadata(above).map_err(|error| format!("`{}`: {error}", above.display()))?;
        if meta.mode() & 0o1000 == 0 {
            trusted(&format!("its directory `{}`", above.display()), meta.uid(), meta.mode())?;
        }
    }
    if meta.size() > MAX_POLICY_BYTES {
        return Err(format!("it has more than {MAX_POLICY_BYTES} bytes"));
    }
    let mut text = String::new();
    file.take(MAX_POLICY_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| format!("it cannot be read: {error}"))?;
    Ok(Some(text))
}

fn trusted(what: &str, owner: u32, mode: u32) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    if owner != 0 && owner != me {
        return Err(format!(
            "{what} belongs to user {owner}, and must be root's: `chown root` it, and see who wrote it"
        ));
    }
    if mode & 0o022 != 0 {
        return Err(format!(
            "{what} can be written by others (mode {:04o}): `chmod go-w` it, and see that its text is yours",
            mode & 0o7777
        ));
    }
    Ok(())
}

/// Something wrong in a policy's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// A policy from its text: a key that is there replaces what `built_in` has for it, all other keys stay as they are there.
///
/// # Errors
/// Every problem of the text.
pub fn parse(text: &str, built_in: &Policy) -> Result<Policy, Vec<Problem>> {
    let mut reader = Reader {
        text,
        problems: Vec::new(),
    };
    let trees = match schemas::yaml::read(text, None) {
        Ok(trees) => trees,
        Err(problems) => {
            let told = |one: &schemas::Problem| Problem {
                line: one.line,
                column: one.column,
                message: crate::engine::clean(&one.message, 300),
            };
            return Err(problems.problems.iter().map(told).collect());
        }
    };
    let mut policy = built_in.clone();
    match trees.as_slice() {
        [] => {}
        [tree] => reader.policy(tree, &mut policy),
        [_, second, ..] => reader.say(second.span, "a policy is one document".to_owned()),
    }
    if reader.problems.is_empty() {
        Ok(policy)
    } else {
        Err(reader.problems)
    }
}

/// The keys of a policy, for who wrote another.
const KEYS: [&str; 14] = [
    "privileged",
    "hostPaths",
    "hostNamespaces",
    "images",
    "capabilities",
    "devices",
    "securityOptions",
    "sysctls",
    "lowestPort",
    "hostAddresses",
    "loggingDrivers",
    "ulimits",
    "nodeCommands",
    "apiVersion",
];

struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn say(&mut self, span: TextSpan, message: String) {
        let mut at = span.start.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.problems.push(Problem {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: crate::engine::clean(&message, 300),
        });
    }

    fn policy(&mut self, tree: &Tree, policy: &mut Policy) {
        let Policy {
            privileged,
            host_paths,
            host_namespaces,
            images,
            capabilities,
            devices,
            security_options,
            sysctls,
            lowest_port,
            host_addresses,
            logging_drivers,
            ulimits,
            node_commands,
        } = policy;
        for (key, value) in self.entries(tree) {
            match key.name.as_str() {
                "apiVersion" => {
                    if value.text() != Some("reeve/v1") {
                        self.say(value.span, "the one version is `reeve/v1`".to_owned());
                    }
                }
                "privileged" => self.flag(value, privileged),
                "hostPaths" => {
                    *host_paths = self.list(value).iter().flat_map(|one| self.host_path(one)).collect();
                }
                "hostNamespaces" => {
                    *host_namespaces = self.texts(value, |text| {
                        let known = [
                            HostNamespace::Network,
                            HostNamespace::Pid,
                            HostNamespace::Ipc,
                            HostNamespace::User,
                        ];
                        let found = known.into_iter().find(|one| one.word() == text);
                        found.ok_or_else(|| "a namespace is `network`, `pid`, `ipc` or `user`".to_owned())
                    });
                }
                "images" => *images = self.texts(value, image_pattern).into_iter().collect(),
                "capabilities" => *capabilities = self.texts(value, capability),
                "devices" => {
                    *devices = self.list(value).iter().filter_map(|one| self.device(one)).collect();
                }
                "securityOptions" => *security_options = self.texts(value, |text| Ok(security_option(text))),
                "sysctls" => *sysctls = self.texts(value, |text| Ok(text.to_owned())).into_iter().collect(),
                "lowestPort" => match &value.content {
                    Content::Number(number) => match number.as_u64().and_then(|port| u16::try_from(port).ok()) {
                        Some(port) if port > 0 => *lowest_port = port,
                        Some(_) | None => self.say(value.span, "a port is 1 to 65535".to_owned()),
                    },
                    Content::Null | Content::Bool(_) | Content::Text(_) | Content::List(_) | Content::Mapping(_) => {
                        self.say(value.span, "a port is a number from 1 to 65535".to_owned())
                    }
                },
                "hostAddresses" => {
                    let listed = self.texts(value, |text| {
                        text.parse::<IpAddr>()
                            .map_err(|_| format!("`{text}` is no address; all of the node is `0.0.0.0` or `::`"))
                    });
                    *host_addresses = Some(listed);
                }
                "loggingDrivers" => *logging_drivers = self.texts(value, |text| Ok(text.to_owned())),
                "ulimits" => *ulimits = self.texts(value, |text| Ok(text.to_owned())),
                "nodeCommands" => {
                    *node_commands = self.texts(value, |text| {
                        let found = [NodeCommand::Exec, NodeCommand::Docker]
                            .into_iter()
                            .find(|one| one.word() == text);
                        found.ok_or_else(|| "commands on the node are `exec` or `docker`".to_owned())
                    });
                }
                other => self.say(
                    key.span,
                    format!("unknown key `{other}`; a policy has {}", KEYS[..13].join(", ")),
                ),
            }
        }
    }

    fn entries<'t>(&mut self, tree: &'t Tree) -> &'t [(Key, Tree)] {
        match &tree.content {
            Content::Mapping(entries) => entries,
            Content::Null => &[],
            Content::Bool(_) | Content::Number(_) | Content::Text(_) | Content::List(_) => {
                self.say(tree.span, "a mapping of keys and values is meant here".to_owned());
                &[]
            }
        }
    }

    fn list<'t>(&mut self, tree: &'t Tree) -> &'t [Tree] {
        match &tree.content {
            Content::List(items) => items,
            Content::Null | Content::Bool(_) | Content::Number(_) | Content::Text(_) | Content::Mapping(_) => {
                self.say(tree.span, "a list is meant here; an empty one is `[]`".to_owned());
                &[]
            }
        }
    }

    fn flag(&mut self, tree: &Tree, into: &mut bool) {
        match &tree.content {
            Content::Bool(value) => *into = *value,
            Content::Null | Content::Number(_) | Content::Text(_) | Content::List(_) | Content::Mapping(_) => {
                self.say(tree.span, "`true` or `false` is meant here".to_owned());
            }
        }
    }

    fn texts<T: Ord>(&mut self, tree: &Tree, read: impl Fn(&str) -> Result<T, String>) -> BTreeSet<T> {
        let mut found = BTreeSet::new();
        for item in self.list(tree) {
            let read = match item.text() {
                Some(text) if !text.is_empty() => read(text),
                Some(_) | None => Err("a text is meant here".to_owned()),
            };
            match read {
                Ok(one) => {
                    found.insert(one);
                }
                Err(why) => self.say(item.span, why),
            }
        }
        found
    }

    fn path(&mut self, tree: &Tree) -> Option<PathBuf> {
        let text = tree.text().unwrap_or_default();
        let path = Path::new(text);
        let clean: PathBuf = path.components().collect();
        let climbs = text.split('/').any(|part| part == ".." || part == ".");
        if !path.is_absolute() || climbs {
            self.say(
                tree.span,
                "a path is absolute, and has no `.` or `..`: `/srv/data`".to_owned(),
            );
            return None;
        }
        Some(clean)
    }

    /// A line for a path. `/var/run` is a link to `/run` nearly everywhere: a line for the one is also for the other.
    fn host_path(&mut self, tree: &Tree) -> Vec<HostPath> {
        let (mut path, mut read_only) = (None, false);
        let mut named = false;
        for (key, value) in self.entries(tree) {
            match key.name.as_str() {
                "path" => {
                    named = true;
                    path = self.path(value);
                }
                "readOnly" => self.flag(value, &mut read_only),
                other => self.say(key.span, format!("unknown key `{other}`; a path has path and readOnly")),
            }
        }
        if !named {
            self.say(tree.span, "`path` is missing: `- path: /srv/data`".to_owned());
        }
        let Some(path) = path else { return Vec::new() };
        let run = path
            .strip_prefix("/var/run")
            .ok()
            .map(|rest| Path::new("/run").join(rest));
        let run = run.map(|path| path.components().collect::<PathBuf>());
        run.into_iter()
            .chain([path])
            .map(|path| HostPath { path, read_only })
            .collect()
    }

    fn device(&mut self, tree: &Tree) -> Option<DeviceRule> {
        let (mut path, mut permissions) = (None, "rwm".to_owned());
        let mut named = false;
        for (key, value) in self.entries(tree) {
            match key.name.as_str() {
                "path" => {
                    named = true;
                    path = self.path(value);
                }
                "permissions" => match value.text() {
                    Some(text) if !text.is_empty() && text.chars().all(|one| "rwm".contains(one)) => {
                        permissions = text.to_owned();
                    }
                    Some(_) | None => self.say(value.span, "permissions are of `r`, `w` and `m`".to_owned()),
                },
                other => self.say(
                    key.span,
                    format!("unknown key `{other}`; a device has path and permissions"),
                ),
            }
        }
        if !named {
            self.say(tree.span, "`path` is missing: `- path: /dev/fuse`".to_owned());
        }
        Some(DeviceRule {
            path: path?,
            permissions,
        })
    }
}

fn capability(text: &str) -> Result<String, String> {
    let word = text.strip_prefix("CAP_").unwrap_or(text);
    let plain = word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    if plain {
        Ok(word.to_owned())
    } else {
        Err(format!("`{text}` is no capability: `NET_ADMIN`, or `ALL`"))
    }
}

fn image_pattern(text: &str) -> Result<String, String> {
    let first = text.split('/').next().unwrap_or_default();
    let whole = text.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if text == "*" || (whole && !text.contains('*')) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is no whole name: `*`, `registry.example.com/`, `docker.io/library/`, or a repository in full, `docker.io/library/nginx`"
        ))
    }
}
