//! The schema validator's errors in our words: for each a place, a reason that people understand, and a remedy.
//! Admission calls it on documents that the published schema does not admit.
#![allow(clippy::wildcard_enum_match_arm)] // The validator's enums grow; what we do not know has an answer too.

use std::collections::BTreeSet;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::LocationSegment;
use serde_json::Value;

use super::{Aim, explain_path, point};
use crate::kinds::{self, Kind};
use crate::problem::{Code, Finding, closest, quote};
use crate::yaml::{self, Content, Step, Tree, describe, path_text};

/// The validator's errors in our words. `unknown` receives the paths of unknown keys.
pub(super) fn schema_findings(
    kind: Kind,
    tree: &Tree,
    text: &str,
    value: &Value,
    unknown: &mut Vec<Vec<Step>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    // One value of a wrong type fails its enum, pattern and format as well: said once.
    let mut said: BTreeSet<Vec<Step>> = BTreeSet::new();
    let mut later = Vec::new();
    for error in kind.validator().iter_errors(value).take(yaml::MAX_VALUES) {
        let path: Vec<Step> = error
            .instance_path()
            .iter()
            .map(|segment| match segment {
                LocationSegment::Property(name) => Step::Key(name.into_owned()),
                LocationSegment::Index(index) => Step::Index(index),
            })
            .collect();
        let of_value = matches!(
            error.kind(),
            ValidationErrorKind::Pattern { .. }
                | ValidationErrorKind::Format { .. }
                | ValidationErrorKind::Enum { .. }
                | ValidationErrorKind::Constant { .. }
                | ValidationErrorKind::MinLength { .. }
                | ValidationErrorKind::MaxLength { .. }
        );
        if of_value {
            later.push((path, error));
            continue;
        }
        if matches!(error.kind(), ValidationErrorKind::Type { .. }) {
            said.insert(path.clone());
        }
        findings.extend(translate(kind, tree, text, &path, &error, unknown));
    }
    // A format is finer than a pattern, a pattern finer than a length.
    later.sort_by_key(|(_, error)| match error.kind() {
        ValidationErrorKind::MinLength { .. } | ValidationErrorKind::MaxLength { .. } => 0,
        ValidationErrorKind::Format { .. } => 2,
        _ => 1,
    });
    for (path, error) in later {
        if said.insert(path.clone()) {
            findings.extend(translate(kind, tree, text, &path, &error, unknown));
        }
    }
    findings
}

fn translate(
    kind: Kind,
    tree: &Tree,
    text: &str,
    path: &[Step],
    error: &ValidationError<'_>,
    unknown: &mut Vec<Vec<Step>>,
) -> Vec<Finding> {
    let schema = kind.schema_at(path).unwrap_or(&Value::Null);
    let node = tree.at(path);
    let value_at = point(tree, text, path, Aim::Value);
    let here = path_text(path);
    let written = tree
        .find(path)
        .and_then(|spans| text.get(spans.value.start..spans.value.end))
        .filter(|written| !written.contains('\n'))
        .unwrap_or_default();
    let finding = |code: Code, message: String| Finding::new(value_at, here.clone(), code, message);
    let range = || between(schema);
    let one = match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            return unexpected
                .iter()
                .map(|key| unknown_key(kind, tree, text, path, key, schema, unknown))
                .collect();
        }
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let about = kind.description_at(&[path, &[Step::from(name)]].concat());
            let about = about
                .and_then(|about| about.lines().next())
                .map(first_sentence)
                .unwrap_or_default();
            let at = point(tree, text, path, Aim::Key);
            let message = format!("the key `{name}` is missing");
            let remedy = match about {
                "" => format!("add `{name}:`"),
                about => format!("add `{name}:` ({})", lower_first(about)),
            };
            return vec![Finding::new(at, here, Code::MissingKey, message).remedy(remedy)];
        }
        ValidationErrorKind::Type { .. } => {
            let content = node.map_or(&Content::Null, |node| &node.content);
            let message = match (content, written) {
                (Content::Null, _) => "it has no value".to_owned(),
                (Content::List(_) | Content::Mapping(_), _) | (_, "") => {
                    format!("found {}, needs {}", describe(content), wanted(schema))
                }
                (Content::Text(_), _) => format!("found the text {}, needs {}", quote(bare(written)), wanted(schema)),
                _ => format!(
                    "found {} {}, needs {}",
                    describe(content),
                    quote(written),
                    wanted(schema)
                ),
            };
            finding(Code::WrongType, message).remedy(retype(content, written, schema, path))
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<&str> = options
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let list = options
                .iter()
                .map(|option| format!("`{option}`"))
                .collect::<Vec<_>>()
                .join(", ");
            let near = node
                .and_then(Tree::text)
                .and_then(|word| closest(word, options.iter().copied()));
            let found = finding(
                Code::BadValue,
                format!("{} is not one of its values", quote(bare(written))),
            );
            match near {
                Some(near) => found.remedy(format!("did you mean `{near}`? Its values are {list}")),
                None => found.remedy(format!("its values are {list}")),
            }
        }
        ValidationErrorKind::Constant { expected_value } => {
            let wanted = expected_value.as_str().unwrap_or_default();
            finding(Code::BadValue, format!("{} is not its value", quote(bare(written))))
                .remedy(format!("write `{wanted}`"))
        }
        ValidationErrorKind::Pattern { pattern } => {
            let meaning = kinds::PATTERNS
                .iter()
                .find(|(known, _)| known == pattern)
                .map(|(_, meaning)| *meaning);
            let found = finding(Code::BadValue, format!("{} cannot be read", quote(bare(written))));
            let found = found.remedy(meaning.map_or_else(|| format!("it must match {pattern}"), str::to_owned));
            let word = node.and_then(Tree::text).unwrap_or_default();
            match repair(word, pattern) {
                Some(better) => found.remedy(format!("{}; did you mean `{better}`?", meaning.unwrap_or_default())),
                None => found,
            }
        }
        ValidationErrorKind::Format { format } => {
            let (code, why) = why_format(format, node.and_then(Tree::text).unwrap_or_default());
            finding(code, why.0).remedy(why.1)
        }
        ValidationErrorKind::Minimum { limit } | ValidationErrorKind::ExclusiveMinimum { limit } => {
            finding(Code::OutOfRange, format!("{} is less than {limit}", quote(written))).remedy(range())
        }
        ValidationErrorKind::Maximum { limit } | ValidationErrorKind::ExclusiveMaximum { limit } => {
            finding(Code::OutOfRange, format!("{} is more than {limit}", quote(written))).remedy(range())
        }
        ValidationErrorKind::MinLength { limit } => {
            let message = if *limit == 1 {
                "it is empty".to_owned()
            } else {
                format!("it has less than {limit} characters")
            };
            finding(Code::BadLength, message).remedy("give it a value, or remove the key")
        }
        ValidationErrorKind::MaxLength { limit } => {
            let length = node.and_then(Tree::text).map_or(0, |text| text.chars().count());
            finding(
                Code::BadLength,
                format!("it has {length} characters; the limit is {limit}"),
            )
            .remedy("shorten it")
        }
        ValidationErrorKind::MinItems { limit } => {
            let message = if *limit == 1 {
                "the list is empty".to_owned()
            } else {
                format!("the list has less than {limit} entries")
            };
            finding(Code::BadLength, message).remedy("add an entry, or remove the key")
        }
        ValidationErrorKind::MaxItems { limit } => {
            finding(Code::BadLength, format!("the list has more than {limit} entries")).remedy("remove some")
        }
        ValidationErrorKind::MinProperties { limit } => {
            finding(Code::BadLength, format!("the mapping has less than {limit} keys")).remedy("add some")
        }
        ValidationErrorKind::MaxProperties { limit } => {
            finding(Code::BadLength, format!("the mapping has more than {limit} keys")).remedy("remove some")
        }
        // Keywords that our schemas do not use (a test says so).
        other => finding(
            Code::BadValue,
            format!("the rule `{}` of its schema is broken", other.keyword()),
        )
        .remedy(format!("see `reeve explain {}`", explain_path(kind, path))),
    };
    vec![one]
}

/// Words of other systems, and what they are called here.
const FOREIGN: &[(&str, &str)] = &[
    ("capAdd", "capabilities.add"),
    ("capDrop", "capabilities.drop"),
    ("containers", "container"),
    ("cpus", "resources.limits.cpu"),
    ("destination", "target"),
    ("entrypoint", "command"),
    ("environment", "env"),
    ("expose", "ports"),
    ("imagePullPolicy", "pullPolicy"),
    ("livenessProbe", "healthCheck"),
    ("memLimit", "resources.limits.memory"),
    ("memory", "resources.limits.memory"),
    ("networks", "networkMode"),
    ("nodeSelector", "placement.required"),
    ("pull", "pullPolicy"),
    ("published", "hostPort"),
    ("readinessProbe", "healthCheck"),
    ("restart", "restartPolicy"),
    ("scale", "replicas"),
    ("startupProbe", "healthCheck"),
    ("stdinOpen", "stdin"),
    ("strategy", "update"),
    ("template", "container"),
    ("terminationGracePeriodSeconds", "stopGracePeriod"),
    ("updateConfig", "update"),
    ("volumeMounts", "mounts"),
    ("volumes", "mounts"),
];

fn unknown_key(
    kind: Kind,
    tree: &Tree,
    text: &str,
    path: &[Step],
    key: &str,
    schema: &Value,
    unknown: &mut Vec<Vec<Step>>,
) -> Finding {
    let full = [path, &[Step::Key(key.to_owned())]].concat();
    let at = point(tree, text, &full, Aim::Key);
    let known: Vec<&str> = schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|map| map.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let plain = |word: &str| word.to_lowercase().replace(['_', '-'], "");
    let foreign = FOREIGN
        .iter()
        .find(|(word, _)| plain(word) == plain(key))
        .map(|(_, ours)| *ours);
    let homes = kind.homes(key);
    let home = path_text(path);
    let finding = Finding::new(at, home, Code::UnknownKey, format!("unknown key {}", quote(key)));
    unknown.push(full);
    if !kind.namespaced() && key == "namespace" && path.len() == 1 {
        let mut finding = finding.remedy("remove it");
        finding.message = format!("a {} is cluster-wide and has no namespace", kind.name());
        return finding;
    }
    if let Some(near) = closest(key, known.iter().copied()) {
        return finding.remedy(format!("did you mean `{near}`?"));
    }
    if let Some(ours) = foreign {
        let first = ours.split('.').next().unwrap_or(ours);
        let homes = kind.homes(first);
        return match homes.first() {
            _ if known.contains(&first) => finding.remedy(format!("it is called `{ours}` here")),
            Some(home) => finding.remedy(format!("it is called `{ours}` here, under `{home}`")),
            None => finding.remedy("remove it"),
        };
    }
    if let Some(first) = homes.first() {
        let first = if first.is_empty() {
            "the top of the document"
        } else {
            &format!("`{first}`")
        };
        return finding.remedy(format!("{} belongs to {first}", quote(key)));
    }
    if known.is_empty() {
        return finding.remedy("remove it");
    }
    if known.len() <= 12 {
        let list = known
            .iter()
            .map(|key| format!("`{key}`"))
            .collect::<Vec<_>>()
            .join(", ");
        return finding.remedy(format!("its keys are {list}"));
    }
    finding.remedy(format!("`reeve explain {}` lists its keys", explain_path(kind, path)))
}

/// What a schema wants, with its article.
fn wanted(schema: &Value) -> String {
    let example = schema
        .get("examples")
        .and_then(|examples| examples.get(0))
        .and_then(Value::as_str);
    if takes(schema, "string") && takes(schema, "boolean") {
        return "a text".to_owned();
    }
    let word = |name: &str| match name {
        "string" => match example {
            Some(example) => format!("a text such as `{example}`"),
            None => "a text".to_owned(),
        },
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "array" => "a list".to_owned(),
        "object" => "a mapping".to_owned(),
        other => other.to_owned(),
    };
    match schema.get("type") {
        Some(Value::String(name)) => word(name),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .map(word)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "another value".to_owned(),
    }
}

fn takes(schema: &Value, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(names)) => names.iter().any(|known| known == name),
        _ => false,
    }
}

/// How to write a value of the wanted type.
fn retype(content: &Content, written: &str, schema: &Value, path: &[Step]) -> String {
    let example = schema
        .get("examples")
        .and_then(|examples| examples.get(0))
        .and_then(Value::as_str);
    let short: String = written.chars().take(40).collect();
    let text = bare(&short);
    match content {
        Content::Null => "give it a value, or remove the key".to_owned(),
        Content::Number(_) if schema.get("format") == Some(&Value::from(kinds::FORMAT_DURATION)) => {
            format!("add the unit: `{text}s`")
        }
        Content::Number(_) | Content::Bool(_) | Content::Text(_) if takes(schema, "array") => {
            format!("write a list: `[{short}]`, or `- {short}` on a line of its own")
        }
        Content::Number(_) | Content::Bool(_) if takes(schema, "string") => match example {
            Some(example) => format!("write it such as `{example}`"),
            None => format!("quote it: \"{text}\""),
        },
        Content::Text(value) if takes(schema, "boolean") => match value.to_lowercase().as_str() {
            "yes" | "on" | "y" | "true" | "1" => "write `true`".to_owned(),
            "no" | "off" | "n" | "false" | "0" => "write `false`".to_owned(),
            _ => "write `true` or `false`".to_owned(),
        },
        Content::Text(value) if takes(schema, "integer") || takes(schema, "number") => {
            if value.trim().parse::<i64>().is_ok() {
                format!("write it without quotes: {}", value.trim())
            } else {
                between(schema)
            }
        }
        Content::Number(_) if takes(schema, "integer") => between(schema),
        Content::Number(_) if takes(schema, "boolean") => "write `true` or `false`".to_owned(),
        Content::Mapping(_) if takes(schema, "array") => {
            "write a list, each entry of which begins with `- `".to_owned()
        }
        Content::List(items) if takes(schema, "object") => {
            let pairs = !items.is_empty()
                && items
                    .iter()
                    .all(|item| item.text().is_some_and(|text| text.contains('=')));
            if pairs {
                "write `NAME: value` lines instead of `- NAME=value`".to_owned()
            } else {
                keys_of(schema)
            }
        }
        Content::Number(_) | Content::Bool(_) | Content::Text(_) if takes(schema, "object") => keys_of(schema),
        Content::List(items) if takes(schema, "string") && items.len() == 1 => {
            "write the one value without the list".to_owned()
        }
        Content::Number(_) | Content::Bool(_) | Content::Text(_) | Content::List(_) | Content::Mapping(_) => {
            match (example, path.last()) {
                (Some(example), Some(Step::Key(key))) => format!("write `{key}: {example}`"),
                _ => format!("write {}", wanted(schema)),
            }
        }
    }
}

fn keys_of(schema: &Value) -> String {
    match schema.get("properties").and_then(Value::as_object) {
        Some(known) if known.len() <= 10 => {
            let list = known
                .keys()
                .map(|key| format!("`{key}`"))
                .collect::<Vec<_>>()
                .join(", ");
            format!("write its keys on indented lines below it: {list}")
        }
        _ => "write `key: value` on indented lines below it".to_owned(),
    }
}

fn between(schema: &Value) -> String {
    let number = if takes(schema, "number") {
        "a number"
    } else {
        "a whole number"
    };
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(min), Some(max)) if max.as_u64().is_none_or(|max| max < 1 << 52) => {
            format!("write {number} from {min} to {max}")
        }
        (Some(min), _) => format!("write {number} of {min} or more"),
        (None, Some(max)) => format!("write {number} of {max} or less"),
        (None, None) => format!("write {number}"),
    }
}

/// The refusal of a format, and the remedy, from the type's own words.
fn why_format(format: &str, text: &str) -> (Code, (String, String)) {
    let split = |text: String| match text.split_once(": ") {
        Some((message, remedy)) => (message.to_owned(), remedy.to_owned()),
        None => (text, "see `reeve explain`".to_owned()),
    };
    match format {
        kinds::FORMAT_IMAGE => {
            let why = text
                .parse::<crate::image::ImageRef>()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            let (message, form) = split(why);
            let form = format!("{form}; an image is written `[host[:port]/]path[:tag][@sha256:digest]`");
            let lower = text.to_lowercase();
            let better = (lower != text && lower.parse::<crate::image::ImageRef>().is_ok()).then_some(lower);
            let form = better.map_or(form, |better| {
                format!("did you mean `{better}`? Paths are in lower case")
            });
            (Code::BadImage, (message, form))
        }
        kinds::FORMAT_DURATION => (
            Code::BadQuantity,
            (
                format!("{} is not a duration", quote(text)),
                "write each unit once, the largest first, at most `365d` in all, such as `1m30s`".to_owned(),
            ),
        ),
        kinds::FORMAT_CPU => (
            Code::BadQuantity,
            (
                format!("{} is not an amount of CPU", quote(text)),
                "write cores such as `0.5`, at most 1024".to_owned(),
            ),
        ),
        kinds::FORMAT_SIZE => (
            Code::BadQuantity,
            (
                format!("{} is not a size", quote(text)),
                "write a whole number of bytes, at most `1024Ti`, such as `512Mi` or `1.5Gi`".to_owned(),
            ),
        ),
        kinds::FORMAT_ADDRESS => (
            Code::BadAddress,
            (
                format!("{} is not an IP address", quote(text)),
                "write it as `192.0.2.1` or `2001:db8::1`".to_owned(),
            ),
        ),
        other => (
            Code::BadValue,
            (
                format!("{} is no {other}", quote(text)),
                "see `reeve explain`".to_owned(),
            ),
        ),
    }
}

/// What was probably meant by a text that a pattern refuses.
fn repair(text: &str, pattern: &str) -> Option<String> {
    let better = match pattern {
        crate::names::LABEL_PATTERN | crate::names::NODE_PATTERN => text
            .to_lowercase()
            .replace(['_', '.', ' ', '/'], "-")
            .trim_matches('-')
            .to_owned(),
        _ => {
            let known = kinds::PATTERNS.iter().find(|(known, _)| *known == pattern)?.1;
            if !(known.starts_with("a size") || known.starts_with("a swap")) {
                return None;
            }
            // `512mb`, `1 GiB`: the number, and the unit by its first letter.
            let at = text.find(|c: char| c.is_ascii_alphabetic() || c == ' ')?;
            let (number, unit) = (text[..at].trim(), text[at..].trim().to_lowercase());
            let unit = match unit.as_str() {
                "b" | "bytes" => "",
                "k" | "kb" => "k",
                "m" | "mb" => "M",
                "g" | "gb" => "G",
                "t" | "tb" => "T",
                "ki" | "kib" => "Ki",
                "mi" | "mib" => "Mi",
                "gi" | "gib" => "Gi",
                "ti" | "tib" => "Ti",
                _ => return None,
            };
            format!("{number}{unit}")
        }
    };
    let good = match pattern {
        crate::names::LABEL_PATTERN => better.parse::<crate::names::Label>().is_ok(),
        crate::names::NODE_PATTERN => better.parse::<crate::names::NodeName>().is_ok(),
        _ => better.parse::<crate::units::ByteSize>().is_ok(),
    };
    (good && better != text).then_some(better)
}

/// A text without the quotes it was written in.
fn bare(written: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = written.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    written
}

fn first_sentence(text: &str) -> &str {
    let text = text.split(". ").next().unwrap_or(text);
    text.split(": `").next().unwrap_or(text).trim_end_matches('.')
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
