//! Named commands as `get`, `describe` and `run` show them. What they mean is `schemas`' to say.

use schemas::command::{CommandNodes, CommandSpec, NODE_TIMEOUT, Parameter};
use schemas::keys::ResourceKey;
use schemas::kinds::Document;
use serde_json::json;

use crate::describe;
use crate::get;
use crate::output::{self, Cell, Format, Tone};
use crate::rows::{self, State};
use crate::view::{Declared, View};

pub const HEAD: &[&str] = &["NAME", "RUNS", "COMMAND", "STATUS"];

/// A command's spec, where its document is valid.
pub fn spec_of(declared: &Declared) -> Option<&CommandSpec> {
    match &declared.admitted.as_ref().ok()?.document {
        Document::Command(command) => Some(&command.spec),
        Document::Service(_)
        | Document::Node(_)
        | Document::ConfigFile(_)
        | Document::Registry(_)
        | Document::Secret(_)
        | Document::NetworkPolicy(_)
        | Document::VirtualIP(_) => None,
    }
}

fn state(declared: Option<&Declared>) -> State {
    match declared.map(|declared| &declared.admitted) {
        Some(Ok(_)) => State::new("Declared", Tone::Good, ""),
        Some(Err(problems)) => rows::invalid(problems.problems.first(), problems.count() - 1),
        None => rows::invalid(None, 0),
    }
}

/// Where it runs: `web`, `web.2`, `all web`, `all nodes`, `nodes n1,n2`, `nodes disk=ssd`.
pub fn place(spec: &CommandSpec) -> String {
    match (&spec.service, &spec.nodes) {
        (Some(service), _) => match (&spec.slot, spec.all) {
            (Some(slot), _) => format!("{service}.{}", slot.0),
            (None, true) => format!("all {service}"),
            (None, false) => service.to_string(),
        },
        (None, Some(CommandNodes { all: true, .. })) => "all nodes".to_owned(),
        (None, Some(CommandNodes { all: _, names, labels })) => {
            let names = names.iter().map(ToString::to_string);
            let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
            format!("nodes {}", names.chain(labels).collect::<Vec<_>>().join(","))
        }
        (None, None) => String::new(),
    }
}

/// Words as a person would type them.
pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    let word = |word: &str| {
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

/// A command's line.
pub fn row(view: &View, key: &ResourceKey) -> Vec<Cell> {
    let declared = view.declared.get(key).map(AsRef::as_ref);
    let spec = declared.and_then(spec_of);
    vec![
        key.name.as_str().into(),
        spec.map_or_else(String::new, place).into(),
        spec.map_or_else(String::new, |spec| {
            output::cut(&words(spec.command.iter().map(|word| word.0.as_str())), 32)
        })
        .into(),
        state(declared).cell(),
    ]
}

/// What a parameter may be, in words.
pub fn parameter(parameter: &Parameter) -> String {
    let Parameter {
        name: _,
        description,
        default,
        values,
        pattern,
        env: _,
    } = parameter;
    let shown = |text: &str| format!("`{text}`");
    let allowed = if values.is_empty() {
        pattern.as_ref().map(|pattern| format!("matches `{pattern}`"))
    } else {
        let values: Vec<String> = values.iter().map(|value| shown(&value.0)).collect();
        Some(format!("one of {}", values.join(", ")))
    };
    let default = match default {
        Some(default) => format!("{} when not given", shown(&default.0)),
        None => "must be given".to_owned(),
    };
    let parts = [description.clone(), allowed, Some(default)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// `reeve describe command`.
pub fn describe(view: &View, key: &ResourceKey, format: Format) -> Option<String> {
    let declared = view.declared.get(key)?;
    if format.is_for_machines() {
        let value = json!({ "resource": get::document(view, key, declared) });
        return Some(match format {
            Format::Yaml => output::yaml(&value),
            Format::Name => format!("command/{}\n", key.name),
            Format::Json | Format::Table | Format::Wide => output::json(&value),
        });
    }
    let mut text = describe::head(key, &state(Some(declared)), None);
    let Some(spec) = spec_of(declared) else {
        if let Err(problems) = &declared.admitted {
            text.push('\n');
            text.push_str(&problems.render(output::look()));
        }
        return Some(text);
    };
    describe::sentence_of(&mut text, "For", spec.description.as_deref().unwrap_or_default());
    let runs = match (&spec.service, spec.all, &spec.slot) {
        (Some(service), true, _) => format!("in all running instances of {service} at once"),
        (Some(service), false, None) => {
            format!("in the first ready instance of {service}, or in that of --on")
        }
        (Some(service), false, Some(slot)) => format!("in {service}.{}", slot.0),
        (None, ..) => format!("on {}; each must allow it by its policy", place(spec)),
    };
    describe::sentence_of(&mut text, "Runs", &runs);
    let command = words(spec.command.iter().map(|word| word.0.as_str()));
    describe::sentence_of(&mut text, "Command", &command);
    if spec.extra_arguments {
        describe::line(&mut text, "Arguments", "further ones after `--`, as they are");
    }
    for one in &spec.parameters {
        describe::sentence_of(&mut text, "Parameter", &format!("{}: {}", one.name, parameter(one)));
    }
    let timeout = spec.timeout.or(spec.nodes.as_ref().map(|_| NODE_TIMEOUT));
    describe::line(
        &mut text,
        "Time",
        &timeout.map_or_else(String::new, |timeout| format!("at most {timeout}")),
    );
    describe::line(&mut text, "User", spec.user.as_ref().map_or("", |user| user.0.as_str()));
    describe::line(&mut text, "Directory", spec.working_dir.as_deref().unwrap_or_default());
    let variables: Vec<&str> = spec.env.keys().map(String::as_str).collect();
    describe::sentence_of(&mut text, "Variables", &variables.join(", "));
    if spec.tty || spec.stdin {
        let what = if spec.tty { "your terminal" } else { "standard input" };
        describe::line(&mut text, "Gets", what);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shown_as_they_would_be_typed() {
        assert_eq!(
            words(["echo", "a b", "", "it's", "--x=1", "${name}"]),
            r"echo 'a b' '' 'it'\''s' --x=1 '${name}'"
        );
    }
}
