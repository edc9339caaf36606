//! The kind `Command`: a command that is offered by name, where it runs, and the parameters it takes. `reeve run` and the
//! agents make the words of a run here, with the same rules: what a caller gives is checked against what was declared, and
//! becomes whole words or variables. Nothing here is ever read by a shell. Pure.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::is_default;
use crate::names::{NodeName, ResourceName, Slot};
use crate::units::{Span, Text};

/// The longest value of a parameter, and the longest further argument, in bytes.
pub const MAX_VALUE_BYTES: usize = 4 << 10;
/// The most further arguments of one run.
pub const MAX_ARGUMENTS: usize = 64;
/// The most memory that a parameter's pattern may take when it is compiled, in bytes.
const PATTERN_BYTES: usize = 256 << 10;
/// How long a command on nodes may take, unless it says so.
pub const NODE_TIMEOUT: Span = Span::from_secs(300);

/// A command that people run by its name, in containers of a service or on nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandSpec {
    /// What it does, for who may run it; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub description: Option<String>,
    /// The program and its arguments: 1 to 256 words; no shell reads them. `${NAME}` stands for the parameter of that name: as a
    /// whole word, or at the end of an option, `--mode=${mode}`.
    #[schemars(extend("minItems" = 1, "maxItems" = 256))]
    pub command: Vec<Text>,
    /// The service of its namespace in whose containers it runs. A command has either this or `nodes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ResourceName>,
    /// Only in the instance in this slot, a number or a node's name. When absent, in the first one that is ready, or in that
    /// which is chosen with `reeve run --on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Text>,
    /// In all running instances at once; false when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub all: bool,
    /// The nodes on which it runs, each of which must allow commands by its policy (`nodeCommands`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<CommandNodes>,
    /// The directory that it starts in, in the container; the container's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^/"))]
    pub working_dir: Option<String>,
    /// Environment variables beside the container's own. Values are strings, whole numbers or booleans.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub env: BTreeMap<String, Text>,
    /// User or uid in the container, with `:group` where wanted; the container's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Whether it gets what comes by a pipe, or is typed; false when absent. One instance only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: bool,
    /// Whether it gets the terminal of who runs it, where there is one, with its input; false when absent. One instance only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tty: bool,
    /// How long it may take. On nodes it is then ended: `5m` when absent, at most `1h`. In a container nobody waits for it any
    /// longer, but no engine can end it: no limit when absent, at most `1d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What is to be said with each run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 32))]
    pub parameters: Vec<Parameter>,
    /// Whether it takes further arguments, after `--`, as they are; false when absent. Who may run it then chooses its options.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extra_arguments: bool,
}

/// On which nodes: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandNodes {
    /// On all of them; false when absent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub all: bool,
    /// On these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256))]
    pub names: Vec<NodeName>,
    /// On those that have all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub labels: BTreeMap<String, String>,
}

/// Something that is said with each run. It arrives as a word, or a variable, of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parameter {
    /// As `reeve run --param NAME=VALUE` and `${NAME}` in `command` have it.
    pub name: ResourceName,
    /// What it is; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub description: Option<String>,
    /// The value of who says none. Without it a value must be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Text>,
    /// The values it may have. Any when this and `pattern` are absent, but none that begins with `-`, for that would be an
    /// option.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 128))]
    pub values: Vec<Text>,
    /// A regular expression that the whole value must match: `[a-z0-9]+`. Not beside `values`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 512))]
    pub pattern: Option<String>,
    /// The environment variable that it arrives in. When absent, `command` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub env: Option<String>,
}

/// The words of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The program and its arguments; at least one word.
    pub command: Vec<String>,
    /// Variables beside the container's own.
    pub env: BTreeMap<String, String>,
}

/// Why what was given makes no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error("it has no parameter `{name}`; {known}")]
    Unknown { name: String, known: String },
    #[error("the parameter `{name}` is missing{}", .about.as_ref().map(|about| format!(": {about}")).unwrap_or_default())]
    Missing { name: ResourceName, about: Option<String> },
    #[error("the parameter `{name}` cannot be {value}: it is one of {allowed}")]
    NotOneOf {
        name: ResourceName,
        value: String,
        allowed: String,
    },
    #[error("the parameter `{name}` cannot be {value}: it must match {pattern}")]
    NoMatch {
        name: ResourceName,
        value: String,
        pattern: String,
    },
    #[error("the parameter `{name}` cannot be {value}: what begins with `-` would be an option")]
    Option { name: ResourceName, value: String },
    #[error("{what} has a control character, or more than {MAX_VALUE_BYTES} bytes")]
    Form { what: String },
    #[error("it takes no further arguments")]
    NoArguments,
    #[error("it takes at most {MAX_ARGUMENTS} further arguments")]
    TooManyArguments,
}

/// What a word of `command` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word<'a> {
    Plain,
    /// `${name}`.
    Whole(&'a str),
    /// `--option=${name}`, the option with its `=`.
    Option(&'a str, &'a str),
}

impl<'a> Word<'a> {
    pub(crate) fn of(word: &'a str) -> Self {
        let name = |text: &'a str| {
            let inner = text.strip_prefix("${")?.strip_suffix('}')?;
            (!inner.contains(['$', '{', '}'])).then_some(inner)
        };
        if let Some(name) = name(word) {
            return Self::Whole(name);
        }
        let option = word.find("=${").filter(|_| word.starts_with('-'));
        match option.map(|at| word.split_at(at + 1)) {
            Some((option, rest)) => name(rest).map_or(Self::Plain, |name| Self::Option(option, name)),
            None => Self::Plain,
        }
    }

    pub(crate) const fn parameter(self) -> Option<&'a str> {
        match self {
            Self::Plain => None,
            Self::Whole(name) | Self::Option(_, name) => Some(name),
        }
    }
}

/// A pattern that a whole text must match. None where it is no regular expression, or one that takes too much memory.
pub(crate) fn whole(pattern: &str) -> Option<Regex> {
    let built = |text: &str| {
        let mut builder = RegexBuilder::new(text);
        builder
            .size_limit(PATTERN_BYTES)
            .dfa_size_limit(PATTERN_BYTES)
            .nest_limit(32);
        builder.build().ok()
    };
    // By itself first: `a)|(b` is none.
    built(pattern)?;
    built(&format!(r"\A(?:{pattern})\z"))
}

fn sound(text: &str) -> bool {
    text.len() <= MAX_VALUE_BYTES && !text.chars().any(char::is_control)
}

/// As messages repeat what somebody gave.
fn shown(value: &str) -> String {
    crate::problem::quote(value)
}

impl Parameter {
    /// Whether it may have this value.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, value: &str) -> Result<(), RenderError> {
        let Self {
            name,
            description: _,
            default: _,
            values,
            pattern,
            env,
        } = self;
        if values.iter().any(|allowed| allowed.0 == value) {
            return Ok(());
        }
        let (name, value_shown) = (name.clone(), shown(value));
        if !values.is_empty() {
            let allowed: Vec<String> = values.iter().map(|value| shown(&value.0)).collect();
            return Err(RenderError::NotOneOf {
                name,
                value: value_shown,
                allowed: allowed.join(", "),
            });
        }
        if !sound(value) {
            return Err(RenderError::Form {
                what: format!("the parameter `{name}`"),
            });
        }
        match pattern {
            Some(pattern) => {
                // Admission refuses what is no pattern: nothing matches it.
                if whole(pattern).is_some_and(|whole| whole.is_match(value)) {
                    Ok(())
                } else {
                    Err(RenderError::NoMatch {
                        name,
                        value: value_shown,
                        pattern: shown(pattern),
                    })
                }
            }
            None if value.starts_with('-') && env.is_none() => Err(RenderError::Option {
                name,
                value: value_shown,
            }),
            None => Ok(()),
        }
    }
}

impl CommandSpec {
    /// The slot that it names, where it names one.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.slot.as_ref()?.0.parse().ok()
    }

    /// The words of a run, for what its caller gives: values by the names of parameters, and further arguments.
    ///
    /// # Errors
    /// When the command does not take that.
    pub fn render(&self, given: &BTreeMap<String, String>, arguments: &[String]) -> Result<Rendered, RenderError> {
        let known = |name: &str| self.parameters.iter().any(|parameter| parameter.name.as_str() == name);
        if let Some(name) = given.keys().find(|name| !known(name)) {
            let names: Vec<&str> = self.parameters.iter().map(|one| one.name.as_str()).collect();
            return Err(RenderError::Unknown {
                name: crate::problem::quote(name).trim_matches('`').to_owned(),
                known: if names.is_empty() {
                    "it takes none".to_owned()
                } else {
                    format!("it takes {}", names.join(", "))
                },
            });
        }
        let mut values: BTreeMap<&str, &str> = BTreeMap::new();
        let mut env: BTreeMap<String, String> = self
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.0.clone()))
            .collect();
        for parameter in &self.parameters {
            let name = parameter.name.as_str();
            let said = given.get(name).map(String::as_str);
            if let Some(said) = said {
                parameter.admits(said)?;
            }
            let default = parameter.default.as_ref().map(|default| default.0.as_str());
            let value = said.or(default).ok_or_else(|| RenderError::Missing {
                name: parameter.name.clone(),
                about: parameter.description.clone(),
            })?;
            values.insert(name, value);
            if let Some(variable) = &parameter.env {
                env.insert(variable.clone(), value.to_owned());
            }
        }
        if !arguments.is_empty() && !self.extra_arguments {
            return Err(RenderError::NoArguments);
        }
        if arguments.len() > MAX_ARGUMENTS {
            return Err(RenderError::TooManyArguments);
        }
        if !arguments.iter().all(|argument| sound(argument)) {
            return Err(RenderError::Form {
                what: "a further argument".to_owned(),
            });
        }
        // A reference to nothing is refused at admission, and would be left as it stands.
        let word = |Text(word): &Text| match Word::of(word) {
            Word::Plain => word.clone(),
            Word::Whole(name) => values
                .get(name)
                .map_or_else(|| word.clone(), |value| (*value).to_owned()),
            Word::Option(option, name) => values
                .get(name)
                .map_or_else(|| word.clone(), |value| format!("{option}{value}")),
        };
        let command = self.command.iter().map(word).chain(arguments.iter().cloned()).collect();
        Ok(Rendered { command, env })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(command: &[&str], parameters: Vec<Parameter>) -> CommandSpec {
        CommandSpec {
            command: command.iter().map(|word| Text((*word).to_owned())).collect(),
            parameters,
            ..CommandSpec::default()
        }
    }

    fn parameter(name: &str) -> Parameter {
        Parameter {
            name: name.parse().unwrap(),
            description: None,
            default: None,
            values: Vec::new(),
            pattern: None,
            env: None,
        }
    }

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn values_become_words_of_their_own_whatever_is_in_them() {
        let spec = spec(
            &["tool", "${key}", "--mode=${mode}", "a${key}b"],
            vec![parameter("key"), parameter("mode")],
        );
        let rendered = spec
            .render(&given(&[("key", "a b; rm -rf / $(x)"), ("mode", "${key}")]), &[])
            .unwrap();
        assert_eq!(
            rendered.command,
            ["tool", "a b; rm -rf / $(x)", "--mode=${key}", "a${key}b"]
        );
    }

    #[test]
    fn what_is_not_declared_is_not_taken() {
        let mut spec = spec(&["tool", "${mode}"], vec![parameter("mode")]);
        let why = |spec: &CommandSpec, pairs: &[(&str, &str)], more: &[&str]| {
            let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
            spec.render(&given(pairs), &more).unwrap_err().to_string()
        };
        assert_eq!(why(&spec, &[], &[]), "the parameter `mode` is missing");
        assert_eq!(why(&spec, &[("x", "1")], &[]), "it has no parameter `x`; it takes mode");
        assert!(why(&spec, &[("mode", "--eval")], &[]).contains("would be an option"));
        assert!(why(&spec, &[("mode", "a\nb")], &[]).contains("control character"));
        assert_eq!(why(&spec, &[("mode", "a")], &["b"]), "it takes no further arguments");
        spec.extra_arguments = true;
        let rendered = spec.render(&given(&[("mode", "a")]), &["-b".to_owned()]).unwrap();
        assert_eq!(rendered.command, ["tool", "a", "-b"]);
        spec.parameters[0].values = vec![Text("soft".to_owned()), Text("--hard".to_owned())];
        assert_eq!(
            why(&spec, &[("mode", "a")], &[]),
            "the parameter `mode` cannot be `a`: it is one of `soft`, `--hard`"
        );
        assert!(spec.render(&given(&[("mode", "--hard")]), &[]).is_ok());
    }

    #[test]
    fn a_pattern_is_matched_as_a_whole() {
        let mut one = parameter("id");
        one.pattern = Some("[0-9]+|all".to_owned());
        for good in ["7", "all"] {
            assert!(one.admits(good).is_ok(), "{good}");
        }
        for bad in ["7; x", "x7", "all ", "al", "", "7\n"] {
            assert!(one.admits(bad).is_err(), "{bad}");
        }
        for none in ["a)|(b", "(", "(?x) a # ", "((((a{100}){100}){100}){100})", r"(?<x"] {
            assert!(whole(none).is_none(), "{none}");
        }
    }

    #[test]
    fn defaults_and_variables_are_filled_in() {
        let mut mode = parameter("mode");
        mode.default = Some(Text("soft".to_owned()));
        mode.env = Some("MODE".to_owned());
        let mut spec = spec(&["tool"], vec![mode]);
        spec.env = [("TZ".to_owned(), Text("UTC".to_owned()))].into();
        let rendered = spec.render(&given(&[]), &[]).unwrap();
        assert_eq!(rendered.env, given(&[("MODE", "soft"), ("TZ", "UTC")]));
        // No option is made of a variable's value.
        assert_eq!(spec.render(&given(&[("mode", "-x")]), &[]).unwrap().env["MODE"], "-x");
    }

    proptest! {
        #[test]
        fn no_value_changes_another_word_or_their_number(value in "\\PC{0,40}", mode in "\\PC{0,40}") {
            let spec = spec(&["tool", "${a}", "x", "--m=${b}"], vec![parameter("a"), parameter("b")]);
            if let Ok(rendered) = spec.render(&given(&[("a", &value), ("b", &mode)]), &[]) {
                prop_assert_eq!(rendered.command, vec!["tool".to_owned(), value, "x".to_owned(), format!("--m={mode}")]);
            }
        }
    }
}
