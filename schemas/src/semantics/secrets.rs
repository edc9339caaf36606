//! The rules about the secrets of a container: each is a file or a variable, and takes no place that something else has.

use std::collections::BTreeMap;

use super::Rules;
use super::container::plain;
use crate::container::{FileMount, Mount, SecretUse};
use crate::problem::{Code, quote};
use crate::units::Text;
use crate::yaml::Step;

impl Rules<'_> {
    pub(super) fn secrets(
        &mut self,
        secrets: &[SecretUse],
        env: &BTreeMap<String, Text>,
        files: &[FileMount],
        mounts: &[Mount],
    ) {
        let at = |index: usize, key: &str| [path!["spec", "container", "secrets", index], path![key]].concat();
        let inside = |outer: &str, inner: &str| {
            let rest = inner.strip_prefix(outer);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let choose = "choose another path";
        for (index, one) in secrets.iter().enumerate() {
            let SecretUse {
                secret: _,
                path,
                env: variable,
                owner,
                mode,
                edition: _,
            } = one;
            // What has no path of its own is pointed at by its name.
            let key = if path.is_some() { "path" } else { "secret" };
            if one.owner().is_none() {
                let remedy = "write numbers below 4294967295";
                self.say(
                    &at(index, "owner"),
                    Code::FilePath,
                    "the owner's numbers are too large",
                    remedy,
                );
            }
            if let Some(name) = variable {
                for (key, set) in [
                    ("path", path.is_some()),
                    ("owner", owner.is_some()),
                    ("mode", mode.is_some()),
                ] {
                    if set {
                        let message = format!("a variable has no `{key}`");
                        let remedy = "remove it, or `env`; for both, name the secret twice";
                        self.say_key(&at(index, key), Code::SecretForm, message, remedy);
                    }
                }
                if name.contains(['=', '\0']) {
                    let message = format!("{} is not a variable's name", quote(name));
                    self.say(&at(index, "env"), Code::EnvName, message, "name it without `=`");
                }
                if env.contains_key(name) {
                    let message = format!("the variable {} is in `env` too", quote(name));
                    let first = path!["spec", "container", "env", name.as_str()];
                    self.say_twice(first, &at(index, "env"), Code::SecretForm, message, "keep one of them");
                }
                if let Some(first) = secrets[..index].iter().position(|other| other.env == *variable) {
                    let message = format!("the variable {} is there twice", quote(name));
                    let places = (at(first, "env"), at(index, "env"));
                    self.say_twice(&places.0, &places.1, Code::SecretForm, message, "keep one of them");
                }
            }
            let Some(path) = one.path() else { continue };
            let mut parts = path.split('/').skip(1);
            if parts.any(|part| matches!(part, "" | "." | "..")) || path.chars().any(char::is_control) {
                let message = format!("{} is no clean path of a file", quote(&path));
                let remedy = "write an absolute path without `.`, `..`, doubled slashes and control characters";
                self.say(&at(index, key), Code::FilePath, message, remedy);
                continue;
            }
            let meets = |other: &str| inside(other, &path) || inside(&path, other);
            let another = secrets[..index]
                .iter()
                .position(|other| other.path().is_some_and(|other| meets(&other)));
            if let Some(first) = another {
                let message = format!("{} is taken by another secret", quote(&path));
                let before = if secrets[first].path.is_some() {
                    "path"
                } else {
                    "secret"
                };
                self.say_twice(
                    &at(first, before),
                    &at(index, key),
                    Code::MountTargetTaken,
                    message,
                    choose,
                );
            }
            if let Some(file) = files.iter().position(|file| meets(&file.path)) {
                let first = [path!["spec", "container", "files", file], path!["path"]].concat();
                let message = format!("{} is taken by a file", quote(&path));
                self.say_twice(&first, &at(index, key), Code::MountTargetTaken, message, choose);
            }
            let over = |mount: &Mount| inside(&path, &format!("/{}", plain(&mount.target)));
            if let Some(mount) = mounts.iter().position(over) {
                let first = [path!["spec", "container", "mounts", mount], path!["target"]].concat();
                let message = format!("{} is taken by a mount", quote(&path));
                self.say_twice(&first, &at(index, key), Code::MountTargetTaken, message, choose);
            }
        }
    }
}
