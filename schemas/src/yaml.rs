//! Text to spanned values: YAML 1.2 (and so JSON) read with granit's events by a small composer that keeps the byte
//! span of every key and value. Admission calls it; nothing else does.
//!
//! It promises: scalars are YAML 1.2's (`no`, `on` and `0777` are text); duplicate keys, keys that are no strings,
//! unknown tags, merge keys and numbers that would lose digits are refused; depth, size and the number of values
//! (aliases expanded) are limited, so that no input takes more than bounded time, memory or stack. It never panics,
//! and a broken document hides no problem of the next one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StructureStyle, Tag};
use serde_json::{Map, Number, Value};

use crate::problem::{Code, Finding, Problems, Source, quote};

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
    use fmt::Write as _;
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

/// What [`compose`] found: the documents that are not empty, and every problem of the text.
#[derive(Debug, Default)]
pub(crate) struct Composed {
    pub(crate) documents: Vec<Tree>,
    pub(crate) findings: Vec<Finding>,
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

/// Reads every document of `text`. A document whose text is broken is missing from the result and has a finding; one
/// with lesser problems (a key twice) is there, without what is wrong.
pub(crate) fn compose(text: &str) -> Composed {
    let mut composed = Composed::default();
    if text.len() > MAX_INPUT_BYTES {
        composed.findings.push(
            Finding::new(
                TextSpan::default(),
                "",
                Code::TooLarge,
                format!("the input has {} bytes; the limit is {MAX_INPUT_BYTES}", text.len()),
            )
            .remedy("split it into several inputs"),
        );
        return composed;
    }
    let base = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let options = granit_parser::options! {
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
        emit_unresolved_aliases: true,
    };
    let mut parser = Parser::new_from_str_with_options(&text[base..], options);
    let mut reader = Reader {
        text,
        base,
        document: Events::default(),
        started: 0,
        count: 0,
    };
    loop {
        match parser.next_event() {
            None => break,
            Some(Ok((event, span))) => match reader.take(event, span, &mut composed) {
                Taken::More => {}
                Taken::End => break,
                Taken::SkipDocument => {
                    if !matches!(parser.proceed_next_document(), Ok(true)) {
                        break;
                    }
                }
            },
            Some(Err(error)) => {
                composed.findings.push(syntax(&error, text, base));
                if composed.findings.len() > crate::problem::MAX_PROBLEMS
                    || !matches!(parser.proceed_next_document(), Ok(true))
                {
                    break;
                }
            }
        }
    }
    composed
}

/// An event, reduced to what composing needs.
enum Piece<'a> {
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
        tag: Option<CoreTag>,
        span: TextSpan,
    },
    Start {
        list: bool,
        span: TextSpan,
        tag: Option<CoreTag>,
    },
    End {
        span: TextSpan,
        flow: bool,
    },
    Alias {
        target: usize,
        span: TextSpan,
    },
}

/// The tags of YAML's core schema; `!` means text, as on any scalar.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CoreTag {
    Text,
    Int,
    Float,
    Bool,
    Null,
    Mapping,
    List,
}

/// One document's events, and where its anchors begin and end.
#[derive(Default)]
struct Events<'a> {
    pieces: Vec<Piece<'a>>,
    /// Anchor id to the pieces of its node; the end is absent while the node is open.
    anchors: HashMap<usize, (usize, Option<usize>)>,
    /// Open collections: their anchor ids (0 for none) and styles.
    open: Vec<(usize, bool)>,
    values: usize,
}

struct Reader<'a> {
    text: &'a str,
    base: usize,
    document: Events<'a>,
    /// Where the document begins.
    started: usize,
    count: usize,
}

enum Taken {
    More,
    End,
    SkipDocument,
}

impl<'a> Reader<'a> {
    fn span(&self, span: &granit_parser::Span) -> TextSpan {
        let start = span.start.byte_offset().unwrap_or(0) + self.base;
        let end = span.end.byte_offset().unwrap_or(0) + self.base;
        TextSpan::new(start, end.max(start)).within(self.text)
    }

    fn take(&mut self, event: Event<'a>, span: granit_parser::Span, out: &mut Composed) -> Taken {
        let at = self.span(&span);
        match event {
            Event::DocumentStart(..) => {
                self.document = Events::default();
                self.started = at.start;
                self.count += 1;
                if self.count > MAX_DOCUMENTS {
                    out.findings.push(
                        Finding::new(
                            at,
                            "",
                            Code::TooLarge,
                            format!("the input has more than {MAX_DOCUMENTS} documents"),
                        )
                        .remedy("split it into several inputs"),
                    );
                    return Taken::End;
                }
            }
            Event::DocumentEnd => {
                let document = std::mem::take(&mut self.document);
                self.finish(&document, out);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = match self.tag(tag.as_deref(), &span, at, out) {
                    Ok(tag) => tag,
                    Err(()) => return Taken::SkipDocument,
                };
                self.anchor(anchor, true);
                let plain = style == ScalarStyle::Plain;
                let span = if plain { at } else { trimmed(self.text, at) };
                return self.push(Piece::Scalar { text, plain, tag, span }, at, out);
            }
            Event::SequenceStart(style, anchor, tag) => {
                return self.open(true, style, anchor, tag.as_deref(), &span, out);
            }
            Event::MappingStart(style, anchor, tag) => {
                return self.open(false, style, anchor, tag.as_deref(), &span, out);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (anchor, flow) = self.document.open.pop().unwrap_or((0, false));
                self.document.pieces.push(Piece::End { span: at, flow });
                let end = self.document.pieces.len();
                if let Some(range) = self.document.anchors.get_mut(&anchor) {
                    range.1 = Some(end);
                }
            }
            Event::Alias(target) => return self.push(Piece::Alias { target, span: at }, at, out),
            Event::UnresolvedAlias(name) => {
                out.findings.push(
                    Finding::new(
                        at,
                        "",
                        Code::BadAlias,
                        format!("no anchor `&{}` before this alias", short(&name)),
                    )
                    .remedy("define the anchor earlier in the same document, or quote the text"),
                );
                return Taken::SkipDocument;
            }
            Event::StreamEnd => return Taken::End,
            // StreamStart; and anchors and comments, which are not asked for.
            _ => {}
        }
        Taken::More
    }

    fn open(
        &mut self,
        list: bool,
        style: StructureStyle,
        anchor: usize,
        tag: Option<&Tag>,
        span: &granit_parser::Span,
        out: &mut Composed,
    ) -> Taken {
        let at = self.span(span);
        let Ok(tag) = self.tag(tag, span, at, out) else {
            return Taken::SkipDocument;
        };
        self.anchor(anchor, false);
        self.document.open.push((anchor, style == StructureStyle::Flow));
        self.push(Piece::Start { list, span: at, tag }, at, out)
    }

    fn anchor(&mut self, id: usize, closed: bool) {
        if id != 0 {
            let at = self.document.pieces.len();
            self.document.anchors.insert(id, (at, closed.then_some(at + 1)));
        }
    }

    fn push(&mut self, piece: Piece<'a>, at: TextSpan, out: &mut Composed) -> Taken {
        self.document.pieces.push(piece);
        self.document.values += 1;
        if self.document.values > MAX_VALUES {
            out.findings.push(too_many(at));
            return Taken::SkipDocument;
        }
        if at.end.saturating_sub(self.started) > MAX_DOCUMENT_BYTES {
            out.findings.push(too_large(
                TextSpan::new(self.started, self.started),
                at.end - self.started,
            ));
            return Taken::SkipDocument;
        }
        Taken::More
    }

    fn tag(
        &self,
        tag: Option<&Tag>,
        span: &granit_parser::Span,
        at: TextSpan,
        out: &mut Composed,
    ) -> Result<Option<CoreTag>, ()> {
        let Some(tag) = tag else { return Ok(None) };
        let known = match tag.core_suffix() {
            Some("str") => CoreTag::Text,
            Some("int") => CoreTag::Int,
            Some("float") => CoreTag::Float,
            Some("bool") => CoreTag::Bool,
            Some("null") => CoreTag::Null,
            Some("map") => CoreTag::Mapping,
            Some("seq") => CoreTag::List,
            _ if tag.parts() == ("", "!") => return Ok(Some(CoreTag::Text)),
            _ => {
                let place = span.tag_span().map_or(at, |tag| self.span(&tag));
                let place = if place.is_empty() { at } else { place };
                out.findings.push(
                    Finding::new(
                        place,
                        "",
                        Code::BadTag,
                        format!("unknown tag {}", quote(&tag.original())),
                    )
                    .remedy("remove it, or quote the text if it belongs to the value"),
                );
                return Err(());
            }
        };
        Ok(Some(known))
    }

    fn finish(&self, document: &Events<'a>, out: &mut Composed) {
        if document.pieces.is_empty() {
            return;
        }
        if let [
            Piece::Scalar {
                plain: true,
                tag: None,
                span,
                ..
            },
        ] = document.pieces.as_slice()
            && span.is_empty()
        {
            // Nothing but comments between two `---`.
            return;
        }
        let mut composer = Composer {
            text: self.text,
            document,
            values: 0,
            alias_bytes: 0,
            stop: false,
            findings: Vec::new(),
        };
        let mut next = 0;
        let root = composer.node(&mut next, 0, 0, TextSpan::new(self.started, self.started));
        let stop = composer.stop;
        out.findings.append(&mut composer.findings);
        if !stop && let Some(root) = root {
            out.documents.push(root);
        }
    }
}

/// Builds one document's tree. Its depth is limited, so recursion is safe.
struct Composer<'a, 'e> {
    text: &'a str,
    document: &'e Events<'a>,
    values: usize,
    alias_bytes: usize,
    /// A limit was reached: the document is given up.
    stop: bool,
    findings: Vec<Finding>,
}

impl Composer<'_, '_> {
    /// The node that begins at piece `next`, which is moved past it. `aliases` is how many aliases lead here, `empty`
    /// what to point at when the value is empty.
    fn node(&mut self, next: &mut usize, depth: usize, aliases: usize, empty: TextSpan) -> Option<Tree> {
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

fn short(text: &str) -> String {
    let quoted = quote(text);
    quoted.trim_matches('`').to_owned()
}

fn too_many(span: TextSpan) -> Finding {
    Finding::new(
        span,
        "",
        Code::TooManyValues,
        format!("the document has more than {MAX_VALUES} values, aliases expanded"),
    )
    .remedy("split it, or use fewer aliases")
}

fn too_deep(span: TextSpan) -> Finding {
    Finding::new(
        span,
        "",
        Code::TooDeep,
        format!("values are nested more than {MAX_DEPTH} levels deep"),
    )
    .remedy("flatten the document: no resource needs so many levels")
}

pub(crate) fn too_large(span: TextSpan, bytes: usize) -> Finding {
    Finding::new(
        span,
        "",
        Code::TooLarge,
        format!("the document has {bytes} bytes or more; the limit is {MAX_DOCUMENT_BYTES}"),
    )
    .remedy("move what is large into a file or an image")
}

/// Block scalars and quoted ones without the white space behind them.
fn trimmed(text: &str, span: TextSpan) -> TextSpan {
    let part = text.get(span.start..span.end).unwrap_or_default();
    TextSpan::new(
        span.start,
        span.start + part.trim_end().len().max(usize::from(!part.is_empty())),
    )
}

/// The first character of a span.
pub(crate) fn one_char(text: &str, span: TextSpan) -> TextSpan {
    let length = text
        .get(span.start..)
        .and_then(|rest| rest.chars().next())
        .map_or(0, char::len_utf8);
    TextSpan::new(span.start, span.start + length).within(text)
}

/// The parser's error in our words, where the common ones have better ones, with a remedy.
fn syntax(error: &ScanError, text: &str, base: usize) -> Finding {
    let at = error.marker().byte_offset().unwrap_or(text.len()) + base;
    let mut at = TextSpan::new(at, at).within(text);
    if text[at.start..].trim().is_empty() {
        // The input ended too soon: point at its last character instead of the void behind it.
        let end = text.trim_end().len();
        at = TextSpan::new(end.min(at.start), end.min(at.start)).within(text);
        if let Some((last, _)) = text[..at.start].char_indices().next_back() {
            at.start = last;
        }
    }
    let mut span = one_char(text, at);
    let (message, remedy): (String, Option<&str>) = match error.kind() {
        ErrorKind::RecursionLimitExceeded => return too_deep(span),
        ErrorKind::TabInIndentation
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabNotAllowed
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => {
            if text[..span.start].ends_with('\t') {
                span = TextSpan::new(span.start - 1, span.start);
            }
            (
                "a tab cannot be used here".into(),
                Some("YAML is indented with spaces: replace the tab"),
            )
        }
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => (
            "a `key: value` cannot begin here".into(),
            Some("put the key on a line of its own, or quote a text that contains `: `"),
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => (
            "this line has no `:` after its key".into(),
            Some("write `key: value`; indent the line further if it continues the one before"),
        ),
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => (
            "this line's indentation fits no line above it".into(),
            Some("indent it like the keys that it belongs to"),
        ),
        ErrorKind::ExpectedBlockSequenceEntry => (
            "expected another `- ` entry of the list".into(),
            Some("indent all entries of a list alike"),
        ),
        ErrorKind::UnclosedQuotedScalar => (
            "a quoted text is not closed".into(),
            Some("close it with the same quote; write `\\\"` or `''` for a quote inside"),
        ),
        ErrorKind::InvalidQuotedScalarIndent => (
            "a quoted text is not closed, or goes on with too little indentation".into(),
            Some("close it with the same quote, or indent the lines that belong to it"),
        ),
        ErrorKind::UnclosedFlowCollection { open } => (format!("`{open}` is not closed"), Some("close the bracket")),
        ErrorKind::UnexpectedEofFlowSequence => ("`[` is not closed".into(), Some("close the bracket")),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            ("`{` is not closed".into(), Some("close the bracket"))
        }
        ErrorKind::MisplacedFlowCollectionEnd => (
            "this bracket closes nothing".into(),
            Some("remove it, or quote the text that it belongs to"),
        ),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => (
            format!("`{open}` is closed by `{close}`"),
            Some("close every bracket with its own kind"),
        ),
        ErrorKind::ExpectedFlowMappingSeparator => (
            "expected `,` or `}`".into(),
            Some("separate entries with commas and close the bracket"),
        ),
        ErrorKind::ExpectedFlowSequenceSeparator => (
            "expected `,` or `]`".into(),
            Some("separate entries with commas and close the bracket"),
        ),
        ErrorKind::UnexpectedCharacter { character } => (
            format!("{} cannot begin a value", quote(&character.to_string())),
            Some("quote the text"),
        ),
        ErrorKind::UnknownQuotedScalarEscape => (
            "unknown escape in a text in double quotes".into(),
            Some("use single quotes, or double the backslash"),
        ),
        ErrorKind::BlockEntryInFlowCollection | ErrorKind::BlockSequenceEntryNotAllowed => (
            "a `- ` entry cannot begin here".into(),
            Some("put each entry on a line of its own below its key"),
        ),
        ErrorKind::UndeclaredTagHandle => (
            "the tag's prefix is not declared".into(),
            Some("remove the tag, or quote the text"),
        ),
        ErrorKind::MissingAnchorOrAliasName => (
            "`&` and `*` begin an anchor or alias and need a name".into(),
            Some("quote a text that begins with `&` or `*`"),
        ),
        other => (other.to_string(), None),
    };
    let finding = Finding::new(span, "", Code::Syntax, message);
    match remedy {
        Some(remedy) => finding.remedy(remedy),
        None => finding.remedy("see https://yaml.org/spec/1.2.2 for how YAML is written; JSON is accepted too"),
    }
}

#[cfg(test)]
#[path = "yaml/tests.rs"]
mod tests;
