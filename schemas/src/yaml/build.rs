//! Events to trees: aliases expanded within limits, duplicate and odd keys refused, scalars read as YAML 1.2's.

use std::collections::HashMap;

use super::read::{CoreTag, Events, Piece, one_char, short, too_deep, too_many};
use super::{Content, Key, MAX_ALIAS_BYTES, MAX_DEPTH, MAX_VALUES, TextSpan, Tree, describe};
use crate::problem::{Code, Finding, quote};
use serde_json::Number;

/// Builds one document's tree. Its depth is limited, so recursion is safe.
pub(super) struct Composer<'a, 'e> {
    text: &'a str,
    document: &'e Events<'a>,
    values: usize,
    alias_bytes: usize,
    /// A limit was reached: the document is given up.
    pub(super) stop: bool,
    pub(super) findings: Vec<Finding>,
}

impl<'a, 'e> Composer<'a, 'e> {
    pub(super) fn new(text: &'a str, document: &'e Events<'a>) -> Self {
        Composer {
            text,
            document,
            values: 0,
            alias_bytes: 0,
            stop: false,
            findings: Vec::new(),
        }
    }
}

impl Composer<'_, '_> {
    /// The node that begins at piece `next`, which is moved past it. `aliases` is how many aliases lead here, `empty`
    /// what to point at when the value is empty.
    pub(super) fn node(&mut self, next: &mut usize, depth: usize, aliases: usize, empty: TextSpan) -> Option<Tree> {
        let document = self.document;
        let piece = document.pieces.get(*next)?;
        self.values += 1;
        match piece {
            Piece::Scalar { text, plain, tag, span } => {
                *next += 1;
                let span = if span.is_empty() { empty } else { *span };
                if self.values > MAX_VALUES {
                    return self.give_up(too_many(span));
                }
                if aliases > 0 {
                    self.alias_bytes += text.len();
                    if self.alias_bytes > MAX_ALIAS_BYTES {
                        return self.give_up(
                            Finding::new(
                                span,
                                "",
                                Code::TooManyValues,
                                format!("aliases expand to more than {MAX_ALIAS_BYTES} bytes of text"),
                            )
                            .remedy("use fewer aliases"),
                        );
                    }
                }
                Some(Tree {
                    span,
                    content: self.scalar(text, *plain, *tag, span),
                })
            }
            Piece::Alias { target, span } => {
                let at = *next;
                *next += 1;
                match document.anchors.get(target) {
                    Some((start, Some(end))) if *end <= at => {
                        let mut inner = *start;
                        self.node(&mut inner, depth, aliases + 1, *span)
                    }
                    _ => self.give_up(
                        Finding::new(
                            *span,
                            "",
                            Code::BadAlias,
                            "the alias lies inside the value that it names",
                        )
                        .remedy("write the value out"),
                    ),
                }
            }
            Piece::Start { list, span, tag } => {
                *next += 1;
                if self.values > MAX_VALUES {
                    return self.give_up(too_many(*span));
                }
                if depth >= MAX_DEPTH {
                    return self.give_up(too_deep(*span));
                }
                if let Some(tag) = tag
                    && *tag != if *list { CoreTag::List } else { CoreTag::Mapping }
                {
                    self.findings.push(
                        Finding::new(
                            one_char(self.text, *span),
                            "",
                            Code::BadTag,
                            "the tag does not fit its value",
                        )
                        .remedy("remove the tag"),
                    );
                }
                if *list {
                    self.list(next, *span, depth, aliases)
                } else {
                    self.mapping(next, *span, depth, aliases)
                }
            }
            // Never first: every End follows its Start.
            Piece::End { .. } => None,
        }
    }

    fn list(&mut self, next: &mut usize, start: TextSpan, depth: usize, aliases: usize) -> Option<Tree> {
        let mut items: Vec<Tree> = Vec::new();
        let mut last = start;
        loop {
            if let Some(end) = self.end(next) {
                let span = self.collection_span(start, end, items.first().map(|item| item.span), last);
                return Some(Tree {
                    span,
                    content: Content::List(items),
                });
            }
            let item = self.node(next, depth + 1, aliases, one_char(self.text, last))?;
            last = item.span;
            items.push(item);
        }
    }

    fn mapping(&mut self, next: &mut usize, start: TextSpan, depth: usize, aliases: usize) -> Option<Tree> {
        let mut entries: Vec<(Key, Tree)> = Vec::new();
        let mut seen: HashMap<String, TextSpan> = HashMap::new();
        let mut last = start;
        loop {
            if let Some(end) = self.end(next) {
                let span = self.collection_span(start, end, entries.first().map(|(key, _)| key.span), last);
                return Some(Tree {
                    span,
                    content: Content::Mapping(entries),
                });
            }
            let key = self.key(next, depth, aliases, one_char(self.text, start))?;
            let place = key.as_ref().map_or(start, |key| key.span);
            let value = self.node(next, depth + 1, aliases, place)?;
            last = value.span;
            let Some(key) = key else { continue };
            // A few keys are compared one by one; many are looked up.
            let first = if entries.len() < 16 {
                entries
                    .iter()
                    .find(|(other, _)| other.name == key.name)
                    .map(|(other, _)| other.span)
            } else {
                if seen.is_empty() {
                    seen.extend(entries.iter().map(|(key, _)| (key.name.clone(), key.span)));
                }
                seen.get(&key.name).copied()
            };
            match first {
                Some(first) => self.findings.push(
                    Finding::new(
                        key.span,
                        "",
                        Code::DuplicateKey,
                        format!("the key {} occurs twice in one mapping", quote(&key.name)),
                    )
                    .also(first, "first here")
                    .remedy("remove one of them"),
                ),
                None => {
                    if !seen.is_empty() {
                        seen.insert(key.name.clone(), key.span);
                    }
                    entries.push((key, value));
                }
            }
        }
    }

    /// A key; None inside when it is unusable and has its finding, None outside when the document is given up.
    #[allow(clippy::option_option)]
    fn key(&mut self, next: &mut usize, depth: usize, aliases: usize, empty: TextSpan) -> Option<Option<Key>> {
        let found = self.findings.len();
        let plain = matches!(
            self.document.pieces.get(*next),
            Some(Piece::Scalar {
                plain: true,
                tag: None,
                ..
            })
        );
        let node = self.node(next, depth + 1, aliases, empty)?;
        let span = node.span;
        let bad = |message: String, remedy: String| Finding::new(span, "", Code::BadKey, message).remedy(remedy);
        let written = self.text.get(span.start..span.end).unwrap_or_default();
        match node.content {
            Content::Text(name) if plain && name == "<<" => {
                self.findings.push(
                    Finding::new(span, "", Code::MergeKey, "merge keys are not supported")
                        .remedy("write the merged keys out, or use an alias for a whole value"),
                );
                Some(None)
            }
            Content::Text(name) => Some(Some(Key { span, name })),
            Content::Null | Content::Bool(_) | Content::Number(_) => {
                // A scalar that could not be kept (1e999) has said so already.
                if self.findings.len() == found {
                    let what = describe(&node.content);
                    let finding = if written.is_empty() || span == empty {
                        bad(
                            format!("a key is a text, not {what}"),
                            "write the key before the `:`".to_owned(),
                        )
                    } else {
                        bad(
                            format!("a key is a text, not {what}"),
                            format!("quote it: \"{}\"", short(written)),
                        )
                    };
                    self.findings.push(finding);
                }
                Some(None)
            }
            Content::List(_) | Content::Mapping(_) => {
                let what = describe(&node.content);
                let finding = Finding::new(
                    one_char(self.text, span),
                    "",
                    Code::BadKey,
                    format!("a key is a text, not {what}"),
                )
                .remedy("if this is meant to be a text such as `{{ name }}`, quote it");
                self.findings.push(finding);
                Some(None)
            }
        }
    }

    fn end(&mut self, next: &mut usize) -> Option<(TextSpan, bool)> {
        match self.document.pieces.get(*next) {
            Some(Piece::End { span, flow }) => {
                *next += 1;
                Some((*span, *flow))
            }
            Some(Piece::Scalar { .. } | Piece::Start { .. } | Piece::Alias { .. }) => None,
            // The events end inside a collection: the parser never does that.
            None => Some((TextSpan::new(self.text.len(), self.text.len()), false)),
        }
    }

    /// From the first entry to the last; in flow style the brackets belong to it.
    fn collection_span(
        &self,
        start: TextSpan,
        end: (TextSpan, bool),
        first: Option<TextSpan>,
        last: TextSpan,
    ) -> TextSpan {
        let (end, flow) = end;
        if flow {
            return TextSpan::new(start.start, end.end.max(start.start));
        }
        let from = first.map_or(start.start, |first| first.start.min(start.start));
        TextSpan::new(from, last.end.max(from)).within(self.text)
    }

    fn scalar(&mut self, text: &str, plain: bool, tag: Option<CoreTag>, span: TextSpan) -> Content {
        let resolved = match (tag, plain) {
            (Some(CoreTag::Text), _) | (None, false) => return Content::Text(text.to_owned()),
            (_, _) => resolve(text),
        };
        let content = match resolved {
            Resolved::Content(content) => content,
            Resolved::TooBig => {
                self.findings.push(
                    Finding::new(
                        span,
                        "",
                        Code::BadNumber,
                        format!("the number {} does not fit 64 bits", quote(text)),
                    )
                    .remedy("write a smaller number, or quote it if it is a text"),
                );
                return Content::Null;
            }
            Resolved::NotFinite => {
                self.findings.push(
                    Finding::new(
                        span,
                        "",
                        Code::BadNumber,
                        format!("{} is not a finite number", quote(text)),
                    )
                    .remedy("write a number, or quote it if it is a text"),
                );
                return Content::Null;
            }
        };
        let fits = match (tag, &content) {
            (None, _) => true,
            (Some(CoreTag::Int), Content::Number(number)) => !number.is_f64(),
            (Some(CoreTag::Float), Content::Number(_))
            | (Some(CoreTag::Bool), Content::Bool(_))
            | (Some(CoreTag::Null), Content::Null) => true,
            (Some(_), _) => false,
        };
        if !fits {
            self.findings.push(
                Finding::new(
                    span,
                    "",
                    Code::BadTag,
                    format!("the tag does not fit the value {}", quote(text)),
                )
                .remedy("remove the tag"),
            );
        }
        content
    }

    fn give_up(&mut self, finding: Finding) -> Option<Tree> {
        if !self.stop {
            self.stop = true;
            self.findings.push(finding);
        }
        None
    }
}

enum Resolved {
    Content(Content),
    TooBig,
    NotFinite,
}

/// What a plain scalar is in YAML 1.2's core schema. A number with leading zeros is a text: to most people `0777` is
/// octal, to YAML 1.2 it is not, and to drop the zero would be a guess.
fn resolve(text: &str) -> Resolved {
    let number = |n: Number| Resolved::Content(Content::Number(n));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Content(Content::Null),
        "true" | "True" | "TRUE" => return Resolved::Content(Content::Bool(true)),
        "false" | "False" | "FALSE" => return Resolved::Content(Content::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => return Resolved::NotFinite,
        _ => {}
    }
    let as_text = || Resolved::Content(Content::Text(text.to_owned()));
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
                return as_text();
            }
            return u64::from_str_radix(digits, radix).map_or(Resolved::TooBig, |value| number(value.into()));
        }
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Resolved::NotFinite;
    }
    let Some(shape) = shape(unsigned) else { return as_text() };
    let whole = unsigned.split(['.', 'e', 'E']).next().unwrap_or_default();
    if whole.len() > 1 && whole.starts_with('0') {
        return as_text();
    }
    match shape {
        Shape::Integer => {
            let digits = text.strip_prefix('+').unwrap_or(text);
            if let Ok(value) = digits.parse::<u64>() {
                number(value.into())
            } else if let Ok(value) = digits.parse::<i64>() {
                number(value.into())
            } else {
                Resolved::TooBig
            }
        }
        Shape::Decimal => match text.parse::<f64>() {
            Ok(value) => Number::from_f64(value).map_or(Resolved::NotFinite, number),
            Err(_) => as_text(),
        },
    }
}

enum Shape {
    Integer,
    Decimal,
}

/// Whether an unsigned text is `[0-9]+` or `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn shape(text: &str) -> Option<Shape> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(text) {
        return Some(Shape::Integer);
    }
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    if let Some(exponent) = exponent
        && !digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))
    {
        return None;
    }
    let good = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    };
    good.then_some(Shape::Decimal)
}
