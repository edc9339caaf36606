//! Text to spanned values: YAML 1.2 (and so JSON) read with granit's events by a small composer that keeps the byte
//! span of every key and value. Admission calls it; nothing else does.
//!
//! It promises: scalars are YAML 1.2's (`no`, `on` and `0777` are text); duplicate keys, keys that are no strings,
//! unknown tags, merge keys and numbers that would lose digits are refused; depth, size and the number of values
//! (aliases expanded) are limited, so that no input takes more than bounded time, memory or stack. It never panics,
//! and a broken document hides no problem of the next one.

mod build;
mod read;

use serde_json::{Map, Number, Value};

pub(crate) use self::read::{compose, one_char, too_large};
use crate::problem::{Problems, Source};

/// Bytes that one document may have: 1 MiB, well under the 1.5 MiB that etcd takes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// Bytes that one input with all its documents may have: 16 MiB.
pub const MAX_INPUT_BYTES: usize = 16 << 20;
/// Levels that values may be nested: our own documents need 10.
pub const MAX_DEPTH: usize = 64;
/// Values that one document may hold when its aliases are expanded.
pub const MAX_VALUES: usize = 100_000;
/// Bytes of text that aliases of one document may add.
pub const MAX_ALIAS_BYTES: usize = 4 << 20;
/// Documents that one input may hold.
pub const MAX_DOCUMENTS: usize = 10_000;

/// A range of bytes of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextSpan {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl TextSpan {
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        TextSpan { start, end }
    }

    /// The span moved to character boundaries inside `text`.
    pub(crate) fn within(self, text: &str) -> Self {
        let floor = |at: usize| {
            let mut at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = floor(self.start);
        TextSpan {
            start,
            end: floor(self.end).max(start),
        }
    }

    fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// A value and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// The value's bytes; of an empty value, the key's.
    pub span: TextSpan,
    /// The value.
    pub content: Content,
}

/// What a [`Tree`] holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number of 64 bits, or a decimal.
    Number(Number),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// A mapping in the order of the input; its keys are distinct.
    Mapping(Vec<(Key, Tree)>),
}

/// A key of a mapping and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key's bytes.
    pub span: TextSpan,
    /// The key.
    pub name: String,
}

/// One step from a value to a value inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Step::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Step::Index(index)
    }
}

/// The spans of a place: its value, and its key where it is in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// The key's bytes.
    pub key: Option<TextSpan>,
    /// The value's bytes.
    pub value: TextSpan,
}

impl Tree {
    /// The value without its spans.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => Value::Array(items.iter().map(Tree::to_value).collect()),
            Content::Mapping(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    map.insert(key.name.clone(), value.to_value());
                }
                Value::Object(map)
            }
        }
    }

    /// The value of a key, when this is a mapping that has it.
    pub fn get(&self, name: &str) -> Option<&Tree> {
        match &self.content {
            Content::Mapping(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value),
            Content::Null | Content::Bool(_) | Content::Number(_) | Content::Text(_) | Content::List(_) => None,
        }
    }

    /// The text, when this is one.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::Null | Content::Bool(_) | Content::Number(_) | Content::List(_) | Content::Mapping(_) => None,
        }
    }

    /// The spans of a place inside this value; None when there is no such place.
    pub fn find(&self, path: &[Step]) -> Option<Spans> {
        let mut node = self;
        let mut key = None;
        for step in path {
            (key, node) = match (step, &node.content) {
                (Step::Key(name), Content::Mapping(entries)) => {
                    let (found, value) = entries.iter().find(|(key, _)| key.name == *name)?;
                    (Some(found.span), value)
                }
                (Step::Index(index), Content::List(items)) => (None, items.get(*index)?),
                (Step::Index(index), Content::Mapping(entries)) => {
                    let name = index.to_string();
                    let (found, value) = entries.iter().find(|(key, _)| key.name == name)?;
                    (Some(found.span), value)
                }
                _ => return None,
            };
        }
        Some(Spans { key, value: node.span })
    }

    /// Gives a key another text as its value; nothing happens where there is no such key.
    pub(crate) fn set_text(&mut self, name: &str, text: &str) {
        if let Content::Mapping(entries) = &mut self.content
            && let Some((_, value)) = entries.iter_mut().find(|(key, _)| key.name == name)
        {
            value.content = Content::Text(text.to_owned());
        }
    }

    /// The path of the innermost value that contains a span.
    pub(crate) fn path_to(&self, span: TextSpan) -> Vec<Step> {
        let within = |outer: TextSpan| outer.start <= span.start && span.end <= outer.end;
        let mut path = Vec::new();
        let mut node = self;
        loop {
            let next = match &node.content {
                Content::Null | Content::Bool(_) | Content::Number(_) | Content::Text(_) => None,
                Content::List(items) => {
                    let found = items.iter().enumerate().find(|(_, item)| within(item.span));
                    found.map(|(index, item)| (Step::Index(index), item))
                }
                Content::Mapping(entries) => {
                    let found = entries
                        .iter()
                        .find(|(key, value)| within(value.span) || within(key.span));
                    found.map(|(key, value)| (Step::Key(key.name.clone()), value))
                }
            };
            let Some((step, inner)) = next else { return path };
            path.push(step);
            node = inner;
        }
    }

    /// The value at a path.
    pub(crate) fn at(&self, path: &[Step]) -> Option<&Tree> {
        path.iter().try_fold(self, |node, step| match (step, &node.content) {
            (Step::Key(name), Content::Mapping(_)) => node.get(name),
            (Step::Index(index), Content::List(items)) => items.get(*index),
            _ => None,
        })
    }

    /// The spans of every place inside this value by JSON pointer (RFC 6901), the value itself as the empty pointer.
    pub fn pointers(&self) -> std::collections::BTreeMap<String, Spans> {
        fn walk(node: &Tree, key: Option<TextSpan>, at: String, out: &mut std::collections::BTreeMap<String, Spans>) {
            match &node.content {
                Content::Null | Content::Bool(_) | Content::Number(_) | Content::Text(_) => {}
                Content::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        walk(item, None, format!("{at}/{index}"), out);
                    }
                }
                Content::Mapping(entries) => {
                    for (key, value) in entries {
                        let name = key.name.replace('~', "~0").replace('/', "~1");
                        walk(value, Some(key.span), format!("{at}/{name}"), out);
                    }
                }
            }
            out.insert(at, Spans { key, value: node.span });
        }
        let mut out = std::collections::BTreeMap::new();
        walk(self, None, String::new(), &mut out);
        out
    }
}

/// A path as people write it: `spec.container.ports[0].hostPort`, `metadata.labels["a.b"]`.
pub fn path_text(path: &[Step]) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for step in path {
        match step {
            Step::Index(index) => {
                let _ = write!(out, "[{index}]");
            }
            Step::Key(name) if is_plain_key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Key(name) => {
                let mut name: String = name.chars().take(80).collect();
                name = crate::problem::clean(&name.escape_debug().to_string());
                let _ = write!(out, "[\"{name}\"]");
            }
        }
    }
    out
}

fn is_plain_key(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 80
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Reads every document of a text as values with their places, whatever they mean.
///
/// # Errors
/// Every problem of the text.
pub fn read(text: &str, file: Option<&str>) -> Result<Vec<Tree>, Problems> {
    let composed = compose(text);
    if composed.findings.is_empty() {
        return Ok(composed.documents);
    }
    let source = Source {
        file: file.map(str::to_owned),
        text: text.to_owned(),
    };
    Err(Problems::new(
        vec![source],
        composed.findings.into_iter().map(|finding| (0, finding)).collect(),
    ))
}

/// What a value is, with its article: for messages.
pub(crate) fn describe(content: &Content) -> &'static str {
    match content {
        Content::Null => "nothing",
        Content::Bool(_) => "a boolean",
        Content::Number(number) if number.is_f64() => "a decimal number",
        Content::Number(_) => "a number",
        Content::Text(_) => "a text",
        Content::List(_) => "a list",
        Content::Mapping(_) => "a mapping",
    }
}

#[cfg(test)]
#[path = "yaml/tests.rs"]
mod tests;
