//! Text to events, document by document: granit's parser with our limits, reduced to what building trees needs. A
//! document that is broken is given up, the next one is read.
#![allow(clippy::wildcard_enum_match_arm)] // The parser's enums grow; what we do not know has an answer too.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StructureStyle, Tag};

use super::build::Composer;
use super::{MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_DOCUMENTS, MAX_INPUT_BYTES, MAX_VALUES, TextSpan, Tree};
use crate::problem::{Code, Finding, quote};

/// What [`compose`] found: the documents that are not empty, and every problem of the text.
#[derive(Debug, Default)]
pub(crate) struct Composed {
    pub(crate) documents: Vec<Tree>,
    pub(crate) findings: Vec<Finding>,
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
pub(super) enum Piece<'a> {
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
pub(super) enum CoreTag {
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
pub(super) struct Events<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    /// Anchor id to the pieces of its node; the end is absent while the node is open.
    pub(super) anchors: HashMap<usize, (usize, Option<usize>)>,
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
        let mut composer = Composer::new(self.text, document);
        let mut next = 0;
        let root = composer.node(&mut next, 0, 0, TextSpan::new(self.started, self.started));
        let stop = composer.stop;
        out.findings.append(&mut composer.findings);
        if !stop && let Some(root) = root {
            out.documents.push(root);
        }
    }
}

pub(super) fn short(text: &str) -> String {
    let quoted = quote(text);
    quoted.trim_matches('`').to_owned()
}

pub(super) fn too_many(span: TextSpan) -> Finding {
    Finding::new(
        span,
        "",
        Code::TooManyValues,
        format!("the document has more than {MAX_VALUES} values, aliases expanded"),
    )
    .remedy("split it, or use fewer aliases")
}

pub(super) fn too_deep(span: TextSpan) -> Finding {
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
