//! `reeve explain service.spec.container.ports`: what a key means, from the published JSON Schema alone. The CLI calls it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::kinds::{Kind, UnknownKind, resolve};
use crate::problem::{closest, quote};

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The first word is no kind.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// A later word is no key there.
    #[error("`{place}` has no key {key}{}", remedy(.near.as_deref(), .keys))]
    Key {
        /// The part of the path that is right.
        place: String,
        /// The word that is wrong.
        key: String,
        /// What was probably meant.
        near: Option<String>,
        /// The keys there are.
        keys: Vec<String>,
    },
}

fn remedy(near: Option<&str>, keys: &[String]) -> String {
    match (near, keys) {
        (Some(near), _) => format!(", did you mean `{near}`?"),
        (None, []) => ": it has no keys".to_owned(),
        (None, keys) => format!("; its keys are {}", keys.join(", ")),
    }
}

/// Explains `KIND[.key[.key...]]`; lists are stepped into by their name (`ports` or `ports[]`), maps by any key.
///
/// # Errors
/// A path that is not in the schema, with the nearest one.
pub fn explain(path: &str) -> Result<String, ExplainError> {
    let mut words = path
        .split('.')
        .map(|word| word.split('[').next().unwrap_or(word))
        .filter(|word| !word.is_empty());
    let kind = Kind::from_person(words.next().unwrap_or_default())?;
    let root = kind.schema();
    let mut at = root;
    let mut place = kind.segment().to_owned();
    let mut about = at.get("description").and_then(Value::as_str);
    let mut required = false;
    for word in words {
        let holder = entry(root, at);
        let properties = holder.get("properties").and_then(Value::as_object);
        let found = properties.and_then(|known| known.get(word));
        let found = found.or_else(|| holder.get("additionalProperties").filter(|schema| schema.is_object()));
        let Some(found) = found else {
            let keys: Vec<String> = properties
                .map(|known| known.keys().cloned().collect())
                .unwrap_or_default();
            let near = closest(word, keys.iter().map(String::as_str)).map(str::to_owned);
            return Err(ExplainError::Key {
                place,
                key: quote(word),
                near,
                keys,
            });
        };
        required = requires(holder, word);
        let definition = resolve(root, found);
        about = found
            .get("description")
            .or_else(|| definition.get("description"))
            .and_then(Value::as_str);
        at = definition;
        let _ = write!(place, ".{word}");
    }
    Ok(describe(root, at, &place, about, required))
}

/// What a list holds, or the schema itself.
fn entry<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("items") {
        Some(items) => resolve(root, items),
        None => schema,
    }
}

fn requires(schema: &Value, key: &str) -> bool {
    schema
        .get("required")
        .and_then(Value::as_array)
        .is_some_and(|required| required.iter().any(|name| name == key))
}

fn describe(root: &Value, schema: &Value, place: &str, about: Option<&str>, required: bool) -> String {
    let mut out = format!(
        "{place}  <{}>{}\n",
        type_name(root, schema),
        if required { "  required" } else { "" }
    );
    for paragraph in about.unwrap_or_default().split("\n\n") {
        wrapped(&mut out, paragraph, 2);
    }
    let values: Vec<String> = strings(schema, "enum")
        .iter()
        .map(|value| format!("`{value}`"))
        .collect();
    if !values.is_empty() {
        wrapped(&mut out, &format!("Values: {}.", values.join(", ")), 2);
    }
    if let Some(limits) = limits(schema) {
        wrapped(&mut out, &format!("Limits: {limits}."), 2);
    }
    if let Some(form) = schema.get("patternErrorMessage").and_then(Value::as_str) {
        wrapped(&mut out, &format!("Form: {form}."), 2);
    }
    let examples = strings(schema, "examples");
    if !examples.is_empty() {
        wrapped(&mut out, &format!("Example: {}", examples.join(", ")), 2);
    }
    let holder = entry(root, schema);
    if let Some(Value::Object(properties)) = holder.get("properties") {
        out.push_str("\nKeys:\n");
        let mut names: Vec<&String> = properties.keys().collect();
        names.sort_by_key(|name| (!requires(holder, name), *name));
        for name in names {
            let property = &properties[name];
            let definition = resolve(root, property);
            let star = if requires(holder, name) { "  required" } else { "" };
            let _ = writeln!(out, "  {name}  <{}>{star}", type_name(root, definition));
            let text = property
                .get("description")
                .or_else(|| definition.get("description"))
                .and_then(Value::as_str);
            let first = text.and_then(|text| text.split("\n\n").next()).unwrap_or_default();
            wrapped(&mut out, first, 6);
        }
    }
    out
}

fn strings<'a>(schema: &'a Value, key: &str) -> Vec<&'a str> {
    schema
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn type_name(root: &Value, schema: &Value) -> String {
    let word = |name: &str| match name {
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "number" => "number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => match schema.get("items") {
            Some(items) => format!("list of {}", type_name(root, resolve(root, items))),
            None => "list".to_owned(),
        },
        "object" => match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => format!("map of {}", type_name(root, resolve(root, values))),
            _ => "mapping".to_owned(),
        },
        other => other.to_owned(),
    };
    match schema.get("type") {
        Some(Value::String(name)) => word(name),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .map(word)
            .collect::<Vec<_>>()
            .join(", "),
        _ => "any".to_owned(),
    }
}

fn limits(schema: &Value) -> Option<String> {
    let both = |low: &str, high: &str, what: &str| {
        let number = |key: &str| {
            schema
                .get(key)
                .filter(|value| value.as_u64() != Some(u64::from(u32::MAX)))
        };
        match (number(low), number(high)) {
            (Some(low), Some(high)) => Some(format!("{low} to {high}{what}")),
            (Some(low), None) if low.as_u64() != Some(0) => Some(format!("{low}{what} or more")),
            (None, Some(high)) => Some(format!("{high}{what} at most")),
            (Some(_) | None, None) => None,
        }
    };
    let all: Vec<String> = [
        both("minimum", "maximum", ""),
        both("minLength", "maxLength", " characters"),
        both("minItems", "maxItems", " entries"),
        both("minProperties", "maxProperties", " keys"),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// A paragraph on 80 columns.
fn wrapped(out: &mut String, text: &str, indent: usize) {
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > 80 {
            out.push('\n');
            used = 0;
        }
        if used == 0 {
            out.push_str(&" ".repeat(indent));
            used = indent;
        } else {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    if used > 0 {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_explained_with_type_limits_and_children() {
        let ports = explain("service.spec.container.ports").expect("a path of the schema");
        assert!(
            ports.starts_with("service.spec.container.ports  <list of mapping>\n"),
            "{ports}"
        );
        assert!(ports.contains("containerPort  <whole number>  required"), "{ports}");
        assert!(ports.contains("Limits: 256 entries at most"), "{ports}");
        let port = explain("svc.spec.container.ports[].hostPort").expect("a path of the schema");
        assert!(port.contains("1 to 65535"), "{port}");
        let mode = explain("services.spec.mode").expect("a path of the schema");
        assert!(mode.contains("`replicated`, `global`"), "{mode}");
        assert!(ports.lines().all(|line| line.chars().count() <= 80), "{ports}");
    }

    #[test]
    fn what_a_key_means_is_said_to_its_last_word() {
        for kind in Kind::ALL {
            let said = explain(&format!("{}.spec", kind.segment())).expect("every kind has a spec");
            let keys = said.split_once("Keys:\n").map_or("", |(_, keys)| keys);
            let lines: Vec<&str> = keys.lines().collect();
            for pair in lines.windows(2).chain(lines.last().map(std::slice::from_ref)) {
                let ends = pair.get(1).is_none_or(|next| !next.starts_with("      "));
                let about = pair[0].strip_prefix("      ").filter(|_| ends);
                assert!(about.is_none_or(|text| text.ends_with(['.', ':'])), "{}", pair[0]);
            }
        }
        let env = explain("service.spec.container").expect("a path of the schema");
        assert!(env.contains("`dependsOn`"), "{env}");
    }

    #[test]
    fn a_wrong_path_says_what_was_meant() {
        let error = explain("service.spec.contianer").expect_err("no such key").to_string();
        assert_eq!(
            error,
            "`service.spec` has no key `contianer`, did you mean `container`?"
        );
        let error = explain("nod").expect_err("no such kind").to_string();
        assert!(error.contains("did you mean"), "{error}");
        assert!(
            explain("node.spec.unschedulable.deeper")
                .expect_err("a leaf")
                .to_string()
                .contains("no keys")
        );
        assert!(explain("").is_err());
    }

    #[test]
    fn every_key_of_every_kind_can_be_explained() {
        fn all(path: &str, seen: &mut usize) {
            let text = explain(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            *seen += 1;
            for line in text.lines() {
                if let Some(name) = line
                    .strip_prefix("  ")
                    .filter(|line| !line.starts_with(' ') && line.contains("  <"))
                {
                    all(&format!("{path}.{}", name.split(' ').next().unwrap_or_default()), seen);
                }
            }
        }
        let mut seen = 0;
        Kind::ALL.iter().for_each(|kind| all(kind.segment(), &mut seen));
        assert!(seen > 150, "{seen}");
    }
}
