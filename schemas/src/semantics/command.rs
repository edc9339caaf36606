//! The rules of named commands: one place to run, and parameters that stay whole words.

use std::collections::{BTreeMap, BTreeSet};

use super::{DAY, HOUR, Labels, Rules};
use crate::command::{CommandNodes, CommandSpec, Parameter, Word, whole};
use crate::names::{ResourceName, Slot};
use crate::problem::{Code, quote};
use crate::units::Text;
use crate::yaml::Step;

/// Programs that read a word as a script.
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "busybox", "su"];
const BESIDE: &str = "give it after the script, [sh, -c, 'echo \"$1\"', sh, \"${NAME}\"], or in a variable with `env`";

impl Rules<'_> {
    pub(super) fn command(&mut self, spec: &CommandSpec) {
        let CommandSpec {
            description: _,
            command,
            service,
            slot,
            all,
            nodes,
            working_dir,
            env,
            user,
            stdin,
            tty,
            timeout,
            parameters,
            extra_arguments,
        } = spec;
        if timeout.is_some_and(|timeout| timeout.millis == 0) {
            let message = "it would be ended before it begins";
            self.say(
                path!["spec", "timeout"],
                Code::DurationOrder,
                message,
                "write such as `30s`",
            );
        }
        match (service, nodes) {
            (Some(_), None) => {
                self.limit(path!["spec", "timeout"], *timeout, DAY);
                if let Some(Text(slot)) = slot {
                    self.slot(slot, *all);
                }
                for (key, set) in [("stdin", *stdin), ("tty", *tty)] {
                    if set && *all {
                        let message = format!("`{key}` is of one terminal, and this runs in many instances");
                        self.say_key(
                            path!["spec", key],
                            Code::CommandPlace,
                            message,
                            "leave it, or `all`, out",
                        );
                    }
                }
            }
            (None, Some(nodes)) => {
                self.limit(path!["spec", "timeout"], *timeout, HOUR);
                self.command_nodes(nodes);
                let set = [
                    ("slot", slot.is_some()),
                    ("all", *all),
                    ("workingDir", working_dir.is_some()),
                    ("env", !env.is_empty()),
                    ("user", user.is_some()),
                    ("stdin", *stdin),
                    ("tty", *tty),
                ];
                for (key, _) in set.into_iter().filter(|(_, set)| *set) {
                    let message = format!("`{key}` has a meaning in containers only, and this runs on nodes");
                    self.say_key(path!["spec", key], Code::CommandPlace, message, "leave it out");
                }
                for (index, _) in parameters.iter().enumerate().filter(|(_, one)| one.env.is_some()) {
                    self.say_key(
                        path!["spec", "parameters", index, "env"],
                        Code::CommandPlace,
                        "a command on nodes gets no variables",
                        "name the parameter in `command`: `${NAME}`",
                    );
                }
            }
            (None, None) | (Some(_), Some(_)) => self.say(
                path!["spec"],
                Code::CommandPlace,
                "a command runs either in a service's containers or on nodes",
                "write one of `service: NAME` and `nodes: {...}`",
            ),
        }
        for name in env.keys().filter(|name| name.is_empty() || name.contains('=')) {
            self.say_key(
                path!["spec", "env", name.as_str()],
                Code::EnvName,
                format!("{} is not a variable's name", quote(name)),
                "name it without `=`",
            );
        }
        self.command_words(command, parameters, *extra_arguments);
        self.parameters(spec);
    }

    fn slot(&mut self, slot: &str, all: bool) {
        if slot.parse::<Slot>().is_err() {
            let message = format!("{} is no slot", quote(slot));
            let remedy = "write a number from 1 on, or, of a service with `mode: global`, a node's name";
            self.say(path!["spec", "slot"], Code::CommandPlace, message, remedy);
        } else if all {
            let message = "`slot` is one instance, and `all` all of them";
            self.say(
                path!["spec", "slot"],
                Code::CommandPlace,
                message,
                "leave one of them out",
            );
        }
    }

    fn command_nodes(&mut self, nodes: &CommandNodes) {
        let CommandNodes { all, names, labels } = nodes;
        let said = [*all, !names.is_empty(), !labels.is_empty()];
        if said.iter().filter(|said| **said).count() != 1 {
            self.say(
                path!["spec", "nodes"],
                Code::CommandPlace,
                "which nodes is said in exactly one way",
                "write one of `all: true`, `names: [n1]` and `labels: {zone: a}`",
            );
        }
        self.distinct(path!["spec", "nodes", "names"], names);
        // A node's own labels may begin with `reeve.`, and so may be looked for.
        self.labels(path!["spec", "nodes", "labels"], labels, Labels::Notes);
    }

    fn command_words(&mut self, command: &[Text], parameters: &[Parameter], extra_arguments: bool) {
        let known = |name: &str| parameters.iter().any(|parameter| parameter.name.as_str() == name);
        let mut shell = false;
        let mut script_next = false;
        for (index, Text(word)) in command.iter().enumerate() {
            let place = path!["spec", "command", index].to_vec();
            let said = Word::of(word);
            if index == 0 && (word.is_empty() || said != Word::Plain) {
                self.say(
                    &place,
                    Code::CommandParameter,
                    "the program is fixed: no parameter, and not empty",
                    "write its name or path",
                );
            } else if let Some(name) = said.parameter().filter(|name| !known(name)) {
                self.say(
                    &place,
                    Code::CommandParameter,
                    format!("there is no parameter {}; no shell reads this", quote(name)),
                    "declare it under `parameters`, or let a shell read it: [sh, -c, 'echo \"$HOME\"']",
                );
            } else if said == Word::Plain
                && let Some(inside) = parameters
                    .iter()
                    .find(|one| word.contains(&format!("${{{}}}", one.name)))
            {
                self.say(
                    &place,
                    Code::CommandParameter,
                    format!("the parameter `{}` stands within a word", inside.name),
                    format!("write it as a word of its own, or as `--option=${{NAME}}`; for a shell, {BESIDE}"),
                );
            } else if script_next && said != Word::Plain {
                self.say(
                    &place,
                    Code::CommandParameter,
                    "a shell would read the parameter as its script",
                    BESIDE,
                );
            }
            script_next =
                shell && word.len() > 1 && word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
            shell |= SHELLS.contains(&word.rsplit('/').next().unwrap_or_default());
        }
        if script_next && extra_arguments {
            self.say_key(
                path!["spec", "extraArguments"],
                Code::CommandParameter,
                "a shell would read the first further argument as its script",
                "write the script, and its own name after it: [sh, -c, 'echo \"$@\"', sh]",
            );
        }
    }

    fn parameters(&mut self, spec: &CommandSpec) {
        let mut seen: BTreeMap<&ResourceName, usize> = BTreeMap::new();
        let mut variables: BTreeSet<&str> = BTreeSet::new();
        for (index, parameter) in spec.parameters.iter().enumerate() {
            let Parameter {
                name,
                description: _,
                default,
                values,
                pattern,
                env,
            } = parameter;
            let place = |key: &'static str| [path!["spec", "parameters", index], path![key]].concat();
            if let Some(first) = seen.insert(name, index) {
                self.say_twice(
                    path!["spec", "parameters", first, "name"],
                    &place("name"),
                    Code::DuplicateEntry,
                    format!("the parameter `{name}` is there twice"),
                    "remove one of them",
                );
            }
            self.distinct(
                &place("values"),
                &values.iter().map(|value| &value.0).collect::<Vec<_>>(),
            );
            let used = spec
                .command
                .iter()
                .any(|word| Word::of(&word.0).parameter() == Some(name.as_str()));
            match env.as_deref() {
                None if !used => self.say(
                    &place("name"),
                    Code::CommandParameter,
                    format!("the parameter `{name}` arrives nowhere"),
                    format!("write `${{{name}}}` as a word of `command`, or name a variable with `env`"),
                ),
                None => {}
                Some(variable) if variable.is_empty() || variable.contains('=') => self.say(
                    &place("env"),
                    Code::EnvName,
                    format!("{} is not a variable's name", quote(variable)),
                    "name it without `=`",
                ),
                Some(variable) if spec.env.contains_key(variable) || !variables.insert(variable) => self.say(
                    &place("env"),
                    Code::CommandParameter,
                    format!("the variable {} is set already", quote(variable)),
                    "name another",
                ),
                Some(_) => {}
            }
            if pattern.is_some() && !values.is_empty() {
                self.say_key(
                    &place("pattern"),
                    Code::CommandParameter,
                    "`values` says already what it may be",
                    "leave one of them out",
                );
            } else if let Some(pattern) = pattern
                && whole(pattern).is_none()
            {
                self.say(
                    &place("pattern"),
                    Code::CommandParameter,
                    format!("{} is no regular expression, or a very large one", quote(pattern)),
                    "write one such as `[a-z0-9]+`, without look-around and back-references",
                );
            } else if let Some(Text(default)) = default
                && let Err(error) = parameter.admits(default)
            {
                self.say(
                    &place("default"),
                    Code::CommandParameter,
                    format!("its own default is not allowed: {error}"),
                    "make it one of the values that are",
                );
            }
        }
    }
}
